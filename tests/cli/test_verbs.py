"""Every verb of `bbs` against a running stack: what it does and what it prints."""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.client import Client
from bbs_server.client.json_form import dumps

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PROGRAM = Path(sys.executable).parent / "bbs"
TASK = json.loads((EXAMPLES / "task.json").read_text()) | {"domain": "cli"}
APP = json.loads((EXAMPLES / "hello.json").read_text()) | {"process_guid": "app", "domain": "cli", "instances": 2}


@pytest.fixture(scope="module")
def app(bbs: Any) -> str:
    """A running app of two instances."""
    bbs("create-desired-lrp", json.dumps(APP))
    bbs("wait-lrp", "app")
    return "app"


def test_a_task_from_its_creation_to_its_end(bbs: Any, stack: Any) -> None:
    bbs("create-task", "-", text=json.dumps(TASK))
    printed = bbs("wait-task", TASK["task_guid"])
    task = json.loads(printed)
    assert printed == dumps(asyncio.run(_task(stack, TASK["task_guid"]))) + "\n"
    assert (task["state"], task["failed"], task["result"]) == ("Completed", False, "42\n")
    assert bbs("task", TASK["task_guid"]) == printed == bbs("tasks", "-d", "cli")
    assert bbs("tasks", "--domain", "elsewhere") == ""
    row = bbs("tasks", "--table").splitlines()[2].split()
    assert (row[:3], row[-1]) == ([TASK["task_guid"], "cli", "Completed"], "42")
    bbs("delete-task", TASK["task_guid"])
    assert "RESOURCE_NOT_FOUND" in bbs("task", TASK["task_guid"], status=4)


async def _task(stack: Any, guid: str) -> models.Task:
    async with Client(stack.target()) as client:
        return await client.task(guid)


def test_a_failed_and_a_cancelled_task_are_told_by_status(bbs: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(
        json.dumps(TASK | {"task_guid": "slow", "action": {"run": {"path": "sleep", "args": ["60"], "user": "u"}}})
    )
    bbs("create-task", f"@{spec}")
    assert "has not completed after 0.5 s" in bbs("wait-task", "slow", "--within", "0.5", status=4)
    bbs("cancel-task", "slow")
    bbs("wait-task", "slow", status=1)
    assert bbs.lines("task", "slow")[0]["failure_reason"] == "task was cancelled"


def test_desired_lrps_are_listed_changed_and_removed(bbs: Any) -> None:
    bbs("create-desired-lrp", json.dumps(APP | {"process_guid": "other", "instances": 0}))
    assert "RESOURCE_EXISTS" in bbs("create-desired-lrp", json.dumps(APP | {"process_guid": "other"}), status=4)
    bbs("update-desired-lrp", "other", '{"annotation":"<new>"}')
    text = bbs("desired-lrp", "other")
    assert '"annotation":"\\u003cnew\\u003e"' in text
    assert text in bbs("desired-lrps", "-d", "cli")
    info = next(one for one in bbs.lines("desired-lrp-scheduling-infos") if one["process_guid"] == "other")
    assert info["instances"] == 0
    bbs("scale", "other", "1")
    assert bbs.lines("wait-lrp", "other")[0]["state"] == "RUNNING"
    bbs("delete-desired-lrp", "other")
    assert "RESOURCE_NOT_FOUND" in bbs("desired-lrp", "other", status=4)


def test_actual_lrps_are_filtered_and_retired(bbs: Any, app: str) -> None:
    assert [lrp["index"] for lrp in bbs.lines("wait-lrp", app)] == [0, 1]
    (first,) = bbs.lines("actual-lrps", "-p", app, "-i", "0")
    assert (first["state"], first["presence"], first["cell_id"]) == ("RUNNING", "ORDINARY", "cell-1")
    assert len(bbs.lines("actual-lrps", "-p", app, "--cell-id", "cell-1")) == 2
    assert bbs.lines("actual-lrps", "-c", "cell-9") == []
    (group,) = bbs.lines("actual-lrp-groups-for-guid", app, "-i", "1")
    assert group["instance"]["index"] == 1
    assert group in bbs.lines("actual-lrp-groups")
    bbs("retire-actual-lrp", app, "0")
    assert bbs.lines("wait-lrp", app)[0]["instance_guid"] != ""


def test_cells_and_their_states(bbs: Any, app: str) -> None:
    (cell,) = bbs.lines("cells")
    assert [cell] == bbs.lines("cell", "cell-1")
    assert (cell["cell_id"], cell["zone"], cell["capacity"]["containers"]) == ("cell-1", "z1", 4000)
    (state,) = bbs.lines("cell-state", "cell-1")
    assert {lrp["process_guid"] for lrp in state["LRPs"]} >= {app}
    assert len(bbs.lines("cell-states")) == 1
    assert "cell 'nobody' has no presence" in bbs("cell", "nobody", status=4)


def test_locks_and_presences(bbs: Any) -> None:
    assert [lock["key"] for lock in bbs.lines("locks")] == ["bbs"]
    bbs("claim-lock", "--key", "mine", "--owner", "me", "--value", "v", "--ttl", "60")
    mine = {"key": "mine", "owner": "me", "value": "v", "type": "lock", "type_code": 1}
    assert mine in bbs.lines("locks")
    assert "ALREADY_EXISTS" in bbs("claim-lock", "-k", "mine", "-o", "other", status=4)
    bbs("release-lock", "-k", "mine", "-o", "me")
    assert mine not in bbs.lines("locks")
    bbs("claim-presence", "-k", "ghost", "-o", "me", "-t", "1")
    assert {"cell-1", "ghost"} >= {one["key"] for one in bbs.lines("presences")}


@pytest.mark.parametrize("ttl", ["60", "60s", "1m30s", "0.5h", "0"])
def test_domains_take_durations_as_go_writes_them(bbs: Any, ttl: str) -> None:
    bbs("set-domain", f"for {ttl}", "--ttl", ttl)
    assert f'"for {ttl}"' in bbs("domains").splitlines()


def test_events_go_on_over_a_restart_of_the_server(bbs: Any, stack: Any) -> None:
    command = [PROGRAM, "task-events", "--watch"]
    with subprocess.Popen(command, env=bbs.environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            assert _an_event(bbs, watching.stdout, "before")
            stack.run("kill", "bbs")
            stack.run("start", "bbs")
            assert _an_event(bbs, watching.stdout, "after")
        finally:
            watching.terminate()


def _an_event(bbs: Any, lines: Any, name: str) -> bool:
    """Make tasks until one is seen: nobody tells when the other program has subscribed."""
    for number in range(20):
        guid = f"{name}-{number}"
        bbs("create-task", json.dumps(TASK | {"task_guid": guid}))
        bbs("wait-task", guid)
        while select.select([lines], [], [], 0.2)[0]:
            event = json.loads(lines.readline())
            assert event["type"] in ("task_created", "task_changed")
            task = event["data"].get("task") or event["data"]["after"]
            if task["task_guid"] == guid:
                return True
    return False
