"""One HTTP exchange with an auctioneer, a cell or a callback receiver, over kept connections."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import select
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from types import SimpleNamespace

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from bbs_server.core.go_json import text
from bbs_server.effects import urls

CONNECT_TIMEOUT = 5.0
"""Seconds that a TCP connection may take."""

REDIRECTS = 10
"""Requests of one exchange at most, the first included."""

_TO_GET = frozenset((301, 302, 303))
_REDIRECTING = _TO_GET | {307, 308}

_HEADER_LIMIT = 10 << 20
"""Bytes of an answer's header, the reference's."""

_EMPTY_LINE = re.compile(rb"(?:\A|(?<=\n))\r?\n")
"""What ends a header; also where it comes in a piece of its own."""

_HUNG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)

_PHRASES = {302: "Found", 413: "Request Entity Too Large", 414: "Request URI Too Long", 418: "I'm a teapot"}
_PHRASES |= {416: "Requested Range Not Satisfiable", 422: "Unprocessable Entity"}
_TIMED_OUT = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"


class NoAnswer(Exception):
    """The exchange failed before a status came. The text is the reference's, as far as it can be known."""

    def __init__(self, text: str, timed_out: bool) -> None:
        super().__init__(text)
        self.timed_out = timed_out


class _Lost(Exception):
    """The connection was lost before an answer came; the cause says how.

    `unsent`: so early that the peer cannot have acted on the request.
    """

    def __init__(self, unsent: bool) -> None:
        super().__init__()
        self.unsent = unsent


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
    seconds, 0 none. Environment proxies are not used, redirects are followed. No request is delivered twice.
    """

    def __init__(self, tls: ssl.SSLContext | None, timeout: float) -> None:
        self._tls = tls
        self._timeout = timeout or None
        self._session: aiohttp.ClientSession | None = None

    async def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> int:
        """Make the exchange and return its status; the body of the answer is not read. Raises NoAnswer."""
        try:
            urls.sendable(url)
        except ValueError as problem:
            raise NoAnswer(str(problem), timed_out=False) from problem
        # The library sends UTF-8 only, and would leave out what is none.
        headers = {name: text(value) for name, value in headers.items()}
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await self._follow(method, url, headers, body)
        except (_Lost, aiohttp.ClientError, OSError, ValueError) as problem:
            # A connection that does not come about in time is no timeout of the exchange (tasks.md 10.2).
            raise _no_answer(method, url, problem, timed_out=limit.expired()) from problem

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _follow(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> int:
        """Follow redirects. The library would also follow what says its target elsewhere than in `Location`."""
        for _ in range(REDIRECTS):
            status, location = await self._ask(method, url, headers, body)
            if status not in _REDIRECTING or not location:
                return status
            url = urls.redirected(url, location)
            if status in _TO_GET:
                method, body = "GET", None
        raise ValueError(f"stopped after {REDIRECTS} redirects")

    async def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> tuple[int, str]:
        """Status and `Location` of one request."""
        plain, authorization = urls.without_user(urls.sendable(url))
        urls.refuse_unsendable(plain)
        target = URL(plain, encoded=True)
        if authorization:
            headers = {**headers, "Authorization": authorization}
        while True:
            connection = SimpleNamespace(reused=False)
            try:
                async with self._opened().request(
                    method, target, headers=headers, data=body, allow_redirects=False, trace_request_ctx=connection
                ) as answer:
                    return answer.status, answer.headers.get("Location", "")
            except _Lost as lost:
                # A kept connection that the peer had closed meanwhile says nothing about the peer.
                if not (connection.reused and lost.unsent):
                    raise

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_connection_reuseconn.append(_note_reuse)
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=0, ssl=True if self._tls is None else self._tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, ceil_threshold=float("inf")),
                trace_configs=[tracing],
                request_class=_Request,
                middlewares=(_once,),
                auto_decompress=False,
                # Quirk: peers may have come to know the reference by these.
                headers={"User-Agent": "Go-http-client/1.1", "Accept-Encoding": "gzip"},
                skip_auto_headers=("Content-Type", "Accept"),
                max_line_size=_HEADER_LIMIT,
                max_field_size=_HEADER_LIMIT,
                max_headers=_HEADER_LIMIT // 4,
            )
        return self._session


async def _note_reuse(
    session: aiohttp.ClientSession, context: SimpleNamespace, details: aiohttp.TraceConnectionReuseconnParams
) -> None:
    context.trace_request_ctx.reused = True


class _Answers(ResponseHandler):
    """Reads the header of an answer apart from what comes with it.

    Nobody reads the body. The library would not tell the status of an answer whose body it cannot make out, or behind
    which there is more, if that has come together with the header.
    """

    def data_received(self, data: bytes) -> None:
        begin = 0
        for line in _EMPTY_LINE.finditer(data):
            super().data_received(data[begin : line.end()])
            begin = line.end()
        if begin < len(data):
            super().data_received(data[begin:])


class _Connector(aiohttp.TCPConnector):
    """Connections whose answers are `_Answers`."""

    def __init__(self, limit: int, ssl: ssl.SSLContext | bool) -> None:
        super().__init__(limit=limit, ssl=ssl)
        answers: type[ResponseHandler] = _Answers
        self._factory = functools.partial(answers, loop=self._loop)


class _Request(aiohttp.ClientRequest):
    """A request that is not sent on a connection which the peer has closed already.

    The loop may not have noticed yet, and once the request has been sent nobody can tell whether the peer
    has acted on it.
    """

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        if _closed(conn.transport):
            raise aiohttp.ClientConnectionResetError("server closed idle connection")
        return await super().send(conn)


def _closed(transport: asyncio.Transport | None) -> bool:
    """Whether the system knows that the peer sends nothing more."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return True
    watch = select.poll()
    watch.register(sock.fileno(), _HUNG_UP)
    return bool(watch.poll(0))


async def _once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Hide lost connections from the library, which would send some requests again that were received."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientConnectionResetError) as problem:
        # The library's sign that a write, at the latest the one of the body, found the connection closed.
        unsent = aiohttp.ClientConnectionResetError
        raise _Lost(isinstance(problem, unsent) or isinstance(problem.__cause__, unsent)) from problem


def _no_answer(method: str, url: str, problem: Exception, timed_out: bool) -> NoAnswer:
    reason = _TIMED_OUT if timed_out else _reason(problem)
    return NoAnswer(f"{method.capitalize()} {_quoted(urls.without_password(url))}: {reason}", timed_out)


def _reason(problem: Exception) -> str:
    match problem:
        case _Lost(__cause__=Exception() as cause):
            return _reason(cause)
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
        case aiohttp.ServerDisconnectedError():
            return "EOF"
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
