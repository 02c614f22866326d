"""What a simulated cell holds."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from enum import Enum

from bbs_protos import models_pb2 as models


class State(Enum):
    RESERVED = "reserved"
    RUNNING = "running"
    COMPLETED = "completed"


@dataclass(slots=True)
class Container:
    """An instance (`index` ≥ 0) or a task. `began` is monotonic."""

    guid: str
    process_guid: str = ""
    index: int = -1
    domain: str = ""
    state: State = State.RESERVED
    began: float = field(default_factory=time.monotonic)
    stopped: bool = False
    claimed: bool = False
    reason: str = ""
    routes: tuple[str, ...] = ()
    reported: tuple[str, ...] | None = None
    """The routes that the server acknowledged last; None if nothing is certain."""
    reported_at: int = 0
    """Wall clock in ns after the first acknowledgement of what is reported now."""
    doubtful: bool = False
    """The cell was away: until the row is seen to be ordinary, a start may be acknowledged without any effect."""
    busy: bool = False
    again: bool = False

    @property
    def is_task(self) -> bool:
        return self.index < 0

    @property
    def key(self) -> models.ActualLRPKey:
        return models.ActualLRPKey(process_guid=self.process_guid, index=self.index, domain=self.domain)

    def doubt(self) -> None:
        self.reported, self.doubtful = None, True

    def end(self, reason: str = "", stopped: bool = False) -> None:
        self.state, self.reason, self.stopped = State.COMPLETED, reason, self.stopped or stopped


def instance(process_guid: str, index: int, domain: str) -> Container:
    return Container(str(uuid.uuid4())[:28], process_guid, index, domain)


def task(guid: str) -> Container:
    return Container(guid)
