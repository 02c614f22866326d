"""Rows and records: how each table's columns become a record and back (storage.md 1 and 5).

A batch carries rows to the database as tuples `(operation, version, key columns..., other columns...)`, the
arrays of the `batch` statements. `version` is the `xmin` that the row must still have. A sealed column that an
update leaves as it is travels as None, so it is neither sealed anew nor overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any, TypeVar

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.core import decoding, json_columns
from bbs_server.core.encoding import encode
from bbs_server.core.go_json import NotJSON
from bbs_server.core.records import INTACT, NULL_TAGS, ActualLRP, DesiredLRP, Domain, Task
from bbs_server.store.sealing import Keys, Undecodable

C = TypeVar("C", str, bytes)

INSERT, UPDATE, DELETE = "insert", "update", "delete"
"""Operations of a row in a batch."""

Row = Any
"""A row as the driver gives it: columns by position, in the order of `Mapping.columns`."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """One table: its columns in the order they are selected and sent, and both directions of the translation.

    `encode(before, after, keys)` gives the values of `columns`, with None for sealed columns that stay; `before` is
    None for an insertion. `keys_of(key)` gives the key columns, which come first in `columns`.
    """

    table: str
    columns: tuple[str, ...]
    key_columns: int
    decode: Callable[[Row, Keys], Any]
    encode: Callable[[Any, Any, Keys], tuple[Any, ...]]

    def key(self, row: Row) -> Any:
        """The key of the record that a row holds."""
        return row[0] if self.key_columns == 1 else tuple(row[: self.key_columns])

    def key_values(self, key: Any) -> tuple[Any, ...]:
        """A record's key as the values of the key columns."""
        return (key,) if self.key_columns == 1 else key

    def batch_row(self, key: Any, before: Any, after: Any, version: int | None, keys: Keys) -> tuple[Any, ...]:
        """The row that carries one change of a batch."""
        if after is None:
            return (DELETE, version, *self.key_values(key), *(None,) * (len(self.columns) - self.key_columns))
        return (INSERT if before is None else UPDATE, version, *self.encode(before, after, keys))


def _model(value: str | None, keys: Keys, message: type[Message]) -> bytes:
    """The encoded message in a sealed column, once proved readable. Raises Undecodable.

    It goes to clients as it is, so what another program wrote into it that this one does not know is taken out.
    """
    encoded = keys.open_model(value or "")
    try:
        decoded = decoding.decode(message, encoded)
    except decoding.Undecodable as problem:
        raise Undecodable(str(problem)) from None
    # The same length is what servers of this version write, which is as good as always.
    return encoded if decoded.ByteSize() == len(encoded) else encode(decoded)


def _json(content: C, load: Callable[[C], Any]) -> Any:
    try:
        return load(content)
    except NotJSON as problem:
        raise Undecodable(str(problem)) from None


def _decode_domain(row: Row, keys: Keys) -> Domain:
    return Domain(row[0], row[1] or 0)


def _encode_domain(before: Domain | None, after: Domain, keys: Keys) -> tuple[Any, ...]:
    return after.domain, after.expire_time


def _decode_task(row: Row, keys: Keys) -> Task:
    (guid, domain, updated, created, completed, state, cell, result, failed, reason) = row[:10]
    (definition, count, rejection) = row[10:13]
    broken = ""
    encoded: bytes | None = None
    try:
        encoded = _model(definition, keys, models.TaskDefinition)
    except Undecodable as problem:
        broken = str(problem)
    return Task(
        guid=guid,
        domain=intern(domain),
        state=state or 0,
        created_at=created or 0,
        updated_at=updated or 0,
        definition=encoded,
        first_completed_at=completed or 0,
        cell_id=intern(cell),
        result=result or "",
        failed=bool(failed),
        failure_reason=reason,
        rejection_count=count,
        rejection_reason=rejection,
        broken=broken,
    )


def _encode_task(before: Task | None, after: Task, keys: Keys) -> tuple[Any, ...]:
    definition = None
    if (before is None or before.definition != after.definition) and after.definition is not None:
        definition = keys.seal_model(after.definition)
    return (
        after.guid,
        after.domain,
        after.updated_at,
        after.created_at,
        after.first_completed_at,
        after.state,
        after.cell_id,
        # As in the reference, completing is the first to write a result: until then it is NULL.
        after.result if after.result or after.first_completed_at else None,
        after.failed,
        after.failure_reason,
        definition,
        after.rejection_count,
        after.rejection_reason,
    )


_NULL_TEXT = 'sql: Scan error on column index {}, name "{}": converting NULL to {} is unsupported'
_NULLS = {
    "annotation": _NULL_TEXT.format(3, "annotation", "string"),
    "max_pids": _NULL_TEXT.format(7, "max_pids", "int32"),
}
_DESIRED_READERS: tuple[tuple[str, Callable[[str, Keys], Any], Any], ...] = (
    ("run_info", lambda value, keys: _model(value, keys, models.DesiredLRPRunInfo), b""),
    ("volume_placement", lambda value, keys: _model(value, keys, models.VolumePlacement), b""),
    ("routes", lambda value, keys: _json(keys.open(value), json_columns.load_routes), None),
    ("metric_tags", lambda value, keys: _json(keys.open(value), json_columns.load_metric_tags), None),
    ("placement_tags", lambda value, keys: _json(value, json_columns.load_placement_tags), None),
)
"""Column, reader and the value that stands for an unreadable one."""

_MAY_BE_NULL = frozenset(("metric_tags", "placement_tags"))
"""Columns of desired LRPs whose NULL is an empty value (storage.md 1.7)."""


def _decode_desired_lrp(row: Row, keys: Keys) -> DesiredLRP:
    (guid, domain, log, annotation, instances, memory, disk, rootfs, routes) = row[:9]
    (placement, epoch, index, run_info, placement_tags, max_pids, metric_tags, strategy) = row[9:17]
    sealed = (run_info, placement, routes, metric_tags, placement_tags)
    broken: dict[str, str] = {}
    values: dict[str, Any] = {}
    for (column, read, fallback), value in zip(_DESIRED_READERS, sealed, strict=True):
        try:
            values[column] = None if value is None and column in _MAY_BE_NULL else read(value, keys)
        except Undecodable as problem:
            values[column] = fallback
            broken[column] = str(problem)
    for column, value in (("annotation", annotation), ("max_pids", max_pids)):
        if value is None:
            broken[column] = _NULLS[column]
    return DesiredLRP(
        process_guid=intern(guid),
        domain=intern(domain),
        log_guid=intern(log),
        annotation=annotation or "",
        instances=instances,
        memory_mb=memory,
        disk_mb=disk,
        max_pids=max_pids or 0,
        rootfs=intern(rootfs),
        update_strategy=strategy,
        tag_epoch=epoch,
        tag_index=index or 0,
        broken=broken or INTACT,
        **values,
    )


def _encode_desired_lrp(before: DesiredLRP | None, after: DesiredLRP, keys: Keys) -> tuple[Any, ...]:
    def rewritten(column: str) -> bool:
        if before is None or getattr(before, column) != getattr(after, column):
            return True
        return column in before.broken and column not in after.broken

    seal = keys.seal
    return (
        after.process_guid,
        after.domain,
        after.log_guid,
        after.annotation,
        after.instances,
        after.memory_mb,
        after.disk_mb,
        after.rootfs,
        seal(json_columns.dump_routes(after.routes)) if rewritten("routes") else None,
        keys.seal_model(after.volume_placement) if rewritten("volume_placement") else None,
        after.tag_epoch,
        after.tag_index,
        keys.seal_model(after.run_info) if rewritten("run_info") else None,
        json_columns.dump_placement_tags(after.placement_tags) if rewritten("placement_tags") else None,
        after.max_pids,
        seal(json_columns.dump_metric_tags(after.metric_tags)) if rewritten("metric_tags") else None,
        after.update_strategy,
    )


def _decode_actual_lrp(row: Row, keys: Keys) -> ActualLRP:
    (guid, index, presence, domain, state, instance, cell, placement_error, since, net_info) = row[:10]
    (epoch, tag_index, crash_count, crash_reason, routes, tags, routable, zone) = row[10:18]
    net, hostnames, broken = b"", (), ""
    metric_tags: json_columns.Tags | None = NULL_TAGS if tags is None else ()
    try:
        # Empty or NULL means an empty value in these three (actual-lrps.md 1.3).
        net = _model(net_info, keys, models.ActualLRPNetInfo) if net_info else b""
        hostnames = _json(keys.open(routes), json_columns.load_hostnames) if routes else ()
        if tags:
            metric_tags = _json(keys.open(tags), json_columns.load_tags)
    except Undecodable as problem:
        broken = str(problem)
    return ActualLRP(
        process_guid=intern(guid),
        index=index,
        domain=intern(domain),
        presence=presence,
        state=intern(state),
        since=since or 0,
        tag_epoch=epoch,
        tag_index=tag_index or 0,
        instance_guid=intern(instance),
        cell_id=intern(cell),
        placement_error=placement_error,
        net_info=net,
        internal_routes=hostnames,
        metric_tags=metric_tags,
        routable=bool(routable),
        availability_zone=intern(zone),
        crash_count=crash_count,
        crash_reason=crash_reason,
        broken=broken,
    )


_TO_NULL = ""
"""Stands for NULL in a batch, where NULL itself means that the column stays as it is."""


def _encode_actual_lrp(before: ActualLRP | None, after: ActualLRP, keys: Keys) -> tuple[Any, ...]:
    anew = before is None or before.broken != ""
    net_info = internal_routes = metric_tags = None
    if anew or before.net_info != after.net_info:  # type: ignore[union-attr]
        net_info = keys.seal_model(after.net_info)
    if anew or before.internal_routes != after.internal_routes:  # type: ignore[union-attr]
        internal_routes = keys.seal(json_columns.dump_hostnames(after.internal_routes))
    if anew or before.metric_tags != after.metric_tags:  # type: ignore[union-attr]
        tags = after.metric_tags
        metric_tags = _TO_NULL if tags is NULL_TAGS else keys.seal(json_columns.dump_tags(tags))
    return (
        after.process_guid,
        after.index,
        after.presence,
        after.domain,
        after.state,
        after.instance_guid,
        after.cell_id,
        after.placement_error,
        after.since,
        net_info,
        after.tag_epoch,
        after.tag_index,
        after.crash_count,
        after.crash_reason,
        internal_routes,
        metric_tags,
        after.routable,
        after.availability_zone,
    )


def _columns(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MAPPINGS: dict[str, Mapping] = {
    mapping.table: mapping
    for mapping in (
        Mapping("domains", _columns("domain expire_time"), 1, _decode_domain, _encode_domain),
        Mapping(
            "tasks",
            _columns(
                "guid domain updated_at created_at first_completed_at state cell_id result failed failure_reason"
                " task_definition rejection_count rejection_reason"
            ),
            1,
            _decode_task,
            _encode_task,
        ),
        Mapping(
            "desired_lrps",
            _columns(
                "process_guid domain log_guid annotation instances memory_mb disk_mb rootfs routes volume_placement"
                " modification_tag_epoch modification_tag_index run_info placement_tags max_pids metric_tags"
                " update_strategy"
            ),
            1,
            _decode_desired_lrp,
            _encode_desired_lrp,
        ),
        Mapping(
            "actual_lrps",
            _columns(
                "process_guid instance_index presence domain state instance_guid cell_id placement_error since net_info"
                " modification_tag_epoch modification_tag_index crash_count crash_reason internal_routes metric_tags"
                " routable availability_zone"
            ),
            3,
            _decode_actual_lrp,
            _encode_actual_lrp,
        ),
    )
}
"""The four tables, in the order in which a batch writes them."""


def transposed(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows as columns, the shape that unnest takes."""
    return list(zip(*rows, strict=True))
