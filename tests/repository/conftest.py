"""The repository as its tests see it."""

from __future__ import annotations

import gc
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> None:
    """Nothing that other tests have left is collected while sources are parsed.

    A failed task that nobody asked is logged when it is collected, and its traceback parses the lines that it shows.
    Python 3.11 fails in parsing something if that is done in the middle of it.
    """
    gc.collect()


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Every text file that belongs to the repository, committed or about to be, by its path."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        try:
            found[name] = path.read_text()
        except (FileNotFoundError, UnicodeDecodeError):
            continue  # Deleted but not yet committed, or an image.
    return found


@pytest.fixture(scope="session")
def modules() -> dict[str, Path]:
    """Every module of the server, as `core.tasks`, by its name within the package."""
    package = ROOT / "bbs_server"
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
        if path.parent != package
    }
