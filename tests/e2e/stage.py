"""What the cluster test stands on: a user with a copy of the project, the outside, and a watch over all pods."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar
from zlib import crc32

from tests.sandbox.fake_twilio import FakeTwilio
from tests.sandbox.people import MISSED_YESTERDAY, NO_LOGS

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "habit-tracker"
MARK = "habit-notifier/cluster-test"
"""The label by which a later run knows that the namespace is its own, left behind, and not a real installation."""

NEEDED = {
    "KUBECONFIG": "the path of the kubeconfig of a cluster for tests",
    "REGISTRY": "a registry that DOCKER can push to and the cluster pulls from, such as registry.example.com/me",
    "DOCKER": "docker or podman, logged in to that registry",
    "TEST_WORLD": "the command that runs another one where pods can reach it; 'env' when that is here",
    "TWILIO_TEST_HOST": "the public address that api.twilio.com is in the cluster, free for the fake there",
    "TWILIO_TEST_CA": "the path of the authority's certificate that signed TWILIO_TEST_CERT",
    "TWILIO_TEST_CERT": "the path of a certificate of api.twilio.com",
    "TWILIO_TEST_KEY": "the path of that certificate's key",
    "MYSQL_TEST_HOST": "a private address where TEST_WORLD runs, on which pods reach the test's database",
}
CREDENTIALS = {
    "DB_USER": "habit_notifier",
    "DB_PASSWORD": "a-long-random-password",
    "TWILIO_ACCOUNT_SID": FakeTwilio.ACCOUNT_SID,
    "TWILIO_AUTH_TOKEN": FakeTwilio.AUTH_TOKEN,
}
T = TypeVar("T")
Due = Counter[tuple[str, str]]
"""Texts, by phone number and rule."""


def missing() -> dict[str, str]:
    """What the test needs and does not have, and what to write into it."""
    return {name: what for name, what in NEEDED.items() if not os.environ.get(name)}


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)


def eventually(check: Callable[[], T], seconds: float, what: str) -> T:
    """What `check` says as soon as that is true in Python's sense; AssertionError after so many seconds."""
    until = time.monotonic() + seconds
    while not (said := check()):
        assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return said


@dataclass
class Done:
    """A command that has ended."""

    code: int
    said: str
    """Its output and errors, in order."""


class User:
    """Somebody who follows the documents, in a copy of the project, with commands as they stand there.

    What the documents leave to the reader is replaced: registry, tags, credentials, files.
    """

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "habit-notifier"
        self._copy()
        self.image = f"{os.environ['REGISTRY']}/habit-notifier"
        run = time.strftime("%Y%m%d%H%M%S", time.gmtime())
        self.replaced = {
            "your-registry/habit-notifier": self.image,
            "v1.0.0": f"v1.0.0-{run}",  # a node that has a tag does not pull it again
            "v1.1.0": f"v1.1.0-{run}",
            "your-db-user": CREDENTIALS["DB_USER"],
            "your-db-password": CREDENTIALS["DB_PASSWORD"],
            "your-sid": CREDENTIALS["TWILIO_ACCOUNT_SID"],
            "your-token": CREDENTIALS["TWILIO_AUTH_TOKEN"],
            "/path/outside/of/git/": f"{folder}/",
        }
        ours = "IMAGE_|CONTEXT$|NAMESPACE$|OVERLAY$|FILE$|JOB$|PURGE$|SUSPEND$|YES$|USER_ID$"
        told = re.compile(rf"(DB|TWILIO)_(?!TEST)|MAKE|MFLAGS|{ours}")
        self.environ = {name: value for name, value in os.environ.items() if not told.match(name)}
        self.environ["OVERLAY"] = "tests/e2e/overlay"

    def _copy(self) -> None:
        self.clone.mkdir()
        for name in ("Makefile", "Dockerfile", ".dockerignore"):
            shutil.copy(ROOT / name, self.clone)
        for name in ("app", "hack", "k8s", "tests/e2e/overlay"):
            shutil.copytree(ROOT / name, self.clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(os.environ["TWILIO_TEST_CA"], self.clone / "tests/e2e/overlay/ca.crt")

    def tag(self, documented: str) -> str:
        """The image that stands for a tag of the documents."""
        return f"{self.image}:{self.replaced[documented]}"

    def edit(self, file: str, **changes: str) -> None:
        """Write values into a file of the copy: `name: value` lines, whatever stood there."""
        path = self.clone / file
        text = path.read_text()
        for name, value in changes.items():
            found = re.findall(rf"^ *{name}: .*$", text, flags=re.MULTILINE)
            assert len(found) == 1, f"{name} stands {len(found)} times in {file}"
            text = text.replace(found[0], f"{found[0].split(name)[0]}{name}: {value}")
        path.write_text(text)

    def quiet(self) -> None:
        """Schedule the job for an hour that is far away: no run starts by itself in the middle of a test."""
        self.edit("k8s/cronjob.yaml", schedule=f'"0 {(datetime.now(UTC).hour + 12) % 24} * * *"')

    def start(self, documented: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A command of the documents, at work."""
        for said, meant in self.replaced.items():
            documented = documented.replace(said, meant)
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", documented],
            cwd=self.clone, env={**self.environ, **(environ or {})}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def does(
        self,
        documented: str,
        typed: str = "",
        code: int | None = 0,
        seconds: float = 120,
        environ: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command of the documents to its end; what it said. It must end with this code."""
        done = self.ends(self.start(documented, environ), typed, seconds)
        assert code in (None, done.code), f"{documented} ended with {done.code}, not {code}:\n{done.said}"
        return done.said

    def ends(self, process: subprocess.Popen[str], typed: str = "", seconds: float = 120) -> Done:
        with process:
            try:
                said, _ = process.communicate(typed, timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"not within {seconds:.0f} s: {process.args!r}") from None
        return Done(process.returncode, said)

    def types(self, documented: str, answers: Mapping[str, str]) -> str:
        """Run a command at a keyboard: each question gets the answer of its name, once it is asked; what was shown."""
        keyboard, terminal = os.openpty()
        with subprocess.Popen(
            ["bash", "-c", documented], cwd=self.clone, env=self.environ, start_new_session=True,
            stdin=terminal, stdout=terminal, stderr=terminal,
        ) as process:  # fmt: skip
            os.close(terminal)
            shown = ""
            with suppress(OSError):  # the terminal is gone when the last program on it is
                while block := os.read(keyboard, 65_536):
                    shown += block.decode()
                    if asked := re.search(r"([A-Z_]+)( \([^)]*\))?: \Z", shown):
                        os.write(keyboard, f"{answers[asked[1]]}\n".encode())
        os.close(keyboard)
        assert process.returncode == 0, shown
        return shown

    def inside(self, script: str) -> str:
        """What a script says in a pod like the job's."""
        return self.does("make shell", typed=script, seconds=90)


class Cluster:
    """The cluster's own view of things."""

    def kubectl(self, *arguments: str, code: int | None = 0, typed: str = "", seconds: float = 90) -> str:
        """Run kubectl; what it printed."""
        done = subprocess.run(
            ["kubectl", *arguments], input=typed, capture_output=True, text=True, check=False, timeout=seconds
        )
        assert code in (None, done.returncode), f"kubectl {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def here(self, *arguments: str, **options: Any) -> str:
        """The same, in our namespace."""
        return self.kubectl("--namespace", NAMESPACE, *arguments, **options)

    def get(self, *what: str) -> Any:
        """Objects, as JSON; None when one is not there."""
        text = self.here("get", *what, "--ignore-not-found", "--output=json")
        return json.loads(text) if text else None

    def names(self, kinds: str, *options: str) -> set[str]:
        """The names of all objects of some kinds."""
        return set(self.here("get", kinds, *options, "--output=name").split())

    def cronjob(self) -> Any:
        """The CronJob's spec."""
        return self.get("cronjob", "habit-notifier")["spec"]

    def template(self) -> Any:
        """Its pod's spec."""
        return self.cronjob()["jobTemplate"]["spec"]["template"]["spec"]

    def image(self) -> str:
        """The image that its next pod has."""
        image: str = self.template()["containers"][0]["image"]
        return image

    def secret(self) -> Any:
        """The Secret: identity, version and values."""
        found = self.get("secret", "habit-notifier-secrets")
        return found and (found["metadata"]["uid"], found["metadata"]["resourceVersion"], found["data"])

    def outcome(self, job: str) -> str:
        """Complete, or Failed and the reason; empty as long as the Job is at work."""
        found = self.get("job", job)
        for condition in (found or {}).get("status", {}).get("conditions", []):
            if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                return "Complete" if condition["type"] == "Complete" else f"Failed: {condition['reason']}"
        return ""


@dataclass
class Sighting:
    """A pod, as it was last seen."""

    name: str
    job: str
    shard: int
    spec: dict[str, Any] = field(repr=False, default_factory=dict)
    container: str = ""
    exit: int | None = None
    reason: str = ""
    disrupted: bool = False


class Watch:
    """Every pod of the job that there ever was, also those that are gone: what a watch of the cluster saw."""

    def __init__(self) -> None:
        self.pods: dict[str, Sighting] = {}
        command = ["kubectl", "--namespace", NAMESPACE, "get", "pods", "--selector=app=habit-notifier"]
        self._process = subprocess.Popen([*command, "--watch", "--output=json"], stdout=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._thread.join()
        with self._process:
            pass

    def _read(self) -> None:
        assert self._process.stdout
        decoder, text = json.JSONDecoder(), ""
        while block := os.read(self._process.stdout.fileno(), 65_536):
            text += block.decode()
            with suppress(json.JSONDecodeError):  # the rest of an object is still to come
                while text := text.lstrip():
                    pod, end = decoder.raw_decode(text)
                    text = text[end:]
                    self._see(pod)

    def _see(self, pod: Mapping[str, Any]) -> None:
        name, status = pod["metadata"]["name"], pod["status"]
        labels = pod["metadata"]["labels"]
        job, shard = labels.get("job-name", ""), int(labels.get("batch.kubernetes.io/job-completion-index", 0))
        seen = self.pods.setdefault(name, Sighting(name, job, shard, pod["spec"]))
        seen.spec = pod["spec"]
        for container in status.get("containerStatuses", []):
            seen.container = container.get("containerID", "") or seen.container
            if ended := container["state"].get("terminated"):
                seen.exit, seen.reason = ended["exitCode"], ended.get("reason", "")
        seen.disrupted |= any(c["type"] == "DisruptionTarget" for c in status.get("conditions", []))

    def of(self, job: str) -> list[Sighting]:
        """The pods of a Job, the oldest first."""
        return [pod for pod in list(self.pods.values()) if pod.job == job]

    def exits(self, job: str) -> list[int | None]:
        """With which codes they ended."""
        return [pod.exit for pod in self.of(job)]

    def exits_by_shard(self, job: str) -> list[list[int | None]]:
        """The same for each shard, once all of them have ended."""
        eventually(lambda: None not in self.exits(job), 30, f"the pods of {job} end")
        pods = self.of(job)
        return [[pod.exit for pod in pods if pod.shard == n] for n in range(1 + max(pod.shard for pod in pods))]

    def ended(self, job: str, codes: list[int], seconds: float = 30) -> list[Sighting]:
        """The pods of a Job once the first so many have ended, with these codes."""
        what = f"{len(codes)} pods of {job} end"
        eventually(lambda: None not in [*self.exits(job), None][: len(codes)], seconds, what)
        pods = self.of(job)[: len(codes)]
        assert [pod.exit for pod in pods] == codes
        return pods


class Outside:
    """The outside, which runs in TEST_WORLD: see world.py for what it can be asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[int, tuple[str, str]] = {}
        self._process = subprocess.Popen(
            [*shlex.split(os.environ["TEST_WORLD"]), sys.executable, "-m", "tests.e2e.world"],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Self:
        assert self._process.stdout
        assert self._process.stdout.readline() == '"ready"\n', "the outside of the test does not start: see above"
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(60)

    def call(self, name: str, *arguments: object) -> Any:
        """Ask `World`."""
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self._process.stdin.flush()
            said = json.loads(self._process.stdout.readline())
        assert "error" not in said, said["error"]
        return said["answer"]

    def morning(self) -> Due:
        """A new day; who is due."""
        self._due = {i: (phone, rule) for i, phone, rule in self.call("morning")}
        return Counter(self._due.values())

    def newcomer(self) -> tuple[str, str]:
        """One more person who is due."""
        i, phone, rule = self.call("newcomer")
        self._due[i] = phone, rule
        return phone, rule

    def an_id(self) -> int:
        """Somebody who is due."""
        return next(iter(self._due))

    def shards(self, count: int) -> list[Due]:
        """Who is due, by shard."""
        shards = [Due() for _ in range(count)]
        for i, who in self._due.items():
            shards[crc32(str(i).encode()) % count][who] += 1
        return shards

    def texts(self) -> Due:
        """The texts that were taken."""
        return Counter((to, rule_of(body)) for to, body in self.call("book"))

    def ledger(self) -> Counter[str]:
        """How many rows of the ledger are in which state."""
        return Counter(dict(self.call("rows", "SELECT state, COUNT(*) FROM HabitNotification GROUP BY state")))


def rule_of(body: str) -> str:
    """The rule that a default text is for."""
    (rule,) = (rule for words, rule in (("past 2 days", NO_LOGS), ("yesterday", MISSED_YESTERDAY)) if words in body)
    return rule
