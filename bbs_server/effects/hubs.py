"""The four hubs of events and their subscriptions (events.md 2, 3, 6 and 7).

Publishing never waits. An event is encoded at most once per revision, and only when a subscriber reads
it; what differs per subscriber is the chunk length and the `id:` line. Readers are woken at most once per
`PACE`, so that a flood of events costs one write per subscriber and pace, not one per event.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import groupby

from bbs_server.core.event_messages import Revision, passes, payload
from bbs_server.core.log import Log, silent
from bbs_server.core.outcome import Event, Group, Hub

BUFFER = 1024
"""Events of one hub that may wait for a subscriber which is busy writing; one more and it is dropped."""

PIECE = 256 * 1024
"""Bytes that one reading gives, as far as single events allow."""

PACE = 0.010
"""Seconds between two wake-ups of the readers while events keep coming. After a pause they wake at once."""


class HubsClosed(Exception):
    """The process is shutting down; nobody can subscribe any more."""


class Hubs:
    """Hands each event to the subscriptions of its hub, in the order of publication."""

    def __init__(self, log: Log = silent) -> None:
        self._log = log
        self._all: dict[Hub, dict[Subscription, None]] = {hub: {} for hub in Hub}
        self._by_cell: dict[Hub, dict[str, dict[Subscription, None]]] = {hub: {} for hub in Hub}
        self._sizes = dict.fromkeys(Hub, 0)
        self._closed = False
        self._waiting: list[Subscription] = []
        self._woken_at = 0.0
        self._dropped = 0

    def subscribe(self, hubs: Sequence[Hub], revision: Revision, cell_id: str) -> Subscription:
        """A subscription to the hubs; `cell_id`, unless empty, filters all of them but DESIRED.

        It takes effect at once. Raises HubsClosed.
        """
        if self._closed:
            raise HubsClosed
        subscription = Subscription(self, tuple(hubs), revision, cell_id)
        for hub in subscription.hubs:
            self._members(hub, cell_id)[subscription] = None
            self._sizes[hub] += 1
        return subscription

    def publish(self, events: Sequence[Event]) -> None:
        """Give the events to everybody who wants them. Never blocks, never fails."""
        for hub, run in groupby(events, _hub):
            if not self._sizes[hub]:
                continue
            frames = [_Frame(event) for event in run]
            for subscription in tuple(self._all[hub]):
                self._offer(subscription, hub, frames)
            if self._by_cell[hub]:
                for frame in frames:
                    for subscription in self._interested(frame.event):
                        self._offer(subscription, hub, (frame,))

    def counts(self) -> dict[str, int]:
        """Subscriptions per hub, and how many were dropped as too slow since the start."""
        return {hub.value: size for hub, size in self._sizes.items()} | {"dropped": self._dropped}

    def close(self) -> None:
        """End every subscription after what it still has; publishing then does nothing."""
        self._closed = True
        for hub in Hub:
            by_cell = tuple(self._by_cell[hub].values())
            for subscription in (*self._all[hub], *(member for members in by_cell for member in members)):
                subscription.close()

    def _members(self, hub: Hub, cell_id: str) -> dict[Subscription, None]:
        """The group a subscription belongs to: desired LRP events pass every filter (events.md 7)."""
        if not cell_id or hub is Hub.DESIRED:
            return self._all[hub]
        return self._by_cell[hub].setdefault(cell_id, {})

    def _interested(self, event: Event) -> Iterator[Subscription]:
        """Only the filters of cells that an event's records name can let it pass."""
        for cell_id in frozenset(_cells(event)):
            members = self._by_cell[event.hub].get(cell_id)
            if members and passes(event, cell_id):
                yield from tuple(members)

    def _offer(self, subscription: Subscription, hub: Hub, frames: Sequence[_Frame]) -> None:
        was_waiting = subscription.waits_unnoticed()
        if not subscription.offer(hub, frames):
            self._dropped += 1
            self._log("error", "got-error-sending-event", {"error": "slow consumer"})
            subscription.close()
        elif was_waiting:
            self._wake_soon(subscription)

    def _wake_soon(self, subscription: Subscription) -> None:
        self._waiting.append(subscription)
        if len(self._waiting) > 1:
            return
        loop = asyncio.get_running_loop()
        due = self._woken_at + PACE
        if loop.time() >= due:
            loop.call_soon(self._wake)
        else:
            loop.call_at(due, self._wake)

    def _wake(self) -> None:
        self._woken_at = asyncio.get_running_loop().time()
        waiting, self._waiting = self._waiting, []
        for subscription in waiting:
            subscription.wake()

    def _leave(self, subscription: Subscription) -> None:
        for hub in subscription.hubs:
            members = self._members(hub, subscription.cell_id)
            del members[subscription]
            self._sizes[hub] -= 1
            if not members and members is not self._all[hub]:
                del self._by_cell[hub][subscription.cell_id]


class Subscription:
    """One reader's events, as ready-made HTTP chunks (events.md 2). Only one reader may use it.

    A reader that waits for events takes a burst of any size; the limit of `BUFFER` per hub holds for what
    comes while it is still busy with earlier ones.
    """

    __slots__ = (
        "_burst",
        "_hubs",
        "_left_over",
        "_next_id",
        "_noticed",
        "_open",
        "_pending",
        "_queue",
        "_waiter",
        "cell_id",
        "hubs",
        "revision",
    )

    def __init__(self, owner: Hubs, hubs: tuple[Hub, ...], revision: Revision, cell_id: str) -> None:
        self.hubs = hubs
        self.revision = revision
        self.cell_id = cell_id
        self._hubs = owner
        self._open = True
        self._burst: deque[_Frame] = deque()
        self._queue: deque[_Frame] = deque()
        self._pending = dict.fromkeys(hubs, 0)
        self._waiter: asyncio.Future[None] | None = None
        self._noticed = False
        self._left_over = False
        self._next_id = 0

    async def next(self) -> bytes | None:
        """Chunks of all events that are there, at most about `PIECE` bytes; None at the end of the stream."""
        if self._left_over:
            await asyncio.sleep(0)  # One reader's backlog must not hold up the others.
        while not self._burst and not self._queue:
            if not self._open:
                return None
            await self._wait()
        return self._take()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.next()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """Receive no more events; what is there can still be read."""
        if self._open:
            self._open = False
            self._hubs._leave(self)
        self.wake()

    def waits_unnoticed(self) -> bool:
        """Whether the reader waits and no event has come for it yet."""
        return self._waiter is not None and not self._noticed

    def offer(self, hub: Hub, frames: Sequence[_Frame]) -> bool:
        """Keep the events; False if there was no room for all of them."""
        if self._waiter is not None:
            self._noticed = True
            self._burst.extend(frames)
            return True
        room = BUFFER - self._pending[hub]
        kept = frames if len(frames) <= room else frames[:room]
        self._queue.extend(kept)
        self._pending[hub] += len(kept)
        return kept is frames

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._noticed = False

    def _take(self) -> bytes | None:
        pieces: list[bytes] = []
        size = 0
        try:
            while size < PIECE and (frame := self._pop()) is not None:
                pieces.append(frame.chunk(self.revision, self._next_id))
                self._next_id += 1
                size += len(pieces[-1])
        except Exception as problem:  # An event that cannot be encoded ends the stream (events.md 3).
            self._hubs._log("error", "failed-to-encode-event", {"error": str(problem)})
            self._burst.clear()
            self._queue.clear()
            self.close()
        self._left_over = bool(self._burst or self._queue)
        return b"".join(pieces) or None

    def _pop(self) -> _Frame | None:
        if self._burst:
            return self._burst.popleft()
        if not self._queue:
            return None
        frame = self._queue.popleft()
        self._pending[frame.event.hub] -= 1
        return frame


class _Frame:
    """An event and its encodings, shared by all subscriptions."""

    __slots__ = ("_last", "_texts", "event")

    def __init__(self, event: Event) -> None:
        self.event = event
        self._texts: dict[Revision, bytes] = {}
        self._last: tuple[Revision, int, bytes] | None = None

    def chunk(self, revision: Revision, number: int) -> bytes:
        """The HTTP chunk with the `id:` line. Subscribers in step with each other share it."""
        last = self._last
        if last is not None and last[1] == number and last[0] is revision:
            return last[2]
        text = self._texts.get(revision)
        if text is None:
            text = self._texts[revision] = _text(self.event.name, payload(self.event, revision))
        line = b"id: %d\n" % number
        chunk = b"%x;\r\n%b%b\r\n" % (len(line) + len(text), line, text)
        self._last = (revision, number, chunk)
        return chunk


def _text(name: str, message: bytes) -> bytes:
    data = b"data: %b\n" % b64encode(message) if message else b"data\n"
    return b"event: %b\n%b\n" % (name.encode(), data)


def _hub(event: Event) -> Hub:
    return event.hub


def _cells(event: Event) -> Iterable[str]:
    for shown in (event.before, event.after):
        records = (shown.instance, shown.evacuating) if isinstance(shown, Group) else (shown,)
        for record in records:
            if record is not None and record.cell_id:
                yield record.cell_id
