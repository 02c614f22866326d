"""Arguments that hold a definition: JSON on the command line, or @FILE, or - for standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from google.protobuf.message import Message

from bbs_server.cli.settings import INVALID, fail
from bbs_server.client.json_form import NotThatMessage, loads

M = TypeVar("M", bound=Message)

Spec = Annotated[str, typer.Argument(metavar="SPEC|@FILE", help="JSON, or @FILE, or - for standard input.")]


def read_spec(spec: str, kind: type[M]) -> M:
    try:
        text = sys.stdin.read() if spec == "-" else Path(spec[1:]).read_text() if spec.startswith("@") else spec
        return loads(text, kind)
    except OSError as problem:
        fail(f"cannot read {problem.filename}: {problem.strerror}", INVALID)
    except NotThatMessage as problem:
        fail(f"invalid definition: {problem}", INVALID)
