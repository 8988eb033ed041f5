"""`make check`: one step after another, a line for each; then three lines: what it proved, what it skipped, and why."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


class Tests:
    """The step that runs the tests, and what came of them."""

    passed = skipped = 0
    uncovered: Mapping[str, str] = MappingProxyType({})

    def __call__(self) -> int:
        """Run them. Returns pytest's exit code."""
        # In the order of their names: xdist's own order leaves the files with few and long tests to the end.
        workers = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]  # on two cores: many tests wait
        return int(pytest.main(["-q", *workers, "--cov", "--ignore=tests/e2e"], plugins=[self]))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Keep what pytest counted."""
        from tests.conftest import uncovered  # pytest must be the first to import it

        self.passed, self.skipped = (len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "skipped"))
        self.uncovered = uncovered(terminalreporter)


def command(*words: str) -> Callable[[], int]:
    """A step that runs a program."""
    return lambda: subprocess.run(words, cwd=ROOT, check=False).returncode


def main() -> int:
    """Take all steps, or those up to the first that fails. Returns its exit code."""
    tests = Tests()
    steps: dict[str, Callable[[], int]] = {
        "linters": command("make", "--no-print-directory", "lint"),
        "formatting": command(f"{BIN}/ruff", "format", "--check", "."),
        "types": command(f"{BIN}/mypy", "--strict"),
        "tests": tests,
    }
    began = time.monotonic()
    last = ""
    for number, (name, step) in enumerate(steps.items(), start=1):
        print(f"--- {number} of {len(steps)}: {name}{last}", flush=True)
        started = time.monotonic()
        if code := step():
            print(f"make check: {name} failed. What is wrong stands above.", file=sys.stderr)
            return code
        last = f" ({name} took {time.monotonic() - started:.0f} s)"
    missing = {**tests.uncovered, "it needs a cluster, and is apart: make e2e": "the cluster test"}
    whole = [what for what in missing.values() if not what[0].isdigit()]
    print(f"Proved, in {time.monotonic() - began:.0f} s: {', '.join(steps)} ({tests.passed} passed)")
    print(f"Skipped: {', '.join([f'{tests.skipped} tests', *whole])}")
    print(f"Why: {'; '.join(f'{what}: {why}' for why, what in missing.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
