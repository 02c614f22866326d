"""Whole stacks, started by the command that people use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bbs_server.dev.testing import DevStack


@pytest.fixture(scope="module")
def new_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DevStack]]:
    """Plans stacks; takes down at the end what is still up."""
    made: list[DevStack] = []

    def plan(cells: int = 2) -> DevStack:
        made.append(DevStack(tmp_path_factory.mktemp("stack"), cells))
        return made[-1]

    yield plan
    for stack in made:
        stack.remove()
