"""LRP convergence at the level of its commands, every row of the decision tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from records import desired_lrp

from bbs_server.core import desired_lrps
from bbs_server.core.context import Context, Settings
from bbs_server.core.lrp_convergence import LRPConvergence, LRPCounts
from bbs_server.core.outcome import AuctionLRPs, Call, Event, Group, Hub, Retire, UpdateInstance
from bbs_server.core.records import (
    CLAIMED,
    CRASHED,
    NEVER,
    RUNNING,
    UNCLAIMED,
    ActualLRP,
    DesiredLRP,
    Domain,
    MetricTag,
    Presence,
    replace,
)
from bbs_server.core.state import State

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
ORDINARY, EVACUATING, SUSPECT = Presence.ORDINARY, Presence.EVACUATING, Presence.SUSPECT
HERE = ("here",)
"""Ids of the present cells in most tests; `gone` is a cell that is not present."""


def context(now: int = NOW) -> Context:
    numbers = count()
    return Context(now=now, new_guid=lambda: f"epoch-{next(numbers)}", request_id="", settings=Settings())


def desired(process_guid: str = "p", instances: int = 1, **fields: Any) -> DesiredLRP:
    usual = {
        "log_guid": "log",
        "memory_mb": 128,
        "disk_mb": 256,
        "max_pids": 5,
        "rootfs": "preloaded:fs",
        "metric_tags": (("source_id", MetricTag("src")),),
    }
    return desired_lrp(process_guid=process_guid, instances=instances, **usual | fields)


def instance(state: str, cell: str = "", presence: int = ORDINARY, **fields: Any) -> ActualLRP:
    row = ActualLRP(
        process_guid="p",
        index=0,
        domain="dom",
        presence=presence,
        state=state,
        since=NOW,
        tag_epoch="old",
        tag_index=4,
        cell_id=cell,
        instance_guid=f"ig-{cell}" if cell else "",
        metric_tags=(("source_id", "src"),) if state == RUNNING else (),
        net_info=b"\x0a\x01a" if cell else b"",
    )
    return replace(row, **fields)


@dataclass
class Pass:
    """What one pass did."""

    convergence: LRPConvergence
    events: list[Event] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    commands: int = 0

    @property
    def counts(self) -> LRPCounts:
        assert self.convergence.counts is not None
        return self.convergence.counts

    @property
    def starts(self) -> list[tuple[str, int]]:
        return [
            (start.process_guid, start.indices[0])
            for call in self.calls
            if isinstance(call, AuctionLRPs)
            for start in call.starts
        ]

    def seen(self, hub: Hub) -> list[str]:
        """Events of a hub as short texts, such as `removed suspect RUNNING`."""
        return [text(event) for event in self.events if event.hub is hub]


def text(event: Event) -> str:
    rows = [shown(record) for record in (event.before, event.after) if record is not None]
    return " ".join([event.name.rsplit("_", 1)[1], " -> ".join(rows)])


def shown(record: Any) -> str:
    if isinstance(record, Group):
        row = record.evacuating or record.instance
        assert row is not None
        assert (record.evacuating is not None) == (row.presence == EVACUATING)
        record = row
    return f"{Presence(record.presence).name.lower()} {record.state}"


def converge(
    state: State,
    cells: tuple[str, ...] = HERE,
    now: int = NOW,
    between: Callable[[str], None] = lambda name: None,
) -> Pass:
    """Run a pass; `between` is called with the name of each step before it runs."""
    done = Pass(LRPConvergence([models.CellPresence(cell_id=cell) for cell in cells]))
    at = context(now)
    for step in done.convergence.steps():
        between(step.name)
        outcome = step.command(state, None, at)
        done.events += outcome.events
        done.calls += outcome.calls
        done.names.append(step.name)
    return done


def having(*records: Any, fresh: bool = True) -> State:
    state = State()
    if fresh:
        state.domains.put(Domain("dom", NEVER))
    for record in records:
        (state.desired_lrps if isinstance(record, DesiredLRP) else state.actual_lrps).put(record)
    state.take()
    return state


def rows(state: State) -> dict[tuple[int, int], str]:
    """State by index and presence."""
    return {(row.index, row.presence): row.state for row in state.actual_lrps}


def test_a_healthy_state_is_left_alone() -> None:
    state = having(desired(), instance(RUNNING, "here"))
    done = converge(state)
    assert (done.events, done.calls, state.take()) == ([], [], ())
    assert done.names == ["prune-domains", "gather", "count", "count", "count"]


def test_an_empty_state() -> None:
    done = converge(State(), ())
    assert (done.events, done.calls) == ([], [])
    assert done.counts == LRPCounts((), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


# -- what is looked at ---------------------------------------------------------------------


def settled() -> State:
    state = having(desired(), instance(RUNNING, "here"))
    converge(state)
    assert not state.unsettled
    return state


def test_a_settled_lrp_is_not_looked_at_again() -> None:
    done = converge(settled())
    assert done.names == ["prune-domains", "count", "count", "count"]
    assert (done.counts.running, done.counts.desired) == (1, 1)


CHANGES: dict[str, Callable[[State], object]] = {
    "scaled": lambda state: state.desired_lrps.put(desired(instances=2)),
    "scaled by somebody else": lambda state: state.desired_lrps.adopt("p", desired(instances=2)),
    "tags": lambda state: state.desired_lrps.put(desired(metric_tags=())),
    "lrp gone": lambda state: state.desired_lrps.remove("p"),
    "instance gone": lambda state: state.actual_lrps.remove(("p", 0, ORDINARY)),
    "instance gone by somebody else": lambda state: state.actual_lrps.adopt(("p", 0, ORDINARY), None),
    "claimed elsewhere": lambda state: state.actual_lrps.put(instance(RUNNING, "gone")),
    "crashed": lambda state: state.actual_lrps.put(instance(CRASHED, since=NOW - 10**15)),
    "surplus": lambda state: state.actual_lrps.put(instance(RUNNING, "here", index=1)),
    "suspect": lambda state: state.actual_lrps.put(instance(RUNNING, "here", SUSPECT)),
    "evacuating": lambda state: state.actual_lrps.put(instance(RUNNING, "gone", EVACUATING)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_is_looked_at(change: Callable[[State], object]) -> None:
    state = settled()
    change(state)
    done = converge(state)
    assert done.events or done.calls


@pytest.mark.parametrize("taken_back", ["removed", "scaled"])
def test_what_is_taken_back_is_looked_at(taken_back: str) -> None:
    state = having(desired(instances=2), instance(RUNNING, "here"), instance(RUNNING, "here", index=1))
    if taken_back == "removed":
        state.desired_lrps.remove("p")
    else:
        state.desired_lrps.put(desired(instances=1))
    changes = state.take()
    converge(state, between=lambda name: state.undo(changes) if name == "count" else None)
    assert "p" in state.unsettled


@pytest.mark.parametrize("cells", [(), ("other",)])
def test_a_settled_instance_whose_cell_goes_is_looked_at(cells: tuple[str, ...]) -> None:
    state = settled()
    assert converge(state, cells).seen(Hub.INSTANCE) == [
        "changed ordinary RUNNING -> suspect RUNNING",
        "created ordinary UNCLAIMED",
    ]
    assert list(state.unsettled) == ["p"]


def test_nothing_is_kept_of_what_is_gone() -> None:
    state = having(desired(), instance(RUNNING, "here"))
    state.desired_lrps.remove("p")
    state.actual_lrps.remove(("p", 0, ORDINARY))
    assert list(state.unsettled) == ["p"]
    converge(state)
    assert not state.unsettled


# -- A1, A2, A3 --------------------------------------------------------------------------


@pytest.mark.parametrize(("expire_time", "kept"), [(NOW - 1, False), (NOW, False), (NOW + 1, True), (NEVER, True)])
def test_expired_domains_are_pruned(expire_time: int, kept: bool) -> None:
    state = State()
    state.domains.put(Domain("dom", expire_time))
    converge(state)
    assert (state.domains.get("dom") is not None) == kept


@pytest.mark.parametrize(
    ("cell", "cells", "pruned"),
    [("gone", HERE, True), ("here", HERE, False), ("here", (), True), ("", HERE, True), ("", (), True)],
)
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_evacuating_instances_on_missing_cells_are_pruned(
    cell: str, cells: tuple[str, ...], pruned: bool, fresh: bool, wanted: bool
) -> None:
    row = instance(RUNNING, cell, EVACUATING)
    state = having(*([desired(instances=0)] if wanted else []), row, fresh=fresh)
    done = converge(state, cells)
    assert rows(state) == ({} if pruned else {(0, EVACUATING): RUNNING})
    assert done.seen(Hub.GROUP) == (["removed evacuating RUNNING"] if pruned else [])
    assert done.seen(Hub.INSTANCE) == (["removed evacuating RUNNING"] if pruned else [])
    assert done.counts.suspect_cells == 0


# -- B2, B1: numbers of instances ----------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
def test_missing_instances_are_created_and_auctioned_one_by_one(fresh: bool) -> None:
    state = having(desired(instances=3), instance(RUNNING, "here", index=1), fresh=fresh)
    done = converge(state)
    assert rows(state) == {(0, ORDINARY): UNCLAIMED, (1, ORDINARY): RUNNING, (2, ORDINARY): UNCLAIMED}
    assert done.seen(Hub.GROUP) == ["created ordinary UNCLAIMED"] * 2
    assert done.seen(Hub.INSTANCE) == ["created ordinary UNCLAIMED"] * 2
    assert sorted(done.starts) == [("p", 0), ("p", 2)]
    (call,) = done.calls
    assert isinstance(call, AuctionLRPs)
    start = call.starts[0]
    assert (start.domain, start.placement_tags, start.volume_drivers, start.rootfs) == (
        "dom",
        None,
        None,
        "preloaded:fs",
    )
    assert (start.memory_mb, start.disk_mb, start.max_pids, call.request_id) == (128, 256, 5, "")
    created = state.actual_lrps.get(("p", 0, ORDINARY))
    assert created is not None
    assert (created.tag_index, created.since, created.routable, created.domain) == (0, NOW, False, "dom")
    assert (created.internal_routes, created.metric_tags, created.net_info) == ((), (), b"")
    assert done.counts.missing == 2
    assert done.counts.unclaimed == 2


def test_numbers_are_compared_not_indices() -> None:
    state = having(desired(instances=2), instance(RUNNING, "here"), instance(RUNNING, "here", index=5))
    done = converge(state)
    assert (done.events, done.calls) == ([], [])


def test_suspect_and_evacuating_rows_do_not_count_as_instances() -> None:
    state = having(desired(), instance(RUNNING, "gone", SUSPECT), instance(RUNNING, "here", EVACUATING))
    done = converge(state)
    assert done.starts == [("p", 0)]
    assert done.counts.missing == 1


@pytest.mark.parametrize("fresh", [True, False])
def test_extra_instances_are_retired_only_in_fresh_domains(fresh: bool) -> None:
    state = having(
        desired(),
        instance(RUNNING, "here"),
        instance(UNCLAIMED, index=1),
        instance(RUNNING, "here", index=2),
        instance(CRASHED, index=3, crash_count=200),
        instance(CLAIMED, "gone", index=4),
        fresh=fresh,
    )
    done = converge(state, ("here", "gone"))
    if not fresh:
        assert (done.events, done.calls, done.counts.extra) == ([], [], 0)
        return
    assert rows(state) == {(0, ORDINARY): RUNNING, (2, ORDINARY): RUNNING, (4, ORDINARY): CLAIMED}
    assert sorted(done.seen(Hub.INSTANCE)) == ["removed ordinary CRASHED", "removed ordinary UNCLAIMED"]
    assert sorted(done.seen(Hub.GROUP)) == ["removed ordinary CRASHED", "removed ordinary UNCLAIMED"]
    assert {(call.lrp.index, call.request_id) for call in done.calls if isinstance(call, Retire)} == {(2, ""), (4, "")}
    assert len(done.calls) == 2
    assert done.counts.extra == 4


def test_freshness_of_extra_instances_uses_a_rounded_clock() -> None:
    state = having(desired(instances=0), instance(UNCLAIMED), fresh=False)
    state.domains.put(Domain("dom", NOW + SECOND))
    assert converge(state, now=NOW + SECOND // 2).counts.extra == 0
    assert converge(state, now=NOW + SECOND // 2 - 1).counts.extra == 1


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "row", [instance(UNCLAIMED), instance(CRASHED), instance(RUNNING, "here"), instance(CLAIMED, "gone")]
)
def test_orphaned_instances_are_retired_if_their_domain_is_known(known: bool, row: ActualLRP) -> None:
    state = having(row, fresh=known)
    done = converge(state)
    has_cell = row.state in (RUNNING, CLAIMED)
    assert [call.lrp for call in done.calls if isinstance(call, Retire)] == ([row] if known and has_cell else [])
    assert rows(state) == ({} if known and not has_cell else {(0, ORDINARY): row.state})
    assert done.counts.extra == int(known)
    assert done.counts.suspect_cells == 0


def test_a_removed_row_that_a_suspect_hides_gives_no_group_event() -> None:
    state = having(instance(UNCLAIMED), instance(RUNNING, "gone", SUSPECT), fresh=True)
    done = converge(state)
    assert rows(state) == {}
    assert done.seen(Hub.INSTANCE) == ["removed ordinary UNCLAIMED", "removed suspect RUNNING"]
    assert done.seen(Hub.GROUP) == ["removed suspect RUNNING"]


def test_instances_that_cells_have_to_stop_come_one_by_one_after_all_other_work() -> None:
    extra = [instance(RUNNING, "here", index=index) for index in range(3)]
    more = (instance(CRASHED), instance(UNCLAIMED, index=7), instance(RUNNING, "gone", index=1))
    state = having(*extra, desired("q", instances=3), *[replace(row, process_guid="q") for row in more])
    convergence = LRPConvergence([models.CellPresence(cell_id="here")])
    steps = [(step, step.command(state, None, context())) for step in convergence.steps()]
    retiring = [len(outcome.calls) for step, outcome in steps if step.parallel]
    assert retiring == [1, 1, 1]
    names = [f"{step.name} {step.parallel}" for step, _ in steps if step.name in ("converge", "count")]
    assert names == sorted(names, key=["converge False", "converge True", "count False"].index)
    assert not any(outcome.events for step, outcome in steps if step.parallel)


# -- B3: stale and crashed -----------------------------------------------------------------


@pytest.mark.parametrize(("age", "requested"), [(0, False), (30 * SECOND, False), (30 * SECOND + 1, True)])
def test_unclaimed_instances_are_auctioned_again_when_stale(age: int, requested: bool) -> None:
    row = instance(UNCLAIMED, since=NOW - age)
    state = having(desired(), row)
    done = converge(state)
    assert done.starts == ([("p", 0)] if requested else [])
    assert (done.events, list(state.actual_lrps)) == ([], [row])


@pytest.mark.parametrize(
    ("crash_count", "age", "restarted"),
    [
        (2, 0, True), (3, 29, False), (3, 30, True), (4, 59, False), (4, 60, True), (7, 479, False), (7, 480, True),
        (8, 959, False), (8, 960, True), (150, 960, True), (199, 960, True), (200, 10**6, False),
    ],
)  # fmt: skip
def test_crashed_instances_restart_after_their_back_off(crash_count: int, age: int, restarted: bool) -> None:
    row = instance(CRASHED, crash_count=crash_count, crash_reason="boom", since=NOW - age * SECOND, routable=True)
    state = having(desired(), row)
    done = converge(state)
    if not restarted:
        assert (done.events, done.calls, done.counts.crashing_desired) == ([], [], 1)
        return
    assert list(state.actual_lrps) == [replace(row, state=UNCLAIMED, since=NOW, tag_index=5)]
    assert done.seen(Hub.GROUP) == ["changed ordinary CRASHED -> ordinary UNCLAIMED"]
    assert done.seen(Hub.INSTANCE) == ["created ordinary UNCLAIMED", "removed ordinary CRASHED"]
    assert done.starts == [("p", 0)]


@pytest.mark.parametrize("presence", [SUSPECT, EVACUATING])
@pytest.mark.parametrize("at", [UNCLAIMED, CRASHED])
def test_other_presences_are_never_restarted(presence: int, at: str) -> None:
    row = instance(at, "elsewhere", presence, since=0)
    state = having(desired(instances=0), row)
    done = converge(state, ("elsewhere",) if presence == EVACUATING else HERE)
    assert (done.events, done.calls, list(state.actual_lrps)) == ([], [], [row])


# -- B4: missing cells ---------------------------------------------------------------------


@pytest.mark.parametrize("at", [RUNNING, CLAIMED])
@pytest.mark.parametrize(
    ("cell", "cells", "lost"),
    [("gone", HERE, True), ("here", HERE, False), ("", HERE, False), ("here", (), True), ("", (), True)],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_instances_on_missing_cells_become_suspect(
    at: str, cell: str, cells: tuple[str, ...], lost: bool, fresh: bool
) -> None:
    row = instance(at, cell)
    state = having(desired(), row, fresh=fresh)
    done = converge(state, cells)
    assert done.counts.suspect_cells == len(done.convergence.missing_cells) == int(lost)
    if not lost:
        assert (done.events, done.calls, list(state.actual_lrps)) == ([], [], [row])
        return
    assert done.convergence.missing_cells == {cell}
    assert rows(state) == {(0, ORDINARY): UNCLAIMED, (0, SUSPECT): at}
    assert state.actual_lrps.get(("p", 0, SUSPECT)) == replace(row, presence=SUSPECT)
    assert done.seen(Hub.GROUP) == []
    assert done.seen(Hub.INSTANCE) == [f"changed ordinary {at} -> suspect {at}", "created ordinary UNCLAIMED"]
    assert done.starts == [("p", 0)]
    again = converge(state, cells)
    assert (again.events, again.calls) == ([], [])


@pytest.mark.parametrize(("at", "suspect"), [(CLAIMED, RUNNING), (CLAIMED, CLAIMED), (RUNNING, CLAIMED)])
def test_a_replacement_that_is_lost_too_waits_until_it_is_stale(at: str, suspect: str) -> None:
    lost = instance(at, "gone-too")
    state = having(desired(), lost, instance(suspect, "gone", SUSPECT))
    done = converge(state)
    assert rows(state) == {(0, ORDINARY): UNCLAIMED, (0, SUSPECT): suspect}
    row = state.actual_lrps.get(("p", 0, ORDINARY))
    assert row is not None
    assert (row.instance_guid, row.cell_id, row.net_info, row.since, row.tag_epoch, row.tag_index) == (
        "", "", b"", NOW, "old", 5,
    )  # fmt: skip
    assert done.seen(Hub.GROUP) == []
    assert done.seen(Hub.INSTANCE) == ["created ordinary UNCLAIMED", f"removed ordinary {at}"]
    assert done.starts == []
    assert done.counts.suspect_cells == 2
    assert converge(state, now=NOW + 31 * SECOND).starts == [("p", 0)]


def test_an_instance_beside_a_dead_suspect_is_left_to_others() -> None:
    state = having(desired(), instance(RUNNING, "gone"), instance(CRASHED, "", SUSPECT))
    done = converge(state)
    assert (done.events, done.calls) == ([], [])


def test_a_lost_instance_of_no_lrp_is_not_replaced() -> None:
    state = having(instance(RUNNING, "gone"), fresh=False)
    done = converge(state)
    assert (done.events, done.calls, done.counts.suspect_cells) == ([], [], 0)


# -- B5, B6: suspects ------------------------------------------------------------------------


@pytest.mark.parametrize("suspect", [RUNNING, CLAIMED])
@pytest.mark.parametrize("ordinary", [None, UNCLAIMED, CLAIMED, RUNNING, CRASHED])
def test_a_suspect_whose_cell_is_back_becomes_ordinary(suspect: str, ordinary: str | None) -> None:
    back = instance(suspect, "here", SUSPECT)
    other = [] if ordinary is None else [instance(ordinary, "other" if ordinary in (CLAIMED, RUNNING) else "")]
    state = having(desired(), back, *other)
    done = converge(state, ("here", "other"))
    assert list(state.actual_lrps) == [replace(back, presence=ORDINARY)]
    removed = [] if ordinary is None else [f"removed ordinary {ordinary}"]
    assert done.seen(Hub.GROUP) == removed
    assert done.seen(Hub.INSTANCE) == [*removed, f"changed suspect {suspect} -> ordinary {suspect}"]
    assert done.calls == []
    assert done.counts.running + done.counts.claimed == 1


def test_no_suspect_is_back_without_cells() -> None:
    state = having(desired(), instance(UNCLAIMED), instance(RUNNING, "here", SUSPECT))
    done = converge(state, ())
    assert (done.events, done.calls) == ([], [])
    assert (done.counts.suspect_running, done.counts.suspect_cells, done.counts.present_cells) == (1, 1, 0)


@pytest.mark.parametrize(
    ("ordinary", "suspect", "removed"),
    [(RUNNING, RUNNING, True), (CLAIMED, RUNNING, False), (RUNNING, CLAIMED, False), (UNCLAIMED, RUNNING, False)],
)
def test_a_suspect_is_extra_only_if_both_run(ordinary: str, suspect: str, removed: bool) -> None:
    other = instance(ordinary, "" if ordinary == UNCLAIMED else "here")
    state = having(desired(), other, instance(suspect, "gone", SUSPECT))
    done = converge(state)
    assert ((0, SUSPECT) in rows(state)) != removed
    expected = ["removed suspect RUNNING"] if removed else []
    assert (done.seen(Hub.GROUP), done.seen(Hub.INSTANCE), done.calls) == (expected, expected, [])
    assert (done.counts.suspect_running, done.counts.suspect_claimed) == (
        int(suspect == RUNNING),
        int(suspect == CLAIMED),
    )


@pytest.mark.parametrize("known", [True, False])
def test_orphaned_suspects_are_removed_if_their_domain_is_known(known: bool) -> None:
    state = having(instance(CLAIMED, "gone", SUSPECT), fresh=known)
    done = converge(state)
    assert rows(state) == ({} if known else {(0, SUSPECT): CLAIMED})
    assert done.seen(Hub.INSTANCE) == (["removed suspect CLAIMED"] if known else [])
    assert done.counts.extra == 0


# -- B7, B8: routes and tags -----------------------------------------------------------------


def internal(*hostnames: str) -> tuple[tuple[str, bytes], ...]:
    value = ",".join(f'{{"hostname":"{name}"}}' for name in hostnames)
    return (("internal-router", f"[{value}]".encode()),)


@pytest.mark.parametrize(
    ("wanted", "actual", "sent"),
    [
        (internal("a"), ("a",), "same"),
        (internal("a", "b"), ("b", "a"), "same"),
        (internal("a", "a"), ("a", "b"), "same"),
        (internal("a"), ("b",), ("a",)),
        (internal("a", "b"), ("a",), ("a", "b")),
        (internal("a"), None, ("a",)),
        (internal(), ("a",), None),
        ((), ("a",), None),
        (None, ("a",), None),
        ((), None, "same"),
        ((("internal-router", b"null"),), (), "same"),
        ((("internal-router", b'{"a":1}'),), ("a",), "same"),
    ],
)
def test_internal_routes_that_differ_are_sent(wanted: Any, actual: Any, sent: Any) -> None:
    row = instance(RUNNING, "here", internal_routes=actual)
    state = having(desired(routes=wanted), row)
    done = converge(state)
    calls = [call for call in done.calls if isinstance(call, UpdateInstance)]
    assert [(call.internal_routes, call.metric_tags) for call in calls] == ([] if sent == "same" else [(sent, None)])
    assert (done.events, state.take()) == ([], ())
    for call in calls:
        assert (call.process_guid, call.instance_guid, call.cell_id) == ("p", "ig-here", "here")
        assert (call.index, call.domain, call.request_id) == (0, "dom", "")


@pytest.mark.parametrize(
    ("wanted", "actual", "sent"),
    [
        ((("a", MetricTag("x")),), (("a", "x"),), None),
        ((("a", MetricTag("x")),), (("a", "y"),), (("a", "x"),)),
        ((("a", MetricTag("x")),), (), (("a", "x"),)),
        ((("a", MetricTag("x")),), None, None),
        ((("g", MetricTag("", 2)), ("i", MetricTag("", 1))), (("g", "ig-here"), ("i", "0")), None),
        (
            (("g", MetricTag("", 2)), ("i", MetricTag("", 1))),
            (("g", "old"), ("i", "0")),
            (("g", "ig-here"), ("i", "0")),
        ),
        (None, (("a", "x"),), ()),
    ],
)
def test_metric_tags_that_differ_are_sent(wanted: Any, actual: Any, sent: Any) -> None:
    state = having(desired(metric_tags=wanted), instance(RUNNING, "here", metric_tags=actual))
    calls = [call for call in converge(state).calls if isinstance(call, UpdateInstance)]
    assert [(call.internal_routes, call.metric_tags) for call in calls] == ([] if sent is None else [(None, sent)])


def test_routes_and_tags_of_one_instance_are_two_requests() -> None:
    state = having(desired(routes=internal("a"), metric_tags=(("a", MetricTag("x")),)), instance(RUNNING, "here"))
    assert [type(call) for call in converge(state).calls] == [UpdateInstance, UpdateInstance]


@pytest.mark.parametrize("row", [instance(CLAIMED, "here"), instance(UNCLAIMED), instance(RUNNING, "here", EVACUATING)])
def test_only_running_ordinary_instances_are_updated(row: ActualLRP) -> None:
    wanted = desired(
        instances=int(row.presence == ORDINARY), routes=internal("a"), metric_tags=(("a", MetricTag("x")),)
    )
    assert converge(having(wanted, row)).calls == []


# -- conflicts, section 9 --------------------------------------------------------------------


def test_a_suspect_that_is_back_while_both_run() -> None:
    back = instance(RUNNING, "here", SUSPECT)
    state = having(desired(), back, instance(RUNNING, "other"))
    done = converge(state, ("here", "other"))
    assert list(state.actual_lrps) == [replace(back, presence=ORDINARY)]
    assert done.seen(Hub.GROUP) == ["removed ordinary RUNNING"]


def test_an_orphaned_suspect_while_both_run_is_removed_once() -> None:
    state = having(instance(RUNNING, "here"), instance(RUNNING, "gone", SUSPECT))
    done = converge(state)
    assert rows(state) == {(0, ORDINARY): RUNNING}
    assert done.seen(Hub.INSTANCE) == ["removed suspect RUNNING"]
    assert [type(call) for call in done.calls] == [Retire]


def test_a_suspect_that_is_back_without_an_ordinary_row_needs_no_new_instance() -> None:
    state = having(desired(), instance(RUNNING, "here", SUSPECT))
    done = converge(state)
    assert rows(state) == {(0, ORDINARY): RUNNING}
    assert done.seen(Hub.INSTANCE) == ["changed suspect RUNNING -> ordinary RUNNING"]
    assert done.starts == []


def test_both_run_on_vanished_cells() -> None:
    state = having(desired(), instance(RUNNING, "gone"), instance(RUNNING, "gone-too", SUSPECT))
    done = converge(state)
    assert rows(state) == {(0, ORDINARY): UNCLAIMED}
    assert done.starts == []


# -- rows that change during a pass, and steps that fail --------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        instance(UNCLAIMED, since=0),
        instance(CRASHED, crash_count=1),
        instance(RUNNING, "gone"),
        instance(RUNNING, "here", index=7),
        instance(RUNNING, "here", metric_tags=()),
        instance(RUNNING, "here", internal_routes=("x",)),
        instance(RUNNING, "gone", EVACUATING),
        instance(RUNNING, "here", SUSPECT),
    ],
)
def test_a_row_that_changed_since_it_was_found_is_left_to_the_next_pass(row: ActualLRP) -> None:
    changed = replace(row, tag_index=99)
    state = having(desired(instances=int(row.index == 0)), row)

    def change(step: str) -> None:
        if step == "converge":
            state.actual_lrps.adopt((row.process_guid, row.index, row.presence), changed)

    done = converge(state, between=change)
    assert "converge" in done.names
    assert changed in state.actual_lrps.all()
    # Only beside other presences an instance is missing, and created.
    created = row.presence != ORDINARY
    assert done.starts == ([("p", 0)] if created else [])
    assert len(done.calls) == int(created)
    assert len(state.actual_lrps) == 1 + int(created)


def test_an_lrp_that_is_removed_or_scaled_during_a_pass() -> None:
    for scaled in (None, desired(instances=0)):
        state = having(desired(instances=2), instance(CRASHED))

        def change(step: str, state: State = state, scaled: DesiredLRP | None = scaled) -> None:
            if step == "converge":
                state.desired_lrps.adopt("p", scaled)

        done = converge(state, between=change)
        assert (1, ORDINARY) not in rows(state)
        assert ("p", 1) not in done.starts


def test_an_lrp_scaled_up_during_a_pass_keeps_its_instances() -> None:
    state = having(desired(instances=0), instance(UNCLAIMED))

    def change(step: str) -> None:
        if step == "converge":
            state.desired_lrps.adopt("p", desired())

    assert converge(state, between=change).events == []
    assert rows(state) == {(0, ORDINARY): UNCLAIMED}


def test_steps_that_run_again_after_they_were_undone_count_once() -> None:
    found = (
        desired("p", instances=4),
        desired("lost", instances=1, broken={"run_info": "garbage"}),
        instance(CRASHED),
        instance(RUNNING, "gone", index=1),
        instance(RUNNING, "here", index=4),
        instance(CLAIMED, "gone", SUSPECT, index=5),
    )
    states = having(*found), having(*found)
    for state in states:
        assert len(desired_lrps.list_r3(state, models.DesiredLRPsRequest(), context()).pieces) == 2
    once = converge(states[0])
    repeated = Pass(LRPConvergence([models.CellPresence(cell_id="here")]))
    at = context()
    for step in repeated.convergence.steps():
        step.command(states[1], None, context())
        states[1].undo(states[1].take())
        outcome = step.command(states[1], None, at)
        states[1].take()
        repeated.events += outcome.events
        repeated.calls += outcome.calls
    assert (repeated.counts, repeated.events, repeated.calls) == (once.counts, once.events, once.calls)
    assert sorted(repeated.starts) == [("p", 0), ("p", 1), ("p", 2), ("p", 3)]
    assert rows(states[1]) == rows(states[0])
    assert list(states[1].desired_lrps.keys()) == ["p"]


def test_starts_of_a_failed_step_are_not_requested() -> None:
    state = having(desired("p"), desired("q", instances=1))
    convergence = LRPConvergence([models.CellPresence(cell_id="here")])
    starts: list[Any] = []
    for step in convergence.steps():
        outcome = step.command(state, None, context())
        starts += [call for call in outcome.calls if isinstance(call, AuctionLRPs)]
        if step.name == "converge":
            state.undo([change for change in state.take() if change.key[0] == "q"])
    assert [start.process_guid for start in starts[0].starts] == ["p"]


# -- columns that cannot be decoded -------------------------------------------------------------


@pytest.mark.parametrize("column", ["routes", "volume_placement", "placement_tags"])
@pytest.mark.parametrize(
    "row", [instance(CRASHED), instance(UNCLAIMED, since=0), instance(RUNNING, "gone"), instance(UNCLAIMED, index=4)]
)
def test_an_lrp_whose_scheduling_info_is_unreadable_is_left_out(column: str, row: ActualLRP) -> None:
    state = having(desired(broken={column: "garbage"}), row)
    done = converge(state)
    assert (done.events, done.calls, list(state.actual_lrps)) == ([], [], [row])


def test_an_lrp_whose_run_info_is_unreadable_takes_part() -> None:
    assert converge(having(desired(broken={"run_info": "garbage"}))).starts == [("p", 0)]


@pytest.mark.parametrize(
    ("query", "broken", "deleted"),
    [
        (desired_lrps.list_r3, {"run_info": "garbage"}, True),
        (desired_lrps.list_r2, {"run_info": "garbage"}, True),
        (desired_lrps.list_r3, {"run_info": "garbage", "metric_tags": "garbage"}, True),
        (desired_lrps.list_r3, {"run_info": "garbage", "routes": "garbage"}, False),
        (desired_lrps.list_r3, {"metric_tags": "garbage"}, False),
        (desired_lrps.list_scheduling_infos, {"run_info": "garbage"}, False),
        (desired_lrps.list_routing_infos, {"run_info": "garbage"}, False),
    ],
)
def test_an_lrp_that_a_list_could_not_show_is_deleted(query: Any, broken: dict[str, str], deleted: bool) -> None:
    state = having(desired(broken=broken), instance(RUNNING, "here"))
    assert len(query(state, models.DesiredLRPsRequest(), context()).pieces) == 1
    first = converge(state)
    assert (state.desired_lrps.get("p") is None) == deleted
    assert (first.events, first.calls) == ([], [])
    assert any(isinstance(call, Retire) for call in converge(state).calls) == deleted


def test_an_lrp_that_a_list_could_not_show_after_it_came_to_rest_is_deleted() -> None:
    state = having(desired(broken={"run_info": "garbage"}), instance(RUNNING, "here"))
    converge(state)
    assert len(desired_lrps.list_r3(state, models.DesiredLRPsRequest(), context()).pieces) == 1
    converge(state)
    assert state.desired_lrps.get("p") is None


def test_unreadable_tags_or_routes_send_no_update() -> None:
    for column in ("metric_tags", "routes"):
        broken = desired(
            broken={column: "garbage"},
            metric_tags=() if column == "metric_tags" else (("source_id", MetricTag("src")),),
        )
        row = instance(RUNNING, "here", internal_routes=("x",) if column == "routes" else ())
        assert converge(having(broken, row)).calls == []


def test_an_unreadable_instance_is_replaced() -> None:
    state = having(desired(), instance(RUNNING, "here", broken="garbage"))
    done = converge(state)
    row = state.actual_lrps.get(("p", 0, ORDINARY))
    assert row is not None
    assert (row.state, row.broken) == (UNCLAIMED, "")
    assert done.seen(Hub.INSTANCE) == ["created ordinary UNCLAIMED"]
    assert done.starts == [("p", 0)]


# -- metrics ------------------------------------------------------------------------------------


def test_counts_are_taken_after_the_effects() -> None:
    state = having(
        desired("p", instances=4),
        desired("q", instances=1),
        instance(RUNNING, "gone"),
        instance(CLAIMED, "here", index=1),
        instance(CRASHED, index=2, crash_count=200),
        instance(CRASHED, index=3, crash_count=200),
        instance(CLAIMED, "gone", SUSPECT, index=1),
        instance(RUNNING, "here", EVACUATING, index=3),
    )
    state.domains.put(Domain("old", NOW - 1))
    assert converge(state, ("here", "other")).counts == LRPCounts(
        fresh_domains=("dom",),
        unclaimed=2,
        claimed=1,
        running=0,
        crashed=2,
        crashing_desired=1,
        desired=5,
        missing=1,
        extra=0,
        suspect_running=0,
        suspect_claimed=1,
        present_cells=2,
        suspect_cells=1,
    )


def test_a_large_state_is_taken_in_bounded_commands() -> None:
    def many() -> Iterator[Any]:
        for number in range(3_000):
            yield desired(f"p{number}")

    state = having(*many())
    done = Pass(LRPConvergence([models.CellPresence(cell_id="here")]))
    most = 0
    for step in done.convergence.steps():
        outcome = step.command(state, None, context())
        done.calls += outcome.calls
        done.names.append(step.name)
        most = max(most, len(state.take()))
    assert done.names.count("gather") > 1
    assert most <= 250
    assert len(done.starts) == 3_000
    assert sum(isinstance(call, AuctionLRPs) for call in done.calls) == 1


def test_a_pass_ends_although_no_step_can_be_executed() -> None:
    convergence = LRPConvergence([])
    assert [step.name for step in convergence.steps()] == ["prune-domains", "count", "count"]
    convergence = LRPConvergence([])
    state = having(desired())
    names = []
    for step in convergence.steps():
        names.append(step.name)
        if step.name == "prune-domains":
            step.command(state, None, context())
    assert names == ["prune-domains", "gather", "count", "count"]
