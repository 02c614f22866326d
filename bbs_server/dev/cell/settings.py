"""The configuration file of a cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bbs_server.dev.certificates import Identity


@dataclass(frozen=True, slots=True)
class Settings:
    """All keys are required. Memory and disk in MiB, ports on 127.0.0.1."""

    cell_id: str
    zone: str
    port: int
    admin_port: int
    folder: str
    bbs_url: str
    locket_address: str
    ca: str
    cert: str
    key: str
    memory_mb: int
    disk_mb: int
    containers: int
    preloaded_rootfs: Sequence[str]
    placement_tags: Sequence[str]
    optional_placement_tags: Sequence[str]
    presence_ttl_seconds: int
    presence_interval_seconds: float
    sync_interval_seconds: float
    evacuation_timeout_seconds: float

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def identity(self) -> Identity:
        return Identity(Path(self.ca), Path(self.cert), Path(self.key))


def load(path: Path) -> Settings:
    return Settings(**json.loads(path.read_text()))
