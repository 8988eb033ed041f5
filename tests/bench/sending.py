"""Sending: texts a second against a Twilio that takes 100 ms for each, and what the ledger costs of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.bench.measure import Bench, Figures, in_turn, median, ratio
from tests.bench.population import Population
from tests.sandbox.database import LEDGER, Database
from tests.sandbox.fake_twilio import FakeTwilioProcess
from tests.sandbox.proxy import Proxy

LATENCY = 0.1  # seconds that Twilio takes for a text
ROUND_TRIP = 0.005  # seconds to the distant database and back
CONCURRENCIES = (1, 8, 32, 64)
SECONDS = 5  # that one measurement takes, about
TURNS = 3


@dataclass(frozen=True)
class Speed:
    """One row of the table: texts a second."""

    concurrency: int
    round_trip: float
    """Seconds to the database and back."""
    texts: float
    without_ledger: float
    bare: float
    to_bare: float
    price: float
    """The share of the speed that the ledger costs."""
    cpu: float
    """Seconds of the program's CPU for a text."""

    @property
    def to_limit(self) -> float:
        """The speed, in times of concurrency / latency."""
        return self.texts / (self.concurrency / LATENCY)


def run(bench: Bench) -> list[Speed]:
    """Every concurrency on a local database, and 32 on a distant one."""
    with bench.server() as server, server.database() as database, FakeTwilioProcess(latency=LATENCY) as twilio:
        Population(database).add_lapsed(int(max(CONCURRENCIES) / LATENCY * SECONDS))
        environ = bench.environ(database.environ(), twilio.environ())
        speeds = [_measure(bench, database, twilio, environ, concurrency) for concurrency in CONCURRENCIES]
        with Proxy((server.host, server.port), delay=ROUND_TRIP / 2) as proxy:
            distant = environ | {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port)}
            speeds += [_measure(bench, database, twilio, distant, 32, ROUND_TRIP)]
    return speeds


def afresh(
    database: Database, twilio: FakeTwilioProcess, texts: int, send: Callable[[], Figures]
) -> Callable[[], Figures]:
    """What measures the speed of sending so many texts, on a day on which nobody was texted yet."""

    def measure() -> Figures:
        database.execute(f"DROP TABLE IF EXISTS {LEDGER}")
        twilio.reset()
        figures = send()
        if (accepted := twilio.stats()["accepted"]) != texts:
            raise RuntimeError(f"{texts} texts were to be sent, {accepted} were")
        return figures | {"speed": texts / figures["seconds"]}

    return measure


def _measure(
    bench: Bench,
    database: Database,
    twilio: FakeTwilioProcess,
    environ: dict[str, str],
    concurrency: int,
    round_trip: float = 0.0,
) -> Speed:
    texts = int(concurrency / LATENCY * SECONDS)
    child = partial(bench.child, environ | {"SEND_CONCURRENCY": str(concurrency)})
    contenders = {
        "with": partial(child, "send", texts, "with"),
        "without": partial(child, "send", texts, "without"),
        "bare": partial(child, "bare", texts, concurrency),
    }
    found = in_turn(TURNS, {name: afresh(database, twilio, texts, send) for name, send in contenders.items()})
    speeds = {name: [each["speed"] for each in figures] for name, figures in found.items()}
    speed = Speed(
        concurrency=concurrency,
        round_trip=round_trip,
        texts=median(found["with"], "speed"),
        without_ledger=median(found["without"], "speed"),
        bare=median(found["bare"], "speed"),
        to_bare=ratio(speeds["with"], speeds["bare"]),
        price=1 - ratio(speeds["with"], speeds["without"]),
        cpu=median(found["with"], "cpu") / texts,
    )
    bench.say(
        f"{concurrency} at a time, {round_trip * 1000:.0f} ms to the database: {speed.texts:.0f} texts/s, "
        f"{speed.to_limit:.2f} x limit, {speed.to_bare:.2f} x bare, ledger {speed.price:.1%}"
    )
    return speed
