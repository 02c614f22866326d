"""The JSON columns, spelled as the reference spells them (storage.md 5.3).

Compact and names sorted, by the rules of `go_json`. Values of routes are kept as text: number spelling, key
order and duplicate keys inside a value survive (desired-lrps.md 3.1).

`dump_*` make the content of a column, `load_*` read any JSON spelling of it; None is JSON null, and differs
from empty. Sealed columns are bytes and may hold invalid UTF-8, inside strings; `placement_tags` is text.
`load_*` raise NotJSON with the reason when the content is not what the column holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring
from typing import Any, TypeVar

from bbs_server.core import go_json, sharing
from bbs_server.core.go_json import DECODER, MOST_LEVELS, NotJSON, escaped, kind, parse, text
from bbs_server.core.records import MetricTag

Routes = tuple[tuple[str, bytes], ...]
MetricTags = tuple[tuple[str, MetricTag], ...]
Tags = tuple[tuple[str, str], ...]
V = TypeVar("V")

DYNAMIC_NAMES: Mapping[int, str] = {1: "INDEX", 2: "INSTANCE_GUID"}
_DYNAMIC_NUMBERS = {name: number for number, name in DYNAMIC_NAMES.items()}

_NULL = b"null"
_STRING_OR_SPACE = re.compile(rb'("(?:[^"\\]++|\\.)*+")|[ \t\r\n]++')
_SPACE = re.compile(rb"[ \t\r\n]")
_BLANKS = re.compile(r"[ \t\r\n]*")


def by_name(members: Iterable[tuple[str, V]]) -> tuple[tuple[str, V], ...]:
    """Members sorted by name, the last one of each name."""
    last = {member[0]: member for member in members}
    return tuple([last[name] for name in sorted(last)])


# -- routes ------------------------------------------------------------------------------


def normalised(value: bytes) -> bytes:
    """A route value as it is stored and read back. Raises NotJSON.

    Bytes inside strings need not be valid UTF-8 and are kept. Values nested deeper than `MOST_LEVELS`
    count as not valid.
    """
    parse(value.decode("latin-1"))  # Keeps every byte, valid UTF-8 or not.
    if _SPACE.search(value):
        value = _STRING_OR_SPACE.sub(rb"\1", value)
    return _bytes(escaped(_source(value)))


def dump_routes(routes: Routes | None) -> bytes:
    """desired_lrps.routes"""
    if routes is None:
        return _NULL
    return b"{" + b",".join([go_json.string(name).encode() + b":" + value for name, value in routes]) + b"}"


def load_routes(data: bytes) -> Routes | None:
    """Values as they are written, white space inside them included."""
    if data == _NULL:
        return None
    source = _source(data)
    if _object(source, MOST_LEVELS + 1) is None:
        return None
    # The text is known to be an object: names, colons, values and commas follow each other.
    members: dict[str, bytes] = {}
    at = _skip(source, source.index("{") + 1)
    while source[at] != "}":
        name, at = DECODER.raw_decode(source, at)
        start = _skip(source, _skip(source, at) + 1)
        _, end = DECODER.raw_decode(source, start)
        members[text(name)] = _bytes(source[start:end])
        at = _skip(source, end)
        if source[at] == ",":
            at = _skip(source, at + 1)
    return tuple(sorted(members.items()))


def _skip(source: str, at: int) -> int:
    found = _BLANKS.match(source, at)
    assert found is not None
    return found.end()


def load_hostnames(data: bytes) -> tuple[str, ...] | None:
    """The hostnames in a list of internal routes, other members of which are dropped.

    Such a list is the value of `internal-router` in the routes of a desired LRP, and a column of actual LRPs.
    """
    routes = _array(_source(data))
    return None if routes is None else tuple([_texts(route, "hostname")[0] for route in routes])


def dump_hostnames(hostnames: tuple[str, ...] | None) -> bytes:
    """actual_lrps.internal_routes"""
    if hostnames is None:
        return _NULL
    routes = ",".join([f'{{"hostname":{encode_basestring(name)}}}' for name in hostnames])
    return escaped(f"[{routes}]").encode()


# -- tags --------------------------------------------------------------------------------


def dump_metric_tags(tags: MetricTags | None) -> bytes:
    """desired_lrps.metric_tags"""
    if tags is None:
        return _NULL
    members = ",".join([f"{encode_basestring(name)}:{_metric_tag(tag)}" for name, tag in tags])
    return escaped(f"{{{members}}}").encode()


def _metric_tag(tag: MetricTag) -> str:
    """Zero values are left out. Quirk: an unknown dynamic number is written as an empty name (desired-lrps.md 3.2)."""
    static = f'"static":{encode_basestring(tag.static)}' if tag.static else ""
    dynamic = f'"dynamic":"{DYNAMIC_NAMES.get(tag.dynamic, "")}"' if tag.dynamic else ""
    return f"{{{static},{dynamic}}}" if static and dynamic else f"{{{static}{dynamic}}}"


def load_metric_tags(data: bytes) -> MetricTags | None:
    tags = _object(_source(data))
    return None if tags is None else by_name([_load_metric_tag(name, tag) for name, tag in tags.items()])


def _load_metric_tag(name: str, value: Any) -> tuple[str, MetricTag]:
    static, dynamic = _texts(value, "static", "dynamic")
    return sharing.metric_tag(text(name), static, _DYNAMIC_NUMBERS.get(dynamic, 0))


def dump_tags(tags: Tags | None) -> bytes:
    """actual_lrps.metric_tags"""
    if tags is None:
        return _NULL
    members = ",".join([f"{encode_basestring(name)}:{encode_basestring(value)}" for name, value in tags])
    return escaped(f"{{{members}}}").encode()


def load_tags(data: bytes) -> Tags | None:
    tags = _object(_source(data))
    return None if tags is None else by_name([sharing.tag(text(name), _load_string(tag)) for name, tag in tags.items()])


def dump_placement_tags(tags: tuple[str, ...] | None) -> str:
    """This column is not sealed, so it is text."""
    return go_json.strings(tags)


def load_placement_tags(source: str) -> tuple[str, ...] | None:
    tags = _array(source)
    return None if tags is None else tuple([_load_string(tag) for tag in tags])


# -- parts -------------------------------------------------------------------------------


def _source(data: bytes) -> str:
    """The text of a column, its bytes kept even where they are not UTF-8."""
    return data.decode(errors="surrogateescape")


def _bytes(source: str) -> bytes:
    return source.encode(errors="surrogateescape")


def _object(source: str, most_levels: int = MOST_LEVELS) -> dict[str, Any] | None:
    value = parse(source, most_levels=most_levels)
    if value is None or isinstance(value, dict):
        return value
    raise NotJSON(_mismatch(value, "object"))


def _array(source: str) -> list[Any] | None:
    value = parse(source)
    if value is None or isinstance(value, list):
        return value
    raise NotJSON(_mismatch(value, "array"))


def _texts(value: Any, *names: str) -> list[str]:
    """String members of an object; names match without regard to case, absent and null are empty."""
    found = dict.fromkeys(names, "")
    if isinstance(value, dict):
        for key, member in value.items():
            name = key.lower()
            if name in found and member is not None:
                found[name] = _load_string(member)
    elif value is not None:
        raise NotJSON(_mismatch(value, "object"))
    return list(found.values())


def _load_string(value: Any) -> str:
    if isinstance(value, str):
        return text(value)
    if value is None:
        return ""
    raise NotJSON(_mismatch(value, "string"))


def _mismatch(value: Any, wanted: str) -> str:
    return f"json: cannot unmarshal {kind(value)} where {wanted} is expected"
