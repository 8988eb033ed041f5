"""Plays many scenes on several processes, adds up what hit, and tells what held."""

from __future__ import annotations

import argparse
import math
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from threading import Thread

from tests.faults.draw import HALF, draw, kinds
from tests.faults.invariants import NAMES, Judge
from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.scene import due, has_odd_day, zone_day
from tests.faults.stage import Played, Record, Stage

CHUNK = 10  # most scenes that a process plays before it tells
SHOWN = 5  # failures told in full
PROGRESS = 10.0  # seconds
ENOUGH = 50  # how often each kind must have hit in 10,000 runs

# What is counted by the log alone.
IN_THE_LOG = (
    ("run deadline", "RUN_DEADLINE ("),
    ("later: SEND_WINDOW", "gets no text, later"),
    ("earlier text delivered", ", delivered "),
    ("earlier text undelivered", ", undelivered "),
    ("sender blocked by carriers", "Carriers block the sender"),
    ("left alone: texts do not arrive", "gets no text, left alone"),
    ("left alone: the last text did not arrive", "refused earlier: the last text did not arrive"),
)
# Counted by what a run was: its instants and its people.
BY_SIGHT = (
    "clock at a DST change",
    "local midnight while a run is at work",
    "overlapping runs",
    "overlapping runs on two local days",
    "undecodable row",
    "kill -9, claiming once more",
)
KINDS = sorted({*kinds(), *BY_SIGHT, *(kind for kind, _ in IN_THE_LOG)})
"""What must hit."""


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

    def count(self, record: Record) -> None:
        """Add up what happened in a scene."""
        self.texts += len(record.final_book)
        for group in record.groups:
            self.runs += len(group.runs)
            self.exits.update(run.exit_code for run in group.runs if run.exit_code is not None)
            self.hits.update({fault.kind: fault.hits for fault in group.faults if fault.hits})
            self.hits["overlapping runs"] += len(group.runs) > 1
            for run in group.runs:
                self.hits["clock at a DST change"] += is_at_change(group, run.now, record.scene.default_zone)
                self.hits.update(kind for kind, words in IN_THE_LOG if words in run.output)
                self.hits["undecodable row"] += any(HALF in f"{p.name}{p.zone}" and p.is_here for p in group.people)
            nows = [run.now for run in group.runs if run.now]
            days = ({zone_day(who, now, record.scene.default_zone) for now in nows} for who in group.people)
            self.hits["overlapping runs on two local days"] += any(len(of_one) > 1 for of_one in days)


def is_at_change(group: Played, now: object, default: str | None) -> bool:
    """Whether a run judged somebody who is due by a day that has not 24 hours."""
    instants = [run.now for run in group.runs if run.now is now and run.now]
    return any(due(who, at, default) and has_odd_day(who, at, default) for at in instants for who in group.people)


def play(stage: Stage, seed: int, index: int) -> Result:
    """Play one scene, and judge it."""
    scene = draw(seed, index)
    result = Result(scenes=1, processes=int(scene.processes))
    judge = Judge(scene)
    records = []
    try:
        for record in stage.play(scene):
            records = [record]
            result.problems += [(index, *problem) for problem in judge.judge(record)]
            if result.problems:
                break
    except Exception:  # noqa: BLE001 - a run that hangs, or a failure of the driver: told like any other
        result.problems.append((index, "traceback", traceback.format_exc()))
    for record in records:
        result.count(record)
    if result.problems:
        runs = [run for record in records for group in record.groups for run in group.runs]
        logs = [f"--- now {run.now}, exit code {run.exit_code} {run.crash}\n{run.output}" for run in runs]
        result.stories[index] = "\n".join([scene.story, *logs])
    return result


# --- many, on several processes

_STAGES: list[Stage] = []
_BEGAN: list[float] = []


def _end_with_parent() -> None:
    """A parent that is killed can end neither us nor our database server."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _make_stage() -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    needed = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "VIRTUAL_ENV") if name in os.environ}
    os.environ.clear()  # requests reads all of it with each request
    os.environ.update(needed)
    _STAGES.append(Stage().__enter__())
    _BEGAN.append(time.monotonic())


def play_some(seed: int, indices: Sequence[int], seconds: float) -> Result:
    """Play scenes on this process's stage, as long as there is time."""
    result = Result()
    for index in indices:
        if time.monotonic() - _BEGAN[0] < seconds:
            result.add(play(_STAGES[0], seed, index))
    return result


def play_all(indices: Sequence[int], seed: int, workers: int, seconds: float) -> Iterator[Result]:
    """Play scenes on several processes; a result for each few of them. After those seconds no more are begun."""
    size = max(1, min(CHUNK, len(indices) // (8 * workers)))
    parts = [indices[start : start + size] for start in range(0, len(indices), size)]
    with _pool(min(workers, len(parts))) as pool:
        for done in as_completed(pool.submit(play_some, seed, part, seconds) for part in parts):
            yield done.result()


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_make_stage)


# --- the ways to break the program


def hunt(mutant: Mutant, seed: int, most: int) -> tuple[int, int, str] | None:
    """Play the broken program until an invariant tells: which run it was, the how-manieth that was played, and why.

    Only runs that hold the fault which shows it are played: of the others none would tell.
    """
    stage, played = _STAGES[0], 0
    stage.use(list(mutant.replacements.items()))
    for index in range(most):
        if not mutant.concerns(draw(seed, index)):
            continue
        played += 1
        for _, name, words in play(stage, seed, index).problems:
            if name in mutant.sees:
                return index, played, f"not so: {NAMES[name]}: {words}"
    return None


def hunt_all(seed: int, most: int, workers: int) -> int:
    """Show that the driver sees each of the ways in which the program was broken. Returns the exit code."""
    with _pool(min(workers, len(MUTANTS))) as pool:
        hunts = [(mutant, pool.submit(hunt, mutant, seed, most)) for mutant in MUTANTS]
        caught = [(mutant, done.result()) for mutant, done in hunts]
    for mutant, found in caught:
        words = "caught by run {}, the {}. of its kind\n    {:.300}".format(*found) if found else "NOT CAUGHT"
        print(f"{mutant.name}: {words}")
    return 0 if all(found for _, found in caught) else 1


# --- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, play, tell. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=100)
    parser.add_argument("seed", nargs="?", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="play the run of this number alone")
    parser.add_argument("--times", type=int, default=1, help="with --only: how often")
    parser.add_argument("--workers", type=int, default=4 * (os.cpu_count() or 1), help="most of the time they wait")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no more runs after so long")
    parser.add_argument("--mutants", action="store_true", help="break the program in ten ways, until each is caught")
    told = parser.parse_args(argv)
    if told.mutants:
        return hunt_all(told.seed, told.runs, told.workers)
    indices = list(range(told.runs)) if told.only is None else [told.only] * told.times
    began = spoken = time.monotonic()
    total = Result()
    for result in play_all(indices, told.seed, told.workers, told.seconds):
        total.add(result)
        if time.monotonic() - spoken > PROGRESS:
            spoken = time.monotonic()
            failed = f", {len(total.stories)} of them failed" if total.stories else ""
            print(f"{total.scenes} of {len(indices)} runs in {spoken - began:.0f} s{failed}", flush=True)
    print("\n".join(table(total, time.monotonic() - began)))
    print("\n".join(failures(total, told.seed)))
    return 1 if total.problems else 0


def table(total: Result, seconds: float) -> Iterator[str]:
    """What hit, and what held."""
    yield f"{total.scenes} runs in {seconds:.0f} s, {total.processes} of them with real processes"
    yield f"the program was started {total.runs} times and sent {total.texts} texts; it ended with "
    yield "  " + ", ".join(f"{code} {count} times" for code, count in sorted(total.exits.items()))
    yield "what hit, how often:"
    for kind in KINDS:
        few = total.hits[kind] * 10_000 < ENOUGH * total.scenes
        yield f"  {total.hits[kind]:6} {kind}{' (too rarely)' if few else ''}"
    yield "what must hold:"
    broken = Counter(name for _, name, _ in total.problems)
    for name, words in NAMES.items():
        yield f"  {f'BROKEN {broken[name]} TIMES' if broken[name] else 'held'}: {words}"


def failures(total: Result, seed: int) -> Iterator[str]:
    """The first failures, and how to see them again."""
    for index, story in sorted(total.stories.items())[:SHOWN]:
        yield f"\nRun {index} failed. Once more: python -m tests.faults --only {index} --times 20 1 {seed}"
        yield from (f"  {NAMES[name]}: {words}" for number, name, words in total.problems if number == index)
        yield story
    if rest := sorted(total.stories)[SHOWN:]:
        yield f"\nSo did the runs {', '.join(map(str, rest))}."
