"""JSON as the reference writes it, and its complaints about what it cannot read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core import go_json
from bbs_server.core.go_json import NotJSON


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_and_is_safe_in_markup(value: str) -> None:
    written = go_json.string(value)
    assert json.loads(written) == value
    assert not set(written) & set("<>&\u2028\u2029")


def test_invalid_bytes_become_replacement_characters() -> None:
    assert go_json.string(b"a\xff<") == '"a\ufffd\\u003c"'


@pytest.mark.parametrize(("values", "text"), [(None, "null"), ((), "[]"), (("a", "b"), '["a","b"]')])
def test_arrays(values: tuple[str, ...] | None, text: str) -> None:
    assert go_json.strings(values) == text


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("", "unexpected end of JSON input"),
        ('{"a', "unexpected end of JSON input"),
        ("tru", "unexpected end of JSON input"),
        ("garbage", "invalid character 'g' looking for beginning of value"),
        ("nil", "invalid character 'i' in literal null (expecting 'u')"),
        ("{1:2}", "invalid character '1' looking for beginning of object key string"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("1 2", "invalid character '2' after top-level value"),
        ('"\\x"', "invalid character 'x' in string escape code"),
        ('"\n"', "invalid character '\\n' in string literal"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ("[" * 100_000, "exceeded max depth"),
        ("[" * 501 + "]" * 501, "exceeded max depth"),
        ('{"a":' * 501 + "1" + "}" * 501, "exceeded max depth"),
    ],
)
def test_complaints(source: str, complaint: str) -> None:
    with pytest.raises(NotJSON) as problem:
        go_json.parse(source)
    assert str(problem.value) == complaint


@pytest.mark.parametrize(
    "source",
    ["[" * 500 + "]" * 500, "[" + ",".join(["[{}]"] * 1000) + "]", f'["{"[" * 1000}"]', '"\\"' + "[" * 1000 + '"'],
)
def test_levels_are_counted_not_brackets(source: str) -> None:
    go_json.parse(source)


@given(st.text(max_size=20))
def test_any_text_is_parsed_or_complained_of(source: str) -> None:
    try:
        result = go_json.parse(source)
    except NotJSON as problem:
        result = str(problem)
    assert go_json.parse(json.dumps(result)) == result
