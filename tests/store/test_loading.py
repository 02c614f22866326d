"""Becoming active: everything in memory, soon, and without holding the event loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.records import ActualLRP, DesiredLRP
from bbs_server.core.state import State
from bbs_server.store.loading import load
from bbs_server.store.rows import MAPPINGS
from bbs_server.store.sealing import Keys

KEYS = Keys("key1", {"key1": "passphrase one"})


def actual_lrp(number: int) -> ActualLRP:
    net_info = models.ActualLRPNetInfo(address="10.0.0.1", ports=[models.PortMapping(container_port=8080)])
    return ActualLRP(f"guid-{number}", 0, "d", 0, "RUNNING", 1, "e", net_info=net_info.SerializeToString())


def desired_lrp(number: int) -> DesiredLRP:
    variables = [models.EnvironmentVariable(name=f"NAME{n}", value="v" * 40) for n in range(10)]
    run_info = models.DesiredLRPRunInfo(environment_variables=variables).SerializeToString()
    routes = (("cf-router", b'[{"hostnames":["a.b"],"port":8080}]'),)
    return DesiredLRP(f"guid-{number}", "d", "l", "", 1, 1, 1, 1, "r", 0, "e", 0, routes, (), None, b"", run_info)


async def fill(psql: asyncpg.Connection[Any], count: int) -> None:
    for table, make in (("desired_lrps", desired_lrp), ("actual_lrps", actual_lrp)):
        mapping = MAPPINGS[table]
        rows = [mapping.encode(None, make(number), KEYS) for number in range(count)]
        await psql.copy_records_to_table(table, records=rows, columns=mapping.columns)


async def longest_hold(work: asyncio.Future[Any]) -> float:
    """Seconds of the longest stretch in which no other task had a turn, while the work was done."""
    longest, last = 0.0, time.perf_counter()
    while not work.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


def task_row(definition: bytes) -> tuple[Any, ...]:
    """A row of a task as the database gives it."""
    return ("g", "d", 1, 1, 1, 0, "", None, False, "", KEYS.seal_model(definition), 0, "")


def test_fields_that_nobody_knows_are_left_out() -> None:
    """Another version may have written them. The reference drops them where it reads (wire.md E9)."""
    definition = models.TaskDefinition(root_fs="a:b", placement_tags=["x"]).SerializeToString()
    record = MAPPINGS["tasks"].decode(task_row(definition + b"\xc2\x3e\x01z"), KEYS)
    assert (record.definition, record.broken) == (definition, "")


def test_a_column_with_a_wrong_wire_type_is_undecodable() -> None:
    """Sent as it is, it would make the whole list unreadable for the reference's clients (wire.md D4)."""
    record = MAPPINGS["tasks"].decode(task_row(b"\x08\x01"), KEYS)
    assert (record.definition, record.broken) == (None, "wrong wire type for field 1")


async def test_loads_every_record(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    await (await open_store()).close()
    await fill(psql, 1000)
    state = State()
    versions = await load(psql, state, KEYS)
    assert list(state.desired_lrps.all()) == [desired_lrp(number) for number in range(1000)]
    assert list(state.actual_lrps.all()) == [actual_lrp(number) for number in range(1000)]
    assert versions["actual_lrps"].fingerprint[0] == 1000
    assert state.take() == ()


@pytest.mark.slow
async def test_fifty_thousand_of_each_in_ten_seconds(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    await (await open_store()).close()
    await fill(psql, 50_000)
    started = time.perf_counter()
    opening = asyncio.create_task(open_store())
    hold = await longest_hold(opening)
    assert time.perf_counter() - started < 10
    assert len((await opening).writer.state.actual_lrps) == 50_000
    assert hold < 0.2
