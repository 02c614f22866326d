"""How commands end: what follows from them is carried out, and their callers go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from bbs_server.core.errors import Error, ErrorType
from bbs_server.core.log import Log
from bbs_server.core.outcome import Outcome
from bbs_server.store.errors import driver_text
from bbs_server.store.journal import Batch, Entry

Dispatch = Callable[[Outcome], Awaitable[Error | None] | None]
"""Called for each committed outcome, in commit order, synchronously. What it returns is awaited before the answer;
an Error that comes of it replaces the answer."""


class Settler:
    """Ends entries and batches. `on_unrecoverable` is called soon after each answer of type 29."""

    def __init__(self, dispatch: Dispatch, on_unrecoverable: Callable[[str], None], log: Log) -> None:
        self._dispatch = dispatch
        self._on_unrecoverable = on_unrecoverable
        self._log = log
        self._background: set[asyncio.Future[Any]] = set()

    def settle(self, entry: Entry) -> None:
        """The command has ended: carry out what follows, and let its caller go on."""
        entry.batch = None
        if entry.outcome is not None and entry.error is None:
            try:
                entry.follow_up = self._dispatch(entry.outcome)
            except Exception as fault:
                entry.failure = fault
            if entry.abandoned:
                self.abandon(entry)
        if entry.error is not None:
            self.note(entry.error)

    def finish(self, batch: Batch) -> None:
        """Settle the entries in commit order and wake their callers."""
        for entry in batch.entries:
            self.settle(entry)
        batch.future.set_result(None)

    def fail(self, batches: Iterable[Batch | None], error: Error) -> None:
        """Answer the commands of undone batches with an error."""
        for batch in batches:
            if batch is not None and not batch.future.done():
                for entry in batch.entries:
                    entry.error, entry.outcome, entry.failure = error, None, None
                self.finish(batch)

    async def follow_up(self, entry: Entry) -> None:
        """Wait for what follows from the command; an error of it becomes the answer."""
        follow_up, entry.follow_up = asyncio.ensure_future(entry.follow_up), None
        self._keep(follow_up)
        entry.error = await asyncio.shield(follow_up) or entry.error

    def abandon(self, entry: Entry) -> None:
        """Nobody waits for this command any more; what follows from it happens all the same."""
        entry.abandoned = True
        if entry.follow_up is not None:
            self._keep(asyncio.ensure_future(entry.follow_up))
            entry.follow_up = None

    def dispatch_late(self, outcomes: Iterable[Outcome]) -> None:
        """Carry out what follows from commands whose callers have been answered."""
        for outcome in outcomes:
            try:
                follow_up = self._dispatch(outcome)
            except Exception as fault:
                self._log("error", "dispatch-failed", {"error": driver_text(fault)})
            else:
                if follow_up is not None:
                    self._keep(asyncio.ensure_future(follow_up))

    def note(self, error: Error) -> None:
        """Somebody is answered with this error."""
        if error.type == ErrorType.UNRECOVERABLE:
            asyncio.get_running_loop().call_soon(self._on_unrecoverable, error.message)

    def _keep(self, future: asyncio.Future[Any]) -> None:
        self._background.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._background.discard(future)
        if not future.cancelled() and (problem := future.exception()) is not None:
            self._log("error", "follow-up-failed", {"error": driver_text(problem)})
