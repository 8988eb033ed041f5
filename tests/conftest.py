"""What every test may ask for: a server, a fresh database on it, a fake Twilio, and settings that name both.

Tests that use a database run on a throw-away server, and, when TEST_MYSQL_URL names another one
(mysql://user:password@host:port/), on that one too. The end of a run tells what it did not cover.
"""

from __future__ import annotations

import os
import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

import habit_notifier
from tests.full import FULL
from tests.runs.town import Town
from tests.sandbox.database import Database, NoServerError, Server
from tests.sandbox.fake_twilio import FakeTwilio, self_signed_certificate
from tests.sandbox.proxy import Proxy

NAMED = os.environ.get("TEST_MYSQL_URL", "")
IMPATIENT = {"OUTAGE_PATIENCE": 2.0, "OTHERS_ANSWER": 0.0}


def pytest_configure(config: pytest.Config) -> None:
    """Under FULL=1 hypothesis draws new examples each time, else always the same."""
    config.addinivalue_line("markers", "constants(NAME=value, ...): constants of the program that the test changes")
    hypothesis.settings.register_profile("sample", derandomize=not FULL, deadline=None)
    hypothesis.settings.load_profile("sample")
    # A shell's background job ignores SIGINT, and so would every program that tests start there and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # PyMySQL loads all that the machine trusts for each connection, 20 ms, also where it verifies nothing. Who verifies
    # names a file.
    setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)  # noqa: B010 - for mypy


@pytest.fixture(autouse=True)
def constants(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is away at the start of a run, or in another run's hands, is waited for as long as a test can wait.

    Other constants of the program are what `@pytest.mark.constants` says; a test's own mark outweighs its file's.
    """
    marks = [mark.kwargs for mark in request.node.iter_markers("constants")]
    for name, value in [each for kwargs in [IMPATIENT, *reversed(marks)] for each in kwargs.items()]:
        monkeypatch.setattr(habit_notifier, name, value)


@pytest.fixture
def from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages begin is drawn: let them begin at the table's first user."""
    monkeypatch.setattr("random.randrange", lambda total: total - 1)


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may sit behind a proxy."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="session", params=["throwaway", *(["named"] if NAMED else [])])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server. Tests share it: whoever stops or kills one takes a `Server` of their own, and `throwaway`."""
    if request.param == "throwaway":
        request.getfixturevalue("throwaway")
    with Server.from_url(NAMED) if request.param == "named" else Server() as running:
        yield running


@pytest.fixture(scope="session")
def throwaway() -> None:
    """Skips tests that need a throw-away server where none can be had, as long as a named one covers the rest."""
    if not NAMED:
        return  # nothing else would run: then they fail, with a sentence that tells what to do
    try:
        with Server():
            pass
    except NoServerError as error:
        pytest.skip(f"no throw-away server: {error}")


@pytest.fixture
def variant() -> dict[str, Any]:
    """How the database is made; `variants` asks for others."""
    return {}


@pytest.fixture
def database(server: Server, variant: dict[str, Any]) -> Iterator[Database]:
    """A fresh database with empty tables."""
    with server.database(**variant) as fresh:
        yield fresh


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """A proxy in front of the database."""
    with Proxy((database.server.host, database.server.port)) as running:
        yield running


@pytest.fixture
def twilio() -> Iterator[FakeTwilio]:
    """A fake Twilio with an empty book."""
    with FakeTwilio() as fake:
        yield fake


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Certificate and key of 127.0.0.1."""
    return self_signed_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTwilio]:
    """A fake Twilio that speaks TLS, and whose certificate is trusted."""
    with FakeTwilio(tls=certificate) as fake:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", fake.environ()["REQUESTS_CA_BUNDLE"])
        yield fake


@pytest.fixture
def environ(database: Database, twilio: FakeTwilio) -> dict[str, str]:
    """All that the program needs to run against `database` and `twilio`."""
    return database.environ() | twilio.environ()


@pytest.fixture
def town(database: Database, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture) -> Town:
    """A town without users."""
    return Town(database, twilio, caplog)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says plainly what this run did not cover, and why."""
    if missing := uncovered(terminalreporter):
        terminalreporter.section("not covered here")
        for why, what in missing.items():
            terminalreporter.write_line(f"{what}: {why}")


def uncovered(terminalreporter: pytest.TerminalReporter) -> dict[str, str]:
    """Why something was not covered, and what."""
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    missing = {why: f"{count} test{'s' if count > 1 else ''}" for why, count in skipped.items()}
    if not NAMED:
        missing["TEST_MYSQL_URL is not set"] = "a second database server"
    if not FULL:
        missing["FULL=1 is not set"] = "the long runs"
    return missing


def _reason(report: pytest.TestReport) -> str:
    where_and_why = report.longrepr
    reason = where_and_why[2] if isinstance(where_and_why, tuple) else str(where_and_why)
    return reason.removeprefix("Skipped: ")
