"""Connections to the database fall silent under load: the server makes new ones, and ends when it is told to."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from safety import Client, Load, Programs
from silent_proxy import Proxy

COMMIT_LIMIT = 15.0
"""s that a transaction has, nearly all of which passes before a silent connection is given up."""
SLACK = 10.0


@pytest.mark.slow
async def test_silence_under_load(postgres_url: str, tmp_path: Path, certificates: Any) -> None:
    proxy = Proxy(postgres_url)
    await proxy.start()
    with Programs(tmp_path, certificates, proxy.url) as programs:
        server = await programs.serving_behind_locket(postgres_url)
        async with Load(server, "p") as load:
            await load.goes_on(200)
            proxy.silence()
            await load.goes_on(1, limit=COMMIT_LIMIT + SLACK)
            await load.goes_on(200)
        assert server.alive
        async with Client(server) as client:
            assert load.problems(await client.listed()) == []
        async with Load(server, "q") as load:
            await load.goes_on(50)
            proxy.silence()
            server.signal(signal.SIGTERM)
            assert await server.ended(limit=COMMIT_LIMIT + 2 * SLACK) == 0
    await proxy.close()
