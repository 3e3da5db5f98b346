"""Fleets in real processes: killed and started again, crashing, stopped, on a Dask cluster, and from Docker to an endpoint."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from container import bundles, manifest
from container.manifest import Entry
from container.settings import environment
from local_test.endpoint import Endpoint
from tests import fleets
from tests.live.conftest import ROOT
from tests.live.launcher import in_docker
from tests.waiting import until

pytestmark = pytest.mark.live

KEYS = 200
KILLS = 10

SLOW = fleets.SCRIPT.replace(
    "    slope =",
    """    end = time.process_time() + hyperparameters.get("cost", 0.01)
    while time.process_time() < end:
        pass
    if key in hyperparameters.get("deadly", []):
        os.kill(os.getpid(), signal.SIGKILL)
    data["y"] += np.random.rand()
    slope =""",
).replace("from container", "import os, signal, time\nimport numpy as np\nfrom container")
"""Fits with a known cost and a part that is random: it has to be the same in each run."""


@contextmanager
def train(base: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """`train` in a session of its own; its output goes to base/log. Nothing of it lives after the block."""
    command = [sys.executable, str(ROOT / "train")]
    scratch = base / "tmp"  # what a killed job leaves ends with the test
    scratch.mkdir(exist_ok=True)
    environ = environment(SAGEMAKER_BASE_DIR=str(base), SAGEMAKER_MODEL_SERVER_WORKERS="2", TMPDIR=str(scratch), **variables)
    with (base / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd="/", start_new_session=True)
    try:
        yield process
    finally:
        kill(session(process.pid))
        process.wait()


def finish(base: Path, code: int = 0, within: float = 60, **variables: str) -> dict[str, Entry]:
    """A job to its end; its entries by key."""
    with train(base, **variables) as process:
        assert process.wait(within) == code, (base / "log").read_text()
    return entries(base)


def entries(base: Path) -> dict[str, Entry]:
    return {entry.key: entry for entry in manifest.read(base / "checkpoints/manifest.jsonl")}


def session(number: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, its = path.read_text().rpartition(")")[2].split()[:4]
            if int(its) == number and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)


def is_over(number: int) -> bool:
    return not session(number)


def made(base: Path) -> int:
    return len(list((base / "checkpoints").glob("*.tar.gz")))


def has(base: Path, count: int) -> bool:
    return made(base) >= count


def test_ten_kills_leave_what_no_kill_leaves(tmp_path):
    undisturbed, killed = (fleets.write(tmp_path / name, KEYS, SLOW) for name in ("undisturbed", "killed"))
    expected = finish(undisturbed)
    assert len(expected) == KEYS
    chosen = random.Random()
    moments = sorted(chosen.sample(range(KEYS - 30), KILLS))
    for number, moment in enumerate(moments):
        with train(killed) as process:
            until(partial(has, killed, moment), 60, f"{moment} artifacts")
            assert process.poll() is None, (killed / "log").read_text()
            if number % 2:
                process.kill()  # the children have to notice by themselves
            else:
                os.killpg(process.pid, SIGKILL)
            process.wait()
            until(partial(is_over, process.pid), 10, "the end of the children")
    found = finish(killed)
    assert fleets.artifacts(killed) == fleets.artifacts(undisturbed), f"killed at {moments}"
    assert {key: (entry.rows, entry.metrics, entry.sha256) for key, entry in found.items()} == {
        key: (entry.rows, entry.metrics, entry.sha256) for key, entry in expected.items()
    }


def test_a_key_that_kills_its_process_fails_alone(tmp_path):
    base = fleets.write(tmp_path, 12, SLOW, deadly=["c5"], max_failed=0.1)
    found = finish(base)
    assert [key for key, entry in found.items() if entry.error] == ["c5"]
    assert "exit code SIGKILL(-9)" in str(found["c5"].error)
    assert made(base) == 11


def test_a_stop_is_heeded_in_time(tmp_path):
    base = fleets.write(tmp_path, 100, SLOW, cost=0.2)
    with train(base) as process:
        until(partial(has, base, 3), 60, "the first artifacts")
        process.send_signal(SIGTERM)
        assert process.wait(30) == 0, (base / "log").read_text()
    found = entries(base)
    assert 3 <= len(found) < 100
    assert sorted(fleets.artifacts(base)) == sorted(str(entry.file) for entry in found.values())
    assert (base / "model/manifest.jsonl").read_text() == (base / "checkpoints/manifest.jsonl").read_text()


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """A Dask scheduler, which need not know this program, and workers, each a process of its own that does."""
    folder.mkdir()
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common]
    worker = ["distributed.cli.dask_worker", "--nthreads", "1", "--local-directory", str(folder), *common]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "log").open("ab") as log:
            for command, path in ((scheduler, ""), *[(worker, str(ROOT))] * workers):
                until(lambda: not started or file.exists(), 30, "the scheduler's file")
                environ = environment(
                    PYTHONPATH=path,
                    TMPDIR=str(folder),
                    DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0",
                    PYTHONWARNINGS="ignore",
                )
                started.append(
                    subprocess.Popen([sys.executable, "-m", *command], env=environ, stdout=log, stderr=log, cwd="/", start_new_session=True)
                )
        until(lambda: file.read_text().endswith("}"), 10, "the scheduler's address")
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(started):
            kill(session(process.pid))
            process.wait()


def test_a_dask_cluster_makes_the_same_artifacts(tmp_path):
    pytest.importorskip("distributed")
    here, there = (fleets.write(tmp_path / name, 30, SLOW, deadly=["c5"]) for name in ("here", "there"))
    expected = finish(here)
    with cluster(tmp_path / "dask", workers=2) as address:
        found = finish(there, FLEET_DASK_SCHEDULER=address)
    assert len(found) == len(expected) == 30
    assert "the process that fitted it died" in str(found["c5"].error)
    assert fleets.artifacts(there) == fleets.artifacts(here)


@in_docker
def test_two_hosts_train_and_one_endpoint_serves(start, tmp_path):
    keys, hosts = 8, ("algo-1", "algo-2")
    everything = fleets.write(tmp_path / "all", keys)
    containers = []
    for number, host in enumerate(hosts):
        base = start.base_dir("output", "checkpoints")
        fleets.write(base, 0, SLOW, hosts=hosts, host=host, deadly=["c3"], max_failed=0.3)
        fleets.put(
            base / "input/config/inputdataconfig.json",
            json.dumps({"train": {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key"}}),
        )
        for file in sorted((everything / "input/data/train").iterdir())[number :: len(hosts)]:
            shutil.copy(file, base / "input/data/train")
        containers.append(start.run("train", base, {"TRAINING_JOB_NAME": "energy"}))
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    for host, container in zip(hosts, containers, strict=True):
        assert container.wait(120) == 0, container.logs()
        assert [path.name for path in (container.base_dir / "model").glob("manifest*")] == [f"manifest-{host}.jsonl"]
        for path in (container.base_dir / "checkpoints").glob("*.tar.gz"):
            shutil.copy(path, artifacts)
    served = sorted(path.name for path in artifacts.iterdir())
    assert served == [f"c{number}.tar.gz" for number in range(keys) if number != 3]
    base = start.base_dir("models")
    server = start.run("serve", base, {"SAGEMAKER_MULTI_MODEL": "true"})
    server.await_ready()
    with Endpoint(server.url, artifacts, base / "models", "/opt/ml/models") as endpoint:
        for name in served:
            answer = endpoint.invoke(name, b"2.0")
            slope = bundles.read(artifacts / name).metrics["slope"]
            assert slope is not None
            assert (answer.status, json.loads(answer.body)) == (200, [[2 * slope]]), answer
