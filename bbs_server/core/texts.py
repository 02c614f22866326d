"""What PostgreSQL would refuse in a text column, refused before it gets there.

The reference learns these from the database, so each check belongs where the reference's statement
runs: `lookup` where it reads by a key, `column` where it writes a row (tasks.md 7.1).
"""

from __future__ import annotations

import codecs
from sys import intern

from bbs_server.core.errors import INVALID_REQUEST, Refused, unknown

NAME_LIMIT = 255
"""Characters of every varchar(255) column."""

_KEPT_BYTES = 1024
_SUFFIX = "(truncated)"


def spelled(value: str | bytes) -> str:
    """A text whatever it is made of. What protobuf hands out as `bytes`, since it is not valid UTF-8, is kept byte for
    byte, as `surrogateescape` does.
    """
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def lookup(value: str | bytes) -> str:
    """A text that the reference would send as a query parameter.

    Raises Refused with the database's own words for NUL bytes and invalid UTF-8. `bytes` is how
    protobuf hands out a string that is not valid UTF-8.
    """
    if isinstance(value, bytes):
        raise Refused(unknown(f"{_BAD_BYTES} {_first_bad_sequence(value)} {_STATE}"))
    if "\0" in value:
        raise Refused(unknown(f"{_BAD_BYTES} 0x00 {_STATE}"))
    return value


def column(value: str | bytes, limit: int | None = NAME_LIMIT) -> str:
    """A text that goes into a column of at most `limit` characters; longer is InvalidRequest."""
    text = lookup(value)
    if limit is not None and len(text) > limit:
        raise Refused(INVALID_REQUEST)
    return text


def name(value: str | bytes) -> str:
    """A `column` that many records have in common, kept in memory once."""
    return intern(column(value))


def truncate(text: str | bytes) -> str:
    """Cut reasons and placement errors as the columns of 1024 hold them.

    Quirk: a text of exactly 1024 bytes is cut too. Unlike the reference the cut never splits a
    character (spec/README.md, deviation 3). Raises Refused if what is left is not valid UTF-8: what is cut
    off is never looked at.
    """
    encoded = text.encode() if isinstance(text, str) else text
    long = len(encoded) >= _KEPT_BYTES
    if isinstance(text, str):
        return encoded[: _KEPT_BYTES - len(_SUFFIX)].decode(errors="ignore") + _SUFFIX if long else text
    kept = encoded[: _KEPT_BYTES - len(_SUFFIX)] if long else encoded
    try:
        return _UTF8().decode(kept, final=not long) + (_SUFFIX if long else "")
    except UnicodeDecodeError:
        return lookup(kept)


_UTF8 = codecs.getincrementaldecoder("utf-8")
_BAD_BYTES = 'ERROR: invalid byte sequence for encoding "UTF8":'
_STATE = "(SQLSTATE 22021)"


def _first_bad_sequence(value: bytes) -> str:
    """The bytes PostgreSQL names: from the first bad one, as many as its lead byte announces."""
    nul = value.find(b"\0")
    try:
        value.decode()
        start = nul
    except UnicodeDecodeError as problem:
        start = problem.start if nul < 0 else min(nul, problem.start)
    lead = value[start]
    length = 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4 if lead < 0xF8 else 1
    return " ".join(f"0x{byte:02x}" for byte in value[start : start + length])
