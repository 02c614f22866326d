"""The checksum of a download, which cached dependencies and download actions have in common."""

from __future__ import annotations

from bbs_protos import models_pb2 as models

from bbs_server.core.problems import invalid
from bbs_server.core.texts import spelled

ALGORITHMS = frozenset(("md5", "sha1", "sha256"))


def check_checksum(download: models.DownloadAction | models.CachedDependency) -> list[str]:
    """Algorithm and value belong together; the algorithm is one of `ALGORITHMS` in any letter case (4.2)."""
    algorithm, value = download.checksum_algorithm, download.checksum_value
    if not algorithm and not value:
        return []
    if not algorithm:
        return [invalid("checksum algorithm")]
    if not value:
        return [invalid("checksum value")]
    return [] if spelled(algorithm).lower() in ALGORITHMS else [invalid("invalid algorithm")]
