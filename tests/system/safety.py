"""What the safety tests share: real programs that are stopped, killed and woken, and a load that remembers.

`Load` runs the lifecycles of tasks and LRPs and watches the event streams; `Load.problems` compares what was
acknowledged and announced with what is there afterwards.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import httpx
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message

from bbs_server.client.events import MESSAGES
from bbs_server.dev.ports import free_port
from bbs_server.dev.postgres import EmbeddedPostgres, PostgresFailed

PATIENCE = 60.0
"""Seconds that anything is waited for."""


class NotServing(Exception):
    """The program listens and does not serve yet."""


NO_ANSWER = (NotServing, aiohttp.ClientError, OSError, TimeoutError, asyncio.IncompleteReadError)


# -- programs


class Program:
    """One program and its configuration file, started as often as wanted. Its output of all runs is in `output`."""

    def __init__(self, folder: Path, number: int, name: str, config: dict[str, Any], tls: ssl.SSLContext) -> None:
        self.name = name
        self.config = config
        self.tls = tls
        self.address = config["listen_address"]
        self._file = folder / f"{name}-{number}.json"
        self._log = folder / f"{name}-{number}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._file.write_text(json.dumps(self.config))
        command = [str(Path(sys.executable).with_name(self.name)), f"-config={self._file}"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def signal(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    async def ended(self, limit: float = PATIENCE) -> int:
        """Its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, limit)

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the log; everything else in the output is a fault."""
        return [json.loads(line) for line in self.output.splitlines()]

    async def until_logged(self, message: str, times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.output.count(f'"message":"{message}"') < times:
                assert self.alive, self.output
                await asyncio.sleep(0.02)

    async def serving(self, limit: float = PATIENCE) -> float:
        """Returns after how many seconds it answered."""
        begin = time.monotonic()
        async with asyncio.timeout(limit), Client(self) as client:
            while True:
                try:
                    status, _ = await client.post("/v1/ping", b"")
                    if status == 200:
                        return time.monotonic() - begin
                except NO_ANSWER:
                    assert self.alive, self.output
                await asyncio.sleep(0.01)


@dataclass
class Programs:
    """Makes programs on one database, each with a free port. Leaving its `with` ends them all and reads their logs."""

    folder: Path
    certificates: Any
    database: str
    started: list[Program] = field(default_factory=list)
    tls: ssl.SSLContext = field(init=False)

    def __post_init__(self) -> None:
        self.tls = ssl.create_default_context(cafile=str(self.certificates.ca))
        self.tls.load_cert_chain(self.certificates.client_cert, self.certificates.client_key)

    def bbs(self, **keys: Any) -> Program:
        """Without `locket_address` the database's advisory lock is the lock."""
        return self._made(
            "bbs-server",
            {
                "uuid": f"bbs-{len(self.started)}",
                "auctioneer_address": "http://127.0.0.1:9",
                "encryption_keys": {"key1": "passphrase one"},
                "active_key_label": "key1",
                "communication_timeout": "10s",
                "converge_repeat_interval": "1h",
                "max_task_retries": 3,
                "health_address": f"127.0.0.1:{free_port()}",
                **keys,
            },
        )

    def locket(self, **keys: Any) -> Program:
        return self._made("bbs-locket", keys)

    async def started_locket(self, **keys: Any) -> Program:
        locket = self.locket(**keys)
        locket.start()
        await locket.until_logged("locket.started")
        return locket

    async def serving_behind_locket(self, locket_database: str) -> Program:
        """A server in service whose Locket has a database that nobody disturbs."""
        locket = await self.started_locket(database_connection_string=locket_database)
        server = self.bbs(**self.behind(locket, ttl="15s", retry="5s"))
        server.start()
        await server.serving()
        return server

    def behind(self, locket: Program, ttl: str, retry: str) -> dict[str, Any]:
        """The keys of a BBS that takes its lock from this Locket."""
        return {
            "locket_address": locket.address,
            "locket_ca_cert_file": str(self.certificates.ca),
            "locket_client_cert_file": str(self.certificates.client_cert),
            "locket_client_key_file": str(self.certificates.client_key),
            "lock_ttl": ttl,
            "lock_retry_interval": retry,
        }

    def _made(self, name: str, keys: dict[str, Any]) -> Program:
        config = {
            "log_level": "info",
            "listen_address": f"127.0.0.1:{free_port()}",
            "ca_file": str(self.certificates.ca),
            "cert_file": str(self.certificates.server_cert),
            "key_file": str(self.certificates.server_key),
            "database_driver": "postgres",
            "database_connection_string": self.database,
            "report_interval": "1m",
            **keys,
        }
        program = Program(self.folder, len(self.started), name, config, self.tls)
        self.started.append(program)
        return program

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for program in reversed(self.started):
            program.kill()
        if kind is None:
            self._check_output()

    def _check_output(self) -> None:
        """Nobody has written anything but log lines, and none of them tells of a fault of ours."""
        for program in self.started:
            faults = ("unhandled-exception", "follow-up-failed", "dispatch-failed", "panic")
            bad = [line for line in program.logged() if any(fault in line["message"] for fault in faults)]
            assert bad == []


def restart_postgres(server: EmbeddedPostgres) -> None:
    """Start it again, also while children of a killed predecessor are still around."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            server.start()
            return
        except PostgresFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


async def rows(url: str) -> dict[tuple[str, ...], str]:
    """All rows of all tables but `configurations`, as text."""
    keys = {"tasks": "guid", "domains": "domain", "desired_lrps": "process_guid"}
    keys["actual_lrps"] = "concat_ws('/', process_guid, instance_index, presence)"
    connection = await asyncpg.connect(url)
    try:
        return {
            (table, key): text
            for table, column in keys.items()
            for key, text in await connection.fetch(f"SELECT {column}, t::text FROM {table} t")
        }
    finally:
        await connection.close()


class Front:
    """One address for several programs, as DNS gives clients: a connection goes to the first that listens."""

    def __init__(self, *programs: Program) -> None:
        self.tls = programs[0].tls
        self.address = ""
        self._programs = programs
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Front:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        for program in self._programs:
            host, _, port = program.address.rpartition(":")
            try:
                back = await asyncio.open_connection(host, int(port))
            except OSError:
                continue
            self._writers.add(back[1])
            await asyncio.gather(_pump(reader, back[1]), _pump(back[0], writer))
            return
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


# -- requests


class Client:
    """Requests of one client; nothing is ever sent twice."""

    def __init__(self, program: Program | Front) -> None:
        self._url = f"https://{program.address}"
        self._tls = program.tls
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=program.tls, limit=0), timeout=aiohttp.ClientTimeout(PATIENCE)
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Raises one of NO_ANSWER."""
        async with self._session.post(self._url + path, data=body) as answer:
            return answer.status, await answer.read()

    async def ask(self, path: str, request: Message, response: Any) -> Any:
        """A decoded answer, whatever it says. Raises one of NO_ANSWER."""
        status, body = await self.post(path, request.SerializeToString())
        if status == 503:
            raise NotServing(path)
        assert status == 200, (status, path)
        return response.FromString(body)

    async def must(self, path: str, request: Message) -> None:
        """Every answer of a lifecycle call has its error in the same place."""
        answer = await self.ask(path, request, models.TaskLifecycleResponse)
        assert not answer.HasField("error"), (path, answer.error)

    async def listed(self) -> dict[Key, View]:
        """Everything there is, as views."""
        found: dict[Key, View] = {}
        for kind, (path, request, response, name) in LISTS.items():
            answer = await self.ask(path, request, response)
            assert not answer.HasField("error"), answer.error
            found |= {(kind, guid): view for guid, view in map(VIEWS[kind], getattr(answer, name))}
        return found

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        """Subscribed on entry; the events end when the stream does."""
        timeout = httpx.Timeout(PATIENCE, read=None)
        async with (
            httpx.AsyncClient(base_url=self._url, verify=self._tls, timeout=timeout, trust_env=False) as http,
            http.stream("POST", path) as answer,
        ):
            assert answer.status_code == 200
            yield _events(answer)


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    try:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                yield name, MESSAGES[name].FromString(base64.b64decode(line[6:]))
    except httpx.TransportError:
        return


# -- lifecycles

Key = tuple[str, str]
"""Kind of thing and its guid."""
View = Any
"""The part of a thing that the steps of its life show in; None if it is not there."""

LISTS = {
    "task": ("/v1/tasks/list.r3", models.TasksRequest(), models.TasksResponse, "tasks"),
    "desired": ("/v1/desired_lrps/list.r3", models.DesiredLRPsRequest(), models.DesiredLRPsResponse, "desired_lrps"),
    "actual": ("/v1/actual_lrps/list", models.ActualLRPsRequest(), models.ActualLRPsResponse, "actual_lrps"),
}
STREAMS = ("/v1/events/tasks.r1", "/v1/events/lrp_instances.r1")


def _task_view(task: models.Task) -> tuple[str, View]:
    return task.task_guid, (task.state, task.cell_id, task.failed, task.result, task.rejection_count)


def _desired_view(lrp: models.DesiredLRP) -> tuple[str, View]:
    return lrp.process_guid, lrp.annotation


def _actual_view(lrp: models.ActualLRP) -> tuple[str, View]:
    return lrp.actual_lrp_key.process_guid, (lrp.state, lrp.actual_lrp_instance_key.instance_guid)


VIEWS = {"task": _task_view, "desired": _desired_view, "actual": _actual_view}


@dataclass(frozen=True, slots=True)
class Step:
    """A request, and what it makes of things. One that changes nothing is to be refused."""

    path: str
    request: Message
    becomes: dict[Key, View]


def definition() -> models.TaskDefinition:
    action = models.Action(run_action=models.RunAction(path="p", user="u"))
    return models.TaskDefinition(root_fs="docker:r", action=action, memory_mb=1, disk_mb=2)


def desire_task(guid: str, domain: str = "d") -> models.DesireTaskRequest:
    return models.DesireTaskRequest(task_guid=guid, domain=domain, task_definition=definition())


def task_life(guid: str) -> Iterator[Step]:
    me, thing = models.TaskGuidRequest(task_guid=guid), ("task", guid)
    yield Step("/v1/tasks/desire.r2", desire_task(guid), {thing: (1, "", False, "", 0)})
    reject = models.RejectTaskRequest(task_guid=guid, rejection_reason="full")
    yield Step("/v1/tasks/reject", reject, {thing: (1, "", False, "", 1)})
    start = models.StartTaskRequest(task_guid=guid, cell_id="cell")
    yield Step("/v1/tasks/start", start, {thing: (2, "cell", False, "", 1)})
    complete = models.CompleteTaskRequest(task_guid=guid, cell_id="cell", result="r")
    yield Step("/v1/tasks/complete", complete, {thing: (3, "", False, "r", 1)})
    yield Step("/v1/tasks/cancel", me, {})
    yield Step("/v1/tasks/resolving", me, {thing: (4, "", False, "r", 1)})
    yield Step("/v1/tasks/delete", me, {thing: None})


def desired_lrp(guid: str, instances: int = 1) -> models.DesiredLRP:
    action = models.Action(run_action=models.RunAction(path="p", user="u"))
    return models.DesiredLRP(
        process_guid=guid,
        domain="d",
        root_fs="docker:r",
        instances=instances,
        annotation="first",
        action=action,
        log_guid="log",
        metric_tags={"source_id": models.MetricTagValue(static=guid)},
    )


def lrp_life(guid: str) -> Iterator[Step]:
    desired, actual, key = ("desired", guid), ("actual", guid), models.ActualLRPKey(process_guid=guid, domain="d")
    instance = models.ActualLRPInstanceKey(instance_guid=f"{guid}-i", cell_id="cell")
    yield Step(
        "/v1/desired_lrp/desire.r2",
        models.DesireLRPRequest(desired_lrp=desired_lrp(guid)),
        {desired: "first", actual: ("UNCLAIMED", "")},
    )
    claim = models.ClaimActualLRPRequest(process_guid=guid, actual_lrp_instance_key=instance)
    yield Step("/v1/actual_lrps/claim", claim, {actual: ("CLAIMED", f"{guid}-i")})
    net = models.ActualLRPNetInfo(address="10.0.0.1", ports=[models.PortMapping(container_port=1, host_port=2)])
    start = models.StartActualLRPRequest(
        actual_lrp_key=key, actual_lrp_instance_key=instance, actual_lrp_net_info=net, Routable=True
    )
    yield Step("/v1/actual_lrps/start.r1", start, {actual: ("RUNNING", f"{guid}-i")})
    update = models.UpdateDesiredLRPRequest(process_guid=guid, update=models.DesiredLRPUpdate(annotation="second"))
    yield Step("/v1/desired_lrp/update", update, {desired: "second"})
    remove = models.RemoveActualLRPRequest(process_guid=guid, index=0, actual_lrp_instance_key=instance)
    yield Step("/v1/actual_lrps/remove", remove, {actual: None})
    yield Step("/v1/desired_lrp/remove", models.RemoveDesiredLRPRequest(process_guid=guid), {desired: None})


LIVES = (task_life, lrp_life)


# -- load


@dataclass
class Thing:
    """What it should look like after each change that was sent, which of them was acknowledged, what was announced."""

    views: list[View] = field(default_factory=lambda: [None])
    acknowledged: int = 0
    announced: list[View] = field(default_factory=list)


class Load:
    """Clients that take one thing after the other through its life, up to some step, while the streams are watched."""

    def __init__(self, program: Program | Front, prefix: str, clients: int = 8) -> None:
        self._program = program
        self._prefix = prefix
        self._made = 0
        self._watching: list[asyncio.Task[None]] = []
        self._running: list[asyncio.Task[None]] = []
        self._clients = clients
        self._stopping = False
        self._progress = asyncio.Event()
        self.things: dict[Key, Thing] = {}
        self.strange: list[Key] = []
        self.failed: list[tuple[float, str]] = []
        """When something went wrong, and what."""
        self.slowest = 0.0
        """The longest that any answer took, in s."""
        self.acknowledged = 0
        self.unbroken = False
        """After the end: whether the streams were open all the time, so that no event may be missing."""

    async def __aenter__(self) -> Load:
        await self.watch()
        self._running = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let the requests under way end; then no event is outstanding that a stream still brings."""
        self._stopping = True
        if self._running:
            await asyncio.wait(self._running, timeout=PATIENCE)
            await self._settled()
        self.unbroken = bool(self._watching) and not any(task.done() for task in self._watching)
        for task in (*self._running, *self._watching):
            task.cancel()
        ended = await asyncio.gather(*self._running, *self._watching, return_exceptions=True)
        faults = [fault for fault in ended if isinstance(fault, Exception)]
        assert faults == [], faults
        self._running, self._watching = [], []

    async def watch(self) -> None:
        """Subscribe to the streams; each subscription lives as long as the server lets it."""
        for path in STREAMS:
            subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watching.append(asyncio.create_task(self._watch(path, subscribed)))
            async with asyncio.timeout(PATIENCE):
                await subscribed

    async def fails(self, count: int) -> None:
        """Wait for so many further failures."""
        goal = len(self.failed) + count
        async with asyncio.timeout(PATIENCE):
            while len(self.failed) < goal:
                self._progress.clear()
                await self._progress.wait()

    async def goes_on(self, count: int, limit: float = PATIENCE) -> None:
        """Wait for so many further acknowledgements."""
        goal = self.acknowledged + count
        async with asyncio.timeout(limit):
            while self.acknowledged < goal:
                self._progress.clear()
                await self._progress.wait()

    async def _client(self, number: int) -> None:
        async with Client(self._program) as client:
            while not self._stopping:
                self._made += 1
                name = f"{self._prefix}-{self._made}"
                depth = (1, 2, 3, 4, 9, 9, 9)[self._made % 7]
                for step, _ in zip(LIVES[number % 2](name), range(depth), strict=False):
                    if self._stopping or not await self._take(client, step):
                        break

    async def _take(self, client: Client, step: Step) -> bool:
        things = [self.things.setdefault(key, Thing()) for key in step.becomes]
        for thing, view in zip(things, step.becomes.values(), strict=True):
            thing.views.append(view)
        begin, trouble = time.monotonic(), ""
        try:
            answer = await client.ask(step.path, step.request, models.TaskLifecycleResponse)
        except NO_ANSWER as problem:
            trouble = f"no answer: {problem!r}"
        else:
            if answer.HasField("error") is bool(step.becomes):
                trouble = answer.error.message or "not refused"
        end = time.monotonic()
        self.slowest = max(self.slowest, end - begin)
        if trouble:
            self.failed.append((end, trouble))
            self._progress.set()
            await asyncio.sleep(0.02)  # nobody hammers a server that is away
            return False
        for thing in things:
            thing.acknowledged = len(thing.views) - 1
        self.acknowledged += 1
        self._progress.set()
        return True

    async def _watch(self, path: str, subscribed: asyncio.Future[None]) -> None:
        async with Client(self._program) as client, client.stream(path) as events:
            subscribed.set_result(None)
            async for name, event in events:
                self._note(name, event)
                self._progress.set()

    def _note(self, name: str, event: Any) -> None:
        kind, what = name.split("_")[0], name.split("_")[-1]
        if name == "actual_lrp_instance_changed":
            guid, instance = event.actual_lrp_key.process_guid, event.actual_lrp_instance_key.instance_guid
            view: View = (event.after.state, instance)
        elif what == "changed":
            guid, view = VIEWS[kind](event.after)
        else:
            guid, view = VIEWS[kind](event.task if kind == "task" else getattr(event, f"{kind}_lrp"))
        thing = self.things.get((kind, guid))
        if thing is None:
            self.strange.append((kind, guid))
        else:
            thing.announced.append(None if what == "removed" else view)

    async def _settled(self) -> None:
        """Wait until every acknowledged change has been announced, unless a stream has ended or that takes too long."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not any(task.done() for task in self._watching):
            if all(len(thing.announced) >= thing.acknowledged for thing in self.things.values()):
                return
            await asyncio.sleep(0.01)

    def problems(self, found: dict[Key, View]) -> list[str]:
        """What is wrong."""
        bad = [f"announced but never asked for: {key}" for key in self.strange]
        done = {key[0] for key, thing in self.things.items() if thing.acknowledged}
        bad += [f"no life of a kind was lived: {kind}, {self.failed[:3]}" for kind in VIEWS if kind not in done]
        for key, thing in self.things.items():
            view = found.get(key)
            state = f"{key}: sent {thing.views}, acknowledged {thing.acknowledged}, found {view}, {thing.announced}"
            positions = [number for number, sent in enumerate(thing.views) if sent == view]
            if not positions:
                bad.append(f"torn {state}")
                continue
            position = positions[-1]
            told = [_last(thing.views, view) for view in thing.announced]
            expected = list(range(1, position + 1))
            if position < thing.acknowledged:
                bad.append(f"lost {state}")
            elif told != [number for number in expected if number in told]:
                bad.append(f"announced what is not there, twice, or out of order {state}")
            elif self.unbroken and told != expected:
                bad.append(f"not announced {state}")
            if key[0] == "actual" and position == 0 and found.get(("desired", key[1])) is not None:
                bad.append(f"desired without its instance {state}")
        return bad


def _last(views: Sequence[View], view: View) -> int:
    return max((number for number, sent in enumerate(views) if number and sent == view), default=0)
