"""A whole life of the real program on a real PostgreSQL: start, serve, standby, stop (server.md 3 to 7, 13 to 17)."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest
from bbs_protos import models_pb2 as models

from bbs_server.dev.ports import free_port

ROUTE = "/v1/ping"


async def post(program: Any, path: str, message: Any = None, **headers: str) -> bytes:
    async with program.client() as client:
        answer = await client.post(
            path, content=b"" if message is None else message.SerializeToString(), headers=headers
        )
    assert answer.status_code == 200
    return answer.content


async def test_start_serve_stop(servers: Any) -> None:
    program = await servers(not_a_key=1)
    await program.logged("bbs.started")
    assert await post(program, ROUTE) == b"\x08\x01"
    assert psutil.Process(program.process.pid).name() == "bbs"
    assert await program.stop() == 0
    messages = program.messages()
    milestones = [
        "bbs.starting",
        "bbs.ignored-unknown-configuration-keys",
        "bbs.report-interval",
        "bbs.locket-lock.started",
        "bbs.locket-lock.acquired-lock",
        "bbs.migration-manager.finished-migrations",
        "bbs.started",
        "bbs.locket-lock.released-lock",
        "bbs.exited",
    ]
    assert [message for message in messages if message in milestones] == milestones
    assert program.lines[messages.index("bbs.report-interval")]["data"] == {"value": "1m0s"}
    assert program.errors == ""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 0), (signal.SIGQUIT, 2), (signal.SIGHUP, -1)])
async def test_signals(servers: Any, how: signal.Signals, code: int) -> None:
    # A test run under nohup ignores SIGHUP, which a child inherits.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        program = await servers()
    finally:
        signal.signal(signal.SIGHUP, before)
    await program.logged("bbs.started")
    program.process.send_signal(signal.SIGUSR1)
    program.process.send_signal(signal.SIGUSR2)
    assert await post(program, ROUTE)
    assert await program.stop(how) == code


async def test_a_standby_refuses_connections_until_the_master_is_gone(servers: Any) -> None:
    master = await servers()
    await master.logged("bbs.started")
    standby = await servers(uuid="standby")
    await standby.logged("bbs.locket-lock.started")
    with pytest.raises(httpx.ConnectError):
        await post(standby, ROUTE)
    async with httpx.AsyncClient(trust_env=False) as client:
        health = await client.get(f"http://{standby.config['health_address']}/ping")
    assert (health.status_code, health.content) == (200, b"")
    assert "bbs.started" not in standby.messages()
    assert await master.stop() == 0
    await standby.logged("bbs.started")
    assert await post(standby, ROUTE)


async def test_a_standby_that_is_stopped_ends_without_error(servers: Any) -> None:
    master = await servers()
    await master.logged("bbs.started")
    standby = await servers(uuid="standby")
    await standby.logged("bbs.locket-lock.started")
    assert await standby.stop() == 0
    # Quirk: an aborted start is announced as started nevertheless.
    assert standby.messages()[-2:] == ["bbs.started", "bbs.exited"]


async def test_every_request_gets_503_until_the_state_is_loaded(servers: Any, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE configurations (id varchar(255) PRIMARY KEY, value varchar(255))")
    await connection.execute("BEGIN")
    await connection.execute("LOCK TABLE configurations IN EXCLUSIVE MODE")
    program = await servers()
    await program.logged("bbs.locket-lock.acquired-lock")
    async with program.client() as client:
        answers = [await _patiently(client, method, path) for method, path in (("POST", ROUTE), ("GET", "/nope"))]
    assert [(a.status_code, a.headers["content-length"], a.content) for a in answers] == [(503, "0", b"")] * 2
    # An interrupted migration is abandoned.
    assert await program.stop() == 0
    await connection.execute("COMMIT")
    assert await connection.fetch("SELECT * FROM configurations") == []
    await connection.close()


async def _patiently(client: httpx.AsyncClient, method: str, path: str) -> httpx.Response:
    """The answer as soon as somebody listens."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await client.request(method, path)
            except httpx.ConnectError:
                await asyncio.sleep(0.02)


async def test_a_lost_lock_ends_the_process(servers: Any, postgres_url: str) -> None:
    program = await servers()
    await program.logged("bbs.started")
    connection = await asyncpg.connect(postgres_url)
    # Somebody waits for the lock, and has it when its holder loses its connection.
    lock = "classid::bigint << 32 | objid::bigint"
    here = "locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    held = f"SELECT pid, {lock} AS key FROM pg_locks WHERE {here} AND granted"
    holder, key = await connection.fetchrow(held)
    other = await asyncpg.connect(postgres_url)
    waiting = asyncio.create_task(other.execute("SELECT pg_advisory_lock($1)", key))
    async with asyncio.timeout(10):
        while not await connection.fetchval(f"SELECT 1 FROM pg_locks WHERE {here} AND NOT granted"):
            await asyncio.sleep(0.01)
    await connection.execute("SELECT pg_terminate_backend($1)", holder)
    await waiting
    assert await program.ended() == 1
    await other.close()
    await connection.close()
    trace = program.lines[-1]["data"]["error"].splitlines()
    assert trace[1] == "lock exited with error: lost lock (request failed): connection lost"
    assert trace[-1] == "healthcheck exited with nil"


async def test_a_deposed_writer_ends_the_process(servers: Any, postgres_url: str) -> None:
    program = await servers()
    await program.logged("bbs.started")
    await program.logged("bbs.encryptor.encryption-finished")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("UPDATE configurations SET value = '999 usurper' WHERE id LIKE '%epoch%'")
    await connection.close()
    request = models.UpsertDomainRequest(domain="d", ttl=0)
    answer = models.UpsertDomainResponse.FromString(await post(program, "/v1/domains/upsert", request))
    assert answer.error.message
    assert await program.ended() == 1
    assert program.lines[-1]["data"]["error"].splitlines()[1].startswith("writer exited with error: ")


async def test_a_writer_deposed_while_it_reencrypts_ends_the_process(servers: Any, postgres_url: str) -> None:
    first = await servers()
    await first.logged("bbs.encryptor.encryption-finished")
    action = models.Action(run_action=models.RunAction(path="p", user="u"))
    definition = models.TaskDefinition(root_fs="docker:r", action=action)
    task = models.DesireTaskRequest(task_guid="t", domain="d", task_definition=definition)
    answer = models.TaskLifecycleResponse.FromString(await post(first, "/v1/tasks/desire.r2", task))
    assert not answer.HasField("error")
    assert await first.stop() == 0
    psql, watcher = await asyncpg.connect(postgres_url), await asyncpg.connect(postgres_url)
    hold = psql.transaction()
    await hold.start()
    await psql.execute("LOCK TABLE tasks IN EXCLUSIVE MODE")  # it can be read
    second = await servers(encryption_keys={"label": "passphrase", "new": "x"}, active_key_label="new")
    await second.logged("bbs.started")
    async with asyncio.timeout(10):
        while not await watcher.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"):
            await asyncio.sleep(0.01)
    await watcher.execute("UPDATE configurations SET value = '999 usurper' WHERE id LIKE '%epoch%'")
    await hold.rollback()
    assert await second.ended() == 1
    trace = second.lines[-1]["data"]["error"].splitlines()
    assert trace[1] == "encryptor exited with error: another writer has taken over the database"
    assert await watcher.fetchval("SELECT value FROM configurations WHERE id = 'encryption_key_label'") == "label"
    await psql.close()
    await watcher.close()


async def test_an_unrecoverable_error_ends_the_process_in_order(servers: Any, postgres_url: str) -> None:
    program = await servers()
    await program.logged("bbs.started")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("DROP TABLE domains")
    await connection.close()
    request = models.UpsertDomainRequest(domain="d", ttl=0)
    answer = models.UpsertDomainResponse.FromString(await post(program, "/v1/domains/upsert", request))
    assert answer.error.type == 29
    assert await program.ended() == 0
    assert "bbs.unrecoverable-error" in program.messages()


async def test_what_was_written_is_there_after_a_restart(servers: Any) -> None:
    first = await servers()
    await first.logged("bbs.started")
    await post(first, "/v1/domains/upsert", models.UpsertDomainRequest(domain="kept", ttl=0))
    assert await first.stop() == 0
    second = await servers()
    await second.logged("bbs.started")
    assert models.DomainsResponse.FromString(await post(second, "/v1/domains/list")).domains == ["kept"]


async def test_request_lines_and_access_log(servers: Any, tmp_path: Path) -> None:
    access = tmp_path / "access.log"
    program = await servers(log_level="debug", access_log_path=str(access))
    await program.logged("bbs.started")
    await post(program, f"{ROUTE}?a=b&c")
    await post(program, "/v1/tasks/desire.r2", models.DesireTaskRequest(), **{"X-Vcap-Request-Id": "ab-cd"})
    failed = await program.logged("bbs.request.desire-task.invalid-request")
    assert failed["data"]["trace-id"] == "000000000000abcd"
    assert await program.stop() == 0
    lines = [json.loads(line) for line in access.read_text().splitlines()]
    assert [line["message"] for line in lines[:2]] == ["bbs-access.request.serving", "bbs-access.request.done"]
    assert {line["source"] for line in lines} == {"bbs-access"}
    data = lines[0]["data"]
    assert data["request"] == f"{ROUTE}?a=b&c"
    assert data["method"] == "POST"
    assert data["session"] == "1"
    assert data["peer_cert_subject_common_name"] == "client"
    assert data["peer_cert_issuer_organization"]
    assert lines[1]["data"].keys() == data.keys() | {"duration"}
    assert lines[2]["data"]["session"] == "2"
    serving = await program.logged("bbs.request.serving")
    assert serving["log_level"] == 0
    assert serving["data"].keys() == data.keys()


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_all_lines_of_a_handler_are_of_one_session_and_say_who_asked(servers: Any, level: str) -> None:
    program = await servers(log_level=level)
    await program.logged("bbs.started")
    await post(program, "/v1/desired_lrp/desire.r2", models.DesireLRPRequest(), **{"X-Vcap-Request-Id": "ab-cd"})
    rejected = (await program.logged("bbs.request.desire-desired-lrp.invalid-request"))["data"]
    untold = (await program.logged("bbs.request.desire-desired-lrp.app guid is empty"))["data"]
    assert rejected == untold
    assert rejected["peer_cert_subject_common_name"] == "client"
    assert rejected["remote_addr"].startswith("127.0.0.1:")
    assert (rejected["method"], rejected["request"]) == ("POST", "/v1/desired_lrp/desire.r2")


async def test_a_full_disk_only_costs_lines_of_the_access_log(servers: Any) -> None:
    program = await servers(access_log_path="/dev/full")
    await program.logged("bbs.started")
    async with program.client() as http:
        answers = [await http.post("/v1/ping") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert await program.stop() == 0


async def test_the_log_level_changes_at_run_time(servers: Any) -> None:
    debug = f"127.0.0.1:{free_port()}"
    program = await servers(debug_address=debug, time_format="rfc3339")
    await program.logged("bbs.started")
    await post(program, ROUTE)
    assert "bbs.request.serving" not in program.messages()
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.put(f"http://{debug}/log-level", content=b"debug")
    await post(program, ROUTE)
    line = await program.logged("bbs.request.serving")
    assert line["level"] == "debug"
    assert line["timestamp"].endswith("Z")


async def test_prometheus_counts_requests(servers: Any) -> None:
    address = f"127.0.0.1:{free_port()}"
    program = await servers(prometheus_listen_address=address)
    await program.logged("bbs.started")
    await post(program, "/v1/domains/upsert", models.UpsertDomainRequest(domain="d", ttl=0))
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://{address}/metrics")).text
    assert 'bbs_request_seconds_count{route="UpsertDomain"} 1.0' in text
    assert "bbs_lock_held 1.0" in text
    assert "bbs_batch_commands_count 1.0" in text
    assert "bbs_commit_seconds_count 1.0" in text


async def test_the_page_is_served_at_its_own_address(servers: Any) -> None:
    port = free_port()
    program = await servers(page_listen_address=f"127.0.0.1:{port}")
    await program.logged("bbs.started")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        answer = await client.get("/")
        assert answer.status_code == 200
        assert "default-src" in answer.headers["Content-Security-Policy"]
        assert (await client.get("/", headers={"Host": "elsewhere.example"})).status_code == 403


async def test_convergence_runs_and_adopts_what_others_wrote(servers: Any, postgres_url: str) -> None:
    program = await servers(converge_repeat_interval="50ms", log_level="debug")
    await program.logged("bbs.started")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("INSERT INTO domains (domain, expire_time) VALUES ('foreign', 9223372036854775807)")
    await connection.close()
    await program.logged("bbs.converger.adopted-foreign-changes")
    await program.logged("bbs.converger.converge-lrps.done")
    await program.logged("bbs.converger.converge-tasks.done")
    assert models.DomainsResponse.FromString(await post(program, "/v1/domains/list")).domains == ["foreign"]
    assert await program.stop() == 0


async def test_a_database_that_stays_away_ends_a_process_with_health_check(servers: Any, postgres_url: str) -> None:
    program = await servers(
        enable_db_health_check=True,
        health_check_interval="50ms",
        health_check_timeout="200ms",
        health_check_failure_threshold=2,
    )
    await program.logged("bbs.started")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("BEGIN")
    await connection.execute("LOCK TABLE bbs_health_check")
    assert await program.ended() == 1
    await connection.close()
    trace = program.lines[-1]["data"]["error"].splitlines()
    timed_out = "timed out after 200ms while executing DB health check"
    assert trace[1:3] == [f"db-healthcheck exited with error: {timed_out}", timed_out]
    attempts = [line for line in program.lines if line["message"].endswith("health-check-timed-out")]
    # An attempt during the start may have taken too long as well.
    assert [line["data"]["attempt"] for line in attempts][-2:] == [1, 2]


@pytest.mark.parametrize("value", [0, -1])
async def test_a_health_check_without_attempts_or_time_takes_the_defaults(servers: Any, value: int) -> None:
    program = await servers(
        enable_db_health_check=True,
        health_check_interval=f"{50 + value}ms",
        health_check_timeout=f"{value}s",
        health_check_failure_threshold=value,
        log_level="debug",
    )
    await program.logged("bbs.db-health-check-runner.health-check-succeeded")
    assert await program.stop() == 0


async def test_requests_wait_for_nothing_when_the_process_drains(servers: Any) -> None:
    program = await servers()
    await program.logged("bbs.started")
    async with program.client() as client, client.stream("POST", "/v1/events/tasks.r1") as stream:
        assert stream.status_code == 200
        stopping = asyncio.create_task(program.stop())
        # The stream is ended in order: no error while it is read to its end.
        assert await stream.aread() == b""
        assert await stopping == 0


async def test_a_request_in_flight_is_finished_before_the_end(servers: Any, postgres_url: str) -> None:
    program = await servers()
    await program.logged("bbs.started")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("BEGIN")
    await connection.execute("LOCK TABLE domains")
    async with program.client() as client:
        content = models.UpsertDomainRequest(domain="late", ttl=0).SerializeToString()
        request = asyncio.create_task(client.post("/v1/domains/upsert", content=content))
        await _blocked(connection)
        program.process.send_signal(signal.SIGTERM)
        await program.logged("bbs.converger.done")
        program.process.send_signal(signal.SIGTERM)  # a second one changes nothing
        assert not request.done()
        await connection.execute("COMMIT")
        answer = await request
    assert (answer.status_code, answer.content, answer.headers["connection"]) == (200, b"", "close")
    assert await program.ended() == 0
    assert await connection.fetchval("SELECT domain FROM domains") == "late"
    await connection.close()


async def _blocked(connection: asyncpg.Connection[Any]) -> None:
    """Until somebody waits for a lock of this connection. The server gives up soon, so no other one is made."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    async with asyncio.timeout(20):
        while not await connection.fetchval(waiting):
            await asyncio.sleep(0.02)
