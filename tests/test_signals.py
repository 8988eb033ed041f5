"""SIGTERM at any point of a real process: no new claim, what is in flight is recorded, exit 143 in time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import habit_notifier
from habit_notifier import Stop
from tests import program
from tests.sandbox.database import LEDGER, Database
from tests.sandbox.fake_twilio import ACCEPT, Door, FakeTwilio, slow, throttle
from tests.sandbox.proxy import Proxy

# Nothing here depends on the kind of server: one is enough.
pytestmark = pytest.mark.parametrize("server", ["throwaway"], indirect=True, scope="session")

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = [sys.executable, str(ROOT / "app" / "habit_notifier.py")]
USERS = 12
TERM = 1 << (signal.SIGTERM - 1)


@pytest.fixture
def environ(database: Database, twilio: FakeTwilio) -> dict[str, str]:
    database.insert_users([(f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(USERS)])
    surroundings = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return surroundings | database.environ() | twilio.environ() | {"SEND_CONCURRENCY": "4"}


@contextmanager
def started(environ: dict[str, str], *argv: str, command: list[str] = PROGRAM) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*command, *argv], env=environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(0.002)


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


def ledger(database: Database) -> dict[str, int]:
    """How many rows of each state there are."""
    if not database.rows("SHOW TABLES LIKE %s", (LEDGER,)):
        return {}
    return dict(database.rows(f"SELECT state, COUNT(*) FROM {LEDGER} GROUP BY state"))


def sends(twilio: FakeTwilio) -> int:
    return sum(request.operation == "send" for request in twilio.requests)


def accounted(log: str) -> int:
    """How many users were sent a text, failed, or were not looked at, as the log says."""
    [(sent, failed)] = re.findall(r"Job completed\. Notifications sent: (\d+), Failed: (\d+)", log)
    [(looked_at, users)] = re.findall(r"Looked at (\d+) of (\d+) users", log)
    return int(sent) + int(failed) + int(users) - int(looked_at)


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")


@needs_proc
@pytest.mark.parametrize("moment", [0.0, 0.03, 0.06, 0.1, 0.15, 0.25])
def test_during_the_imports(database: Database, twilio: FakeTwilio, environ: dict[str, str], moment: float) -> None:
    twilio.script(then=slow(0.5))
    with started(environ) as process:
        wait_for(lambda: catches_sigterm(process.pid))
        time.sleep(moment)
        terminate(process, within=5)
    assert sends(twilio) == len(twilio.book) == sum(ledger(database).values())


def test_while_the_database_refuses(database: Database, twilio: FakeTwilio, environ: dict[str, str]) -> None:
    with Proxy((database.server.host, database.server.port)) as proxy:
        proxy.refuse()
        with started(environ | {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port)}) as process:
            time.sleep(1.5)
            log = terminate(process, within=3)
    assert re.search(r"WARNING - Once more in \d s: MySQL: it cannot be reached", log)
    assert "ERROR - SIGTERM came" in log
    assert twilio.requests == []


def test_while_the_database_says_nothing(
    database: Database, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with time-outs ten times shorter: one may pass after SIGTERM, not two."""
    monkeypatch.setattr(habit_notifier, "DATABASE_TIMEOUT", 1)
    stop = Stop()
    with Proxy((database.server.host, database.server.port)) as proxy:
        proxy.silence()
        timer = threading.Timer(0.2, stop.request)
        timer.start()
        start = time.monotonic()
        environ |= {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port)}
        assert program.run(environ, stop=stop) == 143
    timer.join()
    assert time.monotonic() - start < 0.2 + 1.7


def test_while_twilio_is_away(database: Database, twilio: FakeTwilio, environ: dict[str, str]) -> None:
    twilio.door(Door.SHUT)
    with started(environ) as process:
        wait_for(lambda: database.rows("SHOW TABLES LIKE %s", (LEDGER,)))  # the probe comes next
        time.sleep(0.5)
        log = terminate(process, within=3)
    assert "Nobody was texted" in log
    assert ledger(database) == {}


def test_during_a_pause_that_twilio_asked_for(database: Database, twilio: FakeTwilio, environ: dict[str, str]) -> None:
    twilio.script(ACCEPT, then=throttle(100))
    with started(environ) as process:
        wait_for(lambda: twilio.book and sends(twilio) >= 2)
        time.sleep(0.3)
        log = terminate(process, within=3)
    assert ledger(database) == {"sent": 1}
    assert "Notifications sent: 1," in log
    assert sends(twilio) <= 1 + 4


def test_with_texts_in_flight(database: Database, twilio: FakeTwilio, environ: dict[str, str]) -> None:
    """They are finished and recorded, the rest is counted; more of SIGTERM changes nothing."""
    twilio.script(then=slow(1.5))
    with started(environ) as process:
        wait_for(lambda: sends(twilio) == 4)
        log = terminate(process, within=5, again=True)
    assert sends(twilio) == len(twilio.book) == 4
    sids = database.rows(f"SELECT message_sid FROM {LEDGER} WHERE state = 'sent'")
    assert {sid for (sid,) in sids} == {message.sid for message in twilio.book}
    assert ledger(database) == {"sent": 4}
    assert log.count("Notification sent to Due") == 4
    assert log.count("ERROR - SIGTERM came: no more texts are taken up, the next run goes on") == 2  # again at the end
    assert "Notifications sent: 4," in log
    twilio.script()
    with started(environ) as process:
        assert process.wait(20) == 0
    assert sorted(message.to for message in twilio.book) == [f"+1202555{n:04}" for n in range(USERS)]


def test_everybody_is_accounted_for(twilio: FakeTwilio, environ: dict[str, str]) -> None:
    twilio.script(then=slow(0.5))
    with started(environ | {"SEND_CONCURRENCY": "1"}) as process:
        wait_for(lambda: sends(twilio) == 1)
        log = terminate(process, within=5)
    assert accounted(log) == USERS


def test_with_texts_in_flight_that_twilio_never_answers(
    database: Database, twilio: FakeTwilio, environ: dict[str, str]
) -> None:
    twilio.script(then=slow(60))
    with started(environ) as process:
        wait_for(lambda: sends(twilio) == 4)
        log = terminate(process, within=15)
    assert sends(twilio) == 4
    assert ledger(database) == {"uncertain": 4}
    assert "4 texts are uncertain" in log


@pytest.mark.parametrize("argv", [(), ("--settle",)], ids=["run", "settle"])
def test_while_texts_are_looked_up(
    database: Database, twilio: FakeTwilio, environ: dict[str, str], argv: tuple[str, ...]
) -> None:
    database.execute("UPDATE User SET phone_number = NULL")
    with started(environ, "--settle") as process:  # makes the ledger
        assert process.wait(20) == 0
    now = datetime.now(UTC)
    for n in range(10):
        claimed = (now - timedelta(days=2 * n + 1)).replace(tzinfo=None)
        database.execute(
            f"INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at, message_sid)"
            " VALUES (%s, %s, '+12025550000', 'no_logs', 'sent', 'x', %s, %s)",
            (n, claimed.date(), claimed, f"SM{n:032}"),
        )
    twilio.travel_to(now)
    late = ACCEPT.delayed(after=0.5)
    twilio.hook = lambda request: late if request.params.get("PageSize") == "1000" else None
    probes = len(twilio.requests)
    with started(environ, *argv) as process:
        wait_for(lambda: len(twilio.requests) >= probes + 2)
        terminate(process, within=4)
    assert sends(twilio) == 0


unshare = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "unshare --fork --pid --mount-proc true"], capture_output=True, check=False).returncode
    != 0,
    reason="a process of PID 1 needs root and unshare",
)


@needs_proc
@unshare
@pytest.mark.parametrize("early", [True, False], ids=["imports", "sends"])
def test_as_pid_1(database: Database, twilio: FakeTwilio, environ: dict[str, str], early: bool) -> None:
    """As in a container: there SIGTERM is ignored by a process that has no handler for it."""
    twilio.script(then=slow(0.5))
    with started(environ, command=["unshare", "--fork", "--pid", "--mount-proc", *PROGRAM]) as outer:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        wait_for(lambda: children.read_text().strip())
        inner = int(children.read_text())
        wait_for(lambda: catches_sigterm(inner) if early else sends(twilio) == 4)
        status = Path(f"/proc/{inner}/status").read_text()
        assert re.search(r"^NSpid:\s*\d+\s+1$", status, re.MULTILINE)
        os.kill(inner, signal.SIGTERM)
        start = time.monotonic()
        _, log = outer.communicate(timeout=30)
    assert outer.returncode == 143, log
    assert time.monotonic() - start < 5
    assert ledger(database) == ({} if early else {"sent": 4})
    assert sends(twilio) == (0 if early else 4)
