"""Keeps the parts of a stack running: what ends by itself is started again, what was killed on purpose stays down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import asyncpg

from bbs_server.client import Client, ClientError, Target
from bbs_server.dev import processes
from bbs_server.dev.configs import CREATE_DATABASES, EVACUATION_SECONDS, client_identity, write_configs
from bbs_server.dev.layout import Layout
from bbs_server.dev.postgres import EmbeddedPostgres, PostgresFailed

log = logging.getLogger(__name__)

_DATABASE_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the driver raises when there is no connection to be had."""

_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before a part that ended by itself is started again, by the number of quick ends in a row."""

_QUICK = 10.0
_POLL = 0.1
_STOP_SECONDS = 20.0

_EVACUATION_SECONDS = EVACUATION_SECONDS + _STOP_SECONDS
"""What a cell that was asked to end gets."""

_HOPELESS = 3
"""So many ends by itself, without ever getting ready, and a part counts as failed to start."""

_CANNOT_RUN = 127
_LOG_BYTES = 20 * 2**20
"""A longer log starts anew with the next start of its part; the old one is kept beside it once."""


class State(Enum):
    DOWN = "down"
    STARTING = "starting"
    READY = "ready"
    WAITING = "restarting"
    STOPPING = "stopping"


class PartFailed(Exception):
    """A part did not become ready; the text says which, why and where its log is."""


class StillStopping(Exception):
    """A part cannot be started while it is being stopped."""


@dataclass(frozen=True, slots=True)
class Program:
    """How one part runs: its command, the account for it, and how to see that it is ready."""

    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    account: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = _STOP_SECONDS
    """How long it may take to end when asked to; then it is killed."""


class Part:
    """One process of the stack and what became of it."""

    def __init__(self, name: str, program: Program, log_file: Path, pid_file: Path) -> None:
        self.name = name
        self.log_file = log_file
        self.state = State.DOWN
        self.since = time.time()
        self.restarts = 0
        self.exit_code: int | None = None
        self._program = program
        self._pid_file = pid_file
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._failures = 0
        self._hopeless = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Start and keep running; nothing if it is kept running already. Raises StillStopping."""
        if self.state is State.STOPPING:
            raise StillStopping(f"{self.name} is still stopping")
        if self._keeper is None or self._keeper.done():
            self._failures, self.exit_code = 0, None
            self._hopeless.clear()
            self._become(State.STARTING)
            self._keeper = asyncio.create_task(self._keep())

    async def wait_ready(self, seconds: float) -> None:
        """Raises PartFailed when it does not get ready in time, or ends by itself again and again."""
        waiting = [asyncio.create_task(event.wait()) for event in (self._ready, self._hopeless)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if self._ready.is_set():
            return
        if self._hopeless.is_set():
            raise PartFailed(f"{self.name} ends with status {self.exit_code} when started; log: {self.log_file}")
        raise PartFailed(f"{self.name} is not ready after {seconds:.0f} s; log: {self.log_file}")

    async def stop(self, how: signal.Signals | None = None) -> None:
        """End it and leave it down. SIGKILL ends everything it started with it."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        self._become(State.STOPPING)
        await self._end(how or self._program.stop_signal)
        self._become(State.DOWN)

    async def _keep(self) -> None:
        quick = 0
        while True:
            began = time.monotonic()
            was_ready = await self._run()
            quick = quick + 1 if time.monotonic() - began < _QUICK else 0
            self._failures = 0 if was_ready else self._failures + 1
            if self._failures >= _HOPELESS:
                self._hopeless.set()
            self._become(State.WAITING)
            log.warning("%s ended with status %s", self.name, self.exit_code)
            await asyncio.sleep(_PAUSES[min(quick, len(_PAUSES) - 1)])
            self.restarts += 1

    async def _run(self) -> bool:
        """Run it until it ends. Whether it was ready in between."""
        self._become(State.STARTING)
        _begin_anew(self.log_file)
        with self.log_file.open("ab") as output:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._program.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    user=self._program.account,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as problem:
                output.write(f"cannot run {self._program.command[0]}: {problem}\n".encode())
                self.exit_code = _CANNOT_RUN
                return False
        process = self._process
        processes.note(self._pid_file, process.pid)
        watcher = asyncio.create_task(self._watch())
        try:
            self.exit_code = await process.wait()
        finally:
            watcher.cancel()
        was_ready = self._ready.is_set()
        await asyncio.to_thread(processes.kill_orphans, process.pid)
        return was_ready

    async def _watch(self) -> None:
        # Another process tells nobody when it starts to listen: asking again is all there is.
        while not await self._program.ready():
            await asyncio.sleep(_POLL)
        self._become(State.READY)

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None and how is not signal.SIGKILL:
            process.send_signal(how)
            seconds = self._program.stop_seconds if how is signal.SIGTERM else _STOP_SECONDS
            try:
                await asyncio.wait_for(process.wait(), seconds)
            except TimeoutError:
                log.warning("%s does not end, killing it", self.name)
        rest = processes.kill_all if process.returncode is None else processes.kill_orphans
        await asyncio.to_thread(rest, process.pid)
        self.exit_code = await process.wait()
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state, self.since = state, time.time()
        if state is State.READY:
            self._ready.set()
        else:
            self._ready.clear()


class Stack:
    """All parts of one folder."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        for folder in (layout.folder / "logs", self.layout.pid_files):
            folder.mkdir(parents=True, exist_ok=True)
        write_configs(layout)
        self.client = Client(Target(layout.url("bbs"), *client_identity(layout), timeout=10))
        self._postgres = EmbeddedPostgres(layout.data("postgres"), layout.port("postgres"))
        self.parts: Mapping[str, Part] = {
            name: Part(name, self._program(name), layout.log(name), self.layout.pid_files / f"{name}.pid")
            for name in layout.parts()
        }

    async def up(self, seconds: float) -> AsyncIterator[Part]:
        """Start everything, each part when those it needs are ready. Yields the parts as they get ready."""
        await asyncio.to_thread(processes.sweep, self.layout.pid_files)
        await asyncio.to_thread(self._postgres.initialise)
        for name in ("postgres", "locket", "bbs"):
            self.parts[name].start()
            await self.parts[name].wait_ready(seconds)
            if name == "postgres":
                await self._create_databases()
            yield self.parts[name]
        rest = [part for name, part in self.parts.items() if name not in ("postgres", "locket", "bbs")]
        for part in rest:
            part.start()
        for part in rest:
            await part.wait_ready(seconds)
            yield part

    async def down(self) -> None:
        """Stop everything; cells first, at once: their work ends with them."""
        cells = [self.parts[name].stop(signal.SIGINT) for name in self.layout.cell_names()]
        await asyncio.gather(*cells)
        for name in ("auctioneer", "bbs", "locket", "postgres"):
            await self.parts[name].stop()
        await self.client.close()

    async def _create_databases(self) -> None:
        try:
            connection = await asyncpg.connect(self._postgres.url())
        except _DATABASE_FAILURES as problem:
            log_file = self.layout.log("postgres")
            raise PartFailed(f"postgres takes no connections: {problem}; log: {log_file}") from problem
        try:
            for statement in CREATE_DATABASES:
                with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                    await connection.execute(statement)
        finally:
            await connection.close()

    def _program(self, name: str) -> Program:
        config = str(self.layout.config(name))
        if name == "postgres":
            command = tuple(self._postgres.command())
            return Program(command, self._postgres_ready, self._postgres.account, signal.SIGINT)
        if name == "bbs":
            return Program((_script("bbs-server"), f"-config={config}"), self._bbs_ready)
        if name == "locket":
            return Program((_script("bbs-locket"), f"-config={config}"), self._listening(name))
        module = "bbs_server.dev.auctioneer.main" if name == "auctioneer" else "bbs_server.dev.cell.main"
        seconds = _STOP_SECONDS if name == "auctioneer" else _EVACUATION_SECONDS
        command = (sys.executable, "-m", module, "--config", config)
        return Program(command, self._listening(name), stop_seconds=seconds)

    async def _postgres_ready(self) -> bool:
        return self._postgres.ready(self.parts["postgres"].pid)

    async def _bbs_ready(self) -> bool:
        try:
            return await self.client.ping()
        except ClientError:
            return False

    def _listening(self, name: str) -> Callable[[], Awaitable[bool]]:
        port = self.layout.port(name)

        async def check() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        return check


def _script(name: str) -> str:
    """A console command of this installation."""
    return str(Path(sys.executable).parent / name)


def _begin_anew(log_file: Path) -> None:
    with contextlib.suppress(OSError):
        if log_file.stat().st_size > _LOG_BYTES:
            os.replace(log_file, log_file.with_suffix(".old"))


__all__ = ["Part", "PartFailed", "PostgresFailed", "Stack", "State", "StillStopping"]
