"""Waiting for what sessions of the database do."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


async def until_blocked(psql: asyncpg.Connection[Any], count: int = 1) -> None:
    """Wait until so many other sessions of this database wait for a lock. `psql` may be in a transaction."""
    async with asyncio.timeout(30):
        while await psql.fetchval(BLOCKED) < count:
            await psql.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)
