"""Where the picture comes from: one small protocol, so that the page need not know."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from bbs_protos import models_pb2 as models
from google.protobuf.message import Message
from prometheus_client.metrics_core import Metric

from bbs_server.client import StreamEvent

PART = 512
"""Records per part of a list: what is decoded and applied at one go, a few ms."""

FIGURES = ("bbs_request_seconds", "bbs_commit_seconds", "bbs_batch_commands")
"""Prefixes of the metrics that the charts are made of."""


class FeedFailed(Exception):
    """The BBS cannot be asked; the text says why."""


class NotThere(FeedFailed):
    """The BBS knows no such task or LRP."""


class Kind(Enum):
    """What a list is a list of."""

    TASKS = "tasks"
    DESIRED = "desired"
    INSTANCES = "instances"


@dataclass(frozen=True, slots=True)
class Listed:
    """All records of a kind as they are now, in parts: of Task, DesiredLRPSchedulingInfo or ActualLRP."""

    kind: Kind
    parts: Iterable[Sequence[Message]]


Change = Listed | StreamEvent


class Feed(Protocol):
    """A BBS. `tasks` and `lrps` give complete lists first, then events, and lists again after each interruption.

    They end with the BBS only; a FeedFailed that they raise means: ask again.
    """

    def tasks(self) -> AsyncGenerator[Change, None]: ...

    def lrps(self) -> AsyncGenerator[Change, None]: ...

    async def cells(self) -> Sequence[models.CellPresence]:
        """Raises FeedFailed, like all that follow."""

    async def domains(self) -> Sequence[str]:
        """The fresh ones."""

    async def task(self, guid: str) -> models.Task:
        """Raises NotThere."""

    async def desired_lrp(self, guid: str) -> models.DesiredLRP:
        """Raises NotThere."""

    async def instances(self, guid: str) -> Sequence[models.ActualLRP]:
        """The instances of a desired LRP."""

    async def figures(self) -> Iterable[Metric]:
        """Metric families whose names begin with one of FIGURES; none if the server does not give them."""
