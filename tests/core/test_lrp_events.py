"""The event calculator (actual-lrps.md section 3, events.md section 8)."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from bbs_server.core import lrp_events
from bbs_server.core.outcome import Event, Group, Hub
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, Presence, replace

ORDINARY, EVACUATING, SUSPECT = Presence.ORDINARY, Presence.EVACUATING, Presence.SUSPECT


def row(state: str = RUNNING, presence: Presence = ORDINARY, guid: str = "ig", **changes: Any) -> ActualLRP:
    owned = state in (CLAIMED, RUNNING)
    fields: dict[str, Any] = {
        "instance_guid": guid if owned else "",
        "cell_id": f"cell-of-{guid}" if owned else "",
        **changes,
    }
    return ActualLRP("p", 0, "dom", presence, state, since=1, tag_epoch=f"epoch-{int(presence)}", **fields)


def bumped(before: ActualLRP, state: str, guid: str = "") -> ActualLRP:
    return replace(
        before,
        state=state,
        instance_guid=guid,
        cell_id=f"cell-of-{guid}" if guid else "",
        tag_index=before.tag_index + 1,
    )


def group_events(events: tuple[Event, ...]) -> list[str]:
    return [event.name.removeprefix("actual_lrp_") for event in events if event.hub is Hub.GROUP]


def instance_events(events: tuple[Event, ...]) -> list[str]:
    return [
        event.name.removeprefix("actual_lrp_").removeprefix("instance_")
        for event in events
        if event.hub is Hub.INSTANCE
    ]


class TestRecord:
    def test_replaces_the_entry_with_the_instance_key(self) -> None:
        a, b, c = row(guid="a"), row(guid="b", presence=EVACUATING), row(guid="c")
        assert lrp_events.record([a, b], a, c) == [c, b]

    def test_removal_leaves_a_gap(self) -> None:
        a, b = row(guid="a"), row(guid="b", presence=EVACUATING)
        assert lrp_events.record([a, b], a, None) == [None, b]

    def test_appends_what_matches_nothing(self) -> None:
        a, b = row(guid="a"), row(guid="b")
        assert lrp_events.record([a], None, b) == [a, b]
        assert lrp_events.record([None, a], b, None) == [None, a, None]

    def test_quirk_replaces_all_entries_that_share_the_key(self) -> None:
        a, b = row(guid="a"), row(guid="a", presence=EVACUATING)
        assert lrp_events.record([a, b], b, None) == [None, None]

    def test_leaves_the_list_it_was_given(self) -> None:
        rows: list[ActualLRP | None] = [row()]
        lrp_events.record(rows, rows[0], None)
        assert rows == [row()]


class TestGroups:
    @pytest.mark.parametrize(
        ("ordinary", "suspect", "shown"),
        [
            (RUNNING, RUNNING, ORDINARY),
            (RUNNING, CLAIMED, ORDINARY),
            (CLAIMED, RUNNING, SUSPECT),
            (CLAIMED, CLAIMED, SUSPECT),
            (UNCLAIMED, RUNNING, SUSPECT),
            (UNCLAIMED, CLAIMED, SUSPECT),
            (CRASHED, RUNNING, SUSPECT),
            (CRASHED, CLAIMED, SUSPECT),
        ],
    )
    def test_instance_of_an_ordinary_and_a_suspect(self, ordinary: str, suspect: str, shown: Presence) -> None:
        pair = row(ordinary, ORDINARY, "o"), row(suspect, SUSPECT, "s")
        groups = [lrp_events.resolve(rows) for rows in permutations(pair)]
        assert {group.instance.presence for group in groups if group.instance} == {shown}

    def test_suspect_alone_is_the_instance(self) -> None:
        suspect = row(CLAIMED, SUSPECT)
        assert lrp_events.resolve([None, suspect]) == Group(suspect, None)

    def test_last_evacuating_wins(self) -> None:
        first, last = row(presence=EVACUATING, guid="a"), row(presence=EVACUATING, guid="b")
        assert lrp_events.resolve([first, last]) == Group(None, last)

    def test_nothing_resolves_to_an_empty_group(self) -> None:
        assert lrp_events.resolve([None]) == Group()

    @pytest.mark.parametrize(
        ("state", "expected"),
        [(RUNNING, ORDINARY), (CRASHED, ORDINARY), (CLAIMED, EVACUATING), (UNCLAIMED, EVACUATING)],
    )
    def test_representative_of_a_full_group(self, state: str, expected: Presence) -> None:
        found = lrp_events.representative(Group(row(state), row(presence=EVACUATING)))
        assert found is not None
        assert found.presence == expected

    def test_representative_of_half_a_group(self) -> None:
        lonely = row(UNCLAIMED)
        assert lrp_events.representative(Group(lonely, None)) is lonely
        assert lrp_events.representative(Group(None, lonely)) is lonely
        assert lrp_events.representative(Group()) is None


class TestNormal:
    def test_nothing_changed(self) -> None:
        assert lrp_events.normal([row()], [row()]) == ()

    @pytest.mark.parametrize(
        ("before", "state", "guid", "groups", "instances"),
        [
            (row(UNCLAIMED), CLAIMED, "n", ["changed"], ["changed"]),
            (row(UNCLAIMED), RUNNING, "n", ["changed"], ["changed"]),
            (row(UNCLAIMED), UNCLAIMED, "", ["changed"], ["changed"]),
            (row(CLAIMED), RUNNING, "ig", ["changed"], ["changed"]),
            (row(CLAIMED), RUNNING, "n", ["created", "removed"], ["changed"]),
            (row(CLAIMED), CLAIMED, "n", ["created", "removed"], ["changed"]),
            (row(RUNNING), UNCLAIMED, "", ["changed"], ["created", "removed"]),
            (row(CRASHED), UNCLAIMED, "", ["changed"], ["created", "removed"]),
            (row(RUNNING), CRASHED, "", ["crashed", "changed"], ["crashed", "changed"]),
        ],
    )
    def test_change_of_the_only_row(
        self, before: ActualLRP, state: str, guid: str, groups: list[str], instances: list[str]
    ) -> None:
        events = lrp_events.normal([before], [bumped(before, state, guid)])
        assert group_events(events) == groups
        assert instance_events(events) == instances

    @pytest.mark.parametrize("presence", [ORDINARY, EVACUATING, SUSPECT])
    def test_creation_and_removal(self, presence: Presence) -> None:
        it = row(presence=presence)
        slot = Group(None, it) if presence == EVACUATING else Group(it, None)
        assert lrp_events.normal([], [it]) == lrp_events.created(it)
        assert lrp_events.normal([it], [None]) == lrp_events.removed(it)
        assert lrp_events.created(it)[0].after == slot
        assert lrp_events.removed(it)[0].before == slot

    def test_a_suspect_hides_the_ordinary_row_in_the_group(self) -> None:
        suspect, before = row(presence=SUSPECT, guid="s"), row(UNCLAIMED)
        events = lrp_events.normal([suspect, before], [suspect, bumped(before, CLAIMED, "n")])
        assert group_events(events) == []
        assert instance_events(events) == ["changed"]

    def test_a_start_beside_suspect_and_evacuating(self) -> None:
        suspect, leaving, before = row(presence=SUSPECT, guid="s"), row(presence=EVACUATING, guid="e"), row(UNCLAIMED)
        running = bumped(before, RUNNING, "n")
        events = lrp_events.normal([before, leaving, suspect], [running, None, None])
        assert group_events(events) == ["created", "removed", "removed"]
        assert [event.before for event in events[1:3]] == [Group(suspect), Group(None, leaving)]
        assert instance_events(events) == ["changed", "removed", "removed"]
        assert [event.before for event in events[4:]] == [leaving, suspect]

    def test_running_results_come_first(self) -> None:
        waiting, before = row(UNCLAIMED), row(CLAIMED, EVACUATING, "e")
        running = bumped(before, RUNNING, "e")
        events = lrp_events.normal([waiting, before], [bumped(waiting, UNCLAIMED), running])
        assert [event.after.state for event in events if event.hub is Hub.INSTANCE] == [RUNNING, UNCLAIMED]

    def test_trace_id_is_for_instance_events_only(self) -> None:
        events = lrp_events.normal([], [row()], "t-1")
        assert [(event.hub, event.trace_id) for event in events] == [(Hub.GROUP, ""), (Hub.INSTANCE, "t-1")]

    def test_group_events_come_before_instance_events(self) -> None:
        hubs = [event.hub for event in lrp_events.normal([row()], [None])]
        assert hubs == [Hub.GROUP, Hub.INSTANCE]


class TestCrash:
    def test_back_to_unclaimed(self) -> None:
        before = row()
        after = bumped(before, UNCLAIMED)
        events = lrp_events.crash([before], [after])
        assert group_events(events) == ["crashed", "changed"]
        assert instance_events(events) == ["crashed", "created", "removed"]
        assert {(event.before, event.after) for event in events if event.name == "actual_lrp_crashed"} == {
            (before, after)
        }

    def test_to_crashed(self) -> None:
        before = row()
        events = lrp_events.crash([before], [bumped(before, CRASHED)])
        assert group_events(events) == ["crashed", "changed"]
        assert instance_events(events) == ["crashed", "changed"]

    def test_the_group_change_shows_both_slots(self) -> None:
        before, leaving = row(), row(presence=EVACUATING, guid="e")
        after = bumped(before, UNCLAIMED)
        events = lrp_events.crash([before, leaving], [after, leaving])
        assert (events[1].before, events[1].after) == (Group(before, leaving), Group(after, leaving))

    def test_a_running_suspect_takes_the_slot(self) -> None:
        before, suspect = row(guid="o"), row(presence=SUSPECT, guid="s", crash_count=7)
        events = lrp_events.crash([before, suspect], [bumped(before, UNCLAIMED), suspect])
        assert group_events(events) == ["crashed", "changed"]
        assert (events[0].before, events[0].after) == (before, suspect)

    def test_no_group_event_while_a_suspect_hides_the_row(self) -> None:
        before, suspect = row(CLAIMED, guid="o"), row(presence=SUSPECT, guid="s")
        events = lrp_events.crash([before, suspect], [bumped(before, UNCLAIMED), suspect])
        assert group_events(events) == []
        assert instance_events(events) == ["crashed", "created", "removed"]

    def test_rows_that_come_and_go_meanwhile(self) -> None:
        gone, new = row(guid="a"), row(presence=EVACUATING, guid="b")
        events = lrp_events.crash([gone], [None, new])
        assert group_events(events) == ["created", "removed"]
        assert instance_events(events) == ["created", "removed"]
