"""The program under test: in this process, or in one of its own that can be killed; and what a run of it left.

Nothing in the program knows of this. Its patience is shortened from outside: its constants are set to smaller values,
and its `time` flows faster, so that what it would wait a minute for takes three seconds.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "app" / "habit_notifier.py"
HASTE = 20.0  # how much faster the program's own waits pass
LONGEST = 90.0  # seconds of ours in which every run must end
KILLED = -signal.SIGKILL

Replacements = Sequence[tuple[str, str]]
LOCK_WAIT = ("innodb_lock_wait_timeout = {1}", "innodb_lock_wait_timeout = 1")


class MovedError(Exception):
    """A text of the program that is to be replaced is not there, or not there once."""


class Haste:
    """Stands in for the module `time` in the program."""

    gmtime = staticmethod(time.gmtime)

    def monotonic(self) -> float:
        """The program's seconds."""
        return time.monotonic() * HASTE

    time = monotonic

    def sleep(self, seconds: float) -> None:
        """Sleep seconds of the program."""
        time.sleep(seconds / HASTE)


def mutate(source: str, replacements: Replacements) -> str:
    """The source with each text replaced; each must be there exactly once."""
    for old, new in replacements:
        if source.count(old) != 1:
            raise MovedError(f"this text stands {source.count(old)} times in {SOURCE.name}, not once:\n{old}")
        source = source.replace(old, new)
    return source


def load(name: str, replacements: Replacements = ()) -> ModuleType:
    """A copy of the program as a module of that name; copies share nothing but the libraries."""
    module = ModuleType(name)
    module.__file__ = str(SOURCE)
    sys.modules[name] = module  # dataclasses look there
    code = compile(mutate(SOURCE.read_text(), replacements), str(SOURCE), "exec")
    exec(code, module.__dict__)  # noqa: S102 - it is our own program
    return module


def patch(module: ModuleType, constants: Mapping[str, Any], judged_by: Callable[[datetime], object]) -> None:
    """Set the program's constants, let its time fly, and hear of the instant that a run judges by."""
    for name, value in constants.items():
        if not hasattr(module, name):
            raise MovedError(f"the program has no {name} any more")
        setattr(module, name, tuple(value) if isinstance(value, list) else value)
    module.__dict__["time"] = Haste()

    class Job(module.__dict__.setdefault("_Job", module.Job)):  # type: ignore[misc]
        def take_stock(self) -> None:
            try:
                super().take_stock()
            finally:
                judged_by(self.now)

    module.__dict__["Job"] = Job


@dataclass
class Orders:
    """What a run shall be."""

    argv: list[str]
    environ: dict[str, str]
    constants: dict[str, Any]
    replacements: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Run:
    """One run of the program: its orders, and what it left."""

    orders: Orders
    now: datetime | None = None
    """The instant that it judged by; None when it did not come so far."""
    exit_code: int | None = None
    output: str = ""
    crash: str = ""
    term_at: str = ""
    """Where SIGTERM reached it, if it did."""
    killed: bool = False


class Actor:
    """Runs the program once, and can be told to end."""

    def __init__(self, orders: Orders) -> None:
        self.run = Run(orders)
        self.started = threading.Event()

    def start(self) -> None:
        raise NotImplementedError

    def join(self) -> None:
        """Wait for the end, and fill in `run`."""
        raise NotImplementedError

    def terminate(self, where: str) -> bool:
        """SIGTERM; whether it reached a run that was not over."""
        raise NotImplementedError


class InlineActor(Actor):
    """The program in a thread of this process, SIGTERM being what its handler does."""

    def __init__(self, orders: Orders, module: ModuleType, clock: Callable[[], datetime]) -> None:
        super().__init__(orders)
        self._module, self._clock = module, clock
        self._stop = module.__dict__["Stop"]()
        self._thread = threading.Thread(target=self._main, name=module.__name__, daemon=True)
        self._lines: list[str] = []

    def start(self) -> None:
        self._thread.start()
        self.started.set()

    def join(self) -> None:
        self._thread.join(LONGEST)
        if self._thread.is_alive():
            stack = sys._current_frames().get(self._thread.ident or 0)
            where = "".join(traceback.format_stack(stack)) if stack else ""
            raise TimeoutError(f"the program does not end:\n{where}\n" + "\n".join(self._lines[-30:]))
        self.run.output = "\n".join(self._lines)

    def terminate(self, where: str) -> bool:
        if not self._thread.is_alive() or self._stop.requested:
            return False
        self.run.term_at = where
        self._stop.request()
        return True

    def _main(self) -> None:
        module, lines = self._module, self._lines
        patch(module, self.run.orders.constants, lambda now: setattr(self.run, "now", now))
        logger: logging.Logger = module.__dict__["log"]
        handler = _Lines(lines)
        handler.setFormatter(module.__dict__["OneLine"]("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
        try:
            main = module.__dict__["main"]
            self.run.exit_code = int(main(self.run.orders.argv, self.run.orders.environ, self._clock, self._stop))
        except BaseException:  # noqa: BLE001 - whatever escapes is what a user would see as a traceback
            self.run.crash = traceback.format_exc()
        finally:
            logger.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))


class ProcessActor(Actor):
    """The program in a process of its own: forked from one that has imported it, or from scratch."""

    def __init__(self, orders: Orders, offset: timedelta, *, from_scratch: bool) -> None:
        super().__init__(orders)
        self._from_scratch = from_scratch
        self._folder = tempfile.TemporaryDirectory(prefix="habit-faults-")
        self._spec = {**asdict(orders), "offset": offset.total_seconds(), "folder": self._folder.name}
        self._popen: subprocess.Popen[bytes] | None = None
        self._process: Any = None
        self._lock = threading.Lock()

    def start(self) -> None:
        if self._from_scratch:
            command = [sys.executable, "-m", "tests.faults.program", json.dumps(self._spec)]
            self._popen = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **self.run.orders.environ})
        else:
            self._process = _forkserver().Process(target=play, args=(self._spec,))
            self._process.start()
        ready = Path(self._folder.name, "ready")
        while not ready.exists() and self._exit_code() is None:
            time.sleep(0.002)
        self.started.set()

    def join(self) -> None:
        until = time.monotonic() + LONGEST
        while self._exit_code() is None and time.monotonic() < until:
            time.sleep(0.005)
        code = self._exit_code()
        if code is None:
            self.kill()
            raise TimeoutError("the program's process does not end:\n" + self._read("output")[-3000:])
        self.run.exit_code = code
        self.run.output = self._read("output")
        self.run.now = datetime.fromisoformat(self._read("now")) if self._read("now") else None
        self._folder.cleanup()

    def terminate(self, where: str) -> bool:
        if self._exit_code() is not None or not self._send(signal.SIGTERM):
            return False
        self.run.term_at = self.run.term_at or where
        return True

    def kill(self) -> bool:
        """kill -9; whether there was something to kill."""
        self.run.killed = self._exit_code() is None and self._send(signal.SIGKILL)
        return self.run.killed

    def _send(self, number: int) -> bool:
        pid = self._popen.pid if self._popen else self._process.pid
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def _exit_code(self) -> int | None:
        with self._lock:  # neither class likes to be asked by two threads
            code: int | None = self._popen.poll() if self._popen else self._process.exitcode
            return code

    def _read(self, name: str) -> str:
        path = Path(self._folder.name, name)
        return path.read_text(errors="replace") if path.exists() else ""


def _forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preloaded"])
    return context


def play(spec: dict[str, Any]) -> None:
    """Be the program, in a process of its own."""
    early: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: early.append(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(spec["folder"])
    output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    (folder / "ready").touch()
    replacements = [tuple(pair) for pair in spec["replacements"]]
    preloaded = importlib.import_module("tests.faults.preloaded")
    module = load("mutated", replacements) if replacements else preloaded.PROGRAM
    stop = module.__dict__["Stop"]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.request)
    if early:
        stop.request()
    patch(module, spec["constants"], lambda now: (folder / "now").write_text(now.isoformat()))
    os.environ.clear()
    os.environ.update(spec["environ"])
    offset = timedelta(seconds=spec["offset"])
    main = module.__dict__["main"]
    sys.exit(int(main(spec["argv"], os.environ, lambda: datetime.now(UTC) + offset, stop)))


if __name__ == "__main__":
    play(json.loads(sys.argv[1]))
