"""A database opened as the process opens it, and a second connection for what operators do with psql."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from silent_proxy import Proxy

from bbs_server.core.context import Settings
from bbs_server.core.errors import Error
from bbs_server.core.outcome import Outcome
from bbs_server.store.opening import Database, open_database
from bbs_server.store.writer import Writer

PASSPHRASES = {"key1": "passphrase one", "k2": "", "clé-3": "pässwörd"}


@dataclass
class Opened:
    """A writer and everything it told its surroundings."""

    database: Database
    writer: Writer
    dispatched: list[Outcome] = field(default_factory=list)
    deposed: list[str] = field(default_factory=list)
    unrecoverable: list[str] = field(default_factory=list)
    logged: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    psql_turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """For tests that use the `psql` connection from several tasks."""
    follow_up: Callable[[Outcome], Awaitable[Error | None] | None] = lambda outcome: None

    async def close(self) -> None:
        await self.writer.close()
        await self.database.close()


Open = Callable[..., Awaitable[Opened]]


async def open_writer(url: str, label: str = "key1", passphrases: Mapping[str, str] = PASSPHRASES) -> Opened:
    logged: list[tuple[str, str, Mapping[str, Any]]] = []
    database = await open_database(
        url,
        active_key_label=label,
        encryption_keys=passphrases,
        log=lambda level, action, data: logged.append((level, action, data)),
    )
    await database.raise_epoch()
    await database.migrate()
    await database.check_key_label()
    opened: Opened

    def dispatch(outcome: Outcome) -> Awaitable[Error | None] | None:
        opened.dispatched.append(outcome)
        return opened.follow_up(outcome)

    deposed: list[str] = []
    unrecoverable: list[str] = []
    writer = await database.become_writer(
        dispatch=dispatch, settings=Settings(), on_deposed=deposed.append, on_unrecoverable=unrecoverable.append
    )
    opened = Opened(database, writer, deposed=deposed, unrecoverable=unrecoverable, logged=logged)
    return opened


@pytest.fixture
async def open_at() -> AsyncIterator[Open]:
    """Opens writers on any database, with `open_writer`'s settings, and closes them at the end."""
    opened: list[Opened] = []

    async def open_one(url: str, **settings: Any) -> Opened:
        opened.append(await open_writer(url, **settings))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


@pytest.fixture
async def open_store(open_at: Open, postgres_url: str) -> Open:
    """Opens writers on the test's own database."""
    return functools.partial(open_at, postgres_url)


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """Between a server and the test's own database. The connections in `psql` do not pass it."""
    one = Proxy(postgres_url)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def psql(postgres_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
def once() -> dict[str, Any]:
    """What the examples of one property share."""
    return {}
