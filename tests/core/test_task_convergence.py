"""Task convergence: each rule, the worked example and the counts (task-convergence.md)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import task_convergence, tasks
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import encode
from bbs_server.core.outcome import AuctionTasks, Call, Complete, Event, Step, TaskStart
from bbs_server.core.records import Task, TaskState, replace
from bbs_server.core.state import State
from bbs_server.core.task_convergence import TASKS_PER_COMMAND, TaskConvergence, TaskCounts
from bbs_server.store.guids import random_guid

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
SETTINGS = Settings(
    kick_task_duration=30 * SECOND,
    expire_pending_task_duration=60 * SECOND,
    expire_completed_task_duration=120 * SECOND,
)
CONTEXT = Context(NOW, random_guid, "", SETTINGS)
PENDING, RUNNING, COMPLETED, RESOLVING = (
    TaskState.PENDING,
    TaskState.RUNNING,
    TaskState.COMPLETED,
    TaskState.RESOLVING,
)
EXPIRED, LOST = "not started within time limit", "cell disappeared before completion"


def age(seconds: float) -> int:
    return NOW - round(seconds * SECOND)


def row(
    guid: str,
    state: int,
    created: float = 9999,
    updated: float = 9999,
    completed: float | None = None,
    *,
    cell: str = "",
    url: str = "",
    bad: bool = False,
) -> Task:
    """A task with ages in seconds; `bad` if its definition cannot be decoded."""
    definition = encode(models.TaskDefinition(root_fs="preloaded:fs", memory_mb=1, completion_callback_url=url))
    return Task(
        guid,
        "dom",
        state,
        age(created),
        age(updated),
        None if bad else definition,
        first_completed_at=0 if completed is None else age(completed),
        cell_id=cell,
        result="old",
    )


@dataclass
class Pass:
    """What a pass did."""

    counts: TaskCounts | None = None
    events: list[Event] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def holding(rows: Iterable[Task]) -> State:
    state = State()
    for task in rows:
        state.tasks.put(task)
    state.take()
    return state


def converge(
    state: State,
    cells: Sequence[str] = (),
    context: Context = CONTEXT,
    between: Callable[[Step], None] = lambda step: None,
) -> Pass:
    """One pass; `between` is called after each of its commands."""
    convergence = TaskConvergence([models.CellPresence(cell_id=cell) for cell in cells])
    done = Pass()
    for step in convergence.steps():
        outcome = step.command(state, None, context)
        done.steps.append(step)
        done.events += outcome.events
        done.calls += outcome.calls
        between(step)
    done.counts = convergence.counts
    return done


def once(task: Task, cells: Sequence[str] = ()) -> tuple[Task | None, Pass]:
    """A pass over one task."""
    state = holding([task])
    done = converge(state, cells)
    return state.tasks.get(task.guid), done


def changed(before: Task, after: Task) -> Event:
    return tasks.changed(before, after)


# -- the rules, one by one ---------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["", "cellX"])
def test_a_pending_task_expires_and_keeps_its_cell(cell: str) -> None:
    before = row("t", PENDING, 61, cell=cell, url="http://cb")
    after, done = once(before)
    assert after == replace(
        before,
        state=COMPLETED,
        failed=True,
        failure_reason=EXPIRED,
        result="",
        updated_at=NOW,
        first_completed_at=NOW,
    )
    assert done.events == [changed(before, after)]
    assert done.calls == []
    assert done.counts == TaskCounts(pruned=0, kicked=1, pending=0, running=0, completed=1, resolving=0)


def test_a_young_pending_task_is_auctioned() -> None:
    before = replace(row("t", PENDING, 10), rejection_count=3)
    after, done = once(before)
    assert after is before
    assert done.events == []
    assert done.calls == [AuctionTasks((TaskStart("t", "dom", None, (), "preloaded:fs", 1, 0, 0),))]
    assert done.counts == TaskCounts(pruned=0, kicked=1, pending=1, running=0, completed=0, resolving=0)


@pytest.mark.parametrize(("cell", "cells"), [("cellZ", ["cellA"]), ("", ["cellA", ""]), ("cellA", [])])
def test_a_task_whose_cell_is_gone_fails(cell: str, cells: list[str]) -> None:
    before = row("t", RUNNING, cell=cell, url="http://cb")
    after, done = once(before, cells)
    assert after == replace(
        before,
        state=COMPLETED,
        failed=True,
        failure_reason=LOST,
        result="",
        updated_at=NOW,
        first_completed_at=NOW,
    )
    assert done.events == [changed(before, after)]
    assert done.calls == []
    assert done.counts is not None
    assert done.counts.kicked == 1


def test_an_old_resolving_task_is_demoted_and_its_callback_tried_again() -> None:
    before = row("t", RESOLVING, updated=40, completed=50, url="http://cb")
    after, done = once(before)
    assert after == replace(before, state=COMPLETED)
    assert done.events == [changed(before, after)]
    assert done.calls == [Complete(after)]


def test_a_task_that_is_demoted_and_expired_is_deleted() -> None:
    before = row("t", RESOLVING, updated=40, completed=130, url="http://cb")
    demoted = replace(before, state=COMPLETED)
    after, done = once(before)
    assert after is None
    assert done.events == [changed(before, demoted), tasks.removed(demoted)]
    assert done.calls == []
    assert done.counts is not None
    assert (done.counts.pruned, done.counts.kicked) == (1, 0)


@pytest.mark.parametrize("completed", [130, None])
def test_a_completed_task_expires_without_its_callback(completed: float | None) -> None:
    before = row("t", COMPLETED, updated=40, completed=completed, url="http://cb")
    after, done = once(before)
    assert after is None
    assert done.events == [tasks.removed(before)]
    assert done.calls == []


@pytest.mark.parametrize("url", ["", "http://cb"])
def test_a_completed_task_is_kicked_with_or_without_a_callback(url: str) -> None:
    before = row("t", COMPLETED, updated=40, completed=40, url=url)
    after, done = once(before)
    assert after is before
    assert done.events == []
    assert done.calls == ([Complete(before)] if url else [])
    assert done.counts is not None
    assert done.counts.kicked == 1


UNTOUCHED = [
    row("t", PENDING, 60),
    row("t", RUNNING, cell="cellA"),
    row("t", COMPLETED, updated=10, completed=10),
    row("t", COMPLETED, updated=30, completed=120),
    row("t", RESOLVING, updated=10, completed=130),
    row("t", RESOLVING, updated=30),
    row("t", TaskState.INVALID),
    row("t", RUNNING, cell="cellA", bad=True),
    row("t", COMPLETED, updated=10, completed=10, bad=True),
    row("t", RESOLVING, updated=10, bad=True),
    row("t", PENDING, 60, bad=True),
]


@pytest.mark.parametrize("task", UNTOUCHED)
def test_nothing_happens_to_what_no_rule_selects(task: Task) -> None:
    """A task exactly at a limit included."""
    state = holding([task])
    done = converge(state, ["cellA"])
    assert state.take() == ()
    assert (done.events, done.calls) == ([], [])
    assert done.counts is not None
    assert (done.counts.pruned, done.counts.kicked) == (0, 0)


PRUNED = [
    row("t", PENDING, 61, bad=True),
    row("t", PENDING, 10, bad=True),
    row("t", RUNNING, cell="cellZ", bad=True),
    row("t", RESOLVING, updated=40, completed=10, bad=True),
    row("t", COMPLETED, updated=10, completed=130, bad=True),
    row("t", COMPLETED, updated=40, completed=40, bad=True),
]


@pytest.mark.parametrize("task", PRUNED)
def test_an_undecodable_task_that_a_rule_selects_is_deleted(task: Task) -> None:
    after, done = once(task, ["cellA"])
    assert after is None
    assert (done.events, done.calls) == ([], [])
    assert done.counts == TaskCounts(pruned=1, kicked=0, pending=0, running=0, completed=0, resolving=0)


# -- the worked example ------------------------------------------------------------------------

EXAMPLE = [
    row("pending-old", PENDING, 61, url="http://cb"),
    row("pending-stale", PENDING, 70, cell="cellX"),
    row("pending-young", PENDING, 10),
    row("pending-rejected", PENDING, 20),
    *(row(f"lost-{number}", RUNNING, cell="cellZ" if number else "", url="http://cb") for number in range(7)),
    row("fresh", COMPLETED, updated=10, completed=10, url="http://cb"),
    row("kicked-cb", COMPLETED, updated=40, completed=40, url="http://cb"),
    row("kicked", COMPLETED, updated=40, completed=40),
    row("expired", COMPLETED, updated=10, completed=130),
    row("expired-cb", COMPLETED, updated=40, completed=130, url="http://cb"),
    row("expired-zero", COMPLETED, updated=10),
    row("resolving", RESOLVING, updated=10, url="http://cb"),
    row("demoted-cb", RESOLVING, updated=40, completed=50, url="http://cb"),
    row("demoted", RESOLVING, updated=40, completed=50),
    row("demoted-expired", RESOLVING, updated=40, completed=130, url="http://cb"),
    *(replace(bad, guid=f"bad-{number}") for number, bad in enumerate(PRUNED)),
    row("bad-running", RUNNING, cell="cellA", bad=True),
    row("bad-fresh", COMPLETED, updated=10, completed=10, bad=True),
    row("bad-resolving", RESOLVING, updated=10, bad=True),
]


def test_the_worked_example_without_any_cell() -> None:
    state = holding(EXAMPLE)
    done = converge(state)
    assert done.counts is not None
    assert (done.counts.pruned, done.counts.kicked) == (11, 15)
    assert Counter(event.name for event in done.events) == {"task_changed": 12, "task_removed": 4}
    auctions, *completions = done.calls
    assert isinstance(auctions, AuctionTasks)
    assert [start.task_guid for start in auctions.starts] == ["pending-young", "pending-rejected"]
    assert [call.task.guid for call in completions if isinstance(call, Complete)] == ["kicked-cb", "demoted-cb"]
    left = {task.guid for task in state.tasks}
    gone = {"expired", "expired-cb", "expired-zero", "demoted-expired", "bad-running"} | {f"bad-{n}" for n in range(6)}
    assert left == {task.guid for task in EXAMPLE} - gone
    assert done.counts == TaskCounts(11, 15, pending=2, running=0, completed=15, resolving=2)


def test_events_leave_in_the_order_of_the_rules() -> None:
    done = converge(holding(reversed(EXAMPLE)))
    reasons = [event.after.failure_reason if event.after else event.name for event in done.events]
    assert reasons == [EXPIRED] * 2 + [LOST] * 7 + [""] * 3 + ["task_removed"] * 4


def test_without_configured_durations_everything_is_old() -> None:
    state = holding([row("p", PENDING, 1), row("r", RESOLVING, updated=1, completed=1)])
    done = converge(state, context=Context(NOW, random_guid, "", Settings()))
    assert [event.name for event in done.events] == ["task_changed", "task_changed", "task_removed"]


# -- bounds and what happens in between --------------------------------------------------------


def test_an_empty_pass_makes_no_calls() -> None:
    done = converge(State())
    assert done.calls == []
    assert [step.name for step in done.steps] == [*(rule.name for rule in task_convergence.RULES), "count"]
    assert done.counts == TaskCounts(0, 0, 0, 0, 0, 0)


def test_commands_are_bounded_and_the_auction_is_one() -> None:
    number = 2 * TASKS_PER_COMMAND + 1
    state = holding(
        [row(f"lost{n}", RUNNING) for n in range(number)]
        + [row(f"young{n}", PENDING, 1) for n in range(number)]
        + [row(f"done{n}", COMPLETED, updated=40, completed=40, url="http://cb") for n in range(number)]
    )
    sizes: list[int] = []
    done = converge(state, between=lambda step: sizes.append(len(state.take())))
    assert max(sizes) == TASKS_PER_COMMAND
    assert sum(sizes) == number
    assert [len(call.starts) for call in done.calls if isinstance(call, AuctionTasks)] == [number]
    assert sum(isinstance(call, Complete) for call in done.calls) == number
    assert done.counts is not None
    assert done.counts.kicked == 3 * number
    names = [step.name for step in done.steps]
    assert names[-5:] == ["count", "request-auctions"] + ["submit-callbacks"] * 3


def test_a_task_that_changes_in_between_is_passed_over() -> None:
    state = holding([row("gone", PENDING, 61), row("started", PENDING, 61), row("still", PENDING, 61)])

    def interfere(step: Step) -> None:
        if step.name == "expire-pending" and state.tasks.get("gone") is not None:
            state.tasks.remove("gone")
            tasks.start(state, models.StartTaskRequest(task_guid="started", cell_id="cellA"), CONTEXT)

    done = converge(state, ["cellA"], between=interfere)
    assert [event.after.guid for event in done.events] == ["still"]
    assert done.counts == TaskCounts(pruned=0, kicked=1, pending=0, running=1, completed=1, resolving=0)


def test_a_step_that_fails_does_not_affect_the_next_ones() -> None:
    """A selection that never ran leaves nothing to work on from the rule before."""
    state = holding([row("a", PENDING, 61), row("b", RUNNING)])
    convergence, failed = TaskConvergence([]), []
    for step in convergence.steps():
        if step.name == "auction-pending":
            failed.append(step.name)
            continue
        step.command(state, None, CONTEXT)
    assert failed == ["auction-pending"]
    assert convergence.counts == TaskCounts(pruned=0, kicked=2, pending=0, running=0, completed=2, resolving=0)


def test_steps_that_run_again_after_they_were_undone_count_once() -> None:
    once, state, repeated = converge(holding(EXAMPLE)), holding(EXAMPLE), Pass()
    convergence = TaskConvergence([])
    for step in convergence.steps():
        step.command(state, None, CONTEXT)
        state.undo(state.take())
        outcome = step.command(state, None, CONTEXT)
        state.take()
        repeated.events += outcome.events
        repeated.calls += outcome.calls
    assert (convergence.counts, repeated.events, repeated.calls) == (once.counts, once.events, once.calls)
