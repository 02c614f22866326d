"""A JSON configuration file read into a frozen dataclass by Go's rules (server.md 2.1).

The dataclass is the table: each field made with `key` carries its JSON name, kind, default and meaning.
Used by bbs-server and bbs-locket alike; `keys` gives the table back for documentation.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from bbs_server.core import go_json
from bbs_server.core.go_json import NotJSON, Number, Object
from bbs_server.process.durations import format_duration, parse_duration

C = TypeVar("C")


class Kind(Enum):
    """What a key holds; the value is the Go type that error texts name."""

    TEXT = "string"
    FLAG = "bool"
    INTEGER = "int"
    UNSIGNED = "uint"
    DURATION = "string "  # a Go duration text, kept in ns
    NANOSECONDS = "time.Duration"  # a number
    TEXTS = "[]string"
    TEXT_MAP = "map[string]string"
    TIME_FORMAT = "lagerflags.TimeFormat"
    NESTED = "object"


class Use(Enum):
    """What the server makes of a key."""

    USED = ""
    REQUIRED = "required"
    MEANINGLESS = "accepted, meaningless here"
    EXTENSION = "extension of this server"


@dataclass(frozen=True, slots=True)
class Key:
    """One row of the table of keys. `default` of a duration is ns."""

    name: str
    attribute: str
    kind: Kind
    default: Any
    meaning: str
    use: Use


class BadConfig(Exception):
    """The file cannot be used; the text is what the reference says after `panic: `."""


def key(kind: Kind, default: Any, meaning: str, use: Use = Use.USED, name: str = "") -> Any:
    """A field of a configuration dataclass. `name` is the JSON key when it differs from the attribute."""
    metadata = {"kind": kind, "meaning": meaning, "use": use, "name": name}
    if isinstance(default, dict):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


NESTED: Mapping[str, Any] = {"kind": Kind.NESTED, "meaning": "", "use": Use.USED, "name": ""}
"""Metadata of a field that holds another configuration dataclass."""


def keys(config: type[Any]) -> tuple[Key, ...]:
    """The table of a configuration dataclass, in declaration order."""
    return tuple(
        Key(
            item.metadata["name"] or item.name,
            item.name,
            item.metadata["kind"],
            item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default,
            item.metadata["meaning"],
            item.metadata["use"],
        )
        for item in dataclasses.fields(config)
        if "kind" in item.metadata
    )


def read_config(path: str, config: type[C]) -> tuple[C, tuple[str, ...]]:
    """The configuration in a file, and the keys it has that nobody knows. Raises BadConfig."""
    if not path:
        raise BadConfig("open : no such file or directory")
    try:
        content = Path(path).read_bytes()
    except OSError as problem:
        verb = "read" if isinstance(problem, IsADirectoryError) else "open"
        raise BadConfig(f"{verb} {path}: {(problem.strerror or 'input/output error').lower()}") from None
    return parse_config(content, config)


def parse_config(content: bytes, config: type[C]) -> tuple[C, tuple[str, ...]]:
    """As `read_config`, from the bytes of a file."""
    document = _document(content)
    if not isinstance(document, Object):
        if document is None:
            return config(), ()
        raise BadConfig(f"json: cannot unmarshal {_sort(document)} into Go value of type config.{config.__name__}")
    unknown: list[str] = []
    return _decoded(document, config, config.__name__, unknown), tuple(dict.fromkeys(unknown))


def _document(content: bytes) -> Any:
    """The first JSON value of the file; what follows it is ignored."""
    text = content.decode("utf-8", errors="replace")
    start = len(text) - len(text.lstrip(" \t\r\n"))
    if start == len(text):
        raise BadConfig("EOF")
    try:
        return go_json.EXACT.raw_decode(text, start)[0]
    except NotJSON as problem:
        raise BadConfig(str(problem)) from None
    except json.JSONDecodeError as problem:
        complaint = go_json.complaint(text.rstrip(" \t\r\n"), problem)
        raise BadConfig("unexpected EOF" if complaint == go_json.ENDED else complaint) from None
    except RecursionError:
        raise BadConfig("exceeded max depth") from None


def _decoded(members: Object, config: type[C], path: str, unknown: list[str]) -> C:
    table = {row.name.lower(): row for row in keys(config)}
    values: dict[str, Any] = {}
    for name, value in members:
        row = table.get(name.lower())
        if row is None:
            unknown.append(name)
        elif row.kind is Kind.NESTED:
            # Members given twice complete each other, as in Go.
            nested = values.get(row.attribute, row.default)
            if value is not None:
                if not isinstance(value, Object):
                    raise _mismatch(value, f"{path}.{row.name}", f"{type(row.default).__name__}")
                given = _decoded(value, type(row.default), f"{path}.{row.name}", unknown)
                values[row.attribute] = _merged(nested, given, value)
        elif value is not None or row.kind is Kind.DURATION:
            values[row.attribute] = _DECODERS[row.kind](value, f"{path}.{row.name}")
    return config(**values)


def _merged(earlier: C, given: C, members: Object) -> C:
    names = {name.lower() for name, value in members if value is not None}
    changed = {row.attribute: getattr(given, row.attribute) for row in keys(type(given)) if row.name.lower() in names}
    return dataclasses.replace(earlier, **changed)  # type: ignore[type-var]


def _sort(value: Any) -> str:
    """How Go calls the sort of a JSON value."""
    if isinstance(value, Object):
        return "object"
    return {list: "array", str: "string", bool: "bool", Number: "number"}[type(value)]


def _mismatch(value: Any, path: str, go_type: str) -> BadConfig:
    # Go names the digits only when the target is a number.
    exact = isinstance(value, Number) and go_type.strip() in ("int", "uint", "time.Duration", "int64")
    what = f"number {value.text}" if exact else _sort(value)
    return BadConfig(f"json: cannot unmarshal {what} into Go struct field {path} of type {go_type.strip()}")


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _mismatch(value, path, "string")
    return go_json.text(value)


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(value, path, "bool")
    return value


def _integer(low: int, high: int, go_type: str) -> Callable[[Any, str], int]:
    def decode(value: Any, path: str) -> int:
        if not isinstance(value, Number) or not re.fullmatch(r"-?[0-9]+", value.text):
            raise _mismatch(value, path, go_type)
        if len(value.text) > 20 or not low <= int(value.text) <= high:
            raise _mismatch(value, path, go_type)
        return int(value.text)

    return decode


def _duration(value: Any, path: str) -> int:
    try:
        return parse_duration("" if value is None else _text(value, path))
    except ValueError as problem:
        raise BadConfig(str(problem)) from None


def _texts(value: Any, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or isinstance(value, Object):
        raise _mismatch(value, path, "[]string")
    return tuple("" if item is None else _text(item, path) for item in value)


def _text_map(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, Object):
        raise _mismatch(value, path, "map[string]string")
    return {_text(name, path): "" if item is None else _text(item, path) for name, item in value}


def _time_format(value: Any, path: str) -> str:
    written = value.text if isinstance(value, Number) else value
    names = {"unix-epoch": "unix-epoch", "0": "unix-epoch", "rfc3339": "rfc3339", "1": "rfc3339"}
    if isinstance(written, bool):
        written = json.dumps(written)
    if not isinstance(written, str):
        written = _sort(written)
    if written not in names:
        raise BadConfig(f'invalid TimeFormat: "{written}"')
    return names[written]


_DECODERS: dict[Kind, Callable[[Any, str], Any]] = {
    Kind.TEXT: _text,
    Kind.FLAG: _flag,
    Kind.INTEGER: _integer(-(2**63), 2**63 - 1, "int"),
    Kind.UNSIGNED: _integer(0, 2**64 - 1, "uint"),
    Kind.DURATION: _duration,
    Kind.NANOSECONDS: _integer(-(2**63), 2**63 - 1, "time.Duration"),
    Kind.TEXTS: _texts,
    Kind.TEXT_MAP: _text_map,
    Kind.TIME_FORMAT: _time_format,
}


def documented(config: type[Any]) -> Iterator[Key]:
    """All keys, those of nested objects as `outer.inner`."""
    for row in keys(config):
        if row.kind is not Kind.NESTED:
            yield row
            continue
        for inner in documented(type(row.default)):
            yield dataclasses.replace(inner, name=f"{row.name}.{inner.name}")


def markdown(config: type[Any]) -> str:
    """The table of all keys for the README."""
    lines = ["| Key | Default | Meaning |", "| --- | --- | --- |"]
    for row in documented(config):
        meaning = "; ".join(filter(None, (row.meaning, row.use.value)))
        lines.append(f"| `{row.name}` | {_shown(row)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _shown(row: Key) -> str:
    if row.kind in (Kind.DURATION, Kind.NANOSECONDS) and row.default:
        return f"`{format_duration(row.default)}`"
    if isinstance(row.default, bool):
        return f"`{str(row.default).lower()}`"
    return f"`{row.default}`" if row.default else ("`0`" if row.default == 0 else "")
