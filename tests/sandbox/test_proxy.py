"""The proxy must do to a connection exactly what it was told, and nothing else."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pymysql
import pytest

from tests.sandbox.database import Database, Server
from tests.sandbox.proxy import Proxy, Verdict
from tests.sandbox.sockets import SocketServer, wait_for

CLIENT_SSL = 0x0800
GREETING = b"\x0a5.5.5-fake\0" + bytes(4) + b"saltsalt" + b"\0" + struct.pack("<H", 0xFFFF) + bytes(20)


def packet(sequence: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes((sequence,)) + payload


def query(text: str) -> bytes:
    return packet(0, b"\x03" + text.encode())


class Echo(SocketServer):
    """A server that greets like MySQL and then sends back whatever it gets; `received` is what reached it."""

    def __init__(self) -> None:
        super().__init__()
        self.received = bytearray()
        self.ended: list[str] = []

    def serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(packet(0, GREETING))
        try:
            while data := client.recv(1 << 16):
                self.received += data
                client.sendall(data)
            self.ended.append("closed")
        except OSError:
            self.ended.append("reset")


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address) as running:
        yield running


@contextmanager
def connected(proxy: Proxy) -> Iterator[socket.socket]:
    """A connection that has been greeted."""
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert len(read(client, len(GREETING) + 4)) == len(GREETING) + 4
        yield client


def read(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := client.recv(count - len(data))):
        data += more
    return data


def ask(client: socket.socket, message: bytes) -> bytes:
    client.sendall(message)
    return read(client, len(message))


def assert_silent(client: socket.socket) -> None:
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(5)


# ---------------------------------------------------------------------------------------------------- passing on


def test_everything_is_passed_on_unchanged_both_ways(proxy: Proxy, echo: Echo) -> None:
    message = b"".join(packet(number % 256, bytes([number % 251]) * (number * 37)) for number in range(200))
    with connected(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(message,))
        sender.start()
        assert read(client, len(message)) == message
        sender.join()
    assert bytes(echo.received) == message


def test_a_packet_that_comes_byte_by_byte_is_one_packet(proxy: Proxy) -> None:
    with connected(proxy) as client:
        for byte in query("SELECT 1"):
            client.sendall(bytes((byte,)))
            time.sleep(0.001)
        assert read(client, 13) == query("SELECT 1")
    assert proxy.queries == 1


def test_only_queries_are_counted(proxy: Proxy) -> None:
    with connected(proxy) as client:
        ask(client, packet(1, b"\x03 not the start of a command") + packet(0, b"\x0e") + packet(0, b"") + query("x"))
    assert proxy.queries == 1


def test_an_end_of_one_side_is_an_end_of_the_other(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy):
        pass
    wait_for(lambda: echo.ended == ["closed"])
    wait_for(lambda: not proxy._server.open)


def test_a_target_that_is_away_resets_the_client(proxy: Proxy, echo: Echo) -> None:
    echo.close()
    with pytest.raises(ConnectionResetError), socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        client.recv(1)


@pytest.mark.parametrize(("hide", "offered"), [(True, 0), (False, CLIENT_SSL)])
def test_tls_is_hidden_unless_told_otherwise(echo: Echo, hide: bool, offered: int) -> None:
    with (
        Proxy(echo.address, hide_tls=hide) as proxy,
        socket.create_connection((proxy.host, proxy.port), timeout=5) as client,
    ):
        greeting = read(client, len(GREETING) + 4)
    place = 4 + GREETING.index(b"\xff\xff")
    capabilities = struct.unpack_from("<H", greeting, place)[0]
    assert capabilities == 0xFFFF & ~CLIENT_SSL | offered
    sent = packet(0, GREETING)
    assert (greeting[:place], greeting[place + 2 :]) == (sent[:place], sent[place + 2 :])


def test_after_a_request_for_tls_nothing_is_held_or_judged(proxy: Proxy) -> None:
    proxy.on_query("x", Verdict.CUT_BEFORE)
    with connected(proxy) as client:
        message = packet(1, struct.pack("<I", CLIENT_SSL) + bytes(28)) + b"\x16\x03\x01\xff\xff" + query("x")
        assert ask(client, message) == message


# --------------------------------------------------------------------------------------------------------- delay


def test_a_round_trip_takes_the_delay_twice(echo: Echo) -> None:
    with Proxy(echo.address, delay=0.1) as proxy, connected(proxy) as client:
        start = time.monotonic()
        ask(client, query("x"))
        assert 0.2 <= time.monotonic() - start < 0.38


def test_a_delay_does_not_limit_how_much_is_on_its_way(echo: Echo) -> None:
    """A hundred packets of their own, of a megabyte together: one after the other they would take two seconds."""
    message = query("x" * 10_000)
    with Proxy(echo.address, delay=0.01) as proxy, connected(proxy) as client:
        start = time.monotonic()
        for _ in range(100):
            client.sendall(message)
            time.sleep(0.0005)
        assert read(client, 100 * len(message)) == 100 * message
        assert time.monotonic() - start < 1


def test_what_is_delayed_still_arrives_before_the_end(echo: Echo) -> None:
    with Proxy(echo.address, delay=0.03) as proxy:
        with connected(proxy) as client:
            client.sendall(query("last words"))
        wait_for(lambda: echo.ended)
        assert bytes(echo.received) == query("last words")


# ---------------------------------------------------------------------------------------------------- whole faults


def test_silence_takes_connections_but_passes_nothing_on_until_restored(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as standing:
        proxy.silence()
        standing.sendall(query("x"))
        with socket.create_connection((proxy.host, proxy.port), timeout=5) as new:
            assert_silent(new)
            assert_silent(standing)
            assert not echo.received
            proxy.restore()
            assert read(standing, 6) == query("x")
            assert len(read(new, len(GREETING) + 4)) == len(GREETING) + 4


# --------------------------------------------------------------------------------------------------------- verdicts


def test_cut_within_passes_half_of_the_answer_on(proxy: Proxy, echo: Echo) -> None:
    rule = proxy.on_query("INSERT", Verdict.CUT_WITHIN)
    with connected(proxy) as client:
        client.sendall(query("INSERT 12"))
        assert read(client, 100) == query("INSERT 12")[:7]
    wait_for(lambda: echo.ended == ["reset"])
    assert rule.hits == 1


@pytest.mark.parametrize(("verdict", "reached"), [(Verdict.HANG_BEFORE, b""), (Verdict.HANG_AFTER, query("x"))])
def test_hanging_leaves_the_client_waiting_on_that_connection_only(
    proxy: Proxy, echo: Echo, verdict: Verdict, reached: bytes
) -> None:
    rule = proxy.on_query("x", verdict)
    with connected(proxy) as client:
        client.sendall(query("x"))
        assert rule.happened.wait(5)
        assert_silent(client)
        assert bytes(echo.received) == reached
        with connected(proxy) as other:
            assert ask(other, query("x")) == query("x")
    wait_for(lambda: len(echo.ended) == 2)


def outcome(proxy: Proxy, text: str) -> bool:
    """Whether a query is answered, on a connection of its own."""
    with connected(proxy) as client:
        try:
            return ask(client, query(text)) == query(text)
        except ConnectionResetError:
            return False


def test_the_hook_sees_each_query_and_comes_before_the_rules(proxy: Proxy) -> None:
    seen = []

    def hook(text: str) -> Verdict:
        seen.append(text)
        return Verdict.CUT_BEFORE if text == "two" else Verdict.PASS

    proxy.hook = hook
    rule = proxy.on_query("", Verdict.CUT_BEFORE, nth=2)
    assert [outcome(proxy, text) for text in ("one", "two", "three", "four")] == [True, False, False, True]
    assert seen == ["one", "two", "three", "four"]
    assert rule.hits == 1


# ---------------------------------------------------------------------------------------------------- a real database


def connect_through(proxy: Proxy, database: Database, **settings: Any) -> Any:
    environ = database.environ()
    settings |= {"user": environ["DB_USER"], "password": environ["DB_PASSWORD"], "database": environ["DB_NAME"]}
    return pymysql.connect(host=proxy.host, port=proxy.port, autocommit=True, connect_timeout=5, **settings)


def numbers(database: Database) -> list[int]:
    return [n for (n,) in database.rows("SELECT n FROM Numbers ORDER BY n")]


@pytest.fixture
def table(database: Database) -> Database:
    database.execute("CREATE TABLE Numbers (n INT PRIMARY KEY)")
    return database


@pytest.mark.parametrize(
    ("verdict", "kept"), [(Verdict.CUT_BEFORE, [1]), (Verdict.CUT_WITHIN, [1, 2]), (Verdict.CUT_AFTER, [1, 2])]
)
def test_a_real_insert_is_executed_exactly_when_the_cut_comes_after_it(
    table: Database, server: Server, verdict: Verdict, kept: list[int]
) -> None:
    with Proxy((server.host, server.port)) as proxy, closing(connect_through(proxy, table)) as connection:
        proxy.on_query("INSERT", verdict, nth=2)
        cursor = connection.cursor()
        cursor.execute("INSERT INTO Numbers VALUES (1)")
        with pytest.raises(pymysql.err.OperationalError) as error:
            cursor.execute("INSERT INTO Numbers VALUES (2)")
        assert error.value.args[0] == 2013
    assert numbers(table) == kept


def test_the_errors_of_a_real_server_are_counted(table: Database, server: Server) -> None:
    with Proxy((server.host, server.port)) as proxy, closing(connect_through(proxy, table)) as connection:
        cursor = connection.cursor()
        cursor.execute("INSERT INTO Numbers VALUES (1)")
        for statement in ("INSERT INTO Numbers VALUES (1)", "SELECT nothing FROM Numbers", "SELECT 1 FROM Nowhere"):
            with pytest.raises(pymysql.err.MySQLError):
                cursor.execute(statement)
        assert proxy.mysql_errors == {1062: 1, 1054: 1, 1146: 1}
