"""Ports that stay free until their program listens, and while it restarts."""

from __future__ import annotations

import socket
from collections import deque
from contextlib import ExitStack

import pytest

from bbs_server.dev import ports


def test_no_port_is_given_twice_or_lies_where_connections_begin() -> None:
    given = [ports.free_port() for _ in range(200)]
    assert len(set(given)) == 200
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as outgoing:
        assert max(given) < outgoing.getsockname()[1]


def test_a_range_is_free_as_a_whole() -> None:
    first = ports.free_range(50)
    assert all(ports.is_free(port) for port in range(first, first + 50))
    assert ports.free_port() not in range(first, first + 50)


def test_what_others_hold_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_range(3)
    monkeypatch.setattr(ports, "_LOWEST", first)
    monkeypatch.setattr(ports, "_first_outgoing", lambda: first + 3)
    monkeypatch.setattr(ports, "_given", deque())
    with ExitStack() as held:
        for port in (first, first + 2):
            held.enter_context(socket.create_server(("127.0.0.1", port)))
        assert ports.free_port() == first + 1
        monkeypatch.setattr(ports, "_TRIES", 50)
        with pytest.raises(ports.NoFreePort):
            ports.free_port()
