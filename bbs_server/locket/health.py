"""The database health check of Locket, on a table of its own (server.md section 16, locket.md section 8)."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from bbs_server.locket import statements
from bbs_server.store.health import HealthCheck, Unhealthy


class LocketHealthCheck(HealthCheck):
    """As that of the BBS, with other statements."""

    async def attempt(self, limit: float, limit_text: str) -> None:
        """One attempt of at most `limit` s; `limit_text` is how the text spells it. Raises Unhealthy."""
        try:
            async with asyncio.timeout(limit):
                connection = await self._step("upserting health check time", self._open())
                await self._step("upserting health check time", self._upsert(connection))
                await self._step("querying for health check time", connection.fetchval(statements.HEALTH_SELECT))
        except TimeoutError:
            raise Unhealthy(f"timed out after {limit_text} while executing DB health check") from None

    async def _upsert(self, connection: asyncpg.Connection[Any]) -> None:
        now = self._now()
        if await connection.execute(statements.HEALTH_UPDATE, now) == "UPDATE 0":
            await connection.execute(statements.HEALTH_INSERT, now)
