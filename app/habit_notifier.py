#!/usr/bin/env python3
"""Text every user who fell behind on their habits: the right person, in their own days, at most once a day.

Run once a day by a Kubernetes CronJob, it reads a habit tracker's MySQL database and texts through Twilio.

Rules. In the user's own time zone, day 2 is yesterday and day 1 the day before; today's logs do not count:

    day 1    day 2    the user gets
    -----    -----    ------------------------------------------
    no log   no log   a text: "No logs in the past 2 days"
    logged   no log   a text: "Missed yesterday"
    any      logged   nothing

Promise. A text cannot be unsent. Before it is posted it is claimed: a row of the ledger, the table HabitNotification,
one for each user and local day. The row stays when the text may have been sent or was refused; it is deleted when the
text was surely not sent and may be tried again. So no retry, overlapping run, crash or lost answer leads to a second
text that day, and nobody is texted within 11 h 30 min of their last text. Where the program cannot know, it sends
nothing and says so. The promise is per account: two accounts with one number get a text each.

Order. Ask Twilio what became of earlier texts; judge a page of users, ask each gate whether something speaks against
their text, claim a few, post them, record the answers, and so on; in the end delete rows that are older than 90 days.
Several runs side by side (shards) may share the users out: each serves those whose id falls to it.

Failures. One bad row never stops the rest. Of the pages that were looked at, every user who was due and not served is
named, counted and explained. What concerns everybody (database, credentials, sender, clock) ends the run, after what
is in flight was recorded. "Failed" counts those due who got no text, or perhaps none.

Exit codes: 0 done; 1 not everybody was served, a retry helps; 2 a person must act first, the log says how; 143 SIGTERM
came: what was in flight is recorded, the next run goes on. The highest of 2 > 143 > 1 > 0 wins.

Settings are environment variables, declared in the class Settings; --help prints them all.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # as PID 1, a process without a handler ignores SIGTERM: let it wait for ours
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

import argparse
import json
import logging
import os
import random
import re
import secrets
import socket
import ssl
import struct
import threading
import time
import traceback
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from email.utils import parsedate_to_datetime
from enum import Enum, IntEnum, StrEnum, auto
from functools import cache, cached_property, lru_cache, partial
from itertools import chain, groupby, product, repeat
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pymysql
import pytz
import requests
import urllib3.exceptions
from requests.exceptions import InvalidSchema, InvalidURL
from twilio.http import HttpClient
from twilio.http.response import Response
from twilio.rest import Client

log = logging.getLogger(__name__)
T = TypeVar("T")

# --- constants --------------------------------------------------------------------------------------------------------

SPACING = timedelta(hours=11, minutes=30)  # between two texts to one user, whatever their local day says
ALL_ATTEMPTS = timedelta(minutes=30)  # of a Job: its activeDeadlineSeconds
RETENTION = timedelta(days=90)  # of the ledger's rows
CLOCK_TOLERANCE = timedelta(minutes=5)  # between Twilio's clock or a time stamp and ours
CLOCKS_APART = 2 * CLOCK_TOLERANCE  # two nodes: one ahead, the other behind
E164 = re.compile(r"\+[1-9][0-9]{6,14}")  # ITU-T E.164: at most 15 digits

# --- errors -----------------------------------------------------------------------------------------------------------


class Exit(IntEnum):
    """Exit codes, the weightier the later: each NotifierError has one, `Report.close` tells the run's."""

    DONE = 0
    RETRY = 1
    TERMINATED = 143
    ACT = 2

    @classmethod
    def worst(cls, codes: Iterable[Exit]) -> Exit:
        """The code that outweighs the others."""
        return max(codes, key=list(cls).index)


class NotifierError(Exception):
    """A failure that concerns the whole run. Each argument is one line for the log, with the remedy."""

    exit_code = Exit.RETRY
    may_pass = False  # whether it may, by itself, within minutes

    def __str__(self) -> str:
        return " | ".join(self.args)


class RetryLater(NotifierError):  # noqa: N818 - named by what the caller should do next
    """The set-up is right as far as we know: worth waiting for while nobody is claimed; else the next run goes on."""

    may_pass = True


class FixFirst(NotifierError):  # noqa: N818
    """A person must act before a retry can help."""

    exit_code = Exit.ACT


class Terminated(NotifierError):  # noqa: N818
    """SIGTERM came."""

    exit_code = Exit.TERMINATED


# --- records: what travels --------------------------------------------------------------------------------------------

UserId = int | str | bytes
Clock = Callable[[], datetime]
Environ = Mapping[str, str]


class Outcome(Enum):
    """What became of a user: words for the log, whether it counts as Failed, log level. For exit codes see Report."""

    SENT = ("sent", False, logging.INFO)
    NOT_LISTED = ("not in ONLY_USERS", False, logging.DEBUG)
    ALREADY = ("already handled today", False, logging.DEBUG)
    EARLIER = ("uncertain earlier today", False, logging.INFO)
    LATER = ("later", False, logging.INFO)
    DEFERRED = ("deferred", False, logging.INFO)
    REMEMBERED = ("refused earlier", False, logging.INFO)
    UNDELIVERED = ("left alone (texts do not arrive)", False, logging.INFO)
    QUIET = ("left in peace (QUIET_AFTER)", False, logging.INFO)
    ENOUGH = ("left in peace (MAX_PER_WEEK)", False, logging.INFO)
    BAD_ZONE = ("skipped (time zone)", False, logging.WARNING)
    BAD_PHONE = ("skipped (phone number)", False, logging.WARNING)
    REFUSED = ("refused", True, logging.WARNING)
    SETUP = ("refused for the set-up", True, logging.WARNING)
    TRIAL = ("refused to a trial account", True, logging.WARNING)
    UNCERTAIN = ("uncertain", True, logging.WARNING)
    RELEASED = ("not sent", True, logging.WARNING)
    NOT_TRIED = ("not tried", True, logging.WARNING)
    FUTURE = ("barred by a row of the future", True, logging.WARNING)

    def __init__(self, words: str, failed: bool, level: int) -> None:
        self.words, self.failed, self.level = words, failed, level


class Days(NamedTuple):
    """A user's last two days as half-open UTC intervals: day 1 [day1, day2), day 2 [day2, end)."""

    zone: pytz.BaseTzInfo
    today: date
    day1: datetime
    day2: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class User:
    """A user, mostly one who logged nothing on day 2; without days, one whose time zone this run does not know."""

    id: UserId
    name: str
    phone: str
    zone: str
    days: Days | None
    logged_day1: bool
    rows_matter: bool = True  # whether a gate may have something to say of the user's rows in the ledger

    def __str__(self) -> str:
        return f"{self.name or '(no name)'} (ID: {shown_id(self.id)})"


@dataclass(frozen=True, eq=False, slots=True)
class Reminder:
    """One text that is due, from judging to recording: what the log calls a notification, and Twilio a message."""

    user: User
    rule: Rule
    days: Days


class State(StrEnum):
    """What a row of the ledger says of its text."""

    SENDING = "sending"
    SENT = "sent"
    REFUSED = "refused"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger: a field for each of its columns, in their order."""

    user_id: UserId
    local_day: date
    phone: str
    rule: str
    state: State
    token: str  # of this claim alone, although its column is called run_token
    claimed_at: datetime
    finished_at: datetime | None = None
    sid: str | None = None
    code: int | None = None
    final_status: str | None = None
    segments: int | None = None

    @property
    def key(self) -> tuple[UserId, date, str]:
        """What names this row and no other, also when its day was released and claimed anew."""
        return self.user_id, self.local_day, self.token

    def last_possible_text(self, deadline: timedelta = timedelta()) -> datetime:
        """The latest instant at which this row's text can have been posted, if its run had that deadline."""
        return max(self.claimed_at, self.finished_at or self.claimed_at + deadline)  # clocks can step back


class Skip(NamedTuple):
    """Why a user gets no text. 'again': another run is at it, so it is worth asking once more at the run's end."""

    outcome: Outcome
    reason: str
    args: tuple[object, ...] = ()
    again: bool = False


class Case(NamedTuple):
    """All that the gates decide by; 'last_log' is read only for those whom QUIET_AFTER may concern."""

    user: User
    rows: Sequence[Row]
    last_log: date | datetime | None
    settings: Settings
    now: datetime

    @property
    def days(self) -> Days:
        """The user's days, for the gates after `placed`, which stops whoever has none."""
        return self.user.days  # type: ignore[return-value]  # a cast costs each gate its time


# --- rules: pure functions --------------------------------------------------------------------------------------------


class Rule(Enum):
    """Why a user is texted: as the ledger has it, as people read it, and the field of Settings with the text."""

    NO_LOGS = "no_logs", "No logs in the past 2 days", "message_no_logs"
    MISSED_YESTERDAY = "missed_yesterday", "Missed yesterday", "message_missed_yesterday"

    def __init__(self, key: str, reason: str, setting: str) -> None:
        self.key, self.reason, self.setting = key, reason, setting


def rule_for(*, logged_day1: bool) -> Rule:
    """The rule for a user who logged nothing on day 2; a run does not even read the others."""
    return Rule.MISSED_YESTERDAY if logged_day1 else Rule.NO_LOGS


# --- gates: every reason not to text ----------------------------------------------------------------------------------


def listed(case: Case) -> Skip | None:
    """ONLY_USERS names whom a first try may reach."""
    only = case.settings.only_users
    return Skip(Outcome.NOT_LISTED, "ONLY_USERS names others") if only and id_key(case.user.id) not in only else None


def placed(case: Case) -> Skip | None:
    """Without a time zone there are no days to judge by."""
    user = case.user
    if user.days:
        return None
    if resolve_zone(user.zone) or case.settings.default_time_zone:
        reason = "time zone %r came in use during this run: the next one serves"
        return Skip(Outcome.BAD_ZONE, reason, (shown_zone(user.zone),))
    wrong = "time zone %r is unknown" if user.zone else "there is no time zone"
    remedy = f"{wrong}: correct User.time_zone or set DEFAULT_TIME_ZONE"
    return Skip(Outcome.BAD_ZONE, remedy, (shown_zone(user.zone),) if user.zone else ())


def numbered(case: Case) -> Skip | None:
    """Only a number in E.164 can be texted."""
    if E164.fullmatch(case.user.phone):
        return None
    reason = f"phone number %r is not E.164, such as {EXAMPLE}: correct User.phone_number"
    return Skip(Outcome.BAD_PHONE, reason, (Personal(case.user.phone),))


def unclaimed(case: Case) -> Skip | None:
    """One row, one day: no run has claimed today's yet."""
    row = next((row for row in case.rows if row.local_day == case.days.today), None)
    if not row:
        return None
    if row.state in (State.SENDING, State.UNCERTAIN):
        sending, recent = row.state is State.SENDING, case.now - row.claimed_at < ALL_ATTEMPTS
        words = "another run is texting this user, or was cut off while it did" if sending else "it may have been sent"
        which = Personal(row.phone), f"{row.claimed_at:%Y-%m-%d %H:%M:%S}"
        kind = Outcome.UNCERTAIN if recent else Outcome.EARLIER
        return Skip(kind, f"{words}: %s at %s UTC", which, again=sending and recent)
    if (last := row.last_possible_text()) < case.days.end:
        reason = "the row of %s is that of a text before that day: zone or DAY_STARTS_AT changed after %s UTC"
        return Skip(Outcome.DEFERRED, reason, (row.local_day, f"{last:%Y-%m-%d %H:%M}"))
    return Skip(Outcome.REMEMBERED if row.state is State.REFUSED else Outcome.ALREADY, "%s today", (row.state,))


def of_the_past(case: Case) -> Skip | None:
    """No row lies in the future: it comes of a clock that was ahead, and would silently bar its user until then."""
    last_day = max(case.days.today + timedelta(days=1), (case.now + EARLIEST_ZONE).date())  # people may have moved
    for row in case.rows:
        written = row.last_possible_text()  # clocks can step ahead while a text is on its way
        if written > case.now + CLOCKS_APART or row.local_day > last_day:
            words = "a clock that was ahead left the row of %s, written at %s UTC. Unless its text went out today: "
            delete = f"DELETE FROM `%s`.{LEDGER} WHERE user_id = %s AND local_day = '%s' AND run_token = %s;"
            at, key = f"{written:%Y-%m-%d %H:%M}", (literal(row.user_id), row.local_day, literal(row.token))
            return Skip(Outcome.FUTURE, words + delete, (row.local_day, at, case.settings.db_name, *key))
    return None


def not_refused(case: Case) -> Skip | None:
    """A number that refused for good is left alone for REFUSED_RETRY_DAYS, unless it has been texted since."""
    for row in own_rows(case):
        if row.state is State.SENT and row.final_status not in NOT_ARRIVED:
            return None
        permanent = row.state is State.REFUSED and row.code in FOR_GOOD
        if permanent and (case.days.today - row.local_day).days < case.settings.refused_retry_days:
            reason = "Twilio refused %s for good on %s (error %s)"
            return Skip(Outcome.REMEMBERED, reason, (Personal(row.phone), row.local_day, row.code))
    return None


def delivered(case: Case) -> Skip | None:
    """A number whose last texts did not arrive is left alone for as long as one that refused."""
    known = [row for row in own_rows(case) if row.final_status in KNOWN_ENDS]
    ends = [row for row in known if row.final_status not in LOST or row.code not in NOT_THE_NUMBERS_FAULT]
    if not ends or (case.days.today - ends[0].local_day).days >= case.settings.refused_retry_days:
        return None
    if ends[0].final_status in LOST and ends[0].code in FOR_GOOD:
        return Skip(Outcome.REMEMBERED, "the last text did not arrive: %s", (meaning(ends[0].code),))
    limit = case.settings.undelivered_limit
    if limit and len(ends) >= limit and all(row.final_status in LOST for row in ends[:limit]):
        return Skip(Outcome.UNDELIVERED, "the last %d texts did not arrive: %s", (limit, meaning(ends[0].code)))
    return None


def wanted(case: Case) -> Skip | None:
    """After QUIET_AFTER texts without any log in between, silence until the next log."""
    limit, last_log = case.settings.quiet_after, case.last_log
    unheeded = limit and sum(last_log is None or is_after(row, last_log) for row in counted_rows(case)[:limit])
    if not limit or unheeded < limit:
        return None
    return Skip(Outcome.QUIET, "no log since the last %d texts: silence until the next log", (limit,))


def within_week(case: Case) -> Skip | None:
    """At most MAX_PER_WEEK texts in seven local days."""
    limit, since = case.settings.max_per_week, case.days.today - timedelta(days=7)
    enough = limit and sum(row.local_day > since for row in counted_rows(case)) >= limit
    return Skip(Outcome.ENOUGH, "%d texts in seven days already", (limit,)) if enough else None


def spaced(case: Case) -> Skip | None:
    """SPACING since the last text, and never two in one local day, whatever zone the user had then."""
    deadline = timedelta(seconds=case.settings.run_deadline)  # of the runs that wrote the rows, too, as far as we know
    for row in case.rows:
        late = timedelta() if row.state is State.SENT else CLOCK_TOLERANCE  # Twilio may take it after we gave up
        last = row.last_possible_text(deadline)
        if row.state is State.REFUSED or (last <= case.now - SPACING and last + late < case.days.end):
            continue
        if row.state is State.SENDING and case.now < row.claimed_at + deadline:
            return Skip(Outcome.NOT_TRIED, "another run holds this user, or was cut off while it did", again=True)
        words = "another text may have been posted as late as %s UTC: less than 11 h 30 min ago, or today there"
        unsure = row.state is not State.SENT and case.now - row.claimed_at < ALL_ATTEMPTS
        return Skip(Outcome.UNCERTAIN if unsure else Outcome.DEFERRED, words, (f"{last:%Y-%m-%d %H:%M}",))
    return None


def in_window(case: Case) -> Skip | None:
    """Nobody is texted outside of SEND_WINDOW, or so late in it that the text might wait beyond."""
    window = case.settings.send_window
    if not window or seconds_left(window, case.now, case.days.zone) >= SMALLEST_VALIDITY:
        return None
    local = f"{case.now.astimezone(case.days.zone):%H:%M}"
    return Skip(Outcome.LATER, "it is %s there, SEND_WINDOW is %s", (local, shown_value(window)))


# Each is named for what lets a text pass; the first that objects decides; none writes. `unclaimed` comes before
# `of_the_past`, whose DELETE must never name a text of today; `spaced` before those that leave people alone: a text
# that may be lost fails the Job, whatever the day. A new one in READ_ROWS needs Ledger.rows_matter to get its rows.
WITHOUT_DAYS = listed, placed, numbered  # the others need a time zone
READ_ROWS = unclaimed, of_the_past, spaced, not_refused, delivered, wanted, within_week
READ_DAYS = (in_window,)
WITHOUT_ROWS = *WITHOUT_DAYS, *READ_DAYS  # most users have no rows that matter
GATES = *WITHOUT_DAYS, *READ_ROWS, *READ_DAYS


def speaks_against(case: Case) -> Skip | None:
    """The first reason not to text; None when there is none."""
    for gate in GATES if case.rows else WITHOUT_ROWS:
        if skip := gate(case):
            return skip
    return None


# --- the job ----------------------------------------------------------------------------------------------------------


class Job:
    """One run, step by step, and what its steps share."""

    def __init__(self, settings: Settings, report: Report, clock: Clock, stop: Stop) -> None:
        self.settings, self.report, self.clock = settings, report, clock
        self.brake = Brake(stop, clock, settings.run_deadline)
        self.database = Database(settings, self.brake)
        self.tracker, self.ledger = Tracker(settings, self.database), Ledger(settings, self.database)
        self.twilio = Twilio(settings)
        self.sender = Sender(self.twilio, self.brake, settings, clock)
        self.now = clock()  # what days are judged by; read anew when all has answered
        self.waiting: deque[Reminder] = deque()  # judged, and to be claimed
        self.unrecorded: dict[Reminder, Answer] = {}  # claimed, and what is known of each so far
        self.aside: list[tuple[User, Skip]] = []  # another run holds them
        self.last_call = False  # whether nobody may be put aside again
        self.about = ""  # whom --explain asks about

    def run(self) -> Exit:
        """Text everybody who is due."""
        log.info("Starting habit notification job")
        log.info("Settings: %s", self.settings.shown())
        with self.brake.holding(), self.database:
            self.prove_set_up()
            self.look_up_earlier_texts()
            self.take_stock()
            self.deliver(self.pages())
            self.deliver(self.once_more())
            self.delete_old_rows()
        self.name_the_rest()
        return self.report.close(self.brake, self.settings)

    def settle(self) -> Exit:
        """Ask Twilio what became of texts whose end is not known yet; text nobody."""
        with self.brake.holding(), self.database:
            self.prove_set_up()
            if failure := self.look_up_earlier_texts():
                raise failure
        return self.report.close(self.brake, self.settings)

    def prove_set_up(self) -> None:
        """Fail now if everybody would fail later, as far as that can be known before anybody is claimed."""
        self.patiently(self.open)
        twilios = self.patiently(self.probe)
        log.info("Twilio client initialized")
        now = self.clock()
        warn(clock_doubts(twilios, now))
        self.sender.clock_error = abs(twilios - now) if twilios else timedelta()

    def open(self) -> None:
        """Connect to the database, and check that all can be read and written."""
        self.tracker.open()
        self.ledger.open()
        warn(self.tracker.doubts())

    def probe(self) -> datetime | None:
        """Ask Twilio whether texts could be posted; its clock."""
        return within(PROBE_LIMIT, self.brake, self.twilio.probe)

    def patiently(self, step: Callable[[], T]) -> T:
        """Take a step, again and again while what it needs is away: nobody is claimed yet."""
        until, pauses = time.monotonic() + OUTAGE_PATIENCE, chain(OUTAGE_PAUSES, repeat(OUTAGE_PAUSES[-1]))
        while True:
            try:
                return step()
            except NotifierError as failure:
                pause = next(pauses)
                if not failure.may_pass or time.monotonic() + pause > until:
                    raise
                log.warning("Once more in %.0f s: %s", pause, failure)
                if not self.brake.sleep(pause):
                    raise

    def look_up_earlier_texts(self) -> NotifierError | None:
        """Record what became of earlier texts, for the gates; the failure that kept some from being looked up.

        :raises FixFirst: when carriers block the sender
        """
        rows, found, failure = self.ledger.unsettled(self.clock()), dict[str, Message](), None
        limit = SETTLE_BUDGET + PROBE_LIMIT
        try:
            within(limit, self.brake, partial(self.twilio.look_up, rows, self.brake, found))
        except NotifierError as cut_short:
            failure = cut_short
            log.warning("Not all earlier texts were looked up, the next run goes on: %s", failure)
        messages = found.copy()  # what does not end may still add to it
        settled = settled_rows(rows, messages, self.clock(), looked_up=failure is None)
        self.ledger.settle(settled)
        self.report.learned(rows, settled)
        stop_if_blocked(settled)
        return failure

    def take_stock(self) -> None:
        """Read the time and the zones; warn of what concerns everybody."""
        warn(self.doubts(self.read_zones()))

    def read_zones(self) -> list[Zone]:
        """Read the time and the zones, and judge users by them from now on."""
        self.now, zones = self.clock(), self.tracker.zones()
        self.report.start(sum(zone.users for zone in zones))
        days = days_by_zone(zones, self.settings, self.now)
        self.tracker.judge_by(days, self.now, self.ledger.rows_matter)
        return zones

    def doubts(self, zones: Iterable[Zone]) -> Iterator[str]:
        """What concerns everybody and looks wrong."""
        yield from zone_doubts(zones, self.settings)
        if not self.database.as_of:  # of another moment the newest logs say nothing
            users = self.report.users * self.settings.shard_count
            yield from self.tracker.log_doubts(self.now + CLOCK_TOLERANCE, users)
        if not self.report.users and self.settings.shard_count == 1:
            yield "nobody in User has a phone number: is DB_NAME right, or does a view leave everybody out?"
        if only := self.settings.only_users:
            yield f"ONLY_USERS is set: of all users only these {len(only)} may be texted"
            texted = {key for key, user in self.tracker.named(only).items() if user.phone}
            for user_id in sorted(only - texted):
                yield f"ONLY_USERS names {user_id}: there is no such user with a phone number"

    def pages(self) -> Iterator[list[Reminder]]:
        """The reminders to claim, page by page; MAX_TEXTS holds them all back until their number is known."""
        return self.held_back(self.judged()) if self.settings.max_texts else self.judged()

    def judged(self) -> Iterator[list[Reminder]]:
        """The reminders of each page, while more work may be taken."""
        for page in self.tracker.pages(self.report.users):
            parts = chunks(once_each(page.users), IN_LIST)  # of each user there may be 90 rows: not of all at once
            reminders = list(chain.from_iterable(map(self.judge, parts)))
            self.report.page(page, self.settings.only_users)
            yield reminders
            if self.brake.pulled:
                return
        self.report.walked = True

    def held_back(self, pages: Iterator[list[Reminder]]) -> Iterator[list[Reminder]]:
        """All reminders at once, if they are not more than MAX_TEXTS.

        :raises FixFirst: when they are
        """
        rules, limit = Counter[Rule](), self.settings.max_texts
        for page in pages:
            rules.update(reminder.rule for reminder in page)
            self.waiting.extend(page)
            if rules.total() > limit:
                self.report.not_tried(self.waiting)  # at once, so that memory stays flat
                self.waiting.clear()
        rules.update(rule_for(logged_day1=user.logged_day1) for user, _ in self.aside)  # they may be let go, and due
        if rules.total() > limit:
            counts = ", ".join(f'"{rule.reason}" {rules[rule]}' for rule in Rule)
            raise FixFirst(
                f"{rules.total()} texts are due ({counts}), more than MAX_TEXTS={limit}: nobody is texted. Are logs "
                "still written? If all is well, raise MAX_TEXTS"
            )
        held, self.waiting = self.waiting, deque()
        yield list(held)

    def judge(self, users: Sequence[User]) -> list[Reminder]:
        """Ask the gates about users: the reminders to claim. Who gets none is reported, or put aside."""
        today = {user.id: user.days.today for user in users if user.rows_matter and user.days}
        rows = self.ledger.todays(today)  # whoever has one is done with: no gate asks for their older ones
        others, last_logs = self.history([user for user in users if user.id not in rows])
        rows |= others
        now, reminders = self.clock(), []  # read after the rows: what another run has just written is not of the future
        for user in users:
            case = Case(user, rows.get(user.id, ()), last_logs.get(user.id), self.settings, now)
            if skip := speaks_against(case):
                self.skip(user, skip)
            else:
                reminders.append(Reminder(user, rule_for(logged_day1=user.logged_day1), case.days))
        return reminders

    def history(self, users: Sequence[User]) -> tuple[Mapping[UserId, list[Row]], Mapping[UserId, date]]:
        """The ledger's rows of those of whom some may matter; the last log of those whom QUIET_AFTER may concern."""
        rows = self.ledger.history([user.id for user in users if user.rows_matter])
        least = self.settings.quiet_after
        quiet = {user.id: user.days for user in users if least and user.days and len(rows.get(user.id, ())) >= least}
        return rows, self.tracker.last_logs(quiet, self.now)

    def skip(self, user: User, skip: Skip) -> None:
        """Report who gets no text, or put aside whom another run holds."""
        if skip.again and not self.last_call:
            self.aside.append((user, skip))
        else:
            self.report.skipped(user, skip)

    def once_more(self) -> Iterator[list[Reminder]]:
        """The reminders of those whom another run held, once it has its answers or let them go."""
        until = time.monotonic() + OTHERS_ANSWER
        while self.aside or self.waiting:  # who waits may yet be claimed by another run, and put aside again
            if held := self.aside[:IN_LIST]:
                self.last_call = time.monotonic() >= until or not self.brake.sleep(random.uniform(0.5, 1.5))  # noqa: S311
            reminders = self.judge([replace(user, rows_matter=True) for user, _ in held])
            del self.aside[: len(held)]
            yield reminders

    def deliver(self, pages: Iterator[list[Reminder]]) -> None:
        """Claim, post and record, a few texts ahead of the threads; on a failure, record what is left."""
        try:
            while (more := self.fill(pages)) or self.sender.busy:
                self.claim_and_post()
                hungry = more and self.sender.room > 0  # then the next page is worth more than an answer
                self.record(self.sender.answers(timeout=0.0 if hungry else 0.5))
        except Exception as failure:
            self.brake.pull(failure if isinstance(failure, NotifierError) else RetryLater(OUR_FAULT))
            self.record_last()
            if not isinstance(failure, NotifierError):
                log.critical("A fault of the program, please report it", exc_info=True)

    def fill(self, pages: Iterator[list[Reminder]]) -> bool:
        """Judge the next page once fewer wait than the threads can take; whether there may be something to claim."""
        if self.brake.pulled:
            return False
        if len(self.waiting) >= self.sender.room:
            return True
        page = next(pages, None)
        self.waiting.extend(page or ())
        return page is not None or bool(self.waiting)

    def claim_and_post(self) -> None:
        """Claim the next few, and hand those that are ours to the threads."""
        room = 0 if self.brake.pulled else min(self.sender.room, len(self.waiting))
        handful = [self.waiting.popleft() for _ in range(room)]
        self.unrecorded |= dict.fromkeys(handful, NOT_POSTED)
        ours = self.claim(handful)
        self.report.claimed(ours)
        for reminder in ours:
            self.unrecorded[reminder] = GIVEN_UP  # until it is answered
            self.sender.submit(reminder)

    def claim(self, handful: Sequence[Reminder]) -> list[Reminder]:
        """Claim reminders; those that are ours. What another run has a better right to is released, and reported."""
        now = self.clock()
        self.brake.check_clock(now)
        rows = self.ledger.claim(handful, now)
        cases = {r: Case(r.user, rows.get(r.user.id, ()), None, self.settings, now) for r in handful}
        others = {r: skip for r, case in cases.items() if (skip := not_ours(self.ledger.claims[r], case))}
        self.ledger.release(others)
        for reminder, skip in others.items():
            del self.unrecorded[reminder]
            self.skip(reminder.user, skip)
        return [reminder for reminder in handful if reminder not in others]

    def record(self, answers: Mapping[Reminder, Answer]) -> None:
        """Record what became of texts, then tell it."""
        self.unrecorded |= answers
        self.brake.heed(answers.values())
        self.ledger.record(answers, self.clock())
        self.report.finished(answers, self.clock())
        for reminder in answers:
            del self.unrecorded[reminder]

    def record_last(self) -> None:
        """After a failure: wait for what is in flight, and try once more to record it."""
        while self.sender.busy:
            answers = self.sender.answers(timeout=0.5)
            self.unrecorded |= answers
            self.brake.heed(answers.values())
        try:
            self.ledger.record(self.unrecorded, self.clock())
        except NotifierError:
            self.tell_unrecorded()
        self.report.finished(self.unrecorded, self.clock())
        self.unrecorded.clear()

    def tell_unrecorded(self) -> None:
        """Say what the ledger may hold wrongly, and how those who surely got no text may still get one."""
        log.error(
            "What became of the last %d users could not be recorded: a row that stays at 'sending' keeps its user from "
            "a text today",
            len(self.unrecorded),
        )
        unsent = {reminder for reminder, answer in self.unrecorded.items() if answer.action.outcome not in KEPT}
        if rows := [claim for reminder, claim in self.ledger.claims.items() if reminder in unsent]:
            log.error(
                "Whoever of them surely got no text may get one: "
                "DELETE FROM `%s`.%s WHERE local_day >= '%s' AND run_token IN (%s);",
                self.settings.db_name,
                LEDGER,
                min(row.local_day for row in rows),
                ", ".join(literal(row.token) for row in rows),
            )

    def delete_old_rows(self) -> None:
        """Delete them a few at a time; what is left, or fails, can wait for the next run."""
        deleted, before = 0, (self.clock() - RETENTION).date()
        try:
            while not self.brake.pulled and (some := self.ledger.purge(before)):
                deleted += some
        except NotifierError as failure:
            log.warning("Left for the next run: %s", failure)
        if deleted:
            log.info("Deleted %d rows of the ledger that were older than %d days", deleted, RETENTION.days)

    def name_the_rest(self) -> None:
        """Report whose turn did not come."""
        for user, skip in self.aside:
            self.report.skipped(user, skip)
        self.report.not_tried(self.waiting)


def once_each(users: Sequence[User]) -> list[User]:
    """The users, each id once, as it stands last: a view over a join may return one twice."""
    found = {user.id: user for user in users}
    for user_id, count in Counter(user.id for user in users).items():
        if count > 1:
            log.warning("User %s stands %d times in User: served once", found[user_id], count)
    return list(found.values())


def not_ours(claim: Row, case: Case) -> Skip | None:
    """Why a claim may not be posted, from the user's rows after it was made; None when it may.

    Of two runs with different local days, one at least sees the other. Whoever does gives way, and asks once more at
    its end.
    """
    others = [row for row in case.rows if row.token != claim.token]
    if len(others) < len(case.rows):
        return spaced(case._replace(rows=others))
    gone = "its claim is gone from the ledger: another run released the day, or a proxy asks a replica"
    return unclaimed(case) or Skip(Outcome.NOT_TRIED, gone, again=True)


def clock_doubts(twilios: datetime | None, now: datetime) -> Iterator[str]:
    """Days are judged, and the ledger is kept, by this clock.

    :raises RetryLater: when it is not Twilio's
    """
    if twilios is None:
        yield "Twilio's answer has no Date: whether this node's clock is right is not known"
    elif abs(twilios - now) > CLOCK_TOLERANCE:
        raise RetryLater(
            f"this node's clock is wrong: it says {now:%Y-%m-%d %H:%M:%S} UTC, Twilio {twilios:%Y-%m-%d %H:%M:%S}: "
            "mend its time synchronisation (NTP). Nobody was texted"
        )


def days_by_zone(zones: Iterable[Zone], settings: Settings, now: datetime) -> dict[bytes, Days]:
    """The days of each stored zone that can be resolved; DEFAULT_TIME_ZONE serves for the others."""
    default = resolve_zone(settings.default_time_zone)
    resolved = ((zone.key, resolve_zone(zone.name) or default) for zone in zones)
    return {key: days_of(now, zone, settings.day_starts_at) for key, zone in resolved if zone}


def zone_doubts(zones: Iterable[Zone], settings: Settings) -> Iterator[str]:
    """The zones that DEFAULT_TIME_ZONE replaces; a missing one is what it is for."""
    default = settings.default_time_zone
    for zone in zones:
        if default and zone.name and not resolve_zone(zone.name):
            yield f"{zone.users} users have the unknown zone {quoted(zone.name)}: DEFAULT_TIME_ZONE ({default}) serves"


# --- the report -------------------------------------------------------------------------------------------------------

PROGRESS_SECONDS = 10.0
FEW = 3  # of a kind are no longer chance
NIGHT_STARTS, NIGHT_ENDS = 21, 8  # hours, local time
FOR_A_RETRY = Outcome.RELEASED, Outcome.NOT_TRIED  # one such user makes exit code 1; of the others `verdict` decides


class Report:
    """Counts what becomes of users, tells it, and computes how the run ends."""

    def __init__(self) -> None:
        self.users = 0
        self.started = False
        self.walked = False  # to the end of the pages
        self.counts: Counter[Outcome] = Counter()
        self.learned_ends: Counter[tuple[str, int | None]] = Counter()
        self.error: str | None = None
        self._looked_at = self._at_night = self._out_of_reach = 0
        self._longest_name = ""
        self._reasons: dict[Outcome, str] = defaultdict(str)  # the last one of each
        self._began = self._told = time.monotonic()

    def start(self, users: int) -> None:
        """Say how many users there are."""
        self.users, self.started = users, True
        log.info("Found %d users with phone numbers", users)

    def page(self, page: Page, only: Collection[str]) -> None:
        """Count a page of users, and name those on it whose logs could not be read."""
        self._looked_at += page.users_in_all
        self.walked = page.last
        reason = "MySQL does not read their logs in time: index Log (habit_id, created_at), see DEPLOYMENT.md"
        for user_id in page.unread:
            if not only or id_key(user_id) in only:
                self.skipped(User(user_id, "", "", "", None, logged_day1=False), Skip(Outcome.NOT_TRIED, reason))
        self._progress()

    def _progress(self) -> None:
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            self.tell_totals("Progress: %d of %d users looked at%s")

    def tell_totals(self, words: str = "Looked at %d of %d users%s") -> None:
        """What became of everybody until now."""
        totals = "".join(f", {outcome.words} {self.counts[outcome]}" for outcome in Outcome if self.counts[outcome])
        log.info(words, self._looked_at, self.users, totals)

    def skipped(self, user: User, skip: Skip) -> None:
        """Count and name a user who gets no text, and why."""
        outcome, words = skip.outcome, f"User %s gets no text, %s: {skip.reason}"
        self.counts[outcome] += 1
        if outcome.failed:
            self._reasons[outcome] = skip.reason % tuple(map(masked, skip.args))
        log.log(outcome.level, words, user, outcome.words, *skip.args, extra=event("skipped", user.id, outcome))

    def not_tried(self, reminders: Iterable[Reminder]) -> None:
        """Count and name whose turn did not come."""
        for reminder in reminders:
            self.skipped(reminder.user, Skip(Outcome.NOT_TRIED, "the run ended before"))

    def claimed(self, reminders: Iterable[Reminder]) -> None:
        """Name whose turn it is."""
        for reminder in reminders:
            details = event("due", reminder.user.id, rule=reminder.rule.key)
            log.info("User %s needs notification: %s", reminder.user, reminder.rule.reason, extra=details)

    def finished(self, answers: Mapping[Reminder, Answer], now: datetime) -> None:
        """Count and tell what became of texts."""
        for reminder, answer in answers.items():
            user, outcome = reminder.user, answer.action.outcome
            self.counts[outcome] += 1
            self._out_of_reach += answer.action is Action.OUT_OF_REACH
            at_night = not NIGHT_ENDS <= now.astimezone(reminder.days.zone).hour < NIGHT_STARTS
            self._at_night += at_night and outcome in (Outcome.SENT, Outcome.UNCERTAIN)
            details = event("text", user.id, outcome, rule=reminder.rule.key, code=answer.code, sid=answer.sid)
            if outcome is Outcome.SENT:
                self._longest_name = max(self._longest_name, user.name or NAMELESS, key=len)
                name, phone = Personal(user.name or "(no name)"), Personal(user.phone)
                log.info("Notification sent to %s (%s). Message SID: %s", name, phone, answer.sid, extra=details)
            else:
                words = "Notification to %s %s: %s: %s"
                log.log(outcome.level, words, user, outcome.words, Personal(user.phone), answer.words, extra=details)
            self._reasons[outcome] = answer.words
        self._progress()

    def learned(self, rows: Sequence[Row], settled: Sequence[Row]) -> None:
        """Name every earlier text that did not arrive, then tell what became of all: a run may end here."""
        ends = Counter((row.final_status, row.code) for row in settled if row.final_status)
        self.learned_ends.update(ends)
        if not rows:
            log.info("There are no earlier texts to look up")
            return
        for row in settled:
            details = event("learned", row.user_id, row.final_status, rule=row.rule, code=row.code, sid=row.sid)
            which = row.local_day, shown_id(row.user_id)
            if row.final_status in LOST:
                words = "The text of %s to user %s: %s (%s)"
                log.warning(words, *which, row.final_status, meaning(row.code), extra=details)
            elif row.final_status == UNKNOWN:
                words = "The text of %s to user %s, %s: unknown. Look in Twilio's console for %s, %s to %s UTC"
                between = row.claimed_at, row.finished_at or row.claimed_at + ALL_ATTEMPTS
                times = (f"{at:%Y-%m-%d %H:%M:%S}" for at in between)
                log.warning(words, *which, row.state, Personal(row.phone), *times, extra=details)
        log.info("Looked up %d earlier texts%s, still open %d", len(rows), tally(ends), len(rows) - ends.total())

    def verdict(self, shards: int) -> NotifierError | None:
        """The failure, if any, that the counts of outcomes amount to.

        Exit code 2 of one shard stops all others: a few people are no reason for it, unless the account is a trial's.
        """
        sent, setup, uncertain = (self.counts[o] for o in (Outcome.SENT, Outcome.SETUP, Outcome.UNCERTAIN))
        if self.counts[Outcome.ALREADY] and setup < STREAK:  # only who is out of reach is left for later runs
            setup -= self._out_of_reach
        if self.counts[Outcome.TRIAL] or (setup >= FEW and not sent):
            kind = FixFirst if self.counts[Outcome.TRIAL] or shards == 1 or setup >= STREAK else RetryLater
            last = self._reasons[Outcome.TRIAL] or self._reasons[Outcome.SETUP]
            return kind(f"Twilio refuses texts for our set-up, the last one: {last}")
        if barred := self.counts[Outcome.FUTURE]:
            kind = FixFirst if shards == 1 else RetryLater
            return kind(f"{barred} users are barred by rows of the future: delete them, where their lines say so")
        if uncertain and not sent:
            last = f"{self._reasons[Outcome.UNCERTAIN]}. If it is Twilio, see https://status.twilio.com"
            return RetryLater(f"No text was surely sent, and {uncertain} may have been, the last one: {last}")
        return None

    def close(self, brake: Brake, settings: Settings) -> Exit:
        """Sum up; the exit code: the weightiest of an early end, the verdict, SIGTERM, the deadline, users unserved."""
        early, unserved = brake.failure, [self._reasons[outcome] for outcome in FOR_A_RETRY if self.counts[outcome]]
        if self.started:
            warn(self._doubts(settings))
            self._sum_up()
            if verdict := self.verdict(settings.shard_count):
                brake.pull(verdict)
        brake.blame(unfinished=self.started and (bool(unserved) or not self.walked))
        if unserved:
            brake.pull(RetryLater(f"Not everybody was served: see the lines above, the last one: {unserved[0]}"))
        if early and self.started and brake.failure is early:  # its first telling may stand above thousands of lines
            tell(early)
        return brake.exit_code

    def _doubts(self, settings: Settings) -> Iterator[str]:
        """What a person should know of the texts and of the run."""
        if self.counts[Outcome.SENT]:
            yield from text_problems(settings, self._longest_name)
        if self._at_night and not settings.send_window:
            yield (
                f"{self._at_night} texts were posted between 21:00 and 8:00 local time: k8s/components/local-morning "
                "keeps a decent hour, by SEND_WINDOW and hourly runs"
            )
        if not self.walked:
            yield f"The run ended before the last page: {self._looked_at} of {self.users} users were looked at"
        if uncertain := self.counts[Outcome.UNCERTAIN]:
            yield (
                f"{uncertain} texts are uncertain: they may have been sent, and are not sent again today: see "
                "Twilio's console"
            )
        alone, may = self.counts[Outcome.UNDELIVERED], (Outcome.SENT, Outcome.ALREADY, Outcome.LATER)
        if alone >= max(STREAK, sum(self.counts[outcome] for outcome in may)):
            yield f"{alone} users, most of those due, are left alone: their last texts did not arrive"

    def _sum_up(self) -> None:
        """The totals, and the line by which a run is known to be complete."""
        if self.learned_ends:
            log.info("What became of earlier texts%s", tally(self.learned_ends))
        self.tell_totals()
        sent, failed, details = self.counts[Outcome.SENT], self.failed, {"fields": {"event": "completed"}}
        log.info("Job completed. Notifications sent: %d, Failed: %d", sent, failed, extra=details)

    @property
    def failed(self) -> int:
        """How many were due and got no text, or perhaps none."""
        return sum(count for outcome, count in self.counts.items() if outcome.failed)

    def summary(self, mode: str, code: int) -> dict[str, Any]:
        """The run in a few numbers, without a name or a number of a person."""
        return {
            "run": mode,
            "exit_code": code,
            "seconds": round(time.monotonic() - self._began, 1),
            "users": self.users if self.started else None,
            "sent": self.counts[Outcome.SENT],
            "failed": self.failed,
            "uncertain": self.counts[Outcome.UNCERTAIN],
            "counts": {outcome.name.lower(): count for outcome, count in self.counts.items()},
            "learned": {" ".join(str(part) for part in end if part): n for end, n in self.learned_ends.most_common(20)},
            "error": self.error and impersonal(clean(self.error)).encode()[:1_000].decode(errors="ignore"),
        }


def event(name: str, user_id: UserId, outcome: Outcome | str | None = None, **details: object) -> dict[str, object]:
    """What LOG_FORMAT=json adds to a line."""
    word = outcome.name.lower() if isinstance(outcome, Outcome) else outcome
    known = {"event": name, "user_id": shown_id(user_id), "outcome": word, **details}
    return {"fields": {key: value for key, value in known.items() if value is not None}}


def tally(ends: Mapping[tuple[str, int | None], int]) -> str:
    """Ends of texts and how many, each code with its meaning."""
    ordered = sorted(ends.items(), key=lambda item: (item[0][0], item[0][1] or 0))
    return "".join(f", {end} {count}{f' ({meaning(code)})' if code else ''}" for (end, code), count in ordered)


# STOP; or an address, as in the texts of a sender with a name, which cannot be answered.
OPT_OUT = re.compile(r"\bSTOP\b|(?i:reply|text|send)\W+(?i:stop)\b|(?is:(opt.?out|unsubscribe)\b.*\w\.\w)")


def text_problems(settings: Settings, longest_name: str) -> Iterator[str]:
    """What carriers, or whoever pays, may dislike about the two texts."""
    for rule in Rule:
        name, template = rule.setting.upper(), getattr(settings, rule.setting)
        if not OPT_OUT.search(template):
            yield f'{name} does not say how to opt out: write "Reply STOP to opt out"'
        if (parts := segments(template.replace("{name}", longest_name))) > 1:
            name_of = f"a name of {len(longest_name)} characters"
            yield f"{name} costs {parts} segments with {name_of}: one has 160 characters (70 if not GSM-7)"


# --- what rules and gates are made of: pure functions -----------------------------------------------------------------

NAME_LENGTH = 40  # characters of a name that are shown: if all are of GSM-7, the default texts are one segment
NAMELESS = "there"  # what a text calls whoever has no name
EARLIEST_ZONE = timedelta(hours=14)  # ahead of UTC
EXAMPLE = "+14155550123"  # one of the numbers that belong to nobody
SMALLEST_VALIDITY = 60  # seconds: a text that may wait less is left for the next window


def days_of(now: datetime, zone: pytz.BaseTzInfo, starts: time_of_day = time_of_day()) -> Days:
    """The two days before the one that it is now in the zone, where days start at that time of day."""
    today = now.astimezone(zone).date()
    if now < instant_of(today, starts, zone):
        today -= timedelta(days=1)
    day1, day2, end = (instant_of(today - timedelta(days=n), starts, zone) for n in (2, 1, 0))
    return Days(zone, today, day1, day2, end)


@cache  # a run asks for the same few again before each text
def instant_of(day: date, at: time_of_day, zone: pytz.BaseTzInfo) -> datetime:
    """The UTC instant at which clocks in the zone show that time.

    A time that comes twice (clocks go back) means the first; one that a jump of the clocks leaves out, the jump.
    """
    instant, _ = readings(day, at, zone)
    shown = instant.astimezone(zone)
    if shown.replace(tzinfo=None) != datetime.combine(day, at):
        while instant.astimezone(zone).utcoffset() == shown.utcoffset():
            instant += timedelta(minutes=1)
    return instant


def readings(day: date, at: time_of_day, zone: pytz.BaseTzInfo) -> list[datetime]:
    """The UTC instants that a local time can mean, the earlier first: they differ where clocks are changed."""
    return sorted(zone.localize(datetime.combine(day, at), is_dst=dst).astimezone(UTC) for dst in (True, False))


@cache
def resolve_zone(name: str) -> pytz.BaseTzInfo | None:
    """The zone of a tz database name, whatever its case and surrounding blanks; None when there is none."""
    try:
        return pytz.timezone(name.strip())
    except pytz.UnknownTimeZoneError:
        return None


@lru_cache(maxsize=1_000)  # the same for all users of a zone
def seconds_left(window: tuple[time_of_day, time_of_day], now: datetime, zone: pytz.BaseTzInfo) -> float:
    """The seconds to the window's end, as clocks in the zone show it; 0 outside."""
    local, (start, end) = now.astimezone(zone), window
    if not start <= local.time() < end:
        return 0.0
    first, last = instant_of(local.date(), end, zone), readings(local.date(), end, zone)[-1]
    return ((first if first > now else last) - now).total_seconds()  # clocks that go back show the end twice


JOINERS = "\u200c\u200d"  # do not print, but hold Persian words and family emoji together


def shows(character: str) -> bool:
    """Whether a character may stand in a line of the log."""
    return character.isprintable() or character in JOINERS


def decoded(value: object) -> str:
    """Text from the database, which may hold bytes that are not UTF-8; '' for NULL."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str("" if value is None else value)


def clean(value: object) -> str:
    """The value as one line, without characters that don't print: what is read from the database can forge nothing."""
    text = decoded(value)
    if not text.isprintable():
        text = "".join(c if shows(c) else "" if unicodedata.category(c) == "Cf" else " " for c in text)
    return " ".join(text.split())


def zone_name(value: object) -> str:
    """The name of a time zone without what nobody sees in it: blanks around, characters that don't print."""
    return "".join(c for c in decoded(value) if c.isprintable()).strip()


def shown_zone(name: str) -> str:
    """The name of a zone; what is not one may be anything about a person, which LOG_PII=off hides."""
    return name if resolve_zone(name) else Personal(name)


def quoted(value: object) -> str:
    """Somebody else's words as a quotation, which LOG_PII=off hides."""
    text = clean(value).replace("”", "'")
    return f"“{text}”" if text else ""


def phone_number(value: object) -> str:
    """The number in E.164 if that is plain: blanks, dots, dashes and brackets go, 00 is +. Else as it stands."""
    text = clean(value)
    if E164.fullmatch(text):
        return text
    digits = re.sub(r"[\s.()\[\]\u2010-\u2015\u2212-]", "", text)
    number = re.sub("^00", "+", digits)
    return number if E164.fullmatch(number) and not re.search(r"[(\[]\s*0|[)\]]\s*$", text) else text


def shown_id(user_id: UserId) -> int | str:
    """An id for people: bytes as hexadecimal digits."""
    return user_id.hex() if isinstance(user_id, bytes) else user_id


def literal(value: UserId) -> str:
    """A value as an SQL literal."""
    return f"X'{value.hex()}'" if isinstance(value, bytes) else str(pymysql.converters.escape_item(value, "utf8mb4"))


HEX_ID = re.compile("[0-9a-fA-F-]{8,}")  # a UUID, or bytes
UUID = re.compile("-?".join(f"([0-9a-fA-F]{{{n}}})" for n in (8, 4, 4, 4, 12)))


def id_key(user_id: UserId) -> str:
    """An id as ONLY_USERS names it: neither the case of hexadecimal digits nor the dashes of a UUID matter."""
    text = str(shown_id(user_id))
    text = "-".join(found.groups()) if (found := UUID.fullmatch(text)) else text
    return text.lower() if HEX_ID.fullmatch(text) else text


def message_for(reminder: Reminder, settings: Settings) -> str:
    """The words of a text, as its user reads them."""
    return str(getattr(settings, reminder.rule.setting)).replace("{name}", reminder.user.name or NAMELESS)


GSM7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
GSM7_EXTENDED = frozenset("^{}\\[~]|€\f")  # two places each


def segments(text: str) -> int:
    """How many segments a text costs (3GPP TS 23.038: 160 septets, or 153 each; in UCS-2 70 characters, or 67 each)."""
    if set(text) <= GSM7 | GSM7_EXTENDED:
        length, one, each = len(text) + sum(c in GSM7_EXTENDED for c in text), 160, 153
    else:
        length, one, each = len(text.encode("utf-16-le")) // 2, 70, 67
    return 1 if length <= one else -(-length // each)


def newest_first(case: Case) -> list[Row]:
    """The user's rows but for those that the end of this run deletes."""
    since = (case.now - RETENTION).date()
    return sorted((row for row in case.rows if row.local_day >= since), key=lambda row: row.claimed_at, reverse=True)


def own_rows(case: Case) -> list[Row]:
    """The rows of the number that the user has now, the newest first."""
    return [row for row in newest_first(case) if row.phone == case.user.phone]


def counted_rows(case: Case) -> list[Row]:
    """The texts that reached the user, as far as we know, the newest first."""
    return [row for row in newest_first(case) if row.state is not State.REFUSED and row.final_status not in NOT_ARRIVED]


def is_after(row: Row, logged: date | datetime) -> bool:
    """Whether a row's text came after a log; of a log without a time of day only if it is of an earlier day."""
    return row.claimed_at > logged if isinstance(logged, datetime) else row.local_day > logged


# --- what ends a run early --------------------------------------------------------------------------------------------

TERM_LIMIT, DEADLINE_LIMIT = 40.0, 60.0  # seconds for what is in flight, after SIGTERM and after the deadline
WATCHDOG_LIMIT = 13.0  # seconds more until the process is ended: within terminationGracePeriodSeconds, 60
OUTAGE_PATIENCE = 600.0  # seconds in which MySQL or Twilio may come back while nobody is claimed
OUTAGE_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds, the last one again and again
STREAK, STREAK_WINDOW = 10, 30  # failures, of how many answers: it's not these people, it's everybody
OUR_FAULT = "the program failed: what is queued is not posted"
BY_FORCE = (
    "ended by force: an answer of MySQL goes on for ever, or nobody reads the log. Whom the last lines name as due may "
    "have got a text"
)


class Stop:
    """Whether SIGTERM came. A plain attribute: Event.set could wait for a lock that the interrupted code holds."""

    at = inf  # when the first one came

    def request(self, *_signal: object) -> None:
        self.at = min(self.at, time.monotonic())

    @property
    def requested(self) -> bool:
        return self.at < inf


def sleep(seconds: float, cut_short: Callable[[], bool]) -> bool:
    """Sleep, but wake when cut short; whether the seconds were slept out."""
    until = time.monotonic() + seconds
    while not cut_short() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
    return not cut_short()


class Brake:
    """What ends a run early: SIGTERM, the deadline, or the first failure that concerns everybody.

    Two clocks tell the deadline, since only the wall clock goes on while a machine is suspended.
    """

    def __init__(self, stop: Stop, clock: Clock, deadline: float) -> None:
        self._stop, self._clock, self._deadline = stop, clock, deadline
        self._latest = clock()  # instant that the wall clock has shown so far
        self._until, self._until_wall = time.monotonic() + deadline, self._latest + timedelta(seconds=deadline)
        self._lock, self._over = threading.Lock(), False
        self._answers: deque[Answer] = deque(maxlen=STREAK_WINDOW)
        self.failure: NotifierError | None = None

    def pull(self, failure: NotifierError) -> None:
        """End the run by this failure, which is told and counts, unless one that weighs as much came before."""
        with self._lock:
            first = self.failure.exit_code if self.failure else Exit.DONE
            if Exit.worst([first, failure.exit_code]) is not first:
                self.failure = failure
                tell(failure)

    def heed(self, answers: Iterable[Answer]) -> None:
        """Pull when too many of the last answers failed: it's not these people, it's everybody."""
        for answer in answers:
            if answer.action is Action.WITHHELD:
                continue
            self._answers.append(answer)
            away = sum(a.action in (Action.UNCERTAIN, Action.UNREACHED) for a in self._answers)
            if away >= STREAK:
                words = f"{away} of the last {len(self._answers)} texts are uncertain or did not reach Twilio"
                self.pull(RetryLater(f"{words}, the last one: {answer.words}. No more are posted{answer.remedy}"))
            elif [a.action for a in self._answers][-STREAK:] == [Action.FAIL] * STREAK:
                self.pull(FixFirst(f"{STREAK} texts in a row failed, the last one: {answer.words}. No more are posted"))

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Let a failure that concerns everybody end the block, not the program."""
        try:
            yield
        except NotifierError as failure:
            self.pull(failure)

    @property
    def stopped(self) -> bool:
        """Whether SIGTERM came."""
        return self._stop.requested

    @property
    def late(self) -> bool:
        """Whether the deadline is over."""
        self._over = self._over or time.monotonic() > self._until or self._clock() > self._until_wall
        return self._over  # once late, always late, wherever the wall clock is set

    def check_clock(self, now: datetime) -> None:
        """A claim that is dated back would not keep its user from a second text on the same day.

        :raises RetryLater: when the wall clock was set back
        """
        self._latest = max(self._latest, now)
        if now < self._latest - CLOCK_TOLERANCE:
            raise RetryLater(
                f"this node's clock is wrong: in mid-run it was set back to {now:%Y-%m-%d %H:%M:%S} UTC: "
                "mend its time synchronisation (NTP)"
            )

    @property
    def pulled(self) -> bool:
        """Whether no more work may be taken."""
        return self.failure is not None or self.stopped or self.late

    @property
    def overdue(self) -> bool:
        """Whether what is in flight may not be waited for any longer."""
        return time.monotonic() > min(self._stop.at + TERM_LIMIT, self._until + DEADLINE_LIMIT)

    def blame(self, *, unfinished: bool) -> None:
        """Name SIGTERM, or the deadline if it left work undone, as what ended the run."""
        if self.stopped:
            self.pull(Terminated("SIGTERM came: no more texts are taken up, the next run goes on"))
        elif unfinished and self.late:
            self.pull(RetryLater(f"RUN_DEADLINE ({self._deadline:g} s) is reached: the next run goes on"))

    @property
    def exit_code(self) -> Exit:
        """The run's: that of its failure, or SIGTERM's where that outweighs it."""
        code = self.failure.exit_code if self.failure else Exit.DONE
        return Exit.worst([code, Exit.TERMINATED]) if self.stopped else code

    def sleep(self, seconds: float) -> bool:
        """Sleep until then or until pulled; whether the seconds were slept out."""
        return sleep(seconds, lambda: self.pulled)


@contextmanager
def watchdog(job: Job, mode: str) -> Iterator[None]:
    """End the process when even its end hangs: a blocked standard error holds up every thread that logs."""
    over = threading.Event()

    def watch() -> None:
        while not job.brake.overdue:
            if over.wait(0.5):
                return
        if not over.wait(WATCHDOG_LIMIT):  # counted from here: the process may have been frozen for longer than that
            code = Exit.worst([Exit.RETRY, job.brake.exit_code])
            wait([in_background(partial(last_words, code))], timeout=0.5)
            os._exit(code)

    def last_words(code: Exit) -> None:
        job.report.error = str(job.brake.failure or BY_FORCE)
        leave_summary(job.report.summary(mode, code))
        log.error(BY_FORCE)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def in_background(step: Callable[[], T]) -> Future[T]:
    """Take a step in a thread of its own; its result, once it is there."""
    return ThreadPoolExecutor(1).submit(step)


def within(seconds: float, brake: Brake, step: Callable[[], T]) -> T:
    """Take a step in a thread of its own, so that an answer without end holds up nobody else; its result.

    :raises RetryLater: when it takes longer
    """
    future, until = in_background(step), time.monotonic() + seconds
    while not wait([future], timeout=0.2).done:
        if time.monotonic() > until or brake.overdue:
            raise RetryLater(f"Twilio does not answer, or its answer does not end: {AWAY}")
    return future.result()


# --- Twilio -----------------------------------------------------------------------------------------------------------

# From Python 3.13 on urllib3 would refuse the authority of many a company's proxy; PyMySQL does not.
urllib3.util.ssl_.VERIFY_X509_STRICT = ssl.VerifyFlags(0)  # type: ignore[attr-defined]

HTTP_TIMEOUT = (5.0, 10.0)  # seconds to connect, and to wait for an answer
OTHERS_ANSWER = 2 * sum(HTTP_TIMEOUT)  # seconds in which another run has its answers: some claims wait for a thread
LONGEST_ANSWER = 16_000_000  # bytes, unpacked: a list of 1,000 texts has fewer
HTTP_IDLE = 30.0  # seconds after which a connection is not trusted any more: NAT gateways forget it
PROBE_LIMIT = 30.0  # seconds for one question to Twilio, however slowly its answer drips
LONGEST_PAUSE = 120.0  # seconds, when Twilio says "too many" but not for how long
PAUSE_BUDGET = 600.0  # seconds that one run may spend in such pauses


class Action(Enum):
    """What an answer of Twilio asks for, and what becomes of its user."""

    ACCEPT = "accept", Outcome.SENT
    REFUSE = "refuse", Outcome.REFUSED  # for this number's sake: not tried again today, or for longer
    OUT_OF_REACH = "out of reach", Outcome.SETUP  # our set-up does not reach this person: a later run tries again
    TRIAL = "trial", Outcome.TRIAL  # a trial account may not text this person: a later run tries again
    FAIL = "fail", Outcome.SETUP  # our set-up is wrong: a later run tries again; a streak stops this one
    UNCERTAIN = "uncertain", Outcome.UNCERTAIN  # whether it was sent is unknown; a streak stops the run
    UNREACHED = "unreached", Outcome.RELEASED  # surely not sent; a streak stops the run
    PAUSE = "pause", Outcome.RELEASED  # everybody waits, then this person is tried again
    WITHHELD = "withheld", Outcome.RELEASED  # not posted: the run ends, or the day is over
    LATER = "later", Outcome.LATER  # not posted: the window has closed
    STOP = "stop", Outcome.RELEASED  # a person must act: the run stops

    def __init__(self, _name: str, outcome: Outcome) -> None:
        self.outcome = outcome


@dataclass(frozen=True)
class Answer:
    """One answer of Twilio, understood."""

    action: Action
    words: str = ""
    code: int | None = None
    sid: str | None = None
    segments: int | None = None
    retry_after: float | None = None

    @property
    def remedy(self) -> str:
        """Where to look when everybody gets this answer, if its words do not say so."""
        return f": {AWAY}" if self.action is Action.UNCERTAIN else ""


NO_LOGIN = "the credentials were refused: correct TWILIO_ACCOUNT_SID and token or key, unless the account is suspended"
UNVERIFIED = "a trial, or an account without an approved compliance profile, texts verified numbers only: upgrade it"
# https://www.twilio.com/docs/api/errors; a code that is not listed here is understood by its HTTP status.
TWILIO_CODES: dict[int, tuple[Action, str]] = {
    **dict.fromkeys((10001, 20005), (Action.STOP, "the Twilio account is not active: see its console")),
    20003: (Action.STOP, NO_LOGIN),
    20008: (Action.FAIL, "test credentials send no texts: use the live ones, in the Secret"),
    20403: (Action.STOP, "the Twilio account or key may not do this: see its console"),
    20404: (Action.STOP, "there is no such account: correct TWILIO_ACCOUNT_SID"),
    20429: (Action.PAUSE, "too many requests"),
    21211: (Action.REFUSE, "not a valid phone number: correct User.phone_number"),
    21212: (Action.FAIL, "TWILIO_FROM_NUMBER is not valid for this recipient"),
    21265: (Action.REFUSE, "a short code cannot be texted: correct User.phone_number"),
    21266: (Action.REFUSE, "the recipient's number is the sender's own: correct User.phone_number"),
    21268: (Action.REFUSE, "a premium number cannot be texted: correct User.phone_number"),
    21408: (Action.OUT_OF_REACH, "texts to this country are switched off: allow it in the console's Geo permissions"),
    21602: (Action.FAIL, "the text is empty: correct MESSAGE_NO_LOGS and MESSAGE_MISSED_YESTERDAY"),
    21603: (Action.STOP, "no sender was given: set TWILIO_FROM_NUMBER or TWILIO_MESSAGING_SERVICE_SID"),
    21606: (Action.FAIL, "TWILIO_FROM_NUMBER cannot text this recipient, or is not the account's"),
    21608: (Action.TRIAL, UNVERIFIED),
    21610: (Action.REFUSE, "the recipient opted out (STOP); only they can opt in again, by texting START"),
    21611: (Action.PAUSE, "the sender's queue at Twilio is full"),
    21612: (Action.OUT_OF_REACH, "this sender cannot reach this recipient: use a sender that can"),
    21614: (Action.REFUSE, "not a mobile number: correct User.phone_number"),
    21617: (Action.FAIL, "the text is too long: shorten MESSAGE_NO_LOGS and MESSAGE_MISSED_YESTERDAY"),
    21635: (Action.REFUSE, "a landline cannot be texted: correct User.phone_number"),
    21659: (Action.FAIL, "TWILIO_FROM_NUMBER is not a Twilio number, or a short code of another country"),
    21660: (Action.FAIL, "TWILIO_FROM_NUMBER does not belong to this account"),
    21661: (Action.FAIL, "TWILIO_FROM_NUMBER cannot send texts"),
    21701: (Action.STOP, "the Messaging Service does not exist: correct TWILIO_MESSAGING_SERVICE_SID"),
    21703: (Action.OUT_OF_REACH, "the Messaging Service has no sender for this recipient: add one in the console"),
    21704: (Action.FAIL, "the Messaging Service has no senders: add one in the console"),
    21705: (Action.STOP, "the Messaging Service is not valid: correct TWILIO_MESSAGING_SERVICE_SID"),
    30454: (Action.STOP, "the account has sent as many texts as a trial, or Twilio, lets it: upgrade the account"),
    30485: (Action.FAIL, "Twilio took it for fraud, and blocks such texts for some hours: see the console"),
    30489: (Action.FAIL, "the text was blocked by the account's own settings: see the console"),
    30630: (Action.REFUSE, "the recipient opted out, in Twilio's list of consents; only they can opt in again"),
    30640: (Action.REFUSE, "the account's Compliance Toolkit lets no texts through to this number: see its settings"),
    35118: (Action.STOP, "a Messaging Service is needed: set TWILIO_MESSAGING_SERVICE_SID"),
    63038: (Action.STOP, "the account's limit of texts a day is reached: raise it, or wait for tomorrow"),
    70051: (Action.STOP, "the API key lacks a permission (Messages list, read, create), or the account is suspended"),
    90010: (Action.FAIL, "the account is not active: see its console"),
    572002: (Action.TRIAL, "a trial account texts from the numbers that Twilio assigned: upgrade it"),
    572005: (Action.TRIAL, "a trial account texts verified numbers only, and this one is not yet: upgrade it"),
    572006: (Action.FAIL, "the account may not send this text; a trial sends Twilio's own texts only: upgrade it"),
}
HTTP_STATUSES: dict[int, tuple[Action, str]] = {
    401: TWILIO_CODES[20003],
    403: TWILIO_CODES[20403],
    404: TWILIO_CODES[20404],
    408: (Action.UNCERTAIN, "the request timed out on its way"),
    429: TWILIO_CODES[20429],
}
PERMANENT = {code for code, (action, _) in TWILIO_CODES.items() if action is Action.REFUSE}  # tomorrow, too
# https://www.twilio.com/docs/api/errors: why a text that Twilio took did not arrive, and whose fault it is.
GONE = {  # the recipient's number, for good
    30004: "the recipient blocks texts",
    30005: "the number does not exist",
    30006: "a landline, or a carrier that cannot be reached",
}
UNREACHABLE = {  # the recipient's number, perhaps for a while
    30003: "the phone was off or out of reach",
    30008: "for a reason that the carrier does not tell",
}
BLOCKED_SENDER = {  # the sender, whose texts carriers stop
    30007: "a carrier's filter took it for spam",
    30024: "the sender's number is not provisioned at the carrier",
    30032: "the toll-free number is not verified",
    30033: "the sender's campaign is suspended (A2P 10DLC)",
    30034: "the sender is not registered (A2P 10DLC)",
    30035: "the sender's registration is not complete (A2P 10DLC)",
    30037: "the account may send no texts at present",
}
OTHER_REASONS = {  # the sender, or nobody in particular
    30001: "the queue overflowed",
    30002: "the account was suspended",
    30017: "the carrier's network had too much traffic",
    **dict.fromkeys((30018, 30040), "the carrier there wants the sender registered"),
    30019: "the text is longer than the carrier takes",
    **dict.fromkeys((30021, 30500), "Twilio failed"),
    30022: "more at a time than the sender's registration allows (A2P 10DLC)",
    30023: "the registration's daily cap was reached (A2P 10DLC)",
    30027: "the carrier's daily cap was reached (A2P 10DLC)",
    30036: "it waited longer than VALIDITY_PERIOD",
    30041: "the sender is not registered (United Kingdom)",
    30042: "the name of the sender is not allowed there",
    30043: "the carrier took it for a text from abroad",
    30044: "a trial account sends short texts only",
    30047: "Twilio failed to move it to an hour that the account's Compliance Toolkit allows",
    30410: "a provider did not answer in time",
    30450: "Twilio's protection against SMS pumping blocked it for some minutes",
    30453: "Twilio's protection against SMS pumping blocked it for some hours",
    30610: "the account's Compliance Toolkit lets no texts through at that hour: see SEND_WINDOW",
    30615: "no such texts are allowed at that hour there: see SEND_WINDOW",
    30620: "the text is not what the sender is registered for",
}
FOR_GOOD = GONE.keys() | PERMANENT  # the number is left alone for REFUSED_RETRY_DAYS
MEANINGS = {c: words for c, (_, words) in TWILIO_CODES.items()} | GONE | UNREACHABLE | BLOCKED_SENDER | OTHER_REASONS
OUR_SETUP = TWILIO_CODES.keys() - PERMANENT  # with a Messaging Service Twilio finds out only after it took the text
NOT_THE_NUMBERS_FAULT = OUR_SETUP | BLOCKED_SENDER.keys() | OTHER_REASONS.keys()
LOST, UNKNOWN = {"undelivered", "failed"}, "unknown"
NOT_ARRIVED = LOST | {"canceled"}
KNOWN_ENDS = LOST | {"delivered", "read"}  # which tell something of the number; canceled does not
FINAL = KNOWN_ENDS | NOT_ARRIVED  # Twilio's statuses that no longer change
AWAY = "check https://status.twilio.com, DNS, the proxy and the NetworkPolicy"
PROXY = "HTTPS_PROXY asks for a login or cannot be used: correct it"
# What of a proxy's URL, or of the login in it, no request can be made of.
UNUSABLE = InvalidURL, InvalidSchema, urllib3.exceptions.LocationParseError, UnicodeEncodeError
NO_TRUST = (
    "Twilio's certificate, or a proxy's, does not verify (%s): name the CA file of a proxy that opens TLS in "
    "REQUESTS_CA_BUNDLE, or correct this node's clock, or the host in TWILIO_API_URL or HTTPS_PROXY"
)
NO_SUCH = 20404
SMALLEST_CODE = 10_000  # of Twilio's; proxies write HTTP's status there
OF_ONE_TEXT = range(21_000, 31_000)  # codes that do not speak of the account, whatever the status
CONTENT_TYPE = re.compile(r"(application|text|image)/[\w.+-]+")
MOST_SEGMENTS = 32_767  # as its column holds them
MESSAGE_SID = re.compile(r"(SM|MM)[0-9a-fA-F]{32}")
NOT_POSTED = Answer(Action.WITHHELD, "the run ended before it was posted")
GIVEN_UP = Answer(Action.UNCERTAIN, "no answer in time")


class Http(HttpClient):
    """requests with a timeout, keeping the last response: Twilio's exceptions carry neither headers nor every code."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("twilio.http_client"), is_async=False)
        self.session = requests.Session()
        self.last: Response | None = None
        self._used = 0.0

    def request(self, *request: Any, **options: Any) -> Response:
        """Send one request. urllib3 repeats nothing unless told to, and it isn't."""
        self.last = None
        if abs(time.time() - self._used) > HTTP_IDLE:  # by the wall clock, which goes on in a suspended machine
            self.session.close()
        with self.session.request(*request, **options | {"timeout": HTTP_TIMEOUT, "stream": True}) as answer:
            self.last = Response(answer.status_code, read_all(answer).decode(errors="replace"), answer.headers)
        self._used = time.time()
        return self.last


def read_all(answer: requests.Response) -> bytes:
    """The body, if all of it comes in time, and fits: the time-out of requests starts anew with every byte.

    :raises requests.ReadTimeout: when it does not
    """
    until, body = time.monotonic() + HTTP_TIMEOUT[1], bytearray()
    while part := answer.raw.read1(65_536, decode_content=True):
        body += part
        if time.monotonic() > until or len(body) > LONGEST_ANSWER:
            raise requests.ReadTimeout("the answer goes on for too long")
    return bytes(body)


@dataclass(frozen=True)
class Message:
    """A text as Twilio's list has it."""

    status: str
    code: int | None
    segments: str | None


class Twilio(threading.local):
    """Twilio's API. Made anew in each thread, which so has a client of its own: sessions are not proven thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._http = settings, Http()

    @cached_property
    def _client(self) -> Client:  # made when it is needed: that imports most of twilio
        s = self._settings
        user, password = s.twilio_api_key_sid or s.twilio_account_sid, s.twilio_api_key_secret or s.twilio_auth_token
        client = Client(user, password, s.twilio_account_sid, http_client=self._http)  # type: ignore[no-untyped-call]
        client.api.base_url = s.twilio_api_url
        client.messaging.base_url = re.sub(r"//api\.(?=.*twilio\.com$)", "//messaging.", s.twilio_api_url)
        return client

    def probe(self) -> datetime | None:
        """Prove name resolution, TLS and credentials before anything is claimed; Twilio's clock, if it tells.

        A list of one message, since a Standard API key cannot read the account.

        :raises FixFirst: when a person must act first
        :raises RetryLater: when Twilio cannot be reached or does not answer as it should
        """
        answer, _ = self.ask(partial(self._client.messages.page, page_size=1))
        last = self._http.last
        if last and last.status_code == requests.codes.proxy_authentication_required:
            answer = Answer(Action.STOP, PROXY)
        if "proxy appears to only use HTTP" in answer.words:  # after a POST these words would prove nothing
            answer = Answer(Action.STOP, "HTTPS_PROXY names a proxy without TLS: write http:// for its https://")
        if answer.action is Action.STOP or (answer.code in TWILIO_CODES and answer.action is not Action.PAUSE):
            raise FixFirst(f"Twilio: {answer.words}. Nobody was texted")
        if answer.action is not Action.ACCEPT:
            raise RetryLater(f"Twilio cannot be used: {answer.words}. Nobody was texted{answer.remedy}")
        try:
            said = parsedate_to_datetime(last.headers["Date"])  # type: ignore[union-attr,index]
            return said.astimezone(UTC) if said.tzinfo else aware(said)  # HTTP has GMT alone
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def post(self, reminder: Reminder, validity: int) -> Answer:
        """Post one text, which Twilio drops when it could not hand it on within so many seconds."""
        s = self._settings
        number, service = s.twilio_from_number, s.twilio_messaging_service_sid
        sender = {"from_": number} if number else {"messaging_service_sid": service}
        text, to, create = message_for(reminder, s), reminder.user.phone, self._client.messages.create
        answer, message = self.ask(lambda: create(to=to, body=text, validity_period=validity, **sender))
        answer = accepted(message) if answer.action is Action.ACCEPT else answer
        if answer.action is Action.UNCERTAIN:  # its own answer may still come, as after 103: it is not the next text's
            self._http.session.close()
        return answer

    def look_up(self, rows: Sequence[Row], brake: Brake, found: dict[str, Message]) -> None:
        """Find the texts of rows with a SID: by the list of each UTC day, and what is missing there by its SID.

        :raises RetryLater: when SETTLE_BUDGET is spent, or Twilio does not answer as it should
        :raises FixFirst: when a person must act first
        :raises Terminated: when SIGTERM came
        """
        until, days = time.monotonic() + SETTLE_BUDGET, {row.sid: row.claimed_at.date() for row in rows if row.sid}
        for question in self._searches(days, found):
            messages = self._messages(question)
            while len(found) < len(days):  # not to the list's end: the account's other texts may go on for very long
                if brake.stopped:
                    raise Terminated("SIGTERM came while texts were looked up")
                if time.monotonic() > until:
                    raise RetryLater("looking up texts takes too long, the rest waits")
                if not (message := next(messages, None)):
                    break
                if (sid := str(message.sid)) in days:
                    status = re.sub("[^a-z_-]", "?", str(message.status))[:32]  # as its column holds it
                    found[sid] = Message(status, message.error_code, message.num_segments)

    def _searches(self, days: Mapping[str, date], found: Collection[str]) -> Iterator[Callable[[], Iterable[Any]]]:
        """The questions that find texts by SID and day; the later ones ask for what is missing by then."""
        number = self._settings.twilio_from_number
        sender: dict[str, Any] = {"from_": number} if number else {}
        for day, ours in sorted(Counter(days.values()).items()):
            most = 3_000 + 20 * ours  # among very many other texts of the account, ours are found sooner by their SIDs
            # Dates go as text: twilio-python would write a datetime with a literal Z.
            yield partial(self._client.messages.stream, date_sent=str(day), page_size=1_000, limit=most, **sender)
        for sid in sorted(days.keys() - found):
            yield lambda sid=sid: [self._client.messages(sid).fetch()]  # type: ignore[misc]

    def _messages(self, question: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """The messages in Twilio's answers to a question, one by one; none of what it does not know."""
        answer, messages = self.ask(lambda: iter(question()))
        while messages:
            answer, message = self.ask(partial(next, messages, None))
            if not message:
                break
            yield message
        if answer.action is not Action.ACCEPT and answer.code != NO_SUCH:
            kind = FixFirst if answer.action is Action.STOP else RetryLater
            raise kind(f"Twilio's list of messages could not be read: {answer.words}{answer.remedy}")

    def find_sender(self) -> Iterator[str]:
        """Look for the sender among the account's, of which Twilio lists any that hold its digits; what hinders that.

        :raises FixFirst: when it is not there
        """
        number, service = self._settings.twilio_from_number, self._settings.twilio_messaging_service_sid
        numbers, short_codes = self._client.incoming_phone_numbers, self._client.short_codes
        if service:
            answer, found = self.ask(self._client.messaging.v1.services(service).fetch)
        elif number.startswith("+"):
            answer, found = self.ask(lambda: [own.phone_number for own in numbers.list(phone_number=number)])
        else:
            answer, found = self.ask(lambda: [own.short_code for own in short_codes.list(short_code=number)])
        if answer.action is not Action.ACCEPT and not (service and answer.code == NO_SUCH):
            yield f"whether the sender is the account's could not be told: {answer.words}{answer.remedy}"
        elif not (found if service else number in found):
            raise FixFirst(f"the account has no sender {number or service}: see its console")

    def ask(self, question: Callable[[], Any]) -> tuple[Answer, Any]:
        """Put a question to Twilio and understand whatever comes back; and what it holds, if it was accepted."""
        try:
            return Answer(Action.ACCEPT), question()
        except Exception as error:  # noqa: BLE001 - around a POST, whatever is not understood is uncertain
            answer = understand(error, self._http.last)
            return replace(answer, words=self._settings.hide(answer.words)), None


def accepted(message: Any) -> Answer:
    """What a message that Twilio made says; it may have failed at once."""
    if not MESSAGE_SID.fullmatch(str(message.sid)):
        return Answer(Action.UNCERTAIN, "Twilio accepted it but named no message")
    code, parts = error_code(message.error_code), column_int(message.num_segments, MOST_SEGMENTS)
    if str(message.status) in NOT_ARRIVED:
        unlisted = Action.FAIL if code in NOT_THE_NUMBERS_FAULT else Action.REFUSE
        action, _ = TWILIO_CODES.get(code or 0, (unlisted, ""))
        return Answer(action, f"Twilio took it, but says {message.status}: {meaning(code)}", code, message.sid, parts)
    return Answer(Action.ACCEPT, sid=message.sid, segments=parts)


def meaning(code: int | None) -> str:
    """What a code of Twilio says, with the page that says more."""
    if not code:
        return "no reason given"
    return f"{MEANINGS.get(code, 'see there')}, error {code}, https://www.twilio.com/docs/api/errors/{code}"


def column_int(value: object, most: int) -> int | None:
    """A number that fits into its column of the ledger; None for anything else."""
    text = str(value)
    return int(text) if re.fullmatch("[0-9]{1,9}", text) and int(text) <= most else None


def error_code(value: object) -> int | None:
    """A code of Twilio's; None for anything else."""
    code = column_int(value, 999_999)
    return code if code and code >= SMALLEST_CODE else None


def understand(error: Exception, response: Response | None) -> Answer:
    """What a failed request asks for, from the exception and, when there was one, the response.

    Only Twilio's own refusal proves that nothing was sent: a proxy can block the answer to a text that was.
    """
    if response is None:
        return unanswered(error)
    status = response.status_code
    body = refusal(response)
    if body is None:
        what = "an answer that is not Twilio's, or a broken one" if status < 500 else "Twilio, or a proxy, failed"
        kind = CONTENT_TYPE.match((response.headers or {}).get("Content-Type", ""))
        return Answer(Action.UNCERTAIN, f"{what} (HTTP {status}, {kind[0] if kind else 'no content type'})")
    code = int(body["code"])
    said = quoted(body.get("detail") or body.get("message") or body.get("title"))
    unknown = Action.FAIL, f"Twilio answered HTTP {status} {said}".rstrip()
    by_status = HTTP_STATUSES.get(status) if code not in OF_ONE_TEXT or status in (408, 429) else None
    action, words = TWILIO_CODES.get(code) or by_status or unknown
    link = f"{words} (error {code}, https://www.twilio.com/docs/api/errors/{code})"
    if said and action is Action.STOP:  # 20003 and 70051 have several meanings
        link += f": {said}"
    return Answer(action, link, error_code(code), retry_after=retry_after(response))


def refusal(response: Response) -> dict[str, Any] | None:
    """The body of a 4xx that is Twilio's, in its own form or in that of RFC 9457; None when it is not."""
    try:
        body = json.loads(response.text)
    except (ValueError, RecursionError):
        return None
    if not 400 <= response.status_code < 500 or not isinstance(body, dict):
        return None
    code, status = body.get("code"), body.get("status")
    twilios = isinstance(code, int) and code >= SMALLEST_CODE and status == response.status_code
    return body if twilios else None


def retry_after(response: Response) -> float | None:
    """The seconds that Retry-After asks for (RFC 9110, 10.2.3: a number of seconds, or a date); None when absent."""
    try:
        return urllib3.util.Retry().parse_retry_after((response.headers or {}).get("Retry-After", ""))
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def unanswered(error: Exception) -> Answer:
    """What a request without an answer asks for.

    Only what never connected was surely not sent. Any other TLS error, time-out or cut connection can come after the
    whole request.
    """
    inner = error.args[0] if error.args else None
    reason = getattr(inner, "reason", None)
    reason = getattr(reason, "original_error", reason)  # what urllib3 calls a failed proxy may be a lost answer
    if isinstance(reason, urllib3.exceptions.SSLError):
        reason = reason.args[0]
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Answer(Action.STOP, NO_TRUST % reason.verify_message)
    tunnel = re.match(r"Tunnel connection failed: ([0-9]+)", str(reason))
    if (tunnel and tunnel[1] in ("401", "407")) or isinstance(error, UNUSABLE):
        return Answer(Action.STOP, PROXY)
    unread = isinstance(reason, PermissionError) or getattr(reason, "library", None) == "X509"
    if unread or (type(error) is OSError and error.errno is None):
        return Answer(Action.STOP, "REQUESTS_CA_BUNDLE names no file of certificates that can be read: correct it")
    never_connected = urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError
    proxy = getattr(getattr(inner, "pool", None), "proxy", None)
    untunnelled = proxy and getattr(inner, "url", None) == proxy.url  # else a time-out has the request's own
    said = f"({tunnel[0] if tunnel else f'{type(error).__name__}: {quoted(cause(error))}'})"
    if tunnel or untunnelled or isinstance(reason, never_connected):
        return Answer(Action.UNREACHED, f"Twilio cannot be reached {said}: check DNS, the proxy and the NetworkPolicy")
    return Answer(Action.UNCERTAIN, f"no answer from Twilio {said}")


def cause(error: Exception) -> str:
    """The innermost cause of an exception of requests."""
    inner: object = error
    while isinstance(inner, Exception):
        outer, inner = inner, getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
    return clean(outer)


class Pause:
    """Where all threads wait while Twilio asks for patience: one pause for all, within PAUSE_BUDGET."""

    def __init__(self, brake: Brake) -> None:
        self._brake = brake
        self._lock = threading.Lock()
        self._ends, self._spent, self._doublings = 0.0, 0.0, 0

    def wait(self) -> bool:
        """Wait until texts may be posted; False when the run ends instead."""
        while not self._brake.pulled and (left := self._ends - time.monotonic()) > 0:
            self._brake.sleep(left)
        return not self._brake.pulled

    def begin(self, answer: Answer) -> None:
        """Hold everybody for as long as Twilio says, else for twice as long as the last time, with jitter."""
        with self._lock:
            now, asked = time.monotonic(), answer.retry_after
            if now < self._ends and (asked is None or now + asked <= self._ends):
                return  # posted before the pause began
            pause = max(1.0, min(2.0**self._doublings, LONGEST_PAUSE) if asked is None else asked)
            ends = max(self._ends, now + pause * random.uniform(1.0, 1.2))  # noqa: S311 - jitter
            self._spent += ends - max(self._ends, now)
            self._doublings, self._ends = min(self._doublings + 1, 10), ends
            log.warning("All texts wait for %.0f s: %s", ends - now, answer.words)
            if self._spent > PAUSE_BUDGET:
                words = f"Twilio asks for more than the {PAUSE_BUDGET:g} s that a run may wait, the last time"
                self._brake.pull(RetryLater(f"{words}: {answer.words}"))

    def relax(self) -> None:
        """Start over with short pauses, after a text that got through."""
        self._doublings = 0


class Sender:
    """Posts texts from SEND_CONCURRENCY threads. Nobody waits for one that hangs: the process ends by `os._exit`."""

    def __init__(self, twilio: Twilio, brake: Brake, settings: Settings, clock: Clock) -> None:
        self._twilio, self._brake, self._settings, self._clock = twilio, brake, settings, clock
        self._pause = Pause(brake)
        self._pool = ThreadPoolExecutor(settings.send_concurrency)
        self._flying: dict[Future[Answer], Reminder] = {}
        self.clock_error = timedelta()  # between this node's clock and Twilio's, within CLOCK_TOLERANCE

    @property
    def room(self) -> int:
        """How many more texts may be claimed: some ahead, for the threads to go on while the database answers."""
        threads = self._settings.send_concurrency
        return threads + threads // 2 - len(self._flying)

    @property
    def busy(self) -> bool:
        """Whether a text is in flight."""
        return bool(self._flying)

    def submit(self, reminder: Reminder) -> None:
        self._flying[self._pool.submit(self._work, reminder)] = reminder

    def answers(self, timeout: float) -> dict[Reminder, Answer]:
        """What came back, waiting up to the timeout (seconds) for a first one.

        What is in flight for too long after SIGTERM or the deadline is uncertain.
        """
        done, _ = wait(self._flying, timeout, FIRST_COMPLETED)
        found = {self._flying.pop(future): future.result() for future in done}
        if self._brake.overdue:
            found |= {r: NOT_POSTED if future.cancel() else GIVEN_UP for future, r in self._flying.items()}
            self._flying.clear()
        return found

    def _work(self, reminder: Reminder) -> Answer:
        try:
            return self._send(reminder)
        except Exception:
            log.critical("A fault of the program, please report it", exc_info=True)
            self._brake.pull(RetryLater(OUR_FAULT))
            return Answer(Action.UNCERTAIN, "the program failed")

    def _send(self, reminder: Reminder) -> Answer:
        while self._pause.wait():
            if (validity := self._validity(reminder)) is None:
                return Answer(Action.WITHHELD, "its local day is over, or this node's clock is too wrong to tell")
            if validity < SMALLEST_VALIDITY:
                return Answer(Action.LATER, "SEND_WINDOW has closed there")
            answer = self._twilio.post(reminder, validity)
            if answer.action is Action.STOP:
                self._brake.pull(FixFirst(f"Twilio: {answer.words}"))
            if answer.action is Action.ACCEPT:
                self._pause.relax()
            if answer.action is not Action.PAUSE:
                return answer
            self._pause.begin(answer)
        return NOT_POSTED

    def _validity(self, reminder: Reminder) -> int | None:
        """The seconds for which the text may wait at Twilio; None when its local day is over: pauses can be long."""
        s, now, days = self._settings, self._clock(), reminder.days
        left = seconds_left(s.send_window, now, days.zone) if s.send_window else s.validity_period
        moments = now - self.clock_error, now + self.clock_error
        if left and {days_of(at, days.zone, s.day_starts_at).today for at in moments} != {days.today}:
            return None
        return min(s.validity_period, int(left))


# --- MySQL ------------------------------------------------------------------------------------------------------------

FIRST_PAGE, PAGE_USERS = 1_000, 5_000  # users judged by one query: by the first one, and at most
READERS = 2  # pages that are read at the same time
PAGE_SECONDS = 1.0  # a page that took less is followed by one of twice the users
IN_LIST = 500  # ids in one IN (...): from 1,000 on MariaDB turns the list into a subquery
KEYS = 500  # ledger rows that one statement deletes or changes
NEWEST_LOGS = 10_000  # by id: enough to find one of the last days, also where ids are random
MANY = 100  # users, who don't all stop logging at once
DATABASE_CONNECT_TIMEOUT = 5  # seconds
DATABASE_TIMEOUT, DATABASE_LIMIT = 10, 8  # seconds for one statement, until we give it up and until its server does
DATABASE_PATIENCE = 180.0  # seconds in which a lost database may come back when somebody is claimed: a failover's
LATE_PATIENCE = 30.0  # after the deadline, when somebody is claimed
DATABASE_MEMORY = 25_000  # rows that a new connection writes again: a replica that was promoted may lack the last ones
LAST_TIMEOUT, LAST_LIMIT, LAST_PATIENCE = 3, 2, 1.0  # after SIGTERM


class Remedy(Enum):
    """What to do about an error of MySQL."""

    REPEAT = auto()  # the statement
    RECONNECT = auto()  # and repeat the statement
    SWITCH_OVER = auto()  # reconnect if this server could be written before; else a person must act
    SMALLER = auto()  # ask for less
    RERUN = auto()  # later
    FIX = auto()  # by a person


READ_ONLY = "it is read-only: set DB_HOST to the primary"
SWITCHED_OVER = "it turned read-only, as in a switch-over: DB_HOST must lead to the new primary"
TOO_SLOW = (
    "a statement took too long: is a table locked, or Log without index (habit_id, created_at), or Habit without "
    "(user_id)? See DEPLOYMENT.md"
)
LEDGERS_OWN = "the table's own CHECK or partitions refuse a row: take them off the ledger HabitNotification"
COLLATIONS = "columns that refer to each other have different collations: ALTER one of them to the other's"
REFUSED_ACCOUNT = (
    "it refused DB_USER or DB_PASSWORD: correct them in the Secret, or let the account in from the host it names, "
    "without REQUIRE X509, or SSL where the server has none"
)
WRONG_PASSWORDS = "it blocks DB_USER after wrong passwords: correct DB_PASSWORD, then ALTER USER ... ACCOUNT UNLOCK"
AUTHENTICATION = "it wants a log-in this program lacks: use caching_sha2_password, in MariaDB mysql_native_password"
MISSING_TABLE = "a table is missing (names are case-sensitive on Linux): check DB_NAME and the schema"
DAMAGED = "a table is damaged, or its file is gone: CHECK TABLE there, or restore it from a backup"
SIGNAL = 1644
MYSQL_ERRORS: dict[int, tuple[Remedy, str]] = {
    -3: (Remedy.FIX, "an id in User, or a column of the ledger, holds bytes that are no UTF-8: correct it"),
    -2: (Remedy.FIX, "what answers is not a MySQL server that this program can talk to: check DB_HOST and DB_PORT"),
    -1: (Remedy.RECONNECT, "what answers is not MySQL: check DB_HOST and DB_PORT"),
    **dict.fromkeys((0, 1152, 1158, 1159, 1160, 1161, 2006), (Remedy.RECONNECT, "the connection was lost")),
    **dict.fromkeys((1036, 1290, 1836, 1874, 3989), (Remedy.SWITCH_OVER, READ_ONLY)),
    **dict.fromkeys((3, 1021, 1026, 1114), (Remedy.RERUN, "its disk is full, or a table's space: make room there")),
    1040: (Remedy.RECONNECT, "it has too many connections: raise max_connections or run at a quieter time"),
    1044: (Remedy.FIX, "DB_USER may not use the database DB_NAME: check the name and grants, or SET DEFAULT ROLE"),
    1045: (Remedy.FIX, REFUSED_ACCOUNT),
    1047: (Remedy.RECONNECT, "its Galera node is not ready: see its wsrep_cluster_status"),
    **dict.fromkeys((130, 1017, 1034, 1194, 1195, 1812, 1814, 1932), (Remedy.FIX, DAMAGED)),
    **dict.fromkeys((1049, 1059, 1102), (Remedy.FIX, "it has no database of the name DB_NAME: correct the name")),
    1053: (Remedy.RECONNECT, "it is shutting down"),
    1054: (Remedy.FIX, "a column is missing: the tables must be as docs/your-tables.md has them"),
    **dict.fromkeys((1071, 1170), (Remedy.FIX, "User.id is too long for a key: see docs/your-tables.md")),
    1104: (Remedy.FIX, "it limits joins (sql_big_selects, max_join_size): lift the limit for DB_USER"),
    1129: (Remedy.FIX, "it blocks this host after too many failed connections: FLUSH HOSTS there"),
    1130: (Remedy.FIX, "it lets DB_USER in from other hosts only: give the account this host, or '%'"),
    1142: (Remedy.FIX, "DB_USER lacks a grant on this table: see the grants in DEPLOYMENT.md"),
    1143: (Remedy.FIX, "DB_USER lacks a grant on this column: see the grants in DEPLOYMENT.md"),
    **dict.fromkeys((1109, 1146), (Remedy.FIX, MISSING_TABLE)),
    1153: (Remedy.FIX, "it takes too small statements: raise max_allowed_packet there, to 1 MB at least"),
    1175: (Remedy.FIX, "it wants a key in every change (sql_safe_updates): switch that off for DB_USER"),
    1180: (Remedy.REPEAT, "it could not commit"),
    1184: (Remedy.FIX, "its init_connect fails for DB_USER: correct it there"),
    1203: (Remedy.RECONNECT, "the account has too many connections: raise max_user_connections"),
    1205: (Remedy.SMALLER, "another transaction holds a lock, or a backup locks the table: see SHOW PROCESSLIST"),
    1213: (Remedy.REPEAT, "a deadlock"),
    1226: (Remedy.RECONNECT, "the account may have no more connections, or statements in this hour: raise its limits"),
    1242: (Remedy.FIX, "a view asks for one value where there are several: see docs/your-tables.md"),
    **dict.fromkeys((1251, 1275, 1524, 2059, 2061), (Remedy.FIX, AUTHENTICATION)),
    **dict.fromkeys((1267, 1270, 1271), (Remedy.FIX, COLLATIONS)),
    1317: (Remedy.REPEAT, "the statement was interrupted"),
    1356: (Remedy.FIX, "a view refers to what is missing, or its definer may not read it: see docs/your-tables.md"),
    1370: (Remedy.FIX, "a view calls a function that DB_USER may not execute: see docs/your-tables.md"),
    1411: (Remedy.FIX, "a view hands a function a value that it cannot read: see docs/your-tables.md"),
    1449: (Remedy.FIX, "the account that defined a view is gone: define the view anew, see docs/your-tables.md"),
    1525: (Remedy.FIX, "a view compares a date with a text that is none: see docs/your-tables.md"),
    **dict.fromkeys((1526, 3819, 4025), (Remedy.FIX, LEDGERS_OWN)),
    1665: (Remedy.FIX, "its binary log takes no such statements: SET GLOBAL binlog_format = 'MIXED'"),
    SIGNAL: (Remedy.FIX, "a trigger, or a function that a view calls, refuses; why, it says itself"),
    1690: (Remedy.FIX, "a view computes a number out of its type's range: see docs/your-tables.md"),
    1698: (Remedy.FIX, "it refused DB_USER, which may only log in by a socket: use an account with a password"),
    1792: (Remedy.SWITCH_OVER, f"{READ_ONLY}, or lift transaction_read_only for DB_USER"),
    **dict.fromkeys((1820, 1862), (Remedy.FIX, "the password of DB_USER has expired: give the account a new one")),
    **dict.fromkeys((1927, 3169), (Remedy.RECONNECT, "the connection was killed")),
    **dict.fromkeys((1969, 3024), (Remedy.SMALLER, TOO_SLOW)),
    2003: (Remedy.RECONNECT, "it cannot be reached: check DB_HOST, DB_PORT, the server and the NetworkPolicy"),
    2013: (Remedy.RECONNECT, "the connection was lost, or it did not answer in time"),
    2026: (Remedy.FIX, "it offers no TLS: switch it on there, or remove DB_SSL_CA"),
    3032: (Remedy.RECONNECT, "it is in offline mode"),
    3100: (Remedy.REPEAT, "its group did not take the statement"),
    3101: (Remedy.REPEAT, "its group rolled the statement back"),
    **dict.fromkeys((3118, 4151), (Remedy.FIX, "the account DB_USER is locked: ALTER USER ... ACCOUNT UNLOCK")),
    **dict.fromkeys((3141, 3144, 3146, 4038), (Remedy.FIX, "a view reads JSON that is none: see docs/your-tables.md")),
    **dict.fromkeys(range(3685, 3698), (Remedy.FIX, "a view has a wrong regular expression: correct it there")),
    3159: (Remedy.FIX, "it insists on TLS: set DB_SSL_CA"),
    **dict.fromkeys((3955, 4150), (Remedy.FIX, WRONG_PASSWORDS)),
    4031: (Remedy.RECONNECT, "the connection was idle for too long"),
    **dict.fromkeys((9001, 9501), (Remedy.RECONNECT, "its proxy reaches no server in time")),
    9006: (Remedy.FIX, "its proxy reads elsewhere than it writes: set DB_HOST to the primary, or let it do both there"),
}
SILENT = {0, 1411, 1525, 1690, 1698, 3118, 3141, 4038, 4151}  # what the server says of these is a value, or no help
NO_SUCH_TABLE = 1146
NO_GRANT = {1044, 1142}
NO_SUCH_GRANT_OR_TABLE = {1142, NO_SUCH_TABLE}
ODD_ERRORS = (ValueError, AttributeError, struct.error, RuntimeError, IndexError, AssertionError)  # of the driver


class DatabaseError(NotifierError):
    """An error of MySQL, understood by its number and by when it came."""

    def __init__(self, error: Exception, hide: Callable[[str], str], *, connected: bool, written: bool) -> None:
        self.number = number_of(error)
        if connected and self.number == 1045:  # so both tell all but administrators of a view's missing definer
            self.number = 1449
        self.remedy, words = MYSQL_ERRORS.get(self.number, (Remedy.RERUN, "it refused a statement"))
        inner = getattr(error, "original_exception", None)
        if isinstance(inner, ssl.SSLCertVerificationError):
            self.remedy, words = Remedy.FIX, "DB_SSL_CA does not vouch for its certificate and for the name DB_HOST"
        elif isinstance(inner, socket.gaierror):
            policy = " and the NetworkPolicy" if inner.errno == socket.EAI_AGAIN else ""  # nobody answers
            words = f"the name DB_HOST does not resolve: check it, and the cluster's DNS{policy}"
        elif self.number == 2013 and not (connected or written):  # it never said hello
            words = "what answers does not speak like MySQL, or not in time: check DB_HOST, DB_PORT and the server"
        if self.remedy is Remedy.SWITCH_OVER:
            self.remedy, words = (Remedy.RECONNECT, SWITCHED_OVER) if written else (Remedy.FIX, words)
        known = self.number in MYSQL_ERRORS and self.number != SIGNAL
        quote = clean if known else quoted  # the words of others may hold a value
        said = "" if self.number in SILENT else f": {quote(error.args[-1] if error.args else error)}"
        self.exit_code = Exit.ACT if self.remedy is Remedy.FIX else Exit.RETRY
        self.may_pass = self.remedy in (Remedy.RECONNECT, Remedy.SMALLER)  # a table may be locked for a while
        super().__init__(hide(f"MySQL: {words} (error {self.number}{said})"))


def number_of(error: Exception) -> int:
    """The number of an error of MySQL; one below 0 for what the driver raises besides."""
    if isinstance(error, UnicodeDecodeError):
        return -3
    if isinstance(error, RuntimeError | AttributeError):  # PyMySQL lacks a package, or does not know the method
        return 2059
    if isinstance(error, ODD_ERRORS):
        return -2
    return error.args[0] if error.args and isinstance(error.args[0], int) else -1


def refuse_clear_password(_connection: object) -> None:
    """Stands in for the plugin that sends the password itself: without verified TLS, anybody who answers would get it.

    :raises pymysql.err.OperationalError: always
    """
    raise pymysql.err.OperationalError(2059, "it asks for the password in clear text: set DB_SSL_CA")


# The server ends what we no longer wait for: else a claim that waits for a lock might be made after the run, and stay.
# MySQL has one name for a statement's limit, which concerns queries alone, and MariaDB another. The wait for a locked
# row has a limit of its own, which is shorter.
STATEMENT_LIMIT = (
    ", lock_wait_timeout = {0}, innodb_lock_wait_timeout = {1}"
    " /*!50708 , max_execution_time = {0}000 */ /*M!100101 , max_statement_time = {0} */"
)


class Database(AbstractContextManager["Database"]):
    """One connection to MySQL, made anew when it is lost. Belongs to one thread at a time.

    Every statement may be repeated after a lost answer. A new connection first writes again what the old server may
    have lost (`on_connect`). When it stays away the run ends, and Job.record_last says what could not be recorded.
    """

    def __init__(self, settings: Settings, brake: Brake) -> None:
        self._settings, self.brake = settings, brake
        self.as_of: datetime | None = None  # --now: later logs and rows do not exist yet
        self.opened = False  # all is there and could be written: what fails now may pass
        self.somebody_claimed = False
        self._connection: pymysql.Connection[Any] | None = None
        self._fresh = False
        self._others: list[Database] = []
        self.on_connect: Callable[[], Iterable[tuple[str, Sequence[object]]]] = list  # its first statements

    def __exit__(self, *_error: object) -> None:
        for other in self._others:  # in their threads they may wait for an answer, which closing would wait for, too
            with suppress(Exception):
                other._connection._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        self.close()

    def beside(self) -> Database:
        """One more connection, to read ahead in another thread: never opened, so not patient. It ends with this one."""
        self._others.append(Database(self._settings, self.brake))
        return self._others[-1]

    def run(self, sql: str, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; repeat it, or reconnect and repeat it, as MYSQL_ERRORS says.

        :raises DatabaseError: when that does not help, or not in time
        """
        start, pauses = time.monotonic(), chain((0.0, 0.2, 0.5, 1.0, 2.0), repeat(4.0))
        while True:
            try:
                return self._run_once(sql, args)
            except (pymysql.err.MySQLError, *ODD_ERRORS) as error:
                connected = self._connection is not None
                failure = DatabaseError(error, self._settings.hide, connected=connected, written=self.opened)
            if failure.remedy not in (Remedy.REPEAT, Remedy.SMALLER):
                self.close()
            pause = next(pauses)
            waits = {Remedy.RECONNECT} if sql.startswith("SELECT") else {Remedy.RECONNECT, Remedy.SMALLER}  # for a lock
            helps = failure.remedy is Remedy.REPEAT or (failure.remedy in waits and self.opened)
            if not helps or time.monotonic() + pause > start + self._patience:
                raise failure
            log.log(logging.WARNING if pause else logging.DEBUG, "Once more in %.1f s: %s", pause, failure)
            sleep(pause * random.uniform(0.8, 1.2), lambda: self.brake.stopped)  # noqa: S311 - jitter

    @property
    def _patience(self) -> float:
        """The seconds in which a lost server may come back: what was posted is known to this run alone until then."""
        if self.brake.stopped or (self.brake.late and not self.somebody_claimed):
            return LAST_PATIENCE
        if self.brake.late:
            return LATE_PATIENCE
        return DATABASE_PATIENCE if self.somebody_claimed else OUTAGE_PATIENCE

    def _connect(self) -> pymysql.Connection[Any]:
        s, last = self._settings, self.brake.stopped
        timeout, limit = (LAST_TIMEOUT, LAST_LIMIT) if last else (DATABASE_TIMEOUT, DATABASE_LIMIT)
        tls: dict[str, Any] = {"ssl_ca": s.db_ssl_ca, "ssl_verify_cert": True, "ssl_verify_identity": True}
        if not s.db_ssl_ca:
            tls = {"auth_plugin_map": dict.fromkeys(("mysql_clear_password", "dialog"), refuse_clear_password)}
        return pymysql.connect(
            host=s.db_host.rstrip(".") if s.db_ssl_ca else s.db_host,  # certificates leave the last dot out
            port=s.db_port,
            user=s.db_user,
            password=s.db_password.encode(),  # of a str PyMySQL makes Latin-1, but MySQL expects UTF-8
            database=s.db_name,
            charset="utf8mb4",
            autocommit=True,  # is sent only if the greeting denies it; MySQL's never does, so it stands below, too
            connect_timeout=DATABASE_CONNECT_TIMEOUT,
            read_timeout=timeout,
            write_timeout=timeout,
            init_command="SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES', autocommit = 1"
            ", sql_select_limit = 18446744073709551615" + STATEMENT_LIMIT.format(limit, limit // 2),
            **tls,
        )

    def close(self) -> None:
        if self._connection is not None:
            with suppress(Exception):  # it may be lost already
                self._connection.close()
            self._connection = None

    def _run_once(self, sql: str, args: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection, self._fresh = self._connect(), True
        if self._fresh:
            for statement in self.on_connect():
                self._execute(*statement)
            self._fresh = False
        return self._execute(sql, args)

    def _execute(self, sql: str, args: Sequence[object]) -> list[tuple[Any, ...]]:
        assert self._connection is not None  # noqa: S101 - for the type checker
        with self._connection.cursor() as cursor:
            cursor.execute(sql, tuple(args) or None)  # without arguments, % stands for itself
            return list(cursor.fetchall())

    def type_of(self, table: str, column: str) -> str:
        """The full type of a column, as a CREATE TABLE writes it."""
        [(_, kind, collation, *_)] = self.run(f"SHOW FULL COLUMNS FROM `{table}` WHERE Field = %s", [column])
        return f"{kind} COLLATE {collation}" if collation else str(kind)


# --- the habit tracker's tables, which are only read ------------------------------------------------------------------

HAS_PHONE = "TRIM(u.phone_number) <> ''"  # NULL is not true either
ZONE_KEY = "COALESCE(CAST(u.time_zone AS BINARY), '')"  # as it is stored: a collation folds case and trailing blanks
LOGGED = """EXISTS (SELECT 1 FROM `Habit` h STRAIGHT_JOIN `Log` l ON l.habit_id = h.id
    WHERE h.user_id = u.id AND l.created_at >= z.{start} AND l.created_at < z.{end})"""
# Two conditions: whom to read, and whether they logged on day 1. Without a known zone everybody is read.
DUE = f"NOT {LOGGED.format(start='day2', end='ends')}", LOGGED.format(start="day1", end="day2")
ANYBODY = "TRUE", DUE[1]


def as_text(column: str) -> str:
    """A column's text as UTF-8 bytes, which may hold some that are no UTF-8: to be decoded by us."""
    return f"CAST(CONVERT({column} USING utf8mb4) AS BINARY)"


class Zone(NamedTuple):
    """A time zone as it is stored, its name as people mean it, and how many users have it."""

    key: bytes
    name: str
    users: int


Slice = tuple[UserId | None, UserId, int]  # users to be read: bounds (low, high] of their ids, how many have a phone


class Page(NamedTuple):
    """Some users: how many, those who are due or whose days cannot be told, and ids whose logs could not be read."""

    users_in_all: int
    users: Sequence[User] = ()
    unread: Sequence[UserId] = ()
    last: bool = False


class Tracker:
    """The habit tracker's tables, which are only read. Any method may raise DatabaseError."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._users = f"{HAS_PHONE} AND {of_this_shard('u.id', settings)}"
        self._dates = self._binary_ids = False  # what Log.created_at and User.id are
        self._days: Mapping[bytes, Days] = {}
        self._zones, self._rows_matter, self._whom = "", "FALSE", DUE  # SQL: a table, a condition, two of them
        self._ahead: deque[tuple[UserId | None, UserId | None, int]] = deque()  # ids still to be read, how many at most
        self._size = 0  # of the next page

    def open(self) -> None:
        """Connect, and check what is read.

        :raises FixFirst: when a table, a column or a type is not as needed
        """
        self._database.run("SELECT 1")
        log.info("Database connection established")
        if not self._settings.db_ssl_ca:
            log.info("MySQL's server is not verified: DB_SSL_CA would do that")
        self.judge_by({}, datetime.now(UTC))
        self._read(self._database, DUE, f"FALSE AND {self._users}")  # finds what is missing, or wrong
        self._database.run("SELECT id FROM `Log` LIMIT 0")  # by which the newest logs are found
        created_at = self._database.type_of("Log", "created_at")
        if not created_at.startswith(("date", "timestamp")):
            raise FixFirst(f"Log.created_at is {created_at}: it must be a TIMESTAMP or a DATETIME in UTC, or a DATE")
        self._dates, self._binary_ids = created_at == "date", "binary" in self._database.type_of("User", "id")

    def doubts(self) -> Iterator[str]:
        """What works, but not well."""
        [(durable,)] = self._database.run("SELECT @@innodb_flush_log_at_trx_commit")
        if durable != 1:
            yield (
                f"innodb_flush_log_at_trx_commit is {durable}: a crash of the server can lose the ledger's last second "
                "and so lead to a second text. SET GLOBAL innodb_flush_log_at_trx_commit = 1"
            )
        kind = "SELECT table_type FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s"
        for parent, table, column, *more in (("User", "Habit", "user_id"), ("Habit", "Log", "habit_id", "created_at")):
            indexed = f"SHOW INDEX FROM `{table}` WHERE Seq_in_index = 1 AND Column_name = %s"
            index = f"CREATE INDEX notifier ON `{self._settings.db_name}`.`{table}` ({', '.join([column, *more])});"
            if self._database.run(kind, [table]) == [("BASE TABLE",)] and not self._database.run(indexed, [column]):
                yield f"no index of {table} begins with {column}: {index}"
            refers, ids = self._database.type_of(table, column), self._database.type_of(parent, "id")
            if compared_as(refers) != compared_as(ids):
                what = f"{table}.{column} is {refers}, {parent}.id {ids}"
                yield f"{what}: logs may be taken for another's. ALTER one of them"

    def default_doubts(self) -> Iterator[str]:
        """Whether the server itself fills in local times; west of UTC no log would look odd."""
        sql = """SELECT @@GLOBAL.time_zone FROM information_schema.columns
            WHERE table_schema = DATABASE() AND table_name = 'Log' AND column_name = 'created_at'
                AND data_type = 'datetime' AND LOWER(column_default) REGEXP 'current_timestamp|now'
                AND CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', @@GLOBAL.time_zone) <> UTC_TIMESTAMP()"""
        for (zone,) in self._database.run(sql):
            yield (
                f"Log.created_at is filled in this server's time_zone ({zone}), not in UTC, where it is left out: let "
                "what writes logs SET time_zone = '+00:00', or see docs/your-tables.md"
            )

    def log_doubts(self, limit: datetime, users: int) -> Iterator[str]:
        """Whether logs carry the wall time of a zone ahead of UTC, and whether anybody logs any more."""
        bound: object = (limit + EARLIEST_ZONE).date() if self._dates else naive(limit)
        try:
            count, newest, ahead, people, past = self._newest_logs(bound)
        except DatabaseError as failure:
            if failure.remedy is not Remedy.SMALLER:
                raise
            yield f"the newest logs could not be read: {failure}"
            return
        # Somebody's phone may be ahead; a server's zone is by 14 hours at most, and concerns everybody.
        if people >= FEW or (0 < min(FEW, count) <= ahead and newest - bound < EARLIEST_ZONE):
            yield (
                f"{ahead} of the newest logs are still to come, the last of {newest} UTC: "
                "Log.created_at must be in UTC. Does a server with another time_zone fill a DATETIME? Until that is "
                "mended, days are judged wrongly"
            )
        first_days = (bounds_of(days, dates=self._dates)[0] for days in self._days.values())
        newest = past or newest  # one log of a clock that is ahead says nothing of the last days
        dated = isinstance(newest, date)  # else there is none, or it is a zero date
        if users >= MANY and (not dated or newest < min(first_days, default=newest)):
            yield "there is no log of the last days at all: is what writes them broken? MAX_TEXTS guards against that"

    def _newest_logs(self, bound: object) -> tuple[Any, ...]:
        """What can be said of the logs that were inserted last, as far as their ids tell.

        How many and the latest; of those after the bound how many, and of how many people; the latest of the others.
        """
        sql = f"""SELECT COUNT(*), MAX(created_at), COUNT(IF(ahead, 1, NULL)),
                COUNT(DISTINCT IF(ahead, (SELECT user_id FROM `Habit` WHERE id = l.habit_id), NULL)),
                MAX(IF(ahead, NULL, created_at))
            FROM (SELECT habit_id, created_at, created_at > %s AS ahead
                FROM `Log` ORDER BY id DESC LIMIT {NEWEST_LOGS}) l"""
        return self._database.run(sql, [bound])[0]

    def zones(self) -> list[Zone]:
        """The zones that this run's users with a phone number have."""
        sql = f"""SELECT {ZONE_KEY}, {as_text("MIN(u.time_zone)")}, COUNT(*)
            FROM `User` u WHERE {self._users} GROUP BY 1"""
        return [Zone(key, zone_name(name), users) for key, name, users in self._database.run(sql)]

    def named(self, ids: Iterable[str]) -> dict[str, User]:
        """Users by their ids as ONLY_USERS names them; a phone number they need not have."""
        spelt = list(chain.from_iterable(map(self._spellings, ids)))
        these = f"({' OR '.join(['u.id = %s'] * len(spelt))})"  # IN may convert bytes
        found = self._read(self._database, ("TRUE", "FALSE"), these, spelt)  # nothing of their logs, however many
        return {id_key(user.id): user for user in found}

    def judge_by(self, days: Mapping[bytes, Days], now: datetime, rows_matter: str = "FALSE") -> None:
        """Judge users by these days of their zones, at this instant; whose rows matter, `Ledger.rows_matter` says."""
        self._days, self._rows_matter = days, rows_matter
        self._zones = zones_table(days, now, dates=self._dates)

    def pages(self, total: int, whom: tuple[str, str] = DUE) -> Iterator[Page]:
        """This run's users with a phone number: those who are due, and those whose days cannot be told; or anybody.

        Of a total it starts at another user each time, so that a deadline does not starve the same people day after
        day; without one at the first. While a page is at work the next ones are read, each on a connection of its own.
        """
        self._whom = whom
        one = f"SELECT u.id FROM `User` u WHERE {self._users} ORDER BY u.id LIMIT 1 OFFSET %s"
        middle = self._database.run(one, [random.randrange(total)]) if total else []  # noqa: S311 - no secret
        ranges = [(middle[0][0], None), (None, middle[0][0])] if middle else [(None, None)]
        self._ahead, self._size = deque((low, through, PAGE_USERS) for low, through in ranges), FIRST_PAGE
        coming = deque(chain.from_iterable(self._read_next(self._database.beside()) for _ in range(READERS)))
        while coming:
            reader, slice_, reading = coming.popleft()
            try:
                page = reading.result()
            except DatabaseError:  # our own connection has the patience, and tells what is wrong
                page = self._page(self._database, *slice_)
            try:
                coming.extend(self._read_next(reader))
            except DatabaseError:
                yield page
                raise
            yield page._replace(last=not coming)

    def _read_next(self, reader: Database) -> Iterator[tuple[Database, Slice, Future[Page]]]:
        """Begin to read one more page; without one, the reader has done its work."""
        if slice_ := self._slice():
            yield reader, slice_, in_background(partial(self._page, reader, *slice_))
        else:
            reader.close()

    def _slice(self) -> Slice | None:
        """The next users that are still to be read."""
        while self._ahead:
            low, through, most = self._ahead.popleft()
            these, args = id_range(low, through)
            size = min(self._size, most)
            sql = f"""SELECT COUNT(*), MAX(id) FROM
                (SELECT u.id FROM `User` u WHERE {these} AND {self._users} ORDER BY u.id LIMIT {size}) slice"""
            [(count, high)] = self._database.run(sql, args)
            if count == size:  # there may be more
                self._ahead.appendleft((high, through, most))
            if count:
                return low, high, count
        return None

    def _page(self, reader: Database, low: UserId | None, high: UserId, count: int) -> Page:
        """Read one page; if that takes too long, put its ids back, to be read fewer at a time."""
        began = time.monotonic()
        try:
            these, args = id_range(low, high)
            users = self._read(reader, self._whom, f"{these} AND {self._users}", args)
        except DatabaseError as failure:
            if failure.remedy is not Remedy.SMALLER:
                raise
            if count == 1:
                return Page(1, unread=[high])
            self._size = half = count // 2
            log.info("A page of %d users takes too long: asking for %d", count, half)
            self._ahead.appendleft((low, high, half))
            return Page(0)
        if time.monotonic() - began < PAGE_SECONDS:
            self._size = min(self._size * 2, PAGE_USERS)
        return Page(count, users)

    def _read(self, reader: Database, whom: tuple[str, str], where: str, args: Sequence[object] = ()) -> list[User]:
        """The users for whom a condition holds, in the order of their ids."""
        are_meant, logged_day1 = whom
        sql = f"""SELECT u.id, {as_text("u.name")}, {as_text("u.phone_number")}, {as_text("u.time_zone")}, z.zone,
                {logged_day1}, {self._rows_matter}
            FROM `User` u LEFT JOIN ({self._zones}) z ON z.zone = {ZONE_KEY}
            WHERE {where} AND {are_meant} ORDER BY u.id"""
        return [
            User(user_id, shown_name(name), phone_number(phone), zone_name(zone), self._days.get(key), *map(bool, rest))
            for user_id, name, phone, zone, key, *rest in reader.run(sql, args)
        ]

    def _spellings(self, text: str) -> list[UserId]:
        """An id that a person wrote, as its column may hold it: as bytes, what an ASCII column cannot hold."""
        plain = text.replace("-", "")  # Django, SQLAlchemy and JPA write a UUID with dashes, and keep it without
        if self._binary_ids and re.fullmatch("([0-9a-fA-F]{2})+", plain):
            return [bytes.fromhex(plain)]
        forms = text, plain, id_key(text)
        cases = dict.fromkeys(case for form in forms for case in (form, form.lower(), form.upper()))
        return [case if case.isascii() else case.encode(errors="replace") for case in cases]

    def logs_of(self, user: User, days: Days) -> list[tuple[date, str]]:
        """The logs of a user since day 1, as of now or of another moment, each with its habit's name."""
        first, last = bounds_of(days, dates=self._dates)[0], self._until(days, date.max)
        sql = f"""SELECT l.created_at, {as_text("h.name")} FROM `Habit` h JOIN `Log` l ON l.habit_id = h.id
            WHERE h.user_id = %s AND l.created_at BETWEEN %s AND %s ORDER BY l.created_at"""
        return [(at, clean(habit)) for at, habit in self._database.run(sql, [user.id, first, last])]

    def _until(self, days: Days, otherwise: date) -> date:
        """The latest log that counts: --now as Log.created_at has it."""
        as_of = self._database.as_of
        return otherwise if not as_of else days.today if self._dates else naive(as_of)

    def last_logs(self, users: Mapping[UserId, Days], now: datetime) -> dict[UserId, date]:
        """The last log of each of these users as of now or of another moment."""
        untils = defaultdict(list)
        for user_id, days in users.items():
            untils[self._until(days, naive(now + EARLIEST_ZONE))].append(user_id)  # one that is years ahead is none
        return dict(chain.from_iterable(self._last_logs(user_ids, until) for until, user_ids in untils.items()))

    def _last_logs(self, user_ids: Sequence[UserId], until: date) -> list[tuple[UserId, date]]:
        """Users and their last logs; if that takes too long, ask for half as many at a time."""
        # One look into the index for each habit; MySQL sorts all of its logs unless the order names it, too.
        sql = f"""SELECT u.id, MAX((SELECT l.created_at FROM `Log` l
                WHERE l.habit_id = h.id AND l.created_at <= %s
                ORDER BY l.habit_id DESC, l.created_at DESC LIMIT 1))
            FROM `User` u STRAIGHT_JOIN `Habit` h ON h.user_id = u.id
            WHERE u.id IN ({placeholders(user_ids)}) GROUP BY u.id"""
        try:
            rows = self._database.run(sql, [until, *user_ids])
        except DatabaseError as failure:
            if failure.remedy is not Remedy.SMALLER or len(user_ids) == 1 or self._database.brake.pulled:
                raise
            half = len(user_ids) // 2
            return self._last_logs(user_ids[:half], until) + self._last_logs(user_ids[half:], until)
        return [(user_id, aware(at)) for user_id, at in rows if isinstance(at, date)]  # a zero date is a str


def compared_as(kind: str) -> str:
    """As what MySQL compares values of a type; those of two kinds are taken for inexact numbers, or are never equal."""
    kinds = {"binary|blob": "bytes", "int|dec|float|double": "number"}
    return next((name for pattern, name in kinds.items() if re.search(pattern, kind)), "text")


def id_range(after: UserId | None, through: UserId | None) -> tuple[str, list[UserId]]:
    """The condition for ids in (after, through], and its arguments; None is no bound."""
    bounds = [("u.id > %s", after), ("u.id <= %s", through)]
    these = " AND ".join(condition for condition, bound in bounds if bound is not None)
    return these or "TRUE", [bound for _, bound in bounds if bound is not None]


def zones_table(days: Mapping[bytes, Days], now: datetime, *, dates: bool) -> str:
    """The SQL of a table of zones: the bounds of their days, the day it is there, and since when a text is too recent.

    A first row, never matched, names the columns.
    """
    column, bound = ("DATE", "DATE") if dates else ("DATETIME", "TIMESTAMP")
    names = ", ".join(f"CAST(NULL AS {column}) AS {name}" for name in ("day1", "day2", "ends"))
    rows = [
        f"SELECT CAST(NULL AS BINARY) AS zone, {names}, CAST(NULL AS DATE) AS today, CAST(NULL AS DATETIME) AS since"
    ]
    for zone, d in days.items():
        bounds = ", ".join(f"{bound} '{at}'" for at in bounds_of(d, dates=dates))
        since = naive(min(d.end, now - SPACING) - CLOCK_TOLERANCE).replace(microsecond=0)
        rows.append(f"SELECT {literal(zone)}, {bounds}, DATE '{d.today}', TIMESTAMP '{since}'")
    return " UNION ALL ".join(rows)


def bounds_of(days: Days, *, dates: bool) -> tuple[date, ...]:
    """The bounds of both days as Log.created_at has them; as dates they are the user's own."""
    if dates:
        return tuple(days.today - timedelta(days=n) for n in (2, 1, 0))
    return naive(days.day1), naive(days.day2), naive(days.end)


def shown_name(name: object) -> str:
    """As much of a name as a text can hold."""
    return clean(name)[:NAME_LENGTH].strip(f" {JOINERS}")


def of_this_shard(user_id: str, settings: Settings) -> str:
    """The condition for this shard's users: a checksum, since ids may be numbers or UUIDs."""
    return f"CRC32({user_id}) MOD {settings.shard_count} = {settings.job_completion_index or 0}"


# --- the ledger, which keeps the promise ------------------------------------------------------------------------------

LEDGER = "HabitNotification"
LEDGER_DDL = """CREATE TABLE IF NOT EXISTS `{database}`.`HabitNotification` (
  `user_id` {user_id} NOT NULL,
  `local_day` DATE NOT NULL,
  `phone_number` VARCHAR(16) NOT NULL,
  `rule` VARCHAR(32) NOT NULL,
  `state` VARCHAR(16) NOT NULL,
  `run_token` CHAR(32) NOT NULL,
  `claimed_at` DATETIME(6) NOT NULL,
  `finished_at` DATETIME(6) NULL,
  `message_sid` CHAR(34) NULL,
  `error_code` INT NULL,
  `final_status` VARCHAR(32) NULL,
  `segments` SMALLINT NULL,
  PRIMARY KEY (`user_id`, `local_day`),
  KEY `local_day` (`local_day`),
  KEY `unsettled` (`final_status`, `local_day`)
) ENGINE=InnoDB DEFAULT CHARACTER SET ascii"""
LEDGER_COLUMNS = dict(re.findall(r"^  `(\w+)` (.*),$", LEDGER_DDL, re.MULTILINE))
ROW = ", ".join(LEDGER_COLUMNS)
WRITES = (  # they touch no row, but fail when a column or a grant is missing
    f"INSERT INTO {LEDGER} ({ROW}) SELECT {ROW} FROM {LEDGER} WHERE FALSE",
    f"UPDATE {LEDGER} SET {', '.join(f'{column} = {column}' for column in LEDGER_COLUMNS)} WHERE FALSE",
    f"DELETE FROM {LEDGER} WHERE FALSE",
)
OLDER_LEDGER = "Is there an older one? Bring it back, or people get a second text"
RIGHTS = "CREATE", "SELECT", "INSERT", "UPDATE", "DELETE"
SAYS_LITTLE = re.compile(r"(?<=int)\(\d+\)| COLLATE \w+")  # of a type: MariaDB's display width, a text's charset
STATES = {state.value: state for state in State}
# The promise: the rows of these texts stay, since they may have been sent, or were refused. All others are deleted.
KEPT = {Outcome.SENT: State.SENT, Outcome.REFUSED: State.REFUSED, Outcome.UNCERTAIN: State.UNCERTAIN}
# Rows of which `unclaimed`, `of_the_past`, `spaced`, `not_refused` or `delivered` may have something to say.
ROW_MATTERS = """(n.local_day >= z.today OR n.finished_at IS NULL OR GREATEST(n.claimed_at, n.finished_at) >= z.since
    OR n.state = 'refused' OR n.final_status IN ('undelivered', 'failed'))"""


class Ledger:
    """The table HabitNotification: a row for every text that may have been sent. Any method may raise DatabaseError."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._ours = of_this_shard("user_id", settings)
        self._there = False
        self.claims: dict[Reminder, Row] = {}  # and not recorded yet
        self._done: deque[tuple[Row, bool]] = deque(maxlen=DATABASE_MEMORY)  # rows, and whether they stay
        self._created = ""  # the DDL, if this run made the ledger: a replica that is promoted may lack it
        database.on_connect = self._write_again

    def open(self) -> None:
        """Make the ledger, or check by statements that touch no row that it can be written.

        :raises FixFirst: when a type, a key or a grant is not as needed, or the server is read-only
        """
        if ddl := self.missing(explain=""):
            try:
                self._database.run(ddl)
            except DatabaseError as refused:
                raise self._no_ledger(ddl) if refused.number in NO_GRANT else refused from None
            if self.missing(explain=""):  # a proxy may ask another server
                raise self._no_ledger(ddl)
            self._created = ddl
            log.info("Created the ledger %s. %s", LEDGER, OLDER_LEDGER)
        self._there = self._database.opened = True

    def open_to_read(self) -> None:
        """Whoever only reads takes a ledger that is not there for an empty one."""
        try:
            self._database.run(f"SELECT {ROW} FROM {LEDGER} LIMIT 0")
            self._there = True
        except DatabaseError as error:
            if error.number not in NO_SUCH_GRANT_OR_TABLE:
                raise
            log.warning("The ledger %s is not there, or DB_USER may not read it: taken as empty", LEDGER)

    def missing(self, explain: str = "EXPLAIN ") -> str:
        """The statement that makes the ledger, on one line, if it is missing; else '', and it can be written.

        :raises FixFirst: when a type, the engine or the key is wrong, a grant is missing, or the server is read-only
        """
        [switches] = self._database.run("SELECT @@read_only, @@innodb_read_only")
        if set(switches) - {0, "OFF"}:  # MariaDB 12 has a word
            raise FixFirst(f"MySQL: {READ_ONLY}")
        id_type = self._database.type_of("User", "id")
        ddl = " ".join(LEDGER_DDL.format(database=self._settings.db_name, user_id=id_type).split()) + ";"
        try:
            self._check_shape(id_type)
            for statement in WRITES:
                self._database.run(explain + statement)
        except DatabaseError as error:
            if error.number not in NO_SUCH_GRANT_OR_TABLE:
                raise
            if error.number != NO_SUCH_TABLE or (explain and not self._may_make()):
                raise self._no_ledger(ddl) from None
            return ddl
        return ""

    def _may_make(self) -> bool:
        """Whether the grants, or a role, as far as they can be read, let DB_USER make the ledger, and write it then."""
        name = re.escape(self._settings.db_name)
        ours = rf" ON (\*|`?({name}|[^`]*%[^`]*)`?)\."  # a name in a grant may be a pattern, or in small letters
        grants = "\n".join(grant.replace("\\", "") for (grant,) in self._database.run("SHOW GRANTS"))
        return all(re.search(rf"(?im)({word}(?=,| ON )|ALL PRIVILEGES).*{ours}|^(?!.* ON )", grants) for word in RIGHTS)

    def _check_shape(self, id_type: str) -> None:
        """Check that a ledger made by hand has LEDGER_DDL's columns, key and engine; it may have more columns.

        :raises FixFirst: when it lacks some of that
        """
        [(_, ddl, *_)] = self._database.run(f"SHOW CREATE TABLE `{LEDGER}`")
        ddl = ddl.lower().replace("`", "")  # a name's case says nothing
        columns = self._database.run(f"SHOW FULL COLUMNS FROM `{LEDGER}`")
        there, changes = {}, {}  # the columns; by what is wrong, what mends it
        for column, kind, collation, null, _, default, extra, *_ in columns:
            text = f"{kind} COLLATE {collation}" if collation else kind
            there[column.lower()] = f"{text} NOT NULL" if null == "NO" else f"{text} NULL"
            filled = default is not None or null == "YES" or re.search("(?i)auto_inc|generated", extra)
            if column.lower() not in LEDGER_COLUMNS and not filled:
                changes[f"{column} must be filled"] = f"MODIFY `{column}` {text} NULL"
        for column, definition in LEDGER_COLUMNS.items():
            wanted, found = definition.format(user_id=id_type), there.get(column, "")
            if wanted.lower() not in (found.lower(), SAYS_LITTLE.sub("", found).lower()):
                changes[f"{column} is {found or 'missing'}"] = f"{'MODIFY' if found else 'ADD'} `{column}` {wanted}"
        if "primary key (user_id,local_day)" not in ddl:  # the whole columns, no prefix, and no more of them
            instead = "DROP PRIMARY KEY, " if "primary key" in ddl else ""
            changes["its primary key is not user and day"] = f"{instead}ADD PRIMARY KEY (`user_id`, `local_day`)"
        if "engine=innodb" not in ddl:
            changes["its engine is not InnoDB"] = "ENGINE=InnoDB"
        if changes:
            why = f"{LEDGER} cannot be used: {', '.join(changes)}. Run as an administrator:"
            raise FixFirst(why, f"ALTER TABLE `{self._settings.db_name}`.`{LEDGER}` {', '.join(changes.values())};")

    def check_rows(self, now: datetime) -> Iterator[str]:
        """What of the ledger's rows wants a person's eye."""
        sql = f"""SELECT COUNT(IF(GREATEST(claimed_at, COALESCE(finished_at, claimed_at)) > %s, 1, NULL)),
                COUNT(IF(state = 'sending' AND final_status IS NULL AND claimed_at < %s, 1, NULL)) FROM {LEDGER}"""
        [(early, left)] = self._database.run(sql, [naive(now + CLOCKS_APART), naive(now - ALL_ATTEMPTS)])
        ahead = "by a clock that was ahead: a run names those it meets, and their DELETE"
        if early:
            yield f"{early} rows were written in the future, {ahead}"
        if left:
            yield f"{left} rows were left at 'sending' by a run that was cut off"

    def _no_ledger(self, ddl: str) -> FixFirst:
        [(account,)] = self._database.run("SELECT CURRENT_USER()")
        user, host = map(literal, account.rsplit("@", 1))
        return FixFirst(
            f"DB_USER may not create or write the ledger {LEDGER}. {OLDER_LEDGER}. Run as an administrator:",
            ddl,
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{self._settings.db_name}`.`{LEDGER}` TO {user}@{host};",
        )

    @property
    def rows_matter(self) -> str:
        """The condition for users to whose rows a gate may object; those of most users need not be read."""
        if not self._there:
            return "FALSE"
        s, week = self._settings, "n.local_day > z.today - INTERVAL 7 DAY"
        limits = {ROW_MATTERS: 1, "TRUE": s.quiet_after, week: s.max_per_week}
        counts = [f"COUNT(IF({which}, 1, NULL)) >= {limit}" for which, limit in limits.items() if limit]
        return f"(SELECT {' OR '.join(counts)} FROM {LEDGER} n FORCE INDEX (PRIMARY) WHERE n.user_id = u.id)"

    def history(self, user_ids: Sequence[UserId], since: date = date.min) -> dict[UserId, list[Row]]:
        """The rows of users from the day 'since' on, as they are now or were at another moment."""
        found: dict[UserId, list[Row]] = defaultdict(list)
        if not user_ids or not self._there:
            return found
        sql = f"SELECT {ROW} FROM {LEDGER} WHERE user_id IN ({placeholders(user_ids)}) AND local_day >= %s"
        exact, alike = set(user_ids), {id_key(user_id).casefold(): user_id for user_id in user_ids}
        as_of = self._database.as_of
        for row in map(as_row, self._database.run(sql, [*user_ids, since])):
            if as_of and row.claimed_at > as_of:
                continue
            if as_of and row.finished_at:
                row = replace(row, finished_at=min(row.finished_at, as_of))
            same = row.user_id in exact  # an id may have been written anew, in other letters
            found[row.user_id if same else alike.get(id_key(row.user_id).casefold(), row.user_id)].append(row)
        return found

    def todays(self, today: Mapping[UserId, date]) -> dict[UserId, list[Row]]:
        """The rows since today of those who have one of today."""
        recent = self.history(list(today), min(today.values(), default=date.max))
        return {user: rows for user, rows in recent.items() if today.get(user) in [row.local_day for row in rows]}

    def claim(self, reminders: Sequence[Reminder], now: datetime) -> dict[UserId, list[Row]]:
        """Write claims into the ledger; the rows of these users' last days, as they stand then.

        The check for a recent text comes after the claim: see not_ours.
        """
        if not reminders:
            return {}
        self._database.somebody_claimed = True
        self.claims |= {reminder: claim_of(reminder, now) for reminder in reminders}
        self._database.run(*insert([self.claims[r] for r in reminders], f"user_id = {LEDGER}.user_id"))
        since = min(reminder.days.today for reminder in reminders) - timedelta(days=2)
        return self.history([reminder.user.id for reminder in reminders], since)

    def record(self, answers: Mapping[Reminder, Answer], now: datetime) -> None:
        """Write what became of claims: keep the row of a text that may have been sent, delete the others'.

        May be called again after a failure; what was written then is no claim any more.
        """
        kept = {
            reminder: finished_row(self.claims[reminder], answer, now)
            for reminder, answer in answers.items()
            if answer.action.outcome in KEPT and reminder in self.claims
        }
        self.claims |= kept  # what is written again on a new connection
        for part in chunks(list(kept), KEYS):
            self._database.run(*upsert([kept[reminder] for reminder in part]))
            self._done_with(part, stays=True)
        self.release([reminder for reminder in answers if reminder not in kept])

    def release(self, reminders: Iterable[Reminder]) -> None:
        """Delete the rows of texts that were surely not sent, so that they may be tried again."""
        for part in chunks([reminder for reminder in reminders if reminder in self.claims], KEYS):
            self._database.run(*delete([self.claims[reminder].key for reminder in part]))
            self._done_with(part, stays=False)

    def _done_with(self, reminders: Iterable[Reminder], *, stays: bool) -> None:
        """What is written or deleted is no claim any more, but remembered for as long as a crash may take it back."""
        self._done.extend((self.claims.pop(reminder), stays) for reminder in reminders)

    def _write_again(self) -> Iterator[tuple[str, list[object]]]:
        """Statements for a new connection: what was written last may be lost with the server that it was written to."""
        if self._created:
            yield self._created, []
        yield from map(delete, chunks([row.key for row, stays in self._done if not stays], KEYS))
        # Only then: of a user who was claimed once more, a released row that came back would keep out the later one.
        recorded = (row for row, stays in self._done if stays)
        yield from map(upsert, chunks([*recorded, *self.claims.values()], KEYS))

    def unsettled(self, now: datetime) -> list[Row]:
        """The oldest rows of whose texts Twilio's last word is not known, those of the last minutes left out."""
        sql = f"""SELECT {ROW} FROM {LEDGER} WHERE final_status IS NULL AND claimed_at < %s AND {self._ours}
            ORDER BY local_day LIMIT {SETTLE_ROWS}"""
        return [as_row(values) for values in self._database.run(sql, [naive(now - SETTLE_AFTER)])]

    def settle(self, settled: Iterable[Row]) -> None:
        """Write what Twilio says of rows, those of which it says the same by one statement; not what is outdated.

        A run that was suspended may wake and record a text, or its refusal, that this one took for lost.
        """
        alike = defaultdict(list)
        for row in settled:
            said = row.state, row.code, row.final_status, row.segments, row.sid is None
            alike[said].append(row.key)
        for said, keys in alike.items():
            for part in chunks(keys, KEYS):
                sql = f"""UPDATE {LEDGER} SET state = %s, error_code = %s, final_status = %s, segments = %s
                    WHERE final_status IS NULL AND (message_sid IS NULL) = %s AND ({any_of(part)})"""
                self._database.run(sql, [*said, *chain.from_iterable(part)])

    def purge(self, before: date) -> int:
        """Delete some of this shard's rows of days before; how many."""
        sql = f"""SELECT user_id, local_day, run_token FROM {LEDGER}
            WHERE local_day < %s AND {self._ours} ORDER BY local_day LIMIT {KEYS}"""
        if keys := self._database.run(sql, [before]):
            self._database.run(*delete(keys))
        return len(keys)


def any_of(keys: Sequence[object]) -> str:
    """The condition for rows with one of the keys (user, local day, token): MariaDB finds no index for a row IN."""
    return " OR ".join(["(user_id = %s AND local_day = %s AND run_token = %s)"] * len(keys))


def claim_of(reminder: Reminder, now: datetime) -> Row:
    """The row that claims a reminder, its token its own: ids may differ and yet be one to the ledger's collation."""
    user, today, token = reminder.user, reminder.days.today, secrets.token_hex(16)
    return Row(user.id, today, user.phone, reminder.rule.key, State.SENDING, token, now)


def finished_row(claim: Row, answer: Answer, now: datetime) -> Row:
    """The row of a text that is no longer in flight."""
    state = KEPT[answer.action.outcome]
    refused = state is State.REFUSED and not answer.sid  # of the others, Twilio's last word is still to come
    known = replace(claim, state=state, finished_at=now, final_status=State.REFUSED if refused else None)
    return replace(known, sid=answer.sid, code=answer.code, segments=answer.segments)


def insert(rows: Sequence[Row], otherwise: str) -> tuple[str, list[object]]:
    """The statement that writes rows, and its arguments; 'otherwise' is what it does where a row is there already."""
    # Not INSERT IGNORE, which stores truncated values.
    places = ", ".join([f"({placeholders(LEDGER_COLUMNS)})"] * len(rows))
    sql = f"INSERT INTO {LEDGER} ({ROW}) VALUES {places} ON DUPLICATE KEY UPDATE {otherwise}"
    values = (getattr(row, name) for row in rows for name in Row.__slots__)
    return sql, [naive(value) if isinstance(value, datetime) else value for value in values]


def upsert(rows: Sequence[Row]) -> tuple[str, list[object]]:
    """The statement that writes rows, also over what their own claims left, but not over another's."""
    written = "state", "finished_at", "message_sid", "error_code", "final_status", "segments"
    ours = [f"{column} = IF(run_token = VALUES(run_token), VALUES({column}), {column})" for column in written]
    return insert(rows, ", ".join(ours))


def delete(keys: Sequence[tuple[Any, ...]]) -> tuple[str, list[object]]:
    """The statement that deletes the rows with these keys."""
    return f"DELETE FROM {LEDGER} WHERE {any_of(keys)}", list(chain.from_iterable(keys))


def as_row(values: Sequence[Any]) -> Row:
    """A row as the ledger holds it, its instants made aware; a state that we do not know is uncertain."""
    user_id, local_day, phone, rule, state, token, claimed_at, finished_at, *rest = values
    known = STATES.get(state, State.UNCERTAIN)
    finished = finished_at and instant(finished_at)
    return Row(user_id, local_day, phone, rule, known, token, instant(claimed_at), finished, *rest)


def instant(value: object) -> datetime:
    """An instant of the ledger. A zero date, written by hand, comes as text, and was before all others."""
    return aware(value if isinstance(value, datetime) else datetime.min)  # noqa: DTZ901 - aware makes it so


def aware(value: T) -> T:
    """A value of the database; of an instant it is known that it is in UTC."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def naive(instant: datetime) -> datetime:
    """The instant in UTC without its zone, as a DATETIME column takes it: PyMySQL would drop the zone silently."""
    return instant.astimezone(UTC).replace(tzinfo=None)


def placeholders(values: Collection[object]) -> str:
    return ", ".join(["%s"] * len(values))


def chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


# --- what became of earlier texts -------------------------------------------------------------------------------------

SETTLE_AFTER = timedelta(minutes=15)  # Twilio's list of messages lags behind
SETTLE_NOT_FOUND = timedelta(hours=12)  # beyond the 10 h that Twilio may keep a text queued
SETTLE_FINAL = timedelta(hours=72)  # no carrier's receipt comes later
SETTLE_BUDGET = 60.0  # seconds
SETTLE_ROWS = 20_000  # rows looked up by one run, the oldest first


def settled_rows(rows: Iterable[Row], messages: Mapping[str, Message], now: datetime, *, looked_up: bool) -> list[Row]:
    """The rows of which there is something new to record. Without a SID only a person can look for the text."""
    patience = SETTLE_NOT_FOUND if looked_up else SETTLE_FINAL
    settled = []
    for row in rows:
        age, message = now - row.claimed_at, messages.get(row.sid or "")
        if message:
            final = message.status if message.status in FINAL or age > SETTLE_FINAL else None
            code, parts = error_code(message.code), column_int(message.segments, MOST_SEGMENTS)
            parts = parts or row.segments  # 0 until a Messaging Service has chosen a sender
            settled.append(replace(row, state=State.SENT, code=code, final_status=final, segments=parts))
        elif age > (patience if row.sid else ALL_ATTEMPTS):
            otherwise = State.SENT if row.sid else State.UNCERTAIN
            state = row.state if row.state is State.REFUSED else otherwise  # refused at once, with a SID
            settled.append(replace(row, state=state, final_status=UNKNOWN))
    return settled


def stop_if_blocked(settled: Sequence[Row]) -> None:
    """Texts that carriers block cost money and reach nobody.

    :raises FixFirst: when that is what most of the newly learned outcomes say
    """
    known = [row for row in settled if row.final_status in KNOWN_ENDS]
    blocked = [row.code for row in known if row.final_status in LOST and row.code in BLOCKED_SENDER]
    if len(blocked) >= max(FEW, len(known) / 2):
        raise FixFirst(
            f"Carriers block the sender: they stopped {len(blocked)} of the last {len(known)} texts, "
            f"{meaning(Counter(blocked).most_common(1)[0][0])}. Register or verify the sender, or change the texts, in "
            "Twilio's console. Nobody was texted; the next run tries again"
        )


# --- questions: who would be texted, why, and is all well -------------------------------------------------------------

SHOWN_ROWS = 14  # of the ledger
SHOWN_IDS = 5  # of users who have a problem
UNREAD = "have logs that MySQL does not read in time, see DEPLOYMENT.md"


def dry_run(job: Job) -> Exit:
    """Name who would be texted now; write nothing, and ask Twilio nothing."""
    hours: Counter[int] = Counter()
    rules: Counter[str] = Counter()
    with job.brake.holding(), job.database:
        job.tracker.open()
        job.ledger.open_to_read()
        job.take_stock()
        for reminder in chain.from_iterable(job.pages()):
            user, text = reminder.user, Personal(message_for(reminder, job.settings))
            details = event("would_text", user.id, rule=reminder.rule.key)
            words = "User %s, %s, would be texted: %s: %s"
            log.info(words, user, Personal(user.phone), reminder.rule.reason, text, extra=details)
            hours[job.now.astimezone(reminder.days.zone).hour] += 1
            rules[reminder.rule.reason] += 1
    job.name_the_rest()
    job.brake.blame(unfinished=not job.report.walked)
    if job.brake.failure:
        return job.brake.exit_code
    log.info("Texts by local hour: %s", ", ".join(f"{hour:02}:00 {n}" for hour, n in sorted(hours.items())) or "none")
    job.report.tell_totals()
    reasons = "".join(f", {reason} {count}" for reason, count in sorted(rules.items()))
    log.info("Dry run completed: nobody was texted. Texts that a run would send: %d%s", rules.total(), reasons)
    return Exit.RETRY if job.report.counts[Outcome.NOT_TRIED] else Exit.DONE


def explain(job: Job) -> Exit:
    """Say of one user what speaks for a text and what against it; write nothing."""
    with job.brake.holding(), job.database:
        job.tracker.open()
        job.ledger.open_to_read()
        job.take_stock()
        if not (user := job.tracker.named([job.about]).get(id_key(job.about))):
            raise RetryLater(f"there is no user {quoted(job.about) or '“”'} in User")  # it may be a name
        zone = resolve_zone(user.zone) or resolve_zone(job.settings.default_time_zone)
        days = days_of(job.now, zone, job.settings.day_starts_at) if zone else None
        user = replace(user, days=days, rows_matter=True)
        log.info("User %s, %s, time zone %r", user, Personal(user.phone) or "no phone number", shown_zone(user.zone))
        rows, last_logs = job.history([user])
        case = Case(user, rows.get(user.id, ()), last_logs.get(user.id), job.settings, job.now)
        if user.days:
            explain_days(job, case)
        else:
            log.info("The next text is possible at the earliest: once the time zone is corrected, see the gates")
        for gate in GATES if user.days else WITHOUT_DAYS:
            if skip := gate(case):
                words = f"Gate %s: no text, %s: {skip.reason}"
                log.info(words, gate.__name__, skip.outcome.words, *skip.args)
            else:
                log.info("Gate %s: nothing against it", gate.__name__)
        for row in sorted(case.rows, key=lambda row: row.local_day)[-SHOWN_ROWS:]:
            end = f"{row.final_status or 'its end is not known yet'}{f' ({meaning(row.code)})' if row.code else ''}"
            log.info("Ledger, %s: %s to %s, %s", row.local_day, row.state, Personal(row.phone), end)
    return job.brake.exit_code


def explain_days(job: Job, case: Case) -> None:
    """The days of a user, the logs in them, the rule, and when a text is possible."""
    days, logs = case.days, job.tracker.logs_of(case.user, case.days)
    local = case.now.astimezone(days.zone)
    log.info("It is %s in %s, the local day %s", f"{local:%Y-%m-%d %H:%M}", days.zone, days.today)
    for number, start, end in ((1, days.day1, days.day2), (2, days.day2, days.end)):
        log.info("Day %d is %s to %s UTC", number, f"{start:%Y-%m-%d %H:%M:%S}", f"{end:%Y-%m-%d %H:%M:%S}")
        for at, habit in logs:
            if days_with(at, days) == number:
                log.info("  logged at %s: %s", str(at)[:19], Personal(habit))
    logged = {days_with(at, days) for at, _ in logs}
    rule = "nothing: logged on day 2" if 2 in logged else rule_for(logged_day1=1 in logged).reason
    log.info("Rule: %s", rule)
    soonest = earliest(case, [at for at, _ in logs])
    when = f"{soonest:%Y-%m-%d %H:%M} UTC" if soonest else f"not within {RETENTION.days} days, see the gates"
    log.info("If nothing is logged from now on, the next text is possible at the earliest: %s", when)


def days_with(logged: date, days: Days) -> int | None:
    """Which of the two days a log belongs to, its time as Log.created_at has it."""
    day1, day2, end = bounds_of(days, dates=not isinstance(logged, datetime))
    return 1 if day1 <= logged < day2 else 2 if day2 <= logged < end else None


def earliest(case: Case, logs: Sequence[date]) -> datetime | None:
    """The first minute, or now, at which a rule asks for a text and no gate speaks against it."""
    hour, s = case.now.replace(minute=0, second=0, microsecond=0), case.settings
    times = time_of_day(), s.day_starts_at, *(s.send_window or ())
    openings = sorted({(at.minute - n) % 15 for at in times for n in (0, 1)})  # a window's rest may be minutes short
    for quarter, opening in product(range(4 * 24 * RETENTION.days), openings):
        at = hour + timedelta(minutes=15 * quarter + opening)
        if is_possible(case, logs, max(case.now, at)):
            minutes = (max(case.now, at - timedelta(minutes=n)) for n in range(14, -1, -1))
            return next(minute for minute in minutes if is_possible(case, logs, minute))
    return None


def is_possible(case: Case, logs: Sequence[date], now: datetime) -> bool:
    """Whether a user would be texted then, if nothing is logged until then."""
    days = days_of(now, case.days.zone, case.settings.day_starts_at)
    later = case._replace(now=now, user=replace(case.user, days=days))
    return all(days_with(at, days) != 2 for at in logs) and not speaks_against(later)


def check(job: Job) -> Exit:
    """Say of all that a run needs whether it is there; send nothing, write nothing."""
    failed: set[str] = set()
    with job.database:
        for name, (needs, question) in CHECKS.items():
            if needs in failed:
                log.info("%s: not checked, see above", name)
                continue
            try:
                notes = list(question(job))
            except NotifierError as failure:
                failed.add(name)
                about = f"{name}: "
                job.report.error = job.report.error or about + str(failure).removeprefix(about)
                tell(failure, about)
            else:
                for note in notes or ["ok"]:
                    log.log(logging.WARNING if notes else logging.INFO, "%s: %s", name, note)
    return Exit.ACT if failed else Exit.DONE


def check_database(job: Job) -> Iterator[str]:
    """Connection, tables, columns, types, and what refers to what."""
    job.tracker.open()
    if not job.settings.db_ssl_ca:
        yield "the server is not verified: DB_SSL_CA would do that"
    yield from job.tracker.default_doubts()


def check_ledger(job: Job) -> Iterator[str]:
    """That it is there and can be written; what is in it."""
    if ddl := job.ledger.missing():
        yield f"the ledger is not there yet. The first run makes it, if it may; else run as an administrator: {ddl}"
    else:
        yield from job.ledger.check_rows(job.clock())


def check_users(job: Job) -> Iterator[str]:
    """Rows that would be skipped, ids that come twice, and all texts' lengths."""
    yield from job.doubts(job.read_zones())
    found: dict[str, list[UserId]] = defaultdict(list)
    longest = ""
    for page in job.tracker.pages(0, ANYBODY):
        found[UNREAD] += page.unread
        for user_id, (user, *again) in groupby(page.users, key=lambda user: user.id):
            longest = max(longest, user.name or NAMELESS, key=len)
            problems = {
                "have no time zone that is known": user.days is None,
                "have a phone number that is not E.164": not E164.fullmatch(user.phone),
                "stand in User more than once": again,
            }
            for problem, there in problems.items():
                if there:
                    found[problem].append(user_id)
        if len(found[UNREAD]) > SHOWN_IDS:  # then an index lacks, and each of the others would take as long
            yield "not all users were looked at: reading their logs takes too long"
            break
    for problem, ids in found.items():
        if ids:
            shown = ", ".join(str(shown_id(user_id)) for user_id in ids[:SHOWN_IDS])
            yield f"{len(ids)} users {problem}: {shown}{' ...' if len(ids) > SHOWN_IDS else ''}"
    yield from text_problems(job.settings, longest)


def check_hours(job: Job) -> Iterator[str]:
    """Whether people may be texted while they sleep."""
    start, end = job.settings.send_window or (time_of_day(), time_of_day(23, 59))
    if start < time_of_day(NIGHT_ENDS) or end > time_of_day(NIGHT_STARTS):
        yield "texts may come between 21:00 and 8:00 local time: use k8s/components/local-morning"


# What is checked, in order: a name, the name of what it needs, and the question.
CHECKS: dict[str, tuple[str, Callable[[Job], Iterable[str]]]] = {
    "settings": ("", lambda _job: []),  # they were read
    "database": ("", check_database),
    "ledger": ("database", check_ledger),
    "speed and durability": ("database", lambda job: job.tracker.doubts()),
    "users and logs": ("database", check_users),
    "hours": ("", check_hours),
    "Twilio": ("", lambda job: clock_doubts(job.probe(), job.clock())),
    "sender": ("Twilio", lambda job: within(PROBE_LIMIT, job.brake, lambda: list(job.twilio.find_sender()))),
}


# --- settings ---------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What to write in a setting: a pattern for the whole text, how it becomes the value, and what must hold of it."""

    write: str
    pattern: str = "(?s:.*)"
    parse: Callable[[str], Any] = str
    holds: Callable[[Any], object] = lambda _value: True


def whole(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", "[0-9]+", int, lambda number: low <= number <= high)


def is_template(text: str) -> bool:
    """Whether {name} is all that there is to fill in, and Twilio takes so long a text (its limit, error 21617)."""
    longest = text.replace("{name}", "n" * NAME_LENGTH)
    return not re.search("[{}]", longest) and len(longest) <= 1_600


def lasts_an_hour(times: tuple[time_of_day, time_of_day]) -> bool:
    """Whether a window does, at least: hourly runs could miss a shorter one, in zones that are half an hour off."""
    start, end = times
    return (end.hour - start.hour) * 60 + end.minute - start.minute >= 60


def id_list(text: str) -> frozenset[str]:
    ids = [id_key(part.strip()) for part in text.split(",")]
    if len(ids) > 100 or not all(re.fullmatch("[!-~]{1,64}", user_id) for user_id in ids):
        raise ValueError
    return frozenset(ids)


CLOCK_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]"
TEXT = Kind("")
DATABASE_NAME = Kind("its name alone, not a URL", "(?!.*://).*")
TOKEN = Kind("it as the console shows it, without blanks and typographic characters", "[!-~]+")
HOST_NAME = r"[\w-]{1,63}(\.[\w-]{1,63})*\.?"
HOST = Kind("a host name or an address, without scheme and port", rf"{HOST_NAME}|[0-9a-fA-F]*(:[0-9a-fA-F.]*){{2,7}}")
CA_FILE = Kind(
    "the path of a PEM file with certificates that this user can read",
    holds=lambda path: ssl.create_default_context(cafile=path),  # or an OSError, as SSLError is
)
ACCOUNT_SID = Kind("the Account SID: AC and 32 hexadecimal digits", "AC[0-9a-fA-F]{32}")
KEY_SID = Kind("the key's SID: SK and 32 hexadecimal digits", "SK[0-9a-fA-F]{32}")
SERVICE_SID = Kind("the service's SID: MG and 32 hexadecimal digits", "MG[0-9a-fA-F]{32}")
SENDER = Kind(f"your Twilio number with its country code, such as {EXAMPLE}", rf"{E164.pattern}|[0-9]{{3,8}}")
LOOPBACK = r"http://(localhost|127(\.[0-9]+){3}|\[::1\])"  # elsewhere, http would show the credentials to the network
API_URL = Kind(
    "https://HOST[:PORT]; http is for localhost only",
    rf"(https://({HOST_NAME}|\[[0-9a-fA-F:.]+\])|{LOOPBACK})(:[0-9]+)?/?",
    lambda url: url.rstrip("/"),
    lambda url: urllib3.util.parse_url(url).port != 0,  # above 65535 that is a ValueError
)
WINDOW = Kind(
    "two times such as 09:00-20:00, the end at least 60 minutes after the start",
    rf"{CLOCK_TIME}\s*-\s*{CLOCK_TIME}",
    lambda text: tuple(time_of_day.fromisoformat(part.strip()) for part in text.split("-")),
    lasts_an_hour,
)
EARLY = Kind("a time from 00:00 to 06:00", "0[0-5]:[0-5][0-9]|06:00", time_of_day.fromisoformat)
ZONE = Kind("a tz database name such as Europe/Berlin", holds=resolve_zone)
TEMPLATE = Kind("a text of at most 1,600 characters, names included, with no braces but {name}", holds=is_template)
IDS = Kind("at most 100 ids without blanks, separated by commas", parse=id_list)
PING_URL = Kind("an https:// URL without ? and #", rf"https://[^\s?#]+|{LOOPBACK}(:[0-9]+)?(/[^\s?#]*)?")
LEVEL = Kind("DEBUG, INFO, WARNING or ERROR", "DEBUG|INFO|WARNING|ERROR")
PLACEHOLDER = re.compile(r"your-\S*|\+1234567890", re.IGNORECASE)
GONE_SETTINGS = "TWILIO_EDGE", "TWILIO_REGION"
REQUIRED = None  # in place of a default


def setting(help: str, kind: Kind, default: str | None = "", *, secret: bool = False) -> Any:  # noqa: A002
    """Declare a setting. A secret may come from a file and is never shown."""
    return field(repr=not secret, metadata={"help": help, "kind": kind, "default": default, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """Every setting, declared once. The environment variable is the field's name in capitals."""

    db_host: str = setting("MySQL's host: the primary, not a read-only replica", HOST, REQUIRED)
    db_port: int = setting("MySQL's port", whole(1, 65535), "3306")
    db_name: str = setting("the database that holds User, Habit and Log", DATABASE_NAME, REQUIRED)
    db_user: str = setting("the database account", TEXT, REQUIRED, secret=True)
    db_password: str = setting("the database account's password", TEXT, REQUIRED, secret=True)
    db_ssl_ca: str = setting(
        "path of a CA certificate: MySQL is then spoken to by TLS alone, its certificate and name verified", CA_FILE
    )
    twilio_account_sid: str = setting("Twilio account", ACCOUNT_SID, REQUIRED, secret=True)
    twilio_auth_token: str = setting("the account's auth token", TOKEN, secret=True)
    twilio_api_key_sid: str = setting(
        "with TWILIO_API_KEY_SECRET, instead of the auth token: an API key, which can be revoked alone",
        KEY_SID,
        secret=True,
    )
    twilio_api_key_secret: str = setting("the API key's secret", TOKEN, secret=True)
    twilio_from_number: str = setting("the number that texts come from", SENDER)
    twilio_messaging_service_sid: str = setting(
        "instead of the number: a Messaging Service, which picks one of its senders", SERVICE_SID
    )
    twilio_api_url: str = setting(
        "base URL of Twilio's API: another region's, a proxy's or a test's", API_URL, "https://api.twilio.com"
    )
    send_concurrency: int = setting("texts posted at the same time", whole(1, 64), "8")
    send_window: tuple[time_of_day, time_of_day] | Literal[""] = setting(
        "the user's own local time in which texts may be sent, such as 09:00-20:00; others are left for later runs",
        WINDOW,
    )
    day_starts_at: time_of_day = setting("when a day starts, for users who log after midnight", EARLY, "00:00")
    default_time_zone: str = setting("for users whose own zone is missing or unknown; else they are skipped", ZONE)
    message_no_logs: str = setting(
        'the text for "No logs in the past 2 days"',
        TEMPLATE,
        "Hi {name}, no habits logged in the past 2 days. One small step today gets you going again! "
        "Reply STOP to opt out.",
    )
    message_missed_yesterday: str = setting(
        'the text for "Missed yesterday"',
        TEMPLATE,
        "Hi {name}, you missed your habits yesterday. Log one today to get back on track! Reply STOP to opt out.",
    )
    validity_period: int = setting(
        "seconds after which Twilio drops a text that it could not hand on", whole(60, 36_000), "14400"
    )
    refused_retry_days: int = setting(
        "days for which a number that refused for good (opt-out, landline) is not tried again", whole(0, 90), "30"
    )
    undelivered_limit: int = setting(
        "texts in a row that did not arrive, after which the number is left alone for REFUSED_RETRY_DAYS; 0: never",
        whole(0, 10),
        "3",
    )
    quiet_after: int = setting(
        "texts without any log in between, after which there is silence until the next log; 0: never", whole(0, 14), "0"
    )
    max_per_week: int = setting("texts to one user in seven days; 0: no limit", whole(0, 7), "0")
    max_texts: int = setting(
        "if a run would send more texts, it sends none and ends with exit code 2; 0: no limit", whole(0, 20_000), "0"
    )
    only_users: frozenset[str] = setting("for a first try: ids of the only users who may be texted, such as 42,43", IDS)
    run_deadline: int = setting("seconds after which a run takes no more work", whole(1, 86_400), "1500")
    shard_count: int = setting("runs that share the users out among them", whole(1, 1_000), "1")
    job_completion_index: int | str = setting(
        "which of them this one is, from 0; Kubernetes sets it in an Indexed Job", whole(0, 999)
    )
    log_level: str = setting("how much to log", LEVEL, "INFO")
    log_format: str = setting("text, or json: an object a line", Kind("text or json", "text|json"), "text")
    heartbeat_url: str = setting(
        "a dead man's switch: pinged at URL/start, and at URL after exit code 0 or URL/fail after 2",
        PING_URL,
        secret=True,
    )
    log_pii: str = setting("off: no name and no number of a person is logged", Kind("on or off", "on|off"), "on")

    @classmethod
    def read(cls, environ: Environ, *, without: tuple[str, ...] = ()) -> Settings:
        """Read all settings; those whose names begin as 'without' says may be missing or wrong.

        :raises FixFirst: with a line for every variable that is missing, wrong or at odds with another
        """
        values: dict[str, Any] = {each.name: "" for each in fields(cls) if each.name.upper().startswith(without)}
        problems = []
        for declared in fields(cls):
            try:
                values[declared.name] = read_setting(declared.name.upper(), declared.metadata, environ)
            except ValueError as error:
                problems.append(str(error))
        url = "TWILIO_API_URL=https://api.EDGE.REGION.twilio.com says it"
        problems += [f"{name} is not a setting any more: {url}" for name in GONE_SETTINGS if environ.get(name)]
        problems = [line for line in [*problems, *contradictions(values)] if not line.startswith(without)]
        if problems:
            raise FixFirst(*problems)
        return cls(**values)

    def shown(self) -> str:
        """The settings that differ from their defaults, without the secrets, wherever they were put by mistake."""
        pairs = ((f.name.upper(), shown_value(getattr(self, f.name)), f.metadata) for f in fields(self) if f.repr)
        given = [f"{name}={value}" for name, value, declared in pairs if value != declared["default"]]
        bundle = os.environ.get("REQUESTS_CA_BUNDLE")
        given += [f"REQUESTS_CA_BUNDLE={bundle}"] if bundle else []
        return replace(self, db_user="").hide(", ".join(given))  # DB_NAME may well be the account's name, too

    def hide(self, text: str) -> str:
        """What MySQL, Twilio or a library says, without the secrets."""
        values = [str(getattr(self, f.name)) for f in fields(self) if not f.repr]
        spelt = sorted({*values, *map(clean, values)}, key=len, reverse=True)  # one may begin with another
        whole = [v if len(v) > 20 else rf"(?<!\w){v}(?!\w)" for v in map(re.escape, filter(None, spelt))]
        return re.sub("|".join(whole), "***", text) if whole else text  # a short one may be a part of any word


def shown_value(value: object) -> str:
    """A setting's value as it is written."""
    if isinstance(value, time_of_day):
        return f"{value:%H:%M}"
    if isinstance(value, tuple):
        return "-".join(shown_value(part) for part in value)
    return ",".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def read_setting(name: str, declared: Mapping[str, Any], environ: Environ) -> Any:
    """The parsed value of one setting; its default ('' for an optional one) when it is not set.

    :raises ValueError: with the name, what is wrong and what to write
    """
    text, kind = raw_setting(name, declared, environ) or declared["default"], declared["kind"]
    if text is None:
        raise ValueError(f"{name} is missing: write {declared['help']}{kind.write and f', {kind.write}'}")
    if text == "":
        return ""
    if re.search("[\ud800-\udfff]", text):  # how Python reads such bytes
        raise ValueError(f"{name} holds bytes that are no UTF-8: write it anew")
    placeholder = PLACEHOLDER.fullmatch(text)
    with suppress(ValueError, OSError):
        if not placeholder and re.fullmatch(kind.pattern, text) and kind.holds(value := kind.parse(text)):
            return value
    shown = "" if declared["secret"] or is_secret(text, environ) else f" {text!r}"
    if placeholder:
        raise ValueError(f"{name} is still the placeholder{shown}: write {kind.write or declared['help']}")
    wrong = f"is{shown}" if shown else "has a value that cannot be right"
    raise ValueError(f"{name} {wrong}: write {kind.write}")


def is_secret(text: str, environ: Environ) -> bool:
    """Whether a value that is wrong here would be right in a secret's place, or holds one, as a URL may."""
    for each in fields(Settings):
        with suppress(ValueError):  # its file may be missing
            name, declared = each.name.upper(), each.metadata
            if declared["secret"] and (secret := raw_setting(name, declared, environ)) and secret in text:
                return True
    return "@" in text or re.fullmatch("[A-Z]{0,2}[0-9a-zA-Z]{32}", text) is not None


def raw_setting(name: str, declared: Mapping[str, Any], environ: Environ) -> str:
    """The text of a setting, from NAME or, for a secret, from the file that NAME_FILE names."""
    text = environ.get(name, "")
    path = environ.get(f"{name}_FILE", "") if declared["secret"] else ""
    if text and path:
        raise ValueError(f"{name} and {name}_FILE are both set: remove one of them")
    if path:
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, ValueError) as error:  # its path is not shown: it may be the secret, put there by mistake
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise ValueError(f"{name}_FILE names a file that cannot be read ({why}): mount it") from None
    return text.strip("\ufeff\r\n") if declared["secret"] else text.strip()  # Windows' editors begin with U+FEFF


def contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each pair of settings that contradict each other; what could not be read is left out."""

    def given(*names: str) -> int | None:
        return sum(bool(values[name]) for name in names) if values.keys() >= set(names) else None

    if given("twilio_from_number", "twilio_messaging_service_sid") in (0, 2):
        sender = f"the texts' sender: {SENDER.write}, or {SERVICE_SID.write}"
        yield f"TWILIO_FROM_NUMBER and TWILIO_MESSAGING_SERVICE_SID: set exactly one of them, {sender}"
    if given("twilio_api_key_sid", "twilio_api_key_secret") == 1:
        yield "TWILIO_API_KEY_SID and TWILIO_API_KEY_SECRET: set both or none"
    elif given("twilio_auth_token", "twilio_api_key_sid") in (0, 2):
        credentials = f"the credentials: the account's auth token, or {KEY_SID.write}, and TWILIO_API_KEY_SECRET"
        yield f"TWILIO_AUTH_TOKEN and TWILIO_API_KEY_SID: set exactly one of them, {credentials}"
    if given("shard_count", "job_completion_index") is None:
        return
    count, index = values["shard_count"], values["job_completion_index"]
    if index not in range(count) and (count, index) != (1, ""):
        found = "missing" if index == "" else index
        yield f"JOB_COMPLETION_INDEX ({found}) must be below SHARD_COUNT ({count}): let k8s/components/sharded set both"


# --- the log ----------------------------------------------------------------------------------------------------------

RUN = secrets.token_hex(4)  # tells the lines of one run from another's


def tell(failure: NotifierError, about: str = "") -> None:
    """Log a failure, a line for each of its arguments, which begins with what it is about."""
    for line in failure.args:
        log.error("%s%s", about, line.removeprefix(about))


def warn(doubts: Iterable[str]) -> None:
    """Log what looks wrong but stops nobody."""
    for doubt in doubts:
        log.warning("%s", doubt)


def set_up_logging(environ: Environ) -> None:
    """One line for each record, on standard error; a closed log is no reason to stop."""
    OneLine.settings = None
    OneLine.pii = environ.get("LOG_PII", "").strip() != "off"
    OneLine.objects = environ.get("LOG_FORMAT", "").strip() == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s - %(name)s - %(levelname)s - %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.raiseExceptions = False
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # it warns of odd answers with whole URLs
    log.setLevel(logging.INFO)


class OneLine(logging.Formatter):
    """A line for each record, its time in UTC: nothing that is logged can forge another line."""

    converter = staticmethod(time.gmtime)
    pii, objects = True, False  # LOG_PII and LOG_FORMAT, also when other settings are wrong
    settings: Settings | None = None  # known once they are read: the secrets that libraries could say

    def format(self, record: logging.LogRecord) -> str:
        """The record, with every character that does not print escaped."""
        if not self.pii and isinstance(record.args, tuple):
            record = logging.makeLogRecord(record.__dict__ | {"args": tuple(map(masked, record.args))})
        if self.objects:
            return self.as_json(record)
        line = self.shown(super().format(record), record)
        return line if line.isprintable() else "".join(c if shows(c) else repr(c)[1:-1] for c in line)

    def shown(self, text: str, record: logging.LogRecord) -> str:
        """The text without secrets, if it is a library's; with LOG_PII=off without what is a person's."""
        if self.settings and (record.name != log.name or record.exc_info):
            text = self.settings.hide(text)
        return text if self.pii else impersonal(text)

    def as_json(self, record: logging.LogRecord) -> str:
        said = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ"), "level": record.levelname}
        said |= {"message": record.getMessage(), "run": RUN} | getattr(record, "fields", {})
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        shown = {name: self.shown(it, record) if isinstance(it, str) else it for name, it in said.items()}
        return json.dumps(shown, default=str)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name that logging knows
        """A traceback; with LOG_PII=off without the exception's words, which may hold anything."""
        return super().formatException(ei) if self.pii else f"{''.join(traceback.format_tb(ei[2]))}{ei[0].__name__}"


class Personal(str):
    """A name or a number of a person, which LOG_PII=off hides."""


def masked(value: object) -> object:
    """A value without what it tells of a person, but for the id."""
    if isinstance(value, User):
        return f"(ID: {shown_id(value.id)})"
    return masked_number(value) if isinstance(value, Personal) else value


def impersonal(text: str) -> str:
    """A text without quotations of others, which may hold anything, and without people's numbers."""
    text = re.sub("“[^”]*”", "(hidden)", text)
    number = rf"(?!{re.escape(EXAMPLE)}(?![0-9]))(\+|%2B)([0-9]{{7,15}})(?![0-9])"
    return re.sub(number, lambda found: masked_number("+" + found[2]), text)


def masked_number(text: str) -> str:
    """A number's country and last digits; nothing of anything else."""
    return f"{text[:2]}******{text[-4:]}" if E164.fullmatch(text) else "(hidden)"


# --- main -------------------------------------------------------------------------------------------------------------

MODES: dict[str, tuple[Callable[[Job], Exit], str]] = {
    "run": (Job.run, "text everybody who is due (the default)"),
    "settle": (Job.settle, "only ask Twilio what became of texts whose end is not known yet"),
    "dry-run": (dry_run, "name who would be texted now; write nothing, ask Twilio nothing"),
    "explain": (explain, "why a user is texted or not: days, logs, gates, ledger, the next possible text"),
    "check": (check, "say of all that a run needs whether it is there; send nothing, write nothing"),
}
WITHOUT_TWILIO = "dry-run", "explain"  # they need the DB_ settings alone, and may be asked about another moment
PINGS = {Exit.DONE: "", Exit.ACT: "/fail"}  # of HEARTBEAT_URL; after others the Job tries again
PING_SECONDS = 5.0
TERMINATION_LOG = Path("/dev/termination-log")  # what Kubernetes shows of a container that has ended: 4,096 bytes


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The mode that the command line asks for."""
    story = (__doc__ or "").split("Settings are")[0].strip()
    parser = argparse.ArgumentParser(
        description=story, epilog=settings_help(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group()
    for name, (_, words) in MODES.items():
        if name == "explain":
            group.add_argument("--explain", metavar="USER_ID", help=words)
        else:
            group.add_argument(f"--{name}", dest="mode", action="store_const", const=name, default="run", help=words)
    parser.add_argument("--now", type=moment, help="for --dry-run and --explain: another moment, 2026-03-29T09:00:00Z")
    found = parser.parse_args(argv)
    found.mode = "explain" if found.explain is not None else found.mode
    if found.now and found.mode not in WITHOUT_TWILIO:
        parser.error("--now goes with --dry-run or --explain")
    return found


def moment(text: str) -> datetime:
    with suppress(ValueError, OverflowError):
        instant = datetime.fromisoformat(text)
        if instant.tzinfo and 1970 < instant.year < 9000:
            return instant.astimezone(UTC)
    raise argparse.ArgumentTypeError(f"{text!r} is no moment with its zone: write it like 2026-03-29T09:00:00Z")


def settings_help() -> str:
    """The settings for --help, from their declarations."""
    lines = ["settings (environment variables; a secret can also come from the file that NAME_FILE names):"]
    for declared in fields(Settings):
        default = declared.metadata["default"]
        kind = "required" if default is None else f"default: {default}" if default else "optional"
        secret = ", secret" if declared.metadata["secret"] else ""
        lines += [f"  {declared.name.upper()} ({kind}{secret})", f"      {declared.metadata['help']}"]
    lines += ["  HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE", "      as usual for requests to Twilio and HEARTBEAT_URL"]
    return "\n".join(lines)


utc_now = partial(datetime.now, UTC)


def main(
    argv: Sequence[str] | None = None, environ: Environ = os.environ, clock: Clock = utc_now, stop: Stop | None = None
) -> int:
    """Run the mode that the arguments name; the exit code."""
    asked, report = parse_arguments(argv), Report()
    set_up_logging(environ)
    pings = heartbeat(environ) if asked.mode == "run" else ""
    ping(pings, "/start")
    code = carry_out(asked, report, environ, clock, stop or Stop())
    summary = report.summary(asked.mode, code)
    leave_summary(summary)
    if code in PINGS:
        ping(pings, PINGS[code], {key: value for key, value in summary.items() if key != "error"})
    return code


def carry_out(asked: argparse.Namespace, report: Report, environ: Environ, clock: Clock, stop: Stop) -> Exit:
    """Do what was asked for; the exit code. Whatever goes wrong is told."""
    try:
        not_needed = ("TWILIO_",) if asked.mode in WITHOUT_TWILIO else ()
        OneLine.settings = settings = Settings.read(environ, without=not_needed)
        if asked.mode in ("run", "settle") or settings.log_level == "DEBUG":  # the lines of the others are their answer
            log.setLevel(settings.log_level)
        job = Job(settings, report, (lambda: asked.now) if asked.now else clock, stop)
        job.about = asked.explain or ""
        job.database.as_of = asked.now
        with watchdog(job, asked.mode):
            code = MODES[asked.mode][0](job)
        if job.brake.failure:
            report.error = str(job.brake.failure)
    except NotifierError as failure:
        tell(failure, "settings: " if asked.mode == "check" else "")  # as its other lines begin
        report.error = str(failure)
        return failure.exit_code
    except Exception:  # nobody is texted twice even so: the ledger has every claim
        log.critical("A fault of the program, please report it", exc_info=True)
        report.error = "a fault of the program"
        return Exit.TERMINATED if stop.requested else Exit.RETRY
    return code


def heartbeat(environ: Environ) -> str:
    """HEARTBEAT_URL, also when other settings are wrong; '' in all shards but the first."""
    with suppress(ValueError):
        url = read_setting("HEARTBEAT_URL", Settings.__dataclass_fields__["heartbeat_url"].metadata, environ)
        return str(url).rstrip("/") if environ.get("JOB_COMPLETION_INDEX", "") in ("", "0") else ""
    return ""


def ping(url: str, end: str, summary: Mapping[str, Any] | None = None) -> None:
    """Tell the dead man's switch; whatever comes of it, for PING_SECONDS at most, is only logged."""
    if not url:
        return
    try:
        problem = in_background(partial(post_ping, url + end, summary)).result(PING_SECONDS)
    except TimeoutError:
        problem = f"no answer within {PING_SECONDS:g} s"
    except Exception as error:  # noqa: BLE001 - a run does not depend on it
        problem = type(error).__name__
    if problem:
        log.warning("HEARTBEAT_URL was not told: %s", problem)


def post_ping(url: str, summary: Mapping[str, Any] | None) -> str:
    """Post the summary; what is wrong about the answer, of which no more is read than is looked at."""
    with requests.post(url, json=summary, timeout=PING_SECONDS, allow_redirects=False, stream=True) as answer:
        if answer.status_code >= 300:
            return f"HTTP {answer.status_code}"
        unknown = answer.raw.read(14, decode_content=True) == b"OK (not found)"  # as healthchecks.io says with HTTP 200
        return "it is not the address of a check, or of one that was deleted" if unknown else ""


def leave_summary(summary: Mapping[str, Any]) -> None:
    """Tell Kubernetes how the run ended, where there is one."""
    with suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_bytes(json.dumps(summary, ensure_ascii=False).encode())


def start() -> None:
    """Be the process: end it at once, whatever threads still wait for and whoever has closed the log."""
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop.request)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    os._exit(main(stop=stop))


if __name__ == "__main__":
    start()
