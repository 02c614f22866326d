"""The access log: two lines per handled request in a file of its own (server.md section 14)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bbs_server.process.lager import Level, Logger, Sink, write_all
from bbs_server.wire.observer import Call

SOURCE = "bbs-access"
"""Always, whatever the session is called."""

_PARTS = (("organization", "organizationName"), ("organizational_unit", "organizationalUnitName"))


def open_access_log(path: str) -> Logger:
    """A log that appends to the file; it is never cut, redacted or reopened. Raises OSError."""
    descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    return Logger(Sink(lambda line: write_all(descriptor, line), Level.INFO), SOURCE)


def request_data(call: Call) -> dict[str, Any]:
    """What both logs say of a request."""
    certificate = call.client.certificate
    return {
        "method": call.method,
        "remote_addr": call.client.peer,
        "request": call.target,
        **_names("issuer", certificate),
        **_names("subject", certificate),
    }


def _names(side: str, certificate: Mapping[str, Any]) -> dict[str, Any]:
    """The name parts of one side of a certificate in the shape of `ssl.getpeercert()`; absent ones are None."""
    pairs: Sequence[tuple[str, str]] = [pair for part in certificate.get(side, ()) for pair in part]
    shown: dict[str, Any] = {
        f"peer_cert_{side}_{name}": [value for key, value in pairs if key == wanted] or None for name, wanted in _PARTS
    }
    # Of several common names the last one counts, as in Go.
    names = [value for key, value in pairs if key == "commonName"]
    shown[f"peer_cert_{side}_common_name"] = names[-1] if names else None
    return shown
