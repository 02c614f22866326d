"""LRP convergence, row by row: the tables of lrp-convergence.md sections 2 and 4 to 11 against a real system.

Unless a row says `fresh`, the LRP's domain is not: what happens then needs no fresh domain (section 8).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from bbs_protos import models_pb2 as models

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECOND = 10**9
STATIC = models.MetricTagValue
INDEX = models.MetricTagValue(dynamic=models.MetricTagValue.INDEX)
INSTANCE_GUID = models.MetricTagValue(dynamic=models.MetricTagValue.INSTANCE_GUID)

INSERT = """
INSERT INTO actual_lrps (process_guid, domain, instance_index, state, cell_id, presence, crash_count, since, net_info,
  instance_guid, modification_tag_epoch, modification_tag_index, routable)
VALUES ($1, $1, $2, $3, $4, $5, $6, $7, $8, $9, 'epoch', 7, true)
"""
STORED = """
SELECT concat(instance_index, ' ', state, '@' || NULLIF(cell_id, ''),
  CASE presence WHEN 1 THEN ' evacuating' WHEN 2 THEN ' suspect' END, CASE net_info WHEN 'garbage' THEN ' broken' END)
FROM actual_lrps WHERE process_guid = $1 ORDER BY 1
"""
NOTATION = re.compile(
    r"(?P<index>\d+) (?P<state>[A-Z]+)(@(?P<cell>\S+))?(?P<presence> suspect| evacuating)?"
    r"( x(?P<crashes>\d+))?( (?P<age>\d+)s)?(?P<broken> broken)?"
)
PRESENCE = {None: 0, " evacuating": 1, " suspect": 2}
CELLS = ("home", "other")


@dataclass(frozen=True)
class Row:
    """A row of a table: instances before, and what two passes make of them.

    Instances are written `INDEX STATE@CELL PRESENCE xCRASHES AGEs broken`, several divided by `; `. The cells `home`,
    `other` and `plain` (whose URL is not https) are present, `odd` has an unreadable presence, all others are missing.
    `starts` and `stops` are indices. Of a row that `repeats`, every pass causes all of it again.
    """

    name: str
    before: str
    after: str
    events: str = ""
    starts: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    desired: int | None = 1
    fresh: bool = False
    cells: bool = True
    repeats: bool = False
    ordered: bool = False
    sql: str = ""


# fmt: off
PHASE_A = (
    Row("A2-cell-missing", "0 RUNNING@home; 0 RUNNING@gone evacuating", "0 RUNNING@home",
        "G removed 0 RUNNING@gone evacuating; I removed 0 RUNNING@gone evacuating"),
    Row("A2-cell-present", "0 RUNNING@home; 0 RUNNING@other evacuating", "0 RUNNING@home; 0 RUNNING@other evacuating"),
    Row("A2-cell-present-no-desired-lrp", "0 RUNNING@home evacuating", "0 RUNNING@home evacuating",
        desired=None, fresh=True),
    Row("A2-cell-missing-no-desired-lrp", "0 RUNNING@gone evacuating", "",
        "G removed 0 RUNNING@gone evacuating; I removed 0 RUNNING@gone evacuating", desired=None),
    Row("A2-no-cells", "0 UNCLAIMED; 0 CLAIMED@home evacuating", "0 UNCLAIMED",
        "G removed 0 CLAIMED@home evacuating; I removed 0 CLAIMED@home evacuating", cells=False),
    Row("A2-undecodable", "0 RUNNING@home; 0 RUNNING@gone evacuating broken", "0 RUNNING@home"),

    Row("A4-older-than-30s", "0 UNCLAIMED 31s", "0 UNCLAIMED", starts=(0,), repeats=True),
    Row("A4-younger-than-30s", "0 UNCLAIMED 20s", "0 UNCLAIMED"),
    Row("A4-no-desired-lrp", "0 UNCLAIMED 31s", "0 UNCLAIMED", desired=None),
    Row("A4-suspect", "0 RUNNING@home; 0 UNCLAIMED suspect 31s", "0 RUNNING@home; 0 UNCLAIMED suspect"),
    Row("A4-undecodable-desired-lrp", "0 UNCLAIMED 31s", "0 UNCLAIMED",
        sql="UPDATE desired_lrps SET volume_placement = 'garbage' WHERE process_guid = $1"),

    Row("A5-running", "0 RUNNING@gone", "0 RUNNING@gone suspect; 0 UNCLAIMED",
        "I changed 0 RUNNING@gone -> 0 RUNNING@gone suspect; I created 0 UNCLAIMED", starts=(0,)),
    Row("A5-claimed", "0 CLAIMED@gone", "0 CLAIMED@gone suspect; 0 UNCLAIMED",
        "I changed 0 CLAIMED@gone -> 0 CLAIMED@gone suspect; I created 0 UNCLAIMED", starts=(0,)),
    Row("A5-cell-present", "0 RUNNING@home; 1 CLAIMED@other", "0 RUNNING@home; 1 CLAIMED@other", desired=2),
    Row("A5-no-cell-id", "0 RUNNING", "0 RUNNING"),
    Row("A5-no-desired-lrp", "0 RUNNING@gone", "0 RUNNING@gone", desired=None),
    Row("A5-no-cells", "0 RUNNING; 1 CLAIMED@home",
        "0 RUNNING suspect; 0 UNCLAIMED; 1 CLAIMED@home suspect; 1 UNCLAIMED",
        "I changed 0 RUNNING -> 0 RUNNING suspect; I created 0 UNCLAIMED;"
        " I changed 1 CLAIMED@home -> 1 CLAIMED@home suspect; I created 1 UNCLAIMED",
        starts=(0, 1), desired=2, cells=False),
    Row("A5-suspect", "0 UNCLAIMED; 0 RUNNING@gone suspect", "0 RUNNING@gone suspect; 0 UNCLAIMED"),

    Row("A6-missing", "1 RUNNING@home", "0 UNCLAIMED; 1 RUNNING@home; 2 UNCLAIMED",
        "G created 0 UNCLAIMED; I created 0 UNCLAIMED; G created 2 UNCLAIMED; I created 2 UNCLAIMED",
        starts=(0, 2), desired=3),
    Row("A6-missing-in-fresh-domain", "", "0 UNCLAIMED", "G created 0 UNCLAIMED; I created 0 UNCLAIMED",
        starts=(0,), fresh=True),
    Row("A6-suspect-does-not-count", "0 RUNNING@gone suspect", "0 RUNNING@gone suspect; 0 UNCLAIMED",
        "G created 0 UNCLAIMED; I created 0 UNCLAIMED", starts=(0,)),
    Row("A6-evacuating-does-not-count", "0 RUNNING@home evacuating", "0 RUNNING@home evacuating; 0 UNCLAIMED",
        "G created 0 UNCLAIMED; I created 0 UNCLAIMED", starts=(0,)),
    Row("A6-extra-fresh", "0 RUNNING@home; 1 UNCLAIMED; 3 CRASHED x3", "0 RUNNING@home",
        "G removed 1 UNCLAIMED; I removed 1 UNCLAIMED; G removed 3 CRASHED; I removed 3 CRASHED", fresh=True),
    Row("A6-extra-not-fresh", "0 RUNNING@home; 1 UNCLAIMED; 3 CRASHED x3", "0 RUNNING@home; 1 UNCLAIMED; 3 CRASHED"),
    Row("A6-same-number-of-other-indices", "0 RUNNING@home; 5 RUNNING@home", "0 RUNNING@home; 5 RUNNING@home",
        desired=2, fresh=True),
    Row("A6-none-desired", "0 UNCLAIMED", "", "G removed 0 UNCLAIMED; I removed 0 UNCLAIMED", desired=0, fresh=True),
    Row("A6-undecodable-desired-lrp", "0 RUNNING@home; 1 UNCLAIMED", "0 RUNNING@home; 1 UNCLAIMED", fresh=True,
        sql="UPDATE desired_lrps SET instances = 3, routes = 'garbage' WHERE process_guid = $1"),

    Row("A7-fresh", "0 UNCLAIMED; 1 CRASHED x3; 2 CLAIMED@gone", "",
        "G removed 0 UNCLAIMED; I removed 0 UNCLAIMED; G removed 1 CRASHED; I removed 1 CRASHED;"
        " G removed 2 CLAIMED@gone; I removed 2 CLAIMED@gone", desired=None, fresh=True),
    Row("A7-not-fresh", "0 UNCLAIMED; 1 CRASHED x3; 2 CLAIMED@gone", "0 UNCLAIMED; 1 CRASHED; 2 CLAIMED@gone",
        desired=None),
    Row("A8-fresh", "0 RUNNING@gone suspect; 1 CLAIMED@gone suspect", "",
        "G removed 0 RUNNING@gone suspect; I removed 0 RUNNING@gone suspect;"
        " G removed 1 CLAIMED@gone suspect; I removed 1 CLAIMED@gone suspect", desired=None, fresh=True),
    Row("A8-not-fresh", "0 RUNNING@gone suspect", "0 RUNNING@gone suspect", desired=None),

    Row("A9-both-running", "0 RUNNING@home; 0 RUNNING@gone suspect", "0 RUNNING@home",
        "G removed 0 RUNNING@gone suspect; I removed 0 RUNNING@gone suspect"),
    Row("A9-claimed-suspect", "0 RUNNING@home; 0 CLAIMED@gone suspect", "0 CLAIMED@gone suspect; 0 RUNNING@home"),
    Row("A9-claimed-ordinary", "0 CLAIMED@home; 0 RUNNING@gone suspect", "0 CLAIMED@home; 0 RUNNING@gone suspect"),
    Row("A9-evacuating", "0 RUNNING@home evacuating; 0 RUNNING@home", "0 RUNNING@home; 0 RUNNING@home evacuating"),

    Row("A10-alone", "0 RUNNING@home suspect", "0 RUNNING@home", "I changed 0 RUNNING@home suspect -> 0 RUNNING@home"),
    Row("A10-claimed", "0 CLAIMED@home suspect", "0 CLAIMED@home",
        "I changed 0 CLAIMED@home suspect -> 0 CLAIMED@home"),
    Row("A10-no-desired-lrp", "0 RUNNING@home suspect", "0 RUNNING@home",
        "I changed 0 RUNNING@home suspect -> 0 RUNNING@home", desired=None),
    Row("A10-no-cells", "0 UNCLAIMED; 0 RUNNING@home suspect", "0 RUNNING@home suspect; 0 UNCLAIMED", cells=False),

    Row("A13-not-suspect", "0 RUNNING@home; 0 CRASHED suspect x1", "0 CRASHED suspect; 0 RUNNING@home"),
    Row("A13-no-desired-lrp", "0 CRASHED x1", "0 CRASHED", desired=None),
)

PHASE_B = (
    Row("B1-unclaimed", "0 UNCLAIMED", "", "G removed 0 UNCLAIMED; I removed 0 UNCLAIMED", desired=None, fresh=True),
    Row("B1-crashed", "0 CRASHED x200", "", "G removed 0 CRASHED; I removed 0 CRASHED", desired=None, fresh=True),
    Row("B1-claimed-cell-not-found", "0 CLAIMED@gone", "", "G removed 0 CLAIMED@gone; I removed 0 CLAIMED@gone",
        desired=None, fresh=True),
    Row("B1-running-cell-not-found", "0 RUNNING@gone", "", "G removed 0 RUNNING@gone; I removed 0 RUNNING@gone",
        desired=None, fresh=True),
    Row("B1-claimed-cell-found", "0 CLAIMED@home", "0 CLAIMED@home",
        "G removed 0 CLAIMED@home; I removed 0 CLAIMED@home",
        stops=(0,), desired=None, fresh=True, repeats=True),
    Row("B1-running-cell-found", "0 RUNNING@home", "0 RUNNING@home",
        "G removed 0 RUNNING@home; I removed 0 RUNNING@home",
        stops=(0,), desired=None, fresh=True, repeats=True),
    Row("B1-cell-url-not-https", "0 RUNNING@plain", "0 RUNNING@plain",
        "G removed 0 RUNNING@plain; I removed 0 RUNNING@plain", desired=None, fresh=True, repeats=True),
    Row("B1-other-locket-error", "0 RUNNING@odd", "0 RUNNING@odd", desired=None, fresh=True),

    Row("B2", "", "0 UNCLAIMED", "G created 0 UNCLAIMED; I created 0 UNCLAIMED", starts=(0,)),
    Row("B3-crashed", "0 CRASHED x1", "0 UNCLAIMED",
        "G changed 0 CRASHED -> 0 UNCLAIMED; I created 0 UNCLAIMED; I removed 0 CRASHED", starts=(0,), ordered=True),
    Row("B3-unclaimed", "0 UNCLAIMED 31s", "0 UNCLAIMED", starts=(0,), repeats=True),
    Row("B4a-suspect-running", "0 CLAIMED@lost; 0 RUNNING@gone suspect", "0 RUNNING@gone suspect; 0 UNCLAIMED",
        "I created 0 UNCLAIMED; I removed 0 CLAIMED@lost", ordered=True),
    Row("B4a-suspect-claimed", "0 RUNNING@lost; 0 CLAIMED@gone suspect", "0 CLAIMED@gone suspect; 0 UNCLAIMED",
        "I created 0 UNCLAIMED; I removed 0 RUNNING@lost", ordered=True),
    Row("B4b", "0 RUNNING@gone", "0 RUNNING@gone suspect; 0 UNCLAIMED",
        "I changed 0 RUNNING@gone -> 0 RUNNING@gone suspect; I created 0 UNCLAIMED", starts=(0,)),
    Row("B5-ordinary-unclaimed", "0 UNCLAIMED; 0 RUNNING@home suspect", "0 RUNNING@home",
        "G removed 0 UNCLAIMED; I removed 0 UNCLAIMED; I changed 0 RUNNING@home suspect -> 0 RUNNING@home"),
    Row("B5-ordinary-claimed", "0 CLAIMED@other; 0 RUNNING@home suspect", "0 RUNNING@home",
        "G removed 0 CLAIMED@other; I removed 0 CLAIMED@other; I changed 0 RUNNING@home suspect -> 0 RUNNING@home"),
    Row("B5-no-ordinary", "0 RUNNING@home suspect", "0 RUNNING@home",
        "I changed 0 RUNNING@home suspect -> 0 RUNNING@home"),
    Row("B6-orphaned", "0 CLAIMED@gone suspect", "",
        "G removed 0 CLAIMED@gone suspect; I removed 0 CLAIMED@gone suspect",
        desired=None, fresh=True),
    Row("B6-extra", "0 RUNNING@home; 0 RUNNING@gone suspect", "0 RUNNING@home",
        "G removed 0 RUNNING@gone suspect; I removed 0 RUNNING@gone suspect"),
)

CONFLICTS = (
    Row("9-suspect-back-and-both-running", "0 RUNNING@other; 0 RUNNING@home suspect", "0 RUNNING@home",
        "G removed 0 RUNNING@other; I removed 0 RUNNING@other; I changed 0 RUNNING@home suspect -> 0 RUNNING@home"),
    Row("9-orphaned-and-both-running", "0 RUNNING@lost; 0 RUNNING@gone suspect", "",
        "G removed 0 RUNNING@lost; I removed 0 RUNNING@lost;"
        " G removed 0 RUNNING@gone suspect; I removed 0 RUNNING@gone suspect", desired=None, fresh=True),
    Row("9-suspect-back-and-index-missing", "0 RUNNING@home suspect", "0 RUNNING@home; 1 UNCLAIMED",
        "I changed 0 RUNNING@home suspect -> 0 RUNNING@home; G created 1 UNCLAIMED; I created 1 UNCLAIMED",
        starts=(1,), desired=2),
    Row("9-both-running-on-missing-cells", "0 RUNNING@lost; 0 RUNNING@gone suspect", "0 UNCLAIMED",
        "I created 0 UNCLAIMED; I removed 0 RUNNING@lost;"
        " G removed 0 RUNNING@gone suspect; I removed 0 RUNNING@gone suspect"),
)
# fmt: on


def parts(text: str) -> list[str]:
    return sorted(filter(None, text.split("; ")))


def insertion(guid: str, text: str, now: int) -> tuple[Any, ...]:
    """The statement that makes an instance of its notation."""
    row = NOTATION.fullmatch(text)
    assert row is not None, text
    index = int(row["index"])
    net_info = "garbage" if row["broken"] else ""
    since = now - int(row["age"] or 1) * SECOND
    presence, crashes = PRESENCE[row["presence"]], int(row["crashes"] or 0)
    instance = f"ig-{index}" if row["state"] in ("CLAIMED", "RUNNING") else ""
    return INSERT, guid, index, row["state"], row["cell"] or "", presence, crashes, since, net_info, instance


def replacement(guid: str, before: str, more: str = "") -> Iterable[tuple[Any, ...]]:
    """The statements that make the instances of an LRP what they shall be before the pass."""
    yield "DELETE FROM actual_lrps WHERE process_guid = $1", guid
    now = time.time_ns()
    for text in parts(before):
        yield insertion(guid, text, now)
    if more:
        yield more, guid


def starts_of(system: Any, guid: str, after: int) -> list[list[int]]:
    """The indices that convergence has requested starts of, per request. Checks the shape of requests."""
    requests = []
    for request in system.auctioneer.received[after:]:
        entries = request.json if request.path == "/v1/lrps" else []
        for entry in entries:
            assert len(entry["indices"]) == 1, "one entry per instance"
        ours = [entry["indices"][0] for entry in entries if entry["process_guid"] == guid]
        if ours:
            assert request.headers["X-Vcap-Request-Id"] == "", "convergence has no request id"
            requests.append(sorted(ours))
    return requests


def stops_of(system: Any, guid: str) -> list[int]:
    found = [re.fullmatch(f"/v1/lrps/{guid}/instances/ig-(.)/stop", request.path) for request in system.rep.received]
    return sorted(int(stop[1]) for stop in found if stop)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def cells(system: Any) -> None:
    """The cells of the rows."""
    await system.cells.appear("home")
    await system.cells.appear("other")
    await system.cells.appear("plain", rep_url="http://127.0.0.1:9")
    await system.cells.appear("odd", value="{")


async def prepare(system: Any, row: Row) -> str:
    """Desire the LRP of a row through the API; nothing is there that convergence would change."""
    guid: str = system.guid(row.name.lower())
    if row.desired is not None:
        await system.desire(guid, row.desired)
    if row.fresh:
        await system.client.upsert_domain(guid, 0)
    await system.settled()
    system.events.clear()
    return guid


async def check(system: Any, row: Row) -> None:
    guid = await prepare(system, row)
    requested = len(system.auctioneer.received)
    await system.converged(*replacement(guid, row.before, row.sql), passes=2)
    await system.settled()
    stored = sorted([record[0] for record in await system.database.fetch(STORED, guid)])
    assert stored == parts(row.after)
    assert await system.instances(guid) == stored
    events, stops = system.events.shown(guid), stops_of(system, guid)
    requests = starts_of(system, guid, requested)
    if row.repeats:
        assert sorted(set(events)) == parts(row.events)
        assert all(events.count(event) >= 2 for event in events)
        assert sorted(set(stops)) == list(row.stops)
        assert all(stops.count(index) >= 2 for index in stops)
        assert [list(row.starts)] * len(requests) == requests
        assert len(requests) >= (2 if row.starts else 0)
    else:
        assert sorted(events) == parts(row.events)
        assert stops == list(row.stops)
        assert requests == ([list(row.starts)] if row.starts else []), "all starts of a pass are one request"
    if row.ordered:
        assert [event for event in events if event[0] == "I"] == [
            part for part in row.events.split("; ") if part[0] == "I"
        ]


def rows(*table: Row) -> Any:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in table])


@rows(*PHASE_A)
async def test_phase_a(clean: Any, row: Row) -> None:
    await without_cells(clean, row)


@rows(*PHASE_B)
async def test_phase_b(clean: Any, row: Row) -> None:
    await without_cells(clean, row)


@rows(*CONFLICTS)
async def test_conflicts(clean: Any, row: Row) -> None:
    await without_cells(clean, row)


async def without_cells(system: Any, row: Row) -> None:
    if row.cells:
        await check(system, row)
    else:
        async with system.cells.none((*CELLS, "plain")):
            await check(system, row)


# -- A1, A14, A15 ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expires", "stays"),
    [
        pytest.param(-1, False, id="A1-expired"),
        pytest.param(0, False, id="A1-expires-now"),
        pytest.param(3600, True, id="A1-fresh"),
        pytest.param(None, True, id="A1-never-expires"),
    ],
)
async def test_domains(clean: Any, expires: int | None, stays: bool) -> None:
    system, domain = clean, clean.guid("domain")
    await system.client.upsert_domain(domain, 3600 if expires is not None else 0)
    change = "UPDATE domains SET expire_time = $2 WHERE domain = $1 AND expire_time <> 9223372036854775807"
    await system.converged((change, domain, time.time_ns() + (expires or 0) * SECOND))
    assert (domain in await system.client.domains()) is stays
    assert await system.database.fetchval("SELECT count(*) FROM domains WHERE domain = $1", domain) == int(stays)


async def test_a1_domain_of_the_api_expires(clean: Any) -> None:
    system, domain = clean, clean.guid("domain")
    began = time.monotonic()
    await system.client.upsert_domain(domain, 1)
    # The list rounds the clock (desired-lrps.md 11), so half a second is all that is sure.
    assert domain in await system.client.domains() or time.monotonic() - began >= 0.5
    async with asyncio.timeout(60):
        while await system.database.fetchval("SELECT count(*) FROM domains WHERE domain = $1", domain):
            await system.converged()
    assert domain not in await system.client.domains()


HOSTS = {"a": [{"hostname": "a.internal"}], "ba": [{"hostname": "b.internal"}, {"hostname": "a.internal"}]}


def routes(value: Any) -> models.ProtoRoutes:
    return models.ProtoRoutes(routes={"internal-router": json.dumps(value).encode()})


@dataclass(frozen=True)
class Update:
    """An instance that runs with some routes and tags (None: none told), and the update that its cell gets."""

    name: str
    desired: dict[str, Any]
    hostnames: Sequence[str] = ()
    tags: dict[str, str] | None = None
    sent: dict[str, Any] | None = None
    sql: str = ""


# fmt: off
UPDATES = (
    Update("A14-B7-added", {"routes": routes(HOSTS["a"])}, sent={"internal_routes": HOSTS["a"], "metric_tags": None}),
    Update("A14-B7-other-hostname", {"routes": routes(HOSTS["a"])}, ["b.internal"],
           sent={"internal_routes": HOSTS["a"], "metric_tags": None}),
    Update("A14-B7-more-desired", {"routes": routes(HOSTS["ba"])}, ["a.internal"],
           sent={"internal_routes": HOSTS["ba"], "metric_tags": None}),
    Update("A14-B7-none-desired", {}, ["a.internal"], sent={"internal_routes": None, "metric_tags": None}),
    Update("A14-B7-null-desired", {"routes": routes(None)}, ["a.internal"],
           sent={"internal_routes": None, "metric_tags": None}),
    Update("A14-same-in-another-order", {"routes": routes(HOSTS["ba"])}, ["a.internal", "b.internal"]),
    Update("A14-same", {"routes": routes(HOSTS["a"])}, ["a.internal"]),
    Update("A14-undecodable-routes", {"routes": routes(HOSTS["a"])},
           sql="UPDATE desired_lrps SET routes = 'garbage' WHERE process_guid = $1"),
    Update("A15-B8-static", {"metric_tags": {"s": STATIC(static="new")}}, tags={"s": "old"},
           sent={"internal_routes": None, "metric_tags": {"s": "new"}}),
    Update("A15-B8-dynamic", {"metric_tags": {"i": INDEX, "g": INSTANCE_GUID, "s": STATIC(static="x")}},
           tags={"s": "x"}, sent={"internal_routes": None, "metric_tags": {"g": "ig-0-home", "i": "0", "s": "x"}}),
    Update("A15-B8-fewer-desired", {"metric_tags": {"s": STATIC(static="x")}}, tags={"s": "x", "t": "y"},
           sent={"internal_routes": None, "metric_tags": {"s": "x"}}),
    Update("A15-same", {"metric_tags": {"i": INDEX, "g": INSTANCE_GUID}}, tags={"i": "0", "g": "ig-0-home"}),
    Update("A15-started-without-tags", {"metric_tags": {"s": STATIC(static="x")}}),
    Update("A15-column-null", {"metric_tags": {"s": STATIC(static="new")}}, tags={"s": "new"},
           sql="UPDATE actual_lrps SET metric_tags = NULL WHERE process_guid = $1"),
)
# fmt: on


async def run_with(system: Any, update: Update, guid: str, cell_id: str = "home") -> None:
    await system.desire(guid, **update.desired)
    more = {} if update.tags is None else {"metric_tags": update.tags}
    hosts = [models.ActualLRPInternalRoute(hostname=host) for host in update.hostnames]
    await system.start(guid, 0, cell_id, actual_lrp_internal_routes=hosts, **more)


@pytest.mark.parametrize("update", [pytest.param(update, id=update.name) for update in UPDATES])
async def test_updates_of_instances(clean: Any, update: Update) -> None:
    system, guid = clean, clean.guid("update")
    if update.sql:
        # The difference is there before the instance runs, so that no pass sees another one.
        await system.desire(guid, **update.desired)
        await system.converged((update.sql, guid))
        assert update.hostnames == ()
        more = {} if update.tags is None else {"metric_tags": update.tags}
        await system.start(guid, 0, "home", **more)
        await system.converged((update.sql, guid))
    else:
        await run_with(system, update, guid)
    await system.settled()
    system.events.clear()
    before = [bytes(lrp.SerializeToString()) for lrp in await system.client.actual_lrps(process_guid=guid)]
    await system.converged(passes=2)
    if update.sent is None:
        assert system.rep.matching(guid) == []
    else:
        requests = await system.rep.wait_for(guid, 2)
        identity = {"instance_guid": "ig-0-home", "process_guid": guid, "index": 0, "domain": guid}
        for request in requests:
            assert (request.method, request.path) == ("PUT", f"/v2/lrps/{guid}/instances/ig-0-home")
            assert "X-Vcap-Request-Id" not in request.headers
            assert request.json == identity | update.sent
    await system.settled()
    assert system.events.shown(guid) == []
    after = [bytes(lrp.SerializeToString()) for lrp in await system.client.actual_lrps(process_guid=guid)]
    assert after == before, "the database is not changed"


async def test_b7_and_b8_of_one_instance_are_two_requests_until_it_starts_with_the_new_ones(clean: Any) -> None:
    system, guid = clean, clean.guid("both")
    desired = {"routes": routes(HOSTS["a"]), "metric_tags": {"s": STATIC(static="x")}}
    await run_with(system, Update("", desired, tags={"s": "y"}), guid)
    await system.rep.wait_for(f"{guid}/", 4)
    bodies = [request.json for request in system.rep.matching(f"{guid}/")]
    kinds = {(body["internal_routes"] is None, body["metric_tags"] is None) for body in bodies}
    assert kinds == {(True, False), (False, True)}
    host = models.ActualLRPInternalRoute(hostname="a.internal")
    await system.start(guid, 0, "home", actual_lrp_internal_routes=[host], metric_tags={"s": "x"})
    told = 0
    async with asyncio.timeout(60):
        while told < len(system.rep.matching(guid)):  # passes do not wait for updates: some may be under way
            told = len(system.rep.matching(guid))
            await system.converged(passes=2)


@pytest.mark.parametrize(
    "cell", [pytest.param("plain", id="B7-url-not-https"), pytest.param("gone", id="B7-cell-absent")]
)
async def test_updates_that_cannot_be_sent_change_nothing(clean: Any, cell: str) -> None:
    system, guid = clean, clean.guid("unsent")
    if cell == "gone":
        # Absent by its key only: the presence is there under another one.
        await system.cells.appear("gone", key="elsewhere")
    await run_with(system, Update("", {"routes": routes(HOSTS["a"])}), guid, cell)
    await system.converged(passes=2)
    assert await system.instances(guid) == [f"0 RUNNING@{cell}"]
    assert system.rep.matching(guid) == []
    if cell == "gone":
        await system.cells.vanish("elsewhere")


async def test_a_desired_lrp_at_rest_that_a_list_cannot_show_is_deleted(clean: Any) -> None:
    """Only after the list: until then the row takes part as any other (desired-lrps.md 3.4)."""
    system, guid = clean, clean.guid("lost")
    await system.desire(guid)
    await system.start(guid, 0, "home", metric_tags={"source_id": guid})
    count = "SELECT count(*) FROM desired_lrps WHERE process_guid = $1"
    await system.converged(("UPDATE desired_lrps SET run_info = 'garbage' WHERE process_guid = $1", guid), passes=3)
    assert await system.database.fetchval(count, guid) == 1
    assert guid not in [lrp.process_guid for lrp in await system.client.desired_lrps()]
    await system.converged()
    assert await system.database.fetchval(count, guid) == 0


# -- what rows are like afterwards (B2 to B5) --------------------------------------------


async def one(system: Any, guid: str, presence: int = models.ActualLRP.ORDINARY) -> models.ActualLRP:
    found: list[models.ActualLRP] = await system.client.actual_lrps(process_guid=guid)
    return next(lrp for lrp in found if lrp.presence == presence)


async def converged_instances(system: Any, before: str) -> tuple[str, int]:
    guid = await prepare(system, Row("made", before, ""))
    now = time.time_ns()
    await system.converged(*replacement(guid, before))
    return guid, now


async def test_b2_what_a_created_instance_is(clean: Any) -> None:
    guid, began = await converged_instances(clean, "")
    created = await one(clean, guid)
    assert created.modification_tag.index == 0
    assert len(created.modification_tag.epoch) > 20
    assert began <= created.since <= time.time_ns()
    assert not created.routable
    assert not created.actual_lrp_internal_routes
    assert not created.metric_tags
    assert created.actual_lrp_net_info.ByteSize() == 0


@pytest.mark.parametrize(
    "state", [pytest.param("0 CRASHED x2 5s", id="B3"), pytest.param("0 RUNNING@lost x2 5s", id="B4a")]
)
async def test_what_an_unclaimed_instance_keeps(clean: Any, state: str) -> None:
    guid, began = await converged_instances(clean, f"{state}; 0 RUNNING@gone suspect" if "lost" in state else state)
    unclaimed = await one(clean, guid)
    assert (unclaimed.state, unclaimed.actual_lrp_instance_key.ByteSize()) == ("UNCLAIMED", 0)
    assert (unclaimed.modification_tag.epoch, unclaimed.modification_tag.index) == ("epoch", 8)
    assert (unclaimed.crash_count, unclaimed.routable) == (2, True)
    assert began <= unclaimed.since <= time.time_ns()


async def test_b4b_what_a_suspect_keeps(clean: Any) -> None:
    guid, began = await converged_instances(clean, "0 RUNNING@gone x2 100s")
    suspect = await one(clean, guid, models.ActualLRP.SUSPECT)
    assert (suspect.modification_tag.epoch, suspect.modification_tag.index, suspect.crash_count) == ("epoch", 7, 2)
    assert suspect.since < began - 99 * SECOND
    replacement_ = await one(clean, guid)
    assert (replacement_.modification_tag.index, replacement_.crash_count) == (0, 0)


async def test_b5_what_a_promoted_instance_keeps(clean: Any) -> None:
    guid, began = await converged_instances(clean, "0 UNCLAIMED; 0 RUNNING@home suspect 100s")
    promoted = await one(clean, guid)
    assert (promoted.state, promoted.modification_tag.epoch, promoted.modification_tag.index) == ("RUNNING", "epoch", 7)
    assert promoted.since < began - 99 * SECOND


async def test_b4b_and_b5_tags_that_are_null_stay_null(clean: Any) -> None:
    """Convergence leaves such an instance alone (A15), also after it was suspect and whoever reads the row next."""
    guid, _ = await converged_instances(clean, "0 RUNNING@gone")
    tags = "SELECT presence, metric_tags FROM actual_lrps WHERE process_guid = $1 ORDER BY 1"
    (_, of_replacement), (_, of_suspect) = await clean.database.fetch(tags, guid)
    assert of_replacement is not None, "a new row has tags, if none"
    assert of_suspect is None
    await clean.cells.appear("gone")
    try:
        await clean.converged()
        assert [tuple(row) for row in await clean.database.fetch(tags, guid)] == [(0, None)]
    finally:
        await clean.cells.vanish("gone")


async def test_b1_a_failing_stop_is_tried_five_times_and_announced_all_the_same(clean: Any) -> None:
    system = clean
    guid = await prepare(system, Row("b1-stop-fails", "", "", desired=None, fresh=True))
    system.rep.status = 500
    try:
        await system.converged(*replacement(guid, "0 RUNNING@home"))
        system.rep.hold()  # ends what would follow
        await system.rep.wait_for(guid, 6)
        place = len(system.rep.matching(guid))
        await system.settled()
        assert (place - 1) % 5 == 0
        events = system.events.shown(guid)
        assert sorted(events) == sorted(["G removed 0 RUNNING@home", "I removed 0 RUNNING@home"] * (place // 5))
    finally:
        system.rep.status = 202
        system.rep.release()
    assert await system.instances(guid) == ["0 RUNNING@home"]


async def test_b1_a_cell_that_does_not_answer_holds_up_no_other_work(clean: Any) -> None:
    """One instance after the other is stopped there, five times each; that is not waited for by what others need."""
    system = clean
    silent = await prepare(system, Row("b1-silent", "", "", desired=None, fresh=True))
    lost = await prepare(system, Row("b1-lost", "", "", desired=3))
    system.rep.hold()
    try:
        statements = [
            *replacement(silent, "0 RUNNING@home; 1 CLAIMED@home; 2 UNCLAIMED"),
            *replacement(lost, "0 RUNNING@gone; 1 CRASHED x1"),
        ]
        requested = len(system.auctioneer.received)
        await system.change(*statements)
        await system.rep.wait_for(silent, 2)
        for what in ("0 RUNNING@gone suspect", "1 UNCLAIMED", "2 UNCLAIMED"):
            assert what in await system.instances(lost)
        await system.settled()
        assert "I changed 0 RUNNING@gone -> 0 RUNNING@gone suspect" in system.events.shown(lost)
        assert "I removed 2 UNCLAIMED" in system.events.shown(silent)
        assert starts_of(system, lost, requested) == [], "the auction waits for the end"
    finally:
        system.rep.release()
    await system.converged()
    assert starts_of(system, lost, requested) == [[0, 1, 2]]


# -- phase C -----------------------------------------------------------------------------


async def test_c1_counts_are_taken_after_the_effects_and_before_the_auction(clean: Any) -> None:
    """The auctioneer does not answer, so that the pass cannot end and the figures are its own."""
    system = clean
    guid, extra = system.guid("counted"), system.guid("extra")
    await system.desire(guid, 8)
    await system.desire(extra, 0)
    await system.client.upsert_domain(extra, 0)
    before = (
        "0 RUNNING@home; 1 CLAIMED@other; 2 UNCLAIMED; 3 CRASHED x200; 4 RUNNING@gone; 5 CLAIMED@home;"
        " 5 RUNNING@lost suspect; 6 RUNNING@home; 6 CLAIMED@lost suspect"
    )
    requested = len(system.auctioneer.received)
    system.auctioneer.hold()
    try:
        await system.change(*replacement(guid, before), *replacement(extra, "0 UNCLAIMED"))
        async with asyncio.timeout(10):
            while starts_of(system, guid, requested) != [[4, 7]]:
                await system.auctioneer.wait_for("/v1/lrps", len(system.auctioneer.matching("/v1/lrps")) + 1)
        metrics = await system.metrics()
    finally:
        system.auctioneer.release()
    names = "domains_fresh lrps_unclaimed lrps_claimed lrps_running lrps_crashed desired_lrps_crashing lrps_desired"
    names += " lrps_missing lrps_extra lrps_suspect_running lrps_suspect_claimed cells_present cells_suspect"
    expected = (1, 3, 2, 2, 1, 1, 8, 1, 1, 1, 1, 3, 2)
    assert {name: metrics[f"bbs_{name}"] for name in names.split()} == dict(zip(names.split(), expected, strict=True))


async def test_c2_the_entry_of_an_auction(clean: Any) -> None:
    system, guid = clean, clean.guid("shape")
    volume = models.VolumeMount(
        driver="nfs", container_dir="/data", mode="rw", shared=models.SharedDevice(volume_id="v")
    )
    await system.desire(guid, 2, PlacementTags=["tag"], volume_mounts=[volume])
    requested = len(system.auctioneer.received)
    await system.converged(*replacement(guid, ""))
    [request] = [one for one in system.auctioneer.received[requested:] if guid.encode() in one.body]
    same = {"process_guid": guid, "domain": guid, "PlacementTags": ["tag"], "VolumeDrivers": ["nfs"]}
    same |= {"RootFs": "preloaded:cflinuxfs4", "MemoryMB": 128, "DiskMB": 256, "MaxPids": 5}
    assert sorted(request.json, key=lambda entry: entry["indices"]) == [same | {"indices": [i]} for i in (0, 1)]
    assert (request.method, request.path) == ("POST", "/v1/lrps")


async def test_c2_nothing_to_start_is_no_request(clean: Any) -> None:
    system, guid = clean, clean.guid("quiet")
    await system.desire(guid)
    await system.start(guid, 0, "home")
    await system.converged()
    requested = len(system.auctioneer.received)
    await system.converged(passes=2)
    assert len(system.auctioneer.received) == requested


# -- section 7 ---------------------------------------------------------------------------

BACK_OFF = [
    (count, age, restarted)
    for count, wait in [(3, 30), (4, 60), (5, 120), (6, 240), (7, 480), (8, 960), (9, 960), (150, 960), (199, 960)]
    for age, restarted in ((wait - 15, False), (wait + 1, True))
]
BACK_OFF += [(0, 1, True), (1, 1, True), (2, 1, True), (200, 10**7, False), (201, 10**7, False)]


@pytest.mark.parametrize(
    ("count", "age", "restarted"), [pytest.param(*row, id="7-{}-crashes-after-{}s-{}".format(*row)) for row in BACK_OFF]
)
async def test_restart_back_off(clean: Any, count: int, age: int, restarted: bool) -> None:
    if restarted:
        events, starts = "G changed 0 CRASHED -> 0 UNCLAIMED; I created 0 UNCLAIMED; I removed 0 CRASHED", (0,)
    else:
        events, starts = "", ()
    after = "0 UNCLAIMED" if restarted else "0 CRASHED"
    await check(clean, Row("crashed", f"0 CRASHED x{count} {age}s", after, events, starts))


async def test_back_off_of_an_instance_that_keeps_crashing(clean: Any) -> None:
    """All of it through the API: two crashes restart at once, the third waits, and its time is the crash's."""
    system, guid = clean, clean.guid("crasher")
    await system.desire(guid)
    for crash, state in ((1, "UNCLAIMED"), (2, "UNCLAIMED"), (3, "CRASHED")):
        await system.start(guid, 0, "home")
        await system.client.crash(system.key(guid), system.instance(0, "home"), "over")
        assert await system.instances(guid) == [f"0 {state}"]
        assert (await one(system, guid)).crash_count == crash
    await system.converged(passes=2)
    assert await system.instances(guid) == ["0 CRASHED"]
    older = ("UPDATE actual_lrps SET since = since - $2 WHERE process_guid = $1", guid, 31 * SECOND)
    await system.converged(older)
    assert await system.instances(guid) == ["0 UNCLAIMED"]
    assert (await one(system, guid)).crash_count == 3


# -- section 2 ---------------------------------------------------------------------------


async def test_2_locket_does_not_answer_so_the_run_ends(clean: Any) -> None:
    """Nothing is pruned and nothing created, until Locket answers again."""
    system, guid = clean, clean.guid("blind")
    await system.desire(guid)
    await system.client.upsert_domain(guid, 3600)
    await system.settled()
    system.events.clear()
    async with system.database.transaction():
        # Locket's presences are in the same database; another connection changes the rest.
        await system.database.execute("LOCK TABLE locks IN ACCESS EXCLUSIVE MODE")
        place = await change_elsewhere(
            system,
            ("UPDATE domains SET expire_time = 1 WHERE domain = $1", guid),
            *replacement(guid, ""),
        )
        for what in ("lrps", "tasks"):
            await system.program.logged(f"bbs.converger.converge-{what}.failed-fetching-cells", place)
        assert await system.database.fetchval("SELECT count(*) FROM domains WHERE domain = $1", guid) == 1
        assert await system.instances(guid) == []
    await system.converged()
    assert await system.database.fetchval("SELECT count(*) FROM domains WHERE domain = $1", guid) == 0
    assert await system.instances(guid) == ["0 UNCLAIMED"]


async def change_elsewhere(system: Any, *statements: tuple[Any, ...]) -> int:
    """The place in the log behind which a pass runs that sees the changes."""
    ours = system.database
    system.database = await system.connect()
    try:
        place: int = await system.change(*statements)
    finally:
        await system.database.close()
        system.database = ours
    return place


async def test_2_unreadable_presences_are_skipped_and_ids_come_from_the_value(clean: Any) -> None:
    system, guid = clean, clean.guid("keyed")
    await system.cells.appear("by-id", key="by-key")
    try:
        await system.desire(guid, 3)
        before = "0 RUNNING@by-id; 1 RUNNING@by-key; 2 RUNNING@odd"
        await system.converged(*replacement(guid, before))
        after = ["0 RUNNING@by-id", "1 RUNNING@by-key suspect", "1 UNCLAIMED", "2 RUNNING@odd suspect", "2 UNCLAIMED"]
        assert await system.instances(guid) == after
    finally:
        await system.cells.vanish("by-key")


# -- section 11, through the API and presences -------------------------------------------


async def spread(system: Any, name: str, *cell_ids: str) -> str:
    """An LRP whose instances run on those cells; events so far are forgotten."""
    guid: str = system.guid(name)
    await system.desire(guid, len(cell_ids))
    for index, cell_id in enumerate(cell_ids):
        await system.start(guid, index, cell_id)
    await system.settled()
    system.events.clear()
    return guid


async def test_11_a_cell_vanishes_and_the_replacements_start(clean: Any) -> None:
    system, guid = clean, clean.guid("vanish")
    await system.cells.appear("cell-gone")
    await system.desire(guid, 2)
    await system.start(guid, 0, "cell-gone")
    await system.claim(guid, 1, "cell-gone")
    await system.converged()
    await system.settled()
    system.events.clear()
    requested = len(system.auctioneer.received)
    await system.cells.vanish("cell-gone")
    await system.converged(passes=2)
    await system.settled()
    suspects = ["0 RUNNING@cell-gone suspect", "1 CLAIMED@cell-gone suspect"]
    assert await system.instances(guid) == sorted([*suspects, "0 UNCLAIMED", "1 UNCLAIMED"])
    assert sorted(system.events.shown(guid)) == [
        "I changed 0 RUNNING@cell-gone -> 0 RUNNING@cell-gone suspect",
        "I changed 1 CLAIMED@cell-gone -> 1 CLAIMED@cell-gone suspect",
        "I created 0 UNCLAIMED",
        "I created 1 UNCLAIMED",
    ]
    assert starts_of(system, guid, requested) == [[0, 1]]
    await system.start(guid, 0, "home")
    assert await system.instances(guid) == ["0 RUNNING@home", "1 CLAIMED@cell-gone suspect", "1 UNCLAIMED"]
    await system.converged(passes=2)
    assert await system.instances(guid) == ["0 RUNNING@home", "1 CLAIMED@cell-gone suspect", "1 UNCLAIMED"]


async def test_11_a_presence_that_is_not_renewed_expires(clean: Any) -> None:
    system = clean
    await system.cells.appear("short")
    guid = await spread(system, "expire", "short")
    await system.cells.appear("short", ttl=1)  # only now: what expiry causes must not be forgotten with the rest
    await system.events.wait_for(
        "instances", lambda event: guid in str(event.message) and event.name.endswith("created")
    )
    assert await system.instances(guid) == ["0 RUNNING@short suspect", "0 UNCLAIMED"]


async def test_11_replacements_on_another_vanished_cell(clean: Any) -> None:
    system = clean
    await system.cells.appear("first")
    await system.cells.appear("second")
    guid = await spread(system, "twice", "first")
    await system.cells.vanish("first")
    await system.converged()
    assert await system.instances(guid) == ["0 RUNNING@first suspect", "0 UNCLAIMED"]
    await system.claim(guid, 0, "second")
    requested = len(system.auctioneer.received)
    await system.cells.vanish("second")
    await system.converged(passes=2)
    assert await system.instances(guid) == ["0 RUNNING@first suspect", "0 UNCLAIMED"]
    assert starts_of(system, guid, requested) == [], "requested once stale"
    older = ("UPDATE actual_lrps SET since = since - $2 WHERE process_guid = $1 AND presence = 0", guid, 31 * SECOND)
    await system.converged(older)
    assert starts_of(system, guid, requested)[0] == [0]


@pytest.mark.parametrize(
    "claimed", [pytest.param(False, id="11-unclaimed"), pytest.param(True, id="11-claimed-elsewhere")]
)
async def test_11_the_cell_of_a_suspect_returns(clean: Any, claimed: bool) -> None:
    system = clean
    await system.cells.appear("back")
    guid = await spread(system, "return", "back")
    await system.cells.vanish("back")
    await system.converged()
    if claimed:
        await system.claim(guid, 0, "other")
    await system.settled()
    system.events.clear()
    await system.cells.appear("back")
    try:
        await system.converged(passes=2)
        await system.settled()
        replaced = "0 CLAIMED@other" if claimed else "0 UNCLAIMED"
        assert await system.instances(guid) == ["0 RUNNING@back"]
        assert sorted(system.events.shown(guid)) == [
            f"G removed {replaced}",
            "I changed 0 RUNNING@back suspect -> 0 RUNNING@back",
            f"I removed {replaced}",
        ]
    finally:
        await system.cells.vanish("back")


async def test_11_no_cells_at_all(clean: Any) -> None:
    system = clean
    guid = await spread(system, "alone", "home", "other")
    evacuation = models.EvacuateRunningActualLRPRequest(
        actual_lrp_key=system.key(guid, 1),
        actual_lrp_instance_key=system.instance(1, "other"),
        actual_lrp_net_info=models.ActualLRPNetInfo(address="10.0.0.1"),
    )
    assert await system.client.evacuate_running(evacuation)
    assert await system.instances(guid) == ["0 RUNNING@home", "1 RUNNING@other evacuating", "1 UNCLAIMED"]
    await system.claim(guid, 1, "home")
    await system.settled()
    system.events.clear()
    requested = len(system.auctioneer.received)
    async with system.cells.none((*CELLS, "plain")):
        await system.converged(passes=2)
        await system.settled()
        suspects = ["0 RUNNING@home suspect", "1 CLAIMED@home suspect"]
        assert await system.instances(guid) == sorted([*suspects, "0 UNCLAIMED", "1 UNCLAIMED"])
        removed = [event for event in system.events.shown(guid) if "removed" in event]
        assert removed == ["G removed 1 RUNNING@other evacuating", "I removed 1 RUNNING@other evacuating"]
        assert [index for starts in starts_of(system, guid, requested) for index in starts] == [0, 1]


@pytest.mark.parametrize(
    "fresh", [pytest.param(True, id="11-extra-fresh"), pytest.param(False, id="11-extra-not-fresh")]
)
async def test_11_extra_instances(clean: Any, fresh: bool) -> None:
    system = clean
    guid = await prepare(system, Row("extra", "", "", fresh=fresh))
    before = "0 RUNNING@home; 1 UNCLAIMED; 2 RUNNING@home; 3 CRASHED x5"
    await system.converged(*replacement(guid, before), passes=2)
    await system.settled()
    events, stops = system.events.shown(guid), stops_of(system, guid)
    if not fresh:
        assert (events, stops, len(await system.instances(guid))) == ([], [], 4)
        return
    assert await system.instances(guid) == ["0 RUNNING@home", "2 RUNNING@home"]
    assert set(stops) == {2}
    assert len(stops) >= 2
    once = ["G removed 1 UNCLAIMED", "G removed 3 CRASHED", "I removed 1 UNCLAIMED", "I removed 3 CRASHED"]
    assert sorted(event for event in events if "RUNNING" not in event) == once
    assert min(events.count(f"{hub} removed 2 RUNNING@home") for hub in "GI") >= 2
    await system.client.remove(guid, 2, models.ActualLRPInstanceKey(instance_guid="ig-2", cell_id="home"))
    await system.converged()
    stopped = len(stops_of(system, guid))
    await system.converged(passes=2)
    assert len(stops_of(system, guid)) == stopped


async def test_11_orphan_on_a_vanished_cell(clean: Any) -> None:
    """The LRP was never desired; its domain becomes fresh after its cell has gone."""
    system, guid = clean, clean.guid("orphan")
    await system.start(guid, 0, "gone-already")
    await system.converged()
    assert await system.instances(guid) == ["0 RUNNING@gone-already"]
    await system.settled()
    system.events.clear()
    await system.client.upsert_domain(guid, 60)
    await system.converged(passes=2)
    await system.settled()
    assert await system.instances(guid) == []
    removed = ["G removed 0 RUNNING@gone-already", "I removed 0 RUNNING@gone-already"]
    assert sorted(system.events.shown(guid)) == removed


async def test_11_the_auctioneer_refuses(clean: Any) -> None:
    system = clean
    guid = await prepare(system, Row("refused", "", ""))
    requested = len(system.auctioneer.received)
    system.auctioneer.status = 500
    try:
        place = len(system.program.lines)
        await system.converged(*replacement(guid, ""), passes=2)
        await system.program.logged("bbs.auctioneer-client.failed-to-request-auctions", place)
    finally:
        system.auctioneer.status = 202
    await system.settled()
    assert await system.instances(guid) == ["0 UNCLAIMED"]
    assert sorted(system.events.shown(guid)) == ["G created 0 UNCLAIMED", "I created 0 UNCLAIMED"]
    assert starts_of(system, guid, requested) == [[0]], "not repeated while young"
    older = ("UPDATE actual_lrps SET since = since - $2 WHERE process_guid = $1", guid, 31 * SECOND)
    await system.converged(older)
    assert len(starts_of(system, guid, requested)) >= 2


async def test_11_a_placement_failure_makes_an_instance_young_again(clean: Any) -> None:
    """Section 6: an instance that the auctioneer could not place is tried again about every 30 s."""
    system = clean
    guid = await prepare(system, Row("unplaced", "", ""))
    await system.converged(*replacement(guid, "0 UNCLAIMED 31s"))
    await system.client.fail(system.key(guid), "no room")
    await system.converged()
    requested = len(system.auctioneer.received)
    await system.converged(passes=2)
    assert starts_of(system, guid, requested) == []
    assert (await one(system, guid)).placement_error == "no room"
