"""What a command gives back: its answer, and what must follow once its changes are committed.

Events and calls are data. The effects layer carries them out in commit order, never for a command
whose commit failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

from bbs_server.core.context import Context
from bbs_server.core.encoding import Answer
from bbs_server.core.records import ActualLRP, Task
from bbs_server.core.state import State


class Hub(Enum):
    """The four independent sources of events (events.md section 6)."""

    DESIRED = "desired"
    GROUP = "group"
    INSTANCE = "instance"
    TASK = "task"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of one hub; `name` is its `event:` line (events.md section 4).

    `before` and `after` are the records it shows; which of them are set follows from the name:
    created has after, removed has before, changed and crashed have both. Records of TASK are Task,
    of DESIRED DesiredLRP, of INSTANCE ActualLRP, of GROUP Group.
    An `actual_lrp_crashed` event always has two ActualLRP, in both hubs.
    """

    hub: Hub
    name: str
    before: Any = None
    after: Any = None
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """An ActualLRPGroup: the ordinary or suspect instance and the evacuating one."""

    instance: ActualLRP | None = None
    evacuating: ActualLRP | None = None


@dataclass(frozen=True, slots=True)
class TaskStart:
    """One task of an auction request (tasks.md 9.1)."""

    task_guid: str
    domain: str
    placement_tags: tuple[str, ...] | None
    volume_drivers: tuple[str, ...]
    rootfs: str
    memory_mb: int
    disk_mb: int
    max_pids: int


@dataclass(frozen=True, slots=True)
class LRPStart:
    """One LRP of an auction request (desired-lrps.md section 9). `volume_drivers` None is JSON null."""

    process_guid: str
    domain: str
    indices: tuple[int, ...]
    placement_tags: tuple[str, ...] | None
    volume_drivers: tuple[str, ...] | None
    rootfs: str
    memory_mb: int
    disk_mb: int
    max_pids: int


@dataclass(frozen=True, slots=True)
class AuctionTasks:
    """Ask the auctioneer to place tasks. The answer waits for it; its failure is only logged."""

    starts: tuple[TaskStart, ...]
    awaited: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class AuctionLRPs:
    """Ask the auctioneer to place instances. The answer waits for it; its failure is only logged."""

    starts: tuple[LRPStart, ...]
    request_id: str = ""
    awaited: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Tell a cell to cancel a task (tasks.md 9.2). The answer waits; an unusable rep_url is its error."""

    task_guid: str
    cell_id: str
    request_id: str
    awaited: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class StopInstance:
    """Tell a cell to stop an instance, in the background (desired-lrps.md 7.2, 10.2)."""

    process_guid: str
    instance_guid: str
    cell_id: str
    request_id: str
    awaited: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class UpdateInstance:
    """Tell a cell of new internal routes or metric tags, in the background (desired-lrps.md 10.3).

    None means unchanged and is sent as JSON null.
    """

    process_guid: str
    instance_guid: str
    cell_id: str
    index: int
    domain: str
    internal_routes: tuple[str, ...] | None
    metric_tags: tuple[tuple[str, str], ...] | None
    request_id: str
    awaited: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Retire:
    """Stop or remove the ordinary instance `lrp` as it was read (actual-lrps.md 4.7).

    Takes several steps with the cell in between, so the effects layer runs it: it looks the cell up,
    calls the cell, and submits `actual_lrps.remove_retired` and `actual_lrps.announce_retired`. The
    answer waits, and is the error it ends with.
    """

    lrp: ActualLRP
    request_id: str
    awaited: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Complete:
    """Hand a completed task to the callback pool (tasks.md section 10). Never delays the answer."""

    task: Task
    awaited: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Count:
    """Count a task metric for a cell: `started`, `failed` or `succeeded` (tasks.md section 12)."""

    what: str
    cell_id: str
    awaited: ClassVar[bool] = False


Call = AuctionTasks | AuctionLRPs | CancelTask | StopInstance | UpdateInstance | Retire | Complete | Count


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of a command, the events it causes, in order, and the calls that follow it."""

    answer: Answer
    events: tuple[Event, ...] = ()
    calls: tuple[Call, ...] = ()


Command = Callable[[State, Any, Context], Outcome]
"""Changes the state for a request. Raises Refused to end with an error and without any change."""

Query = Callable[[State, Any, Context], Answer]
"""Reads the state for a request. Raises Refused to end with an error."""


class Step(NamedTuple):
    """One command of a convergence pass, and what to call it in a log. Its request is None.

    Steps that follow each other and are `parallel` run at the same time, as many as the pass has workers. If a step
    fails its `parts` are to be tried one by one: a single record may be to blame.
    """

    name: str
    command: Command
    parallel: bool = False
    parts: Callable[[], Iterable[Step]] = tuple
