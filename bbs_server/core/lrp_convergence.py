"""LRP convergence: one pass as a series of bounded commands (lrp-convergence.md).

The process layer submits the steps one after the other, requests of others run in between::

    convergence = LRPConvergence(cells)
    for step in convergence.steps():
        try:
            await writer.write(step.command, None)
        except Refused as problem:
            log(step.name, problem)  # a failed step affects no other
    counts = convergence.counts

A pass looks at what can need work, `State.unsettled` and the instances on lost cells, so that a fleet at rest costs
next to nothing whatever its size.

Phase A (`prune-domains`, `gather`) fills the work lists, phase B (`converge`) does the work, phase C (`count`,
`request-auctions`) counts and sends one auction request. Each piece of work is done only if its row is still the one
that was found: a row changed in between belongs to the next pass. What a step wants from cells and from the
auctioneer are the calls of its outcome; a step with a `Retire` call is answered when it has ended, and nothing but
phase C comes after those.

The store may run a command again after it has undone it. So what a step finds is kept per step, in place of what it
found before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from bbs_protos import models_pb2 as models

from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core import domains, instances
from bbs_server.core import lrp_convergence_effects as effects
from bbs_server.core import lrp_convergence_plan as plan
from bbs_server.core.context import Context
from bbs_server.core.lrp_convergence_plan import Facts, Findings, Kind, Work, together
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


class Counted(NamedTuple):
    """Some of the ordinary instances: how many are in each state, and whose have crashed."""

    states: Counter[str]
    crashing: set[str]


class LRPConvergence:
    """One pass with the cells that are present now. `steps` can be run through once.

    `counts` is set before the step `request-auctions`, with zeros in place of what could not be counted.
    """

    def __init__(self, cells: Iterable[models.CellPresence]) -> None:
        self._cells = frozenset(cell.cell_id for cell in cells)
        self._facts: Facts | None = None
        self._guids: Sequence[str] = ()
        self._next = 0
        """The place in `_guids` of the next one to look at."""
        self._gathered: dict[int, Findings] = {}
        """By the place at which the step began. Like all that follow, in the order of the steps."""
        self._findings = Findings()
        self._starts: dict[tuple[int, int], Sequence[LRPStart]] = {}
        """By place and number of the works."""
        self._countings: Sequence[Sequence[ActualLRP]] = ()
        self._counted: dict[int, Counted] = {}
        self.missing_cells: frozenset[str] = frozenset()
        self.counts: LRPCounts | None = None

    def steps(self) -> Iterator[Step]:
        """The commands of the pass, in order; each is known only after the one before was executed, parallel ones
        aside."""
        yield Step("prune-domains", self._begin)
        place = -1
        while place < self._next < len(self._guids):  # ends, too, when a step was not executed
            place = self._next
            yield Step("gather", partial(self._gather, place))
        self._findings = together(self._gathered.values())
        self.missing_cells = frozenset(self._findings.missing_cells)
        for place, works in self._batches():
            yield self._convergence(place, works)
        yield Step("count", self._begin_counting)
        for number, rows in enumerate(self._countings):
            yield Step("count", partial(self._count, number, rows))
        yield Step("count", self._finish_counting)
        self.counts = self.counts or self._sum(fresh_domains=(), desired=0)
        if any(self._starts.values()):
            yield Step("request-auctions", self._request_auctions)

    # -- phase A -------------------------------------------------------------------------

    def _begin(self, state: State, request: Any, context: Context) -> Outcome:
        """A1 and A3, and the process guids to look at: those that are unsettled or have instances on lost cells."""
        now = context.now
        for domain in [domain for domain in state.domains if domain.expire_time <= now]:
            state.domains.remove(domain.domain)
        self._facts = Facts(
            now=now,
            cells=self._cells,
            fresh_domains=frozenset(domains.fresh(state, now)),
            known_domains=frozenset(state.domains.keys()),
        )
        lost = (cell for cell in state.actual_lrps.values("cell_id") if cell not in self._cells)
        on_lost = (row.process_guid for cell in lost for row in state.actual_lrps.where("cell_id", cell))
        self._guids = list(dict.fromkeys([*state.unsettled, *on_lost]))
        return _outcome()

    def _gather(self, place: int, state: State, request: Any, context: Context) -> Outcome:
        """A2 and A4 to A15 for the process guids from a place on, as many as have about `ROWS_PER_GATHERING` rows.

        A desired LRP that is lost goes, and its instances are orphans from the next pass on.
        """
        assert self._facts is not None
        found = self._gathered[place] = Findings()
        budget = ROWS_PER_GATHERING
        self._next = place
        while self._next < len(self._guids) and budget > 0:
            guid = self._guids[self._next]
            self._next += 1
            rows = state.actual_lrps.where("process_guid", guid)
            desired = state.desired_lrps.get(guid)
            if plan.survey(self._facts, guid, desired, rows, found):
                state.unsettled.pop(guid, None)
            if desired is not None and forms.is_lost(desired):
                state.desired_lrps.remove(guid)
            budget -= 1 + len(rows)
        return _outcome()

    # -- phase B -------------------------------------------------------------------------

    def _batches(self) -> Iterator[tuple[int, Sequence[Work]]]:
        """The work in the order of its kind, with places; instances that cells have to stop one by one."""
        kinds: dict[Kind, list[Work]] = {kind: [] for kind in Kind}
        for work in self._findings.work:
            kinds[work.kind].append(work)
        place = 0
        for kind, works in kinds.items():
            size = 1 if kind is Kind.RETIRE else WORK_PER_COMMAND
            for start in range(0, len(works), size):
                yield place + start, works[start : start + size]
            place += len(works)

    def _convergence(self, place: int, works: Sequence[Work]) -> Step:
        parallel = works[0].kind is Kind.RETIRE
        return Step("converge", partial(self._converge, place, works), parallel, partial(self._parts, place, works))

    def _parts(self, place: int, works: Sequence[Work]) -> Iterator[Step]:
        """One step for each work. What the whole came to is kept: its commit may only have been in doubt."""
        if len(works) > 1:
            for number, work in enumerate(works, place):
                yield self._convergence(number, [work])

    def _converge(self, place: int, works: Sequence[Work], state: State, request: Any, context: Context) -> Outcome:
        events: list[Event] = []
        calls: list[Call] = []
        starts: list[LRPStart] = []
        for work in works:
            if work.instance is None or state.actual_lrps.get(instances.key_of(work.instance)) is work.instance:
                done = effects.EFFECTS[work.kind](state, work, state.desired_lrps.get(work.process_guid), context)
                events += done.events
                calls += done.calls
                if done.start is not None:
                    starts.append(done.start)
        self._starts[place, len(works)] = starts
        return _outcome(events, calls)

    # -- phase C -------------------------------------------------------------------------

    def _begin_counting(self, state: State, request: Any, context: Context) -> Outcome:
        rows = list(state.actual_lrps.all())
        self._countings = [rows[start : start + ROWS_PER_COUNT] for start in range(0, len(rows), ROWS_PER_COUNT)]
        return _outcome()

    def _count(self, number: int, rows: Sequence[ActualLRP], state: State, request: Any, context: Context) -> Outcome:
        ordinary = [row for row in rows if row.presence == Presence.ORDINARY]
        self._counted[number] = Counted(
            Counter([row.state for row in ordinary]), {row.process_guid for row in ordinary if row.state == CRASHED}
        )
        return _outcome()

    def _finish_counting(self, state: State, request: Any, context: Context) -> Outcome:
        desired = sum([desired.instances for desired in state.desired_lrps])
        self.counts = self._sum(domains.fresh(state, context.now), desired)
        return _outcome()

    def _sum(self, fresh_domains: tuple[str, ...], desired: int) -> LRPCounts:
        """These and what was found and counted before."""
        found = self._findings
        states: Counter[str] = Counter()
        crashing: set[str] = set()
        for part in self._counted.values():
            states.update(part.states)
            crashing.update(part.crashing)
        return LRPCounts(
            fresh_domains=fresh_domains,
            unclaimed=states[UNCLAIMED],
            claimed=states[CLAIMED],
            running=states[RUNNING],
            crashed=states[CRASHED],
            crashing_desired=len(crashing),
            desired=desired,
            missing=found.missing,
            extra=found.extra,
            suspect_running=found.suspect_running,
            suspect_claimed=found.suspect_claimed,
            present_cells=len(self._cells),
            suspect_cells=len(found.missing_cells),
        )

    def _request_auctions(self, state: State, request: Any, context: Context) -> Outcome:
        """C2. An instance that is not waiting any more, or whose step failed, is left out."""
        starts = {
            (start.process_guid, *start.indices): start
            for starts in self._starts.values()
            for start in starts
            if _waits(state, start)
        }
        return _outcome((), (AuctionLRPs(tuple(starts.values())),) if starts else ())


def _outcome(events: Iterable[Event] = (), calls: Iterable[Call] = ()) -> Outcome:
    """Nobody reads the answer of a step."""
    return Outcome(models.DesiredLRPLifecycleResponse(), tuple(events), tuple(calls))


def _waits(state: State, start: LRPStart) -> bool:
    row = state.actual_lrps.get((start.process_guid, start.indices[0], Presence.ORDINARY))
    return row is not None and row.state == UNCLAIMED
