"""A few dozen sample people, whose names tell their case, and what should become of each of them.

What they logged is laid out round the midnights of their own zone and relative to a given instant, so that the case
is the same at whatever moment the job runs. Nothing here comes from the program: the days are the oracle's. All numbers
are of ranges that are kept free for fiction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import partial
from itertools import cycle
from zoneinfo import ZoneInfo

from tests.sandbox import oracle
from tests.sandbox.database import Database, Id

NO_LOGS, MISSED_YESTERDAY = oracle.NO_LOGS, oracle.MISSED_YESTERDAY

OPTED_OUT = 21610
"""Twilio's code for somebody who answered STOP."""


class Outcome(StrEnum):
    """What should become of somebody, in the words of the demo."""

    TEXTED = "a text"
    REFUSED = "refused by Twilio"
    ON_TRACK = "nothing: on track"
    UNKNOWN_ZONE = "skipped: time zone"
    BAD_PHONE = "skipped: phone number"
    NO_PHONE = "not asked for texts"
    LATER = "left for later: night there"
    LEFT_ALONE = "left alone: texts get lost"


ON_TRACK = Outcome.ON_TRACK


@dataclass(frozen=True)
class Person:
    """One row of User with its logs, and what we expect of the job."""

    name: str
    phone_number: str | None
    time_zone: str | None
    outcome: Outcome
    rule: str | None = None
    """The rule that fits what they logged; None when none fits, or when it cannot be known."""
    logs: tuple[datetime, ...] = ()
    habits: int = 1
    error_code: int | None = None
    """What Twilio answers instead of taking the text."""
    lost: int = 0
    """How many earlier texts did not arrive."""

    @property
    def zone(self) -> ZoneInfo | None:
        """The zone that `time_zone` means, or None when it means none."""
        return zone_named(self.time_zone)

    @property
    def texted(self) -> bool:
        """Whether a text reaches them."""
        return self.outcome is Outcome.TEXTED


def people(now: datetime) -> list[Person]:
    """Everybody, as they stand at `now`. In their own zone, day 2 is yesterday and day 1 the day before."""
    who = partial(_person, now)
    return [
        # The rules.
        who("Ana No-Logs", "+447700900101", "Europe/Madrid", NO_LOGS),
        who("Mia Missed-Yesterday", "+12125550102", "America/New_York", MISSED_YESTERDAY, "day1 07:15"),
        who("Ben Back-On-Track", "+447700900103", "Europe/London", ON_TRACK, "day2 21:40"),
        who("Kai Logged-Both-Days", "+18085550104", "Pacific/Kiritimati", ON_TRACK, "day1 06:00", "day2 06:05"),
        who("Theo Logged-Only-Today", "+33639980105", "Europe/Paris", NO_LOGS, "today start"),
        who("Gil Logged-Three-Days-Ago", "+447700900106", "Africa/Cairo", NO_LOGS, "day0 12:00"),
        who("Lola Every-Day", "+12025550107", "America/Sao_Paulo", ON_TRACK, "day0 20:00", "day1 20:00", "day2 20:00"),
        who("Nia One-Of-Two-Habits-Kept", "+12025550108", "Africa/Nairobi", ON_TRACK, "day2 19:00", habits=2),
        who("Quinn Five-Habits-No-Log", "+13125550109", "America/Chicago", NO_LOGS, habits=5),
        who("Pia No-Habits-At-All", "+46701740610", "Europe/Stockholm", NO_LOGS, habits=0),
        # The zones: as far from UTC, and from a whole hour, as they come.
        who("Teuira Missed-Yesterday", "+12025550111", "Pacific/Marquesas", MISSED_YESTERDAY, "day1 23:59"),
        who("Lachlan Missed-Yesterday", "+61491570156", "Australia/Lord_Howe", MISSED_YESTERDAY, "day1 00:01"),
        who("Maya No-Logs", "+12025550113", "Asia/Kathmandu", NO_LOGS, "day0 23:59"),
        who("Yoel Missed-Yesterday", "+12025550114", "America/Havana", MISSED_YESTERDAY, "day1 00:30"),
        who("Finn No-Logs", "+17095550115", "America/St_Johns", NO_LOGS, "today start"),
        who("Tui Back-On-Track", "+12025550116", "Pacific/Chatham", ON_TRACK, "day2 00:10"),
        who("Leilani No-Logs", "+18085550117", "Pacific/Honolulu", NO_LOGS),
        who("Sina Logged-Both-Days", "+12025550118", "Pacific/Apia", ON_TRACK, "day1 12:00", "day2 12:00"),
        who("Ursula In-UTC-No-Logs", "+12025550119", "UTC", NO_LOGS),
        # The edges of days: a day begins at its midnight and ends before the next one.
        who("Hana First-Second-Of-Day-2", "+12025550120", "Asia/Tokyo", ON_TRACK, "day2 start"),
        who("Lea Last-Second-Of-Day-2", "+12025550121", "Asia/Kolkata", ON_TRACK, "day2 end"),
        who("Moe At-Midnight-Today", "+12025550122", "Asia/Tehran", MISSED_YESTERDAY, "day1 start", "today start"),
        who("Ivo Second-Before-Day-2", "+12025550123", "Europe/Athens", MISSED_YESTERDAY, "day1 end"),
        who("Kim Second-Before-Day-1", "+13105550124", "America/Los_Angeles", NO_LOGS, "day0 end"),
        # Zones as people write them.
        who("Tea Zone-In-Lower-Case", "+12025550125", "europe/lisbon", MISSED_YESTERDAY, "day1 10:00"),
        who("Tom Same-Zone-On-Track", "+12025550126", "Europe/Lisbon", ON_TRACK, "day2 10:00"),
        who("Uma Spaces-After-Zone", "+12025550127", "Asia/Singapore  ", NO_LOGS),
        who("Quy Unknown-Zone", "+12025550128", "Mars/Olympus_Mons", Outcome.UNKNOWN_ZONE),
        who("Rui Zone-Is-Null", "+12025550129", None, Outcome.UNKNOWN_ZONE),
        who("Sol Zone-Is-Empty", "+12025550130", "", Outcome.UNKNOWN_ZONE),
        # Phones.
        who("Vic Bad-Phone", "call me maybe", "Europe/Rome", Outcome.BAD_PHONE),
        who("Ned Phone-Without-Country", "020 7946 0132", "Europe/London", Outcome.BAD_PHONE),
        who("Wes No-Phone", None, "Europe/Oslo", Outcome.NO_PHONE),
        who("Xia Blank-Phone", "", "Asia/Shanghai", Outcome.NO_PHONE),
        who("Pat Shares-A-Phone", "+12025550135", "America/Toronto", NO_LOGS),
        who("Sam Shares-A-Phone", "+12025550135", "America/Toronto", MISSED_YESTERDAY, "day1 09:00"),
        who("Olga Opted-Out", "+12025550136", "Europe/Warsaw", NO_LOGS, error_code=OPTED_OUT),
        # Names.
        who("", "+12025550137", "America/Denver", NO_LOGS),
        who("王小明", "+12025550138", "Asia/Taipei", NO_LOGS),
        who("Eve\r\n2024-01-15 - Line-Break", "+12025550139", "Europe/Berlin", MISSED_YESTERDAY, "day1 18:00"),
        who("Zoe " + "Very-" * 36 + "Long-Name", "+12025550140", "America/Bogota", NO_LOGS),
    ]


NIGHT_OWLS = "Asia/Tokyo", "Asia/Dubai", "Europe/Lisbon", "America/New_York", "Pacific/Honolulu"  # one is always asleep


def newcomers(now: datetime) -> list[Person]:
    """Two more, for a run that keeps a decent hour."""
    asleep = next(zone for zone in NIGHT_OWLS if not 8 <= now.astimezone(zone_named(zone)).hour < 21)
    return [
        Person("Nora Night-Over-There", "+12025550141", asleep, Outcome.LATER),
        Person("Otto Texts-Never-Arrive", "+12025550142", "Europe/Vienna", Outcome.LEFT_ALONE, lost=3),
    ]


def fill(database: Database, everybody: Iterable[Person]) -> dict[Id, Person]:
    """Put these people with their habits and logs into the database. Returns who got which id."""
    everybody = list(everybody)
    ids = database.insert_users((person.name, person.phone_number, person.time_zone) for person in everybody)
    for user_id, person in zip(ids, everybody, strict=True):
        habits = database.insert_habits([user_id] * person.habits)
        database.insert_logs(zip(cycle(habits), person.logs, strict=False) if habits else ())
    return dict(zip(ids, everybody, strict=True))


def next_midnight(everybody: Iterable[Person], now: datetime) -> datetime:
    """The next instant at which a day begins for one of them: until then their cases stand as told."""
    zones = {person.zone for person in everybody}
    return min(day_start(zone, now.astimezone(zone).date() + timedelta(days=1)) for zone in zones if zone)


# --- days


def zone_named(name: str | None) -> ZoneInfo | None:
    """The zone of this name, however it is spelled; None when there is none."""
    meant = oracle.zone_meant(name)
    return oracle.zone_named(meant) if meant else None


def day_start(zone: ZoneInfo, day: date) -> datetime:
    """The first instant of a local day, in UTC."""
    return oracle.midnight(day, zone.key)


DAYS_AGO = {"today": 0, "day2": 1, "day1": 2, "day0": 3}


def _instant(when: str, zone: ZoneInfo, now: datetime) -> datetime:
    """'day2 21:40', 'day1 start', 'day0 end': an instant of a local day, to the second."""
    day_word, clock = when.split()
    day = now.astimezone(zone).date() - timedelta(days=DAYS_AGO[day_word])
    if clock == "start":
        return day_start(zone, day)
    if clock == "end":
        return day_start(zone, day + timedelta(days=1)) - timedelta(seconds=1)
    return datetime.combine(day, time.fromisoformat(clock), zone).astimezone(UTC)


def _person(
    now: datetime,
    name: str,
    phone_number: str | None,
    time_zone: str | None,
    expected: str,
    *logged: str,
    habits: int = 1,
    error_code: int | None = None,
) -> Person:
    """Somebody of whom we expect a rule that fits, or an outcome other than a text."""
    rule = expected if expected in (NO_LOGS, MISSED_YESTERDAY) else None
    outcome = (Outcome.REFUSED if error_code else Outcome.TEXTED) if rule else Outcome(expected)
    zone = zone_named(time_zone)
    logs = tuple(sorted(_instant(when, zone, now) for when in logged)) if zone else ()
    return Person(name, phone_number, time_zone, outcome, rule, logs, habits, error_code)
