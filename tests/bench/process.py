"""What the process itself costs: its start, and the most memory that it has over TLS."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import certifi

from tests.bench.evaluation import NO_TWILIO, OLD_LOGS
from tests.bench.measure import Bench, Figures, in_turn, median, peak_mib_of, ratio
from tests.bench.population import Population
from tests.sandbox.database import LEDGER
from tests.sandbox.fake_twilio import FakeTwilioProcess, self_signed_certificate
from tests.sandbox.proxy import Proxy, Verdict

STARTS = 20
IMPORTS = "import os, pymysql, twilio.rest; os.write(1, b'.')"


@dataclass(frozen=True)
class Start:
    """From the start of the process to the first query, in times of importing what it needs."""

    seconds: float
    import_seconds: float
    to_imports: float


@dataclass(frozen=True)
class Memory:
    """The most memory of a whole run that texts everybody who is due, database and Twilio over TLS."""

    users: int
    texts: int
    mib: float
    settling_mib: float
    """The most of `--settle` an hour later."""


def start(bench: Bench) -> Start:
    """Medians of STARTS starts, turn about."""
    bench.say("starting the program")
    with bench.server() as server, server.database() as database, Proxy((server.host, server.port)) as proxy:
        at = {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port)}
        environ = bench.environ(database.environ(), NO_TWILIO, at)
        found = in_turn(
            STARTS,
            {"program": lambda: _to_first_query(bench.program, environ, proxy), "imports": lambda: _imports(environ)},
        )
    seconds = [each["seconds"] for each in found["program"]]
    imports = [each["seconds"] for each in found["imports"]]
    return Start(median(found["program"], "seconds"), median(found["imports"], "seconds"), ratio(seconds, imports))


def _to_first_query(command: list[str], environ: Mapping[str, str], proxy: Proxy) -> Figures:
    seen: list[float] = []

    def hook(_query: str) -> Verdict:
        seen.append(time.perf_counter())
        return Verdict.CUT_BEFORE

    proxy.hook = hook
    started = time.perf_counter()
    with subprocess.Popen(command, env=dict(environ), stderr=subprocess.DEVNULL) as process:
        while not seen and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    if not seen:
        raise RuntimeError("The program ended before its first query")
    return {"seconds": seen[0] - started}


def _imports(environ: Mapping[str, str]) -> Figures:
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", IMPORTS], env=dict(environ), stdout=subprocess.PIPE) as process:
        assert process.stdout
        os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - started
    return {"seconds": seconds}


def memory(bench: Bench, sizes: list[int]) -> list[Memory]:
    """The peak for each number of users, at the default concurrency."""
    found = []
    with tempfile.TemporaryDirectory() as folder, bench.server(tls=True) as server, server.database() as database:
        certificate, key = self_signed_certificate(Path(folder))
        bundle = Path(folder, "bundle.pem")  # all authorities, as in life: reading them is what costs memory
        bundle.write_text(Path(certifi.where()).read_text() + Path(certificate).read_text())
        population = Population(database, datetime.now(UTC))
        for users in sizes:
            bench.say(f"a whole run over TLS, {users:,} users")
            population.grow(users, OLD_LOGS)
            database.execute(f"DROP TABLE IF EXISTS {LEDGER}")
            with FakeTwilioProcess(tls=(certificate, key)) as twilio:
                told = bench.environ(database.environ(), twilio.environ(), {"REQUESTS_CA_BUNDLE": str(bundle)})
                told |= {"RUN_DEADLINE": "86400"}
                mib = peak_mib_of(bench.program, told, ends=(0, 1))  # whose midnight comes waits for another run
                database.execute(f"UPDATE {LEDGER} SET claimed_at = claimed_at - INTERVAL 1 HOUR")
                settling = peak_mib_of([*bench.program, "--settle"], told)
                if (texts := int(twilio.stats()["accepted"])) < users / 10:
                    raise RuntimeError(f"Of {users} users only {texts} were texted")
                found.append(Memory(users, texts, mib, settling))
    return found
