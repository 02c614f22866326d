"""The real program with a real Locket: lock, standby, presences, loss of the lock (locket.md 3 and 4)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Any

import asyncpg
import httpx
import pytest
from bbs_protos import locket_pb2 as pb
from bbs_protos import models_pb2 as models

from bbs_server.effects.locket import Locket, LocketSettings

OWNER = "SELECT owner FROM locks WHERE path = 'bbs'"
PRESENCE = '{"cell_id":"cell-1","rep_address":"http://10.0.0.1:1800","zone":"z1","rep_url":"","annotations":{}}'


@pytest.fixture
async def locket(servers: Any, certificates: Any) -> Any:
    """A running Locket, which the servers are configured for."""
    program = await servers.locket()
    await program.logged("locket.started")
    servers.base |= {
        "locket_address": program.config["listen_address"],
        "locket_ca_cert_file": str(certificates.ca),
        "locket_client_cert_file": str(certificates.client_cert),
        "locket_client_key_file": str(certificates.client_key),
        # It is the limit of a renewal, too: one that a busy machine holds up longer ends the master.
        "lock_ttl": "15s",
        "lock_retry_interval": "2s",
    }
    return program


async def test_the_standby_takes_over_when_the_master_stops(servers: Any, locket: Any) -> None:
    master = await servers()
    await master.logged("bbs.started")
    standby = await servers(uuid="standby")
    refused = await standby.logged("bbs.locket-lock.failed-to-acquire-lock")
    assert refused["data"]["lock-owner"] == "the-bbs"
    assert refused["data"]["error"] == "rpc error: code = AlreadyExists desc = lock-collision"
    assert await master.stop() == 0
    assert "bbs.locket-lock.released-lock" in master.messages()
    await standby.logged("bbs.started")
    assert await standby.stop() == 0


async def test_a_standby_that_is_stopped_cannot_release_and_ends_without_error(servers: Any, locket: Any) -> None:
    master = await servers()
    await master.logged("bbs.started")
    standby = await servers(uuid="standby")
    await standby.logged("bbs.locket-lock.failed-to-acquire-lock")
    assert await standby.stop() == 0
    assert "bbs.locket-lock.failed-to-release-lock" in standby.messages()
    assert master.process.returncode is None


async def test_a_locket_that_is_gone_ends_the_master(servers: Any, locket: Any) -> None:
    master = await servers()
    await master.logged("bbs.started")
    await locket.stop(signal.SIGKILL)
    assert await master.ended() == 1
    trace = master.lines[-1]["data"]["error"].splitlines()
    assert master.lines[-1]["message"] == "bbs.exited-with-failure"
    assert trace[0] == "Exit trace for group:"
    assert trace[1].startswith("lock exited with error: lost lock (request ")
    assert trace[2:4] == ["db-stat-metron-notifier exited with nil", "task-stat-metron-notifier exited with nil"]
    assert trace[-1] == "healthcheck exited with nil"
    assert "bbs.locket-lock.lost-lock" in master.messages()


async def test_a_deposed_master_leaves_the_lock_to_a_successor_of_its_name(
    servers: Any, locket: Any, postgres_url: str
) -> None:
    """Locket takes two processes with one `uuid` for the same (locket.md 3.1.4); the epoch does not."""
    master = await servers()
    await master.logged("bbs.started")
    successor = await servers()
    await successor.logged("bbs.started")
    async with master.client() as http:
        with contextlib.suppress(httpx.TransportError):
            request = models.UpsertDomainRequest(domain="late", ttl=60)
            await http.post("/v1/domains/upsert", content=request.SerializeToString())
    assert await master.ended() == 1
    assert "bbs.locket-lock.released-lock" not in master.messages()
    connection = await asyncpg.connect(postgres_url)
    assert await connection.fetchval(OWNER) == "the-bbs"
    await connection.close()
    assert await successor.stop() == 0
    assert "bbs.locket-lock.released-lock" in successor.messages()


async def test_a_master_deposed_while_it_reencrypts_leaves_the_lock_to_a_successor_of_its_name(
    servers: Any, locket: Any, postgres_url: str
) -> None:
    first = await servers()
    await first.logged("bbs.encryptor.encryption-finished")
    async with first.client() as http:
        action = models.Action(run_action=models.RunAction(path="p", user="u"))
        definition = models.TaskDefinition(root_fs="docker:r", action=action)
        task = models.DesireTaskRequest(task_guid="t", domain="d", task_definition=definition)
        await http.post("/v1/tasks/desire.r2", content=task.SerializeToString())
    assert await first.stop() == 0
    psql, watcher = await asyncpg.connect(postgres_url), await asyncpg.connect(postgres_url)
    hold = psql.transaction()
    await hold.start()
    await psql.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")  # it can be read
    master = await servers(encryption_keys={"label": "passphrase", "new": "x"}, active_key_label="new")
    await master.logged("bbs.encryptor.encryption-started")
    async with asyncio.timeout(10):
        while not await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"):
            await asyncio.sleep(0.01)
    # As a successor does that has the lock already.
    await watcher.execute("UPDATE configurations SET value = '999 usurper' WHERE id LIKE '%epoch%'")
    await hold.rollback()
    assert await master.ended() == 1
    assert "bbs.locket-lock.released-lock" not in master.messages()
    assert await watcher.fetchval(OWNER) == "the-bbs"
    await psql.close()
    await watcher.close()


async def test_cells_are_those_of_locket(servers: Any, locket: Any, certificates: Any) -> None:
    settings = LocketSettings(
        locket.config["listen_address"],
        str(certificates.ca),
        str(certificates.client_cert),
        str(certificates.client_key),
    )
    client = Locket(settings)
    cell = pb.Resource(key="cell-1", owner="cell-1", value=PRESENCE, type="presence", type_code=pb.PRESENCE)
    await client.lock(cell, 60, "uuid", timeout=10, wait=True)
    await client.close()
    server = await servers()
    await server.logged("bbs.started")
    async with server.client() as http:
        answer = models.CellsResponse.FromString((await http.post("/v1/cells/list.r1")).content)
    assert [(cell.cell_id, cell.zone) for cell in answer.cells] == [("cell-1", "z1")]
