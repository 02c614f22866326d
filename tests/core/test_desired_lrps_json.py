"""The JSON columns of LRPs: what is stored, and that it reads back."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core import json_columns as columns
from bbs_server.core.go_json import NotJSON
from bbs_server.core.records import MetricTag

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
names = st.text(max_size=12)
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def escaped(source: str) -> bytes:
    return "".join(ESCAPES.get(character, character) for character in source).encode(errors="surrogatepass")


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b'{ "b" : 1.50, "a":"<x&>" }', b'{"b":1.50,"a":"\\u003cx\\u0026\\u003e"}'),
        (b" 1e400 ", b"1e400"),
        (b"-0", b"-0"),
        (b"9" * 5000, b"9" * 5000),
        (b'{"a":1, "a":2}', b'{"a":1,"a":2}'),
        (b'"a b\\" c\\\\" ', b'"a b\\" c\\\\"'),
        (b"[\t1 ,\r\n2 ]", b"[1,2]"),
        (b"null", b"null"),
        (b"\t null\n", b"null"),
        (b'"\xe2\x80\xa8\xe2\x80\xa9"', b'"\\u2028\\u2029"'),
        (b'"\xff\xfe \\u00e9 \xc3\xa9"', b'"\xff\xfe \\u00e9 \xc3\xa9"'),
        (b'"\x7f"', b'"\x7f"'),
    ],
)
def test_a_route_value_is_stored_compact_and_escaped(sent: bytes, stored: bytes) -> None:
    assert columns.normalised(sent) == stored


@pytest.mark.parametrize(
    "sent",
    [
        b"", b" ", b"nope", b"NaN", b"-Infinity", b"[1,]", b"{'a':1}", b"01", b"1.", b".5", b"+1", b"0x1", b'"a',
        b'"\n"',
        b'"\\x"', b'"\\u12g4"', b'"\x00"', b"[1] 2", b"\xef\xbb\xbf1", b"\x0b1", b"[" * 100_000, b"\xff", b"{\"a\"}",
    ],
)  # fmt: skip
def test_a_route_value_that_is_not_json_is_refused(sent: bytes) -> None:
    with pytest.raises(NotJSON):
        columns.normalised(sent)


@given(json_values, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_normalising_keeps_the_text_between_white_space(value: Any, indent: Any, ascii_only: bool) -> None:
    sent = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    compact = json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)
    stored = columns.normalised(sent)
    assert stored == escaped(compact)
    assert columns.normalised(stored) == stored


@given(st.binary(max_size=60))
def test_normalising_any_bytes_gives_json_or_refuses(sent: bytes) -> None:
    try:
        stored = columns.normalised(sent)
    except NotJSON:
        return
    assert not set(b"<>&") & set(stored)
    assert columns.normalised(stored) == stored


@given(st.none() | st.dictionaries(names, json_values, max_size=5))
def test_routes_read_back_as_written(values: dict[str, Any] | None) -> None:
    routes = None
    if values is not None:
        routes = columns.by_name(
            (columns.text(name), columns.normalised(json.dumps(v).encode())) for name, v in values.items()
        )
    column = columns.dump_routes(routes)
    assert columns.load_routes(column) == routes
    assert b": " not in column or b'"' in column
    json.loads(column)


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def called(function: Callable[[], Any], depth: int) -> Any:
    """Its result when the caller has used up some of the interpreter's stack."""
    return called(function, depth - 1) if depth else function()


@pytest.mark.parametrize("depth", [0, 300])
def test_a_route_value_that_is_taken_can_be_read_wherever_it_is(depth: int) -> None:
    value = called(lambda: columns.normalised(deep(500)), depth)
    assert called(lambda: columns.load_routes(columns.dump_routes((("r", value),))), depth) == (("r", value),)


@pytest.mark.parametrize("depth", [0, 300])
@pytest.mark.parametrize("levels", [501, 600, 978, 979, 5000])
def test_a_route_value_that_is_nested_too_deep_is_refused_wherever_it_is(levels: int, depth: int) -> None:
    for read in (lambda: columns.normalised(deep(levels)), lambda: columns.load_routes(b'{"r":' + deep(levels) + b"}")):
        with pytest.raises(NotJSON, match="exceeded max depth"):
            called(read, depth)


def test_routes_are_sorted_and_absent_differs_from_empty() -> None:
    assert columns.dump_routes(columns.by_name([("b", b"1"), ("a<", b'"x"')])) == b'{"a\\u003c":"x","b":1}'
    assert columns.dump_routes(None) == b"null"
    assert columns.dump_routes(()) == b"{}"


def test_routes_spelled_by_others_keep_their_text() -> None:
    assert columns.load_routes(b' { "b" : [1 , 2.50] , "\\u0061":{ } ,"b":"\xff" } ') == (
        ("a", b"{ }"),
        ("b", b'"\xff"'),
    )


@pytest.mark.parametrize(
    ("data", "routes"),
    [
        (b"null", None),
        (b" null ", None),
        (b"{}", ()),
        (b'{"a":"}","b":[ 1, 2 ]}', (("a", b'"}"'), ("b", b"[ 1, 2 ]"))),
        (b'{"a":1,"a":2.50}', (("a", b"2.50"),)),
        (b'{"a":null}', (("a", b"null"),)),
        (b'{"a":' + b"9" * 5000 + b"}", (("a", b"9" * 5000),)),
    ],
)
def test_routes_keep_the_text_of_their_values(data: bytes, routes: Any) -> None:
    assert columns.load_routes(data) == routes


def test_routes_with_invalid_bytes_are_written_and_read() -> None:
    routes = (("a", b'"\xff"'),)
    assert columns.dump_routes(routes) == b'{"a":"\xff"}'
    assert columns.load_routes(columns.dump_routes(routes)) == routes


NOT_OBJECTS = (
    b"", b"garbage", b"[]", b"1", b"{", b'{"a":1', b'"x"', b'{"a"}', b'{"a":1,}', b'{"a":1}x', b'{"a":NaN}', b'{"a" 1}',
    b"{1:2}",
)  # fmt: skip


@pytest.mark.parametrize("data", NOT_OBJECTS)
def test_columns_that_are_not_objects_cannot_be_read(data: bytes) -> None:
    with pytest.raises(NotJSON):
        columns.load_routes(data)
    with pytest.raises(NotJSON):
        columns.load_metric_tags(data)
    with pytest.raises(NotJSON):
        columns.load_tags(data)


@given(st.none() | st.dictionaries(names, st.builds(MetricTag, st.text(max_size=9), st.sampled_from([0, 1, 2]))))
def test_metric_tags_read_back_as_written(tags: dict[str, MetricTag] | None) -> None:
    record = None if tags is None else columns.by_name((columns.text(n), t) for n, t in tags.items())
    if record is not None:
        record = tuple((n, MetricTag(columns.text(t.static), t.dynamic)) for n, t in record)
    assert columns.load_metric_tags(columns.dump_metric_tags(record)) == record


def test_metric_tags_leave_zero_values_out() -> None:
    tags = (
        ("a", MetricTag("s")),
        ("b", MetricTag("", 1)),
        ("c", MetricTag("", 2)),
        ("d", MetricTag("x", 9)),
        ("e", MetricTag()),
    )
    column = columns.dump_metric_tags(tags)
    assert column == (
        b'{"a":{"static":"s"},"b":{"dynamic":"INDEX"},"c":{"dynamic":"INSTANCE_GUID"},"d":{"static":"x","dynamic":""},"e":{}}'
    )
    loaded = columns.load_metric_tags(column)
    assert loaded is not None
    assert dict(loaded)["d"] == MetricTag("x", 0)


def test_metric_tags_spelled_by_others() -> None:
    assert columns.load_metric_tags(b'{"z":null, "a":{"Static":"s","other":1,"dynamic":null}}') == (
        ("a", MetricTag("s")),
        ("z", MetricTag()),
    )
    with pytest.raises(NotJSON):
        columns.load_metric_tags(b'{"a":{"static":1}}')


@given(st.none() | st.dictionaries(names, st.text(max_size=9)))
def test_tags_read_back_as_written(tags: dict[str, str] | None) -> None:
    record = None if tags is None else columns.by_name((columns.text(n), columns.text(v)) for n, v in tags.items())
    column = columns.dump_tags(record)
    assert columns.load_tags(column) == record
    assert not set("<>&\u2028\u2029") & set(column.decode())


@given(st.none() | st.lists(st.text()))
def test_internal_routes_read_back_as_written(hostnames: list[str] | None) -> None:
    record = None if hostnames is None else tuple(columns.text(name) for name in hostnames)
    assert columns.load_hostnames(columns.dump_hostnames(record)) == record


@given(st.none() | st.lists(st.text()))
def test_placement_tags_read_back_as_written(tags: list[str] | None) -> None:
    record = None if tags is None else tuple(columns.text(tag) for tag in tags)
    assert columns.load_placement_tags(columns.dump_placement_tags(record)) == record


def test_placement_tags_none_is_null() -> None:
    assert columns.dump_placement_tags(None) == "null"
    assert columns.dump_placement_tags(("a&", "b")) == '["a\\u0026","b"]'
    assert columns.load_placement_tags("[]") == ()


@pytest.mark.parametrize("source", ["[1]", "{}", '"a"', "["])
def test_placement_tags_that_cannot_be_understood(source: str) -> None:
    with pytest.raises(NotJSON):
        columns.load_placement_tags(source)


@pytest.mark.parametrize(
    ("value", "hostnames"),
    [
        (b'[{"hostname":"a.internal"},{"hostname":"b","port":1}]', ("a.internal", "b")),
        (b"[]", ()),
        (b"null", None),
        (b'[{},null,{"HostName":"x"},{"hostname":null}]', ("", "", "x", "")),
    ],
)
def test_hostnames_of_internal_routes(value: bytes, hostnames: tuple[str, ...] | None) -> None:
    assert columns.load_hostnames(value) == hostnames


@pytest.mark.parametrize("value", [b"", b"{}", b"1", b'["a"]', b'[{"hostname":1}]', b'"x"'])
def test_internal_routes_that_cannot_be_understood(value: bytes) -> None:
    with pytest.raises(NotJSON):
        columns.load_hostnames(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(b"\xe2\x82", "\ufffd\ufffd"), (b"a\xffb", "a\ufffdb"), ("plain", "plain"), (b"\xed\xa0\x80", "\ufffd" * 3)],
)
def test_each_bad_byte_becomes_one_replacement_character(value: bytes | str, text: str) -> None:
    assert columns.text(value) == text
