"""`--watch`: a list that follows the events of its stream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import typer
from google.protobuf.message import Message
from rich.live import Live

from bbs_server.cli.output import line, table
from bbs_server.cli.settings import ask, settings_of
from bbs_server.client import Client

_PAUSE = 0.2
"""Seconds between two lists: a burst of events is one change to look at."""


def watch(
    context: typer.Context,
    kind: type[Message],
    path: str,
    read: Callable[[Client], Coroutine[Any, Any, Sequence[Message]]],
) -> None:
    """List anew after events, until Ctrl-C. With JSON output each new list is printed whole."""
    settings = settings_of(context)

    async def follow(bbs: Client, put: Callable[[Sequence[Message]], None]) -> None:
        changed = asyncio.Event()

        async def listen() -> None:
            async for _ in bbs.follow(path):
                changed.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            while True:
                await changed.wait()
                changed.clear()
                put(await read(bbs))
                await asyncio.sleep(_PAUSE)

    async def run(bbs: Client) -> None:
        try:
            if settings.json:
                await follow(bbs, _lines)
                return
            with Live(refresh_per_second=4) as live:
                await follow(bbs, lambda messages: live.update(table(messages, kind)))
        except* Exception as problems:
            raise problems.exceptions[0] from None

    ask(context, run)


def _lines(messages: Sequence[Message]) -> None:
    for message in messages:
        line(message)
    sys.stdout.flush()
