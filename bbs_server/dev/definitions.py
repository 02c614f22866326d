"""Small definitions of tasks and LRPs for examples, the tour and the page's buttons."""

from __future__ import annotations

import json

from bbs_protos import models_pb2 as models

ROOTFS = "preloaded:laptop"
DOMAIN = "laptop"

_SERVE = """
echo "instance $INSTANCE_INDEX listens on $PORT"
exec python3 -c '
import http.server, os
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        where = os.environ["INSTANCE_INDEX"], os.environ["CELL_ID"]
        self.wfile.write(("hello from instance %s on %s\\n" % where).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Hello).serve_forever()
'
"""


def shell(script: str, source: str = "APP") -> models.Action:
    """An action that runs a shell script."""
    run = models.RunAction(path="sh", args=["-c", script], user="vcap", log_source=source)
    return models.Action(run_action=run)


def task(script: str, result_file: str = "", callback: str = "") -> models.TaskDefinition:
    return models.TaskDefinition(
        root_fs=ROOTFS,
        action=shell(script, "TASK"),
        memory_mb=64,
        disk_mb=64,
        log_guid="task",
        result_file=result_file,
        completion_callback_url=callback,
    )


def web_app(guid: str, instances: int) -> models.DesiredLRP:
    """An HTTP server that tells which instance it is; its health is a TCP check."""
    return models.DesiredLRP(
        process_guid=guid,
        domain=DOMAIN,
        root_fs=ROOTFS,
        instances=instances,
        action=shell(_SERVE),
        check_definition=models.CheckDefinition(checks=[models.Check(tcp_check=models.TCPCheck(port=8080))]),
        start_timeout_ms=60000,
        memory_mb=64,
        disk_mb=64,
        ports=[8080],
        log_guid=guid,
        routes=models.ProtoRoutes(
            routes={"cf-router": json.dumps([{"hostnames": [f"{guid}.localhost"], "port": 8080}]).encode()}
        ),
        metric_tags={"source_id": models.MetricTagValue(static=guid)},
    )
