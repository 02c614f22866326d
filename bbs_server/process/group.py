"""An ordered group of members: started one after the other, stopped in reverse (server.md 3.2, 5 and 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

Ready = Callable[[], None]
Run = Callable[[Ready, asyncio.Event], Awaitable[None]]
"""What a member does: calls `ready` once, runs until the event is set, and returns. Raising ends the group."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    run: Run


@dataclass(frozen=True, slots=True)
class Exit:
    """How a member ended."""

    name: str
    error: BaseException | None

    def __str__(self) -> str:
        return f"{self.name} exited with {'nil' if self.error is None else f'error: {self.error}'}"


class GroupFailed(Exception):
    """A member ended with an error. The text lists how each one ended, the culprit first."""

    def __init__(self, exits: Sequence[Exit]) -> None:
        super().__init__("\n".join(("Exit trace for group:", *map(str, exits))))
        self.exits = tuple(exits)


@dataclass(slots=True)
class _Started:
    member: Member
    task: asyncio.Task[None]
    stopping: asyncio.Event
    ready: asyncio.Event = field(default_factory=asyncio.Event)


async def run_group(members: Sequence[Member], interrupted: asyncio.Event, started: Callable[[], None]) -> None:
    """Run the members until `interrupted` is set or one of them ends; then stop all.

    `started` is called when all are ready, or before the end if that never happens. Raises GroupFailed.
    """
    running: list[_Started] = []
    interruption = asyncio.create_task(interrupted.wait())
    announced = False
    for member in members:
        item = _start(member)
        running.append(item)
        readiness = asyncio.create_task(item.ready.wait())
        await _first([readiness, interruption, *(other.task for other in running)])
        readiness.cancel()
        if interruption.done() or any(other.task.done() for other in running):
            break
    else:
        announced = True
        started()
        await _first([interruption, *(item.task for item in running)])
    interruption.cancel()
    exits = await _stop(running)
    if not announced:
        # Quirk: an aborted start is announced as started nevertheless.
        started()
    if any(item.error is not None for item in exits):
        raise GroupFailed(exits)


def _start(member: Member) -> _Started:
    stopping, ready = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        await member.run(ready.set, stopping)

    return _Started(member, asyncio.create_task(run(), name=member.name), stopping, ready)


async def _first(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _stop(running: Sequence[_Started]) -> list[Exit]:
    """Stop all in reverse. Those that had ended before come first."""
    ended = [item for item in running if item.task.done()]
    order = ended + [item for item in reversed(running) if item not in ended]
    for item in order:
        item.stopping.set()
        await asyncio.wait([item.task])
    return [Exit(item.member.name, _error(item.task)) for item in order]


def _error(task: asyncio.Task[None]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def unless(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of the work; None if it was cancelled because the member shall stop."""
    task, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await _first([task, stop])
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        return None if task.cancelled() else task.result()
    finally:
        stop.cancel()
        task.cancel()


async def pause(stopping: asyncio.Event, ns: int) -> bool:
    """Wait that long; True if the member shall go on, False if it shall stop."""
    try:
        async with asyncio.timeout(max(ns, 0) / 1e9):
            await stopping.wait()
    except TimeoutError:
        return True
    return False


def at_once(name: str, action: Callable[[], None] | None = None) -> Member:
    """A member that is ready after an action and then only waits for the end."""

    async def run(ready: Ready, stopping: asyncio.Event) -> None:
        if action is not None:
            action()
        ready()
        await stopping.wait()

    return Member(name, run)
