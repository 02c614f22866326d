"""Desired LRPs between messages and records: made from a request, shown in the forms that clients ask for.

Each form is encoded at most once per record, on first use, and kept by the record; a list answer is
these pieces one after the other. A record that a form cannot show is an empty piece (desired-lrps.md 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.core import json_columns, maps, sharing
from bbs_server.core.downgrades import down_convert_desired_lrp_v2, populate_metrics_guid
from bbs_server.core.encoding import element, encode, put_text
from bbs_server.core.errors import DESERIALIZE, INVALID_REQUEST, Error, ErrorType, Refused, unknown
from bbs_server.core.go_json import NotJSON, text
from bbs_server.core.json_columns import MetricTags, Routes
from bbs_server.core.outcome import LRPStart
from bbs_server.core.records import DesiredLRP, MetricTag
from bbs_server.core.texts import column

ROOTFS_LIMIT = 1024
"""Characters of the column `rootfs`."""

_NOT_IN_RUN_INFO = {"metric_tags", "deprecated_start_timeout_s"}
RUN_INFO_FIELDS = frozenset(
    {f.name for f in models.DesiredLRP.DESCRIPTOR.fields}
    & {f.name for f in models.DesiredLRPRunInfo.DESCRIPTOR.fields} - _NOT_IN_RUN_INFO
)
"""Fields that a DesiredLRP shares with its run info, by name (desired-lrps.md 3.3)."""


# -- from a request to a record ----------------------------------------------------------


def record(lrp: models.DesiredLRP, epoch: str, created_at: int) -> DesiredLRP:
    """The row of a new LRP. `created_at` in ns.

    Raises Refused for what the columns cannot hold, in the order in which the reference notices it:
    JSON values, text that is not text, lengths.
    """
    routes_ = routes(lrp.routes) if lrp.HasField("routes") else None
    tags = metric_tags(lrp)
    # The database looks at the bytes of every text before it looks at any length.
    texts = [column(text, None) for text in (lrp.process_guid, lrp.domain, lrp.log_guid, lrp.annotation, lrp.root_fs)]
    process_guid, domain, log_guid, annotation, rootfs = texts
    for name in (process_guid, domain, log_guid):
        column(name)
    column(rootfs, ROOTFS_LIMIT)
    return DesiredLRP(
        process_guid=intern(process_guid),
        domain=intern(domain),
        log_guid=intern(log_guid),
        annotation=annotation,
        instances=lrp.instances,
        memory_mb=lrp.memory_mb,
        disk_mb=lrp.disk_mb,
        max_pids=lrp.max_pids,
        rootfs=intern(rootfs),
        update_strategy=int(lrp.update_strategy),
        tag_epoch=epoch,
        tag_index=0,
        routes=routes_,
        metric_tags=tags,
        placement_tags=tuple(text(tag) for tag in lrp.PlacementTags) or None,
        volume_placement=_volume_placement(lrp),
        run_info=_run_info(lrp, created_at),
    )


def routes(message: models.ProtoRoutes) -> Routes:
    """Routes as they are stored. Raises Refused if a value is not JSON (desired-lrps.md 3.1)."""
    try:
        return json_columns.by_name(
            (text(name), json_columns.normalised(value)) for name, value in sent_routes(message)
        )
    except NotJSON:
        raise Refused(INVALID_REQUEST) from None


def sent_routes(message: models.ProtoRoutes) -> Iterable[tuple[str | bytes, bytes]]:
    """Router names and values exactly as a request gives them."""
    if maps.has_odd_keys(message, "routes"):
        return maps.entries(message, "routes")
    return message.routes.items()


def sent_metric_tags(message: models.DesiredLRP | models.DesiredLRPUpdate | models.DesiredLRPRunInfo) -> MetricTags:
    """Metric tags as a request gives them, sorted by name, unknown `dynamic` numbers included."""
    found: Iterable[tuple[str | bytes, models.MetricTagValue]] = (
        [(name, models.MetricTagValue.FromString(value)) for name, value in maps.entries(message, "metric_tags")]
        if maps.has_odd_keys(message, "metric_tags")
        else message.metric_tags.items()
    )
    return json_columns.by_name(
        [sharing.metric_tag(text(name), text(tag.static), int(tag.dynamic)) for name, tag in found]
    )


def metric_tags(message: models.DesiredLRP | models.DesiredLRPUpdate) -> MetricTags | None:
    """Metric tags as they are stored and read back: an unknown `dynamic` number becomes 0."""
    return (
        tuple(
            pair if pair[1].dynamic in (0, *json_columns.DYNAMIC_NAMES) else (pair[0], MetricTag(pair[1].static))
            for pair in sent_metric_tags(message)
        )
        or None
    )


def with_credentials(run_info: bytes, update: models.DesiredLRPUpdate) -> bytes:
    """The run info with the image credentials of an update; its ports lose their duplicates."""
    message = models.DesiredLRPRunInfo.FromString(run_info)
    message.DiscardUnknownFields()
    for name in ("image_username", "image_password"):
        if update.HasField(name):
            message.ClearField(name)
            put_text(message, name, getattr(update, name))
    _drop_duplicates(message.ports)
    return encode(message)


def _run_info(lrp: models.DesiredLRP, created_at: int) -> bytes:
    info = models.DesiredLRPRunInfo(created_at=created_at)
    info.desired_lrp_key.process_guid = lrp.process_guid
    info.desired_lrp_key.domain = lrp.domain
    info.desired_lrp_key.log_guid = lrp.log_guid
    _copy_shared(lrp, info)
    return encode(info)


def _volume_placement(lrp: models.DesiredLRP) -> bytes:
    placement = models.VolumePlacement()
    for mount in lrp.volume_mounts:
        put_text(placement, "driver_names", mount.driver)
    return encode(placement)


def _copy_shared(source: Message, target: Message) -> None:
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name not in RUN_INFO_FIELDS:
            continue
        if descriptor.is_repeated:
            getattr(target, name).extend(value)
        elif descriptor.message_type is not None:
            getattr(target, name).CopyFrom(value)
        elif isinstance(value, bytes):
            put_text(target, name, value)
        else:
            setattr(target, name, value)


def _drop_duplicates(ports: Any) -> None:
    unique = list(dict.fromkeys(ports))
    if len(unique) != len(ports):
        del ports[:]
        ports.extend(unique)


# -- from a record to what clients see ---------------------------------------------------


def message(record: DesiredLRP) -> models.DesiredLRP:
    """The DesiredLRP of a row in version 3, as events show it (desired-lrps.md 3.4)."""
    lrp = models.DesiredLRP(
        process_guid=record.process_guid,
        domain=record.domain,
        root_fs=record.rootfs,
        instances=record.instances,
        disk_mb=record.disk_mb,
        memory_mb=record.memory_mb,
        log_guid=record.log_guid,
        annotation=record.annotation,
        PlacementTags=record.placement_tags or (),
        max_pids=record.max_pids,
        update_strategy=record.update_strategy,  # type: ignore[arg-type]
    )
    _add_tag_and_routes(lrp, record)
    _add_metric_tags(lrp, record)
    info = models.DesiredLRPRunInfo.FromString(record.run_info)
    info.DiscardUnknownFields()
    _copy_shared(info, lrp)
    _drop_duplicates(lrp.ports)
    return lrp


def scheduling_info(record: DesiredLRP) -> models.DesiredLRPSchedulingInfo:
    """What placing an LRP needs. Key, resource, routes, tag and volume placement are always written."""
    info = models.DesiredLRPSchedulingInfo(
        annotation=record.annotation, instances=record.instances, PlacementTags=record.placement_tags or ()
    )
    info.desired_lrp_key.SetInParent()
    info.desired_lrp_key.process_guid = record.process_guid
    info.desired_lrp_key.domain = record.domain
    info.desired_lrp_key.log_guid = record.log_guid
    info.desired_lrp_resource.SetInParent()
    info.desired_lrp_resource.memory_mb = record.memory_mb
    info.desired_lrp_resource.disk_mb = record.disk_mb
    info.desired_lrp_resource.root_fs = record.rootfs
    info.desired_lrp_resource.max_pids = record.max_pids
    _add_tag_and_routes(info, record)
    info.volume_placement.SetInParent()
    info.volume_placement.MergeFromString(record.volume_placement)
    return info


def routing_info(record: DesiredLRP) -> models.DesiredLRP:
    """A DesiredLRP with only what routing needs (desired-lrps.md section 8)."""
    lrp = models.DesiredLRP(
        process_guid=record.process_guid, domain=record.domain, log_guid=record.log_guid, instances=record.instances
    )
    _add_tag_and_routes(lrp, record)
    _add_metric_tags(lrp, record)
    return lrp


def _add_tag_and_routes(target: models.DesiredLRP | models.DesiredLRPSchedulingInfo, record: DesiredLRP) -> None:
    target.modification_tag.SetInParent()
    target.modification_tag.epoch = record.tag_epoch
    target.modification_tag.index = record.tag_index & 0xFFFFFFFF
    target.routes.SetInParent()
    for name, value in record.routes or ():
        target.routes.routes[name] = value


def _add_metric_tags(lrp: models.DesiredLRP, record: DesiredLRP) -> None:
    for name, tag in record.metric_tags or ():
        value = lrp.metric_tags[name]
        value.static = tag.static
        value.dynamic = tag.dynamic  # type: ignore[assignment]


# -- encoded forms -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """A way to show a record: the columns it reads, in the order in which a fault counts, and its encoding."""

    name: str
    """The attribute of the record that keeps it."""
    columns: tuple[str, ...]
    encode: Callable[[DesiredLRP], bytes]

    def piece(self, record: DesiredLRP) -> bytes:
        """The record as one element of a list answer; empty if a column that the form reads is broken."""
        found: bytes | None = getattr(record, self.name)
        if found is None:
            found = b"" if unreadable(record, self) else self.encode(record)
            record.keep(self.name, found)
        return found


def _r3(record: DesiredLRP) -> bytes:
    return element(encode(populate_metrics_guid(message(record))))


def _r2(record: DesiredLRP) -> bytes:
    lrp = message(record)
    if not lrp.image_layers:
        return R3.piece(record)
    return element(encode(down_convert_desired_lrp_v2(populate_metrics_guid(lrp))))


_SCHEDULING = ("annotation", "max_pids", "routes", "volume_placement", "placement_tags")

R3 = Form("r3", (*_SCHEDULING, "run_info", "metric_tags"), _r3)
R2 = Form("r2", R3.columns, _r2)
SCHEDULING_INFO = Form("scheduling_info", _SCHEDULING, lambda record: element(encode(scheduling_info(record))))
ROUTING_INFO = Form("routing_info", ("routes", "metric_tags"), lambda record: element(encode(routing_info(record))))


_COLUMN_ERRORS: Mapping[str, Callable[[str], Error]] = {
    "run_info": lambda reason: DESERIALIZE,
    "volume_placement": lambda reason: Error(ErrorType.INVALID_RECORD, reason),
}


def unreadable(record: DesiredLRP, form: Form) -> Error | None:
    """Why a form cannot show the record: the error of its first broken column (storage.md 5.5)."""
    if record.broken:
        for name in form.columns:
            if name in record.broken:
                return _COLUMN_ERRORS.get(name, unknown)(record.broken[name])
    return None


def is_lost(record: DesiredLRP) -> bool:
    """Whether a list of desired LRPs had to leave the record out because of its run info.

    Quirk: such a row is deleted (desired-lrps.md 3.4), one that only a single read met is not. A list cannot
    delete, so this tells convergence what to do after it.
    """
    return bool(record.broken) and b"" in (record.r3, record.r2) and unreadable(record, R3) == DESERIALIZE


# -- placing and updating instances ------------------------------------------------------


def start_request(record: DesiredLRP, indices: tuple[int, ...], from_definition: bool = False) -> LRPStart:
    """An entry of an auction request.

    Quirk: without volume mounts `VolumeDrivers` is `[]` when the request is built from a complete
    definition and `null` when from a stored scheduling info (desired-lrps.md 9, point 3).
    """
    drivers: tuple[str, ...] = ()
    if record.volume_placement:
        names = models.VolumePlacement.FromString(record.volume_placement).driver_names
        drivers = tuple(text(name) for name in names)
    return LRPStart(
        process_guid=record.process_guid,
        domain=record.domain,
        indices=indices,
        placement_tags=record.placement_tags,
        volume_drivers=drivers if drivers or from_definition else None,
        rootfs=record.rootfs,
        memory_mb=record.memory_mb,
        disk_mb=record.disk_mb,
        max_pids=record.max_pids,
    )


INTERNAL_ROUTER = "internal-router"
"""The router whose routes cells themselves must know."""


def resolved_tags(tags: MetricTags, index: int, instance_guid: str) -> tuple[tuple[str, str], ...]:
    """The metric tags of one instance, sorted by name (desired-lrps.md 7.3)."""
    return tuple([(name, tag_text(tag, index, instance_guid)) for name, tag in tags])


def tag_text(tag: MetricTag, index: int, instance_guid: str) -> str:
    """What a metric tag says for one instance."""
    match tag.dynamic:
        case 1:
            return str(index)
        case 2:
            return instance_guid
        case _:
            return tag.static
