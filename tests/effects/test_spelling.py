"""Small spellings: paths, status phrases, certificates."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
import trustme

from bbs_server.effects import urls
from bbs_server.effects.peer import BadStatus
from bbs_server.effects.tls import client_tls


def test_path_segments() -> None:
    assert urls.segment("a b/c?d#e%f:g~h") == "a%20b/c%3Fd%23e%25f:g~h"


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
