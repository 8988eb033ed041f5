"""Whether to work at length, as `make check FULL=1` and `make bench FULL=1` do."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

FULL = os.environ.get("FULL", "") not in ("", "0")


def sample(full: T, short: T) -> T:
    """All of it under FULL=1; else a part that is always the same."""
    return full if FULL else short
