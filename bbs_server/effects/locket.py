"""The connection to Locket: one gRPC channel with mutual TLS for lock and presences (locket.md 1 and 2)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc
from bbs_protos import locket_pb2 as pb
from bbs_protos.locket_pb2_grpc import LocketStub

from bbs_server.tls.contexts import client_context

CONNECT_TIMEOUT = 10.0
"""Seconds that the start of the process waits for the connection."""

_LEAST_KEEPALIVE = 10
_KEEPALIVE_TIMEOUT = 20


class LocketUnreachable(Exception):
    """No connection could be made; the text is the reference's."""


@dataclass(frozen=True, slots=True)
class LocketSettings:
    """Where Locket is and who we are. Keep-alive times in s; 0 or too short means the defaults (10 and 20)."""

    address: str
    ca_file: str
    cert_file: str
    key_file: str
    keepalive_time: int = 0
    keepalive_timeout: int = 0


class Locket:
    """The four calls. Each raises grpc.aio.AioRpcError.

    `timeout` None is no limit, in seconds otherwise. Calls fail at once while the connection is down, unless
    `wait` is set.
    """

    def __init__(self, settings: LocketSettings) -> None:
        """Reads the certificates; raises BadCertificates. Needs a running loop."""
        # gRPC would accept any files and then never connect, so they are tried out first.
        client_context(settings.ca_file, settings.cert_file, settings.key_file)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=Path(settings.ca_file).read_bytes(),
            private_key=Path(settings.key_file).read_bytes(),
            certificate_chain=Path(settings.cert_file).read_bytes(),
        )
        self._channel = grpc.aio.secure_channel(settings.address, credentials, options=_options(settings))
        self._stub = LocketStub(self._channel)

    async def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Wait until the connection is up. Raises LocketUnreachable after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._channel.channel_ready()
        except TimeoutError as problem:
            raise LocketUnreachable("context deadline exceeded") from problem

    async def lock(
        self, resource: pb.Resource, ttl_in_seconds: int, uuid: str, timeout: float | None, wait: bool
    ) -> None:
        """Take or renew; `uuid` names the call in Locket's log."""
        await self._stub.Lock(
            pb.LockRequest(resource=resource, ttl_in_seconds=ttl_in_seconds),
            timeout=timeout,
            metadata=(("uuid", uuid),),
            wait_for_ready=wait,
        )

    async def release(self, resource: pb.Resource) -> None:
        await self._stub.Release(pb.ReleaseRequest(resource=resource))

    async def fetch(self, key: str, timeout: float | None = None) -> pb.Resource:
        response = await self._stub.Fetch(pb.FetchRequest(key=key), timeout=timeout)
        return response.resource

    async def fetch_presences(self, timeout: float | None = None) -> list[pb.Resource]:
        request = pb.FetchAllRequest(type="presence", type_code=pb.PRESENCE)
        response = await self._stub.FetchAll(request, timeout=timeout)
        return list(response.resources)

    async def close(self) -> None:
        await self._channel.close(None)


def _options(settings: LocketSettings) -> list[tuple[str, int]]:
    """Pings only while a call is open; reconnects quickly, since a standby waits for nothing else."""
    timeout = (settings.keepalive_timeout or _KEEPALIVE_TIMEOUT) * 1000
    return [
        ("grpc.keepalive_time_ms", max(settings.keepalive_time, _LEAST_KEEPALIVE) * 1000),
        ("grpc.keepalive_timeout_ms", timeout),
        ("grpc.http2.ping_timeout_ms", timeout),  # a minute if left out, whatever the keep-alive says
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.max_receive_message_length", -1),
    ]
