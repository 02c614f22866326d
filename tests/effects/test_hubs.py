"""Hubs: framing, ids, filters, order, slow readers, the end of streams."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.event_messages import Revision, payload
from bbs_server.core.outcome import Event, Group, Hub
from bbs_server.core.records import ActualLRP, DesiredLRP, Task
from bbs_server.effects.hubs import BUFFER, PIECE, Hubs, HubsClosed, Subscription

_CHUNK = re.compile(rb"([0-9a-f]+);\r\nid: (\d+)\nevent: (\S+)\ndata: (\S+)\n\n\r\n")


def task_event(guid: str = "t", result: str = "") -> Event:
    definition = models.TaskDefinition(root_fs="preloaded:x").SerializeToString()
    return Event(Hub.TASK, "task_created", after=Task(guid, "dom", 1, 5, 5, definition, result=result))


def lrp(cell_id: str, state: str = "CLAIMED", index: int = 0) -> ActualLRP:
    return ActualLRP("p", index, "dom", 0, state, 7, "epoch", instance_guid="i" if cell_id else "", cell_id=cell_id)


def instance_created(cell_id: str) -> Event:
    return Event(Hub.INSTANCE, "actual_lrp_instance_created", after=lrp(cell_id))


def desired_created() -> Event:
    record = DesiredLRP("p", "dom", "", "", 1, 1, 1, 1, "r", 0, "e", 0, (), (), None, b"", b"")
    return Event(Hub.DESIRED, "desired_lrp_created", after=record)


async def piece(subscription: Subscription) -> bytes | None:
    async with asyncio.timeout(10):
        return await subscription.next()


async def read(subscription: Subscription, count: int) -> list[tuple[int, str, bytes]]:
    """(id, name, message) of the next events, having checked their framing."""
    events: list[tuple[int, str, bytes]] = []
    while len(events) < count:
        data = await piece(subscription)
        assert data is not None
        at = 0
        while at < len(data):
            found = _CHUNK.match(data, at)
            assert found is not None, data[at : at + 80]
            assert int(found[1], 16) == found.end() - found.start() - len(found[1]) - 5
            events.append((int(found[2]), found[3].decode(), b64decode(found[4])))
            at = found.end()
    return events


async def test_one_event_is_one_chunk_with_the_recorded_framing() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    hubs.publish([task_event()])
    data = await piece(subscription)
    assert data is not None
    head, _, rest = data.partition(b"\r\n")
    assert head.endswith(b";")
    assert int(head[:-1], 16) == len(rest) - 2
    assert rest.startswith(b"id: 0\nevent: task_created\ndata: ")
    assert rest.endswith(b"\n\n\r\n")
    assert b64decode(rest.split(b"data: ")[1].split(b"\n")[0]) == payload(task_event(), Revision.R1)


async def test_ids_count_per_subscriber_and_over_both_hubs() -> None:
    hubs = Hubs()
    first = hubs.subscribe([Hub.DESIRED, Hub.INSTANCE], Revision.R1, "")
    hubs.publish([desired_created(), instance_created("c")])
    late = hubs.subscribe([Hub.DESIRED, Hub.INSTANCE], Revision.R1, "")
    hubs.publish([instance_created("c"), desired_created()])
    assert [(number, name) for number, name, _ in await read(first, 4)] == [
        (0, "desired_lrp_created"),
        (1, "actual_lrp_instance_created"),
        (2, "actual_lrp_instance_created"),
        (3, "desired_lrp_created"),
    ]
    assert [number for number, _, _ in await read(late, 2)] == [0, 1]


async def test_events_of_other_hubs_do_not_come() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    hubs.publish([desired_created(), instance_created("c"), task_event()])
    assert [name for _, name, _ in await read(subscription, 1)] == ["task_created"]


async def test_a_waiting_reader_is_woken() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    reading = asyncio.create_task(read(subscription, 1))
    await asyncio.sleep(0)
    hubs.publish([task_event()])
    async with asyncio.timeout(10):
        assert len(await reading) == 1


async def test_all_pending_events_come_in_one_piece() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    for number in range(50):
        hubs.publish([task_event(str(number))])
    data = await piece(subscription)
    assert data is not None
    guids = [models.TaskCreatedEvent.FromString(b64decode(found[4])).task.task_guid for found in _CHUNK.finditer(data)]
    assert guids == [str(number) for number in range(50)]


async def test_pieces_are_bounded() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    hubs.publish([task_event(result="x" * 30_000) for _ in range(30)])
    sizes = []
    while sum(sizes) < 30 * 40_000:
        data = await piece(subscription)
        assert data is not None
        sizes.append(len(data))
    assert max(sizes) < PIECE + 50_000
    assert len(sizes) > 3


async def test_a_cell_filter_passes_its_cell_and_every_desired_event() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.DESIRED, Hub.INSTANCE], Revision.R1, "a")
    hubs.publish([instance_created("b"), instance_created(""), desired_created(), instance_created("a")])
    events = await read(subscription, 2)
    assert [(number, name) for number, name, _ in events] == [
        (0, "desired_lrp_created"),
        (1, "actual_lrp_instance_created"),
    ]
    assert (
        models.ActualLRPInstanceCreatedEvent.FromString(events[1][2]).actual_lrp.actual_lrp_instance_key.cell_id == "a"
    )


async def test_a_group_change_passes_for_the_cells_before_and_after() -> None:
    hubs = Hubs()
    cells = {cell: hubs.subscribe([Hub.GROUP], Revision.R1, cell) for cell in ("a", "b", "c")}
    hubs.publish([Event(Hub.GROUP, "actual_lrp_changed", Group(lrp("a")), Group(lrp("b")))])
    for cell in ("a", "b"):
        assert [name for _, name, _ in await read(cells[cell], 1)] == ["actual_lrp_changed"]
    cells["c"].close()
    assert await piece(cells["c"]) is None


async def test_a_slow_reader_is_dropped_and_keeps_what_it_had(logged) -> None:
    hubs = Hubs(logged)
    slow, quick = (hubs.subscribe([Hub.TASK], Revision.R1, "") for _ in range(2))
    for number in range(BUFFER + 10):
        hubs.publish([task_event(str(number))])
        if number % 100 == 0:
            await piece(quick)
    assert [number for number, _, _ in await read(slow, BUFFER)] == list(range(BUFFER))
    assert await piece(slow) is None
    assert ("error", "got-error-sending-event", {"error": "slow consumer"}) in logged.lines
    assert hubs.counts() == {"desired": 0, "group": 0, "instance": 0, "task": 1, "dropped": 1}


async def test_the_buffer_is_per_hub() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.DESIRED, Hub.INSTANCE], Revision.R1, "")
    hubs.publish([desired_created()] * BUFFER)
    hubs.publish([instance_created("c")] * BUFFER)
    assert hubs.counts()["dropped"] == 0
    hubs.publish([instance_created("c")])
    assert hubs.counts() == {"desired": 0, "group": 0, "instance": 0, "task": 0, "dropped": 1}
    assert len(await read(subscription, 2 * BUFFER)) == 2 * BUFFER


async def test_a_burst_does_not_drop_a_reader_that_waits() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    reading = asyncio.create_task(read(subscription, 5 * BUFFER))
    await asyncio.sleep(0)
    hubs.publish([task_event(str(number)) for number in range(5 * BUFFER)])
    async with asyncio.timeout(20):
        assert [number for number, _, _ in await reading] == list(range(5 * BUFFER))
    assert hubs.counts()["dropped"] == 0


async def test_closing_ends_streams_after_what_they_have() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK, Hub.INSTANCE], Revision.R0, "")
    filtered = hubs.subscribe([Hub.GROUP], Revision.R0, "c")
    waiting = asyncio.create_task(piece(hubs.subscribe([Hub.TASK], Revision.R1, "")))
    await asyncio.sleep(0)
    hubs.publish([task_event()])
    hubs.close()
    hubs.publish([task_event()])
    assert len(await read(subscription, 1)) == 1
    assert await piece(subscription) is None
    assert await piece(filtered) is None
    assert await waiting is not None
    with pytest.raises(HubsClosed):
        hubs.subscribe([Hub.TASK], Revision.R1, "")
    assert set(hubs.counts().values()) == {0}


async def test_a_closed_subscription_leaves_its_hubs() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.DESIRED, Hub.GROUP], Revision.R1, "cell")
    assert hubs.counts()["group"] == 1
    subscription.close()
    subscription.close()
    assert set(hubs.counts().values()) == {0}
    hubs.publish([desired_created()])
    assert await piece(subscription) is None


async def test_an_abandoned_wait_loses_nothing() -> None:
    hubs = Hubs()
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    reading = asyncio.create_task(subscription.next())
    await asyncio.sleep(0)
    hubs.publish([task_event("1")])
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    hubs.publish([task_event("2")])
    assert [number for number, _, _ in await read(subscription, 2)] == [0, 1]


async def test_revisions_share_a_hub_and_differ_in_their_messages() -> None:
    layered = models.TaskDefinition(
        image_layers=[models.ImageLayer(url="u", destination_path="/d", layer_type=models.ImageLayer.SHARED)]
    )
    event = Event(Hub.TASK, "task_created", after=Task("t", "dom", 1, 5, 5, layered.SerializeToString()))
    hubs = Hubs()
    old, new = (hubs.subscribe([Hub.TASK], revision, "") for revision in (Revision.R0, Revision.R1))
    hubs.publish([event])
    ((_, _, as_r0),) = await read(old, 1)
    ((_, _, as_r1),) = await read(new, 1)
    assert as_r0 == payload(event, Revision.R0)
    assert as_r1 == payload(event, Revision.R1)
    assert models.TaskCreatedEvent.FromString(as_r1).task.task_definition.image_layers
    assert not models.TaskCreatedEvent.FromString(as_r0).task.task_definition.image_layers


async def test_an_event_that_cannot_be_encoded_ends_the_stream(logged) -> None:
    hubs = Hubs(logged)
    subscription = hubs.subscribe([Hub.TASK], Revision.R1, "")
    hubs.publish([task_event("1"), Event(Hub.TASK, "task_created", after=object()), task_event("2")])
    assert len(await read(subscription, 1)) == 1
    assert await piece(subscription) is None
    assert logged.actions() == ["failed-to-encode-event"]
