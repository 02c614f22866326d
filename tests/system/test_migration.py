"""The real program on databases of older releases, with data, and on those that it must not touch (storage.md 3, 4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import reference
from bbs_protos import models_pb2 as models
from safety import Client, Programs, definition

CREATED = 1700000000000000000


@pytest.fixture
def programs(tmp_path: Path, certificates: Any, postgres_url: str) -> Iterator[Programs]:
    with Programs(tmp_path, certificates, postgres_url) as made:
        yield made


@pytest.fixture
async def psql(postgres_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


async def fill(psql: asyncpg.Connection[Any], version: int) -> None:
    """A row of each kind, as the release of that version wrote it."""
    await psql.execute("INSERT INTO domains VALUES ('d', 9000000000000000000)")
    await psql.execute(
        "INSERT INTO tasks (guid, domain, updated_at, created_at, state, cell_id, task_definition)"
        " VALUES ('t', 'd', $1, $1, 2, 'c', $2)",
        CREATED,
        reference.seal_model(definition().SerializeToString()),
    )
    info = models.DesiredLRPRunInfo(action=definition().action, created_at=CREATED)
    info.metric_tags["source_id"].static = "s"
    routes = '{"router":{"port":8080}}'
    await psql.execute(
        "INSERT INTO desired_lrps (process_guid, domain, log_guid, annotation, instances, memory_mb, disk_mb, rootfs,"
        " routes, volume_placement, modification_tag_epoch, modification_tag_index, run_info)"
        " VALUES ('p', 'd', 'l', 'note', 2, 3, 4, 'docker:r', $1, $2, 'e', 5, $3)",
        reference.seal(routes.encode()) if version >= reference.ROUTES_SEALED_SINCE else routes,
        reference.seal_model(b""),
        reference.seal_model(info.SerializeToString()),
    )
    for evacuating in (False, True):
        net = models.ActualLRPNetInfo(address=f"10.0.0.{evacuating:d}")
        row = ("p", 0, evacuating, "d", "RUNNING", f"i{evacuating:d}", reference.seal_model(net.SerializeToString()))
        columns = "process_guid, instance_index, evacuating, domain, state, instance_guid, net_info"
        if version >= reference.PRESENCE_SINCE:
            row, columns = (*row, int(evacuating)), f"{columns}, presence"
        places = ", ".join(f"${number + 1}" for number in range(len(row)))
        insert = f"INSERT INTO actual_lrps ({columns}, cell_id, modification_tag_epoch) VALUES ({places}, 'c', 'e')"
        await psql.execute(insert, *row)


def dated(version: int) -> Any:
    return pytest.param(version, id=str(version))


@pytest.mark.parametrize(
    "version", [dated(version) for version in reference.HISTORY if reference.HISTORY[version]][::3]
)
async def test_upgrade(programs: Programs, psql: asyncpg.Connection[Any], version: int) -> None:
    await reference.make(psql, version)
    await fill(psql, version)
    server = programs.bbs()
    server.start()
    await server.serving()
    async with Client(server) as client:
        tasks = await client.ask("/v1/tasks/list.r3", models.TasksRequest(), models.TasksResponse)
        (task,) = tasks.tasks
        assert (task.task_guid, task.state, task.cell_id, task.created_at) == ("t", 2, "c", CREATED)
        assert task.task_definition == definition()
        lrps = await client.ask("/v1/desired_lrps/list.r3", models.DesiredLRPsRequest(), models.DesiredLRPsResponse)
        (lrp,) = lrps.desired_lrps
        assert (lrp.process_guid, lrp.annotation, lrp.instances, lrp.log_guid) == ("p", "note", 2, "l")
        assert lrp.routes.routes == {"router": b'{"port":8080}'}
        # Before its version the column is filled from the run info, afterwards the column alone counts.
        assert set(lrp.metric_tags) == ({"source_id"} if version < 1722634733 else set())
        actual = await client.ask("/v1/actual_lrps/list", models.ActualLRPsRequest(), models.ActualLRPsResponse)
        shown = sorted(
            (one.presence, one.actual_lrp_instance_key.instance_guid, one.actual_lrp_net_info.address, one.routable)
            for one in actual.actual_lrps
        )
        routable = version < 1686692176
        assert shown == [(0, "i0", "10.0.0.0", routable), (1, "i1", "10.0.0.1", routable)]
        domains = await client.ask("/v1/domains/list", models.PingResponse(), models.DomainsResponse)
        assert list(domains.domains) == ["d"]
    stored = dict(await psql.fetch("SELECT id, value FROM configurations"))
    assert stored["version"] == f'{{"CurrentVersion":{reference.CURRENT}}}'
    server.kill()  # it may still be sealing rows, which needs the tables one after the other, too
    migrated = await reference.described(psql)
    await psql.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await reference.make(psql)
    assert [row[:1] + row[2:] for row in migrated] == [row[:1] + row[2:] for row in await reference.described(psql)]


async def test_a_newer_database_is_refused(programs: Programs, psql: asyncpg.Connection[Any]) -> None:
    await reference.make(psql)
    await psql.execute("UPDATE configurations SET value = '{\"CurrentVersion\":1999999999}'")
    before = await reference.described(psql)
    server = programs.bbs()
    server.start()
    assert await server.ended() == 1
    trace = server.logged()[-1]["data"]["error"]
    assert "Existing DB version (1999999999) exceeds bbs version (1772581987)" in trace
    assert await reference.described(psql) == before


async def test_rows_without_a_version_are_refused(programs: Programs, psql: asyncpg.Connection[Any]) -> None:
    await reference.make(psql)
    await fill(psql, reference.CURRENT)
    await psql.execute("DELETE FROM configurations")
    server = programs.bbs()
    server.start()
    assert await server.ended() == 1
    assert "holds rows" in server.logged()[-1]["data"]["error"]
    assert await psql.fetchval("SELECT count(*) FROM tasks") == 1
