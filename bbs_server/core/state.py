"""The state of the BBS in memory: four tables of immutable records, and the changes made to them.

A command reads and replaces records; every replacement is noted as a `Change`, which is what the
store writes and what `State.undo` takes back. Nothing here knows of time, I/O or SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bbs_server.core.records import ActualLRP, DesiredLRP, Domain, Task

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Change:
    """One record replaced: `before` is None for an insertion, `after` None for a removal."""

    table: str
    key: Any
    before: Any
    after: Any


class Table(Generic[K, R]):
    """Records by key, with indexes: each maps the value of a function of the record to its records.

    What an index holds for a value is the record itself while there has been only one, else a dict by key: most
    instances are the only ones of their LRP and index, and a dict is larger than they are.

    `touch` is told the key of every record that is set or taken out, by whatever way.
    """

    __slots__ = ("_indexes", "_key", "_log", "_rows", "_touch", "name")

    def __init__(
        self,
        name: str,
        key: Callable[[R], K],
        indexes: Mapping[str, Callable[[R], Hashable]],
        log: list[Change],
        touch: Callable[[K], None] | None = None,
    ) -> None:
        self.name = name
        self._key = key
        self._touch = touch
        self._rows: dict[K, R] = {}
        self._indexes: dict[str, tuple[Callable[[R], Hashable], dict[Hashable, R | dict[K, R]]]] = {
            index: (function, {}) for index, function in indexes.items()
        }
        self._log = log

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[R]:
        return iter(self._rows.values())

    def get(self, key: K) -> R | None:
        return self._rows.get(key)

    def all(self) -> Collection[R]:
        """All records, in the order their keys were first put."""
        return self._rows.values()

    def keys(self) -> Collection[K]:
        return self._rows.keys()

    def where(self, index: str, value: Hashable) -> Collection[R]:
        """The records for which the index's function gives the value. A view: copy before changing."""
        held = self._indexes[index][1].get(value)
        if isinstance(held, dict):
            return held.values()
        return () if held is None else (held,)

    def values(self, index: str) -> Collection[Hashable]:
        """The values that an index holds records for."""
        return self._indexes[index][1].keys()

    def put(self, record: R) -> None:
        """Insert the record, or replace the one with its key."""
        key = self._key(record)
        self._log.append(Change(self.name, key, self._rows.get(key), record))
        self._set(key, record)

    def remove(self, key: K) -> None:
        """Take the record out. It must be there."""
        self._log.append(Change(self.name, key, self._rows[key], None))
        self._set(key, None)

    def adopt(self, key: K, record: R | None) -> None:
        """Take over what the database already holds, without noting a change."""
        self._set(key, record)

    def _set(self, key: K, record: R | None) -> None:
        old = self._rows.get(key)
        if self._touch is not None:
            self._touch(key)
        if record is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = record
        for function, index in self._indexes.values():
            value = None if record is None else function(record)
            if old is not None:
                previous = function(old)
                if record is None or previous != value:
                    held: Any = index[previous]
                    if held is not old:
                        del held[key]
                    if held is old or not held:
                        del index[previous]
            if record is not None:
                held = index.get(value)
                if held is None or held is old:
                    index[value] = record
                elif isinstance(held, dict):
                    held[key] = record
                else:
                    index[value] = {self._key(held): held, key: record}


class State:
    """The four tables. `take` and `undo` frame each command's changes.

    `unsettled` are the process guids that LRP convergence has to look at: all whose desired LRP or instances have
    changed, until it finds that nothing about them can need work before the next change. The oldest comes first.
    """

    __slots__ = ("_log", "actual_lrps", "desired_lrps", "domains", "tables", "tasks", "unsettled")

    def __init__(self) -> None:
        log: list[Change] = []
        self._log = log
        self.unsettled: dict[str, None] = {}
        touch = self.unsettled.setdefault
        self.domains: Table[str, Domain] = Table("domains", lambda r: r.domain, {}, log)
        self.tasks: Table[str, Task] = Table(
            "tasks",
            lambda r: r.guid,
            {"domain": lambda r: r.domain, "cell_id": lambda r: r.cell_id, "state": lambda r: r.state},
            log,
        )
        self.desired_lrps: Table[str, DesiredLRP] = Table(
            "desired_lrps", lambda r: r.process_guid, {"domain": lambda r: r.domain}, log, touch
        )
        self.actual_lrps: Table[tuple[str, int, int], ActualLRP] = Table(
            "actual_lrps",
            lambda r: (r.process_guid, r.index, r.presence),
            {
                "domain": lambda r: r.domain,
                "cell_id": lambda r: r.cell_id,
                "process_guid": lambda r: r.process_guid,
                "instance": lambda r: (r.process_guid, r.index),
            },
            log,
            lambda key: touch(key[0]),
        )
        self.tables: dict[str, Table[Any, Any]] = {
            table.name: table for table in (self.domains, self.tasks, self.desired_lrps, self.actual_lrps)
        }

    def take(self) -> Sequence[Change]:
        """The changes noted since the last call, oldest first."""
        changes = tuple(self._log)
        self._log.clear()
        return changes

    def undo(self, changes: Iterable[Change]) -> None:
        """Take changes back; give them newest last, exactly as `take` returned them."""
        for change in reversed(tuple(changes)):
            self.tables[change.table].adopt(change.key, change.before)
