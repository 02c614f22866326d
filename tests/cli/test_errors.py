"""What `bbs` says when something is wrong, its statuses, and where options may stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

NOWHERE = "https://127.0.0.1:9"


def test_no_address(bbs: Any) -> None:
    assert bbs("cells", status=3, BBS_URL="") == "bbs: no BBS given: use --bbsURL or set BBS_URL\n"
    assert "invalid scheme: bbs" in bbs("cells", status=3, BBS_URL="bbs")
    assert "no Locket given" in bbs("locks", status=3, LOCKET_API_LOCATION="")


def test_nobody_there(bbs: Any) -> None:
    text = bbs("cells", status=4, BBS_URL=NOWHERE)
    assert f"no BBS answers at {NOWHERE}" in text
    assert "a standby opens its port once it is active" in text
    assert "Locket error: UNAVAILABLE" in bbs("locks", status=4, LOCKET_API_LOCATION="127.0.0.1:9")


def test_no_client_certificate(bbs: Any) -> None:
    assert "requires a client certificate" in bbs("cells", status=4, CLIENT_CERT_FILE="", CLIENT_KEY_FILE="")


def test_a_server_of_another_authority(bbs: Any, certificates: Any) -> None:
    text = bbs("cells", status=4, CA_CERT_FILE=str(certificates.stranger_ca))
    assert "is not of the authority given" in text
    assert bbs("cells", "--skipCertVerify", CA_CERT_FILE=str(certificates.stranger_ca))


def test_a_client_certificate_of_another_authority(bbs: Any, certificates: Any) -> None:
    stranger = {"CLIENT_CERT_FILE": str(certificates.stranger_cert), "CLIENT_KEY_FILE": str(certificates.stranger_key)}
    assert "does not accept this client certificate" in bbs("cells", status=4, **stranger)


def test_a_certificate_file_that_is_not_there(bbs: Any) -> None:
    assert "cannot use the certificate files" in bbs("cells", status=4, CLIENT_KEY_FILE="/none")


@pytest.mark.parametrize(
    ("spec", "problem", "status"),
    [
        ("{", "invalid definition: not JSON", 3),
        ('{"task_guid":5}', "Task.task_guid: expected a text, not 5", 3),
        ("@/none", "cannot read /none: No such file or directory", 3),
        ('{"task_guid":"t"}', "BBS error: INVALID_REQUEST: Invalid field: domain, Invalid field: rootfs", 4),
    ],
)
def test_a_bad_definition(bbs: Any, spec: str, problem: str, status: int) -> None:
    assert problem in bbs("create-task", spec, status=status)


def test_bad_arguments(bbs: Any) -> None:
    assert "invalid ttl 'soon'" in bbs("set-domain", "d", "--ttl", "soon", status=3)
    assert "No such command 'frob'" in bbs("frob", status=2)
    assert "INDEX" in bbs("retire-actual-lrp", "guid", "first", status=2)


def test_options_before_and_after_the_verb(bbs: Any) -> None:
    url = bbs.environment["BBS_URL"]
    orders: list[Callable[[], str]] = [
        lambda: bbs("--bbsURL", url, "domains", BBS_URL=NOWHERE),
        lambda: bbs("domains", "--bbsURL", url, BBS_URL=NOWHERE),
        lambda: bbs("domains", f"--bbs-url={url}", "--json", BBS_URL=NOWHERE),
    ]
    assert len({order() for order in orders}) == 1


def test_help_and_completion_need_no_server(bbs: Any) -> None:
    assert "create-desired-lrp" in bbs("--help", BBS_URL="")
    assert "_bbs_completion()" in bbs(_BBS_COMPLETE="source_bash")
    words = {"_BBS_COMPLETE": "complete_bash", "COMP_WORDS": "bbs desired", "COMP_CWORD": "1"}
    assert bbs(**words).split() == ["desired-lrps", "desired-lrp", "desired-lrp-scheduling-infos"]
    assert bbs("version").startswith("0.")
