"""One auction after the other: everything that waits, against the present state of all cells."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from typing import Any

import aiohttp
from bbs_protos import models_pb2 as models

from bbs_server.client import Client, ClientError
from bbs_server.dev.auctioneer.placement import Cell, Placement, place
from bbs_server.dev.auctioneer.work import Work

log = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_ATTEMPTS = 4
"""How often the cells are asked before the work counts as placeable nowhere."""


class Auction:
    """Collects work and places it in batches; `run` until cancelled."""

    def __init__(self, bbs: Client, tls: ssl.SSLContext) -> None:
        self._bbs = bbs
        self._tls = tls
        self._waiting: list[Work] = []
        self._arrived = asyncio.Event()

    def add(self, work: Sequence[Work]) -> None:
        self._waiting.extend(work)
        if work:
            self._arrived.set()

    async def run(self) -> None:
        async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=aiohttp.TCPConnector(ssl=self._tls)) as http:
            while True:
                await self._arrived.wait()
                try:
                    await self._hold(http)
                except Exception:
                    # One bad batch must not end all auctions; convergence offers its work again.
                    log.exception("auction failed")
                    await asyncio.sleep(1)

    async def _hold(self, http: aiohttp.ClientSession) -> None:
        cells = await self._cells(http)
        batch, self._waiting = self._waiting, []
        self._arrived.clear()
        placement = place(batch, [cell for cell, _ in cells])
        await self._hand_out(http, placement, {cell.cell_id: url for cell, url in cells})
        await self._report(placement.failed)

    async def _cells(self, http: aiohttp.ClientSession) -> list[tuple[Cell, str]]:
        """The cells that can take work, with their addresses."""
        for _ in range(_ATTEMPTS):
            presences = await self._presences()
            states = await asyncio.gather(*(self._state(http, presence) for presence in presences))
            cells = [state for state in states if state is not None]
            if cells:
                return cells
        return []

    async def _presences(self) -> list[models.CellPresence]:
        while True:
            try:
                return await self._bbs.cells()
            except ClientError as problem:
                log.warning("cannot list the cells, trying again: %s", problem)
                await asyncio.sleep(1)

    async def _state(self, http: aiohttp.ClientSession, presence: models.CellPresence) -> tuple[Cell, str] | None:
        try:
            async with http.get(f"{presence.rep_url}/state") as answer:
                state = await answer.json(content_type=None)
                usable = answer.status == 200 and state["cell_id"] == presence.cell_id and not state["Evacuating"]
                return (Cell.from_state(state), presence.rep_url) if usable else None
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as problem:
            log.warning("%s gives no state: %r", presence.cell_id, problem)
            return None

    async def _hand_out(self, http: aiohttp.ClientSession, placement: Placement, urls: dict[str, str]) -> None:
        await asyncio.gather(
            *(self._give(http, cell_id, urls[cell_id], work) for cell_id, work in placement.assigned.items())
        )

    async def _give(self, http: aiohttp.ClientSession, cell_id: str, url: str, work: Sequence[Work]) -> None:
        body = {
            "LRPs": [piece.body for piece in work if not piece.is_task] or None,
            "Tasks": [piece.body for piece in work if piece.is_task] or None,
            "cell_id": cell_id,
        }
        try:
            async with http.post(f"{url}/work", json=body) as answer:
                returned: dict[str, Any] = await answer.json(content_type=None) if answer.status == 200 else {}
                log.info("%s takes %d, status %d", cell_id, len(work), answer.status)
        except (aiohttp.ClientError, TimeoutError, ValueError) as problem:
            # Convergence repairs what gets lost here; nobody is told, as in the reference.
            log.warning("%s takes no work: %r", cell_id, problem)
            return
        refused = len(returned.get("LRPs") or ()) + len(returned.get("Tasks") or ())
        if refused:
            log.warning("%s gave %d back; the next convergence offers them again", cell_id, refused)

    async def _report(self, failed: Sequence[tuple[Work, str]]) -> None:
        for work, reason in failed:
            log.info("%s[%d] fits nowhere: %s", work.guid, work.index, reason)
            try:
                if work.is_task:
                    await self._bbs.reject_task(work.guid, reason)
                else:
                    key = models.ActualLRPKey(process_guid=work.guid, index=work.index, domain=work.domain)
                    await self._bbs.fail(key, reason)
            except ClientError as problem:
                log.warning("cannot report %s: %s", work.guid, problem)
