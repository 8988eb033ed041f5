"""`make bench` measures, prints the table, and writes it with a picture: to .bench, or, with FULL=1, to docs."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench import evaluation, process, report, sending, shards
from tests.bench.measure import ROOT, Bench
from tests.full import FULL

PARTS = ("evaluation", "memory", "start", "sending", "shards")
OLD_LOGS = [0, 5, 10]  # of each user; 20 are the end of the curve over users


def main() -> None:
    """Measure the parts that are named, or all; only all of them are written down."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--app", type=Path, default=ROOT / "app", help="the folder of another version of the program")
    parser.add_argument("--users", type=int, nargs="+", help="the numbers of users, instead of the usual ones")
    told = parser.parse_args()
    if unknown := set(told.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}")
    parts = told.parts or PARTS
    sizes = told.users or [10_000, 50_000, 200_000, *([1_000_000] if FULL else [])]
    bench = Bench(told.app.resolve(), full=FULL)
    results = report.Results(f"make bench{' FULL=1' if FULL else ''}", bench.look_at_server())
    if "start" in parts:
        results.starts = [process.start(bench)]
    if "sending" in parts:
        results.speeds = sending.run(bench)
    if "shards" in parts:
        results.shards = shards.run(bench, min(sizes[-1], 200_000))
    if "memory" in parts:
        results.memory = process.memory(bench, [sizes[0], sizes[-1]])
    if "evaluation" in parts:
        results.cases, results.extras = evaluation.run(bench, sizes, [] if told.users else OLD_LOGS)
    text = report.table(results)
    print(text)
    if set(parts) == set(PARTS) and not told.users and told.app == ROOT / "app":
        folder = ROOT / ("docs" if FULL else ".bench")
        folder.mkdir(exist_ok=True)
        (folder / "bench.md").write_text(text)
        report.picture(results, folder / "bench.svg")
        bench.say(f"written to {folder / 'bench.md'} and bench.svg beside it")


if __name__ == "__main__":
    main()
