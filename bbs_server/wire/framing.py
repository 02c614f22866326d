"""HTTP/1.x requests out of bytes (server.md 9): no I/O, no knowledge of routes.

Written by hand because what a client sees of a bad request is part of the protocol: which refusals
are answered by the route (a broken body), which by the server (everything in a head), and that
unknown methods and minor versions are none. Anything ambiguous is refused, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

HEAD_LIMIT = (1 << 20) + 4096
"""Bytes of request line and headers; more is 431."""

BODY_LIMIT = 128 << 20
"""Bytes of a body; more is 413. The reference has no limit, its clients stay far below this one."""

CHUNKED = -1
"""`Head.length` of a chunked body."""

_CACHED_HEAD = 1024
_CHUNK_LINE_LIMIT = 4096
_TRAILER_LIMIT = 64 << 10

_HEAD_END = re.compile(rb"\n\r?\n")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)").search
_VERSION = re.compile(rb"HTTP/(\d)\.(\d)").fullmatch
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*://[^/?]*").match
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_HOST = re.compile(rb"[A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]*").fullmatch
_DIGITS = re.compile(rb"[0-9]{1,19}").fullmatch
_HEX = re.compile(rb"[0-9A-Fa-f]{1,16}").fullmatch
_WANTED = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"x-vcap-request-id"))


class Refusal(Exception):
    """The request cannot be understood; it is answered with `status` and the connection closed."""

    def __init__(self, status: str, text: str = "") -> None:
        super().__init__(f"{status}: {text}" if text else status)


class BrokenBody(Exception):
    """The body ends early or its chunks are malformed. The route decides what that means."""


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. `length` in bytes, or CHUNKED; `target` as it was sent."""

    method: str
    target: str
    path: str
    http10: bool
    length: int
    keep_alive: bool
    continues: bool
    impossible: bool
    request_id: str


def parse_head(block: bytes) -> Head:
    """Request line and headers, without the empty line. Raises Refusal."""
    if _CONTROL(block):
        raise Refusal("400 Bad Request", "invalid header value")
    first, *lines = block.replace(b"\r\n", b"\n").split(b"\n")
    method, _, rest = first.partition(b" ")
    target, _, protocol = rest.partition(b" ")
    version = _VERSION(protocol)
    if version is None or not _TOKEN(method):
        raise Refusal("400 Bad Request")
    found = _headers(lines)
    if version[1] != b"1":
        raise Refusal("505 HTTP Version Not Supported", "unsupported protocol version")
    http10 = version[2] == b"0"
    path = _path(method, target)
    _check_host(found.get(b"host", []), required=not http10 and method != b"CONNECT")
    length = _length(found, http10)
    connection = {token.strip() for value in found.get(b"connection", ()) for token in value.lower().split(b",")}
    expect = found.get(b"expect", [b""])[0].lower()
    continues = expect == b"100-continue"
    return Head(
        method=method.decode("latin-1"),
        target=target.decode("utf-8", "replace"),
        path=path.decode("latin-1"),
        http10=http10,
        length=length,
        keep_alive=b"close" not in connection and (not http10 or b"keep-alive" in connection),
        continues=continues and not http10 and length != 0,
        impossible=bool(expect) and not continues,
        request_id=found.get(b"x-vcap-request-id", [b""])[0].decode("utf-8", "replace"),
    )


_parse_small_head = lru_cache(maxsize=1024)(parse_head)
"""Clients repeat themselves: most heads on a connection are equal byte for byte."""


def _headers(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    """The headers that matter, by lower-case name. Folded lines are refused."""
    found: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN(name):
            raise Refusal("400 Bad Request")
        name = name.lower()
        if name in _WANTED:
            found.setdefault(name, []).append(value.strip(b" \t"))
    return found


def _path(method: bytes, target: bytes) -> bytes:
    """The path of any form of target, still escaped; empty where there is none."""
    if target.startswith(b"/"):
        path = target.partition(b"?")[0]
    elif (absolute := _ABSOLUTE(target)) is not None:
        path = target[absolute.end() :].partition(b"?")[0]
    elif target == b"*" or method == b"CONNECT":
        return target
    else:
        raise Refusal("400 Bad Request")
    if _BAD_ESCAPE(path):
        raise Refusal("400 Bad Request")
    return path


def _check_host(hosts: list[bytes], *, required: bool) -> None:
    if required and not hosts:
        raise Refusal("400 Bad Request", "missing required Host header")
    if len(hosts) > 1:
        raise Refusal("400 Bad Request", "too many Host headers")
    if hosts and not _HOST(hosts[0]):
        raise Refusal("400 Bad Request", "malformed Host header")


def _length(found: dict[bytes, list[bytes]], http10: bool) -> int:
    """Bytes of the body. A valid `Transfer-Encoding` outranks `Content-Length`; HTTP/1.0 has none."""
    lengths = found.get(b"content-length", [])
    if len(set(lengths)) > 1 or (lengths and not _DIGITS(lengths[0])) or (lengths and int(lengths[0]) >> 63):
        raise Refusal("400 Bad Request")
    codings = [] if http10 else found.get(b"transfer-encoding", [])
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
        raise Refusal("501 Not Implemented", "unsupported transfer encoding")
    if codings:
        return CHUNKED
    length = int(lengths[0]) if lengths else 0
    if length > BODY_LIMIT:
        raise Refusal("413 Request Entity Too Large")
    return length


class Inbox:
    """The bytes a connection has received, handed out as heads and bodies in turn."""

    __slots__ = ("_data", "_line_end", "_missing", "_pieces", "_scanned", "_size")

    def __init__(self) -> None:
        self._data = b""
        self._scanned = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._missing = 0
        self._line_end = False

    def __len__(self) -> int:
        """Bytes not yet handed out, without those of the body being collected."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data

    def clear(self) -> None:
        self._data = b""
        self._pieces = []

    def head(self) -> Head | None:
        """The next head, once it is complete. Raises Refusal."""
        data = self._data
        if data.startswith((b"\r", b"\n")):  # empty lines before a request are tolerated
            data = self._data = data.lstrip(b"\r\n")
        end = _HEAD_END.search(data, max(0, self._scanned - 3))
        if end is None or end.end() > HEAD_LIMIT:
            self._scanned = len(data)
            if end is not None or len(data) > HEAD_LIMIT:
                raise Refusal("431 Request Header Fields Too Large")
            return None
        block, self._data, self._scanned = data[: end.start()].removesuffix(b"\r"), data[end.end() :], 0
        head = _parse_small_head(block) if len(block) <= _CACHED_HEAD else parse_head(block)
        self._missing = 0 if head.length == CHUNKED else head.length
        self._line_end = False
        self._size = 0
        return head

    def body(self, head: Head) -> bytes | None:
        """The body that follows the head, once it is complete. Raises BrokenBody, Refusal."""
        if head.length == 0:
            return b""
        if head.length == CHUNKED:
            return self._join() if self._collect_chunks() else None
        if not self._pieces and len(self._data) >= head.length:
            body, self._data = self._data[: head.length], self._data[head.length :]
            return body
        self._take()
        return None if self._missing else self._join()

    def _take(self) -> None:
        """Move what is there of the missing bytes to the body."""
        piece, self._data = self._data[: self._missing], self._data[self._missing :]
        self._missing -= len(piece)
        self._size += len(piece)
        if piece:
            self._pieces.append(piece)
        if self._size > BODY_LIMIT:
            raise Refusal("413 Request Entity Too Large")

    def _join(self) -> bytes:
        body, self._pieces = b"".join(self._pieces), []
        return body

    def _collect_chunks(self) -> bool:
        """Take as many chunks as are there; True after the last one and its trailers."""
        while True:
            if self._missing:
                self._take()
                if self._missing:
                    return False
            if self._line_end:
                if len(self._data) < 2:
                    return False
                if not self._data.startswith(b"\r\n"):
                    raise BrokenBody("malformed chunked encoding")
                self._data, self._line_end = self._data[2:], False
            end = self._data.find(b"\n")
            if end < 0 or end > _CHUNK_LINE_LIMIT:
                if end > 0 or len(self._data) > _CHUNK_LINE_LIMIT:
                    raise BrokenBody("header line too long")
                return False
            size = self._data[:end].partition(b";")[0].strip(b" \t\r")
            if not _HEX(size):
                raise BrokenBody("invalid byte in chunk length")
            if int(size, 16) == 0:
                return self._skip_trailers(end + 1)
            self._data = self._data[end + 1 :]
            self._missing, self._line_end = int(size, 16), True

    def _skip_trailers(self, start: int) -> bool:
        """Drop the trailer lines that follow the last chunk; their contents never matter."""
        if self._data.startswith(b"\r\n", start):
            self._data = self._data[start + 2 :]
            return True
        end = _HEAD_END.search(self._data, start - 1)
        if end is None:
            if len(self._data) > _TRAILER_LIMIT:
                raise BrokenBody("trailer too long")
            return False
        self._data = self._data[end.end() :]
        return True
