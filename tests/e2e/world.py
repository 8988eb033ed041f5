"""The outside of the cluster test: the fake Twilio, the habit tracker's database, and two ports nobody should reach.

It runs where pods can reach it, and is told what to do by lines of JSON: see `World`. It ends when its input does.

    $TEST_WORLD python -m tests.e2e.world
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.sandbox import database as sandbox
from tests.sandbox.fake_twilio import Answer, FakeTwilio, refuse
from tests.sandbox.people import NO_LOGS, Outcome, Person, fill, next_midnight, people

DATABASE = "habit_tracker"  # the name in k8s/configmap.yaml
STAND = timedelta(minutes=15)
"""Whose midnight is nearer than this is left out: by the time of the run they may be due for another rule."""

CONTROLS: dict[str, Callable[..., None]] = {
    "script": lambda fake, then: fake.script(then=Answer.from_json(then)),
    "spoil_credentials": FakeTwilio.spoil_credentials,
    "travel_to": lambda fake, instant: fake.travel_to(datetime.fromisoformat(instant)),
}


class World:
    """What the test may ask of the outside. Each public method is one call; its answer is made of JSON's types."""

    def __init__(self, stack: ExitStack) -> None:
        twilio_host, mysql_host = os.environ["TWILIO_TEST_HOST"], os.environ["MYSQL_TEST_HOST"]
        tls = os.environ["TWILIO_TEST_CERT"], os.environ["TWILIO_TEST_KEY"]
        sandbox._free_port = lambda: 3306
        self._server = stack.enter_context(sandbox.Server(options=["--bind-address=0.0.0.0"]))
        self._database = sandbox.Database(self._server)
        self._database.name = DATABASE
        stack.enter_context(self._database)
        self._twilio = stack.enter_context(FakeTwilio(host=twilio_host, port=443, tls=tls))
        for address in ((twilio_host, 80), (mysql_host, 443)):
            stack.enter_context(socket.create_server(address))  # the kernel itself completes connections
        self._newcomers = itertools.count(150)

    # --- people and texts

    def morning(self) -> list[list[Any]]:
        """A day on which nobody was texted yet. Returns who is due: id, phone number and rule each."""
        for table in ("Log", "Habit", "User"):
            self._database.execute(f"DELETE FROM `{table}`")
        if self._database.rows("SHOW TABLES LIKE 'HabitNotification'"):
            self._database.execute("DELETE FROM HabitNotification")
        self._twilio.reset()
        self._twilio.latency = 0.0
        now = datetime.now(UTC)
        everybody = [person for person in map(_anywhere, people(now)) if not person.zone or _stands(person, now)]
        for person in everybody:
            if person.error_code and person.phone_number:
                self._twilio.script(to=person.phone_number, then=refuse(person.error_code))
        ids = fill(self._database, everybody)
        return [[i, person.phone_number, person.rule] for i, person in ids.items() if person.texted]

    def newcomer(self) -> list[Any]:
        """One more person who is due, as `morning` returns them."""
        phone = f"+12025550{next(self._newcomers)}"
        return [self._database.insert_user("Newcomer", phone, _standing_zone()), phone, NO_LOGS]

    def book(self) -> list[list[str]]:
        """The texts that the fake took: recipient and body each."""
        return [[message.to, message.body] for message in self._twilio.book]

    def requests(self) -> int:
        """How many requests the fake saw."""
        return len(self._twilio.requests)

    def latency(self, seconds: float) -> None:
        """How long the fake waits before each answer; a text is in the book before that."""
        self._twilio.latency = seconds

    def script(self, phones: list[str], *answers: dict[str, Any]) -> None:
        """The fake answers the next texts to each of them so, as in `Answer.from_json`; after that as usual."""
        for phone in phones:
            self._twilio.script(*map(Answer.from_json, answers), to=phone)

    def twilio(self, control: str, told: dict[str, Any]) -> None:
        """Anything else that the fake is told."""
        CONTROLS[control](self._twilio, **told)

    # --- the database

    def rows(self, sql: str) -> list[list[Any]]:
        return [list(row) for row in self._database.rows(sql)]

    def administrator(self, statements: str) -> None:
        """Run statements of a document as the database's administrator."""
        for statement in re.split(r";\s*(?:\n|$)", statements):
            if statement.strip():
                self._database.execute(statement)

    def stop_database(self) -> None:
        self._server.stop()

    def start_database(self) -> None:
        self._server.start()


def _stands(person: Person, now: datetime) -> bool:
    """Whether the person's day lasts for as long as a test."""
    return next_midnight([person], now) > now + STAND


def _standing_zone() -> str:
    """A zone where the day lasts for as long as a test."""
    now, names = datetime.now(UTC), ("UTC", "Asia/Tokyo", "America/Denver")
    return next(name for name in names if _stands(_somebody(name), now))


def _anywhere(person: Person) -> Person:
    """Whom Twilio refuses is there at any hour: the tests count on them."""
    return replace(person, time_zone=_standing_zone()) if person.error_code else person


def _somebody(zone: str) -> Person:
    return Person("", None, zone, Outcome.ON_TRACK)


def main() -> None:
    """Answer calls, `["name", arguments...]` each, until the input ends."""
    threading.current_thread().name = "calls"
    with ExitStack() as stack:
        world = World(stack)
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            try:
                answer = {"answer": getattr(world, name)(*arguments)}
            except Exception as error:  # noqa: BLE001 - whatever it is, the test must hear of it
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main()
