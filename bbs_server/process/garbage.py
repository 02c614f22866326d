"""Keeps the garbage collector from holding the event loop for long.

The state is hundreds of thousands of long-lived objects without cycles, which a full collection would
visit in vain. They are frozen, i.e. never visited, after loading, and again whenever a full collection
took long because many new ones have come. Reference counting still frees them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping

from bbs_server.process.durations import MILLISECOND

_THRESHOLDS = (20_000, 20, 20)
"""Net allocations of a young collection (a millisecond or two), and how many of each make one of the next kind."""
_LONG = 20 * MILLISECOND
_FULL = 2


def suspend() -> None:
    """While the state is loaded there is nothing to collect, only much to visit."""
    gc.disable()


def settle() -> None:
    """Everything that lives now stays: collect once, then never visit it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.enable()


class Pauses:
    """How long collections took, in ns."""

    def __init__(self) -> None:
        self.last = self.longest = 0
        self._started = 0

    def watch(self) -> None:
        """Measure from now on, and freeze what made a full collection take long."""
        gc.callbacks.append(self._note)

    def _note(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._started = time.perf_counter_ns()
            return
        self.last = time.perf_counter_ns() - self._started
        self.longest = max(self.longest, self.last)
        if info["generation"] == _FULL and self.last > _LONG:
            gc.freeze()
