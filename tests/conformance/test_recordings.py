"""The recordings of the reference, replayed against the server as it is installed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from bbs_server.dev.ports import free_range
from bbs_server.dev.postgres import EmbeddedPostgres, installed

RECORDINGS = Path(__file__).parents[3] / "shared" / "conformance"
REPLAY = Path(__file__).parent / "replay_in_range.py"
SERVER = Path(sys.executable).parent / "bbs-server"

AT_ONCE = 3
"""Replays side by side: most of the time they wait for what must not happen."""

PORTS = 200
"""For each of them: more than its servers take one after the other."""


def shares(count: int) -> list[list[Path]]:
    """The files with the recordings, in shares of much the same number of scenarios."""
    parts: list[tuple[int, list[Path]]] = [(0, []) for _ in range(count)]
    sizes = {path: len(path.read_text().splitlines()) for path in RECORDINGS.glob("*.jsonl")}
    for path in sorted(sizes, key=lambda path: sizes[path], reverse=True):
        number = min(range(count), key=lambda number: parts[number][0])
        total, files = parts[number]
        parts[number] = (total + sizes[path], [*files, path])
    return [files for _, files in parts if files]


async def replay(files: list[Path], postgres: EmbeddedPostgres, folder: Path) -> tuple[int | None, str]:
    """Exit status and output of a replay; a database and a server for each scenario."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        REPLAY,
        RECORDINGS,
        str(free_range(PORTS)),
        str(PORTS),
        *files,
        f"--server-cmd={SERVER}",
        "--reset=recreate",
        "--quiet",
        f"--database-url={postgres.url().partition('/postgres?')[0]}",
        f"--work-dir={folder}",
        env={**os.environ, "PATH": f"{installed() / 'bin'}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(600):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, output.decode(errors="replace")


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings of the reference are not beside this repository")
async def test_every_recording_passes(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    folders = []
    for number, _ in enumerate(shares(AT_ONCE)):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
    results = await asyncio.gather(
        *(replay(files, postgres, folder) for files, folder in zip(shares(AT_ONCE), folders, strict=True))
    )
    for status, output in results:
        assert status == 0, output
        assert " passed, 0 failed" in output
