"""LRP convergence: one pass as a series of bounded commands (lrp-convergence.md).

The process layer submits the steps one after the other, requests of others run in between::

    convergence = LRPConvergence(cells)
    for step in convergence.steps():
        try:
            await writer.write(step.command, None)
        except Refused as problem:
            log(step.name, problem)  # a failed step affects no other
    counts = convergence.counts

Phase A (`prune-domains`, `gather`) fills the work lists, phase B (`converge`) does the work, phase C (`count`,
`request-auctions`) counts and sends one auction request. Each piece of work is done only if its row is still the one
that was found: a row changed in between belongs to the next pass. What a step wants from cells and from the
auctioneer are the calls of its outcome; a step with `Retire` calls is answered when they have ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core import instances
from bbs_server.core import lrp_convergence_effects as effects
from bbs_server.core import lrp_convergence_plan as plan
from bbs_server.core.context import Context
from bbs_server.core.lrp_convergence_plan import SECOND, Facts, Findings, Kind, Work
from bbs_server.core.outcome import AuctionLRPs, Call, Event, LRPStart, Outcome, Step
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, Presence
from bbs_server.core.state import State

ROWS_PER_GATHERING = 2_000
WORK_PER_COMMAND = 250
ROWS_PER_COUNT = 20_000


@dataclass(frozen=True, slots=True)
class LRPCounts:
    """What a pass reports (lrp-convergence.md 6, C1), without the duration."""

    fresh_domains: tuple[str, ...]
    unclaimed: int
    claimed: int
    running: int
    crashed: int
    crashing_desired: int
    desired: int
    missing: int
    extra: int
    suspect_running: int
    suspect_claimed: int
    present_cells: int
    suspect_cells: int


class LRPConvergence:
    """One pass with the cells that are present now. `steps` can be run through once.

    `workers` is how many extra instances are stopped at a time (`convergence_workers`). `counts` is set
    before the step `request-auctions`.
    """

    def __init__(self, cells: Iterable[models.CellPresence], workers: int = 20) -> None:
        self._cells = frozenset(cell.cell_id for cell in cells)
        self._workers = max(workers, 1)
        self._facts: Facts | None = None
        self._unseen: list[str] = []
        self._countings: list[Sequence[ActualLRP]] = []
        self._states: Counter[str] = Counter()
        self._crashing: set[str] = set()
        self._findings = Findings()
        self._starts: list[LRPStart] = []
        self.missing_cells: frozenset[str] = frozenset()
        self.counts: LRPCounts | None = None

    def steps(self) -> Iterator[Step]:
        """The commands of the pass, in order; each is known only after the one before was executed."""
        yield Step("prune-domains", self._begin)
        left = len(self._unseen) + 1
        while len(self._unseen) < left and self._unseen:  # ends, too, when a step was not executed
            left = len(self._unseen)
            yield Step("gather", self._gather)
        self.missing_cells = frozenset(self._findings.missing_cells)
        for work in self._batches():
            yield Step("converge", partial(self._converge, work))
        yield Step("count", self._begin_counting)
        for rows in self._countings:
            yield Step("count", partial(self._count, rows))
        yield Step("count", self._finish_counting)
        if self._starts:
            yield Step("request-auctions", self._request_auctions)

    # -- phase A -------------------------------------------------------------------------

    def _begin(self, state: State, request: Any, context: Context) -> Outcome:
        """A1 and A3, and the list of process guids to look at."""
        now = context.now
        for domain in [domain for domain in state.domains if domain.expire_time <= now]:
            state.domains.remove(domain.domain)
        self._facts = Facts(
            now=now,
            cells=self._cells,
            fresh_domains=frozenset(_fresh_domains(state, now)),
            known_domains=frozenset(state.domains.keys()),
        )
        self._unseen = list(
            dict.fromkeys([*state.desired_lrps.keys(), *map(str, state.actual_lrps.values("process_guid"))])
        )
        return _outcome()

    def _gather(self, state: State, request: Any, context: Context) -> Outcome:
        """A2 and A4 to A15 for the next process guids, as many as have about `ROWS_PER_GATHERING` rows.

        A desired LRP that is lost goes, and its instances are orphans from the next pass on.
        """
        assert self._facts is not None
        budget = ROWS_PER_GATHERING
        while self._unseen and budget > 0:
            guid = self._unseen.pop()
            rows = state.actual_lrps.where("process_guid", guid)
            desired = state.desired_lrps.get(guid)
            plan.survey(self._facts, guid, desired, rows, self._findings)
            if desired is not None and forms.is_lost(desired):
                state.desired_lrps.remove(guid)
            budget -= 1 + len(rows)
        return _outcome()

    # -- phase B -------------------------------------------------------------------------

    def _batches(self) -> Iterator[Sequence[Work]]:
        """The work in the order of its kind; instances that cells have to stop in small numbers."""
        kinds: dict[Kind, list[Work]] = {kind: [] for kind in Kind}
        for work in self._findings.work:
            kinds[work.kind].append(work)
        for kind, works in kinds.items():
            size = self._workers if kind is Kind.RETIRE else WORK_PER_COMMAND
            for start in range(0, len(works), size):
                yield works[start : start + size]

    def _converge(self, works: Sequence[Work], state: State, request: Any, context: Context) -> Outcome:
        events: list[Event] = []
        calls: list[Call] = []
        for work in works:
            if work.instance is None or state.actual_lrps.get(instances.key_of(work.instance)) is work.instance:
                done = effects.EFFECTS[work.kind](state, work, state.desired_lrps.get(work.process_guid), context)
                events += done.events
                calls += done.calls
                if done.start is not None:
                    self._starts.append(done.start)
        return _outcome(events, calls)

    # -- phase C -------------------------------------------------------------------------

    def _begin_counting(self, state: State, request: Any, context: Context) -> Outcome:
        rows = list(state.actual_lrps.all())
        self._countings = [rows[start : start + ROWS_PER_COUNT] for start in range(0, len(rows), ROWS_PER_COUNT)]
        return _outcome()

    def _count(self, rows: Sequence[ActualLRP], state: State, request: Any, context: Context) -> Outcome:
        ordinary = [row for row in rows if row.presence == Presence.ORDINARY]
        self._states.update([row.state for row in ordinary])
        self._crashing.update([row.process_guid for row in ordinary if row.state == CRASHED])
        return _outcome()

    def _finish_counting(self, state: State, request: Any, context: Context) -> Outcome:
        found, states = self._findings, self._states
        self.counts = LRPCounts(
            fresh_domains=_fresh_domains(state, context.now),
            unclaimed=states[UNCLAIMED],
            claimed=states[CLAIMED],
            running=states[RUNNING],
            crashed=states[CRASHED],
            crashing_desired=len(self._crashing),
            desired=sum([desired.instances for desired in state.desired_lrps]),
            missing=found.missing,
            extra=found.extra,
            suspect_running=found.suspect_running,
            suspect_claimed=found.suspect_claimed,
            present_cells=len(self._cells),
            suspect_cells=len(found.missing_cells),
        )
        return _outcome()

    def _request_auctions(self, state: State, request: Any, context: Context) -> Outcome:
        """C2. An instance that is not waiting any more, or whose step failed, is left out."""
        starts = tuple(start for start in self._starts if _waits(state, start))
        return _outcome((), (AuctionLRPs(starts),) if starts else ())


def _outcome(events: Iterable[Event] = (), calls: Iterable[Call] = ()) -> Outcome:
    """Nobody reads the answer of a step."""
    return Outcome(models.DesiredLRPLifecycleResponse(), tuple(events), tuple(calls))


def _fresh_domains(state: State, now: int) -> tuple[str, ...]:
    """A3. Quirk: this clock is rounded to the nearest second."""
    rounded = (now + SECOND // 2) // SECOND * SECOND
    return tuple(domain.domain for domain in state.domains if domain.expire_time > rounded)


def _waits(state: State, start: LRPStart) -> bool:
    row = state.actual_lrps.get((start.process_guid, start.indices[0], Presence.ORDINARY))
    return row is not None and row.state == UNCLAIMED
