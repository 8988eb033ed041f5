"""kubectl on a cluster that is a list of objects: for tests of hack/cluster.py within this process.

What needs no cluster runs the real kubectl. Time passes only when the code under test sleeps.
"""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from tests.project.manifests import kubectl

Object = dict[str, Any]
KINDS = {"cronjob": "CronJob", "cronjobs": "CronJob", "job": "Job", "jobs": "Job", "pod": "Pod", "pods": "Pod"}
KINDS |= {"secret": "Secret", "secrets": "Secret", "namespace": "Namespace", "events": "Event"}
START = datetime(2026, 5, 9, 9, 0, tzinfo=UTC)


def text_of(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


@dataclass
class FakeKubectl:
    """Holds objects, answers get, carries out create, apply, patch and delete, and records what it was asked."""

    objects: list[Object] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    """Commands that hold this text fail with this message."""
    unknown: str = ""
    """A kind that the cluster does not know."""
    logs: dict[str, list[Iterable[str]]] = field(default_factory=dict)
    """What each call of `kubectl logs` prints, by pod; the last one is printed again."""
    then: list[Callable[[], object]] = field(default_factory=list)
    """What happens in the cluster, a step each second."""
    calls: list[str] = field(default_factory=list)
    sent: list[Object] = field(default_factory=list)
    now: float = 0.0

    def run(self, *arguments: str, text: str = "", offline: bool = False) -> subprocess.CompletedProcess[str]:
        """In place of hack.kubectl.run."""
        if offline:
            return subprocess.run(
                [kubectl(), *arguments], input=text, capture_output=True, text=True, check=False,
                env={"KUBECONFIG": "/dev/null"},
            )  # fmt: skip
        self.calls.append(shlex.join(arguments))
        for part, said in self.refusals.items():
            if part in self.calls[-1]:
                return subprocess.CompletedProcess(arguments, 1, "", said)
        command = [*arguments]
        while command[0] in ("--context", "--namespace"):
            command = command[2:]
        sent = json.loads(text) if text else {}
        if text:
            self.sent.append(sent)
        if self.unknown and f'"kind": "{self.unknown}"' in text:
            return subprocess.CompletedProcess(arguments, 1, "", f'no matches for kind "{self.unknown}"')
        answer = getattr(self, f"_{command[0]}", lambda *_: "")(command[1:], sent)
        return subprocess.CompletedProcess(arguments, 0, answer, "")

    def lines(self, *arguments: str, quiet: bool) -> Iterator[str]:  # noqa: ARG002
        """In place of hack.kubectl.lines."""
        self.calls.append(shlex.join(arguments))
        left = self.logs[arguments[arguments.index("-f") + 1]]
        yield from left.pop(0) if len(left) > 1 else left[0]

    def sleep(self, seconds: float) -> None:
        """In place of time.sleep."""
        self.now += seconds
        assert self.now < 3600, "it waits for ever"
        if self.then:
            self.then.pop(0)()

    def of(self, kind: str, name: str = "") -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]

    def add(self, kind: str, name: str, **more: Any) -> Object:
        """One more object; labels, age (in hours) and status have places of their own."""
        metadata = {"name": name, "labels": {"app": "habit-notifier", **more.pop("labels", {})}}
        metadata["creationTimestamp"] = text_of(START - timedelta(hours=more.pop("age", 0)))
        metadata |= more.pop("metadata", {})
        self.objects.append({"apiVersion": "v1", "kind": kind, "metadata": metadata, "status": {}, **more})
        return self.objects[-1]

    # --- the commands

    def _get(self, command: list[str], _: Object) -> str:
        if command[0] == "--raw":
            return "{}"
        found = [each for kind in command[0].split(",") for each in self.of(KINDS.get(kind, kind))]
        options = dict(pairwise(command))
        if "-l" in options:
            label, *values = options["-l"].split("=")
            found = [each for each in found if label in each["metadata"].get("labels", {})]
            found = [each for each in found if values in ([], [each["metadata"]["labels"][label]])]
        if "--field-selector" in options:
            name = options["--field-selector"].removeprefix("involvedObject.name=")
            found = [each for each in found if each["involvedObject"]["name"] == name]
        named = len(command) > 1 and not command[1].startswith("-")
        if named:
            found = [each for each in found if each["metadata"]["name"] == command[1]]
        if options.get("-o") == "name":
            return "".join(f"{each['kind'].lower()}/{each['metadata']['name']}\n" for each in found)
        return json.dumps(found[0] if named else {"items": found}) if found else ""

    def _create(self, command: list[str], sent: Object) -> str:
        if command[0] == "job":
            self.add("Job", command[1], metadata={"ownerReferences": [{"kind": "CronJob"}]})
        else:
            self._apply(command, sent)
        return ""

    def _apply(self, command: list[str], sent: Object) -> str:
        if "--dry-run=server" in command or "set-last-applied" in command:
            return ""
        for each in copy.deepcopy(sent.get("items", [sent])):
            before = next(iter(self.of(each["kind"], each["metadata"]["name"])), {})
            each["metadata"].setdefault("creationTimestamp", text_of(START))
            if suspend := before.get("spec", {}).get("suspend"):  # a merge of three: what apply never set stays
                each["spec"].setdefault("suspend", suspend)
            self.objects = [it for it in self.objects if it is not before] + [{"status": {}, **each}]
        return ""

    def _patch(self, command: list[str], sent: Object) -> str:
        (found,) = self.of(KINDS[command[0]], command[1])
        for part, values in (sent or json.loads(command[command.index("-p") + 1])).items():
            found[part] = {**found.get(part, {}), **values}
        return ""

    def _delete(self, command: list[str], sent: Object) -> str:
        gone = [(each["kind"], each["metadata"]["name"]) for each in sent.get("items", [])]
        if "-l" in command:
            kinds = [KINDS[kind] for kind in command[0].split(",")]
            gone += [(each["kind"], each["metadata"]["name"]) for each in self.objects if each["kind"] in kinds]
        elif not sent:
            kind, *names = command
            pairs = [each.split("/") for each in command] if "/" in kind else [(kind, name) for name in names]
            gone += [(KINDS[kind], name) for kind, name in pairs]
        self.objects = [each for each in self.objects if (each["kind"], each["metadata"]["name"]) not in gone]
        return ""


def cronjob(image: str = "r/n:v1", schedule: str = "0 9 * * *", **spec: Any) -> Object:
    """The CronJob, as the cluster has it since yesterday."""
    container = {"name": "habit-notifier", "image": image, "env": spec.pop("env", [])}
    labels = {"app": "habit-notifier"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "mesh"}, container]}}
    spec = {"schedule": schedule, "timeZone": "Etc/UTC", "startingDeadlineSeconds": 3600} | spec
    return {
        "kind": "CronJob",
        "metadata": {"name": "habit-notifier", "creationTimestamp": text_of(START - timedelta(days=1))},
        "spec": spec | {"jobTemplate": {"spec": {"template": pod}}},
        "status": {},
    }


def secret(values: Mapping[str, str]) -> Object:
    data = {name: b64encode(value.encode()).decode() for name, value in values.items()}
    return {"kind": "Secret", "metadata": {"name": "habit-notifier-secrets"}, "data": data}


def container(state: Object) -> Object:
    """A pod's status with our container, and one beside it, in that state."""
    beside = {"name": "mesh", "state": {"running": {}}}
    return {"phase": "Running", "containerStatuses": [beside, {"name": "habit-notifier", "state": state}]}


def ended(code: int, message: str = "", reason: str = "Error") -> Object:
    return container({"terminated": {"exitCode": code, "reason": reason, "message": message}})


def condition(kind: str, reason: str = "", message: str = "") -> Object:
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}
