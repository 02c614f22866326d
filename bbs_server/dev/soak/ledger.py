"""What must be there: every object the soak writes, with what it may look like after the answers so far."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from bbs_protos import models_pb2 as models

from bbs_server.core.errors import ErrorType
from bbs_server.dev.soak.journal import Journal
from bbs_server.dev.soak.pair import Lost, Refusal

V = TypeVar("V")
Change = Callable[[V | None], V | ErrorType | None]
"""What a write makes of a view (None: absent), or the error that answers it."""


@dataclass(slots=True)
class Entry(Generic[V]):
    """The views one object may have now. Only one write at a time; `version` counts their beginnings and ends."""

    possible: set[V | None] = field(default_factory=lambda: {None})
    version: int = 0
    busy: bool = False


class Ledger(Generic[V]):
    """The objects of one kind."""

    def __init__(self, kind: str, journal: Journal) -> None:
        self._kind = kind
        self._journal = journal
        self.entries: dict[str, Entry[V]] = {}

    async def write(self, guid: str, change: Change[V], call: Coroutine[Any, Any, Any]) -> bool:
        """Carry out a write and note what its answer says. Returns whether it was acknowledged."""
        entry = self.entries.setdefault(guid, Entry())
        outcomes = {view: change(view) for view in entry.possible}
        made = {outcome for outcome in outcomes.values() if not isinstance(outcome, ErrorType)}
        entry.busy, entry.version = True, entry.version + 1
        try:
            await call
        except Lost:
            entry.possible |= made
            return False
        except Refusal as refusal:
            self._narrow(guid, {v for v, outcome in outcomes.items() if outcome is ErrorType(refusal.type)}, refusal)
            return False
        else:
            self._narrow(guid, made, "acknowledged")
            return True
        finally:
            entry.busy, entry.version = False, entry.version + 1

    def views(self, guid: str) -> set[V | None]:
        return self.entries[guid].possible

    def steady(self) -> dict[str, int]:
        """The objects that nobody is writing, with their versions; for `check`."""
        return {guid: entry.version for guid, entry in self.entries.items() if not entry.busy}

    def check(self, found: Mapping[str, V], steady: Mapping[str, int], settle: bool = False) -> int:
        """Compare what was listed with those that were steady before and after. Returns how many that were.

        `settle`: nothing is under way, so that what was found is what there is from now on.
        """
        count = 0
        for guid, version in steady.items():
            entry = self.entries[guid]
            if entry.version != version:
                continue
            count += 1
            view = found.get(guid)
            if view not in entry.possible:
                self._journal.violation(f"{self._kind} {guid}: found {view}, may be {entry.possible}")
                entry.possible = {view}
            elif settle:
                entry.possible = {view}
        for guid in found.keys() - self.entries.keys():
            self._journal.violation(f"{self._kind} {guid}: never asked for")
            self.entries[guid] = Entry({found[guid]})
        return count

    def _narrow(self, guid: str, views: set[V | None], answer: object) -> None:
        entry = self.entries[guid]
        if not views:
            self._journal.violation(f"{self._kind} {guid}: answer {answer!r} contradicts {entry.possible}")
            return
        entry.possible = views


# -- tasks: cells, clients and the server itself move them ------------------------------------

ABSENT, PENDING, RUNNING, COMPLETED, RESOLVING, DELETED = range(6)
SERVER_REASONS = frozenset({"cell disappeared before completion"})


@dataclass(slots=True)
class TaskEntry:
    """How far the acknowledged writes have brought a task, and how far any write may have."""

    callback: bool
    floor: int = ABSENT
    ceiling: int = ABSENT
    cell_id: str = ""
    result: str | None = None


class TaskLedger:
    """All tasks; those deleted for good stay as their guids alone."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.entries: dict[str, TaskEntry] = {}
        self.deleted: set[str] = set()
        self._strange: set[str] = set()

    def add(self, guid: str, callback: bool) -> None:
        """A task about to be desired. `callback`: the server takes it away itself once it has completed."""
        self.entries[guid] = TaskEntry(callback)

    async def write(
        self, guid: str, stage: int, call: Coroutine[Any, Any, Any], cell_id: str = "", result: str | None = None
    ) -> Any:
        """Carry out a write that leads to the stage. Raises Lost or Refusal as the call does."""
        entry = self.entries.get(guid)
        if entry is None:
            return await call
        entry.ceiling = max(entry.ceiling, stage)
        answer = await call
        if stage > entry.floor:
            entry.floor = stage
            entry.cell_id = cell_id or entry.cell_id
            entry.result = result if stage == COMPLETED else entry.result
        if stage == DELETED:
            self.entries.pop(guid, None)
            self.deleted.add(guid)
        return answer

    def called_back(self, guid: str, failed: bool, reason: str, result: str) -> None:
        """The server has told of the end of a task, and takes it away now."""
        entry = self.entries.get(guid)
        if entry is None:
            return
        if failed and reason in SERVER_REASONS:
            entry.ceiling = DELETED
        elif entry.ceiling < COMPLETED or (entry.result is not None and entry.result != result):
            self._journal.violation(f"task {guid}: called back with {reason!r}, {result!r}; acknowledged {entry}")

    def floors(self) -> dict[str, TaskEntry]:
        """A copy from before a list was asked for."""
        return {
            guid: TaskEntry(e.callback, e.floor, e.ceiling, e.cell_id, e.result) for guid, e in self.entries.items()
        }

    def check(self, found: Iterable[models.Task], before: Mapping[str, TaskEntry], gone: frozenset[str]) -> int:
        """Compare a list with what was acknowledged before it was asked for and sent before it was there."""
        tasks = {task.task_guid: task for task in found}
        for guid, floor in before.items():
            problem = self._problem(tasks.get(guid), floor, self.entries.get(guid))
            if problem:
                self._journal.violation(f"task {guid}: {problem}; acknowledged {floor}")
                self.entries.pop(guid, None)  # told once
                self._strange.add(guid)
        for guid in tasks.keys() & gone:
            self._journal.violation(f"task {guid}: was deleted and is there")
        for guid in tasks.keys() - before.keys() - self.entries.keys() - self.deleted - self._strange:
            self._journal.violation(f"task {guid}: never asked for")
        return len(before)

    def forget_ended(self, present: Iterable[str]) -> None:
        """Nothing is under way: what may have ended and is not there has ended."""
        there = set(present)
        for guid in [guid for guid in self.entries if guid not in there]:
            del self.entries[guid]
            self.deleted.add(guid)

    def _problem(self, task: models.Task | None, floor: TaskEntry, now: TaskEntry | None) -> str:
        ceiling = DELETED if now is None else now.ceiling
        if task is None:
            ended = ceiling == DELETED or (floor.callback and ceiling >= COMPLETED)
            return "" if ended or floor.floor == ABSENT else "lost"
        by_server = task.failed and task.failure_reason in SERVER_REASONS
        if task.state < floor.floor:
            return f"back in state {task.state}"
        top = DELETED if floor.callback and (ceiling >= COMPLETED or by_server) else ceiling
        if task.state > max(top, COMPLETED if by_server else 0):
            return f"in state {task.state} by nobody ({task.failure_reason!r})"
        if task.state == RUNNING and floor.floor == RUNNING and task.cell_id != floor.cell_id:
            return f"on {task.cell_id}"
        if floor.result is not None and task.result != floor.result:
            return f"result {task.result!r}"
        return ""


class DomainLedger:
    """Domains that were acknowledged as fresh, and until when (s of the monotonic clock)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.fresh_until: dict[str, float] = {}

    def check(self, found: Iterable[str], now: float) -> None:
        there = set(found)
        for domain, until in self.fresh_until.items():
            if domain not in there and now < until - 2:
                self._journal.violation(f"domain {domain} is not fresh, {until - now:.0f} s early")
