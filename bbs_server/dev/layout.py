"""Where everything of a stack is: the files of its folder and its ports on 127.0.0.1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT_BASE = 8880
"""Puts the BBS and Locket on their usual ports, 8889 and 8891."""

_PORTS = {"page": 0, "postgres": 2, "bbs-health": 8, "bbs": 9, "bbs-debug": 10, "locket": 11, "auctioneer": 16}
_FIRST_CELL_PORT = 21
_PORTS_PER_CELL = 2


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

    def url(self, part: str) -> str:
        return f"https://127.0.0.1:{self.port(part)}"

    @property
    def certificates(self) -> Path:
        return self.folder / "certs"

    def config(self, part: str) -> Path:
        return self.folder / "config" / f"{part}.json"

    def log(self, part: str) -> Path:
        return self.folder / "logs" / f"{part}.log"

    def data(self, part: str) -> Path:
        """What a part keeps over restarts."""
        return self.folder / "data" / part
