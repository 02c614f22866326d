"""Words and measures that all definition checks share (definitions.md section 1)."""

from __future__ import annotations


def invalid(name: str) -> str:
    """The usual text of a problem."""
    return f"Invalid field: {name}"


def size(value: str | bytes) -> int:
    """Length of a text in bytes, which is how every limit is meant."""
    if isinstance(value, bytes) or value.isascii():
        return len(value)
    return len(value.encode())


def shown(value: str | bytes) -> str:
    """A text as it can stand in an error message: bytes that are not UTF-8 become U+FFFD."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
