"""How the process opens the database and becomes its writer. Call in this order (server.md 3):

1. `database = await open_database(...)` in the sequential part (3.1 steps 4 to 8, before any lock): checks keys and
   connection string, connects once, creates `configurations`. Raises `StartFailure`: `action` is the log action of
   the fatal line, `str(failure)` the text of its `error`; log it and exit 2.
2. Take the lock: Locket, or `database.advisory_lock()` (an `AdvisoryLock`) where `locket_address` is empty. If that
   takes long, `database.stand_by()` holds a copy of the state ready.
3. `await database.raise_epoch()`: shuts out every earlier writer. First thing after the lock.
4. `await database.migrate()` (member `migration-manager`): the schema becomes current; then the 503 gate may open
   as soon as step 6 is done. Returns the ns it took (`MigrationDuration`). Raises `MigrationFailed` or `Deposed`:
   exit 1.
5. `await database.check_key_label()` (member `encryptor`). Raises `UnknownKeyLabel`: exit 1.
6. `writer = await database.become_writer(...)`: loads the state into memory, or brings the copy up to date. Open the
   gate now.
7. `await database.reencrypt(writer)` as a task beside everything else (member `encryptor`, storage.md 5.4): returns
   the ns it took (`EncryptionDuration`), or None if there was nothing to do. Raises only `LabelNotWritten` and
   `Deposed`: exit 1. Shutdown waits for it.
8. `database.health_check()` gives the `HealthCheck` of server.md 16 (one attempt per call).
9. At the end `await writer.close()`, release the lock, `await database.close()`.

`database.statistics` counts what the `DB…` metrics report (server.md 19).
`log(level, action, data)`: action without any session prefix, as in `log("info", "finished-migrations", {})`; those
of `migrate` belong to the session `migration-manager`, those of steps 5 and 7 to `encryptor`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import asyncpg

from bbs_server.core.context import Settings
from bbs_server.core.log import Log, silent
from bbs_server.store import migrations
from bbs_server.store.advisory_lock import AdvisoryLock
from bbs_server.store.conninfo import ConnectionSettings, parse
from bbs_server.store.epoch import fenced, raise_epoch
from bbs_server.store.errors import (
    DATABASE_FAILURES,
    LabelNotWritten,
    MigrationFailed,
    StartFailure,
    UnknownKeyLabel,
    driver_text,
)
from bbs_server.store.guids import random_guid
from bbs_server.store.health import HealthCheck
from bbs_server.store.reencryption import LABEL_ROW, Reencryption
from bbs_server.store.sealing import Keys
from bbs_server.store.session import Session, close, connect, setting_up
from bbs_server.store.settling import Dispatch
from bbs_server.store.sql import STATEMENTS
from bbs_server.store.standby import Standby
from bbs_server.store.statistics import Statistics
from bbs_server.store.writer import Writer

_CONFIGURATIONS = STATEMENTS["configurations"]


async def open_database(
    connection_string: str,
    *,
    active_key_label: str,
    encryption_keys: Mapping[str, str],
    driver: str = "postgres",
    ca_file: str = "",
    identity_verification: bool = False,
    log: Log = silent,
) -> Database:
    """Steps 4 to 8 of server.md 3.1. Raises StartFailure."""
    keys = Keys(active_key_label, encryption_keys)
    if not driver or not connection_string:
        raise StartFailure("no-database-configured", "no database configured")
    if driver == "mysql":
        raise StartFailure("invalid-driver-name", "database driver mysql is not supported; use postgres")
    if driver != "postgres":
        raise StartFailure("invalid-driver-name", f"Unrecognized driver: {driver}")
    settings = parse(connection_string, ca_file, identity_verification)
    statistics = Statistics()
    try:
        connection = await connect(settings, statistics)
    except DATABASE_FAILURES as problem:
        raise StartFailure("sql-failed-to-connect", driver_text(problem)) from problem
    try:
        await connection.execute(_CONFIGURATIONS["create"])
    except DATABASE_FAILURES as problem:
        await close(connection)
        raise StartFailure("sql-failed-create-configurations-table", driver_text(problem)) from problem
    return Database(settings, keys, connection, statistics, log)


class Database:
    """An opened database on its way to its writer. Made by `open_database`; at most five connections in all."""

    def __init__(
        self,
        settings: ConnectionSettings,
        keys: Keys,
        connection: asyncpg.Connection[Any],
        statistics: Statistics,
        log: Log,
    ) -> None:
        self.settings = settings
        self.keys = keys
        self.statistics = statistics
        self._connection = connection
        self._log = log
        self._owner = random_guid()
        self._epoch = ""
        self._key_label: str | None = None
        """What everything is sealed with, as far as is known."""
        self._health_check: HealthCheck | None = None
        self._standby = Standby(settings, keys, statistics, log)

    def advisory_lock(self) -> AdvisoryLock:
        """The lock that takes Locket's place, on a connection of its own."""
        return AdvisoryLock(self.settings, self.statistics)

    def health_check(self, now: Callable[[], int] = time.time_ns) -> HealthCheck:
        """The health check, on a connection of its own that `close` closes."""
        if self._health_check is None:
            self._health_check = HealthCheck(self.settings, self.statistics, now)
        return self._health_check

    def stand_by(self) -> None:
        """Hold a copy of the state ready for `become_writer`, on a connection of its own now and then."""
        self._standby.begin()

    async def raise_epoch(self) -> None:
        """Shut out every earlier writer. Raises what the driver raises."""
        # The connection of the start may have waited for the lock for days, and be dead without anybody knowing.
        self._connection.terminate()
        self._epoch = await raise_epoch(await self._connected(), self._owner)

    async def migrate(self) -> int:
        """Make the schema current; returns the ns it took. Raises MigrationFailed, and Deposed."""
        started = time.perf_counter_ns()
        try:
            connection = await self._connected()
        except DATABASE_FAILURES as problem:
            raise MigrationFailed(driver_text(problem)) from problem
        await migrations.migrate(connection, self.keys, self._owner, self._log)
        return time.perf_counter_ns() - started

    async def check_key_label(self) -> None:
        """Refuse a database whose values need a key that is not configured. Raises UnknownKeyLabel."""
        try:
            label = self._key_label = await self._stored_label()
        except DATABASE_FAILURES as problem:
            raise UnknownKeyLabel(driver_text(problem)) from problem
        if label is not None and label not in self.keys.labels:
            message = f"Existing encryption key version ({label}) is not among the known keys"
            self._log("error", "unknown-encryption-key-lable", {"error": message})
            raise UnknownKeyLabel(message)

    async def become_writer(
        self,
        *,
        dispatch: Dispatch,
        settings: Settings,
        now: Callable[[], int] = time.time_ns,
        on_deposed: Callable[[str], None],
        on_unrecoverable: Callable[[str], None],
    ) -> Writer:
        """Load the state and take commands from now on. Raises what the driver raises.

        `on_deposed` is called once if another writer takes over: the process must end, exit 1. `on_unrecoverable` is
        called after each answer of type 29 (server.md section 7).
        """
        if not self._epoch:
            await self.raise_epoch()
        reader = await self._connected()
        state, versions = await self._standby.end(reader)
        session = await Session.open(self.settings, self.statistics)
        return Writer(
            settings=self.settings,
            keys=self.keys,
            session=session,
            reader=reader,
            state=state,
            versions=versions,
            owner=self._owner,
            epoch=self._epoch,
            dispatch=dispatch,
            core_settings=settings,
            now=now,
            on_deposed=on_deposed,
            on_unrecoverable=on_unrecoverable,
            log=self._log,
            statistics=self.statistics,
        )

    async def reencrypt(self, writer: Writer) -> int | None:
        """Seal everything with the active key if the label checked is another one (storage.md 5.4 steps 4 to 9).

        Returns the ns it took, None if nothing was to be done. A database error ends it early and is only logged; the
        next start tries again. Raises LabelNotWritten, and Deposed as soon as another writer takes over.
        """
        if self._key_label == self.keys.active_label:
            return None
        started = time.perf_counter_ns()
        self._log("info", "encryption-started", {})
        try:
            await self._seal_anew(writer)
        except DATABASE_FAILURES as problem:
            self._log("error", "encryption-failed", {"error": driver_text(problem)})
        duration = time.perf_counter_ns() - started
        self._log("info", "encryption-finished", {"total_time": duration})
        return duration

    async def close(self) -> None:
        """Close what the writer and the lock do not."""
        await self._standby.close()
        if self._health_check is not None:
            await self._health_check.close()
        if not self._connection.is_closed():
            await close(self._connection)

    async def _connected(self) -> asyncpg.Connection[Any]:
        """The connection of the start-up; a lost one is replaced."""
        if self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    async def _connect(self) -> asyncpg.Connection[Any]:
        """A connection for a master's work beside its batches."""
        connection = await connect(self.settings, self.statistics)
        with setting_up(connection):
            await connection.execute(_CONFIGURATIONS["master_session"])
        return connection

    async def _stored_label(self) -> str | None:
        connection = await self._connected()
        row = await connection.fetchrow(_CONFIGURATIONS["read"], LABEL_ROW)
        return None if row is None else row[0] or ""

    async def _seal_anew(self, writer: Writer) -> None:
        connection = await self._connect()
        try:
            await Reencryption(
                connection, self.keys, self._owner, self._log, self.statistics, writer.note_version
            ).run()
            await self._store_label(connection)
        finally:
            await asyncio.shield(close(connection))

    async def _store_label(self, connection: asyncpg.Connection[Any]) -> None:
        try:
            async with fenced(connection, self._owner):
                await connection.execute(_CONFIGURATIONS["write"], LABEL_ROW, self.keys.active_label)
        except DATABASE_FAILURES as problem:
            raise LabelNotWritten(driver_text(problem)) from problem
        self._key_label = self.keys.active_label
