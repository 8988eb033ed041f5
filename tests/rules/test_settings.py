"""Settings: all mistakes are told at once, each with name, what is wrong and what to write; no secret ever shows."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from datetime import time
from pathlib import Path
from typing import Any

import certifi
import pytest

from habit_notifier import FixFirst, Settings, Stop, clean, main
from tests.environ import ENVIRON
from tests.sandbox.fake_twilio import FakeTwilio

PROGRAM = Path(__file__).resolve().parents[2] / "app" / "habit_notifier.py"
SHARD = {"SHARD_COUNT": "1000", "JOB_COMPLETION_INDEX": "0"}
KEY = {"TWILIO_API_KEY_SID": FakeTwilio.API_KEY_SID, "TWILIO_API_KEY_SECRET": "key-secret", "TWILIO_AUTH_TOKEN": ""}
SERVICE = {"TWILIO_MESSAGING_SERVICE_SID": FakeTwilio.MESSAGING_SERVICE_SID, "TWILIO_FROM_NUMBER": ""}
SECRETS = {
    "DB_USER",
    "DB_PASSWORD",
    "TWILIO_ACCOUNT_SID",
    "TWILIO_AUTH_TOKEN",
    "TWILIO_API_KEY_SID",
    "TWILIO_API_KEY_SECRET",
    "HEARTBEAT_URL",
}


def problems(environ: Mapping[str, str]) -> list[str]:
    """What the program says against these settings."""
    try:
        Settings.read(environ)
    except FixFirst as failure:
        return list(failure.args)
    return []


def problems_with(**changes: str) -> list[str]:
    return problems(ENVIRON | changes)


# --- the seed's eight variables are enough


def test_the_eight_variables_of_the_interface_are_enough() -> None:
    told = Settings.read(ENVIRON | {"DB_PORT": "3307"})
    assert (told.db_host, told.db_port, told.db_name, told.db_user) == ("db", 3307, "habits", "app")
    assert (told.db_password, told.twilio_auth_token) == ("pw", FakeTwilio.AUTH_TOKEN)
    assert (told.twilio_account_sid, told.twilio_from_number) == (FakeTwilio.ACCOUNT_SID, FakeTwilio.FROM_NUMBER)


@pytest.mark.parametrize("blank", ["", " "])
def test_what_is_set_but_blank_counts_as_not_set(blank: str) -> None:
    """Blanks round a secret belong to it."""
    names = [f.name.upper() for f in fields(Settings)]
    unset = {name: "" if name in SECRETS else blank for name in names} | {f"{name}_FILE": "" for name in names}
    assert Settings.read(unset | ENVIRON) == Settings.read(ENVIRON)
    assert problems(unset) == problems({})


# --- each setting's values

HEX = "0123456789abcdefABCDEF0123456789"
MISSING_FILE = "/nowhere/to/be/found.pem"

GOOD: dict[str, dict[str, Any]] = {  # text: value
    "DB_HOST": {
        text: text
        for text in ("db", "127.0.0.1", "::1", "2001:db8::7", "mysql.data.svc.cluster.local", "my_host-1", "DB")
    }
    | {" db\n": "db"},
    "DB_PORT": {"1": 1, "65535": 65_535, " 3306\n": 3306},
    "DB_NAME": {"habit_tracker": "habit_tracker", " habits ": "habits", "Gewohnheiten-ä": "Gewohnheiten-ä"},
    "DB_USER": {"root": "root", "app@%": "app@%"},
    "DB_PASSWORD": {text: text for text in ("x", " leading and trailing ", "pä$$'\"\\`{}%s", "youre-in", "x" * 500)}
    | {"from a file\r\n": "from a file", "\ufefffrom Windows\r\n": "from Windows"},
    "DB_SSL_CA": {certifi.where(): certifi.where()},
    "TWILIO_ACCOUNT_SID": {f"AC{HEX}": f"AC{HEX}"},
    "TWILIO_AUTH_TOKEN": {"any": "any"},
    "TWILIO_API_KEY_SID": {f"SK{HEX}": f"SK{HEX}"},
    "TWILIO_API_KEY_SECRET": {"any": "any"},
    "TWILIO_FROM_NUMBER": {t: t for t in ("+14155550123", "+1234567", "+123456789012345", "123", "12345678")},
    "TWILIO_MESSAGING_SERVICE_SID": {f"MG{HEX}": f"MG{HEX}"},
    "TWILIO_API_URL": {
        "https://api.twilio.com/": "https://api.twilio.com",
        **{t: t for t in ("https://proxy.example:8443", "https://10.0.0.1", "https://[2001:db8::1]")},
        **{t: t for t in ("http://localhost:8080", "http://127.0.0.1", "http://127.3.2.1:65535", "http://[::1]:8080")},
    },
    "SEND_CONCURRENCY": {"1": 1, "64": 64},
    "SEND_WINDOW": {
        "09:00-20:00": (time(9), time(20)),
        " 00:00 - 23:59 ": (time(0), time(23, 59)),
        "09:30-10:30": (time(9, 30), time(10, 30)),
        "22:59-23:59": (time(22, 59), time(23, 59)),
    },
    "DAY_STARTS_AT": {"00:00": time(0), "03:30": time(3, 30), "06:00": time(6)},
    "DEFAULT_TIME_ZONE": {"Europe/Berlin": "Europe/Berlin", "utc": "utc"},
    "MESSAGE_NO_LOGS": {t: t for t in ("{name}", "no name", "x" * 1_600, "{name}" * 40, "100 % \\n $name")},
    "MESSAGE_MISSED_YESTERDAY": {t: t for t in ("{name}", "no name", "ñ 👍", "x" * 1_600)},
    "VALIDITY_PERIOD": {"60": 60, "36000": 36_000},
    "REFUSED_RETRY_DAYS": {"0": 0, "90": 90},
    "UNDELIVERED_LIMIT": {"0": 0, "10": 10},
    "QUIET_AFTER": {"0": 0, "14": 14},
    "MAX_PER_WEEK": {"0": 0, "7": 7},
    "MAX_TEXTS": {"0": 0, "20000": 20_000},
    "ONLY_USERS": {
        "42": {"42"},
        " 42, 43,42 ": {"42", "43"},
        ",".join(map(str, range(100))): set(map(str, range(100))),
        "0D1F3F5C-aaaa-4bbb-8ccc-000000000001": {"0d1f3f5c-aaaa-4bbb-8ccc-000000000001"},
    },
    "RUN_DEADLINE": {"1": 1, "86400": 86_400},
    "SHARD_COUNT": {"1": 1, "1000": 1_000},
    "JOB_COMPLETION_INDEX": {"0": 0, "999": 999},
    "LOG_LEVEL": {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARNING", "ERROR": "ERROR"},
    "LOG_FORMAT": {"text": "text", "json": "json"},
    "LOG_PII": {"on": "on", "off": "off"},
    "HEARTBEAT_URL": {
        t: t
        for t in (
            "https://hc.example/ping/0123",
            "http://localhost:8080/x",
            "http://127.0.0.1",
            "https://hc.example:8443/",
        )
    },
}
BAD_TEXTS = (
    *("{", "}", "{}", "{Name}", "{nmae}", "{name", "name}", "{{name}}", "{na{name}me}", "{name!r}", "{0}"),
    "x" * 1_601,
)
BAD: dict[str, tuple[str, ...]] = {
    "DB_HOST": (
        *("mysql://db", "db:3306", "db/habits", "app@db", "my db", "tcp(db)", "your-mysql-host"),
        *("mysql://root:hunter2@db/x", "root:hunter2@db"),
        *("a..b", ".db", "db..", f"{'x' * 64}.example", f"db.{'x' * 64}"),  # what no resolver can look up
    ),
    "DB_PORT": ("0", "65536", "-1", "33o6", "3306.0", "1e3", "0x1", "your-port"),
    "DB_NAME": ("your-db",),
    "DB_USER": ("your-db-user", "YOUR-DB-USER"),
    "DB_PASSWORD": ("your-db-password",),
    "DB_SSL_CA": (MISSING_FILE, "/", "your-ca.pem", __file__),  # the last one holds no certificate
    "TWILIO_ACCOUNT_SID": ("your-sid", "AC", f"AC{HEX}0", f"AC{HEX[1:]}", f"ac{HEX}", f"SK{HEX}", "AC" + "g" * 32, HEX),
    "TWILIO_AUTH_TOKEN": ("your-token",),
    "TWILIO_API_KEY_SID": (f"AC{HEX}", "your-api-key-sid", "SK"),
    "TWILIO_API_KEY_SECRET": ("your-api-key-secret",),
    "TWILIO_FROM_NUMBER": (
        *("+1234567890", "your-twilio-number"),  # placeholders
        *("14155550123", "+1 415 555 0123", "+123456", "+1234567890123456", "+0123456789", "12", "123456789", "Habits"),
    ),
    "TWILIO_MESSAGING_SERVICE_SID": (f"SK{HEX}", "MG", "your-service"),
    "TWILIO_API_URL": (
        *("http://api.twilio.com", "http://10.0.0.1", "http://0.0.0.0", "http://localhost.example"),
        *("http://127.example", "http://127.0.0.1.example", "http://localhost@proxy.example", "ftp://localhost"),
        *("api.twilio.com", "https://"),
        *("https:api.twilio.com", "https://api.twilio.com/2010-04-01", "https://[::1", "https://proxy.example:port"),
        *("https://proxy.example:65536", "https://proxy.example:0", "your-url"),
        *("https://api..twilio.com", "https://.twilio.com", f"https://{'a' * 64}.example"),  # no DNS has such names
        *("https://proxy.example?to=there", "https://proxy.example/?to=there", "https://proxy.example#there"),
        *("https://bob:hunter2@proxy.example", "http://bob:hunter2@localhost:8080", "https://@proxy.example"),
    ),
    "SEND_CONCURRENCY": ("0", "65", "-8", "eight", "8.0", "٨"),
    "SEND_WINDOW": (
        *("09:00", "9-20", "9:00-20:00", "09:00-20:00-21:00", "20:00-09:00", "09:00-09:00", "09:00-09:59", "-"),
        *("09:00-24:00", "24:00-25:00", "09:60-20:00", "09:00-20:60", "09:00:00-20:00:00", "09:00–20:00"),
        *("٠٩:٠٠-20:00", "09:00-12:00-20:00", "always"),
    ),
    "DAY_STARTS_AT": ("06:01", "23:00", "24:00", "4", "3:00", "03", "-01:00", "03:00:00", "noon"),
    "DEFAULT_TIME_ZONE": ("Mars/Olympus", "+02:00", "Europe"),
    "MESSAGE_NO_LOGS": BAD_TEXTS,
    "MESSAGE_MISSED_YESTERDAY": BAD_TEXTS,
    "VALIDITY_PERIOD": ("59", "36001", "0", "4h"),
    "REFUSED_RETRY_DAYS": ("-1", "91", "a month"),
    "UNDELIVERED_LIMIT": ("-1", "11", "x"),
    "QUIET_AFTER": ("-1", "15", "never"),
    "MAX_PER_WEEK": ("-1", "8", "daily"),
    "MAX_TEXTS": ("-1", "20001", "1e3"),
    "ONLY_USERS": (",", "42,", "42 43", "4\n2", ",".join(map(str, range(101))), "x" * 65),
    "RUN_DEADLINE": ("0", "86401", "1500s"),
    "SHARD_COUNT": ("0", "1001", "four"),
    "JOB_COMPLETION_INDEX": ("-1", "1000", "first"),
    "LOG_LEVEL": ("debug", "TRACE", "20", "CRITICAL"),
    "LOG_FORMAT": ("xml", "JSON", "text,json"),
    "LOG_PII": ("none", "OFF", "false"),
    "HEARTBEAT_URL": (
        *("hc.example/ping", "http://hc.example/ping", "https://hc.example/?to=x", "https://", "your-url", "x"),
        *("http://localhost.example.com/x", "http://127.0.0.1@example.com/x", "https://a b"),
    ),
}


TO_WRITE = {
    "SEND_WINDOW": "two times such as 09:00-20:00, the end at least 60 minutes after the start",
    "DAY_STARTS_AT": "a time from 00:00 to 06:00",
    "UNDELIVERED_LIMIT": "a whole number from 0 to 10",
    "ONLY_USERS": "at most 100 ids without blanks, separated by commas",
    "HEARTBEAT_URL": "an https:// URL",
}
"""What each kind of value asks for, to the letter."""


def test_every_setting_is_tried() -> None:
    declared = {f.name.upper() for f in fields(Settings)}
    assert declared == GOOD.keys() == BAD.keys()
    assert {f.name.upper() for f in fields(Settings) if f.metadata["secret"]} == SECRETS


def around(name: str) -> dict[str, str]:
    """Settings with which this one makes sense."""
    others = {"API_KEY": KEY, "SERVICE": SERVICE, "SHARD": SHARD, "INDEX": SHARD}
    return ENVIRON | {other: text for words, told in others.items() if words in name for other, text in told.items()}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in GOOD.items() for text in texts])
def test_a_good_value_is_taken(name: str, text: str) -> None:
    told = Settings.read(around(name) | {name: text})
    assert getattr(told, name.lower()) == GOOD[name][text]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_refused_with_its_name_and_what_to_write(name: str, text: str) -> None:
    [problem] = problems(around(name) | {name: text})
    assert re.match(rf"{name} (is|has a value that cannot be right)\b.*: write \S", problem)
    assert problem.startswith(f"{name} is still the placeholder") is bool(re.match(r"(?i)your-|\+1234567890$", text))
    assert f": write {TO_WRITE.get(name, '')}" in problem
    secret = name in SECRETS or "@" in text or text.startswith("SK")  # a URL's password, or what belongs elsewhere
    assert (repr(text) in problem) is not secret
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "text",
    [
        *("hunter2", "jdbc:mysql://db/habits?password=hunter2"),
        *("0123456789abcdef" * 2, "AC" + "0123456789ABCDEF" * 2, "an0ApiKeysSecretOf32LettersXyZzz"),
    ],
)
@pytest.mark.parametrize("name", ["DB_PORT", "TWILIO_MESSAGING_SERVICE_SID", "SEND_WINDOW"])
def test_a_secret_in_the_wrong_variable_is_not_shown(name: str, text: str) -> None:
    told = problems(around(name) | {name: text, "DB_PASSWORD": "hunter2"})
    assert any(line.startswith(f"{name} has a value that cannot be right: write ") for line in told)
    assert not any(text in line for line in told)


def test_bytes_that_are_no_text_are_named() -> None:
    assert problems(ENVIRON | {"DB_NAME": "habits\udcff"}) == ["DB_NAME holds bytes that are no UTF-8: write it anew"]


# --- pairs

NO_SENDER = "TWILIO_FROM_NUMBER and TWILIO_MESSAGING_SERVICE_SID: set exactly one of them"
NO_CREDENTIALS = "TWILIO_AUTH_TOKEN and TWILIO_API_KEY_SID: set exactly one of them"
A_NUMBER = "your Twilio number with its country code, such as +14155550123"
A_TOKEN_OR_KEY = "the account's auth token, or the key's SID: SK and 32 hexadecimal digits"
HALF_A_KEY = "TWILIO_API_KEY_SID and TWILIO_API_KEY_SECRET: set both or none"
EDGE = "TWILIO_EDGE is not a setting any more: TWILIO_API_URL=https://api.EDGE.REGION.twilio.com says it"
REGION = EDGE.replace("TWILIO_EDGE", "TWILIO_REGION")
BEYOND = "JOB_COMPLETION_INDEX ({}) must be below SHARD_COUNT ({}): let k8s/components/sharded set both"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        (SERVICE, None),
        (KEY, None),
        (SERVICE | KEY, None),
        ({"TWILIO_FROM_NUMBER": ""}, NO_SENDER),
        (SERVICE | {"TWILIO_FROM_NUMBER": "+14155550123"}, NO_SENDER),
        ({"TWILIO_AUTH_TOKEN": ""}, NO_CREDENTIALS),
        (KEY | {"TWILIO_AUTH_TOKEN": "token"}, NO_CREDENTIALS),
        (KEY | {"TWILIO_API_KEY_SECRET": ""}, HALF_A_KEY),
        (KEY | {"TWILIO_API_KEY_SID": ""}, HALF_A_KEY),
        (KEY | {"TWILIO_API_KEY_SID": "", "TWILIO_AUTH_TOKEN": "token"}, HALF_A_KEY),
        ({"TWILIO_EDGE": "dublin"}, EDGE),
        ({"TWILIO_REGION": "ie1"}, REGION),
        ({"TWILIO_EDGE": "", "TWILIO_REGION": ""}, None),
        ({"TWILIO_EDGE": "dublin", "TWILIO_API_URL": "https://api.dublin.ie1.twilio.com"}, EDGE),
        ({"SHARD_COUNT": "1", "JOB_COMPLETION_INDEX": "0"}, None),
        ({"SHARD_COUNT": "2", "JOB_COMPLETION_INDEX": "1"}, None),
        ({"SHARD_COUNT": "2"}, BEYOND.format("missing", 2)),
        ({"SHARD_COUNT": "2", "JOB_COMPLETION_INDEX": "2"}, BEYOND.format(2, 2)),
        ({"JOB_COMPLETION_INDEX": "1"}, BEYOND.format(1, 1)),
    ],
)
def test_settings_that_contradict_each_other_are_told(changes: dict[str, str], told: str | None) -> None:
    found = problems(ENVIRON | changes)
    assert len(found) == (1 if told else 0)
    assert all(problem.startswith(str(told)) for problem in found)


def test_a_wrong_value_is_not_told_a_second_time_as_a_contradiction() -> None:
    assert len(problems_with(TWILIO_FROM_NUMBER="wrong")) == 1
    assert len(problems_with(TWILIO_FROM_NUMBER="", TWILIO_MESSAGING_SERVICE_SID="wrong")) == 1
    assert len(problems(ENVIRON | KEY | {"TWILIO_API_KEY_SID": "wrong"})) == 1
    assert len(problems_with(TWILIO_AUTH_TOKEN="", TWILIO_AUTH_TOKEN_FILE=MISSING_FILE)) == 1
    assert len(problems_with(SHARD_COUNT="none", JOB_COMPLETION_INDEX="3")) == 1


# --- secrets


ENDINGS = "", "\n", "\r\n"


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_may_come_from_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for text, ending in itertools.product((text for text, value in GOOD[name].items() if text == value), ENDINGS):
        file.write_bytes((text + ending).encode())
        told = Settings.read(around(name) | {name: "", f"{name}_FILE": str(file)})
        assert getattr(told, name.lower()) == text


def test_a_secret_that_is_given_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pw")
    [problem] = problems_with(DB_PASSWORD_FILE=str(tmp_path / "secret"))
    assert problem == "DB_PASSWORD and DB_PASSWORD_FILE are both set: remove one of them"


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00s3cr3t")
    for path in (tmp_path / "missing", tmp_path, binary):
        [problem] = problems_with(DB_PASSWORD="", DB_PASSWORD_FILE=str(path))
        assert problem.startswith("DB_PASSWORD_FILE names a file that cannot be read (")
        assert problem.endswith("): mount it")
        assert "s3cr3t" not in problem
    assert "(it is no text in UTF-8)" in problem


@pytest.mark.parametrize("name", sorted(SECRETS))
@pytest.mark.parametrize("around_it", ["{}", "/{}", "x" * 300 + "{}", "{}\0"], ids=["plain", "path", "long", "nul"])
def test_a_secret_where_the_name_of_its_file_belongs_is_not_shown(name: str, around_it: str) -> None:
    secret = secrets.token_hex(12)
    [problem] = problems(around(name) | {name: "", f"{name}_FILE": around_it.format(secret)})
    assert problem.startswith(f"{name}_FILE names a file that cannot be read (")
    assert secret not in problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pw")
    (tmp_path / "secret").chmod(0)
    [problem] = problems_with(DB_PASSWORD="", DB_PASSWORD_FILE=str(tmp_path / "secret"))
    assert "Permission denied" in problem


def test_an_empty_file_leaves_a_required_secret_missing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    [problem] = problems_with(DB_PASSWORD="", DB_PASSWORD_FILE=str(tmp_path / "secret"))
    assert problem.startswith("DB_PASSWORD is missing")


def test_only_secrets_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("other")
    assert Settings.read(ENVIRON | {"DB_NAME_FILE": str(tmp_path / "name")}).db_name == "habits"


def test_a_placeholder_in_a_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("your-token\n")
    [problem] = problems_with(TWILIO_AUTH_TOKEN="", TWILIO_AUTH_TOKEN_FILE=str(tmp_path / "secret"))
    assert problem.startswith("TWILIO_AUTH_TOKEN is still the placeholder")


def test_no_secret_is_ever_shown() -> None:
    hidden = {name: secrets.token_hex(16) for name in SECRETS}
    shaped = {
        name: prefix + hidden[name]
        for name, prefix in (
            *(("TWILIO_ACCOUNT_SID", "AC"), ("TWILIO_API_KEY_SID", "SK")),
            ("HEARTBEAT_URL", "https://hc.example/"),
        )
    }
    for credentials in (KEY.keys() - {"TWILIO_AUTH_TOKEN"}, {"TWILIO_AUTH_TOKEN"}):
        dropped = SECRETS & (KEY.keys() - credentials)
        told = Settings.read(ENVIRON | hidden | shaped | dict.fromkeys(dropped, ""))
        for text in (repr(told), str(told), told.shown()):
            assert not [name for name, secret in hidden.items() if secret in text]


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_error_shows_a_secret(name: str, tmp_path: Path) -> None:
    secret = secrets.token_hex(12)
    file = tmp_path / "secret"
    file.write_text(f"AC{secret}")
    odd = (f"xx{secret}", f"AC{secret}", f"SK{secret} ", f"your-{secret}")  # the last one begins like a placeholder
    wrong = [{name: value} for value in odd]
    wrong += [{name: "", f"{name}_FILE": str(file)}, {name: secret, f"{name}_FILE": str(file)}]
    for changes in wrong:
        found = problems(around(name) | changes | {"DB_PORT": "0"})
        assert found
        assert secret not in str(found)


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_that_stands_elsewhere_by_mistake_is_not_shown(name: str, tmp_path: Path) -> None:
    secret = f"x{secrets.token_hex(8)}"
    (tmp_path / "secret").write_text(secret)
    for held in ({name: secret}, {name: "", f"{name}_FILE": str(tmp_path / "secret")}):
        wrong = held | {"DB_PORT": secret, "ONLY_USERS": f"é {secret}", "SEND_WINDOW": secret}
        found = problems(around(name) | wrong)
        assert len(found) >= 3
        assert secret not in str(found)


def test_a_secret_in_a_variable_that_takes_any_text_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/hunter2")
    changed = {"DB_NAME": "habits;password=hunter2", "DB_HOST": "hunter2", "MESSAGE_NO_LOGS": "Hi hunter2, STOP"}
    told = Settings.read(ENVIRON | changed | {"DB_PASSWORD": "hunter2", "DB_USER": "hi"}).shown()
    assert "hunter2" not in told
    assert told.startswith("DB_HOST=***, DB_NAME=habits;password=***, ")
    same = Settings.read(ENVIRON | {"DB_NAME": "habits", "DB_USER": "habits"}).shown()
    assert "DB_NAME=habits" in same
    [problem] = problems_with(DB_NAME="mysql://app:hunter2@db/habits")
    assert problem == "DB_NAME has a value that cannot be right: write its name alone, not a URL"


def test_the_settings_shown_are_those_that_differ_from_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    changed = {"DB_PORT": "3307", "SEND_CONCURRENCY": "8", "MESSAGE_NO_LOGS": "Hi {name}", "DEFAULT_TIME_ZONE": "UTC"}
    changed |= {"SEND_WINDOW": "09:00 - 20:00", "DAY_STARTS_AT": "00:00", "ONLY_USERS": "43,42"}
    shown = Settings.read(ENVIRON | changed).shown()
    assert shown == (
        "DB_HOST=db, DB_PORT=3307, DB_NAME=habits, TWILIO_FROM_NUMBER=+15005550006, SEND_WINDOW=09:00-20:00, "
        "DEFAULT_TIME_ZONE=UTC, MESSAGE_NO_LOGS=Hi {name}, ONLY_USERS=42,43"
    )
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/ca.pem")
    assert Settings.read(ENVIRON | changed).shown() == f"{shown}, REQUESTS_CA_BUNDLE=/ca.pem"


@pytest.mark.parametrize(("user", "password"), [("app", "app-pw"), ("app-pw", "app"), ("a.b*", "a.b*(c"), ("x", "x y")])
def test_secrets_are_taken_out_whole_also_when_one_begins_with_another(user: str, password: str) -> None:
    told = Settings.read(ENVIRON | {"DB_USER": user, "DB_PASSWORD": password})
    said = f"Access denied for '{user}'@'10.0.0.7': {password}, {FakeTwilio.AUTH_TOKEN}, /{FakeTwilio.ACCOUNT_SID}.json"
    assert told.hide(said) == "Access denied for '***'@'10.0.0.7': ***, ***, /***.json"


def test_a_short_secret_does_not_blacken_the_words_that_hold_it() -> None:
    assert Settings.read(ENVIRON | {"DB_USER": "a"}).hide("a table is missing") == "*** table is missing"


@pytest.mark.parametrize("secret", [FakeTwilio.ACCOUNT_SID, FakeTwilio.AUTH_TOKEN])
def test_a_long_secret_is_taken_out_from_within_a_word_too(secret: str) -> None:
    said = f"not allowed: Accounts%2F{secret}%2F, sid_{secret}x"
    assert Settings.read(ENVIRON).hide(said) == "not allowed: Accounts%2F***%2F, sid_***x"


def test_a_secret_with_blanks_is_taken_out_as_a_line_of_the_log_has_it() -> None:
    spaced = Settings.read(ENVIRON | {"DB_USER": "an  odd\taccount"})
    assert spaced.hide(clean("Access denied for 'an  odd\taccount'@'%'")) == "Access denied for '***'@'%'"


# --- the command line


def run(*arguments: str, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it, with this environment and nothing else."""
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], env=dict(environ), capture_output=True, text=True, timeout=60
    )


LINE = re.compile(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2} - __main__ - (\w+) - (.*)")


def said(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """Level and message of each line of the log."""
    matches = [LINE.fullmatch(line) for line in done.stderr.splitlines()]
    assert all(matches), done.stderr
    return [(match[1], match[2]) for match in matches if match]


def test_without_settings_the_program_says_all_that_it_needs_and_exits_with_2() -> None:
    done = run(environ={})
    assert done.returncode == 2
    assert done.stdout == ""
    assert said(done) == [
        (
            "ERROR",
            (
                "DB_HOST is missing: write MySQL's host: the primary, not a read-only replica, "
                "a host name or an address, without scheme and port"
            ),
        ),
        ("ERROR", "DB_NAME is missing: write the database that holds User, Habit and Log, its name alone, not a URL"),
        ("ERROR", "DB_USER is missing: write the database account"),
        ("ERROR", "DB_PASSWORD is missing: write the database account's password"),
        ("ERROR", "TWILIO_ACCOUNT_SID is missing: write Twilio account, the Account SID: AC and 32 hexadecimal digits"),
        ("ERROR", f"{NO_SENDER}, the texts' sender: {A_NUMBER}, or the service's SID: MG and 32 hexadecimal digits"),
        ("ERROR", f"{NO_CREDENTIALS}, the credentials: {A_TOKEN_OR_KEY}, and TWILIO_API_KEY_SECRET"),
    ]


def test_all_mistakes_are_told_at_once_and_the_program_exits_with_2() -> None:
    environ = {
        "DB_HOST": "mysql://db",
        "DB_PORT": "0",
        "DB_USER": "your-db-user",
        "DB_PASSWORD": "hunter2",
        "DB_PASSWORD_FILE": "/run/secrets/password",
        "DB_SSL_CA": MISSING_FILE,
        "TWILIO_ACCOUNT_SID": "hunter2",
        "TWILIO_AUTH_TOKEN_FILE": MISSING_FILE,
        "TWILIO_FROM_NUMBER": "+1234567890",
        "TWILIO_API_URL": "http://api.twilio.com",
        "SEND_CONCURRENCY": "65",
        "DEFAULT_TIME_ZONE": "Mars\nforged",
        "MESSAGE_NO_LOGS": "Hi {nmae}",
        "LOG_LEVEL": "loud",
    }
    for mode in ([], ["--run"], ["--settle"]):
        done = run(*mode, environ=environ)
        assert done.returncode == 2
        assert "hunter2" not in done.stdout + done.stderr
        assert {level for level, _ in said(done)} == {"ERROR"}
        assert [line.split(": write")[0].removesuffix(" 'your-db-user'") for _, line in said(done)] == [
            "DB_HOST is 'mysql://db'",
            "DB_PORT is '0'",
            "DB_NAME is missing",
            "DB_USER is still the placeholder",
            "DB_PASSWORD and DB_PASSWORD_FILE are both set: remove one of them",
            f"DB_SSL_CA is '{MISSING_FILE}'",
            "TWILIO_ACCOUNT_SID has a value that cannot be right",
            "TWILIO_AUTH_TOKEN_FILE names a file that cannot be read (No such file or directory): mount it",
            "TWILIO_FROM_NUMBER is still the placeholder '+1234567890'",
            "TWILIO_API_URL is 'http://api.twilio.com'",
            "SEND_CONCURRENCY is '65'",
            r"DEFAULT_TIME_ZONE is 'Mars\nforged'",
            "MESSAGE_NO_LOGS is 'Hi {nmae}'",
            "LOG_LEVEL is 'loud'",
        ]


def test_wrong_settings_outweigh_sigterm() -> None:
    stop = Stop()
    stop.request()
    assert int(main([], {}, stop=stop)) == 2


def test_help_lists_every_setting_with_its_default_and_tells_no_secret() -> None:
    done = run("--help", environ={"DB_PASSWORD": "hunter2"})
    assert done.returncode == 0
    assert "hunter2" not in done.stdout + done.stderr
    for declared in fields(Settings):
        default, secret = declared.metadata["default"], ", secret" if declared.metadata["secret"] else ""
        kind = "required" if default is None else f"default: {default}" if default else "optional"
        assert f"\n  {declared.name.upper()} ({kind}{secret})\n      {declared.metadata['help']}\n" in done.stdout
    for other in ("HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "_FILE", "--run", "--settle", "Exit codes"):
        assert other in done.stdout


@pytest.mark.parametrize("arguments", [["--frobnicate"], ["run"], ["--run", "--settle"]])
def test_an_unknown_command_line_exits_with_2_and_the_usage(arguments: list[str]) -> None:
    done = run(*arguments, environ=ENVIRON)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: habit_notifier.py")
    assert done.stdout == ""


@pytest.mark.parametrize("name", ["TWILIO_AUTH_TOKEN", "TWILIO_API_KEY_SECRET"])
@pytest.mark.parametrize("odd", ["\u201cabc\u201d", "abc\u200b", "ab c"])
def test_a_credential_that_no_header_can_hold_is_refused_unseen(name: str, odd: str) -> None:
    with pytest.raises(FixFirst) as refused:
        Settings.read({name: odd})
    [line] = [line for line in refused.value.args if line.startswith(name)]
    assert odd not in line
    assert "typographic" in line
