"""What LRP convergence finds in one process guid: the gathering rules A2 to A15 as a pure function.

lrp-convergence.md section 4. All lists of the reference concern one process guid at a time, so it is
surveyed as a whole: its desired LRP and its instances, against facts that hold for the entire pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice

from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core.go_json import NotJSON
from bbs_server.core.json_columns import MetricTags, load_hostnames
from bbs_server.core.records import CLAIMED, CRASHED, NULL_TAGS, RUNNING, UNCLAIMED, ActualLRP, DesiredLRP, Presence
from bbs_server.core.restarts import may_restart
from bbs_server.core.times import SECOND

STALE_AFTER = 30 * SECOND
"""How long an unclaimed instance may wait before it is auctioned again, in ns."""

CREATED_AT_ONCE = 10_000
"""Most missing instances of one LRP that a pass creates; the next pass goes on."""


class Kind(IntEnum):
    """What has to be done, in the order in which it is done.

    The reference runs everything in parallel. Suspects come back first, so that nothing else is begun for
    an instance whose cell has returned (lrp-convergence.md section 9). What waits for a cell comes last.
    """

    PRUNE_EVACUATING = 0
    DISCARD = 1
    PROMOTE = 2
    REMOVE = 3
    CREATE = 4
    RESTART = 5
    UNCLAIM = 6
    REPLACE = 7
    REMOVE_SUSPECT = 8
    UPDATE_ROUTES = 9
    UPDATE_TAGS = 10
    RETIRE = 11


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to do to one instance. `instance` is the row as found; it is None for CREATE."""

    kind: Kind
    process_guid: str
    index: int
    desired: DesiredLRP | None = None
    instance: ActualLRP | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a pass takes as given. `now` in ns; `cells` are the ids of the present cells.

    `fresh_domains` have not expired by a clock rounded to the second, `known_domains` have a row after the
    expired ones were pruned (lrp-convergence.md section 8).
    """

    now: int
    cells: frozenset[str]
    fresh_domains: frozenset[str]
    known_domains: frozenset[str]

    def lost(self, cell_id: str) -> bool:
        """Whether an instance's cell is missing. Without any cell all are (A5)."""
        return not self.cells or (cell_id not in self.cells and cell_id != "")


@dataclass(slots=True)
class Findings:
    """Work lists, and what the metrics of a pass count."""

    work: list[Work] = field(default_factory=list)
    missing_cells: set[str] = field(default_factory=set)
    missing: int = 0
    extra: int = 0
    suspect_running: int = 0
    suspect_claimed: int = 0

    def add(self, kind: Kind, instance: ActualLRP, desired: DesiredLRP | None = None) -> None:
        self.work.append(Work(kind, instance.process_guid, instance.index, desired, instance))


def together(parts: Iterable[Findings]) -> Findings:
    """The findings about different process guids as one."""
    total = Findings()
    for part in parts:
        total.work += part.work
        total.missing_cells |= part.missing_cells
        total.missing += part.missing
        total.extra += part.extra
        total.suspect_running += part.suspect_running
        total.suspect_claimed += part.suspect_claimed
    return total


def survey(
    facts: Facts, process_guid: str, desired: DesiredLRP | None, rows: Collection[ActualLRP], found: Findings
) -> bool:
    """Add to `found` what has to be done for one process guid. `rows` are all its instances.

    Returns whether it is settled: then there is nothing to do until a record of it changes or one of the cells of its
    instances goes. Time, domains and lists do not matter to it.
    """
    ordinary = 0
    odd: list[ActualLRP] = []
    others: list[ActualLRP] = []
    routes = None if desired is None else hostnames(desired)
    tags = () if desired is None else desired.metric_tags or ()
    for row in rows:
        if row.presence != Presence.ORDINARY or row.broken:
            others.append(row)
            continue
        ordinary += 1
        if (
            row.state != RUNNING
            or row.cell_id not in facts.cells
            or (row.internal_routes or ()) != routes
            or not _tagged(row, tags)
        ):
            odd.append(row)
    if odd or others or desired is None or ordinary != desired.instances:
        _examine(facts, process_guid, desired, rows, odd, others, found)
        return desired is None and not rows
    # A list that has to leave it out makes it lost (`forms.is_lost`), and lists change no record.
    return "run_info" not in desired.broken


def _examine(
    facts: Facts,
    process_guid: str,
    desired: DesiredLRP | None,
    rows: Collection[ActualLRP],
    odd: list[ActualLRP],
    others: list[ActualLRP],
    found: Findings,
) -> None:
    """The rules for a process guid at which something is out of the ordinary: `odd` ordinary rows, or `others`."""
    schedulable = desired is not None and not forms.unreadable(desired, forms.SCHEDULING_INFO)
    suspects = _examine_others(facts, desired, schedulable, rows, others, found)
    if desired is None:
        for row in odd:
            if row.domain in facts.known_domains:  # A7
                found.extra += 1
                found.add(_retirement(row), row)
        return
    for row in odd:
        if schedulable:
            _examine_ordinary(facts, desired, row, suspects, found)
        if row.state == RUNNING:
            _examine_running(desired, row, found)
    if schedulable:
        _compare_counts(facts, process_guid, desired, rows, found)


def _examine_others(
    facts: Facts,
    desired: DesiredLRP | None,
    schedulable: bool,
    rows: Collection[ActualLRP],
    others: list[ActualLRP],
    found: Findings,
) -> set[int]:
    """Evacuating, suspect and unreadable rows (A2, A5, A8 to A12). Returns the indices of live suspects."""
    suspects: set[int] = set()
    doubles = _doubles(rows) if others else set()
    for row in others:
        if row.broken:
            found.add(Kind.DISCARD, row)
            continue
        if row.presence == Presence.EVACUATING:
            if row.cell_id not in facts.cells:  # A2
                found.add(Kind.PRUNE_EVACUATING, row)
            continue
        if schedulable and row.state in (RUNNING, CLAIMED) and facts.lost(row.cell_id):  # A5
            found.missing_cells.add(row.cell_id)
        if row.state in (RUNNING, CLAIMED):  # A11, A12
            suspects.add(row.index)
            if row.state == RUNNING:
                found.suspect_running += 1
            else:
                found.suspect_claimed += 1
        if row.cell_id in facts.cells:  # A10
            found.add(Kind.PROMOTE, row)
        orphaned = desired is None and row.domain in facts.known_domains
        if orphaned or (row.state == RUNNING and (row.index, row.domain) in doubles):  # A8, A9
            found.add(Kind.REMOVE_SUSPECT, row)
    return suspects


def _doubles(rows: Iterable[ActualLRP]) -> set[tuple[int, str]]:
    """Index and domain of instances that run more than once, evacuating ones not counted (A9)."""
    running = Counter(
        (row.index, row.domain)
        for row in rows
        if row.state == RUNNING and row.presence != Presence.EVACUATING and not row.broken
    )
    return {key for key, number in running.items() if number > 1}


def _examine_ordinary(
    facts: Facts, desired: DesiredLRP, row: ActualLRP, suspects: Collection[int], found: Findings
) -> None:
    """A4, A5 and A13: instances that wait, crashed, or are on a missing cell."""
    if row.state == UNCLAIMED:
        if row.since < facts.now - STALE_AFTER:
            found.add(Kind.RESTART, row, desired)
    elif row.state == CRASHED:
        if may_restart(facts.now, row.since, row.crash_count):
            found.add(Kind.RESTART, row, desired)
    elif row.state in (RUNNING, CLAIMED) and facts.lost(row.cell_id):
        found.missing_cells.add(row.cell_id)
        # A replacement that got lost, too, is auctioned again only when it is stale (B4a).
        found.add(Kind.UNCLAIM if row.index in suspects else Kind.REPLACE, row, desired)


def _examine_running(desired: DesiredLRP, row: ActualLRP, found: Findings) -> None:
    """A14 and A15: instances whose internal routes or metric tags are not the desired ones."""
    routes = hostnames(desired)
    if routes is not None and _differ(routes, row.internal_routes or ()):
        found.add(Kind.UPDATE_ROUTES, row, desired)
    if "metric_tags" not in desired.broken and not _tagged(row, desired.metric_tags or ()):
        found.add(Kind.UPDATE_TAGS, row, desired)


def _compare_counts(
    facts: Facts, process_guid: str, desired: DesiredLRP, rows: Iterable[ActualLRP], found: Findings
) -> None:
    """A6. Quirk: the numbers are compared; as many rows as desired pass whatever their indices."""
    ordinary = {row.index: row for row in rows if row.presence == Presence.ORDINARY and not row.broken}
    if len(ordinary) == desired.instances:
        return
    found.missing += desired.instances - sum(1 for index in ordinary if 0 <= index < desired.instances)
    for index in islice(_absent(desired.instances, ordinary), CREATED_AT_ONCE):
        found.work.append(Work(Kind.CREATE, process_guid, index, desired))
    if desired.domain in facts.fresh_domains:
        for index, row in ordinary.items():
            if index >= desired.instances:
                found.extra += 1
                found.add(_retirement(row), row, desired)


def _retirement(row: ActualLRP) -> Kind:
    """How an instance that is too many goes (B1): if it has a cell, that has to stop it."""
    return Kind.RETIRE if row.state in (CLAIMED, RUNNING) else Kind.REMOVE


def _absent(instances: int, existing: Collection[int]) -> Iterator[int]:
    return (index for index in range(instances) if index not in existing)


def _differ(desired: tuple[str, ...], actual: tuple[str, ...]) -> bool:
    """A14: order does not count, duplicates are not handled specially."""
    return len(desired) != len(actual) or not set(actual).issuperset(desired)


def hostnames(desired: DesiredLRP) -> tuple[str, ...] | None:
    """The internal routes that instances of a desired LRP should have; None if they cannot be read."""
    if "routes" in desired.broken:
        return None
    for name, value in desired.routes or ():
        if name == forms.INTERNAL_ROUTER:
            if desired.hostnames is None:
                desired.keep("hostnames", _parsed(value))
            return desired.hostnames
    return ()


def _parsed(value: bytes) -> tuple[str, ...] | None:
    try:
        return load_hostnames(value) or ()
    except NotJSON:
        return None


def _tagged(row: ActualLRP, wanted: MetricTags) -> bool:
    """Whether an instance has its metric tags. Quirk: one that was started without tags is never told any."""
    actual = row.metric_tags
    if actual is None or actual is NULL_TAGS:
        return True
    if len(actual) != len(wanted):
        return False
    for (name, tag), (actual_name, text) in zip(wanted, actual, strict=True):
        expected = forms.tag_text(tag, row.index, row.instance_guid) if tag.dynamic else tag.static
        if name != actual_name or text != expected:
            return False
    return True
