"""A few users, a fake Twilio, and runs of the program on the days that a test chooses: for stories of many days."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from habit_notifier import Clock, OneLine
from tests.runs import program
from tests.sandbox.database import LEDGER, Database, Id
from tests.sandbox.fake_twilio import FakeTwilio, Message

FORM = OneLine("%(levelname)s %(message)s")


@dataclass
class Town:
    """What the program runs in, and what it did there."""

    database: Database
    twilio: FakeTwilio
    environ: dict[str, str]
    caplog: pytest.LogCaptureFixture

    def run(self, at: datetime | Clock, **settings: str) -> int:
        """A whole run at that instant, or by that clock; the exit code."""
        self.caplog.clear()
        self.before = len(self.twilio.book)
        return program.run(self.environ | settings, at=at)

    @property
    def log(self) -> list[str]:
        """What the last run said."""
        return [FORM.format(record) for record in self.caplog.records if record.name == "habit_notifier"]

    def said(self, words: str) -> int:
        """In how many of its lines the last run said that."""
        return sum(words in line for line in self.log)

    @property
    def texts(self) -> list[Message]:
        """What the last run sent."""
        return self.twilio.book[self.before :]

    @property
    def texted(self) -> list[str]:
        """Whom the last run texted."""
        return sorted(message.to for message in self.texts)

    def user(self, phone: str, zone: str = "UTC", **user: Any) -> Id:
        """A user, who is due unless there are logs that say otherwise."""
        return self.database.insert_user(f"User {phone[-4:]}", phone, zone, **user)

    @property
    def ledger(self) -> list[tuple[Any, ...]]:
        """Number, state, code and Twilio's last word of each row."""
        return self.database.rows(
            f"SELECT phone_number, state, error_code, final_status FROM {LEDGER} ORDER BY local_day, user_id"
        )
