"""The listener's TLS, and bbs-locket as a process (locket.md 6.1 and section 9)."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from bbs_protos import locket_pb2 as pb
from bbs_protos.locket_pb2_grpc import LocketStub

from bbs_server.dev.ports import free_port
from bbs_server.locket.server import Identity, serve
from bbs_server.process.plain_http import ListenFailed
from bbs_server.tls.contexts import BadCertificates


def credentials(ca: Path, key: Path | None, cert: Path | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(*(file.read_bytes() if file else None for file in (ca, key, cert)))


@pytest.mark.parametrize("who", ["nobody", "stranger"])
async def test_only_clients_of_the_authority_are_served(served: Any, certificates: Any, who: str) -> None:
    files = (None, None) if who == "nobody" else (certificates.stranger_key, certificates.stranger_cert)
    async with grpc.aio.secure_channel(served.server.address, credentials(certificates.ca, *files)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await LocketStub(channel).FetchAll(pb.FetchAllRequest(type_code=pb.LOCK), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_unusable_files_and_addresses(postgres_url: str, identity: Identity, certificates: Any) -> None:
    strangers_key = Identity(identity.ca_file, identity.cert_file, certificates.stranger_key)
    with pytest.raises(BadCertificates):
        async with serve(postgres_url, strangers_key):
            pass
    async with serve(postgres_url, identity) as server:
        with pytest.raises(ListenFailed) as refusal:
            async with serve(postgres_url, identity, server.address):
                pass
        assert str(refusal.value) == f"listen tcp {server.address}: bind: address already in use"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("192.0.2.1:8891", "listen tcp 192.0.2.1:8891: bind: cannot assign requested address"),
        ("127.0.0.1:99999", "listen tcp: address 99999: invalid port"),
        ("127.0.0.1:no", "listen tcp: lookup tcp/no: unknown port"),
        ("nowhere", "listen tcp: address nowhere: missing port in address"),
        ("nowhere.invalid:8891", "listen tcp: lookup nowhere.invalid: no such host"),
    ],
)
async def test_why_an_address_cannot_be_used(postgres_url: str, identity: Identity, address: str, text: str) -> None:
    with pytest.raises(ListenFailed) as refusal:
        async with serve(postgres_url, identity, address):
            pass
    assert str(refusal.value) == text


class Program:
    """A running bbs-locket and the lines of its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self, message: str) -> dict[str, Any]:
        """The next line with that message."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            async for text in self.process.stdout:
                line: dict[str, Any] = json.loads(text)
                if line["message"] == message:
                    return line
        raise AssertionError(f"ended without {message}")


async def run(config: dict[str, Any], folder: Path) -> Program:
    path = folder / "locket.json"
    path.write_text(json.dumps(config))
    command = (sys.executable, "-m", "bbs_server.locket.main", f"-config={path}")
    pipe = asyncio.subprocess.PIPE
    return Program(await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe))


@pytest.fixture
def config(postgres_url: str, identity: Identity) -> dict[str, Any]:
    return {
        "listen_address": f"127.0.0.1:{free_port()}",
        "ca_file": str(identity.ca_file),
        "cert_file": str(identity.cert_file),
        "key_file": str(identity.key_file),
        "database_driver": "postgres",
        "database_connection_string": postgres_url,
        "report_interval": "1s",
        "enable_db_health_check": True,
        "health_check_interval": "100ms",
        "log_level": "debug",
    }


async def test_the_process_serves_until_it_is_told_to_end(
    config: dict[str, Any], certificates: Any, database: Any, tmp_path: Path
) -> None:
    program = await run(config, tmp_path)
    await program.line("locket.started")
    channel_credentials = credentials(certificates.ca, certificates.client_key, certificates.client_cert)
    async with grpc.aio.secure_channel(config["listen_address"], channel_credentials) as channel:
        resource = pb.Resource(key="k", owner="o", type_code=pb.LOCK)
        await LocketStub(channel).Lock(pb.LockRequest(resource=resource, ttl_in_seconds=60), timeout=10)
    await program.line("locket.db-health-check-runner.health-check-succeeded")
    program.process.send_signal(signal.SIGTERM)
    await program.line("locket.exited")
    assert await asyncio.wait_for(program.process.wait(), 10) == 0
    assert await database.fetchval("SELECT owner FROM locks") == "o"
    assert await database.fetchval("SELECT count(*) FROM locket_health_check") == 1


async def test_a_missing_table_ends_the_process_without_an_error(
    config: dict[str, Any], certificates: Any, database: Any, tmp_path: Path
) -> None:
    program = await run(config, tmp_path)
    await program.line("locket.started")
    await database.execute("DROP TABLE locks")
    channel_credentials = credentials(certificates.ca, certificates.client_key, certificates.client_cert)
    async with grpc.aio.secure_channel(config["listen_address"], channel_credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="sql-unrecoverable"):
            await LocketStub(channel).Fetch(pb.FetchRequest(key="k"), timeout=10)
    assert await asyncio.wait_for(program.process.wait(), 10) == 0


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"database_driver": "mysql"}, 2, "mysql"),
        ({"database_connection_string": "garbage"}, 2, "failed to parse"),
        ({"database_connection_string": "postgres://127.0.0.1:1/x"}, 2, "connection refused"),
        ({"cert_file": "/nowhere"}, 2, "failed to load keypair"),
        ({"report_interval": "0s"}, 2, "non-positive interval"),
        ({"log_level": "loud"}, 2, "unknown log level: loud"),
    ],
)
async def test_a_start_that_fails(config: dict[str, Any], changes: Any, code: int, text: str, tmp_path: Path) -> None:
    program = await run({**config, **changes}, tmp_path)
    _, errors = await asyncio.wait_for(program.process.communicate(), 30)
    assert text in errors.decode()
    assert program.process.returncode == code


async def test_an_address_in_use_ends_the_process(config: dict[str, Any], served: Any, tmp_path: Path) -> None:
    program = await run({**config, "listen_address": served.server.address}, tmp_path)
    line = await program.line("locket.exited-with-failure")
    assert "bind: address already in use" in line["data"]["error"]
    assert await asyncio.wait_for(program.process.wait(), 10) == 1
