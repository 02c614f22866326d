"""JSON spelled as the reference spells it: compact, and `<`, `>`, `&`, U+2028, U+2029 escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from json.encoder import encode_basestring

from bbs_server.core.json_columns import text

_ESCAPED = re.compile("[<>&\u2028\u2029]")


def string(value: str | bytes) -> str:
    """A JSON string. Bytes, which are not valid UTF-8, get U+FFFD in place of the invalid ones."""
    quoted: str = encode_basestring(text(value) if isinstance(value, bytes) else value)
    return _ESCAPED.sub(_escape, quoted)


def strings(values: Iterable[str] | None) -> str:
    """A JSON array of strings; None is `null`."""
    return "null" if values is None else f"[{','.join(map(string, values))}]"


def boolean(value: bool) -> str:
    return "true" if value else "false"


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
