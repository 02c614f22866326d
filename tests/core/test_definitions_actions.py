"""Actions: the effective member, the texts, any depth (definitions.md section 4)."""

from __future__ import annotations

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.definitions import check_task_definition

Action = models.Action
RUN = Action(run_action=models.RunAction(path="p", user="u"))
NO_RUN = Action(run_action=models.RunAction())


def download(**fields: str) -> Action:
    return Action(download_action=models.DownloadAction(**fields))


def good_download(**fields: str) -> Action:
    return download(**{"from": "f", "to": "t", "user": "u", **fields})


def parallel(*actions: Action) -> Action:
    return Action(parallel_action=models.ParallelAction(actions=actions))


def serial(*actions: Action) -> Action:
    return Action(serial_action=models.SerialAction(actions=actions))


def attempt(action: Action | None = None) -> Action:
    return Action(try_action=models.TryAction(action=action))


def emit(action: Action | None = None) -> Action:
    return Action(emit_progress_action=models.EmitProgressAction(action=action))


def timeout(action: Action | None = None, ms: int = 0) -> Action:
    return Action(timeout_action=models.TimeoutAction(action=action, timeout_ms=ms))


def codependent(*actions: Action) -> Action:
    return Action(codependent_action=models.CodependentAction(actions=actions))


def merged(*actions: Action) -> Action:
    result = Action()
    for action in actions:
        result.MergeFrom(action)
    return result


BAD: list[tuple[Action, str]] = [
    (Action(), "inner-action"),
    (NO_RUN, "path, user"),
    (Action(upload_action=models.UploadAction()), "to, from, user"),
    (download(), "from, to, user"),
    (download(checksum_value="x", checksum_algorithm="zz"), "from, to, user, invalid algorithm"),
    (good_download(checksum_value="x"), "checksum algorithm"),
    (good_download(checksum_algorithm="md5"), "checksum value"),
    (good_download(checksum_value="x", checksum_algorithm="sha512"), "invalid algorithm"),
    (timeout(), "action, timeout_ms"),
    (timeout(NO_RUN), "path, user, timeout_ms"),
    (timeout(RUN, -1), "timeout_ms"),
    (Action(timeout_action=models.TimeoutAction(action=RUN, deprecated_timeout_ns=5)), "timeout_ms"),
    (emit(), "action"),
    (attempt(), "action"),
    (attempt(Action()), "inner-action"),
    (parallel(), "actions"),
    (serial(), "actions"),
    (codependent(), "actions"),
    (parallel(RUN, NO_RUN, NO_RUN), "path, user, path, user"),
    (serial(attempt(parallel(timeout(NO_RUN))), codependent()), "path, user, timeout_ms, actions"),
    (merged(good_download(), NO_RUN, download(checksum_value="x")), "checksum algorithm"),
]


@pytest.mark.parametrize(("action", "problems"), BAD)
def test_bad_actions(action: Action, problems: str) -> None:
    definition = models.TaskDefinition(root_fs="a:", action=action)
    expected = [f"Invalid field: {name}" for name in ("action", *problems.split(", "))]
    assert check_task_definition(definition) == expected


GOOD = [
    RUN,
    good_download(checksum_value="x", checksum_algorithm="MD5"),
    good_download(checksum_value="x", checksum_algorithm="SHA256"),
    timeout(RUN, 1),
    emit(attempt(parallel(serial(codependent(RUN))))),
    merged(RUN, attempt()),
    merged(good_download(), NO_RUN),
]


@pytest.mark.parametrize("action", GOOD)
def test_good_actions(action: Action) -> None:
    assert check_task_definition(models.TaskDefinition(root_fs="a:", action=action)) == []


@pytest.mark.parametrize("kind", ["try_action", "timeout_action", "serial_action"])
def test_deep_nesting(kind: str) -> None:
    definition = models.TaskDefinition(root_fs="a:")
    current = definition.action
    for _ in range(2000):
        inner = getattr(current, kind)
        current = inner.actions.add() if kind == "serial_action" else inner.action
        if kind == "timeout_action":
            inner.timeout_ms = 1
    current.run_action.SetInParent()
    expected = ["Invalid field: action", "Invalid field: path", "Invalid field: user"]
    assert check_task_definition(definition) == expected
