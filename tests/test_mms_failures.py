"""What is answered to a load that failed, and that nothing of the model is left in Multi Model Server."""

import contextlib
import json
import socketserver
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import pytest

from container import mms_failures, resources
from container.mms_failures import SOCKET, cause_file, connect, forget

LOAD = b'{"model_name": "a/b \\u00fc", "url": "/models/x"}'
NAME = "a/b \u00fc"


@pytest.fixture
def run_dir():
    with tempfile.TemporaryDirectory() as path:  # pytest's own are too long for a socket's address
        yield Path(path)


@dataclass
class Server:
    """Stands for Multi Model Server: its socket, the names that it was told to unload, and how often it still has a model after that."""

    path: Path
    unloaded: list[str] = field(default_factory=list)
    comes_back: int = 0

    def unload(self, model_name: str) -> int:
        """The status of a DELETE."""
        self.unloaded.append(model_name)
        return 200 if len(self.unloaded) <= 1 + self.comes_back else 404


def handler(mms):
    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self):
            self.send_response(mms.unload(unquote(self.path.removeprefix("/models/"))))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_request(self, *arguments):
            """It says nothing."""

    return Handler


@pytest.fixture
def mms(run_dir):
    served = Server(run_dir / "mms.sock")
    with socketserver.ThreadingUnixStreamServer(str(served.path), handler(served)) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield served
        server.shutdown()
        serving.join()


@pytest.fixture
def ask(run_dir, mms):
    """What nginx is answered: (status, JSON)."""
    with mms_failures.serve(run_dir, mms.path):

        def post(status, body=LOAD):
            with contextlib.closing(connect(run_dir / SOCKET, 10)) as client:
                client.request("POST", "/models", body, {"X-Berth-Status": str(status), "X-Request-Id": "r-1"})
                answer = client.getresponse()
                return answer.status, json.loads(answer.read())

        yield post


@pytest.mark.parametrize("status", [500, 507])
def test_the_cause_that_the_handler_left(ask, run_dir, status):
    cause_file(run_dir, NAME).write_text("weights.bin is truncated")
    said = {"code": status, "message": "the model cannot be loaded: weights.bin is truncated", "request_id": "r-1"}
    assert ask(status) == (status, said)
    assert not cause_file(run_dir, NAME).exists()


@pytest.mark.parametrize(("killed", "status", "said"), [(0, 500, "ended without a word"), (1, 507, "killed for want of memory")])
def test_a_worker_that_left_no_cause(ask, monkeypatch, killed, status, said):
    before = resources.oom_kills()
    monkeypatch.setattr(resources, "oom_kills", lambda: before + killed)
    answer = ask(500)
    assert answer[0] == answer[1]["code"] == status
    assert said in answer[1]["message"]
    assert ask(500)[0] == 500, "the one that was killed is counted once"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b"7", b"\xff"])
def test_what_is_no_load(ask, mms, body):
    answer = ask(500, body)
    assert answer[0] == answer[1]["code"] == 400
    assert "model_name" in answer[1]["message"]
    assert mms.unloaded == []


@pytest.mark.parametrize("times", [0, 2])
def test_after_a_507_the_model_is_forgotten_until_it_stays_so(ask, mms, times):
    mms.comes_back = times
    assert ask(507)[0] == 507
    assert mms.unloaded == [NAME] * (3 + times)


def test_a_model_that_cannot_be_forgotten_is_left(mms, monkeypatch):
    monkeypatch.setattr(mms_failures, "PATIENCE", 0.2)
    mms.comes_back = 1000
    forget(mms.path, NAME)
    assert 1 <= len(mms.unloaded) <= 5


def test_causes_of_models_whose_names_no_file_can_have(run_dir):
    names = ["../x", "x" * 1024, "a/b", ""]
    files = {cause_file(run_dir, name) for name in names}
    assert len(files) == len(names)
    assert {file.parent for file in files} == {run_dir}


def test_nobody_listens(run_dir):
    with pytest.raises(OSError, match="No such file"):
        connect(run_dir / "nothing.sock", 1)
