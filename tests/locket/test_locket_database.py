"""Locket and a database that is slow, silent or busy (locket.md 6.1 and section 9)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest

from bbs_server.locket import statements
from bbs_server.locket.connections import DEFAULT_CONNECTIONS
from bbs_server.locket.figures import Figures, interval_samples
from bbs_server.locket.health import LocketHealthCheck
from bbs_server.locket.locks import Locks
from bbs_server.locket.refusal import Refusal
from bbs_server.store.conninfo import parse
from bbs_server.store.health import Unhealthy
from bbs_server.store.statistics import Statistics

TIMED_OUT = (grpc.StatusCode.DEADLINE_EXCEEDED, "timeout: context deadline exceeded")

CUT_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""

LOCK_ROWS = "SELECT * FROM locks FOR UPDATE"


async def answer(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str | None]:
    try:
        await call
    except grpc.aio.AioRpcError as problem:
        return problem.code(), problem.details()
    return grpc.StatusCode.OK, ""


async def test_calls_on_silent_connections_are_answered(start: Any, wire: Any) -> None:
    """More calls than there are connections, so that one that did not come back would be missed."""
    async with start(wire.url, operation_limit=1) as served:
        await served.client.lock()
        wire.silent = True
        calls = (answer(served.client.fetch()) for _ in range(DEFAULT_CONNECTIONS + 4))
        async with asyncio.timeout(20):
            assert set(await asyncio.gather(*calls)) == {TIMED_OUT}
        wire.silent = False
        async with asyncio.timeout(20):
            for _ in range(DEFAULT_CONNECTIONS + 4):
                await served.client.lock()


async def test_two_may_start_at_once_on_an_empty_database(postgres_url: str, database: Any, until_waiting: Any) -> None:
    async with database.transaction():
        await database.execute(statements.CREATE)
        opening = asyncio.create_task(Locks.open(parse(postgres_url)))
        await until_waiting(1)
    locks = await opening
    assert await locks.count("lock") == 0
    await locks.close()


async def test_last_words_of_the_database_are_a_lost_connection(wire: Any, watcher: Any) -> None:
    """They can be there before the end of the connection is, and nothing can be asked on it any more."""
    locks = await Locks.open(parse(wire.url), connections=1)
    await locks.take("k", "o", "", "lock", 60)
    wire.open_ended = True
    await watcher.execute(CUT_OTHERS)
    await wire.ended.wait()
    await watcher.execute("SELECT 1")  # whatever had been passed on has been read when this is answered
    with pytest.raises(Refusal, match=r"^unexpected EOF$"):
        await locks.fetch("k")
    assert (await locks.fetch("k")).owner == "o"
    await locks.close()


async def test_health_check_goes_on_with_another_connection(wire: Any) -> None:
    locks = await Locks.open(parse(wire.url), health_table=True)
    health = LocketHealthCheck(parse(wire.url), locks.statistics, time.time_ns)
    await health.attempt(10, "10s")
    wire.silent = True
    with pytest.raises(Unhealthy, match=r"^timed out after 1s while executing DB health check$"):
        await health.attempt(1, "1s")
    wire.silent = False
    await health.attempt(10, "10s")
    await health.close()
    await locks.close()


async def test_a_connection_counts_until_its_last_words(wire: Any, watcher: Any) -> None:
    """Whatever the driver tells of its end."""
    statistics = Statistics()
    health = LocketHealthCheck(parse(wire.url), statistics, time.time_ns)
    await watcher.execute(statements.HEALTH_CREATE)
    await health.attempt(10, "10s")
    assert statistics.open_connections == 1
    wire.open_ended = True
    await watcher.execute(CUT_OTHERS)
    await wire.ended.wait()
    await watcher.execute("SELECT 1")  # whatever had been passed on has been read when this is answered
    with pytest.raises(Unhealthy, match=r"^failed upserting health check time: unexpected EOF$"):
        await health.attempt(10, "10s")
    await health.attempt(10, "10s")
    assert statistics.open_connections == 1
    await health.close()
    assert statistics.open_connections == 0


async def test_the_only_connection_comes_back_when_it_fell_silent_in_the_middle(
    wire: Any, database: Any, until_waiting: Any
) -> None:
    locks = await Locks.open(parse(wire.url), connections=1, limit=2)
    await locks.take("k", "o", "", "lock", 60)
    async with database.transaction():
        await database.execute(LOCK_ROWS)
        call = asyncio.create_task(locks.fetch("k"))
        await until_waiting(1)
        wire.silent = True
        with pytest.raises(Refusal, match="timeout: context deadline exceeded"):
            await asyncio.wait_for(call, 10)
        # The far end does not know that it was cut.
        await until_waiting(0)
    wire.silent = False
    assert (await locks.fetch("k")).owner == "o"
    await locks.close()


async def test_the_end_does_not_wait_for_a_silent_database(start: Any, wire: Any) -> None:
    async with asyncio.timeout(20):
        async with start(wire.url, operation_limit=1) as served:
            await served.client.lock()
            wire.silent = True


@pytest.fixture
async def one_connection(postgres_url: str) -> AsyncIterator[Locks]:
    """A table to which there is one connection."""
    locks = await Locks.open(parse(postgres_url), connections=1)
    yield locks
    await locks.close()


def waits(locks: Locks) -> tuple[int, int]:
    """What the metrics say: how many, and how long in ns."""
    values = {sample.name: sample.value for sample in interval_samples(Figures(), locks.statistics, 0, 0)}
    return int(values["DBWaitCount"]), int(values["DBWaitDuration"])


async def test_waiting_for_a_connection_is_measured(one_connection: Locks, database: Any, until_waiting: Any) -> None:
    locks = one_connection
    await locks.take("k", "o", "", "lock", 60)
    assert waits(locks) == (0, 0)
    async with database.transaction():
        await database.execute(LOCK_ROWS)
        calls = [asyncio.create_task(locks.fetch("k")) for _ in range(3)]
        await until_waiting(1)
    await asyncio.gather(*calls)
    count, duration = waits(locks)
    assert count == 2
    assert duration > 0


async def test_a_count_that_takes_too_long_is_refused(postgres_url: str, database: Any) -> None:
    """So that reports go on when the database answers again."""
    locks = await Locks.open(parse(postgres_url), limit=1)
    async with database.transaction():
        await database.execute("LOCK TABLE locks")
        with pytest.raises(Refusal, match="timeout: context deadline exceeded"):
            await locks.count("lock")
    assert await locks.count("lock") == 0
    await locks.close()
