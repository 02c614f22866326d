"""The embedded database server of the laptop stack."""

from __future__ import annotations

import signal
from pathlib import Path

import asyncpg
import pytest

from bbs_server.dev.postgres import EmbeddedPostgres, PostgresFailed, remove


async def _version(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SHOW server_version_num"))
    finally:
        await connection.close()


async def test_a_second_start_finds_the_data_of_the_first(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path / "pg")
    first.start()
    connection = await asyncpg.connect(first.url())
    await connection.execute("CREATE TABLE kept (x int)")
    await connection.close()
    first.stop(signal.SIGQUIT)
    assert first.pid is None

    with EmbeddedPostgres(tmp_path / "pg") as second:
        assert await _version(second.url()) >= 150000
        connection = await asyncpg.connect(second.url())
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
        await connection.close()
    assert not (tmp_path / "pg").exists()
    assert not second.data.exists()


def test_a_taken_port_is_an_error_that_says_so(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    rival = EmbeddedPostgres(tmp_path / "pg", port=postgres.port)
    with pytest.raises(PostgresFailed, match="Address already in use"):
        rival.start()
    remove(tmp_path / "pg")
    assert not rival.data.exists()
