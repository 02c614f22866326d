"""Real peers on loopback for the effects: HTTP servers, a Locket with mutual TLS, and a small writer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from bbs_protos import locket_pb2 as pb
from bbs_protos import locket_pb2_grpc as rpc

from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import Answer
from bbs_server.core.errors import Error, Refused
from bbs_server.core.outcome import Command, Event, Outcome
from bbs_server.core.state import State
from bbs_server.effects.locket import Locket, LocketSettings
from bbs_server.store.guids import random_guid
from bbs_server.tls.contexts import client_context


@dataclass(frozen=True, slots=True)
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Receiver:
    """An HTTP server that records requests and answers them with queued statuses, or the default one.

    A queued `None` closes the connection without an answer. While `held` is set, answers wait.
    """

    default: int
    url: str = ""
    received: list[Received] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    held: asyncio.Event | None = None
    peers: list[Any] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(request.method, request.raw_path, dict(request.headers), await request.read())
        status = self.statuses.pop(0) if self.statuses else self.default
        assert request.transport is not None
        self.peers.append(request.transport.get_extra_info("peercert"))
        async with self._changed:
            self.received.append(received)
            self._changed.notify_all()
        if self.held is not None:
            await self.held.wait()
        if status is None:
            request.transport.close()
        return web.Response(status=status or 200, headers=self.headers if status else None)

    async def wait_for(self, count: int) -> list[Received]:
        """The requests, once there are `count` of them."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: len(self.received) >= count)
        return self.received


StartReceiver = Callable[..., Awaitable[Receiver]]


@pytest.fixture
async def receiver(server_tls: ssl.SSLContext) -> AsyncIterator[StartReceiver]:
    """Starts receivers: `await receiver(202, tls=True)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(default: int = 202, tls: bool | ssl.SSLContext = False) -> Receiver:
            double = Receiver(default)
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", double.handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            context = server_tls if tls is True else tls or None
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            double.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
            return double

        yield start


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Nobody listens on it, and as long as it is held nobody else can."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def server_tls(certificates: Any) -> ssl.SSLContext:
    """Mutual TLS of a peer."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    return context


@pytest.fixture
def our_tls(certificates: Any) -> ssl.SSLContext:
    return client_context(str(certificates.ca), str(certificates.client_cert), str(certificates.client_key))


class LocketDouble(rpc.LocketServicer):
    """The four calls in memory. `refusal` makes Lock fail with a status, `hangs` makes it never answer."""

    def __init__(self) -> None:
        self.resources: dict[str, pb.Resource] = {}
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.hangs = False
        self.locks: list[tuple[pb.LockRequest, dict[str, Any]]] = []
        self.address = ""
        self.server: Any = None

    async def Lock(self, request: pb.LockRequest, context: Any) -> pb.LockResponse:  # noqa: N802
        self.locks.append((request, dict(context.invocation_metadata())))
        if self.hangs:
            await asyncio.Event().wait()
        if self.refusal is not None:
            await context.abort(*self.refusal)
        await self._check_owner(request.resource, context)
        self.resources[request.resource.key] = request.resource
        return pb.LockResponse()

    async def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:  # noqa: N802
        await self._check_owner(request.resource, context)
        self.resources.pop(request.resource.key, None)
        return pb.ReleaseResponse()

    async def Fetch(self, request: pb.FetchRequest, context: Any) -> pb.FetchResponse:  # noqa: N802
        if request.key not in self.resources:
            await context.abort(grpc.StatusCode.NOT_FOUND, "resource-not-found")
        return pb.FetchResponse(resource=self.resources[request.key])

    async def FetchAll(self, request: pb.FetchAllRequest, context: Any) -> pb.FetchAllResponse:  # noqa: N802
        found = [r for r in self.resources.values() if r.type_code == request.type_code]
        return pb.FetchAllResponse(resources=found)

    async def _check_owner(self, resource: pb.Resource, context: Any) -> None:
        present = self.resources.get(resource.key)
        if present is not None and present.owner != resource.owner:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "lock-collision")

    def put_presence(self, key: str, value: str) -> None:
        self.resources[key] = pb.Resource(key=key, owner=f"of-{key}", value=value, type_code=pb.PRESENCE)

    def put_lock(self, owner: str) -> None:
        self.resources["bbs"] = pb.Resource(key="bbs", owner=owner, type_code=pb.LOCK)

    async def stop(self) -> None:
        await self.server.stop(None)


@pytest.fixture
async def locket_double(certificates: Any) -> AsyncIterator[LocketDouble]:
    double = LocketDouble()
    double.server = grpc.aio.server()
    rpc.add_LocketServicer_to_server(double, double.server)
    pair = (certificates.server_key.read_bytes(), certificates.server_cert.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], certificates.ca.read_bytes(), require_client_auth=True)
    double.address = f"127.0.0.1:{double.server.add_secure_port('127.0.0.1:0', credentials)}"
    await double.server.start()
    yield double
    await double.stop()


ConnectLocket = Callable[..., Locket]


@pytest.fixture
async def connect_locket(certificates: Any) -> AsyncIterator[ConnectLocket]:
    """Makes Locket clients: `connect_locket(address)`, with a stranger's certificate if asked."""
    clients: list[Locket] = []

    def connect(address: str, cert: Path | None = None, key: Path | None = None) -> Locket:
        settings = LocketSettings(
            address,
            str(certificates.ca),
            str(cert or certificates.client_cert),
            str(key or certificates.client_key),
        )
        clients.append(Locket(settings))
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


class MemoryWriter:
    """Runs commands on a core State and dispatches at once: what the store does, without a database."""

    def __init__(self) -> None:
        self.state = State()
        self.events: list[Event] = []
        self.dispatch: Callable[[Outcome], Awaitable[Error | None] | None] = lambda outcome: None
        self._clock = itertools.count(1_700_000_000_000_000_000)
        self._changed = asyncio.Condition()

    async def write(self, command: Command, request: Any, request_id: str = "") -> Answer:
        try:
            outcome = command(self.state, request, Context(next(self._clock), random_guid, request_id, Settings()))
        except Refused:
            self.state.undo(self.state.take())
            raise
        self.state.take()
        async with self._changed:
            self.events.extend(outcome.events)
            self._changed.notify_all()
        follow_up = self.dispatch(outcome)
        error = None if follow_up is None else await follow_up
        if error is not None:
            raise Refused(error)
        return outcome.answer

    async def wait_for_event(self, name: str) -> Event:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: any(event.name == name for event in self.events))
        return next(event for event in self.events if event.name == name)


@pytest.fixture
def writer() -> MemoryWriter:
    return MemoryWriter()


@dataclass
class Logged:
    """A log that keeps its lines."""

    lines: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, level: str, action: str, data: Mapping[str, Any]) -> None:
        self.lines.append((level, action, data))
        self._news.set()

    async def wait_for(self, count: int) -> None:
        """Until there are `count` lines."""
        async with asyncio.timeout(10):
            while len(self.lines) < count:
                self._news.clear()
                await self._news.wait()

    def actions(self) -> list[str]:
        return [action for _, action, _ in self.lines]


@pytest.fixture
def logged() -> Logged:
    return Logged()
