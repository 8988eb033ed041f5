"""The program with a clock of our own: for tests that need it in a process of its own, to be killed or raced.

    python -m tests.runs.run_at 2026-03-08T09:00:00Z [CONSTANT=value ...] [the program's arguments]

The clock stands at that instant when the process starts, and then runs on. An outage is waited for as long as a test
can wait, and other constants of the program are what the command line says. Everything else is as usual: settings from
the environment, SIGTERM, log and exit code. Only the logger's name is that of the module.
"""

from __future__ import annotations

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # as the program does

import ast  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from datetime import datetime, timedelta  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

STARTED = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "app"))
import habit_notifier  # noqa: E402


def main(instant: str, *argv: str) -> None:
    """Run the program as if the process had started at the instant."""
    start = datetime.fromisoformat(instant)
    if start.tzinfo is None:
        raise SystemExit(f"{instant} has no zone: write {instant}Z")
    for name, value in [("OUTAGE_PATIENCE", "2.0"), *(word.split("=") for word in argv if "=" in word)]:
        assert hasattr(habit_notifier, name), name
        is_path = isinstance(getattr(habit_notifier, name), Path)
        setattr(habit_notifier, name, Path(value) if is_path else ast.literal_eval(value))
    arguments = [word for word in argv if "=" not in word]
    clock = lambda: start + timedelta(seconds=time.monotonic() - STARTED)  # noqa: E731
    vars(habit_notifier)["main"] = partial(habit_notifier.main, arguments, os.environ, clock)
    habit_notifier.start()


if __name__ == "__main__":
    main(*sys.argv[1:])
