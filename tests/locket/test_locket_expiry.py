"""Locks that nobody renews disappear (locket.md section 7)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from bbs_protos import locket_pb2 as pb

INSERT = (
    "INSERT INTO locks (path, owner, value, type, modified_index, modified_id, ttl) VALUES ($1, $2, '', $3, $4, $5, $6)"
)

SOON = 3
"""A ttl, in s, in which a slow machine still makes several calls."""


async def keys(database: Any) -> set[str]:
    return {row["path"] for row in await database.fetch("SELECT path FROM locks")}


async def next_expired(served: Any) -> Any:
    return await asyncio.wait_for(served.expired.get(), 30)


async def test_a_lock_runs_out_and_another_owner_takes_it(start: Any, database: Any) -> None:
    """No scan comes to the help of the lock's own timer."""
    async with start(scan_interval=3600) as served:
        await served.client.lock("stays", ttl=60)
        began = time.monotonic()
        await served.client.lock("k", "first", 1)
        lock = await next_expired(served)
        assert time.monotonic() - began > 0.9
        assert (lock.key, lock.owner, lock.type) == ("k", "first", "lock")
        assert await keys(database) == {"stays"}
        await served.client.lock("k", "second")


async def test_renewals_keep_a_lock(served: Any, database: Any) -> None:
    began = time.monotonic()
    await served.client.lock("k", "o", 1 + SOON)
    await served.client.lock("short", "o", 1)
    assert (await next_expired(served)).key == "short"
    await served.client.lock("k", "o", 1 + SOON, type_code=pb.PRESENCE)
    lock = await next_expired(served)
    assert time.monotonic() - began > 1.9 + SOON
    assert (lock.key, lock.type, lock.modified_index) == ("k", "presence", 2)
    assert await keys(database) == set()


async def test_a_longer_or_shorter_ttl_replaces_the_old_one(served: Any) -> None:
    await served.client.lock("longer", ttl=SOON)
    await served.client.lock("longer", ttl=60)
    await served.client.lock("shorter", ttl=60)
    await served.client.lock("shorter", ttl=SOON)
    assert (await next_expired(served)).key == "shorter"
    assert (await served.client.fetch("longer")).owner == "o"


async def test_a_row_that_was_changed_behind_our_back_is_left_alone(served: Any, database: Any) -> None:
    await served.client.lock("changed", ttl=SOON)
    await served.client.lock("control", ttl=SOON)
    await database.execute("UPDATE locks SET modified_index = 5 WHERE path = 'changed'")
    assert (await next_expired(served)).key == "control"
    assert await keys(database) == {"changed"}


async def test_a_released_and_retaken_lock_has_its_own_ttl(served: Any) -> None:
    await served.client.lock("k", ttl=SOON)
    await served.client.release("k")
    await served.client.lock("k", ttl=60)
    await served.client.lock("control", ttl=SOON)
    assert (await next_expired(served)).key == "control"
    assert (await served.client.fetch("k")).owner == "o"


async def test_a_restarted_server_keeps_rows_and_then_expires_them(start: Any, database: Any) -> None:
    async with start() as first:
        await first.client.lock("k", "o", SOON)
    assert await keys(database) == {"k"}
    began = time.monotonic()
    async with start() as second:
        with pytest.raises(grpc.aio.AioRpcError, match="lock-collision"):
            await second.client.lock("k", "other")
        lock = await next_expired(second)
        assert (lock.key, lock.owner) == ("k", "o")
        assert time.monotonic() - began > SOON - 0.1


async def test_rows_of_others_are_found_by_the_next_scan(start: Any, database: Any) -> None:
    async with start(scan_interval=0.1) as served:
        await database.execute(INSERT, "other", "o", "presence", 3, "id", SOON)
        await database.execute(INSERT, "at once", "o", "lock", 0, "", 0)
        assert [(await next_expired(served)).key for _ in range(2)] == ["at once", "other"]
        assert await keys(database) == set()


async def test_two_servers_on_one_database(start: Any, database: Any) -> None:
    async with start(scan_interval=0.1) as first, start(scan_interval=0.1) as second:
        await first.client.lock("k", "o", SOON)
        with pytest.raises(grpc.aio.AioRpcError, match="lock-collision"):
            await second.client.lock("k", "other")
        await second.client.lock("k", "o", 60)
        await first.client.lock("control", "o", SOON)
        done, _ = await asyncio.wait(
            [asyncio.create_task(next_expired(server)) for server in (first, second)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert {task.result().key for task in done} == {"control"}
        assert await keys(database) == {"k"}
