"""Runs task and LRP convergence (task-convergence.md 1 and 3, lrp-convergence.md 1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

from bbs_protos import models_pb2 as models

from bbs_server.core.encoding import Answer
from bbs_server.core.errors import ErrorType, Refused
from bbs_server.core.lrp_convergence import LRPConvergence
from bbs_server.core.outcome import Command, Step
from bbs_server.core.task_convergence import TaskConvergence
from bbs_server.process.group import Ready, pause, unless
from bbs_server.process.lager import Logger
from bbs_server.process.metrics import Figures, Passes

DEFAULT_WORKERS = 20
"""Stands in for `convergence_workers` below 1 (deviation 8)."""

_FAILURES_IN_A_ROW = 10
"""So many parts of a step that fail one after the other are taken for trouble that all of them have."""


class Writer(Protocol):
    """The part of the store's writer that convergence needs. Both methods raise Refused."""

    async def write(self, command: Command, request: Any, request_id: str = "") -> Answer: ...

    async def adopt_foreign_changes(self) -> int: ...


class Presences(Protocol):
    async def all(self) -> Sequence[models.CellPresence]:
        """Raises Refused."""


class Convergence(Protocol):
    """A pass of either kind. `counts` is set when its duration ends, before the calls that come last."""

    counts: Any

    def steps(self) -> Iterator[Step]: ...


class Converger:
    """Passes follow each other with a pause in between; both kinds of one pass run beside each other."""

    def __init__(self, writer: Writer, presences: Presences, figures: Figures, workers: int, logger: Logger) -> None:
        self._writer = writer
        self._presences = presences
        self._figures = figures
        self._workers = workers if workers > 0 else DEFAULT_WORKERS
        self._logger = logger

    async def run(self, interval: int, ready: Ready, stopping: asyncio.Event) -> None:
        """The member `converger`: a pass every `interval` ns after the end of the one before.

        The end does not wait for a running pass; what it has committed stays.
        """
        self._logger.info("starting")
        ready()
        while await pause(stopping, interval):
            await unless(stopping, self.converge())
        self._logger.info("done")

    async def converge(self) -> None:
        """One pass."""
        try:
            adopted = await self._writer.adopt_foreign_changes()
        except Refused as refused:
            self._logger.error("failed-to-adopt-foreign-changes", refused)
        else:
            if adopted:
                self._logger.info("adopted-foreign-changes", rows=adopted)
        await asyncio.gather(self._guarded(self.converge_lrps(), "lrps"), self._guarded(self.converge_tasks(), "tasks"))

    async def converge_lrps(self) -> None:
        """Its duration begins before the cells are fetched (lrp-convergence.md C1)."""
        logger, started = self._logger.session("converge-lrps"), time.perf_counter_ns()
        cells = await self._cells(logger)
        if cells is not None:
            await self._run(LRPConvergence(cells), self._figures.lrps, started, logger)

    async def converge_tasks(self) -> None:
        """Its duration begins when there are cells (task-convergence.md 3.1)."""
        logger = self._logger.session("converge-tasks")
        cells = await self._cells(logger)
        if cells is not None:
            await self._run(TaskConvergence(cells), self._figures.tasks, time.perf_counter_ns(), logger)

    async def _cells(self, logger: Logger) -> Sequence[models.CellPresence] | None:
        """The cells there are, None if nobody can say: then nothing is converged."""
        try:
            return await self._presences.all()
        except Refused as refused:
            if refused.error.type == ErrorType.RESOURCE_NOT_FOUND:
                return ()
            logger.error("failed-fetching-cells", refused)
            return None

    async def _run(self, convergence: Convergence, passes: Passes[Any], started: int, logger: Logger) -> None:
        """Submit the steps one after the other, those that are parallel as many at a time as there are workers."""
        logger.debug("starting")
        for parallel, steps in groupby(_recorded(convergence, passes, started), lambda step: step.parallel):
            workers = self._workers if parallel else 1
            await asyncio.gather(*(self._work(steps, logger) for _ in range(workers)))
        logger.debug("done", duration=time.perf_counter_ns() - started)

    async def _work(self, steps: Iterator[Step], logger: Logger) -> None:
        """Submit steps as long as there are any; others take from them, too."""
        for step in steps:
            await self._submit(step, logger)
            await asyncio.sleep(0)  # requests have their turn

    async def _submit(self, step: Step, logger: Logger) -> bool:
        """Returns whether it was done. A step that fails, or has a fault in a rule, affects no other."""
        try:
            await self._writer.write(step.command, None)
        except Refused as refused:
            logger.error(f"failed-to-{step.name}", refused)
        except Exception as fault:
            logger.error(f"failed-to-{step.name}", repr(fault))
        else:
            return True
        await self._submit_parts(step, logger)
        return False

    async def _submit_parts(self, step: Step, logger: Logger) -> None:
        """What is done separately in the reference. Where everything fails, no part is to blame."""
        failures = 0
        for part in step.parts():
            failures = 0 if await self._submit(part, logger) else failures + 1
            if failures == _FAILURES_IN_A_ROW:
                return
            await asyncio.sleep(0)  # requests have their turn

    async def _guarded(self, work: Any, what: str) -> None:
        """A fault in a rule must not end the process: the next pass tries again."""
        try:
            await work
        except Exception as problem:
            self._logger.error(f"failed-to-converge-{what}", repr(problem))


def _recorded(convergence: Convergence, passes: Passes[Any], started: int) -> Iterator[Step]:
    """The steps of a pass, which is recorded as soon as it has counts."""
    recorded = False
    for step in convergence.steps():
        if convergence.counts is not None and not recorded:
            passes.record(convergence.counts, time.perf_counter_ns() - started)
            recorded = True
        yield step
    if not recorded:
        passes.record(convergence.counts, time.perf_counter_ns() - started)
