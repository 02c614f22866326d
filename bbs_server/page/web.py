"""The page over HTTP: its files, the stream of changes, details on demand, and actions where there are any."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, Protocol

import aiohttp.web as web
from google.protobuf.message import Message

from bbs_server.client.json_form import as_dict
from bbs_server.page.broadcast import Broadcast
from bbs_server.page.feed import Change, Feed, FeedFailed, Listed, NotThere
from bbs_server.page.figures import Figures
from bbs_server.page.model import Fleet

log = logging.getLogger(__name__)

CHANGE_HEADER = "X-Bbs-Dev"
"""Must be on every request that changes something: pages of other sites cannot send it."""

_LISTS_SECONDS = 2.0
"""Between two looks at cells, domains and figures. Cells and domains have no event stream, so they are asked for;
tasks and LRPs never are."""
_PAUSE = 1.0
_BUSY = 0.02
"""s of applying events before others get a turn."""

_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_SECRETS = (".env.value", ".image_username", ".image_password", ".content")
"""Ends of the JSON paths whose values are often secrets: environments, registry logins, mounted files."""
_MASK = "(hidden)"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Actions(Protocol):
    """What the page may do besides showing. Every method raises FeedFailed with a text for people."""

    def parts(self) -> Sequence[Mapping[str, Any]]:
        """The processes of the stack: `name`, `state`, `cell` (whether it is one)."""

    async def run_task(self, script: str) -> str:
        """Desire a task; its guid."""

    async def desire(self, guid: str, instances: int) -> None:
        """Desire an example app."""

    async def scale(self, guid: str, instances: int) -> None: ...

    async def remove(self, guid: str) -> None:
        """Remove a desired LRP."""

    async def cancel(self, guid: str) -> None:
        """Cancel a task."""


class Page:
    """The picture of one feed and everything that keeps it up to date. `run` it for as long as it is served."""

    def __init__(self, feed: Feed, actions: Actions | None = None) -> None:
        self.feed = feed
        self.actions = actions
        self.fleet = Fleet()
        self.figures = Figures()
        self.broadcast = Broadcast(self.fleet, self.figures)
        self.broadcast.tell(actions=actions is not None, problem="not connected yet", parts=[], since=_now())

    async def run(self) -> None:
        """Follow the feed for ever. What goes wrong here is said on the page and tried again: whoever serves it
        has more important things to do."""
        while True:
            try:
                await self._run()
            except* Exception as problems:
                log.error("the page stumbled", exc_info=problems)
                self.broadcast.tell(problem=f"the page stumbled: {problems.exceptions[0]}")
            await asyncio.sleep(_PAUSE)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(self.feed.tasks))
            group.create_task(self._follow(self.feed.lrps))
            group.create_task(self._look())
            group.create_task(self.broadcast.run())
            if self.actions is not None:
                group.create_task(self._watch_parts(self.actions))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run in the background of the body."""
        task = asyncio.create_task(self.run(), name="page")
        try:
            yield
        finally:
            self.broadcast.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, changes: Callable[[], AsyncGenerator[Change, None]]) -> None:
        while True:
            try:
                async with contextlib.aclosing(changes()) as stream:
                    await self._apply(stream)
                return
            except FeedFailed as problem:
                self.broadcast.tell(problem=str(problem))
            await asyncio.sleep(_PAUSE)

    async def _apply(self, stream: AsyncGenerator[Change, None]) -> None:
        turn = time.monotonic()
        async for change in stream:
            if isinstance(change, Listed):
                await self._relist(change)
            else:
                self.fleet.apply(change)
            if time.monotonic() - turn > _BUSY:
                await asyncio.sleep(0)
                turn = time.monotonic()

    async def _relist(self, listed: Listed) -> None:
        relisting = self.fleet.relist(listed.kind)
        for part in listed.parts:
            relisting.add(part)
            await asyncio.sleep(0)
        relisting.finish()

    async def _look(self) -> None:
        while True:
            try:
                self.fleet.put_cells(await self.feed.cells())
                self.fleet.put_domains(await self.feed.domains())
                self.broadcast.tell(problem="")
            except FeedFailed as problem:
                self.broadcast.tell(problem=str(problem))
            try:
                families = await self.feed.figures()
            except FeedFailed:
                families = ()
            self.broadcast.tell_point(self.figures.look(_now(), families, self.fleet.events))
            await asyncio.sleep(_LISTS_SECONDS)

    async def _watch_parts(self, actions: Actions) -> None:
        # Parts are in this process: looking at them costs nothing.
        while True:
            self.broadcast.tell(parts=list(actions.parts()))
            await asyncio.sleep(0.2)


def routes(page: Page) -> list[web.RouteDef]:
    """The page at `/`, its files below `/page/`, its data below `/api/`. Changes exist only if it has actions.

    Whoever serves them keeps strangers out: see `only_this_host` and CHANGE_HEADER.
    """
    found = [web.get(path, _file(*content)) for path, content in _files().items()]
    found += [
        web.get("/api/stream", _stream(page)),
        web.get("/api/task", _answering(lambda request: _task(page, _guid(request)))),
        web.get("/api/lrp", _answering(lambda request: _lrp(page, _guid(request)))),
        web.get("/api/cell", _answering(lambda request: _cell(page, _guid(request)))),
    ]
    if (actions := page.actions) is not None:
        found += [web.post(path, _changing(actions, change)) for path, change in _CHANGES.items()]
    return found


async def start_page(host: str, port: int, feed: Feed) -> Callable[[], Awaitable[None]]:
    """Serve a read-only page by plain HTTP, for a loopback or admin address. Gives what stops it; keep it as long.

    Raises OSError if the address cannot be used.
    """
    page = Page(feed)
    app = web.Application(middlewares=[only_this_host(host)])
    app.add_routes(routes(page))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handle_signals=False)
    stack = contextlib.AsyncExitStack()
    try:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, host, port).start()
        await stack.enter_async_context(page.running())
    except BaseException:
        await stack.aclose()
        raise
    return stack.aclose


def only_this_host(host: str) -> Any:
    """Middleware that refuses names other than `host`, localhost and addresses: a page of another site could
    otherwise read ours by letting its own name point here."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        name = request.url.host or ""
        if name not in (host, "localhost") and not _is_address(name):
            raise web.HTTPForbidden(text="this page does not answer to that name\n")
        return await handler(request)

    return check


def _files() -> Mapping[str, tuple[bytes, str]]:
    found: dict[str, tuple[bytes, str]] = {}
    for file in resources.files(__package__).joinpath("static").iterdir():
        kind = _TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[path] = (file.read_bytes(), kind)
    return found


def _file(content: bytes, kind: str) -> Handler:
    headers = {**_SECURITY, "Cache-Control": "no-cache"}

    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=headers)

    return handle


def _stream(page: Page) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {**_SECURITY, "Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            await response.write(b"retry: 1000\n\n")
            async with contextlib.aclosing(page.broadcast.watch()) as messages:  # type: ignore[type-var]
                async for message in messages:
                    await response.write(message)
        return response

    return handle


def _guid(request: web.Request) -> str:
    return request.query.get("guid", "")


async def _task(page: Page, guid: str) -> Mapping[str, Any]:
    """A task that is gone still has its history."""
    history = page.fleet.history("task", guid)
    try:
        return {"task": _shown(page, await page.feed.task(guid)), "history": history}
    except NotThere:
        if not history:
            raise
        return {"task": None, "history": history}


async def _lrp(page: Page, guid: str) -> Mapping[str, Any]:
    history = page.fleet.history("lrp", guid)
    instances = [as_dict(lrp) for lrp in await page.feed.instances(guid)]
    try:
        desired = _shown(page, await page.feed.desired_lrp(guid))
    except NotThere:
        if not history and not instances:
            raise
        desired = None
    return {"desired": desired, "instances": instances, "history": history}


def _shown(page: Page, message: Message) -> Any:
    """A record as JSON. Only a stack on a laptop shows what may be a secret."""
    found = as_dict(message)
    return found if page.actions is not None else _masked(found)


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _masked(one, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, list):
        return [_masked(one, name) for one in value]
    secret = isinstance(value, str) and value and name.endswith(_SECRETS)
    return _MASK if secret else value


async def _cell(page: Page, guid: str) -> Mapping[str, Any]:
    for presence in await page.feed.cells():
        if presence.cell_id == guid:
            return {"cell": as_dict(presence)}
    return {"cell": None}


def _answering(ask: Callable[[web.Request], Awaitable[Any]]) -> Handler:
    """JSON of what is asked for, or the reason why there is none."""

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {**_SECURITY, "Cache-Control": "no-store"}
        try:
            return web.json_response(await ask(request), headers=headers)
        except NotThere as problem:
            return web.json_response({"problem": str(problem)}, status=404, headers=headers)
        except FeedFailed as problem:
            return web.json_response({"problem": str(problem)}, status=502, headers=headers)
        except (KeyError, TypeError, ValueError) as problem:
            return web.json_response({"problem": f"bad request: {problem}"}, status=400, headers=headers)

    return handle


Deed = Callable[[Actions, Mapping[str, Any]], Awaitable[Any]]

_CHANGES: Mapping[str, Deed] = {
    "/api/run-task": lambda actions, given: actions.run_task(str(given["script"])),
    "/api/desire": lambda actions, given: actions.desire(str(given["guid"]), int(given["instances"])),
    "/api/scale": lambda actions, given: actions.scale(str(given["guid"]), int(given["instances"])),
    "/api/remove": lambda actions, given: actions.remove(str(given["guid"])),
    "/api/cancel": lambda actions, given: actions.cancel(str(given["guid"])),
}


def _changing(actions: Actions, change: Deed) -> Handler:
    async def ask(request: web.Request) -> Any:
        if CHANGE_HEADER not in request.headers:
            raise web.HTTPForbidden(text=f"changes need the header {CHANGE_HEADER}\n")
        return {"done": await change(actions, await request.json())}

    return _answering(ask)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _now() -> int:
    return time.time_ns() // 1_000_000
