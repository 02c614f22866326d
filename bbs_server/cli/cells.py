"""The verbs for cells and for Locket."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import grpc
import httpx
import typer
from bbs_protos import locket_pb2, locket_pb2_grpc
from bbs_protos import models_pb2 as models

from bbs_server.cli.output import show
from bbs_server.cli.settings import INVALID, Settings, ask, explained, fail, settings_of
from bbs_server.client import ClientError, Target
from bbs_server.client.json_form import dumps_value

app = typer.Typer()
T = TypeVar("T")

CellId = Annotated[str, typer.Argument(metavar="CELL_ID")]
Key = Annotated[str, typer.Option("--key", "-k", help="Name of the lock or presence.")]
Owner = Annotated[str, typer.Option("--owner", "-o", help="Who holds it.")]
Value = Annotated[str, typer.Option("--value", "-v", help="What it says.")]
Ttl = Annotated[int, typer.Option("--ttl", "-t", help="Seconds it lasts.")]


@app.command()
def cells(context: typer.Context) -> None:
    """List the presences of cells."""
    show(settings_of(context), ask(context, lambda bbs: bbs.cells()), models.CellPresence)


@app.command()
def cell(context: typer.Context, cell_id: CellId) -> None:
    """Show the presence of a cell."""
    show(settings_of(context), [_find(context, cell_id)], models.CellPresence)


@app.command()
def cell_state(context: typer.Context, cell_id: CellId) -> None:
    """Ask a cell for its state."""
    _print_state(settings_of(context), _find(context, cell_id))


@app.command()
def cell_states(context: typer.Context) -> None:
    """Ask all cells for their states."""
    for presence in ask(context, lambda bbs: bbs.cells()):
        _print_state(settings_of(context), presence)


def _find(context: typer.Context, cell_id: str) -> models.CellPresence:
    found = [presence for presence in ask(context, lambda bbs: bbs.cells()) if presence.cell_id == cell_id]
    return found[0] if found else fail(f"cell {cell_id!r} has no presence")


def _print_state(settings: Settings, presence: models.CellPresence) -> None:
    try:
        tls = Target(presence.rep_url, settings.ca, settings.cert, settings.key, settings.skip_verify).tls()
        answer = httpx.get(f"{presence.rep_url}/state", verify=tls, timeout=settings.timeout, trust_env=False)
        state = answer.json()
    except (httpx.HTTPError, ClientError, OSError, ValueError) as problem:
        fail(f"{presence.cell_id} at {presence.rep_url} gives no state: {problem}")
    sys.stdout.write(dumps_value(state) + "\n")


@app.command()
def locks(context: typer.Context) -> None:
    """List the locks in Locket."""
    _list(context, locket_pb2.LOCK)


@app.command()
def presences(context: typer.Context) -> None:
    """List the presences in Locket."""
    _list(context, locket_pb2.PRESENCE)


@app.command()
def claim_lock(context: typer.Context, key: Key, owner: Owner, value: Value = "", ttl: Ttl = 15) -> None:
    """Claim a lock."""
    _claim(context, key, owner, value, ttl, "lock", locket_pb2.LOCK)


@app.command()
def claim_presence(context: typer.Context, key: Key, owner: Owner, value: Value = "", ttl: Ttl = 15) -> None:
    """Claim a presence."""
    _claim(context, key, owner, value, ttl, "presence", locket_pb2.PRESENCE)


@app.command()
def release_lock(context: typer.Context, key: Key, owner: Owner) -> None:
    """Release a lock."""
    request = locket_pb2.ReleaseRequest(resource=locket_pb2.Resource(key=key, owner=owner))
    _locket(context, lambda stub, seconds: _call(stub.Release(request, timeout=seconds)))


def _list(context: typer.Context, type_code: locket_pb2.TypeCode.ValueType) -> None:
    request = locket_pb2.FetchAllRequest(type_code=type_code)
    answer = _locket(context, lambda stub, seconds: _call(stub.FetchAll(request, timeout=seconds)))
    show(settings_of(context), answer.resources, locket_pb2.Resource)


def _claim(
    context: typer.Context,
    key: str,
    owner: str,
    value: str,
    ttl: int,
    kind: str,
    type_code: locket_pb2.TypeCode.ValueType,
) -> None:
    resource = locket_pb2.Resource(key=key, owner=owner, value=value, type=kind, type_code=type_code)
    request = locket_pb2.LockRequest(resource=resource, ttl_in_seconds=ttl)
    _locket(context, lambda stub, seconds: _call(stub.Lock(request, timeout=seconds)))


async def _call(call: Any) -> Any:
    return await call


def _locket(
    context: typer.Context,
    question: Callable[[locket_pb2_grpc.LocketAsyncStub, float], Coroutine[Any, Any, T]],
) -> T:
    settings = settings_of(context)
    if not settings.locket:
        fail("no Locket given: use --locketAPILocation or set LOCKET_API_LOCATION", INVALID)

    credentials = _credentials(settings)

    async def run() -> T:
        async with grpc.aio.secure_channel(settings.locket, credentials) as channel:
            stub: locket_pb2_grpc.LocketAsyncStub = locket_pb2_grpc.LocketStub(channel)
            try:
                return await question(stub, settings.timeout)
            except grpc.aio.AioRpcError as problem:
                fail(f"Locket error: {problem.code().name}: {problem.details()}")

    return explained(run)


def _credentials(settings: Settings) -> grpc.ChannelCredentials:
    try:
        ca, key, cert = (Path(path).read_bytes() for path in (settings.ca, settings.key, settings.cert))
    except OSError as problem:
        fail(f"cannot read the certificate files: {problem}", INVALID)
    return grpc.ssl_channel_credentials(ca, key, cert)
