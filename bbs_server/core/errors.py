"""The errors a client can see (server.md section 11)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ErrorType(IntEnum):
    """Numbers of `Error.type` on the wire. Type 0 is written as an absent field."""

    UNKNOWN = 0
    INVALID_RECORD = 3
    INVALID_REQUEST = 4
    INVALID_STATE_TRANSITION = 9
    RESOURCE_CONFLICT = 11
    RESOURCE_EXISTS = 12
    RESOURCE_NOT_FOUND = 13
    CANNOT_BE_CLAIMED = 15
    CANNOT_BE_STARTED = 16
    CANNOT_BE_CRASHED = 17
    CANNOT_BE_FAILED = 18
    CANNOT_BE_REMOVED = 19
    CANNOT_BE_UNCLAIMED = 21
    RUNNING_ON_DIFFERENT_CELL = 24
    GUID_GENERATION = 26
    DESERIALIZE = 27
    DEADLOCK = 28
    UNRECOVERABLE = 29


@dataclass(frozen=True, slots=True)
class Error:
    """What the `error` field of a response says."""

    type: int
    message: str


class Refused(Exception):
    """A command or query ends with this error; raised before it changed anything that should stay."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


INVALID_REQUEST = Error(ErrorType.INVALID_REQUEST, "the request received is invalid")
UNREADABLE_BODY = Error(ErrorType.UNKNOWN, "the request failed for an unknown reason")
RESOURCE_EXISTS = Error(ErrorType.RESOURCE_EXISTS, "the requested resource already exists")
RESOURCE_NOT_FOUND = Error(ErrorType.RESOURCE_NOT_FOUND, "the requested resource could not be found")
CANNOT_BE_CLAIMED = Error(ErrorType.CANNOT_BE_CLAIMED, "cannot claim actual LRP")
CANNOT_BE_STARTED = Error(ErrorType.CANNOT_BE_STARTED, "cannot start actual LRP")
CANNOT_BE_CRASHED = Error(ErrorType.CANNOT_BE_CRASHED, "cannot crash actual LRP")
CANNOT_BE_FAILED = Error(ErrorType.CANNOT_BE_FAILED, "cannot fail actual LRP")
CANNOT_BE_REMOVED = Error(ErrorType.CANNOT_BE_REMOVED, "cannot remove actual LRP")
CANNOT_BE_UNCLAIMED = Error(ErrorType.CANNOT_BE_UNCLAIMED, "cannot unclaim actual LRP")
DESERIALIZE = Error(ErrorType.DESERIALIZE, "could not deserialize record")


def invalid_fields(problems: list[str]) -> Error:
    """The one error that carries every validation problem, in order, duplicates kept."""
    return Error(ErrorType.INVALID_REQUEST, ", ".join(problems))


def invalid_transition(source: str, target: str) -> Error:
    return Error(ErrorType.INVALID_STATE_TRANSITION, f"Cannot transition from {source} to {target}")


def unknown(message: str) -> Error:
    """An error of type 0: only its text says what failed."""
    return Error(ErrorType.UNKNOWN, message)
