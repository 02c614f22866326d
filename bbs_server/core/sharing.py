"""Equal parts of many records, kept in memory once.

Tags are much the same in all instances of a space, and names of cells, domains and instances occur in many
records; `sys.intern` is enough for texts. Whatever no record holds any more is forgotten.
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern

from bbs_server.core.records import MetricTag

_PAIRS = 4096
"""Pairs remembered for sharing: those that only one record has come and go."""


@lru_cache(maxsize=_PAIRS)
def tag(name: str, value: str) -> tuple[str, str]:
    """A tag of an instance."""
    return intern(name), intern(value)


@lru_cache(maxsize=_PAIRS)
def metric_tag(name: str, static: str, dynamic: int) -> tuple[str, MetricTag]:
    """A metric tag of a desired LRP."""
    return intern(name), MetricTag(intern(static), dynamic)
