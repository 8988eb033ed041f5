"""The sandbox's database is what it says: a test that stands on it proves nothing otherwise."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pymysql
import pytest

from tests.project.shell import program
from tests.sandbox import database as sandbox
from tests.sandbox.database import LEDGER, Database, NoServerError, Server, ServerError

NOON = datetime(2024, 3, 10, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def own(throwaway: None) -> Iterator[Server]:  # noqa: ARG001
    """A throw-away server that the tests of this file may stop and kill."""
    with Server(global_time_zone="+05:30", options=["--max-connections=77"]) as server:
        yield server


def names(server: Server) -> set[str]:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SHOW DATABASES")
        return {row[0] for row in cursor.fetchall()}


def accounts(server: Server) -> set[str]:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT user FROM mysql.user")
        return {row[0] for row in cursor.fetchall()}


# --- the server


def test_a_throwaway_server_takes_the_zone_and_the_options_that_it_is_given(own: Server) -> None:
    with own.database() as database:
        assert database.rows("SELECT @@global.time_zone, @@session.time_zone, @@max_connections") == [
            ("+05:30", "+00:00", 77)
        ]


def test_stop_and_start_keep_data_and_port(own: Server) -> None:
    with own.database() as database:
        database.insert_user("Ana", "+12025550100", "UTC", logs=[NOON])
        port = own.port
        own.stop()
        assert not own.running()
        with pytest.raises(pymysql.err.OperationalError):
            own.connect()
        own.start()
        assert own.port == port
        assert database.rows("SELECT name FROM User") == [("Ana",)]


def test_a_database_outlives_that_its_server_was_stopped(own: Server) -> None:
    with own.database():
        own.stop()
    own.start()


def test_the_server_of_somebody_else_is_never_stopped(own: Server) -> None:
    with Server.from_url(f"mysql://{own.user}@{own.host}:{own.port}/") as named:
        assert not named.throwaway
        assert (named.kind, named.version) == (own.kind, own.version)
        for end in (named.stop, named.kill):
            with pytest.raises(RuntimeError, match="not ours"):
                end()
    assert own.running()
    own.connect().close()


@pytest.mark.parametrize("url", ["127.0.0.1:3306", "postgres://root:geheim@localhost/", "mysql://"])
def test_a_wrong_url_is_explained_without_its_password(url: str) -> None:
    with pytest.raises(ServerError, match="write mysql://user:password@host:port/") as error:
        Server.from_url(url)
    assert "geheim" not in str(error.value)


def test_a_url_may_hold_a_password_with_special_characters(own: Server) -> None:
    with own.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE USER odd@'%' IDENTIFIED BY 'p@ss/w:rd'")
    assert Server.from_url(f"mysql://odd:p%40ss%2Fw%3Ard@{own.host}:{own.port}/").password == "p@ss/w:rd"
    with pytest.raises(ServerError, match=r"cannot be used.*1045"):
        Server.from_url(f"mysql://odd:wrong@{own.host}:{own.port}/")


# --- how it ends, or does not begin


START = """
import os, signal, sys, time
from tests.sandbox.database import Server
with Server() as server:
    print(server.port, server._engine.folder, flush=True)
    if sys.argv[1] == "return":
        sys.exit()
    time.sleep(60)
"""


@pytest.mark.usefixtures("throwaway")
@pytest.mark.parametrize("end", ["return", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_stays_however_the_process_ends(end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", START, end], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout
        port, folder = process.stdout.readline().split()
        if end != "return":
            process.send_signal(signal.Signals[end])
    deadline = time.monotonic() + 20
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(folder).exists()
    with pytest.raises(pymysql.err.OperationalError):
        pymysql.connect(host="127.0.0.1", port=int(port), user="root", ssl_disabled=True)


@pytest.mark.usefixtures("throwaway")
def test_a_forked_child_that_ends_leaves_the_server_of_its_parent_alone() -> None:
    fork = "import sys, os; from tests.sandbox.database import Server\nwith Server() as server:\n"
    child = (
        "    if (pid := os.fork()) == 0: sys.exit(0)\n    os.waitpid(pid, 0); server.connect().close(); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", fork + child], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr


@pytest.mark.usefixtures("throwaway")
def test_a_server_that_does_not_start_shows_the_end_of_its_log_and_leaves_nothing() -> None:
    server = Server(options=["--no-such-option"])
    with pytest.raises(ServerError, match=r"(?s)does not start.*the end of its log:.*no-such-option"):
        server.__enter__()
    assert server._engine
    assert not server._engine.folder.exists()


def test_a_port_that_another_server_has_taken_is_noticed(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_free_port", lambda: own.port)
    with pytest.raises(ServerError, match=r"does not start"):
        Server().__enter__()
    assert own.running()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without server and Docker, of an ordinary user; returns the only folder on its PATH."""
    monkeypatch.setattr(sandbox, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


@pytest.mark.usefixtures("bare")
def test_a_machine_without_any_server_gets_one_clear_sentence() -> None:
    with pytest.raises(NoServerError) as error:
        Server().__enter__()
    assert str(error.value) == (
        "No MySQL-compatible server can be had on this machine: install MariaDB or MySQL, start Docker, "
        "or set TEST_MYSQL_URL to mysql://user:password@host:port/."
    )


def test_a_docker_client_without_an_engine_is_no_docker(bare: Path) -> None:
    program(bare / "docker", "exit 1")
    with pytest.raises(NoServerError, match="start Docker"):
        Server().__enter__()


def test_a_docker_engine_is_asked_before_apt_and_its_reason_is_told(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(bare / "apt-get", "exit 1")
    program(bare / "docker", '[ "$1" = info ] || { echo "no space left" >&2; exit 1; }')
    heard: list[str] = []
    with pytest.raises(ServerError, match="docker create failed: no space left"):
        Server(say=heard.append).__enter__()
    assert len(heard) == 1
    assert "Docker brings mysql:" in heard[0]


def test_root_installs_a_server_when_there_is_apt(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(bare / "apt-get", f'echo "$@" >>{bare}/asked; echo "E: Unable to locate package" >&2; exit 100')
    heard: list[str] = []
    with pytest.raises(NoServerError, match=r"apt-get cannot install mariadb-server-core .E: Unable"):
        Server(say=heard.append).__enter__()
    assert heard == ["No MySQL, MariaDB or Docker on this machine; apt-get installs mariadb-server-core"]
    assert "install --yes" in (bare / "asked").read_text()


def test_a_server_outside_of_path_is_found(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bare / "opt" / "mysql@8.4" / "bin"
    folder.mkdir(parents=True)
    program(folder / "mysqld", "true")
    assert sandbox.find_binary() is None
    monkeypatch.setattr(sandbox, "PLACES", (f"{bare}/opt/mysql*/bin",))
    assert sandbox.find_binary() == str(folder / "mysqld")


# --- databases


def test_databases_and_their_accounts_are_separate_and_go_at_the_end(server: Server) -> None:
    with server.database() as one, server.database() as other:
        mine = {one.environ()["DB_USER"], one.least_account()["DB_USER"], other.environ()["DB_USER"]}
        one.insert_user("Ana", "+12025550100", "UTC")
        assert other.rows("SELECT * FROM User") == []
        assert {one.name, other.name} <= names(server)
        assert mine <= accounts(server)
    assert not {one.name, other.name} & names(server)
    assert not mine & accounts(server)


@pytest.mark.parametrize(
    ("id_type", "collation", "created_at"),
    [
        *(("INT", None, "TIMESTAMP"), ("BIGINT", None, "DATETIME"), ("INT UNSIGNED", None, "DATETIME(6)")),
        *(("CHAR(36)", "utf8mb4_bin", "TIMESTAMP"), ("CHAR(36)", "latin1_swedish_ci", "TIMESTAMP")),
    ],
)
def test_a_variant_has_the_types_that_it_names(
    server: Server, id_type: str, collation: str | None, created_at: str
) -> None:
    with server.database(id_type=id_type, collation=collation, created_at=created_at) as database:
        columns = database.rows(
            "SELECT column_name, column_type, collation_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE()"
        )
        types = {(name, re.sub(r"(?<=int)\(\d+\)", "", kind), of_text) for name, kind, of_text in columns}  # a width
        ids = {(kind, of_text) for name, kind, of_text in types if name in ("id", "user_id", "habit_id")}
        assert ids == {(id_type.lower(), collation)}
        assert {kind for name, kind, _ in types if name == "created_at"} == {created_at.lower()}

        user_id = database.insert_user("王小明", "+12025550100", "UTC", logs=[NOON])
        assert database.rows("SELECT id, name FROM User") == [(user_id, "王小明")]
        assert database.rows("SELECT created_at FROM Log") == [(NOON.replace(tzinfo=None),)]


def test_logs_go_round_the_habits_of_their_user(database: Database) -> None:
    [ana, ben] = database.insert_users([("Ana", None, None), ("Ben", None, None)])
    cas = database.insert_user("Cas", None, None, habits=2, logs=[NOON, NOON, NOON])
    counts = database.rows("SELECT COUNT(Log.id) FROM Habit LEFT JOIN Log ON habit_id = Habit.id GROUP BY Habit.id")
    assert sorted(counts) == [(1,), (2,)]
    assert len({ana, ben, cas}) == 3


def test_an_instant_is_stored_in_utc_and_a_naive_one_is_refused(database: Database) -> None:
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    database.insert_user("Ana", None, None, logs=[datetime(2024, 3, 10, 17, 45, tzinfo=kathmandu)])
    assert database.rows("SELECT created_at FROM Log") == [(datetime(2024, 3, 10, 12),)]  # noqa: DTZ001
    with pytest.raises(ValueError, match="has no zone"):
        database.insert_user("Ben", None, None, logs=[datetime(2024, 3, 10, 12)])  # noqa: DTZ001


def test_bulk_insertion_is_quick(database: Database) -> None:
    since = time.monotonic()
    users = database.insert_users(("Ana", "+12025550100", "UTC") for _ in range(5_000))
    habits = database.insert_habits(users)
    database.insert_logs((habit, NOON) for habit in habits for _ in range(5))
    assert database.rows("SELECT COUNT(*) FROM Log") == [(25_000,)]
    assert time.monotonic() - since < 20, "a benchmark of 200,000 users would take for ever"


# --- accounts


def refused(database: Database, account: dict[str, str], sql: str) -> bool:
    with database.connect(user=account["DB_USER"], password=account["DB_PASSWORD"]) as connection:
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
        except pymysql.err.OperationalError as error:
            if error.args[0] not in (1142, 1044):
                raise
            return True
    return False


MAKE_LEDGER = f"CREATE TABLE {LEDGER} (user_id INT)"


def test_the_least_account_reads_the_tables_and_writes_the_ledger_only(database: Database) -> None:
    database.execute(MAKE_LEDGER)
    least = database.least_account()
    for table in ("User", "Habit", "Log"):
        assert not refused(database, least, f"SELECT * FROM {table}")
        assert refused(database, least, f"DELETE FROM {table}")
    for statement in (
        f"INSERT INTO {LEDGER} VALUES (1)",
        f"UPDATE {LEDGER} SET user_id = 2",
        f"SELECT * FROM {LEDGER}",
        f"DELETE FROM {LEDGER}",
    ):
        assert not refused(database, least, statement)
    for statement in (f"ALTER TABLE {LEDGER} ADD COLUMN x INT", f"DROP TABLE {LEDGER}", "CREATE TABLE x (y INT)"):
        assert refused(database, least, statement)
