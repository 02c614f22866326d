"""Event streams as a client reads them: names and decoded messages (events.md sections 2 to 4)."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import httpx
import httpx_sse
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.client.errors import ClientError, NotActive, StreamEnded, explain

MESSAGES: Mapping[str, type[Message]] = {
    "desired_lrp_created": models.DesiredLRPCreatedEvent,
    "desired_lrp_changed": models.DesiredLRPChangedEvent,
    "desired_lrp_removed": models.DesiredLRPRemovedEvent,
    "actual_lrp_created": models.ActualLRPCreatedEvent,
    "actual_lrp_changed": models.ActualLRPChangedEvent,
    "actual_lrp_removed": models.ActualLRPRemovedEvent,
    "actual_lrp_crashed": models.ActualLRPCrashedEvent,
    "actual_lrp_instance_created": models.ActualLRPInstanceCreatedEvent,
    "actual_lrp_instance_changed": models.ActualLRPInstanceChangedEvent,
    "actual_lrp_instance_removed": models.ActualLRPInstanceRemovedEvent,
    "task_created": models.TaskCreatedEvent,
    "task_changed": models.TaskChangedEvent,
    "task_removed": models.TaskRemovedEvent,
}


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event: its number in this stream, its name, its message of the type that belongs to the name."""

    id: int
    name: str
    message: Message


async def read(http: httpx.AsyncClient, path: str, request: Message) -> AsyncIterator[StreamEvent | None]:
    """None once subscribed (nothing that happens later is missed), then the events.

    Raises StreamEnded when the server ends the stream, other ClientErrors when it breaks.
    """
    url = str(http.base_url)
    try:
        async with httpx_sse.aconnect_sse(
            http,
            "POST",
            path,
            content=request.SerializeToString(),
            headers={"Content-Type": "application/x-protobuf"},
            timeout=httpx.Timeout(30.0, read=None),
        ) as source:
            if source.response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                raise NotActive(f"{url} is still starting")
            if source.response.status_code != httpx.codes.OK:
                raise ClientError(f"{url}{path} answered HTTP {source.response.status_code}")
            yield None
            async for event in source.aiter_sse():
                yield _decode(event)
    except httpx.HTTPError as problem:
        raise explain(problem, url) from problem
    raise StreamEnded(f"{url} ended the stream")


def _decode(event: httpx_sse.ServerSentEvent) -> StreamEvent:
    kind = MESSAGES.get(event.event)
    if kind is None:
        raise ClientError(f"unknown event {event.event!r}")
    return StreamEvent(int(event.id or 0), event.event, kind.FromString(base64.b64decode(event.data)))
