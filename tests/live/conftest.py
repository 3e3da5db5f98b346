"""Real processes and real containers for the tests here."""

import functools
import os
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.launcher import Launcher
from tests.live.server import Server

ROOT = Path(__file__).parent.parent.parent
IMAGE = "berth-test"
LABEL = f"berth.test={uuid.uuid4().hex}"
"""On every container of this run, so that all of them, and no others, are removed at its end."""

BUILD_SECONDS = 1200


def docker(*arguments: str, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One docker command, its output as text."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=check)


def _engine_problem() -> str:
    """Why no Docker engine answers; empty if one does."""
    try:
        answer = docker("info", "--format", "{{.ServerVersion}}", check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return answer.stderr.strip() if answer.returncode else ""


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine. Without one, tests are skipped; where CI=true, they fail."""
    problem = _engine_problem()
    if problem and os.environ.get("CI") == "true":
        pytest.fail(f"CI needs a Docker engine: {problem}")
    if problem:
        pytest.skip(f"no Docker engine answers: {problem}")
    yield
    left = docker("ps", "--all", "--quiet", "--filter", f"label={LABEL}").stdout.split()
    if left:
        docker("rm", "--force", *left)


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The image, built from this checkout as `make image` builds it. Returns its name."""
    built = subprocess.run(
        ["make", "image", f"IMAGE={IMAGE}"], cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert built.returncode == 0, f"make image failed:\n{built.stdout[-2000:]}\n{built.stderr[-2000:]}"
    return IMAGE


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session", params=["host", pytest.param("docker", marks=pytest.mark.docker)])
def where(request: pytest.FixtureRequest) -> str:
    """Where the servers of a test run: every test with this fixture runs on this machine and in the image."""
    return str(request.param)


def _launcher(where: str, request: pytest.FixtureRequest) -> Launcher:
    return Launcher(request.getfixturevalue("image") if where == "docker" else None, LABEL)


@pytest.fixture
def start(where: str, request: pytest.FixtureRequest) -> Iterator[Launcher]:
    """Starts servers that end with the test."""
    with _launcher(where, request) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def shared(where: str, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Server]]:
    """A server of a script of tests/fixtureapps that is started once, for tests that leave it as it was."""
    with _launcher(where, request) as launcher:
        yield functools.cache(launcher)
