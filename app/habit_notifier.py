#!/usr/bin/env python3
"""Text every user who fell behind on their habits: the right person, in their own days, at most once a day.

Run once a day by a Kubernetes CronJob, it reads a habit tracker's MySQL database and texts through Twilio.

Rules. In the user's own time zone, day 2 is yesterday and day 1 the day before:

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

Order. Judge a page of users, claim a few, post them, record the answers, and so on; in the end ask Twilio what became
of earlier texts whose end is not known, and delete rows that are older than 90 days.

Shards. Several runs side by side may share the users out: each serves those whose id falls to it.

Failures. One bad row never stops the rest. Of the pages that were looked at, every user who was due and not served is
named, counted and explained; users beyond are counted. What concerns everybody (database, credentials, sender) ends
the run, after what is in flight was recorded. "Failed" counts those due who got no text, or perhaps none.

Exit codes: 0 done; 1 not everybody was served, a retry helps; 2 a person must act first, the log says how; 143 SIGTERM
came: what was in flight is recorded, the next run goes on. The highest of 2 > 143 > 1 > 0 wins.

Settings are environment variables, declared in the class Settings; --help prints them all.
"""

from __future__ import annotations

import signal
import time


class Stop:
    """Whether SIGTERM came. A plain attribute: Event.set could wait for a lock that the interrupted code holds."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, *_signal: object) -> None:
        """Ask the run to end; a signal handler."""
        self.requested = True

    def sleep(self, seconds: float) -> bool:
        """Sleep, but wake at once on SIGTERM; whether the seconds were slept out."""
        until = time.monotonic() + seconds
        while not self.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return not self.requested


STOP = Stop()
if __name__ == "__main__":  # before the slow imports: as PID 1, a process without a handler ignores SIGTERM
    signal.signal(signal.SIGTERM, STOP.request)
    signal.signal(signal.SIGINT, STOP.request)

import argparse
import json
import logging
import os
import random
import re
import secrets
import ssl
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from email.utils import parsedate_to_datetime
from enum import Enum, IntEnum, StrEnum
from functools import cache
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pymysql
import pytz
import requests
import urllib3.exceptions
from twilio.http import HttpClient
from twilio.http.response import Response
from twilio.rest import Client

log = logging.getLogger(__name__)
T = TypeVar("T")

# --- constants --------------------------------------------------------------------------------------------------------

SPACING = timedelta(hours=11, minutes=30)  # between two texts to one user, whatever their local day says
RETENTION = timedelta(days=90)  # of the ledger's rows

FIRST_PAGE, PAGE_USERS = 1_000, 10_000  # users judged by one query: by the first one, and at most
PAGE_SECONDS = 1.0, 3.0  # a page that took less is followed by one of twice the users, one that took more by a half
IN_LIST = 500  # ids in one IN (...): from 1,000 on MariaDB turns the list into a subquery
KEYS = 500  # ledger rows that one statement deletes or changes
PROGRESS_SECONDS = 10.0

DATABASE_CONNECT_TIMEOUT = 5  # seconds
DATABASE_TIMEOUT = 10  # seconds, for one statement
DATABASE_PATIENCE = 30.0  # seconds in which a lost database may come back
LAST_TIMEOUT, LAST_PATIENCE = 3, 1.0  # the same two after SIGTERM
HTTP_TIMEOUT = (5.0, 10.0)  # seconds to connect, and to wait for an answer
PROBE_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds: a new pod can be faster than its network policy
LONGEST_PAUSE = 120.0  # seconds, when Twilio says "too many" but not for how long
PAUSE_BUDGET = 600.0  # seconds that one run may spend in such pauses
STREAK = 10  # failures in a row that say: it's not these people, it's everybody
STREAK_OF_ALL = 3  # refusals that say so when there was nothing else

SETTLE_AFTER = timedelta(minutes=15)  # Twilio's list of messages lags behind
SETTLE_NOT_FOUND = timedelta(hours=12)  # beyond the 10 h that Twilio may keep a text queued
SETTLE_FINAL = timedelta(hours=72)  # no carrier's receipt comes later
SETTLE_BUDGET = 60.0  # seconds
SETTLE_ROWS = 20_000  # rows looked up by one run, the oldest first
SETTLE_SLACK = timedelta(minutes=1)  # between Twilio's clock and ours

E164 = re.compile(r"\+[1-9][0-9]{6,14}")  # ITU-T E.164: at most 15 digits
NAME_LENGTH = 40  # characters of a name that are shown: if all are of GSM-7, the default texts are one segment

# --- errors -----------------------------------------------------------------------------------------------------------


class Exit(IntEnum):
    """Exit codes, the weightier the later."""

    DONE = 0
    RETRY = 1
    TERMINATED = 143
    ACT = 2

    @classmethod
    def worst(cls, codes: Iterable[Exit]) -> Exit:
        """The code that outweighs the others; DONE when there are none."""
        return max(codes, key=list(cls).index, default=cls.DONE)


class NotifierError(Exception):
    """A failure that concerns the whole run. Each argument is one line for the log, with the remedy."""

    exit_code = Exit.RETRY


class RetryLater(NotifierError):  # noqa: N818 - named by what the caller should do next
    """The set-up is right as far as we know: the same run may succeed later."""


class FixFirst(NotifierError):  # noqa: N818
    """A person must act before a retry can help."""

    exit_code = Exit.ACT


class Terminated(NotifierError):  # noqa: N818
    """SIGTERM came."""

    exit_code = Exit.TERMINATED


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How a setting's text becomes its value (ValueError when it can't), and what to write instead."""

    parse: Callable[[str], Any]
    write: str


def matching(pattern: str, write: str) -> Kind:
    """A text that the whole pattern matches."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Kind(parse, write)


def whole(low: int, high: int) -> Kind:
    """A whole number from low to high."""

    def parse(text: str) -> int:
        if not re.fullmatch("[0-9]+", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Kind(parse, f"a whole number from {low} to {high}")


def ca_file(path: str) -> str:
    """The path itself, if its file holds a certificate."""
    try:
        ssl.create_default_context(cafile=path)
    except OSError:  # SSLError is one
        raise ValueError from None
    return path


def message_template(text: str) -> str:
    """The text itself, if {name} is all that there is to fill in."""
    longest = text.replace("{name}", "n" * NAME_LENGTH)
    if re.search("[{}]", longest) or len(longest) > 1_600:  # Twilio's limit, error 21617
        raise ValueError
    return text


def time_zone(name: str) -> str:
    """The name itself, if there is such a zone."""
    if not resolve_zone(name):
        raise ValueError
    return name


def api_url(text: str) -> str:
    """The base URL; http, which would show the credentials to the network, is for this machine's own addresses."""
    url = urlsplit(text)
    local = re.fullmatch(r"localhost|127(\.[0-9]+){3}|::1", url.hostname or "") is not None
    port = "" if url.port is None else f":{url.port}"
    if url.scheme not in ({"https", "http"} if local else {"https"}) or not url.hostname:
        raise ValueError
    if text.rstrip("/").lower() not in {f"{url.scheme}://{host}{port}" for host in (url.hostname, f"[{url.hostname}]")}:
        raise ValueError  # credentials, a path, a query
    return text.rstrip("/")


TEXT = Kind(str, "it")
HOST = matching(
    r"[\w-]{1,63}(\.[\w-]{1,63})*\.?|[0-9a-fA-F]*(:[0-9a-fA-F.]*){2,7}",
    "a host name or an address, without scheme and port",
)
SENDER = matching(rf"{E164.pattern}|[0-9]{{3,8}}", "your Twilio number with its country code, such as +14155550123")
ZONE = Kind(time_zone, "a tz database name such as Europe/Berlin")
TEMPLATE = Kind(message_template, "a text of at most 1,600 characters, names included, with no braces but {name}")
LEVEL = matching("DEBUG|INFO|WARNING|ERROR", "DEBUG, INFO, WARNING or ERROR")
PLACEHOLDER = re.compile(r"your-\S*|\+1234567890", re.IGNORECASE)


def setting(help: str, kind: Kind = TEXT, default: str | None = None, *, secret: bool = False) -> Any:  # noqa: A002
    """Declare a setting. Without a default it is required; a secret may come from a file and is never shown."""
    return field(repr=not secret, metadata={"help": help, "kind": kind, "default": default, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """Every setting, declared once. The environment variable is the field's name in capitals."""

    db_host: str = setting("MySQL's host: the primary, not a read-only replica", HOST)
    db_port: int = setting("MySQL's port", whole(1, 65535), "3306")
    db_name: str = setting("the database that holds User, Habit and Log")
    db_user: str = setting("database account", secret=True)
    db_password: str = setting("its password", secret=True)
    db_ssl_ca: str = setting(
        "path of a CA certificate: MySQL is then spoken to by TLS alone, its certificate and name verified",
        Kind(ca_file, "the path of a PEM file with certificates that this user can read"),
        "",
    )
    twilio_account_sid: str = setting(
        "Twilio account", matching("AC[0-9a-fA-F]{32}", "the Account SID: AC and 32 hexadecimal digits"), secret=True
    )
    twilio_auth_token: str = setting("the account's auth token", TEXT, "", secret=True)
    twilio_api_key_sid: str = setting(
        "with TWILIO_API_KEY_SECRET, instead of the auth token: an API key, which can be revoked alone",
        matching("SK[0-9a-fA-F]{32}", "the key's SID: SK and 32 hexadecimal digits"),
        "",
        secret=True,
    )
    twilio_api_key_secret: str = setting("the API key's secret", TEXT, "", secret=True)
    twilio_from_number: str = setting("the number that texts come from", SENDER, "")
    twilio_messaging_service_sid: str = setting(
        "instead of the number: a Messaging Service, which picks one of its senders",
        matching("MG[0-9a-fA-F]{32}", "the service's SID: MG and 32 hexadecimal digits"),
        "",
    )
    twilio_api_url: str = setting(
        "base URL of Twilio's API, for a proxy or a test",
        Kind(api_url, "https://HOST[:PORT]; http is for localhost only"),
        "https://api.twilio.com",
    )
    twilio_edge: str = setting("Twilio edge location, such as dublin", TEXT, "")
    twilio_region: str = setting("Twilio region, such as ie1", TEXT, "")
    send_concurrency: int = setting("texts posted at the same time", whole(1, 64), "8")
    default_time_zone: str = setting("for users whose own zone is missing or unknown; else they are skipped", ZONE, "")
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
    run_deadline: int = setting("seconds after which a run takes no more work", whole(1, 86_400), "1500")
    shard_count: int = setting("runs that share the users out among them", whole(1, 1_000), "1")
    job_completion_index: int | str = setting(
        "which of them this one is, from 0; Kubernetes sets it in an Indexed Job", whole(0, 999), ""
    )
    log_level: str = setting("how much to log", LEVEL, "INFO")

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Settings:
        """Read all settings.

        :raises FixFirst: with a line for every variable that is missing, wrong or at odds with another
        """
        values, problems = {}, []
        for declared in fields(cls):
            try:
                values[declared.name] = read_setting(declared.name.upper(), declared.metadata, environ)
            except ValueError as error:
                problems.append(str(error))
        problems += odds(values)
        if problems:
            raise FixFirst(*problems)
        return cls(**values)

    @property
    def shard(self) -> int:
        """Which share of the users is this run's, from 0."""
        return int(self.job_completion_index or 0)

    def shown(self) -> str:
        """The settings that differ from their defaults, without the secrets."""
        pairs = ((f.name.upper(), str(getattr(self, f.name)), f.metadata) for f in fields(self) if f.repr)
        return ", ".join(f"{name}={value}" for name, value, declared in pairs if value != declared["default"])


def read_setting(name: str, declared: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """The parsed value of one setting; its default ('' for an optional one) when it is not set.

    :raises ValueError: with the name, what is wrong and what to write
    """
    text = raw_setting(name, declared, environ) or declared["default"]
    if text is None:
        raise ValueError(f"{name} is missing: write {declared['help']}")
    if text == "":
        return ""
    shown = "" if declared["secret"] or "@" in text else f" {text!r}"  # user:password@host, where a host was asked for
    if PLACEHOLDER.fullmatch(text):
        raise ValueError(f"{name} is still the placeholder{shown}: write {declared['help']}")
    try:
        return declared["kind"].parse(text)
    except ValueError:
        wrong = f"is{shown}" if shown else "has a value that cannot be right"
        raise ValueError(f"{name} {wrong}: write {declared['kind'].write}") from None


def raw_setting(name: str, declared: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """The text of a setting, from NAME or, for a secret, from the file that NAME_FILE names."""
    text = environ.get(name, "")
    path = environ.get(f"{name}_FILE", "") if declared["secret"] else ""
    if text and path:
        raise ValueError(f"{name} and {name}_FILE are both set: remove one of them")
    if path:
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}_FILE names {path!r}, which cannot be read ({error}): mount the file") from None
    return text.strip("\r\n") if declared["secret"] else text.strip()


def odds(values: Mapping[str, Any]) -> Iterator[str]:
    """A line for each pair of settings that contradict each other; what could not be read is left out."""

    def given(*names: str) -> int:
        return sum(bool(values.get(name)) for name in names)

    senders = "twilio_from_number", "twilio_messaging_service_sid"
    if values.keys() >= set(senders) and given(*senders) != 1:
        yield "TWILIO_FROM_NUMBER and TWILIO_MESSAGING_SERVICE_SID: set exactly one of them, the texts' sender"
    if values.keys() >= {"twilio_auth_token", "twilio_api_key_sid", "twilio_api_key_secret"}:
        if given("twilio_api_key_sid") != given("twilio_api_key_secret"):
            yield "TWILIO_API_KEY_SID and TWILIO_API_KEY_SECRET: set both or none"
        elif given("twilio_auth_token", "twilio_api_key_sid") != 1:
            yield "TWILIO_AUTH_TOKEN and TWILIO_API_KEY_SID: set exactly one of them, the credentials"
    if given("twilio_edge", "twilio_region") and values.get("twilio_api_url") != "https://api.twilio.com":
        yield "TWILIO_API_URL: remove it, or TWILIO_EDGE and TWILIO_REGION, which would rewrite its host"
    if values.keys() >= {"shard_count", "job_completion_index"}:
        count, index = values["shard_count"], values["job_completion_index"]
        if index not in range(count) and (count, index) != (1, ""):
            yield (
                f"JOB_COMPLETION_INDEX ({index or 'missing'}) must be below SHARD_COUNT ({count}): let "
                "k8s/components/sharded set both"
            )


# --- records ----------------------------------------------------------------------------------------------------------

UserId = int | str
Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Rule:
    """Why a user is texted, and the field of Settings with the text."""

    key: str
    reason: str
    message: str


@dataclass(frozen=True)
class Days:
    """A user's last two days as half-open UTC intervals: day 1 [day1, day2), day 2 [day2, end)."""

    today: date
    day1: datetime
    day2: datetime
    end: datetime


@dataclass(frozen=True)
class User:
    """A user who is due, having logged nothing on day 2; or, without a zone key, one whose days cannot be told."""

    id: UserId
    name: str
    phone: str
    unknown_zone: str
    zone_key: bytes | None
    logged_day1: bool

    def __str__(self) -> str:
        return f"{self.name or '(no name)'} (ID: {self.id})"


@dataclass(frozen=True)
class Reminder:
    """One text that is due."""

    user_id: UserId
    name: str
    phone: str
    rule: Rule
    local_day: date

    def __str__(self) -> str:
        return f"{self.name or '(no name)'} (ID: {self.user_id})"


@dataclass(frozen=True)
class Skip:
    """Why a user gets no text."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Claim:
    """A reminder that is this run's to post: its row of the ledger carries the token."""

    reminder: Reminder
    token: str
    at: datetime


class State(StrEnum):
    """What a row of the ledger says of its text."""

    SENDING = "sending"
    SENT = "sent"
    REFUSED = "refused"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True)
class Row:
    """A row of the ledger."""

    user_id: UserId
    local_day: date
    phone: str
    state: State
    token: str
    claimed_at: datetime
    finished_at: datetime | None
    sid: str | None
    code: int | None

    def last_possible_text(self, deadline: timedelta) -> datetime:
        """The latest instant at which this row's text can have been posted, if its run had that deadline."""
        return self.finished_at or self.claimed_at + deadline


class Outcome(Enum):
    """What became of a user: words for the log, whether it counts as Failed, the exit code it asks for, log level."""

    SENT = ("sent", False, Exit.DONE, logging.INFO)
    ALREADY = ("already handled today", False, Exit.DONE, logging.DEBUG)
    DEFERRED = ("deferred", False, Exit.DONE, logging.INFO)
    REMEMBERED = ("refused earlier", False, Exit.DONE, logging.INFO)
    BAD_ZONE = ("skipped (time zone)", False, Exit.DONE, logging.WARNING)
    BAD_PHONE = ("skipped (phone number)", False, Exit.DONE, logging.WARNING)
    REFUSED = ("refused", True, Exit.DONE, logging.WARNING)
    UNCERTAIN = ("uncertain", True, Exit.DONE, logging.WARNING)
    RELEASED = ("not sent", True, Exit.RETRY, logging.WARNING)
    NOT_TRIED = ("not tried", True, Exit.RETRY, logging.WARNING)

    def __init__(self, words: str, failed: bool, exit_code: Exit, level: int) -> None:
        self.words, self.failed, self.exit_code, self.level = words, failed, exit_code, level


class Action(Enum):
    """What an answer of Twilio asks for, and the outcome for this person."""

    ACCEPT = (Outcome.SENT,)
    REFUSE = (Outcome.REFUSED, "this person, for good")
    SKIP = (Outcome.REFUSED, "this person, today")
    FAIL = (Outcome.REFUSED, "this person, today; a streak stops the run")
    UNCERTAIN = (Outcome.UNCERTAIN, "whether it was sent is unknown; a streak stops the run")
    UNREACHED = (Outcome.RELEASED, "surely not sent; a streak stops the run")
    PAUSE = (Outcome.RELEASED, "everybody waits, then this person is tried again")
    STOP = (Outcome.RELEASED, "a person must act: the run stops")

    def __init__(self, outcome: Outcome, *_meaning: str) -> None:
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


@dataclass(frozen=True)
class Result:
    """What became of a claim."""

    claim: Claim
    answer: Answer

    @property
    def outcome(self) -> Outcome:
        """What became of the user."""
        return self.answer.action.outcome


@dataclass(frozen=True)
class Message:
    """A text in Twilio's list."""

    sid: str
    to: str
    status: str
    code: int | None
    created: datetime | None


@dataclass(frozen=True)
class Settlement:
    """What Twilio says of a row: its state, SID and error code from now on, and Twilio's last word if it is one."""

    row: Row
    state: State
    sid: str | None
    code: int | None
    final_status: str | None


# --- rules: pure functions --------------------------------------------------------------------------------------------

NO_LOGS = Rule("no_logs", "No logs in the past 2 days", "message_no_logs")
MISSED_YESTERDAY = Rule("missed_yesterday", "Missed yesterday", "message_missed_yesterday")


def rule_for(*, logged_day1: bool) -> Rule:
    """The rule for whoever logged nothing on day 2; about all others the database is not even asked."""
    return MISSED_YESTERDAY if logged_day1 else NO_LOGS


def days_of(now: datetime, zone: pytz.BaseTzInfo) -> Days:
    """The two days before the one that it is now in the zone."""
    today = now.astimezone(zone).date()
    day1, day2, end = (local_midnight(today - timedelta(days=n), zone) for n in (2, 1, 0))
    return Days(today, day1, day2, end)


def local_midnight(day: date, zone: pytz.BaseTzInfo) -> datetime:
    """The UTC instant at which a local day begins.

    A midnight that comes twice (clocks go back) means the first; one that a jump of the clocks leaves out, the jump.
    """
    midnight = datetime.combine(day, time_of_day())
    try:
        local = zone.localize(midnight, is_dst=None)
    except pytz.AmbiguousTimeError:
        local = zone.localize(midnight, is_dst=True)
    except pytz.NonExistentTimeError:
        local = zone.localize(midnight, is_dst=False)
    return local.astimezone(UTC)


@cache
def resolve_zone(name: str) -> pytz.BaseTzInfo | None:
    """The zone of a tz database name, whatever its case and surrounding blanks; None when there is none."""
    try:
        return pytz.timezone(name.strip())
    except pytz.UnknownTimeZoneError:
        return None


def clean(value: object) -> str:
    """The value as one line, without characters that don't print: what is read from the database can forge nothing."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str("" if value is None else value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())


def message_for(reminder: Reminder, settings: Settings) -> str:
    """The text that a person reads."""
    template: str = getattr(settings, reminder.rule.message)
    return template.replace("{name}", reminder.name or "there")


def judge(user: User, days: Mapping[bytes, Days]) -> Reminder | Skip:
    """The reminder that is due to a user, or why there can be none."""
    if user.zone_key is None:
        if resolve_zone(user.unknown_zone):
            return Skip(
                Outcome.BAD_ZONE, f"time zone {user.unknown_zone!r} came in use during this run: the next one serves"
            )
        wrong = f"time zone {user.unknown_zone!r} is unknown" if user.unknown_zone else "there is no time zone"
        return Skip(Outcome.BAD_ZONE, f"{wrong}: correct User.time_zone or set DEFAULT_TIME_ZONE")
    if not E164.fullmatch(user.phone):
        reason = f"phone number {user.phone!r} is not E.164, such as +14155550123: correct User.phone_number"
        return Skip(Outcome.BAD_PHONE, reason)
    rule, today = rule_for(logged_day1=user.logged_day1), days[user.zone_key].today
    return Reminder(user.id, user.name, user.phone, rule, today)


def already(reminder: Reminder, rows: Iterable[Row], retry_days: int) -> Skip | None:
    """Why the ledger says that a reminder need not be tried; None when it may be claimed."""
    for row in rows:
        age = (reminder.local_day - row.local_day).days
        if row.state is State.REFUSED and row.phone != reminder.phone:
            continue  # a new number is tried at once
        if age == 0 and row.state is State.SENDING:
            return Skip(Outcome.UNCERTAIN, "another run is texting this user, or was cut off while it did")
        if age == 0:
            return Skip(Outcome.ALREADY, f"{row.state} today")
        if row.state is State.REFUSED and is_permanent(row.code) and age < retry_days:
            return Skip(
                Outcome.REMEMBERED, f"Twilio refused {row.phone} for good on {row.local_day} (error {row.code})"
            )
    return None


def is_outdated(row: Row, reminder: Reminder) -> bool:
    """Whether the row bars this day because of a number that the user no longer has."""
    return row.state is State.REFUSED and row.local_day == reminder.local_day and row.phone != reminder.phone


def not_ours(claim: Claim, rows: Iterable[Row], deadline: timedelta) -> Skip | None:
    """Why a claim may not be posted, from the user's rows after it was made; None when it may."""
    today = {row.token: row.state for row in rows if row.local_day == claim.reminder.local_day}
    if claim.token not in today:
        if not today:  # another run held the day for a moment, and released it
            return Skip(
                Outcome.NOT_TRIED, "its claim is gone from the ledger: another run held the day and released it"
            )
        sending = State.SENDING in today.values()
        return Skip(Outcome.UNCERTAIN if sending else Outcome.ALREADY, "another run texts this user at the same moment")
    others = (row for row in rows if row.token != claim.token and row.state is not State.REFUSED)
    last = max((row.last_possible_text(deadline) for row in others), default=None)
    if last and last > claim.at - SPACING:
        return Skip(
            Outcome.DEFERRED,
            f"another text may have been posted as late as {last:%Y-%m-%d %H:%M} UTC, not 11 h 30 min ago",
        )
    return None


def settlements(
    found: Sequence[tuple[Row, list[Message]]], rivals: Sequence[Row], now: datetime, deadline: timedelta
) -> Iterator[Settlement]:
    """What Twilio's messages say of the rows. What is not one to one stays uncertain, and nothing ever frees a day.

    :param rivals: every row, of these numbers, that may have a message of its own among them
    """
    taken = {row.sid for row in rivals if row.sid}
    claimants: Counter[str] = Counter()
    messages = {message.sid: message for _, listed in found for message in listed}
    for rival in rivals:
        claimants.update(candidates(rival, messages.values(), taken, deadline).keys())
    for row, listed in found:
        own = candidates(row, listed, taken, deadline)
        age = now - row.claimed_at
        if len(own) == 1 and (row.sid or claimants[next(iter(own))] == 1):
            [message] = own.values()
            final = message.status in FINAL_STATUSES or age > SETTLE_FINAL
            yield Settlement(row, State.SENT, message.sid, message.code, message.status if final else None)
        elif age > SETTLE_NOT_FOUND:
            yield Settlement(row, State.SENT if row.sid else State.UNCERTAIN, row.sid, row.code, "unknown")


def candidates(
    row: Row, messages: Iterable[Message], taken: Collection[str], deadline: timedelta
) -> dict[str, Message]:
    """The messages, by SID, that may be a row's text; 'taken' are the SIDs that rows carry."""
    if row.sid:
        return {message.sid: message for message in messages if message.sid == row.sid}
    first, last = row.claimed_at - SETTLE_SLACK, row.last_possible_text(deadline) + SETTLE_SLACK
    return {
        message.sid: message
        for message in messages
        if message.to == row.phone and message.sid not in taken and message.created and first <= message.created <= last
    }


# --- store: MySQL -----------------------------------------------------------------------------------------------------


class Remedy(Enum):
    """What to do about an error of MySQL."""

    REPEAT = "the statement"
    RECONNECT = "and repeat the statement"
    RERUN = "later"
    FIX = "by a person"


READ_ONLY = "it is read-only: set DB_HOST to the primary"
EXPIRED = "the password of DB_USER has expired: give the account a new one"
LOCKED = "the account DB_USER is locked: ALTER USER ... ACCOUNT UNLOCK"
MYSQL_ERRORS: dict[int, tuple[Remedy, str]] = {
    -1: (Remedy.RECONNECT, "what answers is not MySQL: check DB_HOST and DB_PORT"),
    0: (Remedy.RECONNECT, "the connection was lost"),
    1040: (Remedy.RECONNECT, "it has too many connections: raise max_connections or run at a quieter time"),
    1044: (Remedy.FIX, "DB_USER may not use the database DB_NAME: check the name, or grant the account access"),
    1045: (Remedy.FIX, "it refused DB_USER or DB_PASSWORD: correct them in the Secret"),
    1049: (Remedy.FIX, "it has no database of the name DB_NAME: correct the name"),
    1053: (Remedy.RECONNECT, "it is shutting down"),
    1054: (Remedy.FIX, "a column is missing: the tables must be those of the README's schema"),
    1129: (Remedy.FIX, "it blocks this host after too many failed connections: FLUSH HOSTS there"),
    1130: (Remedy.FIX, "it lets DB_USER in from other hosts only: give the account this host, or '%'"),
    1142: (Remedy.FIX, "DB_USER lacks a grant on this table: see the grants in DEPLOYMENT.md"),
    1143: (Remedy.FIX, "DB_USER lacks a grant on this column: see the grants in DEPLOYMENT.md"),
    1146: (Remedy.FIX, "a table is missing (names are case-sensitive on Linux): check DB_NAME and the schema"),
    1203: (Remedy.RECONNECT, "the account has too many connections"),
    1205: (Remedy.REPEAT, "another transaction holds a lock"),
    1213: (Remedy.REPEAT, "a deadlock"),
    1226: (Remedy.RECONNECT, "the account has used up its hourly resources"),
    1290: (Remedy.FIX, READ_ONLY),
    1317: (Remedy.REPEAT, "the statement was interrupted"),
    1698: (Remedy.FIX, "it refused DB_USER, which may only log in by a socket: use an account with a password"),
    1792: (Remedy.FIX, READ_ONLY),
    1820: (Remedy.FIX, EXPIRED),
    1836: (Remedy.FIX, READ_ONLY),
    1862: (Remedy.FIX, EXPIRED),
    1927: (Remedy.RECONNECT, "the connection was killed"),
    2003: (Remedy.RECONNECT, "it cannot be reached: check DB_HOST, DB_PORT, the server and the NetworkPolicy"),
    2006: (Remedy.RECONNECT, "the connection was lost"),
    2026: (Remedy.FIX, "it offers no TLS: switch it on there, or remove DB_SSL_CA"),
    2013: (Remedy.RECONNECT, "the connection was lost, or it did not answer in time"),
    2059: (Remedy.FIX, "it wants a way to authenticate that this program lacks: use caching_sha2_password"),
    2061: (Remedy.FIX, "it wants a way to authenticate that this program lacks: use caching_sha2_password"),
    3118: (Remedy.FIX, LOCKED),
    3159: (Remedy.FIX, "it insists on TLS: set DB_SSL_CA"),
    3989: (Remedy.FIX, READ_ONLY),
    4031: (Remedy.RECONNECT, "the connection was idle for too long"),
    4151: (Remedy.FIX, LOCKED),
}
NO_SUCH_GRANT_OR_TABLE = {1142, 1146}


class DatabaseError(NotifierError):
    """An error of MySQL that more attempts did not, or cannot, mend."""

    def __init__(self, error: pymysql.err.MySQLError) -> None:
        self.number = error.args[0] if error.args and isinstance(error.args[0], int) else -1
        self.remedy, words = MYSQL_ERRORS.get(self.number, (Remedy.RERUN, "it refused a statement"))
        if isinstance(getattr(error, "original_exception", None), ssl.SSLCertVerificationError):
            self.remedy, words = Remedy.FIX, "DB_SSL_CA does not vouch for its certificate and for the name DB_HOST"
        said = "" if self.number in (0, 1045, 1698, 3118, 4151) else f": {error.args[-1] if error.args else error}"
        self.exit_code = Exit.ACT if self.remedy is Remedy.FIX else Exit.RETRY
        super().__init__(f"MySQL: {words} (error {self.number}{said})")


TABLES = {
    "User": ("id", "name", "phone_number", "time_zone"),
    "Habit": ("id", "user_id"),
    "Log": ("id", "habit_id", "created_at"),
}
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
LEDGER_COLUMNS = tuple(re.findall(r"^  `(\w+)`", LEDGER_DDL, re.MULTILINE))
ROW = "user_id, local_day, phone_number, state, run_token, claimed_at, finished_at, message_sid, error_code"

HAS_PHONE = "TRIM(u.phone_number) <> ''"  # NULL is not true either
# Zones are compared as bytes: a collation folds case and trailing blanks. NULL counts as the empty name.
ZONE_KEY = "COALESCE(CAST(CONVERT(u.time_zone USING utf8mb4) AS BINARY), '')"
LOGGED = """EXISTS (SELECT 1 FROM `Habit` h STRAIGHT_JOIN `Log` l ON l.habit_id = h.id
    WHERE h.user_id = u.id AND l.created_at >= z.{start} AND l.created_at < z.{end})"""


class Store:
    """The habit tracker's tables, and the ledger. Belongs to the main thread.

    Every statement may be repeated after a lost answer. Every method raises DatabaseError; `open` raises FixFirst, too.
    """

    def __init__(self, settings: Settings, stop: Stop) -> None:
        self._settings, self._stop = settings, stop
        # A checksum, since ids may be numbers or UUIDs.
        self._ours = f"{HAS_PHONE} AND CRC32(u.id) MOD {settings.shard_count} = {settings.shard}"
        self._connection: pymysql.Connection[Any] | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_error: object) -> None:
        self._disconnect()

    # connection

    def _connect(self) -> pymysql.Connection[Any]:
        s, timeout = self._settings, LAST_TIMEOUT if self._stop.requested else DATABASE_TIMEOUT
        tls: dict[str, Any] = (
            {"ssl_ca": s.db_ssl_ca, "ssl_verify_cert": True, "ssl_verify_identity": True} if s.db_ssl_ca else {}
        )
        connection: pymysql.Connection[Any] = pymysql.connect(
            host=s.db_host,
            port=s.db_port,
            user=s.db_user,
            password=s.db_password.encode(),  # of a str PyMySQL makes Latin-1, but MySQL expects UTF-8
            database=s.db_name,
            charset="utf8mb4",
            autocommit=True,
            connect_timeout=DATABASE_CONNECT_TIMEOUT,
            read_timeout=timeout,
            write_timeout=timeout,
            init_command="SET time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES', innodb_lock_wait_timeout = 5",
            **tls,
        )
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(pymysql.err.MySQLError):  # it may be lost already
                self._connection.close()
            self._connection = None

    def _run(self, sql: str, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; repeat it, or reconnect and repeat it, as MYSQL_ERRORS says."""
        start, pauses = time.monotonic(), chain((0.0, 0.2, 0.5, 1.0, 2.0), repeat(4.0))
        while True:
            try:
                return self._run_once(sql, args)
            except pymysql.err.MySQLError as error:
                failure = DatabaseError(error)
            if failure.remedy is Remedy.RECONNECT:
                self._disconnect()
            pause, patience = next(pauses), LAST_PATIENCE if self._stop.requested else DATABASE_PATIENCE
            if failure.remedy in (Remedy.FIX, Remedy.RERUN) or time.monotonic() + pause > start + patience:
                raise failure
            log.log(logging.WARNING if pause else logging.DEBUG, "Once more in %.1f s: %s", pause, failure)
            self._stop.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    def _run_once(self, sql: str, args: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = self._connect()
        with self._connection.cursor() as cursor:
            cursor.execute(sql, tuple(args))
            return list(cursor.fetchall())

    # set-up

    def open(self) -> None:
        """Connect, check the tables' columns, and make the ledger or check that it can be written.

        :raises FixFirst: when a table, a column, a type or a grant is not as needed
        """
        self._run("SELECT 1")
        log.info("Database connection established")
        for table, columns in TABLES.items():
            self._run(f"SELECT {', '.join(columns)} FROM `{table}` LIMIT 0")
        created_at, id_type = self._type_of("Log", "created_at"), self._type_of("User", "id")
        if not created_at.startswith(("datetime", "timestamp")):
            raise FixFirst(f"Log.created_at is {created_at}: it must be a TIMESTAMP or a DATETIME in UTC")
        self._open_ledger(id_type)
        if (ledger := self._type_of(LEDGER, "user_id")) != id_type:
            raise FixFirst(
                f"{LEDGER}.user_id is {ledger}, but User.id is {id_type}. Run as an administrator:",
                f"ALTER TABLE `{self._settings.db_name}`.`{LEDGER}` MODIFY `user_id` {id_type} NOT NULL;",
            )

    def _type_of(self, table: str, column: str) -> str:
        """The full type of a column, as a CREATE TABLE writes it."""
        [(_, kind, collation, *_)] = self._run(f"SHOW FULL COLUMNS FROM `{table}` WHERE Field = %s", [column])
        return f"{kind} COLLATE {collation}" if collation else str(kind)

    def _open_ledger(self, id_type: str) -> None:
        try:
            self._check_ledger()
        except DatabaseError as error:
            if error.number not in NO_SUCH_GRANT_OR_TABLE:
                raise
            self._create_ledger(LEDGER_DDL.format(database=self._settings.db_name, user_id=id_type))

    def _check_ledger(self) -> None:
        """Statements that touch no row, but fail when a column or a grant is missing or the server is read-only."""
        self._run(f"SELECT {', '.join(LEDGER_COLUMNS)} FROM {LEDGER} LIMIT 0")
        self._run(f"INSERT INTO {LEDGER} SELECT * FROM {LEDGER} WHERE FALSE")
        self._run(f"UPDATE {LEDGER} SET state = state WHERE FALSE")
        self._run(f"DELETE FROM {LEDGER} WHERE FALSE")

    def _create_ledger(self, ddl: str) -> None:
        try:
            self._run(ddl)
            self._check_ledger()
        except DatabaseError as error:
            if error.number not in {1044, *NO_SUCH_GRANT_OR_TABLE}:
                raise
            raise FixFirst(
                f"DB_USER may not create or write the ledger {LEDGER}. Run as an administrator:",
                " ".join(ddl.split()) + ";",
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{self._settings.db_name}`.`{LEDGER}` TO {self._account()};",
            ) from None
        log.info("Created the ledger %s", LEDGER)

    def _account(self) -> str:
        """The account of MySQL that the session runs as, quoted."""
        [(account,)] = self._run("SELECT CURRENT_USER()")
        user, _, host = account.rpartition("@")
        return f"'{user}'@'{host}'"

    # reading

    def newest_log(self) -> datetime | None:
        """The latest time stamp among the logs that were inserted last, as far as their ids tell."""
        [(newest,)] = self._run(
            "SELECT MAX(created_at) FROM (SELECT created_at FROM `Log` ORDER BY id DESC LIMIT 100) l"
        )
        return newest.replace(tzinfo=UTC) if isinstance(newest, datetime) else None  # a zero date is a str

    def users_by_zone(self) -> dict[bytes, int]:
        """How many users with a phone number this run has for each stored zone, as its UTF-8 bytes."""
        return dict(self._run(f"SELECT {ZONE_KEY}, COUNT(*) FROM `User` u WHERE {self._ours} GROUP BY 1"))

    def pages(self, days: Mapping[bytes, Days], total: int, now: datetime) -> Iterator[tuple[int, list[User]]]:
        """For each page of users with a phone number their count, and those who are due or whose days cannot be told.

        Starts at another place each day, so that a deadline does not starve the same people day after day.
        """
        golden = now.timestamp() // 86_400 * 0.618_033_988_75  # steps that spread evenly, however many
        [(middle,)] = self._run(
            f"SELECT (SELECT u.id FROM `User` u WHERE {self._ours} ORDER BY u.id LIMIT 1 OFFSET %s)",
            [int(golden % 1 * total)],
        )
        zones = zones_table(days)
        yield from self._pages(zones, middle, None)
        if middle is not None:
            yield from self._pages(zones, None, middle)

    def _pages(
        self, zones: tuple[str, list[object]], low: UserId | None, through: UserId | None
    ) -> Iterator[tuple[int, list[User]]]:
        """The pages of the ids in (low, through]; their size follows the time that they take."""
        size = min(FIRST_PAGE, PAGE_USERS)
        while (slice_ := self._slice(low, through, size))[0]:
            (count, high), began = slice_, time.monotonic()
            page = self._page(zones, low, high)
            low, size = high, next_size(size, time.monotonic() - began)
            yield count, page

    def _slice(self, low: UserId | None, through: UserId | None, size: int) -> tuple[int, UserId]:
        """How many users with a phone number are next in (low, through], at most so many, and the last one's id."""
        within, args = id_range(low, through)
        [(count, high)] = self._run(
            f"""SELECT COUNT(*), MAX(id) FROM (SELECT u.id FROM `User` u WHERE {within} AND {self._ours}
                                               ORDER BY u.id LIMIT {size}) slice""",
            args,
        )
        return count, high

    def _page(self, zones: tuple[str, list[object]], low: UserId | None, high: UserId) -> list[User]:
        within, args = id_range(low, high)
        table, bounds = zones
        rows = self._run(
            f"""SELECT u.id, u.name, u.phone_number, IF(z.zone IS NULL, u.time_zone, NULL), z.zone,
                       {LOGGED.format(start="day1", end="day2")}
                FROM `User` u LEFT JOIN ({table}) z ON z.zone = {ZONE_KEY}
                WHERE {within} AND {self._ours}
                  AND (z.zone IS NULL OR NOT {LOGGED.format(start="day2", end="day3")})
                ORDER BY u.id""",
            [*bounds, *args],
        )
        return [
            User(user_id, clean(name)[:NAME_LENGTH].strip(), clean(phone), clean(unknown_zone), zone, bool(day1))
            for user_id, name, phone, unknown_zone, zone, day1 in rows
        ]

    # ledger

    def history(self, reminders: Sequence[Reminder]) -> dict[UserId, list[Row]]:
        """The rows of these users that can matter today: those of the last days, and refusals that are remembered."""
        found: dict[UserId, list[Row]] = defaultdict(list)
        remembered = timedelta(days=max(2, self._settings.refused_retry_days))
        for part in chunks(reminders, IN_LIST):
            today = min(reminder.local_day for reminder in part)
            bounds = [today - timedelta(days=2), today - remembered]
            for row in self._rows(part, "(local_day >= %s OR local_day >= %s AND state = 'refused')", bounds):
                found[row.user_id].append(row)
        return found

    def _rows(self, reminders: Sequence[Reminder], where: str, args: Sequence[object]) -> list[Row]:
        sql = f"SELECT {ROW} FROM {LEDGER} WHERE user_id IN ({holes(reminders)}) AND {where}"
        return [as_row(values) for values in self._run(sql, [*(r.user_id for r in reminders), *args])]

    def claim(self, claims: Sequence[Claim]) -> tuple[list[Claim], list[tuple[Reminder, Skip]]]:
        """Write claims into the ledger; return those that are ours to post, and why the others are not.

        The check for a recent text comes after the claim: of two runs with different local days, one sees the other.
        """
        if not claims:
            return [], []
        self._insert(claims)
        since = min(claim.reminder.local_day for claim in claims) - timedelta(days=2)
        rows = defaultdict(list)
        for row in self._rows([claim.reminder for claim in claims], "local_day >= %s", [since]):
            rows[row.user_id].append(row)
        deadline = timedelta(seconds=self._settings.run_deadline)
        verdicts = [(claim, not_ours(claim, rows[claim.reminder.user_id], deadline)) for claim in claims]
        self.release([claim for claim, skip in verdicts if skip])
        return [c for c, skip in verdicts if not skip], [(c.reminder, skip) for c, skip in verdicts if skip]

    def _insert(self, claims: Sequence[Claim]) -> None:
        values = [
            (c.reminder.user_id, c.reminder.local_day, c.reminder.phone, c.reminder.rule.key, c.token, naive(c.at))
            for c in claims
        ]
        # Not INSERT IGNORE, which stores truncated values.
        self._run(
            f"""INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at)
                VALUES {", ".join(["(%s, %s, %s, %s, 'sending', %s, %s)"] * len(values))}
                ON DUPLICATE KEY UPDATE user_id = {LEDGER}.user_id""",
            list(chain.from_iterable(values)),
        )

    def record(self, results: Sequence[Result], now: datetime) -> None:
        """Write what became of the claims: keep the row of a text that may have been sent, delete the others'."""
        self.release([result.claim for result in results if result.outcome is Outcome.RELEASED])
        kept = [result for result in results if result.outcome is not Outcome.RELEASED]
        written = "state", "finished_at", "message_sid", "error_code", "final_status", "segments"
        ours = [f"{column} = IF(run_token = VALUES(run_token), VALUES({column}), {column})" for column in written]
        if kept:
            self._run(
                f"""INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, run_token, claimed_at, finished_at,
                                          state, message_sid, error_code, final_status, segments)
                    VALUES {", ".join(["(" + ", ".join(["%s"] * 12) + ")"] * len(kept))}
                    ON DUPLICATE KEY UPDATE {", ".join(ours)}""",
                list(chain.from_iterable(recorded(result, now) for result in kept)),
            )

    def release(self, claims: Sequence[Claim]) -> None:
        """Delete the rows of texts that were surely not sent, so that they may be tried again."""
        self._delete([(claim.reminder.user_id, claim.reminder.local_day, claim.token) for claim in claims])

    def forget(self, rows: Sequence[Row]) -> None:
        """Delete rows that say nothing any more."""
        self._delete([(row.user_id, row.local_day, row.token) for row in rows])

    def _delete(self, keys: Sequence[tuple[Any, ...]]) -> None:
        for part in chunks(keys, KEYS):
            self._run(f"DELETE FROM {LEDGER} WHERE {any_of(part)}", list(chain.from_iterable(part)))

    def unsettled(self, now: datetime) -> list[Row]:
        """The oldest rows of whose texts Twilio's last word is not known, those of the last minutes left out."""
        rows = self._run(
            f"""SELECT {ROW} FROM {LEDGER} WHERE final_status IS NULL AND claimed_at < %s
                ORDER BY local_day LIMIT {SETTLE_ROWS}""",
            [naive(now - SETTLE_AFTER)],
        )
        return [as_row(values) for values in rows]

    def rivals(self, rows: Sequence[Row]) -> list[Row]:
        """All rows, these too, that may claim a message that one of these may claim: those of the same numbers."""
        found: list[Row] = []
        for part in chunks([row for row in rows if not row.sid], IN_LIST):
            since = min(row.local_day for row in part) - timedelta(days=2)  # the next number's local day may lag behind
            sql = f"SELECT {ROW} FROM {LEDGER} WHERE local_day >= %s AND phone_number IN ({holes(part)})"
            found += [as_row(values) for values in self._run(sql, [since, *(row.phone for row in part)])]
        return found

    def settle(self, settled: Iterable[Settlement]) -> None:
        """Write what Twilio says of rows, those of which it says the same by one statement."""
        alike = defaultdict(list)
        for s in settled:
            sid = None if s.sid == s.row.sid else s.sid  # rows that keep theirs share a statement
            alike[s.state, sid, s.code, s.final_status].append((s.row.user_id, s.row.local_day, s.row.token))
        for said, keys in alike.items():
            for part in chunks(keys, KEYS):
                self._run(
                    f"""UPDATE {LEDGER} SET state = %s, message_sid = COALESCE(%s, message_sid), error_code = %s,
                               final_status = %s
                        WHERE {any_of(part)}""",
                    [*said, *chain.from_iterable(part)],
                )

    def purge(self, before: date) -> int:
        """Delete rows of days before, settled or not, except each user's newest refusal; how many."""
        deleted, since = 0, date.min
        while not self._stop.requested and (keys := self._outlived(since, before)):
            self._delete(keys)
            deleted, since = deleted + len(keys), keys[-1][1]
        return deleted

    def _outlived(self, since: date, before: date) -> list[tuple[Any, ...]]:
        return self._run(
            f"""SELECT n.user_id, n.local_day, n.run_token FROM {LEDGER} n
                WHERE n.local_day >= %s AND n.local_day < %s
                  AND NOT (n.state = 'refused' AND NOT EXISTS (
                    SELECT 1 FROM {LEDGER} m
                    WHERE m.user_id = n.user_id AND m.local_day > n.local_day AND m.state = 'refused'))
                ORDER BY n.local_day LIMIT {KEYS}""",
            [since, before],
        )


def id_range(after: UserId | None, through: UserId | None) -> tuple[str, list[UserId]]:
    """The condition for ids in (after, through], and its arguments; None is no bound."""
    bounds = [("u.id > %s", after), ("u.id <= %s", through)]
    within = " AND ".join(condition for condition, bound in bounds if bound is not None)
    return within or "TRUE", [bound for _, bound in bounds if bound is not None]


def next_size(size: int, seconds: float) -> int:
    """How many users to ask for after a page of that size took so long: enough, but not more than time out."""
    fast, slow = PAGE_SECONDS
    if seconds > slow:
        return max(size // 2, 1)
    return min(size * 2, PAGE_USERS) if seconds < fast else size


def zones_table(days: Mapping[bytes, Days]) -> tuple[str, list[object]]:
    """A derived table of each zone's bounds, and its arguments. A first row, never matched, names the columns."""
    first = "SELECT CAST(NULL AS BINARY) AS zone, CAST(NULL AS DATETIME) AS day1, NULL AS day2, NULL AS day3"
    row = " UNION ALL SELECT %s, TIMESTAMP %s, TIMESTAMP %s, TIMESTAMP %s"
    bounds = ((zone, *(str(naive(instant)) for instant in (d.day1, d.day2, d.end))) for zone, d in days.items())
    return first + row * len(days), list(chain.from_iterable(bounds))


def any_of(keys: Sequence[object]) -> str:
    """The condition for rows with one of the keys (user, local day, token): MariaDB finds no index for a row IN."""
    return " OR ".join(["(user_id = %s AND local_day = %s AND run_token = %s)"] * len(keys))


def recorded(result: Result, now: datetime) -> tuple[object, ...]:
    """The values of a ledger row whose text is no longer in flight."""
    reminder, answer = result.claim.reminder, result.answer
    state = State(result.outcome.name.lower())
    final = State.REFUSED if state is State.REFUSED else None  # of the others, Twilio's last word is still to come
    start = (reminder.user_id, reminder.local_day, reminder.phone, reminder.rule.key, result.claim.token)
    return (*start, naive(result.claim.at), naive(now), state, answer.sid, answer.code, final, answer.segments)


def as_row(values: tuple[Any, ...]) -> Row:
    """A row as the ledger holds it, its instants made aware."""
    user_id, local_day, phone, state, token, claimed_at, finished_at, sid, code = values
    finished = finished_at.replace(tzinfo=UTC) if finished_at else None
    return Row(user_id, local_day, phone, State(state), token, claimed_at.replace(tzinfo=UTC), finished, sid, code)


def naive(instant: datetime) -> datetime:
    """The instant in UTC without its zone, as a DATETIME column takes it: PyMySQL would drop the zone silently."""
    return instant.astimezone(UTC).replace(tzinfo=None)


def holes(values: Sequence[object]) -> str:
    """Placeholders for an IN list."""
    return ", ".join(["%s"] * len(values))


def chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The values in parts of at most that size."""
    return (values[start : start + size] for start in range(0, len(values), size))


# --- sms: Twilio ------------------------------------------------------------------------------------------------------

# https://www.twilio.com/docs/api/errors; a code that is not listed here is understood by its HTTP status.
TWILIO_CODES: dict[int, tuple[Action, str]] = {
    10001: (Action.STOP, "the Twilio account is not active: see its console"),
    20003: (Action.STOP, "the credentials were refused: correct TWILIO_ACCOUNT_SID and the auth token or API key"),
    20403: (Action.STOP, "the Twilio account or key may not do this: see its console"),
    20404: (Action.STOP, "there is no such account: correct TWILIO_ACCOUNT_SID"),
    20429: (Action.PAUSE, "too many requests"),
    21211: (Action.REFUSE, "not a valid phone number: correct User.phone_number"),
    21212: (Action.FAIL, "TWILIO_FROM_NUMBER is not valid for this recipient"),
    21265: (Action.REFUSE, "a short code cannot be texted: correct User.phone_number"),
    21266: (Action.REFUSE, "the recipient's number is the sender's own: correct User.phone_number"),
    21268: (Action.REFUSE, "a premium number cannot be texted: correct User.phone_number"),
    21408: (Action.SKIP, "texts to this country are switched off: allow it in the console's Geo permissions"),
    21603: (Action.STOP, "no sender was given: set TWILIO_FROM_NUMBER or TWILIO_MESSAGING_SERVICE_SID"),
    21606: (Action.FAIL, "TWILIO_FROM_NUMBER cannot text this recipient, or is not the account's"),
    21608: (Action.SKIP, "a trial account texts verified numbers only: verify the number or upgrade the account"),
    21610: (Action.REFUSE, "the recipient opted out (STOP); only they can opt in again, by texting START"),
    21611: (Action.PAUSE, "the sender's queue at Twilio is full"),
    21612: (Action.SKIP, "this sender cannot reach this recipient: use a sender that can"),
    21614: (Action.REFUSE, "not a mobile number: correct User.phone_number"),
    21635: (Action.REFUSE, "a landline cannot be texted: correct User.phone_number"),
    21659: (Action.FAIL, "TWILIO_FROM_NUMBER is not a Twilio number, or a short code of another country"),
    21660: (Action.FAIL, "TWILIO_FROM_NUMBER does not belong to this account"),
    21661: (Action.FAIL, "TWILIO_FROM_NUMBER cannot send texts"),
    21701: (Action.STOP, "the Messaging Service does not exist: correct TWILIO_MESSAGING_SERVICE_SID"),
    21705: (Action.STOP, "the Messaging Service is not valid: correct TWILIO_MESSAGING_SERVICE_SID"),
    30454: (Action.STOP, "the account's cap of texts a day is reached: raise it in the console, or wait for tomorrow"),
    35118: (Action.STOP, "a Messaging Service is needed: set TWILIO_MESSAGING_SERVICE_SID"),
    63038: (Action.STOP, "the account's limit of texts a day is reached: raise it, or wait for tomorrow"),
    70051: (Action.STOP, "the API key lacks a permission: give it Messages read and create"),
}
HTTP_STATUSES: dict[int, tuple[Action, str]] = {
    401: TWILIO_CODES[20003],
    403: TWILIO_CODES[20403],
    404: TWILIO_CODES[20404],
    408: (Action.UNCERTAIN, "the request timed out on its way"),
    429: TWILIO_CODES[20429],
}
QUEUE_FULL, QUEUE_PAUSE = 21611, 60.0  # seconds: a queue drains slower than a rate limit
MESSAGE_SID = re.compile(r"(SM|MM)[0-9a-fA-F]{32}")
NOT_POSTED = Answer(Action.PAUSE, "the run ended before it was posted")
FINAL_STATUSES = {"delivered", "undelivered", "failed", "canceled", "read"}


class Http(HttpClient):
    """requests with a timeout, keeping the last response: Twilio's exceptions carry neither headers nor every code."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("twilio.http_client"), is_async=False)
        self.session = requests.Session()
        self.last: Response | None = None

    def request(self, *request: Any, **options: Any) -> Response:
        """Send one request. urllib3 repeats nothing unless told to, and it isn't."""
        self.last = None
        with self.session.request(*request, **options | {"timeout": HTTP_TIMEOUT, "stream": True}) as answer:
            self.last = Response(answer.status_code, read_all(answer).decode(errors="replace"), answer.headers)
        return self.last


def read_all(answer: requests.Response) -> bytes:
    """The body, if all of it comes in time: the time-out of requests starts anew with every byte.

    :raises requests.ReadTimeout: when it does not
    """
    until, body = time.monotonic() + HTTP_TIMEOUT[1], bytearray()
    while part := answer.raw.read1(65_536, decode_content=True):
        body += part
        if time.monotonic() > until:
            raise requests.ReadTimeout("the answer goes on for too long")
    return bytes(body)


class Brake:
    """What ends a run early: SIGTERM, the deadline, or the first failure that concerns everybody."""

    def __init__(self, stop: Stop, deadline: float) -> None:
        self._stop, self._deadline = stop, deadline
        self._until = time.monotonic() + deadline
        self._lock = threading.Lock()
        self.failure: NotifierError | None = None

    def pull(self, failure: NotifierError) -> None:
        """Take no more work, for this reason, which is told at once; the first one counts."""
        with self._lock:
            if self.failure is None:
                self.failure = failure
                tell(failure)

    @property
    def stopped(self) -> bool:
        """Whether SIGTERM came."""
        return self._stop.requested

    @property
    def pulled(self) -> bool:
        """Whether no more work may be taken."""
        return self.failure is not None or self.stopped or time.monotonic() > self._until

    def blame(self, *, unfinished: bool) -> None:
        """Name SIGTERM, or the deadline if it left work undone, as what ended the run."""
        if self.stopped:
            self.pull(Terminated("SIGTERM came: no more texts are taken up, the next run goes on"))
        elif unfinished and time.monotonic() > self._until:
            self.pull(RetryLater(f"RUN_DEADLINE ({self._deadline:g} s) is reached: the next run goes on"))

    @property
    def exit_codes(self) -> list[Exit]:
        """The exit codes that what happened to the run asks for."""
        return [
            *([self.failure.exit_code] if self.failure else []),
            *([Exit.TERMINATED] if self.stopped else []),
        ]

    def unless_pulled(self, items: Iterator[T]) -> Iterator[T]:
        """The items, while more work may be taken."""
        while not self.pulled and (item := next(items, None)) is not None:
            yield item

    def sleep(self, seconds: float) -> bool:
        """Sleep until then or until pulled; whether the seconds were slept out."""
        until = time.monotonic() + seconds
        while not self.pulled and (left := until - time.monotonic()) > 0:
            self._stop.sleep(min(left, 0.2))
        return not self.pulled


def tell(failure: NotifierError) -> None:
    """Log a failure, a line for each of its arguments."""
    for line in failure.args:
        log.error("%s", line)


class Gate:
    """Where all workers wait while Twilio asks for patience: one pause for all, within PAUSE_BUDGET."""

    def __init__(self, brake: Brake) -> None:
        self._brake = brake
        self._lock = threading.Lock()
        self._opens = 0.0
        self._spent = 0.0
        self._doublings = 0

    def pass_through(self) -> bool:
        """Wait until texts may be posted; False when the run ends instead."""
        while not self._brake.pulled and (left := self._opens - time.monotonic()) > 0:
            self._brake.sleep(left)
        return not self._brake.pulled

    def close(self, answer: Answer) -> None:
        """Hold everybody for as long as Twilio says, else for twice as long as the last time, with jitter."""
        with self._lock:
            now, asked = time.monotonic(), answer.retry_after
            if now < self._opens and (asked is None or now + asked <= self._opens):
                return  # posted before the pause began
            least = QUEUE_PAUSE if answer.code == QUEUE_FULL else 1.0
            pause = max(least, min(least * 2**self._doublings, LONGEST_PAUSE) if asked is None else asked)
            opens = max(self._opens, now + pause * random.uniform(1.0, 1.2))  # noqa: S311 - jitter
            self._spent += opens - max(self._opens, now)
            self._doublings, self._opens = min(self._doublings + 1, 10), opens
            log.warning("All texts wait for %.0f s: %s", opens - now, answer.words)
            if self._spent > PAUSE_BUDGET:
                self._brake.pull(RetryLater(f"Twilio asks for more than the {PAUSE_BUDGET:g} s that a run may wait"))

    def relax(self) -> None:
        """Start over with short pauses, after a text that got through."""
        self._doublings = 0


class Sender:
    """Posts texts from SEND_CONCURRENCY threads, a Twilio client each: sessions are not proven thread-safe."""

    def __init__(self, settings: Settings, brake: Brake) -> None:
        self._settings, self._brake, self._gate = settings, brake, Gate(brake)
        self._clients = threading.local()
        self._pool = ThreadPoolExecutor(settings.send_concurrency)
        self._flying: set[Future[Result]] = set()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, NotifierError):  # a fault of ours: post no more
            self._brake.pull(RetryLater("the program failed: what is queued is not posted"))
        self._pool.shutdown()

    @property
    def room(self) -> int:
        """How many more texts may be claimed: some ahead, for the threads to go on while the database answers."""
        threads = self._settings.send_concurrency
        return threads + threads // 2 - len(self._flying)

    @property
    def busy(self) -> bool:
        """Whether a text is in flight."""
        return bool(self._flying)

    def submit(self, claims: Iterable[Claim]) -> None:
        """Post claimed texts as soon as they may be."""
        self._flying |= {self._pool.submit(self._send, claim) for claim in claims}

    def results(self, timeout: float | None = None) -> list[Result]:
        """What came back, waiting up to the timeout (seconds) for a first one; None waits for all."""
        done, self._flying = wait(self._flying, timeout, "ALL_COMPLETED" if timeout is None else FIRST_COMPLETED)
        return [future.result() for future in done]

    def probe(self) -> None:
        """Prove name resolution, TLS and credentials before anything is claimed.

        A list of one message, since a Standard API key cannot read the account.

        :raises FixFirst: when a person must act first
        :raises RetryLater: when Twilio cannot be reached or does not answer as it should
        """
        for pause in (*PROBE_PAUSES, None):
            answer = self._ask(lambda client: client.messages.page(page_size=1))
            if answer.action is Action.STOP:
                raise FixFirst(f"Twilio: {answer.words}. Nobody was texted")
            if answer.action is Action.ACCEPT:
                log.info("Twilio client initialized")
                return
            if pause is None or not self._brake.sleep(pause):
                break
        raise RetryLater(f"Twilio cannot be used: {answer.words}. Nobody was texted")

    def _send(self, claim: Claim) -> Result:
        while self._gate.pass_through():
            answer = self._post(claim.reminder)
            if answer.action is Action.STOP:
                self._brake.pull(FixFirst(f"Twilio: {answer.words}"))
            if answer.action is not Action.PAUSE:
                return Result(claim, answer)
            self._gate.close(answer)
        return Result(claim, NOT_POSTED)

    def _post(self, reminder: Reminder) -> Answer:
        s = self._settings
        sender = {"from_": s.twilio_from_number} if s.twilio_from_number else {}
        service = {"messaging_service_sid": s.twilio_messaging_service_sid} if not sender else {}
        text, period = message_for(reminder, s), s.validity_period
        answer = self._ask(
            lambda client: client.messages.create(
                to=reminder.phone, body=text, validity_period=period, **sender, **service
            )
        )
        if answer.action is Action.ACCEPT:
            self._gate.relax()
            if not MESSAGE_SID.fullmatch(answer.sid or ""):
                return Answer(Action.UNCERTAIN, "Twilio accepted it but named no message")
        return answer

    def _ask(self, question: Callable[[Client], Any]) -> Answer:
        """Put one request to Twilio and understand whatever comes back."""
        client, http = self._client()
        try:
            resource = question(client)
        except NotifierError:
            raise
        except Exception as error:  # noqa: BLE001 - around a POST, whatever is not understood is uncertain
            return understand(error, http.last)
        sid, segments = str(getattr(resource, "sid", "")), str(getattr(resource, "num_segments", ""))
        return Answer(Action.ACCEPT, sid=sid, segments=int(segments) if segments.isdecimal() else None)

    def _client(self) -> tuple[Client, Http]:
        """This thread's client."""
        if not hasattr(self._clients, "pair"):
            s, http = self._settings, Http()
            user = s.twilio_api_key_sid or s.twilio_account_sid
            password = s.twilio_api_key_secret or s.twilio_auth_token
            where = {"region": s.twilio_region or None, "edge": s.twilio_edge or None}
            client = Client(user, password, s.twilio_account_sid, http_client=http, **where)  # type: ignore[no-untyped-call]
            client.api.base_url = s.twilio_api_url
            self._clients.pair = client, http
        pair: tuple[Client, Http] = self._clients.pair
        return pair

    def look_up(self, rows: Sequence[Row]) -> Iterator[tuple[Row, list[Message]]]:
        """Each row with the messages of Twilio's list that may be its text.

        With a from number the list is read by UTC day, the day of the claim and the next; with a Messaging Service, by
        recipient.

        :raises RetryLater: when SETTLE_BUDGET is spent, or Twilio does not answer as it should
        :raises FixFirst: when a person must act first
        :raises Terminated: when SIGTERM came
        """
        until = time.monotonic() + SETTLE_BUDGET
        wanted = {row.sid or row.phone for row in rows}
        lists: dict[tuple[str, date], dict[str, list[Message]]] = {}
        for row in rows:
            day = row.claimed_at.date()
            by_day = [("", day), ("", day + timedelta(days=1))]
            searches = by_day if self._settings.twilio_from_number else [(row.phone, day)]
            for search in searches:
                if search not in lists:
                    lists[search] = self._list(*search, wanted, until)
            key = row.sid or row.phone
            yield row, [message for search in searches for message in lists[search].get(key, ())]

    def _list(self, to: str, day: date, wanted: set[str], until: float) -> dict[str, list[Message]]:
        """The wanted messages to a number since a day, or to everybody on that day, by SID and by recipient."""
        kept: dict[str, list[Message]] = defaultdict(list)
        # Dates go as text: twilio-python would write a datetime with a literal Z.
        search = {"to": to, "date_sent_after": str(day)} if to else {"date_sent": str(day)}
        sender = {} if to else {"from_": self._settings.twilio_from_number}

        def check() -> None:
            if self._brake.stopped:
                raise Terminated("SIGTERM came while texts were looked up")
            if time.monotonic() > until:
                raise RetryLater("looking up texts takes too long, the rest waits")

        def read(client: Any) -> None:
            check()
            for message in client.messages.stream(page_size=1_000, **search, **sender):
                check()
                for key in wanted & {message.sid, message.to}:
                    created = message.date_created
                    kept[key].append(Message(message.sid, message.to, message.status, message.error_code, created))

        answer = self._ask(read)
        if answer.action is not Action.ACCEPT:
            kind = FixFirst if answer.action is Action.STOP else RetryLater
            raise kind(f"Twilio's list of messages could not be read: {answer.words}")
        return kept


def understand(error: Exception, response: Response | None) -> Answer:
    """What a failed request asks for, from the exception and, when there was one, the response."""
    if response is None:
        if surely_not_sent(error):
            return Answer(Action.UNREACHED, f"Twilio cannot be reached ({cause(error)})")
        if isinstance(error, requests.exceptions.InvalidURL) or (type(error) is OSError and error.errno is None):
            return Answer(
                Action.STOP, "HTTPS_PROXY or REQUESTS_CA_BUNDLE cannot be used: correct it"
            )  # nothing was sent
        return Answer(Action.UNCERTAIN, f"no answer from Twilio ({cause(error)})")
    if not 400 <= response.status_code < 500:  # a 5xx may have been sent, whatever code it carries
        return Answer(Action.UNCERTAIN, f"Twilio answered HTTP {response.status_code} ({type(error).__name__})")
    code, said = error_body(response)
    unknown = (Action.FAIL, f"Twilio answered HTTP {response.status_code} {said}".rstrip())
    action, words = TWILIO_CODES.get(code or 0) or HTTP_STATUSES.get(response.status_code) or unknown
    link = f" (error {code}, https://www.twilio.com/docs/api/errors/{code})" if code else ""
    return Answer(action, words + link, code, retry_after=retry_after(response))


def error_body(response: Response) -> tuple[int | None, str]:
    """Twilio's error code and message, in its own form or in that of RFC 9457; (None, '') when there are none."""
    try:
        body = json.loads(response.text)
    except ValueError:
        return None, ""
    if not isinstance(body, dict):
        return None, ""
    code = body.get("code")
    known = isinstance(code, int) and 0 < code < 1_000_000  # what the ledger's column holds
    return code if known else None, clean(body.get("message") or body.get("title"))


def retry_after(response: Response) -> float | None:
    """The seconds that Retry-After asks for (RFC 9110, 10.2.3: a number of seconds, or a date); None when absent."""
    value = (response.headers or {}).get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def surely_not_sent(error: Exception) -> bool:
    """Whether the connection was never made, so that the request cannot have arrived.

    Only these are sure. Every other error of TLS, time-out or cut connection can come after the whole request.
    """
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    reason = getattr(reason, "original_error", reason)  # what urllib3 calls a failed proxy may be a lost answer
    if isinstance(reason, urllib3.exceptions.SSLError):
        reason = reason.args[0]
    never_connected = urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError
    return isinstance(reason, (*never_connected, ssl.SSLCertVerificationError))


def cause(error: Exception) -> str:
    """The kind and the innermost cause of an exception of requests."""
    inner: object = error
    while isinstance(inner, Exception):
        outer, inner = inner, getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
    return f"{type(error).__name__}: {clean(outer)}"


def is_permanent(code: int | None) -> bool:
    """Whether Twilio's code says that this number will not be served tomorrow either."""
    return TWILIO_CODES.get(code or 0, (None,))[0] is Action.REFUSE


# --- run --------------------------------------------------------------------------------------------------------------


def run(settings: Settings, clock: Clock, stop: Stop) -> Exit:
    """Text everybody who is due; the whole job."""
    log.info("Starting habit notification job")
    log.info("Settings: %s", settings.shown())
    now, brake = clock(), Brake(stop, settings.run_deadline)
    with Store(settings, stop) as store, Sender(settings, brake) as sender:
        store.open()
        sender.probe()
        warn_of_future_logs(store.newest_log(), now)
        zones = store.users_by_zone()
        report = Report(users=sum(zones.values()))
        log.info("Found %d users with phone numbers", report.users)
        days = days_by_zone(zones, settings, now)
        pages = brake.unless_pulled(store.pages(days, report.users, now))
        due = due_reminders(pages, days, store, report, settings.refused_retry_days)
        deliver(due, store, sender, report, Streak(brake, settings.shard_count), brake, clock)
        if not brake.pulled and settings.shard == 0:  # one of them does it for all
            clean_up(store, sender, settings, clock())
    brake.blame(unfinished=False)
    report.close(early=brake.failure is not None)
    return Exit.worst([*report.exit_codes, *brake.exit_codes])


def settle(settings: Settings, clock: Clock, stop: Stop) -> Exit:
    """Ask Twilio what became of texts whose end is not known yet; text nobody."""
    brake = Brake(stop, settings.run_deadline)
    with Store(settings, stop) as store, Sender(settings, brake) as sender:
        store.open()
        sender.probe()
        settle_texts(store, sender, settings, clock())
    return Exit.worst(brake.exit_codes)


def warn_of_future_logs(newest: datetime | None, now: datetime) -> None:
    """Say so when logs carry the wall time of a zone that is ahead of UTC."""
    if newest and newest > now + timedelta(minutes=5):
        log.warning(
            "The newest log is of %s UTC, which is still to come: Log.created_at must be in UTC. Does a server with "
            "another time_zone fill a DATETIME? Until that is mended, days are judged wrongly",
            f"{newest:%Y-%m-%d %H:%M:%S}",
        )


def days_by_zone(zones: Iterable[bytes], settings: Settings, now: datetime) -> dict[bytes, Days]:
    """The days of each stored zone that can be resolved; DEFAULT_TIME_ZONE serves for the others."""
    default = resolve_zone(settings.default_time_zone)
    resolved = ((key, resolve_zone(key.decode(errors="replace")) or default) for key in zones)
    return {key: days_of(now, zone) for key, zone in resolved if zone}


def due_reminders(
    pages: Iterable[tuple[int, list[User]]], days: Mapping[bytes, Days], store: Store, report: Report, retry_days: int
) -> Iterator[Reminder]:
    """The reminders to claim, page by page; who gets none is reported."""
    for count, page in pages:
        verdicts = [(user, judge(user, days)) for user in page]
        reminders = [verdict for _, verdict in verdicts if isinstance(verdict, Reminder)]
        history = store.history(reminders)
        store.forget([row for r in reminders for row in history[r.user_id] if is_outdated(row, r)])
        report.page(count)
        report.skipped((user, verdict) for user, verdict in verdicts if isinstance(verdict, Skip))
        for reminder in reminders:
            if skip := already(reminder, history[reminder.user_id], retry_days):
                report.skipped([(reminder, skip)])
            else:
                yield reminder


def deliver(
    due: Iterator[Reminder], store: Store, sender: Sender, report: Report, streak: Streak, brake: Brake, clock: Clock
) -> None:
    """Claim, post and record the due texts, never more claimed than the threads have in hand and a few ahead."""
    claims: list[Claim] = []  # these two are what `land` still has to account for
    results: list[Result] = []
    try:
        while (not brake.pulled and draw(due, claims, sender.room, clock())) or sender.busy:
            ours, others = store.claim(claims)
            report.claimed(ours, others)
            sender.submit(ours)
            claims, results = [], sender.results(timeout=1.0)
            report.finished(results)
            streak.add(results)
            store.record(results, clock())
            results = []
        streak.end()
        store.release(streak.doubtful)
        report.taken_back(streak.doubtful)
    except NotifierError as failure:
        brake.pull(failure)
        land(claims, results, store, sender, report, clock)
    left = list(due)
    brake.blame(unfinished=bool(left) or report.unfinished)
    report.not_tried(left)


def draw(due: Iterator[Reminder], claims: list[Claim], room: int, now: datetime) -> bool:
    """Add claims for the next reminders, which have a token of their own; whether there were any."""
    token = secrets.token_hex(16)
    for reminder in islice(due, room):  # one by one: the query of the next page may fail in between
        claims.append(Claim(reminder, token, now))  # noqa: PERF401
    return bool(claims)


def land(
    claims: list[Claim], results: list[Result], store: Store, sender: Sender, report: Report, clock: Clock
) -> None:
    """After the database failed: wait for what is in flight, and try once more to record it and what it preceded."""
    unposted = [Result(claim, NOT_POSTED) for claim in claims]
    late = sender.results()
    report.finished([*unposted, *late])
    try:
        store.record([*results, *unposted, *late], clock())
    except NotifierError:
        log.error(
            "What became of the last %d texts could not be recorded: their rows stay at 'sending', which keeps them "
            "from being sent again today",
            len([*results, *unposted, *late]),
        )


def clean_up(store: Store, sender: Sender, settings: Settings, now: datetime) -> None:
    """What can wait for the next run: a failure is told, but fails nobody."""
    try:
        settle_texts(store, sender, settings, now)
        if purged := store.purge((now - RETENTION).date()):
            log.info("Deleted %d rows of the ledger that were older than %d days", purged, RETENTION.days)
    except NotifierError as failure:
        log.warning("Left for the next run: %s", failure)


def settle_texts(store: Store, sender: Sender, settings: Settings, now: datetime) -> None:
    """Record what Twilio says of the texts that are not settled."""
    rows = store.unsettled(now)
    if not rows:
        log.info("There are no earlier texts to look up")
        return
    rivals, deadline = store.rivals(rows), timedelta(seconds=settings.run_deadline)
    found: list[tuple[Row, list[Message]]] = []
    try:
        for row_and_messages in sender.look_up(rows):
            found.append(row_and_messages)  # noqa: PERF402
    finally:  # what was found before a failure counts, and for what is too old there is nothing to find any more
        found += [(row, []) for row in rows[len(found) :] if now - row.claimed_at > SETTLE_FINAL]
        settled = list(settlements(found, rivals, now, deadline))
        store.settle(settled)
        report_settled(rows, settled)


def report_settled(rows: Sequence[Row], settled: Sequence[Settlement]) -> None:
    """Say what Twilio said, and name every text that did not arrive."""
    ends = Counter(s.final_status for s in settled if s.final_status)
    words = "".join(f", {status} {count}" for status, count in sorted(ends.items()))
    log.info("Looked up %d earlier texts%s, still open %d", len(rows), words, len(rows) - sum(ends.values()))
    for s in settled:
        if s.final_status in ("undelivered", "failed", "unknown"):
            reason = f"error {s.code}, https://www.twilio.com/docs/api/errors/{s.code}" if s.code else "no reason given"
            log.warning("The text of %s to user %s: %s (%s)", s.row.local_day, s.row.user_id, s.final_status, reason)


STREAKS: dict[Action, type[NotifierError]] = {
    Action.FAIL: FixFirst,
    Action.UNCERTAIN: RetryLater,
    Action.UNREACHED: RetryLater,
}


class Streak:
    """Failures in a row. STREAK of them, or a few and nothing else, say: it's not these people, it's everybody."""

    def __init__(self, brake: Brake, shards: int) -> None:
        self._brake = brake
        self._few = STREAK_OF_ALL if shards == 1 else STREAK  # a shard's few texts say little of everybody
        self._failed: list[Result] = []
        self._broke = self._others = False

    def add(self, results: Iterable[Result]) -> None:
        """Count results, and pull the brake when the streak is long enough."""
        for result in results:
            if result.answer.action in STREAKS:
                self._failed.append(result)
            elif result.answer is not NOT_POSTED and not self._broke:
                self._failed.clear()
                self._others = True
        if len(self._failed) >= STREAK:
            self._stop()

    def end(self) -> None:
        """Pull the brake, too, when all texts were refused, if they are not too few to tell."""
        actions = {result.answer.action for result in self._failed}
        if actions == {Action.FAIL} and not self._others and len(self._failed) >= self._few:
            self._stop()

    def _stop(self) -> None:
        self._broke = True
        last, count = self._failed[-1].answer, len(self._failed)
        self._brake.pull(
            STREAKS[last.action](f"{count} texts in a row failed, the last one: {last.words}. No more are posted")
        )

    @property
    def doubtful(self) -> list[Claim]:
        """The refusals of a streak that stopped the run: not the person's fault, and surely not sent."""
        return [result.claim for result in self._failed if self._broke and result.answer.action is Action.FAIL]


class Report:
    """Counts what becomes of users, and tells it."""

    def __init__(self, users: int) -> None:
        self.users = users
        self._counts: Counter[Outcome] = Counter()
        self._looked_at = 0
        self._told = time.monotonic()

    @property
    def exit_codes(self) -> list[Exit]:
        """The exit codes that the outcomes ask for."""
        return [outcome.exit_code for outcome, count in self._counts.items() if count]

    def page(self, users: int) -> None:
        """Count a page of users, and tell the progress every PROGRESS_SECONDS."""
        self._looked_at += users
        self._progress()

    def _progress(self) -> None:
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            log.info("Progress: %d of %d users looked at%s", self._looked_at, self.users, self._totals())

    def _totals(self) -> str:
        return "".join(f", {outcome.words} {self._counts[outcome]}" for outcome in Outcome if self._counts[outcome])

    def skipped(self, skips: Iterable[tuple[User | Reminder, Skip]]) -> None:
        """Count and name users who get no text, and why."""
        for who, skip in skips:
            self._counts[skip.outcome] += 1
            log.log(skip.outcome.level, "User %s gets no text, %s: %s", who, skip.outcome.words, skip.reason)

    def claimed(self, claims: Iterable[Claim], others: Iterable[tuple[Reminder, Skip]]) -> None:
        """Name whose turn it is."""
        for claim in claims:
            log.info("User %s needs notification: %s", claim.reminder, claim.reminder.rule.reason)
        self.skipped(others)

    def finished(self, results: Iterable[Result]) -> None:
        """Count and tell what became of texts."""
        for result in results:
            reminder, answer, outcome = result.claim.reminder, result.answer, result.outcome
            self._counts[outcome] += 1
            if outcome is Outcome.SENT:
                name = reminder.name or "(no name)"
                log.info("Notification sent to %s (%s). Message SID: %s", name, reminder.phone, answer.sid)
            else:
                words = f"{reminder.phone}: {answer.words}"
                log.log(outcome.level, "Notification to %s %s: %s", reminder, outcome.words, words)
        self._progress()

    def taken_back(self, claims: Sequence[Claim]) -> None:
        """Count refusals as not sent after all."""
        self._counts[Outcome.REFUSED] -= len(claims)
        self._counts[Outcome.RELEASED] += len(claims)

    def not_tried(self, due: Iterable[Reminder]) -> None:
        """Count and name whose turn did not come."""
        self.skipped((reminder, Skip(Outcome.NOT_TRIED, "the run ended before")) for reminder in due)

    @property
    def unfinished(self) -> bool:
        """Whether another run could serve somebody whom this one did not."""
        return self._looked_at < self.users or Exit.RETRY in self.exit_codes

    def close(self, *, early: bool) -> None:
        """Sum up."""
        if early and self._looked_at < self.users:  # without that, somebody left the table meanwhile
            log.warning("%d users were not looked at: the run ended before", self.users - self._looked_at)
        if uncertain := self._counts[Outcome.UNCERTAIN]:
            log.warning(
                "%d texts are uncertain: they may have been sent, and are not sent again today. The next run, or "
                "--settle, asks Twilio what became of them",
                uncertain,
            )
        log.info("Looked at %d of %d users%s", self._looked_at, self.users, self._totals())
        failed = sum(count for outcome, count in self._counts.items() if outcome.failed)
        log.info("Job completed. Notifications sent: %d, Failed: %d", self._counts[Outcome.SENT], failed)


# --- main -------------------------------------------------------------------------------------------------------------

MODES: dict[str, tuple[Callable[[Settings, Clock, Stop], Exit], str]] = {
    "run": (run, "text everybody who is due (the default)"),
    "settle": (settle, "only ask Twilio what became of texts whose end is not known yet"),
}


class OneLine(logging.Formatter):
    """A line for each record, its time in UTC: nothing that is logged can forge another line."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """The record, with every character that does not print escaped."""
        line = super().format(record)
        return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The mode that the command line asks for."""
    story = (__doc__ or "").split("Settings are")[0].strip()
    parser = argparse.ArgumentParser(
        description=story, epilog=settings_help(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group()
    for name, (_, words) in MODES.items():
        group.add_argument(f"--{name}", dest="mode", action="store_const", const=name, default="run", help=words)
    return parser.parse_args(argv)


def settings_help() -> str:
    """The settings for --help, from their declarations."""
    lines = ["settings (environment variables; a secret can also come from the file that NAME_FILE names):"]
    for declared in fields(Settings):
        default = declared.metadata["default"]
        kind = "required" if default is None else f"default: {default}" if default else "optional"
        secret = ", secret" if declared.metadata["secret"] else ""
        lines += [f"  {declared.name.upper()} ({kind}{secret})", f"      {declared.metadata['help']}"]
    lines += ["  HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE", "      as usual for requests to Twilio"]
    return "\n".join(lines)


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Clock = utc_now,
    stop: Stop = STOP,
) -> int:
    """Run the mode that the arguments name; the exit code."""
    mode, _ = MODES[parse_arguments(argv).mode]
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s - %(name)s - %(levelname)s - %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)
    try:
        settings = Settings.read(environ)
        log.setLevel(settings.log_level)
        return mode(settings, clock, stop)
    except NotifierError as failure:
        tell(failure)
        if stop.requested:
            tell(Terminated("SIGTERM came: the next run goes on"))
        return Exit.worst([failure.exit_code, *([Exit.TERMINATED] if stop.requested else [])])
    except Exception:  # nobody is texted twice even so: the ledger has every claim
        log.critical("A fault of the program, please report it", exc_info=True)
        return Exit.RETRY


if __name__ == "__main__":
    sys.exit(main())
