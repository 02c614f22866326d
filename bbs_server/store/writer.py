"""The one writer: commands change memory at once and are answered when their batch is committed (design).

A command joins the batch that is forming. One batch at a time is on its way to the database; when it is committed its
outcomes are dispatched in order and its callers answered, and the next batch goes. Trouble has three forms:

* the database refuses a batch, or a row is not as memory has it: everything uncommitted is undone, the batch's rows
  are adopted from the database, and the commands run again one by one, each with its own fate (`_redo`);
* the connection is lost: the batch is in doubt, its callers are told so, and nothing else is answered until a new
  connection has shown how it ended and what else changed (`_recover`);
* another writer has raised the epoch: nothing can be written any more (`_depose`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import asyncpg

from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import Answer
from bbs_server.core.errors import Refused, unknown
from bbs_server.core.log import Log
from bbs_server.core.outcome import Command, Outcome, Query
from bbs_server.core.state import State
from bbs_server.store.adoption import adopt, adopt_keys, begin, catch_up, compare
from bbs_server.store.conninfo import ConnectionSettings
from bbs_server.store.epoch import keep_epoch
from bbs_server.store.errors import (
    DATABASE_FAILURES,
    Deposed,
    client_error,
    driver_text,
    is_connection_loss,
    is_lock_timeout,
    is_stale,
)
from bbs_server.store.gate import Gate
from bbs_server.store.guids import random_guid
from bbs_server.store.journal import Batch, Entry, Versions
from bbs_server.store.rows import MAPPINGS
from bbs_server.store.sealing import Keys
from bbs_server.store.session import LOOK_LIMIT, Found, Session, close, connect, find, grouped, stop, time_limit
from bbs_server.store.settling import Dispatch, Settler
from bbs_server.store.statistics import Statistics

_CONNECT_LIMIT = 5.0
"""s for one attempt to reconnect; callers wait for the first attempt only."""
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""s between attempts to reconnect; the last one repeats."""
_DRAIN_LIMIT = 10.0
"""s that closing waits for batches under way. Requests in flight have had up to a minute before (server.md 5)."""
_SNAPSHOT_LIMIT = 2.0
"""s for the snapshot of a comparison: no batch can go meanwhile, and the next comparison will do as well."""
_TRIES = 10
"""How often a command runs whose rows keep changing in the database."""
_CLOSED = unknown("sql: database is closed")


class Writer:
    """The state in memory and the only way to change it. Made by `opening.Database.become_writer`.

    `state` may be read by queries through `read`; looking at it directly may show what is not committed.
    """

    def __init__(
        self,
        *,
        settings: ConnectionSettings,
        keys: Keys,
        session: Session,
        reader: asyncpg.Connection[Any],
        state: State,
        versions: dict[str, Versions],
        owner: str,
        epoch: str,
        dispatch: Dispatch,
        core_settings: Settings,
        now: Callable[[], int],
        on_deposed: Callable[[str], None],
        on_unrecoverable: Callable[[str], None],
        log: Log,
        statistics: Statistics,
    ) -> None:
        self.state = state
        self.versions = versions
        self.keys = keys
        self.statistics = statistics
        self._loop = asyncio.get_running_loop()
        self._settler = Settler(dispatch, on_unrecoverable, log)
        self._gate = Gate(self._settler.note)
        self._connection_settings = settings
        self._reader = reader
        self._owner = owner
        self._epoch = epoch
        self._core_settings = core_settings
        self._now = now
        self._on_deposed = on_deposed
        self._log = log
        self._forming: Batch | None = None
        self._flying: Batch | None = None
        self._postponed: list[Batch] = []
        """Commands that are to run again, each in a batch of its own."""
        self._touched: dict[str, set[Any]] | None = None
        """Keys written since the snapshot of the comparison that runs; None if its findings are of no use any more."""
        self._work = asyncio.Event()
        self._committing = asyncio.Lock()
        self._comparing = asyncio.Lock()
        self._use(session)
        self._task = self._loop.create_task(self._run(), name="store-writer")

    # Callers

    async def write(self, command: Command, request: Any, request_id: str = "") -> Answer:
        """Run a command and answer once its changes are durable. Raises Refused."""
        while self._gate.closed:
            await self._gate.wait()
        entry = Entry(command, request, request_id)
        self._execute(entry)
        if entry.changes:
            if self._forming is None:
                self._forming = Batch(self._loop)
                self._work.set()
            self._forming.add(entry)
        elif (tail := self._forming or self._flying) is not None:
            # What it saw may be uncommitted, so even a refusal waits.
            tail.add(entry)
        else:
            self._settler.settle(entry)
        try:
            while (batch := entry.batch) is not None:
                await batch.future
            if entry.follow_up is not None:
                await self._settler.follow_up(entry)
        except asyncio.CancelledError:
            self._settler.abandon(entry)
            raise
        if entry.failure is not None:
            raise entry.failure
        if entry.error is not None:
            raise Refused(entry.error)
        assert entry.outcome is not None
        return entry.outcome.answer

    async def read(self, query: Query, request: Any, request_id: str = "") -> Answer:
        """Answer a query from committed state. Raises Refused."""
        while True:
            while self._gate.closed:
                await self._gate.wait()
            tail = self._forming or self._flying
            refused: Refused | None = None
            try:
                answer = query(self.state, request, self._context(request_id))
            except Refused as problem:
                refused = problem
            if tail is not None:
                await tail.future
                if tail.failed:
                    continue
            if refused is not None:
                raise refused
            return answer

    async def adopt_foreign_changes(self) -> int:
        """Take over rows that somebody else changed (design rule 7). Returns how many records are different now.

        Costs one aggregate query per table if there are none. Raises Refused if the database cannot be asked.
        """
        async with self._comparing:
            while self._gate.closed:
                await self._gate.wait()
            try:
                return await self._compare()
            except DATABASE_FAILURES as problem:
                raise Refused(client_error(problem)) from problem

    def note_version(self, table: str, key: Any, old: int, new: int) -> None:
        """Somebody of ours rewrote a row without changing its record (re-encryption)."""
        versions = self.versions[table]
        if versions.by_key.get(key) == old:
            versions.set(key, new)
            if self._touched is not None:
                self._touched[table].add(key)

    async def close(self) -> None:
        """Let the batches under way end, but not for ever, then refuse everything and close the connections."""
        if not await self._drained():
            # The statement under way would be waited for when it is cancelled.
            self._session.connection.terminate()
        self._gate.shut(_CLOSED)
        await stop(self._task)
        self._settler.fail((self._flying, self._forming, *self._postponed), _CLOSED)
        await asyncio.gather(self._session.close(), close(self._reader))

    async def _drained(self) -> bool:
        """Wait for the batches under way. Returns whether they have ended, and the connection is in order."""
        deadline = self._loop.time() + _DRAIN_LIMIT
        while (tail := self._forming or self._flying) and not self._task.done() and self._gate.refusal is None:
            left = deadline - self._loop.time()
            if left <= 0:
                return False
            await asyncio.wait([tail.future], timeout=left)
        return not self._gate.closed

    # Commands in memory

    def _context(self, request_id: str) -> Context:
        return Context(self._now(), random_guid, request_id, self._core_settings)

    def _execute(self, entry: Entry) -> None:
        """Run the command against memory. A refusal, or a fault, leaves no change."""
        entry.outcome = entry.error = entry.failure = None
        entry.changes = ()
        try:
            entry.outcome = entry.command(self.state, entry.request, self._context(entry.request_id))
        except Refused as refused:
            entry.error = refused.error
            self.state.undo(self.state.take())
        except Exception as fault:
            entry.failure = fault
            self.state.undo(self.state.take())
        else:
            entry.changes = self.state.take()

    # Batches

    async def _run(self) -> None:
        """Commit batch after batch until closed or deposed. Letting the lock go in between gives comparisons a turn."""
        while True:
            await self._work.wait()
            self._work.clear()
            async with self._committing:
                try:
                    if self._session.closed:
                        await self._recover(None, OSError("connection lost"))
                    if self._forming is not None:
                        batch, self._forming = self._forming, None
                        await self._commit(batch)
                except Exception as problem:
                    # Deposed; or a fault of our own, after which nothing would ever be committed again.
                    self._depose(str(problem) or repr(problem))
                    return
            if self._forming is not None:
                self._work.set()

    async def _commit(self, batch: Batch) -> None:
        self._flying = batch
        try:
            version = await self._send(batch)
        except Deposed:
            raise
        except Exception as problem:
            if self._session.closed or is_connection_loss(problem):
                await self._recover(batch, problem)
            else:
                await self._redo(batch, problem)
        else:
            self._committed(batch, version)

    async def _send(self, batch: Batch) -> int:
        """Returns the version of the rows written."""
        if self._touched is not None:
            for table, changes in batch.changes.items():
                self._touched[table].update(changes)
        groups = await grouped(batch.changes, self.versions, self.keys)
        return await self._session.commit(self._epoch, groups) if groups else 0

    def _committed(self, batch: Batch, version: int) -> None:
        for table, changes in batch.changes.items():
            versions = self.versions[table]
            for key, (before, after) in changes.items():
                if after is not None:
                    versions.set(key, version)
                elif before is not None:
                    versions.forget(key)
        self._flying = None
        if batch.changes:
            self.statistics.on_batch(sum(1 for entry in batch.entries if entry.changes))
        self._settler.finish(batch)

    # Trouble

    def _undo(self, batches: Iterable[Batch | None]) -> list[Entry]:
        """Take back what these batches, in commit order, did to memory. Returns their entries."""
        present = [batch for batch in batches if batch is not None]
        entries = [entry for batch in present for entry in batch.entries]
        self.state.undo([change for entry in entries for change in entry.changes])
        self._flying = self._forming = None
        for batch in present:
            batch.failed = True
        for entry in entries:
            entry.changes = ()
        return entries

    def _postpone(self, entries: Iterable[Entry]) -> list[Batch]:
        """Each entry in a batch of its own, to be run again."""
        batches = []
        for entry in entries:
            batch = Batch(self._loop)
            batch.add(entry)
            batches.append(batch)
        self._postponed = [*(batch for batch in self._postponed if not batch.future.done()), *batches]
        return batches

    async def _redo(self, batch: Batch, problem: Exception) -> None:
        """The database refused the batch: find out what the rows are, and run its commands one by one."""
        self._gate.close()
        forming = self._forming
        changing = [entry for entry in batch.entries if entry.changes]
        waiting = self._postpone(self._undo((batch, forming)))
        for failed in (batch, forming):
            if failed is not None:
                failed.future.set_result(None)
        try:
            adopted = await self._adopt_batch(batch, problem)
        except Exception as trouble:
            await self._recover(None, trouble, waiting)
            return
        if len(changing) == 1 and not adopted and not is_stale(problem):
            # It alone can be meant, and running it again would only fail again.
            culprits = [single for single in waiting if single.entries == changing]
            self._settler.fail(culprits, client_error(problem))
            waiting = [single for single in waiting if single not in culprits]
        await self._replay(waiting)
        self._gate.open()

    async def _replay(self, waiting: Sequence[Batch]) -> None:
        """Run postponed commands in order, each in its own transaction."""
        for number, batch in enumerate(waiting):
            (entry,) = batch.entries
            for attempt in range(1, _TRIES + 1):
                self._execute(entry)
                batch.changes.clear()
                batch.note(entry.changes)
                self._flying = batch
                try:
                    version = await self._send(batch)
                except Deposed:
                    raise
                except Exception as problem:
                    if self._session.closed or is_connection_loss(problem):
                        await self._recover(batch, problem, waiting[number + 1 :])
                        return
                    self._undo((batch,))
                    try:
                        adopted = await self._adopt_batch(batch, problem)
                    except Exception as trouble:
                        await self._recover(None, trouble, waiting[number:])
                        return
                    if attempt == _TRIES or not (adopted or is_stale(problem)):
                        self._settler.fail((batch,), client_error(problem))
                        break
                else:
                    self._committed(batch, version)
                    break

    async def _adopt_batch(self, batch: Batch, problem: Exception) -> int:
        """Bring memory in line with the database for the keys of a refused batch. Returns how many rows were not.

        Raises only for a lost connection: keys that cannot even be looked up are nobody's rows.
        """
        keys = {table: list(changes) for table, changes in batch.changes.items()}
        try:
            if is_lock_timeout(problem):
                await self._session.lose_patience()
            with time_limit(self._session.connection, LOOK_LIMIT):
                return await adopt_keys(self._session.connection, self.state, self.versions, keys, self.keys)
        except Exception as trouble:
            if self._session.closed or is_connection_loss(trouble):
                raise
            return 0

    async def _recover(self, doubtful: Batch | None, problem: Exception, waiting: Sequence[Batch] = ()) -> None:
        """The connection is lost. Returns once a new one works and memory is what the database holds.

        The callers of the batch in doubt are answered at once; those of commands that were never sent wait for the
        first attempt to reconnect, and run again if it succeeds. Raises Deposed.
        """
        self._gate.close()
        self._log("error", "database-connection-lost", {"error": driver_text(problem)})
        forming = self._forming
        # Undone first: these came after everything in `waiting`.
        unsent = self._postpone(self._undo((forming,)))
        if forming is not None:
            forming.future.set_result(None)
        later: list[Batch] = [*waiting, *unsent]
        outcomes: list[Outcome] = []
        if doubtful is not None:
            outcomes = self._answer_in_doubt(doubtful, problem)
        attempt = 0
        while True:
            try:
                await self._reconnect()
                with time_limit(self._session.connection, LOOK_LIMIT):
                    if doubtful is not None:
                        if await self._was_committed(doubtful):
                            self._settler.dispatch_late(outcomes)
                        doubtful = None
                    await self._compare_alone()
                break
            except Deposed:
                raise
            except Exception as trouble:
                refusal = client_error(trouble)
                self._settler.fail(later, refusal)
                later = []
                self._gate.refuse(refusal)
                if attempt == 0:
                    self._log("error", "database-unreachable", {"error": refusal.message})
                await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
        self._log("info", "database-connection-restored", {})
        await self._replay(later)
        self._gate.open()

    def _answer_in_doubt(self, batch: Batch, problem: Exception) -> list[Outcome]:
        """Undo the batch and answer its callers with the loss. Returns its outcomes, in case it did commit."""
        outcomes = [entry.outcome for entry in batch.entries if entry.outcome is not None and entry.error is None]
        for entry in self._undo((batch,)):
            entry.error = client_error(problem) if entry.error is None else entry.error
            entry.outcome = None
        self._settler.finish(batch)
        return outcomes

    async def _was_committed(self, batch: Batch) -> bool:
        """Whether a batch in doubt took effect. Memory takes over its rows in any case.

        It did if each of its rows has another version than the last one known, and not all of that is somebody else's
        doing: one of those that it wrote has its contents. Others may have been changed again since.
        """
        rows: list[tuple[str, Any, Any, Found | None]] = []
        for table, changes in batch.changes.items():
            wanted = {key: after for key, (before, after) in changes.items() if not (before is None and after is None)}
            found = await find(self._session.connection, table, wanted, self.keys)
            rows += ((table, key, after, found.get(key)) for key, after in wanted.items())
        # Only now that all are known: what is adopted counts as known, should this have to be done again.
        changed = [
            self.versions[table].by_key.get(key) != (row.version if row else None) for table, key, _, row in rows
        ]
        ours = [row is not None and row.record == after for _, _, after, row in rows if after is not None]
        for table, key, _, row in rows:
            adopt(self.state, self.versions, table, key, row)
        return bool(changed) and all(changed) and (any(ours) or not ours)

    async def _reconnect(self) -> None:
        """A new session whose epoch proves that the old session's last statement is over."""
        await self._session.close()
        async with asyncio.timeout(_CONNECT_LIMIT):
            self._use(await Session.open(self._connection_settings, self.statistics))
            self._epoch = await keep_epoch(self._session.connection, self._owner)

    def _use(self, session: Session) -> None:
        """Write through this session; its loss wakes the committer even if nobody writes."""
        self._session = session
        session.when_lost(self._work.set)

    def _depose(self, reason: str) -> None:
        """Another writer is active. Nothing of ours was written; nothing ever will be."""
        batches = (self._flying, self._forming, *self._postponed)
        self._undo(batches[:2])
        self._log("error", "deposed", {"error": reason})
        error = unknown(reason)
        self._gate.shut(error)
        self._settler.fail(batches, error)
        self._on_deposed(reason)

    # Foreign changes

    async def _compare(self) -> int:
        """Compare memory with a snapshot that is taken between two batches."""
        if self._reader.is_closed():
            async with asyncio.timeout(_CONNECT_LIMIT):
                self._reader = await connect(self._connection_settings, self.statistics)
        await self._committing.acquire()
        try:
            with time_limit(self._reader, _SNAPSHOT_LIMIT):
                expected = await begin(self._reader, self.versions)
            self._touched = {table: set() for table in MAPPINGS}
        finally:
            self._committing.release()
        try:
            with time_limit(self._reader, LOOK_LIMIT):
                return await compare(self._reader, self.state, self.versions, expected, self.keys, self._is_ours)
        finally:
            self._touched = None

    async def _compare_alone(self) -> None:
        """Compare memory with the database while nothing else happens."""
        # Whatever another comparison finds from now on is older than what this one finds.
        self._touched = None
        await catch_up(self._session.connection, self.state, self.versions, self.keys)

    def _is_ours(self, table: str, key: Any) -> bool:
        """Whether memory knows better than the snapshot of the running comparison, or is about to."""
        if self._touched is None or key in self._touched[table]:
            return True
        return self._forming is not None and self._forming.holds(table, key)
