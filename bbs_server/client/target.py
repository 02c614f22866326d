"""Where a BBS is and who we are to it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bbs_server.client.errors import BadCertificate


@dataclass(frozen=True, slots=True)
class Target:
    """Address and certificates. `timeout` is for one request, in s; event streams have none."""

    url: str
    ca: Path | str | None = None
    cert: Path | str | None = None
    key: Path | str | None = None
    skip_verify: bool = False
    timeout: float = 30.0

    def tls(self) -> ssl.SSLContext | bool:
        """The TLS settings for the URL. Raises BadCertificate for files that cannot be used."""
        if urlsplit(self.url).scheme != "https":
            return False
        context = ssl.create_default_context()
        try:
            if self.ca:
                context = ssl.create_default_context(cafile=str(self.ca))
            if self.cert or self.key:
                context.load_cert_chain(str(self.cert), str(self.key) if self.key else None)
        except (OSError, ssl.SSLError) as problem:
            raise BadCertificate(
                f"cannot use the certificate files (ca {self.ca}, cert {self.cert}, key {self.key}): {problem}"
            ) from problem
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
