"""The least that the program must be told, for tests that reach nobody."""

from __future__ import annotations

from habit_notifier import Settings
from tests.sandbox.fake_twilio import FakeTwilio

ENVIRON = {
    "DB_HOST": "db",
    "DB_NAME": "habits",
    "DB_USER": "app",
    "DB_PASSWORD": "pw",
    "TWILIO_ACCOUNT_SID": FakeTwilio.ACCOUNT_SID,
    "TWILIO_AUTH_TOKEN": FakeTwilio.AUTH_TOKEN,
    "TWILIO_FROM_NUMBER": FakeTwilio.FROM_NUMBER,
}


def settings_of(**given: object) -> Settings:
    """What the program makes of that, and of these."""
    return Settings.read(ENVIRON | {name: str(value) for name, value in given.items()})
