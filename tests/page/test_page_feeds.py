"""The feed inside the server, on a real writer; and the figures, from a real metrics endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import aiohttp.web as web
import pytest
from bbs_protos import models_pb2 as models
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from bbs_server.client import Client, StreamEvent, Target
from bbs_server.core import desired_lrps, domains, tasks
from bbs_server.core.context import Settings
from bbs_server.core.errors import Error
from bbs_server.core.outcome import Outcome
from bbs_server.dev import definitions
from bbs_server.effects.hubs import Hubs
from bbs_server.page import ClientFeed, FeedFailed, LocalFeed, NotThere, Page
from bbs_server.page.figures import Figures
from bbs_server.store.opening import open_database
from bbs_server.store.writer import Writer


class Cells:
    async def all(self) -> list[models.CellPresence]:
        return [models.CellPresence(cell_id="cell-1", zone="z1")]


@pytest.fixture
async def bbs(postgres_url: str) -> AsyncIterator[tuple[Writer, Hubs]]:
    hubs = Hubs()

    def dispatch(outcome: Outcome) -> Awaitable[Error | None] | None:
        hubs.publish(outcome.events)
        return None

    database = await open_database(postgres_url, active_key_label="k", encryption_keys={"k": "phrase"})
    await database.raise_epoch()
    await database.migrate()
    await database.check_key_label()
    writer = await database.become_writer(
        dispatch=dispatch, settings=Settings(), on_deposed=lambda _: None, on_unrecoverable=lambda _: None
    )
    yield writer, hubs
    await writer.close()
    await database.close()


async def _until(check: Any) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0)


async def test_a_page_inside_the_server_follows_lists_and_events(bbs: tuple[Writer, Hubs]) -> None:
    writer, hubs = bbs
    await writer.write(domains.upsert, models.UpsertDomainRequest(domain="laptop", ttl=0))
    lrp = definitions.web_app("before", 2)
    await writer.write(desired_lrps.desire, models.DesireLRPRequest(desired_lrp=lrp))
    feed = LocalFeed(writer, hubs, Cells())
    page = Page(feed)
    async with page.running():
        fleet = page.fleet
        await _until(lambda: len(fleet.instances.rows) == 2 and fleet.cells.rows)
        assert not fleet.entries
        await writer.write(desired_lrps.desire, models.DesireLRPRequest(desired_lrp=definitions.web_app("after", 3)))
        request = models.DesireTaskRequest(task_guid="t", domain="laptop", task_definition=definitions.task("true"))
        await writer.write(tasks.desire, request)
        await _until(lambda: len(fleet.instances.rows) == 5 and "t" in fleet.tasks.rows)
        assert fleet.lrps.rows["after"] == ("after", "laptop", 3)
        assert fleet.tasks.rows["t"][:3] == ("t", "laptop", "pending")
        assert [row[:2] for row in fleet.domains.rows.values()] == [("laptop", True)]
        await writer.write(tasks.start, models.StartTaskRequest(task_guid="t", cell_id="cell-1"))
        await _until(lambda: fleet.tasks.rows["t"][2:4] == ("running", "cell-1"))
        assert (await feed.task("t")).task_definition.root_fs == definitions.ROOTFS
        assert (await feed.desired_lrp("after")).instances == 3
        assert len(await feed.instances("after")) == 3
        with pytest.raises(NotThere):
            await feed.task("never")
        assert hubs.counts()["task"] == 1
    assert hubs.counts()["task"] == 0


async def test_a_local_feed_ends_with_the_hubs(bbs: tuple[Writer, Hubs]) -> None:
    writer, hubs = bbs
    feed = LocalFeed(writer, hubs, Cells())
    stream = feed.tasks()
    await anext(stream)
    hubs.close()
    async with asyncio.timeout(5):
        assert [change async for change in stream if isinstance(change, StreamEvent)] == []


async def test_figures_are_read_from_the_metrics_endpoint() -> None:
    registry = CollectorRegistry()
    seconds = Histogram("bbs_request_seconds", "x", ["route"], registry=registry)
    batches = Histogram("bbs_batch_commands", "x", registry=registry)
    commits = Histogram("bbs_commit_seconds", "x", registry=registry)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry))

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    async with Client(Target("http://127.0.0.1:1")) as nobody:
        feed, figures = ClientFeed(nobody, url), Figures()
        assert figures.look(10_000, await feed.figures(), 100) is None
        for route in ("Ping", "Tasks"):
            seconds.labels(route).observe(0.002)
        for _ in range(4):
            commits.observe(0.005)
        for commands in (1, 3, 5, 3, 3, 3):  # a batch that changes nothing is not committed
            batches.observe(commands)
        assert figures.look(12_000, await feed.figures(), 130) == (12_000, 1.0, 2.0, 2.0, 5.0, 3.0, 15.0)
        assert figures.look(14_000, await feed.figures(), 130) == (14_000, 0.0, None, 0.0, None, None, 0.0)
        await feed.close()
        await runner.cleanup()
        with pytest.raises(FeedFailed):
            await ClientFeed(nobody, url).figures()
        with pytest.raises(FeedFailed, match="no BBS answers"):
            await feed.cells()
    assert await ClientFeed(nobody).figures() == ()
    figures.look(16_000, (), 130)
    assert figures.points[-1][1] is None
    for second in range(1000):
        figures.look(20_000 + second * 1000, (), 0)
    assert len(figures.points) == 300
