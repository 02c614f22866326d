"""The real parts that tests run against: one PostgreSQL per session, a database per test, TLS certificates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import trustme
from hypothesis import HealthCheck, settings

from bbs_server.dev.postgres import EmbeddedPostgres

# Examples have no limit by the clock: on a busy machine any of them may be held up for longer than usual, which counts
# as a failure, whatever is tested.
settings.register_profile("unhurried", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

NAMES = ("localhost", "127.0.0.1", "cell.service.cf.internal", "*.cell.service.cf.internal")


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files for loopback: ours, and a stranger's whose authority nobody trusts."""

    folder: Path
    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    stranger_ca: Path
    stranger_cert: Path
    stranger_key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ours, theirs = trustme.CA(), trustme.CA()
    for name, authority in (("ca", ours), ("stranger_ca", theirs)):
        authority.cert_pem.write_to_path(str(folder / f"{name}.crt"))
    for name, authority in (("server", ours), ("client", ours), ("stranger", theirs)):
        leaf = authority.issue_cert(*NAMES, common_name=name)
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
    return Certificates(
        folder,
        folder / "ca.crt",
        folder / "server.crt",
        folder / "server.key",
        folder / "client.crt",
        folder / "client.key",
        folder / "stranger_ca.crt",
        folder / "stranger.crt",
        folder / "stranger.key",
    )


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The session's database server. Its data need not survive the machine, so it does not sync."""
    settings = {"fsync": "off", "max_connections": "200"}
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), settings=settings) as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture
async def postgres_url(postgres: EmbeddedPostgres) -> str:
    """An empty database of the test's own, as a connection string."""
    name = f"bbs_{next(_numbers)}"
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    return postgres.url(name)
