"""The verbs that wait for something, for scripts: they ask after each event, not by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from bbs_protos import models_pb2 as models

from bbs_server.cli.output import show
from bbs_server.cli.settings import ask, fail, settings_of
from bbs_server.client import Client

app = typer.Typer()
T = TypeVar("T")

_TASK_FAILED = 1
_LRP_EVENTS = "/v1/events/lrp_instances.r1"
_TASK_EVENTS = "/v1/events/tasks.r1"

Within = Annotated[float, typer.Option("--within", help="Seconds after which to give up.")]


@app.command()
def wait_task(
    context: typer.Context, guid: Annotated[str, typer.Argument(metavar="TASK_GUID")], within: Within = 60.0
) -> None:
    """Wait until a task has completed, and show it. Status 1 if it failed."""

    async def completed(bbs: Client) -> models.Task | None:
        task = await bbs.task(guid)
        return task if task.state in (models.Task.Completed, models.Task.Resolving) else None

    task = ask(context, lambda bbs: _until(bbs, _TASK_EVENTS, completed, f"task {guid!r} has not completed", within))
    show(settings_of(context), [task], models.Task)
    if task.failed:
        raise typer.Exit(_TASK_FAILED)


@app.command()
def wait_lrp(
    context: typer.Context,
    guid: Annotated[str, typer.Argument(metavar="PROCESS_GUID")],
    not_on: Annotated[str, typer.Option("--not-on", metavar="CELL_ID", help="And no instance is on this cell.")] = "",
    within: Within = 60.0,
) -> None:
    """Wait until all desired instances of an LRP run, and show them."""

    async def all_run(bbs: Client) -> list[models.ActualLRP] | None:
        desired, lrps = await bbs.desired_lrp(guid), await bbs.actual_lrps(process_guid=guid)
        fine = [lrp for lrp in lrps if _runs(lrp) and lrp.actual_lrp_instance_key.cell_id != (not_on or None)]
        return lrps if len(fine) == len(lrps) == desired.instances else None

    lrps = ask(context, lambda bbs: _until(bbs, _LRP_EVENTS, all_run, f"not all instances of {guid!r} run", within))
    in_order = sorted(lrps, key=_index)
    show(settings_of(context), in_order, models.ActualLRP)


def _runs(lrp: models.ActualLRP) -> bool:
    return lrp.state == "RUNNING" and lrp.presence == models.ActualLRP.ORDINARY


async def _until(
    bbs: Client, path: str, look: Callable[[Client], Awaitable[T | None]], lacking: str, seconds: float
) -> T:
    """Look once subscribed, then after each event, until there is something."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in bbs.follow(path):
                found = await look(bbs)
                if found is not None:
                    return found
    except TimeoutError:
        pass
    return fail(f"{lacking} after {seconds:g} s")


def _index(lrp: models.ActualLRP) -> int:
    return lrp.actual_lrp_key.index
