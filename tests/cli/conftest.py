"""The command `bbs` as a process, beside a stack of one cell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bbs_server.dev.testing import DevStack

PROGRAM = Path(sys.executable).parent / "bbs"
SECONDS = 60


@dataclass(frozen=True)
class Bbs:
    """Runs `bbs` with an environment. Output is no terminal: JSON lines."""

    environment: dict[str, str]

    def __call__(self, *arguments: str, status: int = 0, text: str = "", **variables: str) -> str:
        """What it printed to stdout, or for a status other than 0 to stderr."""
        done = subprocess.run(
            [PROGRAM, *arguments],
            env={**self.environment, **variables},
            input=text,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == status, f"status {done.returncode}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stderr if status else done.stdout

    def lines(self, *arguments: str) -> list[Any]:
        return [json.loads(line) for line in self(*arguments).splitlines()]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    stack = DevStack(tmp_path_factory.mktemp("cli-stack"), cells=1).up()
    yield stack
    stack.remove()


@pytest.fixture(scope="session")
def bbs(stack: DevStack) -> Bbs:
    bbs = Bbs({**stack.environment, **stack.variables()})
    bbs("set-domain", "cli")
    return bbs
