"""A fresh machine: a variable that is set but empty is not set; an engine that is not there is told.

The variables are found in the sources, so that a new one cannot be forgotten; the program's own: rules/test_settings.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests import check
from tests.e2e.stage import NEEDED
from tests.project import test_image
from tests.project.shell import ROOT, program, ran

MAKEFILE = (ROOT / "Makefile").read_text()
SCRIPTS = [*sorted((ROOT / "hack").glob("*.sh")), ROOT / ".ci/run"]
MODULES = [path for folder in ("hack", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
MACHINE = {"HOME", "LANG", "PATH", "SHELL", "TERM", "VIRTUAL_ENV"}
"""What is the machine's, not ours."""

READS = re.compile(r"^os\.(environ\b|getenv\()| in os\.environ$")


# --- how a variable is read


def in_module(path: Path) -> Iterator[tuple[str, str]]:
    """Each variable that a Python file reads, and the expression that asks for it."""
    tree = ast.parse(path.read_text())
    readers = {
        function.name: ast.unparse(node)  # def given(name): return os.environ.get(name)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.args.args
        for node in ast.walk(function)
        if ast.unparse(node).startswith(f"os.environ.get({function.args.args[0].arg}")
    }
    for node in ast.walk(tree):
        asked = ast.unparse(node)
        match node:
            case ast.Call(func=ast.Name(id=reader), args=[ast.Constant(value=str(name)), *_]) if reader in readers:
                yield name, readers[reader]
            case (
                ast.Call(args=[ast.Constant(value=str(name)), *_])
                | ast.Subscript(slice=ast.Constant(value=str(name)), ctx=ast.Load())
                | ast.Compare(left=ast.Constant(value=str(name)))
                | ast.Compare(left=ast.Call(args=[ast.Constant(value=str(name)), *_]))
            ) if READS.search(asked) and name not in MACHINE:
                yield name, asked


def in_script(path: Path) -> Iterator[tuple[str, str]]:
    """Each variable that a script reads though it may not be set, and the expression that asks for it."""
    text = path.read_text()
    for asked, name in re.findall(r"(\$\{([A-Z][A-Z0-9_]*):?[-+?=])", text):
        yield name, asked
    for asked, name in re.findall(r"(\[ -v ([A-Z][A-Z0-9_]*))", text):
        yield name, asked
    for variable, names in re.findall(r"for (\w+) in ([A-Z_ ]+);", text):  # ${!variable:-}
        for asked in re.findall(rf"(\$\{{!{variable}:?[-+?=])", text):
            yield from ((name, asked) for name in names.split())


def in_makefile() -> Iterator[tuple[str, str]]:
    """Each variable that the Makefile reads, or tells in its help, and how."""
    for asked, name in re.findall(r"(\$\(or \$\(([A-Z]+)\))", MAKEFILE):
        yield name, asked
    for asked, name in re.findall(r"(^([A-Z_]+) \?=)", MAKEFILE, flags=re.MULTILINE):
        yield name, asked
    for asked, name in re.findall(r"(\b([A-Z_]+)=[\w.\"])", "".join(re.findall(r"## .*", MAKEFILE))):
        yield name, asked


READ = sorted(
    {
        (str(path.relative_to(ROOT)), name, asked)
        for found, paths in ((in_module, MODULES), (in_script, SCRIPTS))
        for path in paths
        for name, asked in found(path)
    }
    | {("Makefile", name, asked) for name, asked in in_makefile()}
)
NAMES = sorted({name for _, name, _ in READ} | NEEDED.keys())

TELLS_EMPTY_FROM_UNSET = re.compile(
    r"""
    ^\$\{!?\w+[-+?=]  # ${NAME-default}: a shell's operator without its colon
    | ^\[\ -v                 # the shell's question whether it is there
    | \?=$                    # make's default
    | \ in\ os\.environ$      # Python's question whether it is there
    | \ is\ (not\ )?None$
    | (get|getenv)\([^,()]+,\ (?!''\))  # Python's default
    """,
    re.VERBOSE,
)


@pytest.mark.parametrize(("path", "name", "asked"), READ, ids=[f"{path} {name}" for path, name, _ in READ])
def test_empty_is_not_set_wherever_a_variable_is_read(path: str, name: str, asked: str) -> None:
    assert not TELLS_EMPTY_FROM_UNSET.search(asked), f"{path} reads {name} so that empty is not unset: {asked}"


@pytest.mark.parametrize(
    "asked",
    [
        *("${DOCKER-docker}", "${DOCKER+yes}", "[ -v DOCKER", "PYTHON ?=", "'DOCKER' in os.environ"),
        *("'DOCKER' not in os.environ", "os.environ.get('DOCKER', 'docker')", "os.getenv('DOCKER', default)"),
        "os.environ.get('DOCKER') is None",
    ],
)
def test_what_tells_empty_from_unset_is_seen(asked: str) -> None:
    assert TELLS_EMPTY_FROM_UNSET.search(asked)


def test_the_variables_are_found() -> None:
    told = "BASE_IMAGE CONTEXT DOCKER E2E FILE FULL IMAGE_NAME IMAGE_TAG JOB KUBECONFIG MYSQL_TEST_HOST NAMESPACE"
    more = "NODE_KILL OVERLAY PLATFORM PURGE PYTHON REGISTRY RUNS SEED SKIP TEST_MYSQL_URL TEST_WORLD TWILIO_TEST_HOST"
    assert {*told.split(), *more.split()} <= {*NAMES}


# --- what make hands on


@pytest.fixture(scope="module")
def handed_on(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[str]]:
    """The environment of what make starts, where every variable was empty in make's own, or on its command line."""
    probe = tmp_path_factory.mktemp("make") / "probe.mk"
    probe.write_text("include Makefile\nseen:\n\t@env\n")
    runs: dict[str, tuple[dict[str, str], list[str]]] = {
        "environment": (dict.fromkeys(NAMES, ""), []),
        "command line": ({}, [f"{name}=" for name in NAMES]),
        "set": (dict.fromkeys(NAMES, "$(false) $x"), []),
    }
    return {
        run: ran(
            "make", "-f", str(probe), "seen", *arguments, env={"PATH": os.environ["PATH"]} | given, check=True
        ).stdout.splitlines()
        for run, (given, arguments) in runs.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_make_hands_on_what_is_set_as_it_is_and_nothing_empty(handed_on: Mapping[str, list[str]], name: str) -> None:
    assert f"{name}=$(false) $x" in handed_on["set"]
    assert f"{name}=" not in handed_on["environment"]
    assert f"{name}=" not in handed_on["command line"]


# --- engines


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER", "")
    test_image.why_not.cache_clear()
    yield tmp_path
    test_image.why_not.cache_clear()  # what was found here holds for no other test


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("", "docker is not here, podman is not here"),
        (
            "echo Cannot connect to the Docker daemon >&2; exit 1",
            "docker does not answer (Cannot connect to the Docker",
        ),
        ('[ "$1" != build ] || { echo no route >&2; exit 1; }', "docker reaches no package index when it builds (no"),
        ('[ "$1" = info ] || { echo No such image >&2; exit 1; }', "docker has no python:3.13-slim (No such image)"),
    ],
)
def test_without_an_engine_the_image_s_tests_are_skipped_and_say_why(alone: Path, script: str, told: str) -> None:
    if script:
        program(alone / "docker", script)
    with pytest.raises(pytest.skip.Exception, match=f"^the image was not built: {re.escape(told)}"):
        test_image.command()


def test_podman_builds_where_a_docker_client_has_no_daemon(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(alone / "docker", "exit 1")
    (alone / "podman").symlink_to("/bin/true")
    assert test_image.command() == ["podman"]
    monkeypatch.setenv("DOCKER", "podman --remote")
    assert test_image.command() == ["podman", "--remote"]


# --- virtual environments


@pytest.mark.parametrize(
    ("targets", "made"),
    [
        ("demo bench faults e2e", {".venv"}),
        ("security-scan lock", {".venv-scan"}),
        ("check lint", {".venv", ".venv-scan"}),
        ("help build deploy test", set()),
    ],
)
def test_only_what_needs_an_environment_makes_it(tmp_path: Path, targets: str, made: set[str]) -> None:
    for path in (ROOT / "Makefile", *ROOT.glob("requirements*.txt")):
        shutil.copy(path, tmp_path)
    for target in targets.split():
        done = ran("make", "-n", target, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=True)
        assert {*re.findall(r" into (\.venv\S*)\. ", done.stdout)} == made, target


# --- make check


def test_check_tells_each_step_and_ends_with_what_it_proved_skipped_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tests(step: check.Tests) -> int:
        step.passed, step.skipped = 7, 3
        step.uncovered = {"kubectl is not here": "3 tests", "FULL=1 is not set": "the long runs"}
        return 0

    monkeypatch.setattr(check, "command", lambda *_: lambda: 0)
    monkeypatch.setattr(check.Tests, "__call__", tests)
    assert check.main() == 0
    *steps, proved, skipped, why = capsys.readouterr().out.splitlines()
    assert steps == [
        "--- 1 of 4: linters",
        "--- 2 of 4: formatting (linters took 0 s)",
        "--- 3 of 4: types (formatting took 0 s)",
        "--- 4 of 4: tests (types took 0 s)",
    ]
    assert proved == "Proved, in 0 s: linters, formatting, types, tests (7 passed)"
    assert skipped == "Skipped: 3 tests, the long runs, the cluster test"
    assert why == (
        "Why: 3 tests: kubectl is not here; the long runs: FULL=1 is not set; "
        "the cluster test: it needs a cluster, and is apart: make e2e"
    )


def test_check_ends_at_the_first_step_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "command", lambda *words: lambda: 3 if "format" in words else 0)
    monkeypatch.setattr(check.Tests, "__call__", lambda _: pytest.fail("this step comes after one that failed"))
    assert check.main() == 3
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "--- 2 of 4: formatting (linters took 0 s)"
    assert "formatting failed" in told.err
