"""The Makefile's targets that talk to a cluster, a function each: TARGETS, at the end, has their names."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from hack.credentials import PLACEHOLDER, lacking, secret, values_of
from hack.kubectl import APP, CRONJOB, SECRET, Cluster, Object, Stop, container_of, given, run, say, with_remedy
from hack.runs import exit_code, follow, hindrance, missed_run, outcome_of, run_in_words, schedule_in_words, verdict

ENDINGS = signal.SIGTERM, signal.SIGHUP


def confirmed(question: str, *, unattended: bool) -> bool:
    if sys.stdin.isatty() and given("YES") != "yes":
        return input(f"{question} [y/N] ").lower() in ("y", "yes")
    return unattended or given("YES") == "yes"


# --- deploy, update-image, undeploy -----------------------------------------------------------------------------------


def image_parts(image: str) -> tuple[str, str]:
    """NAME and TAG of NAME:TAG, where NAME may hold a registry's port; NAME and DIGEST of NAME@DIGEST."""
    name, _, digest = image.partition("@")
    tagged = re.fullmatch("(.*):([^/:]*)", name)
    return (tagged[1], digest or tagged[2]) if tagged else (name, digest)


def choosing(image: str) -> str:
    return "make update-image IMAGE_NAME={} IMAGE_TAG={}".format(*image_parts(image))


def chosen_image(cluster: Cluster, current: str) -> str:
    """What IMAGE_NAME and IMAGE_TAG make of the present image."""
    name, tag = image_parts(current)
    wanted, tag = given("IMAGE_NAME", name), given("IMAGE_TAG", tag)
    if wanted != name and not given("IMAGE_TAG"):
        raise Stop(f"a new name needs its tag, too: make {cluster.target} IMAGE_NAME={wanted} IMAGE_TAG=v1.0.0")
    return f"{wanted}{'@' if ':' in tag else ':'}{tag}" if tag else wanted


def problems(cluster: Cluster, image: str) -> Iterator[str]:
    """All that stands in the way of a deploy, so that it is told at once."""
    cronjob, file = cluster.file("CronJob", CRONJOB), cluster.overlay
    config = {name: it for each in cluster.files if each.kind == "ConfigMap" for name, it in each.data.items()}
    file = file if file != "k8s" else "k8s/configmap.yaml"
    if left := [f"{name} ({value})" for name, value in config.items() if PLACEHOLDER.fullmatch(str(value))]:
        yield f"The ConfigMap still has placeholders: {', '.join(left)}. Write your values into {file}."
    if bare := [f"{name} ({value})" for name, value in config.items() if not isinstance(value, str)]:
        yield f'Put quotes around what YAML takes for a number, as "+15005550006": {", ".join(bare)}, in {file}.'
    if PLACEHOLDER.match(image):
        yield f"The image is still the placeholder {image}. Name yours: make deploy IMAGE_NAME=... IMAGE_TAG=..."
    env = config | {each.name: each.value for each in container_of(cronjob).env}
    pods, count = str(cronjob.spec.jobTemplate.spec.completions or 1), env.get("SHARD_COUNT", "1")
    if pods != count:  # components/sharded copies the one into the other; somebody patched it afterwards
        told = "users would be left out. Write the number into components/sharded, and nowhere else."
        yield f"The Job has {pods} pods (completions), and SHARD_COUNT is {count}: {told}"
    if not cluster.maker_of_secret():
        yield from secret_problems(cluster, {name.removesuffix("_FILE"): "elsewhere" for name in env})


def secret_problems(cluster: Cluster, elsewhere: dict[str, str]) -> Iterator[str]:
    if run(*cluster.here("auth", "can-i", "get", f"secret/{SECRET}")).returncode:
        say(f"Note: you may not read Secrets here, so {SECRET} was not checked.")
        return
    found = cluster.get("secret", SECRET)
    if not found and (SECRET in str(cluster.file("CronJob", CRONJOB)) or lacking(elsewhere)):
        yield f"There is no Secret {SECRET} in namespace {cluster.namespace}. Make it: make secret"
        return
    if left := [name for name, value in values_of(found).items() if PLACEHOLDER.fullmatch(value)]:
        yield f"The Secret {SECRET} still has placeholders: {' '.join(left)}. Set them: make secret"
    if missing := lacking(values_of(found) | elsewhere):
        yield f"The Secret {SECRET} has no {' '.join(missing)}. Add it: make secret"


def deploy(cluster: Cluster) -> None:
    """All of the files, with the image that runs; nothing as long as something stands in the way."""
    cronjob, running = cluster.file("CronJob", CRONJOB), cluster.get("cronjob", CRONJOB)
    cluster.agree()
    container, before = container_of(cronjob), container_of(running).image or ""
    in_file, before = container.image, "" if PLACEHOLDER.match(before) else before
    container["image"] = after = chosen_image(cluster, before or in_file)
    if found := list(problems(cluster, after)):
        raise Stop("\n  - ".join([f"nothing was applied to {cluster.where}, because:", *found]))
    warn(cluster, cronjob.spec.schedule)
    cluster.make_namespace()
    refused = "nothing was applied, as the cluster would refuse a part"
    # Who may not bind every Role, as the admin of one namespace, may bind one only once it is there.
    asked = [found for found in cluster.files if found.kind != "RoleBinding"]
    cluster.ask("apply", "--dry-run=server", "-f", "-", send=asked, otherwise=refused)
    say(f"Deploying {cluster.overlay} to {cluster.where}.")
    if given("SUSPEND", "no") != "no":  # whoever writes true or 1 does not want a run, either
        suspend_first(cluster, cronjob, running)
    cluster.tell("apply", "-f", "-", send=cluster.files)
    say(f"Image: {after}" if before in ("", after) else f"Image: {before} -> {after}")
    if after != in_file and not given("IMAGE_NAME", given("IMAGE_TAG")) and not PLACEHOLDER.match(in_file):
        say(f"The files name {in_file}; the cluster's image was kept. To take theirs: {choosing(in_file)}")
    say(schedule_in_words(cluster.cronjob()))


def warn(cluster: Cluster, schedule: str) -> None:
    template = "".join(file.read_text() for file in Path("k8s").glob("secret.yaml"))
    if re.search("^ *(stringData|data):", template, re.MULTILINE):
        say("WARNING: k8s/secret.yaml is filled in. kubectl apply -f k8s/ would set it, a commit publish it.")
    config, program = cluster.file("ConfigMap", "habit-notifier-config").data, Path("app/habit_notifier.py").read_text()
    known = "|".join(re.findall(r"^    (\w+): .*= setting\(", program, re.MULTILINE)).upper()
    read = rf"({known})(_FILE)?|REQUESTS_CA_BUNDLE|(?i:\w+_PROXY)"
    if unknown := ", ".join(name for name in config if not re.fullmatch(read, name)):
        say(f"WARNING: the program reads no {unknown}, which the ConfigMap has. CRONJOB_README.md lists all settings.")
    window = config.SEND_WINDOW
    if window and schedule != "@hourly" and schedule.split()[1:2] != ["*"]:
        never = "who is outside of it at that moment is never served. components/local-morning has both."
        say(f"WARNING: SEND_WINDOW is {window}, and the schedule {schedule} does not run every hour: {never}")


def suspend_first(cluster: Cluster, cronjob: Object, running: Object) -> None:
    """Before anything can start, and not as a part of what is applied: the next apply would take it back."""
    if running:
        set_suspend(cluster, "true")
    else:
        cluster.ask("create", "-f", "-", send=cronjob | {"spec": cronjob.spec | {"suspend": True}})
        cluster.ask("apply", "set-last-applied", "--create-annotation", "-f", "-", send=cronjob)


def update_image(cluster: Cluster) -> None:
    if not given("IMAGE_NAME", given("IMAGE_TAG")):
        raise Stop("which image? make update-image IMAGE_TAG=v1.1.0")
    before = container_of(cluster.cronjob()).image
    if PLACEHOLDER.match(after := chosen_image(cluster, before)):
        raise Stop(f"the image is still the placeholder {after}. Name yours: IMAGE_NAME=... IMAGE_TAG=...")
    if after == before:
        raise Stop(f"{after} runs already. A node that has a tag does not pull it again: build with another tag.")
    cluster.ask("set", "image", f"cronjob/{CRONJOB}", f"{CRONJOB}={after}")
    say(f"Image: {before} -> {after}. The next run uses it; back again: {choosing(before)}")


def undeploy(cluster: Cluster) -> None:
    name, all_kinds = cluster.namespace, "deployments,statefulsets,daemonsets,cronjobs,jobs,pods,services,pvc,secrets"
    cluster.agree()
    cluster.tell("delete", "cronjob", CRONJOB, "--ignore-not-found")
    cluster.tell("delete", "jobs,pods", "-l", APP, "--ignore-not-found")
    cluster.delete(found for found in cluster.files if found.kind not in ("Namespace", "Secret", "CronJob"))
    if given("PURGE") != "yes":
        say(f"The namespace {name} and the Secret {SECRET} stay. To remove them, too: make undeploy PURGE=yes")
    else:
        cluster.tell("delete", "secret", SECRET, "--ignore-not-found")
        others = " ".join(cluster.ask("get", all_kinds, "-o", "name").split()[:3])
        if others or not cluster.file("Namespace", name):
            why = f"it holds {others}" if others else f"{cluster.overlay} does not make it"
            say(f"The namespace {name} stays, as {why}. To remove all: kubectl delete namespace {name}")
        else:
            cluster.tell("delete", "namespace", name, "--ignore-not-found")
    say("The ledger stays in the database. It is what keeps people from a second text.")


# --- runs -------------------------------------------------------------------------------------------------------------


def test(cluster: Cluster) -> int:
    cluster.cronjob()
    job = f"{CRONJOB}-manual-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    cluster.ask("create", "job", job, f"--from=cronjob/{CRONJOB}", otherwise="the cluster takes no Job")
    say(f"Job {job} started in {cluster.where}: a real run.")
    try:
        if trouble := follow(cluster, "job", job, patience=20):
            why = f"the run cannot start: {with_remedy(trouble)}\n"
            with undisturbed():
                cluster.ask("delete", "job", job, "--wait=false", otherwise=f"{why}Its Job could not be deleted")
    except (KeyboardInterrupt, SystemExit, Stop):
        say("The Job, if it is still there, goes on in the cluster: make logs")
        raise
    if trouble:
        raise Stop(f"{why}The Job {job} was deleted again, so that it does not start by itself later.")
    return verdict(cluster, job)


def logs(cluster: Cluster) -> None:
    """Of JOB, or of the newest Job that the CronJob owns, as it does one that was made from it by hand."""
    owned = [job for job in cluster.every("jobs", "-l", APP) if job.metadata.ownerReferences]
    found = cluster.get("job", given("JOB")) if given("JOB") else owned[-1] if owned else Object()
    if not found:
        none = "there was no run yet, or it is deleted already. Start one: make test. When is the next? make status"
        raise Stop(f"there is no Job {given('JOB')} in {cluster.where}." if given("JOB") else none)
    job = found.metadata.name
    say(f"Job {job}, made {found.metadata.creationTimestamp} in {cluster.where}")
    if outcome_of(found) and not cluster.pods_of(job):
        say("There is no log left: its pods are gone.")
    follow(cluster, "job", job)
    verdict(cluster, job)


def clean_jobs(cluster: Cluster) -> None:
    ended = [f"job/{job.metadata.name}" for job in cluster.every("jobs", "-l", APP) if outcome_of(job)]
    pods = cluster.every("pods", "-l", "habit-notifier/purpose")
    ended += [f"pod/{pod.metadata.name}" for pod in pods if pod.status.phase in ("Succeeded", "Failed")]
    if ended:
        cluster.tell("delete", *ended)
    else:
        say(f"There are no finished Jobs in {cluster.where}.")


def status(cluster: Cluster) -> None:
    cronjob, pods = cluster.cronjob(), cluster.every("pods", "-l", APP)
    say(f"{cluster.where}. Image: {container_of(cronjob).image}\n{schedule_in_words(cronjob)}")
    if why := cluster.complaint(CRONJOB, "FailedCreate"):  # a run that has no Job
        say(f"In the last hour a run could not be made: {with_remedy(why)}")
    say(f"Last complete run: {cronjob.status.lastSuccessfulTime or 'never'}. The last runs:")
    for job in cluster.every("jobs", "-l", APP)[-10:]:
        its = [pod for pod in pods if pod.metadata.labels.get("job-name") == job.metadata.name]
        say(run_in_words(cluster, job, its))


def events(cluster: Cluster) -> None:
    say(f"Events in {cluster.where}. A cluster keeps them for about an hour.")
    cluster.tell("get", "events", "--sort-by=.metadata.creationTimestamp")


# --- suspend, resume, stop --------------------------------------------------------------------------------------------


def set_suspend(cluster: Cluster, value: str) -> None:
    cluster.ask("patch", "cronjob", CRONJOB, "-p", f'{{"spec": {{"suspend": {value}}}}}')


def at_work(cluster: Cluster) -> list[str]:
    return [job.metadata.name for job in cluster.every("jobs", "-l", APP) if not outcome_of(job)]


def suspend(cluster: Cluster) -> None:
    cluster.cronjob()
    set_suspend(cluster, "true")
    say("Suspended: no scheduled run starts until make resume. A deploy leaves it so. make test still works.")
    if running := at_work(cluster):
        say(f"A run is at work and goes on: {' '.join(running)}. To end it: make stop")


def resume(cluster: Cluster) -> None:
    cronjob = cluster.cronjob()
    if missed := cronjob.spec.suspend and missed_run(cronjob):
        say(missed)
        if not confirmed("Resume?", unattended=True):
            raise Stop("it stays suspended.")
    set_suspend(cluster, "false")
    say(f"Resumed. {schedule_in_words(cluster.cronjob())}")


def stop(cluster: Cluster) -> None:
    """SIGTERM to what runs, and wait for its end."""
    cluster.cronjob()
    running = " ".join(at_work(cluster)) or "nothing"
    if not confirmed(f"Suspend, and end what is at work ({running})?", unattended=False):
        raise Stop("nothing was changed. In a script: make stop YES=yes")
    set_suspend(cluster, "true")
    while jobs := at_work(cluster):  # again, as one may have been made just before
        say("Texts in flight are finished and recorded, which takes up to a minute.")
        cluster.tell("delete", "job", *jobs, "--cascade=foreground", "--ignore-not-found")
    say("Suspended, and nothing is at work. Scheduled runs again: make resume")


# --- pods like the job's, that are no run -----------------------------------------------------------------------------


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nobody is interrupted, nor is kubectl, which inherits that: a second Ctrl-C follows the first one soon."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (*ENDINGS, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def pod_like_the_jobs(cluster: Cluster, purpose: str, **changes: object) -> Iterator[str]:
    """The Job's own template without an owner. It is deleted at the end; what kill -9 leaves, by `make clean-jobs`."""
    cronjob, name = cluster.cronjob(), f"{CRONJOB}-{purpose}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    template, container = cronjob.spec.jobTemplate.spec.template, container_of(cronjob)
    env = [each for each in container.env if each.name != "SHARD_COUNT"]  # a single pod has no index, and is no shard
    container |= {"env": [*env, {"name": "SHARD_COUNT", "value": "1"}], **changes}
    template.metadata["name"] = name
    template.metadata.labels["habit-notifier/purpose"] = purpose
    template.spec.update(restartPolicy="Never", activeDeadlineSeconds=3600, terminationGracePeriodSeconds=1)
    try:
        new = {"apiVersion": "v1", "kind": "Pod", **template}
        cluster.ask("create", "-f", "-", send=new, otherwise="the cluster takes no pod")
        yield name
    finally:
        with undisturbed():
            run(*cluster.here("delete", "pod", name, "--ignore-not-found", "--wait=false"))


def question(cluster: Cluster, purpose: str, *arguments: str) -> int:
    with pod_like_the_jobs(cluster, purpose, args=arguments) as name:
        if trouble := follow(cluster, "pod", name, patience=20):
            raise Stop(f"the pod does not start: {with_remedy(trouble)}")
        code = exit_code([cluster.get("pod", name)])
        return 1 if code is None else code


def explain(cluster: Cluster) -> int:
    if not given("USER_ID"):
        raise Stop("whom? make explain USER_ID=42")
    return question(cluster, "explain", f"--explain={given('USER_ID')}")


def shell(cluster: Cluster) -> int:
    options = ["-it" if sys.stdin.isatty() else "-i", "-c", CRONJOB]
    with pod_like_the_jobs(cluster, "shell", command=["sleep", "3600"], args=None) as name:
        if run(*cluster.here("wait", "--for=condition=Ready", "--timeout=60s", f"pod/{name}")).returncode:
            raise Stop(f"the pod does not start: {with_remedy(hindrance(cluster, name, [cluster.get('pod', name)]))}")
        if sys.stdin.isatty():
            say(f"A shell in {name}: the job's image, settings and network. Leave: exit")
            say("To run the job itself: python /app/habit_notifier.py (it texts people)")
        command = ["kubectl", *cluster.here("exec", *options, name, "--", "/bin/sh")]
        return subprocess.run(command, check=False).returncode  # noqa: S603


TARGETS: dict[str, Callable[[Cluster], int | None]] = {
    "secret": secret, "deploy": deploy, "test": test, "logs": logs, "status": status, "events": events,
    "preflight": lambda cluster: question(cluster, "preflight", "--check"),
    "dry-run": lambda cluster: question(cluster, "dry-run", "--dry-run"),
    "explain": explain, "shell": shell, "suspend": suspend, "resume": resume, "stop": stop,
    "update-image": update_image, "clean-jobs": clean_jobs, "undeploy": undeploy,
}  # fmt: skip


def main(target: str) -> int:
    os.chdir(Path(__file__).parents[1])
    for ending in ENDINGS:
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    try:
        return TARGETS[target](Cluster(target)) or 0
    except Stop as why:
        say(f"make {target}: {why}", file=sys.stderr)
    except (KeyboardInterrupt, EOFError, BrokenPipeError) as why:
        if isinstance(why, BrokenPipeError):  # | head; at its end Python would try what is left once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if target in ("logs", "status", "events") else 130
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
