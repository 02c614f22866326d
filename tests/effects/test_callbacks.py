"""Completion callbacks: Resolving, call, delete; attempts; the limit of workers; shutdown."""

from __future__ import annotations

import asyncio
import json
import socket
from base64 import b64encode
from contextlib import ExitStack
from dataclasses import replace

import pytest
from bbs_protos import models_pb2 as models

from bbs_server.core.outcome import Hub
from bbs_server.core.records import Task, TaskState
from bbs_server.effects.callbacks import ATTEMPTS, Callbacks
from bbs_server.effects.peer import Peer

STRANGE = ("ftp://h/x", "ws://127.0.0.1:1/", "wss://h/", "tcp://127.0.0.1:1/", "//127.0.0.1:1/x")
"""Not for HTTP."""


def completed(guid: str, url: str, annotation: str = "", **fields: object) -> Task:
    definition = models.TaskDefinition(root_fs="r", completion_callback_url=url, annotation=annotation)
    values = {"first_completed_at": 6, "result": "r"} | fields
    return Task(guid, "dom", TaskState.COMPLETED, 5, 6, definition.SerializeToString(), **values)  # type: ignore[arg-type]


@pytest.fixture
async def start(writer, logged):
    made = []

    def make(workers: int = 20, tls=None, timeout: float = 5) -> Callbacks:
        made.append(Callbacks(writer, Peer(tls, timeout), workers, logged))
        return made[-1]

    yield make
    for callbacks in made:
        await callbacks.close()


def submit(writer, callbacks: Callbacks, task: Task) -> None:
    writer.state.tasks.adopt(task.guid, task)
    callbacks.submit(task)


def attempts(logged) -> list[tuple[str, bool]]:
    """The failed attempts: whose, and whether the time was over."""
    return [(data["task_guid"], "context deadline exceeded" in data["error"]) for _, _, data in logged.lines]


def state(writer, guid: str) -> int | None:
    task = writer.state.tasks.get(guid)
    return None if task is None else task.state


async def test_a_callback_as_recorded(receiver, writer, start) -> None:
    double = await receiver(200)
    task = completed("c2", double.url + "/cb?x=1#part", failed=True, failure_reason="because", result='{"a":"<b>&"}')
    submit(writer, start(), task)
    await writer.wait_for_event("task_removed")
    (request,) = double.received
    assert (request.method, request.path) == ("POST", "/cb?x=1")
    assert request.headers["Content-Type"] == "application/json"
    assert "X-Vcap-Request-Id" not in request.headers
    assert request.body == (
        b'{"task_guid":"c2","failed":true,"failure_reason":"because",'
        b'"result":"{\\"a\\":\\"\\u003cb\\u003e\\u0026\\"}","created_at":5}'
    )
    assert [event.name for event in writer.events if event.hub is Hub.TASK] == ["task_changed", "task_removed"]
    assert writer.events[-1].before.state == TaskState.RESOLVING
    assert state(writer, "c2") is None


async def test_an_annotation_is_sent_along(receiver, writer, start) -> None:
    double = await receiver(200)
    submit(writer, start(), completed("c3", double.url, annotation="ann"))
    (request,) = await double.wait_for(1)
    assert list(json.loads(request.body)) == [
        "task_guid",
        "failed",
        "failure_reason",
        "result",
        "annotation",
        "created_at",
    ]


@pytest.mark.parametrize("status", [201, 302, 304, 400, 404, 429, 500, 501, 502, 505])
async def test_any_other_answer_counts_as_delivered(receiver, writer, start, status: int) -> None:
    double = await receiver(status)
    submit(writer, start(), completed("t", double.url))
    await writer.wait_for_event("task_removed")
    assert len(double.received) == 1


async def test_503_and_504_are_tried_again(receiver, writer, start) -> None:
    double = await receiver(200)
    double.statuses = [503, 504, 200]
    submit(writer, start(), completed("t", double.url))
    await writer.wait_for_event("task_removed")
    assert [request.body for request in double.received] == [double.received[0].body] * 3


async def test_after_three_attempts_the_task_stays_resolving(receiver, writer, start) -> None:
    double = await receiver(503)
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("t", double.url))
    next_one = await receiver(200)
    submit(writer, callbacks, completed("next", next_one.url))
    await writer.wait_for_event("task_removed")
    assert len(double.received) == 3
    assert state(writer, "t") == TaskState.RESOLVING


async def test_a_timeout_is_tried_again(receiver, writer, start, logged) -> None:
    double = await receiver(200)
    double.held = asyncio.Event()
    callbacks = start(workers=1, timeout=0.1)
    submit(writer, callbacks, completed("t", double.url))
    submit(writer, callbacks, completed("next", "ftp://h/x"))
    await logged.wait_for(ATTEMPTS + 1)
    assert attempts(logged) == [("t", True)] * ATTEMPTS + [("next", False)]
    # The time may be over before a request has come through.
    assert 0 < len(double.received) <= ATTEMPTS
    assert state(writer, "t") == TaskState.RESOLVING


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/refused", "ftp://h/x", "http://[::1", "http:///nohost", "no url", *STRANGE]
)
async def test_other_failures_end_at_once(receiver, writer, start, logged, url: str) -> None:
    double = await receiver(200)
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("t", url))
    submit(writer, callbacks, completed("next", double.url))
    await writer.wait_for_event("task_removed")
    assert state(writer, "t") == TaskState.RESOLVING
    assert logged.actions() == ["failed-to-call-back"]


async def test_the_password_of_a_url_is_not_logged(receiver, writer, start, logged) -> None:
    double = await receiver(200)
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("t", "http://user:hush@127.0.0.1:1/refused"))
    submit(writer, callbacks, completed("next", double.url))
    await writer.wait_for_event("task_removed")
    refused = 'Post "http://user:***@127.0.0.1:1/refused": dial tcp 127.0.0.1:1: connect: connection refused'
    assert logged.lines[0][2]["error"] == refused


async def test_a_reset_connection_is_not_tried_again(receiver, writer, start, logged) -> None:
    double = await receiver(200)
    double.statuses = [None, 200]
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("t", double.url))
    submit(writer, callbacks, completed("next", double.url))
    await writer.wait_for_event("task_removed")
    assert [json.loads(request.body)["task_guid"] for request in double.received] == ["t", "next"]
    assert state(writer, "t") == TaskState.RESOLVING


@pytest.mark.parametrize(("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")])
async def test_redirects(receiver, writer, start, status: int, method: str) -> None:
    final, first = await receiver(200), await receiver(status)
    first.headers = {"Location": final.url + "/there"}
    submit(writer, start(), completed("t", first.url))
    await writer.wait_for_event("task_removed")
    (request,) = final.received
    assert request.method == method
    assert bool(request.body) == (method == "POST")


@pytest.mark.parametrize("headers", [{}, {"Location": ""}, {"URI": "/elsewhere"}])
async def test_a_redirect_without_location_is_a_plain_answer(receiver, writer, start, headers) -> None:
    double = await receiver(302)
    double.headers = headers
    submit(writer, start(), completed("t", double.url))
    await writer.wait_for_event("task_removed")
    assert len(double.received) == 1


@pytest.mark.parametrize("location", ["ftp://h/", "http://[::1", "ws://h/", "http:///x", "/%zz"])
async def test_a_redirect_to_nowhere_leaves_the_task_resolving(receiver, writer, start, location: str) -> None:
    double, other = await receiver(302), await receiver(200)
    double.headers = {"Location": location}
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("t", double.url))
    submit(writer, callbacks, completed("next", other.url))
    removed = await writer.wait_for_event("task_removed")
    assert removed.before.guid == "next"
    assert len(double.received) == 1
    assert state(writer, "t") == TaskState.RESOLVING


async def test_the_time_limit_holds_over_all_redirects(receiver, writer, start, logged) -> None:
    double, silent = await receiver(307), await receiver(200)
    double.headers = {"Location": silent.url}
    silent.held = asyncio.Event()
    submit(writer, start(timeout=0.2), completed("t", double.url))
    await logged.wait_for(ATTEMPTS)
    assert attempts(logged) == [("t", True)] * ATTEMPTS
    # The time may be over before a request has come through.
    assert 0 < len(silent.received) <= len(double.received) <= ATTEMPTS


@pytest.mark.parametrize("absolute", [False, True])
async def test_user_info_goes_along_with_relative_redirects(receiver, writer, start, absolute: bool) -> None:
    double = await receiver(200)
    double.statuses, double.headers = [307], {"Location": (double.url if absolute else "") + "/there"}
    submit(writer, start(), completed("t", double.url.replace("//", "//u:p@")))
    first, second = await double.wait_for(2)
    assert (first.path, second.path, second.body) == ("/", "/there", first.body)
    assert ["Authorization" in request.headers for request in (first, second)] == [True, not absolute]


async def test_endless_redirects_leave_the_task_resolving(receiver, writer, start, logged) -> None:
    double = await receiver(302)
    double.headers = {"Location": "/again"}
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("t", double.url))
    other = await receiver(200)
    submit(writer, callbacks, completed("next", other.url))
    await writer.wait_for_event("task_removed")
    assert len(double.received) == 10
    assert state(writer, "t") == TaskState.RESOLVING
    assert logged.lines[0][2]["error"].endswith("stopped after 10 redirects")


@pytest.mark.parametrize(
    ("info", "sent"), [("user:pass", "user:pass"), ("%C3%A9:p", "é:p"), ("us%3Aer:p", "us:er:p"), ("u", "u:")]
)
async def test_user_info_becomes_basic_authentication(receiver, writer, start, info: str, sent: str) -> None:
    double = await receiver(200)
    submit(writer, start(), completed("t", double.url.replace("http://", f"http://{info}@")))
    (request,) = await double.wait_for(1)
    assert request.headers["Authorization"] == f"Basic {b64encode(sent.encode()).decode()}"


async def test_a_url_that_is_not_utf_8_is_called(receiver, writer, start) -> None:
    double = await receiver(200)
    definition = completed("t", double.url + "/ab/").definition.replace(b"/ab/", b"/x\xff/")
    submit(writer, start(), replace(completed("t", ""), definition=definition))
    (request,) = await double.wait_for(1)
    assert request.path == "/x%FF/"


async def test_a_connection_that_does_not_come_about_is_not_tried_again(
    receiver, writer, start, logged, monkeypatch
) -> None:
    """The receiver's queue of connections is full, so the system does not answer more."""
    monkeypatch.setattr("bbs_server.effects.peer.CONNECT_TIMEOUT", 0.5)
    double, callbacks = await receiver(200), start(workers=1)
    with socket.socket() as listener, ExitStack() as held:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        submit(writer, callbacks, completed("t", f"http://127.0.0.1:{listener.getsockname()[1]}/"))
        submit(writer, callbacks, completed("next", double.url))
        await writer.wait_for_event("task_removed")
    assert logged.actions() == ["failed-to-call-back"]
    assert "i/o timeout" in logged.lines[0][2]["error"]
    assert state(writer, "t") == TaskState.RESOLVING


async def test_large_headers_of_an_answer_do_no_harm(receiver, writer, start) -> None:
    double = await receiver(200)
    double.headers = {"Long": "x" * 20_000} | {f"H{number}": "y" for number in range(500)}
    submit(writer, start(), completed("t", double.url))
    await writer.wait_for_event("task_removed")


async def test_our_certificate_is_presented(receiver, writer, start, our_tls) -> None:
    double = await receiver(200, tls=True)
    submit(writer, start(tls=our_tls), completed("t", double.url))
    await writer.wait_for_event("task_removed")
    assert "client" in str(double.peers[0]["subject"])


async def test_a_task_without_url_is_left_alone(receiver, writer, start) -> None:
    double = await receiver(200)
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("quiet", ""))
    submit(writer, callbacks, completed("next", double.url))
    await writer.wait_for_event("task_removed")
    assert state(writer, "quiet") == TaskState.COMPLETED


async def test_a_task_submitted_twice_is_delivered_once(receiver, writer, start) -> None:
    double = await receiver(200)
    callbacks = start(workers=1)
    task = completed("t", double.url)
    submit(writer, callbacks, task)
    callbacks.submit(task)
    await double.wait_for(1)
    callbacks.submit(task)
    submit(writer, callbacks, completed("next", double.url))
    await double.wait_for(2)
    assert [json.loads(request.body)["task_guid"] for request in double.received] == ["t", "next"]


async def test_a_task_deleted_by_its_receiver_is_not_announced_twice(receiver, writer, start, logged) -> None:
    double = await receiver(200)
    double.held = asyncio.Event()
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("t", double.url))
    await double.wait_for(1)
    writer.state.tasks.adopt("t", None)
    double.held.set()
    submit(writer, callbacks, completed("next", double.url))
    removed = await writer.wait_for_event("task_removed")
    assert removed.before.guid == "next"
    assert logged.actions() == ["failed-to-delete-task"]


async def test_workers_are_limited_and_the_rest_waits_as_completed(receiver, writer, start) -> None:
    double = await receiver(200)
    double.held = asyncio.Event()
    callbacks = start(workers=2)
    for number in range(5):
        submit(writer, callbacks, completed(str(number), double.url))
    await double.wait_for(2)
    assert [state(writer, str(number)) for number in range(5)] == [4, 4, 3, 3, 3]
    double.held.set()
    await double.wait_for(5)


async def test_shutdown_drops_the_queue_and_waits_for_nobody(receiver, writer, start) -> None:
    double = await receiver(200)
    double.held = asyncio.Event()
    callbacks = start(workers=1)
    for guid in ("running", "queued"):
        submit(writer, callbacks, completed(guid, double.url))
    await double.wait_for(1)
    async with asyncio.timeout(5):
        await callbacks.close()
    submit(writer, callbacks, completed("late", double.url))
    assert [state(writer, guid) for guid in ("running", "queued", "late")] == [4, 3, 3]
    assert len(double.received) == 1


@pytest.mark.parametrize("path", ["/%zz", "/a\tb"])
async def test_a_url_that_cannot_be_read_is_not_called(receiver, writer, start, logged, path: str) -> None:
    double = await receiver(200)
    callbacks = start(workers=1)
    submit(writer, callbacks, completed("bad", double.url + path))
    submit(writer, callbacks, completed("good", double.url + "/a b"))
    (request,) = await double.wait_for(1)
    assert request.path == "/a%20b"
    assert state(writer, "bad") == TaskState.RESOLVING
