"""Whatever commands and operators do, memory and that of a standby are what a fresh load of the database gives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg
from bbs_protos import models_pb2 as models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bbs_server.core.context import Context
from bbs_server.core.errors import RESOURCE_NOT_FOUND, Refused
from bbs_server.core.log import silent
from bbs_server.core.outcome import Outcome
from bbs_server.core.records import ActualLRP, DesiredLRP, Domain, MetricTag, Task
from bbs_server.core.state import State
from bbs_server.store.journal import Versions
from bbs_server.store.loading import load
from bbs_server.store.sealing import Keys
from bbs_server.store.standby import Standby
from bbs_server.store.statistics import Statistics

KEYS = Keys("key1", {"key1": "passphrase one"})
DONE = Outcome(models.TaskLifecycleResponse())

NAMES = st.sampled_from(["a", "b", "c", "é<&>"])
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
INTEGERS = st.integers(-(2**31), 2**31 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)
ENCODED = TEXTS.map(lambda text: models.TaskDefinition(root_fs=text).SerializeToString())


def pairs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """None, or pairs sorted by name, as records keep maps."""
    return st.none() | st.dictionaries(TEXTS, values, max_size=3).map(lambda found: tuple(sorted(found.items())))


DOMAINS = st.builds(Domain, NAMES, TIMES)
TASKS = st.builds(
    Task,
    guid=NAMES,
    domain=TEXTS,
    state=INTEGERS,
    created_at=TIMES,
    updated_at=TIMES,
    definition=ENCODED,
    first_completed_at=TIMES,
    cell_id=TEXTS,
    result=TEXTS,
    failed=st.booleans(),
    failure_reason=TEXTS,
    rejection_count=INTEGERS,
    rejection_reason=TEXTS,
    broken=st.just(""),
)
ACTUAL_LRPS = st.builds(
    ActualLRP,
    process_guid=NAMES,
    index=st.integers(0, 1),
    domain=TEXTS,
    presence=st.integers(0, 2),
    state=st.sampled_from(["UNCLAIMED", "RUNNING"]),
    since=TIMES,
    tag_epoch=TEXTS,
    tag_index=INTEGERS,
    instance_guid=TEXTS,
    cell_id=TEXTS,
    placement_error=TEXTS,
    net_info=TEXTS.map(lambda text: models.ActualLRPNetInfo(address=text).SerializeToString()),
    internal_routes=st.none() | st.lists(TEXTS, max_size=2).map(tuple),
    metric_tags=pairs(TEXTS),
    routable=st.booleans(),
    availability_zone=TEXTS,
    crash_count=INTEGERS,
    crash_reason=TEXTS,
    broken=st.just(""),
)
METRIC_TAGS = st.builds(MetricTag, TEXTS) | st.builds(MetricTag, st.just(""), st.integers(1, 2))
DESIRED_LRPS = st.builds(
    DesiredLRP,
    process_guid=NAMES,
    domain=TEXTS,
    log_guid=TEXTS,
    annotation=TEXTS,
    instances=INTEGERS,
    memory_mb=INTEGERS,
    disk_mb=INTEGERS,
    max_pids=INTEGERS,
    rootfs=TEXTS,
    update_strategy=INTEGERS,
    tag_epoch=TEXTS,
    tag_index=INTEGERS,
    routes=pairs(st.sampled_from([b"null", b'{"a":[1,2.50,"}"]}', b'"\\u003c"'])),
    metric_tags=pairs(METRIC_TAGS),
    placement_tags=st.none() | st.lists(TEXTS, max_size=2).map(tuple),
    volume_placement=TEXTS.map(lambda text: models.VolumePlacement(driver_names=[text]).SerializeToString()),
    run_info=TEXTS.map(lambda text: models.DesiredLRPRunInfo(log_source=text).SerializeToString()),
    broken=st.just({}),
)
RECORDS = DOMAINS | TASKS | ACTUAL_LRPS | DESIRED_LRPS
TABLES = {Domain: "domains", Task: "tasks", ActualLRP: "actual_lrps", DesiredLRP: "desired_lrps"}
FOREIGN = (
    "DELETE FROM tasks",
    "DELETE FROM actual_lrps WHERE presence = 1",
    "UPDATE actual_lrps SET net_info = '', routable = NULL, metric_tags = NULL",
    "UPDATE tasks SET task_definition = '02', result = NULL, state = NULL WHERE guid = 'a'",
    "UPDATE desired_lrps SET annotation = NULL, routes = 'zz', metric_tags = NULL, placement_tags = NULL",
    "UPDATE domains SET expire_time = NULL",
    "INSERT INTO domains SELECT 'c', 5 WHERE NOT EXISTS (SELECT FROM domains WHERE domain = 'c')",
    "INSERT INTO tasks (guid, domain, task_definition) SELECT 'b', 'd', 'x' WHERE NOT EXISTS"
    " (SELECT FROM tasks WHERE guid = 'b')",
)


def put(state: State, records: list[Any], context: Context) -> Outcome:
    for record in records:
        state.tables[TABLES[type(record)]].put(record)
    return DONE


def replace_all(state: State, records: list[Any], context: Context) -> Outcome:
    """Removes and puts in one command, and refuses in the middle if there is nothing to remove."""
    for record in records:
        table = state.tables[TABLES[type(record)]]
        key = next(
            (key for key, held in zip(table.keys(), table.all(), strict=True) if held.domain == record.domain), None
        )
        if key is None:
            raise Refused(RESOURCE_NOT_FOUND)
        table.remove(key)
        table.put(record)
    return DONE


def clear(state: State, tables: list[str], context: Context) -> Outcome:
    for name in tables:
        for key in list(state.tables[name].keys()):
            state.tables[name].remove(key)
    return DONE


STEPS = st.one_of(
    st.tuples(st.just(put), st.lists(RECORDS, min_size=1, max_size=4)),
    st.tuples(st.just(replace_all), st.lists(RECORDS, min_size=1, max_size=2)),
    st.tuples(st.just(clear), st.lists(st.sampled_from(sorted(TABLES.values())), max_size=2)),
    st.sampled_from(FOREIGN),
)


async def holds(opened: Any, psql: asyncpg.Connection[Any]) -> None:
    await opened.writer.adopt_foreign_changes()
    await is_in_database(opened.writer.state, opened.writer.versions, psql)


async def is_in_database(state: State, known: Mapping[str, Versions], psql: asyncpg.Connection[Any]) -> None:
    fresh = State()
    versions = await load(psql, fresh, KEYS)
    for name, table in fresh.tables.items():
        held = state.tables[name]
        assert dict(zip(held.keys(), held.all(), strict=True)) == dict(zip(table.keys(), table.all(), strict=True))
        assert known[name].by_key == versions[name].by_key


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(rounds=st.lists(st.lists(STEPS, max_size=6), max_size=4))
async def test_memory_is_the_database(
    open_store: Any, psql: asyncpg.Connection[Any], once: dict[str, Any], rounds: list[list[Any]]
) -> None:
    opened = once.get("opened") or once.setdefault("opened", await open_store())
    await opened.writer.write(clear, sorted(TABLES.values()))
    standby = Standby(opened.database.settings, KEYS, Statistics(), silent)
    standby.begin(interval=0)
    for steps in rounds:
        calls = [
            psql_later(psql, step, opened) if isinstance(step, str) else opened.writer.write(*step) for step in steps
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        faults = [result for result in results if isinstance(result, Exception) and not isinstance(result, Refused)]
        assert faults == []
        await holds(opened, psql)
    copy = await standby.end(psql)
    await is_in_database(copy.state, copy.versions, psql)


async def psql_later(psql: asyncpg.Connection[Any], statement: str, opened: Any) -> None:
    async with opened.psql_turn:
        try:
            await psql.execute(statement)
        except asyncpg.UniqueViolationError:
            pass
