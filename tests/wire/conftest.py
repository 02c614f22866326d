"""A server with the real wire layer on loopback TLS, the peer behind it, and a client that can misbehave."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from bbs_protos import models_pb2 as models

from bbs_server.core.encoding import Answer
from bbs_server.core.errors import Error, Refused
from bbs_server.tls.contexts import server_context
from bbs_server.wire.observer import Silence
from bbs_server.wire.routes import ROUTES, Kind, Route
from bbs_server.wire.server import Server

TIMEOUT = 10.0
HANDLES = {route.handle: route for route in ROUTES if route.handle is not None}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    return {"uvloop": uvloop.new_event_loop}


@dataclass
class Peer:
    """The writer behind the wire: answers each route with what the test put there, else with nothing set."""

    answers: dict[str, Answer | Error | Exception] = field(default_factory=dict)
    received: list[tuple[str, Any, str]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, command: Any, request: Any, request_id: str = "") -> Answer:
        route = HANDLES[command]
        self.received.append((route.name, request, request_id))
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        assert route.response is not None
        answer = self.answers.get(route.name) or route.response()
        if isinstance(answer, Error):
            raise Refused(answer)
        if isinstance(answer, Exception):
            raise answer
        return answer

    read = write


@dataclass
class Cells:
    """The presences behind the wire."""

    cells: list[models.CellPresence] = field(default_factory=list)
    error: Error | None = None
    gate: asyncio.Event | None = None
    asked: bool = False

    async def all(self) -> list[models.CellPresence]:
        self.asked = True
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise Refused(self.error)
        return self.cells


class Subscription:
    """A subscription whose chunks the test puts in."""

    def __init__(self) -> None:
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def next(self) -> bytes | None:
        return await self.chunks.get()

    def close(self) -> None:
        self.closed.set()


class Hubs:
    """The hubs behind the wire: they remember who subscribed to what."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[Any, Subscription]] = []
        self.open = True

    def subscribe(self, hubs: Any, revision: Any, cell_id: str) -> Subscription:
        if not self.open:
            raise RuntimeError("the hub is closed")
        subscription = Subscription()
        self.subscriptions.append(((tuple(hubs), revision, cell_id), subscription))
        return subscription

    def close(self) -> None:
        self.open = False
        for _, subscription in self.subscriptions:
            subscription.chunks.put_nowait(None)


class Notes(Silence):
    """An observer that writes down what it is told."""

    watches = True

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.pings = 0

    def serving(self, call: Any) -> None:
        self.pings += call.route.kind is Kind.PING
        self.lines.append(("serving", call.route.name, call.target, call.client.certificate.get("subject") is not None))

    def done(self, call: Any, duration: int) -> None:
        self.lines.append(("done", call.route.name, duration > 0))

    def counted(self, route: Route) -> None:
        self.lines.append(("counted", route.name))

    def latency(self, route: Route, duration: int) -> None:
        self.lines.append(("latency", route.name, duration > 0))

    def failed(self, call: Any, action: str, error: Error, request: Any) -> None:
        self.lines.append(("failed", call.route.name, action))

    def broke(self, call: Any, problem: BaseException) -> None:
        self.lines.append(("broke", call.route.name, str(problem)))

    def handshake_failed(self, peer: str, reason: str) -> None:
        self.lines.append(("handshake", reason))


@dataclass
class Reply:
    """A response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """TLS and HTTP by hand over a TCP connection, so that it can half-close and send anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self.reader, self.writer = reader, writer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.data = b""

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext) -> Client:
        client = cls(*await asyncio.open_connection("127.0.0.1", port), context)
        while True:
            try:
                client.tls.do_handshake()
            except ssl.SSLWantReadError:
                client.flush()
                await client.fill()
            else:
                client.flush()
                return client

    def flush(self) -> None:
        self.writer.write(self.outgoing.read())

    async def fill(self) -> bool:
        data = await asyncio.wait_for(self.reader.read(1 << 16), TIMEOUT)
        self.incoming.write(data) if data else self.incoming.write_eof()
        return bool(data)

    def send(self, data: bytes) -> None:
        sent = 0
        while sent < len(data):
            sent += self.tls.write(data[sent:])
        self.flush()

    def request(self, path: str, body: bytes = b"", *headers: str, method: str = "POST") -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: bbs", f"Content-Length: {len(body)}", *headers, "", ""]
        self.send("\r\n".join(lines).encode() + body)

    def half_close(self) -> None:
        """Close the sending side: close_notify, then FIN."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.flush()
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.transport.abort()

    async def receive(self) -> bytes:
        """Some bytes; empty at the end of the connection."""
        while True:
            try:
                return self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                await self.fill()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.data:
            data = await self.receive()
            if not data:
                raise EOFError(self.data)
            self.data += data
        found, _, self.data = self.data.partition(mark)
        return found + mark

    async def exactly(self, size: int) -> bytes:
        pieces, have = [self.data], len(self.data)
        while have < size:
            data = await self.receive()
            if not data:
                raise EOFError
            pieces.append(data)
            have += len(data)
        joined = b"".join(pieces)
        self.data = joined[size:]
        return joined[:size]

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        pieces, self.data = [self.data], b""
        while data := await self.receive():
            pieces.append(data)
        return b"".join(pieces)

    async def head(self) -> Reply:
        first, *lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        assert len(headers) == len([line for line in lines if line])
        assert first.startswith(("HTTP/1.1 ", "HTTP/1.0 "))
        return Reply(int(first.split()[1]), headers, b"")

    async def reply(self, *, bodiless: bool = False) -> Reply:
        reply = await self.head()
        if "Content-Length" not in reply.headers:
            reply.body = await self.rest()
        elif not bodiless:
            reply.body = await self.exactly(int(reply.headers["Content-Length"]))
        return reply

    async def call(self, path: str, body: bytes = b"", *headers: str, method: str = "POST") -> Reply:
        self.request(path, body, *headers, method=method)
        return await self.reply(bodiless=method == "HEAD")

    async def ended(self) -> bool:
        """Whether the server ends the connection without another byte."""
        return await self.rest() == b""


@dataclass
class Bench:
    """A started server and all that is around it."""

    server: Server
    peer: Peer
    cells: Cells
    hubs: Hubs
    notes: Notes
    context: ssl.SSLContext
    clients: list[Client] = field(default_factory=list)
    serving: bool = True
    port: int = 0

    async def client(self, context: ssl.SSLContext | None = None) -> Client:
        client = await Client.connect(self.port, context or self.context)
        self.clients.append(client)
        return client

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the server does unseen by any client."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                await asyncio.sleep(0.005)


def client_context(certificates: Any, name: str | None = "client") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.ca)
    if name is not None:
        context.load_cert_chain(getattr(certificates, f"{name}_cert"), getattr(certificates, f"{name}_key"))
    return context


@pytest.fixture
async def bench(certificates: Any) -> AsyncIterator[Bench]:
    peer, cells, hubs, notes = Peer(), Cells(), Hubs(), Notes()
    context = server_context(certificates.server_cert, certificates.server_key, certificates.ca)
    ready: list[Callable[[], bool]] = []
    server = Server(context=context, writer=peer, presences=cells, hubs=hubs, ready=lambda: ready[0](), observer=notes)
    await server.start("127.0.0.1", 0)
    bench = Bench(server, peer, cells, hubs, notes, client_context(certificates), port=server.addresses[0][1])
    ready.append(lambda: bench.serving)
    yield bench
    for client in bench.clients:
        client.close()
    if peer.gate is not None:
        peer.gate.set()
    await asyncio.wait_for(server.stop(1.0), TIMEOUT)
    assert not [line for line in notes.lines if line[0] == "broke" and line[2] != "expected"]
