"""From a seed and a number: people, a day or two of runs, and what goes wrong in each of them."""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import cache
from typing import Any, Literal

import pytz

from tests.faults import faults as f
from tests.faults.faults import Fault
from tests.faults.scene import Person, start_of, zone_of
from tests.sandbox import fake_twilio as ft
from tests.sandbox.fake_twilio import Answer, Door, refuse, server_error, slow, throttle
from tests.sandbox.people import zone_named
from tests.sandbox.proxy import Verdict

Rng = random.Random

LOST = [("undelivered", code) for code in (30003, 30005, 30008, 30006)]
ENDS: list[list[tuple[str, int | None]]] = [
    [*[("delivered", None)] * 3, ("undelivered", 30003), ("failed", 30008), ("sent", None)],
    [("delivered", None), *LOST],
    [*LOST, ("undelivered", 30034)],
    [("delivered", None), ("undelivered", 30034), ("undelivered", 30007)],  # the sender is blocked
]
SLOW_TIMEOUT = 0.25  # seconds that the program waits for Twilio where answers are slow
SILENT_TIMEOUT = 0.4  # seconds that it waits for a statement where the server falls silent
EVERY_PROCESS = 8  # one in so many runs has real processes
PERMANENT = (21610, 21211, 21614, 21635, 21265, 21266, 21268)
TODAY = (21612, 21608, 21408)
SENDER = (21606, 21659, 21660, 21661, 21212)
STOPS = (20403, 10001, 70051, 21603, 21701, 21705, 35118)


@dataclass
class Part:
    """One group of runs at the same moment: how many, what goes wrong, and when the others join the first."""

    runs: int
    faults: list[Fault]
    argv: list[str] = field(default_factory=list)
    joins_at_post: int = 0
    """The text at which the other runs start; 0: all at once."""
    environ: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds that each way to the database takes: the longer, the more do runs at the same moment meet."""


@dataclass
class Step:
    """A Job: at an instant a first part, and one more for each retry that the Job would make."""

    at: datetime
    parts: list[Part]
    edits: int
    """How many people change something before it."""


@dataclass
class Scene:
    """All that one run of the driver does."""

    seed: int
    index: int
    processes: bool
    from_scratch: bool
    id_type: Literal["INT", "CHAR(36)"]
    least: bool
    tls: bool
    new_ledger: bool
    environ: dict[str, str]
    constants: dict[str, Any]
    default_zone: str | None
    people: list[Person]
    steps: list[Step]
    list_lag: timedelta
    ends: list[tuple[str, int | None]]
    """What may become of a text."""

    def seconds_left(self, person: Person, instant: datetime) -> float:
        """The seconds to the end of SEND_WINDOW as clocks show it where the person is; 0 outside."""
        zone = zone_of(person, self.default_zone)
        if not zone or "SEND_WINDOW" not in self.environ:
            return math.inf
        local = instant.astimezone(zone)
        start, end = (time.fromisoformat(text) for text in self.environ["SEND_WINDOW"].split("-"))
        closing = datetime.combine(local.date(), end, zone).replace(fold=local.fold)  # an hour can come twice
        return (closing.astimezone(UTC) - instant).total_seconds() if start <= local.time() < end else 0.0

    @property
    def story(self) -> str:
        """The scene in words, for whoever looks at a failure."""
        lines = [f"{len(self.people)} people, settings {self.environ}, constants {self.constants}"]
        for step in self.steps:
            lines.append(f"{step.at:%Y-%m-%d %H:%M:%S} UTC, after {step.edits} edits")
            lines += [
                f"    {part.runs} runs {part.argv} {part.environ}: {', '.join(map(str, part.faults)) or 'no fault'}"
                for part in step.parts
            ]
        return "\n".join(lines)


def draw(seed: int, index: int) -> Scene:
    """The scene of that number."""
    rng = Rng(f"{seed}/{index}")
    processes = index % EVERY_PROCESS == EVERY_PROCESS // 2
    focus, around = moment(rng)
    tls = rng.random() < 0.15
    shape = rng.choices(SHAPES, [4, 4, 4, 4, 2])[0]
    steps = shape(rng, focus, around, processes, tls)
    default_zone = "Europe/Berlin" if rng.random() < 0.1 else None
    people = [person(rng, number, focus, steps[0].at) for number in range(rng.choice([3, 8, 12, 14, 20, 32]))]
    id_type: Literal["INT", "CHAR(36)"] = "CHAR(36)" if rng.random() < 0.2 else "INT"
    ids = sorted(str(uuid.UUID(int=rng.getrandbits(128))) for _ in people)
    for number, each in enumerate(people):
        each.id = ids[number] if id_type == "CHAR(36)" else 1 + 3 * number
    if any(isinstance(fault, f.ComeAndGo) for step in steps for part in step.parts for fault in part.faults):
        for each in rng.sample(people, 2):
            each.is_here = False
    if rng.random() < 0.15 and len(people) > 3:
        people[1].phone = people[0].phone  # two accounts, one number
    return Scene(
        seed=seed,
        index=index,
        processes=processes,
        from_scratch=processes and rng.random() < 0.1,
        id_type=id_type,
        least=rng.random() < 0.5,
        tls=tls,
        new_ledger=rng.random() < 0.05,
        environ=settings(rng, default_zone),
        constants=constants(rng, steps),
        default_zone=default_zone,
        people=people,
        steps=steps,
        list_lag=timedelta(minutes=rng.choice([0, 0, 3, 14])),
        ends=rng.choice(ENDS),
    )


def settings(rng: Rng, default_zone: str | None) -> dict[str, str]:
    """Settings that differ from the fake's and the database's own."""
    environ = {
        "SEND_CONCURRENCY": str(rng.choice([1, 2, 4, 8, 8, 16])),
        "LOG_LEVEL": rng.choice(["DEBUG", "DEBUG", "DEBUG", "INFO"]),
    }
    if default_zone:
        environ["DEFAULT_TIME_ZONE"] = default_zone
    if rng.random() < 0.2:
        environ |= {"TWILIO_AUTH_TOKEN": "", "TWILIO_API_KEY_SID": ft.FakeTwilio.API_KEY_SID}
        environ["TWILIO_API_KEY_SECRET"] = ft.FakeTwilio.API_KEY_SECRET
    if rng.random() < 0.2:
        environ |= {"TWILIO_FROM_NUMBER": "", "TWILIO_MESSAGING_SERVICE_SID": ft.FakeTwilio.MESSAGING_SERVICE_SID}
    if rng.random() < 0.2:
        environ["SEND_WINDOW"] = rng.choice(["09:00-20:00", "08:30-12:00", "00:00-23:00", "20:00-23:59"])
    if rng.random() < 0.4:
        environ["UNDELIVERED_LIMIT"] = rng.choice(["0", "1", "2"])
    if rng.random() < 0.2:
        environ["REFUSED_RETRY_DAYS"] = rng.choice(["0", "1", "90"])
    return environ


def constants(rng: Rng, steps: list[Step]) -> dict[str, Any]:
    """The program's patience, as short as the faults allow, and small pages."""
    all_faults = [fault for step in steps for part in step.parts for fault in part.faults]
    is_slow = any(isinstance(fault, f.BadAnswers) and fault.answer.before + fault.answer.after for fault in all_faults)
    is_silent = any(
        isinstance(fault, f.Away) or (isinstance(fault, f.Cut) and fault.verdict in HANGS) for fault in all_faults
    )
    is_forgotten = any(isinstance(fault, f.ForgottenConnections) for fault in all_faults)
    is_locked = any(isinstance(fault, f.LockWait) for fault in all_faults)
    return {
        "HTTP_TIMEOUT": [2.0, SLOW_TIMEOUT if is_slow else 4.0],
        # A statement must outlast the wait for a lock, here 1 s, as in the program: else the server works on alone.
        "DATABASE_TIMEOUT": 10.0 if not is_silent else 1.5 if is_locked else SILENT_TIMEOUT,
        "DATABASE_CONNECT_TIMEOUT": SILENT_TIMEOUT if is_silent else 5.0,
        "PAUSE_BUDGET": 60.0 if is_forgotten else rng.choice([3.0, 20.0, 60.0]),
        "OUTAGE_PAUSES": [1.0, 2.0],
        "OUTAGE_PATIENCE": 40.0,
        "DATABASE_PATIENCE": 30.0,
        "OTHERS_ANSWER": 4.0,
        # In-process the watchdog would end the driver.
        "TERM_LIMIT": 100.0,
        "WATCHDOG_LIMIT": 2_000.0,
        "PAGE_USERS": rng.choice([5_000, 5_000, 2, 5, 9]),
        "IN_LIST": rng.choice([500, 500, 3]),
        "KEYS": rng.choice([500, 500, 2]),
    }


HANGS = (Verdict.HANG_BEFORE, Verdict.HANG_AFTER)

# --- when


@cache
def changes() -> list[tuple[str, datetime]]:
    """Zones, and instants at which their clocks are changed."""
    found = []
    for name in pytz.common_timezones:
        first = 2009 if name in ("Pacific/Apia", "America/Sao_Paulo") else 2019  # a day left out; changes at midnight
        times = getattr(pytz.timezone(name), "_utc_transition_times", [])
        found += [(name, instant.replace(tzinfo=UTC)) for instant in times if first <= instant.year <= 2027]
    return found


def moment(rng: Rng) -> tuple[str, datetime]:
    """A zone that the run is about, and an instant: often near a change of its clocks."""
    if rng.random() < 0.45:
        zone, change = rng.choice(changes())
        return zone, (change + timedelta(hours=rng.uniform(-30, 50))).replace(microsecond=0)
    zone = rng.choice(pytz.common_timezones)
    day = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=rng.randrange(1000))
    return zone, day + timedelta(hours=9) if rng.random() < 0.6 else day + timedelta(seconds=rng.randrange(86_400))


def midnight_near(zone: str, around: datetime) -> datetime:
    """The first instant of the local day after the one that it is."""
    found = zone_named(zone)
    assert found
    return start_of(found, around.astimezone(found).date() + timedelta(days=1))


# --- who


HALF = "\ud83d"  # half of an emoji, whose bytes MariaDB takes for UTF-8 and Python does not


def person(rng: Rng, number: int, focus: str, first: datetime) -> Person:
    """Somebody; more often due than not."""
    chance = rng.random()
    zone: str | None = focus
    if chance > 0.5:
        zone = rng.choice(pytz.common_timezones)
    if chance > 0.93:
        zone = rng.choice([None, "", "Mars/Base", "  ", " " + focus.lower() + " "])
    found = zone_named(zone)
    logs: list[datetime] = []
    if found:
        today = first.astimezone(found).date()
        starts = [start_of(found, today - timedelta(days=days)) for days in (3, 2, 1, 0)]
        logs = [moment_in(rng, starts[n], starts[n + 1]) for n in rng.choice([[], [], [], [0], [1], [1], [2], [0, 1]])]
        if rng.random() < 0.1:
            logs.append(starts[3])
    phone: str | None = f"+1555{rng.randrange(10**4):04}{number:03}"
    if rng.random() < 0.06:
        phone = rng.choice([None, "", "  ", "call me", "+15x", "0049 30 1234"])
    if rng.random() < 0.01:
        zone = focus + HALF
    odd = rng.choice(
        [" Ö.", f" {HALF}", "\r\n2024-01-01 - __main__ - INFO - Job completed.", " {name} %s", " " + "x" * 60]
    )
    who = Person(0, f"P{number}" + (odd if rng.random() < 0.1 else ""), phone, zone, rng.choice([0, 1, 1, 2]), logs)
    if rng.random() < 0.08:
        who.refusal, who.refused_phone = rng.choice([*PERMANENT, *TODAY]), who.phone
    if not who.habits:
        who.logs = []
    return who


def moment_in(rng: Rng, start: datetime, end: datetime) -> datetime:
    """An instant of a day: often its first or last second."""
    last = max(start, end - timedelta(seconds=1))
    anywhere = start + timedelta(seconds=int((end - start).total_seconds() * rng.random()))
    return rng.choice([start, last, anywhere, anywhere])


# --- the days


def once(rng: Rng, _focus: str, around: datetime, processes: bool, tls: bool) -> list[Step]:
    """The daily job, and its retries; sometimes on two days."""
    days = rng.choice([1, 1, 2])
    return [step(rng, around + timedelta(days=n), processes, tls) for n in range(days)] + calm(rng, around, days - 1)


def six_hours(rng: Rng, _focus: str, around: datetime, processes: bool, tls: bool) -> list[Step]:
    """A schedule of `0 */6`."""
    start = datetime.combine(around.date(), time(), UTC) + timedelta(hours=6 * rng.randrange(4))
    count = 3 if processes else rng.choice([3, 4, 5])
    return [step(rng, start + timedelta(hours=6 * n), processes, tls, chance=0.6) for n in range(count)]


def overlapping(rng: Rng, _focus: str, around: datetime, processes: bool, tls: bool) -> list[Step]:
    """Two or three runs at the same moment."""
    runs = rng.choice([2, 2, 3])
    first = step(rng, around, processes, tls, runs=runs, chance=0.6)
    first.parts[0].joins_at_post = rng.choice([0, 0, 0, 1, 3])
    if processes and rng.random() < 0.6:  # whoever was refused by one is claimed once more by another
        refused = f.BadAnswers("sender refused", refuse(21606), 1, 9)
        once_more = f.Ended(kill=True, at="claiming once more", nth=1, before=rng.random() < 0.5, seconds=0)
        first.parts[0].faults = [refused, once_more]
    return [first, *calm(rng, around, 0)]


def midnight(rng: Rng, focus: str, around: datetime, processes: bool, tls: bool) -> list[Step]:
    """Runs just before and just after midnight, sometimes at work together."""
    end = midnight_near(focus, around)
    before = timedelta(seconds=rng.choice([1, 5, 60, 600]))
    first = step(rng, end - before, processes, tls, chance=0.4)
    if not processes and rng.random() < 0.7:
        nth = rng.choice([1, 2, 4])
        first.parts[0].faults.append(f.TimePasses(nth, before + timedelta(seconds=rng.choice([0, 1, 30, 700]))))
        if rng.random() < 0.7:
            first.parts[0].runs, first.parts[0].joins_at_post = 2, nth
            first.parts[0].delay = rng.choice([0.0, 0.006])
    second = step(rng, end + timedelta(seconds=rng.choice([1, 800, 3600])), processes, tls, chance=0.3)
    if rng.random() < 0.2:  # by clocks that are a little off it is another day
        off = timedelta(seconds=rng.choice([10, 280]))
        first.parts[0].faults, second.parts[0].faults = [f.WrongClock(off)], [f.WrongClock(-off)]
    return [first, second, *calm(rng, end, 0)]


def busy(rng: Rng, _focus: str, around: datetime, processes: bool, tls: bool) -> list[Step]:
    """Runs whenever somebody starts one by hand, and --settle between them."""
    steps, at = [], around
    for _ in range(rng.choice([3, 4])):
        steps.append(step(rng, at, processes, tls, chance=0.5))
        at += timedelta(minutes=rng.choice([1, 16, 90, 400, 700, 800]))
        if rng.random() < 0.3:
            steps.append(step(rng, at, processes, tls, chance=0.3, argv=["--settle"]))
    return steps


SHAPES: list[Callable[[Rng, str, datetime, bool, bool], list[Step]]] = [once, six_hours, overlapping, midnight, busy]


def calm(rng: Rng, around: datetime, days: int) -> list[Step]:
    """One more run later, without any fault: whoever was lost by then should be found."""
    if rng.random() < 0.25:
        return []
    later = timedelta(days=days, minutes=rng.choice([2, 40, 200, 700, 1440]))
    return [Step(around + later, [Part(1, [])], edits=rng.choice([0, 0, 1]))]


def step(
    rng: Rng,
    at: datetime,
    processes: bool,
    tls: bool,
    *,
    runs: int = 1,
    chance: float = 0.85,
    argv: list[str] | None = None,
) -> Step:
    """A Job with its retries, and with faults as chance will have it."""
    parts = [Part(runs, draw_faults(rng, processes, tls, chance), argv or [])]
    parts += [Part(1, draw_faults(rng, processes, tls, 0.35), argv or []) for _ in range(2)]
    parts[0].delay = rng.choice([0.0, 0.006, 0.012]) if runs > 1 else 0.0
    for part in parts:
        if rng.random() < 0.03 and not argv:
            part.environ["RUN_DEADLINE"] = rng.choice(["1", "2", "3"])
    return Step(at, parts, edits=rng.choice([0, 0, 0, 1, 3]))


# --- what goes wrong


def draw_faults(rng: Rng, processes: bool, tls: bool, chance: float) -> list[Fault]:
    """None, one or two that can be together."""
    if rng.random() > chance:
        return []
    drawn = [draw_fault(rng, processes, tls)]
    if rng.random() < 0.2 and type(drawn[0]) in COMBINED:
        other = draw_fault(rng, processes, tls)
        if type(other) in COMBINED and type(other) is not type(drawn[0]):
            drawn.append(other)
    return drawn


COMBINED = (f.BadAnswers, f.Ended, f.Cut, f.WrongCredentials, f.KilledConnection)
WRITES = ["claim", "claim", "record", "record", "release"]
TARGETS = [*WRITES, "read back", "history", "page", "slice", "zones", "learn", "settle", "any"]


def draw_fault(rng: Rng, processes: bool, tls: bool) -> Fault:
    table = PROCESS_FAULTS if processes and rng.random() < 0.8 else INLINE_FAULTS
    make = rng.choices([make for _, make in table], [weight for weight, _ in table])[0]
    fault = make(rng, tls)
    return draw_fault(rng, processes, tls) if processes and fault.needs_thread else fault


def early(rng: Rng) -> int:
    """Which one of a kind: mostly one of the first."""
    return rng.choice([1, 1, 1, 2, 2, 3, 4, 6])


def cut(verdict: Verdict, kind: str) -> Callable[[Rng, bool], Fault]:
    def make(rng: Rng, _tls: bool) -> Fault:
        target = rng.choice(TARGETS)
        return f.Cut(kind, verdict, target, rng.randrange(1, 30) if target == "any" else early(rng))

    return make


def at_query(fault: Callable[..., Fault], *, writes: bool = False, **drawn: Callable[[Rng], Any]) -> Any:
    """A fault at some statement."""

    def make(rng: Rng, _tls: bool) -> Fault:
        target = rng.choice(WRITES if writes else TARGETS)
        nth = rng.randrange(1, 30) if target == "any" else early(rng)
        return fault(target, nth, **{name: value(rng) for name, value in drawn.items()})

    return make


def answers(kind: str, *choices: Answer, counts: tuple[int, ...] = (1, 1, 2, 3, 12)) -> Callable[[Rng, bool], Fault]:
    def make(rng: Rng, _tls: bool) -> Fault:
        return f.BadAnswers(kind, rng.choice(choices), early(rng), rng.choice(counts))

    return make


def bad_record(rng: Rng, tls: bool) -> Fault:
    """A bad TLS record after the accepted text; where there is no TLS, a reset."""
    if not tls:
        return f.BadAnswers("reset after accepting", ft.RESET_AFTER_ACCEPTING, early(rng), 1)
    return f.BadAnswers("bad TLS record after accepting", ft.BAD_TLS_RECORD, early(rng), rng.choice([1, 2, 3]))


def door(kind: str, state: Door) -> Callable[[Rng, bool], Fault]:
    def make(rng: Rng, _tls: bool) -> Fault:
        times = None if state is Door.SHUT else rng.choice([1, 2, 4, None])
        return f.BadDoor(kind, state, times, after_probe=rng.random() < 0.8, opens_after=rng.choice([1, 2, 99]))

    return make


PLACES = ["post", "post", *WRITES, "read back", "any", "sometime"]
NEW_PLACES = [*["learn"] * 2, *["settle"] * 3, *["writing again"] * 2]


def ended(kill: bool, *places: str) -> Callable[[Rng, bool], Fault]:
    """kill -9 or SIGTERM, at one of these places."""

    def make(rng: Rng, _tls: bool) -> Fault:
        at = rng.choice(places)
        nth = {"any": rng.randrange(1, 30), "learn": 1, "settle": 1, "writing again": 2}.get(at) or early(rng)
        seconds = rng.uniform(0, 0.2)
        return f.Ended(kill=kill, at=at, nth=nth, before=rng.random() < 0.5, seconds=seconds, again=rng.random() < 0.3)

    return make


def wrong_credentials(rng: Rng, _tls: bool) -> Fault:
    """Credentials that turn wrong, at the probe or in the middle."""
    return f.WrongCredentials(rng.choice([0, 1, 2, 3, 6]))


def wrong_clock(rng: Rng, _tls: bool) -> Fault:
    """Behind or ahead, by a little, by hours or days; or it steps."""
    seconds = rng.choice([10, 40, 280, 320, 3_600, 11.7 * 3_600, 86_400, 45 * 86_400])
    by = timedelta(seconds=seconds) * rng.choice([-1, 1])
    if rng.random() < 0.4:
        hours = rng.choice([0.01, 1, 12, 26, 45 * 24])
        return f.WrongClock(rng.choice([-1, 1]) * timedelta(hours=hours), early(rng))
    return f.WrongClock(by)


def suspended(rng: Rng, _tls: bool) -> Fault:
    """Asleep for minutes or hours."""
    return f.Suspended(early(rng), timedelta(minutes=rng.choice([2, 10, 60, 480, 1_560])))


def read_only(rng: Rng, _tls: bool) -> Fault:
    """Read-only from the start, from a statement on, or for some seconds."""
    if rng.random() < 0.5:
        return f.ReadOnly(rng.choice(WRITES), early(rng), rng.choice([0.05, 0.15, 0.3]))
    if rng.random() < 0.3:
        return f.ReadOnly("any", 0)
    return f.ReadOnly(rng.choice(WRITES), early(rng))


def lost_commits(rng: Rng, _tls: bool) -> Fault:
    """A crash that loses the last second, at some statement."""
    return f.LostCommits(rng.choice(["claim", "record", "release", "read back"]), rng.choice([1, 2, 2, 3, 3, 4, 6]))


FOREIGN = [
    Answer("", status=status, body=body)
    for status in (400, 401, 403, 404, 429)
    for body in ("<html>Blocked</html>", '{"error": "blocked"}', '{"code": 403, "status": 200}')
]
THROTTLES = (throttle(), throttle(0), throttle(1), throttle(3), refuse(21611, 429), refuse(20429, 429, rfc9457=True))

INLINE_FAULTS: list[tuple[float, Callable[[Rng, bool], Fault]]] = [
    (5, cut(Verdict.CUT_BEFORE, "connection cut before a statement")),
    (3, cut(Verdict.CUT_WITHIN, "connection cut within an answer")),
    (2, at_query(f.CutWhileExecuting, writes=True)),
    (6, cut(Verdict.CUT_AFTER, "connection cut after a statement")),
    (3, at_query(f.KilledConnection)),
    (3, lambda _rng, _tls: f.Deadlock("claim", 1)),
    (1.5, at_query(f.LockWait, writes=True, seconds=lambda rng: rng.choice([1.2, 2.5]))),
    (4, read_only),
    (8, wrong_clock),
    (6, suspended),
    (3, lost_commits),
    (2, lambda rng, _tls: f.ForgottenConnections(early(rng))),
    (6, lambda rng, _tls: f.ComeAndGo(rng.choice(["zones", "slice", "page", "history", "claim"]), early(rng))),
    (4, answers("4xx of a proxy after accepting", *FOREIGN)),
    (1, cut(Verdict.HANG_BEFORE, "silent server")),
    (1, cut(Verdict.HANG_AFTER, "silent server")),
    (1, at_query(f.Away, silent=lambda _: True, seconds=lambda rng: rng.choice([0.6, 2.5]))),
    (2, at_query(f.Away, silent=lambda _: False, seconds=lambda rng: rng.choice([0.05, 0.5, 2.0]))),
    (3, door("Twilio refuses connections", Door.SHUT)),
    (2, door("Twilio resets connections", Door.RESET)),
    (3, door("Twilio resets in the handshake", Door.RESET_IN_HANDSHAKE)),
    (6, bad_record),
    (4, answers("reset after accepting", ft.RESET_AFTER_ACCEPTING)),
    (2, answers("reset before accepting", ft.RESET)),
    (2, answers("closed after accepting", ft.CLOSE_AFTER_ACCEPTING)),
    (4, answers("201 with a broken body", ft.BROKEN_JSON, ft.EMPTY_LIST, ft.TRUNCATED)),
    (4, answers("5xx before accepting", server_error(500), server_error(503, retry_after=1), server_error(502, 20429))),
    (5, answers("5xx after accepting", *(server_error(code, accepted=True) for code in (500, 502, 503, 504)))),
    (5, answers("429 storm", *THROTTLES, counts=(1, 3, 8, 200))),
    (3, answers("answer slower than the timeout", slow(0.4), slow(0.6, accepted_first=False), counts=(1, 2, 3))),
    (4, wrong_credentials),
    (2, answers("refused for this person", *map(refuse, (*PERMANENT, *TODAY)), counts=(1, 2))),
    (2, answers("sender refused", *map(refuse, SENDER), counts=(1, 5, 9, 10, 14))),
    (2, answers("a person must act", *map(refuse, STOPS), refuse(30454, 429), refuse(63038, 429), counts=(1, 2))),
    (1, answers("unknown 4xx", refuse(29999), refuse(21999, 422), counts=(1, 3, 12))),
    (3, ended(False, *PLACES, *NEW_PLACES)),
]

PROCESS_FAULTS: list[tuple[float, Callable[[Rng, bool], Fault]]] = [
    (10, ended(True, *PLACES)),
    (9, ended(True, *NEW_PLACES)),
    (4, ended(False, *PLACES)),
    (9, ended(False, *NEW_PLACES)),
    (6, at_query(f.ServerRestart, kill=lambda rng: rng.random() < 0.6, seconds=lambda rng: rng.choice([0, 0.3, 1.5]))),
]


def kinds() -> set[str]:
    """Every kind of fault that can be drawn by itself."""
    makers = [make for _, make in INLINE_FAULTS + PROCESS_FAULTS]
    return {make(Rng(f"{n}"), tls).kind for make in makers for n in range(100) for tls in (False, True)}
