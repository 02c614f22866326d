"""Desired LRPs at the level of commands and queries: rows, answers, events and calls."""

from collections.abc import Sequence
from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core import desired_lrps
from bbs_server.core.context import Context, Settings
from bbs_server.core.encoding import Elements, encode
from bbs_server.core.errors import (
    DESERIALIZE,
    INVALID_REQUEST,
    RESOURCE_EXISTS,
    RESOURCE_NOT_FOUND,
    Error,
    ErrorType,
    Refused,
    unknown,
)
from bbs_server.core.outcome import AuctionLRPs, Hub, Outcome, StopInstance, UpdateInstance
from bbs_server.core.records import CLAIMED, CRASHED, RUNNING, UNCLAIMED, ActualLRP, MetricTag, Presence, replace
from bbs_server.core.state import State
from bbs_server.store.guids import random_guid

NOW = 1_700_000_000 * 10**9
CONTEXT = Context(now=NOW, new_guid=random_guid, request_id="trace", settings=Settings())


def definition(process_guid: str = "p", **fields: Any) -> models.DesiredLRP:
    lrp = models.DesiredLRP(
        process_guid=process_guid,
        domain="dom",
        root_fs="preloaded:fs",
        instances=1,
        memory_mb=128,
        disk_mb=256,
        max_pids=10,
        log_guid="log",
    )
    lrp.action.run_action.path = "/bin/app"
    lrp.action.run_action.user = "vcap"
    lrp.metric_tags["source_id"].static = "src"
    lrp.MergeFrom(models.DesiredLRP(**fields))
    return lrp


def desire(state: State, *args: Any, **fields: Any) -> Outcome:
    return desired_lrps.desire(state, models.DesireLRPRequest(desired_lrp=definition(*args, **fields)), CONTEXT)


def update(state: State, process_guid: str = "p", **fields: Any) -> Outcome:
    request = models.UpdateDesiredLRPRequest(process_guid=process_guid, update=models.DesiredLRPUpdate(**fields))
    return desired_lrps.update(state, request, CONTEXT)


def remove(state: State, process_guid: str = "p") -> Outcome:
    return desired_lrps.remove(state, models.RemoveDesiredLRPRequest(process_guid=process_guid), CONTEXT)


def occupy(state: State, index: int, to: str, presence: int = Presence.ORDINARY, **fields: Any) -> ActualLRP:
    """Put an instance of `p` that a cell has (or had)."""
    row = ActualLRP("p", index, "dom", presence, to, NOW, "epoch", 3, **fields)
    if to in (CLAIMED, RUNNING):
        row = replace(row, instance_guid=f"ig{index}", cell_id="cell")
    state.actual_lrps.put(row)
    return row


def routes(**values: str) -> models.ProtoRoutes:
    return models.ProtoRoutes(routes={name.replace("_", "-"): value.encode() for name, value in values.items()})


def listed(answer: Any) -> list[models.DesiredLRP]:
    assert isinstance(answer, Elements)
    return list(models.DesiredLRPsResponse.FromString(b"".join(answer.pieces)).desired_lrps)


def guids(answer: Any) -> set[str]:
    return {lrp.process_guid for lrp in listed(answer)}


def got(state: State, process_guid: str = "p", query: Any = desired_lrps.get_r3) -> models.DesiredLRP:
    answer = query(state, models.DesiredLRPByProcessGuidRequest(process_guid=process_guid), CONTEXT)
    return models.DesiredLRPResponse.FromString(b"".join(answer.pieces)).desired_lrp


def scheduling(state: State) -> models.DesiredLRPSchedulingInfo:
    request = models.DesiredLRPByProcessGuidRequest(process_guid="p")
    answer = desired_lrps.get_scheduling_info(state, request, CONTEXT)
    assert isinstance(answer, Elements)
    message = models.DesiredLRPSchedulingInfoByProcessGuidResponse.FromString(b"".join(answer.pieces))
    return message.desired_lrp_scheduling_info


def names(outcome: Outcome, hub: Hub) -> list[str]:
    return [event.name for event in outcome.events if event.hub is hub]


def auctions(outcome: Outcome) -> list[tuple[int, ...]]:
    return [start.indices for call in outcome.calls if isinstance(call, AuctionLRPs) for start in call.starts]


def indices(state: State, presence: int = Presence.ORDINARY) -> list[int]:
    return sorted(row.index for row in state.actual_lrps if row.presence == presence)


def refusal(call: Any) -> Error:
    with pytest.raises(Refused) as refused:
        call()
    return refused.value.error


# -- desire ------------------------------------------------------------------------------


def test_desire_creates_row_instances_events_and_one_auction() -> None:
    state = State()
    outcome = desire(state, instances=2, PlacementTags=["pt"])
    assert outcome.answer == models.DesiredLRPLifecycleResponse()
    assert names(outcome, Hub.DESIRED) == ["desired_lrp_created"]
    assert names(outcome, Hub.GROUP) == ["actual_lrp_created"] * 2
    assert names(outcome, Hub.INSTANCE) == ["actual_lrp_instance_created"] * 2
    assert {event.trace_id for event in outcome.events if event.hub is not Hub.GROUP} == {"trace"}
    (call,) = outcome.calls
    assert isinstance(call, AuctionLRPs)
    (start,) = call.starts
    assert call.request_id == "trace"
    assert (start.process_guid, start.domain, start.indices, start.placement_tags) == ("p", "dom", (0, 1), ("pt",))
    assert (start.volume_drivers, start.rootfs, start.memory_mb, start.disk_mb, start.max_pids) == (
        (), "preloaded:fs", 128, 256, 10,
    )  # fmt: skip
    rows = list(state.actual_lrps)
    assert [(row.index, row.state, row.since, row.routable) for row in rows] == [
        (0, UNCLAIMED, NOW, False),
        (1, UNCLAIMED, NOW, False),
    ]
    assert len({row.tag_epoch for row in rows}) == 2


def test_desire_without_instances_asks_for_nothing() -> None:
    state = State()
    lrp = definition()
    lrp.instances = 0
    outcome = desired_lrps.desire(state, models.DesireLRPRequest(desired_lrp=lrp), CONTEXT)
    assert names(outcome, Hub.DESIRED) == ["desired_lrp_created"]
    assert (len(outcome.events), outcome.calls, len(state.actual_lrps)) == (1, (), 0)


def test_desire_again_is_refused_without_a_change() -> None:
    state = State()
    desire(state)
    state.take()
    assert refusal(lambda: desire(state, instances=5)) == RESOURCE_EXISTS
    assert state.take() == ()


def test_desire_over_existing_instances_auctions_no_index() -> None:
    state = State()
    occupy(state, 0, RUNNING)
    outcome = desire(state)
    assert auctions(outcome) == [()]
    assert names(outcome, Hub.INSTANCE) == []


def test_volume_drivers_are_kept_with_duplicates() -> None:
    state = State()
    mounts = [models.VolumeMount(driver="drv", mode="r"), models.VolumeMount(driver="drv", mode="r")]
    (call,) = desire(state, volume_mounts=mounts).calls
    assert isinstance(call, AuctionLRPs)
    assert call.starts[0].volume_drivers == ("drv", "drv")
    assert list(scheduling(state).volume_placement.driver_names) == ["drv", "drv"]
    record = state.desired_lrps.get("p")
    assert record is not None
    assert forms.start_request(record, (0,)).volume_drivers == ("drv", "drv")


def test_a_stored_lrp_without_mounts_has_null_drivers() -> None:
    state = State()
    desire(state)
    record = state.desired_lrps.get("p")
    assert record is not None
    assert forms.start_request(record, (7,)).volume_drivers is None


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"routes": models.ProtoRoutes(routes={"r": b"nope"})}, INVALID_REQUEST),
        ({"routes": models.ProtoRoutes(routes={"r": b""})}, INVALID_REQUEST),
        ({"routes": models.ProtoRoutes(routes={"r": b"[" * 501 + b"]" * 501})}, INVALID_REQUEST),
        ({"domain": "d" * 256}, INVALID_REQUEST),
        ({"log_guid": "l" * 256}, INVALID_REQUEST),
        ({"root_fs": "docker:" + "x" * 1020}, INVALID_REQUEST),
        ({"annotation": "a\0"}, unknown('ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)')),
    ],
)
def test_desire_refuses_what_columns_cannot_hold(fields: dict[str, Any], error: Error) -> None:
    state = State()
    assert refusal(lambda: desire(state, **fields)) == error
    assert state.take() == ()


def test_columns_hold_their_limits() -> None:
    state = State()
    desire(state, "p" * 255, domain="d" * 255, log_guid="l" * 255, root_fs="docker:" + "x" * 1017)
    assert state.desired_lrps.get("p" * 255) is not None


def test_what_is_desired_is_read_back() -> None:
    state = State()
    sent = definition(
        routes=models.ProtoRoutes(routes={"r": b'{ "b" : 1.50, "a":"<x&>" }'}),
        ports=[8080, 2222],
        environment_variables=[models.EnvironmentVariable(name="A", value="b")],
        annotation="note",
        PlacementTags=["z", "a"],
        update_strategy=7,
        start_timeout_ms=61_500,
        deprecated_start_timeout_s=9,
        network=models.Network(properties={"k": "v"}),
        certificate_properties=models.CertificateProperties(),
        modification_tag=models.ModificationTag(epoch="mine", index=9),
    )
    desired_lrps.desire(state, models.DesireLRPRequest(desired_lrp=sent), CONTEXT)
    lrp = got(state)
    assert lrp.modification_tag.epoch not in ("", "mine")
    assert lrp.modification_tag.index == 0
    expected = models.DesiredLRP()
    expected.CopyFrom(sent)
    expected.modification_tag.CopyFrom(lrp.modification_tag)
    expected.routes.routes["r"] = b'{"b":1.50,"a":"\\u003cx\\u0026\\u003e"}'
    expected.ClearField("deprecated_start_timeout_s")
    expected.metrics_guid = "src"
    assert lrp == expected
    record = state.desired_lrps.get("p")
    assert record is not None
    info = models.DesiredLRPRunInfo.FromString(record.run_info)
    assert (info.created_at, info.desired_lrp_key.process_guid, len(info.metric_tags)) == (NOW, "p", 0)


def test_invalid_utf8_in_the_run_info_is_kept_byte_for_byte() -> None:
    sent = definition(network=models.Network.FromString(b"\x0a\x06\x0a\x01\xff\x12\x01\xfe"))
    sent.MergeFromString(b"\x82\x01\x02\xff\xfe")  # log_source
    state = State()
    desired_lrps.desire(state, models.DesireLRPRequest(desired_lrp=sent), CONTEXT)
    lrp = got(state)
    assert lrp.log_source == b"\xff\xfe"
    assert lrp.network.SerializeToString() == sent.network.SerializeToString()


def test_invalid_utf8_in_json_columns_becomes_replacement_characters() -> None:
    sent = definition()
    sent.routes.MergeFromString(b"\x0a\x06\x0a\x01\xff\x12\x011")
    sent.MergeFromString(b"\xe2\x01\x02\xe2\x82")  # PlacementTags
    sent.MergeFromString(b"\x9a\x02\x0a\x0a\x03\xffxy\x12\x03\x0a\x01\xfe")  # metric_tags
    state = State()
    desired_lrps.desire(state, models.DesireLRPRequest(desired_lrp=sent), CONTEXT)
    lrp = got(state)
    assert dict(lrp.routes.routes) == {"\ufffd": b"1"}
    assert list(lrp.PlacementTags) == ["\ufffd\ufffd"]
    assert lrp.metric_tags["\ufffdxy"].static == "\ufffd"


def test_duplicate_ports_are_dropped_on_reading() -> None:
    state = State()
    desire(state, ports=[3, 1, 3, 2])
    assert list(got(state).ports) == [3, 1, 2]
    desire(state, "q", ports=[3, 1])
    assert list(got(state, "q").ports) == [3, 1]


def test_routes_null_is_stored_and_returned() -> None:
    state = State()
    desire(state, routes=models.ProtoRoutes(routes={"r": b" null "}))
    assert got(state).routes.routes["r"] == b"null"


def test_routes_and_messages_are_always_written() -> None:
    state = State()
    desire(state)
    assert got(state).HasField("routes")
    info = scheduling(state)
    assert all(
        info.HasField(name)  # type: ignore[arg-type]
        for name in ("desired_lrp_key", "desired_lrp_resource", "routes", "modification_tag", "volume_placement")
    )


# -- update ------------------------------------------------------------------------------


def test_an_empty_update_bumps_the_tag_and_announces_a_change() -> None:
    state = State()
    desire(state)
    before = state.desired_lrps.get("p")
    outcome = update(state)
    after = state.desired_lrps.get("p")
    assert before is not None
    assert after is not None
    assert (after.tag_epoch, after.tag_index) == (before.tag_epoch, 1)
    (event,) = outcome.events
    assert (event.name, event.before, event.after, event.trace_id) == ("desired_lrp_changed", before, after, "trace")
    assert outcome.calls == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"annotation": ""}, {"annotation": ""}),
        ({"annotation": "new"}, {"annotation": "new"}),
        ({"routes": models.ProtoRoutes()}, {"routes": ()}),
        ({"routes": models.ProtoRoutes(routes={"b": b"[ 1 ]", "a": b"2"})}, {"routes": (("a", b"2"), ("b", b"[1]"))}),
        ({"instances": 4}, {"instances": 4}),
        (
            {"metric_tags": {"i": models.MetricTagValue(dynamic=1), "u": models.MetricTagValue(static="x", dynamic=9)}},  # type: ignore[arg-type]
            {"metric_tags": (("i", MetricTag("", 1)), ("u", MetricTag("x", 0)))},
        ),
    ],
)
def test_update_replaces_what_it_has(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    state = State()
    desire(state, annotation="old", routes=models.ProtoRoutes(routes={"r": b"0"}))
    before = state.desired_lrps.get("p")
    assert before is not None
    update(state, **fields)
    assert state.desired_lrps.get("p") == replace(before, tag_index=1, **expected)


@pytest.mark.parametrize(
    ("username", "password", "stored"), [("u2", "p2", ("u2", "p2")), ("", "", ("", "")), ("u2", "", ("u2", ""))]
)
def test_update_of_image_credentials_keeps_the_rest_of_the_run_info(
    username: str, password: str, stored: tuple[str, str]
) -> None:
    state = State()
    desire(state, image_username="u", image_password="p", ports=[1, 1, 2])
    update(state, image_username=username, image_password=password)
    record = state.desired_lrps.get("p")
    assert record is not None
    info = models.DesiredLRPRunInfo.FromString(record.run_info)
    assert (info.image_username, info.image_password) == stored
    assert list(info.ports) == [1, 2]
    assert (info.created_at, info.action.run_action.path) == (NOW, "/bin/app")


def test_update_refusals_change_nothing() -> None:
    state = State()
    desire(state)
    state.take()
    assert refusal(lambda: update(state, "nope")) == RESOURCE_NOT_FOUND
    for guid, error in (("nope", RESOURCE_NOT_FOUND), ("p", INVALID_REQUEST)):
        without = models.UpdateDesiredLRPRequest(process_guid=guid)
        assert refusal(lambda without=without: desired_lrps.update(state, without, CONTEXT)) == error
    assert refusal(lambda: update(state, routes=models.ProtoRoutes(routes={"r": b"{"}))) == INVALID_REQUEST
    assert refusal(lambda: update(state, annotation="\0")).type == ErrorType.UNKNOWN
    assert state.take() == ()


def test_scaling_up_creates_and_auctions_only_what_is_missing() -> None:
    state = State()
    desire(state, instances=1)
    occupy(state, 2, RUNNING)
    outcome = update(state, instances=4)
    assert auctions(outcome) == [(1, 3)]
    assert outcome.events[-1].name == "desired_lrp_changed"
    assert names(outcome, Hub.GROUP) == ["actual_lrp_created"] * 2
    assert indices(state) == [0, 1, 2, 3]


def test_scaling_up_over_existing_instances_sends_an_empty_auction() -> None:
    state = State()
    desire(state, instances=1)
    occupy(state, 1, CRASHED)
    assert auctions(update(state, instances=2)) == [()]


@pytest.mark.parametrize("fields", [{}, {"instances": 2}])
def test_no_scaling_without_a_difference(fields: dict[str, Any]) -> None:
    state = State()
    desire(state, instances=2)
    outcome = update(state, **fields)
    assert outcome.calls == ()
    assert len(outcome.events) == 1


@pytest.mark.parametrize("command", [lambda state: update(state, instances=1), lambda state: remove(state)])
def test_stopping_instances(command: Any) -> None:
    state = State()
    desire(state, instances=6)
    occupy(state, 2, CRASHED)
    occupy(state, 3, CLAIMED)
    occupy(state, 4, RUNNING)
    occupy(state, 4, RUNNING, Presence.EVACUATING)
    occupy(state, 5, RUNNING, Presence.SUSPECT)
    outcome = command(state)
    stopped = {(call.instance_guid, call.cell_id) for call in outcome.calls if isinstance(call, StopInstance)}
    assert stopped == {("ig3", "cell"), ("ig4", "cell"), ("ig5", "cell")}
    assert all(call.request_id == "trace" for call in outcome.calls)
    kept = {0} if state.desired_lrps.get("p") else set()
    assert set(indices(state)) == kept | {3, 4}
    assert indices(state, Presence.EVACUATING) == [4]
    assert indices(state, Presence.SUSPECT) == [5]
    removed = [e.before.index for e in outcome.events if e.name == "actual_lrp_instance_removed"]
    assert set(removed) == {0, 1, 2, 5} - kept
    assert {e.trace_id for e in outcome.events if e.hub is Hub.INSTANCE} == {"trace"}
    assert len(names(outcome, Hub.GROUP)) == len(removed)


@pytest.mark.parametrize(
    "command",
    [lambda state: update(state, instances=2), lambda state: update(state, routes=routes(other="1")), remove],
)
def test_commands_that_read_all_instances_delete_undecodable_ones(command: Any) -> None:
    state = State()
    desire(state, instances=3)
    for presence in (Presence.ORDINARY, Presence.EVACUATING):
        occupy(state, 0, RUNNING, presence, broken="odd")
    outcome = command(state)
    assert 0 not in indices(state)
    assert indices(state, Presence.EVACUATING) == []
    assert all(not event.before.broken for event in outcome.events if event.name == "actual_lrp_instance_removed")


INTERNAL = '[{"hostname":"a.internal"}]'


@pytest.mark.parametrize(
    ("stored", "sent", "hostnames"),
    [
        (INTERNAL, INTERNAL, None),
        (INTERNAL, '[ {"hostname":"a.internal"}]', ("a.internal",)),
        (INTERNAL, '[{"hostname":"b"}]', ("b",)),
        (INTERNAL, "[]", ()),
        ("", INTERNAL, ("a.internal",)),
        (INTERNAL, "null", "unchanged"),
        (INTERNAL, "", "unchanged"),
        ("", "", "unchanged"),
        (INTERNAL, '{"hostname":"a"}', None),
        (INTERNAL, "[1]", None),
    ],
)
def test_running_instances_learn_new_internal_routes(stored: str, sent: str, hostnames: Any) -> None:
    """None: no request at all. "unchanged": a request with null routes."""
    state = State()
    desire(state, routes=routes(internal_router=stored) if stored else None)
    occupy(state, 0, RUNNING)
    outcome = update(state, routes=routes(internal_router=sent) if sent else routes(other="1"))
    if hostnames is None:
        assert outcome.calls == ()
    else:
        (call,) = outcome.calls
        assert isinstance(call, UpdateInstance)
        assert call.internal_routes == (None if hostnames == "unchanged" else hostnames)
        assert call.metric_tags is None
        assert (call.instance_guid, call.cell_id, call.index, call.domain, call.request_id) == (
            "ig0", "cell", 0, "dom", "trace",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"source_id": MetricTag("src")}, None),
        ({"source_id": MetricTag("other")}, (("source_id", "other"),)),
        (
            {"g": MetricTag("", 2), "i": MetricTag("", 1), "source_id": MetricTag("src")},
            (("g", "ig0"), ("i", "0"), ("source_id", "src")),
        ),
        ({"renamed": MetricTag("src")}, (("renamed", "src"),)),
        ({"source_id": MetricTag("src", 9)}, (("source_id", "src"),)),
    ],
)
def test_running_instances_learn_new_metric_tags(sent: dict[str, MetricTag], expected: Any) -> None:
    state = State()
    desire(state)
    occupy(state, 0, RUNNING)
    tags = {name: models.MetricTagValue(static=tag.static, dynamic=tag.dynamic) for name, tag in sent.items()}  # type: ignore[arg-type]
    calls = update(state, metric_tags=tags).calls
    assert [call.metric_tags for call in calls if isinstance(call, UpdateInstance)] == ([expected] if expected else [])
    assert all(call.internal_routes is None for call in calls if isinstance(call, UpdateInstance))


def test_which_instances_are_updated() -> None:
    state = State()
    desire(state)
    occupy(state, 0, CLAIMED)
    occupy(state, 1, RUNNING, Presence.SUSPECT)
    occupy(state, 2, RUNNING, Presence.EVACUATING)
    occupy(state, 3, UNCLAIMED)
    occupy(state, 9, RUNNING)
    calls = update(state, routes=routes(internal_router=INTERNAL)).calls
    assert {call.index for call in calls if isinstance(call, UpdateInstance)} == {0, 1, 9}


# -- remove ------------------------------------------------------------------------------


def test_remove_announces_the_lrp_as_it_was() -> None:
    state = State()
    desire(state)
    record = state.desired_lrps.get("p")
    outcome = remove(state)
    assert (outcome.events[0].name, outcome.events[0].before) == ("desired_lrp_removed", record)
    assert len(state.desired_lrps) == 0
    assert refusal(lambda: remove(state)) == RESOURCE_NOT_FOUND


# -- reads -------------------------------------------------------------------------------


def everything() -> State:
    state = State()
    for process_guid, domain in (("app1-a", "d1"), ("app1-b", "d2"), ("app2-a", "d1"), ("a_p%", "d2")):
        desire(state, process_guid, domain=domain)
    return state


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {"app1-a", "app1-b", "app2-a", "a_p%"}),
        ({"domain": "d1"}, {"app1-a", "app2-a"}),
        ({"domain": "nope"}, set()),
        ({"process_guids": ["app1-a", "a_p%", "nope", "app1-a"]}, {"app1-a", "a_p%"}),
        ({"process_guids": ["app1-a", "app1-b"], "domain": "d2"}, {"app1-b"}),
        ({"process_guids": [""]}, set()),
        ({"app_guids": ["app1"]}, {"app1-a", "app1-b"}),
        ({"app_guids": ["app1", "app2"], "domain": "d1"}, {"app1-a", "app2-a"}),
        ({"app_guids": ["app1"], "process_guids": ["app2-a"]}, set()),
        ({"app_guids": [""]}, {"app1-a", "app1-b", "app2-a", "a_p%"}),
        ({"app_guids": ["a_p"]}, {"app1-a", "app1-b", "app2-a", "a_p%"}),
        ({"app_guids": ["%-a"]}, {"app1-a", "app2-a"}),
        ({"app_guids": ["a\\_"]}, {"a_p%"}),
        ({"app_guids": ["a_p\\"]}, {"a_p%"}),
        ({"app_guids": ["[a]", "*", "?"]}, set()),
        ({"app_guids": ["%[a]"]}, set()),
        ({"app_guids": ["p2"]}, set()),
    ],
)
def test_list_filters(filters: dict[str, Any], expected: set[str]) -> None:
    state = everything()
    request = models.DesiredLRPsRequest(**filters)
    assert guids(desired_lrps.list_r3(state, request, CONTEXT)) == expected
    assert guids(desired_lrps.list_r2(state, request, CONTEXT)) == expected


@pytest.mark.parametrize(
    ("query", "honoured"),
    [
        (desired_lrps.list_scheduling_infos, {"domain", "process_guids"}),
        (desired_lrps.list_routing_infos, {"process_guids"}),
    ],
)
def test_lists_that_ignore_some_filters(query: Any, honoured: set[str]) -> None:
    state = everything()
    filters: dict[str, Any] = {"domain": "d1", "process_guids": ["app1-b"], "app_guids": ["nope"]}
    for name, value in filters.items():
        pieces = query(state, models.DesiredLRPsRequest(**{name: value}), CONTEXT).pieces
        passing = {"domain": 2, "process_guids": 1}
        assert len(pieces) == (passing[name] if name in honoured else 4)


def test_a_hostile_pattern_does_not_take_long() -> None:
    state = State()
    desire(state, "a" * 255)
    assert guids(desired_lrps.list_r3(state, models.DesiredLRPsRequest(app_guids=["%a" * 100 + "b"]), CONTEXT)) == set()


def test_routing_info_holds_only_its_fields() -> None:
    state = State()
    desire(state, annotation="note", routes=routes(r="1"), metrics_guid="src")
    (info,) = listed(desired_lrps.list_routing_infos(state, models.DesiredLRPsRequest(), CONTEXT))
    assert {field.name for field, _ in info.ListFields()} == {
        "process_guid", "domain", "log_guid", "instances", "routes", "modification_tag", "metric_tags",
    }  # fmt: skip


def test_scheduling_info() -> None:
    state = State()
    desire(state, instances=2, annotation="note", routes=routes(r="1"), PlacementTags=["t"])
    info = scheduling(state)
    key, resource = info.desired_lrp_key, info.desired_lrp_resource
    assert (key.process_guid, key.domain, key.log_guid) == ("p", "dom", "log")
    assert (resource.memory_mb, resource.disk_mb, resource.root_fs, resource.max_pids) == (128, 256, "preloaded:fs", 10)
    assert (info.annotation, info.instances, list(info.PlacementTags)) == ("note", 2, ["t"])
    assert dict(info.routes.routes) == {"r": b"1"}


def test_r2_shares_bytes_with_r3_unless_there_are_image_layers() -> None:
    state = State()
    desire(state, "plain")
    layer = models.ImageLayer(name="l", url="u", destination_path="/d", layer_type=1, media_type=1)  # type: ignore[arg-type]
    desire(state, "layered", image_layers=[layer])
    plain, layered = (state.desired_lrps.get(guid) for guid in ("plain", "layered"))
    assert plain is not None
    assert layered is not None
    assert forms.R2.piece(plain) is forms.R3.piece(plain)
    assert len(got(state, "layered").image_layers) == 1
    assert len(got(state, "layered", desired_lrps.get_r2).image_layers) == 0


def test_metrics_guid_is_completed_in_answers_only() -> None:
    state = State()
    desire(state)
    assert got(state).metrics_guid == "src"
    record = state.desired_lrps.get("p")
    assert record is not None
    assert desired_lrps.message(record).metrics_guid == ""


def test_lists_are_made_of_pieces_encoded_once() -> None:
    state = everything()
    queries: Sequence[Any] = (desired_lrps.list_r3, desired_lrps.list_scheduling_infos, desired_lrps.list_routing_infos)
    for query in queries:
        first = query(state, models.DesiredLRPsRequest(), CONTEXT).pieces
        again = query(state, models.DesiredLRPsRequest(), CONTEXT).pieces
        assert all(a is b for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("query", [desired_lrps.get_r3, desired_lrps.get_r2, desired_lrps.get_scheduling_info])
def test_unknown_guid(query: Any) -> None:
    request = models.DesiredLRPByProcessGuidRequest(process_guid="nope")
    assert refusal(lambda: query(State(), request, CONTEXT)) == RESOURCE_NOT_FOUND
    request.process_guid = "\0"
    assert refusal(lambda: query(State(), request, CONTEXT)).type == ErrorType.UNKNOWN


ENCODING = "Unknown encoding: [103 97]"
FORM_QUERIES = {
    "r3": (desired_lrps.get_r3, desired_lrps.list_r3),
    "r2": (desired_lrps.get_r2, desired_lrps.list_r2),
    "scheduling": (desired_lrps.get_scheduling_info, desired_lrps.list_scheduling_infos),
    "routing": (None, desired_lrps.list_routing_infos),
}


@pytest.mark.parametrize(
    ("column", "error", "readable"),
    [
        ("run_info", DESERIALIZE, {"scheduling", "routing"}),
        ("routes", unknown(ENCODING), set()),
        ("volume_placement", Error(ErrorType.INVALID_RECORD, ENCODING), {"routing"}),
        ("placement_tags", unknown(ENCODING), {"routing"}),
        ("metric_tags", unknown(ENCODING), {"scheduling"}),
        ("annotation", unknown(ENCODING), {"routing"}),
    ],
)
def test_rows_with_a_broken_column(column: str, error: Error, readable: set[str]) -> None:
    state = everything()
    desire(state)
    record = state.desired_lrps.get("p")
    assert record is not None
    broken = replace(record, broken={column: ENCODING})
    state.desired_lrps.put(broken)
    request = models.DesiredLRPByProcessGuidRequest(process_guid="p")
    for form, (get, _) in FORM_QUERIES.items():
        if get and form not in readable:
            assert refusal(lambda get=get: get(state, request, CONTEXT)) == error
    assert not forms.is_lost(broken)
    for form, (_, list_all) in FORM_QUERIES.items():
        pieces = [piece for piece in list_all(state, models.DesiredLRPsRequest(), CONTEXT).pieces if piece]
        assert len(pieces) == (5 if form in readable else 4)
    assert forms.is_lost(broken) == (column == "run_info")
    state.take()
    assert refusal(lambda: update(state)) == error
    assert refusal(lambda: remove(state)) == error
    assert state.take() == ()


# -- checks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "problems"),
    [
        (models.DesireLRPRequest(), ["desired_lrp"]),
        (models.RemoveDesiredLRPRequest(), ["process_guid"]),
        (models.DesiredLRPByProcessGuidRequest(), ["process_guid"]),
        (models.UpdateDesiredLRPRequest(), ["process_guid"]),
        (models.UpdateDesiredLRPRequest(process_guid="p"), []),
    ],
)
def test_request_checks(request_: Any, problems: list[str]) -> None:
    assert desired_lrps.CHECKS[type(request_)](request_) == [f"Invalid field: {name}" for name in problems]


def test_a_desired_lrp_is_checked() -> None:
    assert desired_lrps.check_desire(models.DesireLRPRequest(desired_lrp=definition())) == []
    assert "invalid action type" in desired_lrps.check_desire(models.DesireLRPRequest(desired_lrp={}))


@pytest.mark.parametrize(
    ("update_", "problems"),
    [
        ({"instances": -1, "annotation": "a" * 10241}, ["instances", "annotation"]),
        ({"annotation": "é" * 5121}, ["annotation"]),
        ({"annotation": "é" * 5120}, []),
        ({"routes": {"routes": {"a": b"x" * 131072, "b": b"y"}}}, ["routes"]),
        ({"routes": {"routes": {"a": b"x" * 131072}}}, []),
        ({"metric_tags": {"a": {}}}, ["metric_tags", "static", "dynamic"]),
        ({"image_username": ""}, ["image_password"]),
        ({"image_password": "x"}, ["image_username"]),
        ({"image_username": "", "image_password": ""}, []),
    ],
)
def test_update_checks(update_: Any, problems: list[str]) -> None:
    request = models.UpdateDesiredLRPRequest(process_guid="p", update=update_)
    assert desired_lrps.check_update(request) == [f"Invalid field: {name}" for name in problems]


# -- nothing raises anything but Refused -------------------------------------------------

texts = st.text(max_size=6) | st.sampled_from(["p", "", "\0", "internal-router"])
route_values = st.sampled_from([b"1", b"", b"null", b"[", INTERNAL.encode(), b"[[[["]) | st.binary(max_size=6)
tag_values = st.builds(
    lambda static, dynamic: models.MetricTagValue(static=static, dynamic=dynamic), texts, st.integers(-1, 9)
)
updates = st.fixed_dictionaries(
    {},
    optional={
        "instances": st.integers(0, 5) | st.sampled_from([2**31 - 1]),
        "annotation": texts,
        "routes": st.dictionaries(texts, route_values, max_size=3).map(
            lambda routes: models.ProtoRoutes(routes=routes)
        ),
        "metric_tags": st.dictionaries(texts, tag_values, max_size=3),
        "image_username": texts,
        "image_password": texts,
    },
)
raw = st.sampled_from(
    [b"", b"\x12\x08\x0a\x06\x0a\x01\xff\x12\x011", b"\x22\x07\x0a\x01\xff\x12\x02\x10\x01", b"\x1a\x01\xff"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts, updates, raw)
def test_no_update_raises_anything_but_a_refusal(process_guid: str, fields: dict[str, Any], odd: bytes) -> None:
    state = State()
    desire(state)
    occupy(state, 0, RUNNING)
    occupy(state, 1, UNCLAIMED)
    state.take()
    change = models.DesiredLRPUpdate(**fields)
    change.MergeFromString(odd)
    request = models.UpdateDesiredLRPRequest(process_guid=process_guid, update=change)
    desired_lrps.check_update(request)
    before = state.desired_lrps.get("p")
    try:
        outcome = desired_lrps.update(state, request, CONTEXT)
    except Refused:
        assert state.take() == ()
        return
    assert outcome.events[-1].name == "desired_lrp_changed"
    after = state.desired_lrps.get("p")
    assert before is not None
    assert after is not None
    assert after.tag_index == before.tag_index + 1
    assert len(state.actual_lrps) <= desired_lrps.INSTANCES_AT_ONCE + 2
    for form in (forms.R3, forms.R2, forms.SCHEDULING_INFO, forms.ROUTING_INFO):
        assert form.piece(after)
    encode(desired_lrps.message(after))


def test_a_huge_scale_is_created_in_parts() -> None:
    state = State()
    desire(state)
    outcome = update(state, instances=2**31 - 1)
    assert [len(indices) for indices in auctions(outcome)] == [desired_lrps.INSTANCES_AT_ONCE]
