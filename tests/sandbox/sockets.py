"""Servers of a few lines, for what no fake of a whole service does; and patience for what another thread will do."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from tests.sandbox.listener import make_close_reset


def wait_for(condition: Callable[[], object], every: float = 0.005) -> None:
    """Until it is true."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "this never came true"
        time.sleep(every)


class SocketServer:
    """Serves each connection in a thread of its own, from `with` until its end; then nothing of it is left."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self.port = self.address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._take, daemon=True)]
        self._clients: list[socket.socket] = []

    def serve(self, client: socket.socket) -> None:
        """What to do with a connection, which is closed afterwards. That the other side goes away is no fault."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def close(self) -> None:
        """Takes no more connections: they are refused."""
        self.over.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _take(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self._clients.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,), daemon=True))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self.serve(client)


class Canned(SocketServer):
    """Answers whatever comes with the same bytes, drips the rest, and closes."""

    def __init__(self, answer: bytes, *, drip: bytes = b"") -> None:
        super().__init__()
        self.answer, self.drip, self.seconds = answer, drip, 0.02
        self.requests: list[bytes] = []

    def serve(self, client: socket.socket) -> None:
        self.requests.append(read_request(client))
        client.sendall(self.answer)
        for byte in self.drip:
            time.sleep(self.seconds)
            client.sendall(bytes([byte]))


class ConnectProxy(SocketServer):
    """A proxy for HTTPS: it learns the target of each CONNECT, and then passes bytes, ends and resets on."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def serve(self, client: socket.socket) -> None:
        host, port = read_request(client).split()[1].decode().split(":")
        self.targets.append(f"{host}:{port}")
        with socket.create_connection((host, int(port))) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()


def read_request(client: socket.socket) -> bytes:
    """A request's head, and its body if it tells how long that is."""
    data, head = b"", b""
    while not head or len(data) < len(head) + _length(head):
        if not (part := client.recv(65_536)):
            break
        data += part
        head = data[: data.find(b"\r\n\r\n") + 4] if b"\r\n\r\n" in data else b""
    return data


def _length(head: bytes) -> int:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return int(found[1]) if found else 0


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        with suppress(OSError):
            make_close_reset(sink)
            sink.shutdown(socket.SHUT_RDWR)
