"""The master lock against a real Locket over mutual TLS: taken, waited for, lost, released."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import grpc
import pytest
from bbs_protos import locket_pb2 as pb
from silent_proxy import Proxy

from bbs_server.effects.lock import STANDBY_INTERVAL, LockLost, MasterLock
from bbs_server.effects.locket import Locket, LocketSettings, LocketUnreachable


class Pauses:
    """Stands in for the pause between two calls: goes on when the test says so."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = asyncio.Semaphore(0)
        self._go_on = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._begun.release()
        await self._go_on.acquire()

    async def begun(self) -> None:
        async with asyncio.timeout(10):
            await self._begun.acquire()

    def go_on(self) -> None:
        self._go_on.release()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def lock(locket_double, connect_locket, logged, pauses) -> MasterLock:
    return MasterLock(connect_locket(locket_double.address), "me", 15.9, 5.0, logged, pauses)


async def soon(awaitable):
    async with asyncio.timeout(10):
        return await awaitable


async def test_files_that_cannot_be_used_are_refused_at_once(certificates) -> None:
    ca, cert, key = (str(path) for path in (certificates.ca, certificates.client_cert, certificates.client_key))
    for files in ((ca, cert, str(certificates.stranger_key)), (key, cert, key), (ca, key, key), (ca, cert, "/no")):
        with pytest.raises((OSError, ValueError)):
            Locket(LocketSettings("127.0.0.1:9", *files))


async def test_a_free_lock_is_taken_at_once(locket_double, lock, logged) -> None:
    await soon(lock.acquire())
    request, metadata = locket_double.locks[0]
    assert request == pb.LockRequest(
        resource=pb.Resource(key="bbs", owner="me", type="lock", type_code=pb.LOCK), ttl_in_seconds=15
    )
    assert len(metadata["uuid"]) == 36
    assert [(level, action) for level, action, _ in logged.lines] == [("info", "started"), ("info", "acquired-lock")]
    assert logged.lines[0][2] == {
        "lock": {"key": "bbs", "owner": "me", "type": "lock", "type_code": 1},
        "ttl_in_seconds": 15,
    }


async def test_a_held_lock_is_waited_for(locket_double, lock, logged, pauses) -> None:
    locket_double.put_lock("other")
    acquiring = asyncio.create_task(lock.acquire())
    await pauses.begun()
    assert logged.actions() == ["started", "failed-to-acquire-lock"]
    data = logged.lines[1][2]
    assert data["lock-owner"] == "other"
    assert data["error"] == "rpc error: code = AlreadyExists desc = lock-collision"
    assert data["request-uuid"] == locket_double.locks[0][1]["uuid"]
    assert data["duration"] > 0
    pauses.go_on()
    await pauses.begun()
    assert len(logged.lines) == 2  # A collision is reported once.
    del locket_double.resources["bbs"]
    pauses.go_on()
    await soon(acquiring)
    assert logged.actions()[-1] == "acquired-lock"
    assert pauses.seconds == [STANDBY_INTERVAL, STANDBY_INTERVAL]
    assert locket_double.resources["bbs"].owner == "me"


async def test_other_refusals_are_logged_each_time(locket_double, lock, logged, pauses) -> None:
    locket_double.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "invalid-ttl")
    acquiring = asyncio.create_task(lock.acquire())
    await pauses.begun()
    pauses.go_on()
    await pauses.begun()
    assert logged.actions() == ["started", "failed-to-acquire-lock", "failed-to-acquire-lock"]
    assert "lock-owner" not in logged.lines[1][2]
    assert logged.lines[2][2]["error"] == "rpc error: code = InvalidArgument desc = invalid-ttl"
    acquiring.cancel()
    await asyncio.gather(acquiring, return_exceptions=True)


async def test_the_lock_is_renewed_completely(locket_double, lock, pauses) -> None:
    await soon(lock.acquire())
    keeping = asyncio.create_task(lock.keep())
    for _ in range(2):
        await pauses.begun()
        pauses.go_on()
    await pauses.begun()
    assert [request for request, _ in locket_double.locks] == [locket_double.locks[0][0]] * 3
    assert len({metadata["uuid"] for _, metadata in locket_double.locks}) == 3
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize(
    ("code", "text"),
    [(grpc.StatusCode.UNAVAILABLE, "Unavailable desc = gone"), (grpc.StatusCode.INTERNAL, "Internal desc = gone")],
)
async def test_any_failed_renewal_loses_the_lock(
    locket_double, lock, pauses, logged, code: grpc.StatusCode, text: str
) -> None:
    await soon(lock.acquire())
    locket_double.refusal = (code, "gone")
    pauses.go_on()
    with pytest.raises(LockLost) as loss:
        await soon(lock.keep())
    uuid = locket_double.locks[-1][1]["uuid"]
    assert str(loss.value) == f"lost lock (request failed), request-uuid {uuid}: rpc error: code = {text}"
    assert logged.actions()[-1] == "lost-lock"


async def test_a_collision_loses_the_lock(locket_double, lock, pauses) -> None:
    await soon(lock.acquire())
    locket_double.put_lock("usurper")
    pauses.go_on()
    with pytest.raises(LockLost, match="code = AlreadyExists desc = lock-collision"):
        await soon(lock.keep())


async def test_a_renewal_that_is_not_answered_loses_the_lock(locket_double, connect_locket, pauses) -> None:
    lock = MasterLock(connect_locket(locket_double.address), "me", 15, 0.2, sleep=pauses)
    await soon(lock.acquire())
    locket_double.hangs = True
    pauses.go_on()
    with pytest.raises(LockLost, match=r"lost lock \(request timed out\), .*DeadlineExceeded desc = context deadline"):
        await soon(lock.keep())


async def test_a_killed_locket_loses_the_lock_at_the_deadline(locket_double, connect_locket, pauses) -> None:
    lock = MasterLock(connect_locket(locket_double.address), "me", 15, 0.3, sleep=pauses)
    await soon(lock.acquire())
    await locket_double.stop()
    pauses.go_on()
    with pytest.raises(LockLost, match=r"lost lock \(request (timed out|failed)\)"):
        await soon(lock.keep())


async def test_release_frees_the_lock(locket_double, lock, logged) -> None:
    await soon(lock.acquire())
    await soon(lock.release())
    assert "bbs" not in locket_double.resources
    assert logged.actions()[-1] == "released-lock"


async def test_a_failed_release_is_only_logged(locket_double, lock, logged) -> None:
    locket_double.put_lock("other")
    await soon(lock.release())
    assert logged.lines[-1][1] == "failed-to-release-lock"
    assert logged.lines[-1][2]["error"] == "rpc error: code = AlreadyExists desc = lock-collision"
    assert locket_double.resources["bbs"].owner == "other"


async def test_a_locket_that_falls_silent_holds_a_release_up_for_ping_and_timeout(
    locket_double, connect_locket, logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bbs_server.effects.locket._LEAST_KEEPALIVE", 1)
    monkeypatch.setattr("bbs_server.effects.locket._KEEPALIVE_TIMEOUT", 1)
    proxy = Proxy(f"https://{locket_double.address}")
    await proxy.start()
    lock = MasterLock(connect_locket(f"127.0.0.1:{urlsplit(proxy.url).port}"), "me", 15, 5.0, logged)
    await soon(lock.acquire())
    proxy.silence()
    await soon(lock.release())
    assert logged.lines[-1][1] == "failed-to-release-lock"
    error = logged.lines[-1][2]["error"]
    assert error == "rpc error: code = Unavailable desc = keepalive ping failed to receive ACK within timeout"
    await proxy.close()


async def test_connecting(locket_double, connect_locket) -> None:
    locket = connect_locket(locket_double.address)
    await locket.connect(10)
    assert await soon(locket.fetch_presences(5)) == []


async def test_a_stranger_is_not_let_in(locket_double, connect_locket, certificates) -> None:
    locket = connect_locket(locket_double.address, certificates.stranger_cert, certificates.stranger_key)
    with pytest.raises(grpc.aio.AioRpcError):
        await soon(locket.fetch_presences(2))


async def test_nobody_there(connect_locket, closed_port: int) -> None:
    locket = connect_locket(f"127.0.0.1:{closed_port}")
    with pytest.raises(LocketUnreachable, match="context deadline exceeded"):
        await locket.connect(0.3)


class SlowCalls:
    """A Locket whose renewals take until the test says so; notes how calls ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ends: list[str] = []

    async def lock(self, *_: object) -> None:
        self.begun.set()
        await self.go_on.wait()
        self.ends.append("renewed")

    async def release(self, _: object) -> None:
        self.ends.append("released")


async def test_a_renewal_on_its_way_ends_before_the_release(pauses) -> None:
    """A Locket carries out what its client has given up: the lock would be there again, and nobody to renew it."""
    calls = SlowCalls()
    lock = MasterLock(calls, "me", 15.0, 5.0, sleep=pauses)
    keeping = asyncio.create_task(lock.keep())
    pauses.go_on()
    await soon(calls.begun.wait())
    keeping.cancel()
    await asyncio.wait([keeping])
    releasing = asyncio.create_task(lock.release())
    await asyncio.sleep(0)
    calls.go_on.set()
    await soon(releasing)
    assert calls.ends == ["renewed", "released"]
