"""The documents say what the program, the Makefile and the tree say."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest

import habit_notifier as hn
from tests.environ import ENVIRON
from tests.project.shell import ROOT
from tests.runs import program
from tests.sandbox.database import Database
from tests.sandbox.fake_twilio import FakeTwilio

README = (ROOT / "CRONJOB_README.md").read_text()
FOUR = ["README.md", "CRONJOB_README.md", "DEPLOYMENT.md", "k8s/README.md"]
DOCUMENTS = [*(ROOT / name for name in FOUR), *sorted((ROOT / "docs").glob("*.md"))]
VARIABLES = {declared.name.upper(): declared.metadata for declared in fields(hn.Settings)}
OF_SHARDS = {"SHARD_COUNT", "JOB_COMPLETION_INDEX"}
SEED = """
    Features, Architecture, Notification Logic, Project Structure, Quick Start, 1. Build and push Docker image,
    2. Configure secrets, 3. Update configuration, 4. Deploy, 5. Test, Configuration, Environment Variables,
    CronJob Schedule, Database Schema, User, Habit, Log, Security Features, Container Security, Kubernetes Security,
    Application Security, Monitoring, View CronJob status, View job history, View logs, Metrics, Troubleshooting,
    Job fails immediately, Common Issues, Manual Testing, Maintenance, Suspend CronJob, Resume CronJob, Update image,
    Clean up old jobs, Development, Local testing, Code linting, Security scanning, Production Checklist, License,
    Support
"""


def rows(heading: str) -> list[list[str]]:
    """The cells of the README's table under a heading of that text."""
    lines = README.split(heading, 1)[1].split("\n| --- ", 1)[1].split("\n")[1:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in table]


def declared(name: str) -> str:
    """A setting as a document tells it; a default that is a sentence is in --help."""
    said = VARIABLES[name]
    short = said["default"] if len(said["default"] or "") <= 40 else ""
    default = " (required)" if said["default"] is None else f" (`{short}`)" if short else ""
    return f"- `{name}`{default}: {said['help']}"


@pytest.mark.parametrize(("heading", "secret"), [("**From ConfigMap", False), ("**From Secret", True)])
def test_the_settings_are_told_as_they_are_declared(heading: str, secret: bool) -> None:
    told = re.findall("^- `[A-Z_]+`.*(?:\n  .*)*", README.split(heading)[1].split("\n**")[0].split("\n#")[0], re.M)
    expected = [
        declared(name) for name, said in VARIABLES.items() if said["secret"] is secret and name not in OF_SHARDS
    ]
    assert [re.sub(r"\s+", " ", each) for each in told] == expected


def test_the_settings_of_shards_are_told_with_the_shards() -> None:
    lines = (ROOT / "docs/scale.md").read_text().splitlines()
    assert {declared(name) for name in OF_SHARDS} <= set(lines)


def test_the_table_of_outcomes_and_exit_codes_is_that_of_the_program() -> None:
    table = {
        (code.split(":")[0], failed): re.findall(r"\*\*(.+?)\*\*", words)
        for code, failed, words in rows("### Outcomes")
    }
    assert table.pop(("143", "–")) == []
    assert {int(code) for code, _ in table} | {143} == {code.value for code in hn.Exit}
    expected: dict[tuple[str, str], list[str]] = {}
    for outcome in hn.Outcome:
        key = str(code_of_a_shard_with(outcome).value), "yes" if outcome.failed else "no"
        expected.setdefault(key, []).append(outcome.words)
    assert table == expected
    assert "2 > 143 > 1 > 0" in README.replace("\n", " ")
    assert hn.Exit.worst([hn.Exit.DONE, hn.Exit.RETRY, hn.Exit.TERMINATED, hn.Exit.ACT]) is hn.Exit.ACT
    assert hn.Exit.worst([hn.Exit.RETRY, hn.Exit.TERMINATED]) is hn.Exit.TERMINATED


def code_of_a_shard_with(outcome: hn.Outcome) -> hn.Exit:
    """How a run ends that sent a text, and with one user of that outcome: in shards, since that is the milder code."""
    report, brake = hn.Report(), hn.Brake(hn.Stop(), hn.utc_now, deadline=60)
    report.start(2)
    report.walked = True
    report.counts.update([hn.Outcome.SENT, outcome])
    return report.close(brake, hn.Settings.read(ENVIRON | {"SHARD_COUNT": "2", "JOB_COMPLETION_INDEX": "0"}))


def test_the_arguments_are_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hn.main(["--help"])
    known = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert set(re.findall(r"^- `(--[a-z-]+)", README, re.MULTILINE)) == known - {"--run"}


def test_the_rules_table_is_what_the_rules_do() -> None:
    said = {(day1, day2): gets for day1, day2, gets in rows("## Notification Logic")}
    assert said == {
        ("no log", "no log"): f'a text: "{hn.rule_for(logged_day1=False).reason}"',
        ("logged", "no log"): f'a text: "{hn.rule_for(logged_day1=True).reason}"',
        ("any", "logged"): "nothing",
    }


@pytest.mark.parametrize("heading", [" ".join(each.split()) for each in SEED.split(",")])
def test_each_heading_of_the_first_readme_is_still_found(heading: str) -> None:
    marks = rf"^#+ {heading}$", rf"\*\*{heading}\*\*", rf"# {heading}\b"
    assert re.search("|".join(marks), README, re.MULTILINE)


def test_the_documents_are_short() -> None:
    assert sum(len((ROOT / name).read_text().split()) for name in FOUR) <= 4_500


def test_the_program_is_read_top_to_bottom_and_in_short_functions() -> None:
    tree = ast.parse((ROOT / "app/habit_notifier.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lengths = [((node.end_lineno or 0) - node.lineno + 1, node.name) for node in functions]
    job = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Job")
    run = next(node for node in job.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    assert run.lineno < 450
    assert [found for found in lengths if found[0] > 30] == []
    assert median(length for length, _ in lengths) <= 8
    for node in functions:
        own = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        assert len([name for name in own if name not in ("self", "cls")]) <= 5, node.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_links_or_names_exists(document: Path) -> None:
    text = document.read_text()
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    named = re.findall(r"`((?:app|k8s|tests|overlays|hack|docs)/[\w./-]*)`", text)
    missing = [name for name in linked if not (document.parent / name).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_section_that_a_document_links_exists(document: Path) -> None:
    for target, section in re.findall(r"\]\(([^)#\s:]*)#([^)]+)\)", document.read_text()):
        text = (document.parent / target if target else document).read_text()
        headings = re.findall("^#+ (.*)$", text, re.MULTILINE)
        assert section in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


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
        word for path in (ROOT / "hack").glob("*.*") for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", path.read_text())
    }
    standard = {"HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "TEST_MYSQL_URL"}
    standard |= {"CONVERT_TZ", "FIND_IN_SET", "SET_ANY_DEFINER", "SET_USER_ID"}  # MySQL's
    files = {f"{name}_FILE" for name, said in VARIABLES.items() if said["secret"]}
    assert named - set(VARIABLES) - files - standard - makefile - scripts == set()


def test_how_many_in_a_country_that_is_off_fail_a_later_run_of_the_day() -> None:
    [words] = [words for code, _, words in rows("### Outcomes") if "a country is off" in words]
    assert "later that day, ten where a country is off" in words
    assert hn.STREAK == 10


MORNING = datetime(2024, 1, 15, 9, tzinfo=UTC)
LOG = README.split("Example log output")[1].split("```")[1].strip().splitlines()


def test_the_example_of_a_log_is_of_a_real_run(
    database: Database, twilio: FakeTwilio, caplog: pytest.LogCaptureFixture
) -> None:
    database.insert_users((f"Nobody {n}", None, "UTC") for n in range(1, 42))
    database.insert_user("John Doe", "+12025550142", "Europe/Berlin")
    database.insert_user("Ana Low", "+12025550143", "America/Los_Angeles")
    database.insert_user("Quy Zoe", "+12025550144", "Mars/Olympus_Mons")
    database.insert_user("Ben Back", "+12025550145", "Europe/London", logs=[MORNING - timedelta(days=1)])
    assert program.run(database.environ() | twilio.environ() | {"SEND_WINDOW": "09:00-20:00"}, at=MORNING) == 0
    logged = {line_of(record.levelname, record.getMessage()) for record in caplog.records}
    for line in LOG:
        moment, _, level, message = line.split(" - ", 3)
        assert datetime.fromisoformat(moment) >= MORNING.replace(tzinfo=None)
        assert line_of(level, message) in logged


def line_of(level: str, message: str) -> tuple[str, str]:
    """A line of the log without what differs from one run to another."""
    return level, re.sub(r"SM\w{32}|(?<=Settings: ).*", "", message)


@pytest.mark.parametrize(
    "words", ["Starting habit", "Database conn", "Twilio client", "Found", "needs", "sent to", "Job comp"]
)
def test_the_example_of_a_log_has_the_lines_of_the_first_readme(words: str) -> None:
    assert any(words in line for line in LOG)
