"""Connections that are silent: no statement is answered on them and no end is seen, while new ones work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import asyncpg
import pytest
from bbs_protos import models_pb2 as models
from waiting import until_blocked

from bbs_server.core.context import Context
from bbs_server.core.errors import Error, Refused, unknown
from bbs_server.core.outcome import Command, Outcome
from bbs_server.core.records import Domain, Task
from bbs_server.core.state import State
from bbs_server.store import session, writer
from bbs_server.store.health import Unhealthy

LOST = unknown("unexpected EOF")
LIMIT = 1.0
"""s that the limits are in these tests, while something is to reach them."""
WELL_IN_TIME = 30.0
"""s in which all must be over that such a limit ends."""

DONE = models.TaskLifecycleResponse()


def insert(state: State, guid: str, context: Context) -> Outcome:
    definition = models.TaskDefinition(root_fs="docker:r", memory_mb=1).SerializeToString()
    state.tasks.put(Task(guid, "d", 1, 10, 20, definition))
    return Outcome(DONE)


def insert_in_two_tables(state: State, guid: str, context: Context) -> Outcome:
    state.domains.put(Domain(guid, 1))
    return insert(state, guid, context)


def listed(state: State, request: object, context: Context) -> models.TasksResponse:
    return models.TasksResponse(tasks=[task.message() for task in state.tasks])


async def error_of(awaitable: Any) -> Error:
    with pytest.raises(Refused) as refused:
        await awaitable
    return refused.value.error


@contextmanager
def limited(module: ModuleType, name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, LIMIT)
        yield


async def test_batch_on_a_silent_connection_is_a_lost_connection(
    open_at: Any, proxy: Any, psql: asyncpg.Connection[Any]
) -> None:
    opened = await open_at(proxy.url)
    await opened.writer.write(insert, "a")
    proxy.silence()
    async with asyncio.timeout(WELL_IN_TIME):
        with limited(session, "_COMMIT_LIMIT"):
            doubtful = asyncio.create_task(opened.writer.write(insert, "b"))
            await asyncio.sleep(0)
            unsent = asyncio.create_task(opened.writer.write(insert, "c"))
            reading = asyncio.create_task(opened.writer.read(listed, None))
            assert await error_of(doubtful) == LOST
        assert await unsent is DONE
        assert [task.task_guid for task in (await reading).tasks] == ["a", "c"]
    assert [row[0] for row in await psql.fetch("SELECT guid FROM tasks ORDER BY guid")] == ["a", "c"]
    assert len(opened.dispatched) == 2


@pytest.mark.parametrize("command", [insert, insert_in_two_tables])
async def test_closing_does_not_wait_for_a_silent_connection(open_at: Any, proxy: Any, command: Command) -> None:
    opened = await open_at(proxy.url)
    proxy.silence()
    async with asyncio.timeout(WELL_IN_TIME):
        write = asyncio.create_task(opened.writer.write(command, "a"))
        await asyncio.sleep(0)
        with limited(writer, "_DRAIN_LIMIT"):
            await opened.close()
        assert await error_of(write) == unknown("sql: database is closed")


async def test_closing_does_not_wait_for_a_recovery(open_at: Any, proxy: Any, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_at(proxy.url)
    async with psql.transaction():
        # The new session looks at the tables, and waits.
        await psql.execute("LOCK domains IN ACCESS EXCLUSIVE MODE")
        proxy.silence()
        with limited(session, "_COMMIT_LIMIT"):
            assert await error_of(opened.writer.write(insert, "a")) == LOST
        await until_blocked(psql)
        proxy.silence()
        async with asyncio.timeout(WELL_IN_TIME):
            await opened.close()


async def test_comparison_on_a_silent_connection_is_left_out(
    open_at: Any, proxy: Any, psql: asyncpg.Connection[Any]
) -> None:
    opened = await open_at(proxy.url)
    proxy.silence()
    # The writer's connection is replaced, that of the comparisons is not.
    with limited(session, "_COMMIT_LIMIT"):
        assert await error_of(opened.writer.write(insert, "a")) == LOST
    await opened.writer.write(insert, "b")
    await psql.execute("DELETE FROM tasks")
    async with asyncio.timeout(WELL_IN_TIME):
        with limited(writer, "_SNAPSHOT_LIMIT"):
            comparing = asyncio.create_task(opened.writer.adopt_foreign_changes())
            await asyncio.sleep(0)
            write = asyncio.create_task(opened.writer.write(insert, "c"))
            assert await error_of(comparing) == LOST
        await write
        assert await opened.writer.adopt_foreign_changes() == 1
    assert [task.guid for task in opened.writer.state.tasks] == ["c"]


async def test_health_check_goes_on_with_another_connection(open_at: Any, proxy: Any) -> None:
    health = (await open_at(proxy.url)).database.health_check()
    await health.attempt(WELL_IN_TIME, "30s")
    proxy.silence()
    with pytest.raises(Unhealthy, match=r"^timed out after 1s while executing DB health check$"):
        await health.attempt(LIMIT, "1s")
    await health.attempt(WELL_IN_TIME, "30s")


async def test_limit_that_ends_when_the_driver_is_about_to_go_on(psql: asyncpg.Connection[Any]) -> None:
    """A busy loop finds the answer to a statement's first message and the end of the limit in the same turn."""

    async def ask() -> None:
        with session.time_limit(psql, 0.05):
            await psql.fetchval("SELECT $1::int", 1)

    asking = asyncio.create_task(ask())
    asyncio.get_running_loop().call_soon(time.sleep, 0.5)  # in the turn in which the message is sent
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await asking
