"""Log lines in lager's format: one JSON object per line (server.md section 13).

A `Logger` is a task in the tree of sessions; all loggers of a tree share a `Sink`, whose level can be
changed at any time. A line below the level costs one comparison.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from bbs_server.core.go_json import text


class Level(IntEnum):
    DEBUG = 0
    INFO = 1
    ERROR = 2
    FATAL = 3


LEVELS: Mapping[str, Level] = {level.name.lower(): level for level in Level}
"""The texts of `log_level`; nothing else is one."""

_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
_TRUNCATED = "-(truncated)"
_REDACTED = "*REDACTED*"
_SECRET_KEY = re.compile("[Pp]wd|[Pp]ass")
_SECRET_VALUES = (
    r"AKIA[A-Z0-9]{16}",
    r"""(?i)KEY["']?\s*(?::|=>|=)\s*["']?[A-Z0-9/+=]{40}["']?""",
    r"\$1\$[A-Za-z0-9./]{1,16}\$[A-Za-z0-9./]{22}",
    r"\$5\$[A-Za-z0-9./]{1,16}\$[A-Za-z0-9./]{43}",
    r"\$6\$[A-Za-z0-9./]{1,16}\$[A-Za-z0-9./]{86}",
    r"-----BEGIN(.*)PRIVATE KEY-----",
)
_HEX = re.compile("[0-9a-fA-F]{1,32}")

Data = Mapping[str, Any]
Filter = Callable[[Data], Data]


@dataclass(slots=True, eq=False)
class Sink:
    """Where lines go. `write` gets whole lines as bytes; `filters` change the data before it is written."""

    write: Callable[[bytes], object]
    level: Level = Level.INFO
    rfc3339: bool = False
    filters: Sequence[Filter] = ()
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called after the level has changed."""

    def set_level(self, level: Level) -> None:
        self.level = level
        for watcher in self.watchers:
            watcher()

    def line(self, level: Level, source: str, message: str, data: Data) -> None:
        for change in self.filters:
            data = change(data)
        now = time.time_ns()
        shown: dict[str, Any]
        if self.rfc3339:
            shown = {"timestamp": rfc3339(now), "level": level.name.lower(), "source": source, "message": message}
        else:
            shown = {"timestamp": unix_epoch(now), "source": source, "message": message, "log_level": int(level)}
        shown["data"] = _sorted(data)
        line = json.dumps(shown, ensure_ascii=False, separators=(",", ":"), default=str)
        self.write(text(line).translate(_ESCAPES).encode() + b"\n")


def write_all(descriptor: int, line: bytes) -> None:
    """Write a whole line, or lose it: a full disk or a reader that has gone is no reason to fail a request."""
    try:
        while line:
            line = line[os.write(descriptor, line) :]
    except OSError:
        pass  # nobody could be told


@dataclass(slots=True, eq=False)
class Logger:
    """A task in the tree of sessions. Keyword arguments of the methods become members of `data`.

    A member called `trace_id` is written `trace-id`: underscores of keyword names stay, so names with
    dashes are given by `**{"request-uuid": ...}`.
    """

    sink: Sink
    source: str
    task: str = ""
    number: str = ""
    data: Data = field(default_factory=dict)
    _sessions: list[int] = field(default_factory=lambda: [0], repr=False)

    def session(self, task: str, **data: Any) -> Logger:
        """A sub task, numbered within this one."""
        self._sessions[0] += 1
        number = f"{self.number}.{self._sessions[0]}" if self.number else str(self._sessions[0])
        name = f"{self.task}.{task}" if self.task else f"{self.source}.{task}"
        return Logger(self.sink, self.source, name, number, {**self.data, **data})

    def with_data(self, **data: Any) -> Logger:
        """The same session with more data."""
        return Logger(self.sink, self.source, self.task, self.number, {**self.data, **data}, self._sessions)

    def with_request_id(self, request_id: str) -> Logger:
        """With `trace-id` and `span-id`, if the request id is one (server.md section 12)."""
        trace = trace_id(request_id)
        return self.with_data(**{"trace-id": trace, "span-id": secrets.token_hex(8)}) if trace else self

    def on(self, level: Level) -> bool:
        return level >= self.sink.level

    def debug(self, action: str, **data: Any) -> None:
        if self.sink.level <= Level.DEBUG:
            self._log(Level.DEBUG, action, data)

    def info(self, action: str, **data: Any) -> None:
        if self.sink.level <= Level.INFO:
            self._log(Level.INFO, action, data)

    def error(self, action: str, error: object, **data: Any) -> None:
        if self.sink.level <= Level.ERROR:
            self._log(Level.ERROR, action, {"error": str(error), **data})

    def log(self, level: str, action: str, data: Data) -> None:
        """The form in which the other layers log (`core.log.Log`)."""
        if self.sink.level <= LEVELS[level]:
            self._log(LEVELS[level], action, data)

    def fatal(self, action: str, error: object, **data: Any) -> None:
        """Write the line; ending the process is the caller's."""
        trace = "".join(traceback.format_stack()[:-1])
        self._log(Level.FATAL, action, {"error": str(error), "trace": trace, **data})

    def _log(self, level: Level, action: str, data: Data) -> None:
        session = {"session": self.number} if self.number else {}
        self.sink.line(level, self.source, f"{self.task or self.source}.{action}", {**self.data, **session, **data})


def unix_epoch(ns: int) -> str:
    return f"{ns // 1_000_000_000}.{ns % 1_000_000_000:09d}"


def rfc3339(ns: int) -> str:
    seconds = datetime.fromtimestamp(ns // 1_000_000_000, UTC)
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{ns % 1_000_000_000:09d}Z"


def trace_id(request_id: str) -> str:
    """The trace id of a request id: 32 hexadecimal digits, 16 if the high half is zero, empty if it is none."""
    digits = request_id.replace("-", "")
    if not _HEX.fullmatch(digits):
        return ""
    high, low = digits[:-16].rjust(16, "0"), digits[-16:].rjust(16, "0")
    return (low if high == "0" * 16 else high + low).lower()


def truncation(limit: int) -> Filter:
    """Cuts strings in data to `limit` characters, suffix included."""

    def cut(text: str) -> str:
        return text if len(text) <= limit else text[: max(0, limit - len(_TRUNCATED))] + _TRUNCATED

    return lambda data: _mapped(data, cut)


def redaction(patterns: Sequence[str] | None) -> Filter:
    """Hides secrets in data, by key and by value. Raises re.error for a bad pattern."""
    values = [re.compile(pattern) for pattern in (_SECRET_VALUES if patterns is None else patterns)]

    def hide(text: str) -> str:
        return _REDACTED if any(value.search(text) for value in values) else text

    return lambda data: _mapped(data, hide, lambda key: _SECRET_KEY.search(key) is not None)


def _mapped(value: Any, change: Callable[[str], str], hidden: Callable[[str], bool] = lambda key: False) -> Any:
    """The value with every string changed; what stands under a hidden key is redacted, whatever it is."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _REDACTED if hidden(str(name)) else _mapped(item, change, hidden) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change, hidden) for item in value]
    return value


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [_sorted(item) for item in value]
    return value
