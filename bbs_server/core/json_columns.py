"""The JSON columns of `desired_lrps`, spelled as the reference spells them (storage.md 5.3).

Compact, names sorted, and `<`, `>`, `&`, U+2028 and U+2029 escaped. Values of routes are kept as text:
number spelling, key order and duplicate keys inside a value survive (desired-lrps.md 3.1).

`dump_*` make the text of a column, `load_*` read any JSON spelling of it. `load_*` raise ValueError with
the reason when the text is not what the column holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from bbs_server.core.records import MetricTag

Routes = tuple[tuple[str, bytes], ...]
MetricTags = tuple[tuple[str, MetricTag], ...]
V = TypeVar("V")

DYNAMIC_NAMES: Mapping[int, str] = {1: "INDEX", 2: "INSTANCE_GUID"}
_DYNAMIC_NUMBERS = {name: number for number, name in DYNAMIC_NAMES.items()}

_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)
_STRING_OR_SPACE = re.compile(rb'("(?:[^"\\]++|\\.)*+")|[ \t\r\n]++')
_SPACE = re.compile(rb"[ \t\r\n]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile(r"[ \t\r\n]*")


class NotJSON(ValueError):
    """A text that is not valid JSON, or not of the expected shape."""


def text(value: str | bytes) -> str:
    """A string as JSON carries it: each byte that is not part of valid UTF-8 becomes U+FFFD (wire.md 6)."""
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    return _SURROGATE.sub("\ufffd", value)


def by_name(members: Iterable[tuple[str, V]]) -> tuple[tuple[str, V], ...]:
    """Members sorted by name, the last one of each name."""
    return tuple(sorted(dict(members).items(), key=lambda member: member[0]))


def normalised(value: bytes) -> bytes:
    """A route value as it is stored and read back. Raises NotJSON.

    Bytes inside strings need not be valid UTF-8 and are kept. Values nested deeper than the
    interpreter's recursion limit count as not valid.
    """
    _check(value)
    if _SPACE.search(value):
        value = _STRING_OR_SPACE.sub(rb"\1", value)
    return _escaped(value)


def dump_routes(routes: Routes | None) -> bytes:
    return b"null" if routes is None else _object((name, value) for name, value in routes)


def dump_metric_tags(tags: MetricTags | None) -> bytes:
    return b"null" if tags is None else _object((name, _dump_metric_tag(tag)) for name, tag in tags)


def dump_placement_tags(tags: tuple[str, ...] | None) -> str:
    """This column is not sealed, so it is text."""
    return "null" if tags is None else "[" + ",".join(_string(tag).decode() for tag in tags) + "]"


def load_routes(data: bytes) -> Routes | None:
    values = _raw_members(data)
    if values is None:
        return None
    return by_name((text(name), value.encode(errors="surrogateescape")) for name, value in values.items())


def load_metric_tags(data: bytes) -> MetricTags | None:
    tags = _parse(data)
    if tags is None:
        return None
    if not isinstance(tags, dict):
        raise NotJSON(_mismatch(tags, "object"))
    return by_name((text(name), _load_metric_tag(tag)) for name, tag in tags.items())


def load_placement_tags(data: str) -> tuple[str, ...] | None:
    tags = _parse(data.encode(errors="surrogateescape"))
    if tags is None:
        return None
    if not isinstance(tags, list):
        raise NotJSON(_mismatch(tags, "array"))
    return tuple(_load_string(tag) for tag in tags) or None


def load_hostnames(value: bytes) -> tuple[str, ...] | None:
    """The hostnames of an `internal-router` value: a list of objects, other keys dropped; None for `null`.

    Raises NotJSON for anything else.
    """
    routes = _parse(value)
    if routes is None:
        return None
    if not isinstance(routes, list):
        raise NotJSON(_mismatch(routes, "array"))
    return tuple(_member(route, "hostname") for route in routes)


def _dump_metric_tag(tag: MetricTag) -> bytes:
    parts = []
    if tag.static:
        parts.append(b'"static":' + _string(tag.static))
    if tag.dynamic:
        # Quirk: an unknown number is written as an empty name and reads back as 0 (desired-lrps.md 3.2).
        parts.append(b'"dynamic":"' + DYNAMIC_NAMES.get(tag.dynamic, "").encode() + b'"')
    return b"{" + b",".join(parts) + b"}"


def _load_metric_tag(value: Any) -> MetricTag:
    return MetricTag(_member(value, "static"), _DYNAMIC_NUMBERS.get(_member(value, "dynamic"), 0))


def _member(value: Any, name: str) -> str:
    """A string member of an object; names match without regard to case, absent and null are empty."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise NotJSON(_mismatch(value, "object"))
    found = ""
    for key, member in value.items():
        if key.lower() == name and member is not None:
            found = _load_string(member)
    return found


def _load_string(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise NotJSON(_mismatch(value, "string"))
    return text(value)


def _object(members: Iterable[tuple[str, bytes]]) -> bytes:
    return b"{" + b",".join(_string(name) + b":" + value for name, value in members) + b"}"


def _string(value: str) -> bytes:
    return _escaped(json.dumps(value, ensure_ascii=False).encode())


def _escaped(value: bytes) -> bytes:
    for character, escape in _ESCAPES:
        value = value.replace(character, escape)
    return value


def _refuse(constant: str) -> Any:
    raise NotJSON(f"invalid character '{constant[0]}' looking for beginning of value")


def _number(spelling: str) -> float:
    return 0.0


# Numbers are never needed, and converting those of thousands of digits is refused by the interpreter.
_DECODER = json.JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_refuse)


def _check(value: bytes) -> None:
    """Raise NotJSON unless the bytes are JSON. Latin-1 keeps every byte, valid UTF-8 or not."""
    _decode(value.decode("latin-1"))


def _parse(data: bytes) -> Any:
    return _decode(data.decode(errors="surrogateescape"))


def _decode(source: str) -> Any:
    try:
        return _DECODER.decode(source)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise NotJSON(_reason(source, problem)) from None


def _raw_members(data: bytes) -> dict[str, str] | None:
    """The members of a JSON object with the source text of their values; None for `null`."""
    source = data.decode(errors="surrogateescape")
    whole = _decode(source)
    if whole is None:
        return None
    if not isinstance(whole, dict):
        raise NotJSON(_mismatch(whole, "object"))
    members: dict[str, str] = {}
    at = _skip(source, source.index("{") + 1)
    while source[at] != "}":
        name, at = _DECODER.raw_decode(source, at)
        start = _skip(source, _skip(source, at) + 1)
        _, end = _DECODER.raw_decode(source, start)
        members[name] = source[start:end]
        at = _skip(source, end)
        if source[at] == ",":
            at = _skip(source, at + 1)
    return members


def _skip(source: str, at: int) -> int:
    found = _BLANKS.match(source, at)
    assert found is not None
    return found.end()


def _reason(source: str, problem: Exception) -> str:
    position = getattr(problem, "pos", 0)
    if position >= len(source):
        return "unexpected end of JSON input"
    return f"invalid character '{text(source[position])}' in JSON input"


def _mismatch(value: Any, wanted: str) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "bool", float: "number"}
    return f"json: cannot unmarshal {kinds.get(type(value), 'null')} where {wanted} is expected"
