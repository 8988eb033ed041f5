"""A database that is not there, says nothing or goes away: one clear line, the right exit code, and no text is lost."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import habit_notifier
from habit_notifier import Exit
from tests.runs import program
from tests.runs.statements import CLAIM, HISTORY, PAGE, PURGE, RECORD, SLICE
from tests.sandbox.database import LEDGER, Database
from tests.sandbox.fake_twilio import FakeTwilio, refuse
from tests.sandbox.proxy import Proxy, Verdict

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
USERS = 10
TERMINATED = 143


@pytest.fixture
def people(database: Database) -> list[str]:
    """The numbers of some users, all of them due."""
    users = [(f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(USERS)]
    database.insert_users(users)
    return [number for _, number, _ in users]


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    with Proxy((database.server.host, database.server.port)) as running:
        yield running


@pytest.fixture
def far(environ: dict[str, str], proxy: Proxy) -> dict[str, str]:
    """The settings, with the proxy before the database."""
    return environ | {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port), "SEND_CONCURRENCY": "4"}


@pytest.fixture
def nowhere(twilio: FakeTwilio) -> Iterator[tuple[dict[str, str], socket.socket]]:
    """Settings that lead to a port where nobody listens yet, and its socket: what a process does there is the same
    whatever the server would be."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        where = {"DB_HOST": "127.0.0.1", "DB_PORT": str(port.getsockname()[1]), "DB_NAME": "habits"}
        yield where | {"DB_USER": "sandbox-account", "DB_PASSWORD": "sandbox-password"} | twilio.environ(), port


@pytest.fixture
def curt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that a test can afford."""
    monkeypatch.setattr(habit_notifier, "DATABASE_PATIENCE", 0.5)
    monkeypatch.setattr(habit_notifier, "DATABASE_TIMEOUT", 1)
    monkeypatch.setattr(habit_notifier, "DATABASE_CONNECT_TIMEOUT", 1)


def run(environ: dict[str, str], at: datetime | None = NOON) -> int:
    """A whole run in this process, at NOON unless it follows a process, whose clock is the real one."""
    return program.run(environ, at=at or habit_notifier.utc_now)


@contextmanager
def process(environ: dict[str, str], *program: str) -> Iterator[subprocess.Popen[str]]:
    """The program as it is started in production, or another."""
    command = [sys.executable, *(program or ["app/habit_notifier.py"])]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with subprocess.Popen(command, cwd=ROOT, env=inherited | environ, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Each once: what ended a run is told again after the summary."""
    return list(dict.fromkeys(r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR))


def not_looked_at(caplog: pytest.LogCaptureFixture) -> int:
    """How many users are on pages that the run did not reach."""
    found = re.findall(r"ended before the last page: (\d+) of (\d+) users were looked at", caplog.text)
    return sum(int(users) - int(looked_at) for looked_at, users in found)


def shows_no_secret(output: str, environ: dict[str, str]) -> bool:
    secrets = ("DB_USER", "DB_PASSWORD", "TWILIO_AUTH_TOKEN", "TWILIO_ACCOUNT_SID")
    return not any(environ[name] in output for name in secrets)


def texted(twilio: FakeTwilio) -> list[str]:
    return sorted(message.to for message in twilio.book)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.01)


# --- not there


@pytest.mark.usefixtures("curt")
def test_a_refused_connection_is_one_line_with_the_remedy(
    far: dict[str, str], twilio: FakeTwilio, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.refuse()
    assert run(far) == Exit.RETRY
    [problem] = errors(caplog)
    assert "check DB_HOST, DB_PORT, the server and the NetworkPolicy" in problem
    assert not twilio.requests


@pytest.mark.usefixtures("curt")
def test_a_host_that_has_no_address_is_one_line_with_the_remedy(
    far: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(far | {"DB_HOST": "mysql.invalid"}) == Exit.RETRY
    [problem] = errors(caplog)
    assert "the name DB_HOST does not resolve: check it" in problem
    assert "mysql.invalid" in problem
    assert "NetworkPolicy" not in problem


@pytest.mark.usefixtures("curt")
def test_a_server_that_accepts_and_says_nothing_is_given_up(
    far: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert run(far | {"DB_PORT": str(silent.getsockname()[1])}) == Exit.RETRY
        assert time.monotonic() - started < 5
    [problem] = errors(caplog)
    assert "did not answer in time" in problem


@pytest.mark.usefixtures("curt")
def test_something_that_is_no_database_is_one_line(far: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """As when DB_PORT is that of another service."""
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor(1) as threads:
        greeting = threads.submit(greet, other, b"SSH-2.0-OpenSSH_9.2\r\n")
        assert run(far | {"DB_PORT": str(other.getsockname()[1])}) == Exit.RETRY
        greeting.result()
    [problem] = errors(caplog)
    assert problem.startswith("MySQL: ")


def greet(server: socket.socket, words: bytes) -> None:
    client, _ = server.accept()
    with client:
        client.sendall(words)


def test_the_first_connection_may_be_refused_for_a_while(
    far: dict[str, str], twilio: FakeTwilio, proxy: Proxy, people: list[str]
) -> None:
    """A new pod can be faster than its network policy."""
    proxy.refuse()
    with process(far) as program:
        time.sleep(1.5)
        proxy.restore()
        _, output = program.communicate(timeout=30)
    assert program.returncode == 0, output
    assert texted(twilio) == people


# --- goes away in the middle: where, and is it for good


PLACES = [
    "SHOW FULL COLUMNS",
    f"FROM {LEDGER} LIMIT 0",
    "MAX(created_at)",
    "GROUP BY",
    "LIMIT 1 OFFSET",
    SLICE,
    PAGE,
]


@pytest.mark.usefixtures("curt")
@pytest.mark.parametrize("place", PLACES)
def test_a_database_that_is_gone_before_the_first_claim_sends_nothing_and_loses_nobody(
    far: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    gone = proxy.on_query(place, Verdict.CUT_BEFORE, forever=True)
    assert run(far) == Exit.RETRY
    assert gone.hits > 1  # it was asked again
    [problem] = errors(caplog)
    assert "the connection was lost" in problem
    assert shows_no_secret(caplog.text, far)
    assert not texted(twilio)
    proxy.rules.clear()
    assert run(far) == 0
    assert texted(twilio) == people


@pytest.mark.parametrize("place", [*PLACES, CLAIM, RECORD, PURGE])
def test_a_lost_connection_is_made_again_wherever_the_run_is(
    far: dict[str, str], twilio: FakeTwilio, proxy: Proxy, people: list[str], place: str
) -> None:
    lost = proxy.on_query(place, Verdict.CUT_AFTER)
    assert run(far) == 0
    assert lost.hits == 1
    assert texted(twilio) == people


@pytest.mark.usefixtures("curt")
@pytest.mark.parametrize("place", [CLAIM, RECORD])
@pytest.mark.parametrize("verdict", [Verdict.CUT_BEFORE, Verdict.HANG_BEFORE])
def test_a_database_that_is_gone_during_the_sends_ends_the_run_and_the_next_serves_exactly_the_rest(
    database: Database,
    far: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    place: str,
    verdict: Verdict,
) -> None:
    proxy.on_query(place, verdict, nth=2, forever=True)
    assert run(far) == Exit.RETRY
    assert "MySQL: the connection was lost" in errors(caplog)[0]
    assert shows_no_secret(caplog.text, far)
    [(sent, failed)] = re.findall(r"Notifications sent: (\d+), Failed: (\d+)", caplog.text)
    assert int(sent) == len(twilio.book)
    assert int(sent) + int(failed) + not_looked_at(caplog) == USERS
    first = texted(twilio)
    doubtful = {number for (number,) in database.rows(f"SELECT phone_number FROM {LEDGER} WHERE state = 'sending'")}
    assert len(doubtful) <= 6  # four threads, and two texts ahead
    proxy.rules.clear()
    rest = {*people} - {*first} - doubtful
    assert run(far) == (Exit.RETRY if doubtful and not rest else Exit.DONE)
    assert texted(twilio) == sorted({*first} | rest)


@pytest.mark.usefixtures("curt")
def test_a_database_that_is_gone_after_the_sends_fails_nobody(
    far: dict[str, str], twilio: FakeTwilio, proxy: Proxy, people: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    proxy.on_query(PURGE, Verdict.CUT_BEFORE, forever=True)
    assert run(far) == 0
    assert not errors(caplog)
    assert "Left for the next run: MySQL: the connection was lost" in caplog.text
    assert texted(twilio) == people


# --- who could not be served is named and counted


@pytest.mark.usefixtures("curt")
@pytest.mark.parametrize(
    ("place", "page"),
    [
        (CLAIM, 5_000),
        (CLAIM, 3),
        (PAGE, 3),
        (HISTORY, 3),
    ],
)
def test_whoever_is_not_served_is_counted_as_not_tried_or_as_not_looked_at(
    far: dict[str, str],
    twilio: FakeTwilio,
    proxy: Proxy,
    people: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    page: int,
) -> None:
    """Wherever the second statement of a kind is lost for good, sent, failed and not looked at make up everybody."""
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", page)
    if place == HISTORY:  # of users without a row that says something, the ledger is not even asked
        twilio.script(then=refuse(21610))
        assert run(far, NOON - timedelta(days=40)) == 0
        twilio.script()
        caplog.clear()
    proxy.on_query(place, Verdict.CUT_BEFORE, nth=2, forever=True)
    assert run(far) == Exit.RETRY
    [counts] = re.findall(r"sent: (\d+), Failed: (\d+)", caplog.text)
    assert sum(map(int, counts)) + not_looked_at(caplog) == USERS
    proxy.rules.clear()
    assert run(far) == 0
    assert texted(twilio) == people


# --- the process: no traceback, no secret, SIGTERM


def test_a_process_without_its_database_ends_in_a_line_without_traceback_or_secret(
    nowhere: tuple[dict[str, str], socket.socket],
) -> None:
    """With the patience that tests/runs/run_at.py has."""
    environ, _ = nowhere
    with process(environ, "-m", "tests.runs.run_at", datetime.now(UTC).isoformat()) as program:
        _, output = program.communicate(timeout=60)
    assert program.returncode == Exit.RETRY
    lines = output.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - \w+ - [A-Z]+ - ", line) for line in lines), output
    assert ["ERROR" in line for line in lines].count(True) == 1
    assert shows_no_secret(output, environ)


@pytest.mark.parametrize("silent", [False, True])
def test_sigterm_while_waiting_for_the_database_ends_within_seconds(
    nowhere: tuple[dict[str, str], socket.socket], silent: bool
) -> None:
    """Of a silent server, one answer is waited for, not two."""
    environ, port = nowhere
    if silent:
        port.listen()
    with process(environ) as program:
        assert program.stderr
        while "Settings" not in program.stderr.readline():
            pass
        time.sleep(1)
        program.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        output = program.communicate(timeout=60)[1]
    assert program.returncode == TERMINATED, output
    assert "Traceback" not in output
    assert time.monotonic() - sent < (habit_notifier.DATABASE_TIMEOUT + 2 if silent else 2)


def test_sigterm_during_the_sends_finishes_what_is_in_flight_though_the_connection_is_lost(
    database: Database, far: dict[str, str], twilio: FakeTwilio, proxy: Proxy, people: list[str]
) -> None:
    twilio.latency = 0.5
    lost = proxy.on_query(RECORD, Verdict.CUT_BEFORE)
    with process(far) as program:
        wait_for(lambda: twilio.book)
        program.send_signal(signal.SIGTERM)
        output = program.communicate(timeout=30)[1]
    assert program.returncode == TERMINATED, output
    assert lost.hits == 1
    assert 1 <= len(twilio.book) <= 6 < USERS  # four threads, and two texts ahead
    assert database.rows(f"SELECT state, COUNT(*) FROM {LEDGER} GROUP BY 1") == [("sent", len(twilio.book))]
    assert run(far, at=None) == 0
    assert texted(twilio) == people
