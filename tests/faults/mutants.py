"""Ways to break the program that the driver must see. Each is a few texts of the program and what to put instead."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.draw import Scene


@dataclass(frozen=True)
class Mutant:
    """One way to break the program; `sees` names the invariants that may tell, `fault` what must go wrong for it."""

    name: str
    replacements: dict[str, str]
    sees: frozenset[str]
    fault: str

    def concerns(self, scene: Scene) -> bool:
        """Whether the scene holds the fault that shows it."""
        parts = [part for step in scene.steps for part in step.parts[:1]]
        kinds = {fault.kind for part in parts for fault in part.faults}
        return {
            "overlap": any(part.runs > 1 for part in parts),
            "another day": len(scene.steps) > 1,
        }.get(self.fault, self.fault in kinds)


TWICE = frozenset({"at most one text"})
LEDGER = frozenset({"at most one text", "ledger"})

RECORD_FIRST = """\
            store.record([Result(c, Answer(Action.ACCEPT, sid="SM" + "0" * 32)) for c in ours], clock())
            sender.submit(ours)
"""
RETRY_5XX = """\
    if response.status_code >= 500:
        return Answer(Action.PAUSE, "once more", retry_after=0.0)
    if not 400 <= response.status_code < 500:"""

MUTANTS = [
    Mutant("record before post", {"            sender.submit(ours)\n": RECORD_FIRST}, LEDGER, "kill -9"),
    Mutant(
        "release on ReadTimeout",
        {"if surely_not_sent(error):": "if surely_not_sent(error) or isinstance(error, requests.ReadTimeout):"},
        LEDGER,
        "answer slower than the timeout",
    ),
    Mutant(
        "INSERT IGNORE without ownership",
        {
            'f"""INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state,': (
                'f"""INSERT IGNORE INTO {LEDGER} (user_id, local_day, phone_number, rule, state,'
            ),
            '\n                ON DUPLICATE KEY UPDATE user_id = {LEDGER}.user_id""",': '""",',
            "    if claim.token not in today:\n": "    if not today:\n",
            # Else the deferral would still hold back whoever does not own the day.
            "if row.token != claim.token and": "if row.local_day != claim.reminder.local_day and",
        },
        LEDGER,
        "overlap",
    ),
    Mutant(
        "no deferral",
        {"    if last and last > claim.at - SPACING:\n": "    if False and last:\n"},
        TWICE,
        "another day",
    ),
    Mutant("retry on 5xx", {"    if not 400 <= response.status_code < 500:": RETRY_5XX}, TWICE, "5xx after accepting"),
]
