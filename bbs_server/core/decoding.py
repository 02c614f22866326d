"""Messages out of request bodies and sealed columns, as strict and as tolerant as the reference (wire.md 4 and 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

from bbs_protos import models_pb2 as models
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

M = TypeVar("M", bound=Message)


class Undecodable(Exception):
    """The bytes are no message of that kind. A request body of this kind is answered InvalidRequest."""


ALWAYS_WRITTEN: dict[type[Message], tuple[str, ...]] = {
    models.ActualLRP: ("actual_lrp_key", "actual_lrp_instance_key", "actual_lrp_net_info", "modification_tag"),
    models.ActualLRPInfo: ("actual_lrp_net_info", "modification_tag"),
    models.ActualLRPInstanceChangedEvent: ("actual_lrp_key", "actual_lrp_instance_key"),
    models.ActualLRPCrashedEvent: ("actual_lrp_key", "actual_lrp_instance_key"),
    models.DesiredLRPSchedulingInfo: ("desired_lrp_key", "desired_lrp_resource", "routes", "modification_tag"),
    models.DesiredLRPRunInfo: ("desired_lrp_key",),
}
"""Embedded messages that are encoded even when nothing in them is set (wire.md 2.2)."""

_ALWAYS_WRITTEN = {kind.DESCRIPTOR.full_name: names for kind, names in ALWAYS_WRITTEN.items()}


def decode(kind: type[M], body: bytes) -> M:
    """The message in these bytes, without its unknown fields. Raises Undecodable."""
    message = kind()
    try:
        message.MergeFromString(body)
    except DecodeError as problem:
        raise Undecodable(str(problem)) from None
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        original = kind()
        original.MergeFromString(body)
        _refuse_wrong_wire_types(original)
    return message


def _refuse_wrong_wire_types(message: Message) -> None:
    """An unknown field with a known number came with another wire type than declared (wire.md D4)."""
    unknowns: Iterable[Any] = UnknownFieldSet(message)  # type: ignore[assignment]
    for unknown in unknowns:
        if unknown.field_number in message.DESCRIPTOR.fields_by_number:
            raise Undecodable(f"wrong wire type for field {unknown.field_number}")
    for field in message.DESCRIPTOR.fields:
        for child in _children(message, field):
            _refuse_wrong_wire_types(child)


def _children(message: Any, field: Any) -> Iterator[Message]:
    """The messages a field holds: none, one, the elements of a list or the values of a map."""
    if field.message_type is None:
        return
    if _is_map(field):
        if field.message_type.fields_by_name["value"].message_type is not None:
            try:
                yield from getattr(message, field.name).values()
            except UnicodeDecodeError:  # the values under such a key cannot be reached
                raise Undecodable("a map key is not valid UTF-8") from None
    elif field.is_repeated:
        yield from getattr(message, field.name)
    elif message.HasField(field.name):
        yield getattr(message, field.name)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _reachable(root: Descriptor) -> bool:
    """Whether the message type, or one it can contain, has fields that are always written."""
    seen: set[str] = set()
    queue = [root]
    while queue:
        descriptor = queue.pop()
        if descriptor.full_name in seen:
            continue
        seen.add(descriptor.full_name)
        if descriptor.full_name in _ALWAYS_WRITTEN:
            return True
        queue += [field.message_type for field in descriptor.fields if field.message_type is not None]
    return False


@cache
def _paths(descriptor: Descriptor) -> tuple[Any, ...]:
    """The fields through which a message of ALWAYS_WRITTEN can be reached: the walk below looks at nothing else."""
    return tuple(f for f in descriptor.fields if f.message_type is not None and _reachable(f.message_type))


def mark_always_written(message: Any) -> None:
    """Mark the fields of ALWAYS_WRITTEN present, at every depth."""
    for name in _ALWAYS_WRITTEN.get(message.DESCRIPTOR.full_name, ()):
        getattr(message, name).SetInParent()
    for field in _paths(message.DESCRIPTOR):
        for child in _children(message, field):
            mark_always_written(child)
