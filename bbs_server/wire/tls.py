"""Mutual TLS (server.md 8): the server's context, and a TLS channel over a plain transport.

The channel drives `ssl.SSLObject` itself instead of leaving TLS to the event loop. That gives what the
loop cannot: the plain-text answer to plain HTTP, a line for each failed handshake, answers to clients
that have closed their sending side. It also costs half as much CPU per request.
"""

from __future__ import annotations

import asyncio
import datetime
import re
import socket
import ssl
from pathlib import Path
from typing import Any, Protocol, cast

from cryptography import x509

_TLS12_SUITES = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
_KEEP_ALIVE = 180
_HANDSHAKE_LIMIT = 60.0
_LINGER = 0.5
_READ = 64 << 10
_WRITE_BUFFER = 256 << 10
_PLAIN_HTTP = (b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO")
_PLAIN_ANSWER = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
_HANDSHAKE_RECORD = 0x16
_PEM_BLOCKS = re.compile("-----BEGIN (.*?)-----")
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "tls: client didn't provide a certificate",
    "NO_SHARED_CIPHER": "tls: no cipher suite supported by both client and server",
    "UNSUPPORTED_PROTOCOL": "tls: client offered only unsupported versions",
}


class BadCertificates(ValueError):
    """Certificate, key or authority cannot be used; the text says which and why."""


def server_context(certificate: Path | str, key: Path | str, authority: Path | str) -> ssl.SSLContext:
    """The context of the API listener: TLS 1.2 and 1.3, client certificates of `authority` required.

    Raises BadCertificates: unreadable files, no certificate in a file, a key that does not fit, an
    expired or not yet valid certificate, anything but certificates in the authority's file.
    """
    _check_validity(Path(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_SUITES)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.verify_mode = ssl.CERT_REQUIRED
    # Every certificate of the file is an authority of its own, intermediate ones too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as problem:
        raise BadCertificates(f"failed to load keypair: {problem}") from None
    try:
        context.load_verify_locations(authority)
        _check_authority(Path(authority).read_text(errors="replace"))
    except (OSError, ValueError) as problem:
        raise BadCertificates(f"failed to load CA file {authority}: {problem}") from None
    return context


def _check_authority(pem: str) -> None:
    """Refuse other PEM blocks than certificates, which the TLS library would skip."""
    for kind in _PEM_BLOCKS.findall(pem):
        if kind != "CERTIFICATE":
            raise ValueError(f"a PEM block is not a certificate but {kind}")


def _check_validity(path: Path) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise BadCertificates(f"failed to load keypair: {problem}") from None
    now = datetime.datetime.now(datetime.UTC)
    start, end, current = (
        f"{time:%Y-%m-%d %H:%M:%S} +0000 UTC"
        for time in (certificate.not_valid_before_utc, certificate.not_valid_after_utc, now)
    )
    shown = f"current time is {current}"
    if now > certificate.not_valid_after_utc:
        raise BadCertificates(f"failed to load keypair: certificate has expired: validity ended at {end} but {shown}")
    if now < certificate.not_valid_before_utc:
        raise BadCertificates(
            f"failed to load keypair: certificate is not yet valid: validity starts at {start} but {shown}"
        )


class Application(Protocol):
    """What a channel carries bytes for."""

    def opened(self, channel: Channel) -> None:
        """The TCP connection exists; the handshake is still to come."""

    def received(self, data: bytes) -> None:
        """Decrypted bytes have arrived."""

    def ended(self) -> None:
        """The client has closed its sending side. Answers may still be sent."""

    def lost(self) -> None:
        """The connection is gone."""

    def refused(self, peer: str, reason: str) -> None:
        """The handshake failed."""


class Channel(asyncio.Protocol):
    """One TLS connection of the server, as a protocol on a plain transport."""

    __slots__ = (
        "_application",
        "_closing",
        "_drained",
        "_ended",
        "_incoming",
        "_loop",
        "_outgoing",
        "_paused",
        "_reading",
        "_session",
        "_shaking",
        "_timer",
        "_transport",
        "_virgin",
    )

    def __init__(self, application: Application, context: ssl.SSLContext, loop: asyncio.AbstractEventLoop) -> None:
        self._application = application
        self._loop = loop
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._transport: asyncio.Transport | None = None
        self._shaking = True
        self._virgin = True
        self._reading = False
        self._closing = False
        self._ended = False
        self._paused = False
        self._drained: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- what the application uses -------------------------------------------------------

    @property
    def peer(self) -> str:
        """Address of the client, `host:port`."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        if not name:
            return "?"
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    @property
    def certificate(self) -> dict[str, Any]:
        """The client's certificate as `ssl.getpeercert()` shows it."""
        return self._session.getpeercert() or {}

    def send(self, data: bytes) -> None:
        """Encrypt and write. What is sent after `close` or a loss is dropped."""
        if self._closing or self._transport is None:
            return
        try:
            sent = self._session.write(data)
            if sent < len(data):
                rest = memoryview(data)
                while sent < len(data):
                    sent += self._session.write(rest[sent:])
        except ssl.SSLError:
            self.abort()
            return
        if not self._reading:
            self._transport.write(self._outgoing.read())

    async def drain(self) -> None:
        """Wait until the socket has taken most of what was sent. Raises ConnectionResetError on a loss."""
        if self._paused and self._transport is not None:
            self._drained = self._loop.create_future()
            await self._drained
        if self._transport is None:
            raise ConnectionResetError("connection lost")

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def close(self, *, linger: bool = False) -> None:
        """End the connection after what was sent.

        `linger` waits up to half a second for the client's end, dropping what it still sends: closing a
        socket with unread bytes would destroy the answer on its way.
        """
        if self._closing or self._transport is None:
            return
        self._closing = True
        if not self._shaking:
            try:
                self._session.unwrap()
            except (ssl.SSLError, OSError, ValueError):
                pass  # it always wants the client's close_notify, which is not waited for
        self._flush()
        if linger and not self._ended:
            self._transport.write_eof()
            self._arm(_LINGER, self.abort)
        else:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # -- what the event loop calls -------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        _keep_alive(transport.get_extra_info("socket"))
        self._arm(_HANDSHAKE_LIMIT, self._handshake_expired)
        self._application.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        self._application.lost()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    def eof_received(self) -> bool:
        if self._closing:
            return False
        if self._shaking:
            self._refuse("EOF")
            return False
        self._end()
        return not self._closing

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._incoming.write(data)
        if self._shaking and not self._shake(data):
            return
        self._reading = True
        try:
            while self._incoming.pending and not self._closing:
                plain = self._session.read(_READ)
                if not plain:
                    self._end()
                    break
                self._application.received(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._flush()
            self.abort()
        finally:
            self._reading = False
        self._flush()

    # -- the handshake -------------------------------------------------------------------

    def _shake(self, data: bytes) -> bool:
        """Go on with the handshake; True when it is complete."""
        if self._virgin:
            self._virgin = False
            if self._looks_wrong(data):
                return False
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as problem:
            self._flush()
            self._refuse(_reason(problem))
            return False
        self._shaking = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def _looks_wrong(self, data: bytes) -> bool:
        """Whether the first bytes are no TLS; then the connection has been ended."""
        if data.startswith(_PLAIN_HTTP):
            assert self._transport is not None
            self._transport.write(_PLAIN_ANSWER)
            self._refuse("client sent an HTTP request to an HTTPS server")
            return True
        if data[0] != _HANDSHAKE_RECORD:
            self._refuse("tls: first record does not look like a TLS handshake")
            return True
        return False

    def _refuse(self, reason: str) -> None:
        self._application.refused(self.peer, reason)
        self.close(linger=True)

    def _handshake_expired(self) -> None:
        self._application.refused(self.peer, "timeout")
        self.abort()

    # -- details -------------------------------------------------------------------------

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._application.ended()

    def _flush(self) -> None:
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())

    def _arm(self, seconds: float, action: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, action)


def _keep_alive(connection: Any) -> None:
    """TCP keep-alive of 3 minutes, the reference's."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_ALIVE)


def _reason(problem: ssl.SSLError) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: {problem.verify_message}"
    return _REASONS.get(problem.reason or "", str(problem.reason or problem))
