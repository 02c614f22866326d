"""The health endpoint: 200 for everything, from before the lock to the very end (server.md section 15)."""

from __future__ import annotations

from aiohttp import web

from bbs_server.process.plain_http import PlainServer, port_number, split_port


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
    try:
        host, port = split_port(address)
    except OSError as problem:
        raise BadAddress("failed-invalid-health-address", str(problem.strerror)) from None
    try:
        return f"{host}:{port_number(port)}"
    except OSError as problem:
        raise BadAddress("failed-invalid-health-port", str(problem.strerror)) from None


async def _healthy(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response()
