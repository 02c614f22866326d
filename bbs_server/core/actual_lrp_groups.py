"""The deprecated group lists: instances of one index shown as a pair (actual-lrps.md 5.3).

Rows are filtered first and grouped then, so that a filter may leave half of a pair. Lists group by the whole
key: rows of one index that differ in their domain are no pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core import actual_lrp_checks as checks
from bbs_server.core import lrp_events
from bbs_server.core.actual_lrps import filtered
from bbs_server.core.context import Context
from bbs_server.core.encoding import Answer, Elements, element, renumbered
from bbs_server.core.errors import RESOURCE_NOT_FOUND, Refused
from bbs_server.core.outcome import Group
from bbs_server.core.records import ActualLRP, Presence
from bbs_server.core.state import State
from bbs_server.core.texts import lookup

CHECKS: Mapping[type, Callable[[Any], list[str]]] = {
    models.ActualLRPGroupsByProcessGuidRequest: checks.process_guid,
    models.ActualLRPGroupByProcessGuidAndIndexRequest: checks.guid_and_index,
}


def list_groups(state: State, request: models.ActualLRPGroupsRequest, context: Context) -> Answer:
    return _groups(filtered(state, request.domain, request.cell_id))


def list_by_process_guid(state: State, request: models.ActualLRPGroupsByProcessGuidRequest, context: Context) -> Answer:
    return _groups(state.actual_lrps.where("process_guid", lookup(request.process_guid)))


def get_by_index(state: State, request: models.ActualLRPGroupByProcessGuidAndIndexRequest, context: Context) -> Answer:
    found = state.actual_lrps.where("instance", (lookup(request.process_guid), request.index))
    rows = [row for row in found if not row.broken]
    if not rows:
        raise Refused(RESOURCE_NOT_FOUND)
    return Elements([element(encoded(lrp_events.resolve(rows)))])


def encoded(group: Group) -> bytes:
    """The encoded ActualLRPGroup, made of the encodings that its rows have already."""
    instance, evacuating = group.instance, group.evacuating
    return (b"" if instance is None else renumbered(instance.element, 1)) + (
        b"" if evacuating is None else renumbered(evacuating.element, 2)
    )


def _groups(rows: Iterable[ActualLRP]) -> Elements:
    """Groups in the order of the first row of each key."""
    first: dict[tuple[str, int, str], ActualLRP] = {}
    shared: dict[tuple[str, int, str], list[ActualLRP]] = {}
    for row in rows:
        if not row.broken:
            key = (row.process_guid, row.index, row.domain)
            holder = first.setdefault(key, row)
            if holder is not row:
                shared.setdefault(key, [holder]).append(row)
    if not shared:
        return Elements(list(first.values()), _alone)
    return Elements(
        [
            element(encoded(lrp_events.resolve(shared[key]))) if key in shared else _alone(row)
            for key, row in first.items()
        ]
    )


def _alone(row: ActualLRP) -> bytes:
    return element(renumbered(row.element, _SLOTS.get(row.presence, 1)))


_SLOTS: Mapping[int, int] = {Presence.EVACUATING: 2}
"""Field of a group that shows a row; 1 if not listed."""
