"""`bbs-dev`: a whole Diego control plane on this machine."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bbs_server.client import ClientError
from bbs_server.dev.api import HEADER
from bbs_server.dev.configs import client_identity
from bbs_server.dev.layout import DEFAULT_PORT_BASE, Layout
from bbs_server.dev.postgres import tail
from bbs_server.dev.serve import failure_file
from bbs_server.dev.tour import TourFailed
from bbs_server.dev.tour import tour as show

app = typer.Typer(
    no_args_is_help=True,
    help="A whole Diego control plane on this machine: PostgreSQL, Locket, BBS, auctioneer and cells."
    " For development only: nothing is isolated.",
)
console = Console()

_DEFAULT_FOLDER = Path(".local/stack")
_POLL = 0.2
_STYLES = {"ready": "green", "starting": "yellow", "restarting": "red", "down": "dim"}

Folder = Annotated[Path, typer.Option(help="Where the stack keeps everything.", envvar="BBS_DEV_FOLDER")]
Name = Annotated[str, typer.Argument(help="A part, as `status` lists them.")]


@app.command()
def up(
    folder: Folder = _DEFAULT_FOLDER,
    cells: Annotated[int, typer.Option(min=0, max=50, help="How many cells.")] = 3,
    port_base: Annotated[int, typer.Option(help="First port; the BBS is at this plus 9.")] = DEFAULT_PORT_BASE,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything is up.")] = False,
) -> None:
    """Start the stack; Ctrl-C stops it again, unless detached."""
    layout = Layout(folder.absolute(), port_base, cells)
    start_stack(layout)
    show_next_steps(layout)
    if not detach:
        console.print("Ctrl-C stops the stack; its data stays.")
        with stopping(layout):
            signal.pause()


@app.command()
def down(folder: Folder = _DEFAULT_FOLDER) -> None:
    """Stop everything. Data stays."""
    stop_stack(known(folder))


@app.command()
def status(folder: Folder = _DEFAULT_FOLDER) -> None:
    """Show the parts."""
    console.print(_table(_api(known(folder), "GET", "/api/parts")))


@app.command()
def logs(
    name: Name,
    folder: Folder = _DEFAULT_FOLDER,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 50,
) -> None:
    """Show the log of a part, or of the supervisor."""
    path = known(folder).log(name)
    if not path.exists():
        fail(f"no log of {name!r} at {path}")
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


@app.command()
def kill(
    name: Name,
    folder: Folder = _DEFAULT_FOLDER,
    term: Annotated[bool, typer.Option("--term", help="Ask it to end (a cell evacuates) instead of SIGKILL.")] = False,
) -> None:
    """Kill a part; it stays down until `start`."""
    _api(known(folder), "POST", f"/api/parts/{name}/kill?signal={'term' if term else 'kill'}")
    console.print(f"{name} is down; start it again with: bbs-dev start {name}")


@app.command()
def start(name: Name, folder: Folder = _DEFAULT_FOLDER) -> None:
    """Start a part that was killed."""
    layout = known(folder)
    _api(layout, "POST", f"/api/parts/{name}/start")
    _wait_ready(layout, [name])


@app.command()
def run(
    folder: Folder = _DEFAULT_FOLDER,
    cells: Annotated[int, typer.Option(min=1, max=50, help="How many cells.")] = 3,
    port_base: Annotated[int, typer.Option(help="First port; the BBS is at this plus 9.")] = DEFAULT_PORT_BASE,
    tour: Annotated[bool, typer.Option("--tour", help="Stop after the tour.")] = False,
) -> None:
    """Start the stack, show a tour, and stay up until Ctrl-C."""
    layout = Layout(folder.absolute(), port_base, cells)
    with stopping(layout):
        start_stack(layout)
        try:
            asyncio.run(show(layout, console))
        except (TourFailed, ClientError) as problem:
            fail(f"the tour failed: {problem}")
        show_next_steps(layout)
        if not tour:
            console.print("Ctrl-C stops the stack; its data stays.")
            signal.pause()


def start_stack(layout: Layout) -> None:
    """Bring the stack up, showing progress; a stack that runs already is left as it is."""
    if _answers(layout):
        console.print(f"The stack in {layout.folder} is up already.")
        return
    _check_ports(layout)
    layout.log("supervisor").parent.mkdir(parents=True, exist_ok=True)
    (layout.folder / "stack.json").write_text(json.dumps({"port_base": layout.port_base, "cells": layout.cells}))
    arguments = ["--folder", str(layout.folder), "--port-base", str(layout.port_base), "--cells", str(layout.cells)]
    with layout.log("supervisor").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bbs_server.dev.serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _wait_ready(layout, list(layout.parts()), process)


def stop_stack(layout: Layout) -> None:
    """Stop the stack and wait until its page's port is closed."""
    try:
        _api(layout, "POST", "/api/down")
    except typer.Exit:
        return
    while _answers(layout):
        time.sleep(_POLL)
    console.print("The stack is down.")


@contextmanager
def stopping(layout: Layout) -> Iterator[None]:
    """Stop the stack when the body ends, also by Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop_stack(layout)


def known(folder: Path) -> Layout:
    """The layout of a stack that was up once."""
    try:
        saved = json.loads((folder / "stack.json").read_text())
        return Layout(folder.absolute(), saved["port_base"], saved["cells"])
    except (OSError, ValueError, KeyError):
        fail(f"no stack in {folder.absolute()}; start one with: bbs-dev up")


def show_next_steps(layout: Layout) -> None:
    ca, cert, key = client_identity(layout)
    console.print(f"\n[bold]BBS[/]           {layout.url('bbs')}")
    console.print(f"[bold]page[/]          http://127.0.0.1:{layout.port('page')}/")
    console.print(f"[bold]certificates[/]  {ca}\n              {cert}\n              {key}\n")
    console.print("Talk to it, here or from any client:\n")
    console.print(
        f"  export BBS_URL={layout.url('bbs')} CA_CERT_FILE={ca} \\\n"
        f"         CLIENT_CERT_FILE={cert} CLIENT_KEY_FILE={key}\n"
        f"  {Path(sys.executable).parent / 'bbs'} cells\n",
        soft_wrap=True,
        highlight=False,
    )


def fail(message: str) -> NoReturn:
    """One clear line and status 1."""
    Console(stderr=True).print(f"[red]{message}[/]", soft_wrap=True, highlight=False)
    raise typer.Exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _wait_ready(layout: Layout, names: list[str], supervisor: subprocess.Popen[bytes] | None = None) -> None:
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while True:
            parts = _parts(layout)
            live.update(_table(parts))
            if parts and all(part["state"] == "ready" for part in parts if part["name"] in names):
                break
            if supervisor is not None and supervisor.poll() is not None:
                _explain(layout)
            time.sleep(_POLL)
    console.print(_table(_parts(layout)))


def _explain(layout: Layout) -> None:
    reason = tail(failure_file(layout)) or f"the supervisor ended; log: {layout.log('supervisor')}"
    part = reason.split(" ", 1)[0]
    last = tail(layout.log(part if part in layout.parts() else "supervisor"), 1500)
    fail(f"{reason.strip()}\n{last.strip()}")


def _check_ports(layout: Layout) -> None:
    names = ["page", "bbs-health", "bbs-debug", *layout.parts()]
    for name in names:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", layout.port(name)))
            except OSError:
                fail(f"port {layout.port(name)}, wanted for {name}, is taken; choose others with --port-base")


def _answers(layout: Layout) -> bool:
    return bool(_parts(layout))


def _parts(layout: Layout) -> list[dict[str, Any]]:
    try:
        answer = httpx.get(f"http://127.0.0.1:{layout.port('page')}/api/parts", timeout=5)
        parts: list[dict[str, Any]] = answer.json() if answer.is_success else []
    except (httpx.HTTPError, ValueError):
        return []
    return parts


def _api(layout: Layout, method: str, path: str) -> Any:
    url = f"http://127.0.0.1:{layout.port('page')}{path}"
    try:
        answer = httpx.request(method, url, headers={HEADER: "1"}, timeout=60)
    except httpx.HTTPError:
        fail(f"the stack in {layout.folder} is not up; start it with: bbs-dev up")
    if not answer.is_success:
        fail(answer.text.strip())
    return answer.json()


def _table(parts: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("part", "state", "for", "pid", "restarts", "log"):
        table.add_column(column)
    for part in parts:
        style = _STYLES.get(part["state"], "")
        seconds = f"{time.time() - part['since']:.0f} s"
        pid = str(part["pid"] or "")
        table.add_row(part["name"], f"[{style}]{part['state']}[/]", seconds, pid, str(part["restarts"]), part["log"])
    return table


def main() -> None:
    app()


if __name__ == "__main__":
    main()
