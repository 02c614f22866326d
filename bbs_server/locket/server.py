"""A Locket server: the gRPC listener with mutual TLS on a database (locket.md sections 1 and 6)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from bbs_server.locket.expiry import Expiry
from bbs_server.locket.figures import Figures
from bbs_server.locket.locks import Lock, Locks
from bbs_server.locket.options import Options
from bbs_server.locket.service import Endpoint, Service
from bbs_server.process.plain_http import ListenFailed, listen_error, port_number, split_address, split_port
from bbs_server.store.conninfo import parse
from bbs_server.tls.contexts import server_context

STOP_LIMIT = 15.0
"""Seconds that open calls get to finish at the end."""

_CHANNEL_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two servers on one port are a mistake
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
)
"""Clients ping every 10 s or more while a call is open, which gRPC would take for an attack (locket.md 2)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM files: our certificate and key, and the authority of the clients."""

    ca_file: Path | str
    cert_file: Path | str
    key_file: Path | str


@dataclass(frozen=True, slots=True)
class LocketServer:
    """A server that is serving at `host:port`."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@asynccontextmanager
async def serve(
    database: str, identity: Identity, address: str = "127.0.0.1:0", options: Options | None = None
) -> AsyncIterator[LocketServer]:
    """Serve on a database, given by its connection string, while the context is open.

    Port 0 is a free port. At the end open calls finish; locks stay in the database. Raises
    BadCertificates, ListenFailed, and what connecting raises.
    """
    options = options or Options()
    locks = await Locks.open(parse(database), limit=options.operation_limit)
    try:
        async with serve_locks(locks, identity, address, Figures(), options) as server:
            yield server
    finally:
        await locks.close()


@asynccontextmanager
async def serve_locks(
    locks: Locks, identity: Identity, address: str, figures: Figures, options: Options
) -> AsyncIterator[LocketServer]:
    """As `serve`, on locks that are open already and stay so, counting in `figures`."""

    def expired(lock: Lock) -> None:
        figures.count_expired(lock.type)
        options.on_expired(lock)

    expiry = Expiry(locks, expired, options.log, options.scan_interval)
    endpoint = Endpoint(Service(locks, expiry), figures, options)
    server = grpc.aio.server(options=_CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers((endpoint.handlers(),))
    host, port = _listen(server, address, _credentials(identity))
    scanning = asyncio.create_task(expiry.run(), name="locket-expiry")
    try:
        await server.start()
        yield LocketServer(host, port)
    finally:
        await server.stop(STOP_LIMIT)
        await endpoint.finish()
        scanning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await scanning


def _credentials(identity: Identity) -> grpc.ServerCredentials:
    # gRPC would accept any files and then refuse every client, so they are tried out first.
    server_context(identity.cert_file, identity.key_file, identity.ca_file)
    return grpc.ssl_server_credentials(
        [(Path(identity.key_file).read_bytes(), Path(identity.cert_file).read_bytes())],
        root_certificates=Path(identity.ca_file).read_bytes(),
        require_client_auth=True,
    )


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> tuple[str, int]:
    """Listen on `host:port`; without a host on all interfaces."""
    try:
        host, port = split_port(address or ":")
        wanted = port_number(port)
    except OSError as problem:
        raise ListenFailed(listen_error(address, problem)) from None
    try:
        number = server.add_secure_port(f"{host or '[::]'}:{wanted}", credentials)
    except RuntimeError:
        number = 0
    if not number:
        raise ListenFailed(listen_error(address, _why_not(address)))
    return host or "localhost", number


def _why_not(address: str) -> OSError:
    """Why nobody can listen there, which gRPC does not tell; a plain socket does."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, place in found:
            socket.create_server(place[:2], family=family).close()
    except OSError as problem:
        return problem
    # Whoever had it has gone in between.
    return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
