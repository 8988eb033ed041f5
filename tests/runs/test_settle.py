"""What became of earlier texts: looked up by their SID alone, before the first claim; no day is freed by it."""

from __future__ import annotations

import itertools
import re
import tracemalloc
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import habit_notifier
from habit_notifier import Brake, Job, Ledger, Report, Row, Settings, State, Stop, Twilio, utc_now
from tests.environ import settings_of
from tests.runs.town import NOON, SERVICE, Town, also, senders
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

pytestmark = pytest.mark.constants(OUTAGE_PATIENCE=0.1, OUTAGE_PAUSES=(0.05,))

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ANNA, BERT, CARA = "+12025550101", "+12025550102", "+12025550103"


@dataclass
class World(Town):
    """A town with its ledger; rows, and messages in Twilio's book, are put in as runs would leave them."""

    ids_to_come: Iterator[int] = field(default_factory=lambda: itertools.count(1_000))

    def settle(self, at: datetime = NOON + HOUR, /, **settings: str) -> int:
        """--settle at that moment; the exit code."""
        return self.run(at, "--settle", **settings)

    def row(
        self,
        phone: str = ANNA,
        state: str = "uncertain",
        claimed: datetime = NOON,
        *,
        sid: str | None = None,
        code: int | None = None,
        final: str | None = None,
    ) -> int:
        """A row of the ledger; its user's id. What is not in flight was finished after two seconds."""
        user = next(self.ids_to_come)
        finished = None if state == "sending" else claimed.replace(tzinfo=None) + timedelta(seconds=2)
        said = {"message_sid": sid, "error_code": code, "final_status": final}
        self.database.insert_row(user, claimed, phone_number=phone, state=state, finished_at=finished, **said)
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

    def others(self, count: int, from_: str | None = FakeTwilio.FROM_NUMBER) -> None:
        """So many texts to people of whom the ledger knows nothing."""
        for n in range(count):
            self.message(f"+1303555{n:04}", from_=from_)

    def told(self, user: int) -> tuple[Any, ...]:
        """State, SID, code and Twilio's last word, as a user's only row has them."""
        columns = "state, message_sid, error_code, final_status"
        [row] = self.sql(f"SELECT {columns} FROM {LEDGER} WHERE user_id = %s", (user,))
        return row

    @property
    def lists(self) -> list[dict[str, str]]:
        """What Twilio's list was asked for, the probes left out."""
        asked = [request.params for request in self.twilio.requests if request.operation == "list"]
        return [params for params in asked if params["PageSize"] != "1"]

    @property
    def fetches(self) -> list[str]:
        """The SIDs that Twilio was asked for one by one."""
        asked = [request.path for request in self.twilio.requests if request.operation == "fetch"]
        return [path.rpartition("/")[2].removesuffix(".json") for path in asked]


@pytest.fixture
def world(database: Database, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture) -> World:
    made = World(database, twilio, caplog)
    assert made.run(NOON - 300 * DAY) == 0  # makes the ledger
    twilio.requests.clear()
    return made


# --- found ------------------------------------------------------------------------------------------------------------


@senders
@pytest.mark.parametrize("state", ["sending", "sent", "uncertain"])
def test_a_text_is_found_by_its_sid_after_a_quarter_of_an_hour_whatever_its_row_says(
    world: World, sender: dict[str, str], state: str
) -> None:
    sid = world.message()
    user = world.row(state=state, sid=sid)
    assert world.settle(NOON + 15 * MINUTE, **sender) == 0
    assert world.lists == []
    assert world.told(user)[3] is None
    assert world.settle(NOON + 15 * MINUTE + timedelta(seconds=1), **sender) == 0
    assert world.told(user) == ("sent", sid, None, "delivered")


def test_a_day_is_read_to_its_end_a_thousand_texts_at_a_time(world: World) -> None:
    sids = [world.message(ANNA)]  # the list begins with the newest: it comes on the last page
    world.others(2_498)
    sids.append(world.message(BERT))
    users = [world.row(ANNA, "sent", sid=sids[0]), world.row(BERT, "sent", sid=sids[1])]
    assert world.settle() == 0
    assert [world.told(user)[1:] for user in users] == [(sid, None, "delivered") for sid in sids]
    assert [params["DateSent"] for params in world.lists] == ["2026-05-12"] * 3  # each day once, however many rows
    assert {params["PageSize"] for params in world.lists} == {"1000"}
    assert {params["From"] for params in world.lists} == {FakeTwilio.FROM_NUMBER}
    assert not any("To" in params for params in world.lists)
    assert world.fetches == []


def test_what_the_list_lacks_is_asked_for_by_its_sid(world: World) -> None:
    """Sent on the day after its claim, or by another number: before a change of TWILIO_FROM_NUMBER."""
    late, other = (
        world.message(ANNA, at=NOON + DAY),
        world.message(BERT, "undelivered", code=30003, from_="+15005550099"),
    )
    users = {sid: world.row(phone, "sent", sid=sid) for phone, sid in ((ANNA, late), (BERT, other))}
    listed = world.message(CARA)
    world.row(CARA, "sent", sid=listed)
    assert world.settle(NOON + 2 * DAY) == 0
    assert world.told(users[late]) == ("sent", late, None, "delivered")
    assert world.told(users[other]) == ("sent", other, 30003, "undelivered")
    assert world.fetches == sorted([late, other])


@pytest.mark.parametrize("state", ["sending", "uncertain"])
def test_a_text_without_a_sid_is_never_matched_but_named_once_for_the_console(world: World, state: str) -> None:
    """Another program's login code to the same number in the same second would settle it."""
    user = world.row(state=state)
    world.database.execute(f"UPDATE {LEDGER} SET local_day = '2026-05-13'")  # it is tomorrow there, as in Auckland
    world.message()
    assert world.settle(NOON + 30 * MINUTE) == 0
    assert world.told(user) == (state, None, None, None)
    assert world.settle() == 0
    assert world.told(user) == ("uncertain", None, None, "unknown")
    assert world.lists == []
    assert world.fetches == []
    [warning] = (line for line in world.log if line.startswith("WARNING The text of "))
    last = "2026-05-12 12:30:00" if state == "sending" else "2026-05-12 12:00:02"
    assert warning == (
        f"WARNING The text of 2026-05-13 to user {user}, uncertain: unknown. "
        f"Look in Twilio's console for {ANNA}, 2026-05-12 12:00:00 to {last} UTC"
    )
    assert world.settle(NOON + 2 * HOUR) == 0
    assert not world.said("console")


# --- Twilio's last word -----------------------------------------------------------------------------------------------


@senders
def test_the_end_of_every_text_is_recorded_and_each_that_did_not_arrive_is_named(
    world: World, sender: dict[str, str]
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
    # A Messaging Service says 0 until it has chosen a sender: in its answer to the POST, and while a text is accepted.
    assert [segments for (segments,) in world.rows("segments")] == [1] * 5 + [None] + [1] * 3
    told = re.sub(r" \(.*?/\d+\)", "", next(line for line in world.log if "Looked up" in line))
    counts = ", ".join(f"{status} 1" for status in sorted(ends))
    assert told == f"INFO Looked up 9 earlier texts, {counts}, still open 4"
    warnings = [line for line in world.log if line.startswith("WARNING The text of ")]
    meanings = {"undelivered": "the phone was off or out of reach", "failed": "a landline, or a carrier"}
    assert len(warnings) == len(meanings)
    for line, (status, words) in zip(warnings, meanings.items(), strict=True):
        assert line.startswith(f"WARNING The text of 2026-05-12 to user {users[status][0]}: {status} ({words}")
        assert line.endswith(f"error {ends[status]}, https://www.twilio.com/docs/api/errors/{ends[status]})")


def test_what_is_settled_is_not_asked_for_again(world: World) -> None:
    world.row(ANNA, "sent", sid=world.message(ANNA))
    world.row(BERT, "refused", code=21610, final="refused")
    world.row(CARA, "uncertain", final="unknown", claimed=NOON - DAY)
    assert world.settle() == 0
    assert len(world.lists) == 1
    assert world.settle() == 0
    assert len(world.lists) == 1
    assert not world.said("Looked up")


def test_a_status_that_is_not_final_of_any_length_is_recorded_after_three_days_and_blocks_nobody(world: World) -> None:
    statuses = {ANNA: "partially_delivered", BERT: "delivered", CARA: "scheduled"}
    users = [world.row(phone, "sent", sid=world.message(phone, status)) for phone, status in statuses.items()]
    assert world.settle(NOON + 72 * HOUR + MINUTE) == 0
    assert [world.told(user)[3] for user in users] == list(statuses.values())


# --- not found --------------------------------------------------------------------------------------------------------


def test_a_sent_text_that_twilio_does_not_know_is_unknown_after_twelve_hours_and_stays_sent(world: World) -> None:
    sid = "SM" + "0" * 32
    user = world.row(state="sent", sid=sid)
    world.message()  # another text to the same number
    assert world.settle(NOON + 12 * HOUR) == 0
    assert world.told(user) == ("sent", sid, None, None)
    assert world.settle(NOON + 12 * HOUR + MINUTE) == 0
    assert world.told(user) == ("sent", sid, None, "unknown")


# --- Twilio fails, or time runs out -----------------------------------------------------------------------------------

FAULTS = [server_error(503), throttle(5), refuse(20003, 401), refuse(99999), BROKEN_JSON, RESET]
faults = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}")


def test_when_twilio_fails_what_is_too_old_to_be_found_is_unknown_and_the_younger_waits(world: World) -> None:
    old, young = (world.row(claimed=NOON - hours * HOUR, state="sent", sid=f"SM{hours:032}") for hours in (73, 70))
    world.twilio.hook = lambda request: server_error() if request.params["PageSize"] == "1000" else None
    assert world.settle() == 1
    assert world.told(old)[3] == "unknown"
    assert world.told(young)[3] is None
    assert "INFO Looked up 2 earlier texts, unknown 1, still open 1" in world.log


def half_read(world: World, fault: Answer) -> list[tuple[int, str]]:
    """Twilio lists the earlier of two texts, and answers like this when it is asked for the later one's day."""
    world.twilio.hook = lambda request: fault if "2026-05-12" in request.params.get("DateSent", "") else None
    texts = ((ANNA, NOON - 5 * DAY), (BERT, NOON))
    sids = [world.message(phone, at=at) for phone, at in texts]
    return [(world.row(phone, "sent", at, sid=sid), sid) for (phone, at), sid in zip(texts, sids, strict=True)]


@faults
def test_when_twilio_fails_in_the_middle_what_was_found_is_kept_and_nobody_in_a_run_is_failed(
    world: World, fault: Answer
) -> None:
    (early, found), (late, lost) = half_read(world, fault)
    world.database.insert_user("Cara", CARA, "UTC")
    assert world.run(NOON + HOUR) == 0
    assert world.told(early) == ("sent", found, None, "delivered")
    assert world.told(late) == ("sent", lost, None, None)
    assert [message.to for message in world.twilio.book][-1] == CARA
    assert "INFO Looked up 2 earlier texts, delivered 1, still open 1" in world.log
    words = "WARNING Not all earlier texts were looked up, the next run goes on: Twilio's list of messages could"
    assert any(line.startswith(words) for line in world.log)
    assert world.log[-1] == "INFO Job completed. Notifications sent: 1, Failed: 0"
    world.twilio.hook = None
    assert world.settle() == 0
    assert world.told(late)[3] == "delivered"


@faults
def test_settling_alone_tells_a_twilio_that_fails_in_the_middle_by_its_exit_code(world: World, fault: Answer) -> None:
    (early, found), (late, lost) = half_read(world, fault)
    assert world.settle() == (2 if fault.code == 20003 else 1)
    assert world.told(early) == ("sent", found, None, "delivered")
    assert world.told(late) == ("sent", lost, None, None)
    assert world.log[-1].startswith("ERROR Twilio's list of messages could not be read: ")
    where_to_look = ": check https://status.twilio.com, DNS, the proxy and the NetworkPolicy"
    assert world.log[-1].endswith(where_to_look) is (fault in (server_error(503), BROKEN_JSON, RESET))


@pytest.mark.constants(SETTLE_BUDGET=0.5)
def test_what_was_found_among_very_many_other_texts_is_kept_when_the_budget_ends(world: World) -> None:
    early, late = world.message(ANNA, from_=None), "SM" + "0" * 32
    world.others(1_001, from_=None)
    world.twilio.book[-1].sid = late  # on the first page: the list begins with the newest
    users = [world.row(ANNA, "sent", sid=early), world.row(BERT, "sent", sid=late)]
    world.twilio.hook = lambda request: ACCEPT.delayed(after=0.6) if request.params.get("Page") == "1" else None
    assert world.settle(**SERVICE) == 1
    assert [world.told(user)[3] for user in users] == [None, "delivered"]


def test_among_very_many_other_texts_of_the_account_ours_are_asked_for_by_their_sids(world: World) -> None:
    """Each run would read the same pages, and never come to ours before its budget ends."""
    sids = [world.message(phone, from_=None) for phone in (ANNA, BERT)]
    world.others(4_040, from_=None)
    users = [world.row(ANNA, "sent", sid=sid) for sid in sids]
    assert world.settle(**SERVICE) == 0
    assert [world.told(user)[3] for user in users] == ["delivered"] * 2
    assert len(world.lists) == 4
    assert world.fetches == sorted(sids)


def test_a_day_is_read_no_further_than_the_last_of_our_texts(world: World) -> None:
    world.others(2_000)
    days = [NOON - DAY, NOON]
    users = [world.row(claimed=day, state="sent", sid=world.message(at=NOON)) for day in days]
    assert world.settle() == 0
    assert [world.told(user)[3] for user in users] == ["delivered"] * 2
    assert len(world.lists) == 2  # a page of each day


@pytest.mark.parametrize("status", ["x" * 33, "d\u00e9livr\u00e9", None, True, [], {}], ids=str)
def test_a_status_or_code_that_no_column_holds_ends_no_run(world: World, status: object) -> None:
    sid = world.message()
    world.twilio.book[0].status = status  # type: ignore[assignment]
    world.twilio.book[0].error_code = 10**9
    user = world.row(state="sent", sid=sid)
    world.database.insert_user("Cara", CARA, "UTC")
    assert world.run(NOON + 4 * DAY) == 0
    assert len(world.posted) == 1
    assert world.told(user)[2] is None
    assert len(world.told(user)[3]) <= 32


@pytest.mark.parametrize("odd", [None, 1, [], {}], ids=str)
def test_a_listed_text_whose_sid_is_none_is_nobody_s(world: World, odd: Any) -> None:
    user = world.row(state="sent", sid=world.message())
    world.message()
    world.twilio.book[-1].sid = odd  # the list begins with the newest
    assert world.settle() == 0
    assert world.told(user)[3] == "delivered"


def slow_lists(world: World, seconds: float) -> None:
    """Twilio takes its time for each page of a look-up; the probe's is quick."""
    late = ACCEPT.delayed(after=seconds)
    world.twilio.hook = lambda request: late if request.params.get("PageSize") == "1000" else None


@pytest.mark.constants(SETTLE_BUDGET=0.5)
def test_the_look_up_of_a_run_has_a_budget_of_time(world: World) -> None:
    days = [NOON - n * DAY for n in range(40, 0, -2)]
    users = [world.row(state="sent", claimed=day, sid=world.message(at=day)) for day in days]
    slow_lists(world, 0.15)
    assert world.run(NOON + HOUR) == 0
    assert world.took < 3
    settled = [world.told(user)[3] == "delivered" for user in users]
    assert settled == sorted(settled, reverse=True)  # the oldest first
    assert 1 <= sum(settled) < 10
    words = "looking up texts takes too long, the rest waits"
    assert f"WARNING Not all earlier texts were looked up, the next run goes on: {words}" in world.log


@pytest.mark.constants(SETTLE_BUDGET=0.4, PROBE_LIMIT=0.4)
def test_a_look_up_whose_answer_never_ends_holds_up_no_text(world: World) -> None:
    world.row(state="sent", claimed=NOON - DAY, sid=world.message(at=NOON - DAY))
    world.user(BERT)
    slow_lists(world, 4)
    assert world.run(NOON) == 0
    assert world.took < 3
    assert len(world.twilio.book) == 2
    words = "WARNING Not all earlier texts were looked up, the next run goes on: Twilio does not answer, or its"
    assert any(line.startswith(words) for line in world.log)


def test_of_the_accounts_other_texts_nothing_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _others = world.message(at=NOON - DAY), world.message(at=NOON - DAY)
    world.row(state="sent", claimed=NOON - DAY, sid=ours)
    kept = {}

    def settled_rows(_rows: list[Row], messages: dict[str, habit_notifier.Message], *_: Any, **__: Any) -> list[Row]:
        kept.update(messages)
        return []

    monkeypatch.setattr(habit_notifier, "settled_rows", settled_rows)
    assert world.run(NOON) == 0
    assert list(kept) == [ours]


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ("state = 'sent', message_sid = 'SMb'", ("sent", "SMb", None, None)),
        (
            "state = 'refused', error_code = 21610, final_status = 'refused'",  # who opted out is not tried again
            ("refused", None, 21610, "refused"),
        ),
    ],
    ids=["sent", "refused"],
)
def test_what_another_run_recorded_during_a_look_up_stays(
    world: World, recorded: str, told: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was suspended wakes, and records a text that this one has taken for lost."""
    users = [world.row(phone, "sending", NOON - HOUR) for phone in (ANNA, BERT)]
    wake = f"UPDATE {LEDGER} SET {recorded} WHERE user_id = {users[0]}"
    monkeypatch.setattr(Ledger, "unsettled", also(Ledger.unsettled, after=lambda: world.sql(wake)))
    assert world.settle(NOON) == 0
    assert [world.told(user) for user in users] == [told, ("uncertain", None, None, "unknown")]


def test_a_run_that_asked_twilio_earlier_takes_back_no_final_word(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs side by side: this one was told that a text is on its way, the other one what became of it."""
    user = world.row(state="sent", sid=(sid := world.message(status="sent")))
    other = f"UPDATE {LEDGER} SET error_code = 30003, final_status = 'undelivered' WHERE user_id = {user}"
    monkeypatch.setattr(Ledger, "unsettled", also(Ledger.unsettled, after=lambda: world.sql(other)))
    assert world.settle(NOON + HOUR) == 0
    assert world.told(user) == ("sent", sid, 30003, "undelivered")


@pytest.mark.constants(SETTLE_ROWS=1)
def test_of_more_rows_than_one_run_looks_up_the_oldest_come_first(world: World) -> None:
    days = [NOON - n * DAY for n in (2, 4, 3)]
    users = [world.row(state="sent", claimed=day, sid=world.message(at=day)) for day in days]
    ends = []
    for _ in days:
        assert world.settle() == 0
        ends.append([user for user in users if world.told(user)[3]])
    assert ends == [[users[1]], users[1:], users]


@pytest.mark.constants(SETTLE_BUDGET=0.3)
def test_the_budget_holds_when_nothing_is_found(world: World) -> None:
    for n in range(20, 0, -1):
        world.row(f"+1202555{n:04}", "sent", NOON - 2 * n * DAY, sid=f"SM{n:032}")
    slow_lists(world, 0.1)
    assert world.settle() == 1
    assert len(world.lists) + len(world.fetches) <= 5


# --- many -------------------------------------------------------------------------------------------------------------


class Listing(Twilio):
    """Takes the answers of a stand-in for twilio-python's client."""

    def __init__(self, settings: Settings, client: Any) -> None:
        super().__init__(settings)
        self._client = client


class Memory:
    """Learns what became of so many texts of one day without a server; stands in for the ledger and Twilio's client."""

    def __init__(self, rows: int) -> None:
        sids = [f"SM{n:032}" for n in range(rows)]
        self.rows = [
            Row(n, NOON.date(), f"+1202{n:07}", "no_logs", State.SENT, "x", NOON, NOON, sid)
            for n, sid in enumerate(sids)
        ]
        self.messages, self.settled = self, 0

    def stream(self, **_: object) -> Iterator[SimpleNamespace]:
        """The day's texts, as twilio-python would list them."""
        for row in self.rows:
            yield SimpleNamespace(sid=row.sid, status="delivered", error_code=None, num_segments="1")

    def unsettled(self, _now: datetime) -> list[Row]:
        return self.rows

    def settle(self, settled: list[Row]) -> None:
        self.settled = len(settled)

    def peak(self, settings: Settings) -> int:
        """The most bytes in use at once."""
        stand_in: Any = self
        job = Job(settings, Report(), lambda: NOON + HOUR, Stop())
        job.ledger, job.brake = stand_in, Brake(Stop(), utc_now, 60)
        job.twilio = Listing(settings, stand_in)
        tracemalloc.start()
        assert job.look_up_earlier_texts() is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert self.settled == len(self.rows)
        return peak


def test_the_memory_of_a_look_up_grows_with_the_texts_of_a_day_and_not_with_their_square() -> None:
    assert Memory(3_000).peak(settings_of()) < 10 * Memory(500).peak(settings_of())


# --- alone ------------------------------------------------------------------------------------------------------------


def test_settling_alone_texts_nobody_and_claims_nothing(world: World) -> None:
    world.database.insert_user("Due", BERT, "UTC")
    user = world.row(state="sent", sid=world.message())
    assert world.settle() == 0
    assert world.told(user)[3] == "delivered"
    assert len(world.posted) == 0
    assert len(world.rows("*")) == 1
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


@pytest.mark.parametrize(("when", "asked"), [({"PageSize": "1"}, 0), ({"DateSent": "2026-05-10"}, 1)], ids=str)
def test_sigterm_ends_a_look_up_before_the_next_question(world: World, when: dict[str, str], asked: int) -> None:
    world.stop = stop = Stop()
    days = [NOON - n * DAY for n in (2, 1)]
    users = [world.row(state="sent", claimed=day, sid=world.message(at=day)) for day in days]

    def terminate(request: Request) -> None:
        if when.items() <= request.params.items():
            stop.request()

    world.twilio.hook = terminate
    assert world.settle() == 143
    assert [world.told(user)[3] for user in users] == ["delivered" if asked else None, None]
    assert len(world.lists) == asked
