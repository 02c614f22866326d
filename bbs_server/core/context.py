"""What a command may know beside the state and its request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of the configuration that the rules depend on. Durations in ns."""

    max_task_retries: int = 0
    kick_task_duration: int = 0
    expire_pending_task_duration: int = 0
    expire_completed_task_duration: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """One clock reading, a source of fresh ids, the caller's request id and the settings.

    `now` is ns since the Unix epoch. `request_id` is the `X-Vcap-Request-Id` header, verbatim.
    """

    now: int
    new_guid: Callable[[], str]
    request_id: str
    settings: Settings
