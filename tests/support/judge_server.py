"""A local OpenAI-compatible server whose replies are set by a test for each request."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# (body of a request, its number from 0) -> the reply that `_Handler.do_POST` sends.
Script = Callable[[dict[str, Any], int], "tuple[int, dict[str, str], bytes]"]


class JudgeServer(ThreadingHTTPServer):
    daemon_threads = True
    script: Script
    requests: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen = {"path": self.path, "headers": dict(self.headers), "body": body}
        self.server.requests.append(seen)
        status, headers, content = self.server.script(body, len(self.server.requests) - 1)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


def completion(text: str | None, *, usage: tuple[int, int] = (100, 10)) -> bytes:
    """Return the body of a chat.completions reply."""
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message}], "usage": counts}).encode()


def says(text: str) -> Script:
    return lambda body, number: (200, {}, completion(text))


@contextmanager
def serving(script: Script) -> Iterator[JudgeServer]:
    server = JudgeServer(("127.0.0.1", 0), _Handler)
    server.script, server.requests = script, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
