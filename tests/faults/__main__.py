"""`python -m tests.faults RUNS SEED`: play so many scenes, and tell what hit and what held."""

from __future__ import annotations

import sys

from tests.faults.driver import main

if __name__ == "__main__":
    sys.exit(main())
