"""All cells: their one network listener, and the misfortunes that befall them."""

from __future__ import annotations

import asyncio
import json
import random

import aiohttp.web as web

from bbs_server.dev.soak.cell import Cell
from bbs_server.dev.soak.containers import Container, State
from bbs_server.dev.soak.journal import Journal
from bbs_server.dev.soak.settings import CELL_EVENT_SECONDS, CRASHES_PER_SECOND, PRESENCE_TTL_SECONDS

_AWAY = (PRESENCE_TTL_SECONDS + 2.0, 35.0)
"""Seconds that a cell stays away: long enough for its presence to run out."""


class Fleet:
    """The cells. `troubled` is whether misfortunes happen."""

    def __init__(self, cells: list[Cell], journal: Journal) -> None:
        self.cells = cells
        self.troubled = False
        self._journal = journal
        self._stories: set[asyncio.Task[None]] = set()
        self._quiet = asyncio.Event()

    def containers(self) -> list[tuple[Cell, Container]]:
        return [(cell, container) for cell in self.cells for container in cell.containers.values()]

    def find(self, guid: str) -> tuple[Cell, Container] | None:
        return next(((cell, cell.containers[guid]) for cell in self.cells if guid in cell.containers), None)

    # -- misfortunes -------------------------------------------------------------------------

    async def run(self) -> None:
        await asyncio.gather(self._crash_instances(), self._trouble_cells())

    async def settle(self) -> None:
        """No more misfortunes; ends when all cells are back."""
        self.troubled = False
        self._quiet.set()
        while self._stories:
            await asyncio.gather(*self._stories)
        self._quiet.clear()

    async def _crash_instances(self) -> None:
        while True:
            await asyncio.sleep(random.expovariate(CRASHES_PER_SECOND))
            running = [pair for pair in self.containers() if pair[1].state is State.RUNNING and not pair[1].is_task]
            if self.troubled and running:
                cell, container = random.choice(running)
                self._journal.facts["instances crashed"] += cell.connected
                if cell.connected:
                    cell.end(container, "APP/PROC/WEB: Exited with status 9")

    async def _trouble_cells(self) -> None:
        stories = (self._vanish, self._die, self._evacuate)
        while True:
            await asyncio.sleep(random.expovariate(1 / CELL_EVENT_SECONDS))
            healthy = [cell for cell in self.cells if cell.takes_work]
            if self.troubled and len(healthy) > len(self.cells) * 0.7:
                story = asyncio.create_task(random.choice(stories)(random.choice(healthy)))
                self._stories.add(story)
                story.add_done_callback(self._stories.discard)

    async def _vanish(self, cell: Cell) -> None:
        self._journal.facts["cells vanished and returned"] += 1
        await cell.disconnect()
        await self._away()
        cell.connect()

    async def _die(self, cell: Cell) -> None:
        self._journal.facts["cells lost and replaced"] += 1
        await cell.die()
        await self._away()
        cell.appear()

    async def _evacuate(self, cell: Cell) -> None:
        self._journal.facts["cells evacuated"] += 1
        await cell.evacuate()
        await self._away()
        cell.appear()

    async def _away(self) -> None:
        try:
            await asyncio.wait_for(self._quiet.wait(), random.uniform(*_AWAY))
        except TimeoutError:
            return

    # -- what the servers call -----------------------------------------------------------------

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/lrps/{process}/instances/{guid}/stop", self._stop),
            web.put("/v2/lrps/{process}/instances/{guid}", self._update),
            web.post("/v1/tasks/{guid}/cancel", self._cancel),
        ]

    async def _stop(self, request: web.Request) -> web.Response:
        found = self._reach(request)
        if found is None:
            return web.Response(status=500)
        found[0].end(found[1], stopped=True)
        return web.Response(status=202)

    async def _update(self, request: web.Request) -> web.Response:
        found, body = self._reach(request), json.loads(await request.read())
        if found is None:
            return web.Response(status=500)
        cell, container = found
        if body.get("internal_routes") is not None:
            container.routes = tuple(route["hostname"] for route in body["internal_routes"])
            cell.process(container)
        return web.Response(status=202)

    async def _cancel(self, request: web.Request) -> web.Response:
        found = self._reach(request)
        if found is not None:
            found[0].end(found[1], "cancelled")
        return web.Response(status=202)

    def _reach(self, request: web.Request) -> tuple[Cell, Container] | None:
        found = self.find(request.match_info["guid"])
        return found if found is not None and found[0].connected else None
