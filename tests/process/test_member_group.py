"""Members start in order, stop in reverse, and the exit trace says how (server.md 3.2, 5, 6)."""

from __future__ import annotations

import asyncio

import pytest

from bbs_server.process.group import GroupFailed, Member, Ready, at_once, pause, run_group, unless


class Diary(list[str]):
    def member(self, name: str, *, fails: BaseException | None = None, ready: bool = True) -> Member:
        """Fails as soon as it is ready, or runs until it is stopped."""

        async def run(tell: Ready, stopping: asyncio.Event) -> None:
            self.append(f"+{name}")
            if ready:
                tell()
            if fails is not None:
                await asyncio.sleep(0)
                raise fails
            await stopping.wait()
            self.append(f"-{name}")

        return Member(name, run)


async def run(members: list[Member], interrupted: asyncio.Event, diary: Diary) -> None:
    async with asyncio.timeout(10):
        await run_group(members, interrupted, lambda: diary.append("started"))


async def test_an_interrupted_group_stops_in_reverse() -> None:
    diary, interrupted = Diary(), asyncio.Event()
    members = [diary.member("a"), diary.member("b"), at_once("c", interrupted.set)]
    await run(members, interrupted, diary)
    assert diary[:2] == ["+a", "+b"]
    assert diary[-3:-1] == ["-b", "-a"] or diary[-2:] == ["-b", "-a"]
    assert diary.count("started") == 1


async def test_a_member_that_never_gets_ready_holds_up_the_rest() -> None:
    diary, interrupted = Diary(), asyncio.Event()
    group = asyncio.create_task(run([diary.member("lock", ready=False), diary.member("server")], interrupted, diary))
    await asyncio.sleep(0.05)
    assert diary == ["+lock"]
    interrupted.set()
    await group
    # Quirk: an aborted start is announced as started before the end.
    assert diary == ["+lock", "-lock", "started"]


async def test_the_culprit_comes_first_in_the_trace() -> None:
    diary = Diary()
    members = [diary.member("a"), diary.member("lock", fails=ValueError("lost lock")), diary.member("c")]
    with pytest.raises(GroupFailed) as failure:
        await run(members, asyncio.Event(), diary)
    assert str(failure.value).splitlines() == [
        "Exit trace for group:",
        "lock exited with error: lost lock",
        *(["c exited with nil"] if "+c" in diary else []),
        "a exited with nil",
    ]


async def test_a_member_that_ends_without_error_ends_the_group() -> None:
    async def run_short(ready: Ready, stopping: asyncio.Event) -> None:
        ready()

    diary = Diary()
    await run([diary.member("a"), Member("short", run_short)], asyncio.Event(), diary)
    assert "-a" in diary


async def test_work_is_cancelled_when_the_member_shall_stop() -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().call_soon(stopping.set)
    assert await unless(stopping, asyncio.sleep(60, "done")) is None
    assert await unless(asyncio.Event(), asyncio.sleep(0, "done")) == "done"


async def test_pauses_end_early() -> None:
    stopping = asyncio.Event()
    assert await pause(stopping, 1_000_000)
    stopping.set()
    assert not await pause(stopping, 60_000_000_000)
