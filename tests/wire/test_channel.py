"""Who is let in, and what everybody else gets."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest


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
    await bench.until(lambda: bench.notes.lines)
    assert bench.notes.lines == [("handshake", "EOF")]


async def test_old_versions_are_refused(bench: Any, certificates: Any) -> None:
    context = outsider(certificates, "client")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL"):
        await bench.client(context)
