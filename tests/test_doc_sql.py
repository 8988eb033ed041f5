"""The SQL of DEPLOYMENT.md, run from top to bottom as an administrator does, with the program at work in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from habit_notifier import Exit, Settings
from tests import program
from tests.sandbox.database import Database
from tests.sandbox.fake_twilio import FakeTwilio

DOCUMENT = (Path(__file__).resolve().parents[1] / "DEPLOYMENT.md").read_text()
ACCOUNT, PASSWORD = "'habit_notifier'@'%'", "a-long-random-password"


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
    with database.server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP USER IF EXISTS '{someone.user}'@'%'")


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
    administrator.runs("REQUIRE SSL")
    administrator.runs("ADD INDEX")
    assert database.rows("SHOW INDEX FROM `Log` WHERE Key_name = 'log_habit_created'")
    assert len(twilio.book) == 50
    assert [state_and_count[1:] for state_and_count in administrator.runs("SELECT local_day")] == [("sent", 50)]
    administrator.runs("user_id = 42")
    assert database.rows("SELECT COUNT(*) FROM HabitNotification") == [(49,)]
    administrator.runs("DROP TABLE")
    administrator.runs("DROP USER")
    assert not administrator.left


SENDERS = re.findall(r"^\| (.+) \| (\d+) \| (.+) \| (.+) \| (.+) \| ([\d,]+) \|$", DOCUMENT, flags=re.MULTILINE)


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
