"""What the program asks of MySQL before it texts anybody, what it leaves there, and whom its pages cover.

Whatever is wrong with the set-up is one clear line with the remedy, exit code 2, and nobody is texted.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import pytz

import habit_notifier
from habit_notifier import (
    Action,
    Answer,
    Exit,
    Job,
    Ledger,
    Reminder,
    Row,
    Rule,
    State,
    Stop,
    Tracker,
    User,
    utc_now,
)
from tests.runs.statements import HISTORY
from tests.runs.town import NOON, Town, also, create_ledger, judging, opened, variants
from tests.sandbox.database import LEDGER, Server, make_certificates
from tests.sandbox.fake_twilio import FakeTwilio
from tests.sandbox.proxy import Proxy, Verdict

OPTED_OUT = 21610


def column(town: Town, table: str, name: str) -> tuple[Any, ...]:
    """Type, character set and collation."""
    found: tuple[Any, ...]
    [found] = town.sql(
        "SELECT column_type, character_set_name, collation_name FROM information_schema.columns "
        "WHERE table_schema = %s AND table_name = %s AND column_name = %s",
        (town.database.name, table, name),
    )
    return found


def as_administrator(town: Town, lines: list[str]) -> None:
    """Paste lines of the log into the administrator's client, which knows a statement by its semicolon."""
    for line in lines:
        assert line.endswith(";")
        town.sql(line.removesuffix(";"))


@pytest.fixture
def job(town: Town) -> Iterator[Job]:
    """A job that is about to judge, with its ledger."""
    with opened(town.environ) as job:
        yield job


# --- the ledger's table


COLLATIONS = ["ascii_bin", "ascii_general_ci", "latin1_swedish_ci", "utf8mb4_bin", "utf8mb4_unicode_ci"]


@variants(
    *({"id_type": id_type} for id_type in ("INT", "INT UNSIGNED", "BIGINT", "CHAR(36)")),
    *({"id_type": "CHAR(36)", "collation": collation} for collation in COLLATIONS),
)
def test_the_ledger_takes_exactly_the_type_of_the_users_ids(town: Town) -> None:
    town.people(3)
    assert [town.run(), town.run()] == [0, 0]
    assert column(town, LEDGER, "user_id") == column(town, "User", "id")
    assert town.rows("user_id") == [(user,) for user in town.ids]
    assert len(town.twilio.book) == 3


@pytest.mark.parametrize(
    ("variant", "other"),
    [
        ({}, "BIGINT"),
        ({"id_type": "CHAR(36)", "collation": "utf8mb4_bin"}, "CHAR(36)"),
        ({"id_type": "BINARY(16)"}, "BINARY(32)"),
    ],
    ids=["type", "collation", "width"],
)
def test_a_ledger_whose_user_id_is_of_another_type_is_told_with_the_statement_that_mends_it(
    town: Town, other: str
) -> None:
    town.people(3)
    create_ledger(town.database, other)
    assert town.run() == Exit.ACT
    problem, *remedy = town.lines("ERROR")
    assert f"{LEDGER} cannot be used: user_id is {other.lower()}" in problem
    assert "MODIFY `user_id` " in "".join(remedy)
    assert not town.twilio.book
    as_administrator(town, remedy)
    assert town.run() == 0
    assert len(town.twilio.book) == 3


# --- grants


@variants({"id_type": "INT"}, {"id_type": "CHAR(36)", "collation": "ascii_bin"})
def test_without_ledger_and_grant_the_log_holds_what_an_administrator_pastes(town: Town) -> None:
    town.people(3)
    least = town.database.least_account()
    assert town.run(**least) == Exit.ACT
    problem, ddl, grant = town.lines("ERROR")
    assert LEDGER in problem
    assert ddl.startswith("CREATE TABLE")  # first: a grant on a missing table is refused
    assert grant.startswith("GRANT SELECT, INSERT, UPDATE, DELETE ON ")
    assert not town.twilio.book
    as_administrator(town, [ddl, grant])
    assert town.run(**least) == 0
    assert len(town.twilio.book) == 3


# --- tables and columns


@variants({"log_index": False})
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DROP TABLE Log", [".Log'", "is missing"]),
        ("ALTER TABLE User DROP COLUMN time_zone", ["u.time_zone'", "column is missing"]),
        ("ALTER TABLE User DROP COLUMN phone_number", ["u.phone_number'", "column is missing"]),
        ("ALTER TABLE Log DROP COLUMN created_at", ["l.created_at'", "column is missing"]),
        ("ALTER TABLE Log MODIFY created_at BIGINT NOT NULL", ["Log.created_at is bigint", "TIMESTAMP or a DATETIME"]),
        ("ALTER TABLE Log MODIFY created_at VARCHAR(32) NOT NULL", ["Log.created_at is varchar(32)"]),
        ("ALTER TABLE Log MODIFY created_at TIME NOT NULL", ["Log.created_at is time", "or a DATE"]),
    ],
)
def test_a_schema_that_does_not_fit_is_told_in_one_line(town: Town, change: str, words: list[str]) -> None:
    town.people(3)
    town.sql(change)
    assert town.run() == Exit.ACT
    assert all(word in town.problem for word in words), town.problem
    assert not town.twilio.book


def test_tables_whose_names_differ_in_case_only_are_other_tables(town: Town) -> None:
    if town.sql("SELECT @@lower_case_table_names") != [(0,)]:
        pytest.skip("this server folds the case of names")
    town.people(3)
    for other in ("USER", "user"):  # one is told before User, one after it
        town.sql(f"CREATE TABLE `{other}` (id CHAR(36) PRIMARY KEY)")
    for other in ("LOG", "log"):
        town.sql(f"CREATE TABLE `{other}` (created_at BIGINT)")
    for other in (LEDGER.upper(), LEDGER.lower()):
        town.sql(f"CREATE TABLE `{other}` (user_id BIGINT)")
    assert [town.run(), town.run()] == [0, 0]
    assert len(town.twilio.book) == 3


def test_phone_numbers_kept_as_numbers_are_skipped_not_a_crash(town: Town) -> None:
    town.sql("ALTER TABLE User MODIFY phone_number BIGINT")
    town.database.insert_user("Numeric", "12025550100", "UTC")
    town.database.insert_user("Silent", None, "UTC")
    assert town.run() == 0
    assert town.said("phone number '12025550100' is not E.164")
    assert not town.twilio.book


def test_what_is_kept_as_bytes_is_read_as_text(town: Town) -> None:
    town.sql(
        "ALTER TABLE User MODIFY name VARBINARY(255), MODIFY phone_number VARBINARY(32), MODIFY time_zone VARBINARY(64)"
    )
    town.database.insert_user("Zoë", "+12025550100", "Europe/Berlin")
    town.database.insert_user("Lost", "+12025550101", "Mars/Base")
    assert town.run() == 0
    [message] = town.twilio.book
    assert message.to == "+12025550100"
    assert message.body.startswith("Hi Zoë, ")
    assert town.said("User Lost (ID: 2) gets no text, skipped (time zone): time zone 'Mars/Base' is unknown")


# --- the way in


@pytest.mark.parametrize("password", ["grün", "p€w-grün", "пароль"])
def test_a_password_may_have_letters_of_any_script(town: Town, password: str) -> None:
    town.people(3)
    town.sql("ALTER USER %s@'%%' IDENTIFIED BY %s", (town.environ["DB_USER"], password))
    assert town.run(DB_PASSWORD=password) == 0
    assert len(town.twilio.book) == 3


@pytest.mark.parametrize("name", ["habits_no_such", "x" * 65, "information_schema"])
def test_a_database_that_does_not_exist_or_is_not_ours_is_told(town: Town, name: str) -> None:
    assert town.run(DB_NAME=name) == Exit.ACT
    assert "DB_NAME" in town.problem


@pytest.mark.parametrize("change", ["ACCOUNT LOCK", "PASSWORD EXPIRE"])
def test_an_account_that_is_locked_or_whose_password_has_expired_needs_a_person(town: Town, change: str) -> None:
    town.sql(f"ALTER USER %s@'%%' {change}", (town.environ["DB_USER"],))
    assert town.run() == Exit.ACT
    assert "DB_USER" in town.problem


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may change as a whole, with TLS, in a zone far from UTC."""
    with Server(tls=True, global_time_zone="-11:00") as running:
        yield running


@pytest.fixture
def own(
    own_server: Server, variant: dict[str, Any], twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> Iterator[Town]:
    """A town on that server."""
    with own_server.database(**variant) as database:
        yield Town(database, twilio, caplog)


def test_what_a_server_gives_new_sessions_undoes_no_claim_and_cuts_no_list(
    own: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MySQL's greeting says that autocommit is on where it was switched off; MariaDB's does not."""
    monkeypatch.setattr("pymysql.connections.Connection.get_autocommit", lambda _: True)
    people = own.people(5)
    own.sql("SET GLOBAL autocommit = 0, GLOBAL sql_select_limit = 2")
    try:
        assert own.run() == own.run() == 0
    finally:
        own.sql("SET GLOBAL autocommit = 1, GLOBAL sql_select_limit = DEFAULT")
    assert own.served == people
    assert own.counts == {"sent": 5}


@pytest.mark.parametrize("switch", ["read_only", "super_read_only"])
def test_a_read_only_server_is_told_to_be_replaced_by_the_primary(own: Town, switch: str) -> None:
    if switch == "super_read_only" and own.database.server.kind == "mariadb":
        pytest.skip("MariaDB has no super_read_only")
    own.people(3)
    create_ledger(own.database)
    account = own.database.least_account()  # read_only spares administrators
    own.sql(f"SET GLOBAL {switch} = 1")
    try:
        assert own.run(**account) == Exit.ACT
        assert "set DB_HOST to the primary" in own.problem
    finally:
        own.sql("SET GLOBAL read_only = 0")
    assert not own.twilio.book
    assert own.run(**account) == 0
    assert len(own.twilio.book) == 3


@pytest.fixture
def tls_only(own: Town) -> Town:
    """Somebody is due; the account is let in by TLS only."""
    own.people(3)
    own.sql("ALTER USER %s@'%%' REQUIRE SSL", (own.environ["DB_USER"],))
    return own


def test_with_the_right_ca_the_way_to_the_database_is_encrypted(tls_only: Town) -> None:
    assert tls_only.run() == 0
    assert len(tls_only.twilio.book) == 3


def test_a_certificate_of_another_ca_is_refused(tls_only: Town, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    assert tls_only.run(DB_SSL_CA=tmp_path / "ca.pem") == Exit.ACT
    assert "DB_SSL_CA" in tls_only.problem
    assert not tls_only.twilio.book


def test_a_certificate_for_another_name_is_refused(tls_only: Town) -> None:
    assert tls_only.run(DB_HOST="127.1") == Exit.ACT  # the same machine, by a name that no certificate holds
    assert "DB_HOST" in tls_only.problem
    assert not tls_only.twilio.book


def test_the_last_dot_of_a_name_is_not_looked_for_in_the_certificate(
    tls_only: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more: resolve(host.rstrip("."), *more))
    assert tls_only.run(DB_HOST="localhost.") == 0
    assert len(tls_only.twilio.book) == 3


def test_with_a_ca_nothing_is_said_to_a_server_that_offers_no_tls(own: Town) -> None:
    with Proxy((own.database.server.host, own.database.server.port)) as stripping:
        assert own.run(**stripping.environ()) == Exit.ACT
        assert "TLS" in own.problem
        assert stripping.queries == 0


@pytest.mark.parametrize("tls", [True, False])
def test_an_account_of_caching_sha2_password_gets_in(town: Town, tls: bool) -> None:
    """A new account: its password is not yet in the server's cache, which takes TLS or RSA."""
    server = town.database.server
    if server.kind == "mariadb":
        pytest.skip("MariaDB has no caching_sha2_password")
    town.people(3)
    account = town.database.least_account(create=True)
    plugin = town.sql("SELECT plugin FROM mysql.user WHERE user = %s", (account["DB_USER"],))
    assert plugin == [("caching_sha2_password",)]
    if tls:
        town.sql("ALTER USER %s@'%%' REQUIRE SSL", (account["DB_USER"],))
    with Proxy((server.host, server.port), hide_tls=not tls) as proxy:
        assert town.run(**account | proxy.environ()) == 0
    assert len(town.twilio.book) == 3


# --- the database's clock


@variants({"created_at": "DATETIME"}, {"created_at": "TIMESTAMP"})
def test_logs_that_a_server_of_another_zone_dates_ahead_are_warned_of(town: Town, variant: dict[str, str]) -> None:
    town.people(1)
    [habit] = town.database.insert_habits(town.ids)
    with town.database.connect(init_command="SET time_zone = '+02:00'") as application, application.cursor() as cursor:
        cursor.execute("INSERT INTO Log (habit_id) VALUES (%s)", (habit,))  # dated by the server
    assert town.run(utc_now) == 0
    assert town.said("Log.created_at must be in UTC") == (variant["created_at"] == "DATETIME")


@variants({"created_at": "DATETIME"}, {"created_at": "DATETIME(6)"}, {"created_at": "TIMESTAMP"})
def test_zero_dates_among_the_newest_logs_are_no_logs_and_no_fault(town: Town) -> None:
    town.people(3)
    habits = town.database.insert_habits(town.ids)
    with town.database.connect(init_command="SET sql_mode = ''") as application, application.cursor() as cursor:
        cursor.executemany("INSERT INTO Log (habit_id, created_at) VALUES (%s, '0000-00-00')", [(h,) for h in habits])
    assert town.run() == 0
    assert town.run(NOON + timedelta(days=1), QUIET_AFTER="1") == 0
    assert len(town.twilio.book) == 3
    assert town.said("left in peace (QUIET_AFTER) 3")
    assert not town.lines("ERROR")


# --- what the ledger remembers


def add_rows(town: Town, state: str, final_status: str | None, *keys: tuple[Any, date]) -> None:
    said = {"state": state, "final_status": final_status, "error_code": OPTED_OUT if state == "refused" else None}
    for user, day in keys:
        town.database.insert_row(user, datetime.combine(day, time()), **said)


@pytest.mark.constants(KEYS=2)
def test_the_purge_deletes_whatever_is_older_a_few_rows_at_a_time(town: Town, job: Job) -> None:
    """Refusals, too: no gate looks further back."""
    before = date(2026, 2, 1)
    old, older = before - timedelta(days=1), before - timedelta(days=2)
    add_rows(town, "sent", "delivered", (1, old), (1, before), (2, older))
    add_rows(town, "refused", "refused", (4, older), (4, before))
    add_rows(town, "sending", None, (7, older))
    add_rows(town, "uncertain", None, (8, older))
    assert [job.ledger.purge(before) for _ in range(4)] == [2, 2, 1, 0]
    assert town.rows("user_id, local_day") == [(1, before), (4, before)]


@pytest.mark.usefixtures("job")
def test_sigterm_ends_the_purge_between_two_statements(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(habit_notifier, "KEYS", 2)
    add_rows(town, "sent", "delivered", *((user, NOON.date() - timedelta(days=91 + user)) for user in range(6)))
    town.stop = Stop()
    monkeypatch.setattr(Ledger, "purge", also(Ledger.purge, before=town.stop.request))
    assert town.run() == Exit.TERMINATED
    assert sorted(town.rows("user_id")) == [(0,), (1,), (2,), (3,)]  # the oldest go first


@pytest.mark.parametrize("ours", [Action.ACCEPT, Action.UNCERTAIN, Action.REFUSE, Action.UNREACHED])
def test_what_became_of_a_text_is_never_written_into_another_runs_row(town: Town, job: Job, ours: Action) -> None:
    """Neither by recording it nor by writing it again on a new connection."""
    late = NOON + timedelta(hours=1)
    columns = f"SELECT state, message_sid, error_code, final_status, finished_at, segments FROM {LEDGER}"
    answer = Answer(ours, code=21610, sid="SM" + "a" * 32, segments=2)
    ledger = job.ledger
    with opened(town.environ) as another:
        [theirs] = another.ledger.claim([ANNA], NOON)[1]
        [seen] = ledger.claim([ANNA], NOON)[1]
        assert seen == theirs
        mine = ledger.claims[ANNA]
        assert mine.token != theirs.token
        ledger.record({ANNA: answer}, late)
        assert town.sql(columns) == [("sending", None, None, None, None, None)]
        another.ledger.record({ANNA: Answer(Action.ACCEPT, sid="SM" + "b" * 32, segments=1)}, NOON)
    told = [("sent", "SM" + "b" * 32, None, None, NOON.replace(tzinfo=None), 1)]
    assert town.sql(columns) == told
    ledger.claims[ANNA] = mine
    ledger.record({ANNA: answer}, late)
    ledger.claims[ANNA] = mine
    job.database.close()
    sent = replace(theirs, state=State.SENT, finished_at=NOON, sid="SM" + "b" * 32, segments=1)
    assert ledger.history([1]) == {1: [sent]}
    assert town.sql(columns) == told


def reminders(*phones: str) -> list[Reminder]:
    """For users 1, 2, ..., at NOON."""
    days = habit_notifier.days_of(NOON, pytz.utc)
    users = (User(n, f"User {n}", phone, "UTC", days, logged_day1=False) for n, phone in enumerate(phones, 1))
    return [Reminder(user, Rule.NO_LOGS, days) for user in users]


ANNA, BERT = reminders("+12025550101", "+12025550102")
ACCEPTED = Answer(Action.ACCEPT, sid="SM" + "a" * 32, segments=1)
LATER = NOON + timedelta(microseconds=1)


def test_a_new_connection_writes_again_what_the_old_servers_crash_may_have_lost(
    town: Town, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rows that were recorded, and the claims whose texts are in flight."""
    job.ledger.claim([ANNA, BERT], LATER)
    claimed = job.ledger.claims[BERT]
    job.ledger.record({ANNA: ACCEPTED}, LATER)

    def written_again() -> list[Row]:
        town.sql(f"DELETE FROM {LEDGER}")
        job.database.close()
        return list(chain.from_iterable(job.ledger.history([1, 2]).values()))

    sent, in_flight = written_again()
    assert (sent.state, sent.sid, sent.finished_at) == (State.SENT, ACCEPTED.sid, LATER)
    assert in_flight == claimed
    town.sql(f"UPDATE {LEDGER} SET state = 'sending', message_sid = NULL WHERE user_id = 1")  # the record alone is lost
    job.database.close()
    assert job.ledger.history([1, 2]) == {1: [sent], 2: [claimed]}
    monkeypatch.setattr(job.ledger, "_done", deque(maxlen=0))
    assert written_again() == [claimed]
    job.ledger.claim([ANNA], LATER)
    job.ledger.release([ANNA])
    job.ledger.record({BERT: ACCEPTED}, LATER)
    assert written_again() == []


def test_a_release_that_the_old_servers_crash_took_back_is_made_again(town: Town, job: Job) -> None:
    """Else the row of a text that was surely not sent would stay at 'sending', and nobody try it again that day."""
    job.ledger.claim([ANNA, BERT], NOON)
    claimed = job.ledger.claims[ANNA]
    job.ledger.release([ANNA])
    with opened(town.environ) as admin:
        admin.database.run(*habit_notifier.upsert([claimed]))
    job.database.close()
    job.ledger.record({BERT: ACCEPTED}, NOON)
    assert town.states == {BERT.user.phone: "sent"}


def test_a_release_made_again_leaves_room_for_the_text_that_was_sent_after_it(town: Town, job: Job) -> None:
    """Else no row would say that a text was sent, and the next run would send another."""
    job.ledger.claim([ANNA], NOON)
    first = job.ledger.claims[ANNA]
    job.ledger.release([ANNA])
    job.ledger.claim([ANNA], NOON)
    job.ledger.record({ANNA: ACCEPTED}, NOON)
    town.sql(f"DELETE FROM {LEDGER}")  # the crash took back all but the first claim
    with opened(town.environ) as admin:
        admin.database.run(*habit_notifier.upsert([first]))
    job.database.close()
    job.database.run("SELECT 1")
    assert town.states == {ANNA.user.phone: "sent"}


def test_a_ledger_that_a_promoted_replica_lacks_is_made_again_by_the_run_that_had_made_it(town: Town) -> None:
    town.sql(f"DROP TABLE IF EXISTS {LEDGER}")
    with opened(town.environ) as job:
        job.ledger.claim([ANNA], NOON)
        town.sql(f"DROP TABLE {LEDGER}")
        job.database.close()
        job.ledger.record({ANNA: ACCEPTED}, NOON)
    assert town.states == {ANNA.user.phone: "sent"}


def test_a_crash_between_the_statements_of_a_record_loses_no_row(
    town: Town, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "KEYS", 1)
    job.ledger.claim([ANNA, BERT], NOON)
    upsert, crashes = habit_notifier.upsert, iter([True])

    def crash_before(rows: Sequence[Row]) -> tuple[str, list[object]]:
        if rows[0].user_id == 2 and next(crashes, False):
            town.sql(f"DELETE FROM {LEDGER}")
            job.database.close()
        return upsert(rows)

    monkeypatch.setattr(habit_notifier, "upsert", crash_before)
    job.ledger.record(dict.fromkeys([ANNA, BERT], ACCEPTED), NOON)
    assert list(town.states.values()) == ["sent", "sent"]


def test_a_crash_between_the_statements_of_a_release_brings_no_row_back(
    town: Town, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "KEYS", 1)
    job.ledger.claim([ANNA, BERT], NOON)
    any_of, calls = habit_notifier.any_of, iter([False, True])

    def crash_before(keys: Sequence[object]) -> str:
        if next(calls, False):
            job.database.close()
        return any_of(keys)

    monkeypatch.setattr(habit_notifier, "any_of", crash_before)
    job.ledger.release([ANNA, BERT])
    assert not town.states


def test_what_is_released_or_settled_is_the_row_of_that_user_and_day_alone(
    town: Town, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their tokens: older programs gave those who were claimed together one."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "a" * 32)
    tomorrow = replace(ANNA, days=habit_notifier.days_of(NOON + timedelta(days=1), pytz.utc))
    job.ledger.claim([ANNA, tomorrow, BERT], NOON)
    job.ledger.settle([replace(job.ledger.claims[BERT], final_status="unknown")])
    assert town.rows("user_id, final_status") == [(1, None), (2, "unknown"), (1, None)]
    job.ledger.release([ANNA])
    assert town.rows("user_id, local_day") == [(2, NOON.date()), (1, NOON.date() + timedelta(days=1))]


def test_a_claim_sees_the_last_days_of_each_user_whatever_day_it_is_where_others_live(town: Town, job: Job) -> None:
    tomorrow = replace(BERT, days=habit_notifier.days_of(NOON + timedelta(days=1), pytz.utc))
    add_rows(town, "sent", None, *((1, NOON.date() - timedelta(days=days)) for days in (2, 3)))
    rows = job.ledger.claim([ANNA, tomorrow], NOON)
    assert [(NOON.date() - row.local_day).days for row in rows[1]] == [2, 0]


@pytest.mark.usefixtures("town")
def test_the_widest_values_that_are_let_through_fit_their_columns(job: Job) -> None:
    [long] = reminders("+123456789012345")
    job.ledger.claim([long], NOON)
    job.ledger.record({long: replace(ACCEPTED, code=999_999, segments=32_767)}, NOON)
    [row] = job.ledger.history([1])[1]
    job.ledger.settle([replace(row, final_status="x" * 32)])
    [row] = job.ledger.history([1])[1]
    assert (row.phone, row.sid, row.code) == (long.user.phone, ACCEPTED.sid, 999_999)
    assert (row.segments, row.final_status) == (32_767, "x" * 32)


def test_a_value_that_its_column_cannot_hold_is_refused_and_not_cut(town: Town, job: Job) -> None:
    with pytest.raises(habit_notifier.DatabaseError, match="Data too long"):
        job.ledger.claim(reminders("+120255501010000000"), NOON)
    assert town.rows("*") == []


@pytest.mark.usefixtures("job")
def test_a_run_deletes_rows_after_ninety_days_and_not_before(town: Town) -> None:
    kept = NOON.date() - timedelta(days=90)
    add_rows(town, "sent", "delivered", (1, kept), (1, kept - timedelta(days=1)))
    assert town.run() == 0
    assert town.rows("user_id, local_day") == [(1, kept)]
    assert town.said("Deleted 1 rows")


@pytest.mark.parametrize(("after", "known"), [(-1, 0), (0, 1), (1, 1)])
def test_the_ledger_of_another_moment_has_what_was_claimed_until_then(
    town: Town, job: Job, after: int, known: int
) -> None:
    town.database.insert_row(1, NOON)
    job.database.as_of = NOON + timedelta(microseconds=after)
    assert len(job.ledger.history([1]).get(1, ())) == known


def test_rows_of_which_no_gate_has_anything_to_say_are_not_read(town: Town, proxy: Proxy) -> None:
    """Of most users that is so: a table of millions of rows costs a run only those that matter."""
    town.people(3)
    assert town.run(NOON - timedelta(days=3)) == 0
    town.sql(f"UPDATE {LEDGER} SET final_status = 'delivered'")
    reads = proxy.on_query(HISTORY, Verdict.PASS)
    assert town.run(**proxy.environ()) == 0
    assert reads.seen == 0
    assert len(town.texts) == 3


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many rows of each user were in memory, each time that some were read."""
    counts, history = [], Ledger.history

    def counted(*args: Any) -> dict[Any, list[Row]]:
        found = history(*args)
        counts.append([len(rows) for rows in found.values()])
        return found

    monkeypatch.setattr(Ledger, "history", counted)
    return counts


def test_the_rows_of_a_page_are_not_all_in_memory_at_once(
    town: Town, read: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are up to ninety of each user: those of 5,000 are more than a pod may hold."""
    town.people(5)
    assert town.run() == 0
    del read[:]
    monkeypatch.setattr(habit_notifier, "IN_LIST", 2)
    assert town.run(NOON + timedelta(days=1), QUIET_AFTER=1) == 0
    assert max(map(len, read)) == 2
    assert sum(map(len, read)) == 5
    assert town.said("left in peace (QUIET_AFTER) 5")


def test_of_whoever_has_todays_row_no_other_is_read(town: Town, read: list[list[int]]) -> None:
    """Hourly runs come across them again and again."""
    town.people(3)
    assert town.run(NOON - timedelta(days=1)) == 0
    assert town.run() == 0
    del read[:]
    assert town.run(NOON + timedelta(hours=1)) == 0
    assert [rows for each in read for rows in each] == [1, 1, 1]
    assert town.said("already handled today 3")


# --- pages


def paged(tracker: Tracker) -> list[Any]:
    """The ids on all pages, in order; of every page all are due."""
    pages = list(tracker.pages(judging(tracker)))
    assert [page.last for page in pages] == [*[False] * (len(pages) - 1), *[True] * bool(pages)]
    assert [page.users_in_all for page in pages] == [len(page.users) for page in pages]
    return [user.id for page in pages for user in page.users]


@variants({"id_type": "INT"}, {"id_type": "CHAR(36)"})
def test_pages_cover_everybody_exactly_once_wherever_they_start(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 3)
    town.people(23)
    users = town.ids
    town.database.insert_users([("No phone", None, "UTC"), ("Blank", " ", "UTC")])
    with opened(town.environ) as job:
        firsts = set()
        for turn in range(12):
            monkeypatch.setattr("random.randrange", lambda total, n=turn: n * 2 % total)
            if turn == 6:  # gaps in the ids
                for user in [users.pop(0), users.pop(7), users.pop(7), users.pop()]:
                    town.sql("DELETE FROM User WHERE id = %s", (user,))
            seen = paged(job.tracker)
            assert sorted(seen) == sorted(users)
            assert len(seen) == len(users)
            firsts.add(seen[0])
        assert len(firsts) > 6


@pytest.mark.usefixtures("from_the_first")
@pytest.mark.constants(FIRST_PAGE=4, PAGE_USERS=16, READERS=1)  # of two, the one's time decides on the other's next
@pytest.mark.parametrize(("seconds", "sizes"), [(60.0, [4, 8, 16, 16, 16]), (0.0, [4] * 15)], ids=["fast", "slow"])
def test_the_next_page_is_larger_only_where_the_last_one_was_fast(
    town: Town, job: Job, monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: list[int]
) -> None:
    """A page of users with years of logs and without the index must not run into the time-out of a statement."""
    monkeypatch.setattr(habit_notifier, "PAGE_SECONDS", seconds)
    town.people(60)
    assert [page.users_in_all for page in job.tracker.pages(judging(job.tracker))] == sizes


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6])
def test_pages_cover_tables_of_any_size(town: Town, job: Job, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 3)
    town.people(count)
    for start in range(max(count, 1)):
        monkeypatch.setattr("random.randrange", lambda _, n=start: n)
        assert sorted(paged(job.tracker)) == town.ids


def test_somebody_deleted_at_the_place_where_the_pages_start_costs_nobody_a_text(
    town: Town, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 2)
    town.people(7)
    users = town.ids
    monkeypatch.setattr("random.randrange", lambda _: 3)
    pages = job.tracker.pages(judging(job.tracker))
    first = [user.id for user in next(pages).users]
    start = next(user for user in reversed(users) if user < first[0])
    town.sql("DELETE FROM User WHERE id = %s", (start,))
    rest = [user.id for page in pages for user in page.users]
    assert sorted(first + rest) == [user for user in users if user != start]


def test_a_percent_sign_in_a_statement_without_arguments_stands_for_itself(job: Job) -> None:
    assert job.database.run("SELECT '100%s'") == [("100%s",)]  # as a name of a database may have it


@pytest.mark.parametrize(
    ("zone", "settings", "shown"),
    [
        ("'Asia/Tokyo'", {}, "'Asia/Tokyo'"),
        ("NULL", {"DEFAULT_TIME_ZONE": "Asia/Tokyo"}, "''"),
        ("'Mars'", {"DEFAULT_TIME_ZONE": "Asia/Tokyo"}, "'Mars'"),
    ],
)
def test_a_zone_that_came_in_use_during_the_run_is_not_called_unknown(
    town: Town, zone: str, settings: dict[str, str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.people(3)
    move = f"UPDATE User SET time_zone = {zone} WHERE id = 2"
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "zones", also(Tracker.zones, after=lambda: town.sql(move)))
        assert town.run(**settings) == 0
    [told] = [line for line in town.lines("WARNING") if line.startswith("User ")]
    assert told.endswith(f"time zone {shown} came in use during this run: the next one serves")
    assert len(town.twilio.book) == 2
    assert town.run(**settings) == 0
    assert len(town.twilio.book) == 3
