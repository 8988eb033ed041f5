"""Plays many scenes on several processes, adds up what hit, and tells what held."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from tests.faults import draw as drawing
from tests.faults.draw import draw
from tests.faults.invariants import NAMES, Judge
from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.program import KILLED, Replacements
from tests.faults.scene import due, has_odd_day
from tests.faults.stage import Record, Stage

CHUNK = 10
SHOWN = 5  # failures told in full


@dataclass
class Result:
    """What came of some scenes."""

    scenes: int = 0
    processes: int = 0
    runs: int = 0
    texts: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    problems: list[tuple[int, str, str]] = field(default_factory=list)
    """Number of the scene, name of the invariant, what is wrong."""
    stories: dict[int, str] = field(default_factory=dict)

    def add(self, other: Result) -> None:
        """Add what another saw."""
        for name in ("scenes", "processes", "runs", "texts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.hits += other.hits
        self.exits += other.exits
        self.problems += other.problems
        self.stories |= other.stories


def play(stage: Stage, seed: int, index: int) -> Result:
    """Play one scene, and judge it."""
    scene = draw(seed, index)
    result = Result(scenes=1, processes=int(scene.processes))
    judge = Judge(scene)
    record = None
    try:
        for record in stage.play(scene):
            result.problems += [(index, *problem) for problem in judge.judge(record)]
            if result.problems:
                break
    except Exception:  # noqa: BLE001 - a run that hangs, or the driver's own failure: told like any other
        result.problems.append((index, "traceback", traceback.format_exc()))
    if record:
        _count(record, result)
    if result.problems:
        logs = [f"--- exit {run.exit_code}, now {run.now}\n{run.output}" for g in record.groups for run in g.runs] if record else []
        result.stories[index] = "\n".join([scene.story, *logs])
    return result


def _count(record: Record, result: Result) -> None:
    result.texts += len(record.final_book)
    for group in record.groups:
        result.runs += len(group.runs)
        result.exits.update(run.exit_code if run.exit_code is not None else -1 for run in group.runs)
        for fault in group.faults:
            if fault.hits:
                result.hits[fault.kind] += fault.hits
        if len(group.runs) > 1:
            result.hits["overlapping runs"] += 1
        for run in group.runs:
            if now := run.now:
                odd = any(
                    due(who, now, record.scene.default_zone) and has_odd_day(who, now, record.scene.default_zone)
                    for who in group.people
                )
                result.hits["clock at a DST change"] += odd
            result.hits["run deadline"] += "RUN_DEADLINE (" in run.output
        result.hits["deferred"] += sum(run.output.count("gets no text, deferred") for run in group.runs)


def play_some(seed: int, indices: Sequence[int]) -> Result:
    """Play scenes on this process's stage."""
    result = Result()
    for index in indices:
        result.add(play(_stage(), seed, index))
    return result


_STAGE: list[Stage] = []


def _stage() -> Stage:
    return _STAGE[0]


def _set_stage(replacements: Replacements) -> None:
    _STAGE.append(Stage().__enter__())
    _STAGE[0].use(replacements)


def play_all(runs: Sequence[int], seed: int, workers: int, replacements: Replacements = ()) -> Iterator[Result]:
    """Play scenes on several processes; a result for each few of them."""
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_set_stage, initargs=(replacements,)
    ) as pool:
        parts = [runs[start : start + CHUNK] for start in range(0, len(runs), CHUNK)]
        for done in as_completed(pool.submit(play_some, seed, part) for part in parts):
            yield done.result()


def hunt(stage: Stage, mutant: Mutant, seed: int, most: int) -> tuple[int, str] | None:
    """Play the broken program until an invariant tells: after how many runs, and what it says."""
    stage.use(mutant.replacements)
    for index in range(most):
        result = play(stage, seed, index)
        told = [f"{NAMES[name]}: {words}" for _, name, words in result.problems if name in mutant.sees]
        if told:
            return index + 1, told[0]
    return None


def hunt_all(seed: int, most: int) -> int:
    """Show that the driver sees each of the ways in which the program was broken."""
    missed = 0
    with Stage() as stage:
        for mutant in MUTANTS:
            found = hunt(stage, mutant, seed, most)
            missed += found is None
            print(f"{mutant.name}: " + (f"caught by run {found[0]}\n    {found[1][:300]}" if found else "NOT CAUGHT"), flush=True)
    return 1 if missed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, play, tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=100)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("--only", type=int, help="play just the run of this number")
    parser.add_argument("--times", type=int, default=1, help="how often, with --only")
    parser.add_argument("--workers", type=int, default=4 * (os.cpu_count() or 1))
    parser.add_argument("--mutants", action="store_true", help="play broken copies of the program until each is caught")
    told = parser.parse_args(argv)
    if told.mutants:
        return hunt_all(told.seed, max(told.runs, 300))
    began = time.monotonic()
    total = Result()
    indices = [told.only] * told.times if told.only is not None else list(range(told.runs))
    last = 0.0
    replacements = []
    if os.environ.get("SCRATCH"):
        replacements = eval(open(os.environ["SCRATCH"]).read())
    for result in play_all(indices, told.seed, min(told.workers, len(indices)), replacements):
        total.add(result)
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{total.scenes} of {len(indices)} runs, {last - began:.0f} s, {len(total.problems)} problems", flush=True)
    print("\n".join(table(total, time.monotonic() - began)))
    for index in list(total.stories)[:SHOWN]:
        print(f"\nRun {index} failed. Again: python -m tests.faults --only {index} --times 20 1 {told.seed}")
        print("\n".join(f"  {name}: {words}" for number, name, words in total.problems if number == index))
        print(total.stories[index])
    return 1 if total.problems else 0


def table(total: Result, seconds: float) -> list[str]:
    """What hit, and what held."""
    lines = [f"{total.scenes} runs ({total.processes} with real processes) of {total.runs} executions, {total.texts} texts, {seconds:.0f} s"]
    lines += [f"  {hits:7} {kind}" for kind, hits in sorted(total.hits.items(), key=lambda pair: -pair[1])]
    lines += ["exit codes: " + ", ".join(f"{code}: {count}" for code, count in sorted(total.exits.items()))]
    broken = Counter(name for _, name, _ in total.problems)
    lines += [f"  {'FAILED ' + str(broken[name]) if broken[name] else 'held':10} {words}" for name, words in NAMES.items()]
    return lines
