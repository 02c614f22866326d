"""`bbs-server -config=FILE`: the console entry."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

from bbs_server.process.config import BBSConfig
from bbs_server.process.config_file import BadConfig, read_config
from bbs_server.process.crash import Ended, Panic
from bbs_server.process.flags import config_path
from bbs_server.process.lager import LEVELS, Filter, Logger, Sink, redaction, truncation, write_all

PROCESS_NAME = "bbs"
"""What deployments look for in the process list (server.md section 20)."""

CRASHED = 2

_GRPC_SUITES = ":".join(
    (
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES128-GCM-SHA256",
    )
)


class LogConfig(Protocol):
    """The keys that every program's configuration has for its log."""

    @property
    def log_level(self) -> str: ...
    @property
    def time_format(self) -> str: ...
    @property
    def max_data_string_length(self) -> int: ...
    @property
    def redact_secrets(self) -> bool: ...
    @property
    def redact_patterns(self) -> tuple[str, ...] | None: ...


C = TypeVar("C", bound=LogConfig)
Serve = Callable[[C, Logger], Coroutine[Any, Any, None]]


def main() -> NoReturn:
    """Run the BBS. Never returns."""

    async def serve(config: BBSConfig, logger: Logger) -> None:
        from bbs_server.process.lifecycle import run

        await run(config, logger)

    run_program(PROCESS_NAME, sys.argv[1:], BBSConfig, lambda config: config.session_name, serve)


def run_program(
    name: str, arguments: Sequence[str], kind: type[C], source: Callable[[C], str], serve: Serve[C]
) -> NoReturn:
    """What programs have in common: name, command line, configuration, log, signals, exit code.

    `source` gives the log source. `serve` raises Ended or Panic to end with another code than 0.
    """
    code = CRASHED
    try:
        _name_process(name)
        _handle_signals()
        path = config_path(name, arguments)
        config, unknown = read_config(path, kind)
        logger = make_logger(source(config), config)
        _route_library_logs(logger)
        logger.info("starting")
        if unknown:
            logger.info("ignored-unknown-configuration-keys", keys=list(unknown))
        _loop_runner(logger, serve(config, logger))
        code = 0
    except (BadConfig, Panic) as problem:
        print(f"panic: {problem}", file=sys.stderr)
    except Ended as end:
        code = end.code
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as problem:
        print(f"panic: {problem!r}\n", file=sys.stderr)
        traceback.print_exception(problem)
    # Taking a large heap apart would delay the next master for nothing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def make_logger(source: str, config: LogConfig) -> Logger:
    """The main log, on stdout. Raises Panic for a level or a pattern that is none."""
    if config.log_level not in LEVELS:
        raise Panic(f"unknown log level: {config.log_level}")
    filters: list[Filter] = []
    if config.redact_secrets:
        try:
            filters.append(redaction(config.redact_patterns))
        except re.error as problem:
            raise Panic(f"error parsing regexp: {problem}") from None
    if config.max_data_string_length > 0:
        filters.append(truncation(config.max_data_string_length))
    sink = Sink(
        lambda line: write_all(sys.stdout.fileno(), line),
        LEVELS[config.log_level],
        config.time_format == "rfc3339",
        filters,
    )
    return Logger(sink, source)


def _name_process(name: str) -> None:
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(name)
    except OSError:
        pass  # only Linux has it


def _handle_signals() -> None:
    """Until the life cycle takes over SIGTERM and SIGINT they end the process as they end a Go program."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for ignored in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, _quit)


def _quit(number: int, frame: object) -> None:
    print("SIGQUIT: quit\n", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr)
    os._exit(CRASHED)


class _Lager(logging.Handler):
    """What libraries complain about, as lines of ours."""

    def __init__(self, logger: Logger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger.session("library")

    def emit(self, record: logging.LogRecord) -> None:
        error = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            error = f"{error}: {record.exc_info[1]!r}"
        self._logger.error("complaint", error, logger=record.name)


def _route_library_logs(logger: Logger) -> None:
    logging.basicConfig(handlers=[_Lager(logger)], level=logging.WARNING, force=True)


def _loop_runner(logger: Logger, serving: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop; what tasks nobody awaits raise is logged."""
    # gRPC knows no other way to choose the suites of server.md section 8.
    os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", _GRPC_SUITES)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would write to stderr whenever a peer is away
    import uvloop

    def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        logger.error("unhandled-exception", repr(context.get("exception")), message=context.get("message", ""))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(unhandled)
        runner.run(serving)


if __name__ == "__main__":
    main()
