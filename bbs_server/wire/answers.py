"""Responses as bytes: headers, errors inside response messages, bulk bodies in slices (server.md 9)."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from itertools import accumulate
from typing import Any

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.core.encoding import Elements, encode, put_text
from bbs_server.core.errors import Error

SLICE = 128 << 10
"""Bytes of a bulk body that are joined, encrypted and handed to the socket at a time."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
NOT_FOUND = b"404 page not found\n"
WRONG_METHOD = b"Method Not Allowed\n"

_AT_ONCE = 128
"""Pieces that are made without looking at the clock."""

TURN = 0.003
"""s of making or sending pieces before others get a turn."""

_PROTOBUF = b"Content-Type: application/x-protobuf\r\n"
_PLAIN = b"Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"

_date = (0, b"")


def date() -> bytes:
    """The `Date` header, made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, b"Date: " + formatdate(now, usegmt=True).encode() + b"\r\n")
    return _date[1]


def _connection(http10: bool, keep: bool) -> bytes:
    """What must be said about the connection: only what differs from the version's default."""
    if http10:
        return b"Connection: keep-alive\r\n" if keep else b""
    return b"" if keep else b"Connection: close\r\n"


def protobuf_head(length: int, http10: bool, keep: bool) -> bytes:
    """Header of an answered request: exactly length, type and date, and `Connection` if need be."""
    if keep and not http10:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b%b\r\n" % (length, _PROTOBUF, date())
    start = b"HTTP/1.0 200 OK\r\n" if http10 else b"HTTP/1.1 200 OK\r\n"
    return b"%bContent-Length: %d\r\n%b%b%b\r\n" % (start, length, _PROTOBUF, date(), _connection(http10, keep))


def plain(status: bytes, body: bytes, http10: bool, keep: bool, *, extra: bytes = b"", silent: bool = False) -> bytes:
    """A response of the server itself; `silent` leaves the body out, as HEAD wants."""
    start = b"HTTP/1.0 " if http10 else b"HTTP/1.1 "
    kind = _PLAIN if body else b""
    head = b"%b%b\r\n%bContent-Length: %d\r\n%b%b%b\r\n" % (
        start,
        status,
        extra,
        len(body),
        kind,
        date(),
        _connection(http10, keep),
    )
    return head if silent else head + body


def refusal(text: str) -> bytes:
    """A request that could not be understood: `text` is status and reason, the connection ends."""
    head = f"HTTP/1.1 {text}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    return (head + text).encode()


def stream_head(http10: bool, keep: bool) -> bytes:
    """Header of an event stream (events.md 2)."""
    start = b"HTTP/1.0 200 OK\r\n" if http10 else b"HTTP/1.1 200 OK\r\n"
    connection = b"Connection: keep-alive\r\n" if keep else b"Connection: close\r\n"
    # Quirk: HTTP/1.0 gets neither header, and chunk framing nevertheless.
    framing = b"" if http10 else b"Transfer-Encoding: chunked\r\n"
    return b"".join(
        (
            start,
            b"Cache-Control: no-cache, no-store, must-revalidate\r\n",
            b"" if http10 else connection,
            b"Content-Type: text/event-stream; charset=utf-8\r\n",
            date(),
            framing,
            b"\r\n",
        )
    )


def error_body(response: type[Message], error: Error, fields: dict[str, Any] | None = None) -> bytes:
    """The response message that carries only an error, and the fields given."""
    # The message types of a response are known to the table only.
    answer: Any = response(**(fields or {}))
    answer.error.CopyFrom(models.Error(type=error.type))  # type: ignore[arg-type]
    put_text(answer.error, "message", _bytes(error.message))
    return encode(answer)


def _bytes(text: str) -> bytes:
    """What a client sent that is not UTF-8 goes back as it came (wire.md E10); other lone surrogates have no bytes."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


async def pieces_of(answer: Elements) -> Sequence[bytes]:
    """The pieces of an answer; others get a turn while many are made for the first time."""
    records = answer.records
    if len(records) <= _AT_ONCE:
        return answer.pieces
    pieces: list[bytes] = []
    deadline = time.perf_counter() + TURN
    for start in range(0, len(records), _AT_ONCE):
        pieces += answer.pieces_of(records[start : start + _AT_ONCE])
        if time.perf_counter() > deadline:
            await asyncio.sleep(0)
            deadline = time.perf_counter() + TURN
    return pieces


def slices(pieces: Sequence[bytes]) -> tuple[int, Iterator[bytes]]:
    """Total length of the pieces, and their bytes in slices of about SLICE."""
    ends = list(accumulate(map(len, pieces)))
    return (ends[-1] if ends else 0), _slices(pieces, ends)


def _slices(pieces: Sequence[bytes], ends: list[int]) -> Iterator[bytes]:
    start = sent = 0
    while start < len(pieces):
        stop = max(start + 1, bisect_right(ends, sent + SLICE, start))
        yield b"".join(pieces[start:stop])
        start, sent = stop, ends[stop - 1]
