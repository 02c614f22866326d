"""When locks that nobody renews disappear (locket.md section 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from bbs_server.core.log import Log
from bbs_server.locket.locks import Lock, Locks
from bbs_server.locket.refusal import Refusal

_LONGEST = 100 * 365 * 86400
"""Seconds; longer timers are cut, so that any ttl can be one."""


@dataclass(frozen=True, slots=True)
class _Timer:
    modified_index: int
    handle: asyncio.TimerHandle


class Expiry:
    """One timer per row as it was last written. Expired rows go to `on_expired` after their removal."""

    def __init__(
        self,
        locks: Locks,
        on_expired: Callable[[Lock], None],
        log: Log,
        interval: float,
    ) -> None:
        """`interval` in s."""
        self._locks = locks
        self._on_expired = on_expired
        self._log = log
        self._interval = interval
        self._timers: dict[tuple[str, str], _Timer] = {}
        self._removals: set[asyncio.Task[None]] = set()

    def watch(self, lock: Lock) -> None:
        """Start the timer of a row, in place of that of an earlier version of it."""
        name = (lock.key, lock.modified_id)
        current = self._timers.get(name)
        if current is not None:
            if current.modified_index >= lock.modified_index:
                return
            current.handle.cancel()
        handle = asyncio.get_running_loop().call_later(min(max(lock.ttl, 0), _LONGEST), self._fire, lock)
        self._timers[name] = _Timer(lock.modified_index, handle)

    def forget(self, lock: Lock) -> None:
        """The row is gone."""
        if timer := self._timers.pop((lock.key, lock.modified_id), None):
            timer.handle.cancel()

    async def scan(self) -> None:
        """Watch all rows there are. A row of another process gets its full ttl from now on."""
        try:
            for lock in await self._locks.all():
                self.watch(lock)
        except Refusal as problem:
            self._log("error", "failed-fetching-locks", {"error": str(problem)})

    async def run(self) -> None:
        """Scan now and every interval, until cancelled."""
        try:
            while True:
                await self.scan()
                await asyncio.sleep(self._interval)
        finally:
            for timer in self._timers.values():
                timer.handle.cancel()
            for removal in self._removals:
                removal.cancel()

    def _fire(self, lock: Lock) -> None:
        removal = asyncio.create_task(self._remove(lock))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    async def _remove(self, lock: Lock) -> None:
        """Without a timer a row that could not be removed gets a new one at the next scan."""
        data = {"key": lock.key, "owner": lock.owner, "type": lock.type}
        try:
            removed = await self._locks.expire(lock)
        except Refusal as problem:
            self._log("error", "failed-expiring-lock", {**data, "error": str(problem)})
            removed = False
        current = self._timers.get((lock.key, lock.modified_id))
        if current is not None and current.modified_index == lock.modified_index:
            del self._timers[(lock.key, lock.modified_id)]
        if removed:
            self._log("info", "lock-expired", data)
            self._on_expired(lock)
