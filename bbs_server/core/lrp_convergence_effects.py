"""What LRP convergence does about each kind of work: phase B of lrp-convergence.md as a table of effects.

An effect is called only while the row it was found with is still the current one. Its desired LRP is the
current one, too, or None if it has gone; then most effects are left to the next pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core import instances
from bbs_server.core import lrp_convergence_plan as plan
from bbs_server.core.context import Context
from bbs_server.core.lrp_convergence_plan import Kind, Work
from bbs_server.core.outcome import Call, Event, Group, Hub, LRPStart, Retire, UpdateInstance
from bbs_server.core.records import UNCLAIMED, ActualLRP, DesiredLRP, Presence
from bbs_server.core.state import State


class Done(NamedTuple):
    """What one piece of work causes."""

    events: Sequence[Event] = ()
    calls: Sequence[Call] = ()
    start: LRPStart | None = None


NOTHING = Done()
Effect = Callable[[State, Work, DesiredLRP | None, Context], Done]


def _prune_evacuating(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    row = _found(work)
    instances.delete(state, row)
    return Done(instances.removed(row))


def _discard(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """A row that cannot be decoded: nobody has ever seen it, so there is no event."""
    instances.delete(state, _found(work))
    return NOTHING


def _promote(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B5. The cell of the ordinary instance is not told; its next claim or start is refused."""
    suspect = _found(work)
    promoted, ordinary = instances.promote(state, suspect)
    events = () if ordinary is None else instances.removed(ordinary)
    return Done((*events, _changed(suspect, promoted)))


def _remove(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B1 for an instance without a cell."""
    row = _found(work)
    return NOTHING if _wanted(row, desired) else Done(instances.remove(state, row))


def _retire(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B1. An instance that has a cell is stopped there, which takes several steps with the cell in between."""
    row = _found(work)
    return NOTHING if _wanted(row, desired) else Done(calls=(Retire(row, ""),))


def _wanted(row: ActualLRP, desired: DesiredLRP | None) -> bool:
    return desired is not None and row.index < desired.instances


def _create(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B2. An insertion that loses yields no event and no start request."""
    if desired is None or work.index >= desired.instances or forms.unreadable(desired, forms.SCHEDULING_INFO):
        return NOTHING
    row = instances.create_unclaimed(state, work.process_guid, work.index, desired.domain, context)
    return NOTHING if row is None else Done(instances.created(row), start=forms.start_request(desired, (row.index,)))


def _restart(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B3. An instance that waits already is requested again as it is."""
    row = _found(work)
    if desired is None:
        return NOTHING
    start = forms.start_request(desired, (row.index,))
    if row.state == UNCLAIMED:
        return Done(start=start)
    unclaimed = instances.unclaim(state, row, context)
    changed = Event(Hub.GROUP, "actual_lrp_changed", Group(instance=row), Group(instance=unclaimed))
    return Done((changed, *_replaced(row, unclaimed)), start=start)


def _unclaim(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B4a. A replacement that got lost, too: no auction until it is stale, and the group shows the suspect."""
    row = _found(work)
    return NOTHING if desired is None else Done(_replaced(row, instances.unclaim(state, row, context)))


def _replace(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B4b. The instance becomes suspect as it is, and a new one is created; the group shows the suspect."""
    row = _found(work)
    rival = state.actual_lrps.get((row.process_guid, row.index, Presence.SUSPECT))
    if desired is None or rival is not None:
        return NOTHING
    suspect = instances.suspect(state, row)
    created = instances.create_unclaimed(state, row.process_guid, row.index, desired.domain, context)
    assert created is not None
    events = (_changed(row, suspect), Event(Hub.INSTANCE, "actual_lrp_instance_created", after=created))
    return Done(events, start=forms.start_request(desired, (row.index,)))


def _remove_suspect(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B6. The cell of the suspect is not told."""
    row = _found(work)
    instances.delete(state, row)
    return Done(instances.removed(row))


def _update_routes(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B7. Quirk: no routes are sent as null, which a cell takes as no change, so that this repeats in every pass."""
    if desired is None or desired is not work.desired:
        return NOTHING
    return Done(calls=(_update(work, routes=plan.hostnames(desired) or None),))


def _update_tags(state: State, work: Work, desired: DesiredLRP | None, context: Context) -> Done:
    """B8"""
    if desired is None or desired is not work.desired:
        return NOTHING
    row = _found(work)
    tags = forms.resolved_tags(desired.metric_tags or (), row.index, row.instance_guid)
    return Done(calls=(_update(work, tags=tags),))


EFFECTS: Mapping[Kind, Effect] = {
    Kind.PRUNE_EVACUATING: _prune_evacuating,
    Kind.DISCARD: _discard,
    Kind.PROMOTE: _promote,
    Kind.REMOVE: _remove,
    Kind.CREATE: _create,
    Kind.RESTART: _restart,
    Kind.UNCLAIM: _unclaim,
    Kind.REPLACE: _replace,
    Kind.REMOVE_SUSPECT: _remove_suspect,
    Kind.UPDATE_ROUTES: _update_routes,
    Kind.UPDATE_TAGS: _update_tags,
    Kind.RETIRE: _retire,
}


def _found(work: Work) -> ActualLRP:
    assert work.instance is not None
    return work.instance


def _update(
    work: Work, routes: tuple[str, ...] | None = None, tags: tuple[tuple[str, str], ...] | None = None
) -> UpdateInstance:
    row = _found(work)
    return UpdateInstance(
        process_guid=row.process_guid,
        instance_guid=row.instance_guid,
        cell_id=row.cell_id,
        index=row.index,
        domain=row.domain,
        internal_routes=routes,
        metric_tags=tags,
        request_id="",
    )


# -- events: convergence does not use the event calculator (events.md 9.5) ---------------


def _changed(before: ActualLRP, after: ActualLRP) -> Event:
    return Event(Hub.INSTANCE, "actual_lrp_instance_changed", before, after)


def _replaced(before: ActualLRP, after: ActualLRP) -> tuple[Event, ...]:
    return (
        Event(Hub.INSTANCE, "actual_lrp_instance_created", after=after),
        Event(Hub.INSTANCE, "actual_lrp_instance_removed", before=before),
    )
