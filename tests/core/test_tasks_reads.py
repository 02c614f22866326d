"""Reading tasks: filters, forms and rows that cannot be decoded (tasks.md 6, 7.2, 7.3 and 11)."""

from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import tasks
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import Elements, encode
from bbs_server.core.errors import DESERIALIZE, RESOURCE_NOT_FOUND, ErrorType, Refused
from bbs_server.core.records import Task, TaskState, replace
from bbs_server.core.state import State
from bbs_server.store.guids import random_guid

CONTEXT = Context(1_700_000_000 * 10**9, random_guid, "", Settings())
LISTS, GETS = (tasks.list_r3, tasks.list_r2), (tasks.get_r3, tasks.get_r2)

PLAIN = models.TaskDefinition(root_fs="preloaded:fs", annotation="\ufffd not a layer")
LAYERED = models.TaskDefinition(
    root_fs="preloaded:fs",
    action=models.Action(run_action=models.RunAction(path="/bin/true", user="vcap")),
    legacy_download_user="legacy",
    image_layers=[
        models.ImageLayer(name="s", url="http://s", destination_path="/s", layer_type=models.ImageLayer.SHARED),
        models.ImageLayer(
            name="e",
            url="http://e",
            destination_path="/e",
            layer_type=models.ImageLayer.EXCLUSIVE,
            digest_algorithm=models.ImageLayer.SHA256,
            digest_value="d",
        ),
    ],
)


def task(guid: str, domain: str = "dom", cell_id: str = "", definition: models.TaskDefinition | None = PLAIN) -> Task:
    encoded = None if definition is None else encode(definition)
    return Task(guid, domain, TaskState.RUNNING, 1, 2, encoded, cell_id=cell_id)


def holding(*rows: Task) -> State:
    state = State()
    for row in rows:
        state.tasks.put(row)
    state.take()
    return state


def tasks_of(answer: Elements) -> models.TasksResponse:
    return models.TasksResponse.FromString(b"".join(answer.pieces))


def task_of(answer: Elements) -> models.Task:
    response = models.TaskResponse.FromString(b"".join(answer.pieces))
    assert not response.HasField("error")
    return response.task


FILTERS: list[tuple[dict[str, str], list[str]]] = [
    ({}, ["a", "b", "c", "d"]),
    ({"domain": "one"}, ["a", "b"]),
    ({"cell_id": "x"}, ["a", "c"]),
    ({"domain": "one", "cell_id": "x"}, ["a"]),
    ({"domain": "ONE"}, []),
    ({"domain": "two", "cell_id": "y"}, []),
    ({"cell_id": "x" * 300}, []),
]


@pytest.mark.parametrize("query", LISTS)
@pytest.mark.parametrize(("fields", "guids"), FILTERS)
def test_filters_are_combined(query: Any, fields: dict[str, str], guids: list[str]) -> None:
    state = holding(task("a", "one", "x"), task("b", "one", "y"), task("c", "two", "x"), task("d", "two"))
    answer = query(state, models.TasksRequest(**fields), CONTEXT)
    assert [found.task_guid for found in tasks_of(answer).tasks] == guids


@pytest.mark.parametrize("query", LISTS)
def test_nothing_found_is_an_empty_answer(query: Any) -> None:
    assert b"".join(query(State(), models.TasksRequest(), CONTEXT).pieces) == b""


@pytest.mark.parametrize("query", LISTS)
@pytest.mark.parametrize("field", ["domain", "cell_id"])
def test_a_filter_that_cannot_be_looked_up(query: Any, field: str) -> None:
    with pytest.raises(Refused, match="0x00") as caught:
        query(State(), models.TasksRequest(**{field: "a\0"}), CONTEXT)
    assert caught.value.error.type == ErrorType.UNKNOWN


@pytest.mark.parametrize("query", LISTS)
def test_a_list_ends_at_the_first_undecodable_row(query: Any) -> None:
    state = holding(task("a"), task("b"), task("bad", definition=None), task("c"))
    answer = tasks_of(query(state, models.TasksRequest(), CONTEXT))
    assert (answer.error.type, answer.error.message) == (DESERIALIZE.type, DESERIALIZE.message)
    assert [found.task_guid for found in answer.tasks] == ["a", "b"]
    assert state.tasks.get("bad") is not None
    assert state.take() == ()


@pytest.mark.parametrize("query", LISTS)
def test_an_undecodable_row_that_is_not_asked_for_does_not_matter(query: Any) -> None:
    state = holding(task("bad", "other", definition=None), task("a"))
    answer = tasks_of(query(state, models.TasksRequest(domain="dom"), CONTEXT))
    assert not answer.HasField("error")
    assert [found.task_guid for found in answer.tasks] == ["a"]


@pytest.mark.parametrize("query", GETS)
def test_get(query: Any) -> None:
    row = replace(task("a", cell_id="x"), failed=True, failure_reason="r", rejection_count=2, result="res")
    assert task_of(query(holding(row), models.TaskByGuidRequest(task_guid="a"), CONTEXT)) == row.message()


@pytest.mark.parametrize("query", GETS)
def test_get_refuses(query: Any) -> None:
    state = holding(task("bad", definition=None))
    for guid, message in (
        ("bad", DESERIALIZE.message),
        ("none", RESOURCE_NOT_FOUND.message),
        ("x" * 300, RESOURCE_NOT_FOUND.message),
        ("a\0", 'ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)'),
    ):
        with pytest.raises(Refused) as caught:
            query(state, models.TaskByGuidRequest(task_guid=guid), CONTEXT)
        assert caught.value.error.message == message
    assert state.take() == ()


def test_r3_shows_layers_and_r2_what_they_stand_for() -> None:
    state = holding(task("l", definition=LAYERED), task("p"))
    new, old = (tasks_of(query(state, models.TasksRequest(), CONTEXT)).tasks for query in LISTS)
    assert new[0].task_definition == LAYERED
    shown = old[0].task_definition
    assert not shown.image_layers
    assert [dependency.name for dependency in shown.cached_dependencies] == ["s"]
    first, last = shown.action.serial_action.actions
    assert first.parallel_action.actions[0].download_action.artifact == "e"
    assert last == LAYERED.action
    assert new[1] == old[1]
    one = task_of(tasks.get_r2(state, models.TaskByGuidRequest(task_guid="l"), CONTEXT))
    assert one == old[0]
    assert task_of(tasks.get_r3(state, models.TaskByGuidRequest(task_guid="l"), CONTEXT)) == new[0]


def test_bytes_that_are_not_text_are_returned_in_both_forms() -> None:
    odd = models.TaskDefinition.FromString(encode(LAYERED) + b"\x0a\x03a\xffb")
    state = holding(task("o", definition=odd))
    for query in GETS:
        assert b"a\xffb" in b"".join(query(state, models.TaskByGuidRequest(task_guid="o"), CONTEXT).pieces)
