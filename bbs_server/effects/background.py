"""Work that nobody waits for: kept alive, bounded per lane, ended at shutdown."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from bbs_server.core.log import Log, silent

STARTS_PER_TURN = 50

Work = Callable[[], Awaitable[object]]


class Background:
    """Tasks that live until they are done or `close` is called. What they raise is logged."""

    def __init__(self, log: Log = silent) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def close(self) -> None:
        """Cancel what still runs and wait until it has ended."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self.note(problem)

    def note(self, problem: BaseException) -> None:
        self._log("error", "background-work-failed", {"error": repr(problem)})


class Turns:
    """Lets at most `count` pieces of work begin in one turn of the event loop, so that none lasts long."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._left = count

    async def __call__(self) -> None:
        while not self._left:
            await asyncio.sleep(0)
        if self._left == self._count:
            asyncio.get_running_loop().call_soon(self._renew)
        self._left -= 1

    def _renew(self) -> None:
        self._left = self._count


class Lanes:
    """Background work in lanes: at most `width` at a time in each, the rest waits in order.

    A lane per cell keeps a cell that does not answer from holding up the calls to the others.
    """

    def __init__(self, background: Background, width: int) -> None:
        self._background = background
        self._width = width
        self._turn = Turns(STARTS_PER_TURN)
        self._waiting: dict[str, deque[Work]] = {}
        self._running: dict[str, int] = {}

    def start(self, lane: str, work: Work) -> None:
        self._waiting.setdefault(lane, deque()).append(work)
        running = self._running.get(lane, 0)
        if running < self._width:
            self._running[lane] = running + 1
            self._background.start(self._drain(lane))

    async def _drain(self, lane: str) -> None:
        waiting = self._waiting[lane]
        try:
            while waiting:
                work = waiting.popleft()
                await self._turn()
                try:
                    await work()
                except Exception as problem:
                    self._background.note(problem)
        finally:
            self._running[lane] -= 1
            if not self._running[lane] and not waiting:
                del self._running[lane], self._waiting[lane]
