"""Small spellings: paths, status phrases."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.rootfs import is_valid_rootfs
from bbs_server.effects import urls
from bbs_server.effects.peer import BadStatus


def test_path_segments() -> None:
    assert urls.segment("a b/c?d#e%f:g~h") == "a%20b/c%3Fd%23e%25f:g~h"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://h/a b?x=1 2#f", "http://h/a%20b?x=1 2"),
        ("http://u:p@h:1/é%20/%2f{}", "http://u:p@h:1/%C3%A9%20//%7B%7D"),
        ("http://h/a%2fb[c]?%zz", "http://h/a%2fb[c]?%zz"),
        ("http://exa<mple", "http://exa<mple"),
        ("https://::1/", "https://::1/"),
        ("mailto:%zz", "mailto:%zz"),
        ("foo", "foo"),
    ],
)
def test_urls_as_requests_name_them(url: str, sent: str) -> None:
    assert urls.sendable(url) == sent


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:hush@h:1/a@b:c?d", "http://u:***@h:1/a@b:c?d"),
        ("https://:hu:sh@@h", "https://:***@h"),
        ("http://u:@h/", "http://u:***@h/"),
        ("http://u@h/", "http://u@h/"),
        ("http://h:1/x:y@z", "http://h:1/x:y@z"),
        ("foo:bar@h", "foo:bar@h"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert urls.without_password(url) == shown


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://h/%zz", 'invalid URL escape "%zz"'),
        ("http://h/#%z", 'invalid URL escape "%z"'),
        ("http://%41/", 'invalid URL escape "%41"'),
        ("http://h/a\x7f", "net/url: invalid control character in URL"),
        ("http://h\\/", 'invalid character "\\\\" in host name'),
        ("http://us er@h/", "net/url: invalid userinfo"),
        ("http://h:1:x/", 'invalid port ":x" after host'),
        (" http://h/", "first path segment in URL cannot contain colon"),
        ("http://[::g]/", "invalid host"),
    ],
)
def test_urls_that_cannot_be_read(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem) + "$"):
        urls.sendable(url)


@given(
    st.text("ab1:/?#@[]%25f.-_ \t<>\"\\^`{|}é!$&'()*+,;=", max_size=12), st.sampled_from(["http://", "a:", "http:/"])
)
def test_urls_are_read_as_root_filesystems_are(rest: str, start: str) -> None:
    try:
        urls.sendable(start + rest)
    except ValueError:
        assert not is_valid_rootfs(start + rest)
    else:
        assert is_valid_rootfs(start + rest)


@pytest.mark.parametrize(
    ("status", "text"), [(404, "Not Found"), (413, "Request Entity Too Large"), (418, "I'm a teapot"), (299, "")]
)
def test_status_phrases(status: int, text: str) -> None:
    assert str(BadStatus(status)) == f"http error: status code {status} ({text})"
