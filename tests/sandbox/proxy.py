"""A TCP proxy in front of a database, for what networks and servers do to a program that only wanted to commit.

    with Proxy(("127.0.0.1", 3306)) as proxy:
        lost = proxy.on_query("INSERT INTO HabitNotification", Verdict.CUT_AFTER)   # executed, its answer lost
        run_the_program(environ=database.environ() | proxy.environ())
        assert lost.hits == 1

It can cut what stands, refuse or silence the server, make each way longer, and judge each query before it is passed on.
Of MySQL's protocol it knows the frame of a packet (three bytes of length, one of sequence) and that a command begins a
new sequence with its first byte saying which: 3 is a query. To TLS it would be blind, so it hides from clients that the
server offers it. With `hide_tls=False` they may use it; then all works but the verdicts.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.sandbox.listener import Listener, Served, make_close_reset

COM_QUERY = 3
CLIENT_SSL = 0x08  # in the second byte of the capabilities, of the server's greeting and of the client's answer
PROTOCOL_10 = 10
SSL_REQUEST_LENGTH = 32
ERROR = 0xFF


class Verdict(Enum):
    """What becomes of a query."""

    PASS = auto()
    CUT_BEFORE = auto()  # the server never sees it, and both sides lose the connection
    CUT_WITHIN = auto()  # the server has executed it; the client gets half of the answer and then the end
    CUT_AFTER = auto()  # the server has executed it, its answer is lost, and both sides lose the connection
    HANG_BEFORE = auto()  # the server never sees it; the client waits
    HANG_AFTER = auto()  # the server has executed it; the client waits


@dataclass
class Rule:
    """A verdict on the nth query that holds a text, or on each from the nth on."""

    text: bytes
    verdict: Verdict
    nth: int
    forever: bool
    seen: int = 0
    hits: int = 0
    happened: threading.Event = field(default_factory=threading.Event)
    """Set when the verdict was executed: for all but the two BEFORE, when the server's answer had come."""

    def judge(self, query: bytes) -> bool:
        """Whether it is this query's turn."""
        if self.text not in query:
            return False
        self.seen += 1
        return self.seen == self.nth or (self.forever and self.seen > self.nth)


class Proxy(Served):
    def __init__(self, target: tuple[str, int], *, delay: float = 0.0, hide_tls: bool = True) -> None:
        self.target = target
        self.hide_tls = hide_tls
        self.delay = delay
        """Seconds that each way takes: half a round trip. What is on its way does not wait for another."""
        self.rules: list[Rule] = []
        self.hook: Callable[[str], Verdict] | None = None
        """Judges each query, in the proxy's thread, before the rules do."""
        self.queries = 0
        self.mysql_errors: Counter[int] = Counter()
        """The errors that the server answered with, by number."""
        self.silent = False
        self._refusing = False
        self._server: _Server = _Server(self)

    def environ(self) -> dict[str, str]:
        """The settings that lead to the database through it."""
        return {"DB_HOST": self.host, "DB_PORT": str(self.port)}

    def on_query(self, text: str, verdict: Verdict, *, nth: int = 1, forever: bool = False) -> Rule:
        """Executes the verdict on the nth query from now on that holds the text; `forever`, on each later one too."""
        rule = Rule(text.encode(), verdict, nth, forever)
        self.rules.append(rule)
        return rule

    def cut(self) -> None:
        """Resets all connections, on both sides."""
        self._server.in_loop(self._server.drop)

    def refuse(self) -> None:
        """Refuses new connections until `restore`."""
        self._server.in_loop(self._refuse)

    def lose(self) -> None:
        """The database is gone until `restore`: what stands is cut, and new connections are refused."""
        self.refuse()
        self.cut()

    def silence(self) -> None:
        """From now until `restore` connections are taken and kept, but nothing is passed on, either way."""
        self.silent = True

    def restore(self) -> None:
        """Takes connections again, and passes on what silence held back. Rules, hook and delay stay."""
        self._server.in_loop(self._restore)

    def judge(self, query: bytes) -> tuple[Verdict, Rule | None]:
        """The hook's verdict, else that of the first rule whose turn it is."""
        self.queries += 1
        verdict = self.hook(query.decode(errors="replace")) if self.hook else Verdict.PASS
        if verdict is not Verdict.PASS:
            return verdict, None
        due = [rule for rule in self.rules if rule.judge(query)]
        return (due[0].verdict, due[0]) if due else (Verdict.PASS, None)

    def _refuse(self) -> None:
        if not self._refusing:
            self._server.refuse()
        self._refusing = True

    def _restore(self) -> None:
        if self._refusing:
            self._server.listen()
        self._refusing = self.silent = False
        for link in list(self._server.open):
            link.flush()


class _Server(Listener):
    def __init__(self, proxy: Proxy) -> None:
        super().__init__("127.0.0.1", 0)
        self.proxy = proxy

    async def welcome(self, client: socket.socket) -> None:
        """Connects to the target; a client whose target is away is reset."""
        link = _Link(self)
        try:
            await self.loop.create_connection(lambda: link.up, *self.proxy.target)
        except OSError:
            make_close_reset(client)
            raise
        await self.loop.connect_accepted_socket(lambda: link.down, client)


class _Link:
    """A client's connection, and the one to the database that belongs to it."""

    def __init__(self, server: _Server) -> None:
        self.server = server
        self.proxy = server.proxy
        self.up = _Side(self, self._from_database)
        self.down = _Side(self, self._from_client)
        self.up.other, self.down.other = self.down, self.up
        self._packets = _Packets()
        self._awaiting: tuple[Verdict, Rule | None] | None = None
        self._hanging = False
        self._greeted = False

    def reset(self) -> None:
        self.up.reset()
        self.down.reset()

    def flush(self) -> None:
        """Passes on what silence held back."""
        self.up.flush()
        self.down.flush()

    def _from_client(self, data: bytes) -> None:
        for packet in self._packets.feed(data):
            verdict, rule = self.proxy.judge(packet[5:]) if _is_query(packet) else (Verdict.PASS, None)
            if verdict in (Verdict.CUT_BEFORE, Verdict.HANG_BEFORE):
                self._execute(verdict, rule)
            elif verdict is not Verdict.PASS:
                self._awaiting = verdict, rule
            if not self._hanging:
                self.up.send(packet)

    def _from_database(self, data: bytes) -> None:
        """An answer means that the query was executed."""
        if number := _error_number(data):
            self.proxy.mysql_errors[number] += 1
        if self._awaiting:
            self._execute(*self._awaiting, answer=data)
        if not self._greeted and self.proxy.hide_tls:
            data = _without_tls(data)
        self._greeted = True
        if not self._hanging:
            self.down.send(data)

    def _execute(self, verdict: Verdict, rule: Rule | None, answer: bytes = b"") -> None:
        if self._hanging:
            return
        self._hanging = True
        if verdict is Verdict.CUT_WITHIN:
            self.down.send(answer[: (len(answer) + 1) // 2])
            self.up.reset()  # and so the end of the other side, in its turn
        if verdict in (Verdict.CUT_BEFORE, Verdict.CUT_AFTER):
            self.reset()
        if rule:
            rule.hits += 1
            rule.happened.set()


class _Side(asyncio.Protocol):
    """One of a link's two sockets, and the queue of what is on its way to it; None ends the connection."""

    other: _Side

    def __init__(self, link: _Link, received: Callable[[bytes], None]) -> None:
        self._link = link
        self._received = received
        self._queue: deque[tuple[float, bytes | None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.alive = True
        self._link.server.open.add(self._link)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.alive = False
        self.other.send(None)
        if not self.other.alive:
            self._link.server.open.discard(self._link)

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def send(self, data: bytes | None) -> None:
        """Writes the data when the way's delay has passed."""
        self._queue.append((self._link.server.loop.time() + self._link.proxy.delay, data))
        self.flush()

    def flush(self) -> None:
        """Writes what has arrived by now, and comes back for the next."""
        now = self._link.server.loop.time()
        while self._may_write() and self._queue and self._queue[0][0] <= now:
            _, data = self._queue.popleft()
            self._transport.close() if data is None else self._transport.write(data)
        if self._may_write() and self._queue and not self._timer:
            self._timer = self._link.server.loop.call_at(self._queue[0][0], self._ring)

    def reset(self) -> None:
        if self.alive:
            make_close_reset(self._transport.get_extra_info("socket"))
            self._transport.abort()

    def _may_write(self) -> bool:
        return self.alive and not self._link.proxy.silent and not self._transport.is_closing()

    def _ring(self) -> None:
        self._timer = None
        self.flush()


class _Packets:
    """Cuts what a client sends into MySQL's packets; after a request for TLS there are none to be seen."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._encrypted = False

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are complete by now."""
        self._buffer += data
        packets = []
        while not self._encrypted and len(self._buffer) >= self._next_end():
            packet = bytes(self._buffer[: self._next_end()])
            del self._buffer[: len(packet)]
            self._encrypted = _asks_for_tls(packet)
            packets.append(packet)
        if self._encrypted and self._buffer:
            packets.append(bytes(self._buffer))
            self._buffer.clear()
        return packets

    def _next_end(self) -> int:
        return 4 + int.from_bytes(self._buffer[:3], "little")


def _is_query(packet: bytes) -> bool:
    return packet[3:5] == bytes((0, COM_QUERY))


def _asks_for_tls(packet: bytes) -> bool:
    return packet[3] == 1 and len(packet) == 4 + SSL_REQUEST_LENGTH and bool(packet[5] & CLIENT_SSL)


def _error_number(data: bytes) -> int | None:
    """The number of the error, if the server sent one and nothing else."""
    is_whole = len(data) > 7 and int.from_bytes(data[:3], "little") + 4 == len(data)
    return int.from_bytes(data[5:7], "little") if is_whole and data[4] == ERROR else None


def _without_tls(greeting: bytes) -> bytes:
    """The greeting without the flag for TLS; it stands after version, thread id, eight bytes of salt and a filler."""
    version_end = greeting.find(0, 5)
    place = version_end + 1 + 4 + 8 + 1 + 1
    if greeting[4:5] != bytes((PROTOCOL_10,)) or not 0 < version_end < place < len(greeting):
        return greeting
    return greeting[:place] + bytes((greeting[place] & ~CLIENT_SSL,)) + greeting[place + 1 :]
