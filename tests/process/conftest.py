"""The real program, started with a configuration of the test's own."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bbs_server.dev.ports import free_port

_PATIENCE = 30.0
_SHARED_WITH_LOCKET = (
    "log_level",
    "ca_file",
    "cert_file",
    "key_file",
    "database_driver",
    "database_connection_string",
    "report_interval",
)


@dataclass
class Program:
    """One process. `lines` are what it has logged so far, `errors` what it wrote to stderr."""

    config: dict[str, Any]
    process: asyncio.subprocess.Process
    client_tls: ssl.SSLContext
    lines: list[dict[str, Any]] = field(default_factory=list)
    errors: str = ""
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    def watch(self) -> None:
        self._readers = [asyncio.create_task(self._read_lines()), asyncio.create_task(self._read_errors())]

    async def _read_lines(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))
            self._news.set()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = (await self.process.stderr.read()).decode()

    async def logged(self, message: str) -> dict[str, Any]:
        """The first line with that message, as soon as there is one."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                for line in self.lines:
                    if line["message"] == message:
                        return line
                assert not self._readers[0].done(), f"ended without {message}: {self.messages()} {self.errors}"
                self._news.clear()
                reader = asyncio.create_task(self._news.wait())
                await asyncio.wait([reader, self._readers[0]], return_when=asyncio.FIRST_COMPLETED)
                reader.cancel()

    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]

    async def ended(self) -> int:
        """Its exit code; all it has written is there then."""
        async with asyncio.timeout(_PATIENCE):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return await self.ended()

    def client(self, **options: Any) -> httpx.AsyncClient:
        url = f"https://{self.config['listen_address']}"
        return httpx.AsyncClient(base_url=url, verify=self.client_tls, trust_env=False, timeout=_PATIENCE, **options)


@dataclass
class Programs:
    """Starts programs, each with the base configuration and some keys of its own; None takes a key away."""

    base: dict[str, Any]
    folder: Path
    client_tls: ssl.SSLContext
    started: list[Program] = field(default_factory=list)

    async def __call__(self, **keys: Any) -> Program:
        own = {"listen_address": f"127.0.0.1:{free_port()}", "health_address": f"127.0.0.1:{free_port()}"}
        config = {key: value for key, value in (self.base | own | keys).items() if value is not None}
        return await self.raw(json.dumps(config), config)

    async def raw(self, text: str, config: dict[str, Any] | None = None, name: str = "bbs-server") -> Program:
        file = self.folder / f"config-{len(self.started)}.json"
        file.write_text(text)
        return await self.command(f"-config={file}", config=config, name=name)

    async def locket(self) -> Program:
        """A real Locket in the same database."""
        config = {key: self.base[key] for key in _SHARED_WITH_LOCKET}
        config |= {"listen_address": f"127.0.0.1:{free_port()}"}
        return await self.raw(json.dumps(config), config, "bbs-locket")

    async def command(self, *arguments: str, config: dict[str, Any] | None = None, name: str = "bbs-server") -> Program:
        program = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name(name),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        started = Program(config or {}, program, self.client_tls)
        started.watch()
        self.started.append(started)
        return started


@pytest.fixture
async def programs(tmp_path: Path, certificates: Any) -> AsyncIterator[Programs]:
    """Without a database; see `servers`."""
    base = {
        "session_name": "bbs",
        "uuid": "the-bbs",
        "log_level": "info",
        "ca_file": str(certificates.ca),
        "cert_file": str(certificates.server_cert),
        "key_file": str(certificates.server_key),
        "auctioneer_address": "http://127.0.0.1:9",
        "database_driver": "postgres",
        "database_connection_string": "postgres://nobody@127.0.0.1:9/nothing?sslmode=disable",
        "encryption_keys": {"label": "passphrase"},
        "active_key_label": "label",
        "communication_timeout": "10s",
        "converge_repeat_interval": "1h",
        "report_interval": "1m",
    }
    tls = ssl.create_default_context(cafile=str(certificates.ca))
    tls.load_cert_chain(certificates.client_cert, certificates.client_key)
    made = Programs(base, tmp_path, tls)
    yield made
    for program in made.started:
        if program.process.returncode is None:
            program.process.kill()
            await program.ended()


@pytest.fixture
def servers(programs: Programs, postgres_url: str) -> Programs:
    """With an empty database, and the advisory lock in place of Locket."""
    programs.base["database_connection_string"] = postgres_url
    return programs
