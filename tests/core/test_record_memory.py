"""What a record costs in memory beyond the bytes that are stored and sent."""

from __future__ import annotations

import gc
import tracemalloc
import uuid

from bbs_protos import models_pb2 as models

from bbs_server.core import actual_lrps, desired_lrps
from bbs_server.core import desired_lrp_forms as forms
from bbs_server.core.context import Context, Settings
from bbs_server.core.records import ActualLRP, DesiredLRP
from bbs_server.core.state import State
from bbs_server.store.guids import random_guid

CONTEXT = Context(1_700_000_000_000_000_000, random_guid, "", Settings())
BUDGET = 4096
"""Bytes for an LRP and its instance together, indexes included."""

FORMS = (forms.R3, forms.SCHEDULING_INFO, forms.ROUTING_INFO)
STATIC = {"app_name": "storefront", "organization_name": "retail", "space_name": "production"}


def guid(number: int) -> str:
    return str(uuid.UUID(int=number))


def add(state: State, number: int) -> None:
    """An LRP as Cloud Foundry desires it, its instance running. Requests are parsed, so they share no text."""
    app, instance, process = guid(number), guid(number + 10**6), f"{guid(number)}-{guid(number + 10**9)}"
    lrp = models.DesiredLRP(process_guid=process, domain="apps", root_fs="preloaded:fs", log_guid=app, instances=1)
    lrp.routes.routes["cf-router"] = b'[{"hostnames":["%s.example.com"],"port":8080}]' % app.encode()
    for name, static in {**STATIC, "app_id": app, "source_id": app}.items():
        lrp.metric_tags[name].static = static
    lrp.metric_tags["instance_id"].dynamic = 1  # type: ignore[assignment]
    encoded = models.DesireLRPRequest(desired_lrp=lrp).SerializeToString()
    desired_lrps.desire(state, models.DesireLRPRequest.FromString(encoded), CONTEXT)
    start = models.StartActualLRPRequest(
        actual_lrp_key=models.ActualLRPKey(process_guid=process, index=0, domain="apps"),
        actual_lrp_instance_key=models.ActualLRPInstanceKey(instance_guid=instance, cell_id=f"cell-{number % 9}"),
        metric_tags={**STATIC, "app_id": app, "source_id": app, "instance_id": "0"},
        availability_zone="z1",
    )
    encoded = start.SerializeToString()
    actual_lrps.start(state, models.StartActualLRPRequest.FromString(encoded), CONTEXT)
    state.take()


def encodings(desired: DesiredLRP, actual: ActualLRP) -> int:
    """Bytes of everything encoded that an LRP and its instance hold, all lists asked for."""
    stored = len(desired.run_info) + len(desired.volume_placement) + len(actual.net_info)
    stored += sum(len(value) for _, value in desired.routes or ())
    return stored + len(actual.element) + sum(len(form.piece(desired)) for form in FORMS)


def overhead(numbers: range) -> float:
    """Bytes per LRP, each of these numbers being one, beyond its encodings."""
    state = State()
    add(state, 0)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in numbers:
        add(state, number)
    rows = zip(state.desired_lrps, state.actual_lrps, strict=True)
    encoded = sum(encodings(desired, actual) for desired, actual in rows)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return (taken - encoded) / len(numbers)


def test_overhead_per_record() -> None:
    """The smaller of two: in one of them the interpreter's table of all texts may grow by a megabyte at once."""
    assert min(overhead(range(1, 1001)), overhead(range(1001, 2001))) < BUDGET


def test_equal_parts_are_kept_once() -> None:
    state = State()
    for number in (3, 12):
        add(state, number)
    first, second = state.desired_lrps
    one, other = state.actual_lrps
    for left, right in ((first, second), (one, other)):
        assert left.domain is right.domain
        pairs, others = {p[0]: p for p in left.metric_tags}, {p[0]: p for p in right.metric_tags}
        assert all(pairs[name] is others[name] for name in STATIC)
    assert first.rootfs is second.rootfs
    assert one.cell_id is other.cell_id
    assert one.availability_zone is other.availability_zone
    assert one.process_guid is first.process_guid
