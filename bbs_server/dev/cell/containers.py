"""The containers of a cell: reserved, run, ended, deleted; and the resources they take (MiB)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from bbs_server.dev.cell.sandbox import Sandbox, StepFailed
from bbs_server.dev.ports import free_port

log = logging.getLogger(__name__)

RESERVED_SECONDS = 60.0
"""What is not run so long after its reservation has expired."""

KEPT_LOGS = 200
"""Logs of former instances and tasks that a cell keeps."""

_STOPPED = {True: "cancelled", False: "stopped"}
"""Why a container ended that was told to, by whether it is a task."""


class State(Enum):
    RESERVED = "reserved"
    CREATED = "created"
    RUNNING = "running"
    COMPLETED = "completed"


@dataclass(slots=True)
class Container:
    """One instance or one task on this cell. `guid` is the instance's or the task's."""

    guid: str
    body: Mapping[str, Any]
    is_task: bool
    sandbox: Sandbox
    state: State = State.RESERVED
    began: bool = False
    """Whether the action was started: a task that failed before is rejected, not completed."""
    stopped: bool = False
    failed: bool = False
    reason: str = ""
    routable: bool = True
    internal_routes: tuple[str, ...] = ()
    metric_tags: Mapping[str, str] = field(default_factory=dict)
    result_file: str = ""
    life: asyncio.Task[None] | None = None
    reserved_at: float = field(default_factory=time.monotonic)
    deleting: bool = False
    """From here on nobody reports anything about it."""

    @property
    def memory_mb(self) -> int:
        return int(self.body.get("MemoryMB") or 0)

    @property
    def disk_mb(self) -> int:
        return int(self.body.get("DiskMB") or 0)


class Containers:
    """All containers by guid. `changed` is called with the guid after each change of a state."""

    def __init__(self, folder: Path, changed: Callable[[str], None]) -> None:
        self._folder = folder
        self._changed = changed
        self._all: dict[str, Container] = {}

    def __len__(self) -> int:
        return len(self._all)

    def get(self, guid: str) -> Container | None:
        return self._all.get(guid)

    def all(self) -> tuple[Container, ...]:
        return tuple(self._all.values())

    def reserve(self, guid: str, body: Mapping[str, Any], is_task: bool) -> Container:
        sandbox = Sandbox(
            self._folder / "containers" / guid,
            self._folder / "logs" / f"{guid}.log",
            {},
            memory_mb=int(body.get("MemoryMB") or 0),
        )
        sandbox.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._forget_old_logs(sandbox.log_path.parent)
        container = self._all[guid] = Container(guid, body, is_task, sandbox)
        self._changed(guid)
        return container

    def expire(self) -> None:
        """Complete what was reserved and never run: nobody will come back for it."""
        for container in self.all():
            if container.state is State.RESERVED and time.monotonic() - container.reserved_at > RESERVED_SECONDS:
                self.complete(container, True, "expired container")

    def prepare(self, container: Container, environment: Mapping[str, str], ports: Iterable[int]) -> None:
        """Make the scratch folder, and a host port for each container port."""
        wanted = tuple(ports)
        sandbox = container.sandbox
        sandbox.path("tmp").mkdir(parents=True, exist_ok=True)
        sandbox.ports = {port: free_port() for port in wanted}
        sandbox.environment = environment
        container.state = State.CREATED

    def run(self, container: Container, life: Coroutine[Any, Any, None]) -> None:
        """Let it live: `life` is a coroutine that ends with success or raises StepFailed."""
        container.life = asyncio.create_task(life)
        container.life.add_done_callback(lambda life: self._ended(container, life))

    def running(self, container: Container) -> None:
        container.state = State.RUNNING
        self._changed(container.guid)

    def complete(self, container: Container, failed: bool, reason: str) -> None:
        if container.state is not State.RESERVED:  # a task offered to two cells has its log where it ran
            container.sandbox.log("", f"ended: {reason}" if reason else "ended")
        container.state, container.failed, container.reason = State.COMPLETED, failed, reason
        self._changed(container.guid)

    def stop(self, guid: str) -> bool:
        """End its processes; True if there is such a container. What follows is seen in its state."""
        container = self._all.get(guid)
        if container is None:
            return False
        already, container.stopped = container.stopped, True
        if container.life is None and container.state is not State.COMPLETED:
            self.complete(container, True, _STOPPED[container.is_task])
        elif container.life is not None and not already:
            container.life.cancel()
        return True

    async def delete(self, guid: str) -> None:
        """End it and remove everything but its log."""
        container = self._all.get(guid)
        if container is None:
            return
        container.deleting = True
        self.stop(guid)
        if container.life is not None:
            await asyncio.wait([container.life])
        container.sandbox.end_all()
        await asyncio.to_thread(container.sandbox.remove)
        if self._all.get(guid) is container:
            del self._all[guid]

    def _ended(self, container: Container, life: asyncio.Task[None]) -> None:
        """A callback of the task, as a task that was cancelled before its first step never runs."""
        container.sandbox.end_all()
        problem = None if life.cancelled() else life.exception()
        if life.cancelled():
            self.complete(container, True, _STOPPED[container.is_task])
        elif isinstance(problem, StepFailed):
            self.complete(container, True, str(problem))
        elif problem is not None:
            log.error("container %s", container.guid, exc_info=problem)
            self.complete(container, True, f"failed to run: {problem}")
        else:
            self.complete(container, False, "")

    def _forget_old_logs(self, folder: Path) -> None:
        """Keep the newest logs, and those of what is here now."""
        logs = sorted(folder.glob("*.log"), key=_age)
        for path in logs[KEPT_LOGS:]:
            if path.stem not in self._all:
                path.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """For sorting, the newest first; it may be gone by now."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
