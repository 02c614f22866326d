"""TLS contexts from the files of a configuration: versions, suites, identity and trust (server.md 8)."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from bbs_server.tls.go_errors import described

_SUITES_OF_1_2 = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
_PEM_BLOCKS = re.compile("-----BEGIN (.*?)-----")

PathName = Path | str


class BadCertificates(ValueError):
    """Certificate, key or authority cannot be used; the text says which and why."""


def server_context(certificate: PathName, key: PathName, authority: PathName) -> ssl.SSLContext:
    """The context of a listener: client certificates of `authority` are required.

    Raises BadCertificates: unreadable files, no certificate in a file, a key that does not fit, an
    expired or not yet valid certificate, anything but certificates in the authority's file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.verify_mode = ssl.CERT_REQUIRED
    return _with_identity(context, certificate, key, authority)


def client_context(authority: PathName, certificate: PathName, key: PathName) -> ssl.SSLContext:
    """The context of connections to peers: trusts `authority` only and checks host names.

    Raises BadCertificates as `server_context` does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    return _with_identity(context, certificate, key, authority)


def _with_identity(
    context: ssl.SSLContext, certificate: PathName, key: PathName, authority: PathName
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES_OF_1_2)
    # Every certificate of the authority's file is an authority of its own, intermediate ones too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        _check_validity(x509.load_pem_x509_certificate(Path(certificate).read_bytes()))
        Path(key).read_bytes()  # The TLS library would not say which file it misses.
        context.load_cert_chain(certificate, key, _no_password)
    except (OSError, ValueError) as problem:
        raise BadCertificates(f"failed to load keypair: {described(problem)}") from None
    try:
        context.load_verify_locations(authority)
        _check_authority(Path(authority).read_text(errors="replace"))
    except (OSError, ValueError) as problem:
        raise BadCertificates(f"failed to load CA file {authority}: {described(problem)}") from None
    return context


def _no_password() -> str:
    """Instead of asking at the terminal."""
    raise ValueError("the key is encrypted")


def _check_validity(certificate: x509.Certificate) -> None:
    start, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if now > end:
        raise ValueError(f"certificate has expired: validity ended at {_go(end)} but current time is {_go(now)}")
    if now < start:
        raise ValueError(
            f"certificate is not yet valid: validity starts at {_go(start)} but current time is {_go(now)}"
        )


def _go(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} +0000 UTC"


def _check_authority(pem: str) -> None:
    """Refuse other PEM blocks than certificates, which the TLS library would skip."""
    for kind in _PEM_BLOCKS.findall(pem):
        if kind != "CERTIFICATE":
            raise ValueError(f"a PEM block is not a certificate but {kind}")
