"""An optional Prometheus endpoint, beyond what the reference offers (`prometheus_listen_address`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from bbs_server.process.metrics import Figures
from bbs_server.process.plain_http import PlainServer

_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 5, 10, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECOND = 1e9

Read = Callable[[Figures], float]

GAUGES: Mapping[str, tuple[str, Read]] = {
    "bbs_lock_held": ("1 while this process holds the lock", lambda f: f.lock_held),
    "bbs_domains_fresh": ("domains fresh at the last pass", lambda f: len(f.lrps.counts.fresh_domains)),
    "bbs_lrps_desired": ("instances desired", lambda f: f.lrps.counts.desired),
    "bbs_lrps_unclaimed": ("ordinary instances", lambda f: f.lrps.counts.unclaimed),
    "bbs_lrps_claimed": ("ordinary instances", lambda f: f.lrps.counts.claimed),
    "bbs_lrps_running": ("ordinary instances", lambda f: f.lrps.counts.running),
    "bbs_lrps_crashed": ("ordinary instances", lambda f: f.lrps.counts.crashed),
    "bbs_lrps_missing": ("instances the last pass found missing", lambda f: f.lrps.counts.missing),
    "bbs_lrps_extra": ("instances the last pass retired", lambda f: f.lrps.counts.extra),
    "bbs_lrps_suspect_running": ("suspect instances", lambda f: f.lrps.counts.suspect_running),
    "bbs_lrps_suspect_claimed": ("suspect instances", lambda f: f.lrps.counts.suspect_claimed),
    "bbs_desired_lrps_crashing": ("desired LRPs with a crashed instance", lambda f: f.lrps.counts.crashing_desired),
    "bbs_cells_present": ("cells known to Locket", lambda f: f.lrps.counts.present_cells),
    "bbs_cells_suspect": ("cells that LRPs are on and Locket does not know", lambda f: f.lrps.counts.suspect_cells),
    "bbs_tasks_pending": ("tasks at the last pass", lambda f: f.tasks.counts.pending),
    "bbs_tasks_running": ("tasks at the last pass", lambda f: f.tasks.counts.running),
    "bbs_tasks_completed": ("tasks at the last pass", lambda f: f.tasks.counts.completed),
    "bbs_tasks_resolving": ("tasks at the last pass", lambda f: f.tasks.counts.resolving),
    "bbs_tasks_pruned": ("tasks the last pass deleted", lambda f: f.tasks.counts.pruned),
    "bbs_tasks_kicked": ("tasks the last pass set going again", lambda f: f.tasks.counts.kicked),
    "bbs_lrp_convergence_seconds": ("length of the last pass", lambda f: f.lrps.duration / _SECOND),
    "bbs_task_convergence_seconds": ("length of the last pass", lambda f: f.tasks.duration / _SECOND),
    "bbs_gc_pause_longest_seconds": ("longest garbage collection", lambda f: f.pauses.longest / _SECOND),
    "bbs_database_statement_longest_seconds": (
        "longest statement of the last full minute",
        lambda f: f.database_peaks[1] / _SECOND,
    ),
    "bbs_database_statements_most_in_flight": ("at once in the last full minute", lambda f: f.database_peaks[0]),
    "bbs_migration_seconds": ("length of the migrations at the start", lambda f: f.migration_duration / _SECOND),
    "bbs_encryption_seconds": ("length of the re-encryption, if any", lambda f: f.encryption_duration / _SECOND),
    "bbs_database_connections": ("open connections", lambda f: f.database.open_connections if f.database else 0),
}

COUNTERS: Mapping[str, tuple[str, Read]] = {
    "bbs_lrp_convergence_passes": ("passes since the start", lambda f: f.lrps.passes),
    "bbs_task_convergence_passes": ("passes since the start", lambda f: f.tasks.passes),
}


class Prometheus:
    """The registry of one process: requests as they happen, everything else read when it is asked for."""

    def __init__(self, figures: Figures) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._seconds = Histogram(
            "bbs_request_seconds", "Time to answer", ["route"], buckets=_BUCKETS, registry=self.registry
        )
        self._batches = Histogram(
            "bbs_batch_commands", "Commands per committed batch", buckets=_SIZES, registry=self.registry
        )
        self.registry.register(_Reader(figures))

    def timed(self, route: str, ns: int) -> None:
        """A request was answered."""
        self._seconds.labels(route).observe(ns / _SECOND)

    def committed(self, commands: int) -> None:
        """A batch of so many commands was committed."""
        self._batches.observe(commands)

    def server(self, address: str) -> PlainServer:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if request.path != "/metrics":
                return web.Response(status=404, text="404 page not found\n")
            return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        return PlainServer(address, handle)


class _Reader(Collector):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, (text, read) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=float(read(self._figures)))
        for name, (text, read) in COUNTERS.items():
            yield CounterMetricFamily(name, text, value=float(read(self._figures)))
        yield _cell_tasks(self._figures.cell_tasks)
        if self._figures.database is not None:
            database = self._figures.database
            yield SummaryMetricFamily(
                "bbs_commit_seconds",
                "Time to commit a batch",
                count_value=database.commits,
                sum_value=database.commit_time / _SECOND,
            )
            family = CounterMetricFamily("bbs_database_statements", "Statements sent", labels=["result"])
            for result in ("succeeded", "failed"):
                family.add_metric([result], getattr(database, result))
            yield family


def _cell_tasks(tasks: Mapping[str, Mapping[str, int]]) -> Metric:
    family = CounterMetricFamily("bbs_cell_tasks", "Tasks of a cell", labels=["cell_id", "what"])
    for cell, counts in tasks.items():
        for what, number in counts.items():
            family.add_metric([cell, what], number)
    return family
