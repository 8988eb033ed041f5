"""Whatever goes wrong, nobody is texted twice and nobody is lost: runs of tests/faults, a few hundred under FULL=1.

`make faults RUNS=10000` does the same at length, and tells what hit.
"""

from __future__ import annotations

import sys

import pytest

from tests.faults import mutants
from tests.faults.draw import draw
from tests.faults.program import MovedError, mutate
from tests.full import sample
from tests.project.shell import ran

RUNS, SEED, SECONDS = sample(300, 40), 20240115, sample(45, 8)
ENOUGH = sample(30, 8)  # runs that even a busy machine plays in those seconds


def faults(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the driver."""
    command = [sys.executable, "-m", "tests.faults", *map(str, arguments)]
    done = ran(*command, seconds=280)
    return done.returncode, done.stdout + done.stderr


def test_no_fault_makes_it_text_twice_or_lose_somebody() -> None:
    code, output = faults(RUNS, SEED, "--seconds", SECONDS, "--workers", 6)
    assert code == 0, output
    [told] = [line for line in output.splitlines() if " with real processes" in line]
    assert int(told.split()[0]) >= ENOUGH, output


def test_the_driver_sees_each_way_to_break_the_program() -> None:
    code, output = faults(12_000, 3, "--mutants", "--workers", 3)
    assert code == 0, output
    assert output.count("caught by run") == len(mutants.MUTANTS) == 10


def test_a_replacement_whose_text_has_moved_fails_loudly() -> None:
    with pytest.raises(MovedError, match="0 times"):
        mutate("a = 1", [("b = 1", "b = 2")])
    with pytest.raises(MovedError, match="2 times"):
        mutate("a = 1; a = 1", [("a = 1", "a = 2")])


def test_a_run_can_be_drawn_again_by_seed_and_number() -> None:
    assert draw(7, 11).story == draw(7, 11).story
    assert draw(7, 11).people == draw(7, 11).people
    assert draw(7, 11).story != draw(7, 12).story
    assert draw(7, 11).story != draw(8, 11).story
