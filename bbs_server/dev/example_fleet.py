"""`python -m bbs_server.dev.example_fleet`: the page on a made-up fleet of any size, without a BBS behind it.

For work on the page itself: what would need thousands of processes is a number here.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Annotated, Any

import typer
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import Metric

from bbs_server.client import StreamEvent
from bbs_server.dev import definitions
from bbs_server.page import Listed, NotThere, start_page
from bbs_server.page.feed import PART, Change, Kind

_ORDINARY, _SUSPECT, _EVACUATING = models.ActualLRP.ORDINARY, models.ActualLRP.SUSPECT, models.ActualLRP.EVACUATING
_PER_PROCESS = 20


class ExampleFleet:
    """A fleet in memory that can be told what happens. A Feed of it gives lists and events as a BBS would."""

    def __init__(self, instances: int = 60, cells: int = 6, tasks: int = 12, seed: int = 7) -> None:
        self._random = random.Random(seed)
        self.present = [f"cell-{number}" for number in range(1, cells + 1)]
        self.desired: dict[str, models.DesiredLRP] = {}
        self.rows: dict[tuple[str, int, int], models.ActualLRP] = {}
        self.all_tasks: dict[str, models.Task] = {}
        self.fresh = ["cf-apps", "cf-tasks", definitions.DOMAIN]
        registry = CollectorRegistry()
        self._metrics = [
            Histogram(name, name, registry=registry)
            for name in ("bbs_request_seconds", "bbs_commit_seconds", "bbs_batch_commands")
        ]
        self._registry = registry
        self._watchers: dict[str, list[asyncio.Queue[StreamEvent]]] = {"task": [], "lrp": []}
        for number in range((instances + _PER_PROCESS - 1) // _PER_PROCESS):
            self._found(number, min(_PER_PROCESS, instances - number * _PER_PROCESS))
        for _ in range(tasks):
            self._random_task()

    # What happens

    def desire_task(self, guid: str) -> models.Task:
        task = models.Task(
            task_guid=guid, domain="cf-tasks", state=models.Task.Pending, task_definition=definitions.task("exit 0")
        )
        task.created_at = task.updated_at = time.time_ns()
        self.all_tasks[guid] = task
        self._emit("task_created", models.TaskCreatedEvent(task=task))
        return task

    def move_task(self, guid: str, state: int, **changes: Any) -> None:
        before = self.all_tasks[guid]
        after = models.Task()
        after.CopyFrom(before)
        after.state = state  # type: ignore[assignment]
        after.updated_at = time.time_ns()
        for name, value in changes.items():
            setattr(after, name, value)
        self.all_tasks[guid] = after
        self._emit("task_changed", models.TaskChangedEvent(before=before, after=after))

    def delete_task(self, guid: str) -> None:
        self._emit("task_removed", models.TaskRemovedEvent(task=self.all_tasks.pop(guid)))

    def lose_cell(self, cell: str) -> None:
        """Its presence is gone: what ran there is suspect, replacements wait."""
        self.present.remove(cell)
        for place in [place for place, lrp in self.rows.items() if _on(lrp, cell) and place[2] == _ORDINARY]:
            self._change(place, presence=_SUSPECT)
            self._create(place[0], place[1])

    def start_waiting(self) -> None:
        """What waits runs on a cell that is there, and the suspect it replaces is gone."""
        for place in [place for place, lrp in self.rows.items() if lrp.state == "UNCLAIMED" and self.present]:
            self.claim(place)
            self._change(place, state="RUNNING")
            for presence in (_SUSPECT, _EVACUATING):
                if (old := (*place[:2], int(presence))) in self.rows:
                    self._remove(old)

    def claim(self, place: tuple[str, int, int]) -> None:
        key = models.ActualLRPInstanceKey(
            instance_guid=uuid.uuid4().hex[:28], cell_id=self._random.choice(self.present)
        )
        self.rows[place].actual_lrp_instance_key.CopyFrom(key)
        self._change(place, state="CLAIMED")

    def evacuate(self, cell: str) -> None:
        for place in [place for place, lrp in self.rows.items() if _on(lrp, cell) and place[2] == _ORDINARY]:
            self._change(place, presence=_EVACUATING, modification_tag=_tag())
            self._create(place[0], place[1])

    def crash(self, place: tuple[str, int, int], restarts: bool = True) -> None:
        old = models.ActualLRP()
        old.CopyFrom(self.rows[place])
        new = models.ActualLRP()
        new.CopyFrom(old)
        new.crash_count += 1
        new.crash_reason = "APP/PROC/WEB: Exited with status 7"
        new.state = "UNCLAIMED" if restarts else "CRASHED"
        new.since = time.time_ns()
        new.modification_tag.index += 1
        new.ClearField("actual_lrp_instance_key")
        self.rows[place] = new
        crashed = models.ActualLRPCrashedEvent(
            actual_lrp_key=new.actual_lrp_key,
            actual_lrp_instance_key=old.actual_lrp_instance_key,
            crash_count=new.crash_count,
            crash_reason=new.crash_reason,
            since=new.since,
        )
        self._emit("actual_lrp_crashed", crashed)
        if restarts:
            self._emit("actual_lrp_instance_created", models.ActualLRPInstanceCreatedEvent(actual_lrp=new))
            self._emit("actual_lrp_instance_removed", models.ActualLRPInstanceRemovedEvent(actual_lrp=old))
        else:
            self._changed(old, new)

    def scale(self, guid: str, instances: int) -> None:
        before, after = self.desired[guid], models.DesiredLRP()
        after.CopyFrom(before)
        after.instances = instances
        after.modification_tag.index += 1
        self.desired[guid] = after
        for index in range(before.instances, instances):
            self._create(guid, index)
        for place in [place for place in self.rows if place[0] == guid and place[1] >= instances]:
            self._remove(place)
        self._emit("desired_lrp_changed", models.DesiredLRPChangedEvent(before=before, after=after))

    async def live(self, per_second: float) -> None:
        """Let something happen now and then."""
        while True:
            await asyncio.sleep(self._random.expovariate(per_second))
            places = [place for place, lrp in self.rows.items() if lrp.state == "RUNNING" and place[2] == _ORDINARY]
            what = self._random.random()
            if what < 0.3 and places:
                self.crash(self._random.choice(places), restarts=self._random.random() < 0.8)
            elif what < 0.5:
                self.start_waiting()
            elif self.all_tasks and what < 0.8:
                self._advance(self._random.choice(list(self.all_tasks)))
            else:
                self.desire_task(f"task-{uuid.uuid4().hex[:12]}")
            for metric, mean in zip(self._metrics, (0.004, 0.002, 3.0), strict=True):
                for _ in range(self._random.randint(2, 30)):
                    metric.observe(self._random.expovariate(1 / mean))

    # As a Feed

    async def tasks(self) -> AsyncGenerator[Change, None]:
        queue = self._watch("task")
        yield Listed(Kind.TASKS, _parts(list(self.all_tasks.values())))
        while True:
            yield await queue.get()

    async def lrps(self) -> AsyncGenerator[Change, None]:
        queue = self._watch("lrp")
        yield Listed(Kind.DESIRED, _parts([_scheduling_info(lrp) for lrp in self.desired.values()]))
        yield Listed(Kind.INSTANCES, _parts(list(self.rows.values())))
        while True:
            yield await queue.get()

    async def cells(self) -> Sequence[models.CellPresence]:
        return [
            models.CellPresence(
                cell_id=name,
                zone=f"z{number % 3 + 1}",
                rep_url=f"https://{name}.cell.service.cf.internal:1801",
                capacity=models.CellCapacity(memory_mb=65536, disk_mb=262144, containers=500),
            )
            for number, name in enumerate(self.present)
        ]

    async def domains(self) -> Sequence[str]:
        return self.fresh

    async def task(self, guid: str) -> models.Task:
        if guid not in self.all_tasks:
            raise NotThere("the requested resource could not be found")
        return self.all_tasks[guid]

    async def desired_lrp(self, guid: str) -> models.DesiredLRP:
        if guid not in self.desired:
            raise NotThere("the requested resource could not be found")
        return self.desired[guid]

    async def instances(self, guid: str) -> Sequence[models.ActualLRP]:
        return [lrp for place, lrp in self.rows.items() if place[0] == guid]

    async def figures(self) -> Iterable[Metric]:
        return list(self._registry.collect())

    # How

    def _found(self, number: int, instances: int) -> None:
        guid = f"{uuid.UUID(int=self._random.getrandbits(128))}-{uuid.UUID(int=self._random.getrandbits(128))}"
        lrp = definitions.web_app(guid, instances)
        lrp.domain = "cf-apps"
        lrp.modification_tag.CopyFrom(_tag())
        self.desired[guid] = lrp
        for index in range(instances):
            one = self._row(guid, index)
            if self._random.random() < 0.97:
                one.state = self._random.choices(["RUNNING", "CLAIMED", "CRASHED"], [95, 4, 1])[0]
            if one.state in ("RUNNING", "CLAIMED"):
                one.actual_lrp_instance_key.instance_guid = f"{self._random.getrandbits(112):028x}"
                one.actual_lrp_instance_key.cell_id = self._random.choice(self.present)
                ports = [models.PortMapping(container_port=8080, host_port=60000 + number % 5000)]
                one.actual_lrp_net_info.CopyFrom(models.ActualLRPNetInfo(address="10.0.16.4", ports=ports))
            self.rows[guid, index, _ORDINARY] = one

    def _random_task(self) -> None:
        task = self.desire_task(f"task-{self._random.getrandbits(48):012x}")
        for _ in range(self._random.randint(0, 3)):
            self._advance(task.task_guid)

    def _advance(self, guid: str) -> None:
        state = self.all_tasks[guid].state
        if state == models.Task.Pending and self.present:
            self.move_task(guid, models.Task.Running, cell_id=self._random.choice(self.present))
        elif state == models.Task.Running:
            failed = self._random.random() < 0.2
            self.move_task(
                guid, models.Task.Completed, failed=failed, failure_reason="Exited with status 1" if failed else ""
            )
        elif state == models.Task.Completed and self._random.random() < 0.5:
            self.move_task(guid, models.Task.Resolving)
        elif state == models.Task.Resolving:
            self.delete_task(guid)

    def _row(self, guid: str, index: int) -> models.ActualLRP:
        key = models.ActualLRPKey(process_guid=guid, index=index, domain=self.desired[guid].domain)
        return models.ActualLRP(
            actual_lrp_key=key, state="UNCLAIMED", since=time.time_ns(), modification_tag=_tag(), presence=_ORDINARY
        )

    def _create(self, guid: str, index: int) -> None:
        lrp = self._row(guid, index)
        self.rows[guid, index, _ORDINARY] = lrp
        self._emit("actual_lrp_instance_created", models.ActualLRPInstanceCreatedEvent(actual_lrp=lrp))

    def _remove(self, place: tuple[str, int, int]) -> None:
        lrp = self.rows.pop(place)
        self._emit("actual_lrp_instance_removed", models.ActualLRPInstanceRemovedEvent(actual_lrp=lrp))

    def _change(self, place: tuple[str, int, int], **changes: Any) -> None:
        before, after = self.rows.pop(place), models.ActualLRP()
        after.CopyFrom(before)
        after.modification_tag.index += 1
        after.since = time.time_ns()
        for name, value in changes.items():
            if isinstance(value, Message):
                getattr(after, name).CopyFrom(value)
            else:
                setattr(after, name, value)
        self.rows[place[0], place[1], int(after.presence)] = after
        self._changed(before, after)

    def _changed(self, before: models.ActualLRP, after: models.ActualLRP) -> None:
        owner = after if after.actual_lrp_instance_key.cell_id else before
        event = models.ActualLRPInstanceChangedEvent(
            actual_lrp_key=after.actual_lrp_key,
            actual_lrp_instance_key=owner.actual_lrp_instance_key,
            before=_info(before),
            after=_info(after),
        )
        self._emit("actual_lrp_instance_changed", event)

    def _emit(self, name: str, message: Message) -> None:
        for queue in self._watchers["task" if name.startswith("task") else "lrp"]:
            queue.put_nowait(StreamEvent(0, name, message))

    def _watch(self, stream: str) -> asyncio.Queue[StreamEvent]:
        queue: asyncio.Queue[StreamEvent] = asyncio.Queue()
        self._watchers[stream].append(queue)
        return queue


def _on(lrp: models.ActualLRP, cell: str) -> bool:
    return lrp.actual_lrp_instance_key.cell_id == cell


def _tag() -> models.ModificationTag:
    return models.ModificationTag(epoch=str(uuid.uuid4()))


def _info(lrp: models.ActualLRP) -> models.ActualLRPInfo:
    return models.ActualLRPInfo(
        state=lrp.state,
        since=lrp.since,
        presence=lrp.presence,
        crash_count=lrp.crash_count,
        crash_reason=lrp.crash_reason,
        modification_tag=lrp.modification_tag,
    )


def _scheduling_info(lrp: models.DesiredLRP) -> models.DesiredLRPSchedulingInfo:
    key = models.DesiredLRPKey(process_guid=lrp.process_guid, domain=lrp.domain)
    return models.DesiredLRPSchedulingInfo(
        desired_lrp_key=key, instances=lrp.instances, modification_tag=lrp.modification_tag
    )


def _parts(messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
    return (messages[start : start + PART] for start in range(0, len(messages), PART))


def run(
    instances: Annotated[int, typer.Option(min=0)] = 400,
    cells: Annotated[int, typer.Option(min=1)] = 8,
    tasks: Annotated[int, typer.Option(min=0)] = 60,
    port: Annotated[int, typer.Option()] = 8880,
    per_second: Annotated[float, typer.Option(help="How much happens.")] = 5.0,
) -> None:
    """Serve the page of a made-up fleet until Ctrl-C."""
    asyncio.run(_serve(ExampleFleet(instances, cells, tasks), port, per_second))


async def _serve(fleet: ExampleFleet, port: int, per_second: float) -> None:
    stop = await start_page("127.0.0.1", port, fleet)
    print(f"http://127.0.0.1:{port}/", flush=True)
    try:
        await fleet.live(per_second)
    finally:
        await stop()


if __name__ == "__main__":
    typer.run(run)
