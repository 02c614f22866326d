"""PostgreSQL goes away under load and comes back: the server stays, recovers by itself, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from safety import Client, Load, Programs, restart_postgres

from bbs_server.dev.postgres import EmbeddedPostgres

RECOVERY = 12.0
"""s from the moment when the database takes connections to the first success, on a busy machine, too.

Less than it takes until a connection that has fallen silent is given up: what is lost must be noticed at once.
"""

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A database server that may be stopped, and that syncs."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("disturbed")) as server:
        yield server


@pytest.fixture
async def database(disturbed: EmbeddedPostgres) -> str:
    name = f"bbs_{next(_numbers)}"
    connection = await asyncpg.connect(disturbed.url())
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    return disturbed.url(name)


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL], ids=["immediate shutdown", "killed"])
async def test_restart_under_load(
    how: signal.Signals,
    disturbed: EmbeddedPostgres,
    database: str,
    postgres_url: str,
    tmp_path: Path,
    certificates: Any,
) -> None:
    with Programs(tmp_path, certificates, database) as programs:
        server = await programs.serving_behind_locket(postgres_url)
        async with Load(server, "p") as load:
            await load.goes_on(200)
            await asyncio.to_thread(disturbed.stop, how)
            await load.fails(40)
            await asyncio.to_thread(restart_postgres, disturbed)
            back = time.monotonic()
            await load.goes_on(1, limit=RECOVERY)
            await load.goes_on(200)
        assert server.alive
        assert load.unbroken
        assert [trouble for _, trouble in load.failed if "no answer" in trouble] == []
        assert [trouble for at, trouble in load.failed if at > back + RECOVERY] == []
        assert load.slowest < RECOVERY
        async with Client(server) as client:
            found = await client.listed()
        assert load.problems(found) == []
        server.kill()
        server.start()
        await server.serving()
        async with Client(server) as client:
            assert await client.listed() == found


async def test_restart_without_locket(
    disturbed: EmbeddedPostgres, database: str, tmp_path: Path, certificates: Any
) -> None:
    """The advisory lock goes with the database, and is taken again."""
    with Programs(tmp_path, certificates, database) as programs:
        server = programs.bbs()
        server.start()
        await server.serving()
        async with Load(server, "p") as load:
            await load.goes_on(50)
            await asyncio.to_thread(disturbed.stop, signal.SIGINT)
            await load.fails(10)
            await asyncio.to_thread(restart_postgres, disturbed)
            await load.goes_on(50, limit=2 * RECOVERY)
        assert server.alive
        async with Client(server) as client:
            assert load.problems(await client.listed()) == []
        psql = await asyncpg.connect(database)
        async with asyncio.timeout(RECOVERY):
            while not await psql.fetchval("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"):
                await asyncio.sleep(0.01)
        await psql.close()
        assert server.alive
