"""Evacuation: each row of the decision tables (evacuation.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import evacuation
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import encode
from bbs_server.core.errors import (
    CANNOT_BE_CRASHED,
    CANNOT_BE_UNCLAIMED,
    INVALID_REQUEST,
    RESOURCE_EXISTS,
    RESOURCE_NOT_FOUND,
    Error,
)
from bbs_server.core.outcome import AuctionLRPs, Group, Hub, Outcome
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, DesiredLRP, Presence, replace
from bbs_server.core.state import State
from bbs_server.store.guids import random_guid

NOW = 1_700_000_000 * 10**9
ORDINARY, EVACUATING, SUSPECT = Presence.ORDINARY, Presence.EVACUATING, Presence.SUSPECT
MINE, OTHER, THIRD = ("ig-1", "cell-1"), ("ig-2", "cell-2"), ("ig-3", "cell-3")
NET_INFO = encode(models.ActualLRPNetInfo(address="10.0.0.1"))
ROLLING, RECREATE = 0, 1


def row(state: str, key: tuple[str, str] = MINE, presence: Presence = ORDINARY, **changes: Any) -> ActualLRP:
    owned = state in (CLAIMED, RUNNING)
    fields: dict[str, Any] = {
        "index": 0,
        "instance_guid": key[0] if owned else "",
        "cell_id": key[1] if owned else "",
        "net_info": NET_INFO if state == RUNNING else b"",
        "internal_routes": ("stored",),
        "metric_tags": (("stored", "1"),),
        "availability_zone": "stored",
        "tag_index": 5,
        **changes,
    }
    return ActualLRP(
        "p", domain="dom", presence=presence, state=state, since=1, tag_epoch=f"epoch-{int(presence)}", **fields
    )


def evacuating(key: tuple[str, str] = MINE, **changes: Any) -> ActualLRP:
    return row(RUNNING, key, EVACUATING, **changes)


def suspect(key: tuple[str, str] = MINE, state: str = RUNNING) -> ActualLRP:
    return row(state, key, SUSPECT)


def hand_made(state: str) -> ActualLRP:
    """A row that has an instance key in a state which never has one."""
    return row(state, instance_guid=MINE[0], cell_id=MINE[1])


class Evacuated:
    """What became of some rows."""

    def __init__(
        self,
        command: Callable[..., Outcome],
        request: Any,
        *rows: ActualLRP,
        strategy: int = ROLLING,
        wanted: int | None = 1,
    ) -> None:
        self.state = State()
        for it in rows:
            self.state.actual_lrps.put(it)
        if wanted is not None:
            numbers: dict[str, Any] = {"instances": wanted, "memory_mb": 1, "disk_mb": 2, "max_pids": 3}
            texts: dict[str, Any] = {"log_guid": "l", "annotation": "", "rootfs": "preloaded:x", "tag_epoch": "e"}
            sealed: dict[str, Any] = {"volume_placement": b"", "run_info": b"", "routes": (), "metric_tags": None}
            self.state.desired_lrps.put(
                DesiredLRP(
                    "p", "dom", update_strategy=strategy, tag_index=0, placement_tags=None, **numbers, **texts, **sealed
                )
            )
        self.state.take()
        self.outcome = command(self.state, request, Context(NOW, random_guid, "trace", Settings()))
        self.changes = len(self.state.take())
        assert {event.trace_id for event in self.outcome.events} <= {""}

    def row(self, presence: Presence) -> ActualLRP | None:
        return self.state.actual_lrps.get(("p", 0, presence))

    @property
    def answer(self) -> Any:
        return self.outcome.answer

    @property
    def error(self) -> Error | None:
        if not self.answer.HasField("error"):
            return None
        return Error(int(self.answer.error.type), str(self.answer.error.message))

    @property
    def said(self) -> tuple[bool, Error | None]:
        """keep_container and error."""
        return bool(self.answer.keep_container), self.error

    @property
    def auctions(self) -> list[tuple[int, ...]]:
        return [call.starts[0].indices for call in self.outcome.calls if isinstance(call, AuctionLRPs)]

    @property
    def groups(self) -> list[str]:
        return self._names(Hub.GROUP)

    @property
    def instances(self) -> list[str]:
        return self._names(Hub.INSTANCE)

    def shown(self, hub: Hub) -> list[Any]:
        return [event.after for event in self.outcome.events if event.hub is hub]

    def _names(self, hub: Hub) -> list[str]:
        return [event.name.rpartition("_")[2] for event in self.outcome.events if event.hub is hub]

    def did_nothing(self) -> bool:
        return not self.changes and not self.outcome.events and not self.outcome.calls


def keys(key: tuple[str, str] = MINE, domain: str = "dom") -> dict[str, Any]:
    return {
        "actual_lrp_key": models.ActualLRPKey(process_guid="p", domain=domain),
        "actual_lrp_instance_key": models.ActualLRPInstanceKey(instance_guid=key[0], cell_id=key[1]),
    }


# -- remove evacuating -------------------------------------------------------------------


def removed(*rows: ActualLRP) -> Evacuated:
    request = models.RemoveEvacuatingActualLRPRequest(**keys(domain="whatever"))
    return Evacuated(evacuation.remove_evacuating, request, *rows)


def test_remove_evacuating() -> None:
    found = removed(row(UNCLAIMED), evacuating())
    assert found.error is None
    assert found.row(EVACUATING) is None
    assert found.groups == found.instances == ["removed"]


@pytest.mark.parametrize("rows", [(), (row(RUNNING),), (suspect(), evacuating(OTHER)), (evacuating(OTHER),)])
def test_remove_evacuating_of_what_is_not_evacuating(rows: tuple[ActualLRP, ...]) -> None:
    found = removed(*rows)
    assert found.error == RESOURCE_NOT_FOUND
    assert found.did_nothing()


# -- claimed, crashed, stopped -----------------------------------------------------------

claimed_request = models.EvacuateClaimedActualLRPRequest(**keys())
crashed_request = models.EvacuateCrashedActualLRPRequest(**keys(), error_message="boom")
stopped_request = models.EvacuateStoppedActualLRPRequest(**keys())

SIMPLE = pytest.mark.parametrize(
    ("command", "request_"),
    [
        (evacuation.evacuate_claimed, claimed_request),
        (evacuation.evacuate_crashed, crashed_request),
        (evacuation.evacuate_stopped, stopped_request),
    ],
)


@SIMPLE
@pytest.mark.parametrize("rows", [(), (row(RUNNING, OTHER),), (row(UNCLAIMED), evacuating(OTHER))])
def test_unknown_instance(command: Callable[..., Outcome], request_: Any, rows: tuple[ActualLRP, ...]) -> None:
    found = Evacuated(command, request_, *rows)
    assert found.said == (False, RESOURCE_NOT_FOUND)
    assert found.did_nothing()


@SIMPLE
def test_evacuating_instance(command: Callable[..., Outcome], request_: Any) -> None:
    found = Evacuated(command, request_, row(UNCLAIMED), evacuating())
    assert found.said == (False, None)
    assert found.row(EVACUATING) is None
    assert found.groups == found.instances == ["removed"]
    assert found.auctions == []


@SIMPLE
@pytest.mark.parametrize(
    ("ordinary", "groups"),
    [
        ((), ["removed"]),
        ((row(UNCLAIMED),), ["changed"]),
        ((row(CLAIMED, OTHER),), ["created", "removed"]),
        ((row(RUNNING, OTHER),), []),
    ],
)
def test_suspect_instance(
    command: Callable[..., Outcome], request_: Any, ordinary: tuple[ActualLRP, ...], groups: list[str]
) -> None:
    found = Evacuated(command, request_, suspect(), *ordinary)
    assert found.said == (False, None)
    assert found.row(SUSPECT) is None
    assert found.groups == groups
    assert found.instances == ["removed"]


class TestClaimed:
    @pytest.mark.parametrize("before", [row(CLAIMED), row(RUNNING), hand_made(CRASHED)])
    def test_ordinary_instance_is_unclaimed(self, before: ActualLRP) -> None:
        found = Evacuated(evacuation.evacuate_claimed, claimed_request, before)
        assert found.said == (False, None)
        assert found.row(ORDINARY) == replace(
            before, state=UNCLAIMED, instance_guid="", cell_id="", net_info=b"", since=NOW, tag_index=6
        )
        assert found.groups == ["changed"]
        assert found.instances == ["created", "removed"]
        assert found.auctions == [(0,)]

    def test_a_missing_desired_lrp_only_suppresses_the_auction(self) -> None:
        found = Evacuated(evacuation.evacuate_claimed, claimed_request, row(CLAIMED), wanted=None)
        assert found.said == (False, None)
        assert found.auctions == []
        assert found.instances == ["created", "removed"]

    def test_unclaimed_instance_is_kept(self) -> None:
        found = Evacuated(evacuation.evacuate_claimed, claimed_request, hand_made(UNCLAIMED))
        assert found.said == (True, CANNOT_BE_UNCLAIMED)
        assert found.did_nothing()


class TestCrashed:
    def test_back_to_unclaimed_without_crashed_event_or_auction(self) -> None:
        found = Evacuated(evacuation.evacuate_crashed, crashed_request, row(RUNNING))
        after = found.row(ORDINARY)
        assert after is not None
        assert found.said == (False, None)
        assert (after.state, after.crash_count, after.crash_reason) == (UNCLAIMED, 1, "boom")
        assert found.groups == ["changed"]
        assert found.instances == ["created", "removed"]
        assert found.auctions == []

    def test_to_crashed(self) -> None:
        found = Evacuated(evacuation.evacuate_crashed, crashed_request, row(CLAIMED, crash_count=2))
        assert found.groups == found.instances == ["crashed", "changed"]

    @pytest.mark.parametrize("state", [UNCLAIMED, CRASHED])
    def test_refused(self, state: str) -> None:
        found = Evacuated(evacuation.evacuate_crashed, crashed_request, hand_made(state))
        assert found.said == (False, CANNOT_BE_CRASHED)
        assert found.did_nothing()


@pytest.mark.parametrize("before", [row(CLAIMED), row(RUNNING), hand_made(UNCLAIMED), hand_made(CRASHED)])
def test_stopped_instance_is_removed(before: ActualLRP) -> None:
    found = Evacuated(evacuation.evacuate_stopped, stopped_request, before)
    assert found.said == (False, None)
    assert found.row(ORDINARY) is None
    assert found.groups == found.instances == ["removed"]
    assert found.auctions == []


# -- running -----------------------------------------------------------------------------


def running_request(**changes: Any) -> models.EvacuateRunningActualLRPRequest:
    fields: dict[str, Any] = {
        **keys(),
        "actual_lrp_net_info": models.ActualLRPNetInfo(address="10.0.0.9"),
        "actual_lrp_internal_routes": [models.ActualLRPInternalRoute(hostname="sent")],
        "metric_tags": {"sent": "1"},
        "availability_zone": "sent",
        **changes,
    }
    return models.EvacuateRunningActualLRPRequest(**fields)


def running(*rows: ActualLRP, request: Any = None, **options: Any) -> Evacuated:
    return Evacuated(evacuation.evacuate_running, request or running_request(), *rows, **options)


class TestRunningIsDropped:
    def test_row_2_nothing_is_known(self) -> None:
        found = running()
        assert found.said == (False, None)
        assert found.did_nothing()

    @pytest.mark.parametrize("ordinary", [(), (row(RUNNING, OTHER),), (row(CRASHED),)])
    def test_row_3_evacuating_instance(self, ordinary: tuple[ActualLRP, ...]) -> None:
        found = running(evacuating(), *ordinary)
        assert found.said == (False, None)
        assert found.row(EVACUATING) is None
        assert found.groups == found.instances == ["removed"]

    def test_row_3_no_target(self) -> None:
        found = running(row(RUNNING, OTHER))
        assert found.said == (False, None)
        assert found.did_nothing()

    @pytest.mark.parametrize(
        ("ordinary", "groups"),
        [((), ["removed"]), ((row(RUNNING, OTHER),), []), ((row(CRASHED),), ["crashed", "changed"])],
    )
    def test_row_3_quirk_a_suspect_is_announced_and_stays(
        self, ordinary: tuple[ActualLRP, ...], groups: list[str]
    ) -> None:
        found = running(suspect(), *ordinary)
        assert found.said == (False, None)
        assert found.changes == 0
        assert found.groups == groups
        assert found.instances == ["removed"]

    def test_row_3_nothing_happens_beside_another_cells_evacuating_row(self) -> None:
        found = running(suspect(), evacuating(OTHER))
        assert found.said == (False, None)
        assert found.did_nothing()

    def test_row_4_quirk_an_instance_that_is_not_desired_is_announced_and_stays(self) -> None:
        found = running(row(RUNNING), wanted=None)
        assert found.said == (False, None)
        assert found.changes == 0
        assert found.groups == found.instances == ["removed"]

    def test_row_4_evacuating_instance(self) -> None:
        found = running(evacuating(), row(UNCLAIMED), wanted=None)
        assert found.row(EVACUATING) is None
        assert found.instances == ["removed"]


class TestRunningRecreated:
    def test_row_6_no_target(self) -> None:
        found = running(row(UNCLAIMED), strategy=RECREATE)
        assert found.said == (False, None)
        assert found.did_nothing()

    def test_row_7_evacuating_instance(self) -> None:
        found = running(row(UNCLAIMED), evacuating(), strategy=RECREATE)
        assert found.said == (False, None)
        assert found.row(EVACUATING) is None

    def test_row_8_suspect_instance(self) -> None:
        found = running(row(UNCLAIMED), suspect(), strategy=RECREATE)
        assert found.said == (False, None)
        assert found.row(SUSPECT) is None
        assert found.instances == ["removed"]

    @pytest.mark.parametrize("state", [RUNNING, CLAIMED])
    def test_row_9_too_few_run(self, state: str) -> None:
        found = running(row(state), strategy=RECREATE, wanted=2)
        assert found.said == (True, None)
        assert found.did_nothing()

    @pytest.mark.parametrize(
        ("rows", "wanted"),
        [
            ([row(RUNNING)], 1),
            ([row(CLAIMED)], 0),
            ([row(CLAIMED), row(RUNNING, OTHER, index=7)], 1),
        ],
    )
    def test_row_11_enough_run(self, rows: list[ActualLRP], wanted: int) -> None:
        found = running(*rows, strategy=RECREATE, wanted=wanted)
        after = found.row(ORDINARY)
        assert after is not None
        assert found.said == (False, None)
        assert after.state == UNCLAIMED
        assert found.groups == ["changed"]
        assert found.instances == ["created", "removed"]
        assert found.auctions == [(0,)]

    @pytest.mark.parametrize("state", [UNCLAIMED, CRASHED])
    def test_row_12_otherwise(self, state: str) -> None:
        found = running(hand_made(state), strategy=RECREATE)
        assert found.said == (False, None)
        assert found.did_nothing()


class TestRunningCopied:
    """Rows 13 to 16: the caller's instance has no row, or the evacuating one."""

    def test_row_13_another_instance_is_evacuating(self) -> None:
        found = running(row(UNCLAIMED), evacuating(OTHER))
        assert found.said == (False, None)
        assert found.did_nothing()

    def test_row_14_the_copy_is_there_already(self) -> None:
        same = models.ActualLRPNetInfo(address="10.0.0.1")
        found = running(row(UNCLAIMED), evacuating(), request=running_request(actual_lrp_net_info=same))
        assert found.said == (True, None)
        assert found.did_nothing()

    def test_row_15_text_that_no_column_holds(self) -> None:
        found = running(row(UNCLAIMED), request=running_request(availability_zone="z" * 256))
        assert found.said == (True, INVALID_REQUEST)
        assert found.did_nothing()

    @pytest.mark.parametrize("strategy", [ROLLING, 7])
    def test_row_16_created(self, strategy: int) -> None:
        found = running(row(UNCLAIMED), strategy=strategy)
        copy = found.row(EVACUATING)
        assert copy is not None
        assert found.said == (True, None)
        assert (copy.state, copy.since, copy.tag_index, copy.crash_count) == (RUNNING, NOW, 0, 0)
        assert (copy.internal_routes, copy.metric_tags) == (("sent",), (("sent", "1"),))
        assert (copy.routable, copy.availability_zone) == (True, "sent")
        assert found.groups == found.instances == ["created"]
        assert found.auctions == []

    def test_row_16_created_without_routes_and_tags_by_r0(self) -> None:
        found = Evacuated(evacuation.evacuate_running_r0, running_request(), row(UNCLAIMED))
        copy = found.row(EVACUATING)
        assert copy is not None
        assert (copy.internal_routes, copy.metric_tags) == (None, None)

    def test_row_16_updated(self) -> None:
        before = evacuating()
        found = running(row(UNCLAIMED), before)
        stored = replace(
            before,
            net_info=encode(models.ActualLRPNetInfo(address="10.0.0.9")),
            internal_routes=("sent",),
            metric_tags=(("sent", "1"),),
            since=NOW,
            tag_index=6,
        )
        assert found.said == (True, None)
        assert found.row(EVACUATING) == stored
        shown = replace(stored, availability_zone="sent")
        assert found.groups == ["changed"]
        assert found.shown(Hub.GROUP) == [Group(None, shown)]
        assert found.instances == ["created"]
        assert found.shown(Hub.INSTANCE) == [shown]

    @pytest.mark.parametrize(("by", "shown"), [(b"\xff", "\ufffd"), (b"\x00", "\0"), (b"z" * 256, "z" * 256)])
    def test_row_16_updated_whatever_the_zone_since_it_is_not_stored(self, by: bytes, shown: str) -> None:
        sent = running_request(availability_zone="?" * len(by)).SerializeToString().replace(b"?" * len(by), by)
        request = models.EvacuateRunningActualLRPRequest.FromString(sent)
        found = running(row(UNCLAIMED), evacuating(), request=request)
        assert found.said == (True, None)
        assert found.instances == ["created"]
        assert [it.availability_zone for it in found.shown(Hub.INSTANCE)] == [shown]
        stored = found.row(EVACUATING)
        assert stored is not None
        assert (stored.availability_zone, stored.tag_index) == ("stored", 6)


class TestRunningInPlace:
    """Rows 17 and 18."""

    @pytest.mark.parametrize("state", [RUNNING, CLAIMED])
    def test_row_17_ordinary_instance(self, state: str) -> None:
        before = row(state)
        found = running(before)
        copy, waiting = found.row(EVACUATING), found.row(ORDINARY)
        assert copy is not None
        assert found.said == (True, None)
        assert copy == replace(
            before, presence=EVACUATING, state=RUNNING, since=NOW, tag_index=0, tag_epoch=copy.tag_epoch
        )
        assert copy.tag_epoch != before.tag_epoch
        assert waiting == replace(
            before, state=UNCLAIMED, instance_guid="", cell_id="", net_info=b"", since=NOW, tag_index=6
        )
        assert found.groups == ["created", "changed"]
        assert found.instances == ["changed", "created"]
        assert found.shown(Hub.INSTANCE) == [copy, waiting]
        assert found.auctions == [(0,)]

    @pytest.mark.parametrize(
        ("rows", "groups"),
        [
            ((row(RUNNING), evacuating(OTHER)), ["changed"]),
            ((evacuating(OTHER), row(RUNNING)), ["created", "changed", "removed"]),
        ],
    )
    def test_row_17_overwrites_another_cells_copy(self, rows: tuple[ActualLRP, ...], groups: list[str]) -> None:
        found = running(*rows)
        copy = found.row(EVACUATING)
        assert copy is not None
        assert (copy.instance_guid, copy.tag_epoch, copy.tag_index) == (MINE[0], "epoch-1", 6)
        assert found.groups == groups
        assert found.instances == ["changed", "created"]

    def test_row_17_a_running_suspect_becomes_the_instance(self) -> None:
        found = running(row(RUNNING), suspect(OTHER))
        assert found.groups == ["created", "created", "removed"]
        assert found.instances == ["changed", "created"]

    def test_row_17_fails_where_the_copy_is_there_already(self) -> None:
        found = running(row(RUNNING), evacuating())
        assert found.said == (True, RESOURCE_EXISTS)
        assert found.did_nothing()

    @pytest.mark.parametrize(
        ("ordinary", "groups"),
        [(row(UNCLAIMED), ["created", "changed"]), (row(CLAIMED, OTHER), ["created", "created", "removed"])],
    )
    def test_row_17_suspect_instance(self, ordinary: ActualLRP, groups: list[str]) -> None:
        found = running(suspect(), ordinary)
        copy = found.row(EVACUATING)
        assert copy is not None
        assert found.said == (True, None)
        assert copy.instance_guid == MINE[0]
        assert (found.row(SUSPECT), found.row(ORDINARY)) == (None, ordinary)
        assert found.groups == groups
        assert found.instances == ["changed"]
        assert found.auctions == []

    @pytest.mark.parametrize("state", [UNCLAIMED, CRASHED])
    def test_row_18_otherwise(self, state: str) -> None:
        found = running(hand_made(state))
        assert found.said == (False, None)
        assert found.did_nothing()


def test_running_is_kept_when_the_rows_cannot_be_read() -> None:
    odd = models.ActualLRPKey(process_guid="p\0", domain="dom")
    found = running(row(RUNNING), request=running_request(actual_lrp_key=odd))
    assert found.said == (
        True,
        Error(0, 'ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)'),
    )


def test_claimed_is_not_kept_when_the_rows_cannot_be_read() -> None:
    odd = models.ActualLRPKey(process_guid="p\0", domain="dom")
    request = models.EvacuateClaimedActualLRPRequest(**{**keys(), "actual_lrp_key": odd})
    found = Evacuated(evacuation.evacuate_claimed, request, row(CLAIMED))
    assert found.said == (
        False,
        Error(0, 'ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)'),
    )


def test_undecodable_rows_go_although_the_evacuation_fails() -> None:
    found = Evacuated(evacuation.evacuate_stopped, stopped_request, row(RUNNING, broken="odd"))
    assert found.said == (False, RESOURCE_NOT_FOUND)
    assert found.row(ORDINARY) is None
    assert found.outcome.events == ()


NO_KEYS = ["Invalid field: actual_lrp_key", "Invalid field: actual_lrp_instance_key"]


@pytest.mark.parametrize(
    ("request_", "problems"),
    [
        (models.RemoveEvacuatingActualLRPRequest(), NO_KEYS),
        (models.EvacuateClaimedActualLRPRequest(), NO_KEYS),
        (models.EvacuateCrashedActualLRPRequest(), [*NO_KEYS, "Invalid field: error_message"]),
        (models.EvacuateStoppedActualLRPRequest(), NO_KEYS),
        (models.EvacuateRunningActualLRPRequest(), [*NO_KEYS, "Invalid field: actual_lrp_net_info"]),
        (running_request(), []),
        (running_request(actual_lrp_net_info=models.ActualLRPNetInfo()), ["Invalid field: address"]),
    ],
)
def test_checks(request_: Any, problems: list[str]) -> None:
    assert evacuation.CHECKS[type(request_)](request_) == problems
