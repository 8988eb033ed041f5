"""Where scenes are played: a server, its databases, the wire, two fakes; and the playing itself."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from tests.faults import program
from tests.faults.draw import Part, Scene, Step
from tests.faults.faults import Fault, Group
from tests.faults.program import LOCK_WAIT, Actor, InlineActor, Orders, ProcessActor, Replacements, Run
from tests.faults.scene import Person, SceneClock
from tests.sandbox.database import LEDGER, Id, Server
from tests.sandbox.fake_twilio import Answer, FakeTwilio, Message, Request, refuse, self_signed_certificate
from tests.sandbox.proxy import Proxy, Verdict

ENVIRON = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
RETRIED = {1, 143, program.KILLED}  # what a Job tries again: podFailurePolicy excepts 2


@dataclass(frozen=True)
class Row:
    """A row of the ledger."""

    user_id: Id
    day: date
    phone: str
    state: str
    token: str
    claimed_at: datetime
    finished_at: datetime | None
    sid: str | None
    code: int | None
    final_status: str | None


@dataclass
class Played:
    """One group of runs that was played, and what stood before and after it."""

    part: Part
    runs: list[Run]
    people: list[Person]
    ledger_before: list[Row]
    ledger_after: list[Row]
    texts: list[Message]
    requests: list[Request]
    faults: list[Fault]
    jumps: list[tuple[datetime, datetime]]
    """From when to when the clock went while the runs were at work."""
    stray: list[str]
    """What libraries and threads said."""


@dataclass
class Record:
    """A scene that was played."""

    scene: Scene
    groups: list[Played] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    final_book: list[Message] = field(default_factory=list)


class Stage:
    """Everything that scenes need, made once and emptied for each of them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="habit-faults-")
        self._stray = _catch_stray_output()
        self.use(())

    def use(self, replacements: Replacements) -> None:
        """From now on play the program with these texts replaced."""
        self._replacements = list(replacements)
        self._copies = [program.load(f"copy_{name}", [*replacements, LOCK_WAIT]) for name in "abc"]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            certificate = self_signed_certificate(Path(self._folder.name))
            # requests looks for this in the environment alone; the authorities of the machine cost 25 ms a connection.
            os.environ |= dict(zip(ENVIRON, (certificate[0], certificate[0], self._folder.name), strict=True))
            os.environ["PYTHONPATH"] = str(program.ROOT)
            os.environ["TMPDIR"] = self._folder.name  # a server that starts sweeps the temporary tables of others there
            self.server = stack.enter_context(Server())
            self.databases = {
                "INT": stack.enter_context(self.server.database(id_type="INT")),
                "CHAR(36)": stack.enter_context(self.server.database(id_type="CHAR(36)", created_at="DATETIME(6)")),
            }
            self.accounts = {}
            for name, database in self.databases.items():
                self.accounts[name] = database.environ(), database.least_account(create=True)
                database.execute("CREATE TABLE Ballast (n INT NOT NULL) ENGINE=InnoDB")
                database.execute(f"INSERT INTO Ballast VALUES {', '.join(['(0)'] * 200)}")
            self.wire = stack.enter_context(Proxy((self.server.host, self.server.port)))
            fakes = FakeTwilio(), FakeTwilio(tls=certificate)
            self.fakes = {bool(fake.tls): stack.enter_context(fake) for fake in fakes}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        self._folder.cleanup()

    # --- a scene

    def play(self, scene: Scene) -> Iterator[Record]:
        """Play it, and hand out the record after each group."""
        rng = random.Random(f"{scene.seed}/{scene.index}/play")
        self._reset(scene)
        record = Record(scene, secrets=self._secrets())
        for step in scene.steps:
            self._edit(rng, scene, step)
            self.clock.go_to(step.at)
            for part in step.parts:
                played = self._play(rng, scene, part)
                record.groups.append(played)
                record.final_book = list(self.twilio.book)
                yield record
                self._obey(rng, played)
                if not any(run.exit_code in RETRIED for run in played.runs):
                    break
                self.clock.advance(timedelta(seconds=rng.choice([1, 10, 20, 600])))

    def _reset(self, scene: Scene) -> None:
        self.database = self.databases[scene.id_type]
        self.twilio = self.fakes[scene.tls]
        self.clock = SceneClock(scene.steps[0].at - datetime.now(UTC))
        for thread in threading.enumerate():  # of runs in this process, which went on without them: none ends with it
            if "(_work)" in thread.name:
                thread.join(5)
        self.twilio.reset()
        self.twilio.clock = self.clock
        self.twilio.list_lag = scene.list_lag
        self.wire.rules.clear()
        for table in ("Log", "Habit", "User"):
            self.database.execute(f"DELETE FROM `{table}`")
        if self.database.rows("SHOW TABLES LIKE %s", (LEDGER,)):
            self.database.execute(f"DROP TABLE {LEDGER}" if scene.new_ledger else f"DELETE FROM {LEDGER}")
        self._ids = {"Habit": 0, "Log": 0}
        self._habits: dict[Id, list[Id]] = {}
        self._fill([person for person in scene.people if person.is_here])

    def _fill(self, people: Sequence[Person]) -> None:
        users = [(p.id, raw(p.name), p.phone, raw(p.zone)) for p in people]
        self._insert("INSERT INTO User (id, name, phone_number, time_zone) VALUES", users)
        self._habits |= {p.id: [self._new_id("Habit") for _ in range(p.habits)] for p in people}
        habits = [
            (habit, user, "Read")
            for user, mine in self._habits.items()
            for habit in mine
            if user in {p.id for p in people}
        ]
        self._insert("INSERT INTO Habit (id, user_id, name) VALUES", habits)
        logs = [
            (self._new_id("Log"), self._habits[p.id][n % p.habits], log.replace(tzinfo=None))
            for p in people
            for n, log in enumerate(p.logs)
        ]
        self._insert("INSERT INTO Log (id, habit_id, created_at) VALUES", logs)

    def _come_and_go(self, scene: Scene) -> set[str]:
        """Those who are to come do; as many of the others go."""
        coming = [person for person in scene.people if not person.is_here and person.id not in self._habits]
        going = [person for person in scene.people if person.is_here][: len(coming)]
        for person in coming + going:
            person.is_here = not person.is_here
        with self.database.connect() as admin, admin.cursor() as cursor:
            for person in going:
                cursor.execute(
                    "DELETE l FROM Log l JOIN Habit h ON h.id = l.habit_id WHERE h.user_id = %s", (person.id,)
                )
                cursor.execute("DELETE FROM Habit WHERE user_id = %s", (person.id,))
                cursor.execute("DELETE FROM User WHERE id = %s", (person.id,))
        self._fill(coming)
        return {person.key for person in coming + going}

    def _insert(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            holes = f"({', '.join(['%s'] * len(rows[0]))})"
            self.database.execute(f"{sql} {', '.join([holes] * len(rows))}", [value for row in rows for value in row])

    def _new_id(self, table: str) -> Id:
        self._ids[table] += 1
        return f"{self._ids[table]:036}" if self.database.id_type.startswith("CHAR") else self._ids[table]

    def _secrets(self) -> list[str]:
        passwords = [account["DB_PASSWORD"] for pair in self.accounts.values() for account in pair]
        return [FakeTwilio.AUTH_TOKEN, FakeTwilio.API_KEY_SECRET, *passwords]

    # --- between the runs

    def _edit(self, rng: random.Random, scene: Scene, step: Step) -> None:
        """People log, move, or get another number; Twilio learns what became of texts."""
        for who in rng.sample(scene.people, min(step.edits, len(scene.people))):
            change = rng.choice(["log", "zone", "phone"])
            if change == "log" and who.habits and who.is_here:
                who.logs.append((step.at - timedelta(hours=rng.uniform(0, 40))).replace(microsecond=0))
                self._insert(
                    "INSERT INTO Log (id, habit_id, created_at) VALUES",
                    [(self._new_id("Log"), self._habits[who.id][0], who.logs[-1].replace(tzinfo=None))],
                )
            if change == "zone":
                who.zone = rng.choice(scene.people).zone
            if change == "phone":
                who.phone = f"+1555{rng.randrange(10**4):04}9{scene.people.index(who):02}"
            self.database.execute(
                "UPDATE User SET time_zone = %s, phone_number = %s WHERE id = %s", (raw(who.zone), who.phone, who.id)
            )
        for text in self.twilio.book:
            if text.status in ("queued", "accepted") and rng.random() < 0.6:
                self.twilio.settle(text.sid, *rng.choice(scene.ends))

    def _obey(self, rng: random.Random, played: Played) -> None:
        """A person pastes what the log prints for those who surely got no text, every other time."""
        for run in played.runs:
            for delete in re.findall(r"may get one: (DELETE .*;)", run.output):
                if rng.random() < 0.5:
                    self.database.execute(delete)

    # --- a group of runs

    def _play(self, rng: random.Random, scene: Scene, part: Part) -> Played:
        owner, least = self.accounts[scene.id_type]
        account = least if scene.least else owner
        before = self._ledger()
        group = Group(
            server=self.server,
            database=self.database,
            wire=self.wire,
            twilio=self.twilio,
            clock=self.clock,
            accounts=[owner["DB_USER"], least["DB_USER"]],
            come_and_go=lambda: self._come_and_go(scene),
            old_tokens=[row.token for row in before],
        )
        environ = {
            **self.database.environ(),
            **account,
            "DB_HOST": self.wire.host,
            "DB_PORT": str(self.wire.port),
            **self.twilio.environ(),
            **scene.environ,
            **part.environ,
        }
        orders = [Orders(part.argv, environ, scene.constants) for _ in range(part.runs)]
        group.actors = [self._actor(scene, part, order, n) for n, order in enumerate(orders)]
        books, requests = len(self.twilio.book), len(self.twilio.requests)
        self.clock.jumps = []
        direction = _Direction(scene, part, group)
        for fault in part.faults:
            fault.begin(group)
        self.twilio.hook, self.wire.hook = direction.answer, direction.judge
        self.wire.delay = part.delay
        group.actors[0].start()
        for other in group.actors[1:]:
            if part.joins_at_post:
                direction.joined.wait(1.0)
            else:
                time.sleep(rng.choice([0.0, 0.002, 0.02]))
            other.start()
        for actor in group.actors:
            actor.join()
        for fault in part.faults:
            fault.end()
        self.wire.hook = self.twilio.hook = None
        self.wire.delay = 0.0
        self.wire.rules.clear()
        time.sleep(max(0.0, group.extra_wait - time.monotonic()))
        stray = list(self._stray)
        self._stray.clear()
        return Played(
            part=part,
            runs=[actor.run for actor in group.actors],
            people=[_copy(person) for person in scene.people],
            ledger_before=before,
            ledger_after=self._ledger(),
            texts=self.twilio.book[books:],
            requests=self.twilio.requests[requests:],
            faults=part.faults,
            jumps=self.clock.jumps,
            stray=stray,
        )

    def _actor(self, scene: Scene, part: Part, orders: Orders, number: int) -> Actor:
        def clock() -> datetime:
            return self.clock() + sum((fault.skew for fault in part.faults), timedelta())

        if scene.processes:
            orders.environ |= {name: os.environ[name] for name in ENVIRON}
            orders.replacements = self._replacements
            return ProcessActor(orders, clock() - datetime.now(UTC), from_scratch=scene.from_scratch and number == 0)
        return InlineActor(orders, self._copies[number], clock)

    def _ledger(self) -> list[Row]:
        if not self.database.rows("SHOW TABLES LIKE %s", (LEDGER,)):
            return []
        found = self.database.rows(
            "SELECT user_id, local_day, phone_number, state, run_token, claimed_at, finished_at, message_sid,"
            f" error_code, final_status FROM {LEDGER} ORDER BY user_id, local_day"
        )
        return [Row(*map(_aware, row)) for row in found]


def raw(text: str | None) -> bytes | None:
    """The bytes of a text, which may hold half a surrogate pair, as MariaDB stores it."""
    return None if text is None else text.encode("utf-8", "surrogatepass")


def _aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _copy(person: Person) -> Person:
    return Person(**{**vars(person), "logs": list(person.logs)})


class _Direction:
    """Asks the faults of a group what becomes of each text and each statement."""

    def __init__(self, scene: Scene, part: Part, group: Group) -> None:
        self._part, self._group = part, group
        self._refusals = {
            p.refused_phone: replace(refuse(p.refusal), kind="opted out") for p in scene.people if p.refusal
        }
        self._posts = 0
        self.joined = threading.Event()

    def answer(self, request: Request) -> Answer | None:
        if request.operation != "send":
            return None
        self._posts += 1
        answers = [fault.post(request, self._posts) for fault in self._part.faults]
        if self._posts == self._part.joins_at_post:
            self.joined.set()
            answers.append(Answer("accept", after=0.03))  # hold this one while the others come in
        chosen = [answer for answer in answers if answer]
        return chosen[0] if chosen else self._refusals.get(request.to)

    def judge(self, text: str) -> Verdict:
        verdicts = [fault.query(text) for fault in self._part.faults]
        return next((verdict for verdict in verdicts if verdict is not Verdict.PASS), Verdict.PASS)


def _catch_stray_output() -> list[str]:
    """What is logged by libraries, and what escapes from threads."""
    stray: list[str] = []

    class Catch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            stray.append(f"{record.name}: {self.format(record)}")

    logging.getLogger().addHandler(Catch())
    threading.excepthook = lambda args: stray.append(f"Traceback in a thread: {args.exc_type} {args.exc_value}")
    return stray
