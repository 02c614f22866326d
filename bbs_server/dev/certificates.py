"""Certificates for loopback: one authority per stack folder, one certificate and key per part."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

import trustme

_LIFETIME = datetime.timedelta(days=3650)
_NAMES = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM files of one part, and the authority that all parts trust."""

    ca: Path
    cert: Path
    key: Path


class Authority:
    """The authority of a folder: made once, kept in `ca.crt` and `ca.key`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = folder / "ca.crt"
        key = folder / "ca.key"
        folder.mkdir(parents=True, exist_ok=True)
        if self.ca.exists() and key.exists():
            self._authority = trustme.CA.from_pem(self.ca.read_bytes(), key.read_bytes())
            return
        self._authority = trustme.CA(organization_name="bbs-server on this machine")
        _write(key, self._authority.private_key_pem.bytes())
        _write(self.ca, self._authority.cert_pem.bytes())

    def identity(self, name: str) -> Identity:
        """The certificate of a part, made on first use; it serves and connects on loopback as `name`."""
        identity = Identity(self.ca, self._folder / f"{name}.crt", self._folder / f"{name}.key")
        if not (identity.cert.exists() and identity.key.exists()):
            expiry = datetime.datetime.now(datetime.UTC) + _LIFETIME
            leaf = self._authority.issue_cert(*_NAMES, common_name=name, not_after=expiry)
            _write(identity.key, leaf.private_key_pem.bytes())
            _write(identity.cert, b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        return identity


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, and for our eyes only."""
    scratch = path.with_suffix(".new")
    scratch.touch(mode=0o600)
    scratch.write_bytes(content)
    os.replace(scratch, path)
