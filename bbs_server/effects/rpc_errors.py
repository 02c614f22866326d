"""gRPC failures in the words of the reference (locket.md 3.2 and 4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import grpc

_CODES: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.CANCELLED: "Canceled",
    grpc.StatusCode.UNKNOWN: "Unknown",
    grpc.StatusCode.INVALID_ARGUMENT: "InvalidArgument",
    grpc.StatusCode.DEADLINE_EXCEEDED: "DeadlineExceeded",
    grpc.StatusCode.NOT_FOUND: "NotFound",
    grpc.StatusCode.ALREADY_EXISTS: "AlreadyExists",
    grpc.StatusCode.PERMISSION_DENIED: "PermissionDenied",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "ResourceExhausted",
    grpc.StatusCode.FAILED_PRECONDITION: "FailedPrecondition",
    grpc.StatusCode.ABORTED: "Aborted",
    grpc.StatusCode.OUT_OF_RANGE: "OutOfRange",
    grpc.StatusCode.UNIMPLEMENTED: "Unimplemented",
    grpc.StatusCode.INTERNAL: "Internal",
    grpc.StatusCode.UNAVAILABLE: "Unavailable",
    grpc.StatusCode.DATA_LOSS: "DataLoss",
    grpc.StatusCode.UNAUTHENTICATED: "Unauthenticated",
}
_NOT_CONNECTED = re.compile(
    r"ipv[46]:(\S+?): .*?(?:connect: |tcp_connect\W+)?(Connection refused|[A-Z][a-z ]+ timed out)"
)
_DEADLINE = "context deadline exceeded"
_SILENT = re.compile("(ping|keepalive watchdog) timeout")


def text(problem: grpc.aio.AioRpcError) -> str:
    """`rpc error: code = <Code> desc = <text>`; what only the two libraries spell differently is respelled."""
    return f"rpc error: code = {_CODES.get(problem.code(), 'Unknown')} desc = {_description(problem)}"


def _description(problem: grpc.aio.AioRpcError) -> str:
    details = problem.details() or ""
    if problem.code() is grpc.StatusCode.DEADLINE_EXCEEDED and "Deadline Exceeded" in details:
        return _DEADLINE
    if problem.code() is grpc.StatusCode.UNAVAILABLE and _SILENT.search(details):
        return "keepalive ping failed to receive ACK within timeout"
    found = _NOT_CONNECTED.search(details)
    if problem.code() is grpc.StatusCode.UNAVAILABLE and found:
        reason = f"dial tcp {found[1]}: connect: {found[2].lower()}"
        return f'connection error: desc = "transport: Error while dialing: {reason}"'
    return details
