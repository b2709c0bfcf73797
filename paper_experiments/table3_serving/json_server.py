"""A model server that speaks JSON over HTTP: what is used where Starlette is not installed.

It prints its port and serves until it is ended.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer

from paper_experiments.table3_serving.workload import evaluate, states_in


class JsonPolicyHandler(BaseHTTPRequestHandler):
    """``POST``: a batch of states in, a list of actions out."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Evaluate a batch."""
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(evaluate(states_in(fields), fields["evaluation_s"])).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: that would be measured, too."""


def main() -> None:
    """Serve one connection at a time."""
    server = HTTPServer(("127.0.0.1", 0), JsonPolicyHandler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
