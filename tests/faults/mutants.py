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

NOT_DUE = frozenset({"only who is due"})
MIDNIGHT = "local midnight while a run is at work"

SUBMIT = "        for reminder in ours:\n            self.unrecorded[reminder] = GIVEN_UP"
RECORD_FIRST = """\
        self.ledger.record(dict.fromkeys(ours, Answer(Action.ACCEPT, sid="SM" + "0" * 32)), self.clock())
"""
RETRY_5XX = """\
    if status >= 500:
        return Answer(Action.PAUSE, "once more", retry_after=0.0)
    if body is None:
"""
BELIEVE = """\
    if body is None and 400 <= status < 500:
        return Answer(Action.FAIL, "no")
    if body is None:
"""

MUTANTS = [
    Mutant("record before post", {SUBMIT: RECORD_FIRST + SUBMIT}, LEDGER, "kill -9"),
    Mutant(
        "release on ReadTimeout",
        {
            "    if tunnel or untunnelled or isinstance(reason, never_connected):": (
                "    if tunnel or isinstance(reason, never_connected) or isinstance(error, requests.ReadTimeout):"
            )
        },
        LEDGER,
        "answer slower than the timeout",
    ),
    Mutant(
        "a claim without ownership",
        {
            "if len(others) < len(case.rows):": "if True:",
            # Else the deferral would still hold back whoever does not own the day.
            "row.token != claim.token": "row.local_day != claim.local_day",
        },
        LEDGER,
        "overlap",
    ),
    Mutant(
        "no deferral",
        {
            "if row.state is State.REFUSED or (last <= case.now - SPACING and last + late < case.days.end):": (
                "if last and case:"
            )
        },
        TWICE,
        "another day",
    ),
    Mutant("retry on 5xx", {"    if body is None:\n": RETRY_5XX}, TWICE, "5xx after accepting"),
    Mutant("a proxy believed", {"    if body is None:\n": BELIEVE}, LEDGER, "4xx of a proxy after accepting"),
    Mutant(
        "not written again",
        {"                self._execute(*statement)\n": "                pass\n"},
        LEDGER,
        "lost commits",
    ),
    Mutant(
        "not released again",
        {"        yield from map(delete, chunks([row.key for row, stays in self._done if not stays], KEYS))\n": ""},
        LEDGER,
        "lost commits",
    ),
    Mutant(
        "any clock believed", {"elif abs(twilios - now) > CLOCK_TOLERANCE:": "elif False:"}, NOT_DUE, "clock behind"
    ),
    Mutant(
        "no last look",
        {"if left and {days_of(at, days.zone, s.day_starts_at).today for at in moments}": "if {days.today}"},
        NOT_DUE,
        MIDNIGHT,
    ),
]
