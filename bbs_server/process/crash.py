"""The ways in which a start fails (server.md 3.1 and 6)."""

from __future__ import annotations

from bbs_server.process.lager import Logger
from bbs_server.tls.go_errors import described


class Ended(Exception):
    """The process ends with this code; everything has been said."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit status {code}")
        self.code = code


class Panic(Exception):
    """The process ends with code 2 and `panic: <text>` on stderr."""


def fatal(logger: Logger, action: str, error: object) -> Panic:
    """An "F" of server.md 3.1: a fatal line, then a crash. To be raised."""
    logger.fatal(action, described(error))
    return Panic(described(error))


def failure(logger: Logger, action: str, error: object) -> Ended:
    """An "E" of server.md 3.1: an error line, exit 1. To be raised."""
    logger.error(action, described(error))
    return Ended(1)
