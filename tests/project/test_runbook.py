"""DEPLOYMENT.md has each message of the program beside its remedy, in the program's words."""

from __future__ import annotations

import ast
import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import habit_notifier as hn

DOCUMENT = (Path(__file__).resolve().parents[2] / "DEPLOYMENT.md").read_text()
TREE = ast.parse(inspect.getsource(hn))
LOGGED = {"warning", "error", "critical"}
RAISED = {kind.__name__ for kind in (hn.FixFirst, hn.RetryLater, hn.Terminated, ValueError)} | {"kind"}
WARNED = {outcome.name for outcome in hn.Outcome if outcome.level == logging.WARNING}
ASKED = {  # who asks at a keyboard is told at once, in full
    "--now goes with --dry-run or --explain",
    "The ledger … is not there, or DB_USER may not read it: taken as empty",
    "the account has no sender …: see its console",
    "there is no user … in User",
}
SQL = re.compile("(GRANT|ALTER|CREATE|SHOW|SELECT) ")  # a statement that belongs to the line above it


def texts(*nodes: ast.AST) -> Iterator[str]:
    """The sentences that stand in some code, with … for what is filled in."""
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(\.\d)?[a-z]", "…", node.value)
        else:
            yield from texts(*ast.iter_child_nodes(node))


def name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def messages() -> Iterator[str]:
    """All that the program may say as a WARNING or an ERROR."""
    for function in (each for each in ast.walk(TREE) if isinstance(each, ast.FunctionDef)):
        names = {
            target.id: each.value
            for each in ast.walk(function)
            if isinstance(each, ast.Assign)
            for target in each.targets
            if isinstance(target, ast.Name)
        }
        for each in ast.walk(function):
            if isinstance(each, ast.Call) and (name_of(each.func) in LOGGED | RAISED or names_users(each)):
                yield from texts(*(names.get(name_of(argument), argument) for argument in each.args))
            elif isinstance(each, ast.Yield | ast.Return) and makes_lines(function) and each.value:
                yield from texts(each.value)


def makes_lines(function: ast.FunctionDef) -> bool:
    """Whether others log what it yields; the lines of --check hold their remedies themselves."""
    lines = function.returns is not None and ast.unparse(function.returns) == "Iterator[str]"
    return lines and not function.name.startswith(("check_", "find_"))


def names_users(call: ast.Call) -> bool:
    """Whether it is a Skip that is told as a WARNING."""
    outcomes = {each.attr for each in ast.walk(call) if isinstance(each, ast.Attribute)}
    return name_of(call.func) == "Skip" and bool(outcomes & WARNED)


SAID = sorted({text for text in messages() if len(text.split()) > 2 and not SQL.match(text)} - ASKED)
TABLE = DOCUMENT.split("# What the log says")[1].split("\n#")[0]
FRAGMENTS = [
    fragment for row in re.findall(r"^\| (`.*?) \| ", TABLE, re.MULTILINE) for fragment in re.findall("`(.+?)`", row)
]


def speaks_of(fragment: str, message: str) -> bool:
    return re.search(".*?".join(map(re.escape, fragment.split("…"))), message) is not None


@pytest.mark.parametrize("message", SAID)
def test_each_message_of_the_program_is_in_the_runbook(message: str) -> None:
    assert any(speaks_of(fragment, message) for fragment in FRAGMENTS)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_each_message_of_the_runbook_is_the_program_s(fragment: str) -> None:
    assert any(speaks_of(fragment, text) for text in texts(TREE))


def test_a_zone_that_is_newer_than_the_image_is_not_only_blamed_on_the_user() -> None:
    [row] = re.findall("^.*`correct User.time_zone`.*$", DOCUMENT, re.M)
    assert "make lock" in row


def test_an_image_for_another_processor_is_told_by_its_words() -> None:
    """With runc such a pod ends with 1, as when Twilio is away, or 255; where it cannot even be started, with 128."""
    [code] = re.findall(r"^\| (.*) \| .*PLATFORM=linux/amd64", DOCUMENT, re.M)
    assert code == "1, 128, 255: `exec format error`"


def test_a_second_run_is_said_to_serve_only_those_who_have_no_row() -> None:
    [excepted] = re.findall("it serves who was neither (.*?), and nobody twice", DOCUMENT)
    assert set(re.findall(r"\w+", excepted)) - {"nor"} == {
        str(state).replace("sent", "served") for state in hn.KEPT.values()
    }
