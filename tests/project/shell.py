"""Commands as a person at a shell gives them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def ran(*command: str, cwd: Path = ROOT, seconds: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """What a command did and said, with nobody at the keyboard; in the project's folder, unless told otherwise."""
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=seconds, **{"check": False, **options}
    )


def program(file: Path, script: str) -> Path:
    """Makes the file a program, of which this is the script; the file."""
    file.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def project_in(folder: Path) -> Path:
    """A copy of what an operator needs of the project, its placeholders filled in, but for the image."""
    project = folder / "project"
    project.mkdir()
    shutil.copy(ROOT / "Makefile", project)
    for name in ("app", "hack", "k8s", "overlays"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = project / "k8s/configmap.yaml"
    text = config.read_text().replace("your-mysql-host", "mysql.example.com")
    config.write_text(re.sub("TWILIO_FROM_NUMBER: .*", 'TWILIO_FROM_NUMBER: "+15005550006"', text))
    return project
