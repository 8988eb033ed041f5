"""What the tests of manifests, image and Makefile share: where things are, and how to read and build YAML."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.project.shell import ROOT, ran

K8S = ROOT / "k8s"
COMPONENTS = sorted(folder for folder in (K8S / "components").iterdir() if folder.is_dir())
OVERLAYS = sorted(folder for folder in (ROOT / "overlays").iterdir() if folder.is_dir())
SCANNERS = ROOT / ".venv-scan" / "bin"

TO_JSON = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))"

Document = dict[str, Any]


def scanner(name: str) -> str:
    """The path of one of the linters that `make check` installs."""
    if not (SCANNERS / name).exists():
        pytest.skip(f"{name} is not installed: run the tests with make check")
    return str(SCANNERS / name)


def kubectl() -> str:
    found = shutil.which("kubectl")
    if not found:
        pytest.skip("kubectl is not here: the manifests were not built")
    return found


def promtool() -> str:
    """The path of Prometheus' own tester of alerts."""
    found = shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not here (Debian's package prometheus has it): the alerts were not tested")
    return found


def load(text: str) -> list[Document]:
    """The documents of a YAML text."""
    documents: list[Document] = json.loads(_json_of(text))
    return documents


@cache
def _json_of(text: str) -> str:
    done = ran(scanner("python"), "-c", TO_JSON, input=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(path: Path) -> Document:
    """The one document of a file."""
    (document,) = load(path.read_text())
    return document


def build(folder: Path) -> str:
    """What kustomize makes of a folder."""
    done = ran(kubectl(), "kustomize", str(folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_with(components: list[Path], scratch: Path) -> str:
    """What kustomize makes of the base with these components switched on, as a user would: in kustomization.yaml."""
    copy = scratch / "k8s"
    shutil.copytree(K8S, copy)
    names = [str(component.relative_to(K8S)) for component in components]
    with (copy / "kustomization.yaml").open("a") as kustomization:
        kustomization.write(f"components: {json.dumps(names)}\n")
    return build(copy)


def uncommented(text: str) -> str:
    """The text with its commented settings switched on: every line `# NAME: value`, whatever its indentation."""
    return re.sub(r"^( *)# (?:# )?([A-Z][A-Z_]+: )", r"\1\2", text, flags=re.MULTILINE)
