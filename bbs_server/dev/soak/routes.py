"""The routes of the soak's processes."""

from __future__ import annotations

import json

from bbs_protos import models_pb2 as models

from bbs_server.dev.soak.settings import ROUTER


def routes(process_guid: str, version: str) -> models.ProtoRoutes:
    """An external route and one internal host name; both name the version."""
    external = [{"hostnames": [f"{process_guid}.{version}.example.com"], "port": 8080, "route_service_url": None}]
    internal = [{"hostname": f"{process_guid}.{version}.apps.internal"}]
    return models.ProtoRoutes(
        routes={"cf-router": json.dumps(external).encode(), ROUTER: json.dumps(internal).encode()}
    )


def hostnames(sent: models.ProtoRoutes) -> tuple[str, ...]:
    return tuple(route["hostname"] for route in json.loads(sent.routes.get(ROUTER, b"[]")))
