"""A BBS as any client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import httpx
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bbs_server.client import Client, ClientError, Failed
from bbs_server.core.errors import ErrorType
from bbs_server.page.feed import FIGURES, PART, Change, FeedFailed, Kind, Listed, NotThere

log = logging.getLogger(__name__)

T = TypeVar("T")

Lists = Callable[[], Awaitable[list[Listed]]]

_PAUSE = 1.0
"""s before a stream is opened again after an error that the client does not repeat by itself."""


class ClientFeed:
    """Feed over the public protocol. `metrics_url` is the server's Prometheus endpoint, if it has one."""

    def __init__(self, client: Client, metrics_url: str = "") -> None:
        self._client = client
        self._metrics_url = metrics_url
        self._http = httpx.AsyncClient(timeout=5.0, trust_env=False)

    async def close(self) -> None:
        """Close what is the feed's own; the client is the caller's."""
        await self._http.aclose()

    def tasks(self) -> AsyncGenerator[Change, None]:
        return self._follow("/v1/events/tasks.r1", self._task_lists)

    def lrps(self) -> AsyncGenerator[Change, None]:
        return self._follow("/v1/events/lrp_instances.r1", self._lrp_lists)

    async def cells(self) -> Sequence[models.CellPresence]:
        return await _asked(self._client.cells())

    async def domains(self) -> Sequence[str]:
        return await _asked(self._client.domains())

    async def task(self, guid: str) -> models.Task:
        return await _asked(self._client.task(guid))

    async def desired_lrp(self, guid: str) -> models.DesiredLRP:
        return await _asked(self._client.desired_lrp(guid))

    async def instances(self, guid: str) -> Sequence[models.ActualLRP]:
        return await _asked(self._client.actual_lrps(process_guid=guid))

    async def figures(self) -> Iterable[Metric]:
        if not self._metrics_url:
            return ()
        try:
            answer = await self._http.get(self._metrics_url)
            answer.raise_for_status()
        except httpx.HTTPError as problem:
            raise FeedFailed(f"no metrics from {self._metrics_url}: {problem}") from problem
        return text_string_to_metric_families("\n".join(_wanted(answer.text)) + "\n")

    async def _follow(self, path: str, lists: Lists) -> AsyncGenerator[Change, None]:
        while True:
            try:
                async with contextlib.aclosing(self._client.follow(path)) as stream:  # type: ignore[type-var]
                    async for event in stream:
                        if event is not None:
                            yield event
                            continue
                        for listed in await lists():
                            yield listed
            except ClientError as problem:
                log.warning("%s: %s", path, problem)
            await asyncio.sleep(_PAUSE)

    async def _task_lists(self) -> list[Listed]:
        return [Listed(Kind.TASKS, _parts(await self._client.tasks()))]

    async def _lrp_lists(self) -> list[Listed]:
        desired, instances = await self._client.scheduling_infos(), await self._client.actual_lrps()
        return [Listed(Kind.DESIRED, _parts(desired)), Listed(Kind.INSTANCES, _parts(instances))]


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except Failed as problem:
        if problem.type == ErrorType.RESOURCE_NOT_FOUND:
            raise NotThere(str(problem)) from problem
        raise FeedFailed(str(problem)) from problem
    except ClientError as problem:
        raise FeedFailed(str(problem)) from problem


def _parts(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    for start in range(0, len(messages), PART):
        yield messages[start : start + PART]


def _wanted(text: str) -> Iterator[str]:
    """Lines of the metrics the charts need; the parser is slow and the endpoint gives many more."""
    for line in text.splitlines():
        if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(FIGURES):
            yield line
