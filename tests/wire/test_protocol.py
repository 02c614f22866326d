"""Each step of the request pipeline, over real mutual TLS."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.encoding import Elements, element, encode
from bbs_server.core.errors import INVALID_REQUEST, RESOURCE_NOT_FOUND, UNREADABLE_BODY, Error, ErrorType, unknown
from bbs_server.wire.answers import SLICE
from bbs_server.wire.routes import BY_PATH, ROUTES, Kind, Route

CALLS = [route for route in ROUTES if route.kind is not Kind.STREAM]
READING = [route for route in CALLS if route.request is not None]
GUID = encode(models.TaskGuidRequest(task_guid="t"))
START = b"POST /v1/tasks/cancel HTTP/1.1\r\nHost: bbs\r\n"


def named(routes: list[Route]) -> Any:
    return pytest.mark.parametrize("route", routes, ids=lambda route: route.name)


def error_in(body: bytes) -> Error:
    response = models.TaskLifecycleResponse.FromString(body)
    assert response.HasField("error")
    return Error(response.error.type, response.error.message)


# -- the table ---------------------------------------------------------------------------


def test_the_table_is_complete() -> None:
    assert len(BY_PATH) == len(ROUTES) == 50
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert {route.method for route in CALLS} == {"POST"}
    assert [route.path for route in ROUTES if route.method == "GET"] == ["/v1/events.r1", "/v1/events"]


@named(CALLS)
async def test_every_route_answers(bench: Any, route: Route) -> None:
    client = await bench.client()
    reply = await client.call(route.path)
    assert reply.status == 200
    assert set(reply.headers) == {"Content-Length", "Content-Type", "Date"}
    assert reply.headers["Content-Type"] == "application/x-protobuf"
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", reply.headers["Date"])
    assert route.response is not None
    route.response.FromString(reply.body)


@named(READING)
async def test_garbage_is_refused(bench: Any, route: Route) -> None:
    client = await bench.client()
    reply = await client.call(route.path, b"\xff\xff\xff\xff")
    assert route.response is not None
    response: Any = route.response.FromString(reply.body)
    assert (response.error.type, response.error.message) == (4, "the request received is invalid")
    keeps = route.name in ("EvacuateClaimedActualLRP", "EvacuateRunningActualLRP", "EvacuateRunningActualLRP_r0")
    assert getattr(response, "keep_container", False) == keeps
    assert bench.peer.received == []
    assert ("failed", route.name, "failed-to-parse-request-body") in bench.notes.lines


@named([route for route in CALLS if route.request is None])
async def test_routes_without_a_request_never_look_at_the_body(bench: Any, route: Route) -> None:
    client = await bench.client()
    reply = await client.call(route.path, b"\xff\xff\xff\xff")
    assert reply.status == 200
    assert reply.body == (b"\x08\x01" if route.kind is Kind.PING else b"")


# -- instead of routes -------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/ping/",
        "//v1/ping",
        "/v1//ping",
        "/V1/ping",
        "/v1/%70ing",
        "/v1/x/../ping",
        "/v1/tasks/list.r3/%2e%2e/%00",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
async def test_unknown_path(bench: Any, path: str, method: str) -> None:
    client = await bench.client()
    for _ in range(2):
        reply = await client.call(path, method=method)
        assert reply.status == 404
        assert reply.headers.pop("Date")
        assert reply.headers == {
            "Content-Length": "19",
            "Content-Type": "text/plain; charset=utf-8",
            "X-Content-Type-Options": "nosniff",
        }
        assert reply.body == (b"" if method == "HEAD" else b"404 page not found\n")
    assert bench.notes.lines == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "BREW", "post", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/ping", "/v1/tasks/list.r3", "/v1/events/tasks"])
async def test_wrong_method(bench: Any, method: str, path: str) -> None:
    client = await bench.client()
    reply = await client.call(path, method=method)
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert reply.headers["Content-Length"] == "19"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")
    assert (await client.call("/v1/events")).headers["Allow"] == "GET"


async def test_options_of_the_server(bench: Any) -> None:
    client = await bench.client()
    reply = await client.call("*", method="OPTIONS")
    assert (reply.status, reply.body) == (200, b"")


async def test_query_and_absolute_targets_are_fine(bench: Any) -> None:
    client = await bench.client()
    for target in ("/v1/ping?a=/b", "https://bbs:8889/v1/ping?x"):
        assert (await client.call(target)).body == b"\x08\x01"


@pytest.mark.parametrize("path", ["/v1/ping", "/nowhere", "/v1/events/tasks", "/v1/tasks/list.r3"])
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_everything_is_503_before_the_server_is_ready(bench: Any, path: str, method: str) -> None:
    bench.serving = False
    client = await bench.client()
    reply = await client.call(path, method=method)
    assert (reply.status, set(reply.headers), reply.body) == (503, {"Content-Length", "Date"}, b"")
    assert bench.notes.lines == []
    bench.serving = True
    assert (await client.call("/v1/ping")).status == 200


# -- answers -----------------------------------------------------------------------------


async def test_a_command_gets_the_request_and_its_id(bench: Any) -> None:
    client = await bench.client()
    bench.peer.answers["StartTask"] = models.StartTaskResponse(should_start=True)
    body = encode(models.StartTaskRequest(task_guid="t", cell_id="c"))
    reply = await client.call("/v1/tasks/start", body, "x-vcap-request-id: Abc-1", "Content-Type: text/html")
    assert reply.body == b"\x10\x01"
    assert bench.peer.received == [("StartTask", models.StartTaskRequest(task_guid="t", cell_id="c"), "Abc-1")]
    assert [line[:2] for line in bench.notes.lines] == [
        ("serving", "StartTask"),
        ("latency", "StartTask"),
        ("counted", "StartTask"),
        ("done", "StartTask"),
    ]


async def test_a_request_id_may_hold_any_bytes(bench: Any) -> None:
    client = await bench.client()
    client.send(START + b"X-Vcap-Request-Id: \xff\xc3\xa9\xfe\r\nContent-Length: 3\r\n\r\n" + GUID)
    assert (await client.reply()).body == b""
    assert bench.peer.received[0][2].encode(errors="surrogateescape") == b"\xff\xc3\xa9\xfe"


@pytest.mark.parametrize("error", [RESOURCE_NOT_FOUND, unknown("ERROR: é \ud800"), Error(29, "Unrecoverable Error: x")])
async def test_an_error_of_the_operation(bench: Any, error: Error) -> None:
    client = await bench.client()
    bench.peer.answers["CancelTask"] = error
    reply = await client.call("/v1/tasks/cancel", GUID)
    assert error_in(reply.body) == Error(error.type, error.message.replace("\ud800", "?"))
    assert (await client.call("/v1/ping")).status == 200


async def test_type_0_is_written_with_its_message_only(bench: Any) -> None:
    client = await bench.client()
    bench.peer.answers["CancelTask"] = unknown("x")
    assert (await client.call("/v1/tasks/cancel", GUID)).body == b"\x0a\x03\x12\x01x"


async def test_an_error_repeats_bytes_that_are_not_text(bench: Any) -> None:
    """As the reference does, which copies strings as they are (wire.md E10)."""
    client = await bench.client()
    bench.peer.answers["CancelTask"] = unknown("not c\udcff")
    assert (await client.call("/v1/tasks/cancel", GUID)).body == b"\x0a\x08\x12\x06not c\xff"


async def test_a_defect_is_an_error_not_an_end(bench: Any) -> None:
    client = await bench.client()
    bench.peer.answers["CancelTask"] = RuntimeError("expected")
    assert error_in((await client.call("/v1/tasks/cancel", GUID)).body) == unknown("expected")
    assert ("broke", "CancelTask", "expected") in bench.notes.lines
    bench.peer.answers["CancelTask"] = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert error_in((await client.call("/v1/tasks/cancel", GUID)).body) == INVALID_REQUEST


async def test_cells(bench: Any) -> None:
    client = await bench.client()
    bench.cells.cells = [models.CellPresence(cell_id="c")]
    reply = await client.call("/v1/cells/list.r1")
    assert models.CellsResponse.FromString(reply.body) == models.CellsResponse(cells=bench.cells.cells)
    bench.cells.error = unknown("rpc error: code = Unavailable")
    assert error_in((await client.call("/v1/cells/list.r1")).body) == bench.cells.error


async def test_elements(bench: Any) -> None:
    client = await bench.client()
    bench.peer.answers["Tasks"] = Elements([element(b"\x12\x01a"), element(b"\x12\x01b")])
    reply = await client.call("/v1/tasks/list.r3")
    assert reply.body == b"\x12\x03\x12\x01a\x12\x03\x12\x01b"


@pytest.mark.parametrize("sizes", [[SLICE], [SLICE + 1], [1300] * 10_000, [3 << 20, 1, 0, 5 << 20, 7]])
async def test_bulk(bench: Any, sizes: list[int]) -> None:
    pieces = [bytes([n & 255]) * size for n, size in enumerate(sizes)]
    bench.peer.answers["Tasks"] = Elements(pieces)
    client = await bench.client()
    for _ in range(2):
        reply = await client.call("/v1/tasks/list.r3")
        assert reply.headers["Content-Length"] == str(sum(sizes))
        assert reply.body == b"".join(pieces)


async def test_a_bulk_answer_to_somebody_who_leaves_is_given_up(bench: Any) -> None:
    bench.peer.answers["Tasks"] = Elements([b"x" * 65536] * 1000)
    client = await bench.client()
    client.request("/v1/tasks/list.r3")
    await client.head()
    client.close()
    other = await bench.client()
    assert (await other.call("/v1/ping")).status == 200
    await bench.until(lambda: len(bench.server.connections) == 1)


# -- bodies ------------------------------------------------------------------------------


async def test_chunked(bench: Any) -> None:
    client = await bench.client()
    client.send(START + b"Transfer-Encoding: chunked\r\n\r\n")
    client.send(b"1\r\n" + GUID[:1] + b"\r\n2;x\r\n" + GUID[1:] + b"\r\n0\r\nTrailer: x\r\n\r\n")
    assert (await client.reply()).body == b""
    assert bench.peer.received == [("CancelTask", models.TaskGuidRequest(task_guid="t"), "")]


async def test_big_bodies(bench: Any) -> None:
    client = await bench.client()
    guid = "g" * (9 << 20)
    reply = await client.call("/v1/tasks/cancel", encode(models.TaskGuidRequest(task_guid=guid)))
    assert (reply.status, reply.body) == (200, b"")
    assert bench.peer.received[0][1].task_guid == guid


@pytest.mark.parametrize("chunk", [b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabcde\r\n0\r\n\r\n"])
async def test_a_broken_body_is_answered_by_the_route(bench: Any, chunk: bytes) -> None:
    client = await bench.client()
    client.send(START + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
    reply = await client.reply()
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    assert error_in(reply.body) == UNREADABLE_BODY
    assert ("failed", "CancelTask", "failed-to-read-body") in bench.notes.lines
    assert await client.ended()


async def test_a_broken_body_does_not_disturb_ping(bench: Any) -> None:
    client = await bench.client()
    client.send(b"POST /v1/ping HTTP/1.1\r\nHost: bbs\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    reply = await client.reply()
    assert (reply.status, reply.body) == (200, b"\x08\x01")


async def test_a_body_that_is_cut_off(bench: Any) -> None:
    client = await bench.client()
    client.send(START + b"Content-Length: 100\r\n\r\nabc")
    client.half_close()
    assert error_in((await client.reply()).body) == UNREADABLE_BODY
    assert await client.ended()


async def test_a_head_that_is_cut_off(bench: Any) -> None:
    client = await bench.client()
    client.send(START)
    client.half_close()
    assert await client.ended()


async def test_a_half_closed_client_gets_its_answers(bench: Any) -> None:
    client = await bench.client()
    for _ in range(3):
        client.request("/v1/tasks/cancel", GUID)
    client.half_close()
    for _ in range(3):
        assert (await client.reply()).status == 200
    assert await client.ended()


async def test_the_client_is_told_to_continue_only_if_the_body_is_wanted(bench: Any) -> None:
    client = await bench.client()
    client.send(START + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(GUID)
    assert (await client.reply()).body == b""
    client.send(b"POST /v1/ping HTTP/1.1\r\nHost: bbs\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.headers["Connection"], reply.body) == (200, "close", b"\x08\x01")


@pytest.mark.parametrize("path", ["/v1/cells/list.r1", "/v1/domains/list"])
@pytest.mark.parametrize("header", ["Content-Length: 3\r\nExpect: 100-continue", "Content-Length: 10000000"])
async def test_a_body_nobody_reads_is_not_waited_for_while_the_request_runs(bench: Any, path: str, header: str) -> None:
    client = await bench.client()
    client.send(f"POST {path} HTTP/1.1\r\nHost: bbs\r\n{header}\r\n\r\n".encode())
    reply = await client.reply()
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    client.request("/v1/ping")
    assert await client.ended()


async def test_what_nobody_reads_is_dropped_up_to_the_end(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left in the socket, it would hide the client's end and destroy the answer on its way."""
    monkeypatch.setattr("bbs_server.wire.channel._LINGER", 600)
    client = await bench.client()
    bench.cells.gate = asyncio.Event()
    client.request("/v1/cells/list.r1", b"x" * (4 << 20))
    await bench.until(lambda: bench.cells.asked)
    bench.cells.gate.set()
    assert (await client.reply()).status == 200
    client.close()
    await bench.until(lambda: not bench.server.connections)


async def test_other_expectations_fail(bench: Any) -> None:
    client = await bench.client()
    client.request("/v1/ping", b"", "Expect: the-inquisition")
    assert (await client.reply()).status == 417
    assert await client.ended()


@pytest.mark.parametrize("path", ["/v1/ping", "/nowhere"])
async def test_a_huge_body_nobody_reads_is_not_waited_for(bench: Any, path: str) -> None:
    client = await bench.client()
    client.send(b"POST %b HTTP/1.1\r\nHost: bbs\r\nContent-Length: 10000000\r\n\r\n" % path.encode())
    reply = await client.reply()
    assert (reply.status, reply.headers["Connection"]) == (200 if path == "/v1/ping" else 404, "close")


# -- framing of the exchange ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v1/ping HTTP/1.1\r\n\r\n", b"400 Bad Request: missing required Host header"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (START + b"Content-Length: -5\r\n\r\n", b"400 Bad Request"),
        (START + b"Content-Length: 1000000000000000\r\n\r\n", b"413 Request Entity Too Large"),
        (START + b"A: " + b"a" * 1_500_000 + b"\r\n\r\n", b"431 Request Header Fields Too Large"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505 HTTP Version Not Supported: unsupported protocol version"),
    ],
)
async def test_bad_framing(bench: Any, data: bytes, status: bytes) -> None:
    client = await bench.client()
    client.send(data)
    answer = await client.rest()
    head = b"\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    assert answer == b"HTTP/1.1 " + status + head + status
    assert bench.notes.lines == []


async def test_pipelining(bench: Any) -> None:
    client = await bench.client()
    bench.peer.gate = asyncio.Event()
    bench.peer.answers["StartTask"] = models.StartTaskResponse(should_start=True)
    start = b"POST /v1/tasks/start HTTP/1.1\r\nHost: b\r\nContent-Length: 6\r\n\r\n\x0a\x01t\x12\x01c"
    ping = b"POST /v1/ping HTTP/1.1\r\nHost: b\r\n\r\n"
    client.send(ping + start + ping + b"POST /x HTTP/1.1\r\nHost: b\r\n\r\n" + start)
    await asyncio.wait_for(bench.peer.arrived.wait(), 10)
    assert (await client.reply()).body == b"\x08\x01"
    bench.peer.gate.set()
    bodies = [(await client.reply()).body for _ in range(4)]
    assert bodies == [b"\x10\x01", b"\x08\x01", b"404 page not found\n", b"\x10\x01"]


async def test_what_is_sent_ahead_is_not_read_without_bound(bench: Any) -> None:
    client = await bench.client()
    bench.peer.gate = asyncio.Event()
    client.request("/v1/tasks/cancel", GUID)
    await asyncio.wait_for(bench.peer.arrived.wait(), 10)
    ping = b"POST /v1/ping HTTP/1.1\r\nHost: b\r\n\r\n"
    count = 40_000
    client.send(ping * count)
    bench.peer.gate.set()
    assert (await client.reply()).body == b""
    for _ in range(count):
        assert (await client.reply()).body == b"\x08\x01"


async def unread(bench: Any, count: int) -> Any:
    """A client that has sent pings and reads no answer, once no more of them are answered."""
    client, other = await bench.client(), await bench.client()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.send(b"POST /v1/ping HTTP/1.1\r\nHost: b\r\n\r\n" * count)
    before = -1
    while before != (now := bench.notes.pings):
        before = now
        for _ in range(50):
            await other.call("/v1/ping")
        bench.notes.pings -= 50
    return client


async def test_no_more_is_answered_than_the_client_reads(bench: Any) -> None:
    count = 150_000
    client = await unread(bench, count)
    assert bench.notes.pings < count
    for _ in range(count):
        assert (await client.reply()).body == b"\x08\x01"
    assert bench.notes.pings == count
    assert (await client.call("/v1/ping")).status == 200


async def test_who_leaves_without_reading_leaves_nothing(bench: Any) -> None:
    client = await unread(bench, 150_000)
    client.close()
    await bench.until(lambda: len(bench.server.connections) == 1)


async def test_who_does_not_read_does_not_hold_up_the_end(bench: Any) -> None:
    await unread(bench, 150_000)
    await asyncio.wait_for(bench.server.stop(0.1), 20)
    await bench.until(lambda: not bench.server.connections)


async def test_a_last_answer_may_be_read_at_leisure(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the server still holds a part of it when it closes the connection."""
    monkeypatch.setattr("bbs_server.wire.channel._LINGER", 0)
    bench.server._listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    bench.peer.answers["Tasks"] = Elements([b"x" * 1024] * 200)
    client, other = await bench.client(), await bench.client()
    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    client.writer.transport.pause_reading()
    client.request("/v1/tasks/list.r3", b"", "Connection: close")
    await bench.until(lambda: ("done", "Tasks", True) in bench.notes.lines)
    assert (await other.call("/v1/ping")).status == 200
    client.writer.transport.resume_reading()
    assert len((await client.reply()).body) == 200 << 10
    assert await client.ended()


@pytest.mark.parametrize(
    ("version", "header", "keeps", "says"),
    [
        ("1.1", "A: b", True, None),
        ("1.1", "Connection: close", False, "close"),
        ("1.0", "A: b", False, None),
        ("1.0", "Connection: keep-alive", True, "keep-alive"),
        ("1.7", "A: b", True, None),
    ],
)
@pytest.mark.parametrize("path", ["/v1/ping", "/v1/tasks/cancel", "/nowhere"])
async def test_persistence(bench: Any, version: str, header: str, keeps: bool, says: str | None, path: str) -> None:
    client = await bench.client()
    data = f"POST {path} HTTP/{version}\r\nHost: b\r\n{header}\r\n\r\n".encode()
    for _ in range(2 if keeps else 1):
        client.send(data)
        head = await client.until(b"\r\n")
        client.data = head + client.data
        reply = await client.reply()
        assert head.startswith(b"HTTP/1.0" if version == "1.0" else b"HTTP/1.1")
        assert reply.headers.get("Connection") == says
    if not keeps:
        assert await client.ended()


# -- the end -----------------------------------------------------------------------------


async def test_requests_in_flight_finish_and_the_rest_is_closed(bench: Any) -> None:
    idle, busy, uploading = [await bench.client() for _ in range(3)]
    assert (await idle.call("/v1/ping")).status == 200
    bench.peer.gate = asyncio.Event()
    busy.request("/v1/tasks/cancel", GUID)
    uploading.send(START + b"Content-Length: 100\r\n\r\nabc")
    await asyncio.wait_for(bench.peer.arrived.wait(), 10)
    await bench.until(lambda: sum(c.uploading for c in bench.server.connections) == 1)
    stopping = asyncio.create_task(bench.server.stop(30))
    assert await idle.ended()
    with pytest.raises(OSError, match=r".*"):
        await bench.client()
    bench.peer.gate.set()
    reply = await busy.reply()
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    assert await busy.ended()
    await asyncio.wait_for(stopping, 10)
    assert bench.server.connections == set()


async def test_the_drain_is_limited(bench: Any) -> None:
    client = await bench.client()
    bench.peer.gate = asyncio.Event()
    client.request("/v1/tasks/cancel", GUID)
    await asyncio.wait_for(bench.peer.arrived.wait(), 10)
    await asyncio.wait_for(bench.server.stop(0.1), 20)
    assert bench.peer.received[0][0] == "CancelTask"
    await bench.until(lambda: not bench.server.connections)


def test_error_numbers_are_those_of_the_wire() -> None:
    assert {e.value for e in ErrorType} <= set(models.Error.Type.values())
