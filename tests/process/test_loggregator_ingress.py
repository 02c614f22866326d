"""Metrics on the wire: a real ingress server with mutual TLS (server.md 18)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import trustme
from bbs_protos import loggregator_pb2 as loggregator
from bbs_protos import loggregator_pb2_grpc
from bbs_protos import models_pb2 as models

from bbs_server.dev.ports import free_port
from bbs_server.process.config import LoggregatorConfig
from bbs_server.process.loggregator import Loggregator, credentials
from bbs_server.process.metrics import Kind, Sample
from bbs_server.tls.contexts import BadCertificates


class Agent(loggregator_pb2_grpc.IngressServicer):
    """Keeps what it gets, while it `reads`."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[loggregator.EnvelopeBatch] = asyncio.Queue()
        self.begun, self.reads = asyncio.Event(), asyncio.Event()
        self.reads.set()

    async def BatchSender(self, batches: AsyncIterator[loggregator.EnvelopeBatch], context: Any) -> Any:  # noqa: N802
        self.begun.set()
        await self.reads.wait()
        async for batch in batches:
            self.batches.put_nowait(batch)
        return loggregator.BatchSenderResponse()

    async def envelopes(self, number: int) -> list[loggregator.Envelope]:
        taken: list[loggregator.Envelope] = []
        async with asyncio.timeout(10):
            while len(taken) < number:
                taken += (await self.batches.get()).batch
        return taken


@pytest.fixture(scope="session")
def agent_certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's certificate is for the name metron and nothing else."""
    folder, authority = tmp_path_factory.mktemp("agent"), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for name in ("metron", "client"):
        leaf = authority.issue_cert(name)
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
    return folder


@asynccontextmanager
async def serving(folder: Path, port: int = 0) -> AsyncIterator[tuple[Agent, int]]:
    agent, server = Agent(), grpc.aio.server()
    loggregator_pb2_grpc.add_IngressServicer_to_server(agent, server)
    ca, cert, key = ((folder / name).read_bytes() for name in ("ca.crt", "metron.crt", "metron.key"))
    port = server.add_secure_port(
        f"127.0.0.1:{port or free_port()}", grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
    )
    await server.start()
    try:
        yield agent, port
    finally:
        await server.stop(None)


def config(folder: Path, port: int, **more: Any) -> LoggregatorConfig:
    return LoggregatorConfig(
        api_port=port,
        ca_path=str(folder / "ca.crt"),
        cert_path=str(folder / "client.crt"),
        key_path=str(folder / "client.key"),
        job_origin="the-origin",
        source_id="bbs",
        instance_id="7",
        batch_flush_interval=10_000_000,
        **more,
    )


async def test_envelopes_are_what_the_reference_sends(agent_certificates: Path) -> None:
    async with serving(agent_certificates) as (agent, port):
        settings = config(agent_certificates, port)
        client = Loggregator(settings, credentials(settings))
        client.emit([Sample("Gauge", Kind.GAUGE, 2.5, "nanos", (("cell-id", "c"),)), Sample("Count", Kind.COUNTER, 3)])
        client.app_log("a-b-c-d-e", "text\udcff")
        running = asyncio.create_task(client.run())
        gauge, counter, log = await agent.envelopes(3)
        running.cancel()
        assert gauge.timestamp > 10**18
        assert (gauge.source_id, gauge.instance_id) == ("bbs", "7")
        assert dict(gauge.tags) == {"origin": "the-origin", "cell-id": "c"}
        assert {name: (g.unit, g.value) for name, g in gauge.gauge.metrics.items()} == {"Gauge": ("nanos", 2.5)}
        assert (counter.counter.name, counter.counter.delta, counter.counter.total) == ("Count", 3, 0)
        assert (log.source_id, log.instance_id, log.log.payload) == ("a-b-c-d-e", "", b"text\xff")
        assert log.log.type == loggregator.Log.ERR
        assert dict(log.tags) == {"origin": "the-origin", "source_type": "DIEGO-API", "source_id": "a-b-c-d-e"}


async def test_batches_are_bounded(agent_certificates: Path) -> None:
    async with serving(agent_certificates) as (agent, port):
        settings = config(agent_certificates, port, batch_max_size=3)
        client = Loggregator(settings, credentials(settings))
        client.emit([Sample(str(n), Kind.COUNTER, n) for n in range(7)])
        running = asyncio.create_task(client.run())
        sizes = [len((await asyncio.wait_for(agent.batches.get(), 10)).batch) for _ in range(3)]
        running.cancel()
        assert sizes == [3, 3, 1]


async def test_zeros_mean_the_defaults(agent_certificates: Path) -> None:
    """A pause of 0 would keep a core busy, a batch of 0 could hold nothing."""
    async with serving(agent_certificates) as (agent, port):
        settings = replace(config(agent_certificates, port), batch_max_size=0, batch_flush_interval=0)
        client = Loggregator(settings, credentials(settings))
        client.emit([Sample(str(n), Kind.COUNTER, n) for n in range(150)])
        begun = time.process_time()
        running = asyncio.create_task(client.run())
        sizes = [len((await asyncio.wait_for(agent.batches.get(), 10)).batch) for _ in range(2)]
        await asyncio.wait([running], timeout=1)
        assert time.process_time() - begun < 0.5
        running.cancel()
        assert sizes == [100, 50]


async def test_what_waits_is_sent_at_the_end(agent_certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bbs_server.process.loggregator._CLOSE_LIMIT", 10)
    async with serving(agent_certificates) as (agent, port):
        settings = config(agent_certificates, port)
        client = Loggregator(settings, credentials(settings))
        running = asyncio.create_task(client.run())
        client.emit([Sample("first", Kind.GAUGE, 1)])
        await agent.envelopes(1)
        client.emit([Sample("last", Kind.GAUGE, 1)])
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert [e for e in await agent.envelopes(1) if "last" in e.gauge.metrics]


async def test_a_batch_on_its_way_is_sent_at_the_end_and_so_is_what_waits_behind_it(
    agent_certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bbs_server.process.loggregator._CLOSE_LIMIT", 10)
    texts = ["x" * (1 << 20)] * 8  # more than what is on its way to an agent that does not read
    async with serving(agent_certificates) as (agent, port):
        settings = config(agent_certificates, port, batch_max_size=1)
        client = Loggregator(settings, credentials(settings))
        agent.reads.clear()
        for number, text in enumerate(texts):
            client.app_log(str(number), text)
        running = asyncio.create_task(client.run())
        async with asyncio.timeout(10):
            await agent.begun.wait()
        running.cancel()
        await asyncio.sleep(0)
        agent.reads.set()
        assert [envelope.source_id for envelope in await agent.envelopes(8)] == list("01234567")
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_an_absent_agent_costs_only_the_envelopes(agent_certificates: Path) -> None:
    async with serving(agent_certificates) as (_, port):
        settings = config(agent_certificates, port)
    client = Loggregator(settings, credentials(settings))
    running = asyncio.create_task(client.run())
    async with asyncio.timeout(20):
        while not client.dropped:
            client.emit([Sample("lost", Kind.GAUGE, 1)])
            await asyncio.sleep(0.01)
        assert not running.done()
        async with serving(agent_certificates, port) as (agent, _):
            while agent.batches.empty():
                client.emit([Sample("found", Kind.GAUGE, 1)])
                await asyncio.sleep(0.01)
            running.cancel()
            assert agent.batches.get_nowait().batch


async def test_the_program_sends_what_the_reference_sends(agent_certificates: Path, servers: Any) -> None:
    guid = "0-1-2-3-4-5"
    async with serving(agent_certificates) as (agent, port):
        program = await servers(
            report_interval="100ms",
            advanced_metrics={
                "enabled": True,
                "route_config": {"request_count": ["Ping"], "request_latency": ["Ping"]},
            },
            loggregator={
                "loggregator_api_port": port,
                "loggregator_ca_path": str(agent_certificates / "ca.crt"),
                "loggregator_cert_path": str(agent_certificates / "client.crt"),
                "loggregator_key_path": str(agent_certificates / "client.key"),
                "loggregator_source_id": "bbs",
            },
        )
        await program.logged("bbs.started")
        async with program.client() as client:
            await client.post("/v1/ping")
            broken = models.DesireLRPRequest(desired_lrp=models.DesiredLRP(process_guid=guid))
            await client.post("/v1/desired_lrp/desire.r2", content=broken.SerializeToString())
        gauges: set[str] = set()
        counters: dict[str, int] = {}
        logs: list[loggregator.Envelope] = []
        async with asyncio.timeout(20):
            # A report may have come between the two requests.
            while not (logs and counters.get("RequestCount", 0) >= 2 and gauges >= EVERY_REPORT):
                for envelope in (await agent.batches.get()).batch:
                    gauges |= set(envelope.gauge.metrics)
                    if envelope.HasField("counter"):
                        name = envelope.counter.name
                        counters[name] = counters.get(name, 0) + envelope.counter.delta
                    logs += [envelope] if envelope.HasField("log") else []
        assert await program.stop() == 0
        # What is left is sent before the end.
        while not agent.batches.empty():
            for envelope in agent.batches.get_nowait().batch:
                if envelope.HasField("counter"):
                    counters[envelope.counter.name] = counters.get(envelope.counter.name, 0) + envelope.counter.delta
        assert counters == {"RequestCount": 2, "RequestCount.Ping": 1}
        text = logs[0].log.payload.decode()
        assert text.startswith("Error parsing request for app with guid 0-1-2-3-4, InvalidRequest, Invalid field: ")
        assert logs[0].source_id == "0-1-2-3-4"


EVERY_REPORT = {
    "LockHeld",
    "OpenFileDescriptors",
    "BBSMasterElected",
    "MigrationDuration",
    "EncryptionDuration",
    "RequestLatency",
    "RequestLatency.Ping",
}


def test_unreadable_certificates_are_refused(agent_certificates: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCertificates, match="open /no: no such file"):
        credentials(LoggregatorConfig(ca_path=str(agent_certificates / "ca.crt"), cert_path="/no", key_path="/no"))
    (tmp_path / "empty").touch()
    with pytest.raises(BadCertificates, match="failed to load keypair"):
        credentials(LoggregatorConfig(cert_path=str(tmp_path / "empty"), key_path="/no", ca_path="/no"))
