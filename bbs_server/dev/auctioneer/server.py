"""The auctioneer's HTTP API (cells-and-auctions.md section 2)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp.web as web

from bbs_server.client.client import Client
from bbs_server.dev.auctioneer import work
from bbs_server.dev.auctioneer.auction import Auction
from bbs_server.dev.background import running


def application(auction: Auction, bbs: Client) -> web.Application:
    """The two routes; the auctions run as long as the application does."""

    async def auctions(_: web.Application) -> AsyncIterator[None]:
        async with running(auction.run()):
            yield
        await bbs.close()

    app = web.Application(client_max_size=64 * 2**20)
    app.cleanup_ctx.append(auctions)
    app.router.add_post("/v1/lrps", _taking(auction, work.lrps))
    app.router.add_post("/v1/tasks", _taking(auction, work.tasks))
    return app


def _taking(auction: Auction, read: Callable[[list[Any]], Iterator[work.Work]]) -> Callable[[web.Request], Any]:
    async def take(request: web.Request) -> web.Response:
        try:
            entries = json.loads(await request.read())
        except ValueError as problem:
            return web.json_response({"error": str(problem)}, status=400)
        if not isinstance(entries, list):
            return web.json_response({"error": "expected a list of starts"}, status=400)
        auction.add(list(read(entries)))
        return web.json_response({}, status=202)

    return take
