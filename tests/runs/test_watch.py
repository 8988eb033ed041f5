"""What others see of a run: a log without people in it, lines that are objects, a summary, a dead man's switch."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import requests

import habit_notifier
from habit_notifier import Http, Job, OneLine, Outcome, Report, Settings, Stop, Twilio, impersonal, phone_number
from tests.runs import program
from tests.runs.test_log import NASTY
from tests.runs.town import Town, create_ledger, variants
from tests.sandbox.database import LEDGER, Server
from tests.sandbox.fake_twilio import (
    BROKEN_JSON,
    RESET_AFTER_ACCEPTING,
    Answer,
    FakeTwilio,
    Request,
    refuse,
    server_error,
)
from tests.sandbox.sockets import Canned

# Nothing here depends on the kind of server: one is enough.
pytestmark = pytest.mark.parametrize("server", ["throwaway"], indirect=True, scope="session")

NOW = datetime(2026, 3, 30, 9, tzinfo=UTC)
ANA = "+4915112345678"


def lines(environ: dict[str, str], *argv: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and each line of the log as the object that it is."""
    code, written = program.said(environ | {"LOG_FORMAT": "json"}, *argv, at=NOW)
    return code, [json.loads(line) for line in written.splitlines()]


@pytest.fixture(autouse=True)
def summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Kubernetes would look for the summary of a run."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setattr(habit_notifier, "TERMINATION_LOG", path)
    return path


# --- LOG_PII=off ------------------------------------------------------------------------------------------------------

SCRIPTS = [
    "abcdefghijklmnopqrstuvwxyz",
    "абвгдежзиклмнопрстуфхцч",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "कखगघचछजझटठडढतथदधनपफबभम",
    "王小明李娜張偉陳靜劉洋黃磊",
    "가나다라마바사아자차카타파하",
    "กขคงจชซญดตถทธนบปผพฟมยรล",
]
NAMES = ["{} {}", "“{}” {}", '"{}" \\{}', "{}\n{}", "{} %s {}", "{}' OR '{}", "👩‍👧 {}\u200b {}", "{}\u0085{}"]
PHONES = ["+1202{}", "+44 20 {}", "00491{}", "({})", "tel:+1{}", "+0{}", "+{0}{0}", "{} ext 5", "4\u00d7{}"]


@dataclass
class Population:
    """People, and all that may not be said of them."""

    ids: list[str] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    def leaks(self, text: str) -> set[str]:
        """What a text says of them."""
        plain = text.replace("\\\\", "\\")
        return {secret for secret in self.secrets if secret in text or secret in plain}


def populate(town: Town, seed: int) -> Population:
    """People of several scripts, some with numbers that are none, all of whom are due but one."""
    dice, people = random.Random(seed), Population()
    for n in range(24):
        words = ["".join(dice.choices(dice.choice(SCRIPTS), k=8)) for _ in range(3)]
        digits = "".join(dice.choices("123456789", k=7))
        phone = PHONES[n % 3 if n < 12 else n % len(PHONES)].format(digits)
        logs = [NOW - timedelta(days=1)] if n == 0 else []
        user = town.database.insert_user(NAMES[n % len(NAMES)].format(*words), phone, "UTC", logs=logs)
        town.sql("UPDATE Habit SET name = %s WHERE user_id = %s", (words[2], user))
        people.ids.append(str(user))
        people.secrets |= {*words, phone, digits, phone_number(phone)}
    return people


def quoting(code: int, *, rfc9457: bool = False) -> Callable[[Request], Answer | None]:
    """Twilio refuses, and quotes whom and what."""

    def hook(request: Request) -> Answer | None:
        words = f"{request.to} cannot get '{request.params.get('Body')}'"
        return refuse(code, 400, words, rfc9457=rfc9457) if request.operation == "send" else None

    return hook


Break = Callable[[Town, pytest.MonkeyPatch], object]


def answering(answer: Answer) -> Break:
    return lambda town, _patch: town.twilio.script(then=answer)


def mysql_quotes_names(town: Town, _patch: pytest.MonkeyPatch) -> None:
    """User is a view that fails with what is in it."""
    town.sql("RENAME TABLE User TO Person")
    town.sql(
        "CREATE FUNCTION fail(name TEXT) RETURNS TEXT DETERMINISTIC "
        "BEGIN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = name; RETURN name; END"
    )
    town.sql("CREATE VIEW User AS SELECT id, fail(name) AS name, phone_number, time_zone FROM Person")


def mysql_quotes_numbers(town: Town, _patch: pytest.MonkeyPatch) -> None:
    """The ledger fails with the number that it should take."""
    create_ledger(town.database)
    town.sql(
        f"CREATE TRIGGER fail BEFORE INSERT ON {LEDGER} FOR EACH ROW BEGIN "
        "DECLARE words TEXT; SET words = NEW.phone_number; SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = words; END"
    )


def threads_fail(_town: Town, patch: pytest.MonkeyPatch) -> None:
    def post(_twilio: Twilio, reminder: Any, _validity: int) -> None:
        raise ValueError(f"{reminder.user} {reminder.user.phone} {reminder!r}")

    patch.setattr(Twilio, "post", post)


def claims_fail(_town: Town, patch: pytest.MonkeyPatch) -> None:
    def claim(job: Job) -> None:
        raise KeyError([(str(reminder.user), reminder.user.phone) for reminder in job.waiting])

    patch.setattr(Job, "claim_and_post", claim)


def requests_quotes_urls(_town: Town, patch: pytest.MonkeyPatch) -> None:
    request = Http.request

    def fail(http: Http, method: str, url: str, *rest: Any, data: Any = None, **more: Any) -> Any:
        if method != "POST":
            return request(http, method, url, *rest, data=data, **more)
        http.last = None
        encoded = requests.Request("GET", url, params=data).prepare().url
        raise requests.ConnectionError(f"Max retries exceeded with url: {encoded} ({data})")

    patch.setattr(Http, "request", fail)


WRONG: dict[str, Break] = {
    "nothing": lambda *_: None,
    "known refusals": lambda town, _patch: setattr(town.twilio, "hook", quoting(21211)),
    "unknown refusals": lambda town, _patch: setattr(town.twilio, "hook", quoting(29999)),
    "problem documents": lambda town, _patch: setattr(town.twilio, "hook", quoting(29999, rfc9457=True)),
    "server errors": answering(server_error()),
    "resets": answering(RESET_AFTER_ACCEPTING),
    "broken JSON": answering(BROKEN_JSON),
    "MySQL quotes names": mysql_quotes_names,
    "MySQL quotes numbers": mysql_quotes_numbers,
    "threads fail": threads_fail,
    "claims fail": claims_fail,
    "requests quotes URLs": requests_quotes_urls,
}
LATE = {"HEARTBEAT_URL": "http://127.0.0.1:1/5c1b7a52-heartbeat", "LOG_LEVEL": "DEBUG", "LOG_PII": "off"}


def all_that_is_said(environ: dict[str, str], people: Population, summary: Path) -> Iterator[str]:
    """The log and the summary of every mode, also on the next day, when there are texts to look up and to explain."""
    explain = [["--explain", user] for user in people.ids[:4]]
    for at in (NOW, NOW + timedelta(days=1)):
        for argv in (["--dry-run"], *explain, ["--check"], [], ["--settle"]):
            yield program.said(environ, *argv, at=at)[1]
            yield summary.read_text()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("wrong", WRONG)
def test_without_pii_no_name_number_or_secret_is_said_whatever_fails(
    town: Town, wrong: str, form: str, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = populate(town, seed=list(WRONG).index(wrong))
    secrets = {*(town.environ[name] for name in ("DB_PASSWORD", "DB_USER")), "5c1b7a52"}
    secrets |= {FakeTwilio.AUTH_TOKEN, FakeTwilio.ACCOUNT_SID}
    WRONG[wrong](town, monkeypatch)
    texts = list(all_that_is_said(town.environ | LATE | {"LOG_FORMAT": form}, people, summary))
    for text in texts:
        said = "\n".join(map(str, map(json.loads, text.splitlines()))) if form == "json" else text
        assert (people.leaks(text) | people.leaks(said)) == set()
        assert not [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("wrong", WRONG)
def test_with_pii_the_same_is_said_and_the_summary_has_none_of_it(
    town: Town, wrong: str, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above can fail."""
    people = populate(town, seed=list(WRONG).index(wrong))
    WRONG[wrong](town, monkeypatch)
    text = program.said(town.environ, at=NOW)[1]
    last = text[text.rindex("ERROR") :] if "ERROR" in text else text
    assert people.leaks(last if "quotes" in wrong or wrong == "unknown refusals" else text)
    assert people.leaks(summary.read_text()) == set()


@pytest.mark.usefixtures("server")  # as all tests here do
def test_the_example_of_a_remedy_is_nobodys_number_and_a_longer_one_is() -> None:
    assert impersonal("such as +14155550123: correct") == "such as +14155550123: correct"
    assert impersonal("to +141555501234, +14155550124") == "to +1******1234, +1******0124"


def test_a_masked_number_keeps_its_country_and_its_end(town: Town) -> None:
    user = town.database.insert_user("Ana", ANA, "UTC")
    text = program.said(town.environ | {"LOG_PII": "off"}, at=NOW)[1]
    assert "Notification sent to (hidden) (+4******5678). Message SID: SM" in text
    assert f"User (ID: {user}) needs notification: No logs in the past 2 days" in text


def test_the_reason_that_ends_a_run_has_no_number_of_the_ledger_even_if_it_is_none(town: Town, summary: Path) -> None:
    user = town.database.insert_user("Ana", ANA, "UTC")
    create_ledger(town.database)
    sending = {"state": "sending", "finished_at": None, "phone_number": "0171 123456"}
    town.database.insert_row(user, NOW - timedelta(minutes=1), **sending)
    code, text = program.said(town.environ | {"LOG_PII": "off"}, at=NOW)
    assert code == 1
    assert "No text was surely sent, and 1 may have been, the last one: another run is texting this user" in text
    assert "0171" not in text + summary.read_text()


def test_a_masked_number_is_masked_wherever_it_is_an_id(server: Server) -> None:
    with server.database(id_type="VARCHAR(36)") as database:
        database.execute(
            "INSERT INTO User (id, name, phone_number, time_zone) VALUES (%s, 'Ana', %s, 'UTC')", [ANA, ANA]
        )
        for form in ("text", "json"):
            environ = database.environ() | {"LOG_PII": "off", "LOG_FORMAT": form}
            text = program.said(environ, "--dry-run", at=NOW)[1]
            assert "+4******5678" in text
            assert ANA not in text


def test_a_name_that_is_asked_for_in_place_of_an_id_is_hidden(town: Town) -> None:
    for name in ("Ana Lind", "“Ana” Lind", "A” Lind"):
        code, text = program.said(town.environ | {"LOG_PII": "off"}, "--explain", name, at=NOW)
        assert code == 1
        assert text.rstrip().endswith("there is no user (hidden) in User")


# --- LOG_FORMAT=json --------------------------------------------------------------------------------------------------


def test_each_line_is_an_object_whatever_it_holds(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, name in enumerate([*NASTY, 'Eve "quoted" \\', "Eve\x7f", "👩‍👧", "“Eve”"]):
        town.database.insert_user(name, f"+1202555{n:04}", "UTC")
        town.database.insert_user(name, f"+1303555{n:04}", name[:60])

    monkeypatch.setattr(Twilio, "post", Mock(side_effect=ValueError("".join(NASTY))))
    code, found = lines(town.environ)
    assert code == 1
    assert all({"time", "level", "message", "run"} <= line.keys() for line in found)
    assert len({line["run"] for line in found}) == 1
    assert {line["level"] for line in found} >= {"INFO", "WARNING", "ERROR", "CRITICAL"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in found)
    [fault, *_] = [line for line in found if line["level"] == "CRITICAL"]
    assert fault["trace"].startswith("Traceback (most recent call last):\n")


def test_events_have_stable_fields(town: Town) -> None:
    sent, refused, skipped = (
        str(town.database.insert_user("Ana", phone, "UTC")) for phone in (ANA, "+12025550142", "12")
    )
    town.twilio.script(refuse(21610), to="+12025550142")
    common = {"time", "level", "message", "run"}
    expected = {
        ("would_text", sent): {"rule": "no_logs"},
        ("would_text", refused): {"rule": "no_logs"},
        ("skipped", skipped): {"outcome": "bad_phone"},
        ("due", sent): {"rule": "no_logs"},
        ("due", refused): {"rule": "no_logs"},
        ("text", refused): {"rule": "no_logs", "outcome": "refused", "code": 21610},
        ("completed", None): {},
    }
    found = {}
    for line in [*lines(town.environ, "--dry-run")[1], *lines(town.environ)[1]]:
        details = {key: line[key] for key in line.keys() - common}
        if details:
            user = details.pop("user_id", None)
            found[details.pop("event"), user and str(user)] = details
    [message] = town.twilio.book
    assert found.pop(("text", sent)) == {"rule": "no_logs", "outcome": "sent", "sid": message.sid}
    assert found == expected


def test_what_became_of_earlier_texts_is_told_with_the_same_fields(town: Town) -> None:
    user = town.database.insert_user("Ana", ANA, "UTC")
    assert town.run(NOW - timedelta(days=1)) == 0
    town.twilio.settle(ANA, "undelivered", 30003)
    [message] = town.twilio.book
    [learned] = [line for line in lines(town.environ)[1] if line.get("event") == "learned"]
    expected = {"user_id": user, "outcome": "undelivered", "rule": "no_logs", "code": 30003, "sid": message.sid}
    assert {name: learned[name] for name in expected} == expected


@variants({"id_type": "DECIMAL(20)"})
def test_ids_that_are_decimals_are_told_as_objects_too(town: Town) -> None:
    town.database.insert_user("Ana", ANA, "UTC")
    told = lines(town.environ)[1]
    assert [line["user_id"] for line in told if line.get("event") in ("due", "text")] == ["1", "1"]


def test_wrong_settings_are_told_as_objects_too(town: Town) -> None:
    code, found = lines(town.environ | {"DB_PORT": "x", "TWILIO_AUTH_TOKEN": ""})
    assert code == 2
    assert [line["level"] for line in found] == ["ERROR", "ERROR"]


@pytest.mark.parametrize("objects", [False, True])
def test_a_secret_that_json_would_escape_is_hidden_where_a_library_says_it(
    town: Town, objects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = 'geheim"\\ñ'
    monkeypatch.setattr(OneLine, "settings", Settings.read(town.environ | {"DB_PASSWORD": secret}))
    monkeypatch.setattr(OneLine, "objects", objects)
    log = logging.getLogger("library")
    record = log.makeRecord("library", 40, "f", 1, "it is %s", (secret,), None)
    record.exc_info = (ValueError, ValueError(secret), None)
    line = OneLine("%(message)s").format(record)
    assert "geheim" not in line
    assert line.count("***") == 2


# --- the summary ------------------------------------------------------------------------------------------------------


def read(summary: Path) -> dict[str, Any]:
    text = summary.read_bytes()
    assert len(text) <= 4_096
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_run_leaves_its_counts(town: Town, summary: Path) -> None:
    town.database.insert_users([("Ana", ANA, "UTC"), ("Out", "+12025550142", "UTC"), ("Bad", "12", "UTC")])
    town.twilio.script(refuse(21610).delayed(before=0.2), to="+12025550142")
    assert town.run(NOW) == 0
    town.twilio.settle(ANA, "undelivered", 30003)
    assert 0.2 <= read(summary).pop("seconds") < 60
    expected = {"run": "run", "exit_code": 0, "users": 3, "sent": 1, "failed": 1, "uncertain": 0}
    counts = {"sent": 1, "refused": 1, "bad_phone": 1}
    assert read(summary) | {"seconds": 0} == expected | {"counts": counts, "learned": {}, "error": None, "seconds": 0}
    assert town.run(NOW + timedelta(hours=1), "--settle") == 0
    assert (read(summary)["run"], read(summary)["learned"]) == ("settle", {"undelivered 30003": 1})


def test_the_first_error_comes_with_its_remedy(town: Town, summary: Path) -> None:
    town.database.insert_user("Ana", ANA, "UTC")
    assert town.run(NOW, **town.database.least_account()) == 2
    assert "CREATE TABLE IF NOT EXISTS" in read(summary)["error"]
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON" in read(summary)["error"]


def test_a_run_that_ends_for_its_users_says_so_in_the_summary(town: Town, summary: Path) -> None:
    create_ledger(town.database)
    future, held = town.database.insert_users([("Ana", ANA, "UTC"), ("Bo", "+12025550142", "UTC")])
    town.database.insert_row(future, NOW + timedelta(days=45))
    assert town.run(NOW) == 2
    assert read(summary)["error"].startswith("1 users are barred by rows of the future: delete them")
    town.database.execute(f"DELETE FROM {LEDGER}")
    town.database.insert_row(
        held, NOW - timedelta(minutes=1), state="sending", finished_at=None, local_day="2026-03-29"
    )
    assert town.run(NOW) == 1
    held_by = "another run holds this user, or was cut off while it did"
    assert read(summary)["error"] == f"Not everybody was served: see the lines above, the last one: {held_by}"


@pytest.mark.usefixtures("server")  # as all tests here do
@pytest.mark.parametrize("letter", ["x", "é", "王", "🙂", '"', "\\", "a\x00", "a\udcff"])
def test_the_longest_summary_is_whole(letter: str, summary: Path) -> None:
    report = Report()
    report.start(10**9)
    report.error = letter * 9_000
    report.counts.update(dict.fromkeys(Outcome, 10**9))
    report.learned_ends.update({("undelivered", 30_000 + n): 10**9 for n in range(99)})
    habit_notifier.leave_summary(report.summary("dry-run", 143))
    assert len(read(summary)["error"]) > 100


def test_a_summary_that_cannot_be_written_changes_nothing(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/proc/self/status/none")):
        monkeypatch.setattr(habit_notifier, "TERMINATION_LOG", path)
        assert town.run(NOW) == 0
    assert not (tmp_path / "none").exists()


# --- HEARTBEAT_URL ----------------------------------------------------------------------------------------------------

SWITCH = "/b3f1c9d4-ping"


class Switch(Canned):
    """A dead man's switch on this machine: what it was told, and how it answers."""

    def __init__(self) -> None:
        super().__init__(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
        self.url += SWITCH

    @property
    def ends(self) -> list[str]:
        """What came after the URL, in order."""
        return [request.split()[1].decode().removeprefix(SWITCH) for request in self.requests]


@pytest.fixture
def switch() -> Iterator[Switch]:
    with Switch() as running:
        yield running


def test_after_a_run_that_is_done_the_switch_gets_the_counts(town: Town, switch: Switch) -> None:
    town.database.insert_user("Ana", ANA, "UTC")
    assert town.run(NOW, HEARTBEAT_URL=switch.url + "/") == 0
    assert switch.ends == ["/start", ""]
    told = json.loads(switch.requests[1].partition(b"\r\n\r\n")[2])
    assert (told["exit_code"], told["sent"], told["counts"]) == (0, 1, {"sent": 1})
    assert told.keys() == {"run", "exit_code", "seconds", "users", "sent", "failed", "uncertain", "counts", "learned"}


def fault(_town: Town, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Job, "prove_set_up", Mock(side_effect=ZeroDivisionError))


def sigterm(town: Town, _patch: pytest.MonkeyPatch) -> None:
    town.stop = Stop()
    town.stop.request()


TWO_SETTINGS = (
    "DB_NAME is missing: write the database that holds User, Habit and Log, its name alone, not a URL | "
    "SEND_WINDOW is 'x': write two"
)


@pytest.mark.parametrize(
    ("wrong", "argv", "ends", "code", "error", "pings"),
    [
        ({"DB_NAME": "", "SEND_WINDOW": "x"}, [], None, 2, TWO_SETTINGS, ["/start", "/fail"]),
        ({"HEARTBEAT_URL": "http://example.com/x"}, [], None, 2, "HEARTBEAT_URL has a value that cannot be right", []),
        ({"DB_PORT": "1"}, [], None, 1, "MySQL: it cannot be reached", ["/start"]),
        ({"DB_PASSWORD": "guessed"}, [], None, 2, "MySQL: it refused DB_USER or DB_PASSWORD", ["/start", "/fail"]),
        ({"TWILIO_AUTH_TOKEN": "guessed"}, [], None, 2, "Twilio: the credentials were refused", ["/start", "/fail"]),
        ({}, [], sigterm, 143, "SIGTERM came", ["/start"]),
        ({}, [], fault, 1, "a fault of the program", ["/start"]),
        ({"SHARD_COUNT": "2", "JOB_COMPLETION_INDEX": "0"}, [], None, 0, None, ["/start", ""]),
        ({"SHARD_COUNT": "2", "JOB_COMPLETION_INDEX": "1"}, [], None, 0, None, []),
        ({"DB_PORT": "1"}, ["--dry-run"], None, 1, "MySQL: it cannot be reached", []),
        ({}, ["--explain", "7"], None, 1, "there is no user (hidden) in User", []),
        ({"TWILIO_AUTH_TOKEN": "guessed"}, ["--check"], None, 2, "Twilio: the credentials were refused", []),
        ({"TWILIO_AUTH_TOKEN": "guessed", "DB_PORT": "1"}, ["--check"], None, 2, "database: MySQL: it cannot", []),
        ({"DB_PORT": "1"}, ["--settle"], None, 1, "MySQL: it cannot be reached", []),
        *(({}, [question], None, 0, None, []) for question in ("--dry-run", "--check", "--settle")),
    ],
)
def test_every_end_leaves_its_exit_code_and_first_error_and_of_runs_the_switch_is_told(
    town: Town,
    wrong: dict[str, str],
    argv: list[str],
    ends: Break | None,
    code: int,
    error: str | None,
    pings: list[str],
    switch: Switch,
    summary: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After exit codes 1 and 143 a Job tries again: the switch's own patience decides. Shard 0 speaks for all."""
    if ends:
        ends(town, monkeypatch)
    assert town.run(NOW, *argv, **{"HEARTBEAT_URL": switch.url} | wrong) == code
    found = read(summary)
    assert found["exit_code"] == code
    assert found["error"] is error or found["error"].startswith(error)
    assert switch.ends == pings


def test_the_url_may_come_from_a_file(town: Town, switch: Switch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(switch.url + "\n")
    assert town.run(NOW, HEARTBEAT_URL_FILE=tmp_path / "url") == 0
    assert switch.ends == ["/start", ""]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        ("200 OK", "", None),
        ("302 Found", "", "HTTP 302"),
        ("404 Not Found", "", "HTTP 404"),
        ("200 OK", "OK (not found)", "it is not the address of a check"),  # as healthchecks.io says of one it lacks
    ],
)
def test_a_switch_that_does_not_take_a_ping_is_named_with_its_answer(
    town: Town, status: str, body: str, told: str | None, switch: Switch
) -> None:
    switch.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    assert town.run(NOW, HEARTBEAT_URL=switch.url) == 0
    assert town.said(f"WARNING HEARTBEAT_URL was not told: {told or ''}") == (2 if told else 0)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oops\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /b3f1c9d4-elsewhere\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\nb3f1c9d4",
        b"b3f1c9d4\r\n\r\n",
        b"",
    ],
)
def test_whatever_the_switch_answers_the_run_goes_on_and_its_url_is_not_told(
    town: Town, answer: bytes, form: str, switch: Switch
) -> None:
    switch.answer = answer
    more = {"HEARTBEAT_URL": switch.url, "LOG_LEVEL": "DEBUG", "LOG_FORMAT": form}
    code, text = program.said(town.environ | more, at=NOW)
    assert code == 0
    assert switch.ends == ["/start", ""]
    assert "b3f1c9d4" not in text
    for line in text.splitlines() if form == "json" else ():
        json.loads(line)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/b3f1c9d4", "https://127.0.0.1:1/b3f1c9d4", "https://no.invalid/b3f1c9d4"]
)
def test_a_switch_that_is_away_is_named_without_its_url(town: Town, url: str) -> None:
    code, text = program.said(town.environ | {"HEARTBEAT_URL": url, "LOG_LEVEL": "DEBUG"}, at=NOW)
    assert code == 0
    assert text.count("WARNING - HEARTBEAT_URL was not told: ConnectionError") == 2
    assert "b3f1c9d4" not in text


def test_a_slow_switch_holds_a_run_up_for_two_pings_at_most(
    town: Town, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert habit_notifier.PING_SECONDS == 5
    monkeypatch.setattr(habit_notifier, "PING_SECONDS", 0.3)
    assert town.run(NOW) == 0
    alone = town.took
    switch.answer, switch.drip, switch.seconds = b"", switch.answer, 0.1
    assert town.run(NOW, HEARTBEAT_URL=switch.url) == 0
    assert town.took < alone + 2 * 0.3 + 2.0
    assert switch.ends == ["/start", ""]


def test_of_what_a_switch_says_no_more_is_read_than_is_looked_at(town: Town, switch: Switch) -> None:
    """One that goes on for ever must not fill the memory of a run that lasts half an hour."""
    switch.answer, switch.drip, switch.seconds = b"HTTP/1.1 200 OK\r\n\r\nOK" + b"x" * 20, b"x" * 1_000, 0.01
    assert town.run(NOW, HEARTBEAT_URL=switch.url) == 0
    assert not town.said("HEARTBEAT_URL was not told")
    assert switch.ends == ["/start", ""]
