"""Whatever is sent to whatever route: the answer is well formed, and the server lives."""

from __future__ import annotations

import asyncio
import random
import ssl
from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from google.protobuf.descriptor import FieldDescriptor

from bbs_server.wire.routes import ROUTES, Kind, Route

READING = [route for route in ROUTES if route.request is not None]


def grow(kind: Any, chance: random.Random, depth: int = 0) -> Any:
    """A message of the kind with some of its fields set."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if depth > 4 or chance.random() < 0.4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        child = getattr(models, field.message_type.name, None) if field.message_type is not None else None
        target = getattr(message, field.name)
        if child is not None and field.is_repeated:
            target.append(grow(child, chance, depth + 1))
        elif child is not None:
            target.CopyFrom(grow(child, chance, depth + 1))
        elif field.is_repeated:
            target.append("x" if field.type == FieldDescriptor.TYPE_STRING else 1)
        elif field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, chance.choice(["", "x", "é", "nul\0", "a" * 300]))
        elif field.type == FieldDescriptor.TYPE_BOOL:
            setattr(message, field.name, True)
        elif field.type != FieldDescriptor.TYPE_BYTES:
            setattr(message, field.name, chance.choice([0, 1, 2]))
    return message


def damaged(kind: Any, chance: random.Random) -> bytes:
    body = bytearray(grow(kind, chance).SerializeToString())
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(body) + 1)
        match chance.randrange(5):
            case 0:
                del body[at:]
            case 1:
                body[at:at] = chance.choice([b"\xff" * 11, b"\0", b"\xc3\x28", b"\x0b\x0c", chance.randbytes(5)])
            case 2:
                body[at:] = body[at:] * 3
            case 3 if body:
                body[at % len(body)] ^= 1 << chance.randrange(8)
            case _:
                body += b"\x0b" * 200 + b"\x0c" * 199
    return bytes(body)


@pytest.mark.parametrize("route", READING, ids=lambda route: route.name)
async def test_damaged_bodies(bench: Any, route: Route) -> None:
    chance = random.Random(route.name)
    client = await bench.client()
    for _ in range(40):
        body = damaged(route.request, chance)
        client.request(route.path, body, method=route.method)
        if route.kind is Kind.STREAM:
            reply = await client.head()
            assert reply.status in (200, 500)
            if reply.status == 200:
                client.close()
                client = await bench.client()
            continue
        reply = await client.reply()
        assert reply.status == 200
        assert route.response is not None
        response: Any = route.response.FromString(reply.body)
        assert not response.HasField("error") or response.error.message


def framings(chance: random.Random) -> dict[str, tuple[bytes, int]]:
    """Bad framing, and how many answers are due to it: none where more would have to come."""
    start, end = b"POST /v1/tasks/list.r3 HTTP/1.1\r\nHost: bbs\r\n", b"\r\n\r\n"
    chunked = start + b"Transfer-Encoding: chunked" + end
    return {
        "cut body": (start + b"Content-Length: 105" + end + b"abc", 0),
        "cut head": (start + b"Content-Le", 0),
        "cut chunk": (chunked + b"ff\r\nabc", 0),
        "huge length": (start + b"Content-Length: 1000000000000000" + end, 1),
        "negative length": (start + b"Content-Length: -5" + end, 1),
        "two lengths": (start + b"Content-Length: 1\r\nContent-Length: 2" + end + b"abc", 1),
        "length and chunks": (start + b"Content-Length: 3\r\nTransfer-Encoding: chunked" + end + b"0" + end, 1),
        "bad chunk": (chunked + b"zz\r\nabc\r\n0" + end, 1),
        "odd coding": (start + b"Transfer-Encoding: gzip, chunked" + end + b"0" + end, 1),
        "no colon": (start + b"nothing" + end, 1),
        "control character": (start + b"A: b\0c" + end, 1),
        "long header": (start + b"A: " + b"a" * 1_500_000 + end, 1),
        "many headers": (start + b"\r\n".join(b"A%d: x" % n for n in range(5000)) + end, 1),
        "no request": (chance.randbytes(40).replace(b"\n", b"") + end, 1),
        "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1),
        "odd version": (start.replace(b"1.1", b"7.7") + end, 1),
        "odd method": (start.replace(b"POST", b"DELETE") + end, 1),
        "pipelined": (b"POST /v1/ping HTTP/1.1\r\nHost: b\r\n\r\n" * 5, 5),
    }


@pytest.mark.parametrize("name", framings(random.Random(0)))
async def test_bad_framing_is_answered(bench: Any, name: str) -> None:
    chance = random.Random(name)
    data, due = framings(chance)[name]
    for cut in (len(data), *(chance.randrange(len(data)) for _ in range(4))):
        client = await bench.client()
        client.send(data[:cut])
        await asyncio.sleep(0)
        client.send(data[cut:])
        for _ in range(due):
            reply = await client.reply()
            assert reply.status < 500 or reply.status in (501, 505)
        client.close()
    other = await bench.client()
    assert (await other.call("/v1/ping")).status == 200


async def test_requests_whose_senders_leave_are_carried_out(bench: Any) -> None:
    for count in range(1, 11):
        client = await bench.client()
        client.request("/v1/tasks/cancel", b"\x0a\x01t")
        async with asyncio.timeout(10):
            while len(bench.peer.received) < count:
                await asyncio.sleep(0.001)
        client.close()
    assert len(bench.peer.received) == 10


async def test_a_request_sent_a_byte_at_a_time(bench: Any) -> None:
    client = await bench.client()
    for byte in b"POST /v1/tasks/cancel HTTP/1.1\r\nHost: bbs\r\nContent-Length: 3\r\n\r\n\x0a\x01t":
        client.send(bytes([byte]))
        await client.writer.drain()
    assert (await client.reply()).status == 200
    assert bench.peer.received[0][1] == models.TaskGuidRequest(task_guid="t")


async def test_random_bytes_inside_tls(bench: Any) -> None:
    chance = random.Random(7)
    for _ in range(60):
        client = await bench.client()
        client.send(chance.randbytes(chance.choice((1, 10, 100, 5000))) + b"\r\n\r\n")
        try:
            answer = await client.rest()
        except ssl.SSLError:
            continue
        assert answer.startswith(b"HTTP/1.1 4") or answer.startswith(b"HTTP/1.1 505")
