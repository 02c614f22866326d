"""Samples of memory, processor time and database connections of the processes."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from bbs_server.dev.soak.servers import SERVERS, Servers

_SECONDS = 10.0
_WARM_UP = 600.0
"""Seconds of a process in its role that do not count for its slope: for so long its pools and buffers grow."""

_LONG = 300.0
"""Shortest time, in s after the warm-up, from which a slope says something."""

_PER_MINUTE = round(60 / _SECONDS)
MIB = 2**20
ALLOWED_GROWTH = 8.0
"""MiB that an undisturbed server may have grown over the whole of its segment."""


@dataclass(slots=True)
class Segment:
    """One process in one role, without interruption."""

    name: str
    pid: int
    times: list[float]
    sizes: list[float]

    def figures(self) -> dict[str, Any]:
        """Sizes in MiB; slope and growth are of the time after the warm-up, if that is long enough."""
        warm = [(t, s) for t, s in zip(self.times, self.sizes, strict=True) if t - self.times[0] >= _WARM_UP]
        slope = growth = None
        if warm and warm[-1][0] - warm[0][0] >= _LONG:
            per_second = statistics.linear_regression(*zip(*warm, strict=True)).slope
            slope, growth = per_second * 3600, per_second * (warm[-1][0] - warm[0][0])
        return {
            "process": f"{self.name} ({self.pid})",
            "began": round(self.times[0]),
            "seconds": round(self.times[-1] - self.times[0]),
            "first": round(self.sizes[0], 1),
            "warm": round(warm[0][1], 1) if warm else None,
            "last": round(self.sizes[-1], 1),
            "greatest": round(max(self.sizes), 1),
            "slope_mib_per_hour": None if slope is None else round(slope, 2),
            "growth_mib": None if growth is None else round(growth, 2),
            "each_minute": [round(size, 1) for size in self.sizes[::_PER_MINUTE]],
        }


def segment_of(segments: list[Segment], name: str, pid: int) -> Segment:
    """The last segment of a process if its role is still that one, else a new one at the end.

    A kill is noticed late: for a sample the process that was started again may pass for the active one.
    """
    segment = next((one for one in reversed(segments) if one.pid == pid), None)
    if segment is None or segment.name != name:
        segment = Segment(name, pid, [], [])
        segments.append(segment)
    return segment


@dataclass(slots=True)
class Use:
    """Processor time of a part over all its processes, in s."""

    cpu: float = 0.0
    last: float = 0.0
    pid: int = 0
    most_connections: int = 0


class Sampler:
    """Looks at all parts every ten seconds."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._began = time.monotonic()
        self.segments: list[Segment] = []
        self.use = {name: Use() for name in (*servers.parts, "soak")}
        self.active = ""

    async def run(self) -> None:
        while True:
            self.sample()
            await asyncio.sleep(_SECONDS)

    def sample(self) -> None:
        for name, part in self._servers.parts.items():
            if part.pid is not None:
                try:
                    self._look(name, psutil.Process(part.pid))
                except psutil.Error:
                    continue
        self._count_cpu("soak", psutil.Process())

    def figures(self) -> dict[str, Any]:
        wall = time.monotonic() - self._began
        return {
            "memory": [segment.figures() for segment in self.segments if len(segment.times) > 1],
            "cores": {name: round(use.cpu / wall, 3) for name, use in self.use.items()},
            "most_database_connections": {name: self.use[name].most_connections for name in ("locket", *SERVERS)},
            "use": {name: asdict(use) for name, use in self.use.items()},
        }

    def now(self) -> str:
        """One line about the active server."""
        recent = next((s for s in reversed(self.segments) if s.name == f"{self.active} active"), None)
        return f"{recent.sizes[-1]:.1f} MiB" if recent else "no active server"

    def _look(self, name: str, process: psutil.Process) -> None:
        self._count_cpu(name, process)
        if name == "postgres":
            return
        role = "active" if name == self.active else "standby"
        key = f"{name} {role}" if name in SERVERS else name
        segment = segment_of(self.segments, key, process.pid)
        segment.times.append(time.monotonic() - self._began)
        segment.sizes.append(process.memory_info().rss / MIB)
        connections = [c for c in process.net_connections("tcp") if c.raddr and c.raddr.port == self._port]
        use = self.use[name]
        use.most_connections = max(use.most_connections, sum(c.status == "ESTABLISHED" for c in connections))

    @property
    def _port(self) -> int:
        return self._servers.database_port

    def _count_cpu(self, name: str, process: psutil.Process) -> None:
        use, cpu = self.use[name], 0.0
        for one in (process, *(process.children() if name == "postgres" else ())):
            try:
                times = one.cpu_times()
            except psutil.Error:
                continue
            cpu += times.user + times.system
        if process.pid != use.pid:
            use.pid, use.last = process.pid, 0.0
        use.cpu, use.last = use.cpu + max(cpu - use.last, 0.0), cpu
