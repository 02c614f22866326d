"""The schema, fresh and from every version of its history (storage.md 1, 3 and 4)."""

from __future__ import annotations

import time
from typing import Any

import asyncpg
import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.log import Log, silent
from bbs_server.store import migrations
from bbs_server.store.epoch import raise_epoch
from bbs_server.store.errors import MigrationFailed, StartFailure
from bbs_server.store.migrations import CURRENT, VERSIONS, apply, migrate, store_version
from bbs_server.store.opening import open_database
from bbs_server.store.sealing import Keys
from bbs_server.store.sql import STATEMENTS

KEYS = Keys("key1", {"key1": "passphrase one"})

SCHEMA = """
configurations: id varchar(255) not null | value varchar(255) | pkey id
domains: domain varchar(255) not null | expire_time bigint 0 | pkey domain | index expire_time
desired_lrps: process_guid varchar(255) not null | domain varchar(255) not null | log_guid varchar(255) not null
 | annotation text | instances integer not null | memory_mb integer not null | disk_mb integer not null
 | rootfs varchar(1024) not null | routes text not null | volume_placement text not null
 | modification_tag_epoch varchar(255) not null | modification_tag_index integer | run_info text not null
 | placement_tags text | max_pids integer 0 | metric_tags text | update_strategy integer not null 0
 | pkey process_guid | index domain
actual_lrps: process_guid varchar(255) not null | instance_index integer not null | evacuating boolean not null false
 | domain varchar(255) not null | state varchar(255) not null | instance_guid varchar(255) not null ''
 | cell_id varchar(255) not null '' | placement_error varchar(1024) not null '' | since bigint 0
 | net_info text not null | modification_tag_epoch varchar(255) not null | modification_tag_index integer
 | crash_count integer not null 0
 | crash_reason varchar(1024) not null '' | expire_time bigint 0 | presence integer not null 0 | internal_routes text
 | metric_tags text | routable boolean false | availability_zone varchar(255) not null ''
 | pkey process_guid, instance_index, presence | index cell_id | index domain | index expire_time | index since
 | index state
tasks: guid varchar(255) not null | domain varchar(255) not null | updated_at bigint 0 | created_at bigint 0
 | first_completed_at bigint 0 | state integer | cell_id varchar(255) not null '' | result text | failed boolean false
 | failure_reason varchar(1024) not null '' | task_definition text not null | rejection_count integer not null 0
 | rejection_reason varchar(1024) not null '' | pkey guid | index cell_id | index created_at | index domain
 | index first_completed_at | index state | index updated_at
bbs_health_check: id integer not null nextval('bbs_health_check_id_seq') | time bigint not null | pkey id
"""

COLUMNS = """
SELECT c.relname, a.attname, replace(format_type(a.atttypid, a.atttypmod), 'character varying', 'varchar'),
  a.attnotnull, regexp_replace(pg_get_expr(d.adbin, d.adrelid), '::[a-z ]+', '', 'g')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
ORDER BY c.relname, a.attnum
"""
STORED = "SELECT value FROM configurations WHERE id = 'version'"
INDEXES = """
SELECT tablename, indexname, regexp_replace(indexdef, '^.*\\((.*)\\)$', '\\1')
FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2
"""


MORE_DESIRED_LRPS = """
INSERT INTO desired_lrps SELECT 'p' || number, domain, log_guid, annotation, instances, memory_mb, disk_mb, rootfs,
  routes, volume_placement, modification_tag_epoch, modification_tag_index, run_info
FROM desired_lrps, generate_series(1, $1) AS number
"""


async def described(connection: asyncpg.Connection[Any]) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for table, column, kind, required, default in await connection.fetch(COLUMNS):
        parts = (column, kind, "not null" if required else "", default or "")
        tables.setdefault(table, []).append(" ".join(part for part in parts if part))
    keys: dict[str, str] = {}
    indexes: dict[str, list[str]] = {table: [] for table in tables}
    for table, name, columns in await connection.fetch(INDEXES):
        if name == f"{table}_pkey":
            keys[table] = f"pkey {columns}"
        else:
            assert name == f"{table}_{columns}_idx"
            indexes[table].append(f"index {columns}")
    return {table: [*columns, keys[table], *indexes[table]] for table, columns in tables.items()}


def expected() -> dict[str, list[str]]:
    lines = SCHEMA.strip().replace("\n ", " ").splitlines()
    return {name: columns.strip().split(" | ") for name, _, columns in (line.partition(":") for line in lines)}


async def prepare(connection: asyncpg.Connection[Any], version: int) -> None:
    """A database of an older release, with a row in each table."""
    await connection.execute(STATEMENTS["configurations"]["create"])
    info = models.DesiredLRPRunInfo()
    info.metric_tags["b"].static = "x"
    info.metric_tags["a"].dynamic = models.MetricTagValue.INDEX
    for one in VERSIONS:
        if one <= version:
            async with connection.transaction():
                await apply(connection, one, KEYS, silent)
        if one == VERSIONS[0]:
            await connection.execute("INSERT INTO domains VALUES ('d', 5)")
            await connection.execute(
                "INSERT INTO tasks (guid, domain, task_definition) VALUES ('t', 'd', $1)", KEYS.seal_model(b"")
            )
            insert = "INSERT INTO desired_lrps VALUES ($1, 'd', 'l', '', 1, 2, 3, 'r', $2, $3, 'e', 0, $4)"
            sealed = KEYS.seal_model(b"")
            await connection.execute(insert, "p", '{"r":1}', sealed, KEYS.seal_model(info.SerializeToString()))
            await connection.execute(insert, "broken", "null", sealed, "xy")
            insert = (
                "INSERT INTO actual_lrps (process_guid, instance_index, evacuating, domain, state, net_info,"
                " modification_tag_epoch) VALUES ('p', 0, $1, 'd', $2, '', 'e')"
            )
            await connection.execute(insert, False, "RUNNING")
            await connection.execute(insert, True, "CLAIMED")
    await store_version(connection, version)


async def run(connection: asyncpg.Connection[Any], log: Log = silent) -> None:
    """Migrate as the process does, which has raised the epoch before."""
    await raise_epoch(connection, "us")
    await migrate(connection, KEYS, "us", log)


async def test_fresh_schema(postgres_url: str, psql: asyncpg.Connection[Any]) -> None:
    database = await open_database(postgres_url, active_key_label="a", encryption_keys={"a": "b"})
    assert list(await described(psql)) == ["configurations"]
    await database.raise_epoch()
    assert await database.migrate() > 0
    assert await described(psql) == expected()
    assert await psql.fetchval(STORED) == '{"CurrentVersion":1772581987}'
    await database.migrate()
    await database.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_upgrade_keeps_the_data(psql: asyncpg.Connection[Any], version: int) -> None:
    await prepare(psql, version)
    actions = []
    await run(psql, lambda level, action, data: actions.append(action))
    assert await described(psql) == expected()
    assert actions[-1] == "finished-migrations"
    assert await psql.fetchval(STORED) == f'{{"CurrentVersion":{CURRENT}}}'
    assert await psql.fetchval("SELECT expire_time FROM domains") == 5
    assert await psql.fetchrow("SELECT guid, rejection_count, rejection_reason FROM tasks") == ("t", 0, "")
    lrps = await psql.fetch("SELECT presence, routable, availability_zone, metric_tags FROM actual_lrps ORDER BY 1")
    assert lrps == [(0, True, "", None), (1, False, "", None)]
    rows = await psql.fetch(
        "SELECT routes, metric_tags, max_pids, update_strategy, placement_tags FROM desired_lrps"
        " ORDER BY process_guid DESC"
    )
    assert [KEYS.open(row["routes"]) for row in rows] == [b'{"r":1}', b"null"]
    assert KEYS.open(rows[0]["metric_tags"]) == b'{"a":{"dynamic":"INDEX"},"b":{"static":"x"}}'
    assert rows[1]["metric_tags"] is None
    assert rows[0][2:] == (0, 0, None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('{"CurrentVersion":1999999999}', "Existing DB version (1999999999) exceeds bbs version (1772581987)"),
        (
            '{"currentversion":1999999999,"TargetVersion":1}',
            "Existing DB version (1999999999) exceeds bbs version (1772581987)",
        ),
        ("", "could not deserialize record"),
        ("[]", "could not deserialize record"),
        ('{"CurrentVersion":"x"}', "could not deserialize record"),
        ('{"CurrentVersion":1772581987.0}', "could not deserialize record"),
        ('{"CurrentVersion":true}', "could not deserialize record"),
        ('{"CurrentVersion":0,"other":NaN}', "could not deserialize record"),
        ("{", "could not deserialize record"),
        (None, 'sql: Scan error on column index 0, name "value": converting NULL to string is unsupported'),
    ],
)
async def test_version_that_ends_the_start(psql: asyncpg.Connection[Any], value: str | None, text: str) -> None:
    await psql.execute(STATEMENTS["configurations"]["create"])
    await psql.execute("INSERT INTO configurations VALUES ('version', $1)", value)
    with pytest.raises(MigrationFailed) as failure:
        await run(psql)
    assert str(failure.value) == text
    assert await psql.fetchval(STORED) == value
    assert list(await described(psql)) == ["configurations"]


@pytest.mark.parametrize(
    "version", [None, "{}", "null", '{"CurrentVersion":0}', '{"CurrentVersion":1}', '{"CurrentVersion":-5}']
)
async def test_rows_of_unknown_version_are_not_dropped(psql: asyncpg.Connection[Any], version: str | None) -> None:
    await prepare(psql, CURRENT)
    await psql.execute("DELETE FROM configurations")
    if version is not None:
        await psql.execute("INSERT INTO configurations VALUES ('version', $1)", version)
    await psql.execute("DELETE FROM domains")
    with pytest.raises(MigrationFailed, match="no schema version but its table tasks holds rows"):
        await run(psql)
    assert await psql.fetchval("SELECT count(*) FROM tasks") == 1
    assert await psql.fetchval(STORED) == version
    await psql.execute("TRUNCATE tasks, desired_lrps, actual_lrps")
    await run(psql)
    assert await described(psql) == expected()


async def test_of_several_versions_the_last_counts(psql: asyncpg.Connection[Any]) -> None:
    await prepare(psql, CURRENT)
    stored = f'{{"CurrentVersion":1,"CURRENTVERSION":{CURRENT},"currentVersion":null}}'
    await psql.execute("UPDATE configurations SET value = $1 WHERE id = 'version'", stored)
    await run(psql)
    assert await psql.fetchval("SELECT expire_time FROM domains") == 5
    assert await psql.fetchval(STORED) == stored


class SlowKeys(Keys):
    """On a machine that takes a millisecond more for each value."""

    def seal(self, plaintext: bytes) -> str:
        time.sleep(0.001)
        return super().seal(plaintext)


async def test_many_rows_in_little_idle_time(psql: asyncpg.Connection[Any]) -> None:
    """The transaction is never idle for as long as it takes to seal all rows."""
    count = 2000
    await psql.execute(STATEMENTS["configurations"]["create"])
    await raise_epoch(psql, "us")
    await prepare(psql, VERSIONS[0])
    await psql.execute("DELETE FROM desired_lrps WHERE process_guid = 'broken'")
    await psql.execute(MORE_DESIRED_LRPS, count)
    await psql.execute("SET idle_in_transaction_session_timeout = '1500ms'")
    await migrate(psql, SlowKeys("key1", {"key1": "passphrase one"}), "us", silent)
    rows = await psql.fetch("SELECT routes, metric_tags FROM desired_lrps")
    assert len(rows) == count + 1
    assert {(KEYS.open(routes), KEYS.open(tags)) for routes, tags in rows} == {
        (b'{"r":1}', b'{"a":{"dynamic":"INDEX"},"b":{"static":"x"}}')
    }


async def test_failure_keeps_the_versions_before_it(psql: asyncpg.Connection[Any]) -> None:
    await prepare(psql, 1502289152)
    await psql.execute("ALTER TABLE actual_lrps RENAME TO away")
    logged = []
    with pytest.raises(MigrationFailed) as failure:
        await run(psql, lambda level, action, data: logged.append((level, action)))
    assert str(failure.value) == 'ERROR: relation "actual_lrps" does not exist (SQLSTATE 42P01)'
    assert logged[-1] == ("error", "migration-failed")
    assert await psql.fetchval(STORED) == '{"CurrentVersion":1528928964}'
    await psql.execute("ALTER TABLE away RENAME TO actual_lrps")
    await run(psql)
    assert await described(psql) == expected()


def test_every_version_with_statements_is_known() -> None:
    folder = migrations.files(migrations.__package__)
    assert {int(file.name.removesuffix(".sql")) for file in folder.iterdir() if file.name.endswith(".sql")} <= set(
        VERSIONS
    )
    assert list(VERSIONS) == sorted(VERSIONS)


@pytest.mark.parametrize(
    ("driver", "url", "action"),
    [
        ("", "x", "no-database-configured"),
        ("postgres", "", "no-database-configured"),
        ("mysql", "x", "invalid-driver-name"),
        ("oracle", "x", "invalid-driver-name"),
        ("postgres", "x", "invalid-db-connection-string"),
        ("postgres", "host=127.0.0.1 port=1 sslmode=disable", "sql-failed-to-connect"),
    ],
)
async def test_start_failures(driver: str, url: str, action: str) -> None:
    with pytest.raises(StartFailure) as failure:
        await open_database(url, driver=driver, active_key_label="a", encryption_keys={"a": ""})
    assert failure.value.action == action
