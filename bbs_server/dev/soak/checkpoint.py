"""Comparison of what the server lists with the ledgers and the cells, live and at checkpoints."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from bbs_protos import models_pb2 as models

from bbs_server.dev.soak.clients import View
from bbs_server.dev.soak.containers import State
from bbs_server.dev.soak.fleet import Fleet
from bbs_server.dev.soak.journal import Journal
from bbs_server.dev.soak.ledger import DomainLedger, Ledger, TaskLedger
from bbs_server.dev.soak.pair import Lost, Pair, Refusal
from bbs_server.dev.soak.routes import hostnames

_PATIENCE = 180.0
"""Seconds for convergence: staleness (30 s) and back-off of cells and auctioneer add up."""

_POLL = 1.0
_LIVE_SECONDS = 10.0
_SETTLED_STATES = frozenset({"RUNNING", "CRASHED"})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the lists say, one after the other."""

    desired: list[models.DesiredLRP]
    actual: list[models.ActualLRP]
    tasks: list[models.Task]
    domains: list[str]
    cells: list[models.CellPresence]

    def views(self) -> dict[str, View]:
        return {lrp.process_guid: (lrp.instances, lrp.annotation, _version(lrp)) for lrp in self.desired}


def _version(lrp: models.DesiredLRP) -> str:
    """The version named by both routes, which only change together."""
    external = json.loads(lrp.routes.routes["cf-router"])[0]["hostnames"][0].split(".")[1]
    internal = hostnames(lrp.routes)[0].split(".")[1]
    return external if external == internal else f"{external} and {internal}"


async def take(pair: Pair) -> Snapshot:
    """Raises Lost or Refusal."""
    desired = await pair.ask("/v1/desired_lrps/list.r3", models.DesiredLRPsRequest(), models.DesiredLRPsResponse)
    actual = await pair.ask("/v1/actual_lrps/list", models.ActualLRPsRequest(), models.ActualLRPsResponse)
    tasks = await pair.ask("/v1/tasks/list.r3", models.TasksRequest(), models.TasksResponse)
    domains = await pair.ask("/v1/domains/list", None, models.DomainsResponse)
    cells = await pair.ask("/v1/cells/list.r1", None, models.CellsResponse)
    return Snapshot(
        list(desired.desired_lrps),
        list(actual.actual_lrps),
        list(tasks.tasks),
        list(domains.domains),
        list(cells.cells),
    )


class Auditor:
    """Compares and reports violations."""

    def __init__(
        self,
        pair: Pair,
        fleet: Fleet,
        journal: Journal,
        desired: Ledger[View],
        tasks: TaskLedger,
        domains: DomainLedger,
    ) -> None:
        self._pair = pair
        self._fleet = fleet
        self._journal = journal
        self._desired = desired
        self._tasks = tasks
        self._domains = domains

    async def watch(self) -> None:
        """Audit all the time, while everybody is writing."""
        while True:
            await asyncio.sleep(_LIVE_SECONDS)
            try:
                await self.audit()
            except (Lost, Refusal):
                continue

    async def audit(self, settle: bool = False) -> Snapshot:
        """One comparison with the ledgers. `settle`: nobody writes."""
        steady, floors = self._desired.steady(), self._tasks.floors()
        gone, ended = frozenset(self._tasks.deleted), self._ended()
        asked = time.monotonic()
        snapshot = await take(self._pair)
        self._journal.facts["objects audited"] += self._desired.check(snapshot.views(), steady, settle)
        self._journal.facts["objects audited"] += self._tasks.check(snapshot.tasks, floors, gone)
        self._domains.check(snapshot.domains, asked)
        for lrp in snapshot.actual:
            self._check_instance(lrp, ended)
        return snapshot

    async def converged(self) -> tuple[Snapshot, float]:
        """Wait until everything is as desired, with nobody else writing. Reports what is not in the end."""
        begin = time.monotonic()
        while True:
            try:
                snapshot = await take(self._pair)
                problems = list(self._unsettled(snapshot))
            except (Lost, Refusal) as problem:
                problems = [f"cannot list: {problem}"]
            if not problems:
                break
            if time.monotonic() - begin > _PATIENCE:
                for text in problems[:20]:
                    self._journal.violation(f"not converged: {text}")
                break
            await asyncio.sleep(_POLL)
        snapshot = await self.audit(settle=True)
        self._tasks.forget_ended(task.task_guid for task in snapshot.tasks)
        self._check_duplicates(snapshot)
        return snapshot, time.monotonic() - begin

    # -- instances ---------------------------------------------------------------------------

    def _ended(self) -> frozenset[str]:
        return frozenset(guid for cell in self._fleet.cells for guid in cell.ended_instances)

    def _check_instance(self, lrp: models.ActualLRP, ended: frozenset[str]) -> None:
        guid, presence = lrp.actual_lrp_instance_key.instance_guid, lrp.presence
        where = f"{lrp.actual_lrp_key.process_guid}/{lrp.actual_lrp_key.index}"
        if guid in ended and lrp.state in ("CLAIMED", "RUNNING") and presence == models.ActualLRP.ORDINARY:
            self._journal.violation(f"instance {where}: {guid} is {lrp.state} after its end was acknowledged")
        if lrp.state != "RUNNING" or presence != models.ActualLRP.ORDINARY:
            return
        found = self._fleet.find(guid)
        if found is not None and found[0].takes_work:
            found[1].doubtful = False
        if found is None or found[1].reported is None or found[1].busy or not found[0].takes_work:
            return
        self._journal.facts["instances audited"] += 1
        container = found[1]
        names = tuple(route.hostname for route in lrp.actual_lrp_internal_routes)
        # A start that was lost and reported again would be younger than its first acknowledgement.
        if names == container.reported and lrp.since > container.reported_at:
            late = (lrp.since - container.reported_at) / 1e9
            self._journal.violation(f"instance {where}: running since {late:.1f} s after that was acknowledged")

    def _unsettled(self, snapshot: Snapshot) -> Iterator[str]:
        """Everything that convergence has still to bring about."""
        desired = {lrp.process_guid: lrp for lrp in snapshot.desired}
        rows: Counter[str] = Counter()
        running: set[str] = set()
        for lrp in snapshot.actual:
            guid, index = lrp.actual_lrp_key.process_guid, lrp.actual_lrp_key.index
            where = f"{guid}/{index} {lrp.state} presence {lrp.presence} on {lrp.actual_lrp_instance_key.cell_id}"
            wanted = desired.get(guid)
            rows[guid] += 1
            if lrp.presence != models.ActualLRP.ORDINARY or lrp.state not in _SETTLED_STATES:
                yield where
            if wanted is None or index >= wanted.instances:
                yield f"extra {where}"
            elif lrp.state == "RUNNING":
                running.add(lrp.actual_lrp_instance_key.instance_guid)
                if tuple(route.hostname for route in lrp.actual_lrp_internal_routes) != hostnames(wanted.routes):
                    yield f"old routes {where}"
        yield from (f"{g} has {rows[g]} of {d.instances}" for g, d in desired.items() if rows[g] != d.instances)
        held = {c.guid for _, c in self._fleet.containers() if not c.is_task and c.state is not State.COMPLETED}
        yield from (f"instance {guid} runs nowhere" for guid in running - held)
        yield from (f"container {guid} is unknown to the server" for guid in held - running)
        yield from (f"task {task.task_guid} in state {task.state}" for task in snapshot.tasks)
        absent = {cell.cell_id for cell in self._fleet.cells} - {cell.cell_id for cell in snapshot.cells}
        yield from (f"{cell} is absent" for cell in absent)

    def _check_duplicates(self, snapshot: Snapshot) -> None:
        rows = Counter(
            (lrp.actual_lrp_key.process_guid, lrp.actual_lrp_key.index)
            for lrp in snapshot.actual
            if lrp.state == "RUNNING" and lrp.presence != models.ActualLRP.EVACUATING
        )
        held = Counter(
            (container.process_guid, container.index)
            for _, container in self._fleet.containers()
            if not container.is_task and container.state is State.RUNNING
        )
        for what, counts in (("rows", rows), ("containers", held)):
            for (guid, index), count in counts.items():
                if count > 1:
                    self._journal.violation(f"{count} running {what} of {guid}/{index}")
