"""The fake Twilio is the witness of many other tests: these hold that it can be believed.

The real twilio-python is the client wherever it can be, since what it makes of an answer is what counts.
"""

import http.client
import json
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from requests import exceptions as requests_errors
from twilio.base.exceptions import TwilioRestException, TwilioServiceException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

from tests.sandbox.fake_twilio import (
    ACCEPT,
    BAD_TLS_RECORD,
    BROKEN_JSON,
    CLOSE_AFTER_ACCEPTING,
    EMPTY_LIST,
    RESET,
    RESET_AFTER_ACCEPTING,
    TRUNCATED,
    Answer,
    Door,
    FakeTwilio,
    FakeTwilioProcess,
    refuse,
    server_error,
    slow,
    throttle,
)
from tests.sandbox.sockets import wait_for

ANNA, BERT = "+4915200000001", "+4915200000002"
GOOD = {"To": ANNA, "From": FakeTwilio.FROM_NUMBER, "Body": "Hello"}
Connect = Callable[..., Any]
Fake = FakeTwilio | FakeTwilioProcess


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes real Twilio clients, and closes them."""
    transports = []

    def make(
        fake: Fake, user: str = FakeTwilio.ACCOUNT_SID, password: str = FakeTwilio.AUTH_TOKEN, timeout: float = 5.0
    ) -> Any:
        transport: Any = TwilioHttpClient(timeout=timeout)
        transports.append(transport)
        new_client: Any = Client
        client = new_client(user, password, account_sid=FakeTwilio.ACCOUNT_SID, http_client=transport)
        client.api.base_url = fake.url
        return client

    yield make
    for transport in transports:
        transport.session.close()


def send(client: Any, to: str = ANNA, **changes: Any) -> Any:
    return client.messages.create(**{"to": to, "from_": FakeTwilio.FROM_NUMBER, "body": "Hello", **changes})


def post(fake: FakeTwilio, params: dict[str, str]) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
    """A text without twilio-python: status, document and headers of the answer."""
    token = b64encode(f"{fake.ACCOUNT_SID}:{fake.AUTH_TOKEN}".encode()).decode()
    with closing(http.client.HTTPConnection("127.0.0.1", fake.port, timeout=5)) as connection:
        path = f"/2010-04-01/Accounts/{fake.ACCOUNT_SID}/Messages.json"
        connection.request("POST", path, urlencode(params), {"Authorization": f"Basic {token}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers


def code_of(error: pytest.ExceptionInfo[TwilioRestException]) -> tuple[int, int | None]:
    return error.value.status, error.value.code


# ------------------------------------------------------------------------------------------------ as Twilio documents


def test_an_accepted_text_reads_as_twilios_own(twilio: FakeTwilio, connect: Connect) -> None:
    before = datetime.now(UTC)
    message = send(connect(twilio), body="Grüße", validity_period=600)
    assert re.fullmatch("SM[0-9a-f]{32}", message.sid)
    assert (message.status, message.direction, message.error_code) == ("queued", "outbound-api", None)
    assert (message.to, message.from_, message.body) == (ANNA, twilio.FROM_NUMBER, "Grüße")
    assert (message.num_segments, message.date_sent) == ("1", None)
    assert abs(message.date_created - before) < timedelta(seconds=5)
    [kept] = twilio.book
    assert (kept.sid, kept.to, kept.from_, kept.body) == (message.sid, ANNA, twilio.FROM_NUMBER, "Grüße")
    assert (kept.validity_period, kept.segments) == (600, 1)
    assert before <= kept.accepted_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"To": None}, 21604),
        ({"To": "01520000001"}, 21211),
        ({"To": "+0152000000"}, 21211),
        ({"To": "+123456"}, 21211),
        ({"To": "+1234567890123456"}, 21211),
        ({"From": None}, 21603),
        ({"From": "nobody!"}, 21212),
        ({"Body": None}, 21602),
        ({"Body": ""}, 21602),
        ({"Body": "x" * 1601}, 21617),
        ({"ValidityPeriod": "0"}, 21624),
        ({"ValidityPeriod": "36001"}, 21624),
        ({"ValidityPeriod": "soon"}, 21624),
    ],
)
def test_a_text_that_twilio_would_not_take_is_refused(
    twilio: FakeTwilio, changes: dict[str, str | None], code: int
) -> None:
    params = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    status, document, _ = post(twilio, params)
    assert (status, document["code"], document["status"]) == (400, code, 400)
    assert document["more_info"] == f"https://www.twilio.com/docs/errors/{code}"
    assert twilio.book == []


@pytest.mark.parametrize("changes", [{}, {"To": "+1234567"}, {"Body": "x" * 1600}, {"ValidityPeriod": "36000"}])
def test_a_text_at_the_limits_is_taken(twilio: FakeTwilio, changes: dict[str, str]) -> None:
    assert post(twilio, GOOD | changes)[0] == 201


def test_another_account_in_the_path_gets_20404(twilio: FakeTwilio, connect: Connect) -> None:
    client = connect(twilio)
    client.account_sid = "AC" + "0" * 32
    with pytest.raises(TwilioRestException) as error:
        send(client)
    assert code_of(error) == (404, 20404)


# ------------------------------------------------------------------------------------------------------ list and fetch


def test_the_list_is_newest_first_and_pages_hold_still_while_texts_arrive(twilio: FakeTwilio, connect: Connect) -> None:
    client = connect(twilio)
    sids = [send(client).sid for _ in range(5)]
    page = client.messages.page(page_size=2)
    assert [message.sid for message in page] == sids[:2:-1]
    send(client)
    page = page.next_page()
    assert [message.sid for message in page] == sids[2:0:-1]
    page = page.next_page()
    assert [message.sid for message in page] == sids[:1]
    assert page.next_page() is None


def test_the_list_can_lag(twilio: FakeTwilio, connect: Connect) -> None:
    client = connect(twilio)
    twilio.list_lag = timedelta(minutes=15)
    sid = send(client).sid
    assert client.messages.list() == []
    assert client.messages(sid).fetch().sid == sid
    twilio.travel_to(datetime.now(UTC) + timedelta(minutes=16))
    assert len(client.messages.list()) == 1


# ------------------------------------------------------------------------------------------------------------- scripts


def codes_met(client: Any, to: str, times: int) -> list[int | None]:
    """The codes that so many texts meet; 0 for an accepted one."""
    codes: list[int | None] = []
    for _ in range(times):
        try:
            send(client, to)
            codes.append(0)
        except TwilioRestException as error:
            codes.append(error.code)
    return codes


def test_a_script_is_played_in_order_and_then_all_is_as_usual(twilio: FakeTwilio, connect: Connect) -> None:
    twilio.script(throttle(), ACCEPT, refuse(21610))
    assert codes_met(connect(twilio), ANNA, 5) == [20429, 0, 21610, 0, 0]
    assert [request.answer for request in twilio.requests] == ["throttle", "accept", "refuse", "accept", "accept"]


def test_a_recipients_own_script_comes_before_everybodys(twilio: FakeTwilio, connect: Connect) -> None:
    client = connect(twilio)
    twilio.script(refuse(21610), to=ANNA)
    twilio.script(refuse(21614), refuse(21265))
    assert codes_met(client, ANNA, 2) == [21610, 21614]
    assert codes_met(client, BERT, 2) == [21265, 0]


def test_a_script_cannot_accept_what_twilio_would_not_take(twilio: FakeTwilio, connect: Connect) -> None:
    twilio.script(then=server_error(accepted=True))
    assert codes_met(connect(twilio), "12345", 1) == [21211]
    assert twilio.book == []


def test_a_problem_in_the_form_of_rfc_9457_is_one_to_twilio_python(twilio: FakeTwilio, connect: Connect) -> None:
    twilio.script(refuse(21610, rfc9457=True))
    with pytest.raises(TwilioServiceException) as error:
        send(connect(twilio))
    assert (error.value.status, error.value.code) == (400, 21610)


@pytest.mark.parametrize(("answer", "header"), [(throttle(), None), (server_error(503, retry_after=2), "2")])
def test_retry_after_comes_when_it_was_told(twilio: FakeTwilio, answer: Answer, header: str | None) -> None:
    twilio.script(answer)
    status, _, headers = post(twilio, GOOD)
    assert (status, headers["Retry-After"]) == (answer.status, header)


# ---------------------------------------------------------------------------------------------- answers that get lost


@pytest.mark.parametrize(
    ("answer", "raised", "words", "accepted"),
    [
        (server_error(), TwilioRestException, "HTTP 500", 0),
        (server_error(503, accepted=True, retry_after=1), TwilioRestException, "HTTP 503", 1),
        (RESET, requests_errors.ConnectionError, "reset by peer", 0),
        (RESET_AFTER_ACCEPTING, requests_errors.ConnectionError, "reset by peer", 1),
        (CLOSE_AFTER_ACCEPTING, requests_errors.ConnectionError, "closed connection", 1),
        (TRUNCATED, requests_errors.ChunkedEncodingError, "", 1),
        (BROKEN_JSON, json.JSONDecodeError, "", 1),
        (EMPTY_LIST, AttributeError, "", 1),
        (slow(5), requests_errors.ReadTimeout, "", 1),
        (RESET.delayed(before=0.05), requests_errors.ConnectionError, "reset by peer", 0),
    ],
    ids=lambda value: value.kind if isinstance(value, Answer) else "",
)
def test_the_book_tells_whether_a_text_whose_answer_failed_was_accepted(
    twilio: FakeTwilio, connect: Connect, answer: Answer, raised: type[Exception], words: str, accepted: int
) -> None:
    client = connect(twilio, timeout=0.3)
    twilio.script(answer)
    with pytest.raises(raised, match=words or None):
        send(client)
    assert len(twilio.book) == accepted
    send(client, BERT)
    assert twilio.book[-1].to == BERT


def test_a_late_acceptance_happens_even_when_the_client_has_gone(twilio: FakeTwilio, connect: Connect) -> None:
    twilio.script(slow(0.2, accepted_first=False))
    with pytest.raises(requests_errors.ReadTimeout):
        send(connect(twilio, timeout=0.05))
    assert twilio.book == []
    wait_for(lambda: len(twilio.book) == 1)


# -------------------------------------------------------------------------------------------------- connections and TLS


def test_a_client_that_does_not_trust_the_certificate_leaves_the_fake_in_peace(
    secure: FakeTwilio, connect: Connect, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    client = connect(secure)
    with monkeypatch.context() as patch:
        patch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(requests_errors.SSLError) as error:
            send(client)
    assert isinstance(error.value.args[0].reason.args[0], ssl.SSLCertVerificationError)
    assert send(client).sid
    assert capfd.readouterr().err == ""


def test_a_door_resets_at_once(twilio: FakeTwilio) -> None:
    twilio.door(Door.RESET)
    address = ("127.0.0.1", twilio.port)
    with pytest.raises(ConnectionResetError), socket.create_connection(address, timeout=5) as client:
        client.recv(1)


def test_a_door_that_resets_in_the_handshake_waits_for_the_first_bytes(twilio: FakeTwilio) -> None:
    twilio.door(Door.RESET_IN_HANDSHAKE)
    with socket.create_connection(("127.0.0.1", twilio.port), timeout=0.1) as client:
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"hello")
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_bad_tls_record_comes_after_the_text_was_accepted(secure: FakeTwilio, connect: Connect) -> None:
    secure.script(BAD_TLS_RECORD)
    with pytest.raises(requests_errors.SSLError):
        send(connect(secure))
    assert len(secure.book) == 1


def test_a_door_that_resets_does_so_as_often_as_told(twilio: FakeTwilio, connect: Connect) -> None:
    client = connect(twilio)
    twilio.door(Door.RESET, times=2)
    for _ in range(2):
        with pytest.raises(requests_errors.ConnectionError):
            send(client)
    assert send(client).sid
    assert len(twilio.book) == 1


def test_a_connection_is_kept_until_it_is_dropped(twilio: FakeTwilio, connect: Connect) -> None:
    client = connect(twilio)
    send(client)
    send(client)
    assert twilio.stats()["connections"] == 1
    twilio.drop_connections()
    send(client)
    assert twilio.stats()["connections"] == 2


# --------------------------------------------------------------------------------------------------- life and control


def test_the_end_is_quick_leaves_no_thread_and_keeps_the_book(connect: Connect) -> None:
    threads = threading.active_count()
    with FakeTwilio(latency=30) as twilio, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, connect(twilio, timeout=20))
        wait_for(lambda: len(twilio.book) == 1)
        start = time.monotonic()
        twilio.stop()
        with pytest.raises(requests_errors.ConnectionError):
            answer.result()
        assert time.monotonic() - start < 1
    assert threading.active_count() == threads
    assert len(twilio.book) == 1


def test_reset_forgets_everything(twilio: FakeTwilio, connect: Connect) -> None:
    client = connect(twilio)
    send(client)
    twilio.script(then=refuse(21610))
    twilio.hook = lambda _: refuse(21614)
    twilio.spoil_credentials()
    twilio.travel_to(datetime(2001, 1, 1, tzinfo=UTC))
    twilio.door(Door.SHUT)
    twilio.reset()
    assert (twilio.book, twilio.requests) == ([], [])
    assert send(connect(twilio)).sid
    assert twilio.book[0].accepted_at.year > 2001


def test_another_process_is_witness_over_tls_and_forgets(
    certificate: tuple[str, str], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTwilioProcess(tls=certificate) as process:
        assert process.url.startswith("https://")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", process.environ()["REQUESTS_CA_BUNDLE"])
        send(connect(process))
        assert process.stats()["accepted"] == 1
        process.reset()
        assert process.stats()["requests"] == process.stats()["accepted"] == 0
