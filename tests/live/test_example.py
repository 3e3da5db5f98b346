"""`make serve`, without make: an example is trained once, served, and asked by the command that is printed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
