"""The program, imported once by the server that forks the processes of runs."""

from tests.faults.program import load

PROGRAM = load("habit_notifier")
