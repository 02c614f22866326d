"""Printing: one JSON line per message for programs, tables for people."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bbs_protos import locket_pb2
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bbs_server.cli.settings import Settings, on_terminal
from bbs_server.client import json_form

Column = tuple[str, Callable[[Any], Any]]
_STYLES = {
    "RUNNING": "green",
    "Running": "green",
    "CLAIMED": "yellow",
    "Pending": "yellow",
    "UNCLAIMED": "yellow",
    "CRASHED": "red",
    "SUSPECT": "magenta",
    "EVACUATING": "cyan",
}


_PIPE_WIDTH = 240


def console() -> Console:
    """As wide as the terminal; a table that goes elsewhere gets room for one line per record."""
    return Console(width=None if on_terminal() else _PIPE_WIDTH)


def show(settings: Settings, messages: Iterable[Message], kind: type[Message]) -> None:
    """Print messages of one type: JSON lines, or a table with the columns of `COLUMNS`."""
    if settings.json:
        for message in messages:
            line(message)
    else:
        console().print(table(messages, kind))


def line(message: Message) -> None:
    sys.stdout.write(json_form.dumps(message) + "\n")


def plain(settings: Settings, title: str, texts: Iterable[str]) -> None:
    """Print texts: JSON strings, or a table of one column."""
    if settings.json:
        for text in texts:
            sys.stdout.write(json_form.dumps_value(text) + "\n")
        return
    out = _table([title])
    for text in texts:
        out.add_row(Text(text))
    console().print(out)


def table(messages: Iterable[Message], kind: type[Message]) -> Table:
    columns = COLUMNS[kind]
    out = _table([name for name, _ in columns])
    for message in sorted(messages, key=ORDERS.get(kind, _as_given)):
        out.add_row(*(_cell(value(message)) for _, value in columns))
    return out


def _table(titles: Sequence[str]) -> Table:
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        out.add_column(title, overflow="fold")
    return out


def _cell(value: Any) -> Text:
    """Texts come from anybody: never read them as markup."""
    text = "" if value is None else str(value)
    return Text(text, style=_STYLES.get(text, ""))


def when(nanoseconds: int) -> str:
    """A time in ns as local time, to the second."""
    if not nanoseconds:
        return ""
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def _task_state(task: models.Task) -> str:
    name = models.Task.State.Name(task.state)
    return f"{name} (failed)" if task.failed else name


def _presence(lrp: models.ActualLRP) -> str:
    return models.ActualLRP.Presence.Name(lrp.presence)


def _ports(lrp: models.ActualLRP) -> str:
    info = lrp.actual_lrp_net_info
    return " ".join(f"{info.address}:{port.host_port}" for port in info.ports)


def _problem(lrp: models.ActualLRP) -> str:
    return lrp.placement_error or (f"crashed {lrp.crash_count}x: {lrp.crash_reason}" if lrp.crash_count else "")


def _as_given(_: Message) -> Any:
    return 0


ORDERS: Mapping[type[Message], Callable[[Any], Any]] = {
    models.ActualLRP: lambda m: (m.actual_lrp_key.process_guid, m.actual_lrp_key.index, m.presence),
    models.CellPresence: lambda m: m.cell_id,
    models.Task: lambda m: m.created_at,
}
"""How tables are sorted; JSON lines come as the server lists them."""

COLUMNS: Mapping[type[Message], Sequence[Column]] = {
    models.Task: (
        ("task", lambda m: m.task_guid),
        ("domain", lambda m: m.domain),
        ("state", _task_state),
        ("cell", lambda m: m.cell_id),
        ("created", lambda m: when(m.created_at)),
        ("result", lambda m: m.failure_reason or m.result),
    ),
    models.ActualLRP: (
        ("process", lambda m: m.actual_lrp_key.process_guid),
        ("index", lambda m: m.actual_lrp_key.index),
        ("state", lambda m: m.state),
        ("presence", _presence),
        ("cell", lambda m: m.actual_lrp_instance_key.cell_id),
        ("instance", lambda m: m.actual_lrp_instance_key.instance_guid),
        ("address", _ports),
        ("since", lambda m: when(m.since)),
        ("problem", _problem),
    ),
    models.DesiredLRP: (
        ("process", lambda m: m.process_guid),
        ("domain", lambda m: m.domain),
        ("instances", lambda m: m.instances),
        ("memory MiB", lambda m: m.memory_mb),
        ("disk MiB", lambda m: m.disk_mb),
        ("rootfs", lambda m: m.root_fs),
        ("routes", lambda m: " ".join(sorted(m.routes.routes))),
    ),
    models.DesiredLRPSchedulingInfo: (
        ("process", lambda m: m.desired_lrp_key.process_guid),
        ("domain", lambda m: m.desired_lrp_key.domain),
        ("instances", lambda m: m.instances),
        ("memory MiB", lambda m: m.desired_lrp_resource.memory_mb),
        ("disk MiB", lambda m: m.desired_lrp_resource.disk_mb),
        ("rootfs", lambda m: m.desired_lrp_resource.root_fs),
        ("annotation", lambda m: m.annotation),
    ),
    models.CellPresence: (
        ("cell", lambda m: m.cell_id),
        ("zone", lambda m: m.zone),
        ("memory MiB", lambda m: m.capacity.memory_mb),
        ("disk MiB", lambda m: m.capacity.disk_mb),
        ("containers", lambda m: m.capacity.containers),
        ("tags", lambda m: " ".join(m.placement_tags)),
        ("url", lambda m: m.rep_url),
    ),
    models.ActualLRPGroup: (
        ("process", lambda m: (m.instance if m.HasField("instance") else m.evacuating).actual_lrp_key.process_guid),
        ("index", lambda m: (m.instance if m.HasField("instance") else m.evacuating).actual_lrp_key.index),
        ("instance", lambda m: m.instance.state),
        ("on", lambda m: m.instance.actual_lrp_instance_key.cell_id),
        ("evacuating", lambda m: m.evacuating.state),
        ("on", lambda m: m.evacuating.actual_lrp_instance_key.cell_id),
    ),
    locket_pb2.Resource: (
        ("key", lambda m: m.key),
        ("owner", lambda m: m.owner),
        ("type", lambda m: m.type),
        ("value", lambda m: m.value),
    ),
}
