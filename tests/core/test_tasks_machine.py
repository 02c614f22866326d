"""Tasks in random order: only legal transitions, one event for each change, and every change can be undone."""

from typing import Any

from bbs_protos import models_pb2 as models
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bbs_server.core import tasks
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import encode
from bbs_server.core.errors import Refused
from bbs_server.core.outcome import AuctionTasks, CancelTask, Command, Complete, Count, Event, Hub, Outcome
from bbs_server.core.records import Task, TaskState
from bbs_server.core.state import Change, State
from bbs_server.core.task_convergence import TaskConvergence
from bbs_server.store.guids import random_guid

SECOND = 10**9
GUIDS, CELLS = st.sampled_from(["t1", "t2", "t3"]), st.sampled_from(["c1", "c2"])
TEXTS = st.sampled_from(["", "why", "x" * 1024, "nul\0"])
SPANS = st.integers(0, 90).map(lambda seconds: seconds * SECOND)

NONE = None
PENDING, RUNNING, COMPLETED, RESOLVING = (
    TaskState.PENDING,
    TaskState.RUNNING,
    TaskState.COMPLETED,
    TaskState.RESOLVING,
)
LEGAL: dict[str, set[tuple[TaskState | None, TaskState | None]]] = {
    "desire": {(NONE, PENDING)},
    "start": {(PENDING, RUNNING)},
    "cancel": {(PENDING, COMPLETED), (RUNNING, COMPLETED)},
    "fail": {(PENDING, COMPLETED), (RUNNING, COMPLETED)},
    "reject": {(PENDING, PENDING), (RUNNING, PENDING), (PENDING, COMPLETED), (RUNNING, COMPLETED)},
    "complete": {(RUNNING, COMPLETED)},
    "resolving": {(COMPLETED, RESOLVING)},
    "delete": {(RESOLVING, NONE)},
    "converge": {(PENDING, COMPLETED), (RUNNING, COMPLETED), (RESOLVING, COMPLETED), (COMPLETED, NONE)},
}
"""What each operation may do to a task whose definition can be decoded."""

NAMES = {(False, True): "task_created", (True, True): "task_changed", (True, False): "task_removed"}


def snapshot(state: State) -> tuple[dict[str, Task], dict[str, dict[Any, set[str]]]]:
    """The tasks and the indexes of the table."""
    indexes = {
        index: {value: {task.guid for task in state.tasks.where(index, value)} for value in state.tasks.values(index)}
        for index in ("domain", "cell_id", "state")
    }
    return {task.guid: task for task in state.tasks}, indexes


def phase(task: Task | None) -> TaskState | None:
    return None if task is None else TaskState(task.state)


def is_last_reject(operation: str, change: Change, event: Event) -> bool:
    """Its event shows the failure only, from Pending with the rejection counted already."""
    return (
        operation == "reject"
        and change.after.state == COMPLETED
        and event.before.state == PENDING
        and event.before.rejection_count == change.before.rejection_count + 1 == change.after.rejection_count
    )


class Tasks(RuleBasedStateMachine):
    """Each command is executed, taken back, found to have left no trace, and executed again."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.now = 1_700_000_000 * SECOND
        self.settings = Settings()
        self.history: list[Change] = []

    def teardown(self) -> None:
        """Everything together can be taken back as well."""
        self.state.undo(self.history)
        assert snapshot(self.state) == ({}, {"domain": {}, "cell_id": {}, "state": {}})

    @initialize(retries=st.integers(0, 2), kick=SPANS, pending=SPANS, completed=SPANS)
    def configure(self, retries: int, kick: int, pending: int, completed: int) -> None:
        self.settings = Settings(retries, kick, pending, completed)

    # -- rules -------------------------------------------------------------------------------

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(guid=GUIDS, domain=st.sampled_from(["d1", "d2"]), url=st.sampled_from(["", "http://cb"]))
    def desire(self, guid: str, domain: str, url: str) -> None:
        definition = models.TaskDefinition(root_fs="preloaded:fs", completion_callback_url=url)
        self.run("desire", models.DesireTaskRequest(task_guid=guid, domain=domain, task_definition=definition))

    @rule(guid=GUIDS, cell=CELLS)
    def start(self, guid: str, cell: str) -> None:
        self.run("start", models.StartTaskRequest(task_guid=guid, cell_id=cell))

    @rule(guid=GUIDS)
    def cancel(self, guid: str) -> None:
        self.run("cancel", models.TaskGuidRequest(task_guid=guid))

    @rule(guid=GUIDS, reason=TEXTS)
    def fail(self, guid: str, reason: str) -> None:
        self.run("fail", models.FailTaskRequest(task_guid=guid, failure_reason=reason))

    @rule(guid=GUIDS, reason=TEXTS)
    def reject(self, guid: str, reason: str) -> None:
        self.run("reject", models.RejectTaskRequest(task_guid=guid, rejection_reason=reason))

    @rule(guid=GUIDS, cell=CELLS, failed=st.booleans(), reason=TEXTS, result=TEXTS)
    def complete(self, guid: str, cell: str, failed: bool, reason: str, result: str) -> None:
        report: dict[str, Any] = {"failed": failed, "failure_reason": reason, "result": result}
        self.run("complete", models.CompleteTaskRequest(task_guid=guid, cell_id=cell, **report))

    @rule(guid=GUIDS)
    def resolving(self, guid: str) -> None:
        self.run("resolving", models.TaskGuidRequest(task_guid=guid))

    @rule(guid=GUIDS)
    def delete(self, guid: str) -> None:
        self.run("delete", models.TaskGuidRequest(task_guid=guid))

    @rule(guid=GUIDS)
    def damage(self, guid: str) -> None:
        """Somebody else writes a row that cannot be decoded."""
        if self.state.tasks.get(guid) is None:
            broken = Task(guid, "d1", TaskState.PENDING, self.now, self.now, None, broken="damaged")
            self.state.tasks.adopt(guid, broken)
            self.history.append(Change("tasks", guid, None, broken))

    @rule(cells=st.sets(CELLS))
    def converge(self, cells: set[str]) -> None:
        convergence = TaskConvergence([models.CellPresence(cell_id=cell) for cell in cells])
        for step in convergence.steps():
            outcome, changes = self.execute(step.command, None)
            decodable = [change for change in changes if change.before.definition is not None]
            self.agree("converge", decodable, outcome)
            assert all(change.after is None for change in changes if change.before.definition is None)
        assert convergence.counts is not None
        counts = convergence.counts
        states = [task.state for task in self.state.tasks]
        assert [counts.pending, counts.running, counts.completed, counts.resolving] == [
            states.count(state) for state in (PENDING, RUNNING, COMPLETED, RESOLVING)
        ]

    # -- what holds for each command -----------------------------------------------------------

    def run(self, operation: str, request: Any) -> None:
        before = self.state.tasks.get(request.task_guid)
        try:
            outcome, changes = self.execute(getattr(tasks, operation), request)
        except Refused:
            assert self.state.take() == ()
            assert self.state.tasks.get(request.task_guid) is before
            return
        answer: Any = outcome.answer
        if answer.HasField("error"):
            assert operation == "reject"
            assert changes == []
            assert encode(outcome.events[0].before.message()) == b"\x0a\x00"
            return
        self.agree(operation, changes, outcome)
        self.follow_ups(operation, request, before, changes, outcome)

    def execute(self, command: Command, request: Any) -> tuple[Outcome, list[Change]]:
        context = Context(self.now, random_guid, "trace", self.settings)
        before = snapshot(self.state)
        if request is not None:
            # A step of convergence remembers what it did and cannot be repeated.
            command(self.state, request, context)
            self.state.undo(self.state.take())
            assert snapshot(self.state) == before
        outcome = command(self.state, request, context)
        changes = list(self.state.take())
        after = snapshot(self.state)
        self.state.undo(changes)
        assert snapshot(self.state) == before
        for change in changes:
            self.state.tasks.adopt(change.key, change.after)
        assert snapshot(self.state) == after
        self.history += changes
        return outcome, changes

    def agree(self, operation: str, changes: list[Change], outcome: Outcome) -> None:
        """Each change is legal and has exactly one event that shows it."""
        assert len(changes) == len(outcome.events)
        for change, event in zip(changes, outcome.events, strict=True):
            assert (phase(change.before), phase(change.after)) in LEGAL[operation]
            assert event.hub is Hub.TASK
            assert event.name == NAMES[change.before is not None, change.after is not None]
            assert event.after is change.after
            assert event.before is change.before or is_last_reject(operation, change, event)

    def follow_ups(
        self, operation: str, request: Any, before: Task | None, changes: list[Change], outcome: Outcome
    ) -> None:
        calls = {type(call) for call in outcome.calls}
        assert len(calls) == len(outcome.calls)
        assert (AuctionTasks in calls) == (operation == "desire")
        assert (Count in calls) == (operation in ("start", "complete") and changes != [])
        assert (CancelTask in calls) == (operation == "cancel" and before is not None and before.cell_id != "")
        completed = [change.after for change in changes if change.after and change.after.state == COMPLETED]
        asked = [task for task in completed if tasks.decoded(task).completion_callback_url]
        assert [call.task for call in outcome.calls if isinstance(call, Complete)] == asked

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def rows_make_sense(self) -> None:
        for task in self.state.tasks:
            assert task.created_at <= task.updated_at <= self.now
            assert task.state in (PENDING, RUNNING, COMPLETED, RESOLVING)
            if task.state == RUNNING:
                assert task.cell_id
            if task.state in (COMPLETED, RESOLVING):
                assert task.created_at <= task.first_completed_at <= task.updated_at
            else:
                assert task.first_completed_at == 0

    @invariant()
    def indexes_agree_with_the_rows(self) -> None:
        rows, indexes = snapshot(self.state)
        for index, buckets in indexes.items():
            for value, guids in buckets.items():
                assert guids == {guid for guid, task in rows.items() if getattr(task, index) == value}


TestTasks = Tasks.TestCase
TestTasks.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
