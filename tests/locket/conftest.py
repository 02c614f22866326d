"""Real Locket servers with mutual TLS on a real PostgreSQL, and their clients."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc
import pytest
from bbs_protos import locket_pb2 as pb
from bbs_protos.locket_pb2_grpc import LocketStub

from bbs_server.locket.locks import Lock
from bbs_server.locket.options import Options
from bbs_server.locket.server import Identity, LocketServer, serve

LONG = 60

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
"""Statements that wait for somebody's lock."""


class Client:
    """The four calls, shortened."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = LocketStub(channel)
        self.channel = channel

    async def lock(self, key: str = "k", owner: str = "o", ttl: int = LONG, **more: Any) -> None:
        """`more` are other fields of the resource."""
        resource = pb.Resource(**{"key": key, "owner": owner, "value": "v", "type_code": pb.LOCK, **more})
        await self.stub.Lock(pb.LockRequest(resource=resource, ttl_in_seconds=ttl), timeout=10)

    async def fetch(self, key: str = "k") -> pb.Resource:
        found: pb.Resource = (await self.stub.Fetch(pb.FetchRequest(key=key), timeout=10)).resource
        return found

    async def fetch_all(self, code: int, type_: str = "") -> dict[str, pb.Resource]:
        answer = await self.stub.FetchAll(pb.FetchAllRequest(type=type_, type_code=code), timeout=10)  # type: ignore[arg-type]
        return {found.key: found for found in answer.resources}

    async def release(self, key: str = "k", owner: str = "o") -> None:
        await self.stub.Release(pb.ReleaseRequest(resource=pb.Resource(key=key, owner=owner)), timeout=10)


@dataclasses.dataclass
class Served:
    server: LocketServer
    client: Client
    expired: asyncio.Queue[Lock]


@dataclasses.dataclass
class Wire:
    """A TCP proxy before the database. While it is `silent` it takes bytes and connections, and passes nothing on.

    While it is `open_ended` it passes on all but the end of a connection; `ended` is set when it has kept one back.
    """

    target: tuple[str, int]
    url: str = ""
    silent: bool = False
    open_ended: bool = False
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    _ends: list[asyncio.StreamWriter] = dataclasses.field(default_factory=list)

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        self._ends += (writer, far_writer)
        await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What was swallowed is never made up for, so a connection stays silent once it was; so does its end."""
        swallowing = False
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                swallowing = swallowing or self.silent
                if not swallowing:
                    writer.write(data)
        if self.open_ended:
            self.ended.set()
        elif not (swallowing or self.silent):
            writer.close()


@pytest.fixture
async def wire(postgres_url: str) -> AsyncIterator[Wire]:
    """Between a server and the test's database: `async with start(wire.url) as served`."""
    parts = urlsplit(postgres_url)
    wire = Wire((parts.hostname or "", parts.port or 0))
    listener = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    wire.url = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
    yield wire
    listener.close()
    wire.cut()


Serve = Callable[..., AbstractAsyncContextManager[Served]]


def credentials(certificates: Any, who: str = "client") -> grpc.ChannelCredentials:
    files = (certificates.ca, getattr(certificates, f"{who}_key"), getattr(certificates, f"{who}_cert"))
    return grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))


@pytest.fixture
def identity(certificates: Any) -> Identity:
    return Identity(certificates.ca, certificates.server_cert, certificates.server_key)


@pytest.fixture
def start(postgres_url: str, identity: Identity, certificates: Any) -> Serve:
    """Starts servers on the test's database, or on another URL of it: `async with start() as served`."""

    @asynccontextmanager
    async def started(database: str = postgres_url, **options: Any) -> AsyncIterator[Served]:
        expired: asyncio.Queue[Lock] = asyncio.Queue()
        chosen = dataclasses.replace(Options(on_expired=expired.put_nowait), **options)
        async with (
            serve(database, identity, options=chosen) as server,
            grpc.aio.secure_channel(server.address, credentials(certificates)) as channel,
        ):
            yield Served(server, Client(channel), expired)

    return started


@pytest.fixture
async def served(start: Serve) -> AsyncIterator[Served]:
    async with start() as server:
        yield server


@pytest.fixture
def client(served: Served) -> Client:
    return served.client


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
async def watcher(postgres_url: str) -> AsyncIterator[Any]:
    """Another connection to the test's database."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


UntilWaiting = Callable[[int], Awaitable[None]]


@pytest.fixture
def until_waiting(watcher: Any) -> UntilWaiting:
    """Returns when so many statements wait. `watcher` has no transaction open, so that it sees them come and go."""

    async def until(expected: int) -> None:
        async with asyncio.timeout(10):
            while await watcher.fetchval(WAITING) != expected:
                pass

    return until
