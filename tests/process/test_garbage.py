"""The collector must not hold the event loop for long (design, budgets)."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bbs_server.process import garbage


@dataclass(slots=True)
class Record:
    """Something the collector has to visit."""

    other: object


@pytest.fixture
def collector() -> Iterator[None]:
    """Whatever a test sets is taken back."""
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    yield
    gc.unfreeze()
    gc.enable()
    gc.set_threshold(*thresholds)
    gc.callbacks[:] = callbacks


def records(number: int) -> list[Record]:
    return [Record([]) for _ in range(number)]


def test_what_was_loaded_is_never_visited_again(collector: None) -> None:
    garbage.suspend()
    assert not gc.isenabled()
    state = records(1000)
    garbage.settle()
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(state)
    assert not any(item is state[0] for item in gc.get_objects())


def test_a_long_collection_is_the_last_of_its_kind(collector: None) -> None:
    pauses = garbage.Pauses()
    garbage.settle()
    pauses.watch()
    gc.collect()
    few = gc.get_freeze_count()
    state = records(500_000)
    gc.collect()
    assert pauses.last > 0
    assert gc.get_freeze_count() >= few + len(state)
    gc.collect()
    assert pauses.longest >= pauses.last > 0
    # What is not visited costs no time, though others may take the machine away meanwhile.
    assert not any(item is state[0] for item in gc.get_objects())
