"""The manifests: valid for every Kubernetes that we name, locked down, and in step with the program and each other."""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import habit_notifier as program
from tests.project.manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    Document,
    build,
    build_with,
    load,
    promtool,
    read,
    scanner,
    uncommented,
)
from tests.project.shell import ROOT, ran

OLDEST = "1.29.0"
VERSIONS = [OLDEST, "newest"]
BUILDS: dict[str, Path | list[Path]] = {"base": K8S, "with everything": COMPONENTS}  # a folder, or components
BUILDS |= {f"with {folder.name}": [folder] for folder in COMPONENTS} | {folder.name: folder for folder in OVERLAYS}
ALERTS = Path(__file__).with_name("alerts.yaml")
SCHEMAS = Path(__file__).with_name("schemas")
CRDS = {
    ("external-secrets.io/v1", "ExternalSecret"): SCHEMAS / "external-secrets.io-v1-ExternalSecret.json",
    ("monitoring.coreos.com/v1", "PrometheusRule"): SCHEMAS / "monitoring.coreos.com-v1-PrometheusRule.json",
}
WAIVERS = {"CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_40", "CKV_K8S_43"}
EXAMPLES = {"MESSAGE_NO_LOGS", "MESSAGE_MISSED_YESTERDAY", "SEND_WINDOW", "MAX_TEXTS", "LOG_FORMAT", "LOG_PII"}
STANDARD = {"HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"}  # the program's libraries read these

DECLARED: dict[str, Mapping[str, Any]] = {it.name.upper(): it.metadata for it in fields(program.Settings)}
SECRETS = {name for name, metadata in DECLARED.items() if metadata["secret"]}
LABELS = {
    "app": "habit-notifier",
    "app.kubernetes.io/name": "habit-notifier",
    "app.kubernetes.io/component": "notifier",
    "app.kubernetes.io/part-of": "habit-tracker",
}
BY_THE_JOB = {"SHARD_COUNT", "JOB_COMPLETION_INDEX"}
"""A Job that is at work keeps its own: they stand in its pods, and never in the ConfigMap."""


@pytest.fixture(scope="module", params=BUILDS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base, each component, all of them, and each overlay, as kustomize builds them."""
    what = BUILDS[request.param]
    return build(what) if isinstance(what, Path) else build_with(what, tmp_path_factory.mktemp("build"))


def of_kind(documents: list[Document], kind: str) -> Document:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


@pytest.fixture
def cronjob() -> Document:
    return read(K8S / "cronjob.yaml")


@pytest.fixture
def job(cronjob: Document) -> Any:
    return cronjob["spec"]["jobTemplate"]["spec"]


@pytest.fixture
def pod(job: Document) -> Any:
    return job["template"]["spec"]


@pytest.fixture
def container(pod: Document) -> Any:
    (found,) = pod["containers"]
    return found


@pytest.fixture
def config() -> Document:
    return read(K8S / "configmap.yaml")


@pytest.fixture
def policy() -> Any:
    return read(K8S / "networkpolicy.yaml")["spec"]


# --- valid ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_build_is_valid_for_the_oldest_and_the_newest_kubernetes(
    built: str, version: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(built)
    options = [] if version == "newest" else ["-k", version]
    done = ran(scanner("kubernetes-validate"), "--strict", *options, str(file), seconds=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    unknown = re.findall(r"find schema for kind (\S+) with api version (\S+)", said)
    assert said.count("WARN") == len(unknown), said
    assert {(api, kind) for kind, api in unknown} <= CRDS.keys(), f"no schema for these: pin their CRD in {SCHEMAS}"
    assert said.count("passed for resource") + len(unknown) == len(load(built))


def test_custom_resources_follow_their_pinned_definition(built: str) -> None:
    documents = [d for d in load(built) if (d["apiVersion"], d["kind"]) in CRDS]
    for document in documents:
        schema = closed(json.loads(CRDS[document["apiVersion"], document["kind"]].read_text()))
        validate(document, schema)
        with pytest.raises(AssertionError, match="Additional properties"):
            validate(document | {"spec": document["spec"] | {"noSuchField": 1}}, schema)


def closed(schema: Any) -> Any:
    """The schema with every object closed, as a strict API server takes it."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(value) for name, value in schema.items()}
    if result.get("type") == "object" and result.get("properties") and "additionalProperties" not in result:
        result["additionalProperties"] = False
    if result.get("properties", {}).get("metadata") == {"type": "object"}:
        result["properties"] = {**result["properties"], "metadata": {}}
    return result


def validate(document: Document, schema: Any) -> None:
    code = "import json, sys, jsonschema; jsonschema.validate(*json.load(sys.stdin))"
    text = json.dumps([document, schema])
    done = ran(scanner("python"), "-c", code, input=text)
    assert done.returncode == 0, done.stderr


def test_checkov_finds_exactly_what_we_waived(tmp_path: Path) -> None:
    waived = set(re.findall(r"^  - (CKV_\w+)  # \S+", (ROOT / "hack/checkov.yaml").read_text(), flags=re.MULTILINE))
    assert waived == WAIVERS
    for name, text in (("base", build(K8S)), ("everything", build_with(COMPONENTS, tmp_path))):
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        options = ["-m", "checkov.main", "--framework", "kubernetes", "--skip-download", "-o", "json", "-f", str(file)]
        done = ran(scanner("python"), *options, seconds=200)
        report = json.loads(done.stdout)
        assert report["summary"]["passed"] > 50, done.stderr
        assert {check["check_id"] for check in report["results"]["failed_checks"]} == WAIVERS


# --- what no linter knows: labels and names ---------------------------------------------------------------------------


def test_every_object_is_labelled_and_in_the_namespace(built: str) -> None:
    documents = load(built)
    namespace = of_kind(documents, "Namespace")["metadata"]["name"]
    for document in documents:
        assert document["metadata"]["labels"].items() >= LABELS.items()
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == namespace


def test_pods_and_selectors_have_one_label_that_never_changes(built: str) -> None:
    documents = load(built)
    job = of_kind(documents, "CronJob")["spec"]["jobTemplate"]
    for labelled in (job, job["spec"]["template"]):
        assert labelled["metadata"]["labels"] == {"app": "habit-notifier"}
    assert of_kind(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == {"app": "habit-notifier"}


def test_the_recommended_labels_are_written_once() -> None:
    (labels,) = read(K8S / "kustomization.yaml")["labels"]
    assert labels == {"pairs": LABELS}  # neither selectors nor templates
    texts = [path.read_text() for path in K8S.rglob("*.yaml")]
    assert sum(text.count("app.kubernetes.io/name") for text in texts) == 1


def test_what_the_pod_refers_to_is_there(built: str) -> None:
    documents = load(built)
    pod = of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["serviceAccountName"] == of_kind(documents, "ServiceAccount")["metadata"]["name"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": of_kind(documents, "ConfigMap")["metadata"]["name"]}},
        {"secretRef": {"name": "habit-notifier-secrets"}},
    ]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_names_are_the_interface(cronjob: Document, config: Document) -> None:
    assert (cronjob["metadata"]["name"], cronjob["metadata"]["namespace"]) == ("habit-notifier", "habit-tracker")
    assert cronjob["spec"]["schedule"] == "0 9 * * *"
    assert cronjob["spec"]["timeZone"] == "Etc/UTC"
    assert {"DB_HOST", "DB_PORT", "DB_NAME", "TWILIO_FROM_NUMBER"} <= config["data"].keys()


# --- the program's settings -------------------------------------------------------------------------------------------


def test_the_manifests_show_no_variable_that_the_program_does_not_read() -> None:
    shown = load(uncommented((K8S / "configmap.yaml").read_text()))[0]["data"].keys()
    assert shown <= DECLARED.keys() - SECRETS - BY_THE_JOB | STANDARD
    assert set(secret_template()["stringData"]) == SECRETS


def test_components_and_overlays_set_no_other_variables(built: str) -> None:
    documents = load(built)
    (container,) = of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert of_kind(documents, "ConfigMap")["data"].keys() <= DECLARED.keys() - SECRETS - BY_THE_JOB | STANDARD
    # Kubernetes sets the other one, and only where a template has none of that name.
    assert [variable["name"] for variable in container.get("env", [])] in ([], ["SHARD_COUNT"])


def test_what_the_config_shows_is_an_example_or_the_default() -> None:
    shown = load(uncommented((K8S / "configmap.yaml").read_text()))[0]["data"]
    for name, value in shown.items():
        default = DECLARED.get(name, {}).get("default")
        assert name in EXAMPLES or not default or value == default, name


def test_a_number_can_be_written_over_a_placeholder_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "configmap.yaml"
    file.write_text(re.sub(r"your-[a-z-]+", "+15005550006", (K8S / "configmap.yaml").read_text()))
    assert read(file)["data"]["TWILIO_FROM_NUMBER"] == "+15005550006"


def test_every_value_of_the_config_is_a_string(built: str) -> None:
    assert all(isinstance(value, str) for value in of_kind(load(built), "ConfigMap")["data"].values())


def test_placeholders_are_what_the_program_and_the_makefile_refuse(config: Document, container: Document) -> None:
    placeholders = {name for name, value in config["data"].items() if value.startswith("your-")}
    assert placeholders == {"DB_HOST", "TWILIO_FROM_NUMBER"}
    assert container["image"].startswith("your-")
    for value in [*(config["data"][name] for name in placeholders), *secret_template()["stringData"].values()]:
        assert program.PLACEHOLDER.fullmatch(value)


# --- the Secret and suspend are never touched -------------------------------------------------------------------------


def secret_template() -> Document:
    """k8s/secret.yaml as a user fills it in: without the comment signs, the optional keys switched on."""
    text = (K8S / "secret.yaml").read_text()
    example = text[text.index("# apiVersion:") :]
    (document,) = load(uncommented(re.sub(r"^# ?", "", example, flags=re.MULTILINE)))
    return document


def test_the_secret_is_a_template_that_applies_nothing() -> None:
    assert load((K8S / "secret.yaml").read_text()) == []
    template = secret_template()
    assert (template["kind"], template["metadata"]["name"]) == ("Secret", "habit-notifier-secrets")


def test_no_build_holds_a_secret_or_touches_suspend(built: str) -> None:
    documents = load(built)
    assert "Secret" not in {document["kind"] for document in documents}
    assert "suspend" not in of_kind(documents, "CronJob")["spec"]


def test_the_kustomization_lists_every_file_but_the_secret() -> None:
    listed = set(read(K8S / "kustomization.yaml")["resources"])
    assert listed == {file.name for file in K8S.glob("*.yaml")} - {"kustomization.yaml", "secret.yaml"}


def test_the_kustomization_offers_every_component() -> None:
    text = (K8S / "kustomization.yaml").read_text()
    assert set(re.findall(r"^#   - components/(\S+)$", text, flags=re.MULTILINE)) == {f.name for f in COMPONENTS}


@pytest.mark.parametrize("document", ["CRONJOB_README.md", "DEPLOYMENT.md"])
def test_what_a_document_says_to_uncomment_is_enough(document: str, tmp_path: Path) -> None:
    [said] = re.findall("`k8s/kustomization.yaml`: uncomment (.*)", (ROOT / document).read_text())
    file = shutil.copytree(K8S, tmp_path / "k8s") / "kustomization.yaml"
    for name in re.findall("`(.+?)`", said):
        file.write_text(re.sub(f"^# (.*{name})$", r"\1", file.read_text(), flags=re.MULTILINE))
    assert "SEND_WINDOW" in build(file.parent)


# --- the job ----------------------------------------------------------------------------------------------------------


def test_exit_codes_and_failure_policy_fit(job: Document, pod: Document, container: Document) -> None:
    act, disrupted = job["podFailurePolicy"]["rules"]
    assert act["action"] == "FailJob"
    codes = [program.Exit.ACT.value]
    assert act["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": codes}
    # Without status: "True" the API server sees a change at every apply.
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    assert job["backoffLimit"] == 2


# Nothing holds a run for longer than the watchdog lets it, but the pings, and the watchdog's own two looks a second.
ENDING = program.WATCHDOG_LIMIT + program.PING_SECONDS + 1


def test_the_program_ends_itself_before_the_job_is_killed(job: Document) -> None:
    deadline, post = int(DECLARED["RUN_DEADLINE"]["default"]), sum(program.HTTP_TIMEOUT)
    assert program.PING_SECONDS + deadline + program.DEADLINE_LIMIT + ENDING < job["activeDeadlineSeconds"]
    ending = post + program.LATE_PATIENCE + program.DATABASE_TIMEOUT + program.SETTLE_BUDGET + post
    assert deadline + ending < job["activeDeadlineSeconds"]
    gone = 2 * program.DATABASE_PATIENCE + 2 * program.OUTAGE_PATIENCE  # in mid-run, and for both retries
    assert gone < job["activeDeadlineSeconds"]


def test_the_program_ends_itself_within_the_grace_period(pod: Document) -> None:
    assert sum(program.HTTP_TIMEOUT) + program.LAST_TIMEOUT < program.TERM_LIMIT  # what is in flight has its answer
    assert pod["terminationGracePeriodSeconds"] > program.TERM_LIMIT + ENDING
    record = program.LATE_PATIENCE + program.DATABASE_TIMEOUT
    assert sum(program.HTTP_TIMEOUT) + record < pod["terminationGracePeriodSeconds"]


def test_runs_do_not_overlap_and_a_missed_one_is_made_up_for(cronjob: Document) -> None:
    spec = cronjob["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] == 3600
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (3, 3)
    assert spec["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] == 3 * 24 * 3600


def test_a_local_morning_is_an_hourly_run_and_a_window_that_it_meets(tmp_path: Path) -> None:
    documents = load(build_with([K8S / "components/local-morning"], tmp_path))
    spec = of_kind(documents, "CronJob")["spec"]
    assert spec["schedule"] == "0 * * * *"  # a window of an hour or more meets it in every zone
    assert of_kind(documents, "ConfigMap")["data"]["SEND_WINDOW"] == "09:00-20:00"
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] <= 1800 < spec["startingDeadlineSeconds"] <= 3600
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (24, 24)
    pods = 24 + 24 * (1 + spec["jobTemplate"]["spec"]["backoffLimit"])
    own = tmp_path / "k8s/configmap.yaml"
    own.write_text(re.sub('# (SEND_WINDOW: ")09', r"\g<1>11", own.read_text()))
    assert of_kind(load(build(own.parent)), "ConfigMap")["data"]["SEND_WINDOW"] == "09:00-20:00"
    for file in (own, tmp_path / "k8s/components/local-morning/kustomization.yaml"):
        assert "gives way" in file.read_text()  # so who wants another window is told where to write it
    follow = re.search("--max-log-requests=([0-9]+)", (ROOT / "CRONJOB_README.md").read_text())
    assert follow
    assert int(follow[1]) > pods  # kubectl counts those that ended, too, and refuses to follow more


# --- shards -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[4, 16])
def shards(request: pytest.FixtureRequest) -> Any:
    """How many: the component's own number, and another one that somebody writes into its file."""
    return request.param


@pytest.fixture
def sharded(shards: int, tmp_path: Path) -> Any:
    """The job with that many shards, as an overlay builds it that patches something else."""
    build_with([K8S / "components/sharded"], tmp_path)
    component = tmp_path / "k8s/components/sharded/kustomization.yaml"
    before, after = component.read_text().split("completions: 4\n")
    component.write_text(f"{before}completions: {shards}\n{after}")
    (tmp_path / "overlay").mkdir()
    patch = {"target": {"kind": "CronJob"}, "patch": '[{"op": "remove", "path": "/spec/timeZone"}]'}
    overlay = {"resources": ["../k8s"], "patches": [patch]}
    (tmp_path / "overlay/kustomization.yaml").write_text(json.dumps(overlay))
    return of_kind(load(build(tmp_path / "overlay")), "CronJob")["spec"]["jobTemplate"]["spec"]


def test_the_number_of_shards_is_written_once(sharded: Document, shards: int) -> None:
    (container,) = sharded["template"]["spec"]["containers"]
    assert sharded["completionMode"] == "Indexed"  # numbers the pods from 0, in JOB_COMPLETION_INDEX
    assert sharded["completions"] == sharded["parallelism"] == shards
    assert container["env"] == [{"name": "SHARD_COUNT", "value": str(shards)}]


def test_shards_spread_over_the_nodes_and_one_node_will_do(sharded: Document) -> None:
    (spread,) = sharded["template"]["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"].items() <= sharded["template"]["metadata"]["labels"].items()


def test_a_shard_is_tried_again_by_itself_and_exit_2_stops_them_all(sharded: Document, job: Document) -> None:
    assert sharded["backoffLimitPerIndex"] == job["backoffLimit"]
    assert "backoffLimit" not in sharded  # it would end all shards at once
    assert sharded["podFailurePolicy"] == job["podFailurePolicy"]


# --- locked down ------------------------------------------------------------------------------------------------------


def test_the_pod_has_no_privilege(built: str) -> None:
    documents = load(built)
    pod = of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (1000, 1000, 1000)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert of_kind(documents, "ServiceAccount")["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for bounds in container["resources"].values():
            assert bounds.keys() == {"cpu", "memory", "ephemeral-storage"}
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    for volume in pod["volumes"]:
        assert volume.keys() & {"configMap", "emptyDir", "secret"}, "nothing of the node"
        assert volume.get("emptyDir", {"sizeLimit": ""}).keys() == {"sizeLimit"}


def test_the_namespace_enforces_pod_security(built: str) -> None:
    labels = of_kind(load(built), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_nobody_is_given_a_permission_but_the_viewers(built: str) -> None:
    documents = load(built)
    given = [document for document in documents if document["apiVersion"].startswith("rbac.authorization.k8s.io/")]
    names = {(document["kind"], document["metadata"]["name"]) for document in given}
    assert names <= {("Role", "habit-notifier-viewer"), ("RoleBinding", "habit-notifier-viewers")}


def test_the_viewers_only_look() -> None:
    role, binding = load((K8S / "components/viewers/viewers.yaml").read_text())
    may = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    seen = {"cronjobs", "jobs", "pods", "pods/log", "events"}
    assert may == {(resource, verb) for resource in seen for verb in ("get", "list", "watch")}
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    assert [subject["kind"] for subject in binding["subjects"]] == ["Group"]


# --- the network ------------------------------------------------------------------------------------------------------

PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "127.0.0.0/8"]


def test_nothing_comes_in_and_only_names_mysql_and_https_go_out(policy: Document) -> None:
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert not policy.get("ingress")
    ports = [sorted((port["protocol"], port["port"]) for port in rule["ports"]) for rule in policy["egress"]]
    assert ports == [[("TCP", 53), ("UDP", 53)], [("TCP", 443)], [("TCP", 3306)]]


def test_https_goes_to_public_addresses_only(policy: Document) -> None:
    (to,) = policy["egress"][1]["to"]
    assert to == {"ipBlock": {"cidr": "0.0.0.0/0", "except": PRIVATE}}
    for address in ("10.96.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "172.31.255.255", "127.0.0.1"):
        assert any(ipaddress.ip_address(address) in ipaddress.ip_network(block) for block in PRIVATE)


def test_names_are_asked_of_the_cluster_only(policy: Document) -> None:
    service, cache, cloud_dns = policy["egress"][0]["to"]
    (dns,) = service["podSelector"]["matchExpressions"]
    assert dns == {"key": "k8s-app", "operator": "In", "values": ["kube-dns"]}
    assert service["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kube-system"}
    assert cache == {"ipBlock": {"cidr": "169.254.20.10/32"}}
    assert cloud_dns == {"ipBlock": {"cidr": "169.254.169.254/32"}}  # of which the metadata service is another port


@pytest.mark.parametrize("more", ["commonLabels: {team: a}", "labels: [{includeSelectors: true, pairs: {team: a}}]"])
def test_labels_of_an_overlay_change_our_pods_and_nobody_else_s(policy: Document, more: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    (tmp_path / "kustomization.yaml").write_text(f"resources: [k8s]\n{more}\n")
    built = of_kind(load(build(tmp_path)), "NetworkPolicy")["spec"]
    assert built["podSelector"]["matchLabels"] == {"app": "habit-notifier", "team": "a"}
    assert built["egress"] == policy["egress"]


def test_port_of_config_and_policy_agree(config: Document, policy: Document) -> None:
    assert policy["egress"][2]["ports"] == [{"protocol": "TCP", "port": int(config["data"]["DB_PORT"])}]


def test_the_rules_to_fill_in_narrow_mysql_and_https(policy: Document, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    file = tmp_path / "k8s/networkpolicy.yaml"
    file.write_text(
        re.sub(r"^( *)# (?=- to:|to:| +- ipBlock|  ports:| +- \{)", r"\1", file.read_text(), flags=re.MULTILINE)
    )
    names, https, proxy, mysql = read(file)["spec"]["egress"]
    assert [names, https] == policy["egress"][:2]
    assert proxy == {"to": [{"ipBlock": {"cidr": "10.20.40.50/32"}}], "ports": [{"protocol": "TCP", "port": 3128}]}
    assert mysql == policy["egress"][2] | {"to": [{"ipBlock": {"cidr": "10.20.30.0/24"}}]}


# --- the alerts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def alerts() -> dict[str, Document]:
    (group,) = read(K8S / "components/monitoring/prometheusrule.yaml")["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_the_alerts_speak_when_they_must(tmp_path: Path) -> None:
    rules = read(K8S / "components/monitoring/prometheusrule.yaml")["spec"]
    (tmp_path / "rules.yaml").write_text(json.dumps(rules))
    shutil.copy(ALERTS, tmp_path)
    done = ran(promtool(), "test", "rules", "alerts.yaml", cwd=tmp_path, seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_speaking_and_silent(alerts: dict[str, Document]) -> None:
    cases = [case for test in read(ALERTS)["tests"] for case in test["alert_rule_test"]]
    for expected in (True, False):
        assert {case["alertname"] for case in cases if bool(case.get("exp_alerts")) is expected} == alerts.keys()


def test_every_alert_leads_to_its_part_of_the_runbook(alerts: dict[str, Document]) -> None:
    headings = re.findall(r"^#+ (.*)$", (ROOT / "DEPLOYMENT.md").read_text(), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook_url"] == f"DEPLOYMENT.md#alert-{name.lower()}"
        assert f"alert-{name.lower()}" in anchors


def test_the_alert_of_a_long_run_follows_the_deadline(alerts: dict[str, Document]) -> None:
    assert f"> {DECLARED['RUN_DEADLINE']['default']}\n" in alerts["HabitNotifierRunningLong"]["expr"]


def test_the_alert_of_no_success_has_its_hours_in_both_places(alerts: dict[str, Document]) -> None:
    expression = alerts["HabitNotifierNoSuccess"]["expr"]
    assert re.findall(r"\[(\d+)h\]", expression) == re.findall(r"> (\d+) \* 3600", expression) == ["26"]


def test_the_alerts_move_to_another_namespace_as_the_example_shows(tmp_path: Path, alerts: dict[str, Document]) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    shutil.copytree(ROOT / "overlays", tmp_path / "overlays")
    file = tmp_path / "overlays/staging/kustomization.yaml"
    before, after = file.read_text().split("# components:\n")
    file.write_text(before + "components:\n" + re.sub(r"^# (?=replacements:|  )", "", after, flags=re.MULTILINE))
    (group,) = of_kind(load(build(file.parent)), "PrometheusRule")["spec"]["groups"]
    moved = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    here, there = ('namespace="habit-tracker"', 'namespace="habit-tracker-staging"')
    for name, rule in alerts.items():
        assert rule["expr"].count(here) == 1
        assert moved[name] == rule["expr"].replace(here, there)


# --- the documents ----------------------------------------------------------------------------------------------------


DOCUMENTS = [ROOT / "DEPLOYMENT.md", K8S / "README.md", ROOT / "docs/gitops.md"]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_readme_names_every_file_and_component() -> None:
    text = (K8S / "README.md").read_text()
    for path in [*K8S.glob("*.yaml"), *COMPONENTS, *OVERLAYS]:
        assert f"`{path.name}`" in text or f"`{path.parent.name}/{path.name}`" in text, path.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_shell_blocks_are_shell(document: Path) -> None:
    for block in blocks(document, "bash"):
        done = ran(scanner("shellcheck"), "--shell=bash", "-", input=block)
        assert done.returncode == 0, done.stdout


def test_the_example_of_an_overlay_builds(tmp_path: Path) -> None:
    (example,) = (block for block in blocks(K8S / "README.md", "yaml") if "kind: Kustomization" in block)
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "overlays" / "mine"
    overlay.mkdir(parents=True)
    (overlay / "kustomization.yaml").write_text(example)
    documents = load(build(overlay))
    pod = of_kind(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "128Mi"}
    assert {volume["name"] for volume in pod["volumes"]} == {"tmp", "mysql-ca"}
    assert of_kind(documents, "Role")["metadata"]["labels"]["app"] == "habit-notifier"


def test_the_overlay_for_a_strict_platform_does_what_it_says(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "docs/gitops.md", "yaml")
    shutil.copytree(K8S, tmp_path / "habit-notifier/k8s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/kustomization.yaml").write_text(example)
    documents = load(build(tmp_path / "mine"))
    assert {each["metadata"]["namespace"] for each in documents} == {"team-reminders"}  # and no Namespace
    cronjob, policy = of_kind(documents, "CronJob")["spec"], of_kind(documents, "NetworkPolicy")["spec"]
    assert cronjob["suspend"] is True
    template = cronjob["jobTemplate"]["spec"]["template"]
    pairs = {"app.kubernetes.io/name": "habit-notifier", "team": "reminders"}
    assert template["metadata"]["labels"] == {"app": "habit-notifier"} | pairs
    (container,) = template["spec"]["containers"]
    assert re.fullmatch(r"mirror\.example\.com/team/habit-notifier@sha256:0{64}", container["image"])
    assert container["resources"]["requests"] == {"cpu": "250m", "memory": "128Mi", "ephemeral-storage": "32Mi"}
    assert policy["egress"][2]["ports"] == [
        {"protocol": "TCP", "port": int(of_kind(documents, "ConfigMap")["data"]["DB_PORT"])}
    ]
    assert of_kind(documents, "ServiceAccount")["imagePullSecrets"] == [{"name": "registry-login"}]
