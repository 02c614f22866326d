"""Which cell runs what: a pure function of the cells' states and the work (cells-and-auctions.md section 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from bbs_server.dev.auctioneer.work import Work

NO_CELLS = "unable to communicate to compatible cells"


@dataclass(slots=True)
class Cell:
    """A cell as its `/state` describes it; what is placed on it is subtracted as the auction goes on."""

    cell_id: str
    zone: str
    rootfs: Mapping[str, Any]
    volume_drivers: frozenset[str]
    required_tags: frozenset[str]
    optional_tags: frozenset[str]
    memory_mb: int
    disk_mb: int
    containers: int
    total_memory_mb: int
    total_disk_mb: int
    total_containers: int
    processes: list[str]
    """Process guids of the instances here, one entry per instance."""
    work: list[Work] = field(default_factory=list)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Cell:
        free, total = state["AvailableResources"], state["TotalResources"]
        return cls(
            state["cell_id"],
            state.get("Zone") or "",
            state.get("RootFSProviders") or {},
            frozenset(state.get("VolumeDrivers") or ()),
            frozenset(state.get("PlacementTags") or ()),
            frozenset(state.get("OptionalPlacementTags") or ()),
            free["MemoryMB"],
            free["DiskMB"],
            free["Containers"],
            total["MemoryMB"],
            total["DiskMB"],
            total["Containers"],
            [lrp["process_guid"] for lrp in state.get("LRPs") or ()],
        )

    def lacks(self, work: Work) -> frozenset[str]:
        """The resources of which not enough is left."""
        needs = (
            ("containers", self.containers, 1),
            ("disk", self.disk_mb, work.disk_mb),
            ("memory", self.memory_mb, work.memory_mb),
        )
        return frozenset(name for name, free, wanted in needs if free < wanted)

    def load(self) -> float:
        """Used share of the resources, the mean of the three."""
        shares = (
            (self.total_memory_mb - self.memory_mb, self.total_memory_mb),
            (self.total_disk_mb - self.disk_mb, self.total_disk_mb),
            (self.total_containers - self.containers, self.total_containers),
        )
        return sum(used / total for used, total in shares if total) / len(shares)

    def take(self, work: Work) -> None:
        self.memory_mb -= work.memory_mb
        self.disk_mb -= work.disk_mb
        self.containers -= 1
        self.work.append(work)
        if not work.is_task:
            self.processes.append(work.guid)


@dataclass(frozen=True, slots=True)
class Placement:
    """What every cell gets, and why the rest fits nowhere."""

    assigned: Mapping[str, Sequence[Work]]
    failed: Sequence[tuple[Work, str]]


def place(work: Iterable[Work], cells: Sequence[Cell]) -> Placement:
    """Assign each piece of work to the best cell; `cells` are used up on the way."""
    failed = []
    for piece in sorted(unique(work), key=_order):
        problem = _place_one(piece, cells)
        if problem:
            failed.append((piece, problem))
    return Placement({cell.cell_id: tuple(cell.work) for cell in cells if cell.work}, failed)


def unique(work: Iterable[Work]) -> list[Work]:
    """The work without repetitions, the first one kept."""
    return list({piece.key: piece for piece in reversed(list(work))}.values())[::-1]


def _order(work: Work) -> tuple[int, int, int]:
    """First instances, then tasks, then further instances; larger memory first among equals."""
    rank = 1 if work.is_task else 0 if work.index == 0 else 2
    return rank, max(work.index, 0), -work.memory_mb


def _place_one(work: Work, cells: Sequence[Cell]) -> str:
    if not cells:
        return NO_CELLS
    fitting = list(cells)
    for fits, problem in _CONSTRAINTS:
        fitting = [cell for cell in fitting if fits(cell, work)]
        if not fitting:
            return problem(work)
    lacking = [cell.lacks(work) for cell in fitting]
    roomy = [cell for cell, missing in zip(fitting, lacking, strict=True) if not missing]
    if not roomy:
        common = sorted(frozenset.intersection(*lacking))
        return f"insufficient resources: {', '.join(common)}" if common else "insufficient resources"
    min(roomy, key=lambda cell: _rank(cell, work, cells)).take(work)
    return ""


def _rank(cell: Cell, work: Work, cells: Sequence[Cell]) -> tuple[int, int, float]:
    """Spread a process over zones, then over cells; then the least loaded."""
    in_zone = sum(other.processes.count(work.guid) for other in cells if other.zone == cell.zone)
    return (in_zone, cell.processes.count(work.guid), cell.load())


def _has_rootfs(cell: Cell, work: Work) -> bool:
    url = urlsplit(work.rootfs)
    provider = cell.rootfs.get(url.scheme)
    if provider is None:
        return False
    return provider["type"] == "arbitrary" or url.path in provider.get("set", {})


def _has_drivers(cell: Cell, work: Work) -> bool:
    return work.volume_drivers <= cell.volume_drivers


def _has_tags(cell: Cell, work: Work) -> bool:
    return cell.required_tags <= work.placement_tags <= cell.required_tags | cell.optional_tags


def _tags_problem(work: Work) -> str:
    quoted = [f'"{tag}"' for tag in sorted(work.placement_tags)]
    if not quoted:
        return "found no compatible cell with no placement tags"
    if len(quoted) == 1:
        return f"found no compatible cell with placement tag {quoted[0]}"
    return f"found no compatible cell with placement tags {', '.join(quoted[:-1])} and {quoted[-1]}"


_CONSTRAINTS: Sequence[tuple[Callable[[Cell, Work], bool], Callable[[Work], str]]] = (
    (_has_rootfs, lambda _: "found no compatible cell for required rootfs"),
    (_has_drivers, lambda _: "found no compatible cell with required volume drivers"),
    (_has_tags, _tags_problem),
)
