"""The auctioneer's requests as recorded, gathering, TLS and its fall-back, and failures that harm nobody."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest

from bbs_server.core.outcome import AuctionLRPs, AuctionTasks, LRPStart, TaskStart
from bbs_server.effects.auctioneer import IN_FLIGHT, Auctioneer
from bbs_server.effects.peer import Peer


def task(guid: str = "p1") -> TaskStart:
    return TaskStart(guid, "dom", None, (), "preloaded:cflinuxfs4", 256, 512, 0)


def instances(*indices: int) -> LRPStart:
    return LRPStart("p1", "dom", indices, None, (), "preloaded:cflinuxfs4", 128, 256, 5)


async def done(follow_up) -> None:
    async with asyncio.timeout(10):
        assert await follow_up is None


@pytest.fixture
async def start(logged):
    made = []

    def make(address: str, tls: ssl.SSLContext | None = None, plain: bool = False, timeout: float = 5) -> Auctioneer:
        auctioneer = Auctioneer(address, Peer(tls, timeout), Peer(None, timeout) if plain else None, logged)
        made.append(auctioneer)
        return auctioneer

    yield make
    for auctioneer in made:
        await auctioneer.close()


async def test_a_task_is_asked_for_as_recorded(receiver, start) -> None:
    double = await receiver()
    await done(start(double.url).start_tasks(AuctionTasks((task(),))))
    (request,) = double.received
    assert (request.method, request.path) == ("POST", "/v1/tasks")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Vcap-Request-Id"] == ""
    assert request.body == (
        b'[{"TaskGuid":"p1","Domain":"dom","PlacementTags":null,"VolumeDrivers":[],"RootFs":"preloaded:cflinuxfs4",'
        b'"MemoryMB":256,"DiskMB":512,"MaxPids":0,"state":"Invalid","failed":false}]'
    )


async def test_texts_are_escaped_as_recorded(receiver, start) -> None:
    double = await receiver()
    everything = TaskStart("full", "dom", ("t1", "t2"), ("d1", "", "d1"), "docker:///x/y#z&<é>", 1, 2, 3)
    await done(start(double.url).start_tasks(AuctionTasks((everything,))))
    assert (
        double.received[0].body
        == (
            '[{"TaskGuid":"full","Domain":"dom","PlacementTags":["t1","t2"],"VolumeDrivers":["d1","","d1"],'
            '"RootFs":"docker:///x/y#z\\u0026\\u003cé\\u003e","MemoryMB":1,"DiskMB":2,"MaxPids":3,"state":"Invalid",'
            '"failed":false}]'
        ).encode()
    )


async def test_instances_are_asked_for_as_recorded(receiver, start) -> None:
    double = await receiver()
    everything = LRPStart("pg-full", "dom", (1, 0), ("pt1",), ("drv", "drv"), "preloaded:cflinuxfs4", 128, 256, 64)
    auctioneer = start(double.url + "/base")
    await done(auctioneer.start_lrps(AuctionLRPs((everything,), "id-1\udcff")))
    await done(auctioneer.start_lrps(AuctionLRPs((LRPStart("q", "d", (), None, None, "r", 1, 2, 3),))))
    first, second = double.received
    assert (first.path, first.headers["X-Vcap-Request-Id"]) == ("/base/v1/lrps", "id-1\ufffd")
    assert first.body == (
        b'[{"process_guid":"pg-full","domain":"dom","indices":[1,0],"PlacementTags":["pt1"],'
        b'"VolumeDrivers":["drv","drv"],"RootFs":"preloaded:cflinuxfs4","MemoryMB":128,"DiskMB":256,"MaxPids":64}]'
    )
    assert second.headers["X-Vcap-Request-Id"] == ""
    assert b'"indices":[],"PlacementTags":null,"VolumeDrivers":null,' in second.body


async def test_starts_of_one_commit_share_a_request(receiver, start) -> None:
    double = await receiver()
    auctioneer = start(double.url)
    follow_ups = [auctioneer.start_tasks(AuctionTasks((task(str(number)),))) for number in range(20)]
    for follow_up in follow_ups:
        await done(follow_up)
    (request,) = double.received
    assert [entry["TaskGuid"] for entry in json.loads(request.body)] == [str(number) for number in range(20)]


async def test_a_request_with_an_id_stays_alone(receiver, start) -> None:
    double = await receiver()
    auctioneer = start(double.url)
    first = auctioneer.start_lrps(AuctionLRPs((instances(0),), "a"))
    second = auctioneer.start_lrps(AuctionLRPs((instances(1),), "b"))
    await done(first)
    await done(second)
    assert sorted(request.headers["X-Vcap-Request-Id"] for request in double.received) == ["a", "b"]


async def test_a_hanging_request_does_not_hold_up_later_ones(receiver, start) -> None:
    double = await receiver()
    double.held = asyncio.Event()
    auctioneer = start(double.url)
    hanging = []
    for number in range(IN_FLIGHT):
        hanging.append(auctioneer.start_tasks(AuctionTasks((task(str(number)),))))
        await double.wait_for(number + 1)
    late = [auctioneer.start_tasks(AuctionTasks((task(guid),))) for guid in ("x", "y")]
    await double.wait_for(IN_FLIGHT + 1)
    assert [entry["TaskGuid"] for entry in json.loads(double.received[-1].body)] == ["x", "y"]
    assert not any(follow_up.done() for follow_up in (*hanging, *late))
    double.held.set()
    for follow_up in (*hanging, *late):
        await done(follow_up)


async def test_who_goes_away_does_not_stop_the_request_of_others(receiver, start) -> None:
    double = await receiver()
    auctioneer = start(double.url)
    gone, stays = (auctioneer.start_tasks(AuctionTasks((task(guid),))) for guid in ("a", "b"))
    gone.cancel()
    await done(stays)
    assert len(json.loads(double.received[0].body)) == 2


@pytest.mark.parametrize(("status", "text"), [(200, "200 (OK)"), (500, "500 (Internal Server Error)")])
async def test_any_status_but_202_is_only_logged(receiver, start, logged, status: int, text: str) -> None:
    double = await receiver(status)
    await done(start(double.url).start_tasks(AuctionTasks((task(),))))
    assert logged.lines[0][2]["error"] == f"http error: status code {text}"


async def test_a_dead_auctioneer_is_only_logged(start, logged, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    await done(start(url).start_lrps(AuctionLRPs((instances(0),), "id")))
    expected = f'Post "{url}/v1/lrps": dial tcp 127.0.0.1:{closed_port}: connect: connection refused'
    assert logged.lines[0][2]["error"] == expected


async def test_a_silent_auctioneer_costs_the_timeout_and_nothing_more(receiver, start, logged) -> None:
    double = await receiver()
    double.held = asyncio.Event()
    await done(start(double.url, timeout=0.05).start_tasks(AuctionTasks((task(),))))
    ((_, _, data),) = logged.lines
    assert "context deadline exceeded" in data["error"]
    assert len(double.received) <= 1  # the time may be over before the request has come through


async def test_mutual_tls(receiver, start, our_tls, logged) -> None:
    double = await receiver(tls=True)
    await done(start(double.url, our_tls).start_tasks(AuctionTasks((task(),))))
    assert len(double.received) == 1
    assert "client" in str(double.peers[0]["subject"])
    assert not logged.lines


async def test_a_transport_failure_over_tls_is_repeated_without_it(receiver, start, our_tls, logged) -> None:
    double = await receiver()
    secure = double.url.replace("http:", "https:")
    await done(start(secure, our_tls, plain=True).start_tasks(AuctionTasks((task(),))))
    assert len(double.received) == 1
    assert not logged.lines


async def test_with_tls_required_there_is_no_second_try(receiver, start, our_tls, logged) -> None:
    double = await receiver()
    await done(start(double.url.replace("http:", "https:"), our_tls).start_tasks(AuctionTasks((task(),))))
    assert not double.received
    assert logged.actions() == ["failed-to-request-auctions"]


async def test_a_bad_status_over_tls_is_not_repeated(receiver, start, our_tls, logged) -> None:
    double = await receiver(503, tls=True)
    await done(start(double.url, our_tls, plain=True).start_tasks(AuctionTasks((task(),))))
    assert len(double.received) == 1


async def test_a_request_that_is_lost_with_a_kept_connection_is_not_repeated(receiver, start, logged) -> None:
    double = await receiver()
    double.statuses = [202, None, 202]
    auctioneer = start(double.url)
    await done(auctioneer.start_tasks(AuctionTasks((task("1"),))))
    await done(auctioneer.start_tasks(AuctionTasks((task("2"),))))
    assert len(double.received) == 2
    assert logged.actions() == ["failed-to-request-auctions"]


async def test_the_path_is_appended_to_the_address_as_it_stands(receiver, start) -> None:
    double = await receiver()
    await done(start(double.url + "/base/").start_tasks(AuctionTasks((task(),))))
    assert double.received[0].path == "/base//v1/tasks"


async def test_closing_lets_everybody_go(receiver, start) -> None:
    double = await receiver()
    double.held = asyncio.Event()
    auctioneer = start(double.url)
    asked = auctioneer.start_tasks(AuctionTasks((task(),)))
    named = auctioneer.start_lrps(AuctionLRPs((instances(0),), "id"))
    await double.wait_for(2)
    waiting = [auctioneer.start_tasks(AuctionTasks((task(),))) for _ in range(3)]
    await auctioneer.close()
    for follow_up in (asked, named, *waiting):
        await done(follow_up)


async def test_a_large_auction_is_one_request(receiver, start) -> None:
    double = await receiver()
    await done(start(double.url).start_tasks(AuctionTasks(tuple(task(str(number)) for number in range(2000)))))
    (request,) = double.received
    assert len(json.loads(request.body)) == 2000
