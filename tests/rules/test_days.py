"""Days begin and end at the local midnights of a person's own zone, whatever the clocks do there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from habit_notifier import Days, days_of, resolve_zone, rule_for
from tests.full import sample
from tests.sandbox import oracle
from tests.sandbox.oracle import MICROSECOND, SECOND

YEARS = (date(2020, 1, 1), date(2030, 1, 1))
ZONES = sorted(pytz.all_timezones)
SAMPLE = [  # of each kind of change that the ten years hold, see BOUNDARIES, and a few zones without any
    *("Africa/Cairo", "Africa/Casablanca", "America/Asuncion", "America/Havana", "America/New_York", "America/Nuuk"),
    *("America/Santiago", "America/Scoresbysund", "Antarctica/Casey", "Antarctica/Troll", "Asia/Amman", "Asia/Beirut"),
    *("Asia/Gaza", "Asia/Kathmandu", "Asia/Tehran", "Atlantic/Azores", "Australia/Lord_Howe", "EST", "Europe/Berlin"),
    *("Europe/Dublin", "Pacific/Apia", "Pacific/Chatham", "Pacific/Easter", "Pacific/Kiritimati", "US/Pacific", "UTC"),
]
AREAS: dict[str, list[str]] = defaultdict(list)
for zone_name in sample(ZONES, SAMPLE):
    AREAS[zone_name.split("/")[0] if "/" in zone_name else "(no area)"].append(zone_name)


def of_program(now: datetime, name: str) -> Days:
    zone = resolve_zone(name)
    assert zone is not None
    return days_of(now, zone)


def of_oracle(now: datetime, name: str) -> Days:
    return Days(pytz.timezone(name), *oracle.days(now, name))


def disagreements(name: str, nows: Iterator[datetime]) -> list[str]:
    """What the program says otherwise than the oracle."""
    return [
        f"{name} at {now}: {found}, not {wanted}"
        for now in nows
        if (found := of_program(now, name)) != (wanted := of_oracle(now, name))
    ]


def round_midnights(name: str, middle: datetime) -> Iterator[datetime]:
    """One second before, at, and one second after each midnight whose days a change of the clocks can touch."""
    day = oracle.local_date(middle, name)
    for ahead in range(-1, 5):
        midnight = oracle.midnight(day + timedelta(days=ahead), name)
        yield from (midnight - SECOND, midnight, midnight + SECOND)


@pytest.mark.parametrize("area", AREAS)
def test_days_are_right_round_every_change_of_the_clocks_in_ten_years(area: str) -> None:
    wrong = []
    for name in AREAS[area]:
        for change in oracle.transitions(name, *YEARS):
            wrong += disagreements(name, round_midnights(name, change))
    assert wrong == []


def test_the_ten_years_hold_thousands_of_changes() -> None:
    swept = [name for names in AREAS.values() for name in names]
    assert sum(len(oracle.transitions(name, *YEARS)) for name in swept) > sample(4_000, 300)
    assert {c.date() for c in oracle.transitions("Europe/Berlin", date(2026, 1, 1), date(2027, 1, 1))} == {
        date(2026, 3, 29),
        date(2026, 10, 25),
    }


@pytest.mark.parametrize("area", AREAS)
def test_days_are_right_on_plain_days_in_every_zone(area: str) -> None:
    plain = [datetime(2026, month, 17, 9, tzinfo=UTC) for month in (1, 5, 8, 12)]
    assert [w for name in AREAS[area] for day in plain for w in disagreements(name, round_midnights(name, day))] == []


HISTORY = [
    ("Pacific/Apia", "2011-12-30", "a day that never was: from the 29th to the 31st"),
    ("Pacific/Fakaofo", "2011-12-30", "the same, without DST"),
    ("Pacific/Kiritimati", "1994-12-31", "a day that never was"),
    ("Pacific/Enderbury", "1994-12-31", "a day that never was"),
    ("Pacific/Kwajalein", "1993-08-21", "a day that never was"),
    ("Australia/Lord_Howe", "2026-04-05", "half an hour back"),
    ("Australia/Lord_Howe", "2026-10-04", "half an hour forth"),
    ("America/Havana", "2026-03-08", "no midnight"),
    ("America/Havana", "2024-11-03", "two midnights"),
    ("Asia/Beirut", "2026-03-29", "no midnight"),
    ("Asia/Beirut", "2026-10-25", "back from midnight to 23:00"),
    ("America/Asuncion", "2023-10-01", "no midnight"),
    ("America/Asuncion", "2024-03-24", "back from midnight to 23:00"),
    ("America/Santiago", "2026-09-06", "no midnight"),
    ("America/Sao_Paulo", "2018-11-04", "no midnight"),
    ("Africa/Cairo", "2026-04-24", "no midnight"),
    ("Asia/Amman", "2022-02-25", "no midnight, and DST for ever"),
    ("Asia/Tehran", "2022-03-22", "no midnight"),
    ("Asia/Gaza", "2021-10-29", "two midnights"),
    ("Atlantic/Azores", "2026-10-25", "two midnights"),
    ("America/Scoresbysund", "2024-10-27", "back from midnight to 23:00"),
    ("America/Nuuk", "2023-03-26", "the zone changes"),
    ("Africa/Casablanca", "2026-02-15", "DST backwards, for Ramadan"),
    ("Europe/Dublin", "2026-10-25", "DST backwards, in winter"),
    ("Asia/Almaty", "2024-03-01", "the zone goes back from midnight to 23:00"),
    ("Asia/Pyongyang", "2018-05-05", "the zone goes forth from 23:30 to midnight"),
    ("Asia/Pyongyang", "2015-08-15", "the zone goes back from midnight to 23:30"),
    ("America/Caracas", "2007-12-09", "half an hour back, for good"),
    ("Africa/Juba", "2021-02-01", "the zone goes back from midnight to 23:00"),
    ("Europe/Volgograd", "2020-12-27", "the zone goes back"),
    ("Antarctica/Casey", "2020-10-04", "three hours forth, just after midnight"),
    ("Antarctica/Casey", "2021-03-14", "three hours back from midnight"),
    ("Antarctica/Troll", "2026-03-29", "two hours forth"),
]


# How far the clocks are moved, in minutes, and what they show then.
BOUNDARIES = {
    "gap": (60, "02:00"),
    "overlap": (-60, "03:00"),
    "missing midnight": (60, "00:00"),
    "two midnights": (-60, "01:00"),
    "back from midnight": (-60, "00:00"),
    "forth, into midnight": (60, "23:00"),
    "back, before midnight": (-60, "23:00"),
    "half an hour forth": (30, "02:00"),
    "half an hour back": (-30, "02:00"),
    "half an hour back from midnight": (-30, "00:00"),
    "two hours": (120, "01:00"),
    "three hours": (-180, "00:00"),
    "a zone with an odd offset": (60, "02:45"),
    "a day that never was": (24 * 60, "00:00"),
}


def test_the_sample_and_history_hold_each_kind_of_boundary() -> None:
    spans = [(name, *YEARS) for name in SAMPLE]
    spans += [
        (name, date.fromisoformat(day) - timedelta(3), date.fromisoformat(day) + timedelta(3))
        for name, day, _ in HISTORY
    ]
    found = set()
    for name, first, last in spans:
        for change in oracle.transitions(name, first, last):
            before, after = (moment.astimezone(oracle.zone_named(name)) for moment in (change - SECOND, change))
            moved = after.replace(tzinfo=None) - before.replace(tzinfo=None) - SECOND
            found.add((moved // timedelta(minutes=1), f"{before + SECOND:%H:%M}"))
    assert {kind for kind, boundary in BOUNDARIES.items() if boundary not in found} == set()


@pytest.mark.parametrize(("name", "day", "why"), HISTORY, ids=[f"{name} {day}" for name, day, _ in HISTORY])
def test_days_are_right_where_clocks_did_odd_things(name: str, day: str, why: str) -> None:
    middle = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    near = oracle.transitions(name, middle.date() - timedelta(3), middle.date() + timedelta(3))
    assert near, f"no change of the clocks: is it true that {why}?"
    assert disagreements(name, round_midnights(name, middle - timedelta(days=1))) == []


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


LITERAL = [  # (zone, now, today, day 1, day 2, end), written down by hand, for whoever doubts the oracle
    ("Asia/Tokyo", "2026-05-10T12:00Z", "2026-05-10", "2026-05-07T15:00Z", "2026-05-08T15:00Z", "2026-05-09T15:00Z"),
    ("America/Havana", "2026-03-09T12Z", "2026-03-09", "2026-03-07T05:00Z", "2026-03-08T05:00Z", "2026-03-09T04:00Z"),
    ("America/Havana", "2024-11-04T12Z", "2024-11-04", "2024-11-02T04:00Z", "2024-11-03T04:00Z", "2024-11-04T05:00Z"),
    ("Australia/Lord_Howe", "2026-04-06T09Z", "2026-04-06", "2026-04-03T13Z", "2026-04-04T13Z", "2026-04-05T13:30Z"),
    ("Pacific/Apia", "2011-12-31T00:00Z", "2011-12-31", "2011-12-29T10Z", "2011-12-30T10Z", "2011-12-30T10Z"),
    ("UTC", "2024-03-01T00:00Z", "2024-03-01", "2024-02-28T00Z", "2024-02-29T00Z", "2024-03-01T00Z"),
]


@pytest.mark.parametrize(
    ("name", "now", "today", "day1", "day2", "end"), LITERAL, ids=[f"{x[0]} {x[1]}" for x in LITERAL]
)
def test_days_are_those_of_the_wall_calendar(name: str, now: str, today: str, day1: str, day2: str, end: str) -> None:
    written = Days(pytz.timezone(name), date.fromisoformat(today), instant(day1), instant(day2), instant(end))
    assert of_program(instant(now), name) == written
    assert of_oracle(instant(now), name) == written


zones = st.sampled_from(ZONES)
# Microseconds since 2015; pytz knows the clocks up to 2037.
instants = st.integers(0, 22 * 365 * 86_400 * 10**6).map(lambda n: datetime(2015, 1, 1, tzinfo=UTC) + n * MICROSECOND)


@settings(max_examples=sample(1_000, 200))
@given(zones, instants)
def test_days_are_right_at_any_moment_in_any_zone(name: str, now: datetime) -> None:
    found = of_program(now, name)
    assert found == of_oracle(now, name)
    assert found.day1 <= found.day2 <= found.end <= now


@settings(max_examples=sample(500, 100))
@given(zones, instants, st.timedeltas(timedelta(0), timedelta(days=2)))
def test_the_zone_of_now_does_not_matter(name: str, now: datetime, ahead: timedelta) -> None:
    elsewhere = now.astimezone(oracle.zone_named("Asia/Kathmandu"))
    assert of_program(elsewhere, name) == of_program(now, name)
    assert of_program(now + ahead, name).today >= of_program(now, name).today


@settings(max_examples=sample(800, 200))
@given(
    zones,
    instants,
    st.lists(
        st.tuples(
            st.sampled_from(("day1", "day2", "end", "now")),
            st.sampled_from((-SECOND, -MICROSECOND, timedelta(0), MICROSECOND, SECOND, timedelta(hours=5))),
        ),
        max_size=4,
    ),
)
def test_a_log_on_a_boundary_counts_for_the_day_that_begins(
    name: str, now: datetime, laid: list[tuple[str, timedelta]]
) -> None:
    found = of_program(now, name)
    logs = [(now if edge == "now" else getattr(found, edge)) + off for edge, off in laid]
    day1, day2 = (
        any(start <= log < end for log in logs) for start, end in ((found.day1, found.day2), (found.day2, found.end))
    )
    assert (None if day2 else rule_for(logged_day1=day1).reason) == oracle.due(now, name, logs)
