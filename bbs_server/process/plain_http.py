"""Plain HTTP listeners for the health, debug and Prometheus endpoints."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ListenFailed(Exception):
    """A listener's address cannot be used; the text is the reference's."""


class PlainServer:
    """One listener that hands every request, whatever its method and path, to one handler."""

    def __init__(self, address: str, handler: Handler) -> None:
        self._address = address
        self._application = web.Server(handler)
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises ListenFailed."""
        loop = asyncio.get_running_loop()
        try:
            host, port = split_address(self._address)
            self._listener = await loop.create_server(self._application, host, port)
        except OSError as problem:
            raise ListenFailed(listen_error(self._address, problem)) from None

    @property
    def port(self) -> int:
        assert self._listener is not None
        number: int = self._listener.sockets[0].getsockname()[1]
        return number

    async def stop(self) -> None:
        """Close the listener and its connections."""
        if self._listener is not None:
            self._listener.close()
            await self._application.shutdown(timeout=1.0)


def split_address(address: str) -> tuple[str | None, int]:
    """Host, None for all interfaces, and port of `host:port`; no address at all is any free port. Raises OSError."""
    host, port = split_port(address or ":")
    return host.strip("[]") or None, port_number(port)


def split_port(address: str) -> tuple[str, str]:
    """Host, with its brackets, and port as they are written. Raises OSError."""
    place = f"address {address}: " if address else ""
    host, colon, port = address.rpartition(":")
    if not colon:
        raise OSError(0, f"{place}missing port in address")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise OSError(0, f"{place}too many colons in address")
    return host, port


def port_number(port: str) -> int:
    """A port may be a number, a service name of TCP, or empty for any free one. Raises OSError."""
    if not port:
        return 0
    if port.isascii() and port.isdigit():
        if int(port) > 65535:
            raise OSError(0, f"address {port}: invalid port")
        return int(port)
    try:
        return socket.getservbyname(port, "tcp")
    except OSError:
        raise OSError(0, f"lookup tcp/{port}: unknown port") from None


def listen_error(address: str, problem: OSError) -> str:
    """What Go says of an address it cannot bind."""
    if isinstance(problem, socket.gaierror):
        return f"listen tcp: lookup {address.rpartition(':')[0]}: no such host"
    if not problem.errno:
        return f"listen tcp: {problem.strerror}"
    reason = os.strerror(problem.errno).lower()
    return f"listen tcp {address}: bind: {reason}"
