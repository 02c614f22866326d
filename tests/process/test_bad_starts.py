"""What ends a start, row by row of server.md 1, 2.1 and 3.1, with the real program."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import asyncpg
import pytest

USAGE = "Usage of bbs:\n  -config string\n    \tThe path to the JSON configuration file.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "stderr"),
    [
        (("-help",), 0, USAGE),
        (("-h",), 0, USAGE),
        (("-foo",), 2, f"flag provided but not defined: -foo\n{USAGE}"),
        (("--foo=1",), 2, f"flag provided but not defined: -foo\n{USAGE}"),
        (("-config",), 2, f"flag needs an argument: -config\n{USAGE}"),
        ((), 2, "panic: open : no such file or directory\n"),
        (("extra", "-foo"), 2, "panic: open : no such file or directory\n"),
        (("-config", "/no/such"), 2, "panic: open /no/such: no such file or directory\n"),
        (("--config=/no/such", "extra"), 2, "panic: open /no/such: no such file or directory\n"),
    ],
)
async def test_command_lines(programs: Any, arguments: tuple[str, ...], code: int, stderr: str) -> None:
    program = await programs.command(*arguments)
    assert await program.ended() == code
    assert program.errors == stderr
    assert program.lines == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "EOF"),
        ("[]", "json: cannot unmarshal array into Go value of type config.BBSConfig"),
        (
            '{"lock_ttl": 5}',
            "json: cannot unmarshal number into Go struct field BBSConfig.lock_ttl of type string",
        ),
        ("{}", "unknown log level: "),
        ('{"log_level": "INFO"}', "unknown log level: INFO"),
        ('{"log_level": "info", "time_format": "no"}', 'invalid TimeFormat: "no"'),
    ],
)
async def test_files_that_cannot_be_used(programs: Any, text: str, error: str) -> None:
    program = await programs.raw(text)
    assert await program.ended() == 2
    assert program.errors == f"panic: {error}\n"
    assert program.lines == []


BEFORE_THE_DATABASE: list[tuple[dict[str, Any], int, str, str]] = [
    (
        {"loggregator": {"loggregator_cert_path": "/no"}},
        1,
        "failed-to-initialize-metron-client",
        "failed to load keypair: open /no: no such file",
    ),
    ({"health_address": None}, 2, "failed-invalid-health-address", "missing port"),
    ({"health_address": "127.0.0.1:nope"}, 2, "failed-invalid-health-port", "unknown port"),
    ({"encryption_keys": None}, 2, "cannot-setup-encryption", "Must have at least one encryption key set"),
    ({"active_key_label": None}, 2, "cannot-setup-encryption", "Must select an active encryption key"),
    (
        {"active_key_label": "other"},
        2,
        "cannot-setup-encryption",
        "The selected active key must be listed on the encryption keys flag",
    ),
    ({"encryption_keys": {"": "x", "label": "y"}}, 2, "cannot-setup-encryption", "A key label is required"),
    ({"encryption_keys": {"l" * 128: "x"}}, 2, "cannot-setup-encryption", "Key label is longer than 127 bytes"),
    ({"database_driver": None}, 2, "no-database-configured", "no database configured"),
    ({"database_driver": "mysql"}, 2, "invalid-driver-name", "mysql"),
    ({"database_connection_string": "garbage"}, 2, "invalid-db-connection-string", "cannot parse `garbage`"),
    ({"sql_ca_cert_file": "/no"}, 2, "failed-to-read-sql-ca-file", "no such file"),
    ({}, 2, "sql-failed-to-connect", "connection refused"),
]


@pytest.mark.parametrize(("keys", "code", "action", "error"), BEFORE_THE_DATABASE)
async def test_failures_before_the_database(
    programs: Any, keys: dict[str, Any], code: int, action: str, error: str
) -> None:
    program = await programs(**keys)
    assert await program.ended() == code
    _check_failure(program, code, action, error)


AFTER_THE_DATABASE: list[tuple[dict[str, Any], int, str, str]] = [
    (
        {"rep_ca_cert": "/no", "rep_client_cert": "/no", "rep_client_key": "/no"},
        2,
        "new-rep-client-factory-failed",
        "failed to load keypair: open /no: no such file or directory",
    ),
    ({"auctioneer_address": None}, 2, "auctioneer-address-validation-failed", "auctioneerAddress is required"),
    ({"auctioneer_ca_cert": "/no"}, 2, "failed-to-construct-auctioneer-client", "keypair: open : no such file"),
    ({"access_log_path": "/no/such/file"}, 1, "invalid-access-log-path", "open /no/such/file: no such file"),
    ({"cert_file": "/no"}, 2, "tls-configuration-failed", "failed to load keypair: open /no: no such file"),
    ({"locket_address": "127.0.0.1:9"}, 2, "failed-to-create-locket-client", ""),
    ({"uuid": None}, 2, "invalid-uuid", "invalid-uuid-from-config"),
]


@pytest.mark.parametrize(("keys", "code", "action", "error"), AFTER_THE_DATABASE)
async def test_failures_after_the_database(
    servers: Any, keys: dict[str, Any], code: int, action: str, error: str
) -> None:
    program = await servers(**keys)
    assert await program.ended() == code
    _check_failure(program, code, action, error)


def _check_failure(program: Any, code: int, action: str, error: str) -> None:
    line = program.lines[-1]
    assert line["message"] == f"bbs.{action}"
    assert error in line["data"]["error"]
    assert line["log_level"] == (3 if code == 2 else 2)
    assert ("trace" in line["data"]) is (code == 2)
    assert program.errors == (f"panic: {line['data']['error']}\n" if code == 2 else "")


async def test_a_password_is_never_shown(programs: Any) -> None:
    program = await programs(database_connection_string="postgres://diego:hush@127.0.0.1:no/db")
    assert await program.ended() == 2
    assert program.lines[-1]["message"] == "bbs.invalid-db-connection-string"
    assert "hush" not in str(program.lines) + program.errors


async def test_a_report_interval_of_nothing(servers: Any) -> None:
    program = await servers(report_interval=None)
    assert await program.ended() == 2
    assert program.errors == "panic: non-positive interval for NewTicker\n"
    assert program.messages() == ["bbs.starting"]


async def test_a_key_that_does_not_fit_its_certificate(servers: Any, certificates: Any) -> None:
    program = await servers(key_file=str(certificates.client_key))
    assert await program.ended() == 2
    assert program.lines[-1]["message"] == "bbs.tls-configuration-failed"


async def test_a_newer_schema(servers: Any, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE configurations (id varchar(255) PRIMARY KEY, value varchar(255))")
    await connection.execute("""INSERT INTO configurations VALUES ('version', '{"CurrentVersion":1999999999}')""")
    await connection.close()
    program = await servers()
    assert await program.ended() == 1
    trace = program.lines[-1]["data"]["error"].splitlines()
    assert program.lines[-1]["message"] == "bbs.exited-with-failure"
    assert trace[:3] == [
        "Exit trace for group:",
        "migration-manager exited with error: Existing DB version (1999999999) exceeds bbs version (1772581987)",
        "server exited with nil",
    ]
    # Quirk: an aborted start is announced as started nevertheless.
    assert program.messages()[-2] == "bbs.started"


async def test_an_unknown_key_label(servers: Any) -> None:
    first = await servers()
    # The label is written by the re-encryption of the first start.
    await first.logged("bbs.encryptor.encryption-finished")
    assert await first.stop() == 0
    second = await servers(encryption_keys={"new": "x"}, active_key_label="new")
    assert await second.ended() == 1
    text = "encryptor exited with error: Existing encryption key version (label) is not among the known keys"
    assert second.lines[-1]["data"]["error"].splitlines()[1] == text
    assert "bbs.encryptor.unknown-encryption-key-lable" in second.messages()


async def test_an_address_in_use(servers: Any, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        program = await servers(listen_address=address)
        assert await program.ended() == 1
    text = f"server exited with error: listen tcp {address}: bind: address already in use"
    assert program.lines[-1]["data"]["error"].splitlines()[1] == text
