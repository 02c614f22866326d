"""Connection strings (storage.md 6)."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bbs_server.store.conninfo import masked, parse
from bbs_server.store.errors import StartFailure, Unreachable

NOTHING: dict[str, str] = {"PGUSER": "os"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgres://diego:pw@h:5433/db", (("h", 5433), "diego", "pw", "db")),
        ("postgresql://di%40ego:p%2Fw@h/d%20b", (("h", 5432), "di@ego", "p/w", "d b")),
        ("postgres://u@[::1]:5433/db", (("::1", 5433), "u", None, "db")),
        ("postgres:///db?host=/run/pg&user=u&password=x", (("/run/pg", 5432), "u", "x", "db")),
        (
            "user=diego password='p w' host=127.0.0.1 port=5432 dbname=diego",
            (("127.0.0.1", 5432), "diego", "p w", "diego"),
        ),
        (r"user = u password='it\'s \\' host= h", (("h", 5432), "u", "it's \\", "u")),
        ("host=h user=u password=", (("h", 5432), "u", None, "u")),
        ("host=h", (("h", 5432), "os", None, "os")),
    ],
)
def test_login(text: str, expected: object) -> None:
    settings = parse(text, environment=NOTHING)
    assert (settings.hosts[0], settings.user, settings.password, settings.database) == expected


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("host=a,b port=1,2", (("a", 1), ("b", 2))),
        ("host=a,b port=7", (("a", 7), ("b", 7))),
        ("postgres://u@a:1,b:2/d", (("a", 1), ("b", 2))),
        ("postgres://u@a,b:2/d", (("a", 5432), ("b", 2))),
    ],
)
def test_several_hosts(text: str, hosts: object) -> None:
    assert parse(text, environment=NOTHING).hosts == hosts


def test_environment_and_service_fill_what_is_missing(tmp_path: Path) -> None:
    services = tmp_path / "services"
    services.write_text("[mine]\nhost=service-host\nuser=service-user\n")
    environment = {
        "PGHOST": "env-host",
        "PGUSER": "env-user",
        "PGDATABASE": "env-db",
        "PGAPPNAME": "app",
        "PGCONNECT_TIMEOUT": "7",
        "PGSERVICEFILE": str(services),
        "PGSSLMODE": "disable",
    }
    settings = parse("port=9", environment=environment)
    assert (settings.hosts, settings.user, settings.database) == ((("env-host", 9),), "env-user", "env-db")
    assert settings.server_settings == {"application_name": "app"}
    assert settings.connect_timeout == 7
    assert settings.transports == (None,)
    assert parse("service=mine user=u", environment=environment).hosts == (("service-host", 5432),)


def test_other_keys_are_run_time_parameters() -> None:
    text = "host=h application_name=x options='-c geqo=off' search_path=s sslmode=disable target_session_attrs=any"
    expected = {"application_name": "x", "options": "-c geqo=off", "search_path": "s"}
    assert parse(text, environment=NOTHING).server_settings == expected


def test_keys_of_the_references_driver_are_not() -> None:
    text = (
        "postgres://h/d?default_query_exec_mode=simple_protocol&statement_cache_capacity=0&description_cache_capacity=9"
    )
    assert parse(text, environment=NOTHING).server_settings == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("garbage", "cannot parse `garbage`: failed to parse as keyword/value (invalid keyword/value)"),
        ("=x", "cannot parse `=x`: failed to parse as keyword/value (invalid keyword/value)"),
        (
            "user='x",
            "cannot parse `user='x`: failed to parse as keyword/value"
            " (unterminated quoted string in connection info string)",
        ),
        ("user=x\\", "cannot parse `user=x\\`: failed to parse as keyword/value (invalid backslash)"),
        ("sslmode=maybe", "cannot parse `sslmode=maybe`: failed to configure TLS (sslmode is invalid)"),
        ("port=70000", "cannot parse `port=70000`: invalid port (outside range)"),
        (
            "password=secret port=x",
            'cannot parse `password=xxxxx port=x`: invalid port (strconv.ParseUint: parsing "x": invalid syntax)',
        ),
        ("target_session_attrs=x", "cannot parse `target_session_attrs=x`: unknown target_session_attrs value: x"),
        ("postgres://u:secret@h:x/d", None),
        ("postgres://u:secret@[h/d", None),
        ("connect_timeout=-1", None),
        ("connect_timeout=soon", None),
        ("sslmode=require sslrootcert=/none", None),
        ("sslmode=require sslcert=/none sslkey=/none", None),
        ("sslmode=require sslcert=/none", None),
        ("service=none", None),
        ("host=a,b,c port=1,2", None),
    ],
)
def test_refused(text: str, message: str | None) -> None:
    with pytest.raises(StartFailure) as failure:
        parse(text, environment=NOTHING)
    assert failure.value.action == "invalid-db-connection-string"
    assert message is None or str(failure.value) == message
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgres://u:secret@h/d?sslmode=disable",
        "postgres://h/d?user=u&password=secret",
        "user=u password='secret word' host=h",
        "user=u password='secret",
    ],
)
def test_passwords_are_masked(text: str) -> None:
    assert "secret" not in masked(text)
    assert "u" in masked(text)


@pytest.mark.parametrize(
    ("mode", "plain", "verify", "host"),
    [
        ("disable", [True], None, False),
        ("allow", [True, False], ssl.CERT_NONE, False),
        ("prefer", [False, True], ssl.CERT_NONE, False),
        ("", [False, True], ssl.CERT_NONE, False),
        ("require", [False], ssl.CERT_NONE, False),
        ("verify-ca", [False], ssl.CERT_REQUIRED, False),
        ("verify-full", [False], ssl.CERT_REQUIRED, True),
    ],
)
def test_ssl_modes(mode: str, plain: list[bool], verify: object, host: bool) -> None:
    transports = parse(f"host=h sslmode={mode}" if mode else "host=h", environment=NOTHING).transports
    assert [transport is None for transport in transports] == plain
    contexts = [transport for transport in transports if transport is not None]
    assert all((context.verify_mode, context.check_hostname) == (verify, host) for context in contexts)


def test_require_with_a_root_certificate_verifies(certificates: Any) -> None:
    (context,) = parse(f"host=h sslmode=require sslrootcert={certificates.ca}", environment=NOTHING).transports
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert not context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_ca_file_of_the_configuration(certificates: Any, tmp_path: Path) -> None:
    (context,) = parse("host=h", str(certificates.ca), environment=NOTHING).transports
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)
    (context,) = parse("host=h", str(certificates.ca), True, environment=NOTHING).transports
    assert context is not None
    assert context.check_hostname
    assert parse("host=h sslmode=disable", str(certificates.ca), environment=NOTHING).transports == (None,)
    with pytest.raises(StartFailure) as missing:
        parse("host=h", str(tmp_path / "none"), environment=NOTHING)
    assert missing.value.action == "failed-to-read-sql-ca-file"
    (tmp_path / "empty").write_text("nothing")
    with pytest.raises(StartFailure) as empty:
        parse("host=h sslmode=disable", str(tmp_path / "empty"), environment=NOTHING)
    assert empty.value.action == "failed-to-parse-sql-ca"


async def test_connects_to_the_first_host_that_answers(postgres_url: str) -> None:
    parts = parse(postgres_url)
    (host, port), name = parts.hosts[0], parts.database
    text = f"user=postgres dbname={name} host={host},{host} port=1,{port} application_name=mine connect_timeout=5"
    connection = await parse(text).connect()
    assert await connection.fetchval("SHOW application_name") == "mine"
    await connection.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this platform has no such limits")
async def test_a_connection_whose_packets_are_lost_ends_soon(postgres_url: str) -> None:
    connection = await parse(postgres_url).connect()
    link: socket.socket = connection._transport.get_extra_info("socket")

    def option(level: int, name: str) -> int:
        return link.getsockopt(level, getattr(socket, name))

    assert option(socket.SOL_SOCKET, "SO_KEEPALIVE") == 1
    probes = [option(socket.IPPROTO_TCP, name) for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")]
    assert probes[0] + probes[1] * probes[2] <= 15
    assert option(socket.IPPROTO_TCP, "TCP_USER_TIMEOUT") == 15_000
    await connection.close()


def test_an_attempt_to_connect_has_a_limit_unless_it_is_switched_off() -> None:
    assert parse("host=h", environment=NOTHING).connect_timeout == 30
    assert parse("host=h connect_timeout=0", environment=NOTHING).connect_timeout is None


async def test_texts_of_failures(postgres_url: str) -> None:
    with pytest.raises(Unreachable) as refused:
        await parse("user=diego dbname=diego host=127.0.0.1 port=1 sslmode=disable").connect()
    assert str(refused.value) == (
        "failed to connect to `user=diego database=diego`: 127.0.0.1:1 (127.0.0.1): "
        "dial error: dial tcp 127.0.0.1:1: connect: connection refused"
    )
    with pytest.raises(Unreachable, match=r'FATAL: unrecognized configuration parameter "foo" \(SQLSTATE 42704\)'):
        await parse(postgres_url + "&foo=bar").connect()


async def test_tls_is_required_from_a_server_without_it(postgres_url: str, certificates: Any) -> None:
    text = postgres_url.replace("sslmode=disable", "")
    with pytest.raises(Unreachable):
        await parse(text, str(certificates.ca)).connect()
    connection: asyncpg.Connection[Any] = await parse(text).connect()
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()
