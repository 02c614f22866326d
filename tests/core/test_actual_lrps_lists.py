"""The lists and groups of actual LRPs (actual-lrps.md section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core import actual_lrp_groups, actual_lrps
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import Elements
from bbs_server.core.errors import RESOURCE_NOT_FOUND, Refused
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, Presence
from bbs_server.core.state import State
from bbs_server.store.guids import random_guid

CONTEXT = Context(1, random_guid, "", Settings())
ORDINARY, EVACUATING, SUSPECT = Presence.ORDINARY, Presence.EVACUATING, Presence.SUSPECT


def row(guid: str, index: int, cell: str, domain: str = "dom", **fields: Any) -> ActualLRP:
    presence, state = fields.pop("presence", ORDINARY), fields.pop("state", RUNNING if cell else UNCLAIMED)
    instance = f"ig-{cell}" if cell else ""
    return ActualLRP(guid, index, domain, presence, state, 1, "e", instance_guid=instance, cell_id=cell, **fields)


@pytest.fixture
def state() -> State:
    state = State()
    for it in (
        row("p", 0, "c1"),
        row("p", 1, "c2", state=CLAIMED),
        row("p", 2, ""),
        row("q", 0, "c1", "other"),
        row("q", 1, "", "other", state=CRASHED),
        row("p", 0, "c3", presence=EVACUATING),
        row("q", 1, "c2", "other", presence=SUSPECT),
        row("p", 3, "c1", broken="odd"),
    ):
        state.actual_lrps.put(it)
    state.take()
    return state


def ask(query: Callable[..., Any], state: State, request: Any, response: Any) -> Any:
    found = query(state, request, CONTEXT)
    assert isinstance(found, Elements)
    assert state.take() == ()
    return response.FromString(b"".join(found.pieces))


def shown(lrps: Any) -> list[tuple[str, int, int]]:
    return sorted(
        (lrp.actual_lrp_key.process_guid, lrp.actual_lrp_key.index, int(lrp.presence)) for lrp in lrps.actual_lrps
    )


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [("p", 0, 0), ("p", 0, 1), ("p", 1, 0), ("p", 2, 0), ("q", 0, 0), ("q", 1, 0), ("q", 1, 2)]),
        ({"domain": "dom"}, [("p", 0, 0), ("p", 0, 1), ("p", 1, 0), ("p", 2, 0)]),
        ({"cell_id": "c1"}, [("p", 0, 0), ("q", 0, 0)]),
        ({"process_guid": "p"}, [("p", 0, 0), ("p", 0, 1), ("p", 1, 0), ("p", 2, 0)]),
        ({"process_guid": "p", "index": 0}, [("p", 0, 0), ("p", 0, 1)]),
        ({"index": 1}, [("p", 1, 0), ("q", 1, 0), ("q", 1, 2)]),
        ({"index": -1}, []),
        ({"process_guid": "zzz"}, []),
        ({"domain": "dom", "cell_id": "c2", "process_guid": "p", "index": 1}, [("p", 1, 0)]),
        ({"domain": "other", "cell_id": "c3"}, []),
    ],
)
def test_list(state: State, filters: dict[str, Any], expected: list[tuple[str, int, int]]) -> None:
    request = models.ActualLRPsRequest(**filters)
    assert shown(ask(actual_lrps.list_all, state, request, models.ActualLRPsResponse)) == expected


@pytest.mark.parametrize(
    ("guids", "expected"),
    [
        (["q"], [("q", 0, 0), ("q", 1, 0), ("q", 1, 2)]),
        (["q", "nope", "q"], [("q", 0, 0), ("q", 1, 0), ("q", 1, 2)]),
        ([""], []),
    ],
)
def test_list_by_process_guids(state: State, guids: list[str], expected: list[tuple[str, int, int]]) -> None:
    request = models.ActualLRPsByProcessGuidsRequest(process_guids=guids)
    found = ask(actual_lrps.list_by_process_guids, state, request, models.ActualLRPsByProcessGuidsResponse)
    assert shown(found) == expected


def test_list_refuses_what_the_database_would() -> None:
    with pytest.raises(Refused) as refusal:
        actual_lrps.list_all(State(), models.ActualLRPsRequest(cell_id="a\0"), CONTEXT)
    assert refusal.value.error.message.endswith("0x00 (SQLSTATE 22021)")


def test_list_shares_the_encodings_of_its_records(state: State) -> None:
    first, second = (actual_lrps.list_all(state, models.ActualLRPsRequest(), CONTEXT) for _ in range(2))
    assert isinstance(first, Elements)
    assert isinstance(second, Elements)
    assert all(a is b for a, b in zip(first.pieces, second.pieces, strict=True))


Pair = tuple[str, int, str | None, str | None]


def pairs(groups: Any) -> list[Pair]:
    """Process guid and index with the cells of both slots, None for an empty slot."""
    found: list[Pair] = []
    for group in groups:
        slots = {
            name: getattr(group, name).actual_lrp_instance_key.cell_id if group.HasField(name) else None
            for name in ("instance", "evacuating")
        }
        key = (group.instance if group.HasField("instance") else group.evacuating).actual_lrp_key
        found.append((key.process_guid, key.index, slots["instance"], slots["evacuating"]))
    return sorted(found, key=lambda pair: pair[:2])


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (
            {},
            [
                ("p", 0, "c1", "c3"),
                ("p", 1, "c2", None),
                ("p", 2, "", None),
                ("q", 0, "c1", None),
                ("q", 1, "c2", None),
            ],
        ),
        ({"domain": "other"}, [("q", 0, "c1", None), ("q", 1, "c2", None)]),
        ({"cell_id": "c3"}, [("p", 0, None, "c3")]),
        ({"cell_id": "c2"}, [("p", 1, "c2", None), ("q", 1, "c2", None)]),
        ({"domain": "nope"}, []),
    ],
)
def test_groups(state: State, filters: dict[str, Any], expected: list[Pair]) -> None:
    request = models.ActualLRPGroupsRequest(**filters)
    found = ask(actual_lrp_groups.list_groups, state, request, models.ActualLRPGroupsResponse)
    assert pairs(found.actual_lrp_groups) == expected


def test_groups_by_process_guid(state: State) -> None:
    request = models.ActualLRPGroupsByProcessGuidRequest(process_guid="q")
    found = ask(actual_lrp_groups.list_by_process_guid, state, request, models.ActualLRPGroupsResponse)
    assert pairs(found.actual_lrp_groups) == [("q", 0, "c1", None), ("q", 1, "c2", None)]


def test_rows_of_one_index_in_different_domains_are_no_pair(state: State) -> None:
    state.actual_lrps.put(row("r", 0, "c1"))
    state.actual_lrps.put(row("r", 0, "c3", "other", presence=EVACUATING))
    state.take()
    wanted = models.ActualLRPGroupsByProcessGuidRequest(process_guid="r")
    found = ask(actual_lrp_groups.list_by_process_guid, state, wanted, models.ActualLRPGroupsResponse)
    assert pairs(found.actual_lrp_groups) == [("r", 0, "c1", None), ("r", 0, None, "c3")]
    one = models.ActualLRPGroupByProcessGuidAndIndexRequest(process_guid="r", index=0)
    answer = ask(actual_lrp_groups.get_by_index, state, one, models.ActualLRPGroupResponse)
    assert pairs([answer.actual_lrp_group]) == [("r", 0, "c1", "c3")]


def test_one_group(state: State) -> None:
    request = models.ActualLRPGroupByProcessGuidAndIndexRequest(process_guid="p", index=0)
    found = ask(actual_lrp_groups.get_by_index, state, request, models.ActualLRPGroupResponse)
    assert pairs([found.actual_lrp_group]) == [("p", 0, "c1", "c3")]


@pytest.mark.parametrize(("guid", "index"), [("p", 9), ("p", -1), ("nope", 0), ("p", 3)])
def test_no_group(state: State, guid: str, index: int) -> None:
    request = models.ActualLRPGroupByProcessGuidAndIndexRequest(process_guid=guid, index=index)
    with pytest.raises(Refused) as refusal:
        actual_lrp_groups.get_by_index(state, request, CONTEXT)
    assert refusal.value.error == RESOURCE_NOT_FOUND


def test_an_lrp_is_complete_even_when_empty() -> None:
    """Keys, net info, modification tag and routable are always written (actual-lrps.md 1.3)."""
    state = State()
    state.actual_lrps.put(ActualLRP("", 0, "", 0, "", 0, ""))
    found = actual_lrps.list_all(state, models.ActualLRPsRequest(), CONTEXT)
    assert isinstance(found, Elements)
    assert b"".join(found.pieces) == bytes.fromhex("120a 0a00 1200 1a00 4a00 6800")


@pytest.mark.parametrize(
    ("request_", "problems"),
    [
        (models.ActualLRPGroupsByProcessGuidRequest(), ["Invalid field: process_guid"]),
        (
            models.ActualLRPGroupByProcessGuidAndIndexRequest(index=-1),
            ["Invalid field: process_guid", "Invalid field: index"],
        ),
        (models.ActualLRPGroupByProcessGuidAndIndexRequest(process_guid="p"), []),
    ],
)
def test_checks(request_: Any, problems: list[str]) -> None:
    assert actual_lrp_groups.CHECKS[type(request_)](request_) == problems
