"""`--watch`: a list that follows the events of its stream."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import typer
from google.protobuf.message import Message
from rich.live import Live

from bbs_server.cli.output import line, table
from bbs_server.cli.settings import ask, settings_of
from bbs_server.client import Client


def watch(
    context: typer.Context,
    kind: type[Message],
    path: str,
    read: Callable[[Client], Coroutine[Any, Any, Sequence[Message]]],
) -> None:
    """List anew after every event, until Ctrl-C. With JSON output each new list is printed whole."""
    settings = settings_of(context)

    async def follow(bbs: Client) -> None:
        if settings.json:
            async for _ in bbs.follow(path):
                for message in await read(bbs):
                    line(message)
            return
        with Live(refresh_per_second=4) as live:
            async for _ in bbs.follow(path):
                live.update(table(await read(bbs), kind))

    ask(context, follow)
