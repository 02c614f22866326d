"""Whole stacks, started by the command that people use."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent
SECONDS = 90
_PORTS = 40


@dataclass
class DevStack:
    """A folder, its ports, and `bbs-dev` for it. `environment` is that of a shell beside it."""

    folder: Path
    port_base: int
    cells: int
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            **os.environ,
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "BBS_DEV_FOLDER": str(self.folder),
            "BBS_DEV_PORT_BASE": str(self.port_base),
            "BBS_DEV_CELLS": str(self.cells),
        }

    def run(self, *arguments: str, program: str = "bbs-dev", check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [PROGRAMS / program, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def pid(self, part: str) -> int:
        """The process id that `status` shows."""
        (row,) = [line.split() for line in self.run("status").stdout.splitlines() if line.split()[0] == part]
        return int(row[4])


@pytest.fixture(scope="module")
def new_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DevStack]]:
    """Plans stacks; takes down at the end what is still up."""
    made: list[DevStack] = []

    def plan(cells: int = 2) -> DevStack:
        made.append(DevStack(tmp_path_factory.mktemp("stack"), _free_base(), cells))
        return made[-1]

    yield plan
    for stack in made:
        if (stack.folder / "stack.json").exists():
            stack.run("down", check=False)


def _free_base() -> int:
    """A range of ports below those that the system gives away."""
    while True:
        base = random.randrange(10_000, 30_000, 100)
        if all(_free(base + offset) for offset in range(_PORTS)):
            return base


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
