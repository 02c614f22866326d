"""The tables of the README list everything, and nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bbs_server.locket.config import LocketConfig
from bbs_server.process.config import BBSConfig
from bbs_server.process.config_file import documented
from bbs_server.wire.routes import ROUTES

TABLES: dict[str, Callable[[], set[str]]] = {
    "Configuration": lambda: {key.name for key in documented(BBSConfig)},
    # Those of Loggregator are the same as the BBS's.
    "Locket": lambda: {key.name for key in documented(LocketConfig) if not key.name.startswith("loggregator.")},
    "Routes": lambda: {route.path for route in ROUTES},
}
"""What the first column of a section's table must list."""


def first_column(readme: str, section: str) -> list[str]:
    """The first cell of every row of the section's first table."""
    found = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {section}"
    table = re.search(r"(?:^\|.*\n)+", found[1], re.MULTILINE)
    assert table is not None, f"no table in section {section}"
    return re.findall(r"^\| *`([^`]+)`", table[0], re.MULTILINE)


@pytest.mark.parametrize("section", TABLES)
def test_tables_are_complete(section: str, root: Path) -> None:
    listed = first_column((root / "README.md").read_text(), section)
    assert sorted(listed) == sorted(TABLES[section]())
