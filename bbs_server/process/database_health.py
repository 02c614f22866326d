"""The rounds of the database health check (server.md section 16)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from bbs_server.process.durations import format_duration
from bbs_server.process.group import Member, Ready, pause, unless
from bbs_server.process.lager import Logger
from bbs_server.store.health import HealthCheck, Unhealthy


class DatabaseLost(Exception):
    """All attempts of a round failed; the text is theirs, one per line."""


class Keys(Protocol):
    """The keys of a configuration that say how to check."""

    @property
    def health_check_interval(self) -> int: ...

    @property
    def health_check_timeout(self) -> int: ...

    @property
    def health_check_failure_threshold(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often and how patiently the database is asked. Durations in ns."""

    interval: int
    timeout: int
    threshold: int

    @classmethod
    def configured(cls, keys: Keys, defaults: Keys) -> Rounds:
        """What is not positive means the default: there is no round without an attempt, nor one without time."""
        given, default = (
            (source.health_check_interval, source.health_check_timeout, source.health_check_failure_threshold)
            for source in (keys, defaults)
        )
        return cls(*(value if value > 0 else otherwise for value, otherwise in zip(given, default, strict=True)))


def database_health(check: HealthCheck, rounds: Rounds, migrated: asyncio.Event, logger: Logger) -> Member:
    """A member that is idle until the migrations are done and ends with DatabaseLost when the database stays away."""
    log = logger.session("db-health-check-runner")

    async def run(ready: Ready, stopping: asyncio.Event) -> None:
        ready()
        log.info("waiting-for-db-migrations")
        await unless(stopping, migrated.wait())
        log.info("starting")
        while await pause(stopping, rounds.interval):
            await unless(stopping, _round(check, rounds, log))
        log.info("exiting")

    return Member("db-healthcheck", run)


async def _round(check: HealthCheck, rounds: Rounds, log: Logger) -> None:
    failures: list[str] = []
    limit = format_duration(rounds.timeout)
    for attempt in range(1, rounds.threshold + 1):
        try:
            await check.attempt(rounds.timeout / 1e9, limit)
        except Unhealthy as problem:
            timed_out = str(problem).startswith("timed out")
            log.error("health-check-timed-out" if timed_out else "failed-health-check", problem, attempt=attempt)
            failures.append(str(problem))
        else:
            log.debug("health-check-succeeded")
            return
    log.error("health-check-attempts-exceeded", "\n".join(failures), **{"max-attempts": rounds.threshold})
    log.error("database-failure-detected-restarting-bbs", failures[-1])
    raise DatabaseLost("\n".join(failures))
