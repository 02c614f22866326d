"""The table of metrics against the list of server.md 19, and the order and the resetting of values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from bbs_server.core.outcome import Count
from bbs_server.effects.task_counts import TaskCounts
from bbs_server.process.lager import Logger, Sink
from bbs_server.process.loggregator import NoEmitter
from bbs_server.process.metrics import METRICS, NO_LRPS, NO_TASKS, Figures, Kind, Report, Requests, Sample, samples
from bbs_server.process.request_observer import RequestObserver
from bbs_server.wire.routes import BY_PATH

EXPECTED = {
    Report.LOCK: "LockHeld:Metric",
    Report.FILES: "OpenFileDescriptors:Metric",
    Report.RUNTIME: "memoryStats.numBytesAllocatedHeap:Bytes memoryStats.numBytesAllocatedStack:Bytes"
    " memoryStats.lastGCPauseTimeNS:ns numGoRoutines:Count",
    Report.ELECTED: "BBSMasterElected:Metric",
    Report.MIGRATED: "MigrationDuration:nanos",
    Report.ENCRYPTED: "EncryptionDuration:nanos",
    Report.REQUESTS: "RequestCount:+ RequestLatency:nanos RequestCount:+ RequestLatency:nanos",
    Report.DATABASE: "DBOpenConnections:Metric DBWaitDuration:nanos DBWaitCount:Metric DBQueriesTotal:Metric"
    " DBQueriesSucceeded:Metric DBQueriesFailed:Metric DBQueriesInFlight:Metric DBQueryDurationMax:nanos",
    Report.LRPS: "ConvergenceLRPRuns:+ ConvergenceLRPDuration:nanos Domain:Metric LRPsUnclaimed:Metric"
    " LRPsClaimed:Metric LRPsRunning:Metric CrashedActualLRPs:Metric LRPsMissing:Metric LRPsExtra:Metric"
    " SuspectRunningActualLRPs:Metric SuspectClaimedActualLRPs:Metric LRPsDesired:Metric CrashingDesiredLRPs:Metric"
    " PresentCells:Metric SuspectCells:Metric",
    Report.TASKS: "TasksStarted:Metric TasksFailed:Metric TasksSucceeded:Metric TasksPending:Metric"
    " TasksRunning:Metric TasksCompleted:Metric TasksResolving:Metric ConvergenceTasksPruned:+"
    " ConvergenceTasksKicked:+ ConvergenceTaskRuns:+ ConvergenceTaskDuration:nanos",
}


@pytest.mark.parametrize("report", list(Report))
def test_the_table_is_complete_and_in_order(report: Report) -> None:
    rows = [f"{row.name}:{'+' if row.kind is Kind.COUNTER else row.unit}" for row in METRICS if row.report is report]
    assert rows == EXPECTED[report].split()


def shown(taken: list[Sample]) -> list[str]:
    return [
        f"{sample.name}{''.join(f'@{tag}={value}' for tag, value in sample.tags)} {sample.value:g}" for sample in taken
    ]


def test_request_metrics_are_since_the_last_report() -> None:
    figures = Figures(Requests(counted=("Tasks", "Nope", "Tasks"), timed=("Tasks",)))
    for ns in (5, 9, 7):
        figures.requests.count("Tasks")
        figures.requests.time("Tasks", ns)
    figures.requests.count("Ping")
    figures.requests.time("Ping", 20)
    assert shown(samples(Report.REQUESTS, figures)) == [
        "RequestCount 4",
        "RequestLatency 20",
        "RequestCount.Tasks 3",
        "RequestCount.Nope 0",
        "RequestCount.Tasks 0",
        "RequestLatency.Tasks 9",
    ]
    assert {sample.value for sample in samples(Report.REQUESTS, figures)} == {0}


def test_streams_count_in_the_total_only() -> None:
    figures = Figures(Requests(counted=("EventStream", "Ping")))
    observer = RequestObserver(figures.requests, NoEmitter(), Logger(Sink(lambda line: None), "bbs"))
    for path in ("/v1/events.r1", "/v1/ping", "/v1/events.r1"):
        observer.counted(BY_PATH[path])
    assert shown(samples(Report.REQUESTS, figures)) == [
        "RequestCount 3",
        "RequestLatency 0",
        "RequestCount.EventStream 0",
        "RequestCount.Ping 1",
    ]


def test_lrp_metrics_before_and_after_the_first_pass() -> None:
    figures = Figures()
    before = samples(Report.LRPS, figures)
    assert before[0].name == "ConvergenceLRPDuration"
    assert {sample.value for sample in before} == {0}
    figures.lrps.record(NO_LRPS, 5)
    figures.lrps.record(replace(NO_LRPS, fresh_domains=("a", "b.c")), 7)
    after = shown(samples(Report.LRPS, figures))
    assert after[:4] == ["ConvergenceLRPRuns 2", "ConvergenceLRPDuration 7", "Domain.a 1", "Domain.b.c 1"]
    assert shown(samples(Report.LRPS, figures))[0] == "ConvergenceLRPDuration 7"


def test_task_metrics_come_cell_by_cell_and_repeat_pruned_and_kicked() -> None:
    figures = Figures()
    counts = TaskCounts()
    counts.add(Count("started", "c1"))
    counts.add(Count("failed", "c2"))
    figures.cell_tasks = counts.by_cell
    figures.tasks.record(replace(NO_TASKS, pruned=3), 1)
    taken = shown(samples(Report.TASKS, figures))
    assert taken[:6] == [
        "TasksStarted@cell-id=c1 1",
        "TasksFailed@cell-id=c1 0",
        "TasksSucceeded@cell-id=c1 0",
        "TasksStarted@cell-id=c2 0",
        "TasksFailed@cell-id=c2 1",
        "TasksSucceeded@cell-id=c2 0",
    ]
    assert "ConvergenceTasksPruned 3" in taken
    assert "ConvergenceTasksKicked 0" in taken
    again = shown(samples(Report.TASKS, figures))
    assert "ConvergenceTasksPruned 3" in again
    assert not [line for line in again if line.startswith("ConvergenceTaskRuns")]


@dataclass
class Database:
    open_connections: int = 2
    total: int = 10
    succeeded: int = 9
    failed: int = 1

    def take_peaks(self) -> tuple[int, int]:
        return 4, 5000


def test_database_metrics() -> None:
    assert shown(samples(Report.DATABASE, Figures(database=Database()))) == [
        "DBOpenConnections 2",
        "DBWaitDuration 0",
        "DBWaitCount 0",
        "DBQueriesTotal 10",
        "DBQueriesSucceeded 9",
        "DBQueriesFailed 1",
        "DBQueriesInFlight 4",
        "DBQueryDurationMax 5000",
    ]


def test_the_process_metrics_are_real() -> None:
    figures = Figures(lock_held=True)
    assert samples(Report.LOCK, figures)[0].value == 1
    assert samples(Report.FILES, figures)[0].value >= 3
    assert samples(Report.RUNTIME, figures)[0].value > 1_000_000
