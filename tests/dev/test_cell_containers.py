"""Containers of a development cell."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bbs_server.dev.cell.containers import Containers


async def test_a_container_that_did_nothing_leaves_no_log(tmp_path: Path) -> None:
    """A task that was offered to two cells runs on one, and that one's log is its log."""
    containers = Containers(tmp_path, lambda _: None)
    containers.reserve("elsewhere", {}, is_task=True)
    containers.prepare(containers.reserve("here", {}, is_task=True), {}, ())
    for guid in ("elsewhere", "here"):
        await containers.delete(guid)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["here.log"]


async def test_the_log_tells_how_a_container_ended(tmp_path: Path) -> None:
    containers = Containers(tmp_path, lambda _: None)
    container = containers.reserve("task", {}, is_task=True)
    containers.prepare(container, {}, ())
    containers.run(container, asyncio.sleep(60))
    await containers.delete("task")
    assert (tmp_path / "logs" / "task.log").read_text().endswith("[CELL] ended: cancelled\n")
