"""Task definitions and desired LRPs as a whole: which texts, in which order (definitions.md 2 and 5)."""

from __future__ import annotations

from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.definitions import (
    check_desired_lrp,
    check_metric_tags,
    check_task_definition,
    is_guid,
    metric_tags,
)

RUN = models.Action(run_action=models.RunAction(path="p", user="u"))


def task(**fields: Any) -> models.TaskDefinition:
    return models.TaskDefinition(**{"root_fs": "preloaded:x", "action": RUN, **fields})


def lrp(**fields: Any) -> models.DesiredLRP:
    valid = {
        "process_guid": "g",
        "domain": "d",
        "root_fs": "preloaded:x",
        "action": RUN,
        "metric_tags": {"source_id": models.MetricTagValue(static="g")},
    }
    return models.DesiredLRP(**{**valid, **fields})


def fields(*names: str) -> list[str]:
    return [f"Invalid field: {name}" for name in names]


def layer(layer_type: int = models.ImageLayer.SHARED, **more: Any) -> models.ImageLayer:
    return models.ImageLayer(
        url="u", destination_path="/d", layer_type=layer_type, media_type=models.ImageLayer.TGZ, **more
    )


def test_valid_definitions_have_no_problems() -> None:
    assert check_task_definition(task()) == []
    assert check_desired_lrp(lrp()) == []


def test_empty_messages() -> None:
    assert check_task_definition(models.TaskDefinition()) == [*fields("rootfs"), "invalid action type"]
    expected = [
        *fields("domain", "rootfs", "rootfs", "metric_tags", "domain", "process_guid"),
        "invalid action type",
    ]
    assert check_desired_lrp(models.DesiredLRP()) == expected


def test_a_task_with_everything_wrong() -> None:
    definition = models.TaskDefinition(
        root_fs="x",
        memory_mb=-1,
        disk_mb=-1,
        log_rate_limit=models.LogRateLimit(bytes_per_second=-2),
        max_pids=-1,
        annotation="x" * 10241,
        egress_rules=[models.SecurityGroupRule(), models.SecurityGroupRule()],
        image_username="u",
        cached_dependencies=[models.CachedDependency()],
        image_layers=[models.ImageLayer(layer_type=models.ImageLayer.EXCLUSIVE)],
    )
    assert ", ".join(check_task_definition(definition)) == (
        "Invalid field: rootfs, invalid action type, Invalid field: memory_mb, Invalid field: disk_mb, "
        "Invalid field: log_rate_limit, Invalid field: max_pids, Invalid field: annotation, "
        "Invalid field: egress_rules, Invalid field: egress_rules, Invalid field: image_password, "
        "Invalid field: cached_dependency, Invalid field: from, Invalid field: to, Invalid field: image_layer, "
        "Invalid field: url, Invalid field: destination_path, Invalid field: media_type, "
        "Invalid field: digest_algorithm, Invalid field: digest_value, Invalid field: legacy_download_user"
    )


def test_an_lrp_with_everything_wrong() -> None:
    bad = models.Action()
    subject = models.DesiredLRP(
        process_guid="a b",
        root_fs="x",
        instances=-1,
        memory_mb=-1,
        disk_mb=-1,
        log_rate_limit=models.LogRateLimit(bytes_per_second=-2),
        annotation="x" * 10241,
        max_pids=-1,
        routes=models.ProtoRoutes(routes={"r": b"x" * 131073}),
        metric_tags={"t": models.MetricTagValue()},
        metrics_guid="m",
        volume_mounted_files=[models.File(content="x" * 1048577)],
        setup=bad,
        action=bad,
        monitor=bad,
        environment_variables=[models.EnvironmentVariable()],
        egress_rules=[models.SecurityGroupRule(protocol="all")],
        cached_dependencies=[models.CachedDependency(to="t")],
        image_layers=[models.ImageLayer()],
        sidecars=[models.Sidecar(), models.Sidecar(action=RUN, disk_mb=-1)],
        volume_mounts=[models.VolumeMount()],
        image_password="p",
        check_definition=models.CheckDefinition(checks=[models.Check()]),
    )
    assert check_desired_lrp(subject) == [
        *fields("volumeMountedFiles", "domain", "rootfs", "instances", "memory_mb", "disk_mb"),
        *fields("log_rate_limit_bytes_per_second", "annotation", "max_pids", "routes"),
        *fields("metric_tags", "static", "dynamic", "source_id should match metrics_guid"),
        *fields("domain", "process_guid", "volumeMountedFiles"),
        *fields("setup", "inner-action", "action", "inner-action", "monitor", "inner-action"),
        "invalid field: name cannot be blank",
        *fields("egress_rules", "destinations [ Must have at least 1 destination ]"),
        *fields("cached_dependency", "from", "image_layer", "url", "destination_path", "layer_type", "media_type"),
        *fields("sidecars"),
        "invalid action type",
        *fields("disk_mb"),
        "invalid volume_mount driver",
        "invalid volume_mount mode",
        *fields("image_username", "check_definition", "port", "log_rate_limit"),
    ]


@pytest.mark.parametrize(
    "definition",
    [
        task(annotation="é" * 5120, memory_mb=2**31 - 1, disk_mb=0, max_pids=2**31 - 1, cpu_weight=2**32 - 1),
        task(log_rate_limit=models.LogRateLimit(bytes_per_second=-1)),
        task(environment_variables=[models.EnvironmentVariable()], volume_mounts=[models.VolumeMount()]),
        task(metric_tags={"t": models.MetricTagValue()}, volume_mounted_files=[models.File(content="x" * 2**21)]),
    ],
)
def test_what_tasks_may_have(definition: models.TaskDefinition) -> None:
    assert check_task_definition(definition) == []


@pytest.mark.parametrize(
    "subject",
    [
        lrp(annotation="é" * 5120, memory_mb=2**31 - 1, start_timeout_ms=-1),
        lrp(routes=models.ProtoRoutes(routes={"long name": b"x" * 65536, "b": b"x" * 65536})),
        lrp(volume_mounted_files=[models.File(content="x" * 2**19), models.File(content="x" * 2**19)]),
        lrp(check_definition=models.CheckDefinition()),
        lrp(environment_variables=[models.EnvironmentVariable(name="a=b")]),
    ],
)
def test_what_lrps_may_have(subject: models.DesiredLRP) -> None:
    assert check_desired_lrp(subject) == []


def test_annotation_is_measured_in_bytes() -> None:
    assert check_task_definition(task(annotation="é" * 5121)) == fields("annotation")
    assert check_desired_lrp(lrp(annotation="é" * 5121)) == fields("annotation")


@pytest.mark.parametrize(
    ("guid", "valid"), [("aZ0_-", True), ("", False), ("a\n", False), ("é", False), (b"\xff", False)]
)
def test_guids(guid: str | bytes, valid: bool) -> None:
    assert is_guid(guid) is valid


@pytest.mark.parametrize(
    ("names", "problem"), [({"image_username": "u"}, "image_password"), ({"image_password": "p"}, "image_username")]
)
def test_image_credentials_go_together(names: dict[str, str], problem: str) -> None:
    assert check_task_definition(task(**names)) == fields(problem)
    assert check_desired_lrp(lrp(**names)) == fields(problem)


SHA256, SHA512 = models.ImageLayer.SHA256, models.ImageLayer.SHA512
EXCLUSIVE = models.ImageLayer.EXCLUSIVE
LAYERS = [
    (models.ImageLayer(), ("image_layer", "url", "destination_path", "layer_type", "media_type")),
    (layer(digest_value="v"), ("image_layer", "digest_algorithm", "digest_algorithm")),
    (layer(digest_algorithm=SHA512), ("image_layer", "digest_value")),
    (layer(digest_algorithm=7), ("image_layer", "digest_value")),
    (layer(digest_algorithm=7, digest_value="v"), ("image_layer", "digest_algorithm")),
    (layer(EXCLUSIVE), ("image_layer", "digest_algorithm", "digest_value", "legacy_download_user")),
    (layer(EXCLUSIVE, digest_algorithm=SHA256, digest_value="v"), ("legacy_download_user",)),
    (layer(3), ("image_layer", "layer_type")),
    (layer(), ()),
    (layer(digest_algorithm=SHA256, digest_value="v"), ()),
]


@pytest.mark.parametrize(("image_layer", "problems"), LAYERS)
def test_image_layers(image_layer: models.ImageLayer, problems: tuple[str, ...]) -> None:
    assert check_task_definition(task(image_layers=[image_layer])) == fields(*problems)
    assert check_desired_lrp(lrp(image_layers=[image_layer])) == fields(*problems)


def test_the_download_user_is_asked_for_once() -> None:
    good = layer(EXCLUSIVE, digest_algorithm=SHA256, digest_value="v")
    assert check_task_definition(task(image_layers=[good, good])) == fields("legacy_download_user")
    assert check_task_definition(task(image_layers=[good, good], legacy_download_user="u")) == []


@pytest.mark.parametrize(
    ("algorithm", "value", "problem"),
    [
        ("", "v", "checksum algorithm"),
        ("md5", "", "checksum value"),
        ("sha512", "v", "invalid algorithm"),
        ("MD5", "v", None),
        ("Sha256", "v", None),
        ("sha1", "v", None),
        ("", "", None),
    ],
)
def test_checksums(algorithm: str, value: str, problem: str | None) -> None:
    dependency = models.CachedDependency(to="t", checksum_algorithm=algorithm, checksum_value=value, **{"from": "f"})
    expected = fields("cached_dependency", problem) if problem else []
    assert check_task_definition(task(cached_dependencies=[dependency])) == expected
    assert check_desired_lrp(lrp(cached_dependencies=[dependency])) == expected


MOUNTS = [
    (models.VolumeMount(driver="d", mode="r"), ()),
    (models.VolumeMount(driver="d", mode="rw", shared=models.SharedDevice(volume_id="v")), ()),
    (models.VolumeMount(driver="d", mode="RW"), ("mode",)),
    (models.VolumeMount(mode="r", shared=models.SharedDevice()), ("driver", "volume id")),
    (models.VolumeMount(driver="d", mode="r", dedicated=models.DedicatedDevice()), ("mounter id",)),
]


@pytest.mark.parametrize(("mount", "problems"), MOUNTS)
def test_volume_mounts(mount: models.VolumeMount, problems: tuple[str, ...]) -> None:
    assert check_desired_lrp(lrp(volume_mounts=[mount])) == [f"invalid volume_mount {problem}" for problem in problems]


def test_sidecars() -> None:
    bad = models.Sidecar(action=models.Action(run_action=models.RunAction()), memory_mb=-1, disk_mb=-1)
    assert check_desired_lrp(lrp(sidecars=[models.Sidecar(action=RUN)])) == []
    expected = fields("sidecars", "action", "path", "user", "memory_mb", "disk_mb")
    assert check_desired_lrp(lrp(sidecars=[models.Sidecar(action=RUN), bad])) == expected


TCP, HTTP = models.TCPCheck, models.HTTPCheck
CHECKS = [
    (models.Check(tcp_check=TCP(port=1)), None),
    (models.Check(http_check=HTTP(port=65535)), None),
    (models.Check(tcp_check=TCP(port=1), http_check=HTTP(port=1)), "check"),
    (models.Check(), "port"),
    (models.Check(tcp_check=TCP()), "port"),
    (models.Check(http_check=HTTP(port=65536)), "port"),
]


@pytest.mark.parametrize("position", ["checks", "readiness_checks"])
@pytest.mark.parametrize(("check", "problem"), CHECKS)
def test_checks(check: models.Check, problem: str | None, position: str) -> None:
    definition = models.CheckDefinition(**{position: [check]})
    assert check_desired_lrp(lrp(check_definition=definition)) == (
        fields("check_definition", problem) if problem else []
    )


def tag(static: str = "", dynamic: int = 0) -> models.MetricTagValue:
    return models.MetricTagValue(static=static, dynamic=dynamic)  # type: ignore[arg-type]


MISMATCH = "source_id should match metrics_guid"
TAGS: list[tuple[dict[str, models.MetricTagValue], str, tuple[str, ...]]] = [
    ({}, "m", ()),
    ({"": tag("s")}, "", ()),
    ({"t": tag("s", 9)}, "", ()),
    ({"t": tag("", 9)}, "", ("static", "dynamic")),
    ({"t": tag("s", 1)}, "", ("static", "dynamic")),
    ({"t": tag("", 2)}, "", ()),
    ({"t": tag(), "u": tag()}, "", ("static", "dynamic", "static", "dynamic")),
    ({"source_id": tag("m")}, "m", ()),
    ({"source_id": tag("n")}, "m", (MISMATCH,)),
    ({"source_id": tag("", 1)}, "m", (MISMATCH,)),
    ({"t": tag("m")}, "m", (MISMATCH,)),
]


@pytest.mark.parametrize(("tags", "metrics_guid", "problems"), TAGS)
def test_metric_tags(tags: dict[str, models.MetricTagValue], metrics_guid: str, problems: tuple[str, ...]) -> None:
    update = models.DesiredLRPUpdate(metric_tags=tags)
    assert check_metric_tags(update.metric_tags, metrics_guid) == fields(*problems)
    expected = fields("metric_tags", *problems) if problems or not tags else []
    assert check_desired_lrp(lrp(metric_tags=tags, metrics_guid=metrics_guid)) == expected


def test_tags_whose_names_are_not_utf8_are_checked_too() -> None:
    odd_and_empty = bytes.fromhex("22060a02fffe1200")
    update = models.DesiredLRPUpdate.FromString(odd_and_empty)
    assert check_metric_tags(metric_tags(update), "") == fields("static", "dynamic")
    assert check_metric_tags(update.metric_tags, "") == []
    entry_without_value = bytes.fromhex("22030a016b")
    assert check_metric_tags(models.DesiredLRPUpdate.FromString(entry_without_value).metric_tags, "") == fields(
        "static", "dynamic"
    )


def test_route_values_count_whatever_their_names() -> None:
    odd = models.ProtoRoutes.FromString(bytes.fromhex("0a06") + bytes.fromhex("0a01ff1201") + b"1")
    subject = lrp()
    subject.routes.CopyFrom(odd)
    assert check_desired_lrp(subject) == []
    subject.routes.MergeFromString(models.ProtoRoutes(routes={"b": b"x" * 131072}).SerializeToString())
    assert check_desired_lrp(subject) == fields("routes")


def test_texts_that_are_not_utf8_do_no_harm() -> None:
    odd = bytes([0x0A, 2, 0xFF, 0xFE])
    subject = models.DesiredLRP.FromString(lrp().SerializeToString() + odd)
    assert check_desired_lrp(subject) == fields("process_guid")


@given(st.binary(max_size=400))
def test_no_message_makes_the_checks_fail(encoded: bytes) -> None:
    for kind, check in ((models.TaskDefinition, check_task_definition), (models.DesiredLRP, check_desired_lrp)):
        try:
            subject = kind.FromString(encoded)
        except DecodeError:
            continue
        assert all(isinstance(problem, str) and problem.encode() for problem in check(subject))  # type: ignore[operator]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A rich LRP with some bytes replaced by ones that are not UTF-8."""
    encoded = bytearray(
        lrp(
            egress_rules=[models.SecurityGroupRule(protocol="tcp", destinations=["1.2.3.4-1.2.3.5"], ports=[1])],
            cached_dependencies=[models.CachedDependency(to="tt", checksum_algorithm="md5", checksum_value="vv")],
            image_layers=[layer(digest_value="vv")],
            volume_mounts=[models.VolumeMount(driver="dd", mode="rw")],
            routes=models.ProtoRoutes(routes={"rr": b"{}"}),
            metrics_guid="gg",
            annotation="aa",
            image_username="uu",
        ).SerializeToString()
    )
    for position in draw(st.lists(st.integers(0, len(encoded) - 1), max_size=8)):
        encoded[position] = draw(st.sampled_from((0xFF, 0xC3, 0x00, 0x41)))
    return bytes(encoded)


@given(mutated())
def test_no_damaged_lrp_makes_the_checks_fail(encoded: bytes) -> None:
    try:
        subject = models.DesiredLRP.FromString(encoded)
    except DecodeError:
        return
    before = subject.SerializeToString(deterministic=True)
    assert all(isinstance(problem, str) and problem.encode() for problem in check_desired_lrp(subject))
    assert subject.SerializeToString(deterministic=True) == before
