"""Real processes and real containers for the tests here."""

import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

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
