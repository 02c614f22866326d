"""Actions as a development cell runs them: real processes in a scratch folder."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp.web as web
import pytest
from bbs_protos import models_pb2 as models

from bbs_server.dev.cell import health
from bbs_server.dev.cell.actions import perform
from bbs_server.dev.cell.sandbox import Sandbox, StepFailed


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    folder = tmp_path / "scratch"
    (folder / "tmp").mkdir(parents=True)
    return Sandbox(folder, tmp_path / "log", {"GREETING": "hello"})


def sh(script: str, **other: object) -> models.Action:
    run = models.RunAction(path="sh", args=["-c", script], user="vcap", log_source="APP", **other)  # type: ignore[arg-type]
    return models.Action(run_action=run)


def serial(*parts: models.Action) -> models.Action:
    return models.Action(serial_action=models.SerialAction(actions=parts))


def parallel(*parts: models.Action) -> models.Action:
    return models.Action(parallel_action=models.ParallelAction(actions=parts))


def codependent(*parts: models.Action) -> models.Action:
    return models.Action(codependent_action=models.CodependentAction(actions=parts))


async def reason(action: models.Action, sandbox: Sandbox) -> str:
    with pytest.raises(StepFailed) as problem:
        await perform(action, sandbox)
    return str(problem.value)


async def test_a_run_action_sees_its_environment_and_folder_and_is_logged(sandbox: Sandbox) -> None:
    own = [models.EnvironmentVariable(name="OWN", value="mine")]
    await perform(sh('echo "$GREETING $OWN"; pwd; echo out > here', dir="/work", env=own), sandbox)
    assert (sandbox.folder / "work" / "here").read_text() == "out\n"
    log = sandbox.log_path.read_text()
    assert "[APP] hello mine\n" in log
    assert f"[APP] {sandbox.folder}/work\n" in log


@pytest.mark.parametrize(
    ("script", "text"), [("exit 3", "APP: Exited with status 3"), ("kill -9 $$", "APP: Exited with status 137")]
)
async def test_an_exit_status_is_the_reason(sandbox: Sandbox, script: str, text: str) -> None:
    assert await reason(sh(script), sandbox) == text


async def test_a_missing_program_is_said_so(sandbox: Sandbox) -> None:
    action = models.Action(run_action=models.RunAction(path="/no/such", user="u"))
    assert "cannot run /no/such" in await reason(action, sandbox)


async def test_the_open_files_limit_is_applied(sandbox: Sandbox) -> None:
    await perform(sh("ulimit -n", resource_limits=models.ResourceLimits(nofile=77)), sandbox)
    assert "[APP] 77\n" in sandbox.log_path.read_text()


async def test_too_much_memory_ends_the_process(sandbox: Sandbox) -> None:
    sandbox.memory_mb = 50
    hog = models.RunAction(path="python3", args=["-c", "x = b'x' * 2**28; import time; time.sleep(60)"], user="u")
    assert "out of memory" in await reason(models.Action(run_action=hog), sandbox)


async def test_serial_stops_at_the_first_failure(sandbox: Sandbox) -> None:
    assert await reason(serial(sh("touch a"), sh("exit 1"), sh("touch b")), sandbox) == "APP: Exited with status 1"
    assert sorted(os.listdir(sandbox.folder)) == ["a", "tmp"]


async def test_parallel_runs_all_to_the_end(sandbox: Sandbox) -> None:
    # Each waits for the other: only together can they end.
    first, second = sh("touch a; while ! test -e b; do :; done"), sh("touch b; while ! test -e a; do :; done; exit 4")
    assert await reason(parallel(first, second), sandbox) == "APP: Exited with status 4"


async def test_codependent_ends_the_others_when_one_ends(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    assert await reason(codependent(sh("sleep 60"), sh("exit 0")), sandbox) == "Codependent step exited"
    assert time.monotonic() - begin < 15
    assert not sandbox.running


async def test_a_timeout_ends_its_action(sandbox: Sandbox) -> None:
    action = models.Action(timeout_action=models.TimeoutAction(action=sh("sleep 60"), timeout_ms=200))
    assert await reason(action, sandbox) == "exceeded 0.2s timeout"
    assert not sandbox.running


async def test_try_ignores_a_failure_and_emit_progress_tells(sandbox: Sandbox) -> None:
    progress = models.EmitProgressAction(action=sh("exit 2"), start_message="now", failure_message_prefix="sadly")
    wrapped = models.Action(emit_progress_action=progress)
    await perform(models.Action(try_action=models.TryAction(action=wrapped)), sandbox)
    log = sandbox.log_path.read_text()
    assert "now\n" in log
    assert "sadly: APP: Exited with status 2\n" in log


async def test_a_cancelled_action_leaves_no_process(sandbox: Sandbox) -> None:
    task = asyncio.create_task(perform(sh("touch started; sleep 60"), sandbox))
    async with asyncio.timeout(30):
        while not (sandbox.folder / "started").exists():
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not sandbox.running


@pytest.fixture
async def files() -> AsyncIterator[tuple[str, dict[str, bytes]]]:
    """A file server: GET what is there, POST adds."""
    content: dict[str, bytes] = {}

    async def get(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return web.Response(body=content[name]) if name in content else web.Response(status=404)

    async def post(request: web.Request) -> web.Response:
        content[request.match_info["name"]] = await request.read()
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/{name}", get), web.post("/{name}", post)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", content
    await runner.cleanup()


def download(url: str, to: str, **other: str) -> models.Action:
    fields = {"artifact": "droplet", "from": url, "to": to, "user": "vcap", **other}
    return models.Action(download_action=models.DownloadAction(**fields))  # type: ignore[arg-type]


async def test_downloads_unpack_archives_and_keep_files(sandbox: Sandbox, files: tuple[str, dict[str, bytes]]) -> None:
    url, content = files
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        info = tarfile.TarInfo("inside.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ok"))
    content.update(tgz=archive.getvalue(), plain=b"plain")
    checked = {"checksum_algorithm": "sha256", "checksum_value": hashlib.sha256(b"plain").hexdigest()}
    await perform(serial(download(f"{url}/tgz", "/app"), download(f"{url}/plain", "/bin/x", **checked)), sandbox)
    assert (sandbox.folder / "app" / "inside.txt").read_text() == "ok"
    assert (sandbox.folder / "bin" / "x").read_text() == "plain"


async def test_a_failed_download_says_why(sandbox: Sandbox, files: tuple[str, dict[str, bytes]]) -> None:
    url, content = files
    content["plain"] = b"plain"
    assert "404" in await reason(download(f"{url}/none", "/x"), sandbox)
    wrong = {"checksum_algorithm": "md5", "checksum_value": "00"}
    assert (
        await reason(download(f"{url}/plain", "/x", **wrong), sandbox)
        == "Downloading droplet failed: checksum mismatch"
    )


async def test_an_upload_sends_the_file(sandbox: Sandbox, files: tuple[str, dict[str, bytes]]) -> None:
    url, content = files
    upload = models.UploadAction(**{"artifact": "result", "from": "/out", "to": f"{url}/up", "user": "vcap"})  # type: ignore[arg-type]
    await perform(serial(sh("echo done > out"), models.Action(upload_action=upload)), sandbox)
    assert content["up"] == b"done\n"


async def test_an_action_is_cancelled_when_a_part_with_a_timeout_has_just_ended(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container is deleted when its action has ended."""
    run = Sandbox.run

    async def run_and_cancel(*arguments: Any) -> int:
        status = await run(*arguments)
        asyncio.get_running_loop().call_soon(life.cancel)
        return status

    monkeypatch.setattr(Sandbox, "run", run_and_cancel)
    limited = models.Action(timeout_action=models.TimeoutAction(action=sh("true"), timeout_ms=60_000))
    life = asyncio.create_task(perform(serial(limited, sh("sleep 120")), sandbox))
    await asyncio.wait([life], timeout=60)
    sandbox.end_all()
    assert life.cancelled()


async def test_health_checks_are_cancelled_when_a_connection_has_just_been_made(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = asyncio.open_connection

    async def connect_and_cancel(*arguments: Any) -> Any:
        streams = await connect(*arguments)
        asyncio.get_running_loop().call_soon(checking.cancel)
        return streams

    monkeypatch.setattr(asyncio, "open_connection", connect_and_cancel)
    listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    check = models.Check(tcp_check=models.TCPCheck(port=port, connect_timeout_ms=60_000))
    lrp = models.DesiredLRP(check_definition=models.CheckDefinition(checks=[check]))
    # The next check never ends.
    checking = asyncio.create_task(health.passes([*health.checks_of(lrp, sandbox), asyncio.Event().wait]))  # type: ignore[list-item]
    await asyncio.wait([checking], timeout=10)
    listener.close()
    assert checking.cancelled()
