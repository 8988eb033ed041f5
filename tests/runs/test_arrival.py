"""Texts that arrive, and no more of them than are wanted: the gates in the whole program, over days."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from uuid import UUID
from zlib import crc32

import pytest

from habit_notifier import Exit
from tests.rules.peace import Model, story
from tests.runs.town import NOON, Town, at_send, create_ledger, senders, variants
from tests.sandbox.database import LEDGER, Id
from tests.sandbox.fake_twilio import ACCEPT, Answer, refuse, server_error

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PHONE = "+12025550100"


def populate(town: Town, count: int) -> dict[Id, str]:
    """So many users, all of them due; their numbers."""
    numbers = [f"+1202556{n:04}" for n in range(count)]
    ids = town.database.insert_users((f"User {n}", number, "UTC") for n, number in enumerate(numbers))
    return dict(zip(ids, numbers, strict=True))


# --- what became of earlier texts


@senders
def test_a_sender_that_carriers_block_texts_every_second_day_and_says_so(town: Town, sender: dict[str, str]) -> None:
    numbers = sorted(populate(town, 12).values())
    for day in range(6):
        blocked = day % 2 == 1
        assert town.run(NOON + day * DAY, **sender) == (2 if blocked else 0)
        assert town.texted == ([] if blocked else numbers)
        if blocked:
            learned = "INFO Looked up 12 earlier texts, undelivered 12 (the sender is not registered (A2P 10DLC)"
            assert town.log[-2].startswith(learned)  # not above a line for each of them
            assert town.log[-1].startswith("ERROR Carriers block the sender: they stopped 12 of the last 12 texts, ")
            assert "Nobody was texted; the next run tries again" in town.log[-1]
            assert town.said("needs notification") == 0
        for number in numbers:
            town.twilio.settle(number, "undelivered", 30034)
    assert len(town.ledger) == 36


def test_hourly_runs_find_a_blocked_sender_an_hour_later_and_try_again_each_day(town: Town) -> None:
    """As DEPLOYMENT says of it."""
    numbers = sorted(populate(town, 6).values())
    town.sql("UPDATE User SET time_zone = 'America/Chicago' WHERE id > 3")  # where it is nine two hours later
    for day in range(3):
        for hour, code in enumerate([0, 2, 0, 2, 0]):
            assert town.run(NOON + day * DAY + hour * HOUR, SEND_WINDOW="09:00-20:00") == code
            assert town.texted == {0: numbers[:3], 2: numbers[3:]}.get(hour, [])
            for number in town.texted:
                town.twilio.settle(number, "undelivered", 30034)


def test_each_shard_finds_a_blocked_sender_by_its_own_users(town: Town) -> None:
    users = populate(town, 30)
    own = [[number for user, number in users.items() if crc32(str(user).encode()) % 2 == shard] for shard in (0, 1)]
    for day in range(6):
        for shard in (0, 1):
            code = town.run(NOON + day * DAY, SHARD_COUNT="2", JOB_COMPLETION_INDEX=str(shard))
            blocked = shard == 1 and day % 2 == 1
            assert code == (2 if blocked else 0)
            assert town.texted == ([] if blocked else sorted(own[shard]))
        for number in own[1]:
            town.twilio.settle(number, "undelivered", 30007)


def test_what_was_learned_stands_among_the_last_lines(town: Town) -> None:
    first, second, third = sorted(populate(town, 3).values())
    assert town.run(NOON) == 0
    town.twilio.settle(first, "delivered")
    town.twilio.settle(second, "undelivered", 30003)
    town.twilio.settle(third, "failed", 30008)
    assert town.run(NOON + DAY) == 0
    learned, looked_at, completed = town.log[-3:]
    assert looked_at.startswith("INFO Looked at 3 of 3 users, sent 3")
    assert completed == "INFO Job completed. Notifications sent: 3, Failed: 0"
    assert learned == (
        "INFO What became of earlier texts, delivered 1, "
        "failed 1 (for a reason that the carrier does not tell, error 30008, "
        "https://www.twilio.com/docs/api/errors/30008), undelivered 1 (the phone was off or out of reach, error 30003, "
        "https://www.twilio.com/docs/api/errors/30003)"
    )


@senders
def test_two_losses_and_an_arrival_change_nothing(town: Town, sender: dict[str, str]) -> None:
    town.user(PHONE)
    for day, end in enumerate(["undelivered", "undelivered", "delivered", "undelivered", "undelivered", "delivered"]):
        assert town.run(NOON + day * DAY, **sender) == 0
        assert town.texted == [PHONE]
        town.twilio.settle(town.texts[0].sid, end, 30003 if end == "undelivered" else None)


@senders
def test_three_losses_in_a_row_leave_a_number_alone_until_it_is_another(town: Town, sender: dict[str, str]) -> None:
    user = town.user(PHONE)
    days = []
    for day in (*range(6), 31, 32, 33):
        assert town.run(NOON + day * DAY, **sender) == 0
        if town.texts:
            days.append(day)
            town.twilio.settle(PHONE, "undelivered", 30003)
        elif day == 5:
            words = (
                "left alone (texts do not arrive): the last 3 texts did not arrive: the phone was off or out of reach"
            )
            assert town.said(words) == 1
            assert town.log[-1] == "INFO Job completed. Notifications sent: 0, Failed: 0"
    assert days == [0, 1, 2, 32]  # thirty days after the last one it is tried once more
    town.sql("UPDATE User SET phone_number = '+1 202-555-0177' WHERE id = %s", (user,))
    assert town.run(NOON + 40 * DAY, **sender) == 0
    assert town.texted == ["+12025550177"]


@pytest.mark.parametrize(("lost", "told"), [(10, True), (9, False)])
def test_when_most_of_those_due_are_left_alone_a_run_says_so_and_the_remedy_of_the_runbook_works(
    town: Town, lost: int, told: bool
) -> None:
    """A carrier's bad week, or a code that we do not know, would else end a month of runs without a word."""
    numbers = sorted(populate(town, 19).values())
    for day in range(3):
        assert town.run(NOON + day * DAY) == 0
        for n, number in enumerate(numbers):
            town.twilio.settle(number, *(("undelivered", 30999) if n < lost else ("delivered",)))
    for hour in range(2):
        assert town.run(NOON + 3 * DAY + hour * HOUR) == 0
        assert town.texted == ([] if hour else numbers[lost:])
        assert town.said(f"WARNING {lost} users, most of those due, are left alone") == told
    assert town.run(NOON + 4 * DAY, UNDELIVERED_LIMIT="0") == 0
    for number in town.texted:
        town.twilio.settle(town.texts[numbers.index(number)].sid, "delivered")
    assert town.run(NOON + 5 * DAY) == 0
    assert town.texted == numbers
    assert not town.said("are left alone")


def test_a_text_that_fails_at_once_counts_like_one_that_fails_later(town: Town) -> None:
    town.user(PHONE)
    body = f'{{"sid": "SM{"0" * 32}", "status": "failed", "error_code": 30005, "num_segments": "1"}}'
    for day in range(3):
        town.twilio.script(Answer("failed at once", body=body))
        assert town.run(NOON + day * DAY) == 0
        if day == 0:
            assert town.said("refused: +12025550100: Twilio took it, but says failed: the number does not exist") == 1
            message = town.twilio.book[-1]
            message.sid, message.status, message.error_code = "SM" + "0" * 32, "failed", 30005
        else:
            assert town.texts == []
            assert town.said("refused earlier: the last text did not arrive: the number does not exist") == 1


# --- in peace


@pytest.mark.parametrize("seed", range(4))
def test_a_user_is_left_in_peace_as_the_definitions_say(town: Town, seed: int) -> None:
    user, model = town.user(PHONE), Model()
    [habit] = town.database.insert_habits([user])
    answers = {"uncertain": server_error(accepted=True), "refused": refuse(21610)}
    for step in story(seed, 25):
        now = datetime.combine(step.day, time(9), UTC)
        town.twilio.script(answers.get(step.fate, ACCEPT))
        seen = len(town.twilio.requests)
        limits = {"QUIET_AFTER": str(step.quiet_after), "MAX_PER_WEEK": str(step.max_per_week)}
        code = town.run(now, UNDELIVERED_LIMIT="0", REFUSED_RETRY_DAYS="0", **limits)
        texted = any(request.operation == "send" for request in town.twilio.requests[seen:])
        assert texted == model.texts(step), (step, town.ledger)
        assert code == (1 if texted and step.fate == "uncertain" else 0)
        for message in town.texts:
            if step.fate in ("delivered", "undelivered"):
                town.twilio.settle(message.sid, step.fate, 30003 if step.fate == "undelivered" else None)
        town.database.insert_logs([(habit, now + 3 * HOUR)] if step.logs else [])


def test_a_log_that_is_a_date_ends_the_silence(town: Town) -> None:
    user = town.user(PHONE)
    town.sql("ALTER TABLE Log MODIFY created_at DATE")
    [habit] = town.database.insert_habits([user])
    texted = []
    for day in range(7):
        assert town.run(NOON + day * DAY, QUIET_AFTER="2") == 0
        texted += [day] if town.texts else []
        town.database.insert_logs([(habit, NOON + day * DAY)] if day == 4 else [])
    assert texted == [0, 1, 6]
    assert town.run(NOON + 7 * DAY, QUIET_AFTER="2") == 0
    assert town.texts
    assert town.run(NOON + 8 * DAY, QUIET_AFTER="2") == 0
    assert town.said("left in peace (QUIET_AFTER): no log since the last 2 texts: silence until the next log") == 1


@pytest.mark.parametrize("column", ["DATETIME", "DATE"])
def test_of_logs_that_are_ahead_only_those_of_another_zone_end_the_silence(town: Town, column: str) -> None:
    """A clock may be years ahead; and where it is tomorrow already, today's log is one."""
    town.sql(f"ALTER TABLE Log MODIFY created_at {column}")
    town.user(PHONE, logs=[NOON + 1_000 * DAY])
    [habit] = town.database.insert_habits([town.user("+12025550199", "Pacific/Kiritimati")])
    for day in range(2):
        assert town.run(NOON + day * DAY, QUIET_AFTER="2") == 0
        assert len(town.texts) == 2
    town.database.insert_logs([(habit, NOON + 2 * DAY + 13 * HOUR)])
    assert town.run(NOON + 2 * DAY, QUIET_AFTER="2") == 0
    assert town.texted == ["+12025550199"]
    assert town.said("left in peace (QUIET_AFTER) 1") == 1


# --- MAX_TEXTS


def a_few(town: Town) -> None:
    """Six users who are due, four by the one rule and two by the other, and one who is on track."""
    for n in range(6):
        town.user(f"+1202555010{n}", logs=[NOON - 2 * DAY] if n < 2 else [])
    town.user("+12025550106", logs=[NOON - DAY])


@pytest.mark.parametrize(("limit", "sent"), [("7", 6), ("6", 6), ("5", 0), ("1", 0), ("0", 6)])
def test_more_texts_than_the_limit_are_no_text_at_all(town: Town, limit: str, sent: int) -> None:
    a_few(town)
    assert town.run(NOON, MAX_TEXTS=limit, SEND_CONCURRENCY="1") == (0 if sent else 2)
    assert len(town.texts) == len(town.ledger) == sent
    if not sent:
        counts = '"No logs in the past 2 days" 4, "Missed yesterday" 2'
        words = f"ERROR 6 texts are due ({counts}), more than MAX_TEXTS={limit}: nobody is texted."
        assert town.log[-1].startswith(words)
        assert town.log[-2] == "INFO Job completed. Notifications sent: 0, Failed: 6"
        assert town.said("not tried: the run ended before") == 6
        assert town.said("needs notification") == 0


@pytest.mark.parametrize(("limit", "code"), [("6", Exit.DONE), ("5", Exit.ACT)])
@pytest.mark.constants(OTHERS_ANSWER=5.0)
def test_whom_another_run_may_let_go_counts_too(town: Town, limit: str, code: Exit) -> None:
    a_few(town)
    create_ledger(town.database)
    for user in town.ids[4:6]:
        town.database.insert_row(user, NOON, state="sending", finished_at=None)
    town.twilio.hook = at_send(1, lambda: town.sql(f"DELETE FROM {LEDGER} WHERE user_id > 4"))
    assert town.run(NOON, MAX_TEXTS=limit) == code
    assert len(town.texts) == (6 if code == Exit.DONE else 0)
    assert town.said("more than MAX_TEXTS") == (0 if code == Exit.DONE else 2)


def test_only_those_count_whom_no_gate_holds_back(town: Town) -> None:
    a_few(town)
    town.user("+12025550111", "America/Los_Angeles")  # 5:00 there
    town.user("call me", "UTC")
    assert town.run(NOON, MAX_TEXTS="6", SEND_WINDOW="09:00-20:00") == 0
    assert len(town.texts) == 6
    assert town.run(NOON + HOUR, MAX_TEXTS="1", SEND_WINDOW="09:00-20:00") == 0  # nobody is left


def test_each_shard_has_the_limit_for_itself(town: Town) -> None:
    users = populate(town, 30)
    share = [sum(crc32(str(user).encode()) % 2 == shard for user in users) for shard in (0, 1)]
    assert share[0] != share[1]
    codes = [
        town.run(NOON, MAX_TEXTS=str(min(share)), SHARD_COUNT="2", JOB_COMPLETION_INDEX=str(shard)) for shard in (0, 1)
    ]
    assert codes == [0 if count == min(share) else 2 for count in share]
    assert len(town.twilio.book) == len(town.ledger) == min(share)


DAY_1 = NOON - NOON.replace(hour=0) + 48 * HOUR  # ago: where it began in UTC
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("users", "newest", "told"),
    [
        (100, None, True),
        (100, DAY_1 + SECOND, True),
        (100, DAY_1, False),
        (100, DAY_1 - SECOND, False),
        (99, None, False),
        (99, DAY_1 + SECOND, False),
    ],
)
@pytest.mark.parametrize("ahead", [False, True], ids=["", "a phone's clock is ahead"])
def test_when_nobody_logs_any_more_a_run_says_so(
    town: Town, users: int, newest: timedelta | None, told: bool, ahead: bool
) -> None:
    ids = populate(town, users)
    [habit] = town.database.insert_habits(list(ids)[:1])
    town.database.insert_logs([(habit, NOON - newest)] if newest else [])
    town.database.insert_logs([(habit, NOON + 900 * DAY)] if ahead and newest else [])
    for limit, code in (("50", 2), ("0", 0)):
        assert town.run(NOON, MAX_TEXTS=limit) == code
        assert bool(town.texts) == (code == 0)
        assert town.said("WARNING there is no log of the last days at all: is what writes them broken?") == told


def test_that_there_is_nobody_at_all_to_text_is_said_as_a_warning(town: Town) -> None:
    words = "WARNING nobody in User has a phone number: is DB_NAME right"
    town.database.insert_user("No phone", "", "UTC")
    assert town.run(NOON) == 0
    assert town.said(words)
    assert town.log[-2:] == ["INFO Looked at 0 of 0 users", "INFO Job completed. Notifications sent: 0, Failed: 0"]
    assert town.run(NOON, "--check") == 0
    assert town.said("WARNING users and logs: nobody in User has a phone number")
    assert town.run(NOON, SHARD_COUNT="2", JOB_COMPLETION_INDEX="0") == 0  # one of few users may fall to no shard
    assert not town.said(words)
    populate(town, 1)
    assert town.run(NOON) == 0
    assert not town.said(words)


# --- ONLY_USERS


id_types = variants({"id_type": "INT"}, {"id_type": "CHAR(36)"}, {"id_type": "CHAR(32)"})


@id_types
def test_a_first_try_reaches_those_who_are_named_and_touches_nobody_else(town: Town) -> None:
    users = populate(town, 20)
    town.database.insert_users([("No zone", "+12025550190", "Mars/Olympus"), ("No phone", "x", "UTC")])
    [one, other, *_] = sorted(users)
    missing = "999999" if isinstance(one, int) else "7b0e2f5c-3d8a-4a2b-9a50-1c5f1e6d7a90"
    [silent] = town.database.insert_users([("No number at all", " ", "UTC")])
    only = f"{str(one).upper()}, {other if isinstance(other, int) else UUID(str(other))},{missing},{silent}"
    assert town.run(NOON, ONLY_USERS=only) == 0
    assert town.texted == sorted([users[one], users[other]])
    assert sorted(row[0] for row in town.ledger) == town.texted
    assert "WARNING ONLY_USERS is set: of all users only these 4 may be texted" in town.log
    for nobody in (missing, str(UUID(str(silent))) if isinstance(silent, str) else silent):
        assert f"WARNING ONLY_USERS names {nobody}: there is no such user with a phone number" in town.log
    assert town.said("there is no such user") == 2
    assert set(re.findall(r"\(ID: ([\w-]+)\)", "\n".join(town.log))) == {str(one), str(other)}
    assert town.said("not in ONLY_USERS 20") == 1
    assert town.log[-1] == "INFO Job completed. Notifications sent: 2, Failed: 0"


@id_types
def test_who_is_missing_is_told_by_each_shard_and_nobody_else_is(town: Town) -> None:
    users = sorted(populate(town, 6))
    for shard in range(3):
        only = ",".join(map(str, users)) + ",123456789"
        assert town.run(NOON, ONLY_USERS=only, SHARD_COUNT="3", JOB_COMPLETION_INDEX=str(shard)) == 0
        assert [line for line in town.log if "no such user" in line] == [
            "WARNING ONLY_USERS names 123456789: there is no such user with a phone number"
        ]
    assert len(town.twilio.book) == 6


@variants({"id_type": "CHAR(36)", "collation": "utf8mb4_bin"})
def test_ids_that_differ_in_case_alone_are_two_people(town: Town) -> None:
    for key, number in (("aB", "+12025550101"), ("Ab", "+12025550102"), ("auth0|7", "+12025550103")):
        row = "INSERT INTO User (id, name, phone_number, time_zone) VALUES (%s, 'Ana', %s, 'UTC')"
        town.database.execute(row, (key, number))
    assert town.run(NOON, ONLY_USERS="aB,auth0|7") == 0
    assert town.texted == ["+12025550101", "+12025550103"]
    assert not town.said("there is no such user")


# --- the texts themselves


def test_a_run_says_once_what_carriers_or_the_bill_would_dislike(town: Town) -> None:
    town.user("+12025550101")
    town.user("+12025550102")
    long = {
        "MESSAGE_NO_LOGS": "Habits: " + "a" * 143 + " {name}",
        "MESSAGE_MISSED_YESTERDAY": "Habits: hi. STOP ends it",
    }
    assert town.run(NOON, **long) == 0
    costs = "MESSAGE_NO_LOGS costs 2 segments with a name of 9 characters: one has 160 characters (70 if not GSM-7)"
    assert [line for line in town.log if "WARNING MESSAGE_" in line] == [
        'WARNING MESSAGE_NO_LOGS does not say how to opt out: write "Reply STOP to opt out"',
        f"WARNING {costs}",
    ]
    assert town.run(NOON + HOUR, **long) == 0
    assert town.said("segments") == 0  # nobody was texted


@pytest.mark.parametrize("name", ["", "  ", None, "Jo"])
def test_who_has_no_name_is_called_there_in_what_a_text_costs_too(town: Town, name: str | None) -> None:
    user = town.user("+12025550101")
    town.sql("UPDATE User SET name = COALESCE(%s, '') WHERE id = %s", (name, user))
    assert town.run(NOON, MESSAGE_NO_LOGS="a" * 150 + " STOP {name}") == 0
    assert town.said("costs 2 segments with a name of 5 characters") == (name != "Jo")
