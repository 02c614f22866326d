"""Where everything of a stack is: the files of its folder and its ports on 127.0.0.1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT_BASE = 8880
"""Puts the BBS and Locket on their usual ports, 8889 and 8891."""

CHANGE_HEADER = "X-Bbs-Dev"
"""Every change by the supervisor's API must carry it: a page of another origin cannot send it."""

_PORTS = {
    "page": 0,
    "postgres": 2,
    "bbs-metrics": 7,
    "bbs-health": 8,
    "bbs": 9,
    "bbs-debug": 10,
    "locket": 11,
    "auctioneer": 16,
}
_FIRST_CELL_PORT = 21
_PORTS_PER_CELL = 2

MOST_CELLS = 50
HIGHEST_PORT_BASE = 65535 - _FIRST_CELL_PORT - _PORTS_PER_CELL * MOST_CELLS


@dataclass(frozen=True, slots=True)
class Layout:
    """The plan of one stack. Nothing here touches the disk."""

    folder: Path
    port_base: int = DEFAULT_PORT_BASE
    cells: int = 3

    def port(self, part: str) -> int:
        """The port of a part: a name of `_PORTS` or a cell's."""
        if part in self.cell_names():
            return self.port_base + _FIRST_CELL_PORT + _PORTS_PER_CELL * self.cell_names().index(part)
        return self.port_base + _PORTS[part]

    def admin_port(self, cell: str) -> int:
        """The cell's local port: `GET /ping` and `POST /evacuate`."""
        return self.port(cell) + 1

    def cell_names(self) -> tuple[str, ...]:
        return tuple(f"cell-{number}" for number in range(1, self.cells + 1))

    def parts(self) -> tuple[str, ...]:
        """All processes of the stack, in the order they start."""
        return ("postgres", "locket", "bbs", "auctioneer", *self.cell_names())

    def ports(self) -> dict[str, int]:
        """Every port of the stack by the name of its use."""
        cells = {name: self.port(name) for name in self.cell_names()}
        admin = {f"{name}-admin": self.admin_port(name) for name in self.cell_names()}
        return {name: self.port(name) for name in _PORTS} | cells | admin

    def url(self, part: str) -> str:
        return f"https://127.0.0.1:{self.port(part)}"

    @property
    def certificates(self) -> Path:
        return self.folder / "certs"

    @property
    def pid_files(self) -> Path:
        """Which processes are ours: one file per part that runs."""
        return self.folder / "run"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor as long as it lives."""
        return self.folder / "run" / "lock"

    @property
    def failure_file(self) -> Path:
        """Says why the last start failed, as long as none succeeded."""
        return self.folder / "run" / "failure.txt"

    def config(self, part: str) -> Path:
        return self.folder / "config" / f"{part}.json"

    def client_identity(self) -> tuple[Path, Path, Path]:
        """CA, certificate and key for people and tools."""
        return self.certificates / "ca.crt", self.certificates / "client.crt", self.certificates / "client.key"

    def log(self, part: str) -> Path:
        return self.folder / "logs" / f"{part}.log"

    def data(self, part: str) -> Path:
        """What a part keeps over restarts."""
        return self.folder / "data" / part
