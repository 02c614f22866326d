"""The whole soak: all parts together, the schedule, a line a minute and the summary."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import aiohttp.web as web

from bbs_server.dev.certificates import Authority
from bbs_server.dev.soak import settings
from bbs_server.dev.soak.auctioneer import Auctioneer
from bbs_server.dev.soak.cell import Cell
from bbs_server.dev.soak.checkpoint import Auditor
from bbs_server.dev.soak.clients import CloudController, TaskClient, View, read_lists, subscribe
from bbs_server.dev.soak.faults import HOUR, REHEARSAL, Faults
from bbs_server.dev.soak.fleet import Fleet
from bbs_server.dev.soak.journal import Gate, Journal
from bbs_server.dev.soak.ledger import DomainLedger, Ledger, TaskLedger
from bbs_server.dev.soak.memory import ALLOWED_GROWTH, Sampler
from bbs_server.dev.soak.pair import Pair
from bbs_server.dev.soak.presence import Presences
from bbs_server.dev.soak.servers import SERVERS, Servers
from bbs_server.dev.tls import client_tls, server_tls

_AFTER_FAULT = 20.0
"""Seconds of load between a fault and its checkpoint."""

_SHORT = 10.0
"""Minutes below which the rehearsal's schedule is used."""

_MOST_CONNECTIONS = 5


class Soak:
    """One run in an empty folder."""

    def __init__(self, folder: Path, port_base: int, minutes: float) -> None:
        self._minutes = minutes
        self._servers = Servers(folder, port_base)
        self._sampler = Sampler(self._servers)
        self.journal = Journal()
        self._gate = Gate()
        self._desired: Ledger[View] = Ledger("desired LRP", self.journal)
        self._tasks = TaskLedger(self.journal)
        self._domains = DomainLedger(self.journal)
        self._checkpoints: list[dict[str, Any]] = []
        self._expected_ends = dict.fromkeys(SERVERS, 0)

    async def run(self) -> dict[str, Any]:
        """The summary."""
        await self._servers.up()
        try:
            async with self._load():
                for part, what in HOUR if self._minutes >= _SHORT else REHEARSAL:
                    await asyncio.sleep(max(0.0, self.journal.began + part * self._minutes * 60 - time.monotonic()))
                    print(f"{self.journal.minutes:.1f} min: {what}", flush=True)
                    await self._faults.inflict(what)
                    await asyncio.sleep(_AFTER_FAULT if what != "nothing" else 0)
                    await self._checkpoint(what)
                await asyncio.sleep(max(0.0, self.journal.began + self._minutes * 60 - time.monotonic()))
                await self._checkpoint("end")
                self._sampler.sample()
        finally:
            await self._servers.down()
        return self._summary()

    @contextlib.asynccontextmanager
    async def _load(self) -> AsyncIterator[None]:
        tls = client_tls(self._servers.identity)
        self._pair = pair = Pair(self._servers.urls, tls, self.journal)
        layout = self._servers.layout
        rep_port, callback_port = layout.port("page"), layout.port("page") + 1
        presences = Presences(
            f"127.0.0.1:{layout.port('locket')}", self._servers.identity, f"https://127.0.0.1:{rep_port}"
        )
        cells = [Cell(number, pair, presences, self._tasks) for number in range(1, settings.CELLS + 1)]
        self._fleet = fleet = Fleet(cells, self.journal)
        self._auctioneer = auctioneer = Auctioneer(fleet, pair, self._tasks)
        controller = CloudController(pair, self._desired, self._domains, self._gate)
        tasks = TaskClient(pair, self._tasks, self._gate, f"http://127.0.0.1:{callback_port}/done")
        self._auditor = Auditor(pair, fleet, self.journal, self._desired, self._tasks, self._domains)
        self._faults = Faults(self._servers, pair, self._domains, self.journal)
        identity = Authority(layout.certificates).identity("auctioneer")
        peers = (
            (rep_port, fleet.routes(), server_tls(identity)),
            (layout.port("auctioneer"), auctioneer.routes(), server_tls(identity)),
            (callback_port, [web.post("/done", tasks.called_back)], None),
        )
        async with contextlib.AsyncExitStack() as stack:
            for port, routes, peer_tls in peers:
                await stack.enter_async_context(_listening(port, routes, peer_tls))
            await self._until_active()
            for cell in cells:
                cell.appear()
                stack.push_async_callback(cell.disconnect)
            while not all(cell.present for cell in cells):
                await asyncio.sleep(0.1)
            self.journal.began = time.monotonic()
            self.journal.outside.clear()
            self.journal.violations.clear()
            works = [self._report(), self._sampler.run(), self._follow_active(), subscribe(pair, self.journal, tasks)]
            works += [auctioneer.run()]
            await stack.enter_async_context(_running(works, self.journal))
            await controller.populate()
            load = [controller.run(), tasks.run(), fleet.run(), read_lists(pair), self._auditor.watch()]
            await stack.enter_async_context(_running(load, self.journal))
            fleet.troubled = True
            yield
        await presences.close()
        await pair.close()

    async def _until_active(self) -> None:
        while (active := await self._pair.active()) is None:
            await asyncio.sleep(0.2)
        self._pair.current = active

    async def _follow_active(self) -> None:
        while True:
            # While both are away the clients look for one in turns, which makes none of them active.
            if not self.journal.in_window(time.monotonic()):
                self._sampler.active = SERVERS[self._pair.current]
            await asyncio.sleep(1)

    async def _checkpoint(self, what: str) -> None:
        await self._gate.close()
        await self._auditor.audit()
        self._auctioneer.faithful = True
        await self._fleet.settle()
        snapshot, seconds = await self._auditor.converged()
        states = [lrp.state for lrp in snapshot.actual]
        self._checkpoints.append(
            {
                "minute": round(self.journal.minutes, 1),
                "after": what,
                "seconds_to_converge": round(seconds, 1),
                "desired": len(snapshot.desired),
                "instances": {state: states.count(state) for state in sorted(set(states))},
                "tasks_ended": len(self._tasks.deleted),
                "violations_so_far": len(self.journal.violations),
            }
        )
        print(f"{self.journal.minutes:.1f} min: checkpoint {self._checkpoints[-1]}", flush=True)
        self._auctioneer.faithful = False
        self._fleet.troubled = True
        self._gate.open()

    async def _report(self) -> None:
        last = 0
        while True:
            await asyncio.sleep(60)
            total = sum(self.journal.requests.values())
            print(
                f"{self.journal.minutes:.1f} min: {(total - last) / 60:.0f} requests/s, "
                f"{sum(self.journal.acknowledged.values())} writes acknowledged, "
                f"{sum(self.journal.events.values())} events, {len(self._tasks.entries)} tasks, "
                f"{len(self._fleet.containers())} containers, {self._sampler.active} {self._sampler.now()}, "
                f"errors inside {sum(self.journal.inside.values())}, outside {sum(self.journal.outside.values())}, "
                f"{len(self.journal.violations)} violations",
                flush=True,
            )
            last = total

    # -- the end -----------------------------------------------------------------------------

    def _summary(self) -> dict[str, Any]:
        journal, figures = self.journal, self._sampler.figures()
        tracebacks, log_lines = self._servers.logged()
        if tracebacks:
            journal.violation(f"{tracebacks} tracebacks in the logs")
        for name in SERVERS:
            if figures["most_database_connections"][name] > _MOST_CONNECTIONS:
                journal.violation(f"{name}: {figures['most_database_connections'][name]} database connections")
        for segment in figures["memory"]:
            if (segment["growth_mib"] or 0) > ALLOWED_GROWTH:
                journal.violation(f"{segment['process']} grew by {segment['growth_mib']} MiB")
        seconds = journal.minutes * 60
        return {
            "minutes": round(journal.minutes, 1),
            "requests": sum(journal.requests.values()),
            "requests_per_second": round(sum(journal.requests.values()) / seconds, 1),
            "acknowledged_writes": sum(journal.acknowledged.values()),
            "acknowledged": dict(journal.acknowledged.most_common()),
            "refusals_of_the_protocol": dict(journal.refusals.most_common()),
            "errors_inside_windows": dict(journal.inside.most_common()),
            "errors_outside_windows": dict(journal.outside.most_common()),
            "slowest_answer_outside_windows": round(journal.slowest, 3),
            "windows": [
                {
                    "minute": round((window.begin - journal.began) / 60, 2),
                    "what": window.what,
                    "seconds_without_writes": None if window.away is None else round(window.away, 2),
                }
                for window in journal.windows
            ],
            "checkpoints": self._checkpoints,
            "events": dict(journal.events.most_common()),
            "facts": dict(journal.facts),
            "restarts": {name: part.restarts for name, part in self._servers.parts.items()},
            "tracebacks": tracebacks,
            "log_lines_above_info": dict(log_lines.most_common(30)),
            **{name: value for name, value in figures.items() if name != "use"},
            "violations": journal.violations,
        }


@contextlib.asynccontextmanager
async def _listening(port: int, routes: list[web.RouteDef], tls: Any) -> AsyncIterator[None]:
    app = web.Application(client_max_size=64 * 2**20)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
    try:
        yield
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _running(works: list[Coroutine[Any, Any, None]], journal: Journal) -> AsyncIterator[None]:
    """All of it until the body ends; that anything ends before is a fault of the soak."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            journal.violation(f"the soak itself failed: {task.exception()!r}")

    tasks = [asyncio.create_task(work) for work in works]
    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
