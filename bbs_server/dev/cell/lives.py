"""What happens in a container from its start to its end, once the BBS let it run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

from bbs_protos import models_pb2 as models

from bbs_server.dev.cell import health
from bbs_server.dev.cell.actions import perform, together
from bbs_server.dev.cell.containers import Container
from bbs_server.dev.cell.sandbox import StepFailed

RESULT_LIMIT = 51200
"""Bytes of a task's result file that are read."""

_NOT_APPLIED = ("volume_mounts", "egress_rules", "volume_mounted_files", "image_username")
"""Parts of a definition that need a container."""


def task_environment(definition: models.TaskDefinition) -> dict[str, str]:
    return {variable.name: variable.value for variable in definition.environment_variables}


def lrp_environment(lrp: models.DesiredLRP, container: Container, cell_id: str) -> dict[str, str]:
    """The definition's variables and those a container would bring; ports are added by `with_ports`."""
    own = {variable.name: variable.value for variable in lrp.environment_variables}
    return {
        **own,
        "INSTANCE_GUID": container.guid,
        "INSTANCE_INDEX": str(container.body["index"]),
        "CF_INSTANCE_GUID": container.guid,
        "CF_INSTANCE_INDEX": str(container.body["index"]),
        "CF_INSTANCE_IP": "127.0.0.1",
        "CF_INSTANCE_INTERNAL_IP": "127.0.0.1",
        "CELL_ID": cell_id,
    }


def with_ports(environment: Mapping[str, str], ports: Mapping[int, int]) -> dict[str, str]:
    """Without a network of its own an instance must listen on its host port: `PORT` says which."""
    if not ports:
        return dict(environment)
    first = next(iter(ports.values()))
    pairs = [{"internal": host, "external": host} for host in ports.values()]
    extra = {
        "PORT": str(first),
        "CF_INSTANCE_PORT": str(first),
        "CF_INSTANCE_ADDR": f"127.0.0.1:{first}",
        "CF_INSTANCE_PORTS": json.dumps(pairs),
        **{f"PORT_{container_port}": str(host) for container_port, host in ports.items()},
    }
    return {**environment, **extra}


def say_what_is_missing(definition: models.TaskDefinition | models.DesiredLRP, container: Container) -> None:
    """A line in the instance's log for everything that only a container could give."""
    asked = [name for name in _NOT_APPLIED if getattr(definition, name)]
    container.sandbox.log("", f"development cell: runs {definition.root_fs} as plain processes, without isolation")
    if asked:
        container.sandbox.log("", f"development cell: not applied, as it needs a container: {', '.join(asked)}")


async def task_life(definition: models.TaskDefinition, container: Container) -> None:
    await _fetch(_layers(definition.image_layers), definition.cached_dependencies, container)
    container.began = True
    await perform(definition.action, container.sandbox)


async def lrp_life(lrp: models.DesiredLRP, container: Container, healthy: Callable[[], None]) -> None:
    """Setup, then action, sidecars and health checks together; `healthy` is called once it runs."""
    await _fetch(_layers(lrp.image_layers), lrp.cached_dependencies, container)
    container.began = True
    if lrp.HasField("setup"):
        await perform(lrp.setup, container.sandbox)
    parts = [_main(lrp.action, container), _watch(lrp, container, healthy)]
    parts += [_main(sidecar.action, container) for sidecar in lrp.sidecars]
    await together(parts)


async def _main(action: models.Action, container: Container) -> None:
    """A process that should live for ever: its end is a crash, whatever its status."""
    await perform(action, container.sandbox)
    source = action.run_action.log_source
    raise StepFailed(f"{source}: Exited with status 0" if source else "Exited with status 0")


async def _watch(lrp: models.DesiredLRP, container: Container, healthy: Callable[[], None]) -> None:
    checks = health.checks_of(lrp, container.sandbox)
    await _become_healthy(checks, lrp.start_timeout_ms / 1000)
    readiness = health.readiness_of(lrp, container.sandbox)
    container.routable = not await health.passes(readiness)
    healthy()
    while True:
        await asyncio.sleep(health.HEALTHY_SECONDS)
        problem = await health.passes(checks)
        if problem:
            raise StepFailed(f"Instance became unhealthy: {problem}")
        routable = not await health.passes(readiness)
        if routable is not container.routable:
            container.routable = routable
            healthy()


async def _become_healthy(checks: list[health.Check], seconds: float) -> None:
    problem = ""
    try:
        async with asyncio.timeout(seconds or None):
            while problem := await health.passes(checks):
                await asyncio.sleep(health.UNHEALTHY_SECONDS)
    except TimeoutError:
        raise StepFailed(f"Instance never healthy after {seconds:g}s: {problem}") from None


async def _fetch(
    layers: Sequence[models.DownloadAction], dependencies: Sequence[models.CachedDependency], container: Container
) -> None:
    for download in (*layers, *map(_dependency, dependencies)):
        await perform(models.Action(download_action=download), container.sandbox)


def _dependency(dependency: models.CachedDependency) -> models.DownloadAction:
    return models.DownloadAction(
        artifact=dependency.name,
        to=dependency.to,
        log_source=dependency.log_source,
        checksum_algorithm=dependency.checksum_algorithm,
        checksum_value=dependency.checksum_value,
        **{"from": getattr(dependency, "from")},
    )


def _layers(layers: Sequence[models.ImageLayer]) -> list[models.DownloadAction]:
    algorithms = {models.ImageLayer.SHA256: "sha256", models.ImageLayer.SHA512: "sha512"}
    return [
        models.DownloadAction(
            artifact=layer.name,
            to=layer.destination_path,
            checksum_algorithm=algorithms.get(layer.digest_algorithm, ""),
            checksum_value=layer.digest_value,
            **{"from": layer.url},
        )
        for layer in layers
    ]
