"""Whether task definitions and desired LRPs are valid (definitions.md sections 2 to 5).

Each kind is a table of checks. The problems of all of them, in order and with duplicates, are what a
client is told; clients compare these texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from bbs_protos import models_pb2 as models

from bbs_server.core import definition_parts as parts
from bbs_server.core.actions import check_main_action, check_slot
from bbs_server.core.definition_parts import (
    ANNOTATION_LIMIT,
    ROUTES_LIMIT,
    check_annotation,
    check_metric_tags,
    check_routes,
    each,
    metric_tags,
)
from bbs_server.core.egress import check_egress_rule
from bbs_server.core.problems import invalid
from bbs_server.core.rootfs import is_valid_rootfs

_GUID = re.compile(r"[a-zA-Z0-9_-]+")

Checks = Iterable[Callable[[Any], list[str]]]


def check_task_definition(definition: models.TaskDefinition) -> list[str]:
    """Problems of a task definition, empty if it is valid (definitions.md 2.1)."""
    return _problems(_TASK_DEFINITION, definition)


def check_desired_lrp(lrp: models.DesiredLRP) -> list[str]:
    """Problems of a desired LRP, empty if it is valid (definitions.md 2.2, desired-lrps.md 4.1)."""
    return _problems(_DESIRED_LRP, lrp)


def is_guid(text: str | bytes) -> bool:
    """Whether a text can be the guid of a new task or LRP. A trailing newline is not overlooked."""
    return isinstance(text, str) and _GUID.fullmatch(text) is not None


def _problems(checks: Checks, subject: Any) -> list[str]:
    return [problem for check in checks for problem in check(subject)]


# -- checks of both ----------------------------------------------------------------------


def _rootfs(subject: Any) -> list[str]:
    return [] if is_valid_rootfs(subject.root_fs) else [invalid("rootfs")]


def _memory(subject: Any) -> list[str]:
    return parts.check_not_negative(subject, "memory_mb")


def _disk(subject: Any) -> list[str]:
    return parts.check_not_negative(subject, "disk_mb")


def _max_pids(subject: Any) -> list[str]:
    return parts.check_not_negative(subject, "max_pids")


def _annotation(subject: Any) -> list[str]:
    return check_annotation(subject.annotation)


def _cached_dependencies(subject: Any) -> list[str]:
    return each("cached_dependency", parts.check_cached_dependency, subject.cached_dependencies)


# -- tasks -------------------------------------------------------------------------------


def _egress_rules_without_details(definition: models.TaskDefinition) -> list[str]:
    """Quirk: tasks do not say what is wrong with a rule."""
    return [invalid("egress_rules") for rule in definition.egress_rules if check_egress_rule(rule)]


_TASK_DEFINITION: Checks = (
    _rootfs,
    check_main_action,
    _memory,
    _disk,
    parts.check_log_rate_limit,
    _max_pids,
    _annotation,
    _egress_rules_without_details,
    parts.check_image_credentials,
    _cached_dependencies,
    parts.check_image_layers,
)
"""Quirk: environment variables, volume mounts, metric tags and files of tasks are not looked at."""


# -- desired LRPs ------------------------------------------------------------------------


def _files(lrp: models.DesiredLRP) -> list[str]:
    return parts.check_files(lrp.volume_mounted_files)


def _domain(lrp: models.DesiredLRP) -> list[str]:
    return [] if lrp.domain else [invalid("domain")]


def _rootfs_given(lrp: models.DesiredLRP) -> list[str]:
    return [] if lrp.root_fs else [invalid("rootfs")]


def _instances(lrp: models.DesiredLRP) -> list[str]:
    return parts.check_not_negative(lrp, "instances")


def _log_rate(lrp: models.DesiredLRP) -> list[str]:
    return parts.check_log_rate_limit(lrp, "log_rate_limit_bytes_per_second")


def _routes(lrp: models.DesiredLRP) -> list[str]:
    return check_routes(lrp.routes)


def _metric_tags(lrp: models.DesiredLRP) -> list[str]:
    tags = metric_tags(lrp)
    problems = check_metric_tags(tags, lrp.metrics_guid)
    return [invalid("metric_tags"), *problems] if problems or not tags else []


def _process_guid(lrp: models.DesiredLRP) -> list[str]:
    return [] if is_guid(lrp.process_guid) else [invalid("process_guid")]


def _setup(lrp: models.DesiredLRP) -> list[str]:
    return check_slot(lrp, "setup")


def _monitor(lrp: models.DesiredLRP) -> list[str]:
    return check_slot(lrp, "monitor")


def _environment(lrp: models.DesiredLRP) -> list[str]:
    return parts.check_environment(lrp.environment_variables)


def _egress_rules(lrp: models.DesiredLRP) -> list[str]:
    return each("egress_rules", check_egress_rule, lrp.egress_rules)


def _sidecars(lrp: models.DesiredLRP) -> list[str]:
    return parts.check_sidecars(lrp.sidecars)


def _volume_mounts(lrp: models.DesiredLRP) -> list[str]:
    return [problem for mount in lrp.volume_mounts for problem in parts.check_volume_mount(mount)]


def _checks(lrp: models.DesiredLRP) -> list[str]:
    return parts.check_check_definition(lrp.check_definition)


_DESIRED_LRP: Checks = (
    _files,
    _domain,
    _rootfs_given,
    _rootfs,
    _instances,
    _memory,
    _disk,
    _log_rate,
    _annotation,
    _max_pids,
    _routes,
    _metric_tags,
    _domain,
    _process_guid,
    _files,
    _setup,
    check_main_action,
    _monitor,
    _environment,
    _egress_rules,
    _cached_dependencies,
    parts.check_image_layers,
    _sidecars,
    _volume_mounts,
    parts.check_image_credentials,
    _checks,
    parts.check_log_rate_limit,
)
"""Quirk: domain, files, an empty root filesystem and the log rate limit are each reported twice."""

__all__ = [
    "ANNOTATION_LIMIT",
    "ROUTES_LIMIT",
    "check_annotation",
    "check_desired_lrp",
    "check_metric_tags",
    "check_routes",
    "check_task_definition",
    "is_guid",
    "metric_tags",
]
