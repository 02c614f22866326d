"""Checks of the parts that requests about actual LRPs have in common (actual-lrps.md 4.1, evacuation.md 1.2).

Each gives the problems of one part, in order; a part that is absent is one problem.
"""

from __future__ import annotations

from typing import Any

from bbs_server.core.problems import invalid


def process_guid(part: Any) -> list[str]:
    return [] if part.process_guid else [invalid("process_guid")]


def guid_and_index(part: Any) -> list[str]:
    problems = process_guid(part)
    return [*problems, invalid("index")] if part.index < 0 else problems


def key(request: Any) -> list[str]:
    if not request.HasField("actual_lrp_key"):
        return [invalid("actual_lrp_key")]
    part = request.actual_lrp_key
    problems = guid_and_index(part)
    return problems if part.domain else [*problems, invalid("domain")]


def instance_key(request: Any) -> list[str]:
    if not request.HasField("actual_lrp_instance_key"):
        return [invalid("actual_lrp_instance_key")]
    part = request.actual_lrp_instance_key
    return [invalid(name) for name in ("cell_id", "instance_guid") if not getattr(part, name)]


def net_info(request: Any) -> list[str]:
    if not request.HasField("actual_lrp_net_info"):
        return [invalid("actual_lrp_net_info")]
    return [] if request.actual_lrp_net_info.address else [invalid("address")]


def error_message(request: Any) -> list[str]:
    return [] if request.error_message else [invalid("error_message")]


def keys(request: Any) -> list[str]:
    """Both keys: what crash and most evacuations check."""
    return key(request) + instance_key(request)


def running(request: Any) -> list[str]:
    """What start and the evacuation of a running instance check."""
    return keys(request) + net_info(request)
