"""The lifecycle commands of actual LRPs, row by row (actual-lrps.md section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import actual_lrps
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import encode
from bbs_server.core.errors import (
    CANNOT_BE_CLAIMED,
    CANNOT_BE_CRASHED,
    CANNOT_BE_FAILED,
    CANNOT_BE_STARTED,
    INVALID_REQUEST,
    RESOURCE_NOT_FOUND,
    Error,
    Refused,
)
from bbs_server.core.outcome import AuctionLRPs, Hub, Outcome, Retire
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, DesiredLRP, Presence, replace
from bbs_server.core.state import State
from bbs_server.store.guids import random_guid

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
ORDINARY, EVACUATING, SUSPECT = Presence.ORDINARY, Presence.EVACUATING, Presence.SUSPECT
MINE, OTHER = ("ig-1", "cell-1"), ("ig-2", "cell-2")
NET_INFO = encode(models.ActualLRPNetInfo(address="10.0.0.1"))


def row(state: str, key: tuple[str, str] = MINE, presence: Presence = ORDINARY, **changes: Any) -> ActualLRP:
    owned = state in (CLAIMED, RUNNING)
    fields: dict[str, Any] = {
        "instance_guid": key[0] if owned else "",
        "cell_id": key[1] if owned else "",
        "net_info": NET_INFO if state == RUNNING else b"",
        "tag_index": 5,
        **changes,
    }
    return ActualLRP("p", 0, "dom", presence, state, NOW - 60 * SECOND, f"epoch-{int(presence)}", **fields)


def desired(**changes: Any) -> DesiredLRP:
    fields: dict[str, Any] = {"log_guid": "l", "annotation": "", "instances": 1, "rootfs": "preloaded:x"}
    numbers = {"memory_mb": 1, "disk_mb": 2, "max_pids": 3, "update_strategy": 0, "tag_index": 0}
    rest = {"tag_epoch": "e", "routes": (), "metric_tags": None, "placement_tags": None}
    return DesiredLRP("p", "dom", **{**fields, **numbers, **rest, "volume_placement": b"", "run_info": b"", **changes})


class Core:
    """A state with some rows, and commands run on it as the writer does."""

    def __init__(self, *rows: ActualLRP, wanted: DesiredLRP | None = None) -> None:
        self.state = State()
        for it in rows:
            self.state.actual_lrps.put(it)
        if wanted is not None:
            self.state.desired_lrps.put(wanted)
        self.state.take()
        self.changes = 0

    def run(self, command: Callable[..., Outcome], request: Any) -> Outcome:
        outcome = command(self.state, request, Context(NOW, random_guid, "trace", Settings()))
        self.changes = len(self.state.take())
        return outcome

    def refused(self, command: Callable[..., Outcome], request: Any) -> Error:
        with pytest.raises(Refused) as refusal:
            self.run(command, request)
        assert self.state.take() == ()
        return refusal.value.error

    def row(self, presence: Presence = ORDINARY) -> ActualLRP:
        found = self.state.actual_lrps.get(("p", 0, presence))
        assert found is not None
        return found

    def presences(self) -> set[int]:
        return {it.presence for it in self.state.actual_lrps}


def names(outcome: Outcome, hub: Hub) -> list[str]:
    return [event.name.rpartition("_")[2] for event in outcome.events if event.hub is hub]


def lrp_key(domain: str = "dom", index: int = 0) -> models.ActualLRPKey:
    return models.ActualLRPKey(process_guid="p", index=index, domain=domain)


def owner(key: tuple[str, str]) -> models.ActualLRPInstanceKey:
    return models.ActualLRPInstanceKey(instance_guid=key[0], cell_id=key[1])


def claim_by(key: tuple[str, str] = MINE, index: int = 0) -> models.ClaimActualLRPRequest:
    return models.ClaimActualLRPRequest(process_guid="p", index=index, actual_lrp_instance_key=owner(key))


def start_by(key: tuple[str, str] = MINE, domain: str = "dom", **fields: Any) -> models.StartActualLRPRequest:
    return models.StartActualLRPRequest(
        actual_lrp_key=lrp_key(domain),
        actual_lrp_instance_key=owner(key),
        actual_lrp_net_info=models.ActualLRPNetInfo(address="10.0.0.1"),
        **fields,
    )


def crash_by(key: tuple[str, str] = MINE, reason: str = "boom", domain: str = "dom") -> models.CrashActualLRPRequest:
    return models.CrashActualLRPRequest(
        actual_lrp_key=lrp_key(domain), actual_lrp_instance_key=owner(key), error_message=reason
    )


def spoilt(request: Any, by: bytes) -> Any:
    """The request with bytes in place of its only "?": such a message can be received, but not built."""
    return type(request).FromString(request.SerializeToString().replace(b"?", by))


UNSTORABLE = [(b"\xff", "\ufffd"), (b"\x00", "\0")]
"""What a text column cannot hold, and how events show it."""


def fail_with(reason: str = "no room") -> models.FailActualLRPRequest:
    return models.FailActualLRPRequest(actual_lrp_key=lrp_key(), error_message=reason)


class TestClaim:
    def test_of_an_unclaimed_row(self) -> None:
        before = row(UNCLAIMED, placement_error="no room", crash_count=2, crash_reason="boom", routable=True)
        core = Core(before)
        outcome = core.run(actual_lrps.claim, claim_by())
        assert core.row() == replace(
            before, state=CLAIMED, instance_guid="ig-1", cell_id="cell-1", placement_error="", since=NOW, tag_index=6
        )
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["changed"]
        assert {event.trace_id for event in outcome.events} == {""}
        assert outcome.calls == ()

    def test_of_ones_own_running_row_clears_the_net_info(self) -> None:
        core = Core(row(RUNNING, routable=True, internal_routes=("a",), availability_zone="z"))
        core.run(actual_lrps.claim, claim_by())
        found = core.row()
        assert (found.state, found.net_info) == (CLAIMED, b"")
        assert (found.routable, found.internal_routes, found.availability_zone) == (True, ("a",), "z")

    def test_repeated_changes_nothing(self) -> None:
        core = Core(row(CLAIMED))
        assert core.run(actual_lrps.claim, claim_by()).events == ()
        assert core.changes == 0

    @pytest.mark.parametrize("state", [CLAIMED, RUNNING, CRASHED])
    def test_of_another_instances_row_is_refused(self, state: str) -> None:
        assert Core(row(state, OTHER)).refused(actual_lrps.claim, claim_by()) == CANNOT_BE_CLAIMED

    def test_of_ones_own_crashed_row(self) -> None:
        core = Core(row(CRASHED, instance_guid="ig-1", cell_id="cell-1"))
        core.run(actual_lrps.claim, claim_by())
        assert core.row().state == CLAIMED

    @pytest.mark.parametrize("rows", [(), (row(RUNNING, OTHER, EVACUATING),), (row(RUNNING, OTHER, SUSPECT),)])
    def test_without_an_ordinary_row(self, rows: tuple[ActualLRP, ...]) -> None:
        assert Core(*rows).refused(actual_lrps.claim, claim_by()) == RESOURCE_NOT_FOUND

    def test_by_a_suspect_does_nothing(self) -> None:
        core = Core(row(RUNNING, MINE, SUSPECT), row(UNCLAIMED))
        assert core.run(actual_lrps.claim, claim_by()).events == ()
        assert core.changes == 0

    def test_beside_a_suspect_has_no_group_event(self) -> None:
        outcome = Core(row(CLAIMED, OTHER, SUSPECT), row(UNCLAIMED)).run(actual_lrps.claim, claim_by())
        assert names(outcome, Hub.GROUP) == []
        assert names(outcome, Hub.INSTANCE) == ["changed"]

    def test_of_a_running_row_beside_a_suspect_shows_the_suspect(self) -> None:
        outcome = Core(row(RUNNING, OTHER, SUSPECT), row(RUNNING)).run(actual_lrps.claim, claim_by())
        assert names(outcome, Hub.GROUP) == ["created", "removed"]

    def test_of_an_evacuating_key(self) -> None:
        core = Core(row(RUNNING, MINE, EVACUATING), row(UNCLAIMED))
        core.run(actual_lrps.claim, claim_by())
        assert core.row().instance_guid == "ig-1"

    @pytest.mark.parametrize(
        ("key", "error"),
        [
            (("g" * 256, "c"), INVALID_REQUEST),
            (("g", "c" * 256), INVALID_REQUEST),
            (
                ("g\0", "c"),
                Error(0, 'ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)'),
            ),
        ],
    )
    def test_with_text_that_no_column_holds(self, key: tuple[str, str], error: Error) -> None:
        assert Core(row(UNCLAIMED)).refused(actual_lrps.claim, claim_by(key)) == error


class TestStart:
    def test_without_a_row_creates_one(self) -> None:
        core = Core()
        request = start_by(
            actual_lrp_internal_routes=[models.ActualLRPInternalRoute(hostname="a")],
            metric_tags={"b": "2", "a": "1"},
            availability_zone="z1",
        )
        outcome = core.run(actual_lrps.start, request)
        found = core.row()
        assert (found.state, found.presence, found.since, found.tag_index, found.crash_count) == (RUNNING, 0, NOW, 0, 0)
        assert (found.instance_guid, found.cell_id, found.net_info) == (*MINE, NET_INFO)
        assert (found.internal_routes, found.metric_tags) == (("a",), (("a", "1"), ("b", "2")))
        assert (found.routable, found.availability_zone) == (True, "z1")
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["created"]

    def test_of_an_unclaimed_row(self) -> None:
        before = row(UNCLAIMED, placement_error="no room", crash_count=2, crash_reason="boom")
        core = Core(before)
        outcome = core.run(actual_lrps.start, start_by(Routable=False))
        assert core.row() == replace(
            before,
            state=RUNNING,
            instance_guid="ig-1",
            cell_id="cell-1",
            net_info=NET_INFO,
            internal_routes=None,
            metric_tags=None,
            placement_error="",
            since=NOW,
            tag_index=6,
        )
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["changed"]

    def test_takes_a_claimed_row_over(self) -> None:
        core = Core(row(CLAIMED, OTHER))
        outcome = core.run(actual_lrps.start, start_by())
        assert core.row().instance_guid == "ig-1"
        assert names(outcome, Hub.GROUP) == ["created", "removed"]
        assert names(outcome, Hub.INSTANCE) == ["changed"]

    @pytest.mark.parametrize(
        "fields",
        [
            {"Routable": False},
            {"availability_zone": "z2"},
            {"metric_tags": {"k": "v"}},
            {"actual_lrp_internal_routes": [models.ActualLRPInternalRoute(hostname="a")]},
        ],
    )
    def test_again_with_a_difference(self, fields: dict[str, Any]) -> None:
        core = Core(row(UNCLAIMED))
        core.run(actual_lrps.start, start_by())
        outcome = core.run(actual_lrps.start, start_by(**fields))
        assert core.row().tag_index == 7
        assert names(outcome, Hub.INSTANCE) == ["changed"]

    @pytest.mark.parametrize("command", [actual_lrps.start, actual_lrps.start_r0])
    def test_again_without_a_difference_changes_nothing(self, command: Callable[..., Outcome]) -> None:
        core = Core(row(UNCLAIMED))
        request = start_by(metric_tags={"b": "2", "a": "1"}, availability_zone="z1", Routable=True)
        core.run(command, request)
        assert core.run(command, request).events == ()
        assert core.changes == 0

    def test_r0_ignores_routes_and_tags(self) -> None:
        core = Core(row(UNCLAIMED))
        routes = [models.ActualLRPInternalRoute(hostname="a")]
        core.run(actual_lrps.start_r0, start_by(metric_tags={"k": "v"}, actual_lrp_internal_routes=routes))
        assert (core.row().internal_routes, core.row().metric_tags) == ((), None)

    def test_quirk_revisions_differ_even_without_routes(self) -> None:
        core = Core(row(UNCLAIMED))
        for command in (actual_lrps.start, actual_lrps.start_r0, actual_lrps.start):
            core.run(command, start_by())
            assert core.changes == 1
        assert core.row().internal_routes is None

    @pytest.mark.parametrize(
        ("before", "request_"),
        [
            (row(RUNNING, OTHER), start_by()),
            (row(CRASHED), start_by()),
            (row(UNCLAIMED), start_by(domain="elsewhere")),
            (row(RUNNING), start_by(domain="elsewhere")),
            (row(RUNNING, ("ig-1", "cell-2")), start_by()),
        ],
    )
    def test_refused_cleans_nothing_up(self, before: ActualLRP, request_: models.StartActualLRPRequest) -> None:
        core = Core(before, row(RUNNING, ("e", "e"), EVACUATING), row(RUNNING, ("s", "s"), SUSPECT))
        assert core.refused(actual_lrps.start, request_) == CANNOT_BE_STARTED
        assert core.presences() == {ORDINARY, EVACUATING, SUSPECT}

    def test_by_a_suspect_does_nothing(self) -> None:
        core = Core(row(RUNNING, MINE, SUSPECT), row(RUNNING, OTHER))
        assert core.run(actual_lrps.start, start_by()).events == ()
        assert core.changes == 0

    def test_removes_suspect_and_evacuating(self) -> None:
        core = Core(row(CLAIMED), row(RUNNING, ("e", "e"), EVACUATING), row(RUNNING, ("s", "s"), SUSPECT))
        outcome = core.run(actual_lrps.start, start_by())
        assert core.presences() == {ORDINARY}
        assert names(outcome, Hub.GROUP) == ["created", "removed", "removed"]
        assert names(outcome, Hub.INSTANCE) == ["changed", "removed", "removed"]

    def test_unchanged_still_removes_the_evacuating(self) -> None:
        core = Core(row(RUNNING, internal_routes=None, metric_tags=None, routable=True))
        core.state.actual_lrps.put(row(RUNNING, OTHER, EVACUATING))
        core.state.take()
        outcome = core.run(actual_lrps.start, start_by())
        assert (core.row().tag_index, core.presences()) == (5, {ORDINARY})
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["removed"]

    def test_with_a_suspect_only(self) -> None:
        core = Core(row(RUNNING, OTHER, SUSPECT))
        outcome = core.run(actual_lrps.start, start_by())
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["created", "removed"]

    def test_quirk_with_the_key_of_the_evacuating_row(self) -> None:
        core = Core(row(UNCLAIMED), row(RUNNING, MINE, EVACUATING))
        outcome = core.run(actual_lrps.start, start_by())
        assert names(outcome, Hub.INSTANCE) == ["removed", "removed"]
        assert core.row().state == RUNNING

    def test_with_a_domain_that_is_too_long(self) -> None:
        assert Core().refused(actual_lrps.start, start_by(domain="d" * 256)) == INVALID_REQUEST

    def test_with_tags_that_are_not_text(self) -> None:
        raw = encode(start_by()) + b"\x2a\x08\x0a\x02k\xff\x12\x02v\xff"
        core = Core(row(UNCLAIMED))
        core.run(actual_lrps.start, models.StartActualLRPRequest.FromString(raw))
        assert core.row().metric_tags == (("k\ufffd", "v\ufffd"),)


class TestCrash:
    @pytest.mark.parametrize("state", [CLAIMED, RUNNING])
    def test_back_to_unclaimed(self, state: str) -> None:
        before = row(state, routable=True, availability_zone="z", placement_error="old")
        core = Core(before, wanted=desired())
        outcome = core.run(actual_lrps.crash, crash_by(domain="whatever"))
        assert core.row() == replace(
            before,
            state=UNCLAIMED,
            instance_guid="",
            cell_id="",
            net_info=b"",
            crash_count=1,
            crash_reason="boom",
            since=NOW,
            tag_index=6,
        )
        assert names(outcome, Hub.GROUP) == ["crashed", "changed"]
        assert names(outcome, Hub.INSTANCE) == ["crashed", "created", "removed"]
        (call,) = outcome.calls
        assert isinstance(call, AuctionLRPs)
        assert (call.request_id, call.starts[0].indices, call.starts[0].volume_drivers) == ("", (0,), None)

    def test_the_third_is_final(self) -> None:
        core = Core(row(RUNNING, crash_count=2), wanted=desired())
        outcome = core.run(actual_lrps.crash, crash_by())
        assert (core.row().state, core.row().crash_count) == (CRASHED, 3)
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["crashed", "changed"]
        assert outcome.calls == ()

    @pytest.mark.parametrize(("state", "count"), [(RUNNING, 1), (CLAIMED, 9)])
    def test_counts_anew_after_running_for_five_minutes(self, state: str, count: int) -> None:
        core = Core(replace(row(state, crash_count=8), since=NOW - 301 * SECOND), wanted=desired())
        core.run(actual_lrps.crash, crash_by())
        assert core.row().crash_count == count

    @pytest.mark.parametrize("before", [row(UNCLAIMED), row(CRASHED), row(RUNNING, OTHER), row(CLAIMED, OTHER)])
    def test_refused(self, before: ActualLRP) -> None:
        assert Core(before, wanted=desired()).refused(actual_lrps.crash, crash_by()) == CANNOT_BE_CRASHED

    def test_with_only_an_evacuating_row(self) -> None:
        core = Core(row(RUNNING, MINE, EVACUATING))
        assert core.refused(actual_lrps.crash, crash_by()) == RESOURCE_NOT_FOUND

    def test_of_a_suspect_removes_it(self) -> None:
        core = Core(row(RUNNING, MINE, SUSPECT), row(UNCLAIMED, crash_count=1), wanted=desired())
        outcome = core.run(actual_lrps.crash, crash_by())
        assert core.presences() == {ORDINARY}
        assert core.row().crash_count == 1
        assert names(outcome, Hub.GROUP) == ["changed"]
        assert names(outcome, Hub.INSTANCE) == ["removed"]
        assert outcome.calls == ()

    @pytest.mark.parametrize("wanted", [None, desired(broken={"routes": "odd"})])
    def test_stays_when_the_auction_cannot_be_requested(self, wanted: DesiredLRP | None) -> None:
        core = Core(row(RUNNING), wanted=wanted)
        outcome = core.run(actual_lrps.crash, crash_by())
        error = RESOURCE_NOT_FOUND if wanted is None else Error(0, "odd")
        assert isinstance(outcome.answer, models.ActualLRPLifecycleResponse)
        assert (outcome.answer.error.type, outcome.answer.error.message) == (error.type, error.message)
        assert core.row().state == UNCLAIMED
        assert outcome.events
        assert outcome.calls == ()

    @pytest.mark.parametrize(("length", "kept"), [(1023, 1023), (1024, 1024), (3000, 1024)])
    def test_the_row_holds_a_truncated_reason(self, length: int, kept: int) -> None:
        core = Core(row(RUNNING), wanted=desired())
        outcome = core.run(actual_lrps.crash, crash_by(reason="x" * length))
        assert len(core.row().crash_reason) == kept
        assert core.row().crash_reason.endswith("(truncated)") == (length >= 1024)
        assert {len(e.after.crash_reason) for e in outcome.events if e.name == "actual_lrp_crashed"} == {length}

    @pytest.mark.parametrize(("by", "shown"), UNSTORABLE)
    def test_what_is_cut_off_need_not_be_storable(self, by: bytes, shown: str) -> None:
        core = Core(row(RUNNING), wanted=desired())
        outcome = core.run(actual_lrps.crash, spoilt(crash_by(reason="x" * 1500 + "?"), by))
        assert core.row().crash_reason == "x" * 1013 + "(truncated)"
        assert {e.after.crash_reason for e in outcome.events if e.name == "actual_lrp_crashed"} == {"x" * 1500 + shown}

    @pytest.mark.parametrize(("by", "shown"), UNSTORABLE)
    @pytest.mark.parametrize("rest", [0, 1500])
    def test_what_is_kept_must_be_storable(self, by: bytes, shown: str, rest: int) -> None:
        error = Core(row(RUNNING)).refused(actual_lrps.crash, spoilt(crash_by(reason="?" + "x" * rest), by))
        assert error == Error(0, f'ERROR: invalid byte sequence for encoding "UTF8": 0x{by.hex()} (SQLSTATE 22021)')


class TestFail:
    def test_of_an_unclaimed_row(self) -> None:
        before = row(UNCLAIMED)
        core = Core(before)
        for tag_index in (6, 7):
            outcome = core.run(actual_lrps.fail, fail_with())
            assert core.row() == replace(before, placement_error="no room", since=NOW, tag_index=tag_index)
            assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["changed"]

    @pytest.mark.parametrize("state", [CLAIMED, RUNNING, CRASHED])
    def test_refused(self, state: str) -> None:
        assert Core(row(state)).refused(actual_lrps.fail, fail_with()) == CANNOT_BE_FAILED

    @pytest.mark.parametrize("rows", [(), (row(RUNNING, presence=SUSPECT),), (row(RUNNING, presence=EVACUATING),)])
    def test_quirk_a_missing_row_is_a_success(self, rows: tuple[ActualLRP, ...]) -> None:
        core = Core(*rows)
        assert core.run(actual_lrps.fail, fail_with()) == Outcome(models.ActualLRPLifecycleResponse())
        assert core.changes == 0

    def test_the_row_holds_a_truncated_reason(self) -> None:
        core = Core(row(UNCLAIMED))
        outcome = core.run(actual_lrps.fail, fail_with("é" * 700))
        assert core.row().placement_error == "é" * 506 + "(truncated)"
        assert outcome.events[-1].after.placement_error == "é" * 700

    @pytest.mark.parametrize(("by", "shown"), UNSTORABLE)
    def test_what_is_cut_off_need_not_be_storable(self, by: bytes, shown: str) -> None:
        core = Core(row(UNCLAIMED))
        outcome = core.run(actual_lrps.fail, spoilt(fail_with("x" * 1500 + "?"), by))
        assert core.row().placement_error == "x" * 1013 + "(truncated)"
        assert outcome.events[-1].after.placement_error == "x" * 1500 + shown
        error = core.refused(actual_lrps.fail, spoilt(fail_with("?"), by))
        assert error == Error(0, f'ERROR: invalid byte sequence for encoding "UTF8": 0x{by.hex()} (SQLSTATE 22021)')


class TestRemove:
    @pytest.mark.parametrize("state", [UNCLAIMED, CLAIMED, RUNNING, CRASHED])
    @pytest.mark.parametrize("named", [True, False])
    def test_in_any_state(self, state: str, named: bool) -> None:
        before = row(state)
        fields: dict[str, Any] = {}
        if named:
            fields["actual_lrp_instance_key"] = owner((before.instance_guid, before.cell_id))
        core = Core(before, row(RUNNING, OTHER, EVACUATING))
        request = models.RemoveActualLRPRequest(process_guid="p", **fields)
        outcome = core.run(actual_lrps.remove, request)
        assert core.presences() == {EVACUATING}
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["removed"]

    @pytest.mark.parametrize("rows", [(), (row(RUNNING, OTHER),), (row(RUNNING, MINE, SUSPECT),), (row(UNCLAIMED),)])
    def test_of_another_instance(self, rows: tuple[ActualLRP, ...]) -> None:
        request = models.RemoveActualLRPRequest(process_guid="p", actual_lrp_instance_key=owner(MINE))
        assert Core(*rows).refused(actual_lrps.remove, request) == RESOURCE_NOT_FOUND


class TestRetire:
    REQUEST = models.RetireActualLRPRequest(actual_lrp_key=lrp_key("whatever"))

    @pytest.mark.parametrize("state", [UNCLAIMED, CRASHED])
    def test_without_a_cell(self, state: str) -> None:
        core = Core(row(state))
        outcome = core.run(actual_lrps.retire, self.REQUEST)
        assert core.presences() == set()
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["removed"]
        assert outcome.events[1].trace_id == "trace"

    @pytest.mark.parametrize("state", [CLAIMED, RUNNING])
    def test_by_way_of_the_cell(self, state: str) -> None:
        core = Core(row(state))
        outcome = core.run(actual_lrps.retire, self.REQUEST)
        assert outcome.calls == (Retire(core.row(), "trace"),)
        assert (outcome.events, core.changes) == ((), 0)

    @pytest.mark.parametrize("rows", [(), (row(RUNNING, presence=SUSPECT),), (row(RUNNING, presence=EVACUATING),)])
    def test_without_an_ordinary_row(self, rows: tuple[ActualLRP, ...]) -> None:
        assert Core(*rows).refused(actual_lrps.retire, self.REQUEST) == RESOURCE_NOT_FOUND

    def test_the_row_goes_when_its_cell_is_gone(self) -> None:
        before = row(RUNNING)
        core = Core(replace(before, tag_index=6))
        outcome = core.run(actual_lrps.remove_retired, before)
        assert core.presences() == set()
        assert outcome.events[1].trace_id == "trace"

    @pytest.mark.parametrize("rows", [(), (row(RUNNING, OTHER),), (row(UNCLAIMED),)])
    def test_the_row_stays_when_it_is_another_instances(self, rows: tuple[ActualLRP, ...]) -> None:
        assert Core(*rows).refused(actual_lrps.remove_retired, row(RUNNING)) == RESOURCE_NOT_FOUND

    @pytest.mark.parametrize("rows", [(), (row(RUNNING),), (row(UNCLAIMED),)])
    def test_quirk_announced_but_not_removed(self, rows: tuple[ActualLRP, ...]) -> None:
        core = Core(*rows)
        outcome = core.run(actual_lrps.announce_retired, row(RUNNING))
        assert core.changes == 0
        assert names(outcome, Hub.GROUP) == names(outcome, Hub.INSTANCE) == ["removed"]
        assert outcome.events[1].before == row(RUNNING)


class TestUndecodableRows:
    """Deleted on sight, whatever becomes of the command (actual-lrps.md 1.3)."""

    def test_deleted_although_the_claim_fails(self) -> None:
        core = Core(row(UNCLAIMED, broken="odd"))
        outcome = core.run(actual_lrps.claim, claim_by())
        assert isinstance(outcome.answer, models.ActualLRPLifecycleResponse)
        assert outcome.answer.error.message == RESOURCE_NOT_FOUND.message
        assert (outcome.events, core.presences()) == ((), set())

    def test_replaced_by_a_start(self) -> None:
        core = Core(row(CLAIMED, broken="odd"))
        outcome = core.run(actual_lrps.start, start_by())
        assert names(outcome, Hub.INSTANCE) == ["created"]
        assert core.row().broken == ""

    def test_others_of_the_index_stay(self) -> None:
        core = Core(row(RUNNING, presence=EVACUATING, broken="odd"), row(UNCLAIMED))
        core.run(actual_lrps.claim, claim_by())
        assert core.presences() == {ORDINARY}


KEY = "Invalid field: actual_lrp_key"
INSTANCE_KEY = "Invalid field: actual_lrp_instance_key"
ALL_OF_KEY = ["Invalid field: process_guid", "Invalid field: index", "Invalid field: domain"]
ALL_OF_INSTANCE_KEY = ["Invalid field: cell_id", "Invalid field: instance_guid"]
ODD_KEY = models.ActualLRPKey(index=-1)
EMPTY_OWNER = models.ActualLRPInstanceKey()


@pytest.mark.parametrize(
    ("request_", "problems"),
    [
        (claim_by(index=-1), []),
        (models.ClaimActualLRPRequest(), ["Invalid field: process_guid", INSTANCE_KEY]),
        (
            models.ClaimActualLRPRequest(actual_lrp_instance_key=EMPTY_OWNER),
            ["Invalid field: process_guid", *ALL_OF_INSTANCE_KEY],
        ),
        (start_by(), []),
        (models.StartActualLRPRequest(), [KEY, INSTANCE_KEY, "Invalid field: actual_lrp_net_info"]),
        (
            models.StartActualLRPRequest(
                actual_lrp_key=ODD_KEY,
                actual_lrp_instance_key=EMPTY_OWNER,
                actual_lrp_net_info=models.ActualLRPNetInfo(),
            ),
            [*ALL_OF_KEY, *ALL_OF_INSTANCE_KEY, "Invalid field: address"],
        ),
        (crash_by(reason=""), []),
        (models.CrashActualLRPRequest(), [KEY, INSTANCE_KEY]),
        (fail_with(), []),
        (models.FailActualLRPRequest(actual_lrp_key=ODD_KEY), [*ALL_OF_KEY, "Invalid field: error_message"]),
        (models.RemoveActualLRPRequest(process_guid="p", actual_lrp_instance_key=EMPTY_OWNER), []),
        (models.RemoveActualLRPRequest(index=-1), ["Invalid field: process_guid", "Invalid field: index"]),
        (models.RetireActualLRPRequest(), [KEY]),
        (models.RetireActualLRPRequest(actual_lrp_key=lrp_key()), []),
        (models.ActualLRPsByProcessGuidsRequest(), ["process_guids must not be empty"]),
        (models.ActualLRPsByProcessGuidsRequest(process_guids=[""]), []),
    ],
)
def test_checks(request_: Any, problems: list[str]) -> None:
    assert actual_lrps.CHECKS[type(request_)](request_) == problems
