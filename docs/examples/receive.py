"""Run a command, wait for one completion callback, print it: receive.py PORT COMMAND..."""

import http.server
import json
import subprocess
import sys


class Callback(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        for name in ("task_guid", "failed", "failure_reason", "result", "annotation"):
            print(f"{name}: {str(body[name]).strip()}")

    def log_message(self, *_: object) -> None:
        """Nothing besides the callback."""


server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Callback)
subprocess.run(sys.argv[2:], check=True)
server.handle_request()
