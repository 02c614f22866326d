"""What can happen to the rows of one index of an LRP: the shared primitives of every module that changes them.

Legal transitions of the ordinary row (actual-lrps.md 2.1); SAME needs the caller to be the row's instance::

                 to CLAIMED   to RUNNING   to CRASHED
    UNCLAIMED    ANY          ANY          -
    CLAIMED      SAME         ANY          SAME
    RUNNING      SAME         SAME         SAME
    CRASHED      SAME         SAME         -

Each primitive that writes is one replacement of a row in the state; what it returns is the row as events
show it. Callers check first and change then, so that a refusal leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from bbs_server.core import lrp_events, restarts
from bbs_server.core.context import Context
from bbs_server.core.errors import (
    CANNOT_BE_CRASHED,
    CANNOT_BE_REMOVED,
    CANNOT_BE_UNCLAIMED,
    RESOURCE_EXISTS,
    Refused,
)
from bbs_server.core.go_json import text
from bbs_server.core.outcome import Event
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, Presence, replace
from bbs_server.core.state import State
from bbs_server.core.texts import lookup, name, truncate


class By(Enum):
    """Who may make a transition: any instance, or only the one the row belongs to."""

    ANY = "any"
    SAME = "same"


TRANSITIONS: Mapping[tuple[str, str], By] = {
    (UNCLAIMED, CLAIMED): By.ANY,
    (UNCLAIMED, RUNNING): By.ANY,
    (CLAIMED, CLAIMED): By.SAME,
    (CLAIMED, RUNNING): By.ANY,
    (CLAIMED, CRASHED): By.SAME,
    (RUNNING, CLAIMED): By.SAME,
    (RUNNING, RUNNING): By.SAME,
    (RUNNING, CRASHED): By.SAME,
    (CRASHED, CLAIMED): By.SAME,
    (CRASHED, RUNNING): By.SAME,
}

NONE: tuple[str, str] = ("", "")
"""The instance key of a row that no cell has."""

InstanceKey = tuple[str | bytes, str | bytes]
"""Instance guid and cell id, as a request gives them: `bytes` is a string that is not valid UTF-8."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a cell says about an instance it runs. `net_info` is the encoded message.

    None for routes and tags is "none", which is stored as JSON null and differs from empty.
    """

    process_guid: str
    index: int
    domain: str | bytes
    instance_key: InstanceKey
    net_info: bytes
    internal_routes: tuple[str, ...] | None
    metric_tags: tuple[tuple[str, str], ...] | None
    routable: bool
    availability_zone: str | bytes


# -- reading -----------------------------------------------------------------------------


def at(state: State, process_guid: str, index: int) -> list[ActualLRP]:
    """The rows of an index, all presences.

    Those that cannot be decoded are deleted on sight and never seen (actual-lrps.md 1.3).
    """
    return _readable(state, list(state.actual_lrps.where("instance", (process_guid, index))))


def of_process(state: State, process_guid: str) -> list[ActualLRP]:
    """The rows of all indices of an LRP, read as `at` reads those of one."""
    return _readable(state, list(state.actual_lrps.where("process_guid", process_guid)))


def is_broken(state: State, process_guid: str, index: int) -> bool:
    """Whether `at` would delete something."""
    return any(row.broken for row in state.actual_lrps.where("instance", (process_guid, index)))


def _readable(state: State, rows: list[ActualLRP]) -> list[ActualLRP]:
    for row in rows:
        if row.broken:
            return _discard_broken(state, rows)
    return rows


def _discard_broken(state: State, rows: list[ActualLRP]) -> list[ActualLRP]:
    for row in rows:
        if row.broken:
            delete(state, row)
    return [row for row in rows if not row.broken]


def with_presence(rows: Sequence[ActualLRP], presence: int) -> ActualLRP | None:
    for row in rows:
        if row.presence == presence:
            return row
    return None


def with_instance_key(rows: Sequence[ActualLRP], key: InstanceKey) -> ActualLRP | None:
    """The first row, of any presence, that belongs to this instance."""
    guid, cell = key
    for row in rows:
        if row.instance_guid == guid and row.cell_id == cell:
            return row
    return None


def key_of(row: ActualLRP) -> tuple[str, int, int]:
    """The primary key of a row."""
    return (row.process_guid, row.index, row.presence)


def instance_key_of(row: ActualLRP) -> tuple[str, str]:
    return (row.instance_guid, row.cell_id)


def may_become(row: ActualLRP, target: str, key: InstanceKey) -> bool:
    """Whether the instance `key` may bring the ordinary row into the state `target`."""
    by = TRANSITIONS.get((row.state, target))
    return by is By.ANY or (by is By.SAME and instance_key_of(row) == key)


def count_running(state: State, process_guid: str) -> int:
    """The ordinary RUNNING rows of an LRP, at all indices."""
    return sum(
        row.state == RUNNING and row.presence == Presence.ORDINARY
        for row in state.actual_lrps.where("process_guid", process_guid)
    )


# -- creating and removing ---------------------------------------------------------------


def create_unclaimed(state: State, process_guid: str, index: int, domain: str, context: Context) -> ActualLRP | None:
    """Insert an UNCLAIMED ordinary row; None, and no change, if the index has an ordinary row already."""
    if state.actual_lrps.get((process_guid, index, Presence.ORDINARY)) is not None:
        return None
    row = ActualLRP(
        process_guid, index, domain, Presence.ORDINARY, UNCLAIMED, since=context.now, tag_epoch=context.new_guid()
    )
    state.actual_lrps.put(row)
    return row


def create_running(state: State, report: Report, presence: Presence, context: Context) -> ActualLRP:
    """Insert a RUNNING row with everything a cell reports. Raises Refused for unstorable text."""
    guid, cell = report.instance_key
    row = ActualLRP(
        process_guid=name(report.process_guid),
        index=report.index,
        domain=name(report.domain),
        presence=presence,
        state=RUNNING,
        since=context.now,
        tag_epoch=context.new_guid(),
        instance_guid=name(guid),
        cell_id=name(cell),
        net_info=report.net_info,
        internal_routes=report.internal_routes,
        metric_tags=report.metric_tags,
        routable=report.routable,
        availability_zone=name(report.availability_zone),
    )
    state.actual_lrps.put(row)
    return row


def delete(state: State, row: ActualLRP) -> None:
    """Take a row out, without events."""
    state.actual_lrps.remove(key_of(row))


def remove(state: State, row: ActualLRP, trace_id: str = "") -> tuple[Event, ...]:
    """Take a row out; the events are the calculator's, in which a suspect may hide the row."""
    before = at(state, row.process_guid, row.index)
    delete(state, row)
    return lrp_events.normal(before, lrp_events.record(before, row, None), trace_id)


created = lrp_events.created
removed = lrp_events.removed


def delete_evacuating(state: State, process_guid: str, index: int, key: InstanceKey) -> bool:
    """Delete the evacuating row of the index (evacuation.md 1.1); whether there was one.

    Raises CANNOT_BE_REMOVED if it belongs to another instance.
    """
    row = state.actual_lrps.get((process_guid, index, Presence.EVACUATING))
    if row is None:
        return False
    if instance_key_of(row) != key:
        raise Refused(CANNOT_BE_REMOVED)
    delete(state, row)
    return True


# -- changing ----------------------------------------------------------------------------


def claim(state: State, row: ActualLRP, key: InstanceKey, context: Context) -> ActualLRP:
    """The row goes to an instance that is about to start. Raises Refused for unstorable text."""
    return _put(
        state,
        replace(
            row,
            state=CLAIMED,
            instance_guid=name(key[0]),
            cell_id=name(key[1]),
            placement_error="",
            net_info=b"",
            since=context.now,
            tag_index=row.tag_index + 1,
        ),
    )


def start(state: State, row: ActualLRP, report: Report, context: Context) -> ActualLRP:
    """The row becomes RUNNING as reported. Raises Refused for unstorable text."""
    guid, cell = report.instance_key
    return _put(
        state,
        replace(
            row,
            state=RUNNING,
            instance_guid=name(guid),
            cell_id=name(cell),
            placement_error="",
            since=context.now,
            net_info=report.net_info,
            internal_routes=report.internal_routes,
            metric_tags=report.metric_tags,
            routable=report.routable,
            availability_zone=name(report.availability_zone),
            tag_index=row.tag_index + 1,
        ),
    )


def unclaim(state: State, row: ActualLRP, context: Context) -> ActualLRP:
    """The row waits for a cell again, in whatever state it is (actual-lrps.md 2.3).

    Crash data, placement error, routable, routes, tags and zone stay. Raises CANNOT_BE_UNCLAIMED if it
    is UNCLAIMED.
    """
    if row.state == UNCLAIMED:
        raise Refused(CANNOT_BE_UNCLAIMED)
    return _put(
        state,
        replace(
            row,
            state=UNCLAIMED,
            instance_guid="",
            cell_id="",
            net_info=b"",
            since=context.now,
            tag_index=row.tag_index + 1,
        ),
    )


def crash(state: State, row: ActualLRP, key: InstanceKey, reason: str | bytes, context: Context) -> ActualLRP:
    """Count a crash: back to UNCLAIMED if it may be restarted at once, else CRASHED (actual-lrps.md 4.4).

    Returns the row with the complete reason, as events show it; the row itself holds it truncated, and only
    what is left of it must be storable. Raises CANNOT_BE_CRASHED if the transition is not legal.
    """
    if not may_become(row, CRASHED, key):
        raise Refused(CANNOT_BE_CRASHED)
    kept = lookup(truncate(reason))
    count = restarts.next_crash_count(row.crash_count, row.state == RUNNING, row.since, context.now)
    shown = replace(
        row,
        state=UNCLAIMED if restarts.at_once(count) else CRASHED,
        instance_guid="",
        cell_id="",
        net_info=b"",
        crash_count=count,
        crash_reason=text(reason),
        since=context.now,
        tag_index=row.tag_index + 1,
    )
    _put(state, shown if kept == shown.crash_reason else replace(shown, crash_reason=kept))
    return shown


def fail(state: State, row: ActualLRP, reason: str | bytes, context: Context) -> ActualLRP:
    """Note why an UNCLAIMED row could not be placed. Returns the row with the complete reason."""
    kept = lookup(truncate(reason))
    shown = replace(row, placement_error=text(reason), since=context.now, tag_index=row.tag_index + 1)
    _put(state, shown if kept == shown.placement_error else replace(shown, placement_error=kept))
    return shown


def change_presence(state: State, row: ActualLRP, presence: Presence) -> ActualLRP:
    """Move a row to another presence; `since` and the modification tag stay (actual-lrps.md 1.4).

    Raises RESOURCE_EXISTS if the index has a row of that presence.
    """
    changed = replace(row, presence=presence)
    if state.actual_lrps.get(key_of(changed)) is not None:
        raise Refused(RESOURCE_EXISTS)
    delete(state, row)
    return _put(state, changed)


def suspect(state: State, row: ActualLRP) -> ActualLRP:
    """The cell of an ordinary row is missing. Raises RESOURCE_EXISTS if the index has a suspect already."""
    return change_presence(state, row, Presence.SUSPECT)


def promote(state: State, row: ActualLRP) -> tuple[ActualLRP, ActualLRP | None]:
    """The cell of a suspect is back: it replaces the ordinary row. Returns its row and the replaced one."""
    ordinary = state.actual_lrps.get((row.process_guid, row.index, Presence.ORDINARY))
    if ordinary is not None:
        delete(state, ordinary)
    return change_presence(state, row, Presence.ORDINARY), ordinary


def evacuate(state: State, report: Report, context: Context) -> ActualLRP:
    """Create or update the evacuating row of an index (evacuation.md 1.3).

    Raises RESOURCE_EXISTS if it has these keys and this net info; other differences do not count.
    """
    row = state.actual_lrps.get((report.process_guid, report.index, Presence.EVACUATING))
    if row is None:
        return create_running(state, report, Presence.EVACUATING, context)
    if (row.domain, instance_key_of(row), row.net_info) == (report.domain, report.instance_key, report.net_info):
        raise Refused(RESOURCE_EXISTS)
    guid, cell = report.instance_key
    stored = _put(
        state,
        replace(
            row,
            domain=name(report.domain),
            instance_guid=name(guid),
            cell_id=name(cell),
            net_info=report.net_info,
            internal_routes=report.internal_routes,
            metric_tags=report.metric_tags,
            since=context.now,
            tag_index=row.tag_index + 1,
        ),
    )
    # Quirk: the zone is not stored, but the events show it; routable is neither stored nor shown. A zone that
    # is not stored need not be storable.
    return replace(stored, availability_zone=text(report.availability_zone))


def _put(state: State, row: ActualLRP) -> ActualLRP:
    state.actual_lrps.put(row)
    return row
