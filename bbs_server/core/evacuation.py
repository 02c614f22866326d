"""Evacuation: what becomes of a leaving cell's instances, as decision tables (evacuation.md).

Of the rows of the index, **T** is the first that belongs to the caller's instance (any presence), **O** the
ordinary one and **E** the evacuating one. A table is read from the top; the first rule whose condition holds
is carried out. `Decision.keep` tells the cell whether to let the container run on.

Errors are answers, not refusals: they may ask the cell to keep the container, and undecodable rows that were
deleted on sight stay deleted. Only a process guid that is not text is refused, and even that is an answer where a
refusal would keep the container.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from bbs_protos import models_pb2 as models

from bbs_server.core import actual_lrp_checks as checks
from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core import instances, lrp_events
from bbs_server.core.actual_lrps import instance_key, report
from bbs_server.core.context import Context
from bbs_server.core.errors import CANNOT_BE_UNCLAIMED, RESOURCE_EXISTS, RESOURCE_NOT_FOUND, Error, Refused
from bbs_server.core.instances import InstanceKey, Report
from bbs_server.core.outcome import AuctionLRPs, Call, Outcome
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, DesiredLRP, Presence
from bbs_server.core.state import State
from bbs_server.core.texts import lookup

RECREATE = 1
"""Update strategy under which an instance is stopped before its successor runs; all others are rolling."""


# -- request checks ----------------------------------------------------------------------


def check_crashed(request: models.EvacuateCrashedActualLRPRequest) -> list[str]:
    return checks.keys(request) + checks.error_message(request)


CHECKS: Mapping[type, Callable[[Any], list[str]]] = {
    models.RemoveEvacuatingActualLRPRequest: checks.keys,
    models.EvacuateClaimedActualLRPRequest: checks.keys,
    models.EvacuateCrashedActualLRPRequest: check_crashed,
    models.EvacuateStoppedActualLRPRequest: checks.keys,
    models.EvacuateRunningActualLRPRequest: checks.running,
}


# -- decisions ---------------------------------------------------------------------------


class Decision(NamedTuple):
    keep: bool = False
    error: Error | None = None


DONE = Decision()
KEEP = Decision(keep=True)


@dataclass(slots=True)
class Case:
    """One call: the rows it found, and what it has recorded so far."""

    state: State
    context: Context
    process_guid: str
    index: int
    key: InstanceKey
    before: list[ActualLRP]
    reported: Report | None = None
    reason: str | bytes = ""
    after: list[ActualLRP | None] = field(default_factory=list)
    calls: tuple[Call, ...] = ()

    @property
    def target(self) -> ActualLRP | None:
        """T"""
        return instances.with_instance_key(self.before, self.key)

    @property
    def ordinary(self) -> ActualLRP | None:
        """O"""
        return instances.with_presence(self.before, Presence.ORDINARY)

    @property
    def evacuating(self) -> ActualLRP | None:
        """E"""
        return instances.with_presence(self.before, Presence.EVACUATING)

    @property
    def desired(self) -> DesiredLRP | None:
        return self.state.desired_lrps.get(self.process_guid)

    def found(self) -> ActualLRP:
        """T, where a condition made sure that there is one."""
        target = self.target
        assert target is not None
        return target

    def record(self, before: ActualLRP | None, after: ActualLRP | None) -> None:
        self.after = lrp_events.record(self.after, before, after)

    def request_auction(self) -> None:
        """Without a desired LRP whose scheduling info can be read there is none, which is no error."""
        desired = self.desired
        if desired is not None and not forms.unreadable(desired, forms.SCHEDULING_INFO):
            self.calls = (AuctionLRPs((forms.start_request(desired, (self.index,)),)),)


Condition = Callable[[Case], bool]
Action = Callable[[Case], Decision]


class Rule(NamedTuple):
    """One row of a decision table; `row` is its number in evacuation.md."""

    row: int
    condition: Condition
    action: Action


# -- conditions --------------------------------------------------------------------------


def _always(case: Case) -> bool:
    return True


def _no_rows(case: Case) -> bool:
    return not case.before


def _no_target(case: Case) -> bool:
    return case.target is None


def _target_is(presence: Presence, *states: str) -> Condition:
    """T has this presence and, if any are given, one of these states."""

    def condition(case: Case) -> bool:
        target = case.target
        return target is not None and target.presence == presence and (not states or target.state in states)

    return condition


def _superseded(case: Case) -> bool:
    """The instance is not wanted any more: it has no successor to wait for, or one that runs or crashed."""
    ordinary = case.ordinary
    return ordinary is None or (ordinary is not case.target and ordinary.state in (RUNNING, CRASHED))


def _not_desired(case: Case) -> bool:
    return case.desired is None


def _recreated(case: Case) -> bool:
    desired = case.desired
    return desired is not None and desired.update_strategy == RECREATE


def _is_copy(case: Case) -> bool:
    """The cell reports a container that no row has, or only the evacuating one."""
    target = case.target
    return target is None or target.presence == Presence.EVACUATING


def _is_foreign_copy(case: Case) -> bool:
    return _is_copy(case) and case.evacuating is not None and case.evacuating is not case.target


def _in_place(case: Case) -> bool:
    return case.found().state in (RUNNING, CLAIMED)


def _too_few_running(case: Case) -> bool:
    """Quirk: all ordinary RUNNING rows count, also those beyond the desired number."""
    desired = case.desired
    if not _target_is(Presence.ORDINARY, RUNNING, CLAIMED)(case) or desired is None:
        return False
    return instances.count_running(case.state, case.process_guid) < desired.instances


# -- actions -----------------------------------------------------------------------------


def _nothing(case: Case) -> Decision:
    return DONE


def _keep(case: Case) -> Decision:
    return KEEP


def _refuse(case: Case, error: Error) -> Decision:
    return Decision(error=error)


_not_found = partial(_refuse, error=RESOURCE_NOT_FOUND)


def _cannot_unclaim(case: Case) -> Decision:
    return Decision(keep=True, error=CANNOT_BE_UNCLAIMED)


def _delete(case: Case) -> Decision:
    """Delete T. It was read a moment ago by the one writer, so that this cannot fail."""
    target = case.found()
    instances.delete(case.state, target)
    case.record(target, None)
    return DONE


def _drop(case: Case) -> Decision:
    """Drop the evacuating row of T, if any (evacuation.md 6.1).

    Quirk: T is announced as removed even if it is no evacuating row and stays, unless another instance has
    the evacuating row.
    """
    target = case.target
    if target is None:
        return DONE
    try:
        instances.delete_evacuating(case.state, case.process_guid, case.index, instances.instance_key_of(target))
    except Refused:
        return DONE
    case.record(target, None)
    return DONE


def _unclaim(case: Case) -> Decision:
    """Let T be placed anew. Quirk: whether its desired LRP exists does not matter."""
    target = case.found()
    case.record(target, instances.unclaim(case.state, target, case.context))
    case.request_auction()
    return DONE


def _crash(case: Case) -> Decision:
    """Count a crash. Quirk: no auction follows, and the events are those of a normal change."""
    target = case.found()
    case.record(target, instances.crash(case.state, target, case.key, case.reason, case.context))
    return DONE


def _copy(case: Case) -> Decision:
    """Keep what the cell reports as the evacuating row. Quirk: an updated row is announced as created."""
    assert case.reported is not None
    try:
        case.record(None, instances.evacuate(case.state, case.reported, case.context))
    except Refused as refusal:
        return KEEP if refusal.error == RESOURCE_EXISTS else Decision(keep=True, error=refusal.error)
    return KEEP


def _evacuate(case: Case) -> Decision:
    """Turn T into the evacuating row and, if it is the ordinary one, wait for a successor (6.2).

    Quirk: T's stored data count, not what the cell reports, and another cell's evacuating row is overwritten.
    The reference does this in three transactions; only the first can fail here, when nothing was changed yet.
    """
    target = case.found()
    try:
        evacuating = instances.evacuate(case.state, _stored(target), case.context)
    except Refused as refusal:
        return Decision(keep=True, error=refusal.error)
    case.record(target, evacuating)
    if target.presence == Presence.SUSPECT:
        instances.delete(case.state, target)
    else:
        case.record(None, instances.unclaim(case.state, target, case.context))
        case.request_auction()
    return KEEP


def _stored(row: ActualLRP) -> Report:
    return Report(
        process_guid=row.process_guid,
        index=row.index,
        domain=row.domain,
        instance_key=instances.instance_key_of(row),
        net_info=row.net_info,
        internal_routes=row.internal_routes,
        metric_tags=row.metric_tags,
        routable=row.routable,
        availability_zone=row.availability_zone,
    )


# -- decision tables ---------------------------------------------------------------------

Table = Sequence[Rule]

_EVACUATING = _target_is(Presence.EVACUATING)
_SUSPECT = _target_is(Presence.SUSPECT)


def _decide(table: Table) -> Action:
    def action(case: Case) -> Decision:
        return next(rule.action for rule in table if rule.condition(case))(case)

    return action


REMOVE_EVACUATING: Table = (
    Rule(3, _EVACUATING, _delete),
    Rule(1, _always, _not_found),
)

CLAIMED_TABLE: Table = (
    Rule(2, _no_target, _not_found),
    Rule(3, _EVACUATING, _delete),
    Rule(4, _SUSPECT, _delete),
    Rule(7, _target_is(Presence.ORDINARY, UNCLAIMED), _cannot_unclaim),
    Rule(9, _always, _unclaim),
)

CRASHED_TABLE: Table = (
    Rule(2, _no_target, _not_found),
    Rule(3, _EVACUATING, _delete),
    Rule(3, _SUSPECT, _delete),
    Rule(5, _always, _crash),
)

STOPPED_TABLE: Table = (
    Rule(2, _no_target, _not_found),
    Rule(5, _always, _delete),
)

RUNNING_RECREATE: Table = (
    Rule(6, _no_target, _nothing),
    Rule(7, _EVACUATING, _drop),
    Rule(8, _SUSPECT, _delete),
    Rule(9, _too_few_running, _keep),
    Rule(11, _target_is(Presence.ORDINARY, RUNNING, CLAIMED), _unclaim),
    Rule(12, _always, _nothing),
)

RUNNING_ROLLING: Table = (
    Rule(13, _is_foreign_copy, _nothing),
    Rule(16, _is_copy, _copy),
    Rule(17, _in_place, _evacuate),
    Rule(18, _always, _nothing),
)

RUNNING_TABLE: Table = (
    Rule(2, _no_rows, _nothing),
    Rule(3, _superseded, _drop),
    Rule(4, _not_desired, _drop),
    Rule(6, _recreated, _decide(RUNNING_RECREATE)),
    Rule(13, _always, _decide(RUNNING_ROLLING)),
)


# -- commands ----------------------------------------------------------------------------


def remove_evacuating(state: State, request: models.RemoveEvacuatingActualLRPRequest, context: Context) -> Outcome:
    """Delete the evacuating row of an instance (evacuation.md section 2)."""
    case = _case(state, request, context)
    decision = _decide(REMOVE_EVACUATING)(case)
    response = models.RemoveEvacuatingActualLRPResponse()
    _set_error(response, decision)
    return _outcome(case, response)


def evacuate_claimed(state: State, request: models.EvacuateClaimedActualLRPRequest, context: Context) -> Outcome:
    """The cell gives up an instance that it claimed and has not started (evacuation.md section 3)."""
    try:
        case = _case(state, request, context)
    except Refused as refusal:
        # An answer, since the refusal of a claimed instance keeps the container, which only unclaiming does.
        return Outcome(_evacuation_response(Decision(error=refusal.error)))
    return _carry_out(CLAIMED_TABLE, case)


def evacuate_crashed(state: State, request: models.EvacuateCrashedActualLRPRequest, context: Context) -> Outcome:
    """An instance died while its cell is leaving (evacuation.md section 4)."""
    case = _case(state, request, context)
    case.reason = request.error_message
    return _carry_out(CRASHED_TABLE, case)


def evacuate_stopped(state: State, request: models.EvacuateStoppedActualLRPRequest, context: Context) -> Outcome:
    """An instance was stopped while its cell is leaving (evacuation.md section 5)."""
    return _carry_out(STOPPED_TABLE, _case(state, request, context))


def evacuate_running(state: State, request: models.EvacuateRunningActualLRPRequest, context: Context) -> Outcome:
    """The cell offers a running instance until its successor runs elsewhere (evacuation.md section 6)."""
    return _evacuate_running(state, request, context, report)


def evacuate_running_r0(state: State, request: models.EvacuateRunningActualLRPRequest, context: Context) -> Outcome:
    """As `evacuate_running`. Quirk: routes and tags are "none", whatever was sent."""
    return _evacuate_running(state, request, context, partial(report, routes=None, tags=None))


def _evacuate_running(
    state: State,
    request: models.EvacuateRunningActualLRPRequest,
    context: Context,
    read: Callable[[models.EvacuateRunningActualLRPRequest], Report],
) -> Outcome:
    try:
        case = _case(state, request, context)
    except Refused as refusal:
        return Outcome(_evacuation_response(Decision(keep=True, error=refusal.error)))
    case.reported = read(request)
    return _carry_out(RUNNING_TABLE, case)


def _case(state: State, request: Any, context: Context) -> Case:
    """The caller's domain is not used to find the rows (evacuation.md 1.4)."""
    key = request.actual_lrp_key
    process_guid = lookup(key.process_guid)
    rows = instances.at(state, process_guid, key.index)
    return Case(state, context, process_guid, key.index, instance_key(request), rows, after=list(rows))


def _carry_out(table: Table, case: Case) -> Outcome:
    try:
        decision = _decide(table)(case)
    except Refused as refusal:
        # An answer, not a refusal, since rows that could not be decoded stay deleted.
        decision = Decision(error=refusal.error)
    return _outcome(case, _evacuation_response(decision))


def _outcome(case: Case, response: Any) -> Outcome:
    """Events go out for what was recorded, also beside an error (evacuation.md 1.5)."""
    return Outcome(response, lrp_events.normal(case.before, case.after), case.calls)


def _evacuation_response(decision: Decision) -> models.EvacuationResponse:
    response = models.EvacuationResponse(keep_container=decision.keep)
    _set_error(response, decision)
    return response


def _set_error(response: Any, decision: Decision) -> None:
    if decision.error is not None:
        response.error.type = decision.error.type
        response.error.message = decision.error.message


__all__ = [
    "CHECKS",
    "evacuate_claimed",
    "evacuate_crashed",
    "evacuate_running",
    "evacuate_running_r0",
    "evacuate_stopped",
    "remove_evacuating",
]
