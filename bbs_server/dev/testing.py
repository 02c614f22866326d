"""Whole stacks for tests, ours and those of clients: started by the command that people use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bbs_server.client import Target
from bbs_server.dev import postgres
from bbs_server.dev.layout import Layout
from bbs_server.dev.ports import free_range

_PROGRAMS = Path(sys.executable).parent
_SECONDS = 120
_PORTS = 130


class DevStack:
    """A stack in a folder of its own, on ports of its own; nothing runs before `up`.

    `environment` is that of a shell beside it: with our programs, its folder, ports and certificates.
    """

    def __init__(self, folder: Path, cells: int = 2) -> None:
        self.layout = Layout(folder.absolute(), free_range(_PORTS), cells)
        self.environment = {
            **os.environ,
            "PATH": f"{_PROGRAMS}:{os.environ['PATH']}",
            "BBS_DEV_FOLDER": str(folder),
            "BBS_DEV_PORT_BASE": str(self.layout.port_base),
            "BBS_DEV_CELLS": str(cells),
        }

    @property
    def folder(self) -> Path:
        return self.layout.folder

    @property
    def port_base(self) -> int:
        return self.layout.port_base

    def target(self, timeout: float = 10) -> Target:
        """Where its BBS is."""
        return Target(self.layout.url("bbs"), *self.layout.client_identity(), timeout=timeout)

    def variables(self) -> dict[str, str]:
        """What `bbs` and cfdot read."""
        ca, cert, key = map(str, self.layout.client_identity())
        return {
            "BBS_URL": self.layout.url("bbs"),
            "CA_CERT_FILE": ca,
            "CLIENT_CERT_FILE": cert,
            "CLIENT_KEY_FILE": key,
            "LOCKET_API_LOCATION": f"127.0.0.1:{self.layout.port('locket')}",
        }

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`bbs-dev` with these arguments. Raises RuntimeError with what it said, unless told not to."""
        done = subprocess.run(
            [_PROGRAMS / "bbs-dev", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"bbs-dev {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def up(self) -> DevStack:
        self.run("up", "--detach")
        return self

    def remove(self) -> None:
        """Take it down, if it is up, and its data away."""
        if (self.folder / "stack.json").exists():
            self.run("down", check=False)
        postgres.remove(self.layout.data("postgres"))
        shutil.rmtree(self.folder, ignore_errors=True)

    def pid(self, part: str) -> int:
        """The process id that `status` shows."""
        (row,) = [line.split() for line in self.run("status").stdout.splitlines() if line.split()[0] == part]
        return int(row[4])
