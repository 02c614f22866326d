"""Locket's connections to the database: so many at most, none of them waited for without limit (locket.md 6.1)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from bbs_server.locket import statements
from bbs_server.locket.refusal import database_failure, timed_out
from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.errors import DATABASE_FAILURES, is_connection_loss
from bbs_server.store.session import setting_up
from bbs_server.store.statistics import Statistics

DEFAULT_CONNECTIONS = 16

OPERATION_LIMIT = 10.0
"""Seconds that the work of one call may take."""

_CLOSE_LIMIT = 2.0
"""Seconds that the database gets to see connections off."""

_LONGEST = 2**31 - 1
"""The longest limit in ms that PostgreSQL takes."""


@dataclass(slots=True)
class LocketStatistics(Statistics):
    """Also the `waits` while all connections were in use, and the `wait_time` of all of them in ns, since the start."""

    waits: int = 0
    wait_time: int = 0


class Connections:
    """Transactions on a pool. One that takes too long is given up together with its connection."""

    def __init__(self, pool: asyncpg.Pool[Any], limit: float, statistics: LocketStatistics) -> None:
        """`limit`, the longest that one transaction may take, in s."""
        self.statistics = statistics
        self._pool = pool
        self._limit = limit
        self._free = asyncio.Semaphore(pool.get_max_size())

    @classmethod
    async def open(cls, settings: ConnectionSettings, most: int, limit: float) -> Connections:
        """At most so many connections; below 1: the default. Raises what the driver raises, and Unreachable."""
        statistics = LocketStatistics()

        async def connect(*_: Any, **__: Any) -> asyncpg.Connection[Any]:
            connection = await settings.connect()
            statistics.opened(connection)
            with setting_up(connection):
                await _limit_statements(connection, limit)
            statistics.watch(connection)
            return connection

        pool: asyncpg.Pool[Any] = await asyncpg.create_pool(
            min_size=0,  # with a minimum it would connect by itself, and keep a slot for as long as that takes
            max_size=most if most > 0 else DEFAULT_CONNECTIONS,
            max_inactive_connection_lifetime=0,
            connect=connect,
            reset=_keep_as_is,
        )
        return cls(pool, limit, statistics)

    async def create(self, statement: str) -> None:
        """Create a table unless it is there. Raises what the driver raises."""
        # Of two who look at the same time, the second one is told that the name is taken after all.
        with contextlib.suppress(asyncpg.UniqueViolationError):
            await self._pool.execute(statement)

    async def close(self) -> None:
        """Close all connections; those on which the database does not answer are cut."""
        with contextlib.suppress(*DATABASE_FAILURES):
            async with asyncio.timeout(_CLOSE_LIMIT):
                await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection with a transaction. Raises Refusal for everything the database does not like."""
        limit = asyncio.timeout(self._limit)
        try:
            with self.statistics.running():
                async with limit, self._turn(), self._pool.acquire() as connection, _begun(connection):
                    yield connection
        except DATABASE_FAILURES as problem:
            if limit.expired():
                raise timed_out() from None
            raise database_failure(problem) from problem

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait here, where it can be measured, so that the pool always has a connection to give."""
        await (self._waiting() if self._free.locked() else self._free.acquire())
        try:
            yield
        finally:
            self._free.release()

    async def _waiting(self) -> None:
        self.statistics.waits += 1
        began = time.perf_counter_ns()
        try:
            await self._free.acquire()
        finally:
            self.statistics.wait_time += time.perf_counter_ns() - began


@asynccontextmanager
async def _begun(connection: Any) -> AsyncIterator[None]:
    """A transaction around the block.

    If the block is cancelled the connection is cut: the database may never answer a ROLLBACK on it. So is one that
    the database has ended: its last words can come before its end, and nobody may get it in between.
    """
    transaction = connection.transaction()
    try:
        await transaction.start()
        try:
            yield
        except Exception as problem:
            if not is_connection_loss(problem):
                await transaction.rollback()
            raise
        await transaction.commit()
    except asyncio.CancelledError:
        connection.terminate()
        raise
    except DATABASE_FAILURES as problem:
        if is_connection_loss(problem):
            connection.terminate()
        raise


async def _limit_statements(connection: asyncpg.Connection[Any], limit: float) -> None:
    """Let the database give up as well: it may not learn that a connection was cut, and would keep rows locked."""
    await connection.execute(statements.LIMIT, str(min(max(int(limit * 1000), 1), _LONGEST)))


async def _keep_as_is(connection: object) -> None:
    """Transactions leave nothing behind that a connection would have to forget."""
