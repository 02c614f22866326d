"""The life of a Locket process: start, serve, stop (locket.md section 9)."""

from __future__ import annotations

import asyncio
import signal
import time

from bbs_server.locket.config import DEFAULTS, LocketConfig
from bbs_server.locket.figures import Figures, expiry_samples, interval_samples
from bbs_server.locket.health import LocketHealthCheck
from bbs_server.locket.locks import Locks
from bbs_server.locket.options import Options
from bbs_server.locket.refusal import Refusal
from bbs_server.locket.server import Identity, serve_locks
from bbs_server.locket.service import TYPES
from bbs_server.process.crash import Ended, Panic, fatal
from bbs_server.process.database_health import Rounds, database_health
from bbs_server.process.debug import debug_server
from bbs_server.process.durations import MINUTE, SECOND
from bbs_server.process.group import GroupFailed, Member, Ready, pause, run_group
from bbs_server.process.lager import Logger
from bbs_server.process.loggregator import Loggregator, NoEmitter
from bbs_server.process.parts import make_emitter
from bbs_server.process.plain_http import PlainServer
from bbs_server.store.conninfo import ConnectionSettings, parse
from bbs_server.store.errors import DATABASE_FAILURES, StartFailure, driver_text
from bbs_server.tls.contexts import BadCertificates, server_context

_EXPIRY_INTERVAL = MINUTE


async def run(config: LocketConfig, logger: Logger) -> None:
    """Start, serve and stop. Raises Panic for code 2 and Ended for code 1."""
    if config.report_interval <= 0:
        raise Panic("non-positive interval for NewTicker")
    emitter = make_emitter(config.loggregator, logger)
    _check_identity(config, logger)
    settings = _settings(config, logger)
    locks = await _open(config, settings, logger)
    interrupted = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    sending = asyncio.create_task(emitter.run())
    try:
        members = Members(config, settings, locks, emitter, interrupted, logger).all()
        await run_group(members, interrupted, lambda: logger.info("started"))
    except GroupFailed as problem:
        logger.error("exited-with-failure", problem)
        raise Ended(1) from None
    else:
        logger.info("exited")
    finally:
        sending.cancel()
        await asyncio.wait([sending], timeout=1.0)
        await locks.close()


def _check_identity(config: LocketConfig, logger: Logger) -> None:
    try:
        server_context(config.cert_file, config.key_file, config.ca_file)
    except BadCertificates as problem:
        raise fatal(logger, "invalid-tls-config", problem) from None


def _settings(config: LocketConfig, logger: Logger) -> ConnectionSettings:
    driver, text = config.database_driver, config.database_connection_string
    if driver != "postgres":
        raise fatal(logger, "invalid-driver-name", f"Unrecognized driver: {driver}")
    try:
        return parse(text, config.sql_ca_cert_file, config.sql_enable_identity_verification)
    except StartFailure as problem:
        raise fatal(logger, problem.action, problem) from None


async def _open(config: LocketConfig, settings: ConnectionSettings, logger: Logger) -> Locks:
    limit = (config.db_operation_timeout or DEFAULTS.db_operation_timeout) / SECOND
    try:
        return await Locks.open(settings, config.max_open_database_connections, config.enable_db_health_check, limit)
    except DATABASE_FAILURES as problem:
        raise fatal(logger, "sql-failed-to-connect", driver_text(problem)) from None


class Members:
    """What a Locket process consists of, in the order in which it starts."""

    def __init__(
        self,
        config: LocketConfig,
        settings: ConnectionSettings,
        locks: Locks,
        emitter: Loggregator | NoEmitter,
        interrupted: asyncio.Event,
        logger: Logger,
    ) -> None:
        self._config = config
        self._settings = settings
        self._locks = locks
        self._emitter = emitter
        self._interrupted = interrupted
        self._logger = logger
        self._figures = Figures()

    def all(self) -> list[Member]:
        members = []
        if self._config.debug_address:
            members.append(_plain("debug-server", debug_server(self._config.debug_address, self._logger.sink)))
        if self._config.enable_db_health_check:
            members.append(self._database_health())
        return [*members, Member("server", self._serve), self._report(), self._report_expired()]

    def _database_health(self) -> Member:
        migrated = asyncio.Event()
        migrated.set()
        rounds = Rounds.configured(self._config, DEFAULTS)
        check = LocketHealthCheck(self._settings, self._locks.statistics, time.time_ns)
        return database_health(check, rounds, migrated, self._logger)

    async def _serve(self, ready: Ready, stopping: asyncio.Event) -> None:
        """Serve until the end, which a missing table brings about, too."""
        options = Options(
            on_unrecoverable=self._interrupted.set,
            log=self._logger.session("handler").log,
        )
        identity = _identity(self._config)
        async with serve_locks(self._locks, identity, self._config.listen_address, self._figures, options):
            ready()
            await stopping.wait()

    def _report(self) -> Member:
        """Sends what there is every `report_interval`; a database that does not answer costs one report."""

        async def run(ready: Ready, stopping: asyncio.Event) -> None:
            ready()
            while await pause(stopping, self._config.report_interval):
                try:
                    counts = [await self._locks.count(type_) for type_ in TYPES.values()]
                except Refusal as problem:
                    self._logger.error("failed-to-count-locks", problem)
                else:
                    self._emitter.emit(interval_samples(self._figures, self._locks.statistics, *counts))

        return Member("metrics-notifier", run)

    def _report_expired(self) -> Member:
        async def run(ready: Ready, stopping: asyncio.Event) -> None:
            ready()
            while await pause(stopping, _EXPIRY_INTERVAL):
                self._emitter.emit(expiry_samples(self._figures))

        return Member("expiration-metrics-notifier", run)


def _identity(config: LocketConfig) -> Identity:
    return Identity(config.ca_file, config.cert_file, config.key_file)


def _plain(name: str, server: PlainServer) -> Member:
    async def run(ready: Ready, stopping: asyncio.Event) -> None:
        await server.start()
        ready()
        await stopping.wait()
        await server.stop()

    return Member(name, run)
