"""The members that send metrics at intervals (server.md section 19)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bbs_server.process.group import Member, Ready, pause
from bbs_server.process.lager import Logger
from bbs_server.process.loggregator import Emitter
from bbs_server.process.metrics import Figures, Kind, Report, Sample, samples


def reporter(name: str, report: Report, interval: int, figures: Figures, emitter: Emitter) -> Member:
    """Sends a report every `interval` ns, first after one interval."""

    async def run(ready: Ready, stopping: asyncio.Event) -> None:
        ready()
        while await pause(stopping, interval):
            emitter.emit(samples(report, figures))

    return Member(name, run)


def request_reporter(interval: int, figures: Figures, emitter: Emitter, logger: Logger) -> Member:
    """As `reporter` for the request metrics, which are logged too."""
    log = logger.session("periodic-count-metrics-notifier")

    async def run(ready: Ready, stopping: asyncio.Event) -> None:
        log.info("started", interval=interval)
        ready()
        while await pause(stopping, interval):
            taken = samples(Report.REQUESTS, figures)
            emitter.emit(taken)
            _tell(taken, log)
        log.info("finished")

    return Member("periodic-metrics", run)


def _tell(taken: Iterable[Sample], log: Logger) -> None:
    for sample in taken:
        if sample.kind is Kind.COUNTER:
            log.info("adding-counter", add=int(sample.value))
        else:
            log.info("sending-latency", latency=int(sample.value))
