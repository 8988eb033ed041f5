"""The fixtures of the cluster test: each is a step that later ones build on, done once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stage import CREDENTIALS, MARK, NAMESPACE, Cluster, Due, Outside, User, Watch, blocks, missing
from tests.sandbox.fake_twilio import FakeTwilio


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a cluster: skipped, or, in `make e2e`, an error."""
    ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    if not ours or not (names := missing()):
        return
    if os.environ.get("E2E") == "required":
        lines = [f"  {name}: {what}" for name, what in names.items()]
        raise pytest.UsageError("\n".join(["the cluster test needs these variables, see tests/e2e/README.md:", *lines]))
    for item in ours:
        item.add_marker(pytest.mark.skip(f"the cluster test needs {', '.join(names)}: see tests/e2e/README.md"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, without our namespace before and after."""
    found = Cluster()
    if "namespace" in found.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name"):
        left = found.kubectl("get", "namespaces", f"--selector={MARK}", "--output=name")
        if f"namespace/{NAMESPACE}" not in left.split():
            pytest.exit(
                f"This cluster has a namespace {NAMESPACE} that the cluster test did not make, and it would delete it. "
                "Is it a cluster for tests? Then remove it: make undeploy PURGE=yes",
                returncode=4,
            )
        found.kubectl("delete", "namespace", NAMESPACE, seconds=180)
    yield found
    found.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", seconds=180)


@pytest.fixture(scope="session")
def outside() -> Iterator[Outside]:
    """The fake Twilio and the database, which has the account of DEPLOYMENT.md."""
    with Outside() as running:
        yield running


@pytest.fixture(scope="session")
def watch(cluster: Cluster) -> Iterator[Watch]:  # noqa: ARG001 - comes first
    """What became of every pod."""
    with Watch() as watching:
        yield watching


@pytest.fixture(scope="session")
def user(
    cluster: Cluster,
    watch: Watch,  # noqa: ARG001 - comes first
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[User]:
    """The user, with the project as it comes. At the end, whatever happened, everything is gone."""
    somebody = User(tmp_path_factory.mktemp("user"))
    yield somebody
    cluster.here("delete", "pods", "--selector=app!=habit-notifier", "--now", code=None)
    somebody.does("make undeploy PURGE=yes", code=None)


@pytest.fixture(scope="session")
def pushed(user: User) -> None:
    """The image is built and in the registry."""
    user.does("make build IMAGE_NAME=your-registry/habit-notifier IMAGE_TAG=v1.0.0", seconds=500)
    user.does("make push IMAGE_NAME=your-registry/habit-notifier IMAGE_TAG=v1.0.0", seconds=300)


@pytest.fixture(scope="session")
def configured(user: User) -> None:
    """The files have the user's values, as the quick start says under "Update configuration"."""
    user.edit("k8s/configmap.yaml", DB_HOST="mysql.example.com", TWILIO_FROM_NUMBER=f'"{FakeTwilio.FROM_NUMBER}"')
    user.edit("k8s/cronjob.yaml", image=user.tag("v1.0.0"))
    user.quiet()
    user.edit("tests/e2e/overlay/kustomization.yaml", DB_HOST=os.environ["MYSQL_TEST_HOST"])


@pytest.fixture(scope="session")
def secret(cluster: Cluster, user: User) -> str:
    """Namespace and Secret are made by `make secret`, its questions answered at the keyboard; what it showed."""
    shown = user.types("make secret", {**CREDENTIALS, "TWILIO_API_KEY_SID": ""})
    cluster.kubectl("label", "namespace", NAMESPACE, f"{MARK}=yes")
    return shown


@pytest.fixture(scope="session")
def account(outside: Outside) -> None:
    """The database's account, made with the statements of DEPLOYMENT.md."""
    (statements,) = (sql for sql in blocks("DEPLOYMENT.md", "sql") if "CREATE USER" in sql)
    outside.call("administrator", statements)


@pytest.fixture(scope="session")
def deployed(pushed: None, configured: None, secret: str, account: None, user: User) -> str:  # noqa: ARG001
    """The first deploy; what it said."""
    return user.does("make deploy")


@pytest.fixture
def due(deployed: str, outside: Outside) -> Due:  # noqa: ARG001
    """A day on which nobody was texted yet, and who is due."""
    return outside.morning()
