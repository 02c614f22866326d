"""Indexes of a table hold exactly the records that their functions put there."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.state import Table


@dataclass(frozen=True)
class Pebble:
    key: int
    colour: str


STEPS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, "red", "blue"])), max_size=40)


@given(STEPS)
def test_indexes_follow_every_change(steps: list[tuple[int, str | None]]) -> None:
    table: Table[int, Pebble] = Table("pebbles", lambda p: p.key, {"colour": lambda p: p.colour}, [])
    for key, colour in steps:
        table.adopt(key, None if colour is None else Pebble(key, colour))
        for wanted in ("red", "blue"):
            found = list(table.where("colour", wanted))
            assert {id(p) for p in found} == {id(p) for p in table.all() if p.colour == wanted}
            assert len(found) == len(set(found))
        assert set(table.values("colour")) == {p.colour for p in table.all()}


def test_records_of_an_index_come_in_the_order_they_went_there() -> None:
    table: Table[int, Pebble] = Table("pebbles", lambda p: p.key, {"colour": lambda p: p.colour}, [])
    for key in (3, 1, 2, 1):
        table.put(Pebble(key, "red"))
    assert [p.key for p in table.where("colour", "red")] == [3, 1, 2]
