"""The proxy in front of the database, with two things more: it notes MySQL's errors, and can cut within an answer."""

from __future__ import annotations

import socket
from collections import Counter

from tests.sandbox.fake_twilio import make_close_reset
from tests.sandbox.proxy import Proxy, Rule, Verdict, _Link, _Server

ERROR = 0xFF


class HalfAnswer(Rule):
    """A rule that passes half of the answer on, then cuts."""


class Wire(Proxy):
    """A proxy that is also a witness: `errors` counts MySQL's error packets by number."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.errors: Counter[int] = Counter()
        self._server = _WireServer(self, "127.0.0.1", 0)

    def cut_within_answer(self, text: str, nth: int) -> Rule:
        """Cut in the middle of the answer to the nth query that holds the text."""
        rule = HalfAnswer(text.encode(), Verdict.CUT_AFTER, nth, forever=False)
        self.rules.append(rule)
        return rule


class _WireServer(_Server):
    proxy: Wire

    async def welcome(self, client: socket.socket) -> None:
        link = _WireLink(self)
        try:
            await self.loop.create_connection(lambda: link.up, *self.proxy.target)
        except OSError:
            make_close_reset(client)
            raise
        await self.loop.connect_accepted_socket(lambda: link.down, client)


class _WireLink(_Link):
    proxy: Wire

    def _from_database(self, data: bytes) -> None:
        if number := error_number(data):
            self.proxy.errors[number] += 1
        if self._awaiting and isinstance(self._awaiting[1], HalfAnswer):
            self.down.send(data[: max(1, len(data) // 2)])
        super()._from_database(data)


def error_number(data: bytes) -> int | None:
    """The number of the error, if the data is one of MySQL's error packets and nothing else."""
    is_error = len(data) > 7 and data[4] == ERROR and int.from_bytes(data[:3], "little") + 4 == len(data)
    return int.from_bytes(data[5:7], "little") if is_error else None
