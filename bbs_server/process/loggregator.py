"""Metrics and application logs to the Loggregator agent, v2 ingress over mutual TLS (server.md section 18).

Sending never delays anything: envelopes wait in a bounded queue, a batch that cannot be delivered is
dropped, and an agent that is not there is tried again with the next batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
from bbs_protos import loggregator_pb2 as loggregator
from bbs_protos import loggregator_pb2_grpc

from bbs_server.process.config import LoggregatorConfig
from bbs_server.process.metrics import Kind, Sample
from bbs_server.tls.contexts import client_context

_AGENT_NAME = "metron"
"""The name that the agent's certificate must be valid for."""
_QUEUE_LIMIT = 10_000
_DEFAULTS = LoggregatorConfig()
_WRITE_LIMIT = 5.0
_CLOSE_LIMIT = 1.0


class Emitter(Protocol):
    """Where metrics go."""

    def emit(self, samples: Iterable[Sample]) -> None: ...

    def app_log(self, source_id: str, text: str) -> None: ...


class NoEmitter:
    """Stands in when there is no agent (spec/README.md deviation 7)."""

    def emit(self, samples: Iterable[Sample]) -> None: ...

    def app_log(self, source_id: str, text: str) -> None: ...

    async def run(self) -> None: ...


def credentials(config: LoggregatorConfig) -> grpc.ChannelCredentials:
    """What the channel is made with. Raises BadCertificates."""
    client_context(config.ca_path, config.cert_path, config.key_path)  # gRPC would accept anything and fail later
    ca, cert, key = (Path(path).read_bytes() for path in (config.ca_path, config.cert_path, config.key_path))
    return grpc.ssl_channel_credentials(ca, key, cert)


class Loggregator:
    """An agent's client. `run` sends until it is cancelled, and then what is still waiting."""

    def __init__(self, config: LoggregatorConfig, channel_credentials: grpc.ChannelCredentials) -> None:
        self._config = config
        self._credentials = channel_credentials
        self._waiting: deque[loggregator.Envelope] = deque(maxlen=_QUEUE_LIMIT)
        self._full = asyncio.Event()
        self._stream: Any = None
        self.dropped = 0
        """Envelopes in batches that could not be delivered."""

    def emit(self, samples: Iterable[Sample]) -> None:
        """Queue one envelope per sample."""
        now = time.time_ns()
        for sample in samples:
            self._put(self._metric(sample, now))

    def app_log(self, source_id: str, text: str) -> None:
        """Queue a line for the log of an application (server.md 19.1)."""
        tags = {"origin": self._config.job_origin, "source_type": "DIEGO-API", "source_id": source_id}
        log = loggregator.Log(payload=text.encode(errors="surrogateescape"), type=loggregator.Log.ERR)
        self._put(loggregator.Envelope(timestamp=time.time_ns(), source_id=source_id, tags=tags, log=log))

    async def run(self) -> None:
        """Send batches: when one is full, else at the flush interval."""
        options = (("grpc.ssl_target_name_override", _AGENT_NAME), ("grpc.enable_http_proxy", 0))
        async with grpc.aio.secure_channel(self._config.address, self._credentials, options) as channel:
            stub = loggregator_pb2_grpc.IngressStub(channel)
            flushing: asyncio.Task[None] | None = None
            try:
                while True:
                    # Not `wait_for`: it may swallow the cancellation that ends this loop.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._flush_interval):
                            await self._full.wait()
                    # A write that is cancelled takes its stream with it, and what waits could not be sent any more.
                    flushing = asyncio.create_task(self._flush(stub))
                    await asyncio.shield(flushing)
            finally:
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_CLOSE_LIMIT):
                        if flushing is not None:
                            await flushing
                        await self._finish(stub)

    def _put(self, envelope: loggregator.Envelope) -> None:
        self._waiting.append(envelope)
        if len(self._waiting) >= self._batch_size:
            self._full.set()

    @property
    def _flush_interval(self) -> float:
        """In s."""
        return (self._config.batch_flush_interval or _DEFAULTS.batch_flush_interval) / 1e9

    @property
    def _batch_size(self) -> int:
        return min(self._config.batch_max_size or _DEFAULTS.batch_max_size, _QUEUE_LIMIT)

    async def _flush(self, stub: Any) -> None:
        self._full.clear()
        while self._waiting:
            size = min(self._batch_size, len(self._waiting))
            batch = loggregator.EnvelopeBatch(batch=[self._waiting.popleft() for _ in range(size)])
            try:
                if self._stream is None or self._stream.done():
                    self._stream = stub.BatchSender()
                async with asyncio.timeout(_WRITE_LIMIT):
                    await self._stream.write(batch)
            except (grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
                self.dropped += size
                if self._stream is not None:
                    self._stream.cancel()
                self._stream = None

    async def _finish(self, stub: Any) -> None:
        """Send what waits and end the stream, so that the agent has got everything."""
        await self._flush(stub)
        if self._stream is not None:
            await self._stream.done_writing()
            await self._stream

    def _metric(self, sample: Sample, now: int) -> loggregator.Envelope:
        envelope = loggregator.Envelope(
            timestamp=now,
            source_id=self._config.source_id,
            instance_id=self._config.instance_id,
            tags={"origin": self._config.job_origin, **dict(sample.tags)},
        )
        if sample.kind is Kind.COUNTER:
            envelope.counter.name = sample.name
            envelope.counter.delta = int(sample.value)
        else:
            value = envelope.gauge.metrics[sample.name]
            value.unit = sample.unit
            value.value = float(sample.value)
        return envelope
