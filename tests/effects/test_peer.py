"""Requests over kept connections: a closed one does no harm, and nothing is delivered twice."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from bbs_server.effects.peer import NoAnswer, Peer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

Answer = Callable[[int], bytes | None]
"""What the n-th request is answered with, counted from 0; None closes the connection instead."""


class Server:
    """Counts the requests it has read to their end. `close_after`: each connection ends after its first answer."""

    def __init__(self, answer: Answer, close_after: bool = False) -> None:
        self.url = ""
        self.received = 0
        self._answer = answer
        self._close_after = close_after
        self._streams: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        self._streams.append(stream)
        try:
            while True:
                await reader.readuntil(b"{}")
                answer = self._answer(self.received)
                self.received += 1
                if answer is None:
                    return
                stream.write(answer)
                await stream.drain()
                if self._close_after:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            stream.close()

    def shut(self) -> None:
        """End the connections in the system, of which no loop knows yet."""
        for stream in self._streams:
            stream.get_extra_info("socket")._sock.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def serving(
    answer: Answer = lambda number: OK, close_after: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    double = Server(answer, close_after)
    listener = await asyncio.start_server(double.serve, "127.0.0.1", 0, ssl=tls)
    double.url = f"http{'s' if tls else ''}://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    async with listener:
        yield double


@pytest.fixture
async def peer(our_tls) -> AsyncIterator[Peer]:
    peer = Peer(our_tls, 5)
    yield peer
    await peer.close()


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_closed_while_it_was_idle_does_not_spoil_a_request(
    peer: Peer, server_tls, method: str, tls: bool
) -> None:
    async with serving(tls=server_tls if tls else None) as double:
        assert await peer.send(method, double.url, {}, b"{}") == 200
        double.shut()
        assert await peer.send(method, double.url, {}, b"{}") == 200
        assert double.received == 2


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_server_that_closes_after_each_answer(peer: Peer, method: str) -> None:
    async with serving(close_after=True) as double:
        assert [await peer.send(method, double.url, {}, b"{}") for _ in range(20)] == [200] * 20
        assert double.received == 20


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("before", [0, 1])
async def test_a_request_that_was_read_is_not_sent_again(peer: Peer, method: str, before: int) -> None:
    """Be the connection a kept one or not."""
    async with serving(lambda number: OK if number < before else None) as double:
        for _ in range(before):
            assert await peer.send(method, double.url, {}, b"{}") == 200
        with pytest.raises(NoAnswer, match=r"EOF$") as failure:
            await peer.send(method, double.url, {}, b"{}")
        assert double.received == before + 1
        assert not failure.value.timed_out


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 0\r\n\r\nmore",
        b"Content-Length: 0\r\n\r\n\r\n\r\nmore\n\nand more",
        b"Transfer-Encoding: chunked\r\n\r\n2;\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n{}",
        b"Transfer-Encoding: chunked\n\n{}",
    ],
)
@pytest.mark.parametrize("status", [204, 404])
async def test_what_comes_behind_the_header_does_not_matter(peer: Peer, status: int, rest: bytes) -> None:
    """Even if it cannot be made out and comes together with the header."""
    async with serving(lambda number: b"HTTP/1.1 %d Some\r\n" % status + rest) as double:
        assert [await peer.send("POST", double.url, {}, b"{}") for _ in range(3)] == [status] * 3
        assert double.received == 3


@pytest.mark.parametrize("cut", range(-8, 0))
async def test_a_header_in_two_pieces(peer: Peer, cut: int) -> None:
    whole = b"HTTP/1.1 404 Some\r\nTransfer-Encoding: chunked\r\n\r\nmore"

    async def serve(reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        stream.write(whole[:cut])
        await asyncio.sleep(0.05)
        stream.write(whole[cut:])

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        assert await peer.send("POST", url, {}, b"{}") == 404


def test_on_the_loop_of_the_server() -> None:
    async def exchange() -> None:
        peer = Peer(None, 5)
        async with serving(close_after=True) as double:
            assert [await peer.send("POST", double.url, {}, b"{}") for _ in range(20)] == [200] * 20
            assert double.received == 20
        await peer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(exchange())
