"""The supervisor's HTTP API on loopback: what `bbs-dev` and the page's buttons talk to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp.web as web

from bbs_server.dev.layout import CHANGE_HEADER
from bbs_server.dev.supervisor import Part, Stack, StillStopping

HEADER = CHANGE_HEADER
_LOCAL_HOSTS = ("127.0.0.1", "localhost")
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(stack: Stack, end: asyncio.Event) -> list[web.RouteDef]:
    """`end` is set when somebody asks for the whole stack to go down."""

    async def parts(_: web.Request) -> web.Response:
        return web.json_response([describe(part) for part in stack.parts.values()])

    async def kill(request: web.Request) -> web.Response:
        part = _part(stack, request)
        await part.stop(_SIGNALS.get(request.query.get("signal", "kill"), signal.SIGKILL))
        return web.json_response(describe(part))

    async def start(request: web.Request) -> web.Response:
        part = _part(stack, request)
        try:
            part.start()
        except StillStopping as problem:
            raise web.HTTPConflict(text=f"{problem}\n") from None
        return web.json_response(describe(part))

    async def down(_: web.Request) -> web.Response:
        end.set()
        return web.json_response({})

    return [
        web.get("/api/parts", parts),
        web.post("/api/parts/{name}/kill", kill),
        web.post("/api/parts/{name}/start", start),
        web.post("/api/down", down),
    ]


@web.middleware
async def only_from_here(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep other sites' pages out: they can reach loopback ports through the browser, by name or by form."""
    if request.url.host not in _LOCAL_HOSTS:
        raise web.HTTPForbidden(text="this page answers on 127.0.0.1 only\n")
    if request.method not in ("GET", "HEAD") and HEADER not in request.headers:
        raise web.HTTPForbidden(text=f"changes need the header {HEADER}\n")
    return await handler(request)


def describe(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "state": part.state.value,
        "pid": part.pid,
        "restarts": part.restarts,
        "exit_code": part.exit_code,
        "since": part.since,
        "log": str(part.log_file),
    }


def _part(stack: Stack, request: web.Request) -> Part:
    part = stack.parts.get(request.match_info["name"])
    if part is None:
        raise web.HTTPNotFound(text=f"no such part; there are: {', '.join(stack.parts)}\n")
    return part
