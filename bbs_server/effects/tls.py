"""TLS for connections that the server opens: versions, suites and identity (server.md 8)."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

_SUITES_OF_1_2 = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"


def client_tls(ca_file: str, cert_file: str, key_file: str) -> ssl.SSLContext:
    """A context that presents the certificate, trusts that authority only and checks host names.

    Raises OSError or ValueError with a text that says what is wrong with the files, an expired
    certificate included.
    """
    check_validity(Path(cert_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.set_ciphers(_SUITES_OF_1_2)
    try:
        context.load_cert_chain(cert_file, key_file)
    except ssl.SSLError as problem:
        raise ValueError(f"failed to load keypair: {problem.reason or problem}") from problem
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as problem:
        raise ValueError(f"failed to load CA certificate {ca_file}: {problem.reason or problem}") from problem
    return context


def check_validity(cert_file: Path) -> None:
    """Refuse a certificate outside its validity. Raises OSError or ValueError."""
    try:
        certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
    except ValueError as problem:
        raise ValueError(f"failed to load keypair: no certificate in {cert_file}: {problem}") from problem
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise ValueError(_outside("certificate has expired: validity ended at", certificate.not_valid_after_utc, now))
    if now < certificate.not_valid_before_utc:
        raise ValueError(_outside("certificate is not yet valid: starts at", certificate.not_valid_before_utc, now))


def _outside(what: str, limit: datetime, now: datetime) -> str:
    shape = "%Y-%m-%d %H:%M:%S +0000 UTC"
    return f"failed to load keypair: {what} {limit.strftime(shape)} but current time is {now.strftime(shape)}"
