"""The cell's two listeners: for the auctioneer and the BBS, and a local one (cells-and-auctions.md 3 and 4)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp.web as web

from bbs_server.dev.cell.containers import Container, Containers, State
from bbs_server.dev.cell.rep import Rep
from bbs_server.dev.cell.settings import Settings

_INSTANCE_GUID_LENGTH = 28
_LRP_STATES = {State.RESERVED: "CLAIMED", State.CREATED: "CLAIMED", State.RUNNING: "RUNNING"}


def network_routes(settings: Settings, containers: Containers, rep: Rep) -> list[web.RouteDef]:
    """What the auctioneer and the BBS call."""

    async def state(_: web.Request) -> web.Response:
        return web.json_response(_state(settings, containers, rep))

    async def work(request: web.Request) -> web.Response:
        body = await _object(request)
        if body.get("cell_id") not in (None, "", settings.cell_id):
            return web.Response(status=500)
        returned = _take(settings, containers, rep, body)
        return web.json_response(returned)

    async def stop(request: web.Request) -> web.Response:
        return web.Response(status=202 if containers.stop(request.match_info["instance_guid"]) else 500)

    async def update(request: web.Request) -> web.Response:
        body = await _object(request)
        container = containers.get(request.match_info["instance_guid"])
        if container is None:
            return web.Response(status=500)
        _update(container, body)
        rep.process(container.guid)
        return web.Response(status=202)

    async def cancel(request: web.Request) -> web.Response:
        containers.stop(request.match_info["task_guid"])
        return web.Response(status=202)

    return [
        web.get("/state", state),
        web.post("/work", work),
        web.post("/v1/lrps/{process_guid}/instances/{instance_guid}/stop", stop),
        web.put("/v2/lrps/{process_guid}/instances/{instance_guid}", update),
        web.put("/v1/lrps/{process_guid}/instances/{instance_guid}", update),
        web.post("/v1/tasks/{task_guid}/cancel", cancel),
    ]


def local_routes(evacuate: Callable[[], None]) -> list[web.RouteDef]:
    async def ping(_: web.Request) -> web.Response:
        return web.Response()

    async def start(_: web.Request) -> web.Response:
        evacuate()
        return web.json_response({"ping_path": "/ping"}, status=202)

    return [web.get("/ping", ping), web.post("/evacuate", start)]


async def _object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise web.HTTPBadRequest from None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest
    return body


def free(settings: Settings, containers: Containers) -> dict[str, int]:
    """What is left, in MiB and containers."""
    taken = containers.all()
    return {
        "MemoryMB": settings.memory_mb - sum(container.memory_mb for container in taken),
        "DiskMB": settings.disk_mb - sum(container.disk_mb for container in taken),
        "Containers": settings.containers - len(taken),
    }


def _take(settings: Settings, containers: Containers, rep: Rep, body: Mapping[str, Any]) -> dict[str, Any]:
    """Reserve what fits and give the rest back, in the same shape."""
    lrps = sorted(body.get("LRPs") or (), key=lambda entry: -(entry.get("MemoryMB") or 0))
    named = [(str(uuid.uuid4())[:_INSTANCE_GUID_LENGTH], entry, False) for entry in lrps]
    named += [(entry["TaskGuid"], entry, True) for entry in body.get("Tasks") or ()]
    refused: dict[bool, list[Any]] = {False: [], True: []}
    for guid, entry, is_task in named:
        if rep.evacuating or containers.get(guid) or not _fits(entry, free(settings, containers)):
            refused[is_task].append(entry)
        else:
            containers.reserve(guid, entry, is_task)
    return {"LRPs": refused[False] or None, "Tasks": refused[True] or None}


def _fits(entry: Mapping[str, Any], left: Mapping[str, int]) -> bool:
    return left["Containers"] > 0 and all(left[name] >= (entry.get(name) or 0) for name in ("MemoryMB", "DiskMB"))


def _update(container: Container, body: Mapping[str, Any]) -> None:
    """Null keeps what is there."""
    if body.get("internal_routes") is not None:
        container.internal_routes = tuple(route["hostname"] for route in body["internal_routes"])
    if body.get("metric_tags") is not None:
        container.metric_tags = dict(body["metric_tags"])


def _state(settings: Settings, containers: Containers, rep: Rep) -> dict[str, Any]:
    fixed = {"type": "fixed_set", "set": {name: {} for name in settings.preloaded_rootfs}}
    everything = containers.all()
    return {
        "rep_url": settings.url,
        "cell_id": settings.cell_id,
        "cell_index": 0,
        "RootFSProviders": {"docker": {"type": "arbitrary"}, "preloaded": fixed, "preloaded+layer": fixed},
        "AvailableResources": free(settings, containers),
        "TotalResources": {
            "MemoryMB": settings.memory_mb,
            "DiskMB": settings.disk_mb,
            "Containers": settings.containers,
        },
        "LRPs": [_lrp(container) for container in everything if not container.is_task],
        "Tasks": [_task(container) for container in everything if container.is_task],
        "StartingContainerCount": sum(container.state in (State.RESERVED, State.CREATED) for container in everything),
        "Zone": settings.zone,
        "Evacuating": rep.evacuating,
        "VolumeDrivers": None,
        "PlacementTags": list(settings.placement_tags) or None,
        "OptionalPlacementTags": list(settings.optional_placement_tags) or None,
        "ProxyMemoryAllocationMB": 0,
    }


def _lrp(container: Container) -> dict[str, Any]:
    ended = "CRASHED" if container.failed and not container.stopped else "SHUTDOWN"
    return {**container.body, "instance_guid": container.guid, "state": _LRP_STATES.get(container.state, ended)}


def _task(container: Container) -> dict[str, Any]:
    state = "Completed" if container.state is State.COMPLETED else "Running"
    return {**container.body, "state": state, "failed": container.failed}
