"""The writer epoch: only the writer that raised it last can commit (design rule 6).

The row `bbs_server_writer_epoch` of `configurations` holds "<number> <owner>"; a Go BBS ignores it. Every batch locks
that row in share mode and looks for its own value, inside its own transaction. Raising the epoch needs the
row exclusively, so it waits for a batch in flight and shuts out all later ones of the writer before.

What else a writer changes, it changes under `fenced`, or in statements that look for its owner likewise: the writer
raises its own epoch again when it reconnects, and the number that the others knew is not the last one any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from bbs_server.store.errors import Deposed
from bbs_server.store.sql import STATEMENTS

_SQL = STATEMENTS["configurations"]


async def raise_epoch(connection: asyncpg.Connection[Any], owner: str) -> str:
    """Take the epoch for `owner`, a token without blanks. Returns the value that its batches must find."""
    value: str = await connection.fetchval(_SQL["raise_epoch"], owner)
    return value


async def keep_epoch(connection: asyncpg.Connection[Any], owner: str) -> str:
    """Raise the epoch again, on a new connection, to be sure that the old connection's last statement is over.

    Raises Deposed if somebody else has raised it in between.
    """
    value: str | None = await connection.fetchval(_SQL["keep_epoch"], owner)
    if value is None:
        raise Deposed
    return value


@asynccontextmanager
async def fenced(connection: asyncpg.Connection[Any], owner: str) -> AsyncIterator[None]:
    """A transaction during which nobody can raise the epoch. Raises Deposed if it is not the owner's."""
    async with connection.transaction():
        if await connection.fetchval(_SQL["hold_epoch"], owner) is None:
            raise Deposed
        yield
