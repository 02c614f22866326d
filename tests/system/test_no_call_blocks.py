"""A dead auctioneer or cell delays what waits for it, never anything else, and fails nothing (tasks.md 9, 2.3 and 3.3).

Two ways of being dead: nobody listens (`refusing`), and somebody who never answers (`hanging`), which a request
feels for `communication_timeout`. That is long, so that however busy the machine is, nothing but an answer of the peer
ends a wait before everybody else is done; only where it is to be felt it is short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from bbs_protos import models_pb2 as models

from bbs_server.client import Failed
from bbs_server.dev.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT = 60.0
"""`communication_timeout` in s."""

PROMPT = 20.0
"""What is not held up is answered within this many s, on a busy machine, too."""

SHORT_TIMEOUT = 2.5
"""`communication_timeout` in s where it runs out."""

SLACK = 3 * SHORT_TIMEOUT
"""What runs out is noticed within this many s, on a busy machine, too; who waits for all the others takes longer."""

Deed = Callable[[Any, str], Awaitable[Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def patient(running_system: Any, tmp_path_factory: Any) -> AsyncIterator[Any]:
    """A system that does not converge of its own accord, so that every request is one of the test's."""
    folder = tmp_path_factory.mktemp("patient")
    async with running_system(folder, communication_timeout=f"{TIMEOUT}s", converge_repeat_interval="1h") as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def converging(running_system: Any, tmp_path_factory: Any) -> AsyncIterator[Any]:
    """The same, and it converges all the time."""
    async with running_system(tmp_path_factory.mktemp("converging"), communication_timeout=f"{TIMEOUT}s") as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(running_system: Any, tmp_path_factory: Any) -> AsyncIterator[Any]:
    """A system like `patient` in which a wait for a peer runs out soon."""
    folder = tmp_path_factory.mktemp("impatient")
    keys = {"communication_timeout": f"{SHORT_TIMEOUT}s", "converge_repeat_interval": "1h"}
    async with running_system(folder, **keys) as system:
        yield system


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refused(running_system: Any, tmp_path_factory: Any) -> AsyncIterator[Any]:
    """The same without an auctioneer: its connections are refused. Nor does any cell listen."""
    folder = tmp_path_factory.mktemp("refused")
    keys = {"communication_timeout": f"{TIMEOUT}s", "converge_repeat_interval": "1h"}
    async with running_system(folder, auctioneer_address=f"https://127.0.0.1:{free_port()}", **keys) as system:
        await system.cells.appear("home", rep_url=f"https://127.0.0.1:{free_port()}")
        yield system


@asynccontextmanager
async def held(*peers: Any) -> AsyncIterator[None]:
    for peer in peers:
        peer.hold()
    try:
        yield
    finally:
        for peer in peers:
            peer.release()


async def took(work: Awaitable[Any]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    async with asyncio.timeout(TIMEOUT):
        await work
    return time.perf_counter() - began


async def others(system: Any) -> None:
    """A bit of everything that needs neither auctioneer nor cell."""
    guid = system.guid("other")
    assert await system.client.ping()
    await system.client.upsert_domain(guid, 60)
    await system.client.desire_lrp(system.lrp(guid, 0))
    await system.start(guid, 0, "home")
    assert await system.instances(guid) == ["0 RUNNING@home"]
    assert [cell.cell_id for cell in await system.client.cells()] == ["home"]
    assert guid in await system.client.domains()
    await system.client.remove(guid, 0, system.instance(0, "home"))
    await system.client.remove_lrp(guid)
    await system.client.tasks()


# -- what is done, and how it begins -----------------------------------------------------


async def running_task(system: Any, guid: str) -> None:
    await system.client.desire_task(guid, guid, system.task())
    assert await system.client.start_task(guid, "home")


async def running_lrp(system: Any, guid: str) -> None:
    """Two instances that run at home."""
    await system.client.desire_lrp(system.lrp(guid, 2))
    for index in (0, 1):
        await system.start(guid, index, "home")


async def nothing(system: Any, guid: str) -> None: ...


def update(instances: int, **more: Any) -> Deed:
    async def do(system: Any, guid: str) -> None:
        await system.client.update_lrp(guid, models.DesiredLRPUpdate(instances=instances, **more))

    return do


async def evacuate(system: Any, guid: str) -> None:
    request = models.EvacuateRunningActualLRPRequest(
        actual_lrp_key=system.key(guid),
        actual_lrp_instance_key=system.instance(0, "home"),
        actual_lrp_net_info=models.ActualLRPNetInfo(address="10.0.0.1"),
    )
    assert await system.client.evacuate_running(request)


async def retire(system: Any, guid: str) -> None:
    """Fails: five stops, then the last error is the answer."""
    with pytest.raises(Failed):
        await system.client.retire(system.key(guid))


ROUTES = models.ProtoRoutes(routes={"internal-router": b'[{"hostname":"a.internal"}]'})

WAITING: dict[str, tuple[Deed, Deed, int]] = {
    "auctioneer-desire-task": (nothing, lambda s, guid: s.client.desire_task(guid, guid, s.task()), 1),
    "auctioneer-desire-lrp": (nothing, lambda s, guid: s.client.desire_lrp(s.lrp(guid, 2)), 1),
    "auctioneer-scale-up": (running_lrp, update(3), 1),
    "auctioneer-crash": (
        running_lrp,
        lambda s, guid: s.client.crash(s.key(guid), s.instance(0, "home"), "over"),
        1,
    ),
    "auctioneer-evacuate-running": (running_lrp, evacuate, 1),
    "rep-cancel-task": (running_task, lambda s, guid: s.client.cancel_task(guid), 1),
    "rep-retire": (running_lrp, retire, 5),
}
"""Preparation, request, and how many times `communication_timeout` the answer waits for a peer that never answers."""

NOT_WAITING: dict[str, tuple[Deed, Deed]] = {
    "rep-scale-down": (running_lrp, update(0, annotation="less")),
    "rep-remove-lrp": (running_lrp, lambda s, guid: s.client.remove_lrp(guid)),
    "rep-new-routes": (running_lrp, update(2, routes=ROUTES)),
    "rep-new-tags": (running_lrp, update(2, metric_tags={"t": models.MetricTagValue(static="x")})),
}
"""Requests whose calls to cells go on in the background."""


@pytest.mark.parametrize("name", WAITING)
async def test_refused_connections_delay_nothing(refused: Any, name: str) -> None:
    prepare, do, _ = WAITING[name]
    system, guid = refused, refused.guid("refused")
    await prepare(system, guid)
    assert await took(do(system, guid)) < PROMPT
    assert await took(others(system)) < PROMPT


@pytest.mark.parametrize("name", NOT_WAITING)
async def test_refused_stops_and_updates_delay_nothing(refused: Any, name: str) -> None:
    prepare, do = NOT_WAITING[name]
    system, guid = refused, refused.guid("refused")
    await prepare(system, guid)
    assert await took(do(system, guid)) < PROMPT


async def test_hanging_peers_delay_only_those_who_wait_for_them(patient: Any) -> None:
    """All at the same time: they wait until their peers answer, and others are answered at once."""
    system = patient
    guids = {name: system.guid(name) for name in WAITING}
    deeds = {name: do for name, (_, do, _) in WAITING.items()}
    deeds["rep-retire"] = lambda s, guid: s.client.retire(s.key(guid))  # with an answer it succeeds
    for name, (prepare, _, _) in WAITING.items():
        await prepare(system, guids[name])
    async with held(system.auctioneer, system.rep):
        works = {name: asyncio.create_task(took(do(system, guids[name]))) for name, do in deeds.items()}
        for name, guid in guids.items():
            await (system.rep if name.startswith("rep") else system.auctioneer).wait_for(guid)
        assert await took(others(system)) < PROMPT
        # Done already, though the answer is not there yet.
        assert (await system.client.task(guids["auctioneer-desire-task"])).state == models.Task.Pending
        assert (await system.client.task(guids["rep-cancel-task"])).state == models.Task.Completed
        assert await system.instances(guids["auctioneer-desire-lrp"]) == ["0 UNCLAIMED", "1 UNCLAIMED"]
        assert [name for name, work in works.items() if work.done()] == []
    async with asyncio.timeout(PROMPT):
        await asyncio.gather(*works.values())


async def test_peers_that_never_answer_delay_each_only_for_its_own_time(impatient: Any) -> None:
    system = impatient
    guids = {name: system.guid(name) for name in WAITING}
    for name, (prepare, _, _) in WAITING.items():
        await prepare(system, guids[name])
    async with held(system.auctioneer, system.rep):
        works = {name: asyncio.create_task(took(do(system, guids[name]))) for name, (_, do, _) in WAITING.items()}
        for name, (_, _, times) in WAITING.items():
            seconds = await works[name]
            assert 0.9 * SHORT_TIMEOUT * times < seconds < SHORT_TIMEOUT * times + SLACK, name
    assert len(system.rep.matching(guids["rep-retire"])) == 5


async def test_hanging_stops_and_updates_delay_nothing(patient: Any) -> None:
    system = patient
    guids = {name: system.guid(name) for name in NOT_WAITING}
    for name, (prepare, _) in NOT_WAITING.items():
        await prepare(system, guids[name])
    async with held(system.rep):
        for name, (_, do) in NOT_WAITING.items():
            assert await took(do(system, guids[name])) < PROMPT, name
            assert await took(others(system)) < PROMPT
    for guid in guids.values():
        await system.rep.wait_for(guid, 2)


async def test_many_who_wait_do_not_hold_up_others(converging: Any) -> None:
    """More requests than any pool of workers would have, all of them waiting for the auctioneer."""
    system, guids = converging, [converging.guid("many") for _ in range(100)]
    async with held(system.auctioneer):
        waiting = [asyncio.create_task(system.client.desire_task(guid, guid, system.task())) for guid in guids]
        for guid in guids:
            await system.events.wait_for("tasks", lambda e, guid=guid: e.message.task.task_guid == guid)
        there = {task.task_guid: task.state for task in await system.client.tasks()}
        assert {there[guid] for guid in guids} == {models.Task.Pending}
        assert await took(others(system)) < PROMPT
        assert not any(task.done() for task in waiting)
    async with asyncio.timeout(PROMPT):
        await asyncio.gather(*waiting)


async def test_a_callback_that_hangs_delays_nothing(patient: Any, receiver: Any) -> None:
    system, guid = patient, patient.guid("called")
    await system.client.desire_task(guid, guid, system.task(receiver.url))
    assert await system.client.start_task(guid, "home")
    async with held(receiver):
        assert await took(system.client.complete_task(guid, "home", False, "", "result")) < PROMPT
        await receiver.wait_for(guid)
        assert (await system.client.task(guid)).state == models.Task.Resolving
        assert await took(others(system)) < PROMPT
    await system.events.wait_for("tasks", lambda e: e.name == "task_removed" and e.message.task.task_guid == guid)
    assert len(receiver.matching(guid)) == 1


@pytest.mark.parametrize("peer", ["auctioneer", "rep"])
async def test_convergence_that_waits_holds_up_no_request(converging: Any, peer: str) -> None:
    """A pass that waits for an auction, or for a cell to stop an extra instance."""
    system, guid = converging, converging.guid("slow")
    double = getattr(system, peer)
    if peer == "rep":
        await system.client.upsert_domain(guid, 60)
        await system.start(guid, 0, "home")  # never desired
    else:
        await system.client.desire_task(guid, guid, system.task())
    await double.wait_for(guid, 2)  # at least one of them of a pass: all later ones ask, too
    async with held(double):
        await double.wait_for(guid, len(double.matching(guid)) + 1)
        assert await took(others(system)) < PROMPT
    if peer == "rep":
        await system.client.remove(guid, 0, system.instance(0, "home"))
    else:
        await system.client.cancel_task(guid)
    await system.converged()
