"""Rows that somebody else keeps locked: only who needs them is refused, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from bbs_protos import models_pb2 as models
from waiting import until_blocked

from bbs_server.core.context import Context
from bbs_server.core.errors import Refused, unknown
from bbs_server.core.outcome import Outcome
from bbs_server.core.records import Task
from bbs_server.core.state import State
from bbs_server.store import session

DONE = models.TaskLifecycleResponse()
LOCKED = unknown("ERROR: canceling statement due to lock timeout (SQLSTATE 55P03)")
LOCK = "UPDATE tasks SET domain = 'psql' WHERE guid = ANY($1)"


def insert(state: State, guid: str, context: Context) -> Outcome:
    definition = models.TaskDefinition(root_fs="docker:r", memory_mb=1).SerializeToString()
    state.tasks.put(Task(guid, "d", 1, 10, 20, definition))
    return Outcome(DONE)


def mark(state: State, guid: str, context: Context) -> Outcome:
    task = state.tasks.get(guid)
    assert task is not None
    state.tasks.put(replace(task, result=task.result + "x"))
    return Outcome(DONE)


@pytest.fixture
async def opened(open_store: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(session, "_LOCK_LIMIT", "1s")
    one = await open_store()
    await asyncio.gather(*(one.writer.write(insert, guid) for guid in "abcdef"))
    return one


async def marked(opened: Any, guids: str) -> dict[str, Any]:
    """How commands on these tasks at the same time end."""
    writes = (opened.writer.write(mark, guid) for guid in guids)
    results = await asyncio.gather(*writes, return_exceptions=True)
    return {
        guid: result.error if isinstance(result, Refused) else result
        for guid, result in zip(guids, results, strict=True)
    }


async def test_only_commands_on_locked_rows_fail(opened: Any, psql: asyncpg.Connection[Any]) -> None:
    async with asyncio.timeout(30), psql.transaction():
        await psql.execute(LOCK, ["b", "e"])
        results = await marked(opened, "abcde")
        assert results == {"a": DONE, "b": LOCKED, "c": DONE, "d": DONE, "e": LOCKED}
        assert await marked(opened, "b") == {"b": LOCKED}
        assert await marked(opened, "f") == {"f": DONE}
    assert await marked(opened, "abcdef") == dict.fromkeys("abcdef", DONE)
    found = await psql.fetch("SELECT guid, domain, result FROM tasks ORDER BY guid")
    assert found == [
        ("a", "d", "xx"),
        ("b", "psql", "x"),
        ("c", "d", "xx"),
        ("d", "d", "xx"),
        ("e", "psql", "x"),
        ("f", "d", "xx"),
    ]


async def test_patience_is_lost_for_a_while(
    opened: Any, psql: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = opened.writer._session.connection
    async with psql.transaction():
        await psql.execute(LOCK, ["a"])
        assert await marked(opened, "a") == {"a": LOCKED}
    assert await marked(opened, "a") == {"a": DONE}
    assert await connection.fetchval("SHOW lock_timeout") == "100ms"
    monkeypatch.setattr(session, "_SHORT_LOCK_PERIOD", -1.0)
    async with psql.transaction():
        await psql.execute(LOCK, ["a"])
        assert await marked(opened, "a") == {"a": LOCKED}
    assert await marked(opened, "a") == {"a": DONE}
    assert await connection.fetchval("SHOW lock_timeout") == "1s"


async def test_successor_does_not_wait_for_a_locked_row(
    opened: Any, open_store: Any, psql: asyncpg.Connection[Any]
) -> None:
    async with asyncio.timeout(30), psql.transaction():
        await psql.execute(LOCK, ["a"])
        write = asyncio.create_task(marked(opened, "a"))
        await until_blocked(psql)
        await open_store()
        assert await write == {"a": LOCKED}


async def test_server_gives_a_statement_up_whose_writer_is_gone(opened: Any, psql: asyncpg.Connection[Any]) -> None:
    connection = opened.writer._session.connection
    await opened.writer._session._wait_for_locks("1h")
    backend = connection.get_server_pid()
    async with asyncio.timeout(30), psql.transaction():
        await psql.execute(LOCK, ["a"])
        write = asyncio.create_task(marked(opened, "a"))
        await until_blocked(psql)
        connection._transport.abort()
        while await psql.fetchval("SELECT 1 FROM pg_stat_activity WHERE pid = $1", backend):
            await psql.execute("SELECT pg_stat_clear_snapshot()")
        assert await write == {"a": unknown("unexpected EOF")}
