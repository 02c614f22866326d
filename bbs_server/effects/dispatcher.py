"""Carries out what follows a commit: events at once, calls in commit order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bbs_server.core.errors import Error
from bbs_server.core.log import Log, silent
from bbs_server.core.outcome import (
    AuctionLRPs,
    AuctionTasks,
    CancelTask,
    Complete,
    Count,
    Outcome,
    Retire,
    StopInstance,
    UpdateInstance,
)
from bbs_server.effects.auctioneer import Auctioneer
from bbs_server.effects.background import Background
from bbs_server.effects.callbacks import Callbacks
from bbs_server.effects.hubs import Hubs
from bbs_server.effects.peer import Peer
from bbs_server.effects.reps import CellLookup, Reps
from bbs_server.effects.retire import Retirement
from bbs_server.effects.task_counts import TaskCounts
from bbs_server.effects.writing import Writing

FollowUp = Awaitable[Error | None]


class Dispatcher:
    """Called by the store with each committed outcome, in commit order.

    The store needs it before the effects can have the store's writer, so `attach` comes in between: no
    outcome of a request is dispatched earlier.
    """

    def __init__(self, hubs: Hubs, auctioneer: Auctioneer, reps: Reps, presences: CellLookup, log: Log = silent):
        self.hubs = hubs
        self.task_counts = TaskCounts()
        self._auctioneer = auctioneer
        self._reps = reps
        self._presences = presences
        self._log = log
        self._background = Background(log)
        self._callbacks: Callbacks | None = None
        self._carry_out: Mapping[type[Any], Callable[[Any], FollowUp | None]] = {
            AuctionTasks: auctioneer.start_tasks,
            AuctionLRPs: auctioneer.start_lrps,
            CancelTask: lambda call: self._awaited(reps.cancel(call)),
            StopInstance: reps.stop,
            UpdateInstance: reps.update,
            Count: self.task_counts.add,
        }

    def attach(self, writer: Writing, callback_peer: Peer, callback_workers: int) -> None:
        """Start taking calls that write: completed tasks and retirements."""
        callbacks = self._callbacks = Callbacks(writer, callback_peer, callback_workers, self._log)
        retirement = Retirement(writer, self._presences, self._reps, self._log)
        self._carry_out = {
            **self._carry_out,
            Complete: lambda call: callbacks.submit(call.task),
            Retire: lambda call: self._awaited(retirement.retire(call)),
        }

    def __call__(self, outcome: Outcome) -> FollowUp | None:
        """Publish and start. What is returned, if anything, must end before the request is answered."""
        if outcome.events:
            self.hubs.publish(outcome.events)
        if not outcome.calls:
            return None
        follow_ups = []
        for call in outcome.calls:
            follow_up = self._carry_out[type(call)](call)
            if follow_up is not None:
                follow_ups.append(follow_up)
        if len(follow_ups) > 1:
            return _first_error(follow_ups)
        return follow_ups[0] if follow_ups else None

    async def close(self) -> None:
        """End every stream, call and callback. The writer must still be open."""
        self.hubs.close()
        if self._callbacks is not None:
            await self._callbacks.close()
        await self._background.close()
        await self._auctioneer.close()
        await self._reps.close()

    def _awaited(self, work: Any) -> FollowUp:
        """The call goes on even if whoever waits for it goes away."""
        return asyncio.shield(self._background.start(work))


async def _first_error(follow_ups: Sequence[FollowUp]) -> Error | None:
    errors = await asyncio.gather(*follow_ups)
    return next((error for error in errors if error is not None), None)
