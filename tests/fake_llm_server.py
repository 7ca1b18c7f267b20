"""A server without a model, for tests of the registry: starts at once, and misbehaves as its environment says.

Run as `python fake_llm_server.py --port N [anything]`. FAKE_SERVER is `fine`, `dies` (with FAKE_LAST_WORDS), `loading`
(never ready) or `deaf` (ignores SIGTERM).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE = os.environ.get("FAKE_SERVER", "fine")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        key = os.environ.get("VLLM_API_KEY")
        bodies = {
            "/health": {"phase": "loading"} if MODE == "loading" else {},
            "/v1/models": {"data": [{"id": "fake-model", "owned_by": "fake"}]},
            "/version": {"version": "1.2.3"},
            "/metrics": 'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 1.0\n',
        }
        status = 200 if self.path in bodies else 404
        if self.path == "/health" and MODE == "loading":
            status = 503
        if key and self.path.startswith("/v1") and self.headers.get("Authorization") != f"Bearer {key}":
            status = 401
        body = bodies.get(self.path, {})
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    if MODE == "dies":
        sys.exit(os.environ.get("FAKE_LAST_WORDS", ""))
    if MODE == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    sys.stderr.write(f"listening on {port}\n")
    server.serve_forever()


if __name__ == "__main__":
    main()
