"""What the server's optimizer makes of the statements that a run really sends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pymysql.cursors import DictCursor

from habit_notifier import Database
from tests.sandbox.database import Server


@dataclass(frozen=True)
class Step:
    """One table in the plan of a statement, just before it runs."""

    sql: str
    table: str
    type: str
    key: str | None
    rows: int


@contextmanager
def explained(server: Server, database: str, wanted: Callable[[str], bool]) -> Iterator[list[Step]]:
    """Filled with the steps of those statements that are wanted."""
    steps: list[Step] = []
    one_at_a_time = threading.Lock()
    run_once: Callable[..., list[tuple[Any, ...]]] = Database._run_once

    with server.connect(database=database) as beside, beside.cursor(DictCursor) as cursor:

        def explain_and_run(program: Database, sql: str, args: Sequence[object]) -> list[tuple[Any, ...]]:
            if wanted(sql):
                with one_at_a_time:
                    cursor.execute(f"EXPLAIN {sql}", tuple(args))
                    plan = [step for step in cursor.fetchall() if step["table"]]
                steps.extend(Step(sql, s["table"], s["type"], s["key"], int(s["rows"] or 0)) for s in plan)
            return run_once(program, sql, args)

        if server.kind == "mysql":  # which would answer with a tree
            cursor.execute("SET explain_format = 'TRADITIONAL'")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Database, "_run_once", explain_and_run)
            yield steps
