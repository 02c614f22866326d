"""SQL stands in .sql files or in named constants of modules, and is never put together."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

STATEMENT = re.compile(
    r"\b(SELECT\s.*\bFROM|SELECT\s+\w+\(|INSERT\s+INTO|DELETE\s+FROM|UPDATE\s+\w+\s+SET|TRUNCATE\s+\w"
    r"|(CREATE|ALTER|DROP)\s+(TABLE|DATABASE|INDEX|UNIQUE))\b",
    re.DOTALL,
)


def constants(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes inside values of named constants, and docstrings."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            yield from ast.walk(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def offences(source: str) -> list[int]:
    """Lines with an f-string that holds SQL, or with SQL in the middle of code."""
    tree = ast.parse(source)
    assembled = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part): node for node in assembled for part in node.values}
    named = {id(node) for node in constants(tree)} - set(parts)
    return sorted(
        {
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATEMENT.search(node.value)
            if id(node) not in named
        }
    )


def test_no_module_assembles_sql(modules: dict[str, Path], root: Path) -> None:
    found = [f"{path.relative_to(root)}:{line}" for path in modules.values() for line in offences(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('NAME = "SELECT a FROM b"', []),
        ('NAMES = {"b": "DELETE FROM b"}', []),
        ('"""Notes: SELECT a FROM b."""', []),
        ('NAME = f"SELECT a FROM {table}"', [1]),
        ('def f(c):\n    c.execute("DELETE FROM b")', [2]),
        ('def f(c):\n    c.execute(f"UPDATE {t} SET a = 1 WHERE x IN (SELECT a FROM b)")', [2]),
    ],
)
def test_what_counts_as_assembled(source: str, lines: list[int]) -> None:
    assert offences(source) == lines
