"""Every command that the documents show is run: here, by the cluster test, or it is said why it cannot be."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.stage import NEEDED
from tests.project.fake_kubectl import cronjob, secret
from tests.project.manifests import kubectl
from tests.project.shell import ROOT, project_in, ran
from tests.project.test_makefile import Cluster
from tests.project.test_operator import SECRETS
from tests.sandbox.database import Database

DOCUMENTS = ["README.md", "CRONJOB_README.md", "DEPLOYMENT.md", "k8s/README.md", "docs/scale.md"]
DOCUMENTS += ["docs/gitops.md", "tests/e2e/README.md"]
PACKAGES = os.pathsep.join(sys.path)

TRY_MYSQL = """
    python -c 'import os, pymysql; e = os.environ.get; print(pymysql.connect(host=e("DB_HOST"),
        port=int(e("DB_PORT", 3306)), user=e("DB_USER"), password=e("DB_PASSWORD").encode(), database=e("DB_NAME"),
        connect_timeout=5).get_server_info())'
"""

HERE = """
    kubectl create configmap habit-notifier-mysql-ca --from-file=ca.pem -n habit-tracker
    make secret OVERLAY=overlays/staging
    make deploy OVERLAY=overlays/staging IMAGE_NAME=your-registry/habit-notifier IMAGE_TAG=v1.0.0
    make status OVERLAY=overlays/staging
    export DB_HOST=localhost DB_PORT=3306 DB_NAME=habit_tracker DB_USER=root DB_PASSWORD=password
    export TWILIO_ACCOUNT_SID=your-sid TWILIO_AUTH_TOKEN=your-token TWILIO_FROM_NUMBER=+1234567890
    python app/habit_notifier.py
    .venv/bin/python -m pytest tests/e2e -k drained
"""

ELSEWHERE = {
    "make check": "runs these tests",
    "make demo": "tests/sandbox/test_demo.py runs what it runs",
    "make e2e": "is the cluster test",
    "pip install -r app/requirements.txt": "loads from the network; the image installs the same file",
}


def commands(text: str) -> Iterator[str]:
    """The commands of a shell text, each in one line, without comments."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if command := re.sub(r"(^|\s+)# .*$", "", line).strip():
            yield re.sub(r"\s+", " ", command)


def shown() -> set[str]:
    """The commands of all shell blocks of the documents."""
    texts = [(ROOT / document).read_text() for document in DOCUMENTS]
    blocks = [
        block
        for text in texts
        for block in re.findall(r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```", text, re.M | re.S)
    ]
    return {command for block in blocks for command in commands(block)}


def run_by_the_cluster_test() -> set[str]:
    """The commands in the strings of the cluster test."""
    trees = [ast.parse((ROOT / "tests/e2e" / name).read_text()) for name in ("conftest.py", "test_cluster.py")]
    strings = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {command for text in strings if isinstance(text, str) for command in commands(text)}


def test_every_command_of_the_documents_is_run_somewhere_or_it_is_said_why_not() -> None:
    """What is neither run here nor elsewhere is run by the cluster test."""
    others = [*commands(HERE), " ".join(TRY_MYSQL.split()), *ELSEWHERE]
    assert len(others) == len(set(others))
    assert set(others) <= shown()
    assert shown() - set(others) - run_by_the_cluster_test() == set()


def test_every_block_of_commands_is_marked_as_shell() -> None:
    for document in DOCUMENTS:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S):
            looks = re.search(r"^(\$ |make |kubectl |docker |pip |python )", block, re.M)
            assert not looks or language == "bash", f"{document}: {block}"


def test_commands_can_be_pasted_into_zsh() -> None:
    """The shell of macOS: typed or pasted, it knows no comment behind a command, and no prompt of read."""
    for document in DOCUMENTS:
        for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S):
            assert not re.search(r"^[^#\n].* #|\bread -\w*p|^#.*['\"`;]", block, re.M), f"{document}: {block}"


def test_the_cluster_test_s_readme_names_what_it_needs() -> None:
    cells = re.findall(r"^\| (`[A-Z_`, ]+`) \|", (ROOT / "tests/e2e/README.md").read_text(), re.M)
    assert set(re.findall(r"[A-Z_]+", " ".join(cells))) == {*NEEDED, "NODE_KILL"}


# --- run here ---------------------------------------------------------------------------------------------------------


def test_the_readme_s_values_are_told_to_be_placeholders(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```bash\n(# Install dependencies.*?)^```", (ROOT / "CRONJOB_README.md").read_text(), re.M | re.S
    )
    shutil.copytree(ROOT / "app", tmp_path / "app")
    (tmp_path / "python").symlink_to(sys.executable)
    script = block.replace("pip install -r app/requirements.txt", "").replace("python app", "./python app")
    done = ran("bash", "-c", script, cwd=tmp_path, env={"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGES})
    assert done.returncode == 2
    told = re.findall(r" - ERROR - (\w+) is still the placeholder", done.stderr)
    assert told == ["TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_FROM_NUMBER"]


def test_the_database_s_authority_becomes_what_the_component_mounts(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    command = "kubectl create configmap habit-notifier-mysql-ca --from-file=ca.pem -n habit-tracker"
    done = ran(
        kubectl(),
        *command.split()[1:],
        "--dry-run=client",
        "--output=jsonpath={.metadata.name} {.data}",
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "KUBECONFIG": "/dev/null"},
    )
    assert done.returncode == 0, done.stderr
    name, data = done.stdout.split(" ", 1)
    component = (ROOT / "k8s/components/mysql-tls/kustomization.yaml").read_text()
    assert f"name: {name}\n" in component
    assert '"ca.pem"' in data
    assert "/ca.pem\n" in component


def test_mysql_can_be_tried_by_hand(database: Database, tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)

    def said(**environ: str) -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": PACKAGES}
        return ran("sh", "-c", " ".join(TRY_MYSQL.split()), env=database.environ() | environ | path)

    assert re.match(r"\d+\.\d+\.\d+", said().stdout)
    assert "Access denied" in said(DB_PASSWORD="wrong").stderr


def test_another_environment_is_made_as_the_manifests_readme_says(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    project = project_in(tmp_path)
    overlay = project / "overlays/staging/kustomization.yaml"
    filled = overlay.read_text().replace("your-staging-mysql-host", "mysql.staging.example.com")
    overlay.write_text(filled.replace("your-staging-twilio-number", "+15005550006"))
    cluster.answer("get secret", json.dumps(secret(SECRETS)))
    cluster.answer("get cronjob", json.dumps(cronjob()))
    for command in (
        "make secret OVERLAY=overlays/staging",
        "make deploy OVERLAY=overlays/staging IMAGE_NAME=registry.example.com/habit-notifier IMAGE_TAG=v1.0.0",
        "make status OVERLAY=overlays/staging",
    ):
        done = cluster.make(*command.split()[1:], root=project, **SECRETS)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    applied = cluster.recorded("input").splitlines()[-1]
    metadata = [each["metadata"] for each in json.loads(applied)["items"]]
    assert {each.get("namespace", each["name"]) for each in metadata} == {"habit-tracker-staging"}
    assert "mysql.staging.example.com" in applied


def test_one_part_of_the_cluster_test_can_be_chosen_as_its_readme_says() -> None:
    done = ran(sys.executable, "-m", "pytest", "tests/e2e", "-k", "drained", "--collect-only", "-q", seconds=120)
    assert re.findall(r"^tests/e2e/\S+::(\w+)$", done.stdout, re.M) == [
        "test_6_a_drained_node_ends_the_run_in_order_and_the_replacement_goes_on"
    ], done.stdout
