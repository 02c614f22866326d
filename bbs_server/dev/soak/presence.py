"""Presences of simulated cells in Locket (cells-and-auctions.md section 5)."""

from __future__ import annotations

import json

import grpc
from bbs_protos import locket_pb2, locket_pb2_grpc

from bbs_server.dev.certificates import Identity
from bbs_server.dev.soak.settings import PRESENCE_TTL_SECONDS

_CALL_SECONDS = 5.0


class Presences:
    """One channel for all cells."""

    def __init__(self, address: str, identity: Identity, rep_url: str) -> None:
        credentials = grpc.ssl_channel_credentials(
            identity.ca.read_bytes(), identity.key.read_bytes(), identity.cert.read_bytes()
        )
        self._channel = grpc.aio.secure_channel(address, credentials)
        self._stub: locket_pb2_grpc.LocketAsyncStub = locket_pb2_grpc.LocketStub(self._channel)
        self._rep_url = rep_url

    async def close(self) -> None:
        await self._channel.close(None)

    async def set(self, cell_id: str, owner: str, zone: str) -> bool:
        resource = self._resource(cell_id, owner, zone)
        request = locket_pb2.LockRequest(resource=resource, ttl_in_seconds=PRESENCE_TTL_SECONDS)
        try:
            await self._stub.Lock(request, timeout=_CALL_SECONDS)
        except grpc.RpcError:
            return False
        return True

    async def release(self, cell_id: str, owner: str, zone: str) -> None:
        request = locket_pb2.ReleaseRequest(resource=self._resource(cell_id, owner, zone))
        try:
            await self._stub.Release(request, timeout=_CALL_SECONDS)
        except grpc.RpcError:
            return

    def _resource(self, cell_id: str, owner: str, zone: str) -> locket_pb2.Resource:
        value = {
            "cell_id": cell_id,
            "rep_address": "http://127.0.0.1:1",
            "zone": zone,
            "capacity": {"memory_mb": 65536, "disk_mb": 65536, "containers": 250},
            "rootfs_provider_list": [{"name": "preloaded", "properties": ["soak"]}, {"name": "docker"}],
            "rep_url": self._rep_url,
            "annotations": {},
        }
        return locket_pb2.Resource(
            key=cell_id, owner=owner, value=json.dumps(value), type="presence", type_code=locket_pb2.PRESENCE
        )
