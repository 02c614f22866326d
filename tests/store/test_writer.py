"""The writer's promises: durable before answered, no trace of what failed, foreign changes adopted, one writer only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bbs_protos import models_pb2 as models
from waiting import until_blocked

from bbs_server.core.context import Context
from bbs_server.core.errors import RESOURCE_EXISTS, RESOURCE_NOT_FOUND, Error, ErrorType, Refused, unknown
from bbs_server.core.outcome import Outcome
from bbs_server.core.records import ActualLRP, DesiredLRP, Domain, MetricTag, Task
from bbs_server.core.state import State
from bbs_server.dev.postgres import EmbeddedPostgres
from bbs_server.store import session
from bbs_server.store.health import Unhealthy
from bbs_server.store.loading import load
from bbs_server.store.rows import MAPPINGS
from bbs_server.store.sealing import Keys

Open = Any
"""The `open_store` fixture: opens a writer."""
Opened = Any
"""What it gives: the writer and what it told its surroundings."""
KEYS = Keys("key1", {"key1": "passphrase one"})

COMPLETED = {"state": 3, "first_completed_at": 1}

DONE = models.TaskLifecycleResponse()


def put(state: State, records: Any, context: Context) -> Outcome:
    for record in records:
        table = {Domain: "domains", Task: "tasks", DesiredLRP: "desired_lrps", ActualLRP: "actual_lrps"}[type(record)]
        state.tables[table].put(record)
    return Outcome(DONE)


def insert(state: State, task: Task, context: Context) -> Outcome:
    if state.tasks.get(task.guid) is not None:
        raise Refused(RESOURCE_EXISTS)
    state.tasks.put(task)
    return Outcome(DONE)


def finish(state: State, guid: str, context: Context) -> Outcome:
    task = state.tasks.get(guid)
    if task is None:
        raise Refused(RESOURCE_NOT_FOUND)
    state.tasks.put(replace(task, result=task.result + "x"))
    return Outcome(DONE)


def remove(state: State, guid: str, context: Context) -> Outcome:
    if state.tasks.get(guid) is None:
        raise Refused(RESOURCE_NOT_FOUND)
    state.tasks.remove(guid)
    return Outcome(DONE)


def listed(state: State, request: Any, context: Context) -> models.TaskResponse:
    task = state.tasks.get(request)
    if task is None:
        raise Refused(RESOURCE_NOT_FOUND)
    return models.TaskResponse(task=task.message())


def task(guid: str = "t", **changes: Any) -> Task:
    definition = models.TaskDefinition(root_fs="docker:r", memory_mb=1).SerializeToString()
    return replace(Task(guid, "d", 1, 10, 20, definition), **changes)


async def error_of(awaitable: Any) -> Error:
    with pytest.raises(Refused) as refused:
        await awaitable
    return refused.value.error


def refusal(result: Any) -> Error | None:
    """The error that a call gathered with its exceptions was refused with."""
    return result.error if isinstance(result, Refused) else None


async def assert_same_as_database(opened: Opened, psql: asyncpg.Connection[Any]) -> None:
    state = State()
    versions = await load(psql, state, KEYS)
    for name, table in state.tables.items():
        held = opened.writer.state.tables[name]
        assert dict(zip(held.keys(), held.all(), strict=True)) == dict(zip(table.keys(), table.all(), strict=True))
        assert opened.writer.versions[name].fingerprint == versions[name].fingerprint
        assert opened.writer.versions[name].by_key == versions[name].by_key


async def test_write_is_durable_before_it_is_answered(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    assert await opened.writer.write(insert, task()) is DONE
    assert await psql.fetchval("SELECT domain FROM tasks WHERE guid = 't'") == "d"
    await opened.writer.write(finish, "t")
    assert await psql.fetchval("SELECT result FROM tasks") == "x"
    await assert_same_as_database(opened, psql)
    await opened.writer.write(remove, "t")
    assert await psql.fetchval("SELECT count(*) FROM tasks") == 0
    assert len(opened.dispatched) == 3
    assert await error_of(opened.writer.read(listed, "t")) == RESOURCE_NOT_FOUND
    assert await error_of(opened.writer.write(finish, "t")) == RESOURCE_NOT_FOUND


async def test_result_is_null_until_a_task_completes(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    moments: list[tuple[dict[str, int], str | None]] = [({}, None), ({"state": 2}, None), (COMPLETED, "")]
    for changes, stored in moments:
        await opened.writer.write(put, [task(**changes)])
        assert await psql.fetchval("SELECT result FROM tasks") == stored
        await assert_same_as_database(opened, psql)


async def test_commands_at_the_same_time_share_transactions(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await asyncio.gather(*(opened.writer.write(insert, task(f"t{n}")) for n in range(200)))
    await asyncio.gather(*(opened.writer.write(finish, f"t{n % 7}") for n in range(200)))
    assert await psql.fetchval("SELECT count(DISTINCT xmin::text) FROM tasks") <= 4
    assert await psql.fetchval("SELECT max(length(result)) FROM tasks") == 29
    await assert_same_as_database(opened, psql)


async def test_read_does_not_show_what_is_not_committed(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await opened.writer.write(insert, task())
    async with psql.transaction():
        await psql.execute("LOCK tasks IN EXCLUSIVE MODE")
        write = asyncio.create_task(opened.writer.write(finish, "t"))
        read = asyncio.create_task(opened.writer.read(listed, "t"))
        refused = asyncio.create_task(opened.writer.write(insert, task()))
        await until_blocked(psql)
        assert not write.done()
        assert not read.done()
        assert not refused.done()
    assert (await read).task.result == "x"
    assert await error_of(refused) == RESOURCE_EXISTS
    await write


KILL = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def test_follow_up_delays_only_its_own_answer_and_may_replace_it(open_store: Open) -> None:
    opened = await open_store()
    release = asyncio.Event()
    slow = Outcome(DONE, calls=())

    async def wait() -> Error | None:
        await release.wait()
        return unknown("no such cell")

    def insert_slowly(state: State, request: Task, context: Context) -> Outcome:
        insert(state, request, context)
        return slow

    opened.follow_up = lambda outcome: wait() if outcome is slow else None
    first = asyncio.create_task(opened.writer.write(insert_slowly, task("a")))
    await opened.writer.write(insert, task("b"))
    assert not first.done()
    release.set()
    assert await error_of(first) == unknown("no such cell")


async def test_follow_up_happens_although_its_caller_is_gone(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    followed = asyncio.Event()

    async def note() -> None:
        followed.set()

    opened.follow_up = lambda outcome: note()
    async with psql.transaction():
        await psql.execute("LOCK tasks IN EXCLUSIVE MODE")
        gone = asyncio.create_task(opened.writer.write(insert, task("a")))
        await until_blocked(psql)
        gone.cancel()
        other = asyncio.create_task(opened.writer.write(insert, task("b")))
    await asyncio.wait_for(followed.wait(), 30)
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await other is DONE
    assert await psql.fetchval("SELECT count(*) FROM tasks") == 2


async def test_fault_in_a_command_leaves_no_change(open_store: Open) -> None:
    opened = await open_store()

    def faulty(state: State, request: Any, context: Context) -> Outcome:
        state.tasks.put(task("a"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await opened.writer.write(faulty, None)
    assert opened.writer.state.tasks.get("a") is None
    assert opened.dispatched == []


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (task("g" * 256), Error(ErrorType.INVALID_REQUEST, "the request received is invalid")),
        (task("a\0b"), unknown('ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)')),
        (task("big", state=2**40), None),
        (task("strange", domain=b"\xff"), None),
    ],
)
async def test_refused_record_fails_alone(
    open_store: Open, psql: asyncpg.Connection[Any], record: Task, expected: Error | None
) -> None:
    opened = await open_store()
    good = [asyncio.create_task(opened.writer.write(insert, task(f"t{n}"))) for n in range(3)]
    bad = asyncio.create_task(opened.writer.write(insert, record))
    good += [asyncio.create_task(opened.writer.write(insert, task(f"u{n}"))) for n in range(3)]
    error = await error_of(bad)
    assert error.message
    assert expected is None or error == expected
    assert await asyncio.gather(*good) == [DONE] * 6
    assert len(opened.dispatched) == 6
    assert await psql.fetchval("SELECT count(*) FROM tasks") == 6
    await assert_same_as_database(opened, psql)
    assert await error_of(opened.writer.write(insert, record)) == error
    await assert_same_as_database(opened, psql)


FOREIGN_TASK = """
INSERT INTO tasks (guid, domain, state, task_definition) VALUES ($1, 'foreign', 1, '02x')
"""


async def test_row_that_somebody_else_inserted_exists(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await psql.execute(FOREIGN_TASK, "t2")
    results = await asyncio.gather(
        *(opened.writer.write(insert, task(f"t{n}")) for n in range(4)), return_exceptions=True
    )
    assert list(map(refusal, results)) == [None, None, RESOURCE_EXISTS, None]
    assert opened.writer.state.tasks.get("t2").domain == "foreign"
    assert opened.writer.state.tasks.get("t2").broken
    await psql.execute(FOREIGN_TASK, "single")
    assert await error_of(opened.writer.write(insert, task("single"))) == RESOURCE_EXISTS
    await assert_same_as_database(opened, psql)


async def test_command_runs_again_on_a_row_that_somebody_else_changed(
    open_store: Open, psql: asyncpg.Connection[Any]
) -> None:
    opened = await open_store()
    for guid in "abc":
        await opened.writer.write(insert, task(guid))
    await psql.execute("UPDATE tasks SET result = 'psql' WHERE guid = 'a'")
    await psql.execute("DELETE FROM tasks WHERE guid = 'b'")
    results = await asyncio.gather(*(opened.writer.write(finish, guid) for guid in "abc"), return_exceptions=True)
    assert list(map(refusal, results)) == [None, RESOURCE_NOT_FOUND, None]
    assert await psql.fetch("SELECT guid, result FROM tasks ORDER BY guid") == [("a", "psqlx"), ("c", "x")]
    await psql.execute("DELETE FROM tasks WHERE guid = 'a'")
    assert await error_of(opened.writer.write(remove, "a")) == RESOURCE_NOT_FOUND
    await assert_same_as_database(opened, psql)


async def test_missing_table_is_unrecoverable(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await opened.writer.write(insert, task())
    await psql.execute("DROP TABLE tasks")
    error = await error_of(opened.writer.write(finish, "t"))
    text = 'Unrecoverable Error: ERROR: relation "tasks" does not exist (SQLSTATE 42P01)'
    assert error == Error(ErrorType.UNRECOVERABLE, text)
    await asyncio.sleep(0)
    assert opened.unrecoverable == [text]


async def test_deposed_writer_writes_nothing(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    old = await open_store()
    await old.writer.write(insert, task())
    new = await open_store()
    errors = await asyncio.gather(*(error_of(old.writer.write(finish, "t")) for _ in range(5)))
    assert {error.message for error in errors} == {"another writer has taken over the database"}
    assert old.deposed == ["another writer has taken over the database"]
    assert len(old.dispatched) == 1
    assert (await error_of(old.writer.read(listed, "t"))).message
    assert await psql.fetchval("SELECT result FROM tasks") is None
    await new.writer.write(finish, "t")
    assert await psql.fetchval("SELECT result FROM tasks") == "x"
    assert new.deposed == []


async def test_new_writer_waits_for_the_batch_of_the_old_one(
    open_store: Open, psql: asyncpg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_LOCK_LIMIT", "60s")  # however long the new one takes to come
    old = await open_store()
    await old.writer.write(insert, task())
    async with psql.transaction():
        await psql.execute("SELECT FROM tasks WHERE guid = 't' FOR UPDATE")
        write = asyncio.create_task(old.writer.write(finish, "t"))
        await until_blocked(psql)
        opening = asyncio.create_task(open_store())
        await until_blocked(psql, 2)
        assert not opening.done()
    await write
    new = await opening
    assert new.writer.state.tasks.get("t").result == "x"


async def test_connection_lost_in_a_batch_that_did_not_commit(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await opened.writer.write(insert, task())
    async with psql.transaction():
        await psql.execute("LOCK tasks IN EXCLUSIVE MODE")
        doubtful = asyncio.create_task(opened.writer.write(finish, "t"))
        await until_blocked(psql)
        waiting = asyncio.create_task(opened.writer.write(insert, task("u")))
        reading = asyncio.create_task(opened.writer.read(listed, "t"))
        await asyncio.sleep(0)
        await psql.execute(KILL)
        assert await error_of(doubtful) == unknown("unexpected EOF")
    assert await waiting is DONE
    assert (await reading).task.result == ""
    assert len(opened.dispatched) == 2
    await opened.writer.write(finish, "t")
    assert await psql.fetchval("SELECT result FROM tasks WHERE guid = 't'") == "x"
    await assert_same_as_database(opened, psql)


async def test_connection_lost_after_the_commit(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    """The server commits but its answer never arrives: the caller hears of the loss, the events leave all the same."""
    opened = await open_store()
    await opened.writer.write(insert, task("gone"))
    connection = opened.writer._session.connection
    async with psql.transaction():
        await psql.execute("LOCK tasks IN EXCLUSIVE MODE")
        doubtful = [
            asyncio.create_task(opened.writer.write(insert, task())),
            asyncio.create_task(opened.writer.write(remove, "gone")),
        ]
        await until_blocked(psql)
        # Nothing that the server says from now on is heard.
        connection._transport.abort()
        assert await error_of(doubtful[0]) == unknown("unexpected EOF")
        assert await error_of(doubtful[1]) == unknown("unexpected EOF")
        assert len(opened.dispatched) == 1
    assert (await opened.writer.read(listed, "t")).task.task_guid == "t"
    assert await error_of(opened.writer.read(listed, "gone")) == RESOURCE_NOT_FOUND
    assert len(opened.dispatched) == 3
    await assert_same_as_database(opened, psql)


async def test_connection_lost_in_a_batch_whose_row_somebody_else_changes(
    open_store: Open, psql: asyncpg.Connection[Any], postgres: EmbeddedPostgres
) -> None:
    """Another version of the row does not show that it was the batch that made it."""
    opened = await open_store()
    await opened.writer.write(insert, task())
    name = await psql.fetchval("SELECT current_database()")
    admin = await asyncpg.connect(postgres.url())
    try:
        async with psql.transaction():
            await psql.execute("UPDATE tasks SET domain = 'psql'")
            doubtful = asyncio.create_task(opened.writer.write(finish, "t"))
            await until_blocked(psql)
            # It must not look before the change is there.
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            await psql.execute(KILL)
            assert await error_of(doubtful) == unknown("unexpected EOF")
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    finally:
        await admin.close()
    await eventually(lambda: opened.writer.read(listed, "t"))
    assert (await opened.writer.read(listed, "t")).task.domain == "psql"
    assert len(opened.dispatched) == 1
    await assert_same_as_database(opened, psql)


async def test_idle_connection_is_replaced_silently(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await opened.writer.write(insert, task())
    for _ in range(3):
        lost = opened.writer._session  # it may have been replaced by the time that the others are done
        await psql.execute(KILL)
        await psql.execute("UPDATE tasks SET domain = domain || 'x'")
        async with asyncio.timeout(20):
            while not lost.closed:
                await asyncio.sleep(0)
        assert await opened.writer.write(finish, "t") is DONE
        await assert_same_as_database(opened, psql)
    assert await psql.fetchrow("SELECT domain, result FROM tasks") == ("dxxx", "xxx")


async def test_killed_over_and_over_under_load(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    """Whatever was answered is there, whatever was dispatched is there, and memory is the database."""
    opened = await open_store()
    answered: list[str] = []
    errors: set[int] = set()
    stop = False

    async def work(name: str) -> None:
        number = 0
        while not stop:
            number += 1
            guid = f"{name}-{number}"
            try:
                await opened.writer.write(insert, task(guid))
            except Refused as refused:
                errors.add(refused.error.type)
                await asyncio.sleep(0.001)
            else:
                answered.append(guid)

    workers = [asyncio.create_task(work(f"w{n}")) for n in range(8)]
    for _ in range(8):
        enough = len(answered) + 50
        async with asyncio.timeout(60):
            while len(answered) < enough:
                await asyncio.sleep(0.001)
        await psql.execute(KILL)
    stop = True
    await asyncio.gather(*workers)
    await eventually(lambda: opened.writer.write(insert, task("last")))
    stored = {row[0] for row in await psql.fetch("SELECT guid FROM tasks")}
    assert stored >= set(answered)
    assert errors == {ErrorType.UNKNOWN}
    assert len(opened.dispatched) == len(stored)
    await assert_same_as_database(opened, psql)


async def test_unreachable_database_is_answered_at_once_and_recovered_from(
    open_store: Open, psql: asyncpg.Connection[Any], postgres_url: str
) -> None:
    opened = await open_store()
    await opened.writer.write(insert, task())
    name = await psql.fetchval("SELECT current_database()")
    admin = await asyncpg.connect(postgres_url, database="postgres")
    try:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await psql.execute(KILL)
        async with asyncio.timeout(30):
            refused = "is not currently accepting connections (SQLSTATE 55000)"
            while not all(error and refused in error.message for error in await errors_of_both(opened)):
                await asyncio.sleep(0.01)
        await psql.execute("DELETE FROM tasks")
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    finally:
        await admin.close()
    await eventually(lambda: opened.writer.write(insert, task()))
    await assert_same_as_database(opened, psql)


async def eventually(call: Callable[[], Awaitable[Any]]) -> None:
    """Call until it is not refused: the server recovers within 3 s, a busy machine takes its time."""
    async with asyncio.timeout(30):
        while True:
            try:
                await call()
                return
            except Refused:
                await asyncio.sleep(0.02)


async def errors_of_both(opened: Opened) -> tuple[Error | None, Error | None]:
    """How a command and a query are answered."""
    results = await asyncio.gather(
        opened.writer.write(finish, "t"), opened.writer.read(listed, "t"), return_exceptions=True
    )
    return refusal(results[0]), refusal(results[1])


LRP = ActualLRP("p", 0, "d", 0, "RUNNING", 5, "e", 3, "i", "c", "", b"\n\x0210", ("h<1>",), (("a", "1"),), True, "z")
DESIRED = DesiredLRP(
    "p",
    "d",
    "l",
    "note",
    2,
    3,
    4,
    5,
    "docker:r",
    1,
    "e",
    7,
    (("r", b'{"a": 1.50}'),),
    (("a", MetricTag("b")), ("b", MetricTag("", 2))),
    ("x",),
    b"\n\x03nfs",
    b"",
)


async def test_all_tables_in_one_batch(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await opened.writer.write(put, [Domain("d", 7), task(), DESIRED, LRP, replace(LRP, presence=2)])
    assert (
        await psql.fetchval(
            "SELECT count(DISTINCT x) FROM (SELECT xmin::text x FROM tasks UNION ALL"
            " SELECT xmin::text FROM actual_lrps UNION ALL SELECT xmin::text FROM domains) q"
        )
        == 1
    )
    await assert_same_as_database(opened, psql)
    sealed = await psql.fetchrow("SELECT net_info, internal_routes, metric_tags FROM actual_lrps WHERE presence = 0")
    assert [KEYS.open(value) for value in sealed] == [
        b"\2\0\n\x0210",
        b'[{"hostname":"h\\u003c1\\u003e"}]',
        b'{"a":"1"}',
    ]
    await opened.writer.write(put, [replace(LRP, state="CRASHED", net_info=b""), replace(DESIRED, instances=9)])
    after = await psql.fetchrow("SELECT net_info, internal_routes, metric_tags FROM actual_lrps WHERE presence = 0")
    assert KEYS.open(after[0]) == b"\2\0"
    assert after[1:] == sealed[1:], "unchanged sealed columns are not sealed anew"
    await assert_same_as_database(opened, psql)


async def test_thousands_of_instances_in_one_command(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    await opened.writer.write(put, [replace(LRP, index=n) for n in range(5000)])
    assert await psql.fetchrow("SELECT count(*), count(DISTINCT xmin::text) FROM actual_lrps") == (5000, 1)
    await opened.writer.write(put, [DESIRED, task()])
    await psql.execute("DELETE FROM actual_lrps WHERE instance_index = 4711")
    await opened.writer.write(put, [replace(LRP, index=n, since=9) for n in range(5000)])
    await assert_same_as_database(opened, psql)


async def test_broken_row_is_written_whole(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    bare = replace(LRP, index=1, metric_tags=())
    await opened.writer.write(put, [LRP, DESIRED, bare])
    await psql.execute("UPDATE actual_lrps SET metric_tags = 'garbage'")
    await psql.execute(
        "UPDATE desired_lrps SET routes = '02', run_info = 'xy', annotation = NULL, max_pids = NULL,"
        " placement_tags = '['"
    )
    assert await opened.writer.adopt_foreign_changes() == 3
    assert opened.writer.state.actual_lrps.get(("p", 0, 0)).broken == "Unknown encoding: [103 97]"
    assert opened.writer.state.desired_lrps.get("p").broken == {
        "routes": "sealed value is too short",
        "run_info": "Unknown encoding: [120 121]",
        "placement_tags": "unexpected end of JSON input",
        "annotation": 'sql: Scan error on column index 3, name "annotation": converting NULL to string is unsupported',
        "max_pids": 'sql: Scan error on column index 7, name "max_pids": converting NULL to int32 is unsupported',
    }
    await opened.writer.write(put, [LRP, DESIRED, bare])
    await assert_same_as_database(opened, psql)
    assert opened.writer.state.actual_lrps.get(("p", 0, 0)) == LRP
    assert opened.writer.state.actual_lrps.get(("p", 1, 0)) == bare
    assert await opened.writer.adopt_foreign_changes() == 0


async def test_closed_writer_refuses(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    writes = [asyncio.create_task(opened.writer.write(insert, task(f"t{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    await opened.writer.close()
    assert await asyncio.gather(*writes) == [DONE] * 5
    assert (await error_of(opened.writer.write(insert, task()))).message == "sql: database is closed"
    assert await psql.fetchval("SELECT count(*) FROM tasks") == 5


async def test_at_most_five_connections(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    lock = opened.database.advisory_lock()
    await lock.acquire()
    await opened.database.health_check().attempt(30, "30s")
    reencryption = asyncio.create_task(opened.database.reencrypt(opened.writer))
    most = 0
    while not reencryption.done():
        await asyncio.gather(opened.writer.write(put, [Domain("d", 1)]), opened.writer.adopt_foreign_changes())
        most = max(
            most,
            await psql.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"  # autovacuum comes along, too
            ),
        )
    assert 4 <= most <= 5
    assert opened.database.statistics.open_connections == 4
    await lock.release()


async def test_statements_are_counted_with_begins_and_ends_of_transactions(
    open_store: Open, psql: asyncpg.Connection[Any]
) -> None:
    opened = await open_store()
    statistics, health = opened.database.statistics, opened.database.health_check()

    async def counted(work: Awaitable[Any]) -> tuple[int, int]:
        """Statements that succeeded and failed meanwhile."""
        await asyncio.sleep(0)  # the driver tells of them a moment later
        before = statistics.succeeded, statistics.failed
        await work
        await asyncio.sleep(0)
        assert statistics.total == statistics.succeeded + statistics.failed
        return statistics.succeeded - before[0], statistics.failed - before[1]

    # Connections that were used already are not set up meanwhile.
    await opened.writer.write(insert, task())
    await opened.writer.write(put, [Domain("d", 0)])
    await opened.writer.adopt_foreign_changes()
    await health.attempt(30, "30s")
    assert await counted(opened.writer.write(insert, task("a"))) == (1, 0)
    both = asyncio.gather(opened.writer.write(insert, task("b")), opened.writer.write(put, [Domain("d", 1)]))
    assert await counted(both) == (4, 0)
    assert await counted(opened.writer.adopt_foreign_changes()) == (2 + len(MAPPINGS), 0)
    assert await counted(health.attempt(30, "30s")) == (2, 0)
    await psql.execute("ALTER TABLE bbs_health_check RENAME TO elsewhere")

    async def fail() -> None:
        with pytest.raises(Unhealthy):
            await health.attempt(30, "30s")

    assert await counted(fail()) == (0, 1)


async def test_database_stopped_and_started_again(tmp_path: Path, open_at: Open) -> None:
    with EmbeddedPostgres(tmp_path / "pg", settings={"fsync": "off"}) as server:
        opened = await open_at(server.url())
        await opened.writer.write(insert, task())
        server.stop()
        text = f"(127.0.0.1): dial error: dial tcp 127.0.0.1:{server.port}: connect: connection refused"
        async with asyncio.timeout(30):
            while not all(error and text in error.message for error in await errors_of_both(opened)):
                await asyncio.sleep(0.01)
        with pytest.raises(Refused):
            await asyncio.wait_for(opened.writer.adopt_foreign_changes(), 30)
        server.start()
        await eventually(lambda: opened.writer.write(finish, "t"))
        assert (await opened.writer.read(listed, "t")).task.result == "x"
        assert await opened.writer.adopt_foreign_changes() == 0
        assert opened.database.statistics.open_connections == 2


async def test_comparing_all_the_time_beside_writes(open_store: Open, psql: asyncpg.Connection[Any]) -> None:
    """Comparisons neither undo nor delay what is written meanwhile, and see what somebody else does."""
    opened = await open_store()
    await opened.writer.write(put, [task(f"t{n}") for n in range(50)])
    stop = False

    async def compare() -> int:
        adopted = 0
        while not stop:
            adopted += await opened.writer.adopt_foreign_changes()
        return adopted

    async def work(number: int) -> None:
        for _ in range(100):
            await opened.writer.write(finish, f"t{number}")

    comparing = asyncio.create_task(compare())
    working = asyncio.gather(*(work(number) for number in range(40)))
    for number in range(20):
        await psql.execute("UPDATE tasks SET domain = $1 WHERE guid IN ('t45', 't46')", f"d{number}")
        await psql.execute(FOREIGN_TASK, f"foreign{number}")
    await working
    stop = True
    assert await comparing + await opened.writer.adopt_foreign_changes() >= 22
    assert {len(opened.writer.state.tasks.get(f"t{n}").result) for n in range(40)} == {100}
    assert opened.writer.state.tasks.get("t45").domain == "d19"
    await assert_same_as_database(opened, psql)
