"""The gate before the state: closed while memory is not what callers may see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bbs_server.core.errors import Error, Refused
from bbs_server.store.journal import SharedFuture


class Gate:
    """Callers wait while it is closed, or are refused at once if it says so.

    `refused` is told every error with which somebody is turned away.
    """

    __slots__ = ("_change", "_ended", "_refused", "refusal")

    def __init__(self, refused: Callable[[Error], None]) -> None:
        self._change: SharedFuture | None = None
        """While set, the gate is closed: it resolves when that changes."""
        self._ended = False
        self._refused = refused
        self.refusal: Error | None = None
        """With the gate closed: what everybody is told at once instead of waiting."""

    @property
    def closed(self) -> bool:
        return self._change is not None

    async def wait(self) -> None:
        """Return when something has changed; look again then. Raises Refused."""
        if self.refusal is not None:
            self._refused(self.refusal)
            raise Refused(self.refusal)
        if self._change is not None:
            await self._change

    def close(self) -> None:
        if self._change is None:
            self._change = _future()

    def open(self) -> None:
        """Unless it was shut for ever."""
        if self._ended:
            return
        self.refusal = None
        change, self._change = self._change, None
        if change is not None:
            change.set_result(None)

    def refuse(self, error: Error) -> None:
        """Stay closed, and turn away who waits and who comes."""
        self.refusal = error
        change, self._change = self._change, _future()
        if change is not None:
            change.set_result(None)

    def shut(self, error: Error) -> None:
        """Refuse for ever."""
        self._ended = True
        self.refuse(error)


def _future() -> SharedFuture:
    return SharedFuture(loop=asyncio.get_running_loop())
