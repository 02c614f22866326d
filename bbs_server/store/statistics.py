"""What the `DB…` metrics report (server.md 19)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import asyncpg


def _nobody(_commands: int) -> None:
    """Nobody watches the batches."""


@dataclass(slots=True)
class Statistics:
    """Counts since the start; `take_peaks` gives and resets what is a maximum since the last report."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight: int = 0
    commits: int = 0
    commit_time: int = 0
    """ns that all commits together took."""
    on_batch: Callable[[int], None] = _nobody
    """Told of each committed batch how many commands changed something in it."""
    _most_in_flight: int = 0
    _longest: int = 0
    _connections: WeakSet[asyncpg.Connection[Any]] = field(default_factory=WeakSet)

    @property
    def open_connections(self) -> int:
        # The driver does not tell its listeners of every end.
        return sum(not connection.is_closed() for connection in self._connections)

    def opened(self, connection: asyncpg.Connection[Any]) -> None:
        """Count the connection until it ends."""
        self._connections.add(connection)

    def watch(self, connection: asyncpg.Connection[Any]) -> None:
        """Count what is executed on the connection, begins and ends of transactions included.

        The driver does not tell of prepared statements; see `statement`.
        """
        connection.add_query_logger(lambda query: self._over(query.exception is None, int(query.elapsed * 1e9)))

    @contextmanager
    def running(self) -> Iterator[None]:
        """One statement more is in flight during the block."""
        self.in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def statement(self) -> Iterator[None]:
        """Count one statement around its execution."""
        succeeded = False
        started = time.perf_counter_ns()
        try:
            with self.running():
                yield
            succeeded = True
        finally:
            self._over(succeeded, time.perf_counter_ns() - started)

    def _over(self, succeeded: bool, duration: int) -> None:
        self.total += 1
        if succeeded:
            self.succeeded += 1
        else:
            self.failed += 1
        self._longest = max(self._longest, duration)

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
