"""Definitions for older clients (definitions.md section 6, wire.md section 8)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.downgrades import (
    down_convert_desired_lrp_v0,
    down_convert_desired_lrp_v2,
    down_convert_task_definition,
    populate_metrics_guid,
)

VECTORS = Path(__file__).parents[3] / "shared" / "spec" / "wire-vectors.json"
Action = models.Action


def vectors() -> list[Any]:
    if not VECTORS.exists():
        return []
    return [vector for vector in json.loads(VECTORS.read_text())["vectors"] if vector["group"] == "down-convert"]


def down_convert(kind: str, encoded: bytes, version: int) -> Message:
    if kind == "DesiredLRP":
        lrp = models.DesiredLRP.FromString(encoded)
        return down_convert_desired_lrp_v0(lrp) if version == 0 else down_convert_desired_lrp_v2(lrp)
    task = models.Task.FromString(encoded)
    task.task_definition.CopyFrom(down_convert_task_definition(task.task_definition))
    return task


@pytest.mark.skipif(not VECTORS.exists(), reason="the recorded vectors are not here")
@pytest.mark.parametrize(
    "vector", vectors(), ids=lambda vector: f"{vector['name']} {vector['message']} v{vector['to_version']}"
)
def test_recorded_vectors(vector: dict[str, Any]) -> None:
    result = down_convert(vector["message"], bytes.fromhex(vector["input"]), vector["to_version"])
    assert result.SerializeToString(deterministic=True).hex() == vector["output"]


def run(path: str = "p") -> Action:
    return Action(run_action=models.RunAction(path=path, user="u"))


def serial(*actions: Action) -> Action:
    return Action(serial_action=models.SerialAction(actions=actions))


def parallel(*actions: Action) -> Action:
    return Action(parallel_action=models.ParallelAction(actions=actions))


def attempt(action: Action) -> Action:
    return Action(try_action=models.TryAction(action=action))


def emit(action: Action) -> Action:
    return Action(emit_progress_action=models.EmitProgressAction(action=action))


def timeout(action: Action, ns: int = 0) -> Action:
    return Action(timeout_action=models.TimeoutAction(action=action, timeout_ms=5, deprecated_timeout_ns=ns))


def download(**fields: str) -> Action:
    return Action(download_action=models.DownloadAction(**fields))


SHARED, EXCLUSIVE = models.ImageLayer.SHARED, models.ImageLayer.EXCLUSIVE
SHA256, SHA512 = models.ImageLayer.SHA256, models.ImageLayer.SHA512
LAYERS = [
    models.ImageLayer(name="sh-nodig", url="http://l/1", destination_path="/1", layer_type=SHARED),
    models.ImageLayer(
        name="ex-1",
        url="http://l/2",
        destination_path="/2",
        layer_type=EXCLUSIVE,
        digest_algorithm=SHA256,
        digest_value="D2",
    ),
    models.ImageLayer(
        url="http://l/3", destination_path="/3", layer_type=SHARED, digest_algorithm=SHA512, digest_value="D3"
    ),
    models.ImageLayer(
        name="ex-2",
        url="http://l/4",
        destination_path="/4",
        layer_type=EXCLUSIVE,
        digest_algorithm=SHA512,
        digest_value="D4",
    ),
]
C1 = models.CachedDependency(
    name="c1", to="t", log_source="l", checksum_algorithm="md5", checksum_value="v", cache_key="k", **{"from": "f"}
)
SHARED_AS_DEPENDENCIES = [
    models.CachedDependency(name="sh-nodig", to="/1", cache_key="http://l/1", **{"from": "http://l/1"}),
    models.CachedDependency(
        to="/3", cache_key="sha512:D3", checksum_algorithm="sha512", checksum_value="D3", **{"from": "http://l/3"}
    ),
]


def layer_download(name: str, number: int, algorithm: str) -> Action:
    digest = f"D{number}"
    return download(
        artifact=name,
        to=f"/{number}",
        cache_key=f"{algorithm}:{digest}",
        user="ldu",
        checksum_algorithm=algorithm,
        checksum_value=digest,
        **{"from": f"http://l/{number}"},
    )


EXCLUSIVE_DOWNLOADS = parallel(layer_download("ex-1", 2, "sha256"), layer_download("ex-2", 4, "sha512"))
DEPENDENCY_DOWNLOADS = parallel(
    download(artifact="sh-nodig", to="/1", cache_key="http://l/1", user="ldu", **{"from": "http://l/1"}),
    download(to="/3", cache_key="sha512:D3", user="ldu", **{"from": "http://l/3"}),
    download(artifact="c1", to="t", cache_key="k", log_source="l", user="ldu", **{"from": "f"}),
)


def test_a_task_with_layers() -> None:
    definition = models.TaskDefinition(
        action=timeout(run()), image_layers=LAYERS, cached_dependencies=[C1], legacy_download_user="ldu", log_guid="x"
    )
    expected = models.TaskDefinition(
        action=serial(EXCLUSIVE_DOWNLOADS, timeout(run())),
        cached_dependencies=[*SHARED_AS_DEPENDENCIES, C1],
        legacy_download_user="ldu",
        log_guid="x",
    )
    assert down_convert_task_definition(definition) == expected


def lrp(**fields: Any) -> models.DesiredLRP:
    return models.DesiredLRP(**{"process_guid": "g", "action": run(), "legacy_download_user": "ldu", **fields})


def test_an_lrp_with_layers_and_setup() -> None:
    subject = lrp(setup=attempt(timeout(run())), image_layers=LAYERS, cached_dependencies=[C1])
    assert down_convert_desired_lrp_v2(subject) == lrp(
        setup=serial(EXCLUSIVE_DOWNLOADS, attempt(timeout(run()))), cached_dependencies=[*SHARED_AS_DEPENDENCIES, C1]
    )
    assert down_convert_desired_lrp_v0(subject) == lrp(
        setup=serial(DEPENDENCY_DOWNLOADS, serial(EXCLUSIVE_DOWNLOADS, timeout(run(), 5_000_000)))
    )


def test_an_lrp_without_setup() -> None:
    subject = lrp(image_layers=LAYERS[1::2])
    assert down_convert_desired_lrp_v2(subject) == lrp(setup=EXCLUSIVE_DOWNLOADS)
    assert down_convert_desired_lrp_v0(subject) == lrp(setup=EXCLUSIVE_DOWNLOADS)
    subject = lrp(cached_dependencies=[C1])
    only = parallel(DEPENDENCY_DOWNLOADS.parallel_action.actions[2])
    assert down_convert_desired_lrp_v0(subject) == lrp(setup=serial(only))


def test_wrappers_vanish_but_not_inside_a_timeout() -> None:
    subject = lrp(
        action=emit(attempt(serial(attempt(run("a")), emit(parallel(timeout(attempt(run("b")))))))),
        monitor=timeout(attempt(run())),
        setup=attempt(Action()),
    )
    assert down_convert_desired_lrp_v0(subject) == lrp(
        action=serial(run("a"), parallel(timeout(attempt(run("b")), 5_000_000))),
        monitor=timeout(attempt(run()), 5_000_000),
        setup=Action(),
    )


def test_wrappers_around_nothing() -> None:
    subject = lrp(setup=Action(try_action=models.TryAction()), action=Action(run_action=models.RunAction()))
    assert down_convert_desired_lrp_v0(subject) == lrp(action=Action(run_action=models.RunAction()))


def test_only_the_effective_member_of_a_rebuilt_action_is_kept() -> None:
    both = run()
    both.try_action.action.CopyFrom(run())
    subject = lrp(setup=both, image_layers=LAYERS[1::2])
    assert down_convert_desired_lrp_v2(subject) == lrp(setup=serial(EXCLUSIVE_DOWNLOADS, run()))
    assert down_convert_desired_lrp_v0(lrp(action=both)) == lrp(action=both)


@pytest.mark.parametrize(("milliseconds", "seconds"), [(61500, 61), (2**32 + 2500, 2), (-1, 4294967), (0, 0), (999, 0)])
def test_start_timeout(milliseconds: int, seconds: int) -> None:
    converted = down_convert_desired_lrp_v0(lrp(start_timeout_ms=milliseconds))
    assert converted == lrp(start_timeout_ms=milliseconds, deprecated_start_timeout_s=seconds)


def test_timeouts_wrap_like_64_bit_integers() -> None:
    action = Action(timeout_action=models.TimeoutAction(action=run(), timeout_ms=2**63 - 1))
    converted = down_convert_desired_lrp_v0(lrp(action=action))
    assert converted.action.timeout_action.deprecated_timeout_ns == -1_000_000


def nested_in(kind: str, levels: int) -> Action:
    result = current = Action()
    for _ in range(levels):
        inner = getattr(current, kind)
        current = inner.actions.add() if kind == "serial_action" else inner.action
    current.run_action.path = "p"
    return result


@pytest.mark.parametrize("kind", ["try_action", "emit_progress_action", "timeout_action", "serial_action"])
def test_deep_nesting(kind: str) -> None:
    """As deep as nothing that was decoded can be; encoding it must not fail either."""
    subject = models.DesiredLRP(image_layers=LAYERS, cached_dependencies=[C1])
    subject.setup.CopyFrom(nested_in(kind, 100))
    subject.action.CopyFrom(subject.setup)
    definition = models.TaskDefinition(image_layers=LAYERS)
    definition.action.CopyFrom(subject.setup)
    assert down_convert_desired_lrp_v0(subject).SerializeToString().count(b"\x0a\x01p") == 2
    assert down_convert_task_definition(definition).SerializeToString().count(b"\x0a\x01p") == 1
    assert populate_metrics_guid(subject) == subject


def test_texts_that_are_not_utf8_are_carried_over() -> None:
    odd = b"\xff\xfe"
    layer = bytes([0x12, 2, *odd, 0x20, 2, 0x30, 1, 0x3A, 2, *odd])
    subject = lrp()
    subject.image_layers.append(models.ImageLayer.FromString(layer))
    shared = subject.image_layers.add()
    shared.CopyFrom(subject.image_layers[0])
    shared.layer_type = SHARED
    converted = down_convert_desired_lrp_v2(subject)
    made = converted.setup.parallel_action.actions[0].download_action
    assert (getattr(made, "from"), made.cache_key, made.checksum_value) == (odd, b"sha256:" + odd, odd)
    assert getattr(converted.cached_dependencies[0], "from") == odd
    assert converted.cached_dependencies[0].cache_key == b"sha256:" + odd


def tags(**texts: str) -> dict[str, models.MetricTagValue]:
    return {name: models.MetricTagValue(static=text) for name, text in texts.items()}


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (lrp(), lrp()),
        (lrp(metric_tags=tags(source_id="s")), lrp(metric_tags=tags(source_id="s"), metrics_guid="s")),
        (lrp(metric_tags=tags(a="b"), metrics_guid="m"), lrp(metric_tags=tags(a="b", source_id="m"), metrics_guid="m")),
        (lrp(metrics_guid="m"), lrp(metric_tags=tags(source_id="m"), metrics_guid="m")),
        (
            lrp(metric_tags=tags(source_id="s"), metrics_guid="m"),
            lrp(metric_tags=tags(source_id="s"), metrics_guid="m"),
        ),
    ],
)
def test_metrics_guid_and_source_id(subject: models.DesiredLRP, expected: models.DesiredLRP) -> None:
    before = models.DesiredLRP()
    before.CopyFrom(subject)
    assert populate_metrics_guid(subject) == expected
    assert subject == before


def test_a_metrics_guid_that_is_not_utf8() -> None:
    subject = models.DesiredLRP.FromString(bytes([0x92, 0x01, 1, 0xFF]))
    assert subject.metrics_guid == b"\xff"
    assert populate_metrics_guid(subject).metric_tags["source_id"].static == b"\xff"


def nested(children: st.SearchStrategy[Action]) -> st.SearchStrategy[Action]:
    several = st.lists(children, max_size=3)
    return st.one_of(
        children.map(attempt),
        children.map(emit),
        children.map(timeout),
        several.map(lambda actions: serial(*actions)),
        several.map(lambda actions: parallel(*actions)),
        st.tuples(children, children).map(lambda pair: _merged(*pair)),
    )


def _merged(first: Action, second: Action) -> Action:
    result = Action()
    result.CopyFrom(first)
    result.MergeFrom(second)
    return result


actions = st.recursive(st.builds(run) | st.just(Action()), nested, max_leaves=12)
lrps = st.builds(
    lrp,
    action=actions,
    setup=st.none() | actions,
    monitor=st.none() | actions,
    image_layers=st.lists(st.sampled_from(LAYERS)),
    cached_dependencies=st.lists(st.just(C1)),
    start_timeout_ms=st.integers(-(2**63), 2**63 - 1),
)
FUNCTIONS = (down_convert_desired_lrp_v2, down_convert_desired_lrp_v0, populate_metrics_guid)


@given(lrps)
def test_inputs_are_never_modified(subject: models.DesiredLRP) -> None:
    before = subject.SerializeToString(deterministic=True)
    for function in FUNCTIONS:
        assert function(subject) is not subject
        assert subject.SerializeToString(deterministic=True) == before


@given(lrps)
def test_nothing_of_newer_versions_is_left(subject: models.DesiredLRP) -> None:
    assert not down_convert_desired_lrp_v2(subject).image_layers
    oldest = down_convert_desired_lrp_v0(subject)
    assert not oldest.image_layers
    assert not oldest.cached_dependencies
    assert down_convert_desired_lrp_v2(oldest) == oldest


@given(st.binary(max_size=300))
def test_any_message_can_be_converted(encoded: bytes) -> None:
    try:
        subject = models.DesiredLRP.FromString(encoded)
    except DecodeError:
        return
    for function in FUNCTIONS:
        assert isinstance(function(subject), models.DesiredLRP)
