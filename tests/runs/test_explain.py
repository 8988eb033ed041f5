"""Every statement of a whole run goes by an index, so that a run takes as long as its users, not as the tables' past.

The statements are those that the program really sends, collected on their way and put before the server's optimizer,
on tables large enough for it to have a choice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import pytz

import habit_notifier
from habit_notifier import Job
from tests.runs import program
from tests.runs.plans import Step, explained
from tests.runs.statements import OUTCOMES, PURGE
from tests.runs.statements import ZONES as ZONES_READ
from tests.runs.town import create_ledger, opened
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import FakeTwilio

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
DAY = timedelta(days=1)
USERS, LOGS, PAGE = 4_000, 50_000, 500
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo", "Pacific/Auckland", "Europe/Paris", "No/Such"]


@dataclass(frozen=True)
class Plans:
    """All steps of a run."""

    log_index: bool
    steps: list[Step]

    def of(self, table: str, words: str = "") -> list[Step]:
        """The steps over a table (or alias) in statements that hold the words."""
        found = [step for step in self.steps if step.table == table and words in step.sql]
        assert found, f"no statement with {words!r} reads {table}"
        return found


@pytest.fixture(scope="module", params=[True, False], ids=["log index", "foreign key's index"])
def filled(server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[Database, FakeTwilio]]:
    """A few thousand users, most of whom logged yesterday, and a ledger of 100 days."""
    with FakeTwilio() as twilio, server.database(log_index=request.param) as database:
        fill(database)
        twilio.travel_to(NOON)
        yield database, twilio


@pytest.fixture(scope="module")
def plans(filled: tuple[Database, FakeTwilio]) -> Plans:
    """The plans of all statements of a run that claims, records, settles and purges."""
    database, twilio = filled

    def wanted(sql: str) -> bool:
        return sql.startswith(("SELECT", "DELETE", "UPDATE")) and "information_schema" not in sql

    with explained(database.server, database.name, wanted) as steps, pytest.MonkeyPatch.context() as patch:
        patch.setattr(habit_notifier, "PAGE_USERS", PAGE)
        settings = database.environ() | twilio.environ() | {"SEND_CONCURRENCY": "16"}
        assert program.run(settings, at=NOON) == 0
    return Plans(database.log_index, steps)


def fill(database: Database) -> None:
    chance = random.Random(5)
    ids = database.insert_users((f"User {n}", f"+1202{n:07}", ZONES[n % len(ZONES)]) for n in range(USERS))
    habits = database.insert_habits(ids * 2)
    yesterday = NOON - timedelta(hours=22)  # in all these zones
    recent = [(habit, yesterday) for habit in habits[: USERS * 49 // 50]]
    older = ((chance.choice(habits), NOON - chance.random() * 60 * DAY - 2 * DAY) for _ in range(LOGS - len(recent)))
    database.insert_logs([*older, *recent])
    create_ledger(database)
    with database.connect(autocommit=False) as connection, connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at, finished_at,"
            " message_sid, final_status) VALUES (%s, %s, '+12025550100', 'no_logs', %s, 'token', %s, %s, %s, %s)",
            [row for n, user in enumerate(ids) for row in earlier_texts(n, user)],
        )
        connection.commit()
    database.rows(f"ANALYZE TABLE User, Habit, Log, {LEDGER}")


def earlier_texts(n: int, user: object) -> Iterator[tuple[object, ...]]:
    """A text every 17 days; what became of some of the newest is not known."""
    for days_ago in range(n % 17 + 2, 101, 17):
        at = (NOON - days_ago * DAY).replace(tzinfo=None)
        known = days_ago > 3 or n % 50 != 0
        yield user, at.date(), "sent", at, at, f"SM{n:032x}", "delivered" if known else None


def test_pages_of_users_are_ranges_of_the_primary_key(plans: Plans) -> None:
    pages = plans.of("u", "z.zone")
    assert len(pages) > USERS // PAGE
    for step in [*pages, *plans.of("u", "u.id > "), *plans.of("u", "u.id <= ")]:
        assert (step.type, step.key) == ("range", "PRIMARY"), step
    assert all(step.rows <= 2 * PAGE for step in pages)  # an estimate


def test_nothing_is_read_as_a_whole_but_the_users_once_for_their_zones(plans: Plans) -> None:
    """The other two read along the primary key and stop: where the pages start, and after the newest logs."""
    whole = [step for step in plans.steps if step.type in ("ALL", "index") and not step.table.startswith("<derived")]
    [zones] = [step for step in whole if step.type == "ALL"]
    assert zones.table == "u"
    assert ZONES_READ in zones.sql
    stopping = [step for step in whole if step.type == "index"]
    assert {(step.table, step.key) for step in stopping} == {("u", "PRIMARY"), ("Log", "PRIMARY")}
    assert all("ORDER BY" in step.sql and "LIMIT" in step.sql for step in stopping)


def test_logs_are_looked_up_by_habit_and_habits_by_user(plans: Plans) -> None:
    for step in plans.of("l"):
        assert (step.type, step.key) == ("ref", "habit_created" if plans.log_index else "habit_id"), step
    for step in plans.of("h"):
        assert (step.type, step.key) == ("ref", "user_id"), step


@pytest.mark.constants(NEWEST_LOGS=100)
@pytest.mark.usefixtures("plans")
def test_the_newest_logs_are_found_without_reading_all_logs(filled: tuple[Database, FakeTwilio]) -> None:
    """Measured, not explained: MariaDB's plan does not show that the reading ends after so many rows."""
    database, twilio = filled
    with opened(database.environ() | twilio.environ()) as job:
        before = rows_read(job)
        [of_old] = job.tracker.log_doubts(NOON - 900 * DAY, 100)
        assert of_old.startswith("100 of the newest logs are still to come, the last of 2026-05-11 14:00:00 UTC")
        assert rows_read(job) - before < 1_000
        assert list(job.tracker.log_doubts(NOON, 100)) == []


def test_a_users_last_log_is_found_without_reading_all_logs(server: Server) -> None:
    with FakeTwilio() as twilio, server.database() as database:
        logs = [NOON - timedelta(minutes=n) for n in range(2_000)]
        user = database.insert_user("Ana", "+12025550100", "UTC", logs=logs)
        with opened(database.environ() | twilio.environ()) as job:
            days: dict[int | str | bytes, habit_notifier.Days] = {user: habit_notifier.days_of(NOON, pytz.utc)}
            before = rows_read(job)
            assert job.tracker.last_logs(days, NOON) == {user: NOON}
            assert rows_read(job) - before < 1_000


def rows_read(job: Job) -> int:
    return sum(int(count) for _, count in job.database.run("SHOW SESSION STATUS LIKE 'Handler_read%%'"))


@pytest.mark.usefixtures("plans")
def test_the_zones_bounds_are_not_read_for_each_user_anew(filled: tuple[Database, FakeTwilio]) -> None:
    """Measured: MySQL finds them by a key, MariaDB holds them in a join buffer."""
    database, twilio = filled
    with opened(database.environ() | twilio.environ()) as job:
        days = {name.encode(): habit_notifier.days_of(NOON, pytz.timezone(name)) for name in pytz.all_timezones}
        job.tracker.judge_by(days, NOON)
        before = rows_read(job)
        assert job.tracker._read(job.database, habit_notifier.DUE, f"u.id <= {USERS}")
        assert rows_read(job) - before < len(days) * USERS / 10


def test_what_the_ledger_holds_of_some_users_is_found_by_the_primary_key(plans: Plans) -> None:
    for step in [*plans.of(LEDGER, "user_id IN ("), *plans.of(LEDGER, "DELETE")]:
        assert (step.type, step.key) == ("range", "PRIMARY"), step
    for step in plans.of(LEDGER, "UPDATE"):  # local_day leads to single rows as well: it holds the primary key
        assert step.type == "range", step
        assert step.rows <= habit_notifier.KEYS, step


def test_texts_that_are_not_settled_are_found_by_their_own_index(plans: Plans) -> None:
    for step in plans.of(LEDGER, OUTCOMES):
        assert step.key == "unsettled", step


def test_the_purge_goes_by_the_day(plans: Plans) -> None:
    purges = plans.of(LEDGER, PURGE)
    assert len(purges) > 1
    for step in purges:
        assert (step.type, step.key) == ("range", "local_day"), step


def test_whether_a_users_rows_matter_is_found_by_the_primary_key(plans: Plans) -> None:
    for step in plans.of("n"):
        assert step.key == "PRIMARY", step
