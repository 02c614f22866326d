"""Connection strings as PostgreSQL's own tools read them, and connecting with them (storage.md 6).

Two forms, `key=value` pairs and URLs; what they leave out comes from the `PG…` environment, a service file, or the
defaults.
"""

from __future__ import annotations

import asyncio
import configparser
import getpass
import os
import socket
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

from bbs_server.store.errors import DATABASE_FAILURES, StartFailure, Unreachable, driver_text, is_connection_loss

_BLANKS = " \t\n\r\v\f"
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_FINAL = ("28P01", "28000", "3D000", "42501")
"""Answers after which another host or transport is not tried."""

_CONNECT_LIMIT = 30.0
"""s for one attempt to connect where the connection string says nothing."""
_SILENCE_LIMIT = 15
"""s after which a peer that acknowledges nothing counts as gone."""
_SOCKET_OPTIONS = (
    # Linux's and macOS's names of the same; what a platform lacks is left out.
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPALIVE", 5),
    ("TCP_KEEPINTVL", 3),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 1000 * _SILENCE_LIMIT),
)
"""Probes of an idle connection, and how long data may go unacknowledged."""

_ENVIRONMENT = {
    "PGHOST": "host",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGSERVICE": "service",
    "PGSERVICEFILE": "servicefile",
    "PGSSLMODE": "sslmode",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLPASSWORD": "sslpassword",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGAPPNAME": "application_name",
    "PGTZ": "timezone",
    "PGOPTIONS": "options",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
}
_DRIVER_KEYS = frozenset({"default_query_exec_mode", "statement_cache_capacity", "description_cache_capacity"})
"""How the reference's driver works with prepared statements. There is nothing here to adjust."""

_OUR_KEYS = frozenset(
    {*_ENVIRONMENT.values(), *_DRIVER_KEYS, "sslnegotiation", "sslsni"} - {"application_name", "timezone", "options"}
)
"""Keys that are not sent to the server as run-time parameters."""

_SOCKET_FOLDERS = ("/var/run/postgresql", tempfile.gettempdir())
_SESSION_ATTRIBUTES = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")


class _Malformed(Exception):
    """What is wrong with a connection string."""


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """Where and how to connect. `transports` are tried in order for each host: a TLS context, or None for plain."""

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str | None
    passfile: str | None
    database: str
    transports: tuple[ssl.SSLContext | None, ...]
    connect_timeout: float | None
    target_session_attrs: str
    server_settings: Mapping[str, str]

    async def connect(self) -> asyncpg.Connection[Any]:
        """A new connection to the first host that accepts it.

        Raises Unreachable.
        """
        problem: BaseException = OSError("no host")
        host, port = self.hosts[0]
        for host, port in self.hosts:
            for transport in self.transports:
                try:
                    return await self._connect_to(host, port, transport)
                except DATABASE_FAILURES as caught:
                    problem = caught
                    if getattr(caught, "sqlstate", None) in _FINAL:
                        raise Unreachable(self._unreachable_text(host, port, problem)) from problem
        raise Unreachable(self._unreachable_text(host, port, problem)) from problem

    async def _connect_to(self, host: str, port: int, transport: ssl.SSLContext | None) -> asyncpg.Connection[Any]:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            host=host,
            port=port,
            user=self.user,
            password=self.password,
            passfile=self.passfile,
            database=self.database,
            # A socket has no TLS, whatever the mode says.
            ssl="disable" if transport is None or host.startswith("/") else transport,
            timeout=self.connect_timeout,
            target_session_attrs=self.target_session_attrs,
            server_settings=dict(self.server_settings),
        )
        _notice_silence(connection)
        return connection

    def _unreachable_text(self, host: str, port: int, problem: BaseException) -> str:
        reason = _reason(host, port, problem)
        return f"failed to connect to `user={self.user} database={self.database}`: {host}:{port} ({host}): {reason}"


def _notice_silence(connection: asyncpg.Connection[Any]) -> None:
    """Have the system end a connection whose packets are lost: TCP alone takes a quarter of an hour, or hours if idle.

    The driver does so for none of its connections, and has no other way to their socket.
    """
    transport: asyncio.Transport = connection._transport
    link: socket.socket = transport.get_extra_info("socket")
    if link.family not in (socket.AF_INET, socket.AF_INET6):
        return
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SOCKET_OPTIONS:
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reason(host: str, port: int, problem: BaseException) -> str:
    if isinstance(problem, ssl.SSLError):
        return f"tls error: {problem}"
    if isinstance(problem, asyncpg.PostgresError) and problem.severity is not None:
        return f"server error: {driver_text(problem)}"
    if isinstance(problem, ConnectionRefusedError):
        return f"dial error: dial tcp {host}:{port}: connect: connection refused"
    if isinstance(problem, TimeoutError):
        return f"dial error: timeout: dial tcp {host}:{port}: i/o timeout"
    if is_connection_loss(problem) and not str(problem):
        return driver_text(problem)
    return f"dial error: dial tcp {host}:{port}: {problem}"


def parse(
    text: str,
    ca_file: str = "",
    identity_verification: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> ConnectionSettings:
    """Read a connection string; `ca_file` and `identity_verification` are the two `sql_…` keys of the configuration.

    The two are enforced where the string does not say `sslmode` (spec/README.md, deviation 5). Raises StartFailure with
    the log action of server.md 3.1 step 6; passwords are masked in its text.
    """
    try:
        said = _parse_url(text) if text.startswith(("postgres://", "postgresql://")) else _parse_pairs(text)
        values = _complete(said, environment)
        settings = ConnectionSettings(
            hosts=_hosts(values),
            user=values.get("user") or getpass.getuser(),
            password=values.get("password") or None,
            passfile=values.get("passfile") or None,
            database=values.get("dbname") or values.get("user") or getpass.getuser(),
            transports=_transports(values, ca_file, identity_verification, explicit="sslmode" in said),
            connect_timeout=_seconds(values.get("connect_timeout", "")),
            target_session_attrs=_session_attributes(values.get("target_session_attrs") or "any"),
            server_settings={key: value for key, value in values.items() if key not in _OUR_KEYS},
        )
    except _Malformed as problem:
        raise StartFailure("invalid-db-connection-string", f"cannot parse `{masked(text)}`: {problem}") from None
    if ca_file:
        _check_ca(ca_file)
    return settings


def masked(text: str) -> str:
    """A connection string that may be shown: passwords are `xxxxx`."""
    if text.startswith(("postgres://", "postgresql://")):
        try:
            parts = urlsplit(text)
        except ValueError:
            return "xxxxx"
        login, at, place = parts.netloc.rpartition("@")
        user, colon, _ = login.partition(":")
        place = f"{user}:xxxxx@{place}" if colon else f"{login}{at}{place}"
        query = "&".join(f"{n}=xxxxx" if "password" in n else f"{n}{e}{v}" for n, e, v in _query_parts(parts.query))
        return parts._replace(netloc=place, query=query).geturl()
    try:
        pairs = _parse_pairs(text)
    except _Malformed:
        # What cannot be read may hide a password anywhere behind its key.
        head, key, _ = text.partition("password")
        return f"{head}{key}=xxxxx" if key else text
    if not pairs.get("password") and not pairs.get("sslpassword"):
        return text
    shown = {key: "xxxxx" if "password" in key else value for key, value in pairs.items()}
    return " ".join(f"{key}={value}" for key, value in shown.items())


def _query_parts(query: str) -> Iterator[tuple[str, str, str]]:
    return (part.partition("=") for part in query.split("&") if part)


def _parse_pairs(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    rest = text.lstrip(_BLANKS)
    while rest:
        key, equals, rest = rest.partition("=")
        key = key.strip(_BLANKS)
        if not equals or not key:
            raise _Malformed("failed to parse as keyword/value (invalid keyword/value)")
        value, rest = _value(rest.lstrip(_BLANKS))
        values[key] = value
        rest = rest.lstrip(_BLANKS)
    return values


def _value(text: str) -> tuple[str, str]:
    """The value at the start of the text, unescaped, and what comes after it."""
    quoted = text.startswith("'")
    ends = "'" if quoted else _BLANKS
    out: list[str] = []
    place = 1 if quoted else 0
    while place < len(text) and text[place] not in ends:
        if text[place] == "\\":
            place += 1
            if place == len(text):
                raise _Malformed("failed to parse as keyword/value (invalid backslash)")
        out.append(text[place])
        place += 1
    if quoted and place == len(text):
        raise _Malformed("failed to parse as keyword/value (unterminated quoted string in connection info string)")
    return "".join(out), text[place + 1 :]


def _parse_url(text: str) -> dict[str, str]:
    """Host and port lists stay comma-separated, as in the other form."""
    try:
        parts = urlsplit(text)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as problem:
        raise _Malformed(f"failed to parse as URL ({problem})") from None
    values: dict[str, str] = {}
    login, _, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    hosts, ports = [], []
    for place in places.split(",") if places else ():
        host, port = _host_and_port(place)
        hosts.append(unquote(host))
        ports.append(port)
    found = {
        "user": unquote(user),
        "password": unquote(password),
        "host": ",".join(hosts),
        "port": ",".join(ports) if any(ports) else "",
        "dbname": unquote(parts.path.lstrip("/")),
    }
    values.update({key: value for key, value in found.items() if value})
    values.update({"dbname" if key == "database" else key: value for key, value in query})
    return values


def _host_and_port(place: str) -> tuple[str, str]:
    if place.startswith("["):
        host, bracket, port = place[1:].partition("]")
        if not bracket:
            raise _Malformed("failed to parse as URL (missing ']' in host)")
        return host, port.removeprefix(":")
    host, _, port = place.rpartition(":") if ":" in place else (place, "", "")
    return host, port


def _complete(said: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The string's values over the service's over the environment's."""
    values = {key: environment[name] for name, key in _ENVIRONMENT.items() if environment.get(name)}
    service = said.get("service") or values.get("service")
    if service:
        values.update(_service(service, said.get("servicefile") or values.get("servicefile")))
    values.update(said)
    return values


def _service(name: str, file: str | None) -> dict[str, str]:
    path = Path(file) if file else Path.home() / ".pg_service.conf"
    services = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        services.read_string(path.read_text())
        return dict(services[name])
    except KeyError:
        raise _Malformed(f"failed to read service (unable to find service: {name})") from None
    except (OSError, configparser.Error) as problem:
        raise _Malformed(f"failed to read service ({problem})") from None


def _hosts(values: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    hosts = (values.get("host") or _default_host()).split(",")
    ports = (values.get("port") or "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise _Malformed("invalid port (the numbers of hosts and ports differ)")
    return tuple((host, _port(port)) for host, port in zip(hosts, ports, strict=True))


def _default_host() -> str:
    return next((folder for folder in _SOCKET_FOLDERS if Path(folder, ".s.PGSQL.5432").exists()), "localhost")


def _port(text: str) -> int:
    try:
        port = int(text or "5432")
    except ValueError:
        raise _Malformed(f'invalid port (strconv.ParseUint: parsing "{text}": invalid syntax)') from None
    if not 1 <= port <= 65535:
        raise _Malformed("invalid port (outside range)")
    return port


def _seconds(text: str) -> float | None:
    """`connect_timeout` in s; 0 means no limit."""
    if not text:
        return _CONNECT_LIMIT
    try:
        seconds = int(text)
    except ValueError:
        raise _Malformed(f'invalid connect_timeout (strconv.ParseInt: parsing "{text}": invalid syntax)') from None
    if seconds < 0:
        raise _Malformed("invalid connect_timeout (negative timeout)")
    return seconds or None


def _session_attributes(text: str) -> str:
    if text not in _SESSION_ATTRIBUTES:
        raise _Malformed(f"unknown target_session_attrs value: {text}")
    return text


def _transports(
    values: Mapping[str, str], ca_file: str, identity_verification: bool, explicit: bool
) -> tuple[ssl.SSLContext | None, ...]:
    mode = values.get("sslmode") or "prefer"
    root = values.get("sslrootcert") or ""
    if mode not in _SSL_MODES:
        raise _Malformed("failed to configure TLS (sslmode is invalid)")
    if not explicit and ca_file:
        _check_ca(ca_file)
        mode, root = ("verify-full" if identity_verification else "verify-ca"), ca_file
    if mode == "disable":
        return (None,)
    context = _context(values, mode, root)
    return {"allow": (None, context), "prefer": (context, None)}.get(mode, (context,))


def _context(values: Mapping[str, str], mode: str, root: str) -> ssl.SSLContext:
    """With a root certificate, `require` verifies like `verify-ca` (storage.md 6.1)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verifies = mode.startswith("verify-") or (mode == "require" and bool(root))
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    certificate, key = values.get("sslcert") or "", values.get("sslkey") or ""
    if bool(certificate) != bool(key):
        raise _Malformed('failed to configure TLS (both "sslcert" and "sslkey" are required)')
    try:
        if root:
            context.load_verify_locations(cafile=root)
        elif verifies:
            context.load_default_certs()
        if certificate:
            password = values.get("sslpassword") or ""
            context.load_cert_chain(certificate, key, password=lambda: password)
    except (OSError, ValueError) as problem:
        what = root if root and not Path(root).is_file() else certificate or root
        raise _Malformed(f"failed to configure TLS (unable to read {what}: {problem})") from None
    return context


def _check_ca(path: str) -> None:
    try:
        pem = Path(path).read_text(errors="replace")
    except OSError as problem:
        reason = (problem.strerror or "").lower()
        raise StartFailure("failed-to-read-sql-ca-file", f"open {path}: {reason}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        raise StartFailure("failed-to-parse-sql-ca", "failed to parse sql ca") from None
