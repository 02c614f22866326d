"""The value of a cell presence: JSON, read by the reference's rules (locket.md 5).

Names match without regard to case, the last of several wins, `null` changes nothing, unknown names are
ignored, and a value of the wrong type makes the whole presence unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.core.go_json import EXACT, NotJSON, Number, Object, parse, text

_INT32 = range(-(2**31), 2**31)


def load(value: str | bytes) -> models.CellPresence:
    """Read a presence. Raises NotJSON, with the reference's text where it is known."""
    source = text(value)
    presence = models.CellPresence()
    _fill(presence, parse(source, EXACT), _Place("", "models.CellPresence"), _PRESENCE)
    return presence


class _Place:
    """Where a value stands, for the text of a mismatch."""

    __slots__ = ("_kind", "_path")

    def __init__(self, path: str, kind: str) -> None:
        self._path = path
        self._kind = kind

    def mismatch(self, value: Any) -> NotJSON:
        kind = _kind(value)
        if not self._path:
            return NotJSON(f"json: cannot unmarshal {kind} into Go value of type {self._kind}")
        return NotJSON(f"json: cannot unmarshal {kind} into Go struct field {self._path} of type {self._kind}")


Reader = Callable[[Message, Any], None]


def _fill(message: Message, value: Any, place: _Place, members: Mapping[str, Reader]) -> None:
    if value is None:
        return
    if not isinstance(value, Object):
        raise place.mismatch(value)
    for name, member in value:
        reader = members.get(name.lower())
        if reader is not None and member is not None:
            reader(message, member)


def _string(value: Any, place: _Place) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise place.mismatch(value)
    return text(value)


def _text(field: str, path: str) -> Reader:
    place = _Place(path, "string")

    def read(message: Message, value: Any) -> None:
        setattr(message, field, _string(value, place))

    return read


def _int32(field: str, path: str) -> Reader:
    place = _Place(path, "int32")

    def read(message: Message, value: Any) -> None:
        if not isinstance(value, Number) or not re.fullmatch("-?[0-9]{1,10}", value.text):
            raise place.mismatch(value)
        if int(value.text) not in _INT32:
            raise place.mismatch(value)
        setattr(message, field, int(value.text))

    return read


def _texts(field: str, path: str) -> Reader:
    array, item = _Place(path, "[]string"), _Place(path, "string")

    def read(message: Message, value: Any) -> None:
        if type(value) is not list:
            raise array.mismatch(value)
        items = [_string(member, item) for member in value]
        del getattr(message, field)[:]
        getattr(message, field).extend(items)

    return read


def _capacity(message: Any, value: Any) -> None:
    message.capacity.SetInParent()
    _fill(message.capacity, value, _Place("CellPresence.capacity", "models.CellCapacity"), _CAPACITY)


def _providers(message: Any, value: Any) -> None:
    path = "CellPresence.rootfs_provider_list"
    if type(value) is not list:
        raise _Place(path, "[]*models.Provider").mismatch(value)
    del message.rootfs_providers[:]
    for member in value:
        if member is not None:  # The reference keeps an empty pointer here and fails later.
            _fill(message.rootfs_providers.add(), member, _Place(path, "models.Provider"), _PROVIDER)


def _annotations(message: Any, value: Any) -> None:
    path = "CellPresence.annotations"
    if not isinstance(value, Object):
        raise _Place(path, "map[string]string").mismatch(value)
    for name, member in value:
        message.annotations[text(name)] = _string(member, _Place(path, "string"))


_PRESENCE: Mapping[str, Reader] = {
    "cell_id": _text("cell_id", "CellPresence.cell_id"),
    "rep_address": _text("rep_address", "CellPresence.rep_address"),
    "zone": _text("zone", "CellPresence.zone"),
    "capacity": _capacity,
    "rootfs_provider_list": _providers,
    "placement_tags": _texts("placement_tags", "CellPresence.placement_tags"),
    "optional_placement_tags": _texts("optional_placement_tags", "CellPresence.optional_placement_tags"),
    "rep_url": _text("rep_url", "CellPresence.rep_url"),
    "annotations": _annotations,
}
_CAPACITY: Mapping[str, Reader] = {
    name: _int32(name, f"CellCapacity.capacity.{name}") for name in ("memory_mb", "disk_mb", "containers")
}
_PROVIDER: Mapping[str, Reader] = {
    "name": _text("name", "Provider.rootfs_provider_list.name"),
    "properties": _texts("properties", "Provider.rootfs_provider_list.properties"),
}


def _kind(value: Any) -> str:
    match value:
        case Number():
            return f"number {value.text}"
        case str():
            return "string"
        case bool():
            return "bool"
        case Object():
            return "object"
    return "array"
