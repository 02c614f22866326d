"""Fresh ids. The core is given them: what it does follows from what it is told."""

from __future__ import annotations

import os


def random_guid() -> str:
    """A random lower-case UUID (version 4). Spelled out because thousands are needed at a time."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
