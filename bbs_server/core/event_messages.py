"""Events as clients see them: the message of each, and which pass a stream's cell filter (events.md 4, 5, 7).

A message is put together from the encodings that records have already. Actual LRP events are the same in
both revisions; r0 shows desired LRPs and tasks in their oldest form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

from bbs_protos import models_pb2 as models

from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core.actual_lrp_groups import encoded
from bbs_server.core.downgrades import down_convert_desired_lrp_v0, down_convert_task_definition
from bbs_server.core.encoding import encode, field, renumbered
from bbs_server.core.lrp_events import representative
from bbs_server.core.outcome import Event, Group, Hub
from bbs_server.core.records import ActualLRP, DesiredLRP, Task


class Revision(Enum):
    """Of an event stream: R0 is the oldest form of definitions, R1 the current one."""

    R0 = "r0"
    R1 = "r1"


# -- messages ----------------------------------------------------------------------------


def payload(event: Event, revision: Revision) -> bytes:
    """The encoded message of an event."""
    return _PAYLOADS[event.hub][event.name](event, revision)


def _desired(record: DesiredLRP, revision: Revision) -> bytes:
    """Unlike lists, events do not fill in `metrics_guid` (events.md section 5)."""
    lrp = forms.message(record)
    return encode(lrp if revision is Revision.R1 else down_convert_desired_lrp_v0(lrp))


def _task(task: Task, revision: Revision, number: int) -> bytes:
    """A task as field `number`."""
    if revision is Revision.R0:
        message = task.message()
        if message.task_definition.image_layers:
            message.task_definition.CopyFrom(down_convert_task_definition(message.task_definition))
            return field(number, encode(message))
    return renumbered(task.element, number)


def _trace(event: Event, number: int) -> bytes:
    """A trace id is whatever a header held: what is not valid UTF-8 in it is kept as it came."""
    return field(number, event.trace_id.encode(errors="surrogateescape")) if event.trace_id else b""


def _one_desired(event: Event, revision: Revision) -> bytes:
    return field(1, _desired(event.after or event.before, revision)) + _trace(event, 2)


def _two_desired(event: Event, revision: Revision) -> bytes:
    before, after = _desired(event.before, revision), _desired(event.after, revision)
    return field(1, before) + field(2, after) + _trace(event, 3)


def _one_group(event: Event, revision: Revision) -> bytes:
    return field(1, encoded(event.after or event.before))


def _two_groups(event: Event, revision: Revision) -> bytes:
    return field(1, encoded(event.before)) + field(2, encoded(event.after))


def _one_instance(event: Event, revision: Revision) -> bytes:
    row: ActualLRP = event.after or event.before
    return renumbered(row.element, 1) + _trace(event, 2)


def _two_instances(event: Event, revision: Revision) -> bytes:
    owner = _owner(event)
    message = models.ActualLRPInstanceChangedEvent(before=_info(event.before), after=_info(event.after))
    _set_keys(message, event.after, owner)
    return encode(message) + _trace(event, 5)


def _crashed(event: Event, revision: Revision) -> bytes:
    """What crashed is the instance of before, how it crashed is in after."""
    after: ActualLRP = event.after
    message = models.ActualLRPCrashedEvent(
        crash_count=after.crash_count, crash_reason=after.crash_reason, since=after.since
    )
    _set_keys(message, after, event.before)
    return encode(message)


def _one_task(event: Event, revision: Revision) -> bytes:
    return _task(event.after or event.before, revision, 1)


def _two_tasks(event: Event, revision: Revision) -> bytes:
    return _task(event.before, revision, 1) + _task(event.after, revision, 2)


def _owner(event: Event) -> ActualLRP:
    """The side of a change whose instance key the event shows: after, unless no instance has it any more."""
    after: ActualLRP = event.after
    before: ActualLRP = event.before
    return after if after.instance_guid or after.cell_id else before


def _set_keys(
    message: models.ActualLRPInstanceChangedEvent | models.ActualLRPCrashedEvent, row: ActualLRP, owner: ActualLRP
) -> None:
    """Both keys are written even if they are empty (wire.md 2.2)."""
    message.actual_lrp_key.SetInParent()
    message.actual_lrp_key.process_guid = row.process_guid
    message.actual_lrp_key.index = row.index
    message.actual_lrp_key.domain = row.domain
    message.actual_lrp_instance_key.SetInParent()
    message.actual_lrp_instance_key.instance_guid = owner.instance_guid
    message.actual_lrp_instance_key.cell_id = owner.cell_id


def _info(row: ActualLRP) -> models.ActualLRPInfo:
    """An ActualLRP without keys, internal routes and metric tags."""
    info = models.ActualLRPInfo(
        crash_count=row.crash_count,
        crash_reason=row.crash_reason,
        state=row.state,
        placement_error=row.placement_error,
        since=row.since,
        presence=row.presence,  # type: ignore[arg-type]
        Routable=row.routable,
        availability_zone=row.availability_zone,
    )
    info.actual_lrp_net_info.SetInParent()
    info.actual_lrp_net_info.MergeFromString(row.net_info)
    info.modification_tag.SetInParent()
    info.modification_tag.epoch = row.tag_epoch
    info.modification_tag.index = row.tag_index & 0xFFFFFFFF
    return info


_Payload = Callable[[Event, Revision], bytes]

_PAYLOADS: Mapping[Hub, Mapping[str, _Payload]] = {
    Hub.DESIRED: {
        "desired_lrp_created": _one_desired,
        "desired_lrp_changed": _two_desired,
        "desired_lrp_removed": _one_desired,
    },
    Hub.GROUP: {
        "actual_lrp_created": _one_group,
        "actual_lrp_changed": _two_groups,
        "actual_lrp_removed": _one_group,
        "actual_lrp_crashed": _crashed,
    },
    Hub.INSTANCE: {
        "actual_lrp_instance_created": _one_instance,
        "actual_lrp_instance_changed": _two_instances,
        "actual_lrp_instance_removed": _one_instance,
        "actual_lrp_crashed": _crashed,
    },
    Hub.TASK: {
        "task_created": _one_task,
        "task_changed": _two_tasks,
        "task_removed": _one_task,
    },
}
"""Event names by hub (events.md section 4)."""


# -- cell filter -------------------------------------------------------------------------


def passes(event: Event, cell_id: str) -> bool:
    """Whether an event passes the filter of a stream for one cell; no cell is no filter (events.md 7)."""
    if not cell_id:
        return True
    concerns = _CELLS.get(event.hub)
    return concerns is None or cell_id in concerns(event)


def _group_cells(event: Event) -> tuple[str, ...]:
    if event.name == "actual_lrp_crashed":
        return (event.before.cell_id,)
    rows = [representative(group) for group in (event.before, event.after) if isinstance(group, Group)]
    return tuple(row.cell_id for row in rows if row is not None)


def _instance_cells(event: Event) -> tuple[str, ...]:
    if event.name == "actual_lrp_instance_changed":
        return (_owner(event).cell_id,)
    row: ActualLRP = event.before or event.after
    return (row.cell_id,)


_CELLS: Mapping[Hub, Callable[[Event], tuple[str, ...]]] = {Hub.GROUP: _group_cells, Hub.INSTANCE: _instance_cells}
"""Which cells an event concerns; events of other hubs pass every filter."""
