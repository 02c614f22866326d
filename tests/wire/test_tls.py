"""Who is let in, and what everybody else gets."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from bbs_server.wire.tls import BadCertificates, server_context


def outsider(certificates: Any, name: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.ca)
    if name is not None:
        context.load_cert_chain(getattr(certificates, f"{name}_cert"), getattr(certificates, f"{name}_key"))
    return context


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "tls: client didn't provide a certificate"),
        ("stranger", "tls: failed to verify certificate: unable to get local issuer certificate"),
    ],
)
async def test_an_outsider_is_refused_with_an_alert(
    bench: Any, certificates: Any, name: str | None, reason: str
) -> None:
    client = await bench.client(outsider(certificates, name))
    with pytest.raises(ssl.SSLError, match="ALERT"):
        await client.call("/v1/ping")
    assert bench.notes.lines == [("handshake", reason)]


async def raw(bench: Any, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_plain_http_gets_a_plain_answer(bench: Any) -> None:
    answer = await raw(bench, b"POST /v1/ping HTTP/1.1\r\nHost: bbs\r\n\r\n")
    assert answer == b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
    assert bench.notes.lines == [("handshake", "client sent an HTTP request to an HTTPS server")]


async def test_noise_gets_nothing(bench: Any) -> None:
    assert await raw(bench, b"\x00\x01 noise" * 20) == b""
    assert len(bench.notes.lines) == 1


async def test_noise_that_looks_like_tls(bench: Any) -> None:
    await raw(bench, b"\x16\x03\x01\x00\x10" + b"\xff" * 200)
    assert [line[0] for line in bench.notes.lines] == ["handshake"]
    client = await bench.client()
    assert (await client.call("/v1/ping")).status == 200


async def test_damaged_records_end_the_connection(bench: Any) -> None:
    client = await bench.client()
    client.request("/v1/ping")
    await client.reply()
    client.writer.write(b"\x17\x03\x03\x00\x20" + b"\xff" * 32)
    with pytest.raises(ssl.SSLError):
        await client.rest()


async def test_a_client_that_leaves_during_the_handshake(bench: Any) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(b"\x16\x03\x01")
    writer.close()
    async with asyncio.timeout(10):
        while not bench.notes.lines:
            await asyncio.sleep(0.005)
    assert bench.notes.lines == [("handshake", "EOF")]


async def test_old_versions_are_refused(bench: Any, certificates: Any) -> None:
    context = outsider(certificates, "client")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL"):
        await bench.client(context)


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


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("missing", "No such file"),
        ("empty", "failed to load keypair"),
        ("mismatch", "failed to load keypair: "),
        ("expired", "certificate has expired: validity ended at [0-9: -]+ [+]0000 UTC but current time is "),
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
    elif change == "mismatch":
        key = certificates.client_key
    elif change == "expired":
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        leaf = trustme.CA().issue_cert("localhost", not_before=past - datetime.timedelta(days=1), not_after=past)
        leaf.cert_chain_pems[0].write_to_path(str(certificate))
    elif change == "a key among the authorities":
        authority.write_text(authority.read_text() + key.read_text())
    elif change == "an authority with a header":
        first, line, rest = authority.read_text().partition("-----BEGIN CERTIFICATE-----\n")
        authority.write_text(f"{first}{line}Name: value\n\n{rest}")
    else:
        authority.write_text("nothing")
    with pytest.raises(BadCertificates, match=text):
        server_context(certificate, key, authority)
