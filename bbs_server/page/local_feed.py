"""The BBS this process is: its committed state and its own event hubs."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Protocol, TypeVar, cast

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bbs_server.client.events import MESSAGES, StreamEvent
from bbs_server.core import actual_lrps, desired_lrps, domains, tasks
from bbs_server.core.encoding import Answer, Elements
from bbs_server.core.errors import ErrorType, Refused
from bbs_server.core.event_messages import Revision
from bbs_server.core.outcome import Hub, Query
from bbs_server.effects.hubs import Hubs, HubsClosed
from bbs_server.page.feed import FIGURES, PART, Change, FeedFailed, Kind, Listed, NotThere

R = TypeVar("R", bound=Message)

_LIST_FIELD = 2
"""Number of the list in every list response."""

_EVENT = re.compile(rb"event: (\w+)\ndata(?:: (\S*))?\n")


class Reader(Protocol):
    """The writer's reading side."""

    def read(self, query: Query, request: Any, request_id: str = "") -> Coroutine[Any, Any, Answer]: ...


class CellList(Protocol):
    """The presences."""

    async def all(self) -> list[models.CellPresence]: ...


class LocalFeed:
    """Feed inside the server, for use once the writer is open. Its streams end when the hubs are closed.

    `collectors` are those of the server's Prometheus registry, or the registry itself.
    """

    def __init__(self, reader: Reader, hubs: Hubs, presences: CellList, collectors: Sequence[Collector] = ()) -> None:
        self._reader = reader
        self._hubs = hubs
        self._presences = presences
        self._collectors = collectors

    async def tasks(self) -> AsyncGenerator[Change, None]:
        async for change in self._follow((Hub.TASK,), (Kind.TASKS,)):
            yield change

    async def lrps(self) -> AsyncGenerator[Change, None]:
        async for change in self._follow((Hub.DESIRED, Hub.INSTANCE), (Kind.DESIRED, Kind.INSTANCES)):
            yield change

    async def cells(self) -> Sequence[models.CellPresence]:
        try:
            return await self._presences.all()
        except Refused as problem:
            raise FeedFailed(problem.error.message) from problem

    async def domains(self) -> Sequence[str]:
        answer = await self._ask(domains.list_fresh, None, models.DomainsResponse)
        return list(answer.domains)

    async def task(self, guid: str) -> models.Task:
        request = models.TaskByGuidRequest(task_guid=guid)
        return (await self._ask(tasks.get_r3, request, models.TaskResponse)).task

    async def desired_lrp(self, guid: str) -> models.DesiredLRP:
        request = models.DesiredLRPByProcessGuidRequest(process_guid=guid)
        return (await self._ask(desired_lrps.get_r3, request, models.DesiredLRPResponse)).desired_lrp

    async def instances(self, guid: str) -> Sequence[models.ActualLRP]:
        request = models.ActualLRPsRequest(process_guid=guid)
        return list((await self._ask(actual_lrps.list_all, request, models.ActualLRPsResponse)).actual_lrps)

    async def figures(self) -> Iterable[Metric]:
        families = (family for collector in self._collectors for family in collector.collect())
        return [family for family in families if family.name.startswith(FIGURES)]

    async def _follow(self, hubs: Sequence[Hub], kinds: Sequence[Kind]) -> AsyncGenerator[Change, None]:
        while True:
            # An overflowing subscription ends like a slow client's: subscribe and list again.
            try:
                subscription = self._hubs.subscribe(hubs, Revision.R1, "")
            except HubsClosed:
                return
            try:
                for kind in kinds:
                    query, request, response = _LISTS[kind]
                    yield Listed(kind, _parts(await self._answer(query, request()), response))
                numbers = count()
                async for chunk in subscription:
                    for name, data in _EVENT.findall(chunk):
                        yield _event(next(numbers), name.decode(), data)
            finally:
                subscription.close()

    async def _answer(self, query: Query, request: Any) -> Answer:
        try:
            return await self._reader.read(query, request)
        except Refused as problem:
            failure = NotThere if problem.error.type == ErrorType.RESOURCE_NOT_FOUND else FeedFailed
            raise failure(problem.error.message) from problem

    async def _ask(self, query: Query, request: Any, response: type[R]) -> R:
        answer = await self._answer(query, request)
        return _decoded(answer, response)


_LISTS: Mapping[Kind, tuple[Query, Callable[[], Message], type[Message]]] = {
    Kind.TASKS: (tasks.list_r3, models.TasksRequest, models.TasksResponse),
    Kind.DESIRED: (
        desired_lrps.list_scheduling_infos,
        models.DesiredLRPsRequest,
        models.DesiredLRPSchedulingInfosResponse,
    ),
    Kind.INSTANCES: (actual_lrps.list_all, models.ActualLRPsRequest, models.ActualLRPsResponse),
}


def _decoded(answer: Answer, response: type[R]) -> R:
    return response.FromString(b"".join(answer.pieces)) if isinstance(answer, Elements) else cast(R, answer)


def _parts(answer: Answer, response: type[Message]) -> Iterator[Sequence[Message]]:
    """Encoded and decoded as they are asked for: a large list must not hold the server up."""
    assert isinstance(answer, Elements)
    name = next(field.name for field in response.DESCRIPTOR.fields if field.number == _LIST_FIELD)
    for start in range(0, len(answer.records), PART):
        pieces = map(answer.piece, answer.records[start : start + PART])
        yield getattr(response.FromString(b"".join(pieces)), name)


def _event(number: int, name: str, data: bytes) -> StreamEvent:
    return StreamEvent(number, name, MESSAGES[name].FromString(base64.b64decode(data)))
