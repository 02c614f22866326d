"""What can go wrong between a client and a BBS, each with a text that says what to do about it."""

from __future__ import annotations

import ssl

import httpx

from bbs_server.core.errors import ErrorType


class ClientError(Exception):
    """Root of everything the client raises."""


class Failed(ClientError):
    """The BBS answered with an error. Its text may repeat bytes of the request that are not UTF-8."""

    def __init__(self, type_: int, message: str | bytes) -> None:
        text = message.decode(errors="replace") if isinstance(message, bytes) else message
        super().__init__(text)
        self.type = type_
        self.message = text

    @property
    def type_name(self) -> str:
        """The error's name, such as RESOURCE_NOT_FOUND."""
        try:
            return ErrorType(self.type).name
        except ValueError:
            return str(self.type)


class Unreachable(ClientError):
    """Nothing answers there. A standby BBS looks like this too: it opens its port once it is active."""


class NotActive(ClientError):
    """The BBS has the lock but is still starting."""


class BadCertificate(ClientError):
    """TLS failed: no client certificate, one of another authority, or a server we do not trust."""


class NoAnswer(ClientError):
    """The request was sent and no usable answer came; whether it took effect is unknown."""


class StreamEnded(ClientError):
    """The BBS ended an event stream: it shut down, or the reader was too slow."""


TROUBLE = (httpx.HTTPError, httpx.InvalidURL, OSError)
"""What the HTTP library raises; TLS alerts that come with the answer pass through it as they are."""


def explain(problem: Exception, url: str) -> ClientError:
    """The error of ours for one of the HTTP library's."""
    cause = _tls_cause(problem)
    text = str(cause or problem)
    if cause is not None or "certificate" in text.lower() or "tlsv1" in text.lower():
        return BadCertificate(_certificate_advice(text, url))
    if isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout):
        return Unreachable(
            f"no BBS answers at {url} ({text or 'timed out'}); a standby opens its port once it is active"
        )
    if isinstance(problem, httpx.TimeoutException):
        return NoAnswer(f"{url} did not answer in time")
    return NoAnswer(f"{url} gave no usable answer: {text or type(problem).__name__}")


_ENDS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""An end in the middle of the handshake comes from a server that goes, or from a proxy without one."""


def _tls_cause(problem: BaseException | None) -> ssl.SSLError | None:
    while problem is not None:
        if isinstance(problem, ssl.SSLError) and not isinstance(problem, _ENDS):
            return problem
        problem = problem.__cause__ or problem.__context__
    return None


def _certificate_advice(text: str, url: str) -> str:
    lowered = text.lower()
    if "certificate_required" in lowered or "certificate required" in lowered:
        return f"{url} requires a client certificate; give a certificate and its key"
    if "verify failed" in lowered:
        return f"the certificate of {url} is not of the authority given, or names another host: {text}"
    if "unknown ca" in lowered or "unknown_ca" in lowered or "bad certificate" in lowered:
        return f"{url} does not accept this client certificate: it comes from another authority"
    return f"TLS with {url} failed: {text}"
