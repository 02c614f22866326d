"""One HTTP exchange with an auctioneer, a cell or a callback receiver, over kept connections."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from types import SimpleNamespace

import aiohttp
from yarl import URL

from bbs_server.effects import urls

CONNECT_TIMEOUT = 5.0
"""Seconds that a TCP connection may take."""

REDIRECTS = 10

_PHRASES = {302: "Found", 413: "Request Entity Too Large", 414: "Request URI Too Long", 418: "I'm a teapot"}
_PHRASES |= {416: "Requested Range Not Satisfiable", 422: "Unprocessable Entity"}
_TIMED_OUT = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"


class NoAnswer(Exception):
    """The exchange failed before a status came. The text is the reference's, as far as it can be known."""

    def __init__(self, text: str, timed_out: bool) -> None:
        super().__init__(text)
        self.timed_out = timed_out


class BadStatus(Exception):
    """The peer answered with another status than the wanted one."""

    def __init__(self, status: int) -> None:
        super().__init__(f"http error: status code {status} ({phrase(status)})")
        self.status = status


def phrase(status: int) -> str:
    """The reason phrase as the reference spells it, empty if the status is unknown."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


class Peer:
    """An HTTP/1.1 client for one kind of peer.

    `tls` None means system trust and no client certificate. `timeout` is the limit of a whole exchange in
    seconds, 0 none. Environment proxies are not used, redirects are followed.
    """

    def __init__(self, tls: ssl.SSLContext | None, timeout: float) -> None:
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(
            total=timeout or None, sock_connect=CONNECT_TIMEOUT, ceil_threshold=float("inf")
        )
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None, repeat: bool = False
    ) -> int:
        """Make the exchange and return its status; the body of the answer is not read. Raises NoAnswer.

        `repeat`: a request that is lost with a kept connection is sent again on another one. Only for requests
        that do no harm twice; any other is sent again only if the connection was gone before its body.
        """
        try:
            target = URL(urls.sendable(url), encoded=True)
        except ValueError as problem:
            raise NoAnswer(str(problem), timed_out=False) from problem
        while True:
            connection = SimpleNamespace(reused=False)
            try:
                async with self._opened().request(
                    method,
                    target,
                    headers=headers,
                    data=body,
                    max_redirects=REDIRECTS,
                    trace_request_ctx=connection,
                ) as answer:
                    return answer.status
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as problem:
                # A kept connection that the peer had closed meanwhile says nothing about the peer.
                if not (connection.reused and (repeat or _nothing_sent(problem))):
                    raise _no_answer(method, url, problem) from problem
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
                raise _no_answer(method, url, problem) from problem

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_reuseconn.append(_note_reuse)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=True if self._tls is None else self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trace_configs=[tracing],
                auto_decompress=False,
                headers={"User-Agent": "bbs-server"},
                skip_auto_headers=("Content-Type",),
            )
        return self._session


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, details: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


def _nothing_sent(problem: BaseException) -> bool:
    """Whether the body found its connection closed already, so that the peer cannot have acted on it."""
    return isinstance(problem.__cause__, aiohttp.ClientConnectionResetError)


def _no_answer(method: str, url: str, problem: Exception) -> NoAnswer:
    text = f"{method.capitalize()} {_quoted(url)}: {_reason(problem)}"
    return NoAnswer(text, timed_out=isinstance(problem, asyncio.TimeoutError))


def _reason(problem: Exception) -> str:
    match problem:
        case aiohttp.ClientConnectorDNSError():
            return f"dial tcp: lookup {problem.host}: no such host"
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: x509: {_certificate_problem(problem.certificate_error)}"
        case aiohttp.ClientConnectorSSLError():
            return f"tls: {problem.os_error}"
        case aiohttp.ClientConnectorError():
            return f"dial tcp {problem.host}:{problem.port}: connect: {_system_text(problem.os_error)}"
        case aiohttp.ConnectionTimeoutError():
            return "dial tcp: i/o timeout"
        case TimeoutError():
            return _TIMED_OUT
        case aiohttp.ServerDisconnectedError():
            return "EOF"
        case aiohttp.TooManyRedirects():
            return f"stopped after {REDIRECTS} redirects"
        case OSError():
            return _system_text(problem)
    return str(problem) or type(problem).__name__


def _system_text(problem: OSError) -> str:
    return os.strerror(problem.errno).lower() if problem.errno else str(problem)


def _certificate_problem(problem: Exception) -> str:
    text = getattr(problem, "verify_message", "") or str(problem)
    return "certificate signed by unknown authority" if "issuer" in text or "self" in text else text


def _quoted(url: str) -> str:
    return '"{}"'.format(url.replace("\\", "\\\\").replace('"', '\\"'))
