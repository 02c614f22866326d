"""The JSON form of messages, as Go tools of a deployment print and read it (wire.md section 9).

It is the reference's own form, not protobuf's: names, order and omissions are data, in
`json_forms.json`, one row per field. Enum numbers without a name are written as a number in a string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from bbs_server.core.go_json import escaped

M = TypeVar("M", bound=Message)

Row = Mapping[str, Any]
_PRESENT_ONLY = ("ResourceLimits", "DesiredLRPUpdate", "ActualLRPsRequest")
"""Messages whose oneof members appear exactly when they are present, zero included."""


class NotThatMessage(ValueError):
    """A JSON text that is not the message asked for; says where and why."""


def dumps(message: Message) -> str:
    """The message as one line, byte for byte what the reference prints."""
    return dumps_value(as_dict(message))


def dumps_value(value: Any) -> str:
    """JSON values as one line, with the escapes of the reference."""
    return escaped(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def as_dict(message: Message) -> dict[str, Any]:
    """The message as JSON values, keys in the reference's order."""
    out: dict[str, Any] = {}
    for name, row in _forms()[message.DESCRIPTOR.name].items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if row.get("flattened"):
            if message.HasField(name) or message.DESCRIPTOR.name != "Task":
                out.update(as_dict(getattr(message, name)))
        elif "inside" in row:
            out[row["inside"]] = _holder(message, name, row)
        elif not _omitted(message, field, row):
            out[row["name"]] = _value(message, field, row)
    return out


def loads(text: str, kind: type[M]) -> M:
    """Read a message. Unknown keys are ignored, keys match in any letter case. Raises NotThatMessage."""
    try:
        value = json.loads(text)
    except ValueError as problem:
        raise NotThatMessage(f"not JSON: {problem}") from problem
    message = kind()
    _read(value, message, kind.DESCRIPTOR.name)
    return message


@cache
def _forms() -> Mapping[str, Mapping[str, Row]]:
    text = resources.files(__package__).joinpath("json_forms.json").read_text()
    forms: Mapping[str, Mapping[str, Row]] = json.loads(text)
    return forms


def _holder(message: Message, name: str, row: Row) -> Any:
    if not message.HasField(name):
        return None
    value = getattr(message, name)
    return {} if row.get("omitempty") and not value else {row["name"]: value}


def _omitted(message: Message, field: Any, row: Row) -> bool:
    if field.containing_oneof is not None and message.DESCRIPTOR.name in _PRESENT_ONLY:
        return not message.HasField(field.name)
    if not row.get("omitempty"):
        return False
    if field.type == field.TYPE_MESSAGE and not field.is_repeated:
        return not message.HasField(field.name)
    return not getattr(message, field.name)


def _value(message: Message, field: Any, row: Row) -> Any:
    value = getattr(message, field.name)
    if row["form"] == "routes":
        routes = {name: json.loads(raw) for name, raw in sorted(value.routes.items())}
        return routes if routes or row.get("omitempty") else None
    if _is_map(field):
        inner = field.message_type.fields_by_name["value"]
        empty: Any = {} if field.name == "annotations" else None
        return {_text(key): _single(value[key], inner, row) for key in sorted(value)} or empty
    if field.is_repeated:
        return [_single(one, field, row) for one in value] or None
    if field.type == field.TYPE_MESSAGE and not message.HasField(field.name):
        return None
    return _single(value, field, row)


def _single(value: Any, field: Any, row: Row) -> Any:
    if field.type == field.TYPE_MESSAGE:
        return as_dict(value)
    if field.type == field.TYPE_ENUM:
        return value if row["form"] == "enum_number" else _enum_name(field.enum_type, value)
    return _text(value) if field.type in (field.TYPE_STRING, field.TYPE_BYTES) else value


def _enum_name(kind: EnumDescriptor | None, number: int) -> str:
    assert kind is not None
    known = kind.values_by_number.get(number)
    if known is not None:
        return str(known.name)
    return "" if kind.name == "DynamicValue" else str(number)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _read(value: Any, message: Message, where: str) -> None:
    if not isinstance(value, dict):
        raise NotThatMessage(f"{where}: expected an object")
    given = {key.lower(): one for key, one in value.items()}
    for name, row in _forms()[message.DESCRIPTOR.name].items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if row.get("flattened"):
            _read(value, getattr(message, name), where)
            continue
        one = given.get((row["name"] or name).lower())
        if one is not None:
            _read_field(one, message, field, row, f"{where}.{row['name']}")


def _read_field(value: Any, message: Message, field: Any, row: Row, where: str) -> None:
    target = getattr(message, field.name)
    if row["form"] == "routes":
        for name, route in _typed(value, dict, where).items():
            target.routes[name] = json.dumps(route, separators=(",", ":")).encode()
    elif _is_map(field):
        inner = field.message_type.fields_by_name["value"]
        for key, one in _typed(value, dict, where).items():
            if inner.type == inner.TYPE_MESSAGE:
                _read(one, target[key], f"{where}.{key}")
            else:
                target[key] = _typed(one, str, f"{where}.{key}")
    elif field.is_repeated:
        for number, one in enumerate(_typed(value, list, where)):
            place = f"{where}[{number}]"
            if field.type == field.TYPE_MESSAGE:
                _read(one, target.add(), place)
            else:
                target.append(_scalar(one, field, row, place))
    elif field.type == field.TYPE_MESSAGE:
        target.SetInParent()
        _read(value, target, where)
    else:
        setattr(message, field.name, _scalar(value, field, row, where))


def _scalar(value: Any, field: Any, row: Row, where: str) -> Any:
    if field.type == field.TYPE_ENUM and row["form"] != "enum_number":
        known = field.enum_type.values_by_name.get(_typed(value, str, where))
        if known is None:
            raise NotThatMessage(f"{where}: unknown name {value!r}")
        return known.number
    check: Callable[..., Any] = _typed
    if field.type == field.TYPE_STRING:
        return check(value, str, where)
    if field.type == field.TYPE_BOOL:
        return check(value, bool, where)
    if isinstance(value, bool):
        raise NotThatMessage(f"{where}: expected a number")
    return check(value, int, where)


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise NotThatMessage(f"{where}: expected {_KINDS[kind]}, not {json.dumps(value)}")
    return value


_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
