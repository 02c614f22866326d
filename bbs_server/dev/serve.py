"""`python -m bbs_server.dev.serve`: the process that keeps a stack running and serves its page."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import aiohttp.web as web
import typer

from bbs_server import page
from bbs_server.client import Client, Target
from bbs_server.dev import processes
from bbs_server.dev.api import only_from_here, routes
from bbs_server.dev.configs import client_identity
from bbs_server.dev.layout import Layout
from bbs_server.dev.page_actions import StackActions
from bbs_server.dev.supervisor import PartFailed, PostgresFailed, Stack

log = logging.getLogger(__name__)

_START_SECONDS = 60.0


def run(
    folder: Annotated[Path, typer.Option()],
    port_base: Annotated[int, typer.Option()],
    cells: Annotated[int, typer.Option()],
) -> None:
    """Run the stack until SIGTERM, SIGINT or a request to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    raise SystemExit(asyncio.run(_serve(Layout(folder.absolute(), port_base, cells))))


async def _serve(layout: Layout) -> int:
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    held = processes.lock(layout.lock_file)
    if held is None:
        log.error("another supervisor has %s", layout.folder)
        return 1
    try:
        stack = Stack(layout)
    except (PostgresFailed, OSError) as cause:
        layout.failure_file.write_text(f"{cause}\n")
        return 1
    layout.failure_file.unlink(missing_ok=True)
    app = web.Application(middlewares=[only_from_here])
    app.add_routes(routes(stack, end))
    _add_page(app, stack)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", layout.port("page")).start()
    starting = asyncio.create_task(_up(stack))
    ending = asyncio.create_task(end.wait())
    await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if starting.done() and (problem := starting.exception()):
        log.error("%s", problem)
        layout.failure_file.write_text(f"{problem}\n")
        status = 1
    else:
        await ending
    starting.cancel()
    await stack.down()
    await runner.cleanup()
    # `held` stays open: the lock goes with the process.
    return status


def _add_page(app: web.Application, stack: Stack) -> None:
    """The page, with its buttons, for as long as the application runs."""
    layout = stack.layout
    client = Client(Target(layout.url("bbs"), *client_identity(layout), timeout=10))
    feed = page.ClientFeed(client, f"http://127.0.0.1:{layout.port('bbs-metrics')}/metrics")
    shown = page.Page(feed, StackActions(stack, client))

    async def running(_: web.Application) -> AsyncIterator[None]:
        async with client, shown.running():
            yield
        await feed.close()

    app.add_routes(page.routes(shown))
    app.cleanup_ctx.append(running)


async def _up(stack: Stack) -> None:
    async for part in stack.up(_START_SECONDS):
        log.info("%s is ready", part.name)


__all__ = ["PartFailed", "PostgresFailed", "run"]


if __name__ == "__main__":
    typer.run(run)
