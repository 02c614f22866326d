"""Which files make a TLS context, and what it offers and accepts."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from bbs_server.tls.contexts import BadCertificates, client_context, server_context


@pytest.fixture
def rsa(tmp_path: Path) -> Path:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    leaf = authority.issue_cert("localhost", key_type=trustme.KeyType.RSA)
    leaf.private_key_pem.write_to_path(str(tmp_path / "leaf.key"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "leaf.crt"))
    return tmp_path


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[Any, Any]:
    """Both ends of a handshake in memory: version and suite."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
    ]
    for _ in range(6):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    cipher = ends[1].cipher()
    assert cipher is not None
    return ends[1].version(), cipher[0]


@pytest.mark.parametrize(
    ("offer", "accepted"),
    [
        ("ECDHE-RSA-AES256-GCM-SHA384", True),
        ("ECDHE-RSA-AES128-GCM-SHA256", True),
        ("ECDHE-RSA-CHACHA20-POLY1305", False),
        ("AES128-GCM-SHA256", False),
    ],
)
def test_suites_of_tls_1_2(rsa: Path, offer: str, accepted: bool) -> None:
    server = server_context(rsa / "leaf.crt", rsa / "leaf.key", rsa / "ca.crt")
    client = ssl.create_default_context(cafile=str(rsa / "ca.crt"))
    client.load_cert_chain(rsa / "leaf.crt", rsa / "leaf.key")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(offer)
    if accepted:
        assert handshake(server, client) == ("TLSv1.2", offer)
    else:
        with pytest.raises(ssl.SSLError):
            handshake(server, client)


def test_tls_1_3_and_no_application_protocol(rsa: Path) -> None:
    server = server_context(str(rsa / "leaf.crt"), str(rsa / "leaf.key"), str(rsa / "ca.crt"))
    client = ssl.create_default_context(cafile=str(rsa / "ca.crt"))
    client.load_cert_chain(rsa / "leaf.crt", rsa / "leaf.key")
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert handshake(server, client)[0] == "TLSv1.3"


def certify(file: Path, days: tuple[int, int]) -> None:
    """A certificate that is valid between so many days from now."""
    now = datetime.datetime.now(datetime.UTC)
    start, end = (now + datetime.timedelta(days=number) for number in days)
    leaf = trustme.CA().issue_cert("localhost", not_before=start, not_after=end)
    leaf.cert_chain_pems[0].write_to_path(str(file))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("missing", "failed to load keypair: open .*none: no such file or directory"),
        ("empty", "failed to load keypair"),
        ("missing key", "failed to load keypair: open .*none: no such file or directory"),
        ("encrypted key", "failed to load keypair: the key is encrypted"),
        ("mismatch", "failed to load keypair: "),
        ("expired", "certificate has expired: validity ended at [0-9: -]+ [+]0000 UTC but current time is "),
        (
            "not yet valid",
            "certificate is not yet valid: validity starts at [0-9: -]+ [+]0000 UTC but current ",
        ),
        ("no authority", "failed to load CA file"),
        ("a key among the authorities", "a PEM block is not a certificate but "),
        ("an authority with a header", "failed to load CA file"),
    ],
)
def test_certificates_that_cannot_be_used(rsa: Path, certificates: Any, change: str, text: str) -> None:
    certificate, key, authority = rsa / "leaf.crt", rsa / "leaf.key", rsa / "ca.crt"
    if change == "missing":
        certificate = rsa / "none"
    elif change == "empty":
        certificate.write_text("")
    elif change == "missing key":
        key = rsa / "none"
    elif change == "encrypted key":
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key.write_bytes(loaded.private_bytes(*pem, serialization.BestAvailableEncryption(b"secret")))
    elif change == "mismatch":
        key = certificates.client_key
    elif change == "expired":
        certify(certificate, days=(-2, -1))
    elif change == "not yet valid":
        certify(certificate, days=(1, 2))
    elif change == "a key among the authorities":
        authority.write_text(authority.read_text() + key.read_text())
    elif change == "an authority with a header":
        first, line, rest = authority.read_text().partition("-----BEGIN CERTIFICATE-----\n")
        authority.write_text(f"{first}{line}Name: value\n\n{rest}")
    else:
        authority.write_text("nothing")
    with pytest.raises(BadCertificates, match=text):
        server_context(certificate, key, authority)
    with pytest.raises(BadCertificates, match=text):
        client_context(authority, certificate, key)


@pytest.mark.parametrize("side", ["server", "client"])
def test_an_intermediate_authority_alone_is_trusted(tmp_path: Path, side: str) -> None:
    root = trustme.CA()
    intermediate = root.create_child_ca()
    leaf = intermediate.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(tmp_path / "key"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    intermediate.cert_pem.write_to_path(str(tmp_path / "ca"))
    key, cert, ca = (tmp_path / name for name in ("key", "cert", "ca"))
    other = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH if side == "client" else ssl.Purpose.SERVER_AUTH)
    other.check_hostname, other.verify_mode = False, ssl.CERT_NONE
    other.load_cert_chain(cert, key)
    if side == "server":
        assert handshake(server_context(cert, key, ca), other)[0] == "TLSv1.3"
    else:
        assert handshake(other, client_context(ca, cert, key))[0] == "TLSv1.3"


def test_a_client_checks_names(certificates: Any) -> None:
    context = client_context(certificates.ca, certificates.client_cert, certificates.client_key)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert {c["name"] for c in context.get_ciphers() if c["protocol"] == "TLSv1.2"} == {
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES128-GCM-SHA256",
    }
