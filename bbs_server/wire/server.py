"""The API server: listener, connections, what its routes are carried out with, and the orderly end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from bbs_protos import models_pb2 as models

from bbs_server.core.encoding import Answer
from bbs_server.core.outcome import Command, Query
from bbs_server.wire.channel import Channel
from bbs_server.wire.observer import Observer, Silence
from bbs_server.wire.protocol import Connection
from bbs_server.wire.routes import Kind, Route
from bbs_server.wire.streams import Hubs

_BACKLOG = 4096
_STREAM_GRACE = 0.1
_UPLOAD_GRACE = 1.0
DRAIN_LIMIT = 60.0
"""Seconds that requests in flight may take after the shutdown has begun (server.md 5)."""


class Writer(Protocol):
    """Where commands and queries go. Both methods raise Refused."""

    async def write(self, command: Command, request: Any, request_id: str = "") -> Answer: ...

    async def read(self, query: Query, request: Any, request_id: str = "") -> Answer: ...


class Presences(Protocol):
    """The registered cells."""

    async def all(self) -> Sequence[models.CellPresence]:
        """Raises Refused when Locket does not answer."""


class Server:
    """The API listener with all its connections.

    `ready` is asked for each request: while it is False every one answers 503. `start` binds, `stop`
    drains. The server owns no clock but the drain limits, and never ends a connection for being idle.
    """

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        writer: Writer,
        presences: Presences,
        hubs: Hubs,
        ready: Callable[[], bool] = lambda: True,
        observer: Observer | None = None,
    ) -> None:
        self.hubs = hubs
        self.ready = ready
        self.observer: Observer = observer or Silence()
        self.draining = False
        self.connections: set[Connection] = set()
        self._context = context
        self._writer = writer
        self._presences = presences
        self._listener: asyncio.Server | None = None
        self._emptied = asyncio.Event()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the server listens."""
        sockets = self._listener.sockets if self._listener is not None else ()
        return [bound.getsockname()[:2] for bound in sockets]

    async def start(self, host: str, port: int) -> None:
        """Bind and listen; port 0 takes a free one. Raises OSError."""
        self.loop = asyncio.get_running_loop()
        self._listener = await self.loop.create_server(self._connection, host or None, port, backlog=_BACKLOG)

    async def stop(self, limit: float = DRAIN_LIMIT) -> None:
        """Listen no more, end streams and idle connections, and let requests in flight finish.

        Streams should have been ended by closing the hubs; those that have not, because their reader is
        stuck, are cut. Requests get `limit` seconds, bodies still on their way one second at most.
        """
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        await self._end_streams()
        for connection in [c for c in self.connections if c.task is None and not c.uploading]:
            connection.close()
        await self._until_gone(lambda c: c.task is not None or c.uploading, min(limit, _UPLOAD_GRACE))
        for connection in [c for c in self.connections if c.task is None]:
            connection.abort()
        await self._until_gone(lambda c: True, limit - _UPLOAD_GRACE)
        for connection in list(self.connections):
            connection.abort()

    async def perform(self, route: Route, request: Any, request_id: str) -> Answer:
        """Carry out a decoded, valid request. Raises Refused."""
        if route.kind is Kind.COMMAND:
            return await self._writer.write(route.handle, request, request_id)  # type: ignore[arg-type]
        if route.kind is Kind.QUERY:
            return await self._writer.read(route.handle, request, request_id)  # type: ignore[arg-type]
        return models.CellsResponse(cells=await self._presences.all())

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if self.draining:
            self._emptied.set()

    def _connection(self) -> Channel:
        return Channel(Connection(self), self._context, self.loop)

    async def _end_streams(self) -> None:
        """Give streams the moment it takes to deliver what is buffered, then end them regardless."""
        streaming = [c for c in self.connections if c.streaming]
        tasks = [c.task for c in streaming if c.task is not None]
        if not tasks:
            return
        _, stuck = await asyncio.wait(tasks, timeout=_STREAM_GRACE)
        for task in stuck:
            task.cancel()
        if stuck:
            await asyncio.wait(stuck, timeout=_STREAM_GRACE)
        for connection in streaming:
            if connection in self.connections:
                connection.abort()

    async def _until_gone(self, counts: Callable[[Connection], bool], limit: float) -> None:
        """Wait until no connection counts any more, `limit` seconds at most."""
        deadline = self.loop.time() + limit
        while any(counts(c) for c in self.connections) and (left := deadline - self.loop.time()) > 0:
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), left)
            except TimeoutError:
                return
