"""Errors of the operating system in the reference's words."""

from __future__ import annotations

import os


def described(error: object) -> str:
    """`open <file>: no such file or directory` for an error about a file; the text of any other."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error)
    name = str(error.filename)
    # An empty path has become the folder itself.
    return "open : no such file or directory" if name == "." else f"open {name}: {os.strerror(error.errno).lower()}"
