"""All metrics as data (server.md section 19): name, kind, unit, when, and where the value comes from."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import groupby
from typing import Generic, Protocol, TypeVar

from bbs_server.core.lrp_convergence import LRPCounts
from bbs_server.core.task_convergence import TaskCounts
from bbs_server.process.durations import SECOND
from bbs_server.process.garbage import Pauses

C = TypeVar("C")

NANOS, METRIC = "nanos", "Metric"


class Kind(Enum):
    GAUGE = "gauge"
    COUNTER = "counter"


class Report(Enum):
    """Metrics that are sent together."""

    LOCK = "every report_interval, also on a standby"
    FILES = "every report_interval, also on a standby "
    RUNTIME = "every 10 s, from process start"
    ELECTED = "once, when becoming master"
    MIGRATED = "once per start, after the migrations"
    ENCRYPTED = "once, if a re-encryption was run"
    REQUESTS = "every report_interval, master only"
    DATABASE = "every 60 s, master only"
    LRPS = "every 15 s, master only"
    TASKS = "every 15 s, master only "


RUNTIME_INTERVAL, CONVERGENCE_INTERVAL, DATABASE_INTERVAL = 10 * SECOND, 15 * SECOND, 60 * SECOND


class DatabaseFigures(Protocol):
    """What the store counts of its statements and connections, since the start."""

    total: int
    succeeded: int
    failed: int
    commits: int
    commit_time: int

    @property
    def open_connections(self) -> int: ...

    def take_peaks(self) -> tuple[int, int]:
        """Most statements at once and the longest one in ns since the last call."""


class Requests:
    """Counts and longest latencies of requests since they were last taken, in total and for watched routes."""

    def __init__(self, counted: Sequence[str] = (), timed: Sequence[str] = ()) -> None:
        self.counted, self.timed = tuple(counted), tuple(timed)
        self._counts: dict[str, int] = dict.fromkeys(("", *counted), 0)
        self._longest: dict[str, int] = dict.fromkeys(("", *timed), 0)

    def count(self, route: str, *, stream: bool = False) -> None:
        """Streams only count in the total, even if they are watched."""
        self._counts[""] += 1
        if route in self._counts and not stream:
            self._counts[route] += 1

    def time(self, route: str, ns: int) -> None:
        if ns > self._longest[""]:
            self._longest[""] = ns
        if ns > self._longest.get(route, ns):
            self._longest[route] = ns

    def take_count(self, route: str) -> int:
        taken, self._counts[route] = self._counts[route], 0
        return taken

    def take_longest(self, route: str) -> int:
        taken, self._longest[route] = self._longest[route], 0
        return taken


@dataclass(slots=True)
class Passes(Generic[C]):
    """What the last pass of a convergence counted and how many ns it took.

    `runs` is their number since it was last taken, `passes` since the start.
    """

    counts: C
    runs: int = 0
    duration: int = 0
    passes: int = 0

    def record(self, counts: C, duration: int) -> None:
        self.counts = counts
        self.duration = duration
        self.runs += 1
        self.passes += 1

    def take_runs(self) -> int:
        taken, self.runs = self.runs, 0
        return taken


NO_LRPS = LRPCounts((), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
NO_TASKS = TaskCounts(0, 0, 0, 0, 0, 0)
"""What is reported before the first pass."""


@dataclass(slots=True)
class Figures:
    """Everything metrics are read from."""

    requests: Requests = field(default_factory=Requests)
    lrps: Passes[LRPCounts] = field(default_factory=lambda: Passes(NO_LRPS))
    tasks: Passes[TaskCounts] = field(default_factory=lambda: Passes(NO_TASKS))
    cell_tasks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Tasks `started`, `failed` and `succeeded` per cell since the process started (tasks.md section 12)."""
    pauses: Pauses = field(default_factory=Pauses)
    database: DatabaseFigures | None = None
    database_peaks: tuple[int, int] = (0, 0)
    lock_held: bool = False
    migration_duration: int = 0
    encryption_duration: int = 0

    def take_database_peaks(self) -> None:
        """Two metrics are one reading."""
        if self.database is not None:
            self.database_peaks = self.database.take_peaks()


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric with its value, ready to be sent. A counter's value is a delta."""

    name: str
    kind: Kind
    value: float
    unit: str = METRIC
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A metric per label. The label is appended to the name, or is the tag `tag`.

    Neighbours of a family that is `interleaved` are sent label by label.
    """

    labels: Callable[[Figures], Iterable[str]]
    tag: str = ""
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. `read` gets the figures and the label, which is empty outside a family."""

    name: str
    kind: Kind
    unit: str
    report: Report
    read: Callable[[Figures, str], float]
    family: Family | None = None
    unless_zero: bool = False

    def sample(self, figures: Figures, label: str = "") -> Sample:
        tag = self.family.tag if self.family is not None else ""
        name = f"{self.name}.{label}" if self.family is not None and not tag else self.name
        return Sample(name, self.kind, self.read(figures, label), self.unit, ((tag, label),) if tag else ())


def _database(attribute: str) -> Callable[[Figures, str], float]:
    return lambda figures, _label: getattr(figures.database, attribute, 0)


def _status(name: str) -> int:
    """A size of /proc/self/status in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":")), 0)
    except OSError:
        return 0


def open_files() -> int:
    """Counting them takes one more: where there is none left, it is the limit that is reached."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


_G, _C = Kind.GAUGE, Kind.COUNTER
_COUNTED_ROUTES = Family(lambda f: f.requests.counted)
_TIMED_ROUTES = Family(lambda f: f.requests.timed)
_DOMAINS = Family(lambda f: f.lrps.counts.fresh_domains)
_CELLS = Family(lambda f: tuple(f.cell_tasks), tag="cell-id", interleaved=True)

METRICS: tuple[Metric, ...] = (
    Metric("LockHeld", _G, METRIC, Report.LOCK, lambda f, _: f.lock_held),
    Metric("OpenFileDescriptors", _G, METRIC, Report.FILES, lambda f, _: open_files()),
    Metric("memoryStats.numBytesAllocatedHeap", _G, "Bytes", Report.RUNTIME, lambda f, _: _status("VmRSS")),
    Metric("memoryStats.numBytesAllocatedStack", _G, "Bytes", Report.RUNTIME, lambda f, _: _status("VmStk")),
    Metric("memoryStats.lastGCPauseTimeNS", _G, "ns", Report.RUNTIME, lambda f, _: f.pauses.last),
    Metric("numGoRoutines", _G, "Count", Report.RUNTIME, lambda f, _: threading.active_count()),
    Metric("BBSMasterElected", _G, METRIC, Report.ELECTED, lambda f, _: 1),
    Metric("MigrationDuration", _G, NANOS, Report.MIGRATED, lambda f, _: f.migration_duration),
    Metric("EncryptionDuration", _G, NANOS, Report.ENCRYPTED, lambda f, _: f.encryption_duration),
    Metric("RequestCount", _C, "", Report.REQUESTS, lambda f, _: f.requests.take_count("")),
    Metric("RequestLatency", _G, NANOS, Report.REQUESTS, lambda f, _: f.requests.take_longest("")),
    Metric("RequestCount", _C, "", Report.REQUESTS, lambda f, name: f.requests.take_count(name), _COUNTED_ROUTES),
    Metric("RequestLatency", _G, NANOS, Report.REQUESTS, lambda f, name: f.requests.take_longest(name), _TIMED_ROUTES),
    Metric("DBOpenConnections", _G, METRIC, Report.DATABASE, _database("open_connections")),
    # The writer owns its connection, so nobody ever waits for one.
    Metric("DBWaitDuration", _G, NANOS, Report.DATABASE, lambda f, _: 0),
    Metric("DBWaitCount", _G, METRIC, Report.DATABASE, lambda f, _: 0),
    Metric("DBQueriesTotal", _G, METRIC, Report.DATABASE, _database("total")),
    Metric("DBQueriesSucceeded", _G, METRIC, Report.DATABASE, _database("succeeded")),
    Metric("DBQueriesFailed", _G, METRIC, Report.DATABASE, _database("failed")),
    Metric("DBQueriesInFlight", _G, METRIC, Report.DATABASE, lambda f, _: f.database_peaks[0]),
    Metric("DBQueryDurationMax", _G, NANOS, Report.DATABASE, lambda f, _: f.database_peaks[1]),
    Metric("ConvergenceLRPRuns", _C, "", Report.LRPS, lambda f, _: f.lrps.take_runs(), unless_zero=True),
    Metric("ConvergenceLRPDuration", _G, NANOS, Report.LRPS, lambda f, _: f.lrps.duration),
    Metric("Domain", _G, METRIC, Report.LRPS, lambda f, _: 1, _DOMAINS),
    Metric("LRPsUnclaimed", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.unclaimed),
    Metric("LRPsClaimed", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.claimed),
    Metric("LRPsRunning", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.running),
    Metric("CrashedActualLRPs", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.crashed),
    Metric("LRPsMissing", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.missing),
    Metric("LRPsExtra", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.extra),
    Metric("SuspectRunningActualLRPs", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.suspect_running),
    Metric("SuspectClaimedActualLRPs", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.suspect_claimed),
    Metric("LRPsDesired", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.desired),
    Metric("CrashingDesiredLRPs", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.crashing_desired),
    Metric("PresentCells", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.present_cells),
    Metric("SuspectCells", _G, METRIC, Report.LRPS, lambda f, _: f.lrps.counts.suspect_cells),
    Metric("TasksStarted", _G, METRIC, Report.TASKS, lambda f, cell: f.cell_tasks[cell]["started"], _CELLS),
    Metric("TasksFailed", _G, METRIC, Report.TASKS, lambda f, cell: f.cell_tasks[cell]["failed"], _CELLS),
    Metric("TasksSucceeded", _G, METRIC, Report.TASKS, lambda f, cell: f.cell_tasks[cell]["succeeded"], _CELLS),
    Metric("TasksPending", _G, METRIC, Report.TASKS, lambda f, _: f.tasks.counts.pending),
    Metric("TasksRunning", _G, METRIC, Report.TASKS, lambda f, _: f.tasks.counts.running),
    Metric("TasksCompleted", _G, METRIC, Report.TASKS, lambda f, _: f.tasks.counts.completed),
    Metric("TasksResolving", _G, METRIC, Report.TASKS, lambda f, _: f.tasks.counts.resolving),
    # Quirk: the figures of the last pass, sent again every 15 s until the next pass.
    Metric("ConvergenceTasksPruned", _C, "", Report.TASKS, lambda f, _: f.tasks.counts.pruned),
    Metric("ConvergenceTasksKicked", _C, "", Report.TASKS, lambda f, _: f.tasks.counts.kicked),
    Metric("ConvergenceTaskRuns", _C, "", Report.TASKS, lambda f, _: f.tasks.take_runs(), unless_zero=True),
    Metric("ConvergenceTaskDuration", _G, NANOS, Report.TASKS, lambda f, _: f.tasks.duration),
)


def samples(report: Report, figures: Figures) -> list[Sample]:
    """What a report sends now, in order. Takes the figures that count since the last report."""
    if report is Report.DATABASE:
        figures.take_database_peaks()
    return list(_samples([metric for metric in METRICS if metric.report is report], figures))


def _samples(metrics: Sequence[Metric], figures: Figures) -> Iterator[Sample]:
    for family, rows in groupby(metrics, key=lambda metric: metric.family):
        if family is None:
            yield from _kept(rows, figures, "")
        elif family.interleaved:
            neighbours = list(rows)
            for label in family.labels(figures):
                yield from _kept(neighbours, figures, label)
        else:
            for row in rows:
                for label in family.labels(figures):
                    yield from _kept([row], figures, label)


def _kept(rows: Iterable[Metric], figures: Figures, label: str) -> Iterator[Sample]:
    for row in rows:
        sample = row.sample(figures, label)
        if sample.value or not row.unless_zero:
            yield sample
