"""The life of a server in a thread of this process: the fake Twilio's and the proxy's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Self


def make_close_reset(client: socket.socket) -> None:
    """Closing will discard what is unsent and send RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Listener:
    """A listening socket on an event loop in a thread of its own, and the connections that it took."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.connections = 0
        self.open: set[Any] = set()
        """What stands; each has a `reset` method, and leaves the set by itself when it has ended."""
        self._welcomes: set[asyncio.Task[None]] = set()

    async def welcome(self, client: socket.socket) -> None:
        """What to do with a new connection."""
        raise NotImplementedError

    def start(self) -> None:
        """Listens; with port 0, `address` holds the one that was free."""
        self._hold()
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._live(ready),), name="sandbox", daemon=True)
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Resets all connections and ends the thread."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    def in_loop(self, action: Callable[[], None]) -> None:
        """Runs the action in the loop's thread, which may be this one, and waits for it."""
        if threading.current_thread() is self._thread:
            action()
            return

        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self.loop).result()

    def listen(self) -> None:
        self._socket.listen(1024)
        self.loop.add_reader(self._socket, self._take)

    def refuse(self) -> None:
        """Refuses connections, but keeps the port."""
        self._close()
        self._hold()

    def drop(self) -> None:
        for connection in list(self.open):
            connection.reset()

    def _hold(self) -> None:
        """Binds the port without listening on it: connections are refused."""
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(self.address)
        self.address = self._socket.getsockname()

    def _close(self) -> None:
        self.loop.remove_reader(self._socket)
        self._socket.close()

    async def _live(self, ready: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(_ignore_lost_clients)
        self._end = asyncio.Event()
        self.listen()
        ready.set()
        await self._end.wait()
        self._close()
        for task in self._welcomes:
            task.cancel()
        while self.open or self._welcomes:
            self.drop()
            await asyncio.sleep(0)

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                client, _ = self._socket.accept()
                self.connections += 1
                client.setblocking(False)
                task = self.loop.create_task(self._greet(client))
                self._welcomes.add(task)
                task.add_done_callback(self._welcomes.discard)

    async def _greet(self, client: socket.socket) -> None:
        try:
            await self.welcome(client)
        except (OSError, asyncio.CancelledError):  # the other side went away, or the listener ends
            client.close()


def _ignore_lost_clients(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)


class Served:
    """What a `Listener` serves, in a thread of this process from `start` (or `with`) until `stop`."""

    _server: Listener

    def start(self) -> Self:
        """Listens; back when connections are taken."""
        self._server.start()
        return self

    def stop(self) -> None:
        """Ends all connections at once, if it runs."""
        self._server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def host(self) -> str:
        return self._server.address[0]

    @property
    def port(self) -> int:
        return self._server.address[1]
