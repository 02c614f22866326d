"""A stack of one cell for the client package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bbs_server.dev.testing import DevStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    stack = DevStack(tmp_path_factory.mktemp("client-stack"), cells=1).up()
    yield stack
    stack.remove()
