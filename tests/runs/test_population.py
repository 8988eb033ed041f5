"""The whole job on a database full of people: whoever the oracle says is due is texted, once, and nobody else.

A few thousand people of all zones, who logged a second before, at, and a second after the boundaries of their own days,
on every kind of schema. The fake Twilio's book is the witness. Nobody may drop out unseen: texted, skipped with a
name and a reason, or nothing due, and these add up.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import cycle
from typing import Any

import pymysql
import pytest
import pytz

import habit_notifier
from tests.full import sample
from tests.runs import program
from tests.sandbox import oracle
from tests.sandbox.database import Database, Id, Server
from tests.sandbox.fake_twilio import FakeTwilio
from tests.sandbox.oracle import MICROSECOND, MISSED_YESTERDAY, NO_LOGS, SECOND

ZONES = sorted(pytz.all_timezones)
TEXTS = {NO_LOGS: "{name}: nothing in two days", MISSED_YESTERDAY: "{name}: nothing yesterday"}
BAD_ZONES = (None, "", "  ", "Mars/Olympus_Mons", "Europe/Zürich", "Europe", "+02:00", "CET-1CEST", "x" * 64, "EST '--")
BAD_PHONES = (
    "call me maybe",
    "4155550123",
    "+0123456789",
    "+1 (0)415 555 0123",
    "+12345",
    "+1234567890123456",
    "+1٤155550123",
)
NO_PHONES = (None, "", "   ")
pytestmark = pytest.mark.constants(PAGE_USERS=89)  # many pages, and a last one that is not full


@dataclass(frozen=True)
class Resident:
    """A row of User, with habits and logs."""

    name: str
    phone: str | None
    zone: str | None
    habits: int
    logs: tuple[datetime, ...]

    def due(self, now: datetime, default: str = "") -> str | None:
        """Why the oracle would text them; 'zone' or 'phone' when it cannot."""
        zone = oracle.zone_meant(self.zone) or default
        if not zone:
            return "zone"
        reason = oracle.due(now, zone, self.logs)
        return "phone" if reason and self.phone in BAD_PHONES else reason


def respelled(zone: str, dice: random.Random) -> str:
    """A zone as people write it: each spelling is a value of its own that means the same."""
    spelled = dice.choice([zone, zone, zone, zone.lower(), zone.upper(), zone.swapcase()])
    return dice.choice(["", "", "", " ", "\t"]) + spelled + dice.choice(["", "", " ", "   "])


def logs_round(now: datetime, zone: str, habits: int, finest: timedelta, dice: random.Random) -> tuple[datetime, ...]:
    """Up to three logs at, just before or just after the boundaries of the days of a zone."""
    _, *edges = oracle.days(now, zone)
    offs = (-SECOND, -finest, timedelta(0), finest, SECOND)
    pick = dice.choices(range(4), weights=(1, 6, 2, 1))[0] if habits else 0
    return tuple(dice.choice(edges) + dice.choice(offs) for _ in range(pick))


def population(now: datetime, size: int, finest: timedelta, seed: int) -> list[Resident]:
    """People of every zone, among them a few whom nobody can text."""
    dice = random.Random(seed)
    found = []
    for number, zone in zip(range(size), cycle(ZONES)):
        habits = dice.choice((0, 1, 1, 1, 3))
        logs = logs_round(now, zone, habits, finest, dice)
        stored: str | None = respelled(zone, dice)
        phone: str | None = f"+1999{number:07d}"
        luck = dice.random()
        if luck < 0.03:
            stored = dice.choice(BAD_ZONES)
        elif luck < 0.06:
            phone = dice.choice(BAD_PHONES)
        elif luck < 0.09:
            phone = dice.choice(NO_PHONES)
        found.append(Resident(f"Resident {number}", phone, stored, habits, logs))
    return found


def settle_in(database: Database, residents: Sequence[Resident]) -> dict[Resident, Id]:
    """Insert everybody, in an order of ids that is not that of zones."""
    shuffled = random.Random(1).sample(residents, len(residents))
    ids = dict(zip(shuffled, database.insert_users((r.name, r.phone, r.zone) for r in shuffled), strict=True))
    owners = [resident for resident in shuffled for _ in range(resident.habits)]
    habits: dict[Resident, list[Id]] = {resident: [] for resident in shuffled}
    for owner, habit in zip(owners, database.insert_habits(ids[owner] for owner in owners), strict=True):
        habits[owner].append(habit)
    database.insert_logs((habits[r][n % r.habits], log) for r in shuffled for n, log in enumerate(r.logs))
    return ids


@contextmanager
def global_time_zone(server: Server, zone: str) -> Iterator[None]:
    """The server with another time zone for new sessions."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@GLOBAL.time_zone")
        [before] = cursor.fetchone()
        try:
            cursor.execute("SET GLOBAL time_zone = %s", (zone,))
        except pymysql.err.OperationalError as error:
            pytest.skip(f"the account may not set the server's time zone: {error}")
        try:
            yield
        finally:
            cursor.execute("SET GLOBAL time_zone = %s", (before,))


@dataclass
class Run:
    """What one run of the program said."""

    code: int
    lines: list[str]

    def skipped(self) -> dict[str, str]:
        """The outcome of each user who was named as getting no text, by the id."""
        matches = (re.match(r"User .* \(ID: (\S+)\) gets no text, ([^:]*): \S", line) for line in self.lines)
        found = [(match[1], match[2]) for match in matches if match]
        assert max(Counter(user for user, _ in found).values(), default=1) == 1, "nobody is skipped twice"
        return dict(found)

    def totals(self) -> dict[str, int]:
        """The counts of the line that sums up."""
        [line] = [line for line in self.lines if line.startswith("Looked at ")]
        counts = {words: int(count) for words, count in re.findall(r", ([^,]+?) (\d+)(?=,|$)", line)}
        looked, of = re.findall(r"\d+", line)[:2]
        return counts | {"looked at": int(looked), "of": int(of)}


def job(environ: dict[str, str], now: datetime) -> Run:
    """The program in this process, at the instant; pytest's report of a failure would hold thousands of its lines."""
    code, text = program.said(environ, at=now)
    return Run(code, [line.split(" - ", 3)[3] for line in text.splitlines()])


def check(
    run: Run, residents: dict[Resident, Id], book: Sequence[Any], now: datetime, default: str = ""
) -> dict[str, str]:
    """Hold a run to the oracle; returns the texts that were due, by number."""
    reachable = [resident for resident in residents if resident.phone not in NO_PHONES]
    verdicts = {resident: resident.due(now, default) for resident in reachable}
    due = {str(r.phone): TEXTS[why].format(name=r.name) for r, why in verdicts.items() if why in TEXTS}

    assert run.code == 0
    assert Counter(message.to for message in book) == Counter(due.keys()), (
        "each of those who are due, once, and nobody else"
    )
    assert {message.to: message.body for message in book} == due, "with the text of the rule"

    assert run.skipped() == {
        str(residents[r]): {"zone": "skipped (time zone)", "phone": "skipped (phone number)"}[why]
        for r, why in verdicts.items()
        if why in ("zone", "phone")
    }, "whoever cannot be texted is named"

    said, counted = run.totals(), Counter(verdicts.values())
    sent = counted[NO_LOGS] + counted[MISSED_YESTERDAY]
    assert said.pop("looked at") == said.pop("of") == len(reachable) == sum(counted.values())
    assert said == {
        words: count
        for words, count in (
            ("sent", sent),
            ("skipped (time zone)", counted["zone"]),
            ("skipped (phone number)", counted["phone"]),
        )
        if count
    }
    assert f"Found {len(reachable)} users with phone numbers" in run.lines
    assert run.lines[-1] == f"Job completed. Notifications sent: {sent}, Failed: 0"
    reasons = Counter(line.rpartition(": ")[2] for line in run.lines if " needs notification: " in line)
    assert reasons == +Counter({why: counted[why] for why in TEXTS}), "the log tells each one's rule"
    return due


@dataclass(frozen=True)
class World:
    """A schema, a server's time zone, and a moment."""

    now: str
    why: str
    variant: dict[str, Any] = field(default_factory=dict)
    server_zone: str = "+00:00"
    size: int = sample(800, len(ZONES))

    def __str__(self) -> str:
        return f"{self.now}-{'-'.join(map(str, self.variant.values()))}"


def text_ids(collation: str, **variant: Any) -> dict[str, Any]:
    return {"id_type": "CHAR(36)", "collation": collation} | variant


NEWEST = "the newest collation of this kind of server"
WORLDS = [
    World("2026-03-08T09:00:00Z", "America springs forward", {}, size=sample(3_000, 1_200)),
    World("2026-03-29T09:00:00Z", "Europe springs forward", {"id_type": "BIGINT", "created_at": "DATETIME"}, "+05:30"),
    World("2026-11-01T06:00:00Z", "America falls back", {"id_type": "BIGINT", "log_index": False}, "-09:30"),
    World("2026-10-25T12:34:56Z", "Europe falls back", text_ids("utf8mb4_general_ci", created_at="DATETIME(6)")),
    World("2026-04-04T15:00:00Z", "Lord Howe's clocks", text_ids("utf8mb4_bin", log_index=False), "+13:00"),
    World("2026-09-06T04:00:00Z", "Santiago's missing midnight", text_ids(NEWEST, created_at="DATETIME")),
    World("2026-07-01T11:59:59Z", "a second before Auckland's midnight", text_ids("utf8mb4_general_ci")),
    World("2026-07-01T12:00:00Z", "Auckland's midnight", text_ids("utf8mb4_bin", created_at="DATETIME(6)")),
    World("2028-03-01T00:00:00Z", "UTC's midnight after a leap day", {"id_type": "INT UNSIGNED", "log_index": False}),
]


def newest_collation(server: Server) -> str:
    if server.kind == "mysql":
        return "utf8mb4_0900_ai_ci"
    version = [int(part) for part in server.version.split(".")[:2]]
    return "utf8mb4_uca1400_ai_ci" if version >= [10, 10] else "utf8mb4_unicode_ci"


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_exactly_those_who_are_due_get_the_text_of_their_rule_and_only_once(
    world: World, server: Server, twilio: FakeTwilio
) -> None:
    now = datetime.fromisoformat(world.now)
    variant = world.variant | (
        {"collation": newest_collation(server)} if world.variant.get("collation") == NEWEST else {}
    )
    finest = MICROSECOND if variant.get("created_at") == "DATETIME(6)" else SECOND
    residents = population(now, world.size, finest, seed=WORLDS.index(world))
    with server.database(**variant) as database, global_time_zone(server, world.server_zone):
        ids = settle_in(database, residents)
        environ = database.environ() | twilio.environ() | settings()

        due = check(job(environ, now), ids, twilio.book, now)
        assert len(due) > world.size / 4, "the population is worth the name"

        again = job(environ | {"LOG_LEVEL": "DEBUG"}, now)
        assert again.code == 0
        assert len(twilio.book) == len(due), "a second run texts nobody"
        assert again.totals()["already handled today"] == len(due)
        assert "sent" not in again.totals()
        known = [line for line in again.lines if line.endswith(" gets no text, already handled today: sent today")]
        assert len(known) == len(due), "the ledger is asked first: no claim is wasted"


def test_a_run_before_and_one_after_midnight_text_nobody_twice(database: Database, twilio: FakeTwilio) -> None:
    """Whoever got a text before their midnight is due again after it, by the letter, and is deferred."""
    midnight = oracle.midnight(date(2026, 7, 2), "Pacific/Auckland")
    dice = random.Random(3)
    residents = [
        Resident(f"Resident {n}", f"+1999{n:07d}", zone, 1, logs_round(midnight, zone, 1, SECOND, dice))
        for n, zone in enumerate(["Pacific/Auckland", "Antarctica/McMurdo", "Asia/Tokyo"] * 20)
    ]
    ids = settle_in(database, residents)
    environ = database.environ() | twilio.environ() | settings()
    before = set(check(job(environ, midnight - SECOND), ids, twilio.book, midnight - SECOND))
    run = job(environ, midnight)

    after = {r.phone for r in residents if r.due(midnight)}
    assert len(before & after) > 20
    assert len(after - before) > 5
    assert Counter(message.to for message in twilio.book) == Counter(before | after)
    aucklanders = {r.phone for r in residents if "Tokyo" not in str(r.zone)}
    assert run.totals()["deferred"] == len(before & after & aucklanders)
    assert run.totals()["already handled today"] == len(before & after - aucklanders)


def settings() -> dict[str, str]:
    texts = {"MESSAGE_NO_LOGS": TEXTS[NO_LOGS], "MESSAGE_MISSED_YESTERDAY": TEXTS[MISSED_YESTERDAY]}
    return texts | {"SEND_CONCURRENCY": "16"}


def test_the_default_zone_serves_those_whose_own_is_missing_or_unknown(database: Database, twilio: FakeTwilio) -> None:
    now, default = datetime.fromisoformat("2026-03-08T09:00:00Z"), "Pacific/Auckland"
    dice = random.Random(7)
    residents = [
        Resident(f"Resident {n}", f"+1999{n:07d}", zone, 1, logs_round(now, default, 1, SECOND, dice))
        for n, zone in enumerate([*BAD_ZONES, "Pacific/Auckland", "America/New_York"] * 12)
    ]
    ids = settle_in(database, residents)
    environ = database.environ() | twilio.environ() | settings() | {"DEFAULT_TIME_ZONE": default}
    due = check(job(environ, now), ids, twilio.book, now, default)
    assert 20 < len(due) < len(residents)


def test_every_day_anew_whoever_is_then_due_is_texted(database: Database, twilio: FakeTwilio) -> None:
    """The pages start at another place each day, and the ledger of one day bars no other."""
    first = datetime.fromisoformat("2026-10-23T09:00:00Z")
    residents = population(first + timedelta(days=2), 400, SECOND, seed=23)
    ids = settle_in(database, residents)
    environ = database.environ() | twilio.environ() | settings()
    texted = 0
    for days in range(5):  # Europe falls back on the third
        now = first + timedelta(days=days)
        twilio.travel_to(now)
        check(job(environ, now), ids, twilio.book[texted:], now)
        texted = len(twilio.book)


def test_the_same_days_count_wherever_the_pages_begin_and_end(
    database: Database, twilio: FakeTwilio, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.fromisoformat("2026-11-01T06:00:00Z")
    residents = population(now, 60, SECOND, seed=5)
    ids = settle_in(database, residents)
    environ = database.environ() | twilio.environ() | settings()
    texted = 0
    for page in (1, 2, 7, 53, 54, 55, 56, 57, 59, 60, 61, 1_000):
        monkeypatch.setattr(habit_notifier, "PAGE_USERS", page)
        check(job(environ, now), ids, twilio.book[texted:], now)
        texted = len(twilio.book)
        database.execute("DELETE FROM HabitNotification")
