"""Words and measures that all checks share (definitions.md section 1)."""

from __future__ import annotations


def invalid(name: str) -> str:
    """The usual text of a problem."""
    return f"Invalid field: {name}"


def size(value: str | bytes) -> int:
    """Length of a text in bytes, which is how every limit is meant."""
    if isinstance(value, bytes) or value.isascii():
        return len(value)
    return len(value.encode())
