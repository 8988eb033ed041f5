"""Who lives in a run: people, their clock, and an oracle that tells who is due. Nothing here comes from the program."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from tests.sandbox.database import Id
from tests.sandbox.people import MISSED_YESTERDAY, NO_LOGS, day_start, zone_named

SPACING = timedelta(hours=11, minutes=30)
DEADLINE = timedelta(seconds=1500)  # the program's RUN_DEADLINE unless a run says otherwise


@dataclass
class Person:
    """A row of User with its logs; the name's first word is unique, so that a text tells whose it is."""

    id: Id
    name: str
    phone: str | None
    zone: str | None
    habits: int
    logs: list[datetime]
    refusal: int | None = None
    """Twilio's code for every text to the number that the person has at the start."""
    refused_phone: str | None = None
    is_here: bool = True
    """Whether the account exists."""

    @property
    def key(self) -> str:
        """The unique word."""
        return self.name.split()[0]

    @property
    def number(self) -> str:
        """The number in E.164, '' if there is none; the scenes know only obviously good and bad ones."""
        number = re.sub("^00", "+", (self.phone or "").replace(" ", ""))
        return number if re.fullmatch(r"\+[0-9]{7,15}", number) else ""

    @property
    def is_listening(self) -> bool:
        """Whether there is a phone number at all."""
        return bool(self.is_here and self.phone and self.phone.strip())


@dataclass(frozen=True)
class Due:
    """What is due to somebody: the day it is in their zone, and the rule's words."""

    day: date
    rule: str


def zone_of(person: Person, default: str | None) -> ZoneInfo | None:
    """The zone that a person's days are counted in."""
    return zone_named(person.zone) or (zone_named(default) if default else None)


@cache
def start_of(zone: ZoneInfo, day: date) -> datetime:
    """When a local day begins."""
    return day_start(zone, day)


def due(person: Person, now: datetime, default: str | None) -> Due | None:
    """What is due to a person at an instant; a zone that nobody knows makes nothing due."""
    zone = zone_of(person, default)
    if zone is None or not (person.phone or "").strip():
        return None
    today = now.astimezone(zone).date()
    before, yesterday, end = (start_of(zone, today - timedelta(days=days)) for days in (2, 1, 0))
    if any(yesterday <= log < end for log in person.logs):
        return None
    return Due(today, MISSED_YESTERDAY if any(before <= log < yesterday for log in person.logs) else NO_LOGS)


def zone_day(person: Person, now: datetime, default: str | None) -> date | None:
    """The day that it is where a person is."""
    zone = zone_of(person, default)
    return now.astimezone(zone).date() if zone else None


def has_odd_day(person: Person, now: datetime, default: str | None) -> bool:
    """Whether one of the days that count, or the day it is, has not 24 hours."""
    zone = zone_of(person, default)
    if zone is None:
        return False
    today = now.astimezone(zone).date()
    starts = [start_of(zone, today + timedelta(days=days)) for days in (-2, -1, 0, 1)]
    return any(b - a != timedelta(hours=24) for a, b in pairwise(starts))


@dataclass
class SceneClock:
    """The time in a run: it flows as ours, from wherever it was set."""

    offset: timedelta = field(default_factory=timedelta)
    jumps: list[tuple[datetime, datetime]] = field(default_factory=list)
    """From when to when it went by `advance`."""

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def go_to(self, instant: datetime) -> None:
        """Set it; it never goes back."""
        self.offset = max(self.offset, instant - datetime.now(UTC))

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        before = self()
        self.offset += by
        self.jumps.append((before, before + by))
