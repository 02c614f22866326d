"""The real parts: PostgreSQL, Locket and two servers that are started again when they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from bbs_server.dev.certificates import Authority
from bbs_server.dev.configs import CREATE_DATABASES, write_configs
from bbs_server.dev.layout import Layout
from bbs_server.dev.postgres import EmbeddedPostgres
from bbs_server.dev.supervisor import Part, Program

SERVERS = ("bbs-1", "bbs-2")
_START_SECONDS = 60.0
_SECOND_SERVER = 40
"""How far its ports are from those of the first."""

_PORT_KEYS = ("listen_address", "health_address", "debug_address", "prometheus_listen_address")


class Servers:
    """All processes of the soak."""

    def __init__(self, folder: Path, port_base: int) -> None:
        self.layout = Layout(folder, port_base, cells=0)
        for name in ("logs", "run", "config"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_configs(self.layout)
        self.identity = Authority(self.layout.certificates).identity("client")
        self._postgres = EmbeddedPostgres(self.layout.data("postgres"), self.layout.port("postgres"))
        self._ports = {name: self._configure(name, number) for number, name in enumerate(SERVERS)}
        self.parts = {name: self._part(name) for name in ("postgres", "locket", *SERVERS)}

    @property
    def urls(self) -> list[str]:
        return [f"https://127.0.0.1:{ports['listen_address']}" for ports in self._ports.values()]

    @property
    def database_port(self) -> int:
        return self.layout.port("postgres")

    async def up(self) -> None:
        await asyncio.to_thread(self._postgres.initialise)
        for name, part in self.parts.items():
            part.start()
            await part.wait_ready(_START_SECONDS)
            if name == "postgres":
                await self._create_databases()

    async def down(self) -> None:
        for name in (*SERVERS, "locket", "postgres"):
            await self.parts[name].stop()

    def kill(self, name: str) -> None:
        """The supervisor starts it again at once, so that it finds its own lock in Locket."""
        pid = self.parts[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    async def kill_for_good(self, name: str) -> None:
        """Killed, and not started before somebody does that."""
        await self.parts[name].stop(signal.SIGKILL)

    async def restart_postgres(self, how: signal.Signals, down_seconds: float) -> None:
        part = self.parts["postgres"]
        await part.stop(how)
        await asyncio.sleep(down_seconds)
        part.start()
        await part.wait_ready(_START_SECONDS)

    def logged(self) -> tuple[int, Counter[str]]:
        """Tracebacks in all logs but PostgreSQL's, and the servers' log lines above info, by message."""
        tracebacks, lines = 0, Counter[str]()
        for name in ("locket", *SERVERS):
            log = self.layout.log(name)
            text = "".join(file.read_text(errors="replace") for file in (log.with_suffix(".old"), log) if file.exists())
            tracebacks += text.count("Traceback (most recent call last)")
            lines.update(f"{name.split('-')[0]}: {kind}" for kind in _errors(text))
        return tracebacks, lines

    def _configure(self, name: str, number: int) -> dict[str, int]:
        config: dict[str, Any] = json.loads(self.layout.config("bbs").read_text())
        ports = {key: int(config[key].rsplit(":", 1)[1]) + number * _SECOND_SERVER for key in _PORT_KEYS}
        config |= {key: f"127.0.0.1:{port}" for key, port in ports.items()} | {"uuid": name}
        self.layout.config(name).write_text(json.dumps(config, indent=2) + "\n")
        return ports

    def _part(self, name: str) -> Part:
        return Part(name, self._program(name), self.layout.log(name), self.layout.folder / "run" / f"{name}.pid")

    def _program(self, name: str) -> Program:
        if name == "postgres":
            command = tuple(self._postgres.command())
            return Program(command, self._postgres_ready, self._postgres.account, signal.SIGINT)
        program = "bbs-locket" if name == "locket" else "bbs-server"
        command = (str(Path(sys.executable).parent / program), f"-config={self.layout.config(name)}")
        # A standby shows only its health endpoint.
        port = self.layout.port("locket") if name == "locket" else self._ports[name]["health_address"]
        return Program(command, _listening(port))

    async def _postgres_ready(self) -> bool:
        return self._postgres.ready(self.parts["postgres"].pid)

    async def _create_databases(self) -> None:
        connection = await asyncpg.connect(self._postgres.url())
        try:
            for statement in CREATE_DATABASES:
                with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                    await connection.execute(statement)
        finally:
            await connection.close()


def _errors(text: str) -> list[str]:
    lines = re.findall(r'^.*"level":"(?:error|fatal|warn)".*$', text, re.MULTILINE)
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            found.append(f"{record.get('message')}: {str(record.get('data', {}).get('error', ''))[:80]}")
    return found


def _listening(port: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    return check
