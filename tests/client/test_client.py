"""The client package: retries, time-outs, errors, and streams over a real restart of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.client import Client, ClientError, Failed, NoAnswer, NotActive, StreamEnded, Target, Unreachable
from bbs_server.dev import definitions
from bbs_server.dev.ports import free_port

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PATIENCE = 60


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[Client, list[bytes]]]:
    """A client of a server that answers each request as told, and the paths it was asked for."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split()[1])
        await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(Target(f"http://127.0.0.1:{port}", timeout=0.3)) as client:
        yield client, asked


async def nothing(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    """Close without an answer."""


async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Answer never; wait until the client goes away."""
    await reader.read()


def status(line: str, body: bytes = b"") -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {line}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return answer


@pytest.mark.parametrize("answer", [nothing, silence, status("200 OK", b"\xff\xff")])
async def test_a_lost_answer_is_asked_for_again_only_by_reads(answer: Answer) -> None:
    async with serving(answer) as (client, asked):
        with pytest.raises(NoAnswer):
            await client.domains()
        assert len(asked) == 3
        with pytest.raises(NoAnswer):
            await client.upsert_domain("d", 0)
        assert len(asked) == 4


async def test_a_server_that_is_still_starting_is_asked_three_times() -> None:
    async with serving(status("503 Service Unavailable")) as (client, asked):
        with pytest.raises(NotActive, match="still starting"):
            await client.upsert_domain("d", 0)
        assert len(asked) == 3
        with pytest.raises(NotActive):
            await anext(client.subscribe("/v1/events/tasks.r1"))


async def test_another_status_is_an_error_at_once() -> None:
    async with serving(status("404 Not Found", b"nothing here")) as (client, asked):
        with pytest.raises(ClientError, match="answered HTTP 404: nothing here"):
            await client.cells()
        assert len(asked) == 1


async def test_nobody_there_is_found_out_within_seconds() -> None:
    begin = time.monotonic()
    async with Client(Target(f"http://127.0.0.1:{free_port()}")) as client:
        with pytest.raises(Unreachable, match="no BBS answers"):
            await client.ping()
    assert time.monotonic() - begin < 5


async def test_a_refusal_has_its_type_and_text(stack: Any) -> None:
    async with Client(stack.target()) as client:
        with pytest.raises(Failed, match="could not be found") as problem:
            await client.task("nobody")
    assert problem.value.type_name == "RESOURCE_NOT_FOUND"


def test_a_refusal_with_bytes_that_are_not_text_is_readable() -> None:
    assert str(Failed(4, b"not c\xff")) == Failed(4, b"not c\xff").message == "not c\ufffd"


async def test_a_stream_tells_the_life_of_a_task(stack: Any) -> None:
    async with Client(stack.target()) as client, asyncio.timeout(PATIENCE):
        stream = client.subscribe("/v1/events/tasks.r1")
        assert await anext(stream) is None
        await client.desire_task("life", definitions.DOMAIN, definitions.task("true"))
        events = [await anext(stream) for _ in range(3)]
        assert [event.name for event in events if event] == ["task_created", "task_changed", "task_changed"]
        assert [event.id for event in events if event] == [0, 1, 2]
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_ends_and_a_followed_one_goes_on_over_a_restart(stack: Any) -> None:
    async with Client(stack.target()) as client, asyncio.timeout(PATIENCE):
        stream, followed = client.subscribe("/v1/events/tasks.r1"), client.follow("/v1/events/tasks.r1")
        assert await anext(stream) is None
        assert await anext(followed) is None
        await asyncio.to_thread(stack.run, "kill", "--term", "bbs")
        with pytest.raises(StreamEnded):
            await anext(stream)
        again = asyncio.create_task(anext(followed))  # type: ignore[arg-type]
        with pytest.raises(Unreachable):
            await client.domains()
        await asyncio.to_thread(stack.run, "start", "bbs")
        assert await again is None
        await client.desire_task("after", definitions.DOMAIN, definitions.task("true"))
        event = await anext(followed)
        assert event is not None
        assert event.name == "task_created"


async def test_reading_can_stop_at_any_point(stack: Any) -> None:
    """Leaving the loop leaves nothing behind that complains later: warnings are errors here."""
    async with Client(stack.target()) as client, asyncio.timeout(PATIENCE):
        async for event in client.follow("/v1/events/lrp_instances.r1"):
            assert event is None
            break
        waiting = asyncio.create_task(anext(client.task_events()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await client.ping()
        assert isinstance(await client.cells(), list)
        assert all(isinstance(cell, models.CellPresence) for cell in await client.cells())
