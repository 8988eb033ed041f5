"""What the program asks of MySQL before it texts anybody, what it leaves there, and whom its pages cover.

Whatever is wrong with the set-up is one clear line with the remedy, exit code 2, and nobody is texted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytz

import habit_notifier
from habit_notifier import NO_LOGS, Action, Answer, Exit, Reminder, Row, Settings, State, Stop, Store, User
from tests.runs import program
from tests.runs.statements import PURGE
from tests.sandbox.database import LEDGER, Database, Server, make_certificates
from tests.sandbox.fake_twilio import FakeTwilio, refuse
from tests.sandbox.proxy import Proxy, Verdict

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
LANDLINE = 21635
OPTED_OUT = 21610


def run(environ: Mapping[str, str], at: datetime | None = None) -> int:
    """A whole run of the program, at that instant or now."""
    return program.run(environ, at=at or habit_notifier.utc_now)


def add_due(database: Database, count: int = 3) -> list[Any]:
    """Users who never logged anything."""
    return list(database.insert_users((f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(count)))


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the program says must be mended; the record is empty afterwards."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    caplog.clear()
    return lines


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


def column(database: Database, table: str, name: str) -> tuple[Any, ...]:
    """Type, character set and collation."""
    [found] = database.rows(
        "SELECT column_type, character_set_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = %s AND table_name = %s AND column_name = %s",
        (database.name, table, name),
    )
    return found


def as_administrator(database: Database, lines: list[str]) -> None:
    """Paste lines of the log into the administrator's client, which knows a statement by its semicolon."""
    for line in lines:
        assert line.endswith(";")
        database.execute(line.removesuffix(";"))


@pytest.fixture
def store(environ: dict[str, str]) -> Iterator[Store]:
    """The program's store, opened, with its ledger."""
    with Store(Settings.read(environ), Stop()) as opened:
        opened.open()
        yield opened


# --- the ledger's table


@pytest.mark.parametrize(
    ("id_type", "collation"),
    [
        ("INT", None),
        ("INT UNSIGNED", None),
        ("BIGINT", None),
        ("CHAR(36)", None),
        ("CHAR(36)", "ascii_bin"),
        ("CHAR(36)", "ascii_general_ci"),
        ("CHAR(36)", "latin1_swedish_ci"),
        ("CHAR(36)", "utf8mb4_bin"),
        ("CHAR(36)", "utf8mb4_unicode_ci"),
    ],
)
def test_the_ledger_takes_exactly_the_type_of_the_users_ids(
    server: Server, twilio: FakeTwilio, id_type: str, collation: str | None
) -> None:
    with server.database(id_type=id_type, collation=collation) as database:
        users = add_due(database)
        settings = database.environ() | twilio.environ()
        assert [run(settings), run(settings)] == [0, 0]
        assert column(database, LEDGER, "user_id") == column(database, "User", "id")
        assert {user for (user,) in database.rows(f"SELECT user_id FROM {LEDGER}")} == set(users)
        assert len(twilio.book) == len(users)


def test_a_ledger_whose_user_id_is_of_another_type_is_told_with_the_statement_that_mends_it(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    add_due(database)
    database.execute(habit_notifier.LEDGER_DDL.format(database=database.name, user_id="BIGINT"))
    assert run(environ) == Exit.ACT
    problem, *remedy = errors(caplog)
    assert f"{LEDGER}.user_id is bigint" in problem
    assert "User.id is int" in problem
    assert not twilio.book
    as_administrator(database, remedy)
    assert run(environ) == 0
    assert len(twilio.book) == 3


def test_the_same_type_in_another_collation_is_another_type(
    server: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    with server.database(id_type="CHAR(36)", collation="utf8mb4_bin") as database:
        add_due(database)
        database.execute(habit_notifier.LEDGER_DDL.format(database=database.name, user_id="CHAR(36)"))
        assert run(database.environ() | twilio.environ()) == Exit.ACT
        _, *remedy = errors(caplog)
        as_administrator(database, remedy)
        assert run(database.environ() | twilio.environ()) == 0
        assert len(twilio.book) == 3


# --- grants


def test_an_account_that_may_create_just_the_ledger_needs_no_administrator(
    database: Database, environ: dict[str, str], twilio: FakeTwilio
) -> None:
    add_due(database)
    least = environ | database.least_account(create=True)
    assert [run(least), run(least)] == [0, 0]
    assert len(twilio.book) == 3


def test_an_account_that_may_not_create_works_with_a_ledger_made_for_it(
    database: Database, environ: dict[str, str], twilio: FakeTwilio
) -> None:
    add_due(database)
    database.execute(
        habit_notifier.LEDGER_DDL.format(database=database.name, user_id=column(database, "User", "id")[0])
    )
    least = environ | database.least_account()
    assert [run(least), run(least)] == [0, 0]
    assert len(twilio.book) == 3


@pytest.mark.parametrize(("id_type", "collation"), [("INT", None), ("CHAR(36)", "ascii_bin")])
def test_without_ledger_and_grant_the_log_holds_what_an_administrator_pastes(
    server: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, id_type: str, collation: str | None
) -> None:
    with server.database(id_type=id_type, collation=collation) as database:
        add_due(database)
        least = database.environ() | twilio.environ() | database.least_account()
        assert run(least) == Exit.ACT
        problem, ddl, grant = errors(caplog)
        assert LEDGER in problem
        assert ddl.startswith("CREATE TABLE")  # first: a grant on a missing table is refused
        assert grant.startswith("GRANT SELECT, INSERT, UPDATE, DELETE ON ")
        assert not twilio.book
        as_administrator(database, [ddl, grant])
        assert run(least) == 0
        assert len(twilio.book) == 3


@pytest.mark.parametrize("verb", ["SELECT", "INSERT", "UPDATE", "DELETE"])
def test_each_grant_on_the_ledger_is_checked_before_anybody_is_texted(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    add_due(database)
    database.execute(
        habit_notifier.LEDGER_DDL.format(database=database.name, user_id=column(database, "User", "id")[0])
    )
    account = database.least_account()
    database.execute(f"REVOKE {verb} ON `{database.name}`.{LEDGER} FROM %s@'%%'", (account["DB_USER"],))
    assert run(environ | account) == Exit.ACT
    _, ddl, grant = errors(caplog)
    assert not twilio.book
    as_administrator(database, [ddl, grant])
    assert run(environ | account) == 0


@pytest.mark.parametrize("table", ["User", "Habit", "Log"])
def test_a_table_that_may_not_be_read_is_named(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, table: str
) -> None:
    account = database.least_account(create=True)
    database.execute(f"REVOKE SELECT ON `{database.name}`.{table} FROM %s@'%%'", (account["DB_USER"],))
    assert run(environ | account) == Exit.ACT
    [problem] = errors(caplog)
    assert "grant" in problem
    assert f"'{table}'" in problem.replace("`", "'")
    assert not twilio.book


# --- tables and columns


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DROP TABLE Log", [".Log'", "is missing"]),
        ("ALTER TABLE User DROP COLUMN time_zone", ["'time_zone'", "column is missing"]),
        ("ALTER TABLE User DROP COLUMN phone_number", ["'phone_number'", "column is missing"]),
        ("ALTER TABLE Log DROP COLUMN created_at", ["'created_at'", "column is missing"]),
        ("ALTER TABLE Log MODIFY created_at BIGINT NOT NULL", ["Log.created_at is bigint", "TIMESTAMP or a DATETIME"]),
        ("ALTER TABLE Log MODIFY created_at VARCHAR(32) NOT NULL", ["Log.created_at is varchar(32)"]),
        ("ALTER TABLE Log MODIFY created_at TIME NOT NULL", ["Log.created_at is time", "or a DATE"]),
    ],
)
def test_a_schema_that_does_not_fit_is_told_in_one_line(
    server: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, change: str, words: list[str]
) -> None:
    with server.database(log_index=False) as database:
        add_due(database)
        database.execute(change)
        assert run(database.environ() | twilio.environ()) == Exit.ACT
        [problem] = errors(caplog)
        assert all(word in problem for word in words), problem
        assert not twilio.book


def test_tables_whose_names_differ_in_case_only_are_other_tables(
    database: Database, environ: dict[str, str], twilio: FakeTwilio
) -> None:
    if database.rows("SELECT @@lower_case_table_names") != [(0,)]:
        pytest.skip("this server folds the case of names")
    add_due(database)
    for other in ("USER", "user"):  # one is told before User, one after it
        database.execute(f"CREATE TABLE `{other}` (id CHAR(36) PRIMARY KEY)")
    for other in ("LOG", "log"):
        database.execute(f"CREATE TABLE `{other}` (created_at BIGINT)")
    for other in (LEDGER.upper(), LEDGER.lower()):
        database.execute(f"CREATE TABLE `{other}` (user_id BIGINT)")
    assert [run(environ), run(environ)] == [0, 0]
    assert len(twilio.book) == 3


def test_a_ledger_without_one_of_its_columns_is_told(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    add_due(database)
    ddl = habit_notifier.LEDGER_DDL.format(database=database.name, user_id=column(database, "User", "id")[0])
    database.execute(ddl)
    database.execute(f"ALTER TABLE {LEDGER} DROP COLUMN segments")
    assert run(environ) == Exit.ACT
    assert "'segments'" in errors(caplog)[0]
    assert not twilio.book


def test_phone_numbers_kept_as_numbers_are_skipped_not_a_crash(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute("ALTER TABLE User MODIFY phone_number BIGINT")
    database.insert_user("Numeric", "12025550100", "UTC")
    database.insert_user("Silent", None, "UTC")
    assert run(environ) == 0
    assert "phone number '12025550100' is not E.164" in warnings(caplog)
    assert not twilio.book


def test_what_is_kept_as_bytes_is_read_as_text(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    database.execute(
        "ALTER TABLE User MODIFY name VARBINARY(255), MODIFY phone_number VARBINARY(32), MODIFY time_zone VARBINARY(64)"
    )
    database.insert_user("Zoë", "+12025550100", "Europe/Berlin")
    database.insert_user("Lost", "+12025550101", "Mars/Base")
    assert run(environ) == 0
    [message] = twilio.book
    assert message.to == "+12025550100"
    assert message.body.startswith("Hi Zoë, ")
    assert "User Lost (ID: 2) gets no text, skipped (time zone): time zone 'Mars/Base' is unknown" in warnings(caplog)


# --- the way in


@pytest.mark.parametrize("password", ["grün", "p€w-grün", "пароль"])
def test_a_password_may_have_letters_of_any_script(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, password: str
) -> None:
    add_due(database)
    database.execute("ALTER USER %s@'%%' IDENTIFIED BY %s", (environ["DB_USER"], password))
    assert run(environ | {"DB_PASSWORD": password}) == 0
    assert len(twilio.book) == 3


def test_a_database_that_does_not_exist_or_is_not_ours_is_told(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(environ | {"DB_NAME": "habits_no_such"}) == Exit.ACT
    [problem] = errors(caplog)
    assert "DB_NAME" in problem


def test_a_wrong_password_is_told_without_showing_account_or_password(
    environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(environ | {"DB_PASSWORD": "not-the-password"}) == Exit.ACT
    [problem] = errors(caplog)
    assert "DB_PASSWORD" in problem
    assert "not-the-password" not in problem
    assert environ["DB_USER"] not in problem


@pytest.mark.parametrize("change", ["ACCOUNT LOCK", "PASSWORD EXPIRE"])
def test_an_account_that_is_locked_or_whose_password_has_expired_needs_a_person(
    database: Database, environ: dict[str, str], caplog: pytest.LogCaptureFixture, change: str
) -> None:
    database.execute(f"ALTER USER %s@'%%' {change}", (environ["DB_USER"],))
    assert run(environ) == Exit.ACT
    [problem] = errors(caplog)
    assert "DB_USER" in problem


@pytest.mark.parametrize("switch", ["read_only", "super_read_only"])
def test_a_read_only_server_is_told_to_be_replaced_by_the_primary(
    own_server: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, switch: str
) -> None:
    if switch == "super_read_only" and own_server.kind == "mariadb":
        pytest.skip("MariaDB has no super_read_only")
    with own_server.database() as database:
        add_due(database)
        database.execute(
            habit_notifier.LEDGER_DDL.format(database=database.name, user_id=column(database, "User", "id")[0])
        )
        account = database.least_account()  # read_only spares administrators
        database.execute(f"SET GLOBAL {switch} = 1")
        try:
            assert run(database.environ() | twilio.environ() | account) == Exit.ACT
            [problem] = errors(caplog)
            assert "set DB_HOST to the primary" in problem
        finally:
            database.execute("SET GLOBAL read_only = 0")
        assert not twilio.book
        assert run(database.environ() | twilio.environ() | account) == 0
        assert len(twilio.book) == 3


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may change as a whole, with TLS, in a zone far from UTC."""
    with Server(tls=True, global_time_zone="-11:00") as running:
        yield running


@pytest.fixture
def tls_only(own_server: Server, twilio: FakeTwilio) -> Iterator[dict[str, str]]:
    """Settings with an account that the server lets in by TLS only, and somebody who is due."""
    with own_server.database() as database:
        add_due(database)
        settings = database.environ() | twilio.environ()
        database.execute("ALTER USER %s@'%%' REQUIRE SSL", (settings["DB_USER"],))
        yield settings


def test_with_the_right_ca_the_way_to_the_database_is_encrypted(tls_only: dict[str, str], twilio: FakeTwilio) -> None:
    assert run(tls_only) == 0
    assert len(twilio.book) == 3


def test_a_certificate_of_another_ca_is_refused(
    tls_only: dict[str, str], twilio: FakeTwilio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_certificates(tmp_path)
    assert run(tls_only | {"DB_SSL_CA": str(tmp_path / "ca.pem")}) == Exit.ACT
    [problem] = errors(caplog)
    assert "DB_SSL_CA" in problem
    assert not twilio.book


def test_a_certificate_for_another_name_is_refused(
    tls_only: dict[str, str], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tls_only | {"DB_HOST": "127.1"}) == Exit.ACT  # the same machine, by a name that no certificate holds
    [problem] = errors(caplog)
    assert "DB_HOST" in problem
    assert not twilio.book


def test_with_a_ca_nothing_is_said_to_a_server_that_offers_no_tls(
    own_server: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server.database() as database, Proxy((own_server.host, own_server.port)) as stripping:
        settings = database.environ() | twilio.environ()
        settings |= {"DB_HOST": stripping.host, "DB_PORT": str(stripping.port)}
        assert run(settings) == Exit.ACT
        [problem] = errors(caplog)
        assert "TLS" in problem
        assert stripping.queries == 0


@pytest.mark.parametrize("tls", [True, False])
def test_an_account_of_caching_sha2_password_gets_in(server: Server, twilio: FakeTwilio, tls: bool) -> None:
    """A new account: its password is not yet in the server's cache, which takes TLS or RSA."""
    if server.kind == "mariadb":
        pytest.skip("MariaDB has no caching_sha2_password")
    with server.database() as database, Proxy((server.host, server.port), hide_tls=not tls) as proxy:
        add_due(database)
        account = database.least_account(create=True)
        plugin = database.rows("SELECT plugin FROM mysql.user WHERE user = %s", (account["DB_USER"],))
        assert plugin == [("caching_sha2_password",)]
        if tls:
            database.execute("ALTER USER %s@'%%' REQUIRE SSL", (account["DB_USER"],))
        settings = database.environ() | twilio.environ() | account
        assert run(settings | {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port)}) == 0
        assert len(twilio.book) == 3


# --- the database's clock


@pytest.mark.parametrize(("created_at", "warned"), [("DATETIME", True), ("TIMESTAMP", False)])
def test_logs_that_a_server_of_another_zone_dates_ahead_are_warned_of(
    server: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, created_at: str, warned: bool
) -> None:
    with server.database(created_at=created_at) as database:
        [habit] = database.insert_habits(add_due(database, 1))
        with database.connect(init_command="SET time_zone = '+02:00'") as application, application.cursor() as cursor:
            cursor.execute("INSERT INTO Log (habit_id) VALUES (%s)", (habit,))  # dated by the server
        assert run(database.environ() | twilio.environ()) == 0
        assert ("Log.created_at must be in UTC" in warnings(caplog)) is warned


@pytest.mark.parametrize("created_at", ["DATETIME", "DATETIME(6)", "TIMESTAMP"])
def test_zero_dates_among_the_newest_logs_are_no_logs_and_no_fault(
    server: Server, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, created_at: str
) -> None:
    with server.database(created_at=created_at) as database:
        habits = database.insert_habits(add_due(database))
        with database.connect(init_command="SET sql_mode = ''") as application, application.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO Log (habit_id, created_at) VALUES (%s, '0000-00-00')", [(h,) for h in habits]
            )
        assert run(database.environ() | twilio.environ()) == 0
        assert len(twilio.book) == 3
        assert not errors(caplog)


@pytest.mark.parametrize("created_at", ["DATETIME", "TIMESTAMP"])
def test_the_servers_own_zone_moves_no_day(own_server: Server, twilio: FakeTwilio, created_at: str) -> None:
    with own_server.database(created_at=created_at) as database:
        midnight = NOON.replace(hour=0)
        database.insert_user("In time", "+12025550001", "UTC", logs=[midnight - timedelta(seconds=1)])
        database.insert_user("Too late", "+12025550002", "UTC", logs=[midnight])
        assert run(database.environ() | twilio.environ(), NOON) == 0
        assert sends(twilio) == ["+12025550002"]


# --- what the ledger remembers


def remembered(database: Database) -> list[tuple[Any, ...]]:
    return database.rows(f"SELECT user_id, local_day FROM {LEDGER} ORDER BY user_id, local_day")


def add_rows(database: Database, state: str, final_status: str | None, *keys: tuple[Any, date]) -> None:
    for user, day in keys:
        database.execute(
            f"INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at, finished_at,"
            " final_status, error_code) VALUES (%s, %s, '+12025550100', 'no_logs', %s, 'token', %s, %s, %s, %s)",
            (user, day, state, day, day, final_status, OPTED_OUT if state == "refused" else None),
        )


def test_the_purge_deletes_whatever_is_older_a_few_rows_at_a_time(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals, too: no gate looks further back."""
    monkeypatch.setattr(habit_notifier, "KEYS", 2)
    before = date(2026, 2, 1)
    old, older = before - timedelta(days=1), before - timedelta(days=2)
    add_rows(database, "sent", "delivered", (1, old), (1, before), (2, older))
    add_rows(database, "refused", "refused", (4, older), (4, before))
    add_rows(database, "sending", None, (7, older))
    add_rows(database, "uncertain", None, (8, older))
    assert [store.purge(before) for _ in range(4)] == [2, 2, 1, 0]
    assert remembered(database) == [(1, before), (4, before)]


@pytest.mark.usefixtures("store")
def test_sigterm_ends_the_purge_between_two_statements(
    database: Database, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "KEYS", 2)
    add_rows(database, "sent", "delivered", *((user, NOON.date() - timedelta(days=91)) for user in range(6)))
    stop, purge = Stop(), Store.purge

    def purge_and_terminate(store: Store, before: date) -> int:
        stop.request()
        return purge(store, before)

    monkeypatch.setattr(Store, "purge", purge_and_terminate)
    assert program.run(environ, at=NOON, stop=stop) == Exit.TERMINATED
    assert len(remembered(database)) == 4


@pytest.mark.parametrize("ours", [Action.ACCEPT, Action.UNCERTAIN, Action.REFUSE, Action.UNREACHED])
def test_what_became_of_a_text_is_never_written_into_another_runs_row(
    database: Database, environ: dict[str, str], store: Store, ours: Action
) -> None:
    """Neither by recording it nor by writing it again on a new connection."""
    days = habit_notifier.days_of(NOON, pytz.utc)
    anna = Reminder(User(1, "Anna", "+12025550101", "UTC", days, logged_day1=False), NO_LOGS, days)
    late = NOON + timedelta(hours=1)
    columns = f"SELECT state, message_sid, error_code, final_status, finished_at, segments FROM {LEDGER}"
    answer = Answer(ours, code=21610, sid="SM" + "a" * 32, segments=2)
    with Store(Settings.read(environ), Stop()) as another:
        another.open()
        [theirs] = another.claim([anna], NOON)[1]
        [seen] = store.claim([anna], NOON)[1]
        assert seen == theirs
        mine = store.claims[anna]
        assert mine.token != theirs.token
        store.record({anna: answer}, late)
        assert database.rows(columns) == [("sending", None, None, None, None, None)]
        another.record({anna: Answer(Action.ACCEPT, sid="SM" + "b" * 32, segments=1)}, NOON)
    told = [("sent", "SM" + "b" * 32, None, None, NOON.replace(tzinfo=None), 1)]
    assert database.rows(columns) == told
    store.claims[anna] = mine
    store.record({anna: answer}, late)
    store.claims[anna] = mine
    store._disconnect()
    assert store._rows([1]) == [replace_state(theirs)]
    assert database.rows(columns) == told


def replace_state(claim: Row) -> Row:
    """The row of a claim whose text was sent at NOON."""
    return replace(claim, state=State.SENT, finished_at=NOON, sid="SM" + "b" * 32, segments=1)


@pytest.mark.usefixtures("store")
def test_a_run_deletes_rows_after_ninety_days_and_not_before(
    database: Database, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    kept = NOON.date() - timedelta(days=90)
    add_rows(database, "sent", "delivered", (1, kept), (1, kept - timedelta(days=1)))
    assert run(environ, NOON) == 0
    assert remembered(database) == [(1, kept)]
    assert "Deleted 1 rows" in caplog.text


def test_a_clean_up_that_fails_is_told_and_fails_nobody(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(habit_notifier, "DATABASE_PATIENCE", 0.1)
    add_due(database)
    with Proxy((database.server.host, database.server.port)) as proxy:
        lost = proxy.on_query(PURGE, Verdict.CUT_BEFORE, forever=True)
        assert run(environ | {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port)}) == 0
    assert lost.hits
    assert "Left for the next run" in warnings(caplog)
    assert not errors(caplog)
    assert len(twilio.book) == 3


@pytest.mark.parametrize(("retry_days", "tried"), [("3", [0, 3]), ("1", [0, 1, 2, 3]), ("0", [0, 1, 2, 3])])
def test_a_number_that_refused_for_good_rests_for_the_days_of_the_setting(
    database: Database, environ: dict[str, str], twilio: FakeTwilio, retry_days: str, tried: list[int]
) -> None:
    add_due(database, 1)
    twilio.script(then=refuse(OPTED_OUT))
    tries = []
    for day in range(4):
        before = len(sends(twilio))
        assert run(environ | {"REFUSED_RETRY_DAYS": retry_days}, NOON + timedelta(days=day)) == 0
        tries += [day] * (len(sends(twilio)) - before)
    assert tries == tried


def test_a_new_number_is_tried_the_next_day_though_the_old_one_would_rest(
    database: Database, environ: dict[str, str], twilio: FakeTwilio
) -> None:
    [user] = add_due(database, 1)
    twilio.script(then=refuse(LANDLINE), to="+12025550000")
    assert [run(environ, NOON), run(environ, NOON)] == [0, 0]
    assert sends(twilio) == ["+12025550000"]
    database.execute("UPDATE User SET phone_number = '+12025550111' WHERE id = %s", (user,))
    assert run(environ, NOON) == 0
    assert sends(twilio) == ["+12025550000"]  # the day is handled
    assert run(environ, NOON + timedelta(days=1)) == 0
    assert sends(twilio) == ["+12025550000", "+12025550111"]


def sends(twilio: FakeTwilio) -> list[str | None]:
    """The numbers for which a text was posted, whatever the answer."""
    return [request.to for request in twilio.requests if request.operation == "send"]


# --- pages


def judging(store: Store) -> int:
    """Let the store judge by the days at NOON; how many users it will go through."""
    zones = store.zones()
    store.judge_by(habit_notifier.days_by_zone(zones, store._settings, NOON), NOON)
    return sum(zone.users for zone in zones)


def paged(store: Store) -> list[Any]:
    """The ids on all pages, in order; of every page all are due."""
    pages = list(store.pages(judging(store)))
    assert [page.users_in_all for page in pages] == [len(page.users) for page in pages]
    return [user.id for page in pages for user in page.users]


@pytest.mark.parametrize("id_type", ["INT", "CHAR(36)"])
def test_pages_cover_everybody_exactly_once_wherever_they_start(
    server: Server, twilio: FakeTwilio, monkeypatch: pytest.MonkeyPatch, id_type: str
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 3)
    with server.database(id_type=id_type) as database:
        users = add_due(database, 23)
        database.insert_users([("No phone", None, "UTC"), ("Blank", " ", "UTC")])
        with Store(Settings.read(database.environ() | twilio.environ()), Stop()) as store:
            firsts = set()
            for turn in range(12):
                monkeypatch.setattr("random.randrange", lambda total, n=turn: n * 2 % total)
                if turn == 6:  # gaps in the ids
                    for user in [users.pop(0), users.pop(7), users.pop(7), users.pop()]:
                        database.execute("DELETE FROM User WHERE id = %s", (user,))
                seen = paged(store)
                assert sorted(seen) == sorted(users)
                assert len(seen) == len(users)
                firsts.add(seen[0])
            assert len(firsts) > 6


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [((60.0, 90.0), [4, 8, 16, 16, 16]), ((0.0, 60.0), [4] * 15), ((0.0, 0.0), [4, 2, *[1] * 54])],
    ids=["fast", "in between", "slow"],
)
def test_the_next_page_is_larger_or_smaller_as_the_last_one_was_fast_or_slow(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], sizes: list[int]
) -> None:
    """A page of users with years of logs and without the index must not run into the time-out of a statement."""
    monkeypatch.setattr(habit_notifier, "FIRST_PAGE", 4)
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 16)
    monkeypatch.setattr(habit_notifier, "PAGE_SECONDS", seconds)
    add_due(database, 60)
    judging(store)
    assert [page.users_in_all for page in store._pages(None, None)] == sizes


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6])
def test_pages_cover_tables_of_any_size(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 3)
    users = add_due(database, count)
    for start in range(max(count, 1)):
        monkeypatch.setattr("random.randrange", lambda _, n=start: n)
        assert sorted(paged(store)) == users


def test_somebody_deleted_at_the_place_where_the_pages_start_costs_nobody_a_text(
    database: Database, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 2)
    users = add_due(database, 7)
    monkeypatch.setattr("random.randrange", lambda _: 3)
    pages = store.pages(judging(store))
    first = [user.id for user in next(pages).users]
    start = next(user for user in reversed(users) if user < first[0])
    database.execute("DELETE FROM User WHERE id = %s", (start,))
    rest = [user.id for page in pages for user in page.users]
    assert sorted(first + rest) == [user for user in users if user != start]


def test_a_zone_that_came_in_use_during_the_run_is_not_called_unknown(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_due(database)
    count = Store.zones

    def count_and_move(store: Store) -> list[habit_notifier.Zone]:
        zones = count(store)
        database.execute("UPDATE User SET time_zone = 'Asia/Tokyo' WHERE id = 2")
        return zones

    with monkeypatch.context() as patch:
        patch.setattr(Store, "zones", count_and_move)
        assert run(environ, NOON) == 0
    [told] = [line for line in warnings(caplog).splitlines() if line.startswith("User ")]
    assert told.endswith("time zone 'Asia/Tokyo' came in use during this run: the next one serves")
    assert len(twilio.book) == 2
    assert run(environ, NOON) == 0
    assert len(twilio.book) == 3
