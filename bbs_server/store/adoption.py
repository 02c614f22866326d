"""Taking over rows that somebody else changed (design rule 7).

Every row's `xmin` is known from loading and from our own batches. A row whose `xmin` is another one was changed by
somebody else, one that is gone was deleted by somebody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncpg

from bbs_server.core.state import State
from bbs_server.store.journal import Versions
from bbs_server.store.rows import MAPPINGS
from bbs_server.store.sealing import Keys
from bbs_server.store.session import Found, find
from bbs_server.store.sql import STATEMENTS

_ROWS_AT_ONCE = 400
_KEYS_AT_ONCE = 5000

_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1"
"""The SELECT fixes what all further statements of the transaction see."""


def adopt(state: State, versions: Mapping[str, Versions], table: str, key: Any, found: Found | None) -> bool:
    """Make memory hold the row that was found, or none. Returns whether the record is different now."""
    records = state.tables[table]
    record = records.get(key)
    if found is None:
        versions[table].forget(key)
        if record is not None:
            records.adopt(key, None)
        return record is not None
    versions[table].set(key, found.version)
    if record == found.record:
        # Keeps the encodings that the old record has computed.
        return False
    records.adopt(key, found.record)
    return True


async def adopt_keys(
    connection: asyncpg.Connection[Any],
    state: State,
    versions: Mapping[str, Versions],
    keys: Mapping[str, Sequence[Any]],
    sealing: Keys,
) -> int:
    """Adopt those of the given keys whose rows are not what memory knows. Returns how many rows were not."""
    count = 0
    for table, wanted in keys.items():
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            some = wanted[start : start + _ROWS_AT_ONCE]
            found = await find(connection, table, some, sealing)
            for key in some:
                row = found.get(key)
                if versions[table].by_key.get(key) != (row.version if row else None):
                    adopt(state, versions, table, key, row)
                    count += 1
    return count


Fingerprint = tuple[int, int, int]


async def begin(connection: asyncpg.Connection[Any], versions: Mapping[str, Versions]) -> dict[str, Fingerprint]:
    """Take the snapshot to compare with; no batch may be on its way. Returns what memory expects it to hold."""
    try:
        await connection.execute(_SNAPSHOT)
    except BaseException:
        # It may hold an old snapshot now, and must not be used again.
        connection.terminate()
        raise
    return {table: known.fingerprint for table, known in versions.items()}


async def compare(
    connection: asyncpg.Connection[Any],
    state: State,
    versions: Mapping[str, Versions],
    expected: Mapping[str, Fingerprint],
    sealing: Keys,
    is_ours: Callable[[str, Any], bool],
) -> int:
    """Adopt what is different in the snapshot that `begin` took, except for keys that `is_ours` claims meanwhile.

    Returns how many records are different now. Ends the snapshot.
    """
    try:
        count = 0
        for table in MAPPINGS:
            fingerprint = await connection.fetchrow(STATEMENTS[table]["fingerprint"])
            if tuple(fingerprint) != expected[table]:
                count += await _adopt_differences(connection, state, versions, table, sealing, is_ours)
        return count
    finally:
        if not connection.is_closed():
            await connection.execute("ROLLBACK")


async def catch_up(
    connection: asyncpg.Connection[Any], state: State, versions: Mapping[str, Versions], sealing: Keys
) -> int:
    """Adopt all that is different in the database now. Only for a state that nobody else changes meanwhile.

    Returns how many records are different now.
    """
    expected = await begin(connection, versions)
    return await compare(connection, state, versions, expected, sealing, lambda table, key: False)


async def _adopt_differences(
    connection: asyncpg.Connection[Any],
    state: State,
    versions: Mapping[str, Versions],
    table: str,
    sealing: Keys,
    is_ours: Callable[[str, Any], bool],
) -> int:
    mapping = MAPPINGS[table]
    known = versions[table].by_key
    suspects = []
    unseen = set(known)
    for number, row in enumerate(await connection.fetch(STATEMENTS[table]["versions"])):
        key = mapping.key(row)
        unseen.discard(key)
        if known.get(key) != row["xmin"]:
            suspects.append(key)
        if number % _KEYS_AT_ONCE == _KEYS_AT_ONCE - 1:
            await asyncio.sleep(0)
    suspects += unseen
    count = 0
    for start in range(0, len(suspects), _ROWS_AT_ONCE):
        some = suspects[start : start + _ROWS_AT_ONCE]
        found = await find(connection, table, some, sealing)
        count += sum(adopt(state, versions, table, key, found.get(key)) for key in some if not is_ours(table, key))
    return count
