"""Times are ns since the Unix epoch, durations are ns."""

from __future__ import annotations

SECOND = 10**9


def rounded(now: int) -> int:
    """The nearest full second, halves up."""
    return (now + SECOND // 2) // SECOND * SECOND
