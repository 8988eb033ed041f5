"""Shards: one, two and four runs side by side on this machine, each with its share of the users."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tests.bench.evaluation import NO_TWILIO, OLD_LOGS
from tests.bench.measure import Bench, Figures, in_turn, median, ratio
from tests.bench.population import Population
from tests.bench.sending import LATENCY, afresh
from tests.sandbox.fake_twilio import FakeTwilioProcess

COUNTS = (1, 2, 4)
CONCURRENCY = 8  # of each shard, the default
TEXTS = 1_600
TURNS = 3


@dataclass(frozen=True)
class Shards:
    """One row of the table: what so many shards do in a second, and in times of what one does."""

    count: int
    users: float
    to_one: float
    texts: float
    texts_to_one: float


def run(bench: Bench, users: int) -> list[Shards]:
    """Evaluation of so many users, and sending."""
    with bench.server() as server, server.database() as database, FakeTwilioProcess(latency=LATENCY) as twilio:
        bench.say(f"filling in {users:,} users for the shards")
        Population(database).grow(users, OLD_LOGS)
        alone = bench.environ(database.environ(), NO_TWILIO)
        texting = bench.environ(database.environ(), twilio.environ(), {"SEND_CONCURRENCY": str(CONCURRENCY)})

        def evaluate(count: int) -> Callable[[], Figures]:
            return lambda: {"speed": users / _slowest(bench, alone, count, "evaluate")}

        def send(count: int) -> Callable[[], Figures]:
            run = partial(_slowest, bench, texting, count, "send", TEXTS // count, "with")
            return afresh(database, twilio, TEXTS, lambda: {"seconds": run()})

        evaluated = in_turn(TURNS, {str(count): evaluate(count) for count in COUNTS})
        sent = in_turn(TURNS, {str(count): send(count) for count in COUNTS})
    return [_row(bench, count, evaluated, sent) for count in COUNTS]


def _slowest(bench: Bench, environ: dict[str, str], count: int, role: str, *arguments: object) -> float:
    """The seconds from the start of all shards to the end of the last one."""
    shards = [environ | {"SHARD_COUNT": str(count), "JOB_COMPLETION_INDEX": str(index)} for index in range(count)]
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda shard: bench.child(shard, role, *arguments), shards))
    return time.perf_counter() - began


def _row(bench: Bench, count: int, evaluated: dict[str, list[Figures]], sent: dict[str, list[Figures]]) -> Shards:
    def to_one(found: dict[str, list[Figures]]) -> float:
        return ratio(*([each["speed"] for each in found[key]] for key in (str(count), "1")))

    users, texts = median(evaluated[str(count)], "speed"), median(sent[str(count)], "speed")
    row = Shards(count, users, to_one(evaluated), texts, to_one(sent))
    bench.say(f"{count} shards: {row.to_one:.2f} x the users and {row.texts_to_one:.2f} x the texts of one")
    return row
