"""The master lock: taken, kept, lost or released (locket.md 3)."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import grpc
from bbs_protos import locket_pb2 as pb

from bbs_server.core.log import Log, silent
from bbs_server.effects import rpc_errors

KEY = "bbs"
STANDBY_INTERVAL = 0.25
"""Longest pause, in s, while another one holds the lock. The reference waits a whole `lock_retry_interval`, so that its
fail-over takes up to that much longer than the lock lives."""

Sleep = Callable[[float], Awaitable[None]]


class LockCalls(Protocol):
    """The part of the Locket client that the lock needs."""

    async def lock(
        self, resource: pb.Resource, ttl_in_seconds: int, uuid: str, timeout: float | None, wait: bool
    ) -> None: ...

    async def release(self, resource: pb.Resource) -> None: ...

    async def fetch(self, key: str, timeout: float | None = None) -> pb.Resource: ...


class LockLost(Exception):
    """A renewal failed: this process must end. The text is that of the exit trace."""


class MasterLock:
    """`acquire`, then `keep` until it raises or is cancelled, then `release`.

    `ttl` and `interval` in seconds; `ttl` is rounded down to whole seconds, and below 1 Locket refuses
    the lock for ever.
    """

    def __init__(
        self,
        locket: LockCalls,
        owner: str,
        ttl: float,
        interval: float,
        log: Log = silent,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._locket = locket
        self._resource = pb.Resource(key=KEY, owner=owner, type="lock", type_code=pb.LOCK)
        self._ttl = int(ttl)
        self._interval = interval
        self._log = log
        self._sleep = sleep
        self._renewal: asyncio.Task[_Refusal | None] | None = None

    async def acquire(self) -> None:
        """Return when the lock is held, however long that takes."""
        self._note("info", "started")
        problem = await self._lock(timeout=None, wait=False)
        if problem is not None:
            self._note("error", "failed-to-acquire-lock", problem.data | await self._owner())
        while problem is not None:
            collision = problem.code is grpc.StatusCode.ALREADY_EXISTS
            await self._sleep(min(self._interval, STANDBY_INTERVAL) if collision else self._interval)
            problem = await self._lock(timeout=self._interval, wait=True)
            if problem is not None and problem.code is not grpc.StatusCode.ALREADY_EXISTS:
                self._note("error", "failed-to-acquire-lock", problem.data)
        self._note("info", "acquired-lock")

    async def keep(self) -> None:
        """Renew the lock for ever. Raises LockLost at the first failure, whatever its cause."""
        while True:
            await self._sleep(self._interval)
            self._renewal = asyncio.create_task(self._lock(timeout=self._interval, wait=True))
            problem = await asyncio.shield(self._renewal)
            if problem is not None:
                self._note("error", "lost-lock", problem.data)
                raise LockLost(problem.loss)

    async def release(self) -> None:
        """Give the lock back, or try to.

        Locket carries out a renewal that is given up here, maybe only after the release: its end is waited for.
        """
        if self._renewal is not None:
            await asyncio.wait([self._renewal])
        try:
            await self._locket.release(self._resource)
        except grpc.aio.AioRpcError as problem:
            self._note("error", "failed-to-release-lock", {"error": rpc_errors.text(problem)})
        else:
            self._note("info", "released-lock")

    async def _lock(self, timeout: float | None, wait: bool) -> _Refusal | None:
        request, started = str(uuid.uuid4()), time.monotonic_ns()
        try:
            await self._locket.lock(self._resource, self._ttl, request, timeout, wait)
        except grpc.aio.AioRpcError as problem:
            return _Refusal(problem, request, time.monotonic_ns() - started)
        return None

    async def _owner(self) -> dict[str, Any]:
        try:
            return {"lock-owner": (await self._locket.fetch(KEY)).owner}
        except grpc.aio.AioRpcError:
            return {}

    def _note(self, level: str, action: str, data: Mapping[str, Any] | None = None) -> None:
        lock = {"key": KEY, "owner": self._resource.owner, "type": "lock", "type_code": int(pb.LOCK)}
        shown = {name: value for name, value in lock.items() if value}
        self._log(level, action, {"lock": shown, "ttl_in_seconds": self._ttl} | dict(data or {}))


class _Refusal:
    """A Lock call that failed, as the log and the exit trace tell it. `duration` in ns."""

    def __init__(self, problem: grpc.aio.AioRpcError, request: str, duration: int) -> None:
        self.code = problem.code()
        error = rpc_errors.text(problem)
        kind = "request timed out" if self.code is grpc.StatusCode.DEADLINE_EXCEEDED else "request failed"
        self.data: dict[str, Any] = {"error": error, "request-uuid": request, "duration": duration}
        self.loss = f"lost lock ({kind}), request-uuid {request}: {error}"
