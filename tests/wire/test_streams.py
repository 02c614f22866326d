"""Event streams: their header, framing and ends."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.encoding import encode
from bbs_server.core.outcome import Hub
from bbs_server.wire.protocol import Connection
from bbs_server.wire.routes import ROUTES, Kind, Route

PING, LIST = (next(route for route in ROUTES if route.name == name) for name in ("Ping", "Tasks"))
STREAMS = [route for route in ROUTES if route.kind is Kind.STREAM]
FILTERED = [route for route in STREAMS if route.request is not None]
CHUNK = b"21;\r\nid: 0\nevent: task_created\ndata: AA==\n\n\r\n"
CELL = encode(models.EventsByCellId(cell_id="cell-1"))

streams = pytest.mark.parametrize("route", STREAMS, ids=lambda route: route.name)
filtered = pytest.mark.parametrize("route", FILTERED, ids=lambda route: route.name)


async def subscribe(bench: Any, route: Route, body: bytes = b"", *headers: str) -> tuple[Any, Any]:
    client = await bench.client()
    client.request(route.path, body, *headers, method=route.method)
    reply = await client.head()
    assert reply.status == 200
    return client, bench.hubs.subscriptions[-1]


@streams
async def test_header_and_chunks(bench: Any, route: Route) -> None:
    client = await bench.client()
    client.request(route.path, method=route.method)
    reply = await client.head()
    assert reply.headers.pop("Date")
    assert reply.headers == {
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Connection": "keep-alive",
        "Content-Type": "text/event-stream; charset=utf-8",
        "Transfer-Encoding": "chunked",
    }
    request, subscription = bench.hubs.subscriptions[0]
    assert request == (route.hubs, route.revision, "")
    subscription.chunks.put_nowait(CHUNK)
    subscription.chunks.put_nowait(CHUNK * 3)
    assert await client.exactly(4 * len(CHUNK)) == CHUNK * 4
    subscription.chunks.put_nowait(None)
    assert await client.rest() == b"0\r\n\r\n"
    assert subscription.closed.is_set()
    assert [line[0] for line in bench.notes.lines] == ["serving", "counted", "done"]


def test_which_hubs_a_stream_carries() -> None:
    assert {route.path.removesuffix(".r1"): route.hubs for route in STREAMS} == {
        "/v1/events": (Hub.DESIRED, Hub.GROUP),
        "/v1/events/lrp_instances": (Hub.DESIRED, Hub.INSTANCE),
        "/v1/events/tasks": (Hub.TASK,),
    }


@filtered
@pytest.mark.parametrize("chunked", [False, True])
async def test_filter(bench: Any, route: Route, chunked: bool) -> None:
    client = await bench.client()
    if chunked:
        head = f"{route.method} {route.path} HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(CELL), CELL))
    else:
        client.request(route.path, CELL, method=route.method)
    assert (await client.head()).status == 200
    assert bench.hubs.subscriptions[0][0][2] == "cell-1"


@filtered
@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x08\x01"])
async def test_garbage_is_500_and_the_connection_stays(bench: Any, route: Route, body: bytes) -> None:
    client = await bench.client()
    for _ in range(2):
        reply = await client.call(route.path, body, method=route.method)
        assert (reply.status, set(reply.headers), reply.body) == (500, {"Content-Length", "Date"}, b"")
    assert (await client.call("/v1/ping")).status == 200
    assert bench.hubs.subscriptions == []


async def test_task_streams_never_look_at_the_body(bench: Any) -> None:
    for route in STREAMS:
        if route.request is None:
            await subscribe(bench, route, b"\xff\xff\xff")
    assert [request[2] for request, _ in bench.hubs.subscriptions] == ["", ""]


@streams
async def test_after_the_hubs_are_closed(bench: Any, route: Route) -> None:
    bench.hubs.close()
    client = await bench.client()
    reply = await client.call(route.path, method=route.method)
    assert (reply.status, reply.body) == (500, b"")
    assert (await client.call("/v1/ping")).status == 200


@pytest.mark.parametrize(
    ("version", "header", "connection"),
    [("1.1", "Connection: close", b"Connection: close\r\n"), ("1.0", "A: b", b"")],
)
async def test_header_variants(bench: Any, version: str, header: str, connection: bytes) -> None:
    client = await bench.client()
    client.send(f"POST /v1/events/tasks HTTP/{version}\r\nHost: b\r\n{header}\r\n\r\n".encode())
    head = await client.until(b"\r\n\r\n")
    assert head.startswith(f"HTTP/{version} 200 OK\r\n".encode())
    assert connection in head
    assert (b"Transfer-Encoding" in head) == (version == "1.1")
    assert version == "1.1" or b"Connection" not in head
    bench.hubs.subscriptions[0][1].chunks.put_nowait(CHUNK)
    assert await client.until(b"\n\n\r\n") == CHUNK


@streams
async def test_a_half_closed_client_loses_its_stream(bench: Any, route: Route) -> None:
    client, (_, subscription) = await subscribe(bench, route)
    client.half_close()
    assert await client.rest() == b"0\r\n\r\n"
    assert subscription.closed.is_set()


def head_of(route: Route, length: int = 0) -> bytes:
    return f"{route.method} {route.path} HTTP/1.1\r\nHost: b\r\nContent-Length: {length}\r\n\r\n".encode()


@streams
@pytest.mark.parametrize("before", [b"", head_of(PING), head_of(LIST)], ids=["alone", "after a ping", "after a list"])
async def test_a_client_whose_end_comes_with_its_request(bench: Any, route: Route, before: bytes) -> None:
    client = await bench.client()
    client.tls.write(before + head_of(route))
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.flush()
    assert (await client.rest()).endswith(b"\r\n\r\n0\r\n\r\n")
    ((_, subscription),) = bench.hubs.subscriptions
    assert subscription.closed.is_set()
    assert bench.notes.lines[-1][0] == "done"


async def test_a_client_that_is_gone_ends_its_subscription(bench: Any) -> None:
    client, (_, subscription) = await subscribe(bench, STREAMS[0])
    client.close()
    await asyncio.wait_for(subscription.closed.wait(), 10)


async def test_a_client_that_ends_behind_a_stream_sent_ahead(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end has come already when the stream begins."""
    noticed = asyncio.Event()
    ended = Connection.ended

    def notice(connection: Connection) -> None:
        ended(connection)
        noticed.set()

    monkeypatch.setattr(Connection, "ended", notice)
    client = await bench.client()
    bench.peer.gate = asyncio.Event()
    client.request("/v1/tasks/cancel", b"\x0a\x01t")
    await asyncio.wait_for(bench.peer.arrived.wait(), 10)
    client.send(head_of(STREAMS[0]))
    client.half_close()
    await asyncio.wait_for(noticed.wait(), 10)
    bench.peer.gate.set()
    assert (await client.reply()).status == 200
    assert (await client.head()).status == 200
    assert await client.rest() == b"0\r\n\r\n"
    assert bench.hubs.subscriptions[0][1].closed.is_set()


async def test_a_client_that_ends_within_a_body_its_stream_does_not_read(bench: Any) -> None:
    client = await bench.client()
    client.send(head_of(STREAMS[4], 5))
    client.half_close()
    assert (await client.head()).status == 200
    assert await client.rest() == b"0\r\n\r\n"
    assert bench.hubs.subscriptions[0][1].closed.is_set()


async def test_a_connection_lost_before_the_first_step_of_its_stream(bench: Any) -> None:
    client = await bench.client()
    subscribe = bench.hubs.subscribe

    def lose(*wanted: Any) -> Any:
        next(iter(bench.server.connections)).abort()
        return subscribe(*wanted)

    bench.hubs.subscribe = lose
    client.send(head_of(STREAMS[0]))
    await bench.until(lambda: not bench.server.connections)
    await asyncio.wait_for(bench.hubs.subscriptions[0][1].closed.wait(), 10)
    assert [line[0] for line in bench.notes.lines] == ["serving", "counted", "done"]


async def test_a_server_that_stops_right_behind_a_request_for_a_stream(bench: Any) -> None:
    client = await bench.client()
    subscribe = bench.hubs.subscribe
    stopping: list[asyncio.Task[None]] = []

    def stop(*wanted: Any) -> Any:
        stopping.append(asyncio.ensure_future(bench.server.stop(30)))
        return subscribe(*wanted)

    bench.hubs.subscribe = stop
    client.send(head_of(STREAMS[0]))
    assert (await client.head()).status == 200
    assert await client.rest() == b"0\r\n\r\n"
    await asyncio.wait_for(stopping[0], 10)
    assert bench.hubs.subscriptions[0][1].closed.is_set()
    assert [line[0] for line in bench.notes.lines] == ["serving", "counted", "done"]


async def test_what_a_subscriber_sends_is_no_request(bench: Any) -> None:
    client, (_, subscription) = await subscribe(bench, STREAMS[0])
    client.request("/v1/ping")
    client.send(b"x" * 100_000)
    subscription.chunks.put_nowait(CHUNK)
    subscription.chunks.put_nowait(None)
    assert await client.rest() == CHUNK + b"0\r\n\r\n"


async def test_a_reader_that_is_stuck_holds_up_nobody(bench: Any) -> None:
    stuck, (_, full) = await subscribe(bench, STREAMS[4])
    reading, (_, other) = await subscribe(bench, STREAMS[4])
    for _ in range(64):
        full.chunks.put_nowait(b"x" * (1 << 20))
    other.chunks.put_nowait(CHUNK)
    assert await reading.exactly(len(CHUNK)) == CHUNK
    other.chunks.put_nowait(CHUNK)
    bench.hubs.close()
    began = asyncio.get_running_loop().time()
    await asyncio.wait_for(bench.server.stop(30), 25)
    assert asyncio.get_running_loop().time() - began < 20
    assert await reading.rest() == CHUNK + b"0\r\n\r\n"
    assert full.closed.is_set()
    assert not full.chunks.empty()
    stuck.close()


async def test_a_stream_whose_hub_stays_silent_ends_with_the_server(bench: Any) -> None:
    client, (_, subscription) = await subscribe(bench, STREAMS[0])
    await asyncio.wait_for(bench.server.stop(30), 10)
    assert await client.rest() == b"0\r\n\r\n"
    assert subscription.closed.is_set()
