"""Beside its batches, too, a writer changes nothing once another one has raised the epoch (design rule 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from silent_proxy import Proxy
from waiting import until_blocked

from bbs_server.core.log import silent
from bbs_server.store.epoch import raise_epoch
from bbs_server.store.errors import Deposed
from bbs_server.store.migrations import CURRENT, VERSIONS, migrate, store_version
from bbs_server.store.opening import Database, open_database
from bbs_server.store.sealing import Keys

KEYS = Keys("key1", {"key1": "passphrase one"})
STORED = "SELECT value FROM configurations WHERE id = 'version'"


@pytest.fixture
async def old(postgres_url: str) -> AsyncIterator[Database]:
    """A database opened by a writer that another one is going to follow."""
    database = await open_database(postgres_url, active_key_label="key1", encryption_keys={"key1": "passphrase one"})
    yield database
    await database.close()


@pytest.fixture
async def watcher(postgres_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """For looking on while `psql` is in a transaction."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


# Taking over


async def test_a_connection_that_died_silently_while_waiting_for_the_lock(
    proxy: Proxy, psql: asyncpg.Connection[Any]
) -> None:
    database = await open_database(proxy.url, active_key_label="key1", encryption_keys={"key1": "passphrase one"})
    proxy.silence()
    async with asyncio.timeout(30):
        await database.raise_epoch()
        await database.migrate()
    assert await psql.fetchval(STORED) == f'{{"CurrentVersion":{CURRENT}}}'
    await database.close()


# Migrations


@pytest.mark.parametrize("raises", [True, False], ids=["a successor of ours", "a Go BBS"])
async def test_a_migration_that_stood_still_drops_nothing(
    raises: bool, old: Database, psql: asyncpg.Connection[Any], watcher: asyncpg.Connection[Any]
) -> None:
    """It has read the version, and stands still before its first change until another one has done all of them."""
    await raise_epoch(psql, "us")
    await migrate(psql, KEYS, "us", silent)
    await psql.execute("DELETE FROM configurations WHERE id = 'version'")
    await old.raise_epoch()
    async with psql.transaction():
        # It looks for rows in one table after the other before it takes the database for a new one.
        await psql.execute("LOCK TABLE tasks")
        migration = asyncio.create_task(old.migrate())
        await until_blocked(watcher)
        if raises:
            await raise_epoch(psql, "successor")
        await store_version(psql, CURRENT)
        await psql.execute("INSERT INTO domains VALUES ('acknowledged', 1)")
    with pytest.raises(Deposed):
        await migration
    assert await psql.fetchval("SELECT domain FROM domains") == "acknowledged"
    assert await psql.fetchval(STORED) == f'{{"CurrentVersion":{CURRENT}}}'


async def test_nobody_migrates_with_an_epoch_of_the_past(old: Database, psql: asyncpg.Connection[Any]) -> None:
    await old.raise_epoch()
    await old.migrate()
    await store_version(psql, VERSIONS[-3])
    await raise_epoch(psql, "successor")
    with pytest.raises(Deposed):
        await old.migrate()
    assert await psql.fetchval(STORED) == f'{{"CurrentVersion":{VERSIONS[-3]}}}'


async def test_a_successor_waits_for_the_version_under_way(
    old: Database, psql: asyncpg.Connection[Any], watcher: asyncpg.Connection[Any], postgres_url: str
) -> None:
    await old.raise_epoch()
    await old.migrate()
    await store_version(psql, VERSIONS[-2])
    successor = await asyncpg.connect(postgres_url)
    async with psql.transaction():
        await psql.execute("LOCK TABLE desired_lrps")
        migration = asyncio.create_task(old.migrate())
        await until_blocked(watcher)
        raised = asyncio.create_task(raise_epoch(successor, "successor"))
        await until_blocked(watcher, 2)
        assert not raised.done()
    await migration
    assert (await raised).endswith(" successor")
    assert await successor.fetchval(STORED) == f'{{"CurrentVersion":{CURRENT}}}'
    await successor.close()
