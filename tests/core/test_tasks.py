"""Task commands, one by one: the state machine, the columns, the events and the calls (tasks.md 3 to 7)."""

from collections.abc import Callable
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import tasks
from bbs_server.core.context import Context, Settings
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
    unknown,
)
from bbs_server.core.outcome import AuctionTasks, CancelTask, Complete, Count, Event, Hub, Outcome, TaskStart
from bbs_server.core.records import Task, TaskState, replace
from bbs_server.core.state import Change, State
from bbs_server.store.guids import random_guid

CREATED, NOW = 1_700_000_000 * 10**9, 1_700_000_100 * 10**9
NUL = unknown('ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)')
BAD_BYTE = unknown('ERROR: invalid byte sequence for encoding "UTF8": 0xff (SQLSTATE 22021)')
OUTSIDE = 17
"""A number that no state has."""


def context(retries: int = 0) -> Context:
    return Context(NOW, random_guid, "trace", Settings(max_task_retries=retries))


def definition(**fields: Any) -> models.TaskDefinition:
    made = models.TaskDefinition(root_fs="preloaded:fs", memory_mb=256, disk_mb=512, **fields)
    made.action.run_action.path = "/bin/true"
    made.action.run_action.user = "vcap"
    return made


def row(state: int, cell_id: str = "", **fields: Any) -> Task:
    """A task `t` whose every column differs from what an operation writes."""
    encoded = encode(definition(completion_callback_url=fields.pop("url", "")))
    made = Task("t", "dom", state, CREATED, CREATED + 1, encoded, cell_id=cell_id, rejection_count=2)
    return replace(made, rejection_reason="before", result="old", failure_reason="older", **fields)


def holding(task: Task | None) -> State:
    state = State()
    if task is not None:
        state.tasks.put(task)
        state.take()
    return state


def requests(guid: str = "t") -> dict[str, Any]:
    return {
        "desire": models.DesireTaskRequest(task_guid=guid, domain="dom", task_definition=definition()),
        "start": models.StartTaskRequest(task_guid=guid, cell_id="here"),
        "cancel": models.TaskGuidRequest(task_guid=guid),
        "fail": models.FailTaskRequest(task_guid=guid, failure_reason="why"),
        "reject": models.RejectTaskRequest(task_guid=guid, rejection_reason="why"),
        "complete": models.CompleteTaskRequest(task_guid=guid, cell_id="here", result="res"),
        "resolving": models.TaskGuidRequest(task_guid=guid),
        "delete": models.TaskGuidRequest(task_guid=guid),
    }


COMMANDS: dict[str, Callable[[State, Any, Context], Outcome]] = {
    name: getattr(tasks, name)
    for name in ("desire", "start", "cancel", "fail", "reject", "complete", "resolving", "delete")
}


def run(state: State, operation: str, request: Any = None, retries: int = 9) -> Outcome:
    return COMMANDS[operation](state, requests()[operation] if request is None else request, context(retries))


def refusal(state: State, operation: str, request: Any = None, retries: int = 9) -> Error:
    with pytest.raises(Refused) as caught:
        run(state, operation, request, retries)
    assert state.take() == ()
    return caught.value.error


# -- the table -------------------------------------------------------------------------------

FOUND: dict[str, Task | None] = {
    "none": None,
    "invalid": row(TaskState.INVALID),
    "pending": row(TaskState.PENDING),
    "here": row(TaskState.RUNNING, "here"),
    "elsewhere": row(TaskState.RUNNING, "there"),
    "completed": row(TaskState.COMPLETED),
    "resolving": row(TaskState.RESOLVING),
}

PENDING, RUNNING, COMPLETED, RESOLVING = (
    TaskState.PENDING,
    TaskState.RUNNING,
    TaskState.COMPLETED,
    TaskState.RESOLVING,
)
GONE, SAME, NO = "gone", "same", "no transition"
NF, EXISTS, BAD = RESOURCE_NOT_FOUND, RESOURCE_EXISTS, INVALID_REQUEST
OTHER = Error(ErrorType.RUNNING_ON_DIFFERENT_CELL, "Running on cell there not here")
NAMES = ("", "Invalid", "Pending", "Running", "Running", "Completed", "Resolving")


def no(source: str, target: str) -> Error:
    return Error(ErrorType.INVALID_STATE_TRANSITION, f"Cannot transition from {source} to {target}")


# fmt: off
TABLE: dict[str, tuple[Any, ...]] = {
    # (what NO names)            none     invalid  pending    here       elsewhere  completed  resolving
    "desire":      ("",          PENDING, EXISTS,  EXISTS,    EXISTS,    EXISTS,    EXISTS,    EXISTS),
    "start":       ("Running",   NF,      NO,      RUNNING,   SAME,      NO,        NO,        NO),
    "cancel":      ("Completed", NF,      NO,      COMPLETED, COMPLETED, COMPLETED, NO,        NO),
    "fail":        ("Completed", NF,      NO,      COMPLETED, COMPLETED, COMPLETED, NO,        NO),
    "reject":      ("",          NF,      BAD,     PENDING,   PENDING,   PENDING,   BAD,       BAD),
    "last reject": ("Completed", NF,      NO,      COMPLETED, COMPLETED, COMPLETED, NO,        NO),
    "complete":    ("Completed", NF,      NO,      NO,        COMPLETED, OTHER,     NO,        NO),
    "resolving":   ("Resolving", NF,      NO,      NO,        NO,        NO,        RESOLVING, NO),
    "delete":      ("Resolving", NF,      NO,      NO,        NO,        NO,        NO,        GONE),
}
# fmt: on

CELLS = [
    pytest.param(operation, found, no(name, target) if expected is NO else expected, id=f"{operation}-{found}")
    for operation, (target, *expectations) in TABLE.items()
    for found, name, expected in zip(FOUND, NAMES, expectations, strict=True)
]


@pytest.mark.parametrize(("operation", "found", "expected"), CELLS)
def test_each_operation_in_each_state(operation: str, found: str, expected: Any) -> None:
    before = FOUND[found]
    state = holding(before)
    command, retries = ("reject", 2) if operation == "last reject" else (operation, 9)
    if isinstance(expected, Error) and expected is not BAD:
        assert refusal(state, command, retries=retries) == expected
        assert state.tasks.get("t") is before
        return
    outcome = run(state, command, retries=retries)
    changes, after = state.take(), state.tasks.get("t")
    answer: Any = outcome.answer
    if expected is BAD:
        assert (answer.error.type, answer.error.message) == (BAD.type, BAD.message)
        assert changes == ()
        assert after is before
        return
    assert not answer.HasField("error")
    if expected is SAME:
        assert changes == ()
        assert (outcome.events, outcome.calls) == ((), ())
        assert after is before
        assert answer == models.StartTaskResponse()
        return
    assert changes == (Change("tasks", "t", before, after),)
    assert (after is None) if expected is GONE else (after is not None and after.state == expected)
    assert len(outcome.events) == 1


def test_a_state_that_has_no_name_is_spelled_as_its_number() -> None:
    assert refusal(holding(row(OUTSIDE)), "start") == no("17", "Running")


# -- columns, events and calls of each operation -----------------------------------------------


def event_of(outcome: Outcome, name: str) -> Event:
    (event,) = outcome.events
    assert (event.hub, event.name, event.trace_id) == (Hub.TASK, name, "")
    return event


def moved(outcome: Outcome, state: State, before: Task) -> Task:
    """The row after the change, which the event has to show as well."""
    event = event_of(outcome, "task_changed")
    after = state.tasks.get("t")
    assert after is not None
    assert (event.before, event.after) == (before, after)
    return after


def test_desire_inserts_and_asks_for_an_auction() -> None:
    state = State()
    asked = definition(
        max_pids=3,
        placement_tags=["b", "a"],
        volume_mounts=[models.VolumeMount(driver=driver) for driver in ("d1", "", "d1")],
    )
    outcome = run(state, "desire", models.DesireTaskRequest(task_guid="t", domain="dom", task_definition=asked))
    stored = state.tasks.get("t")
    assert stored == Task("t", "dom", TaskState.PENDING, NOW, NOW, encode(asked))
    assert event_of(outcome, "task_created").after is stored
    start = TaskStart("t", "dom", ("b", "a"), ("d1", "", "d1"), "preloaded:fs", 256, 512, 3)
    assert outcome.calls == (AuctionTasks((start,)),)
    assert outcome.answer == models.TaskLifecycleResponse()


def test_an_auction_without_tags_has_none() -> None:
    (call,) = run(State(), "desire").calls
    assert isinstance(call, AuctionTasks)
    assert (call.starts[0].placement_tags, call.starts[0].volume_drivers) == (None, ())


def test_bytes_that_are_not_text_survive_in_a_definition_but_are_replaced_in_an_auction() -> None:
    asked = models.TaskDefinition.FromString(encode(definition()) + b"\x0a\x04a\xe2\x82b")
    state = State()
    outcome = run(state, "desire", models.DesireTaskRequest(task_guid="t", domain="dom", task_definition=asked))
    stored, (call,) = state.tasks.get("t"), outcome.calls
    assert stored is not None
    assert stored.definition is not None
    assert b"a\xe2\x82b" in stored.definition
    assert isinstance(call, AuctionTasks)
    assert call.starts[0].rootfs == "a\ufffd\ufffdb"


def test_start_gives_the_task_to_the_cell() -> None:
    before = row(TaskState.PENDING, "stale")
    state = holding(before)
    outcome = run(state, "start")
    after = moved(outcome, state, before)
    assert after == replace(before, state=TaskState.RUNNING, updated_at=NOW, cell_id="here")
    assert outcome.answer == models.StartTaskResponse(should_start=True)
    assert outcome.calls == (Count("started", "here"),)


CANCELLED: dict[str, Any] = {"failed": True, "failure_reason": "task was cancelled", "result": "", "cell_id": ""}
DONE: dict[str, Any] = {"state": TaskState.COMPLETED, "updated_at": NOW, "first_completed_at": NOW}


@pytest.mark.parametrize("url", ["", "http://cb"])
@pytest.mark.parametrize("found", [row(TaskState.PENDING), row(TaskState.RUNNING, "here"), row(TaskState.PENDING, "z")])
def test_cancel_tells_the_cell_that_the_row_names(found: Task, url: str) -> None:
    before = replace(found, definition=encode(definition(completion_callback_url=url)))
    state = holding(before)
    outcome = run(state, "cancel")
    after = moved(outcome, state, before)
    assert after == replace(before, **DONE, **CANCELLED)
    told = (CancelTask("t", before.cell_id, "trace"),) if before.cell_id else ()
    assert outcome.calls == ((Complete(after),) if url else ()) + told


@pytest.mark.parametrize("url", ["", "http://cb"])
def test_fail_completes_without_telling_or_counting(url: str) -> None:
    before = row(TaskState.RUNNING, "here", url=url)
    state = holding(before)
    outcome = run(state, "fail")
    after = moved(outcome, state, before)
    assert after == replace(before, **DONE, failed=True, failure_reason="why", result="", cell_id="")
    assert outcome.calls == ((Complete(after),) if url else ())


@pytest.mark.parametrize("url", ["", "http://cb"])
@pytest.mark.parametrize(("failed", "counted"), [(True, "failed"), (False, "succeeded")])
def test_complete_stores_everything_and_counts(failed: bool, counted: str, url: str) -> None:
    before = row(TaskState.RUNNING, "here", url=url)
    state = holding(before)
    report: dict[str, Any] = {"failed": failed, "failure_reason": "reason", "result": "res"}
    outcome = run(state, "complete", models.CompleteTaskRequest(task_guid="t", cell_id="here", **report))
    after = moved(outcome, state, before)
    assert after == replace(before, **DONE, **report, cell_id="")
    assert outcome.calls == (Count(counted, "here"), *((Complete(after),) if url else ()))


def test_reject_keeps_the_cell_and_counts_up() -> None:
    before = row(TaskState.RUNNING, "here", url="http://cb")
    state = holding(before)
    outcome = run(state, "reject", retries=3)
    after = moved(outcome, state, before)
    assert after == replace(before, state=TaskState.PENDING, updated_at=NOW, rejection_count=3, rejection_reason="why")
    assert outcome.calls == ()


def test_the_last_reject_announces_the_failure_only() -> None:
    before = row(TaskState.RUNNING, "here", url="http://cb")
    state = holding(before)
    outcome = run(state, "reject", retries=2)
    pending = replace(before, state=TaskState.PENDING, updated_at=NOW, rejection_count=3, rejection_reason="why")
    after = moved(outcome, state, pending)
    assert after == replace(pending, **DONE, failed=True, failure_reason="why", result="", cell_id="")
    assert outcome.calls == (Complete(after),)


def test_a_task_survives_as_many_rejections_as_it_may() -> None:
    state = holding(replace(row(TaskState.PENDING), rejection_count=0))
    states = []
    for _ in range(4):
        run(state, "reject", retries=3)
        states.append(state.tasks.where("state", TaskState.PENDING) != ())
    assert states == [True, True, True, False]
    after = state.tasks.get("t")
    assert after is not None
    assert (after.rejection_count, after.failure_reason) == (4, "why")


def test_a_refused_reject_announces_a_change_from_nothing() -> None:
    before = row(TaskState.COMPLETED)
    event = event_of(run(holding(before), "reject"), "task_changed")
    assert event.after is before
    assert encode(event.before.message()) == bytes.fromhex("0a00")


def test_resolving_changes_state_and_time_only() -> None:
    before = row(TaskState.COMPLETED, "kept", first_completed_at=CREATED + 2)
    state = holding(before)
    outcome = run(state, "resolving")
    assert moved(outcome, state, before) == replace(before, state=TaskState.RESOLVING, updated_at=NOW)
    assert outcome.calls == ()


def test_delete_announces_the_task_as_it_was() -> None:
    before = row(TaskState.RESOLVING)
    outcome = run(holding(before), "delete")
    assert event_of(outcome, "task_removed").before is before
    assert outcome.calls == ()


# -- what the database would refuse ------------------------------------------------------------


@pytest.mark.parametrize("operation", [name for name in COMMANDS if name != "desire"])
def test_an_undecodable_task_is_left_alone(operation: str) -> None:
    broken = replace(row(TaskState.RUNNING, "here"), definition=None, broken="cipher")
    assert refusal(holding(broken), operation, retries=0) == DESERIALIZE


def test_the_guid_of_an_undecodable_task_is_taken() -> None:
    broken = replace(row(TaskState.PENDING), definition=None, broken="cipher")
    assert refusal(holding(broken), "desire") == RESOURCE_EXISTS


@pytest.mark.parametrize("operation", ["cancel", "resolving", "delete"])
def test_a_guid_that_cannot_be_looked_up(operation: str) -> None:
    assert refusal(State(), operation, models.TaskGuidRequest(task_guid="a\0")) == NUL
    assert refusal(State(), operation, models.TaskGuidRequest.FromString(b"\x0a\x01\xff")) == BAD_BYTE
    assert refusal(State(), operation, models.TaskGuidRequest(task_guid="x" * 300)) == RESOURCE_NOT_FOUND


DESIRES: list[tuple[dict[str, str], Error]] = [
    ({"domain": "d\0"}, NUL),
    ({"domain": "d" * 256}, INVALID_REQUEST),
    ({"task_guid": "g" * 256}, INVALID_REQUEST),
    ({"task_guid": "g" * 256, "domain": "\0"}, NUL),
    ({"domain": "d" * 256, "task_guid": "t"}, INVALID_REQUEST),
]


@pytest.mark.parametrize(("fields", "error"), DESIRES)
def test_desire_with_texts_that_do_not_fit(fields: dict[str, Any], error: Error) -> None:
    request = models.DesireTaskRequest(**{"task_guid": "t", "domain": "dom", **fields}, task_definition=definition())
    assert refusal(holding(row(TaskState.PENDING)), "desire", request) == error


def test_lengths_are_in_characters() -> None:
    state = State()
    run(state, "desire", models.DesireTaskRequest(task_guid="t", domain="é" * 255, task_definition=definition()))
    assert state.tasks.get("t") is not None


@pytest.mark.parametrize(("cell_id", "error"), [("c\0", NUL), ("c" * 256, INVALID_REQUEST)])
def test_start_on_a_cell_whose_name_does_not_fit(cell_id: str, error: Error) -> None:
    request = models.StartTaskRequest(task_guid="t", cell_id=cell_id)
    assert refusal(holding(row(TaskState.PENDING)), "start", request) == error
    # The row is looked at before anything is written.
    assert refusal(holding(row(TaskState.COMPLETED)), "start", request) == invalid_transition("Completed", "Running")
    assert refusal(State(), "start", request) == RESOURCE_NOT_FOUND


def test_a_cell_that_is_not_text_is_another_cell() -> None:
    request = models.CompleteTaskRequest.FromString(b"\x0a\x01t\x12\x02c\xff")
    error = refusal(holding(row(TaskState.RUNNING, "here")), "complete", request)
    assert error == Error(ErrorType.RUNNING_ON_DIFFERENT_CELL, "Running on cell here not c\udcff")


@pytest.mark.parametrize("field", ["failure_reason", "result"])
def test_complete_with_texts_that_cannot_be_stored(field: str) -> None:
    request = models.CompleteTaskRequest(task_guid="t", cell_id="here")
    setattr(request, field, "a\0")
    assert refusal(holding(row(TaskState.RUNNING, "here")), "complete", request) == NUL


def test_a_long_result_is_kept() -> None:
    state = holding(row(TaskState.RUNNING, "here"))
    run(state, "complete", models.CompleteTaskRequest(task_guid="t", cell_id="here", result="r" * 3_000_000))
    after = state.tasks.get("t")
    assert after is not None
    assert len(after.result) == 3_000_000


REASONS = [
    ("a" * 1023, "a" * 1023),
    ("a" * 1024, "a" * 1013 + "(truncated)"),
    ("é" * 512, "é" * 506 + "(truncated)"),
    ("a" * 1013 + "\0" * 20, "a" * 1013 + "(truncated)"),
]


@pytest.mark.parametrize(("given", "kept"), REASONS)
def test_reasons_are_truncated(given: str, kept: str) -> None:
    for operation, request, column in (
        ("fail", models.FailTaskRequest(task_guid="t", failure_reason=given), "failure_reason"),
        ("reject", models.RejectTaskRequest(task_guid="t", rejection_reason=given), "rejection_reason"),
        ("complete", models.CompleteTaskRequest(task_guid="t", cell_id="here", failure_reason=given), "failure_reason"),
    ):
        state = holding(row(TaskState.RUNNING, "here"))
        run(state, operation, request)
        assert getattr(state.tasks.get("t"), column) == kept


def reason(encoded: bytes) -> Any:
    return models.FailTaskRequest.FromString(
        encode(models.FailTaskRequest(task_guid="t", failure_reason="x" * len(encoded))).replace(
            b"x" * len(encoded), encoded
        )
    )


def test_only_what_is_left_of_a_reason_must_be_text() -> None:
    state = holding(row(TaskState.PENDING))
    assert refusal(state, "fail", reason(b"a\xffb")) == BAD_BYTE
    assert refusal(state, "fail", reason(b"a\xff" + b"b" * 2000)) == BAD_BYTE
    assert refusal(state, "fail", reason(b"a\0" + b"b" * 2000 + b"\xff")) == NUL
    run(state, "fail", reason("é".encode() * 1000 + b"\xff"))
    after = state.tasks.get("t")
    assert after is not None
    assert after.failure_reason == "é" * 506 + "(truncated)"


@pytest.mark.parametrize("retries", [0, 9])
def test_a_reject_whose_reason_cannot_be_stored(retries: int) -> None:
    request = models.RejectTaskRequest(task_guid="t", rejection_reason="a\0")
    assert refusal(holding(row(TaskState.PENDING)), "reject", request, retries) == NUL


# -- request checks ----------------------------------------------------------------------------

GUID, DOMAIN, CELL, REASON, DEFINITION = (
    f"Invalid field: {name}" for name in ("task_guid", "domain", "cell_id", "failure_reason", "task_definition")
)
PROBLEMS: list[tuple[Any, list[str]]] = [
    (models.DesireTaskRequest(), [GUID, DOMAIN, DEFINITION]),
    (
        models.DesireTaskRequest(task_definition=models.TaskDefinition()),
        [GUID, DOMAIN, "Invalid field: rootfs", "invalid action type"],
    ),
    (models.DesireTaskRequest(task_guid="ok_-9", domain="d", task_definition=definition()), []),
    (models.DesireTaskRequest(task_guid="t\n", domain="d", task_definition=definition()), [GUID]),
    (models.DesireTaskRequest(task_guid="é", domain="d", task_definition=definition()), [GUID]),
    (models.StartTaskRequest(), [GUID, CELL]),
    (models.StartTaskRequest(task_guid="bad guid", cell_id="c"), [GUID]),
    (models.StartTaskRequest.FromString(b"\x0a\x01\xff\x12\x01\xff"), [GUID]),
    (models.StartTaskRequest(task_guid="t", cell_id="c"), []),
    (models.CompleteTaskRequest(), [GUID, CELL]),
    (models.CompleteTaskRequest(task_guid="t", cell_id="c"), []),
    (models.FailTaskRequest(), [GUID, REASON]),
    (models.FailTaskRequest(task_guid="t", failure_reason="r"), []),
    (models.RejectTaskRequest(), [GUID, REASON]),
    (models.RejectTaskRequest(task_guid="t", rejection_reason="r"), []),
    (models.TaskGuidRequest(), [GUID]),
    (models.TaskGuidRequest(task_guid="a.b/c é"), []),
    (models.TaskByGuidRequest(), [GUID]),
    (models.TaskByGuidRequest(task_guid="a.b/c é"), []),
]


@pytest.mark.parametrize(("request_", "problems"), PROBLEMS)
def test_checks(request_: Any, problems: list[str]) -> None:
    assert tasks.CHECKS[type(request_)](request_) == problems


def test_a_complete_request_sent_to_fail_is_a_failure() -> None:
    """Its cell id is read as the reason, whatever cell runs the task (tasks.md 2.1)."""
    sent = encode(models.CompleteTaskRequest(task_guid="t", cell_id="cell-9", failure_reason="x", result="res"))
    request = models.FailTaskRequest.FromString(sent)
    assert tasks.check_fail(request) == []
    state = holding(row(TaskState.RUNNING, "here"))
    run(state, "fail", request)
    after = state.tasks.get("t")
    assert after is not None
    assert (after.failed, after.failure_reason, after.result, after.cell_id) == (True, "cell-9", "", "")
