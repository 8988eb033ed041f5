"""The rules: who gets which text, and what the ledger's rows say against it. Every edge is tried from both sides."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from habit_notifier import (
    MISSED_YESTERDAY,
    NO_LOGS,
    Claim,
    Days,
    Message,
    Outcome,
    Reminder,
    Row,
    Rule,
    Settings,
    Settlement,
    Skip,
    State,
    User,
    already,
    candidates,
    clean,
    days_by_zone,
    is_outdated,
    judge,
    message_for,
    not_ours,
    resolve_zone,
    rule_for,
    settlements,
)
from tests.oracle import MICROSECOND, SECOND, zone_meant
from tests.sandbox.fake_twilio import GSM7_BASIC, FakeTwilio, segments

NOW = datetime(2026, 5, 10, 9, tzinfo=UTC)
TODAY = date(2026, 5, 10)
DAY = timedelta(days=1)
DEADLINE = timedelta(seconds=1_500)
PHONE, OTHER_PHONE = "+14155550123", "+14155550199"
OPTED_OUT, NO_PERMISSION = 21610, 21408
"""Refused for good, and refused today."""

ENVIRON = {
    "DB_HOST": "db",
    "DB_NAME": "habits",
    "DB_USER": "app",
    "DB_PASSWORD": "pw",
    "TWILIO_ACCOUNT_SID": FakeTwilio.ACCOUNT_SID,
    "TWILIO_AUTH_TOKEN": FakeTwilio.AUTH_TOKEN,
    "TWILIO_FROM_NUMBER": FakeTwilio.FROM_NUMBER,
}


def copied(record: Any, **changes: Any) -> Any:
    """The record with these changes and with strings of its own: equal ones are not the same, as from a database."""
    copy = dataclasses.replace(record, **changes)
    own = {f.name: getattr(copy, f.name) for f in dataclasses.fields(copy) if type(getattr(copy, f.name)) is str}
    return dataclasses.replace(copy, **{name: "".join(list(text)) for name, text in own.items()})


def a_reminder(rule: Rule = NO_LOGS, **changes: Any) -> Reminder:
    reminder: Reminder = copied(Reminder(42, "John Doe", PHONE, rule, TODAY), **changes)
    return reminder


def a_row(state: State = State.SENT, **changes: Any) -> Row:
    finished = NOW if state is not State.SENDING else None
    row: Row = copied(Row(42, TODAY, PHONE, state, "theirs", NOW, finished, None, None), **changes)
    return row


def a_claim(**changes: Any) -> Claim:
    claim: Claim = copied(Claim(a_reminder(), "ours", NOW), **changes)
    return claim


def outcome(skip: Skip | None) -> Outcome | None:
    return skip.outcome if skip else None


# --- which rule


@pytest.mark.parametrize(("day1", "reason"), [(False, "No logs in the past 2 days"), (True, "Missed yesterday")])
def test_the_rules_are_those_of_the_table(day1: bool, reason: str) -> None:
    assert rule_for(logged_day1=day1).reason == reason


def test_each_rule_has_a_text_of_its_own() -> None:
    told = Settings.read(ENVIRON | {"MESSAGE_NO_LOGS": "two, {name}", "MESSAGE_MISSED_YESTERDAY": "one, {name}"})
    assert message_for(a_reminder(NO_LOGS), told) == "two, John Doe"
    assert message_for(a_reminder(MISSED_YESTERDAY), told) == "one, John Doe"
    assert NO_LOGS.key != MISSED_YESTERDAY.key


# --- judge

ZONE = b"Europe/Berlin"
DAYS = {ZONE: Days(TODAY, NOW - 3 * DAY, NOW - 2 * DAY, NOW - DAY)}


def a_user(**changes: Any) -> User:
    user = User(42, "John Doe", PHONE, "Europe/Berlin", ZONE, logged_day1=False)
    return dataclasses.replace(user, **changes)


@pytest.mark.parametrize(("day1", "rule"), [(False, NO_LOGS), (True, MISSED_YESTERDAY)])
def test_whoever_is_due_gets_a_reminder_for_the_day_of_their_own_zone(day1: bool, rule: Rule) -> None:
    assert judge(a_user(logged_day1=day1), DAYS) == Reminder(42, "John Doe", PHONE, rule, TODAY)


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("phone", [PHONE, "call me maybe"])
def test_whoever_has_no_zone_is_skipped_with_the_zone_and_the_remedy(phone: str, logged: bool) -> None:
    skip = judge(a_user(zone_key=None, unknown_zone="Mars/Olympus", phone=phone, logged_day1=logged), DAYS)
    assert isinstance(skip, Skip)
    assert skip.outcome is Outcome.BAD_ZONE
    assert "'Mars/Olympus'" in skip.reason
    assert "User.time_zone" in skip.reason
    assert "DEFAULT_TIME_ZONE" in skip.reason


def test_whoever_has_an_empty_zone_is_told_apart_from_whoever_has_an_unknown_one() -> None:
    skip = judge(a_user(zone_key=None, unknown_zone=""), DAYS)
    assert isinstance(skip, Skip)
    assert skip.outcome is Outcome.BAD_ZONE
    assert "no time zone" in skip.reason
    assert "User.time_zone" in skip.reason
    assert "DEFAULT_TIME_ZONE" in skip.reason


@pytest.mark.parametrize(
    "phone",
    [
        *("", "+", "4155550123", "004155550123", "+04155550123", "+1 415 555 0123", "+1-415-555-0123", "call me maybe"),
        *("+14155550123x", "x+14155550123", "+14155550123\n", " +14155550123", "++14155550123", "+1٤155550123"),
        *("+123456", "+1234567890123456"),  # six digits are too few, sixteen too many
    ],
)
def test_whoever_has_no_number_that_can_be_texted_is_skipped_with_the_number(phone: str) -> None:
    skip = judge(a_user(phone=phone), DAYS)
    assert isinstance(skip, Skip)
    assert skip.outcome is Outcome.BAD_PHONE
    assert repr(phone) in skip.reason
    assert "E.164" in skip.reason
    assert "User.phone_number" in skip.reason


@pytest.mark.parametrize("phone", ["+1234567", "+123456789012345", "+4917612345678"])
def test_numbers_from_seven_to_fifteen_digits_are_texted(phone: str) -> None:
    verdict = judge(a_user(phone=phone), DAYS)
    assert isinstance(verdict, Reminder)
    assert verdict.phone == phone


# --- what the ledger says before a claim


def test_without_rows_a_reminder_may_be_claimed() -> None:
    assert already(a_reminder(), [], 30) is None


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.SENT, Outcome.ALREADY),
        (State.UNCERTAIN, Outcome.ALREADY),
        (State.REFUSED, Outcome.ALREADY),
        (State.SENDING, Outcome.UNCERTAIN),
    ],
)
def test_a_row_of_today_bars_today_whatever_its_state(state: State, expected: Outcome) -> None:
    assert outcome(already(a_reminder(), [a_row(state)], 0)) is expected
    assert outcome(already(a_reminder(), [a_row(state, local_day=TODAY - DAY), a_row(state)], 0)) is expected


@pytest.mark.parametrize("state", [State.SENT, State.UNCERTAIN, State.SENDING])
@pytest.mark.parametrize("days", [-1, 1, 2])
def test_rows_of_other_days_bar_nothing_unless_they_are_refusals(state: State, days: int) -> None:
    assert already(a_reminder(), [a_row(state, local_day=TODAY - days * DAY, code=OPTED_OUT)], 30) is None


@pytest.mark.parametrize("state", [State.SENT, State.UNCERTAIN, State.SENDING])
def test_a_text_of_today_counts_although_the_number_is_new(state: State) -> None:
    assert already(a_reminder(phone=OTHER_PHONE), [a_row(state)], 30) is not None


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
    refused = a_row(State.REFUSED, local_day=TODAY - age * DAY, code=OPTED_OUT)
    skip = already(a_reminder(), [refused], retry_days)
    assert outcome(skip) is expected
    if skip:
        assert PHONE in skip.reason
        assert str(refused.local_day) in skip.reason
        assert str(OPTED_OUT) in skip.reason


@pytest.mark.parametrize("code", [None, 0, NO_PERMISSION, 99_999])
def test_a_refusal_that_is_not_for_good_is_forgotten_the_next_day(code: int | None) -> None:
    assert already(a_reminder(), [a_row(State.REFUSED, local_day=TODAY - DAY, code=code)], 30) is None


@pytest.mark.parametrize("age", [0, 1, 5])
def test_a_new_number_is_tried_at_once(age: int) -> None:
    refused = a_row(State.REFUSED, local_day=TODAY - age * DAY, code=OPTED_OUT)
    assert already(a_reminder(phone=OTHER_PHONE), [refused], 30) is None
    assert is_outdated(refused, a_reminder(phone=OTHER_PHONE)) is (age == 0), "its row makes way when it bars the day"


def test_an_old_number_does_not_hide_what_the_new_one_met() -> None:
    old = a_row(State.REFUSED, phone=OTHER_PHONE, code=OPTED_OUT)
    assert outcome(already(a_reminder(), [old, a_row(State.SENT, local_day=TODAY)], 30)) is Outcome.ALREADY
    new = a_row(State.REFUSED, local_day=TODAY - DAY, code=OPTED_OUT)
    assert outcome(already(a_reminder(), [old, new], 30)) is Outcome.REMEMBERED


@pytest.mark.parametrize("state", [State.SENT, State.UNCERTAIN, State.SENDING])
def test_only_a_refusal_of_another_number_makes_way(state: State) -> None:
    assert not is_outdated(a_row(state, phone=OTHER_PHONE), a_reminder())
    assert not is_outdated(a_row(State.REFUSED), a_reminder()), "the same number"
    assert not is_outdated(a_row(State.REFUSED, phone=OTHER_PHONE, local_day=TODAY - DAY), a_reminder())
    assert not is_outdated(a_row(State.REFUSED, phone=OTHER_PHONE, local_day=TODAY + DAY), a_reminder())
    assert is_outdated(a_row(State.REFUSED, phone=OTHER_PHONE), a_reminder())


rows = st.builds(
    a_row,
    st.sampled_from(State),
    local_day=st.integers(-2, 40).map(lambda n: TODAY - n * DAY),
    phone=st.sampled_from((PHONE, OTHER_PHONE)),
    code=st.sampled_from((None, OPTED_OUT, NO_PERMISSION)),
    token=st.sampled_from(("a", "b", "c")),
)


@settings(deadline=None)
@given(st.lists(rows, max_size=5), st.integers(0, 90))
def test_no_day_is_tried_twice_with_the_same_number(found: list[Row], retry_days: int) -> None:
    barred = any(r.local_day == TODAY and (r.phone == PHONE or r.state is not State.REFUSED) for r in found)
    skip = already(a_reminder(), found, retry_days)
    if barred:
        assert skip is not None
    elif not any(r.state is State.REFUSED for r in found):
        assert skip is None


# --- what the ledger says after a claim


def ours(**changes: Any) -> Row:
    return a_row(State.SENDING, **{"token": "ours"} | changes)


def test_our_own_row_alone_may_be_posted() -> None:
    assert not_ours(a_claim(), [ours()], DEADLINE) is None


def test_a_claim_that_left_no_row_is_not_posted() -> None:
    """Another run held the day for a moment and released it: who was due was not texted, and this must show."""
    assert outcome(not_ours(a_claim(), [], DEADLINE)) is Outcome.NOT_TRIED
    for days in (-1, 1):
        assert outcome(not_ours(a_claim(), [a_row(local_day=TODAY + days * DAY)], DEADLINE)) is Outcome.NOT_TRIED


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.SENDING, Outcome.UNCERTAIN),
        (State.SENT, Outcome.ALREADY),
        (State.UNCERTAIN, Outcome.ALREADY),
        (State.REFUSED, Outcome.ALREADY),
    ],
)
def test_a_day_that_another_run_holds_is_not_ours(state: State, expected: Outcome) -> None:
    assert outcome(not_ours(a_claim(), [a_row(state)], DEADLINE)) is expected


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
    skip = not_ours(a_claim(), [recent, ours()], DEADLINE)
    assert outcome(skip) is expected
    if skip:
        assert f"{last:%Y-%m-%d %H:%M} UTC" in skip.reason
        assert "11 h 30 min" in skip.reason


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("ago", "expected"), [(SPACING - SECOND, Outcome.DEFERRED), (SPACING, None), (SPACING + SECOND, None)]
)
def test_an_unfinished_row_may_have_been_posted_until_its_runs_deadline(
    state: State, ago: timedelta, expected: Outcome | None
) -> None:
    row = a_row(state, local_day=YESTERDAY, claimed_at=NOW - DEADLINE - ago, finished_at=None)
    assert row.last_possible_text(DEADLINE) == NOW - ago
    assert outcome(not_ours(a_claim(), [row, ours()], DEADLINE)) is (expected if state is not State.REFUSED else None)


def test_a_refusal_was_no_text() -> None:
    refused = a_row(State.REFUSED, local_day=YESTERDAY, finished_at=NOW - SECOND)
    assert not_ours(a_claim(), [refused, ours()], DEADLINE) is None


def test_the_latest_of_several_texts_counts() -> None:
    old = a_row(local_day=YESTERDAY, token="old", finished_at=NOW - 20 * timedelta(hours=1))
    new = a_row(local_day=TODAY + DAY, token="new", finished_at=NOW - timedelta(hours=1))
    for order in ([old, new, ours()], [new, ours(), old], [ours(), old, new]):
        assert outcome(not_ours(a_claim(), order, DEADLINE)) is Outcome.DEFERRED


def test_the_instant_of_the_claim_counts_not_its_zone() -> None:
    recent = a_row(local_day=YESTERDAY, finished_at=NOW - SPACING + SECOND)
    elsewhere = a_claim(at=NOW.astimezone(timezone(timedelta(hours=13))))
    assert outcome(not_ours(elsewhere, [recent, ours()], DEADLINE)) is Outcome.DEFERRED


@settings(deadline=None)
@given(st.lists(rows, max_size=5), st.integers(0, 48 * 3600))
def test_of_two_claims_at_the_same_moment_never_both_are_posted(found: list[Row], later: int) -> None:
    """Two runs with different local days: whoever claims first is seen by the other, whatever else is there."""
    first, second = ours(token="first"), ours(token="second", local_day=TODAY + DAY)
    claims = a_claim(token="first"), a_claim(token="second", reminder=a_reminder(local_day=TODAY + DAY))
    both = [r for r in found if r.local_day not in (TODAY, TODAY + DAY)] + [first, second]
    assert all(not_ours(claim, both, DEADLINE) for claim in claims)
    at = NOW + timedelta(seconds=later)
    late = dataclasses.replace(claims[1], at=at)
    skip = not_ours(late, [first, dataclasses.replace(second, claimed_at=at)], DEADLINE)
    assert outcome(skip) is (Outcome.DEFERRED if at < NOW + DEADLINE + SPACING else None)


# --- what Twilio's list says of earlier texts

SLACK = timedelta(minutes=1)


def a_message(sid: str = "SM1", **changes: Any) -> Message:
    message: Message = copied(Message(sid, PHONE, "delivered", None, NOW), **changes)
    return message


def test_a_text_that_is_known_by_its_sid_is_found_by_it_alone() -> None:
    known, other = a_message("SM1", to=OTHER_PHONE, created=None), a_message("SM2")
    assert candidates(a_row(sid="SM1"), [known, other], {"SM1"}, DEADLINE) == {"SM1": known}
    assert candidates(a_row(sid="SM3"), [known, other], set(), DEADLINE) == {}


@pytest.mark.parametrize(
    ("created", "found"),
    [
        (NOW - SLACK - SECOND, False),
        (NOW - SLACK, True),
        (NOW, True),
        (NOW + DEADLINE + SLACK, True),
        (NOW + DEADLINE + SLACK + SECOND, False),
        (None, False),
    ],
)
def test_a_text_without_sid_is_looked_for_between_its_claim_and_its_runs_deadline(
    created: datetime | None, found: bool
) -> None:
    listed = a_message(created=created)
    assert candidates(a_row(State.SENDING), [listed], set(), DEADLINE) == ({"SM1": listed} if found else {})


@pytest.mark.parametrize(("after", "found"), [(SLACK - SECOND, True), (SLACK, True), (SLACK + SECOND, False)])
def test_a_finished_row_needs_no_deadline(after: timedelta, found: bool) -> None:
    row = a_row(State.UNCERTAIN, finished_at=NOW + timedelta(seconds=10))
    listed = a_message(created=NOW + timedelta(seconds=10) + after)
    assert bool(candidates(row, [listed], set(), DEADLINE)) is found


def test_texts_to_others_and_of_other_rows_are_no_candidates() -> None:
    listed = [a_message("SM1"), a_message("SM2"), a_message("SM3", to=OTHER_PHONE), a_message("SM4", to="+1234567")]
    assert candidates(a_row(State.SENDING), listed, {"SM1"}, DEADLINE) == {"SM2": listed[1]}


def settled(
    found: Iterable[tuple[Row, list[Message]]], now: datetime = NOW + timedelta(hours=1), others: Iterable[Row] = ()
) -> list[Settlement]:
    """What is settled, where there are also other rows that nobody looked up."""
    found = list(found)
    return list(settlements(found, [*(row for row, _ in found), *others], now, DEADLINE))


@pytest.mark.parametrize(
    ("status", "final"),
    [
        *((status, status) for status in ("delivered", "undelivered", "failed", "canceled", "read")),
        *((status, None) for status in ("accepted", "scheduled", "queued", "sending", "sent")),
    ],
)
def test_one_message_for_one_row_settles_it_when_its_status_is_final(status: str, final: str | None) -> None:
    row = a_row(State.SENDING)
    assert settled([(row, [a_message(status=status, code=30003)])]) == [
        Settlement(row, State.SENT, "SM1", 30003, final),
    ]


@pytest.mark.parametrize(("age", "final"), [(-SECOND, None), (timedelta(0), None), (SECOND, "sent")])
def test_after_72_hours_any_status_is_the_last_word(age: timedelta, final: str | None) -> None:
    row = a_row(sid="SM1")
    now = row.claimed_at + timedelta(hours=72) + age
    assert settled([(row, [a_message(status="sent")])], now) == [Settlement(row, State.SENT, "SM1", None, final)]


@pytest.mark.parametrize(("age", "told"), [(-SECOND, False), (timedelta(0), False), (SECOND, True)])
@pytest.mark.parametrize("state", [State.SENDING, State.UNCERTAIN])
def test_a_text_that_is_not_found_is_unknown_after_12_hours_and_stays_uncertain(
    state: State, age: timedelta, told: bool
) -> None:
    row = a_row(state)
    now = row.claimed_at + timedelta(hours=12) + age
    unknown = Settlement(row, State.UNCERTAIN, None, None, "unknown")
    assert settled([(row, [])], now) == ([unknown] if told else [])


def test_a_sent_text_that_is_not_found_stays_sent() -> None:
    row = a_row(State.SENT, sid="SM1", code=7)
    assert settled([(row, [])], NOW + DAY) == [Settlement(row, State.SENT, "SM1", 7, "unknown")]


def test_several_candidates_stay_uncertain() -> None:
    row = a_row(State.SENDING)
    two = [a_message("SM1"), a_message("SM2")]
    assert settled([(row, two)]) == []
    assert settled([(row, two)], NOW + DAY) == [Settlement(row, State.UNCERTAIN, None, None, "unknown")]


def test_a_message_that_two_rows_claim_is_given_to_neither() -> None:
    """Two accounts may share a number: the text of one must not prove that of the other."""
    one, other, third = a_row(State.SENDING), a_row(State.UNCERTAIN, user_id=43), a_row(State.SENDING, user_id=44)
    shared, own = a_message("SM1"), a_message("SM2", to=OTHER_PHONE)
    third = copied(third, phone=OTHER_PHONE)
    assert settled([(one, [shared]), (other, [shared]), (third, [own])]) == [
        Settlement(third, State.SENT, "SM2", None, "delivered")
    ]


def test_a_message_may_be_of_a_row_that_nobody_looked_up() -> None:
    """Such as one of the last minutes, or one that was settled long ago."""
    row, message = a_row(State.SENDING), a_message("SM1")
    for rival in (a_row(State.SENDING, user_id=43), a_row(State.UNCERTAIN, local_day=YESTERDAY)):
        assert settled([(row, [message])], others=[rival]) == []
    carrier = a_row(State.SENT, user_id=43, sid="SM1")
    assert settled([(row, [message])], others=[carrier]) == []
    assert settled([(row, [message, a_message("SM2")])], others=[carrier]) == [
        Settlement(row, State.SENT, "SM2", None, "delivered")
    ]


def test_rows_of_other_numbers_and_other_hours_claim_no_message() -> None:
    row, message = a_row(State.SENDING), a_message("SM1")
    strangers = [
        a_row(State.SENDING, user_id=43, phone=OTHER_PHONE),
        a_row(State.SENDING, local_day=YESTERDAY, claimed_at=NOW - DEADLINE - SLACK - SECOND),
        a_row(State.SENDING, local_day=TODAY + DAY, claimed_at=NOW + SLACK + SECOND),
        a_row(State.SENT, user_id=44, sid="SM9"),
    ]
    assert settled([(row, [message])], others=strangers) == [Settlement(row, State.SENT, "SM1", None, "delivered")]


def test_a_message_that_another_search_found_may_be_a_rows_too() -> None:
    row, other = a_row(State.SENDING), a_row(State.SENDING, user_id=43)
    assert settled([(row, []), (other, [a_message("SM1")])]) == [], "both may have sent it, wherever it was listed"


def test_a_text_that_is_known_by_its_sid_is_settled_whoever_else_has_the_number() -> None:
    row, message = a_row(sid="SM1"), a_message("SM1", status="undelivered", code=30003)
    for rival in (a_row(State.SENDING, user_id=43), a_row(State.SENT, user_id=43, sid="SM1")):
        assert settled([(row, [message])], others=[rival]) == [Settlement(row, State.SENT, "SM1", 30003, "undelivered")]


def test_what_twilio_says_never_frees_a_day() -> None:
    """Whatever is listed, a row ends as one that bars its day."""
    for state in (State.SENDING, State.UNCERTAIN, State.SENT):
        for messages in ([], [a_message(status="failed")], [a_message("SM1"), a_message("SM2")]):
            for end in settled([(a_row(state), messages)], NOW + 4 * DAY):
                assert already(a_reminder(), [a_row(end.state)], 0) is not None


# --- texts


@pytest.mark.parametrize("rule", [NO_LOGS, MISSED_YESTERDAY], ids=lambda rule: rule.key)
@pytest.mark.parametrize("name", ["W" * 40, "é" * 40, "Åse Ñandù " * 4, "", "X"])
def test_the_default_texts_are_one_segment_and_tell_how_to_opt_out(rule: Rule, name: str) -> None:
    text = message_for(a_reminder(rule, name=name), Settings.read(ENVIRON))
    assert set(text) <= GSM7_BASIC
    assert segments(text) == 1
    assert text.startswith(f"Hi {name or 'there'}, ")
    assert "Reply STOP to opt out" in text
    assert "{" not in text


def test_a_name_is_filled_in_as_it_is() -> None:
    told = Settings.read(ENVIRON | {"MESSAGE_NO_LOGS": "{name}! {name}? 100 % \\1 $name"})
    assert message_for(a_reminder(name="{name} %s {0}"), told) == "{name} %s {0}! {name} %s {0}? 100 % \\1 $name"
    assert message_for(a_reminder(name=""), told) == "there! there? 100 % \\1 $name"


@pytest.mark.parametrize(
    ("dirty", "tidy"),
    [
        ("John Doe", "John Doe"),
        ("Eve\r\n2024-01-15 - root - INFO - forged", "Eve 2024-01-15 - root - INFO - forged"),
        ("tab\tnul\0bell\aescape\x1b[31m", "tab nul bell escape [31m"),
        ("del\x7fnext\x85c1\x9bcsi", "del next c1 csi"),
        ("line\u2028paragraph\u2029end", "line paragraph end"),
        ("right\u202eto\u202cleft \u2066isolate\u2069", "right to left isolate"),
        ("zero\u200bwidth\ufeffbom", "zero width bom"),
        ("soft\u00adhyphen no\u00a0break", "soft hyphen no break"),
        ("tag\U000e0041s private\ue000use", "tag s private use"),
        ("  many   blanks  ", "many blanks"),
        (" \t\r\n\u202e ", ""),
        ("王小明 Ñandú О'Нил 👍", "王小明 Ñandú О'Нил 👍"),
        ("e\u0301", "e\u0301"),
        (None, ""),
        (0, "0"),
        (b"x\xff", "x\ufffd"),  # as a VARBINARY column has it
        ("", ""),
    ],
)
def test_what_is_read_from_the_database_is_one_line_that_prints(dirty: object, tidy: str) -> None:
    assert clean(dirty) == tidy


@given(st.text())
def test_nothing_that_does_not_print_survives(text: str) -> None:
    tidy = clean(text)
    assert tidy.isprintable()
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cn", "Cs") for c in tidy)
    assert tidy == tidy.strip() == clean(tidy)
    kept = [c for c in text if c.isprintable() and c != " "]
    assert kept == [c for c in tidy if c != " "]


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


def test_each_stored_spelling_has_days_and_the_default_serves_the_rest() -> None:
    stored = [b"Europe/Berlin", b"europe/berlin ", b"", b"Mars", b"\xff\xfe"]
    plain = days_by_zone(stored, Settings.read(ENVIRON), NOW)
    assert set(plain) == {b"Europe/Berlin", b"europe/berlin "}
    assert len(set(plain.values())) == 1
    served = days_by_zone(stored, Settings.read(ENVIRON | {"DEFAULT_TIME_ZONE": "asia/tokyo"}), NOW)
    assert set(served) == set(stored)
    assert served[b""] == served[b"Mars"] == served[b"\xff\xfe"]
    assert served[b""].end == datetime(2026, 5, 9, 15, tzinfo=UTC)
    assert served[b"Europe/Berlin"] == plain[b"Europe/Berlin"]
    assert served[b"Europe/Berlin"].end == datetime(2026, 5, 9, 22, tzinfo=UTC)
