"""The life of a BBS process: the ordered start and stop of its members (server.md 3 to 7)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

from bbs_server.core.encoding import Answer
from bbs_server.core.outcome import Command, Query
from bbs_server.process import garbage
from bbs_server.process.config import BBSConfig
from bbs_server.process.converger import Converger
from bbs_server.process.crash import Ended
from bbs_server.process.database_health import Rounds, database_health
from bbs_server.process.debug import debug_server
from bbs_server.process.group import GroupFailed, Member, Ready, at_once, pause, run_group, unless
from bbs_server.process.health import health_server
from bbs_server.process.lager import Logger
from bbs_server.process.master_lock import lock_member
from bbs_server.process.metrics import (
    CONVERGENCE_INTERVAL,
    DATABASE_INTERVAL,
    RUNTIME_INTERVAL,
    Figures,
    Report,
    Requests,
    samples,
)
from bbs_server.process.parts import Parts, core_settings, make_parts
from bbs_server.process.plain_http import PlainServer, listen_error, split_address
from bbs_server.process.prometheus import Prometheus
from bbs_server.process.reports import reporter, request_reporter
from bbs_server.process.request_observer import RequestObserver
from bbs_server.store.errors import Deposed, driver_text
from bbs_server.store.writer import Writer
from bbs_server.wire.server import Server

_SECOND_CHANCE = 1.0


class StartFailed(Exception):
    """A member cannot start; the text is what the exit trace shows."""


class WriterDeposed(Exception):
    """Another writer has raised the epoch (design rule 6)."""


async def run(config: BBSConfig, logger: Logger) -> None:
    """Start, serve and stop. Raises Panic for code 2 and Ended for code 1."""
    parts = await make_parts(config, logger)
    life = Life(config, parts, logger)
    interrupted = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    code = await life.live(interrupted)
    if code:
        raise Ended(code)


class _LateWriter:
    """The writer as the API and convergence know it: they exist before there is one, and are not used before."""

    __slots__ = ("opened",)

    def __init__(self) -> None:
        self.opened: Writer | None = None

    def _writer(self) -> Writer:
        assert self.opened is not None, "used before the state was loaded"
        return self.opened

    def write(self, command: Command, request: Any, request_id: str = "") -> Coroutine[Any, Any, Answer]:
        return self._writer().write(command, request, request_id)

    def read(self, query: Query, request: Any, request_id: str = "") -> Coroutine[Any, Any, Answer]:
        return self._writer().read(query, request, request_id)

    def adopt_foreign_changes(self) -> Coroutine[Any, Any, int]:
        return self._writer().adopt_foreign_changes()


class Life:
    """One process from its parts to its end."""

    def __init__(self, config: BBSConfig, parts: Parts, logger: Logger) -> None:
        self._config = config
        self._parts = parts
        self._logger = logger
        self._emitter = parts.emitter
        self._figures = _figures(config, parts)
        self._writer = _LateWriter()
        self._migrated = asyncio.Event()
        self._serving = False
        self._started = False
        self._interrupted = asyncio.Event()
        self._deposed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._has_successor = False
        counted = config.prometheus_listen_address or config.page_listen_address
        self._prometheus = Prometheus(self._figures) if counted else None
        observer = RequestObserver(
            self._figures.requests,
            parts.emitter,
            logger,
            parts.access_log,
            timed=None if self._prometheus is None else self._prometheus.timed,
            unrecoverable=self._unrecoverable,
        )
        self._server = Server(
            context=parts.api_tls,
            writer=self._writer,
            presences=parts.presences,
            hubs=parts.hubs,
            ready=lambda: self._serving,
            observer=observer,
        )

    async def live(self, interrupted: asyncio.Event) -> int:
        """Run all members until the event is set or one of them ends. Returns the exit code."""
        self._interrupted = interrupted
        helpers = [asyncio.create_task(self._emitter.run()), asyncio.create_task(self._report_runtime())]
        try:
            await run_group(self._members(), interrupted, self._tell_started)
        except GroupFailed as problem:
            self._logger.error("exited-with-failure", problem)
            return 1
        else:
            self._logger.info("exited")
            return 0
        finally:
            await self._parts.database.close()
            if self._parts.locket is not None:
                await self._parts.locket.close()
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers, timeout=_SECOND_CHANCE)

    def _members(self) -> list[Member]:
        """In the order of server.md 3.2, plus `writer`, `prometheus` and `page`, which are ours."""
        config, figures, emitter = self._config, self._figures, self._emitter
        interval = config.report_interval
        members = []
        if config.debug_address:
            members.append(_listener("debug-server", debug_server(config.debug_address, self._logger.sink)))
        if config.enable_db_health_check:
            members.append(self._database_health())
        members.append(_listener("healthcheck", health_server(self._parts.health_address)))
        if self._prometheus is not None and config.prometheus_listen_address:
            server = self._prometheus.server(config.prometheus_listen_address)
            members.append(_listener("prometheus", server))
        page = [Member("page", self._run_page)] if config.page_listen_address else []
        return [
            *members,
            reporter("periodic-filedescriptor-metrics", Report.FILES, interval, figures, emitter),
            reporter("lock-held-metrics", Report.LOCK, interval, figures, emitter),
            lock_member(self._parts.lock, self._parts.database.stand_by, lambda: self._has_successor),
            at_once("set-lock-held-metrics", self._hold),
            Member("writer", self._run_writer),
            Member("workpool", self._run_workpool),
            Member("server", self._run_server),
            Member("migration-manager", self._run_migrations),
            Member("encryptor", self._run_encryptor),
            Member("hub-maintainer", self._run_hubs),
            at_once("bbs-election-metrics", lambda: self._send(Report.ELECTED)),
            request_reporter(interval, figures, emitter, self._logger),
            Member("converger", self._run_converger),
            reporter("lrp-stat-metron-notifier", Report.LRPS, CONVERGENCE_INTERVAL, figures, emitter),
            reporter("task-stat-metron-notifier", Report.TASKS, CONVERGENCE_INTERVAL, figures, emitter),
            reporter("db-stat-metron-notifier", Report.DATABASE, DATABASE_INTERVAL, figures, emitter),
            *page,
        ]

    # -- members -------------------------------------------------------------------------

    def _database_health(self) -> Member:
        rounds = Rounds.configured(self._config, _HEALTH)
        return database_health(self._parts.database.health_check(), rounds, self._migrated, self._logger)

    async def _run_writer(self, ready: Ready, stopping: asyncio.Event) -> None:
        """Ends after everything that writes and before the lock is released, or when another writer takes over."""
        ready()
        reason = await unless(stopping, _result(self._deposed))
        if self._writer.opened is not None:
            await self._writer.opened.close()
        if reason is not None:
            raise WriterDeposed(reason)

    async def _run_workpool(self, ready: Ready, stopping: asyncio.Event) -> None:
        ready()
        await stopping.wait()
        await self._parts.dispatcher.close()
        await self._parts.callback_peer.close()

    async def _run_server(self, ready: Ready, stopping: asyncio.Event) -> None:
        address = self._config.listen_address or ":0"
        try:
            host, port = split_address(address)
            await self._server.start(host or "", port)
        except OSError as problem:
            raise StartFailed(listen_error(address, problem)) from None
        ready()
        await stopping.wait()
        await self._server.stop()

    async def _run_migrations(self, ready: Ready, stopping: asyncio.Event) -> None:
        """An interrupted migration is abandoned with its transaction."""
        duration = await unless(stopping, self._migrate())
        if duration is None:
            return
        self._figures.migration_duration = duration
        self._send(Report.MIGRATED)
        self._migrated.set()
        ready()
        await stopping.wait()

    async def _migrate(self) -> int:
        try:
            await self._parts.database.raise_epoch()
            return await self._parts.database.migrate()
        except Exception as problem:
            self._has_successor |= isinstance(problem, Deposed)
            raise StartFailed(driver_text(problem)) from problem

    async def _run_encryptor(self, ready: Ready, stopping: asyncio.Event) -> None:
        """Serving begins here: no request sees the state before its key label is known and all of it is loaded."""
        writer = await unless(stopping, self._open())
        if writer is None:
            return
        self._serving = True
        ready()
        # The end of the process waits for it.
        try:
            duration = await self._parts.database.reencrypt(writer)
        except Deposed:
            self._has_successor = True
            raise
        if duration is not None:
            self._figures.encryption_duration = duration
            self._send(Report.ENCRYPTED)
        await stopping.wait()

    async def _open(self) -> Writer:
        database, dispatcher = self._parts.database, self._parts.dispatcher
        try:
            await database.check_key_label()
            if self._prometheus is not None:
                database.statistics.on_batch = self._prometheus.committed
            garbage.suspend()
            writer = await database.become_writer(
                dispatch=dispatcher,
                settings=core_settings(self._config),
                on_deposed=self._depose,
                # Only an error that a client has been told of ends the process (server.md section 7).
                on_unrecoverable=lambda message: None,
            )
        except Exception as problem:
            raise StartFailed(driver_text(problem)) from problem
        dispatcher.attach(writer, self._parts.callback_peer, self._config.task_callback_workers)
        self._writer.opened = writer
        garbage.settle()
        self._figures.pauses.watch()
        return writer

    async def _run_hubs(self, ready: Ready, stopping: asyncio.Event) -> None:
        ready()
        await stopping.wait()
        self._parts.hubs.close()

    async def _run_converger(self, ready: Ready, stopping: asyncio.Event) -> None:
        converger = Converger(
            self._writer,
            self._parts.presences,
            self._figures,
            self._config.convergence_workers,
            self._logger.session("converger"),
        )
        await converger.run(self._config.converge_repeat_interval, ready, stopping)

    async def _run_page(self, ready: Ready, stopping: asyncio.Event) -> None:
        # Imported here, as few processes serve the page and all of them should start fast.
        from bbs_server.page import LocalFeed, start_page

        address = self._config.page_listen_address
        registries = [] if self._prometheus is None else [self._prometheus.registry]
        feed = LocalFeed(self._writer, self._parts.hubs, self._parts.presences, registries)
        try:
            host, port = split_address(address)
            stop = await start_page(host or "127.0.0.1", port, feed)
        except OSError as problem:
            raise StartFailed(listen_error(address, problem)) from None
        ready()
        await stopping.wait()
        await stop()

    # -- what happens on the way ---------------------------------------------------------

    def _tell_started(self) -> None:
        self._started = True
        self._logger.info("started")

    def _hold(self) -> None:
        self._figures.lock_held = True

    def _depose(self, reason: str) -> None:
        self._has_successor = True
        if not self._deposed.done():
            self._deposed.set_result(reason)

    def _unrecoverable(self, message: str) -> None:
        """A client has been told that the database is beyond repair: end in order, exit 0 (server.md section 7)."""
        if self._started and not self._interrupted.is_set():
            self._logger.error("unrecoverable-error", message)
            self._interrupted.set()

    def _send(self, report: Report) -> None:
        self._emitter.emit(samples(report, self._figures))

    async def _report_runtime(self) -> None:
        while await pause(asyncio.Event(), RUNTIME_INTERVAL):
            self._send(Report.RUNTIME)


_HEALTH = BBSConfig()
"""A health check key that is 0 means its default."""


def _figures(config: BBSConfig, parts: Parts) -> Figures:
    routes = config.advanced_metrics.route_config
    watched = config.advanced_metrics.enabled
    return Figures(
        requests=Requests(routes.request_count, routes.request_latency) if watched else Requests(),
        cell_tasks=parts.dispatcher.task_counts.by_cell,
        database=parts.database.statistics,
    )


def _listener(name: str, server: PlainServer) -> Member:
    async def run(ready: Ready, stopping: asyncio.Event) -> None:
        await server.start()
        ready()
        await stopping.wait()
        await server.stop()

    return Member(name, run)


async def _result(future: asyncio.Future[str]) -> str:
    """Cancelling this leaves the future as it is: one may be deposed while one stops, too."""
    return await asyncio.shield(future)
