"""Evaluation: the whole job but the sends, against the C client with one grouped query, and against the plain loop."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import Bench, Figures, c_client, in_turn, median, quietly, ratio, timed
from tests.bench.population import Population
from tests.sandbox.database import Database

REFERENCE = Path(__file__).with_name("reference.sql").read_text()
OLD_LOGS = 20  # for each user, where the number of users is what grows
OLD_USERS = 200_000  # at most, where the old logs are what grows
LOOP_SAMPLE = 3_000
TURNS = 3


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    index: bool
    users: int
    old_logs: int
    """Of each user."""
    due: int
    client_seconds: float
    """As all times here, from the start of the process to its end."""
    seconds: float
    to_client: float
    """The program's time, in times of the client's."""
    cpu_to_client: float
    """The CPU of program and server, in times of that of client and server."""
    to_loop: float
    """The users that the program judges in a second, in times of the loop's."""
    mib: float

    @property
    def large(self) -> bool:
        """Whether the bounds are meant for it: with fewer users, the start of the process weighs too much."""
        return self.users >= 1_000_000 and self.old_logs >= OLD_LOGS

    @property
    def bound(self) -> float:
        """What `to_client` may be."""
        return 1.0 if self.index else 0.95

    @property
    def loop_bound(self) -> float:
        """What `to_loop` must be."""
        return 25 if self.index else 7


@dataclass(frozen=True)
class Extra:
    """What something more costs, at as many users as the curve ends with, with the index."""

    words: str
    seconds: float
    times: float
    to: str
    """What `times` compares with."""
    bound: float
    users: int

    @property
    def large(self) -> bool:
        """Whether the bound is meant for it."""
        return self.users >= 1_000_000


def run(bench: Bench, sizes: list[int], old: list[int]) -> tuple[list[Case], list[Extra]]:
    """The curves over users, and over the old logs of some of them; what costs more."""
    cases, extras = [], []
    for index in (True, False):
        words = "with the index" if index else "with the foreign keys' indexes"
        with bench.server() as server:
            with server.database(log_index=index) as database:
                population = Population(database)
                for users in sizes:
                    bench.say(f"filling in {users:,} users, {words}")
                    population.grow(users, OLD_LOGS)
                    cases.append(_measure(bench, population, index, OLD_LOGS))
                if index:
                    extras = _measure_extras(bench, population)
            if not old:
                continue
            with server.database(log_index=index) as database:
                population = Population(database)
                population.grow(min(sizes[-1], OLD_USERS))
                for old_logs in old:
                    bench.say(f"filling in {sizes[-1] * old_logs:,} old logs, {words}")
                    population.add_old_logs(old_logs)
                    cases.append(_measure(bench, population, index, old_logs))
    return cases, extras


def _measure(bench: Bench, population: Population, index: bool, old_logs: int) -> Case:
    database = population.database
    client = c_client(database, REFERENCE)
    if not client:
        raise RuntimeError("This machine has no mariadb or mysql client: install one to measure against")
    environ = bench.environ(database.environ(), NO_TWILIO)
    reference = subprocess.run(client, check=True, capture_output=True, text=True).stdout.count("\n")
    found = in_turn(
        TURNS,
        {
            "client": lambda: timed(database.server, lambda: quietly(client)),
            "program": lambda: timed(database.server, lambda: bench.child(environ, "evaluate")),
            "loop": lambda: bench.child(environ, "loop", LOOP_SAMPLE),
        },
    )
    due = {int(figures["due"]) for figures in found["program"]}
    if due != {reference}:
        raise RuntimeError(f"The program finds {due} due users, the reference {reference}: one of them is wrong")
    seconds = {name: [each["seconds"] for each in figures] for name, figures in found.items()}
    per_user = [each["seconds"] / each["users"] for each in found["loop"]]
    case = Case(
        index=index,
        users=population.users,
        old_logs=old_logs,
        due=reference,
        client_seconds=median(found["client"], "seconds"),
        seconds=median(found["program"], "seconds"),
        to_client=ratio(seconds["program"], seconds["client"]),
        cpu_to_client=ratio(*([each["cpu"] for each in found[name]] for name in ("program", "client"))),
        to_loop=ratio(per_user, [each / population.users for each in seconds["program"]]),
        mib=median(found["program"], "mib"),
    )
    against = f"{case.to_client:.2f} x the C client's time, {case.cpu_to_client:.2f} x its CPU"
    bench.say(f"{case.users:,} users: {against}, {case.to_loop:.0f} x the loop")
    return case


def _measure_extras(bench: Bench, population: Population) -> list[Extra]:
    """Views in place of tables, a ledger of a week, and all gates that ask for a setting."""
    database, client = population.database, c_client(population.database, REFERENCE) or []
    environ = bench.environ(database.environ(), NO_TWILIO)

    def program(settings: dict[str, str]) -> Callable[[], Figures]:
        return lambda: timed(database.server, lambda: bench.child(environ | settings, "evaluate"))

    def extra(words: str, name: str, to: str, bound: float) -> Extra:
        return Extra(words, median(found[name], "seconds"), _ratio(found, name, to), NAMES[to], bound, population.users)

    bench.say("views in place of tables, a ledger of a week, all gates")
    found = in_turn(TURNS, {"tables": program({}), "views": program({"DB_NAME": _views(database)})})
    extras = [extra("views in place of tables", "views", "tables", 1.3)]
    population.add_ledger()
    found = in_turn(
        TURNS,
        {
            "client": lambda: timed(database.server, lambda: quietly(client)),
            "ledger": program({}),
            "gates": program(ALL_GATES),
        },
    )
    extras += [
        extra("seven rows in the ledger for each who is due", "ledger", "client", 1.25),
        extra("all gates, with those rows", "gates", "client", 1.25),
        extra("all gates, with those rows", "gates", "ledger", 1.1),
    ]
    for each in extras:
        bench.say(f"{each.words}: {each.times:.2f} x {each.to}")
    return extras


def _ratio(found: dict[str, list[Figures]], over: str, under: str) -> float:
    return ratio(*([each["seconds"] for each in found[name]] for name in (over, under)))


def _views(database: Database) -> str:
    """A schema of views over the tables, as docs/your-tables.md has them; its name."""
    schema = f"{database.name}_views"
    database.execute(f"CREATE DATABASE {schema}")
    for table, columns in VIEWS.items():
        database.execute(f"CREATE VIEW {schema}.`{table}` AS SELECT {columns} FROM {database.name}.`{table}`")
    database.execute(f"GRANT ALL ON {schema}.* TO {database.environ()['DB_USER']}@'%'")
    return schema


VIEWS = {"User": "id, name, phone_number, time_zone", "Habit": "id, user_id, name", "Log": "id, habit_id, created_at"}
ALL_GATES = {"SEND_WINDOW": "00:00-23:59", "MAX_PER_WEEK": "7", "QUIET_AFTER": "14", "UNDELIVERED_LIMIT": "10"}
NAMES = {"tables": "that of tables", "client": "the C client's", "ledger": "that without them"}
NO_TWILIO = {
    "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "TWILIO_AUTH_TOKEN": "none",
    "TWILIO_FROM_NUMBER": "+15005550006",
    "TWILIO_API_URL": "http://127.0.0.1:9",
}
