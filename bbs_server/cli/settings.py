"""The options that every command shares, from flags or the environment."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console

from bbs_server.client import Client, ClientError, Failed, Target

T = TypeVar("T")

FAILED = 4
"""Exit status for a BBS that answered with an error or could not be asked, as cfdot has it."""

INVALID = 3
"""Exit status for options and arguments that make no sense."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to go, and how to print."""

    url: str
    ca: str
    cert: str
    key: str
    skip_verify: bool
    timeout: float
    locket: str
    json: bool

    def client(self) -> Client:
        if not self.url:
            fail("no BBS given: use --bbsURL or set BBS_URL", INVALID)
        if not self.url.startswith(("http://", "https://")):
            fail(f"the URL has an invalid scheme: {self.url}", INVALID)
        target = Target(self.url, self.ca or None, self.cert or None, self.key or None, self.skip_verify, self.timeout)
        return Client(target)


def settings_of(context: typer.Context) -> Settings:
    settings: Settings = context.find_root().obj
    return settings


def ask(context: typer.Context, question: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Run something against the BBS; its failure is one line and status 4."""

    async def run() -> T:
        async with settings_of(context).client() as bbs:
            return await question(bbs)

    return explained(run)


def explained(run: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        return asyncio.run(run())
    except Failed as problem:
        fail(f"BBS error: {problem.type_name}: {problem.message}")
    except ClientError as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def fail(message: str, status: int = FAILED) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"bbs: {message}", markup=False)
    raise typer.Exit(status)


def on_terminal() -> bool:
    return sys.stdout.isatty()
