"""What is measured in a process of its own: `python -m tests.bench.child ROLE ARGUMENTS` prints one line of JSON.

Settings come by the environment, as for the program itself. Only what a role says is changed in it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from itertools import chain, pairwise
from pathlib import Path
from unittest.mock import patch

import pymysql
import pytz
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client
from typing_extensions import override

import habit_notifier as notifier
from tests.bench.population import NOW

Figures = dict[str, float]


def peak_mib() -> float:
    """The most memory that this process has had, in MiB."""
    status = Path("/proc/self/status").read_text()  # getrusage would tell of the parent's memory before exec
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


class Measured(notifier.Job):
    """A job without what comes after the texts."""

    @override
    def delete_old_rows(self) -> None:
        """Delete nothing."""


def evaluate() -> Figures:
    """The whole job, but Twilio is not asked and the due users are counted instead of texted."""
    due_users = 0

    class Counted(Measured):
        @override
        def deliver(self, pages: Iterator[list[notifier.Reminder]]) -> None:
            nonlocal due_users
            due_users += sum(map(len, pages))

    _run(Counted)
    return {"due": due_users, "mib": peak_mib()}


def loop(sample: int) -> Figures:
    """The plain way: one query for each user and day. Of the users only every so many, that there are `sample`."""
    connection = pymysql.connect(
        host=os.environ["DB_HOST"],
        port=int(os.environ["DB_PORT"]),
        user=os.environ["DB_USER"],
        password=os.environ["DB_PASSWORD"],
        database=os.environ["DB_NAME"],
        autocommit=True,
        init_command="SET time_zone = '+00:00'",
    )
    logged = """SELECT COUNT(*) FROM Log l JOIN Habit h ON h.id = l.habit_id
                WHERE h.user_id = %s AND l.created_at >= %s AND l.created_at < %s"""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, name, phone_number, time_zone FROM User WHERE phone_number IS NOT NULL")
        users = list(cursor.fetchall())
        users = users[:: max(1, len(users) // sample)]
        started = time.perf_counter()
        due = 0
        for user_id, _name, _phone, zone in users:
            if zone not in pytz.all_timezones_set:
                continue
            today = NOW.astimezone(pytz.timezone(zone)).replace(hour=0, minute=0, second=0, tzinfo=None)
            bounds = [pytz.timezone(zone).localize(today - timedelta(days=n)).astimezone(pytz.utc) for n in (2, 1, 0)]
            counts = []
            for start, end in pairwise(bounds):
                cursor.execute(logged, (user_id, start, end))
                counts.append(cursor.fetchone()[0])  # type: ignore[index]
            due += not counts[1]
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "users": len(users), "due": due}


class WithoutLedger(notifier.Ledger):
    """A ledger whose statements for texts are left out."""

    @override
    def history(
        self, user_ids: Sequence[notifier.UserId], since: date = date.min
    ) -> dict[notifier.UserId, list[notifier.Row]]:
        """Nobody was texted."""
        return {}

    @override
    def claim(self, reminders: Sequence[notifier.Reminder], now: datetime) -> dict[notifier.UserId, list[notifier.Row]]:
        """Each claim stands, and is the only one."""
        self.claims |= {reminder: notifier.claim_of(reminder, now) for reminder in reminders}
        return {reminder.user.id: [self.claims[reminder]] for reminder in reminders}

    @override
    def record(self, answers: Mapping[notifier.Reminder, notifier.Answer], now: datetime) -> None:
        """Write nothing."""

    @override
    def release(self, reminders: Iterable[notifier.Reminder]) -> None:
        """Delete nothing."""


def send(texts: int, ledger: str) -> Figures:
    """The whole job, for so many texts; with `without` the ledger's statements are left out."""
    figures = Figures()

    class Some(Measured):
        @override
        def deliver(self, pages: Iterator[list[notifier.Reminder]]) -> None:
            if first := next(pages, None):  # the first page is not what is measured here
                deliver = super().deliver
                figures["seconds"] = _timed(lambda: deliver(_cut(chain([first], pages), texts)))

    cpu = time.process_time()
    _run(Some, WithoutLedger if ledger == "without" else notifier.Ledger)
    figures["cpu"] = time.process_time() - cpu
    return figures


def bare(texts: int, threads: int) -> Figures:
    """Nothing but twilio's client, one for each of so many threads."""
    clients = threading.local()

    def post(number: int) -> str:
        if not hasattr(clients, "client"):
            clients.client = Client(  # type: ignore[no-untyped-call]
                os.environ["TWILIO_ACCOUNT_SID"],
                os.environ["TWILIO_AUTH_TOKEN"],
                http_client=TwilioHttpClient(timeout=10),
            )
            clients.client.api.base_url = os.environ["TWILIO_API_URL"]
        message = clients.client.messages.create(
            to=f"+1{2_000_000_000 + number}",
            from_=os.environ["TWILIO_FROM_NUMBER"],
            body="Hi User, no habits logged in the past 2 days. Reply STOP to opt out.",
        )
        return str(message.sid)

    with ThreadPoolExecutor(threads) as pool:
        seconds = _timed(lambda: list(pool.map(post, range(texts))))
    return {"seconds": seconds}


def _cut(pages: Iterator[list[notifier.Reminder]], texts: int) -> Iterator[list[notifier.Reminder]]:
    """The pages up to so many texts."""
    for page in pages:
        yield page[:texts]
        texts -= len(page)
        if texts <= 0:
            return


def _run(job: type[notifier.Job], ledger: type[notifier.Ledger] = notifier.Ledger) -> None:
    probe = patch.object(notifier.Twilio, "probe", lambda _: NOW)  # its clock is that of the population
    with patch.multiple(notifier, Job=job, Ledger=ledger), probe:
        code = notifier.main([], os.environ, lambda: NOW)
    if code:
        sys.exit(f"the program ended with exit code {code}")


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    """Take the part that the arguments name."""
    role, *arguments = sys.argv[1:]
    roles: dict[str, Callable[[], Figures]] = {
        "evaluate": evaluate,
        "loop": lambda: loop(int(arguments[0])),
        "send": lambda: send(int(arguments[0]), arguments[1]),
        "bare": lambda: bare(int(arguments[0]), int(arguments[1])),
    }
    print(json.dumps(roles[role]()))


if __name__ == "__main__":
    main()
