"""`python -m bbs_server.dev.cell.main --config FILE`: a cell as a process.

SIGTERM evacuates: the cell keeps its instances until they run elsewhere, or the evacuation timeout.
SIGINT ends at once; so does a second SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from pathlib import Path
from typing import Annotated

import aiohttp.web as web
import typer

from bbs_server.client import Client, Target
from bbs_server.dev.background import running
from bbs_server.dev.cell.containers import Containers
from bbs_server.dev.cell.http import local_routes, network_routes
from bbs_server.dev.cell.presence import presence
from bbs_server.dev.cell.rep import Rep
from bbs_server.dev.cell.settings import Settings, load
from bbs_server.dev.tls import server_tls

log = logging.getLogger(__name__)

_EVACUATION_SYNC_SECONDS = 1.0


def run(config: Annotated[Path, typer.Option(help="JSON file; the keys are those of cell/settings.py.")]) -> None:
    """Run tasks and instances as plain processes of this machine, for development. There is no isolation."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(Cell(load(config)).run())


class Cell:
    """All parts of one cell."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bbs = Client(Target(settings.bbs_url, settings.ca, settings.cert, settings.key, timeout=10))
        folder = Path(settings.folder)
        shutil.rmtree(folder / "containers", ignore_errors=True)
        self._containers = Containers(folder, self._changed)
        self._rep = Rep(settings, self._bbs, self._containers)
        self._evacuate = asyncio.Event()
        self._end = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._end.set)
        async with presence(self._settings), self._listening(), running(self._sync()):
            log.warning("%s runs everything without isolation: for development only", self._settings.cell_id)
            await self._until_the_end()
            self._rep.evacuating = True
            await asyncio.gather(*(self._containers.delete(container.guid) for container in self._containers.all()))
        await self._bbs.close()

    def _changed(self, guid: str) -> None:
        self._rep.process(guid)

    def _terminate(self) -> None:
        """SIGTERM: evacuate; a second one ends at once."""
        if self._evacuate.is_set():
            self._end.set()
        self._ask_to_evacuate()

    def _ask_to_evacuate(self) -> None:
        self._rep.evacuating = True
        self._evacuate.set()

    async def _until_the_end(self) -> None:
        ending, evacuating = asyncio.create_task(self._end.wait()), asyncio.create_task(self._evacuation())
        await asyncio.wait([ending, evacuating], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        evacuating.cancel()

    async def _evacuation(self) -> None:
        """Ends when no container is left, or at the evacuation timeout."""
        await self._evacuate.wait()
        log.info("evacuating %d containers", len(self._containers))
        try:
            async with asyncio.timeout(self._settings.evacuation_timeout_seconds):
                while len(self._containers):
                    await self._rep.sync()
                    await asyncio.sleep(_EVACUATION_SYNC_SECONDS)
        except TimeoutError:
            log.warning("evacuation timed out with %d containers left", len(self._containers))

    async def _sync(self) -> None:
        """At the start too, other than the reference: after a kill the BBS hears at once what is gone."""
        while True:
            try:
                await self._rep.sync()
            except Exception:
                log.exception("bulk sync")
            await asyncio.sleep(self._settings.sync_interval_seconds)

    def _listening(self) -> _Listeners:
        tls = server_tls(self._settings.identity())
        return _Listeners(
            (self._settings.port, network_routes(self._settings, self._containers, self._rep), tls),
            (self._settings.admin_port, local_routes(self._ask_to_evacuate), tls),
        )


class _Listeners:
    """HTTP servers on 127.0.0.1 for as long as the context lasts."""

    def __init__(self, *listeners: tuple[int, list[web.RouteDef], object]) -> None:
        self._listeners = listeners
        self._runners: list[web.AppRunner] = []

    async def __aenter__(self) -> None:
        for port, routes, tls in self._listeners:
            app = web.Application(client_max_size=64 * 2**20)
            app.add_routes(routes)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            self._runners.append(runner)
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()  # type: ignore[arg-type]

    async def __aexit__(self, *_: object) -> None:
        for runner in self._runners:
            await runner.cleanup()


if __name__ == "__main__":
    typer.run(run)
