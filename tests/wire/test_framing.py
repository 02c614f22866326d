"""Heads and bodies out of bytes, whole and in pieces."""

from __future__ import annotations

import gc
import itertools
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.wire.framing import CHUNKED, HEAD_LIMIT, BrokenBody, Head, Inbox, Refusal

START = b"POST /v1/ping HTTP/1.1\r\nHost: bbs\r\n"
UNSUPPORTED = "501 Not Implemented: unsupported transfer encoding"


def head_of(data: bytes) -> Head:
    inbox = Inbox()
    inbox.feed(data)
    head = inbox.head()
    assert head is not None
    return head


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (START + b"\r\n", {"method": "POST", "path": "/v1/ping", "length": 0, "keep_alive": True, "http10": False}),
        (b"\r\n\r\n" + START + b"\r\n", {"path": "/v1/ping"}),
        (b"GET /a?b=c HTTP/1.1\nHost: x\n\n", {"path": "/a", "target": "/a?b=c"}),
        (b"GET http://bbs:1/v1/ping?x HTTP/1.1\r\nHost: x\r\n\r\n", {"path": "/v1/ping"}),
        (b"GET http://bbs HTTP/1.1\r\nHost: x\r\n\r\n", {"path": ""}),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", {"path": "*", "method": "OPTIONS"}),
        (b"get /%70ing HTTP/1.7\r\nHost: x\r\n\r\n", {"method": "get", "path": "/%70ing", "http10": False}),
        (b"GET / HTTP/1.0\r\n\r\n", {"http10": True, "keep_alive": False}),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", {"keep_alive": True}),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", {"length": 3}),
        (START + b"connection: a, Close\r\n\r\n", {"keep_alive": False}),
        (START + b"Content-Length:  7 \r\n\r\n", {"length": 7}),
        (START + b"Content-Length: 7\r\nContent-Length: 7\r\n\r\n", {"length": 7}),
        (START + b"Transfer-Encoding: CHUNKED\r\nContent-Length: 3\r\n\r\n", {"length": CHUNKED}),
        (START + b"Content-Length: 1\r\nExpect: 100-Continue\r\n\r\n", {"continues": True, "impossible": False}),
        (START + b"Expect: 100-continue\r\n\r\n", {"continues": False}),
        (START + b"Expect: miracles\r\n\r\n", {"impossible": True}),
        (START + b"x-vcap-REQUEST-id:  A-1 \r\n\r\n", {"request_id": "A-1"}),
        (START + b"X-Vcap-Request-Id: \xe9\xc3\xa9\r\n\r\n", {"request_id": "\udce9é"}),
        (b"GET /v1/\xe2\x82?\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", {"target": "/v1/\ufffd\ufffd?é"}),
        (START + b"X: tab\tand \xff\r\n\r\n", {"path": "/v1/ping"}),
    ],
)
def test_head(data: bytes, expected: dict[str, object]) -> None:
    head = head_of(data)
    assert {name: getattr(head, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"nonsense\r\n\r\n", "400 Bad Request"),
        (b"POST /\r\n\r\n", "400 Bad Request"),
        (b"PO ST / HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"P(ST / HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"POST / HTTP/1.10\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"POST / http/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"POST ping HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"POST /%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\n", "505 HTTP Version Not Supported: unsupported protocol version"),
        (b"POST / HTTP/7.7\r\nHost: x\r\n\r\n", "505 HTTP Version Not Supported: unsupported protocol version"),
        (b"POST / HTTP/1.1\r\n\r\n", "400 Bad Request: missing required Host header"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400 Bad Request: too many Host headers"),
        (b"POST / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400 Bad Request: malformed Host header"),
        (START + b"nothing\r\n\r\n", "400 Bad Request"),
        (START + b"a b: c\r\n\r\n", "400 Bad Request"),
        (START + b"a : c\r\n\r\n", "400 Bad Request"),
        (START + b"a: b\r\n folded\r\n\r\n", "400 Bad Request"),
        (START + b"a: b\0c\r\n\r\n", "400 Bad Request: invalid header value"),
        (START + b"a: b\rc\r\n\r\n", "400 Bad Request: invalid header value"),
        (START + b"Content-Length: -5\r\n\r\n", "400 Bad Request"),
        (START + b"Content-Length: +5\r\n\r\n", "400 Bad Request"),
        (START + b"Content-Length: \r\n\r\n", "400 Bad Request"),
        (START + b"Content-Length: 99999999999999999999999\r\n\r\n", "400 Bad Request"),
        (START + b"Content-Length: 9223372036854775808\r\n\r\n", "400 Bad Request"),
        (START + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", "400 Bad Request"),
        (START + b"Content-Length: 1000000000000000\r\n\r\n", "413 Request Entity Too Large"),
        (START + b"Transfer-Encoding: gzip, chunked\r\n\r\n", UNSUPPORTED),
        (START + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n", UNSUPPORTED),
        (START + b"A: " + b"a" * HEAD_LIMIT + b"\r\n\r\n", "431 Request Header Fields Too Large"),
        (START + b"A: " + b"a" * HEAD_LIMIT, "431 Request Header Fields Too Large"),
    ],
    ids=lambda value: value[-60:] if isinstance(value, bytes) else value,
)
def test_refused_head(data: bytes, refusal: str) -> None:
    with pytest.raises(Refusal) as refused:
        head_of(data)
    assert str(refused.value) == refusal


def chunked(pieces: list[bytes], end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + end


def collect(parts: list[bytes]) -> list[bytes]:
    """The bodies of the requests in the parts, fed one after the other."""
    inbox, head, bodies = Inbox(), None, []
    for part in parts:
        inbox.feed(part)
        while True:
            head = head or inbox.head()
            body = inbox.body(head) if head is not None else None
            if body is None:
                break
            bodies.append(body)
            head = None
    return bodies


requests = st.lists(st.tuples(st.lists(st.binary(max_size=40), max_size=4), st.booleans()), min_size=1, max_size=4)


@given(requests=requests, cuts=st.lists(st.integers(0, 600), max_size=12))
def test_bodies_do_not_depend_on_how_bytes_arrive(requests: list[tuple[list[bytes], bool]], cuts: list[int]) -> None:
    data = b""
    for pieces, in_chunks in requests:
        if in_chunks:
            data += START + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(pieces)
        else:
            body = b"".join(pieces)
            data += START + b"Content-Length: %d\r\n\r\n" % len(body) + body
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert collect(parts) == [b"".join(pieces) for pieces, _ in requests]
    assert collect([data[n : n + 1] for n in range(len(data))]) == collect([data])


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (START + b"\r\n", 200_000),
        (START + b"Content-Length: 1\r\n\r\nx", 150_000),
        (b"1\r\nx\r\n", 300_000),
    ],
    ids=["heads", "bodies", "chunks"],
)
def test_much_that_is_small_is_walked_once(data: bytes, count: int) -> None:
    """Far from the limit if each byte is touched once, far beyond it if each piece copies what follows."""
    began = time.process_time()
    if data.startswith(START):
        assert len(collect([data * count])) == count
    else:
        assert collect([START + b"Transfer-Encoding: chunked\r\n\r\n" + data * count + b"0\r\n\r\n"]) == [b"x" * count]
    assert time.process_time() - began < 5


def test_an_idle_connection_keeps_nothing() -> None:
    inbox = Inbox()
    inbox.feed(START + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)
    head = inbox.head()
    assert head is not None
    body = inbox.body(head)
    assert inbox.head() is None
    assert body == b"x" * 100_000
    assert max(map(sys.getsizeof, gc.get_referents(inbox))) < 1000


def test_trailers_are_dropped() -> None:
    data = START + b"Transfer-Encoding: chunked\r\n\r\n" + chunked([b"abc"], b"0\r\nA: b\r\nC: d\r\n\r\n")
    assert collect([data + START + b"\r\n"]) == [b"abc", b""]
    assert collect([data[:n] for n in ()] + [data[:-3], data[-3:]]) == [b"abc"]


@pytest.mark.parametrize(
    "chunk", [b"zz\r\nabc\r\n", b"\r\n", b"-1\r\n", b"3\r\nabcd\r\n", b"f" * 17 + b"\r\n", b"1" * 5000]
)
def test_broken_chunks(chunk: bytes) -> None:
    with pytest.raises(BrokenBody):
        collect([START + b"Transfer-Encoding: chunked\r\n\r\n" + chunk])


def test_a_chunk_may_not_exceed_the_limit() -> None:
    inbox = Inbox()
    inbox.feed(START + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n")
    head = inbox.head()
    assert head is not None
    piece = b"x" * (16 << 20)
    for _ in range(8):
        inbox.feed(piece)
        assert inbox.body(head) is None
    inbox.feed(piece)
    with pytest.raises(Refusal, match="413"):
        inbox.body(head)
