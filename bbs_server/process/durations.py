"""Durations as Go writes them: `1m0.5s`, `1500ms`, `+1s` (server.md 2.1 rule 6). Values are whole nanoseconds."""

from __future__ import annotations

import json
import re
from fractions import Fraction

MICROSECOND, MILLISECOND, SECOND = 1_000, 1_000_000, 1_000_000_000
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND

_UNITS = {
    "ns": 1,
    "us": MICROSECOND,
    "µs": MICROSECOND,  # the micro sign
    "μs": MICROSECOND,  # the Greek letter
    "ms": MILLISECOND,
    "s": SECOND,
    "m": MINUTE,
    "h": HOUR,
}
_PART = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[^0-9.]*)")
_LARGEST = 2**63 - 1


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration text. Raises ValueError with Go's words."""
    quoted = json.dumps(text, ensure_ascii=False)
    sign, rest = (-1 if text.startswith("-") else 1), text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    total, position = Fraction(0), 0
    while position < len(rest) or not rest:
        part = _PART.match(rest, position)
        if part is None:
            raise ValueError(f"time: invalid duration {quoted}")
        unit = part["unit"]
        if not unit:
            raise ValueError(f"time: missing unit in duration {quoted}")
        if unit not in _UNITS:
            raise ValueError(f"time: unknown unit {json.dumps(unit, ensure_ascii=False)} in duration {quoted}")
        total += int(Fraction(part["number"].rstrip(".")) * _UNITS[unit])
        position = part.end()
    if total > _LARGEST:
        raise ValueError(f"time: invalid duration {quoted}")
    return sign * int(total)


def format_duration(ns: int) -> str:
    """The text Go gives a duration: `1m0s`, `1.5s`, `100ms`, `0s`."""
    sign, ns = ("-" if ns < 0 else ""), abs(ns)
    if ns == 0:
        return "0s"
    for unit, size in (("ns", 1), ("µs", MICROSECOND), ("ms", MILLISECOND)):
        if ns < size * 1000:
            return f"{sign}{_decimal(ns, size)}{unit}"
    hours, rest = divmod(ns, HOUR)
    minutes, rest = divmod(rest, MINUTE)
    text = f"{_decimal(rest, SECOND)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else sign + text


def _decimal(ns: int, size: int) -> str:
    whole, rest = divmod(ns, size)
    return f"{whole}.{rest:0{len(str(size)) - 1}d}".rstrip("0") if rest else str(whole)
