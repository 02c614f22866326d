"""The configuration file of each part of a stack."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bbs_server.dev.certificates import Authority
from bbs_server.dev.layout import Layout

CREATE_DATABASES = ('CREATE DATABASE "bbs"', 'CREATE DATABASE "locket"')

EVACUATION_SECONDS = 60.0
"""How long a cell of the stack tries to get its instances running elsewhere."""

Config = dict[str, Any]


def write_configs(layout: Layout) -> None:
    """Make certificates and configuration files anew where they are missing or differ."""
    authority = Authority(layout.certificates)
    authority.identity("client")
    for part in layout.parts():
        make = _MAKERS.get(part, _cell)
        config = make(layout, authority, part)
        if config:
            path = layout.config(part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=2) + "\n")


def database_url(layout: Layout, database: str) -> str:
    return f"postgres://postgres@127.0.0.1:{layout.port('postgres')}/{database}?sslmode=disable"


def _identity(authority: Authority, part: str, names: Mapping[str, str]) -> Config:
    """The three files of a part under the keys given for `ca`, `cert` and `key`."""
    identity = authority.identity(part)
    return {key: str(getattr(identity, name)) for name, key in names.items()}


_SERVER_KEYS = {"ca": "ca_file", "cert": "cert_file", "key": "key_file"}
_PLAIN_KEYS = {"ca": "ca", "cert": "cert", "key": "key"}
_AUCTIONEER_KEYS = {"ca": "auctioneer_ca_cert", "cert": "auctioneer_client_cert", "key": "auctioneer_client_key"}
_REP_KEYS = {"ca": "rep_ca_cert", "cert": "rep_client_cert", "key": "rep_client_key"}
_LOCKET_KEYS = {
    "ca": "locket_ca_cert_file",
    "cert": "locket_client_cert_file",
    "key": "locket_client_key_file",
}


def _none(layout: Layout, authority: Authority, part: str) -> Config:
    return {}


def _locket(layout: Layout, authority: Authority, part: str) -> Config:
    return {
        "listen_address": f"127.0.0.1:{layout.port(part)}",
        **_identity(authority, part, _SERVER_KEYS),
        "database_driver": "postgres",
        "database_connection_string": database_url(layout, "locket"),
        "max_open_database_connections": 4,
        "report_interval": "1m",
        "log_level": "info",
        "time_format": "rfc3339",
    }


def _bbs(layout: Layout, authority: Authority, part: str) -> Config:
    return {
        "session_name": "bbs",
        "uuid": "bbs-laptop",
        "log_level": "info",
        "time_format": "rfc3339",
        "listen_address": f"127.0.0.1:{layout.port('bbs')}",
        "health_address": f"127.0.0.1:{layout.port('bbs-health')}",
        "debug_address": f"127.0.0.1:{layout.port('bbs-debug')}",
        "prometheus_listen_address": f"127.0.0.1:{layout.port('bbs-metrics')}",
        "require_ssl": True,
        **_identity(authority, part, _SERVER_KEYS),
        "auctioneer_address": layout.url("auctioneer"),
        "auctioneer_require_tls": True,
        **_identity(authority, part, _AUCTIONEER_KEYS),
        **_identity(authority, part, _REP_KEYS),
        "locket_address": f"127.0.0.1:{layout.port('locket')}",
        **_identity(authority, part, _LOCKET_KEYS),
        "locket_client_keepalive_time": 10,
        "locket_client_keepalive_timeout": 22,
        "database_driver": "postgres",
        "database_connection_string": database_url(layout, "bbs"),
        "max_open_database_connections": 200,
        "max_idle_database_connections": 200,
        "encryption_keys": {"laptop": "a passphrase for this machine only"},
        "active_key_label": "laptop",
        "communication_timeout": "10s",
        "converge_repeat_interval": "2s",
        "db_connection_timeout": "5s",
        "kick_task_duration": "10s",
        "expire_pending_task_duration": "30m",
        "expire_completed_task_duration": "1h",
        "lock_ttl": "5s",
        "lock_retry_interval": "1s",
        "report_interval": "1m",
        "convergence_workers": 20,
        "update_workers": 1000,
        "task_callback_workers": 100,
        "max_task_retries": 3,
    }


def _auctioneer(layout: Layout, authority: Authority, part: str) -> Config:
    return {
        "port": layout.port(part),
        "bbs_url": layout.url("bbs"),
        **_identity(authority, part, _PLAIN_KEYS),
    }


def _cell(layout: Layout, authority: Authority, part: str) -> Config:
    number = layout.cell_names().index(part)
    return {
        "cell_id": part,
        "zone": f"z{number % 2 + 1}",
        "port": layout.port(part),
        "admin_port": layout.admin_port(part),
        "folder": str(layout.data(part)),
        "bbs_url": layout.url("bbs"),
        "locket_address": f"127.0.0.1:{layout.port('locket')}",
        **_identity(authority, part, _PLAIN_KEYS),
        "memory_mb": 8192,
        "disk_mb": 65536,
        "containers": 4000,
        "preloaded_rootfs": ["cflinuxfs4", "laptop"],
        "placement_tags": [],
        "optional_placement_tags": [],
        "presence_ttl_seconds": 5,
        "presence_interval_seconds": 1,
        "sync_interval_seconds": 3,
        "evacuation_timeout_seconds": EVACUATION_SECONDS,
    }


_MAKERS: Mapping[str, Callable[[Layout, Authority, str], Config]] = {
    "postgres": _none,
    "locket": _locket,
    "bbs": _bbs,
    "auctioneer": _auctioneer,
}


def client_identity(layout: Layout) -> tuple[Path, Path, Path]:
    """CA, certificate and key for people and tools."""
    return layout.client_identity()
