"""The cluster, as kubectl shows it: what it holds is read as JSON; what goes there travels through kubectl's standard
input, so that nothing of the Secret stands in arguments, which everybody on the machine can list.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

CRONJOB, SECRET, APP = "habit-notifier", "habit-notifier-secrets", "app=habit-notifier"
REMEDIES = {  # of what keeps a pod from starting, or ends it: the first that is found in it
    f'secret "{SECRET}" not found': "make secret",
    'configmap "habit-notifier-config" not found|serviceaccount \\S+ not found': "make deploy",
    "CreateContainerConfigError|FailedMount": "make what it names, in the job's namespace.",
    "exec format error": "the image is for another processor: make build-push PLATFORM=linux/amd64 (or linux/arm64).",
    "InvalidImageName": "make update-image IMAGE_NAME=... IMAGE_TAG=...",
    "ErrImage|ImagePull": "is it pushed (make push), and is the name right (make update-image)? "
    "For a private registry see imagePullSecrets in k8s/serviceaccount.yaml.",
    "^(?!.*Insufficient).*untolerated taint": "a node that is ready and has no taint, or tolerations in an overlay.",
    "^(?!.*Insufficient).*were unschedulable": "kubectl uncordon NODE, once its work is done.",
    "Unschedulable": "make room on a node, or lower resources.requests in k8s/cronjob.yaml.",
    "count/jobs": "make clean-jobs, or raise the namespace's ResourceQuota.",
    "request ratio": "bring the container's requests and limits closer together, in k8s/cronjob.yaml or an overlay.",
    "quota|usage per": "raise the namespace's ResourceQuota or LimitRange, or lower resources in k8s/cronjob.yaml.",
    "OOMKilled": "raise limits.memory in k8s/cronjob.yaml, or lower SEND_CONCURRENCY, and make deploy.",
    "istio-|linkerd-|keeps the pod": "switch the sidecar off for this pod, as k8s/cronjob.yaml tells, and make deploy.",
    "should have ended": "is that node off? Then delete it, or the pod: kubectl delete pod NAME --force.",
    "no matches for kind": "install the operator that has it, or take the component out of the kustomization: see "
    "k8s/README.md.",
    "namespaces.* is forbidden": "is the namespace not yours to make? Take it out, as docs/gitops.md shows.",
    "denied (the )?request": "give the policy what it asks for, in an overlay: docs/gitops.md has an example.",
    "PodSecurity": "an overlay or a component weakened the pod's securityContext: compare it with k8s/cronjob.yaml.",
}
TOLD = "secret|deploy|explain|test|logs|status|events|resume|stop|update-image|clean-jobs|undeploy"
COMMAND = re.compile(f"make ({TOLD})(?!:)")


class Stop(Exception):  # noqa: N818 - named by what it does
    """What keeps the target from being done, with the remedy."""


class Object(dict[str, Any]):
    """An object of Kubernetes, as JSON has it. What is not there is empty."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name, Object())


def given(name: str, default: str = "") -> str:
    """A variable of the environment. Set but empty is not set."""
    return os.environ.get(name) or default


def say(text: str, **options: Any) -> None:
    """A command that the text names is for the same cluster and environment: it may be pasted."""
    same = "".join(f" {name}={given(name)}" for name in ("CONTEXT", "NAMESPACE", "OVERLAY") if given(name))
    print(COMMAND.sub(lambda command: command[0] + same, text), flush=True, **options)


def run(*arguments: str, text: str = "", offline: bool = False) -> subprocess.CompletedProcess[str]:
    """Run kubectl to its end. Offline is for what needs no cluster: whichever context is chosen must not matter."""
    environ = os.environ | ({"KUBECONFIG": os.devnull} if offline else {})
    command = ["kubectl", *arguments]
    try:
        return subprocess.run(command, input=text, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise Stop("kubectl is not here. Install it: https://kubernetes.io/docs/tasks/tools/") from None


def lines(*arguments: str, quiet: bool) -> Iterator[str]:
    """What kubectl prints, as it comes."""
    errors, command = subprocess.DEVNULL if quiet else None, ["kubectl", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:  # noqa: S603
        try:
            yield from process.stdout or ()
        finally:
            process.terminate()


def objects(yaml: str) -> list[Object]:
    arguments = ["patch", "--local", "--type=merge", "-p", "{}", "-f", "-", "-o", r'jsonpath={@}{"\n"}']
    if (done := run(*arguments, text=yaml, offline=True)).returncode:
        raise Stop(f"kubectl does not understand it: {done.stderr.strip()}")
    return [json.loads(line, object_hook=Object) for line in done.stdout.splitlines()]


def because(it: Object) -> str:
    return ": ".join(filter(None, [it.reason, it.message]))


def with_remedy(trouble: str, otherwise: str = "make events") -> str:
    remedy = next((it for pattern, it in REMEDIES.items() if re.search(pattern, trouble)), otherwise)
    return f"{trouble}\nRemedy: {remedy}" if remedy else trouble


class Cluster:
    """The cluster and the namespace that a target is about, and the files that are meant for it."""

    def __init__(self, target: str) -> None:
        self.target, self.overlay = target, given("OVERLAY", "k8s")
        self.context = ["--context", given("CONTEXT")] if given("CONTEXT") else []
        if (done := run(*self.context, "get", "--raw", "/version", "--request-timeout=15s")).returncode:
            choose = "Choose one: kubectl config use-context NAME, or CONTEXT=NAME, or KUBECONFIG."
            raise Stop(f"kubectl reaches no cluster ({done.stderr.strip()}). {choose}")
        known = given("NAMESPACE", "habit-tracker" if self.overlay == "k8s" else "")
        self.namespace = known or self.file("CronJob", CRONJOB).metadata.namespace
        context = given("CONTEXT") or run("config", "current-context").stdout.strip() or "default"
        self.where = f"namespace {self.namespace} of {context}"

    @cached_property
    def files(self) -> list[Object]:
        done = run("kustomize", self.overlay, offline=True)
        found = objects(done.stdout) if done.stdout else []
        if not any((each.kind, each.metadata.name) == ("CronJob", CRONJOB) for each in found):
            told = "Another environment is another namespace, without a namePrefix." if found else done.stderr.strip()
            raise Stop(f"kustomize makes no CronJob {CRONJOB} of {self.overlay}. {told}")
        return found

    def file(self, kind: str, name: str) -> Object:
        return next((each for each in self.files if (each.kind, each.metadata.name) == (kind, name)), Object())

    def maker_of_secret(self) -> Object:
        """What the files have in place of `make secret`: an ExternalSecret, a SealedSecret, a generator's Secret."""
        return next((it for it in self.files if it.kind.endswith("Secret") and SECRET in str(it)), Object())

    def agree(self) -> None:
        """NAMESPACE alone changes no file."""
        if self.namespace != (meant := self.file("CronJob", CRONJOB).metadata.namespace):
            other = "Another namespace has an overlay: OVERLAY=overlays/staging is an example."
            raise Stop(f"{self.overlay} is for namespace {meant}. {other}")

    def here(self, *arguments: str) -> list[str]:
        return [*self.context, "--namespace", self.namespace, *arguments]

    def ask(self, *arguments: str, send: object = None, otherwise: str = "the cluster refuses") -> str:
        """What kubectl says; its input is what is sent. Warnings are shown."""
        send = {"apiVersion": "v1", "kind": "List", "items": send} if isinstance(send, list) else send
        if (done := run(*self.here(*arguments), text=json.dumps(send) if send else "")).returncode:
            raise Stop(f"{otherwise}: {with_remedy(done.stderr.strip(), '')}")
        sys.stderr.write(done.stderr)
        return done.stdout

    def tell(self, *arguments: str, send: object = None) -> None:
        say(self.ask(*arguments, send=send), end="")

    def delete(self, files: Iterable[Object]) -> None:
        """One by one: of a kind that the cluster does not know (any more) there is nothing to delete."""
        for found in files:
            try:
                self.tell("delete", "--ignore-not-found", "-f", "-", send=found)
            except Stop as why:
                if "no matches for kind" not in str(why):
                    raise

    def get(self, *what: str) -> Object:
        text = self.ask("get", *what, "--ignore-not-found", "-o", "json")
        return Object(json.loads(text or "{}", object_hook=Object))

    def every(self, kind: str, *options: str) -> list[Object]:
        """The oldest first."""
        found = self.get(kind, *options).get("items", [])
        return sorted(found, key=lambda each: (str(each.metadata.creationTimestamp), each.metadata.name))

    def cronjob(self) -> Object:
        if not (found := self.get("cronjob", CRONJOB)):
            raise Stop(f"there is no CronJob {CRONJOB} in {self.where}. Deploy it: make deploy")
        return found

    def complaint(self, name: str, *reasons: str) -> str:
        """The newest event of an object for one of these reasons."""
        events = reversed(self.every("events", "--field-selector", f"involvedObject.name={name}"))
        return next((because(each) for each in events if each.reason in reasons), "")

    def make_namespace(self) -> None:
        """As the files have it, so that its labels hold before the first pod."""
        wanted = [found for found in self.files if found.kind == "Namespace"]
        if wanted and not run(*self.here("get", "namespace", self.namespace, "-o", "name")).stdout:
            self.tell("apply", "-f", "-", send=wanted)

    def pods_of(self, job: str) -> list[Object]:
        return self.every("pods", "-l", f"job-name={job}")


def container_of(cronjob: Object) -> Object:
    """The program's own container; others may stand beside it."""
    return next((it for it in cronjob.spec.jobTemplate.spec.template.spec.containers if it.name == CRONJOB), Object())
