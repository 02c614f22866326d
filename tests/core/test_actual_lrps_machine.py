"""Any order of commands keeps the instances of an LRP legal, and the instance events tell what happened."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from bbs_protos import models_pb2 as models
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from records import desired_lrp

from bbs_server.core import actual_lrps, desired_lrps, evacuation, instances
from bbs_server.core.context import Context, Settings
from bbs_server.core.errors import Refused
from bbs_server.core.lrp_convergence import LRPConvergence
from bbs_server.core.outcome import Event, Hub, Outcome
from bbs_server.core.records import (
    CLAIMED,
    CRASHED,
    NEVER,
    RUNNING,
    UNCLAIMED,
    ActualLRP,
    Domain,
    Presence,
    replace,
)
from bbs_server.core.state import State

LEGAL = {
    Presence.ORDINARY: {UNCLAIMED, CLAIMED, RUNNING, CRASHED},
    Presence.EVACUATING: {RUNNING},
    Presence.SUSPECT: {CLAIMED, RUNNING},
}
SECOND = 10**9
INDICES = st.integers(0, 1)
OWNERS = st.sampled_from([("ig-1", "cell-1"), ("ig-2", "cell-1"), ("ig-3", "cell-2")])
BROKEN = st.sampled_from(["", "run_info", "routes", "metric_tags"])
REPORTS = st.fixed_dictionaries(
    {
        "actual_lrp_net_info": st.sampled_from([models.ActualLRPNetInfo(address=f"10.0.0.{n}") for n in (1, 2)]),
        "metric_tags": st.sampled_from([{}, {"k": "v"}]),
        "Routable": st.booleans(),
    }
)
Owner = tuple[str, str]
Rows = list[ActualLRP]


def keys(index: int, owner: Owner) -> dict[str, Any]:
    return {
        "actual_lrp_key": models.ActualLRPKey(process_guid="p", index=index, domain="dom"),
        "actual_lrp_instance_key": models.ActualLRPInstanceKey(instance_guid=owner[0], cell_id=owner[1]),
    }


def owner_of(row: ActualLRP) -> Owner:
    return (row.instance_guid, row.cell_id)


def replayed(rows: Counter[ActualLRP], events: tuple[Event, ...]) -> Counter[ActualLRP]:
    """What somebody who follows the instance stream believes."""
    known = Counter(rows)
    for event in events:
        if event.hub is Hub.INSTANCE and event.name != "actual_lrp_crashed":
            if event.before is not None:
                known[event.before] -= 1
            if event.after is not None:
                known[event.after] += 1
    return +known


def fresh_copy(state: State) -> State:
    """The same records as if they had just been loaded."""
    copy = State()
    for name, table in state.tables.items():
        keys = table.keys()
        for key in keys:
            copy.tables[name].adopt(key, table.get(key))
    return copy


class Instances(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.now = 1_700_000_000 * SECOND
        self.guids = map(str, itertools.count())

    # -- carrying out --------------------------------------------------------------------

    def rows(self) -> dict[tuple[str, int, int], ActualLRP]:
        return {instances.key_of(row): row for row in self.state.actual_lrps}

    def at(self, index: int) -> Rows:
        return list(self.state.actual_lrps.where("instance", ("p", index)))

    def run_command(self, command: Callable[..., Outcome], request: Any, told_exactly: bool = True) -> None:
        """Run a command, twice: once to be undone, once to stay."""
        before = self.rows()
        self.now += 1
        first = self._once(command, request)
        after = self.rows()
        self.state.undo(self.state.take())
        assert self.rows() == before
        self._once(command, request)
        assert {key: row.state for key, row in self.rows().items()} == {key: row.state for key, row in after.items()}
        changes = self.state.take()
        if first is None:
            assert changes == ()
            return
        self.state.undo(changes)
        second = self._once(command, request)
        self.state.take()
        assert second is not None
        if told_exactly:
            assert replayed(Counter(before.values()), second.events) == Counter(self.rows().values())

    def _once(self, command: Callable[..., Outcome], request: Any) -> Outcome | None:
        context = Context(self.now, self.guids.__next__, "", Settings())
        try:
            return command(self.state, request, context)
        except Refused:
            return None

    # Quirk: a change is told of every row that has the instance key (actual-lrps.md 3.1).
    def owners_differ(self, index: int, owner: Owner | None = None) -> bool:
        """Whether no two rows have the same instance key, nor will if `owner` takes the ordinary one."""
        owners = [owner_of(row) for row in self.at(index) if row.cell_id]
        leaving = instances.with_presence(self.at(index), Presence.EVACUATING)
        return len(owners) == len(set(owners)) and (leaving is None or owner_of(leaving) != owner)

    # -- rules ---------------------------------------------------------------------------

    @rule(count=st.integers(0, 2), strategy=st.integers(0, 1))
    def desire(self, count: int, strategy: int) -> None:
        self.state.desired_lrps.put(desired_lrp(instances=count, update_strategy=strategy))
        context = Context(self.now, self.guids.__next__, "", Settings())
        for index in range(count):
            instances.create_unclaimed(self.state, "p", index, "dom", context)
        self.state.take()

    @precondition(lambda self: self.state.desired_lrps.get("p") is not None)
    @rule()
    def forget(self) -> None:
        self.state.desired_lrps.remove("p")
        self.state.take()

    @precondition(lambda self: self.state.desired_lrps.get("p") is not None)
    @rule(column=BROKEN)
    def spoil(self, column: str) -> None:
        """Somebody else changes a row so that a column of it cannot be decoded, or can be again."""
        wanted = self.state.desired_lrps.get("p")
        assert wanted is not None
        self.state.desired_lrps.adopt("p", replace(wanted, broken={column: "garbage"} if column else {}))

    @rule(query=st.sampled_from([desired_lrps.list_r3, desired_lrps.list_r2, desired_lrps.list_scheduling_infos]))
    def list_desired(self, query: Callable[..., Any]) -> None:
        """Quirk: what a list cannot show may be deleted after it."""
        context = Context(self.now, self.guids.__next__, "", Settings())
        assert len(query(self.state, models.DesiredLRPsRequest(), context).pieces) <= 1

    @rule(seconds=st.sampled_from([1, 60, 301]))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(index=INDICES, owner=OWNERS)
    def claim(self, index: int, owner: Owner) -> None:
        key = keys(index, owner)["actual_lrp_instance_key"]
        request = models.ClaimActualLRPRequest(process_guid="p", index=index, actual_lrp_instance_key=key)
        self.run_command(actual_lrps.claim, request, self.owners_differ(index))

    @rule(index=INDICES, owner=OWNERS, report=REPORTS, r0=st.booleans())
    def start(self, index: int, owner: Owner, report: dict[str, Any], r0: bool) -> None:
        request = models.StartActualLRPRequest(**keys(index, owner), **report)
        command = actual_lrps.start_r0 if r0 else actual_lrps.start
        self.run_command(command, request, self.owners_differ(index, owner))

    @rule(count=st.integers(1, 2), strategy=st.integers(0, 1), owner=OWNERS, column=BROKEN)
    def settle(self, count: int, strategy: int, owner: Owner, column: str) -> None:
        """An LRP that is left alone comes to rest; lists do not leave it alone."""
        self.desire(count, strategy)
        self.spoil(column)
        for index in range(count):
            self.start(index, owner, {}, r0=False)
        for _ in range(3):
            self.converge({"cell-1", "cell-2"}, known=True)
        self.list_desired(desired_lrps.list_r3)
        self.converge({"cell-1", "cell-2"}, known=True)

    @rule(index=INDICES, owner=OWNERS)
    def crash(self, index: int, owner: Owner) -> None:
        request = models.CrashActualLRPRequest(**keys(index, owner), error_message="boom")
        self.run_command(actual_lrps.crash, request, self.owners_differ(index))

    @rule(index=INDICES)
    def fail(self, index: int) -> None:
        key = models.ActualLRPKey(process_guid="p", index=index, domain="dom")
        self.run_command(actual_lrps.fail, models.FailActualLRPRequest(actual_lrp_key=key, error_message="full"))

    @rule(index=INDICES)
    def remove(self, index: int) -> None:
        request = models.RemoveActualLRPRequest(process_guid="p", index=index)
        self.run_command(actual_lrps.remove, request, self.owners_differ(index))

    @rule(index=INDICES)
    def retire(self, index: int) -> None:
        key = models.ActualLRPKey(process_guid="p", index=index, domain="dom")
        self.run_command(actual_lrps.retire, models.RetireActualLRPRequest(actual_lrp_key=key))

    @rule(index=INDICES, owner=OWNERS)
    def remove_evacuating(self, index: int, owner: Owner) -> None:
        request = models.RemoveEvacuatingActualLRPRequest(**keys(index, owner))
        self.run_command(evacuation.remove_evacuating, request, self.owners_differ(index))

    @rule(index=INDICES, owner=OWNERS)
    def evacuate_claimed(self, index: int, owner: Owner) -> None:
        request = models.EvacuateClaimedActualLRPRequest(**keys(index, owner))
        self.run_command(evacuation.evacuate_claimed, request, self.owners_differ(index))

    @rule(index=INDICES, owner=OWNERS)
    def evacuate_crashed(self, index: int, owner: Owner) -> None:
        request = models.EvacuateCrashedActualLRPRequest(**keys(index, owner), error_message="boom")
        self.run_command(evacuation.evacuate_crashed, request, self.owners_differ(index))

    @rule(index=INDICES, owner=OWNERS)
    def evacuate_stopped(self, index: int, owner: Owner) -> None:
        request = models.EvacuateStoppedActualLRPRequest(**keys(index, owner))
        self.run_command(evacuation.evacuate_stopped, request, self.owners_differ(index))

    @rule(index=INDICES, owner=OWNERS, report=REPORTS, r0=st.booleans())
    def evacuate_running(self, index: int, owner: Owner, report: dict[str, Any], r0: bool) -> None:
        """Quirks: an instance may be announced as removed and stay, and a changed copy is told as a new one."""
        rows = self.at(index)
        target = instances.with_instance_key(rows, owner)
        ordinary = instances.with_presence(rows, Presence.ORDINARY)
        wanted = self.state.desired_lrps.get("p") is not None and ordinary is not None
        superseded = ordinary is not target and ordinary is not None and ordinary.state in (RUNNING, CRASHED)
        stays = target is not None and target.presence != Presence.EVACUATING and (superseded or not wanted)
        copied = instances.with_presence(rows, Presence.EVACUATING) is not None
        request = models.EvacuateRunningActualLRPRequest(**keys(index, owner), **report)
        command = evacuation.evacuate_running_r0 if r0 else evacuation.evacuate_running
        self.run_command(command, request, not stays and not copied)

    @rule(index=INDICES)
    def lose_cell(self, index: int) -> None:
        """As convergence does it: a suspect, and a new row in its place."""
        row = instances.with_presence(self.at(index), Presence.ORDINARY)
        suspect = instances.with_presence(self.at(index), Presence.SUSPECT)
        if row is None or suspect is not None or row.state not in (CLAIMED, RUNNING):
            return
        moved = instances.suspect(self.state, row)
        assert (moved.since, moved.tag_epoch, moved.tag_index) == (row.since, row.tag_epoch, row.tag_index)
        context = Context(self.now, self.guids.__next__, "", Settings())
        assert instances.create_unclaimed(self.state, "p", index, "dom", context) is not None
        self.state.take()

    @rule(index=INDICES)
    def regain_cell(self, index: int) -> None:
        suspect = instances.with_presence(self.at(index), Presence.SUSPECT)
        if suspect is None:
            return
        ordinary = instances.with_presence(self.at(index), Presence.ORDINARY)
        promoted, replaced = instances.promote(self.state, suspect)
        assert replaced is ordinary
        assert promoted in self.at(index)
        self.state.take()

    @rule(cells=st.sets(st.sampled_from(["cell-1", "cell-2"])), known=st.booleans())
    def converge(self, cells: set[str], known: bool) -> None:
        """A pass that passes over what is settled does what one that looks at everything does."""
        self.state.domains.adopt("dom", Domain("dom", NEVER) if known else None)
        copy, prefix = fresh_copy(self.state), next(self.guids)
        mine, whole = (self.converged(state, cells, prefix) for state in (self.state, copy))
        assert mine == whole
        assert self.rows() == {instances.key_of(row): row for row in copy.actual_lrps}
        assert list(self.state.desired_lrps) == list(copy.desired_lrps)
        if not self.rows() and not len(self.state.desired_lrps):
            self.converged(self.state, cells, next(self.guids))
            assert not self.state.unsettled

    def converged(self, state: State, cells: set[str], prefix: str) -> list[Any]:
        convergence = LRPConvergence([models.CellPresence(cell_id=cell) for cell in sorted(cells)])
        guids = itertools.count()
        context = Context(self.now, lambda: f"{prefix}-{next(guids)}", "", Settings())
        told: list[Any] = []
        for step in convergence.steps():
            outcome = step.command(state, None, context)
            told += [*outcome.events, *outcome.calls]
        state.take()
        return [*told, convergence.counts]

    # -- invariants ----------------------------------------------------------------------

    @invariant()
    def only_legal_rows(self) -> None:
        for key, row in self.rows().items():
            assert self.state.actual_lrps.get(key) is row
            assert row.state in LEGAL[Presence(row.presence)]
            assert bool(row.instance_guid) == bool(row.cell_id) == (row.state in (CLAIMED, RUNNING))
            if row.state != RUNNING:
                assert row.net_info == b""
            assert row.since <= self.now

    @invariant()
    def tags_are_unique(self) -> None:
        epochs = Counter(row.tag_epoch for row in self.rows().values())
        assert all(count == 1 for count in epochs.values())

    @invariant()
    def indexes_agree_with_rows(self) -> None:
        table, rows = self.state.actual_lrps, self.rows()
        for index, read in (
            ("cell_id", lambda row: row.cell_id),
            ("domain", lambda row: row.domain),
            ("process_guid", lambda row: row.process_guid),
            ("instance", lambda row: (row.process_guid, row.index)),
        ):
            assert sum(len(table.where(index, value)) for value in table.values(index)) == len(rows)
            assert all(row in table.where(index, read(row)) for row in rows.values())


Instances.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestInstances = Instances.TestCase
