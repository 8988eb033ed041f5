"""The faults: each acts through the fake Twilio, the wire to the database, the server or the operating system, and
counts how often it really hit, as seen from there.

A fault is armed for one group of runs. `post` is asked about every text that Twilio is to take, `query` hears of every
statement before the server does; both are called in threads that must not wait for each other.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pymysql

from tests.faults.program import Actor, ProcessActor
from tests.faults.scene import SceneClock
from tests.runs.statements import CLAIM, CLAIM_CHECK, HISTORY, OUTCOMES, PAGE, RECORD, RELEASE, SETTLE, SLICE, ZONES
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import Answer, Door, FakeTwilio, Request
from tests.sandbox.proxy import Proxy, Rule, Verdict

TARGETS = {
    "learn": OUTCOMES,
    "settle": SETTLE,
    "zones": ZONES,
    "slice": SLICE,
    "page": PAGE,
    "history": HISTORY,
    "claim": CLAIM,
    "read back": CLAIM_CHECK,
    "record": RECORD,
    "release": RELEASE,
    "any": "",
}
"""The program's statements, by words that tell them apart."""
LEDGER_KEY = re.compile(r"\((?:user_id = )?(\d+|'[0-9a-f-]{36}')(?:,| AND local_day =) '(\d{4}-\d\d-\d\d)'")


@dataclass
class Group:
    """What faults may lay hands on: one group of runs at the same time, and all that is around them."""

    server: Server
    database: Database
    wire: Proxy
    twilio: FakeTwilio
    clock: SceneClock
    accounts: list[str]
    come_and_go: Callable[[], set[str]]
    """Lets some people sign up and others leave; their keys."""
    old_tokens: list[str]
    """Of the rows that earlier groups left."""
    actors: list[Actor] = field(default_factory=list)
    extra_wait: float = 0.0
    """Seconds in which something may still happen after the last run's end."""


class Fault:
    """Something that goes wrong. `kind` is the row of the table that it counts in."""

    kind: str
    skew = timedelta()
    """How far the program's clock is off."""
    needs_thread = False
    """Whether a process of its own would not notice."""
    slack = timedelta()
    """By how much texts may come closer, since the program cannot know better."""
    unseen = timedelta()
    """By how much they may be on another day there, since it cannot even know that."""
    passing: frozenset[str] | set[str] = frozenset()
    """The keys of people who came or went in mid-run."""

    def __init__(self) -> None:
        self.hits = 0

    def __str__(self) -> str:
        told = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in ("hits", "kind")}
        return f"{self.kind} {told}"

    def begin(self, group: Group) -> None:
        """The group is about to start."""
        self._group = group

    def post(self, request: Request, number: int) -> Answer | None:  # noqa: ARG002
        """The answer to the text of that number, if it is not to be the usual one."""
        return None

    def query(self, text: str) -> Verdict:  # noqa: ARG002
        """What becomes of the statement."""
        return Verdict.PASS

    def end(self) -> None:
        """All runs of the group are over."""

    def in_background(self, action: Callable[[], None], after: float = 0.0) -> None:
        """Do something in a thread of its own, some seconds from now."""

        def act() -> None:
            time.sleep(after)
            action()

        self._background = threading.Thread(target=act, daemon=True)
        self._background.start()

    def join_background(self) -> None:
        if background := getattr(self, "_background", None):
            background.join()


class BadAnswers(Fault):
    """Twilio gives a bad answer to some texts in a row."""

    def __init__(self, kind: str, answer: Answer, first: int, count: int) -> None:
        super().__init__()
        self.kind, self.answer, self.first, self.count = kind, replace(answer, kind=kind), first, count

    def post(self, request: Request, number: int) -> Answer | None:  # noqa: ARG002
        if not self.first <= number < self.first + self.count:
            return None
        self.hits += 1
        waits = time.monotonic() + self.answer.before + self.answer.after + 0.05
        self._group.extra_wait = max(self._group.extra_wait, waits)
        return self.answer


class BadDoor(Fault):
    """Twilio's door refuses or resets connections, from the start or once the program has looked in."""

    def __init__(self, kind: str, door: Door, times: int | None, *, after_probe: bool, opens_after: int) -> None:
        super().__init__()
        self.kind, self.door, self.times = kind, door, times
        self.after_probe, self.opens_after = after_probe, opens_after
        self._claims = self._releases = 0
        self._closed_at: int | None = None

    def begin(self, group: Group) -> None:
        super().begin(group)
        if not self.after_probe:
            self._close()

    def query(self, text: str) -> Verdict:
        if CLAIM in text and self._closed_at is None:
            self._close()
        if RELEASE in text:
            self._releases += 1
            if self._releases == self.opens_after:
                self._open()
        return Verdict.PASS

    def end(self) -> None:
        self._open()
        if self.door is Door.SHUT:  # nobody but the client sees that; its words are the operating system's
            self.hits += sum("Connection refused" in actor.run.output for actor in self._group.actors)

    def _close(self) -> None:
        self._closed_at = self._group.twilio.stats()["connections"]
        self._group.twilio.door(self.door, self.times)
        self._group.twilio.drop_connections()

    def _open(self) -> None:
        if self._closed_at is None or self.opens_after < 0:
            return
        self.opens_after = -1
        self._group.twilio.door(Door.OPEN)
        if self.door is not Door.SHUT:
            came = self._group.twilio.stats()["connections"] - self._closed_at
            self.hits += came if self.times is None else min(self.times, came)


class WrongCredentials(Fault):
    """The credentials turn wrong after some requests."""

    kind = "credentials that turn wrong"

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def begin(self, group: Group) -> None:
        super().begin(group)
        self._seen = len(group.twilio.requests)
        group.twilio.spoil_credentials(self.after)

    def end(self) -> None:
        self.hits += sum(request.answer == "refuse" for request in self._group.twilio.requests[self._seen :])
        self._group.twilio.spoil_credentials(1_000_000)


class Cut(Fault):
    """The connection is lost before a statement arrives, in the middle of its answer, or after it was executed; or
    the statement or its answer never arrives and the connection stays."""

    def __init__(self, kind: str, verdict: Verdict, target: str, nth: int) -> None:
        super().__init__()
        self.kind, self.verdict, self.target, self.nth = kind, verdict, target, nth
        self._rule: Rule | None = None

    def begin(self, group: Group) -> None:
        super().begin(group)
        self._rule = group.wire.on_query(TARGETS[self.target], self.verdict, nth=self.nth)

    def end(self) -> None:
        if self._rule:
            self.hits += self._rule.hits


class AtQuery(Fault):
    """Something that happens when the nth statement of a kind comes by."""

    def __init__(self, target: str, nth: int) -> None:
        super().__init__()
        self.target, self.nth = target, nth
        self._seen = 0

    def query(self, text: str) -> Verdict:
        if TARGETS[self.target] not in text:
            return Verdict.PASS
        self._seen += 1
        return self.strike(text) if self._seen == self.nth else Verdict.PASS

    def strike(self, text: str) -> Verdict:
        """Do it; what becomes of the statement."""
        raise NotImplementedError


class KilledConnection(AtQuery):
    """An administrator, or the server, kills the program's connections."""

    kind = "connection killed by the server"

    def strike(self, text: str) -> Verdict:  # noqa: ARG002
        group = self._group
        with group.server.connect() as admin, admin.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE user IN %s", (tuple(group.accounts),))
            for (thread,) in cursor.fetchall():
                with contextlib.suppress(pymysql.err.MySQLError):
                    cursor.execute(f"KILL {thread}")
                    self.hits += 1
        return Verdict.PASS


class Away(AtQuery):
    """The way to the database is gone for a while: connections refused, or everything silent."""

    def __init__(self, target: str, nth: int, *, silent: bool, seconds: float) -> None:
        super().__init__(target, nth)
        self.kind = "silent server" if silent else "database refuses connections"
        self.silent, self.seconds = silent, seconds

    def strike(self, text: str) -> Verdict:  # noqa: ARG002
        wire = self._group.wire
        if self.silent:
            wire.silence()
        else:
            wire.lose()
        self.hits += 1
        self.in_background(wire.restore, self.seconds)
        return Verdict.PASS

    def end(self) -> None:
        self.join_background()


class ReadOnly(AtQuery):
    """The server turns read-only, as a primary does that becomes a replica; after the seconds another one is found."""

    kind = "read-only server"

    def __init__(self, target: str, nth: int, seconds: float = 0.0) -> None:
        super().__init__(target, nth)
        self.seconds, self._on = seconds, False
        if seconds:
            self.kind = "switch-over"

    def begin(self, group: Group) -> None:
        super().begin(group)
        self._errors = group.wire.mysql_errors[1290]
        if self.nth == 0:
            self.strike("")

    def strike(self, text: str) -> Verdict:  # noqa: ARG002
        self._on = True
        self._set(1)
        if self.seconds:
            self.in_background(lambda: self._set(0), self.seconds)
        return Verdict.PASS

    def end(self) -> None:
        self.join_background()
        if self._on:
            self._set(0)
        self.hits += self._group.wire.mysql_errors[1290] - self._errors

    def _set(self, value: int) -> None:
        with self._group.server.connect() as admin, admin.cursor() as cursor:
            cursor.execute(f"SET GLOBAL read_only = {value}")


class Rival(AtQuery):
    """Another transaction that holds the row which the program is about to write."""

    error: int | None = None

    def begin(self, group: Group) -> None:
        super().begin(group)
        self._errors = Counter(group.wire.mysql_errors)
        self._connection: pymysql.connections.Connection[Any] | None = None

    def end(self) -> None:
        self.join_background()
        self._let_go()
        if self.error:
            self.hits += self._group.wire.mysql_errors[self.error] - self._errors[self.error]

    def hold(self, *statements: tuple[str, object]) -> None:
        """Begin a transaction with these statements, and leave it open."""
        connection = self._group.database.connect(autocommit=False)
        self._connection = connection
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(*statement)

    def _let_go(self) -> None:
        if self._connection:
            with contextlib.suppress(pymysql.err.MySQLError):
                self._connection.rollback()
                self._connection.close()
            self._connection = None


LOCK = f"SELECT 1 FROM {LEDGER} WHERE user_id = %s AND local_day = %s FOR UPDATE"
INSERT = (
    f"INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at) "
    "VALUES (%s, %s, '', '', '', '', NOW()) ON DUPLICATE KEY UPDATE rule = rule"  # another run may have claimed it
)


class LockWait(Rival):
    """The rival holds on for longer than the program waits for a lock."""

    kind = "lock wait timeout"
    error = 1205

    def __init__(self, target: str, nth: int, seconds: float) -> None:
        super().__init__(target, nth)
        self.seconds = seconds

    def strike(self, text: str) -> Verdict:
        if keys := ledger_keys(text):
            self.hold((LOCK, keys[-1]))
            self.in_background(self._let_go, self.seconds)
        return Verdict.PASS


class Deadlock(Rival):
    """The rival holds the last row of a claim, and asks for its first: the server makes the program give way, since
    the rival's transaction has changed more."""

    kind = "deadlock"
    error = 1213

    def query(self, text: str) -> Verdict:
        if CLAIM in text and not self._seen and len(keys := ledger_keys(text)) > 1:
            self._seen = 1
            first, last = keys[0], keys[-1]
            self.hold(("UPDATE Ballast SET n = n + 1", None), (INSERT, last))
            self.in_background(lambda: self._ask_for(first), 0.04)
        return Verdict.PASS

    def _ask_for(self, key: tuple[str, str]) -> None:
        assert self._connection
        with contextlib.suppress(pymysql.err.MySQLError), self._connection.cursor() as cursor:
            cursor.execute(INSERT, key)
        self._let_go()


class CutWhileExecuting(Rival):
    """The connection is cut while the server still executes the statement, which it does to the end."""

    kind = "connection cut during a statement"

    def strike(self, text: str) -> Verdict:
        if keys := ledger_keys(text):
            self.hold((LOCK, keys[-1]))
            self.in_background(self._cut, 0.04)
        return Verdict.PASS

    def _cut(self) -> None:
        self._group.wire.cut()
        self.hits += 1
        time.sleep(0.04)
        self._let_go()


NEW_STEPS = ("learn", "settle", "claiming once more", "writing again")


class Ended(Fault):
    """kill -9 or SIGTERM, at a text (before Twilio has it or after), at a statement (before or after), or sometime."""

    def __init__(self, *, kill: bool, at: str, nth: int, before: bool, seconds: float, again: bool = False) -> None:
        super().__init__()
        self.kind = "kill -9" if kill else "SIGTERM"
        if at in NEW_STEPS:
            self.kind += f", {at}"
        self.at, self.nth, self.before, self.seconds, self.again = at, nth, before, seconds, again
        self._kill, self._seen, self._released = kill, 0, set[tuple[str, str]]()

    def begin(self, group: Group) -> None:
        super().begin(group)
        if self.at == "sometime":
            self.in_background(self._strike_sometime)

    def post(self, request: Request, number: int) -> Answer | None:  # noqa: ARG002
        if self.at != "post" or number != self.nth:
            return None
        if not self.before:
            self.in_background(self._strike, 0.01)
            return Answer("accept", after=0.06)
        self._strike()
        return Answer("end before accepting", accepted=False, status=429, code=20429) if self._kill else None

    def query(self, text: str) -> Verdict:
        if self._concerns(text):
            self._seen += 1
            if self.at == "writing again" and self._seen == 1:
                return Verdict.CUT_AFTER
            if self._seen == self.nth:
                return self._strike_at_query()
        return Verdict.PASS

    def _concerns(self, text: str) -> bool:
        if self.at == "claiming once more":  # whom another run has released
            keys = set(ledger_keys(text))
            self._released |= keys if RELEASE in text else set()
            return CLAIM in text and bool(keys & self._released)
        target = "record" if self.at == "writing again" else self.at
        return target in TARGETS and TARGETS[target] in text

    def _strike_at_query(self) -> Verdict:
        self._strike()
        return Verdict.CUT_BEFORE if self.before and self._kill else Verdict.PASS

    def _strike_sometime(self) -> None:
        if self._group.actors[0].started.wait(5.0):
            time.sleep(self.seconds)
            self._strike()

    def _strike(self) -> None:
        for actor in self._group.actors[:1]:
            where = f"{self.at} {self.nth} {'before' if self.before else 'after'}"
            if self._kill:
                assert isinstance(actor, ProcessActor)
                self.hits += actor.kill()
                self._group.extra_wait = time.monotonic() + 0.2  # a statement may be on its way to the server
            else:
                self.hits += actor.terminate(where)
                if self.again:
                    actor.terminate(where)

    def end(self) -> None:
        self.join_background()


class ServerRestart(AtQuery):
    """The server is stopped or killed, and comes back."""

    kind = "server restarted"

    def __init__(self, target: str, nth: int, *, kill: bool, seconds: float) -> None:
        super().__init__(target, nth)
        self.kill, self.seconds = kill, seconds

    def strike(self, text: str) -> Verdict:  # noqa: ARG002
        self.in_background(self._restart)
        return Verdict.PASS

    def _restart(self) -> None:
        server = self._group.server
        server.kill() if self.kill else server.stop()
        time.sleep(self.seconds)
        server.start()
        self.hits += 1

    def end(self) -> None:
        self.join_background()


class TimePasses(Fault):
    """The clock passes a local midnight, or just goes on, while a run is at work."""

    kind = "local midnight while a run is at work"

    def __init__(self, nth: int, by: timedelta) -> None:
        super().__init__()
        self.nth, self.by = nth, by

    def post(self, request: Request, number: int) -> Answer | None:  # noqa: ARG002
        if number == self.nth:
            self._group.clock.advance(self.by)
            self.hits += 1
        return None


class Suspended(TimePasses):
    """The machine sleeps, just after Twilio has taken a text: the wall's clock goes on, and no other."""

    kind = "suspended process"
    needs_thread = True

    def post(self, request: Request, number: int) -> Answer | None:  # noqa: ARG002
        if number != self.nth:
            return None
        self.hits += 1
        self.in_background(lambda: self._group.clock.advance(self.by), 0.01)
        return Answer("accept", after=0.03)

    def end(self) -> None:
        self.join_background()


class WrongClock(Fault):
    """The node's clock is off, from the start or from a text on."""

    def __init__(self, by: timedelta, nth: int = 0) -> None:
        super().__init__()
        self.by, self.nth = by, nth
        away = "behind" if by < timedelta() else "ahead"
        self.kind = "clock that steps" if nth else f"clock {away}" if self.is_wrong else "clock a little off"
        self.skew, self.needs_thread = timedelta() if nth else by, nth > 0
        self.slack = abs(by) if abs(by) < timedelta(hours=2) else timedelta()
        self.unseen = self.slack if nth else timedelta()

    @property
    def is_wrong(self) -> bool:
        """Whether the program must see it."""
        return abs(self.by) > timedelta(minutes=5)

    def post(self, request: Request, number: int) -> Answer | None:  # noqa: ARG002
        if number == self.nth:
            self.skew = self.by
            self.hits += 1
        return None

    def end(self) -> None:
        if not self.nth:
            told = [actor.run.output for actor in self._group.actors]
            self.hits += sum("clock is wrong" in output or not self.is_wrong for output in told)


class LostCommits(AtQuery):
    """The server crashes and comes back without what was committed in the last second: rows are gone, or back again.

    Only while a run is alone, and only its rows: what another one that has ended wrote, nobody could write again.
    """

    kind = "lost commits"

    def __init__(self, target: str, nth: int) -> None:
        super().__init__(target, nth)
        self._released: list[tuple[datetime, tuple[tuple[Any, ...], ...]]] = []

    def query(self, text: str) -> Verdict:
        if RELEASE in text:
            with self._group.database.connect() as admin, admin.cursor() as cursor:
                cursor.execute(text.replace("DELETE", "SELECT *", 1))
                self._released.append((self._now(), cursor.fetchall()))
        return super().query(text)

    def strike(self, text: str) -> Verdict:  # noqa: ARG002
        if len(self._group.actors) > 1:
            return Verdict.PASS
        since, old = self._now() - timedelta(seconds=1), ["", *self._group.old_tokens]
        back = [row for at, rows in self._released if at > since for row in rows if row[5] not in old]  # its token
        with self._group.database.connect() as admin, admin.cursor() as cursor:
            self.hits += cursor.execute(
                f"DELETE FROM {LEDGER} WHERE (claimed_at > %s OR finished_at > %s) AND run_token NOT IN %s",
                (since, since, old),
            )
            for row in back:
                self.hits += cursor.execute(f"INSERT IGNORE INTO {LEDGER} VALUES %s", [row])
        return Verdict.CUT_BEFORE

    def _now(self) -> datetime:
        return self._group.clock().replace(tzinfo=None)


class ForgottenConnections(Fault):
    """While all texts wait, a NAT gateway forgets the connections: what comes on them is reset."""

    kind = "idle connections forgotten"

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.nth = nth

    def post(self, request: Request, number: int) -> Answer | None:  # noqa: ARG002
        if number != self.nth:
            return None
        self.in_background(self._forget, 1.7)  # 34 s of the program's
        return Answer("pause", accepted=False, status=429, code=20429, retry_after=40)

    def _forget(self) -> None:
        self.hits += self._group.twilio.forget_connections()

    def end(self) -> None:
        self.join_background()


class ComeAndGo(AtQuery):
    """People sign up and delete their accounts in mid-run."""

    kind = "sign-ups and deletions"

    def strike(self, text: str) -> Verdict:  # noqa: ARG002
        self.passing = self._group.come_and_go()
        self.hits += len(self.passing)
        return Verdict.PASS


def ledger_keys(statement: str) -> list[tuple[str, str]]:
    """The users and days that a statement of the ledger writes, in its order."""
    return [(user.strip("'"), day) for user, day in LEDGER_KEY.findall(statement)]
