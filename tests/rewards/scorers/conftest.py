"""A server of the test's own, on a free port of this machine."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from diffalign.rewards.scorers import client


@pytest.fixture
def server(monkeypatch):
    """Return a way to serve a function (path, body) -> (status, headers, answer, bytes that are missing); it lists the requests."""
    monkeypatch.setattr(client, "BACKOFF", 0.0)
    started = []

    def serve(answer):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                requests.append((self.path, self.headers.get("Authorization")))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, content, missing = answer(len(requests), body)
                self.send_response(status, "SECRET")
                for name, value in {"Content-Length": str(len(content) + missing), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                """Say nothing."""

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        started.append((made, thread))
        return f"http://127.0.0.1:{made.server_port}", requests

    yield serve
    for made, thread in started:
        made.shutdown()
        thread.join()
        made.server_close()
