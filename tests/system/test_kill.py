"""A server that is killed at any moment has lost nothing that it acknowledged, and announced nothing that is not."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

from safety import Client, Load, Programs

ROUNDS = 10


async def test_kill_under_load(tmp_path: Path, certificates: Any, postgres_url: str) -> None:
    chance = random.Random(20260601)
    with Programs(tmp_path, certificates, postgres_url) as programs:
        server = programs.bbs()
        server.start()
        await server.serving()
        for number in range(ROUNDS):
            async with Load(server, f"k{number}") as load:
                await load.goes_on(chance.randrange(20, 300))
                # Not always at the moment of an acknowledgement.
                await asyncio.sleep(chance.random() * 0.01)
                server.kill()
                server.start()
                await server.serving()
                await load.goes_on(1)
            async with Client(server) as client:
                assert load.problems(await client.listed()) == []
