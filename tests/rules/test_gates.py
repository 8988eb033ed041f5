"""Each reason not to text, from both sides of its edge: pure functions, without a database."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from habit_notifier import (
    BLOCKED_SENDER,
    GONE,
    READ_ROWS,
    Case,
    FixFirst,
    Outcome,
    Row,
    State,
    User,
    days_of,
    delivered,
    in_window,
    is_after,
    listed,
    meaning,
    not_refused,
    of_the_past,
    own_rows,
    segments,
    speaks_against,
    stop_if_blocked,
    text_problems,
    wanted,
    within_week,
)
from tests.environ import settings_of
from tests.full import sample
from tests.rules.peace import Model, story
from tests.sandbox.oracle import GSM7_BASIC, GSM7_EXTENSION

NOW = datetime(2026, 5, 12, 9, tzinfo=UTC)
TODAY = NOW.date()
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PHONE, OTHER_PHONE = "+14155550123", "+14155550199"


def a_row(ago: int = 1, final: str | None = None, code: int | None = None, **changes: Any) -> Row:
    """A text of so many days ago."""
    at = NOW - ago * DAY
    row = Row(42, at.date(), PHONE, "no_logs", State.SENT, "token", at, at, "SM", code, final)
    return dataclasses.replace(row, **changes)


def a_case(
    rows: Sequence[Row] = (), last_log: datetime | date | None = None, now: datetime = NOW, **given: Any
) -> Case:
    user = User(42, "Ana", PHONE, "UTC", days_of(now, pytz.UTC), logged_day1=False)
    return Case(user, rows, last_log, settings_of(**given), now)


def outcome(skip: Any) -> Outcome | None:
    return skip.outcome if skip else None


def test_nothing_speaks_against_a_user_without_a_row() -> None:
    case = a_case(QUIET_AFTER=1, MAX_PER_WEEK=1, SEND_WINDOW="09:00-20:00", UNDELIVERED_LIMIT=1, ONLY_USERS="42")
    assert speaks_against(case) is None
    assert [gate.__name__ for gate in READ_ROWS if gate(case)] == []


# --- rows of odd clocks


def test_todays_row_is_never_named_with_a_statement_that_deletes_it() -> None:
    ahead = a_row(0, claimed_at=NOW + 2 * HOUR, finished_at=NOW + 2 * HOUR)
    assert outcome(speaks_against(a_case([ahead]))) is Outcome.ALREADY
    assert outcome(speaks_against(a_case([a_row(-9)]))) is Outcome.FUTURE


@pytest.mark.parametrize(
    ("user_id", "shown"),
    [
        (42, "= 42 "),
        ("a1-b2", "= 'a1-b2' "),
        ("o'b", "= 'o\\'b' "),
        (b"\x01\xab", "= X'01ab' "),
        (Decimal(2**70), "= 1180591620717411303424 "),  # DECIMAL(22, 0)
    ],
)
def test_the_statement_to_paste_holds_the_id_as_its_column_does(user_id: Any, shown: str) -> None:
    skip = of_the_past(a_case([a_row(-9, user_id=user_id)]))
    assert skip
    assert shown in skip.reason % skip.args


def test_a_clock_that_stepped_back_while_a_text_was_posted_shortens_no_spacing() -> None:
    row = a_row(0, claimed_at=NOW, finished_at=NOW - 12 * HOUR)
    assert row.last_possible_text(timedelta(seconds=1500)) == NOW


@pytest.mark.parametrize("given", [{"QUIET_AFTER": 1}, {"MAX_PER_WEEK": 1}])
def test_a_text_of_this_job_that_may_be_lost_is_no_peace_though_midnight_came_since(given: dict[str, Any]) -> None:
    uncertain = a_row(1, claimed_at=NOW - timedelta(minutes=10), finished_at=NOW, state=State.UNCERTAIN)
    assert outcome(speaks_against(a_case([uncertain], **given))) is Outcome.UNCERTAIN


# --- texts that do not arrive


@pytest.mark.parametrize("code", sorted(GONE))
@pytest.mark.parametrize(("ago", "left_alone"), [(1, True), (29, True), (30, False), (89, False)])
def test_a_number_that_is_gone_is_left_alone_for_as_long_as_one_that_refused(
    code: int, ago: int, left_alone: bool
) -> None:
    skip = delivered(a_case([a_row(ago, "undelivered", code)], UNDELIVERED_LIMIT=0))
    assert outcome(skip) is (Outcome.REMEMBERED if left_alone else None)
    assert not skip or meaning(code) in skip.args


@pytest.mark.parametrize("code", [21610, 21211, 21614, 30630, *sorted(GONE)])
def test_a_refusal_that_came_as_a_failed_text_stays_remembered_once_it_is_settled(code: int) -> None:
    before, after = a_row(1, "refused", code, state=State.REFUSED), a_row(1, "failed", code)
    assert [outcome(speaks_against(a_case([row]))) for row in (before, after)] == [Outcome.REMEMBERED] * 2


def test_only_the_latest_end_tells_that_a_number_is_gone() -> None:
    gone, arrived = a_row(5, "undelivered", 30006), a_row(4, "delivered")
    assert delivered(a_case([arrived, gone])) is None
    assert delivered(a_case([gone, a_row(3)]))  # of what came after it, nothing is known yet
    assert delivered(a_case([gone, a_row(3, "undelivered", 30034)]))
    assert delivered(a_case([gone], REFUSED_RETRY_DAYS=0)) is None
    for code in (30006, 21614):
        skip = delivered(a_case([a_row(4, "undelivered", code), a_row(5, "undelivered", 30003)]))
        assert skip
        assert skip.args == (meaning(code),)


@pytest.mark.parametrize(("ago", "after"), [(2, False), (3, False), (4, True)])
def test_a_text_is_after_the_logs_of_earlier_days_and_of_earlier_instants(ago: int, after: bool) -> None:
    row = a_row(3)
    assert is_after(row, row.local_day + timedelta(days=3 - ago)) is after
    assert is_after(row, row.claimed_at + timedelta(seconds=3 - ago)) is after


@pytest.mark.parametrize("status", ["undelivered", "failed"])
@pytest.mark.parametrize("code", [30003, 30008, None])
@pytest.mark.parametrize("limit", [1, 3, 10])
def test_as_many_losses_in_a_row_as_the_limit_says_are_enough(limit: int, code: int | None, status: str) -> None:
    lost = [a_row(ago, status, code) for ago in range(1, limit + 1)]
    assert delivered(a_case(lost[1:], UNDELIVERED_LIMIT=limit)) is None
    assert outcome(delivered(a_case(lost, UNDELIVERED_LIMIT=limit))) is Outcome.UNDELIVERED
    assert outcome(delivered(a_case(lost[::-1], UNDELIVERED_LIMIT=limit))) is Outcome.UNDELIVERED  # in any order
    assert delivered(a_case(lost, UNDELIVERED_LIMIT=0)) is None
    assert delivered(a_case(lost, UNDELIVERED_LIMIT=limit, REFUSED_RETRY_DAYS=1)) is None


LOST = [a_row(ago, "undelivered", 30003) for ago in (7, 5, 3)]


OURS = [  # what the sender is to blame for
    *(*sorted(BLOCKED_SENDER), 30001, 30002, 30017, 30022, 30023, 30027, 30036),
    *(30018, 30040, 30041),  # a country wants the sender registered, or the account may not send
    *(30042, 30044, 30410, 30450, 30453, 30500),  # a trial's, a provider's, Twilio's own protection's: no number's
    *(30019, 30021, 30043, 30047, 30610, 30615, 30620),  # Twilio's, the route's, the hour's, the words'
    *(21408, 21608, 21611, 21612, 21703, 30454, 30485, 63038),  # as a Messaging Service tells them
]


@pytest.mark.parametrize(
    ("final", "code"),
    [*(("undelivered", code) for code in OURS), *((end, None) for end in (None, "unknown", "canceled", "refused"))],
)
def test_what_is_the_sender_s_fault_or_not_known_neither_counts_nor_resets(final: str | None, code: int | None) -> None:
    others = [a_row(ago, final, code) for ago in (6, 4, 2)]
    assert delivered(a_case(others)) is None
    assert delivered(a_case([*others, *LOST[1:]])) is None
    assert outcome(delivered(a_case([*others, *LOST]))) is Outcome.UNDELIVERED


@pytest.mark.parametrize("code", [None, 30018])  # which Twilio tells as a warning, too
@pytest.mark.parametrize("end", ["delivered", "read"])
def test_a_text_that_arrived_starts_the_count_anew(end: str, code: int | None) -> None:
    assert delivered(a_case([*LOST, a_row(2, end, code)])) is None
    assert delivered(a_case([*LOST[1:], a_row(4, end, code), a_row(1, "undelivered", 30003)])) is None
    assert outcome(delivered(a_case([*LOST, a_row(8, end, code)]))) is Outcome.UNDELIVERED


def test_a_new_number_starts_anew() -> None:
    before = [dataclasses.replace(row, phone=OTHER_PHONE) for row in [*LOST, a_row(2, "undelivered", 30006)]]
    assert delivered(a_case(before)) is None
    assert own_rows(a_case([*before, LOST[0]])) == [LOST[0]]


def test_the_newest_row_is_the_one_that_was_claimed_last_whatever_zone_the_user_had() -> None:
    """From Kiritimati to Pago Pago, the later text has the earlier day."""
    refused = a_row(1, state=State.REFUSED, code=21610)
    arrived = a_row(2, "delivered", local_day=TODAY)
    assert own_rows(a_case([arrived, refused])) == [refused, arrived]
    assert outcome(not_refused(a_case([arrived, refused]))) is Outcome.REMEMBERED


def test_a_text_that_was_canceled_has_not_reached_anybody() -> None:
    """Nor does it say that a number which refused takes texts again."""
    canceled = a_row(1, "canceled")
    assert wanted(a_case([canceled], QUIET_AFTER=1)) is None
    assert within_week(a_case([canceled], MAX_PER_WEEK=1)) is None
    assert outcome(not_refused(a_case([a_row(2, state=State.REFUSED, code=21610), canceled]))) is Outcome.REMEMBERED


@pytest.mark.parametrize(("ago", "counts"), [(90, True), (91, False)])
def test_a_row_that_the_end_of_the_run_deletes_does_not_count(ago: int, counts: bool) -> None:
    assert (outcome(wanted(a_case([a_row(ago)], QUIET_AFTER=1))) is Outcome.QUIET) == counts


# --- a sender that is blocked


def ends(blocked: int, others: int, code: int = 30034) -> list[Row]:
    return [a_row(final="undelivered", code=code)] * blocked + [a_row(final="delivered")] * others


@pytest.mark.parametrize("code", sorted({*BLOCKED_SENDER, 30035, 30037}))
@pytest.mark.parametrize(("blocked", "others"), [(3, 0), (3, 3), (50, 50), (12, 0)])
def test_three_texts_and_half_of_all_say_that_the_sender_is_blocked(blocked: int, others: int, code: int) -> None:
    with pytest.raises(FixFirst) as caught:
        stop_if_blocked(ends(blocked, others, code))
    [line] = caught.value.args
    assert line.startswith(f"Carriers block the sender: they stopped {blocked} of the last {blocked + others} texts, ")
    assert meaning(code) in line
    assert "Nobody was texted; the next run tries again" in line


@pytest.mark.parametrize(("blocked", "others"), [(0, 0), (2, 0), (2, 1), (3, 4), (49, 51)])
def test_fewer_do_not(blocked: int, others: int) -> None:
    stop_if_blocked(ends(blocked, others))


def test_only_known_ends_say_anything_of_the_sender() -> None:
    still_open, unknown = [a_row(code=30034)] * 9, [a_row(final="unknown")] * 9
    stop_if_blocked([*ends(2, 2), *still_open])
    stop_if_blocked([*ends(2, 2), a_row(final="delivered", code=30034)])  # a warning of Twilio's: it arrived
    with pytest.raises(FixFirst, match="3 of the last 6 texts"):
        stop_if_blocked([*ends(3, 3), *unknown])


@pytest.mark.parametrize("code", [30003, 30004, 30005, 30006, 30008])
def test_what_the_recipients_are_to_blame_for_does_not_block_the_sender(code: int) -> None:
    stop_if_blocked(ends(100, 0, code))


# --- in peace


@pytest.mark.parametrize("limit", [1, 7, 14])
def test_so_many_texts_without_a_log_are_followed_by_silence(limit: int) -> None:
    texts = [a_row(ago) for ago in range(1, limit + 1)]
    first = texts[-1].claimed_at
    assert outcome(wanted(a_case(texts, QUIET_AFTER=limit))) is Outcome.QUIET
    assert outcome(wanted(a_case(texts, first - timedelta(microseconds=1), QUIET_AFTER=limit))) is Outcome.QUIET
    assert wanted(a_case(texts, first, QUIET_AFTER=limit)) is None
    assert wanted(a_case(texts, NOW - HOUR, QUIET_AFTER=limit)) is None
    assert wanted(a_case(texts[1:], QUIET_AFTER=limit)) is None
    assert wanted(a_case(texts)) is None  # the default


def test_of_a_log_without_a_time_only_the_day_counts() -> None:
    texts = [a_row(3), a_row(2)]
    assert outcome(wanted(a_case(texts, TODAY - 4 * DAY, QUIET_AFTER=2))) is Outcome.QUIET
    assert wanted(a_case(texts, TODAY - 3 * DAY, QUIET_AFTER=2)) is None  # perhaps after the text of that day


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_so_many_texts_in_seven_local_days_are_enough(limit: int) -> None:
    texts = [a_row(6 - n) for n in range(limit)]
    assert outcome(within_week(a_case(texts, MAX_PER_WEEK=limit))) is Outcome.ENOUGH
    assert within_week(a_case(texts, now=NOW + DAY, MAX_PER_WEEK=limit)) is None  # the first is seven days old
    assert within_week(a_case(texts[1:], MAX_PER_WEEK=limit)) is None
    assert within_week(a_case(texts)) is None  # the default


@pytest.mark.parametrize(
    ("row", "counts"),
    [
        (a_row(), True),
        (a_row(final="delivered"), True),
        (a_row(final="unknown"), True),
        (a_row(state=State.UNCERTAIN), True),
        (a_row(state=State.SENDING, finished_at=None), True),
        (a_row(state=State.REFUSED, code=21610), False),
        (a_row(final="undelivered"), False),
        (a_row(final="failed"), False),
    ],
)
def test_a_text_counts_if_it_may_have_reached_the_user(row: Row, counts: bool) -> None:
    assert outcome(wanted(a_case([row], QUIET_AFTER=1))) is (Outcome.QUIET if counts else None)
    assert outcome(within_week(a_case([row], MAX_PER_WEEK=1))) is (Outcome.ENOUGH if counts else None)


FATES: dict[str, dict[str, Any]] = {
    "sent": {},
    "delivered": {"final": "delivered"},
    "uncertain": {"state": State.UNCERTAIN},
    "refused": {"state": State.REFUSED, "code": 21610},
    "undelivered": {"final": "undelivered", "code": 30003},
}


@pytest.mark.parametrize("seed", range(sample(2_000, 200)))
def test_a_user_is_left_in_peace_as_the_definitions_say(seed: int) -> None:
    """The same stories are told to the whole program in test_arrival."""
    model, rows, last_log = Model(), list[Row](), None
    for step in story(seed, 60):
        now = datetime.combine(step.day, time(9), UTC)
        due = last_log is None or last_log.date() != step.day - DAY
        limits: dict[str, Any] = {"QUIET_AFTER": step.quiet_after, "MAX_PER_WEEK": step.max_per_week}
        ungated = a_case(rows, last_log, now, UNDELIVERED_LIMIT=0, REFUSED_RETRY_DAYS=0, **limits)
        texted = due and speaks_against(ungated) is None
        assert texted == model.texts(step), (step, rows)
        if texted:
            at: dict[str, Any] = {"local_day": step.day, "claimed_at": now, "finished_at": now}
            rows.append(a_row(**at, **FATES[step.fate]))
        last_log = now + 3 * HOUR if step.logs else last_log
        rows = [row for row in rows if row.local_day >= step.day - 90 * DAY]


# --- a first try


@pytest.mark.parametrize(
    ("user_id", "only", "may"),
    [
        (42, "42,43", True),
        (42, " 43 , 42 ", True),
        (4, "42,43", False),
        ("7B0E2F5C-3D8A-4A2B-9A50-1C5F1E6D7A90", "7b0e2f5c-3d8a-4a2b-9a50-1c5f1e6d7a90", True),
        ("7b0e2f5c-3d8a-4a2b-9a50-1c5f1e6d7a90", "7B0E2F5C-3D8A-4A2B-9A50-1C5F1E6D7A90", True),
        ("7b0e2f5c-3d8a-4a2b-9a50-1c5f1e6d7a91", "7b0e2f5c-3d8a-4a2b-9a50-1c5f1e6d7a90", False),
        (bytes.fromhex("7b0e2f5c"), "7B0E2F5C", True),
        (bytes.fromhex("7b0e2f5d"), "7B0E2F5C", False),
        ("auth0|5f7c", "auth0|5f7c,me@home", True),
        ("aB", "Ab", False),
        (42, "", True),
    ],
)
def test_only_users_are_found_however_their_ids_are_written(user_id: Any, only: str, may: bool) -> None:
    case = a_case(ONLY_USERS=only)
    case = case._replace(user=dataclasses.replace(case.user, id=user_id))
    assert outcome(listed(case)) is (None if may else Outcome.NOT_LISTED)
    assert outcome(speaks_against(case)) is (None if may else Outcome.NOT_LISTED)


# --- order


def test_the_reason_that_lasts_longer_is_told_first() -> None:
    """A run says one reason of several: what a person must mend, then what lasts, then what is over tomorrow."""
    night = NOW.replace(hour=3)
    texts = [*LOST, a_row(2), a_row(2, state=State.SENT)]
    limits: dict[str, Any] = {"QUIET_AFTER": 1, "MAX_PER_WEEK": 1, "SEND_WINDOW": "09:00-20:00"}
    case = a_case(texts, now=night, **limits)
    assert all(gate(case) for gate in (delivered, wanted, within_week, in_window))
    assert outcome(speaks_against(case)) is Outcome.UNDELIVERED
    assert outcome(speaks_against(a_case(texts[3:], now=night, **limits))) is Outcome.QUIET


# --- texts

BASIC, EXTENDED = sorted(GSM7_BASIC), sorted(GSM7_EXTENSION)


def test_the_gsm_alphabet_is_complete() -> None:
    assert len(GSM7_BASIC) == 127  # 128 places, one of which is the escape
    assert len(GSM7_EXTENSION) == 10
    assert not GSM7_BASIC & GSM7_EXTENSION


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", 1),
        *(("a" * n, parts) for n, parts in [(160, 1), (161, 2), (306, 2), (307, 3), (459, 3), (460, 4)]),
        *(("€" * n, parts) for n, parts in [(80, 1), (81, 2), (153, 2), (154, 3)]),
        ("a" * 158 + "€", 1),
        ("a" * 159 + "€", 2),
        *(("ё" * n, parts) for n, parts in [(70, 1), (71, 2), (134, 2), (135, 3)]),
        *(("😀" * n, parts) for n, parts in [(35, 1), (36, 2), (67, 2), (68, 3)]),
        ("a" * 69 + "ё", 1),
        ("a" * 70 + "ё", 2),
        ("a" * 71 + "’", 2),  # one typographic quote is enough
    ],
)
def test_segments_at_their_edges(text: str, parts: int) -> None:
    assert segments(text) == parts


@settings(max_examples=sample(2_000, 300))
@given(
    st.one_of(
        st.text(st.sampled_from(BASIC), max_size=500),
        st.text(st.sampled_from(BASIC + EXTENDED), max_size=500),
        st.text(st.one_of(st.sampled_from([*BASIC, *"😀€’ё"]), st.characters(exclude_categories=["Cs"])), max_size=200),
    )
)
def test_segments_are_counted_by_the_tables(text: str) -> None:
    places = [1 if c in BASIC else 2 if c in EXTENDED else 0 for c in text]
    if all(places):
        total, alone, joined = sum(places), 160, 153
    else:
        total, alone, joined = sum(2 if ord(c) > 0xFFFF else 1 for c in text), 70, 67
    assert segments(text) == (1 if total <= alone else (total + joined - 1) // joined)


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("Habits: hi {name}! Reply STOP to opt out.", "Ana", ""),
        ("Habits: hi {name}! Reply stop to opt out.", "Ana", ""),
        ("Habits: hi {name}! Opt out: habits.example/out", "Ana", ""),  # nobody can answer a sender with a name
        ("Habits: hi {name}! Unsubscribe\nhttps://habits.example", "Ana", ""),
        ("Habits: hi {name}! Don't opt out of your day. Go on.", "Ana", "does not say how to opt out"),
        ("Habits: hi {name}!", "STOP", "does not say how to opt out"),
        ("Habits: hi {name}!", "Ana", 'does not say how to opt out: write "Reply STOP to opt out"'),
        ("Habits: don't be stopped, {name}!", "Ana", "does not say how to opt out"),
        ("{name}, " + "a" * 150 + " STOP", "Ana", ""),
        ("{name}, " + "a" * 150 + " STOP", "Anna", "costs 2 segments with a name of 4 characters: one has 160"),
        ("Habits: hi {name}, log one today to get back on track, and keep going! STOP", "Zoë", "costs 2 segments"),
    ],
)
def test_a_text_that_carriers_or_the_bill_dislike_is_named(text: str, name: str, problem: str) -> None:
    problems = list(
        text_problems(settings_of(MESSAGE_NO_LOGS=text, MESSAGE_MISSED_YESTERDAY="Habits. STOP ends it"), name)
    )
    if problem:
        [line] = problems
        assert line.startswith(f"MESSAGE_NO_LOGS {problem}")
    else:
        assert problems == []


def test_the_default_texts_have_no_problem_with_the_longest_name() -> None:
    assert list(text_problems(settings_of(), "n" * 40)) == []
