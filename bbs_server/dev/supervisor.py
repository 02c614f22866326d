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
from bbs_server.dev.configs import DATABASES, client_identity, write_configs
from bbs_server.dev.layout import Layout
from bbs_server.dev.postgres import EmbeddedPostgres, PostgresFailed

log = logging.getLogger(__name__)

_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before a part that ended by itself is started again, by the number of quick ends in a row."""

_QUICK = 10.0
_POLL = 0.1
_STOP_SECONDS = 20.0


class State(Enum):
    DOWN = "down"
    STARTING = "starting"
    READY = "ready"
    WAITING = "restarting"


class PartFailed(Exception):
    """A part did not become ready; the text says which, why and where its log is."""


@dataclass(frozen=True, slots=True)
class Program:
    """How one part runs: its command, the account for it, and how to see that it is ready."""

    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    account: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM


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

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Start and keep running; nothing if it is kept running already."""
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())

    async def wait_ready(self, seconds: float) -> None:
        """Raises PartFailed when it does not get ready in time."""
        try:
            await asyncio.wait_for(self._ready.wait(), seconds)
        except TimeoutError:
            ended = f", ended with status {self.exit_code}" if self.exit_code is not None else ""
            raise PartFailed(f"{self.name} is not ready after {seconds:.0f} s{ended}; log: {self.log_file}") from None

    async def stop(self, how: signal.Signals | None = None) -> None:
        """End it and leave it down. SIGKILL ends its whole process group at once."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        await self._end(how or self._program.stop_signal)
        self._become(State.DOWN)

    def sweep(self) -> None:
        """End what a killed supervisor left running."""
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return
        if self.name.encode() in _command_line(pid) or self._program.command[0].encode() in _command_line(pid):
            _signal_group(pid, signal.SIGKILL)

    async def _keep(self) -> None:
        quick = 0
        while True:
            began = time.monotonic()
            await self._run()
            quick = quick + 1 if time.monotonic() - began < _QUICK else 0
            self._become(State.WAITING)
            log.warning("%s ended with status %s", self.name, self.exit_code)
            await asyncio.sleep(_PAUSES[min(quick, len(_PAUSES) - 1)])
            self.restarts += 1

    async def _run(self) -> None:
        self._become(State.STARTING)
        with self.log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self._program.account,
                cwd="/",
                start_new_session=True,
            )
        self._pid_file.write_text(str(self._process.pid))
        watcher = asyncio.create_task(self._watch())
        try:
            self.exit_code = await self._process.wait()
        finally:
            watcher.cancel()

    async def _watch(self) -> None:
        # Another process tells nobody when it starts to listen: asking again is all there is.
        while not await self._program.ready():
            await asyncio.sleep(_POLL)
        self._become(State.READY)

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        if how is signal.SIGKILL:
            _signal_group(process.pid, how)
        else:
            process.send_signal(how)
        try:
            self.exit_code = await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            log.warning("%s does not end, killing it", self.name)
            _signal_group(process.pid, signal.SIGKILL)
            self.exit_code = await process.wait()

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
        for folder in (layout.folder / "logs", layout.folder / "run"):
            folder.mkdir(parents=True, exist_ok=True)
        write_configs(layout)
        self.client = Client(Target(layout.url("bbs"), *client_identity(layout), timeout=10))
        self._postgres = EmbeddedPostgres(layout.data("postgres"), layout.port("postgres"))
        self.parts: Mapping[str, Part] = {
            name: Part(name, self._program(name), layout.log(name), layout.folder / "run" / f"{name}.pid")
            for name in layout.parts()
        }

    async def up(self, seconds: float) -> AsyncIterator[Part]:
        """Start everything, each part when those it needs are ready. Yields the parts as they get ready."""
        for part in self.parts.values():
            part.sweep()
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
        connection = await asyncpg.connect(self._postgres.url())
        try:
            for name in DATABASES:
                with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                    await connection.execute(f'CREATE DATABASE "{name}"')
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
        return Program((sys.executable, "-m", module, "--config", config), self._listening(name))

    async def _postgres_ready(self) -> bool:
        return self._postgres.ready()

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


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _signal_group(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, how)


__all__ = ["Part", "PartFailed", "PostgresFailed", "Stack", "State"]
