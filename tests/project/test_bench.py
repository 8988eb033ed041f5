"""The benchmarks work, on few users, and their report marks what is out of its bound. No test here looks at a clock."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench import evaluation, process, report, sending, shards
from tests.bench.evaluation import Case, Extra
from tests.bench.measure import Bench
from tests.bench.process import Memory, Start
from tests.bench.sending import Speed
from tests.bench.shards import Shards
from tests.full import FULL, sample
from tests.project.shell import ROOT, ran

CASE = Case(
    index=True, users=1_000_000, old_logs=20, due=9, client_seconds=1, seconds=1.0, to_client=1.0, cpu_to_client=1.0,
    to_loop=30, mib=60,
)  # fmt: skip
WITHOUT = replace(CASE, index=False, to_client=0.95, cpu_to_client=0.95, to_loop=7)
EXTRA = Extra("all gates", seconds=1.2, times=1.25, to="the C client's", bound=1.25, users=1_000_000)
SPEED = Speed(
    concurrency=32, round_trip=0, texts=300, without_ledger=303, bare=310, to_bare=0.97, price=0.01, cpu=0.001
)
RESULTS = report.Results(
    "make bench FULL=1",
    "MariaDB 10.11",
    cases=[CASE, replace(CASE, users=10_000, to_client=9, to_loop=1), replace(WITHOUT, old_logs=0), WITHOUT],
    extras=[EXTRA, replace(EXTRA, users=10_000, times=3)],
    starts=[Start(0.13, 0.11, 1.2)],
    memory=[Memory(10_000, 2_000, 64, 70), Memory(1_000_000, 200_000, 65, 75)],
    speeds=[SPEED, replace(SPEED, round_trip=0.005)],
    shards=[Shards(1, 80_000, 1, 76, 1), Shards(2, 120_000, 1.5, 150, 1.97)],
)


def test_evaluation_finds_whom_the_reference_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the index; the benchmark fails when the program and the reference disagree on who is due."""
    if not (shutil.which("mariadb") or shutil.which("mysql")):
        pytest.skip("no mariadb or mysql client to measure against")
    monkeypatch.setattr(evaluation, "TURNS", 1)
    sizes, old = sample(([300, 900], [0, 4]), ([300], []))
    cases, extras = evaluation.run(Bench(ROOT / "app", full=False), sizes, old)
    expected = [
        (index, users, logs)
        for index in (True, False)
        for users, logs in (*((n, 20) for n in sizes), *((sizes[-1], n) for n in old))
    ]
    assert [(case.index, case.users, case.old_logs) for case in cases] == expected
    assert all(case.due > 50 for case in cases)
    assert [(extra.words.split()[0], extra.to) for extra in extras] == [
        ("views", "that of tables"),
        ("seven", "the C client's"),
        ("all", "the C client's"),
        ("all", "that without them"),
    ]


def test_the_other_parts_measure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[Any, dict[str, Any]] = {
        process: {"STARTS": 1, "OLD_LOGS": 2},
        sending: {"SECONDS": 0.2, "TURNS": 1, "CONCURRENCIES": (32,)},
        shards: {"TEXTS": 8, "TURNS": 1, "COUNTS": (1, 2), "OLD_LOGS": 2},
    }
    for module, constants in changes.items():
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)
    bench = Bench(ROOT / "app", full=False)
    start = process.start(bench)
    assert min(start.seconds, start.import_seconds, start.to_imports) > 0  # which is longer, one turn cannot tell
    [memory] = process.memory(bench, [200])
    assert memory.texts > 20
    assert 30 < memory.mib < 200
    assert 30 < memory.settling_mib < 200
    if FULL:  # a dozen processes each
        assert [speed.round_trip for speed in sending.run(bench)] == [0, 0.005]
        assert [row.count for row in shards.run(bench, 200)] == [1, 2]


def test_what_is_not_a_part_is_told() -> None:
    command = [sys.executable, "-m", "tests.bench", "evaluation", "speed"]
    done = ran(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("error: unknown: speed\n")


def test_what_is_out_of_its_bound_is_bold() -> None:
    good = report.table(RESULTS)
    assert not re.search(r"\| \*\*", good)
    bad = report.Results(
        "make bench",
        "MySQL 9",
        cases=[
            replace(CASE, to_client=1.01), replace(CASE, mib=70.6), replace(CASE, to_loop=24.9),
            replace(WITHOUT, to_client=0.96), replace(WITHOUT, mib=70.6), replace(WITHOUT, to_loop=6.9),
        ],
        extras=[replace(EXTRA, times=1.26)],
        starts=[Start(0.14, 0.1, 1.31)],
        memory=[Memory(10_000, 2_000, 90.6, 90.6)],
        speeds=[
            replace(SPEED, concurrency=8, texts=71), replace(SPEED, concurrency=64, to_bare=0.89),
            replace(SPEED, round_trip=0.005, price=0.11),
        ],
    )  # fmt: skip
    assert len(re.findall(r"\| \*\*", report.table(bad))) == 6 + 1 + 1 + 2 + 3


def test_the_picture_shows_time_memory_and_speed(tmp_path: Path) -> None:
    report.picture(RESULTS, tmp_path / "bench.svg")
    drawn = (tmp_path / "bench.svg").read_text()
    for words in ("µs per user", "million old logs", "MiB", "texts per second", "concurrency / latency"):
        assert words in drawn


def test_the_document_is_of_the_million_and_all_bounds_are_kept() -> None:
    document = (ROOT / "docs/bench.md").read_text()
    assert re.search(r"`make bench FULL=1` on \d{4}-\d\d-\d\d, commit [0-9a-f]{7}", document)
    assert "![Time, memory and speed](bench.svg)" in document
    for index in ("yes", "no"):
        assert f"| {index} | 1,000,000 | 20,000,000 |" in document
    assert not re.search(r"\| \*\*", document)
    took = re.findall(
        r"^\| (?:yes|no) \| 1,000,000 \| 20,000,000 \| .*? s \| ([\d.]+) s \|", document, flags=re.MULTILINE
    )
    said = "took {:.0f} seconds with the index and {:.0f} without".format(*map(float, took))
    assert said in (ROOT / "docs/scale.md").read_text().replace("\n", " ")
    assert (ROOT / "docs/bench.svg").exists()
