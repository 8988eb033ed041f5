"""The program with a clock of our own: for tests that need it in a process of its own, to be killed or raced.

    python -m tests.run_at 2026-03-08T09:00:00Z [the program's arguments]

The clock stands at that instant when the process starts, and then runs on. Everything else is as usual: settings from
the environment, SIGTERM, log and exit code. Only the logger's name is that of the module.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

STARTED = time.monotonic()
early: list[object] = []
for number in (signal.SIGTERM, signal.SIGINT):  # before the slow imports, as the program does
    signal.signal(number, lambda *_: early.append(True))

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "app"))
import habit_notifier  # noqa: E402

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, habit_notifier.STOP.request)
if early:
    habit_notifier.STOP.request()


def main(instant: str, *argv: str) -> int:
    """Run the program as if the process had started at the instant."""
    start = datetime.fromisoformat(instant)
    if start.tzinfo is None:
        raise SystemExit(f"{instant} has no zone: write {instant}Z")
    return habit_notifier.main(argv, os.environ, lambda: start + timedelta(seconds=time.monotonic() - STARTED))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
