"""Retiring an instance against a real cell: what is asked, removed, announced and answered."""

from __future__ import annotations

import asyncio

import pytest

from bbs_server.core.errors import RESOURCE_NOT_FOUND, Error, ErrorType, unknown
from bbs_server.core.outcome import Hub, Retire
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP
from bbs_server.effects.peer import Peer
from bbs_server.effects.presences import Presences
from bbs_server.effects.reps import Reps
from bbs_server.effects.retire import ATTEMPTS, Retirement


def lrp(state: str, cell_id: str = "c") -> ActualLRP:
    placed = state in (CLAIMED, RUNNING)
    return ActualLRP(
        "p", 0, "dom", 0, state, 7, "epoch", instance_guid="ig" if placed else "", cell_id=cell_id if placed else ""
    )


@pytest.fixture
async def retire(locket_double, connect_locket, writer, our_tls, logged):
    presences = Presences(connect_locket(locket_double.address), 10.0, logged)
    reps = Reps(presences, Peer(our_tls, 5), logged)
    retirement = Retirement(writer, presences, reps, logged)

    async def run(record: ActualLRP, present: bool = True) -> Error | None:
        if present:
            writer.state.actual_lrps.adopt(("p", 0, 0), record)
        async with asyncio.timeout(10):
            return await retirement.retire(Retire(record, "id-7"))

    yield run
    await reps.close()


def row(writer) -> ActualLRP | None:
    return writer.state.actual_lrps.get(("p", 0, 0))


def announced(writer) -> list[str]:
    return sorted(event.name for event in writer.events)


REMOVED = ["actual_lrp_instance_removed", "actual_lrp_removed"]


@pytest.mark.parametrize("state", [UNCLAIMED, CRASHED])
async def test_an_instance_without_a_cell_is_removed(retire, writer, state: str) -> None:
    assert await retire(lrp(state)) is None
    assert row(writer) is None
    assert announced(writer) == REMOVED


async def test_an_instance_that_is_gone_cannot_be_removed(retire, writer) -> None:
    assert await retire(lrp(UNCLAIMED), present=False) == RESOURCE_NOT_FOUND
    assert announced(writer) == []


@pytest.mark.parametrize("state", [CLAIMED, RUNNING])
async def test_the_cell_is_asked_to_stop_and_the_removal_announced(
    retire, writer, locket_double, receiver, state: str
) -> None:
    cell = await receiver(tls=True)
    locket_double.put_presence("c", f'{{"cell_id":"c","rep_url":"{cell.url}"}}')
    assert await retire(lrp(state)) is None
    (request,) = cell.received
    assert (request.method, request.path) == ("POST", "/v1/lrps/p/instances/ig/stop")
    assert request.headers["X-Vcap-Request-Id"] == "id-7"
    assert row(writer) is not None
    assert announced(writer) == REMOVED
    assert [event.trace_id for event in writer.events if event.hub is Hub.INSTANCE] == ["id-7"]


async def test_a_refusing_cell_is_asked_five_times(retire, writer, locket_double, receiver) -> None:
    cell = await receiver(500, tls=True)
    locket_double.put_presence("c", f'{{"cell_id":"c","rep_url":"{cell.url}"}}')
    assert await retire(lrp(RUNNING)) == unknown("http error: status code 500 (Internal Server Error)")
    assert len(cell.received) == ATTEMPTS
    assert row(writer) is not None
    assert announced(writer) == REMOVED


async def test_a_later_attempt_may_succeed(retire, writer, locket_double, receiver) -> None:
    cell = await receiver(tls=True)
    cell.statuses = [500, 200]
    locket_double.put_presence("c", f'{{"cell_id":"c","rep_url":"{cell.url}"}}')
    assert await retire(lrp(RUNNING)) is None
    assert len(cell.received) == 3


async def test_a_refused_connection(retire, writer, locket_double, closed_port: int) -> None:
    url = f"https://127.0.0.1:{closed_port}"
    locket_double.put_presence("c", f'{{"cell_id":"c","rep_url":"{url}"}}')
    assert await retire(lrp(RUNNING)) == unknown(
        f'Post "{url}/v1/lrps/p/instances/ig/stop": dial tcp 127.0.0.1:{closed_port}: connect: connection refused'
    )
    assert announced(writer) == REMOVED


async def test_an_unusable_address_ends_it_but_is_announced(retire, writer, locket_double) -> None:
    locket_double.put_presence("c", '{"cell_id":"c","rep_url":"http://127.0.0.1:1"}')
    assert await retire(lrp(RUNNING)) == unknown("https scheme is required but none of the addresses support it")
    assert row(writer) is not None
    assert announced(writer) == REMOVED


@pytest.mark.parametrize("present", [True, False])
async def test_a_cell_that_goes_between_two_attempts(retire, writer, locket_double, receiver, present: bool) -> None:
    """The removal was recorded when the cell was found, so that it is announced even if no row is left to delete."""
    cell = await receiver(500, tls=True)
    cell.held = asyncio.Event()
    locket_double.put_presence("c", f'{{"cell_id":"c","rep_url":"{cell.url}"}}')
    retirement = asyncio.create_task(retire(lrp(RUNNING), present=present))
    await cell.wait_for(1)
    del locket_double.resources["c"]
    cell.held.set()
    assert await retirement == (None if present else RESOURCE_NOT_FOUND)
    assert len(cell.received) == 1
    assert row(writer) is None
    assert announced(writer) == REMOVED


async def test_a_cell_that_is_gone_leaves_nothing(retire, writer) -> None:
    assert await retire(lrp(RUNNING)) is None
    assert row(writer) is None
    assert announced(writer) == REMOVED


async def test_a_bad_presence_is_the_error_and_nothing_is_announced(retire, writer, locket_double) -> None:
    locket_double.put_presence("c", "not json")
    error = await retire(lrp(RUNNING))
    assert error is not None
    assert (error.type, error.message) == (
        ErrorType.UNKNOWN,
        "invalid character 'o' in literal null (expecting 'u')",
    )
    assert row(writer) is not None
    assert announced(writer) == []
