"""Records with nothing in them but what a test is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bbs_server.core.records import DesiredLRP

_DESIRED = DesiredLRP(
    process_guid="p",
    domain="dom",
    log_guid="",
    annotation="",
    instances=1,
    memory_mb=1,
    disk_mb=1,
    max_pids=1,
    rootfs="preloaded:x",
    update_strategy=0,
    tag_epoch="e",
    tag_index=0,
    routes=(),
    metric_tags=None,
    placement_tags=None,
    volume_placement=b"",
    run_info=b"",
)


def desired_lrp(**fields: Any) -> DesiredLRP:
    return replace(_DESIRED, **fields)
