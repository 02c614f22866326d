"""`python -m bbs_server.dev.auctioneer.main --config FILE`: the auctioneer as a process."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import aiohttp.web as web
import typer

from bbs_server.client import Client, Target
from bbs_server.dev.auctioneer.auction import Auction
from bbs_server.dev.auctioneer.server import application
from bbs_server.dev.certificates import Identity
from bbs_server.dev.tls import client_tls, server_tls


@dataclass(frozen=True, slots=True)
class Settings:
    """The JSON file: our port on 127.0.0.1, the BBS, and one identity for both directions."""

    port: int
    bbs_url: str
    ca: str
    cert: str
    key: str

    def identity(self) -> Identity:
        return Identity(Path(self.ca), Path(self.cert), Path(self.key))


def run(config: Annotated[Path, typer.Option(help="JSON file with port, bbs_url, ca, cert and key.")]) -> None:
    """Place work on cells, for development."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings(**json.loads(config.read_text()))
    tls = server_tls(settings.identity())
    web.run_app(_application(settings), host="127.0.0.1", port=settings.port, ssl_context=tls, print=None)


async def _application(settings: Settings) -> web.Application:
    bbs = Client(Target(settings.bbs_url, settings.ca, settings.cert, settings.key))
    return application(Auction(bbs, client_tls(settings.identity())), bbs)


if __name__ == "__main__":
    typer.run(run)
