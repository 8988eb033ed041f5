"""Shards: runs side by side that share the users out among them. Everybody is in exactly one, and texted once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from zlib import crc32

import pytest

import habit_notifier
from tests.runs.statements import CLAIM
from tests.runs.town import NOON, Town, judging, numbers, opened
from tests.sandbox.proxy import Proxy, Verdict

USERS = 60
EVERYBODY = numbers(USERS)


@pytest.fixture(params=["INT", "CHAR(36)"])
def variant(request: pytest.FixtureRequest) -> dict[str, str]:
    return {"id_type": request.param}


@pytest.fixture
def town(town: Town) -> Town:
    """Users who are all due, those without a phone number left out of account."""
    town.database.insert_users([("No phone", None, "UTC"), ("Blank", " ", "UTC")])
    town.people(USERS)
    return town


def ids(town: Town) -> list[Any]:
    return [user for (user,) in town.sql("SELECT id FROM User WHERE phone_number LIKE '+%' ORDER BY id")]


def shard(index: int, count: int) -> dict[str, str]:
    return {"SHARD_COUNT": str(count), "JOB_COMPLETION_INDEX": str(index)}


def own_of(user: object, index: int, count: int) -> bool:
    return crc32(str(user).encode()) % count == index


@pytest.mark.constants(PAGE_USERS=4)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 1_000])
def test_every_user_is_in_exactly_one_shard(town: Town, count: int) -> None:
    users = ids(town)
    expected = {index: [user for user in users if own_of(user, index, count)] for index in range(count)}
    settled = [index for index, users in expected.items() if users]
    shards = range(count) if count < 10 else {*settled[::8], 0, 999}
    for index in shards:
        with opened(town.environ | shard(index, count)) as job:
            total = judging(job.tracker)
            for _ in range(3):  # the pages start elsewhere
                pages = list(job.tracker.pages(total))
                seen = sorted(user.id for page in pages for user in page.users)
                assert seen == expected[index]
                assert total == len(seen) == sum(page.users_in_all for page in pages)


def test_the_pages_of_a_shard_start_anywhere_among_its_users(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start in the table's first quarter only would starve the others' ends, when no run gets to the end."""
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", 2)
    with opened(town.environ | shard(1, 4)) as job:
        total = judging(job.tracker)
        firsts = set()
        for start in range(total - 1):
            monkeypatch.setattr("random.randrange", lambda _, n=start: n)
            firsts.add(next(job.tracker.pages(total)).users[0].id)
        assert len(firsts) == total - 1


def test_shards_side_by_side_text_everybody_once(town: Town) -> None:
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda index: town.run(**shard(index, 4)), range(4)))
    assert codes == [0, 0, 0, 0]
    assert town.served == town.numbers("sent") == EVERYBODY


@pytest.mark.constants(DATABASE_PATIENCE=0.1)
def test_a_shard_that_fails_is_made_up_for_by_itself(town: Town, proxy: Proxy) -> None:
    own = sum(own_of(user, 1, 3) for user in ids(town))
    lost = proxy.on_query(CLAIM, Verdict.CUT_BEFORE, nth=4, forever=True)
    weak = proxy.environ() | {"SEND_CONCURRENCY": "1"}
    assert [town.run(**shard(0, 3)), town.run(**shard(1, 3) | weak), town.run(**shard(2, 3))] == [0, 1, 0]
    assert lost.hits
    assert USERS - own < len(town.twilio.book) < USERS
    assert town.run(**shard(1, 3)) == 0
    assert f"INFO Found {own} users with phone numbers" in town.log
    assert town.served == EVERYBODY


def test_another_number_of_shards_on_the_same_day_texts_nobody_twice(town: Town) -> None:
    for count in (3, 2, 1):
        for index in range(count):
            assert town.run(**shard(index, count)) == 0
    assert town.served == EVERYBODY


def test_each_shard_settles_and_purges_the_rows_of_its_own_users(town: Town) -> None:
    assert town.run() == 0
    later = NOON + timedelta(days=91)
    left = USERS
    for index in range(2):
        own = sum(own_of(user, index, 2) for user in ids(town))
        assert town.run(later, **shard(index, 2)) == 0
        assert f"INFO Deleted {own} rows of the ledger that were older than 90 days" in town.log
        assert town.said(f"INFO Looked up {own} earlier texts")
        left -= own
        assert sum(day < later.date() for (day,) in town.rows("local_day")) == left
    assert left == 0


def test_a_row_of_the_future_fails_its_shard_and_stops_no_other(town: Town) -> None:
    assert town.run(NOON, "--settle") == 0  # makes the ledger
    user = next(user for user in ids(town) if own_of(user, 1, 2))
    town.database.insert_row(user, NOON + timedelta(days=45))
    assert [town.run(**shard(index, 2)) for index in range(2)] == [0, 1]
    assert town.said("ERROR 1 users are barred by rows of the future: delete them") == 1
    assert len(town.served) == USERS - 1
    assert town.run() == 2
