"""Ports of 127.0.0.1 for programs that are told theirs before they listen.

They lie below those the system gives to outgoing connections: a port from there may belong to somebody's connection by
the time its program listens on it, or listens on it again after a restart.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from pathlib import Path

_LOWEST = 10_000
_OUTGOING = 32_768
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 10_000

_given: deque[int] = deque(maxlen=8_192)
"""The newest ones: their programs may not listen yet."""


class NoFreePort(Exception):
    """Everything looked at is in use."""


def free_port() -> int:
    """A port that nothing listens on and that this process has not got lately. Raises NoFreePort."""
    return free_range(1)


def free_range(count: int) -> int:
    """The first of `count` such ports in a row. Raises NoFreePort."""
    highest = _first_outgoing() - count
    for _ in range(_TRIES):
        first = random.randint(_LOWEST, highest)
        wanted = range(first, first + count)
        if _not_given(wanted) and all(map(is_free, wanted)):
            _given.extend(wanted)
            return first
    raise NoFreePort(f"no {count} free ports in a row between {_LOWEST} and {highest + count}")


def _not_given(wanted: range) -> bool:
    return not any(port in wanted for port in _given)


def is_free(port: int) -> bool:
    """Whether a server could listen on it now."""
    return obstacle(port) is None


def obstacle(port: int) -> OSError | None:
    """Why no server could listen on it now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as problem:
            return problem
        return None


def _first_outgoing() -> int:
    """Where the system's own choice begins; the usual place if that leaves no room below."""
    try:
        first = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _OUTGOING
    return first if first > _LOWEST * 2 else _OUTGOING
