"""Desired LRPs: desire, update and remove them, and every way to read them (desired-lrps.md).

Commands and queries as in `outcome.Command` and `outcome.Query`; the forms themselves are in
`desired_lrp_forms`, the spelling of the JSON columns in `json_columns`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core import instances, json_columns
from bbs_server.core.context import Context
from bbs_server.core.definition_parts import (
    check_annotation,
    check_metric_tags,
    check_not_negative,
    check_routes,
    metric_tags,
)
from bbs_server.core.definitions import check_desired_lrp
from bbs_server.core.desired_lrp_forms import INTERNAL_ROUTER, Form, message
from bbs_server.core.encoding import Answer, Elements
from bbs_server.core.errors import INVALID_REQUEST, RESOURCE_EXISTS, RESOURCE_NOT_FOUND, Refused
from bbs_server.core.go_json import NotJSON
from bbs_server.core.json_columns import MetricTags
from bbs_server.core.outcome import AuctionLRPs, Call, Event, Hub, Outcome, StopInstance, UpdateInstance
from bbs_server.core.problems import invalid
from bbs_server.core.records import CLAIMED, RUNNING, ActualLRP, DesiredLRP, Presence, replace
from bbs_server.core.state import State
from bbs_server.core.texts import column, lookup

INSTANCES_AT_ONCE = 10_000
"""Most instances one command creates, so that nobody waits long behind it; convergence creates the rest."""


# -- request checks ----------------------------------------------------------------------


def check_desire(request: models.DesireLRPRequest) -> list[str]:
    """desired-lrps.md 4.1"""
    if not request.HasField("desired_lrp"):
        return [invalid("desired_lrp")]
    return check_desired_lrp(request.desired_lrp)


def check_update(request: models.UpdateDesiredLRPRequest) -> list[str]:
    """desired-lrps.md 5.1. "Set" means that the optional field is present, even if empty."""
    update = request.update
    problems = [
        *check_process_guid(request),
        *check_not_negative(update, "instances"),
        *check_annotation(update.annotation),
        *check_routes(update.routes),
    ]
    if details := check_metric_tags(metric_tags(update), ""):
        problems += (invalid("metric_tags"), *details)
    has_name, has_password = update.HasField("image_username"), update.HasField("image_password")
    if has_name != has_password:
        problems.append(invalid("image_password" if has_name else "image_username"))
    return problems


def check_process_guid(
    request: models.UpdateDesiredLRPRequest | models.RemoveDesiredLRPRequest | models.DesiredLRPByProcessGuidRequest,
) -> list[str]:
    return [] if request.process_guid else [invalid("process_guid")]


CHECKS: Mapping[type, Callable[[Any], list[str]]] = {
    models.DesireLRPRequest: check_desire,
    models.UpdateDesiredLRPRequest: check_update,
    models.RemoveDesiredLRPRequest: check_process_guid,
    models.DesiredLRPByProcessGuidRequest: check_process_guid,
}


# -- commands ----------------------------------------------------------------------------


def desire(state: State, request: models.DesireLRPRequest, context: Context) -> Outcome:
    """Insert the LRP, create its instances and ask for their placement (desired-lrps.md 4.4)."""
    desired = forms.record(request.desired_lrp, context.new_guid(), context.now)
    if state.desired_lrps.get(desired.process_guid) is not None:
        raise Refused(RESOURCE_EXISTS)
    state.desired_lrps.put(desired)
    created = Event(Hub.DESIRED, "desired_lrp_created", after=desired, trace_id=context.request_id)
    events, calls = _create_instances(state, desired, range(desired.instances), context)
    return Outcome(models.DesiredLRPLifecycleResponse(), (created, *events), calls)


def update(state: State, request: models.UpdateDesiredLRPRequest, context: Context) -> Outcome:
    """Change the LRP, then create, stop or update its instances (desired-lrps.md 5.2, 5.3).

    Without `update` the request is refused once the LRP is found (spec/README.md, deviation 1).
    """
    before = _readable(state, request.process_guid, forms.R3)
    if not request.HasField("update"):
        raise Refused(INVALID_REQUEST)
    after = _updated(before, request.update)
    state.desired_lrps.put(after)
    events: list[Event] = []
    calls: list[Call] = []
    for step in (_scale, _update_instances):
        more_events, more_calls = step(state, before, after, request.update, context)
        events += more_events
        calls += more_calls
    changed = Event(Hub.DESIRED, "desired_lrp_changed", before, after, context.request_id)
    return Outcome(models.DesiredLRPLifecycleResponse(), (*events, changed), tuple(calls))


def remove(state: State, request: models.RemoveDesiredLRPRequest, context: Context) -> Outcome:
    """Delete the LRP and stop all its instances (desired-lrps.md section 6)."""
    desired = _readable(state, request.process_guid, forms.R3)
    state.desired_lrps.remove(desired.process_guid)
    removed = Event(Hub.DESIRED, "desired_lrp_removed", before=desired, trace_id=context.request_id)
    events, calls = _stop_instances(state, desired.process_guid, 0, context)
    return Outcome(models.DesiredLRPLifecycleResponse(), (removed, *events), calls)


def _updated(before: DesiredLRP, update: models.DesiredLRPUpdate) -> DesiredLRP:
    """The record with the update's fields. The tag is bumped even if nothing differs."""
    changes: dict[str, Any] = {"tag_index": before.tag_index + 1}
    if update.HasField("instances"):
        changes["instances"] = update.instances
    if update.HasField("routes"):
        changes["routes"] = forms.routes(update.routes)
    if update.HasField("annotation"):
        changes["annotation"] = column(update.annotation, None)
    if tags := forms.metric_tags(update):
        changes["metric_tags"] = tags
    if update.HasField("image_username") or update.HasField("image_password"):
        changes["run_info"] = forms.with_credentials(before.run_info, update)
    return replace(before, **changes)


# -- consequences for instances ----------------------------------------------------------

Consequences = tuple[Iterable[Event], tuple[Call, ...]]


def _scale(
    state: State, before: DesiredLRP, after: DesiredLRP, update: models.DesiredLRPUpdate, context: Context
) -> Consequences:
    if after.instances > before.instances:
        return _create_instances(state, after, range(before.instances, after.instances), context)
    if after.instances < before.instances:
        return _stop_instances(state, after.process_guid, after.instances, context)
    return (), ()


def _create_instances(state: State, desired: DesiredLRP, indices: range, context: Context) -> Consequences:
    """Create the instances that do not exist and ask for their placement (desired-lrps.md 7.1).

    Quirk: the request is made even if none could be created, with no indices.
    """
    if not indices:
        return (), ()
    events: list[Event] = []
    created: list[int] = []
    for index in indices[:INSTANCES_AT_ONCE]:
        instance = instances.create_unclaimed(state, desired.process_guid, index, desired.domain, context)
        if instance is not None:
            created.append(index)
            events += instances.created(instance, context.request_id)
    start = forms.start_request(desired, tuple(created), from_definition=True)
    return events, (AuctionLRPs((start,), context.request_id),)


def _stop_instances(state: State, process_guid: str, first: int, context: Context) -> Consequences:
    """Remove the instances from index `first` on that no cell has; tell cells to stop the others (7.2)."""
    events: list[Event] = []
    calls: list[Call] = []
    for instance in _instances(state, process_guid):
        if instance.index < first:
            continue
        if instance.state in (CLAIMED, RUNNING):
            calls.append(StopInstance(process_guid, instance.instance_guid, instance.cell_id, context.request_id))
        elif instance.presence == Presence.ORDINARY:
            instances.delete(state, instance)
            events += instances.removed(instance, context.request_id)
    return events, tuple(calls)


def _update_instances(
    state: State, before: DesiredLRP, after: DesiredLRP, update: models.DesiredLRPUpdate, context: Context
) -> Consequences:
    """Tell the cells of running instances of new internal routes and metric tags (desired-lrps.md 7.3)."""
    routes_changed, sent = _routes_changed(before, update)
    tags = _changed_tags(before, update)
    if not routes_changed and tags is None:
        return (), ()
    try:
        hostnames = json_columns.load_hostnames(sent) if routes_changed and sent is not None else None
    except NotJSON:
        # Quirk: internal routes that cannot be understood keep the cells from learning new tags, too.
        return (), ()
    return (), tuple(
        UpdateInstance(
            process_guid=instance.process_guid,
            instance_guid=instance.instance_guid,
            cell_id=instance.cell_id,
            index=instance.index,
            domain=instance.domain,
            internal_routes=hostnames,
            metric_tags=None if tags is None else forms.resolved_tags(tags, instance.index, instance.instance_guid),
            request_id=context.request_id,
        )
        for instance in _instances(state, after.process_guid)
        if instance.state in (CLAIMED, RUNNING)
    )


def _routes_changed(before: DesiredLRP, update: models.DesiredLRPUpdate) -> tuple[bool, bytes | None]:
    """Whether the update is taken to change internal routes, and the value it sends for them.

    Quirk: the bytes sent are compared with the stored compact ones, and where neither side has
    internal routes they count as changed (desired-lrps.md 5.3).
    """
    if not update.HasField("routes"):
        return False, None
    stored = dict(before.routes or ()).get(INTERNAL_ROUTER)
    sent = dict(forms.sent_routes(update.routes)).get(INTERNAL_ROUTER)
    return stored is None or sent is None or stored != sent, sent


def _changed_tags(before: DesiredLRP, update: models.DesiredLRPUpdate) -> MetricTags | None:
    """The update's metric tags if it has any and they differ from the stored ones."""
    sent = forms.sent_metric_tags(update)
    return sent if sent and sent != before.metric_tags else None


def _instances(state: State, process_guid: str) -> list[ActualLRP]:
    """The instances of an LRP that are not evacuating, as a copy."""
    return [one for one in instances.of_process(state, process_guid) if one.presence != Presence.EVACUATING]


# -- queries -----------------------------------------------------------------------------


def _listed(records: Iterable[DesiredLRP], form: Form) -> Elements:
    return Elements(list(records), form.piece, kept=form.name)


def list_r3(state: State, request: models.DesiredLRPsRequest, context: Context) -> Answer:
    return _listed(_filtered(state, request), forms.R3)


def list_r2(state: State, request: models.DesiredLRPsRequest, context: Context) -> Answer:
    return _listed(_filtered(state, request), forms.R2)


def list_scheduling_infos(state: State, request: models.DesiredLRPsRequest, context: Context) -> Answer:
    """Quirk: `app_guids` is not honoured."""
    wanted = models.DesiredLRPsRequest()
    wanted.CopyFrom(request)
    del wanted.app_guids[:]
    return _listed(_filtered(state, wanted), forms.SCHEDULING_INFO)


def list_routing_infos(state: State, request: models.DesiredLRPsRequest, context: Context) -> Answer:
    """Quirk: `domain` and `app_guids` are not honoured."""
    wanted = models.DesiredLRPsRequest()
    wanted.CopyFrom(request)
    wanted.ClearField("domain")
    del wanted.app_guids[:]
    return _listed(_filtered(state, wanted), forms.ROUTING_INFO)


def get_r3(state: State, request: models.DesiredLRPByProcessGuidRequest, context: Context) -> Answer:
    return _get(state, request, forms.R3)


def get_r2(state: State, request: models.DesiredLRPByProcessGuidRequest, context: Context) -> Answer:
    return _get(state, request, forms.R2)


def get_scheduling_info(state: State, request: models.DesiredLRPByProcessGuidRequest, context: Context) -> Answer:
    return _get(state, request, forms.SCHEDULING_INFO)


def _get(state: State, request: models.DesiredLRPByProcessGuidRequest, form: Form) -> Answer:
    """The record is field 2 of a single answer just as an element is of a list."""
    return Elements((_readable(state, request.process_guid, form),), form.piece)


def _readable(state: State, process_guid: str | bytes, form: Form) -> DesiredLRP:
    """The record with all columns that a form reads. Raises Refused (desired-lrps.md 3.4)."""
    desired = state.desired_lrps.get(lookup(process_guid))
    if desired is None:
        raise Refused(RESOURCE_NOT_FOUND)
    if error := forms.unreadable(desired, form):
        raise Refused(error)
    return desired


def _filtered(state: State, request: models.DesiredLRPsRequest) -> Collection[DesiredLRP]:
    """The records that pass all filters; a filter that is empty passes all (desired-lrps.md section 8)."""
    table = state.desired_lrps
    domain = lookup(request.domain)
    guids = [lookup(guid) for guid in request.process_guids]
    prefixes = [lookup(prefix) for prefix in request.app_guids]
    if guids:
        records: Collection[DesiredLRP] = [
            record for guid in dict.fromkeys(guids) if (record := table.get(guid)) and domain in ("", record.domain)
        ]
    else:
        records = table.where("domain", domain) if domain else table.all()
    if prefixes:
        matches = [_prefix_matcher(prefix) for prefix in prefixes]
        records = [record for record in records if any(match(record.process_guid) for match in matches)]
    return records


def _prefix_matcher(prefix: str) -> Callable[[str], Any]:
    """Quirk: `%` and `_` in an app guid act as in SQL's LIKE, and a backslash escapes them (8)."""
    if not _LIKE_SPECIAL.search(prefix):
        return lambda guid: guid.startswith(prefix)
    return re.compile(fnmatch.translate(_LIKE_TOKEN.sub(_glob, prefix + "%"))).match


_LIKE_SPECIAL = re.compile(r"[%_\\]")
_LIKE_TOKEN = re.compile(r"\\(.)|(.)", re.DOTALL)


def _glob(token: re.Match[str]) -> str:
    escaped, character = token.groups()
    if escaped is None and character in "%_":
        return "*" if character == "%" else "?"
    return f"[{escaped or character}]" if (escaped or character) in "*?[" else escaped or character


__all__ = [
    "CHECKS",
    "INSTANCES_AT_ONCE",
    "check_desire",
    "check_process_guid",
    "check_update",
    "desire",
    "get_r2",
    "get_r3",
    "get_scheduling_info",
    "list_r2",
    "list_r3",
    "list_routing_infos",
    "list_scheduling_infos",
    "message",
    "remove",
    "update",
]
