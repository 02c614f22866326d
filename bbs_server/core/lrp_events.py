"""The event calculator: what changed between two lists of the rows of one index (actual-lrps.md section 3).

A command reads the rows of its index (the before-list), records each change it makes in a copy (the
after-list) and lets `normal` or `crash` compare both. An entry None is a row that was removed.

Group events compare what the two lists resolve to, instance events compare entry by entry:

=================  ============================================  ==================================
after              group events                                  instance events
=================  ============================================  ==================================
gone               removed                                       removed
new                created                                       created
UNCLAIMED          changed                                       changed if it was UNCLAIMED,
                                                                 else created, removed
CLAIMED, RUNNING   changed, or created and removed if another    changed
                   instance takes the place
CRASHED            crashed, changed                              crashed, changed
=================  ============================================  ==================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest

from bbs_server.core.outcome import Event, Group, Hub
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, Presence

Row = ActualLRP | None
Rows = Sequence[Row]

_YIELDS_TO: Mapping[tuple[int, str], frozenset[str]] = {
    (Presence.ORDINARY, RUNNING): frozenset(),
    (Presence.ORDINARY, CLAIMED): frozenset((RUNNING, CLAIMED)),
    (Presence.SUSPECT, RUNNING): frozenset((RUNNING,)),
    (Presence.SUSPECT, CLAIMED): frozenset((RUNNING,)),
}
"""In which states the holder of a group's instance slot stays; candidates not listed never replace it."""


# -- lists -------------------------------------------------------------------------------


def record(rows: Rows, before: Row, after: Row) -> list[Row]:
    """The list with a change: entries with the instance key of `before` become `after`.

    If there is none, or `before` is None, `after` is appended. Quirk: only the instance key counts, so that
    two rows that share one are both replaced.
    """
    changed = list(rows)
    found = False
    if before is not None:
        guid, cell = before.instance_guid, before.cell_id
        for position, row in enumerate(rows):
            if row is not None and row.instance_guid == guid and row.cell_id == cell:
                changed[position] = after
                found = True
    if not found:
        changed.append(after)
    return changed


# -- groups ------------------------------------------------------------------------------


def alone(row: ActualLRP) -> Group:
    """The group of one row."""
    return Group(evacuating=row) if row.presence == Presence.EVACUATING else Group(instance=row)


def resolve(rows: Iterable[Row]) -> Group:
    """The group that the rows of an index make (actual-lrps.md 3.2)."""
    instance: Row = None
    evacuating: Row = None
    for row in rows:
        if row is None:
            continue
        if row.presence == Presence.EVACUATING:
            evacuating = row
        elif instance is None:
            instance = row
        else:
            stays = _YIELDS_TO.get((row.presence, row.state))
            if stays is not None and instance.state not in stays:
                instance = row
    return Group(instance, evacuating)


def representative(group: Group) -> Row:
    """The row a group stands for: its only one, or the instance if it is RUNNING or CRASHED."""
    if group.instance is None or group.evacuating is None:
        return group.instance or group.evacuating
    return group.instance if group.instance.state in (RUNNING, CRASHED) else group.evacuating


# -- emission ----------------------------------------------------------------------------


def normal(before: Rows, after: Rows, trace_id: str = "") -> tuple[Event, ...]:
    """The events of any change but a crash: first those of groups, then those of instances."""
    old, new = resolve(before), resolve(after)
    groups: list[Event] = []
    for b, a in ((old.instance, new.instance), (old.evacuating, new.evacuating)):
        if not _same(b, a):
            groups += _group_events(b, a)
    instances: list[Event] = []
    for b, a in zip_longest(before, after):
        if not _same(b, a):
            instances += _instance_events(b, a, trace_id)
    return (*_ordered(groups), *_ordered(instances))


def crash(before: Rows, after: Rows) -> tuple[Event, ...]:
    """The events of the crash of an ordinary instance (actual-lrps.md 3.4)."""
    old, new = resolve(before), resolve(after)
    groups: list[Event] = []
    for b, a in ((old.instance, new.instance), (old.evacuating, new.evacuating)):
        if _same(b, a):
            continue
        if b is None or a is None:
            groups += _group_events(b, a)
        else:
            # Quirk: here both groups are complete, with an evacuating instance that did not change.
            groups += (_crashed(Hub.GROUP, b, a), Event(Hub.GROUP, "actual_lrp_changed", old, new))
    instances: list[Event] = []
    for b, a in zip_longest(before, after):
        if _same(b, a):
            continue
        if b is None or a is None or a.state == CRASHED:
            instances += _instance_events(b, a, "")
        else:
            instances += (_crashed(Hub.INSTANCE, b, a), *_instance_replaced(b, a, ""))
    return (*_ordered(groups), *_ordered(instances))


def removed(row: ActualLRP, trace_id: str = "") -> tuple[Event, ...]:
    """The events of a removal where nothing else of the index matters."""
    return (
        Event(Hub.GROUP, "actual_lrp_removed", before=alone(row)),
        Event(Hub.INSTANCE, "actual_lrp_instance_removed", before=row, trace_id=trace_id),
    )


def created(row: ActualLRP, trace_id: str = "") -> tuple[Event, ...]:
    """The events of a creation where nothing else of the index matters."""
    return (
        Event(Hub.GROUP, "actual_lrp_created", after=alone(row)),
        Event(Hub.INSTANCE, "actual_lrp_instance_created", after=row, trace_id=trace_id),
    )


def _same(b: Row, a: Row) -> bool:
    return b is a or b == a


def _group_events(b: Row, a: Row) -> Sequence[Event]:
    if a is None:
        return () if b is None else (Event(Hub.GROUP, "actual_lrp_removed", before=alone(b)),)
    if b is None:
        return (Event(Hub.GROUP, "actual_lrp_created", after=alone(a)),)
    changed = Event(Hub.GROUP, "actual_lrp_changed", alone(b), alone(a))
    if a.state == CRASHED:
        return (_crashed(Hub.GROUP, b, a), changed)
    if a.state != UNCLAIMED and _replaces(b, a):
        return (
            Event(Hub.GROUP, "actual_lrp_created", after=alone(a)),
            Event(Hub.GROUP, "actual_lrp_removed", before=alone(b)),
        )
    return (changed,)


def _instance_events(b: Row, a: Row, trace_id: str) -> Sequence[Event]:
    if a is None:
        return () if b is None else (Event(Hub.INSTANCE, "actual_lrp_instance_removed", b, None, trace_id),)
    if b is None:
        return (Event(Hub.INSTANCE, "actual_lrp_instance_created", None, a, trace_id),)
    if a.state == UNCLAIMED and b.state != UNCLAIMED:
        return _instance_replaced(b, a, trace_id)
    changed = Event(Hub.INSTANCE, "actual_lrp_instance_changed", b, a, trace_id)
    return (_crashed(Hub.INSTANCE, b, a), changed) if a.state == CRASHED else (changed,)


def _instance_replaced(b: ActualLRP, a: ActualLRP, trace_id: str) -> Sequence[Event]:
    return (
        Event(Hub.INSTANCE, "actual_lrp_instance_created", None, a, trace_id),
        Event(Hub.INSTANCE, "actual_lrp_instance_removed", b, None, trace_id),
    )


def _crashed(hub: Hub, b: ActualLRP, a: ActualLRP) -> Event:
    return Event(hub, "actual_lrp_crashed", b, a)


def _replaces(b: ActualLRP, a: ActualLRP) -> bool:
    """Whether another instance takes the place of `b`, which was one."""
    if b.instance_guid == a.instance_guid and b.cell_id == a.cell_id:
        return False
    return bool(b.instance_guid or b.cell_id)


# -- order -------------------------------------------------------------------------------


def _ordered(events: list[Event]) -> list[Event]:
    """Crashes first, then what brings up a running instance, so that its routes come before others go."""
    if len(events) > 1:
        events.sort(key=_score, reverse=True)
    return events


def _score(event: Event) -> int:
    if event.name == "actual_lrp_crashed":
        return 2
    result = _RESULT[event.hub](event.after)
    return 1 if result is not None and result.state == RUNNING else 0


def _of_group(group: Group | None) -> Row:
    return None if group is None else representative(group)


def _of_instance(row: Row) -> Row:
    return row


_RESULT: Mapping[Hub, Callable[..., Row]] = {Hub.GROUP: _of_group, Hub.INSTANCE: _of_instance}
