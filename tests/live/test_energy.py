"""`make energy`, without make: the whole way for a few customers, by both engines and both forecasters."""

import signal
import subprocess
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from tests.live.conftest import ROOT
from tests.waiting import until

pytestmark = pytest.mark.live
SECONDS = 120


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Where all runs of this module build: each begins where another has ended."""
    return tmp_path_factory.mktemp("build")


def make(build, *options):
    """The words of a run of make energy."""
    return [sys.executable, "-m", "local_test.energy", "--build", str(build), *map(str, options)]


@pytest.mark.parametrize(
    ("engine", "forecaster", "customers"),
    [("own", "default", 12), ("own", "prophet", 4), ("mms", "default", 4)],
    ids=["own", "prophet", "mms"],
)
def test_the_whole_way(build, engine, forecaster, customers):
    command = make(build, "--customers", customers, "--forecaster", forecaster, "--engine", engine)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("all answers are the models' own") == 2
    assert f"{customers} artifacts" in ended.stdout
    artifacts = {path.name: path for path in (build / "energy-fleet" / "artifacts").iterdir()}
    assert sorted(artifacts) == [f"customer-{number:04d}.tar.gz" for number in range(customers)]
    assert len({sha256(path.read_bytes()).digest() for path in artifacts.values()}) == customers
    assert b"80 % of days" in (build / "energy-fleet" / "forecast.svg").read_bytes()


def test_sigterm_ends_it_and_what_it_has_started(tmp_path):
    program = subprocess.Popen(make(tmp_path, "--customers", 50), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    base_dir = str(tmp_path / "energy-fleet" / "hosts")
    until(lambda: started_with(base_dir), SECONDS, "the start of the training")
    program.send_signal(signal.SIGTERM)
    program.communicate(timeout=SECONDS)
    assert program.returncode == 128 + signal.SIGTERM
    until(lambda: not started_with(base_dir), 5, "the end of the training")


def started_with(text):
    """Processes of this machine with a text in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if text.encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found
