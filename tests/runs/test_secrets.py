"""No secret leaves the program: not to a server that nobody vouches for, and not into the log or what Kubernetes shows.

What is said by MySQL, Twilio or a library passes one place that takes secrets out.
"""

from __future__ import annotations

import logging
import re
import socket
import struct
from unittest.mock import Mock

import pymysql
import pytest

from habit_notifier import DatabaseError, Tracker
from tests.environ import settings_of
from tests.runs.town import FORM, Town
from tests.sandbox.fake_twilio import FakeTwilio
from tests.sandbox.sockets import Canned, SocketServer

# Nothing here depends on the kind of server: one is enough.
pytestmark = pytest.mark.parametrize("server", ["throwaway"], indirect=True, scope="session")

PASSWORD = "hunter2-and-more"


class Impostor(SocketServer):
    """Answers like a MySQL server, asks for the password by a plugin of its choice, and keeps what it gets."""

    def __init__(self, plugin: bytes, question: bytes) -> None:
        super().__init__()
        self._switch = b"\xfe" + plugin + b"\0" + question
        self.heard = b""

    def serve(self, client: socket.socket) -> None:
        capabilities = 0x000FF7FF & ~0x0800  # all that a server of today can do, but no TLS
        low, high = struct.pack("<I", capabilities)[:2], struct.pack("<I", capabilities)[2:]
        greeting = b"\x0a9.0.0\0" + struct.pack("<I", 7) + b"saltsalt\0" + low + b"\x2d\x02\0" + high
        greeting += b"\x15" + bytes(10) + b"saltsaltsalt\0" + b"mysql_native_password\0"
        client.settimeout(2)
        self._say(client, greeting, 0)
        self.heard += client.recv(65_536)
        self._say(client, self._switch, 2)
        while data := client.recv(65_536):
            self.heard += data

    @staticmethod
    def _say(client: socket.socket, packet: bytes, number: int) -> None:
        client.sendall(struct.pack("<I", len(packet))[:3] + bytes([number]) + packet)


def said(town: Town) -> str:
    """All that a reader of the last run's log sees, whoever said it."""
    return "\n".join(map(FORM.format, town.caplog.records))


@pytest.mark.parametrize(
    ("plugin", "question"),
    [(b"mysql_clear_password", b""), (b"mysql_clear_password", b"saltsaltsalt\0"), (b"dialog", b"\x04Password: ")],
    ids=["clear", "clear with salt", "dialog"],
)
def test_a_server_that_nobody_vouches_for_does_not_get_the_password(town: Town, plugin: bytes, question: bytes) -> None:
    with Impostor(plugin, question) as impostor:
        changes = {"DB_HOST": "127.0.0.1", "DB_PORT": str(impostor.port), "DB_PASSWORD": PASSWORD}
        assert town.run(**changes) == 2
    assert town.environ["DB_NAME"].encode() in impostor.heard  # it was taken for a server
    assert PASSWORD.encode() not in impostor.heard
    assert "it asks for the password in clear text: set DB_SSL_CA" in said(town)
    assert "please report it" not in said(town)


def test_a_server_that_is_not_verified_is_told_at_the_start(town: Town) -> None:
    assert town.run() == 0
    assert "INFO MySQL's server is not verified: DB_SSL_CA would do that" in town.log


@pytest.mark.usefixtures("server")  # as all tests here do
@pytest.mark.parametrize("number", [1044, 1045, 1130, 1142, 1143, 1370, 1698, 1820, 3118, 3159, 4151, 1, 65_535])
def test_whatever_mysql_says_of_the_account_is_told_without_it(number: int) -> None:
    told = settings_of(DB_USER="habit-app", DB_PASSWORD=PASSWORD)
    said = f"Access denied for user 'habit-app'@'10.1.2.3' (using password: {PASSWORD})"
    error = pymysql.err.OperationalError(number, said)
    words = str(DatabaseError(error, told.hide, connected=False, written=False))
    assert "habit-app" not in words
    assert PASSWORD not in words


@pytest.mark.constants(OUTAGE_PATIENCE=0.0)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_librarys_warning_of_an_odd_header_does_not_tell_the_account(town: Town, log_format: str) -> None:
    """urllib3 names the URL then, and with it the Account SID."""
    answer = b"HTTP/1.1 200 OK\r\nDate: x\r\nno header at all\r\nContent-Length: 2\r\n\r\n{}"
    with Canned(answer) as odd:
        assert town.run(TWILIO_API_URL=odd.url, LOG_FORMAT=log_format) == 1
    assert odd.requests
    logging.getLogger("requests").warning("GET /Accounts/%s/Messages.json", FakeTwilio.ACCOUNT_SID)
    assert "/Accounts/***/Messages.json" in said(town).splitlines()[-1]
    assert FakeTwilio.ACCOUNT_SID not in said(town)


def test_a_traceback_does_not_tell_what_an_exception_holds(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = LookupError(f"GET /2010-04-01/Accounts/{FakeTwilio.ACCOUNT_SID} {FakeTwilio.AUTH_TOKEN}")
    monkeypatch.setattr(Tracker, "zones", Mock(side_effect=fault))
    assert town.run() == 1
    assert re.search(r"please report it.*LookupError: GET /2010-04-01/Accounts/\*{3} \*{3}", said(town))
    assert FakeTwilio.ACCOUNT_SID not in said(town)
    assert FakeTwilio.AUTH_TOKEN not in said(town)
