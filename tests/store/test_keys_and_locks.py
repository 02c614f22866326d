"""Key labels and re-encryption (storage.md 5.4), the advisory lock, and the health check (server.md 16)."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.context import Context
from bbs_server.core.outcome import Outcome
from bbs_server.core.records import ActualLRP, DesiredLRP, MetricTag, Task
from bbs_server.core.state import State
from bbs_server.dev.postgres import EmbeddedPostgres
from bbs_server.store.advisory_lock import AdvisoryLock
from bbs_server.store.epoch import raise_epoch
from bbs_server.store.errors import Deposed, UnknownKeyLabel
from bbs_server.store.health import Unhealthy
from bbs_server.store.sealing import Keys

BOTH = {"key1": "passphrase one", "new": "other"}
NEW_ONLY = Keys("new", {"new": "other"})
DONE = Outcome(models.TaskLifecycleResponse())


def put(state: State, records: Any, context: Context) -> Outcome:
    for record in records:
        table = {Task: "tasks", DesiredLRP: "desired_lrps", ActualLRP: "actual_lrps"}[type(record)]
        state.tables[table].put(record)
    return DONE


RECORDS = [
    Task("t", "d", 1, 1, 1, b""),
    ActualLRP("p", 0, "d", 0, "RUNNING", 1, "e"),
    ActualLRP("p", 1, "d", 0, "RUNNING", 1, "e"),
    DesiredLRP("p", "d", "l", "", 1, 1, 1, 1, "r", 0, "e", 0, None, (("a", MetricTag("b")),), None, b"", b""),
]


ROWS = ("TABLE tasks", "TABLE desired_lrps", "TABLE actual_lrps")
EPOCH = "SELECT value FROM configurations WHERE id = 'bbs_server_writer_epoch'"
HOLDER = """
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
"""Who has the advisory lock."""
CUT_OFF = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def label(psql: asyncpg.Connection[Any]) -> str | None:
    value: str | None = await psql.fetchval("SELECT value FROM configurations WHERE id = 'encryption_key_label'")
    return value


async def test_first_start_stores_the_label(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    assert await opened.database.reencrypt(opened.writer) > 0
    assert await label(psql) == "key1"
    assert await opened.database.reencrypt(opened.writer) is None
    actions = [action for _, action, _ in opened.logged]
    assert actions[-2:] == ["encryption-started", "encryption-finished"]


async def test_rotation(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    old = await open_store()
    await old.writer.write(put, RECORDS)
    await old.database.reencrypt(old.writer)
    await psql.execute("UPDATE actual_lrps SET metric_tags = NULL, internal_routes = '' WHERE instance_index = 0")
    await psql.execute("UPDATE actual_lrps SET metric_tags = 'garbage' WHERE instance_index = 1")
    await psql.execute("UPDATE desired_lrps SET metric_tags = NULL")
    kept = await psql.fetchrow("SELECT * FROM actual_lrps WHERE instance_index = 1")
    new = await open_store(label="new", passphrases=BOTH)
    assert await new.database.reencrypt(new.writer) > 0
    assert await label(psql) == "new"
    for statement in (
        "SELECT task_definition FROM tasks",
        "SELECT run_info, volume_placement, routes FROM desired_lrps",
        "SELECT net_info FROM actual_lrps WHERE instance_index = 0",
    ):
        assert all(NEW_ONLY.open(value) for value in await psql.fetchrow(statement))
    assert await psql.fetchrow("SELECT * FROM actual_lrps WHERE instance_index = 1") == kept
    assert await psql.fetchrow("SELECT metric_tags, internal_routes FROM actual_lrps WHERE instance_index = 0") == (
        None,
        "",
    )
    failed = [data for _, action, data in new.logged if action == "failed-to-decode-blob"]
    assert [(data["table_name"], data["error"]) for data in failed] == [("actual_lrps", "Unknown encoding: [103 97]")]
    assert await new.writer.adopt_foreign_changes() == 0


async def test_rotation_beside_writes(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    old = await open_store()
    await old.writer.write(put, [Task(f"t{n}", "d", 1, 1, 1, b"") for n in range(300)])
    new = await open_store(label="new", passphrases=BOTH)
    rotation = asyncio.create_task(new.database.reencrypt(new.writer))
    count = 0
    while not rotation.done():
        count += 1
        await asyncio.gather(
            *(new.writer.write(put, [Task(f"t{n}", "d", 1, 1, count, b"")]) for n in range(0, 300, 30))
        )
    assert count > 1
    for value in await psql.fetch("SELECT task_definition FROM tasks"):
        assert NEW_ONLY.open(value[0]) == b"\2\0"
    assert await new.writer.adopt_foreign_changes() == 0
    assert await psql.fetchval("SELECT max(updated_at) FROM tasks") == count


async def test_database_error_leaves_the_label(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    old = await open_store()
    await old.database.reencrypt(old.writer)
    new = await open_store(label="new", passphrases=BOTH)
    await psql.execute("ALTER TABLE actual_lrps RENAME TO away")
    assert await new.database.reencrypt(new.writer) > 0
    assert await label(psql) == "key1"
    assert [action for _, action, _ in new.logged][-2:] == ["encryption-failed", "encryption-finished"]
    await psql.execute("ALTER TABLE away RENAME TO actual_lrps")


async def test_a_run_that_cannot_connect_is_a_run_that_failed(
    open_store: Any, psql: asyncpg.Connection[Any], postgres: EmbeddedPostgres
) -> None:
    opened = await open_store()
    name = await psql.fetchval("SELECT current_database()")
    boss = await asyncpg.connect(postgres.url())
    await boss.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    await boss.close()
    assert await opened.database.reencrypt(opened.writer) > 0
    assert await label(psql) is None
    actions = [action for _, action, _ in opened.logged]
    assert actions[-3:] == ["encryption-started", "encryption-failed", "encryption-finished"]


@pytest.mark.parametrize("records", [RECORDS[:1], RECORDS[1:3], RECORDS[3:]], ids=["tasks", "actual", "desired"])
async def test_a_deposed_writer_reseals_nothing(
    records: list[Any], open_store: Any, psql: asyncpg.Connection[Any]
) -> None:
    """In any table: each has a statement of its own."""
    old = await open_store()
    await old.writer.write(put, records)
    await old.database.reencrypt(old.writer)
    before = [await psql.fetch(statement) for statement in ROWS]
    new = await open_store(label="new", passphrases=BOTH)
    await raise_epoch(psql, "successor")
    with pytest.raises(Deposed):
        await new.database.reencrypt(new.writer)
    assert [await psql.fetch(statement) for statement in ROWS] == before
    assert await label(psql) == "key1"
    assert "encryption-finished" not in [action for _, action, _ in new.logged]


async def test_a_writer_deposed_after_the_last_row_stores_no_label(
    open_store: Any, psql: asyncpg.Connection[Any]
) -> None:
    old = await open_store()
    await old.database.reencrypt(old.writer)
    new = await open_store(label="new", passphrases=BOTH)
    await raise_epoch(psql, "successor")
    with pytest.raises(Deposed):
        await new.database.reencrypt(new.writer)
    assert await label(psql) == "key1"


async def test_rotation_after_the_writer_has_reconnected(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    """It has raised its own epoch again, and is no other writer for that."""
    opened = await open_store()
    before = await psql.fetchval(EPOCH)
    await psql.execute(CUT_OFF)
    async with asyncio.timeout(10):
        while await psql.fetchval(EPOCH) == before:
            await asyncio.sleep(0.01)
    await opened.writer.write(put, RECORDS)
    assert await opened.database.reencrypt(opened.writer) > 0
    assert await label(psql) == "key1"


async def test_unknown_label_ends_the_start(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await opened.database.reencrypt(opened.writer)
    with pytest.raises(UnknownKeyLabel) as failure:
        await open_store(label="x", passphrases={"x": ""})
    assert str(failure.value) == "Existing encryption key version (key1) is not among the known keys"


async def test_advisory_lock(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    first, second = opened.database.advisory_lock(), opened.database.advisory_lock()
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    blocked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    async with asyncio.timeout(20):
        while not await psql.fetchval(blocked):
            await asyncio.sleep(0.01)
    assert not waiting.done()
    await first.release()
    await asyncio.wait_for(waiting, 20)
    lost = asyncio.create_task(second.lost(2))  # s, also for the answer to its question
    other = opened.database.advisory_lock()
    third = asyncio.create_task(other.acquire())
    answered = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query = 'SELECT 1'"
    )
    async with asyncio.timeout(20):
        while not await psql.fetchval(answered):
            await asyncio.sleep(0.01)
    assert not lost.done()
    assert not third.done()
    await psql.execute("SELECT pg_terminate_backend($1)", await psql.fetchval(HOLDER))
    assert await asyncio.wait_for(lost, 20)
    await asyncio.wait_for(third, 20)
    await second.release()

    # Without anybody who waits for it, it is taken again.
    lost = asyncio.create_task(other.lost())
    before = await psql.fetchval(HOLDER)
    await psql.execute("SELECT pg_terminate_backend($1)", await psql.fetchval(HOLDER))
    async with asyncio.timeout(20):
        while await psql.fetchval(HOLDER) in (before, None):
            await asyncio.sleep(0.01)
    done, _ = await asyncio.wait((lost,), timeout=0.2)
    assert not done
    lost.cancel()
    await other.release()


async def test_a_lock_is_given_up_when_the_database_has_just_answered(
    open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a process waits for that."""
    lock, ask = (await open_store()).database.advisory_lock(), AdvisoryLock._ask

    async def ask_and_give_up(*arguments: Any) -> Any:
        answer = await ask(*arguments)
        asyncio.get_running_loop().call_soon(lost.cancel)
        return answer

    await lock.acquire()
    monkeypatch.setattr(AdvisoryLock, "_ask", ask_and_give_up)
    lost = asyncio.create_task(lock.lost(0.5))
    await asyncio.wait((lost,), timeout=10)
    assert lost.cancelled()
    await lock.release()


async def test_a_lock_is_taken_again_after_a_new_connection_fell_silent(
    open_at: Any, proxy: Any, psql: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, connect = (await open_at(proxy.url)).database.advisory_lock(), AdvisoryLock._connect

    async def connect_in_vain(self: AdvisoryLock) -> None:
        monkeypatch.setattr(AdvisoryLock, "_connect", connect)
        await connect(self)
        proxy.silence()

    await lock.acquire()
    before = await psql.fetchval(HOLDER)
    monkeypatch.setattr(AdvisoryLock, "_connect", connect_in_vain)
    lost = asyncio.create_task(lock.lost(0.5))
    await psql.execute("SELECT pg_terminate_backend($1)", before)
    async with asyncio.timeout(30):
        while await psql.fetchval(HOLDER) in (before, None):
            await asyncio.sleep(0.01)
    assert not lost.done()
    lost.cancel()
    await lock.release()


async def test_health_check(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    times = iter((5, 6, 7, 8))
    check = opened.database.health_check(lambda: next(times))
    await check.attempt(30, "30s")
    await check.attempt(30, "30s")
    assert await psql.fetch("SELECT id, time FROM bbs_health_check") == [(1, 6)]
    async with psql.transaction():
        await psql.execute("LOCK bbs_health_check")
        with pytest.raises(Unhealthy, match=r"^timed out after 0\.1s while executing DB health check$"):
            await check.attempt(0.1, "0.1s")
    await psql.execute("DROP TABLE bbs_health_check")
    with pytest.raises(Unhealthy) as failure:
        await check.attempt(30, "30s")
    assert str(failure.value) == (
        'failed upserting health check time: ERROR: relation "bbs_health_check" does not exist (SQLSTATE 42P01)'
    )
