"""When a crashed instance may be started again (lrp-convergence.md section 7). All times in ns.

==============  ==================================================================
crash count     restarted
==============  ==================================================================
below 3         at once
3 to 199        30 s after the crash, doubled with each crash up to 16 min
from 200 on     never
==============  ==================================================================
"""

from __future__ import annotations

from bbs_server.core.times import SECOND

IMMEDIATE_RESTARTS = 3
MOST_RESTARTS = 200
BASE_WAIT = 30 * SECOND
LONGEST_WAIT = 16 * 60 * SECOND
_MOST_DOUBLINGS = 5

FORGIVEN_AFTER = 5 * 60 * SECOND
"""An instance that was running for longer than this begins to count its crashes anew."""


def may_restart(now: int, since: int, crash_count: int) -> bool:
    """Whether an instance that crashed at `since` for the `crash_count`-th time may be restarted at `now`."""
    if crash_count < IMMEDIATE_RESTARTS:
        return True
    return crash_count < MOST_RESTARTS and since + wait(crash_count) <= now


def wait(crash_count: int) -> int:
    """How long after its crash an instance has to wait, in ns, if it may be restarted at all."""
    if crash_count < IMMEDIATE_RESTARTS:
        return 0
    doublings = min(crash_count - IMMEDIATE_RESTARTS, _MOST_DOUBLINGS)
    return min(BASE_WAIT << doublings, LONGEST_WAIT)


def at_once(crash_count: int) -> bool:
    """Whether the crash with this number leads straight back to UNCLAIMED."""
    return may_restart(0, 0, crash_count)


def next_crash_count(crash_count: int, running: bool, since: int, now: int) -> int:
    """The number of the next crash. A claimed instance never forgets its crashes (actual-lrps.md 4.4)."""
    return 1 if running and now - since > FORGIVEN_AFTER else crash_count + 1
