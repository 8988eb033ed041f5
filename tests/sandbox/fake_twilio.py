"""A fake of the part of Twilio's REST API that the notifier uses: the witness of demo, tests, fault runs, benchmarks.

It answers as Twilio documents it (create, list and fetch a message; look for a sender), over
HTTP/1.1 or TLS, keeps a book of every text that it accepted, and misbehaves on demand. Nothing is ever sent anywhere.

    with FakeTwilio() as twilio:
        twilio.script(refuse(21610), to="+15005550009")     # this person has opted out
        twilio.script(throttle(retry_after=1), ACCEPT)      # the first text to anybody else is one too many
        run_the_program(environ=twilio.environ())
        assert [message.to for message in twilio.book] == [...]

What happens to a request, in this order:

1. credentials and account are checked (401 with 20003, 404 with 20404);
2. `hook(request)` may choose the answer; else the script of that recipient; else the script for everybody; else ACCEPT;
3. a text that is to be accepted must be one that Twilio would take (a number, a sender, a body; 400 and a code if not);
4. `Answer.before` seconds pass; the text enters the book; latency and `Answer.after` pass; the answer leaves.

So a text is in the book *before* its answer is on the road, and stays there when the answer is lost. Waiting never
holds up other connections. Faults of the connection itself, before there is a request, are the `door`'s.

`FakeTwilioProcess` is the same thing in a process of its own, that answers as usual.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from enum import StrEnum
from http import HTTPStatus
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl, urlencode

from tests.sandbox.listener import Listener, Served, make_close_reset

E164 = re.compile(r"\+[1-9][0-9]{6,14}")
LONGEST_BODY = 1600
LONGEST_VALIDITY = 36_000
BAD_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)  # TLS application data, well-formed, but never encrypted

Operation = Literal["send", "list", "fetch", "numbers", "short_codes", "service", "unknown"]
Document = dict[str, Any]

# Lists of an account's senders: the key in the document, the field, the filter.
OWNED = {
    "numbers": ("incoming_phone_numbers", "phone_number", "PhoneNumber"),
    "short_codes": ("short_codes", "short_code", "ShortCode"),
}

# Twilio's sentences for the codes that are met most; the others get a plain one.
MESSAGES = {
    20003: "Authenticate",
    20404: "The requested resource was not found",
    20429: "Too Many Requests",
    20500: "Internal Server Error",
    21211: "The 'To' number is not a valid phone number.",
    21212: "The 'From' number is not a valid phone number, shortcode, or alphanumeric sender ID.",
    21602: "Message body is required.",
    21603: "A 'From' phone number is required.",
    21604: "A 'To' phone number is required.",
    21610: "Attempt to send to unsubscribed recipient",
    21611: "This 'From' number has exceeded the maximum number of queued messages",
    21614: "'To' number is not a valid mobile number",
    21617: "The concatenated message body exceeds the 1600 character limit.",
    21624: "Invalid validity period value",
}

# -------------------------------------------------------------------------------------------------------- records


@dataclass
class Message:
    """A text that was accepted, whatever became of its answer."""

    sid: str
    to: str
    from_: str | None
    messaging_service_sid: str | None
    body: str
    validity_period: int | None
    accepted_at: datetime
    status: str
    error_code: int | None
    segments: int


@dataclass
class Request:
    """A request as it was seen; `answer` is the kind of the answer that was chosen for it."""

    method: str
    path: str
    params: dict[str, str]
    user: str
    password: str = field(repr=False)
    operation: Operation = "unknown"
    answer: str = ""
    arrived: float = field(default_factory=time.monotonic)
    """In seconds of a clock that nobody simulates, to compare with others."""

    @property
    def to(self) -> str | None:
        """The recipient of a text, or the one that a list is filtered by."""
        return self.params.get("To")


class Ending(StrEnum):
    """How an answer leaves."""

    WHOLE = "whole"
    TRUNCATED = "truncated"  # half of the promised bytes, then the end
    CLOSED = "closed"  # the connection ends without an answer
    RESET = "reset"  # RST without an answer
    BAD_TLS_RECORD = "bad_tls_record"  # bytes that fail TLS's integrity check


class Door(StrEnum):
    """What happens to new connections."""

    OPEN = "open"
    SHUT = "shut"  # connection refused
    RESET = "reset"  # RST as soon as the connection stands; clients see it while they connect, or right after
    RESET_IN_HANDSHAKE = "reset_in_handshake"  # RST after the client's first bytes (TLS: its ClientHello)


@dataclass(frozen=True)
class Answer:
    """What the fake does with one request. Without a status it answers as Twilio would have."""

    kind: str
    accepted: bool = True
    status: int | None = None
    code: int = 20500
    message: str = ""
    retry_after: int | str | None = None
    rfc9457: bool = False
    body: str | None = None
    ending: Ending = Ending.WHOLE
    before: float = 0.0
    after: float = 0.0

    def delayed(self, *, before: float = 0.0, after: float = 0.0) -> Answer:
        """The same answer, with seconds to wait before a text is accepted, or after it and before the answer."""
        return replace(self, before=before, after=after)

    def error(self) -> Document:
        """The error as Twilio's JSON, in the old form or as an RFC 9457 problem."""
        message = self.message or MESSAGES.get(self.code, f"Error {self.code}")
        page = f"https://www.twilio.com/docs/errors/{self.code}"
        status = self.status or 500
        if self.rfc9457:
            return {"type": page, "title": message, "status": status, "code": self.code, "detail": message}
        return {"code": self.code, "message": message, "more_info": page, "status": status}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Answer:
        """An answer by its kind, with the fields that differ: `{"kind": "refuse", "code": 21610}`."""
        return replace(KINDS[document["kind"]], **document)


ACCEPT = Answer("accept")
REFUSE = Answer("refuse", accepted=False, status=400, code=21610)
THROTTLE = Answer("throttle", accepted=False, status=429, code=20429)
SERVER_ERROR = Answer("server_error", accepted=False, status=500)
SERVER_ERROR_AFTER_ACCEPTING = Answer("server_error_after_accepting", status=500)
RESET = Answer("reset", accepted=False, ending=Ending.RESET)
RESET_AFTER_ACCEPTING = Answer("reset_after_accepting", ending=Ending.RESET)
CLOSE_AFTER_ACCEPTING = Answer("close_after_accepting", ending=Ending.CLOSED)
BROKEN_JSON = Answer("broken_json", body='{"sid": "SM')
EMPTY_LIST = Answer("empty_list", body="[]")
TRUNCATED = Answer("truncated", ending=Ending.TRUNCATED)
BAD_TLS_RECORD = Answer("bad_tls_record", ending=Ending.BAD_TLS_RECORD)
SLOW_TO_ACCEPT = Answer("slow_to_accept", before=1.0)
SLOW_TO_ANSWER = Answer("slow_to_answer", after=1.0)

KINDS = {answer.kind: answer for answer in [*globals().values()] if isinstance(answer, Answer)}


def refuse(code: int, status: int = 400, message: str = "", *, rfc9457: bool = False) -> Answer:
    """Twilio says no: the text is not accepted."""
    return replace(REFUSE, code=code, status=status, message=message, rfc9457=rfc9457)


def throttle(retry_after: int | datetime | None = None, code: int = 20429) -> Answer:
    """429, not accepted; Retry-After in seconds, or as an HTTP-date when given an aware datetime."""
    return replace(THROTTLE, code=code, retry_after=_retry_after(retry_after))


def server_error(
    status: int = 500, code: int = 20500, *, accepted: bool = False, retry_after: int | datetime | None = None
) -> Answer:
    """5xx, before or after the text was accepted."""
    answer = SERVER_ERROR_AFTER_ACCEPTING if accepted else SERVER_ERROR
    return replace(answer, status=status, code=code, retry_after=_retry_after(retry_after))


def slow(seconds: float, *, accepted_first: bool = True) -> Answer:
    """A text that is accepted, with a wait after it (the answer is late) or before it (the acceptance is late too)."""
    return replace(SLOW_TO_ANSWER, after=seconds) if accepted_first else replace(SLOW_TO_ACCEPT, before=seconds)


def _retry_after(value: int | datetime | None) -> int | str | None:
    return format_datetime(value.astimezone(UTC), usegmt=True) if isinstance(value, datetime) else value


@dataclass
class _Script:
    answers: deque[Answer]
    then: Answer | None

    def next(self) -> Answer | None:
        return self.answers.popleft() if self.answers else self.then


# ------------------------------------------------------------------------------------------------------- the fake


class FakeTwilio(Served):
    """The fake; its book stays readable after its end."""

    ACCOUNT_SID: ClassVar[str] = "AC" + "0123456789abcdef" * 2
    AUTH_TOKEN: ClassVar[str] = "fedcba9876543210" * 2
    API_KEY_SID: ClassVar[str] = "SK" + "00112233445566778899aabbccddeeff"
    API_KEY_SECRET: ClassVar[str] = "fake-api-key-secret-of-32-letters"
    FROM_NUMBER: ClassVar[str] = "+15005550006"
    MESSAGING_SERVICE_SID: ClassVar[str] = "MG" + "0123456789abcdef" * 2
    running: ClassVar[dict[str, FakeTwilio]] = {}
    """Those of this process, by the URL that they answer at."""

    def __init__(
        self, *, latency: float = 0.0, port: int = 0, host: str = "127.0.0.1", tls: tuple[str, str] | None = None
    ) -> None:
        self.latency = latency
        self.tls = tls
        self.hook: Callable[[Request], Answer | None] | None = None
        self.list_lag = timedelta(0)
        """How long a text takes to show up in the list; Twilio's own list lags."""
        self._forget()
        self._server: _Server = _Server(self, host, port, tls)

    # ------------------------------------------------------------------------------------------ life and settings

    def start(self) -> Self:
        super().start()
        self.running[self.url] = self
        return self

    def stop(self) -> None:
        super().stop()
        self.running.pop(self.url, None)

    @property
    def url(self) -> str:
        """The base URL, for TWILIO_API_URL."""
        host, port = self._server.address
        return f"{'https' if self.tls else 'http'}://{host}:{port}"

    def environ(self) -> dict[str, str]:
        """The settings that point the program here."""
        return _environ(self.url, self.tls)

    # --------------------------------------------------------------------------------------------- what it has seen

    def stats(self) -> dict[str, int]:
        return {"requests": len(self.requests), "accepted": len(self.book), "connections": self._server.connections}

    def reset(self) -> None:
        """Forgets book, requests, scripts, faults and the simulated time."""
        self._forget()
        self.hook = None
        self.list_lag = timedelta(0)
        self._server.in_loop(self._server.reset)

    def _forget(self) -> None:
        self.book: list[Message] = []
        self.requests: list[Request] = []
        self.clock: Callable[[], datetime] = _now
        self.tells_date = True
        self.senders = {self.FROM_NUMBER, self.MESSAGING_SERVICE_SID}
        self._scripts: dict[tuple[Operation, str | None], _Script] = {}
        self._good_logins: int | None = None

    # ------------------------------------------------------------------------------------------------- what it shall do

    def script(
        self, *answers: Answer, to: str | None = None, on: Operation = "send", then: Answer | None = None
    ) -> None:
        """Gives these answers in this order to `to`, or to everybody; after them `then` for ever, or as usual.

        `on` names the operation: "send", "list", "fetch", "numbers", "short_codes" or "service". A new
        script replaces the former one of the same recipient and operation.
        """
        self._scripts[on, to] = _Script(deque(answers), then)

    def settle(self, to: str, status: str, error_code: int | None = None) -> None:
        """What became of the texts to this number so far, or of the text with this SID: delivered, failed and so on."""
        for message in self.book:
            if to in (message.to, message.sid):
                message.status, message.error_code = status, error_code
                message.from_ = message.from_ or self.FROM_NUMBER  # a service has chosen its sender by now

    def spoil_credentials(self, after: int = 0) -> None:
        """The credentials turn wrong after so many more good requests, until `reset`."""
        self._good_logins = after

    def door(self, state: Door, times: int | None = None) -> None:
        """What happens to the next `times` new connections, or to all from now on. Standing connections stay.

        What a shut door keeps out cannot be counted: it takes no `times`.
        """
        self._server.in_loop(lambda: self._server.set_door(state, times))

    def drop_connections(self) -> None:
        """Resets all standing connections: each client's next request must open a new one."""
        self._server.in_loop(self._server.drop)

    def forget_connections(self) -> int:
        """Resets each standing connection when its client next says something, as a NAT gateway; how many there are."""
        forgotten = list(self._server.open)
        for connection in forgotten:
            connection.data_received = lambda _, connection=connection: connection.reset()
        return len(forgotten)

    def travel_to(self, instant: datetime) -> None:
        """Sets the clock, which goes on from there; for another clock set `clock` itself."""
        offset = instant.astimezone(UTC) - _now()
        self.clock = lambda: _now() + offset

    # ---------------------------------------------------------------------------------------- from request to answer

    def decide(self, request: Request) -> Answer:
        """Chooses the answer; see the module's docstring for the order."""
        answer = self._refuse_caller(request) or self._scripted(request) or ACCEPT
        if answer.accepted and request.operation == "send":
            code = _fault_of(request.params)
            return refuse(code) if code else answer
        return answer

    def perform(self, request: Request, answer: Answer) -> tuple[int, Document]:
        """Does what was asked, if it is to be done, and returns status and JSON document of the answer."""
        status, document = self._operate(request) if answer.accepted else (500, Document())
        if answer.status is not None:
            status, document = answer.status, answer.error()
        return status, document

    def _refuse_caller(self, request: Request) -> Answer | None:
        if not self._credentials_are_good(request):
            return refuse(20003, 401)
        account = request.path.split("/")[3] if request.path.count("/") >= 3 else ""
        ours = request.operation == "service" or account.removesuffix(".json") == self.ACCOUNT_SID
        if request.operation == "unknown" or not ours:
            return refuse(20404, 404, f"The requested resource {request.path} was not found")
        return None

    def _credentials_are_good(self, request: Request) -> bool:
        """An account's own token, or an API key."""
        good = [(self.ACCOUNT_SID, self.AUTH_TOKEN), (self.API_KEY_SID, self.API_KEY_SECRET)]
        if (request.user, request.password) not in good or self._good_logins == 0:
            return False
        if self._good_logins:
            self._good_logins -= 1
        return True

    def _scripted(self, request: Request) -> Answer | None:
        answer = self.hook(request) if self.hook else None
        keys = [(request.operation, request.to), (request.operation, None)]
        for script in (self._scripts[key] for key in keys if key in self._scripts):
            answer = answer or script.next()
        return answer

    def _operate(self, request: Request) -> tuple[int, Document]:
        if request.operation == "send":
            return 201, _message_document(self._accept(request.params))
        if request.operation == "list":
            return 200, self._list(request)
        if request.operation in ("numbers", "short_codes"):
            return 200, self._owned(request)
        return self._fetch(request.path)

    def _accept(self, params: Mapping[str, str]) -> Message:
        service = params.get("MessagingServiceSid")
        message = Message(
            sid="SM" + uuid.uuid4().hex,
            to=params["To"],
            from_=params.get("From"),
            messaging_service_sid=service,
            body=params["Body"],
            validity_period=int(params["ValidityPeriod"]) if "ValidityPeriod" in params else None,
            accepted_at=self.clock(),
            status="accepted" if service else "queued",
            error_code=None,
            segments=1 + len(params["Body"]) // 161,  # of two at most, in GSM-7
        )
        self.book.append(message)
        return message

    def _owned(self, request: Request) -> Document:
        """The account's senders that match what is looked for."""
        key, field_name, filtered_by = OWNED[request.operation]
        wanted = request.params.get(filtered_by, "")
        kind = r"\+\d+" if request.operation == "numbers" else r"\d+"
        senders = [own for own in sorted(self.senders) if re.fullmatch(kind, own) and wanted in own]
        found = [{"sid": "PN" + "0" * 32, field_name: own} for own in senders]
        return {"page": 0, "page_size": 50, "uri": request.path, "next_page_uri": None, key: found}

    def _fetch(self, path: str) -> tuple[int, Document]:
        sid = path.rpartition("/")[2].removesuffix(".json")
        for message in self.book:
            if message.sid == sid:
                return 200, _message_document(message)
        if sid in self.senders:
            return 200, {"sid": sid, "account_sid": self.ACCOUNT_SID, "friendly_name": "Fake service"}
        return 404, refuse(20404, 404, f"The requested resource {path} was not found").error()

    def _list(self, request: Request) -> Document:
        """A page of texts, newest first. A page token holds the place in the book, so that new texts shift nothing."""
        params = request.params
        size = int(params.get("PageSize", 50))
        number = int(params.get("Page", 0))
        start = int(params["PageToken"].removeprefix("PA")) if "PageToken" in params else len(self.book)
        matching = (place for place in range(start - 1, -1, -1) if self._listed(self.book[place], params))
        places = list(islice(matching, size + 1))
        shown = places[:size]
        more = len(places) > size
        return {
            "uri": _page_uri(request.path, params, number, params.get("PageToken")),
            "first_page_uri": _page_uri(request.path, params, 0, None),
            "next_page_uri": _page_uri(request.path, params, number + 1, f"PA{shown[-1]}") if more else None,
            "previous_page_uri": None,
            "page": number,
            "page_size": size,
            "start": number * size,
            "end": number * size + max(len(shown) - 1, 0),
            "messages": [_message_document(self.book[place]) for place in shown],
        }

    def _listed(self, message: Message, params: Mapping[str, str]) -> bool:
        """Whether the filters let the text through. The fake takes the instant of acceptance for that of sending."""
        sent = message.accepted_at
        return (
            params.get("From") in (None, message.from_)
            and params.get("DateSent") in (None, sent.date().isoformat())
            and sent <= self.clock() - self.list_lag
        )


def _now() -> datetime:
    return datetime.now(UTC)


def _fault_of(params: Mapping[str, str]) -> int | None:
    """Twilio's code for what is wrong with a text, or nothing."""
    to, body, sender = params.get("To", ""), params.get("Body", ""), params.get("From")
    validity = params.get("ValidityPeriod", "1")
    faults = {
        21604: not to,
        21211: not E164.fullmatch(to),
        21603: not sender and not params.get("MessagingServiceSid"),
        21212: sender and not E164.fullmatch(sender),
        21602: not body,
        21617: len(body) > LONGEST_BODY,
        21624: not validity.isdecimal() or not 1 <= int(validity) <= LONGEST_VALIDITY,
    }
    return next((code for code, is_so in faults.items() if is_so), None)


def _page_uri(path: str, params: Mapping[str, str], page: int, token: str | None) -> str:
    query = {**params, "Page": str(page), "PageToken": token}
    return f"{path}?{urlencode({key: value for key, value in query.items() if value is not None})}"


def _message_document(message: Message) -> Document:
    """Twilio's JSON of a message. A text of a Messaging Service has no sender and no segments until it is sent."""
    uri = f"/2010-04-01/Accounts/{FakeTwilio.ACCOUNT_SID}/Messages/{message.sid}"
    moment = format_datetime(message.accepted_at)
    waiting = message.status in ("queued", "accepted")
    return {
        "account_sid": FakeTwilio.ACCOUNT_SID,
        "api_version": "2010-04-01",
        "body": message.body,
        "date_created": moment,
        "date_sent": None if waiting else moment,
        "date_updated": moment,
        "direction": "outbound-api",
        "error_code": message.error_code,
        "error_message": None,
        "from": message.from_,
        "messaging_service_sid": message.messaging_service_sid,
        "num_media": "0",
        "num_segments": "0" if message.status == "accepted" else str(message.segments),
        "price": None,
        "price_unit": "USD",
        "sid": message.sid,
        "status": message.status,
        "subresource_uris": {"media": f"{uri}/Media.json"},
        "to": message.to,
        "uri": f"{uri}.json",
    }


def _environ(url: str, tls: tuple[str, str] | None) -> dict[str, str]:
    settings = {
        "TWILIO_ACCOUNT_SID": FakeTwilio.ACCOUNT_SID,
        "TWILIO_AUTH_TOKEN": FakeTwilio.AUTH_TOKEN,
        "TWILIO_FROM_NUMBER": FakeTwilio.FROM_NUMBER,
        "TWILIO_API_URL": url,
    }
    return settings | ({"REQUESTS_CA_BUNDLE": tls[0]} if tls else {})


# ------------------------------------------------------------------------------------------------ sockets and HTTP


class _Server(Listener):
    """Twilio's door: HTTP on connections that get through it."""

    def __init__(self, fake: FakeTwilio, host: str, port: int, tls: tuple[str, str] | None) -> None:
        super().__init__(host, port)
        self.fake = fake
        self._door = Door.OPEN
        self._times: int | None = None
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*tls)

    async def welcome(self, client: socket.socket) -> None:
        door = self._next_door()
        if door is Door.OPEN:
            await self.loop.connect_accepted_socket(lambda: _Connection(self), client, ssl=self._tls)
            return
        if door is Door.RESET_IN_HANDSHAKE:
            await self.loop.sock_recv(client, 64)
        make_close_reset(client)
        client.close()

    def reset(self) -> None:
        self.connections = 0
        self.set_door(Door.OPEN, None)

    def set_door(self, state: Door, times: int | None) -> None:
        if state is Door.SHUT and self._door is not Door.SHUT:
            self.refuse()
        if state is not Door.SHUT and self._door is Door.SHUT:
            self.listen()
        self._door, self._times = state, times

    def _next_door(self) -> Door:
        if self._times == 0:
            self._door, self._times = Door.OPEN, None
        if self._times:
            self._times -= 1
        return self._door


class _Connection(asyncio.Protocol):
    """One client: reads its requests one after the other and writes the answers."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._fake = server.fake
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._server.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._serve_next()

    def reset(self) -> None:
        if self._socket.fileno() >= 0:
            make_close_reset(self._socket)
        self._transport.abort()

    def _serve_next(self) -> None:
        split = self._buffer.find(b"\r\n\r\n")
        if split < 0:
            return
        line, headers = _parse_head(bytes(self._buffer[:split]))
        end = split + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < end:
            return
        content = bytes(self._buffer[split + 4 : end])
        del self._buffer[:end]
        method, target, _ = line.split(" ", 2)
        self._serve(self._understand(method, target, headers, content))

    def _understand(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> Request:
        path, _, query = target.partition("?")
        form = content.decode() if method == "POST" else query
        user, password = _credentials(headers.get("authorization", ""))
        return Request(
            method=method,
            path=path,
            params=dict(parse_qsl(form, keep_blank_values=True)),
            user=user,
            password=password,
            operation=_operation(method, path),
        )

    def _serve(self, request: Request) -> None:
        answer = self._fake.decide(request)
        request.answer = answer.kind
        self._fake.requests.append(request)
        self._after(answer.before, lambda: self._perform(request, answer))

    def _perform(self, request: Request, answer: Answer) -> None:
        """Accepts even when the client is gone by now: Twilio has the request, and would."""
        status, document = self._fake.perform(request, answer)
        self._after(answer.after + self._fake.latency, lambda: self._reply(answer, status, document))

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        if seconds > 0:
            self._server.loop.call_later(seconds, action)
        else:
            action()

    def _reply(self, answer: Answer, status: int, document: Document) -> None:
        if self._transport.is_closing():
            return
        if answer.ending is Ending.RESET:
            self.reset()
        elif answer.ending is Ending.CLOSED:
            self._transport.close()
        elif answer.ending is Ending.BAD_TLS_RECORD:
            os.write(self._socket.fileno(), BAD_RECORD)
            self._transport.abort()
        else:
            body = json.dumps(document) if answer.body is None else answer.body
            self._write(status, body, answer)

    def _write(self, status: int, body: str, answer: Answer) -> None:
        content = body.encode()
        head = [
            f"HTTP/1.1 {status} {_reason(status)}",
            f"Content-Type: application/{'problem+' if answer.rfc9457 else ''}json",
            f"Content-Length: {len(content)}",
        ]
        if self._fake.tells_date:
            head.append(f"Date: {format_datetime(self._fake.clock().astimezone(UTC), usegmt=True)}")
        if status == 401:
            head.append('WWW-Authenticate: Basic realm="Twilio API"')
        if answer.retry_after is not None:
            head.append(f"Retry-After: {answer.retry_after}")
        truncated = answer.ending is Ending.TRUNCATED
        self._transport.write(
            "\r\n".join([*head, "", ""]).encode() + content[: len(content) // 2 if truncated else None]
        )
        if truncated:
            self._transport.close()


def _parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    line, *rest = head.decode("latin-1").split("\r\n")
    pairs = (header.split(":", 1) for header in rest)
    return line, {name.lower(): value.strip() for name, value in pairs}


def _credentials(authorization: str) -> tuple[str, str]:
    """User and password of HTTP basic authentication; empty when there are none."""
    with contextlib.suppress(binascii.Error, UnicodeDecodeError):
        user, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        return user, password
    return "", ""


def _operation(method: str, path: str) -> Operation:
    """What /2010-04-01/Accounts/{sid}… is asked for."""
    match path.split("/"):
        case ["", "2010-04-01", "Accounts", _, "Messages.json"]:
            return {"POST": "send", "GET": "list"}.get(method, "unknown")  # type: ignore[return-value]
        case ["", "2010-04-01", "Accounts", _, "Messages", _] if method == "GET":
            return "fetch"
        case ["", "2010-04-01", "Accounts", _, "IncomingPhoneNumbers.json"] if method == "GET":
            return "numbers"
        case ["", "2010-04-01", "Accounts", _, "SMS", "ShortCodes.json"] if method == "GET":
            return "short_codes"
        case ["", "v1", "Services", _] if method == "GET":
            return "service"
    return "unknown"


def _reason(status: int) -> str:
    with contextlib.suppress(ValueError):
        return HTTPStatus(status).phrase
    return "Unknown"


# ------------------------------------------------------------------------------------------- a process of its own


class FakeTwilioProcess:
    """The fake in a process of its own: the program under test gets all of this one's time."""

    def __init__(self, *, latency: float = 0.0, tls: tuple[str, str] | None = None) -> None:
        self._tls = tls
        self._pipe, self._far_end = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_serve, args=(self._far_end, latency, tls), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._far_end.close()  # else nobody would learn that the process cannot start
        self.url: str = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send("stop")
        self._process.join()

    def environ(self) -> dict[str, str]:
        return _environ(self.url, self._tls)

    def stats(self) -> dict[str, int]:
        self._pipe.send("stats")
        found: dict[str, int] = self._pipe.recv()
        return found

    def reset(self) -> None:
        self._pipe.send("reset")
        self._pipe.recv()


def _serve(pipe: Connection, latency: float, tls: tuple[str, str] | None) -> None:
    """Tells the URL, and calls the methods that it is told, until that was `stop`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the Ctrl-C of the terminal is the other process's alone
    with FakeTwilio(latency=latency, tls=tls) as fake:
        pipe.send(fake.url)
        while (name := pipe.recv()) != "stop":
            pipe.send(getattr(fake, name)())


def self_signed_certificate(folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> tuple[str, str]:
    """Makes certificate and key of these names with the openssl command, for `tls=`."""
    files = str(folder / "cert.pem"), str(folder / "key.pem")
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    about = ["-subj", "/CN=localhost", "-addext", f"subjectAltName={names}", "-out", files[0], "-keyout", files[1]]
    subprocess.run(["openssl", "req", *kind, *about], check=True, capture_output=True)
    return files
