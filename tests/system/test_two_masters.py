"""A master that stood still while another one took over writes nothing when it wakes up, and ends (design rule 6)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import reference
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message
from safety import NO_ANSWER, PATIENCE, Client, Load, Program, Programs, desire_task, desired_lrp, rows

TTL, RETRY = "6s", "3s"
"""A renewal that takes as long as the latter ends the process, also if only the machine is busy."""

SEALED = ".encryptor.encryption-finished"
"""Logged beside serving by the first server on a database. Until then rows can be sealed anew, and look different."""


@pytest.fixture
def programs(tmp_path: Path, certificates: Any, postgres_url: str) -> Iterator[Programs]:
    with Programs(tmp_path, certificates, postgres_url) as made:
        yield made


async def two_servers(programs: Programs) -> tuple[Program, Program]:
    """The active one and its standby, behind one Locket."""
    locket = await programs.started_locket()
    old, new = (programs.bbs(**programs.behind(locket, TTL, RETRY)) for _ in range(2))
    old.start()
    await old.serving()
    await old.until_logged(SEALED)
    new.start()
    await new.until_logged(".locket-lock.failed-to-acquire-lock")
    return old, new


def stale_requests(number: int) -> list[tuple[str, Message]]:
    """Each would change something at the moment when the old master is stopped."""
    start = models.StartTaskRequest(task_guid=f"pending-{number}", cell_id="stale")
    return [
        ("/v1/tasks/start", start),
        ("/v1/tasks/fail", models.FailTaskRequest(task_guid=f"taken-{number}", failure_reason="stale")),
        ("/v1/tasks/desire.r2", desire_task(f"stale-{number}")),
        ("/v1/desired_lrp/remove", models.RemoveDesiredLRPRequest(process_guid=f"lrp-{number}")),
        ("/v1/domains/upsert", models.UpsertDomainRequest(domain=f"stale-{number}", ttl=600)),
    ]


async def outcome(client: Client, path: str, request: Message) -> str:
    try:
        answer = await client.ask(path, request, models.TaskLifecycleResponse)
    except NO_ANSWER:
        return "none"
    return "refused" if answer.HasField("error") else "acknowledged"


@pytest.mark.parametrize("busy", [True, False], ids=["under load", "idle"])
async def test_a_woken_master(busy: bool, programs: Programs, postgres_url: str) -> None:
    old, new = await two_servers(programs)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        setter = await enter(Client(old))
        for number in range(4):
            await setter.must("/v1/tasks/desire.r2", desire_task(f"pending-{number}"))
            await setter.must("/v1/tasks/desire.r2", desire_task(f"taken-{number}"))
            lrp = models.DesireLRPRequest(desired_lrp=desired_lrp(f"lrp-{number}"))
            await setter.must("/v1/desired_lrp/desire.r2", lrp)
        requests = [request for number in range(4) for request in stale_requests(number)]
        clients = [await enter(Client(old)) for _ in requests]
        for client in clients:
            await client.post("/v1/ping", b"")  # connected before the old master stands still
        load = await enter(Load(old, "load"))
        await load.goes_on(100)
        if not busy:
            await load.stop()
        old.signal(signal.SIGSTOP)
        waiting = [
            asyncio.create_task(outcome(client, *request)) for client, request in zip(clients, requests, strict=True)
        ]
        await new.serving()
        successor = await enter(Client(new))
        for number in range(4):
            start = models.StartTaskRequest(task_guid=f"taken-{number}", cell_id="new")
            await successor.must("/v1/tasks/start", start)
        before = await rows(postgres_url)
        old.signal(signal.SIGCONT)
        answers = await asyncio.gather(*waiting)
        assert await old.ended() == 1
        await load.stop()
        assert "acknowledged" not in answers
        assert await rows(postgres_url) == before
        assert load.problems(await successor.listed()) == []
        assert new.alive


async def test_a_master_that_stands_still_in_a_transaction(programs: Programs, postgres_url: str) -> None:
    old, new = await two_servers(programs)
    psql, watcher = await asyncpg.connect(postgres_url), await asyncpg.connect(postgres_url)
    async with Client(old) as client:
        await client.must("/v1/desired_lrp/desire.r2", models.DesireLRPRequest(desired_lrp=desired_lrp("lrp")))
        before = await rows(postgres_url)
        # Its batch has a statement for each of two tables, and the first one waits for us.
        hold = psql.transaction()
        await hold.start()
        for table in ("desired_lrps", "actual_lrps"):
            await psql.execute(f"SELECT FROM {table} FOR UPDATE")
        path, request = "/v1/desired_lrp/remove", models.RemoveDesiredLRPRequest(process_guid="lrp")
        removing = asyncio.create_task(outcome(client, path, request))
        await until(watcher, "wait_event_type = 'Lock'")
        old.signal(signal.SIGSTOP)
        await hold.rollback()
        await until(watcher, "state = 'idle in transaction'")
        await new.serving()
        old.signal(signal.SIGCONT)
        assert await old.ended() == 1
        assert await removing != "acknowledged"
    assert await rows(postgres_url) == before
    await psql.close()
    await watcher.close()


async def test_a_master_that_stands_still_in_a_migration(programs: Programs, postgres_url: str) -> None:
    psql, watcher = await asyncpg.connect(postgres_url), await asyncpg.connect(postgres_url)
    await reference.make(psql)
    await psql.execute("UPDATE configurations SET value = $1 WHERE id = 'version'", '{"CurrentVersion":1764949919}')
    locket = await programs.started_locket()
    old, new = (programs.bbs(**programs.behind(locket, TTL, RETRY)) for _ in range(2))
    # The version that is missing changes this table.
    hold = psql.transaction()
    await hold.start()
    await psql.execute("LOCK TABLE desired_lrps")
    old.start()
    await until(watcher, "wait_event_type = 'Lock'")
    old.signal(signal.SIGSTOP)
    await hold.rollback()
    await until(watcher, "state = 'idle in transaction'")
    new.start()
    await new.serving()
    await new.until_logged(SEALED)
    async with Client(new) as client:
        await client.must("/v1/desired_lrp/desire.r2", models.DesireLRPRequest(desired_lrp=desired_lrp("lrp")))
    before = await rows(postgres_url)
    old.signal(signal.SIGCONT)
    assert await old.ended() == 1
    assert await rows(postgres_url) == before
    await psql.close()
    await watcher.close()


async def until(watcher: asyncpg.Connection[Any], condition: str) -> None:
    """Wait until some session of the database is in that condition."""
    statement = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {condition}"
    async with asyncio.timeout(PATIENCE):
        while not await watcher.fetchval(statement):
            await asyncio.sleep(0.02)
