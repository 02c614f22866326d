"""The picture: small rows of everything that lives in a fleet, kept up to date by lists and events.

Rows are tuples of JSON values, as browsers get them; what a row leaves out is asked for on demand. Only rows
that really changed are sent. The picture after any mixture of lists and events equals a fresh list, because a
record older than the one that is known never replaces it: LRPs carry a modification tag, tasks their times.
Quirk: a BBS announces some rows as removed that stay a while, until their cell is asked or done (evacuation.md 6.1,
retired instances); the picture then is ahead of the lists.

What can grow without end is bounded: the time line and the histories.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.client import StreamEvent
from bbs_server.core.records import CRASHED, UNCLAIMED
from bbs_server.page.feed import Kind

K = TypeVar("K")

Row = tuple[Any, ...]

INSTANCE_ROW = ("id", "guid", "index", "domain", "state", "cell", "since", "crashes", "note")
TASK_ROW = ("guid", "domain", "state", "cell", "created", "updated", "note")
LRP_ROW = ("guid", "domain", "instances")
CELL_ROW = ("name", "present", "zone", "memory", "disk", "containers", "since")
DOMAIN_ROW = ("name", "fresh", "since")
ENTRY_ROW = ("number", "at", "subject", "guid", "index", "what", "cell", "text")
"""What the places of each row mean. Times in ms since the Unix epoch, memory and disk in MiB."""

_TIME_LINE = 1000
"""Entries kept for the time line."""
_HISTORY = 200
"""Entries kept per task or LRP, its instances included."""
_HISTORIES = 5000
"""Tasks and LRPs whose history is kept; the one that was quiet longest is forgotten first."""
_NOTE = 160
"""Characters of a reason in a row."""
_MS = 1_000_000

_PRESENCES: Mapping[int, str] = {models.ActualLRP.EVACUATING: "evacuating", models.ActualLRP.SUSPECT: "suspect"}
_TASK_STATES: Mapping[int, str] = {
    models.Task.Pending: "pending",
    models.Task.Running: "running",
    models.Task.Completed: "completed",
    models.Task.Resolving: "resolving",
}


class Table(Generic[K]):
    """Rows by key, and which of them changed since they were last taken."""

    def __init__(self) -> None:
        self.rows: dict[K, Row] = {}
        self._changed: dict[K, None] = {}

    def put(self, key: K, row: Row) -> bool:
        """Whether that changed anything."""
        if self.rows.get(key) == row:
            return False
        self.rows[key] = row
        self._changed[key] = None
        return True

    def drop(self, key: K) -> bool:
        if self.rows.pop(key, None) is None:
            return False
        self._changed[key] = None
        return True

    def take(self, limit: int) -> tuple[list[Row], list[K]]:
        """At most `limit` rows as they are now, and keys of those that are gone."""
        keys = list(self._changed)[:limit] if len(self._changed) > limit else list(self._changed)
        for key in keys:
            del self._changed[key]
        return [self.rows[key] for key in keys if key in self.rows], [key for key in keys if key not in self.rows]


@dataclass(frozen=True, slots=True)
class _Tag:
    """Which version of a record is known."""

    epoch: str
    index: int

    def outdates(self, other: _Tag) -> bool:
        """Only versions of one epoch can be compared; a record of another epoch is another record."""
        return self.epoch == other.epoch and self.index > other.index


@dataclass(frozen=True, slots=True)
class _Place:
    """What is known at a (process guid, index, presence): the number of its row, and the version."""

    number: int
    tag: _Tag


class Fleet:
    """The picture. `now` gives ms since the Unix epoch."""

    def __init__(self, now: Callable[[], int] = lambda: time.time_ns() // _MS) -> None:
        self.instances: Table[int] = Table()
        self.tasks: Table[str] = Table()
        self.lrps: Table[str] = Table()
        self.cells: Table[str] = Table()
        self.domains: Table[str] = Table()
        self.entries: deque[Row] = deque(maxlen=_TIME_LINE)
        self.events = 0
        """Events received since the page process opened."""
        self._now = now
        self._places: dict[tuple[str, int, int], _Place] = {}
        self._lrp_tags: dict[str, _Tag] = {}
        self._listed: set[Kind] = set()
        self._histories: OrderedDict[tuple[str, str], deque[Row]] = OrderedDict()
        self._next_number = 1
        self._next_entry = 1

    def apply(self, event: StreamEvent) -> None:
        """Take over what an event says, unless something newer is known."""
        self.events += 1
        _EVENTS[event.name](self, event.message)

    def relist(self, kind: Kind) -> Relisting:
        """Begin to take over a complete list."""
        return Relisting(self, kind)

    def history(self, subject: str, guid: str) -> list[Row]:
        """Entries of a task, or of an LRP and its instances, since the page process opened; the oldest first."""
        return list(self._histories.get((subject, guid), ()))

    # -- cells and domains: there are no events of them, so lists are compared ------------

    def put_cells(self, presences: Iterable[models.CellPresence]) -> None:
        """A cell whose presence is gone stays as long as instances are on it."""
        seen = {_text(presence.cell_id): presence for presence in presences}
        first = not self.cells.rows
        for name, presence in seen.items():
            if self._put_cell(name, presence) and not first:
                self._note("cell", name, "present", name)
        occupied = {row[5] for row in self.instances.rows.values()} - {""}
        for name in occupied - seen.keys() - self.cells.rows.keys():
            self.cells.put(name, (name, False, "", 0, 0, 0, self._now()))
        for name in self.cells.rows.keys() - seen.keys():
            row = self.cells.rows[name]
            if row[1]:
                self.cells.put(name, (name, False, *row[2:6], self._now()))
                self._note("cell", name, "absent", name)
            elif name not in occupied:
                self.cells.drop(name)

    def put_domains(self, fresh: Iterable[str]) -> None:
        """A domain that is no longer fresh stays as long as something belongs to it."""
        names = {_text(name) for name in fresh}
        used = {row[1] for row in self.lrps.rows.values()} | {row[1] for row in self.tasks.rows.values()}
        first = not self.domains.rows
        for name in names | used | self.domains.rows.keys():
            row = self.domains.rows.get(name)
            is_fresh = name in names
            if row is not None and row[1] == is_fresh:
                if not is_fresh and name not in used:
                    self.domains.drop(name)
                continue
            self.domains.put(name, (name, is_fresh, self._now()))
            if not first and (is_fresh or row is not None):
                self._note("domain", name, "fresh" if is_fresh else "expired")

    def _put_cell(self, name: str, presence: models.CellPresence) -> bool:
        """Whether it was not present before."""
        known = self.cells.rows.get(name)
        was_present = known is not None and known[1]
        since = known[6] if known is not None and was_present else self._now()
        capacity = presence.capacity
        sizes = (capacity.memory_mb, capacity.disk_mb, capacity.containers)
        self.cells.put(name, (name, True, _text(presence.zone), *sizes, since))
        return not was_present

    # -- instances -----------------------------------------------------------------------

    def put_instance(self, lrp: models.ActualLRP, listed: bool = False) -> tuple[str, int, int]:
        key = lrp.actual_lrp_key
        place = (_text(key.process_guid), key.index, int(lrp.presence))
        known = self._places.get(place)
        if not listed and known is not None and known.tag.outdates(_tag(lrp.modification_tag)):
            return place
        self._settle(place, _text(key.domain), lrp, _text(lrp.actual_lrp_instance_key.cell_id), None)
        return place

    def change_instance(self, event: models.ActualLRPInstanceChangedEvent) -> None:
        key, before, after = event.actual_lrp_key, event.before, event.after
        guid = _text(key.process_guid)
        place = (guid, key.index, int(after.presence))
        known = self._places.get(place)
        if known is not None and known.tag.outdates(_tag(after.modification_tag)):
            return
        moved = None
        if before.presence != after.presence:
            moved = self._places.get((guid, key.index, int(before.presence)))
            if moved is not None and moved.tag.epoch == _text(before.modification_tag.epoch):
                del self._places[guid, key.index, int(before.presence)]
            else:
                moved = None
        self._settle(place, _text(key.domain), after, _text(event.actual_lrp_instance_key.cell_id), moved)

    def remove_instance(self, lrp: models.ActualLRP) -> None:
        place = (_text(lrp.actual_lrp_key.process_guid), lrp.actual_lrp_key.index, int(lrp.presence))
        known = self._places.get(place)
        tag = _tag(lrp.modification_tag)
        # What was announced as gone may have been replaced before the announcement: created comes before removed.
        if known is not None and known.tag.epoch == tag.epoch and not known.tag.outdates(tag):
            self.drop_instance(place)

    def drop_instance(self, place: tuple[str, int, int]) -> None:
        known = self._places.pop(place)
        row = self.instances.rows[known.number]
        self.instances.drop(known.number)
        self._note("instance", row[1], "removed", row[5], index=row[2])

    def note_crash(self, event: models.ActualLRPCrashedEvent) -> None:
        key = event.actual_lrp_key
        text = f"{_text(event.crash_reason)[: _NOTE - 20]} (crash {event.crash_count})"
        cell = _text(event.actual_lrp_instance_key.cell_id)
        self._note("instance", _text(key.process_guid), "crashed", cell, text, key.index)

    def _settle(
        self,
        place: tuple[str, int, int],
        domain: str,
        info: models.ActualLRP | models.ActualLRPInfo,
        cell: str,
        moved: _Place | None,
    ) -> None:
        """Put a record where it belongs. `moved` is the place it left, whose number it keeps."""
        known, tag = self._places.get(place), _tag(info.modification_tag)
        if moved is not None and known is not None:
            self.instances.drop(known.number)
        number = (moved or known or _Place(self._next_number, tag)).number
        self._next_number = max(self._next_number, number + 1)
        self._places[place] = _Place(number, tag)
        state = _instance_state(info)
        # An event names the cell that an instance was on; the record of what runs nowhere names none.
        where = "" if info.state in (UNCLAIMED, CRASHED) else cell
        note = _text(info.placement_error or info.crash_reason)[:_NOTE]
        before = self.instances.rows.get(number)
        guid, index, _ = place
        row = (number, guid, index, domain, state, where, info.since // _MS, info.crash_count, note)
        if self.instances.put(number, row) and not self._first(Kind.INSTANCES):
            what = "updated" if before is not None and before[4] == state and before[5] == where else state
            # A crash has an entry of its own.
            if not (state == "crashed" and cell):
                self._note("instance", guid, what, where, _text(info.placement_error), index)

    # -- desired LRPs --------------------------------------------------------------------

    def put_scheduling_info(self, info: models.DesiredLRPSchedulingInfo) -> str:
        key = info.desired_lrp_key
        return self._put_lrp(_text(key.process_guid), _text(key.domain), info.instances, _tag(info.modification_tag))

    def put_desired(self, lrp: models.DesiredLRP) -> None:
        guid, tag = _text(lrp.process_guid), _tag(lrp.modification_tag)
        known = self._lrp_tags.get(guid)
        if known is None or not known.outdates(tag):
            self._put_lrp(guid, _text(lrp.domain), lrp.instances, tag)

    def remove_desired(self, lrp: models.DesiredLRP) -> None:
        guid = _text(lrp.process_guid)
        known, tag = self._lrp_tags.get(guid), _tag(lrp.modification_tag)
        if known is not None and known.epoch == tag.epoch:
            self.drop_desired(guid)

    def drop_desired(self, guid: str) -> None:
        del self._lrp_tags[guid]
        self.lrps.drop(guid)
        self._note("lrp", guid, "removed")

    def _put_lrp(self, guid: str, domain: str, instances: int, tag: _Tag) -> str:
        before, known = self.lrps.rows.get(guid), self._lrp_tags.get(guid)
        self._lrp_tags[guid] = tag
        if self.lrps.put(guid, (guid, domain, instances)) and not self._first(Kind.DESIRED):
            self._note("lrp", guid, "desired" if before is None else "scaled", text=f"{instances} instances")
        elif known is not None and known != tag:
            self._note("lrp", guid, "updated")
        return guid

    # -- tasks ---------------------------------------------------------------------------

    def put_task(self, task: models.Task, listed: bool = False) -> str:
        guid = _text(task.task_guid)
        known = self.tasks.rows.get(guid)
        created, updated = task.created_at // _MS, task.updated_at // _MS
        if not listed and known is not None and (known[4], known[5]) > (created, updated):
            return guid
        state = _task_state(task)
        note = _text(task.failure_reason or task.rejection_reason)[:_NOTE]
        row = (guid, _text(task.domain), state, _text(task.cell_id), created, updated, note)
        if self.tasks.put(guid, row) and not self._first(Kind.TASKS):
            what = "rejected" if known is not None and known[2] == state == "pending" else state
            self._note("task", guid, what, row[3], note)
        return guid

    def remove_task(self, task: models.Task) -> None:
        guid = _text(task.task_guid)
        known = self.tasks.rows.get(guid)
        if known is not None and known[4] <= task.created_at // _MS:
            self.drop_task(guid)

    def drop_task(self, guid: str) -> None:
        self.tasks.drop(guid)
        self._note("task", guid, "removed")

    # -- time line and histories ---------------------------------------------------------

    def _first(self, kind: Kind) -> bool:
        """Whether what is put now was there before the page: it has no place in the time line."""
        return kind not in self._listed

    def _note(
        self, subject: str, guid: str, what: str, cell: str = "", text: str = "", index: int | None = None
    ) -> None:
        entry = (self._next_entry, self._now(), subject, guid, index, what, cell, text[:_NOTE])
        self._next_entry += 1
        self.entries.append(entry)
        if subject in ("cell", "domain"):
            return
        key = ("task" if subject == "task" else "lrp", guid)
        entries = self._histories.get(key)
        if entries is None:
            entries = self._histories[key] = deque(maxlen=_HISTORY)
            if len(self._histories) > _HISTORIES:
                self._histories.popitem(last=False)
        self._histories.move_to_end(key)
        entries.append(entry)

    def entries_after(self, number: int, limit: int) -> list[Row]:
        """The newest entries with a higher number, at most `limit`, the oldest of them first."""
        new = min(self._next_entry - 1 - number, len(self.entries), limit)
        return [self.entries[place] for place in range(-new, 0)]

    def known(self, kind: Kind) -> set[Any]:
        """The keys of what is known of a kind."""
        known: Mapping[Kind, Iterable[Any]] = {
            Kind.TASKS: self.tasks.rows,
            Kind.DESIRED: self.lrps.rows,
            Kind.INSTANCES: self._places,
        }
        return set(known[kind])

    def was_listed(self, kind: Kind) -> None:
        self._listed.add(kind)


class Relisting:
    """A complete list on its way into the picture, in parts. What is not in it is gone at the end.

    A list is taken after everything that was applied before it, so it is right whatever is known.
    """

    def __init__(self, fleet: Fleet, kind: Kind) -> None:
        self._fleet = fleet
        self._kind = kind
        self._put, self._drop = _LISTS[kind]
        self._unseen = fleet.known(kind)

    def add(self, records: Sequence[Message]) -> None:
        for record in records:
            self._unseen.discard(self._put(self._fleet, record))

    def finish(self) -> None:
        for key in self._unseen:
            self._drop(self._fleet, key)
        self._fleet.was_listed(self._kind)


_LISTS: Mapping[Kind, tuple[Callable[[Fleet, Any], Any], Callable[[Fleet, Any], None]]] = {
    Kind.TASKS: (lambda fleet, task: fleet.put_task(task, listed=True), Fleet.drop_task),
    Kind.DESIRED: (Fleet.put_scheduling_info, Fleet.drop_desired),
    Kind.INSTANCES: (lambda fleet, lrp: fleet.put_instance(lrp, listed=True), Fleet.drop_instance),
}
"""How a record of each list is put, which gives its key, and how a key is dropped."""


_EVENTS: Mapping[str, Callable[[Fleet, Any], object]] = {
    "task_created": lambda fleet, event: fleet.put_task(event.task),
    "task_changed": lambda fleet, event: fleet.put_task(event.after),
    "task_removed": lambda fleet, event: fleet.remove_task(event.task),
    "desired_lrp_created": lambda fleet, event: fleet.put_desired(event.desired_lrp),
    "desired_lrp_changed": lambda fleet, event: fleet.put_desired(event.after),
    "desired_lrp_removed": lambda fleet, event: fleet.remove_desired(event.desired_lrp),
    "actual_lrp_instance_created": lambda fleet, event: fleet.put_instance(event.actual_lrp),
    "actual_lrp_instance_changed": Fleet.change_instance,
    "actual_lrp_instance_removed": lambda fleet, event: fleet.remove_instance(event.actual_lrp),
    "actual_lrp_crashed": Fleet.note_crash,
}
"""What each event of the streams does (events.md 4)."""


def _instance_state(info: models.ActualLRP | models.ActualLRPInfo) -> str:
    """The state as the page shows it: a presence that is not ordinary says more than the state below it."""
    return _PRESENCES.get(info.presence) or _text(info.state).lower()


def _task_state(task: models.Task) -> str:
    if task.failed and task.state == models.Task.Completed:
        return "failed"
    return _TASK_STATES.get(task.state, "invalid")


def _tag(tag: models.ModificationTag) -> _Tag:
    return _Tag(_text(tag.epoch), tag.index)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
