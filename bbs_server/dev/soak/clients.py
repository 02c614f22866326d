"""The clients: a cloud controller, a runner of tasks, readers of lists and subscribers of events."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence

import aiohttp.web as web
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.core.errors import ErrorType
from bbs_server.dev.soak import settings
from bbs_server.dev.soak.journal import Gate, Journal
from bbs_server.dev.soak.ledger import DELETED, PENDING, RESOLVING, DomainLedger, Ledger, TaskLedger
from bbs_server.dev.soak.pair import Lost, Pair, Refusal
from bbs_server.dev.soak.routes import routes

View = tuple[int, str, str]
"""Instances, annotation and version of the routes of a desired LRP."""

_DOMAIN_TTL = 300
_DOMAIN_SECONDS = 30.0
_WORKERS = 4


def action(name: str) -> models.Action:
    return models.Action(run_action=models.RunAction(path=name, args=["--verbose"], user="vcap", log_source="APP"))


def desired_lrp(guid: str, view: View) -> models.DesiredLRP:
    instances, annotation, version = view
    return models.DesiredLRP(
        process_guid=guid,
        domain=settings.APPS,
        root_fs="preloaded:soak",
        instances=instances,
        annotation=annotation,
        routes=routes(guid, version),
        action=action("/serve"),
        environment_variables=[models.EnvironmentVariable(name=f"VARIABLE_{n}", value="value " * n) for n in range(12)],
        start_timeout_ms=60000,
        memory_mb=64,
        disk_mb=64,
        ports=[8080],
        log_guid=guid,
        metric_tags={"source_id": models.MetricTagValue(static=guid)},
    )


class CloudController:
    """Desires, scales, reroutes and removes processes, and keeps the domain fresh."""

    def __init__(self, pair: Pair, ledger: Ledger[View], domains: DomainLedger, gate: Gate) -> None:
        self._pair = pair
        self._ledger = ledger
        self._domains = domains
        self._gate = gate
        self._numbers = itertools.count(1)
        self._guids: list[str] = []

    async def run(self) -> None:
        await asyncio.gather(self._keep_domain(), *(self._worker() for _ in range(_WORKERS)))

    async def populate(self) -> None:
        await self._refresh()
        for _ in range(settings.PROCESSES):
            await self._desire()

    async def _keep_domain(self) -> None:
        while True:
            await self._refresh()
            await asyncio.sleep(_DOMAIN_SECONDS)

    async def _refresh(self) -> None:
        request = models.UpsertDomainRequest(domain=settings.APPS, ttl=_DOMAIN_TTL)
        sent = time.monotonic()
        try:
            await self._pair.write("/v1/domains/upsert", request, models.UpsertDomainResponse)
        except (Lost, Refusal):
            return
        self._domains.fresh_until[settings.APPS] = sent + _DOMAIN_TTL

    async def _worker(self) -> None:
        while True:
            await asyncio.sleep(random.expovariate(settings.CONTROLLER_WRITES_PER_SECOND / _WORKERS))
            async with self._gate.inside():
                await self._step()

    async def _step(self) -> None:
        if len(self._guids) < settings.PROCESSES * random.uniform(0.95, 1.05):
            await self._desire()
            return
        guid = self._guids.pop(random.randrange(len(self._guids)))  # nobody else has it until it is back
        luck = random.random()
        if luck < 0.15:
            await self._remove(guid)
            if self._ledger.views(guid) == {None}:
                return
        elif luck < 0.5:
            size = max(1, round(random.gauss(settings.INSTANCES, 2)))
            await self._update(guid, models.DesiredLRPUpdate(instances=size), lambda v: (size, v[1], v[2]))
        elif luck < 0.75:
            text = f"annotation {next(self._numbers)}"
            await self._update(guid, models.DesiredLRPUpdate(annotation=text), lambda v: (v[0], text, v[2]))
        else:
            version = f"v{next(self._numbers)}"
            update = models.DesiredLRPUpdate(routes=routes(guid, version))
            await self._update(guid, update, lambda v: (v[0], v[1], version))
        self._guids.append(guid)

    async def _desire(self) -> None:
        guid = f"process-{next(self._numbers)}"
        view = (max(1, round(random.gauss(settings.INSTANCES, 2))), "first", "v0")
        request = models.DesireLRPRequest(desired_lrp=desired_lrp(guid, view))
        call = self._pair.write("/v1/desired_lrp/desire.r2", request, models.DesiredLRPLifecycleResponse)
        await self._ledger.write(guid, lambda v: view if v is None else ErrorType.RESOURCE_EXISTS, call)
        self._guids.append(guid)

    async def _update(self, guid: str, update: models.DesiredLRPUpdate, change: Callable[[View], View]) -> None:
        request = models.UpdateDesiredLRPRequest(process_guid=guid, update=update)
        call = self._pair.write("/v1/desired_lrp/update", request, models.DesiredLRPLifecycleResponse)
        await self._ledger.write(guid, lambda v: ErrorType.RESOURCE_NOT_FOUND if v is None else change(v), call)

    async def _remove(self, guid: str) -> None:
        request = models.RemoveDesiredLRPRequest(process_guid=guid)
        call = self._pair.write("/v1/desired_lrp/remove", request, models.DesiredLRPLifecycleResponse)
        await self._ledger.write(guid, lambda v: ErrorType.RESOURCE_NOT_FOUND if v is None else None, call)


class TaskClient:
    """Desires tasks and takes the completed ones away; for every other one the server does that after a callback."""

    def __init__(self, pair: Pair, ledger: TaskLedger, gate: Gate, callback_url: str) -> None:
        self._pair = pair
        self._ledger = ledger
        self._gate = gate
        self._callback_url = callback_url
        self._numbers = itertools.count(1)
        self._completed: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()

    async def run(self) -> None:
        await asyncio.gather(self._desire(), self._sweep(), *(self._take_away() for _ in range(4)))

    def completed(self, task: models.Task) -> None:
        """Seen in a list or an event."""
        entry = self._ledger.entries.get(task.task_guid)
        if entry is None or entry.callback or task.state < models.Task.Completed or task.task_guid in self._queued:
            return
        self._queued.add(task.task_guid)
        self._completed.put_nowait(task.task_guid)

    async def called_back(self, request: web.Request) -> web.Response:
        self._pair.journal.facts["task callbacks"] += 1
        told = json.loads(await request.read())
        self._ledger.called_back(told["task_guid"], told["failed"], told["failure_reason"], told["result"])
        return web.Response(status=200)

    async def _desire(self) -> None:
        due = time.monotonic()
        pending: set[asyncio.Task[None]] = set()
        while True:
            due = max(due + 1 / settings.TASKS_PER_SECOND, time.monotonic() - 1)
            await asyncio.sleep(due - time.monotonic())
            async with self._gate.inside():
                pass
            task = asyncio.create_task(self._desire_one())
            pending.add(task)
            task.add_done_callback(pending.discard)

    async def _desire_one(self) -> None:
        number = next(self._numbers)
        guid, callback = f"task-{number}", number % 2 == 0
        definition = models.TaskDefinition(
            root_fs="preloaded:soak",
            action=action("/run"),
            memory_mb=64,
            disk_mb=64,
            log_guid=guid,
            annotation="x" * 200,
            completion_callback_url=self._callback_url if callback else "",
        )
        self._ledger.add(guid, callback)
        request = models.DesireTaskRequest(task_guid=guid, domain=settings.TASKS, task_definition=definition)
        await self._write(guid, PENDING, "/v1/tasks/desire.r2", request)

    async def _take_away(self) -> None:
        while True:
            guid = await self._completed.get()
            request = models.TaskGuidRequest(task_guid=guid)
            await self._write(guid, RESOLVING, "/v1/tasks/resolving", request)
            await self._write(guid, DELETED, "/v1/tasks/delete", request)
            self._queued.discard(guid)

    async def _write(self, guid: str, stage: int, path: str, request: Message) -> None:
        call = self._pair.write(path, request, models.TaskLifecycleResponse)
        try:
            await self._ledger.write(guid, stage, call)
        except (Lost, Refusal):
            return

    async def _sweep(self) -> None:
        """Finds what no event told of."""
        while True:
            await asyncio.sleep(5)
            request = models.TasksRequest(domain=settings.TASKS)
            try:
                answer = await self._pair.ask("/v1/tasks/list.r3", request, models.TasksResponse)
            except (Lost, Refusal):
                continue
            for task in answer.tasks:
                self.completed(task)


_LISTS: Sequence[tuple[str, Message | None, type[Message]]] = (
    ("/v1/actual_lrps/list", models.ActualLRPsRequest(), models.ActualLRPsResponse),
    ("/v1/desired_lrps/list.r3", models.DesiredLRPsRequest(), models.DesiredLRPsResponse),
    (
        "/v1/desired_lrp_scheduling_infos/list",
        models.DesiredLRPsRequest(),
        models.DesiredLRPSchedulingInfosResponse,
    ),
    ("/v1/desired_lrp_routing_infos/list", models.DesiredLRPsRequest(), models.DesiredLRPsResponse),
    ("/v1/actual_lrp_groups/list", models.ActualLRPGroupsRequest(), models.ActualLRPGroupsResponse),
    ("/v1/tasks/list.r2", models.TasksRequest(), models.TasksResponse),
    ("/v1/cells/list.r1", None, models.CellsResponse),
    ("/v1/domains/list", None, models.DomainsResponse),
)

_STREAMS: Mapping[str, tuple[str, str, Message | None]] = {
    "tasks": ("POST", "/v1/events/tasks.r1", None),
    "instances": ("POST", "/v1/events/lrp_instances.r1", models.EventsByCellId()),
    "one cell": ("POST", "/v1/events/lrp_instances.r1", models.EventsByCellId(cell_id="cell-1")),
    "groups": ("GET", "/v1/events.r1", None),
}


async def read_lists(pair: Pair) -> None:
    for path, request, response in itertools.cycle(_LISTS):
        await asyncio.sleep(1 / settings.READS_PER_SECOND)
        try:
            await pair.ask(path, request, response)
        except (Lost, Refusal):
            continue


async def subscribe(pair: Pair, journal: Journal, tasks: TaskClient) -> None:
    """All streams, each subscribed again when it ends."""
    await asyncio.gather(*(_follow(pair, journal, tasks, name) for name in _STREAMS))


async def _follow(pair: Pair, journal: Journal, tasks: TaskClient, stream: str) -> None:
    method, path, request = _STREAMS[stream]
    while True:
        async for name, event in pair.events(method, path, request):
            journal.events[f"{stream}: {name}"] += 1
            if isinstance(event, models.TaskChangedEvent):
                tasks.completed(event.after)
        journal.facts["streams subscribed again"] += 1
        await asyncio.sleep(0.5)
