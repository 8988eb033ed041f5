"""The documents say what the program, the Makefile and the tree say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import habit_notifier as hn

ROOT = Path(__file__).parent.parent
README = (ROOT / "CRONJOB_README.md").read_text()
DOCUMENTS = [ROOT / name for name in ("README.md", "CRONJOB_README.md", "DEPLOYMENT.md", "k8s/README.md")]
VARIABLES = {declared.name.upper(): declared.metadata for declared in fields(hn.Settings)}


def rows(heading: str) -> list[list[str]]:
    """The cells of the README's table under a heading of that text."""
    lines = README.split(heading, 1)[1].split("\n| --- ", 1)[1].split("\n")[1:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize(("heading", "secret"), [("**From ConfigMap", False), ("**From Secret", True)])
def test_the_settings_table_is_that_of_the_declarations(heading: str, secret: bool) -> None:
    expected = [
        [name, said["help"], "required" if said["default"] is None else said["default"] or "none"]
        for name, said in VARIABLES.items()
        if said["secret"] is secret
    ]
    assert rows(heading) == expected


def test_the_table_of_outcomes_is_that_of_the_program() -> None:
    expected = [[o.words, "yes" if o.failed else "no", str(o.exit_code.value)] for o in hn.Outcome]
    assert rows("What can become of a user") == expected


def test_the_table_of_exit_codes_is_that_of_the_program() -> None:
    assert {int(code) for code, *_ in rows("And how a run ends")} == {code.value for code in hn.Exit}
    assert "2 > 143 > 1 > 0" in README
    assert hn.Exit.worst([hn.Exit.DONE, hn.Exit.RETRY, hn.Exit.TERMINATED, hn.Exit.ACT]) is hn.Exit.ACT
    assert hn.Exit.worst([hn.Exit.RETRY, hn.Exit.TERMINATED]) is hn.Exit.TERMINATED


def test_the_rules_table_is_what_the_rules_do() -> None:
    said = {(day1, day2): gets for day1, day2, gets in rows("## Notification Logic")}
    assert said == {
        ("no log", "no log"): f'a text: "{hn.rule_for(logged_day1=False).reason}"',
        ("logged", "no log"): f'a text: "{hn.rule_for(logged_day1=True).reason}"',
        ("any", "logged"): "nothing",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_links_or_names_exists(document: Path) -> None:
    text = document.read_text()
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    named = re.findall(r"`((?:app|k8s|tests|overlays|hack|docs)/[\w./-]*)`", text)
    missing = [name for name in linked if not (document.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_the_project_structure_names_what_is_there() -> None:
    tree = README.split("## Project Structure")[1].split("```")[1]
    folder = ROOT
    for line in tree.strip().split("\n"):
        name = re.sub(r"^[│├└─\s]+", "", line).split()[0]
        top = line[0] in "├└"
        folder = ROOT if top else folder
        assert (folder / name).exists(), name
        folder = ROOT / name if top and name.endswith("/") else folder


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_in_a_document_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", document.read_text(), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_variable_in_a_document_is_one_that_something_reads(document: Path) -> None:
    named = set(re.findall(r"`([A-Z][A-Z0-9]+_[A-Z0-9_]+)(?:=[^`]*)?`", document.read_text()))
    makefile = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", (ROOT / "Makefile").read_text()))
    scripts = {
        word for path in (ROOT / "hack").glob("*") for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", path.read_text())
    }
    standard = {"HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURRENT_TIMESTAMP", "TEST_MYSQL_URL"}
    files = {f"{name}_FILE" for name, said in VARIABLES.items() if said["secret"]}
    assert named - set(VARIABLES) - files - standard - makefile - scripts == set()


def test_the_seed_s_log_lines_are_in_the_program() -> None:
    example = README.split("Example log output:")[1].split("```")[1].strip()
    source = Path(hn.__file__).read_text()
    for line in example.split("\n"):
        message = line.split(" - ", 3)[3]
        words = re.split(r"\d+ |\d+$|John Doe|\(.*?\)|SM\w+|\d+|: No logs.*", message)
        for fixed in filter(None, (word.strip(" ,.:") for word in words)):
            assert fixed in source, fixed
