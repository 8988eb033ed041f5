"""At most once: whatever dies, overlaps or gets lost, nobody is texted twice. The fake Twilio's book is the witness."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pymysql
import pytest

import habit_notifier
from habit_notifier import Exit, Job, Ledger, RetryLater
from tests.runs.program import started, starting_at
from tests.runs.statements import CLAIM, CLAIM_CHECK, RECORD, RELEASE
from tests.runs.town import NOON, Town, also, at_send, create_ledger, numbers, variants
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import FakeTwilio, refuse, server_error, slow
from tests.sandbox.proxy import Proxy, Verdict
from tests.sandbox.sockets import wait_for

USERS = 12
PEOPLE = numbers(USERS)
IN_FLIGHT = 4
CLAIMED = IN_FLIGHT + IN_FLIGHT // 2  # those ahead, for whom no thread is free yet, are claimed too
ROUNDS = habit_notifier.OTHERS_ANSWER / sum(habit_notifier.HTTP_TIMEOUT)

ANOTHER_ROW = (
    f"INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at)"
    " SELECT id, %s, phone_number, 'no_logs', %s, 'another', %s FROM User WHERE id = %s"
)


@pytest.fixture
def town(town: Town) -> Town:
    """Everybody is due; Twilio's clock stands where the program's does."""
    town.people(USERS)
    town.twilio.travel_to(NOON)
    town.environ |= {"SEND_CONCURRENCY": str(IN_FLIGHT), "LOG_LEVEL": "DEBUG"}
    return town


def process(environ: dict[str, str], at: datetime = NOON) -> AbstractContextManager[subprocess.Popen[str]]:
    """A whole run in a process of its own."""
    return started(environ, command=starting_at(at, OUTAGE_PATIENCE=60.0))


def kill(program: subprocess.Popen[str]) -> None:
    assert program.poll() is None, "it was to be killed in the middle, but has ended"
    program.kill()
    program.communicate()


def said_sent(output: str) -> int:
    found = re.findall(r"Job completed\. Notifications sent: (\d+)", output)
    return int(found[-1])


# --- runs beside and after each other


def test_a_second_run_the_same_day_sends_nothing(town: Town) -> None:
    assert town.run(NOON) == 0
    assert town.run(NOON.replace(hour=23, minute=59, second=59)) == 0
    assert town.served == PEOPLE
    assert town.totals == (0, 0)
    assert town.run(NOON + timedelta(hours=24)) == 0
    assert town.served == sorted(PEOPLE * 2)


def test_five_runs_at_the_same_moment_send_each_text_once(town: Town) -> None:
    """They start together even in creating the ledger: held by a lock until the last one is there."""
    results = together(town, [NOON] * 5)
    assert town.served == PEOPLE
    assert {code for code, _ in results} == {0}
    assert not [line for _, output in results for line in output.splitlines() if "uncertain" in line]
    assert sum(said_sent(output) for _, output in results) == USERS
    assert town.numbers("sent") == PEOPLE


def test_what_another_run_has_on_its_way_is_waited_for_until_it_is_answered_or_released(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "OTHERS_ANSWER", 15.0)
    create_ledger(town.database)
    for user in town.ids:
        town.sql(ANOTHER_ROW, (NOON.date(), "sending", NOON.replace(tzinfo=None), user))

    def answer() -> None:
        town.sql(f"DELETE FROM {LEDGER} WHERE user_id = 1")
        town.sql(f"UPDATE {LEDGER} SET state = 'sent', finished_at = claimed_at")

    asked: list[float] = []
    monkeypatch.setattr(Job, "history", also(Job.history, before=lambda: asked.append(time.monotonic())))
    threading.Timer(1.6, answer).start()
    assert town.run() == Exit.DONE
    assert len(asked) < 8  # not without a pause
    assert town.totals == (1, 0)
    assert town.texted == PEOPLE[:1]
    assert town.said(f"sent 1, already handled today {USERS - 1}")


@pytest.mark.usefixtures("from_the_first")
@pytest.mark.constants(OTHERS_ANSWER=15.0)
def test_whom_yet_another_run_claims_after_they_were_asked_about_once_more_is_waited_for_again(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was let go by the first, and waits here for a thread meanwhile."""
    last = CLAIMED + 2
    town.sql("DELETE FROM User WHERE id > %s", (last,))
    create_ledger(town.database)
    day, now = NOON.date(), NOON.replace(tzinfo=None)
    for user in town.ids:
        town.sql(ANOTHER_ROW, (day, "sending", now, user))
    lets_go = also(Job.once_more, before=lambda: town.sql(f"DELETE FROM {LEDGER}"))
    monkeypatch.setattr(Job, "once_more", lets_go)

    def claim_the_last() -> None:
        town.sql(ANOTHER_ROW, (day, "sending", now, last))
        sent = f"UPDATE {LEDGER} SET state = 'sent', finished_at = claimed_at WHERE user_id = {last}"
        threading.Timer(2.0, town.sql, [sent]).start()

    town.twilio.hook = at_send(1, claim_the_last)
    all_answer = also(Job.claim_and_post, after=lambda: time.sleep(0.3))  # more threads are free then than users wait
    monkeypatch.setattr(Job, "claim_and_post", all_answer)
    assert town.run() == Exit.DONE
    assert town.totals == (last - 1, 0)
    assert town.said(f"sent {last - 1}, already handled today 1")


@pytest.mark.constants(OTHERS_ANSWER=ROUNDS * 3.4)
def test_another_run_has_all_its_answers_while_it_is_waited_for(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of what it has claimed waits for a thread, and so for two answers of a Twilio that is slow."""
    town.sql(f"DELETE FROM User WHERE id > {CLAIMED}")
    town.twilio.script(then=slow(2.0))
    monkeypatch.setattr("random.uniform", lambda *_: 0.2)
    with started(town.environ, command=starting_at(NOON, HTTP_TIMEOUT=(0.4, 3.0))) as another:
        wait_for(lambda: len(town.twilio.book) >= IN_FLIGHT)
        assert town.run() == Exit.DONE
        assert another.wait(10) == Exit.DONE
    assert town.totals == (0, 0)
    assert town.served == PEOPLE[:CLAIMED]


def together(town: Town, starts: list[datetime]) -> list[tuple[int, str]]:
    """Exit code and log of processes that begin their work at the same moment, with these times on their clocks."""
    town.twilio.latency = 0.02
    with ThreadPoolExecutor(len(starts)) as threads, holding(town.database, "Log", len(starts)) as let_go:
        runs = [threads.submit(finish, town.environ, at) for at in starts]
        let_go()
        return [each.result() for each in runs]


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
    sql = "SELECT id FROM information_schema.processlist WHERE db = %s AND state LIKE '%%metadata lock'"
    return len(database.rows(sql, (database.name,)))


# --- kill -9; the fault runs kill at every other statement, and before and after each


@pytest.mark.parametrize(
    ("statement", "verdict", "sent"),
    [(CLAIM, Verdict.HANG_AFTER, False), (RECORD, Verdict.HANG_BEFORE, True), (RELEASE, Verdict.HANG_BEFORE, False)],
    ids=["claimed", "before the record", "before the release"],
)
def test_nobody_is_texted_twice_after_a_kill_at_a_statement(
    town: Town, proxy: Proxy, statement: str, verdict: Verdict, sent: bool
) -> None:
    town.twilio.latency = 0.3  # so that the first four come back together
    if statement == RELEASE:  # what was claimed is surely not sent
        town.twilio.script(then=refuse(70051, 403))
    stopped = proxy.on_query(statement, verdict)
    with process(town.environ | proxy.environ()) as program:
        assert stopped.happened.wait(15)
        if sent:  # one or more of the four had come back, and the threads go on
            wait_for(lambda: len(town.twilio.book) == len(town.states))
        kill(program)
    town.twilio.script()
    claimed = len(town.states)
    assert 1 <= claimed <= CLAIMED  # the pages start anywhere: the first one may be small
    assert len(town.twilio.book) == (claimed if sent else 0)
    assert len(town.numbers("sending")) == claimed
    the_rest_is_served_and_nobody_twice(town)


def test_nobody_is_texted_twice_after_a_kill_between_post_and_answer(town: Town) -> None:
    town.twilio.script(then=slow(30))
    with process(town.environ) as program:
        wait_for(lambda: len(town.twilio.book) == IN_FLIGHT)
        kill(program)
    town.twilio.script()
    assert IN_FLIGHT <= len(town.numbers("sending")) <= CLAIMED
    the_rest_is_served_and_nobody_twice(town)


def the_rest_is_served_and_nobody_twice(town: Town) -> None:
    """Three more runs: everybody but those in doubt has one text; those are reported, and served the next day.

    A run that sends nothing while somebody's text of this Job is in doubt does not end green.
    """
    town.twilio.latency = 0.0
    stranded = town.numbers("sending")
    before = town.served
    assert len(stranded) <= CLAIMED
    cut_off = "another run is texting this user, or was cut off"
    for minutes, count, why in (
        (1, "uncertain", cut_off),
        (2, "uncertain", cut_off),
        (40, "uncertain earlier today", "it may have been sent"),
    ):
        code = town.run(NOON + timedelta(minutes=minutes))
        in_doubt = stranded and not town.texts and why == cut_off
        assert code == (Exit.RETRY if in_doubt else Exit.DONE)
        assert town.served == sorted({*PEOPLE} - {*stranded} | {*before})
        assert town.said(f"gets no text, {count}: {why}") == len(stranded)
        assert f", {count} {len(stranded)}\n" in town.text or not stranded
    assert max(Counter(town.served).values(), default=0) <= 1
    today = town.served
    assert town.run(NOON + timedelta(days=1)) == 0
    assert town.served == sorted(today + PEOPLE)


@pytest.mark.usefixtures("from_the_first")
def test_whom_another_run_holds_is_named_though_the_run_ends_before_it_asks_once_more(town: Town) -> None:
    create_ledger(town.database)
    town.database.insert_row(town.ids[0], NOON, state="sending", finished_at=None)
    town.twilio.script(then=refuse(70051, 403))
    assert town.run() == Exit.ACT
    assert town.said("Due 0 (ID: 1) gets no text, uncertain: another run is texting this user") == 1


# --- the spacing of two texts, whatever the local days are


MARQUESAS = datetime(2026, 5, 12, 9, 0, tzinfo=UTC)  # 23:30 there
SPACING = timedelta(hours=11, minutes=30)
SECOND = timedelta(seconds=1)


@pytest.fixture
def islands(town: Town) -> Town:
    town.sql("UPDATE User SET time_zone = 'Pacific/Marquesas'")
    return town


def test_a_new_local_day_brings_no_text_before_eleven_and_a_half_hours_are_over(islands: Town) -> None:
    assert islands.run(MARQUESAS) == 0
    assert islands.run(MARQUESAS + timedelta(minutes=30)) == 0  # the next day there
    assert islands.served == PEOPLE
    assert islands.said(f"deferred {USERS}")
    assert len(islands.states) == USERS  # the deferred claims are gone: a later run that day may text
    for after, served in ((SPACING - SECOND, PEOPLE), (SPACING, sorted(PEOPLE * 2))):
        assert islands.run(MARQUESAS + after) == 0
        assert islands.served == served


@pytest.mark.parametrize("seconds", [15, 280])
def test_a_text_that_twilio_may_have_taken_after_midnight_is_not_followed_by_another_that_day(
    islands: Town, seconds: int
) -> None:
    """No answer came, and we gave up before midnight."""
    midnight = MARQUESAS + timedelta(minutes=30)
    first, *others = PEOPLE
    islands.twilio.script(server_error(500, accepted=True), to=first)
    for after in (timedelta(seconds=-seconds), timedelta(hours=13)):
        assert islands.run(midnight + after) == 0
    assert islands.said("deferred 1")
    assert islands.served == sorted([first, *others * 2])


def test_two_runs_at_once_on_either_side_of_a_local_midnight_text_nobody_twice(islands: Town) -> None:
    """And whoever got none, since each of two runs gave way to the other, is not forgotten: a run asks for a retry."""
    midnight = MARQUESAS + timedelta(minutes=30)
    islands.twilio.travel_to(midnight)
    islands.twilio.tells_date = False  # else those whose clock is a minute off would text nobody
    results = together(islands, [midnight - timedelta(minutes=1), midnight] * 2)
    codes = {code for code, _ in results}
    assert codes <= {0, 1}
    assert islands.served == PEOPLE or 1 in codes
    assert max(Counter(islands.served).values(), default=0) <= 1
    assert sum(said_sent(output) for _, output in results) == len(islands.twilio.book)


def test_what_another_run_wrote_after_this_one_began_is_not_of_the_future(
    islands: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight = MARQUESAS + timedelta(minutes=30)
    create_ledger(islands.database)
    for user in islands.ids:
        islands.database.insert_row(user, midnight + timedelta(minutes=2))
    clock = [midnight - timedelta(minutes=4)]
    later = also(Ledger.history, before=lambda: clock.append(midnight + timedelta(minutes=3)))
    monkeypatch.setattr(Ledger, "history", later)
    assert islands.run(lambda: clock[-1]) == 0
    assert islands.said(f"deferred {USERS}")
    assert not islands.served


def test_who_gave_way_to_another_run_is_named_once_though_the_run_then_fails(
    islands: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_ledger(islands.database)
    theirs = list(islands.ids)

    def claimed_meanwhile() -> None:
        while theirs:
            islands.database.insert_row(theirs.pop(), MARQUESAS - timedelta(days=2), finished_at=MARQUESAS)

    def lost(*_: object) -> None:
        raise RetryLater("the database is gone")

    monkeypatch.setattr(Ledger, "claim", also(Ledger.claim, before=claimed_meanwhile))
    monkeypatch.setattr(Ledger, "record", lost)
    assert islands.run(MARQUESAS) == Exit.RETRY
    deferred = islands.said("gets no text, deferred: another text may have been posted as late as")
    assert deferred
    assert islands.said(f" users, deferred {deferred}") == 1
    assert not islands.said(", not sent ")


@pytest.mark.parametrize(
    ("zone", "changes"),
    [("America/New_York", {"DAY_STARTS_AT": "06:00"}), ("Pacific/Honolulu", {})],
    ids=["days start later", "moved west"],
)
def test_whose_day_comes_once_more_is_named_and_served_the_day_after(
    islands: Town, zone: str, changes: dict[str, str]
) -> None:
    """At 9:00 UTC it is night in New York. Nobody is texted twice for a day, but not a whole country without a word."""
    islands.sql("UPDATE User SET time_zone = 'America/New_York'")
    assert islands.run(MARQUESAS) == 0
    islands.sql("UPDATE User SET time_zone = %s", (zone,))
    assert islands.run(MARQUESAS + timedelta(days=1), LOG_LEVEL="INFO", **changes) == 0
    assert islands.served == PEOPLE
    assert islands.said("deferred: the row of 2026-05-12 is that of a text before that day: zone or") == USERS
    assert islands.run(MARQUESAS + timedelta(days=2), **changes) == 0
    assert islands.texted == PEOPLE


@variants({"id_type": "CHAR(36)"})
@pytest.mark.parametrize("ids", ["id", "CONCAT('ana-', LEFT(id, 18), '@example.com')"])
def test_ids_that_are_written_anew_in_capitals_are_those_of_the_same_people(islands: Town, ids: str) -> None:
    """To the server's collation they are one; so no text of a few minutes ago, and no refusal, is forgotten."""
    islands.sql(f"UPDATE User SET id = {ids.replace('%', '%%')}")
    assert islands.run(MARQUESAS) == 0
    islands.sql("UPDATE User SET id = UPPER(id)")
    assert islands.run(MARQUESAS + timedelta(minutes=20)) == 0
    assert islands.said(f"already handled today {USERS}")
    assert islands.run(MARQUESAS + timedelta(minutes=35)) == 0  # the next day there
    assert islands.said(f"deferred {USERS}")
    assert islands.served == PEOPLE


@pytest.mark.parametrize("off", [-290, -10, 10, 290])
def test_a_clock_that_is_a_little_off_takes_no_day_for_another(islands: Town, off: int) -> None:
    """Else a text at 0:00:03 counts as one of the day before, and the day's own comes later."""
    midnight = MARQUESAS + timedelta(minutes=30)
    islands.twilios = midnight + timedelta(seconds=-3 if off > 0 else 3)
    assert islands.run(islands.twilios + timedelta(seconds=off)) == 1
    why = "its local day is over, or this node's clock is too wrong to tell"
    assert sum(line.endswith(why) for line in islands.lines("WARNING")) == USERS
    assert islands.rows("*") == []
    islands.twilios += timedelta(seconds=2 * abs(off))
    assert islands.run(islands.twilios + timedelta(seconds=off)) == 0
    islands.twilios = None
    assert islands.run(midnight + timedelta(hours=13)) == 0
    assert islands.served == PEOPLE


def test_two_nodes_with_clocks_nine_minutes_apart_bar_nobody_at_midnight(islands: Town) -> None:
    """Each is as near to Twilio's as it must be, which does not tell."""
    midnight = MARQUESAS + timedelta(minutes=30)
    islands.twilio.tells_date = False
    assert islands.run(midnight + timedelta(minutes=3, seconds=30)) == 0
    assert islands.run(midnight - timedelta(minutes=4, seconds=30)) == 0
    assert islands.said(f"deferred {USERS}")
    assert not islands.said("DELETE")
    assert islands.served == PEOPLE


# --- lost answers


@pytest.mark.parametrize("verdict", [Verdict.CUT_BEFORE, Verdict.CUT_AFTER])
@pytest.mark.parametrize("statement", [CLAIM, CLAIM_CHECK, RECORD])
def test_a_lost_answer_of_claim_or_record_neither_loses_nor_repeats_a_text(
    town: Town, proxy: Proxy, statement: str, verdict: Verdict
) -> None:
    lost = [proxy.on_query(statement, verdict, nth=nth) for nth in (1, 3)]
    assert town.run(**proxy.environ()) == 0
    assert [rule.hits for rule in lost] == [1, 1]
    assert town.served == town.numbers("sent") == PEOPLE


@pytest.mark.parametrize("verdict", [Verdict.CUT_BEFORE, Verdict.CUT_AFTER])
def test_a_lost_answer_of_the_release_leaves_no_row_behind(town: Town, proxy: Proxy, verdict: Verdict) -> None:
    town.twilio.script(then=refuse(70051, 403))
    lost = proxy.on_query(RELEASE, verdict)
    assert town.run(**proxy.environ()) == Exit.ACT
    assert lost.hits == 1
    assert not town.states
    town.twilio.script()
    assert town.run() == 0
    assert town.served == PEOPLE


# --- locks


def test_a_deadlock_is_repeated(town: Town, first_batch: list[Any]) -> None:
    """The other transaction has changed more, so that the server makes ours the victim."""
    first, *_, last = first_batch
    with ThreadPoolExecutor(1) as threads, transaction(town.database) as other:
        other.execute("INSERT INTO Habit (user_id, name) SELECT id, 'Weight' FROM User")
        other.execute("INSERT INTO Habit (user_id, name) SELECT user_id, 'Weight' FROM Habit")
        other.execute(ANOTHER_ROW, (NOON.date(), "sending", NOON.replace(tzinfo=None), last))
        running = threads.submit(town.run)
        lock_waits = "SELECT 1 FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        wait_for(lambda: town.sql(lock_waits), every=0.2)  # the table behind is a copy, renewed when left alone
        other.execute(f"SELECT * FROM {LEDGER} WHERE user_id = %s FOR UPDATE", (first,))
        other.connection.rollback()
        assert running.result() == 0
    assert town.said("a deadlock (error 1213")
    assert town.served == PEOPLE


@pytest.mark.constants(STATEMENT_LIMIT=", innodb_lock_wait_timeout = 1")
def test_a_lock_wait_timeout_is_repeated(town: Town, proxy: Proxy, first_batch: list[Any]) -> None:
    *_, last = first_batch
    claims = proxy.on_query(CLAIM, Verdict.PASS, nth=2)
    with ThreadPoolExecutor(1) as threads, transaction(town.database) as other:
        other.execute(f"SELECT * FROM {LEDGER} WHERE user_id = %s FOR UPDATE", (last,))
        running = threads.submit(lambda: town.run(**proxy.environ()))
        wait_for(lambda: claims.seen == 2)
        other.connection.rollback()
        assert running.result() == 0
    assert town.said("another transaction holds a lock, or a backup locks the table: see SHOW PROCESSLIST (error 1205")
    assert town.served == PEOPLE


@contextmanager
def transaction(database: Database) -> Iterator[Any]:
    with database.connect(autocommit=False) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def first_batch(town: Town, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ids that a run claims first, its pages beginning at the table's; the ledger is there."""
    monkeypatch.setattr("random.randrange", lambda _: USERS - 1)  # all, up to the last one
    create_ledger(town.database)
    return town.ids[:CLAIMED]


# --- pages that are read ahead


def test_whoever_another_run_texts_after_their_page_was_read_is_texted_once(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 2)
    fill, first = habit_notifier.Job.fill, iter([True])

    def fill_and_be_overtaken(job: habit_notifier.Job, pages: Iterator[Any]) -> bool:
        more = fill(job, pages)
        if next(first, False):  # the first page is judged, the next two are being read
            assert town.run() == 0
            assert town.said("Notifications sent: 12,")
        return more

    monkeypatch.setattr(habit_notifier.Job, "fill", fill_and_be_overtaken)
    assert town.run() == 0
    assert town.said("already handled today 12")
    assert town.served == PEOPLE


@pytest.mark.constants(PAGE_USERS=2)
def test_a_run_has_three_connections_and_leaves_none(town: Town) -> None:
    seen: list[int] = []
    town.twilio.hook = lambda _request: seen.append(len(connections(town)))
    assert town.run() == 0
    assert max(seen) == 3
    wait_for(lambda: not connections(town))


def connections(town: Town) -> list[int]:
    """Those of the program to the server."""
    sql = "SELECT id FROM information_schema.processlist WHERE user = %s"
    return [number for (number,) in town.sql(sql, (town.environ["DB_USER"],))]


# --- the connection or the server goes


def test_a_killed_connection_costs_nobody_a_text(town: Town) -> None:
    killed = []

    def kill_connections() -> None:
        for number in connections(town):
            with suppress(pymysql.err.OperationalError):  # a reader's may have ended meanwhile
                town.sql(f"KILL CONNECTION {number}")
                killed.append(number)

    town.twilio.hook = at_send(6, kill_connections)
    assert town.run() == 0
    assert killed
    assert town.served == town.numbers("sent") == PEOPLE


LAZY = ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-log-at-timeout=2700"]


@pytest.mark.usefixtures("throwaway")
@pytest.mark.parametrize("options", [[], LAZY], ids=["commits kept", "commits lost"])
def test_a_server_that_is_killed_and_started_again_costs_nobody_a_text(
    twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, options: list[str]
) -> None:
    """Rows whose commits were lost with it are written again."""
    with Server(options=options) as server, server.database() as database, ThreadPoolExecutor(1) as threads:
        town = Town(database, twilio, caplog)
        town.people(USERS)
        assert town.run(ONLY_USERS=999) == 0  # makes the ledger
        assert town.said("innodb_flush_log_at_trx_commit is 0") == bool(options)
        gone = threading.Event()
        with Proxy((server.host, server.port)) as proxy:
            twilio.hook = at_send(7, also(proxy.lose, after=gone.set))
            way = proxy.environ() if options else {}  # what is lost must not be written again before it is looked for
            running = threads.submit(lambda: town.run(SEND_CONCURRENCY=2, **way))
            assert gone.wait(30)
            server.kill()
            server.start()
            assert len(town.states) < len(twilio.book) or not options, "nothing was lost: this proves nothing"
            proxy.restore()
            assert running.result() == 0
        twilio.hook = None
        assert town.served == PEOPLE
        told = sorted((message.to, "sent", message.sid) for message in twilio.book)
        assert sorted(town.rows("phone_number, state, message_sid")) == told
        assert town.run() == 0
        assert town.served == PEOPLE


@pytest.mark.constants(DATABASE_PATIENCE=0.3)
def test_a_database_that_is_gone_for_good_strands_what_is_in_flight_and_no_more(town: Town, proxy: Proxy) -> None:
    town.twilio.latency = 0.1
    town.twilio.hook = at_send(6, proxy.lose)
    assert town.run(**proxy.environ()) == Exit.RETRY
    assert town.totals[0] == len(town.twilio.book) <= 6 + CLAIMED
    assert town.said("could not be recorded")
    stranded = town.numbers("sending")
    assert 1 <= len(stranded) <= CLAIMED
    assert {*town.served} <= {*town.states}
    unsent = {*stranded} - {*town.served}
    deletes = [line.partition(": ")[2] for line in town.log if "DELETE" in line]
    assert deletes or not unsent  # one may be printed for claims that never reached the ledger
    for delete in deletes:  # as an operator pastes it
        town.sql(delete)
    assert {*town.numbers("sending")} == {*stranded} - unsent
    the_rest_is_served_and_nobody_twice(town)


@pytest.mark.constants(DATABASE_PATIENCE=0.1)
def test_a_text_that_was_not_posted_when_the_database_went_is_released(town: Town, proxy: Proxy) -> None:
    """The claim's check is lost, for longer than the program is patient: nothing was posted, the row goes."""
    proxy.on_query(CLAIM_CHECK, Verdict.CUT_BEFORE, nth=2)
    proxy.on_query(CLAIM_CHECK, Verdict.CUT_BEFORE, nth=3)
    assert town.run(**proxy.environ()) == Exit.RETRY
    assert len(town.twilio.book) < USERS
    assert town.numbers("sent") == town.served
    assert not town.numbers("sending")
    assert town.run() == 0
    assert town.served == PEOPLE


def appearing(town: Town, user: Any, day: date, state: str) -> Callable[[str], Verdict]:
    """A hook for the proxy: another run's row, after the ledger was read and before the claim is written."""

    def be_quicker(query: str) -> Verdict:
        if CLAIM in query and not town.states:
            town.sql(ANOTHER_ROW, (day, state, NOON.replace(tzinfo=None), user))
        return Verdict.PASS

    return be_quicker


@pytest.mark.parametrize("state", ["sending", "sent", "uncertain"])
def test_the_row_of_another_run_is_never_taken_for_our_own(
    town: Town, proxy: Proxy, first_batch: list[Any], state: str
) -> None:
    proxy.hook = appearing(town, first_batch[1], NOON.date(), state)
    assert town.run(**proxy.environ()) == 0
    [(number,)] = town.sql("SELECT phone_number FROM User WHERE id = %s", (first_batch[1],))
    assert town.served == sorted({*PEOPLE} - {number})
    assert town.states[number] == state


@pytest.mark.parametrize(("state", "code", "count"), [("sent", 0, "deferred 1"), ("sending", 1, "not tried 1")])
def test_a_claim_that_gives_way_to_the_text_of_another_day_leaves_no_row(
    town: Town, proxy: Proxy, first_batch: list[Any], state: str, code: int, count: str
) -> None:
    yesterday = NOON.date() - timedelta(days=1)
    proxy.hook = appearing(town, first_batch[1], yesterday, state)
    assert town.run(**proxy.environ()) == code
    assert town.said(count)
    [(number,)] = town.sql("SELECT phone_number FROM User WHERE id = %s", (first_batch[1],))
    assert town.served == sorted({*PEOPLE} - {number})
    assert (number, state, yesterday) in town.rows("phone_number, state, local_day")
    assert len(town.rows("*")) == USERS
