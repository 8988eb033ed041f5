"""At most once: whatever dies, overlaps or gets lost, nobody is texted twice. The fake Twilio's book is the witness."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import habit_notifier
from habit_notifier import Exit, Stop
from tests.runs import program
from tests.runs.statements import CLAIM, CLAIM_CHECK, RECORD, RELEASE
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import Answer, FakeTwilio, Request, refuse, slow
from tests.sandbox.proxy import Proxy, Verdict

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
USERS = 12
IN_FLIGHT = 4
CLAIMED = IN_FLIGHT + IN_FLIGHT // 2  # those ahead, for whom no thread is free yet, are claimed too

ANOTHER_ROW = (
    f"INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at)"
    " SELECT id, %s, phone_number, 'no_logs', %s, 'another', %s FROM User WHERE id = %s"
)


@pytest.fixture
def people(database: Database, twilio: FakeTwilio) -> list[str]:
    """The numbers of some users, all of them due; Twilio's clock stands where the program's does."""
    twilio.travel_to(NOON)
    users = [(f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(USERS)]
    database.insert_users(users)
    return [number for _, number, _ in users]


@pytest.fixture
def environ(database: Database, twilio: FakeTwilio) -> dict[str, str]:
    return database.environ() | twilio.environ() | {"SEND_CONCURRENCY": str(IN_FLIGHT), "LOG_LEVEL": "DEBUG"}


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy((database.server.host, database.server.port)) as running:
        yield running


def through(proxy: Proxy) -> dict[str, str]:
    return {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port)}


def run(environ: dict[str, str], at: datetime = NOON) -> int:
    """A whole run of the program in this process."""
    return program.run(environ, at=at)


@contextmanager
def process(environ: dict[str, str], at: datetime = NOON) -> Iterator[subprocess.Popen[str]]:
    """A whole run in a process of its own."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-m", "tests.runs.run_at", at.isoformat(), "OUTAGE_PATIENCE=60.0"]
    with subprocess.Popen(command, cwd=ROOT, env=inherited | environ, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def kill(program: subprocess.Popen[str]) -> None:
    assert program.poll() is None, "it was to be killed in the middle, but has ended"
    program.kill()
    program.communicate()


def wait_for(condition: Callable[[], object], every: float = 0.01) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(every)


def texted(twilio: FakeTwilio) -> list[str]:
    return sorted(message.to for message in twilio.book)


def states(database: Database) -> dict[str, str]:
    """What the ledger says, by phone number; one day only."""
    rows = database.rows(f"SELECT phone_number, state FROM {LEDGER}")
    found: dict[str, str] = dict(rows)
    assert len(found) == len(rows)
    return found


def numbers(database: Database, state: str) -> list[str]:
    return sorted(number for number, is_so in states(database).items() if is_so == state)


def said_sent(output: str) -> int:
    found = re.findall(r"Job completed\. Notifications sent: (\d+)", output)
    return int(found[-1])


# --- runs beside and after each other


def test_a_second_run_the_same_day_sends_nothing(
    environ: dict[str, str], twilio: FakeTwilio, people: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(environ, NOON) == 0
    assert run(environ, NOON.replace(hour=23, minute=59, second=59)) == 0
    assert texted(twilio) == people
    assert said_sent(caplog.text) == 0
    assert run(environ, NOON + timedelta(hours=24)) == 0
    assert texted(twilio) == sorted(people * 2)


def test_five_runs_at_the_same_moment_send_each_text_once(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, people: list[str]
) -> None:
    """They start together even in creating the ledger: held by a lock until the last one is there."""
    twilio.latency = 0.02
    with ThreadPoolExecutor(5) as threads, holding(database, "Log", waiting=5) as let_go:
        runs = [threads.submit(finish, environ, NOON) for _ in range(5)]
        let_go()
        results = [each.result() for each in runs]
    assert texted(twilio) == people
    for code, output in results:  # 1: it found users in another's hands until its end, and sent nothing itself
        assert code == 0 or (code == Exit.RETRY and not said_sent(output))
    assert sum(said_sent(output) for _, output in results) == USERS
    assert numbers(database, "sent") == people


def finish(environ: dict[str, str], at: datetime) -> tuple[int, str]:
    with process(environ, at) as program:
        _, output = program.communicate(timeout=60)
        return program.returncode, output


@contextmanager
def holding(database: Database, table: str, waiting: int) -> Iterator[Callable[[], None]]:
    """Locks a table; what it yields waits until so many connections wait for the lock, and lets all of them go."""
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"LOCK TABLES `{table}` WRITE")

        def let_go() -> None:
            wait_for(lambda: held(database) == waiting)
            cursor.execute("UNLOCK TABLES")

        yield let_go


def held(database: Database) -> int:
    sql = "SELECT COUNT(*) FROM information_schema.processlist WHERE db = %s AND state LIKE '%%metadata lock'"
    with database.server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(sql, (database.name,))
        [count] = cursor.fetchone() or [0]
    return int(count)


# --- kill -9


STEPS = {  # what stops the program there, does it leave all rows of its first claim at 'sending', and were texts sent?
    "claimed": (CLAIM, Verdict.HANG_AFTER, True, False),
    "claim checked": (CLAIM_CHECK, Verdict.HANG_AFTER, True, False),
    "before the record": (RECORD, Verdict.HANG_BEFORE, True, True),
    "after the record": (RECORD, Verdict.HANG_AFTER, False, True),
}


@pytest.mark.parametrize("step", STEPS)
def test_nobody_is_texted_twice_after_a_kill_at_a_statement(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    text, verdict, all_stranded, sent = STEPS[step]
    twilio.latency = 0.3  # so that the first four come back together
    stopped = proxy.on_query(text, verdict)
    with process(environ | through(proxy)) as program:
        assert stopped.happened.wait(15)
        if sent:  # one or more of the four had come back, and the threads go on
            wait_for(lambda: len(twilio.book) == len(states(database)))
        kill(program)
    claimed = len(states(database))
    assert 1 <= claimed <= CLAIMED  # the pages start anywhere: the first one may be small
    assert len(twilio.book) == (claimed if sent else 0)
    assert len(numbers(database, "sending")) in ({claimed} if all_stranded else range(claimed))
    the_rest_is_served_and_nobody_twice(database, environ, twilio, people, caplog)


def test_nobody_is_texted_twice_after_a_kill_between_post_and_answer(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    twilio.script(then=slow(30))
    with process(environ) as program:
        wait_for(lambda: len(twilio.book) == IN_FLIGHT)
        kill(program)
    twilio.script()
    assert IN_FLIGHT <= len(numbers(database, "sending")) <= CLAIMED
    the_rest_is_served_and_nobody_twice(database, environ, twilio, people, caplog)


@pytest.mark.parametrize("verdict", [Verdict.HANG_BEFORE, Verdict.HANG_AFTER])
def test_nobody_is_texted_twice_after_a_kill_during_the_release(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    verdict: Verdict,
) -> None:
    """What was claimed is surely not sent: what is released before the kill is sent by the next run."""
    twilio.latency = 0.3
    twilio.script(then=refuse(70051, 403))
    stopped = proxy.on_query(RELEASE, verdict)
    with process(environ | through(proxy)) as program:
        assert stopped.happened.wait(15)
        kill(program)
    twilio.script()
    assert not twilio.book
    left = len(numbers(database, "sending"))
    assert 1 <= left <= CLAIMED if verdict is Verdict.HANG_BEFORE else left < CLAIMED
    the_rest_is_served_and_nobody_twice(database, environ, twilio, people, caplog)


def the_rest_is_served_and_nobody_twice(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three more runs: everybody but those in doubt has one text; those are reported, and served the next day.

    A run that sends nothing while somebody's text of this Job is in doubt does not end green.
    """
    twilio.latency = 0.0
    stranded = numbers(database, "sending")
    before = texted(twilio)
    assert len(stranded) <= CLAIMED
    cut_off = "another run is texting this user, or was cut off"
    for minutes, count, why in (
        (1, "uncertain", cut_off),
        (2, "uncertain", cut_off),
        (40, "uncertain earlier today", "it may have been sent"),
    ):
        caplog.clear()
        code = run(environ, NOON + timedelta(minutes=minutes))
        in_doubt = stranded and not said_sent(caplog.text) and why == cut_off
        assert code == (Exit.RETRY if in_doubt else Exit.DONE)
        assert texted(twilio) == sorted({*people} - {*stranded} | {*before})
        assert caplog.text.count(why) == len(stranded)
        assert f", {count} {len(stranded)}\n" in caplog.text or not stranded
    assert max(Counter(texted(twilio)).values(), default=0) <= 1
    today = texted(twilio)
    twilio.travel_to(NOON + timedelta(days=1))
    assert run(environ, NOON + timedelta(days=1)) == 0
    assert texted(twilio) == sorted(today + people)


# --- the spacing of two texts, whatever the local days are


MARQUESAS = datetime(2026, 5, 12, 9, 0, tzinfo=UTC)  # 23:30 there
SPACING = timedelta(hours=11, minutes=30)
SECOND = timedelta(seconds=1)


@pytest.fixture
def islanders(database: Database, people: list[str]) -> None:
    assert people
    database.execute("UPDATE User SET time_zone = 'Pacific/Marquesas'")


@pytest.mark.usefixtures("islanders")
@pytest.mark.parametrize(("after", "again"), [(SPACING - SECOND, False), (SPACING, True), (SPACING + SECOND, True)])
def test_a_new_local_day_brings_no_text_before_eleven_and_a_half_hours_are_over(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    after: timedelta,
    again: bool,
) -> None:
    assert run(environ, MARQUESAS) == 0
    assert run(environ, MARQUESAS + timedelta(minutes=30)) == 0  # the next day there
    assert texted(twilio) == people
    assert f"deferred {USERS}" in caplog.text
    assert len(states(database)) == USERS  # the deferred claims are gone: a later run that day may text
    assert run(environ, MARQUESAS + after) == 0
    assert texted(twilio) == (sorted(people * 2) if again else people)


@pytest.mark.usefixtures("islanders")
@pytest.mark.parametrize(("after", "again"), [(SPACING - SECOND, False), (SPACING, True), (SPACING + SECOND, True)])
def test_a_text_of_unknown_end_counts_from_the_last_moment_at_which_it_can_have_been_sent(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, people: list[str], after: timedelta, again: bool
) -> None:
    """A run that was cut off may have posted until its deadline."""
    assert run(environ, MARQUESAS) == 0
    database.execute(f"UPDATE {LEDGER} SET state = 'sending', finished_at = NULL")
    assert run(environ | {"RUN_DEADLINE": "1500"}, MARQUESAS + timedelta(seconds=1500) + after) == 0
    assert texted(twilio) == (sorted(people * 2) if again else people)


@pytest.mark.usefixtures("islanders")
def test_two_runs_at_once_on_either_side_of_a_local_midnight_text_nobody_twice(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, people: list[str]
) -> None:
    """And whoever got none, since each of two runs gave way to the other, is not forgotten: a run asks for a retry."""
    midnight = MARQUESAS + timedelta(minutes=30)
    twilio.travel_to(midnight)
    twilio.latency = 0.02
    with ThreadPoolExecutor(4) as threads, holding(database, "Log", waiting=4) as let_go:
        starts = [midnight - timedelta(minutes=1), midnight] * 2
        runs = [threads.submit(finish, environ, at) for at in starts]
        let_go()
        results = [each.result() for each in runs]
    codes = {code for code, _ in results}
    assert codes <= {0, 1}
    assert texted(twilio) == people or 1 in codes
    assert max(Counter(texted(twilio)).values(), default=0) <= 1
    assert sum(said_sent(output) for _, output in results) == len(twilio.book)


# --- lost answers


@pytest.mark.parametrize("verdict", [Verdict.CUT_BEFORE, Verdict.CUT_AFTER])
@pytest.mark.parametrize("statement", [CLAIM, CLAIM_CHECK, RECORD])
def test_a_lost_answer_of_claim_or_record_neither_loses_nor_repeats_a_text(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    statement: str,
    verdict: Verdict,
) -> None:
    lost = [proxy.on_query(statement, verdict, nth=nth) for nth in (1, 3)]
    assert run(environ | through(proxy)) == 0
    assert [rule.hits for rule in lost] == [1, 1]
    assert texted(twilio) == people
    assert numbers(database, "sent") == people


@pytest.mark.parametrize("verdict", [Verdict.CUT_BEFORE, Verdict.CUT_AFTER])
def test_a_lost_answer_of_the_release_leaves_no_row_behind(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, proxy: Proxy, people: list[str], verdict: Verdict
) -> None:
    twilio.script(then=refuse(70051, 403))
    lost = proxy.on_query(RELEASE, verdict)
    assert run(environ | through(proxy)) == Exit.ACT
    assert lost.hits == 1
    assert not states(database)
    twilio.script()
    assert run(environ) == 0
    assert texted(twilio) == people


# --- locks


def test_a_deadlock_is_repeated(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    first_batch: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other transaction has changed more, so that the server makes ours the victim."""
    first, *_, last = first_batch
    with ThreadPoolExecutor(1) as threads, transaction(database) as other:
        other.execute("INSERT INTO Habit (user_id, name) SELECT id, 'Weight' FROM User")
        other.execute("INSERT INTO Habit (user_id, name) SELECT user_id, 'Weight' FROM Habit")
        other.execute(ANOTHER_ROW, (NOON.date(), "sending", NOON.replace(tzinfo=None), last))
        running = threads.submit(run, environ)
        wait_for(lambda: lock_waits(database), every=0.2)  # the table behind is a copy, renewed when left alone
        other.execute(f"SELECT * FROM {LEDGER} WHERE user_id = %s FOR UPDATE", (first,))
        other.connection.rollback()
        assert running.result() == 0
    assert "a deadlock (error 1213" in caplog.text
    assert texted(twilio) == people


def test_a_lock_wait_timeout_is_repeated(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    first_batch: list[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    *_, last = first_batch
    claims = proxy.on_query(CLAIM, Verdict.PASS, nth=2)
    with ThreadPoolExecutor(1) as threads, transaction(database) as other:
        other.execute(f"SELECT * FROM {LEDGER} WHERE user_id = %s FOR UPDATE", (last,))
        running = threads.submit(run, environ | through(proxy))
        wait_for(lambda: claims.seen == 2)
        other.connection.rollback()
        assert running.result() == 0
    assert "another transaction holds a lock (error 1205" in caplog.text
    assert texted(twilio) == people


@contextmanager
def transaction(database: Database) -> Iterator[Any]:
    with database.connect(autocommit=False) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def first_batch(
    database: Database, environ: dict[str, str], people: list[str], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """The ids that a run claims first, its pages beginning at the table's; the ledger is there."""
    monkeypatch.setattr("random.randrange", lambda _: len(people) - 1)  # all, up to the last one
    with habit_notifier.Store(habit_notifier.Settings.read(environ), Stop()) as store:
        store.open()
    return [user for (user,) in database.rows("SELECT id FROM User ORDER BY id")][:CLAIMED]


def lock_waits(database: Database) -> int:
    sql = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
    return int(database.rows(sql)[0][0])


# --- the connection or the server goes


def at_send(number: int, action: Callable[[], object]) -> Callable[[Request], Answer | None]:
    """A hook for the fake: does something, in another thread, when so many texts have been posted."""
    count = Counter[str]()
    lock = threading.Lock()

    def hook(request: Request) -> None:
        with lock:
            count[request.operation] += 1
            due = request.operation == "send" and count["send"] == number
        if due:
            action()

    return hook


def test_a_killed_connection_costs_nobody_a_text(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, people: list[str]
) -> None:
    killed = []

    def kill_connections() -> None:
        with database.server.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (environ["DB_USER"],))
            for (number,) in cursor.fetchall():
                cursor.execute(f"KILL CONNECTION {number}")
                killed.append(number)

    twilio.hook = at_send(6, kill_connections)
    assert run(environ) == 0
    assert killed
    assert texted(twilio) == people
    assert numbers(database, "sent") == people


def test_a_server_that_is_killed_and_started_again_costs_nobody_a_text(twilio: FakeTwilio) -> None:
    with Server() as server, server.database() as database, ThreadPoolExecutor(1) as threads:
        database.insert_users((f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(USERS))
        twilio.latency = 0.05
        killed = threading.Event()
        twilio.hook = at_send(6, killed.set)
        running = threads.submit(
            run, database.environ() | twilio.environ() | {"SEND_CONCURRENCY": str(IN_FLIGHT), "LOG_LEVEL": "DEBUG"}
        )
        assert killed.wait(15)
        server.kill()
        server.start()
        assert running.result() == 0
        assert len(texted(twilio)) == len({*texted(twilio)}) == USERS
        assert numbers(database, "sent") == texted(twilio)


def test_a_database_that_is_gone_for_good_strands_what_is_in_flight_and_no_more(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(habit_notifier, "DATABASE_PATIENCE", 0.3)
    twilio.latency = 0.1

    def lose_it() -> None:
        proxy.refuse()
        proxy.cut()

    twilio.hook = at_send(6, lose_it)
    assert run(environ | through(proxy)) == Exit.RETRY
    assert said_sent(caplog.text) == len(twilio.book) <= 6 + CLAIMED
    assert "could not be recorded" in caplog.text
    stranded = numbers(database, "sending")
    assert 1 <= len(stranded) <= CLAIMED
    assert {*texted(twilio)} <= {*states(database)}
    proxy.restore()
    the_rest_is_served_and_nobody_twice(database, environ, twilio, people, caplog)


def test_what_was_in_flight_is_recorded_when_the_database_comes_back_in_time(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
) -> None:
    def lose_it() -> None:
        proxy.refuse()
        proxy.cut()
        threading.Timer(1.5, proxy.restore).start()

    twilio.hook = at_send(6, lose_it)
    assert run(environ | through(proxy)) == 0
    assert texted(twilio) == people
    assert numbers(database, "sent") == people


def test_a_text_that_was_not_posted_when_the_database_went_is_released(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The claim's check is lost, for longer than the program is patient: nothing was posted, the row goes."""
    monkeypatch.setattr(habit_notifier, "DATABASE_PATIENCE", 0.1)
    proxy.on_query(CLAIM_CHECK, Verdict.CUT_BEFORE, nth=2)
    proxy.on_query(CLAIM_CHECK, Verdict.CUT_BEFORE, nth=3)
    assert run(environ | through(proxy)) == Exit.RETRY
    assert len(twilio.book) < USERS
    assert numbers(database, "sent") == texted(twilio)
    assert not numbers(database, "sending")
    assert run(environ) == 0
    assert texted(twilio) == people


@pytest.mark.parametrize("state", ["sending", "sent", "uncertain"])
def test_the_row_of_another_run_is_never_taken_for_our_own(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    first_batch: list[Any],
    state: str,
) -> None:
    """It appears after the ledger was read and before the claim is written."""

    def be_quicker(query: str) -> Verdict:
        if CLAIM in query and not states(database):
            database.execute(ANOTHER_ROW, (NOON.date(), state, NOON.replace(tzinfo=None), first_batch[1]))
        return Verdict.PASS

    proxy.hook = be_quicker
    assert run(environ | through(proxy)) == 0
    [(number,)] = database.rows("SELECT phone_number FROM User WHERE id = %s", (first_batch[1],))
    assert texted(twilio) == sorted({*people} - {number})
    assert states(database)[number] == state
