"""The results as a table in words and ratios, and as a picture."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.evaluation import Case, Extra
from tests.bench.measure import ROOT
from tests.bench.process import Memory, Start
from tests.bench.sending import LATENCY, Speed
from tests.bench.shards import CONCURRENCY, Shards

START_BOUND = 1.3  # times the imports
EVALUATION_MEMORY, MEMORY_BOUND = 70, 90  # MiB: of the evaluation alone, and of a whole run
BARE_BOUND = 0.9  # of what twilio's client alone reaches with 64 threads
PRICE_BOUND = 0.10  # of the speed at 32

HOW = """
Ratios are medians of measurements taken turn about; the times stand beside them to give the scale. A ratio that is out
of its bound is **bold**."""
EVALUATION = """## Evaluation

The whole job but the sends (the due users are counted instead), against the server's own C client with
one grouped query ([reference.sql](../tests/bench/reference.sql)), from the start of the process to its end, and against
a loop of one query for each user and day. Two connections read ahead, so the time is shorter than the CPU, the server's
included, would let expect. The bounds are for a million users with 24 million logs. The ledger is empty."""
MEMORY = f"""## Memory

The most of a whole run at the default concurrency, database and Twilio over TLS, and of `--settle` an hour
later, which looks at up to 20,000 texts; at most {MEMORY_BOUND} MiB. The
last 25,000 results are kept, to be written again when the database switches over: here
they are a sixth of it."""
EXTRAS = """The same with more, with the index and as many users as the table above has at most."""
START = """## Start

To the first query, against importing `twilio.rest` and `pymysql` alone."""
SENDING = f"""## Sending

Over plain HTTP, against a Twilio in a process of its own that takes {LATENCY * 1000:.0f} ms a text. The
limit is concurrency / latency; *bare* is a loop over twilio's client with as many threads; the ledger's price is the
share of the speed that claiming and recording cost."""

SHARDS = f"""## Shards

Runs side by side on this machine, database and all: evaluation with the index, and sending with
{CONCURRENCY} threads each at {LATENCY * 1000:.0f} ms. On a cluster each shard can have a CPU of its own, and only the
database, the account and the sender are shared."""


@dataclass
class Results:
    command: str
    server: str
    cases: list[Case] = field(default_factory=list)
    extras: list[Extra] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    shards: list[Shards] = field(default_factory=list)


def table(results: Results) -> str:
    """The document, in Markdown. A bound that is not kept is in bold."""
    sections: list[tuple[str, str, Iterable[list[str]]]] = [
        (
            EVALUATION,
            (
                "index on Log(habit_id, created_at) | users | old logs | due | C client | program | ratio | of CPU | "
                f"at most | users/s, times the loop's | at least | MiB, at most {EVALUATION_MEMORY}"
            ),
            map(_case, results.cases),
        ),
        (EXTRAS, "with | time | ratio | to | at most", map(_extra, results.extras)),
        (MEMORY, "users | texts | MiB | MiB of --settle", map(_memory, results.memory)),
        (START, "imports | first query | ratio | at most", map(_start, results.starts)),
        (
            SENDING,
            (
                "SEND_CONCURRENCY | to the database and back | texts/s | of the limit | of bare | ledger's price | "
                "CPU per text"
            ),
            map(_speed, results.speeds),
        ),
        (
            SHARDS,
            "shards | users/s | times one's | texts/s | times one's",
            map(_shards, results.shards),
        ),
    ]
    parts = [
        "# Benchmarks",
        f"`{results.command}` on {datetime.now(UTC):%Y-%m-%d}, {_machine(results)}.\n{HOW}",
        "![Time, memory and speed](bench.svg)",
    ]
    for words, head, rows in sections:
        if lines := [*rows]:
            parts += [words, _rows(head, lines)]
    return "\n\n".join(parts) + "\n"


def _case(case: Case) -> list[str]:
    return [
        "yes" if case.index else "no",
        f"{case.users:,}",
        f"{case.users * case.old_logs:,}",
        f"{case.due:,}",
        f"{case.client_seconds:.2f} s",
        f"{case.seconds:.2f} s",
        _bold(f"{case.to_client:.2f}", not case.large or case.to_client <= case.bound),
        f"{case.cpu_to_client:.2f}",
        f"{case.bound}",
        _bold(f"{case.to_loop:.1f}", not case.large or case.to_loop >= case.loop_bound),
        f"{case.loop_bound}",
        _bold(f"{case.mib:.0f}", case.mib <= EVALUATION_MEMORY),
    ]


def _extra(extra: Extra) -> list[str]:
    ratio = _bold(f"{extra.times:.2f}", not extra.large or extra.times <= extra.bound)
    return [extra.words, f"{extra.seconds:.2f} s", ratio, extra.to, f"{extra.bound}"]


def _memory(row: Memory) -> list[str]:
    most = (_bold(f"{mib:.0f}", mib <= MEMORY_BOUND) for mib in (row.mib, row.settling_mib))
    return [f"{row.users:,}", f"{row.texts:,}", *most]


def _start(start: Start) -> list[str]:
    kept = start.to_imports <= START_BOUND
    imports, seconds = f"{start.import_seconds * 1000:.0f} ms", f"{start.seconds * 1000:.0f} ms"
    return [imports, seconds, _bold(f"{start.to_imports:.2f}", kept), f"{START_BOUND}"]


def _speed(speed: Speed) -> list[str]:
    large = speed.concurrency > 32  # there, this machine is the limit
    return [
        f"{speed.concurrency}",
        f"{speed.round_trip * 1000:.0f} ms",
        f"{speed.texts:.0f}",
        _bold(f"{speed.to_limit:.2f}", speed.to_limit >= 0.9 or large or speed.round_trip > 0),
        _bold(f"{speed.to_bare:.2f}", speed.to_bare >= BARE_BOUND or not large),
        _bold(f"{speed.price:.1%}", speed.price <= PRICE_BOUND or speed.concurrency != 32),
        f"{speed.cpu * 1000:.1f} ms",
    ]


def _shards(row: Shards) -> list[str]:
    return [f"{row.count}", f"{row.users:,.0f}", f"{row.to_one:.2f}", f"{row.texts:.0f}", f"{row.texts_to_one:.2f}"]


def _bold(text: str, kept: bool) -> str:
    return text if kept else f"**{text}**"


def _rows(head: str, rows: Iterable[Sequence[str]]) -> str:
    columns = head.split(" | ")
    lines = [columns, ["---:"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _machine(results: Results) -> str:
    described = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    load = f"{os.getloadavg()[0]:.1f}"
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout
    return (
        f"commit {commit.strip() or 'unknown'}: {os.cpu_count()} cores ({names[0] if names else platform.machine()}), "
        f"load {load} at the end, Python {platform.python_version()}, {results.server} beside it, "
        f"PyMySQL {version('PyMySQL')}, twilio {version('twilio')}"
    )


def picture(results: Results, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9, "axes.grid": True})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    over_users, over_old, over_memory, over_threads = axes.flat
    users, old = _curves(results.cases)
    for index, colour in ((True, "tab:blue"), (False, "tab:orange")):
        words = "with the index" if index else "without it"
        for axis, curve, along in ((over_users, users, "users"), (over_old, old, "old_logs")):
            points = sorted((case for case in curve if case.index is index), key=lambda case: getattr(case, along))
            xs = [case.users if along == "users" else case.old_logs * case.users / 1e6 for case in points]
            axis.plot(
                xs, [case.seconds / case.users * 1e6 for case in points], "o-", c=colour, label=f"program, {words}"
            )
            clients = [case.client_seconds / case.users * 1e6 for case in points]
            axis.plot(xs, clients, "x--", c=colour, label=f"C client, {words}")
    _label(over_users, "Evaluation", "users", "µs per user", logarithmic=True)
    _label(over_old, "Evaluation and old logs", "million old logs", "µs per user")
    over_memory.plot(
        [m.users for m in results.memory], [m.mib for m in results.memory], "o-", label="a whole run over TLS"
    )
    grown = [case for case in users if case.index]
    over_memory.plot([case.users for case in grown], [case.mib for case in grown], "o-", label="evaluation alone")
    over_memory.axhline(MEMORY_BOUND, ls=":", c="gray", label="bound")
    over_memory.set_ylim(0)
    _label(over_memory, "Memory", "users", "MiB", logarithmic=True)
    near = [speed for speed in results.speeds if not speed.round_trip]
    threads = [speed.concurrency for speed in near]
    over_threads.plot(threads, [speed.texts for speed in near], "o-", label="program")
    over_threads.plot(threads, [speed.without_ledger for speed in near], "x--", label="without its ledger")
    over_threads.plot(threads, [speed.bare for speed in near], "+--", label="twilio's client alone")
    over_threads.plot(threads, [n / LATENCY for n in threads], ":", c="gray", label="concurrency / latency")
    _label(over_threads, f"Sending at {LATENCY * 1000:.0f} ms", "SEND_CONCURRENCY", "texts per second")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def _label(axis: Any, title: str, x: str, y: str, *, logarithmic: bool = False) -> None:
    axis.set(title=title, xlabel=x, ylabel=y)
    axis.set_ylim(0)
    if logarithmic:
        axis.set_xscale("log")
    else:
        axis.set_xlim(0)
    axis.xaxis.set_major_formatter("{x:,.5g}" if not logarithmic else "{x:,.0f}")
    axis.legend(fontsize="small")


def _curves(cases: list[Case]) -> tuple[list[Case], list[Case]]:
    """The cases over users, all with the most old logs, and those over old logs, all with the same number of users."""
    most_old = max((case.old_logs for case in cases), default=0)
    users = {case.users for case in cases if case.old_logs < most_old}
    return [c for c in cases if c.old_logs == most_old], [c for c in cases if c.users in users]
