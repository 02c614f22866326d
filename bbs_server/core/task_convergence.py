"""Task convergence: one pass as a series of bounded commands (task-convergence.md).

The process layer submits the steps one after the other, requests of others run in between::

    convergence = TaskConvergence(await presences.all())  # a failure of that skips the whole pass
    for step in convergence.steps():
        try:
            await writer.write(step.command, None)
        except Refused as problem:
            log(step.name, problem)  # a failed step affects no other; its `parts` are tried instead
    counts = convergence.counts

`RULES` are the steps 1 to 6 of the pass. Each first selects its tasks, then works on them in groups, and passes
over those it would not select any more. The store may run a command again after it has undone it, so what a group
comes to is kept per group, in place of what it came to before. `count` sets `counts`, which ends what the duration
of the pass covers; then `request-auctions` and `submit-callbacks` make their calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from bbs_protos import models_pb2 as models

from bbs_server.core import tasks
from bbs_server.core.context import Context
from bbs_server.core.outcome import AuctionTasks, Call, Complete, Event, Outcome, Step, TaskStart
from bbs_server.core.records import Task, TaskState, replace
from bbs_server.core.state import State

TASKS_PER_COMMAND = 500


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """What a pass reports (task-convergence.md section 5), without the duration."""

    pruned: int
    kicked: int
    pending: int
    running: int
    completed: int
    resolving: int


class Limits(NamedTuple):
    """What a rule compares tasks with: the instants (ns) before which they are too old, and the cells there are."""

    pending: int
    kick: int
    completed: int
    cells: frozenset[str]


@dataclass(slots=True)
class Findings:
    """What rules have come to."""

    pruned: int = 0
    kicked: int = 0
    starts: list[TaskStart] = field(default_factory=list)
    completions: list[Complete] = field(default_factory=list)


Effect = Callable[[State, Task, int, Findings], Iterable[Event]]
"""Does a rule's work on a task, at an instant in ns, and gives the events of it."""


class Rule(NamedTuple):
    """The tasks of a state that `selects` picks, and what is done to each."""

    name: str
    state: TaskState
    selects: Callable[[Task, Limits], bool]
    effect: Effect


def _fail(reason: str) -> Effect:
    """Quirk: unlike an endpoint it keeps the cell id, and the callback waits for a later pass."""

    def effect(state: State, task: Task, now: int, findings: Findings) -> Iterable[Event]:
        after = tasks.completed(task, now, reason, cell_id=task.cell_id)
        state.tasks.put(after)
        findings.kicked += 1
        return (tasks.changed(task, after),)

    return effect


def _auction(state: State, task: Task, now: int, findings: Findings) -> Iterable[Event]:
    findings.kicked += 1
    findings.starts.append(tasks.auction_start(task.guid, task.domain, tasks.decoded(task)))
    return ()


def _demote(state: State, task: Task, now: int, findings: Findings) -> Iterable[Event]:
    """No time is changed, so that the kick of the same pass selects it."""
    after = replace(task, state=TaskState.COMPLETED)
    state.tasks.put(after)
    return (tasks.changed(task, after),)


def _delete(state: State, task: Task, now: int, findings: Findings) -> Iterable[Event]:
    state.tasks.remove(task.guid)
    findings.pruned += 1
    return (tasks.removed(task),)


def _kick(state: State, task: Task, now: int, findings: Findings) -> Iterable[Event]:
    """Quirk: tasks without a callback count as kicked, though nothing happens to them."""
    findings.kicked += 1
    findings.completions += tasks.callbacks(task)
    return ()


_expire = _fail("not started within time limit")
_lose = _fail("cell disappeared before completion")

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule("expire-pending", TaskState.PENDING, lambda task, than: task.created_at < than.pending, _expire),
    Rule("auction-pending", TaskState.PENDING, lambda task, than: task.created_at > than.pending, _auction),
    Rule("fail-lost", TaskState.RUNNING, lambda task, than: task.cell_id not in than.cells, _lose),
    Rule("demote-resolving", TaskState.RESOLVING, lambda task, than: task.updated_at < than.kick, _demote),
    Rule("delete-expired", TaskState.COMPLETED, lambda task, than: task.first_completed_at < than.completed, _delete),
    Rule("kick-completed", TaskState.COMPLETED, lambda task, than: task.updated_at < than.kick, _kick),
)
# fmt: on
"""Steps 1 to 6. A task exactly at a limit is selected by no rule of it."""


class TaskConvergence:
    """One pass with the cells that are present now. `steps` can be run through once.

    `counts` is set after the step `count`, with zeros in place of what could not be counted. It includes what a step
    did whose commit failed.
    """

    def __init__(self, cells: Iterable[models.CellPresence]) -> None:
        # An empty cell id is never present (task-convergence.md section 2, step 3).
        self._cells = frozenset(cell.cell_id for cell in cells if cell.cell_id)
        self._found: dict[tuple[str, int], Findings] = {}
        """By rule and place of the group's first task, in the order of the steps."""
        self._limits = Limits(0, 0, 0, self._cells)
        self._selected: Sequence[str] = ()
        self.counts: TaskCounts | None = None

    def steps(self) -> Iterator[Step]:
        """The commands of the pass, in order; each is known only after the one before was executed."""
        for rule in RULES:
            self._selected = ()
            yield Step(rule.name, partial(self._select, rule))
            for place, guids in _groups(self._selected):
                yield self._application(rule, place, guids)
        yield Step("count", self._count)
        self.counts = self.counts or self._sum(dict.fromkeys(_COUNTED, 0))
        if starts := [start for found in self._found.values() for start in found.starts]:
            yield Step("request-auctions", partial(_request_auctions, starts))
        for _, completions in _groups([each for found in self._found.values() for each in found.completions]):
            yield Step("submit-callbacks", partial(_submit, completions))

    def _select(self, rule: Rule, state: State, request: Any, context: Context) -> Outcome:
        settings, now = context.settings, context.now
        self._limits = limits = Limits(
            now - settings.expire_pending_task_duration,
            now - settings.kick_task_duration,
            now - settings.expire_completed_task_duration,
            self._cells,
        )
        selects = rule.selects
        self._selected = [task.guid for task in state.tasks.where("state", rule.state) if selects(task, limits)]
        return _outcome()

    def _application(self, rule: Rule, place: int, guids: Sequence[str]) -> Step:
        return Step(rule.name, partial(self._apply, rule, place, guids), parts=partial(self._parts, rule, place, guids))

    def _parts(self, rule: Rule, place: int, guids: Sequence[str]) -> Iterator[Step]:
        """One step for each task. Together they take the places of what the whole came to."""
        if len(guids) > 1:
            for number, guid in enumerate(guids, place):
                yield self._application(rule, number, [guid])

    def _apply(
        self, rule: Rule, place: int, guids: Sequence[str], state: State, request: Any, context: Context
    ) -> Outcome:
        events: list[Event] = []
        found = Findings()
        for guid in guids:
            task = state.tasks.get(guid)
            if task is None or task.state != rule.state or not rule.selects(task, self._limits):
                continue
            if task.definition is None:
                state.tasks.remove(guid)
                found.pruned += 1
            else:
                events += rule.effect(state, task, context.now, found)
        self._found[rule.name, place] = found
        return _outcome(events)

    def _count(self, state: State, request: Any, context: Context) -> Outcome:
        self.counts = self._sum({counted: len(state.tasks.where("state", counted)) for counted in _COUNTED})
        return _outcome()

    def _sum(self, numbers: Mapping[TaskState, int]) -> TaskCounts:
        """These numbers of tasks and what was done before."""
        pruned = sum(found.pruned for found in self._found.values())
        kicked = sum(found.kicked for found in self._found.values())
        return TaskCounts(pruned, kicked, *[numbers[counted] for counted in _COUNTED])


def _request_auctions(starts: Sequence[TaskStart], state: State, request: Any, context: Context) -> Outcome:
    """One request with all tasks; nothing is read again."""
    return _outcome((), (AuctionTasks(tuple(starts)),))


def _submit(completions: Sequence[Complete], state: State, request: Any, context: Context) -> Outcome:
    return _outcome((), completions)


_COUNTED = (TaskState.PENDING, TaskState.RUNNING, TaskState.COMPLETED, TaskState.RESOLVING)


def _groups(work: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    """With the place of the first one of each."""
    for start in range(0, len(work), TASKS_PER_COMMAND):
        yield start, work[start : start + TASKS_PER_COMMAND]


def _outcome(events: Iterable[Event] = (), calls: Iterable[Call] = ()) -> Outcome:
    """Nobody reads the answer of a step."""
    return Outcome(models.TaskLifecycleResponse(), tuple(events), tuple(calls))
