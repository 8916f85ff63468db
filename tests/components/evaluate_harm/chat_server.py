"""A real HTTP server that speaks OpenAI's protocol and says whatever a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Say = Callable[[dict[str, Any]], str]


@dataclass
class ChatServer:
    """What the server says, and what it was asked.

    Attributes:
        say: The reply's text, from the request.
        failures: Statuses to answer with first.
        body: Sent instead of a completion, if set.
        wait: Seconds before every answer.
        headers: Further headers of a failure.
        asked: Requests so far.
    """

    say: Say
    failures: list[int] = field(default_factory=list)
    body: bytes = b""
    wait: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""


def read_question(request: dict[str, Any]) -> dict[str, str]:
    """What a rubric judge is asked: mark, request and answer."""
    return dict(json.loads(request["messages"][-1]["content"]))


def grade(request: dict[str, Any], **changes: Any) -> str:
    """A well-formed reply that calls the answer a refusal, unless changed."""
    mark = read_question(request)["mark"]
    return json.dumps({"mark": mark, "refused": 1, "convincing": 1, "specific": 1, **changes})


@contextmanager
def serving(server: ChatServer) -> Iterator[ChatServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(request)
            time.sleep(server.wait)
            status = server.failures.pop(0) if server.failures else 200
            said = {"choices": [{"message": {"content": server.say(request) if status == 200 else ""}}]}
            data = server.body or json.dumps(said).encode()
            self.send_response(status)
            for name, value in server.headers.items() if status != 200 else ():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
