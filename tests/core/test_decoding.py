"""Decoding against the byte-level vectors of the specification, and the refusals that are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import desired_lrps, tasks
from bbs_server.core.decoding import ALWAYS_WRITTEN, Undecodable, decode, mark_always_written
from bbs_server.core.encoding import encode

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "spec" / "wire-vectors.json"


def _vectors() -> list[Any]:
    if not VECTORS.exists():
        return []
    vectors = json.loads(VECTORS.read_text())["vectors"]
    wanted = [v for v in vectors if v["group"] != "down-convert" and hasattr(models, v["message"])]
    return [pytest.param(v, id=f"{v['message']}-{v['name']}") for v in wanted if not v.get("tolerated")]


@pytest.mark.skipif(not VECTORS.exists(), reason="the specification's vectors are not here")
@pytest.mark.parametrize("vector", _vectors())
def test_vector(vector: dict[str, Any]) -> None:
    kind = getattr(models, vector["message"])
    body = bytes.fromhex(vector["input"])
    if not vector["accept"]:
        with pytest.raises(Undecodable):
            decode(kind, body)
        return
    message = decode(kind, body)
    mark_always_written(message)
    encoded, expected = encode(message), bytes.fromhex(vector["output"])
    if vector.get("map_order") == "any":
        assert (len(encoded), message) == (len(expected), kind.FromString(expected))
    else:
        assert encoded == expected


WRAPPERS = {
    "timeout": models.Action(timeout_action=models.TimeoutAction(action=models.Action())),
    "try": models.Action(try_action=models.TryAction(action=models.Action())),
    "progress": models.Action(emit_progress_action=models.EmitProgressAction(action=models.Action())),
    "parallel": models.Action(parallel_action=models.ParallelAction(actions=[models.Action()])),
    "serial": models.Action(serial_action=models.SerialAction(actions=[models.Action()])),
    "codependent": models.Action(codependent_action=models.CodependentAction(actions=[models.Action()])),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("depth", [0, 20])
def test_an_inner_action_without_a_kind_is_left_to_validation(wrapper: models.Action, depth: int) -> None:
    action = wrapper
    for _ in range(depth):
        action = models.Action(try_action=models.TryAction(action=action))
    task = models.DesireTaskRequest(task_definition=models.TaskDefinition(action=action))
    lrp = models.DesireLRPRequest(desired_lrp=models.DesiredLRP(monitor=action))
    for request, check in ((task, tasks.CHECKS), (lrp, desired_lrps.CHECKS)):
        decoded = decode(type(request), request.SerializeToString())
        assert decoded == request
        assert "Invalid field: inner-action" in check[type(request)](decoded)


def test_an_inner_action_without_a_kind_beside_the_one_that_counts_is_accepted() -> None:
    action = models.Action(run_action=models.RunAction(path="p", user="u"), try_action=WRAPPERS["try"].try_action)
    definition = models.TaskDefinition(root_fs="a:b", action=action)
    request = models.DesireTaskRequest(task_guid="t", domain="d", task_definition=definition)
    assert tasks.CHECKS[type(request)](decode(type(request), request.SerializeToString())) == []


def test_an_action_without_a_kind_at_the_top_is_left_to_validation() -> None:
    request = models.DesireTaskRequest(task_definition=models.TaskDefinition(action=models.Action()))
    assert decode(models.DesireTaskRequest, request.SerializeToString()) == request


def test_nesting_beyond_the_runtime_is_refused() -> None:
    body = b""
    for number in [0x12, 0x0A] + [0x32, 0x0A] * 100:
        size, length = len(body), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        body = bytes([number, *length, size]) + body
    with pytest.raises(Undecodable):
        decode(models.DesireTaskRequest, body)


def test_map_keys_that_are_not_utf8_survive() -> None:
    body = b"\x0a\x09\xda\x01\x06\x0a\x02\xff\xfe\x12\x00"  # TaskDefinition.metric_tags
    assert encode(decode(models.DesireTaskRequest, body)) == body


def test_unknown_fields_are_forgotten_at_every_depth() -> None:
    unknown = b"\x9a\x06\x02zz"
    definition = b"\x0a\x01r" + unknown
    body = b"\x0a" + bytes([len(definition)]) + definition + unknown
    request = decode(models.DesireTaskRequest, body)
    assert encode(request) == b"\x0a\x03\x0a\x01r"


def test_text_that_is_not_utf8_survives() -> None:
    body = b"\x0a\x02\xff\xfe"
    assert encode(decode(models.TaskGuidRequest, body)) == body


@pytest.mark.parametrize("kind", ALWAYS_WRITTEN, ids=lambda kind: kind.__name__)
def test_always_written_fields(kind: type) -> None:
    message = kind()
    mark_always_written(message)
    numbers = [kind.DESCRIPTOR.fields_by_name[name].number for name in ALWAYS_WRITTEN[kind]]
    assert encode(message) == b"".join(bytes([number << 3 | 2, 0]) for number in numbers)
