"""The program in this process, at a time of the test's choosing, which its fake Twilio then has, too."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from datetime import datetime
from unittest import mock

import habit_notifier
from habit_notifier import Stop, utc_now
from tests.sandbox.fake_twilio import FakeTwilio

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


def said(environ: Mapping[str, str], *argv: str, at: datetime | Callable[[], datetime] = utc_now) -> tuple[int, str]:
    """The exit code of a run, and all that it wrote to its log, by its own handler and format."""
    root = logging.getLogger()
    with mock.patch.object(root, "handlers", []), redirect_stderr(io.StringIO()) as written:
        code = run(environ, argv, at)
    return code, written.getvalue()
