"""Work as the auctioneer receives it and hands it on (cells-and-auctions.md 2.2 and section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Work:
    """One instance of an LRP, or one task (index -1). Memory and disk in MiB."""

    guid: str
    index: int
    domain: str
    rootfs: str
    placement_tags: frozenset[str]
    volume_drivers: frozenset[str]
    memory_mb: int
    disk_mb: int
    body: Mapping[str, Any]
    """The entry as it goes to the cell."""

    @property
    def is_task(self) -> bool:
        return self.index < 0

    @property
    def key(self) -> tuple[str, int]:
        """What makes two entries the same work."""
        return self.guid, self.index


def lrps(entries: list[Any]) -> Iterator[Work]:
    """The instances of a `/v1/lrps` request; invalid entries are left out without a word, as the reference does."""
    for entry in filter(_valid_lrp, entries):
        for index in entry["indices"]:
            shared = {name: entry.get(name) for name in _SHARED_KEYS}
            body = {
                "instance_guid": "",
                "process_guid": entry["process_guid"],
                "index": index,
                "domain": entry["domain"],
                **shared,
                "state": "",
            }
            yield _work(entry["process_guid"], index, entry["domain"], body)


def tasks(entries: list[Any]) -> Iterator[Work]:
    """The tasks of a `/v1/tasks` request."""
    for entry in filter(_valid_task, entries):
        yield _work(entry["TaskGuid"], -1, entry.get("Domain", ""), entry)


_SHARED_KEYS = ("PlacementTags", "VolumeDrivers", "RootFs", "MemoryMB", "DiskMB", "MaxPids")


def _work(guid: str, index: int, domain: str, body: Mapping[str, Any]) -> Work:
    return Work(
        guid,
        index,
        domain,
        body["RootFs"],
        frozenset(body.get("PlacementTags") or ()),
        frozenset(body.get("VolumeDrivers") or ()),
        body.get("MemoryMB") or 0,
        body.get("DiskMB") or 0,
        body,
    )


def _valid_lrp(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        (entry.get("process_guid"), entry.get("domain"), entry.get("indices"), entry.get("RootFs"), _sane(entry))
    )


def _valid_task(entry: Any) -> bool:
    return isinstance(entry, dict) and all((entry.get("TaskGuid"), entry.get("RootFs"), _sane(entry)))


def _sane(entry: Mapping[str, Any]) -> bool:
    return (entry.get("MemoryMB") or 0) >= 0 and (entry.get("DiskMB") or 0) >= 0
