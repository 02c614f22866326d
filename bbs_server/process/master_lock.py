"""The member `lock`: Locket's lock, or PostgreSQL's advisory lock in its place (locket.md 3, deviation 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from bbs_protos import models_pb2 as models

from bbs_server.core.errors import RESOURCE_NOT_FOUND, Refused
from bbs_server.effects.lock import LockLost
from bbs_server.process.group import Member, Ready, unless
from bbs_server.process.lager import Logger
from bbs_server.store.advisory_lock import AdvisoryLock


class Lock(Protocol):
    """`keep` only ends by raising, when the lock is lost."""

    async def acquire(self) -> None: ...

    async def keep(self) -> None: ...

    async def release(self) -> None: ...


_STANDBY_AFTER = 1.0
"""s without the lock that make a process a standby."""


def lock_member(lock: Lock, stand_by: Callable[[], None], deposed: Callable[[], bool]) -> Member:
    """Ready when the lock is held. A lost lock is not released, nor is that of a successor with our `uuid`.

    `stand_by` is called if somebody else seems to have the lock; `deposed` tells whether somebody else writes.
    """

    async def acquired() -> bool:
        await lock.acquire()
        return True

    async def run(ready: Ready, stopping: asyncio.Event) -> None:
        timer = asyncio.get_running_loop().call_later(_STANDBY_AFTER, stand_by)
        try:
            held = await unless(stopping, acquired())
        finally:
            timer.cancel()
        if held:
            ready()
            await unless(stopping, lock.keep())
        if not deposed():
            await lock.release()

    return Member("lock", run)


class LocalLock:
    """The advisory lock of the database."""

    def __init__(self, lock: AdvisoryLock, logger: Logger) -> None:
        self._lock = lock
        self._logger = logger

    async def acquire(self) -> None:
        self._logger.info("started")
        await self._lock.acquire()
        self._logger.info("acquired-lock")

    async def keep(self) -> None:
        reason = await self._lock.lost()
        self._logger.error("lost-lock", reason)
        raise LockLost(f"lost lock (request failed): {reason}")

    async def release(self) -> None:
        await self._lock.release()
        self._logger.info("released-lock")


class NoCells:
    """Stands in for the presences where there is no Locket: there are no cells."""

    async def all(self) -> list[models.CellPresence]:
        return []

    async def one(self, cell_id: str) -> models.CellPresence:
        raise Refused(RESOURCE_NOT_FOUND)
