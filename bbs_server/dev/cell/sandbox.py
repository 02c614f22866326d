"""Where one instance runs: its scratch folder, environment, ports, log, and the processes in it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import psutil

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_MEMORY_POLL_SECONDS = 0.5
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

STOP_GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL, as in the reference."""


class StepFailed(Exception):
    """An action failed; the text is what the BBS hears as reason."""


@dataclass(slots=True)
class Sandbox:
    """The place of one instance. `memory_mb` 0 is unlimited; `ports` maps container ports to host ports."""

    folder: Path
    log_path: Path
    environment: Mapping[str, str]
    memory_mb: int = 0
    ports: Mapping[int, int] = field(default_factory=dict)
    running: set[asyncio.subprocess.Process] = field(default_factory=set)

    def path(self, text: str) -> Path:
        """A path inside; what would lead out of the folder is kept in it."""
        inside = os.path.normpath("/" + text)
        return self.folder / inside.lstrip("/")

    def log(self, source: str, text: str) -> None:
        with self.log_path.open("a") as file:
            for line in text.splitlines():
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} [{source or 'CELL'}] {line}\n")

    async def run(
        self, path: str, args: Sequence[str], folder: str, environment: Mapping[str, str], limits: Limits, source: str
    ) -> int:
        """Run a program to its end and give its exit status, 128 + signal if one killed it."""
        work = self.path(folder)
        work.mkdir(parents=True, exist_ok=True)
        try:
            process = await asyncio.create_subprocess_exec(
                self._program(path, work),
                *args,
                cwd=work,
                env={"PATH": _PATH, "HOME": str(self.folder), "TMPDIR": str(self.path("tmp")), **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # A group of its own to be signalled as a whole, in the cell's session to die with the cell.
                process_group=0,
                preexec_fn=_prepare(limits),
            )
        except OSError as problem:
            raise StepFailed(f"{source or path}: cannot run {path}: {problem.strerror}") from problem
        self.running.add(process)
        watcher = asyncio.create_task(self._watch_memory(process))
        try:
            await self._copy_output(process, source)
            status = await process.wait()
        except asyncio.CancelledError:
            await self._end(process)
            raise
        finally:
            self.running.discard(process)
            watcher.cancel()
        if watcher.done() and not watcher.cancelled() and watcher.result():
            raise StepFailed(f"{source or path}: Exited with status 137 (out of memory)")
        return 128 - status if status < 0 else status

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _program(self, path: str, work: Path) -> str:
        """Programs of the instance's folder first, then those of this machine."""
        for candidate in (self.path(path) if path.startswith("/") else work / path,):
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return str(candidate)
        return path

    async def _copy_output(self, process: asyncio.subprocess.Process, source: str) -> None:
        assert process.stdout is not None
        while chunk := await process.stdout.read(65536):
            self.log(source, chunk.decode(errors="replace"))

    async def _watch_memory(self, process: asyncio.subprocess.Process) -> bool:
        """Kill what uses more memory than it may; True once it did."""
        limit = self.memory_mb * 2**20
        while limit:
            await asyncio.sleep(_MEMORY_POLL_SECONDS)
            if _resident(process.pid) > limit:
                _signal_group(process.pid, signal.SIGKILL)
                return True
        return False

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_GRACE_SECONDS)
        except TimeoutError:
            pass
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run action limits; None is unlimited."""

    nofile: int | None = None


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    probes: list[socket.socket] = []
    try:
        for _ in range(count):
            probe = socket.socket()
            probes.append(probe)
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def open_log(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _prepare(limits: Limits) -> Callable[[], None]:
    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if limits.nofile is not None:
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            wanted = limits.nofile if hard == resource.RLIM_INFINITY else min(limits.nofile, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))

    return prepare


def _resident(pid: int) -> int:
    """Bytes of memory of a process and everything below it."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += member.memory_info().rss
    return total


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
