"""Shards: runs side by side that share the users out among them. Everybody is in exactly one, and texted once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import pytest

import habit_notifier
from habit_notifier import Settings, Stop, Store
from tests.runs import program
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import FakeTwilio
from tests.sandbox.proxy import Proxy, Verdict

NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)
USERS = 60
EVERYBODY = Counter(f"+1202555{n:04}" for n in range(USERS))


@pytest.fixture(params=["INT", "CHAR(36)"])
def database(server: Server, request: pytest.FixtureRequest) -> Iterator[Database]:
    """Users who are all due, those without a phone number left out of account."""
    with server.database(id_type=request.param) as database:
        database.insert_users([("No phone", None, "UTC"), ("Blank", " ", "UTC")])
        database.insert_users((f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(USERS))
        yield database


def ids(database: Database) -> list[Any]:
    return [user for (user,) in database.rows("SELECT id FROM User WHERE phone_number LIKE '+%' ORDER BY id")]


def shard(environ: dict[str, str], index: int, count: int) -> dict[str, str]:
    return environ | {"SHARD_COUNT": str(count), "JOB_COMPLETION_INDEX": str(index)}


def run(environ: dict[str, str], at: datetime = NOON) -> int:
    return program.run(environ, at=at)


def texts(twilio: FakeTwilio) -> Counter[str]:
    return Counter(message.to for message in twilio.book)


def judging(store: Store) -> int:
    """Let the store judge by the days at NOON; how many users are its own."""
    zones = store.zones()
    store.judge_by(habit_notifier.days_by_zone(zones, store._settings, NOON), NOON)
    return sum(zone.users for zone in zones)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 1_000])
def test_every_user_is_in_exactly_one_shard(
    database: Database, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 4)
    expected: dict[int, list[Any]] = {index: [] for index in range(count)}
    for user in ids(database):
        expected[crc32(str(user).encode()) % count].append(user)
    shards = range(count) if count < 10 else {*(i for i, users in expected.items() if users), 0, 999}
    for index in shards:
        with Store(Settings.read(shard(environ, index, count)), Stop()) as store:
            total = judging(store)
            for _ in range(3):  # the pages start elsewhere
                pages = list(store.pages(total))
                seen = sorted(user.id for page in pages for user in page.users)
                assert seen == expected[index]
                assert total == len(seen) == sum(page.users_in_all for page in pages)


@pytest.mark.usefixtures("database")
def test_the_pages_of_a_shard_start_anywhere_among_its_users(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start in the table's first quarter only would starve the others' ends, when no run gets to the end."""
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 2)
    with Store(Settings.read(shard(environ, 1, 4)), Stop()) as store:
        total = judging(store)
        firsts = set()
        for start in range(total - 1):
            monkeypatch.setattr("random.randrange", lambda _, n=start: n)
            firsts.add(next(store.pages(total)).users[0].id)
        assert len(firsts) == total - 1


def test_shards_side_by_side_text_everybody_once(
    database: Database, environ: dict[str, str], twilio: FakeTwilio
) -> None:
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda index: run(shard(environ, index, 4)), range(4)))
    assert codes == [0, 0, 0, 0]
    assert texts(twilio) == EVERYBODY
    assert database.rows(f"SELECT state, COUNT(*) FROM {LEDGER} GROUP BY state") == [("sent", USERS)]


def test_a_shard_that_fails_is_made_up_for_by_itself(
    database: Database,
    environ: dict[str, str],
    twilio: FakeTwilio,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(habit_notifier, "DATABASE_PATIENCE", 0.1)
    own = [user for user in ids(database) if crc32(str(user).encode()) % 3 == 1]
    with Proxy((database.server.host, database.server.port)) as proxy:
        lost = proxy.on_query("INSERT INTO HabitNotification (", Verdict.CUT_BEFORE, nth=4, forever=True)
        weak = environ | {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port), "SEND_CONCURRENCY": "1"}
        codes = [run(shard(environ, 0, 3)), run(shard(weak, 1, 3)), run(shard(environ, 2, 3))]
    assert lost.hits
    assert codes == [0, 1, 0]
    assert USERS - len(own) < len(twilio.book) < USERS
    caplog.set_level(logging.INFO)
    assert run(shard(environ, 1, 3)) == 0
    assert f"Found {len(own)} users with phone numbers" in caplog.messages
    assert texts(twilio) == EVERYBODY


@pytest.mark.usefixtures("database")
def test_another_number_of_shards_on_the_same_day_texts_nobody_twice(
    environ: dict[str, str], twilio: FakeTwilio
) -> None:
    for count in (3, 2, 1):
        for index in range(count):
            assert run(shard(environ, index, count)) == 0
    assert texts(twilio) == EVERYBODY


def test_each_shard_settles_and_purges_the_rows_of_its_own_users(
    database: Database, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert run(environ) == 0
    later = NOON + timedelta(days=91)
    left = USERS
    for index in range(2):
        own = sum(crc32(str(user).encode()) % 2 == index for user in ids(database))
        caplog.clear()
        assert run(shard(environ, index, 2), later) == 0
        assert f"Deleted {own} rows of the ledger that were older than 90 days" in caplog.messages
        assert any(line.startswith(f"Looked up {own} earlier texts") for line in caplog.messages)
        left -= own
        old = database.rows(f"SELECT COUNT(*) FROM {LEDGER} WHERE local_day < %s", (later.date(),))
        assert old == [(left,)]
    assert left == 0
