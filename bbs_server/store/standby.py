"""What a process that waits for the lock holds ready: a copy of the database that only has to catch up.

Loading takes seconds with tens of thousands of rows, and nothing is served meanwhile. So a standby loads ahead and
takes over now and then what has changed. When it becomes the writer, after it has raised the epoch, it does so a last
time.
Nothing depends on the copy: without one the state is loaded then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg

from bbs_server.core.log import Log
from bbs_server.core.state import State
from bbs_server.store import migrations
from bbs_server.store.adoption import catch_up
from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.errors import DATABASE_FAILURES, driver_text
from bbs_server.store.journal import Versions
from bbs_server.store.loading import load
from bbs_server.store.sealing import Keys
from bbs_server.store.session import close, connect, stop, time_limit
from bbs_server.store.sql import STATEMENTS
from bbs_server.store.statistics import Statistics

_INTERVAL = 15.0
"""s between two looks at the database."""
_LOOK_LIMIT = 300.0
"""s for one look, be it to load everything."""
_PATIENCE = 15.0
"""s for a look that is under way when the state is needed: as long as loading some 200,000 rows takes."""

_ORIGIN = STATEMENTS["configurations"]["origin"]


class Loaded(NamedTuple):
    """The state as it was in a snapshot, and the version of every row there."""

    state: State
    versions: dict[str, Versions]


class Standby:
    """`begin` while waiting, then `end` once."""

    def __init__(self, settings: ConnectionSettings, keys: Keys, statistics: Statistics, log: Log) -> None:
        self._settings = settings
        self._keys = keys
        self._statistics = statistics
        self._log = log
        self._copy: Loaded | None = None
        self._origin: object = None
        """Which database the copy is of: row versions say nothing about another one, such as a restored backup."""
        self._looking = asyncio.Lock()
        self._connection: asyncpg.Connection[Any] | None = None
        """Of the look that is under way."""
        self._task: asyncio.Task[None] | None = None

    def begin(self, interval: float = _INTERVAL) -> None:
        """Start to hold a copy ready, looking at the database every `interval` s."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(interval), name="standby")

    async def end(self, connection: asyncpg.Connection[Any]) -> Loaded:
        """The state as it is in the database now. Nobody may write any more. Raises what the driver raises."""
        started = time.perf_counter_ns()
        await self._end_looking()
        with time_limit(connection, _LOOK_LIMIT):
            action, data = await self._look(connection)
        copy, self._copy = self._copy, None
        assert copy is not None, "a look without a copy makes one"
        rows = sum(map(len, copy.state.tables.values()))
        self._log("info", action, {"duration": time.perf_counter_ns() - started, "rows": rows, **data})
        return copy

    async def close(self) -> None:
        """Stop."""
        if self._connection is not None:
            # The statement under way would be waited for when it is cancelled.
            self._connection.terminate()
        if self._task is not None:
            await stop(self._task)

    async def _end_looking(self) -> None:
        """Stop between two looks: a load that is under way would only have to be begun again.

        A look that takes too long is given up with its copy.
        """
        try:
            async with asyncio.timeout(_PATIENCE), self._looking:
                await self.close()
        except TimeoutError:
            await self.close()
            self._copy = None

    async def _run(self, interval: float) -> None:
        while True:
            try:
                async with self._looking:
                    await self._look_ahead()
            except DATABASE_FAILURES as problem:
                self._log("info", "standby-failed", {"error": driver_text(problem)})
            await asyncio.sleep(interval)

    async def _look_ahead(self) -> None:
        connection = self._connection = await connect(self._settings, self._statistics)
        try:
            with time_limit(connection, _LOOK_LIMIT):
                if not await migrations.is_current(connection):
                    return
                action, data = await self._look(connection)
            self._log("info" if action == "loaded" else "debug", f"standby-{action}", data)
        finally:
            self._connection = None
            await asyncio.shield(close(connection))

    async def _look(self, connection: asyncpg.Connection[Any]) -> tuple[str, Mapping[str, Any]]:
        """Load, or take over what has changed. Returns which of both, and what there is to say of it."""
        origin = await connection.fetchrow(_ORIGIN)
        if self._copy is not None and origin == self._origin:
            return "caught-up", {"changed": await catch_up(connection, *self._copy, self._keys)}
        self._copy, state = None, State()
        self._copy = Loaded(state, await load(connection, state, self._keys))
        self._origin = origin
        return "loaded", {}
