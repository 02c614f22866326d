"""The cell's presence in Locket: set at start, renewed, released at the end (cells-and-auctions.md section 5)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from bbs_protos import locket_pb2, locket_pb2_grpc

from bbs_server.dev.background import running
from bbs_server.dev.cell.settings import Settings

log = logging.getLogger(__name__)

_CALL_SECONDS = 5.0
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000))
"""By default a channel waits up to two minutes before it looks for a Locket that came back."""


@contextlib.asynccontextmanager
async def presence(settings: Settings) -> AsyncIterator[None]:
    """The body runs once Locket has the presence, and while it is renewed. A lost one is simply set again."""
    resource = locket_pb2.Resource(
        key=settings.cell_id,
        owner=str(uuid.uuid4()),
        value=json.dumps(_value(settings), separators=(",", ":")),
        type="presence",
        type_code=locket_pb2.PRESENCE,
    )
    async with _channel(settings) as channel:
        stub: locket_pb2_grpc.LocketAsyncStub = locket_pb2_grpc.LocketStub(channel)
        # The owner of a killed predecessor's presence is another one: wait until that has expired.
        while not await _set(stub, resource, settings):
            await asyncio.sleep(settings.presence_interval_seconds)
        ending = asyncio.Event()
        async with running(_renew(stub, resource, settings, ending)) as renewing:
            try:
                yield
            finally:
                # Locket carries out a renewal that is given up here, maybe only after the release: wait for it.
                ending.set()
                await asyncio.wait([renewing])
        with contextlib.suppress(grpc.RpcError):
            await stub.Release(locket_pb2.ReleaseRequest(resource=resource), timeout=_CALL_SECONDS)


async def _renew(
    stub: locket_pb2_grpc.LocketAsyncStub, resource: locket_pb2.Resource, settings: Settings, ending: asyncio.Event
) -> None:
    """Every interval until `ending` is set."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.presence_interval_seconds):
                await ending.wait()
                return
        await _set(stub, resource, settings)


async def _set(stub: locket_pb2_grpc.LocketAsyncStub, resource: locket_pb2.Resource, settings: Settings) -> bool:
    request = locket_pb2.LockRequest(resource=resource, ttl_in_seconds=settings.presence_ttl_seconds)
    try:
        await stub.Lock(request, timeout=_CALL_SECONDS)
    except grpc.RpcError as problem:
        log.warning("presence not set: %s", problem.details() if isinstance(problem, grpc.aio.AioRpcError) else problem)
        return False
    return True


def _channel(settings: Settings) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        Path(settings.ca).read_bytes(), Path(settings.key).read_bytes(), Path(settings.cert).read_bytes()
    )
    return grpc.aio.secure_channel(settings.locket_address, credentials, options=_CHANNEL)


def _value(settings: Settings) -> dict[str, object]:
    properties = {"properties": list(settings.preloaded_rootfs)} if settings.preloaded_rootfs else {}
    optional = {
        "placement_tags": list(settings.placement_tags),
        "optional_placement_tags": list(settings.optional_placement_tags),
    }
    return {
        "cell_id": settings.cell_id,
        "rep_address": f"http://{urlsplit(settings.url).netloc}",
        "zone": settings.zone,
        "capacity": {
            "memory_mb": settings.memory_mb,
            "disk_mb": settings.disk_mb,
            "containers": settings.containers,
        },
        "rootfs_provider_list": [
            {"name": "preloaded", **properties},
            {"name": "preloaded+layer", **properties},
            {"name": "docker"},
        ],
        **{name: tags for name, tags in optional.items() if tags},
        "rep_url": settings.url,
        "annotations": {},
    }
