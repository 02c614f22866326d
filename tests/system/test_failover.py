"""The standby takes over from a killed server within the life of its lock plus a second, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
from safety import PATIENCE, Client, Front, Load, Programs, desire_task

from bbs_server.client import Client as StockClient
from bbs_server.client import Target

TTL, RENEWAL = 9, 7
"""s that the lock lives, and between two renewals. One that takes as long as the latter ends the process."""

AGE = 5
"""s since the last renewal when the server is killed. So much of the time for taking over is left to a busy machine."""

MODIFIED = "SELECT modified_index FROM locks WHERE type = 'lock'"
"""How many times the lock has been renewed."""

STANDBY_RETRY = 60
"""`lock_retry_interval` of the standby in s, which it does not wait for."""


async def test_failover_under_load(tmp_path: Path, certificates: Any, postgres_url: str) -> None:
    with Programs(tmp_path, certificates, postgres_url) as programs:
        locket = await programs.started_locket()
        active, standby = (
            programs.bbs(**programs.behind(locket, f"{TTL}s", f"{interval}s")) for interval in (RENEWAL, STANDBY_RETRY)
        )
        active.start()
        await active.serving()
        standby.start()
        await standby.until_logged(".store.standby-loaded")
        async with Front(active, standby) as front:
            identity = (certificates.ca, certificates.client_cert, certificates.client_key)
            async with StockClient(Target(f"https://{front.address}", *identity)) as follower:
                seen: asyncio.Queue[str | None] = asyncio.Queue()
                following = asyncio.create_task(follow(follower, seen))
                async with asyncio.timeout(PATIENCE):
                    assert await seen.get() is None
                async with Load(front, "load") as load:
                    await load.goes_on(200)
                    await renewed(postgres_url)
                    await asyncio.sleep(AGE)
                    active.kill()
                    assert await standby.serving() <= TTL + 1
                    assert '"message":".store.caught-up"' in standby.output
                    await load.watch()
                    await load.goes_on(200)
                async with Client(standby) as client:
                    assert load.problems(await client.listed()) == []
                    # The follower has subscribed again by itself, or does so in a moment.
                    async with asyncio.timeout(PATIENCE):
                        while await seen.get() is not None:
                            pass
                    await client.must("/v1/tasks/desire.r2", desire_task("the-last"))
                    async with asyncio.timeout(PATIENCE):
                        while await seen.get() != "the-last":
                            pass
                following.cancel()
                await asyncio.wait([following])


async def renewed(url: str) -> None:
    """Until the lock has been renewed once more."""
    psql = await asyncpg.connect(url)
    before = await psql.fetchval(MODIFIED)
    async with asyncio.timeout(PATIENCE):
        while await psql.fetchval(MODIFIED) == before:
            await asyncio.sleep(0.01)
    await psql.close()


async def follow(client: StockClient, seen: asyncio.Queue[str | None]) -> None:
    """The guids of new tasks; None for each subscription."""
    async for event in client.follow("/v1/events/tasks.r1"):
        if event is None:
            seen.put_nowait(None)
        elif event.name == "task_created":
            seen.put_nowait(event.message.task.task_guid)  # type: ignore[attr-defined]
