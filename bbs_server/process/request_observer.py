"""Watches the requests: metrics, log, access log, application log (server.md 10, 13.3, 14, 19)."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core.errors import Error, ErrorType
from bbs_server.process.access_log import request_data
from bbs_server.process.lager import Level, Logger
from bbs_server.process.loggregator import Emitter
from bbs_server.process.metrics import Requests
from bbs_server.wire.observer import Call
from bbs_server.wire.routes import Kind, Route

_REJECTED = ("failed-to-read-body", "failed-to-parse-request-body", "invalid-request")
_UNEXPECTED = (
    ErrorType.UNKNOWN,
    ErrorType.INVALID_RECORD,
    ErrorType.DESERIALIZE,
    ErrorType.DEADLOCK,
    ErrorType.UNRECOVERABLE,
)
"""Errors that say something about the server; the others are everyday refusals."""
_APP_ROUTES = ("DesireDesiredLRP", "UpdateDesireLRP")
_APP_GUID_PARTS = 5
_WORD = re.compile("LRPs?|[A-Z][a-z]+|[a-z0-9]+")

Timed = Callable[[str, int], None]


@dataclass(slots=True)
class _Logs:
    """What a request writes to; `handler` is there from the handler's first line on."""

    main: Logger
    access: Logger | None = None
    handler: Logger | None = None


class RequestObserver:
    """Implements `wire.observer.Observer`.

    `timed` gets route name and ns of each request, for Prometheus; `unrecoverable` the text of each answer of
    type 29.
    """

    def __init__(
        self,
        requests: Requests,
        emitter: Emitter,
        logger: Logger,
        access: Logger | None = None,
        timed: Timed | None = None,
        unrecoverable: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._requests = requests
        self._emitter = emitter
        self._logger = logger
        self._access = access
        self._timed = timed
        self._unrecoverable = unrecoverable
        self._tasks: dict[str, str] = {}
        self.watches = False
        self._level_changed()
        logger.sink.watchers.append(self._level_changed)

    def _level_changed(self) -> None:
        self.watches = self._access is not None or self._logger.on(Level.DEBUG)

    def serving(self, call: Call) -> None:
        data = request_data(call)
        access = None if self._access is None else self._access.session("request", **data)
        main = self._logger.session("request", **data)
        call.note = _Logs(main, access)
        if access is not None:
            access.info("serving")
        main.debug("serving")

    def done(self, call: Call, duration: int) -> None:
        if call.note is None:
            return  # the level was raised in between
        logs: _Logs = call.note
        if logs.access is not None:
            logs.access.info("done", duration=duration)
        logs.main.debug("done")

    def counted(self, route: Route) -> None:
        self._requests.count(route.name, stream=route.kind is Kind.STREAM)

    def latency(self, route: Route, duration: int) -> None:
        self._requests.time(route.name, duration)
        if self._timed is not None:
            self._timed(route.name, duration)

    def failed(self, call: Call, action: str, error: Error, request: Any) -> None:
        unexpected = action in _REJECTED or error.type in _UNEXPECTED
        if self._logger.on(Level.ERROR if unexpected else Level.INFO):
            log = self._handler_log(call)
            log.log("error" if unexpected else "info", action, {"error": error.message})
        if action in _REJECTED and call.route.name in _APP_ROUTES:
            self._tell_app(call, error, request)
        if error.type == ErrorType.UNRECOVERABLE:
            self._unrecoverable(error.message)

    def broke(self, call: Call, problem: BaseException) -> None:
        trace = "".join(traceback.format_exception(problem))
        self._handler_log(call).error("unexpected-error", problem, trace=trace)

    def handshake_failed(self, peer: str, reason: str) -> None:
        print(f"http: TLS handshake error from {peer}: {reason}", file=sys.stderr, flush=True)

    def _handler_log(self, call: Call) -> Logger:
        """The handler's task in the request's: one session and one span for all its lines, whatever the level."""
        if call.note is None:
            call.note = _Logs(self._logger.session("request", **request_data(call)))
        logs: _Logs = call.note
        if logs.handler is None:
            name = call.route.name
            if name not in self._tasks:
                self._tasks[name] = handler_task(name)
            logs.handler = logs.main.session(self._tasks[name]).with_request_id(call.request_id)
        return logs.handler

    def _tell_app(self, call: Call, error: Error, request: Any) -> None:
        """The application's own log learns of a definition that was rejected (server.md 19.1)."""
        source_id = app_guid(request)
        if not source_id:
            self._handler_log(call).error("app guid is empty", error.message)
            return
        kind = models.Error.Type.Name(error.type)  # type: ignore[arg-type]
        self._emitter.app_log(
            source_id, f"Error parsing request for app with guid {source_id}, {kind}, {error.message}"
        )


def handler_task(route: str) -> str:
    """The log task of a route's handler: its name in words, `StartActualLRP` as `start-actual-lrp`."""
    return "-".join(_WORD.findall(route)).lower()


def app_guid(request: Any) -> str:
    """The first five parts of the process guid of a desire or update request, empty if it has fewer."""
    guid = getattr(getattr(request, "desired_lrp", request), "process_guid", "")
    parts = guid.split("-") if isinstance(guid, str) else ()
    return "-".join(parts[:_APP_GUID_PARTS]) if len(parts) >= _APP_GUID_PARTS else ""
