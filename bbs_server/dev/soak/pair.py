"""A client of the fail-over pair: it asks the server that answered last and turns to the other one when it is away."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import aiohttp
import httpx
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.client.events import MESSAGES
from bbs_server.core.errors import ErrorType
from bbs_server.dev.soak.journal import Journal

R = TypeVar("R", bound=Message)

_PATIENCE = 40.0
"""Seconds for which a request that no server has received is tried again."""

_TIMEOUT = 20.0
_PAUSE = 0.25
_HEADERS = {"Content-Type": "application/x-protobuf"}

DEFINITE = frozenset(
    {
        ErrorType.RESOURCE_EXISTS,
        ErrorType.RESOURCE_NOT_FOUND,
        ErrorType.INVALID_STATE_TRANSITION,
        ErrorType.CANNOT_BE_CLAIMED,
        ErrorType.CANNOT_BE_STARTED,
        ErrorType.CANNOT_BE_CRASHED,
        ErrorType.CANNOT_BE_FAILED,
        ErrorType.CANNOT_BE_REMOVED,
        ErrorType.CANNOT_BE_UNCLAIMED,
        ErrorType.RUNNING_ON_DIFFERENT_CELL,
    }
)
"""Errors that say that nothing was done; after any other one the outcome is unknown."""


class Lost(Exception):
    """No usable answer: the request may or may not have taken effect."""


class Refusal(Exception):
    """The server declined; nothing was changed."""

    def __init__(self, type_: int, message: str) -> None:
        super().__init__(message)
        self.type = type_


class Pair:
    """Both servers under one name."""

    def __init__(self, urls: Sequence[str], tls: ssl.SSLContext, journal: Journal) -> None:
        self._urls = list(urls)
        self._tls = tls
        self.journal = journal
        self.current = 0
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT, sock_connect=3)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=200, keepalive_timeout=60), timeout=timeout, headers=_HEADERS
        )

        # The other library cannot read the streams: it does not understand their chunks' empty extensions.
        self._streams = httpx.AsyncClient(verify=tls, timeout=httpx.Timeout(5.0, read=None), headers=_HEADERS)

    async def close(self) -> None:
        await self._streams.aclose()
        await self._session.close()

    async def write(self, path: str, request: Message, response: type[R]) -> R:
        """As `ask`, counted as an acknowledged write."""
        answer = await self.ask(path, request, response)
        self.journal.acknowledged[path] += 1
        return answer

    async def ask(self, path: str, request: Message | None, response: type[R]) -> R:
        """The answer. Raises Lost or Refusal."""
        begin = time.monotonic()
        body = request.SerializeToString() if request is not None else b""
        while True:
            content = await self._once(path, body, begin)
            if content is not None:
                return self._read(path, response.FromString(content), begin)
            if time.monotonic() - begin > _PATIENCE:
                raise Lost(f"no server for {path}")
            await asyncio.sleep(_PAUSE)

    async def _once(self, path: str, body: bytes, begin: float) -> bytes | None:
        """None if no server was there to take it."""
        asked = self.current
        self.journal.requests[path] += 1
        try:
            async with self._session.post(self._urls[asked] + path, data=body) as answer:
                content = await answer.read()
        except aiohttp.ClientConnectorError:
            self.journal.error("no server listens", begin)
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            self.journal.error(f"no answer: {type(problem).__name__}", begin)
            raise Lost(repr(problem)) from problem
        else:
            if answer.status == 200:
                return content
            self.journal.error(f"HTTP {answer.status}", begin)
            if answer.status != 503:
                raise Lost(f"HTTP {answer.status}")
        if self.current == asked:
            self.current = 1 - asked
        return None

    def _read(self, path: str, message: R, begin: float) -> R:
        if not self.journal.in_window(begin):
            self.journal.slowest = max(self.journal.slowest, time.monotonic() - begin)
        if not message.DESCRIPTOR.fields_by_name.get("error") or not message.HasField("error"):
            return message
        error = message.error  # type: ignore[attr-defined]
        if error.type in DEFINITE:
            self.journal.refusals[f"{path} {ErrorType(error.type).name}"] += 1
            raise Refusal(error.type, error.message)
        self.journal.error(f"{path} answered {error.type}: {error.message}", begin)
        raise Lost(error.message)

    async def active(self) -> int | None:
        """Which of the two answers a ping."""
        for number, url in enumerate(self._urls):
            try:
                async with self._session.post(f"{url}/v1/ping", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                    if answer.status == 200 and models.PingResponse.FromString(await answer.read()).available:
                        return number
            except (aiohttp.ClientError, TimeoutError, OSError):
                continue
        return None

    async def events(self, method: str, path: str, request: Message | None) -> AsyncIterator[tuple[str, Message]]:
        """One subscription, for as long as the server lets it live."""
        asked, name = self.current, ""
        body = request.SerializeToString() if request is not None else None
        try:
            async with self._streams.stream(method, self._urls[asked] + path, content=body) as answer:
                if answer.status_code != 200:
                    raise Lost(f"HTTP {answer.status_code}")
                async for line in answer.aiter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: "):
                        yield name, MESSAGES[name].FromString(base64.b64decode(line[6:]))
        except (httpx.HTTPError, Lost) as problem:
            if self.current == asked and isinstance(problem, httpx.ConnectError):
                self.current = 1 - asked
            self.journal.error(f"stream: {type(problem).__name__}", time.monotonic())
        else:
            self.journal.error("stream ended", time.monotonic())
