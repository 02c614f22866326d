"""The parts of task definitions and desired LRPs: what is wrong with each (definitions.md section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core import maps
from bbs_server.core.actions import check_main_action
from bbs_server.core.checksums import check_checksum
from bbs_server.core.problems import invalid, size

ANNOTATION_LIMIT = 10 * 1024
"""Bytes of an annotation."""

FILES_LIMIT = 1024 * 1024
"""Bytes of the contents of all volume-mounted files of an LRP together."""

ROUTES_LIMIT = 128 * 1024
"""Bytes of all route values of an LRP together, names not counted."""

PORT_LIMIT = 65535

NO_LOG_RATE_LIMIT = -1
"""Bytes per second that mean "no limit"; anything below is invalid."""

SOURCE_ID = "source_id"
"""The metric tag that has to agree with the metrics guid."""

_SHARED, _EXCLUSIVE = models.ImageLayer.SHARED, models.ImageLayer.EXCLUSIVE
_LAYER_TYPES = frozenset((_SHARED, _EXCLUSIVE))
_MEDIA_TYPES = frozenset((models.ImageLayer.TGZ, models.ImageLayer.TAR, models.ImageLayer.ZIP))
_DIGESTS = frozenset((models.ImageLayer.SHA256, models.ImageLayer.SHA512))
_DYNAMIC_VALUES = frozenset((models.MetricTagValue.INDEX, models.MetricTagValue.INSTANCE_GUID))
_MODES = frozenset(("r", "rw"))


def each(heading: str, check: Callable[[Any], list[str]], parts: Iterable[Any]) -> list[str]:
    """For every bad part the heading, then its problems."""
    problems: list[str] = []
    for part in parts:
        if details := check(part):
            problems += (invalid(heading), *details)
    return problems


def _missing(message: Any, names: Iterable[str]) -> list[str]:
    return [invalid(name) for name in names if not getattr(message, name)]


# -- single values -----------------------------------------------------------------------


def check_not_negative(message: Any, name: str) -> list[str]:
    return [invalid(name)] if getattr(message, name) < 0 else []


def check_annotation(annotation: str | bytes) -> list[str]:
    return [invalid("annotation")] if size(annotation) > ANNOTATION_LIMIT else []


def check_log_rate_limit(owner: Any, name: str = "log_rate_limit") -> list[str]:
    """`name` is what the problem is called; the limit is in bytes per second."""
    return [invalid(name)] if owner.log_rate_limit.bytes_per_second < NO_LOG_RATE_LIMIT else []


def check_image_credentials(owner: Any) -> list[str]:
    """User name and password only together, the empty text being none."""
    if bool(owner.image_username) == bool(owner.image_password):
        return []
    return [invalid("image_password" if owner.image_username else "image_username")]


# -- routes, files, environment ----------------------------------------------------------


def check_routes(routes: models.ProtoRoutes) -> list[str]:
    """Only the length of all values together counts; whether they are JSON is found when they are stored."""
    if maps.has_odd_keys(routes, "routes"):
        total = sum(len(value) for _, value in maps.entries(routes, "routes"))
    else:
        total = sum(map(len, routes.routes.values()))
    return [invalid("routes")] if total > ROUTES_LIMIT else []


def check_files(files: Iterable[models.File]) -> list[str]:
    return [invalid("volumeMountedFiles")] if sum(size(file.content) for file in files) > FILES_LIMIT else []


def check_environment(variables: Iterable[models.EnvironmentVariable]) -> list[str]:
    """Quirk: this text starts with a small letter."""
    return ["invalid field: name cannot be blank" for variable in variables if not variable.name]


# -- downloads and layers ----------------------------------------------------------------


def check_cached_dependency(dependency: models.CachedDependency) -> list[str]:
    return [*_missing(dependency, ("from", "to")), *check_checksum(dependency)]


def check_image_layers(owner: models.TaskDefinition | models.DesiredLRP) -> list[str]:
    """All layers, then the user that exclusive ones need. Bad layers count for that, too (5.2)."""
    problems = each("image_layer", check_image_layer, owner.image_layers)
    if not owner.legacy_download_user and any(layer.layer_type == _EXCLUSIVE for layer in owner.image_layers):
        problems.append(invalid("legacy_download_user"))
    return problems


def check_image_layer(layer: models.ImageLayer) -> list[str]:
    """Quirk: a digest value without algorithm is reported twice."""
    problems = _missing(layer, ("url", "destination_path"))
    exclusive = layer.layer_type == _EXCLUSIVE
    algorithm, value = layer.digest_algorithm, layer.digest_value
    rules = (
        ("layer_type", layer.layer_type not in _LAYER_TYPES),
        ("media_type", layer.media_type not in _MEDIA_TYPES),
        ("digest_algorithm", bool(value or exclusive) and algorithm == 0),
        ("digest_value", (algorithm != 0 or exclusive) and not value),
        ("digest_algorithm", bool(value) and algorithm not in _DIGESTS),
    )
    return problems + [invalid(name) for name, broken in rules if broken]


# -- volumes, sidecars, checks -----------------------------------------------------------


def check_volume_mount(mount: models.VolumeMount) -> list[str]:
    rules = (
        ("driver", not mount.driver),
        ("mode", mount.mode not in _MODES),
        ("volume id", mount.HasField("shared") and not mount.shared.volume_id),
        ("mounter id", mount.HasField("dedicated") and not mount.dedicated.mounter_id),
    )
    return [f"invalid volume_mount {name}" for name, broken in rules if broken]


def check_sidecars(sidecars: Iterable[models.Sidecar]) -> list[str]:
    problems = [problem for sidecar in sidecars for problem in check_sidecar(sidecar)]
    return [invalid("sidecars"), *problems] if problems else []


def check_sidecar(sidecar: models.Sidecar) -> list[str]:
    return [
        *check_main_action(sidecar),
        *check_not_negative(sidecar, "memory_mb"),
        *check_not_negative(sidecar, "disk_mb"),
    ]


def check_check_definition(definition: models.CheckDefinition) -> list[str]:
    problems = [
        problem
        for checks in (definition.checks, definition.readiness_checks)
        for check in checks
        for problem in check_check(check)
    ]
    return [invalid("check_definition"), *problems] if problems else []


def check_check(check: models.Check) -> list[str]:
    """Quirk: a check that is neither TCP nor HTTP is reported as a bad port."""
    tcp, http = check.HasField("tcp_check"), check.HasField("http_check")
    if tcp and http:
        return [invalid("check")]
    port = check.tcp_check.port if tcp else check.http_check.port
    return [] if 0 < port <= PORT_LIMIT else [invalid("port")]


# -- metric tags -------------------------------------------------------------------------

MetricTags = Mapping[Any, models.MetricTagValue]
"""Tags by name; a name is `bytes` only if it is not valid UTF-8."""


def metric_tags(owner: models.DesiredLRP | models.DesiredLRPUpdate) -> MetricTags:
    """The metric tags of a message, readable whatever bytes their names are made of."""
    if not maps.has_odd_keys(owner, "metric_tags"):
        return owner.metric_tags
    return {name: models.MetricTagValue.FromString(value) for name, value in maps.entries(owner, "metric_tags")}


def check_metric_tags(tags: MetricTags, metrics_guid: str | bytes) -> list[str]:
    """Each tag is either static or dynamic, and `source_id` is the metrics guid if there is one (5.8).

    No tags at all are fine here. Hand in what `metric_tags` gives: in a map field itself the values of
    names that are not valid UTF-8 cannot be read, and are passed over.
    """
    problems: list[str] = []
    for name in tags:
        unreadable = isinstance(name, bytes) and not isinstance(tags, dict)
        if not unreadable and _is_mixed_up(tags[name]):
            problems += (invalid("static"), invalid("dynamic"))
    if tags and metrics_guid and (SOURCE_ID not in tags or tags[SOURCE_ID].static != metrics_guid):
        problems.append(invalid("source_id should match metrics_guid"))
    return problems


def _is_mixed_up(value: models.MetricTagValue) -> bool:
    """Both static and dynamic, or neither. Quirk: beside a static text an unknown dynamic number is no fault."""
    return bool(value.static) == (value.dynamic in _DYNAMIC_VALUES)
