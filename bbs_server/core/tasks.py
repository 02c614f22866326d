"""Tasks: their state machine, the commands that drive it and the checks of their requests (tasks.md).

`TRANSITIONS` is the machine. Beside it: `desire` brings a task in, `delete` takes it out, a `start` by the
cell that has the task already changes nothing, `complete` is refused to another cell, and a `reject` that
exceeds the limit is followed by a `fail`. Queries are in `task_reads`, convergence in `task_convergence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core.context import Context
from bbs_server.core.definitions import check_task_definition, is_guid
from bbs_server.core.encoding import encode
from bbs_server.core.errors import (
    DESERIALIZE,
    INVALID_REQUEST,
    RESOURCE_EXISTS,
    RESOURCE_NOT_FOUND,
    Error,
    ErrorType,
    Refused,
    invalid_transition,
)
from bbs_server.core.go_json import text
from bbs_server.core.outcome import AuctionTasks, CancelTask, Complete, Count, Event, Hub, Outcome, TaskStart
from bbs_server.core.problems import invalid
from bbs_server.core.records import Task, TaskState
from bbs_server.core.state import State
from bbs_server.core.task_reads import get_r2, get_r3, list_r2, list_r3
from bbs_server.core.texts import column, lookup, spelled, truncate

PENDING, RUNNING, COMPLETED, RESOLVING = (
    TaskState.PENDING,
    TaskState.RUNNING,
    TaskState.COMPLETED,
    TaskState.RESOLVING,
)


@dataclass(frozen=True, slots=True)
class Transition:
    """The states an operation may find and the one it leads to.

    From any other state it is refused: with `refusal`, or with the transition that it would have been.
    """

    sources: tuple[TaskState, ...]
    target: TaskState
    refusal: Error | None = None

    def refused(self, state: int) -> Error | None:
        """Why the operation must not be done in this state; None if it may."""
        if state in self.sources:
            return None
        return self.refusal or invalid_transition(state_name(state), state_name(self.target))


TRANSITIONS: Mapping[str, Transition] = {
    "start": Transition((PENDING,), RUNNING),
    "cancel": Transition((PENDING, RUNNING), COMPLETED),
    "fail": Transition((PENDING, RUNNING), COMPLETED),
    "complete": Transition((RUNNING,), COMPLETED),
    "reject": Transition((PENDING, RUNNING), PENDING, refusal=INVALID_REQUEST),
    "resolving": Transition((COMPLETED,), RESOLVING),
    # Quirk: a refused delete names Resolving as its target.
    "delete": Transition((RESOLVING,), RESOLVING),
}
"""tasks.md section 5."""

_STATE_NAMES = {int(state): state.name.capitalize() for state in TaskState}

_EMPTY = Task(guid="", domain="", state=TaskState.INVALID, created_at=0, updated_at=0, definition=b"")


def state_name(state: int) -> str:
    """A state as errors spell it; a number that is no state is spelled as itself."""
    return _STATE_NAMES.get(state) or str(state)


# -- request checks ----------------------------------------------------------------------


def check_desire(request: models.DesireTaskRequest) -> list[str]:
    """tasks.md section 3; the definition's own problems come last."""
    problems = [*_unless(is_guid(request.task_guid), "task_guid"), *_unless(request.domain, "domain")]
    if request.HasField("task_definition"):
        return problems + check_task_definition(request.task_definition)
    return [*problems, invalid("task_definition")]


def check_start(request: models.StartTaskRequest | models.CompleteTaskRequest) -> list[str]:
    """Of start and complete."""
    return [*_unless(is_guid(request.task_guid), "task_guid"), *_unless(request.cell_id, "cell_id")]


def check_fail(request: models.FailTaskRequest) -> list[str]:
    return [*_unless(is_guid(request.task_guid), "task_guid"), *_unless(request.failure_reason, "failure_reason")]


def check_reject(request: models.RejectTaskRequest) -> list[str]:
    """Quirk: a missing rejection_reason is reported as failure_reason."""
    return [*_unless(is_guid(request.task_guid), "task_guid"), *_unless(request.rejection_reason, "failure_reason")]


def check_task_guid(request: models.TaskGuidRequest | models.TaskByGuidRequest) -> list[str]:
    """Of cancel, resolving, delete and get: any text will do."""
    return _unless(request.task_guid, "task_guid")


CHECKS: Mapping[type, Callable[[Any], list[str]]] = {
    models.DesireTaskRequest: check_desire,
    models.StartTaskRequest: check_start,
    models.CompleteTaskRequest: check_start,
    models.FailTaskRequest: check_fail,
    models.RejectTaskRequest: check_reject,
    models.TaskGuidRequest: check_task_guid,
    models.TaskByGuidRequest: check_task_guid,
}


def _unless(valid: object, name: str) -> list[str]:
    return [] if valid else [invalid(name)]


# -- commands ----------------------------------------------------------------------------


def desire(state: State, request: models.DesireTaskRequest, context: Context) -> Outcome:
    """Insert a Pending task and ask for its placement."""
    # The database sees bad bytes in any parameter before it looks at any length.
    domain = intern(column(request.domain))
    guid = column(request.task_guid)
    if state.tasks.get(guid) is not None:
        raise Refused(RESOURCE_EXISTS)
    definition = request.task_definition
    task = Task(
        guid=guid,
        domain=domain,
        state=PENDING,
        created_at=context.now,
        updated_at=context.now,
        definition=encode(definition),
    )
    state.tasks.put(task)
    return Outcome(
        models.TaskLifecycleResponse(),
        (Event(Hub.TASK, "task_created", after=task),),
        (AuctionTasks((auction_start(guid, domain, definition),)),),
    )


def start(state: State, request: models.StartTaskRequest, context: Context) -> Outcome:
    """Give a Pending task to a cell; a Running one of the same cell stays as it is."""
    before = _task(state, request.task_guid)
    if before.state == RUNNING and before.cell_id == request.cell_id:
        return Outcome(models.StartTaskResponse())
    _require("start", before)
    cell_id = intern(column(request.cell_id))
    state.tasks.put(after := _moved(before, RUNNING, context.now, cell_id))
    return Outcome(models.StartTaskResponse(should_start=True), (changed(before, after),), (Count("started", cell_id),))


def cancel(state: State, request: models.TaskGuidRequest, context: Context) -> Outcome:
    """Complete the task as cancelled, and tell the cell that its row names.

    Quirk: a rejected task still names its last cell.
    """
    before = _task(state, request.task_guid)
    _require("cancel", before)
    state.tasks.put(after := completed(before, context.now, "task was cancelled"))
    told = (CancelTask(before.guid, before.cell_id, context.request_id),) if before.cell_id else ()
    return Outcome(models.TaskLifecycleResponse(), (changed(before, after),), (*callbacks(after), *told))


def fail(state: State, request: models.FailTaskRequest, context: Context) -> Outcome:
    """Complete the task as failed, whatever cell has it; the cell is not told."""
    return _fail(state, _task(state, request.task_guid), request.failure_reason, context.now)


def complete(state: State, request: models.CompleteTaskRequest, context: Context) -> Outcome:
    """Complete the task with what its cell reports."""
    before = _task(state, request.task_guid)
    cell_id = request.cell_id
    if before.state == RUNNING and before.cell_id != cell_id:
        raise Refused(_on_different_cell(before.cell_id, cell_id))
    _require("complete", before)
    after = completed(
        before,
        context.now,
        _reason(request.failure_reason),
        failed=request.failed,
        result=column(request.result, None),
    )
    state.tasks.put(after)
    count = Count("failed" if request.failed else "succeeded", before.cell_id)
    return Outcome(models.TaskLifecycleResponse(), (changed(before, after),), (count, *callbacks(after)))


def reject(state: State, request: models.RejectTaskRequest, context: Context) -> Outcome:
    """Put the task back to Pending; fail it when it was rejected `max_task_retries` times before.

    A failed one announces its failure only, from the state that the rejection left it in.
    """
    before = _task(state, request.task_guid)
    refused = TRANSITIONS["reject"].refused(before.state)
    after = before if refused else _rejected(before, context.now, _reason(request.rejection_reason))
    if before.rejection_count >= context.settings.max_task_retries:
        return _fail(state, after, request.rejection_reason, context.now)
    if refused is None:
        state.tasks.put(after)
        return Outcome(models.TaskLifecycleResponse(), (changed(before, after),))
    # Quirk: a refused reject announces a change, from an empty task to the unchanged one.
    answer = models.TaskLifecycleResponse(error=models.Error(type=int(refused.type), message=refused.message))  # type: ignore[arg-type]
    return Outcome(answer, (changed(_EMPTY, after),))


def resolving(state: State, request: models.TaskGuidRequest, context: Context) -> Outcome:
    """Mark a Completed task as being resolved by somebody."""
    before = _task(state, request.task_guid)
    _require("resolving", before)
    state.tasks.put(after := _moved(before, RESOLVING, context.now, before.cell_id))
    return Outcome(models.TaskLifecycleResponse(), (changed(before, after),))


def delete(state: State, request: models.TaskGuidRequest, context: Context) -> Outcome:
    """Remove a Resolving task."""
    before = _task(state, request.task_guid)
    _require("delete", before)
    state.tasks.remove(before.guid)
    return Outcome(models.TaskLifecycleResponse(), (removed(before),))


# -- what commands and convergence share ---------------------------------------------------


def changed(before: Task, after: Task) -> Event:
    return Event(Hub.TASK, "task_changed", before, after)


def removed(task: Task) -> Event:
    return Event(Hub.TASK, "task_removed", before=task)


def callbacks(task: Task) -> tuple[Complete, ...]:
    """The callback of a completed task, if its definition asks for one."""
    return (Complete(task),) if decoded(task).completion_callback_url else ()


def decoded(task: Task) -> models.TaskDefinition:
    """The definition of a task whose column could be decoded."""
    return models.TaskDefinition.FromString(task.definition or b"")


def auction_start(guid: str, domain: str, definition: models.TaskDefinition) -> TaskStart:
    """The task as an auction request shows it (tasks.md 9.1)."""
    return TaskStart(
        task_guid=guid,
        domain=domain,
        placement_tags=tuple(map(text, definition.placement_tags)) or None,
        volume_drivers=tuple([text(mount.driver) for mount in definition.volume_mounts]),
        rootfs=text(definition.root_fs),
        memory_mb=definition.memory_mb,
        disk_mb=definition.disk_mb,
        max_pids=definition.max_pids,
    )


# The records are built field by field: `replace` takes twice as long, and this is the busiest path of all.


def completed(task: Task, now: int, reason: str, *, failed: bool = True, result: str = "", cell_id: str = "") -> Task:
    """The task Completed at `now` (ns)."""
    return Task(
        guid=task.guid,
        domain=task.domain,
        state=COMPLETED,
        created_at=task.created_at,
        updated_at=now,
        definition=task.definition,
        first_completed_at=now,
        cell_id=cell_id,
        result=result,
        failed=failed,
        failure_reason=reason,
        rejection_count=task.rejection_count,
        rejection_reason=task.rejection_reason,
    )


def _moved(task: Task, target: TaskState, now: int, cell_id: str) -> Task:
    return Task(
        guid=task.guid,
        domain=task.domain,
        state=target,
        created_at=task.created_at,
        updated_at=now,
        definition=task.definition,
        first_completed_at=task.first_completed_at,
        cell_id=cell_id,
        result=task.result,
        failed=task.failed,
        failure_reason=task.failure_reason,
        rejection_count=task.rejection_count,
        rejection_reason=task.rejection_reason,
    )


def _rejected(task: Task, now: int, reason: str) -> Task:
    """Pending again. Quirk: it keeps the id of the cell that had it."""
    return Task(
        guid=task.guid,
        domain=task.domain,
        state=PENDING,
        created_at=task.created_at,
        updated_at=now,
        definition=task.definition,
        first_completed_at=task.first_completed_at,
        cell_id=task.cell_id,
        result=task.result,
        failed=task.failed,
        failure_reason=task.failure_reason,
        rejection_count=task.rejection_count + 1,
        rejection_reason=reason,
    )


# -- steps of the commands -----------------------------------------------------------------


def _task(state: State, guid: str | bytes) -> Task:
    """The task to work on. Raises Refused if there is none or its definition cannot be decoded."""
    task = state.tasks.get(lookup(guid))
    if task is None:
        raise Refused(RESOURCE_NOT_FOUND)
    if task.definition is None:
        raise Refused(DESERIALIZE)
    return task


def _require(operation: str, task: Task) -> None:
    if refused := TRANSITIONS[operation].refused(task.state):
        raise Refused(refused)


def _fail(state: State, before: Task, reason: str | bytes, now: int) -> Outcome:
    _require("fail", before)
    state.tasks.put(after := completed(before, now, _reason(reason)))
    return Outcome(models.TaskLifecycleResponse(), (changed(before, after),), callbacks(after))


def _reason(text: str | bytes) -> str:
    """A failure or rejection reason as its column holds it; only what is left of it must be valid."""
    return lookup(truncate(text))


def _on_different_cell(actual: str, given: str | bytes) -> Error:
    return Error(ErrorType.RUNNING_ON_DIFFERENT_CELL, f"Running on cell {actual} not {spelled(given)}")


__all__ = [
    "CHECKS",
    "TRANSITIONS",
    "Transition",
    "auction_start",
    "callbacks",
    "cancel",
    "changed",
    "check_desire",
    "check_fail",
    "check_reject",
    "check_start",
    "check_task_guid",
    "complete",
    "completed",
    "decoded",
    "delete",
    "desire",
    "fail",
    "get_r2",
    "get_r3",
    "list_r2",
    "list_r3",
    "reject",
    "removed",
    "resolving",
    "start",
    "state_name",
]
