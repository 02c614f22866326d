"""Event streams: from a subscription to a connection (events.md 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bbs_server.core.event_messages import Revision
from bbs_server.core.outcome import Hub
from bbs_server.wire.answers import LAST_CHUNK
from bbs_server.wire.channel import Channel

TASK_NAME = "event-stream"


class Subscription(Protocol):
    """The events of one subscriber, framed as chunks of its stream."""

    async def next(self) -> bytes | None:
        """All events pending now, joined (at most some 256 KiB); waits for the first. None at the end."""

    def close(self) -> None:
        """Take no further event."""


class Hubs(Protocol):
    """The sources of events."""

    def subscribe(self, hubs: Sequence[Hub], revision: Revision, cell_id: str) -> Subscription:
        """Raises when a hub is closed."""


async def relay(channel: Channel, subscription: Subscription) -> None:
    """Send the events until the subscription ends, the client is gone, or the task is cancelled.

    A client that does not read holds up only this task; its subscription ends when its buffer is full.
    """
    try:
        while (chunk := await subscription.next()) is not None:
            channel.send(chunk)
            await channel.drain()
    except ConnectionResetError:
        pass


def end(channel: Channel, subscription: Subscription) -> None:
    """What comes after `relay`, however it ended: the client gets the last chunk if it can still get anything.

    Without it a stock client would take the end for a broken connection.
    """
    subscription.close()
    channel.send(LAST_CHUNK)
    channel.close()
