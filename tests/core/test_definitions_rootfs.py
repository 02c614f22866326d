"""Root filesystems as URLs (definitions.md section 3)."""

from __future__ import annotations

# ruff: noqa: SIM905 (lists of words read better than lists of quotes)
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.rootfs import is_valid_rootfs

VALID = [
    *"preloaded:x preloaded: PRELOADED:x p+l.a-y:x a: a:// x:/y x:? x:#".split(),
    "preloaded+layer:cflinuxfs3?layer=http://x&layer_path=/&layer_digest=",
    "preloaded:a b",
    *"docker:///a/b#c docker://host:5000/a docker://host:/a docker://u:p@h/x docker:///a?%zz".split(),
    *'http://[::1] http://[::1]:80 http://[::1]: docker://[fe80::1%25en0]/ http://exa<mple http://a"b'.split(),
    *"preloaded:%zz docker:///é docker:///%41 docker://é/ docker://%C3%A9/ docker://a%25b/ a:#\x01".split(" "),
    *"http://::1/ http://h:80:80/ http://a@b@c/ docker://u%41@h/ http://[::ffff:1.2.3.4]/".split(),
    "docker:///a b",
    "docker:foo bar",
    "docker://[fe80::1%25a%20b]/",
    "docker://[fe80::1%25%2525]/",
    b"docker:///\xff\xfe",
    b"docker://\xff/",
]
INVALID = [
    *" foo foo/bar /abs preloaded :foo 1ab:foo +ab:foo a_b:foo é:foo a/b:c ?x:y #x:y".split(" "),
    *("a:b\x7f", "a:b\n", "a:\t", "a:\0", " a:b", "ab c:foo", "*:x"),
    *"docker://host:port/a docker:///a%zz docker:///a#%zz docker:///a%4 docker:/a%zz docker:x#%".split(),
    "docker://a b/c",
    "docker://us er@h/",
    "docker://u%zz@h/",
    "docker://é@h/",
    *"http://[::1 docker://[fe80::1%en0]/ docker://%41/x docker://h%20/x http://exa\\mple".split(),
    *"http://[1.2.3.4]/ http://[]/ http://[::1]x/ http://[::1]:x/ http://a[::1]/ http://[::1%25]/".split(),
    *"http://[::1%25a%2Fb]/ http://[::1%25a%C3]/ http://[1:2]/ http://[::1%2541%]/ http://[g::]/".split(),
    b"\xff:x",
]


@pytest.mark.parametrize("text", VALID)
def test_valid(text: str | bytes) -> None:
    assert is_valid_rootfs(text)


@pytest.mark.parametrize("text", INVALID)
def test_invalid(text: str | bytes) -> None:
    assert not is_valid_rootfs(text)


@given(st.binary(max_size=60) | st.text(alphabet="a:/?#[]@%25x1 .-é", max_size=40))
def test_any_text_is_decided(text: str | bytes) -> None:
    assert is_valid_rootfs(text) is is_valid_rootfs(text.encode() if isinstance(text, str) else text)
