"""The configuration of bbs-locket: every key of the reference's Locket, as a table (locket.md section 9)."""

from __future__ import annotations

from dataclasses import dataclass, field

from bbs_server.process.config import LoggregatorConfig
from bbs_server.process.config_file import NESTED, Kind, Use, key
from bbs_server.process.durations import MINUTE, SECOND

MEANINGLESS, REQUIRED = Use.MEANINGLESS, Use.REQUIRED


@dataclass(frozen=True, slots=True)
class LocketConfig:
    """One process's configuration. Durations in ns, all others as written."""

    listen_address: str = key(Kind.TEXT, "", "`host:port` of the gRPC listener", REQUIRED)
    ca_file: str = key(Kind.TEXT, "", "authority of the clients", REQUIRED)
    cert_file: str = key(Kind.TEXT, "", "certificate of the listener", REQUIRED)
    key_file: str = key(Kind.TEXT, "", "key of the listener", REQUIRED)
    database_connection_string: str = key(Kind.TEXT, "", "PostgreSQL URL or key=value text", REQUIRED)
    database_driver: str = key(Kind.TEXT, "", "`postgres`; `mysql` is refused", REQUIRED)
    sql_ca_cert_file: str = key(Kind.TEXT, "", "authority of the database, unless the string says `sslmode`")
    sql_enable_identity_verification: bool = key(Kind.FLAG, False, "check the database's host name too")
    db_connection_timeout: int = key(Kind.DURATION, 0, "", MEANINGLESS)
    db_read_timeout: int = key(Kind.DURATION, 10 * MINUTE, "", MEANINGLESS)
    db_write_timeout: int = key(Kind.DURATION, 10 * MINUTE, "", MEANINGLESS)
    db_operation_timeout: int = key(Kind.DURATION, 10 * SECOND, "limit of one call's work; 0: 10 s")
    max_open_database_connections: int = key(Kind.INTEGER, 0, "most connections at a time; below 1: 16")
    max_database_connection_lifetime: int = key(Kind.DURATION, 0, "", MEANINGLESS)
    report_interval: int = key(Kind.DURATION, 0, "interval of metrics; must be positive", REQUIRED)
    enable_db_health_check: bool = key(Kind.FLAG, False, "end the process when the database stays away")
    health_check_failure_threshold: int = key(Kind.INTEGER, 3, "attempts of one database health check; 0: 3")
    health_check_interval: int = key(Kind.DURATION, 10 * SECOND, "pause between database health checks; 0: 10 s")
    health_check_timeout: int = key(Kind.DURATION, 5 * SECOND, "limit of one attempt; 0: 5 s")
    debug_address: str = key(Kind.TEXT, "", "`host:port` of the debug server; empty: none")
    log_level: str = key(Kind.TEXT, "", "`debug`, `info`, `error` or `fatal`", REQUIRED)
    time_format: str = key(Kind.TIME_FORMAT, "unix-epoch", "`unix-epoch` or 0, `rfc3339` or 1")
    max_data_string_length: int = key(Kind.INTEGER, 0, "longest string in log data; 0: unlimited")
    redact_secrets: bool = key(Kind.FLAG, False, "hide secrets in log data")
    redact_patterns: tuple[str, ...] | None = key(Kind.TEXTS, None, "what is a secret; missing: a built-in list")
    loggregator: LoggregatorConfig = field(default_factory=LoggregatorConfig, metadata=NESTED)


DEFAULTS = LocketConfig()
"""What a duration or a number that is 0 means, where the table says so."""
