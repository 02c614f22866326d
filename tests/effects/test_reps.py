"""Calls to cells as recorded, the choice of the address, and failures that are only logged."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.errors import RESOURCE_NOT_FOUND, Error, ErrorType, Refused, unknown
from bbs_server.core.outcome import CancelTask, StopInstance, UpdateInstance
from bbs_server.effects.peer import Peer
from bbs_server.effects.reps import Reps, address

NO_HTTPS = Error(ErrorType.UNKNOWN, "https scheme is required but none of the addresses support it")


class Cells:
    """Presences by id; an Error in place of a URL is what the look-up ends with."""

    def __init__(self, urls: Mapping[str, str | Error]) -> None:
        self.urls = urls

    async def one(self, cell_id: str) -> models.CellPresence:
        url = self.urls.get(cell_id, RESOURCE_NOT_FOUND)
        if isinstance(url, Error):
            raise Refused(url)
        return models.CellPresence(cell_id=cell_id, rep_url=url)


@pytest.fixture
async def reps(our_tls, logged):
    made = []

    def make(timeout: float = 5, **urls: str | Error) -> Reps:
        made.append(Reps(Cells(urls), Peer(our_tls, timeout), logged))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def update(routes, tags, cell_id: str = "c") -> UpdateInstance:
    return UpdateInstance("pg1", "ig0", cell_id, 2, "dom", routes, tags, "id-2")


async def test_cancel_as_recorded(receiver, reps) -> None:
    double = await receiver(tls=True)
    assert await reps(c=double.url + "/base").cancel(CancelTask("p3", "c", "any id")) is None
    (request,) = double.received
    assert (request.method, request.path, request.body) == ("POST", "/base/v1/tasks/p3/cancel", b"")
    assert request.headers["X-Vcap-Request-Id"] == "any id"
    assert request.headers["Content-Length"] == "0"
    assert "Content-Type" not in request.headers
    assert "client" in str(double.peers[0]["subject"])


async def test_without_an_id_there_is_no_header(receiver, reps) -> None:
    double = await receiver(tls=True)
    await reps(c=double.url).cancel(CancelTask("p3", "c", ""))
    assert "X-Vcap-Request-Id" not in double.received[0].headers


async def test_a_cancel_follows_redirects(receiver, reps) -> None:
    final, first = await receiver(tls=True), await receiver(307, tls=True)
    first.headers = {"Location": final.url + "/there"}
    assert await reps(c=first.url).cancel(CancelTask("t", "c", "")) is None
    assert [(request.method, request.path) for request in final.received] == [("POST", "/there")]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:1", NO_HTTPS),
        ("", NO_HTTPS),
        ("127.0.0.1:1", Error(0, 'parse "127.0.0.1:1": first path segment in URL cannot contain colon')),
        ("http://[::1", Error(0, "parse \"http://[::1\": missing ']' in host")),
        ("https://h:x", Error(0, 'parse "https://h:x": invalid port ":x" after host')),
        ("https://h/%zz", Error(0, 'parse "https://h/%zz": invalid URL escape "%zz"')),
        ("https://a b", Error(0, 'parse "https://a b": invalid character " " in host name')),
        (":x", Error(0, 'parse ":x": missing protocol scheme')),
    ],
)
async def test_an_unusable_url_is_the_error_of_a_cancel(reps, url: str, error: Error) -> None:
    assert await reps(c=url).cancel(CancelTask("t", "c", "")) == error


def test_the_scheme_of_a_url_has_no_case() -> None:
    assert address(models.CellPresence(rep_url="HTTPS://h")) == "HTTPS://h"


@pytest.mark.parametrize("cell", [RESOURCE_NOT_FOUND, unknown("rpc error: code = Unavailable desc = x")])
async def test_a_cancel_without_a_presence_succeeds(reps, logged, cell: Error) -> None:
    assert await reps(c=cell).cancel(CancelTask("t", "c", "")) is None
    assert logged.lines[0][2]["error"] == cell.message


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_a_cancel_that_the_cell_refuses_succeeds(receiver, reps, logged, status: int) -> None:
    double = await receiver(status, tls=True)
    assert await reps(c=double.url).cancel(CancelTask("t", "c", "")) is None
    assert f"http error: status code {status}" in logged.lines[0][2]["error"]
    assert len(double.received) == 1


async def test_a_cancel_of_a_silent_cell_ends_with_the_timeout(receiver, reps, logged) -> None:
    double = await receiver(tls=True)
    double.held = asyncio.Event()
    async with asyncio.timeout(10):
        assert await reps(0.1, c=double.url).cancel(CancelTask("t", "c", "")) is None
    assert logged.actions() == ["failed-to-cancel-task"]


async def test_a_cell_of_another_authority_is_not_trusted(receiver, certificates, reps, logged) -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger.load_cert_chain(certificates.stranger_cert, certificates.stranger_key)
    double = await receiver(tls=stranger)
    assert await reps(c=double.url).cancel(CancelTask("t", "c", "")) is None
    assert not double.received
    assert logged.lines[0][2]["error"] == (
        f'Post "{double.url}/v1/tasks/t/cancel": tls: failed to verify certificate: '
        "x509: certificate signed by unknown authority"
    )


async def test_stop_as_recorded(receiver, reps) -> None:
    double = await receiver(tls=True)
    reps(c=double.url).stop(StopInstance("r", "ig3/x y", "c", "id-é\udcff"))
    (request,) = await double.wait_for(1)
    assert (request.method, request.path, request.body) == ("POST", "/v1/lrps/r/instances/ig3/x%20y/stop", b"")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Content-Length"] == "0"
    assert request.headers["X-Vcap-Request-Id"] == "id-é\ufffd"


@pytest.mark.parametrize(
    ("routes", "tags", "tail"),
    [
        (("i2",), None, b'"internal_routes":[{"hostname":"i2"}],"metric_tags":null}'),
        ((), None, b'"internal_routes":[],"metric_tags":null}'),
        (None, (("s", "x"), ("idx", "0")), b'"internal_routes":null,"metric_tags":{"idx":"0","s":"x"}}'),
        (None, (), b'"internal_routes":null,"metric_tags":{}}'),
        (None, None, b'"internal_routes":null,"metric_tags":null}'),
    ],
)
async def test_update_as_recorded(receiver, reps, routes, tags, tail: bytes) -> None:
    double = await receiver(tls=True)
    reps(c=double.url).update(update(routes, tags))
    (request,) = await double.wait_for(1)
    assert (request.method, request.path) == ("PUT", "/v2/lrps/pg1/instances/ig0")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Vcap-Request-Id"] == "id-2"
    assert request.body == b'{"instance_guid":"ig0","process_guid":"pg1","index":2,"domain":"dom",' + tail


async def test_an_older_cell_gets_the_routes_alone(receiver, reps, logged) -> None:
    double = await receiver(404, tls=True)
    reps(c=double.url).update(update(("a",), (("s", "x"),)))
    first, second = await double.wait_for(2)
    assert [first.path, second.path] == ["/v2/lrps/pg1/instances/ig0", "/v1/lrps/pg1/instances/ig0"]
    assert json.loads(first.body)["metric_tags"] == {"s": "x"}
    assert json.loads(second.body)["metric_tags"] is None
    assert json.loads(second.body)["internal_routes"] == [{"hostname": "a"}]


async def test_an_older_cell_is_not_asked_twice_for_tags(receiver, reps, logged) -> None:
    double = await receiver(404, tls=True)
    calls = reps(c=double.url)
    calls.update(update(None, (("s", "x"),)))
    await double.wait_for(1)
    calls.stop(StopInstance("last", "i", "c", ""))
    await double.wait_for(2)
    assert [request.method for request in double.received] == ["PUT", "POST"]


async def test_a_silent_cell_does_not_hold_up_the_others(receiver, reps) -> None:
    silent, quick = await receiver(tls=True), await receiver(tls=True)
    silent.held = asyncio.Event()
    calls = reps(a=silent.url, b=quick.url)
    for number in range(50):
        calls.stop(StopInstance("p", str(number), "a", ""))
        calls.stop(StopInstance("p", str(number), "b", ""))
    await quick.wait_for(50)
    assert 0 < len(silent.received) < 50
    silent.held.set()
    await silent.wait_for(50)
    assert len({request.path for request in silent.received}) == 50
