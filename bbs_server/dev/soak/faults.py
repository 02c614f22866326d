"""The schedule of a soak: what happens when, and the checkpoint after each of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence

from bbs_protos import models_pb2 as models

from bbs_server.dev.soak.journal import Journal
from bbs_server.dev.soak.ledger import DomainLedger
from bbs_server.dev.soak.pair import Lost, Pair, Refusal
from bbs_server.dev.soak.servers import SERVERS, Servers

Schedule = Sequence[tuple[float, str]]
"""Part of the whole time, and what happens then."""

HOUR: Schedule = (
    (0.04, "kill"),
    (0.10, "postgres fast"),
    (0.16, "kill, back at once"),
    (0.22, "kill"),
    (0.38, "nothing"),
    (0.54, "nothing"),
    (0.68, "kill"),
    (0.76, "postgres immediate"),
    (0.84, "kill"),
)
"""Five kills and two restarts, with a long stretch in the middle that shows whether memory is flat."""

REHEARSAL: Schedule = ((0.15, "kill"), (0.55, "postgres fast"))

_KILLS: Mapping[str, bool] = {"kill": True, "kill, back at once": False}
"""Whether the killed server stays down until the other one has taken over."""

_HOW: Mapping[str, signal.Signals] = {"postgres fast": signal.SIGINT, "postgres immediate": signal.SIGQUIT}
_DOWN_SECONDS = 2.0
_PROBE = "soak-probe"
_PROBE_SECONDS = 0.1
_LONGEST = 90.0


class Faults:
    """Does the harm and measures how long it lasts."""

    def __init__(self, servers: Servers, pair: Pair, domains: DomainLedger, journal: Journal) -> None:
        self._servers = servers
        self._pair = pair
        self._domains = domains
        self._journal = journal

    async def inflict(self, what: str) -> None:
        if what in _KILLS:
            await self._kill(what)
        elif what in _HOW:
            await self._restart(what)

    async def _kill(self, what: str) -> None:
        active = await self._pair.active()
        if active is None:
            self._journal.violation("no active server to kill")
            return
        with self._journal.window(f"{what} {SERVERS[active]}") as window:
            if _KILLS[what]:
                await self._servers.kill_for_good(SERVERS[active])
            else:
                self._servers.kill(SERVERS[active])
            window.away = await self._until_written(window.begin)
            self._servers.parts[SERVERS[active]].start()

    async def _restart(self, what: str) -> None:
        with self._journal.window(what) as window:
            await self._servers.restart_postgres(_HOW[what], _DOWN_SECONDS)
            window.away = await self._until_written(window.begin)

    async def _until_written(self, begin: float) -> float | None:
        """Seconds until a write is acknowledged."""
        request = models.UpsertDomainRequest(domain=_PROBE, ttl=600)
        while time.monotonic() - begin < _LONGEST:
            sent = time.monotonic()
            try:
                await self._pair.write("/v1/domains/upsert", request, models.UpsertDomainResponse)
            except (Lost, Refusal):
                await asyncio.sleep(_PROBE_SECONDS)
                continue
            self._domains.fresh_until[_PROBE] = sent + 600
            return time.monotonic() - begin
        self._journal.violation(f"no write was acknowledged for {_LONGEST:.0f} s")
        return None
