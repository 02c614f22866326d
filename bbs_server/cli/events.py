"""The event streams as lines."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer
from bbs_protos import models_pb2 as models
from rich.console import Console
from rich.text import Text

from bbs_server.cli.settings import ask, settings_of
from bbs_server.client import Client, StreamEvent
from bbs_server.client.json_form import as_dict, dumps_value

app = typer.Typer()

Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Subscribe again whenever the stream ends, instead of ending with it.")
]


@app.command()
def task_events(context: typer.Context, keep: Watch = False) -> None:
    """Print task events until the stream ends."""
    _print(context, "/v1/events/tasks.r1", "", keep)


@app.command()
def lrp_events(
    context: typer.Context,
    cell: Annotated[str, typer.Option("--cell-id", "-c", help="Only instance events of this cell.")] = "",
    groups: Annotated[bool, typer.Option("--groups", help="The deprecated events of groups.")] = False,
    without_groups: Annotated[
        bool,
        typer.Option("--exclude-actual-lrp-groups", "-x", hidden=True, help="Accepted as cfdot has it: the default."),
    ] = False,
    keep: Watch = False,
) -> None:
    """Print events of desired LRPs and instances until the stream ends."""
    _print(context, "/v1/events.r1" if groups else "/v1/events/lrp_instances.r1", cell, keep)


def _print(context: typer.Context, path: str, cell: str, keep: bool) -> None:
    settings = settings_of(context)
    console = Console(soft_wrap=True)

    async def read(bbs: Client) -> None:
        stream = bbs.follow(path, cell) if keep else bbs.subscribe(path, cell)
        async for event in stream:
            if event is None:
                continue
            if settings.json:
                sys.stdout.write(dumps_value({"type": event.name, "data": as_dict(event.message)}) + "\n")
                sys.stdout.flush()
            else:
                console.print(_human(event))

    ask(context, read)


def _human(event: StreamEvent) -> Text:
    return Text.assemble(
        (time.strftime("%H:%M:%S "), "dim"), (f"{event.name:<28}", _style(event.name)), " ", describe(event)
    )


def _style(name: str) -> str:
    kind = name.rsplit("_", 1)[-1]
    return {"created": "green", "removed": "blue", "crashed": "red"}.get(kind, "yellow")


def describe(event: StreamEvent) -> str:
    """What an event says, in one line."""
    message: Any = event.message
    if event.name.startswith("task"):
        task = message.after if event.name == "task_changed" else message.task
        return f"{task.task_guid} {models.Task.State.Name(task.state)} {task.cell_id}".rstrip()
    if event.name.startswith("desired"):
        lrp = message.after if event.name == "desired_lrp_changed" else message.desired_lrp
        return f"{lrp.process_guid} instances {lrp.instances}"
    if event.name == "actual_lrp_crashed":
        return f"{_key(message.actual_lrp_key)} {message.crash_reason}"
    if event.name == "actual_lrp_instance_changed":
        states = f"{_state(message.before)} -> {_state(message.after)}"
        return f"{_key(message.actual_lrp_key)} {states} {message.actual_lrp_instance_key.cell_id}".rstrip()
    if event.name.startswith("actual_lrp_instance"):
        return _instance(message.actual_lrp)
    group = message.after if event.name == "actual_lrp_changed" else message.actual_lrp_group
    return _instance(group.instance if group.HasField("instance") else group.evacuating)


def _instance(lrp: models.ActualLRP) -> str:
    return f"{_key(lrp.actual_lrp_key)} {_state(lrp)} {lrp.actual_lrp_instance_key.cell_id}".rstrip()


def _state(lrp: models.ActualLRP | models.ActualLRPInfo) -> str:
    """State and, unless it is the usual one, presence."""
    presence = models.ActualLRP.Presence.Name(lrp.presence).lower()
    return lrp.state if presence == "ordinary" else f"{lrp.state} {presence}"


def _key(key: models.ActualLRPKey) -> str:
    return f"{key.process_guid}[{key.index}]"
