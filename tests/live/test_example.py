"""`make serve`, without make: an example is trained once, served, and asked by the command that is printed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from local_test.example import question
from tests.live.conftest import ROOT

pytestmark = pytest.mark.live
SECONDS = 120


@contextmanager
def serving(name: str, port: int, build: Path, module: str = "local_test.example") -> Iterator[str]:
    """The command that was printed, in a process group of its own as a terminal makes one; Ctrl-C at the end must stop it well."""
    command = [sys.executable, "-m", module, name, str(port), "--build", str(build)]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert program.stdout is not None
    try:
        yield next((line.strip() for line in program.stdout if line.startswith("    curl")), "")
    finally:
        os.killpg(program.pid, signal.SIGINT)
        program.communicate(timeout=SECONDS)
    assert program.returncode == 0


def test_trained_once_served_and_asked(tmp_path, free_port):
    with serving("iris", free_port, tmp_path) as command:
        assert command == question(ROOT / "examples" / "iris", free_port)
        answer = subprocess.run(command.replace("curl", "curl -sf", 1), shell=True, cwd=ROOT, capture_output=True, timeout=30, check=True)
        assert b"setosa" in answer.stdout
    artifact = tmp_path / "iris" / "model" / "model.joblib"
    made = artifact.stat().st_mtime_ns
    with serving("iris", free_port, tmp_path) as command:
        assert command
    assert artifact.stat().st_mtime_ns == made


@pytest.mark.parametrize(("name", "says"), [("iris", b"setosa"), ("ner", b"output")])
def test_a_hundred_of_them_behind_one_endpoint(tmp_path, free_port, name, says):
    with serving(name, free_port, tmp_path, "local_test.many") as command:
        answer = subprocess.run(command.replace("curl", "curl -sf", 1), shell=True, cwd=ROOT, capture_output=True, timeout=30, check=True)
        assert says in answer.stdout
        listed = requests.get(f"http://127.0.0.1:{free_port}/models", timeout=30).json()
        assert len(listed["models"]) == 100


def test_an_example_that_is_not_there_is_named(tmp_path):
    command = [sys.executable, "-m", "local_test.example", "none", "1", "--build", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "'none'" in ended.stderr
    assert "iris" in ended.stderr


MODULES = ["local_test.example", "local_test.many"]


def ended(module: str, port: int, build: Path) -> subprocess.CompletedProcess[str]:
    """A start that is to end by itself, with a directory in the place of a trained model."""
    (build / "iris" / "model").mkdir(parents=True)
    command = [sys.executable, "-m", module, "iris", str(port), "--build", str(build)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.mark.parametrize("module", MODULES)
def test_a_port_where_another_server_listens_is_left_alone(tmp_path, module):
    asked: list[str] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        said = ended(module, stranger.server_port, tmp_path)
        stranger.shutdown()
    why = f"port {stranger.server_port} cannot be listened on (Address already in use): name another with PORT=..."
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (1, "", 1)
    assert said.stderr.startswith(why)
    assert asked == []


def test_no_port(tmp_path):
    said = ended("local_test.example", 70000, tmp_path)
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert said.stderr.startswith("port 70000 cannot be listened on (bind(): port must be 0-65535.): ")


def test_a_refused_load_is_one_line_and_stops_the_server(tmp_path, free_port):
    said = ended("local_test.many", free_port, tmp_path)
    assert said.returncode == 1
    assert "curl" not in said.stdout
    assert "Traceback" not in said.stderr
    (line,) = (line for line in said.stderr.splitlines() if line.startswith("the load of iris-0000 was refused with 400: "))
    assert "is empty: accepted are model.joblib" in line
