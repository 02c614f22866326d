"""The records that the tables hold: immutable, replaced as a whole.

Their fields are the columns of storage.md section 1, decoded. Sealed models are kept as encoded
protobuf, because that is how they are stored and returned. The encodings that list answers are made
of are computed at most once per record, on first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core.encoding import element, encode


class TaskState(IntEnum):
    INVALID = 0
    PENDING = 1
    RUNNING = 2
    COMPLETED = 3
    RESOLVING = 4


class Presence(IntEnum):
    ORDINARY = 0
    EVACUATING = 1
    SUSPECT = 2


UNCLAIMED, CLAIMED, RUNNING, CRASHED = "UNCLAIMED", "CLAIMED", "RUNNING", "CRASHED"
"""States of an actual LRP, as stored and sent."""

NEVER = 2**63 - 1
"""`expire_time` of a domain that does not expire."""


@dataclass(frozen=True, slots=True)
class Domain:
    """`expire_time` in ns since the Unix epoch."""

    domain: str
    expire_time: int


@dataclass(frozen=True, slots=True)
class Task:
    """A row of `tasks`. Times in ns since the Unix epoch.

    `definition` is the encoded TaskDefinition; None means that the column cannot be decoded
    (tasks.md 7.2), in which case `broken` says why.
    """

    guid: str
    domain: str
    state: int
    created_at: int
    updated_at: int
    definition: bytes | None
    first_completed_at: int = 0
    cell_id: str = ""
    result: str = ""
    failed: bool = False
    failure_reason: str = ""
    rejection_count: int = 0
    rejection_reason: str = ""
    broken: str = ""
    _element: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def element(self) -> bytes:
        """The encoded Task as an element of TasksResponse."""
        if self._element is None:
            object.__setattr__(self, "_element", element(encode(self.message())))
        assert self._element is not None
        return self._element

    def message(self) -> models.Task:
        """The Task as clients see it."""
        message = models.Task(
            task_guid=self.guid,
            domain=self.domain,
            created_at=self.created_at,
            updated_at=self.updated_at,
            first_completed_at=self.first_completed_at,
            state=self.state,  # type: ignore[arg-type]
            cell_id=self.cell_id,
            result=self.result,
            failed=self.failed,
            failure_reason=self.failure_reason,
            rejection_count=self.rejection_count,
            rejection_reason=self.rejection_reason,
        )
        # Quirk: a task always carries a definition on the wire, an empty one if need be (wire.md 8.8).
        message.task_definition.SetInParent()
        message.task_definition.MergeFromString(self.definition or b"")
        return message


class _NullTags(tuple[tuple[str, str], ...]):
    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


NULL_TAGS = _NullTags()
"""The metric tags of an instance whose column is NULL: as good as none, but convergence leaves them alone (A15).

Only equal to themselves, so that the database keeps what memory holds and the other way round.
"""


@dataclass(frozen=True, slots=True)
class ActualLRP:
    """A row of `actual_lrps`. `since` in ns since the Unix epoch.

    `internal_routes` and `metric_tags` distinguish None (stored as JSON null) from empty. Tags are
    kept sorted by name. A row that cannot be decoded has its reason in `broken` and is treated as
    absent (actual-lrps.md 1.3).
    """

    process_guid: str
    index: int
    domain: str
    presence: int
    state: str
    since: int
    tag_epoch: str
    tag_index: int = 0
    instance_guid: str = ""
    cell_id: str = ""
    placement_error: str = ""
    net_info: bytes = b""
    internal_routes: tuple[str, ...] | None = ()
    metric_tags: tuple[tuple[str, str], ...] | None = ()
    routable: bool = False
    availability_zone: str = ""
    crash_count: int = 0
    crash_reason: str = ""
    broken: str = ""
    _element: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def element(self) -> bytes:
        """The encoded ActualLRP as an element of ActualLRPsResponse."""
        if self._element is None:
            object.__setattr__(self, "_element", element(encode(self.message())))
        assert self._element is not None
        return self._element

    def message(self) -> models.ActualLRP:
        """The ActualLRP as clients see it; keys, net info, tag and routable are always written."""
        message = models.ActualLRP(
            crash_count=self.crash_count,
            crash_reason=self.crash_reason,
            state=self.state,
            placement_error=self.placement_error,
            since=self.since,
            presence=self.presence,  # type: ignore[arg-type]
            actual_lrp_internal_routes=[
                models.ActualLRPInternalRoute(hostname=name) for name in self.internal_routes or ()
            ],
            metric_tags=dict(self.metric_tags or ()),
            routable=self.routable,
            availability_zone=self.availability_zone,
        )
        message.actual_lrp_key.SetInParent()
        message.actual_lrp_key.process_guid = self.process_guid
        message.actual_lrp_key.index = self.index
        message.actual_lrp_key.domain = self.domain
        message.actual_lrp_instance_key.SetInParent()
        message.actual_lrp_instance_key.instance_guid = self.instance_guid
        message.actual_lrp_instance_key.cell_id = self.cell_id
        message.actual_lrp_net_info.SetInParent()
        message.actual_lrp_net_info.MergeFromString(self.net_info)
        message.modification_tag.SetInParent()
        message.modification_tag.epoch = self.tag_epoch
        message.modification_tag.index = self.tag_index & 0xFFFFFFFF
        return message


@dataclass(frozen=True, slots=True)
class MetricTag:
    """A metric tag of a desired LRP: a fixed text or one the cell fills in (1 INDEX, 2 INSTANCE_GUID)."""

    static: str = ""
    dynamic: int = 0


INTACT: Mapping[str, str] = MappingProxyType({})
"""The `broken` of a desired LRP without broken columns."""


@dataclass(frozen=True, slots=True)
class DesiredLRP:
    """A row of `desired_lrps`.

    `routes` holds the normalised JSON text of each router, sorted by name; None is stored as JSON
    null. `metric_tags` likewise, sorted by name. `placement_tags` None is JSON null. `run_info` and
    `volume_placement` are encoded messages. `broken` maps each column that cannot be decoded to the
    decoder's text; such a field then has an empty value (desired-lrps.md 3.4). What follows it is derived from
    the others on first use and not part of the row.
    """

    process_guid: str
    domain: str
    log_guid: str
    annotation: str
    instances: int
    memory_mb: int
    disk_mb: int
    max_pids: int
    rootfs: str
    update_strategy: int
    tag_epoch: str
    tag_index: int
    routes: tuple[tuple[str, bytes], ...] | None
    metric_tags: tuple[tuple[str, MetricTag], ...] | None
    placement_tags: tuple[str, ...] | None
    volume_placement: bytes
    run_info: bytes
    broken: Mapping[str, str] = field(default_factory=lambda: INTACT)
    r3: bytes | None = field(default=None, init=False, repr=False, compare=False)
    r2: bytes | None = field(default=None, init=False, repr=False, compare=False)
    scheduling_info: bytes | None = field(default=None, init=False, repr=False, compare=False)
    routing_info: bytes | None = field(default=None, init=False, repr=False, compare=False)
    hostnames: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def keep(self, name: str, derived: Any) -> None:
        """Keep what was derived from this record: an encoded form, or its internal routes."""
        object.__setattr__(self, name, derived)


__all__ = [
    "CLAIMED",
    "CRASHED",
    "INTACT",
    "NEVER",
    "NULL_TAGS",
    "RUNNING",
    "UNCLAIMED",
    "ActualLRP",
    "DesiredLRP",
    "Domain",
    "MetricTag",
    "Presence",
    "Task",
    "TaskState",
    "fields",
    "replace",
]
