"""Whether an instance is healthy: its monitor action, or the checks of its check definition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
from bbs_protos import models_pb2 as models

from bbs_server.dev.cell.actions import perform
from bbs_server.dev.cell.sandbox import Sandbox, StepFailed

UNHEALTHY_SECONDS = 0.5
"""Pause between checks until the instance is healthy."""

HEALTHY_SECONDS = 5.0
"""Pause between checks afterwards."""

_CONNECT_SECONDS = 1.0

Check = Callable[[], Awaitable[None]]


def checks_of(lrp: models.DesiredLRP, sandbox: Sandbox) -> list[Check]:
    """What must pass; nothing means that running is healthy enough. The check definition goes first."""
    if lrp.check_definition.checks:
        return [_check(check, sandbox) for check in lrp.check_definition.checks]
    if lrp.HasField("monitor"):
        return [lambda: perform(lrp.monitor, sandbox)]
    return []


def readiness_of(lrp: models.DesiredLRP, sandbox: Sandbox) -> list[Check]:
    """What decides whether the instance is routable."""
    return [_check(check, sandbox) for check in lrp.check_definition.readiness_checks]


async def passes(checks: list[Check]) -> str:
    """Empty when all pass, else why not."""
    for check in checks:
        try:
            await check()
        except StepFailed as problem:
            return str(problem)
    return ""


def _check(check: models.Check, sandbox: Sandbox) -> Check:
    if check.HasField("http_check"):
        return lambda: _http(check.http_check, sandbox)
    return lambda: _tcp(check.tcp_check, sandbox)


async def _tcp(check: models.TCPCheck, sandbox: Sandbox) -> None:
    port = sandbox.ports.get(check.port, check.port)
    seconds = check.connect_timeout_ms / 1000 or _CONNECT_SECONDS
    try:
        # Not `wait_for`: it may swallow the cancellation that ends a container.
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError) as problem:
        raise StepFailed(f"failed to make TCP connection to 127.0.0.1:{port}: {problem}") from problem
    writer.close()


async def _http(check: models.HTTPCheck, sandbox: Sandbox) -> None:
    port = sandbox.ports.get(check.port, check.port)
    seconds = check.request_timeout_ms / 1000 or _CONNECT_SECONDS
    url = f"http://127.0.0.1:{port}{check.path or '/'}"
    try:
        async with httpx.AsyncClient(timeout=seconds, trust_env=False) as http:
            answer = await http.get(url)
    except httpx.HTTPError as problem:
        raise StepFailed(f"failed to make HTTP request to {url}: {problem}") from problem
    if answer.status_code != httpx.codes.OK:
        raise StepFailed(f"failed to make HTTP request to {url}: received status code {answer.status_code}")
