"""Sealing everything anew with the active key after a change of keys, beside normal work (storage.md 5.4).

Each row is its own transaction: it is written only if it is still what was read, and read again otherwise. Each looks
for the epoch's owner, and so does the one that stores the label at the end: a successor may seal with another key.
Only the encryption is redone; nothing looks into the plaintext.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from bbs_server.core.log import Log
from bbs_server.store.errors import Deposed
from bbs_server.store.rows import MAPPINGS
from bbs_server.store.sealing import Keys, Undecodable
from bbs_server.store.sql import STATEMENTS
from bbs_server.store.statistics import Statistics

LABEL_ROW = "encryption_key_label"

Rewritten = Callable[[str, Any, int, int], None]
"""Told the table, key, old and new version of each row written."""

_KEYS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class SealedColumns:
    """The columns of a table that are sealed, and the statement that rewrites them."""

    table: str
    columns: tuple[str, ...]


SEALED = (
    SealedColumns("tasks", ("task_definition",)),
    SealedColumns("desired_lrps", ("run_info", "volume_placement", "routes", "metric_tags")),
    SealedColumns("actual_lrps", ("net_info", "internal_routes", "metric_tags")),
)


@dataclass(frozen=True, slots=True)
class Reencryption:
    """One run over all rows, for the writer with the epoch of `owner`."""

    connection: asyncpg.Connection[Any]
    keys: Keys
    owner: str
    log: Log
    statistics: Statistics
    rewritten: Rewritten

    async def run(self) -> None:
        """Seal the columns of all rows with the active key.

        A row with a value that cannot be opened is logged and left. Raises Deposed, and what the driver raises.
        """
        for sealed in SEALED:
            mapping = MAPPINGS[sealed.table]
            found = [mapping.key(row) for row in await self.connection.fetch(STATEMENTS[sealed.table]["versions"])]
            for start in range(0, len(found), _KEYS_AT_ONCE):
                await asyncio.sleep(0)
                for key in found[start : start + _KEYS_AT_ONCE]:
                    await self._row(sealed, key)

    async def _row(self, sealed: SealedColumns, key: Any) -> None:
        key_values = MAPPINGS[sealed.table].key_values(key)
        while True:
            row = await self.connection.fetchrow(STATEMENTS[sealed.table]["sealed"], *key_values)
            if row is None:
                self.log("error", "failed-to-scan-blob", _where(sealed, key_values))
                return
            try:
                # An empty column is skipped, the others of its row are not.
                values = [row[column] and self.keys.seal(self.keys.open(row[column])) for column in sealed.columns]
            except Undecodable as problem:
                self.log("error", "failed-to-decode-blob", {**_where(sealed, key_values), "error": str(problem)})
                return
            version = await self._write(sealed.table, *key_values, row["xmin"], *values)
            if version is not None:
                self.rewritten(sealed.table, key, row["xmin"], version)
                return

    async def _write(self, table: str, *arguments: Any) -> int | None:
        """The row's new version; None if it is not what was read any more."""
        with self.statistics.running():
            fenced, version = await self.connection.fetchrow(STATEMENTS[table]["reseal"], self.owner, *arguments)
        if not fenced:
            raise Deposed
        return None if version is None else int(version)


def _where(sealed: SealedColumns, key_values: tuple[Any, ...]) -> dict[str, Any]:
    primary_key = list(MAPPINGS[sealed.table].columns[: len(key_values)])
    return {"table_name": sealed.table, "primary_key": primary_key, "blob_columns": list(sealed.columns)}
