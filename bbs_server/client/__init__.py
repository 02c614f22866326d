"""A typed async client for any BBS, this one or the Go one.

async with Client(Target("https://127.0.0.1:8889", ca="ca.crt", cert="client.crt", key="client.key")) as bbs:
    await bbs.upsert_domain("my-domain", ttl=60)
    async for event in bbs.task_events():
        print(event.name, event.message)
"""

from bbs_server.client.client import Client
from bbs_server.client.errors import (
    BadCertificate,
    ClientError,
    Failed,
    NoAnswer,
    NotActive,
    StreamEnded,
    Unreachable,
)
from bbs_server.client.events import StreamEvent
from bbs_server.client.target import Target

__all__ = [
    "BadCertificate",
    "Client",
    "ClientError",
    "Failed",
    "NoAnswer",
    "NotActive",
    "StreamEnded",
    "StreamEvent",
    "Target",
    "Unreachable",
]
