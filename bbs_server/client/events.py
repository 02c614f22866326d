"""Event streams as a client reads them: names and decoded messages (events.md sections 2 to 4)."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

import httpx
import httpx_sse
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.client.errors import TROUBLE, ClientError, NotActive, StreamEnded, explain

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


class EventStream:
    """An async iterator: None once subscribed (nothing that happens later is missed), then the events.

    Raises StreamEnded when the server ends the stream, other ClientErrors when it breaks. Whoever stops
    reading early calls `aclose`, or leaves it to the client's end.
    """

    def __init__(
        self, http: httpx.AsyncClient, path: str, request: Message, closed: Callable[[EventStream], None]
    ) -> None:
        self._http = http
        self._path = path
        self._request = request
        self._closed = closed
        self._response: httpx.Response | None = None
        self._events: AsyncGenerator[httpx_sse.ServerSentEvent, None] | None = None
        self._ended = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> StreamEvent | None:
        if self._ended:
            raise StopAsyncIteration
        url = str(self._http.base_url)
        try:
            if self._events is None:
                self._events = await self._open(url)
                return None
            return _decode(await anext(self._events))
        except StopAsyncIteration:
            await self.aclose()
            raise StreamEnded(f"{url} ended the stream") from None
        except TROUBLE as problem:
            await self.aclose()
            raise explain(problem, url) from problem
        except ClientError:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End it; reading on stops."""
        if self._ended:
            return
        self._ended = True
        self._closed(self)
        if self._events is not None:
            await self._events.aclose()
        if self._response is not None:
            await self._response.aclose()

    async def _open(self, url: str) -> AsyncGenerator[httpx_sse.ServerSentEvent, None]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Content-Type": "application/x-protobuf"}
        content = self._request.SerializeToString()
        timeout = httpx.Timeout(30.0, read=None)
        request = self._http.build_request("POST", self._path, content=content, headers=headers, timeout=timeout)
        self._response = await self._http.send(request, stream=True)
        if self._response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise NotActive(f"{url} is still starting")
        if self._response.status_code != httpx.codes.OK:
            raise ClientError(f"{url}{self._path} answered HTTP {self._response.status_code}")
        return httpx_sse.EventSource(self._response).aiter_sse()


def _decode(event: httpx_sse.ServerSentEvent) -> StreamEvent:
    kind = MESSAGES.get(event.event)
    if kind is None:
        raise ClientError(f"unknown event {event.event!r}")
    return StreamEvent(int(event.id or 0), event.event, kind.FromString(base64.b64decode(event.data)))
