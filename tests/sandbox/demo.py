"""The whole job on sample people, told as a story: what `make demo` runs.

It needs nothing but this repository and its Python packages, texts nobody, and leaves nothing behind. It ends with 0
when everybody got exactly what `people` says, and with 1 when somebody did not.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import zip_longest
from pathlib import Path

from tests.sandbox.database import LEDGER, Database, Id, Server, ServerError
from tests.sandbox.fake_twilio import FakeTwilio, Message, refuse
from tests.sandbox.people import Outcome, Person, fill, newcomers, next_midnight, people

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "app/habit_notifier.py"
WINDOW = "09:00-20:00"
LONGEST = timedelta(seconds=20)  # more than all of this takes


def main() -> int:
    """Tell the story. Returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain `kill` cleans up as Ctrl-C does
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # frames and names, whatever the locale says
    try:
        return tell()
    except ServerError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Everything that was made for this is gone again.")
        return 130


def tell() -> int:
    """From an empty machine to the texts on the phones, and back to an empty machine."""
    say("")
    say(bold("Once a day, everybody who fell behind on their habits gets one text: the right person, in their"))
    say(bold("own days, never twice. This is the whole job on sample people. Nobody is texted for real."))

    chapter("A database")
    watch = Stopwatch()
    url = os.environ.get("TEST_MYSQL_URL")
    with Server.from_url(url) if url else Server(say=say) as server:
        say(watch.timed(f"{server.label} answers on {server.host}:{server.port}: {server.origin}"))
        with server.database() as database, FakeTwilio() as twilio:
            now = quiet_moment()
            everybody = people(now)
            ids = fill(database, everybody)
            say(watch.timed(contents(database)))

            chapter("The people")
            show_people(everybody, now)

            chapter("A Twilio")
            say(watch.timed(f"A fake one answers on {twilio.url}"))
            introduce(twilio, everybody)

            chapter(f"Before it: python {PROGRAM} --dry-run")
            say(dim("The end of its log"))
            dry = ask(database, "--dry-run")
            for line in dry.log[-3:]:
                show_log_line(line)

            chapter(f"The job: python {PROGRAM}")
            first = run_job(database, twilio)
            texts = list(twilio.book)
            say(watch.timed(f"Exit code {first.exit_code}"))

            chapter(f"The phones: {counted(len(texts), 'text')} arrived")
            show_phones(texts, everybody)

            chapter(f"The same job once more, with SEND_WINDOW={WINDOW}")
            ids |= welcome(database, newcomers(now), now)
            second = run_job(database, twilio, SEND_WINDOW=WINDOW)
            again = twilio.book[len(texts) :]
            say(watch.timed(f"Exit code {second.exit_code}"))

            chapter("Why did Nora get none? --explain tells")
            nora = next(user_id for user_id, person in ids.items() if person.outcome is Outcome.LATER)
            why = ask(database, f"--explain={nora}", SEND_WINDOW=WINDOW)
            for line in why.log:
                if re.search(": User |It is |Gate in_window|at the earliest", line):
                    show_log_line(line)

            chapter("Was that right?")
            found, strays = fates(ids, database, texts, [*first.log, *second.log])
            right = judge(ids, found)
            right &= check(not strays, f"There was {counted(len(strays), 'other text')}")
            right &= check(not again, f"The second run sent {counted(len(again), 'text')}: nobody is texted twice")
            codes = {run.exit_code for run in (dry, first, second, why)}
            right &= check(codes == {0}, "All of them ended with exit code 0")
    say("")
    say(watch.timed("Everything that was made for this is gone again, and nothing has left this machine."))
    say(bold("Everybody got exactly what they should." if right else red("Somebody did not get what they should.")))
    return 0 if right else 1


def quiet_moment() -> datetime:
    """Now, unless it is about to be midnight for one of the people: then just after it.

    A day that ends while we talk about it would make what we say about yesterday wrong.
    """
    now = datetime.now(UTC)
    midnight = next_midnight(people(now), now)
    if midnight - now < LONGEST:
        say(f"It is almost midnight for some of the people: waiting until {midnight:%H:%M:%S} UTC has passed")
        time.sleep((midnight - now).total_seconds() + 0.1)
        now = datetime.now(UTC)
    return now


def contents(database: Database) -> str:
    """What is in the database, in words."""
    users, habits, logs = (database.rows(f"SELECT COUNT(*) FROM {table}")[0][0] for table in ("User", "Habit", "Log"))
    return f"{users} people with {habits} habits and {logs} logs moved in"


def introduce(twilio: FakeTwilio, everybody: Iterable[Person]) -> None:
    """Let Twilio know who answered STOP."""
    for person in everybody:
        if person.error_code:
            twilio.script(to=str(person.phone_number), then=refuse(person.error_code))
            say(f"{person.name} once answered STOP: Twilio will refuse that text with error {person.error_code}")


def has_ledger(database: Database) -> bool:
    """Whether the program has done its first step."""
    return bool(database.rows("SHOW TABLES LIKE %s", (LEDGER,)))


def welcome(database: Database, more: Iterable[Person], now: datetime) -> dict[Id, Person]:
    """Let more people move in, and let the ledger know of their texts that got lost. Returns who got which id."""
    ids = fill(database, more)
    for user_id, person in ids.items():
        lost = f", and the last {counted(person.lost, 'text')} got lost" if person.lost else ""
        say(f"{person.name} moves in: it is {now.astimezone(person.zone):%H:%M} in {person.time_zone}{lost}")
        for ago in range(1, person.lost + 1) if has_ledger(database) else ():
            lost_text = {"phone_number": person.phone_number, "final_status": "undelivered", "error_code": 30003}
            database.insert_row(user_id, now - timedelta(days=ago), **lost_text)
    return ids


# --- the job


@dataclass(frozen=True)
class Run:
    """One run of the program."""

    exit_code: int
    log: Sequence[str]


def run_job(database: Database, twilio: FakeTwilio, **settings: str) -> Run:
    """Run the program as a CronJob would, in a process that has its settings alone, and show its log as it comes."""
    say(dim("Its log, shortened a little: no dates, no names of modules, long words cut"))
    log = []
    with subprocess.Popen(
        [sys.executable, PROGRAM],
        cwd=ROOT,
        env=database.environ() | twilio.environ() | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                log.append(line.rstrip("\n"))
                show_log_line(log[-1])
        except BaseException:  # Ctrl-C: the end of this block waits for the program
            process.terminate()
            raise
    return Run(process.returncode, log)


def ask(database: Database, question: str, **settings: str) -> Run:
    """Put a question to the program: it needs the database alone, and writes nothing."""
    done = subprocess.run(
        [sys.executable, PROGRAM, question],
        cwd=ROOT,
        env=database.environ() | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return Run(done.returncode, done.stderr.splitlines())


# --- what was expected and what came


@dataclass(frozen=True)
class Fate:
    """What became of somebody, and the rule that the program named."""

    outcome: Outcome
    rule: str | None

    def __str__(self) -> str:
        return f"{self.outcome} ({self.rule})" if self.rule else str(self.outcome)


REASONS = {  # in the program's words
    "skipped (time zone)": Outcome.UNKNOWN_ZONE,
    "skipped (phone number)": Outcome.BAD_PHONE,
    "later": Outcome.LATER,
    "left alone (texts do not arrive)": Outcome.LEFT_ALONE,
}


def fates(
    ids: Mapping[Id, Person], database: Database, texts: Iterable[Message], log: Iterable[str]
) -> tuple[dict[Id, Fate], list[Message]]:
    """What became of everybody, by three witnesses: the texts that Twilio took, the ledger, and the log.

    Also the texts that nobody's row of the ledger explains.
    """
    arrived = {text.sid: text for text in texts}
    rows = database.rows(f"SELECT user_id, state, message_sid FROM {LEDGER}") if has_ledger(database) else []
    ledger = {row[0]: row[1:] for row in rows}
    named = {}
    reasons = {}
    for line in log:
        if due := re.search(r"\(ID: ([^)]+)\) needs notification: (.+)$", line):
            named[due[1]] = due[2]
        elif skipped := re.search(r"\(ID: ([^)]+)\) gets no text, (.+?): ", line):
            reasons[skipped[1]] = skipped[2]

    def outcome(user_id: Id, person: Person) -> Outcome:
        state, sid = ledger.get(user_id, (None, None))
        if state == "sent" and sid in arrived and arrived.pop(sid).to == person.phone_number:
            return Outcome.TEXTED
        if state == "refused":
            return Outcome.REFUSED
        usual = Outcome.ON_TRACK if person.phone_number else Outcome.NO_PHONE
        return REASONS.get(reasons.get(str(user_id), ""), usual)

    found = {user_id: Fate(outcome(user_id, person), named.get(str(user_id))) for user_id, person in ids.items()}
    return found, list(arrived.values())


def judge(ids: Mapping[Id, Person], found: Mapping[Id, Fate]) -> bool:
    """Hold what came against what was expected: a line for each outcome, and one for each person who differs."""
    expected = {user_id: Fate(person.outcome, person.rule) for user_id, person in ids.items()}
    for fate, people_of in Counter(map(str, expected.values())).items():
        same = sum(1 for user_id in ids if str(expected[user_id]) == fate == str(found[user_id]))
        check(same == people_of, f"{same} of {people_of} expected and got: {fate}")
    for user_id, person in ids.items():
        if found[user_id] != expected[user_id]:
            check(False, f"{display(person.name)} (ID {user_id}): expected {expected[user_id]}, got {found[user_id]}")
    return found == expected


# --- how it looks

WIDTH = 100
MARGIN = "  "
BUBBLE = 46


class Stopwatch:
    """Lines that end with the time that their step took."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def timed(self, line: str) -> str:
        """The line, and at the right margin the seconds since the last one."""
        since, self._since = self._since, time.monotonic()
        seconds = f"{self._since - since:.2f} s"
        return pad(line, WIDTH - len(MARGIN) - len(seconds)) + dim(seconds)


def say(line: str) -> None:
    """One line of the story, at once."""
    print(f"{MARGIN}{line}".rstrip(), flush=True)


def chapter(title: str) -> None:
    """The heading of what follows."""
    print(f"\n{bold(f'── {title} '.ljust(WIDTH, '─'))}\n", flush=True)


def check(right: bool, line: str) -> bool:
    """A line with its verdict. Returns the verdict."""
    say(f"{green('✓') if right else red('✗')} {line}")
    return right


def show_people(everybody: Iterable[Person], now: datetime) -> None:
    """A table of who they are, what they logged, and what we expect of the job."""
    say(dim("Day 1 is the day before yesterday and day 2 is yesterday, in their own zone: ● logged, ○ not."))
    say("")
    say(bold(f"{'Name':26} {'Time zone':19} {'Their time':11} {'1 2':4} We expect"))
    for person in everybody:
        zone = person.zone
        clock = f"{now.astimezone(zone):%a %H:%M}" if zone else "?"
        if zone:
            today = now.astimezone(zone).date()
            ago = {(today - log.astimezone(zone).date()).days for log in person.logs}
            days = " ".join("●" if day in ago else "○" for day in (2, 1))
        else:
            days = "? ?"
        stored = "NULL" if person.time_zone is None else person.time_zone
        expect = f"{person.outcome}: {person.rule}" if person.texted else f"{person.outcome}"
        say(f"{pad(display(person.name), 26)} {pad(display(stored), 19)} {clock:11} {days:4} {expect}")


def show_log_line(line: str) -> None:
    """A line of the program's log, indented, and shortened so that most fit."""
    colour = yellow if " - WARNING - " in line or " - ERROR - " in line else dim
    line, is_log = re.subn(r"^[\d-]{10} ([\d:]{8}) - \w+ - (INFO - )?", r"\1 ", line)
    if is_log:
        line = re.sub(r"(?<!\S)(?!\S*(?:://|=))(\S{9})\S{23,}", r"\1…", line)  # message SIDs, and the longest of names
    indent = " " * 9 if is_log else ""
    for part in textwrap.wrap(line, WIDTH - len(MARGIN) - 2, subsequent_indent=indent, break_on_hyphens=False) or [""]:
        say(f"{dim('│')} {colour(part)}")


def show_phones(texts: Sequence[Message], everybody: Iterable[Person]) -> None:
    """The texts as phones show them, two beside each other."""
    owners = {person.phone_number: person for person in everybody}
    bubbles = [bubble(text, owners[text.to]) for text in texts]
    for left, right in zip_longest(bubbles[::2], bubbles[1::2], fillvalue=[""]):
        for one, other in zip_longest(left, right, fillvalue=" " * BUBBLE):
            say(f"{one}  {other}")


def bubble(text: Message, owner: Person) -> list[str]:
    """The lines of one text in its frame, with the number and the time that its owner's phone shows."""
    zone = owner.zone or UTC
    city = str(zone).rpartition("/")[2].replace("_", " ")
    head = f"{text.to} · {text.accepted_at.astimezone(zone):%a %H:%M} in {city}"
    inner = BUBBLE - 4
    lines = [part for line in text.body.splitlines() for part in wrapped(line, inner) or [""]]
    return [
        f"╭─ {bold(head)} {'─' * (inner - 1 - width(head))}╮",
        *(f"│ {pad(line, inner)} │" for line in lines),
        f"╰{'─' * (inner + 2)}╯",
    ]


def display(text: str) -> str:
    """A text for a cell: nothing that moves the cursor, nothing too long."""
    safe = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    if not safe or safe != safe.strip():
        safe = f"'{safe}'"
    return safe if len(safe) <= 26 else safe[:25] + "…"


def counted(number: int, noun: str) -> str:
    """'no text', '1 text', '2 texts'."""
    return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"


def width(text: str) -> int:
    """The columns that a terminal gives to the text: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def pad(text: str, columns: int) -> str:
    """The text with spaces after it."""
    return text + " " * (columns - width(text))


def wrapped(text: str, columns: int) -> list[str]:
    """The text in lines; those with wide characters are kept shorter than they could be."""
    return textwrap.wrap(text, columns - (width(text) - len(text)))


COLOURED = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOURED and text else text


# Headings, what need not be read, what is right, what is wrong, warnings.
bold, dim, green, red, yellow = (partial(_paint, code) for code in ("1", "2", "32", "31", "33"))


if __name__ == "__main__":
    sys.exit(main())
