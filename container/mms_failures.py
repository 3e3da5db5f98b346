"""Loads that failed in Multi Model Server: nginx asks here for the answer, so that it says why, and that nothing of the model is left.

After a 507 Multi Model Server 1.1.11 interrupts its own clearing up: the model stays listed, without a worker, and the next load of it is
answered with 409, although the platform tries again exactly then.
"""

import hashlib
import http.client
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote

from container import resources
from container.errors import error_response

SOCKET = "failures.sock"
STATUS = "X-Berth-Status"
"""The header in which nginx says what Multi Model Server answered."""
SETTLED = 0.05
"""Seconds after which a model that was forgotten has not come back: Multi Model Server puts it back within a few."""
PATIENCE = 10.0
"""Seconds after which a model that cannot be forgotten is left as it is."""


def cause_file(run_dir: Path, model_name: str) -> Path:
    """Where the handler leaves why a model could not be loaded. A name may hold anything, so that it cannot be a file's."""
    return run_dir / f"cause-{hashlib.sha256(model_name.encode()).hexdigest()}"


def connect(path: Path, timeout: float) -> http.client.HTTPConnection:
    """An HTTP client of a unix socket. Raises OSError if nobody listens. timeout: seconds for each answer."""
    client = http.client.HTTPConnection("localhost")
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.settimeout(timeout)
    try:
        client.sock.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


@contextmanager
def serve(run_dir: Path, mms: Path) -> Iterator[None]:
    """Answers on run_dir/failures.sock, in threads of this process, while the block runs. mms: Multi Model Server's socket."""
    server = _Server(run_dir, mms)
    (run_dir / SOCKET).chmod(0o666)  # nginx, started by root, runs as another user
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def forget(mms: Path, model_name: str) -> None:
    """Unloads a model until it stays unloaded."""
    gone, end = 0, time.monotonic() + PATIENCE
    while gone < 2 and time.monotonic() < end:
        client = connect(mms, PATIENCE)
        try:
            client.request("DELETE", f"/models/{quote(model_name, safe='')}")
            gone = gone + 1 if client.getresponse().status == 404 else 0
        finally:
            client.close()
        time.sleep(SETTLED)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, run_dir: Path, mms: Path) -> None:
        super().__init__(str(run_dir / SOCKET), _Handler)
        self.run_dir, self.mms, self._oom_kills = run_dir, mms, resources.oom_kills()

    def one_was_killed(self) -> bool:
        """Whether the kernel has killed for want of memory since this was last asked."""
        before, self._oom_kills = self._oom_kills, resources.oom_kills()
        return self._oom_kills > before


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        """The answer to a load that has failed; its body is the load's."""
        status, request_id = int(self.headers[STATUS]), self.headers.get("X-Request-Id", "")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            model_name = str(json.loads(body)["model_name"])
        except (ValueError, TypeError, KeyError):
            status, message = 400, 'the body of a load is {"model_name": NAME, "url": DIRECTORY}; this one cannot be read as that'
        else:
            status, message = self._explain(status, model_name)
        answer = error_response(status, message, request_id)
        assert isinstance(answer.body, bytes)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _explain(self, status: int, model_name: str) -> tuple[int, str]:
        """The status that is true, and why the model could not be loaded."""
        if status == 507:
            forget(self.server.mms, model_name)
        path = cause_file(self.server.run_dir, model_name)
        try:
            cause = path.read_text()
            path.unlink()
        except FileNotFoundError:
            if self.server.one_was_killed():
                status, cause = 507, "its worker was killed for want of memory (the cgroup's oom_kill counter says so)"
            else:
                cause = "its worker ended without a word; the log may have some of the library's"
        return status, f"the model cannot be loaded: {cause}"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """nginx has the line of each request."""
