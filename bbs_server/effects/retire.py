"""Retiring an instance: several steps with the cell in between (actual-lrps.md 4.7)."""

from __future__ import annotations

from bbs_server.core import actual_lrps
from bbs_server.core.errors import RESOURCE_NOT_FOUND, Error, Refused, unknown
from bbs_server.core.log import Log, silent
from bbs_server.core.outcome import Retire
from bbs_server.core.records import CRASHED, UNCLAIMED
from bbs_server.effects.peer import BadStatus, NoAnswer
from bbs_server.effects.reps import CellLookup, Reps, address
from bbs_server.effects.writing import Writing

ATTEMPTS = 5


class Retirement:
    """Runs `Retire` calls; the result is the error that the request ends with, None for success."""

    def __init__(self, writer: Writing, presences: CellLookup, reps: Reps, log: Log = silent) -> None:
        self._writer = writer
        self._presences = presences
        self._reps = reps
        self._log = log

    async def retire(self, call: Retire) -> Error | None:
        if call.lrp.state in (UNCLAIMED, CRASHED):
            return await self._remove_repeatedly(call)
        return await self._stop(call)

    async def _remove_repeatedly(self, call: Retire) -> Error | None:
        error = None
        for _ in range(ATTEMPTS):
            error = await self._remove(call)
            if error is None:
                break
        return error

    async def _stop(self, call: Retire) -> Error | None:
        """Ask the cell to stop the instance, up to five times; without a cell the row goes at once."""
        error: Error | None = None
        found = False
        for _ in range(ATTEMPTS):
            try:
                cell = await self._presences.one(call.lrp.cell_id)
            except Refused as refused:
                error = refused.error
                if error == RESOURCE_NOT_FOUND and (error := await self._remove(call)) is None:
                    return None
                break
            found = True
            try:
                await self._reps.stop_at(address(cell), call.lrp.process_guid, call.lrp.instance_guid, call.request_id)
            except Refused as refused:
                error = refused.error
                break
            except (NoAnswer, BadStatus) as problem:
                error = unknown(str(problem))
                self._log("error", "failed-to-retire-actual-lrp", _data(call, error))
            else:
                error = None
                break
        if found:
            await self._announce(call)
        return error

    async def _remove(self, call: Retire) -> Error | None:
        try:
            await self._writer.write(actual_lrps.remove_retired, call.lrp, call.request_id)
        except Refused as refused:
            return refused.error
        return None

    async def _announce(self, call: Retire) -> None:
        """Quirk: the removal is announced although the row stays until the cell removes it."""
        try:
            await self._writer.write(actual_lrps.announce_retired, call.lrp, call.request_id)
        except Refused as refused:
            self._log("error", "failed-to-announce-retirement", _data(call, refused.error))


def _data(call: Retire, error: Error) -> dict[str, object]:
    return {"process_guid": call.lrp.process_guid, "index": call.lrp.index, "error": error.message}
