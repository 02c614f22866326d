"""How the reference spells JSON, and what it says of JSON that it cannot read.

Written compactly, with `<`, `>`, `&`, U+2028 and U+2029 escaped; these occur in strings only, so a whole
text is escaped at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, NoReturn

_ESCAPES = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))
_SURROGATE = re.compile("[\ud800-\udfff]")


class NotJSON(ValueError):
    """A text that is not valid JSON, or not of the expected shape; says so in the reference's words where known."""


# -- writing -----------------------------------------------------------------------------


def text(value: str | bytes) -> str:
    """A string as JSON carries it: each byte that is not part of valid UTF-8 becomes U+FFFD (wire.md 6)."""
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    return value if value.isascii() else _SURROGATE.sub("\ufffd", value)


def escaped(source: str) -> str:
    """A JSON text with the characters escaped that markup could trip over."""
    for character, escape in _ESCAPES:
        source = source.replace(character, escape)
    return source


def string(value: str | bytes) -> str:
    """A JSON string. Bytes, which are not valid UTF-8, get U+FFFD in place of the invalid ones."""
    return escaped(encode_basestring(text(value)))


def strings(values: Iterable[str] | None) -> str:
    """A JSON array of strings; None is `null`."""
    return "null" if values is None else f"[{','.join(map(string, values))}]"


def boolean(value: bool) -> str:
    return "true" if value else "false"


# -- reading -----------------------------------------------------------------------------


def _refuse_constant(constant: str) -> NoReturn:
    """NaN and Infinity, which Python reads, are not JSON."""
    raise NotJSON(f"invalid character '{constant[0]}' looking for beginning of value")


DECODER = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant)
"""For texts whose numbers do not matter: an integer of thousands of digits would be refused."""


class Object(list[tuple[str, Any]]):
    """A JSON object as its members in order, duplicates kept."""


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number as it is spelled."""

    text: str


EXACT = json.JSONDecoder(
    object_pairs_hook=Object, parse_int=Number, parse_float=Number, parse_constant=_refuse_constant
)
"""Gives objects as `Object` and numbers as `Number`."""


MOST_LEVELS = 500
"""How deep arrays and objects may be nested.

The interpreter can read about twice as many, but how many depends on who calls. A text that is taken once must be read
for ever, so the limit is one that every caller can reach.
"""


def parse(source: str, decoder: json.JSONDecoder = DECODER, most_levels: int = MOST_LEVELS) -> Any:
    """The value of a text. Raises NotJSON."""
    try:
        value = decoder.decode(source)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise NotJSON(complaint(source, problem)) from None
    # Whatever is nested deeper has more brackets, too; counting those is cheap.
    if source.count("[") + source.count("{") > most_levels and levels(source) > most_levels:
        raise NotJSON(_TOO_DEEP)
    return value


def levels(source: str) -> int:
    """How deep arrays and objects are nested in a valid text."""
    now = most = 0
    for bracket in _brackets(source):
        now += 1 if bracket in "[{" else -1
        most = max(most, now)
    return most


def complaint(source: str, problem: Exception) -> str:
    """What the reference says of the text; both parsers stop at the same character for the usual mistakes."""
    if not isinstance(problem, json.JSONDecodeError):
        return _TOO_DEEP
    at = problem.pos
    if at >= len(source) or problem.msg.startswith("Unterminated string"):
        return ENDED
    if problem.msg.startswith("Invalid \\"):
        at += 1
        where = "in string escape code"
    elif problem.msg == "Expecting ',' delimiter":
        where = "after object key:value pair" if _innermost(source[:at]) == "{" else "after array element"
    elif source[at] in _LITERALS and problem.msg == "Expecting value":
        return _literal(source[at:])
    else:
        where = _AFTER.get(problem.msg, "looking for beginning of value")
    if at >= len(source):
        return ENDED
    return f"invalid character {_character(source[at])} {where}"


ENDED = "unexpected end of JSON input"
_TOO_DEEP = "exceeded max depth"
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_AFTER = {
    "Expecting property name enclosed in double quotes": "looking for beginning of object key string",
    "Illegal trailing comma before end of object": "looking for beginning of object key string",
    "Expecting ':' delimiter": "after object key",
    "Extra data": "after top-level value",
    "Invalid control character at": "in string literal",
    "Invalid control character": "in string literal",
}


def _literal(rest: str) -> str:
    """A word that begins like true, false or null but goes on otherwise."""
    word = _LITERALS[rest[0]]
    for wanted, found in zip(word[1:], rest[1:], strict=False):
        if wanted != found:
            return f"invalid character {_character(found)} in literal {word} (expecting '{wanted}')"
    return ENDED


def _innermost(source: str) -> str:
    """The bracket that is still open at the end of a text."""
    open_brackets: list[str] = []
    for bracket in _brackets(source):
        if bracket in "[{":
            open_brackets.append(bracket)
        else:
            open_brackets.pop()
    return open_brackets[-1] if open_brackets else ""


def _brackets(source: str) -> Iterable[str]:
    """Those outside of strings."""
    return re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]++|\\.)*+"', "", source))


def _character(character: str) -> str:
    """The reference reads bytes, so it names the first one of a character."""
    byte = chr(text(character).encode()[0])
    if byte in "'\\":
        return f"'\\{byte}'"
    return f"'{byte if byte.isprintable() else repr(byte)[1:-1]}'"


def kind(value: Any) -> str:
    """How the reference calls the sort of a parsed value."""
    kinds = {dict: "object", list: "array", str: "string", bool: "bool", float: "number"}
    return kinds.get(type(value), "null")
