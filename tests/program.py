"""The program in this process, at a time of the test's choosing, which its fake Twilio then has, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import habit_notifier
from habit_notifier import Stop, utc_now
from tests.sandbox.fake_twilio import FakeTwilio


def run(
    environ: Mapping[str, str],
    argv: Sequence[str] = (),
    at: datetime | Callable[[], datetime] = utc_now,
    stop: Stop | None = None,
) -> int:
    """The exit code of a run whose clock stands at an instant, or is given; the fake Twilio's clock is set to it."""
    clock = at if callable(at) else lambda: at
    if fake := FakeTwilio.running.get(environ.get("TWILIO_API_URL", "")):
        fake.clock = clock
    return habit_notifier.main(argv, environ, clock, stop or Stop())
