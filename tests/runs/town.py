"""A few users, a fake Twilio, and runs of the program on the days that a test chooses; and what all of them did."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from habit_notifier import LEDGER_DDL, Job, OneLine, Report, Settings, Stop, Tracker, days_by_zone
from tests.runs import program
from tests.runs.program import Moment
from tests.sandbox.database import LEDGER, Database, Id
from tests.sandbox.fake_twilio import FakeTwilio, Message, Request

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
FORM = OneLine("%(levelname)s %(message)s")
SERVICE = {"TWILIO_FROM_NUMBER": "", "TWILIO_MESSAGING_SERVICE_SID": FakeTwilio.MESSAGING_SERVICE_SID}
senders = pytest.mark.parametrize("sender", [{}, SERVICE], ids=["number", "service"])


def numbers(count: int) -> list[str]:
    """The numbers of the first so many people."""
    return [f"+1202555{n:04}" for n in range(count)]


def at_send(number: int, action: Callable[[], object]) -> Callable[[Request], None]:
    """A hook for the fake: does something when so many texts have been posted."""
    posted = itertools.count(1)

    def hook(request: Request) -> None:
        if request.operation == "send" and next(posted) == number:
            action()

    return hook


def at_probe(action: Callable[[], object]) -> Callable[[Request], None]:
    """A hook for the fake: does something when its list is asked for, which comes before the first claim."""

    def hook(request: Request) -> None:
        if request.operation == "list":
            action()

    return hook


def also(
    function: Callable[..., Any],
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> Callable[..., Any]:
    """The function, before or after which something happens."""

    def both(*args: Any) -> Any:
        before()
        result = function(*args)
        after()
        return result

    return both


def variants(*options: dict[str, Any]) -> pytest.MarkDecorator:
    """A test on a database that is made with each of these options in turn."""
    return pytest.mark.parametrize("variant", options, ids=lambda chosen: "-".join(map(str, chosen.values())))


def create_ledger(database: Database, user_id: str = "") -> None:
    """As an administrator would; or with user ids of another type."""
    own = "SELECT column_type FROM information_schema.columns WHERE table_schema = %s AND table_name = 'User'"
    [(column_type,)] = database.rows(f"{own} AND column_name = 'id'", (database.name,))
    database.execute(LEDGER_DDL.format(database=database.name, user_id=user_id or column_type))


@contextmanager
def opened(environ: Mapping[str, str]) -> Iterator[Job]:
    """A job that is about to judge, with its ledger."""
    job = Job(Settings.read(environ), Report(), lambda: NOON, Stop())
    with job.database:
        job.open()
        yield job


def judging(tracker: Tracker) -> int:
    """Let the tracker judge by the days at NOON; how many users it will go through."""
    zones = tracker.zones()
    tracker.judge_by(days_by_zone(zones, tracker._settings, NOON), NOON)
    return sum(zone.users for zone in zones)


@dataclass
class Town:
    """What the program runs in, and what can be seen of it from outside."""

    database: Database
    twilio: FakeTwilio
    caplog: pytest.LogCaptureFixture
    environ: dict[str, str] = field(init=False)
    stop: Stop | None = None
    """What ends the runs early."""
    twilios: Moment | None = None
    """Twilio's clock, when it is not the program's."""
    before: int = 0
    took: float = 0.0
    """The seconds of the last run."""

    def __post_init__(self) -> None:
        self.environ = self.database.environ() | self.twilio.environ()

    def people(self, count: int) -> list[str]:
        """So many people who are due; their numbers."""
        self.database.insert_users((f"Due {n}", number, "UTC") for n, number in enumerate(numbers(count)))
        return numbers(count)

    def user(self, phone: str, zone: str = "UTC", **user: Any) -> Id:
        """A user, who is due unless there are logs that say otherwise."""
        return self.database.insert_user(f"User {phone[-4:]}", phone, zone, **user)

    def run(self, at: Moment = NOON, /, *argv: str, **settings: object) -> int:
        """A run at that instant, or by that clock; the exit code. A setting that is None is left out."""
        self.caplog.clear()
        self.before = len(self.twilio.book)
        told = {name: str(value) for name, value in {**self.environ, **settings}.items() if value is not None}
        began = time.monotonic()
        code = program.run(told, argv, at, self.stop, self.twilios)
        self.took = time.monotonic() - began
        return code

    def sql(self, statement: str, args: object = None) -> list[tuple[Any, ...]]:
        """What the database's administrator does by hand; the rows."""
        return self.database.rows(statement, args)

    @property
    def ids(self) -> list[Any]:
        """Of all users, in order."""
        return [user for (user,) in self.sql("SELECT id FROM User ORDER BY id")]

    # --- what it said

    @property
    def log(self) -> list[str]:
        """Level and words of the last run's lines, with the warnings of libraries."""
        shown = (r for r in self.caplog.records if r.name == "habit_notifier" or r.levelname in ("WARNING", "ERROR"))
        return list(map(FORM.format, shown))

    @property
    def text(self) -> str:
        """The same, as one text."""
        return "\n".join(self.log)

    def said(self, words: str) -> int:
        """In how many of its lines the last run said that."""
        return sum(words in line for line in self.log)

    def lines(self, level: str) -> list[str]:
        """The words of the last run's lines of this level, each once: what ended a run is told again at its end."""
        told = (line.removeprefix(f"{level} ") for line in self.log if line.startswith(f"{level} "))
        return list(dict.fromkeys(told))

    @property
    def problem(self) -> str:
        """The one thing that a person must mend."""
        assert "fault of the program" not in self.text
        [line] = self.lines("ERROR")
        return line

    @property
    def totals(self) -> tuple[int, int]:
        """Sent and failed, as the last run's last line says."""
        sent, failed = map(int, re.findall(r"Notifications sent: (\d+), Failed: (\d+)$", self.text, re.M)[-1])
        return sent, failed

    @property
    def unseen(self) -> int:
        """How many users the last run did not look at, as it says."""
        looked_at, users = map(int, re.findall(r"^INFO Looked at (\d+) of (\d+) users", self.text, re.M)[-1])
        return users - looked_at

    # --- what Twilio saw

    @property
    def texts(self) -> list[Message]:
        """What the last run sent."""
        return self.twilio.book[self.before :]

    @property
    def texted(self) -> list[str]:
        """Whom the last run texted."""
        return sorted(message.to for message in self.texts)

    @property
    def served(self) -> list[str]:
        """Whom all runs texted, each as often as they were."""
        return sorted(message.to for message in self.twilio.book)

    @property
    def sends(self) -> list[Request]:
        """All requests to send, in order."""
        return [request for request in self.twilio.requests if request.operation == "send"]

    @property
    def posted(self) -> list[str | None]:
        """Their recipients, whatever the answer."""
        return [request.to for request in self.sends]

    # --- what the ledger holds

    def rows(self, columns: str) -> list[tuple[Any, ...]]:
        """Of each row; none when there is no ledger yet."""
        there = self.database.rows("SHOW TABLES LIKE %s", (LEDGER,))
        return self.database.rows(f"SELECT {columns} FROM {LEDGER} ORDER BY local_day, user_id") if there else []

    @property
    def ledger(self) -> list[tuple[Any, ...]]:
        """Number, state, code and Twilio's last word of each row."""
        return self.rows("phone_number, state, error_code, final_status")

    @property
    def states(self) -> dict[str, str]:
        """The state of each number's only row."""
        rows = self.rows("phone_number, state")
        found: dict[str, str] = dict(rows)
        assert len(found) == len(rows)
        return found

    def numbers(self, state: str) -> list[str]:
        """The numbers whose only row has this state."""
        return sorted(number for number, is_so in self.states.items() if is_so == state)

    @property
    def counts(self) -> Counter[str]:
        """How many rows of each state there are."""
        return Counter(state for (state,) in self.rows("state"))
