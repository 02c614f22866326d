"""The processes behind a part: what it started ends with it, also after a supervisor that was killed itself.

Every part leads a session of its own. What it starts stays in that session, unless it asks the system
for another one (PostgreSQL's backends do): those are found as descendants.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

_SAME_SECONDS = 1.0
_ROUNDS = 20
_POLL = 0.02
_GONE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Mark:
    """What a pid file says. The start time (s since 1970) tells our process from a later one of the same number."""

    pid: int
    started: float


def note(file: Path, pid: int) -> None:
    """Write the pid file of a process just started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        file.write_text(json.dumps({"pid": pid, "started": psutil.Process(pid).create_time()}))


def kill_all(leader: int) -> None:
    """SIGKILL a living process, its session and its descendants; the leader first, so that it starts no more."""
    family = _descendants(leader)
    for process in _present(leader), *family:
        _kill(process)
    kill_orphans(leader)


def kill_orphans(session: int) -> None:
    """SIGKILL what is left of a session."""
    for _ in range(_ROUNDS):
        rest = _members(session)
        if not rest:
            return
        for process in rest:
            _kill(process)
        _await_ends(rest, 0.1)


def sweep(folder: Path) -> list[str]:
    """End what the pid files of a folder still name, and wait until it is gone. The names of what was found."""
    found = []
    for file in sorted(folder.glob("*.pid")):
        mark = _read(file)
        if mark is not None and (processes := _left_of(mark)):
            found.append(file.stem)
            for process in processes:
                _kill(process)
            kill_orphans(mark.pid)
            _await_ends(processes, _GONE_SECONDS)
        file.unlink(missing_ok=True)
    return found


def lock(file: Path) -> IO[str] | None:
    """Hold the lock of a folder for as long as the answer is kept open; None if another process has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    held = file.open("a")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        return None
    return held


def _left_of(mark: Mark) -> Sequence[psutil.Process]:
    """The process marked and its family, or its orphans; nothing if the number has another owner by now."""
    leader = _present(mark.pid)
    if leader is None:
        return [process for process in _members(mark.pid) if _started(process) >= mark.started - _SAME_SECONDS]
    if abs(_started(leader) - mark.started) > _SAME_SECONDS:
        return []
    return [leader, *_descendants(mark.pid), *_members(mark.pid)]


def _members(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(psutil.Process(pid))
    return found


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _present(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    return None


def _await_ends(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until they have ended. Zombies have: whoever adopted them may never ask for their status."""
    deadline = time.monotonic() + seconds
    while any(_present(process.pid) for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _started(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return process.create_time()
    return 0.0


def _kill(process: psutil.Process | None) -> None:
    if process is not None:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _read(file: Path) -> Mark | None:
    try:
        content = json.loads(file.read_text())
        return Mark(int(content["pid"]), float(content["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
