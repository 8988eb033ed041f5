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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.manifests import K8S, ROOT, kubectl, scanner

SEED = (
    "build push build-push deploy test logs status events shell suspend resume update-image clean-jobs lint "
    "security-scan"
)
OURS = "help demo check e2e bench faults secret undeploy"
SECRETS = {
    "DB_USER": "notifier",
    "DB_PASSWORD": 'it\'s "a" $ecret#1',
    "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "TWILIO_AUTH_TOKEN": "t0ken",
}

FAKE_KUBECTL = """#!/usr/bin/env bash
# Runs the real kubectl for what needs no cluster; else answers from the table, and records arguments and input.
case "$*" in *--local* | kustomize* | config*) exec "$REAL_KUBECTL" "$@" ;; esac
printf '%s\\n' "$*" >>"$FAKE/calls"
case " $* " in *" -f - "* | *"=/dev/stdin "*) cat >>"$FAKE/input"; echo >>"$FAKE/input" ;; esac
case "$*" in *"apply -k"*) cat "${@: -1}"/*.yaml >"$FAKE/applied" ;; esac
while IFS=$'\\t' read -r pattern status said; do
  case "$*" in *$pattern*) printf '%b' "$said"; [ "$status" = 0 ] || printf '%b' "$said" >&2; exit "$status" ;; esac
done <"$FAKE/answers"
"""


@dataclass
class Cluster:
    """A cluster that answers from a table: the first part of a command line that fits decides."""

    folder: Path
    answers: list[tuple[str, int, str]] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "kubectl").write_text(FAKE_KUBECTL)
        (programs / "kubectl").chmod(0o755)
        (self.folder / "kubeconfig").write_text("{apiVersion: v1, kind: Config, current-context: pretend}")
        self.environ = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "FAKE": str(self.folder),
            "REAL_KUBECTL": kubectl(),
        }

    def answer(self, pattern: str, said: str = "", status: int = 0) -> None:
        """Answer commands that hold this text."""
        self.answers.append((pattern, status, said.replace("\\", "\\\\").replace("\n", "\\n")))

    def make(
        self, *arguments: str, root: Path = ROOT, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run make against it."""
        (self.folder / "answers").write_text("".join(f"{p}\t{s}\t{said}\n" for p, s, said in self.answers))
        return run_make(*arguments, root=root, environ={**self.environ, **(environ or {})})

    def recorded(self, name: str) -> str:
        """What was recorded: calls (the command lines), input, applied."""
        file = self.folder / name
        return file.read_text() if file.exists() else ""


def run_make(*arguments: str, environ: Mapping[str, str], root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments], cwd=root, env=dict(environ), capture_output=True, text=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A copy of the project with its placeholders filled in, but for the image."""
    copy = tmp_path / "project"
    copy.mkdir()
    shutil.copy(ROOT / "Makefile", copy)
    for folder in ("hack", "k8s", "overlays"):
        shutil.copytree(ROOT / folder, copy / folder)
    config = copy / "k8s/configmap.yaml"
    text = config.read_text().replace("your-mysql-host", "mysql.example.com")
    config.write_text(text.replace("your-twilio-number", "+15005550006"))
    return copy


SECRET_THERE = "".join(f"{name}=real\n" for name in SECRETS)


# --- the list ---------------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_every_target_of_the_interface_is_there() -> None:
    assert set(f"{SEED} {OURS}".split()) <= targets()


def test_help_is_the_default_and_explains_every_target() -> None:
    done = run_make(environ={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^  make (\S+) +\S", done.stdout, flags=re.MULTILINE)) == targets()


def test_every_target_is_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(phony.replace("\\\n", " ").split()) == targets()


def test_what_the_scripts_refer_to_is_in_the_documents() -> None:
    headings = set(re.findall(r"^#+ (.*)$", (ROOT / "DEPLOYMENT.md").read_text(), flags=re.MULTILINE))
    named = {
        name
        for file in (ROOT / "hack").glob("*.sh")
        for name in re.findall(r'See \\?"([^"\\]+)\\?" in DEPLOY', file.read_text(), re.I)
    }
    assert named == {"Exit codes", "A Job without a log"}
    assert named <= headings


# --- image ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A docker that only records its arguments."""
    file = tmp_path / "docker"
    file.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/docker.calls\n')
    file.chmod(0o755)
    return file


def test_build_passes_the_index_by_name_only(docker: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "DOCKER": str(docker),
        "PIP_INDEX_URL": "https://me:s3cret@example.com/simple",
    }
    done = run_make("build", "IMAGE_NAME=r/n", "IMAGE_TAG=v1", "PLATFORM=linux/arm64", environ=environ)
    assert done.returncode == 0, done.stderr
    called = docker.with_suffix(".calls").read_text()
    assert "--build-arg PIP_INDEX_URL " in called
    assert "s3cret" not in called
    assert "--platform linux/arm64" in called
    assert "--tag r/n:v1 " in called


def test_images_are_named_after_the_manifest_once_it_is_filled_in(docker: Path, ready: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "DOCKER": str(docker)}
    cronjob = ready / "k8s/cronjob.yaml"
    cronjob.write_text(cronjob.read_text().replace("your-registry/", "registry.example.com:5000/team/"))
    done = run_make("build-push", "IMAGE_TAG=v1.1.0", root=ready, environ=environ)
    assert done.returncode == 0, done.stderr
    assert "Pushed registry.example.com:5000/team/habit-notifier:v1.1.0." in done.stdout


@pytest.mark.parametrize("name", ["your-registry/habit-notifier", "habit-notifier"])
def test_push_refuses_a_name_without_a_registry(docker: Path, name: str) -> None:
    done = run_make(
        "push", f"IMAGE_NAME={name}", "IMAGE_TAG=v1", environ={"PATH": os.environ["PATH"], "DOCKER": str(docker)}
    )
    assert done.returncode != 0
    assert "Name your" in done.stderr


def test_without_docker_podman_is_proposed() -> None:
    done = run_make("build", environ={"PATH": os.environ["PATH"], "DOCKER": "no-such-docker"})
    assert "no-such-docker is not here" in done.stderr
    assert "DOCKER=podman" in done.stderr


# --- secret -----------------------------------------------------------------------------------------------------------


def stored(cluster: Cluster) -> dict[str, str]:
    """The values that were sent to the cluster."""
    (line,) = (line for line in cluster.recorded("input").splitlines() if '"data"' in line)
    data = json.loads(line)["data"]
    return {name: base64.b64decode(value).decode() for name, value in data.items() if value is not None}


def no_secret(cluster: Cluster) -> Cluster:
    cluster.answer("get secret habit-notifier-secrets -o go-template", "NotFound", 1)
    cluster.answer("get secret habit-notifier-secrets --ignore-not-found", "")
    cluster.answer("get namespace", "namespace/habit-tracker")
    return cluster


def test_secret_takes_the_environment_and_shows_nothing(cluster: Cluster) -> None:
    done = no_secret(cluster).make("secret", environ=SECRETS)
    assert done.returncode == 0, done.stderr
    assert stored(cluster) == SECRETS
    for value in (SECRETS["DB_PASSWORD"], SECRETS["TWILIO_AUTH_TOKEN"]):
        shown = done.stdout + done.stderr + cluster.recorded("calls")
        assert value not in shown
        assert base64.b64encode(value.encode()).decode() not in shown


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_secret_takes_a_file_of_variables(cluster: Cluster, tmp_path: Path, quote: str) -> None:
    file = tmp_path / "filled.env"
    lines = [f"export {name}={quote}{value}{quote}" for name, value in SECRETS.items()]
    file.write_text("# comment\n\n" + "\n".join(lines))
    done = no_secret(cluster).make("secret", f"FILE={file}", environ={"DB_PASSWORD": "not this one"})
    assert done.returncode == 0, done.stderr
    assert stored(cluster) == SECRETS


def test_secret_takes_the_filled_template(cluster: Cluster, tmp_path: Path) -> None:
    text = (K8S / "secret.yaml").read_text()
    text = re.sub(r"^# ?", "", text[text.index("# apiVersion:") :], flags=re.MULTILINE)
    for name, value in SECRETS.items():
        text = re.sub(rf"(?<=\n  {name}: ).*", json.dumps(value).replace("\\", r"\\"), text)
    file = tmp_path / "secret.yaml"
    file.write_text(text)
    done = no_secret(cluster).make("secret", f"FILE={file}")
    assert done.returncode == 0, done.stderr
    assert stored(cluster) == SECRETS


def test_secret_changes_only_what_is_new(cluster: Cluster) -> None:
    cluster.answer("get secret habit-notifier-secrets -o go-template", SECRET_THERE)
    cluster.answer("get secret habit-notifier-secrets --ignore-not-found", "secret/habit-notifier-secrets")
    cluster.answer("get namespace", "namespace/habit-tracker")
    done = cluster.make("secret", environ={"DB_PASSWORD": "new"})
    assert done.returncode == 0, done.stderr
    assert stored(cluster) == {"DB_PASSWORD": "new"}
    assert "patch secret" in cluster.recorded("calls")


def test_an_api_key_replaces_the_auth_token(cluster: Cluster) -> None:
    cluster.answer("get secret habit-notifier-secrets -o go-template", SECRET_THERE)
    cluster.answer("get secret habit-notifier-secrets --ignore-not-found", "secret/habit-notifier-secrets")
    cluster.answer("get namespace", "namespace/habit-tracker")
    done = cluster.make("secret", environ={"TWILIO_API_KEY_SID": "SK" + "1" * 32, "TWILIO_API_KEY_SECRET": "s"})
    assert done.returncode == 0, done.stderr
    assert '"TWILIO_AUTH_TOKEN":null' in cluster.recorded("input")


def test_secret_names_all_that_is_missing(cluster: Cluster) -> None:
    done = no_secret(cluster).make("secret", environ={"DB_USER": "u"})
    assert done.returncode != 0
    assert "missing: DB_PASSWORD TWILIO_ACCOUNT_SID TWILIO_AUTH_TOKEN." in done.stderr
    assert "FILE=" in done.stderr


def test_secret_refuses_placeholders(cluster: Cluster) -> None:
    done = no_secret(cluster).make("secret", environ=SECRETS | {"TWILIO_AUTH_TOKEN": "your-token"})
    assert done.returncode != 0
    assert "TWILIO_AUTH_TOKEN is still the placeholder" in done.stderr
    assert not cluster.recorded("input")


def test_secret_refuses_values_on_the_command_line(cluster: Cluster) -> None:
    done = no_secret(cluster).make("secret", "DB_PASSWORD=shown-to-everybody")
    assert done.returncode != 0
    assert "DB_PASSWORD on the command line" in done.stderr
    assert "FILE=" in done.stderr


# --- deploy and update-image ------------------------------------------------------------------------------------------


def test_deploy_tells_all_that_is_missing_at_once_and_applies_nothing(cluster: Cluster) -> None:
    no_secret(cluster)
    done = cluster.make("deploy")
    assert done.returncode != 0
    for said in (
        "DB_HOST (your-mysql-host)", "TWILIO_FROM_NUMBER (your-twilio-number)", "k8s/configmap.yaml",
        "still the placeholder your-registry/habit-notifier", "no Secret habit-notifier-secrets", "make secret",
    ):  # fmt: skip
        assert said in done.stderr
    assert "apply" not in cluster.recorded("calls")


def test_deploy_tells_placeholders_and_gaps_in_the_secret(cluster: Cluster, ready: Path) -> None:
    cluster.answer("get secret", "DB_USER=placeholder\nDB_PASSWORD=real\nTWILIO_ACCOUNT_SID=real\n")
    done = cluster.make("deploy", "IMAGE_NAME=r/n", "IMAGE_TAG=v1", root=ready)
    assert done.returncode != 0
    assert "still has placeholders: DB_USER." in done.stderr
    assert "has no TWILIO_AUTH_TOKEN." in done.stderr


def test_deploy_asks_for_no_secret_that_comes_from_a_vault(cluster: Cluster, ready: Path) -> None:
    no_secret(cluster)
    with (ready / "k8s/kustomization.yaml").open("a") as file:
        file.write("components: [components/external-secrets]\n")
    done = cluster.make("deploy", "IMAGE_NAME=r/n", "IMAGE_TAG=v1", root=ready)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "patched",
    [
        "completions: 8",
        'template: {spec: {containers: [{name: habit-notifier, env: [{name: SHARD_COUNT, value: "2"}]}]}}',
    ],
)
def test_deploy_refuses_shards_that_would_leave_users_out(cluster: Cluster, ready: Path, patched: str) -> None:
    cluster.answer("get secret", SECRET_THERE)
    overlay = ready / "overlays/mine"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        f"""
        resources: [../../k8s]
        components: [../../k8s/components/sharded]
        patches:
          - patch: |-
              apiVersion: batch/v1
              kind: CronJob
              metadata: {{name: habit-notifier, namespace: habit-tracker}}
              spec: {{jobTemplate: {{spec: {{{patched}}}}}}}
        """
    )
    done = cluster.make("deploy", "OVERLAY=overlays/mine", "IMAGE_NAME=r/n", "IMAGE_TAG=v1", root=ready)
    assert done.returncode != 0
    assert re.search(r"The Job has (4|8) pods \(completions\), and SHARD_COUNT is (2|4): users would be", done.stderr)
    assert "apply" not in cluster.recorded("calls")


@pytest.mark.parametrize(
    ("running", "given", "image", "told"),
    [
        ("", {"IMAGE_NAME": "r:5000/n", "IMAGE_TAG": "v1"}, "r:5000/n:v1", "Image: r:5000/n:v1"),
        ("r:5000/n:v1", {}, "r:5000/n:v1", "Image: r:5000/n:v1"),
        ("r:5000/n:v1", {"IMAGE_TAG": "v2"}, "r:5000/n:v2", "Image: r:5000/n:v1 -> r:5000/n:v2"),
        ("r/n@sha256:abc", {}, "r/n@sha256:abc", "Image: r/n@sha256:abc"),
        ("r/n@sha256:abc", {"IMAGE_TAG": "v2"}, "r/n:v2", "Image: r/n@sha256:abc -> r/n:v2"),
        ("r/n:v1", {"IMAGE_NAME": "other/n", "IMAGE_TAG": "v1"}, "other/n:v1", "Image: r/n:v1 -> other/n:v1"),
    ],
)
def test_deploy_keeps_the_image_that_runs_unless_told(
    cluster: Cluster, ready: Path, running: str, given: dict[str, str], image: str, told: str
) -> None:
    before = (ready / "k8s/cronjob.yaml").read_text()
    cluster.answer("get secret", SECRET_THERE)
    cluster.answer("].image}", running)
    done = cluster.make("deploy", *(f"{name}={value}" for name, value in given.items()), root=ready)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout.splitlines()
    assert f'image: "{image}"' in cluster.recorded("applied")
    assert (ready / "k8s/cronjob.yaml").read_text() == before


def test_deploy_says_that_it_is_still_suspended(cluster: Cluster, ready: Path) -> None:
    cluster.answer("get secret", SECRET_THERE)
    cluster.answer("].image}", "r/n:v1")
    cluster.answer(".spec.suspend", "true")
    assert "still suspended: make resume" in cluster.make("deploy", root=ready).stdout


def test_deploy_warns_of_a_filled_template(cluster: Cluster, ready: Path) -> None:
    cluster.answer("get secret", SECRET_THERE)
    cluster.answer("].image}", "r/n:v1")
    assert "WARNING" not in cluster.make("deploy", root=ready).stdout
    secret = ready / "k8s/secret.yaml"
    secret.write_text(re.sub(r"^# ", "", secret.read_text(), flags=re.MULTILINE))
    assert "WARNING: k8s/secret.yaml is filled in" in cluster.make("deploy", root=ready).stdout


def test_a_new_name_needs_its_tag(cluster: Cluster, ready: Path) -> None:
    cluster.answer("].image}", "r/n:v1")
    done = cluster.make("update-image", "IMAGE_NAME=other/n", root=ready)
    assert done.returncode != 0
    assert "IMAGE_NAME=other/n IMAGE_TAG=" in done.stderr


def test_update_image_says_the_way_back(cluster: Cluster) -> None:
    cluster.answer("].image}", "r/n:v1")
    done = cluster.make("update-image", "IMAGE_TAG=v2")
    assert done.returncode == 0, done.stderr
    assert "r/n:v1 -> r/n:v2" in done.stdout
    assert "make update-image IMAGE_NAME=r/n IMAGE_TAG=v1" in done.stdout
    assert "set image cronjob/habit-notifier habit-notifier=r/n:v2" in cluster.recorded("calls")


# --- test, logs and shell: shards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ("0 1\n0 137\n0 1\n", 1),  # no shards: the third attempt
        ("0 0\n1 1\n2 143\n1 1\n3 0\n2 0\n1 1\n", 1),
        ("0 137\n1 1\n0 137\n1 1\n0 137\n1 1\n", 137),
        ("2 2\n0 143\n1 143\n", 2),
        ("", None),
    ],
)
def test_a_run_ends_with_the_code_of_the_shard_that_failed(cluster: Cluster, ended: str, code: int | None) -> None:
    cluster.answer("get job habit-notifier-manual", "Failed: FailedIndexes: Job has failed indexes: 1")
    cluster.answer("creationTimestamp -o name", "")
    cluster.answer("get pods", ended)
    done = cluster.make("test")
    assert f"failed (FailedIndexes: Job has failed indexes: 1). Exit code {code or 'unknown'}: see" in done.stdout
    assert f"Error {code or 1}" in done.stderr


@pytest.mark.parametrize(("shard", "given_up"), [("0", False), ("", True)])
def test_a_shard_that_cannot_start_takes_no_other_back(cluster: Cluster, shard: str, given_up: bool) -> None:
    cluster.answer("get job habit-notifier-manual", "Failed: FailedIndexes: Job has failed indexes: 1")
    cluster.answer("creationTimestamp -o name", "pod/first\npod/second")
    cluster.answer("get pod/first --ignore-not-found -o go-template={{$state", "started")
    cluster.answer("get pod/first --ignore-not-found -o go-template={{with index .metadata.labels", shard)
    cluster.answer("get pod/second --ignore-not-found -o go-template={{$state", "broken StartError: exec format error")
    done = cluster.make("test")
    assert ("the run cannot start: StartError" in done.stderr) is given_up
    assert ("delete job" in cluster.recorded("calls")) is given_up
    assert ("has failed indexes: 1" in done.stdout) is not given_up


def test_the_shell_is_no_shard(cluster: Cluster) -> None:
    env = [{"name": "SHARD_COUNT", "value": "4"}, {"name": "OTHER", "value": "stays"}]
    pod = {"spec": {"containers": [{"name": "habit-notifier", "image": "r/n:v1", "env": env}]}}
    cluster.answer(".spec.jobTemplate.spec.template}", json.dumps(pod))
    done = cluster.make("shell")
    assert done.returncode == 0, done.stderr
    (container,) = json.loads(cluster.recorded("input"))["spec"]["containers"]
    assert {variable["name"]: variable["value"] for variable in container["env"]} == {
        "SHARD_COUNT": "1",
        "OTHER": "stays",
    }


# --- all of them ------------------------------------------------------------------------------------------------------

NEED_A_CRONJOB = ["test", "status", "shell", "suspend", "resume"]
ON_A_CLUSTER = [*NEED_A_CRONJOB, "secret", "deploy", "logs", "events", "clean-jobs", "undeploy"]


@pytest.mark.parametrize("target", ON_A_CLUSTER)
def test_without_a_cluster_the_remedy_is_told(cluster: Cluster, target: str) -> None:
    cluster.answer("--raw /version", "The connection to the server localhost:8080 was refused", 1)
    done = cluster.make(target)
    assert done.returncode != 0
    assert f"make {target}: kubectl reaches no cluster (The connection to the server localhost:8080" in done.stderr
    assert "kubectl config use-context" in done.stderr


@pytest.mark.parametrize("target", NEED_A_CRONJOB)
def test_before_the_first_deploy_the_remedy_is_told(cluster: Cluster, target: str) -> None:
    cluster.answer("get cronjob", 'Error from server (NotFound): cronjobs.batch "habit-notifier" not found', 1)
    done = cluster.make(target)
    assert done.returncode != 0
    assert "Deploy it: make deploy" in done.stderr


def test_another_environment_is_another_namespace(cluster: Cluster) -> None:
    done = cluster.make("suspend", "OVERLAY=overlays/staging", "CONTEXT=elsewhere")
    assert done.returncode == 0, done.stderr
    (patch,) = re.findall(r".*patch cronjob.*", cluster.recorded("calls"))
    assert patch.startswith("--context elsewhere --namespace habit-tracker-staging ")


def test_undeploy_keeps_namespace_and_secret(cluster: Cluster) -> None:
    done = cluster.make("undeploy")
    assert done.returncode == 0, done.stderr
    kinds = re.findall(r"^kind: (\w+)", cluster.recorded("input"), flags=re.MULTILINE)
    assert sorted(kinds) == ["ConfigMap", "NetworkPolicy", "ServiceAccount"]
    assert not re.search(r"delete (secret|namespace)", cluster.recorded("calls"))
    assert "PURGE=yes" in done.stdout


def test_purge_leaves_a_namespace_that_others_use(cluster: Cluster) -> None:
    cluster.answer("get deployments,", "deployment.apps/somebody-else")
    done = cluster.make("undeploy", "PURGE=yes")
    assert done.returncode == 0, done.stderr
    assert "delete secret habit-notifier-secrets" in cluster.recorded("calls")
    assert "delete namespace" not in cluster.recorded("calls")
    assert "somebody-else" in done.stdout


# --- scanners ---------------------------------------------------------------------------------------------------------


def test_a_scan_that_could_not_run_is_not_a_clean_one() -> None:
    scanner("bandit")
    environ = os.environ | {"SKIP": "code dockerfile manifests dependencies", "IMAGE_NAME": "", "IMAGE_TAG": ""}
    done = subprocess.run(
        ["hack/security-scan.sh"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 3
    assert "DID NOT RUN, so nothing is known:\n  image: name the image" in done.stdout
