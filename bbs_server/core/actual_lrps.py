"""Actual LRPs: the commands cells and clients change instances with, and the lists (actual-lrps.md).

What each command does, by the ordinary row of its index; legal transitions are in `instances.TRANSITIONS`::

    command   suspect's own call   no row         legal            not legal
    claim     nothing              not found      CLAIMED          cannot claim
    start     nothing              created        RUNNING          cannot start
    crash     suspect removed      not found      UNCLAIMED or     cannot crash
                                                  CRASHED
    fail      -                    nothing        placement error  cannot fail (unless UNCLAIMED)
    remove    -                    not found      removed          not found (another instance)
    retire    -                    not found      removed or       -
                                                  stopped by cell

A claim by the instance that has claimed, and a start that says nothing new, change nothing. A start that
succeeds removes the evacuating and the suspect row of its index.

Every command reads the rows of its index first. The reference does so in a transaction of its own, in which
rows that cannot be decoded are deleted; the rest is another transaction. `_command` keeps that apart: such a
deletion stays even if the command is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from operator import attrgetter
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core import actual_lrp_checks as checks
from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core import instances, json_columns, lrp_events, maps, sharing
from bbs_server.core.context import Context
from bbs_server.core.encoding import Answer, Elements, encode
from bbs_server.core.errors import (
    CANNOT_BE_CLAIMED,
    CANNOT_BE_FAILED,
    CANNOT_BE_STARTED,
    RESOURCE_NOT_FOUND,
    Error,
    Refused,
)
from bbs_server.core.go_json import text
from bbs_server.core.instances import InstanceKey, Report
from bbs_server.core.outcome import AuctionLRPs, Command, Outcome, Retire
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, Presence
from bbs_server.core.state import State
from bbs_server.core.texts import lookup

# -- request checks ----------------------------------------------------------------------


def check_claim(request: models.ClaimActualLRPRequest) -> list[str]:
    """Quirk: the index is not checked."""
    return checks.process_guid(request) + checks.instance_key(request)


def check_fail(request: models.FailActualLRPRequest) -> list[str]:
    return checks.key(request) + checks.error_message(request)


def check_process_guids(request: models.ActualLRPsByProcessGuidsRequest) -> list[str]:
    return [] if request.process_guids else ["process_guids must not be empty"]


CHECKS: Mapping[type, Callable[[Any], list[str]]] = {
    models.ClaimActualLRPRequest: check_claim,
    models.StartActualLRPRequest: checks.running,
    models.CrashActualLRPRequest: checks.keys,
    models.FailActualLRPRequest: check_fail,
    models.RemoveActualLRPRequest: checks.guid_and_index,
    models.RetireActualLRPRequest: checks.key,
    models.ActualLRPsByProcessGuidsRequest: check_process_guids,
}


# -- commands ----------------------------------------------------------------------------

Body = Callable[[State, list[ActualLRP], Any, Context], Outcome]
"""A command that is given the rows of its index, too."""


def _command(body: Body) -> Command:
    @wraps(body)
    def command(state: State, request: Any, context: Context) -> Outcome:
        key = request.actual_lrp_key if hasattr(request, "actual_lrp_key") else request
        process_guid = lookup(key.process_guid)
        if not instances.is_broken(state, process_guid, key.index):
            return body(state, instances.at(state, process_guid, key.index), request, context)
        rows = instances.at(state, process_guid, key.index)
        try:
            return body(state, rows, request, context)
        except Refused as refusal:
            return Outcome(answer(refusal.error))

    return command


def answer(error: Error | None = None) -> models.ActualLRPLifecycleResponse:
    """The answer of these commands; with an error it is one that keeps the changes made."""
    response = models.ActualLRPLifecycleResponse()
    if error is not None:
        response.error.type = error.type  # type: ignore[assignment]
        response.error.message = error.message
    return response


@_command
def claim(state: State, rows: list[ActualLRP], request: models.ClaimActualLRPRequest, context: Context) -> Outcome:
    """A cell takes an instance (actual-lrps.md 4.2)."""
    key = instance_key(request)
    if _is_suspect(rows, key):
        return Outcome(answer())
    row = _ordinary(rows)
    if not instances.may_become(row, CLAIMED, key):
        raise Refused(CANNOT_BE_CLAIMED)
    if row.state == CLAIMED:
        return Outcome(answer())
    return _changed(rows, row, instances.claim(state, row, key, context))


@_command
def start(state: State, rows: list[ActualLRP], request: models.StartActualLRPRequest, context: Context) -> Outcome:
    """A cell reports an instance that runs (actual-lrps.md 4.3)."""
    return _start(state, rows, report(request), context)


@_command
def start_r0(state: State, rows: list[ActualLRP], request: models.StartActualLRPRequest, context: Context) -> Outcome:
    """As `start`. Quirk: routes and tags are ignored, and become an empty list and none."""
    return _start(state, rows, report(request, routes=(), tags=None), context)


def _start(state: State, rows: list[ActualLRP], reported: Report, context: Context) -> Outcome:
    if _is_suspect(rows, reported.instance_key):
        return Outcome(answer())
    row = instances.with_presence(rows, Presence.ORDINARY)
    after: list[ActualLRP | None] = list(rows)
    if row is None:
        running = instances.create_running(state, reported, Presence.ORDINARY, context)
        after = lrp_events.record(after, None, running)
    elif row.state != RUNNING or not _says_nothing_new(row, reported):
        if row.domain != reported.domain or not instances.may_become(row, RUNNING, reported.instance_key):
            raise Refused(CANNOT_BE_STARTED)
        after = lrp_events.record(after, row, instances.start(state, row, reported, context))
    elif len(rows) == 1:
        return Outcome(answer())
    for presence in (Presence.EVACUATING, Presence.SUSPECT):
        superseded = instances.with_presence(rows, presence)
        if superseded is not None:
            instances.delete(state, superseded)
            after = lrp_events.record(after, superseded, None)
    return Outcome(answer(), lrp_events.normal(rows, after))


@_command
def crash(state: State, rows: list[ActualLRP], request: models.CrashActualLRPRequest, context: Context) -> Outcome:
    """A cell reports that an instance died (actual-lrps.md 4.4)."""
    key = instance_key(request)
    caller = instances.with_instance_key(rows, key)
    if caller is not None and caller.presence == Presence.SUSPECT:
        instances.delete(state, caller)
        return _changed(rows, caller, None)
    row = _ordinary(rows)
    crashed = instances.crash(state, row, key, request.error_message, context)
    events = lrp_events.crash(rows, lrp_events.record(rows, row, crashed))
    if crashed.state == CRASHED:
        return Outcome(answer(), events)
    desired = state.desired_lrps.get(row.process_guid)
    error = RESOURCE_NOT_FOUND if desired is None else forms.unreadable(desired, forms.SCHEDULING_INFO)
    if desired is None or error is not None:
        # The crash is committed before the scheduling info is read, so it stays.
        return Outcome(answer(error), events)
    return Outcome(answer(), events, (AuctionLRPs((forms.start_request(desired, (row.index,)),)),))


@_command
def fail(state: State, rows: list[ActualLRP], request: models.FailActualLRPRequest, context: Context) -> Outcome:
    """The auctioneer could not place an instance (actual-lrps.md 4.5). Quirk: a missing row is a success."""
    row = instances.with_presence(rows, Presence.ORDINARY)
    if row is None:
        return Outcome(answer())
    if row.state != UNCLAIMED:
        raise Refused(CANNOT_BE_FAILED)
    return _changed(rows, row, instances.fail(state, row, request.error_message, context))


@_command
def remove(state: State, rows: list[ActualLRP], request: models.RemoveActualLRPRequest, context: Context) -> Outcome:
    """Delete the ordinary row, of this instance if one is named (actual-lrps.md 4.6)."""
    row = _ordinary(rows)
    if request.HasField("actual_lrp_instance_key") and instances.instance_key_of(row) != instance_key(request):
        raise Refused(RESOURCE_NOT_FOUND)
    instances.delete(state, row)
    return _changed(rows, row, None)


@_command
def retire(state: State, rows: list[ActualLRP], request: models.RetireActualLRPRequest, context: Context) -> Outcome:
    """Stop an instance for good (actual-lrps.md 4.7): at once, or by way of its cell if it has one."""
    row = _ordinary(rows)
    if row.state in (CLAIMED, RUNNING):
        return Outcome(answer(), calls=(Retire(row, context.request_id),))
    instances.delete(state, row)
    return _changed(rows, row, None, context.request_id)


def remove_retired(state: State, request: ActualLRP, context: Context) -> Outcome:
    """Delete the row of a retired instance whose cell is gone. Refused if it is not its row any more."""
    rows = instances.at(state, request.process_guid, request.index)
    row = _ordinary(rows)
    if instances.instance_key_of(row) != instances.instance_key_of(request):
        raise Refused(RESOURCE_NOT_FOUND)
    instances.delete(state, row)
    return _changed(rows, row, None, context.request_id)


def announce_retired(state: State, request: ActualLRP, context: Context) -> Outcome:
    """Announce that a retired instance was removed, once its cell was asked to stop it.

    Quirk: nothing is removed here, whatever the cell answered; the cell removes the row later, which is
    announced again. The instance is shown as it was when the retirement began.
    """
    others = [row for row in _at(state, request) if row.presence != Presence.ORDINARY]
    return _changed([request, *others], request, None, context.request_id)


def _at(state: State, row: ActualLRP) -> list[ActualLRP]:
    return [other for other in state.actual_lrps.where("instance", (row.process_guid, row.index)) if not other.broken]


def _changed(rows: list[ActualLRP], before: ActualLRP, after: ActualLRP | None, trace_id: str = "") -> Outcome:
    """Success with the events of one change."""
    return Outcome(answer(), lrp_events.normal(rows, lrp_events.record(rows, before, after), trace_id))


def _ordinary(rows: list[ActualLRP]) -> ActualLRP:
    row = instances.with_presence(rows, Presence.ORDINARY)
    if row is None:
        raise Refused(RESOURCE_NOT_FOUND)
    return row


def _is_suspect(rows: list[ActualLRP], key: InstanceKey) -> bool:
    """Whether the caller is a suspect, which is left alone until it crashes or is replaced."""
    caller = instances.with_instance_key(rows, key)
    return caller is not None and caller.presence == Presence.SUSPECT


# -- what cells report -------------------------------------------------------------------


def instance_key(request: Any) -> InstanceKey:
    key = request.actual_lrp_instance_key
    return (key.instance_guid, key.cell_id)


_SENT: Any = object()


def report(
    request: models.StartActualLRPRequest | models.EvacuateRunningActualLRPRequest,
    routes: tuple[str, ...] | None = _SENT,
    tags: tuple[tuple[str, str], ...] | None = _SENT,
) -> Report:
    """What a request says of a running instance. Given routes or tags take the place of those sent.

    Quirk: an absent routability counts as true, and no routes or tags are "none", not empty.
    """
    key = request.actual_lrp_key
    return Report(
        process_guid=lookup(key.process_guid),
        index=key.index,
        domain=key.domain,
        instance_key=instance_key(request),
        net_info=encode(request.actual_lrp_net_info),
        internal_routes=_sent_routes(request) if routes is _SENT else routes,
        metric_tags=_sent_tags(request) if tags is _SENT else tags,
        routable=request.Routable if request.HasField("Routable") else True,
        availability_zone=request.availability_zone,
    )


def _sent_routes(request: Any) -> tuple[str, ...] | None:
    return tuple([text(route.hostname) for route in request.actual_lrp_internal_routes]) or None


def _sent_tags(request: Any) -> tuple[tuple[str, str], ...] | None:
    if not request.metric_tags:
        return None
    if maps.has_odd_keys(request, "metric_tags"):
        odd = maps.entries(request, "metric_tags")
        return json_columns.by_name([sharing.tag(text(name), text(value)) for name, value in odd])
    return tuple(sorted([sharing.tag(text(name), text(value)) for name, value in request.metric_tags.items()]))


def _says_nothing_new(row: ActualLRP, reported: Report) -> bool:
    return (
        row.net_info == reported.net_info
        and instances.instance_key_of(row) == reported.instance_key
        and row.domain == reported.domain
        and row.internal_routes == reported.internal_routes
        and row.metric_tags == reported.metric_tags
        and row.routable == reported.routable
        and row.availability_zone == reported.availability_zone
    )


# -- queries -----------------------------------------------------------------------------


def list_all(state: State, request: models.ActualLRPsRequest, context: Context) -> Answer:
    """The instances that pass all filters; an index counts as soon as it is present (actual-lrps.md 5.1)."""
    index = request.index if request.HasField("index") else None
    return _elements(filtered(state, request.domain, request.cell_id, request.process_guid, index))


def list_by_process_guids(state: State, request: models.ActualLRPsByProcessGuidsRequest, context: Context) -> Answer:
    """The instances of several LRPs, each once (actual-lrps.md 5.2)."""
    guids = dict.fromkeys([lookup(guid) for guid in request.process_guids])
    return _elements([row for guid in guids for row in state.actual_lrps.where("process_guid", guid)])


def filtered(
    state: State,
    domain: str | bytes = "",
    cell_id: str | bytes = "",
    process_guid: str | bytes = "",
    index: int | None = None,
) -> Iterable[ActualLRP]:
    """The rows that pass all filters, broken ones included; an empty text restricts nothing."""
    wanted = {
        name: lookup(value)
        for name, value in (("process_guid", process_guid), ("cell_id", cell_id), ("domain", domain))
        if value
    }
    rows: Collection[ActualLRP] = state.actual_lrps.all()
    if wanted:
        # The first filter is an index of the table; what it leaves is few.
        name = next(iter(wanted))
        rows = state.actual_lrps.where(name, wanted.pop(name))
    for name, value in wanted.items():
        rows = [row for row in rows if getattr(row, name) == value]
    return rows if index is None else [row for row in rows if row.index == index]


def _elements(rows: Iterable[ActualLRP]) -> Elements:
    """Rows that cannot be decoded are absent (actual-lrps.md 1.3)."""
    return Elements([row for row in rows if not row.broken], attrgetter("element"), kept="_element")


__all__ = [
    "CHECKS",
    "announce_retired",
    "answer",
    "claim",
    "crash",
    "fail",
    "filtered",
    "instance_key",
    "list_all",
    "list_by_process_guids",
    "remove",
    "remove_retired",
    "report",
    "retire",
    "start",
    "start_r0",
]
