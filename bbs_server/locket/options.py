"""How a Locket server shall behave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bbs_server.core.log import Log, silent
from bbs_server.locket.connections import OPERATION_LIMIT
from bbs_server.locket.locks import Lock

SCAN_INTERVAL = 5.0
"""Seconds between two looks at all rows, for those that other processes have written."""


def _nothing(*_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """Times in s; `operation_limit` is for locks that are yet to be opened.

    `on_expired` gets every lock that ran out; `on_unrecoverable` is called when the table is missing.
    """

    operation_limit: float = OPERATION_LIMIT
    scan_interval: float = SCAN_INTERVAL
    on_expired: Callable[[Lock], None] = _nothing
    on_unrecoverable: Callable[[], None] = _nothing
    log: Log = silent
