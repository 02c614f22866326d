"""Reading all four tables into memory on becoming active, and comparing memory with them later."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import asyncpg

from bbs_server.core.state import State
from bbs_server.store.journal import Versions
from bbs_server.store.rows import MAPPINGS
from bbs_server.store.sealing import Keys
from bbs_server.store.sql import STATEMENTS

ROWS_AT_ONCE = 400
"""Rows decoded before other tasks get a turn: some 15 ms of decryption."""


async def load(connection: asyncpg.Connection[Any], state: State, keys: Keys) -> dict[str, Versions]:
    """Fill an empty state from one snapshot of the database. Returns the version of every row, by table.

    What is loaded is then left out of garbage collections: walking hundreds of thousands of records that live as long
    as the process would hold the event loop for a good part of a second each time.
    """
    gc.disable()
    try:
        return await _load(connection, state, keys)
    finally:
        gc.freeze()
        gc.enable()


async def _load(connection: asyncpg.Connection[Any], state: State, keys: Keys) -> dict[str, Versions]:
    versions = {table: Versions() for table in MAPPINGS}
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for table, mapping in MAPPINGS.items():
            adopt, note = state.tables[table].adopt, versions[table].set
            cursor = await connection.cursor(STATEMENTS[table]["load"])
            while rows := await cursor.fetch(ROWS_AT_ONCE):
                for row in rows:
                    key = mapping.key(row)
                    adopt(key, mapping.decode(row, keys))
                    note(key, row["xmin"])
                await asyncio.sleep(0)
    return versions
