"""The statuses with which calls fail; clients compare their texts (locket.md section 6)."""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg
import grpc

from bbs_server.store.errors import STRING_TOO_LONG, UNDEFINED_TABLE, UNIQUE_VIOLATION, driver_text, is_connection_loss


class Refusal(Exception):
    """A call ends with this status, and nothing was changed."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def invalid_resource() -> Refusal:
    """The reference would crash (locket.md 6.1)."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid-resource")


def invalid_type() -> Refusal:
    """Quirk: this is "not found"."""
    return Refusal(grpc.StatusCode.NOT_FOUND, "invalid-type")


def invalid_ttl() -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid-ttl")


def invalid_owner() -> Refusal:
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid-owner")


def lock_collision() -> Refusal:
    return Refusal(grpc.StatusCode.ALREADY_EXISTS, "lock-collision")


def resource_not_found() -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, "resource-not-found")


def timed_out() -> Refusal:
    return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "timeout: context deadline exceeded")


def undecodable(reason: object) -> Refusal:
    return Refusal(grpc.StatusCode.INTERNAL, f"grpc: error unmarshalling request: {reason}")


def unreadable(column: str) -> Refusal:
    """A NULL where a text must be, only possible by hand."""
    text = f'sql: Scan error on column "{column}": converting NULL is unsupported'
    return Refusal(grpc.StatusCode.UNKNOWN, text)


UNRECOVERABLE = "sql-unrecoverable"

_NOT_UTF_8 = "22021"
_GIVEN_UP = "57014"
"""The database has kept the limit itself."""

_BY_SQLSTATE: Mapping[str, str] = {
    STRING_TOO_LONG: "sql-bad-request",
    UNIQUE_VIOLATION: "sql-resource-exists",
    UNDEFINED_TABLE: UNRECOVERABLE,
}


def database_failure(problem: BaseException) -> Refusal:
    """What a call answers when the database failed: by SQLSTATE, or the raw text of connection problems."""
    state = getattr(problem, "sqlstate", None) or ""
    if isinstance(problem, asyncpg.DataError) and problem.severity is None:
        # The driver refuses by itself what the reference leaves to the database: text that is not UTF-8.
        return Refusal(grpc.StatusCode.UNKNOWN, _other(_NOT_UTF_8))
    if state == _GIVEN_UP:
        return timed_out()
    if is_connection_loss(problem) or not isinstance(problem, asyncpg.PostgresError):
        return Refusal(grpc.StatusCode.UNKNOWN, driver_text(problem))
    return Refusal(grpc.StatusCode.UNKNOWN, _BY_SQLSTATE.get(state) or _other(state))


def _other(state: str) -> str:
    return f"sql-unknown, error code: {state}, flavor: postgres"
