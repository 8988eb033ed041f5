"""No secret leaves the program: not to a server that nobody vouches for, and not into the log or what Kubernetes shows.

What is said by MySQL, Twilio or a library passes one place that takes secrets out.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

import habit_notifier
from habit_notifier import DatabaseError, OneLine, Settings
from tests.rules.test_answers import Canned
from tests.runs import program
from tests.sandbox.database import Database
from tests.sandbox.fake_twilio import FakeTwilio

# Nothing here depends on the kind of server: one is enough.
pytestmark = pytest.mark.parametrize("server", ["throwaway"], indirect=True, scope="session")

PASSWORD = "hunter2-and-more"


class Impostor:
    """Answers like a MySQL server, asks for the password by a plugin of its choice, and keeps what it gets."""

    def __init__(self, plugin: bytes, question: bytes) -> None:
        self._switch = b"\xfe" + plugin + b"\0" + question
        self.heard = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        capabilities = 0x000FF7FF & ~0x0800  # all that a server of today can do, but no TLS
        low, high = struct.pack("<I", capabilities)[:2], struct.pack("<I", capabilities)[2:]
        greeting = b"\x0a9.0.0\0" + struct.pack("<I", 7) + b"saltsalt\0" + low + b"\x2d\x02\0" + high
        greeting += b"\x15" + bytes(10) + b"saltsaltsalt\0" + b"mysql_native_password\0"
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                with client, suppress(OSError):
                    client.settimeout(2)
                    self._say(client, greeting, 0)
                    self.heard += client.recv(65_536)
                    self._say(client, self._switch, 2)
                    while data := client.recv(65_536):
                        self.heard += data

    @staticmethod
    def _say(client: socket.socket, packet: bytes, number: int) -> None:
        client.sendall(struct.pack("<I", len(packet))[:3] + bytes([number]) + packet)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The lines as a reader would see them."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(OneLine("%(levelname)s %(message)s").format(record))

    handler = Keep()
    logging.getLogger().addHandler(handler)
    yield lines
    logging.getLogger().removeHandler(handler)
    assert caplog


@pytest.mark.parametrize(
    ("plugin", "question"),
    [(b"mysql_clear_password", b""), (b"mysql_clear_password", b"saltsaltsalt\0"), (b"dialog", b"\x04Password: ")],
    ids=["clear", "clear with salt", "dialog"],
)
def test_a_server_that_nobody_vouches_for_does_not_get_the_password(
    environ: dict[str, str], log: list[str], plugin: bytes, question: bytes
) -> None:
    with Impostor(plugin, question) as impostor:
        changes = {"DB_HOST": "127.0.0.1", "DB_PORT": str(impostor.port), "DB_PASSWORD": PASSWORD}
        assert program.run(environ | changes) == 2
    assert environ["DB_NAME"].encode() in impostor.heard  # it was taken for a server
    assert PASSWORD.encode() not in impostor.heard
    assert any("it asks for the password in clear text: set DB_SSL_CA" in line for line in log)
    assert not any("please report it" in line for line in log)


def test_a_server_that_is_not_verified_is_told_at_the_start(environ: dict[str, str], log: list[str]) -> None:
    assert program.run(environ) == 0
    assert "INFO MySQL's server is not verified: DB_SSL_CA would do that" in log


def test_a_missing_grant_is_told_without_the_account(
    database: Database, environ: dict[str, str], log: list[str]
) -> None:
    account = database.least_account()
    database.execute(f"REVOKE SELECT ON `{database.name}`.`Log` FROM %s@'%%'", (account["DB_USER"],))
    assert program.run(environ | account) == 2
    assert any(line.startswith("ERROR MySQL: DB_USER lacks a grant on this table") for line in log)
    assert not any(account["DB_USER"] in line or account["DB_PASSWORD"] in line for line in log)


@pytest.mark.parametrize("number", [1044, 1045, 1130, 1142, 1143, 1370, 1698, 1820, 3118, 3159, 4151, 1, 65_535])
def test_whatever_mysql_says_of_the_account_is_told_without_it(database: Database, number: int) -> None:
    import pymysql

    told = Settings.read(database.environ() | {"DB_USER": "habit-app", "DB_PASSWORD": PASSWORD} | _account())
    said = f"Access denied for user 'habit-app'@'10.1.2.3' (using password: {PASSWORD})"
    error = pymysql.err.OperationalError(number, said)
    words = str(DatabaseError(error, told.hide, connected=False, written=False))
    assert "habit-app" not in words
    assert PASSWORD not in words


def _account() -> dict[str, str]:
    return {
        "TWILIO_ACCOUNT_SID": FakeTwilio.ACCOUNT_SID,
        "TWILIO_AUTH_TOKEN": FakeTwilio.AUTH_TOKEN,
        "TWILIO_FROM_NUMBER": FakeTwilio.FROM_NUMBER,
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_librarys_warning_of_an_odd_header_does_not_tell_the_account(
    environ: dict[str, str], log: list[str], log_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """urllib3 names the URL then, and with it the Account SID."""
    monkeypatch.setattr(habit_notifier, "OUTAGE_PATIENCE", 0.0)
    answer = b"HTTP/1.1 200 OK\r\nDate: x\r\nno header at all\r\nContent-Length: 2\r\n\r\n{}"
    with Canned(answer) as odd:
        assert program.run(environ | {"TWILIO_API_URL": odd.url, "LOG_FORMAT": log_format}) == 1
    assert odd.requests
    logging.getLogger("requests").warning("GET /Accounts/%s/Messages.json", FakeTwilio.ACCOUNT_SID)
    assert "/Accounts/***/Messages.json" in log[-1]
    assert not any(FakeTwilio.ACCOUNT_SID in line for line in log)


def test_a_traceback_does_not_tell_what_an_exception_holds(
    environ: dict[str, str], log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_store: object) -> None:
        raise LookupError(f"GET /2010-04-01/Accounts/{FakeTwilio.ACCOUNT_SID} {FakeTwilio.AUTH_TOKEN}")

    monkeypatch.setattr(habit_notifier.Store, "zones", fail)
    assert program.run(environ) == 1
    assert any("please report it" in line and "LookupError: GET /2010-04-01/Accounts/*** ***" in line for line in log)
    assert not any(FakeTwilio.ACCOUNT_SID in line or FakeTwilio.AUTH_TOKEN in line for line in log)
