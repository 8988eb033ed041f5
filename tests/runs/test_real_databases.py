"""Databases as they are: switched over, slow, without their commits, full of odd bytes, set up by somebody else.

Whatever one of them does, nobody is texted twice, everybody who is due is texted or named, and a person learns what to
do.
"""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import Mock

import pymysql
import pytest

import habit_notifier
from habit_notifier import Exit, Job, Report, Settings, Stop, Tracker, utc_now
from tests.runs.statements import CLAIM, PAGE, SLICE
from tests.runs.test_secrets import Impostor
from tests.runs.town import NOON, Town, also, at_probe, at_send, create_ledger, variants
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import FakeTwilio, Request, refuse
from tests.sandbox.proxy import Proxy
from tests.sandbox.sockets import SocketServer, wait_for

DAY = timedelta(days=1)
USERS = 10


@pytest.fixture
def people(town: Town) -> list[str]:
    """The numbers of some users, all of them due."""
    return town.people(USERS)


@pytest.fixture(scope="module")
def own(throwaway: None) -> Iterator[Server]:  # noqa: ARG001
    """A server that a test may make read-only as a whole."""
    with Server() as running:
        yield running


# --- a second text


def test_a_zone_that_is_corrected_brings_no_second_text_on_that_local_day(town: Town) -> None:
    town.database.insert_user("Mover", "+12025550001", "Asia/Tokyo")
    afternoon = datetime(2026, 5, 12, 15, tzinfo=UTC)  # Wednesday in Tokyo, Tuesday in New York
    assert town.run(afternoon) == 0
    town.sql("UPDATE User SET time_zone = 'America/New_York'")
    assert town.run(afternoon + timedelta(hours=12)) == 0  # still Tuesday in New York
    assert len(town.twilio.book) == 1
    assert town.said("deferred")
    assert town.run(afternoon + timedelta(hours=14)) == 0  # Wednesday: the ledger has that day, as Tokyo's
    assert len(town.twilio.book) == 1
    assert town.said("deferred: the row of 2026-05-13 is that of a text before that day")
    assert town.run(afternoon + timedelta(hours=38)) == 0
    assert len(town.twilio.book) == 2


def test_an_id_that_comes_twice_is_named_and_served_once(
    town: Town, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when User is a view over a join that somebody has two rows in."""
    town.sql("RENAME TABLE User TO Member")
    town.sql("CREATE TABLE Device (member_id INT)")
    town.sql("INSERT INTO Device SELECT id FROM Member")
    town.sql("INSERT INTO Device SELECT id FROM Member WHERE id IN (3, 4)")
    town.sql("CREATE VIEW User AS SELECT m.* FROM Member m JOIN Device d ON d.member_id = m.id")
    for page in (1, 2, 3, 1_000):
        monkeypatch.setattr(habit_notifier, "PAGE_USERS", page)
        assert town.run() == 0
        assert town.served == people
        said = [line for line in town.lines("WARNING") if "served once" in line]
        assert {line.split(" (")[0] for line in said} == {"User Due 2", "User Due 3"}
        assert all("stands 2 times in User" in line for line in said)


@variants({"id_type": "CHAR(36)", "collation": "utf8mb4_unicode_ci"})
def test_ids_that_are_one_to_the_ledger_free_no_claim_of_each_other(town: Town) -> None:
    """As when User is a view over a union, and its ids differ in case alone."""
    town.user("+12025550000")
    town.sql("RENAME TABLE User TO Member")
    same = "id, name, phone_number, time_zone FROM Member"
    town.sql(f"CREATE VIEW User AS SELECT {same} UNION ALL SELECT {same.replace('id', 'UPPER(id)', 1)}")
    claimed = []
    town.twilio.hook = lambda r: claimed.append(town.states) if r.operation == "send" else None
    assert town.run() == Exit.DONE
    assert len(town.served) == 1
    assert claimed == [{"+12025550000": "sending"}]  # a crash would leave what keeps the next run from posting again
    assert town.said("already handled today 1")  # the other spelling


# --- somebody lost


@pytest.mark.constants(PAGE_USERS=3)
def test_who_signs_up_or_leaves_during_a_run_hides_nobody(town: Town, people: list[str]) -> None:
    def come_and_go() -> None:
        town.sql("DELETE FROM User WHERE id IN (4, 8)")
        town.database.insert_users((f"New {n}", f"+1303555{n:04}", "UTC") for n in range(4))

    town.twilio.hook = at_send(1, come_and_go)
    assert town.run(SEND_CONCURRENCY="1") == 0
    stayed = {*people} - {people[3], people[7]}
    assert stayed <= {*town.served}
    assert max(Counter(town.served).values()) == 1


@pytest.mark.usefixtures("from_the_first")
@pytest.mark.constants(PAGE_USERS=3)
def test_a_deadline_between_two_pages_ends_with_a_retry_though_the_counts_agree(town: Town, people: list[str]) -> None:
    now = [NOON]

    def be_late() -> None:
        town.sql("DELETE FROM User WHERE id > 3")
        now.append(NOON + timedelta(seconds=1_501))

    town.twilio.hook = at_send(3, be_late)
    assert town.run(lambda: now[-1], SEND_CONCURRENCY=1) == Exit.RETRY
    assert "RUN_DEADLINE (1500 s) is reached" in town.problem
    assert len(town.twilio.book) == 3 < len(people)


ODD_BYTES = {"mariadb": ("utf8mb4", "EDA0BD"), "mysql": ("ucs2", "D83D")}  # half of a surrogate pair


def test_bytes_that_are_no_text_spoil_their_own_row_alone(town: Town) -> None:
    charset, odd = ODD_BYTES[town.database.server.kind]
    for column in ("name", "phone_number", "time_zone"):
        town.sql(f"ALTER TABLE User MODIFY {column} VARCHAR(64) CHARACTER SET {charset}")
    people = town.people(4)
    for user, column in enumerate(("name", "phone_number", "time_zone"), start=1):
        town.sql(f"UPDATE User SET {column} = _{charset} X'{odd}' WHERE id = {user}")
    assert town.run() == 0
    assert town.served == [people[0], people[3]]
    skipped = [line for line in town.lines("WARNING") if "gets no text" in line]
    assert len(skipped) == 2
    assert "(ID: 2) gets no text, skipped (phone number)" in "".join(skipped)
    assert "(ID: 3) gets no text, skipped (time zone)" in "".join(skipped)


@variants({"id_type": "BINARY(16)"})
def test_ids_in_binary_are_shown_as_hexadecimal_digits(town: Town) -> None:
    ids = [bytes([n]) * 16 for n in (0x00, 0x27, 0x5C, 0x80, 0xED, 0xFF)]  # among them a quote and a backslash
    for n, user in enumerate(ids):
        row = "INSERT INTO User (id, name, phone_number, time_zone) VALUES (%s, 'Due', %s, 'UTC')"
        town.sql(row, (user, f"+1202555{n:04}"))
    assert town.run(ONLY_USERS=ids[4].hex().upper()) == 0
    assert town.served == ["+12025550004"]
    assert town.said(f"User Due (ID: {ids[4].hex()}) needs notification")
    assert [town.run(), town.run()] == [0, 0]
    assert len(town.twilio.book) == len({*town.served}) == len(ids)
    assert {user for (user,) in town.sql(f"SELECT user_id FROM {LEDGER}")} == {*ids}


# --- slow


LIMITS = {"mariadb": "max_statement_time", "mysql": "max_execution_time DIV 1000"}


def test_the_server_ends_a_statement_and_its_wait_for_a_lock_before_the_client_gives_it_up(town: Town) -> None:
    names = LIMITS[town.database.server.kind], "lock_wait_timeout", "innodb_lock_wait_timeout"
    limits, stop = f"SELECT {', '.join(f'@@SESSION.{name}' for name in names)}", Stop()
    with Job(Settings.read(town.environ), Report(), utc_now, stop).database as database:
        for _ in range(2):  # on a new connection, too
            assert database.run(limits) == [(8, 8, 4)]
            database.close()
        stop.request()
        assert database.run(limits) == [(2, 2, 1)]
    assert habit_notifier.DATABASE_LIMIT < habit_notifier.DATABASE_TIMEOUT
    assert habit_notifier.LAST_LIMIT < habit_notifier.LAST_TIMEOUT


@pytest.mark.usefixtures("from_the_first")
@pytest.mark.constants(PAGE_USERS=2)
def test_a_run_that_ends_does_not_wait_for_a_page_that_is_read_ahead(
    town: Town, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    habits = town.database.insert_habits(range(1, USERS + 1))
    town.database.insert_logs([(habits[4], NOON - DAY)])
    town.sql("RENAME TABLE Log TO Entry")
    town.sql("CREATE VIEW Log AS SELECT * FROM Entry WHERE SLEEP(6) = 2")
    monkeypatch.setattr(Tracker, "log_doubts", lambda *_: iter(()))
    town.twilio.script(then=refuse(20003, 401), to=people[0])
    assert town.run(SEND_CONCURRENCY=1) == Exit.ACT
    assert town.took < 5
    assert town.said("the credentials were refused")


@pytest.mark.usefixtures("people", "from_the_first")
@pytest.mark.constants(PAGE_USERS=2)
def test_nobody_of_a_page_that_was_read_is_lost_when_the_next_one_cannot_be_asked_for(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute, slices = habit_notifier.Database._execute, itertools.count(1)

    def refuse_the_fourth(database: habit_notifier.Database, sql: str, args: Any) -> list[tuple[Any, ...]]:
        if SLICE in sql and next(slices) > 3:
            raise pymysql.err.OperationalError(3024, "too long")
        return execute(database, sql, args)

    monkeypatch.setattr(habit_notifier.Database, "_execute", refuse_the_fourth)
    assert town.run() == Exit.RETRY
    assert town.said("a statement took too long")
    named = [n for n in range(USERS) if any(f"Due {n} " in line for line in town.log if "Notification" in line)]
    assert named == [0, 1]
    assert town.said("The run ended before the last page: 2 of 10 users were looked at")


def test_an_account_that_may_have_one_connection_is_enough(town: Town, people: list[str]) -> None:
    limit = f"ALTER USER {town.environ['DB_USER']}@'%' WITH MAX_USER_CONNECTIONS "
    town.sql(limit + "1")
    try:
        assert town.run() == 0
    finally:
        town.sql(limit + "0")
    assert town.served == people


IMPATIENT = " /*!50708 , max_execution_time = 150 */ /*M!100101 , max_statement_time = 0.15 */"
SLOW_VIEW = "CREATE VIEW Log AS SELECT * FROM Entry WHERE SLEEP(0.1) = 2"  # reads long, and finds nothing


@pytest.mark.constants(STATEMENT_LIMIT=IMPATIENT)
def test_newest_logs_that_take_too_long_to_read_are_told_and_hold_up_nobody(town: Town, people: list[str]) -> None:
    [habit] = town.database.insert_habits([town.user("")])
    town.database.insert_logs((habit, NOON - n * DAY) for n in range(3))
    town.sql("RENAME TABLE Log TO Entry")
    town.sql(SLOW_VIEW)
    assert town.run() == 0
    assert town.served == people
    assert town.said("WARNING the newest logs could not be read: MySQL: a statement took too long: ") == 1


@pytest.mark.constants(STATEMENT_LIMIT=IMPATIENT)
@pytest.mark.parametrize("everybody", [False, True])
def test_pages_that_take_too_long_are_halved_until_whom_nobody_can_read_is_named(
    town: Town, people: list[str], monkeypatch: pytest.MonkeyPatch, everybody: bool
) -> None:
    """Habit 7 stands for one of a user with millions of logs; or all of them, where no index helps."""
    habits = town.database.insert_habits(range(1, USERS + 1))
    slow = habits if everybody else [7]
    town.database.insert_logs((habit, NOON - day) for habit in slow for day in (DAY, 2 * DAY) for _ in range(3))
    town.sql("RENAME TABLE Log TO Entry")
    town.sql(SLOW_VIEW)
    monkeypatch.setattr(Tracker, "log_doubts", lambda *_: iter(()))
    only = ",".join(str(n + 1) for n in range(USERS))  # of whom it is looked up that they are there
    whom = {"ONLY_USERS": only if everybody else ""}
    assert [town.run(NOON, "--dry-run", **whom), town.run(**whom)] == [Exit.RETRY] * 2
    named = [line for line in town.lines("WARNING") if "gets no text, not tried: MySQL does not read" in line]
    assert len(named) == (USERS if everybody else 1)
    assert everybody or "(ID: 7)" in named[0]
    assert town.run(NOON, "--check") == Exit.DONE
    told = "6 users have logs" if everybody else "1 users have logs"
    assert town.said(f"WARNING users and logs: {told} that MySQL does not read in time, see DEPLOYMENT.md: ") == 1
    assert town.said("users and logs: not all users were looked at") == everybody
    assert "index Log (habit_id, created_at)" in named[0]
    assert town.served == ([] if everybody else [number for number in people if not number.endswith("06")])
    time.sleep(0.3)  # what was read ahead when the run ended has its limit, too
    mine = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s AND command = 'Query'"
    assert town.sql(mine, (town.environ["DB_USER"],)) == [(0,)]


@pytest.mark.constants(STATEMENT_LIMIT=IMPATIENT)
def test_last_logs_that_take_too_long_are_asked_for_fewer_users_at_a_time(
    town: Town, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs 0.1 s of the 0.15 that a statement may take."""
    habits = town.database.insert_habits(range(1, USERS + 1))
    town.database.insert_logs((habit, NOON - 5 * DAY) for habit in habits)
    assert town.run() == 0
    town.sql("RENAME TABLE Log TO Entry")
    town.sql(SLOW_VIEW)
    monkeypatch.setattr(Tracker, "log_doubts", lambda *_: iter(()))
    assert town.run(NOON + DAY, QUIET_AFTER=1) == 0
    assert town.said(f"left in peace (QUIET_AFTER) {USERS}") == 1
    assert town.served == people


def test_a_log_without_an_index_is_warned_of_with_the_statement_to_paste(town: Town) -> None:
    """As some ORMs make it: no foreign key."""
    town.people(1)
    town.sql("DROP TABLE Log")
    town.sql("CREATE TABLE Log (id INT PRIMARY KEY, habit_id INT, created_at DATETIME)")
    assert town.run() == 0
    [warning] = [line for line in town.lines("WARNING") if "no index" in line]
    town.sql(warning.partition(": ")[2].removesuffix(";"))
    assert town.run() == 0
    assert not [line for line in town.lines("WARNING") if "no index" in line]


# --- away for a while


@pytest.mark.parametrize("patience", [30.0, 0.5])
def test_a_switch_over_in_mid_run_is_waited_for_and_asks_for_a_retry_at_worst(
    own: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(habit_notifier, "DATABASE_PATIENCE", patience)
    with own.database() as database:
        town = Town(database, twilio, caplog)
        people = town.people(USERS)
        least = database.least_account(create=True)
        writable = threading.Timer(3, lambda: database.execute("SET GLOBAL read_only = 0"))

        def switch_over() -> None:
            database.execute("SET GLOBAL read_only = 1")
            writable.start()

        twilio.hook = at_send(4, switch_over)
        in_time = patience > 3
        assert town.run(**least, SEND_CONCURRENCY=2) == (Exit.DONE if in_time else Exit.RETRY)
        assert sum(town.totals) + town.unseen == USERS
        assert "as in a switch-over: DB_HOST must lead to the new primary" in town.text
        assert not town.said("set DB_HOST to the primary")  # which it was a moment ago
        writable.join()
        assert town.run(**least) == Exit.DONE
        assert town.served == people if in_time else len({*town.posted}) == len(town.posted) == USERS
        assert town.counts == {"sent": USERS} if in_time else set(town.counts) <= {"sent", "sending"}


@pytest.mark.constants(STATEMENT_LIMIT=" /*M!100101 , max_statement_time = 0.3 */")
def test_a_table_that_is_locked_in_mid_run_is_waited_for(town: Town, people: list[str]) -> None:
    """As by a backup. MariaDB ends a write that takes too long, too."""
    with town.database.connect() as backup, backup.cursor() as cursor:

        def lock() -> None:
            cursor.execute(f"LOCK TABLES {LEDGER} READ")
            threading.Timer(1.5, lambda: cursor.execute("UNLOCK TABLES")).start()

        town.twilio.hook = at_send(4, lock)
        assert town.run(SEND_CONCURRENCY=2) == 0
    assert town.served == people
    assert town.counts == {"sent": USERS}


@pytest.mark.constants(STATEMENT_LIMIT=", lock_wait_timeout = 1", DATABASE_PATIENCE=0.5)
def test_a_claim_that_waits_for_a_backup_is_not_made_after_the_run(town: Town, people: list[str]) -> None:
    """By MySQL's server, whose statement limit is for queries alone: nobody would text those whom it claims."""
    create_ledger(town.database)
    with town.database.connect() as backup, backup.cursor() as cursor:

        def lock(_request: Request) -> None:  # Twilio is asked for the time before the first claim
            cursor.execute(f"LOCK TABLES {LEDGER} READ")

        town.twilio.hook = lock
        assert town.run() == Exit.RETRY
        assert "a backup locks the table: see SHOW PROCESSLIST (error 1205" in town.text
        mine = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s"
        wait_for(lambda: town.sql(mine, (town.environ["DB_USER"],)) == [(0,)])
    assert not town.served
    town.twilio.hook = None
    assert town.run() == 0
    assert town.served == people


LATELY_WRITABLE = [1036, 1290, 1792, 1836, 1874, 3989]
AWAY = [1047, 1152, 1158, 1159, 1160, 1161, 1180, 3032, 3100, 3101, 3169, 9001, 9501]


@pytest.mark.parametrize(
    ("number", "statement"),
    [*((number, CLAIM) for number in LATELY_WRITABLE + AWAY), *((number, PAGE) for number in (1047, 1290, 3032))],
)
def test_a_node_that_is_not_ready_for_a_while_is_waited_for(
    town: Town, people: list[str], monkeypatch: pytest.MonkeyPatch, number: int, statement: str
) -> None:
    execute, refusals = habit_notifier.Database._execute, iter(range(2))

    def refuse_twice(database: habit_notifier.Database, sql: str, args: Any) -> list[tuple[Any, ...]]:
        if statement in sql and not re.search("LIMIT 0|WHERE FALSE", sql) and next(refusals, None) is not None:
            raise pymysql.err.OperationalError(number, "not now")
        return execute(database, sql, args)

    monkeypatch.setattr(habit_notifier.Database, "_execute", refuse_twice)
    assert town.run() == 0
    assert town.served == people


@pytest.mark.parametrize(
    ("number", "said", "words"),
    [
        (9006, "connection is locked to hostgroup 0", "its proxy reads elsewhere than it writes: set DB_HOST to the"),
        (1184, "Aborted connection 7 (init_connect command failed)", "its init_connect fails for DB_USER: correct it"),
    ],
    ids=["a proxy that splits reads from writes", "init_connect"],
)
def test_what_keeps_each_connection_from_use_is_told_to_be_mended(
    town: Town, monkeypatch: pytest.MonkeyPatch, number: int, said: str, words: str
) -> None:
    error = pymysql.err.OperationalError(number, said)  # by our SET
    monkeypatch.setattr(habit_notifier.Database, "_execute", Mock(side_effect=error))
    assert town.run() == Exit.ACT
    assert words in town.problem
    assert said in town.problem


@pytest.mark.parametrize("number", [3, 1021, 1026, 1114])
def test_a_disk_that_is_full_is_told_with_what_to_do(
    town: Town, people: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        error = pymysql.err.OperationalError(number, "The table 'HabitNotification' is full")
        patch.setattr(habit_notifier.Database, "_execute", Mock(side_effect=error))
        assert town.run() == Exit.RETRY
        assert "its disk is full, or a table's space: make room there" in town.problem
    assert town.run() == 0
    assert town.served == people


@pytest.mark.constants(OUTAGE_PATIENCE=20.0, DATABASE_PATIENCE=20.0, LATE_PATIENCE=0.0)
@pytest.mark.parametrize("when", [at_probe, partial(at_send, 4)], ids=["before", "after"])
def test_an_outage_in_mid_run_is_waited_for_as_at_the_start(
    town: Town, people: list[str], proxy: Proxy, when: Callable[[Callable[[], object]], Callable[[Request], None]]
) -> None:
    """Also after texts: nobody else knows of them, if the server comes back without its last second."""
    restored = threading.Timer(1.5, proxy.restore)
    town.twilio.hook = when(also(proxy.lose, after=restored.start))
    assert town.run(**proxy.environ()) == 0
    assert restored.finished.is_set()
    assert town.served == town.numbers("sent") == people


@pytest.mark.constants(OUTAGE_PATIENCE=60.0)
def test_an_outage_before_anybody_is_claimed_is_waited_for_until_the_deadline_and_told(
    town: Town, proxy: Proxy
) -> None:
    town.people(1)
    town.twilio.hook = at_probe(proxy.lose)
    assert town.run(**proxy.environ(), RUN_DEADLINE=2) == 1
    assert town.took < 8
    assert town.problem.startswith("MySQL: it cannot be reached: check DB_HOST")
    assert not town.twilio.book


@pytest.mark.constants(OUTAGE_PATIENCE=60.0)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [("DB_PORT", "MySQL: it cannot be reached"), ("TWILIO_API_URL", "Twilio cannot be used: Twilio")],
)
def test_an_outage_that_outlasts_a_short_deadline_is_what_the_run_is_said_to_have_ended_for(
    town: Town, wrong: str, words: str
) -> None:
    away = {"DB_PORT": "1", "TWILIO_API_URL": "http://127.0.0.1:1"}[wrong]
    assert town.run(**{wrong: away}, RUN_DEADLINE=1) == 1
    assert town.problem.startswith(words)


# --- set up by somebody else


GREETINGS = {
    "X protocol": b"\x05\x00\x00\x00\x0b\x08\x05\x1a\x00",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "PostgreSQL": b"E\x00\x00\x00\x0bSFATAL\x00",
    "zeros": bytes(64),
    "half a greeting": b"\x05\x00\x00\x00\x0a9.0.",
    "no protocol that is known": b"\x01\x00\x00\x00\x63",
    "nothing": b"",
}


class Greeter(SocketServer):
    """Says one thing to whoever comes, and closes."""

    def __init__(self, words: bytes) -> None:
        super().__init__()
        self.words = words

    def serve(self, client: socket.socket) -> None:
        client.sendall(self.words)


@pytest.mark.parametrize("greeting", GREETINGS)
def test_whatever_else_answers_at_the_port_is_told_as_a_mistake_of_the_settings(town: Town, greeting: str) -> None:
    with Greeter(GREETINGS[greeting]) as server:
        code = town.run(DB_PORT=server.port)
    assert code == Exit.RETRY if greeting == "SSH" else code in (Exit.RETRY, Exit.ACT)
    assert town.problem.startswith("MySQL: ")
    assert "DB_HOST" in town.problem or "the connection was lost" in town.problem
    assert not town.twilio.requests


def test_an_account_with_a_password_of_old_is_told_to_be_made_anew(town: Town) -> None:
    """MariaDB's mysql_old_password, which PyMySQL knows no more: AttributeError."""
    with Impostor(b"mysql_old_password", b"s") as server:
        assert town.run(DB_PORT=server.port) == Exit.ACT
    assert "a log-in this program lacks" in town.problem


@pytest.mark.parametrize(
    "error",
    [
        # old accounts on a server that was upgraded
        *(pymysql.err.OperationalError(number, "mysql_native_password is not loaded") for number in (1251, 1275, 1524)),
        # what PyMySQL raises for MariaDB's ed25519; few packages of the server bring that plugin
        RuntimeError("'pynacl' package is required for ed25519_password auth method"),
    ],
    ids=["1251", "1275", "1524", "ed25519"],
)
def test_an_account_with_a_way_in_that_is_not_here_is_told_to_be_made_anew(
    town: Town, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pymysql, "connect", Mock(side_effect=error))
        assert town.run() == Exit.ACT
    assert "lacks: use caching_sha2_password, in MariaDB mysql_native_password (" in town.problem


def test_a_state_that_is_not_known_reads_as_uncertain(town: Town, people: list[str]) -> None:
    assert town.run() == 0
    town.sql(f"UPDATE {LEDGER} SET state = 'pending', message_sid = NULL WHERE user_id = 1")
    assert town.run(NOON + timedelta(minutes=10)) == 1  # before it is looked up, and written anew
    assert town.said("User Due 0 (ID: 1) gets no text, uncertain: it may have been sent")
    assert town.run(NOON + timedelta(hours=1)) == 0
    assert town.served == people
    assert town.said("User Due 0 (ID: 1) gets no text, uncertain earlier today: it may have been sent")


def orphan_view(database: Database) -> None:
    """Log is a view whose definer is gone."""
    gone = f"'gone_{database.name}'@'%'"
    for sql in (
        f"CREATE USER {gone}",
        "RENAME TABLE Log TO Entry",
        f"CREATE DEFINER = {gone} SQL SECURITY DEFINER VIEW Log AS SELECT * FROM Entry",
        f"DROP USER {gone}",
    ):
        database.execute(sql)


def other_collation(database: Database) -> None:
    """Habit refers to User in another collation."""
    for table in ("Log", "Habit"):
        database.execute(f"ALTER TABLE {table} DROP FOREIGN KEY {table}_ibfk_1")
    database.execute("ALTER TABLE Habit MODIFY user_id CHAR(36) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")


def views_collations(database: Database) -> None:
    """Log is a view that compares three columns, one of which was altered since."""
    for sql in (
        "RENAME TABLE Log TO Entry",
        *(f"ALTER TABLE Entry ADD {c} VARCHAR(9) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci" for c in "abc"),
        "CREATE VIEW Log AS SELECT id, habit_id, created_at FROM Entry WHERE a IN (b, c, a)",
        "ALTER TABLE Entry MODIFY b VARCHAR(9) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
    ):
        database.execute(sql)


def long_ids(database: Database) -> None:
    """User is a view whose ids are longer than any key."""
    database.execute("RENAME TABLE User TO Person")
    long = "CAST(id AS CHAR(1000)) COLLATE utf8mb4_unicode_ci AS id"
    database.execute(f"CREATE VIEW User AS SELECT {long}, name, phone_number, time_zone FROM Person")


FAULTS: dict[int, tuple[Callable[[Database], object] | None, str, str]] = {
    1170: (long_ids, "", "User.id is too long for a key"),
    1267: (other_collation, "", "different collations: ALTER one of them"),
    1271: (views_collations, "", "different collations: ALTER one of them"),
    1449: (orphan_view, "", "the account that defined a view is gone"),
    1175: (None, ", sql_safe_updates = 1", "sql_safe_updates"),
    1104: (None, ", sql_big_selects = 0, max_join_size = 1", "max_join_size"),
}


def test_a_ledger_that_refuses_rows_by_itself_is_told_to_be_freed_of_that(town: Town) -> None:
    """A retry would text the next ones and know no more of them."""
    people = town.people(1)
    create_ledger(town.database)
    town.sql(f"ALTER TABLE {LEDGER} ADD CONSTRAINT only_open CHECK (state <> 'sent')")
    assert town.run() == Exit.ACT
    assert "own CHECK or partitions refuse a row: take them off the ledger HabitNotification (error" in town.text
    assert town.served == people


def test_a_trigger_that_refuses_ends_the_run_and_has_its_say(town: Town) -> None:
    town.people(1)
    create_ledger(town.database)
    refuse = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no rows on Sundays'"
    town.sql(f"CREATE TRIGGER ours BEFORE INSERT ON {LEDGER} FOR EACH ROW {refuse}")
    assert town.run() == Exit.ACT
    assert "a trigger, or a function that a view calls, refuses" in town.text
    assert "(error 1644: “no rows on Sundays”)" in town.text


def test_an_account_whose_role_is_not_on_is_told_to_switch_it_on(town: Town) -> None:
    account, role = town.database._new_account(), f"role_{town.database.name[-6:]}"
    town.sql(f"CREATE ROLE {role}")
    try:
        town.sql(f"GRANT ALL ON `{town.database.name}`.* TO {role}")
        town.sql(f"GRANT {role} TO %s@'%%'", (account["DB_USER"],))
        assert town.run(**account) == Exit.ACT
        assert "check the name and grants, or SET DEFAULT ROLE" in town.problem
    finally:
        town.sql(f"DROP ROLE {role}")


@variants({"id_type": "CHAR(36)", "collation": "utf8mb4_unicode_ci"})
@pytest.mark.parametrize("number", FAULTS)
def test_what_no_retry_can_mend_is_told_with_what_to_alter(
    town: Town, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    town.people(1)
    fault, session, words = FAULTS[number]
    monkeypatch.setattr(habit_notifier, "STATEMENT_LIMIT", habit_notifier.STATEMENT_LIMIT + session)
    if fault:
        fault(town.database)
    if number == 1175 and town.database.server.kind == "mysql":  # which sees that what is changed goes by a key
        assert town.run() == 0
        return
    assert town.run() == Exit.ACT
    assert words in town.problem
    assert f"error {number}" in town.problem
    assert not town.twilio.requests


def test_an_account_that_wrong_passwords_have_blocked_is_told_to_be_unlocked(town: Town) -> None:
    if mysql := town.database.server.kind == "mysql":
        town.sql(f"ALTER USER '{town.environ['DB_USER']}' FAILED_LOGIN_ATTEMPTS 1 PASSWORD_LOCK_TIME UNBOUNDED")
    else:
        town.sql("SET GLOBAL max_password_errors = 1")
    try:
        for password in ("wrong", "wrong", None):
            code = town.run(**{"DB_PASSWORD": password} if password else {})
    finally:
        if not mysql:
            town.sql("SET GLOBAL max_password_errors = DEFAULT")
    assert code == Exit.ACT
    assert "after wrong passwords: correct DB_PASSWORD, then ALTER USER ... ACCOUNT UNLOCK" in town.problem


def test_an_account_that_must_show_a_certificate_is_not_blamed_on_its_password_alone(town: Town) -> None:
    town.sql(f"ALTER USER '{town.environ['DB_USER']}' REQUIRE X509")
    assert town.run() == Exit.ACT
    assert "without REQUIRE X509" in town.problem


def test_an_account_for_another_host_is_told_with_the_address_that_the_server_sees(town: Town) -> None:
    account = town.environ["DB_USER"]
    town.sql("RENAME USER %s@'%%' TO %s@'192.0.2.7'", (account, account))
    try:
        assert town.run() == Exit.ACT
    finally:
        town.sql("RENAME USER %s@'192.0.2.7' TO %s@'%%'", (account, account))
    said = town.problem
    assert "let the account in from the host it names" in said
    assert "'127.0.0.1'" in said or "'localhost'" in said
    assert account not in said


# --- what stands in the columns


@pytest.mark.parametrize(
    "column", ["latin1", "utf8mb4", "utf16", "ucs2", "utf32", "ascii", "utf8mb4 COLLATE utf8mb4_bin"]
)
@pytest.mark.parametrize("default", ["", "Asia/Tokyo"])
def test_zones_are_told_apart_in_every_character_set(town: Town, column: str, default: str) -> None:
    town.sql(f"ALTER TABLE User MODIFY time_zone VARCHAR(64) CHARACTER SET {column}")
    zones = ["Europe/Berlin", "europe/berlin", "Europe/Berlin  ", " UTC", None, "", "Mars/Base"]
    town.database.insert_users((f"User {n}", f"+1202555{n:04}", zone) for n, zone in enumerate(zones))
    assert town.run(DEFAULT_TIME_ZONE=default) == 0
    assert len(town.twilio.book) == (len(zones) if default else 4)


def test_a_wrong_zone_that_the_default_replaces_is_named_and_an_empty_one_is_not(town: Town) -> None:
    for n, zone in enumerate(("Mars/Base", "Mars/Base", "", None, "UTC")):
        town.database.insert_user(f"User {n}", f"+1202555{n:04}", zone)
    assert town.run(DEFAULT_TIME_ZONE="Europe/Berlin") == 0
    assert len(town.twilio.book) == 5
    [said] = [line for line in town.lines("WARNING") if "DEFAULT_TIME_ZONE" in line]
    assert said.startswith("2 users have the unknown zone “Mars/Base”")


def test_one_persons_logs_of_tomorrow_are_their_mistake_however_many(town: Town) -> None:
    """As of a phone whose clock is ahead, in an application that believes it."""
    town.user("+12025550000", logs=[NOON + DAY] * 12, habits=4)
    town.user("+12025550001", logs=[NOON - DAY])
    assert town.run() == 0
    assert not town.said("days are judged wrongly")


@pytest.mark.parametrize(
    ("logs", "ahead", "hours", "warned"), [(60, 1, 5, False), (60, 40, 5, True), (1, 1, 24, False), (1, 1, 5, True)]
)
def test_one_log_of_tomorrow_is_somebodys_mistake_and_many_are_the_servers(
    town: Town, logs: int, ahead: int, hours: int, warned: bool
) -> None:
    """The only one may be the server's, if a zone can be why."""
    habits = town.database.insert_habits(town.database.insert_users((f"User {n}", None, "UTC") for n in range(logs)))
    town.database.insert_logs((habit, NOON + (n < ahead) * timedelta(hours=hours)) for n, habit in enumerate(habits))
    assert town.run(NOON + timedelta(minutes=1)) == 0
    assert any("days are judged wrongly" in line for line in town.lines("WARNING")) is warned


def test_what_holds_a_name_together_is_kept(town: Town) -> None:
    name = "👨\u200d👩\u200d👧 می\u200cخواهم"
    town.database.insert_user(name, "+12025550001", "UTC")
    assert town.run() == 0
    [message] = town.twilio.book
    assert message.body.startswith(f"Hi {name}, ")
    assert town.said(f"Notification sent to {name} (")


@pytest.mark.parametrize("name", ["", "\u200d", " \u200c \u200d"])
def test_who_has_no_name_is_served_like_everybody(town: Town, name: str) -> None:
    town.database.insert_user(name, "+12025550001", "UTC")
    assert town.run() == 0
    [message] = town.twilio.book
    assert message.body.startswith("Hi there, ")
    assert town.said("Notification sent to (no name) (+12025550001). ")


# --- rows of the ledger that somebody wrote by hand


@pytest.mark.parametrize("state", ["sending", "sent", "refused"])
@pytest.mark.parametrize("column", ["claimed_at", "finished_at", "local_day"])
def test_a_row_whose_date_is_none_stops_nobody(town: Town, state: str, column: str) -> None:
    """As a session without strict mode takes it."""
    people = town.people(3)
    create_ledger(town.database)
    row = {"user_id": town.ids[0], "local_day": "2026-05-11", "phone_number": people[0], "rule": "no_logs"}
    row |= {"state": state, "run_token": "x" * 32, "claimed_at": "2026-05-11 12:00:00", column: 0}
    with town.database.server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET sql_mode = ''")
        values = f"({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})"
        cursor.execute(f"INSERT INTO `{town.database.name}`.{LEDGER} {values}", list(row.values()))
        connection.commit()
    assert town.run(NOON, "--explain", str(town.ids[0])) == 0
    assert town.run() == 0
    assert town.served == people
