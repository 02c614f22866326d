"""Task convergence, row by row: the tables of task-convergence.md sections 1 to 4 against a real system.

The limits are those of section 4: tasks are kicked after 30 s, Pending ones expire after 60 s, Completed ones after
120 s. The receiver of callbacks answers 200.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import trustme
from bbs_protos import loggregator_pb2 as loggregator
from bbs_protos import loggregator_pb2_grpc
from bbs_protos import models_pb2 as models

from bbs_server.store.sealing import Keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECOND = 10**9
STATES = {"Pending": 1, "Running": 2, "Completed": 3, "Resolving": 4, "Invalid": 0, "NULL": None}
GARBAGE = "garbage"
TOO_SHORT = Keys("label", {"label": "passphrase"}).seal(b"\x02")
OVERDUE = "not started within time limit"
LOST = "cell disappeared before completion"

INSERT = """
INSERT INTO tasks (guid, domain, created_at, updated_at, first_completed_at, state, cell_id, result, task_definition,
  rejection_count, rejection_reason)
VALUES ($1, 'dom', $2, $3, $4, $5, $6, 'result', $7, $8, '')
"""


@dataclass(frozen=True)
class Row:
    """A task before and after two passes. Ages in s; `completed` None is a `first_completed_at` of 0.

    The cell `home` is present. `after` is a state, or empty if the task is gone.
    """

    name: str
    state: str
    after: str
    events: str = ""
    created: int = 10
    updated: int = 10
    completed: int | None = None
    cell: str = ""
    callback: bool = False
    rejections: int = 0
    definition: str = ""
    failure: str = ""
    auctioned: bool = False
    called: bool = False


# fmt: off
STEPS = (
    Row("1-older", "Pending", "Completed", "changed Pending -> Completed", created=61, callback=True, failure=OVERDUE),
    Row("1-older-on-a-cell", "Pending", "Completed", "changed Pending -> Completed",
        created=70, cell="cellX", failure=OVERDUE),
    Row("1-older-and-rejected", "Pending", "Completed", "changed Pending -> Completed",
        created=61, rejections=2, failure=OVERDUE),
    Row("1-undecodable", "Pending", "", created=61, definition=GARBAGE),
    Row("2-younger", "Pending", "Pending", auctioned=True),
    Row("2-younger-updated-long-ago", "Pending", "Pending", updated=9999, auctioned=True),
    Row("2-younger-and-rejected", "Pending", "Pending", rejections=1, auctioned=True),
    Row("2-undecodable", "Pending", "", definition=GARBAGE),
    Row("2-too-short-to-be-a-definition", "Pending", "", definition=TOO_SHORT),
    Row("3-cell-present", "Running", "Running", cell="home", updated=20),
    Row("3-cell-present-for-long", "Running", "Running", cell="home", created=9999, updated=9999),
    Row("3-cell-missing", "Running", "Completed", "changed Running -> Completed",
        cell="cellZ", callback=True, failure=LOST),
    Row("3-no-cell-id", "Running", "Completed", "changed Running -> Completed", failure=LOST),
    Row("3-undecodable", "Running", "", cell="cellZ", definition=GARBAGE),
    Row("3-undecodable-on-a-present-cell", "Running", "Running", cell="home", definition=GARBAGE),
    Row("4-younger", "Resolving", "Resolving", updated=10, callback=True),
    Row("4-older", "Resolving", "Completed", "changed Resolving -> Completed", updated=40, completed=50),
    Row("4-older-with-callback", "Resolving", "", "changed Resolving -> Completed; changed Completed -> Resolving;"
        " removed Resolving", updated=40, completed=50, callback=True, called=True),
    Row("4-older-and-expired", "Resolving", "", "changed Resolving -> Completed; removed Completed",
        updated=40, completed=130, callback=True),
    Row("4-undecodable", "Resolving", "", updated=40, definition=GARBAGE),
    Row("4-undecodable-younger", "Resolving", "Resolving", updated=10, definition=GARBAGE),
    Row("5-expired", "Completed", "", "removed Completed", updated=10, completed=130),
    Row("5-expired-with-callback", "Completed", "", "removed Completed", updated=40, completed=130, callback=True),
    Row("5-never-completed", "Completed", "", "removed Completed", updated=10),
    Row("5-undecodable", "Completed", "", updated=10, completed=130, definition=GARBAGE),
    Row("5-younger", "Completed", "Completed", updated=10, completed=10, callback=True),
    Row("6-older-with-callback", "Completed", "", "changed Completed -> Resolving; removed Resolving",
        updated=40, completed=40, callback=True, called=True),
    Row("6-older", "Completed", "Completed", updated=40, completed=40),
    Row("6-undecodable", "Completed", "", updated=40, completed=40, definition=GARBAGE),
    Row("6-undecodable-younger", "Completed", "Completed", updated=10, completed=10, definition=GARBAGE),
    Row("8-state-0", "Invalid", "Invalid", created=9999, updated=9999),
    Row("8-state-null", "NULL", "NULL", created=9999, updated=9999),
)
# fmt: on
"""Named by the steps of section 2, and 8 by its detail 8."""


async def sealed(system: Any, callback: str) -> tuple[str, str]:
    """The guid of a task that was desired through the API, and its definition as the server stores it."""
    guid = system.guid("template")
    await system.client.desire_task(guid, "dom", system.task(callback))
    column = await system.database.fetchval("SELECT task_definition FROM tasks WHERE guid = $1", guid)
    return guid, column


async def insertions(system: Any, url: str, rows: Iterable[tuple[str, Row]]) -> list[tuple[Any, ...]]:
    """The statements that make tasks, by their guids."""
    templates = {True: await sealed(system, url), False: await sealed(system, "")}
    statements: list[tuple[Any, ...]] = [("DELETE FROM tasks WHERE guid = $1", guid) for guid, _ in templates.values()]
    now = time.time_ns()
    for guid, row in rows:
        times = [now - age * SECOND for age in (row.created, row.updated)]
        completed = 0 if row.completed is None else now - row.completed * SECOND
        definition = row.definition or templates[row.callback][1]
        state = STATES[row.state]
        statements.append((INSERT, guid, *times, completed, state, row.cell, definition, row.rejections))
    return statements


async def stored(system: Any, guid: str) -> Any:
    return await system.database.fetchrow("SELECT * FROM tasks WHERE guid = $1", guid)


def auctions(system: Any, guid: str, after: int) -> int:
    requests = [one for one in system.auctioneer.received[after:] if one.path == "/v1/tasks"]
    return sum(entry["TaskGuid"] == guid for request in requests for entry in request.json)


async def finished(system: Any, guid: str, callbacks: Any) -> None:
    """Wait for the callback of a task and what follows it."""
    await callbacks.wait_for(guid)
    await system.events.wait_for("tasks", lambda e: e.name == "task_removed" and e.message.task.task_guid == guid)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in STEPS])
async def test_steps(clean: Any, receiver: Any, row: Row) -> None:
    system, guid = clean, clean.guid("task")
    requested = len(system.auctioneer.received)
    statements = await insertions(system, receiver.url, [(guid, row)])
    began = time.time_ns()
    await system.converged(*statements, passes=2)
    if row.called:
        await finished(system, guid, receiver)
    await system.settled()
    after = await stored(system, guid)
    assert (after is not None) == bool(row.after)
    if after is not None:
        check_columns(row, after, began)
    if not row.definition:
        tasks = await system.client.tasks(domain="dom")
        assert [(task.task_guid, task.state) for task in tasks] == (
            [(guid, STATES[row.after] or 0)] if row.after else []
        )
    assert system.events.shown(guid) == list(filter(None, row.events.split("; ")))
    assert len(receiver.matching(guid)) == int(row.called)
    assert bool(auctions(system, guid, requested)) is row.auctioned
    if row.auctioned:
        assert auctions(system, guid, requested) >= 2, "in every pass"


def check_columns(row: Row, after: Any, began: int) -> None:
    assert after["state"] == STATES[row.after]
    assert after["cell_id"] == row.cell, "convergence keeps it"
    if row.failure:
        assert (after["failed"], after["failure_reason"], after["result"]) == (True, row.failure, "")
        assert after["first_completed_at"] == after["updated_at"]
        assert began <= after["updated_at"] <= time.time_ns()
    else:
        assert (after["failed"], after["failure_reason"], after["result"]) == (False, "", "result")
        assert abs(began - after["updated_at"] - row.updated * SECOND) < SECOND


# -- section 2, details ------------------------------------------------------------------


async def test_2_3_the_callback_of_a_failed_task_comes_after_the_kick_duration(clean: Any, receiver: Any) -> None:
    system, guid = clean, clean.guid("task")
    row = Row("", "Running", "Completed", cell="cellZ", callback=True)
    await system.converged(*await insertions(system, receiver.url, [(guid, row)]), passes=3)
    assert (await system.client.task(guid)).state == models.Task.Completed
    assert receiver.matching(guid) == []
    await system.converged(("UPDATE tasks SET updated_at = updated_at - $2 WHERE guid = $1", guid, 31 * SECOND))
    await finished(system, guid, receiver)
    [call] = receiver.matching(guid)
    assert call.method == "POST"
    created = call.json.pop("created_at")
    assert call.json == {"task_guid": guid, "failed": True, "failure_reason": LOST, "result": "", "created_at": created}


async def test_2_6_a_task_without_callback_url_is_kicked_in_vain_until_it_expires(clean: Any) -> None:
    system, guid = clean, clean.guid("task")
    row = Row("", "Completed", "Completed", updated=40, completed=40)
    await system.converged(*await insertions(system, "", [(guid, row)]), passes=3)
    assert (await system.client.task(guid)).state == models.Task.Completed
    older = "UPDATE tasks SET first_completed_at = first_completed_at - $2 WHERE guid = $1"
    await system.converged((older, guid, 90 * SECOND))
    await system.settled()
    assert await stored(system, guid) is None
    assert system.events.shown(guid) == ["removed Completed"]


async def test_3_a_cell_vanishes_through_the_api(clean: Any, receiver: Any) -> None:
    system, guid = clean, clean.guid("task")
    await system.cells.appear("cell-gone")
    await system.client.desire_task(guid, "dom", system.task(receiver.url))
    assert await system.client.start_task(guid, "cell-gone")
    await system.converged(passes=2)
    assert (await system.client.task(guid)).state == models.Task.Running
    await system.cells.vanish("cell-gone")
    await system.converged()
    await system.settled()
    task = await system.client.task(guid)
    assert (task.state, task.failed, task.failure_reason, task.cell_id) == (
        models.Task.Completed,
        True,
        LOST,
        "cell-gone",
    )
    shown = system.events.shown(guid)
    assert shown == ["created Pending", "changed Pending -> Running", "changed Running -> Completed"]


async def test_3_no_cells_at_all(clean: Any) -> None:
    """An empty set of cells is no failure."""
    system, guid = clean, clean.guid("task")
    async with system.cells.none(["home"]):
        await system.converged(*await insertions(system, "", [(guid, Row("", "Running", "", cell="home"))]))
        assert (await system.client.task(guid)).failure_reason == LOST


async def test_1_4_cells_are_known_by_the_id_in_their_value(clean: Any) -> None:
    system, kept, lost = clean, clean.guid("kept"), clean.guid("lost")
    await system.cells.appear("cellKid", key="cellK")
    await system.cells.appear("odd", value="{")
    try:
        rows = [(kept, Row("", "Running", "", cell="cellKid")), (lost, Row("", "Running", "", cell="cellK"))]
        await system.converged(*await insertions(system, "", rows))
        assert (await system.client.task(kept)).state == models.Task.Running
        assert (await system.client.task(lost)).failure_reason == LOST
    finally:
        await system.cells.vanish("cellK")
        await system.cells.vanish("odd")


async def test_1_4_locket_does_not_answer_so_the_pass_is_skipped(clean: Any) -> None:
    system = clean
    rows = [(system.guid("late"), Row("", "Pending", "", created=61)), (system.guid("old"), Row("", "Completed", ""))]
    statements = await insertions(system, "", rows)
    locking = await system.connect()
    try:
        async with locking.transaction():
            await locking.execute("LOCK TABLE locks IN ACCESS EXCLUSIVE MODE")
            place = await system.change(*statements)
            await system.program.logged("bbs.converger.converge-tasks.failed-fetching-cells", place)
            states = [(await system.client.task(guid)).state for guid, _ in rows]
            assert states == [models.Task.Pending, models.Task.Completed]
    finally:
        await locking.close()
    await system.converged()
    assert (await system.client.task(rows[0][0])).failure_reason == OVERDUE
    assert await stored(system, rows[1][0]) is None


# -- section 3 ---------------------------------------------------------------------------


async def test_3_3_one_request_with_all_pending_tasks(clean: Any) -> None:
    system, new, rejected = clean, clean.guid("pend-new"), clean.guid("pend-new-rej")
    requested = len(system.auctioneer.received)
    rows = [(new, Row("", "Pending", "")), (rejected, Row("", "Pending", "", rejections=1))]
    await system.converged(*await insertions(system, "", rows))
    request = next(one for one in system.auctioneer.received[requested:] if f'"{new}"'.encode() in one.body)
    assert (request.method, request.path, request.headers["X-Vcap-Request-Id"]) == ("POST", "/v1/tasks", "")
    same = {"Domain": "dom", "PlacementTags": None, "VolumeDrivers": [], "RootFs": "preloaded:cflinuxfs4"}
    same |= {"MemoryMB": 256, "DiskMB": 512, "MaxPids": 0, "state": "Invalid", "failed": False}
    assert sorted(request.json, key=lambda entry: len(entry["TaskGuid"])) == [
        {"TaskGuid": guid} | same for guid in (new, rejected)
    ]


async def test_3_3_nothing_pending_is_no_request(clean: Any) -> None:
    system, guid = clean, clean.guid("task")
    await system.converged(*await insertions(system, "", [(guid, Row("", "Running", "", cell="home"))]))
    requested = len(system.auctioneer.received)
    await system.converged(passes=2)
    assert len(system.auctioneer.received) == requested


async def test_3_3_the_auctioneer_refuses_and_is_asked_again(clean: Any) -> None:
    system, guid = clean, clean.guid("task")
    requested = len(system.auctioneer.received)
    system.auctioneer.status = 500
    try:
        place = len(system.program.lines)
        await system.client.desire_task(guid, "dom", system.task())
        await system.converged(passes=2)
        await system.program.logged("bbs.auctioneer-client.failed-to-request-auctions", place)
    finally:
        system.auctioneer.status = 202
    assert (await system.client.task(guid)).state == models.Task.Pending
    assert auctions(system, guid, requested) >= 3


async def test_3_4_a_callback_that_is_not_delivered_is_tried_again(clean: Any, receiver: Any) -> None:
    """503 three times leaves the task Resolving; when it is old enough it is demoted and called back again."""
    system, guid = clean, clean.guid("task")
    receiver.status = 503
    row = Row("", "Completed", "", updated=40, completed=40, callback=True)
    await system.converged(*await insertions(system, receiver.url, [(guid, row)]))
    await receiver.wait_for(guid, 3)
    await system.converged(passes=2)
    assert (await system.client.task(guid)).state == models.Task.Resolving
    assert len(receiver.matching(guid)) == 3
    receiver.status = 200
    await system.converged(("UPDATE tasks SET updated_at = updated_at - $2 WHERE guid = $1", guid, 31 * SECOND))
    await finished(system, guid, receiver)
    await system.settled()
    resolving = "changed Completed -> Resolving"
    shown = [resolving, "changed Resolving -> Completed", resolving, "removed Resolving"]
    assert system.events.shown(guid) == shown


# -- section 1, schedule and limits ------------------------------------------------------


async def test_1_passes_follow_each_other_at_the_interval(run_system: Any) -> None:
    """The first comes one interval after the start, the next one interval after the end of the one before."""
    async with run_system(converge_repeat_interval="1s") as system:
        place, times = 0, []
        for message in ("starting", *(f"converge-tasks.{what}" for what in ("starting", "done", "starting"))):
            place = await system.program.logged(f"bbs.converger.{message}", place)
            times.append(float(system.program.lines[place - 1]["timestamp"]))
        started, first, done, second = times
        assert 0.99 <= first - started < 20
        assert 0.99 <= second - done < 20
        messages = [line["message"] for line in system.program.lines]
        for what in ("lrps", "tasks"):
            assert messages.index(f"bbs.converger.converge-{what}.starting") > messages.index("bbs.started")


async def test_1_1_absent_limits_are_zero(run_system: Any) -> None:
    """Every pending task is too old, every completed one is deleted."""
    absent = dict.fromkeys(("kick_task_duration", "expire_pending_task_duration", "expire_completed_task_duration"))
    async with run_system(**absent) as system:
        guid = system.guid("task")
        await system.client.desire_task(guid, "dom", system.task())
        await system.events.wait_for("tasks", lambda event: event.name == "task_removed")
        await system.settled()
        shown = ["created Pending", "changed Pending -> Completed", "removed Completed"]
        assert system.events.shown(guid) == shown


# -- section 4 ---------------------------------------------------------------------------


class Agent(loggregator_pb2_grpc.IngressServicer):
    """Keeps the figures it gets."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._changed = asyncio.Condition()

    async def BatchSender(self, batches: AsyncIterator[loggregator.EnvelopeBatch], context: Any) -> Any:  # noqa: N802
        async for batch in batches:
            async with self._changed:
                for envelope in batch.batch:
                    self.values |= {name: metric.value for name, metric in envelope.gauge.metrics.items()}
                    if envelope.counter.name:
                        self.values[envelope.counter.name] = envelope.counter.delta
                self._changed.notify_all()
        return loggregator.BatchSenderResponse()

    async def figures(self) -> dict[str, float]:
        """All values, once a report on completed tasks has come: those before were made without the example."""
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: self.values.get("TasksCompleted"))
        return self.values


@asynccontextmanager
async def ingress(folder: Path) -> AsyncIterator[tuple[Agent, dict[str, Any]]]:
    """A Loggregator agent, and the keys that make a server send to it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "agent-ca.crt"))
    for name in ("metron", "sender"):
        leaf = authority.issue_cert(name)
        leaf.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        leaf.cert_chain_pems[0].write_to_path(str(folder / f"{name}.crt"))
    ca, cert, key = ((folder / name).read_bytes() for name in ("agent-ca.crt", "metron.crt", "metron.key"))
    agent, server = Agent(), grpc.aio.server()
    loggregator_pb2_grpc.add_IngressServicer_to_server(agent, server)
    credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    paths = {"ca_path": "agent-ca.crt", "cert_path": "sender.crt", "key_path": "sender.key"}
    keys: dict[str, Any] = {f"loggregator_{name}": str(folder / file) for name, file in paths.items()}
    try:
        yield agent, keys | {"loggregator_api_port": port, "loggregator_source_id": "bbs"}
    finally:
        await server.stop(None)


EXAMPLE = (
    *[row for row in STEPS if row.name in ("1-older", "1-older-on-a-cell", "2-younger", "4-younger", "5-younger")],
    *[Row("", "Running", "", cell="cellA", updated=age) for age in (20, 9999)],
    *[Row("", "Running", "", cell="cellZ", updated=10), Row("", "Running", "")],
    *[Row("", "Running", "", cell=f"cell{letter}") for letter in "XYZ"],
    Row("", "Pending", "", rejections=1),
    Row("", "Completed", "", updated=40, completed=40, callback=True),
    Row("", "Completed", "", updated=40, completed=40),
    Row("", "Completed", "", updated=10, completed=130),
    Row("", "Completed", "", updated=40, completed=130, callback=True),
    Row("", "Completed", "", updated=10),
    Row("", "Resolving", "", updated=40, completed=50, callback=True),
    Row("", "Resolving", "", updated=40, completed=50),
    Row("", "Resolving", "", updated=40, completed=130, callback=True),
    *[row for row in STEPS if row.definition == GARBAGE],
)
"""The rows of the example: 7 running on cells that are not there, and 7 that no step can decode without any cell."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def example(postgres: Any, certificates: Any, running_system: Any, tmp_path_factory: Any) -> AsyncIterator[Agent]:
    """The metrics of a system whose first pass with the example is held up by the auctioneer.

    They are sent every 15 s from the start on, which is why this is under way while the other tests run.
    """
    folder = tmp_path_factory.mktemp("example")
    async with (
        ingress(folder) as (agent, keys),
        running_system(folder, loggregator=keys, communication_timeout="5m") as system,
    ):
        await system.cells.vanish("home")
        statements = await insertions(system, "https://127.0.0.1:9/", [(system.guid("row"), row) for row in EXAMPLE])
        templates = [statement for statement in statements if statement[0] != INSERT]
        await system.converged(*templates)
        # From here on the first pass that asks for an auction is that with the example.
        system.auctioneer.hold()
        await system.change(*statements)
        yield agent
        system.auctioneer.release()


async def test_4_the_figures_of_the_example(example: Agent) -> None:
    figures = await example.figures()
    assert figures["ConvergenceTasksPruned"] == 7 + 4
    assert figures["ConvergenceTasksKicked"] == 2 + 2 + 7 + 4
    states = {name: figures[f"Tasks{name}"] for name in ("Pending", "Running", "Completed", "Resolving")}
    assert states == {"Pending": 2, "Running": 0, "Completed": 2 + 7 + 4 + 2, "Resolving": 2}
