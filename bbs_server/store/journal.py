"""What is on its way to the database: batches of commands, and which version of each row is known to be there."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any

from bbs_server.core.errors import Error
from bbs_server.core.outcome import Command, Outcome
from bbs_server.core.state import Change

_MODULUS = 1000003
"""As in the `fingerprint` statements."""


class SharedFuture(asyncio.Future[None]):
    """A future that many tasks await: cancelling one of them does not cancel it, that task ends a little later."""

    def cancel(self, msg: Any = None) -> bool:
        return False


class Entry:
    """One command on its way: what it is, what it did to memory, and how it ended."""

    __slots__ = (
        "abandoned",
        "batch",
        "changes",
        "command",
        "error",
        "failure",
        "follow_up",
        "outcome",
        "request",
        "request_id",
    )

    def __init__(self, command: Command, request: Any, request_id: str) -> None:
        self.command = command
        self.request = request
        self.request_id = request_id
        self.changes: Sequence[Change] = ()
        self.outcome: Outcome | None = None
        self.error: Error | None = None
        """The command's own refusal, or what the commit failed with."""
        self.failure: BaseException | None = None
        """A fault in the command or the dispatch, raised to the caller as it is."""
        self.follow_up: Any = None
        self.batch: Batch | None = None
        """Where its end is awaited; None once it has ended."""
        self.abandoned = False
        """Its caller was cancelled."""


class Batch:
    """Commands that are committed together. `changes` holds one [before, after] per table and key.

    `future` resolves when the batch has ended; `failed` says that memory then no longer holds what it did.
    """

    __slots__ = ("changes", "entries", "failed", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.entries: list[Entry] = []
        self.changes: dict[str, dict[Any, list[Any]]] = {}
        self.failed = False
        self.future = SharedFuture(loop=loop)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        entry.batch = self
        self.note(entry.changes)

    def note(self, changes: Sequence[Change]) -> None:
        for change in changes:
            table = self.changes.get(change.table)
            if table is None:
                table = self.changes[change.table] = {}
            pair = table.get(change.key)
            if pair is None:
                table[change.key] = [change.before, change.after]
            else:
                pair[1] = change.after

    def holds(self, table: str, key: Hashable) -> bool:
        return key in self.changes.get(table, ())


class Versions:
    """The `xmin` of every row of one table as far as this server knows, with the sums that fingerprint them."""

    __slots__ = ("by_key", "squares", "total")

    def __init__(self) -> None:
        self.by_key: dict[Any, int] = {}
        self.total = 0
        self.squares = 0

    @property
    def fingerprint(self) -> tuple[int, int, int]:
        """What the `fingerprint` statement gives if nobody else has written."""
        return len(self.by_key), self.total, self.squares

    def set(self, key: Any, version: int) -> None:
        self.forget(key)
        self.by_key[key] = version
        self.total += version
        rest = version % _MODULUS
        self.squares += rest * rest

    def forget(self, key: Any) -> None:
        version = self.by_key.pop(key, None)
        if version is not None:
            self.total -= version
            rest = version % _MODULUS
            self.squares -= rest * rest
