"""Where one instance runs: its scratch folder, environment, ports, log, and the processes in it."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_MEMORY_POLL_SECONDS = 0.5
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

_LAST_OUTPUT_SECONDS = 0.5
_LINE_BYTES = 2**16

LOG_BYTES = 4 * 2**20
"""Where the log of an instance ends."""

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
    _groups: set[int] = field(default_factory=set)
    """Process groups of all programs so far: what they left in the background ends with the instance."""
    _readers: set[asyncio.Task[None]] = field(default_factory=set)

    def path(self, text: str) -> Path:
        """A path inside; what would lead out of the folder is kept in it."""
        inside = os.path.normpath("/" + text)
        return self.folder / inside.lstrip("/")

    def log(self, source: str, text: str) -> None:
        """Add lines, until the log is full."""
        with self.log_path.open("a") as file:
            if file.tell() > LOG_BYTES:
                return
            for line in text.splitlines():
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} [{source or 'CELL'}] {line}\n")
            if file.tell() > LOG_BYTES:
                file.write("this log is full: what follows is not kept\n")

    async def run(
        self,
        path: str,
        args: Sequence[str],
        folder: str,
        environment: Mapping[str, str],
        limits: Limits,
        source: str,
        silent: bool = False,
    ) -> int:
        """Run a program to its end and give its exit status, 128 + signal if one killed it.

        `silent` keeps its output out of the log.
        """
        work = self.path(folder)
        work.mkdir(parents=True, exist_ok=True)
        try:
            process = await self._start(path, args, work, environment, limits, silent)
        except (OSError, ValueError) as problem:
            why = problem.strerror if isinstance(problem, OSError) else problem
            raise StepFailed(f"{source or path}: cannot run {path}: {why}") from problem
        self.running.add(process)
        self._groups.add(process.pid)
        watcher = asyncio.create_task(self._watch_memory(process))
        reader = asyncio.create_task(self._copy_output(process, source))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        try:
            status = await process.wait()
            # Whoever holds the other end in the background may go on; what was written before is there by now.
            await asyncio.wait([reader], timeout=_LAST_OUTPUT_SECONDS)
        except asyncio.CancelledError:
            await asyncio.shield(self._end(process))
            raise
        finally:
            self.running.discard(process)
            watcher.cancel()
            if not _has_members(process.pid):
                self._groups.discard(process.pid)
        if watcher.done() and not watcher.cancelled() and watcher.result():
            raise StepFailed(f"{source or path}: Exited with status 137 (out of memory)")
        return 128 - status if status < 0 else status

    async def _start(
        self,
        path: str,
        args: Sequence[str],
        work: Path,
        environment: Mapping[str, str],
        limits: Limits,
        silent: bool,
    ) -> asyncio.subprocess.Process:
        """Raises OSError and ValueError."""
        own = {"PATH": _PATH, "HOME": str(self.folder), "TMPDIR": str(self.path("tmp")), **environment}
        command = limits.applied(self._program(path, work), args, own["PATH"])
        starting = asyncio.create_task(
            asyncio.create_subprocess_exec(
                *command,
                cwd=work,
                env=own,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL if silent else asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # A group of its own to be signalled as a whole, in the cell's session to die with the cell.
                # Nothing of Python may run between fork and exec: gRPC's threads make such a child abort.
                process_group=0,
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Cancelled by itself it would wait for all who have the program's output, and signal only the program.
            with suppress(OSError, ValueError):
                await self._end(await starting)
            raise

    def end_all(self) -> None:
        """SIGKILL everything that was started here and still runs."""
        for group in self._groups:
            _signal_group(group, signal.SIGKILL)
        self._groups.clear()
        for reader in tuple(self._readers):
            reader.cancel()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _program(self, path: str, work: Path) -> str:
        """Programs of the instance's folder first, then those of this machine."""
        candidate = self.path(path) if path.startswith("/") else work / path
        return str(candidate) if candidate.is_file() and os.access(candidate, os.X_OK) else path

    async def _copy_output(self, process: asyncio.subprocess.Process, source: str) -> None:
        """Whole lines to the log; only a very long one, or the last, may be cut."""
        if process.stdout is None:
            return
        rest = b""
        while chunk := await process.stdout.read(65536):
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if len(rest) > _LINE_BYTES:
                whole, newline, rest = whole + newline + rest, b"\n", b""
            if newline:
                self.log(source, whole.decode(errors="replace"))
        if rest:
            self.log(source, rest.decode(errors="replace"))

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

    def applied(self, program: str, args: Sequence[str], path: str) -> tuple[str, ...]:
        """The command line that runs the program with these limits. Raises OSError for a missing program."""
        if self.nofile is None:
            return (program, *args)
        if shutil.which(program, path=path) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        wanted = self.nofile if hard == resource.RLIM_INFINITY else min(self.nofile, hard)
        return ("/bin/sh", "-c", 'ulimit -n "$0" && exec "$@"', str(wanted), program, *args)


def _resident(pid: int) -> int:
    """Bytes of memory of a process and everything below it."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += member.memory_info().rss
    return total


def _signal_group(group: int, number: signal.Signals) -> None:
    """Signal a process group, unless its number belongs to somebody else by now: ours are in our session."""
    with suppress(ProcessLookupError, PermissionError):
        if _in_our_session(group):
            os.killpg(group, number)


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _in_our_session(group: int) -> bool:
    """By the leader, or if that is gone, by the members."""
    with suppress(ProcessLookupError):
        return os.getsid(group) == os.getsid(0)
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == group:
                return os.getsid(pid) == os.getsid(0)
    return False
