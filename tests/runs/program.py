"""The program in this process, at a time of the test's choosing, which its fake Twilio then has, too; or in its own."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

import habit_notifier
from habit_notifier import Stop, utc_now
from tests.sandbox.fake_twilio import FakeTwilio

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = [sys.executable, "app/habit_notifier.py"]
Moment = datetime | Callable[[], datetime]


def run(
    environ: Mapping[str, str],
    argv: Sequence[str] = (),
    at: Moment = utc_now,
    stop: Stop | None = None,
    twilios: Moment | None = None,
) -> int:
    """The exit code of a run whose clock stands at an instant, or is given; the fake Twilio has it, or its own."""
    clock = clock_of(at)
    if fake := FakeTwilio.running.get(environ.get("TWILIO_API_URL", "")):
        fake.clock = clock_of(twilios) if twilios else clock
    return habit_notifier.main(argv, environ, clock, stop or Stop())


def clock_of(at: Moment) -> Callable[[], datetime]:
    """A clock that stands at the instant, or is given."""
    return at if callable(at) else lambda: at


def said(environ: Mapping[str, str], *argv: str, at: Moment = utc_now) -> tuple[int, str]:
    """The exit code of a run, and all that it wrote to its log, by its own handler and format."""
    root = logging.getLogger()
    with mock.patch.object(root, "handlers", []), redirect_stderr(io.StringIO()) as written:
        code = run(environ, argv, at)
    return code, written.getvalue()


def starting_at(instant: datetime, **constants: float | tuple[float, float] | Path) -> list[str]:
    """The command of the program with a clock and with constants of our own: see `run_at`."""
    return [
        *(sys.executable, "-m", "tests.runs.run_at", instant.isoformat()),
        *(f"{name}={value}" for name, value in constants.items()),
    ]


@contextmanager
def started(
    environ: Mapping[str, str], *argv: str, command: Sequence[str] = PRODUCTION
) -> Iterator[subprocess.Popen[str]]:
    """The program in a process of its own, as in production or by another command; killed if it has not ended."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, *argv], cwd=ROOT, env={**inherited, **environ}, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()
