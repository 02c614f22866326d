"""One HTTP connection: requests in, one after the other, and their answers out (server.md 9 and 10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from google.protobuf.message import Message

from bbs_server.core.decoding import Undecodable, decode
from bbs_server.core.encoding import Answer, Elements, encode
from bbs_server.core.errors import INVALID_REQUEST, UNREADABLE_BODY, Error, Refused, invalid_fields, unknown
from bbs_server.core.texts import spelled
from bbs_server.wire import answers, streams
from bbs_server.wire.channel import Channel
from bbs_server.wire.framing import BrokenBody, Head, Inbox, Refusal
from bbs_server.wire.observer import Call, Observer
from bbs_server.wire.routes import BY_PATH, Kind, Route

_INBOX_LIMIT = 256 << 10
_UNREAD_LIMIT = 256 << 10
_PONG = b"\x08\x01"


class Host(Protocol):
    """What a connection needs of the server that it belongs to."""

    hubs: streams.Hubs
    ready: Callable[[], bool]
    observer: Observer
    draining: bool
    connections: set[Connection]
    loop: asyncio.AbstractEventLoop

    async def perform(self, route: Route, request: Any, request_id: str) -> Answer:
        """Carry out a decoded, valid request. Raises Refused."""

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""


class Connection:
    """What a TLS channel carries: an HTTP/1.x exchange.

    At most one request is being handled at a time; what a client sends ahead waits in the inbox. The
    states are visible in three attributes: `_head` is a request whose body is not complete yet,
    `_task` a request or stream being handled, `_over` a connection that takes no further request.
    """

    __slots__ = (
        "_body_started",
        "_channel",
        "_ended",
        "_head",
        "_held",
        "_inbox",
        "_over",
        "_server",
        "_started",
        "_task",
    )

    def __init__(self, server: Host) -> None:
        self._server = server
        self._inbox = Inbox()
        self._head: Head | None = None
        self._started = 0
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._ended = False
        self._held = False

    # -- the channel's side --------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        self._channel = channel
        self._server.connections.add(self)

    def refused(self, peer: str, reason: str) -> None:
        self._over = True
        self._server.observer.handshake_failed(peer, reason)

    def received(self, data: bytes) -> None:
        if self._over:
            return
        self._inbox.feed(data)
        if self._task is None:
            self._advance()
        elif len(self._inbox) > _INBOX_LIMIT and not self._held:
            self._held = True
            self._channel.pause_reading()

    def ended(self) -> None:
        self._ended = True
        if self._task is None:
            self._finish_ended()
        elif self._over:  # a stream ends with its client's sending side (events.md 3)
            self._task.cancel()

    def lost(self) -> None:
        self._over = True
        self._inbox.clear()
        self._server.forget(self)
        if self._task is not None and self.streaming:
            self._task.cancel()

    # -- the server's side ---------------------------------------------------------------

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The request or stream being handled."""
        return self._task

    @property
    def streaming(self) -> bool:
        """Whether the task is an event stream: nothing else is handled on a connection that is over."""
        return self._task is not None and self._task.get_name() == streams.TASK_NAME

    @property
    def uploading(self) -> bool:
        """Whether a head has come and its body has not."""
        return self._head is not None

    def close(self) -> None:
        """Take no further request, and end as soon as nothing is being handled."""
        if self._task is None:
            self._over = True
            self._channel.close()

    def abort(self) -> None:
        self._over = True
        self._channel.abort()

    # -- requests ------------------------------------------------------------------------

    def _advance(self) -> None:
        """Handle what is complete in the inbox, up to the first request that has to wait for something."""
        try:
            while self._task is None and not self._over:
                if self._head is None:
                    if self._channel.full:
                        self._task = self._server.loop.create_task(self._wait_for_reader())
                        break
                    self._head = self._inbox.head()
                    if self._head is None:
                        break
                    self._started = time.perf_counter_ns()
                    if self._answer_early(self._head):
                        continue
                head, broken = self._head, False
                try:
                    body = self._inbox.body(head)
                except BrokenBody:
                    body, broken = b"", True
                if body is None:
                    break
                self._head = None
                self._handle(head, body, broken=broken)
        except Refusal as refusal:
            self._end_with(answers.refusal(str(refusal)))
        if self._ended and self._task is None and not self._over:
            self._finish_ended()

    async def _wait_for_reader(self) -> None:
        """Answer nothing more before the client has read most of what it has asked for."""
        try:
            await self._channel.drain()
        except ConnectionResetError:
            return
        self._task = None
        self._go_on()

    def _go_on(self) -> None:
        """Look at what has come while something was being handled."""
        if self._over:
            return
        if self._held:
            self._held = False
            self._channel.resume_reading()
        if self._ended or len(self._inbox):
            self._advance()
        elif self._server.draining:
            self.close()

    def _finish_ended(self) -> None:
        """The client will send nothing more: a body that is not complete never will be."""
        head, self._head = self._head, None
        if head is not None and not self._over:
            self._handle(head, b"", broken=True)
        if self._task is None:
            self._over = True
            self._channel.close()

    def _answer_early(self, head: Head) -> bool:
        """Answer without the body where it will not be read, or start to; the connection ends with that answer.

        False where the body has to come first.
        """
        if head.impossible:
            self._end_with(answers.plain(b"417 Expectation Failed", b"", head.http10, False))
            return True
        route = self._route(head)
        reads = route is not None and route.request is not None
        if reads:
            if head.continues and not len(self._inbox):
                self._channel.send(answers.CONTINUE)
            return False
        if head.continues or head.length > _UNREAD_LIMIT:
            self._head = None
            self._handle(head, b"", broken=True)
            return True
        return False

    def _route(self, head: Head) -> Route | None:
        if not self._server.ready():
            return None
        route = BY_PATH.get(head.path)
        return route if route is not None and route.method == head.method else None

    def _handle(self, head: Head, body: bytes, *, broken: bool) -> None:
        """Answer a request, or start to. After a broken body nothing on the connection makes sense."""
        keep = head.keep_alive and not broken and not self._server.draining
        route = self._route(head)
        if route is None:
            self._send(self._unrouted(head, keep), keep)
            return
        observer = self._server.observer
        call = Call(route, head.request_id, head.method, head.target, self._channel, self._started)
        if observer.watches:
            observer.serving(call)
        if route.kind is Kind.PING:
            self._respond(call, head, keep, _PONG)
            return
        try:
            request = self._read(call, body, broken=broken)
        except Refused as refused:
            self._refuse(call, head, keep, refused.error)
            return
        except Exception as problem:
            self._refuse(call, head, keep, self._unforeseen(call, problem))
            return
        if route.kind is Kind.STREAM:
            self._open_stream(call, head, request)
        else:
            self._task = self._server.loop.create_task(self._perform(call, head, keep, request))

    def _unrouted(self, head: Head, keep: bool) -> bytes:
        """Answers that come before and instead of routes: neither logged nor counted."""
        silent = head.method == "HEAD"
        if head.method == "OPTIONS" and head.target == "*":
            return answers.plain(b"200 OK", b"", head.http10, keep)
        if not self._server.ready():
            return answers.plain(b"503 Service Unavailable", b"", head.http10, keep)
        route = BY_PATH.get(head.path)
        if route is None:
            return answers.plain(b"404 Not Found", answers.NOT_FOUND, head.http10, keep, silent=silent)
        allow = b"Allow: %b\r\n" % route.method.encode()
        return answers.plain(
            b"405 Method Not Allowed", answers.WRONG_METHOD, head.http10, keep, extra=allow, silent=silent
        )

    def _read(self, call: Call, body: bytes, *, broken: bool) -> Message | None:
        """Steps 1 to 3 of server.md 10. Raises Refused."""
        route = call.route
        if route.request is None:
            return None
        observer = self._server.observer
        if broken:
            observer.failed(call, "failed-to-read-body", UNREADABLE_BODY, None)
            raise Refused(UNREADABLE_BODY)
        try:
            request = decode(route.request, body)
        except Undecodable:
            observer.failed(call, "failed-to-parse-request-body", INVALID_REQUEST, None)
            raise Refused(INVALID_REQUEST) from None
        check = route.check
        if check is not None and (problems := check(request)):
            error = invalid_fields(problems)
            observer.failed(call, "invalid-request", error, request)
            raise Refused(error)
        return request

    def _refuse(self, call: Call, head: Head, keep: bool, error: Error) -> None:
        if call.route.kind is Kind.STREAM:
            self._send(answers.plain(b"500 Internal Server Error", b"", head.http10, keep), keep)
            self._done(call)
        else:
            self._respond(call, head, keep, call.route.error(error))

    def _unforeseen(self, call: Call, problem: Exception) -> Error:
        """The error for what no rule foresees. Text that is not UTF-8 can be met anywhere (wire.md 6)."""
        if isinstance(problem, UnicodeError):
            return INVALID_REQUEST
        self._server.observer.broke(call, problem)
        return unknown(str(problem) or type(problem).__name__)

    async def _perform(self, call: Call, head: Head, keep: bool, request: Any) -> None:
        """Step 4 of server.md 10: carry the request out and answer."""
        route, server = call.route, self._server
        pieces: Iterable[bytes] = ()
        try:
            answer = await server.perform(route, request, head.request_id)
            if isinstance(answer, Elements):
                length, pieces = answers.slices(await answers.pieces_of(answer))
                body = b"" if length > answers.SLICE else b"".join(pieces)
            else:
                body = encode(answer)
                length = len(body)
        except Refused as refused:
            server.observer.failed(call, "failed", refused.error, request)
            body = route.error(refused.error)
            length = len(body)
        except Exception as problem:
            body = route.error(self._unforeseen(call, problem))
            length = len(body)
        keep = keep and not server.draining
        if length > len(body):
            try:
                await self._send_slices(answers.protobuf_head(length, head.http10, keep), pieces)
            except ConnectionResetError:
                keep = False
            body, sent = b"", b""
        else:
            sent = answers.protobuf_head(length, head.http10, keep) + body
        self._task = None
        self._send(sent, keep)
        self._measure(call)
        self._go_on()

    async def _send_slices(self, head: bytes, pieces: Iterable[bytes]) -> None:
        """A bulk body, never more of it in memory than a slice and what the socket has not taken yet."""
        channel = self._channel
        channel.send(head)
        deadline = time.perf_counter() + answers.TURN
        for piece in pieces:
            await channel.drain()
            if time.perf_counter() > deadline:  # a fast reader never makes `drain` wait
                await asyncio.sleep(0)
                deadline = time.perf_counter() + answers.TURN
            channel.send(piece)
        await channel.drain()

    # -- streams -------------------------------------------------------------------------

    def _open_stream(self, call: Call, head: Head, request: Any) -> None:
        """Subscribe, then tell the client so: it misses nothing that comes after the header."""
        route, server = call.route, self._server
        cell_id = "" if request is None else spelled(request.cell_id)  # one that is not UTF-8 equals no cell's
        try:
            subscription = server.hubs.subscribe(route.hubs, route.revision, cell_id)
        except Exception as problem:
            error = unknown(str(problem) or type(problem).__name__)
            server.observer.failed(call, "failed", error, request)
            self._refuse(call, head, head.keep_alive and not server.draining, error)
            return
        self._over = True
        self._inbox.clear()
        self._channel.send(answers.stream_head(head.http10, head.keep_alive))
        self._task = server.loop.create_task(streams.relay(self._channel, subscription), name=streams.TASK_NAME)
        # Not in the task itself: one that is cancelled before its first step does nothing at all.
        self._task.add_done_callback(partial(self._stream_ended, call, subscription))
        if self._ended:
            self._task.cancel()

    def _stream_ended(self, call: Call, subscription: streams.Subscription, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and isinstance(problem := task.exception(), Exception):
            self._unforeseen(call, problem)
        streams.end(self._channel, subscription)
        self._done(call)

    # -- answers -------------------------------------------------------------------------

    def _respond(self, call: Call, head: Head, keep: bool, body: bytes) -> None:
        self._send(answers.protobuf_head(len(body), head.http10, keep) + body, keep)
        self._measure(call)

    def _send(self, data: bytes, keep: bool) -> None:
        if data:
            self._channel.send(data)
        if not keep:
            self._over = True
            self._inbox.clear()
            self._channel.close(linger=not self._ended)

    def _end_with(self, data: bytes) -> None:
        self._head = None
        self._send(data, keep=False)

    def _measure(self, call: Call) -> None:
        self._server.observer.latency(call.route, time.perf_counter_ns() - call.started)
        self._done(call)

    def _done(self, call: Call) -> None:
        observer = self._server.observer
        observer.counted(call.route)
        if observer.watches:
            observer.done(call, time.perf_counter_ns() - call.started)
