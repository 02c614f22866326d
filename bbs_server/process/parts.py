"""The parts of a BBS process, made one after the other: the sequential part of the start (server.md 3.1)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bbs_server.core.context import Settings
from bbs_server.core.log import Log
from bbs_server.effects.auctioneer import Auctioneer
from bbs_server.effects.dispatcher import Dispatcher
from bbs_server.effects.hubs import Hubs
from bbs_server.effects.lock import MasterLock
from bbs_server.effects.locket import Locket, LocketSettings, LocketUnreachable
from bbs_server.effects.peer import Peer
from bbs_server.effects.presences import Presences
from bbs_server.effects.reps import Reps
from bbs_server.process import loggregator
from bbs_server.process.access_log import open_access_log
from bbs_server.process.config import BBSConfig, LoggregatorConfig
from bbs_server.process.crash import Panic, failure, fatal
from bbs_server.process.durations import SECOND, format_duration
from bbs_server.process.health import BadAddress, resolved
from bbs_server.process.lager import Logger
from bbs_server.process.loggregator import Loggregator, NoEmitter
from bbs_server.process.master_lock import LocalLock, Lock, NoCells
from bbs_server.store.errors import StartFailure
from bbs_server.store.opening import Database, open_database
from bbs_server.tls.contexts import BadCertificates, client_context, server_context

_SESSIONS: Mapping[str, str] = {
    "running-migration": "migration-manager",
    "migration-failed": "migration-manager",
    "finished-migrations": "migration-manager",
    "failed-to-read-run-info": "migration-manager",
    "unknown-encryption-key-lable": "encryptor",
    "encryption-started": "encryptor",
    "encryption-failed": "encryptor",
    "encryption-finished": "encryptor",
    "failed-to-scan-blob": "encryptor",
    "failed-to-decode-blob": "encryptor",
}
"""The log session of each action of the store; what is not listed belongs to `store`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the members are made of. Nothing listens yet; the database and Locket are connected."""

    emitter: Loggregator | NoEmitter
    health_address: str
    database: Database
    api_tls: ssl.SSLContext
    callback_peer: Peer
    locket: Locket | None
    presences: Presences | NoCells
    lock: Lock
    hubs: Hubs
    dispatcher: Dispatcher
    access_log: Logger | None


async def make_parts(config: BBSConfig, logger: Logger) -> Parts:
    """Steps 2 to 15. Raises Panic and Ended, after what the step's failure logs."""
    emitter = make_emitter(config.loggregator, logger)
    health_address = _health_address(config, logger)
    database = await _database(config, logger)
    rep_tls = _rep_tls(config, logger)
    auctioneer = _auctioneer(config, logger)
    access_log = _access_log(config, logger)
    api_tls, callback_tls = _api_tls(config, logger)
    locket = await _locket(config, logger)
    if not config.uuid:
        raise fatal(logger, "invalid-uuid", "invalid-uuid-from-config")
    if config.report_interval <= 0:
        # Quirk: no line in the log.
        raise Panic("non-positive interval for NewTicker")
    logger.info("report-interval", value=format_duration(config.report_interval))
    presences = NoCells() if locket is None else _presences(locket, config, logger)
    hubs = Hubs(logger.session("hub").log)
    reps = Reps(presences, Peer(rep_tls, _timeout(config)), logger.session("rep-client").log)
    return Parts(
        emitter=emitter,
        health_address=health_address,
        database=database,
        api_tls=api_tls,
        callback_peer=Peer(callback_tls, _timeout(config)),
        locket=locket,
        presences=presences,
        lock=_lock(locket, database, config, logger),
        hubs=hubs,
        dispatcher=Dispatcher(hubs, auctioneer, reps, presences, logger.session("effects").log),
        access_log=access_log,
    )


def core_settings(config: BBSConfig) -> Settings:
    return Settings(
        max_task_retries=config.max_task_retries,
        kick_task_duration=config.kick_task_duration,
        expire_pending_task_duration=config.expire_pending_task_duration,
        expire_completed_task_duration=config.expire_completed_task_duration,
    )


def make_emitter(config: LoggregatorConfig, logger: Logger) -> Loggregator | NoEmitter:
    """Step 2. A path that is set but unreadable ends the start; none at all turns the transport off."""
    if config.absent:
        return NoEmitter()
    try:
        return Loggregator(config, loggregator.credentials(config))
    except (OSError, ValueError) as problem:
        raise failure(logger, "failed-to-initialize-metron-client", problem) from None


def _health_address(config: BBSConfig, logger: Logger) -> str:
    try:
        return resolved(config.health_address)
    except BadAddress as problem:
        raise fatal(logger, problem.action, problem) from None


async def _database(config: BBSConfig, logger: Logger) -> Database:
    try:
        return await open_database(
            config.database_connection_string,
            active_key_label=config.active_key_label,
            encryption_keys=config.encryption_keys,
            driver=config.database_driver,
            ca_file=config.sql_ca_cert_file,
            identity_verification=config.sql_enable_identity_verification,
            log=store_log(logger),
        )
    except StartFailure as problem:
        raise fatal(logger, problem.action, problem) from None


def store_log(logger: Logger) -> Log:
    """Hands the store's lines to the sessions they belong to, which are made once."""
    sessions = {name: logger.session(name) for name in ("store", *dict.fromkeys(_SESSIONS.values()))}

    def log(level: str, action: str, data: Mapping[str, Any]) -> None:
        sessions[_SESSIONS.get(action, "store")].log(level, action, data)

    return log


def _rep_tls(config: BBSConfig, logger: Logger) -> ssl.SSLContext | None:
    """Quirk: one or two of the three files are as good as none."""
    files = (config.rep_ca_cert, config.rep_client_cert, config.rep_client_key)
    if not all(files):
        return None
    try:
        return client_context(*files)
    except BadCertificates as problem:
        raise fatal(logger, "new-rep-client-factory-failed", problem) from None


def _auctioneer(config: BBSConfig, logger: Logger) -> Auctioneer:
    if not config.auctioneer_address:
        raise fatal(logger, "auctioneer-address-validation-failed", "auctioneerAddress is required")
    log = logger.session("auctioneer-client").log
    files = (config.auctioneer_ca_cert, config.auctioneer_client_cert, config.auctioneer_client_key)
    plain = Peer(None, _timeout(config))
    if not any(files):
        return Auctioneer(config.auctioneer_address, plain, None, log)
    try:
        peer = Peer(client_context(*files), _timeout(config))
    except BadCertificates as problem:
        raise fatal(logger, "failed-to-construct-auctioneer-client", problem) from None
    return Auctioneer(config.auctioneer_address, peer, None if config.auctioneer_require_tls else plain, log)


def _access_log(config: BBSConfig, logger: Logger) -> Logger | None:
    if not config.access_log_path:
        return None
    try:
        return open_access_log(config.access_log_path)
    except OSError as problem:
        raise failure(logger, "invalid-access-log-path", problem) from None


def _api_tls(config: BBSConfig, logger: Logger) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The API's side, and that of task callbacks, which have the same identity and trust."""
    try:
        return (
            server_context(config.cert_file, config.key_file, config.ca_file),
            client_context(config.ca_file, config.cert_file, config.key_file),
        )
    except BadCertificates as problem:
        raise fatal(logger, "tls-configuration-failed", problem) from None


async def _locket(config: BBSConfig, logger: Logger) -> Locket | None:
    if not config.locket_address:
        return None
    settings = LocketSettings(
        config.locket_address,
        config.locket_ca_cert_file,
        config.locket_client_cert_file,
        config.locket_client_key_file,
        config.locket_client_keepalive_time,
        config.locket_client_keepalive_timeout,
    )
    try:
        locket = Locket(settings)
        await locket.connect()
    except (BadCertificates, LocketUnreachable) as problem:
        raise fatal(logger, "failed-to-create-locket-client", problem) from None
    return locket


def _presences(locket: Locket, config: BBSConfig, logger: Logger) -> Presences:
    return Presences(locket, config.db_connection_timeout / SECOND, logger.session("locket-cells").log)


def _lock(locket: Locket | None, database: Database, config: BBSConfig, logger: Logger) -> Lock:
    session = logger.session("locket-lock")
    if locket is None:
        return LocalLock(database.advisory_lock(), session)
    ttl, interval = config.lock_ttl / SECOND, config.lock_retry_interval / SECOND
    return MasterLock(locket, config.uuid, ttl, interval, session.log)


def _timeout(config: BBSConfig) -> float:
    return config.communication_timeout / SECOND
