"""Requests to the auctioneer (cells-and-auctions.md 2, tasks.md 9.1, desired-lrps.md 9).

Starts without a request id that wait at the same time travel in one request: the API takes a list and
answers each entry alike. One that comes alone is sent alone, at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from bbs_server.core.errors import Error
from bbs_server.core.go_json import string, strings
from bbs_server.core.log import Log, silent
from bbs_server.core.outcome import AuctionLRPs, AuctionTasks, LRPStart, TaskStart
from bbs_server.effects.background import Background
from bbs_server.effects.peer import BadStatus, NoAnswer, Peer

ACCEPTED = 202

IN_FLIGHT = 2
"""Requests of one kind that may be under way before further starts gather."""

GATHERING = 0.010
"""Seconds that a start waits at most for company, so that a slow request never delays another."""

_SLICE = 500
"""Entries encoded without giving way to other work."""

FollowUp = asyncio.Future[Error | None]
S = TypeVar("S")


class Auctioneer:
    """The auctioneer at a base URL.

    `plain` is set when a request that fails over TLS may be repeated once without it
    (`auctioneer_require_tls` false). Every returned future ends without an error: what goes wrong is only
    logged, and convergence asks again.
    """

    def __init__(self, address: str, peer: Peer, plain: Peer | None = None, log: Log = silent) -> None:
        self._address = address
        self._peer = peer
        self._plain = plain
        self._log = log
        self._background = Background(log)
        self._tasks = _Gathering(self._background, self._send_tasks)
        self._lrps = _Gathering(self._background, self._send_lrps)

    def start_tasks(self, call: AuctionTasks) -> FollowUp:
        # Quirk: task auctions carry no request id, whatever the request had (tasks.md 9.1).
        return self._tasks.add(call.starts)

    def start_lrps(self, call: AuctionLRPs) -> FollowUp:
        if not call.request_id:
            return self._lrps.add(call.starts)
        follow_up: FollowUp = asyncio.get_running_loop().create_future()
        task = self._background.start(self._send("/v1/lrps", lrp_json, call.starts, call.request_id))
        task.add_done_callback(lambda _: _settle([follow_up]))
        return follow_up

    async def close(self) -> None:
        self._tasks.close()
        self._lrps.close()
        await self._background.close()
        for peer in filter(None, (self._peer, self._plain)):
            await peer.close()

    async def _send_tasks(self, starts: Sequence[TaskStart]) -> None:
        await self._send("/v1/tasks", task_json, starts, "")

    async def _send_lrps(self, starts: Sequence[LRPStart]) -> None:
        await self._send("/v1/lrps", lrp_json, starts, "")

    async def _send(self, path: str, encode: Callable[[S], str], starts: Sequence[S], request_id: str) -> None:
        # Quirk: the id header is sent even when there is no id (cells-and-auctions.md 2.2).
        headers = {"Content-Type": "application/json", "X-Vcap-Request-Id": request_id}
        body = await _array(encode, starts)
        try:
            status = await self._exchange(self._address + path, headers, body)
            if status != ACCEPTED:
                raise BadStatus(status)
        except (NoAnswer, BadStatus) as problem:
            self._log("error", "failed-to-request-auctions", {"error": str(problem), "path": path})

    async def _exchange(self, url: str, headers: dict[str, str], body: bytes) -> int:
        try:
            return await self._peer.send("POST", url, headers, body)
        except NoAnswer:
            if self._plain is None:
                raise
        _, colon, rest = url.partition(":")
        return await self._plain.send("POST", f"http{colon}{rest}", headers, body)


class _Gathering(Generic[S]):
    """Starts that wait for the next request, and the futures of those who asked for them."""

    def __init__(self, background: Background, send: Callable[[Sequence[S]], Coroutine[Any, Any, None]]) -> None:
        self._background = background
        self._send = send
        self._starts: list[S] = []
        self._follow_ups: list[FollowUp] = []
        self._handle: asyncio.Handle | None = None
        self._in_flight = 0
        self._closed = False

    def add(self, starts: Sequence[S]) -> FollowUp:
        loop = asyncio.get_running_loop()
        follow_up: FollowUp = loop.create_future()
        self._starts.extend(starts)
        self._follow_ups.append(follow_up)
        if self._handle is None:
            # Not at once: what the same commit holds comes in this turn of the loop.
            soon = self._in_flight < IN_FLIGHT
            self._handle = loop.call_soon(self._go) if soon else loop.call_later(GATHERING, self._go)
        return follow_up

    def close(self) -> None:
        """Send nothing more; whoever waits is let go."""
        self._closed = True
        if self._handle is not None:
            self._handle.cancel()
        _settle(self._follow_ups)

    def _go(self) -> None:
        self._handle = None
        if not self._starts:
            _settle(self._follow_ups)
            self._follow_ups = []
            return
        starts, self._starts = self._starts, []
        follow_ups, self._follow_ups = self._follow_ups, []
        self._in_flight += 1
        self._background.start(self._send(starts)).add_done_callback(lambda _: self._sent(follow_ups))

    def _sent(self, follow_ups: Sequence[FollowUp]) -> None:
        _settle(follow_ups)
        self._in_flight -= 1
        if self._handle is not None and not self._closed and self._in_flight < IN_FLIGHT:
            self._handle.cancel()
            self._go()


def _settle(follow_ups: Sequence[FollowUp]) -> None:
    for follow_up in follow_ups:
        if not follow_up.done():  # Who asked may have gone away.
            follow_up.set_result(None)


async def _array(encode: Callable[[S], str], starts: Sequence[S]) -> bytes:
    parts = []
    for at in range(0, len(starts), _SLICE):
        if at:
            await asyncio.sleep(0)
        parts.append(",".join(map(encode, starts[at : at + _SLICE])))
    return f"[{','.join(parts)}]".encode()


def task_json(start: TaskStart) -> str:
    """One entry of a task auction, keys in the reference's order (tasks.md 9.1)."""
    return (
        f'{{"TaskGuid":{string(start.task_guid)},"Domain":{string(start.domain)},'
        f'"PlacementTags":{strings(start.placement_tags)},"VolumeDrivers":{strings(start.volume_drivers)},'
        f'"RootFs":{string(start.rootfs)},"MemoryMB":{start.memory_mb},"DiskMB":{start.disk_mb},'
        f'"MaxPids":{start.max_pids},"state":"Invalid","failed":false}}'
    )


def lrp_json(start: LRPStart) -> str:
    """One entry of an LRP auction, keys in the reference's order (desired-lrps.md 9)."""
    return (
        f'{{"process_guid":{string(start.process_guid)},"domain":{string(start.domain)},'
        f'"indices":[{",".join(map(str, start.indices))}],'
        f'"PlacementTags":{strings(start.placement_tags)},"VolumeDrivers":{strings(start.volume_drivers)},'
        f'"RootFs":{string(start.rootfs)},"MemoryMB":{start.memory_mb},"DiskMB":{start.disk_mb},'
        f'"MaxPids":{start.max_pids}}}'
    )
