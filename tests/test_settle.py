"""What became of texts whose end is not known: looked up at Twilio, never guessed, and no day is freed by it."""

from __future__ import annotations

import itertools
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import habit_notifier
from habit_notifier import Brake, OneLine, Row, Sender, Settings, State, Stop
from tests import program
from tests.sandbox.database import LEDGER, Database
from tests.sandbox.fake_twilio import (
    ACCEPT,
    BROKEN_JSON,
    RESET,
    Answer,
    Door,
    FakeTwilio,
    Message,
    Request,
    refuse,
    server_error,
    throttle,
)

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ANNA, BERT, CARA = "+12025550101", "+12025550102", "+12025550103"


@dataclass
class World:
    """A database with its ledger, and Twilio with its book; rows and messages are put in as runs would leave them."""

    database: Database
    twilio: FakeTwilio
    environ: dict[str, str]
    caplog: pytest.LogCaptureFixture
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1_000))

    def run(self, *argv: str, at: datetime = NOON + HOUR, **settings: str | None) -> int:
        """The program at that moment; the exit code. A setting that is None is left out."""
        self.caplog.clear()
        self.twilio.travel_to(at)
        environ = {name: value for name, value in (self.environ | settings).items() if value is not None}
        return program.run(environ, argv, at)

    def settle(self, at: datetime = NOON + HOUR, /, **settings: str | None) -> int:
        """--settle at that moment; the exit code."""
        return self.run("--settle", at=at, **settings)

    def row(
        self,
        phone: str = ANNA,
        state: str = "uncertain",
        claimed: datetime = NOON,
        *,
        finished: datetime | None = None,
        day: date | None = None,
        sid: str | None = None,
        code: int | None = None,
        final: str | None = None,
        user: int | None = None,
    ) -> int:
        """A row of the ledger; its user's id. What is not in flight was finished after two seconds."""
        user = user or next(self.ids)
        finished = finished or (None if state == "sending" else claimed + timedelta(seconds=2))
        values = {
            "user_id": user,
            "local_day": day or claimed.date(),
            "phone_number": phone,
            "rule": "no_logs",
            "state": state,
            "run_token": uuid.uuid4().hex,
            "claimed_at": claimed.replace(tzinfo=None),
            "finished_at": finished and finished.replace(tzinfo=None),
            "message_sid": sid,
            "error_code": code,
            "final_status": final,
        }
        holes = ", ".join(["%s"] * len(values))
        self.database.execute(f"INSERT INTO {LEDGER} ({', '.join(values)}) VALUES ({holes})", list(values.values()))
        return user

    def message(
        self,
        to: str = ANNA,
        status: str = "delivered",
        at: datetime = NOON + timedelta(seconds=1),
        *,
        code: int | None = None,
        from_: str | None = FakeTwilio.FROM_NUMBER,
    ) -> str:
        """A text in Twilio's book; its SID."""
        sid = "SM" + uuid.uuid4().hex
        self.twilio.book.append(Message(sid, to, from_, None, "Hi", 14_400, at, status, code, 1))
        return sid

    def told(self, user: int) -> tuple[Any, ...]:
        """State, SID, code and Twilio's last word, as a user's only row has them."""
        columns = "state, message_sid, error_code, final_status"
        [row] = self.database.rows(f"SELECT {columns} FROM {LEDGER} WHERE user_id = %s", (user,))
        return row

    @property
    def log(self) -> list[str]:
        line = OneLine("%(levelname)s %(message)s")
        return [line.format(record) for record in self.caplog.records if record.name == "habit_notifier"]

    @property
    def lists(self) -> list[dict[str, str]]:
        """What Twilio's list was asked for, the probes left out."""
        asked = [request.params for request in self.twilio.requests if request.operation == "list"]
        return [params for params in asked if params["PageSize"] != "1"]

    @property
    def sends(self) -> int:
        return sum(request.operation == "send" for request in self.twilio.requests)


@pytest.fixture
def world(database: Database, twilio: FakeTwilio, environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> World:
    made = World(database, twilio, environ, caplog)
    assert made.run(at=NOON - 300 * DAY) == 0  # makes the ledger
    twilio.requests.clear()
    return made


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(habit_notifier, "PROBE_PAUSES", (0.01,))


SERVICE: dict[str, str | None] = {
    "TWILIO_FROM_NUMBER": None,
    "TWILIO_MESSAGING_SERVICE_SID": FakeTwilio.MESSAGING_SERVICE_SID,
}
senders = pytest.mark.parametrize("sender", [{}, SERVICE], ids=["number", "service"])


# --- found ------------------------------------------------------------------------------------------------------------


@senders
def test_a_text_that_was_accepted_although_we_heard_an_error_is_found_and_its_day_stays_taken(
    world: World, sender: dict[str, str | None]
) -> None:
    user = world.database.insert_user("Anna", ANNA, "UTC")
    assert isinstance(user, int)
    world.twilio.script(server_error(accepted=True))
    assert world.run(at=NOON, **sender) == 0
    [message] = world.twilio.book
    assert world.told(user) == ("uncertain", None, None, None)
    assert world.run(at=NOON + 16 * MINUTE, **sender) == 0
    assert world.told(user) == ("sent", message.sid, None, None)  # found, but Twilio's last word is still to come
    assert "INFO Looked up 1 earlier texts, still open 1" in world.log
    world.twilio.settle(ANNA, "delivered")
    assert world.run(at=NOON + HOUR, **sender) == 0
    assert world.told(user) == ("sent", message.sid, None, "delivered")
    assert world.sends == len(world.twilio.book) == 1


@senders
@pytest.mark.parametrize("state", ["sending", "uncertain"])
def test_what_a_killed_run_left_is_found(world: World, sender: dict[str, str | None], state: str) -> None:
    user, sid = world.row(state=state), world.message()
    assert world.settle(**sender) == 0
    assert world.told(user) == ("sent", sid, None, "delivered")


def test_a_text_whose_answer_came_after_midnight_is_found_on_the_next_day(world: World) -> None:
    midnight = datetime(2026, 5, 13, tzinfo=UTC)
    user = world.row(claimed=midnight - timedelta(seconds=1), finished=midnight + timedelta(seconds=5))
    sid = world.message(at=midnight + timedelta(seconds=3))
    assert world.settle(midnight + HOUR) == 0
    assert world.told(user) == ("sent", sid, None, "delivered")
    assert [params["DateSent"] for params in world.lists] == ["2026-05-12", "2026-05-13"]


def test_a_day_is_read_to_its_end_a_thousand_texts_at_a_time(world: World) -> None:
    first, last = world.row(ANNA), world.row(BERT)
    sids = [world.message(ANNA)]  # the list begins with the newest: it comes on the last page
    for n in range(2_498):
        world.message(f"+1303555{n:04}")
    sids.append(world.message(BERT))
    assert world.settle() == 0
    assert [world.told(user)[1] for user in (first, last)] == sids
    days = [params["DateSent"] for params in world.lists]
    assert days == ["2026-05-12"] * 3 + ["2026-05-13"]  # each day once, however many rows
    assert {params["PageSize"] for params in world.lists} == {"1000"}
    assert {params["From"] for params in world.lists} == {FakeTwilio.FROM_NUMBER}
    assert not any("To" in params for params in world.lists)


def test_texts_of_a_messaging_service_are_looked_up_by_the_recipients_that_are_open(world: World) -> None:
    open_users = {world.row(phone): phone for phone in (ANNA, BERT)}
    world.row(CARA, "sent", sid="SM" + "0" * 32, final="delivered")
    sids = {phone: world.message(phone, from_="+15005550099") for phone in (ANNA, BERT, CARA)}
    assert world.settle(**SERVICE) == 0
    assert sorted(params["To"] for params in world.lists) == [ANNA, BERT]
    assert {params["DateSent>"] for params in world.lists} == {"2026-05-12"}
    assert not any("From" in params for params in world.lists)
    assert {phone: world.told(user)[1] for user, phone in open_users.items()} == {p: sids[p] for p in (ANNA, BERT)}


def test_texts_of_other_senders_to_the_same_number_are_not_ours(world: World) -> None:
    user = world.row()
    world.message(from_="+15005550099")
    assert world.settle() == 0
    assert world.told(user) == ("uncertain", None, None, None)


@pytest.mark.parametrize("seconds", [-3600, -61, 63, 3600])
def test_an_earlier_or_later_text_to_the_same_number_is_not_taken_for_the_lost_one(world: World, seconds: int) -> None:
    user = world.row(claimed=NOON, finished=NOON + timedelta(seconds=2))
    world.message(at=NOON + timedelta(seconds=seconds))
    assert world.settle(NOON + 3 * HOUR) == 0
    assert world.told(user) == ("uncertain", None, None, None)


# --- Twilio's last word -----------------------------------------------------------------------------------------------


@senders
def test_the_end_of_every_text_is_recorded_and_each_that_did_not_arrive_is_named(
    world: World, sender: dict[str, str | None]
) -> None:
    ends = {"delivered": None, "read": None, "undelivered": 30003, "failed": 30006, "canceled": None}
    waiting = ["accepted", "queued", "sending", "sent"]
    users = {}
    for n, (status, code) in enumerate({**ends, **dict.fromkeys(waiting)}.items()):
        sid = world.message(f"+1202555{n:04}", status, code=code)
        users[status] = world.row(f"+1202555{n:04}", "sent", sid=sid), sid
    assert world.settle(**sender) == 0
    for status, (user, sid) in users.items():
        final = status if status in ends else None
        assert world.told(user) == ("sent", sid, ends.get(status), final)
    counts = ", ".join(f"{status} 1" for status in sorted(ends))
    assert f"INFO Looked up 9 earlier texts, {counts}, still open 4" in world.log
    warnings = [line for line in world.log if line.startswith("WARNING")]
    assert warnings == [
        f"WARNING The text of 2026-05-12 to user {users[status][0]}: {status} "
        f"(error {ends[status]}, https://www.twilio.com/docs/api/errors/{ends[status]})"
        for status in ("undelivered", "failed")
    ]


def test_what_is_settled_is_not_asked_for_again(world: World) -> None:
    world.row(ANNA, "sent", sid=world.message(ANNA))
    world.row(BERT, "refused", code=21610, final="refused")
    world.row(CARA, "uncertain", final="unknown", claimed=NOON - DAY)
    assert world.settle() == 0
    asked = len(world.lists)
    assert asked == 2
    assert world.settle() == 0
    assert len(world.lists) == asked
    assert not any("Looked up" in line for line in world.log)


def test_a_text_without_a_last_word_after_three_days_is_settled_with_what_twilio_says_then(world: World) -> None:
    user = world.row(state="sent", sid=world.message(status="sent"))
    assert world.settle(NOON + 72 * HOUR) == 0
    assert world.told(user)[3] is None
    assert world.settle(NOON + 72 * HOUR + MINUTE) == 0
    assert world.told(user)[3] == "sent"


def test_a_status_that_is_not_final_of_any_length_is_recorded_after_three_days_and_blocks_nobody(world: World) -> None:
    users = [world.row(phone, "sent", sid=world.message(phone, status)) for phone, status in STATUSES.items()]
    assert world.settle(NOON + 72 * HOUR + MINUTE) == 0
    assert [world.told(user)[3] for user in users] == list(STATUSES.values())


STATUSES = {ANNA: "partially_delivered", BERT: "delivered", CARA: "scheduled"}


# --- not found, or not sure -------------------------------------------------------------------------------------------


@senders
@pytest.mark.parametrize("state", ["sending", "uncertain"])
def test_a_text_that_is_not_found_is_unknown_after_twelve_hours_and_its_day_stays_taken(
    world: World, sender: dict[str, str | None], state: str
) -> None:
    user = world.database.insert_user("Anna", ANNA, "UTC")
    assert isinstance(user, int)
    claimed = datetime(2026, 5, 12, 1, tzinfo=UTC)
    world.row(state=state, claimed=claimed, user=user)
    assert world.settle(claimed + 12 * HOUR, **sender) == 0
    assert world.told(user) == (state, None, None, None)
    assert world.settle(claimed + 12 * HOUR + MINUTE, **sender) == 0
    assert world.told(user) == ("uncertain", None, None, "unknown")
    assert f"WARNING The text of 2026-05-12 to user {user}: unknown (no reason given)" in world.log
    assert world.run(at=datetime(2026, 5, 12, 23, 59, tzinfo=UTC), **sender) == 0
    assert world.sends == 0


def test_a_sent_text_that_twilio_does_not_list_stays_sent(world: World) -> None:
    user = world.row(state="sent", sid="SM" + "0" * 32)
    world.message()  # another text to the same number
    assert world.settle(NOON + 13 * HOUR) == 0
    assert world.told(user) == ("sent", "SM" + "0" * 32, None, "unknown")


@senders
@pytest.mark.parametrize("state", ["sending", "sent", "uncertain"])
def test_rows_younger_than_a_quarter_of_an_hour_wait(world: World, sender: dict[str, str | None], state: str) -> None:
    sid = world.message()
    user = world.row(state=state, sid=sid if state == "sent" else None)
    assert world.settle(NOON + 15 * MINUTE, **sender) == 0
    assert world.lists == []
    assert world.told(user)[3] is None
    assert world.settle(NOON + 15 * MINUTE + timedelta(seconds=1), **sender) == 0
    assert world.told(user) == ("sent", sid, None, "delivered")


@senders
def test_of_several_texts_to_one_number_none_is_chosen(world: World, sender: dict[str, str | None]) -> None:
    user = world.row()
    world.message()
    world.message()
    assert world.settle(**sender) == 0
    assert world.told(user) == ("uncertain", None, None, None)
    assert "INFO Looked up 1 earlier texts, still open 1" in world.log
    assert world.settle(NOON + 13 * HOUR, **sender) == 0
    assert world.told(user) == ("uncertain", None, None, "unknown")


@senders
@pytest.mark.parametrize("accepted", [1, 2])
def test_two_accounts_of_one_number_that_are_both_open_stay_open(
    world: World, sender: dict[str, str | None], accepted: int
) -> None:
    users = [world.row(), world.row()]
    for _ in range(accepted):
        world.message()
    assert world.settle(**sender) == 0
    assert [world.told(user) for user in users] == [("uncertain", None, None, None)] * 2


@senders
@pytest.mark.parametrize("accepted", [True, False])
def test_the_known_text_of_another_account_is_not_taken_for_the_lost_one(
    world: World, sender: dict[str, str | None], accepted: bool
) -> None:
    known = world.message()
    world.row(state="sent", sid=known, final="delivered")
    lost = world.message() if accepted else None
    user = world.row()
    assert world.settle(**sender) == 0
    expected = ("sent", lost, None, "delivered") if accepted else ("uncertain", None, None, None)
    assert world.told(user) == expected


def test_the_known_text_of_an_account_in_a_zone_that_is_a_day_behind_is_not_taken_for_the_lost_one(
    world: World,
) -> None:
    """One number, two accounts, in Los Angeles and in Tokyo: the same minute is of two local days."""
    claimed = datetime(2026, 5, 12, 16, tzinfo=UTC)
    known = world.message(at=claimed)
    world.row(state="sent", sid=known, final="delivered", claimed=claimed, day=date(2026, 5, 12))
    user = world.row(claimed=claimed, day=date(2026, 5, 13))
    assert world.settle(claimed + HOUR) == 0
    assert world.told(user) == ("uncertain", None, None, None)


def test_the_text_of_an_account_that_is_too_young_to_be_looked_up_is_not_taken_for_the_lost_one(world: World) -> None:
    now = NOON + HOUR
    user = world.row(claimed=now - 15.5 * MINUTE)
    young = world.row(claimed=now - 14.9 * MINUTE)
    sid = world.message(at=now - 14.9 * MINUTE)
    assert world.settle(now) == 0
    assert world.told(user) == ("uncertain", None, None, None)
    assert world.settle(now + HOUR) == 0
    assert world.told(young) in (("sent", sid, None, "delivered"), ("uncertain", None, None, None))


# --- Twilio fails, or time runs out -----------------------------------------------------------------------------------

FAULTS = [server_error(503), throttle(5), refuse(20003, 401), refuse(99999), BROKEN_JSON, RESET]
faults = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}")


@senders
def test_when_twilio_fails_what_is_too_old_to_be_found_is_unknown_and_the_younger_waits(
    world: World, sender: dict[str, str | None]
) -> None:
    old, known = (
        world.row(ANNA, claimed=NOON - 72 * HOUR),
        world.row(BERT, "sent", NOON - 73 * HOUR, sid="SM" + "0" * 32),
    )
    young = world.row(CARA, claimed=NOON - 70 * HOUR)
    world.twilio.hook = lambda request: server_error() if request.params["PageSize"] == "1000" else None
    assert world.settle(**sender) == 1
    assert world.told(old) == ("uncertain", None, None, "unknown")
    assert world.told(known) == ("sent", "SM" + "0" * 32, None, "unknown")
    assert world.told(young) == ("uncertain", None, None, None)
    assert "INFO Looked up 3 earlier texts, unknown 2, still open 1" in world.log


def fail_on(world: World, day: str, fault: Answer) -> None:
    """Twilio's list answers like this when it is asked for that day."""
    world.twilio.hook = lambda request: fault if day in request.params.get("DateSent", "") else None


@faults
def test_when_twilio_fails_in_the_middle_what_was_found_is_kept_and_nobody_in_a_run_is_failed(
    world: World, fault: Answer
) -> None:
    early, late = world.row(ANNA, claimed=NOON - 5 * DAY), world.row(BERT)
    sid = world.message(ANNA, at=NOON - 5 * DAY)
    world.message(BERT)
    world.database.insert_user("Cara", CARA, "UTC")
    fail_on(world, "2026-05-12", fault)
    assert world.run() == 0
    assert world.told(early) == ("sent", sid, None, "delivered")
    assert world.told(late) == ("uncertain", None, None, None)
    assert [message.to for message in world.twilio.book][-1] == CARA
    assert "INFO Looked up 2 earlier texts, delivered 1, still open 1" in world.log
    assert any(line.startswith("WARNING Left for the next run: Twilio's list of messages could") for line in world.log)
    assert world.log[-1] == "INFO Job completed. Notifications sent: 1, Failed: 0"
    world.twilio.hook = None
    assert world.settle() == 0
    assert world.told(late)[0] == "sent"


@faults
def test_settling_alone_tells_a_twilio_that_fails_in_the_middle_by_its_exit_code(world: World, fault: Answer) -> None:
    early, late = world.row(ANNA, claimed=NOON - 5 * DAY), world.row(BERT)
    sid = world.message(ANNA, at=NOON - 5 * DAY)
    fail_on(world, "2026-05-12", fault)
    assert world.settle() in (1, 2)
    assert world.told(early) == ("sent", sid, None, "delivered")
    assert world.told(late) == ("uncertain", None, None, None)
    assert world.log[-1].startswith("ERROR Twilio's list of messages could not be read: ")


def test_when_a_later_page_fails_the_day_stays_open(world: World) -> None:
    user = world.row()
    world.message()
    for n in range(1_000):
        world.message(f"+1303555{n:04}")
    world.twilio.hook = lambda request: server_error() if request.params.get("Page") == "1" else None
    assert world.settle() == 1
    assert world.told(user) == ("uncertain", None, None, None)


def slow_lists(world: World, seconds: float) -> None:
    """Twilio takes its time for each page of a look-up; the probe's is quick."""
    late = ACCEPT.delayed(after=seconds)
    world.twilio.hook = lambda request: late if request.params.get("PageSize") == "1000" else None


def test_the_look_up_of_a_run_has_a_budget_of_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(habit_notifier, "SETTLE_BUDGET", 0.5)
    days = [NOON - n * DAY for n in range(40, 0, -2)]
    users = [world.row(claimed=day) for day in days]
    for day in days:
        world.message(at=day)
    slow_lists(world, 0.15)
    start = time.monotonic()
    assert world.run() == 0
    assert time.monotonic() - start < 3
    settled = [world.told(user)[0] == "sent" for user in users]
    assert settled == sorted(settled, reverse=True)  # the oldest first
    assert 1 <= sum(settled) < 10
    assert "WARNING Left for the next run: looking up texts takes too long, the rest waits" in world.log


@senders
def test_the_budget_holds_when_nothing_is_found(
    world: World, sender: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "SETTLE_BUDGET", 0.3)
    for n in range(20, 0, -1):
        world.row(f"+1202555{n:04}", claimed=NOON - 2 * n * DAY)
    slow_lists(world, 0.1)
    world.settle(**sender)
    assert len(world.lists) <= 5


def test_a_deadline_that_comes_while_texts_are_looked_up_fails_nobody(world: World) -> None:
    for n in (4, 2):
        world.row(claimed=NOON - n * DAY)
        world.message(at=NOON - n * DAY)
    world.database.insert_user("Cara", CARA, "UTC")
    slow_lists(world, 0.6)
    assert world.run(RUN_DEADLINE="1") == 0
    assert world.log[-1] == "INFO Job completed. Notifications sent: 1, Failed: 0"


# --- many -------------------------------------------------------------------------------------------------------------


class Memory:
    """Settles so many texts of one day without a server, and tells what it takes; stands in for Store and Twilio."""

    def __init__(self, rows: int) -> None:
        sids = [f"SM{n:032}" for n in range(rows)]
        self.rows = [
            Row(n, NOON.date(), f"+1202{n:07}", State.SENT, "x", NOON, NOON, sid, None) for n, sid in enumerate(sids)
        ]
        self.messages, self.settled = self, 0

    def stream(self, **_: object) -> Iterator[SimpleNamespace]:
        """The day's texts, as twilio-python would list them."""
        for row in self.rows:
            yield SimpleNamespace(
                sid=row.sid, to=row.phone, status="delivered", error_code=None, date_created=NOON, num_segments="1"
            )

    def unsettled(self, _now: datetime) -> list[Row]:
        return self.rows

    def rivals(self, _rows: list[Row]) -> list[Row]:
        return []

    def settle(self, settled: list[habit_notifier.Settlement]) -> None:
        self.settled = len(settled)

    def peak(self, settings: Settings) -> int:
        """The most bytes in use at once."""
        stand_in: Any = self
        with Sender(settings, Brake(Stop(), 60)) as sender:
            sender._clients.pair = (stand_in, stand_in)
            tracemalloc.start()
            habit_notifier.settle_texts(stand_in, sender, settings, NOON + HOUR)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert self.settled == len(self.rows)
        return peak


def test_the_memory_of_a_look_up_grows_with_the_texts_of_a_day_and_not_with_their_square(
    twilio: FakeTwilio,
) -> None:
    database = {"DB_HOST": "-", "DB_NAME": "-", "DB_USER": "-", "DB_PASSWORD": "-"}
    settings = Settings.read(database | twilio.environ())
    assert Memory(3_000).peak(settings) < 10 * Memory(500).peak(settings)


# --- alone ------------------------------------------------------------------------------------------------------------


def test_settling_alone_texts_nobody_and_claims_nothing(world: World) -> None:
    world.database.insert_user("Due", BERT, "UTC")
    user = world.row()
    sid = world.message()
    assert world.settle() == 0
    assert world.told(user)[1] == sid
    assert world.sends == 0
    assert world.database.rows(f"SELECT COUNT(*) FROM {LEDGER}") == [(1,)]
    assert not any("needs notification" in line or "Job completed" in line for line in world.log)


def test_settling_alone_with_nothing_to_settle_says_so_and_is_done(world: World) -> None:
    assert world.settle() == 0
    assert world.lists == []
    assert world.log[-1] == "INFO There are no earlier texts to look up"


def test_settling_alone_needs_credentials_and_a_twilio_that_answers(world: World) -> None:
    user = world.row()
    assert world.settle(TWILIO_AUTH_TOKEN="wrong") == 2
    world.twilio.door(Door.SHUT)
    assert world.settle() == 1
    assert world.told(user) == ("uncertain", None, None, None)


def test_sigterm_ends_a_look_up_at_the_next_text(world: World) -> None:
    stop = Stop()
    users = [world.row(claimed=NOON - n * DAY) for n in (4, 2)]
    for n in (4, 2):
        world.message(at=NOON - n * DAY)

    def terminate(request: Request) -> None:
        if request.params.get("DateSent") == "2026-05-10":
            stop.request()

    world.twilio.hook = terminate
    at = NOON + HOUR
    world.twilio.travel_to(at)
    assert program.run(world.environ, ["--settle"], at, stop) == 143
    assert [world.told(user)[0] for user in users] == ["sent", "uncertain"]
