"""What the supervisor answers by itself, on a thread beside its loop, so that it never waits for a prediction: /metrics, GET /models."""

import base64
import json
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from container import metrics
from container.registry import Catalogue

PAGE = 100
"""Models of a page, where the request does not say; at most a thousand."""

Answer = tuple[int, str, bytes]
"""Status, content type, body."""
Ask = Callable[[dict[str, str], str], Answer]
"""What answers: a function of the query's arguments and the request's id."""


def serve(socket_path: Path, answers: dict[str, Ask]) -> None:
    """Answers on a unix socket: path -> what answers it.

    nginx, which has checked the request, is the only client, and http.server would cost megabytes.
    """

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            target, request_id = self.rfile.readline().split()[1].decode(), ""
            while header := self.rfile.readline().strip():
                name, _, value = header.partition(b":")
                if name.lower() == b"x-request-id":
                    request_id = value.strip().decode()
            parts = urlsplit(target)
            query = {argument: values[0] for argument, values in parse_qs(parts.query).items()}
            status, content_type, body = answers[parts.path](query, request_id)
            head = f"HTTP/1.0 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
            self.wfile.write(f"{head}\r\n\r\n".encode() + body)

    class Server(socketserver.ThreadingUnixStreamServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no thread is to be had: models in processes of their own take as many as there are
                self.process_request_thread(request, client_address)

    server = Server(str(socket_path), Handler)
    server.daemon_threads = True
    socket_path.chmod(0o666)  # nginx may run as another user than this process
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 3600}, name="status", daemon=True).start()


def metrics_of(directory: Path) -> Ask:
    """/metrics over all workers that count in a directory."""
    return lambda query, request_id: (200, "text/plain; version=0.0.4; charset=utf-8", metrics.text(directory))


def models_of(run_dir: Path) -> Ask:
    """GET /models, by pages: `limit` models, from `next_page_token` on."""
    catalogue, one_at_a_time = Catalogue(run_dir), threading.Lock()

    def models(query: dict[str, str], request_id: str) -> Answer:
        try:
            limit, after = _page(query)
        except ValueError as error:
            return _said(400, {"code": 400, "message": str(error), "request_id": request_id})
        with one_at_a_time:
            page, last = catalogue.page(limit, after)
        answer: dict[str, object] = {"models": [{"modelName": name, "modelUrl": url} for name, url in page]}
        if last:
            answer["nextPageToken"] = base64.urlsafe_b64encode(last.encode()).decode()
        return _said(200, answer)

    return models


def _page(query: dict[str, str]) -> tuple[int, str]:
    limit = query.get("limit", str(PAGE))
    if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
        raise ValueError(f"limit={limit!r} cannot be used: accepted is a number, 1 to 1000")
    token = query.get("next_page_token", "")
    try:
        return int(limit), base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise ValueError(f"next_page_token={token[:100]!r} is none that this server gave") from None


def _said(status: int, value: dict[str, object]) -> Answer:
    return status, "application/json", json.dumps(value).encode()
