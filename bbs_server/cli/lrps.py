"""The verbs for desired and actual LRPs and domains."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from bbs_protos import models_pb2 as models

from bbs_server.cli.output import plain, show
from bbs_server.cli.settings import INVALID, ask, fail, settings_of
from bbs_server.cli.specs import Spec, read_spec
from bbs_server.cli.watch import watch
from bbs_server.client import Client

app = typer.Typer()

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_PIECE = r"(\d+(?:\.\d+)?)(ms|s|m|h)"

Guid = Annotated[str, typer.Argument(metavar="PROCESS_GUID")]
Domain = Annotated[str, typer.Option("--domain", "-d", help="Only those of this domain.")]
Cell = Annotated[str, typer.Option("--cell-id", "-c", help="Only those of this cell.")]
Process = Annotated[str, typer.Option("--process-guid", "-p", help="Only instances of this process.")]
Index = Annotated[int | None, typer.Option("--index", "-i", min=0, help="Only instances of this index.")]


@app.command()
def actual_lrps(
    context: typer.Context,
    domain: Domain = "",
    cell: Cell = "",
    process: Process = "",
    index: Index = None,
    live: Annotated[bool, typer.Option("--watch", "-w", help="Keep the list current by events.")] = False,
) -> None:
    """List actual LRPs."""
    if live:
        path = "/v1/events/lrp_instances.r1"
        watch(context, models.ActualLRP, path, lambda bbs: bbs.actual_lrps(domain, cell, process, index))
        return
    lrps = ask(context, lambda bbs: bbs.actual_lrps(domain, cell, process, index))
    show(settings_of(context), lrps, models.ActualLRP)


@app.command(deprecated=True)
def actual_lrp_groups(context: typer.Context, domain: Domain = "", cell: Cell = "") -> None:
    """List actual LRPs in groups."""
    groups = ask(context, lambda bbs: bbs.actual_lrp_groups(domain, cell))
    show(settings_of(context), groups, models.ActualLRPGroup)


@app.command(deprecated=True)
def actual_lrp_groups_for_guid(context: typer.Context, guid: Guid, index: Index = None) -> None:
    """List the groups of a process."""
    groups = ask(context, lambda bbs: bbs.actual_lrp_groups_by_process_guid(guid))
    wanted = [g for g in groups if index is None or index in (_index(g.instance), _index(g.evacuating))]
    show(settings_of(context), wanted, models.ActualLRPGroup)


def _index(lrp: models.ActualLRP) -> int | None:
    return lrp.actual_lrp_key.index if lrp.HasField("actual_lrp_key") else None


@app.command()
def retire_actual_lrp(
    context: typer.Context, guid: Guid, index: Annotated[int, typer.Argument(min=0, metavar="INDEX")]
) -> None:
    """Stop an instance for good; a desired one is started anew."""

    key = models.ActualLRPKey(process_guid=guid, index=index, domain="")

    async def retire(bbs: Client) -> None:
        lrps = await bbs.actual_lrps(process_guid=guid, index=index)
        if lrps:
            key.domain = lrps[0].actual_lrp_key.domain
        await bbs.retire(key)

    ask(context, retire)


@app.command()
def desired_lrps(context: typer.Context, domain: Domain = "") -> None:
    """List desired LRPs."""
    show(settings_of(context), ask(context, lambda bbs: bbs.desired_lrps(domain)), models.DesiredLRP)


@app.command()
def desired_lrp(context: typer.Context, guid: Guid) -> None:
    """Show a desired LRP."""
    show(settings_of(context), [ask(context, lambda bbs: bbs.desired_lrp(guid))], models.DesiredLRP)


@app.command()
def desired_lrp_scheduling_infos(context: typer.Context, domain: Domain = "") -> None:
    """List the scheduling infos of desired LRPs."""
    infos = ask(context, lambda bbs: bbs.scheduling_infos(domain))
    show(settings_of(context), infos, models.DesiredLRPSchedulingInfo)


@app.command()
def create_desired_lrp(context: typer.Context, spec: Spec) -> None:
    """Desire an LRP: JSON of a desired LRP, or @FILE."""
    lrp = read_spec(spec, models.DesiredLRP)
    ask(context, lambda bbs: bbs.desire_lrp(lrp))


@app.command()
def update_desired_lrp(context: typer.Context, guid: Guid, spec: Spec) -> None:
    """Change instances, routes, annotation or metric tags: JSON of an update, or @FILE."""
    update = read_spec(spec, models.DesiredLRPUpdate)
    ask(context, lambda bbs: bbs.update_lrp(guid, update))


@app.command()
def scale(
    context: typer.Context, guid: Guid, instances: Annotated[int, typer.Argument(min=0, metavar="INSTANCES")]
) -> None:
    """Change how many instances of an LRP are desired."""
    ask(context, lambda bbs: bbs.update_lrp(guid, models.DesiredLRPUpdate(instances=instances)))


@app.command()
def delete_desired_lrp(context: typer.Context, guid: Guid) -> None:
    """Remove a desired LRP; its instances are stopped."""
    ask(context, lambda bbs: bbs.remove_lrp(guid))


@app.command()
def domains(context: typer.Context) -> None:
    """List fresh domains."""
    plain(settings_of(context), "domain", ask(context, lambda bbs: bbs.domains()))


@app.command()
def set_domain(
    context: typer.Context,
    domain: Annotated[str, typer.Argument(metavar="DOMAIN")],
    ttl: Annotated[
        str, typer.Option("--ttl", "-t", help="How long it is fresh: 60, 60s, 5m, 1h30m; 0 is for ever.")
    ] = "0",
) -> None:
    """Mark a domain as fresh."""
    seconds = _seconds(ttl)
    ask(context, lambda bbs: bbs.upsert_domain(domain, seconds))


def _seconds(text: str) -> int:
    """Seconds of a plain number or of a duration as Go writes it, rounded down."""
    if text.isdecimal():
        return int(text)
    if not re.fullmatch(rf"({_PIECE})+", text):
        fail(f"invalid ttl {text!r}: use a number of seconds, or 60s, 5m, 1h30m", INVALID)
    return int(sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PIECE, text)))
