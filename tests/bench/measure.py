"""How the benchmarks measure: children of their own, turn about, medians."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tests.sandbox.database import Database, Server

ROOT = Path(__file__).resolve().parents[2]
Figures = dict[str, float]


class Bench:
    """The conditions of one benchmark: which program, how large, on what server."""

    def __init__(self, app: Path, *, full: bool) -> None:
        self.app = app
        self.full = full
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {line}", file=sys.stderr, flush=True)

    def server(self, *, tls: bool = False) -> Server:
        """A throw-away server with room for all rows: what is measured is work, not this machine's disk."""
        pool = "6G" if self.full else "1G"
        return Server(tls=tls, options=[f"--innodb-buffer-pool-size={pool}"], say=self.say)

    def look_at_server(self) -> str:
        """The server's name and version."""
        with self.server() as server:
            return server.label

    @property
    def program(self) -> list[str]:
        """The command that runs the program, as the image's entrypoint does."""
        return [sys.executable, "-m", "habit_notifier"]

    def environ(self, *settings: Mapping[str, str]) -> dict[str, str]:
        """The environment of a child: nothing of ours that the program would read."""
        environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environ["PYTHONPATH"] = os.pathsep.join([str(self.app), str(ROOT)])
        environ["SSL_CERT_FILE"] = environ["SSL_CERT_DIR"] = os.devnull  # as in the image
        for some in settings:
            environ |= some
        return environ

    def child(self, environ: Mapping[str, str], role: str, *arguments: object) -> Figures:
        """What a child measured: see tests/bench/child.py."""
        command = [sys.executable, "-m", "tests.bench.child", role, *map(str, arguments)]
        done = subprocess.run(command, env=dict(environ), cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        figures: Figures = json.loads(done.stdout)
        return figures


def in_turn(times: int, contenders: Mapping[str, Callable[[], Figures]]) -> dict[str, list[Figures]]:
    """Measure each contender so many times, turn about: what slows the machine for a while hits all of them."""
    found: dict[str, list[Figures]] = {name: [] for name in contenders}
    for turn in range(times):
        names = sorted(contenders, reverse=turn % 2 == 1)
        for name in names:
            found[name].append(contenders[name]())
    return found


def median(figures: list[Figures], name: str) -> float:
    return statistics.median(each[name] for each in figures)


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios of what was measured in the same turn."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def timed(server: Server, process: Callable[[], Figures]) -> Figures:
    """What a process measured, with its time from start to end, and its CPU with that of the server.

    Both wait for each other, so their sum is the time on an idle machine; a busy one hardly changes it.
    """
    began, cpu = time.perf_counter(), _cpu_of_children() + _cpu_of_server(server)
    figures, seconds = process(), time.perf_counter() - began
    return figures | {"seconds": seconds, "cpu": _cpu_of_children() + _cpu_of_server(server) - cpu}


def quietly(command: list[str]) -> Figures:
    """Run a command, whose output goes nowhere; there is nothing that it measures."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {}


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_of_server(server: Server) -> float:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@pid_file")
        [path] = cursor.fetchone() or [""]
    ticks = Path("/proc", Path(path).read_text().strip(), "stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def c_client(database: Database, sql: str) -> list[str] | None:
    """The command that runs a query with the server's own client; None when this machine has none."""
    program = shutil.which("mariadb" if database.server.kind == "mariadb" else "mysql") or shutil.which("mysql")
    server = database.server
    where = [f"--host={server.host}", f"--port={server.port}", f"--user={server.user}", database.name]
    style = ["--no-defaults", "--batch", "--skip-column-names", "--quick", "--init-command=SET time_zone = '+00:00'"]
    return [program, *style, *where, f"--execute={sql}"] if program else None


def peak_mib_of(command: list[str], environ: Mapping[str, str], ends: Collection[int] = (0,)) -> float:
    """The most memory that a command has while it runs, in MiB, read every few milliseconds.

    :raises RuntimeError: when it does not end with one of these codes
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=dict(environ), stderr=log)
        status, peak = Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
            peak = max([peak, *(int(line.split()[1]) for line in lines)])
            threading.Event().wait(0.02)
        if process.returncode not in ends:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{log.read().decode()[-2000:]}")
    return peak / 1024
