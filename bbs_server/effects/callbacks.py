"""Completion callbacks of tasks (tasks.md 10)."""

from __future__ import annotations

from collections import deque

from bbs_protos import models_pb2 as models
from google.protobuf.message import DecodeError

from bbs_server.core import tasks
from bbs_server.core.errors import Refused
from bbs_server.core.go_json import boolean, string
from bbs_server.core.log import Log, silent
from bbs_server.core.records import Task
from bbs_server.core.texts import spelled
from bbs_server.effects.background import Background
from bbs_server.effects.peer import NoAnswer, Peer
from bbs_server.effects.writing import Writing

ATTEMPTS = 3

TRY_AGAIN = frozenset((503, 504))
"""Answers that do not count as delivered. Every other one does, errors included."""

DEFAULT_WORKERS = 1000
"""Stands in for `task_callback_workers` below 1 (deviation 8)."""

_JSON = {"Content-Type": "application/json"}


class Callbacks:
    """At most `workers` callbacks at a time; further tasks wait in order.

    A task that waits already is not taken a second time. Nothing here delays a request.
    """

    def __init__(self, writer: Writing, peer: Peer, workers: int, log: Log = silent) -> None:
        self._writer = writer
        self._peer = peer
        self._workers = workers if workers > 0 else DEFAULT_WORKERS
        self._log = log
        self._background = Background(log)
        self._queue: deque[tuple[Task, models.TaskDefinition]] = deque()
        self._queued: set[str] = set()
        self._running = 0
        self._closed = False

    def submit(self, task: Task) -> None:
        """Deliver a completed task; one without a callback URL is left alone."""
        if self._closed or task.guid in self._queued:
            return
        definition = _definition(task)
        if not definition.completion_callback_url:
            return
        self._queued.add(task.guid)
        self._queue.append((task, definition))
        if self._running < self._workers:
            self._running += 1
            self._background.start(self._work())

    async def close(self) -> None:
        """Drop what waits and break off what runs; convergence submits both again (tasks.md 10.1)."""
        self._closed = True
        self._queue.clear()
        self._queued.clear()
        await self._background.close()
        await self._peer.close()

    async def _work(self) -> None:
        try:
            while self._queue:
                task, definition = self._queue.popleft()
                self._queued.discard(task.guid)
                try:
                    await self._deliver(task, definition)
                except Exception as problem:
                    self._background.note(problem)
        finally:
            self._running -= 1

    async def _deliver(self, task: Task, definition: models.TaskDefinition) -> None:
        request = models.TaskGuidRequest(task_guid=task.guid)
        try:
            # Whoever moves the task to Resolving is the only one to call: no double delivery.
            await self._writer.write(tasks.resolving, request)
        except Refused:
            return
        if not await self._call(task, definition):
            return
        try:
            await self._writer.write(tasks.delete, request)
        except Refused as refused:
            self._failed(task, "failed-to-delete-task", refused)

    async def _call(self, task: Task, definition: models.TaskDefinition) -> bool:
        """Whether the callback was delivered. If not, the task stays Resolving."""
        url, body = spelled(definition.completion_callback_url), body_json(task, definition).encode()
        for _ in range(ATTEMPTS):
            try:
                status = await self._peer.send("POST", url, _JSON, body)
            except NoAnswer as problem:
                self._failed(task, "failed-to-call-back", problem)
                if not problem.timed_out:
                    return False
            else:
                if status not in TRY_AGAIN:
                    return True
        return False

    def _failed(self, task: Task, action: str, problem: Exception) -> None:
        self._log("error", action, {"task_guid": task.guid, "error": str(problem)})


def body_json(task: Task, definition: models.TaskDefinition) -> str:
    """The body, keys in the reference's order; values are those of the task when it was submitted."""
    annotation = f'"annotation":{string(definition.annotation)},' if definition.annotation else ""
    return (
        f'{{"task_guid":{string(task.guid)},"failed":{boolean(task.failed)},'
        f'"failure_reason":{string(task.failure_reason)},"result":{string(task.result)},'
        f'{annotation}"created_at":{task.created_at}}}'
    )


def _definition(task: Task) -> models.TaskDefinition:
    try:
        return models.TaskDefinition.FromString(task.definition or b"")
    except DecodeError:
        return models.TaskDefinition()
