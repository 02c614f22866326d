"""The rules of server.md 2: how the configuration is decoded, key by key and error by error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.process.config import BadConfig, BBSConfig
from bbs_server.process.config_file import Kind, Use, documented, keys, markdown, parse_config, read_config
from bbs_server.process.durations import format_duration, parse_duration

KEYS_OF_THE_REFERENCE = {
    "access_log_path",
    "active_key_label",
    "encryption_keys",
    "advanced_metrics",
    "advertise_url",
    "auctioneer_address",
    "auctioneer_ca_cert",
    "auctioneer_client_cert",
    "auctioneer_client_key",
    "auctioneer_require_tls",
    "ca_file",
    "cert_file",
    "key_file",
    "communication_timeout",
    "converge_repeat_interval",
    "convergence_workers",
    "database_connection_string",
    "database_driver",
    "db_connection_timeout",
    "db_read_timeout",
    "db_write_timeout",
    "debug_address",
    "debug_lrp_start_heartbeats",
    "desired_lrp_creation_timeout",
    "enable_db_health_check",
    "health_check_failure_threshold",
    "health_check_interval",
    "health_check_timeout",
    "expire_completed_task_duration",
    "expire_pending_task_duration",
    "kick_task_duration",
    "health_address",
    "listen_address",
    "lock_ttl",
    "lock_retry_interval",
    "locket_address",
    "locket_ca_cert_file",
    "locket_client_cert_file",
    "locket_client_key_file",
    "locket_client_keepalive_time",
    "locket_client_keepalive_timeout",
    "log_level",
    "time_format",
    "max_data_string_length",
    "redact_secrets",
    "redact_patterns",
    "loggregator",
    "max_open_database_connections",
    "max_idle_database_connections",
    "max_database_connection_lifetime",
    "max_task_retries",
    "rep_ca_cert",
    "rep_client_cert",
    "rep_client_key",
    "rep_client_session_cache_size",
    "report_interval",
    "require_ssl",
    "session_name",
    "sql_ca_cert_file",
    "sql_enable_identity_verification",
    "task_callback_workers",
    "update_workers",
    "uuid",
}


def parsed(text: str | bytes) -> BBSConfig:
    return parse_config(text.encode() if isinstance(text, str) else text, BBSConfig)[0]


def test_every_key_of_the_reference_is_known_and_nothing_else_but_extensions() -> None:
    table = {row.name: row for row in keys(BBSConfig)}
    assert {name for name, row in table.items() if row.use is not Use.EXTENSION} == KEYS_OF_THE_REFERENCE


def test_every_used_key_says_what_it_means() -> None:
    assert not [row.name for row in documented(BBSConfig) if row.use is not Use.MEANINGLESS and not row.meaning]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "EOF"),
        (" \n", "EOF"),
        ("[]", "json: cannot unmarshal array into Go value of type config.BBSConfig"),
        (b"\xef\xbb\xbf{}", "invalid character 'ï' looking for beginning of value"),
        ('{"uuid"', "unexpected EOF"),
        ('{"uuid":"a', "unexpected EOF"),
        ('{"uuid":"a",}', "invalid character '}' looking for beginning of object key string"),
        ('{"uuid" "a"}', "invalid character '\"' after object key"),
        ('{"uuid":NaN}', "invalid character 'N' looking for beginning of value"),
        ('{"uuid":5}', "json: cannot unmarshal number into Go struct field BBSConfig.uuid of type string"),
        (
            '{"max_task_retries":"3"}',
            "json: cannot unmarshal string into Go struct field BBSConfig.max_task_retries of type int",
        ),
        (
            '{"max_task_retries":5.5}',
            "json: cannot unmarshal number 5.5 into Go struct field BBSConfig.max_task_retries of type int",
        ),
        (
            '{"require_ssl":"true"}',
            "json: cannot unmarshal string into Go struct field BBSConfig.require_ssl of type bool",
        ),
        ('{"lock_ttl":15}', "json: cannot unmarshal number into Go struct field BBSConfig.lock_ttl of type string"),
        ('{"lock_ttl":null}', 'time: invalid duration ""'),
        ('{"lock_ttl":""}', 'time: invalid duration ""'),
        ('{"lock_ttl":"5"}', 'time: missing unit in duration "5"'),
        ('{"lock_ttl":"5 s"}', 'time: unknown unit " s" in duration "5 s"'),
        ('{"lock_ttl":"s"}', 'time: invalid duration "s"'),
        ('{"lock_ttl":"9999999h"}', 'time: invalid duration "9999999h"'),
        ('{"time_format":"iso"}', 'invalid TimeFormat: "iso"'),
        ('{"time_format":2}', 'invalid TimeFormat: "2"'),
        ('{"time_format":true}', 'invalid TimeFormat: "true"'),
        ('{"time_format":[1]}', 'invalid TimeFormat: "array"'),
        ('{"time_format":{"a":1}}', 'invalid TimeFormat: "object"'),
        (
            '{"loggregator":{"BatchFlushInterval":"100ms"}}',
            "json: cannot unmarshal string into Go struct field BBSConfig.loggregator.BatchFlushInterval"
            " of type time.Duration",
        ),
        (
            '{"loggregator":{"loggregator_batch_max_size":-1}}',
            "json: cannot unmarshal number -1 into Go struct field BBSConfig.loggregator.loggregator_batch_max_size"
            " of type uint",
        ),
        (
            '{"encryption_keys":["a"]}',
            "json: cannot unmarshal array into Go struct field BBSConfig.encryption_keys of type map[string]string",
        ),
    ],
)
def test_a_file_that_cannot_be_decoded_is_refused_in_the_words_of_the_reference(text: str | bytes, error: str) -> None:
    with pytest.raises(BadConfig) as refusal:
        parsed(text)
    assert str(refusal.value) == error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"uuid":"a"} and more', {"uuid": "a"}),
        ('{"UUID":"a"}', {"uuid": "a"}),
        ('{"uuid":"a","Uuid":"b"}', {"uuid": "b"}),
        ('{"uuid":"a","uuid":null}', {"uuid": "a"}),
        ("null", {}),
        ('{"health_check_failure_threshold":null}', {"health_check_failure_threshold": 3}),
        ('{"lock_ttl":"1m0.5s","lock_retry_interval":"0"}', {"lock_ttl": 60_500_000_000, "lock_retry_interval": 0}),
        ('{"time_format":1}', {"time_format": "rfc3339"}),
        ('{"encryption_keys":{"a":"x","b":""}}', {"encryption_keys": {"a": "x", "b": ""}}),
        ('{"redact_patterns":[]}', {"redact_patterns": ()}),
        ("{}", {"redact_patterns": None, "db_read_timeout": 600_000_000_000, "health_check_timeout": 5_000_000_000}),
    ],
)
def test_what_is_accepted(text: str, expected: dict[str, object]) -> None:
    config = parsed(text)
    assert {name: getattr(config, name) for name in expected} == expected


def test_nested_objects_given_twice_complete_each_other() -> None:
    config = parsed('{"loggregator":{"loggregator_api_port":5},"Loggregator":{"loggregator_api_host":"h"}}')
    assert config.loggregator.address == "h:5"
    assert config.loggregator.batch_max_size == 100


def test_unknown_keys_are_told_once() -> None:
    text = b'{"rep_require_tls":true,"rep_require_tls":1,"loggregator":{"loggregator_use_v2_api":true}}'
    assert parse_config(text, BBSConfig)[1] == ("rep_require_tls", "loggregator_use_v2_api")


@pytest.mark.parametrize("row", [row for row in keys(BBSConfig) if row.kind is not Kind.NESTED], ids=lambda r: r.name)
def test_every_key_is_read_into_its_attribute(row: object) -> None:
    kind, name, attribute = row.kind, row.name, row.attribute  # type: ignore[attr-defined]
    written, expected = {
        Kind.TEXT: ("text", "text"),
        Kind.FLAG: (True, True),
        Kind.INTEGER: (7, 7),
        Kind.DURATION: ("7ms", 7_000_000),
        Kind.TEXTS: (["a"], ("a",)),
        Kind.TEXT_MAP: ({"a": "b"}, {"a": "b"}),
        Kind.TIME_FORMAT: ("rfc3339", "rfc3339"),
    }[kind]
    assert getattr(parsed(json.dumps({name: written})), attribute) == expected


@pytest.mark.parametrize(
    ("path", "error"),
    [("", "open : no such file or directory"), ("/no/such", "open /no/such: no such file or directory")],
)
def test_a_missing_file(path: str, error: str) -> None:
    with pytest.raises(BadConfig) as refusal:
        read_config(path, BBSConfig)
    assert str(refusal.value) == error


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as refusal:
        read_config(str(tmp_path), BBSConfig)
    assert str(refusal.value) == f"read {tmp_path}: is a directory"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1500ms", 1_500_000_000),
        ("+1s", 10**9),
        ("-1m", -60 * 10**9),
        ("1h2m3.5s", 3_723_500_000_000),
        ("0", 0),
        ("1us", 1000),
        ("1µs", 1000),
        ("1μs", 1000),
        (".5s", 500_000_000),
        ("1.s", 10**9),
        ("-0", 0),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (10**9, "1s"),
        (60 * 10**9, "1m0s"),
        (100_000_000, "100ms"),
        (1_500_000_000, "1.5s"),
        (1500, "1.5µs"),
        (3600 * 10**9, "1h0m0s"),
        (-(10**9), "-1s"),
        (7, "7ns"),
    ],
)
def test_durations_are_shown_as_the_reference_does(ns: int, text: str) -> None:
    assert format_duration(ns) == text


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_shown_duration_reads_back(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns


@given(st.binary())
def test_no_file_breaks_the_decoder(content: bytes) -> None:
    refused = ""
    try:
        config = parse_config(content, BBSConfig)[0]
    except BadConfig as refusal:
        refused = str(refusal)
    assert refused or config.health_check_failure_threshold == 3


def test_the_table_for_the_readme() -> None:
    lines = markdown(BBSConfig).splitlines()
    assert "| `health_check_timeout` | `5s` | limit of one attempt; 0: 5 s |" in lines
    assert "| `advertise_url` |  | accepted, meaningless here |" in lines
    assert "| `loggregator.BatchFlushInterval` | `100ms` | longest wait of an envelope |" in lines
    assert "| `require_ssl` | `false` | the API is always mutual TLS; accepted, meaningless here |" in lines
    assert len(lines) == 2 + len(list(documented(BBSConfig)))
