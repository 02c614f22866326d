"""The cells that Locket knows (locket.md 4)."""

from __future__ import annotations

import asyncio
from typing import Protocol

import grpc
from bbs_protos import locket_pb2 as pb
from bbs_protos import models_pb2 as models

from bbs_server.core.errors import RESOURCE_NOT_FOUND, Refused, unknown
from bbs_server.core.go_json import NotJSON
from bbs_server.core.log import Log, silent
from bbs_server.effects import presence_json, rpc_errors


class PresenceCalls(Protocol):
    """The part of the Locket client that presences need."""

    async def fetch(self, key: str, timeout: float | None = None) -> pb.Resource: ...

    async def fetch_presences(self, timeout: float | None = None) -> list[pb.Resource]: ...


_SLICE = 250
"""Values read without giving way to other work."""

DEFAULT_TIMEOUT = 10.0
"""Seconds; stands in for a `db_connection_timeout` of 0 (deviation 4)."""


class Presences:
    """Cell presences, asked for anew each time. `timeout` of a call in seconds."""

    def __init__(self, locket: PresenceCalls, timeout: float, log: Log = silent) -> None:
        self._locket = locket
        self._timeout = timeout or DEFAULT_TIMEOUT
        self._log = log

    async def all(self) -> list[models.CellPresence]:
        """Every cell, once per cell id in its value; unreadable values are left out. Raises Refused."""
        try:
            resources = await self._locket.fetch_presences(self._timeout)
        except grpc.aio.AioRpcError as problem:
            raise Refused(unknown(rpc_errors.text(problem))) from problem
        cells: dict[str, models.CellPresence] = {}
        for number, resource in enumerate(resources, 1):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            try:
                cell = presence_json.load(resource.value)
            except NotJSON as problem:
                self._log("error", "failed-to-unmarshal-presence", {"error": str(problem), "key": resource.key})
            else:
                cells[cell.cell_id] = cell
        return list(cells.values())

    async def one(self, cell_id: str) -> models.CellPresence:
        """The cell with that key. Raises Refused: ResourceNotFound if there is none, or the failure's text."""
        try:
            resource = await self._locket.fetch(cell_id, self._timeout)
        except grpc.aio.AioRpcError as problem:
            if problem.code() is grpc.StatusCode.NOT_FOUND:
                raise Refused(RESOURCE_NOT_FOUND) from problem
            raise Refused(unknown(rpc_errors.text(problem))) from problem
        try:
            return presence_json.load(resource.value)
        except NotJSON as problem:
            raise Refused(unknown(str(problem))) from problem
