"""Who may know whom. Each layer lists the layers, or single modules of them, that it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

LAYERS: Mapping[str, tuple[str, ...]] = {
    "core": (),
    "tls": (),
    "wire": ("core",),
    "store": ("core",),
    "effects": ("core", "tls"),
    # The server may show its events itself, on a page of its own.
    "process": ("core", "tls", "wire", "store", "effects", "page"),
    # A program of its own that is built from the parts of the server's.
    "locket": ("core", "tls", "store", "process"),
    # Clients share with the server only its errors and its spelling of JSON.
    "client": ("core.errors", "core.go_json"),
    "cli": ("client",),
    # Shows a server's events, whether it gets them by a client or runs inside the server's process.
    "page": ("client", "core", "effects.hubs"),
    # Starts the programs as an operator does.
    "dev": ("client", "core.errors", "page"),
}

_OUTSIDE = ("aiohttp", "asyncpg", "grpc", "httpx", "logging", "os", "selectors", "socket", "ssl")
_TIME_AND_CHANCE = ("asyncio", "random", "secrets", "threading", "time", "uuid")
NOT_IN_CORE = frozenset((*_OUTSIDE, *_TIME_AND_CHANCE))
"""The core is functions of state, request and context: no I/O, no clock, no event loop, nothing random."""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of each import; names imported from a package may be modules and are added to it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def allowed(layer: str, module: str) -> bool:
    own = (layer, *LAYERS[layer])
    return any(f"{module}.".startswith(f"{name}.") for name in own)


def test_every_folder_is_a_layer(modules: dict[str, Path]) -> None:
    assert {name.partition(".")[0] for name in modules} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_knows_only_what_it_may(layer: str, modules: dict[str, Path], root: Path) -> None:
    offences = [
        f"{path.relative_to(root)}:{line}: {module}"
        for name, path in modules.items()
        if name.partition(".")[0] == layer
        for line, module in imports(path)
        if module.startswith("bbs_server.") and not allowed(layer, module.removeprefix("bbs_server."))
    ]
    assert offences == []


def test_no_layers_know_each_other() -> None:
    """The table has no cycles, dev above all aside."""
    for layer, known in LAYERS.items():
        for name in known:
            assert not any(other.partition(".")[0] == layer for other in LAYERS[name.partition(".")[0]]), (layer, name)


def test_the_core_does_nothing_but_compute(modules: dict[str, Path], root: Path) -> None:
    offences = [
        f"{path.relative_to(root)}:{line}: {module}"
        for name, path in modules.items()
        if name.partition(".")[0] == "core"
        for line, module in imports(path)
        if module.partition(".")[0] in NOT_IN_CORE
    ]
    assert offences == []
