"""What a pass records and goes on with when its steps fail."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from records import desired_lrp

from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import Answer
from bbs_server.core.errors import Refused, unknown
from bbs_server.core.outcome import AuctionLRPs, Call, Command, Retire
from bbs_server.core.records import (
    NEVER,
    RUNNING,
    UNCLAIMED,
    ActualLRP,
    Domain,
    Presence,
    Task,
    TaskState,
)
from bbs_server.core.state import State
from bbs_server.process.converger import Converger
from bbs_server.process.lager import Logger, Sink
from bbs_server.process.metrics import Figures

FETCH = 50_000_000
"""How long the cells take to be fetched, in ns."""


@dataclass
class Memory:
    """Runs commands on a state as the store's writer does, without a database.

    `trouble` may raise before a command. Changes of the guids in `locked` are refused, together with all others of the
    command. Cells stop an instance when `stopping` is released for it.
    """

    state: State = field(default_factory=State)
    trouble: Callable[[Command], None] = lambda command: None
    locked: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    stopping: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    waiting: int = 0
    _guids: Any = field(default_factory=lambda: map(str, itertools.count()))

    async def write(self, command: Command, request: Any, request_id: str = "") -> Answer:
        context = Context(time.time_ns(), self._guids.__next__, request_id, Settings())
        try:
            self.trouble(command)
            outcome = command(self.state, request, context)
        except Exception:
            self.state.undo(self.state.take())
            raise
        changes = self.state.take()
        if any(change.key in self.locked or change.key[0] in self.locked for change in changes):
            self.state.undo(changes)
            raise Refused(unknown("lock timeout"))
        self.calls += outcome.calls
        for call in outcome.calls:
            if isinstance(call, Retire):
                self.waiting += 1
                await self.stopping.acquire()
                self.waiting -= 1
        return outcome.answer

    async def adopt_foreign_changes(self) -> int:
        return 0


@dataclass
class Cells:
    """One cell, `here`, that is fetched slowly."""

    answered: int = 0

    async def all(self) -> Sequence[models.CellPresence]:
        asked = time.perf_counter_ns()
        while (now := time.perf_counter_ns()) < asked + FETCH:
            await asyncio.sleep(0)
        self.answered = now
        return [models.CellPresence(cell_id="here")]


@dataclass
class Setting:
    writer: Memory = field(default_factory=Memory)
    cells: Cells = field(default_factory=Cells)
    figures: Figures = field(default_factory=Figures)
    lines: list[dict[str, Any]] = field(default_factory=list)

    def converger(self, workers: int = 20) -> Converger:
        sink = Sink(lambda line: self.lines.append(json.loads(line)))
        return Converger(self.writer, self.cells, self.figures, workers, Logger(sink, "bbs"))

    def errors(self, task: str) -> list[tuple[str, str]]:
        """Action and error of what a session has logged as failed."""
        return [
            (line["message"].rpartition(".")[2], line["data"]["error"])
            for line in self.lines
            if f".{task}." in line["message"] and "error" in line["data"]
        ]


@pytest.fixture
def setting() -> Setting:
    return Setting()


def instance(process_guid: str, state: str, cell_id: str = "", **more: Any) -> ActualLRP:
    return ActualLRP(
        process_guid=process_guid,
        index=0,
        domain="dom",
        presence=Presence.ORDINARY,
        state=state,
        since=time.time_ns(),
        tag_epoch=process_guid,
        tag_index=0,
        cell_id=cell_id,
        instance_guid=f"ig-{process_guid}" if cell_id else "",
        **more,
    )


async def test_the_duration_of_lrps_begins_before_the_cells_are_fetched(setting: Setting) -> None:
    await setting.converger().converge_lrps()
    assert setting.figures.lrps.runs == 1
    assert setting.figures.lrps.duration >= FETCH


async def test_the_duration_of_tasks_begins_when_there_are_cells(setting: Setting) -> None:
    await setting.converger().converge_tasks()
    assert setting.figures.tasks.runs == 1
    assert 0 < setting.figures.tasks.duration <= time.perf_counter_ns() - setting.cells.answered


def unreachable(command: Command) -> None:
    raise Refused(unknown("connection refused"))


async def test_a_pass_without_a_database_is_recorded_with_zeros(setting: Setting) -> None:
    state = setting.writer.state
    state.domains.adopt("dom", Domain("dom", NEVER))
    state.desired_lrps.adopt("p", desired_lrp())
    state.actual_lrps.adopt(("q", 0, Presence.ORDINARY), instance("q", UNCLAIMED))
    state.tasks.adopt("t", Task("t", "dom", TaskState.PENDING, 1, 1, b""))
    setting.writer.trouble = unreachable
    await setting.converger().converge()
    lrps, tasks = setting.figures.lrps, setting.figures.tasks
    assert (lrps.runs, tasks.runs) == (1, 1)
    assert min(lrps.duration, tasks.duration) > 0
    assert lrps.counts.present_cells == 1
    assert (lrps.counts.fresh_domains, lrps.counts.unclaimed, lrps.counts.desired) == ((), 0, 0)
    assert (tasks.counts.pruned, tasks.counts.kicked, tasks.counts.pending) == (0, 0, 0)
    assert set(setting.errors("converge-lrps")) == {
        ("failed-to-prune-domains", "connection refused"),
        ("failed-to-count", "connection refused"),
    }


async def test_a_fault_in_a_step_ends_only_that_step(setting: Setting) -> None:
    """The faults are in rows that cannot be read although they are not marked so."""
    state = setting.writer.state
    state.desired_lrps.adopt("p", desired_lrp(volume_placement=b"\xff"))
    state.desired_lrps.adopt("q", desired_lrp(process_guid="q"))
    state.desired_lrps.adopt("r", desired_lrp(process_guid="r"))
    state.actual_lrps.adopt(("q", 0, Presence.ORDINARY), instance("q", RUNNING, "gone"))
    state.tasks.adopt("young", Task("young", "dom", TaskState.PENDING, 2**62, 1, b"\xff"))
    state.tasks.adopt("lost", Task("lost", "dom", TaskState.RUNNING, 1, 1, b"", cell_id="gone"))
    await setting.converger().converge()
    assert (setting.figures.lrps.runs, setting.figures.lrps.counts.desired) == (1, 3)
    # Once together with the other one to create, once alone.
    for action, error in setting.errors("converge-lrps"):
        assert (action, error.partition("(")[0]) == ("failed-to-converge", "DecodeError")
    assert len(setting.errors("converge-lrps")) == 2
    assert sorted((row.process_guid, row.presence, row.state) for row in state.actual_lrps) == [
        ("q", Presence.ORDINARY, UNCLAIMED),
        ("q", Presence.SUSPECT, RUNNING),
        ("r", Presence.ORDINARY, UNCLAIMED),
    ]
    [auction] = setting.writer.calls
    assert isinstance(auction, AuctionLRPs)
    assert sorted(start.process_guid for start in auction.starts) == ["q", "r"]
    assert (setting.figures.tasks.runs, setting.figures.tasks.counts.kicked) == (1, 1)
    [(action, error)] = setting.errors("converge-tasks")
    assert (action, error.partition("(")[0]) == ("failed-to-auction-pending", "DecodeError")


def lost(state: State, guids: Sequence[str]) -> None:
    """An instance and a task of each guid, on a cell that is gone."""
    for guid in guids:
        state.desired_lrps.adopt(guid, desired_lrp(process_guid=guid))
        state.actual_lrps.adopt((guid, 0, Presence.ORDINARY), instance(guid, RUNNING, "gone"))
        state.tasks.adopt(guid, Task(guid, "dom", TaskState.RUNNING, 1, 1, b"", cell_id="gone"))


async def test_what_the_database_refuses_holds_up_no_other_work(setting: Setting) -> None:
    state = setting.writer.state
    lost(state, ("before", "locked", "behind"))
    setting.writer.locked = {"locked"}
    await setting.converger().converge()
    assert {row.process_guid for row in state.actual_lrps if row.presence == Presence.SUSPECT} == {"before", "behind"}
    [auction] = setting.writer.calls
    assert isinstance(auction, AuctionLRPs)
    assert sorted(start.process_guid for start in auction.starts) == ["before", "behind"]
    assert [task.guid for task in state.tasks] == ["locked"]  # the others are old enough to be deleted at once
    # Once together with the others, once alone.
    assert setting.errors("converge-lrps") == [("failed-to-converge", "lock timeout")] * 2
    assert setting.errors("converge-tasks") == [("failed-to-fail-lost", "lock timeout")] * 2
    assert setting.figures.tasks.counts.kicked == 3


async def test_what_was_committed_in_doubt_is_auctioned(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    state, write = setting.writer.state, setting.writer.write
    lost(state, ("p", "q", "r"))

    async def in_doubt(command: Command, request: Any, request_id: str = "") -> Answer:
        """The commit that makes the instances suspect succeeds, but nobody hears of it."""
        before = len(state.actual_lrps)
        answer = await write(command, request, request_id)
        if before < len(state.actual_lrps):
            raise Refused(unknown("unexpected EOF"))
        return answer

    monkeypatch.setattr(setting.writer, "write", in_doubt)
    await setting.converger().converge_lrps()
    assert setting.errors("converge-lrps") == [("failed-to-converge", "unexpected EOF")]
    [auction] = setting.writer.calls
    assert isinstance(auction, AuctionLRPs)
    assert sorted(start.process_guid for start in auction.starts) == ["p", "q", "r"]


async def test_where_all_is_refused_not_every_record_is_tried(setting: Setting) -> None:
    setting.writer.locked = {f"p{number}" for number in range(50)}
    lost(setting.writer.state, sorted(setting.writer.locked))
    await setting.converger().converge()
    assert len(setting.errors("converge-lrps")) == len(setting.errors("converge-tasks")) == 11


async def test_as_many_instances_are_stopped_at_a_time_as_there_are_workers(setting: Setting) -> None:
    state, writer = setting.writer.state, setting.writer
    state.domains.adopt("dom", Domain("dom", NEVER))
    for number in range(5):
        state.actual_lrps.adopt((f"p{number}", 0, Presence.ORDINARY), instance(f"p{number}", RUNNING, "here"))
    converging = asyncio.create_task(setting.converger(workers=2).converge_lrps())
    for begun, at_once in ((2, 2), (3, 2), (4, 2), (5, 2), (5, 1)):
        async with asyncio.timeout(10):
            while (len(writer.calls), writer.waiting) != (begun, at_once):
                await asyncio.sleep(0)
        assert setting.figures.lrps.runs == 0
        writer.stopping.release()
    await converging
    assert setting.figures.lrps.runs == 1


async def test_an_lrp_that_cannot_be_looked_at_hides_no_other(setting: Setting) -> None:
    state = setting.writer.state
    for process_guid in ("before", "faulty", "behind"):
        state.desired_lrps.adopt(process_guid, desired_lrp(process_guid=process_guid))
    faulty = desired_lrp(process_guid="faulty", metric_tags=((),))
    state.desired_lrps.adopt("faulty", faulty)
    row = instance("faulty", RUNNING, "here", metric_tags=(("a", "b"),))
    state.actual_lrps.adopt(("faulty", 0, Presence.ORDINARY), row)
    await setting.converger().converge_lrps()
    assert [action for action, _ in setting.errors("converge-lrps")] == ["failed-to-gather"]
    [auction] = setting.writer.calls
    assert isinstance(auction, AuctionLRPs)
    assert sorted(start.process_guid for start in auction.starts) == ["before", "behind"]
