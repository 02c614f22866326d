"""HTTP/1.x requests out of bytes (server.md 9): no I/O, no knowledge of routes.

Written by hand because what a client sees of a bad request is part of the protocol: which refusals
are answered by the route (a broken body), which by the server (everything in a head), and that
unknown methods and minor versions are none. Anything ambiguous is refused, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from bbs_server.core.go_json import text

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
_NO_LINE_END = re.compile(rb"[^\r\n]").search
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
    """A request without its body. `length` in bytes, or CHUNKED; `target` as it was sent, for the logs.

    What is not UTF-8 in `request_id` is kept as `surrogateescape` does: events carry the id byte for byte.
    """

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
        target=text(target),
        path=path.decode("latin-1"),
        http10=http10,
        length=length,
        keep_alive=b"close" not in connection and (not http10 or b"keep-alive" in connection),
        continues=continues and not http10 and length != 0,
        impossible=bool(expect) and not continues,
        request_id=found.get(b"x-vcap-request-id", [b""])[0].decode(errors="surrogateescape"),
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
    """The bytes a connection has received, handed out as heads and bodies in turn.

    `_data` is used up to `_at` and cut when more comes: cutting it after each head or chunk would copy the
    rest again and again, and they may be small and many.
    """

    __slots__ = ("_at", "_body", "_data", "_line_end", "_missing", "_scanned")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        self._scanned = 0
        self._body = bytearray()
        self._missing = 0
        self._line_end = False

    def __len__(self) -> int:
        """Bytes not yet handed out, without those of the body being collected."""
        return len(self._data) - self._at

    def feed(self, data: bytes) -> None:
        self._data = self._data[self._at :] + data if len(self) else data
        self._at = 0

    def clear(self) -> None:
        self._data, self._at = b"", 0
        self._body = bytearray()

    def head(self) -> Head | None:
        """The next head, once it is complete. Raises Refusal."""
        if self._data.startswith((b"\r", b"\n"), self._at):  # empty lines before a request are tolerated
            first = _NO_LINE_END(self._data, self._at)
            self._use(len(self._data) if first is None else first.start())
        data, at = self._data, self._at
        end = _HEAD_END.search(data, at + max(0, self._scanned - 3))
        if end is None or end.end() - at > HEAD_LIMIT:
            self._scanned = len(data) - at
            if end is not None or self._scanned > HEAD_LIMIT:
                raise Refusal("431 Request Header Fields Too Large")
            return None
        block = data[at : end.start()].removesuffix(b"\r")
        self._use(end.end())
        self._scanned = 0
        head = _parse_small_head(block) if len(block) <= _CACHED_HEAD else parse_head(block)
        self._missing = 0 if head.length == CHUNKED else head.length
        self._line_end = False
        return head

    def body(self, head: Head) -> bytes | None:
        """The body that follows the head, once it is complete. Raises BrokenBody, Refusal."""
        if head.length == 0:
            return b""
        if head.length == CHUNKED:
            return self._whole() if self._collect_chunks() else None
        if not self._body and len(self) >= head.length:
            end = self._at + head.length
            body = self._data[self._at : end]
            self._use(end)
            return body
        self._use(self._take(self._at))
        return None if self._missing else self._whole()

    def _use(self, end: int) -> None:
        """The data up to there have been handed out. An idle connection keeps none of them."""
        self._at = end
        if end == len(self._data):
            self._data, self._at = b"", 0

    def _take(self, start: int) -> int:
        """Copy what is there of the missing bytes to the body. Returns where it ends."""
        piece = self._data[start : start + self._missing]
        self._missing -= len(piece)
        self._body += piece
        if len(self._body) > BODY_LIMIT:
            raise Refusal("413 Request Entity Too Large")
        return start + len(piece)

    def _whole(self) -> bytes:
        body, self._body = bytes(self._body), bytearray()
        return body

    def _collect_chunks(self) -> bool:
        """Take as many chunks as are there; True after the last one and its trailers."""
        at, complete = self._walk_chunks()
        self._use(at)
        return complete

    def _walk_chunks(self) -> tuple[int, bool]:
        """Returns up to where the data are used up, and whether the body is complete."""
        data, at = self._data, self._at
        while True:
            if self._missing:
                at = self._take(at)
                if self._missing:
                    return at, False
            if self._line_end:
                if len(data) - at < 2:
                    return at, False
                if not data.startswith(b"\r\n", at):
                    raise BrokenBody("malformed chunked encoding")
                at, self._line_end = at + 2, False
            end = data.find(b"\n", at)
            if end < 0 or end - at > _CHUNK_LINE_LIMIT:
                if end > at or len(data) - at > _CHUNK_LINE_LIMIT:
                    raise BrokenBody("header line too long")
                return at, False
            size = data[at:end].partition(b";")[0].strip(b" \t\r")
            if not _HEX(size):
                raise BrokenBody("invalid byte in chunk length")
            if int(size, 16) == 0:
                trailers_end = self._trailers_end(end + 1)
                return (at, False) if trailers_end is None else (trailers_end, True)
            at, self._missing, self._line_end = end + 1, int(size, 16), True

    def _trailers_end(self, start: int) -> int | None:
        """Where the trailer lines behind the last chunk end, if they do; their contents never matter."""
        if self._data.startswith(b"\r\n", start):
            return start + 2
        end = _HEAD_END.search(self._data, start - 1)
        if end is None:
            if len(self._data) - start > _TRAILER_LIMIT:
                raise BrokenBody("trailer too long")
            return None
        return end.end()
