"""The debug server: change the log level, look into the running process (server.md section 17)."""

from __future__ import annotations

import asyncio
import gc
import io
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping

from aiohttp import web

from bbs_server.process.lager import Level, Sink
from bbs_server.process.plain_http import PlainServer

_SPELLINGS: Mapping[bytes, Level] = {
    spelling.encode(): level
    for level in Level
    for spelling in (level.name.lower(), level.name, level.name[0].lower(), str(int(level)))
}
_LARGEST_SHOWN = 40


def debug_server(address: str, sink: Sink) -> PlainServer:
    """The server, which sets the level of `sink`."""
    pages: Mapping[str, Callable[[bytes], web.Response]] = {
        "/log-level": lambda body: _set_level(sink, body),
        "/block-profile-rate": _ignored_number,
        "/mutex-profile-fraction": _ignored_number,
        "/debug/pprof/": lambda body: _text("\n".join(sorted(pages)) + "\n"),
        "/debug/pprof/cmdline": lambda body: _text("\0".join(sys.orig_argv)),
        "/debug/pprof/goroutine": lambda body: _text(_stacks()),
        "/debug/pprof/heap": lambda body: _text(_objects()),
    }

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        page = pages.get(request.path)
        if page is None:
            return _text("404 page not found\n", status=404)
        return page(await request.read())

    return PlainServer(address, handle)


def _set_level(sink: Sink, body: bytes) -> web.Response:
    sink.set_level(_SPELLINGS.get(body, sink.level))
    return web.Response()


def _ignored_number(body: bytes) -> web.Response:
    """Rates of profiles that this runtime does not have."""
    if re.fullmatch(rb"[+-]?[0-9]+", body):
        return web.Response()
    shown = body.decode("utf-8", "replace")
    return _text(f'strconv.Atoi: parsing "{shown}": invalid syntax', status=400)


def _stacks() -> str:
    """Where every task and every thread is."""
    out = io.StringIO()
    for task in sorted(asyncio.all_tasks(), key=asyncio.Task.get_name):
        task.print_stack(file=out)
        out.write("\n")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        out.write(f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}\n")
    return out.getvalue()


def _objects() -> str:
    """The most numerous objects that the collector watches; records frozen after loading are not among them."""
    counted = Counter(type(item).__qualname__ for item in gc.get_objects())
    lines = [f"{number:>10} {name}" for name, number in counted.most_common(_LARGEST_SHOWN)]
    return "\n".join([f"frozen {gc.get_freeze_count()}", *lines, ""])


def _text(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status)
