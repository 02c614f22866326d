"""From the picture to browsers: everything once, then what changed, at most ten messages a second.

Messages are the same for all browsers and encoded once. They are server-sent events: an EventSource connects
again by itself, and pages of other sites cannot read it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bbs_server.page.figures import Figures, Point
from bbs_server.page.model import Fleet, Row, Table

PACE = 0.1
"""s between two messages."""

_ROWS = 2000
"""Rows of a kind per message: neither we nor a browser are held up by one for more than some 20 ms."""
_BACKLOG = 100
"""Messages that may wait for a browser; one that is slower than that gets the whole picture again."""
_ENTRIES = 200
"""Entries of the time line per message; of a faster burst only the newest are shown."""
_FIRST_ENTRIES = 300


class Viewer:
    """One browser's messages, in order."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(_BACKLOG)
        self.lost = False

    def offer(self, message: bytes | None) -> None:
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.lost = True


class Broadcast:
    """Sends a picture to all that watch it."""

    def __init__(self, fleet: Fleet, figures: Figures) -> None:
        self._fleet = fleet
        self._figures = figures
        self._viewers: set[Viewer] = set()
        self._last_entry = 0
        self._new_points: list[Point] = []
        self._status: Mapping[str, Any] = {}
        self._new_status = False
        self._closed = False

    @property
    def watched(self) -> int:
        """How many browsers."""
        return len(self._viewers)

    def tell(self, **status: Any) -> None:
        """Set parts of the status: things that are no rows, sent whenever one changes."""
        status = {**self._status, **status}
        if status != self._status:
            self._status = status
            self._new_status = True

    def tell_point(self, point: Point | None) -> None:
        if point is not None:
            self._new_points.append(point)

    async def run(self) -> None:
        """Send changes for ever."""
        while True:
            self.flush()
            await asyncio.sleep(PACE)

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        for viewer in self._viewers:
            viewer.offer(None)

    def flush(self) -> None:
        """Take what changed, up to a message's size, and give it to everybody."""
        changes = self._take()
        if changes and self._viewers:
            message = _message("change", changes)
            for viewer in self._viewers:
                viewer.offer(message)

    async def watch(self) -> AsyncIterator[bytes]:
        """The stream of one browser."""
        while not self._closed:
            viewer = Viewer()
            # Changes until now may come again after the picture: rows are complete, so that does no harm.
            self._viewers.add(viewer)
            try:
                for piece in self._picture():
                    yield piece
                    await asyncio.sleep(0)
                while not viewer.lost:
                    message = await viewer.queue.get()
                    if message is None:
                        return
                    yield message
            finally:
                self._viewers.discard(viewer)

    def _take(self) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for name, table in self._tables().items():
            rows, gone = table.take(_ROWS)
            if rows:
                changes[name] = rows
            if gone:
                changes[f"{name}_gone"] = gone
        if entries := self._fleet.entries_after(self._last_entry, _ENTRIES):
            self._last_entry = entries[-1][0]
            changes["entries"] = entries
        if self._new_points:
            changes["points"], self._new_points = self._new_points, []
        if self._new_status:
            changes["status"], self._new_status = self._status, False
        return changes

    def _picture(self) -> Iterator[bytes]:
        """As it is now, encoded little by little."""
        tables = {name: list(table.rows.values()) for name, table in self._tables().items()}
        tables["instances"].sort(key=lambda row: (row[1], row[2]))
        entries = self._fleet.entries_after(0, _FIRST_ENTRIES)
        rest = {"entries": entries, "points": list(self._figures.points), "status": self._status}
        yield _message("begin", {})
        for name, rows in tables.items():
            for part in _parts(rows):
                yield _message("change", {name: part})
        yield _message("change", rest)
        yield _message("ready", {})

    def _tables(self) -> Mapping[str, Table[Any]]:
        fleet = self._fleet
        return {
            "cells": fleet.cells,
            "domains": fleet.domains,
            "lrps": fleet.lrps,
            "instances": fleet.instances,
            "tasks": fleet.tasks,
        }


def _parts(rows: Sequence[Row]) -> Iterable[Sequence[Row]]:
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def _message(kind: str, content: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(content, separators=(',', ':'))}\n\n".encode()
