"""Restart back-off (lrp-convergence.md section 7)."""

import pytest

from bbs_server.core.restarts import at_once, may_restart, next_crash_count, wait

SECOND = 10**9
CRASHED_AT = 1_700_000_000 * SECOND


@pytest.mark.parametrize(
    ("crash_count", "seconds"),
    [(3, 30), (4, 60), (5, 120), (6, 240), (7, 480), (8, 960), (9, 960), (150, 960), (199, 960)],
)
def test_waits_grow_up_to_sixteen_minutes(crash_count: int, seconds: int) -> None:
    due = CRASHED_AT + seconds * SECOND
    assert wait(crash_count) == seconds * SECOND
    assert not may_restart(due - 1, CRASHED_AT, crash_count)
    assert may_restart(due, CRASHED_AT, crash_count)


@pytest.mark.parametrize("crash_count", [0, 1, 2])
def test_first_crashes_are_restarted_at_once(crash_count: int) -> None:
    assert wait(crash_count) == 0
    assert may_restart(CRASHED_AT, CRASHED_AT, crash_count)
    assert at_once(crash_count)


@pytest.mark.parametrize("crash_count", [200, 201, 5000])
def test_never_after_two_hundred_crashes(crash_count: int) -> None:
    assert not may_restart(CRASHED_AT + 10**18, CRASHED_AT, crash_count)
    assert not at_once(crash_count)


def test_third_crash_is_not_restarted_at_once() -> None:
    assert not at_once(3)


@pytest.mark.parametrize(
    ("running", "ran_for", "expected"),
    [
        (True, 300 * SECOND, 8),
        (True, 300 * SECOND + 1, 1),
        (False, 300 * SECOND + 1, 8),
        (False, 0, 8),
    ],
)
def test_crashes_are_forgiven_after_more_than_five_minutes_of_running(
    running: bool, ran_for: int, expected: int
) -> None:
    assert next_crash_count(7, running, CRASHED_AT - ran_for, CRASHED_AT) == expected
