"""A development cell's presence in Locket."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from bbs_protos import locket_pb2 as pb
from bbs_protos.locket_pb2_grpc import LocketServicer, add_LocketServicer_to_server

from bbs_server.dev.cell.presence import presence
from bbs_server.dev.cell.settings import Settings


class SlowLocket(LocketServicer):
    """Takes half a second for the first renewal, and notes how calls ended."""

    def __init__(self) -> None:
        self.calls = 0
        self.renewing = asyncio.Event()
        self.ends: list[str] = []

    async def Lock(self, request: pb.LockRequest, context: Any) -> pb.LockResponse:  # type: ignore[override]  # noqa: N802
        self.calls += 1
        if self.calls == 2:
            self.renewing.set()
            try:
                await asyncio.sleep(0.5)
            except asyncio.CancelledError:
                self.ends.append("given up")
                raise
        self.ends.append("set")
        return pb.LockResponse()

    async def Release(self, request: pb.ReleaseRequest, context: Any) -> pb.ReleaseResponse:  # type: ignore[override]  # noqa: N802
        self.ends.append("released")
        return pb.ReleaseResponse()


async def test_a_renewal_on_its_way_ends_before_the_release(certificates: Any) -> None:
    """A Locket carries out what its client has given up, and the presence would be there again."""
    locket, server = SlowLocket(), grpc.aio.server()
    add_LocketServicer_to_server(locket, server)
    key, cert = (file.read_bytes() for file in (certificates.server_key, certificates.server_cert))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)]))
    await server.start()
    settings = Settings(
        cell_id="cell-1",
        zone="z1",
        port=0,
        admin_port=0,
        folder="",
        bbs_url="",
        locket_address=f"127.0.0.1:{port}",
        ca=str(certificates.ca),
        cert=str(certificates.client_cert),
        key=str(certificates.client_key),
        memory_mb=0,
        disk_mb=0,
        containers=0,
        preloaded_rootfs=(),
        placement_tags=(),
        optional_placement_tags=(),
        presence_ttl_seconds=5,
        presence_interval_seconds=0.01,
        sync_interval_seconds=1,
        evacuation_timeout_seconds=1,
    )
    async with asyncio.timeout(30), presence(settings):
        await locket.renewing.wait()
    await server.stop(None)
    assert locket.ends == ["set", "set", "released"]
