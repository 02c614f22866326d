"""An auctioneer that knows the cells in person; now and then it finds no place, or loses work."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp.web as web
from bbs_protos import models_pb2 as models

from bbs_server.dev.soak import containers
from bbs_server.dev.soak.cell import Cell
from bbs_server.dev.soak.fleet import Fleet
from bbs_server.dev.soak.ledger import PENDING, TaskLedger
from bbs_server.dev.soak.pair import Lost, Pair, Refusal

_REJECTED, _DROPPED = 0.02, 0.01
_BATCH_SECONDS = 0.1


class Auctioneer:
    """Takes work at once and places it soon afterwards."""

    def __init__(self, fleet: Fleet, pair: Pair, tasks: TaskLedger) -> None:
        self.faithful = False
        """Whether all work is placed."""
        self._fleet = fleet
        self._pair = pair
        self._ledger = tasks
        self._waiting: dict[tuple[str, int], str] = {}
        self._handed_out: set[str] = set()
        self._came = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/lrps", self._lrps), web.post("/v1/tasks", self._tasks)]

    async def run(self) -> None:
        while True:
            await self._came.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            self._came.clear()
            batch, self._waiting = self._waiting, {}
            for (guid, index), domain in batch.items():
                await self._place(guid, index, domain)

    async def _lrps(self, request: web.Request) -> web.Response:
        for entry in json.loads(await request.read()):
            for index in entry["indices"]:
                self._waiting[entry["process_guid"], index] = entry["domain"]
        return self._accepted()

    async def _tasks(self, request: web.Request) -> web.Response:
        for entry in json.loads(await request.read()):
            self._waiting[entry["TaskGuid"], -1] = entry["Domain"]
        return self._accepted()

    def _accepted(self) -> web.Response:
        self._came.set()
        return web.json_response({}, status=202)

    async def _place(self, guid: str, index: int, domain: str) -> None:
        cells = [cell for cell in self._fleet.cells if cell.takes_work]
        luck = 1.0 if self.faithful else random.random()
        if luck < _DROPPED:
            return
        if not cells or luck < _DROPPED + _REJECTED:
            try:
                await (self._reject(guid) if index < 0 else self._fail(guid, index, domain))
            except (Lost, Refusal):
                pass
            return
        container = containers.task(guid) if index < 0 else containers.instance(guid, index, domain)
        self._handed_out.add(guid)
        min(random.sample(cells, min(3, len(cells))), key=_load).take(container)

    async def _fail(self, guid: str, index: int, domain: str) -> Any:
        key = models.ActualLRPKey(process_guid=guid, index=index, domain=domain)
        request = models.FailActualLRPRequest(actual_lrp_key=key, error_message="insufficient resources: memory")
        return await self._pair.write("/v1/actual_lrps/fail", request, models.ActualLRPLifecycleResponse)

    async def _reject(self, guid: str) -> Any:
        if guid in self._handed_out or guid not in self._ledger.entries:
            return None
        request = models.RejectTaskRequest(task_guid=guid, rejection_reason="insufficient resources: memory")
        call = self._pair.write("/v1/tasks/reject", request, models.TaskLifecycleResponse)
        return await self._ledger.write(guid, PENDING, call)


def _load(cell: Cell) -> int:
    return len(cell.containers)
