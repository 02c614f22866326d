"""Replays recordings with servers on ports of a range: FOLDER FIRST COUNT, then what the replay.py there takes.

On its own, replay.py takes ports that the system also gives to others while a server is still on its way to them.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable

from bbs_server.dev.ports import is_free


def free_addresses(first: int, count: int) -> Callable[[], str]:
    """What gives the free addresses of the range in turn, so that none is given again soon."""
    ports = itertools.cycle(range(first, first + count))
    return lambda: f"127.0.0.1:{next(filter(is_free, ports))}"


def main() -> int:
    folder, first, count = sys.argv[1:4]
    sys.path.insert(0, folder)
    importlib.import_module("harness").free_address = free_addresses(int(first), int(count))
    replay = importlib.import_module("replay")  # Takes the name from harness, so it comes second.
    sys.argv[1:] = sys.argv[4:]
    status: int = replay.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
