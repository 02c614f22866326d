"""Each part of the package needs only what its installation brings along."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

EXTRAS = {"cli": ("cli",), "dev": ("cli", "dev")}
"""What the parts that are no server may need beyond its own dependencies."""


@pytest.fixture(scope="module")
def brought(root: Path) -> dict[str, set[str]]:
    """The distributions of each extra, those of the server under the empty name."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: {re.split(r"[\[<>=]", entry)[0] for entry in group} for name, group in groups.items()}


def imported(path: Path) -> Iterator[str]:
    """The top level modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_every_part_has_what_it_imports(modules: dict[str, Path], brought: dict[str, set[str]]) -> None:
    distributions = packages_distributions()
    missing = set()
    for module, path in modules.items():
        part = module.partition(".")[0]
        there = set().union(*(brought[extra] for extra in ("", *EXTRAS.get(part, ()))))
        for name in imported(path):
            offered = {distribution.replace("_", "-") for distribution in distributions.get(name, ())}
            if offered and "bbs-server" not in offered and not offered & there:
                missing.add((module, name))
    assert missing == set()
