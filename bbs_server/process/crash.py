"""The ways in which a start fails (server.md 3.1 and 6)."""

from __future__ import annotations

import os

from bbs_server.process.lager import Logger


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


def described(error: object) -> str:
    """An error as the reference says it: `open <file>: no such file or directory`."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error)
    if str(error.filename) == ".":  # what an empty path has become
        return "open : no such file or directory"
    return f"open {error.filename}: {os.strerror(error.errno).lower()}"
