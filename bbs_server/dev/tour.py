"""The tour: the life of a task and of an app on a running stack, shown step by step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp.web as web
import httpx
from bbs_protos import models_pb2 as models
from rich.console import Console

from bbs_server.client import Client, Failed, Target
from bbs_server.dev import definitions
from bbs_server.dev.configs import client_identity
from bbs_server.dev.layout import Layout

_SECONDS = 60.0


class TourFailed(Exception):
    """Something the tour waited for did not come."""


async def tour(layout: Layout, console: Console) -> None:
    """Show what a BBS does, with real requests and real processes. Raises TourFailed or a ClientError."""
    async with Client(Target(layout.url("bbs"), *client_identity(layout))) as bbs:
        await _found_again(bbs, console)
        await bbs.upsert_domain(definitions.DOMAIN, ttl=0)
        await _task(bbs, console)
        await _refused(bbs, console)
        await _app(bbs, console)


async def _found_again(bbs: Client, console: Console) -> None:
    tasks, lrps = await bbs.tasks(), await bbs.desired_lrps()
    if tasks or lrps:
        console.print(
            f"From the last time there are {len(tasks)} tasks and {len(lrps)} desired LRPs, as they were left."
        )


async def _task(bbs: Client, console: Console) -> None:
    guid = f"tour-{uuid.uuid4().hex[:8]}"
    console.rule("a task, from desire to callback")
    async with _receiver() as (callback, calls), _events(bbs) as events:
        script = "echo six times seven is $((6*7)) > result"
        definition = definitions.task(script, result_file="/result", callback=callback)
        console.print(f"[bold]desire[/]    {guid}: sh -c '{script}'")
        await bbs.desire_task(guid, definitions.DOMAIN, definition)
        async with asyncio.timeout(_SECONDS):
            async for line in events(guid):
                console.print(line)
            call = await calls.get()
    console.print(f"[bold]callback[/]  failed={call['failed']} result={call['result'].strip()!r}")
    await _until("the task is gone", lambda: _gone(bbs, guid))
    console.print("[bold]gone[/]      the BBS has forgotten the task")
    kept = f"kept-{uuid.uuid4().hex[:8]}"
    await bbs.desire_task(kept, definitions.DOMAIN, definitions.task("echo kept > result", result_file="/result"))
    await _until("a task without callback completes", lambda: _completed(bbs, kept))
    console.print(f"[bold]kept[/]      {kept} had no callback: it stays, completed, also over a restart")


async def _refused(bbs: Client, console: Console) -> None:
    console.rule("a refused request")
    try:
        await bbs.desire_task("no-rootfs", "", models.TaskDefinition())
    except Failed as problem:
        console.print(f"[bold]refused[/]   {problem.type_name}: {problem}")
    else:
        raise TourFailed("an invalid task was accepted")


async def _app(bbs: Client, console: Console) -> None:
    guid = "tour-app"
    console.rule("an app of three instances")
    with contextlib.suppress(Failed):
        await bbs.remove_lrp(guid)
        await _until("the former app is gone", lambda: _instances(bbs, guid, 0))
    await bbs.desire_lrp(definitions.web_app(guid, 3))
    await _until("three instances run", lambda: _instances(bbs, guid, 3))
    async with httpx.AsyncClient(trust_env=False) as http:
        for lrp in sorted(await bbs.actual_lrps(process_guid=guid), key=lambda lrp: lrp.actual_lrp_key.index):
            address = f"http://{lrp.actual_lrp_net_info.address}:{lrp.actual_lrp_net_info.ports[0].host_port}/"
            text = (await http.get(address)).text.strip()
            console.print(f"[bold]{lrp.state.lower()}[/]   {address}  says: {text}")


@contextlib.asynccontextmanager
async def _receiver() -> AsyncIterator[tuple[str, asyncio.Queue[dict[str, Any]]]]:
    """A receiver of completion callbacks: its address and what arrived."""
    calls: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        calls.put_nowait(json.loads(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/done", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/done", calls
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def _events(bbs: Client) -> AsyncIterator[Callable[[str], AsyncIterator[str]]]:
    """Task events from now on, as lines, up to the completion of the task asked for."""
    stream = bbs.subscribe("/v1/events/tasks.r1")
    await anext(stream)

    async def lines(guid: str) -> AsyncIterator[str]:
        async for event in stream:
            message: Any = event.message if event else None
            if event and event.name == "task_changed" and message.after.task_guid == guid:
                name = models.Task.State.Name(message.after.state).lower()
                where = f" on {message.after.cell_id}" if message.after.cell_id else ""
                yield f"[bold]{name:<9}[/] event {event.id}{where}"
                if message.after.state == models.Task.Completed:
                    return

    try:
        yield lines
    finally:
        await stream.aclose()


async def _until(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    try:
        async with asyncio.timeout(_SECONDS):
            while not await check():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise TourFailed(f"waited {_SECONDS:.0f} s in vain until {what}") from None


async def _gone(bbs: Client, guid: str) -> bool:
    return all(task.task_guid != guid for task in await bbs.tasks())


async def _completed(bbs: Client, guid: str) -> bool:
    return (await bbs.task(guid)).state == models.Task.Completed


async def _instances(bbs: Client, guid: str, count: int) -> bool:
    lrps = await bbs.actual_lrps(process_guid=guid)
    return len(lrps) == count and all(lrp.state == "RUNNING" for lrp in lrps)
