"""A database that is not there, says nothing or goes away: one clear line, the right exit code, and no text is lost."""

from __future__ import annotations

import re
import signal
import socket
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import pytest

import habit_notifier
from habit_notifier import Exit, utc_now
from tests.runs.program import started, starting_at
from tests.runs.statements import (
    CLAIM,
    COLUMNS,
    HISTORY,
    LEDGER_IS_THERE,
    NEWEST_LOGS,
    PAGE,
    PURGE,
    RECORD,
    RELEASE,
    SLICE,
    START,
    ZONES,
)
from tests.runs.town import NOON, Town, at_send, numbers
from tests.sandbox.fake_twilio import ACCEPT, FakeTwilio, refuse
from tests.sandbox.proxy import Proxy, Verdict
from tests.sandbox.sockets import wait_for

USERS = 10
PEOPLE = numbers(USERS)
MOST_IN_FLIGHT = 6  # four threads, and two texts ahead
curt = pytest.mark.constants(DATABASE_PATIENCE=0.5, DATABASE_TIMEOUT=1, DATABASE_CONNECT_TIMEOUT=1)
"""Waits that a test can afford."""


@pytest.fixture
def far(town: Town, proxy: Proxy) -> Town:
    """Some users, all of them due, whose database is behind the proxy."""
    town.people(USERS)
    town.environ |= proxy.environ() | {"SEND_CONCURRENCY": "4"}
    return town


def shows_no_secret(output: str, environ: dict[str, str]) -> bool:
    secrets = ("DB_USER", "DB_PASSWORD", "TWILIO_AUTH_TOKEN", "TWILIO_ACCOUNT_SID")
    return not any(environ[name] in output for name in secrets)


# --- not there


@curt
@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_AGAIN], ids=["no such name", "nobody answers"])
def test_a_host_that_has_no_address_is_one_line_with_the_remedy(
    town: Town, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror(number, "as the C library says it")))
        assert town.run(DB_HOST="mysql.invalid") == Exit.RETRY
    assert "the name DB_HOST does not resolve: check it" in town.problem
    assert "mysql.invalid" in town.problem
    assert ("NetworkPolicy" in town.problem) == (number == socket.EAI_AGAIN)  # which may bar the way to the DNS


@curt
def test_a_server_that_accepts_and_says_nothing_is_given_up(town: Town) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert town.run(DB_PORT=silent.getsockname()[1]) == Exit.RETRY
        assert town.took < 5
    assert "not in time: check DB_HOST, DB_PORT and the server" in town.problem


@curt
@pytest.mark.constants(DATABASE_PATIENCE=2.0)  # a new connection is tried, too
def test_a_server_that_falls_silent_in_mid_run_is_not_taken_for_something_else(far: Town, proxy: Proxy) -> None:
    far.twilio.hook = at_send(4, proxy.silence)
    assert far.run() == Exit.RETRY
    assert far.said("ERROR MySQL: the connection was lost, or it did not answer in time")
    assert "check DB_HOST" not in far.text


# --- goes away in the middle: where, and is it for good


PLACES = [COLUMNS, LEDGER_IS_THERE, NEWEST_LOGS, ZONES, START, SLICE, PAGE]


@curt
@pytest.mark.parametrize("place", PLACES)
def test_a_database_that_is_gone_before_the_first_claim_sends_nothing_and_loses_nobody(
    far: Town, proxy: Proxy, place: str
) -> None:
    gone = proxy.on_query(place, Verdict.CUT_BEFORE, forever=True)
    assert far.run() == Exit.RETRY
    assert gone.hits > 1  # it was asked again
    assert far.took > 0.25 * (gone.hits - 2)  # after pauses, but for the first time
    assert "the connection was lost" in far.problem
    assert shows_no_secret(far.text, far.environ)
    assert not far.served
    proxy.rules.clear()
    assert far.run() == 0
    assert far.served == PEOPLE


@pytest.mark.parametrize("place", [*PLACES, PURGE])  # claim and record: test_ledger
def test_a_lost_connection_is_made_again_wherever_the_run_is(far: Town, proxy: Proxy, place: str) -> None:
    lost = proxy.on_query(place, Verdict.CUT_AFTER)
    assert far.run() == 0
    assert lost.hits == 1
    assert far.served == PEOPLE


@curt
@pytest.mark.parametrize("place", [CLAIM, RECORD])
@pytest.mark.parametrize("verdict", [Verdict.CUT_BEFORE, Verdict.HANG_BEFORE])
def test_a_database_that_is_gone_during_the_sends_ends_the_run_and_the_next_serves_exactly_the_rest(
    far: Town, proxy: Proxy, place: str, verdict: Verdict
) -> None:
    proxy.on_query(place, verdict, nth=2, forever=True)
    assert far.run() == Exit.RETRY
    assert far.lines("ERROR")[0].startswith("MySQL: the connection was lost")
    assert shows_no_secret(far.text, far.environ)
    sent, failed = far.totals
    assert sent == len(far.twilio.book)
    assert sent + failed + far.unseen == USERS
    first, doubtful = far.served, {*far.numbers("sending")}
    assert len(doubtful) <= MOST_IN_FLIGHT
    proxy.rules.clear()
    rest = {*PEOPLE} - {*first} - doubtful
    assert far.run() == (Exit.RETRY if doubtful and not rest else Exit.DONE)
    assert far.served == sorted({*first} | rest)


@pytest.mark.usefixtures("from_the_first")
@curt
def test_what_is_in_flight_when_the_database_fails_is_waited_for_and_recorded(far: Town, proxy: Proxy) -> None:
    far.twilio.script(ACCEPT, then=ACCEPT.delayed(after=1.0))  # the second claim follows the first answer
    proxy.on_query(CLAIM, Verdict.CUT_BEFORE, nth=2, forever=True)
    assert far.run() == Exit.RETRY
    assert far.counts == {"sent": len(far.twilio.book)}


@pytest.mark.usefixtures("from_the_first")
@curt
def test_an_answer_that_could_not_be_recorded_counts_once_towards_a_streak(far: Town, proxy: Proxy) -> None:
    """Nine refusals are no streak, and an outage is worth a retry."""
    far.twilio.script(ACCEPT, then=refuse(21660).delayed(after=0.5))
    proxy.on_query(RELEASE, Verdict.CUT_BEFORE, forever=True)
    assert far.run(SEND_CONCURRENCY="8") == Exit.RETRY
    assert far.said("refused for the set-up 9")
    assert not far.said("texts in a row failed")


@curt
def test_a_database_that_is_gone_after_the_sends_fails_nobody(far: Town, proxy: Proxy) -> None:
    proxy.on_query(PURGE, Verdict.CUT_BEFORE, forever=True)
    assert far.run() == 0
    assert not far.lines("ERROR")
    assert far.said("WARNING Left for the next run: MySQL: the connection was lost")
    assert far.served == PEOPLE


# --- who could not be served is named and counted


@curt
@pytest.mark.parametrize(("place", "page"), [(CLAIM, 5_000), (CLAIM, 3), (PAGE, 3), (HISTORY, 3)])
def test_whoever_is_not_served_is_counted_as_not_tried_or_as_not_looked_at(
    far: Town, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, place: str, page: int
) -> None:
    """Wherever the second statement of a kind is lost for good, sent, failed and not looked at make up everybody."""
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", page)
    if place == HISTORY:  # of users without a row that says something, the ledger is not even asked
        far.twilio.script(then=refuse(21610))
        assert far.run(NOON - timedelta(days=40)) == 0
        far.twilio.script()
    proxy.on_query(place, Verdict.CUT_BEFORE, nth=2, forever=True)
    assert far.run() == Exit.RETRY
    assert sum(far.totals) + far.unseen == USERS
    proxy.rules.clear()
    assert far.run() == 0
    assert far.served == PEOPLE


# --- the process: no traceback, no secret, SIGTERM


def test_a_process_without_its_database_ends_in_a_line_with_the_remedy_without_traceback_or_secret(
    twilio: FakeTwilio,
) -> None:
    """With the patience that tests/runs/run_at.py has."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))  # where nobody listens
        environ = twilio.environ() | {"DB_HOST": "127.0.0.1", "DB_PORT": str(port.getsockname()[1])}
        environ |= {"DB_NAME": "habits", "DB_USER": "sandbox-account", "DB_PASSWORD": "sandbox-password"}
        with started(environ, command=starting_at(datetime.now(UTC))) as program:
            _, output = program.communicate(timeout=60)
    assert program.returncode == Exit.RETRY
    lines = output.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - \w+ - [A-Z]+ - ", line) for line in lines), output
    [problem] = [line for line in lines if "ERROR" in line]
    assert "it cannot be reached: check DB_HOST, DB_PORT, the server and the NetworkPolicy" in problem
    assert not twilio.requests
    assert shows_no_secret(output, environ)


def test_sigterm_during_the_sends_finishes_what_is_in_flight_though_the_connection_is_lost(
    far: Town, proxy: Proxy
) -> None:
    far.twilio.latency = 0.5
    lost = proxy.on_query(RECORD, Verdict.CUT_BEFORE)
    with started(far.environ) as program:
        wait_for(lambda: far.twilio.book)
        program.send_signal(signal.SIGTERM)
        output = program.communicate(timeout=30)[1]
    assert program.returncode == Exit.TERMINATED, output
    assert lost.hits == 1
    assert 1 <= len(far.twilio.book) <= MOST_IN_FLIGHT < USERS
    assert far.counts == {"sent": len(far.twilio.book)}
    assert far.run(utc_now) == 0
    assert far.served == PEOPLE
