"""QUIET_AFTER and MAX_PER_WEEK once more, straight from their definitions: what gates and program are compared with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta

REACHED = ("sent", "delivered", "uncertain")
MISSED = ("refused", "undelivered")


@dataclass(frozen=True)
class Step:
    """A run on a day at nine, with these settings; what Twilio does with a text; whether the user logs at noon."""

    day: date
    quiet_after: int
    max_per_week: int
    fate: str
    logs: bool


@dataclass
class Model:
    """What happened to one user, in order: texts that may have reached them, and logs."""

    events: list[tuple[date, str]] = field(default_factory=list)

    def texts(self, step: Step) -> bool:
        """Whether the run of this step texts the user; it is remembered."""
        oldest = step.day - timedelta(days=90)
        self.events = [(day, event) for day, event in self.events if event == "log" or day >= oldest]
        streak = in_week = 0
        logged = False
        for day, event in self.events:
            streak = 0 if event == "log" else streak + 1
            in_week += event == "text" and (step.day - day).days <= 6
            logged |= event == "log" and (step.day - day).days == 1
        due = not logged
        quiet = step.quiet_after and streak >= step.quiet_after
        enough = step.max_per_week and in_week >= step.max_per_week
        texted = due and not quiet and not enough
        if texted and step.fate in REACHED:
            self.events.append((step.day, "text"))
        if step.logs:
            self.events.append((step.day, "log"))
        return bool(texted)


def story(seed: int, steps: int) -> Iterator[Step]:
    """A story of some weeks or months; settings change now and then, most days nothing is logged."""
    draw = random.Random(seed)
    day, quiet, week = date(2026, 5, 12), 0, 0
    for _ in range(steps):
        if draw.random() < 0.2:
            quiet, week = draw.choice([0, 1, 2, 3, 7]), draw.choice([0, 1, 2, 3, 6])
        yield Step(day, quiet, week, draw.choice([*REACHED, *MISSED]), draw.random() < 0.15)
        day += timedelta(days=draw.choice([1, 1, 1, 1, 1, 1, 2, 3, 8, 45, 91]))
