"""A PostgreSQL advisory lock in Locket's place, for local use (spec/README.md, deviation 7).

It lives as long as its connection, so losing the connection is losing the lock.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.errors import DATABASE_FAILURES, driver_text
from bbs_server.store.session import close, connect
from bbs_server.store.statistics import Statistics

_KEY = 0x6262735F6C6F636B
"""Any number nobody else uses: "bbs_lock"."""
_ACQUIRE = "SELECT pg_advisory_lock($1)"
_RELEASE = "SELECT pg_advisory_unlock($1)"
_ALIVE = "SELECT 1"


class AdvisoryLock:
    """One process per database holds it. `acquire`, then watch `lost()` until `release`."""

    def __init__(self, settings: ConnectionSettings, statistics: Statistics) -> None:
        self._settings = settings
        self._statistics = statistics
        self._connection: asyncpg.Connection[Any] | None = None
        self._ended: asyncio.Future[None] | None = None

    async def acquire(self) -> None:
        """Wait for the lock, for ever if need be. Raises what the driver raises; cancelling gives up."""
        connection = await connect(self._settings, self._statistics)
        ended = asyncio.get_running_loop().create_future()
        connection.add_termination_listener(lambda _: ended.set_result(None))
        try:
            await connection.execute(_ACQUIRE, _KEY)
        except BaseException:
            connection.terminate()
            raise
        self._connection, self._ended = connection, ended

    async def lost(self, interval: float = 5.0) -> str:
        """Return, with the reason, once the lock is lost. Asks the server every `interval` s whether it is there."""
        assert self._connection is not None
        assert self._ended is not None
        while True:
            done, _ = await asyncio.wait((self._ended,), timeout=interval)
            if done:
                return "connection lost"
            try:
                await asyncio.wait_for(self._connection.fetchval(_ALIVE), interval)
            except DATABASE_FAILURES as problem:
                return driver_text(problem)

    async def release(self) -> None:
        """Give the lock back. Never fails: closing the connection is enough."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            await close(connection)
