"""Calls to the cells: cancel a task, stop an instance, update an instance (cells-and-auctions.md 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from bbs_protos import models_pb2 as models

from bbs_server.core.errors import Error, Refused, unknown
from bbs_server.core.go_json import string
from bbs_server.core.json_columns import dump_hostnames, dump_tags
from bbs_server.core.log import Log, silent
from bbs_server.core.outcome import CancelTask, StopInstance, UpdateInstance
from bbs_server.effects import urls
from bbs_server.effects.background import Background, Lanes
from bbs_server.effects.peer import BadStatus, NoAnswer, Peer

ACCEPTED = 202
NOT_FOUND = 404

CALLS_PER_CELL = 4
"""Background calls that are under way to one cell at a time."""

_NO_HTTPS = unknown("https scheme is required but none of the addresses support it")
_JSON = {"Content-Type": "application/json"}


class CellLookup(Protocol):
    async def one(self, cell_id: str) -> models.CellPresence: ...


class Reps:
    """The cells' own servers, found through their presences for each call."""

    def __init__(self, presences: CellLookup, peer: Peer, log: Log = silent) -> None:
        self._presences = presences
        self._peer = peer
        self._log = log
        self._background = Background(log)
        self._lanes = Lanes(self._background, CALLS_PER_CELL)

    async def cancel(self, call: CancelTask) -> Error | None:
        """Cancel a task on its cell. Only an unusable URL is an error; other failures are logged."""
        data = {"task_guid": call.task_guid, "cell_id": call.cell_id}
        try:
            cell = await self._presences.one(call.cell_id)
        except Refused as refused:
            self._log("error", "failed-fetching-cell-presence", data | {"error": str(refused)})
            return None
        try:
            base = address(cell)
        except Refused as refused:
            return refused.error
        try:
            await self._send("POST", f"{base}/v1/tasks/{urls.segment(call.task_guid)}/cancel", call.request_id, {})
        except (NoAnswer, BadStatus) as problem:
            self._log("error", "failed-to-cancel-task", data | {"error": str(problem)})
        return None

    def stop(self, call: StopInstance) -> None:
        """Stop an instance in the background."""
        self._lanes.start(call.cell_id, lambda: self._stop(call))

    def update(self, call: UpdateInstance) -> None:
        """Tell a cell of changed routes or tags in the background."""
        self._lanes.start(call.cell_id, lambda: self._update(call))

    async def stop_at(self, base: str, process_guid: str, instance_guid: str, request_id: str) -> None:
        """Stop an instance on the cell at an `address` and wait for it. Raises NoAnswer or BadStatus."""
        path = f"/v1/lrps/{urls.segment(process_guid)}/instances/{urls.segment(instance_guid)}/stop"
        await self._send("POST", base + path, request_id, _JSON)

    async def close(self) -> None:
        await self._background.close()
        await self._peer.close()

    async def _stop(self, call: StopInstance) -> None:
        try:
            base = address(await self._presences.one(call.cell_id))
            await self.stop_at(base, call.process_guid, call.instance_guid, call.request_id)
        except (Refused, NoAnswer, BadStatus) as problem:
            self._failed("failed-stopping-lrp-instance", call, problem)

    async def _update(self, call: UpdateInstance) -> None:
        guids = f"lrps/{urls.segment(call.process_guid)}/instances/{urls.segment(call.instance_guid)}"
        try:
            base = address(await self._presences.one(call.cell_id))
            try:
                await self._put(f"{base}/v2/{guids}", call, call.metric_tags)
            except BadStatus as problem:
                if problem.status != NOT_FOUND:
                    raise
                await self._update_older(f"{base}/v1/{guids}", call)
        except (Refused, NoAnswer, BadStatus) as problem:
            self._failed("failed-updating-lrp-instance", call, problem)

    async def _update_older(self, url: str, call: UpdateInstance) -> None:
        """Cells that do not know the second version take routes only, or nothing at all."""
        if call.internal_routes is None:
            return
        try:
            await self._put(url, call, None)
        except BadStatus as problem:
            if problem.status != NOT_FOUND:
                raise

    async def _put(self, url: str, call: UpdateInstance, tags: Iterable[tuple[str, str]] | None) -> None:
        await self._send("PUT", url, call.request_id, _JSON, update_json(call, tags).encode())

    async def _send(
        self, method: str, url: str, request_id: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> None:
        with_id = {**headers, "X-Vcap-Request-Id": request_id} if request_id else headers
        status = await self._peer.send(method, url, with_id, body)
        if status != ACCEPTED:
            raise BadStatus(status)

    def _failed(self, action: str, call: StopInstance | UpdateInstance, problem: Exception) -> None:
        data = {"process_guid": call.process_guid, "instance_guid": call.instance_guid, "cell_id": call.cell_id}
        self._log("error", action, data | {"error": str(problem)})


def address(cell: models.CellPresence) -> str:
    """The base URL of a cell's server: its `rep_url`, which must be https (desired-lrps.md 10.1). Raises Refused."""
    url = cell.rep_url
    try:
        if urls.scheme(url) == "https":
            return url
    except ValueError as problem:
        raise Refused(unknown(str(problem))) from problem
    raise Refused(_NO_HTTPS)


def update_json(call: UpdateInstance, tags: Iterable[tuple[str, str]] | None) -> str:
    """The body of an update, keys in the reference's order (desired-lrps.md 10.3)."""
    routes = dump_hostnames(call.internal_routes).decode()
    metric_tags = dump_tags(None if tags is None else tuple(sorted(tags))).decode()
    return (
        f'{{"instance_guid":{string(call.instance_guid)},"process_guid":{string(call.process_guid)},'
        f'"index":{call.index},"domain":{string(call.domain)},'
        f'"internal_routes":{routes},"metric_tags":{metric_tags}}}'
    )
