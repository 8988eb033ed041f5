"""A throw-away MySQL-compatible server, and fresh databases with the tables of the habit tracker in it.

    with Server() as server, server.database(id_type="CHAR(36)") as database:
        database.insert_user("Ana", "+12025550100", "Europe/Madrid", logs=[yesterday])
        run_the_program(database.environ())

The server lives in a temporary folder and goes away with the process that started it, however that process ends.
It is the mysqld or mariadbd of the machine; failing that a Docker container; failing that, for root on Debian or
Ubuntu, a package of MariaDB. `Server.from_url` wraps a server that somebody else runs: same attributes, no lifecycle.

Everything is made for speed, not for keeping data through a power cut: nothing is ever synced to disk. A commit
does reach the kernel, so that it outlives `kill()`, the kill -9 of the server.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import Cursor

DOCKER_IMAGE = "mysql:8.4"
START_TIMEOUT = 60.0
DOCKER_TIMEOUT = 300.0  # the first start also downloads the image

PLACES = (
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/bin",
    "/usr/local/bin",
    "/usr/libexec",
    "/usr/local/libexec",
    "/usr/local/mysql/bin",
    "/opt/homebrew/opt/mysql*/bin",
    "/opt/homebrew/opt/mariadb*/bin",
    "/usr/local/opt/mysql*/bin",
    "/usr/local/opt/mariadb*/bin",
    "/home/linuxbrew/.linuxbrew/opt/mysql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/mariadb*/bin",
)
"""Where packages put the server, beside PATH: sbin is not on the PATH of an ordinary user, nor are brew's versions."""

CHOICES = "install MariaDB or MySQL, start Docker, or set TEST_MYSQL_URL to mysql://user:password@host:port/"

LEAN = (  # loose: what a family or version does not know, it passes over
    "--skip-log-bin",
    "--loose-mysqlx=OFF",
    "--loose-performance-schema=OFF",
    "--secure-file-priv=",  # MySQL's default is a folder that may be missing or not ours
    "--loose-innodb-flush-method=nosync",
    "--loose-innodb-log-file-size=32M",
    "--innodb-buffer-pool-size=64M",
)
SERVING = (
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
    "--max-connections=500",
    "--innodb-flush-log-at-trx-commit=1",  # as a stock server has it; nothing is synced all the same
    "--loose-innodb-buffer-pool-dump-at-shutdown=OFF",
    "--loose-innodb-buffer-pool-load-at-startup=OFF",
)

LEDGER = "HabitNotification"
LONG_AGO = "2024-01-01"  # when users and habits began

Id = int | str
Say = Callable[[str], object]


class ServerError(RuntimeError):
    """The server that is there cannot be used; the message says why."""


class NoServerError(ServerError):
    """No throw-away server can be had on this machine; the message says what to do about it."""


class Server:
    """A MySQL-compatible server. `with Server() as server:` starts a throw-away one and removes it at the end."""

    host = "127.0.0.1"
    port: int
    user = "root"
    password = ""
    kind: str  # "mariadb" or "mysql"
    version: str
    origin: str  # how it was had, in words: for progress lines and error messages
    ca_file: str | None = None

    def __init__(
        self,
        *,
        tls: bool = False,
        global_time_zone: str = "+00:00",
        options: Sequence[str] = (),
        say: Say | None = None,
    ) -> None:
        """Extra `options` go last, so they win. `say` hears of slow steps."""
        self._engine: _Engine | None = None
        self._options = (f"--default-time-zone={global_time_zone}", *options)
        self._tls = tls
        self._say = say or _silence

    @classmethod
    def from_url(cls, url: str) -> Server:
        """The server of somebody else, as in TEST_MYSQL_URL: mysql://user:password@host:port/?ssl_ca=/path/to/ca.pem"""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("mysql", "mariadb") or not parts.hostname:
            raise ServerError(f"TEST_MYSQL_URL: write mysql://user:password@host:port/, not {_without_password(url)}")
        server = cls()
        server.host = parts.hostname
        server.port = parts.port or 3306
        server.user = urllib.parse.unquote(parts.username or "root")
        server.password = urllib.parse.unquote(parts.password or "")
        server.ca_file = dict(urllib.parse.parse_qsl(parts.query)).get("ssl_ca")
        server.origin = "the server that TEST_MYSQL_URL names"
        try:
            server._look()
        except pymysql.err.MySQLError as error:
            raise ServerError(f"TEST_MYSQL_URL names a server that cannot be used: {error}") from None
        return server

    def __enter__(self) -> Self:
        if not hasattr(self, "port"):
            self._make()
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Server {getattr(self, 'origin', 'not started')}>"

    @property
    def label(self) -> str:
        """'MariaDB 10.11.4' or 'MySQL 9.7.0'."""
        return f"{'MariaDB' if self.kind == 'mariadb' else 'MySQL'} {self.version}"

    @property
    def throwaway(self) -> bool:
        """Whether it is ours to stop, start and kill."""
        return self._engine is not None

    def database(self, **variant: Any) -> Database:
        """A fresh database on this server, to be used in a `with`: see `Database` for the variants."""
        return Database(self, **variant)

    def connect(self, **kwargs: Any) -> Connection[Any]:
        """A connection as the administrator: autocommit, session in UTC. Keywords override those of pymysql.connect."""
        settings: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "charset": "utf8mb4",
            "autocommit": True,
            "init_command": "SET time_zone = '+00:00'",
            "connect_timeout": 10,
        }
        if self.ca_file:
            settings |= {"ssl_ca": self.ca_file, "ssl_verify_cert": True, "ssl_verify_identity": True}
        elif self.throwaway:
            settings["ssl_disabled"] = True  # else PyMySQL reads all authorities of the machine: 25 ms a connection
        connection: Connection[Any] = pymysql.connect(**settings | kwargs)
        return connection

    def start(self) -> None:
        """Start again after `stop` or `kill`: the same data, the same port."""
        self._lifecycle().start()
        self._wait()

    def stop(self) -> None:
        """Shut down in order; the data stays for `start`."""
        self._lifecycle().stop()

    def kill(self) -> None:
        """kill -9: every connection breaks at once, no commit is lost; `start` recovers."""
        self._lifecycle().kill()

    def running(self) -> bool:
        """Whether it runs; of a server of somebody else we assume so."""
        return self._engine is None or self._engine.alive()

    def remove(self) -> None:
        """Stop and delete everything. Safe to call twice; a server of somebody else stays as it is."""
        if self._engine is not None:
            self._engine.remove()

    def _lifecycle(self) -> _Engine:
        if self._engine is None:
            raise RuntimeError(f"{self.origin} is not ours to stop or start")
        return self._engine

    def _make(self) -> None:
        self._engine = engine = _find_engine(self._say)
        try:
            self.port = engine.port = _free_port()
            self.origin = engine.origin
            if self._tls:
                make_certificates(engine.folder)
                self.ca_file = str(engine.folder / "ca.pem")
                engine.tls = True
            engine.prepare(self._options)
            engine.start()
            self._wait()
            self._look()
        except BaseException:  # Ctrl-C during the start must not leave a server behind
            self.remove()
            raise

    def _wait(self) -> None:
        engine = self._lifecycle()
        deadline = time.monotonic() + engine.timeout
        while True:
            try:
                if engine.owns(self._ask("SELECT @@datadir", connect_timeout=5)):
                    return
                reason = f"another server has taken port {self.port}"
            except pymysql.err.MySQLError as error:
                reason = str(error)
            if not engine.alive() or time.monotonic() > deadline:
                raise ServerError(f"{engine.origin} does not start: {reason}\n{engine.log_tail()}")
            time.sleep(0.02)

    def _look(self) -> None:
        version = self._ask("SELECT VERSION()")
        self.kind = "mariadb" if "mariadb" in version.lower() else "mysql"
        self.version = version.split("-")[0]

    def _ask(self, question: str, **kwargs: Any) -> str:
        with self.connect(**kwargs) as connection, connection.cursor() as cursor:
            cursor.execute(question)
            return str(cursor.fetchall()[0][0])


class Database:
    """A fresh database with the tables User, Habit and Log; `with` creates it and drops it at the end.

    id_type     INT, BIGINT, INT UNSIGNED, DECIMAL(20), CHAR(36), CHAR(32) or BINARY(16): of every id; the last
                three hold UUIDs
    collation   of the ids when they are text, and of the whole tables when it is one of utf8mb4
    created_at  TIMESTAMP, DATETIME or DATETIME(6)
    log_index   whether Log is indexed by (habit_id, created_at), or by habit_id alone as its foreign key needs
    """

    def __init__(
        self,
        server: Server,
        *,
        id_type: str = "INT",
        collation: str | None = None,
        created_at: str = "TIMESTAMP",
        log_index: bool = True,
    ) -> None:
        self.server = server
        self.name = f"habits_{secrets.token_hex(6)}"
        self.id_type = id_type
        self.collation = collation
        self.created_at = created_at
        self.log_index = log_index
        self._ids = {table: itertools.count(1) for table in ("User", "Habit", "Log")}
        self._connection: Connection[Any] | None = None
        self._accounts: list[str] = []
        self._owner: dict[str, str] = {}

    def __enter__(self) -> Self:
        with self.server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{self.name}` CHARACTER SET utf8mb4")
        for statement in self._schema():
            self.execute(statement)
        self._owner = self._new_account()
        self.execute(f"GRANT ALL PRIVILEGES ON `{self.name}`.* TO %s@'%%'", (self._owner["DB_USER"],))
        return self

    def __exit__(self, *exc: object) -> None:
        if self._connection is not None:
            with contextlib.suppress(pymysql.err.MySQLError):
                self._connection.close()
            self._connection = None
        if not self.server.running():  # a test may have stopped it; then the data goes with the server
            return
        with self.server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS `{self.name}`")
            for account in self._accounts:
                cursor.execute("DROP USER IF EXISTS %s@'%%'", (account,))

    def environ(self) -> dict[str, str]:
        """The settings of the program for this database, with an account that may do everything in it."""
        settings = {"DB_HOST": self.server.host, "DB_PORT": str(self.server.port), "DB_NAME": self.name} | self._owner
        if self.server.ca_file:
            settings["DB_SSL_CA"] = self.server.ca_file
        return settings

    def connect(self, **kwargs: Any) -> Connection[Any]:
        """A new connection to this database as the administrator: autocommit, session in UTC."""
        return self.server.connect(**{"database": self.name} | kwargs)

    def execute(self, sql: str, args: object = None) -> int:
        """Run one statement; the number of rows affected. Reconnects after a restart of the server."""
        return self._run(sql, args)[0]

    def rows(self, sql: str, args: object = None) -> list[tuple[Any, ...]]:
        return self._run(sql, args)[1]

    def _run(self, sql: str, args: object) -> tuple[int, list[tuple[Any, ...]]]:
        with self._cursor() as cursor:
            affected = cursor.execute(sql, args)
            return affected, list(cursor.fetchall())

    def _cursor(self) -> Cursor:
        if self._connection is None or not _alive(self._connection):
            self._connection = self.connect()
        cursor: Cursor = self._connection.cursor()
        return cursor

    # --- filling it

    def insert_user(
        self,
        name: str | None,
        phone_number: str | None,
        time_zone: str | None,
        *,
        logs: Iterable[datetime] = (),
        habits: int = 1,
    ) -> Id:
        """One user with so many habits; the logs (aware instants) go round them. Returns the id."""
        [user_id] = self.insert_users([(name, phone_number, time_zone)])
        habit_ids = self.insert_habits([user_id] * habits)
        self.insert_logs(zip(itertools.cycle(habit_ids), logs) if habits else ())
        return user_id

    def insert_users(self, users: Iterable[tuple[str | None, str | None, str | None]]) -> list[Id]:
        """Many users, (name, phone_number, time_zone) each, in bulk. Returns their ids in order."""
        rows = [(self._new_id("User"), *user, LONG_AGO) for user in users]
        self._insert("INSERT INTO User (id, name, phone_number, time_zone, created_at) VALUES (%s,%s,%s,%s,%s)", rows)
        return [row[0] for row in rows]

    def insert_habits(self, user_ids: Iterable[Id]) -> list[Id]:
        """One habit for each user id given, in bulk. Returns the ids of the habits in order."""
        rows = [(self._new_id("Habit"), user_id, "Read ten pages", None, LONG_AGO) for user_id in user_ids]
        self._insert("INSERT INTO Habit (id, user_id, name, description, created_at) VALUES (%s,%s,%s,%s,%s)", rows)
        return [row[0] for row in rows]

    def insert_logs(self, logs: Iterable[tuple[Id, datetime]]) -> None:
        """Many logs, (habit_id, aware instant) each, in bulk."""
        rows = ((self._new_id("Log"), habit_id, None, _utc(instant)) for habit_id, instant in logs)
        self._insert("INSERT INTO Log (id, habit_id, notes, created_at) VALUES (%s,%s,%s,%s)", rows)

    def insert_row(self, user_id: object, at: datetime, **differs: object) -> None:
        """A row of the ledger: a text that was sent at that instant of UTC, unless said otherwise."""
        moment = at.replace(tzinfo=None)
        row: dict[str, object] = {"user_id": user_id, "local_day": moment.date(), "phone_number": "+12025550100"}
        row |= {"rule": "no_logs", "state": "sent", "run_token": uuid.uuid4().hex}
        row |= {"claimed_at": moment, "finished_at": moment} | differs
        places = ", ".join(["%s"] * len(row))
        self.execute(f"INSERT INTO {LEDGER} ({', '.join(row)}) VALUES ({places})", list(row.values()))

    def _insert(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        batches = iter(rows)
        while batch := list(itertools.islice(batches, 20_000)):  # keeps the memory of a benchmark flat
            with self._cursor() as cursor:
                cursor.executemany(sql, batch)

    def _new_id(self, table: str) -> Any:
        one = uuid.uuid4()
        uuids = {"CHAR(36)": str(one), "CHAR(32)": one.hex, "BINARY(16)": one.bytes}
        return uuids.get(self.id_type) or next(self._ids[table])

    # --- accounts

    def least_account(self, *, create: bool = False) -> dict[str, str]:
        """A new account with the least privileges that the program needs, as settings that override `environ()`.

        It may read User, Habit and Log, and read and write the ledger. With `create` it may also create the ledger.
        Without, and while there is no ledger, it gets no privilege on it: the server refuses a grant on a missing
        table.
        """
        settings = self._new_account()
        for table in ("User", "Habit", "Log"):
            self.execute(f"GRANT SELECT ON `{self.name}`.`{table}` TO %s@'%%'", (settings["DB_USER"],))
        if create or self.rows("SHOW TABLES LIKE %s", (LEDGER,)):
            privileges = "SELECT, INSERT, UPDATE, DELETE" + (", CREATE" if create else "")
            self.execute(f"GRANT {privileges} ON `{self.name}`.`{LEDGER}` TO %s@'%%'", (settings["DB_USER"],))
        return settings

    def _new_account(self) -> dict[str, str]:
        account, password = f"u_{secrets.token_hex(6)}", secrets.token_hex(8)
        self.execute("CREATE USER %s@'%%' IDENTIFIED BY %s", (account, password))
        self._accounts.append(account)
        return {"DB_USER": account, "DB_PASSWORD": password}

    # --- the tables

    def _schema(self) -> list[str]:
        id_type, table = self.id_type, "DEFAULT CHARACTER SET utf8mb4"
        if self.collation and id_type.startswith("CHAR"):
            id_type += f" CHARACTER SET {self.collation.split('_')[0]} COLLATE {self.collation}"
        if self.collation and self.collation.startswith("utf8mb4_"):
            table += f" COLLATE {self.collation}"
        key = f"{id_type} NOT NULL" + (" AUTO_INCREMENT" if "INT" in id_type else "") + " PRIMARY KEY"
        precision = self.created_at.removeprefix("TIMESTAMP").removeprefix("DATETIME")
        created_at = f"created_at {self.created_at} NOT NULL DEFAULT CURRENT_TIMESTAMP{precision}"
        index = ", INDEX habit_created (habit_id, created_at)" if self.log_index else ""
        user = f"id {key}, name VARCHAR(255), phone_number VARCHAR(32), time_zone VARCHAR(64), {created_at}"
        habit = f"id {key}, user_id {id_type} NOT NULL, name VARCHAR(255) NOT NULL, description TEXT, {created_at}"
        log = f"id {key}, habit_id {id_type} NOT NULL, notes TEXT, {created_at}"
        return [
            f"CREATE TABLE User ({user}) {table}",
            f"CREATE TABLE Habit ({habit}, FOREIGN KEY (user_id) REFERENCES User (id)) {table}",
            f"CREATE TABLE Log ({log}, FOREIGN KEY (habit_id) REFERENCES Habit (id){index}) {table}",
        ]


# --- engines: what runs a throw-away server


class _Engine(Protocol):
    """The lifecycle of one throw-away server; `folder` is its own, removed at the end."""

    folder: Path
    origin: str
    port: int
    tls: bool
    timeout: float

    def prepare(self, options: Sequence[str]) -> None: ...
    def start(self) -> None: ...
    def alive(self) -> bool: ...
    def owns(self, data: str) -> bool: ...
    def log_tail(self) -> str: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def remove(self) -> None: ...


class _Process:
    """The mysqld or mariadbd of the machine, in a folder of its own, under the account that runs us."""

    timeout = START_TIMEOUT

    def __init__(self, binary: str) -> None:
        self.binary = binary
        version = subprocess.run([binary, "--no-defaults", "--version"], capture_output=True, text=True).stdout
        self.mariadb = "mariadb" in version.lower()
        self.origin = f"{binary} in a temporary folder"
        self.port = 0
        self.tls = False
        self.folder = _temporary_folder()
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self._pid_file = self.folder / "pid"
        # Should we die without a goodbye, the guardian kills the server that the pid file names.
        self._guardian = _Guardian('kill -9 $(cat "$1/pid") && sleep 0.2; rm -rf "$1"', self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments: list[str] = []

    def prepare(self, options: Sequence[str]) -> None:
        """Create the system tables, and write down how the server is started."""
        self.data.mkdir()
        first = self.folder / "first.sql"
        first.write_text(  # a stock server knows root@localhost alone, which is not 127.0.0.1 without name resolution
            "CREATE USER IF NOT EXISTS root@'127.0.0.1' IDENTIFIED BY '';\n"
            "GRANT ALL PRIVILEGES ON *.* TO root@'127.0.0.1' WITH GRANT OPTION;\n"
        )
        common = [
            "--no-defaults",
            f"--datadir={self.data}",
            f"--tmpdir={self.folder}",  # a MariaDB that starts deletes all temporary tables in its folder
            *(["--user=root"] if os.geteuid() == 0 else []),
            *LEAN,
        ]
        if self.mariadb:
            self._bootstrap_mariadb(common)
        else:
            self._run_once([self.binary, *common, "--initialize-insecure"])
        self._arguments = [
            *common,
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder / 's'}",  # a path of over about 100 characters is refused
            f"--pid-file={self.folder / 'server.pid'}",
            f"--init-file={first}",
            *SERVING,
            *(f"--ssl-{name}={self.folder / name}.pem" for name in ("ca", "cert", "key") if self.tls),
            *options,
        ]

    def _bootstrap_mariadb(self, common: list[str]) -> None:
        """As mariadb-install-db does, which is a package of its own here and there, and which as root would change
        the owner of the machine's PAM helper."""
        if sql := _mariadb_system_tables(self.binary):
            sql = f"CREATE DATABASE IF NOT EXISTS mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n{sql}"
            self._run_once([self.binary, *common, "--bootstrap", "--log-warnings=0", "--max-allowed-packet=8M"], sql)
        else:
            script = shutil.which("mariadb-install-db") or shutil.which("mysql_install_db") or "mariadb-install-db"
            self._run_once([script, *common, "--auth-root-authentication-method=normal", "--skip-test-db"])

    def _run_once(self, command: list[str], stdin: str = "") -> None:
        try:
            process = self._launch(command)
        except OSError as error:
            raise ServerError(f"{self.origin} cannot be set up: {error}") from None
        process.communicate(stdin.encode())
        if process.returncode:
            raise ServerError(f"{self.origin} cannot create its system tables\n{self.log_tail()}")

    def start(self) -> None:
        if not self.alive():
            self._launch([self.binary, *self._arguments])

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # the Ctrl-C of the terminal is ours alone: we stop the server last
            )
        self._pid_file.write_text(str(process.pid))
        return process

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def owns(self, data: str) -> bool:
        """Whether the server with this folder of data is ours: two that start at once may have chosen the same port."""
        return Path(data).resolve() == self.data.resolve()

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(["the end of its log:", *(f"  {line}" for line in lines[-15:])])

    def stop(self) -> None:
        self._end(lambda process: process.terminate())

    def kill(self) -> None:
        self._end(lambda process: process.kill())

    def _end(self, signal: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._process is None:
            return
        signal(self._process)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    def remove(self) -> None:
        if self._guardian.dismissed:
            return
        self.kill()  # nobody needs the data any more
        shutil.rmtree(self.folder, ignore_errors=True)
        self._guardian.dismiss()


class _Container:
    """A container of Docker, for a machine without a server of its own."""

    timeout = DOCKER_TIMEOUT
    origin = f"a Docker container of {DOCKER_IMAGE}"

    def __init__(self) -> None:
        self.port = 0
        self.tls = False
        self.folder = _temporary_folder()
        self.folder.chmod(0o755)  # the server runs under another account
        self.name = self.folder.name
        self._guardian = _Guardian('docker rm -f -v "$2" >/dev/null 2>&1; rm -rf "$1"', self.folder, self.name)

    def prepare(self, options: Sequence[str]) -> None:
        tls = [f"--ssl-{name}=/sandbox/{name}.pem" for name in ("ca", "cert", "key") if self.tls]
        self._docker(
            *("create", "--name", self.name, "--publish", f"127.0.0.1:{self.port}:3306"),
            *("--env", "MYSQL_ALLOW_EMPTY_PASSWORD=1", "--env", "MYSQL_ROOT_HOST=%"),
            *(("--volume", f"{self.folder}:/sandbox:ro") if self.tls else ()),
            *(DOCKER_IMAGE, *LEAN, *SERVING, *tls, *options),
        )

    def start(self) -> None:
        self._docker("start", self.name)

    def alive(self) -> bool:
        return self._docker("inspect", "--format", "{{.State.Running}}", self.name, check=False).strip() == "true"

    def owns(self, data: str) -> bool:
        """Always: Docker itself refuses a port that is taken."""
        return bool(data)

    def log_tail(self) -> str:
        return "the end of its log:\n" + self._docker("logs", "--tail", "15", self.name, check=False)

    def stop(self) -> None:
        self._docker("stop", "--time", "30", self.name)

    def kill(self) -> None:
        self._docker("kill", self.name)

    def remove(self) -> None:
        if self._guardian.dismissed:
            return
        self._docker("rm", "--force", "--volumes", self.name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._guardian.dismiss()

    def _docker(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, start_new_session=True)
        if check and done.returncode:
            raise ServerError(f"docker {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout + done.stderr


class _Guardian:
    """A small shell that waits for our end and then cleans up, whatever that end was: kill -9 included.

    It reads from a pipe that only we hold open; when we die, the kernel closes it.
    """

    def __init__(self, script: str, *arguments: object) -> None:
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r _; {script}", "guardian", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        atexit.register(self.dismiss)

    @property
    def dismissed(self) -> bool:
        """Whether the work is done, or not ours: a forked child must not stop the server of its parent."""
        return self._process.returncode is not None or os.getpid() != self._owner

    def dismiss(self) -> None:
        """End our side of the pipe, and wait until it has cleaned up what is left."""
        if not self.dismissed:
            self._process.communicate()


def _find_engine(say: Say) -> _Engine:
    if binary := find_binary():
        return _Process(binary)
    if _docker_answers():
        say(f"No MySQL or MariaDB on this machine; Docker brings {DOCKER_IMAGE} (a download the first time)")
        return _Container()
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say("No MySQL, MariaDB or Docker on this machine; apt-get installs mariadb-server-core")
        _apt_install("mariadb-server-core")
        if binary := find_binary():
            return _Process(binary)
    raise NoServerError(f"No MySQL-compatible server can be had on this machine: {CHOICES}.")


def find_binary() -> str | None:
    """The server program of the machine, wherever its package put it."""
    places = (place for pattern in PLACES for place in sorted(Path("/").glob(pattern.removeprefix("/"))))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, places)])
    return shutil.which("mysqld", path=path) or shutil.which("mariadbd", path=path)


def _docker_answers() -> bool:
    """A client alone is not enough: many machines have one without an engine."""
    try:
        done = subprocess.run(["docker", "info"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _apt_install(package: str) -> None:
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        done = subprocess.run(["apt-get", "--quiet", *command], capture_output=True, text=True, env=environ)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NoServerError(f"apt-get cannot install {package} ({reason}): {CHOICES}.")


def _mariadb_system_tables(binary: str) -> str | None:
    """The SQL that creates MariaDB's system tables, from where this server keeps its files."""
    described = subprocess.run([binary, "--no-defaults", "--help", "--verbose"], capture_output=True, text=True).stdout
    named = [line.split()[-1] for line in described.splitlines() if line.startswith("lc-messages-dir ")]
    prefix = Path(binary).resolve().parent.parent
    for folder in [*map(Path, named), prefix / "share/mysql", prefix / "share/mariadb", Path("/usr/share/mysql")]:
        for family in ("mariadb", "mysql"):  # MariaDB 11 renamed them
            stems = ("system_tables", "performance_tables", "system_tables_data")
            files = [folder / f"{family}_{stem}.sql" for stem in stems]
            if all(file.exists() for file in files):
                return "\n".join(file.read_text() for file in files)
    return None


# --- small things


def make_certificates(folder: Path) -> None:
    """A certificate authority (ca.pem) and a certificate of it for 127.0.0.1 and localhost (cert.pem, key.pem)."""
    (folder / "tls.cnf").write_text(
        "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = habit-notifier sandbox\n"
        "[authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign\n"
        "subjectKeyIdentifier = hash\n"
        "[server]\nbasicConstraints = CA:FALSE\nkeyUsage = digitalSignature\nextendedKeyUsage = serverAuth\n"
        "subjectAltName = DNS:localhost, IP:127.0.0.1\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n"
    )
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config tls.cnf"
    sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca-key.pem"
    for command in (
        f"req -x509 {new_key} -keyout ca-key.pem -out ca.pem -days 30 -extensions authority",
        f"req -new {new_key} -keyout key.pem -out server.csr -subj /CN=localhost",
        f"{sign} -set_serial 1 -days 30 -out cert.pem -extfile tls.cnf -extensions server",
    ):
        done = subprocess.run(["openssl", *command.split()], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f"openssl cannot make the certificates of the sandbox: {done.stderr.strip()}")
    (folder / "key.pem").chmod(0o644)  # for the server in a container


def _temporary_folder() -> Path:
    # Not $TMPDIR: its path may be too long for a socket, and AppArmor lets Ubuntu's mysqld write under /tmp only.
    short = "/tmp"  # noqa: S108 - mkdtemp makes a folder of our own there
    return Path(tempfile.mkdtemp(prefix="habit-sandbox-", dir=short if os.access(short, os.W_OK) else None))


def _free_port() -> int:
    """A free port below those that the kernel gives to outgoing connections.

    One of theirs could be taken while the server is stopped, even by a client that tries to reach it.
    """
    for port in random.sample(range(20_000, 32_000), 1_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError("There is no free port from 20000 to 32000 on 127.0.0.1")


def _alive(connection: Connection[Any]) -> bool:
    try:
        connection.ping(reconnect=False)
    except pymysql.err.Error:
        return False
    return True


def _silence(_line: str) -> None:
    """What `say` is when nobody listens."""


def _utc(instant: datetime) -> datetime:
    """Naive UTC, as the columns hold it. PyMySQL would drop the zone of an aware datetime without a word."""
    if instant.tzinfo is None:
        raise ValueError(f"{instant!r} has no zone: pass an aware datetime")
    return instant.astimezone(UTC).replace(tzinfo=None)


def _without_password(url: str) -> str:
    _, at, tail = url.rpartition("@")
    return f"…@{tail}" if at else url
