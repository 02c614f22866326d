"""Databases as the Go BBS leaves them, made and read without any code of ours (storage.md 1, 2, 3, 5 and 8)."""

# ruff: noqa: E501  (columns are shown whole)
from __future__ import annotations

import base64
import hashlib
import os
from typing import Any

import asyncpg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CURRENT = 1772581987
PASSPHRASES = {"key1": "passphrase one", "k2": "", "clé-3": "pässwörd"}
MODELS = {"task_definition", "run_info", "volume_placement", "net_info"}
SEALED = {
    "tasks": ("task_definition",),
    "desired_lrps": ("run_info", "volume_placement", "routes", "metric_tags"),
    "actual_lrps": ("net_info", "internal_routes", "metric_tags"),
}
CONFIGURATIONS = "CREATE TABLE configurations (id varchar(255) PRIMARY KEY, value varchar(255))"

ORIGINAL = """
CREATE TABLE domains (domain varchar(255) PRIMARY KEY, expire_time bigint DEFAULT 0);
CREATE INDEX domains_expire_time_idx ON domains (expire_time);
CREATE TABLE tasks (
  guid varchar(255) PRIMARY KEY, domain varchar(255) NOT NULL, updated_at bigint DEFAULT 0, created_at bigint DEFAULT 0,
  first_completed_at bigint DEFAULT 0, state integer, cell_id varchar(255) NOT NULL DEFAULT '', result text,
  failed boolean DEFAULT false, failure_reason varchar(255) NOT NULL DEFAULT '', task_definition text NOT NULL
);
CREATE INDEX tasks_domain_idx ON tasks (domain);
CREATE INDEX tasks_state_idx ON tasks (state);
CREATE INDEX tasks_cell_id_idx ON tasks (cell_id);
CREATE INDEX tasks_updated_at_idx ON tasks (updated_at);
CREATE INDEX tasks_created_at_idx ON tasks (created_at);
CREATE INDEX tasks_first_completed_at_idx ON tasks (first_completed_at);
CREATE TABLE desired_lrps (
  process_guid varchar(255) PRIMARY KEY, domain varchar(255) NOT NULL, log_guid varchar(255) NOT NULL, annotation text,
  instances integer NOT NULL, memory_mb integer NOT NULL, disk_mb integer NOT NULL, rootfs varchar(255) NOT NULL,
  routes text NOT NULL, volume_placement text NOT NULL, modification_tag_epoch varchar(255) NOT NULL,
  modification_tag_index integer, run_info text NOT NULL
);
CREATE INDEX desired_lrps_domain_idx ON desired_lrps (domain);
CREATE TABLE actual_lrps (
  process_guid varchar(255), instance_index integer, evacuating boolean DEFAULT false, domain varchar(255) NOT NULL,
  state varchar(255) NOT NULL, instance_guid varchar(255) NOT NULL DEFAULT '', cell_id varchar(255) NOT NULL DEFAULT '',
  placement_error varchar(255) NOT NULL DEFAULT '', since bigint DEFAULT 0, net_info text NOT NULL,
  modification_tag_epoch varchar(255) NOT NULL, modification_tag_index integer, crash_count integer NOT NULL DEFAULT 0,
  crash_reason varchar(255) NOT NULL DEFAULT '', expire_time bigint DEFAULT 0,
  PRIMARY KEY (process_guid, instance_index, evacuating)
);
CREATE INDEX actual_lrps_domain_idx ON actual_lrps (domain);
CREATE INDEX actual_lrps_cell_id_idx ON actual_lrps (cell_id);
CREATE INDEX actual_lrps_since_idx ON actual_lrps (since);
CREATE INDEX actual_lrps_state_idx ON actual_lrps (state);
CREATE INDEX actual_lrps_expire_time_idx ON actual_lrps (expire_time);
"""

HISTORY = {
    1461790966: ORIGINAL,
    1471030898: "",
    1472757022: "ALTER TABLE desired_lrps ADD placement_tags text",
    1474908092: "ALTER TABLE actual_lrps ALTER crash_reason TYPE varchar(1024), ALTER placement_error TYPE varchar(1024)",
    1474993971: "",
    1481761088: "ALTER TABLE desired_lrps ADD max_pids integer DEFAULT 0",
    1502289152: "ALTER TABLE desired_lrps ALTER rootfs TYPE varchar(1024)",
    1522700600: "ALTER TABLE tasks ADD rejection_count integer NOT NULL DEFAULT 0",
    1523050077: "ALTER TABLE tasks ADD rejection_reason varchar(255) NOT NULL DEFAULT ''",
    1528928964: "ALTER TABLE tasks ALTER rejection_reason TYPE varchar(1024), ALTER failure_reason TYPE varchar(1024)",
    1529530809: "ALTER TABLE actual_lrps ADD presence integer NOT NULL DEFAULT 0, DROP CONSTRAINT actual_lrps_pkey,"
    " ADD CONSTRAINT actual_lrps_pkey PRIMARY KEY (process_guid, instance_index, presence)",
    1643660541: "ALTER TABLE actual_lrps ADD internal_routes text",
    1674146125: "",
    1676360874: "ALTER TABLE actual_lrps ADD metric_tags text",
    1686692176: "ALTER TABLE actual_lrps ADD routable boolean DEFAULT false",
    1698182853: "ALTER TABLE actual_lrps ADD availability_zone varchar(255) NOT NULL DEFAULT ''",
    1722634733: "ALTER TABLE desired_lrps ADD metric_tags text",
    1764949919: "CREATE TABLE bbs_health_check (id serial PRIMARY KEY, time bigint NOT NULL)",
    CURRENT: "ALTER TABLE desired_lrps ADD update_strategy integer NOT NULL DEFAULT 0",
}
"""What each version made of the schema; what it made of rows is for the tests to say."""

ROUTES_SEALED_SINCE = 1474993971
PRESENCE_SINCE = 1529530809

VECTORS = {
    "V1": "02BGtleTGl2wc0rugPYesW3WJCNhyAhzVofnyKXGl7MyM/YOH/5YNE8dBsHbQzvd7c+p8LrLRWWs2nPAk=",
    "V2": "02BGtleTFTC5BKpM+Lus7VttW7uw+XmqB3Dt753gnIIAu98prPqLdzOkzupkAql1Z4tNdYI9LqokE+b1tIEeiVyU48Cig=",
    "V3": "02BGtleTE/R85pQZDf2EAKCjCVYFd5xUU/j+objwEHob+pKL1USi7fJA==",
    "V4": "02BGtleTExe1IXbF9X6PTafD4WHOPGe6KfwRaGfZjsxEHTLyM=",
    "V5": "02BGtleTFKhlk+1IfyKscy6Ejeojc+Jfrm5JVTjOxvS5gyKp7qf6H9weA5JT6dbAHz/fuTXt49aiwJtqQd5CwbRufe",
    "V6": "02BGtleTH2TltImjBhh1zi+S67BLyTBJF7jq0APrifBRhqy/sueg==",
    "V7": "02BGtleTGnIONStdoHakNINhUuvq9aKglHqrUkzDSP3JNYATCD6L5zsW6x2AvIGCp+MKxYQVKPqf+1OBvXYrOCgNwxlrBdB6p/HYsvoj2suLguE12KcYPayPz/JLEHP8hQ3h10mXfDB+6YkpsrgL5Hu+qLt0zT1ch1",
    "V8": "02BGtleTHsLPO8Db2u/WzPohBJX5/t4K+Ej3wuuejyYvmciqWJCqJq/qiivOzPFtbpGHpPI6k=",
    "V9": "02BGtleTEd9tO9kWdlHfDu9b1fDh3QxVEgodmZSC44vr/9fPMt5Ytzvb2G85v2CC1MitAiNfPViRx1lk3L1CMVcQ==",
    "V10": "02BGtleTH8r1PEXUcTlVvClomV5aFhz855LuYN6bXthSjFwT0=",
    "V11": "02BGtleTE3emC3aq9ZB12atAQFZtV8n1EkkFWoXFXFtHU9oQh2vWZJMwYOSfvewLfNzds=",
    "V12": "02AmsyMAEnpV/LHnYk+QaAS4qsiZe/NuIuxSfBtslpCGmwilzigZ76wV2tBQde7HLyyze6MUU6Oea8",
    "V13": "02AmsyJz3q6RfzgpVpxevxJBIYwQpS9ZtlPcxxkAMZA9cs+n5wL6r00IBXvf147sG+UAV2p+bT37N2FlRYGgLzkQ==",
    "V14": "02BmNsw6ktMxa4/WaK3Jr4cTZYlHdxeXK//Fncw42pljGFf4dVog==",
    "V15": "02BmNsw6ktM0y6vGW0DTBoLFzvEqPXd7/3jLCNoqBB6GQVtTNeL4vT2j1jfodOlQdrwfKkzy1w6tDPDdBoxwRzVd8n",
}
"""Columns written by the reference."""

_DESCRIPTION = """
SELECT table_name, ordinal_position::text, column_name, data_type, character_maximum_length::text, is_nullable,
  column_default
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL
SELECT tablename, 'index', indexname, indexdef, NULL, NULL, NULL FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT conrelid::regclass::text, 'constraint', conname, pg_get_constraintdef(oid), NULL, NULL, NULL
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT event_object_table, 'trigger', trigger_name, action_statement, NULL, NULL, NULL
FROM information_schema.triggers
ORDER BY 1, 2, 3
"""


async def make(connection: asyncpg.Connection[Any], version: int = CURRENT) -> None:
    """The empty database of a release with that schema version, on an empty database."""
    await connection.execute(CONFIGURATIONS)
    for one, statements in HISTORY.items():
        if one <= version and statements:
            await connection.execute(statements)
    await connection.execute("INSERT INTO configurations VALUES ('version', $1)", f'{{"CurrentVersion":{version}}}')


async def described(connection: asyncpg.Connection[Any]) -> list[tuple[Any, ...]]:
    """Every table, column, index and constraint."""
    return [tuple(row) for row in await connection.fetch(_DESCRIPTION)]


def _cipher(label: str) -> AESGCM:
    return AESGCM(hashlib.sha256(PASSPHRASES[label].encode()).digest())


def seal(plaintext: bytes, label: str = "key1") -> str:
    name, nonce = label.encode(), os.urandom(12)
    sealed = bytes([len(name)]) + name + nonce + _cipher(label).encrypt(nonce, plaintext, None)
    return "02" + base64.b64encode(sealed).decode()


def seal_model(encoded: bytes, label: str = "key1") -> str:
    return seal(b"\x02\x00" + encoded, label)


def unseal(value: str) -> tuple[str, bytes]:
    """Label and plaintext."""
    assert value[:2] == "02"
    sealed = base64.b64decode(value[2:], validate=True)
    label, rest = sealed[1 : 1 + sealed[0]].decode(), sealed[1 + sealed[0] :]
    return label, _cipher(label).decrypt(rest[:12], rest[12:], None)


async def sealed_values(connection: asyncpg.Connection[Any]) -> dict[tuple[str, str, int], tuple[str, bytes]]:
    """Label and plaintext of every sealed column, by table, column and number of the row."""
    found = {}
    for table, columns in SEALED.items():
        for number, row in enumerate(await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2, 3")):
            for column in columns:
                found[table, column, number] = unseal(row[column])
    return found
