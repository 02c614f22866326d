"""`python -m bbs_server.dev.soak.main`: run the soak and exit with 1 if anything was violated."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from bbs_server.dev.soak.soak import Soak

_DEFAULT_FOLDER = Path(tempfile.gettempdir(), "bbs-soak")
"""Not under the home folder: the database's account must reach it."""


def run(
    minutes: Annotated[float, typer.Option(help="How long the load lasts.")] = 60,
    folder: Annotated[Path, typer.Option(help="Emptied first; gets data, logs and summary.json.")] = _DEFAULT_FOLDER,
    port_base: Annotated[int, typer.Option(help="First of about 80 ports.")] = 27400,
) -> None:
    """Mixed load on a fail-over pair while the active server is killed and PostgreSQL restarts."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    summary = asyncio.run(_run(Soak(folder.absolute(), port_base, minutes)))
    text = json.dumps(summary, indent=1)
    (folder / "summary.json").write_text(text + "\n")
    print(text)
    raise SystemExit(1 if summary["violations"] else 0)


async def _run(soak: Soak) -> dict[str, Any]:
    running = asyncio.ensure_future(soak.run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    return await running


if __name__ == "__main__":
    typer.run(run)
