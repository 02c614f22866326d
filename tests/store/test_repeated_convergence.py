"""A pass of convergence whose batches are refused, so that the writer runs its steps again."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from bbs_protos import models_pb2 as models
from records import desired_lrp

from bbs_server.core import domains
from bbs_server.core.context import Context
from bbs_server.core.lrp_convergence import LRPConvergence
from bbs_server.core.outcome import AuctionLRPs, AuctionTasks, Outcome
from bbs_server.core.records import DesiredLRP, Task, TaskState
from bbs_server.core.state import State
from bbs_server.core.task_convergence import TaskConvergence

CELLS = [models.CellPresence(cell_id="cell")]
REPEATED = ("converge", "count", "auction-pending", "kick-completed")
UPSERT = models.UpsertDomainRequest(domain="d", ttl=1000)


def put(state: State, records: Any, context: Context) -> Outcome:
    for record in records:
        (state.desired_lrps if isinstance(record, DesiredLRP) else state.tasks).put(record)
    return Outcome(models.TaskLifecycleResponse())


async def test_what_runs_again_is_requested_and_counted_once(open_store: Any, psql: asyncpg.Connection[Any]) -> None:
    opened = await open_store()
    writer = opened.writer
    definition = models.TaskDefinition(root_fs="docker:r").SerializeToString()
    pending = Task("pending", "d", TaskState.PENDING, 2**62, 2**62, definition)
    completed = Task("completed", "d", TaskState.COMPLETED, 10, 20, definition, first_completed_at=2**62)
    lrps_desired = (desired_lrp(process_guid=guid, domain="d") for guid in ("p", "q"))
    await writer.write(domains.upsert, UPSERT)
    await writer.write(put, [*lrps_desired, pending, completed])
    lrps, tasks = LRPConvergence(CELLS), TaskConvergence(CELLS)
    for convergence in (lrps, tasks):
        for step in convergence.steps():
            if step.name in REPEATED:
                # Somebody else touches a row that a command of the same batch writes.
                await psql.execute("UPDATE domains SET expire_time = expire_time + 1")
                await asyncio.gather(writer.write(domains.upsert, UPSERT), writer.write(step.command, None))
            else:
                await writer.write(step.command, None)
    calls = [call for outcome in opened.dispatched for call in outcome.calls]
    lrp_starts = [call.starts for call in calls if isinstance(call, AuctionLRPs)]
    assert [sorted(start.process_guid for start in starts) for starts in lrp_starts] == [["p", "q"]]
    task_starts = [call.starts for call in calls if isinstance(call, AuctionTasks)]
    assert [[start.task_guid for start in starts] for starts in task_starts] == [["pending"]]
    assert lrps.counts is not None
    assert (lrps.counts.unclaimed, lrps.counts.missing) == (2, 2)
    assert tasks.counts is not None
    assert (tasks.counts.kicked, tasks.counts.pending, tasks.counts.completed) == (2, 1, 1)
