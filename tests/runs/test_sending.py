"""Whole runs in this process: what the program does with Twilio's answers, for one person and for everybody.

The fake Twilio's book and requests are the witness of what was posted, the ledger of what was recorded.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3

import habit_notifier
from habit_notifier import TWILIO_CODES, Action, Reminder, Sender, Tracker
from tests.runs.town import NOON, Town, also, at_probe, create_ledger
from tests.sandbox.fake_twilio import (
    ACCEPT,
    BROKEN_JSON,
    RESET_AFTER_ACCEPTING,
    Answer,
    Door,
    FakeTwilio,
    Operation,
    refuse,
    server_error,
    slow,
    throttle,
)
from tests.sandbox.sockets import Canned, ConnectProxy, SocketServer

# Nothing here depends on the kind of server: one is enough.
pytestmark = [
    pytest.mark.parametrize("server", ["throwaway"], indirect=True, scope="session"),
    pytest.mark.usefixtures("no_proxy"),
    pytest.mark.constants(OUTAGE_PAUSES=(0.01, 0.02), OUTAGE_PATIENCE=0.2),
]


OUTAGE_PAUSES, ORIGINAL_PATIENCE = habit_notifier.OUTAGE_PAUSES, habit_notifier.OUTAGE_PATIENCE
DAY = timedelta(days=1)


@pytest.fixture
def town(town: Town) -> Town:
    town.environ |= {"SEND_CONCURRENCY": "4", "LOG_LEVEL": "DEBUG"}
    return town


# --- the probe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credentials", [{"TWILIO_AUTH_TOKEN": "f" * 32}, {"TWILIO_ACCOUNT_SID": "AC" + "f" * 32}])
def test_wrong_credentials_need_a_person_and_are_not_tried_again(town: Town, credentials: dict[str, Any]) -> None:
    town.people(3)
    assert town.run(**credentials) == 2
    assert town.said("ERROR Twilio: the credentials were refused: correct TWILIO_ACCOUNT_SID and")
    assert town.said("unless the account is suspended (error 20003, https://www.twilio.com/docs/api/errors/20003)")
    assert town.rows("*") == []
    assert len(town.twilio.requests) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((20003, 401), (20403, 403), (99999, 403), (20404, 404), (10001, 400)),
        *((20008, 403), (90010, 400), (572006, 400), (20005, 401)),
    ],
)
def test_an_account_that_may_not_send_stops_the_run_before_the_first_claim(town: Town, code: int, status: int) -> None:
    town.people(3)
    town.twilio.script(on="list", then=refuse(code, status))
    assert town.run() == 2
    assert town.rows("*") == []
    assert [request.operation for request in town.twilio.requests] == ["list"]
    if code in TWILIO_CODES:
        assert town.said(f"ERROR Twilio: {TWILIO_CODES[code][1]} (error {code}, ")


def test_a_proxy_that_opens_tls_and_asks_for_a_login_needs_a_person(town: Town) -> None:
    town.people(3)
    town.twilio.script(on="list", then=Answer("", status=407, body="<html>Who are you?</html>"))
    assert town.run() == 2
    assert town.said("ERROR Twilio: HTTPS_PROXY asks for a login or cannot be used: correct it. Nobody was texted")
    assert town.rows("*") == []


@pytest.mark.constants(OUTAGE_PATIENCE=1.0, OUTAGE_PAUSES=(0.1,))
@pytest.mark.parametrize(
    "answer",
    [server_error(500), server_error(503), throttle(600), refuse(99999, 400), BROKEN_JSON, RESET_AFTER_ACCEPTING],
    ids=lambda answer: f"{answer.kind}-{answer.status}",
)
def test_a_twilio_that_does_not_work_is_waited_for_and_then_left_for_a_retry(town: Town, answer: Answer) -> None:
    town.people(3)
    town.twilio.script(on="list", then=answer)
    assert town.run() == 1
    assert re.search(r"^WARNING Once more in 0 s: Twilio cannot be used: ", town.text, re.MULTILINE)
    assert town.said("ERROR Twilio cannot be used: ")
    assert town.rows("*") == []
    assert {request.operation for request in town.twilio.requests} == {"list"}
    assert 3 <= len(town.twilio.requests) <= 12


# --- sent -------------------------------------------------------------------------------------------------------------


def test_an_accepted_text_is_recorded_with_its_sid_and_segments(town: Town) -> None:
    [number] = town.people(1)
    template = "Hello {name}, " + "no habits logged in the past two days. " * 6
    assert town.run(MESSAGE_NO_LOGS=template) == 0
    [message] = town.twilio.book
    assert (message.to, message.from_, message.segments) == (number, FakeTwilio.FROM_NUMBER, 2)
    assert message.body == template.strip().replace("{name}", "Due 0")
    columns = "state, phone_number, rule, local_day, message_sid, segments, error_code, final_status, finished_at"
    [row] = town.rows(columns)
    noon = NOON.replace(tzinfo=None)
    assert row == ("sent", number, "no_logs", NOON.date(), message.sid, 2, None, None, noon)
    assert town.said(f"INFO Notification sent to Due 0 ({number}). Message SID: {message.sid}")


@pytest.mark.parametrize(("settings", "seconds"), [({}, 14_400), ({"VALIDITY_PERIOD": "600"}, 600)])
def test_twilio_is_told_for_how_long_a_text_is_worth_delivering(
    town: Town, settings: dict[str, Any], seconds: int
) -> None:
    town.people(1)
    assert town.run(**settings) == 0
    assert [message.validity_period for message in town.twilio.book] == [seconds]


def test_a_messaging_service_and_an_api_key_are_used_when_they_are_set(town: Town) -> None:
    town.people(2)
    exit_code = town.run(
        TWILIO_AUTH_TOKEN=None,
        TWILIO_API_KEY_SID=FakeTwilio.API_KEY_SID,
        TWILIO_API_KEY_SECRET=FakeTwilio.API_KEY_SECRET,
        TWILIO_FROM_NUMBER=None,
        TWILIO_MESSAGING_SERVICE_SID=FakeTwilio.MESSAGING_SERVICE_SID,
    )
    assert exit_code == 0
    assert {(request.user, request.password) for request in town.twilio.requests} == {
        (FakeTwilio.API_KEY_SID, FakeTwilio.API_KEY_SECRET)
    }
    assert all(f"/Accounts/{FakeTwilio.ACCOUNT_SID}/" in request.path for request in town.twilio.requests)
    assert [request.params["MessagingServiceSid"] for request in town.sends] == [FakeTwilio.MESSAGING_SERVICE_SID] * 2
    assert all("From" not in request.params for request in town.sends)
    assert town.counts == {"sent": 2}


@pytest.mark.parametrize("concurrency", [1, 5])
def test_as_many_texts_as_allowed_are_posted_at_the_same_time_and_never_more(town: Town, concurrency: int) -> None:
    town.people(3 * concurrency)
    seconds = 0.3
    town.twilio.script(then=slow(seconds))
    claimed = []
    town.twilio.hook = lambda _: claimed.append(town.counts["sending"])
    assert town.run(SEND_CONCURRENCY=concurrency) == 0
    arrivals = [request.arrived for request in town.sends]
    together = [sum(0 <= other - first < seconds for other in arrivals) for first in arrivals]
    assert max(together) == concurrency
    assert 0 < max(claimed) <= concurrency + concurrency // 2  # a kill strands no more than what is claimed


# --- everybody waits --------------------------------------------------------------------------------------------------


def test_everybody_waits_for_as_long_as_twilio_says_and_each_person_is_tried_once_more(town: Town) -> None:
    numbers = town.people(10)
    pause = 2
    town.twilio.script(*[throttle(pause).delayed(after=0.3)] * 4)  # late enough for four to be on the road
    assert town.run() == 0
    first, rest = town.sends[:4], town.sends[4:]
    waited = [request.arrived - max(each.arrived for each in first) for request in rest]
    assert min(waited) >= pause
    assert max(waited) < 2 * pause + 0.3  # four people were refused, but it is one pause
    assert Counter(town.posted) == Counter(numbers) + Counter(request.to for request in first)
    assert town.served == numbers
    assert town.counts == {"sent": 10}
    assert re.search(r"WARNING All texts wait for 2 s: too many requests \(error 20429, https://", town.text)


def test_after_a_text_that_got_through_the_next_pause_is_short_again(town: Town) -> None:
    town.people(2)
    town.twilio.script(throttle(), ACCEPT, throttle())
    assert town.run(SEND_CONCURRENCY=1) == 0
    assert town.said("WARNING All texts wait for 1 s: ") == 2


@pytest.mark.constants(PAUSE_BUDGET=5.0)
def test_when_twilio_asks_for_too_much_patience_what_was_not_sent_is_released_for_the_retry(town: Town) -> None:
    numbers = town.people(12)
    town.twilio.script(ACCEPT, ACCEPT, then=throttle(3600))
    assert town.run() == 1
    assert len(town.twilio.book) == 2
    assert town.counts == {"sent": 2}
    assert town.totals[0] == 2
    assert town.said("ERROR Twilio asks for more than the 5 s that a run may wait")
    assert len(town.posted) <= 2 + 4
    town.twilio.script()
    assert town.run() == 0
    assert town.served == numbers


def test_a_pause_ends_with_the_run(town: Town) -> None:
    town.people(6)
    town.twilio.script(then=throttle(100))
    assert town.run(RUN_DEADLINE=1) == 1
    assert town.took < 4
    assert town.rows("*") == []
    assert town.said("ERROR RUN_DEADLINE (1 s) is reached")


# --- a person must act ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [refuse(20003, 401), refuse(63038, 429), refuse(21701), refuse(99999, 404)],
    ids=lambda answer: f"{answer.status}-{answer.code}",
)
def test_what_concerns_everybody_stops_the_run_after_what_is_in_flight_was_recorded(town: Town, answer: Answer) -> None:
    numbers = town.people(12)
    town.twilio.script(answer.delayed(after=0.3), *[slow(0.6)] * 3, then=ACCEPT)
    assert town.run() == 2
    assert len(town.posted) == 4
    assert len(town.twilio.book) == 3
    assert town.counts == {"sent": 3}
    assert {sid for (sid,) in town.rows("message_sid")} == {message.sid for message in town.twilio.book}
    sent, failed = town.totals
    assert (sent, failed + town.unseen) == (3, 9)
    assert re.search(r"^ERROR Twilio: ", town.text, re.MULTILINE)
    assert town.run() == 0
    assert town.served == numbers


@pytest.mark.usefixtures("from_the_first")
def test_a_failure_is_told_before_the_users_whom_it_leaves_untried_and_once_more_at_the_end(town: Town) -> None:
    town.people(12)
    town.twilio.script(ACCEPT, then=refuse(63038, 429))
    assert town.run(SEND_CONCURRENCY=1) == 2
    lines = town.log
    failure, again = (n for n, line in enumerate(lines) if line.startswith("ERROR Twilio: "))
    untried = [n for n, line in enumerate(lines) if "gets no text, not tried" in line]
    assert untried
    assert failure < min(untried) <= max(untried) < again
    assert lines[failure] == lines[again] == lines[-1]
    assert lines[-2].startswith("INFO Job completed. ")


# --- a fault of the program -------------------------------------------------------------------------------------------


def test_after_a_fault_of_the_program_nothing_that_waits_is_posted(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = town.people(4)
    for number in others:
        town.twilio.script(throttle(1).delayed(after=0.3), to=number)  # three wait to be posted once more
    town.twilio.script(slow(0.5), to=first)

    def fail(_ledger: object, results: list[object], _now: datetime) -> None:
        if results:
            raise LookupError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(habit_notifier.Ledger, "record", fail)
        assert town.run() == 1
    assert [line.split(r"\n")[0] for line in town.log if line.startswith("CRITICAL")] == [
        "CRITICAL A fault of the program, please report it"
    ]
    assert sorted(map(str, town.posted)) == [first, *others]
    assert town.served == [first]
    assert town.run() == 1  # nothing sent, and what became of the last attempt's texts is not known
    assert town.run(NOON + timedelta(hours=1)) == 0
    assert town.served == [first]  # the rows stay, so that nobody is texted twice


def test_after_a_fault_of_the_program_what_is_in_flight_is_recorded(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.people(4)
    town.twilio.script(ACCEPT, then=ACCEPT.delayed(after=0.5))
    tell, told = habit_notifier.Report.finished, count()

    def fail_once(*answers: Any) -> None:
        if answers[1] and not next(told):
            raise LookupError("a fault")
        tell(*answers)

    monkeypatch.setattr(habit_notifier.Report, "finished", fail_once)
    assert town.run() == 1
    assert town.counts == {"sent": len(town.twilio.book)}
    assert town.said("INFO Job completed. ")  # and summed up


def test_a_thread_that_cannot_be_had_costs_one_text_and_the_others_are_for_the_next_run(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = town.people(6)
    submit, submitted = Sender.submit, count(1)

    def submit_two(sender: Sender, reminder: Reminder) -> None:
        if next(submitted) == 3:
            raise RuntimeError("can't start new thread")
        submit(sender, reminder)

    with monkeypatch.context() as patch:
        patch.setattr(Sender, "submit", submit_two)
        assert town.run(SEND_CONCURRENCY=4) == 1
    assert town.counts["uncertain"] == 1
    assert town.counts["sent"] == len(town.texts) <= 2
    [lost] = town.numbers("uncertain")
    assert town.run() == 0
    assert town.served == [number for number in numbers if number != lost]


# --- streaks ----------------------------------------------------------------------------------------------------------


def test_texts_that_were_claimed_and_not_posted_do_not_hide_that_all_others_were_refused(town: Town) -> None:
    town.people(12)
    town.twilio.script(then=refuse(21606).delayed(after=1.3))
    assert town.run(SEND_CONCURRENCY=4, RUN_DEADLINE=1) == 2
    assert len(town.posted) == 4
    assert town.text.count("the run ended before it was posted") == 2
    assert town.rows("*") == []


@pytest.mark.parametrize(("code", "people", "end"), [(21606, 10, 1), (21408, 40, 2)])
def test_a_few_refusals_in_a_shard_do_not_stop_the_others_but_many_do(
    town: Town, code: int, people: int, end: int
) -> None:
    town.people(people)
    town.twilio.script(then=refuse(code))
    assert town.run(SHARD_COUNT=2, JOB_COMPLETION_INDEX=1) == end  # 2 stops all of them
    assert town.said(f"Twilio refuses texts for our set-up, the last one: {TWILIO_CODES[code][1]}")
    assert 3 <= town.totals[1] == len(town.posted) < people
    assert town.rows("*") == []


@pytest.mark.parametrize(("people", "others"), [(2, []), (4, [ACCEPT]), (9, [ACCEPT, refuse(21610)])])
def test_too_few_refusals_or_a_text_that_was_sent_beside_them_blame_the_people(
    town: Town, people: int, others: list[Answer]
) -> None:
    town.people(people)
    town.twilio.script(*others, then=refuse(21606))
    assert town.run(SEND_CONCURRENCY=1) == 0
    assert sum(town.counts.values()) == len(others)
    assert not town.said("ERROR")


@pytest.mark.parametrize(
    ("code", "first", "people", "codes"),
    [
        (21408, ACCEPT, 9, [0, 0, 0]),
        (21408, ACCEPT, 10, [0, 2, 2]),  # so many are worth a look
        (21408, refuse(21610), 3, [2, 2, 2]),  # nobody was sent anything that day
        (21606, ACCEPT, 3, [0, 2, 2]),  # a sender that is gone since
    ],
)
def test_a_country_that_is_off_does_not_fail_each_run_of_a_day_on_which_others_were_texted(
    town: Town, code: int, first: Answer, people: int, codes: list[int]
) -> None:
    """As the hourly runs after the one that served all others, or the pod after one that was drained."""
    served, *off = town.people(1 + people)
    town.twilio.script(first, to=served)
    town.twilio.script(then=refuse(code))
    assert [town.run(NOON + timedelta(hours=n)) for n in range(3)] == codes
    assert town.totals == (0, people)
    assert Counter(town.posted) == {served: 1} | dict.fromkeys(off, 3)


def test_what_was_in_flight_when_a_streak_stopped_the_run_is_recorded_or_released_too(town: Town) -> None:
    town.people(20)
    town.twilio.script(*[refuse(21999)] * 9, slow(0.2), *[refuse(21999)] * 2, then=refuse(21999))
    assert town.run(SEND_CONCURRENCY=4) == 2
    assert town.counts == {"sent": 1}
    assert town.totals[0] == 1
    assert len(town.posted) <= 10 + 1 + 3 + 2  # the streak and the sent one, those in flight, and those ahead


def test_ten_texts_in_a_row_that_reach_nobody_end_the_run_and_are_released(town: Town) -> None:
    town.people(14)
    town.twilio.hook = at_probe(lambda: town.twilio.door(Door.SHUT))
    assert town.run() == 1
    assert town.rows("*") == []
    assert town.posted == []
    assert town.totals[0] == 0
    words = r"^ERROR 1\d of the last 1\d texts are uncertain or did not reach Twilio, the last one: Twilio cannot be "
    assert re.search(words, town.text, re.MULTILINE)


@pytest.mark.parametrize("between", [ACCEPT, refuse(21610)], ids=lambda answer: answer.kind)
def test_an_answer_for_one_person_alone_ends_a_streak_of_refusals(town: Town, between: Answer) -> None:
    town.people(20)
    town.twilio.script(*[refuse(21999)] * 9, between, *[refuse(21999)] * 9, between)
    assert town.run(SEND_CONCURRENCY=1) == (0 if between is ACCEPT else 2)
    assert len(town.posted) == 20
    assert not town.said("in a row failed")


@pytest.mark.parametrize(
    "failure", [server_error(503), server_error(503, accepted=True), RESET_AFTER_ACCEPTING], ids=lambda a: a.kind
)
@pytest.mark.parametrize(("every", "posted"), [(1, 10), (2, 20), (3, 30)])
def test_when_a_third_of_the_answers_is_lost_the_run_stops_after_ten_of_thirty(
    town: Town, failure: Answer, every: int, posted: int
) -> None:
    """Half of the answers 503 would otherwise lose half of the users, with exit code 0."""
    town.people(60)
    town.twilio.script(*([*[ACCEPT] * (every - 1), failure] * 30))
    assert town.run(SEND_CONCURRENCY=1) == 1
    assert len(town.posted) == posted
    assert town.counts == Counter(sent=posted - 10, uncertain=10)
    assert town.said(f"ERROR 10 of the last {posted} texts are uncertain or did not reach Twilio")
    assert sum(town.totals) + town.unseen == 60


def test_less_than_a_third_of_lost_answers_stops_nothing(town: Town) -> None:
    town.people(60)
    town.twilio.script(*([*[ACCEPT] * 3, server_error(503)] * 15))
    assert town.run(SEND_CONCURRENCY=1) == 0
    assert town.counts == {"sent": 45, "uncertain": 15}


@pytest.mark.parametrize("code", [21610, 30630, 30640])
def test_people_who_opted_out_are_no_streak(town: Town, code: int) -> None:
    town.people(25)
    town.twilio.script(then=refuse(code))
    assert town.run() == 0
    assert town.counts == {"refused": 25}
    assert town.totals == (0, 25)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_refusal_is_recorded_with_its_code_and_explained_with_the_name(town: Town) -> None:
    [number] = town.people(1)
    town.twilio.script(refuse(21610))
    assert town.run() == 0
    assert town.rows("state, error_code, final_status, message_sid") == [("refused", 21610, "refused", None)]
    assert re.search(
        rf"^WARNING Notification to Due 0 \(ID: 1\) refused: \{number}: the recipient opted out .*/21610\)$",
        town.text,
        re.MULTILINE,
    )
    assert town.totals == (0, 1)


def test_who_refused_for_good_is_remembered_and_tried_again_after_a_month(town: Town) -> None:
    codes = [code for code, (action, _) in TWILIO_CODES.items() if action is Action.REFUSE]
    numbers = dict(zip(town.people(len(codes)), codes, strict=True))
    for number, code in numbers.items():
        town.twilio.script(then=refuse(code), to=number)
    assert town.run(SEND_CONCURRENCY=1) == 0
    assert town.counts == {"refused": len(numbers)}
    for days in (1, 29):
        before = len(town.posted)
        assert town.run(NOON + days * DAY) == 0
        assert len(town.posted) == before
        assert town.totals == (0, 0)
    for number, code in numbers.items():
        assert town.said(f"Twilio refused {number} for good on 2026-05-12 (error {code})")
    assert town.run(NOON + 30 * DAY) == 0
    assert set(town.posted[before:]) == numbers.keys()


SETUP_CODES = [code for code, (action, _) in TWILIO_CODES.items() if action in (Action.OUT_OF_REACH, Action.FAIL)]


def test_who_was_refused_for_our_set_up_fails_and_is_texted_the_same_day_once_it_is_mended(town: Town) -> None:
    codes = [*SETUP_CODES, 21999]
    numbers = town.people(2 * len(codes))
    refused = dict(zip(numbers[::2], codes, strict=True))
    for number, code in refused.items():
        town.twilio.script(then=refuse(code), to=number)
    assert town.run(SEND_CONCURRENCY=1) == 0  # one country that is off must not fail the Job every day
    assert town.counts == {"sent": len(codes)}
    assert town.totals == (len(codes), len(codes))
    for number, code in refused.items():
        assert re.search(rf"refused for the set-up: \{number}: .*\(error {code}, ", town.text)
        town.twilio.script(to=number)
    assert town.run(NOON + timedelta(hours=1)) == 0
    assert town.served == numbers
    assert town.totals == (len(codes), 0)


FEW, MANY = "Twilio refuses texts for our set-up, the last one: ", "10 texts in a row failed, the last one: "


@pytest.mark.parametrize(
    ("code", "people", "told"),
    [
        *((21608, 1, FEW), (21408, 3, FEW), (21606, 3, FEW), (21660, 3, FEW), (30485, 3, FEW), (21612, 14, FEW)),
        *((21999, 14, MANY), (21212, 14, MANY), (21606, 14, MANY), (21704, 14, MANY)),
    ],
)
def test_our_own_mistake_for_everybody_needs_a_person_and_the_run_after_the_mend_texts(
    town: Town, code: int, people: int, told: str
) -> None:
    numbers = town.people(people)
    town.twilio.script(then=refuse(code))
    for attempt in (1, 2):  # each attempt, and not only the first
        assert town.run(SEND_CONCURRENCY=1) == 2
        assert len(town.posted) == attempt * (10 if told == MANY else people)
        assert town.rows("*") == []
        assert (town.totals[0], town.totals[1] + town.unseen) == (0, people)
        assert town.log[-1].startswith(f"ERROR {told}")
        assert f"(error {code}, https://www.twilio.com/docs/api/errors/{code})" in town.log[-1]
    town.twilio.script()
    assert town.run() == 0
    assert town.served == numbers


@pytest.mark.parametrize(("refused", "code"), [(2, 1), (3, 2)])
def test_our_own_mistake_outweighs_an_uncertain_text_only_if_it_is_for_everybody(
    town: Town, refused: int, code: int
) -> None:
    for number in town.people(refused + 1)[1:]:
        town.twilio.script(then=refuse(21408), to=number)
    town.twilio.script(then=server_error(500))
    assert town.run() == code
    assert town.log[-1].startswith("ERROR " + (FEW if code == 2 else "No text was surely sent, and 1 may have been"))


@pytest.mark.parametrize("code", [21408, 21608, 21704, 30002, 30007, 30034, 30485, 63038])
def test_our_own_mistake_that_twilio_tells_with_a_201_is_refused_by_nobody(town: Town, code: int) -> None:
    numbers = town.people(3)
    body = json.dumps({"sid": "SM" + "0" * 32, "status": "failed", "error_code": code, "num_segments": "1"})
    town.twilio.script(then=replace(ACCEPT, body=body))
    assert town.run() == 2
    assert town.rows("*") == []
    assert f"error {code}, https" in town.log[-1]
    sent, failed = town.totals
    assert (sent, failed + town.unseen) == (0, 3)
    assert not town.unseen or code == 63038  # which stops the run, before its last page too
    town.twilio.script()
    assert town.run() == 0
    assert town.texted == numbers


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            21608,
            "a trial, or an account without an approved compliance profile, texts verified numbers only: upgrade it",
        ),
        (572005, "a trial account texts verified numbers only, and this one is not yet: upgrade it"),
    ],
)
def test_a_trial_account_serves_whom_it_may_and_ends_with_exit_2_however_few(town: Town, code: int, words: str) -> None:
    unverified, *others = town.people(5)
    town.twilio.script(then=refuse(code), to=unverified)
    assert town.run() == 2
    assert town.served == others
    assert town.counts == {"sent": 4}
    assert town.totals == (4, 1)
    assert f"{words} (error {code}, " in town.log[-1]


LACKING = "Authorization Error: required permission twilio/messaging/messages/list is missing"
UNAPPROVED = "Primary compliance profile is not approved."


@pytest.mark.parametrize(
    ("on", "code", "says"),
    [
        ("send", 20003, UNAPPROVED),  # the credentials are right
        ("list", 20003, "This feature is not available on a Trial account. Please upgrade your account"),
        ("list", 70051, LACKING),
    ],
)
@pytest.mark.parametrize("message", [None, "Authenticate"], ids=["message", "detail"])
def test_what_twilio_says_of_the_account_or_key_is_told_since_its_codes_have_several_meanings(
    town: Town, on: Operation, code: int, says: str, message: str | None
) -> None:
    """Where the message is one word, it is the detail that says it."""
    town.people(3)
    document = refuse(code, 401, says).error() | ({"message": message, "detail": says} if message else {})
    town.twilio.script(on=on, then=replace(refuse(code, 401), body=json.dumps(document)))
    assert town.run() == 2
    assert town.said(f"(error {code}, https://www.twilio.com/docs/api/errors/{code}): “{says}”")
    assert town.rows("*") == []


def test_a_messaging_service_without_a_sender_for_a_country_does_not_stop_the_others(town: Town) -> None:
    at_home, *abroad = town.people(24)
    for number in abroad:
        town.twilio.script(then=refuse(21703), to=number)
    assert town.run(SEND_CONCURRENCY=1) == 0
    assert (town.served, town.totals) == ([at_home], (1, 23))
    assert town.said("the Messaging Service has no sender for this recipient: add one in the console (error 21703, ")


@pytest.mark.parametrize("failure", [server_error(500), server_error(500, accepted=True)], ids=lambda a: a.kind)
@pytest.mark.parametrize("people", [1, 5, 25])
def test_a_twilio_that_fails_everybody_never_ends_green_and_is_counted_apart_later_in_the_day(
    town: Town, failure: Answer, people: int
) -> None:
    town.people(people)
    town.twilio.script(then=failure)
    for minutes in (0, 9, 29):  # the attempts of a Job
        assert town.run(NOON + timedelta(minutes=minutes)) == 1
        assert (town.totals[0], town.totals[1] + town.unseen) == (0, people)
        assert not town.said("already handled today")
    uncertain = town.counts["uncertain"]
    assert uncertain == len(town.posted) == people if people < 10 else uncertain >= 20
    assert max(Counter(town.posted).values()) == 1
    town.twilio.script()
    assert town.run(NOON + timedelta(hours=1)) == 0
    assert town.said(f"uncertain earlier today {uncertain}")
    assert town.totals == (people - uncertain, 0)
    assert max(Counter(town.posted).values()) == 1


FOREIGN = "<html><body>This page is blocked by the security policy of your organisation</body></html>"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 429])
def test_a_proxys_page_after_the_text_was_accepted_leads_to_no_second_text(town: Town, status: int) -> None:
    first, *_ = numbers = town.people(3)
    town.twilio.script(then=replace(ACCEPT, status=status, body=FOREIGN), to=first)
    assert town.run() == 0
    assert town.counts == {"sent": 2, "uncertain": 1}
    assert town.totals == (2, 1)
    assert not town.said("All texts wait")
    town.twilio.script(to=first)
    for hours in (0, 1, 11):
        assert town.run(NOON + timedelta(hours=hours)) == (1 if hours == 0 else 0)  # nothing sent, one uncertain
    assert town.served == numbers


# --- the end of time --------------------------------------------------------------------------------------------------


@pytest.mark.constants(PAGE_USERS=3)
def test_the_deadline_ends_a_run_and_says_how_many_were_not_looked_at(town: Town) -> None:
    numbers = town.people(12)
    town.twilio.script(then=slow(0.4))
    assert town.run(RUN_DEADLINE=1, SEND_CONCURRENCY=1) == 1
    sent, failed = town.totals
    assert town.counts == {"sent": sent}
    assert len(town.twilio.book) == sent
    assert 1 <= sent <= 4
    looked_at = int(re.findall(r"Looked at (\d+) of 12 users", town.text)[-1])
    assert town.said(f"WARNING The run ended before the last page: {looked_at} of 12 users were looked at")
    assert sent + failed == looked_at < 12
    assert failed <= 3  # a page is read when the one before it is claimed
    assert town.said("ERROR RUN_DEADLINE (1 s) is reached: the next run goes on")
    town.twilio.script()
    assert town.run() == 0
    assert town.served == numbers


def test_a_deadline_that_leaves_nothing_undone_fails_nobody(town: Town) -> None:
    town.people(1)
    town.twilio.script(slow(1.2))
    assert town.run(RUN_DEADLINE=1) == 0
    assert town.totals == (1, 0)
    assert not town.said("ERROR")


def test_users_who_left_during_the_run_are_not_told_as_not_looked_at(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.people(3)
    count_and_delete = also(Tracker.zones, after=lambda: town.sql("DELETE FROM User WHERE id = 2"))
    monkeypatch.setattr(Tracker, "zones", count_and_delete)
    assert town.run() == 0
    assert town.totals == (2, 0)
    assert not town.said("before the last page")


# --- the surroundings -------------------------------------------------------------------------------------------------


def test_an_authority_of_a_company_that_python_3_13_finds_too_lax_is_trusted(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, key = town.people(1), "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config tls.cnf"
    (tmp_path / "tls.cnf").write_text(  # CA:TRUE is not critical, and there is no key usage
        "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = of 2014\n[authority]\nbasicConstraints = CA:TRUE\n"
        "[server]\nsubjectAltName = IP:127.0.0.1\n"
    )
    sign = "-CA ca.pem -CAkey ca-key.pem -set_serial 1 -extfile tls.cnf -extensions server"
    for command in (
        f"req -x509 {key} -keyout ca-key.pem -out ca.pem -days 2 -extensions authority",
        f"req -new {key} -keyout key.pem -out server.csr",
        f"x509 -req -in server.csr {sign} -days 2 -out cert.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(urllib3.util.ssl_, "sys", SimpleNamespace(version_info=(3, 13)))
    with FakeTwilio(tls=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))) as town.twilio:
        assert town.run(TWILIO_API_URL=town.twilio.url) == 0
        assert town.served == numbers


def test_a_proxy_is_used_except_for_the_hosts_that_need_none(
    town: Town, secure: FakeTwilio, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.people(2)
    town.twilio = secure
    with ConnectProxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert town.run(TWILIO_API_URL=town.twilio.url, SEND_CONCURRENCY=1) == 0
        assert proxy.targets == [f"127.0.0.1:{town.twilio.port}"] * 2  # the probe's connection, and the worker's
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert town.run(NOON + DAY, TWILIO_API_URL=town.twilio.url) == 0
        assert len(proxy.targets) == 2
    assert {*Counter(town.served).values()} == {2}


@pytest.mark.parametrize("url", [None, "https://api.dublin.ie1.twilio.com", "https://api.au1.twilio.com"])
def test_without_another_url_it_is_twilios_own_that_is_asked(
    town: Town, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.people(1)
    host = (url or "https://api.twilio.com").removeprefix("https://")
    with Canned(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//bob:hunter2@"))
        assert town.run(TWILIO_API_URL=url) == 2
    assert [tuple(request.decode().split()[:2]) for request in proxy.requests] == [("CONNECT", f"{host}:443")]
    assert town.said("ERROR Twilio: HTTPS_PROXY asks for a login or cannot be used: correct it. Nobody was texted")
    assert not town.said("hunter2")
    assert town.rows("*") == []


class PlainProxy(SocketServer):
    """A proxy without TLS: what begins a handshake is no request to it."""

    def serve(self, client: socket.socket) -> None:
        client.recv(65_536)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("pii", ["on", "off"])
def test_a_proxy_without_tls_that_is_named_with_https_needs_a_person(
    town: Town, pii: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.people(1)
    with PlainProxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "https://"))
        assert town.run(TWILIO_API_URL=None, LOG_PII=pii) == 2
    assert town.said("ERROR Twilio: HTTPS_PROXY names a proxy without TLS: write http:// for its https://. Nobody was")
    assert town.rows("*") == []


def test_a_proxy_that_builds_no_tunnel_is_waited_for_and_nobody_is_uncertain(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.people(1)
    with Canned(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert town.run(TWILIO_API_URL=None) == 1
    assert len(proxy.requests) > 1
    assert town.said("ERROR Twilio cannot be used: Twilio cannot be reached (")
    assert town.said("Tunnel connection failed: 503")


WHERE_TO_LOOK = ": check https://status.twilio.com, DNS, the proxy and the NetworkPolicy"
AN_EGRESS_FILTERS_PAGE = replace(ACCEPT, kind="an egress filter's page", status=403, body=FOREIGN)


@pytest.mark.parametrize(
    "answer", [server_error(503), RESET_AFTER_ACCEPTING, AN_EGRESS_FILTERS_PAGE], ids=lambda a: a.kind
)
@pytest.mark.parametrize("on", ["list", "send"])
def test_whatever_comes_in_place_of_twilios_answer_is_told_with_where_to_look(
    town: Town, answer: Answer, on: Operation
) -> None:
    """And not blamed on the credentials, though a filter says 403."""
    town.people(12)
    town.twilio.script(on=on, then=answer)
    assert town.run() == 1
    assert town.problem.endswith(("Nobody was texted" if on == "list" else "No more are posted") + WHERE_TO_LOOK)
    if answer is AN_EGRESS_FILTERS_PAGE:
        assert "an answer that is not Twilio's, or a broken one (HTTP 403" in town.problem
    assert not town.said("TWILIO_ACCOUNT_SID")


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "off",
    [
        *(-DAY, -timedelta(hours=11, minutes=40), 45 * DAY),
        *(timedelta(minutes=5, seconds=2), -timedelta(minutes=5, seconds=2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("argv", [[], ["--settle"]], ids=["run", "settle"])
def test_a_clock_that_is_not_twilios_ends_the_run_before_the_first_claim(
    town: Town, off: timedelta, argv: list[str]
) -> None:
    numbers = town.people(3)
    town.twilios = NOON
    assert town.run(NOON + off, *argv) == 1
    assert town.posted == []
    assert town.rows("*") == []
    ours, twilios = f"{NOON + off:%Y-%m-%d %H:%M:%S} UTC", f"{NOON:%Y-%m-%d %H:%M:%S}"
    assert town.said(f"ERROR this node's clock is wrong: it says {ours}, Twilio {twilios}: mend its time sync")
    assert town.said("Nobody was texted")
    assert len(town.twilio.requests) == 1  # waiting does not mend it
    assert town.run(NOON) == 0
    assert town.served == numbers


@pytest.mark.parametrize("off", [timedelta(minutes=4, seconds=58), -timedelta(minutes=4, seconds=58)], ids=str)
def test_a_clock_that_is_a_few_minutes_off_is_good_enough(town: Town, off: timedelta) -> None:
    numbers = town.people(3)
    town.twilios = NOON
    assert town.run(NOON + off) == 0
    assert town.served == numbers


def test_without_a_date_of_twilios_the_clock_is_trusted_with_a_warning(town: Town) -> None:
    numbers = town.people(3)
    town.twilio.tells_date = False
    assert town.run() == 0
    assert town.said("WARNING Twilio's answer has no Date: whether this node's clock is right is not known")
    assert town.served == numbers


@pytest.mark.parametrize("back", [timedelta(hours=12), timedelta(minutes=6)], ids=str)
def test_a_clock_that_is_set_back_in_mid_run_dates_no_claim_back(town: Town, back: timedelta) -> None:
    """Else a text at 20:00 was claimed at 8:00, and the next one may come after midnight."""
    town.user("+12025550000", "Pacific/Kiritimati")
    evening = datetime(2026, 5, 13, 6, tzinfo=UTC)  # 20:00 there
    town.twilios = evening
    assert town.run(lambda: evening - back if town.said("no earlier texts to look up") else evening) == 1
    assert "this node's clock is wrong: in mid-run it was set back to" in town.problem
    assert town.totals == (0, 1)
    assert town.rows("*") == []
    town.twilios = None
    assert [town.run(evening + timedelta(hours=hours)) for hours in (0, 6)] == [0, 0]
    assert town.served == ["+12025550000"]


def test_a_clock_that_steps_ahead_in_mid_run_silences_nobody_unnamed(town: Town) -> None:
    [number] = town.people(1)
    town.twilios = NOON
    assert town.run(lambda: NOON + 45 * DAY if town.sends else NOON) == 0
    town.twilios = None
    assert town.run(NOON + timedelta(hours=1)) == 0
    assert town.said("already handled today")
    assert town.run(NOON + DAY) == 2
    [line] = [line for line in town.lines("WARNING") if "a clock that was ahead left the row of 2026-05-12" in line]
    town.sql(line[line.index("DELETE") :])
    assert town.run(NOON + DAY) == 0
    assert town.served == [number] * 2


def test_a_clock_that_was_ahead_for_a_claim_alone_silences_nobody_unnamed(town: Town) -> None:
    [number] = town.people(1)
    create_ledger(town.database)
    [(user,)] = town.sql("SELECT id FROM User")
    town.database.insert_row(user, NOON, phone_number=number, claimed_at=(NOON + 45 * DAY).replace(tzinfo=None))
    assert town.run(NOON + DAY) == 2
    assert town.said("a clock that was ahead left the row of 2026-05-12")


@pytest.mark.parametrize("jump", [timedelta(hours=13), timedelta(hours=2)], ids=str)
def test_what_a_machine_claimed_before_it_was_suspended_is_not_posted_after_it_woke(
    town: Town, jump: timedelta
) -> None:
    """Its monotonic clock stands still, the wall's goes on: midnight, or the run's deadline, has passed."""
    numbers = town.people(6)
    town.twilios = NOON
    assert town.run(lambda: NOON + jump if town.sends else NOON, SEND_CONCURRENCY=1) == 1
    town.twilios = None
    assert town.counts == {"sent": 1}
    assert len(town.twilio.book) == 1
    assert town.said("ERROR RUN_DEADLINE (1500 s) is reached: the next run goes on")
    assert town.run(NOON + jump) == 0
    assert town.served == numbers


def test_a_pause_that_carries_a_text_over_midnight_leaves_it_to_the_next_run(town: Town) -> None:
    [number] = town.people(1)
    late = datetime(2026, 5, 12, 23, 59, 52, tzinfo=UTC)
    town.twilio.script(throttle(1))
    assert town.run(lambda: late + timedelta(seconds=13) if town.sends else late) == 1
    assert town.rows("*") == []
    assert not town.twilio.book
    assert town.said(f"not sent: {number}: its local day is over")
    assert town.run(late + timedelta(seconds=20)) == 0
    assert town.served == [number]


# --- outages ----------------------------------------------------------------------------------------------------------


@pytest.mark.constants(OUTAGE_PATIENCE=6.0, OUTAGE_PAUSES=tuple(pause / 100 for pause in OUTAGE_PAUSES))
@pytest.mark.parametrize("away", [Door.SHUT, Door.RESET])
def test_an_outage_at_the_start_is_waited_for_and_nobody_is_lost(town: Town, away: Door) -> None:
    """Eighty seconds of it, a hundred times faster."""
    assert ORIGINAL_PATIENCE == 600
    numbers = town.people(3)
    town.twilio.door(away)
    back = threading.Timer(0.8, lambda: town.twilio.door(Door.OPEN))
    back.start()
    assert town.run() == 0
    back.join()
    assert town.served == numbers
    assert town.totals == (3, 0)


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.constants(HTTP_TIMEOUT=(1.0, 1.0))
def test_no_secret_is_in_a_log_however_loud_it_is_and_whatever_goes_wrong(town: Town) -> None:
    secrets = [town.environ[name] for name in ("DB_USER", "DB_PASSWORD", "TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN")]
    wrong: dict[str, Any] = {"TWILIO_AUTH_TOKEN": "wrong-token", "DB_PASSWORD": "wrong-password"}
    town.people(8)
    faults = [ACCEPT, refuse(21999), server_error(), RESET_AFTER_ACCEPTING, BROKEN_JSON, slow(1.5), throttle(1)]
    town.twilio.script(*faults, then=refuse(20003, 401))
    assert town.run(SEND_CONCURRENCY=1) == 2
    logs = [town.text]
    for name, value in wrong.items():
        assert town.run(NOON + DAY, **{name: value}) == 2
        logs.append(town.text)
    town.twilio.door(Door.SHUT)
    assert town.run(NOON + DAY) == 1
    logs.append(town.text)
    for log in logs:
        assert "INFO Settings: " in log
        for secret in (*secrets, *wrong.values()):
            assert secret not in log
