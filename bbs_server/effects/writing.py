"""What the effects need of the store: commands of their own, answered once they are durable."""

from __future__ import annotations

from typing import Any, Protocol

from bbs_server.core.encoding import Answer
from bbs_server.core.outcome import Command


class Writing(Protocol):
    """The store's writer. `write` raises Refused."""

    async def write(self, command: Command, request: Any, request_id: str = "") -> Answer: ...
