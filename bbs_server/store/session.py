"""The writer's connection: prepared batch statements, fenced by the epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.errors import DATABASE_FAILURES, Deposed
from bbs_server.store.rows import MAPPINGS, transposed
from bbs_server.store.sql import STATEMENTS
from bbs_server.store.statistics import Statistics

XID_MASK = 0xFFFFFFFF
"""`xmin` is the transaction id without its epoch."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one table that go to the database in one statement."""

    table: str
    rows: Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it is in the database now."""

    record: Any
    version: int


class Session:
    """One connection of the writer. `errors.is_connection_loss` tells whether it was the connection that failed."""

    def __init__(self, connection: asyncpg.Connection[Any], statistics: Statistics) -> None:
        self.connection = connection
        self._statistics = statistics
        self._statements: dict[str, Any] = {}

    @classmethod
    async def open(cls, settings: ConnectionSettings, statistics: Statistics) -> Session:
        connection = await connect(settings, statistics)
        try:
            await connection.execute(STATEMENTS["configurations"]["writer_session"])
        except BaseException:
            connection.terminate()
            raise
        return cls(connection, statistics)

    def when_lost(self, call: Callable[[], None]) -> None:
        """`call` is called once when the connection ends, however it does."""
        self.connection.add_termination_listener(lambda _: call())

    @property
    def closed(self) -> bool:
        return bool(self.connection.is_closed())

    async def commit(self, epoch: str, groups: Sequence[Group]) -> int:
        """Write all groups in one transaction if the epoch is still ours. Returns the version of the rows written.

        One statement is its own transaction. Raises Deposed, and what the driver raises; nothing is written then,
        unless the connection was lost.
        """
        started = time.perf_counter_ns()
        if len(groups) == 1:
            version = await self._batch(epoch, groups[0])
        else:
            async with self.connection.transaction():
                for group in groups:
                    version = await self._batch(epoch, group)
        self._statistics.committed(time.perf_counter_ns() - started)
        return version

    async def _batch(self, epoch: str, group: Group) -> int:
        statement = self._statements.get(group.table)
        if statement is None:
            statement = await self.connection.prepare(STATEMENTS[group.table]["batch"])
            self._statements[group.table] = statement
        with self._statistics.statement():
            try:
                fenced, transaction, _ = await statement.fetchrow(epoch, len(group.rows), *transposed(group.rows))
            except BaseException:
                # A changed schema invalidates prepared statements.
                self._statements.pop(group.table, None)
                raise
        if not fenced:
            raise Deposed("another writer has taken over the database")
        return int(transaction) & XID_MASK

    async def close(self) -> None:
        await close(self.connection)


async def connect(settings: ConnectionSettings, statistics: Statistics) -> asyncpg.Connection[Any]:
    """A new connection, counted until it ends."""
    connection = await settings.connect()
    statistics.open_connections += 1

    def ended(_: object) -> None:
        statistics.open_connections -= 1

    connection.add_termination_listener(ended)
    return connection


async def close(connection: asyncpg.Connection[Any]) -> None:
    """Close without waiting for a server that does not answer."""
    try:
        await connection.close(timeout=2)
    except DATABASE_FAILURES:
        connection.terminate()


async def find(connection: asyncpg.Connection[Any], table: str, keys: Iterable[Any], sealing: Any) -> dict[Any, Found]:
    """The rows of a table that exist under the given keys, decoded with the `Keys` in `sealing`."""
    mapping = MAPPINGS[table]
    wanted = [mapping.key_values(key) for key in keys]
    if not wanted:
        return {}
    rows = await connection.fetch(STATEMENTS[table]["rows"], *transposed(wanted))
    return {mapping.key(row): Found(mapping.decode(row, sealing), row["xmin"]) for row in rows}
