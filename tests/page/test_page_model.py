"""The picture equals a fresh list, however lists and events are mixed; and it does not grow without end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bbs_protos import models_pb2 as models
from hypothesis import given, settings
from hypothesis import strategies as st

from bbs_server.client import StreamEvent
from bbs_server.client.events import MESSAGES
from bbs_server.core import actual_lrps, desired_lrps, evacuation, tasks
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import Answer, Elements
from bbs_server.core.errors import Refused
from bbs_server.core.event_messages import Revision, payload
from bbs_server.core.lrp_convergence import LRPConvergence
from bbs_server.core.outcome import Command, Event, Hub, Query
from bbs_server.core.records import ActualLRP
from bbs_server.core.state import Change, State
from bbs_server.page.feed import Kind
from bbs_server.page.model import Fleet, Row
from bbs_server.store.guids import random_guid

SECOND = 10**9
GUIDS = ("p1", "p1", "p1", "p2")
CELLS = ("c1", "c2")

LISTS: dict[Kind, tuple[Query, Any, Any]] = {
    Kind.TASKS: (tasks.list_r3, models.TasksRequest(), models.TasksResponse),
    Kind.DESIRED: (
        desired_lrps.list_scheduling_infos,
        models.DesiredLRPsRequest(),
        models.DesiredLRPSchedulingInfosResponse,
    ),
    Kind.INSTANCES: (actual_lrps.list_all, models.ActualLRPsRequest(), models.ActualLRPsResponse),
}


class BBS:
    """The real core, without a database: its lists, and the events it would send."""

    def __init__(self) -> None:
        self.state = State()
        self.now = 1_700_000_000 * SECOND
        self.events: list[StreamEvent] = []

    def run(self, command: Command, request: Any) -> None:
        try:
            outcome = command(self.state, request, self.context())
        except Refused:
            self.state.undo(self.state.take())
            return
        changes = self.state.take()
        if not _told(changes, outcome.events):
            # Quirk of the protocol: events that hide or misstate what happened (evacuation.md 6.1, actual-lrps.md 3.1).
            self.state.undo(changes)
            return
        for event in outcome.events:
            if event.hub is not Hub.GROUP:
                message = MESSAGES[event.name].FromString(payload(event, Revision.R1))
                self.events.append(StreamEvent(len(self.events), event.name, message))

    def list(self, kind: Kind) -> list[Any]:
        query, request, response = LISTS[kind]
        answer: Answer = query(self.state, request, self.context())
        assert isinstance(answer, Elements)
        message = response.FromString(b"".join(answer.pieces))
        return list(message.ListFields()[0][1]) if message.ListFields() else []

    def instance_at(self, guid: str, index: int) -> models.ActualLRPInstanceKey | None:
        """Of the ordinary or evacuating instance of an LRP."""
        for presence in (0, 1):
            row = self.state.actual_lrps.get((guid, index, presence))
            if row is not None and row.cell_id:
                return models.ActualLRPInstanceKey(instance_guid=row.instance_guid, cell_id=row.cell_id)
        return None

    def cell_of(self, guid: str) -> str:
        task = self.state.tasks.get(guid)
        return "" if task is None else task.cell_id

    def context(self) -> Context:
        return Context(self.now, random_guid, "", Settings(max_task_retries=1))

    def converge(self, cells: Iterable[str]) -> None:
        pass_ = LRPConvergence([models.CellPresence(cell_id=cell) for cell in cells])
        for step in pass_.steps():
            self.run(step.command, None)


def _told(changes: Sequence[Change], events: Sequence[Event]) -> bool:
    """Whether the instance events of a command show the rows it leaves, and no others as gone."""
    instance_events = [event for event in events if event.hub is Hub.INSTANCE and event.name != "actual_lrp_crashed"]
    left = {change.key: change.after for change in changes if change.table == "actual_lrps"}
    shown = {_version(event.after) for event in instance_events if event.after is not None}
    gone = {_version(event.before) for event in instance_events if event.name.endswith("removed")}
    rows = {_version(row) for row in left.values() if row is not None}
    removed = {key for key, row in left.items() if row is None}
    before = {_version(event.before)[0] for event in instance_events if event.before is not None}
    return rows <= shown and removed <= before and not gone & rows and all(key in left for key, *_ in gone)


def _version(row: ActualLRP) -> tuple[tuple[str, int, int], str, int, str]:
    return (row.process_guid, row.index, row.presence), row.tag_epoch, row.tag_index, row.state


def _key(guid: str, index: int) -> models.ActualLRPKey:
    return models.ActualLRPKey(process_guid=guid, index=index, domain="dom")


def _instance(cell: str) -> models.ActualLRPInstanceKey:
    return models.ActualLRPInstanceKey(instance_guid=f"ig-{cell}", cell_id=cell)


def _net() -> models.ActualLRPNetInfo:
    return models.ActualLRPNetInfo(address="10.0.0.1")


def _desired(guid: str, instances: int) -> models.DesiredLRP:
    action = models.Action(run_action=models.RunAction(path="true", user="vcap"))
    return models.DesiredLRP(
        process_guid=guid, domain="dom", root_fs="preloaded:fs", instances=instances, action=action
    )


Operation = tuple[str, str, int, str]


def perform(bbs: BBS, operation: Operation) -> None:
    """One thing that happens to LRP `guid`, instance `index`, on or by `cell`; tasks are named after both."""
    name, guid, index, cell = operation
    key, instance = _key(guid, index), _instance(cell)
    task = f"{guid}-{index}"
    if name in ("crash", "remove", "evacuate"):
        instance = bbs.instance_at(guid, index) or instance
    elif name == "complete task":
        cell = bbs.cell_of(task) or cell
    bbs.now += SECOND // 1000 * (index + 1)
    match name:
        case "desire":
            bbs.run(desired_lrps.desire, models.DesireLRPRequest(desired_lrp=_desired(guid, index + 1)))
        case "scale":
            update = models.DesiredLRPUpdate(instances=index + 1)
            bbs.run(desired_lrps.update, models.UpdateDesiredLRPRequest(process_guid=guid, update=update))
        case "remove desired":
            bbs.run(desired_lrps.remove, models.RemoveDesiredLRPRequest(process_guid=guid))
        case "claim":
            bbs.run(
                actual_lrps.claim,
                models.ClaimActualLRPRequest(process_guid=guid, index=index, actual_lrp_instance_key=instance),
            )
        case "start":
            bbs.run(
                actual_lrps.start,
                models.StartActualLRPRequest(
                    actual_lrp_key=key, actual_lrp_instance_key=instance, actual_lrp_net_info=_net()
                ),
            )
        case "crash":
            bbs.run(
                actual_lrps.crash,
                models.CrashActualLRPRequest(
                    actual_lrp_key=key, actual_lrp_instance_key=instance, error_message="broken"
                ),
            )
        case "fail":
            bbs.run(actual_lrps.fail, models.FailActualLRPRequest(actual_lrp_key=key, error_message="no room"))
        case "remove":
            bbs.run(
                actual_lrps.remove,
                models.RemoveActualLRPRequest(process_guid=guid, index=index, actual_lrp_instance_key=instance),
            )
        case "evacuate":
            bbs.run(
                evacuation.evacuate_running,
                models.EvacuateRunningActualLRPRequest(
                    actual_lrp_key=key, actual_lrp_instance_key=instance, actual_lrp_net_info=_net()
                ),
            )
        case "converge":
            bbs.converge({*CELLS} - {cell})
        case "wait":
            bbs.now += 60 * SECOND
        case "desire task":
            definition = models.TaskDefinition(root_fs="preloaded:fs")
            bbs.run(tasks.desire, models.DesireTaskRequest(task_guid=task, domain="dom", task_definition=definition))
        case "start task":
            bbs.run(tasks.start, models.StartTaskRequest(task_guid=task, cell_id=cell))
        case "reject task":
            bbs.run(tasks.reject, models.RejectTaskRequest(task_guid=task, rejection_reason="no"))
        case "complete task":
            request = models.CompleteTaskRequest(task_guid=task, cell_id=cell, failed=index > 0, failure_reason="why")
            bbs.run(tasks.complete, request)
        case "resolve task":
            bbs.run(tasks.resolving, models.TaskGuidRequest(task_guid=task))
        case "delete task":
            bbs.run(tasks.cancel, models.TaskGuidRequest(task_guid=task))
            bbs.run(tasks.resolving, models.TaskGuidRequest(task_guid=task))
            bbs.run(tasks.delete, models.TaskGuidRequest(task_guid=task))


NAMES = (
    *("desire", "desire", "scale", "remove desired", "claim", "start", "start", "start", "fail", "remove"),
    *("crash", "crash", "crash", "evacuate", "evacuate", "converge", "converge", "wait"),
    *("desire task", "start task", "reject task", "complete task", "resolve task", "delete task"),
)
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(GUIDS), st.integers(0, 1), st.sampled_from(CELLS)),
    min_size=20,
    max_size=100,
)


def take_lists(fleet: Fleet, lists: dict[Kind, list[Any]], part: int) -> None:
    for kind, records in lists.items():
        relisting = fleet.relist(kind)
        for start in range(0, len(records), part):
            relisting.add(records[start : start + part])
        relisting.finish()


def picture(fleet: Fleet) -> dict[str, set[Row]]:
    """All rows; the numbers of instances are the page's own."""
    return {
        "instances": {row[1:] for row in fleet.instances.rows.values()},
        "tasks": set(fleet.tasks.rows.values()),
        "lrps": set(fleet.lrps.rows.values()),
    }


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, st.data())
def test_lists_and_events_in_any_mixture_equal_a_fresh_list(operations: list[Operation], data: st.DataObject) -> None:
    """First connection: list at a, events until b. Then a gap. Second one: subscribed at c, listed at d."""
    bbs = BBS()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(operations)), min_size=4, max_size=4)))
    seen: list[tuple[int, dict[Kind, list[Any]]]] = []
    for place in range(len(operations) + 1):
        seen += [(len(bbs.events), {kind: bbs.list(kind) for kind in LISTS})] * cuts.count(place)
        if place < len(operations):
            perform(bbs, operations[place])
    (a, first), (b, _), (c, _), (_, second) = seen
    part = data.draw(st.integers(1, 5))
    fleet, browser = Fleet(), Rows()
    take_lists(fleet, first, part)
    for event in bbs.events[a:b]:
        fleet.apply(event)
        browser.take(fleet, data.draw(st.integers(1, 3)))
    take_lists(fleet, second, part)
    for event in bbs.events[c:]:
        fleet.apply(event)
        browser.take(fleet, 2)
    browser.take(fleet, 1000)
    fresh = Fleet()
    take_lists(fresh, {kind: bbs.list(kind) for kind in LISTS}, 100)
    assert picture(fleet) == picture(fresh)
    assert browser.rows == {"instances": fleet.instances.rows, "tasks": fleet.tasks.rows, "lrps": fleet.lrps.rows}


class Rows:
    """What a browser has after the changes that were sent to it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[Any, Row]] = {"instances": {}, "tasks": {}, "lrps": {}}

    def take(self, fleet: Fleet, limit: int) -> None:
        for name, rows in self.rows.items():
            changed, gone = getattr(fleet, name).take(limit)
            rows.update((row[0], row) for row in changed)
            for key in gone:
                rows.pop(key, None)


def test_a_crash_keeps_the_new_row_although_the_old_one_is_removed_after_it() -> None:
    bbs, fleet = BBS(), Fleet()
    take_lists(fleet, {kind: [] for kind in LISTS}, 1)
    for name in ("desire", "claim", "start", "crash"):
        perform(bbs, (name, "p1", 0, "c1"))
    for event in bbs.events:
        fleet.apply(event)
    (row,) = fleet.instances.rows.values()
    assert row[1:6] == ("p1", 0, "dom", "unclaimed", "")
    whats = [entry[5] for entry in fleet.history("lrp", "p1")]
    assert sorted(whats[:2]) == ["desired", "unclaimed"]
    assert whats[2:] == ["claimed", "running", "crashed", "unclaimed"]


def test_a_suspect_keeps_its_number_so_that_its_mark_changes_in_place() -> None:
    bbs, fleet = BBS(), Fleet()
    take_lists(fleet, {kind: [] for kind in LISTS}, 1)
    for operation in (("desire", 0), ("claim", 0), ("start", 0), ("converge", 0)):
        perform(bbs, (operation[0], "p1", operation[1], "c1"))
    for event in bbs.events:
        fleet.apply(event)
    rows = sorted(fleet.instances.rows.values())
    assert [(row[0], row[4], row[5]) for row in rows] == [(1, "suspect", "c1"), (2, "unclaimed", "")]


def test_what_crashed_for_good_is_on_no_cell_although_its_event_names_one() -> None:
    bbs, fleet = BBS(), Fleet()
    perform(bbs, ("desire", "p1", 0, "c1"))
    for _ in range(3):
        perform(bbs, ("start", "p1", 0, "c1"))
        perform(bbs, ("crash", "p1", 0, "c1"))
    for event in bbs.events:
        fleet.apply(event)
    assert bbs.events[-1].message.actual_lrp_instance_key.cell_id == "c1"  # type: ignore[attr-defined]
    (row,) = fleet.instances.rows.values()
    assert row[4:6] == ("crashed", "")
    assert row[7:] == (3, "broken")


def test_what_was_there_before_the_page_has_no_history() -> None:
    bbs, fleet = BBS(), Fleet()
    perform(bbs, ("desire", "p1", 2, "c1"))
    take_lists(fleet, {kind: bbs.list(kind) for kind in LISTS}, 100)
    assert len(fleet.instances.rows) == 3
    assert not fleet.entries


def test_cells_and_domains_are_compared_with_the_last_list() -> None:
    fleet = Fleet(now=lambda: 5)
    here = [models.CellPresence(cell_id=name, zone="z1") for name in CELLS]
    fleet.put_cells(here)
    fleet.put_domains(["a"])
    lrp = models.ActualLRP(actual_lrp_key=_key("p1", 0), actual_lrp_instance_key=_instance("c1"), state="RUNNING")
    fleet.put_instance(lrp)
    fleet.put_cells(here[1:])
    fleet.put_domains(["a", "b"])
    fleet.put_domains(["b"])
    assert fleet.cells.rows["c1"][1] is False, "it stays while an instance is on it"
    assert [entry[2:6] for entry in fleet.entries if entry[2] in ("cell", "domain")] == [
        ("cell", "c1", None, "absent"),
        ("domain", "b", None, "fresh"),
        ("domain", "a", None, "expired"),
    ]
    fleet.drop_instance(("p1", 0, 0))
    fleet.put_cells(here[1:])
    assert "c1" not in fleet.cells.rows
    fleet.put_domains(["b"])
    assert set(fleet.domains.rows) == {"b"}


def test_time_line_and_histories_are_bounded() -> None:
    fleet = Fleet()
    fleet.was_listed(Kind.TASKS)
    for number in range(6000):
        fleet.put_task(models.Task(task_guid=f"t{number}", state=models.Task.Pending, created_at=1))
        fleet.remove_task(models.Task(task_guid=f"t{number}", created_at=1))
    for number in range(300):
        fleet.put_task(models.Task(task_guid="busy", state=models.Task.Pending, created_at=1, updated_at=number << 20))
        state = models.Task.Running
        fleet.put_task(models.Task(task_guid="busy", state=state, created_at=1, updated_at=number << 20))
    assert len(fleet.entries) == 1000
    assert len(fleet.history("task", "busy")) == 200
    assert fleet.history("task", "t0") == []
    assert len(fleet.history("task", "t5999")) == 2
    assert [entry[0] for entry in fleet.entries_after(0, 10)] == list(range(12591, 12601))


def test_texts_that_are_no_utf8_are_shown_somehow() -> None:
    fleet = Fleet()
    task = models.Task.FromString(b"\x12\x02\xff\xfe")
    fleet.put_task(task)
    assert list(fleet.tasks.rows) == ["��"]
