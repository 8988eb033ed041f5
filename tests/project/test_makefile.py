"""The Makefile: every target is there and explained, secrets stay secret, and what stops a user says the remedy.

kubectl is real where it needs no cluster; what a cluster would answer comes from a table (see `Cluster`).
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hack import cluster as script
from tests.project.fake_kubectl import cronjob, ended
from tests.project.manifests import kubectl, scanner
from tests.project.shell import ROOT, program, project_in, ran
from tests.project.test_operator import SECRETS

SEED = (
    "build push build-push deploy test logs status events shell suspend resume update-image clean-jobs lint "
    "security-scan"
)
DEVELOPMENT = "demo check e2e bench faults lint security-scan"
OURS = "help demo check e2e bench faults secret undeploy stop preflight dry-run explain"

FAKE_KUBECTL = """#!/usr/bin/env bash
# Runs the real kubectl for what needs no cluster; else answers from the table, and records arguments and input.
case "$*" in *--local* | kustomize* | config*) exec "$REAL_KUBECTL" "$@" ;; esac
printf '%s\\n' "$*" >>"$FAKE/calls"
case " $* " in *" -f - "* | *"=/dev/stdin "*) cat >>"$FAKE/input"; echo >>"$FAKE/input" ;; esac
while IFS=$'\\t' read -r pattern said; do
  case "$*" in *$pattern*) printf '%b' "$said"; exit ;; esac
done <"$FAKE/answers"
"""


@dataclass
class Cluster:
    """A cluster that answers from a table: the first part of a command line that fits decides."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.folder / "bin"
        programs.mkdir()
        program(programs / "kubectl", FAKE_KUBECTL)
        (self.folder / "answers").touch()
        (self.folder / "kubeconfig").write_text("{apiVersion: v1, kind: Config, current-context: pretend}")
        self.environ = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "FAKE": str(self.folder),
            "REAL_KUBECTL": kubectl(),
        }

    def answer(self, pattern: str, said: str) -> None:
        """Answer commands that hold this text."""
        with (self.folder / "answers").open("a") as answers:
            print(pattern, said.replace("\\", "\\\\").replace("\n", "\\n"), sep="\t", file=answers)

    def make(self, *arguments: str, root: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
        return run_make(*arguments, root=root, **self.environ | environ)

    def recorded(self, name: str) -> str:
        """What was recorded: calls (the command lines) and input."""
        file = self.folder / name
        return file.read_text() if file.exists() else ""


def run_make(*arguments: str, root: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run make with PATH and these in its environment."""
    return ran("make", *arguments, cwd=root, env={"PATH": os.environ["PATH"]} | environ)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    return project_in(tmp_path)


# --- the list ---------------------------------------------------------------------------------------------------------


MAKEFILE = (ROOT / "Makefile").read_text()
CLUSTER_TARGETS = re.findall(r"^CLUSTER := ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)[0].replace("\\\n", " ").split()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", MAKEFILE, flags=re.MULTILINE))


def test_every_target_of_the_interface_is_there() -> None:
    assert set(f"{SEED} {OURS}".split()) <= targets()


def test_help_is_the_default_and_explains_every_target() -> None:
    done = run_make()
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^  make (\S+) +\S", done.stdout, flags=re.MULTILINE)) == targets()


def test_help_lists_what_an_operator_needs_first() -> None:
    listed = re.findall(r"^  make (\S+)", run_make("help").stdout, re.MULTILINE)
    assert max(map(listed.index, CLUSTER_TARGETS)) < min(map(listed.index, DEVELOPMENT.split()))


def test_every_target_is_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, flags=re.MULTILINE)
    assert set(phony.replace("$(CLUSTER)", " ".join(CLUSTER_TARGETS)).split()) == targets()


def test_what_the_scripts_refer_to_is_in_the_documents() -> None:
    headings = set(re.findall(r"^#+ (.*)$", (ROOT / "DEPLOYMENT.md").read_text(), flags=re.MULTILINE))
    named = {
        name
        for file in (ROOT / "hack").glob("*.py")
        for name in re.findall(r'See \\?"([^"\\]+)\\?" in DEPLOY', file.read_text(), re.I)
    }
    assert named == {"Exit codes", "A Job without a log"}
    assert named <= headings


# --- image ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A docker that only records its arguments."""
    return program(tmp_path / "docker", f'echo "$@" >>{tmp_path}/docker.calls')


def test_build_passes_the_index_by_name_only(docker: Path) -> None:
    named = ("IMAGE_NAME=r/n", "IMAGE_TAG=v1", "PLATFORM=linux/arm64")
    done = run_make("build", *named, DOCKER=str(docker), PIP_INDEX_URL="https://me:s3cret@example.com/simple")
    assert done.returncode == 0, done.stderr
    called = docker.with_suffix(".calls").read_text()
    assert "--build-arg PIP_INDEX_URL " in called
    assert "s3cret" not in called
    assert "--platform linux/arm64" in called
    assert "--tag r/n:v1 " in called


def test_images_are_named_after_the_manifest_once_it_is_filled_in(docker: Path, ready: Path) -> None:
    cronjob = ready / "k8s/cronjob.yaml"
    cronjob.write_text(cronjob.read_text().replace("your-registry/", "registry.example.com:5000/team/"))
    done = run_make("build-push", "IMAGE_TAG=v1.1.0", root=ready, DOCKER=str(docker))
    assert done.returncode == 0, done.stderr
    assert "Pushed registry.example.com:5000/team/habit-notifier:v1.1.0." in done.stdout


def test_without_a_tag_the_content_is_told_apart(docker: Path, ready: Path) -> None:
    """By the commit; before a commit, by what the image is made of: a node that has a tag does not pull it again."""
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, ready)
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}
    environ = {"PATH": os.environ["PATH"], "DOCKER": str(docker), "HOME": str(ready), **who}
    source = ready / "app/habit_notifier.py"

    def tag() -> str:
        done = run_make("build", "IMAGE_NAME=r/n", root=ready, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.removeprefix("Built r/n:").removesuffix(".\n")

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=ready, env=environ, check=True, capture_output=True)

    no_commit = tag()
    git("init")
    git("add", "-A")
    git("commit", "-m", "first")
    clean = tag()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    seen = {no_commit, clean}
    for text in ("# one", "# two"):
        source.write_text(text)
        dirty = tag()
        assert dirty == tag(), "the same content has the same tag"
        assert dirty.startswith(f"{clean}-dirty-")
        seen.add(dirty)
    assert len(seen) == 4
    source.write_text((ROOT / "app/habit_notifier.py").read_text())
    assert tag() == clean


@pytest.mark.parametrize("name", ["your-registry/habit-notifier", "habit-notifier"])
def test_push_refuses_a_name_without_a_registry(docker: Path, name: str) -> None:
    done = run_make("push", f"IMAGE_NAME={name}", "IMAGE_TAG=v1", DOCKER=str(docker))
    assert done.returncode != 0
    assert "Name your" in done.stderr


def test_without_docker_podman_is_proposed() -> None:
    done = run_make("build", DOCKER="no-such-docker")
    assert "no-such-docker is not here" in done.stderr
    assert "DOCKER=podman" in done.stderr


# --- the cluster's targets, as make runs them; test_operator.py has what they do --------------------------------------


def test_the_makefile_and_the_script_have_the_same_targets() -> None:
    assert re.findall(r"^\$\(CLUSTER\): %:$", MAKEFILE, re.MULTILINE)
    assert set(CLUSTER_TARGETS) == set(script.TARGETS)


@pytest.mark.parametrize("target", ["secret", "deploy"])
def test_secrets_on_the_command_line_are_refused(cluster: Cluster, target: str) -> None:
    done = cluster.make(target, "DB_PASSWORD=shown-to-everybody")
    assert done.returncode == 2
    assert "DB_PASSWORD on the command line" in done.stderr
    assert "FILE=" in done.stderr
    assert not cluster.recorded("calls")


def test_no_value_of_the_secret_is_an_argument_of_kubectl(cluster: Cluster) -> None:
    cluster.answer("get namespace", "namespace/habit-tracker")
    done = cluster.make("secret", root=ROOT, **SECRETS)
    assert done.returncode == 0, done.stderr
    (sent,) = (json.loads(line) for line in cluster.recorded("input").splitlines())
    assert {name: base64.b64decode(value).decode() for name, value in sent["data"].items()} == SECRETS
    for value in (SECRETS["DB_PASSWORD"], SECRETS["TWILIO_AUTH_TOKEN"]):
        shown = done.stdout + done.stderr + cluster.recorded("calls")
        assert value not in shown
        assert base64.b64encode(value.encode()).decode() not in shown


def test_a_reader_that_leaves_early_is_no_fault(cluster: Cluster) -> None:
    cluster.answer("get cronjob", json.dumps(cronjob()))
    cluster.answer("get pod", json.dumps({"kind": "Pod", "metadata": {"name": "p", "labels": {}}, "status": ended(0)}))
    cluster.answer("logs -f", "the log\n" * 10_000)
    done = ran("bash", "-c", "make preflight | head -1", env=cluster.environ)
    assert (done.stdout, "Error 130" in done.stderr, "Broken" in done.stderr) == ("the log\n", True, False)
    assert "delete pod habit-notifier-preflight-" in cluster.recorded("calls")


def test_a_python_that_is_too_old_is_told(cluster: Cluster, tmp_path: Path) -> None:
    old = program(tmp_path / "python3.9", "exit 1")
    done = cluster.make("status", f"PYTHON={old}")
    assert "This needs Python 3.11 or newer. Name one that you have: make status PYTHON=" in done.stderr
    assert not cluster.recorded("calls")


# --- scanners ---------------------------------------------------------------------------------------------------------


def test_a_scan_that_could_not_run_is_not_a_clean_one() -> None:
    scanner("bandit")
    environ = os.environ | {"SKIP": "code dockerfile manifests dependencies", "IMAGE_NAME": "", "IMAGE_TAG": ""}
    done = ran("hack/security-scan.sh", env=environ)
    assert done.returncode == 3
    assert "DID NOT RUN, so nothing is known:\n  image: name the image" in done.stdout


def test_a_scanner_that_cannot_start_has_found_nothing(tmp_path: Path) -> None:
    project = project_in(tmp_path)  # where none is installed
    environ = os.environ | {"SKIP": "manifests dependencies image"}
    done = subprocess.run(["hack/security-scan.sh"], cwd=project, env=environ, capture_output=True, text=True)
    assert done.returncode == 3
    assert "FOUND SOMETHING" not in done.stdout
    assert re.search("DID NOT RUN, so nothing is known:\n  code: .*bandit.*\n  dockerfile: .*hadolint", done.stdout)


def test_outside_of_a_repository_nobody_reads_gitignore(tmp_path: Path) -> None:
    """A tarball's tree: ruff leaves alone what make installs beside it."""
    project = project_in(tmp_path)
    shutil.copy(ROOT / "pyproject.toml", project)
    odd = project / ".venv-scan/lib/odd.py"
    odd.parent.mkdir(parents=True)
    odd.write_text("import  os,sys\n")
    ruff = [sys.executable, "-m", "ruff", "check", "."]
    done = subprocess.run(ruff, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
