"""Days and rules once more, straight from their definitions: what the program is compared with.

Nothing here comes from the program. The zones are those of pytz's own files, so that both speak of the same year's
rules, but zoneinfo reads them: same data, other code. The machine's zone files may be of another year.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytz

NO_LOGS = "No logs in the past 2 days"
MISSED_YESTERDAY = "Missed yesterday"

SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
HOUR, DAY = 3600, 86_400
FARTHEST = 16 * HOUR
"""No clock was ever further from UTC."""

GSM7_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
GSM7_EXTENSION = frozenset("\f^{}\\[~]|€")  # an escape and a character: two septets


# --- zones


@cache
def zone_named(name: str) -> ZoneInfo:
    """The zone of exactly this name."""
    with pytz.open_resource(name) as file:  # type: ignore[attr-defined]  # public, but not in the stubs
        return ZoneInfo.from_file(file, key=name)


@cache
def zone_meant(stored: str | None) -> str | None:
    """The name that a stored text means, whatever its case and the blanks around it; None when it means none."""
    wanted = (stored or "").strip().casefold()
    return next((name for name in pytz.all_timezones if name.casefold() == wanted), None)


def offset(zone: ZoneInfo, second: int) -> int:
    """How far, in seconds, the zone's clocks are ahead of UTC at a second of the Unix epoch."""
    ahead = datetime.fromtimestamp(second, zone).utcoffset()
    assert ahead is not None
    return int(ahead.total_seconds())


def changes(zone: ZoneInfo, start: int, end: int, step: int = HOUR) -> Iterator[int]:
    """The seconds in (start, end] at which the clocks are changed; of two within a step, none may be seen."""
    for before, after in pairwise([*range(start, end, step), end]):
        if offset(zone, before) != (ahead := offset(zone, after)):
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (before, middle) if offset(zone, middle) == ahead else (middle, after)
            yield after


def transitions(name: str, first: date, last: date) -> list[datetime]:
    """The instants between two dates at which the clocks of a zone are changed."""
    start, end = (int(datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp()) for d in (first, last))
    return [datetime.fromtimestamp(second, UTC) for second in changes(zone_named(name), start, end, DAY)]


# --- days


def midnight(day: date, name: str) -> datetime:
    """The first instant at which the wall clock shows this day's 0:00 or later."""
    return first_instant(day, time(), name)


@lru_cache(100_000)
def first_instant(day: date, at: time, name: str) -> datetime:
    """The first instant at which the wall clock shows that time of this day, or later.

    Of a time that comes twice that is the first; of one that a jump of the clocks leaves out, it is the jump.
    """
    zone, shown = zone_named(name), int(datetime.combine(day, at, UTC).timestamp())
    start, end = shown - FARTHEST, shown + FARTHEST
    for since, until in pairwise([start, *changes(zone, start, end), end + 1]):
        reached = max(since, shown - offset(zone, since))  # between two changes the clock just runs
        if reached < until:
            return datetime.fromtimestamp(reached, UTC)
    raise AssertionError(f"the clocks of {name} never show {day} {at}")


def local_date(now: datetime, name: str) -> date:
    """The date on the wall calendar."""
    return now.astimezone(zone_named(name)).date()


def days(now: datetime, name: str) -> tuple[date, datetime, datetime, datetime]:
    """Today, and the instants at which the day before yesterday, yesterday and today began."""
    today = local_date(now, name)
    return (today, *(midnight(today - timedelta(days=ago), name) for ago in (2, 1, 0)))  # type: ignore[return-value]


def day_at(now: datetime, name: str, starts: time) -> date:
    """The latest day that has begun, where days begin at that time."""
    near = (local_date(now, name) + timedelta(days=n) for n in (1, 0, -1, -2))
    return next(day for day in near if first_instant(day, starts, name) <= now)


# --- windows


def is_open(now: datetime, name: str, window: tuple[time, time]) -> bool:
    """Whether the wall clock shows a time from the first one until before the second."""
    return window[0] <= now.astimezone(zone_named(name)).time() < window[1]


def seconds_open(now: datetime, name: str, window: tuple[time, time]) -> float:
    """The seconds until a window that begins and ends at whole minutes is closed; 0 when it is."""
    minute = now.replace(second=0, microsecond=0)
    while is_open(max(minute, now), name, window):
        minute += timedelta(minutes=1)
    return max((minute - now).total_seconds(), 0.0)


# --- rules


def due(now: datetime, name: str, logs: Iterable[datetime]) -> str | None:
    """Why somebody with these logs is to be texted; None when they are not."""
    logs = list(logs)
    _, day1, day2, today = days(now, name)
    if any(day2 <= log < today for log in logs):
        return None
    if any(day1 <= log < day2 for log in logs):
        return MISSED_YESTERDAY
    return NO_LOGS
