"""Task figures per cell since the start of the process (tasks.md 12)."""

from __future__ import annotations

from bbs_server.core.outcome import Count

KINDS = ("started", "failed", "succeeded")
"""In the order in which they are reported (task-convergence.md 5)."""


class TaskCounts:
    """Totals per cell, cells in the order of their first count. Never reset."""

    def __init__(self) -> None:
        self.by_cell: dict[str, dict[str, int]] = {}

    def add(self, call: Count) -> None:
        counts = self.by_cell.get(call.cell_id)
        if counts is None:
            counts = self.by_cell[call.cell_id] = dict.fromkeys(KINDS, 0)
        counts[call.what] += 1
