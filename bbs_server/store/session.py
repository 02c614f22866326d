"""The writer's connection: prepared batch statements, fenced by the epoch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.errors import DATABASE_FAILURES, Deposed
from bbs_server.store.journal import Versions
from bbs_server.store.rows import MAPPINGS, transposed
from bbs_server.store.sealing import Keys
from bbs_server.store.sql import STATEMENTS
from bbs_server.store.statistics import Statistics

_ROWS_PER_STATEMENT = 2000
_SLICE = 0.005
"""s of row building before other tasks get a turn."""

_OPEN_LIMIT = 5.0
"""s for the settings of a new session."""
_LOCK_LIMIT = "5s"
"""How long a statement waits for a row that somebody else has locked, such as in a `psql` session."""
_SHORT_LOCK_LIMIT = "100ms"
"""The same once that was in vain: every command meanwhile waits for those that touch such rows, one after the other."""
_SHORT_LOCK_PERIOD = 60.0
"""s until the long limit holds again."""
_COMMIT_LIMIT = 15.0
"""s for a transaction, beside `_ROW_LIMIT`: far above what a checkpoint on a slow disk holds a commit up."""
_ROW_LIMIT = 0.01
"""s more per row: what reading and syncing its pages of table and indexes may take, nothing being in memory."""
LOOK_LIMIT = 60.0
"""s for looking rows up or comparing tables. What was taken over until then need not be looked up again."""

_SQL = STATEMENTS["configurations"]

XID_MASK = 0xFFFFFFFF
"""`xmin` is the transaction id without its epoch."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one table that go to the database in one statement."""

    table: str
    rows: Sequence[tuple[Any, ...]]


async def grouped(
    changes: Mapping[str, Mapping[Any, Sequence[Any]]], versions: Mapping[str, Versions], keys: Keys
) -> list[Group]:
    """Changes as a `Batch` notes them, made to sealed rows; other tasks get a turn every few milliseconds."""
    groups: list[Group] = []
    deadline = time.perf_counter() + _SLICE
    for table, changed in changes.items():
        mapping, known = MAPPINGS[table], versions[table].by_key
        rows: list[tuple[Any, ...]] = []
        for number, (key, (before, after)) in enumerate(changed.items()):
            if before is None and after is None:
                continue
            rows.append(mapping.batch_row(key, before, after, known.get(key), keys))
            if number & 31 == 31 and time.perf_counter() > deadline:
                await asyncio.sleep(0)
                deadline = time.perf_counter() + _SLICE
        groups += (
            Group(table, rows[start : start + _ROWS_PER_STATEMENT])
            for start in range(0, len(rows), _ROWS_PER_STATEMENT)
        )
    return groups


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
        self._impatient_until = 0.0
        """When the long lock limit holds again, by the monotonic clock; 0 if it does."""

    @classmethod
    async def open(cls, settings: ConnectionSettings, statistics: Statistics) -> Session:
        connection = await connect(settings, statistics)
        with setting_up(connection), time_limit(connection, _OPEN_LIMIT):
            await _set_up(connection)
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
        unless the connection was lost. A database that does not answer in time is such a loss.
        """
        started = time.perf_counter_ns()
        rows = sum(len(group.rows) for group in groups)
        with time_limit(self.connection, _COMMIT_LIMIT + rows * _ROW_LIMIT):
            if self._impatient_until and time.monotonic() > self._impatient_until:
                await self._wait_for_locks(_LOCK_LIMIT)
                self._impatient_until = 0.0
            if len(groups) == 1:
                version = await self._batch(epoch, groups[0])
            else:
                async with self.connection.transaction():
                    for group in groups:
                        version = await self._batch(epoch, group)
        self._statistics.committed(time.perf_counter_ns() - started)
        return version

    async def lose_patience(self) -> None:
        """A row was locked for too long: for a while, do not wait that long again."""
        with time_limit(self.connection, _OPEN_LIMIT):
            await self._wait_for_locks(_SHORT_LOCK_LIMIT)
        self._impatient_until = time.monotonic() + _SHORT_LOCK_PERIOD

    async def _wait_for_locks(self, limit: str) -> None:
        await self.connection.execute(_SQL["lock_timeout"], limit)

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


async def _set_up(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(_SQL["writer_session"])
    await connection.execute(_SQL["lock_timeout"], _LOCK_LIMIT)
    # Where the server can: it ends a statement that waits for a lock when its writer is gone, so that the next need not
    # wait for it.
    with suppress(asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):
        await connection.execute(_SQL["watch_client"])


async def connect(settings: ConnectionSettings, statistics: Statistics) -> asyncpg.Connection[Any]:
    """A new connection, counted until it ends, as is what is executed on it."""
    connection = await settings.connect()
    statistics.opened(connection)
    statistics.watch(connection)
    return connection


@contextmanager
def setting_up(connection: asyncpg.Connection[Any]) -> Iterator[None]:
    """End a new connection that nobody gets because the block fails."""
    try:
        yield
    except BaseException:
        connection.terminate()
        raise


@contextmanager
def time_limit(connection: asyncpg.Connection[Any], seconds: float) -> Iterator[None]:
    """End the connection unless the block is done in time; what waits for the server then fails as after any loss.

    `asyncio.timeout` would not do: the driver has the server cancel a statement that is cancelled here, and waits for
    that before it does anything else, a rollback included.
    """
    alarm = asyncio.get_running_loop().call_later(seconds, connection.terminate)
    try:
        yield
    except AttributeError as problem:
        if not connection.is_closed():
            raise
        # The driver was about to go on: the answer to its last message had come in the same turn of the loop.
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation") from problem
    finally:
        alarm.cancel()


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel until it has ended: the error of a connection that ends meanwhile may take a cancellation's place."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)


async def close(connection: asyncpg.Connection[Any]) -> None:
    """Close without waiting for a server that does not answer."""
    try:
        await connection.close(timeout=2)
    except DATABASE_FAILURES:
        connection.terminate()


async def find(connection: asyncpg.Connection[Any], table: str, keys: Iterable[Any], sealing: Keys) -> dict[Any, Found]:
    """The rows of a table that exist under the given keys, decoded with the `Keys` in `sealing`."""
    mapping = MAPPINGS[table]
    wanted = [mapping.key_values(key) for key in keys]
    if not wanted:
        return {}
    rows = await connection.fetch(STATEMENTS[table]["rows"], *transposed(wanted))
    return {mapping.key(row): Found(mapping.decode(row, sealing), row["xmin"]) for row in rows}
