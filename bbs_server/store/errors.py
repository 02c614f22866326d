"""Database errors as clients see them (storage.md 7.1), and the failures that end a start."""

from __future__ import annotations

import asyncpg

from bbs_server.core.errors import INVALID_REQUEST, RESOURCE_EXISTS, Error, ErrorType, unknown

UNIQUE_VIOLATION = "23505"
STRING_TOO_LONG = "22001"
UNDEFINED_TABLE = "42P01"
STALE_BATCH = "22012"
"""Division by zero: how a `batch` statement says that a row is not the version it must hit."""
LOCK_TIMEOUT = "55P03"

CONNECTION_LOST = unknown("unexpected EOF")

DATABASE_FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""Whatever the driver raises when the database or the connection fails."""

_BY_SQLSTATE = {
    UNIQUE_VIOLATION: RESOURCE_EXISTS,
    STRING_TOO_LONG: INVALID_REQUEST,
    STALE_BATCH: unknown("ERROR: could not serialize access due to concurrent update (SQLSTATE 40001)"),
}


class StartFailure(Exception):
    """The start cannot go on. `action` is the action of the fatal log line (server.md 3.1)."""

    def __init__(self, action: str, message: str) -> None:
        super().__init__(message)
        self.action = action


class MigrationFailed(Exception):
    """The schema cannot be made current; the text is what the exit trace shows."""


class UnknownKeyLabel(Exception):
    """The database's key label is not configured, or cannot be read (storage.md 5.4)."""


class LabelNotWritten(Exception):
    """The re-encryption is done but its label could not be stored (storage.md 5.4 step 7)."""


class Unreachable(OSError):
    """No host lets us in; the text names user, database and the last host's answer."""


class Deposed(Exception):
    """Another writer has raised the epoch (design rule 6)."""

    def __init__(self, message: str = "another writer has taken over the database") -> None:
        super().__init__(message)


def driver_text(problem: BaseException) -> str:
    """An exception in the words of the reference's driver; never empty."""
    if isinstance(problem, asyncpg.PostgresError) and problem.severity is not None:
        return f"{problem.severity}: {problem.message} (SQLSTATE {problem.sqlstate})"
    if is_connection_loss(problem) and not isinstance(problem, Unreachable):
        return CONNECTION_LOST.message
    return str(problem) or type(problem).__name__


def is_connection_loss(problem: BaseException) -> bool:
    """Whether the connection is gone, so that nobody knows how the statement ended."""
    if isinstance(problem, asyncpg.PostgresError) and problem.severity is not None:
        severity = getattr(problem, "severity_en", None) or problem.severity
        return severity in ("FATAL", "PANIC")
    return isinstance(
        problem,
        OSError | EOFError | asyncpg.PostgresConnectionError | asyncpg.InternalClientError,
    ) or (isinstance(problem, asyncpg.InterfaceError) and not isinstance(problem, asyncpg.DataError))


def is_stale(problem: BaseException) -> bool:
    """Whether a batch failed only because a row was not the version that memory knew."""
    return getattr(problem, "sqlstate", None) == STALE_BATCH


def is_lock_timeout(problem: BaseException) -> bool:
    """Whether somebody else kept a row locked for longer than we wait."""
    return getattr(problem, "sqlstate", None) == LOCK_TIMEOUT


def client_error(problem: BaseException) -> Error:
    """The error a request is answered with when its database work failed."""
    state = getattr(problem, "sqlstate", None) or ""
    if state == UNDEFINED_TABLE:
        return Error(ErrorType.UNRECOVERABLE, f"Unrecoverable Error: {driver_text(problem)}")
    return _BY_SQLSTATE.get(state) or unknown(driver_text(problem))
