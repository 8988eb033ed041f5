"""The SQL of DEPLOYMENT.md, run from top to bottom as an administrator does, with the program at work in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pymysql
import pytest

from habit_notifier import Exit, Settings, utc_now
from tests.project.shell import ROOT
from tests.runs import program
from tests.sandbox.database import Database
from tests.sandbox.fake_twilio import FakeTwilio

DOCUMENT = (ROOT / "DEPLOYMENT.md").read_text()
SCALE = (ROOT / "docs/scale.md").read_text()
ACCOUNT, PASSWORD, NEW_PASSWORD = "'habit_notifier'@'%'", "a-long-random-password", "another-long-random-password"


class Administrator:
    """Takes the document's statements in their order."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.user = f"n_{database.name}"[:30]
        blocks = re.findall(r"^```sql\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
        self.left = [sql.strip() for block in blocks for sql in block.split(";") if sql.strip()]

    def runs(self, words: str) -> list[tuple[object, ...]]:
        """Run the next statement, which holds the words; its rows."""
        sql = self.left.pop(0)
        assert words in sql
        sql = sql.replace(ACCOUNT, f"'{self.user}'@'%'").replace("habit_tracker.", f"`{self.database.name}`.")
        return list(self.database.rows(sql))


@pytest.fixture
def administrator(database: Database) -> Iterator[Administrator]:
    someone = Administrator(database)
    yield someone
    database.execute(f"DROP USER IF EXISTS '{someone.user}'@'%'")


def test_every_statement_works_in_the_order_of_the_document(
    database: Database, twilio: FakeTwilio, administrator: Administrator
) -> None:
    environ = database.environ() | twilio.environ() | {"DB_USER": administrator.user, "DB_PASSWORD": PASSWORD}

    def run() -> Exit:
        return Exit(program.run(environ))

    database.insert_users((f"Due {n}", f"+1202555{n:04}", "UTC") for n in range(50))
    for words in ("CREATE USER", "`User`", "`Habit`", "`Log`", "`HabitNotification`"):
        administrator.runs(words)
    assert run() is Exit.DONE
    administrator.runs("REVOKE CREATE")
    assert run() is Exit.DONE
    administrator.runs("ADD INDEX")
    assert database.rows("SHOW INDEX FROM `Log` WHERE Key_name = 'log_habit_created'")
    administrator.runs("REQUIRE SSL")
    assert len(twilio.book) == 50
    for words in ("RETAIN CURRENT PASSWORD", "DISCARD OLD PASSWORD"):
        if "MariaDB" in database.server.label:
            with pytest.raises(pymysql.err.ProgrammingError):  # it has no second password, as the document says
                administrator.runs(words)
            continue
        administrator.runs(words)
        passwords = (NEW_PASSWORD, PASSWORD) if words.startswith("RETAIN") else (NEW_PASSWORD,)
        for password in passwords:
            environ["DB_PASSWORD"] = password
            assert run() is Exit.DONE
    two_weeks = administrator.runs("SELECT local_day")
    assert [row[1:] for row in two_weeks] == [(50, 0, 0, 0, 0, 50, None)]
    administrator.runs("user_id = 42")
    assert database.rows("SELECT COUNT(*) FROM HabitNotification") == [(49,)]
    administrator.runs("DROP TABLE")
    administrator.runs("DROP USER")
    assert not administrator.left


def test_the_last_two_weeks_are_told_by_day(environ: dict[str, str], database: Database) -> None:
    assert program.run(environ) == Exit.DONE  # makes the ledger
    rows = [
        (1, 0, "sent", None, "delivered", 1), (2, 0, "sent", None, "read", 2), (3, 0, "sent", None, None, 1),
        (4, 0, "sent", 30003, "undelivered", 1), (5, 0, "sent", 30034, "failed", 1), (6, 0, "sent", None, "unknown", 1),
        (7, 0, "refused", 21610, "refused", None), (8, 0, "uncertain", None, None, None),
        (9, 0, "sending", None, None, None), (10, 0, "an unknown one", None, None, None),
        (1, 13, "sent", 30003, "undelivered", 1), (1, 15, "sent", None, None, 1),
    ]  # fmt: skip
    for user_id, ago, *rest in rows:
        columns = "state", "error_code", "final_status", "segments"
        database.insert_row(user_id, utc_now() - timedelta(days=ago), **dict(zip(columns, rest, strict=True)))
    [statement] = (sql for sql in Administrator(database).left if sql.startswith("SELECT"))
    told = database.rows(statement.replace("habit_tracker.", ""))
    assert [(row[0] - told[0][0]).days for row in told] == [0, 13]
    assert [row[1:] for row in told] == [(1, 0, 1, 0, 0, 1, "30003"), (6, 2, 2, 1, 3, 7, "21610,30003,30034")]


SENDERS = re.findall(r"^\| (.+) \| (\d+) \| (.+) \| (.+) \| (.+) \| ([\d,]+) \|$", SCALE, flags=re.MULTILINE)


@pytest.mark.parametrize("row", SENDERS, ids=lambda row: row[0])
def test_the_table_of_senders_follows_its_formula(row: tuple[str, ...]) -> None:
    _, pace, *times, most = row
    [period] = (f.metadata["default"] for f in Settings.__dataclass_fields__.values() if f.name == "validity_period")
    assert int(most.replace(",", "")) == int(pace) * int(period)
    for due, said in zip((1_000, 10_000, 100_000), times, strict=True):
        seconds = due / int(pace)
        assert said == (in_words(seconds) if seconds <= int(period) else "too many")


def in_words(seconds: float) -> str:
    """The time, to the minute above one."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def test_there_are_three_senders() -> None:
    assert len(SENDERS) == 3
