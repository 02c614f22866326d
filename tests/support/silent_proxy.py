"""A way to the database that can fall silent, as a moved address or a frozen proxy does."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit


class Proxy:
    """Forwards connections to the database until it is told to be silent: those it has then stay open and stop."""

    def __init__(self, url: str) -> None:
        self._behind = urlsplit(url)
        self._silent: asyncio.Event = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._behind._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()

    def silence(self) -> None:
        """Nothing passes in either direction, not even an end; new connections work."""
        self._silent.set()
        self._silent = asyncio.Event()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent = self._silent
        back = await asyncio.open_connection(self._behind.hostname, self._behind.port)
        self._writers += (writer, back[1])
        for source, sink in ((reader, back[1]), (back[0], writer)):
            task = asyncio.create_task(_pump(source, sink, silent))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silent: asyncio.Event) -> None:
    try:
        while data := await reader.read(1 << 16):
            if silent.is_set():
                return
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    if not silent.is_set():
        writer.close()
