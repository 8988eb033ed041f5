"""Runs: when one comes, what keeps it from starting or ending, its log, and what became of it, in words."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count, islice

from hack.kubectl import CRONJOB, Cluster, Object, Stop, because, lines, say, with_remedy

BROKEN = "StartError", "ContainerCannotRun"
PASSING = "Unschedulable|keeps the pod|should have ended"  # a cluster may grow; the others have begun


def state_of(pod: Object) -> Object:
    return next((each.state for each in pod.status.containerStatuses if each.name == CRONJOB), Object())


def shard_of(pod: Object) -> str:
    return str(pod.metadata.labels.get("batch.kubernetes.io/job-completion-index", ""))


def outcome_of(job: Object) -> str:
    """Complete, or why it failed; nothing while it is at work."""
    for each in job.status.conditions:
        if each.status == "True" and each.type in ("Complete", "Failed"):
            words = filter(None, [each.reason, job.status.failedIndexes])
            return "Complete" if each.type == "Complete" else ": ".join(words) or "Failed"
    return ""


def exit_code(pods: list[Object]) -> int | None:
    """How a run ended: the exit code of its last pod, or, of the last pods of its shards, 2 or else the highest."""
    codes = {shard_of(pod): state_of(pod).terminated.exitCode for pod in pods if state_of(pod).terminated}
    return max(codes.values(), key=lambda code: (code == 2, code), default=None)


# --- before it starts -------------------------------------------------------------------------------------------------


def runs_around(now: datetime, cronjob: Object) -> tuple[datetime, datetime] | None:
    """The last run and the next one, where the schedule is as simple as `M H * * *` or `M * * * *` in UTC."""
    simple = re.fullmatch(r"(\d+) (\d+|\*) \* \* \*", cronjob.spec.schedule)
    if not simple or cronjob.spec.timeZone not in ("Etc/UTC", "UTC"):
        return None
    hour, period = (now.hour, timedelta(hours=1)) if simple[2] == "*" else (int(simple[2]), timedelta(days=1))
    at = now.replace(hour=hour, minute=int(simple[1]), second=0, microsecond=0)
    return (at - period, at) if at > now else (at, at + period)


def missed_run(cronjob: Object) -> str:
    """What starts at once when the CronJob is resumed, in words."""
    if not (runs := runs_around(now := datetime.now(UTC), cronjob)):
        return "A run that was missed lately (startingDeadlineSeconds) starts at once."
    known = datetime.fromisoformat(cronjob.status.lastScheduleTime or cronjob.metadata.creationTimestamp)
    late = now - runs[0] > timedelta(seconds=cronjob.spec.startingDeadlineSeconds or 10**9)
    gone = late or runs[0] <= known
    return "" if gone else f"The run of {runs[0]:%H:%M} UTC was missed: it starts at once, and texts people."


def schedule_in_words(cronjob: Object) -> str:
    words = f"Schedule: {cronjob.spec.schedule} ({cronjob.spec.timeZone})"
    if cronjob.spec.suspend:
        return f"{words}. It is suspended: make resume"
    if runs := runs_around(now := datetime.now(UTC).replace(microsecond=0), cronjob):
        words += f", next at {runs[1]:%Y-%m-%d %H:%M} UTC, in {runs[1] - now}"
    return f"{words}. A run right now: make test"


# --- whether it starts and ends ---------------------------------------------------------------------------------------


def hindrance(cluster: Cluster, name: str, pods: list[Object]) -> str:
    """What keeps a Job, or a pod, from starting, or else from ending."""
    if not pods:
        return cluster.complaint(name, "FailedCreate")
    starting = (stuck(cluster, pod) for pod in pods if not began(pod))
    return next(filter(None, (*starting, *map(kept_by, pods))), "")


def began(pod: Object) -> bool:
    """Whether it has had its chance: it runs, has run, or was put away before that. A broken one never gets it."""
    state = state_of(pod)
    if ended := state.terminated:
        return ended.reason not in BROKEN
    return "running" in state or pod.status.phase == "Failed"


def stuck(cluster: Cluster, pod: Object) -> str:
    """Why it does not start: what is broken, its containers, the nodes, its volumes."""
    states = [each.state for each in (*pod.status.initContainerStatuses, *pod.status.containerStatuses)]
    waiting = [each.waiting for each in states if each.waiting.reason not in ("ContainerCreating", "PodInitializing")]
    unplaced = [it for it in pod.status.conditions if it.type == "PodScheduled" and it.status == "False"]
    if why := next(filter(None, map(because, (state_of(pod).terminated, *waiting, *unplaced))), ""):
        return why
    why = cluster.complaint(pod.metadata.name, "FailedMount", "FailedCreatePodSandBox", "Pulling")
    return "" if why.startswith("Pulling") else why  # what came before is over


def kept_by(pod: Object) -> str:
    """What keeps a pod, and so its Job and all later ones, from ending though the program has, or should have."""
    due, ended = str(pod.metadata.deletionTimestamp or ""), state_of(pod).terminated
    if due and datetime.fromisoformat(due) < datetime.now(UTC) and not ended:
        return f"pod/{pod.metadata.name} should have ended at {due}, but its node does not say so"
    beside = [it.name for it in pod.status.containerStatuses if it.name != CRONJOB and "running" in it.state]
    return f"the program has ended, but {', '.join(beside)} keeps the pod" if ended and beside else ""


# --- its log ----------------------------------------------------------------------------------------------------------


def follow(cluster: Cluster, kind: str, name: str, patience: float = 0) -> str:
    """Print the logs of a Job's pods, or of one pod, to the end.

    What keeps it from starting for longer than the patience is told, and is the answer unless another shard has started
    or it may pass by itself. No patience waits for ever.
    """
    followed, told, since = dict[str, str](), False, time.monotonic()
    while found := cluster.get(kind, name):
        pods = cluster.pods_of(name) if kind == "job" else [found]
        if new := next((pod for pod in pods if began(pod) and pod.metadata.name not in followed), None):
            print_log(cluster, new, is_first=not followed)
            followed[new.metadata.name], since = shard_of(new), time.monotonic()
            continue
        if outcome_of(found) or (began(found) and "running" not in state_of(found)):
            return ""
        trouble = hindrance(cluster, name, pods)
        since = since if trouble else time.monotonic()
        if trouble and (time.monotonic() - since >= (patience or 2) or trouble.startswith(BROKEN)):
            if patience and not any(followed.values()) and not re.search(PASSING, trouble):
                return trouble
            if not told:
                say(f"The pod waits: {with_remedy(trouble)}\nWaiting on; Ctrl-C stops the waiting.")
            told = True
        time.sleep(1)
    raise Stop(f"somebody{'' if kind == 'job' else ', or a drained node,'} deleted the {kind} {name}.")


def print_log(cluster: Cluster, pod: Object, *, is_first: bool) -> None:
    """Each line once, also when the connection breaks in between."""
    name, shard, printed = pod.metadata.name, shard_of(pod), 0
    if not state_of(pod).keys() & {"running", "terminated"}:
        say(f"--- pod/{name} ended before it started ({because(pod.status) or 'its init containers failed'})")
        return
    if shard or not is_first:
        say(f"--- {f'shard {shard}:' if shard else 'replaced by'} pod/{name}")
    for attempt in count():
        pod = cluster.get("pod", name)
        is_last = "running" not in state_of(pod) or kept_by(pod) != ""
        log = lines(*cluster.here("logs", "-f", name, "-c", CRONJOB), quiet=attempt > 0)
        for line in islice(log, printed, None):
            print(line, end="", flush=True)
            printed += 1
        if is_last:
            break
        time.sleep(1)
    if why := killed(pod):
        say(why)


def killed(pod: Object) -> str:
    """What the program could not tell of its end."""
    ended, took = state_of(pod).terminated, "OOMKilled: it took more memory than it may"
    told = took if ended.reason == "OOMKilled" else (ended.message or "").strip()
    return with_remedy(told) if re.search("^OOMKilled|exec format error", told) else ""


def verdict(cluster: Cluster, job: str) -> int:
    outcome, code = outcome_of(cluster.get("job", job)), exit_code(cluster.pods_of(job))
    if outcome == "Complete":
        say(f"The Job {job} is complete.")
        return 0
    told = f'Exit code {code}: see "Exit codes" in DEPLOYMENT.md.'
    gone = 'Its log is gone: see "A Job without a log" in DEPLOYMENT.md.'
    say(f"The Job {job} failed ({outcome}). {told if code and 'DeadlineExceeded' not in outcome else gone}")
    return code or 1


# --- what became of it ------------------------------------------------------------------------------------------------


def run_in_words(cluster: Cluster, job: Object, pods: list[Object]) -> str:
    """Sent by all attempts whose pods are left; failed and uncertain as each shard's last that judged people has it."""
    words, outcome = f"{job.metadata.creationTimestamp}  {job.metadata.name}  ", outcome_of(job)
    if not outcome:
        waits = hindrance(cluster, job.metadata.name, pods)
        return words + (f"waits: {with_remedy(waits)}" if waits else "at work: make logs")
    told = [(shard_of(pod), summary_of(pod)) for pod in pods]
    last = dict(told)
    judged = (last | {shard: found for shard, found in told if found.counts}).values()
    code = f"exit code {exit_code(pods)}" if pods else "its pods are gone"
    words += "complete" if outcome == "Complete" else f"failed ({outcome}), {code}"
    if any("sent" in found for found in judged):
        failed, uncertain = (sum(found.get(name, 0) for found in judged) for name in ("failed", "uncertain"))
        words += f": {sum(found.sent or 0 for _, found in told)} sent, {failed} failed, {uncertain} uncertain"
    return "\n    ".join([words, *dict.fromkeys(it.error for it in last.values() if it.error), *more_of(judged)])


def summary_of(pod: Object) -> Object:
    """The program's last words: one JSON object, else the end of its log."""
    message = (state_of(pod).terminated.message or "").strip()
    with suppress(ValueError):
        if isinstance(found := json.loads(message, object_hook=Object), Object):
            return found
    return Object(error=killed(pod) or message.rpartition("\n")[2])


def more_of(summaries: Collection[Object]) -> Iterator[str]:
    """What else became of users, and what was learned of earlier texts."""
    for heading, name in {"Users": "counts", "Earlier texts": "learned"}.items():
        total = sum((Counter(found.get(name)) for found in summaries), Counter[str]())
        words = [f"{what.replace('_', ' ')} {n}" for what, n in total.items() if what not in ("sent", "uncertain")]
        if words:
            yield f"{heading}: {', '.join(words)}"
