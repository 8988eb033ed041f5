"""Ways to break the program that the driver must see. Each is a few texts of the program and what to put instead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One way to break the program; `sees` names the invariants that may tell."""

    name: str
    replacements: tuple[tuple[str, str], ...]
    sees: frozenset[str]


MUTANTS = [
    Mutant(
        "record before post",
        (
            (
                "            sender.submit(ours)\n",
                '            store.record([Result(claim, Answer(Action.ACCEPT, sid="SM" + "0" * 32)) for claim in ours], clock())\n'
                "            sender.submit(ours)\n",
            ),
        ),
        frozenset({"ledger"}),
    ),
    Mutant(
        "release on ReadTimeout",
        (
            (
                "        if surely_not_sent(error):\n",
                "        if surely_not_sent(error) or isinstance(error, requests.exceptions.ReadTimeout):\n",
            ),
        ),
        frozenset({"at most one text", "ledger"}),
    ),
    Mutant(
        "INSERT IGNORE without ownership",
        (
            ('f"""INSERT INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at)\n',
             'f"""INSERT IGNORE INTO {LEDGER} (user_id, local_day, phone_number, rule, state, run_token, claimed_at)\n'),
            ("\n                ON DUPLICATE KEY UPDATE user_id = {LEDGER}.user_id\"\"\",", '""",'),
            ("    if claim.token not in today:\n", "    if not today:\n"),
            (  # else the deferral would still hold back whoever does not own the day
                "row for row in rows if row.token != claim.token and",
                "row for row in rows if row.local_day != claim.reminder.local_day and",
            ),
        ),
        frozenset({"at most one text", "ledger"}),
    ),
    Mutant(
        "no deferral",
        (("    if last and last > claim.at - SPACING:\n", "    if False and last:\n"),),
        frozenset({"at most one text"}),
    ),
    Mutant(
        "retry on 5xx",
        (
            (
                "    if not 400 <= response.status_code < 500:",
                "    if response.status_code >= 500:\n"
                '        return Answer(Action.PAUSE, "once more", retry_after=0.0)\n'
                "    if not 400 <= response.status_code < 500:",
            ),
        ),
        frozenset({"at most one text", "ledger"}),
    ),
]
