"""The four calls of Locket (locket.md section 6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from bbs_protos import locket_pb2 as pb
from google.protobuf.message import Message

from bbs_server.core.decoding import Undecodable, decode
from bbs_server.locket.expiry import Expiry
from bbs_server.locket.figures import Figures
from bbs_server.locket.locks import Lock, Locks
from bbs_server.locket.options import Options
from bbs_server.locket.refusal import (
    UNRECOVERABLE,
    Refusal,
    invalid_owner,
    invalid_resource,
    invalid_ttl,
    invalid_type,
    undecodable,
)

SERVICE = "models.Locket"

TYPES: Mapping[int, str] = {pb.LOCK: "lock", pb.PRESENCE: "presence"}
"""What is stored for a type code. Only the code counts, whatever the text in a request says."""

_CODES: Mapping[str, int] = {text: code for code, text in TYPES.items()}

_LOG_LEVELS = {grpc.StatusCode.ALREADY_EXISTS: "debug", grpc.StatusCode.NOT_FOUND: "debug"}


class Service:
    """The calls as coroutines from request to response; each raises Refusal."""

    def __init__(self, locks: Locks, expiry: Expiry) -> None:
        self._locks = locks
        self._expiry = expiry

    async def lock(self, request: pb.LockRequest) -> pb.LockResponse:
        resource = request.resource
        if not request.HasField("resource"):
            raise invalid_resource()
        if resource.type_code not in TYPES:
            raise invalid_type()
        if request.ttl_in_seconds <= 0:
            raise invalid_ttl()
        if not resource.owner:
            raise invalid_owner()
        type_ = TYPES[resource.type_code]
        lock = await self._locks.take(resource.key, resource.owner, resource.value, type_, request.ttl_in_seconds)
        self._expiry.watch(lock)
        return pb.LockResponse()

    async def fetch(self, request: pb.FetchRequest) -> pb.FetchResponse:
        return pb.FetchResponse(resource=_resource(await self._locks.fetch(request.key)))

    async def release(self, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
        if not request.HasField("resource"):
            raise invalid_resource()
        lock = await self._locks.release(request.resource.key, request.resource.owner)
        if lock is not None:
            self._expiry.forget(lock)
        return pb.ReleaseResponse()

    async def fetch_all(self, request: pb.FetchAllRequest) -> pb.FetchAllResponse:
        if request.type_code not in TYPES:
            raise invalid_type()
        locks = await self._locks.of_type(TYPES[request.type_code])
        return pb.FetchAllResponse(resources=map(_resource, locks))


def _resource(lock: Lock) -> pb.Resource:
    return pb.Resource(
        key=lock.key,
        owner=lock.owner,
        value=lock.value,
        type=lock.type,
        type_code=_CODES.get(lock.type, pb.UNKNOWN),  # type: ignore[arg-type]
    )


Call = Callable[[Service, Any], Awaitable[Message]]

CALLS: Mapping[str, tuple[type[Message], Call]] = {
    "Lock": (pb.LockRequest, Service.lock),
    "Release": (pb.ReleaseRequest, Service.release),
    "Fetch": (pb.FetchRequest, Service.fetch),
    "FetchAll": (pb.FetchAllRequest, Service.fetch_all),
}


class Endpoint:
    """Carries the calls out for gRPC: decodes, counts, logs, turns refusals into statuses."""

    def __init__(self, service: Service, figures: Figures, options: Options) -> None:
        self._service = service
        self._figures = figures
        self._options = options
        self._works: set[asyncio.Task[bytes]] = set()

    async def finish(self) -> None:
        """Wait for the work of clients that have hung up."""
        if self._works:
            await asyncio.wait(self._works)

    def handlers(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        methods = {name: grpc.unary_unary_rpc_method_handler(self._handler(name)) for name in CALLS}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _handler(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def handle(body: bytes, context: Any) -> bytes:
            # A client that hangs up does not stop the work (locket.md 6.1).
            work = asyncio.create_task(self._answer(name, body))
            self._works.add(work)
            work.add_done_callback(self._done)
            try:
                with self._figures.request(name):
                    return await asyncio.shield(work)
            except Refusal as refusal:
                self._tell(name, refusal, context)
                await context.abort(refusal.code, str(refusal))
                raise

        return handle

    def _done(self, work: asyncio.Task[bytes]) -> None:
        self._works.discard(work)
        if not work.cancelled():
            work.exception()  # nobody else asks if the client has gone

    async def _answer(self, name: str, body: bytes) -> bytes:
        kind, call = CALLS[name]
        try:
            request = decode(kind, body)
        except Undecodable as problem:
            raise undecodable(problem) from None
        response = await call(self._service, request)
        return response.SerializeToString(deterministic=True)

    def _tell(self, name: str, refusal: Refusal, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        data = {"error": str(refusal), "call": name, "request-uuid": str(metadata.get("uuid", ""))}
        self._options.log(_LOG_LEVELS.get(refusal.code, "error"), "failed-request", data)
        if str(refusal) == UNRECOVERABLE:
            self._options.on_unrecoverable()
