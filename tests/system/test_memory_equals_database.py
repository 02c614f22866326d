"""Whatever clients, cells and convergence do: memory is what a fresh load gives, and the events lead to the lists.

Random requests of the API go through the real writer to a real database, several at a time so that they share
batches, and convergence runs in between with cells that come and go and a clock that jumps. After each round memory
is compared with the database. A subscriber that listed first and then applied every event to its list holds, at the
end of each round, what is listed.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from bbs_protos import models_pb2 as models
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safety import definition, desired_lrp

from bbs_server.client.events import MESSAGES
from bbs_server.core import actual_lrps
from bbs_server.core.context import Context, Settings
from bbs_server.core.errors import Error, Refused, unknown
from bbs_server.core.event_messages import Revision
from bbs_server.core.lrp_convergence import LRPConvergence
from bbs_server.core.outcome import Command, Hub, Outcome, Retire
from bbs_server.core.records import Presence
from bbs_server.core.state import State
from bbs_server.core.task_convergence import TaskConvergence
from bbs_server.effects.hubs import Hubs, Subscription
from bbs_server.store.loading import load
from bbs_server.store.opening import open_database
from bbs_server.store.writer import Writer
from bbs_server.wire.routes import BY_PATH

SECOND = 10**9
PASSPHRASES = {"key1": "passphrase one"}
SETTINGS = Settings(2, 30 * SECOND, 100 * SECOND, 100 * SECOND)

# -- requests

GUIDS = st.sampled_from(["a", "a", "a", "b"])
CELLS = st.sampled_from(["c1", "c1", "c2"])
REASONS = st.sampled_from(["", "why", "insufficient resources"])
INDICES = st.sampled_from([0, 0, 0, 1])
KEYS = st.builds(lambda guid, index: models.ActualLRPKey(process_guid=guid, index=index, domain="d"), GUIDS, INDICES)
INSTANCES = st.builds(
    lambda number, cell: models.ActualLRPInstanceKey(instance_guid=f"i{number}-{cell}", cell_id=cell),
    st.sampled_from([1, 1, 1, 2]),
    CELLS,
)
NETS = st.builds(lambda number: models.ActualLRPNetInfo(address=f"10.0.0.{number}"), st.integers(1, 2))
HOSTS = st.lists(st.sampled_from(["<a>", "b"]), max_size=2).map(
    lambda names: [models.ActualLRPInternalRoute(hostname=name) for name in names]
)
TAGS = st.dictionaries(st.sampled_from(["x", "&"]), st.sampled_from(["1", "2"]))
ROUTES = st.dictionaries(
    st.sampled_from(["cf-router", "internal-router"]), st.sampled_from([b"[]", b'[{"hostname":"a"}]', b'{"b":1.50}'])
).map(lambda routes: models.ProtoRoutes(routes=routes))


def lrp(guid: str, instances: int, routes: models.ProtoRoutes) -> models.DesiredLRP:
    made = desired_lrp(guid, instances)
    made.routes.CopyFrom(routes)
    return made


def request(path: str, message: Callable[..., Message], **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Requests of one route; whether they can be carried out depends on what there is."""
    return st.tuples(st.just(path), st.builds(message, **parts))


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


_instance = {"actual_lrp_key": KEYS, "actual_lrp_instance_key": INSTANCES}
_report = {
    "actual_lrp_net_info": NETS,
    "actual_lrp_internal_routes": HOSTS,
    "metric_tags": TAGS,
    "Routable": optional(st.booleans()),
    "availability_zone": st.sampled_from(["", "z1"]),
}
_task = {"task_guid": GUIDS}

TASK_REQUESTS = (
    request(
        "/v1/tasks/desire.r2",
        models.DesireTaskRequest,
        domain=st.just("d"),
        task_definition=st.just(definition()),
        **_task,
    ),
    request("/v1/tasks/start", models.StartTaskRequest, cell_id=CELLS, **_task),
    request("/v1/tasks/cancel", models.TaskGuidRequest, **_task),
    request("/v1/tasks/fail", models.FailTaskRequest, failure_reason=REASONS, **_task),
    request("/v1/tasks/reject", models.RejectTaskRequest, rejection_reason=REASONS, **_task),
    request(
        "/v1/tasks/complete",
        models.CompleteTaskRequest,
        cell_id=CELLS,
        failed=st.booleans(),
        failure_reason=REASONS,
        result=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=4),
        **_task,
    ),
    request("/v1/tasks/resolving", models.TaskGuidRequest, **_task),
    request("/v1/tasks/delete", models.TaskGuidRequest, **_task),
)
DESIRED_REQUESTS = (
    request(
        "/v1/desired_lrp/desire.r2",
        models.DesireLRPRequest,
        desired_lrp=st.builds(lrp, GUIDS, st.integers(0, 3), ROUTES),
    ),
    request(
        "/v1/desired_lrp/update",
        models.UpdateDesiredLRPRequest,
        process_guid=GUIDS,
        update=st.builds(
            models.DesiredLRPUpdate,
            instances=optional(st.integers(0, 3)),
            annotation=optional(REASONS),
            routes=optional(ROUTES),
        ),
    ),
    request("/v1/desired_lrp/remove", models.RemoveDesiredLRPRequest, process_guid=GUIDS),
    request("/v1/domains/upsert", models.UpsertDomainRequest, domain=st.just("d"), ttl=st.sampled_from([0, 1, 500])),
)
ACTUAL_REQUESTS = (
    request(
        "/v1/actual_lrps/claim",
        models.ClaimActualLRPRequest,
        process_guid=GUIDS,
        index=INDICES,
        actual_lrp_instance_key=INSTANCES,
    ),
    request("/v1/actual_lrps/start.r1", models.StartActualLRPRequest, **_instance, **_report),
    request("/v1/actual_lrps/start.r1", models.StartActualLRPRequest, **_instance, **_report),
    request("/v1/actual_lrps/crash", models.CrashActualLRPRequest, error_message=REASONS, **_instance),
    request("/v1/actual_lrps/fail", models.FailActualLRPRequest, actual_lrp_key=KEYS, error_message=st.just("no room")),
    request(
        "/v1/actual_lrps/remove",
        models.RemoveActualLRPRequest,
        process_guid=GUIDS,
        index=INDICES,
        actual_lrp_instance_key=INSTANCES,
    ),
    request("/v1/actual_lrps/retire", models.RetireActualLRPRequest, actual_lrp_key=KEYS),
    request("/v1/actual_lrps/remove_evacuating", models.RemoveEvacuatingActualLRPRequest, **_instance),
    request("/v1/actual_lrps/evacuate_claimed", models.EvacuateClaimedActualLRPRequest, **_instance),
    request(
        "/v1/actual_lrps/evacuate_crashed", models.EvacuateCrashedActualLRPRequest, error_message=REASONS, **_instance
    ),
    request("/v1/actual_lrps/evacuate_stopped", models.EvacuateStoppedActualLRPRequest, **_instance),
    request("/v1/actual_lrps/evacuate_running.r1", models.EvacuateRunningActualLRPRequest, **_instance, **_report),
)
CONVERGENCE = st.tuples(st.frozensets(CELLS), st.sampled_from([1, 40, 200]))
"""The cells that are there, and how many seconds later it is."""
REQUESTS = st.one_of(*TASK_REQUESTS, *DESIRED_REQUESTS, *ACTUAL_REQUESTS, *ACTUAL_REQUESTS)
ROUNDS = st.lists(st.lists(REQUESTS, min_size=4, max_size=12) | CONVERGENCE, min_size=4, max_size=16)


# -- a subscriber

Version = tuple[str, int, int, str, int]


@dataclass
class Replay:
    """Lists as a subscriber keeps them, by applying every event."""

    tasks: dict[str, models.Task] = field(default_factory=dict)
    desired: dict[str, models.DesiredLRP] = field(default_factory=dict)
    actual: dict[Any, models.ActualLRP] = field(default_factory=dict)
    quirks: Quirks = field(default_factory=lambda: Quirks())

    def apply(self, name: str, event: Any) -> None:
        kind, _, what = name.rpartition("_")
        getattr(self, f"_{kind}_{what}")(event)

    def _task_created(self, event: models.TaskCreatedEvent) -> None:
        assert event.task.task_guid not in self.tasks
        self.tasks[event.task.task_guid] = event.task

    def _task_changed(self, event: models.TaskChangedEvent) -> None:
        held, before = self.tasks[event.after.task_guid], event.before
        # Quirks: the change that a refused rejection announces has no "before", that of the last rejection has one
        # that was never there (events.md 9.4).
        if before.task_guid and before.rejection_count == held.rejection_count:
            assert held == before
        self.tasks[event.after.task_guid] = event.after

    def _task_removed(self, event: models.TaskRemovedEvent) -> None:
        assert self.tasks.pop(event.task.task_guid) == event.task

    def _desired_lrp_created(self, event: models.DesiredLRPCreatedEvent) -> None:
        assert event.desired_lrp.process_guid not in self.desired
        self.desired[event.desired_lrp.process_guid] = event.desired_lrp

    def _desired_lrp_changed(self, event: models.DesiredLRPChangedEvent) -> None:
        assert self.desired[event.after.process_guid] == event.before
        self.desired[event.after.process_guid] = event.after

    def _desired_lrp_removed(self, event: models.DesiredLRPRemovedEvent) -> None:
        assert self.desired.pop(event.desired_lrp.process_guid) == event.desired_lrp

    def _actual_lrp_instance_created(self, event: models.ActualLRPInstanceCreatedEvent) -> None:
        shown = shown_in_events(event.actual_lrp)
        self.actual.pop(self.quirks.replaced.get(version(shown), ()), None)
        assert version(shown) not in self.actual
        self.actual[version(shown)] = shown

    def _actual_lrp_instance_changed(self, event: models.ActualLRPInstanceChangedEvent) -> None:
        before, after = (side(event, info) for info in (event.before, event.after))
        held = self.actual.pop(version(before))
        # The event has one instance key for both sides.
        before.actual_lrp_instance_key.CopyFrom(held.actual_lrp_instance_key)
        assert held == before
        self.actual.pop(self.quirks.replaced.get(version(after), ()), None)
        self.actual[version(after)] = after

    def _actual_lrp_instance_removed(self, event: models.ActualLRPInstanceRemovedEvent) -> None:
        shown = shown_in_events(event.actual_lrp)
        if self.quirks.kept[version(shown)]:
            self.quirks.kept[version(shown)] -= 1
        else:
            assert self.actual.pop(version(shown)) == shown

    def _actual_lrp_crashed(self, event: models.ActualLRPCrashedEvent) -> None:
        """Says nothing that another event does not say."""


@dataclass
class Quirks:
    """What no subscriber can know: evacuations of running instances are announced in two cases as what they are not."""

    kept: Counter[Version] = field(default_factory=Counter)
    """Instances that are said to be removed and stay, and how often that is said (evacuation.md 6.1)."""
    replaced: dict[Version, Version] = field(default_factory=dict)
    """Evacuating instances that are said to be new and take the place of older ones, of which nothing is said."""

    def watch(self, command: Command) -> Command:
        def watched(state: State, message: Any, context: Context) -> Outcome:
            before = {key: stored_version(state.actual_lrps.get(key)) for key in list(state.actual_lrps.keys())}
            outcome = command(state, message, context)
            for event in outcome.events:
                if event.name == "actual_lrp_instance_removed":
                    shown, key = stored_version(event.before), stored_version(event.before)[:3]
                    if stored_version(state.actual_lrps.get(key)) == shown:
                        self.kept[shown] += 1
                elif event.name.startswith("actual_lrp_instance"):
                    shown = stored_version(event.after)
                    if before.get(shown[:3], shown) not in (shown, stored_version(event.before)):
                        self.replaced[shown] = before[shown[:3]]
            return outcome

        return watched


def unambiguous(command: Command) -> Command:
    """Refuses what would give one instance two rows, as no cell ever does: it starts none that is evacuating.

    Quirk: what happens to one of them is announced of both (see `lrp_events.record`).
    """

    def refusing(state: State, message: Any, context: Context) -> Outcome:
        if isinstance(message, models.StartActualLRPRequest):
            key, instance = message.actual_lrp_key, message.actual_lrp_instance_key
            evacuating = state.actual_lrps.get((key.process_guid, key.index, Presence.EVACUATING))
            if evacuating is not None and evacuating.instance_guid == instance.instance_guid:
                raise Refused(unknown("it is evacuating"))
        outcome = command(state, message, context)
        owners = Counter((row.process_guid, row.index, row.instance_guid) for row in state.actual_lrps.all())
        if any(count > 1 for count in owners.values()):
            raise Refused(unknown("one instance with two rows"))
        return outcome

    return refusing


def stored_version(record: Any) -> Version:
    if record is None:
        return ("", 0, 0, "", 0)
    return record.process_guid, record.index, record.presence, record.tag_epoch, record.tag_index


def version(instance: models.ActualLRP) -> Version:
    """What tells an instance, and its states, from all others."""
    key, tag = instance.actual_lrp_key, instance.modification_tag
    return key.process_guid, key.index, instance.presence, tag.epoch, tag.index


def shown_in_events(instance: models.ActualLRP) -> models.ActualLRP:
    """The part of an instance that events of changes show too, without the keys that they leave open."""
    shown = models.ActualLRP()
    shown.CopyFrom(instance)
    shown.ClearField("actual_lrp_internal_routes")
    shown.ClearField("metric_tags")
    shown.routable = instance.routable
    if shown.state in ("UNCLAIMED", "CRASHED"):
        shown.ClearField("actual_lrp_instance_key")
    if shown.presence == models.ActualLRP.EVACUATING:
        # Quirk: events of a renewed evacuation show a zone that is not stored (evacuation.md 1.3).
        shown.ClearField("availability_zone")
    shown.actual_lrp_instance_key.SetInParent()
    return shown


def side(event: models.ActualLRPInstanceChangedEvent, info: models.ActualLRPInfo) -> models.ActualLRP:
    """The instance before or after a change."""
    return shown_in_events(
        models.ActualLRP(
            actual_lrp_key=event.actual_lrp_key,
            actual_lrp_instance_key=event.actual_lrp_instance_key,
            actual_lrp_net_info=info.actual_lrp_net_info,
            crash_count=info.crash_count,
            crash_reason=info.crash_reason,
            state=info.state,
            placement_error=info.placement_error,
            since=info.since,
            modification_tag=info.modification_tag,
            presence=info.presence,
            routable=info.Routable,
            availability_zone=info.availability_zone,
        )
    )


# -- the server without its wire


@dataclass
class Server:
    writer: Writer
    hubs: Hubs
    psql: asyncpg.Connection[Any]
    keys: Any
    now: int = 1_700_000_000 * SECOND
    quirks: Quirks = field(default_factory=Quirks)

    def dispatch(self, outcome: Outcome) -> Awaitable[Error | None] | None:
        """Publishes; of the calls only those matter that write again. No cell is ever found."""
        self.hubs.publish(outcome.events)
        retired = [call.lrp for call in outcome.calls if isinstance(call, Retire)]
        return self._retire(retired) if retired else None

    async def _retire(self, instances: list[Any]) -> Error | None:
        for instance in instances:
            try:
                await self.writer.write(actual_lrps.remove_retired, instance)
            except Refused as refused:
                return refused.error
        return None

    async def post(self, path: str, message: Any) -> None:
        route = BY_PATH[path]
        if route.check is None or not route.check(message):
            command = unambiguous(route.handle)  # type: ignore[arg-type]
            await self.write(self.quirks.watch(command) if "evacuate_running" in path else command, message)

    async def write(self, command: Any, message: Any) -> None:
        self.now += SECOND
        try:
            await self.writer.write(command, message)
        except Refused:
            pass

    async def converge(self, cells: frozenset[str], seconds: int) -> None:
        self.now += seconds * SECOND
        presences = [models.CellPresence(cell_id=cell) for cell in cells]
        for pass_ in (LRPConvergence(presences), TaskConvergence(presences)):
            for step in pass_.steps():
                await self.write(step.command, None)

    async def listed(self, path: str, message: Message) -> Any:
        route = BY_PATH[path]
        assert route.response is not None
        answer: Any = await self.writer.read(route.handle, message)  # type: ignore[arg-type]
        return answer if isinstance(answer, Message) else route.response.FromString(b"".join(pieces(answer)))

    async def check_memory(self) -> None:
        fresh = State()
        versions = await load(self.psql, fresh, self.keys)
        for name, table in fresh.tables.items():
            held = self.writer.state.tables[name]
            assert dict(zip(held.keys(), held.all(), strict=True)) == dict(zip(table.keys(), table.all(), strict=True))
            assert self.writer.versions[name].by_key == versions[name].by_key

    async def check_replay(self, replay: Replay) -> None:
        tasks = await self.listed("/v1/tasks/list.r3", models.TasksRequest())
        assert replay.tasks == {task.task_guid: task for task in tasks.tasks}
        lrps = await self.listed("/v1/desired_lrps/list.r3", models.DesiredLRPsRequest())
        for lrp in (*lrps.desired_lrps, *replay.desired.values()):
            lrp.ClearField("metrics_guid")  # only lists fill it in (events.md 5)
        assert replay.desired == {lrp.process_guid: lrp for lrp in lrps.desired_lrps}
        instances = await self.listed("/v1/actual_lrps/list", models.ActualLRPsRequest())
        assert replay.actual == {version(one): shown_in_events(one) for one in instances.actual_lrps}


def pieces(answer: Any) -> list[bytes]:
    return [bytes(piece) for piece in answer.pieces]


async def events(subscription: Subscription) -> AsyncIterator[tuple[str, Any]]:
    """Everything that a closed subscription still has."""
    async for chunk in subscription:
        name = ""
        for line in chunk.decode().splitlines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                yield name, MESSAGES[name].FromString(base64.b64decode(line[6:]))


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[Server]:
    database = await open_database(url, active_key_label="key1", encryption_keys=PASSPHRASES)
    await database.raise_epoch()
    await database.migrate()
    psql = await asyncpg.connect(url)
    server: Server
    writer = await database.become_writer(
        dispatch=lambda outcome: server.dispatch(outcome),
        settings=SETTINGS,
        now=lambda: server.now,
        on_deposed=lambda reason: None,
        on_unrecoverable=lambda reason: None,
    )
    server = Server(writer, Hubs(), psql, database.keys)
    yield server
    await writer.close()
    await database.close()
    await psql.close()


async def run(server: Server, rounds: list[Any]) -> None:
    await server.write(clear, None)
    # Something is there from the beginning, so that more requests have something to do.
    start = models.StartActualLRPRequest(
        actual_lrp_key=models.ActualLRPKey(process_guid="a", domain="d"),
        actual_lrp_instance_key=models.ActualLRPInstanceKey(instance_guid="i1-c1", cell_id="c1"),
        actual_lrp_net_info=models.ActualLRPNetInfo(address="10.0.0.1"),
    )
    desire = models.DesireLRPRequest(desired_lrp=lrp("a", 2, models.ProtoRoutes()))
    first = [("/v1/desired_lrp/desire.r2", desire), ("/v1/actual_lrps/start.r1", start)]
    replay, hubs = Replay(quirks=server.quirks), (Hub.DESIRED, Hub.INSTANCE, Hub.TASK)
    for one in [first, *rounds]:
        subscription = server.hubs.subscribe(hubs, Revision.R1, "")
        if isinstance(one, list):
            await asyncio.gather(*(server.post(*request) for request in one))
        else:
            await server.converge(*one)
        subscription.close()
        await server.check_memory()
        async for name, event in events(subscription):
            replay.apply(name, event)
        await server.check_replay(replay)


def clear(state: State, message: None, context: Any) -> Outcome:
    for table in state.tables.values():
        for key in list(table.keys()):
            table.remove(key)
    return Outcome(models.TaskLifecycleResponse())


async def test_memory_equals_the_database_and_events_lead_to_the_lists(postgres_url: str) -> None:
    async with serving(postgres_url) as server:
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(rounds=ROUNDS)
        def every(rounds: list[Any]) -> None:
            asyncio.run_coroutine_threadsafe(run(server, rounds), loop).result()

        await asyncio.to_thread(every)
        assert server.now > 0
