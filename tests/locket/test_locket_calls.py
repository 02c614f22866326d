"""The four calls: results, refusals, rows (locket.md sections 6 and 8)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from bbs_protos import locket_pb2 as pb

Code = grpc.StatusCode


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def row(database: Any, key: str = "k") -> dict[str, Any] | None:
    found = await database.fetchrow("SELECT * FROM locks WHERE path = $1", key)
    return dict(found) if found is not None else None


async def test_a_lock_is_taken_and_fetched(client: Any, database: Any) -> None:
    await client.lock("k", "o", 7, value="some value", type="presence")
    assert await client.fetch("k") == pb.Resource(
        key="k", owner="o", value="some value", type="lock", type_code=pb.LOCK
    )
    stored = await row(database)
    assert stored is not None
    assert stored.pop("modified_id")
    expected = {"path": "k", "owner": "o", "value": "some value", "type": "lock", "modified_index": 1, "ttl": 7}
    assert stored == expected


async def test_the_owner_renews_everything(client: Any, database: Any) -> None:
    await client.lock()
    first = await row(database)
    await client.lock(ttl=99, value="other", type_code=pb.PRESENCE)
    second = await row(database)
    assert first is not None
    assert second == {**first, "value": "other", "type": "presence", "modified_index": 2, "ttl": 99}


async def test_somebody_else_collides(client: Any) -> None:
    await client.lock(owner="first")
    assert await refusal(client.lock(owner="second")) == (Code.ALREADY_EXISTS, "lock-collision")
    # Who has the lock counts more than what is wrong with the row to write.
    assert await refusal(client.lock(owner="x" * 256)) == (Code.ALREADY_EXISTS, "lock-collision")
    assert await refusal(client.release(owner="second")) == (Code.ALREADY_EXISTS, "lock-collision")
    assert (await client.fetch()).owner == "first"


async def test_of_concurrent_first_calls_one_succeeds(client: Any) -> None:
    results = await asyncio.gather(
        *(client.lock(owner=f"owner {number}") for number in range(20)), return_exceptions=True
    )
    assert [result for result in results if not isinstance(result, BaseException)] == [None]
    texts = {result.details() for result in results if isinstance(result, grpc.aio.AioRpcError)}
    assert texts <= {"lock-collision", "sql-resource-exists"}


@pytest.mark.parametrize(
    ("fields", "code", "text"),
    [
        ({"type_code": 0, "type": "lock", "ttl": 0, "owner": ""}, Code.NOT_FOUND, "invalid-type"),
        ({"type_code": 7}, Code.NOT_FOUND, "invalid-type"),
        ({"ttl": 0, "owner": ""}, Code.INVALID_ARGUMENT, "invalid-ttl"),
        ({"ttl": -1}, Code.INVALID_ARGUMENT, "invalid-ttl"),
        ({"owner": ""}, Code.INVALID_ARGUMENT, "invalid-owner"),
        ({"value": "x" * 4097}, Code.UNKNOWN, "sql-bad-request"),
        ({"key": "x" * 256}, Code.UNKNOWN, "sql-bad-request"),
        ({"owner": "x" * 256}, Code.UNKNOWN, "sql-bad-request"),
        ({"owner": "a\0"}, Code.UNKNOWN, "sql-unknown, error code: 22021, flavor: postgres"),
    ],
)
async def test_locks_that_are_refused(client: Any, fields: Any, code: grpc.StatusCode, text: str) -> None:
    assert await refusal(client.lock(**fields)) == (code, text)


async def test_text_that_is_not_utf_8(client: Any) -> None:
    """It is carried as far as the database, and no farther (wire.md 6)."""

    def call(name: str, fields: bytes) -> Awaitable[Any]:
        resource = fields if name == "Fetch" else b"\x0a" + bytes((len(fields),)) + fields + b"\x10\x07"
        answer: Awaitable[Any] = client.channel.unary_unary(f"/models.Locket/{name}")(resource)
        return answer

    key, owner, value, type_ = b"\x0a\x01k", b"\x12\x01o", b"\x1a\x01v", b"\x22\x01\xff\x28\x01"
    refused = (Code.UNKNOWN, "sql-unknown, error code: 22021, flavor: postgres")
    assert await refusal(call("Fetch", b"\x0a\x01\xff")) == refused
    assert await refusal(call("Lock", b"\x0a\x01\xff" + owner + value + type_)) == refused
    assert await refusal(call("Lock", key + b"\x12\x01\xff" + value + type_)) == refused
    assert await refusal(call("Lock", key + owner + b"\x1a\x01\xff" + type_)) == refused
    await call("Lock", key + owner + value + type_)
    assert (await client.fetch("k")).type == "lock"
    assert await refusal(call("Lock", key + b"\x12\x01\xff" + value + type_)) == (Code.ALREADY_EXISTS, "lock-collision")
    assert await refusal(call("Release", key + b"\x12\x01\xff")) == (Code.ALREADY_EXISTS, "lock-collision")
    assert await refusal(call("Release", b"\x0a\x01\xff" + owner)) == refused
    await call("Release", key + owner + b"\x1a\x01\xff")
    assert (await refusal(client.fetch("k")))[1] == "resource-not-found"


async def test_the_longest_texts(client: Any) -> None:
    await client.lock("é" * 255, "ö" * 255, value="ü" * 4096)
    assert (await client.fetch("é" * 255)).value == "ü" * 4096
    await client.lock("", ttl=2**63 - 1)
    assert (await client.fetch("")).owner == "o"


async def test_requests_without_resource(client: Any) -> None:
    for call in (client.stub.Lock(pb.LockRequest(ttl_in_seconds=1)), client.stub.Release(pb.ReleaseRequest())):
        code, _ = await refusal(call)
        assert code is Code.INVALID_ARGUMENT
    await client.lock()


async def test_requests_that_cannot_be_decoded(client: Any) -> None:
    for body in (b"\xff", b"\x08\x01"):
        code, text = await refusal(client.channel.unary_unary("/models.Locket/Fetch")(body))
        assert code is Code.INTERNAL
        assert text is not None
        assert text.startswith("grpc: error unmarshalling request: ")
    code, _ = await refusal(client.channel.unary_unary("/models.Locket/Nothing")(b""))
    assert code is Code.UNIMPLEMENTED


async def test_release(client: Any, database: Any) -> None:
    await client.lock()
    first = await row(database)
    await client.release()
    assert await refusal(client.fetch()) == (Code.NOT_FOUND, "resource-not-found")
    await client.release()
    await client.lock(owner="next")
    second = await row(database)
    assert first is not None
    assert second is not None
    assert second["modified_index"] == 1
    assert second["modified_id"] != first["modified_id"]


async def test_all_of_a_type(client: Any) -> None:
    assert await client.fetch_all(pb.LOCK) == {}
    await client.lock("lock")
    await client.lock("cell-1", value="1", type_code=pb.PRESENCE)
    await client.lock("cell-2", value="2", type_code=pb.PRESENCE)
    assert set(await client.fetch_all(pb.LOCK, "presence")) == {"lock"}
    cells = await client.fetch_all(pb.PRESENCE, "presence")
    assert {key: cell.value for key, cell in cells.items()} == {"cell-1": "1", "cell-2": "2"}
    assert {(cell.type, cell.type_code) for cell in cells.values()} == {("presence", pb.PRESENCE)}
    for code in (0, 3):
        assert await refusal(client.fetch_all(code, "presence")) == (Code.NOT_FOUND, "invalid-type")


INSERT = (
    "INSERT INTO locks (path, owner, value, type, modified_index, modified_id, ttl) VALUES ($1, $2, '', $3, 1, $4, 60)"
)


SET_NULL = {
    "owner": "UPDATE locks SET owner = NULL WHERE path = 'null'",
    "value": "UPDATE locks SET value = NULL WHERE path = 'null'",
    "modified_index": "UPDATE locks SET modified_index = NULL WHERE path = 'null'",
    "modified_id": "UPDATE locks SET modified_id = NULL WHERE path = 'null'",
    "ttl": "UPDATE locks SET ttl = NULL WHERE path = 'null'",
}


async def test_rows_made_by_hand(client: Any, database: Any) -> None:
    await database.execute(INSERT, "nobody's", "", "lock", "")
    await database.execute(INSERT, "odd", "o", "other", "id")
    await database.execute(INSERT, "null", None, "lock", "id")
    assert await refusal(client.fetch("nobody's")) == (Code.NOT_FOUND, "resource-not-found")
    found = await client.fetch("odd")
    assert (found.type, found.type_code) == ("other", pb.UNKNOWN)
    assert await client.fetch_all(pb.LOCK) == {}
    code, _ = await refusal(client.fetch("null"))
    assert code is Code.UNKNOWN
    await client.lock("nobody's")
    stored = await row(database, "nobody's")
    assert stored is not None
    assert (stored["owner"], stored["modified_index"]) == ("o", 2)
    assert stored["modified_id"]


@pytest.mark.parametrize("column", ["owner", "value", "modified_index", "modified_id", "ttl"])
async def test_a_row_with_a_null_does_not_hide_the_others(client: Any, database: Any, column: str) -> None:
    await client.lock("whole", type_code=pb.PRESENCE)
    await client.lock("null", type_code=pb.PRESENCE)
    await database.execute(SET_NULL[column])
    assert set(await client.fetch_all(pb.PRESENCE)) == {"whole"}
    code, text = await refusal(client.fetch("null"))
    assert code is Code.UNKNOWN
    assert text == f'sql: Scan error on column "{column}": converting NULL is unsupported'


async def test_a_locked_row_times_out(start: Any, database: Any) -> None:
    async with start(operation_limit=1) as served:
        await served.client.lock()
        async with database.transaction():
            await database.execute("SELECT * FROM locks FOR UPDATE")
            expected = (Code.DEADLINE_EXCEEDED, "timeout: context deadline exceeded")
            assert await refusal(served.client.lock()) == expected
        await served.client.lock()


async def test_a_client_that_hangs_up_does_not_stop_the_work(client: Any, database: Any, until_waiting: Any) -> None:
    await client.lock(owner="first")
    async with database.transaction():
        await database.execute("UPDATE locks SET owner = 'o'")
        lock = pb.Resource(key="k", owner="o", value="done", type_code=pb.LOCK)
        call = client.stub.Lock(pb.LockRequest(resource=lock, ttl_in_seconds=60))
        await until_waiting(1)
        call.cancel()
        # The server knows by the time it has answered a later call on the same connection.
        assert (await refusal(client.fetch("another")))[0] is Code.NOT_FOUND
    async with asyncio.timeout(10):
        while (await client.fetch()).value != "done":
            pass
    assert (await row(database) or {})["modified_index"] == 2


async def test_a_missing_table_ends_the_process(start: Any, database: Any) -> None:
    missing = asyncio.Event()
    async with start(on_unrecoverable=missing.set) as served:
        await database.execute("DROP TABLE locks")
        assert await refusal(served.client.fetch()) == (Code.UNKNOWN, "sql-unrecoverable")
        await asyncio.wait_for(missing.wait(), 10)


async def test_lost_connections_are_replaced(client: Any, database: Any) -> None:
    await client.lock()
    await database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    answered = False
    async with asyncio.timeout(10):
        while not answered:
            # A call whose connection was cut in the middle may fail once.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await client.lock()
                answered = True
    assert (await client.fetch()).owner == "o"
