"""What Locket counts, and the metrics it sends (locket.md section 9)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bbs_server.locket.connections import LocketStatistics
from bbs_server.process.metrics import METRIC, NANOS, Kind, Sample

REQUESTS = ("Lock", "Release", "Fetch", "FetchAll")


@dataclass(slots=True)
class Requests:
    """Requests of one kind since the start; `longest` in ns since the last report."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    in_flight: int = 0
    longest: int = 0

    def take_longest(self) -> int:
        taken, self.longest = self.longest, 0
        return taken


@dataclass(slots=True)
class Figures:
    requests: dict[str, Requests] = field(default_factory=lambda: {name: Requests() for name in REQUESTS})
    expired: dict[str, int] = field(default_factory=lambda: {"lock": 0, "presence": 0})

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        """Count one request around its work."""
        row = self.requests[name]
        row.started += 1
        row.in_flight += 1
        began = time.perf_counter_ns()
        try:
            yield
        except asyncio.CancelledError:
            row.cancelled += 1
            raise
        except Exception:
            row.failed += 1
            raise
        else:
            row.succeeded += 1
        finally:
            row.in_flight -= 1
            row.longest = max(row.longest, time.perf_counter_ns() - began)

    def count_expired(self, type_: str) -> None:
        if type_ in self.expired:
            self.expired[type_] += 1


def interval_samples(figures: Figures, statistics: LocketStatistics, locks: int, presences: int) -> Iterator[Sample]:
    """What is sent every `report_interval`. Takes the maxima since the last report."""
    yield from _gauges(("ActiveLocks", locks), ("ActivePresences", presences))
    yield from _database(statistics)
    for name, row in figures.requests.items():
        tags = (("request-type", name),)
        yield from _gauges(
            ("RequestsStarted", row.started),
            ("RequestsSucceeded", row.succeeded),
            ("RequestsFailed", row.failed),
            ("RequestsInFlight", row.in_flight),
            ("RequestsCancelled", row.cancelled),
            tags=tags,
        )
        yield Sample("RequestLatencyMax", Kind.GAUGE, row.take_longest(), NANOS, tags)


def expiry_samples(figures: Figures) -> Iterator[Sample]:
    """What is sent every 60 s."""
    return _gauges(("LocksExpired", figures.expired["lock"]), ("PresenceExpired", figures.expired["presence"]))


def _database(statistics: LocketStatistics) -> Iterator[Sample]:
    most, longest = statistics.take_peaks()
    yield from _gauges(("DBOpenConnections", statistics.open_connections))
    yield Sample("DBWaitDuration", Kind.GAUGE, statistics.wait_time, NANOS)
    yield from _gauges(
        ("DBWaitCount", statistics.waits),
        ("DBQueriesTotal", statistics.total),
        ("DBQueriesSucceeded", statistics.succeeded),
        ("DBQueriesFailed", statistics.failed),
        ("DBQueriesInFlight", most),
    )
    yield Sample("DBQueryDurationMax", Kind.GAUGE, longest, NANOS)


def _gauges(*values: tuple[str, int], tags: tuple[tuple[str, str], ...] = ()) -> Iterator[Sample]:
    return (Sample(name, Kind.GAUGE, value, METRIC, tags) for name, value in values)
