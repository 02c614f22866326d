"""The health, debug and Prometheus endpoints, over real sockets (server.md 15 and 17)."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from bbs_server.process.debug import debug_server
from bbs_server.process.health import BadAddress, health_server, resolved
from bbs_server.process.lager import Level, Sink
from bbs_server.process.metrics import NO_LRPS, Figures, open_files
from bbs_server.process.plain_http import ListenFailed, PlainServer, split_address
from bbs_server.process.prometheus import GAUGES, Prometheus
from bbs_server.store.statistics import Statistics


@asynccontextmanager
async def client_of(server: PlainServer) -> AsyncIterator[httpx.AsyncClient]:
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        yield client
    await server.stop()


@pytest.mark.parametrize(("method", "path"), [("GET", "/ping"), ("POST", "/"), ("DELETE", "/a/b?c"), ("HEAD", "/x")])
async def test_health_answers_everything(method: str, path: str) -> None:
    async with client_of(health_server("127.0.0.1:0")) as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1:8890", "127.0.0.1:8890"), (":http", ":80"), ("[::1]:", "[::1]:0")]
)
def test_health_addresses(address: str, expected: str) -> None:
    assert resolved(address) == expected


@pytest.mark.parametrize(
    ("address", "action"),
    [
        ("", "failed-invalid-health-address"),
        ("host", "failed-invalid-health-address"),
        ("::1:80", "failed-invalid-health-address"),
        ("host:nosuchservice", "failed-invalid-health-port"),
        ("host:99999", "failed-invalid-health-port"),
    ],
)
def test_bad_health_addresses(address: str, action: str) -> None:
    with pytest.raises(BadAddress) as refusal:
        resolved(address)
    assert refusal.value.action == action


async def test_an_address_in_use() -> None:
    async with client_of(health_server("127.0.0.1:0")) as client:
        address = f"127.0.0.1:{client.base_url.port}"
        with pytest.raises(ListenFailed) as refusal:
            await health_server(address).start()
        assert str(refusal.value) == f"listen tcp {address}: bind: address already in use"


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("nowhere", "listen tcp: address nowhere: missing port in address"),
        ("::1:80", "listen tcp: address ::1:80: too many colons in address"),
        ("127.0.0.1:no", "listen tcp: lookup tcp/no: unknown port"),
        ("127.0.0.1:99999", "listen tcp: address 99999: invalid port"),
        ("nowhere.invalid:80", "listen tcp: lookup nowhere.invalid: no such host"),
    ],
)
async def test_addresses_where_nobody_can_listen(address: str, error: str) -> None:
    with pytest.raises(ListenFailed) as refusal:
        await health_server(address).start()
    assert str(refusal.value) == error


@pytest.mark.parametrize(
    ("address", "expected"),
    [("localhost:http", ("localhost", 80)), ("[::1]:8889", ("::1", 8889)), (":", (None, 0)), ("", (None, 0))],
)
def test_addresses_of_listeners(address: str, expected: tuple[str | None, int]) -> None:
    assert split_address(address) == expected


@pytest.mark.parametrize(
    ("body", "level"),
    [
        (b"debug", Level.DEBUG),
        (b"D", Level.INFO),
        (b"d", Level.DEBUG),
        (b"0", Level.DEBUG),
        (b"ERROR", Level.ERROR),
        (b"f", Level.FATAL),
        (b"3", Level.FATAL),
        (b"debug\n", Level.INFO),
        (b"", Level.INFO),
        (b"Debug", Level.INFO),
    ],
)
async def test_the_log_level_is_set_by_exact_spellings(body: bytes, level: Level) -> None:
    sink, told = Sink(lambda line: None, Level.INFO), []
    sink.watchers.append(lambda: told.append(sink.level))
    async with client_of(debug_server("127.0.0.1:0", sink)) as client:
        answer = await client.put("/log-level", content=body)
    assert (answer.status_code, answer.content) == (200, b"")
    assert sink.level is level
    assert told == [level]


async def test_debug_pages() -> None:
    async with client_of(debug_server("127.0.0.1:0", Sink(lambda line: None))) as client:
        assert (await client.post("/block-profile-rate", content=b"5")).status_code == 200
        refused = await client.post("/mutex-profile-fraction", content=b"x")
        assert (refused.status_code, refused.text) == (400, 'strconv.Atoi: parsing "x": invalid syntax')
        assert "\0" in (await client.get("/debug/pprof/cmdline")).text
        assert "test_debug_pages" in (await client.get("/debug/pprof/goroutine")).text
        assert "frozen" in (await client.get("/debug/pprof/heap")).text
        assert "/log-level" in (await client.get("/debug/pprof/")).text
        assert (await client.get("/")).status_code == 404


def test_open_files_are_told_where_none_is_left() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert open_files() == 3
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_prometheus() -> None:
    figures = Figures(lock_held=True)
    figures.lrps.record(replace(NO_LRPS, running=12), 1)
    figures.cell_tasks = {"c1": {"started": 1}}
    prometheus = Prometheus(figures)
    prometheus.timed("Tasks", 3_000_000)
    prometheus.committed(5)
    async with client_of(prometheus.server("127.0.0.1:0")) as client:
        text = (await client.get("/metrics")).text
        assert (await client.get("/")).status_code == 404
    for line in (
        "bbs_lock_held 1.0",
        "bbs_lrps_running 12.0",
        'bbs_request_seconds_bucket{le="0.004",route="Tasks"} 1.0',
        "bbs_batch_commands_count 1.0",
        "bbs_lrp_convergence_passes_total 1.0",
        "bbs_batch_commands_sum 5.0",
        'bbs_cell_tasks_total{cell_id="c1",what="started"} 1.0',
    ):
        assert line in text


def test_the_dashboard_shows_only_what_is_exported() -> None:
    dashboard = json.loads((Path(__file__).parents[2] / "scripts" / "grafana-dashboard.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
    wanted = set(re.findall(r"\b(?:bbs|process)_\w+", expressions))
    prometheus = Prometheus(Figures(database=Statistics(), cell_tasks={"c": {"started": 1}}))
    prometheus.timed("Tasks", 1)
    exported = {sample.name for family in prometheus.registry.collect() for sample in family.samples}
    assert wanted
    assert wanted <= exported
    assert set(GAUGES) <= wanted
