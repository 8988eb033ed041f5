"""The rules: who gets which text, and what the ledger's rows say against it. Every edge is tried from both sides."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
import pytz
from hypothesis import given
from hypothesis import strategies as st

from habit_notifier import (
    Case,
    Message,
    Outcome,
    Personal,
    Reminder,
    Row,
    Rule,
    Skip,
    State,
    User,
    Zone,
    clean,
    days_by_zone,
    days_of,
    message_for,
    not_ours,
    phone_number,
    resolve_zone,
    segments,
    settled_rows,
    speaks_against,
    zone_doubts,
    zone_name,
)
from tests.environ import settings_of
from tests.sandbox.oracle import GSM7_BASIC, MICROSECOND, SECOND, zone_meant

NOW = datetime(2026, 5, 10, 9, tzinfo=UTC)
TODAY = date(2026, 5, 10)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
DEADLINE = timedelta(seconds=1_500)
PHONE, OTHER_PHONE = "+14155550123", "+14155550199"
OPTED_OUT, NO_PERMISSION = 21610, 21408
"""Refused for good, and refused today."""


def copied(record: Any, **changes: Any) -> Any:
    """The record with these changes and with strings of its own: equal ones are not the same, as from a database."""
    copy = dataclasses.replace(record, **changes)
    own = {f.name: getattr(copy, f.name) for f in dataclasses.fields(copy) if type(getattr(copy, f.name)) is str}
    return dataclasses.replace(copy, **{name: "".join(list(text)) for name, text in own.items()})


DAYS = days_of(NOW, pytz.timezone("Europe/Berlin"))


def a_user(**changes: Any) -> User:
    user: User = copied(User(42, "John Doe", PHONE, "", DAYS, logged_day1=False), **changes)
    return user


def a_reminder(rule: Rule = Rule.NO_LOGS, **changes: Any) -> Reminder:
    return Reminder(a_user(**changes), rule, DAYS)


def a_row(state: State = State.SENT, **changes: Any) -> Row:
    finished = NOW if state is not State.SENDING else None
    row: Row = copied(Row(42, TODAY, PHONE, "no_logs", state, "theirs", NOW, finished), **changes)
    return row


def a_case(rows: Iterable[Row] = (), user: User | None = None, now: datetime = NOW, **changes: Any) -> Case:
    return Case(user or a_user(), list(rows), None, settings_of(**changes), now)


def skipped(*case: Any, **changes: Any) -> Skip | None:
    """What speaks against a text to this user, with these rows."""
    return speaks_against(a_case(*case, **changes))


def told(skip: Skip | None) -> str:
    """The reason, as a reader sees it."""
    assert skip
    return skip.reason % skip.args


def outcome(skip: Skip | None) -> Outcome | None:
    return skip.outcome if skip else None


# --- which rule


def test_each_rule_has_a_text_of_its_own() -> None:
    told = settings_of(MESSAGE_NO_LOGS="two, {name}", MESSAGE_MISSED_YESTERDAY="one, {name}")
    assert message_for(a_reminder(Rule.NO_LOGS), told) == "two, John Doe"
    assert message_for(a_reminder(Rule.MISSED_YESTERDAY), told) == "one, John Doe"
    assert Rule.NO_LOGS.key != Rule.MISSED_YESTERDAY.key


# --- who can be texted at all


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("phone", [PHONE, "call me maybe"])
@pytest.mark.parametrize(("zone", "words"), [("Mars/Olympus", "'Mars/Olympus' is unknown"), ("", "no time zone")])
def test_whoever_has_no_zone_that_is_known_is_skipped_with_the_remedy(
    zone: str, words: str, phone: str, logged: bool
) -> None:
    skip = skipped([], a_user(days=None, zone=zone, phone=phone, logged_day1=logged))
    assert outcome(skip) is Outcome.BAD_ZONE
    assert words in told(skip)
    assert "User.time_zone" in told(skip)
    assert "DEFAULT_TIME_ZONE" in told(skip)


@pytest.mark.parametrize(
    "stored",
    [
        *("", "+", "00", "4155550123", "(415) 555-0123", "1 415 555 0123", "020 7946 0132", "+04155550123"),
        *("call me maybe", "+1415555CALL", "+14155550123x", "x+14155550123", "+1 415 555 0123 x5", "tel:+14155550123"),
        *("++14155550123", "+1 415 555 0123; +1 415 555 0199", "+1٤155550123", "+١٤١٥٥٥٥٠١٢٣", "+1415555012E"),
        *("+123456", "+1 415", "+1234567890123456"),  # six digits are too few, sixteen too many
        # the 0 falls away abroad: which digits are meant is not plain
        *("+44 (0)20 7946 0123", "+44(0)2079460132", "+44 [0] 20 7946 0132", "+44 ( 0 ) 20 7946 0132"),
        *("＋１４１５５５５０１２３", "+44 (020) 7946 0132", "+1 415 555 0123 (2)"),
        *("+1 415 555 0123\u00b2", "+1 415 555 012\u2460", "+44 \u247320 7946 0132"),  # digits, but not of a number
    ],
)
def test_whoever_has_no_number_that_can_be_texted_is_skipped_with_the_number(stored: str) -> None:
    phone = phone_number(stored)
    skip = skipped([], a_user(phone=phone))
    assert outcome(skip) is Outcome.BAD_PHONE
    assert repr(phone) in told(skip)
    assert "E.164" in told(skip)
    assert "User.phone_number" in told(skip)


@pytest.mark.parametrize(
    "phone", ["+1 415 555 0123", "+1-415-555-0123", "004155550123", "+14155550123\n", " +14155550123"]
)
def test_a_number_that_was_not_read_as_people_write_it_is_not_texted_either(phone: str) -> None:
    assert outcome(skipped([], a_user(phone=phone))) is Outcome.BAD_PHONE


@pytest.mark.parametrize("phone", ["+1234567", "+123456789012345", "+4917612345678"])
def test_numbers_from_seven_to_fifteen_digits_are_texted(phone: str) -> None:
    assert skipped([], a_user(phone=phone)) is None


@pytest.mark.parametrize(
    ("stored", "number"),
    [
        *((written, PHONE) for written in ("+1 (415) 555-0123", "+1.415.555.0123", "001 415 555 0123")),
        *((written, PHONE) for written in (b"+14155550123", " +14155550123\n", "+1\u2011415\u2013555\u22120123")),
        (" +1\u00a0415\u2011555\u20130123\u200e", PHONE),
        ("0044 20 7946 0132", "+442079460132"),
        ("+39 06 1234567", "+39061234567"),  # in Italy the zero belongs to the number
        ("020 7946 0123", "020 7946 0123"),
        ("+44 (0)20 7946 0123", "+44 (0)20 7946 0123"),
        (None, ""),
    ],
)
def test_a_number_is_read_as_people_write_it_where_that_is_plain(stored: object, number: str) -> None:
    assert phone_number(stored) == number
    assert phone_number(number) == number


# --- what the ledger says before a claim


HELD = [
    (State.SENT, Outcome.ALREADY),
    (State.REFUSED, Outcome.REMEMBERED),
    (State.UNCERTAIN, Outcome.UNCERTAIN),
    (State.SENDING, Outcome.UNCERTAIN),
]


@pytest.mark.parametrize(("state", "expected"), HELD)
def test_a_row_of_today_bars_today_whatever_its_state_and_number(state: State, expected: Outcome) -> None:
    old = a_row(state, local_day=TODAY - DAY, claimed_at=NOW - DAY, finished_at=NOW - DAY)
    assert outcome(skipped([a_row(state)], REFUSED_RETRY_DAYS=0)) is expected
    assert outcome(skipped([old, a_row(state)], REFUSED_RETRY_DAYS=0)) is expected
    assert outcome(skipped([a_row(state)], a_user(phone=OTHER_PHONE))) is expected


@pytest.mark.parametrize("state", [State.SENDING, State.UNCERTAIN])
@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (timedelta(0), Outcome.UNCERTAIN),
        (timedelta(minutes=30) - SECOND, Outcome.UNCERTAIN),
        (timedelta(minutes=30), Outcome.EARLIER),
        (timedelta(hours=8), Outcome.EARLIER),
    ],
)
def test_what_all_attempts_of_a_job_left_uncertain_fails_and_what_is_older_is_counted_apart(
    state: State, age: timedelta, expected: Outcome
) -> None:
    skip = skipped([a_row(state, claimed_at=NOW - age)])
    assert outcome(skip) is expected
    assert expected.failed is (expected is Outcome.UNCERTAIN)
    assert skip
    assert skip.again is (state is State.SENDING and expected is Outcome.UNCERTAIN)
    assert told(skip).startswith("another run is texting" if state is State.SENDING else "it may have been sent")
    assert told(skip).endswith(f": {PHONE} at {NOW - age:%Y-%m-%d %H:%M:%S} UTC")  # to be looked for in the console


@pytest.mark.parametrize("state", [State.SENT, State.UNCERTAIN, State.SENDING])
@pytest.mark.parametrize("days", [1, 2])
def test_rows_of_other_days_bar_nothing_unless_they_are_refusals(state: State, days: int) -> None:
    at = NOW - days * DAY
    old = a_row(state, local_day=TODAY - days * DAY, code=OPTED_OUT, claimed_at=at, finished_at=at)
    assert skipped([old]) is None


@pytest.mark.parametrize(
    ("age", "retry_days", "expected"),
    [
        (29, 30, Outcome.REMEMBERED),
        (30, 30, None),
        (31, 30, None),
        (1, 1, None),
        (1, 2, Outcome.REMEMBERED),
        (1, 0, None),
        (89, 90, Outcome.REMEMBERED),
    ],
)
def test_a_refusal_for_good_is_remembered_for_refused_retry_days(
    age: int, retry_days: int, expected: Outcome | None
) -> None:
    refused = refusal(age, code=OPTED_OUT)
    skip = skipped([refused], REFUSED_RETRY_DAYS=retry_days)
    assert outcome(skip) is expected
    if skip:
        assert PHONE in told(skip)
        assert str(refused.local_day) in told(skip)
        assert str(OPTED_OUT) in told(skip)


@pytest.mark.parametrize(
    ("state", "final", "remembered"),
    [
        (State.SENT, "delivered", False),
        (State.SENT, None, False),
        (State.SENT, "sent", False),  # carriers that send no receipts
        (State.SENT, "undelivered", True),
        (State.UNCERTAIN, "unknown", True),
        (State.REFUSED, "refused", True),
    ],
)
def test_a_refusal_is_forgotten_once_the_number_took_a_text(
    state: State, final: str | None, *, remembered: bool
) -> None:
    """Whoever opted in again may be tried earlier with a smaller REFUSED_RETRY_DAYS, which may then be as before."""
    later = dataclasses.replace(refusal(2), state=state, final_status=final)
    for rows in ([refusal(9, code=OPTED_OUT), later], [later, refusal(9, code=OPTED_OUT)]):
        assert outcome(skipped(rows)) is (Outcome.REMEMBERED if remembered else None)
    assert outcome(skipped([later, refusal(1, code=OPTED_OUT)])) is Outcome.REMEMBERED


def refusal(age: int, **changes: Any) -> Row:
    at = NOW - age * DAY
    return a_row(State.REFUSED, local_day=TODAY - age * DAY, claimed_at=at, finished_at=at, **changes)


@pytest.mark.parametrize("code", [None, 0, NO_PERMISSION, 99_999])
def test_a_refusal_that_is_not_for_good_is_forgotten_the_next_day(code: int | None) -> None:
    assert skipped([refusal(1, code=code)]) is None


@pytest.mark.parametrize("age", [1, 5])
def test_a_new_number_is_tried_the_next_day(age: int) -> None:
    assert skipped([refusal(age, code=OPTED_OUT)], a_user(phone=OTHER_PHONE)) is None


def test_an_old_number_does_not_hide_what_the_new_one_met() -> None:
    old = refusal(1, phone=OTHER_PHONE, code=OPTED_OUT)
    assert outcome(skipped([old, a_row(State.SENT)])) is Outcome.ALREADY
    assert outcome(skipped([old, refusal(2, code=OPTED_OUT)])) is Outcome.REMEMBERED


@pytest.mark.parametrize(
    ("changes", "barred"),
    [
        ({"claimed_at": NOW + timedelta(minutes=10)}, False),
        ({"claimed_at": NOW + timedelta(minutes=10) + SECOND}, True),
        ({"claimed_at": NOW + 45 * DAY}, True),
        ({"claimed_at": NOW - DAY, "finished_at": NOW + timedelta(minutes=10)}, False),
        ({"claimed_at": NOW - DAY, "finished_at": NOW + 45 * DAY}, True),  # it stepped while the text was on its way
        ({"local_day": TODAY + DAY}, False),  # after a move to the west
        ({"local_day": TODAY + 2 * DAY}, True),
    ],
)
@pytest.mark.parametrize("state", State)
def test_a_row_of_the_future_bars_its_user_by_name_with_the_statement_to_paste(
    state: State, changes: dict[str, Any], barred: bool
) -> None:
    """A clock that was ahead may leave such a row; without a word it would silence the user for as long."""
    row = a_row(state, **{"local_day": TODAY + DAY} | changes)
    skip = skipped([row])
    assert (outcome(skip) is Outcome.FUTURE) is barred
    if barred:
        this_row = f"user_id = 42 AND local_day = '{row.local_day}' AND run_token = 'theirs'"  # none that comes later
        assert told(skip).endswith(f"DELETE FROM `habits`.HabitNotification WHERE {this_row};")


@pytest.mark.parametrize("finished", [-SECOND, timedelta(), SECOND])
@pytest.mark.parametrize(("state", "today"), [(State.SENT, Outcome.ALREADY), (State.REFUSED, Outcome.REMEMBERED)])
def test_whose_day_is_taken_by_a_text_of_the_day_before_is_not_said_to_have_been_texted_today(
    state: State, today: Outcome, finished: timedelta
) -> None:
    """After a move to the west, or another DAY_STARTS_AT, the day before may come once more; its row bars it."""
    midnight = a_case().days.end
    skip = skipped([a_row(state, claimed_at=midnight - MINUTE, finished_at=midnight + finished)])
    assert outcome(skip) is (Outcome.DEFERRED if finished < timedelta() else today)
    assert "zone or DAY_STARTS_AT changed" in told(skip) or outcome(skip) is today


@pytest.mark.parametrize(("day", "expected"), [(TODAY + DAY, Outcome.DEFERRED), (TODAY + 2 * DAY, Outcome.FUTURE)])
def test_whoever_moved_from_the_first_zone_to_the_last_is_not_barred(day: date, expected: Outcome) -> None:
    now = NOW.replace(hour=10, minute=30)  # just after midnight of the 11th on Kiritimati
    pago = days_of(now + MINUTE, pytz.timezone("Pacific/Pago_Pago"))
    assert pago.today == TODAY - DAY
    row = a_row(local_day=day, claimed_at=now, finished_at=now)
    assert outcome(skipped([row], a_user(days=pago), now + MINUTE)) is expected


@pytest.mark.parametrize("default", ["", "UTC"])
def test_what_is_no_zone_may_be_a_persons_name_and_is_marked_as_personal(default: str) -> None:
    skip = skipped((), a_user(days=None, zone="Zorbax"), DEFAULT_TIME_ZONE=default)
    assert skip
    assert [type(value) for value in skip.args] == [Personal]
    known = skipped((), a_user(days=None, zone="Asia/Tokyo"), DEFAULT_TIME_ZONE=default)
    assert known
    assert [type(value) for value in known.args] == [str]


rows = st.builds(
    a_row,
    st.sampled_from(State),
    local_day=st.integers(-2, 40).map(lambda n: TODAY - n * DAY),
    phone=st.sampled_from((PHONE, OTHER_PHONE)),
    code=st.sampled_from((None, OPTED_OUT, NO_PERMISSION)),
    token=st.sampled_from(("a", "b", "c")),
)


@given(st.lists(rows, max_size=5), st.integers(0, 90))
def test_no_day_is_tried_twice(found: list[Row], retry_days: int) -> None:
    barred = any(r.local_day == TODAY for r in found)
    assert not barred or skipped(found, REFUSED_RETRY_DAYS=retry_days) is not None


# --- what the ledger says after a claim


def ours(**changes: Any) -> Row:
    return a_row(State.SENDING, **{"token": "ours"} | changes)


def lost(
    rows: Iterable[Row], now: datetime = NOW, *, claim: Row | None = None, user: User | None = None
) -> Skip | None:
    """Why our claim may not be posted, from the rows that stand then."""
    return not_ours(claim or ours(claimed_at=now), a_case(rows, user, now))


def test_our_own_row_alone_may_be_posted() -> None:
    assert lost([ours()]) is None


def test_a_claim_that_left_no_row_is_not_posted() -> None:
    """Another run held the day for a moment and released it: who was due was not texted, and this must show."""
    for rows in ([], [a_row(local_day=YESTERDAY)]):
        skip = lost(rows)
        assert outcome(skip) is Outcome.NOT_TRIED
        assert skip
        assert skip.again


@pytest.mark.parametrize(("state", "expected"), HELD)
def test_a_day_that_another_run_holds_is_not_ours(state: State, expected: Outcome) -> None:
    assert outcome(lost([a_row(state)])) is expected


SPACING = timedelta(hours=11, minutes=30)
YESTERDAY = TODAY - DAY


@pytest.mark.parametrize("state", [State.SENT, State.UNCERTAIN])
@pytest.mark.parametrize("day", [TODAY - DAY, TODAY + DAY], ids=["yesterday's row", "tomorrow's row"])
@pytest.mark.parametrize(
    ("ago", "expected"),
    [
        (timedelta(0), Outcome.DEFERRED),
        (SPACING - SECOND, Outcome.DEFERRED),
        (SPACING - MICROSECOND, Outcome.DEFERRED),
        (SPACING, None),
        (SPACING + SECOND, None),
        (-SECOND, Outcome.DEFERRED),
    ],
)
def test_nobody_is_texted_within_eleven_and_a_half_hours_of_their_last_text(
    state: State, day: date, ago: timedelta, expected: Outcome | None
) -> None:
    last = NOW - ago
    recent = a_row(state, local_day=day, claimed_at=last - timedelta(minutes=5), finished_at=last)
    for skip in (lost([recent, ours()]), skipped([recent])):
        if state is State.UNCERTAIN and last > NOW - timedelta(minutes=25):  # it was claimed five minutes before
            assert outcome(skip) is Outcome.UNCERTAIN
        else:
            assert outcome(skip) is expected
        if skip:
            assert f"{last:%Y-%m-%d %H:%M} UTC" in told(skip)
            assert "11 h 30 min" in told(skip)


@pytest.mark.parametrize("state", [State.UNCERTAIN, State.SENDING, State.SENT])
@pytest.mark.parametrize(
    ("age", "fails"), [(30 * MINUTE - SECOND, True), (30 * MINUTE, False), (30 * MINUTE + SECOND, False)]
)
def test_what_an_attempt_left_uncertain_just_before_midnight_fails_the_next_one(
    state: State, age: timedelta, fails: bool
) -> None:
    row = a_row(state, local_day=YESTERDAY, claimed_at=NOW - age)
    fails = fails and state is not State.SENT
    assert outcome(skipped([row])) is (Outcome.UNCERTAIN if fails else Outcome.DEFERRED)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("ago", "expected"), [(SPACING - SECOND, Outcome.DEFERRED), (SPACING, None), (SPACING + SECOND, None)]
)
def test_an_unfinished_row_may_have_been_posted_until_its_runs_deadline(
    state: State, ago: timedelta, expected: Outcome | None
) -> None:
    row = a_row(state, local_day=YESTERDAY, claimed_at=NOW - DEADLINE - ago, finished_at=None)
    assert row.last_possible_text(DEADLINE) == NOW - ago
    assert outcome(lost([row, ours()])) is (expected if state is not State.REFUSED else None)


@pytest.mark.parametrize("state", [State.SENDING, State.UNCERTAIN])
@pytest.mark.parametrize(("before", "expected"), [(5 * MINUTE, Outcome.DEFERRED), (5 * MINUTE + SECOND, None)])
def test_a_row_whose_text_may_be_lost_counts_five_minutes_longer(
    state: State, before: timedelta, expected: Outcome | None
) -> None:
    """Twilio may take a text after its run gave up; a question finds at 'sending' what a run finds uncertain."""
    claimed, evening = DAYS.end - before - DEADLINE, DAYS.end + timedelta(hours=23)
    row = a_row(state, local_day=YESTERDAY, claimed_at=claimed, finished_at=None)
    assert outcome(skipped([row], a_user(), evening)) is expected


@pytest.mark.parametrize(
    ("last", "expected"),
    [(-SECOND, None), (timedelta(0), Outcome.DEFERRED), (timedelta(hours=1), Outcome.DEFERRED)],
)
def test_no_two_texts_fall_into_one_local_day_as_the_user_has_it_now(last: timedelta, expected: Outcome | None) -> None:
    """Zones are corrected and people move: the earlier row's day is not the one that the user would name now."""
    evening = DAYS.end + timedelta(hours=23)
    row = a_row(local_day=YESTERDAY, claimed_at=DAYS.end + last, finished_at=DAYS.end + last)
    assert outcome(skipped([row], a_user(), evening)) is expected
    assert outcome(lost([row, ours(claimed_at=evening)], evening)) is expected


def test_the_latest_of_several_texts_counts() -> None:
    old = a_row(local_day=YESTERDAY, token="old", finished_at=NOW - 20 * timedelta(hours=1))
    new = a_row(local_day=TODAY + DAY, token="new", finished_at=NOW - timedelta(hours=1))
    for order in ([old, new, ours()], [new, ours(), old], [ours(), old, new]):
        assert outcome(lost(order)) is Outcome.DEFERRED


def test_the_instant_of_the_claim_counts_not_its_zone() -> None:
    recent = a_row(local_day=YESTERDAY, finished_at=NOW - SPACING + SECOND)
    elsewhere = NOW.astimezone(timezone(timedelta(hours=13)))
    assert outcome(lost([recent, ours()], elsewhere)) is Outcome.DEFERRED


@given(st.lists(rows, max_size=5), st.integers(0, 48 * 3600))
def test_of_two_claims_at_the_same_moment_never_both_are_posted(found: list[Row], later: int) -> None:
    """Two runs with different local days: each sees the other and gives way; the later one while the text is recent."""
    days = DAYS._replace(today=TODAY + DAY)
    first, second = ours(token="first"), ours(token="second", local_day=TODAY + DAY)
    both = [r for r in found if r.local_day not in (TODAY, TODAY + DAY)] + [first, second]
    assert lost(both, claim=first)
    assert lost(both, claim=second, user=a_user(days=days))
    at = NOW + timedelta(seconds=later)
    days = days._replace(end=at - timedelta(hours=1))
    late = dataclasses.replace(second, claimed_at=at)
    skip = lost([first, late], at, claim=late, user=a_user(days=days))
    ends = (  # until then that run may still post it; until then its Job may try again
        (NOW + DEADLINE, Outcome.NOT_TRIED),
        (NOW + timedelta(minutes=30), Outcome.UNCERTAIN),
        (NOW + DEADLINE + SPACING, Outcome.DEFERRED),
    )
    expected = next((what for end, what in ends if at < end), None)
    assert outcome(skip) is expected
    assert skip is None or skip.again is (expected is Outcome.NOT_TRIED)


# --- what Twilio says of earlier texts


def a_message(sid: str = "SM1", **changes: Any) -> tuple[str, Message]:
    return sid, copied(Message("delivered", None, None), **changes)


def settled(
    row: Row, *messages: tuple[str, Message], now: datetime = NOW + timedelta(hours=1), looked_up: bool = True
) -> Row | None:
    """What is written of a row, if anything."""
    found = settled_rows([row], dict(messages), now, looked_up=looked_up)
    assert len(found) <= 1
    return found[0] if found else None


@pytest.mark.parametrize(
    ("status", "final"),
    [
        *((status, status) for status in ("delivered", "undelivered", "failed", "canceled", "read")),
        *((status, None) for status in ("accepted", "scheduled", "queued", "sending", "sent")),
    ],
)
@pytest.mark.parametrize("state", [State.SENT, State.SENDING, State.UNCERTAIN])
def test_a_text_is_known_by_its_sid_and_settled_when_its_status_is_final(
    status: str, final: str | None, state: State
) -> None:
    row = a_row(state, sid="SM1")
    found = settled(row, a_message("SM1", status=status, code=30003), a_message("SM2"))
    assert found == dataclasses.replace(row, state=State.SENT, code=30003, final_status=final)


def test_each_row_of_a_sid_is_settled_as_itself() -> None:
    """Rows written by hand may share one."""
    rows = [a_row(sid="SM1"), a_row(sid="SM1", user_id="another")]
    found = settled_rows(rows, dict([a_message()]), NOW + timedelta(hours=1), looked_up=True)
    assert found == [dataclasses.replace(row, final_status="delivered") for row in rows]


@pytest.mark.parametrize("code", [True, "", "many", 10**9, -1, 1.5, "30003x"])
def test_a_code_that_no_column_holds_is_none(code: object) -> None:
    found = settled(a_row(sid="SM1"), a_message("SM1", code=code))
    assert found
    assert (found.code, found.final_status) == (None, "delivered")


@pytest.mark.parametrize(("age", "final"), [(-SECOND, None), (timedelta(0), None), (SECOND, "sent")])
def test_after_72_hours_any_status_is_the_last_word(age: timedelta, final: str | None) -> None:
    row = a_row(sid="SM1")
    found = settled(row, a_message(status="sent"), now=row.claimed_at + timedelta(hours=72) + age)
    assert found == dataclasses.replace(row, final_status=final)


@pytest.mark.parametrize(("age", "said"), [(-SECOND, False), (timedelta(0), False), (SECOND, True)])
@pytest.mark.parametrize(("looked_up", "hours"), [(True, 12), (False, 72)])
def test_a_sent_text_that_is_not_found_is_unknown_in_the_end_and_stays_sent(
    age: timedelta, said: bool, looked_up: bool, hours: int
) -> None:
    row = a_row(sid="SM1", code=7)
    found = settled(row, now=row.claimed_at + timedelta(hours=hours) + age, looked_up=looked_up)
    assert found == (dataclasses.replace(row, final_status="unknown") if said else None)


def test_a_text_that_was_refused_at_once_and_is_not_found_stays_refused() -> None:
    row = a_row(State.REFUSED, sid="SM1", code=21610)
    assert settled(row, now=NOW + timedelta(days=4)) == dataclasses.replace(row, final_status="unknown")


@pytest.mark.parametrize(("age", "said"), [(-SECOND, False), (timedelta(0), False), (SECOND, True)])
@pytest.mark.parametrize("state", [State.SENDING, State.UNCERTAIN])
@pytest.mark.parametrize("looked_up", [True, False])
def test_a_text_without_a_sid_is_unknown_after_all_attempts_of_its_job_and_stays_uncertain(
    state: State, age: timedelta, said: bool, looked_up: bool
) -> None:
    """Whatever Twilio lists: by number and time another program's text could be taken for it."""
    row = a_row(state)
    now = row.claimed_at + timedelta(minutes=30) + age
    found = settled(row, a_message("SM1"), now=now, looked_up=looked_up)
    assert found == (dataclasses.replace(row, state=State.UNCERTAIN, final_status="unknown") if said else None)


def test_what_twilio_says_never_frees_a_day() -> None:
    """Whatever is listed, a row ends as one that bars its day."""
    for state in (State.SENDING, State.UNCERTAIN, State.SENT):
        for sid in (None, "SM1"):
            for messages in ([], [a_message(status="failed")], [a_message("SM1"), a_message("SM2")]):
                row = settled(a_row(state, sid=sid), *messages, now=NOW + 4 * DAY)
                assert row
                assert skipped([row]) is not None


# --- texts


@pytest.mark.parametrize(("rule", "words"), [(Rule.NO_LOGS, "past 2 days"), (Rule.MISSED_YESTERDAY, "yesterday")])
@pytest.mark.parametrize("name", ["W" * 40, "é" * 40, "Åse Ñandù " * 4, "", "X"])
def test_the_default_texts_tell_name_and_rule_and_how_to_opt_out_in_one_segment(
    rule: Rule, words: str, name: str
) -> None:
    text = message_for(a_reminder(rule, name=name), settings_of())
    assert words in text
    assert set(text) <= GSM7_BASIC
    assert segments(text) == 1
    assert text.startswith(f"Hi {name or 'there'}, ")
    assert "Reply STOP to opt out" in text
    assert "{" not in text


def test_a_name_is_filled_in_as_it_is() -> None:
    told = settings_of(MESSAGE_NO_LOGS="{name}! {name}? 100 % \\1 $name")
    assert message_for(a_reminder(name="{name} %s {0}"), told) == "{name} %s {0}! {name} %s {0}? 100 % \\1 $name"
    assert message_for(a_reminder(name=""), told) == "there! there? 100 % \\1 $name"


@pytest.mark.parametrize(
    ("dirty", "tidy"),
    [
        *((kept, kept) for kept in ("John Doe", "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "")),
        *((kept, kept) for kept in ("👨\u200d👩\u200d👧", "王小明 Ñandú О'Нил 👍", "e\u0301")),
        ("Eve\r\n2024-01-15 - root - INFO - forged", "Eve 2024-01-15 - root - INFO - forged"),
        ("tab\tnul\0bell\aescape\x1b[31m", "tab nul bell escape [31m"),
        ("del\x7fnext\x85c1\x9bcsi", "del next c1 csi"),
        ("line\u2028paragraph\u2029end", "line paragraph end"),
        ("right\u202eto\u202cleft \u2066isolate\u2069", "righttoleft isolate"),
        ("zero\u200bwidth\ufeffbom", "zerowidthbom"),
        ("soft\u00adhyphen no\u00a0break", "softhyphen no break"),
        ("tag\U000e0041s private\ue000use", "tags private use"),
        ("  many   blanks  ", "many blanks"),
        (" \t\r\n\u202e ", ""),
        (None, ""),
        (0, "0"),
        (b"x\xff", "x\ufffd"),  # as a VARBINARY column has it
        (b"x\xed\xa0\xbd!", "x\ufffd\ufffd\ufffd!"),  # half of a surrogate pair
    ],
)
def test_what_is_read_from_the_database_is_one_line_that_prints(dirty: object, tidy: str) -> None:
    assert clean(dirty) == tidy


@given(st.text())
def test_nothing_that_does_not_print_survives(text: str) -> None:
    tidy = clean(text)
    shown = "".join(c for c in tidy if c not in "\u200c\u200d")  # which hold words and emoji together
    assert shown.isprintable()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cn", "Cs") for c in shown)
    assert tidy == tidy.strip() == clean(tidy)
    kept = [c for c in text if c.isprintable() and c != " "]
    assert kept == [c for c in shown if c != " "]


# --- zones


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        ("europe/berlin", "Europe/Berlin"),
        ("EUROPE/BERLIN", "Europe/Berlin"),
        ("  Europe/Berlin \t", "Europe/Berlin"),
        ("utc", "UTC"),
        ("Etc/GMT+5", "Etc/GMT+5"),
        ("US/Pacific", "US/Pacific"),
        ("america/argentina/comodrivadavia", "America/Argentina/ComodRivadavia"),
        ("", None),
        ("   ", None),
        ("Europe", None),
        ("Europe/", None),
        ("Europe /Berlin", None),
        ("Europe/Zürich", None),
        ("Europe/Berlin�", None),
        ("+02:00", None),
        ("Mars/Olympus_Mons", None),
        ("../../etc/passwd", None),
        ("/etc/localtime", None),
        ("Europe/Berlin\0", None),
    ],
)
def test_zones_are_found_whatever_their_case_and_the_blanks_around_them(stored: str, name: str | None) -> None:
    zone = resolve_zone(stored)
    assert (zone.zone if zone else None) == name == zone_meant(stored)


def test_every_zone_of_the_data_is_found() -> None:
    assert [name for name in pytz.all_timezones if getattr(resolve_zone(name.lower()), "zone", None) != name] == []


@given(st.text(max_size=20))
def test_no_text_in_the_zone_column_can_stop_the_run(text: str) -> None:
    assert (resolve_zone(text) is None) is (zone_meant(text) is None)


@pytest.mark.parametrize("hidden", ["\u200b", "\0", "\ufeff", "\u00ad", "\u202e", "\u200d", "\r\n", " "])
def test_what_nobody_sees_in_a_zone_does_not_make_it_another(hidden: str) -> None:
    """A value that is judged by one form and told in another is "in use during this run" for ever."""
    for stored in (f"Europe/Berlin{hidden}", f"{hidden}Europe/Berlin", f"Europe/{hidden.strip(' ')}Berlin"):
        assert zone_name(stored) == zone_name(stored.encode()) == "Europe/Berlin"


def test_each_stored_spelling_has_days_and_the_default_serves_the_rest() -> None:
    stored = [b"Europe/Berlin", b"europe/berlin ", "Europe/Berlin\u200b".encode(), b"", b"Mars", b"\xff\xfe"]
    zones = [Zone(key, zone_name(key), 1) for key in stored]
    plain = days_by_zone(zones, settings_of(), NOW)
    assert set(plain) == set(stored[:3])
    assert len(set(plain.values())) == 1
    served = days_by_zone(zones, settings_of(DEFAULT_TIME_ZONE="asia/tokyo"), NOW)
    assert set(served) == set(stored)
    assert served[b""] == served[b"Mars"] == served[b"\xff\xfe"]
    assert served[b""].end == datetime(2026, 5, 9, 15, tzinfo=UTC)
    assert served[b"Europe/Berlin"] == plain[b"Europe/Berlin"]
    assert served[b"Europe/Berlin"].end == datetime(2026, 5, 9, 22, tzinfo=UTC)


def test_only_a_zone_that_is_there_and_unknown_is_named_when_the_default_replaces_it() -> None:
    zones = [Zone(b"", "", 2), Zone(b"Mars", "Mars", 4), Zone(b"Europe/Berlin", "Europe/Berlin", 9)]
    assert list(zone_doubts(zones, settings_of())) == []
    [doubt] = zone_doubts(zones, settings_of(DEFAULT_TIME_ZONE="Asia/Tokyo"))
    assert doubt == "4 users have the unknown zone “Mars”: DEFAULT_TIME_ZONE (Asia/Tokyo) serves"
