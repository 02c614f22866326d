"""The configuration of bbs-server: every key of the reference, as a table (server.md 2.2 to 2.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bbs_server.process.config_file import NESTED, BadConfig, Kind, Use, key
from bbs_server.process.durations import MILLISECOND, MINUTE, SECOND

__all__ = ["AdvancedMetrics", "BBSConfig", "BadConfig", "LoggregatorConfig", "RouteConfig"]

MEANINGLESS, REQUIRED, EXTENSION = Use.MEANINGLESS, Use.REQUIRED, Use.EXTENSION


@dataclass(frozen=True, slots=True)
class LoggregatorConfig:
    """Where metrics go. Without any certificate path that transport is off (spec/README.md deviation 7)."""

    api_host: str = key(Kind.TEXT, "127.0.0.1", "host of the agent, if the port is set", name="loggregator_api_host")
    api_port: int = key(Kind.INTEGER, 0, "port of the agent; 0: `localhost:3458`", name="loggregator_api_port")
    ca_path: str = key(Kind.TEXT, "", "authority of the agent", name="loggregator_ca_path")
    cert_path: str = key(Kind.TEXT, "", "client certificate", name="loggregator_cert_path")
    key_path: str = key(Kind.TEXT, "", "client key", name="loggregator_key_path")
    job_origin: str = key(Kind.TEXT, "", "tag `origin` of every envelope", name="loggregator_job_origin")
    source_id: str = key(Kind.TEXT, "", "`source_id` of metrics", name="loggregator_source_id")
    instance_id: str = key(Kind.TEXT, "", "`instance_id` of metrics", name="loggregator_instance_id")
    batch_max_size: int = key(Kind.UNSIGNED, 100, "envelopes per batch", name="loggregator_batch_max_size")
    batch_flush_interval: int = key(
        Kind.NANOSECONDS, 100 * MILLISECOND, "longest wait of an envelope", name="BatchFlushInterval"
    )
    job_deployment: str = key(Kind.TEXT, "", "", MEANINGLESS, "loggregator_job_deployment")
    job_name: str = key(Kind.TEXT, "", "", MEANINGLESS, "loggregator_job_name")
    job_index: str = key(Kind.TEXT, "", "", MEANINGLESS, "loggregator_job_index")
    job_ip: str = key(Kind.TEXT, "", "", MEANINGLESS, "loggregator_job_ip")
    app_metric_exclusion_filter: tuple[str, ...] = key(
        Kind.TEXTS, (), "", MEANINGLESS, "loggregator_app_metric_exclusion_filter"
    )

    @property
    def address(self) -> str:
        return f"{self.api_host}:{self.api_port}" if self.api_port else "localhost:3458"

    @property
    def absent(self) -> bool:
        return not (self.ca_path or self.cert_path or self.key_path)


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """Names of routes that get metrics of their own."""

    request_count: tuple[str, ...] = key(Kind.TEXTS, (), "routes with a `RequestCount.<route>`")
    request_latency: tuple[str, ...] = key(Kind.TEXTS, (), "routes with a `RequestLatency.<route>`")


@dataclass(frozen=True, slots=True)
class AdvancedMetrics:
    enabled: bool = key(Kind.FLAG, False, "send metrics per route")
    route_config: RouteConfig = field(default_factory=RouteConfig, metadata=NESTED)


@dataclass(frozen=True, slots=True)
class BBSConfig:
    """One process's configuration. Durations in ns, all others as written."""

    access_log_path: str = key(Kind.TEXT, "", "file that gets two lines per request; empty: none")
    active_key_label: str = key(Kind.TEXT, "", "label of the key that encrypts", REQUIRED)
    encryption_keys: Mapping[str, str] = key(
        Kind.TEXT_MAP, {}, "label to passphrase, labels of 1 to 127 bytes", REQUIRED
    )
    advanced_metrics: AdvancedMetrics = field(default_factory=AdvancedMetrics, metadata=NESTED)
    advertise_url: str = key(Kind.TEXT, "", "", MEANINGLESS)
    auctioneer_address: str = key(Kind.TEXT, "", "base URL of the auctioneer", REQUIRED)
    auctioneer_ca_cert: str = key(Kind.TEXT, "", "authority of the auctioneer")
    auctioneer_client_cert: str = key(Kind.TEXT, "", "client certificate for the auctioneer")
    auctioneer_client_key: str = key(Kind.TEXT, "", "client key for the auctioneer")
    auctioneer_require_tls: bool = key(Kind.FLAG, False, "never fall back to plain HTTP")
    ca_file: str = key(Kind.TEXT, "", "authority of the API's clients", REQUIRED)
    cert_file: str = key(Kind.TEXT, "", "certificate of the API", REQUIRED)
    key_file: str = key(Kind.TEXT, "", "key of the API", REQUIRED)
    communication_timeout: int = key(Kind.DURATION, 0, "limit of one outgoing HTTP request; 0: none")
    converge_repeat_interval: int = key(Kind.DURATION, 0, "pause between convergence passes; 0 is no pause at all")
    convergence_workers: int = key(Kind.INTEGER, 0, "extra instances that convergence stops at a time; below 1: 20")
    database_connection_string: str = key(Kind.TEXT, "", "PostgreSQL URL or key=value text", REQUIRED)
    database_driver: str = key(Kind.TEXT, "", "`postgres`; `mysql` is refused", REQUIRED)
    db_connection_timeout: int = key(Kind.DURATION, 0, "limit of a presence query to Locket; 0: 10 s")
    db_read_timeout: int = key(Kind.DURATION, 10 * MINUTE, "", MEANINGLESS)
    db_write_timeout: int = key(Kind.DURATION, 10 * MINUTE, "", MEANINGLESS)
    debug_address: str = key(Kind.TEXT, "", "`host:port` of the debug server; empty: none")
    debug_lrp_start_heartbeats: bool = key(Kind.FLAG, False, "log repeated starts at debug level", MEANINGLESS)
    desired_lrp_creation_timeout: int = key(Kind.DURATION, 0, "", MEANINGLESS)
    enable_db_health_check: bool = key(Kind.FLAG, False, "end the process when the database stays away")
    health_check_failure_threshold: int = key(Kind.INTEGER, 3, "attempts of one database health check; 0: 3")
    health_check_interval: int = key(Kind.DURATION, 10 * SECOND, "pause between database health checks; 0: 10 s")
    health_check_timeout: int = key(Kind.DURATION, 5 * SECOND, "limit of one attempt; 0: 5 s")
    expire_completed_task_duration: int = key(Kind.DURATION, 0, "age at which completed tasks are deleted")
    expire_pending_task_duration: int = key(Kind.DURATION, 0, "age at which pending tasks fail")
    kick_task_duration: int = key(Kind.DURATION, 0, "age at which callbacks are tried again")
    health_address: str = key(Kind.TEXT, "", "`host:port` of the health endpoint", REQUIRED)
    listen_address: str = key(Kind.TEXT, "", "`host:port` of the API; empty: a free port")
    lock_ttl: int = key(Kind.DURATION, 0, "life of the lock without renewal, in whole seconds; with Locket at least 1")
    lock_retry_interval: int = key(Kind.DURATION, 0, "pause between lock calls and limit of each")
    locket_address: str = key(Kind.TEXT, "", "Locket; empty: a PostgreSQL advisory lock takes its place")
    locket_ca_cert_file: str = key(Kind.TEXT, "", "authority of Locket")
    locket_client_cert_file: str = key(Kind.TEXT, "", "client certificate for Locket")
    locket_client_key_file: str = key(Kind.TEXT, "", "client key for Locket")
    locket_client_keepalive_time: int = key(Kind.INTEGER, 0, "seconds between pings, at least 10")
    locket_client_keepalive_timeout: int = key(Kind.INTEGER, 0, "seconds to wait for a ping's answer; 0: 20")
    log_level: str = key(Kind.TEXT, "", "`debug`, `info`, `error` or `fatal`", REQUIRED)
    time_format: str = key(Kind.TIME_FORMAT, "unix-epoch", "`unix-epoch` or 0, `rfc3339` or 1")
    max_data_string_length: int = key(Kind.INTEGER, 0, "longest string in log data; 0: unlimited")
    redact_secrets: bool = key(Kind.FLAG, False, "hide secrets in log data")
    redact_patterns: tuple[str, ...] | None = key(Kind.TEXTS, None, "what is a secret; missing: a built-in list")
    loggregator: LoggregatorConfig = field(default_factory=LoggregatorConfig, metadata=NESTED)
    max_open_database_connections: int = key(Kind.INTEGER, 0, "one writer needs a handful of connections", MEANINGLESS)
    max_idle_database_connections: int = key(Kind.INTEGER, 0, "", MEANINGLESS)
    max_database_connection_lifetime: int = key(Kind.DURATION, 0, "", MEANINGLESS)
    max_task_retries: int = key(Kind.INTEGER, 0, "rejections a task survives")
    rep_ca_cert: str = key(Kind.TEXT, "", "authority of the cells")
    rep_client_cert: str = key(Kind.TEXT, "", "client certificate for the cells")
    rep_client_key: str = key(Kind.TEXT, "", "client key for the cells")
    rep_client_session_cache_size: int = key(Kind.INTEGER, 0, "", MEANINGLESS)
    report_interval: int = key(Kind.DURATION, 0, "interval of request metrics; must be positive", REQUIRED)
    require_ssl: bool = key(Kind.FLAG, False, "the API is always mutual TLS", MEANINGLESS)
    session_name: str = key(Kind.TEXT, "", "log source and prefix of log messages")
    sql_ca_cert_file: str = key(Kind.TEXT, "", "authority of the database, unless the string says `sslmode`")
    sql_enable_identity_verification: bool = key(Kind.FLAG, False, "check the database's host name too")
    task_callback_workers: int = key(Kind.INTEGER, 0, "size of the callback pool; below 1: 1000")
    update_workers: int = key(Kind.INTEGER, 0, "instances are created in one command", MEANINGLESS)
    uuid: str = key(Kind.TEXT, "", "owner name in the lock, unique per process", REQUIRED)
    prometheus_listen_address: str = key(
        Kind.TEXT, "", "`host:port` of a Prometheus endpoint at `/metrics`; empty: none", EXTENSION
    )
    page_listen_address: str = key(
        Kind.TEXT, "", "`host:port` of the live page, plain HTTP, read-only; empty: none", EXTENSION
    )
