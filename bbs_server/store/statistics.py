"""What the `DB…` metrics report (server.md 19)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Statistics:
    """Counts since the start; `take_peaks` gives and resets what is a maximum since the last report."""

    open_connections: int = 0
    total: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    commits: int = 0
    commit_time: int = 0
    """ns that all commits together took."""
    _most_in_flight: int = 0
    _longest: int = 0

    @contextmanager
    def statement(self) -> Iterator[None]:
        """Count one statement around its execution."""
        self.total += 1
        self.in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self.in_flight)
        started = time.perf_counter_ns()
        try:
            yield
        except BaseException:
            self.failed += 1
            raise
        else:
            self.succeeded += 1
        finally:
            self.in_flight -= 1
            self._longest = max(self._longest, time.perf_counter_ns() - started)

    def committed(self, duration: int) -> None:
        """A batch was committed in so many ns."""
        self.commits += 1
        self.commit_time += duration

    def take_peaks(self) -> tuple[int, int]:
        """Most statements at once and the longest one in ns since the last call."""
        peaks = self._most_in_flight, self._longest
        self._most_in_flight = self.in_flight
        self._longest = 0
        return peaks
