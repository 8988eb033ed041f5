"""What may be asked without texting anybody: who would be texted, why somebody is or is not, and is all well."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count, cycle
from pathlib import Path
from typing import Any
from uuid import UUID
from zlib import crc32

import pymysql
import pytest

import habit_notifier
from habit_notifier import CHECKS, GATES, Exit, Stop
from tests.runs import program
from tests.runs.test_population import population, settle_in
from tests.runs.town import SERVICE, create_ledger, variants
from tests.sandbox import oracle
from tests.sandbox.database import LEDGER, Database, Server, make_certificates
from tests.sandbox.fake_twilio import ACCEPT, FakeTwilio, Operation, Request, refuse
from tests.sandbox.oracle import SECOND

NOW = datetime(2026, 3, 30, 9, tzinfo=UTC)  # in Berlin, day 2 has 23 hours
DAY = timedelta(days=1)
ANA = "+4915112345678"


def said(environ: dict[str, str], *argv: str, at: datetime = NOW) -> tuple[int, list[str]]:
    """The exit code, and level and words of each line."""
    code, written = program.said(environ, *argv, at=at)
    return code, [line.split(" - ", 2)[2] for line in written.splitlines()]


def row(database: Database, user: object, day: date, **differs: object) -> None:
    """A row of the ledger: a text at nine in the morning that was delivered."""
    delivered = {"phone_number": ANA, "final_status": "delivered"}
    database.insert_row(user, datetime.combine(day, NOW.time()), **delivered | differs)


# --- dry run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A moment, and settings that keep some from being texted."""

    now: str
    settings: dict[str, str]

    def __str__(self) -> str:
        return "-".join([self.now, *self.settings])


WORLDS = [
    World("2026-03-08T09:00:00Z", {}),
    World("2026-03-29T01:00:00Z", {"SEND_WINDOW": "09:00-20:00"}),
    World("2026-07-01T12:00:00Z", {"DAY_STARTS_AT": "04:00", "MAX_PER_WEEK": "1"}),
    World("2026-10-25T12:34:56Z", {"DEFAULT_TIME_ZONE": "Asia/Tokyo", "QUIET_AFTER": "1"}),
    World("2026-11-01T06:00:00Z", {"ONLY_USERS": ",".join(map(str, range(1, 300, 3)))}),
]


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_a_dry_run_names_whom_the_next_run_texts_and_with_what(
    world: World, database: Database, twilio: FakeTwilio
) -> None:
    now = datetime.fromisoformat(world.now)
    ids = settle_in(database, population(now, 400, SECOND, seed=WORLDS.index(world)))
    residents = {str(user_id): resident for resident, user_id in ids.items()}
    environ = database.environ() | twilio.environ()
    twilio.hook = lambda request: refuse(21610) if (request.to or "").endswith("7") else None
    for earlier in (now - 2 * DAY, now - timedelta(hours=10)):
        assert program.run(environ, at=earlier) == 0
    twilio.hook, asked, texted = None, len(twilio.requests), len(twilio.book)

    code, lines = said(environ | world.settings, "--dry-run", at=now)
    assert code == 0
    assert len(twilio.requests) == asked, "Twilio is asked nothing"
    line_of = re.compile(r"INFO - User .* \(ID: (\d+)\), (\+\d+), would be texted: [^:]*: (.*)")
    named = [match.groups() for match in map(line_of.fullmatch, lines) if match]

    assert program.run(environ | world.settings, at=now) == 0
    book = Counter((message.to, message.body) for message in twilio.book[texted:])
    assert Counter((phone, text) for _, phone, text in named) == book
    assert len(named) > 4, "the population is worth the name"

    zones = (oracle.zone_meant(residents[user].zone) or world.settings["DEFAULT_TIME_ZONE"] for user, *_ in named)
    hours = sorted(Counter(now.astimezone(oracle.zone_named(zone)).hour for zone in zones).items())
    assert f"INFO - Texts by local hour: {', '.join(f'{hour:02}:00 {n}' for hour, n in hours)}" in lines
    assert f"nobody was texted. Texts that a run would send: {len(named)}, " in lines[-1]


@pytest.fixture
def readers(database: Database) -> dict[str, str]:
    """The settings of an account that may read User, Habit and Log, without a word of Twilio."""
    return database.environ() | database.least_account()


def test_who_may_only_read_may_ask_and_a_missing_ledger_is_empty(database: Database, readers: dict[str, str]) -> None:
    user = database.insert_user("Ana", ANA, "Europe/Berlin")
    code, lines = said(readers, "--dry-run")
    assert code == 0
    assert sum("would be texted" in line for line in lines) == 1
    assert any(line.startswith(f"WARNING - The ledger {LEDGER} is not there, or ") for line in lines)
    create_ledger(database)
    row(database, user, NOW.date())
    database.execute(f"GRANT SELECT ON `{database.name}`.{LEDGER} TO %s@'%%'", (readers["DB_USER"],))
    code, lines = said(readers, "--dry-run")
    assert code == 0
    assert not any("would be texted" in line or "ledger" in line.lower() for line in lines)
    assert "INFO - Texts by local hour: none" in lines
    assert said(readers, "--explain", str(user))[0] == 0


@pytest.mark.parametrize("question", [["--dry-run"], ["--explain", "1"]], ids=" ".join)
def test_a_ledger_that_is_there_but_cannot_be_read_is_never_taken_for_empty(
    question: list[str], database: Database
) -> None:
    database.insert_user("Ana", ANA, "Europe/Berlin")
    create_ledger(database)
    database.execute(f"ALTER TABLE {LEDGER} DROP segments")
    code, lines = said(database.environ(), *question)
    assert code == 2
    assert lines[-1].startswith("ERROR - MySQL: a column is missing")


def test_a_dry_run_beside_a_run_names_whom_that_one_holds(database: Database) -> None:
    user = database.insert_user("Ana", ANA, "UTC")
    create_ledger(database)
    row(database, user, NOW.date(), state="sending", finished_at=None, final_status=None)
    code, lines = said(database.environ(), "--dry-run")
    assert code == 0
    held = f"WARNING - User Ana (ID: {user}) gets no text, uncertain: another run is texting this user"
    assert sum(line.startswith(held) for line in lines) == 1


def test_a_dry_run_of_more_than_max_texts_ends_as_the_run_would(database: Database) -> None:
    database.insert_users((f"User {n}", f"+1202555{n:04}", "UTC") for n in range(4))
    code, lines = said(database.environ() | {"MAX_TEXTS": "3"}, "--dry-run")
    assert code == 2
    assert not any("would be texted" in line for line in lines)
    assert any(line.startswith("ERROR - 4 texts are due (") and "MAX_TEXTS=3" in line for line in lines)


@pytest.mark.parametrize("question", [["--dry-run"], ["--explain", "1"]], ids=" ".join)
@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"DB_PORT": "1"}, 1), ({"DB_PASSWORD": "guessed"}, 2), ({"DB_NAME": "no_such"}, 2), ({"DB_PORT": "x"}, 2)],
    ids=str,
)
def test_a_question_that_cannot_be_read_ends_as_a_run_would(
    question: list[str], wrong: dict[str, str], code: int, database: Database
) -> None:
    assert said(database.environ() | wrong, *question)[0] == code


@pytest.mark.constants(FIRST_PAGE=1)
def test_a_dry_run_that_is_cut_short_does_not_pass_for_a_whole_one(database: Database) -> None:
    database.insert_users([("Ana", ANA, "UTC")] * 9)
    stop, seconds = Stop(), count(step=2)
    short = database.environ() | {"RUN_DEADLINE": "1"}
    assert program.run(short, ["--dry-run"], lambda: NOW + timedelta(seconds=next(seconds))) == Exit.RETRY
    stop.request()
    assert program.run(database.environ(), ["--dry-run"], NOW, stop) == Exit.TERMINATED


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (["--dry-run"], "Dry run completed"),
        (["--explain", "1"], "at the earliest: "),
        (["--check"], "INFO - settings: ok"),
    ],
    ids=str,
)
def test_a_question_is_answered_however_little_is_to_be_logged(
    question: list[str], answer: str, level: str, database: Database, environ: dict[str, str]
) -> None:
    database.insert_user("Ana", ANA, "UTC")
    assert answer in str(said(environ | {"LOG_LEVEL": level}, *question)[1])


# --- explain ----------------------------------------------------------------------------------------------------------


def test_an_explanation_tells_days_logs_rule_gates_and_ledger(database: Database) -> None:
    logs = [datetime(2026, 3, 27, 23, tzinfo=UTC), datetime(2026, 3, 28, 22, 59, 59, tzinfo=UTC)]
    user = database.insert_user("Ana", ANA, "Europe/Berlin", logs=[*logs, NOW - timedelta(hours=1)])
    create_ledger(database)
    row(database, user, date(2026, 3, 27), final_status=None)
    row(database, user, date(2026, 3, 28))
    row(database, user, date(2026, 3, 29), final_status="undelivered", error_code=30003)
    row(database, user, date(2026, 3, 30), state="refused", final_status="refused", error_code=21610)
    code, lines = said(database.environ(), "--explain", str(user))
    page = "https://www.twilio.com/docs/api/errors"
    off = f"the phone was off or out of reach, error 30003, {page}/30003"
    opted_out = (
        f"the recipient opted out (STOP); only they can opt in again, by texting START, error 21610, {page}/21610"
    )
    assert code == 0
    told = [line.removeprefix("INFO - ") for line in lines if "Database" not in line and "verified" not in line]
    assert told[1:] == [
        f"User Ana (ID: {user}), {ANA}, time zone 'Europe/Berlin'",
        "It is 2026-03-30 11:00 in Europe/Berlin, the local day 2026-03-30",
        "Day 1 is 2026-03-27 23:00:00 to 2026-03-28 23:00:00 UTC",
        "  logged at 2026-03-27 23:00:00: Read ten pages",
        "  logged at 2026-03-28 22:59:59: Read ten pages",
        "Day 2 is 2026-03-28 23:00:00 to 2026-03-29 22:00:00 UTC",
        "Rule: Missed yesterday",
        "If nothing is logged from now on, the next text is possible at the earliest: 2026-04-28 22:00 UTC",
        "Gate listed: nothing against it",
        "Gate placed: nothing against it",
        "Gate numbered: nothing against it",
        "Gate unclaimed: no text, refused earlier: refused today",
        "Gate of_the_past: nothing against it",
        "Gate spaced: nothing against it",
        f"Gate not_refused: no text, refused earlier: Twilio refused {ANA} for good on 2026-03-30 (error 21610)",
        "Gate delivered: nothing against it",
        "Gate wanted: nothing against it",
        "Gate within_week: nothing against it",
        "Gate in_window: nothing against it",
        f"Ledger, 2026-03-27: sent to {ANA}, its end is not known yet",
        f"Ledger, 2026-03-28: sent to {ANA}, delivered",
        f"Ledger, 2026-03-29: sent to {ANA}, undelivered ({off})",
        f"Ledger, 2026-03-30: refused to {ANA}, refused ({opted_out})",
    ]


TODAY = NOW.date()
Arrange = Callable[[Database, object], object]


def texts(*days_ago: int, **differs: object) -> Arrange:
    """Rows of these days."""

    def arrange(database: Database, user: object) -> None:
        for days in days_ago:
            row(database, user, TODAY - days * DAY, **differs)

    return arrange


def changed(column: str, value: str) -> Arrange:
    return lambda database, _user: database.execute(f"UPDATE User SET {column} = %s", (value,))


EARLIER = (NOW - 2 * DAY).replace(tzinfo=None)
AGAINST: dict[str, tuple[dict[str, str], Arrange]] = {
    "listed": ({"ONLY_USERS": "999"}, texts()),
    "placed": ({}, changed("time_zone", "Mars")),
    "numbered": ({}, changed("phone_number", "call me")),
    "of_the_past": ({}, texts(-9, claimed_at=EARLIER, finished_at=EARLIER)),  # its day alone is ahead
    "unclaimed": ({}, texts(0)),
    "not_refused": ({}, texts(3, state="refused", final_status="refused", error_code=21610)),
    "delivered": ({}, texts(3, 4, 5, final_status="undelivered", error_code=30008)),
    "wanted": ({"QUIET_AFTER": "1"}, texts(5)),
    "within_week": ({"MAX_PER_WEEK": "1"}, texts(6)),  # the last day that counts
    "spaced": ({}, texts(1, finished_at=NOW.replace(hour=8, tzinfo=None))),
    "in_window": ({"SEND_WINDOW": "12:00-20:00"}, texts()),
}


@pytest.mark.parametrize("gate", [gate.__name__ for gate in GATES])
def test_an_explanation_tells_the_gate_that_kept_a_text_back(
    gate: str, database: Database, environ: dict[str, str], twilio: FakeTwilio
) -> None:
    user = database.insert_user("Ana", ANA, "Europe/Berlin")
    create_ledger(database)
    settings, arrange = AGAINST[gate]
    arrange(database, user)
    code, lines = said(environ | settings, "--explain", str(user))
    assert code == 0
    [first, *_] = [line for line in lines if line.startswith("INFO - Gate ") and "nothing against" not in line]
    _, _, reason = first.partition(": no text, ")
    assert first.startswith(f"INFO - Gate {gate}: no text, ")
    assert reason
    lines = said(environ | settings | {"LOG_LEVEL": "DEBUG"}, at=NOW)[1]
    assert any(line.endswith(f" - User Ana (ID: {user}) gets no text, {reason}") for line in lines)
    assert twilio.book == []


@pytest.mark.parametrize(
    "gate", ["of_the_past", "unclaimed", "not_refused", "delivered", "within_week", "spaced", "in_window"]
)
def test_the_earliest_next_text_is_the_first_that_a_run_would_send(gate: str, database: Database) -> None:
    user = database.insert_user("Ana", ANA, "Europe/Berlin", logs=[NOW - timedelta(hours=1)])
    create_ledger(database)
    settings, arrange = AGAINST[gate]
    arrange(database, user)
    environ = database.environ() | settings
    [told] = [line for line in said(environ, "--explain", str(user))[1] if "at the earliest: " in line]
    earliest = datetime.fromisoformat(told.rpartition(": ")[2].replace(" UTC", "Z"))
    assert earliest > NOW
    for moment, texts in ((earliest - timedelta(minutes=15), 0), (earliest, 1)):
        lines = said(environ, "--dry-run", "--now", moment.isoformat())[1]
        assert sum("would be texted" in line for line in lines) == texts, moment


def test_who_is_due_may_be_texted_now_and_who_cannot_be_texted_never(database: Database) -> None:
    due = database.insert_user("Ana", ANA, "Europe/Berlin")
    never = database.insert_user("Bad Number", "call me", "Europe/Berlin")
    lines = str(said(database.environ(), "--explain", str(due), at=NOW.replace(minute=7))[1])
    assert "at the earliest: 2026-03-30 09:07 UTC" in lines
    lines = str(said(database.environ(), "--explain", str(never))[1])
    assert "at the earliest: not within 90 days, see the gates" in lines


@pytest.mark.parametrize(("days_ago", "told"), [(1, "2026-06-28 00:00 UTC"), (40, "2026-05-20 00:00 UTC")])
def test_the_earliest_next_text_knows_that_quiet_after_starts_anew(
    days_ago: int, told: str, database: Database, environ: dict[str, str], twilio: FakeTwilio
) -> None:
    """The run of 91 days later deletes the row of the last text, which counts no more in it."""
    user = database.insert_user("Ana", ANA, "UTC")
    create_ledger(database)
    texts(days_ago)(database, user)
    environ |= {"QUIET_AFTER": "1"}
    assert f"at the earliest: {told}" in str(said(environ, "--explain", str(user))[1])
    for minutes in (-1, 0):
        said(environ, at=datetime.fromisoformat(told.replace(" UTC", "Z")) + timedelta(minutes=minutes))
        assert len(twilio.book) == minutes + 1


def test_the_earliest_next_text_is_not_late_by_the_minute_of_the_question(database: Database) -> None:
    user = database.insert_user("Ana", ANA, "UTC", logs=[NOW - DAY])
    lines = said(database.environ(), "--explain", str(user), at=NOW.replace(minute=7, second=31))[1]
    assert "INFO - Rule: nothing: logged on day 2" in lines
    assert "at the earliest: 2026-03-31 00:00 UTC" in str(lines)


@variants({"id_type": "INT"}, {"id_type": "CHAR(36)", "collation": "ascii_general_ci"})
def test_an_explanation_of_nobody_fails(database: Database) -> None:
    database.insert_user("Ana", ANA, "Europe/Berlin")
    for nobody in ("2", "1x", "nobody", "", "0x1", "1 OR 1=1", "4\u20132", "Jörg", "\udcff"):
        code, lines = said(database.environ(), "--explain", nobody)
        shown = nobody.replace("\udcff", "")
        assert (code, lines[-1]) == (1, f"ERROR - there is no user “{shown}” in User")


@variants({"id_type": "CHAR(36)", "collation": "utf8mb4_general_ci"})
def test_an_id_may_have_letters_beyond_ascii(database: Database) -> None:
    database.execute("INSERT INTO User (id, name, phone_number, time_zone) VALUES ('Jörg', 'J', %s, 'UTC')", (ANA,))
    code, lines = said(database.environ(), "--explain", "Jörg")
    assert code == 0
    assert f"INFO - User J (ID: Jörg), {ANA}, time zone 'UTC'" in lines


NO_ZONE = "Gate placed: no text, skipped (time zone)"


@pytest.mark.parametrize(
    ("phone", "zone", "words"),
    [
        (ANA, "Mars/Base", ["time zone 'Mars/Base'", f"{NO_ZONE}: time zone 'Mars/Base'"]),
        (ANA, None, ["time zone ''", "at the earliest: once", f"{NO_ZONE}: there is no"]),
        (None, "Asia/Tokyo", ["no phone number, time zone 'Asia/Tokyo'", "Gate placed: nothing", "Rule: No logs"]),
        ("", "Mars", ["no phone number", "Gate placed: no text", "Gate numbered: no text, skipped (phone number)"]),
    ],
)
def test_users_who_cannot_be_texted_are_explained_too(
    phone: str | None, zone: str | None, words: list[str], database: Database
) -> None:
    user = database.insert_user("Ana", phone, zone)
    code, lines = said(database.environ(), "--explain", str(user))
    assert code == 0
    for word in words:
        assert any(word in line for line in lines), (word, lines)


@variants({"id_type": "CHAR(36)", "collation": "utf8mb4_bin"}, {"id_type": "CHAR(32)"}, {"id_type": "BINARY(16)"})
def test_ids_may_be_uuids_or_binary(database: Database) -> None:
    user: Any = database.insert_user("Ana", ANA, "UTC", logs=[datetime(2026, 3, 28, 10, tzinfo=UTC)])
    shown = user.hex() if isinstance(user, bytes) else str(user)
    written = str(UUID(shown))  # as most applications show it
    for spelled in (shown, shown.upper(), written, written.upper(), UUID(shown).hex):
        code, lines = said(database.environ(), "--explain", spelled)
        assert code == 0
        assert f"INFO - User Ana (ID: {shown}), {ANA}, time zone 'UTC'" in lines
        assert "INFO -   logged at 2026-03-28 10:00:00: Read ten pages" in lines
    code, lines = said(database.environ(), "--explain", shown[:-1])
    assert (code, lines[-1]) == (1, f"ERROR - there is no user “{shown[:-1]}” in User")


@pytest.mark.parametrize(
    "argv",
    [
        ["--dry-run", "--now", "2026-03-29T09:00:00"],
        ["--explain", "1", "--now", "yesterday"],
        ["--dry-run", "--now", "2026-03-29"],
        ["--dry-run", "--now", "0001-01-01T00:00:00+14:00"],
        ["--dry-run", "--now", "9999-12-31T23:00Z"],
        ["--dry-run", "--now", ""],
        ["--now", "2026-03-29T09:00:00Z"],
        ["--run", "--now", "2026-03-29T09:00:00Z"],
        ["--settle", "--now", "2026-03-29T09:00:00Z"],
        ["--check", "--now", "2026-03-29T09:00:00Z"],
        ["--explain"],
        ["--explain", "1", "--dry-run"],
    ],
    ids=" ".join,
)
def test_another_moment_needs_a_zone_and_is_for_questions_only(
    argv: list[str], environ: dict[str, str], twilio: FakeTwilio, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.run(environ, argv)
    assert ended.value.code == 2
    if "--now" in argv and argv[0] in ("--dry-run", "--explain"):
        assert "write it like 2026-03-29T09:00:00Z" in capsys.readouterr().err
    assert twilio.requests == []


def test_another_moment_is_what_days_are_judged_by(database: Database) -> None:
    user = database.insert_user("Ana", ANA, "Europe/Berlin", logs=[NOW - DAY])
    for moment, texts in (("2026-03-30T11:00:00+02:00", 0), ("2026-03-30T22:00:00Z", 1)):
        lines = said(database.environ(), "--dry-run", "--now", moment)[1]
        assert sum("would be texted" in line for line in lines) == texts
    lines = said(database.environ(), "--explain", str(user), "--now", "2026-03-29T00:00:00+05:45")[1]
    assert "INFO - It is 2026-03-28 19:15 in Europe/Berlin, the local day 2026-03-28" in lines


@pytest.mark.parametrize("zone", ["", "Mars"])
def test_an_explanation_names_the_zone_that_serves_where_the_users_own_does_not(database: Database, zone: str) -> None:
    user = database.insert_user("Ana", ANA, zone)
    lines = said(database.environ() | {"DEFAULT_TIME_ZONE": "Asia/Tokyo"}, "--explain", str(user))[1]
    assert "INFO - It is 2026-03-30 18:00 in Asia/Tokyo, the local day 2026-03-30" in lines


@pytest.mark.parametrize("asked", [NOW, NOW + 300 * DAY], ids=["of today", "of a moment of long ago"])
def test_the_logs_of_two_days_are_told_however_many_came_since(asked: datetime, database: Database) -> None:
    since = [NOW - timedelta(seconds=n) if asked == NOW else NOW + timedelta(hours=n) for n in range(1, 1001)]
    user = database.insert_user("Ana", ANA, "UTC", logs=[NOW - DAY, *since])
    moment = [] if asked == NOW else ["--now", f"{NOW:%Y-%m-%dT%H:%M:%SZ}"]
    lines = said(database.environ(), "--explain", str(user), *moment, at=asked)[1]
    assert "INFO - Rule: nothing: logged on day 2" in lines
    assert f"at the earliest: 2026-{'04-01' if asked == NOW else '03-31'} 00:00 UTC" in str(lines)


def test_the_earliest_next_text_counts_logs_of_a_clock_that_is_ahead(database: Database) -> None:
    user = database.insert_user("Ana", ANA, "UTC", logs=[NOW - DAY, NOW + timedelta(hours=13)])
    assert "at the earliest: 2026-04-01 00:00 UTC" in str(said(database.environ(), "--explain", str(user))[1])
    lines = said(database.environ(), "--dry-run", at=NOW + DAY)[1]
    assert not any("would be texted" in line for line in lines)


def test_what_was_logged_after_that_moment_is_not_known_there(database: Database) -> None:
    logs = [NOW.replace(hour=3) - DAY, NOW.replace(hour=8), *(NOW + 5 * DAY for _ in range(3))]
    user = database.insert_user("Ana", ANA, "UTC", logs=logs)
    create_ledger(database)
    at = ["--now", "2026-03-30T04:07:00Z"]
    lines = said(database.environ(), "--explain", str(user), *at, at=NOW + 9 * DAY)[1]
    assert "at the earliest: 2026-03-31 00:00 UTC" in str(lines)
    assert "still to come" not in str(lines)
    for days in (3, 4):
        row(database, user, NOW.date() - days * DAY)
    database.execute("DELETE FROM Log WHERE created_at < %s", (NOW + DAY,))
    quiet = said(database.environ() | {"QUIET_AFTER": "2"}, "--explain", str(user), *at, at=NOW + 9 * DAY)[1]
    assert any(line.startswith("INFO - Gate wanted: no text") for line in quiet)


@pytest.mark.parametrize(
    ("zone", "now", "logged", "quiet"),
    [
        ("Asia/Tokyo", "2026-05-13T23:00:00Z", date(2026, 5, 14), False),  # it is the 14th there
        ("Asia/Tokyo", "2026-05-13T23:00:00Z", date(2026, 5, 15), True),
        ("Pacific/Honolulu", "2026-05-13T05:00:00Z", date(2026, 5, 12), False),
        ("Pacific/Honolulu", "2026-05-13T05:00:00Z", date(2026, 5, 13), True),
    ],
)
def test_what_was_logged_after_that_moment_is_told_by_the_users_own_date_where_logs_have_dates(
    database: Database, zone: str, now: str, logged: date, quiet: bool
) -> None:
    database.execute("ALTER TABLE Log MODIFY created_at DATE NOT NULL")
    user = database.insert_user("Ana", ANA, zone)
    [habit] = database.insert_habits([user])
    database.execute("INSERT INTO Log (id, habit_id, created_at) VALUES (1, %s, %s)", (habit, logged))
    create_ledger(database)
    row(database, user, date(2026, 5, 10))
    environ, later = database.environ() | {"QUIET_AFTER": "1"}, datetime(2026, 6, 1, tzinfo=UTC)
    gate = "no text, left in peace" if quiet else "nothing against it"
    explained = said(environ, "--explain", str(user), "--now", now, at=later)[1]
    assert any(line.startswith(f"INFO - Gate wanted: {gate}") for line in explained)
    listed = said(environ, "--dry-run", "--now", now, at=later)[1]
    assert any("would be texted" in line for line in listed) is not quiet


def test_of_another_moment_the_newest_logs_say_nothing(database: Database) -> None:
    for name in ("Ana", "Bo", "Cy"):
        database.insert_user(name, ANA, "UTC", logs=[NOW])
    past = NOW - timedelta(days=7)
    asked = said(database.environ(), "--dry-run", "--now", past.isoformat())[1]
    assert sum("would be texted" in line for line in asked) == 3
    assert not [line for line in asked if line.startswith("WARNING") and "logs" in line]
    assert "of the newest logs are still to come" in str(said(database.environ(), "--dry-run", at=past)[1])


@pytest.mark.parametrize("asked", ["19:00", "20:36", "20:37"])
def test_the_earliest_next_text_is_told_to_the_minute(database: Database, asked: str) -> None:
    """Eleven and a half hours after a text, on the next day in Tokyo."""
    user = database.insert_user("Ana", ANA, "Asia/Tokyo")
    create_ledger(database)
    database.insert_row(user, datetime(2026, 3, 30, 9, 7, tzinfo=UTC), phone_number=ANA)
    lines = said(database.environ(), "--explain", str(user), "--now", f"2026-03-30T{asked}:00Z")[1]
    assert "at the earliest: 2026-03-30 20:37 UTC" in str(lines)


def test_the_earliest_next_text_may_end_with_an_hour_that_comes_twice(database: Database) -> None:
    """Clocks go back from 2:00 to 1:00, when the window has not opened yet."""
    user = database.insert_user("Ana", ANA, "America/New_York")
    create_ledger(database)
    database.insert_row(user, datetime(2026, 10, 31, 18, 25, tzinfo=UTC), phone_number=ANA)
    environ = database.environ() | {"SEND_WINDOW": "01:15-02:15", "DAY_STARTS_AT": "01:30"}
    lines = said(environ, "--explain", str(user), "--now", "2026-10-31T20:00:00Z")[1]
    assert "at the earliest: 2026-11-01 05:55 UTC" in str(lines)


def test_the_earliest_next_text_may_fall_into_a_few_minutes(database: Database) -> None:
    """Between the day's start and the window's end."""
    user = database.insert_user("Ana", ANA, "UTC", logs=[NOW - timedelta(hours=21)])
    hours = {"DAY_STARTS_AT": "03:01", "SEND_WINDOW": "02:05-03:05"}
    assert "at the earliest: 2026-03-31 03:01 UTC" in str(said(database.environ() | hours, "--explain", str(user))[1])


def test_a_text_that_ended_after_that_moment_is_no_row_of_the_future_there(database: Database) -> None:
    """Else its DELETE would be printed, of a row that is right."""
    user = database.insert_user("Ana", ANA, "UTC")
    create_ledger(database)
    database.insert_row(user, NOW, finished_at=(NOW + timedelta(minutes=20)).replace(tzinfo=None))
    lines = said(database.environ(), "--explain", str(user), "--now", "2026-03-30T09:01:00Z", at=NOW + DAY)[1]
    assert "INFO - Gate of_the_past: nothing against it" in lines
    assert any(line.startswith("INFO - Gate unclaimed: no text, already handled today") for line in lines)


@pytest.mark.parametrize("days", [90, 91])
def test_a_row_that_the_next_run_deletes_at_its_end_does_not_speak_any_more(database: Database, days: int) -> None:
    user = database.insert_user("Ana", ANA, "UTC")
    create_ledger(database)
    row(database, user, NOW.date() - days * DAY)
    lines = said(database.environ() | {"QUIET_AFTER": "1"}, "--explain", str(user))[1]
    assert any(line.startswith("INFO - Gate wanted: no text") for line in lines) == (days == 90)


# --- check ------------------------------------------------------------------------------------------------------------

Verdicts = dict[str, list[str]]


def verdicts(environ: dict[str, str]) -> tuple[int, Verdicts]:
    """The exit code, and of each check its lines."""
    code, lines = said(environ, "--check")
    found: Verdicts = {name: [] for name in CHECKS}
    for line in lines:
        level, _, words = line.partition(" - ")
        name, _, verdict = words.partition(": ")
        if name in found:
            found[name].append(f"{level} {verdict}")
    return code, found


@pytest.fixture
def ready(database: Database, environ: dict[str, str]) -> dict[str, str]:
    """Settings with which nothing is to be said but that MySQL's server is not verified."""
    create_ledger(database)
    database.insert_user("Ana", ANA, "Europe/Berlin", logs=[NOW - DAY])
    return environ | {"SEND_WINDOW": "09:00-20:00"}


def test_when_all_is_well_each_line_says_ok(ready: dict[str, str]) -> None:
    code, found = verdicts(ready)
    unverified = ["WARNING the server is not verified: DB_SSL_CA would do that"]
    assert code == 0
    assert found == {name: ["INFO ok"] for name in CHECKS} | {"database": unverified}


Break = Callable[[Database, FakeTwilio], object]
NOBODY: Break = lambda _database, _twilio: None  # noqa: E731


def sql(*statements: str) -> Break:
    """What an administrator does to the database."""
    return lambda database, _twilio: [database.execute(statement) for statement in statements]


def altered(*changes: str) -> Break:
    """The ledger, changed by hand."""
    return sql(f"ALTER TABLE {LEDGER} {', '.join(changes)}")


def many(name: str, phone: str, zone: str | None) -> Break:
    """Seven users alike."""
    return lambda database, _twilio: database.insert_users([(name, phone, zone)] * 7)


def wrong_clock(_database: Database, twilio: FakeTwilio) -> None:
    """Twilio's clock is six minutes ahead of the program's."""

    def move(_request: Request) -> None:
        twilio.clock = lambda: NOW + timedelta(minutes=6)

    twilio.hook = move


def unlike(table: str, column: str, kind: str) -> Break:
    """A column that refers to ids of another type."""
    drop = f"ALTER TABLE {table} DROP CONSTRAINT {table}_ibfk_1"
    return sql(drop, f"ALTER TABLE {table} MODIFY {column} {kind} NOT NULL")


def future_logs(database: Database, _twilio: FakeTwilio) -> None:
    habits = [habit for (habit,) in database.rows("SELECT id FROM Habit")]
    database.insert_logs(zip(cycle(habits), [NOW + timedelta(hours=hour) for hour in (1, 2, 3)], strict=False))


def often(times: int) -> Break:
    """Everybody stands in User so many times, as by a join with what they have several of."""
    view = " UNION ALL ".join(["SELECT * FROM Person"] * times)
    return sql("RENAME TABLE User TO Person", f"CREATE VIEW User AS {view}")


def claimed(**differs: object) -> Break:
    return lambda database, _twilio: row(database, 1, TODAY - 2 * DAY, **differs)


def unsigned(_database: Database, twilio: FakeTwilio) -> None:
    twilio.senders.clear()


def forbidden(status: int) -> Break:
    """A key that may text, but not look into the account."""

    def refuse_to_look(_database: Database, twilio: FakeTwilio) -> None:
        for on in LOOKING:
            twilio.script(then=refuse(70051 if status == 401 else 20403, status, LACKING), on=on)

    return refuse_to_look


LACKING = "Authorization Error: required permission twilio/phone-numbers/incoming/list is missing"
LOOKING: list[Operation] = ["numbers", "service"]
HOW = "WARNING "
FAILS = "ERROR "


def shows(words: str, break_: Break = NOBODY, **settings: str) -> tuple[str, Break, dict[str, str]]:
    """What is broken, or with which settings, and what the line of its check begins with."""
    return words, break_, settings


UNLIKE = FAILS + f"{LEDGER} cannot be used: "
NO_KEY = UNLIKE + "its primary key is not user and day. Run as an administrator:"
UNKNOWN = HOW + "whether the sender is the account's could not be told: the "
BROKEN = {
    "database": {
        "away": shows(FAILS + "MySQL: it cannot be reached", DB_PORT="1"),
        "wrong password": shows(FAILS + "MySQL: it refused DB_USER or DB_PASS", DB_PASSWORD="guessed"),
        "no database": shows(FAILS + "MySQL: ", DB_NAME="no_such"),
        "table": shows(FAILS + "MySQL: a table is missing", sql("DROP TABLE Log")),
        "column": shows(FAILS + "MySQL: a column is missing", sql("ALTER TABLE User DROP time_zone")),
        "type": shows(FAILS + "Log.created_at is varchar", sql("ALTER TABLE Log MODIFY created_at VARCHAR(32)")),
    },
    "ledger": {
        "missing": shows(HOW + "the ledger is not there yet. The first run makes", sql(f"DROP TABLE {LEDGER}")),
        "column": shows(UNLIKE + "segments is missing. Run as an administrator:", altered("DROP segments")),
        "columns": shows(
            UNLIKE + "rule is missing, state is varchar(4) COLLATE ascii_general_ci NULL, segments is missing. Run",
            altered("DROP segments", "DROP rule", "MODIFY state VARCHAR(4) NULL"),
        ),
        "type": shows(UNLIKE + "user_id is bigint", altered("MODIFY user_id BIGINT")),
        "width": shows(UNLIKE + "message_sid is varchar(20)", altered("MODIFY message_sid VARCHAR(20) NULL")),
        "small": shows(UNLIKE + "error_code is smallint", altered("MODIFY error_code SMALLINT NULL")),
        "never empty": shows(
            UNLIKE + "finished_at is datetime(6) NOT NULL.", altered("MODIFY finished_at DATETIME(6) NOT NULL")
        ),
        "one more to be filled": shows(
            UNLIKE + "origin must be filled. Run", altered("ADD origin VARCHAR(9) NOT NULL")
        ),
        "no key": shows(NO_KEY, altered("DROP PRIMARY KEY")),
        "other key": shows(NO_KEY, altered("DROP PRIMARY KEY", "ADD PRIMARY KEY (user_id, local_day, run_token)")),
        "key the other way round": shows(NO_KEY, altered("DROP PRIMARY KEY", "ADD PRIMARY KEY (local_day, user_id)")),
        "unique, but no key": shows(NO_KEY, altered("DROP PRIMARY KEY", "ADD UNIQUE (user_id, local_day)")),
        "memory": shows(UNLIKE + "its engine is not InnoDB. Run", altered("ENGINE=MEMORY")),
        "MyISAM": shows(UNLIKE + "its engine is not InnoDB. Run", altered("ENGINE=MyISAM")),
        "all at once": shows(
            UNLIKE + "user_id is bigint",
            altered("DROP segments", "MODIFY user_id BIGINT", "DROP PRIMARY KEY", "ENGINE=MyISAM"),
        ),
        "stuck": shows(HOW + "1 rows were left at 'sending'", claimed(state="sending", final_status=None)),
        "future": shows(
            HOW + "1 rows were written in the future", claimed(claimed_at=(NOW + DAY).replace(tzinfo=None))
        ),
        "future end": shows(
            HOW + "1 rows were written in the future", claimed(finished_at=(NOW + DAY).replace(tzinfo=None))
        ),
    },
    "speed and durability": {
        "index": shows(
            HOW + "no index of Log begins with habit_id: CREATE INDEX",
            sql("SET foreign_key_checks = 0", "ALTER TABLE Log DROP CONSTRAINT Log_ibfk_1, DROP INDEX habit_created"),
        ),
        "index of Habit": shows(  # as tables without foreign keys have none: Prisma's relationMode, gorm, by hand
            HOW + "no index of Habit begins with user_id: CREATE INDEX",
            sql("SET foreign_key_checks = 0", "ALTER TABLE Habit DROP CONSTRAINT Habit_ibfk_1, DROP INDEX user_id"),
        ),
        "numbers and texts": shows(
            HOW + "Habit.user_id is varchar(36) COLLATE ", unlike("Habit", "user_id", "VARCHAR(36)")
        ),
        "numbers and bytes": shows(
            HOW + "Log.habit_id is binary(16), Habit.id int", unlike("Log", "habit_id", "BINARY(16)")
        ),
    },
    "users and logs": {
        "future logs": shows(HOW + "3 of the newest logs are still to come", future_logs),
        "zones": shows(HOW + "7 users have no time zone that is known: 2, 3, 4, 5, 6 .", many("Z", ANA, "Mars")),
        "numbers": shows(HOW + "7 users have a phone number that is not E.164: 2, 3,", many("N", "12", "UTC")),
        "twice": shows(HOW + "1 users stand in User more than once: 1", often(2)),
        "thrice": shows(HOW + "1 users stand in User more than once: 1", often(3)),
        "view": shows(
            FAILS + "MySQL: a view asks for one value where there are several",
            sql(
                "RENAME TABLE Habit TO Activity",
                "CREATE VIEW Habit AS SELECT id, user_id, (SELECT 1 UNION SELECT id + 1) AS name FROM Activity"
                " WHERE id <> (SELECT id + 1 UNION SELECT 0)",
            ),
        ),
        "nobody": shows(HOW + "ONLY_USERS is set: of all users only these 1", ONLY_USERS="99"),
        "long text": shows(
            HOW + "MESSAGE_NO_LOGS costs 2 segments with a name of 3 characters",
            many("Z", "+12025550142", "UTC"),
            MESSAGE_NO_LOGS="{name}" + 154 * "x" + " STOP",
        ),
        "no STOP": shows(HOW + "MESSAGE_NO_LOGS does not say how", MESSAGE_NO_LOGS="Hi {name}"),
    },
    "hours": {
        "night": shows(HOW + "texts may come between 21:00 and 8:00", SEND_WINDOW="07:59-20:00"),
        "late": shows(HOW + "texts may come between 21:00 and 8:00", SEND_WINDOW="09:00-21:01"),
        "no window": shows(HOW + "texts may come between 21:00 and 8:00", SEND_WINDOW=""),
    },
    "Twilio": {
        "clock": shows(FAILS + "this node's clock is wrong", wrong_clock),
        "no clock": shows(HOW + "Twilio's answer has no Date", lambda _, twilio: setattr(twilio, "tells_date", False)),
        "token": shows(FAILS + "the credentials were refused", TWILIO_AUTH_TOKEN="guessed"),
        "away": shows(FAILS + "Twilio cannot be used: Twilio can", TWILIO_API_URL="http://127.0.0.1:1"),
    },
    "sender": {
        "number": shows(FAILS + f"the account has no sender {FakeTwilio.FROM_NUMBER}", unsigned),
        "service": shows(
            FAILS + f"the account has no sender {SERVICE['TWILIO_MESSAGING_SERVICE_SID']}", unsigned, **SERVICE
        ),
        "short code": shows(FAILS + "the account has no sender 12345", TWILIO_FROM_NUMBER="12345"),
        "part of a number": shows(  # Twilio finds numbers by a part of them, too
            FAILS + f"the account has no sender {FakeTwilio.FROM_NUMBER[:-1]}",
            TWILIO_FROM_NUMBER=FakeTwilio.FROM_NUMBER[:-1],
        ),
        "part of a short code": shows(
            FAILS + "the account has no sender 2345",
            lambda _, twilio: twilio.senders.add("12345"),
            TWILIO_FROM_NUMBER="2345",
        ),
        "number, 401": shows(UNKNOWN + "API key lacks a permission", forbidden(401)),
        "number, 403": shows(UNKNOWN + "Twi", forbidden(403)),
        "service, 403": shows(UNKNOWN, forbidden(403), **SERVICE),
    },
}
NEEDS = {"database": ["ledger", "speed and durability", "users and logs"], "Twilio": ["sender"]}


@pytest.mark.parametrize(("name", "broken"), [(name, broken) for name, cases in BROKEN.items() for broken in cases])
def test_what_is_broken_alone_is_what_its_line_tells(
    name: str, broken: str, database: Database, twilio: FakeTwilio, ready: dict[str, str]
) -> None:
    words, break_, settings = BROKEN[name][broken]
    expected = verdicts(ready)[1]
    break_(database, twilio)
    code, found = verdicts(ready | settings)
    [verdict] = found[name][:1]
    assert verdict.startswith(words)
    fails = words.startswith(FAILS)
    unchecked = {after: ["INFO not checked, see above"] for after in NEEDS.get(name, ()) if fails}
    assert found | {name: []} == expected | unchecked | {name: []}
    assert code == (2 if fails else 0)
    assert twilio.book == []


@pytest.mark.parametrize("broken", BROKEN["ledger"])
def test_what_an_administrator_is_told_to_run_mends_the_ledger(
    broken: str, database: Database, twilio: FakeTwilio, ready: dict[str, str]
) -> None:
    words, break_, _ = BROKEN["ledger"][broken]
    break_(database, twilio)
    told = verdicts(ready)[1]["ledger"]
    if words.startswith(FAILS):
        assert "Run as an administrator:" in told[0]
        for statement in told[1:]:
            database.execute(statement.removeprefix(FAILS))
        assert verdicts(ready)[1]["ledger"] == ["INFO ok"]
        assert program.run(ready, at=NOW + DAY) == 0


@variants({"id_type": "CHAR(36)", "collation": "ascii_general_ci"})
def test_a_key_that_takes_two_users_for_one_is_no_key(database: Database, ready: dict[str, str]) -> None:
    database.execute(f"ALTER TABLE {LEDGER} DROP PRIMARY KEY, ADD PRIMARY KEY (user_id(1), local_day)")
    assert verdicts(ready)[1]["ledger"][0] == NO_KEY
    assert program.run(ready, at=NOW) == 2


def test_a_ledger_with_names_in_capitals_is_the_same(database: Database, ready: dict[str, str]) -> None:
    database.execute(
        f"ALTER TABLE {LEDGER} CHANGE user_id USER_ID INT NOT NULL, CHANGE state STATE VARCHAR(16) NOT NULL"
    )
    assert verdicts(ready)[1]["ledger"] == ["INFO ok"]
    assert program.run(ready, at=NOW + DAY) == 0


IN_FLIGHT = {"state": "sending", "final_status": None, "finished_at": None}


@pytest.mark.parametrize(
    ("differs", "claimed_at"),
    [
        ({}, NOW + timedelta(minutes=5)),
        (IN_FLIGHT, NOW - timedelta(minutes=30)),
        (IN_FLIGHT | {"final_status": "unknown"}, NOW - DAY),
        (IN_FLIGHT | {"state": "uncertain"}, NOW - DAY),
        (IN_FLIGHT | {"state": "sent"}, NOW - DAY),
    ],
    ids=["clocks differ a little", "of a run that goes on", "told once", "uncertain", "to be looked up"],
)
def test_rows_that_want_no_persons_eye_are_no_finding(
    differs: dict[str, object], claimed_at: datetime, database: Database, ready: dict[str, str]
) -> None:
    row(database, 1, TODAY - 2 * DAY, **differs, claimed_at=claimed_at.replace(tzinfo=None))
    assert verdicts(ready)[1]["ledger"] == ["INFO ok"]


@pytest.mark.parametrize("sender", [SERVICE, {"TWILIO_FROM_NUMBER": "12345"}], ids=["service", "short code"])
def test_other_senders_are_found_in_the_account(
    sender: dict[str, str], ready: dict[str, str], twilio: FakeTwilio
) -> None:
    twilio.senders.add("12345")
    assert verdicts(ready | sender)[1]["sender"] == ["INFO ok"]


@pytest.mark.constants(PROBE_LIMIT=0.4)
def test_a_twilio_whose_answer_never_ends_does_not_hold_up_a_check(ready: dict[str, str], twilio: FakeTwilio) -> None:
    for operation, name in (("list", "Twilio"), ("numbers", "sender")):
        late = ACCEPT.delayed(after=4)
        twilio.hook = lambda request, on=operation, late=late: late if request.operation == on else None
        code, found = verdicts(ready)
        assert code == 2
        where = "check https://status.twilio.com, DNS, the proxy and the NetworkPolicy"
        assert found[name] == [f"ERROR Twilio does not answer, or its answer does not end: {where}"]


def test_wrong_settings_are_all_that_a_check_tells(ready: dict[str, str]) -> None:
    code, lines = said(ready | {"DB_PORT": "mysql", "SEND_WINDOW": "x"}, "--check")
    assert code == 2
    assert [line[: line.index(" is ")] for line in lines] == [
        "ERROR - settings: DB_PORT",
        "ERROR - settings: SEND_WINDOW",
    ]


def test_a_ledger_with_more_columns_and_of_other_charsets_is_taken(database: Database, ready: dict[str, str]) -> None:
    """MySQL, not MariaDB, refuses a statement that names a generated column as one to be written."""
    more = "ADD origin VARCHAR(9) NOT NULL DEFAULT '', ADD note TEXT NULL"
    more += ", ADD sent_on DATE GENERATED ALWAYS AS (DATE(finished_at)) FIRST"
    database.execute(f"ALTER TABLE {LEDGER} {more}, ADD number BIGINT NOT NULL AUTO_INCREMENT UNIQUE")
    database.execute(f"ALTER TABLE {LEDGER} CONVERT TO CHARACTER SET utf8mb4")
    assert verdicts(ready)[1]["ledger"] == ["INFO ok"]
    assert [program.run(ready, at=NOW + DAY) for _ in range(2)] == [0, 0]
    assert database.rows(f"SELECT state, sent_on FROM {LEDGER}") == [("sent", TODAY + DAY)]


def test_a_check_by_one_shard_names_none_of_anothers_users(database: Database, ready: dict[str, str]) -> None:
    shards = [crc32(str(user).encode()) % 2 for user in range(1, 8)]
    database.insert_users((f"User {n}", ANA, f"Etc/GMT-{n}") for n in range(2, 8))
    bad = database.insert_user("Bad", ANA, "Mars")
    assert set(shards) == {0, 1}
    for shard in (0, 1):
        found = verdicts(ready | {"SHARD_COUNT": "2", "JOB_COMPLETION_INDEX": str(shard)})[1]["users and logs"]
        own = crc32(str(bad).encode()) % 2 == shard
        assert found == ([f"WARNING 1 users have no time zone that is known: {bad}"] if own else ["INFO ok"])


@pytest.mark.parametrize("lacking", ["SELECT", "INSERT", "UPDATE", "DELETE", "SELECT, INSERT, UPDATE, DELETE"])
def test_a_grant_that_is_missing_on_the_ledger_fails_its_line_and_the_run_with_the_grant_to_paste(
    lacking: str, database: Database, ready: dict[str, str], twilio: FakeTwilio
) -> None:
    account = database.least_account()
    all_is_well = verdicts(ready | account)
    assert all_is_well[1]["ledger"] == ["INFO ok"]
    database.execute(f"REVOKE {lacking} ON `{database.name}`.{LEDGER} FROM %s@'%%'", (account["DB_USER"],))
    code, found = verdicts(ready | account)
    assert code == 2
    older = "Is there an older one? Bring it back, or people get a second text. Run as an administrator:"
    assert found["ledger"][0] == f"ERROR DB_USER may not create or write the ledger {LEDGER}. {older}"
    assert found | {"ledger": []} == all_is_well[1] | {"ledger": []}
    assert (program.run(ready | account, at=NOW + DAY), twilio.book) == (2, [])
    database.execute(found["ledger"][2].removeprefix("ERROR ").replace("%", "%%"), ())
    assert verdicts(ready | account) == all_is_well
    assert (program.run(ready | account, at=NOW + DAY), len(twilio.book)) == (0, 1)


@pytest.mark.parametrize("table", ["User", "Habit", "Log"])
def test_a_table_that_may_not_be_read_is_named_and_the_account_is_not(
    table: str, database: Database, ready: dict[str, str], twilio: FakeTwilio
) -> None:
    account = database.least_account()
    all_is_well = verdicts(ready | account)[1]
    database.execute(f"REVOKE SELECT ON `{database.name}`.`{table}` FROM %s@'%%'", (account["DB_USER"],))
    code, found = verdicts(ready | account)
    [verdict] = found["database"]
    assert code == 2
    assert verdict.startswith("ERROR MySQL: DB_USER lacks a grant on this table: see the grants in DEPLOYMENT.md")
    unchecked = {after: ["INFO not checked, see above"] for after in NEEDS["database"]}
    assert found == all_is_well | unchecked | {"database": [verdict]}
    assert f"'{table}'" in verdict.replace("`", "'")
    code, lines = said(ready | account, at=NOW + DAY)
    assert (code, f"ERROR - {verdict.removeprefix('ERROR ')}" in lines, twilio.book) == (2, True, [])
    assert not [value for value in account.values() if value in "".join(lines)]


def test_the_statement_for_a_missing_ledger_makes_it(database: Database, ready: dict[str, str]) -> None:
    database.execute(f"DROP TABLE {LEDGER}")
    [note] = verdicts(ready)[1]["ledger"]
    database.execute(note[note.index("CREATE TABLE") :])
    assert verdicts(ready)[1]["ledger"] == ["INFO ok"]


@pytest.mark.parametrize("more", ["", ", sql_quote_show_create = 0"])
@pytest.mark.parametrize("create", [True, False])
def test_a_missing_ledger_fails_the_check_only_if_the_run_may_not_make_it(
    create: bool,
    more: str,
    database: Database,
    ready: dict[str, str],
    twilio: FakeTwilio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(habit_notifier, "STATEMENT_LIMIT", habit_notifier.STATEMENT_LIMIT + more)
    database.execute(f"DROP TABLE {LEDGER}")
    account = database.least_account(create=create)
    code = verdicts(ready | account)[0]
    assert code == (0 if create else 2)
    assert [program.run(ready | account, at=NOW + DAY) for _ in range(2)] == [code] * 2
    assert len(twilio.book) == create


@pytest.mark.parametrize("named", ["`{}`", "`{escaped}`", "`{}%`"], ids=["name", "escaped", "pattern"])
@pytest.mark.parametrize(
    ("privileges", "code"),
    [
        ("SELECT, INSERT, UPDATE, DELETE", 2),
        ("SELECT, INSERT, UPDATE, DELETE, CREATE VIEW, CREATE TEMPORARY TABLES", 2),
        ("SELECT, CREATE", 2),
        ("SELECT, INSERT, UPDATE, CREATE", 2),
        ("SELECT, INSERT, UPDATE, DELETE, CREATE", 0),
        ("ALL", 0),
    ],
)
def test_a_missing_ledger_is_a_note_only_where_the_run_can_make_it_and_write_it(
    privileges: str, named: str, code: int, database: Database, ready: dict[str, str]
) -> None:
    database.execute(f"DROP TABLE {LEDGER}")
    account = database._new_account()
    name = named.format(database.name, escaped=database.name.replace("_", r"\_")).replace("%", "%%")
    database.execute(f"GRANT ALL ON `{database.name[:-1]}`.* TO %s@'%%'", (account["DB_USER"],))  # says nothing
    database.execute(f"GRANT {privileges} ON {name}.* TO %s@'%%'", (account["DB_USER"],))
    assert verdicts(ready | account)[0] == code
    assert program.run(ready | account, at=NOW) == code


def test_a_role_may_be_what_lets_an_account_make_the_ledger(database: Database, ready: dict[str, str]) -> None:
    database.execute(f"DROP TABLE {LEDGER}")
    account, role = database._new_account(), f"role_{database.name[-6:]}"
    grants = f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{database.name}`.* TO %s@'%%'"
    database.execute(f"CREATE ROLE {role}")
    try:
        database.execute(grants, (account["DB_USER"],))
        database.execute(f"GRANT {role} TO %s@'%%'", (account["DB_USER"],))
        code, found = verdicts(ready | account)
    finally:
        database.execute(f"DROP ROLE {role}")
    assert (code, found["ledger"][0].startswith("WARNING the ledger is not there yet")) == (0, True)


@pytest.mark.parametrize("columns", ["state", "user_id, local_day, state"])
def test_an_update_of_some_columns_alone_is_a_grant_too_few(
    columns: str, database: Database, ready: dict[str, str]
) -> None:
    account = database.least_account()
    database.execute(f"REVOKE UPDATE ON `{database.name}`.{LEDGER} FROM %s@'%%'", (account["DB_USER"],))
    database.execute(f"GRANT UPDATE ({columns}) ON `{database.name}`.{LEDGER} TO %s@'%%'", (account["DB_USER"],))
    assert verdicts(ready | account)[0] == 2
    assert program.run(ready | account, at=NOW) == 2


READ_ONLY = "ERROR MySQL: it is read-only: set DB_HOST to the primary"


@pytest.mark.usefixtures("throwaway")
def test_tls_durability_and_a_server_that_is_read_only(twilio: FakeTwilio, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    with Server(tls=True, options=["--innodb-flush-log-at-trx-commit=2"]) as server, server.database() as database:
        create_ledger(database)
        environ = database.environ() | twilio.environ()
        found = verdicts(environ)[1]
        assert (found["database"], found["ledger"]) == (["INFO ok"], ["INFO ok"])
        assert found["speed and durability"][0].startswith("WARNING innodb_flush_log_at_trx_commit is 2: a crash")
        code, found = verdicts(environ | {"DB_SSL_CA": str(tmp_path / "ca.pem")})
        assert code == 2
        assert found["database"][0].startswith("ERROR MySQL: DB_SSL_CA does not vouch for its certificate")
        database.execute("SET GLOBAL read_only = 1")
        code, found = verdicts(environ)
        assert (code, found["ledger"]) == (2, [READ_ONLY])


@pytest.mark.usefixtures("throwaway")
@pytest.mark.parametrize("west", ["-05:00", "+00:00"])
@pytest.mark.parametrize("created_at", ["DATETIME", "DATETIME(6)", "TIMESTAMP"])
def test_a_server_west_of_utc_that_fills_in_its_own_time_is_found(
    west: str, created_at: str, twilio: FakeTwilio
) -> None:
    with Server(global_time_zone=west) as server, server.database(created_at=created_at) as database:
        _, *told = verdicts(database.environ() | twilio.environ())[1]["database"]
    wrong = west == "-05:00" and created_at != "TIMESTAMP"
    filled = "WARNING Log.created_at is filled in this server's time_zone (-05:00), not in UTC, where it is left out: "
    assert [line.startswith(filled) for line in told] == [True] * wrong


@pytest.mark.usefixtures("throwaway")
def test_a_server_whose_innodb_alone_is_read_only_is_found_before_the_first_claim(twilio: FakeTwilio) -> None:
    options = ["--innodb-read-only", "--default-storage-engine=MyISAM"]  # as Aurora's readers
    with Server(options=options) as server, server.database() as database:
        environ = database.environ() | twilio.environ()
        code, found = verdicts(environ)
        assert (code, found["ledger"]) == (2, [READ_ONLY])
        assert program.run(environ, at=NOW) == 2


# --- no question writes -----------------------------------------------------------------------------------------------


@contextmanager
def general_log(server: Server) -> Iterator[Callable[[str], list[str]]]:
    """The statements that an account sends to the server from now on."""
    with server.connect() as connection, connection.cursor() as cursor:

        def statements(account: str) -> list[str]:
            cursor.execute(
                "SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log "
                "WHERE user_host LIKE %s AND command_type NOT IN ('Connect', 'Quit', 'Init DB') ORDER BY event_time",
                [f"%{account}%"],
            )
            return [statement for (statement,) in cursor.fetchall()]

        try:
            cursor.execute("SET GLOBAL log_output = 'TABLE', GLOBAL general_log = ON")
        except pymysql.err.OperationalError as error:
            pytest.skip(f"the account may not switch on the server's general log: {error}")
        try:
            yield statements
        finally:
            cursor.execute("SET GLOBAL general_log = OFF, GLOBAL log_output = 'FILE'")


QUESTIONS = [["--dry-run"], ["--explain", "1"], ["--explain", "none"], ["--check"]]
READING = re.compile(r"\s*(SELECT|SHOW|SET (time_zone|AUTOCOMMIT|NAMES)|EXPLAIN) ?", re.IGNORECASE)


@pytest.mark.parametrize("ledger", [False, True], ids=["no ledger", "ledger"])
def test_no_question_writes_even_with_an_account_that_may(
    ledger: bool, database: Database, environ: dict[str, str], server: Server, twilio: FakeTwilio
) -> None:
    ids = settle_in(database, population(NOW, 100, SECOND, seed=1))
    if ledger:
        create_ledger(database)
        for user in list(ids.values())[::3]:
            row(database, user, TODAY - 100 * DAY, state="sending", final_status=None)
    with general_log(server) as statements:
        for question in QUESTIONS:
            said(environ, *question)
        seen = statements(environ["DB_USER"])
        assert len(seen) > 20
        assert [statement for statement in seen if not READING.match(statement)] == []
        assert {request.method for request in twilio.requests} == {"GET"}
        program.run(environ, at=NOW)
        assert any(statement.startswith("INSERT") for statement in statements(environ["DB_USER"])), "the log sees"
