"""A PostgreSQL advisory lock in Locket's place, for local use (spec/README.md, deviation 7).

It lives as long as its connection. A lost connection is replaced and the lock taken again, since PostgreSQL may only
have been restarted; the lock is lost if somebody else has it then. Whoever held it in between has raised the epoch.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.errors import DATABASE_FAILURES, driver_text
from bbs_server.store.session import close, connect, time_limit
from bbs_server.store.statistics import Statistics

_KEY = 0x6262735F6C6F636B
"""Any number nobody else uses: "bbs_lock"."""
_ACQUIRE = "SELECT pg_advisory_lock($1)"
_TRY = "SELECT pg_try_advisory_lock($1)"
_ALIVE = "SELECT 1"
_TRIES = 10
"""How often a lock that somebody has is asked for again: the backend of the lost connection may take a moment to go."""
_PAUSE = 0.1
"""s between such attempts, and between attempts to connect."""


class AdvisoryLock:
    """One process per database holds it. `acquire`, then watch `lost()` until `release`."""

    def __init__(self, settings: ConnectionSettings, statistics: Statistics) -> None:
        self._settings = settings
        self._statistics = statistics
        self._connection: asyncpg.Connection[Any] | None = None
        self._ended: asyncio.Future[None] | None = None

    async def acquire(self) -> None:
        """Wait for the lock, for ever if need be. Raises what the driver raises; cancelling gives up."""
        await self._connect()
        assert self._connection is not None
        try:
            await self._connection.execute(_ACQUIRE, _KEY)
        except BaseException:
            self._connection.terminate()
            raise

    async def lost(self, interval: float = 5.0) -> str:
        """Return, with the reason, once the lock is lost. Asks the server every `interval` s whether it is there."""
        while True:
            reason = await self._connection_lost(interval)
            if not await self._taken_again(interval):
                return reason

    async def _connect(self) -> None:
        connection = await connect(self._settings, self._statistics)
        ended = asyncio.get_running_loop().create_future()
        connection.add_termination_listener(lambda _: ended.set_result(None))
        self._connection, self._ended = connection, ended

    async def _connection_lost(self, interval: float) -> str:
        assert self._connection is not None
        assert self._ended is not None
        while True:
            done, _ = await asyncio.wait((self._ended,), timeout=interval)
            if done:
                return "connection lost"
            try:
                await self._ask(interval, _ALIVE)
            except DATABASE_FAILURES as problem:
                self._connection.terminate()
                return driver_text(problem)

    async def _taken_again(self, limit: float) -> bool:
        """Connect, however long that takes, and take the lock unless somebody has it."""
        tries = 0
        while tries < _TRIES:
            try:
                if self._connection is None or self._connection.is_closed():
                    await self._connect()
                if await self._ask(limit, _TRY, _KEY):
                    return True
                tries += 1
            except DATABASE_FAILURES:
                pass  # it is not back yet
            await asyncio.sleep(_PAUSE)
        return False

    async def _ask(self, limit: float, statement: str, *arguments: object) -> Any:
        """A connection that does not answer within `limit` s is ended."""
        assert self._connection is not None
        with time_limit(self._connection, limit):
            return await self._connection.fetchval(statement, *arguments)

    async def release(self) -> None:
        """Give the lock back. Never fails: closing the connection is enough."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            await close(connection)
