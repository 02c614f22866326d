"""The health endpoint: 200 for everything, from before the lock to the very end (server.md section 15)."""

from __future__ import annotations

import socket

from aiohttp import web

from bbs_server.process.plain_http import PlainServer


class BadAddress(ValueError):
    """`health_address` cannot be used. `action` is the log action of the fatal line."""

    def __init__(self, action: str, message: str) -> None:
        super().__init__(message)
        self.action = action


def health_server(address: str) -> PlainServer:
    return PlainServer(address, _healthy)


def resolved(address: str) -> str:
    """The address with its port as a number: it may be a service name of TCP, or empty for any free port.

    Raises BadAddress.
    """
    if ":" not in address:
        place = f"address {address}: " if address else ""
        raise BadAddress("failed-invalid-health-address", f"{place}missing port in address")
    host, _, port = address.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise BadAddress("failed-invalid-health-address", f"address {address}: too many colons in address")
    if port.isascii() and port.isdigit():
        if int(port) > 65535:
            raise BadAddress("failed-invalid-health-port", f"address {port}: invalid port")
        return address
    try:
        return f"{host}:{socket.getservbyname(port, 'tcp') if port else 0}"
    except OSError:
        raise BadAddress("failed-invalid-health-port", f"lookup tcp/{port}: unknown port") from None


async def _healthy(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response()
