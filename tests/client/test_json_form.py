"""The JSON form against the reference's own texts, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.client.json_form import NotThatMessage, dumps, loads

_VECTORS = Path(__file__).parents[3] / "shared" / "spec" / "wire-vectors.json"


def _vectors() -> list[Any]:
    if not _VECTORS.exists():
        return []
    vectors = json.loads(_VECTORS.read_text())["vectors"]
    return [vector for vector in vectors if vector.get("json") and hasattr(models, vector["message"])]


@pytest.mark.skipif(not _vectors(), reason="the vectors are not beside the repository")
@pytest.mark.parametrize("vector", _vectors(), ids=lambda vector: vector["name"])
def test_a_message_is_printed_as_the_reference_prints_it(vector: Any) -> None:
    kind = getattr(models, vector["message"])
    assert dumps(kind.FromString(bytes.fromhex(vector["output"]))) == vector["json"]


def test_a_task_is_read_with_its_definition_in_place() -> None:
    text = '{"task_guid":"t","Domain":"d","rootfs":"r:x","action":{"run":{"path":"p","user":"u"}},"memory_mb":5}'
    task = loads(text, models.Task)
    assert (task.task_guid, task.domain) == ("t", "d")
    assert task.task_definition.root_fs == "r:x"
    assert task.task_definition.action.run_action.path == "p"
    assert loads(dumps(task), models.Task) == task


def test_an_update_keeps_what_is_present() -> None:
    update = loads('{"instances":0,"routes":{"cf-router":[{"port":1}]}}', models.DesiredLRPUpdate)
    assert update.HasField("instances")
    assert dict(update.routes.routes) == {"cf-router": b'[{"port":1}]'}
    assert dumps(update) == '{"instances":0,"routes":{"cf-router":[{"port":1}]}}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense", "not JSON"),
        ("[]", "Task: expected an object"),
        ('{"task_guid":5}', "Task.task_guid: expected a text, not 5"),
        ('{"state":"Odd"}', "Task.state: unknown name 'Odd'"),
        ('{"action":{"serial":{"actions":[1]}}}', r"Task.action.serial.actions\[0\]: expected an object"),
    ],
)
def test_a_wrong_text_says_where(text: str, problem: str) -> None:
    with pytest.raises(NotThatMessage, match=problem):
        loads(text, models.Task)
