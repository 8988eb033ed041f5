"""docs/your-tables.md, taken at its word: its SQL is run as it stands there, and then the program on its views.

One application holds the columns of all recipes. Each recipe is tried with one person for each case of it.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pymysql
import pytest

import habit_notifier
from habit_notifier import Exit
from tests.runs import program
from tests.runs.plans import Step, explained
from tests.runs.statements import ZONES
from tests.sandbox.database import LEDGER, Database, Server
from tests.sandbox.fake_twilio import FakeTwilio

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-tables.md").read_text()
NOON = datetime(2026, 5, 12, 12, tzinfo=UTC)  # a Tuesday
TODAY, DAY1 = NOON.replace(tzinfo=None), NOON.replace(tzinfo=None) - timedelta(days=2)
YESTERDAY, A_WEEK_AGO = TODAY - timedelta(days=1), TODAY - timedelta(days=7)
MIDNIGHT = int(YESTERDAY.replace(hour=0, tzinfo=UTC).timestamp())
EAST, WEST = {"timezone": "Asia/Tokyo"}, {"timezone": "America/Los_Angeles"}  # it is Tuesday in both
NOTHING, NO_LOGS, MISSED = None, "no logs", "missed yesterday"
TEXTS = {"MESSAGE_NO_LOGS": f"{{name}}: {NO_LOGS}. STOP", "MESSAGE_MISSED_YESTERDAY": f"{{name}}: {MISSED}. STOP"}

# --- the page ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Lines to write into a view, or whole views to put in the place of others."""

    view: str
    lines: Sequence[str]

    def applied(self, views: Mapping[str, str]) -> dict[str, str]:
        """The three views, changed as the page's rules say."""
        changed = dict(views)
        for line in self.lines:
            if line.startswith("CREATE"):
                changed[name_of(line)] = line
            else:
                changed[self.view] = written_into(changed[self.view], line)
        return changed


def written_into(view: str, line: str) -> str:
    """The view with a line where the page says that it goes."""
    if line.startswith("AND"):
        return f"{view}\n  {line}"
    if line.startswith("LEFT JOIN"):
        return view.replace("\nWHERE", f"\n{line}\nWHERE")
    [column] = re.findall(r"AS (\w+)$", line)
    changed, places = re.subn(rf"^  .* AS {column}\b", lambda _: f"  {line}", view, flags=re.MULTILINE)
    assert places == 1, line
    return changed


def statements(sql: str) -> list[str]:
    return [part.strip() for part in re.sub(r"^ *--.*\n", "", sql, flags=re.MULTILINE).split(";") if part.strip()]


def name_of(view: str) -> str:
    [name] = re.findall(r"VIEW habit_notifier.`(\w+)`", view)
    return str(name)


def blocks(text: str) -> list[list[str]]:
    return [statements(sql) for sql in re.findall(r"^ *```sql\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)]


def recipes() -> Iterator[tuple[str, Recipe]]:
    for title, view, cell in re.findall(r"^\| (.+?) \| `(User|Habit|Log)` \| (.+) \|$", PAGE, flags=re.MULTILINE):
        yield title, Recipe(view, [line.strip("`") for line in cell.split("<br>")])
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        title, text = section.split("\n", 1)
        for lines in blocks(text):
            yield title, Recipe("User", lines)


SET_UP, [MOVE_LEDGER], *_ = blocks(PAGE)
VIEWS = {name_of(sql): sql for sql in SET_UP if "VIEW" in sql}
RECIPES = dict(recipes())

# --- the application --------------------------------------------------------------------------------------------------

TABLES = """
CREATE TABLE users (id {id}, first_name VARCHAR(60), phone VARCHAR(40), timezone VARCHAR(60), utc_offset DECIMAL(6, 2),
  country CHAR(2), sms_consent BOOLEAN, deleted_at DATETIME, paused_until DATETIME, created_at DATETIME);
CREATE TABLE consents (id {id}, user_id {ref}, revoked_at DATETIME, INDEX (user_id));
CREATE TABLE profiles (id {id}, user_id {ref} UNIQUE, mobile VARCHAR(40), zone VARCHAR(60));
CREATE TABLE habits (id {id}, user_id {ref}, title VARCHAR(60), weekdays VARCHAR(20), done_days LONGTEXT,
  archived_at DATETIME, INDEX (user_id));
CREATE TABLE habit_logs (id {id}, habit_id {ref}, done_at DATETIME, done_on DATE, done_text VARCHAR(20),
  done_seconds BIGINT, completed BOOLEAN, deleted_at DATETIME, INDEX (habit_id, done_at));
CREATE TABLE entries (id {id}, user_id {ref}, done_at DATETIME, INDEX (user_id));
"""
NUMBERS = {"id": "BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY", "ref": "BIGINT UNSIGNED"}
BYTES = {"id": "BINARY(16) PRIMARY KEY", "ref": "BINARY(16)"}


class Application:
    """A habit tracker with tables of its own; beside it the page's schema, where `recipe` puts its views."""

    def __init__(self, server: Server, ids: Mapping[str, str] = NUMBERS) -> None:
        self.server, self.ids, token = server, ids, secrets.token_hex(5)
        self.name, self.schema, self.definer, self.account = (f"{word}_{token}" for word in ("app", "views", "d", "n"))

    def __enter__(self) -> Application:
        self.connection = self.server.connect()
        self.run(f"CREATE SCHEMA {self.name} DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci")
        self.connection.select_db(self.name)
        for sql in statements(TABLES.format(**self.ids)):
            self.run(sql)
        for sql in SET_UP:
            self.page(sql)
        for table in ("consents", "profiles", "entries"):
            self.page(f"GRANT SELECT ON habit_tracker.{table} TO 'habit_views'@'localhost'")
        return self

    def __exit__(self, *_: object) -> None:
        for sql in (f"SCHEMA {self.name}", f"SCHEMA {self.schema}", f"USER '{self.account}'@'%'"):
            self.run(f"DROP {sql}")
        self.run(f"DROP USER IF EXISTS '{self.definer}'@'localhost'")
        self.connection.close()

    def run(self, sql: str, args: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, args)
            return list(cursor.fetchall())

    def page(self, sql: str) -> None:
        """Run a statement of the page, under the names of this application."""
        sql = sql.replace("'habit_notifier'@", f"'{self.account}'@").replace("'habit_views'@", f"'{self.definer}'@")
        self.run(re.sub(r"\bhabit_tracker\b", self.name, re.sub(r"\bhabit_notifier\b", self.schema, sql)))

    def use(self, recipe: Recipe | None) -> None:
        """Define the views, changed by a recipe or as they stand."""
        for sql in (recipe.applied(VIEWS) if recipe else VIEWS).values():
            self.page(sql)

    def environ(self, twilio: FakeTwilio) -> dict[str, str]:
        [password] = re.findall(r"'habit_notifier'@'%' IDENTIFIED BY '(.+)'", "\n".join(SET_UP))
        settings = {"DB_HOST": self.server.host, "DB_PORT": str(self.server.port), "DB_NAME": self.schema}
        tls = {"DB_SSL_CA": self.server.ca_file} if self.server.ca_file else {}
        return settings | tls | {"DB_USER": self.account, "DB_PASSWORD": password} | twilio.environ() | TEXTS

    def insert(self, table: str, **row: object) -> object:
        """One row; its id."""
        if self.ids is BYTES:
            row["id"] = uuid.uuid4().bytes
        places = ", ".join(["%s"] * len(row))
        with self.connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {self.name}.{table} ({', '.join(row)}) VALUES ({places})", [*row.values()])
            return row.get("id", cursor.lastrowid)

    def take_in(self, person: Person, phone: str) -> None:
        usual = {"first_name": person.name, "phone": phone, "timezone": "UTC", "sms_consent": 1}
        user_id = self.insert("users", **{**usual, "created_at": A_WEEK_AGO, **person.user})
        for table, row in person.rows:
            self.insert(table, user_id=user_id, **row)
        for habit in person.habits:
            habit_id = self.insert("habits", user_id=user_id, title="Read", **habit)
            for log in person.logs:
                self.insert("habit_logs", habit_id=habit_id, **{"completed": 1} | log)


# --- the cases --------------------------------------------------------------------------------------------------------

Row = dict[str, object]


@dataclass(frozen=True)
class Person:
    """Somebody whose name tells the case: with consent, in UTC, with one habit, unless said otherwise."""

    name: str
    gets: str | None
    user: Mapping[str, object] = field(default_factory=dict)
    habits: Sequence[Row] = ({},)
    logs: Sequence[Row] = ()
    rows: Sequence[tuple[str, Row]] = ()
    number: str = ""
    """The number of the text, if not that of the row."""


def on(*times: datetime, **more: object) -> list[Row]:
    return [{"done_at": at, **more} for at in times]


def zones(column: str, expected: Mapping[Any, float]) -> list[Person]:
    """For each stored zone two people, who logged in the last second of day 2 there, and in the first of today."""
    people = []
    for stored, hours in expected.items():
        start_of_today = (TODAY + timedelta(hours=hours)).replace(hour=0, minute=0) - timedelta(hours=hours)
        user, before = {"timezone": None, column: stored}, start_of_today - timedelta(seconds=1)
        people += [Person(f"{stored} before", NOTHING, user, logs=on(before))]
        people += [Person(f"{stored} after", NO_LOGS, user, logs=on(start_of_today))]
    return people


def numbers(*cases: tuple[str | None, str, str]) -> list[Person]:
    return [
        Person(
            f"{phone.strip()} in {country}",
            NO_LOGS if number else NOTHING,
            {"phone": phone, "country": country},
            number=number,
        )
        for country, phone, number in cases
    ]


BASE = [
    Person("All is well", NO_LOGS),
    Person("Logged on day 1", MISSED, logs=on(DAY1)),
    Person("Logged yesterday", NOTHING, logs=on(YESTERDAY)),
    Person("Log deleted", NO_LOGS, logs=on(YESTERDAY, deleted_at=TODAY)),
    Person("No consent", NOTHING, {"sms_consent": 0}),
    Person("Consent not known", NOTHING, {"sms_consent": None}),
    Person("Deleted", NOTHING, {"deleted_at": A_WEEK_AGO}),
]
CASES: dict[str, list[Person]] = {
    "Consent is a table of its own": [
        Person("Never asked", NOTHING),
        Person("Consented", NO_LOGS, rows=[("consents", {})]),
        Person("Consented twice", NO_LOGS, rows=[("consents", {}), ("consents", {})]),
        Person("Revoked", NOTHING, rows=[("consents", {"revoked_at": TODAY})]),
        Person("Revoked and consented anew", NO_LOGS, rows=[("consents", {"revoked_at": TODAY}), ("consents", {})]),
    ],
    "Number or zone is in a table of its own": [
        Person("No profile", NOTHING),
        Person(
            "Profile", NO_LOGS, rows=[("profiles", {"mobile": "+12025550999", "zone": "UTC"})], number="+12025550999"
        ),
        Person("Profile without a zone", NOTHING, rows=[("profiles", {"mobile": "+12025550998"})]),
        Person(
            "Yesterday in Auckland",
            NOTHING,
            logs=on(TODAY - timedelta(seconds=1)),
            rows=[("profiles", {"mobile": "+12025550997", "zone": "Pacific/Auckland"})],
        ),
    ],
    "People can pause": [
        Person("Never paused", NO_LOGS),
        Person("Paused", NOTHING, {"paused_until": TODAY + timedelta(minutes=1)}),
        Person("Back from a pause", NO_LOGS, {"paused_until": TODAY - timedelta(minutes=1)}),
    ],
    "There is no zone": [
        Person("Yesterday", NOTHING, {"timezone": None}, logs=on(YESTERDAY)),
        Person("First second of day 2", NOTHING, {"timezone": None}, logs=on(YESTERDAY - timedelta(hours=14))),
        Person("The second before", MISSED, {"timezone": None}, logs=on(YESTERDAY - timedelta(hours=14, seconds=1))),
    ],
    "New accounts have three days of grace": [
        Person("Just arrived", NOTHING, {"created_at": TODAY}),
        Person("Nearly three days", NOTHING, {"created_at": TODAY - timedelta(days=3) + timedelta(minutes=1)}),
        Person("Three days", NO_LOGS, {"created_at": TODAY - timedelta(days=3, minutes=1)}),
    ],
    "People without any habit are left alone": [
        Person("No habit", NOTHING, habits=()),
        Person("One habit", NO_LOGS),
        Person("Two habits", NO_LOGS, habits=({}, {})),
    ],
    "Habits are archived or deleted softly": [
        Person("No habit", NOTHING, habits=()),
        Person("An archived habit", NOTHING, habits=[{"archived_at": A_WEEK_AGO}]),
        Person("One of two archived", NO_LOGS, habits=[{"archived_at": A_WEEK_AGO}, {}]),
        Person("Logged, then archived", NOTHING, habits=[{"archived_at": TODAY}, {}], logs=on(YESTERDAY)),
    ],
    "Ids are `BINARY(16)`": BASE,
    "Logs have a date, no time": [
        Person("Yesterday", NOTHING, logs=[{"done_on": YESTERDAY.date()}]),
        Person("Day 1", MISSED, logs=[{"done_on": DAY1.date()}]),
        Person("Today", NO_LOGS, logs=[{"done_on": TODAY.date()}]),
        Person("Yesterday in Auckland", NOTHING, {"timezone": "Pacific/Auckland"}, logs=[{"done_on": TODAY.date()}]),
        Person("Day 1 in Auckland", MISSED, {"timezone": "Pacific/Auckland"}, logs=[{"done_on": YESTERDAY.date()}]),
    ],
    "The date is text": [
        Person("Yesterday", NOTHING, logs=[{"done_text": f"{YESTERDAY:%Y-%m-%d}"}]),
        Person("Day 1", MISSED, logs=[{"done_text": f"{DAY1:%Y-%m-%d}"}]),
        Person("No date", NO_LOGS, logs=[{"done_text": "soon"}, {"done_text": None}, {"done_text": ""}]),
    ],
    "Times are seconds since 1970": [
        Person("First of day 2", NOTHING, logs=[{"done_seconds": MIDNIGHT}]),
        Person("Last of day 1", MISSED, logs=[{"done_seconds": MIDNIGHT - 1}]),
    ],
    "Times are the user's own local time": [
        Person("Last of day 2", NOTHING, EAST, logs=on(YESTERDAY.replace(hour=23, minute=59))),
        Person("First of day 3", NO_LOGS, EAST, logs=on(TODAY.replace(hour=0))),
        Person("First of day 2", NOTHING, WEST, logs=on(YESTERDAY.replace(hour=0))),
        Person("Last of day 1", MISSED, WEST, logs=on(DAY1.replace(hour=23, minute=59))),
    ],
    "Times are the local time of one zone": [
        Person("Noon of day 2", NOTHING, logs=on(YESTERDAY)),
        Person("Noon of day 1", MISSED, logs=on(DAY1)),
    ],
    "Rows are made before they are done, or hold a count": [
        Person("Done", NOTHING, logs=on(YESTERDAY)),
        Person("Planned", NO_LOGS, logs=on(YESTERDAY, completed=0)),
        Person("Done on day 1, planned", MISSED, logs=on(DAY1) + on(YESTERDAY, completed=0)),
    ],
    "The key is habit and day, there is no id": BASE,
    "Habits are due on some weekdays": [
        Person("Due on Mondays", NO_LOGS, habits=[{"weekdays": "0"}]),
        Person("Due on all days but Mondays", NOTHING, habits=[{"weekdays": "1,2,3,4,5,6"}]),
        Person("Due on Mondays, done", NOTHING, habits=[{"weekdays": "0"}], logs=on(YESTERDAY)),
        Person("Done on day 1", MISSED, habits=[{"weekdays": "0,6"}], logs=on(DAY1)),
        Person("One of two due", NO_LOGS, habits=[{"weekdays": "2"}, {"weekdays": "0"}]),
        Person("Due, but archived", NOTHING, habits=[{"weekdays": "0", "archived_at": A_WEEK_AGO}]),
        Person("Never due", NOTHING, habits=[{"weekdays": None}]),
    ],
    "Zones are offsets": [
        *zones(
            "utc_offset",
            {minutes: minutes / 60 for minutes in (0, 60, -60, 840, -660, -720)}
            | {minutes: minutes / 60 for minutes in (-570, -150, 210, 270, 330, 345, 390, 525, 570, 765)}
            | {-210: -2.5, 630: 9.5, 825: 12.75},  # May: one place each has the other time of the year
        ),
        Person("No such offset", NOTHING, {"timezone": None, "utc_offset": 100}),
        Person("None", NOTHING, {"timezone": None, "utc_offset": None}),
    ],
    "Zones have Windows or Rails names": [
        *zones(
            "timezone",
            {"W. Europe Standard Time": 2, "Eastern Time (US & Canada)": -4, "New Delhi": 5.5, "Asia/Tokyo": 9},
        ),
        Person("Not listed", NOTHING, {"timezone": "Tonga Standard Time"}),
        Person("None", NOTHING, {"timezone": None}),
    ],
    "Numbers are in national form": numbers(
        ("US", "(415) 555-0123", "+14155550123"),
        ("US", "4155550124", "+14155550124"),
        ("CA", "1 613 555 0123", "+16135550123"),
        ("GB", "(020) 7946 0132", "+442079460132"),
        ("GB", "20 7946 0137", "+442079460137"),
        ("DE", "0171/3920000", ""),  # a slash is not tidied
        ("DE", "0171 39200-00", "+491713920000"),
        ("ES", "612 34 56 78", "+34612345678"),
        ("DE", "+44 20 7946 0133", "+442079460133"),
        ("US", "0044 20 7946 0134", "+442079460134"),
        ("DE", "(+49) 171 3920001", "+491713920001"),
        ("US", " +44 20 7946 0138", "+442079460138"),
        ("US", " 0044 20 7946 0139", "+442079460139"),
        ("DE", "(0049) 171 3920002", ""),  # a bracket before a 0 is not tidied
        ("GB", "call me maybe", ""),
        ("XX", "020 7946 0135", ""),
        (None, "020 7946 0136", ""),
        ("GB", "", ""),
        ("GB", " ", ""),
    ),
    "Logs are kept in JSON": [
        Person("Yesterday", NOTHING, habits=[{"done_days": f'["2026-05-01", "{YESTERDAY:%Y-%m-%d}"]'}]),
        Person("Day 1", MISSED, habits=[{"done_days": f'["{DAY1:%Y-%m-%d}", "{TODAY:%Y-%m-%d}"]'}]),
        Person("None", NO_LOGS, habits=[{"done_days": "[]"}]),
        Person("Null", NO_LOGS, habits=[{"done_days": None}]),
        Person("No JSON", NO_LOGS, habits=[{"done_days": "yesterday"}]),
        Person("No dates", NO_LOGS, habits=[{"done_days": '["yesterday", null, 7, {}]'}]),
    ],
    "Logs belong to people, not to habits": [
        Person("Yesterday", NOTHING, habits=(), rows=[("entries", {"done_at": YESTERDAY})]),
        Person("Day 1", MISSED, habits=(), rows=[("entries", {"done_at": DAY1})]),
        Person("None", NO_LOGS, habits=()),
    ],
}


@pytest.mark.parametrize("question", [["--check"], ["--explain", "1"], ["--dry-run"], []], ids=str)
def test_no_column_is_read_that_the_page_does_not_list(
    database: Database, twilio: FakeTwilio, question: list[str]
) -> None:
    database.insert_user("Ana", "+12025550100", "UTC", logs=[NOON - timedelta(days=2)])
    account = database.least_account(create=True)
    for table, words in re.findall(r"^- \*\*(User|Habit|Log)\*\*: (.*)", PAGE, flags=re.MULTILINE):
        columns = ", ".join(re.findall(r"`(\w+)`", words))
        database.execute(f"REVOKE SELECT ON `{table}` FROM %s@'%%'", (account["DB_USER"],))
        database.execute(f"GRANT SELECT ({columns}) ON `{table}` TO %s@'%%'", (account["DB_USER"],))
    environ = database.environ() | account | twilio.environ()
    assert program.run(environ, question, at=NOON) == Exit.DONE


def test_every_recipe_of_the_page_has_cases() -> None:
    assert RECIPES.keys() == CASES.keys()


@pytest.fixture
def application(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """A fresh one; in the program's sessions the server's clock stands at noon, too."""
    clock = f"{habit_notifier.STATEMENT_LIMIT}, timestamp = {NOON.timestamp()}"
    monkeypatch.setattr(habit_notifier, "STATEMENT_LIMIT", clock)
    with Application(server) as fresh:
        yield fresh


def serves(application: Application, twilio: FakeTwilio, people: Sequence[Person], **settings: str) -> None:
    """A run texts each of these people what they are to get, and nobody else."""
    for n, person in enumerate(people):
        application.take_in(person, f"+1202555{n:04}")
    assert program.run(application.environ(twilio) | settings, at=NOON) == Exit.DONE
    assert sorted((message.to, message.body) for message in twilio.book) == sorted(
        (person.number or f"+1202555{n:04}", f"{person.name}: {person.gets}. STOP")
        for n, person in enumerate(people)
        if person.gets
    )


def test_the_three_views_serve_as_they_stand(
    application: Application, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    serves(application, twilio, BASE)
    assert "no index of" not in caplog.text  # which a view cannot have
    assert len(application.run(f"SELECT * FROM {application.schema}.{LEDGER}")) == len(twilio.book)


@pytest.mark.parametrize("title", [title for title in CASES if "BINARY" not in title])
def test_each_recipe_serves_its_cases(application: Application, twilio: FakeTwilio, title: str) -> None:
    application.use(RECIPES[title])
    serves(application, twilio, CASES[title])


def due(name: str, gets: str | None, weekdays: str | None) -> Person:
    return Person(name, gets, habits=[{"weekdays": weekdays}])


VARIANTS: list[tuple[str, str, str, str, list[Person]]] = [
    (
        "Zones are offsets",
        "`u.utc_offset * 60`",
        r"u\.utc_offset",
        "u.utc_offset * 60",
        zones("utc_offset", {hours: hours for hours in (0, 1, -5, 14, -12, 5.5, 5.75, 8.75, -9.5)}),
    ),
    (
        "Zones are offsets",
        "`-u.utc_offset`",
        r"u\.utc_offset",
        "-u.utc_offset",
        zones("utc_offset", {-60 * hours: hours for hours in (0, 1, -5, 14, -12, 5.5, 5.75, 8.75, -9.5)}),
    ),
    (
        "Habits are due on some weekdays",
        "`DAYOFWEEK(...) - 1`",
        r"WEEKDAY(\(.*\)), h",
        r"DAYOFWEEK\1 - 1, h",
        [due("Due on Mondays", NO_LOGS, "1"), due("Due on Sundays", NOTHING, "0")],
    ),
    (
        "Habits are due on some weekdays",
        "`JSON_CONTAINS(h.weekdays, CAST(WEEKDAY(...) AS CHAR))`",
        r"FIND_IN_SET\((.*), h.weekdays\)",
        r"JSON_CONTAINS(h.weekdays, CAST(\1 AS CHAR))",
        [due("Due on Mondays", NO_LOGS, "[0, 4]"), due("On Tuesdays", NOTHING, "[1]"), due("Never", NOTHING, None)],
    ),
    (
        "Times are seconds since 1970",
        "`l.done_seconds / 1000`",
        r"l\.done_seconds",
        "l.done_seconds / 1000",
        [
            Person("First of day 2", NOTHING, logs=[{"done_seconds": MIDNIGHT * 1000}]),
            Person("Last of day 1", MISSED, logs=[{"done_seconds": MIDNIGHT * 1000 - 1}]),
        ],
    ),
    (
        "Logs are kept in JSON",
        "`JSON_KEYS(h.done_days)`",
        r", h\.done_days,",
        ", JSON_KEYS(h.done_days),",
        [
            Person("Yesterday", NOTHING, habits=[{"done_days": f'{{"{YESTERDAY:%Y-%m-%d}": true}}'}]),
            Person("Day 1", MISSED, habits=[{"done_days": f'{{"{DAY1:%Y-%m-%d}": true, "x": 1}}'}]),
            Person("None", NO_LOGS, habits=[{"done_days": "{}"}]),
            Person("No JSON", NO_LOGS, habits=[{"done_days": "none"}]),
        ],
    ),
]


@pytest.mark.parametrize(("title", "said", "pattern", "instead", "people"), VARIANTS, ids=lambda value: str(value)[:30])
def test_what_the_page_says_to_write_instead(
    application: Application,
    twilio: FakeTwilio,
    title: str,
    said: str,
    pattern: str,
    instead: str,
    people: list[Person],
) -> None:
    [line] = RECIPES[title].lines
    changed, places = re.subn(pattern, instead, line, flags=re.DOTALL)
    assert places > 0
    assert said in PAGE
    application.use(Recipe(RECIPES[title].view, [changed]))
    serves(application, twilio, people)


def test_a_day_that_starts_later_wants_its_hours_in_the_view(application: Application, twilio: FakeTwilio) -> None:
    said = "CAST(l.done_at - INTERVAL 3 HOUR AS DATE)"
    assert f"`{said}` for `03:00`" in PAGE
    application.use(Recipe("Log", [f"{said} AS created_at"]))
    people = [
        Person("Yesterday, after midnight", NOTHING, EAST, logs=on(TODAY.replace(hour=2, minute=59))),
        Person("Today", NO_LOGS, WEST, logs=on(TODAY.replace(hour=3))),
        Person("Day 1, after midnight", MISSED, WEST, logs=on(YESTERDAY.replace(hour=2, minute=59))),
    ]
    serves(application, twilio, people, DAY_STARTS_AT="03:00")


def test_consent_and_counts_may_be_enums(application: Application, twilio: FakeTwilio) -> None:
    """To MySQL a number beside an ENUM is a place in its list: 1 is the first value."""
    application.run("ALTER TABLE users MODIFY sms_consent ENUM('0', '1')")
    application.run("ALTER TABLE habit_logs MODIFY completed ENUM('0', '1')")
    application.use(RECIPES["Rows are made before they are done, or hold a count"])
    people = [
        Person("Refused", NOTHING, {"sms_consent": "0"}),
        Person("Consents, planned", NO_LOGS, {"sms_consent": "1"}, logs=on(YESTERDAY, completed="0")),
        Person("Consents, done", NOTHING, {"sms_consent": "1"}, logs=on(YESTERDAY, completed="1")),
    ]
    serves(application, twilio, people)


def test_ids_of_sixteen_bytes_need_nothing(server: Server, twilio: FakeTwilio) -> None:
    with Application(server, BYTES) as application:
        application.use(RECIPES["Ids are `BINARY(16)`"])
        serves(application, twilio, BASE)
        [column] = application.run(f"SHOW COLUMNS FROM {application.schema}.{LEDGER} LIKE 'user_id'")
        assert column[1] == "binary(16)"


# --- the plans --------------------------------------------------------------------------------------------------------

USERS, LOGS_EACH, PAGE_USERS = 3_000, 8, 300
FILL = f"""
INSERT INTO users (id, first_name, phone, timezone, utc_offset, country, sms_consent, created_at)
  SELECT n, 'Ann', CONCAT('+1202', 5550000 + n), 'UTC', 0, 'US', 1, '2026-01-01' FROM numbers WHERE n <= {USERS};
INSERT INTO consents (user_id) SELECT id FROM users;
INSERT INTO profiles (user_id, mobile, zone) SELECT id, phone, timezone FROM users;
INSERT INTO habits (id, user_id, title, weekdays, done_days)
  SELECT n, (n - 1) DIV 2 + 1, 'Read', '0,1,2,3,4,5,6', '["2026-05-10", "2026-05-11"]'
  FROM numbers WHERE n <= {2 * USERS};
INSERT INTO habit_logs (habit_id, done_at)
  SELECT h.id, '2026-05-11 12:00' - INTERVAL n - 1 DAY FROM numbers JOIN habits h WHERE n <= {LOGS_EACH};
UPDATE habit_logs SET completed = 1, done_on = DATE(done_at), done_text = DATE(done_at),
  done_seconds = UNIX_TIMESTAMP(done_at);
INSERT INTO entries (user_id, done_at)
  SELECT u.id, '2026-05-11 12:00' - INTERVAL n - 1 DAY FROM numbers JOIN users u WHERE n <= {LOGS_EACH};
UPDATE users SET phone = '' WHERE id MOD 100 = 0;
UPDATE habits SET archived_at = '2026-05-01' WHERE id MOD 100 = 0;
"""


@pytest.fixture(scope="module")
def crowd(server: Server) -> Iterator[Application]:
    """Enough people for the server's optimizer to have a choice; nearly all logged yesterday."""
    with Application(server) as application:
        application.run("CREATE TABLE numbers (n INT PRIMARY KEY)")
        digits = " UNION ALL ".join(f"SELECT {n} AS n" for n in range(10))
        joined = ", ".join(f"({digits}) AS d{n}" for n in range(4))
        application.run(f"INSERT INTO numbers SELECT d0.n + 10 * d1.n + 100 * d2.n + 1000 * d3.n FROM {joined}")
        application.run("DELETE FROM numbers WHERE n = 0")
        for sql in statements(FILL):
            application.run(sql)
        application.run("DELETE FROM habit_logs WHERE habit_id <= 60 AND done_at > '2026-05-10'")
        application.run("ANALYZE TABLE users, consents, profiles, habits, habit_logs, entries")
        yield application


@pytest.fixture
def steps(crowd: Application, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """Filled with the plans of all that a run reads from the views."""
    monkeypatch.setattr(habit_notifier, "PAGE_USERS", PAGE_USERS)
    monkeypatch.setattr(habit_notifier, "NEWEST_LOGS", PAGE_USERS)

    def wanted(sql: str) -> bool:
        return sql.startswith("SELECT") and "`" in sql and not re.search("LIMIT 0|WHERE FALSE", sql)

    with explained(crowd.server, crowd.schema, wanted) as found:
        yield found


def read_whole(steps: Sequence[Step]) -> list[Step]:
    """The steps that read a table from end to end, but for the users, once, for their zones."""
    tables = [step for step in steps if not step.table.startswith("<") and step.table != "j"]  # j is JSON_TABLE
    zones = [step for step in tables if ZONES in step.sql]
    assert zones
    return [
        step
        for step in tables
        if step not in zones and (step.type == "ALL" or (step.type == "index" and "LIMIT" not in step.sql))
    ]


@pytest.mark.parametrize("title", [title for title in CASES if "BINARY" not in title])
def test_no_view_is_built_as_a_whole(crowd: Application, steps: list[Step], twilio: FakeTwilio, title: str) -> None:
    crowd.use(RECIPES[title])
    assert program.run(crowd.environ(twilio), at=NOON) == Exit.DONE
    whole = read_whole(steps)
    if crowd.server.kind == "mariadb" and int(crowd.server.version.split(".")[0]) >= 11:
        # Where to start is asked once, of half the users on average: its costs let it prefer to read them all.
        whole = [step for step in whole if "OFFSET" not in step.sql]
    assert not whole
    pages = [step for step in steps if "z.zone" in step.sql and step.table == "u"]
    assert len(pages) >= USERS // PAGE_USERS
    assert {step.key for step in pages} == {"PRIMARY"}


USER = VIEWS["User"]
NOT_PLAIN = {
    "DISTINCT": USER.replace("SELECT\n", "SELECT DISTINCT\n"),
    "LIMIT": f"{USER}\nLIMIT 1000000",
    "UNION": f"{USER}\nUNION ALL {USER[USER.index('SELECT') :]} AND u.id < 0",
}


@pytest.mark.parametrize("word", NOT_PLAIN)
def test_a_view_that_is_not_plain_is_built_as_a_whole(
    crowd: Application, steps: list[Step], twilio: FakeTwilio, word: str
) -> None:
    """What the page warns of, and that the test above would see it."""
    assert f"`{word}`" in PAGE
    crowd.use(None)
    crowd.page(NOT_PLAIN[word])
    assert program.run(crowd.environ(twilio), at=NOON) == Exit.DONE
    assert read_whole(steps)


# --- errors, and other ways to go wrong -------------------------------------------------------------------------------


def failure(application: Application, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture) -> str:
    """What a run says that texts nobody since a person must act."""
    assert program.run(application.environ(twilio), at=NOON) == Exit.ACT
    assert not twilio.book
    return "\n".join(record.getMessage() for record in caplog.records if record.levelname == "ERROR")


DEFINER = "'habit_views'@'localhost'"
BROKEN = {
    f"DROP USER {DEFINER}": 1449,
    f"REVOKE SELECT ON habit_tracker.habits FROM {DEFINER}": 1356,
    "ALTER TABLE habit_tracker.users RENAME COLUMN first_name TO given_name": 1356,
    "DROP TABLE habit_tracker.habit_logs": 1356,
    VIEWS["User"].replace("AS name", "AS first_name"): 1054,
    VIEWS["Log"].replace("AS created_at", "AS done_at"): 1054,
    VIEWS["User"].replace("u.first_name AS name", "(SELECT 'a' UNION ALL SELECT 'b') AS name"): 1242,
    VIEWS["User"].replace("u.id AS id", "(CAST(0 AS UNSIGNED) - u.id) AS id"): 1690,
}

STRICT = {  # MariaDB reads it as NULL, or lacks the function
    VIEWS["User"].replace("u.first_name AS name", "HEX(UUID_TO_BIN(u.first_name)) AS name"): 1411,
    written_into(VIEWS["User"], "AND u.created_at <> ''"): 1525,
}


@pytest.mark.parametrize("sql", [*BROKEN, *STRICT], ids=lambda sql: str(sql)[:60])
def test_a_broken_view_is_told_with_this_page(
    application: Application, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, sql: str
) -> None:
    if sql in STRICT and application.server.kind == "mariadb":
        pytest.skip("only MySQL minds")
    application.take_in(Person("Due", NO_LOGS), "+12025550100")
    application.page(sql)
    said = failure(application, twilio, caplog)
    assert f"(error {(BROKEN | STRICT)[sql]}" in said
    assert "docs/your-tables.md" in said
    assert sql in BROKEN or f"(error {STRICT[sql]})" in said  # what MySQL says of these holds a person's value
    assert "Due" not in said


@pytest.mark.parametrize(("column", "told"), [("u.first_name", "3141"), ("CAST(u.first_name AS BINARY)", "3144: .*")])
def test_a_view_that_reads_json_where_there_is_none_is_told_with_this_page(
    application: Application, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture, column: str, told: str
) -> None:
    application.take_in(Person("Due", NO_LOGS), "+12025550100")
    application.page(
        "CREATE OR REPLACE VIEW habit_notifier.`Log` AS SELECT u.id AS id, u.id AS habit_id, j.at AS created_at"
        f" FROM habit_tracker.users u JOIN JSON_TABLE({column}, '$[*]' COLUMNS (at DATETIME PATH '$')) j"
    )
    assert re.search(rf"\(error ({told}|4038)\)$", failure(application, twilio, caplog).splitlines()[0])
    assert "| error 3141, 3146 (MySQL) or 4038 (MariaDB) |" in PAGE


def test_a_view_that_calls_a_function_that_it_may_not_is_told_with_this_page(
    application: Application, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    application.take_in(Person("Due", NO_LOGS), "+12025550100")
    application.page(
        "CREATE FUNCTION habit_tracker.tidy(name VARCHAR(60)) RETURNS VARCHAR(60) DETERMINISTIC NO SQL RETURN name"
    )
    application.page(VIEWS["User"].replace("u.first_name AS name", "habit_tracker.tidy(u.first_name) AS name"))
    said = failure(application, twilio, caplog)
    assert re.search(r"see docs/your-tables\.md \(error (1356|1370): ", said)
    for account in (DEFINER, "'habit_notifier'@'%'"):
        application.page(f"GRANT EXECUTE ON FUNCTION habit_tracker.tidy TO {account}")
    assert program.run(application.environ(twilio), at=NOON) == 0
    assert len(twilio.book) == 1


def test_the_page_explains_these_errors() -> None:
    explained = set(map(int, re.findall(r"^\| error (\d+)(?: \(MySQL\))? \|", PAGE, flags=re.MULTILINE)))
    assert explained == {*BROKEN.values(), *STRICT.values(), 1370, 3144}


def test_the_account_may_not_read_the_tables_behind_the_views(application: Application, twilio: FakeTwilio) -> None:
    environ = application.environ(twilio)
    account = {"user": environ["DB_USER"], "password": environ["DB_PASSWORD"], "database": application.schema}
    with application.server.connect(**account) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM `User`")
        for table in ("users", "habits", "habit_logs"):
            with pytest.raises(pymysql.err.OperationalError, match="1142"):
                cursor.execute(f"SELECT * FROM {application.name}.{table}")


def test_nobody_can_log_in_as_the_definer(application: Application) -> None:
    [password] = re.findall(r"'habit_views'@'localhost' IDENTIFIED BY '(.+)' ACCOUNT LOCK", "\n".join(SET_UP))
    application.page(f"RENAME USER {DEFINER} TO 'habit_views'@'%'")
    try:
        with pytest.raises(pymysql.err.OperationalError, match=r"3118|4151"):
            application.server.connect(user=application.definer, password=password)
    finally:
        application.page(f"RENAME USER 'habit_views'@'%' TO {DEFINER}")


def test_a_ledger_that_moves_along_keeps_people_from_a_second_text(
    application: Application, twilio: FakeTwilio
) -> None:
    serves(application, twilio, [Person("Due", NO_LOGS)])
    tables = re.findall(r"habit_\w+\.`HabitNotification`", MOVE_LEDGER)
    application.page(f"RENAME TABLE {tables[1]} TO {tables[0]}")  # as if the run had been on the tables
    application.page(MOVE_LEDGER)
    assert program.run(application.environ(twilio), at=NOON) == Exit.DONE
    assert len(twilio.book) == 1


ZONE = 9_042
WITH_ZONE_TABLES = (
    "INSERT INTO mysql.time_zone VALUES (%s, 'N')",
    "INSERT INTO mysql.time_zone_name VALUES ('Pacific/Auckland', %s)",
    "INSERT INTO mysql.time_zone_transition_type VALUES (%s, 0, 43200, 0, 'NZST')",
)


@pytest.fixture(params=[False, True], ids=["no zone tables", "zone tables"])
def auckland_known(request: pytest.FixtureRequest, application: Application) -> Iterator[bool]:
    """Whether the server knows the zone, which a throw-away one is told, or not."""
    told = application.server.throwaway and request.param
    for sql in WITH_ZONE_TABLES if told else ():
        application.run(sql, [ZONE])
    [(known,)] = application.run("SELECT CONVERT_TZ('2026-05-12 12:00', '+00:00', 'Pacific/Auckland') IS NOT NULL")
    yield bool(known)
    for sql in WITH_ZONE_TABLES if told else ():
        application.run(f"DELETE FROM {sql.split()[2]} WHERE time_zone_id = %s", [ZONE])


def test_yesterday_is_that_of_the_zone_if_the_server_knows_zones(
    application: Application, twilio: FakeTwilio, auckland_known: bool
) -> None:
    """At noon UTC, Auckland's day has just begun: yesterday was Tuesday there, Monday in UTC."""
    application.use(RECIPES["Habits are due on some weekdays"])
    there = {"timezone": "Pacific/Auckland"}
    people = [
        Person("Due on Mondays", NOTHING if auckland_known else NO_LOGS, there, habits=[{"weekdays": "0"}]),
        Person("Due on Tuesdays", NO_LOGS if auckland_known else NOTHING, there, habits=[{"weekdays": "1"}]),
    ]
    serves(application, twilio, people)


def test_local_times_become_utc_if_the_server_knows_zones(
    application: Application, twilio: FakeTwilio, auckland_known: bool
) -> None:
    """What an application in Auckland writes at noon was midnight in UTC; else it stays as it is."""
    title = "Times are the local time of one zone"
    [line] = RECIPES[title].lines
    application.use(Recipe("Log", [line.replace("Europe/Berlin", "Pacific/Auckland")]))
    last = TODAY - timedelta(seconds=1)
    serves(application, twilio, [Person("Last of day 2", NOTHING if auckland_known else NO_LOGS, logs=on(last))])
