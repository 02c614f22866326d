"""`bbs-dev`: a whole Diego control plane on this machine."""

from __future__ import annotations

import asyncio
import glob
import json
import math
import shlex
import signal
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

from bbs_server.dev import processes
from bbs_server.dev.layout import CHANGE_HEADER, DEFAULT_PORT_BASE, HIGHEST_PORT_BASE, MOST_CELLS, Layout
from bbs_server.dev.ports import obstacle
from bbs_server.dev.postgres import tail

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A whole Diego control plane on this machine: PostgreSQL, Locket, BBS, auctioneer and cells."
    " For development only: nothing is isolated.",
)
console = Console(width=None if sys.stdout.isatty() else 200)
_HTTP = httpx.Client(headers={CHANGE_HEADER: "1"}, trust_env=False)

_DEFAULT_FOLDER = Path(".local/stack")
_POLL = 0.2
_START_SECONDS = 60.0
_DOWN_SECONDS = 90.0
_STYLES = {"ready": "green", "starting": "yellow", "restarting": "red", "stopping": "yellow", "down": "dim"}

Folder = Annotated[Path, typer.Option(help="Where the stack keeps everything.", envvar="BBS_DEV_FOLDER")]
Cells = Annotated[int, typer.Option(min=1, max=MOST_CELLS, help="How many cells.", envvar="BBS_DEV_CELLS")]
PortBase = Annotated[
    int,
    typer.Option(
        min=1,
        max=HIGHEST_PORT_BASE,
        help="First port; the BBS is at this plus 9, cells from 21 on.",
        envvar="BBS_DEV_PORT_BASE",
    ),
]
Name = Annotated[str, typer.Argument(help="A part, as `status` lists them.")]


@app.command()
def up(
    folder: Folder = _DEFAULT_FOLDER,
    cells: Cells = 3,
    port_base: PortBase = DEFAULT_PORT_BASE,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once everything is up.")] = False,
) -> None:
    """Start the stack; Ctrl-C stops it again, unless detached."""
    layout = Layout(folder.absolute(), port_base, cells)
    with stopping(layout, only_on_interrupt=detach):
        supervisor = start_stack(layout)
        show_next_steps(layout)
        if not detach:
            stay(supervisor)


@app.command()
def down(folder: Folder = _DEFAULT_FOLDER) -> None:
    """Stop everything. Data stays."""
    stop_stack(known(folder))


@app.command()
def status(folder: Folder = _DEFAULT_FOLDER) -> None:
    """Show the parts."""
    console.print(_table(_api(known(folder), "GET", "/api/parts")))


@app.command()
def env(folder: Folder = _DEFAULT_FOLDER) -> None:
    """Print the variables that `bbs`, cfdot and other clients read, as `export` lines for a shell to evaluate."""
    for name, value in _variables(known(folder)).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="A part, `supervisor`, or the guid of a task or of an instance.")],
    folder: Folder = _DEFAULT_FOLDER,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
) -> None:
    """Show the log of a part, of a task or of an instance."""
    path = _log_of(known(folder), name)
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
    console.print(f"{name} is down; start it again with: bbs-dev start {name}", highlight=False)


@app.command()
def start(name: Name, folder: Folder = _DEFAULT_FOLDER) -> None:
    """Start a part that was killed."""
    layout = known(folder)
    _api(layout, "POST", f"/api/parts/{name}/start")
    _wait_ready(layout, [name], seconds=_START_SECONDS)


@app.command()
def run(
    folder: Folder = _DEFAULT_FOLDER,
    cells: Cells = 3,
    port_base: PortBase = DEFAULT_PORT_BASE,
    tour: Annotated[bool, typer.Option("--tour", help="Stop after the tour.")] = False,
) -> None:
    """Start the stack, show a tour, and stay up until Ctrl-C."""
    layout = Layout(folder.absolute(), port_base, cells)
    with stopping(layout):
        supervisor = start_stack(layout)
        _show_tour(layout)
        show_next_steps(layout)
        if not tour:
            stay(supervisor)


def start_stack(layout: Layout) -> subprocess.Popen[bytes]:
    """Bring the stack up, showing progress. Ends the program if it is up already or cannot be started."""
    _refuse_a_second(layout)
    found = processes.sweep(layout.pid_files)
    if found:
        console.print(f"A former supervisor was killed; ended what it left: {', '.join(found)}.", highlight=False)
    _check_ports(layout)
    layout.log("supervisor").parent.mkdir(parents=True, exist_ok=True)
    layout.failure_file.unlink(missing_ok=True)
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
    return process


def _show_tour(layout: Layout) -> None:
    # Imported only here: the other commands start three times as fast without clients and servers.
    from bbs_server.client import ClientError
    from bbs_server.dev.tour import TourFailed, tour

    try:
        asyncio.run(tour(layout, console))
    except (TourFailed, ClientError) as problem:
        fail(f"the tour failed: {problem}")


def stay(supervisor: subprocess.Popen[bytes]) -> None:
    """Wait until the stack ends: by Ctrl-C here or by `down` elsewhere."""
    console.print("Ctrl-C stops the stack; its data stays.")
    status = supervisor.wait()
    if status:
        fail(f"the supervisor ended with status {status}; clean up with: bbs-dev down")


def stop_stack(layout: Layout) -> None:
    """Stop the stack and wait until it has ended; also what a killed supervisor left behind."""
    if _parts(layout):
        _api(layout, "POST", "/api/down")
    deadline = time.monotonic() + _DOWN_SECONDS
    while (held := processes.lock(layout.lock_file)) is None:
        if time.monotonic() > deadline:
            fail(f"the supervisor does not end; its log: {layout.log('supervisor')}")
        time.sleep(_POLL)
    with held:
        found = processes.sweep(layout.pid_files)
    if found:
        console.print(f"The supervisor was killed before; ended what it left: {', '.join(found)}.", highlight=False)
    console.print("The stack is down.")


@contextmanager
def stopping(layout: Layout, only_on_interrupt: bool = False) -> Iterator[None]:
    """Stop the stack when the body ends: by itself, by Ctrl-C, SIGTERM or a closed terminal.

    A stack that was up before, or could not be started, is none of ours to stop.
    """
    # SIGINT too: a shell's background job starts with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        yield
    except NotStarted as problem:
        fail(str(problem))
    except KeyboardInterrupt:
        _stop_undisturbed(layout)
    except BaseException:
        if not only_on_interrupt:
            _stop_undisturbed(layout)
        raise
    else:
        if not only_on_interrupt:
            _stop_undisturbed(layout)


def _stop_undisturbed(layout: Layout) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stop_stack(layout)


class NotStarted(Exception):
    """There is no stack of ours: why."""


def known(folder: Path) -> Layout:
    """The layout of a stack that was up once."""
    saved = _saved(folder.absolute())
    if saved is None:
        fail(f"no stack in {folder.absolute()}; start one with: bbs-dev up, or name another with --folder")
    return saved


def _saved(folder: Path) -> Layout | None:
    try:
        saved = json.loads((folder / "stack.json").read_text())
        return Layout(folder, saved["port_base"], saved["cells"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_a_second(layout: Layout) -> None:
    """One supervisor per folder, whatever its ports."""
    held = processes.lock(layout.lock_file)
    if held is not None:
        held.close()
        return
    running = _saved(layout.folder) or layout
    where = f"port base {running.port_base}, {running.cells} cells"
    if running == layout and _parts(layout):
        raise NotStarted(f"the stack in {layout.folder} is up already ({where}); see: bbs-dev status")
    raise NotStarted(f"the stack in {layout.folder} is up, starting or stopping ({where}); stop it with: bbs-dev down")


def _log_of(layout: Layout, name: str) -> Path:
    """The log of that name: a part's, or an instance's on whichever cell it was last."""
    if (layout.folder / "logs" / f"{name}.log").is_file():
        return layout.log(name)
    found = [*(layout.folder / "data").glob(f"cell-*/logs/{glob.escape(name)}.log")]
    if not found:
        parts = ", ".join(("supervisor", *layout.parts()))
        fail(f"no log of {name!r}; parts are {parts}; tasks and instances have theirs by guid")
    return max(found, key=lambda path: path.stat().st_mtime)


def show_next_steps(layout: Layout) -> None:
    ca, cert, key = layout.client_identity()
    console.print(f"\n[bold]BBS[/]           {layout.url('bbs')}")
    console.print(f"[bold]page[/]          http://127.0.0.1:{layout.port('page')}/")
    console.print(f"[bold]certificates[/]  {ca}\n              {cert}\n              {key}\n")
    console.print("Talk to it, here or from any client:\n")
    programs = Path(sys.executable).parent
    folder = shlex.quote(str(layout.folder))
    for line in (f'eval "$({programs / "bbs-dev"} env --folder {folder})"', f"{programs / 'bbs'} cells"):
        console.print(f"  {line}", soft_wrap=True, highlight=False, markup=False)
    console.print()


def _variables(layout: Layout) -> dict[str, str]:
    ca, cert, key = layout.client_identity()
    return {
        "BBS_URL": layout.url("bbs"),
        "LOCKET_API_LOCATION": f"127.0.0.1:{layout.port('locket')}",
        "CA_CERT_FILE": str(ca),
        "CLIENT_CERT_FILE": str(cert),
        "CLIENT_KEY_FILE": str(key),
        "BBS_DEV_FOLDER": str(layout.folder),
    }


def fail(message: str) -> NoReturn:
    """One clear line and status 1."""
    Console(stderr=True).print(f"[red]{message}[/]", soft_wrap=True, highlight=False)
    raise typer.Exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _wait_ready(
    layout: Layout,
    names: list[str],
    supervisor: subprocess.Popen[bytes] | None = None,
    seconds: float = math.inf,
) -> None:
    deadline = time.monotonic() + seconds
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while True:
            parts = _parts(layout)
            live.update(_table(parts))
            if parts and all(part["state"] == "ready" for part in parts if part["name"] in names):
                break
            if supervisor is not None and supervisor.poll() is not None:
                _explain(layout)
            if time.monotonic() > deadline:
                fail(f"{', '.join(names)} not ready after {seconds:.0f} s; see: bbs-dev logs {names[0]}")
            time.sleep(_POLL)
    console.print(_table(_parts(layout)))


def _explain(layout: Layout) -> NoReturn:
    """The supervisor gave up: which part, why, and the end of its log."""
    reason = tail(layout.failure_file) or f"the supervisor ended; log: {layout.log('supervisor')}"
    part = reason.split(" ", 1)[0]
    last = tail(layout.log(part), 1500) if part in layout.parts() else ""
    raise NotStarted(f"{reason.strip()}\n{last.strip()}".strip())


def _check_ports(layout: Layout) -> None:
    for name, port in layout.ports().items():
        if (problem := obstacle(port)) is not None:
            raise NotStarted(
                f"port {port}, wanted for {name}, is taken ({problem.strerror}); choose others with --port-base"
            ) from problem


def _parts(layout: Layout) -> list[dict[str, Any]]:
    """What the supervisor of this very folder says; nothing if it does not answer."""
    try:
        answer = _HTTP.get(f"http://127.0.0.1:{layout.port('page')}/api/parts", timeout=5)
        parts: list[dict[str, Any]] = answer.json() if answer.is_success else []
        return parts if all(Path(part["log"]).is_relative_to(layout.folder) for part in parts) else []
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return []


def _api(layout: Layout, method: str, path: str) -> Any:
    if not _parts(layout):
        fail(f"the stack in {layout.folder} is not up; start it with: bbs-dev up --folder {layout.folder}")
    try:
        # Without a limit: a cell may take its time to evacuate.
        answer = _HTTP.request(method, f"http://127.0.0.1:{layout.port('page')}{path}", timeout=None)
    except httpx.HTTPError as problem:
        fail(f"the supervisor gave no answer: {problem!r}; its log: {layout.log('supervisor')}")
    if not answer.is_success:
        fail(answer.text.strip())
    return answer.json()


def _table(parts: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("part", "state", "for", "pid", "restarts", "log"):
        table.add_column(column, no_wrap=True)
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
