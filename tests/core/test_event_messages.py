"""Events as bytes, and the cell filter (events.md sections 4, 5, 7 and 12)."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.encoding import encode
from bbs_server.core.event_messages import Revision, passes, payload
from bbs_server.core.outcome import Event, Group, Hub
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, DesiredLRP, Presence, Task, replace

BOTH = pytest.mark.parametrize("revision", list(Revision))

CREATED = ActualLRP(
    process_guid="p1",
    index=0,
    domain="dom",
    presence=Presence.ORDINARY,
    state=UNCLAIMED,
    since=1795467846166998648,
    tag_epoch="c25ff9af-662b-41c1-4741-f3888545f7a7",
)
TAKEN = replace(CREATED, state=CLAIMED, since=1795467846543528243, instance_guid="ig-1", cell_id="cell-1", tag_index=1)
DEAD = replace(CREATED, state=CRASHED, since=2, crash_count=1, crash_reason="boom", tag_index=2)
LEAVING = replace(TAKEN, state=RUNNING, presence=Presence.EVACUATING, instance_guid="ig-2", cell_id="cell-2")


def event(hub: Hub, name: str, before: Any = None, after: Any = None, trace_id: str = "") -> Event:
    return Event(hub, name, before, after, trace_id)


class TestCapturedBytes:
    """What a reference server sent (events.md section 12)."""

    @BOTH
    def test_instance_created_with_a_trace_id(self, revision: Revision) -> None:
        created = event(Hub.INSTANCE, "actual_lrp_instance_created", after=CREATED, trace_id="t-1")
        assert base64.b64encode(payload(created, revision)) == (
            b"Ck4KCQoCcDEaA2RvbRIAGgAyCVVOQ0xBSU1FRED43K3D5I+y9RhKJgokYzI1ZmY5YWYtNjYyYi00MWMxLTQ3NDEtZjM4ODg1NDVm"
            b"N2E3aAASA3QtMQ=="
        )

    @BOTH
    def test_group_created(self, revision: Revision) -> None:
        created = event(Hub.GROUP, "actual_lrp_created", after=Group(CREATED))
        assert base64.b64encode(payload(created, revision)) == (
            b"ClAKTgoJCgJwMRoDZG9tEgAaADIJVU5DTEFJTUVEQPjcrcPkj7L1GEomCiRjMjVmZjlhZi02NjJiLTQxYzEtNDc0MS1mMzg4ODU0"
            b"NWY3YTdoAA=="
        )

    @BOTH
    def test_instance_changed(self, revision: Revision) -> None:
        changed = event(Hub.INSTANCE, "actual_lrp_instance_changed", CREATED, TAKEN)
        assert base64.b64encode(payload(changed, revision)) == (
            b"CgkKAnAxGgNkb20SDgoEaWctMRIGY2VsbC0xGkEaADIJVU5DTEFJTUVEQPjcrcPkj7L1GEomCiRjMjVmZjlhZi02NjJiLTQxYzEt"
            b"NDc0MS1mMzg4ODU0NWY3YTdYACJBGgAyB0NMQUlNRURAs6Lz9uWPsvUYSigKJGMyNWZmOWFmLTY2MmItNDFjMS00NzQxLWYzODg4"
            b"NTQ1ZjdhNxABWAA="
        )

    @BOTH
    @pytest.mark.parametrize("hub", [Hub.INSTANCE, Hub.GROUP])
    def test_crashed(self, hub: Hub, revision: Revision) -> None:
        captured = bytes.fromhex(
            "0a090a0270311a03646f6d120e0a0469672d31120663656c6c2d3118012204626f6f6d28e2f688c1ef8fb2f518"
        )
        since = models.ActualLRPCrashedEvent.FromString(captured).since
        crashed = event(hub, "actual_lrp_crashed", TAKEN, replace(DEAD, since=since))
        assert payload(crashed, revision) == captured

    def test_task_created(self) -> None:
        captured = base64.b64decode(
            b"CnYKUQoRZG9ja2VyOi8vL2J1c3lib3gaEyIRCgwaCgoCbHMyBG5hbWUgkE4gFCgKSgJsZ4IBBHZjYXCoAQPKARQKBnNoYXJlZBIC"
            b"dTEaAi9hIAEoARIGdGFzay0xGgNkb20g47Po956QsvUYKOOz6PeekLL1GDgB"
        )
        task = _task_of(models.TaskCreatedEvent.FromString(captured).task)
        assert payload(event(Hub.TASK, "task_created", after=task), Revision.R1) == captured


def _task_of(message: models.Task) -> Task:
    return Task(
        guid=message.task_guid,
        domain=message.domain,
        state=message.state,
        created_at=message.created_at,
        updated_at=message.updated_at,
        definition=encode(message.task_definition),
    )


class TestMessages:
    def test_changed_shows_no_routes_or_tags(self) -> None:
        rich = replace(TAKEN, internal_routes=("a.internal",), metric_tags=(("k", "v"),), routable=True)
        sent = payload(event(Hub.INSTANCE, "actual_lrp_instance_changed", CREATED, rich, "t"), Revision.R1)
        message = models.ActualLRPInstanceChangedEvent.FromString(sent)
        assert message.after.Routable
        assert message.trace_id == "t"
        assert encode(message) == sent
        assert b"a.internal" not in sent

    def test_changed_shows_the_old_owner_when_there_is_no_new_one(self) -> None:
        sent = payload(event(Hub.INSTANCE, "actual_lrp_instance_changed", TAKEN, DEAD), Revision.R1)
        key = models.ActualLRPInstanceChangedEvent.FromString(sent).actual_lrp_instance_key
        assert (key.instance_guid, key.cell_id) == ("ig-1", "cell-1")

    def test_keys_are_written_even_if_empty(self) -> None:
        sent = payload(event(Hub.INSTANCE, "actual_lrp_instance_changed", CREATED, CREATED), Revision.R1)
        assert models.ActualLRPInstanceChangedEvent.FromString(sent).HasField("actual_lrp_instance_key")

    def test_group_with_both_slots(self) -> None:
        group = Group(CREATED, LEAVING)
        sent = payload(event(Hub.GROUP, "actual_lrp_changed", group, group), Revision.R1)
        message = models.ActualLRPChangedEvent.FromString(sent)
        pair = models.ActualLRPGroup(instance=CREATED.message(), evacuating=LEAVING.message())
        assert message == models.ActualLRPChangedEvent(before=pair, after=pair)
        assert encode(message) == sent

    def test_removed_shows_what_was_there(self) -> None:
        sent = payload(event(Hub.INSTANCE, "actual_lrp_instance_removed", before=TAKEN), Revision.R1)
        assert sent == encode(models.ActualLRPInstanceRemovedEvent(actual_lrp=TAKEN.message()))

    def test_change_of_an_empty_task(self) -> None:
        """Quirk of a refused reject (events.md 9.4): nothing but an empty definition inside."""
        empty = Task("", "", 0, 0, 0, b"")
        task = Task("t", "d", 3, 1, 1, b"")
        assert payload(event(Hub.TASK, "task_changed", empty, task), Revision.R1).startswith(b"\x0a\x02\x0a\x00\x12")

    @BOTH
    def test_task_removed(self, revision: Revision) -> None:
        task = Task("t", "d", 3, 1, 1, encode(models.TaskDefinition(root_fs="docker:///x")))
        sent = payload(event(Hub.TASK, "task_removed", before=task), revision)
        assert sent == encode(models.TaskRemovedEvent(task=task.message()))


def _layer() -> models.ImageLayer:
    return models.ImageLayer(name="l", url="u", destination_path="/d", layer_type=models.ImageLayer.SHARED)


def _desired(**changes: Any) -> DesiredLRP:
    info = models.DesiredLRPRunInfo(start_timeout_ms=1999, image_layers=[_layer()])
    info.desired_lrp_key.SetInParent()
    fields: dict[str, Any] = {
        "process_guid": "p1",
        "domain": "dom",
        "log_guid": "log",
        "annotation": "",
        "instances": 1,
        "memory_mb": 1,
        "disk_mb": 1,
        "max_pids": 1,
        "rootfs": "preloaded:x",
        "update_strategy": 0,
        "tag_epoch": "e",
        "tag_index": 0,
        "routes": (),
        "metric_tags": None,
        "placement_tags": None,
        "volume_placement": b"",
        "run_info": encode(info),
        **changes,
    }
    return DesiredLRP(**fields)


class TestRevisions:
    def test_desired_lrp_in_its_current_form(self) -> None:
        sent = payload(event(Hub.DESIRED, "desired_lrp_created", after=_desired(), trace_id="t"), Revision.R1)
        message = models.DesiredLRPCreatedEvent.FromString(sent)
        assert [layer.name for layer in message.desired_lrp.image_layers] == ["l"]
        assert not message.desired_lrp.deprecated_start_timeout_s
        assert message.trace_id == "t"

    def test_a_trace_id_is_sent_byte_for_byte(self) -> None:
        trace_id = b"\xfft".decode(errors="surrogateescape")
        sent = payload(event(Hub.DESIRED, "desired_lrp_created", after=_desired(), trace_id=trace_id), Revision.R1)
        assert sent.endswith(b"\x12\x02\xfft")
        assert models.DesiredLRPCreatedEvent.FromString(sent).desired_lrp.process_guid

    def test_desired_lrp_in_its_oldest_form(self) -> None:
        record = _desired()
        sent = payload(event(Hub.DESIRED, "desired_lrp_removed", before=record), Revision.R0)
        lrp = models.DesiredLRPRemovedEvent.FromString(sent).desired_lrp
        assert not lrp.image_layers
        assert lrp.deprecated_start_timeout_s == 1
        assert lrp.setup.serial_action.actions
        unchanged = payload(event(Hub.DESIRED, "desired_lrp_removed", before=record), Revision.R1)
        assert models.DesiredLRPRemovedEvent.FromString(unchanged).desired_lrp.image_layers

    @BOTH
    def test_desired_lrp_changed(self, revision: Revision) -> None:
        before, after = _desired(), _desired(instances=3, tag_index=1)
        sent = payload(event(Hub.DESIRED, "desired_lrp_changed", before, after, "t"), revision)
        message = models.DesiredLRPChangedEvent.FromString(sent)
        assert (message.before.instances, message.after.instances, message.trace_id) == (1, 3, "t")

    @pytest.mark.parametrize(("revision", "layers", "dependencies"), [(Revision.R0, 0, 1), (Revision.R1, 1, 0)])
    def test_task(self, revision: Revision, layers: int, dependencies: int) -> None:
        definition = models.TaskDefinition(root_fs="docker:///x", image_layers=[_layer()])
        task = Task("t", "d", 1, 1, 1, encode(definition))
        sent = payload(event(Hub.TASK, "task_changed", task, task), revision)
        message = models.TaskChangedEvent.FromString(sent)
        for side in (message.before, message.after):
            assert len(side.task_definition.image_layers) == layers
            assert len(side.task_definition.cached_dependencies) == dependencies


GROUPS_AND_CELLS = [
    (event(Hub.GROUP, "actual_lrp_created", after=Group(TAKEN)), {"cell-1"}),
    (event(Hub.GROUP, "actual_lrp_created", after=Group(CREATED)), set()),
    (event(Hub.GROUP, "actual_lrp_removed", before=Group(None, LEAVING)), {"cell-2"}),
    (event(Hub.GROUP, "actual_lrp_removed", before=Group(TAKEN, LEAVING)), {"cell-2"}),
    (event(Hub.GROUP, "actual_lrp_removed", before=Group(replace(TAKEN, state=RUNNING), LEAVING)), {"cell-1"}),
    (event(Hub.GROUP, "actual_lrp_changed", Group(TAKEN), Group(CREATED)), {"cell-1"}),
    (event(Hub.GROUP, "actual_lrp_changed", Group(TAKEN), Group(None, LEAVING)), {"cell-1", "cell-2"}),
    (event(Hub.GROUP, "actual_lrp_crashed", TAKEN, CREATED), {"cell-1"}),
]
INSTANCES_AND_CELLS = [
    (event(Hub.INSTANCE, "actual_lrp_instance_created", after=TAKEN), {"cell-1"}),
    (event(Hub.INSTANCE, "actual_lrp_instance_created", after=CREATED), set()),
    (event(Hub.INSTANCE, "actual_lrp_instance_removed", before=LEAVING), {"cell-2"}),
    (event(Hub.INSTANCE, "actual_lrp_instance_changed", CREATED, TAKEN), {"cell-1"}),
    (event(Hub.INSTANCE, "actual_lrp_instance_changed", TAKEN, DEAD), {"cell-1"}),
    (event(Hub.INSTANCE, "actual_lrp_instance_changed", TAKEN, LEAVING), {"cell-2"}),
    (event(Hub.INSTANCE, "actual_lrp_instance_changed", CREATED, CREATED), set()),
    (event(Hub.INSTANCE, "actual_lrp_crashed", TAKEN, DEAD), {"cell-1"}),
]


class TestCellFilter:
    @pytest.mark.parametrize(("happened", "cells"), [*GROUPS_AND_CELLS, *INSTANCES_AND_CELLS])
    def test_passes_for_its_cells_only(self, happened: Event, cells: set[str]) -> None:
        assert {cell for cell in ("cell-1", "cell-2", "cell-3") if passes(happened, cell)} == cells
        assert passes(happened, "")

    def test_desired_lrp_events_pass_every_filter(self) -> None:
        assert passes(event(Hub.DESIRED, "desired_lrp_created", after=_desired()), "cell-3")

    def test_task_events_pass_every_filter(self) -> None:
        assert passes(event(Hub.TASK, "task_created", after=Task("t", "d", 1, 1, 1, b"")), "cell-3")
