"""Domains: upsert and list (desired-lrps.md section 11)."""

from typing import Any

import pytest
from bbs_protos import models_pb2 as models
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core import domains
from bbs_server.core.context import Context, Settings
from bbs_server.core.errors import INVALID_REQUEST, Error, Refused, unknown
from bbs_server.core.records import NEVER, Domain
from bbs_server.core.state import Change, State
from bbs_server.core.times import rounded
from bbs_server.store.guids import random_guid

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
HALF = SECOND // 2


def at(now: int) -> Context:
    return Context(now, random_guid, "", Settings())


def upsert(state: State, domain: str, ttl: int = 0, now: int = NOW) -> Any:
    return domains.upsert(state, models.UpsertDomainRequest(domain=domain, ttl=ttl), at(now))


def fresh(state: State, now: int = NOW) -> list[str]:
    return list(domains.list_fresh(state, None, at(now)).domains)


def test_upsert_inserts_and_overrides_in_both_directions() -> None:
    state = State()
    for ttl, expire_time in ((0, NEVER), (5, NOW + 5 * SECOND), (0, NEVER), (2**32 - 1, NOW + (2**32 - 1) * SECOND)):
        before = state.domains.get("d")
        outcome = upsert(state, "d", ttl)
        assert outcome.answer == models.UpsertDomainResponse()
        assert (outcome.events, outcome.calls) == ((), ())
        assert state.take() == (Change("domains", "d", before, Domain("d", expire_time)),)


BAD: list[tuple[bytes, Error]] = [
    (b"d" * 256, INVALID_REQUEST),
    (b"d\0", unknown('ERROR: invalid byte sequence for encoding "UTF8": 0x00 (SQLSTATE 22021)')),
    (b"d\xff", unknown('ERROR: invalid byte sequence for encoding "UTF8": 0xff (SQLSTATE 22021)')),
]


@pytest.mark.parametrize(("name", "error"), BAD)
def test_upsert_of_a_name_that_does_not_fit(name: bytes, error: Error) -> None:
    placeholder = models.UpsertDomainRequest(domain="x" * len(name)).SerializeToString()
    request = models.UpsertDomainRequest.FromString(placeholder.replace(b"x" * len(name), name))
    state = State()
    with pytest.raises(Refused) as caught:
        domains.upsert(state, request, at(NOW))
    assert caught.value.error == error
    assert state.take() == ()


def test_the_longest_name_fits() -> None:
    state = State()
    upsert(state, "é" * 255)
    assert fresh(state) == ["é" * 255]


def test_check() -> None:
    assert domains.CHECKS[models.UpsertDomainRequest](models.UpsertDomainRequest(ttl=5)) == ["Invalid field: domain"]
    assert domains.CHECKS[models.UpsertDomainRequest](models.UpsertDomainRequest(domain="d")) == []


def test_list_leaves_out_what_has_expired_and_deletes_nothing() -> None:
    state = State()
    upsert(state, "short", 1)
    upsert(state, "long", 600)
    upsert(state, "ever")
    state.take()
    assert fresh(state, NOW + 3 * SECOND) == ["long", "ever"]
    assert len(state.domains) == 3
    assert state.take() == ()


def test_nothing_fresh_is_an_empty_answer() -> None:
    assert domains.list_fresh(State(), None, at(NOW)).SerializeToString() == b""


@pytest.mark.parametrize(("passed", "listed"), [(HALF - 1, True), (HALF, False), (SECOND, False)])
def test_the_clock_of_the_list_is_rounded_half_up(passed: int, listed: bool) -> None:
    """A domain of one second is gone half a second early."""
    state = State()
    upsert(state, "d", 1)
    assert (fresh(state, NOW + passed) == ["d"]) is listed


@given(st.integers(0, 2**62))
def test_rounding(now: int) -> None:
    nearest = rounded(now)
    assert nearest % SECOND == 0
    assert -HALF < nearest - now <= HALF
