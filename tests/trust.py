"""No context of TLS loads the certificates that the machine trusts: 20 ms for each connection, by the thousand.

PyMySQL makes such a context also where it verifies nothing; who verifies names a file of its own.
"""

from __future__ import annotations

import ssl


def trust_nobody() -> None:
    """Spare this process that."""
    setattr(ssl.SSLContext, "load_default_certs", lambda _context, _purpose=None: None)  # noqa: B010 - for mypy
