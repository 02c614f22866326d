"""The auctioneer's placement, row by row of cells-and-auctions.md section 8."""

from __future__ import annotations

from typing import Any

import pytest

from bbs_server.dev.auctioneer import work as works
from bbs_server.dev.auctioneer.placement import Cell, place
from bbs_server.dev.auctioneer.work import Work


def cell(name: str, **other: Any) -> Cell:
    resources = {"MemoryMB": 1000, "DiskMB": 1000, "Containers": 10}
    state = {
        "cell_id": name,
        "RootFSProviders": {
            "docker": {"type": "arbitrary"},
            "preloaded": {"type": "fixed_set", "set": {"cflinuxfs4": {}}},
        },
        "AvailableResources": resources,
        "TotalResources": resources,
    }
    return Cell.from_state(state | other)


def lrp(guid: str = "p", index: int = 0, **other: Any) -> Work:
    entry = {"process_guid": guid, "domain": "d", "indices": [index], "RootFs": "preloaded:cflinuxfs4"}
    (piece,) = works.lrps([entry | {"MemoryMB": 100, "DiskMB": 100} | other])
    return piece


def task(guid: str = "t", **other: Any) -> Work:
    (piece,) = works.tasks([{"TaskGuid": guid, "Domain": "d", "RootFs": "docker:///x", "MemoryMB": 100} | other])
    return piece


REASONS = [
    (lrp(RootFs="preloaded:unheard-of"), "found no compatible cell for required rootfs"),
    (lrp(RootFs="oci:x"), "found no compatible cell for required rootfs"),
    (lrp(VolumeDrivers=["nfs"]), "found no compatible cell with required volume drivers"),
    (lrp(PlacementTags=["a"]), 'found no compatible cell with placement tag "a"'),
    (lrp(PlacementTags=["b", "a"]), 'found no compatible cell with placement tags "a" and "b"'),
    (lrp(MemoryMB=1001), "insufficient resources: memory"),
    (lrp(MemoryMB=1001, DiskMB=1001), "insufficient resources: disk, memory"),
    (task(MemoryMB=1001), "insufficient resources: memory"),
]


@pytest.mark.parametrize(("piece", "reason"), REASONS)
def test_what_fits_nowhere_has_its_reason(piece: Work, reason: str) -> None:
    placement = place([piece], [cell("one"), cell("two")])
    assert placement.failed == [(piece, reason)]
    assert not placement.assigned


def test_no_cell_at_all_is_said_so() -> None:
    assert place([task()], []).failed == [(task(), "unable to communicate to compatible cells")]


def test_a_tagged_cell_takes_only_work_with_its_tags() -> None:
    cells = [cell("plain"), cell("tagged", PlacementTags=["iso"], OptionalPlacementTags=["gpu"])]
    placement = place([lrp("a", PlacementTags=["iso"]), lrp("b"), lrp("c", PlacementTags=["iso", "gpu"])], cells)
    assert {name: sorted(piece.guid for piece in work) for name, work in placement.assigned.items()} == {
        "plain": ["b"],
        "tagged": ["a", "c"],
    }


def test_instances_of_a_process_spread_over_zones_then_cells() -> None:
    cells = [cell("one", Zone="z1"), cell("two", Zone="z1"), cell("three", Zone="z2")]
    placement = place([lrp(index=index) for index in range(4)], cells)
    assert {name: len(work) for name, work in placement.assigned.items()} == {"one": 1, "two": 1, "three": 2}


def test_first_instances_come_before_tasks_before_further_instances() -> None:
    small = cell("one", AvailableResources={"MemoryMB": 200, "DiskMB": 1000, "Containers": 10})
    placement = place([lrp(index=1), task(), lrp(index=0)], [small])
    assert [piece.key for piece in placement.assigned["one"]] == [("p", 0), ("t", -1)]
    assert [piece.key for piece, _ in placement.failed] == [("p", 1)]


def test_the_same_work_twice_is_placed_once() -> None:
    placement = place([lrp(), lrp(), task(), task()], [cell("one")])
    assert len(placement.assigned["one"]) == 2


def test_invalid_entries_are_left_out() -> None:
    assert not list(works.lrps([{}, None, 5, {"process_guid": "p", "domain": "d", "indices": [], "RootFs": "r"}]))
    assert not list(works.tasks([{"TaskGuid": "t"}, {"TaskGuid": "t", "RootFs": "r", "MemoryMB": -1}]))
