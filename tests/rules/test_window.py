"""A decent hour: SEND_WINDOW and DAY_STARTS_AT, by the clocks of a person's own zone, whatever these do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta

import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from habit_notifier import Case, Row, State, User, bounds_of, days_of, resolve_zone, seconds_left, speaks_against
from tests.environ import settings_of
from tests.full import FULL, sample
from tests.runs.town import Town
from tests.sandbox import oracle
from tests.sandbox.fake_twilio import SERVER_ERROR_AFTER_ACCEPTING, throttle
from tests.sandbox.oracle import SECOND

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SPACING = timedelta(hours=11, minutes=30)
PHONE = "+12025550100"
YEARS = datetime(2025, 7, 1, tzinfo=UTC), datetime(2027, 7, 1, tzinfo=UTC)
ZONES = sorted(pytz.all_timezones)
SAMPLE = ["America/Havana", "Asia/Beirut", "Asia/Kathmandu", "Australia/Lord_Howe", "Europe/Berlin", "Pacific/Chatham"]
ODD_CHANGES = {
    "Asia/Pyongyang": date(2018, 5, 5),  # forth from 23:30 to midnight
    "Africa/Juba": date(2021, 2, 1),  # back from midnight to 23:00
    "America/Havana": date(2024, 11, 3),  # two midnights
    "America/Santiago": date(2026, 9, 6),  # no midnight
    "Antarctica/Casey": date(2021, 3, 14),  # back from midnight to 21:00
    "Antarctica/Troll": date(2026, 3, 29),  # from 1:00 to 3:00
    "Pacific/Apia": date(2011, 12, 30),  # a day that never was
    "Australia/Lord_Howe": date(2026, 4, 5),  # half an hour back
    "Africa/Casablanca": date(2026, 2, 15),  # DST backwards, for Ramadan
    "Europe/Dublin": date(2026, 10, 25),  # DST backwards, in winter
}
Window = tuple[time, time]
NINE_TO_EIGHT = time(9), time(20)


def zone_of(name: str) -> pytz.BaseTzInfo:
    zone = resolve_zone(name)
    assert zone is not None
    return zone


def written(window: Window) -> str:
    return f"{window[0]:%H:%M}-{window[1]:%H:%M}"


def hours_of(first: datetime, last: datetime) -> Iterator[datetime]:
    """When the pods of an hourly schedule are at work."""
    at = first + timedelta(seconds=20)
    while at < last:
        yield at
        at += HOUR


def simulated(name: str, window: Window, runs: Iterable[datetime]) -> list[datetime]:
    """When somebody who never logs is texted, by the gates of runs at these instants."""
    told, zone = settings_of(SEND_WINDOW=written(window)), zone_of(name)
    rows: list[Row] = []
    for now in runs:
        days = days_of(now, zone)
        user = User(1, "Ana", PHONE, name, days, logged_day1=False)
        if speaks_against(Case(user, rows[-3:], None, told, now)) is None:
            rows.append(Row(1, days.today, PHONE, "no_logs", State.SENT, "token", now, now))
    return [row.claimed_at for row in rows]


# --- the window


def unlike(names: Iterable[str]) -> list[str]:
    """One zone of all those whose clocks show the same throughout the two years."""
    kinds: dict[tuple[object, ...], str] = {}
    for name in names:
        instants = [YEARS[0], *oracle.transitions(name, YEARS[0].date(), YEARS[1].date())]
        kinds.setdefault(tuple((at, at.astimezone(oracle.zone_named(name)).utcoffset()) for at in instants), name)
    return list(kinds.values())


SWEPT = unlike(ZONES) if FULL else SAMPLE


@pytest.mark.parametrize("place", range(len(SWEPT)))
def test_hourly_runs_text_once_a_local_day_in_the_first_hour_of_the_window(place: int) -> None:
    name = SWEPT[place]
    window = [NINE_TO_EIGHT, (time(9), time(10)), (time(19, 15), time(20, 15))][place % 3]
    first: dict[date, datetime] = {}
    for now in hours_of(*YEARS):
        if oracle.is_open(now, name, window):
            first.setdefault(oracle.local_date(now, name), now)
    assert simulated(name, window, hours_of(*YEARS)) == list(first.values())
    assert (max(first) - min(first)).days + 1 == len(first) >= 729  # not a day is missing


moments = st.one_of(  # anywhere in the two years, or beside a change of the clocks
    st.tuples(st.sampled_from(ZONES), st.integers(0, 2 * 365 * 86_400).map(lambda n: YEARS[0] + n * SECOND)),
    st.tuples(
        st.sampled_from(sorted(ODD_CHANGES.items())), st.integers(-36 * 3_600, 36 * 3_600).map(lambda n: n * SECOND)
    ).map(lambda odd: (odd[0][0], datetime.combine(odd[0][1], time(), UTC) + odd[1])),
)
windows = st.tuples(st.integers(5 * 60, 22 * 60), st.integers(60, 18 * 60)).map(
    lambda w: (time(*divmod(w[0], 60)), time(*divmod(min(w[0] + w[1], 1_439), 60)))
)


@settings(max_examples=sample(2_000, 300))
@given(moments, windows)
def test_the_seconds_to_the_windows_end_are_those_on_the_wall(moment: tuple[str, datetime], window: Window) -> None:
    name, now = moment
    assert seconds_left(window, now, zone_of(name)) == oracle.seconds_open(now, name, window)


@pytest.mark.parametrize(
    ("name", "window", "now", "left"),
    [
        ("Europe/Berlin", (time(1), time(2, 30)), "2026-03-29T00:59Z", 60),  # 1:59, and then it is 3:00
        ("Europe/Berlin", (time(1), time(2, 30)), "2026-10-25T00:20Z", 600),  # 2:20 for the first time
        ("Europe/Berlin", (time(1), time(2, 30)), "2026-10-25T01:20Z", 600),  # 2:20 for the second
        ("Europe/Berlin", (time(1), time(2, 30)), "2026-10-25T00:40Z", 0),  # 2:40, and then it is 2:00 again
        ("Asia/Pyongyang", (time(9), time(23, 45)), "2018-05-04T14:59Z", 60),  # 23:29, and then it is midnight
        ("Europe/Dublin", (time(0, 30), time(1, 30)), "2026-10-25T01:10Z", 1_200),  # 1:10 for the second time
        ("Asia/Kathmandu", NINE_TO_EIGHT, "2026-01-01T03:14:59Z", 0),
        ("Asia/Kathmandu", NINE_TO_EIGHT, "2026-01-01T03:15:00Z", 39_600),
        ("Asia/Kathmandu", NINE_TO_EIGHT, "2026-01-01T14:14:59Z", 1),
        ("Asia/Kathmandu", NINE_TO_EIGHT, "2026-01-01T14:15:00Z", 0),
    ],
)
def test_a_window_ends_when_the_clock_passes_its_end(name: str, window: Window, now: str, left: int) -> None:
    assert seconds_left(window, datetime.fromisoformat(now), zone_of(name)) == left


@settings(max_examples=sample(1_000, 150))
@given(moments, windows, st.lists(st.integers(1, 20 * 60), min_size=1, max_size=12))
def test_runs_at_any_time_text_as_soon_as_window_day_and_spacing_let_them(
    moment: tuple[str, datetime], window: Window, pauses: list[int]
) -> None:
    name, now = moment
    runs = [now + sum(pauses[:n]) * MINUTE for n in range(len(pauses))]
    expected: list[datetime] = []
    for run in runs:
        free = not expected or (
            run - expected[-1] >= SPACING and oracle.local_date(run, name) != oracle.local_date(expected[-1], name)
        )
        if free and oracle.seconds_open(run, name, window) >= 60:
            expected.append(run)
    assert simulated(name, window, runs) == expected


# --- when a day starts

STARTS = [time(0), time(0, 30), time(1), time(2), time(2, 30), time(3), time(4), time(6)]


@pytest.mark.parametrize("name", sample(ZONES, sorted({*SAMPLE, *ODD_CHANGES})))
def test_days_that_start_later_are_those_of_the_wall_clock(name: str) -> None:
    changes = oracle.transitions(name, YEARS[0].date(), YEARS[1].date())[:4]
    odd = [datetime.combine(ODD_CHANGES[name], time(12), UTC)] if name in ODD_CHANGES else []
    for change in [datetime(2026, 1, 15, tzinfo=UTC), *changes, *odd]:
        for starts in STARTS:
            for near in range(-1, 3):
                edge = oracle.first_instant(oracle.local_date(change, name) + near * DAY, starts, name)
                for now in (edge - SECOND, edge, edge + SECOND):
                    found = days_of(now, zone_of(name), starts)
                    today = oracle.day_at(now, name, starts)
                    bounds = [oracle.first_instant(today - ago * DAY, starts, name) for ago in (2, 1, 0)]
                    assert (found.today, found.day1, found.day2, found.end) == (today, *bounds), (now, starts)


@pytest.mark.parametrize(
    ("name", "now", "starts", "dates"),
    [
        ("Pacific/Kiritimati", "2026-05-10T09:59:59Z", time(0), ("2026-05-08", "2026-05-09", "2026-05-10")),
        ("Pacific/Kiritimati", "2026-05-10T10:00:00Z", time(0), ("2026-05-09", "2026-05-10", "2026-05-11")),
        ("Etc/GMT+12", "2026-05-10T11:59:59Z", time(0), ("2026-05-07", "2026-05-08", "2026-05-09")),
        ("Etc/GMT+12", "2026-05-10T12:00:00Z", time(0), ("2026-05-08", "2026-05-09", "2026-05-10")),
        ("UTC", "2026-05-10T03:59:59Z", time(4), ("2026-05-07", "2026-05-08", "2026-05-09")),
        ("UTC", "2026-05-10T04:00:00Z", time(4), ("2026-05-08", "2026-05-09", "2026-05-10")),
    ],
)
def test_logs_that_are_dates_are_those_of_the_persons_own_calendar(
    name: str, now: str, starts: time, dates: tuple[str, str, str]
) -> None:
    days = days_of(datetime.fromisoformat(now), zone_of(name), starts)
    assert bounds_of(days, dates=True) == tuple(map(date.fromisoformat, dates))


# --- the program

EIGHT_PM = datetime(2026, 5, 12, 20, tzinfo=UTC)
CHANGE = datetime(2026, 3, 29, 1, tzinfo=UTC)  # in Berlin


def test_hourly_runs_of_the_program_text_each_user_once_a_day_in_their_window(town: Town) -> None:
    homes = {
        f"+1202555{n:04}": zone
        for n, zone in enumerate(("Europe/Berlin", "Asia/Kathmandu", "America/Los_Angeles", "Pacific/Kiritimati"))
    }
    for phone, zone in homes.items():
        town.user(phone, zone)
    for now in hours_of(CHANGE - 12 * HOUR, CHANGE + 24 * HOUR):
        assert town.run(now, SEND_WINDOW="09:00-20:00") == 0
    for phone, zone in homes.items():
        local = [m.accepted_at.astimezone(oracle.zone_named(zone)) for m in town.twilio.book if m.to == phone]
        assert all(at.hour == 9 for at in local[1:]), local
        assert all(9 <= at.hour < 20 for at in local), local
        assert len({at.date() for at in local}) == len(local) >= 2, local
    assert {state for _, state, *_ in town.ledger} == {"sent"}


def test_whoever_is_outside_of_the_window_is_later_neither_claimed_nor_failed(town: Town) -> None:
    town.user("+12025550101", "Europe/London")
    town.user("+12025550102", "America/Los_Angeles")
    assert town.run(datetime(2026, 5, 12, 9, tzinfo=UTC), SEND_WINDOW="09:00-20:00") == 0
    assert town.texted == ["+12025550101"]
    assert [row[0] for row in town.ledger] == ["+12025550101"]
    assert "INFO User User 0102 (ID: 2) gets no text, later: it is 02:00 there, SEND_WINDOW is 09:00-20:00" in town.log
    assert "INFO Looked at 2 of 2 users, sent 1, later 1" in town.log
    assert "INFO Job completed. Notifications sent: 1, Failed: 0" in town.log


@pytest.mark.parametrize(
    ("left", "period", "validity"),
    [(11 * 3_600, 14_400, 14_400), (7_200, 14_400, 7_200), (7_200, 600, 600), (61, 14_400, 61), (60, 14_400, 60)],
)
def test_a_text_may_wait_at_twilio_until_the_window_ends(town: Town, left: int, period: int, validity: int) -> None:
    town.user(PHONE)
    assert town.run(EIGHT_PM - left * SECOND, SEND_WINDOW="09:00-20:00", VALIDITY_PERIOD=str(period)) == 0
    assert [message.validity_period for message in town.texts] == [validity]


@pytest.mark.parametrize("left", [0, 59, 59.9])
def test_a_text_that_could_wait_for_less_than_a_minute_is_later(town: Town, left: float) -> None:
    town.user(PHONE)
    assert town.run(EIGHT_PM - timedelta(seconds=left), SEND_WINDOW="09:00-20:00") == 0
    assert not town.texts
    assert town.said("later 1") == 1


@pytest.mark.parametrize(("wait", "texted"), [(59, 1), (61, 0), (5 * 3_600, 0)])
def test_the_window_is_asked_again_before_each_text_is_posted(town: Town, wait: int, texted: int) -> None:
    """Twilio asks for a pause, after which it is so many seconds later, or the next day."""
    town.user(PHONE)
    town.twilio.script(throttle(retry_after=0))
    before, window = EIGHT_PM - 120 * SECOND, {"SEND_WINDOW": "09:00-20:00", "RUN_DEADLINE": "80000"}
    assert town.run(lambda: before + wait * SECOND if town.sends else before, **window) == 0
    assert len(town.texts) == len(town.ledger) == texted
    assert town.said("later 1") == 1 - texted
    assert "Failed: 0" in town.log[-1]


@pytest.mark.parametrize("window", ["", "00:00-23:59"])
def test_without_a_window_a_run_tells_how_many_texts_came_at_night(town: Town, window: str) -> None:
    night, day = ("Pacific/Honolulu", "Asia/Tokyo"), ("Europe/Berlin", "Asia/Dubai")  # 2:00, 21:00, 14:00, 16:00
    for n, zone in enumerate((*night, *day)):
        town.user(f"+1202555010{n}", zone)
    town.twilio.script(SERVER_ERROR_AFTER_ACCEPTING, to="+12025550100")  # uncertain: it may have been posted
    assert town.run(datetime(2026, 5, 12, 12, tzinfo=UTC), SEND_WINDOW=window) == 0
    assert len(town.texts) == 4
    [told] = [line for line in town.log if "21:00" in line] or [""]
    assert told.startswith("WARNING 2 texts were posted between 21:00 and 8:00 local time" if not window else "")
    assert bool(window) != ("k8s/components/local-morning" in told)


@pytest.mark.parametrize(("clock", "night"), [("20:59", 0), ("21:00", 1), ("07:59", 1), ("08:00", 0)])
def test_night_is_from_nine_to_eight(town: Town, clock: str, night: int) -> None:
    town.user(PHONE)
    assert town.run(datetime.fromisoformat(f"2026-05-12T{clock}Z")) == 0
    assert len(town.texts) == 1
    assert town.said("between 21:00 and 8:00") == night
