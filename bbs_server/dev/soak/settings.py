"""How much of everything the soak has."""

from __future__ import annotations

CELLS = 20
PROCESSES = 80
INSTANCES = 5
"""Mean number of instances of a process."""

TASKS_PER_SECOND = 11.0
CONTROLLER_WRITES_PER_SECOND = 3.0
READS_PER_SECOND = 2.0
CRASHES_PER_SECOND = 0.3
CELL_EVENT_SECONDS = 8.0
"""Mean time between two cells that leave, vanish or lose everything."""

SYNC_SECONDS = 8.0
PRESENCE_TTL_SECONDS = 10
PRESENCE_SECONDS = 3.0
RESERVATION_SECONDS = 15.0
"""Time after which a container that could not be started is given up."""

APPS = "soak-apps"
TASKS = "soak-tasks"
ROUTER = "internal-router"
