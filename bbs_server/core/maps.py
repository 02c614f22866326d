"""Maps of protobuf messages whose keys may be any bytes.

A key that is not valid UTF-8 is handed out as `bytes`, but looking it up, and with that `.items()` and
`.values()`, raises UnicodeDecodeError. Such a map is read from its encoding instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet


def entries(message: Message, name: str) -> list[tuple[str | bytes, bytes]]:
    """The entries of the map field `name` as key and encoded value, sorted by the key's bytes.

    A key is `bytes` only if it is not valid UTF-8. The value of a message-valued map is the encoded
    message, that of a bytes-valued map the bytes themselves. The last entry of a key counts.
    """
    number = message.DESCRIPTOR.fields_by_name[name].number
    found: dict[bytes, bytes] = {}
    for record in _fields(message.SerializeToString(deterministic=True)):
        if record.field_number == number:
            parts = {part.field_number: part.data for part in _fields(record.data)}
            found[parts.get(1, b"")] = parts.get(2, b"")
    return [(_text(key), found[key]) for key in sorted(found)]


def has_odd_keys(message: Message, name: str) -> bool:
    """Whether a key of the map field `name` is not valid UTF-8."""
    return any(isinstance(key, bytes) for key in getattr(message, name))


def _fields(encoded: bytes) -> Iterable[Any]:
    """The fields of an encoded message, whatever its type; the type hints do not know that they are iterable."""
    return cast("Iterable[Any]", UnknownFieldSet(Empty.FromString(encoded)))


def _text(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
