"""A browser, and the page served on a made-up fleet by a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from bbs_server.dev.example_fleet import ExampleFleet
from bbs_server.dev.ports import free_port
from bbs_server.page import start_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, headless. Without one, browser tests are skipped."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser installed: browser tests need chromium in the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need the package playwright")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        one = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield one
        one.close()


class ServedFleet:
    """A made-up fleet and its page, in a loop of their own thread: Playwright's calls block ours."""

    def __init__(self, fleet: ExampleFleet, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.fleet = fleet
        self.url = url
        self._loop = loop

    def do(self, work: Callable[[], object]) -> None:
        """Change the fleet in its loop."""

        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)


Serve = Callable[[ExampleFleet], ServedFleet]


@pytest.fixture
def serve() -> Iterator[Serve]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    stops: list[Callable[[], Awaitable[None]]] = []

    def await_in_loop(work: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), loop).result(10)

    def start(fleet: ExampleFleet) -> ServedFleet:
        port = free_port()
        stops.append(await_in_loop(start_page("127.0.0.1", port, fleet)))
        return ServedFleet(fleet, f"http://127.0.0.1:{port}/", loop)

    yield start
    for stop in stops:
        with contextlib.suppress(TimeoutError):
            await_in_loop(stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
