"""A process that waits for the lock has the state ready when it gets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import asyncpg
import pytest
from waiting import until_blocked

from bbs_server.store import standby as standby_module
from bbs_server.store.conninfo import parse
from bbs_server.store.opening import open_database
from bbs_server.store.sealing import Keys
from bbs_server.store.standby import Standby
from bbs_server.store.statistics import Statistics

KEYS = Keys("key1", {"key1": "passphrase one"})
INSERT = "INSERT INTO domains SELECT 'd' || n, n FROM generate_series($1::int, $2::int) n"
CUT_OFF = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


class Logged:
    """What was logged, and waiting for it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Mapping[str, Any]]] = []
        self._more = asyncio.Event()

    def __call__(self, level: str, action: str, data: Mapping[str, Any]) -> None:
        self.lines.append((action, data))
        self._more.set()

    @property
    def actions(self) -> list[str]:
        return [action for action, _ in self.lines]

    async def until(self, action: str, seen: int | None = None) -> Mapping[str, Any]:
        """The data of the next line with the action, or of the first one behind those already seen."""
        seen = len(self.lines) if seen is None else seen
        async with asyncio.timeout(20):
            while True:
                for found, data in self.lines[seen:]:
                    if found == action:
                        return data
                self._more.clear()
                await self._more.wait()


@pytest.fixture
def logged() -> Logged:
    return Logged()


@pytest.fixture
async def database(open_store: Any) -> Any:
    """Of the active server."""
    return (await open_store()).database


@pytest.fixture
async def standby(database: Any, logged: Logged) -> AsyncIterator[Standby]:
    one = Standby(database.settings, KEYS, Statistics(), logged)
    yield one
    await one.close()


async def test_only_what_changed_is_read_in_the_end(
    standby: Standby, logged: Logged, psql: asyncpg.Connection[Any]
) -> None:
    await psql.execute(INSERT, 1, 1000)
    standby.begin()
    await logged.until("standby-loaded")
    await psql.execute(INSERT, 1001, 1003)
    await psql.execute("DELETE FROM domains WHERE domain IN ('d1', 'd2')")
    await psql.execute("UPDATE domains SET expire_time = 7 WHERE domain = 'd3'")
    copy = await standby.end(psql)
    assert set(copy.state.domains.keys()) == {f"d{number}" for number in range(3, 1004)}
    assert [domain.expire_time for domain in copy.state.domains if domain.domain == "d3"] == [7]
    action, data = logged.lines[-1]
    assert (action, data["changed"], data["rows"]) == ("caught-up", 6, 1001)


async def test_changes_are_taken_over_while_it_waits(
    standby: Standby, logged: Logged, psql: asyncpg.Connection[Any]
) -> None:
    standby.begin(interval=0)
    await logged.until("standby-loaded")
    seen = len(logged.lines)
    await psql.execute(INSERT, 1, 5)  # it may be seen before we are told that it is done
    async with asyncio.timeout(20):
        while (await logged.until("standby-caught-up", seen))["changed"] != 5:
            seen += 1
    assert len((await standby.end(psql)).state.domains) == 5
    assert logged.lines[-1][1]["changed"] == 0


async def test_a_process_that_did_not_wait_loads(
    standby: Standby, logged: Logged, psql: asyncpg.Connection[Any]
) -> None:
    await psql.execute(INSERT, 1, 5)
    assert len((await standby.end(psql)).state.domains) == 5
    assert logged.actions == ["loaded"]


async def test_a_load_under_way_is_finished(standby: Standby, logged: Logged, psql: asyncpg.Connection[Any]) -> None:
    await psql.execute(INSERT, 1, 5000)
    standby.begin()
    await asyncio.sleep(0)  # it has begun
    assert len((await standby.end(psql)).state.domains) == 5000
    assert logged.actions == ["standby-loaded", "caught-up"]


@pytest.mark.parametrize("end", [True, False], ids=["end", "close"])
async def test_a_silent_connection_is_not_waited_for(
    database: Any, logged: Logged, psql: asyncpg.Connection[Any], proxy: Any, monkeypatch: pytest.MonkeyPatch, end: bool
) -> None:
    monkeypatch.setattr(standby_module, "_PATIENCE", 1.0)
    standby = Standby(parse(proxy.url), KEYS, Statistics(), logged)
    await psql.execute(INSERT, 1, 5)
    async with psql.transaction():
        await psql.execute("LOCK domains IN ACCESS EXCLUSIVE MODE")
        standby.begin(interval=0)
        await until_blocked(psql)
        proxy.silence()
    async with asyncio.timeout(30):
        if end:
            assert len((await standby.end(psql)).state.domains) == 5
            assert logged.actions[-1] == "loaded"
        await standby.close()


async def test_it_survives_a_database_that_goes(
    standby: Standby, logged: Logged, psql: asyncpg.Connection[Any]
) -> None:
    await psql.execute(INSERT, 1, 5000)
    standby.begin(interval=0)
    await logged.until("standby-loaded")
    async with asyncio.timeout(20):
        while "standby-failed" not in logged.actions:
            await psql.execute(CUT_OFF)
    await logged.until("standby-caught-up")
    assert len((await standby.end(psql)).state.domains) == 5000


async def test_another_database_under_the_same_name_is_loaded_anew(
    standby: Standby, logged: Logged, psql: asyncpg.Connection[Any], postgres_url: str, postgres: Any
) -> None:
    await psql.execute(INSERT, 1, 5)
    standby.begin()
    await logged.until("standby-loaded")
    name = await psql.fetchval("SELECT current_database()")
    boss = await asyncpg.connect(postgres.url())
    await boss.execute(f'CREATE DATABASE "{name}_kept" TEMPLATE template0')
    await boss.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await boss.execute(f'ALTER DATABASE "{name}_kept" RENAME TO "{name}"')
    await boss.close()
    restored = await open_database(postgres_url, active_key_label="key1", encryption_keys={"key1": "passphrase one"})
    await restored.raise_epoch()
    await restored.migrate()
    await restored.close()
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(INSERT, 3, 9)
    copy = await standby.end(connection)
    await connection.close()
    assert set(copy.state.domains.keys()) == {f"d{number}" for number in range(3, 10)}
    assert logged.lines[-1][0] == "loaded"


async def test_a_schema_that_is_not_current_is_left_alone(
    standby: Standby, logged: Logged, psql: asyncpg.Connection[Any]
) -> None:
    await psql.execute("UPDATE configurations SET value = '{\"CurrentVersion\":1764949919}' WHERE id = 'version'")
    standby.begin(interval=0)
    for _ in range(3):
        await another_look(psql)
    assert logged.lines == []
    await psql.execute("UPDATE configurations SET value = '{\"CurrentVersion\":1772581987}' WHERE id = 'version'")
    await logged.until("standby-loaded", seen=0)


async def another_look(psql: asyncpg.Connection[Any]) -> None:
    """Until the standby has connected once more."""
    backends = (
        "SELECT max(backend_start) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend'"
    )
    before = await psql.fetchval(backends)
    async with asyncio.timeout(20):
        while (await psql.fetchval(backends)) in (None, before):
            await asyncio.sleep(0.01)
