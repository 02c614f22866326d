"""A stack of real processes: any part killed and started again heals by itself, and nothing outlives its part."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from bbs_server.client import Client, ClientError, Failed
from bbs_server.core.errors import ErrorType
from bbs_server.dev import definitions

PATIENCE = 60.0
APP, INSTANCES = "app", 3
PARTS = ("postgres", "locket", "bbs", "auctioneer", "cell-1", "cell-2")


@pytest.fixture(scope="module")
def stack(new_stack: Callable[..., Any]) -> Iterator[Any]:
    stack = new_stack(cells=2)
    stack.run("up", "--detach")
    yield stack
    stack.run("down")
    deadline = time.monotonic() + 5
    while _processes_of(stack) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes_of(stack) == []


@pytest.fixture
async def bbs(stack: Any) -> AsyncIterator[Client]:
    async with Client(stack.target()) as client:
        await client.upsert_domain(definitions.DOMAIN, ttl=0)
        with contextlib.suppress(ClientError):
            await client.desire_lrp(definitions.web_app(APP, INSTANCES))
        await until(lambda: all_answer(client))
        yield client


def _processes_of(stack: Any) -> list[psutil.Process]:
    """Whatever runs in or for this stack: its folder is on the command line, or is where it works."""
    return [process for process in psutil.process_iter() if _runs(process, str(stack.folder))]


def _runs(process: psutil.Process, named: str) -> bool:
    """Whether it runs, named so by its command line or folder. It may end at any moment, even while it is looked at."""
    with contextlib.suppress(psutil.Error):
        if any(named in text for text in (*process.cmdline(), process.cwd())):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def until(check: Callable[[], Awaitable[bool]], seconds: float = PATIENCE) -> None:
    """Ask until it is so; what is asked lives in other processes, which tell nobody."""
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.1)


async def all_answer(bbs: Client, count: int = INSTANCES) -> bool:
    """All instances run, ordinary, and each answers over HTTP as itself."""
    try:
        lrps = await bbs.actual_lrps(process_guid=APP)
        if len(lrps) != count or any(lrp.state != "RUNNING" or lrp.presence for lrp in lrps):
            return False
        async with httpx.AsyncClient(trust_env=False, timeout=2) as http:
            for lrp in lrps:
                url = f"http://127.0.0.1:{lrp.actual_lrp_net_info.ports[0].host_port}/"
                key, instance = lrp.actual_lrp_key, lrp.actual_lrp_instance_key
                if f"instance {key.index} on {instance.cell_id}" not in (await http.get(url)).text:
                    return False
    except (ClientError, httpx.HTTPError):
        return False
    return True


async def runs_a_task(bbs: Client, guid: str) -> str:
    """Desire a task, as often as it takes; its result."""
    definition = definitions.task("echo $((6*7)) > result", result_file="/result")

    async def desired() -> bool:
        try:
            await bbs.desire_task(guid, definitions.DOMAIN, definition)
        except Failed as problem:
            return problem.type == ErrorType.RESOURCE_EXISTS  # it was, and only the answer was lost
        except ClientError:
            return False
        return True

    async def completed() -> bool:
        with contextlib.suppress(ClientError):
            return bool((await bbs.task(guid)).result)
        return False

    await until(desired)
    await until(completed)
    return (await bbs.task(guid)).result


@pytest.mark.parametrize("part", PARTS)
async def test_a_killed_part_that_is_started_again_heals(stack: Any, bbs: Client, part: str) -> None:
    await asyncio.to_thread(stack.run, "kill", part)
    await asyncio.to_thread(stack.run, "start", part)
    assert await runs_a_task(bbs, f"after-{part}") == "42\n"
    await until(lambda: all_answer(bbs))


@pytest.mark.parametrize("part", ["bbs", "cell-1"])
async def test_a_part_that_ends_by_itself_is_started_again(stack: Any, bbs: Client, part: str) -> None:
    before = stack.pid(part)
    os.kill(before, signal.SIGKILL)
    await until(lambda: _ready_again(stack, part, before))
    assert await runs_a_task(bbs, f"again-{part}") == "42\n"
    await until(lambda: all_answer(bbs))


async def _ready_again(stack: Any, part: str, before: int) -> bool:
    rows = (await asyncio.to_thread(stack.run, "status")).stdout.splitlines()
    (row,) = [line.split() for line in rows if line.split()[0] == part]
    return row[1] == "ready" and row[4] != str(before)


async def test_what_runs_on_a_killed_cell_dies_with_it_and_runs_elsewhere(stack: Any, bbs: Client) -> None:
    lrps = await bbs.actual_lrps(process_guid=APP)
    victim = next(lrp.actual_lrp_instance_key.cell_id for lrp in lrps)
    folder = str(stack.folder / "data" / victim)
    assert any(_runs(process, folder) for process in _processes_of(stack))
    await asyncio.to_thread(stack.run, "kill", victim)
    assert not [process for process in _processes_of(stack) if _runs(process, folder)]

    async def elsewhere() -> bool:
        there = {lrp.actual_lrp_instance_key.cell_id for lrp in await bbs.actual_lrps(process_guid=APP)}
        return victim not in there and await all_answer(bbs)

    await until(elsewhere)
    await asyncio.to_thread(stack.run, "start", victim)


async def test_a_cell_asked_to_end_evacuates_first(stack: Any, bbs: Client) -> None:
    stream = bbs.subscribe("/v1/events/lrp_instances.r1")
    await anext(stream)
    here = [lrp.actual_lrp_instance_key.cell_id for lrp in await bbs.actual_lrps(process_guid=APP)]
    victim = max(here, key=here.count)
    await asyncio.to_thread(stack.run, "kill", "--term", victim)
    lrps = await bbs.actual_lrps(process_guid=APP)
    assert victim not in {lrp.actual_lrp_instance_key.cell_id for lrp in lrps}
    assert await all_answer(bbs)
    async with asyncio.timeout(PATIENCE):
        names = {event.name async for event in _take(stream, here.count(victim))}
    assert "actual_lrp_instance_removed" in names
    assert "actual_lrp_crashed" not in names
    await asyncio.to_thread(stack.run, "start", victim)


async def _take(stream: Any, removals: int) -> AsyncIterator[Any]:
    """The events up to that many removals."""
    async for event in stream:
        yield event
        removals -= event.name == "actual_lrp_instance_removed"
        if not removals:
            return


async def test_after_a_killed_supervisor_up_cleans_up_and_finds_everything_again(stack: Any, bbs: Client) -> None:
    tasks = {task.task_guid for task in await bbs.tasks()}
    before = _processes_of(stack)
    supervisor = next(process for process in before if _runs(process, "bbs_server.dev.serve"))
    supervisor.kill()
    assert "not up" in stack.run("status", check=False).stderr
    assert "bbs, cell-1, cell-2, locket, postgres" in stack.run("up", "--detach").stdout
    assert not [process for process in before if _runs(process, str(stack.folder))]
    await until(lambda: all_answer(bbs))
    assert {task.task_guid for task in await bbs.tasks()} == tasks
