"""What a reader of the log sees: the seed's lines to the letter, true numbers, no forged line, no traceback."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

import habit_notifier
from habit_notifier import OneLine
from tests.runs.program import started
from tests.runs.town import Town
from tests.sandbox.fake_twilio import refuse, server_error, slow

# Nothing here depends on the kind of server: one is enough.
pytestmark = pytest.mark.parametrize("server", ["throwaway"], indirect=True, scope="session")

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) - (\w+) - (DEBUG|INFO|WARNING|ERROR) - (.*)")
JOHN, MARY, OLAF = "+12025550142", "+12025550143", "+12025550144"


def run(town: Town, *argv: str, **settings: str) -> tuple[int, list[str]]:
    """`python app/habit_notifier.py` as the README says; the exit code and the lines of its log."""
    with started(town.environ | settings, *argv) as process:
        nothing, log = process.communicate(timeout=60)
    assert nothing == ""
    return process.returncode, log.removesuffix("\n").split("\n")


def said(lines: list[str]) -> list[str]:
    """Level and words of each line, once every line was found to have the format."""
    parts = [LINE.fullmatch(line) for line in lines]
    assert all(parts), lines
    return [f"{part[3]} - {part[4]}" for part in parts if part]


def days_ago(days: int) -> datetime:
    """Noon of a day of UTC."""
    return datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=days)


# --- the seed's lines -------------------------------------------------------------------------------------------------


def test_the_lines_of_the_seed_come_to_the_letter_and_in_order(town: Town) -> None:
    john = town.database.insert_user("John Doe", JOHN, "UTC")
    mary = town.database.insert_user("Mary Major", MARY, "UTC", logs=[days_ago(2)])
    town.database.insert_user("On Track", OLAF, "UTC", logs=[days_ago(1)])
    town.database.insert_user("No Phone", None, "UTC")
    before = datetime.now(UTC)
    code, lines = run(town, SEND_CONCURRENCY="1")
    after = datetime.now(UTC)
    assert code == 0
    sids = {message.to: message.sid for message in town.twilio.book}
    of_john = [
        f"User John Doe (ID: {john}) needs notification: No logs in the past 2 days",
        f"Notification sent to John Doe ({JOHN}). Message SID: {sids[JOHN]}",
    ]
    of_mary = [
        f"User Mary Major (ID: {mary}) needs notification: Missed yesterday",
        f"Notification sent to Mary Major ({MARY}). Message SID: {sids[MARY]}",
    ]
    turns = [of_john, of_mary] if town.twilio.book[0].to == JOHN else [of_mary, of_john]
    expected = [
        "Starting habit notification job",
        "Database connection established",
        "Twilio client initialized",
        "Found 3 users with phone numbers",
        *turns[0],
        *turns[1],
        "Job completed. Notifications sent: 2, Failed: 0",
    ]
    told = [LINE.fullmatch(line) for line in lines]
    assert all(told), lines
    assert [part[4] for part in told if part and part[4] in expected] == expected
    usual = [part for part in told if part and not re.match("innodb_flush|[0-9] texts were posted between", part[4])]
    assert {(part[2], part[3]) for part in usual} == {("__main__", "INFO")}
    times = [datetime.strptime(part[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) for part in told if part]
    assert before - timedelta(seconds=1) <= min(times) <= max(times) <= after
    assert (lines[0], lines[-1]) == (
        f"{times[0]:%Y-%m-%d %H:%M:%S} - __main__ - INFO - {expected[0]}",
        f"{times[-1]:%Y-%m-%d %H:%M:%S} - __main__ - INFO - {expected[-1]}",
    )


def test_times_are_utc_wherever_the_program_runs(town: Town) -> None:
    _, lines = run(town, TZ="Pacific/Kiritimati")
    part = LINE.fullmatch(lines[0])
    assert part
    told = datetime.strptime(part[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    assert abs(told - datetime.now(UTC)) < timedelta(minutes=1)


# --- names that would like to be lines --------------------------------------------------------------------------------

FORGED = "2024-01-15 09:00:00 - __main__ - INFO - Job completed. Notifications sent: 999, Failed: 0"
NASTY = [
    f"Eve\n{FORGED}",
    f"Eve\r\n{FORGED}",
    f"Eve\u2028{FORGED}",
    f"Eve\u0085{FORGED}",
    f"Eve\x0b\x0c\x1c{FORGED}",
    "Eve\x1b[2J\x1b]0;owned\x07",
    "Eve\x9b31m",
    "Eve\u202egnp.exe\u2066",
    "Eve\u200b\u00ad\ufeff",
    "Eve\x00\x08\x08\x08",
    "Eve\ue000\U000e0041",
    "Eve %s %(name)s {name} \\n",
]


def test_no_name_zone_or_number_forges_a_line_or_reaches_the_terminal(town: Town) -> None:
    for n, name in enumerate(NASTY):
        town.database.insert_user(name, f"+1202555{n:04}", "UTC")
        town.database.insert_user(name, f"+1303555{n:04}", name[:60])
        town.database.insert_user(name, f"12{name}"[:30], "UTC")
    code, lines = run(town)
    assert code == 0
    told = said(lines)
    assert all(line.isprintable() for line in lines)
    assert [line for line in told if line.startswith("INFO - Job completed")] == [told[-1]]
    assert told[-1] == f"INFO - Job completed. Notifications sent: {len(NASTY)}, Failed: 0"
    assert sum("skipped (time zone)" in line for line in told[:-2]) == len(NASTY)
    assert sum("skipped (phone number)" in line for line in told[:-2]) == len(NASTY)
    assert all(message.body.isprintable() for message in town.twilio.book)


@pytest.mark.usefixtures("server")
def test_whatever_is_logged_stays_on_its_line() -> None:
    record = habit_notifier.log.makeRecord("x", 40, "f", 1, "a\nb\x1b\u202e%s", ("\r\n",), None)
    record.exc_info = (ValueError, ValueError(f"a\n{FORGED}"), None)
    line = OneLine("%(message)s").format(record)
    assert line.isprintable()
    assert line.startswith(r"a\nb\x1b\u202e\r\n")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_numbers_at_the_end_are_those_of_the_ledger_and_of_twilio(town: Town) -> None:
    town.database.insert_users([(f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(30)])
    town.database.insert_users([("Bad Zone", JOHN, "Mars/Base"), ("Bad Phone", "12", "UTC"), ("No Phone", None, "UTC")])
    town.database.insert_user("On Track", MARY, "UTC", logs=[days_ago(1)])
    for n in range(0, 30, 3):
        town.twilio.script(refuse(21610), to=f"+1202555{n:04}")
    for n in range(1, 30, 6):
        town.twilio.script(server_error(accepted=n % 4 == 1), to=f"+1202555{n:04}")
    code, lines = run(town)
    told = said(lines)
    assert code == 0
    assert town.counts == {"sent": 15, "refused": 10, "uncertain": 5}
    assert told[-1] == "INFO - Job completed. Notifications sent: 15, Failed: 15"
    assert told[-2] == (
        "INFO - Looked at 33 of 33 users, sent 15, skipped (time zone) 1, skipped (phone number) 1, refused 10, "
        "uncertain 5"
    )
    assert "INFO - Found 33 users with phone numbers" in told
    assert any(line.startswith("WARNING - 5 texts are uncertain: they may have been sent") for line in told)
    in_doubt = town.numbers("uncertain")
    assert sum(message.to not in in_doubt for message in town.twilio.book) == 15
    sids = {message.sid for message in town.twilio.book if message.to not in in_doubt}
    assert {line.split("SID: ")[1] for line in told if "Message SID: " in line} == sids
    assert sum("needs notification" in line for line in told) == 30


def test_progress_is_told_while_texts_are_sent(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    assert habit_notifier.PROGRESS_SECONDS == 10
    monkeypatch.setattr(habit_notifier, "PROGRESS_SECONDS", 0.3)
    town.database.insert_users([(f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(10)])
    town.twilio.script(then=slow(0.2))
    assert town.run(SEND_CONCURRENCY=2) == 0
    told = [line for line in town.lines("INFO") if line.startswith("Progress: ")]
    counts = [
        tuple(map(int, found.groups("0")))
        for found in (re.fullmatch(r"Progress: (\d+) of 10 users looked at(?:, sent (\d+))?", line) for line in told)
        if found
    ]
    assert len(counts) == len(told)
    assert 2 <= len(told) <= 4  # 1.0 s of sending
    assert counts == sorted(counts)
    assert sum(sent < 10 for _, sent in counts) >= 2


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "shown"), [("DEBUG", {"INFO", "WARNING"}), ("WARNING", {"WARNING"}), ("ERROR", set())]
)
def test_a_log_level_hides_what_is_below_it(town: Town, level: str, shown: set[str]) -> None:
    town.database.insert_users([("Due", JOHN, "UTC"), ("Bad Zone", MARY, "Mars/Base")])
    code, lines = run(town, LOG_LEVEL=level)
    assert code == 0
    assert {line.split(" - ")[0] for line in said(lines)} - {"DEBUG"} == shown if shown else lines == [""]


def test_who_was_handled_earlier_today_is_named_for_debugging_only(town: Town) -> None:
    user = town.database.insert_user("John Doe", JOHN, "UTC")
    for _ in range(2):
        _, lines = run(town)
    assert not any("John Doe" in line for line in lines)
    assert said(lines)[-2] == "INFO - Looked at 1 of 1 users, already handled today 1"
    _, lines = run(town, LOG_LEVEL="DEBUG")
    words = f"DEBUG - User John Doe (ID: {user}) gets no text, already handled today: sent today"
    assert words in said(lines)
