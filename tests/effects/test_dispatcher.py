"""The dispatcher: events at once, calls in order, follow-ups that the answer waits for."""

from __future__ import annotations

import asyncio
import json

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.errors import unknown
from bbs_server.core.event_messages import Revision
from bbs_server.core.outcome import (
    AuctionTasks,
    CancelTask,
    Complete,
    Count,
    Event,
    Hub,
    Outcome,
    Retire,
    StopInstance,
    TaskStart,
)
from bbs_server.core.records import RUNNING, ActualLRP, Task, TaskState
from bbs_server.effects.auctioneer import Auctioneer
from bbs_server.effects.dispatcher import Dispatcher
from bbs_server.effects.hubs import Hubs
from bbs_server.effects.peer import Peer
from bbs_server.effects.presences import Presences
from bbs_server.effects.reps import Reps

ANSWER = models.TaskLifecycleResponse()


@pytest.fixture
async def auctioneer(receiver):
    return await receiver(202)


@pytest.fixture
async def dispatcher(auctioneer, locket_double, connect_locket, our_tls, writer, logged):
    presences = Presences(connect_locket(locket_double.address), 10.0, logged)
    made = Dispatcher(
        Hubs(logged),
        Auctioneer(auctioneer.url, Peer(None, 5), None, logged),
        Reps(presences, Peer(our_tls, 5), logged),
        presences,
        logged,
    )
    made.attach(writer, Peer(our_tls, 5), 4)
    writer.dispatch = made
    yield made
    await made.close()


def task(guid: str, url: str = "") -> Task:
    definition = models.TaskDefinition(completion_callback_url=url).SerializeToString()
    return Task(guid, "dom", TaskState.COMPLETED, 5, 6, definition)


def start(guid: str) -> TaskStart:
    return TaskStart(guid, "dom", None, (), "r", 1, 2, 3)


async def test_an_outcome_without_effects_needs_nothing(dispatcher: Dispatcher) -> None:
    assert dispatcher(Outcome(ANSWER)) is None


async def test_events_are_published_before_the_call_returns(dispatcher: Dispatcher) -> None:
    subscription = dispatcher.hubs.subscribe([Hub.TASK], Revision.R1, "")
    assert dispatcher(Outcome(ANSWER, (Event(Hub.TASK, "task_created", after=task("t")),))) is None
    async with asyncio.timeout(5):
        data = await subscription.next()
    assert data is not None
    assert b"event: task_created\n" in data


async def test_an_auction_is_waited_for(dispatcher: Dispatcher, auctioneer) -> None:
    auctioneer.held = asyncio.Event()
    follow_up = dispatcher(Outcome(ANSWER, calls=(AuctionTasks((start("t"),)),)))
    assert follow_up is not None
    await auctioneer.wait_for(1)
    assert not follow_up.done()  # type: ignore[attr-defined]
    auctioneer.held.set()
    async with asyncio.timeout(5):
        assert await follow_up is None


async def test_commits_of_one_turn_share_an_auction(dispatcher: Dispatcher, auctioneer) -> None:
    follow_ups = [dispatcher(Outcome(ANSWER, calls=(AuctionTasks((start(guid),)),))) for guid in "abc"]
    for follow_up in follow_ups:
        assert follow_up is not None
        assert await follow_up is None
    assert [[entry["TaskGuid"] for entry in json.loads(r.body)] for r in auctioneer.received] == [["a", "b", "c"]]


async def test_the_error_of_a_call_is_the_answer(dispatcher: Dispatcher, locket_double) -> None:
    locket_double.put_presence("c", '{"cell_id":"c","rep_url":"http://h"}')
    calls = (AuctionTasks((start("t"),)), CancelTask("t", "c", ""))
    follow_up = dispatcher(Outcome(ANSWER, calls=calls))
    assert follow_up is not None
    async with asyncio.timeout(5):
        error = await follow_up
    assert error == unknown("https scheme is required but none of the addresses support it")


async def test_a_call_goes_on_when_nobody_waits_any_more(dispatcher: Dispatcher, locket_double, receiver) -> None:
    cell = await receiver(tls=True)
    cell.held = asyncio.Event()
    locket_double.put_presence("c", f'{{"rep_url":"{cell.url}"}}')
    follow_up = dispatcher(
        Outcome(ANSWER, calls=(Retire(ActualLRP("p", 0, "d", 0, RUNNING, 1, "e", cell_id="c"), ""),))
    )
    assert follow_up is not None
    await cell.wait_for(1)
    follow_up.cancel()  # type: ignore[attr-defined]
    cell.statuses = [202]
    cell.held.set()
    assert len(await cell.wait_for(1)) == 1


async def test_a_stop_is_not_waited_for(dispatcher: Dispatcher, locket_double, receiver) -> None:
    cell = await receiver(tls=True)
    locket_double.put_presence("c", f'{{"rep_url":"{cell.url}"}}')
    assert dispatcher(Outcome(ANSWER, calls=(StopInstance("p", "i", "c", "id"),))) is None
    assert (await cell.wait_for(1))[0].path == "/v1/lrps/p/instances/i/stop"


async def test_a_completed_task_is_called_back_and_removed(dispatcher: Dispatcher, writer, receiver) -> None:
    subscription = dispatcher.hubs.subscribe([Hub.TASK], Revision.R1, "")
    home = await receiver(200)
    done = task("t", home.url)
    writer.state.tasks.adopt("t", done)
    assert dispatcher(Outcome(ANSWER, calls=(Complete(done),))) is None
    await writer.wait_for_event("task_removed")
    data = b""
    async with asyncio.timeout(5):
        while b"task_removed" not in data:
            data += await subscription.next() or b""
    assert data.index(b"task_changed") < data.index(b"task_removed")


async def test_counts_per_cell_in_the_order_of_their_appearance(dispatcher: Dispatcher) -> None:
    for what, cell in (("started", "b"), ("succeeded", "b"), ("started", "a"), ("started", "b"), ("failed", "a")):
        dispatcher(Outcome(ANSWER, calls=(Count(what, cell),)))
    assert list(dispatcher.task_counts.by_cell.items()) == [
        ("b", {"started": 2, "failed": 0, "succeeded": 1}),
        ("a", {"started": 1, "failed": 1, "succeeded": 0}),
    ]
