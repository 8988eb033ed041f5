"""What every answer of Twilio, and every way of having none, asks for.

The table of codes is written down here a second time, from Twilio's documents and not from the program. Answers and
faults are real ones: they come over a socket, and twilio-python, requests and urllib3 make of them what they make.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytz

import habit_notifier
from habit_notifier import (
    HTTP_STATUSES,
    TWILIO_CODES,
    Action,
    Answer,
    Brake,
    Days,
    Outcome,
    Pause,
    Reminder,
    Rule,
    Stop,
    Twilio,
    User,
    utc_now,
)
from tests.environ import settings_of
from tests.sandbox import fake_twilio
from tests.sandbox.fake_twilio import (
    ACCEPT,
    BAD_TLS_RECORD,
    CLOSE_AFTER_ACCEPTING,
    RESET,
    RESET_AFTER_ACCEPTING,
    TRUNCATED,
    Door,
    FakeTwilio,
    refuse,
    self_signed_certificate,
    server_error,
    slow,
    throttle,
)
from tests.sandbox.sockets import Canned, ConnectProxy, read_request

MIDNIGHT = datetime(2024, 5, 17, tzinfo=UTC)
DAYS = Days(pytz.utc, MIDNIGHT.date(), *(MIDNIGHT - timedelta(days=n) for n in (2, 1, 0)))
ANNA = Reminder(User(1, "Anna", "+15005550001", "UTC", DAYS, logged_day1=False), Rule.NO_LOGS, DAYS)
OTHER = replace(ANNA, user=replace(ANNA.user, phone="+15005550002"))

CODES = {
    Action.REFUSE: {21211, 21265, 21266, 21268, 21610, 21614, 21635, 30630, 30640},
    Action.OUT_OF_REACH: {21408, 21612, 21703},
    Action.TRIAL: {21608, 572002, 572005},
    Action.FAIL: {20008, 21212, 21602, 21606, 21617, 21659, 21660, 21661, 21704, 30485, 30489, 90010, 572006},
    Action.PAUSE: {20429, 21611},
    Action.STOP: {10001, 20003, 20005, 20403, 20404, 21603, 21701, 21705, 30454, 35118, 63038, 70051},
}
STATUSES = {Action.STOP: {401, 403, 404}, Action.PAUSE: {429}, Action.UNCERTAIN: {408}}
ACTION_OF_CODE = [(code, action) for action, codes in CODES.items() for code in sorted(codes)]
ACTION_OF_STATUS = [(status, action) for action, statuses in STATUSES.items() for status in sorted(statuses)]


pytestmark = pytest.mark.usefixtures("no_proxy")
curt = pytest.mark.constants(HTTP_TIMEOUT=(1.0, 1.0))  # for what waits the whole of it


def client_of(url: str) -> Twilio:
    return Twilio(settings_of(TWILIO_API_URL=url))


def post(url: str, *, warm: bool = False) -> Answer:
    """Post one text, on a new connection or, when warm, on one that has served a text before."""
    client = client_of(url)
    if warm:
        assert client.post(OTHER, 14_400).action is Action.ACCEPT
    return client.post(ANNA, 14_400)


def a_brake() -> Brake:
    return Brake(Stop(), utc_now, deadline=60)


def texts(fake: FakeTwilio) -> int:
    """How many texts to Anna were accepted."""
    return sum(message.to == ANNA.user.phone for message in fake.book)


# --- codes and statuses -----------------------------------------------------------------------------------------------


def test_every_code_of_the_table_is_one_that_was_thought_about() -> None:
    assert TWILIO_CODES.keys() == set().union(*CODES.values())
    assert HTTP_STATUSES.keys() == set().union(*STATUSES.values())


@pytest.mark.parametrize(("code", "action"), ACTION_OF_CODE)
@pytest.mark.parametrize("rfc9457", [False, True], ids=["twilio", "rfc9457"])
def test_a_code_counts_before_the_status_in_both_forms_of_errors(
    twilio: FakeTwilio, code: int, action: Action, rfc9457: bool
) -> None:
    statuses = (400, 401, 403, 404, 408, 409, 429)
    client = client_of(twilio.url)
    for status in statuses:
        twilio.script(refuse(code, status, rfc9457=rfc9457))
        answer = client.post(ANNA, 14_400)
        assert (status, answer.action, answer.code) == (status, action, code)
    assert len(twilio.requests) == len(statuses)


@pytest.mark.parametrize(("code", "action"), ACTION_OF_CODE)
def test_every_code_has_a_sentence_and_the_address_of_twilios_page(
    twilio: FakeTwilio, code: int, action: Action
) -> None:
    twilio.script(refuse(code, message="Twilio's own words"))
    words = post(twilio.url).words
    sentence, _, link = words.rpartition(" (")
    said = ": “Twilio's own words”" if action is Action.STOP else ""
    assert link == f"error {code}, https://www.twilio.com/docs/api/errors/{code}){said}"
    assert len(sentence.split()) >= 3
    inactive = {10001, 20005}
    assert action is Action.PAUSE or code in inactive or sum(sentence == text for _, text in TWILIO_CODES.values()) == 1


@pytest.mark.parametrize(("status", "action"), ACTION_OF_STATUS)
@pytest.mark.parametrize("rfc9457", [False, True], ids=["twilio", "rfc9457"])
def test_a_status_counts_when_twilio_gives_a_code_that_is_not_known(
    twilio: FakeTwilio, status: int, action: Action, rfc9457: bool
) -> None:
    twilio.script(refuse(99999, status, rfc9457=rfc9457))
    assert post(twilio.url).action is action


@pytest.mark.parametrize(("status", "action"), [(400, Action.FAIL), (403, Action.FAIL), (429, Action.PAUSE)])
@pytest.mark.parametrize("code", [21000, 21670, 30999])
def test_a_code_that_speaks_of_one_text_stops_nobody_else_s(
    twilio: FakeTwilio, code: int, status: int, action: Action
) -> None:
    twilio.script(refuse(code, status))
    assert post(twilio.url).action is action


FOREIGN = [
    *("", "<html>no</html>", "[]", "null", "{", "12", "\x00", '"x"', "{}", '{"message": null}'),
    *('{"code": null, "status": %d}', '{"code": "21610", "status": %d}', '{"code": true, "status": %d}'),
    *('{"code": 21610.0, "status": %d}', '{"code": 21610}', '{"code": 21610, "status": "%d"}'),
    *('{"code": 21610, "status": 200}', '{"code": 20429, "status": 500}', '[{"code": 21610, "status": %d}]'),
    *('{"code": %d, "status": %d}', '{"code": 0, "status": %d}', '{"code": -1, "status": %d}'),
]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 406, 407, 408, 409, 410, 413, 422, 429, 451, 499])
def test_a_4xx_that_is_not_twilios_own_proves_nothing_and_is_uncertain(twilio: FakeTwilio, status: int) -> None:
    """A proxy that opens TLS can block the answer to a text that was accepted."""
    client = client_of(twilio.url)
    for text in FOREIGN:
        body = text % ((status,) * text.count("%d"))
        twilio.script(replace(ACCEPT, status=status, body=body))
        answer = client.post(ANNA, 14_400)
        assert (body, answer.action, answer.code) == (body, Action.UNCERTAIN, None)
    assert texts(twilio) == len(twilio.requests) == len(FOREIGN)


def test_an_answer_that_is_not_twilios_is_called_so_with_its_status_and_type(twilio: FakeTwilio) -> None:
    twilio.script(replace(ACCEPT, status=403, body="<html>blocked by policy</html>"))
    words = post(twilio.url).words
    assert words == "an answer that is not Twilio's, or a broken one (HTTP 403, application/json)"


@pytest.mark.parametrize("status", [400, 402, 405, 409, 410, 413, 415, 422, 451, 499])
@pytest.mark.parametrize("rfc9457", [False, True], ids=["twilio", "rfc9457"])
def test_an_unknown_refusal_fails_this_person_and_is_told_in_twilios_words(
    twilio: FakeTwilio, status: int, rfc9457: bool
) -> None:
    twilio.script(refuse(21999, status, "The moon is in the wrong place", rfc9457=rfc9457))
    answer = post(twilio.url)
    assert (answer.action, answer.action.outcome, answer.code) == (Action.FAIL, Outcome.SETUP, 21999)
    assert f"HTTP {status} “The moon is in the wrong place”" in answer.words
    assert answer.words.endswith("https://www.twilio.com/docs/api/errors/21999)")


def test_twilios_words_cannot_forge_a_line_of_the_log(twilio: FakeTwilio) -> None:
    twilio.script(refuse(21999, message="no\r\n2024-01-15 09:00:00 - __main__ - INFO - all \x1b[2Jsent\u202e"))
    assert post(twilio.url).words.isprintable()


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 599])
@pytest.mark.parametrize("code", [20500, 20003, 20429, 21610, 63038, 99999])
def test_a_5xx_is_uncertain_whatever_its_code_says(twilio: FakeTwilio, status: int, code: int) -> None:
    twilio.script(server_error(status, code, retry_after=1), server_error(status, code, accepted=True))
    for answer in (post(twilio.url), post(twilio.url)):
        assert answer.action is Action.UNCERTAIN
        assert answer.words == f"Twilio, or a proxy, failed (HTTP {status}, application/json)"
    assert len(twilio.requests) == 2
    assert texts(twilio) == 1


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_uncertain_and_not_followed(status: int) -> None:
    with Canned(b"HTTP/1.1 %d Moved\r\nLocation: /elsewhere\r\nContent-Length: 2\r\n\r\n{}" % status) as server:
        assert post(server.url).action is Action.UNCERTAIN
    assert len(server.requests) == 1


# --- broken answers to a text that was accepted -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *("", "[]", "null", "7", '"SM0123456789abcdef0123456789abcdef"', '{"sid": "SM', "<html>created</html>", "{}"),
        *('{"sid": null}', '{"sid": ""}', '{"sid": 7}', '{"sid": "SM0123"}'),
        '{"sid": "AC0123456789abcdef0123456789abcdef"}',
        '{"sid": "SM0123456789abcdef0123456789abcdef\\n"}',
        '{"sid": "SM0123456789abcdef0123456789abcdef", "date_created": 5}',
        '{"code": 21610, "message": "opted out"}',
        '{"sid": "SM0123456789abcdef0123456789abcdeg", "status": "queued"}',
        '{"sid": ["SM0123456789abcdef0123456789abcdef"]}',
    ],
)
def test_a_201_that_names_no_message_is_uncertain(twilio: FakeTwilio, body: str) -> None:
    twilio.script(replace(ACCEPT, body=body))
    answer = post(twilio.url)
    assert (answer.action, answer.sid) == (Action.UNCERTAIN, None)
    assert texts(twilio) == 1


@pytest.mark.parametrize("prefix", ["SM", "MM"])
@pytest.mark.parametrize(
    ("stated", "segments"),
    [
        *(('"2"', 2), ("2", 2), ("null", None), ('"many"', None), ('""', None), ("true", None), ("false", None)),
        *(("32767", 32_767), ("32768", None), ('"32768"', None), ("-1", None), ("1.5", None), ("1e2", None)),
        *(("[2]", None), ('"\u0662"', None), ('"2 "', None), ("9" * 400, None), (f'"{"9" * 5_000}"', None)),
    ],
)
def test_an_accepted_text_is_known_by_its_sid_and_what_it_costs(
    twilio: FakeTwilio, prefix: str, stated: str, segments: int | None
) -> None:
    sid = prefix + "0123456789abcdef0123456789abcdef"
    twilio.script(replace(ACCEPT, body=f'{{"sid": "{sid}", "num_segments": {stated}}}'))
    assert post(twilio.url) == Answer(Action.ACCEPT, sid=sid, segments=segments)


@pytest.mark.parametrize("status", ["failed", "undelivered", "canceled"])
@pytest.mark.parametrize(("stated", "code"), [("30006", 30006), ("null", None), ("10000000", None), ('"x"', None)])
def test_a_201_whose_text_has_failed_is_no_text_that_was_sent(
    twilio: FakeTwilio, status: str, stated: str, code: int | None
) -> None:
    sid = "SM0123456789abcdef0123456789abcdef"
    body = f'{{"sid": "{sid}", "status": "{status}", "error_code": {stated}, "num_segments": "1"}}'
    twilio.script(replace(ACCEPT, body=body))
    answer = post(twilio.url)
    assert (answer.action.outcome, answer.code, answer.sid, answer.segments) == (Outcome.REFUSED, code, sid, 1)
    assert status in answer.words


@pytest.mark.parametrize("status", ['"queued"', '"accepted"', '"sent"', "null", "[]", "{}", "7", '"FAILED"'])
def test_a_201_of_any_other_status_is_a_text_that_may_reach_its_reader(twilio: FakeTwilio, status: str) -> None:
    body = f'{{"sid": "SM0123456789abcdef0123456789abcdef", "status": {status}, "error_code": null}}'
    twilio.script(replace(ACCEPT, body=body))
    assert post(twilio.url).action is Action.ACCEPT


@pytest.mark.parametrize(("code", "kept"), [(21_999, 21_999), (999_999, 999_999), (10**6, None), (10**30, None)])
def test_a_code_that_no_column_holds_is_not_recorded(twilio: FakeTwilio, code: int, kept: int | None) -> None:
    twilio.script(refuse(code))
    answer = post(twilio.url)
    assert (answer.action, answer.code) == (Action.FAIL, kept)


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\n\xff\xfe{",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 3\r\n\r\n\xff\xfe{",
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 201 Created\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 201 " + b"C" * 100_000,
    ],
    ids=["empty", "ssh", "short", "no UTF-8", "refused without UTF-8", "chunks", "gzip", "headers", "endless"],
)
def test_what_is_no_http_or_no_text_is_uncertain(answer: bytes) -> None:
    with Canned(answer) as server:
        assert post(server.url).action is Action.UNCERTAIN
    assert len(server.requests) == 1


class Hasty(Canned):
    """Says at once that the answer is to come, and gives it later, on the same connection."""

    def serve(self, client: socket.socket) -> None:
        while request := read_request(client):
            self.requests.append(request)
            client.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            time.sleep(0.1)
            client.sendall(self.answer)


def test_an_answer_that_comes_after_an_interim_one_is_not_taken_for_the_next_texts() -> None:
    """Else a text that was accepted is told as refused, or one that was refused as sent."""
    body = b'{"sid": "SM0123456789abcdef0123456789abcdef"}'
    with Hasty(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as server:
        client = client_of(server.url)
        for _ in range(3):
            assert client.post(ANNA, 14_400).action is Action.UNCERTAIN
    assert len(server.requests) == 3


@curt
def test_an_answer_that_drips_byte_by_byte_is_uncertain_as_soon_as_one_that_never_comes() -> None:
    head = b"HTTP/1.1 201 Created\r\nContent-Length: 200\r\n\r\n"
    with Canned(head, drip=b" " * 200) as server:
        start = time.monotonic()
        answer = post(server.url)
        assert time.monotonic() - start < 4
    assert answer.action is Action.UNCERTAIN
    assert "goes on for too long" in answer.words
    assert len(server.requests) == 1


@pytest.mark.constants(HTTP_TIMEOUT=(5.0, 60.0))
def test_an_answer_without_end_is_given_up_before_it_fills_the_memory() -> None:
    body = gzip.compress(bytes(200_000_000))
    head = b"HTTP/1.1 201 Created\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    tracemalloc.start()
    with Canned(head + body) as server:
        answer = post(server.url)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (answer.action, "goes on for too long" in answer.words) == (Action.UNCERTAIN, True)
    assert peak < 100_000_000


@pytest.mark.parametrize(
    "date", ["", "soon", "Tue, 12 May 99999999999999999999 12:00:00 GMT", "31 Dec 9999 23:59 -2300"]
)
def test_a_date_that_nobody_can_read_is_none(date: str) -> None:
    page = b'{"messages": [], "page": 0, "page_size": 1}'
    head = b"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: %d\r\n\r\n" % (date.encode(), len(page))
    with Canned(head + page) as server:
        assert client_of(server.url).probe() is None


@pytest.mark.parametrize("zone", ["GMT", "-0000"])
def test_a_date_is_in_utc_wherever_this_node_is(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = b'{"messages": [], "page": 0, "page_size": 1}'
    date = f"Tue, 12 May 2026 12:00:00 {zone}".encode()
    head = b"HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: %d\r\n\r\n" % (date, len(page))
    with monkeypatch.context() as patch, Canned(head + page) as server:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        assert client_of(server.url).probe() == datetime(2026, 5, 12, 12, tzinfo=UTC)
    time.tzset()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_ordinary_answer_may_be_compressed_and_come_in_pieces(chunked: bool) -> None:
    body = gzip.compress(json.dumps({"sid": "SM" + "0" * 32}).encode())
    length, parts = b"Content-Length: %d" % len(body), body
    if chunked:
        length, parts = b"Transfer-Encoding: chunked", b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with Canned(b"HTTP/1.1 201 Created\r\nContent-Encoding: gzip\r\n%s\r\n\r\n%s" % (length, parts)) as server:
        assert post(server.url) == Answer(Action.ACCEPT, sid="SM" + "0" * 32)


def test_ordinary_answers_leave_the_connection_open_for_the_next_text(secure: FakeTwilio) -> None:
    secure.script(ACCEPT, refuse(21610), refuse(21408), throttle(1))
    client = client_of(secure.url)
    for _ in range(6):
        client.post(ANNA, 14_400)
    assert len(secure.requests) == 6
    assert secure.stats()["connections"] == 1


@pytest.mark.parametrize(("seconds", "connections"), [(29, 1), (31, 2), (3600, 2)])
def test_a_connection_that_was_idle_for_long_is_dropped_before_the_next_text(
    secure: FakeTwilio, seconds: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the wall's clock: a machine may have been suspended."""
    client, real = client_of(secure.url), time.time
    assert client.post(OTHER, 14_400).action is Action.ACCEPT
    monkeypatch.setattr(time, "time", lambda: real() + seconds)
    assert client.post(ANNA, 14_400).action is Action.ACCEPT
    assert secure.stats()["connections"] == connections


# --- Retry-After ------------------------------------------------------------------------------------------------------


def test_retry_after_may_be_a_date(twilio: FakeTwilio) -> None:
    twilio.script(throttle(datetime.now(UTC) + timedelta(seconds=40)), throttle(datetime.now(UTC) - timedelta(days=9)))
    assert 35 < (post(twilio.url).retry_after or 0) <= 40
    assert post(twilio.url).retry_after == 0


ABSURD = ["soon", "-5", "1.5", "", "NaN", "Wed, 99 Foo 2015", "Wed, 21 Oct 99999 07:28:00 GMT"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7), ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", 0), *((text, None) for text in ABSURD)],
)
def test_retry_after_is_kept_in_seconds_and_none_when_it_is_absurd(
    twilio: FakeTwilio, text: str, seconds: float | None
) -> None:
    twilio.script(replace(throttle(), retry_after=text))
    answer = post(twilio.url)
    assert (answer.action, answer.retry_after) == (Action.PAUSE, seconds)


@pytest.mark.constants(PAUSE_BUDGET=5.0)
@pytest.mark.parametrize(
    "text", ["86400", "9" * 400, "Wed, 21 Oct 2665 07:28:00 GMT", f"Wed, 21 Oct 2015 07:28:00 -{'9' * 20}"]
)
def test_a_retry_after_of_ages_ends_the_run_instead_of_hanging_it(twilio: FakeTwilio, text: str) -> None:
    twilio.script(replace(throttle(), retry_after=text))
    brake = a_brake()
    Pause(brake).begin(post(twilio.url))
    assert brake.pulled
    assert brake.exit_code is habit_notifier.Exit.RETRY


# --- pauses ---------------------------------------------------------------------------------------------------------


def pauses(answers: list[Answer], caplog: pytest.LogCaptureFixture, *, then: Callable[[Pause], None]) -> list[int]:
    """How long everybody waits after each answer, when each pause is slept out before the next answer comes."""
    pause = Pause(a_brake())
    caplog.clear()
    for answer in answers:
        pause.begin(answer)
        pause._ends = 0.0
        then(pause)
    return [int(seconds) for seconds in re.findall(r"All texts wait for (\d+) s", caplog.text)]


def test_pauses_double_up_to_two_minutes_until_a_text_gets_through(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "PAUSE_BUDGET", 1e9)
    monkeypatch.setattr(random, "uniform", lambda low, _high: low)
    rate = Answer(Action.PAUSE, code=20429)
    asked = Answer(Action.PAUSE, code=20429, retry_after=7.0)
    # A thousand in a row do not overflow either.
    assert pauses([rate] * 1_100, caplog, then=lambda _: None) == [1, 2, 4, 8, 16, 32, 64, *[120] * 1_093]
    assert pauses([rate] * 3, caplog, then=Pause.relax) == [1, 1, 1]
    assert pauses([asked] * 3, caplog, then=lambda _: None) == [7, 7, 7]


@pytest.mark.constants(PAUSE_BUDGET=1e9)
def test_pauses_are_jittered_upwards_so_that_runs_do_not_come_back_together(caplog: pytest.LogCaptureFixture) -> None:
    asked = Answer(Action.PAUSE, retry_after=1000.0)
    found = pauses([asked] * 50, caplog, then=lambda _: None)
    assert min(found) >= 1000
    assert len(set(found)) > 10
    assert max(found) <= 1200


def test_many_workers_who_are_told_the_same_make_one_pause_and_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habit_notifier, "PAUSE_BUDGET", 100.0)
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    brake = a_brake()
    pause = Pause(brake)
    for _ in range(64):
        pause.begin(Answer(Action.PAUSE, "too many requests", retry_after=60.0))
    assert [record.getMessage() for record in caplog.records] == ["All texts wait for 72 s: too many requests"]
    pause.begin(Answer(Action.PAUSE, retry_after=80.0))  # from the same moment on: 24 s more
    assert not brake.pulled


# --- surely not sent --------------------------------------------------------------------------------------------------


def test_a_refused_port_is_surely_not_sent(twilio: FakeTwilio) -> None:
    twilio.door(Door.SHUT)
    answer = post(twilio.url)
    assert answer.action is Action.UNREACHED
    assert "Connection refused" in answer.words


def test_an_unknown_host_is_surely_not_sent() -> None:
    answer = post("https://api.twilio.invalid")
    assert answer.action is Action.UNREACHED
    assert "api.twilio.invalid" in answer.words


@curt
def test_a_connection_that_never_stands_is_surely_not_sent() -> None:
    with Full() as server:
        answer = post(server.url)
    assert answer.action is Action.UNREACHED
    assert "timed out" in answer.words


def test_addresses_that_all_drop_what_comes_are_not_blamed_on_twilio_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name has many, and each is tried for as long: behind a NetworkPolicy that takes more than a probe may."""
    monkeypatch.setattr(habit_notifier, "HTTP_TIMEOUT", (0.2, 0.2))
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked: resolve(*asked) * 8)
    with Full() as server, pytest.raises(habit_notifier.RetryLater, match="DNS, the proxy and the NetworkPolicy"):
        habit_notifier.within(0.5, a_brake(), client_of(server.url).probe)


@pytest.mark.parametrize("named", [True, False])
def test_a_proxy_that_refuses_or_has_no_address_is_surely_not_sent(
    secure: FakeTwilio, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))  # bound, but not listening
        proxy = "proxy.invalid:3128" if named else f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        assert post(secure.url).action is Action.UNREACHED
    assert not secure.requests


@pytest.mark.parametrize("proxied", [False, True])
def test_a_certificate_of_an_unknown_authority_is_surely_not_sent(
    secure: FakeTwilio, proxied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", self_signed_certificate(tmp_path)[0])
    with ConnectProxy() as proxy:
        if proxied:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        answer = post(secure.url)
    assert (answer.action, answer.action.outcome) == (Action.STOP, Outcome.RELEASED)
    told = r"verify \(self.signed certificate\): .*REQUESTS_CA_BUNDLE.*this node's clock, or the host in TWILIO_API_URL"
    assert re.search(told, answer.words)
    assert not secure.requests


def test_a_certificate_of_another_name_is_surely_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = self_signed_certificate(tmp_path, "DNS:elsewhere.example")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", files[0])
    with FakeTwilio(tls=files) as elsewhere:
        answer = post(elsewhere.url)
    assert "mismatch" in answer.words
    assert (answer.action, answer.action.outcome) == (Action.STOP, Outcome.RELEASED)
    assert not elsewhere.requests


# The client hangs up within the handshake: a fake that stops at that moment leaves its socket to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("content", [None, "", "not a certificate", "-----BEGIN CERTIFICATE-----\n"])
def test_a_ca_bundle_that_cannot_be_used_needs_a_person_and_nothing_was_sent(
    secure: FakeTwilio, tmp_path: Path, content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    answer = post(secure.url)
    assert (answer.action, answer.action.outcome) == (Action.STOP, Outcome.RELEASED)
    assert "REQUESTS_CA_BUNDLE" in answer.words
    assert not secure.requests


@pytest.mark.parametrize("reason", ["503 Service Unavailable", "502 Bad Gateway", "403 Forbidden", "500 No"])
def test_a_tunnel_that_the_proxy_did_not_build_is_surely_not_sent(
    secure: FakeTwilio, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Canned(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % reason.encode()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        answer = post(secure.url)
    assert (answer.action, answer.action.outcome) == (Action.UNREACHED, Outcome.RELEASED)
    assert f"(Tunnel connection failed: {reason[:3]})" in answer.words


@curt
def test_a_proxy_that_builds_no_tunnel_in_time_has_surely_sent_nothing(
    secure: FakeTwilio, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent.getsockname()[1]}")
        answer = post(secure.url)
    assert (answer.action, answer.action.outcome) == (Action.UNREACHED, Outcome.RELEASED)


@curt
@pytest.mark.parametrize("scheme", ["HTTPS", "HTTP"])
def test_an_answer_that_does_not_come_through_a_proxy_in_time_is_uncertain(
    secure: FakeTwilio, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectProxy() as proxy, closing(socket.create_server(("127.0.0.1", 0))) as silent:
        here = proxy.url if scheme == "HTTPS" else f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(f"{scheme}_PROXY", here)
        secure.latency = 2.0
        assert post(secure.url if scheme == "HTTPS" else "http://127.0.0.1").action is Action.UNCERTAIN


UNUSABLE = [
    *("socks5://127.0.0.1:1080", "socks5h://127.0.0.1:1080", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999"),
    *("http://user:p€@127.0.0.1", "http://user:p%E2%82%AC@127.0.0.1", "http://..:3128", f"http://{'a' * 64}:3128"),
]


@pytest.mark.parametrize("proxy", [*UNUSABLE, "407", "401"])
def test_a_proxy_that_wants_a_login_or_cannot_be_used_needs_a_person_and_nothing_was_sent(
    secure: FakeTwilio, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Canned(b"HTTP/1.1 %s No\r\nContent-Length: 0\r\n\r\n" % proxy.encode()) as wary:  # tinyproxy says 401
        monkeypatch.setenv("HTTPS_PROXY", wary.url if proxy.isdigit() else proxy)
        answer = post(secure.url)
    assert (answer.action, answer.action.outcome) == (Action.STOP, Outcome.RELEASED)
    assert "HTTPS_PROXY" in answer.words
    assert not secure.requests


# --- uncertain --------------------------------------------------------------------------------------------------------


def test_a_reset_in_the_handshake_looks_like_one_after_the_text_was_posted_and_is_uncertain(secure: FakeTwilio) -> None:
    secure.door(Door.RESET_IN_HANDSHAKE)
    assert post(secure.url).action is Action.UNCERTAIN


@curt
def test_silence_in_the_handshake_is_uncertain() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        assert post(f"https://127.0.0.1:{silent.getsockname()[1]}").action is Action.UNCERTAIN


@curt
def test_a_server_that_speaks_no_tls_is_uncertain(twilio: FakeTwilio) -> None:
    assert post(twilio.url.replace("http:", "https:")).action is Action.UNCERTAIN


LOST = [
    *(RESET, RESET_AFTER_ACCEPTING, CLOSE_AFTER_ACCEPTING),  # through a proxy they look like a refused one to urllib3
    *(BAD_TLS_RECORD, TRUNCATED, slow(1.5), slow(1.5, accepted_first=False), server_error(accepted=True)),
]


@curt
@pytest.mark.parametrize("proxied", [False, True], ids=["straight", "behind a proxy"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("answer", LOST, ids=lambda answer: answer.kind)
def test_an_accepted_text_whose_answer_is_lost_is_uncertain(
    secure: FakeTwilio, answer: fake_twilio.Answer, warm: bool, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure.script(answer, to=ANNA.user.phone)
    with ConnectProxy() as proxy:
        if proxied:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert post(secure.url, warm=warm).action is Action.UNCERTAIN
    assert proxy.targets == [f"127.0.0.1:{secure.port}"] * proxied
    assert [request.to for request in secure.requests].count(ANNA.user.phone) == 1


# --- servers that no fake Twilio is -----------------------------------------------------------------------------------


class Full:
    """A port whose queue of connections is full: whoever comes hears nothing, as behind a network that drops."""

    def __enter__(self) -> Full:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(0)
        address = self._socket.getsockname()
        self.url = f"http://127.0.0.1:{address[1]}"
        self._waiting = []
        for _ in range(8):  # more than any kernel grants to a queue of 0
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(address)
            self._waiting.append(client)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._waiting, self._socket):
            each.close()


def test_a_deadline_that_is_over_stays_over_when_the_clock_is_set_back() -> None:
    now = [datetime(2026, 5, 12, 9, tzinfo=UTC)]
    brake = Brake(Stop(), lambda: now[0], deadline=60)
    now[0] += timedelta(hours=1)
    assert brake.pulled
    now[0] -= timedelta(hours=1)
    assert brake.pulled


@pytest.mark.constants(TERM_LIMIT=0.1)
def test_sigterm_ends_the_wait_for_an_answer_that_does_not_end() -> None:
    stop, start = Stop(), time.monotonic()
    stop.request()
    with pytest.raises(habit_notifier.RetryLater, match="does not end"):
        habit_notifier.within(30, Brake(stop, utc_now, deadline=60), lambda: time.sleep(3))
    assert time.monotonic() - start < 2


def test_a_weightier_failure_outweighs_what_came_first(caplog: pytest.LogCaptureFixture) -> None:
    brake = Brake(Stop(), utc_now, deadline=60)
    brake.pull(habit_notifier.RetryLater("try again"))
    brake.pull(habit_notifier.RetryLater("try again, too"))
    brake.pull(habit_notifier.Terminated("SIGTERM"))
    brake.pull(habit_notifier.RetryLater("and again"))
    brake.pull(habit_notifier.FixFirst("correct the credentials"))
    brake.pull(habit_notifier.FixFirst("correct something else"))
    assert brake.exit_code is habit_notifier.Exit.ACT
    told = [record.getMessage() for record in caplog.records]
    assert told == ["try again", "SIGTERM", "correct the credentials"]
