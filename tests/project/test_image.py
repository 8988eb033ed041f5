"""The image: small, locked, ready for a read-only root, and stopped by SIGTERM.

What can be read is tested everywhere. What must be built is tested where Docker or podman answers (DOCKER names another
command), has the base image, and reaches the packages.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import cache

import pytest

from tests.environ import ENVIRON
from tests.project.manifests import K8S, read
from tests.project.shell import ROOT, ran

DOCKERFILE = (ROOT / "Dockerfile").read_text()
BASE = "python:3.13-slim"
MOST = 90_000_000  # bytes above the base image
TAG = "localhost/habit-notifier:test"

# Whether a build reaches the packages at all is asked without our Dockerfile: what fails afterwards is ours.
PROBE = "localhost/habit-notifier:probe"
INDEX_VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
INDEX = [f"--build-arg={name}" for name in INDEX_VARIABLES if os.environ.get(name)]
DOWNLOAD = "\n".join(
    [
        f"FROM {BASE}",
        *(f"ARG {name}" for name in INDEX_VARIABLES),
        "RUN python -m pip download --retries 1 -d /tmp pytz\n",
    ]
)


# --- read -------------------------------------------------------------------------------------------------------------


def test_only_what_the_image_needs_is_sent_to_the_builder() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule.removeprefix("!") for rule in rules[1:]}
    copied = set(re.findall(r"^COPY (app/\S+) ", DOCKERFILE, flags=re.MULTILINE))
    assert allowed == copied == {"app/habit_notifier.py", "app/requirements.txt"}


def test_the_program_is_process_one_and_takes_options() -> None:
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert json.loads(entrypoint) == ["python", "-m", "habit_notifier"]
    assert not re.search(r"^CMD", DOCKERFILE, flags=re.MULTILINE)


def test_the_user_is_the_manifests_user() -> None:
    pod = read(K8S / "cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    security = pod["securityContext"]
    assert f"\nUSER {security['runAsUser']}:{security['runAsGroup']}\n" in DOCKERFILE


def test_packages_are_locked_by_hashes() -> None:
    assert "--require-hashes" in DOCKERFILE
    locked = (ROOT / "app/requirements.txt").read_text()
    names = re.findall(r"^([A-Za-z0-9._-]+)(?:\[\w+\])?==", locked, flags=re.MULTILINE)
    assert len(names) == locked.count("==") - len(re.findall(r"(?:;.*?)(==)", locked))
    assert locked.count("--hash=sha256:") >= len(names)


def test_podman_4_can_build_it() -> None:
    assert "--link" not in DOCKERFILE
    assert "<<" not in DOCKERFILE
    assert "--mount" not in DOCKERFILE
    assert not DOCKERFILE.startswith("# syntax")


# --- build ------------------------------------------------------------------------------------------------------------


def docker(*arguments: str, check: bool = True) -> str:
    """What the command says; tests that need it are skipped without it."""
    done = ran(*command(), *arguments, seconds=600)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command() -> list[str]:
    """The first that can build images here, of what DOCKER names, else of Docker and podman."""
    named = os.environ.get("DOCKER")
    reasons = []
    for words in map(shlex.split, [named] if named else ["docker", "podman"]):
        reason = why_not(*words)
        if not reason:
            return words
        reasons.append(f"{words[0]} {reason}")
    pytest.skip(f"the image was not built: {', '.join(reasons)}")


@cache
def why_not(*words: str) -> str:
    """Why this command cannot build the image; empty when it can."""
    if not shutil.which(words[0]):
        return "is not here"
    questions = (
        (["info"], "does not answer"),
        (["image", "inspect", BASE], f"has no {BASE}"),
        (["build", "--quiet", *INDEX, "--tag", PROBE, "--file", "-", "app"], "reaches no package index when it builds"),
    )
    for question, answer in questions:
        try:
            done = ran(*words, *question, input=DOWNLOAD, seconds=90)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"does not work ({error})"
        if done.returncode:
            return f"{answer} ({(done.stderr.strip() or 'and says nothing').splitlines()[-1]})"
    return ""


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The image, built as `make build` builds it."""
    name, tag = TAG.rsplit(":", 1)
    told = [f"DOCKER={shlex.join(command())}", f"IMAGE_NAME={name}", f"IMAGE_TAG={tag}"]
    done = ran("make", "build", *told, seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    yield TAG
    docker("rmi", "--force", TAG, PROBE, check=False)


def in_image(image: str, *shell: str) -> str:
    """What a shell in the image says, its root read-only as in the cluster."""
    return docker("run", "--rm", "--read-only", "--network=none", "--entrypoint", "sh", image, "-c", *shell).strip()


def test_the_image_is_small(image: str) -> None:
    total, base = (int(docker("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, BASE))
    assert total - base <= MOST, f"{(total - base) / 1e6:.1f} MB above {BASE}"


def test_help_lists_every_setting(image: str) -> None:
    assert "TWILIO_ACCOUNT_SID (required" in docker("run", "--rm", "--read-only", "--network=none", image, "--help")


def test_without_settings_all_that_is_missing_is_told_and_a_person_must_act(image: str) -> None:
    done = ran(*command(), "run", "--rm", "--read-only", "--network=none", image)
    assert done.returncode == 2
    assert done.stderr.count(" is missing: ") >= 5


def test_any_user_can_run_it(image: str) -> None:
    output = docker("run", "--rm", "--read-only", "--network=none", "--user", "123456:0", image, "--help")
    assert "settings" in output
    assert in_image(image, "id -u; id -g").split() == ["1000", "1000"]


def test_only_what_runs_is_in_it(image: str) -> None:
    assert in_image(image, "command -v gcc cc make || echo none") == "none"
    assert in_image(image, "ls -A /app").split() == ["__pycache__", "habit_notifier.py"]


@pytest.mark.parametrize(
    ("tests", "in_base"),
    [
        ("( -name pip -o -name pip3* -o -name pip-* )", True),
        ("-type f -perm /6000", True),  # becomes another user
        ("-path /var/lib/apt/lists/*", False),
    ],
)
def test_nothing_is_left_that_nothing_runs(image: str, tests: str, in_base: bool) -> None:
    # As root, so that nothing is hidden. What the base image has proves that the search can find it.
    find = ["--rm", "--network=none", "--user=0:0", "--entrypoint=find"]
    assert docker("run", *find, image, "/", "-xdev", *tests.split()) == ""
    assert not in_base or docker("run", *find, BASE, "/", "-xdev", *tests.split()) != ""


def test_the_system_s_authorities_are_not_read(image: str) -> None:
    count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    assert in_image(image, f"python -c '{count}'") == "0"
    assert in_image(image, f"SSL_CERT_FILE=$(python -m certifi) python -c '{count}'") != "0"
    assert in_image(image, "python -c 'import ssl; print(ssl.get_default_verify_paths()[:2])'") == "(None, None)"


def test_bytecode_is_compiled_ahead(image: str) -> None:
    count = "find /opt/venv /app -name '*.py' | wc -l; find /opt/venv /app -name '*.pyc' | wc -l"
    sources, compiled = map(int, in_image(image, count).split())
    assert sources > 1000
    assert compiled >= 0.99 * sources  # a few templates are no valid Python


def test_nothing_in_it_can_be_changed_by_its_user(image: str) -> None:
    writable = "find /opt/venv /app \\( -user 1000 -o -group 1000 -o -perm -o+w \\) ! -type l | head -3"
    assert in_image(image, writable) == ""


def test_labels_tell_what_it_is(image: str) -> None:
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.version"] == "test"
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert labels["org.opencontainers.image.revision"]


def test_sigterm_arrives(image: str) -> None:
    # DB_HOST is an address that never answers: the program waits for the database until SIGTERM comes.
    settings = ENVIRON | {"DB_HOST": "192.0.2.1"}
    options = [f"--env={name}={value}" for name, value in settings.items()]
    running = docker("run", "--detach", "--read-only", "--network=none", *options, image).strip()
    try:
        time.sleep(3)
        docker("kill", f"--signal={signal.SIGTERM.name}", running)
        assert docker("wait", running).strip() == "143"
    finally:
        docker("rm", "--force", running, check=False)
