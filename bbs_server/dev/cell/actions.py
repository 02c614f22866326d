"""The nine kinds of action, each a coroutine: it returns when the action succeeded and raises StepFailed else."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
from bbs_protos import models_pb2 as models

from bbs_server.dev.cell.sandbox import Limits, Sandbox, StepFailed

_TRANSFER_TIMEOUT = httpx.Timeout(30.0, read=300.0)


async def perform(action: models.Action, sandbox: Sandbox) -> None:
    """Run an action tree. Cancelling it ends all its processes."""
    for name, run in KINDS.items():
        if action.HasField(name):  # type: ignore[arg-type]
            await run(getattr(action, name), sandbox)
            return
    raise StepFailed("an action without any content")


async def _run(action: models.RunAction, sandbox: Sandbox) -> None:
    own = {variable.name: variable.value for variable in action.env}
    limits = Limits(action.resource_limits.nofile if action.resource_limits.HasField("nofile") else None)
    environment = {**sandbox.environment, **own}
    silent = action.suppress_log_output
    status = await sandbox.run(
        action.path, list(action.args), action.dir, environment, limits, action.log_source, silent
    )
    if status:
        prefix = f"{action.log_source}: " if action.log_source else ""
        raise StepFailed(f"{prefix}Exited with status {status}")


async def _timeout(action: models.TimeoutAction, sandbox: Sandbox) -> None:
    seconds = action.timeout_ms / 1000
    try:
        # Not `wait_for`: it may swallow the cancellation that ends a container.
        async with asyncio.timeout(seconds):
            await perform(action.action, sandbox)
    except TimeoutError:
        raise StepFailed(f"exceeded {seconds:g}s timeout") from None


async def _emit_progress(action: models.EmitProgressAction, sandbox: Sandbox) -> None:
    if action.start_message:
        sandbox.log(action.log_source, action.start_message)
    try:
        await perform(action.action, sandbox)
    except StepFailed as problem:
        if action.failure_message_prefix:
            sandbox.log(action.log_source, f"{action.failure_message_prefix}: {problem}")
        raise
    if action.success_message:
        sandbox.log(action.log_source, action.success_message)


async def _try(action: models.TryAction, sandbox: Sandbox) -> None:
    try:
        await perform(action.action, sandbox)
    except StepFailed as problem:
        sandbox.log(action.log_source, f"ignored: {problem}")


async def _serial(action: models.SerialAction, sandbox: Sandbox) -> None:
    for part in action.actions:
        await perform(part, sandbox)


async def _parallel(action: models.ParallelAction, sandbox: Sandbox) -> None:
    """All run to their end; the first failure is the failure."""
    results = await all_of(perform(part, sandbox) for part in action.actions)
    problems = [result for result in results if isinstance(result, StepFailed)]
    if problems:
        raise problems[0]


async def _codependent(action: models.CodependentAction, sandbox: Sandbox) -> None:
    await together(perform(part, sandbox) for part in action.actions)


async def together(parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all until one ends, then end the others. Any end is a failure, since all should live on."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(tasks)
    problem = next((task.exception() for task in done if task.exception()), None)
    raise problem if isinstance(problem, StepFailed) else StepFailed(str(problem or "Codependent step exited"))


async def all_of(parts: Iterable[Awaitable[None]]) -> list[BaseException | None]:
    """Run all to their end; cancelling this cancels all and waits for them."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[None]] | list[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _download(action: models.DownloadAction, sandbox: Sandbox) -> None:
    name = action.artifact or "artifact"
    source = getattr(action, "from")
    target = sandbox.path(action.to)
    with tempfile.NamedTemporaryFile(prefix="download-") as file:
        digest = hashlib.new(action.checksum_algorithm) if action.checksum_algorithm else None
        try:
            async with (
                httpx.AsyncClient(timeout=_TRANSFER_TIMEOUT, follow_redirects=True) as http,
                http.stream("GET", source) as answer,
            ):
                answer.raise_for_status()
                async for chunk in answer.aiter_bytes():
                    file.write(chunk)
                    if digest:
                        digest.update(chunk)
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            raise StepFailed(f"Downloading {name} failed: {problem}") from problem
        file.flush()
        if digest and digest.hexdigest() != action.checksum_value.lower():
            raise StepFailed(f"Downloading {name} failed: checksum mismatch")
        await asyncio.to_thread(_unpack, Path(file.name), target)
    sandbox.log(action.log_source, f"Downloaded {name}")


def _unpack(file: Path, target: Path) -> None:
    """Archives are unpacked into the target folder, anything else becomes the target file."""
    try:
        if tarfile.is_tarfile(file):
            target.mkdir(parents=True, exist_ok=True)
            with tarfile.open(file) as archive:
                _extract(archive, target)
        elif zipfile.is_zipfile(file):
            target.mkdir(parents=True, exist_ok=True)
            shutil.unpack_archive(file, target, "zip")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as problem:
        raise StepFailed(f"Unpacking failed: {problem}") from problem


def _extract(archive: tarfile.TarFile, target: Path) -> None:
    """Only files that stay in the target. Python before 3.11.4 does not know extraction filters."""
    if hasattr(tarfile, "data_filter"):
        archive.extractall(target, filter="data")
        return
    root = target.resolve()
    for member in archive.getmembers():
        if not (root / member.name).resolve().is_relative_to(root) or not (member.isfile() or member.isdir()):
            raise StepFailed(f"Unpacking failed: {member.name} does not stay in the folder")
    archive.extractall(target)


async def _upload(action: models.UploadAction, sandbox: Sandbox) -> None:
    name = action.artifact or "artifact"
    source = sandbox.path(getattr(action, "from"))
    if not source.exists():
        raise StepFailed(f"Uploading {name} failed: no such file: {getattr(action, 'from')}")
    body = await asyncio.to_thread(_packed if source.is_dir() else Path.read_bytes, source)
    try:
        async with httpx.AsyncClient(timeout=_TRANSFER_TIMEOUT) as http:
            (await http.post(action.to, content=body)).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise StepFailed(f"Uploading {name} failed: {problem}") from problem
    sandbox.log(action.log_source, f"Uploaded {name}")


def _packed(folder: Path) -> bytes:
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            archive.add(folder, arcname=".")
        file.seek(0)
        return file.read()


KINDS: Mapping[str, Callable[[Any, Sandbox], Awaitable[None]]] = {
    "download_action": _download,
    "upload_action": _upload,
    "run_action": _run,
    "timeout_action": _timeout,
    "emit_progress_action": _emit_progress,
    "try_action": _try,
    "parallel_action": _parallel,
    "serial_action": _serial,
    "codependent_action": _codependent,
}
"""In the order in which the reference looks at a wrapper's fields."""
