"""Small spellings: paths, status phrases, certificates."""

from __future__ import annotations

import datetime
import re
import ssl
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from bbs_server.core.rootfs import is_valid_rootfs
from bbs_server.effects import urls
from bbs_server.effects.peer import BadStatus
from bbs_server.effects.tls import client_tls


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


def test_a_good_identity(certificates) -> None:
    context = client_tls(str(certificates.ca), str(certificates.client_cert), str(certificates.client_key))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert {c["name"] for c in context.get_ciphers() if c["protocol"] == "TLSv1.2"} == {
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES128-GCM-SHA256",
    }


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    authority, now = trustme.CA(), datetime.datetime.now(datetime.UTC)
    leaf = authority.issue_cert(
        "localhost", not_before=now - datetime.timedelta(2), not_after=now - datetime.timedelta(1)
    )
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    leaf.private_key_pem.write_to_path(str(tmp_path / "key"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    with pytest.raises(ValueError, match=r"certificate has expired: validity ended at .* but current time is"):
        client_tls(str(tmp_path / "ca"), str(tmp_path / "cert"), str(tmp_path / "key"))


def test_files_that_do_not_fit_are_refused(certificates, tmp_path: Path) -> None:
    ca, cert, key = (str(path) for path in (certificates.ca, certificates.client_cert, certificates.client_key))
    (tmp_path / "garbage").write_text("garbage")
    for files in ((ca, cert, str(certificates.server_key)), (ca, str(tmp_path / "garbage"), key)):
        with pytest.raises(ValueError, match="failed to load keypair"):
            client_tls(*files)
    with pytest.raises(ValueError, match="failed to load CA certificate"):
        client_tls(str(tmp_path / "garbage"), cert, key)
    with pytest.raises(OSError, match="No such file"):
        client_tls(ca, str(tmp_path / "absent"), key)
