"""Work that nobody waits for: failures are logged, lanes go on, nothing outlives the end."""

from __future__ import annotations

import asyncio

from bbs_server.effects.background import STARTS_PER_TURN, Background, Lanes, Turns


async def fail() -> None:
    raise RuntimeError("broken")


async def test_failures_are_logged(logged) -> None:
    background = Background(logged)
    await asyncio.wait([background.start(fail())])
    assert logged.lines == [("error", "background-work-failed", {"error": "RuntimeError('broken')"})]


async def test_closing_ends_what_runs(logged) -> None:
    background = Background(logged)
    task = background.start(asyncio.Event().wait())
    await background.close()
    assert task.cancelled()
    assert not logged.lines


async def test_a_lane_goes_on_after_a_failure_in_order_and_within_its_width(logged) -> None:
    background, done, begun = Background(logged), [], []
    gate, all_done = asyncio.Event(), asyncio.Event()
    lanes = Lanes(background, 2)

    async def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise RuntimeError("broken")
        await gate.wait()
        done.append(number)
        if len(done) == 5:
            all_done.set()

    for number in range(6):
        lanes.start("a", lambda number=number: work(number))
    for _ in range(10):
        await asyncio.sleep(0)
    assert begun == [0, 1, 2]
    gate.set()
    async with asyncio.timeout(5):
        await all_done.wait()
    assert begun == list(range(6))
    assert logged.actions() == ["background-work-failed"]
    lanes.start("a", lambda: work(6))
    for _ in range(10):
        await asyncio.sleep(0)
    assert 6 in done
    await background.close()


async def test_only_so_much_begins_in_one_turn() -> None:
    turn, begun = Turns(STARTS_PER_TURN), []

    async def work() -> None:
        await turn()
        begun.append(None)

    tasks = [asyncio.create_task(work()) for _ in range(10 * STARTS_PER_TURN)]
    await asyncio.sleep(0)
    assert len(begun) == STARTS_PER_TURN
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert len(begun) == 10 * STARTS_PER_TURN
