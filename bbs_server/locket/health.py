"""The database health check of Locket, on a table of its own (server.md section 16, locket.md section 8)."""

from __future__ import annotations

from bbs_server.locket import statements
from bbs_server.store.health import HealthCheck


class LocketHealthCheck(HealthCheck):
    """As that of the BBS, with other statements."""

    _update, _insert, _select = statements.HEALTH_UPDATE, statements.HEALTH_INSERT, statements.HEALTH_SELECT
