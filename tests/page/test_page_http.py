"""The page over HTTP: the stream of changes, details, and who is kept out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp
import aiohttp.web as web
import pytest
from bbs_protos import models_pb2 as models

from bbs_server.dev.example_fleet import ExampleFleet
from bbs_server.page import FeedFailed, Page, routes
from bbs_server.page.broadcast import Broadcast
from bbs_server.page.figures import Figures
from bbs_server.page.model import Fleet
from bbs_server.page.web import CHANGE_HEADER, only_this_host


class Deeds:
    """Actions that remember what they were told."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def parts(self) -> Sequence[Mapping[str, Any]]:
        return [{"name": "cell-1", "state": "ready", "restarts": 0, "cell": True}]

    async def run_task(self, script: str) -> str:
        self.done.append(("run", script))
        return "task-guid"

    async def desire(self, guid: str, instances: int) -> None:
        self.done.append(("desire", guid, instances))

    async def scale(self, guid: str, instances: int) -> None:
        if guid == "gone":
            raise FeedFailed("the requested resource could not be found")
        self.done.append(("scale", guid, instances))

    async def remove(self, guid: str) -> None:
        self.done.append(("remove", guid))

    async def cancel(self, guid: str) -> None:
        self.done.append(("cancel", guid))


class Served:
    """A page on a free port and a client for it."""

    def __init__(self, page: Page, http: aiohttp.ClientSession) -> None:
        self.page = page
        self.http = http

    async def json(self, path: str) -> Any:
        async with self.http.get(path) as answer:
            return await answer.json()


async def _served(page: Page) -> AsyncIterator[Served]:
    app = web.Application(middlewares=[only_this_host("127.0.0.1")])
    app.add_routes(routes(page))
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(url) as http, page.running():
        yield Served(page, http)
    await runner.cleanup()


@pytest.fixture
def fleet() -> ExampleFleet:
    return ExampleFleet(instances=50, cells=3, tasks=10)


@pytest.fixture
async def read_only(fleet: ExampleFleet) -> AsyncIterator[Served]:
    async for served in _served(Page(fleet)):
        yield served


@pytest.fixture
async def with_buttons(fleet: ExampleFleet) -> AsyncIterator[Served]:
    async for served in _served(Page(fleet, Deeds())):
        yield served


async def _messages(served: Served) -> AsyncIterator[tuple[str, Any]]:
    kind = ""
    async with served.http.get("/api/stream") as answer:
        assert answer.content_type == "text/event-stream"
        while line := (await answer.content.readline()).decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)


async def test_a_browser_gets_the_whole_picture_and_then_what_changes(read_only: Served, fleet: ExampleFleet) -> None:
    rows: dict[str, dict[Any, Any]] = {"instances": {}, "tasks": {}, "cells": {}, "lrps": {}}
    async with asyncio.timeout(10):
        stream = _messages(read_only)
        assert (await anext(stream))[0] == "begin"
        ready = moved = False
        async for kind, content in stream:
            ready = ready or kind == "ready"
            for name, known in rows.items():
                known.update((row[0], row) for row in content.get(name, ()))
                for key in content.get(f"{name}_gone", ()):
                    known.pop(key)
            complete = len(rows["instances"]) == 50 and len(rows["tasks"]) == len(fleet.all_tasks) and rows["cells"]
            if ready and complete and not moved:
                moved = True
                fleet.lose_cell("cell-1")
                fleet.desire_task("a-new-one")
            if moved and "a-new-one" in rows["tasks"] and rows["cells"].get("cell-1", [0, True])[1] is False:
                break
    states = [row[4] for row in rows["instances"].values() if row[5] == "cell-1"]
    assert states
    assert set(states) <= {"suspect"}
    assert len(rows["instances"]) == 50 + len(states)


async def test_changes_are_sent_at_most_ten_times_a_second(read_only: Served, fleet: ExampleFleet) -> None:
    loop = asyncio.get_running_loop()
    messages = _messages(read_only)
    async with asyncio.timeout(15):
        async for kind, _ in messages:
            if kind == "ready":
                break
        times = []
        async for _, content in messages:
            times.append(loop.time())
            if "last" in [row[0] for row in content.get("tasks", ())]:
                break
            for _ in range(20):
                fleet.desire_task(f"task-{len(fleet.all_tasks)}")
            if len(times) == 12:
                fleet.desire_task("last")
    assert len(times) <= 14
    assert times[-1] - times[0] >= (len(times) - 1) * 0.09


async def test_a_slow_browser_costs_a_bounded_queue_and_gets_the_picture_again() -> None:
    fleet = Fleet()
    broadcast = Broadcast(fleet, Figures())
    stream = broadcast.watch()
    async for message in stream:
        if message.startswith(b"event: ready"):
            break
    for number in range(500):
        fleet.put_task(models.Task(task_guid=f"t{number}", state=models.Task.Pending))
        broadcast.flush()
    seen: list[bytes] = []
    async with asyncio.timeout(5):
        async for message in stream:
            seen.append(message)
            if message.startswith(b"event: ready"):
                break
    assert sum(message.startswith(b"event: begin") for message in seen) == 1
    assert len(seen) < 110
    assert b'"t499"' in b"".join(seen)
    await stream.aclose()  # type: ignore[attr-defined]
    assert broadcast.watched == 0


async def test_details_are_asked_for_and_secrets_stay_at_home(read_only: Served, fleet: ExampleFleet) -> None:
    guid = next(iter(fleet.desired))
    lrp = fleet.desired[guid]
    lrp.environment_variables.add(name="PASSWORD", value="hunter2")
    lrp.action.run_action.env.add(name="TOKEN", value="hunter2")
    lrp.image_password = "hunter2"
    found = await read_only.json(f"/api/lrp?guid={guid}")
    assert found["desired"]["process_guid"] == guid
    assert found["desired"]["env"] == [{"name": "PASSWORD", "value": "(hidden)"}]
    assert "hunter2" not in json.dumps(found)
    assert len(found["instances"]) == lrp.instances
    assert (await read_only.json("/api/cell?guid=cell-2"))["cell"]["cell_id"] == "cell-2"


async def test_a_stack_on_a_laptop_shows_everything(with_buttons: Served, fleet: ExampleFleet) -> None:
    guid = next(iter(fleet.desired))
    fleet.desired[guid].environment_variables.add(name="COLOUR", value="blue")
    found = await with_buttons.json(f"/api/lrp?guid={guid}")
    assert found["desired"]["env"] == [{"name": "COLOUR", "value": "blue"}]


async def test_a_task_that_is_gone_still_has_its_history(read_only: Served, fleet: ExampleFleet) -> None:
    async with asyncio.timeout(5):
        async for kind, _ in _messages(read_only):
            if kind == "ready" and len(read_only.page.fleet.tasks.rows) == len(fleet.all_tasks):
                break
        fleet.desire_task("short")
        fleet.move_task("short", models.Task.Running, cell_id="cell-1")
        fleet.delete_task("short")
        while len(read_only.page.fleet.history("task", "short")) < 3:
            await asyncio.sleep(0)
    found = await read_only.json("/api/task?guid=short")
    assert found["task"] is None
    assert [entry[5] for entry in found["history"]] == ["pending", "running", "removed"]
    async with read_only.http.get("/api/task?guid=never") as answer:
        assert answer.status == 404
        assert "could not be found" in (await answer.json())["problem"]


async def test_every_answer_has_a_strict_policy_and_files_load_nothing_foreign(read_only: Served) -> None:
    async with read_only.http.get("/") as answer:
        policy = answer.headers["Content-Security-Policy"]
        text = await answer.text()
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in text, "no network assets"
    assert "style=" not in text
    for path in ("/page/app.js", "/page/style.css", "/api/cell?guid=x"):
        async with read_only.http.get(path) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Security-Policy"] == policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_strange_names_for_this_address_are_refused(read_only: Served) -> None:
    async with read_only.http.get("/api/cell", headers={"Host": "evil.example"}) as answer:
        assert answer.status == 403
    async with read_only.http.get("/", headers={"Host": "localhost:1"}) as answer:
        assert answer.status == 200


async def test_a_page_without_actions_changes_nothing(read_only: Served) -> None:
    async with read_only.http.post("/api/scale", json={}, headers={CHANGE_HEADER: "1"}) as answer:
        assert answer.status == 404


async def test_changes_need_the_header_that_other_sites_cannot_send(with_buttons: Served) -> None:
    deeds: Any = with_buttons.page.actions
    given = {"guid": "app", "instances": 4}
    async with with_buttons.http.post("/api/scale", json=given) as answer:
        assert answer.status == 403
    assert deeds.done == []
    async with with_buttons.http.post("/api/scale", json=given, headers={CHANGE_HEADER: "1"}) as answer:
        assert answer.status == 200
    assert deeds.done == [("scale", "app", 4)]
    given["guid"] = "gone"
    async with with_buttons.http.post("/api/scale", json=given, headers={CHANGE_HEADER: "1"}) as answer:
        assert (answer.status, await answer.json()) == (
            502,
            {"problem": "the requested resource could not be found"},
        )
    async with with_buttons.http.post("/api/scale", json={"guid": "x"}, headers={CHANGE_HEADER: "1"}) as answer:
        assert answer.status == 400
    async with with_buttons.http.post("/api/run-task", data=b"{", headers={CHANGE_HEADER: "1"}) as answer:
        assert answer.status == 400


async def test_a_feed_that_breaks_is_followed_again(fleet: ExampleFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, broken = fleet.cells, asyncio.Event()

    async def break_once() -> Any:
        monkeypatch.setattr(fleet, "cells", cells)
        broken.set()
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(fleet, "cells", break_once)
    page = Page(fleet)
    async with page.running(), asyncio.timeout(10):
        await broken.wait()
        while not page.fleet.cells.rows or len(page.fleet.instances.rows) < 50:
            await asyncio.sleep(0.01)
        fleet.desire_task("still-there")
        while "still-there" not in page.fleet.tasks.rows:
            await asyncio.sleep(0.01)
