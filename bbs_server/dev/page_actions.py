"""What the page may do to a stack: the buttons that only `bbs-dev` has."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.client import Client, ClientError
from bbs_server.dev import definitions
from bbs_server.dev.api import describe
from bbs_server.dev.supervisor import Stack
from bbs_server.page import FeedFailed

_MOST_INSTANCES = 1000


class StackActions:
    """Actions on a stack and its BBS."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self._stack = stack
        self._client = client

    def parts(self) -> Sequence[Mapping[str, Any]]:
        cells = self._stack.layout.cell_names()
        return [
            {"name": name, "state": found["state"], "restarts": found["restarts"], "cell": name in cells}
            for name, found in ((name, describe(part)) for name, part in self._stack.parts.items())
        ]

    async def run_task(self, script: str) -> str:
        guid = f"page-{uuid.uuid4().hex[:8]}"
        await _done(self._client.upsert_domain(definitions.DOMAIN, ttl=0))
        definition = definitions.task(script, result_file="/result")
        await _done(self._client.desire_task(guid, definitions.DOMAIN, definition))
        return guid

    async def desire(self, guid: str, instances: int) -> None:
        await _done(self._client.upsert_domain(definitions.DOMAIN, ttl=0))
        await _done(self._client.desire_lrp(definitions.web_app(guid, _sane(instances))))

    async def scale(self, guid: str, instances: int) -> None:
        await _done(self._client.update_lrp(guid, models.DesiredLRPUpdate(instances=_sane(instances))))

    async def remove(self, guid: str) -> None:
        await _done(self._client.remove_lrp(guid))

    async def cancel(self, guid: str) -> None:
        await _done(self._client.cancel_task(guid))


async def _done(call: Awaitable[None]) -> None:
    try:
        await call
    except ClientError as problem:
        raise FeedFailed(str(problem)) from problem


def _sane(instances: int) -> int:
    """Instances are processes of this machine."""
    if not 0 <= instances <= _MOST_INSTANCES:
        raise FeedFailed(f"between 0 and {_MOST_INSTANCES} instances, please")
    return instances
