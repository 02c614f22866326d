"""The database health check of server.md 16: one attempt, with its texts. The process makes the rounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg

from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.errors import DATABASE_FAILURES, driver_text
from bbs_server.store.session import close, connect
from bbs_server.store.statistics import Statistics

_UPDATE = "UPDATE bbs_health_check SET id = 1, time = $1 WHERE id = 1"
_INSERT = "INSERT INTO bbs_health_check (id, time) VALUES (1, $1)"
_SELECT = "SELECT time FROM bbs_health_check WHERE id = 1"


class Unhealthy(Exception):
    """An attempt failed; the text is the reference's."""


class HealthCheck:
    """Writes and reads one row on a connection of its own, opened when needed."""

    _update, _insert, _select = _UPDATE, _INSERT, _SELECT

    def __init__(self, settings: ConnectionSettings, statistics: Statistics, now: Callable[[], int]) -> None:
        self._settings = settings
        self._statistics = statistics
        self._now = now
        self._connection: asyncpg.Connection[Any] | None = None

    async def attempt(self, limit: float, limit_text: str) -> None:
        """One attempt of at most `limit` s; `limit_text` is how the text spells it. Raises Unhealthy."""
        try:
            async with asyncio.timeout(limit):
                connection = await self._step("upserting health check time", self._open())
                await self._step("upserting health check time", self._upsert(connection))
                with self._statistics.running():
                    await self._step("querying for health check time", connection.fetchval(self._select))
        except TimeoutError:
            # It may be silent, and the next attempt shall tell of the database. Closing ends the statement there too.
            await self.close()
            raise Unhealthy(f"timed out after {limit_text} while executing DB health check") from None

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    async def _open(self) -> asyncpg.Connection[Any]:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._settings, self._statistics)
        return self._connection

    async def _upsert(self, connection: asyncpg.Connection[Any]) -> None:
        now = self._now()
        with self._statistics.running():
            hit = await connection.execute(self._update, now)
        if hit == "UPDATE 0":
            with self._statistics.running():
                await connection.execute(self._insert, now)

    async def _step(self, what: str, work: Any) -> Any:
        try:
            return await work
        except TimeoutError:
            raise
        except DATABASE_FAILURES as problem:
            raise Unhealthy(f"failed {what}: {driver_text(problem)}") from None
