"""How the store and the effects tell the process's log of what happens to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Log(Protocol):
    """Called with a level (`debug`, `info`, `error`), an action without session prefix, and the line's data."""

    def __call__(self, level: str, action: str, data: Mapping[str, Any], /) -> None: ...


def silent(level: str, action: str, data: Mapping[str, Any]) -> None:
    """A log that keeps nothing."""
