"""Locks and presences in the database (locket.md sections 6 and 8). Both are rows with an owner and a ttl."""

from __future__ import annotations

import uuid
from dataclasses import astuple, dataclass, replace

import asyncpg

from bbs_server.locket import statements
from bbs_server.locket.connections import OPERATION_LIMIT, Connections, LocketStatistics
from bbs_server.locket.refusal import lock_collision, resource_not_found, unreadable
from bbs_server.store.conninfo import ConnectionSettings


@dataclass(frozen=True, slots=True)
class Lock:
    """One row, fields in the order of its columns; `ttl` in s.

    `modified_id` is chosen when the row is made, `modified_index` counts the renewals from 1 on.
    """

    key: str
    owner: str
    value: str
    type: str
    modified_index: int
    modified_id: str
    ttl: int


class Locks:
    """The table `locks`. Every method is one transaction and raises Refusal when the database fails or is slow."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    @classmethod
    async def open(
        cls,
        settings: ConnectionSettings,
        connections: int = 0,
        health_table: bool = False,
        limit: float = OPERATION_LIMIT,
    ) -> Locks:
        """Connect and create what is missing: the table, and that of the health check if it is wanted.

        `connections` below 1 is the default limit; `limit` is the longest, in s, that one method may take.

        Raises what the driver raises, and store.errors.Unreachable.
        """
        opened = await Connections.open(settings, connections, limit)
        await opened.create(statements.CREATE)
        if health_table:
            await opened.create(statements.HEALTH_CREATE)
        return cls(opened)

    @property
    def statistics(self) -> LocketStatistics:
        return self._connections.statistics

    async def close(self) -> None:
        """Close all connections."""
        await self._connections.close()

    async def take(self, key: str, owner: str, value: str, type_: str, ttl: int) -> Lock:
        """Take or renew a lock and return its row; `ttl` in s. Raises Refusal: somebody else has it (6.2)."""
        async with self._connections.transaction() as connection:
            row = await connection.fetchrow(statements.FIND, key)
            if row is None:
                lock = Lock(key, owner, value, type_, 1, str(uuid.uuid4()), ttl)
                await connection.execute(statements.INSERT, *astuple(lock))
                return lock
            found = _lock(row)
            if found.owner not in ("", owner):
                raise lock_collision()
            lock = replace(
                found,
                owner=owner,
                value=value,
                type=type_,
                modified_index=found.modified_index + 1,
                modified_id=found.modified_id or str(uuid.uuid4()),
                ttl=ttl,
            )
            await connection.execute(statements.UPDATE, *astuple(lock))
            return lock

    async def fetch(self, key: str) -> Lock:
        """The lock of a key. Raises Refusal: nobody has it (6.3)."""
        async with self._connections.transaction() as connection:
            row = await connection.fetchrow(statements.FIND, key)
            lock = _lock(row) if row is not None else None
        if lock is None or not lock.owner:
            raise resource_not_found()
        return lock

    async def release(self, key: str, owner: str) -> Lock | None:
        """Give up a lock; None if nobody had it. Raises Refusal: somebody else has it (6.4)."""
        async with self._connections.transaction() as connection:
            row = await connection.fetchrow(statements.FIND, key)
            if row is None:
                return None
            lock = _lock(row)
            if lock.owner != owner:
                raise lock_collision()
            await connection.execute(statements.DELETE, key)
            return lock

    async def of_type(self, type_: str) -> list[Lock]:
        """All locks of a type that somebody has (6.5)."""
        async with self._connections.transaction() as connection:
            return [_lock(row) for row in await connection.fetch(statements.LIST, type_)]

    async def all(self) -> list[Lock]:
        """All rows, also those that nobody owns."""
        async with self._connections.transaction() as connection:
            return [_lock(row) for row in await connection.fetch(statements.ALL)]

    async def count(self, type_: str) -> int:
        async with self._connections.transaction() as connection:
            return int(await connection.fetchval(statements.COUNT, type_))

    async def expire(self, lock: Lock) -> bool:
        """Remove the row if nobody has renewed it since; whether it was removed (section 7)."""
        async with self._connections.transaction() as connection:
            keys = (lock.key, lock.owner, lock.modified_id, lock.modified_index)
            return bool(await connection.execute(statements.EXPIRE, *keys) == "DELETE 1")


def _lock(row: asyncpg.Record) -> Lock:
    for column, value in row.items():
        if value is None:
            raise unreadable(column)
    return Lock(*row.values())
