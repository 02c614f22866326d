"""What the process may want to know of the requests: logs, access log and metrics (server.md 10, 13, 14, 19)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bbs_server.core.errors import Error

if TYPE_CHECKING:
    from bbs_server.wire.routes import Route


class Client(Protocol):
    """Who is at the other end of a connection; asked only for requests of which something is logged."""

    @property
    def peer(self) -> str:
        """Its address, `host:port`."""

    @property
    def certificate(self) -> dict[str, Any]:
        """Its certificate as `ssl.getpeercert()` shows it."""


@dataclass(slots=True)
class Call:
    """One handled request, from its head to the end of its answer.

    `target` is the request target as sent. `started` is a `time.perf_counter_ns` reading. `note` belongs to the
    observer.
    """

    route: Route
    request_id: str
    method: str
    target: str
    client: Client
    started: int
    note: Any = field(default=None)


class Observer(Protocol):
    """The hooks of the process. They are called on the event loop and must not block or raise."""

    watches: bool
    """Whether `serving` and `done` are called at all: False while neither log wants them."""

    def serving(self, call: Call) -> None:
        """A request with a route is about to be handled."""

    def done(self, call: Call, duration: int) -> None:
        """Its answer is written, or its stream has ended. `duration` in ns."""

    def counted(self, route: Route) -> None:
        """A handled request or a stream has ended (`RequestCount`)."""

    def latency(self, route: Route, duration: int) -> None:
        """Time from head to written answer in ns, streams excluded (`RequestLatency`)."""

    def failed(self, call: Call, action: str, error: Error, request: Any) -> None:
        """A handler gave up: `failed-to-read-body`, `failed-to-parse-request-body`, `invalid-request`,
        or `failed` for the operation itself. `request` is the decoded message, None where there is none.
        """

    def broke(self, call: Call, problem: BaseException) -> None:
        """The operation raised something unforeseen. The client has got an error of type 0."""

    def handshake_failed(self, peer: str, reason: str) -> None:
        """A TLS handshake failed; the reference writes a line to stderr (server.md 8)."""


class Silence:
    """An observer that does nothing."""

    watches = False

    def serving(self, call: Call) -> None: ...

    def done(self, call: Call, duration: int) -> None: ...

    def counted(self, route: Route) -> None: ...

    def latency(self, route: Route, duration: int) -> None: ...

    def failed(self, call: Call, action: str, error: Error, request: Any) -> None: ...

    def broke(self, call: Call, problem: BaseException) -> None: ...

    def handshake_failed(self, peer: str, reason: str) -> None: ...
