"""Sealing everything anew with the active key after a change of keys, beside normal work (storage.md 5.4).

Each row is its own transaction: it is written only if it is still what was read, and read again otherwise.
Only the encryption is redone; nothing looks into the plaintext.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from bbs_server.core.log import Log
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


async def reencrypt_rows(
    connection: asyncpg.Connection[Any], keys: Keys, log: Log, statistics: Statistics, rewritten: Rewritten
) -> None:
    """Seal the columns of all rows with the active key. A row with a value that cannot be opened is logged and left."""
    for sealed in SEALED:
        mapping = MAPPINGS[sealed.table]
        found = [mapping.key(row) for row in await connection.fetch(STATEMENTS[sealed.table]["versions"])]
        for start in range(0, len(found), _KEYS_AT_ONCE):
            await asyncio.sleep(0)
            for key in found[start : start + _KEYS_AT_ONCE]:
                await _reencrypt_row(connection, sealed, key, keys, log, statistics, rewritten)


async def _reencrypt_row(
    connection: asyncpg.Connection[Any],
    sealed: SealedColumns,
    key: Any,
    keys: Keys,
    log: Log,
    statistics: Statistics,
    rewritten: Rewritten,
) -> None:
    mapping = MAPPINGS[sealed.table]
    key_values = mapping.key_values(key)
    while True:
        row = await connection.fetchrow(STATEMENTS[sealed.table]["sealed"], *key_values)
        if row is None:
            log("error", "failed-to-scan-blob", _where(sealed, key_values))
            return
        try:
            # An empty column is skipped, the others of its row are not.
            values = [row[column] and keys.seal(keys.open(row[column])) for column in sealed.columns]
        except Undecodable as problem:
            log("error", "failed-to-decode-blob", {**_where(sealed, key_values), "error": str(problem)})
            return
        with statistics.statement():
            version = await connection.fetchval(STATEMENTS[sealed.table]["reseal"], *key_values, row["xmin"], *values)
        if version is not None:
            rewritten(sealed.table, key, row["xmin"], version)
            return


def _where(sealed: SealedColumns, key_values: tuple[Any, ...]) -> dict[str, Any]:
    primary_key = list(MAPPINGS[sealed.table].columns[: len(key_values)])
    return {"table_name": sealed.table, "primary_key": primary_key, "blob_columns": list(sealed.columns)}
