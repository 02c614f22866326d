"""A whole system on loopback: the real program, PostgreSQL, Locket, an auctioneer and cells that record requests.

`system` is shared by the tests of a module (they need `pytest.mark.asyncio(loop_scope="module")`) and converges
every few milliseconds; `run_system` starts one with configuration keys of the test's own. Nothing here sleeps:

- `await system.converged()` returns after a pass that began after the call has ended. `system.change(...)` makes
  changes by SQL, as operators do, and ends when the server has adopted them in the pass that is running then.
- `await system.settled()` returns when every event of what has happened so far is in `system.events`.
- peers, the log and the events are waited for with `wait_for` and the like, all of them with a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import httpx_sse
import pytest
import pytest_asyncio
from aiohttp import web
from bbs_protos import locket_pb2 as pb
from bbs_protos import models_pb2 as models
from bbs_protos.locket_pb2_grpc import LocketStub
from prometheus_client.parser import text_string_to_metric_families

from bbs_server.client import Client, Target
from bbs_server.client.events import StreamEvent, _decode
from bbs_server.dev.ports import free_port
from bbs_server.locket.options import Options
from bbs_server.locket.server import Identity, serve

PATIENCE = 60.0
"""Seconds that anything is waited for, so much because the machine may be busy with something else."""

PRESENCES = {models.ActualLRP.SUSPECT: " suspect", models.ActualLRP.EVACUATING: " evacuating"}
STREAMS = {"groups": "/v1/events.r1", "instances": "/v1/events/lrp_instances.r1", "tasks": "/v1/events/tasks.r1"}
TABLES = ("tasks", "desired_lrps", "actual_lrps", "domains")

Statement = tuple[Any, ...]
"""SQL text and its arguments."""


# -- peers -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """An HTTP server that records requests and answers all of them with `status`.

    `hold()` makes answers wait for `release()`; a request that waits is recorded already.
    """

    def __init__(self, status: int = 202) -> None:
        self.status = status
        self.received: list[Received] = []
        self.url = ""
        self._changed = asyncio.Condition()
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def matching(self, text: str) -> list[Received]:
        """The requests with that text in their path or body."""
        return [one for one in list(self.received) if text in one.path or text.encode() in one.body]

    async def wait_for(self, text: str, count: int = 1) -> list[Received]:
        """The requests with that text, once there are `count` of them."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(self.matching(text)) >= count)
        return self.matching(text)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(request.method, request.raw_path, dict(request.headers), await request.read())
        async with self._changed:
            self.received.append(received)
            self._changed.notify_all()
        await self._open.wait()
        return web.Response(status=self.status)


@asynccontextmanager
async def listening(peer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", peer.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    peer.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield peer
    finally:
        peer.release()
        await runner.cleanup()


# -- the program -------------------------------------------------------------------------


class Program:
    """A running bbs-server and the lines it has logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()
        self._readers = [asyncio.create_task(self._read_lines()), asyncio.create_task(self._read_errors())]
        self._errors = b""

    async def _read_lines(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors = await self.process.stderr.read()

    async def logged(self, message: str, after: int = 0) -> int:
        """The place behind the first line with that message at or behind the place `after`."""
        place = after
        async with asyncio.timeout(PATIENCE), self._changed:
            while True:
                while place < len(self.lines):
                    place += 1
                    if self.lines[place - 1]["message"] == message:
                        return place
                assert not self._readers[0].done(), f"ended without {message}: {self.lines[-5:]} {self._errors!r}"
                await self._changed.wait()

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
        await asyncio.gather(*self._readers)


@asynccontextmanager
async def started(config: Mapping[str, Any], folder: Path) -> AsyncIterator[Program]:
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    program = Program(
        await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("bbs-server"),
            f"-config={file}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 22,
        )
    )
    try:
        await program.logged("bbs.started")
        yield program
    finally:
        await program.stop()


# -- presences ---------------------------------------------------------------------------


class Cells:
    """Presences in Locket, kept and released through gRPC like those of real cells."""

    def __init__(self, channel: grpc.aio.Channel, rep_url: str) -> None:
        self._stub: Any = LocketStub(channel)
        self._rep_url = rep_url

    async def appear(
        self, cell_id: str, rep_url: str | None = None, ttl: int = 300, key: str = "", value: str | None = None
    ) -> None:
        """Register a cell; `key` is that of the resource if it is not the id, `ttl` in s."""
        presence = {
            "cell_id": cell_id,
            "rep_address": "http://127.0.0.1:1",
            "rep_url": self._rep_url if rep_url is None else rep_url,
            "zone": "z1",
            "capacity": {"memory_mb": 1024, "disk_mb": 1024, "containers": 10},
        }
        resource = self._resource(key or cell_id, json.dumps(presence) if value is None else value)
        await self._stub.Lock(pb.LockRequest(resource=resource, ttl_in_seconds=ttl), timeout=PATIENCE)

    async def vanish(self, key: str) -> None:
        await self._stub.Release(pb.ReleaseRequest(resource=self._resource(key)), timeout=PATIENCE)

    @asynccontextmanager
    async def none(self, present: Sequence[str]) -> AsyncIterator[None]:
        """Without any of the cells that are there."""
        for cell in present:
            await self.vanish(cell)
        try:
            yield
        finally:
            for cell in present:
                await self.appear(cell)

    @staticmethod
    def _resource(key: str, value: str = "") -> pb.Resource:
        return pb.Resource(key=key, owner=f"owner-of-{key}", value=value, type="presence", type_code=pb.PRESENCE)


# -- events ------------------------------------------------------------------------------


class Events:
    """Everything that three event streams have sent so far."""

    def __init__(self) -> None:
        self.seen: dict[str, list[StreamEvent]] = {name: [] for name in STREAMS}
        self._changed = asyncio.Condition()

    async def follow(self, target: Target, name: str, subscribed: asyncio.Event) -> None:
        method = "GET" if name == "groups" else "POST"
        async with (
            httpx.AsyncClient(base_url=target.url, verify=target.tls(), timeout=None, trust_env=False) as http,
            httpx_sse.aconnect_sse(http, method, STREAMS[name]) as source,
        ):
            subscribed.set()
            async for event in source.aiter_sse():
                async with self._changed:
                    self.seen[name].append(_decode(event))
                    self._changed.notify_all()

    async def wait_for(self, name: str, wanted: Callable[[StreamEvent], bool]) -> StreamEvent:
        """The first event of a stream that is wanted."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: any(map(wanted, self.seen[name])))
        return next(filter(wanted, self.seen[name]))

    def clear(self) -> None:
        for seen in self.seen.values():
            seen.clear()

    def of(self, guid: str) -> list[StreamEvent]:
        """Those about the task or the LRP with that guid: group events, instance events, task events."""
        return [event for seen in self.seen.values() for event in seen if guid in guids(event.message)]

    def shown(self, guid: str) -> list[str]:
        """Those about the instances or the task with that guid, as texts (see `show_event`)."""
        return [show_event(event) for event in self.of(guid) if not event.name.startswith("desired_lrp")]


def guids(message: Any) -> set[str]:
    """Every guid of a task or an LRP in an event."""
    found = set()
    for part, value in message.ListFields():
        if part.name in ("process_guid", "task_guid"):
            found.add(value)
        elif part.message_type is not None and not part.is_repeated:
            found |= guids(value)
    return found


def show(lrp: models.ActualLRP) -> str:
    """An instance as a text, such as `0 RUNNING@cell-1 suspect`."""
    cell = f"@{lrp.actual_lrp_instance_key.cell_id}" if lrp.actual_lrp_instance_key.cell_id else ""
    return f"{lrp.actual_lrp_key.index} {lrp.state}{cell}{PRESENCES.get(lrp.presence, '')}"


def show_group(group: models.ActualLRPGroup) -> str:
    slots = [group.instance] if group.HasField("instance") else []
    slots += [group.evacuating] if group.HasField("evacuating") else []
    return " + ".join(map(show, slots))


def show_task(task: models.Task) -> str:
    return models.Task.State.Name(task.state)


def _show_change(message: Any) -> str:
    def side(info: models.ActualLRPInfo) -> str:
        return show(
            models.ActualLRP(
                actual_lrp_key=message.actual_lrp_key,
                actual_lrp_instance_key=message.actual_lrp_instance_key,
                state=info.state,
                presence=info.presence,
            )
        )

    return f"I changed {side(message.before)} -> {side(message.after)}"


SHOWN: Mapping[str, Callable[[Any], str]] = {
    "actual_lrp_created": lambda m: f"G created {show_group(m.actual_lrp_group)}",
    "actual_lrp_changed": lambda m: f"G changed {show_group(m.before)} -> {show_group(m.after)}",
    "actual_lrp_removed": lambda m: f"G removed {show_group(m.actual_lrp_group)}",
    "actual_lrp_instance_created": lambda m: f"I created {show(m.actual_lrp)}",
    "actual_lrp_instance_changed": _show_change,
    "actual_lrp_instance_removed": lambda m: f"I removed {show(m.actual_lrp)}",
    "task_created": lambda m: f"created {show_task(m.task)}",
    "task_changed": lambda m: f"changed {show_task(m.before)} -> {show_task(m.after)}",
    "task_removed": lambda m: f"removed {show_task(m.task)}",
}


def show_event(event: StreamEvent) -> str:
    """An event as a text; G stands for the group stream and I for that of instances."""
    render = SHOWN.get(event.name)
    return event.name if render is None else render(event.message)


# -- the system --------------------------------------------------------------------------


@dataclass
class System:
    """Everything that runs. `cells.appear("home")` has been done: without it there would be no cell at all."""

    config: Mapping[str, Any]
    program: Program
    client: Client
    database: asyncpg.Connection[Any]
    cells: Cells
    auctioneer: Peer
    rep: Peer
    events: Events
    target: Target
    database_url: str

    def guid(self, name: str) -> str:
        """A guid that nobody else has."""
        return f"{name}-{next(_numbers)}"

    # definitions

    def lrp(self, guid: str, instances: int = 1, domain: str = "", **more: Any) -> models.DesiredLRP:
        more.setdefault("metric_tags", {"source_id": models.MetricTagValue(static=guid)})
        return models.DesiredLRP(
            process_guid=guid,
            domain=domain or guid,
            root_fs="preloaded:cflinuxfs4",
            instances=instances,
            memory_mb=128,
            disk_mb=256,
            max_pids=5,
            action=models.Action(run_action=models.RunAction(path="true", user="vcap")),
            **more,
        )

    def task(self, callback: str = "", **more: Any) -> models.TaskDefinition:
        return models.TaskDefinition(
            root_fs="preloaded:cflinuxfs4",
            memory_mb=256,
            disk_mb=512,
            completion_callback_url=callback,
            action=models.Action(run_action=models.RunAction(path="true", user="vcap")),
            **more,
        )

    @staticmethod
    def key(guid: str, index: int = 0) -> models.ActualLRPKey:
        return models.ActualLRPKey(process_guid=guid, index=index, domain=guid)

    @staticmethod
    def instance(index: int, cell_id: str) -> models.ActualLRPInstanceKey:
        return models.ActualLRPInstanceKey(instance_guid=f"ig-{index}-{cell_id}", cell_id=cell_id)

    # what happens

    async def desire(self, guid: str, instances: int = 1, **more: Any) -> None:
        """Desire an LRP; its auction is over afterwards."""
        await self.client.desire_lrp(self.lrp(guid, instances, **more))
        if instances:
            await self.auctioneer.wait_for(f'"{guid}"')

    async def start(self, guid: str, index: int, cell_id: str, **more: Any) -> None:
        """What a cell does when an instance has started."""
        net = models.ActualLRPNetInfo(address="10.0.0.1", instance_address="10.255.0.1")
        request = models.StartActualLRPRequest(
            actual_lrp_key=self.key(guid, index),
            actual_lrp_instance_key=self.instance(index, cell_id),
            actual_lrp_net_info=net,
            Routable=True,
            **more,
        )
        await self.client.start(request)

    async def claim(self, guid: str, index: int, cell_id: str) -> None:
        await self.client.claim(guid, index, self.instance(index, cell_id))

    async def instances(self, guid: str) -> list[str]:
        """The instances of an LRP as texts, sorted."""
        return sorted(map(show, await self.client.actual_lrps(process_guid=guid)))

    async def change(self, *statements: Statement) -> int:
        """Change rows in one transaction and wait until the server has adopted it.

        Returns a place in its log; the pass that adopted goes on behind it.
        """
        place = len(self.program.lines)
        async with self.database.transaction():
            for text, *arguments in statements:
                await self.database.execute(text, *arguments)
            # The server logs what it adopts, so there must be something: a domain that the same pass prunes.
            name = self.guid("marker")
            await self.database.execute("INSERT INTO domains (domain, expire_time) VALUES ($1, 1)", name)
        return await self.program.logged("bbs.converger.adopted-foreign-changes", place)

    async def converged(self, *statements: Statement, passes: int = 1) -> None:
        """Make changes as `change` does, and wait for the end of the pass that adopted them, and of further ones."""
        place = await self.change(*statements)
        for _ in range(passes):
            place = await self.pass_ended(place)

    async def pass_ended(self, place: int) -> int:
        both = [self.program.logged(f"bbs.converger.converge-{what}.done", place) for what in ("lrps", "tasks")]
        return max(await asyncio.gather(*both))

    async def settled(self) -> None:
        """Wait for the events of everything that has happened so far."""
        fence = self.guid("fence")
        await self.client.desire_lrp(self.lrp(fence, 0, domain="fence"))
        await self.client.desire_task(fence, "fence", self.task())
        for name in STREAMS:
            await self.events.wait_for(name, lambda event: fence in guids(event.message))

    async def metrics(self) -> dict[str, float]:
        """The values of the Prometheus endpoint, by name; those with labels are left out."""
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://{self.config['prometheus_listen_address']}/metrics")).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {sample.name: sample.value for sample in samples if not sample.labels}

    async def connect(self) -> asyncpg.Connection[Any]:
        """Another connection to the database, to be closed by the caller."""
        return await asyncpg.connect(self.database_url)

    async def wipe(self) -> None:
        """Empty the tables."""
        await self.change(*[(f"DELETE FROM {table}",) for table in TABLES])


RunSystem = Callable[..., AbstractAsyncContextManager[System]]
_databases = itertools.count(1)
_numbers = itertools.count(1)


@asynccontextmanager
async def running(postgres: Any, certificates: Any, folder: Path, **keys: Any) -> AsyncIterator[System]:
    """A system with the cell `home`; `keys` are configuration keys of the server. It has a database of its own."""
    name = f"system_{next(_databases)}"
    url = postgres.url(name)
    administrator = await asyncpg.connect(postgres.url())
    await administrator.execute(f'CREATE DATABASE "{name}"')
    await administrator.close()
    identity = Identity(certificates.ca, certificates.server_cert, certificates.server_key)
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        locket = await enter(serve(url, identity, options=Options(scan_interval=1.0)))
        auctioneer = await enter(listening(Peer(), server_tls(certificates)))
        rep = await enter(listening(Peer(), server_tls(certificates)))
        channel = await enter(grpc.aio.secure_channel(locket.address, channel_credentials(certificates)))
        cells = Cells(channel, rep.url)
        await cells.appear("home")
        config = configuration(certificates, url, locket.address, auctioneer.url) | keys
        config = {key: value for key, value in config.items() if value is not None}
        program = await enter(started(config, folder))
        target = Target(
            f"https://{config['listen_address']}", certificates.ca, certificates.client_cert, certificates.client_key
        )
        client = await enter(Client(target))
        database = await asyncpg.connect(url)
        stack.push_async_callback(database.close)
        events = Events()
        await enter(following(events, target))
        yield System(config, program, client, database, cells, auctioneer, rep, events, target, url)


@asynccontextmanager
async def following(events: Events, target: Target) -> AsyncIterator[None]:
    tasks = []
    for name in STREAMS:
        subscribed = asyncio.Event()
        tasks.append(asyncio.create_task(events.follow(target, name, subscribed)))
        async with asyncio.timeout(PATIENCE):
            await subscribed.wait()
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def configuration(certificates: Any, database_url: str, locket: str, auctioneer: str) -> dict[str, Any]:
    """A production-like configuration that converges without pause."""
    ours = {"ca": certificates.ca, "cert": certificates.server_cert, "key": certificates.server_key}
    theirs = {"ca": certificates.ca, "cert": certificates.client_cert, "key": certificates.client_key}
    return {
        "session_name": "bbs",
        "uuid": "the-bbs",
        "log_level": "debug",
        "listen_address": f"127.0.0.1:{free_port()}",
        "health_address": f"127.0.0.1:{free_port()}",
        "prometheus_listen_address": f"127.0.0.1:{free_port()}",
        **{f"{name}_file": str(path) for name, path in ours.items()},
        "database_driver": "postgres",
        "database_connection_string": database_url,
        "encryption_keys": {"label": "passphrase"},
        "active_key_label": "label",
        "locket_address": locket,
        "locket_ca_cert_file": str(certificates.ca),
        "locket_client_cert_file": str(certificates.client_cert),
        "locket_client_key_file": str(certificates.client_key),
        "lock_ttl": "60s",
        "lock_retry_interval": "20s",
        "auctioneer_address": auctioneer,
        "auctioneer_require_tls": True,
        "auctioneer_ca_cert": str(theirs["ca"]),
        "auctioneer_client_cert": str(theirs["cert"]),
        "auctioneer_client_key": str(theirs["key"]),
        "rep_ca_cert": str(theirs["ca"]),
        "rep_client_cert": str(theirs["cert"]),
        "rep_client_key": str(theirs["key"]),
        "communication_timeout": "10s",
        "db_connection_timeout": "3s",
        "converge_repeat_interval": "40ms",
        "kick_task_duration": "30s",
        "expire_pending_task_duration": "60s",
        "expire_completed_task_duration": "120s",
        "max_task_retries": 3,
        "report_interval": "1m",
    }


def server_tls(certificates: Any) -> ssl.SSLContext:
    """Mutual TLS of a peer."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    return context


def channel_credentials(certificates: Any) -> grpc.ChannelCredentials:
    files = (certificates.ca, certificates.client_key, certificates.client_cert)
    return grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(postgres: Any, certificates: Any, tmp_path_factory: Any) -> AsyncIterator[System]:
    """The module's system."""
    async with running(postgres, certificates, tmp_path_factory.mktemp("system")) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def clean(system: System) -> AsyncIterator[System]:
    """The module's system, emptied after the test."""
    yield system
    await system.wipe()
    system.events.clear()


@pytest.fixture(scope="session")
def running_system(postgres: Any, certificates: Any) -> RunSystem:
    """As `run_system`, for fixtures of a wider scope: `async with running_system(folder, ...) as system`."""
    return functools.partial(running, postgres, certificates)


@pytest.fixture
def run_system(postgres: Any, certificates: Any, tmp_path: Path) -> RunSystem:
    """Starts systems: `async with run_system(communication_timeout="1s") as system`."""

    def run(**keys: Any) -> AbstractAsyncContextManager[System]:
        folder = tmp_path / f"system-{next(_databases)}"
        folder.mkdir()
        return running(postgres, certificates, folder, **keys)

    return run


@pytest_asyncio.fixture(loop_scope="module")
async def receiver() -> AsyncIterator[Peer]:
    """A receiver of task callbacks."""
    async with listening(Peer(200)) as one:
        yield one
