"""Queries on tasks (tasks.md section 6 and 7.2, 7.3).

No read deletes a row whose definition cannot be decoded: only convergence does. The r2 forms show the
definition converted down (definitions.md 6.1); a task without image layers is the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from bbs_protos import models_pb2 as models

from bbs_server.core.context import Context
from bbs_server.core.downgrades import down_convert_task_definition
from bbs_server.core.encoding import Elements, element, encode
from bbs_server.core.errors import DESERIALIZE, RESOURCE_NOT_FOUND, Refused
from bbs_server.core.records import Task
from bbs_server.core.state import State
from bbs_server.core.texts import lookup

Form = Callable[[Task], bytes]
"""A task as an encoded element of an answer. `TasksResponse.tasks` and `TaskResponse.task` have one number."""

_LAYERS = encode(models.TaskDefinition(image_layers=[models.ImageLayer()]))[:-1]
"""How an encoded image layer begins: what does not contain this, has none."""

_UNREADABLE = encode(
    models.TasksResponse(error=models.Error(type=int(DESERIALIZE.type), message=DESERIALIZE.message))  # type: ignore[arg-type]
)


def r3(task: Task) -> bytes:
    """As stored."""
    return task.element


def r2(task: Task) -> bytes:
    """With image layers as the download actions and cached dependencies of old."""
    if task.definition is None or _LAYERS not in task.definition:
        return task.element
    message = task.message()
    message.task_definition.CopyFrom(down_convert_task_definition(message.task_definition))
    return element(encode(message))


def list_r3(state: State, request: models.TasksRequest, context: Context) -> Elements:
    """The tasks of a domain and a cell, where given."""
    return _list(state, request, r3)


def list_r2(state: State, request: models.TasksRequest, context: Context) -> Elements:
    return _list(state, request, r2)


def get_r3(state: State, request: models.TaskByGuidRequest, context: Context) -> Elements:
    """One task. Raises Refused if there is none or it cannot be decoded."""
    return _get(state, request, r3)


def get_r2(state: State, request: models.TaskByGuidRequest, context: Context) -> Elements:
    return _get(state, request, r2)


def _get(state: State, request: models.TaskByGuidRequest, form: Form) -> Elements:
    task = state.tasks.get(lookup(request.task_guid))
    if task is None:
        raise Refused(RESOURCE_NOT_FOUND)
    if task.definition is None:
        raise Refused(DESERIALIZE)
    return Elements((form(task),))


def _list(state: State, request: models.TasksRequest, form: Form) -> Elements:
    found: list[Task] = []
    for task in _selected(state, lookup(request.domain), lookup(request.cell_id)):
        if task.definition is None:
            # Quirk: the tasks read before the bad row are returned beside the error.
            return Elements([_UNREADABLE, *map(form, found)])
        found.append(task)
    return Elements(found, form, kept="_element" if form is r3 else "")


def _selected(state: State, domain: str, cell_id: str) -> Collection[Task]:
    if cell_id:
        tasks = state.tasks.where("cell_id", cell_id)
        return [task for task in tasks if task.domain == domain] if domain else tasks
    return state.tasks.where("domain", domain) if domain else state.tasks.all()
