"""hack/: what the targets of cluster.py do to a cluster and say of it, on a fake one, within this process."""

from __future__ import annotations

import base64
import copy
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from hack import cluster as script
from hack import credentials, runs
from hack import kubectl as transport
from tests.project.fake_kubectl import START, FakeKubectl, condition, container, cronjob, ended, secret, text_of
from tests.project.manifests import K8S
from tests.project.shell import ROOT, project_in

SECRETS = {
    "DB_USER": "notifier",
    "DB_PASSWORD": 'it\'s "a" $ecret#1',
    "TWILIO_ACCOUNT_SID": "AC" + "0" * 32,
    "TWILIO_AUTH_TOKEN": "t0ken",
}
API_KEY = {"TWILIO_API_KEY_SID": "SK" + "1" * 32, "TWILIO_API_KEY_SECRET": "s3cret"}
JOB = "habit-notifier-29123"
REAL_RUN = transport.run


@dataclass
class Done:
    code: int
    out: str
    err: str


@dataclass
class Cluster(FakeKubectl):
    """A cluster, and who works on it with make."""

    capsys: Any = None
    root: Path = ROOT

    def operate(self, target: str, **variables: str) -> Done:
        """Run a target with variables; what it said."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(script, "__file__", str(self.root / "hack/cluster.py"))
            code = script.main(target)
        said = self.capsys.readouterr()
        return Done(code, said.out, said.err)

    def does(self, target: str, **variables: str) -> str:
        """The same, and it goes well; what it printed."""
        done = self.operate(target, **variables)
        assert done.code == 0, done.err
        return done.out

    def refuses(self, target: str, **variables: str) -> str:
        """The same, and it is refused; why."""
        done = self.operate(target, **variables)
        assert done.code == 1, done.out
        return done.err


class Clock(datetime):
    """The present, which the fake's time moves."""

    fake: FakeKubectl

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return START.astimezone(tz) + timedelta(seconds=cls.fake.now)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cluster]:
    """A cluster with nothing in it but the namespace; nobody is at the keyboard."""
    fake = Cluster(capsys=capsys)
    fake.add("Namespace", "habit-tracker")
    for module in (transport, script):
        monkeypatch.setattr(module, "run", fake.run)
    monkeypatch.setattr(runs, "lines", fake.lines)
    monkeypatch.setattr(time, "sleep", fake.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: fake.now)
    monkeypatch.setattr(Clock, "fake", fake, raising=False)
    for module in (script, runs):
        monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    read = [*SECRETS, *API_KEY, "CONTEXT", "NAMESPACE", "OVERLAY", "IMAGE_NAME", "IMAGE_TAG", "FILE", "JOB", "PURGE"]
    for name in [*read, "SUSPEND", "YES", "USER_ID"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    yield fake
    for each, handler in handlers.items():
        signal.signal(each, handler)


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Somebody types these answers; the questions they saw."""

    def answers(*typed: str) -> list[str]:
        left, asked = iter(typed), []

        def answer(question: str = "") -> str:
            asked.append(question)
            return next(left)

        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr(credentials, "getpass", answer)
        return asked

    return answers


@pytest.fixture
def cluster(bare: Cluster) -> Cluster:
    """With the CronJob in it."""
    bare.objects.append(cronjob())
    return bare


@pytest.fixture
def configured(bare: Cluster, tmp_path: Path) -> Cluster:
    """That of a project whose placeholders are filled in, but for the image."""
    bare.root = project_in(tmp_path)
    return bare


@pytest.fixture
def ready(configured: Cluster) -> Cluster:
    """With the Secret in it, too."""
    configured.objects.append(secret(SECRETS))
    return configured


def edit(cluster: Cluster, file: str, before: str, after: str) -> None:
    path = cluster.root / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def configure(cluster: Cluster, line: str) -> None:
    """One more value in the project's ConfigMap."""
    edit(cluster, "k8s/configmap.yaml", "\ndata:\n", f"\ndata:\n  {line}\n")


def sent_values(fake: FakeKubectl) -> dict[str, str]:
    """The values that were sent for the Secret."""
    (data,) = (each["data"] for each in fake.sent if each.get("kind", "Secret") == "Secret" and "data" in each)
    return {name: base64.b64decode(value).decode() for name, value in data.items() if value is not None}


# --- secret -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_secret_takes_a_file_of_variables(cluster: Cluster, tmp_path: Path, quote: str) -> None:
    file = tmp_path / "filled.env"
    lines = [f"export {name}={quote}{value}{quote}" for name, value in SECRETS.items()]
    file.write_text("# comment\n\n" + "\r\n".join(lines), newline="")
    cluster.does("secret", FILE="~/filled.env", HOME=str(tmp_path), DB_PASSWORD="not this one")
    assert sent_values(cluster) == SECRETS


def test_secret_takes_the_filled_template(cluster: Cluster, tmp_path: Path) -> None:
    text = (K8S / "secret.yaml").read_text()
    text = re.sub(r"^# ?", "", text[text.index("# apiVersion:") :], flags=re.MULTILINE)
    for name, value in SECRETS.items():
        text = re.sub(rf"(?<=\n  {name}: ).*", json.dumps(value).replace("\\", r"\\"), text)
    file = tmp_path / "secret.yaml"
    file.write_text(text)
    cluster.does("secret", FILE=str(file))
    assert sent_values(cluster) == SECRETS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("DB_PASSWROD=x\n", "'DB_PASSWROD' is none of these: DB_USER DB_PASSWORD"),
        ("DB_PASSWORD x\n", "'DB_PASSWORD x' is none of these"),
        ("kind: Secret\napiVersion: v1\nstringData: {OTHER: x}\nmetadata: {name: x}\n", "'OTHER' is none of these"),
        ("kind: Secret\napiVersion: v1\nstringData: {DB_PASSWORD: 12}\n", "Put quotes around DB_PASSWORD"),
        ("kind: Secret\napiVersion: v1\ndata: {DB_PASSWORD: a}\nmetadata: {name: x}\n", "that can be read"),
        ("kind: Secret\napiVersion: v1\nmetadata: {name: x}\n---\n" * 2, "that can be read"),
        ("kind: Secret\nstringData: [\n", "kubectl does not understand it"),
    ],
)
def test_secret_refuses_a_file_with_anything_else(cluster: Cluster, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "file").write_text(text)
    assert told in cluster.refuses("secret", FILE=str(tmp_path / "file"))
    assert not cluster.sent


def test_secret_changes_only_what_is_new(cluster: Cluster) -> None:
    cluster.objects.append(secret({**SECRETS, "HEARTBEAT_URL": "https://example.com"}))
    out = cluster.does("secret", DB_PASSWORD="new")
    assert sent_values(cluster) == {"DB_PASSWORD": "new"}
    assert "patch secret habit-notifier-secrets --type=merge --patch-file=/dev/stdin" in cluster.calls[-1]
    assert set(cluster.of("Secret")[0]["data"]) == {*SECRETS, "HEARTBEAT_URL"}
    assert "set DB_PASSWORD. What else it holds stays." in out


@pytest.mark.parametrize(
    ("before", "given", "removed"),
    [
        (SECRETS, API_KEY, {"TWILIO_AUTH_TOKEN": None}),
        (SECRETS | API_KEY, {"TWILIO_AUTH_TOKEN": "t"}, dict.fromkeys(API_KEY)),
        ({k: v for k, v in SECRETS.items() if "TOKEN" not in k} | API_KEY, API_KEY, {}),
    ],
)
def test_one_kind_of_credentials_replaces_the_other_and_says_so(
    cluster: Cluster, before: dict[str, str], given: dict[str, str], removed: dict[str, None]
) -> None:
    cluster.objects.append(secret(before))
    out = cluster.does("secret", **given)
    assert {name: value for name, value in cluster.sent[-1]["data"].items() if value is None} == removed
    assert ("Removed " + " ".join(removed) + ":" in out) is bool(removed)


TWO_HALVES = "two halves: set TWILIO_API_KEY_SID and TWILIO_API_KEY_SECRET, or none"
MISSING = (
    "missing: DB_PASSWORD TWILIO_ACCOUNT_SID TWILIO_AUTH_TOKEN. Set them in the environment, or name a file with lines "
    "NAME=value: make secret FILE="
)


@pytest.mark.parametrize(
    ("held", "given", "told"),
    [
        *((SECRETS, {half: value}, TWO_HALVES) for half, value in API_KEY.items()),
        ({}, SECRETS | API_KEY, "TWILIO_AUTH_TOKEN and TWILIO_API_KEY_SECRET are both set"),
        ({}, {"DB_USER": "u", "DB_PASSWORD": ""}, MISSING),
        (SECRETS | {"DB_USER": "your-db-user"}, {"DB_PASSWORD": "new"}, "missing: DB_USER."),
        (SECRETS, {}, "nothing to change: set the variables that are new"),
        ({}, {"FILE": "/nowhere"}, "there is no file /nowhere that can be read"),
    ],
    ids=["half a key", "the other half", "both kinds", "missing", "a placeholder there", "nothing new", "no file"],
)
def test_secret_refuses_what_makes_no_credentials_and_says_what_is_wrong(
    cluster: Cluster, held: dict[str, str], given: dict[str, str], told: str
) -> None:
    cluster.objects += [secret(held)] if held else []
    assert told in cluster.refuses("secret", **given)
    assert not cluster.sent


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TWILIO_AUTH_TOKEN", "your-token", "TWILIO_AUTH_TOKEN is still the placeholder"),
        ("TWILIO_ACCOUNT_SID", "AC123", "TWILIO_ACCOUNT_SID is not AC and 32 hexadecimal digits"),
        ("TWILIO_ACCOUNT_SID", "SK" + "0" * 32, "TWILIO_ACCOUNT_SID is not AC and 32 hexadecimal digits"),
        ("TWILIO_API_KEY_SID", "AC" + "0" * 32, "TWILIO_API_KEY_SID is not SK and 32 hexadecimal digits"),
        ("HEARTBEAT_URL", "https://hc-ping.com/key/slug?create=1", "HEARTBEAT_URL is no https:// URL"),
        ("HEARTBEAT_URL", "http://hc.example.com/abc", "HEARTBEAT_URL is no https:// URL"),
    ],
)
def test_secret_checks_formats_as_the_program_does(cluster: Cluster, name: str, value: str, told: str) -> None:
    assert told in cluster.refuses("secret", **SECRETS | {name: value})
    assert not cluster.sent


def test_typing_offers_the_api_key_and_asks_again_for_what_is_wrong(
    cluster: Cluster, keyboard: Callable[..., list[str]]
) -> None:
    sid, key = SECRETS["TWILIO_ACCOUNT_SID"], API_KEY["TWILIO_API_KEY_SID"]
    asked = keyboard("u", "", "p", "your-sid", "AC1", sid, "SK1", key, "s3cret")
    out = cluster.does("secret")
    assert sent_values(cluster) == {"DB_USER": "u", "DB_PASSWORD": "p", "TWILIO_ACCOUNT_SID": sid, **API_KEY}
    assert [question.split()[0].rstrip(":") for question in asked] == [
        "DB_USER", "DB_PASSWORD", "DB_PASSWORD", *["TWILIO_ACCOUNT_SID"] * 3, *["TWILIO_API_KEY_SID"] * 2,
        "TWILIO_API_KEY_SECRET",
    ]  # fmt: skip
    assert "DB_PASSWORD is needed. Once more." in out


def test_no_api_key_typed_is_the_auth_token(cluster: Cluster, keyboard: Callable[..., list[str]]) -> None:
    asked = keyboard("", "t0ken")
    rest = {name: value for name, value in SECRETS.items() if name != "TWILIO_AUTH_TOKEN"}
    cluster.does("secret", **rest)
    assert sent_values(cluster) == SECRETS
    assert "empty: the auth token" in asked[0]


# --- deploy and update-image ------------------------------------------------------------------------------------------


def applied(fake: FakeKubectl) -> dict[str, Any]:
    """What the last apply sent, by kind."""
    return {each["kind"]: each for each in fake.sent[-1]["items"]}


def test_deploy_tells_all_that_is_missing_at_once_and_applies_nothing(bare: Cluster) -> None:
    err = bare.refuses("deploy")
    for said in (
        "DB_HOST (your-mysql-host)", "TWILIO_FROM_NUMBER (your-twilio-number)", "k8s/configmap.yaml",
        "still the placeholder your-registry/habit-notifier", "no Secret habit-notifier-secrets", "make secret",
    ):  # fmt: skip
        assert said in err
    assert not bare.sent


def test_deploy_tells_placeholders_and_gaps_in_the_secret(configured: Cluster) -> None:
    configured.objects.append(secret({**SECRETS, "DB_USER": "your-db-user", "TWILIO_AUTH_TOKEN": ""}))
    err = configured.refuses("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert "still has placeholders: DB_USER." in err
    assert "has no TWILIO_AUTH_TOKEN." in err


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ({**SECRETS, **API_KEY, "TWILIO_AUTH_TOKEN": ""}, ""),
        ({**SECRETS, "TWILIO_AUTH_TOKEN": "", "TWILIO_API_KEY_SID": "SK"}, "TWILIO_API_KEY_SECRET"),
    ],
)
def test_deploy_wants_both_halves_of_an_api_key(configured: Cluster, held: dict[str, str], missing: str) -> None:
    configured.objects.append(secret(held))
    done = configured.operate("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert (done.code, f"has no {missing}. Add it" in done.err) == ((1, True) if missing else (0, False)), done.err


def test_deploy_asks_for_no_secret_that_comes_from_a_vault(configured: Cluster) -> None:
    with (configured.root / "k8s/kustomization.yaml").open("a") as file:
        file.write("components: [components/external-secrets]\n")
    configured.does("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    (made,) = configured.of("ExternalSecret")
    # The remedy for a Secret that is not there is `make secret`: it tells where this one comes from.
    assert "kubectl describe externalsecret habit-notifier-secrets -n habit-tracker" in configured.refuses(
        "secret", **SECRETS
    )
    assert not configured.of("Secret")
    assert "the Secret habit-notifier-secrets stay" in configured.does("undeploy")
    assert made["spec"]["target"]["creationPolicy"] == "Orphan"  # "Owner" takes the Secret along


@pytest.mark.parametrize(
    ("made", "known"),
    [
        ("{apiVersion: bitnami.com/v1alpha1, kind: SealedSecret, metadata: {name: habit-notifier-secrets}}", True),
        ("{apiVersion: v1, kind: Secret, metadata: {name: habit-notifier-secrets-t458fm6599}}", True),
        ("{apiVersion: a.io/v1, kind: VaultSecret, metadata: {name: a}, to: {name: habit-notifier-secrets}}", True),
        ("{apiVersion: bitnami.com/v1alpha1, kind: SealedSecret, metadata: {name: registry-login}}", False),
    ],
)
def test_what_makes_the_secret_in_an_overlay_stands_in_for_it(configured: Cluster, made: str, known: bool) -> None:
    (configured.root / "k8s/made.yaml").write_text(made)
    edit(configured, "k8s/kustomization.yaml", "resources:\n", "resources:\n  - made.yaml\n")
    done = configured.operate("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert (done.code == 0, "no Secret habit-notifier-secrets" in done.err) == (known, not known)
    done = configured.operate("secret", **SECRETS)
    assert (done.code == 0, "which would undo this: change it there" in done.err) == (not known, known)


def test_deploy_asks_for_no_value_that_comes_from_a_file(configured: Cluster) -> None:
    configured.objects.append(secret({name: value for name, value in SECRETS.items() if name != "DB_PASSWORD"}))
    configure(configured, "DB_PASSWORD_FILE: /vault/password")
    configured.does("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")


def test_deploy_asks_for_no_secret_where_all_comes_from_files(configured: Cluster) -> None:
    for name in ("DB_USER", "DB_PASSWORD", "TWILIO_ACCOUNT_SID"):
        configure(configured, f"{name}_FILE: /vault/{name}")
    configure(configured, "TWILIO_AUTH_TOKEN_FILE: /vault/token")
    assert "no Secret habit-notifier-secrets" in configured.refuses("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    wants_it = "                - secretRef: {name: habit-notifier-secrets}\n"
    edit(configured, "k8s/cronjob.yaml", wants_it, "")
    configured.does("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")


def test_deploy_goes_on_where_secrets_may_not_be_read(configured: Cluster) -> None:
    configured.refusals |= {"auth can-i get secret/": "no", " get secret ": "secrets is forbidden"}
    assert "you may not read Secrets here" in configured.does("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")


@pytest.mark.parametrize(
    "patched",
    [
        "completions: 8",
        'template: {spec: {containers: [{name: habit-notifier, env: [{name: SHARD_COUNT, value: "2"}]}]}}',
    ],
)
def test_deploy_refuses_shards_that_would_leave_users_out(ready: Cluster, patched: str) -> None:
    overlay = ready.root / "overlays/mine"
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
    err = ready.refuses("deploy", OVERLAY="overlays/mine", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert re.search(r"The Job has (4|8) pods \(completions\), and SHARD_COUNT is (2|4): users would be", err)
    assert not ready.sent


def test_deploy_refuses_shards_that_only_the_configmap_has(ready: Cluster) -> None:
    ready.objects.append(cronjob())
    configure(ready, 'SHARD_COUNT: "4"')
    assert "The Job has 1 pods (completions), and SHARD_COUNT is 4" in ready.refuses("deploy")


@pytest.mark.parametrize(
    ("running", "given", "image", "told"),
    [
        ("", {"IMAGE_NAME": "r:5000/n", "IMAGE_TAG": "v1"}, "r:5000/n:v1", "Image: r:5000/n:v1"),
        ("r:5000/n:v1", {}, "r:5000/n:v1", "Image: r:5000/n:v1"),
        ("r:5000/n:v1", {"IMAGE_NAME": "", "IMAGE_TAG": ""}, "r:5000/n:v1", "Image: r:5000/n:v1"),
        ("r:5000/n:v1", {"IMAGE_TAG": "v2"}, "r:5000/n:v2", "Image: r:5000/n:v1 -> r:5000/n:v2"),
        ("r/n@sha256:abc", {}, "r/n@sha256:abc", "Image: r/n@sha256:abc"),
        ("r/n:v1@sha256:abc", {}, "r/n@sha256:abc", "Image: r/n:v1@sha256:abc -> r/n@sha256:abc"),
        ("r/n@sha256:abc", {"IMAGE_TAG": "v2"}, "r/n:v2", "Image: r/n@sha256:abc -> r/n:v2"),
        ("r/n:v1", {"IMAGE_NAME": "other/n", "IMAGE_TAG": "v1"}, "other/n:v1", "Image: r/n:v1 -> other/n:v1"),
        ("r:5000/n", {}, "r:5000/n", "Image: r:5000/n"),
        ("your-registry/habit-notifier:v1", {"IMAGE_NAME": "r/n", "IMAGE_TAG": "v1"}, "r/n:v1", "Image: r/n:v1"),
    ],
)
def test_deploy_keeps_the_image_that_runs_unless_told(
    ready: Cluster, running: str, given: dict[str, str], image: str, told: str
) -> None:
    before = (ready.root / "k8s/cronjob.yaml").read_text()
    ready.objects += [cronjob(running)] if running else []
    out = ready.does("deploy", **given)
    assert told in out.splitlines()
    (container,) = applied(ready)["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image
    assert (ready.root / "k8s/cronjob.yaml").read_text() == before


def test_deploy_says_that_the_files_name_another_image(ready: Cluster) -> None:
    ready.objects.append(cronjob("r/n:v2"))
    edit(ready, "k8s/cronjob.yaml", "your-registry/habit-notifier:v1.0.0", "r/n@sha256:abc")
    out = ready.does("deploy")
    assert "The files name r/n@sha256:abc; the cluster's image was kept." in out
    again = dict(each.split("=") for each in re.findall(r"IMAGE_\w+=\S+", out))
    assert "r/n:v2 -> r/n@sha256:abc" in ready.does("update-image", **again)
    assert "set image cronjob/habit-notifier habit-notifier=r/n@sha256:abc" in ready.calls[-1]


def test_deploy_asks_for_no_binding_of_a_role_that_is_still_to_come(ready: Cluster) -> None:
    """The server refuses that to everybody but administrators of the whole cluster."""
    edit(ready, "k8s/kustomization.yaml", "# components:", "components:\n  - components/viewers")
    ready.does("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    asked, applied = ({each["kind"] for each in it["items"]} for it in ready.sent if "items" in it)
    assert applied - asked == {"RoleBinding"}


def test_deploy_asks_the_server_first_and_applies_nothing_by_halves(ready: Cluster) -> None:
    ready.objects = [secret(SECRETS)]
    ready.refusals["--dry-run=server"] = "ConfigMap in version v1 cannot be handled"
    err = ready.refuses("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert "nothing was applied, as the cluster would refuse a part: ConfigMap in version" in err
    assert [each["kind"] for each in ready.objects] == ["Secret", "Namespace"]


@pytest.mark.parametrize("value", ["+15005550006", "0049", "true", "1.5", "null"])
def test_deploy_names_the_value_that_wants_quotes(ready: Cluster, value: str) -> None:
    edit(ready, "k8s/configmap.yaml", '"+15005550006"', value)
    err = ready.refuses("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert re.search("Put quotes around .* TWILIO_FROM_NUMBER", err)
    assert not ready.sent


@pytest.mark.parametrize(("is_there", "value"), [(True, "yes"), (False, "yes"), (False, "true"), (True, "1")])
def test_deploy_suspended_never_lets_a_run_start(ready: Cluster, is_there: bool, value: str) -> None:
    ready.objects += [cronjob()] if is_there else []
    assert "It is suspended: make resume" in ready.does("deploy", SUSPEND=value, IMAGE_NAME="r/n", IMAGE_TAG="v2")
    assert "suspend" not in applied(ready)["CronJob"]["spec"], "the next apply would take it back"
    first = ready.of("CronJob") if is_there else [each for each in ready.sent if each.get("kind") == "CronJob"]
    assert first[0]["spec"]["suspend"] is True
    ready.operate("deploy")
    assert ready.of("CronJob")[0]["spec"]["suspend"] is True


def test_deploy_warns_of_a_filled_template_and_needs_none(ready: Cluster) -> None:
    ready.objects.append(cronjob())
    assert "WARNING" not in ready.does("deploy")
    file = ready.root / "k8s/secret.yaml"
    file.write_text(re.sub(r"^# ", "", file.read_text(), flags=re.MULTILINE))
    assert "WARNING: k8s/secret.yaml is filled in" in ready.does("deploy")
    file.unlink()
    assert "WARNING" not in ready.does("deploy")


@pytest.mark.parametrize(
    ("schedule", "warned"),
    [("0 9 * * *", True), ("0 */6 * * *", True), ("0 * * * *", False), ("@daily", True), ("@hourly", False)],
)
def test_deploy_warns_of_a_window_that_some_never_meet(ready: Cluster, schedule: str, warned: bool) -> None:
    ready.objects.append(cronjob())
    configure(ready, "SEND_WINDOW: 09:00-20:00")
    edit(ready, "k8s/cronjob.yaml", "0 9 * * *", schedule)
    assert ("WARNING: SEND_WINDOW is 09:00-20:00" in ready.does("deploy")) is warned


@pytest.mark.parametrize(
    "name", ["ONLY_USERS", "ONLY_USER", "only_users", "DB_PASSWORD_FILE", "https_proxy", "SEND_HOURS"]
)
def test_deploy_warns_of_a_name_that_the_program_does_not_read(ready: Cluster, name: str) -> None:
    ready.objects.append(cronjob())
    configure(ready, f'{name}: "42"')
    warned = f"WARNING: the program reads no {name}, " in ready.does("deploy")
    assert warned is (name in ("ONLY_USER", "only_users", "SEND_HOURS"))


def test_a_new_name_needs_its_tag(cluster: Cluster) -> None:
    assert "make update-image IMAGE_NAME=other/n IMAGE_TAG=" in cluster.refuses("update-image", IMAGE_NAME="other/n")


def test_update_image_refuses_the_name_that_runs(cluster: Cluster) -> None:
    err = cluster.refuses("update-image", IMAGE_TAG="v1")
    assert "r/n:v1 runs already. A node that has a tag does not pull it again" in err
    assert not any("set image" in call for call in cluster.calls)


# --- test and logs ----------------------------------------------------------------------------------------------------


def pod(fake: FakeKubectl, name: str, status: dict[str, Any], shard: str = "", job: str = JOB) -> dict[str, Any]:
    labels = {"job-name": job} | ({"batch.kubernetes.io/job-completion-index": shard} if shard else {})
    fake.logs.setdefault(name, [[]])
    return fake.add("Pod", name, labels=labels, status=status)


def job(fake: FakeKubectl, name: str = JOB, *, owned: bool = True, **more: Any) -> dict[str, Any]:
    return fake.add("Job", name, metadata={"ownerReferences": [{}]} if owned else {}, **more)


def started(fake: FakeKubectl, *steps: Callable[[str], object]) -> None:
    """What happens to the Job of `make test`, a step a second, the first one at once."""
    create = fake._create

    def _create(command: list[str], sent: dict[str, Any]) -> str:
        create(command, sent)
        steps[0](command[1])
        fake.then += [lambda step=step: step(command[1]) for step in steps[1:]]  # type: ignore[misc]
        return ""

    fake._create = _create  # type: ignore[method-assign]


def end(fake: FakeKubectl, status: dict[str, Any]) -> Callable[[str], object]:
    return lambda name: fake.of("Job", name)[0].update(status=status)


FAILED = condition("Failed", "FailedIndexes", "Job has failed indexes") | {"failedIndexes": "1"}


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([("", 1), ("", 137), ("", 1)], 1),  # no shards: the third attempt
        ([("0", 0), ("1", 1), ("2", 143), ("1", 1), ("3", 0), ("2", 0), ("1", 1)], 1),
        ([("0", 137), ("1", 1), ("0", 137), ("1", 1), ("0", 137), ("1", 1)], 137),
        ([("2", 2), ("0", 143), ("1", 143)], 2),
        ([], None),
    ],
)
def test_a_run_ends_with_the_code_of_the_shard_that_failed(
    cluster: Cluster, ends: list[tuple[str, int]], code: int | None
) -> None:

    def run(name: str) -> None:
        for number, (shard, its) in enumerate(ends):
            pod(cluster, f"p{number}", ended(its), shard, name)

    started(cluster, run, end(cluster, FAILED))
    done = cluster.operate("test")
    told = f"Exit code {code}" if code else "Its log is gone"
    assert f"failed (FailedIndexes: 1). {told}: see" in done.out
    assert done.code == (code or 1)


def test_the_log_is_followed_and_a_complete_run_ends_well(cluster: Cluster) -> None:
    cluster.logs["p"] = [["Starting\n", "Done\n"]]
    started(
        cluster,
        lambda name: pod(cluster, "p", container({"waiting": {"reason": "ContainerCreating"}}), job=name),
        lambda _: cluster.of("Pod")[0].update(status=ended(0)),
        end(cluster, condition("Complete")),
    )
    out = cluster.does("test")
    assert out.splitlines()[1:3] == ["Starting", "Done"]
    assert re.fullmatch("The Job habit-notifier-manual-20260509-0900\\d\\d is complete.", out.splitlines()[-1])


def test_each_line_is_printed_once_when_the_connection_breaks(cluster: Cluster) -> None:
    job(cluster, status=condition("Complete"))
    first = pod(cluster, "p", container({"running": {}}))
    pod(cluster, "q", ended(0))

    def broken() -> Iterator[str]:  # and the pod ends before it can be asked for again
        yield from ("one\n", "two\n", "two\n")
        first.update(status=ended(143))

    cluster.logs["p"] = [["one\n", "two\n"], broken(), ["one\n", "two\n", "two\n", "four\n"]]
    cluster.logs["q"] = [["one\n"]]
    assert cluster.does("logs").splitlines()[1:-1] == ["one", "two", "two", "four", "--- replaced by pod/q", "one"]


STUCK = {
    "make secret": container({"waiting": {"reason": "CreateContainerConfigError",
                                          "message": 'secret "habit-notifier-secrets" not found'}}),
    "is it pushed": container({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}),
    "for another processor": ended(128, "exec /x: exec format error", "StartError"),
}  # fmt: skip


@pytest.mark.parametrize("remedy", STUCK)
def test_a_run_that_cannot_start_is_explained_and_taken_back(cluster: Cluster, remedy: str) -> None:
    started(cluster, lambda name: pod(cluster, "p", STUCK[remedy], job=name))
    err = cluster.refuses("test")
    assert "make test: the run cannot start: " in err
    assert re.search(f"^Remedy: .*{remedy}", err, re.MULTILINE)
    assert not cluster.of("Job")
    assert cluster.now <= 21


def test_a_run_that_could_not_be_taken_back_is_told(cluster: Cluster) -> None:
    cluster.refusals["delete job"] = 'jobs.batch "j" is forbidden: User "dev" cannot delete resource'
    started(cluster, lambda name: pod(cluster, "p", STUCK["is it pushed"], job=name))
    done = cluster.operate("test")
    assert "the run cannot start: ImagePullBackOff: Back-off pulling image\nRemedy: is it pushed" in done.err
    assert f"Its Job could not be deleted: {cluster.refusals['delete job']}" in done.err
    assert "The Job, if it is still there, goes on in the cluster: make logs" in done.out


def test_ctrl_c_does_not_keep_the_job_that_was_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    started(cluster, lambda name: pod(cluster, "p", STUCK["is it pushed"], job=name))
    seen = watch_deletion(monkeypatch)
    cluster.refuses("test")
    assert seen == [signal.SIG_IGN] * 2


def watch_deletion(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What SIGINT and SIGHUP do while kubectl deletes."""
    delete, seen = Cluster._delete, list[object]()

    def look(*arguments: Any) -> str:
        seen.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGHUP)))
        return delete(*arguments)

    monkeypatch.setattr(Cluster, "_delete", look)
    return seen


SIDECAR = "Remedy: switch the sidecar off for this pod, as k8s/cronjob.yaml tells"
ROOM = "Remedy: raise the namespace's ResourceQuota or LimitRange"


def test_a_mesh_whose_sidecar_keeps_the_job_from_ending_is_named(cluster: Cluster) -> None:
    kept = [lambda _: None] * 60
    started(cluster, lambda name: pod(cluster, "p", ended(0), job=name), *kept, end(cluster, condition("Complete")))
    why = f"waits: the program has ended, but mesh keeps the pod\n{SIDECAR}"
    assert cluster.does("test").count(f"The pod {why}") == 1
    pod(cluster, "q", ended(0), job=cluster.add("Job", JOB)["metadata"]["name"])
    assert f"{JOB}  {why}" in cluster.does("status")


def test_a_pod_on_a_node_that_is_gone_is_not_at_work(cluster: Cluster) -> None:
    pod(cluster, "p", container({"running": {}}), job=job(cluster)["metadata"]["name"])
    cluster.of("Pod")[0]["metadata"]["deletionTimestamp"] = text_of(START + timedelta(seconds=60))
    assert f"{JOB}  at work: make logs" in cluster.does("status")  # it has its time to end in order
    cluster.now = 61
    out = cluster.does("status")
    assert f"{JOB}  waits: pod/p should have ended at 2026-05-09T09:01:00Z, but its node" in out
    assert "Remedy: is that node off? Then delete it, or the pod: kubectl delete pod NAME --force." in out


def test_a_log_on_a_node_that_is_gone_ends_with_its_job(cluster: Cluster) -> None:
    its, lost = job(cluster), pod(cluster, "p", container({"running": {}}))
    lost["metadata"]["deletionTimestamp"] = text_of(START + timedelta(seconds=5))
    cluster.then = [lambda: None] * 30
    cluster.then += [lambda: its.update(status=condition("Failed", "DeadlineExceeded", "active too long"))]
    out = cluster.does("logs")
    assert out.count("The pod waits: pod/p should have ended at 2026-05-09T09:00:05Z") == 1
    assert "failed (DeadlineExceeded)" in out


def test_a_pod_that_used_all_of_its_time_to_end_is_no_trouble(cluster: Cluster) -> None:
    its, drained = job(cluster), pod(cluster, "p", container({"running": {}}))
    drained["metadata"]["deletionTimestamp"] = text_of(START + timedelta(seconds=60))

    def log() -> Iterator[str]:
        cluster.now = 61
        drained.update(status=ended(137))
        yield "the last line\n"
        its.update(status=condition("Complete"))

    cluster.logs["p"] = [log(), ["the last line\n", "one more\n"]]
    assert cluster.does("logs").splitlines()[1:] == ["the last line", "one more", f"The Job {JOB} is complete."]


no_pods = pytest.mark.parametrize(
    ("why", "remedy"),
    [
        ("exceeded quota: full", ROOM),
        ("maximum memory usage per Container is 100Mi", ROOM),
        ("cpu max limit to request ratio per Container is 4, but provided ratio is 10.000000", "Remedy: bring the"),
        ("ValidatingAdmissionPolicy 'p' denied request: pin the digest", "Remedy: give the policy what it asks for"),
        ('admission webhook "w" denied the request: pin the digest', "Remedy: give the policy what it asks for"),
        ('violates PodSecurity "restricted:latest": container "istio-init" must not include "NET_ADMIN"', SIDECAR),
        ('violates PodSecurity "restricted:latest": runAsNonRoot', "Remedy: an overlay or a component weakened"),
    ],
    ids=["quota", "limit", "ratio", "policy", "webhook", "sidecar", "privilege"],
)


@no_pods
def test_a_run_without_a_pod_is_explained_and_taken_back(cluster: Cluster, why: str, remedy: str) -> None:
    event = {"reason": "FailedCreate", "message": f"pods is forbidden: {why}"}
    started(cluster, lambda name: cluster.add("Event", "e", involvedObject={"name": name}, **event))
    err = cluster.refuses("test")
    assert f"the run cannot start: FailedCreate: pods is forbidden: {why}" in err
    assert remedy in err
    assert not cluster.of("Job")


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        (
            "0/1 nodes are available: 1 node(s) had untolerated taint(s). preemption: not helpful",
            "a node that is ready",
        ),
        ("0/1 nodes are available: 1 node(s) were unschedulable. no new claims", "kubectl uncordon NODE"),
        ("0/2 nodes: 1 node(s) had untolerated taint {node-role: }, 1 Insufficient cpu", "make room on a node"),
    ],
)
def test_a_pod_that_waits_for_a_node_is_waited_for(cluster: Cluster, why: str, remedy: str) -> None:
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    started(
        cluster,
        lambda name: pod(cluster, "p", {"phase": "Pending", "conditions": [unplaced]}, job=name),
        *[lambda _: None] * 60,
        lambda _: cluster.of("Pod")[0].update(status=ended(0)),
        end(cluster, condition("Complete")),
    )
    out = cluster.does("test")
    assert out.count(f"The pod waits: Unschedulable: {why}\nRemedy: {remedy}") == 1


@pytest.mark.parametrize("pulls", [True, False])
def test_a_mount_that_failed_at_first_takes_no_run_back_whose_image_is_pulled(cluster: Cluster, pulls: bool) -> None:

    def run(name: str) -> None:
        pod(cluster, "p", container({"waiting": {"reason": "ContainerCreating"}}), job=name)
        mount = {"reason": "FailedMount", "message": "failed to sync configmap cache"}
        cluster.add("Event", "z", involvedObject={"name": "p"}, age=0.02, **mount)
        if pulls:
            cluster.add("Event", "a", involvedObject={"name": "p"}, reason="Pulling", message="Pulling image")

    start = [*[lambda _: None] * 60, lambda _: cluster.of("Pod")[0].update(status=ended(0))]
    started(cluster, run, *start, end(cluster, condition("Complete")))
    done = cluster.operate("test")
    assert (done.code, "cannot start: FailedMount: failed to sync" in done.err) == ((0, False) if pulls else (1, True))


@pytest.mark.parametrize(("shard", "given_up"), [("0", False), ("", True)])
def test_a_shard_that_cannot_start_takes_no_other_back(cluster: Cluster, shard: str, given_up: bool) -> None:

    def run(name: str) -> None:
        pod(cluster, "first", ended(1), shard, name)
        pod(cluster, "second", STUCK["for another processor"], "1" if shard else "", name)

    started(cluster, run, end(cluster, FAILED))
    done = cluster.operate("test")
    assert ("the run cannot start: StartError" in done.err) is given_up
    assert (not cluster.of("Job")) is given_up
    assert ("(FailedIndexes: 1)" in done.out) is not given_up


def test_a_lost_connection_takes_no_run_back(cluster: Cluster) -> None:
    started(cluster, lambda _: cluster.refusals.update({"get job": "connection refused"}))
    done = cluster.operate("test")
    assert "connection refused" in done.err
    assert cluster.of("Job")


def test_somebody_deleted_the_job(cluster: Cluster) -> None:
    started(cluster, lambda _: cluster.objects.pop())
    assert "somebody deleted the job habit-notifier-manual-" in cluster.operate("test").err
    asked_pod(cluster, container({"running": {}}), [])
    cluster.then = [lambda: cluster.objects.pop()]
    assert "somebody, or a drained node, deleted the pod habit-notifier-preflight-" in cluster.refuses("preflight")


@pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt(), 130), (transport.Stop("it is away"), 1)])
def test_a_log_that_is_left_goes_on_in_the_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, ending: BaseException, code: int
) -> None:

    monkeypatch.setattr(time, "sleep", Mock(side_effect=ending))
    done = cluster.operate("test")
    told = "The Job, if it is still there, goes on in the cluster: make logs"
    assert (done.code, done.out.splitlines()[-1]) == (code, told)
    assert cluster.of("Job")


def test_logs_are_of_the_newest_run_that_is_no_rehearsal(cluster: Cluster) -> None:
    job(cluster, "older", status=condition("Complete"), age=2)
    job(cluster, "newer", status=condition("Complete"), age=1)
    job(cluster, "rehearsal", status=condition("Complete"), owned=False)
    cluster.add("Pod", "preflight", labels={"habit-notifier/purpose": "preflight"}, status=ended(0))
    assert "Job newer, made 2026-05-09T08:00:00Z in namespace habit-tracker of" in cluster.operate("logs").out
    assert "Job older, made" in cluster.operate("logs", JOB="older").out
    assert "There is no log left: its pods are gone." in cluster.operate("logs", JOB="older").out


def test_logs_say_that_there_is_no_such_job(cluster: Cluster) -> None:
    assert "there is no Job nope in namespace habit-tracker" in cluster.refuses("logs", JOB="nope")
    assert "there was no run yet" in cluster.refuses("logs")


def test_what_keeps_one_shard_or_one_container_beside_from_starting_is_told(cluster: Cluster) -> None:
    creating = container({"waiting": {"reason": "PodInitializing"}})
    (_, stuck) = STUCK["is it pushed"]["containerStatuses"]

    def run(name: str) -> None:
        pod(cluster, "first", creating | {"initContainerStatuses": [stuck | {"name": "proxy"}]}, "0", name)
        pod(cluster, "last", creating, "1", name)

    started(cluster, run)
    assert "ImagePullBackOff: Back-off pulling image\nRemedy: is it pushed" in cluster.refuses("test")


@pytest.mark.parametrize("remedy", ["make secret", "is it pushed"])
def test_logs_of_a_run_that_waits_say_why(cluster: Cluster, remedy: str) -> None:
    its = job(cluster)
    waiting = pod(cluster, "p", STUCK[remedy])
    cluster.logs["p"] = [["at last\n"]]
    cluster.then = [lambda: None] * 60
    cluster.then += [lambda: waiting.update(status=ended(0)), lambda: its.update(status=condition("Complete"))]
    done = cluster.operate("logs")
    assert re.search(f"^The pod waits: .*\nRemedy: .*{remedy}", done.out, re.MULTILINE)
    assert done.out.splitlines()[-2:] == ["at last", f"The Job {JOB} is complete."]
    assert done.out.count("The pod waits") == 1


def test_a_pod_that_ended_before_it_started_is_told(cluster: Cluster) -> None:
    job(cluster, status=condition("Complete"))
    pod(cluster, "p", {"phase": "Failed", "reason": "Evicted", "message": "disk"})
    assert "--- pod/p ended before it started (Evicted: disk)" in cluster.operate("logs").out
    cluster.of("Pod")[0].update(status=container({"waiting": {"reason": "PodInitializing"}}) | {"phase": "Failed"})
    assert "--- pod/p ended before it started (its init containers failed)" in cluster.operate("logs").out


def test_a_run_that_hit_its_deadline_says_where_its_log_went(cluster: Cluster) -> None:
    job(cluster, status=condition("Failed", "DeadlineExceeded", "active too long"))
    told = 'Its log is gone: see "A Job without a log" in DEPLOYMENT.md.'
    assert f"failed (DeadlineExceeded). {told}" in cluster.operate("logs").out
    assert cluster.operate("status").out.endswith("failed (DeadlineExceeded), its pods are gone\n")
    its = pod(cluster, "terminating", ended(143))
    assert f"failed (DeadlineExceeded). {told}" in cluster.operate("logs").out
    its["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = "1"
    cluster.of("Job")[0]["status"]["failedIndexes"] = "1"
    assert f"failed (DeadlineExceeded: 1). {told}" in cluster.operate("logs").out


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (
            ended(137, "an unrelated line\n", reason="OOMKilled"),
            r"OOMKilled: it took more memory than it may\nRemedy: raise limits\.memory",
        ),
        (ended(1, "exec /x: exec format error\n"), "exec /x: exec format error\nRemedy: the image is for another"),
    ],
)
def test_what_the_program_could_not_tell_is_named_with_the_remedy(
    cluster: Cluster, status: dict[str, Any], named: str
) -> None:
    job(cluster, status=condition("Failed", "BackoffLimitExceeded", "limit"))
    pod(cluster, "p", status)
    assert re.search(f"^{named}", cluster.operate("logs").out, re.MULTILINE)
    told = cluster.operate("status").out
    assert re.search(rf"exit code \d+\n    {named}", told)
    assert "unrelated" not in told


# --- status -----------------------------------------------------------------------------------------------------------


def words(**more: Any) -> str:
    return json.dumps({"run": "run", "exit_code": 0, "sent": 0, "failed": 0, "uncertain": 0, "error": None} | more)


def test_status_tells_of_each_run_what_became_of_it(cluster: Cluster) -> None:
    cluster.of("CronJob")[0]["status"]["lastSuccessfulTime"] = "2026-05-09T08:00:14Z"
    job(cluster, "shards", status=FAILED, age=3)
    pod(cluster, "s0", ended(0, words(sent=7, counts={"sent": 7, "later": 30})), "0", "shards")
    pod(cluster, "s1", ended(1, words(sent=3, failed=9, uncertain=2, error="first try")), "1", "shards")
    more = {"counts": {"later": 2, "not_tried": 3}, "learned": {"delivered": 9, "undelivered 30003": 1}}
    away = words(sent=2, failed=4, uncertain=1, error="MySQL is away: start it", **more)
    pod(cluster, "s1b", ended(1, away), "1", "shards")
    pod(cluster, "s1c", ended(1, words(error="MySQL is away: start it")), "1", "shards")  # looked at nobody
    job(cluster, "well", status=condition("Complete"), age=2)
    pod(cluster, "w", ended(0, words(sent=12, failed=1)), job="well")
    job(cluster, "log", status=condition("Failed", "BackoffLimitExceeded", "limit"), age=1)
    pod(cluster, "l", ended(137, "line\nKilled in the middle\n"), job="log")
    job(cluster, "gone", status=condition("Complete"))
    out = cluster.does("status")
    assert "Last complete run: 2026-05-09T08:00:14Z" in out
    assert out.splitlines()[3:] == [
        "2026-05-09T06:00:00Z  shards  failed (FailedIndexes: 1), exit code 1: 12 sent, 4 failed, 1 uncertain",
        "    MySQL is away: start it",
        "    Users: later 32, not tried 3",
        "    Earlier texts: delivered 9, undelivered 30003 1",
        "2026-05-09T07:00:00Z  well  complete: 12 sent, 1 failed, 0 uncertain",
        "2026-05-09T08:00:00Z  log  failed (BackoffLimitExceeded), exit code 137",
        "    Killed in the middle",
        "2026-05-09T09:00:00Z  gone  complete",
    ]


def test_status_of_a_run_that_waits_says_why(cluster: Cluster) -> None:
    job(cluster)
    pod(cluster, "p", STUCK["make secret"])
    job(cluster, "quota", age=1)
    cluster.add("Event", "e", involvedObject={"name": "quota"}, reason="FailedCreate", message="exceeded quota")
    job(cluster, "busy", age=2)
    pod(cluster, "a", {"phase": "Failed", "reason": "Evicted", "message": "disk"}, job="busy")
    pod(cluster, "b", container({"running": {}}), job="busy")  # in its place
    assert cluster.does("status").splitlines()[3:] == [
        "2026-05-09T07:00:00Z  busy  at work: make logs",
        "2026-05-09T08:00:00Z  quota  waits: FailedCreate: exceeded quota",
        "Remedy: raise the namespace's ResourceQuota or LimitRange, or lower resources in k8s/cronjob.yaml.",
        f'2026-05-09T09:00:00Z  {JOB}  waits: CreateContainerConfigError: secret "habit-notifier-secrets" not found',
        "Remedy: make secret",
    ]


def test_status_tells_of_a_run_that_could_not_be_made(cluster: Cluster) -> None:
    told = 'Error creating job: jobs.batch "j" is forbidden: exceeded quota: team, requested: count/jobs.batch=1'
    cluster.add("Event", "e", involvedObject={"name": "habit-notifier"}, reason="FailedCreate", message=told)
    out = cluster.does("status", CONTEXT="elsewhere").splitlines()
    assert out[2] == f"In the last hour a run could not be made: FailedCreate: {told}"
    assert out[3] == "Remedy: make clean-jobs CONTEXT=elsewhere, or raise the namespace's ResourceQuota."


@pytest.mark.parametrize(
    ("schedule", "zone", "coming"),
    [
        ("30 9 * * *", "Etc/UTC", "2026-05-09 09:30 UTC, in 0:30:00"),
        ("0 9 * * *", "Etc/UTC", "2026-05-10 09:00 UTC, in 1 day, 0:00:00"),
        ("15 8 * * *", "UTC", "2026-05-10 08:15 UTC, in 23:15:00"),
        ("5 * * * *", "Etc/UTC", "2026-05-09 09:05 UTC, in 0:05:00"),
        ("0 * * * *", "Etc/UTC", "2026-05-09 10:00 UTC, in 1:00:00"),
        ("0 9 * * *", "Europe/Berlin", None),
        ("0 9 * * 1-5", "Etc/UTC", None),
        ("0 */6 * * *", "Etc/UTC", None),
    ],
)
def test_status_says_when_the_next_run_is_where_that_is_simple(
    bare: Cluster, schedule: str, zone: str, coming: str | None
) -> None:
    bare.objects.append(cronjob(schedule=schedule, timeZone=zone))
    line = bare.operate("status").out.splitlines()[1]
    assert line.startswith(f"Schedule: {schedule} ({zone})")
    assert re.findall(r"next at (.*)\. A run", line) == ([coming] if coming else [])


# --- suspend, resume, stop --------------------------------------------------------------------------------------------


def test_suspend_says_what_goes_on(cluster: Cluster) -> None:
    job(cluster, "old", status=condition("Complete"))
    assert "goes on" not in cluster.operate("suspend").out
    job(cluster)
    assert f"A run is at work and goes on: {JOB}. To end it: make stop" in cluster.operate("suspend").out
    assert cluster.of("CronJob")[0]["spec"]["suspend"] is True
    assert "It is suspended: make resume" in cluster.operate("status").out


def ago(**span: float) -> str:
    return text_of(START - timedelta(**span))


@pytest.mark.parametrize(
    ("schedule", "last", "deadline", "missed"),
    [
        ("30 8 * * *", ago(days=2), 3600, "The run of 08:30 UTC was missed: it starts at once"),
        ("30 8 * * *", ago(minutes=30), 3600, ""),  # it ran
        ("30 7 * * *", ago(days=2), 3600, ""),  # longer ago than an hour
        ("0 8 * * *", ago(days=2), 3600, "The run of 08:00 UTC was missed"),  # the hour itself still counts
        ("30 7 * * *", ago(days=2), None, "The run of 07:30 UTC was missed"),
        ("30 * * * *", ago(days=2), 3600, "The run of 08:30 UTC was missed"),
        ("0 9 * * 1-5", ago(days=2), 3600, "A run that was missed lately"),
    ],
)
def test_resume_says_and_asks_when_a_missed_run_would_start(
    bare: Cluster, keyboard: Callable[..., list[str]], schedule: str, last: str,
    deadline: int | None, missed: str,
) -> None:  # fmt: skip
    its = cronjob(schedule=schedule, startingDeadlineSeconds=deadline, suspend=True)
    its["status"]["lastScheduleTime"] = last
    bare.objects.append(its)
    asked = keyboard("n", "y")
    done = bare.operate("resume")
    assert missed in done.out
    assert (done.code, len(asked), its["spec"]["suspend"]) == ((1, 1, True) if missed else (0, 0, False))
    if missed:
        assert bare.operate("resume").code == 0
        assert its["spec"]["suspend"] is False


@pytest.mark.parametrize("variables", [{}, {"YES": "yes"}])
def test_resume_in_a_script_says_and_goes_on(bare: Cluster, variables: dict[str, str]) -> None:
    its = cronjob(schedule="30 8 * * *", suspend=True)
    bare.objects.append(its)
    done = bare.operate("resume", **variables)
    assert (done.code, its["spec"]["suspend"]) == (0, False)
    assert "starts at once" in done.out
    assert "Resumed. Schedule: 30 8 * * * (Etc/UTC), next at 2026-05-10 08:30 UTC" in done.out
    assert "starts at once" not in bare.operate("resume").out, "it was not suspended"


def test_stop_suspends_and_ends_what_is_at_work_after_asking(
    cluster: Cluster, keyboard: Callable[..., list[str]]
) -> None:
    job(cluster, "done", status=condition("Complete"))
    job(cluster)
    assert "make stop YES=yes" in cluster.refuses("stop")
    asked = keyboard("", "y")
    assert cluster.operate("stop").code == 1
    assert JOB in asked[0]
    assert len(cluster.of("Job")) == 2
    assert "suspend" not in cluster.of("CronJob")[0]["spec"]
    assert cluster.operate("stop").code == 0
    assert [each["metadata"]["name"] for each in cluster.of("Job")] == ["done"]
    assert "--cascade=foreground" in next(call for call in cluster.calls if "delete job" in call)
    suspended, deleted = (next(i for i, c in enumerate(cluster.calls) if part in c) for part in ("patch", "delete"))
    assert suspended < deleted, "no run may start in between"


def test_stop_ends_a_run_that_was_made_meanwhile(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    delete, late = Cluster._delete, iter(["late"])
    job(cluster)

    def and_one_more(*arguments: Any) -> str:
        return delete(*arguments) + "".join(job(cluster, name)["kind"] for name in late)

    monkeypatch.setattr(Cluster, "_delete", and_one_more)
    assert "nothing is at work" in cluster.does("stop", YES="yes")
    assert not cluster.of("Job")


def test_stop_in_a_script(cluster: Cluster) -> None:
    assert "nothing is at work" in cluster.does("stop", YES="yes")
    assert cluster.of("CronJob")[0]["spec"]["suspend"] is True


# --- preflight, dry-run, explain, shell -------------------------------------------------------------------------------

QUESTIONS = [
    ("preflight", {}, ["--check"]),
    ("dry-run", {}, ["--dry-run"]),
    ("explain", {"USER_ID": "-42a"}, ["--explain=-42a"]),
]


def asked_pod(fake: FakeKubectl, status: dict[str, Any], log: list[str]) -> list[dict[str, Any]]:
    """Lets the next pod that is created have this status and log; what was created."""
    made: list[dict[str, Any]] = []
    apply = fake._apply

    def _apply(command: list[str], sent: dict[str, Any]) -> str:
        if sent.get("kind") == "Pod":
            made.append(copy.deepcopy(sent))
            sent["status"] = status
            fake.logs[sent["metadata"]["name"]] = [log]
        return apply(command, sent)

    fake._apply = _apply  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize(("target", "variables", "arguments"), QUESTIONS)
def test_a_question_is_a_pod_like_the_job_s_that_is_no_run(
    bare: Cluster, target: str, variables: dict[str, str], arguments: list[str], code: int
) -> None:
    env = [{"name": "SHARD_COUNT", "value": "4"}, {"name": "OTHER", "value": "stays"}]
    bare.objects.append(cronjob(env=env))
    made = asked_pod(bare, ended(code), ["ok\n", "remedy\n"])
    done = bare.operate(target, **variables)
    assert (done.code, done.out) == (code, "ok\nremedy\n"), done.err
    (only,) = made
    assert only["metadata"]["labels"] == {"app": "habit-notifier", "habit-notifier/purpose": target}
    assert "ownerReferences" not in only["metadata"]
    assert only["spec"]["restartPolicy"] == "Never"
    _, container = only["spec"]["containers"]
    assert (container["image"], container["args"], container.get("command")) == ("r/n:v1", arguments, None)
    assert {each["name"]: each["value"] for each in container["env"]} == {"SHARD_COUNT": "1", "OTHER": "stays"}
    assert not bare.of("Pod")


def test_two_questions_of_one_second_have_a_pod_each(cluster: Cluster) -> None:
    made = asked_pod(cluster, ended(0), [])
    for _ in range(2):
        cluster.does("explain", USER_ID="42")
        cluster.now += 0.001
    assert len({pod["metadata"]["name"] for pod in made}) == 2


@pytest.mark.parametrize("remedy", STUCK)
def test_a_question_that_cannot_start_is_explained_and_its_pod_goes(cluster: Cluster, remedy: str) -> None:
    asked_pod(cluster, STUCK[remedy], [])
    err = cluster.refuses("preflight")
    assert re.search(rf"the pod does not start: \w+: .*\nRemedy: .*{remedy}", err)
    assert not cluster.of("Pod")


def test_a_refusal_without_a_remedy_has_none(cluster: Cluster) -> None:
    cluster.refusals["create job"] = 'jobs is forbidden: User "system:serviceaccount:ci:dev" cannot create resource'
    assert cluster.refuses("test").endswith("the cluster takes no Job: " + cluster.refusals["create job"] + "\n")


@no_pods
def test_a_question_whose_pod_the_cluster_refuses_has_the_remedy(cluster: Cluster, why: str, remedy: str) -> None:
    cluster.refusals["create -f -"] = f'pods "p" is forbidden: {why}'
    assert f'the cluster takes no pod: pods "p" is forbidden: {why}\n{remedy}' in cluster.refuses("preflight")


def test_a_question_whose_pod_is_evicted_does_not_end_well(cluster: Cluster) -> None:
    asked_pod(cluster, {"phase": "Failed", "reason": "Evicted", "message": "disk"}, [])
    done = cluster.operate("preflight")
    assert (done.code, "ended before it started (Evicted: disk)" in done.out) == (1, True)


def test_the_pod_of_a_question_goes_whatever_happens(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    made = asked_pod(cluster, container({"running": {}}), [])
    monkeypatch.setattr(time, "sleep", Mock(side_effect=SystemExit))
    with pytest.raises(SystemExit):
        cluster.operate("dry-run")
    assert made
    assert not cluster.of("Pod")


def test_a_second_ctrl_c_does_not_keep_the_pod_of_a_question(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_pod(cluster, container({"running": {}}), [])
    seen, before = watch_deletion(monkeypatch), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(time, "sleep", Mock(side_effect=KeyboardInterrupt))
    assert cluster.operate("dry-run").code == 130
    assert seen == [signal.SIG_IGN] * 2
    assert not cluster.of("Pod")
    assert signal.getsignal(signal.SIGINT) is before


def test_explain_needs_a_user(cluster: Cluster) -> None:
    assert "make explain USER_ID=42" in cluster.operate("explain", USER_ID="").err


def test_the_shell_is_no_shard_and_ends_as_its_script(bare: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    bare.objects.append(cronjob(env=[{"name": "SHARD_COUNT", "value": "4"}]))
    made = asked_pod(bare, container({"running": {}}), [])
    ran: list[list[str]] = []

    def shell(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", shell)
    assert bare.operate("shell").code == 3
    (only,) = made
    _, container_ = only["spec"]["containers"]
    assert (container_["command"], container_["args"]) == (["sleep", "3600"], None)
    assert container_["env"] == [{"name": "SHARD_COUNT", "value": "1"}]
    assert ran[0][-2:] == ["--", "/bin/sh"]
    assert only["metadata"]["name"] in ran[0]
    assert not bare.of("Pod")


# --- undeploy, clean-jobs, and all of them ----------------------------------------------------------------------------


def test_undeploy_keeps_namespace_and_secret(cluster: Cluster) -> None:
    cluster.objects.append(secret(SECRETS))
    job(cluster)
    pod(cluster, "p", ended(0))
    out = cluster.does("undeploy")
    assert sorted(each["kind"] for each in cluster.sent) == ["ConfigMap", "NetworkPolicy", "ServiceAccount"]
    assert [each["kind"] for each in cluster.objects] == ["Namespace", "Secret"]
    assert "PURGE=yes" in out


@pytest.mark.parametrize("target", ["deploy", "undeploy"])
def test_a_namespace_that_the_files_are_not_for_is_left_alone(cluster: Cluster, target: str) -> None:
    assert "k8s is for namespace habit-tracker. Another" in cluster.refuses(target, NAMESPACE="habit-tracker-staging")
    assert cluster.of("CronJob")


@pytest.mark.parametrize("kind", ["deployments", "Secret"])
def test_purge_leaves_a_namespace_that_others_use(cluster: Cluster, kind: str) -> None:
    cluster.objects += [secret(SECRETS), {"kind": kind, "metadata": {"name": "somebody-else"}}]
    out = cluster.does("undeploy", PURGE="yes")
    assert not cluster.of("Secret", "habit-notifier-secrets")
    assert cluster.of("Namespace")
    assert "somebody-else" in out


def test_purge_leaves_a_namespace_that_the_files_do_not_make(ready: Cluster) -> None:
    edit(ready, "k8s/kustomization.yaml", "  - namespace.yaml\n", "")
    out = ready.does("undeploy", PURGE="yes")
    assert [each["kind"] for each in ready.objects] == ["Namespace"]
    assert "stays, as k8s does not make it" in out


@pytest.mark.parametrize("target", script.TARGETS)
def test_an_overlay_that_renames_the_job_is_told(ready: Cluster, target: str) -> None:
    overlay = ready.root / "overlays/prefixed"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text("namePrefix: prod-\nresources: [../../k8s]\n")
    err = ready.refuses(target, OVERLAY="overlays/prefixed")
    assert f"make {target}: kustomize makes no CronJob habit-notifier of overlays/prefixed. Another" in err


def test_a_namespace_that_is_not_ours_to_make_has_the_remedy(ready: Cluster) -> None:
    why = 'namespaces "habit-tracker" is forbidden: User "dev" cannot patch resource "namespaces" in API group ""'
    ready.refusals["--dry-run=server"] = why
    err = ready.refuses("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert f"{why}\nRemedy: is the namespace not yours to make? Take it out, as docs/gitops.md shows." in err


def test_an_operator_that_is_not_there_stops_a_deploy_with_the_remedy_and_no_undeploy(ready: Cluster) -> None:
    edit(ready, "k8s/kustomization.yaml", "# components:", "components:\n  - components/monitoring")
    ready.unknown = "PrometheusRule"
    err = ready.refuses("deploy", IMAGE_NAME="r/n", IMAGE_TAG="v1")
    assert "nothing was applied" in err
    assert "take the component out" in err
    ready.does("undeploy", PURGE="yes")
    assert ready.objects == []


def test_a_command_that_is_told_is_for_the_same_environment(cluster: Cluster) -> None:
    staging = {"CONTEXT": "elsewhere", "OVERLAY": "overlays/staging"}
    same = "CONTEXT=elsewhere OVERLAY=overlays/staging"
    assert f"A run right now: make test {same}" in cluster.does("status", **staging)
    assert f"Make it: make secret {same}" in cluster.refuses("deploy", **staging)
    assert f"make update-image {same} IMAGE_NAME=r/n IMAGE_TAG=v1" in cluster.does(
        "update-image", IMAGE_TAG="v2", **staging
    )


def test_clean_jobs_deletes_finished_runs_only(cluster: Cluster) -> None:
    job(cluster, "done", status=condition("Complete"))
    job(cluster, "failed", status=condition("Failed"))
    job(cluster)
    for phase in ("Succeeded", "Failed", "Running"):  # of questions, whose make was killed, or is still there
        cluster.add("Pod", phase, labels={"habit-notifier/purpose": "dry-run"}, status={"phase": phase})
    assert cluster.operate("clean-jobs").code == 0
    assert [each["metadata"]["name"] for each in cluster.of("Job")] == [JOB]
    assert [each["metadata"]["name"] for each in cluster.of("Pod")] == ["Running"]
    assert "no finished Jobs" in cluster.operate("clean-jobs").out


def test_another_environment_is_another_namespace(cluster: Cluster) -> None:
    cluster.does("suspend", OVERLAY="overlays/staging", CONTEXT="elsewhere")
    (patch,) = (call for call in cluster.calls if "patch cronjob" in call)
    assert patch.startswith("--context elsewhere --namespace habit-tracker-staging ")


def test_a_named_namespace_needs_no_files(cluster: Cluster) -> None:
    cluster.does("suspend", OVERLAY="overlays/half-edited", NAMESPACE="habit-tracker")
    assert cluster.of("CronJob")[0]["spec"]["suspend"] is True


NEED_A_CRONJOB = ["test", "status", "shell", "suspend", "resume", "stop", "preflight", "dry-run"]


@pytest.mark.parametrize("target", NEED_A_CRONJOB)
def test_before_the_first_deploy_the_remedy_is_told(bare: Cluster, target: str) -> None:
    err = bare.refuses(target)
    assert f"make {target}: there is no CronJob habit-notifier in namespace habit-tracker of " in err
    assert "Deploy it: make deploy" in err


@pytest.mark.parametrize("target", script.TARGETS)
def test_without_a_cluster_the_remedy_is_told(cluster: Cluster, target: str) -> None:
    cluster.refusals["--raw /version"] = "The connection to the server localhost:8080 was refused"
    err = cluster.refuses(target)
    assert f"make {target}: kubectl reaches no cluster (The connection to the server localhost:8080" in err
    assert "kubectl config use-context" in err


def test_without_kubectl_the_remedy_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transport, "run", REAL_RUN)
    assert "make status: kubectl is not here. Install it" in cluster.refuses("status", PATH=str(tmp_path))
