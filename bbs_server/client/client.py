"""The client: one method per route of the BBS."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TypeVar

import httpx
import tenacity
from bbs_protos import models_pb2 as models
from google.protobuf.message import DecodeError, Message

from bbs_server.client.errors import (
    TROUBLE,
    ClientError,
    Failed,
    NoAnswer,
    NotActive,
    StreamEnded,
    Unreachable,
    explain,
)
from bbs_server.client.events import EventStream, StreamEvent
from bbs_server.client.target import Target

R = TypeVar("R", bound=Message)

_ATTEMPTS = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_PAUSE = tenacity.wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE)
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, number, 10) for number in (getattr(socket, "TCP_KEEPIDLE", None),) if number),
    *((socket.IPPROTO_TCP, number, 5) for number in (getattr(socket, "TCP_KEEPINTVL", None),) if number),
)
"""So that an event stream notices a server whose machine is gone."""

_ENDINGS = (StreamEnded, Unreachable, NotActive, NoAnswer)


class Client:
    """One BBS. Use it as an async context manager, or call `close`.

    Requests that never reached the server are tried three times, reads also after a lost answer.
    Every method raises a ClientError; `Failed` is the BBS's own refusal.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._streams: set[EventStream] = set()
        # Without proxies of the environment, as a Go client has it: a BBS is inside.
        transport = httpx.AsyncHTTPTransport(
            verify=target.tls(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            socket_options=_KEEP_ALIVE,
        )
        self._http = httpx.AsyncClient(
            base_url=target.url, transport=transport, timeout=target.timeout, trust_env=False
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all streams and connections."""
        for stream in tuple(self._streams):
            await stream.aclose()
        await self._http.aclose()

    # domains, cells, ping

    async def ping(self) -> bool:
        return (await self._read("/v1/ping", None, models.PingResponse)).available

    async def domains(self) -> list[str]:
        """The fresh domains."""
        return list((await self._read("/v1/domains/list", None, models.DomainsResponse)).domains)

    async def upsert_domain(self, domain: str, ttl: int) -> None:
        """Mark a domain as fresh for `ttl` s; 0 is for ever."""
        request = models.UpsertDomainRequest(domain=domain, ttl=ttl)
        await self._write("/v1/domains/upsert", request, models.UpsertDomainResponse)

    async def cells(self) -> list[models.CellPresence]:
        return list((await self._read("/v1/cells/list.r1", None, models.CellsResponse)).cells)

    # tasks

    async def tasks(self, domain: str = "", cell_id: str = "") -> list[models.Task]:
        request = models.TasksRequest(domain=domain, cell_id=cell_id)
        return list((await self._read("/v1/tasks/list.r3", request, models.TasksResponse)).tasks)

    async def task(self, guid: str) -> models.Task:
        request = models.TaskByGuidRequest(task_guid=guid)
        return (await self._read("/v1/tasks/get_by_task_guid.r3", request, models.TaskResponse)).task

    async def desire_task(self, guid: str, domain: str, definition: models.TaskDefinition) -> None:
        request = models.DesireTaskRequest(task_guid=guid, domain=domain, task_definition=definition)
        await self._write("/v1/tasks/desire.r2", request, models.TaskLifecycleResponse)

    async def start_task(self, guid: str, cell_id: str) -> bool:
        """Whether the cell should run the task."""
        request = models.StartTaskRequest(task_guid=guid, cell_id=cell_id)
        return (await self._write("/v1/tasks/start", request, models.StartTaskResponse)).should_start

    async def cancel_task(self, guid: str) -> None:
        await self._task("/v1/tasks/cancel", models.TaskGuidRequest(task_guid=guid))

    async def reject_task(self, guid: str, reason: str) -> None:
        await self._task("/v1/tasks/reject", models.RejectTaskRequest(task_guid=guid, rejection_reason=reason))

    async def fail_task(self, guid: str, reason: str) -> None:
        await self._task("/v1/tasks/fail", models.FailTaskRequest(task_guid=guid, failure_reason=reason))

    async def complete_task(self, guid: str, cell_id: str, failed: bool, reason: str, result: str) -> None:
        request = models.CompleteTaskRequest(
            task_guid=guid, cell_id=cell_id, failed=failed, failure_reason=reason, result=result
        )
        await self._task("/v1/tasks/complete", request)

    async def resolving_task(self, guid: str) -> None:
        await self._task("/v1/tasks/resolving", models.TaskGuidRequest(task_guid=guid))

    async def delete_task(self, guid: str) -> None:
        await self._task("/v1/tasks/delete", models.TaskGuidRequest(task_guid=guid))

    # desired LRPs

    async def desired_lrps(self, domain: str = "", process_guids: Sequence[str] = ()) -> list[models.DesiredLRP]:
        request = models.DesiredLRPsRequest(domain=domain, process_guids=process_guids)
        return list((await self._read("/v1/desired_lrps/list.r3", request, models.DesiredLRPsResponse)).desired_lrps)

    async def desired_lrp(self, guid: str) -> models.DesiredLRP:
        request = models.DesiredLRPByProcessGuidRequest(process_guid=guid)
        path = "/v1/desired_lrps/get_by_process_guid.r3"
        return (await self._read(path, request, models.DesiredLRPResponse)).desired_lrp

    async def scheduling_infos(
        self, domain: str = "", process_guids: Sequence[str] = ()
    ) -> list[models.DesiredLRPSchedulingInfo]:
        request = models.DesiredLRPsRequest(domain=domain, process_guids=process_guids)
        path = "/v1/desired_lrp_scheduling_infos/list"
        answer = await self._read(path, request, models.DesiredLRPSchedulingInfosResponse)
        return list(answer.desired_lrp_scheduling_infos)

    async def scheduling_info(self, guid: str) -> models.DesiredLRPSchedulingInfo:
        request = models.DesiredLRPByProcessGuidRequest(process_guid=guid)
        path = "/v1/desired_lrp_scheduling_infos/get_by_process_guid"
        answer = await self._read(path, request, models.DesiredLRPSchedulingInfoByProcessGuidResponse)
        return answer.desired_lrp_scheduling_info

    async def routing_infos(self, process_guids: Sequence[str] = ()) -> list[models.DesiredLRP]:
        request = models.DesiredLRPsRequest(process_guids=process_guids)
        path = "/v1/desired_lrp_routing_infos/list"
        return list((await self._read(path, request, models.DesiredLRPsResponse)).desired_lrps)

    async def desire_lrp(self, lrp: models.DesiredLRP) -> None:
        await self._lrp("/v1/desired_lrp/desire.r2", models.DesireLRPRequest(desired_lrp=lrp))

    async def update_lrp(self, guid: str, update: models.DesiredLRPUpdate) -> None:
        await self._lrp("/v1/desired_lrp/update", models.UpdateDesiredLRPRequest(process_guid=guid, update=update))

    async def remove_lrp(self, guid: str) -> None:
        await self._lrp("/v1/desired_lrp/remove", models.RemoveDesiredLRPRequest(process_guid=guid))

    # actual LRPs

    async def actual_lrps(
        self, domain: str = "", cell_id: str = "", process_guid: str = "", index: int | None = None
    ) -> list[models.ActualLRP]:
        request = models.ActualLRPsRequest(domain=domain, cell_id=cell_id, process_guid=process_guid)
        if index is not None:
            request.index = index
        return list((await self._read("/v1/actual_lrps/list", request, models.ActualLRPsResponse)).actual_lrps)

    async def actual_lrps_by_process_guids(self, process_guids: Sequence[str]) -> list[models.ActualLRP]:
        request = models.ActualLRPsByProcessGuidsRequest(process_guids=process_guids)
        path = "/v1/actual_lrps/list_by_process_guids"
        return list((await self._read(path, request, models.ActualLRPsByProcessGuidsResponse)).actual_lrps)

    async def actual_lrp_groups(self, domain: str = "", cell_id: str = "") -> list[models.ActualLRPGroup]:
        """Deprecated: groups instead of instances."""
        request = models.ActualLRPGroupsRequest(domain=domain, cell_id=cell_id)
        answer = await self._read("/v1/actual_lrp_groups/list", request, models.ActualLRPGroupsResponse)
        return list(answer.actual_lrp_groups)

    async def actual_lrp_groups_by_process_guid(self, guid: str) -> list[models.ActualLRPGroup]:
        """Deprecated: groups instead of instances."""
        request = models.ActualLRPGroupsByProcessGuidRequest(process_guid=guid)
        path = "/v1/actual_lrp_groups/list_by_process_guid"
        return list((await self._read(path, request, models.ActualLRPGroupsResponse)).actual_lrp_groups)

    async def claim(self, guid: str, index: int, instance: models.ActualLRPInstanceKey) -> None:
        request = models.ClaimActualLRPRequest(process_guid=guid, index=index, actual_lrp_instance_key=instance)
        await self._instance("/v1/actual_lrps/claim", request)

    async def start(self, request: models.StartActualLRPRequest) -> None:
        await self._instance("/v1/actual_lrps/start.r1", request)

    async def crash(self, key: models.ActualLRPKey, instance: models.ActualLRPInstanceKey, reason: str) -> None:
        request = models.CrashActualLRPRequest(
            actual_lrp_key=key, actual_lrp_instance_key=instance, error_message=reason
        )
        await self._instance("/v1/actual_lrps/crash", request)

    async def fail(self, key: models.ActualLRPKey, reason: str) -> None:
        await self._instance(
            "/v1/actual_lrps/fail", models.FailActualLRPRequest(actual_lrp_key=key, error_message=reason)
        )

    async def remove(self, guid: str, index: int, instance: models.ActualLRPInstanceKey) -> None:
        request = models.RemoveActualLRPRequest(process_guid=guid, index=index, actual_lrp_instance_key=instance)
        await self._instance("/v1/actual_lrps/remove", request)

    async def retire(self, key: models.ActualLRPKey) -> None:
        await self._instance("/v1/actual_lrps/retire", models.RetireActualLRPRequest(actual_lrp_key=key))

    # evacuation; each but the first answers whether the cell keeps the container

    async def remove_evacuating(self, key: models.ActualLRPKey, instance: models.ActualLRPInstanceKey) -> None:
        request = models.RemoveEvacuatingActualLRPRequest(actual_lrp_key=key, actual_lrp_instance_key=instance)
        await self._write("/v1/actual_lrps/remove_evacuating", request, models.RemoveEvacuatingActualLRPResponse)

    async def evacuate_claimed(self, key: models.ActualLRPKey, instance: models.ActualLRPInstanceKey) -> bool:
        request = models.EvacuateClaimedActualLRPRequest(actual_lrp_key=key, actual_lrp_instance_key=instance)
        return await self._evacuate("/v1/actual_lrps/evacuate_claimed", request)

    async def evacuate_crashed(
        self, key: models.ActualLRPKey, instance: models.ActualLRPInstanceKey, reason: str
    ) -> bool:
        request = models.EvacuateCrashedActualLRPRequest(
            actual_lrp_key=key, actual_lrp_instance_key=instance, error_message=reason
        )
        return await self._evacuate("/v1/actual_lrps/evacuate_crashed", request)

    async def evacuate_stopped(self, key: models.ActualLRPKey, instance: models.ActualLRPInstanceKey) -> bool:
        request = models.EvacuateStoppedActualLRPRequest(actual_lrp_key=key, actual_lrp_instance_key=instance)
        return await self._evacuate("/v1/actual_lrps/evacuate_stopped", request)

    async def evacuate_running(self, request: models.EvacuateRunningActualLRPRequest) -> bool:
        return await self._evacuate("/v1/actual_lrps/evacuate_running.r1", request)

    # events

    async def task_events(self) -> AsyncIterator[StreamEvent]:
        """Task events from now on, until StreamEnded."""
        async for event in self.subscribe("/v1/events/tasks.r1"):
            if event is not None:
                yield event

    async def lrp_events(self, cell_id: str = "") -> AsyncIterator[StreamEvent]:
        """Events of desired LRPs and of instances, the latter only of one cell if `cell_id` is given."""
        async for event in self.subscribe("/v1/events/lrp_instances.r1", cell_id):
            if event is not None:
                yield event

    def subscribe(self, path: str, cell_id: str = "") -> EventStream:
        """A stream by its path: None once subscribed, then the events, until StreamEnded."""
        stream = EventStream(self._http, path, models.EventsByCellId(cell_id=cell_id), self._streams.discard)
        self._streams.add(stream)
        return stream

    async def follow(self, path: str, cell_id: str = "") -> AsyncIterator[StreamEvent | None]:
        """Like `subscribe`, but for ever: None marks each new subscription, after which to list again."""
        pause = _FIRST_PAUSE
        while True:
            stream = self.subscribe(path, cell_id)
            try:
                async for event in stream:
                    pause = _FIRST_PAUSE
                    yield event
            except _ENDINGS:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, _LONGEST_PAUSE)
            finally:
                await stream.aclose()

    # plumbing

    async def _task(self, path: str, request: Message) -> None:
        await self._write(path, request, models.TaskLifecycleResponse)

    async def _lrp(self, path: str, request: Message) -> None:
        await self._write(path, request, models.DesiredLRPLifecycleResponse)

    async def _instance(self, path: str, request: Message) -> None:
        await self._write(path, request, models.ActualLRPLifecycleResponse)

    async def _evacuate(self, path: str, request: Message) -> bool:
        return (await self._write(path, request, models.EvacuationResponse)).keep_container

    async def _read(self, path: str, request: Message | None, response: type[R]) -> R:
        return await self._call(path, request, response, (Unreachable, NotActive, NoAnswer))

    async def _write(self, path: str, request: Message | None, response: type[R]) -> R:
        return await self._call(path, request, response, (Unreachable, NotActive))

    async def _call(
        self, path: str, request: Message | None, response: type[R], again: tuple[type[ClientError], ...]
    ) -> R:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(again),
            stop=tenacity.stop_after_attempt(_ATTEMPTS),
            wait=_PAUSE,
            reraise=True,
        )
        return await retrying(self._once, path, request, response)

    async def _once(self, path: str, request: Message | None, response: type[R]) -> R:
        try:
            answer = await self._http.post(
                path,
                content=request.SerializeToString() if request else b"",
                headers={"Content-Type": "application/x-protobuf"},
            )
        except TROUBLE as problem:
            raise explain(problem, self.target.url) from problem
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise NotActive(f"{self.target.url} is still starting")
        if answer.status_code != httpx.codes.OK:
            raise ClientError(f"{self.target.url}{path} answered HTTP {answer.status_code}: {answer.text.strip()}")
        try:
            message = response.FromString(answer.content)
        except DecodeError as problem:
            raise NoAnswer(f"{self.target.url}{path} answered something else than {response.__name__}") from problem
        error = getattr(message, "error", None)  # the answer to a ping has no such field
        if error is not None and message.HasField("error"):
            raise Failed(error.type, error.message)
        return message
