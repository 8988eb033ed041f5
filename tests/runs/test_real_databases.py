"""Databases as they are: switched over, slow, without their commits, full of odd bytes, set up by somebody else.

Whatever one of them does, nobody is texted twice, everybody who is due is texted or named, and a person learns what to
do.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pymysql
import pytest

import habit_notifier
from habit_notifier import Exit, Settings, Stop, Store
from tests.runs import program
from tests.runs.statements import CLAIM, PAGE
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import Answer, FakeTwilio, Request, throttle
from tests.sandbox.proxy import Proxy

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
DAY = timedelta(days=1)
USERS = 10


@pytest.fixture
def people(database: Database) -> list[str]:
    """The numbers of some users, all of them due."""
    return add_due(database)


@pytest.fixture(scope="module")
def own(throwaway: None) -> Iterator[Server]:  # noqa: ARG001
    """A server that a test may make read-only as a whole."""
    with Server() as running:
        yield running


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy((database.server.host, database.server.port)) as running:
        yield running


def add_due(database: Database, count: int = USERS) -> list[str]:
    users = [(f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(count)]
    database.insert_users(users)
    return [number for _, number, _ in users]


def through(proxy: Proxy) -> dict[str, str]:
    return {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port), "SEND_CONCURRENCY": "2"}


def run(environ: dict[str, str], at: datetime | Callable[[], datetime] = NOON) -> int:
    return program.run(environ, at=at)


def texted(twilio: FakeTwilio) -> list[str]:
    return sorted(message.to for message in twilio.book)


def told(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What was said at that level; the record is empty afterwards."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == level]
    caplog.clear()
    return lines


def problem(caplog: pytest.LogCaptureFixture) -> str:
    """The one thing that a person must mend, said once more at the end when there is a summary."""
    assert "fault of the program" not in caplog.text
    [line] = dict.fromkeys(told(caplog, logging.ERROR))
    return line


def at_send(number: int, action: Callable[[], object]) -> Callable[[Request], None]:
    """A hook for the fake: does something when so many texts have been posted."""
    count, lock = Counter[str](), threading.Lock()

    def hook(request: Request) -> None:
        with lock:
            count[request.operation] += 1
            due = request.operation == "send" and count["send"] == number
        if due:
            action()

    return hook


class Clock:
    """A clock that stands still until it is set on."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def on(self, by: timedelta) -> None:
        self.now += by


# --- a second text


def test_a_zone_that_is_corrected_brings_no_second_text_on_that_local_day(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    database.insert_user("Mover", "+12025550001", "Asia/Tokyo")
    afternoon = datetime(2026, 5, 12, 15, tzinfo=UTC)  # Wednesday in Tokyo, Tuesday in New York
    assert run(environ, afternoon) == 0
    database.execute("UPDATE User SET time_zone = 'America/New_York'")
    assert run(environ, afternoon + timedelta(hours=12)) == 0  # still Tuesday in New York
    assert len(twilio.book) == 1
    assert "deferred" in caplog.text
    assert run(environ, afternoon + timedelta(hours=14)) == 0  # Wednesday: the ledger has that day, as Tokyo's
    assert len(twilio.book) == 1
    assert "already handled today" in caplog.text
    assert run(environ, afternoon + timedelta(hours=38)) == 0
    assert len(twilio.book) == 2


def test_a_pause_that_lasts_beyond_midnight_releases_the_claim(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    database.insert_user("Night owl", "+12025550001", "UTC")
    clock = Clock(NOON.replace(hour=23, minute=59, second=52))

    def pause(request: Request) -> Answer | None:
        if request.operation != "send":
            return None
        clock.on(timedelta(seconds=13))
        return throttle(retry_after=1)

    twilio.hook = pause
    assert run(environ, clock) == Exit.RETRY
    assert "its local day is over" in caplog.text
    assert not twilio.book
    assert not database.rows(f"SELECT * FROM {LEDGER}")
    twilio.hook = None
    for later in (timedelta(minutes=1), timedelta(hours=11, minutes=45)):
        assert run(environ, NOON.replace(hour=0) + DAY + later) == 0
    assert texted(twilio) == ["+12025550001"]


def test_an_id_that_comes_twice_is_named_and_served_once(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when User is a view over a join that somebody has two rows in."""
    database.execute("RENAME TABLE User TO Member")
    database.execute("CREATE TABLE Device (member_id INT)")
    database.execute("INSERT INTO Device SELECT id FROM Member")
    database.execute("INSERT INTO Device SELECT id FROM Member WHERE id IN (3, 4)")
    database.execute("CREATE VIEW User AS SELECT m.* FROM Member m JOIN Device d ON d.member_id = m.id")
    for page in (1, 2, 3, 1_000):
        monkeypatch.setattr(habit_notifier, "PAGE_USERS", page)
        assert run(environ) == 0
        assert texted(twilio) == people
    said = [line for line in told(caplog, logging.WARNING) if "served once" in line]
    assert {line.split(" (")[0] for line in said} == {"User Due 2", "User Due 3"}
    assert all("stands 2 times in User" in line for line in said)


def test_rows_whose_commits_were_lost_with_the_server_are_written_again(
    twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    lazy = ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-log-at-timeout=2700"]
    with Server(options=lazy) as server, server.database() as database:
        people = add_due(database)
        assert run(database.environ() | twilio.environ() | {"ONLY_USERS": "999"}) == 0  # makes the ledger
        assert any("innodb_flush_log_at_trx_commit is 0" in line for line in told(caplog, logging.WARNING))
        gone = threading.Event()
        with Proxy((server.host, server.port)) as proxy, ThreadPoolExecutor(1) as threads:

            def lose_it() -> None:
                proxy.refuse()
                proxy.cut()
                gone.set()

            twilio.hook = at_send(7, lose_it)
            running = threads.submit(run, database.environ() | twilio.environ() | through(proxy))
            assert gone.wait(30)
            server.kill()
            server.start()
            kept = database.rows(f"SELECT COUNT(*) FROM {LEDGER}")[0][0]
            assert kept < len(twilio.book), "nothing was lost: this proves nothing"
            proxy.restore()
            assert running.result() == 0
        twilio.hook = None
        assert texted(twilio) == people
        rows = database.rows(f"SELECT phone_number, state, message_sid FROM {LEDGER} ORDER BY phone_number")
        assert rows == sorted((message.to, "sent", message.sid) for message in twilio.book)
        assert run(database.environ() | twilio.environ()) == 0
        assert texted(twilio) == people


# --- somebody lost


def test_who_signs_up_or_leaves_during_a_run_hides_nobody(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 3)

    def come_and_go() -> None:
        database.execute("DELETE FROM User WHERE id IN (4, 8)")
        database.insert_users((f"New {n}", f"+1303555{n:04}", "UTC") for n in range(4))

    twilio.hook = at_send(1, come_and_go)
    assert run(environ | {"SEND_CONCURRENCY": "1"}) == 0
    stayed = {*people} - {people[3], people[7]}
    assert stayed <= {*texted(twilio)}
    assert max(Counter(texted(twilio)).values()) == 1


def test_a_deadline_between_two_pages_ends_with_a_retry_though_the_counts_agree(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 3)
    monkeypatch.setattr("random.randrange", lambda _: USERS - 1)
    clock = Clock(NOON)

    def be_late() -> None:
        database.execute("DELETE FROM User WHERE id > 3")
        clock.on(timedelta(seconds=1_501))

    twilio.hook = at_send(3, be_late)
    assert run(environ | {"SEND_CONCURRENCY": "1"}, clock) == Exit.RETRY
    assert "RUN_DEADLINE (1500 s) is reached" in problem(caplog)
    assert len(twilio.book) == 3 < len(people)


ODD_BYTES = {"mariadb": ("utf8mb4", "EDA0BD"), "mysql": ("ucs2", "D83D")}  # half of a surrogate pair


def test_bytes_that_are_no_text_spoil_their_own_row_alone(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    charset, odd = ODD_BYTES[database.server.kind]
    for column in ("name", "phone_number", "time_zone"):
        database.execute(f"ALTER TABLE User MODIFY {column} VARCHAR(64) CHARACTER SET {charset}")
    people = add_due(database, 4)
    for user, column in enumerate(("name", "phone_number", "time_zone"), start=1):
        database.execute(f"UPDATE User SET {column} = _{charset} X'{odd}' WHERE id = {user}")
    assert run(environ) == 0
    assert texted(twilio) == [people[0], people[3]]
    skipped = [line for line in told(caplog, logging.WARNING) if "gets no text" in line]
    assert len(skipped) == 2
    assert "(ID: 2) gets no text, skipped (phone number)" in "".join(skipped)
    assert "(ID: 3) gets no text, skipped (time zone)" in "".join(skipped)


def test_ids_in_binary_are_shown_as_hexadecimal_digits(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("DROP TABLE Log, Habit, User")
    for ddl in (
        "CREATE TABLE User (id BINARY(16) PRIMARY KEY, name TEXT, phone_number TEXT, time_zone TEXT)",
        "CREATE TABLE Habit (id BINARY(16) PRIMARY KEY, user_id BINARY(16), name TEXT, KEY (user_id))",
        "CREATE TABLE Log (id BINARY(16) PRIMARY KEY, habit_id BINARY(16), created_at DATETIME, KEY (habit_id))",
    ):
        database.execute(ddl)
    ids = [bytes([n]) * 16 for n in (0x00, 0x27, 0x5C, 0x80, 0xED, 0xFF)]  # among them a quote and a backslash
    for n, user in enumerate(ids):
        database.execute("INSERT INTO User VALUES (%s, 'Due', %s, 'UTC')", (user, f"+1202555{n:04}"))
    assert run(environ | {"ONLY_USERS": ids[4].hex().upper()}) == 0
    assert texted(twilio) == ["+12025550004"]
    assert f"User Due (ID: {ids[4].hex()}) needs notification" in caplog.text
    assert [run(environ), run(environ)] == [0, 0]
    assert len(twilio.book) == len({*texted(twilio)}) == len(ids)
    assert {user for (user,) in database.rows(f"SELECT user_id FROM {LEDGER}")} == {*ids}


# --- slow


LIMITS = {"mariadb": ("max_statement_time", 8), "mysql": ("max_execution_time", 8_000)}


def test_the_server_ends_a_statement_before_the_client_gives_it_up(database: Database, environ: dict[str, str]) -> None:
    name, limit = LIMITS[database.server.kind]
    with Store(Settings.read(environ), Stop()) as store:
        for _ in range(2):  # on a new connection, too
            assert store._run(f"SELECT @@SESSION.{name}") == [(limit,)]
            store._disconnect()
    assert habit_notifier.STATEMENT_SECONDS < habit_notifier.DATABASE_TIMEOUT


@pytest.mark.parametrize("everybody", [False, True])
def test_pages_that_take_too_long_are_halved_until_whom_nobody_can_read_is_named(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    everybody: bool,
) -> None:
    """Habit 7 stands for one of a user with millions of logs; or all of them, where no index helps."""
    monkeypatch.setattr(
        habit_notifier,
        "STATEMENT_LIMIT",
        " /*!50708 , max_execution_time = 150 */ /*M!100101 , max_statement_time = 0.15 */",
    )
    habits = database.insert_habits(range(1, USERS + 1))
    slow = habits if everybody else [7]
    database.insert_logs((habit, NOON - DAY) for habit in slow for _ in range(3))
    database.execute("RENAME TABLE Log TO Entry")
    database.execute("CREATE VIEW Log AS SELECT * FROM Entry WHERE SLEEP(0.1) = 2")  # reads long, and finds nothing
    monkeypatch.setattr(Store, "newest_logs", lambda *_: habit_notifier.NewestLogs(0, NOON, 0, past=False))
    assert run(environ) == Exit.RETRY
    named = [line for line in told(caplog, logging.WARNING) if "gets no text, not tried: MySQL does not read" in line]
    assert len(named) == (USERS if everybody else 1)
    assert everybody or "(ID: 7)" in named[0]
    assert "index Log (habit_id, created_at)" in named[0]
    assert texted(twilio) == ([] if everybody else [number for number in people if not number.endswith("06")])
    mine = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s AND command = 'Query'"
    assert database.rows(mine, (environ["DB_USER"],)) == [(0,)]


def test_a_log_without_an_index_is_warned_of_with_the_statement_to_paste(
    database: Database, environ: dict[str, str], people: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As some ORMs make it: no foreign key."""
    assert people
    database.execute("DROP TABLE Log")
    database.execute("CREATE TABLE Log (id INT PRIMARY KEY, habit_id INT, created_at DATETIME)")
    assert run(environ) == 0
    [warning] = [line for line in told(caplog, logging.WARNING) if "no index" in line]
    database.execute(warning.partition(": ")[2].removesuffix(";"))
    assert run(environ) == 0
    assert not [line for line in told(caplog, logging.WARNING) if "no index" in line]


# --- away for a while


def test_a_switch_over_in_mid_run_is_waited_for(own: Server, twilio: FakeTwilio) -> None:
    with own.database() as database:
        people = add_due(database)
        environ = database.environ() | twilio.environ() | database.least_account(create=True)

        def switch_over() -> None:
            database.execute("SET GLOBAL read_only = 1")
            threading.Timer(3, lambda: database.execute("SET GLOBAL read_only = 0")).start()

        twilio.hook = at_send(4, switch_over)
        assert run(environ | {"SEND_CONCURRENCY": "2"}) == 0
        assert texted(twilio) == people
        assert database.rows(f"SELECT state, COUNT(*) FROM {LEDGER} GROUP BY state") == [("sent", USERS)]


def test_a_read_only_server_at_the_start_needs_a_person(
    own: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    with own.database() as database:
        add_due(database)
        environ = database.environ() | twilio.environ() | database.least_account(create=True)
        database.execute("SET GLOBAL read_only = 1")
        try:
            assert run(environ) == Exit.ACT
        finally:
            database.execute("SET GLOBAL read_only = 0")
        assert "set DB_HOST to the primary" in problem(caplog)
        assert not twilio.book


@pytest.mark.parametrize("number", [1047, 1290, 1836, 1792, 3989])
@pytest.mark.parametrize("statement", [CLAIM, PAGE])
def test_a_node_that_is_not_ready_for_a_while_is_waited_for(
    environ: dict[str, str],
    twilio: FakeTwilio,
    people: list[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    statement: str,
) -> None:
    execute, refusals = Store._execute, iter(range(2))

    def refuse_twice(store: Store, sql: str, args: Any) -> list[tuple[Any, ...]]:
        if statement in sql and store._opened and next(refusals, None) is not None:
            raise pymysql.err.OperationalError(number, "not now")
        return execute(store, sql, args)

    monkeypatch.setattr(Store, "_execute", refuse_twice)
    assert run(environ) == 0
    assert texted(twilio) == people


def test_an_outage_at_the_start_is_waited_for(
    environ: dict[str, str], twilio: FakeTwilio, people: list[str], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three minutes of it are no more than this with other constants."""
    monkeypatch.setattr(habit_notifier, "OUTAGE_PATIENCE", 20.0)
    proxy.refuse()
    restored = threading.Timer(2.5, proxy.restore)
    restored.start()
    began = time.monotonic()
    assert run(environ | through(proxy)) == 0
    assert time.monotonic() - began > 2
    assert texted(twilio) == people


def test_an_outage_that_lasts_is_given_up_when_the_patience_is_over(
    environ: dict[str, str], twilio: FakeTwilio, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refuse()
    assert run(environ | through(proxy)) == Exit.RETRY
    assert "cannot be reached" in problem(caplog)
    assert not twilio.requests


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


@pytest.mark.parametrize("greeting", GREETINGS)
def test_whatever_else_answers_at_the_port_is_told_as_a_mistake_of_the_settings(
    environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, greeting: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as port:

        def greet() -> None:
            while True:
                try:
                    client, _ = port.accept()
                except OSError:
                    return
                with client:
                    client.sendall(GREETINGS[greeting])

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        code = run(environ | {"DB_PORT": str(port.getsockname()[1])})
        port.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert code in (Exit.RETRY, Exit.ACT)
    said = problem(caplog)
    assert "DB_HOST" in said or "the connection was lost" in said
    assert not twilio.requests


def test_an_account_whose_way_in_needs_a_package_that_is_missing_is_told_to_be_made_anew(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PyMySQL raises for MariaDB's ed25519; few packages of the server bring that plugin."""

    def connect(**_: object) -> None:
        raise RuntimeError("'pynacl' package is required for ed25519_password auth method")

    with monkeypatch.context() as patch:
        patch.setattr(pymysql, "connect", connect)
        assert run(environ) == Exit.ACT
    assert "a way to authenticate that this program lacks" in problem(caplog)


def test_a_state_that_is_not_known_reads_as_uncertain(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, people: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(environ) == 0
    database.execute(f"UPDATE {LEDGER} SET state = 'pending', message_sid = NULL WHERE user_id = 1")
    assert run(environ, NOON + timedelta(hours=1)) == 0
    assert texted(twilio) == people
    assert "User Due 0 (ID: 1) gets no text, uncertain earlier today: it may have been sent" in caplog.text


def drop_keys(database: Database) -> None:
    """Log and Habit without foreign keys."""
    for table in ("Log", "Habit"):
        database.execute(f"ALTER TABLE {table} DROP FOREIGN KEY {table}_ibfk_1")


def orphan_view(database: Database) -> None:
    """Log is a view whose definer is gone."""
    with database.server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE USER 'gone_{database.name}'@'%'")
        cursor.execute(f"USE `{database.name}`")
        cursor.execute("RENAME TABLE Log TO Entry")
        cursor.execute(
            f"CREATE DEFINER = 'gone_{database.name}'@'%' SQL SECURITY DEFINER VIEW Log AS SELECT * FROM Entry"
        )
        cursor.execute(f"DROP USER 'gone_{database.name}'@'%'")


def other_collation(database: Database) -> None:
    """Habit refers to User in another collation."""
    drop_keys(database)
    database.execute("ALTER TABLE Habit MODIFY user_id CHAR(36) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")


FAULTS: dict[int, tuple[Callable[[Database], object] | None, str, str]] = {
    1267: (other_collation, "", "different collations: ALTER one of them"),
    1449: (orphan_view, "", "the account that defined a view is gone"),
    1175: (None, ", sql_safe_updates = 1", "sql_safe_updates"),
    1104: (None, ", sql_big_selects = 0, max_join_size = 1", "max_join_size"),
}


@pytest.mark.parametrize("number", FAULTS)
def test_what_no_retry_can_mend_is_told_with_what_to_alter(
    server: Server,
    twilio: FakeTwilio,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    fault, session, words = FAULTS[number]
    monkeypatch.setattr(habit_notifier, "STATEMENT_LIMIT", habit_notifier.STATEMENT_LIMIT + session)
    with server.database(id_type="CHAR(36)", collation="utf8mb4_unicode_ci") as database:
        add_due(database)
        if fault:
            fault(database)
        if number == 1175 and server.kind == "mysql":  # which sees that what the program changes goes by a key
            assert run(database.environ() | twilio.environ()) == 0
            return
        assert run(database.environ() | twilio.environ()) == Exit.ACT
        said = problem(caplog)
        assert words in said
        assert f"error {number}" in said
        assert not twilio.requests


def test_an_account_for_another_host_is_told_with_the_address_that_the_server_sees(
    database: Database, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    account = environ["DB_USER"]
    database.execute("RENAME USER %s@'%%' TO %s@'192.0.2.7'", (account, account))
    try:
        assert run(environ) == Exit.ACT
    finally:
        database.execute("RENAME USER %s@'192.0.2.7' TO %s@'%%'", (account, account))
    said = problem(caplog)
    assert "let the account in from the host it names" in said
    assert "'127.0.0.1'" in said or "'localhost'" in said
    assert account not in said


def test_a_name_that_does_not_resolve_is_not_blamed_on_the_port(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(environ | {"DB_HOST": "no-such-host.invalid"}) == Exit.RETRY
    said = problem(caplog)
    assert "does not resolve" in said
    assert "NetworkPolicy" not in said


# --- what stands in the columns


@pytest.mark.parametrize(
    "column", ["latin1", "utf8mb4", "utf16", "ucs2", "utf32", "ascii", "utf8mb4 COLLATE utf8mb4_bin"]
)
@pytest.mark.parametrize("default", ["", "Asia/Tokyo"])
def test_zones_are_told_apart_in_every_character_set(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, column: str, default: str
) -> None:
    database.execute(f"ALTER TABLE User MODIFY time_zone VARCHAR(64) CHARACTER SET {column}")
    zones = ["Europe/Berlin", "europe/berlin", "Europe/Berlin  ", " UTC", None, "", "Mars/Base"]
    database.insert_users((f"User {n}", f"+1202555{n:04}", zone) for n, zone in enumerate(zones))
    assert run(environ | {"DEFAULT_TIME_ZONE": default}) == 0
    assert len(twilio.book) == (len(zones) if default else 4)


@pytest.mark.parametrize("unseen", ["\u200b", "\0", "\ufeff", "\u00ad", "\u200e", "\t"])
def test_what_nobody_sees_in_a_zone_changes_nothing(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, unseen: str
) -> None:
    for n, zone in enumerate((f"{unseen}Europe/Berlin", f"Europe/Berlin{unseen}", f"Europe/{unseen}Berlin")):
        database.insert_user(f"User {n}", f"+1202555{n:04}", zone)
    assert [run(environ), run(environ)] == [0, 0]
    assert len(twilio.book) == 3
    assert "came in use" not in caplog.text


def test_a_wrong_zone_that_the_default_replaces_is_named_and_an_empty_one_is_not(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    for n, zone in enumerate(("Mars/Base", "Mars/Base", "", None, "UTC")):
        database.insert_user(f"User {n}", f"+1202555{n:04}", zone)
    assert run(environ | {"DEFAULT_TIME_ZONE": "Europe/Berlin"}) == 0
    assert len(twilio.book) == 5
    [said] = [line for line in told(caplog, logging.WARNING) if "DEFAULT_TIME_ZONE" in line]
    assert said.startswith("2 users have the unknown zone 'Mars/Base'")


@pytest.mark.parametrize(("ahead", "warned"), [(1, False), (40, True)])
def test_one_log_of_tomorrow_is_somebodys_mistake_and_many_are_the_servers(
    database: Database, environ: dict[str, str], caplog: pytest.LogCaptureFixture, ahead: int, warned: bool
) -> None:
    habits = database.insert_habits(database.insert_users((f"User {n}", None, "UTC") for n in range(60)))
    database.insert_logs((habit, NOON + (n < ahead) * timedelta(hours=5)) for n, habit in enumerate(habits))
    assert run(environ, NOON + timedelta(minutes=1)) == 0
    assert any("days are judged wrongly" in line for line in told(caplog, logging.WARNING)) is warned


@pytest.mark.parametrize("name", ["👨\u200d👩\u200d👧", "می\u200cخواهم"])
def test_what_holds_a_name_together_is_kept(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    database.insert_user(name, "+12025550001", "UTC")
    assert run(environ) == 0
    [message] = twilio.book
    assert message.body.startswith(f"Hi {name}, ")
    assert f"Notification sent to {name} (" in caplog.text


def test_a_row_of_the_future_is_named_with_its_delete_and_everybody_else_is_served(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, people: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(environ | {"ONLY_USERS": "3"}, NOON + 45 * DAY) == 0
    assert run(environ) == Exit.ACT
    assert texted(twilio) == people  # one of them 45 days from now
    [said] = [line for line in told(caplog, logging.WARNING) if "row of the future" in line]
    assert said.startswith("User Due 2 (ID: 3) gets no text, ")
    database.execute(said[said.index("DELETE") :].removesuffix(";"))
    assert run(environ) == 0
    assert Counter(texted(twilio))[people[2]] == 2
    assert len(twilio.book) == USERS + 1


# --- days of one's own


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "Asia/Kathmandu", "America/New_York"])
def test_logs_by_date_are_of_the_users_own_calendar(server: Server, twilio: FakeTwilio, zone: str) -> None:
    today = NOON.astimezone(ZoneInfo(zone)).date()
    with server.database(created_at="DATETIME") as database:
        database.execute("ALTER TABLE Log MODIFY created_at DATE NOT NULL")
        users = database.insert_users((f"Ago {n}", f"+1202555{n:04}", zone) for n in range(5))
        habits = database.insert_habits(users)
        for ago, habit in enumerate(habits):
            database.execute("INSERT INTO Log (habit_id, created_at) VALUES (%s, %s)", (habit, today - ago * DAY))
        environ = database.environ() | twilio.environ()
        assert run(environ | {"MESSAGE_NO_LOGS": "none", "MESSAGE_MISSED_YESTERDAY": "missed"}) == 0
        assert {message.to[-1]: message.body for message in twilio.book} == {
            "0": "none",  # only today: not one of the two days
            "2": "missed",
            "3": "none",
            "4": "none",
        }


@pytest.mark.parametrize(
    ("starts", "due"),
    [("00:00", {"0": "none"}), ("03:00", {"1": "missed", "2": "missed"}), ("00:41", {"1": "missed"})],
)
def test_a_day_that_starts_late_takes_the_small_hours_along(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, starts: str, due: dict[str, str]
) -> None:
    midnight = NOON.replace(hour=0)
    minutes = timedelta(minutes=1)
    logs = (
        midnight + 40 * minutes,
        midnight - DAY + 40 * minutes,
        midnight - DAY + 179 * minutes + timedelta(seconds=59),
    )
    for n, log in enumerate((*logs, midnight - DAY + 180 * minutes)):
        database.insert_user(f"User {n}", f"+1202555{n:04}", "UTC", logs=[log])
    environ |= {"DAY_STARTS_AT": starts, "MESSAGE_NO_LOGS": "none", "MESSAGE_MISSED_YESTERDAY": "missed"}
    assert run(environ) == 0
    assert {message.to[-1]: message.body for message in twilio.book} == due


@pytest.mark.parametrize(("hour", "day"), [(2, 11), (3, 12)])
def test_the_ledgers_day_starts_as_late(
    database: Database, environ: dict[str, str], people: list[str], hour: int, day: int
) -> None:
    assert run(environ | {"DAY_STARTS_AT": "03:00"}, NOON.replace(hour=hour)) == 0
    days = database.rows(f"SELECT DISTINCT local_day FROM {LEDGER}")
    assert days == [(NOON.date().replace(day=day),)]
    assert len(people) == USERS
