"""Metrics and configuration keys of Locket (locket.md section 9)."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from bbs_protos import locket_pb2 as pb
from bbs_protos.locket_pb2_grpc import LocketStub

from bbs_server.locket.config import LocketConfig
from bbs_server.locket.figures import Figures, expiry_samples, interval_samples
from bbs_server.locket.locks import Locks
from bbs_server.locket.options import Options
from bbs_server.locket.server import Identity, serve_locks
from bbs_server.process.config_file import documented, parse_config
from bbs_server.store.conninfo import parse


def credentials(certificates: Any) -> grpc.ChannelCredentials:
    files = (certificates.ca, certificates.client_key, certificates.client_cert)
    return grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))


async def test_requests_are_counted(postgres_url: str, identity: Identity, certificates: Any) -> None:
    locks, figures = await Locks.open(parse(postgres_url)), Figures()
    once = Options(scan_interval=3600)
    async with (
        serve_locks(locks, identity, "127.0.0.1:0", figures, once) as server,
        grpc.aio.secure_channel(server.address, credentials(certificates)) as channel,
    ):
        stub: Any = LocketStub(channel)
        for key, code in (("a", pb.LOCK), ("b", pb.PRESENCE), ("c", pb.PRESENCE)):
            resource = pb.Resource(key=key, owner="o", type_code=code)
            await stub.Lock(pb.LockRequest(resource=resource, ttl_in_seconds=60), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Fetch(pb.FetchRequest(key="nothing"), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Release(pb.ReleaseRequest(resource=pb.Resource(key="a", owner="another")), timeout=10)
        counts = await locks.count("lock"), await locks.count("presence")
        await asyncio.sleep(0)  # the driver tells of statements a moment later
        samples = list(interval_samples(figures, locks.statistics, *counts))
    await locks.close()
    values = {(sample.name, dict(sample.tags).get("request-type", "")): sample.value for sample in samples}
    assert values[("ActiveLocks", "")] == 1
    assert values[("ActivePresences", "")] == 2
    assert values[("RequestsStarted", "Lock")] == values[("RequestsSucceeded", "Lock")] == 3
    assert values[("RequestsFailed", "Fetch")] == 1
    assert values[("RequestsInFlight", "Lock")] == values[("RequestsCancelled", "Lock")] == 0
    assert values[("RequestLatencyMax", "Lock")] > 0
    assert values[("DBOpenConnections", "")] >= 1
    # The table; begin, statements and end of: the first scan, three locks, a fetch, a refused release and two counts.
    # That another one has the lock is no failure of the database.
    assert values[("DBQueriesTotal", "")] == 1 + 3 + 3 * 4 + 3 + 3 + 2 * 3
    assert values[("DBQueriesSucceeded", "")] == values[("DBQueriesTotal", "")]
    assert values[("DBQueriesFailed", "")] == 0


def test_expired_locks_are_counted_by_type() -> None:
    figures = Figures()
    for type_ in ("lock", "presence", "presence", "unheard of"):
        figures.count_expired(type_)
    assert [(sample.name, sample.value) for sample in expiry_samples(figures)] == [
        ("LocksExpired", 1),
        ("PresenceExpired", 2),
    ]


def test_the_reference_configuration_is_understood() -> None:
    text = b"""{"listen_address": "0.0.0.0:8891", "db_operation_timeout": "3s", "report_interval": "1m",
        "max_database_connection_lifetime": "1h", "loggregator": {"loggregator_api_port": 3458}, "new": 1}"""
    config, unknown = parse_config(text, LocketConfig)
    assert (config.listen_address, config.db_operation_timeout, config.report_interval) == (
        "0.0.0.0:8891",
        3_000_000_000,
        60_000_000_000,
    )
    assert config.loggregator.api_port == 3458
    assert unknown == ("new",)
    assert {"ca_file", "cert_file", "key_file", "debug_address"} <= {row.name for row in documented(LocketConfig)}
