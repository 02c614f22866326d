"""What the soak notes: requests, errors inside and outside of fault windows, violations."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

GRACE = 2.0
"""Seconds after a recovery that belong to its window: requests that were under way may still fail."""


@dataclass(slots=True)
class Window:
    """The time of one fault, in s of the monotonic clock; still open while `end` is None."""

    what: str
    begin: float
    end: float | None = None
    away: float | None = None
    """Seconds until a write was acknowledged again."""

    def overlaps(self, begin: float, end: float) -> bool:
        return self.begin <= end and (self.end is None or begin <= self.end)


@dataclass(slots=True)
class Journal:
    """Everything counted so far. Times are monotonic."""

    began: float = field(default_factory=time.monotonic)
    windows: list[Window] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    inside: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """The longest answer outside of windows, in s."""

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def error(self, kind: str, since: float) -> None:
        """Something failed that began at `since`; outside of every window that is a violation."""
        if self.in_window(since):
            self.inside[kind] += 1
        else:
            self.outside[kind] += 1
            self.violation(f"error outside of a fault window: {kind}")

    def in_window(self, since: float) -> bool:
        now = time.monotonic()
        return any(window.overlaps(since, now) for window in self.windows)

    def violation(self, text: str) -> None:
        line = f"{self.minutes:.2f} min: {text}"
        self.violations.append(line)
        if len(self.violations) <= 200:
            print(f"VIOLATION {line}", flush=True)

    @contextlib.contextmanager
    def window(self, what: str) -> Iterator[Window]:
        window = Window(what, time.monotonic())
        self.windows.append(window)
        try:
            yield window
        finally:
            window.end = time.monotonic() + GRACE


class Gate:
    """Lets workers through while it is open and knows when none of them is inside."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = 0

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        """One piece of work; waits while the gate is closed."""
        await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self) -> None:
        """Let nobody in and wait until all are out."""
        self._open.clear()
        await self._empty.wait()

    def open(self) -> None:
        self._open.set()
