"""What a cell tells the BBS about each of its containers (cells-and-auctions.md sections 6 and 7).

One row of `STEPS` per kind and state. Containers are processed one after the other per guid; while
one is being processed at most one further processing waits, and each looks at the present state.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.client import Client, ClientError, Failed
from bbs_server.core.errors import ErrorType
from bbs_server.dev.cell import lives
from bbs_server.dev.cell.containers import Container, Containers, State
from bbs_server.dev.cell.settings import Settings

log = logging.getLogger(__name__)

_NO_CONTAINER = "task container does not exist"
_GONE = (ErrorType.INVALID_STATE_TRANSITION, ErrorType.RESOURCE_NOT_FOUND)
_DYNAMIC_TAGS = {models.MetricTagValue.INDEX: "INSTANCE_INDEX", models.MetricTagValue.INSTANCE_GUID: "INSTANCE_GUID"}


class Rep:
    """The cell as a client of the BBS."""

    def __init__(self, settings: Settings, bbs: Client, containers: Containers) -> None:
        self._settings = settings
        self._bbs = bbs
        self._containers = containers
        self._busy: set[str] = set()
        self._again: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.evacuating = False

    def process(self, guid: str) -> None:
        """Look at a container and do what its state asks for, soon."""
        if guid in self._busy:
            self._again.add(guid)
            return
        self._busy.add(guid)
        task = asyncio.create_task(self._process(guid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sync(self) -> None:
        """Compare our containers with what the BBS believes; a failing call skips the whole comparison."""
        cell_id = self._settings.cell_id
        try:
            lrps, tasks = await asyncio.gather(self._bbs.actual_lrps(cell_id=cell_id), self._bbs.tasks(cell_id=cell_id))
        except ClientError as problem:
            log.warning("bulk sync skipped: %s", problem)
            return
        self._containers.expire()
        for container in self._containers.all():
            self.process(container.guid)
        await self._drop_unknown(lrps)
        for task in tasks:
            if self._containers.get(task.task_guid) is None:
                await self._try(self._bbs.complete_task(task.task_guid, cell_id, True, _NO_CONTAINER, _NO_CONTAINER))

    async def _drop_unknown(self, lrps: list[models.ActualLRP]) -> None:
        """Ordinary ones first: an instance with two records loses the evacuating one last."""
        for lrp in sorted(lrps, key=_is_evacuating):
            key, instance = lrp.actual_lrp_key, lrp.actual_lrp_instance_key
            if self._containers.get(instance.instance_guid) is not None:
                continue
            if _is_evacuating(lrp):
                await self._try(self._bbs.remove_evacuating(key, instance))
            else:
                await self._try(self._bbs.remove(key.process_guid, key.index, instance))

    async def _process(self, guid: str) -> None:
        try:
            while True:
                self._again.discard(guid)
                container = self._containers.get(guid)
                if container is not None and not container.deleting:
                    await self._step(container)
                if guid not in self._again:
                    return
        finally:
            self._busy.discard(guid)

    async def _step(self, container: Container) -> None:
        steps = TASK_STEPS if container.is_task else EVACUATION_STEPS if self.evacuating else LRP_STEPS
        try:
            await steps[container.state](self, container)
        except ClientError as problem:
            log.warning("%s (%s): %s", container.guid, container.state.value, problem)
        except Exception:
            # One container's trouble is not the cell's; the next sync looks at it again.
            log.exception("%s (%s)", container.guid, container.state.value)

    async def _try(self, call: Awaitable[Any]) -> None:
        with contextlib.suppress(ClientError):
            await call

    # instances

    async def _claim_and_run(self, container: Container) -> None:
        if not await self._claim(container):
            return
        lrp = await self._bbs.desired_lrp(container.body["process_guid"])
        if container.stopped or container.state is not State.RESERVED:
            return
        environment = lives.lrp_environment(lrp, container, self._settings.cell_id)
        container.internal_routes = _internal_routes(lrp)
        container.metric_tags = _metric_tags(lrp, environment)
        try:
            self._containers.prepare(container, environment, lrp.ports)
            container.sandbox.environment = lives.with_ports(environment, container.sandbox.ports)
            lives.say_what_is_missing(lrp, container)
        except OSError as problem:
            log.warning("%s cannot be run: %s", container.guid, problem)
            await self._containers.delete(container.guid)
            key = self._key(container)
            await self._bbs.remove(key.process_guid, key.index, self._instance(container))
            return
        self._containers.run(container, lives.lrp_life(lrp, container, lambda: self._containers.running(container)))

    async def _claim(self, container: Container) -> bool:
        try:
            await self._bbs.claim(container.body["process_guid"], container.body["index"], self._instance(container))
        except Failed as problem:
            if problem.type == ErrorType.CANNOT_BE_CLAIMED:
                await self._containers.delete(container.guid)
            return False
        return True

    async def _claim_again(self, container: Container) -> None:
        await self._claim(container)

    async def _report_running(self, container: Container) -> None:
        try:
            await self._bbs.start(self._running(container, models.StartActualLRPRequest))
        except Failed as problem:
            if problem.type == ErrorType.CANNOT_BE_STARTED:
                self._containers.stop(container.guid)

    async def _report_end(self, container: Container) -> None:
        key, instance = self._key(container), self._instance(container)
        if container.stopped:
            await self._try(self._bbs.remove(key.process_guid, key.index, instance))
        else:
            await self._try(self._bbs.crash(key, instance, container.reason[:10000]))
        await self._containers.delete(container.guid)

    # instances while evacuating

    async def _evacuate_claimed(self, container: Container) -> None:
        await self._try(self._bbs.evacuate_claimed(self._key(container), self._instance(container)))
        await self._containers.delete(container.guid)

    async def _evacuate_running(self, container: Container) -> None:
        keep = True
        with contextlib.suppress(ClientError):
            keep = await self._bbs.evacuate_running(self._running(container, models.EvacuateRunningActualLRPRequest))
        if not keep:
            await self._containers.delete(container.guid)

    async def _evacuate_ended(self, container: Container) -> None:
        key, instance = self._key(container), self._instance(container)
        if container.stopped:
            await self._try(self._bbs.evacuate_stopped(key, instance))
        else:
            await self._try(self._bbs.evacuate_crashed(key, instance, container.reason[:10000]))
        await self._containers.delete(container.guid)

    # tasks

    async def _start_task(self, container: Container) -> None:
        try:
            should_start = await self._bbs.start_task(container.guid, self._settings.cell_id)
        except Failed as problem:
            if problem.type in _GONE:
                await self._containers.delete(container.guid)
            return
        if not should_start or container.state is not State.RESERVED:
            return
        definition = (await self._bbs.task(container.guid)).task_definition
        if container.state is not State.RESERVED:
            return
        try:
            self._containers.prepare(container, lives.task_environment(definition), ())
            lives.say_what_is_missing(definition, container)
        except OSError as problem:
            log.warning("%s cannot be run: %s", container.guid, problem)
            cell_id = self._settings.cell_id
            await self._try(self._bbs.complete_task(container.guid, cell_id, True, "failed to run container", ""))
            await self._containers.delete(container.guid)
            return
        container.result_file = definition.result_file
        self._containers.run(container, lives.task_life(definition, container))

    async def _report_task_end(self, container: Container) -> None:
        if container.failed and not container.began and not container.stopped:
            await self._try(self._bbs.reject_task(container.guid, container.reason))
        else:
            await self._complete_task(container)
        await self._containers.delete(container.guid)

    async def _complete_task(self, container: Container) -> None:
        failed, reason, result = container.failed, container.reason, ""
        if container.result_file:
            try:
                with container.sandbox.path(container.result_file).open("rb") as file:
                    result = file.read(lives.RESULT_LIMIT).decode(errors="replace")
            except OSError:
                failed, reason = True, reason if failed else "failed to fetch result"
        cell_id = self._settings.cell_id
        try:
            await self._bbs.complete_task(container.guid, cell_id, failed, reason, result)
        except Failed as problem:
            if problem.type == ErrorType.INVALID_STATE_TRANSITION:
                late = self._bbs.complete_task(container.guid, cell_id, True, "invalid state transition", "")
                await self._try(late)

    # messages

    def _key(self, container: Container) -> models.ActualLRPKey:
        body = container.body
        return models.ActualLRPKey(process_guid=body["process_guid"], index=body["index"], domain=body["domain"])

    def _instance(self, container: Container) -> models.ActualLRPInstanceKey:
        return models.ActualLRPInstanceKey(instance_guid=container.guid, cell_id=self._settings.cell_id)

    def _running(self, container: Container, kind: type[Any]) -> Any:
        ports = [
            models.PortMapping(container_port=inside, host_port=outside)
            for inside, outside in container.sandbox.ports.items()
        ]
        return kind(
            actual_lrp_key=self._key(container),
            actual_lrp_instance_key=self._instance(container),
            actual_lrp_net_info=models.ActualLRPNetInfo(
                address="127.0.0.1",
                instance_address="127.0.0.1",
                ports=ports,
                preferred_address=models.ActualLRPNetInfo.HOST,
            ),
            actual_lrp_internal_routes=[models.ActualLRPInternalRoute(hostname=h) for h in container.internal_routes],
            metric_tags=dict(container.metric_tags),
            Routable=container.routable,
            availability_zone=self._settings.zone,
        )


Step = Callable[[Rep, Container], Awaitable[None]]

LRP_STEPS: Mapping[State, Step] = {
    State.RESERVED: Rep._claim_and_run,
    State.CREATED: Rep._claim_again,
    State.RUNNING: Rep._report_running,
    State.COMPLETED: Rep._report_end,
}
EVACUATION_STEPS: Mapping[State, Step] = {
    State.RESERVED: Rep._evacuate_claimed,
    State.CREATED: Rep._evacuate_claimed,
    State.RUNNING: Rep._evacuate_running,
    State.COMPLETED: Rep._evacuate_ended,
}
TASK_STEPS: Mapping[State, Step] = {
    State.RESERVED: Rep._start_task,
    State.CREATED: Rep._start_task,
    State.RUNNING: Rep._start_task,
    State.COMPLETED: Rep._report_task_end,
}


def _is_evacuating(lrp: models.ActualLRP) -> bool:
    return lrp.presence == models.ActualLRP.EVACUATING


def _internal_routes(lrp: models.DesiredLRP) -> tuple[str, ...]:
    """The host names of the router group `internal-router`."""
    try:
        routes = json.loads(lrp.routes.routes.get("internal-router", b"[]"))
        return tuple(route["hostname"] for route in routes or ())
    except (ValueError, KeyError, TypeError):
        return ()


def _metric_tags(lrp: models.DesiredLRP, environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: environment[_DYNAMIC_TAGS[value.dynamic]] if value.dynamic in _DYNAMIC_TAGS else value.static
        for name, value in lrp.metric_tags.items()
    }
