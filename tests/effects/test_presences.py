"""Presences from a real Locket, and the rules by which their values are read."""

from __future__ import annotations

import json

import pytest
from bbs_protos import locket_pb2 as pb
from bbs_protos import models_pb2 as models
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.errors import RESOURCE_NOT_FOUND, ErrorType, Refused
from bbs_server.core.go_json import NotJSON
from bbs_server.effects import presence_json
from bbs_server.effects.presences import Presences

CAPTURED = (
    '{"cell_id":"cell-1","rep_address":"http://10.0.0.1:1800","zone":"z1","capacity":{"memory_mb":4096,'
    '"disk_mb":10240,"containers":256},"rootfs_provider_list":[{"name":"preloaded","properties":["cflinuxfs4"]},'
    '{"name":"preloaded+layer","properties":["cflinuxfs4"]},{"name":"extra"},{"name":"docker"}],'
    '"placement_tags":["iso"],"optional_placement_tags":["opt"],'
    '"rep_url":"https://cell-1.cell.service.cf.internal:1801","annotations":{}}'
)
CAPTURED_AS_PROTOBUF = bytes.fromhex(
    "0a0663656c6c2d311214687474703a2f2f31302e302e302e313a313830301a027a3122090880201080501880022a170a09707265"
    "6c6f61646564120a63666c696e75786673342a1d0a0f7072656c6f616465642b6c61796572120a63666c696e75786673342a070a"
    "0565787472612a080a06646f636b6572320369736f3a036f7074422c68747470733a2f2f63656c6c2d312e63656c6c2e73657276"
    "6963652e63662e696e7465726e616c3a31383031"
)


@pytest.fixture
def presences(locket_double, connect_locket, logged) -> Presences:
    return Presences(connect_locket(locket_double.address), 10.0, logged)


def test_a_captured_value_reads_as_it_was_answered() -> None:
    assert presence_json.load(CAPTURED).SerializeToString() == CAPTURED_AS_PROTOBUF


@pytest.mark.parametrize(
    ("value", "presence"),
    [
        ("{}", models.CellPresence()),
        ("null", models.CellPresence()),
        (' {"CELL_ID" : "x"} ', models.CellPresence(cell_id="x")),
        ('{"cell_id":"x","Cell_Id":"y","other":[1,{"a":null}]}', models.CellPresence(cell_id="y")),
        ('{"cell_id":"x","cell_id":null,"zone":null,"capacity":null}', models.CellPresence(cell_id="x")),
        ('{"capacity":{}}', models.CellPresence(capacity=models.CellCapacity())),
        ('{"capacity":{"memory_mb":-5}}', models.CellPresence(capacity=models.CellCapacity(memory_mb=-5))),
        ('{"zone":"\\ud800"}', models.CellPresence(zone="\ufffd")),
        ('{"zone":"\\ud83d\\ude00"}', models.CellPresence(zone="\U0001f600")),
        ('{"rootfs_provider_list":[null]}', models.CellPresence()),
        ('{"annotations":{"a":"b","c":null}}', models.CellPresence(annotations={"a": "b", "c": ""})),
        ('{"placement_tags":["a"],"placement_tags":[]}', models.CellPresence()),
    ],
)
def test_values_that_are_read(value: str, presence: models.CellPresence) -> None:
    assert presence_json.load(value) == presence


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "unexpected end of JSON input"),
        ('{"cell_id":', "unexpected end of JSON input"),
        ('{"cell_id":"x', "unexpected end of JSON input"),
        ("nul", "unexpected end of JSON input"),
        ("not json", "invalid character 'o' in literal null (expecting 'u')"),
        ("garbage", "invalid character 'g' looking for beginning of value"),
        ("{garbage", "invalid character 'g' looking for beginning of object key string"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        ('{"a":[1 2]}', "invalid character '2' after array element"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("[]", "json: cannot unmarshal array into Go value of type models.CellPresence"),
        ('"x"', "json: cannot unmarshal string into Go value of type models.CellPresence"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        (
            '{"cell_id":5}',
            "json: cannot unmarshal number 5 into Go struct field CellPresence.cell_id of type string",
        ),
        ('{"capacity":{"memory_mb":1.0}}', None),
        ('{"capacity":{"memory_mb":2147483648}}', None),
        ('{"capacity":{"memory_mb":1e2}}', None),
        ('{"capacity":{"memory_mb":"1"}}', None),
        ('{"capacity":[]}', None),
        ('{"annotations":{"a":1}}', None),
        ('{"placement_tags":{}}', None),
        ('{"placement_tags":[1]}', None),
        ('{"rootfs_provider_list":[1]}', None),
        ('{"zone":"a\nb"}', None),
        ("[" * 100_000, None),
    ],
)
def test_values_that_are_refused(value: str, text: str | None) -> None:
    with pytest.raises(NotJSON) as problem:
        presence_json.load(value)
    if text is not None:
        assert str(problem.value) == text


@given(st.text())
def test_any_text_is_read_or_refused(value: str) -> None:
    try:
        presence = presence_json.load(value)
    except ValueError:
        return
    assert isinstance(presence, models.CellPresence)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(-(2**31), 2**31 - 1))
def test_any_presence_that_a_cell_writes_is_read(text: str, number: int) -> None:
    value = json.dumps({"cell_id": text, "annotations": {text: text}, "capacity": {"disk_mb": number}})
    presence = presence_json.load(value)
    assert (presence.cell_id, dict(presence.annotations), presence.capacity.disk_mb) == (text, {text: text}, number)


async def test_all_cells(locket_double, presences: Presences, logged) -> None:
    locket_double.put_lock("master")
    assert await presences.all() == []
    locket_double.put_presence("cell-1", CAPTURED)
    locket_double.put_presence("broken", "{")
    locket_double.put_presence("twin", '{"cell_id":"cell-2","zone":"early"}')
    locket_double.put_presence("zwin", '{"cell_id":"cell-2","zone":"late"}')
    cells = {cell.cell_id: cell for cell in await presences.all()}
    assert cells.keys() == {"cell-1", "cell-2"}
    assert cells["cell-2"].zone == "late"
    assert cells["cell-1"].SerializeToString() == CAPTURED_AS_PROTOBUF
    assert logged.actions() == ["failed-to-unmarshal-presence"]


async def test_a_value_that_is_not_utf_8(locket_double, presences: Presences) -> None:
    """Each stray byte becomes U+FFFD, and nobody else's presence suffers (wire.md 6)."""
    locket_double.put_presence("cell-1", '{"cell_id":"a"}')
    broken = pb.Resource.FromString(b'\x0a\x01\xff\x1a\x10{"cell_id":"b\xff"}\x28\x02')
    assert isinstance(broken.value, bytes)
    locket_double.resources["broken"] = broken
    assert {cell.cell_id for cell in await presences.all()} == {"a", "b\ufffd"}


async def test_one_cell(locket_double, presences: Presences) -> None:
    locket_double.put_presence("cell-1", CAPTURED)
    assert (await presences.one("cell-1")).rep_url == "https://cell-1.cell.service.cf.internal:1801"


async def test_a_cell_that_is_gone(presences: Presences) -> None:
    with pytest.raises(Refused) as refused:
        await presences.one("nobody")
    assert refused.value.error == RESOURCE_NOT_FOUND


async def test_an_unreadable_cell(locket_double, presences: Presences) -> None:
    locket_double.put_presence("cell-1", "")
    with pytest.raises(Refused) as refused:
        await presences.one("cell-1")
    assert (refused.value.error.type, refused.value.error.message) == (0, "unexpected end of JSON input")


async def test_locket_down(connect_locket, closed_port: int) -> None:
    presences = Presences(connect_locket(f"127.0.0.1:{closed_port}"), 10.0)
    for asking in (presences.all(), presences.one("c")):
        with pytest.raises(Refused) as refused:
            await asking
        assert refused.value.error.type == ErrorType.UNKNOWN
        assert refused.value.error.message == (
            'rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: '
            f'dial tcp 127.0.0.1:{closed_port}: connect: connection refused"'
        )
