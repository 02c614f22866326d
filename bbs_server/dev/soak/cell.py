"""A simulated cell: a faithful client of the protocol whose containers do nothing (cells-and-auctions.md 6 and 7)."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core.errors import ErrorType
from bbs_server.dev.soak.containers import Container, State
from bbs_server.dev.soak.ledger import COMPLETED, RUNNING, TaskLedger
from bbs_server.dev.soak.pair import Lost, Pair, Refusal
from bbs_server.dev.soak.presence import Presences
from bbs_server.dev.soak.routes import hostnames
from bbs_server.dev.soak.settings import PRESENCE_SECONDS, PRESENCE_TTL_SECONDS, RESERVATION_SECONDS, SYNC_SECONDS

_EVACUATION_SECONDS = 60.0
_NO_CONTAINER = "task container does not exist"
_LRP, _EVACUATION = models.ActualLRPLifecycleResponse, models.EvacuationResponse
_EVACUATING = models.ActualLRP.EVACUATING


class Cell:
    """One cell. While it is not `connected` it reaches nobody and nobody reaches it."""

    def __init__(self, number: int, pair: Pair, presences: Presences, tasks: TaskLedger) -> None:
        self.cell_id = f"cell-{number}"
        self.zone = f"z{number % 2 + 1}"
        self.containers: dict[str, Container] = {}
        self.ended_instances: set[str] = set()
        """Guids of instances whose end was acknowledged."""
        self.connected = False
        self.present = False
        self.evacuating = False
        self._pair = pair
        self._presences = presences
        self._ledger = tasks
        self._owner = ""
        self._renewed = 0.0
        self._loops: list[asyncio.Task[None]] = []
        self._work: set[asyncio.Task[None]] = set()

    # -- coming and going ------------------------------------------------------------------

    @property
    def takes_work(self) -> bool:
        return self.present and self.connected and not self.evacuating

    def appear(self) -> None:
        """A new process of the cell, without any container."""
        self._owner = str(uuid.uuid4())
        self.containers.clear()
        self.evacuating = False
        self.connect()

    def connect(self) -> None:
        self.connected = True
        self._loops = [asyncio.create_task(self._keep_presence()), asyncio.create_task(self._keep_in_sync())]
        for container in self.containers.values():
            if container.is_task and container.state is State.RUNNING:
                self._spawn(self._run_task(container, 1.0))

    async def disconnect(self) -> None:
        """The network is gone: the presence will run out, the containers run on."""
        self.connected = self.present = False
        await _end([*self._loops, *self._work])
        for container in self.containers.values():
            container.busy = container.again = False
            container.doubt()

    async def die(self) -> None:
        """The machine is gone with everything on it; the presence runs out."""
        await self.disconnect()
        self.containers.clear()

    async def evacuate(self) -> None:
        """Leave in order."""
        self.evacuating = True
        deadline = time.monotonic() + _EVACUATION_SECONDS
        while any(not c.is_task for c in self.containers.values()) and time.monotonic() < deadline:
            await self.sync()
            await asyncio.sleep(2)
        await self.disconnect()
        self.containers.clear()
        await self._presences.release(self.cell_id, self._owner, self.zone)

    async def _keep_presence(self) -> None:
        while True:
            asked = time.monotonic()
            if await self._presences.set(self.cell_id, self._owner, self.zone):
                self.present, self._renewed = True, asked
            elif asked - self._renewed > PRESENCE_TTL_SECONDS - 2 * PRESENCE_SECONDS:
                # It may have run out, and others may have taken our instances over: nothing is certain any more.
                for container in self.containers.values():
                    container.doubt()
            await asyncio.sleep(PRESENCE_SECONDS)

    async def _keep_in_sync(self) -> None:
        if self.containers:
            await self.sync()
        while True:
            await asyncio.sleep(SYNC_SECONDS * random.uniform(0.8, 1.2))
            if self.present:
                await self.sync()

    # -- work --------------------------------------------------------------------------------

    def take(self, container: Container) -> None:
        if container.guid not in self.containers:
            self.containers[container.guid] = container
            self.process(container)

    def end(self, container: Container, reason: str = "", stopped: bool = False) -> None:
        if container.state is not State.COMPLETED:
            container.end(reason, stopped)
            self.process(container)

    def process(self, container: Container) -> None:
        """Look at a container and do what its state asks for, soon."""
        if not self.connected:
            return
        if container.busy:
            container.again = True
            return
        container.busy = True
        self._spawn(self._process(container))

    async def sync(self) -> None:
        """Compare with what the server believes; a failing call skips the comparison (6.4)."""
        lists = asyncio.gather(
            self._pair.ask(
                "/v1/actual_lrps/list", models.ActualLRPsRequest(cell_id=self.cell_id), models.ActualLRPsResponse
            ),
            self._pair.ask("/v1/tasks/list.r3", models.TasksRequest(cell_id=self.cell_id), models.TasksResponse),
        )
        try:
            lrps, tasks = await lists
        except (Lost, Refusal):
            return
        for container in list(self.containers.values()):
            if container.state is State.RESERVED and time.monotonic() - container.began > RESERVATION_SECONDS:
                container.end("expired container")
            self.process(container)
        for lrp in lrps.actual_lrps:
            if lrp.actual_lrp_instance_key.instance_guid not in self.containers:
                await self._drop(lrp)
        for task in tasks.tasks:
            if task.task_guid not in self.containers:
                await _attempt(self._complete(task.task_guid, True, _NO_CONTAINER, _NO_CONTAINER))

    async def _drop(self, lrp: models.ActualLRP) -> None:
        key, instance = lrp.actual_lrp_key, lrp.actual_lrp_instance_key
        if lrp.presence == _EVACUATING:
            request = models.RemoveEvacuatingActualLRPRequest(actual_lrp_key=key, actual_lrp_instance_key=instance)
            call = self._pair.write(
                "/v1/actual_lrps/remove_evacuating", request, models.RemoveEvacuatingActualLRPResponse
            )
            await _attempt(call)
        elif await _attempt(self._remove(key, instance)):
            self.ended_instances.add(instance.instance_guid)

    async def _process(self, container: Container) -> None:
        while True:
            container.again = False
            if self.containers.get(container.guid) is not container:
                break
            steps = TASK_STEPS if container.is_task else EVACUATION_STEPS if self.evacuating else LRP_STEPS
            try:
                await steps[container.state](self, container)
            except (Lost, Refusal):
                pass
            if not container.again:
                break
        container.busy = False

    # -- instances ------------------------------------------------------------------------

    async def _claim(self, container: Container) -> None:
        request = models.ClaimActualLRPRequest(
            process_guid=container.process_guid,
            index=container.index,
            actual_lrp_instance_key=self._instance(container),
        )
        try:
            await self._pair.write("/v1/actual_lrps/claim", request, _LRP)
        except Refusal as refusal:
            if refusal.type == ErrorType.CANNOT_BE_CLAIMED:
                self._delete(container)
            return
        wanted = models.DesiredLRPByProcessGuidRequest(process_guid=container.process_guid)
        path = "/v1/desired_lrps/get_by_process_guid.r3"
        desired = (await self._pair.ask(path, wanted, models.DesiredLRPResponse)).desired_lrp
        container.routes = hostnames(desired.routes)
        self._spawn(self._run(container, random.uniform(0.05, 0.5)))

    async def _run(self, container: Container, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if container.state is State.RESERVED:
            container.state = State.RUNNING
            self.process(container)

    async def _report(self, container: Container) -> None:
        routes = container.routes
        request = self._running(container, models.StartActualLRPRequest)
        try:
            await self._pair.write("/v1/actual_lrps/start.r1", request, _LRP)
        except Refusal as refusal:
            if refusal.type == ErrorType.CANNOT_BE_STARTED:
                self.end(container, stopped=True)
            return
        except Lost:
            container.reported = None
            raise
        if container.reported != routes and not container.doubtful:
            container.reported, container.reported_at = routes, time.time_ns()

    async def _end_instance(self, container: Container) -> None:
        if container.stopped:
            acknowledged = await _attempt(self._remove(container.key, self._instance(container)))
        else:
            request = models.CrashActualLRPRequest(
                actual_lrp_key=container.key,
                actual_lrp_instance_key=self._instance(container),
                error_message=container.reason,
            )
            acknowledged = await _attempt(self._pair.write("/v1/actual_lrps/crash", request, _LRP))
        if acknowledged:
            self.ended_instances.add(container.guid)
        self._delete(container)

    async def _remove(self, key: models.ActualLRPKey, instance: models.ActualLRPInstanceKey) -> Any:
        request = models.RemoveActualLRPRequest(
            process_guid=key.process_guid, index=key.index, actual_lrp_instance_key=instance
        )
        return await self._pair.write("/v1/actual_lrps/remove", request, _LRP)

    # -- instances while evacuating ----------------------------------------------------------

    async def _evacuate_claimed(self, container: Container) -> None:
        request = models.EvacuateClaimedActualLRPRequest(
            actual_lrp_key=container.key, actual_lrp_instance_key=self._instance(container)
        )
        await _attempt(self._pair.write("/v1/actual_lrps/evacuate_claimed", request, _EVACUATION))
        self._delete(container)

    async def _evacuate_running(self, container: Container) -> None:
        container.reported = None
        request = self._running(container, models.EvacuateRunningActualLRPRequest)
        answer = await self._pair.write("/v1/actual_lrps/evacuate_running.r1", request, _EVACUATION)
        if not answer.keep_container:
            self._delete(container)

    async def _evacuate_ended(self, container: Container) -> None:
        key, instance = container.key, self._instance(container)
        if container.stopped:
            stopped = models.EvacuateStoppedActualLRPRequest(actual_lrp_key=key, actual_lrp_instance_key=instance)
            await _attempt(self._pair.write("/v1/actual_lrps/evacuate_stopped", stopped, _EVACUATION))
        else:
            crashed = models.EvacuateCrashedActualLRPRequest(
                actual_lrp_key=key, actual_lrp_instance_key=instance, error_message=container.reason
            )
            await _attempt(self._pair.write("/v1/actual_lrps/evacuate_crashed", crashed, _EVACUATION))
        self._delete(container)

    # -- tasks -----------------------------------------------------------------------------

    async def _start_task(self, container: Container) -> None:
        request = models.StartTaskRequest(task_guid=container.guid, cell_id=self.cell_id)
        call = self._pair.write("/v1/tasks/start", request, models.StartTaskResponse)
        try:
            answer = await self._ledger.write(container.guid, RUNNING, call, self.cell_id)
        except Refusal:
            self._delete(container)
            return
        if not answer.should_start:
            return
        wanted = models.TaskByGuidRequest(task_guid=container.guid)
        await self._pair.ask("/v1/tasks/get_by_task_guid.r3", wanted, models.TaskResponse)
        container.state = State.RUNNING
        self._spawn(self._run_task(container, random.uniform(0.1, 2.0)))

    async def _run_task(self, container: Container, seconds: float) -> None:
        await asyncio.sleep(seconds)
        failed = random.random() < 0.1
        self.end(container, "APP/TASK: Exited with status 7" if failed else "")

    async def _end_task(self, container: Container) -> None:
        failed = bool(container.reason)
        result = "" if failed else f"result of {container.guid}"
        await _attempt(self._complete(container.guid, failed, container.reason, result))
        self._delete(container)

    async def _complete(self, guid: str, failed: bool, reason: str, result: str) -> Any:
        request = models.CompleteTaskRequest(
            task_guid=guid, cell_id=self.cell_id, failed=failed, failure_reason=reason, result=result
        )
        call = self._pair.write("/v1/tasks/complete", request, models.TaskLifecycleResponse)
        return await self._ledger.write(guid, COMPLETED, call, result=result)

    # -- plumbing ----------------------------------------------------------------------------

    def _delete(self, container: Container) -> None:
        self.containers.pop(container.guid, None)

    def _instance(self, container: Container) -> models.ActualLRPInstanceKey:
        return models.ActualLRPInstanceKey(instance_guid=container.guid, cell_id=self.cell_id)

    def _running(self, container: Container, kind: type[Any]) -> Any:
        port = models.PortMapping(container_port=8080, host_port=20000 + container.index)
        return kind(
            actual_lrp_key=container.key,
            actual_lrp_instance_key=self._instance(container),
            actual_lrp_net_info=models.ActualLRPNetInfo(
                address="10.0.0.1", instance_address="10.255.0.1", ports=[port]
            ),
            actual_lrp_internal_routes=[models.ActualLRPInternalRoute(hostname=name) for name in container.routes],
            metric_tags={"source_id": container.process_guid},
            Routable=True,
            availability_zone=self.zone,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._pair.journal.violation(f"the soak itself failed: {task.exception()!r}")


async def _attempt(call: Awaitable[Any]) -> bool:
    """Whether it was acknowledged."""
    try:
        await call
    except (Lost, Refusal):
        return False
    return True


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Step = Callable[[Cell, Container], Awaitable[None]]

LRP_STEPS: Mapping[State, Step] = {
    State.RESERVED: Cell._claim,
    State.RUNNING: Cell._report,
    State.COMPLETED: Cell._end_instance,
}
EVACUATION_STEPS: Mapping[State, Step] = {
    State.RESERVED: Cell._evacuate_claimed,
    State.RUNNING: Cell._evacuate_running,
    State.COMPLETED: Cell._evacuate_ended,
}
TASK_STEPS: Mapping[State, Step] = {
    State.RESERVED: Cell._start_task,
    State.RUNNING: Cell._start_task,
    State.COMPLETED: Cell._end_task,
}
