"""A new user walks through the documents on a real cluster; what the cluster, the fake and the ledger say is judged.

Tests run in this order and build on what the ones before them left, so one alone runs as well: `pytest tests/e2e -k
drain`. Commands are as the documents have them: tests/project/test_doc_commands.py looks for them here.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.probe import PROBE
from tests.e2e.stage import CREDENTIALS, NAMESPACE, ROOT, Cluster, Due, Outside, User, Watch, blocks, eventually
from tests.sandbox.fake_twilio import FakeTwilio
from tests.sandbox.people import zone_named

pytestmark = pytest.mark.timeout(600)

CONCURRENCY = 8  # the default of SEND_CONCURRENCY
FEW = 4  # what it is in the tests of shards
SHARDS = 4  # the number in k8s/components/sharded


def job_in(said: str) -> str:
    """The Job that `make test` started."""
    (job,) = re.findall(r"^Job (\S+) started", said, flags=re.MULTILINE)
    return str(job)


def summary(said: str) -> tuple[int, int]:
    """Sent and failed, as the last run in a log sums up."""
    sent, failed = re.findall(r"Job completed\. Notifications sent: (\d+), Failed: (\d+)$", said, flags=re.MULTILINE)[
        -1
    ]
    return int(sent), int(failed)


# --- 1. deploy -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pushed")
def test_1_deploy_tells_all_that_is_missing_and_applies_nothing(user: User, cluster: Cluster) -> None:
    said = user.does("make deploy", code=2)
    for problem in ("There is no Secret habit-notifier-secrets", "make secret", "TWILIO_FROM_NUMBER", "The image is"):
        assert problem in said
    assert f"namespace/{NAMESPACE}" not in cluster.names("namespaces")


@pytest.mark.usefixtures("configured")
def test_1_deploy_refuses_as_long_as_only_the_secret_is_missing(user: User, cluster: Cluster) -> None:
    said = user.does("make deploy", code=2)
    remedy = "make secret OVERLAY=tests/e2e/overlay"
    assert re.findall(r"^  - (.*)$", said, flags=re.MULTILINE) == [
        f"There is no Secret habit-notifier-secrets in namespace {NAMESPACE}. Make it: {remedy}"
    ]
    assert f"namespace/{NAMESPACE}" not in cluster.names("namespaces")


def test_1_secret_asks_for_the_values_and_shows_no_password(secret: str, cluster: Cluster) -> None:
    _, _, data = cluster.secret()
    assert {name: base64.b64decode(value).decode() for name, value in data.items()} == CREDENTIALS
    assert CREDENTIALS["DB_PASSWORD"] not in secret
    assert CREDENTIALS["TWILIO_AUTH_TOKEN"] not in secret
    labels = cluster.get("namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.usefixtures("secret")
def test_1_kubectl_and_a_file_make_the_same_secret(user: User, cluster: Cluster) -> None:
    _, _, data = cluster.secret()
    cluster.here("delete", "secret", "habit-notifier-secrets")
    user.does("kubectl apply -f k8s/namespace.yaml")
    user.does(
        """
        kubectl create secret generic habit-notifier-secrets \\
          --namespace=habit-tracker \\
          --from-literal=DB_USER='your-db-user' \\
          --from-literal=DB_PASSWORD='your-db-password' \\
          --from-literal=TWILIO_ACCOUNT_SID='your-sid' \\
          --from-literal=TWILIO_AUTH_TOKEN='your-token'
        """
    )
    assert cluster.secret()[2] == data
    cluster.here("delete", "secret", "habit-notifier-secrets")
    (user.clone.parent / "habit-notifier.env").write_text("".join(f"{n}={v}\n" for n, v in CREDENTIALS.items()))
    user.does("make secret FILE=/path/outside/of/git/habit-notifier.env")
    assert cluster.secret()[2] == data


@pytest.mark.usefixtures("pushed", "configured", "secret", "account")
def test_1_a_deploy_that_the_server_would_refuse_leaves_nothing_behind(user: User, cluster: Cluster) -> None:
    kinds = "cronjobs,configmaps,serviceaccounts,networkpolicies"
    before = cluster.names(kinds)
    try:
        user.edit("k8s/configmap.yaml", TWILIO_FROM_NUMBER=FakeTwilio.FROM_NUMBER)
        said = user.does("make deploy", code=2)
        assert re.search("Put quotes around .* TWILIO_FROM_NUMBER", said)
        user.edit("k8s/configmap.yaml", TWILIO_FROM_NUMBER=f'"{FakeTwilio.FROM_NUMBER}"')
        user.edit("k8s/cronjob.yaml", schedule='"0 25 * * *"')
        assert "nothing was applied, as the cluster would refuse a part" in user.does("make deploy", code=2)
        assert cluster.names(kinds) == before
    finally:
        user.edit("k8s/configmap.yaml", TWILIO_FROM_NUMBER=f'"{FakeTwilio.FROM_NUMBER}"')
        user.quiet()


@pytest.mark.usefixtures("pushed", "configured", "secret", "account")
def test_1_what_is_deployed_suspended_stays_so_until_it_is_resumed(user: User, cluster: Cluster) -> None:
    assert "It is suspended: make resume" in user.does("make deploy SUSPEND=yes")
    assert cluster.cronjob()["suspend"] is True
    assert "Warning" not in user.does("make deploy")
    user.does("kubectl apply -k k8s")
    assert cluster.cronjob()["suspend"] is True
    assert "Resumed. Schedule: " in user.does("make resume")
    assert cluster.cronjob()["suspend"] is False


def test_1_applying_again_leaves_the_secret_as_it_was(deployed: str, user: User, cluster: Cluster) -> None:
    assert f"Image: {user.tag('v1.0.0')}" in deployed
    before = cluster.secret()
    user.does("make deploy IMAGE_NAME=your-registry/habit-notifier IMAGE_TAG=v1.0.0")
    assert 'no matches for kind "Kustomization"' in user.does("kubectl apply -f k8s/", code=1)
    assert cluster.get("configmap", "habit-notifier-config")["data"]["DB_HOST"] == "mysql.example.com"
    user.does("kubectl apply -k k8s")
    assert user.does("kubectl diff -k k8s") == ""
    assert cluster.secret() == before
    user.does("make deploy")
    assert cluster.secret() == before
    assert cluster.get("configmap", "habit-notifier-config")["data"]["DB_HOST"] == os.environ["MYSQL_TEST_HOST"]


# --- 2. runs ---------------------------------------------------------------------------------------------------------


def test_2_everybody_due_gets_one_text_and_nobody_a_second_one(
    due: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    said = user.does("make test")
    assert outside.texts() == due
    assert summary(said) == (due.total(), 1)
    assert outside.ledger() == {"sent": due.total(), "refused": 1}
    assert (watch.exits(job_in(said)), cluster.outcome(job_in(said))) == ([0], "Complete")
    assert summary(user.does("make logs")) == (due.total(), 1)

    # The ledger is there: the account may lose the right to make it, as DEPLOYMENT.md says.
    outside.call("administrator", "REVOKE CREATE ON habit_tracker.`HabitNotification` FROM 'habit_notifier'@'%'")
    assert summary(user.does("make test")) == (0, 0)
    assert outside.texts() == due


def test_2_the_first_text_goes_to_one_number(due: Due, user: User, cluster: Cluster, outside: Outside) -> None:
    patch = ["patch", "configmap", "habit-notifier-config", "--patch"]
    cluster.here(*patch, json.dumps({"data": {"ONLY_USERS": str(outside.an_id())}}))
    try:
        assert "ONLY_USERS is set: of all users only these 1 may be texted" in user.does("make test")
    finally:
        cluster.here(*patch, '{"data": {"ONLY_USERS": null}}')
    assert outside.texts().total() == 1
    assert outside.texts() <= due


def test_2_a_scheduled_run_texts_who_is_new_and_nobody_twice(
    due: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    user.does("make test")
    new = outside.newcomer()
    jobs = cluster.names("jobs")
    start = datetime.now(UTC) + timedelta(seconds=70 if datetime.now(UTC).second > 50 else 60)
    try:
        user.edit("k8s/cronjob.yaml", schedule=f'"{start:%M %H} * * *"')
        assert f"Schedule: {start:%M %H} * * *" in user.does("make deploy")
        (scheduled,) = eventually(lambda: cluster.names("jobs") - jobs, 150, "the cluster starts the scheduled run")
        job = scheduled.removeprefix("job.batch/")
        assert eventually(lambda: cluster.outcome(job), 60, f"{job} ends") == "Complete"
    finally:
        user.quiet()
        user.does("make deploy")
    watch.ended(job, [0])
    assert outside.texts() == due + Counter([new])
    assert re.fullmatch(r"habit-notifier-\d+", job)
    assert summary(user.does("kubectl logs -n habit-tracker -l job-name=habit-notifier-28123456 --tail=-1".replace(
        "habit-notifier-28123456", job))) == (1, 0)  # fmt: skip


def test_2_local_morning_texts_each_by_their_own_clock(
    due: Due, user: User, cluster: Cluster, outside: Outside
) -> None:
    def inside() -> set[str]:
        """Whose clock is within 09:00-20:00."""
        rows = outside.call("rows", "SELECT phone_number, TRIM(time_zone) FROM User")
        zones = {phone: zone_named(zone) for phone, zone in rows}
        return {phone for phone, zone in zones.items() if zone and 9 <= datetime.now(zone).hour < 20}

    file = user.clone / "k8s/kustomization.yaml"
    text = file.read_text()
    try:
        file.write_text(re.sub(r"# (components:\n)# ( +- components/local-morning\n)", r"\1\2", text))
        assert "WARNING" not in user.does("make deploy SUSPEND=yes")
        assert cluster.cronjob()["schedule"] == "0 * * * *"
        before = inside()
        user.does("make test")
        after = inside()
    finally:
        file.write_text(text)
        user.does("make deploy")
        user.does("make resume")
    everybody, texted = ({phone for phone, _ in some} for some in (due, outside.texts()))
    assert before & after & everybody <= texted <= (before | after) & everybody
    assert texted < everybody


@pytest.mark.usefixtures("deployed")
def test_2_what_is_suspended_stays_so_over_a_deploy(user: User, cluster: Cluster) -> None:
    assert "no scheduled run starts" in user.does("make suspend")
    assert cluster.cronjob()["suspend"] is True
    assert "It is suspended: make resume" in user.does("make deploy")
    assert cluster.cronjob()["suspend"] is True
    assert "It is suspended: make resume" in user.does("make status")
    user.does("make resume")
    assert cluster.cronjob()["suspend"] is False


@pytest.mark.usefixtures("deployed")
def test_2_deploy_keeps_the_image_that_update_image_chose(user: User, cluster: Cluster) -> None:
    user.does("make build-push IMAGE_TAG=v1.1.0", seconds=500)
    said = user.does("make update-image IMAGE_TAG=v1.1.0")
    assert f"{user.tag('v1.0.0')} -> {user.tag('v1.1.0')}" in said
    assert "runs already" in user.does("make update-image IMAGE_TAG=v1.1.0", code=2)
    assert "the cluster's image was kept" in user.does("make deploy")
    assert cluster.image() == user.tag("v1.1.0")
    user.does("make update-image IMAGE_TAG=v1.0.0")
    user.does("make deploy")
    assert cluster.image() == user.tag("v1.0.0")


# --- 3. the pod ------------------------------------------------------------------------------------------------------


@pytest.fixture
def neighbour(deployed: str, cluster: Cluster) -> Iterator[None]:  # noqa: ARG001
    """A service beside the job, of which its pods must not be told."""
    cluster.here("create", "service", "clusterip", "neighbour", "--tcp=80")
    yield
    cluster.here("delete", "service", "neighbour")


@pytest.mark.usefixtures("neighbour")
def test_3_the_pod_can_do_nothing_that_the_job_does_not_need(user: User) -> None:
    said = user.inside(
        """
        id -u; id -g
        touch /root-file /app/file /opt/venv/file 2>/dev/null && echo writable || echo read-only
        touch /tmp/file && echo tmp
        ls /var/run/secrets/kubernetes.io 2>/dev/null || echo no token
        grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
        env | grep NEIGHBOUR_ || echo no links
        """
    )
    status = dict(re.findall(r"^(\w+):\s+(\w+)$", said, flags=re.MULTILINE))
    assert {name for name in status if name.startswith("Cap")} == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    assert all(int(mask, 16) == 0 for name, mask in status.items() if name.startswith("Cap"))
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    words = [line.strip() for line in said.splitlines()]
    assert words[:2] == ["1000", "1000"]
    assert words[2:5] == ["read-only", "tmp", "no token"]
    assert words[-1] == "no links"


@pytest.mark.usefixtures("due")
def test_3_the_job_s_pod_is_what_the_shell_shows(user: User, watch: Watch) -> None:
    job = job_in(user.does("make test"))
    shells = [pod.spec for pod in watch.pods.values() if not pod.job] or pytest.skip("no shell was there before")
    (pod,) = watch.of(job)
    for name in ("securityContext", "automountServiceAccountToken", "enableServiceLinks", "serviceAccountName"):
        assert pod.spec[name] == shells[0][name]
    (ours,), (shell,) = pod.spec["containers"], shells[0]["containers"]
    for name in ("image", "securityContext", "volumeMounts", "envFrom", "resources"):
        assert ours[name] == shell[name]
    assert not any("projected" in volume for volume in pod.spec["volumes"])


# --- 4. the network --------------------------------------------------------------------------------------------------


@pytest.fixture
def others(deployed: str, cluster: Cluster) -> Iterator[dict[str, str]]:  # noqa: ARG001
    """Three pods like the job's: `control` and `listener` lack its label, `labelled` has it. Their addresses."""
    template = cluster.template()
    (container,) = template["containers"]
    listen = "import socket, time; s = socket.create_server(('', 8080)); time.sleep(3600)"
    names = ["control", "listener", "labelled"]
    for name in names:
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "habit-notifier"} if name == "labelled" else {}},
            "spec": template | {"containers": [container | {"command": ["python", "-c", listen]}]},
        }
        cluster.here("create", "-f", "-", typed=json.dumps(pod))
    cluster.here("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in names))
    yield {name: cluster.get("pod", name)["status"]["podIP"] for name in names}
    cluster.here("delete", "pod", *names, "--now")


def test_4_the_job_s_pods_reach_names_twilio_and_mysql_and_nothing_else(
    others: dict[str, str], user: User, cluster: Cluster
) -> None:
    twilio, mysql = os.environ["TWILIO_TEST_HOST"], os.environ["MYSQL_TEST_HOST"]
    allowed = {
        "names over UDP": ["udp", "api.twilio.com", 53],
        "names over TCP": ["dns", "api.twilio.com", 53],
        "Twilio": ["tcp", "api.twilio.com", 443],
        "MySQL": ["tcp", mysql, 3306],
    }
    refused = {
        "the API server": ["tcp", "kubernetes.default.svc", 443],
        "another pod": ["tcp", others["listener"], 8080],
        "port 80 of a public address": ["tcp", twilio, 80],
        "port 443 of a private address": ["tcp", mysql, 443],
    }
    everything = allowed | refused
    control = cluster.here("exec", "-i", "control", "--", "sh", typed=probe(everything, expected=[*everything]))
    assert reached(control) == set(everything)
    assert reached(user.inside(probe(everything, expected=[*allowed]))) == set(allowed)


def test_4_nothing_reaches_the_job_s_pods(others: dict[str, str], cluster: Cluster) -> None:
    targets = {name: ["tcp", others[name], 8080] for name in ("listener", "labelled")}
    said = cluster.here("exec", "-i", "control", "--", "sh", typed=probe(targets, expected=["listener"]))
    assert reached(said) == {"listener"}


def probe(targets: dict[str, list[Any]], expected: list[str]) -> str:
    """A shell's input that tries to reach the targets: kind, host and port each."""
    told = {name: [*target, name in expected] for name, target in targets.items()}
    return f"python - {shlex.quote(json.dumps(told))} <<'END'\n{PROBE}\nEND\n"


def reached(said: str) -> set[str]:
    """Which of them were."""
    return {name for name, is_open in json.loads(said.split("PROBE ")[1]).items() if is_open}


# --- 5. failures -----------------------------------------------------------------------------------------------------


def test_5_a_wrong_password_fails_at_once_and_is_not_tried_again(
    due: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    change = """
        read -rs DB_PASSWORD && export DB_PASSWORD
        make secret
        unset DB_PASSWORD
        """
    user.does(change, typed="not the password\n")
    try:
        said = user.does("make test", code=2)
        job = job_in(said)
        assert cluster.outcome(job) == "Failed: PodFailurePolicy"
        assert watch.exits(job) == [2]
        assert "Exit code 2" in said
        assert not outside.texts()
    finally:
        user.does(change, typed=CREDENTIALS["DB_PASSWORD"] + "\n")
    user.does("make test")
    assert outside.texts() == due


def test_5_a_database_that_comes_back_is_waited_for(
    due: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    outside.call("stop_database")
    try:
        run = user.start("make test")
        (job,) = eventually(lambda: working(cluster), 30, "the Job is there")
        eventually(lambda: [pod for pod in watch.of(job) if pod.container], 60, "its container is there")
        time.sleep(10)
        assert outside.call("requests") == 0
    finally:
        outside.call("start_database")
    done = user.ends(run)
    assert (done.code, cluster.outcome(job)) == (0, "Complete"), done.said
    assert re.search("WARNING - Once more in .*MySQL: it cannot be reached", done.said)
    watch.ended(job, [0])
    assert outside.texts() == due


def test_5_a_run_that_cannot_start_is_explained_within_a_minute_and_taken_back(
    due: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    def start() -> tuple[str, subprocess.Popen[str]]:
        before = cluster.names("jobs")
        run = user.start("make test")
        (job,) = eventually(lambda: cluster.names("jobs") - before, 30, "the Job is there")
        return job.removeprefix("job.batch/"), run

    runs = []
    try:
        user.does("make update-image IMAGE_TAG=no-such-tag")
        runs.append((*start(), "ErrImagePull|ImagePullBackOff", "is it pushed"))
        eventually(lambda: watch.of(runs[0][0]), 30, "the first pod is there")
        user.does("make update-image IMAGE_TAG=v1.0.0")
        cluster.here("delete", "secret", "habit-notifier-secrets")
        runs.append((*start(), 'secret "habit-notifier-secrets" not found', "make secret"))
        eventually(lambda: watch.of(runs[1][0]), 30, "the second pod is there")
        cluster.here("create", "quota", "full", "--hard=pods=0")
        runs.append((*start(), "exceeded quota: full", "ResourceQuota"))
        for job, run, trouble, remedy in runs:
            done = user.ends(run, seconds=60)
            assert done.code == 2, done.said
            assert re.search(f"the run cannot start: .*({trouble})", done.said), done.said
            assert re.search(f"^Remedy: .*{remedy}", done.said, flags=re.MULTILINE), done.said
            eventually(lambda name=job: f"job.batch/{name}" not in cluster.names("jobs"), 30, "the Job is taken back")  # type: ignore[misc]
    finally:
        for _, run, *_ in runs:
            run.kill()
        cluster.here("delete", "quota", "full", "--ignore-not-found")
        user.does("make update-image IMAGE_TAG=v1.0.0", code=None)
        user.does("make secret", environ=CREDENTIALS)
    user.does("make test")
    assert outside.texts() == due


def test_5_a_run_that_waits_says_why_and_goes_on_by_itself(
    due: Due, user: User, cluster: Cluster, outside: Outside
) -> None:
    cluster.here("delete", "secret", "habit-notifier-secrets")
    try:
        user.does("kubectl create job --from=cronjob/habit-notifier habit-notifier-waits -n habit-tracker")
        remedy = r".* not found\nRemedy: make secret OVERLAY=tests/e2e/overlay$"
        waits = rf"habit-notifier-waits  waits: CreateContainerConfigError: {remedy}"
        eventually(lambda: re.search(waits, user.does("make status"), re.MULTILINE), 60, "status says why it waits")
        run = user.start("make logs JOB=habit-notifier-waits")
        time.sleep(6)
    finally:
        user.does("make secret", environ=CREDENTIALS)
    done = user.ends(run)
    assert re.search(f"^The pod waits: {remedy}", done.said, re.MULTILINE), done.said
    assert "The Job habit-notifier-waits is complete." in done.said
    assert outside.texts() == due


@pytest.mark.usefixtures("due")
def test_5_a_password_is_rotated_as_the_documents_say(user: User, outside: Outside) -> None:
    new, discard = (sql for sql in blocks("DEPLOYMENT.md", "sql") if re.search("(CURRENT|OLD) PASSWORD", sql))
    (change,) = (steps for steps in blocks("DEPLOYMENT.md", "bash") if "read -rs DB_PASSWORD" in steps)
    keeps_old = "MariaDB" not in outside.call("rows", "SELECT VERSION()")[0][0]
    try:
        if not keeps_old:
            user.does("make stop YES=yes")
        outside.call("administrator", new if keeps_old else new.replace(" RETAIN CURRENT PASSWORD", ""))
        assert "database" in user.does(change, typed="another-long-random-password\n")
        outside.call("administrator", discard if keeps_old else "")
        user.does("make resume")
    finally:
        old = f"ALTER USER '{CREDENTIALS['DB_USER']}'@'%' IDENTIFIED BY '{CREDENTIALS['DB_PASSWORD']}'"
        outside.call("administrator", old)
        user.does("make secret", environ=CREDENTIALS)


def test_5_credentials_that_turn_wrong_are_named_and_the_rest_is_served_later(
    due: Due, user: User, outside: Outside, watch: Watch
) -> None:
    remedy = r"0 uncertain\n    Twilio: the credentials were refused: correct TWILIO_ACCOUNT_SID and "
    told = []
    for good_requests, some in ((0, False), (8, True)):
        outside.call("twilio", "spoil_credentials", {"after": good_requests})
        job = job_in(user.does("make test", code=2))
        sent = outside.texts().total()
        assert (watch.exits(job), sent > 0, sent < due.total()) == ([2], some, True)
        told.append(rf"  {job}  failed \(PodFailurePolicy\), exit code 2: {sent} sent, \d+ failed, {remedy}")
    status = user.does("make status")
    assert all(re.search(words, status) for words in told), status
    outside.call("twilio", "spoil_credentials", {"after": 10**6})
    user.does("make test")
    assert outside.texts() == due


def test_5_a_twilio_that_fails_for_everybody_fails_the_job_and_nobody_is_texted_twice(
    due: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    before = cluster.get("cronjob", "habit-notifier")["status"].get("lastSuccessfulTime")
    outside.call("twilio", "script", {"then": {"kind": "server_error_after_accepting"}})
    job = job_in(user.does("make test", code=2))
    watch.ended(job, [1, 1, 1])
    assert cluster.outcome(job) == "Failed: BackoffLimitExceeded"
    assert cluster.get("cronjob", "habit-notifier")["status"].get("lastSuccessfulTime") == before
    assert outside.texts() == due
    count = due.total()
    words = rf"  {job}  failed \(BackoffLimitExceeded\), exit code 1: 0 sent, {count} failed, {count} uncertain\n    "
    assert re.search(rf"{words}.*see https://status\.twilio\.com", user.does("make status"))


def test_5_a_clock_that_is_wrong_keeps_a_run_from_texting_until_it_is_mended(
    due: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    outside.call("twilio", "travel_to", {"instant": str(datetime.now(UTC) - timedelta(hours=5))})
    run = user.start("make test")
    (job,) = eventually(lambda: working(cluster), 30, "the Job is there")
    watch.ended(job, [1], seconds=60)
    assert not outside.texts()
    outside.call("twilio", "travel_to", {"instant": str(datetime.now(UTC))})
    done = user.ends(run)
    assert (done.code, cluster.outcome(job)) == (0, "Complete"), done.said
    assert re.search("ERROR - this node's clock is wrong: .* mend its time synchronisation", done.said)
    assert outside.texts() == due


@pytest.mark.usefixtures("deployed")
def test_5_resume_says_that_a_missed_run_starts_at_once(user: User, cluster: Cluster) -> None:
    jobs = cluster.names("jobs")
    user.does("make suspend")
    try:
        due = datetime.now(UTC) + timedelta(seconds=70 if datetime.now(UTC).second > 50 else 60)
        user.edit("k8s/cronjob.yaml", schedule=f'"{due.minute} {due.hour} * * *"')
        user.does("make deploy")
        time.sleep((due.replace(second=2) - datetime.now(UTC)).total_seconds())
        assert f"The run of {due:%H:%M} UTC was missed: it starts at once, and texts people." in user.does(
            "make resume"
        )
        eventually(lambda: cluster.names("jobs") - jobs, 30, "it does")
    finally:
        user.quiet()
        user.does("make deploy")
        user.does("make resume")


# --- 6. interruptions ------------------------------------------------------------------------------------------------


def working(cluster: Cluster) -> list[str]:
    """The Jobs that have not ended."""
    jobs = [name.removeprefix("job.batch/") for name in cluster.names("jobs")]
    return [job for job in jobs if not cluster.outcome(job)]


@pytest.fixture
def slow(due: Due, outside: Outside) -> Iterator[Due]:
    """The same day with a slow Twilio: there is time in the middle of the sends."""
    outside.call("latency", 3.0)
    yield due
    outside.call("latency", 0.0)


def in_the_middle(outside: Outside, due: Due) -> None:
    """Wait until some texts are out and others are not."""
    eventually(lambda: len(outside.call("book")) > CONCURRENCY, 60, "the second handful of texts is out")
    assert len(outside.call("book")) < due.total()


def test_6_a_drained_node_ends_the_run_in_order_and_the_replacement_goes_on(
    slow: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    run = user.start("make test")
    in_the_middle(outside, slow)
    (job,) = working(cluster)
    node = watch.of(job)[0].spec["nodeName"]
    try:
        # Of a node that others use too, only our pods: as on a cluster with more nodes, they do not come back to it.
        cluster.kubectl("drain", node, "--delete-emptydir-data", "--pod-selector=app=habit-notifier", "--timeout=60s")
        assert outside.ledger()["sending"] == 0
    finally:
        cluster.kubectl("uncordon", node)
        outside.call("latency", 0.0)
    done = user.ends(run)
    assert (done.code, cluster.outcome(job)) == (0, "Complete"), done.said
    assert "--- replaced by" in done.said
    sids = re.findall(r"Message SID: (\w+)", done.said)
    assert len(sids) == len(set(sids)) > 0, "each line is printed once"
    first, _ = watch.ended(job, [143, 0])
    assert first.disrupted
    assert not cluster.get("job", job)["status"].get("failed"), "an eviction counts as no attempt"
    assert outside.texts() == slow
    assert outside.ledger() == {"sent": slow.total(), "refused": 1}


def test_6_a_pod_deleted_by_hand_is_replaced_and_nobody_texted_twice(
    slow: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    run = user.start("make test")
    in_the_middle(outside, slow)
    (job,) = working(cluster)
    cluster.here("delete", "pod", watch.of(job)[0].name, "--wait=false")
    eventually(lambda: watch.exits(job)[0] is not None, 60, "the first pod ends")
    outside.call("latency", 0.0)
    done = user.ends(run)
    assert (done.code, cluster.outcome(job)) == (0, "Complete"), done.said
    watch.ended(job, [143, 0])
    sids = re.findall(r"Message SID: (\w+)", done.said)
    assert len(sids) == len(set(sids)) > 0, "each line is printed once"
    assert outside.texts() == slow


def test_6_stop_ends_a_run_in_order_and_the_next_one_goes_on(
    slow: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    run = user.start("make test")
    in_the_middle(outside, slow)
    (job,) = working(cluster)
    assert "make stop OVERLAY=tests/e2e/overlay YES=yes" in user.does("make stop", code=2)
    said = user.does("make stop YES=yes")
    assert "nothing is at work" in said
    assert (cluster.get("job", job), cluster.cronjob()["suspend"]) == (None, True)
    assert [pod.exit for pod in watch.of(job)] == [143]
    assert outside.ledger()["sending"] == 0
    assert f"somebody deleted the job {job}" in user.ends(run).said
    served = outside.texts()
    assert 0 < served.total() < slow.total()
    outside.call("latency", 0.0)
    user.does("make resume")
    user.does("make test")
    assert outside.texts() == slow


def test_6_kubectl_alone_suspends_and_ends_a_run_in_order(
    slow: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    cluster.here("create", "job", "habit-notifier-28123456", "--from=cronjob/habit-notifier")
    in_the_middle(outside, slow)
    user.does("""kubectl patch cronjob habit-notifier -n habit-tracker -p '{"spec": {"suspend": true}}'""")
    user.does("kubectl delete job -n habit-tracker habit-notifier-28123456")
    watch.ended("habit-notifier-28123456", [143], seconds=90)
    assert outside.ledger()["sending"] == 0
    assert cluster.cronjob()["suspend"] is True
    user.does("make resume")


@pytest.mark.skipif(
    not os.environ.get("NODE_KILL"), reason="NODE_KILL is not set: tests/e2e/README.md tells what it is"
)
def test_6_a_real_kill_leaves_nobody_with_a_second_text(
    slow: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    run = user.start("make test")
    in_the_middle(outside, slow)
    (job,) = working(cluster)
    user.does(f"{os.environ['NODE_KILL']} {watch.of(job)[0].container.split('://')[1]}")
    outside.call("latency", 0.0)
    done = user.ends(run)
    assert (done.code, cluster.outcome(job)) == (0, "Complete"), done.said
    watch.ended(job, [137, 0])
    states = outside.ledger()
    assert 0 < states["sending"] <= CONCURRENCY + CONCURRENCY // 2
    assert states["sent"] + states["sending"] + states["refused"] == slow.total() + 1
    texts = outside.texts()
    assert texts <= slow, "nobody twice"
    assert (slow - texts).total() <= states["sending"]

    # Twenty minutes later, as the ledger has it, the program asks Twilio about those whose end it does not know.
    later = "UPDATE HabitNotification SET claimed_at = claimed_at - INTERVAL 20 MINUTE WHERE state = 'sending'"
    outside.call("administrator", later)
    said = user.does("echo 'python /app/habit_notifier.py --settle' | make shell")
    assert f"Looked up {states['sending']} earlier texts" in said
    assert outside.texts() == texts


def test_6_a_run_ends_itself_at_its_deadline_and_the_next_attempt_goes_on(
    slow: Due, user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    patch = ["patch", "configmap", "habit-notifier-config", "--patch"]
    cluster.here(*patch, '{"data": {"RUN_DEADLINE": "5"}}')
    try:
        run = user.start("make test")
        (job,) = eventually(lambda: working(cluster), 30, "the Job is there")
        watch.ended(job, [1], seconds=60)
        served = outside.texts()
    finally:
        cluster.here(*patch, '{"data": {"RUN_DEADLINE": null}}')  # a deploy leaves what it did not make
        outside.call("latency", 0.0)
    done = user.ends(run)
    assert (done.code, cluster.outcome(job)) == (0, "Complete"), done.said
    assert 0 < served.total() < slow.total()
    assert outside.texts() == slow
    assert outside.ledger() == {"sent": slow.total(), "refused": 1}


TOO_LITTLE = {"name": "habit-notifier", "resources": {"limits": {"memory": "20Mi"}, "requests": {"memory": "20Mi"}}}


@pytest.mark.parametrize(
    ("patch", "told", "status"),
    [
        pytest.param(
            {"activeDeadlineSeconds": 6},
            r'failed \(DeadlineExceeded\)\. Its log is gone: see "A Job without a log"',
            r"failed \(DeadlineExceeded\), its pods are gone$",
            id="deadline",
        ),
        pytest.param(
            {"backoffLimit": 0, "template": {"spec": {"containers": [TOO_LITTLE]}}},
            r"^OOMKilled: .*\nRemedy: raise limits\.memory",
            r"failed \(BackoffLimitExceeded\), exit code 137\n    OOMKilled: .*\nRemedy: raise limits\.memory",
            id="memory",
        ),
    ],
)
def test_6_what_the_program_cannot_tell_of_its_end_is_told_with_the_remedy(
    patch: dict[str, Any], told: str, status: str, slow: Due, user: User, cluster: Cluster, outside: Outside
) -> None:
    spec = json.dumps({"spec": {"jobTemplate": {"spec": patch}}})
    cluster.here("patch", "cronjob", "habit-notifier", "--patch", spec)
    try:
        said = user.does("make test", code=2)
        assert re.search(told, said, re.MULTILINE), said
        assert re.search(f"  {job_in(said)}  {status}", user.does("make status"), re.MULTILINE)
    finally:
        user.does("make deploy")
    assert outside.texts() <= slow


# --- 7. shards -------------------------------------------------------------------------------------------------------


@pytest.fixture
def crowd(due: Due, user: User, outside: Outside) -> Iterator[Due]:
    """A day on which the component is on and many are due, of whom each shard texts a few at a time."""
    files = {name: (user.clone / name).read_text() for name in ("k8s/kustomization.yaml", "k8s/configmap.yaml")}
    for name, text in files.items():
        on = re.sub(r"# (components:\n)(?:#.*\n)*# ( +- components/sharded\n)", r"\1\2", text)
        on = on.replace('# SEND_CONCURRENCY: "8"', f'SEND_CONCURRENCY: "{FEW}"')
        assert on != text
        (user.clone / name).write_text(on)
    try:
        user.does("make deploy")
        yield due + Counter(outside.newcomer() for _ in range(70))
    finally:
        outside.call("latency", 0.0)
        for name, text in files.items():
            (user.clone / name).write_text(text)
        user.does("make deploy")


@pytest.fixture
def shards(crowd: Due, outside: Outside) -> list[Due]:
    """The same people, by shard."""
    found = outside.shards(SHARDS)
    assert sum(found, Due()) == crowd
    return found


def phones(shards: list[Due], which: int) -> list[str]:
    """The numbers that only this shard texts: two accounts may have one number."""
    others = {phone for n, shard in enumerate(shards) if n != which for phone, _ in shard}
    return [phone for phone, _ in shards[which] if phone not in others]


def test_7_shards_share_the_users_out_and_each_looks_up_its_own(
    crowd: Due, shards: list[Due], user: User, outside: Outside, watch: Watch
) -> None:
    said = user.does("make test")
    job = job_in(said)
    assert outside.texts() == crowd
    assert outside.ledger() == {"sent": crowd.total(), "refused": 1}
    assert watch.exits_by_shard(job) == [[0]] * SHARDS
    logs = dict(re.findall(r"^--- shard (\d): (?s:(.*?))(?=^--- |^The Job)", said, flags=re.MULTILINE))
    assert {int(n): summary(log)[0] for n, log in logs.items()} == {n: s.total() for n, s in enumerate(shards)}
    assert all("earlier texts to look up" in log for log in logs.values())
    assert re.search(rf"^\S+Z  {job}  complete", user.does("make status"), flags=re.MULTILINE)
    assert summary(user.does("make test")) == (0, 0)
    assert outside.texts() == crowd


def test_7_a_shard_that_fails_is_tried_again_alone_and_twice_at_most(
    crowd: Due, shards: list[Due], user: User, outside: Outside, watch: Watch
) -> None:
    patience = {"kind": "throttle", "retry_after": 3600}
    outside.call("script", phones(shards, 1)[:1], patience)
    outside.call("script", phones(shards, 2)[:1], patience, patience, patience)
    said = user.does("make test", code=2)
    assert watch.exits_by_shard(job_in(said)) == [[0], [1, 0], [1, 1, 1], [0]]
    assert [said.count(f"--- shard {n}: ") for n in range(SHARDS)] == [1, 2, 3, 1]
    assert "(FailedIndexes: 2). Exit code 1" in said
    texts = outside.texts()
    assert all(shard <= texts for n, shard in enumerate(shards) if n != 2)
    assert not shards[2] <= texts

    user.does("make test")
    assert outside.texts() == crowd
    assert outside.ledger() == {"sent": crowd.total(), "refused": 1}


@pytest.mark.skipif(
    not os.environ.get("NODE_KILL"), reason="NODE_KILL is not set: tests/e2e/README.md tells what it is"
)
def test_7_a_killed_shard_leaves_nobody_with_a_second_text_and_the_others_at_work(
    crowd: Due, shards: list[Due], user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    outside.call("latency", 3.0)
    run = user.start("make test")
    eventually(lambda: (outside.texts() & shards[3]).total() > FEW, 60, "the shard's second handful is out")
    (job,) = working(cluster)
    (pod,) = (pod for pod in watch.of(job) if pod.shard == 3)
    user.does(f"{os.environ['NODE_KILL']} {pod.container.split('://')[1]}")
    outside.call("latency", 0.0)
    done = user.ends(run)
    assert (done.code, cluster.outcome(job)) == (0, "Complete"), done.said
    assert watch.exits_by_shard(job) == [[0], [0], [0], [137, 0]]
    states, texts = outside.ledger(), outside.texts()
    assert 0 < states["sending"] <= FEW + FEW // 2
    assert states["sent"] + states["sending"] + states["refused"] == crowd.total() + 1
    assert texts <= crowd, "nobody twice"
    assert (crowd - texts).total() <= states["sending"]
    assert crowd - texts <= shards[3]

    later = "UPDATE HabitNotification SET claimed_at = claimed_at - INTERVAL 20 MINUTE WHERE state = 'sending'"
    outside.call("administrator", later)
    said = user.does("echo 'python /app/habit_notifier.py --settle' | make shell")
    assert f"Looked up {states['sending']} earlier texts" in said


def test_7_a_shard_that_needs_a_person_stops_all_of_them_in_order(
    crowd: Due, shards: list[Due], user: User, cluster: Cluster, outside: Outside, watch: Watch
) -> None:
    refused, everybody = phones(shards, 2), [phone for phone, _ in crowd]
    outside.call("script", everybody, {"kind": "slow_to_answer", "after": 5.0})
    outside.call("script", refused, {"kind": "refuse", "code": 20003, "status": 401, "after": 3.0})
    said = user.does("make test", code=2)
    job = job_in(said)
    assert cluster.outcome(job) == "Failed: PodFailurePolicy"
    assert "Exit code 2" in said
    assert watch.exits_by_shard(job) == [[143], [143], [2], [143]]
    assert outside.ledger()["sending"] == 0
    assert outside.texts().total() < crowd.total()

    outside.call("script", everybody)
    user.does("make test")
    assert outside.texts() == crowd


# --- 8. looking, and cleaning up -------------------------------------------------------------------------------------


def test_8_preflight_dry_run_and_explain_text_nobody_and_leave_nothing(
    due: Due, user: User, cluster: Cluster, outside: Outside
) -> None:
    newest = user.does("make logs", code=None)
    before = cluster.names("jobs,pods")
    user.does("make preflight")
    said = user.does("make dry-run")
    assert all(phone in said for phone, _ in due)
    user_id = outside.an_id()
    assert f"{user_id}" in user.does(f"make explain USER_ID={user_id}")
    assert "Error 1" in user.does("make explain USER_ID=987654321", code=2)
    assert not outside.texts()
    assert not outside.ledger()
    eventually(lambda: cluster.names("jobs,pods") <= before, 60, "their pods are gone")
    assert user.does("make logs", code=None) == newest


def test_8_a_question_without_make_is_no_run(due: Due, user: User, cluster: Cluster, outside: Outside) -> None:
    said = user.does(
        """
        kubectl create job habit-check --from=cronjob/habit-notifier -n habit-tracker --dry-run=client -o json \
          | kubectl patch --local -f - -o json -p '{"metadata": {"ownerReferences": null}, "spec": {"completions": 1, \
          "parallelism": 1, "template": {"spec": {"containers": [{"name": "habit-notifier", "args": ["--check"], \
          "env": [{"name": "SHARD_COUNT", "value": "1"}]}]}}}}' \
          | kubectl create -f -
        until kubectl logs -n habit-tracker -f job/habit-check; do sleep 2; done
        """
    )
    assert "settings: ok" in said
    assert "ownerReferences" not in cluster.get("job", "habit-check")["metadata"]
    user.does("kubectl delete job -n habit-tracker habit-check")
    assert due
    assert not outside.texts()


@pytest.mark.usefixtures("due")
def test_8_preflight_ends_as_the_check_does(user: User) -> None:
    user.does("make secret", environ={"DB_PASSWORD": "wrong"})
    try:
        assert "Error 2" in user.does("make preflight", code=2)
    finally:
        user.does("make secret", environ=CREDENTIALS)


@pytest.mark.usefixtures("due")
@pytest.mark.parametrize(
    ("name", "value"), [("DB_PORT", "3307"), ("DB_HOST", "no-such.example.internal"), ("DB_NAME", "no_such_database")]
)
def test_8_preflight_names_the_setting_that_is_wrong(user: User, cluster: Cluster, name: str, value: str) -> None:
    cluster.here("patch", "configmap", "habit-notifier-config", "--patch", json.dumps({"data": {name: value}}))
    try:
        assert name in user.does("make preflight", code=2)
    finally:
        user.does("make deploy")


@pytest.mark.usefixtures("due")
def test_8_preflight_says_that_names_are_not_found(user: User, cluster: Cluster) -> None:
    no_dns = json.dumps([{"op": "remove", "path": "/spec/egress/0"}])
    cluster.here("patch", "networkpolicy", "habit-notifier", "--type=json", "--patch", no_dns)
    try:
        assert re.search("DNS|networkpolicy|NetworkPolicy", user.does("make preflight", code=2))
    finally:
        user.does("make deploy")


@pytest.mark.usefixtures("deployed")
def test_8_the_pod_of_a_question_goes_when_it_cannot_start_or_is_interrupted(user: User, cluster: Cluster) -> None:
    mine = "--selector=habit-notifier/purpose=dry-run"
    cluster.here("delete", "secret", "habit-notifier-secrets")
    try:
        said = user.does("make dry-run", code=2)
        assert re.search(r"the pod does not start: .*not found\nRemedy: make secret", said), said
        eventually(lambda: not cluster.names("pods", mine), 30, "the first pod is gone")
        run = user.start("exec make dry-run")
        eventually(lambda: cluster.names("pods", mine), 30, "the second pod is there")
        subprocess.run(["pkill", "-INT", "-P", str(run.pid)], check=True)
        user.ends(run)
        eventually(lambda: not cluster.names("pods", mine), 30, "the second pod is gone")
    finally:
        user.does("make secret", environ=CREDENTIALS)


def test_8_logs_status_and_events_show_the_newest_run(due: Due, user: User, cluster: Cluster) -> None:
    job = job_in(user.does("make test"))
    assert f"Job {job}, made " in user.does("make logs")
    status = user.does("make status")
    words = rf"^\S+Z  {job}  complete: {due.total()} sent, 1 failed, 0 uncertain$"
    assert re.search(words, status, flags=re.MULTILINE), status
    assert cluster.get("cronjob", "habit-notifier")["status"]["lastSuccessfulTime"] in status
    assert job in user.does("make events")
    assert "there is no Job nope in namespace" in user.does("make logs JOB=nope", code=2)


def test_8_the_readme_s_kubectl_commands_show_the_runs(due: Due, user: User, cluster: Cluster) -> None:
    user.does("kubectl create job --from=cronjob/habit-notifier habit-notifier-manual -n habit-tracker")
    eventually(lambda: cluster.outcome("habit-notifier-manual"), 60, "the run ends")
    assert summary(user.does("kubectl logs -n habit-tracker -l job-name=habit-notifier-manual -f --tail=-1")) == (
        due.total(),
        1,
    )
    assert "habit-notifier" in user.does("kubectl get cronjob -n habit-tracker")
    jobs = user.does("kubectl get jobs -n habit-tracker --sort-by=.metadata.creationTimestamp")
    assert jobs.splitlines()[-1].startswith("habit-notifier-manual ")
    assert "Notifications sent" in user.does("kubectl logs -n habit-tracker -l app=habit-notifier --tail=100")
    assert "Notifications sent" in user.does(
        "kubectl logs -n habit-tracker -l app=habit-notifier -f --max-log-requests=500"
    )
    pod = next(line.split()[0] for line in user.does("kubectl get pods -n habit-tracker").splitlines()[1:])
    assert "Exit Code:" in user.does("kubectl describe pod <pod-name> -n habit-tracker".replace("<pod-name>", pod))
    user.does("kubectl logs <pod-name> -n habit-tracker".replace("<pod-name>", pod))


def test_8_who_may_only_look_sees_status_logs_and_events(
    due: Due, user: User, cluster: Cluster, tmp_path: Path
) -> None:
    user.does("make test")
    role, _ = (ROOT / "k8s/components/viewers/viewers.yaml").read_text().split("\n---\n")
    cluster.kubectl("apply", "-f", "-", typed=role)
    cluster.here("create", "rolebinding", "viewer", "--role=habit-notifier-viewer", "--user=viewer")
    config = json.loads(cluster.kubectl("config", "view", "--raw", "--flatten", "--output=json"))
    for each in config["users"]:
        each["user"]["as"] = "viewer"
    (tmp_path / "viewer").write_text(json.dumps(config))
    viewer = {"KUBECONFIG": str(tmp_path / "viewer")}
    assert "  complete" in user.does("make status", environ=viewer)
    assert summary(user.does("make logs", environ=viewer)) == (due.total(), 1)
    assert "SuccessfulCreate" in user.does("make events", environ=viewer)
    assert "cannot patch" in user.does("make suspend", code=2, environ=viewer)
    cluster.here("delete", "rolebinding", "viewer")
    cluster.here("delete", "role", "habit-notifier-viewer")


def test_8_clean_jobs_deletes_finished_runs_and_leaves_one_at_work(
    slow: Due, user: User, cluster: Cluster, outside: Outside
) -> None:
    outside.call("latency", 0.0)
    finished = job_in(user.does("make test"))
    outside.morning()
    outside.call("latency", 3.0)
    run = user.start("make test")
    in_the_middle(outside, slow)
    assert finished in user.does("make clean-jobs")
    assert len(cluster.names("jobs")) == len(working(cluster)) == 1
    outside.call("latency", 0.0)
    done = user.ends(run)
    assert done.code == 0, done.said
    user.does("make clean-jobs")
    assert cluster.names("jobs,pods") == set()


def test_8_undeploy_keeps_namespace_and_secret_and_purge_takes_them(
    due: Due, user: User, cluster: Cluster, outside: Outside
) -> None:
    user.does("make test")
    before = cluster.secret()
    assert "PURGE=yes" in user.does("make undeploy")
    kinds = "cronjobs,jobs,pods,networkpolicies,configmaps,serviceaccounts,services,secrets"
    left = cluster.names(kinds) - {"configmap/kube-root-ca.crt", "serviceaccount/default"}
    assert left == {"secret/habit-notifier-secrets"}
    assert cluster.secret() == before
    user.does("make undeploy PURGE=yes")
    assert f"namespace/{NAMESPACE}" not in cluster.names("namespaces")
    assert outside.ledger()["sent"] == due.total()
    assert outside.texts() == due
