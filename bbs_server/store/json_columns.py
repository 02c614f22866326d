"""The JSON columns, written byte for byte as the reference writes them and read in any spelling (storage.md 5.3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.encoder import encode_basestring
from typing import Any, NoReturn, TypeVar

from bbs_server.core.records import MetricTag
from bbs_server.store.sealing import Undecodable

Routes = tuple[tuple[str, bytes], ...] | None
Tags = tuple[tuple[str, str], ...] | None
MetricTags = tuple[tuple[str, MetricTag], ...] | None

T = TypeVar("T")

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_WHITESPACE = " \t\n\r"
_DYNAMIC = {1: "INDEX", 2: "INSTANCE_GUID"}
_DYNAMIC_NUMBERS = {name: number for number, name in _DYNAMIC.items()}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"invalid character '{name[0]}' looking for beginning of value")


_decoder = json.JSONDecoder(parse_constant=_no_constant)


def quote(text: str) -> str:
    """A JSON string; HTML characters escaped."""
    return encode_basestring(text).translate(_ESCAPES)


def _object(members: Iterable[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{quote(name)}:{value}" for name, value in members) + "}"


def write_routes(routes: Routes) -> str:
    return "null" if routes is None else _object((name, value.decode()) for name, value in routes)


def write_metric_tags(tags: MetricTags) -> str:
    return "null" if tags is None else _object((name, _metric_tag(tag)) for name, tag in tags)


def _metric_tag(tag: MetricTag) -> str:
    """Zero values are left out. Quirk: an unknown dynamic number is written as the empty name."""
    members = []
    if tag.static:
        members.append(("static", quote(tag.static)))
    if tag.dynamic:
        members.append(("dynamic", quote(_DYNAMIC.get(tag.dynamic, ""))))
    return _object(members)


def write_tags(tags: Tags) -> str:
    return "null" if tags is None else _object((name, quote(value)) for name, value in tags)


def write_internal_routes(hostnames: tuple[str, ...] | None) -> str:
    if hostnames is None:
        return "null"
    return "[" + ",".join(f'{{"hostname":{quote(name)}}}' for name in hostnames) + "]"


def write_strings(values: tuple[str, ...] | None) -> str:
    return "null" if values is None else "[" + ",".join(map(quote, values)) + "]"


def read_routes(text: str) -> Routes:
    """Router names with the text of their values as stored, sorted by name. Raises Undecodable."""
    return _reading(text, _members_as_text)


def read_metric_tags(text: str) -> MetricTags:
    return _reading(text, lambda t: _sorted(_parse(t), _read_metric_tag))


def read_tags(text: str) -> Tags:
    return _reading(text, lambda t: _sorted(_parse(t), _string))


def read_internal_routes(text: str) -> tuple[str, ...] | None:
    return _reading(text, lambda t: _each(_parse(t), lambda route: _string(_member(route, "hostname"))))


def read_strings(text: str) -> tuple[str, ...] | None:
    return _reading(text, lambda t: _each(_parse(t), _string))


def _reading(text: str, read: Callable[[str], T]) -> T | None:
    """What `read` makes of the text; its complaints become Undecodable, JSON null becomes None."""
    if text == "null":
        return None
    try:
        return read(text)
    except json.JSONDecodeError as problem:
        ended = problem.pos >= len(text)
        raise Undecodable("unexpected end of JSON input" if ended else _bad_character(text, problem.pos)) from None
    except (ValueError, TypeError, RecursionError) as problem:
        raise Undecodable(str(problem)) from None


def _bad_character(text: str, position: int) -> str:
    return f"invalid character {text[position]!r} looking for beginning of value"


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _kind(value: object) -> str:
    kinds = {bool: "bool", str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "value")


def _sorted(value: Any, read: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"json: cannot unmarshal {_kind(value)} into Go value of type map")
    return tuple((name, read(value[name])) for name in sorted(value))


def _each(value: Any, read: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"json: cannot unmarshal {_kind(value)} into Go value of type slice")
    return tuple(map(read, value))


def _string(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"json: cannot unmarshal {_kind(value)} into Go value of type string")
    return value


def _member(value: Any, name: str) -> Any:
    """A member of an object, found without regard to letter case; None where there is none."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"json: cannot unmarshal {_kind(value)} into Go value of type struct")
    return next((member for key, member in reversed(value.items()) if key.lower() == name), None)


def _read_metric_tag(value: Any) -> MetricTag:
    dynamic = _member(value, "dynamic")
    number = _DYNAMIC_NUMBERS.get(dynamic, 0) if isinstance(dynamic, str) else int(dynamic or 0)
    return MetricTag(_string(_member(value, "static")), number)


def _members_as_text(text: str) -> Routes:
    """The members of a JSON object, each value as the very text it is written with."""
    place = _skip(text, 0)
    if text[place : place + 1] != "{":
        value = _parse(text)
        if value is None:
            return None
        raise ValueError(f"json: cannot unmarshal {_kind(value)} into Go value of type map")
    members: dict[str, bytes] = {}
    place = _skip(text, place + 1)
    while text[place : place + 1] != "}":
        if text[place : place + 1] != '"':
            raise json.JSONDecodeError("name expected", text, place)
        name, place = scanstring(text, place + 1, True)
        place = _skip(text, _expect(text, _skip(text, place), ":"))
        _, end = _decoder.raw_decode(text, place)
        members[name] = text[place:end].encode()
        place = _skip(text, end)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
            if text[place : place + 1] != '"':
                raise json.JSONDecodeError("name expected", text, place)
        elif text[place : place + 1] != "}":
            raise json.JSONDecodeError("comma expected", text, place)
    if (rest := _skip(text, place + 1)) < len(text):
        raise json.JSONDecodeError("extra data", text, rest)
    return tuple(sorted(members.items()))


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _WHITESPACE:
        place += 1
    return place


def _expect(text: str, place: int, character: str) -> int:
    if text[place : place + 1] != character:
        raise json.JSONDecodeError("delimiter expected", text, place)
    return place + 1
