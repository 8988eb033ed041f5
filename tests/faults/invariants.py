"""What must hold whatever goes wrong, with the fake's book as the witness. A check yields what is wrong, in words."""

from __future__ import annotations

import re
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import pairwise, product

from tests.faults import faults as f
from tests.faults.draw import PERMANENT, Scene
from tests.faults.program import KILLED, Run
from tests.faults.scene import DEADLINE, SPACING, Due, Person, due, start_of, zone_day, zone_of
from tests.faults.stage import Played, Record, Row
from tests.sandbox.database import Id
from tests.sandbox.fake_twilio import Message, Request
from tests.sandbox.people import MISSED_YESTERDAY, NO_LOGS

NAMES = {
    "at most one text": "no user got two accepted texts for or in one local day, or within 11 h 30 min",
    "only who is due": "nobody got a text who was not due, with the other rule's words, or not within day and window",
    "one outcome each": "every due user was in exactly one named outcome, or the exit code is not 0",
    "nobody is lost": "a run without faults posted every text that was due and free to be sent",
    "log": "sums in the log equal its lines, the ledger and the book",
    "ledger": "a row for every text that may have been sent, and no row says more than is so",
    "secrets": "no secret in any output",
    "traceback": "no traceback, and every run ended in time",
    "exit code": "the exit code is the table's",
}

LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d+)? - \S+ - (DEBUG|INFO|WARNING|ERROR) - (.*)$")
SENT = re.compile(r"Notification sent to (.*) \((\+\d+)\)\. Message SID: (\w+)$")
# The table of outcomes: those that are not Failed, and those that are, with the exit code that each asks for.
FINE = {
    "sent",
    "already handled today",
    "uncertain earlier today",
    "later",
    "deferred",
    "refused earlier",
    "left alone (texts do not arrive)",
    "skipped (time zone)",
    "skipped (phone number)",
}
FAILED = {
    "refused": 0,
    "refused for the set-up": 0,
    "refused to a trial account": 2,
    "uncertain": 0,
    "not sent": 1,
    "not tried": 1,
    "barred by a row of the future": 2,
}
OUTCOME = "|".join(re.escape(words) for words in (*FINE, *FAILED))
RESULT = re.compile(rf"Notification to .* \(ID: (\S+?)\) ({OUTCOME}): ")
SKIPPED = re.compile(rf"User .* \(ID: (\S+?)\) gets no text, ({OUTCOME}): ")
NEEDS = re.compile(r"User .* \(ID: (\S+?)\) needs notification: (.*)$")
FOUND = re.compile(r"Found (\d+) users with phone numbers$")
LOOKED_AT = re.compile(r"Looked at (\d+) of \d+ users(.*)$")
COMPLETED = re.compile(r"Job completed\. Notifications sent: (\d+), Failed: (\d+)$")
UNRECORDED = "could not be recorded"

# Errors of MySQL that a person must mend; a read-only server only before the program could write.
FIX = {-3, -2, 1044, 1045, 1049, 1054, 1142, 1143, 1146, 1698, 3159}
READ_ONLY = {1290, 1792, 1836}
GONE, BLOCKED = {30004, 30005, 30006}, {30007, 30024, 30032, 30033, 30034}  # numbers; senders
WEIGHT = [0, 1, 143, 2]

# What the ledger says of today by outcome; of every other one nothing.
IN_LEDGER: dict[str, set[str | None]] = {
    "sent": {"sent"},
    "refused": {"refused"},
    "uncertain": {"uncertain", "sending"},
    "uncertain earlier today": {"uncertain", "sending"},
    "already handled today": {"sent"},
    "refused earlier": {None, "refused"},
    "barred by a row of the future": {None, "sending", "sent", "refused", "uncertain"},
}
STATES = {"sending", "sent", "refused", "uncertain"}
FINAL = {"delivered", "undelivered", "failed"}
SECOND = timedelta(seconds=1)
ATTEMPTS = timedelta(minutes=31)  # of a Job, all of them, and some slack

Problem = tuple[str, str]


@dataclass
class Told:
    """What the log of one run says."""

    run: Run
    outcomes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By user: id, or the name's key and phone where a line has no id."""
    needs: dict[str, str] = field(default_factory=dict)
    sids: list[tuple[str, str, str]] = field(default_factory=list)
    found: int | None = None
    looked_at: int = 0
    has_opened: bool = False
    """Whether the ledger could be written."""
    totals: dict[str, int] = field(default_factory=dict)
    completed: tuple[int, int] | None = None
    errors: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    @property
    def unrecorded(self) -> bool:
        """Whether it says that it could not record what became of its last texts."""
        return any(UNRECORDED in line for line in self.errors)

    @property
    def at_debug(self) -> bool:
        """Whether it names even those who were handled before."""
        return self.run.orders.environ["LOG_LEVEL"] == "DEBUG"


def read(run: Run) -> Told:
    """Understand the log of a run."""
    told = Told(run)
    for line in run.output.splitlines():
        if match := LINE.match(line):
            understand(match[1], match[2], told)
        else:
            told.strange.append(line)
    return told


def understand(level: str, words: str, told: Told) -> None:
    """Take in a line of the log."""
    if level == "ERROR":
        told.errors.append(words)
    if match := SENT.match(words):
        told.sids.append((match[1], match[2], match[3]))
    elif match := RESULT.match(words) or SKIPPED.match(words):
        told.outcomes[match[1]].append(match[2])
    elif match := NEEDS.match(words):
        told.needs[match[1]] = match[2]
    elif match := FOUND.match(words):
        told.found = int(match[1])
    elif words == "Twilio client initialized":
        told.has_opened = True
    elif match := LOOKED_AT.match(words):
        told.looked_at = int(match[1])
        totals = [part.rpartition(" ") for part in match[2].split(", ")[1:]]
        told.totals = {what: int(count) for what, _, count in totals}
    elif match := COMPLETED.match(words):
        told.completed = int(match[1]), int(match[2])


class Judge:
    """Follows a scene group by group, and remembers what it has to."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._days: dict[str, list[tuple[Message, set[date]]]] = defaultdict(list)
        self._instants: dict[str, list[datetime]] = {}
        """When a text was accepted, by its SID: a machine may sleep, and time pass, just while it is on its way."""
        self._default = scene.default_zone
        self._slack = self._unseen = SECOND

    def judge(self, record: Record) -> Iterator[Problem]:
        """What is wrong after the last group."""
        group = record.groups[-1]
        told = [read(run) for run in group.runs]
        self._slack = max(self._slack, *(fault.slack for fault in group.faults), SECOND)
        self._unseen = max(self._unseen, *(fault.unseen for fault in group.faults), SECOND)
        for each in told:
            user_of_sid = {text.sid: self._user(group, text) for text in record.final_book}
            for _, _, sid in each.sids:
                if user := user_of_sid.get(sid):
                    each.outcomes[str(user.id)].append("sent")
        yield from self._texts(group)
        for each in told:
            yield from self._run(group, each, record)
        yield from self._ledger(group, told, record)
        yield from self._nobody_lost(group, told)
        old = {row.token for row in group.ledger_before}
        new = [row for row in group.ledger_after if row.token not in old]
        idle = [type(fault) for fault in group.faults] == [f.ForgottenConnections] and len(group.runs) == 1
        if idle and any(row.state == "uncertain" for row in new):
            yield "nobody is lost", "a text is uncertain, since a connection was used that was idle for too long"
        for words in group.stray:
            if "Traceback" in words or any(secret in words for secret in record.secrets):
                yield "traceback", words

    # --- texts, as the fake took them

    def _user(self, group: Played, text: Message) -> Person | None:
        """Whose text it is, by the name in it."""
        key = re.search(r"\bP\d+\b", text.body)
        return next((person for person in group.people if key and person.key == key[0]), None)

    def _texts(self, group: Played) -> Iterator[Problem]:
        for text in group.texts:
            user = self._user(group, text)
            if user is None:
                yield "only who is due", f"a text to {text.to} is nobody's: {text.body}"
                continue
            days = set()
            rule = NO_LOGS if "no habits logged in the past 2 days" in text.body else MISSED_YESTERDAY
            for run in group.runs:
                found = due(user, run.now, self._default) if run.now else None
                if found and found.rule == rule:
                    days.add(found.day)
            if not days or text.to != user.number:
                nows = [str(run.now) for run in group.runs]
                yield "only who is due", f"{user} got {text.body!r} at {text.to}, runs at {nows}"
            if any(fault.kind in ("clock behind", "clock ahead") for fault in group.faults):
                yield "only who is due", f"{user} got {text} by a clock that is wrong"
            self._days[user.key].append((text, days))
            asleep = [text.accepted_at]  # or when it may have left: the clock may have jumped on its way, even twice
            for before, after in sorted(group.jumps, reverse=True):
                asleep += [before] if timedelta() <= asleep[-1] - after < SECOND else []
            self._instants[text.sid] = [at + by for at in asleep for by in (-self._unseen, self._unseen)]
            here = {zone_day(user, at, self._default) for at in self._instants[text.sid]}
            if days and not days & here:
                yield "only who is due", f"{user} got {text} when {days} was over"
            yield from self._at_most_one(user)
            yield from self._window(user, text)

    def _at_most_one(self, user: Person) -> Iterator[Problem]:
        texts = sorted(self._days[user.key], key=lambda pair: pair[0].accepted_at)
        zone = zone_of(user, self._default)
        for (one, _), (two, _) in pairwise(texts):
            first, second = self._instants[one.sid], self._instants[two.sid]
            if max(second) - min(first) + 2 * (self._slack - self._unseen) < SPACING:
                yield "at most one text", f"{user.key} got texts at {one.accepted_at} and {two.accepted_at}"
            if two is texts[-1][0] and zone and len({at.astimezone(zone).date() for at in first + second}) == 1:
                yield "at most one text", f"{user} got texts at {one.accepted_at} and {two.accepted_at}: one day there"
        choices = [days for _, days in texts if days]
        if choices and not any(len(set(choice)) == len(choice) for choice in product(*choices)):
            yield "at most one text", f"{user.key} got {len(choices)} texts for one of the days {choices}"

    def _window(self, user: Person, text: Message) -> Iterator[Problem]:
        """Posted inside of the window, and dropped by Twilio at its end."""
        more = self._slack - self._unseen
        instants = [at + by for at in self._instants[text.sid] for by in (-more, more)]
        lefts = [self._scene.seconds_left(user, instant) for instant in instants]
        if max(lefts) + 2 * self._slack.total_seconds() < max(60, text.validity_period or 0):
            yield "only who is due", f"{user} got {text} outside of the window, or so that it may wait beyond: {lefts}"

    # --- one run and its log

    def _run(self, group: Played, told: Told, record: Record) -> Iterator[Problem]:
        run = told.run
        if run.crash or "Traceback" in run.output:
            yield "traceback", run.crash or run.output[-3000:]
        if told.strange and not run.killed:
            yield "traceback", f"lines that are not the log's: {told.strange[:5]}"
        for secret in record.secrets:
            if secret in run.output or secret in run.crash:
                where = max(0, run.output.find(secret) - 200)
                yield "secrets", f"a secret is in the output: …{run.output[where:][:300]}"
        yield from self._sent_lines(told, record)
        if run.killed and run.exit_code == KILLED:
            return
        yield from self._exit(group, told)
        if told.found is None or run.orders.argv:
            return
        yield from self._outcomes(group, told)
        yield from self._sums(group, told)

    def _sent_lines(self, told: Told, record: Record) -> Iterator[Problem]:
        book = {text.sid: text for text in record.final_book}
        for name, phone, sid in told.sids:
            text = book.get(sid)
            if not text or text.to != phone or (name.split()[0] not in text.body):
                yield "log", f"the log says sent to {name} ({phone}) as {sid}, the book says {text}"

    def _outcomes(self, group: Played, told: Told) -> Iterator[Problem]:
        now = told.run.now
        assert now
        unnamed = []
        by_id = {str(person.id): person for person in group.people}
        passing = {key for fault in group.faults for key in fault.passing}
        for user_id, person in by_id.items():
            found, named = due(person, now, self._default), told.outcomes.get(user_id, [])
            zone_is_bad = "skipped (time zone)" in named
            if len(named) > 1:
                yield "one outcome each", f"{person} has the outcomes {named}"
            if not found and named and not zone_is_bad:
                yield "one outcome each", f"{person} is not due, but was {named}"
            if found and not named and person.is_here and person.key not in passing:
                unnamed.append(str(person))
            if found and user_id in told.needs and told.needs[user_id] != found.rule:
                yield "only who is due", f"{person}: the log says {told.needs[user_id]}, it is {found.rule}"
        for user_id in told.outcomes.keys() - by_id.keys():
            yield "log", f"the log names a user {user_id}, whom nobody knows"
        quiet = 0 if told.at_debug else told.totals.get("already handled today", 0)
        rest = (told.found or 0) - told.looked_at if told.run.exit_code else 0
        if len(unnamed) > quiet + rest + len(passing):
            yield "one outcome each", f"due users have no outcome, {rest} not looked at: {unnamed}"

    def _sums(self, group: Played, told: Told) -> Iterator[Problem]:
        listening = sum(person.is_listening for person in group.people)
        if told.found != listening and not any(fault.passing for fault in group.faults):
            yield "log", f"the log says {told.found} users with phone numbers, there are {listening}"
        if told.completed is None:
            yield "log", "the run has no last line"
            return
        lines = Counter(outcome for named in told.outcomes.values() for outcome in named)
        totals = Counter(told.totals)
        if not told.at_debug:
            lines["already handled today"] = totals["already handled today"]
        if +lines != +totals:
            yield "log", f"the log's lines are {dict(+lines)}, its sums {dict(+totals)}"
        failed = sum(count for outcome, count in lines.items() if outcome in FAILED)
        if told.completed != (lines["sent"], failed):
            yield "log", f"the last line says {told.completed}, the lines {lines['sent']}, {failed}"

    # --- exit codes

    def _exit(self, group: Played, told: Told) -> Iterator[Problem]:
        run = told.run
        of_lines = {line: code_of(line, group, told) for line in told.errors}
        codes = {0} | {code for code in of_lines.values() if code is not None}
        for line, code in of_lines.items():
            if code is None:
                yield "exit code", f"an error that is not in the table: {line}"
        codes |= {FAILED.get(outcome, 0) for named in told.outcomes.values() for outcome in named}
        if run.term_at:
            codes.add(143)
        allowed = {max(codes, key=WEIGHT.index)}
        if run.term_at and told.completed:  # it may have come too late, even when Python had taken its handlers down
            allowed |= {max(codes - {143}, key=WEIGHT.index), -signal.SIGTERM}
        if run.exit_code not in allowed:
            yield "exit code", f"exit code {run.exit_code}, not {allowed}: {told.errors}, {run.term_at}"
        refused = [request for request in group.requests if request.answer == "refuse"]
        if refused and len(group.runs) == 1 and run.exit_code != 2 and not is_only_lists(refused):
            yield "exit code", f"Twilio refused the credentials, exit code {run.exit_code}"
        if told.errors and run.exit_code == 0:
            yield "exit code", f"exit code 0 in spite of {told.errors}"

    # --- the ledger against the book

    def _ledger(self, group: Played, told: list[Told], record: Record) -> Iterator[Problem]:
        by_id = {person.id: person for person in group.people}
        book = {text.sid: text for text in record.final_book}
        rows = {(row.user_id, row.day): row for row in group.ledger_after}
        for row in group.ledger_after:
            yield from self._row(row, by_id[row.user_id], book)
        for key, texts in self._days.items():
            person = next(person for person in group.people if person.key == key)
            for text, days in texts:
                of_text = [rows[person.id, day] for day in days if (person.id, day) in rows]
                if not any(
                    row.state != "refused" and row.claimed_at <= text.accepted_at + self._slack for row in of_text
                ):
                    yield "ledger", f"{key} got {text.sid} for one of {days}, the ledger says {of_text}"
        yield from self._left_sending(group, told)
        for each in told:
            yield from self._recorded(each, group)

    def _row(self, row: Row, person: Person, book: Mapping[str, Message]) -> Iterator[Problem]:
        if row.state == "sent":
            text = book.get(row.sid or "")
            if not text or not re.search(rf"\b{person.key}\b", text.body) or text.to != row.phone:
                yield "ledger", f"{row} of {person}: the book says {text}"
            elif row.final_status in FINAL and row.final_status != text.status:
                yield "ledger", f"{row}: Twilio says {text.status}"
        if row.state not in STATES:
            yield "ledger", f"{row} has a state that is not in the design"
        if row.state == "refused":
            for text, days in self._days[person.key]:
                if days == {row.day}:
                    yield "ledger", f"{row} says refused, but {text.sid} was accepted"

    def _left_sending(self, group: Played, told: list[Told]) -> Iterator[Problem]:
        """Only a kill, or a failure that the log tells, leaves a row at 'sending'."""
        if any(run.killed for run in group.runs) or any(each.unrecorded for each in told):
            return
        if is_zombie(group):
            return  # the server may execute a claim that nobody waits for any more
        before = {(row.user_id, row.day, row.token) for row in group.ledger_before}
        for row in group.ledger_after:
            if row.state == "sending" and (row.user_id, row.day, row.token) not in before:
                yield "ledger", f"{row} was left at 'sending' by a run that says nothing of it"

    def _recorded(self, told: Told, group: Played) -> Iterator[Problem]:
        """What the log says of texts, the ledger says too."""
        if told.run.killed or told.unrecorded:
            return
        by_sid = {row.sid: row for row in group.ledger_after if row.sid}
        for _, _, sid in told.sids:
            of_sid = by_sid.get(sid)
            if of_sid is None or of_sid.state != "sent":
                yield "ledger", f"the log says that {sid} was sent, the ledger says {of_sid}"
        if len(group.runs) > 1 or not told.run.now:
            return
        rows = {(str(row.user_id), row.day): row for row in group.ledger_after}
        for person in group.people:
            found = due(person, told.run.now, self._default)
            named = told.outcomes.get(str(person.id), [])
            if not found or len(named) != 1:
                continue
            row = rows.get((str(person.id), found.day))
            state = row.state if row else None
            if state is None and named[0] == "uncertain":  # by its clock's day, or of the attempt before this one
                lately = told.run.now - ATTEMPTS + min([timedelta(), *(fault.skew for fault in group.faults)])
                recent = (r for r in group.ledger_after if r.user_id == person.id and r.claimed_at > lately)
                state = next((row.state for row in recent), None)
            right = self._right(named[0], person, row)
            if is_zombie(group) and None in right:
                right.add("sending")
            if state not in right:
                yield "ledger", f"{person} was {named[0]}, the ledger says {state}"

    def _right(self, outcome: str, person: Person, row: Row | None) -> set[str | None]:
        """What the ledger may say of today; a text from before the day began may hold it, after a move to the west."""
        zone = zone_of(person, self._default)
        if outcome == "deferred" and row and zone:
            last = max(row.claimed_at, row.finished_at or row.claimed_at)
            return {"sent", "refused"} if last < start_of(zone, row.day) else {None}
        return set(IN_LEDGER.get(outcome, {None}))

    # --- nobody is lost

    def _nobody_lost(self, group: Played, told: list[Told]) -> Iterator[Problem]:
        """A run without faults posts every text that is due, unless the ledger says why not."""
        if group.part.faults or group.part.environ or group.part.argv or len(told) > 1 or not told[0].run.now:
            return
        now = told[0].run.now
        if errors := [line for line in told[0].errors if not OF_EARLIER.match(line)]:
            yield "nobody is lost", f"nothing went wrong, exit code {told[0].run.exit_code}: {errors}"
        if any(line.startswith("Carriers block") for line in told[0].errors):
            return
        posted = {request.params.get("Body", "") for request in group.requests if request.operation == "send"}
        old = {(row.user_id, row.day, row.token) for row in group.ledger_before}
        rows: dict[Id, list[Row]] = defaultdict(list)
        for row in group.ledger_after:  # what became of earlier texts was learned by this run
            if (row.user_id, row.day, row.token) in old:
                rows[row.user_id].append(row)
        for person in group.people:
            found = due(person, now, self._default)
            if found != due(person, now + timedelta(seconds=60), self._default):
                continue  # its day turned while the run was at work
            if not (found and person.is_here and person.number) or not self._is_free(
                person, found, rows[person.id], now
            ):
                continue
            if not any(re.search(rf"\b{person.key}\b", body) for body in posted):
                yield "nobody is lost", f"{person} was due for {found}, and not texted: {rows[person.id]}"

    def _is_free(self, person: Person, found: Due, rows: list[Row], now: datetime) -> bool:
        """Whether nothing in the ledger speaks against a text; in doubt something does."""
        zone = zone_of(person, self._default)
        if self._scene.seconds_left(person, now) < 75:
            return False
        for row in rows:
            last = max(row.claimed_at, row.finished_at or row.claimed_at + DEADLINE)
            taken = last + timedelta(minutes=5) if row.state == "uncertain" else last  # when all had given up already
            is_late = last > now - SPACING - timedelta(minutes=1) or taken.astimezone(zone).date() >= found.day
            if row.day == found.day or last > now or (row.state != "refused" and is_late):
                return False
        days, limit = (int(self._scene.environ.get(*name)) for name in (("REFUSED_RETRY_DAYS", "30"), UNDELIVERED))
        own = [row for row in rows if row.phone == person.number and (found.day - row.day).days < days]
        if any(row.code in PERMANENT for row in own):
            return False
        ends = sorted((r for r in own if r.final_status in FINAL and r.code not in BLOCKED), key=lambda r: r.day)
        lost = [row.final_status != "delivered" for row in ends]
        return not (ends and (ends[-1].code in GONE or (limit and len(lost) >= limit and all(lost[-limit:]))))


# Errors of a run without faults: what earlier ones left, and what people's numbers refuse.
OF_EARLIER = re.compile(
    "No text was surely sent|Not everybody was served|Twilio refuses texts for our set-up|Carriers block the sender"
    "|[0-9]+ users are barred by rows of the future"
)
UNDELIVERED = "UNDELIVERED_LIMIT", "3"


def code_of(line: str, group: Played, told: Told) -> int | None:
    """The exit code that a line of level ERROR stands for; None for a line that is not known, or has no ground."""
    if match := re.match(r"MySQL: .*\(error (-?\d+)", line):
        return 2 if int(match[1]) in FIX | (set() if told.has_opened else READ_ONLY) else 1
    if "texts in a row failed" in line:
        bad = {fault.kind for fault in group.faults if isinstance(fault, f.BadAnswers) and fault.hits}
        return 2 if bad & {"sender refused", "unknown 4xx"} else None
    if line.startswith("Twilio's list of messages could not be read"):
        return 2 if any(request.answer == "refuse" for request in group.requests) else 1
    starts = {
        "SIGTERM came": 143,
        "RUN_DEADLINE": 1,
        "Twilio: ": 2,
        "Twilio cannot be used": 1,
        "Twilio asks for more": 1,
        "Twilio refuses texts for our set-up": 2,
        "Carriers block the sender": 2,
        "this node's clock is wrong": 1,
        "looking up texts takes too long": 1,
        "No text was surely sent": 1,
        "Not everybody was served": 1,
        "Twilio does not answer, or its answer does not end": 1,
        "What became of the last": 1,
        "Whoever of them surely got no text": 1,
        "MySQL: it is read-only": 2,
    }
    if re.match(r"\d+ users are barred by rows of the future", line):
        return 2
    if re.match(r"\d+ of the last \d+ texts are uncertain or did not reach Twilio", line):
        return 1
    return next((code for start, code in starts.items() if line.startswith(start)), None)


def is_only_lists(requests: list[Request]) -> bool:
    """Whether only looking up earlier texts was refused, which can wait and fails nobody."""
    return all(r.operation == "fetch" or (r.operation == "list" and r.params.get("PageSize") != "1") for r in requests)


def is_hang(fault: f.Fault) -> bool:
    """Whether a statement may be executed after the program has given it up."""
    return isinstance(fault, f.Cut) and fault.verdict is not None and fault.verdict.name.startswith("HANG")


def is_zombie(group: Played) -> bool:
    """Whether the server may have executed a statement that the program had given up."""
    kinds = (f.CutWhileExecuting, f.LockWait, f.Away, f.ServerRestart)
    return any((isinstance(fault, kinds) or is_hang(fault)) and fault.hits for fault in group.faults)
