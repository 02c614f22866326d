"""The schema's history, one version after the other, and how a database is brought up to date (storage.md 3 and 4).

A version is a Unix time. `<version>.sql` holds its statements; the versions without such a file only mattered to MySQL
or are done here, because they seal columns.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import asyncpg
from bbs_protos import models_pb2 as models
from google.protobuf.message import DecodeError

from bbs_server.core.desired_lrp_forms import sent_metric_tags
from bbs_server.core.go_json import EXACT, NotJSON, Number, Object, parse
from bbs_server.core.json_columns import dump_metric_tags
from bbs_server.core.log import Log
from bbs_server.store.epoch import fenced
from bbs_server.store.errors import DATABASE_FAILURES, Deposed, MigrationFailed, driver_text
from bbs_server.store.sealing import Keys, Undecodable
from bbs_server.store.sql import STATEMENTS

VERSIONS = (
    1461790966,
    1471030898,
    1472757022,
    1474908092,
    1474993971,
    1481761088,
    1502289152,
    1522700600,
    1523050077,
    1528928964,
    1529530809,
    1643660541,
    1674146125,
    1676360874,
    1686692176,
    1698182853,
    1722634733,
    1764949919,
    1772581987,
)
CURRENT = VERSIONS[-1]

TABLES = ("domains", "tasks", "desired_lrps", "actual_lrps")
VERSION_ROW = "version"

_SQL = STATEMENTS["configurations"]
_ANY_ROW = {
    "domains": "SELECT EXISTS (SELECT 1 FROM domains)",
    "tasks": "SELECT EXISTS (SELECT 1 FROM tasks)",
    "desired_lrps": "SELECT EXISTS (SELECT 1 FROM desired_lrps)",
    "actual_lrps": "SELECT EXISTS (SELECT 1 FROM actual_lrps)",
}
_ROWS_AT_ONCE = 200
"""Rows changed here before other tasks get a turn. Also, a transaction may not be idle for long in between: its session
would be taken for that of a master that stands still.
"""
_ROUTES = "SELECT process_guid, routes FROM desired_lrps"
_SEAL_ROUTES = "UPDATE desired_lrps SET routes = $2 WHERE process_guid = $1"
_RUN_INFOS = "SELECT process_guid, run_info FROM desired_lrps"
_SET_METRIC_TAGS = "UPDATE desired_lrps SET metric_tags = $2 WHERE process_guid = $1"


async def migrate(connection: asyncpg.Connection[Any], keys: Keys, owner: str, log: Log) -> None:
    """Bring the schema to `CURRENT`, one transaction per version, each fenced by the epoch of `owner`.

    Raises MigrationFailed with the driver's text, for a newer schema, or for a database that holds rows but does not
    say their version, or says one before the first (spec/README.md, deviation 6: the reference would drop them). Raises
    Deposed.
    """
    try:
        stored = await _stored_version(connection)
        if stored is not None and stored > CURRENT:
            raise MigrationFailed(f"Existing DB version ({stored}) exceeds bbs version ({CURRENT})")
        if stored is None or stored < VERSIONS[0]:
            await _refuse_to_drop_rows(connection)
        if stored is None:
            async with _step(connection, owner, None):
                await store_version(connection, 0)
        reached = stored or 0
        for version in VERSIONS[bisect_right(VERSIONS, reached) :]:
            log("info", "running-migration", {"CurrentVersion": stored or 0, "NextVersion": version})
            async with _step(connection, owner, reached):
                await apply(connection, version, keys, log)
                await store_version(connection, version)
            reached = version
    except DATABASE_FAILURES as problem:
        log("error", "migration-failed", {"error": driver_text(problem)})
        raise MigrationFailed(driver_text(problem)) from problem
    log("info", "finished-migrations", {})


@asynccontextmanager
async def _step(connection: asyncpg.Connection[Any], owner: str, reached: int | None) -> AsyncIterator[None]:
    """A transaction that goes on from the version reached. Raises Deposed if that is not the stored one any more.

    A Go BBS may have migrated while we stood still: it raises no epoch.
    """
    async with fenced(connection, owner):
        if await _stored_version(connection) != reached:
            raise Deposed
        yield


async def is_current(connection: asyncpg.Connection[Any]) -> bool:
    """Whether the schema is the one that this program works with."""
    try:
        return await _stored_version(connection) == CURRENT
    except MigrationFailed:
        return False


async def _stored_version(connection: asyncpg.Connection[Any]) -> int | None:
    """The version the database says it has; None without a row. Keys match without regard to letter case."""
    row = await connection.fetchrow(_SQL["read"], VERSION_ROW)
    if row is None:
        return None
    if row[0] is None:
        raise MigrationFailed(
            'sql: Scan error on column index 0, name "value": converting NULL to string is unsupported'
        )
    try:
        return _version_in(row[0])
    except NotJSON:
        raise MigrationFailed("could not deserialize record") from None


def _version_in(value: str) -> int:
    """The number in a version row; of several the last one counts. Raises NotJSON."""
    members = parse(value, EXACT)
    version = 0
    if members is None:
        return version
    if not isinstance(members, Object):
        raise NotJSON
    for name, number in members:
        if name.lower() != "currentversion" or number is None:
            continue
        if not isinstance(number, Number) or not re.fullmatch("-?[0-9]{1,19}", number.text):
            raise NotJSON
        version = int(number.text)
    return version


async def store_version(connection: asyncpg.Connection[Any], version: int) -> None:
    """Write the version row, exactly as the reference spells it."""
    await connection.execute(_SQL["write"], VERSION_ROW, f'{{"CurrentVersion":{version}}}')


async def _refuse_to_drop_rows(connection: asyncpg.Connection[Any]) -> None:
    for table in TABLES:
        if await connection.fetchval(_SQL["tables"], table) and await connection.fetchval(_ANY_ROW[table]):
            raise MigrationFailed(
                f"The database has no schema version but its table {table} holds rows; "
                "refusing to start, because creating the schema would drop them"
            )


async def apply(connection: asyncpg.Connection[Any], version: int, keys: Keys, log: Log) -> None:
    """One version's changes, without recording it. To be called in a transaction."""
    file = files(__package__) / f"{version}.sql"
    if file.is_file():
        await connection.execute(file.read_text())
    if version in _IN_PYTHON:
        await _IN_PYTHON[version](connection, keys, log)


async def _seal_routes(connection: asyncpg.Connection[Any], keys: Keys, log: Log) -> None:
    """1474993971. Quirk: takes every value for plain JSON without looking."""
    cursor = await connection.cursor(_ROUTES)
    while rows := await cursor.fetch(_ROWS_AT_ONCE):
        await connection.executemany(_SEAL_ROUTES, [(guid, keys.seal(routes.encode())) for guid, routes in rows])


async def _copy_metric_tags(connection: asyncpg.Connection[Any], keys: Keys, log: Log) -> None:
    """1722634733. A row whose run info cannot be read keeps NULL."""
    cursor = await connection.cursor(_RUN_INFOS)
    while rows := await cursor.fetch(_ROWS_AT_ONCE):
        values = []
        for guid, run_info in rows:
            try:
                tags = sent_metric_tags(models.DesiredLRPRunInfo.FromString(keys.open_model(run_info)))
            except (Undecodable, DecodeError) as problem:
                log("error", "failed-to-read-run-info", {"process_guid": guid, "error": str(problem)})
                continue
            values.append((guid, keys.seal(dump_metric_tags(tags))))
        await connection.executemany(_SET_METRIC_TAGS, values)


_IN_PYTHON: dict[int, Callable[[asyncpg.Connection[Any], Keys, Log], Awaitable[None]]] = {
    1474993971: _seal_routes,
    1722634733: _copy_metric_tags,
}
