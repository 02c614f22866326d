"""The command `bbs-dev`: what it says when something is wrong, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60


@pytest.fixture
def stack(new_stack: Callable[..., Any]) -> Any:
    return new_stack(cells=1)


def refused(stack: Any, *arguments: str, status: int = 1) -> str:
    done = stack.run(*arguments, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return str(done.stderr)


@pytest.mark.parametrize("verb", [["down"], ["status"], ["env"], ["kill", "bbs"], ["start", "bbs"], ["logs", "bbs"]])
def test_without_a_stack_every_command_says_so(stack: Any, verb: list[str]) -> None:
    assert f"no stack in {stack.folder}; start one with: bbs-dev up" in refused(stack, *verb)


def test_a_taken_port_is_named_with_its_use(stack: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", stack.port_base + 16))
        taken.listen()
        text = refused(stack, "up", "--detach")
    assert f"port {stack.port_base + 16}, wanted for auctioneer, is taken" in text
    assert "--port-base" in text


@pytest.mark.parametrize("cells", ["0", "51"])
def test_only_so_many_cells(stack: Any, cells: str) -> None:
    assert "'--cells'" in refused(stack, "up", "--cells", cells, status=2)


def test_a_part_that_cannot_start_is_named_with_its_log(stack: Any) -> None:
    """Locket's certificate is none."""
    certs = stack.folder / "certs"
    certs.mkdir()
    for name in ("locket.crt", "locket.key"):
        (certs / name).write_text("no certificate\n")
    text = refused(stack, "up", "--detach")
    assert re.search("locket ends with status [1-9]", text)
    assert str(stack.folder / "logs" / "locket.log") in text
    assert "is not up" in refused(stack, "status")


def test_ctrl_c_in_the_foreground_takes_the_stack_down(stack: Any) -> None:
    command = [Path(sys.executable).parent / "bbs-dev", "up"]
    shell = subprocess.Popen(command, env=stack.environment, stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    for line in shell.stdout:
        if "Ctrl-C stops the stack" in line:
            break
    other = refused(stack, "up", "--detach", "--port-base", str(stack.port_base + 100))
    assert f"the stack in {stack.folder} is up, starting or stopping (port base {stack.port_base}, 1 cells)" in other
    assert "is up already" in refused(stack, "up", "--detach")
    assert "no such part; there are: postgres, locket, bbs, auctioneer, cell-1" in refused(stack, "kill", "bob")
    assert "no log of 'bob'" in refused(stack, "logs", "bob")
    assert "bbs.started" in stack.run("logs", "bbs", "--lines", "100").stdout
    shell.send_signal(signal.SIGINT)
    assert "The stack is down." in shell.communicate(timeout=SECONDS)[0]
    assert shell.returncode == 0
    assert "is not up" in refused(stack, "status")
