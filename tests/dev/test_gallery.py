"""Every example of docs/gallery.md, run as written in one shell against one stack: its blocks are the tests."""

from __future__ import annotations

import queue
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_SENTINEL = "--- end of the block"
_SECONDS = 90
_HEADING = re.compile(r"^## ([^\n]+)$|^```bash\n(.*?)^```$(?:\n\n```output\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def _blocks() -> Iterator[Any]:
    """The blocks in their order: script and expected output, named by the heading above."""
    heading, number = "", 0
    for title, script, output in _HEADING.findall((ROOT / "docs" / "gallery.md").read_text()):
        heading, number = (title, 0) if title else (heading, number + 1)
        if script:
            yield pytest.param(script, output, id=f"{heading}, {number}")


class Shell:
    """A bash that stays, so that what one block exports the next ones see. It ends with the first failure."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            ["bash", "-euo", "pipefail"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def run(self, script: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{script}\necho '{_SENTINEL}'\n")
        self.process.stdin.flush()
        output = ""
        while (line := self._lines.get(timeout=_SECONDS)) != f"{_SENTINEL}\n":
            assert line is not None, f"a command failed; so far: {output}"
            output += line
        return output


@pytest.fixture(scope="module")
def shell(new_stack: Callable[..., Any]) -> Iterator[Shell]:
    shell = Shell(new_stack(cells=3).environment)
    yield shell
    assert shell.process.stdin is not None
    shell.process.stdin.close()
    shell.process.wait(_SECONDS)


@pytest.mark.parametrize(("script", "expected"), list(_blocks()))
def test_a_block_does_what_is_written(shell: Shell, script: str, expected: str) -> None:
    output = _plain(shell.run(script))
    assert re.fullmatch(_pattern(_plain(expected)), output), f"expected:\n{expected}\ngot:\n{output}"


def _plain(text: str) -> str:
    """Without empty lines and with single spaces: column widths depend on what is in them."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def _pattern(expected: str) -> str:
    """A line with nothing but … stands for any lines, … within a line for any text."""
    patterns = (
        r"(.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n" for line in expected.split("\n")
    )
    return "".join(patterns).removesuffix(r"\n")
