"""Encoded answers put together from encoded records.

A repeated field on the wire is its elements one after the other, each with tag and length, so a
list answer is a concatenation of bytes that were computed when the record was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from google.protobuf.message import Message

LIST_FIELD = b"\x12"
"""Tag of field 2, length-delimited: the list field of every list response of the BBS."""


@dataclass(frozen=True, slots=True)
class Elements:
    """An answer as pieces of its encoding: `piece` of each record, in order.

    Pieces are shared, never copied, and kept by their records; made for the first time they cost tens
    of µs each, so whoever sends thousands makes them in slices.
    """

    records: Sequence[Any]
    piece: Callable[[Any], bytes] = bytes
    kept: str = ""
    """The attribute in which records keep their piece, None until it was made; empty if they do not."""

    def pieces_of(self, records: Sequence[Any]) -> list[bytes]:
        """The pieces of some of the records."""
        if self.kept:
            found = list(map(attrgetter(self.kept), records))
            if all(found):
                return found
        return list(map(self.piece, records))

    @property
    def pieces(self) -> Sequence[bytes]:
        """All pieces at once."""
        return self.pieces_of(self.records)


Answer = Message | Elements


def encode(message: Message) -> bytes:
    """Deterministic encoding: equal messages give equal bytes within a process."""
    return message.SerializeToString(deterministic=True)


def element(payload: bytes) -> bytes:
    """An encoded record as one element of a list response: tag, length, payload."""
    return b"".join((LIST_FIELD, _varint(len(payload)), payload))


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of any number: for strings that are not valid UTF-8, which messages refuse."""
    return b"".join((_varint(number << 3 | 2), _varint(len(payload)), payload))


def put_text(message: Message, name: str, value: str | bytes) -> None:
    """Set a string field, or append to a repeated one. `bytes` is a string that is not valid UTF-8: it cannot be
    assigned, but it can be parsed.
    """
    descriptor = message.DESCRIPTOR.fields_by_name[name]
    if isinstance(value, bytes):
        message.MergeFromString(field(descriptor.number, value))
    elif descriptor.is_repeated:
        getattr(message, name).append(value)
    else:
        setattr(message, name, value)


def renumbered(framed: bytes, number: int) -> bytes:
    """An `element` as a field of another number, up to 15: the same bytes behind another tag."""
    return bytes((number << 3 | 2,)) + framed[1:]


def payload(framed: bytes) -> bytes:
    """The record inside an `element`."""
    end = 1
    while framed[end] & 0x80:
        end += 1
    return framed[end + 1 :]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
