"""The verbs for tasks."""

from __future__ import annotations

from typing import Annotated

import typer
from bbs_protos import models_pb2 as models

from bbs_server.cli.output import show
from bbs_server.cli.settings import ask, settings_of
from bbs_server.cli.specs import Spec, read_spec
from bbs_server.cli.watch import watch
from bbs_server.client import Client

app = typer.Typer()

Guid = Annotated[str, typer.Argument(metavar="TASK_GUID")]


@app.command()
def tasks(
    context: typer.Context,
    domain: Annotated[str, typer.Option("--domain", "-d", help="Only tasks of this domain.")] = "",
    cell: Annotated[str, typer.Option("--cell-id", "-c", help="Only tasks of this cell.")] = "",
    live: Annotated[bool, typer.Option("--watch", "-w", help="Keep the list current by events.")] = False,
) -> None:
    """List tasks."""
    if live:
        watch(context, models.Task, "/v1/events/tasks.r1", lambda bbs: bbs.tasks(domain, cell))
        return
    show(settings_of(context), ask(context, lambda bbs: bbs.tasks(domain, cell)), models.Task)


@app.command()
def task(context: typer.Context, guid: Guid) -> None:
    """Show a task."""
    show(settings_of(context), [ask(context, lambda bbs: bbs.task(guid))], models.Task)


@app.command()
def create_task(context: typer.Context, spec: Spec) -> None:
    """Desire a task: JSON of a task with its definition in place, or @FILE."""
    wanted = read_spec(spec, models.Task)
    ask(context, lambda bbs: bbs.desire_task(wanted.task_guid, wanted.domain, wanted.task_definition))


@app.command()
def cancel_task(context: typer.Context, guid: Guid) -> None:
    """Cancel a task: it completes as failed."""
    ask(context, lambda bbs: bbs.cancel_task(guid))


@app.command()
def delete_task(context: typer.Context, guid: Guid) -> None:
    """Delete a completed task."""

    async def resolve_and_delete(bbs: Client) -> None:
        await bbs.resolving_task(guid)
        await bbs.delete_task(guid)

    ask(context, resolve_and_delete)
