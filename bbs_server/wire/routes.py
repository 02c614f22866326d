"""Every route of the BBS, as data (server.md 9.6, events.md 1)."""

# ruff: noqa: E501  (a line per route)
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.core import (
    actual_lrp_groups,
    actual_lrps,
    desired_lrps,
    domains,
    evacuation,
    tasks,
)
from bbs_server.core.errors import Error
from bbs_server.core.event_messages import Revision
from bbs_server.core.outcome import Command, Hub, Query
from bbs_server.wire.answers import error_body

Check = Callable[[Any], list[str]]

CHECKS: Mapping[type[Message], Check] = {
    **domains.CHECKS,
    **tasks.CHECKS,
    **desired_lrps.CHECKS,
    **actual_lrps.CHECKS,
    **actual_lrp_groups.CHECKS,
    **evacuation.CHECKS,
}
"""The problems of a request, by its message; a message that is not listed is always valid."""


class Kind(Enum):
    """How a route is carried out."""

    PING = "ping"
    CELLS = "cells"
    QUERY = "query"
    COMMAND = "command"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `request` None means that the body is never looked at.

    `handle` is the core function of a QUERY or COMMAND, `hubs` and `revision` say what a STREAM
    carries. `error_fields` are set beside each error that is not an answer of `handle`: the request was refused before
    it was carried out, or the database failed.
    """

    name: str
    path: str
    kind: Kind
    request: type[Message] | None = None
    response: type[Message] | None = None
    handle: Command | Query | None = None
    method: str = "POST"
    hubs: tuple[Hub, ...] = ()
    revision: Revision = Revision.R1
    error_fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def check(self) -> Check | None:
        return None if self.request is None else CHECKS.get(self.request)

    def error(self, error: Error) -> bytes:
        """The response for a request that was not carried out."""
        assert self.response is not None
        return error_body(self.response, error, dict(self.error_fields))


def _query(name: str, path: str, request: type[Message] | None, response: type[Message], handle: Query) -> Route:
    return Route(name, path, Kind.QUERY, request, response, handle)


def _command(name: str, path: str, request: type[Message], response: type[Message], handle: Command) -> Route:
    return Route(name, path, Kind.COMMAND, request, response, handle)


def _keeping(name: str, path: str, request: type[Message], handle: Command) -> Route:
    """Evacuations that tell the cell to keep the container if they fail (evacuation.md 1.3, 3 row 8, 6 row 1)."""
    keep = {"keep_container": True}
    return Route(name, path, Kind.COMMAND, request, models.EvacuationResponse, handle, error_fields=keep)


def _stream(name: str, path: str, revision: Revision, *hubs: Hub, method: str = "POST") -> Route:
    """The task streams never look at the body."""
    request = None if hubs == (Hub.TASK,) else models.EventsByCellId
    return Route(name, path, Kind.STREAM, request, method=method, hubs=hubs, revision=revision)


# fmt: off
ROUTES: tuple[Route, ...] = (
    Route("Ping", "/v1/ping", Kind.PING, response=models.PingResponse),

    _query("Domains", "/v1/domains/list", None, models.DomainsResponse, domains.list_fresh),
    _command("UpsertDomain", "/v1/domains/upsert", models.UpsertDomainRequest, models.UpsertDomainResponse, domains.upsert),

    _query("ActualLRPs", "/v1/actual_lrps/list", models.ActualLRPsRequest, models.ActualLRPsResponse, actual_lrps.list_all),
    _query("ActualLRPsByProcessGuids", "/v1/actual_lrps/list_by_process_guids", models.ActualLRPsByProcessGuidsRequest, models.ActualLRPsByProcessGuidsResponse, actual_lrps.list_by_process_guids),
    _query("ActualLRPGroups", "/v1/actual_lrp_groups/list", models.ActualLRPGroupsRequest, models.ActualLRPGroupsResponse, actual_lrp_groups.list_groups),
    _query("ActualLRPGroupsByProcessGuid", "/v1/actual_lrp_groups/list_by_process_guid", models.ActualLRPGroupsByProcessGuidRequest, models.ActualLRPGroupsResponse, actual_lrp_groups.list_by_process_guid),
    _query("ActualLRPGroupsByProcessGuidAndIndex", "/v1/actual_lrp_groups/get_by_process_guid_and_index", models.ActualLRPGroupByProcessGuidAndIndexRequest, models.ActualLRPGroupResponse, actual_lrp_groups.get_by_index),

    _command("ClaimActualLRP", "/v1/actual_lrps/claim", models.ClaimActualLRPRequest, models.ActualLRPLifecycleResponse, actual_lrps.claim),
    _command("StartActualLRP", "/v1/actual_lrps/start.r1", models.StartActualLRPRequest, models.ActualLRPLifecycleResponse, actual_lrps.start),
    _command("StartActualLRP_r0", "/v1/actual_lrps/start", models.StartActualLRPRequest, models.ActualLRPLifecycleResponse, actual_lrps.start_r0),
    _command("CrashActualLRP", "/v1/actual_lrps/crash", models.CrashActualLRPRequest, models.ActualLRPLifecycleResponse, actual_lrps.crash),
    _command("FailActualLRP", "/v1/actual_lrps/fail", models.FailActualLRPRequest, models.ActualLRPLifecycleResponse, actual_lrps.fail),
    _command("RemoveActualLRP", "/v1/actual_lrps/remove", models.RemoveActualLRPRequest, models.ActualLRPLifecycleResponse, actual_lrps.remove),
    _command("RetireActualLRP", "/v1/actual_lrps/retire", models.RetireActualLRPRequest, models.ActualLRPLifecycleResponse, actual_lrps.retire),

    _command("RemoveEvacuatingActualLRP", "/v1/actual_lrps/remove_evacuating", models.RemoveEvacuatingActualLRPRequest, models.RemoveEvacuatingActualLRPResponse, evacuation.remove_evacuating),
    _keeping("EvacuateClaimedActualLRP", "/v1/actual_lrps/evacuate_claimed", models.EvacuateClaimedActualLRPRequest, evacuation.evacuate_claimed),
    _command("EvacuateCrashedActualLRP", "/v1/actual_lrps/evacuate_crashed", models.EvacuateCrashedActualLRPRequest, models.EvacuationResponse, evacuation.evacuate_crashed),
    _command("EvacuateStoppedActualLRP", "/v1/actual_lrps/evacuate_stopped", models.EvacuateStoppedActualLRPRequest, models.EvacuationResponse, evacuation.evacuate_stopped),
    _keeping("EvacuateRunningActualLRP", "/v1/actual_lrps/evacuate_running.r1", models.EvacuateRunningActualLRPRequest, evacuation.evacuate_running),
    _keeping("EvacuateRunningActualLRP_r0", "/v1/actual_lrps/evacuate_running", models.EvacuateRunningActualLRPRequest, evacuation.evacuate_running_r0),

    _query("DesiredLRPs", "/v1/desired_lrps/list.r3", models.DesiredLRPsRequest, models.DesiredLRPsResponse, desired_lrps.list_r3),
    _query("DesiredLRPByProcessGuid", "/v1/desired_lrps/get_by_process_guid.r3", models.DesiredLRPByProcessGuidRequest, models.DesiredLRPResponse, desired_lrps.get_r3),
    _query("DesiredLRPs_r2", "/v1/desired_lrps/list.r2", models.DesiredLRPsRequest, models.DesiredLRPsResponse, desired_lrps.list_r2),
    _query("DesiredLRPByProcessGuid_r2", "/v1/desired_lrps/get_by_process_guid.r2", models.DesiredLRPByProcessGuidRequest, models.DesiredLRPResponse, desired_lrps.get_r2),
    _query("DesiredLRPSchedulingInfos", "/v1/desired_lrp_scheduling_infos/list", models.DesiredLRPsRequest, models.DesiredLRPSchedulingInfosResponse, desired_lrps.list_scheduling_infos),
    _query("DesiredLRPSchedulingInfoByProcessGuid", "/v1/desired_lrp_scheduling_infos/get_by_process_guid", models.DesiredLRPByProcessGuidRequest, models.DesiredLRPSchedulingInfoByProcessGuidResponse, desired_lrps.get_scheduling_info),
    _query("DesiredLRPRoutingInfos", "/v1/desired_lrp_routing_infos/list", models.DesiredLRPsRequest, models.DesiredLRPsResponse, desired_lrps.list_routing_infos),
    _command("DesireDesiredLRP", "/v1/desired_lrp/desire.r2", models.DesireLRPRequest, models.DesiredLRPLifecycleResponse, desired_lrps.desire),
    _command("UpdateDesireLRP", "/v1/desired_lrp/update", models.UpdateDesiredLRPRequest, models.DesiredLRPLifecycleResponse, desired_lrps.update),
    _command("RemoveDesiredLRP", "/v1/desired_lrp/remove", models.RemoveDesiredLRPRequest, models.DesiredLRPLifecycleResponse, desired_lrps.remove),

    _query("Tasks", "/v1/tasks/list.r3", models.TasksRequest, models.TasksResponse, tasks.list_r3),
    _query("TaskByGuid", "/v1/tasks/get_by_task_guid.r3", models.TaskByGuidRequest, models.TaskResponse, tasks.get_r3),
    _query("Tasks_r2", "/v1/tasks/list.r2", models.TasksRequest, models.TasksResponse, tasks.list_r2),
    _query("TaskByGuid_r2", "/v1/tasks/get_by_task_guid.r2", models.TaskByGuidRequest, models.TaskResponse, tasks.get_r2),
    _command("DesireTask", "/v1/tasks/desire.r2", models.DesireTaskRequest, models.TaskLifecycleResponse, tasks.desire),
    _command("StartTask", "/v1/tasks/start", models.StartTaskRequest, models.StartTaskResponse, tasks.start),
    _command("CancelTask", "/v1/tasks/cancel", models.TaskGuidRequest, models.TaskLifecycleResponse, tasks.cancel),
    _command("FailTask", "/v1/tasks/fail", models.FailTaskRequest, models.TaskLifecycleResponse, tasks.fail),
    _command("RejectTask", "/v1/tasks/reject", models.RejectTaskRequest, models.TaskLifecycleResponse, tasks.reject),
    _command("CompleteTask", "/v1/tasks/complete", models.CompleteTaskRequest, models.TaskLifecycleResponse, tasks.complete),
    _command("ResolvingTask", "/v1/tasks/resolving", models.TaskGuidRequest, models.TaskLifecycleResponse, tasks.resolving),
    _command("DeleteTask", "/v1/tasks/delete", models.TaskGuidRequest, models.TaskLifecycleResponse, tasks.delete),

    Route("Cells", "/v1/cells/list.r1", Kind.CELLS, response=models.CellsResponse),

    _stream("EventStream", "/v1/events.r1", Revision.R1, Hub.DESIRED, Hub.GROUP, method="GET"),
    _stream("EventStream_r0", "/v1/events", Revision.R0, Hub.DESIRED, Hub.GROUP, method="GET"),
    _stream("LRPInstanceEventStream", "/v1/events/lrp_instances.r1", Revision.R1, Hub.DESIRED, Hub.INSTANCE),
    _stream("LrpInstanceEventStream_r0", "/v1/events/lrp_instances", Revision.R0, Hub.DESIRED, Hub.INSTANCE),
    _stream("TaskEventStream", "/v1/events/tasks.r1", Revision.R1, Hub.TASK),
    _stream("TaskEventStream_r0", "/v1/events/tasks", Revision.R0, Hub.TASK),
)
# fmt: on

BY_PATH: Mapping[str, Route] = {route.path: route for route in ROUTES}
"""The match is exact, on the path as it was sent."""
