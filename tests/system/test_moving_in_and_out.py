"""From the Go BBS and back: its database and configuration are taken as they are and left as it can take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asyncpg
import reference
from bbs_protos import models_pb2 as models
from reference import VECTORS, unseal
from safety import Client, Programs, definition, desired_lrp, rows

ROW = "bbs_server_writer_epoch"
"""The only thing that this server adds to a database."""

GO_CONFIG: dict[str, Any] = {
    # A configuration file of a deployment has many keys that mean nothing here.
    "advanced_metrics": {"enabled": False, "route_config": {}},
    "cell_registrations_locket_enabled": True,
    "desired_lrp_creation_timeout": "1m0s",
    "max_idle_database_connections": 200,
    "max_open_database_connections": 200,
    "max_database_connection_lifetime": "1h",
    "require_ssl": True,
    "update_workers": 1000,
    "task_callback_workers": 1000,
    "convergence_workers": 20,
    "expire_pending_task_duration": "30m0s",
    "expire_completed_task_duration": "2m0s",
    "kick_task_duration": "30s",
    "sql_ca_cert_file": "",
    "sql_enable_identity_verification": False,
    "max_data_string_length": 640,
    "time_format": "rfc3339",
    "active_key_label": "key1",
    "encryption_keys": reference.PASSPHRASES,
}


async def insert(psql: asyncpg.Connection[Any], table: str, **columns: Any) -> None:
    places = ", ".join(f"${number + 1}" for number in range(len(columns)))
    await psql.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", *columns.values())


async def fill(psql: asyncpg.Connection[Any]) -> None:
    """What the Go BBS wrote, with values of all keys it ever had."""
    await insert(psql, "configurations", id="encryption_key_label", value="key1")
    await insert(psql, "domains", domain="cf-apps", expire_time=9000000000000000000)
    times = {"created_at": 10, "updated_at": 20}
    task = {"domain": "d", "state": 1, "result": "", **times}
    await insert(psql, "tasks", guid="t1", task_definition=VECTORS["V1"], **task)
    done = {"state": 3, "first_completed_at": 20, "failed": True, "failure_reason": "why", "result": "r"}
    await insert(psql, "tasks", guid="t2", task_definition=VECTORS["V12"], **(task | done))
    lrp = {
        "domain": "d",
        "log_guid": "lg",
        "annotation": "note",
        "memory_mb": 128,
        "disk_mb": 256,
        "rootfs": "docker:r",
        "modification_tag_epoch": "epoch",
        "modification_tag_index": 3,
        "run_info": VECTORS["V2"],
        "metric_tags": VECTORS["V8"],
    }
    placement = {"instances": 2, "routes": VECTORS["V7"], "volume_placement": VECTORS["V3"], "placement_tags": '["a"]'}
    await insert(psql, "desired_lrps", process_guid="p1", **lrp, **placement)
    placement = {"instances": 1, "routes": VECTORS["V6"], "volume_placement": VECTORS["V14"], "placement_tags": "null"}
    await insert(psql, "desired_lrps", process_guid="p2", **lrp, **placement)
    tag = {"modification_tag_epoch": "epoch", "modification_tag_index": 1, "domain": "d", "since": 30}
    running = {"state": "RUNNING", "cell_id": "c", "availability_zone": "z1", "routable": True}
    for guid, index, net, routes in (("p1", 0, "V5", "V9"), ("p1", 1, "V13", "V15"), ("p2", 0, "V5", "V10")):
        await insert(
            psql,
            "actual_lrps",
            process_guid=guid,
            instance_index=index,
            instance_guid=f"{guid}-{index}",
            net_info=VECTORS[net],
            internal_routes=VECTORS[routes],
            metric_tags=VECTORS["V11"],
            **tag,
            **running,
        )


async def served(client: Client) -> dict[str, Any]:
    """Everything there is, by guid."""
    tasks = await client.ask("/v1/tasks/list.r3", models.TasksRequest(), models.TasksResponse)
    lrps = await client.ask("/v1/desired_lrps/list.r3", models.DesiredLRPsRequest(), models.DesiredLRPsResponse)
    actual = await client.ask("/v1/actual_lrps/list", models.ActualLRPsRequest(), models.ActualLRPsResponse)
    return {
        **{task.task_guid: task for task in tasks.tasks},
        **{lrp.process_guid: lrp for lrp in lrps.desired_lrps},
        **{f"{one.actual_lrp_key.process_guid}/{one.actual_lrp_key.index}": one for one in actual.actual_lrps},
    }


async def test_moving_in_and_out(tmp_path: Path, certificates: Any, postgres_url: str) -> None:
    psql = await asyncpg.connect(postgres_url)
    await reference.make(psql)
    await fill(psql)
    schema, stored = await reference.described(psql), await rows(postgres_url)
    configurations = dict(await psql.fetch("SELECT id, value FROM configurations"))
    with Programs(tmp_path, certificates, postgres_url) as programs:
        server = programs.bbs(**GO_CONFIG)
        server.start()
        await server.serving()
        async with Client(server) as client:
            found = await served(client)
            check_what_was_there(found)
            await change(client)
            changed = await served(client)
        server.kill()
        assert await reference.described(psql) == schema
        after = dict(await psql.fetch("SELECT id, value FROM configurations"))
        number, _, owner = after.pop(ROW).partition(" ")
        assert number.isdigit()
        assert owner
        assert after == configurations
        now = await rows(postgres_url)
        untouched = [key for key in stored if key[1] not in ("t1", "p1", "p1/1/0")]
        assert {key: now[key] for key in untouched} == {key: stored[key] for key in untouched}
        await check_what_was_written(psql)
        # What was left as it was is sealed as it was.
        assert await psql.fetchval("SELECT task_definition FROM tasks WHERE guid = 't1'") == VECTORS["V1"]
        assert await psql.fetchval("SELECT run_info FROM desired_lrps WHERE process_guid = 'p1'") == VECTORS["V2"]

        # The Go BBS comes back and goes again, and leaves our row alone.
        await psql.execute("UPDATE tasks SET state = 4 WHERE guid = 't2'")
        server.start()
        await server.serving()
        async with Client(server) as client:
            again = await served(client)
        assert again.pop("t2").state == models.Task.Resolving
        assert again == {guid: thing for guid, thing in changed.items() if guid != "t2"}
    await psql.close()


def check_what_was_there(found: dict[str, Any]) -> None:
    assert set(found) == {"t1", "t2", "p1", "p2", "p1/0", "p1/1", "p2/0"}
    task = models.Task(
        task_guid="t1",
        domain="d",
        state=models.Task.Pending,
        created_at=10,
        updated_at=20,
        task_definition=definition(),
    )
    assert found["t1"] == task
    assert found["t2"].task_definition == definition()
    assert (found["t2"].failed, found["t2"].failure_reason, found["t2"].result) == (True, "why", "r")
    lrp = found["p1"]
    assert lrp.action == definition().action
    assert dict(lrp.routes.routes) == {
        "b": b'{"z":1,"a":2.50}',
        "cf-router": b'[{"hostnames":["\\u003ca\\u003e\\u0026b"],"port":8080}]',
    }
    assert dict(lrp.metric_tags) == {"a": models.MetricTagValue(static="b")}
    assert list(lrp.PlacementTags) == ["a"]
    assert not found["p2"].routes.routes
    instance = found["p1/1"]
    assert instance.actual_lrp_net_info == models.ActualLRPNetInfo(
        address="10.0.0.1",
        ports=[models.PortMapping(container_port=8080, host_port=61000)],
        instance_address="10.1.1.1",
        preferred_address=models.ActualLRPNetInfo.HOST,
    )
    assert [route.hostname for route in instance.actual_lrp_internal_routes] == ["h<1>"]
    assert dict(instance.metric_tags) == {"a": "1", "b": "2"}
    assert (instance.state, instance.availability_zone, instance.routable) == ("RUNNING", "z1", True)


async def change(client: Client) -> None:
    """Something of every table and every kind of column."""
    await client.must("/v1/tasks/start", models.StartTaskRequest(task_guid="t1", cell_id="c"))
    more = models.DesireTaskRequest(task_guid="t3", domain="d", task_definition=definition())
    await client.must("/v1/tasks/desire.r2", more)
    update = models.DesiredLRPUpdate(routes=models.ProtoRoutes(routes={"r<1>": b'{"a": "<&>", "n": [1, 2.50]}'}))
    await client.must("/v1/desired_lrp/update", models.UpdateDesiredLRPRequest(process_guid="p1", update=update))
    lrp = desired_lrp("p3")
    lrp.routes.routes["x"] = b"[]"
    lrp.volume_mounts.add(driver="nfs", container_dir="/d", mode="rw", shared=models.SharedDevice(volume_id="v"))
    lrp.PlacementTags.append("<tag>")
    await client.must("/v1/desired_lrp/desire.r2", models.DesireLRPRequest(desired_lrp=lrp))
    started = models.StartActualLRPRequest(
        actual_lrp_key=models.ActualLRPKey(process_guid="p1", index=1, domain="d"),
        actual_lrp_instance_key=models.ActualLRPInstanceKey(instance_guid="p1-1", cell_id="c"),
        actual_lrp_net_info=models.ActualLRPNetInfo(address="10.0.0.9"),
        actual_lrp_internal_routes=[models.ActualLRPInternalRoute(hostname="<new>")],
        metric_tags={"b": "&", "a": "1"},
    )
    await client.must("/v1/actual_lrps/start.r1", started)
    await client.must("/v1/domains/upsert", models.UpsertDomainRequest(domain="d", ttl=600))


async def check_what_was_written(psql: asyncpg.Connection[Any]) -> None:
    """Read as the documents say, without any code of ours."""
    for table, columns in reference.SEALED.items():
        for row in await psql.fetch(f"SELECT * FROM {table}"):
            for column in columns:
                label, text = unseal(row[column])
                assert label in reference.PASSPHRASES
                if column in reference.MODELS:
                    assert text[:2] == b"\x02\x00"
                else:
                    json.loads(text)

    async def plain(column: str, table: str, guid: str, index: int = 0) -> bytes:
        key = "guid" if table == "tasks" else "process_guid"
        more = f" AND instance_index = {index}" if table == "actual_lrps" else ""
        value = await psql.fetchval(f"SELECT {column} FROM {table} WHERE {key} = $1{more}", guid)
        label, text = unseal(value)
        assert label == "key1"
        return text

    assert await plain("task_definition", "tasks", "t3") == b"\x02\x00" + definition().SerializeToString()
    routes = await plain("routes", "desired_lrps", "p1")
    assert routes == rb'{"r\u003c1\u003e":{"a":"\u003c\u0026\u003e","n":[1,2.50]}}'
    assert await plain("routes", "desired_lrps", "p3") == b'{"x":[]}'
    assert await plain("metric_tags", "desired_lrps", "p3") == b'{"source_id":{"static":"p3"}}'
    assert await plain("volume_placement", "desired_lrps", "p3") == b"\x02\x00\x0a\x03nfs"
    info = models.DesiredLRPRunInfo.FromString((await plain("run_info", "desired_lrps", "p3"))[2:])
    assert info.desired_lrp_key == models.DesiredLRPKey(process_guid="p3", domain="d", log_guid="log")
    assert info.action == definition().action
    assert await psql.fetchval("SELECT placement_tags FROM desired_lrps WHERE process_guid = 'p3'") == (
        r'["\u003ctag\u003e"]'
    )
    assert await plain("net_info", "actual_lrps", "p1", 1) == b"\x02\x00\x0a\x0810.0.0.9"
    assert await plain("internal_routes", "actual_lrps", "p1", 1) == rb'[{"hostname":"\u003cnew\u003e"}]'
    assert await plain("metric_tags", "actual_lrps", "p1", 1) == rb'{"a":"1","b":"\u0026"}'
    assert await plain("net_info", "actual_lrps", "p3") == b"\x02\x00"
    assert await plain("internal_routes", "actual_lrps", "p3") == b"[]"
    assert await plain("metric_tags", "actual_lrps", "p3") == b"{}"
