"""SIGTERM at any point of a real process: no new claim, what is in flight is recorded, exit 143 in time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

import habit_notifier
from habit_notifier import Stop, utc_now
from tests.runs.program import PRODUCTION, started, starting_at
from tests.runs.statements import CLAIM
from tests.runs.town import Town, numbers
from tests.sandbox.database import LEDGER
from tests.sandbox.fake_twilio import ACCEPT, Door, slow, throttle
from tests.sandbox.proxy import Proxy, Verdict
from tests.sandbox.sockets import SocketServer, wait_for

# Nothing here depends on the kind of server: one is enough.
pytestmark = pytest.mark.parametrize("server", ["throwaway"], indirect=True, scope="session")

USERS = 12
TERM = 1 << (signal.SIGTERM - 1)


@pytest.fixture
def town(town: Town) -> Town:
    town.people(USERS)
    town.environ |= {"SEND_CONCURRENCY": "4"}
    return town


def terminate(process: subprocess.Popen[str], within: float, *, again: bool = False) -> str:
    """Send SIGTERM, and expect the end: 143 in time, and the log told without a traceback."""
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    for _ in range(3 if again else 0):
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 143, log
    assert time.monotonic() - start < within, log
    assert "Traceback" not in log
    return log


def catches_sigterm(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM by now."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) & TERM)


def accounted(log: str) -> int:
    """How many users were sent a text, failed, or were not looked at, as the log says."""
    [(sent, failed)] = re.findall(r"Notifications sent: (\d+), Failed: (\d+)", log)
    [(looked_at, users)] = re.findall(r"Looked at (\d+) of (\d+) users", log)
    return int(sent) + int(failed) + int(users) - int(looked_at)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


@needs_proc
@pytest.mark.parametrize("moment", [0.0, 0.03, 0.06, 0.1, 0.15, 0.25])
def test_during_the_imports(town: Town, moment: float) -> None:
    town.twilio.script(then=slow(0.5))
    with started(town.environ) as process:
        wait_for(lambda: catches_sigterm(process.pid))
        time.sleep(moment)
        terminate(process, within=5)
    assert len(town.posted) == len(town.twilio.book) == town.counts.total()


def test_while_the_database_refuses(town: Town, proxy: Proxy) -> None:
    proxy.refuse()
    with started(town.environ | proxy.environ()) as process:
        time.sleep(1.5)
        log = terminate(process, within=3)
    assert re.search(r"WARNING - Once more in \d s: MySQL: it cannot be reached", log)
    assert "ERROR - SIGTERM came" in log
    assert town.twilio.requests == []


def test_while_the_database_says_nothing(town: Town, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, with time-outs ten times shorter: one may pass after SIGTERM, not two."""
    monkeypatch.setattr(habit_notifier, "DATABASE_TIMEOUT", 1)
    monkeypatch.setattr(habit_notifier, "LAST_TIMEOUT", 1)  # of a connection that SIGTERM comes before
    proxy.silence()
    town.stop = Stop()
    timer = threading.Timer(0.2, town.stop.request)
    timer.start()
    assert town.run(utc_now, **proxy.environ()) == 143
    timer.join()
    assert town.took < 0.2 + 1.7


def test_while_twilio_is_away(town: Town) -> None:
    town.twilio.door(Door.SHUT)
    with started(town.environ) as process:
        wait_for(lambda: town.sql("SHOW TABLES LIKE %s", (LEDGER,)))  # the probe comes next
        time.sleep(0.5)
        log = terminate(process, within=3)
    assert "Nobody was texted" in log
    assert town.counts == {}


def test_during_a_pause_that_twilio_asked_for(town: Town) -> None:
    town.twilio.script(ACCEPT, then=throttle(100))
    with started(town.environ) as process:
        wait_for(lambda: town.twilio.book and len(town.posted) >= 2)
        time.sleep(0.3)
        log = terminate(process, within=3)
    assert town.counts == {"sent": 1}
    assert "Notifications sent: 1," in log
    assert len(town.posted) <= 1 + 4


def test_with_texts_in_flight(town: Town) -> None:
    """They are finished and recorded, everybody is accounted for; more of SIGTERM changes nothing."""
    town.twilio.script(then=slow(1.5))
    with started(town.environ) as process:
        wait_for(lambda: len(town.posted) == 4)
        log = terminate(process, within=5, again=True)
    assert len(town.posted) == len(town.twilio.book) == 4
    assert {*town.rows("message_sid, state")} == {(message.sid, "sent") for message in town.twilio.book}
    assert log.count("Notification sent to Due") == 4
    assert log.count("ERROR - SIGTERM came: no more texts are taken up, the next run goes on") == 1
    assert "Notifications sent: 4," in log
    assert accounted(log) == USERS
    town.twilio.script()
    with started(town.environ) as process:
        assert process.wait(20) == 0
    assert town.served == numbers(USERS)


def test_with_texts_in_flight_that_twilio_never_answers(town: Town) -> None:
    town.twilio.script(then=slow(60))
    with started(town.environ, command=starting_at(datetime.now(UTC), HTTP_TIMEOUT=(2.0, 2.0))) as process:
        wait_for(lambda: len(town.posted) == 4)
        log = terminate(process, within=7)
    assert len(town.posted) == 4
    assert town.counts == {"uncertain": 4}
    assert "4 texts are uncertain" in log
    assert "ERROR - SIGTERM came" in log.splitlines()[-1]  # not that no text was surely sent: exit 143's own reason


@pytest.mark.parametrize("argv", [(), ("--settle",)], ids=["run", "settle"])
def test_while_texts_are_looked_up(town: Town, argv: tuple[str, ...]) -> None:
    town.sql("UPDATE User SET phone_number = NULL")
    with started(town.environ, "--settle") as process:  # makes the ledger
        assert process.wait(20) == 0
    now = datetime.now(UTC)
    for n in range(10):
        town.database.insert_row(n, now - timedelta(days=2 * n + 1), message_sid=f"SM{n:032}")
    town.twilio.travel_to(now)
    late = ACCEPT.delayed(after=0.5)
    town.twilio.hook = lambda request: late if request.params.get("PageSize") == "1000" else None
    probes = len(town.twilio.requests)
    with started(town.environ, *argv) as process:
        wait_for(lambda: len(town.twilio.requests) >= probes + 2)
        terminate(process, within=4)
    assert len(town.posted) == 0


# --- what does not end by itself --------------------------------------------------------------------------------------


def hurried(**constants: float | Path) -> list[str]:
    """The program with shorter limits."""
    return starting_at(datetime.now(UTC), **{"TERM_LIMIT": 2.0, "WATCHDOG_LIMIT": 1.5, **constants})


class Endless(SocketServer):
    """A Twilio that lists messages as it should, and answers each text with the same piece again and again."""

    def __init__(self, first: bytes, piece: bytes) -> None:
        super().__init__()
        self._first, self._piece = first, piece
        self.posts = 0

    def serve(self, client: socket.socket) -> None:
        while request := client.recv(65_536):
            if request.startswith(b"GET"):
                self._list(client)
                continue
            self.posts += 1
            client.sendall(self._first)
            while not self.over.wait(0.1):
                client.sendall(self._piece)
            return

    @staticmethod
    def _list(client: socket.socket) -> None:
        body = json.dumps({"messages": [], "page": 0, "next_page_uri": None}).encode()
        date = format_datetime(datetime.now(UTC), usegmt=True).encode()
        client.sendall(b"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: %d\r\n\r\n%s" % (date, len(body), body))


ENDLESS = pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 201 Created\r\nX: ", b"y"),
        (b"", b"H"),
        (b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["100 Continue", "header", "status", "body"],
)


@ENDLESS
def test_with_texts_in_flight_whose_answers_never_end(town: Town, first: bytes, piece: bytes) -> None:
    assert habit_notifier.TERM_LIMIT + habit_notifier.WATCHDOG_LIMIT < 55
    with (
        Endless(first, piece) as endless,
        started(town.environ | {"TWILIO_API_URL": endless.url}, command=hurried()) as process,
    ):
        wait_for(lambda: endless.posts == 4)
        log = terminate(process, within=2 + 1.5)
    assert town.counts == {"uncertain": 4}  # never released: they may have been sent
    assert endless.posts == 4
    assert "4 texts are uncertain" in log
    assert "no answer in time" in log


@ENDLESS
def test_answers_that_never_end_do_not_hold_a_run_beyond_its_deadline(town: Town, first: bytes, piece: bytes) -> None:
    with Endless(first, piece) as endless:
        changes = {"TWILIO_API_URL": endless.url, "RUN_DEADLINE": "3"}
        start = time.monotonic()
        with started(town.environ | changes, command=hurried(DEADLINE_LIMIT=1.0)) as process:
            _, log = process.communicate(timeout=30)
    assert process.returncode == 1, log
    assert time.monotonic() - start < 3 + 1 + 1.5 + 2
    assert town.counts == {"uncertain": 4}
    assert "No text was surely sent, and 4 may have been, the last one: no answer in time. If it is Twilio" in log


def test_a_process_that_was_frozen_beyond_its_end_still_records_and_tells(town: Town) -> None:
    town.twilio.latency = 0.7
    with started(town.environ | {"RUN_DEADLINE": "3"}, command=hurried(DEADLINE_LIMIT=0.5)) as process:
        wait_for(lambda: len(town.twilio.book) == 4)
        process.send_signal(signal.SIGSTOP)
        time.sleep(3 + 0.5 + 1.5 + 1)
        process.send_signal(signal.SIGCONT)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 1
    assert accounted(log) == USERS
    assert town.counts.keys() <= {"sent", "uncertain"}  # none is left at "sending"
    assert sum(town.counts.values()) == len(town.twilio.book) == 4


@pytest.mark.parametrize("terminated", [True, False], ids=["SIGTERM", "deadline"])
def test_a_database_whose_answer_never_ends_holds_no_run_and_is_named(
    town: Town, proxy: Proxy, terminated: bool, tmp_path: Path
) -> None:
    town.environ |= proxy.environ() | {"RUN_DEADLINE": "60" if terminated else "3"}
    claim = proxy.on_query(CLAIM, Verdict.HANG_AFTER)
    summary = tmp_path / "termination-log"
    summary.touch()
    command = hurried(DEADLINE_LIMIT=1.0, DATABASE_TIMEOUT=60, TERMINATION_LOG=summary)
    with started(town.environ, command=command) as process:
        assert claim.happened.wait(20)
        if terminated:
            process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    assert process.returncode == (143 if terminated else 1)
    assert "ended by force: an answer of MySQL goes on" in log.splitlines()[-1]
    left = json.loads(summary.read_text())
    assert (left["exit_code"], left["users"], left["error"][:15]) == (process.returncode, USERS, "ended by force:")


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="needs Linux's pipes")
@pytest.mark.parametrize("terminated", [True, False], ids=["SIGTERM", "deadline"])
def test_a_log_that_nobody_reads_holds_no_run(town: Town, terminated: bool) -> None:
    """A blocked standard error blocks every thread that logs: only the watchdog is left."""
    users = [(f"Due {n} with a name of many characters", f"+1303555{n:04}", "UTC") for n in range(300)]
    town.database.insert_users(users)
    town.environ |= {"RUN_DEADLINE": "60" if terminated else "3"}
    with started(town.environ, command=hurried(DEADLINE_LIMIT=1.0)) as process:
        assert process.stderr
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        wait_for(lambda: town.twilio.book)
        wait_for(lambda: stands_still(lambda: len(town.twilio.requests)))
        start = time.monotonic()
        if terminated:
            process.send_signal(signal.SIGTERM)
        code = process.wait(20)
    assert code == (143 if terminated else 1)
    assert time.monotonic() - start < 7
    assert len(town.twilio.book) < 300


def stands_still(count: Callable[[], int]) -> bool:
    """Whether nothing happens for a while."""
    before = count()
    time.sleep(0.7)
    return count() == before


@pytest.mark.parametrize(("changes", "code"), [({}, 0), ({"TWILIO_AUTH_TOKEN": "wrong"}, 2), ({"DB_PORT": "x"}, 2)])
@pytest.mark.parametrize(
    "redirection", ["2>&-", ">&- 2>&-", "2>/dev/full", "2> >(true)"], ids=["closed", "both", "full", "no reader"]
)
def test_a_log_that_is_gone_changes_no_exit_code(
    town: Town, changes: dict[str, str], code: int, redirection: str
) -> None:
    command = ["bash", "-c", f'"$@" {redirection}', "bash", *PRODUCTION]
    with started(town.environ | changes, command=command) as process:
        assert process.wait(60) == code
    assert len(town.twilio.book) == (0 if changes else USERS)


@pytest.mark.parametrize("terminated", [True, False], ids=["SIGTERM", "deadline"])
def test_the_purge_heeds_the_deadline_and_sigterm(
    town: Town, terminated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, purges = Stop(), 0

    def purge(_ledger: object, _before: object) -> int:
        nonlocal purges
        purges += 1
        time.sleep(0.2)
        if terminated and purges == 3:
            stop.request()
        return 500

    monkeypatch.setattr(habit_notifier.Ledger, "purge", purge)
    town.stop = stop
    assert town.run(utc_now, RUN_DEADLINE=600 if terminated else 4) == (143 if terminated else 0)  # nobody is left out
    assert town.took < 6
    assert len(town.twilio.book) == USERS
    assert purges >= 3


unshare = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "unshare --fork --pid --mount-proc true"], capture_output=True, check=False).returncode
    != 0,
    reason="a process of PID 1 needs root and unshare",
)


@needs_proc
@unshare
@pytest.mark.parametrize("early", [True, False], ids=["imports", "sends"])
def test_as_pid_1(town: Town, early: bool) -> None:
    """As in a container: there SIGTERM is ignored by a process that has no handler for it."""
    town.twilio.script(then=slow(0.5))
    with started(town.environ, command=["unshare", "--fork", "--pid", "--mount-proc", *PRODUCTION]) as outer:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        wait_for(lambda: children.read_text().strip())
        inner = int(children.read_text())
        wait_for(lambda: catches_sigterm(inner) if early else len(town.posted) == 4)
        status = Path(f"/proc/{inner}/status").read_text()
        assert re.search(r"^NSpid:\s*\d+\s+1$", status, re.MULTILINE)
        os.kill(inner, signal.SIGTERM)
        start = time.monotonic()
        _, log = outer.communicate(timeout=30)
    assert outer.returncode == 143, log
    assert time.monotonic() - start < 5
    assert town.counts == ({} if early else {"sent": 4})
    assert len(town.posted) == (0 if early else 4)
