"""Many users in many zones with their habits and logs, made by the server itself: millions of rows in a minute or two.

All is told by checksums of the ids, so that it is the same on every machine and server. One user in ten has lapsed:
only old logs. The others log each of their two habits on three days of four: four logs a user in the last three days,
and about one user in six is due. One phone number in fifty is missing, one in a thousand is wrong; so are two zones
in a thousand.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytz

from tests.sandbox import oracle
from tests.sandbox.database import LEDGER, Database

NOW = datetime(2026, 3, 3, 9, tzinfo=UTC)
"""When the runs of the benchmarks believe to be."""

ZONES = pytz.common_timezones[:400]
RECENT_DAYS = 3
HABITS = 2
CHUNK = 100_000  # users filled in by one statement


class Population:
    """A database that grows: `grow` adds users, `add_old_logs` adds logs of long ago to all of them."""

    def __init__(self, database: Database, now: datetime = NOW) -> None:
        self.database = database
        self.now = now
        self.users = 0
        self.old_logs = 0
        database.execute("CREATE TABLE BenchNumber (n INT PRIMARY KEY)")
        database.execute("INSERT INTO BenchNumber VALUES (0)")
        for power in range(20):
            database.execute(f"INSERT INTO BenchNumber SELECT n + {2**power} FROM BenchNumber")
        database.execute(
            "CREATE TABLE BenchZone (number INT PRIMARY KEY, zone VARCHAR(64) UNIQUE,"
            " day1 DATETIME, day2 DATETIME, day3 DATETIME)"
        )
        for number, name in enumerate(ZONES):
            _, *bounds = oracle.days(now, name)
            database.execute("INSERT INTO BenchZone VALUES (%s, %s, %s, %s, %s)", (number, name, *bounds))

    def grow(self, users: int, old_logs: int = 0) -> None:
        """Add users until there are so many, the new ones with so many old logs each."""
        while self.users < users:
            first, last = self.users + 1, min(users, self.users + CHUNK)
            within = f"n.n BETWEEN {first} AND {last}"
            self._add_users(within)
            self._add_old_logs(within, 0, old_logs)
            for day in reversed(range(RECENT_DAYS)):
                self._add_logs(within, f"d{day}", f"{day} * 86400", "n.n MOD 10 <> 7 AND {chance} MOD 101 < 76")
            self.users = last
        self._finish()

    def add_old_logs(self, old_logs: int) -> None:
        """Add old logs until each user has so many."""
        for first in range(1, self.users + 1, CHUNK):
            self._add_old_logs(f"n.n BETWEEN {first} AND {min(self.users, first + CHUNK - 1)}", self.old_logs, old_logs)
        self.old_logs = old_logs
        self._finish()

    def add_lapsed(self, users: int) -> None:
        """Add users who are due without exception, having logged nothing."""
        self._add_users(f"n.n BETWEEN {self.users + 1} AND {self.users + users}", flawless=True)
        self.users += users
        self._finish()

    def add_ledger(self) -> None:
        """Give everybody who is due a text for each of seven days, all delivered."""
        at = f"TIMESTAMP '{self.now:%Y-%m-%d %H:%M:%S}' - INTERVAL n.n DAY"
        self._fill(
            f"""INSERT INTO {LEDGER}
                SELECT u.id, DATE({at}), u.phone_number, 'no_logs', 'sent', REPEAT('a', 32), {at}, {at},
                       CONCAT('SM', LPAD(u.id, 32, '0')), NULL, 'delivered', 1
                FROM User u JOIN BenchZone z ON z.zone = u.time_zone JOIN BenchNumber n ON n.n BETWEEN 2 AND 8
                WHERE u.phone_number LIKE '+%' AND NOT EXISTS (
                    SELECT 1 FROM Habit h JOIN Log l ON l.habit_id = h.id
                    WHERE h.user_id = u.id AND l.created_at >= z.day2 AND l.created_at < z.day3)
                ORDER BY u.id, n.n"""
        )
        self.database.execute(f"ANALYZE TABLE {LEDGER}")

    def _add_users(self, within: str, *, flawless: bool = False) -> None:
        phone, zone = "CONCAT('+1', 2000000000 + n.n)", "z.zone"
        if not flawless:
            phone = f"CASE WHEN n.n MOD 50 = 0 THEN NULL WHEN n.n MOD 1000 = 1 THEN '555 0100' ELSE {phone} END"
            zone = f"CASE n.n MOD 1000 WHEN 2 THEN NULL WHEN 3 THEN 'Mars/Phobos' ELSE {zone} END"
        self._fill(
            f"""INSERT INTO User (id, name, phone_number, time_zone)
                SELECT n.n, CONCAT('User Number ', n.n), {phone}, {zone}
                FROM BenchNumber n JOIN BenchZone z ON z.number = CRC32(n.n) MOD {len(ZONES)}
                WHERE {within} ORDER BY n.n"""
        )
        self._fill(
            f"""INSERT INTO Habit (id, user_id, name)
                SELECT n.n * {HABITS} + k.n, n.n, 'Read ten pages' FROM BenchNumber n
                JOIN BenchNumber k ON k.n < {HABITS} WHERE {within} ORDER BY n.n, k.n"""
        )

    def _add_old_logs(self, within: str, there: int, wanted: int) -> None:
        """Each habit has a share of them, spread over the days from the fourth on back, the oldest first."""
        for turn in reversed(range(there // HABITS, wanted // HABITS)):
            self._add_logs(within, f"o{turn}", f"({RECENT_DAYS + 1} + {turn} * 8 + {{chance}} MOD 8) * 86400", "TRUE")

    def _add_logs(self, within: str, salt: str, seconds: str, condition: str) -> None:
        chance, second = (f"CRC32(CONCAT(n.n * {HABITS} + k.n, '{salt}{kind}'))" for kind in "cs")
        since = self.now.replace(tzinfo=None) - timedelta(seconds=1)
        self._fill(
            f"""INSERT INTO Log (habit_id, created_at)
                SELECT n.n * {HABITS} + k.n,
                       TIMESTAMP '{since}' - INTERVAL {seconds.format(chance=chance)} + {second} MOD 86400 SECOND
                FROM BenchNumber n JOIN BenchNumber k ON k.n < {HABITS}
                WHERE {within} AND {condition.format(chance=chance)} ORDER BY n.n, k.n"""
        )

    def _fill(self, sql: str) -> None:
        for statement in ("SET unique_checks = 0, foreign_key_checks = 0", sql):
            self.database.execute(statement)

    def _finish(self) -> None:
        """Let neither side pay for statistics or pages that the filling left behind."""
        self.database.execute("ANALYZE TABLE User, Habit, Log")
