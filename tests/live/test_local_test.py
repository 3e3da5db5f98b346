"""The familiar scripts, against the real image: train, serve, ask."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import LABEL, ROOT
from tests.waiting import until

pytestmark = pytest.mark.docker
IRIS = ROOT / "examples" / "iris"
READY_SECONDS = 60
STOP_SECONDS = 30


def environment(**changes: object) -> dict[str, str]:
    return {**os.environ, "CODE": str(IRIS), **{name: str(value) for name, value in changes.items()}}


def run(*command: object, **environ: object) -> subprocess.CompletedProcess[str]:
    """A script from a foreign directory, to its end."""
    words = [str(word) for word in command]
    return subprocess.run(words, env=environment(**environ), cwd="/", capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A copy of local_test/, so that the checkout stays as it is."""
    return Path(shutil.copytree(ROOT / "local_test", tmp_path / "local_test", ignore=shutil.ignore_patterns("model", "output")))


@pytest.fixture(scope="module")
def trained(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of local_test/ in which the image has trained the iris example."""
    folder = Path(shutil.copytree(ROOT / "local_test", tmp_path_factory.mktemp("trained") / "local_test"))
    job = run(folder / "train_local.sh", image, "--label", LABEL)
    assert job.returncode == 0, job.stdout + job.stderr
    return folder


@pytest.fixture(scope="module")
def served(image: str, trained: Path, free_port: int) -> Iterator[int]:
    """The port on which serve_local.sh serves that model. Stopped as Ctrl-C stops it, which must end it well."""
    server = subprocess.Popen(
        [trained / "serve_local.sh", image, "--label", LABEL],
        env=environment(PORT=free_port),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        until(lambda: server.poll() is not None or asked(trained, free_port).returncode == 0, READY_SECONDS, "an answer")
        yield free_port
    finally:
        server.send_signal(signal.SIGINT)
        output = server.communicate(timeout=STOP_SECONDS)[0].decode()
    assert server.returncode == 0, output


def asked(scripts: Path, port: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(scripts / "predict.sh", *(arguments or (scripts / "payload.csv",)), PORT=port)


def test_train_makes_the_model_as_the_caller(trained):
    model = trained / "test_dir" / "model"
    assert {"model.joblib", "versions.json"} <= {path.name for path in model.iterdir()}
    assert {path.stat().st_uid for path in model.iterdir()} == {os.getuid()}
    assert not (trained / "test_dir" / "output" / "failure").exists()


def test_predict_asks_for_the_payload(trained, served):
    answer = asked(trained, served)
    assert (answer.returncode, json.loads(answer.stdout)) == (0, ["setosa", "versicolor", "virginica"])


def test_predict_sends_another_content_type(trained, served, tmp_path):
    payload = tmp_path / "one.json"
    payload.write_text('{"instances": [[5.1, 3.5, 1.4, 0.2]]}')
    answer = asked(trained, served, payload, "application/json")
    assert (answer.returncode, json.loads(answer.stdout)) == (0, ["setosa"])


def test_predict_shows_a_refusal_and_fails(trained, served):
    answer = asked(trained, served, trained / "payload.csv", "image/png")
    assert answer.returncode == 1
    assert json.loads(answer.stdout)["code"] == 415


def test_a_failing_training_fails_the_script(scripts, image, tmp_path):
    (tmp_path / "training.py").write_text("def train_fn(job):\n    raise ValueError('no such data')\n")
    job = run(scripts / "train_local.sh", image, "--label", LABEL, CODE=tmp_path)
    assert job.returncode != 0
    assert "no such data" in (scripts / "test_dir" / "output" / "failure").read_text()


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("train_local.sh", [], "usage: train_local.sh IMAGE"),
        ("serve_local.sh", [], "usage: serve_local.sh IMAGE"),
        ("serve_local.sh", ["berth"], "run train_local.sh berth first"),
        ("predict.sh", [], "usage: predict.sh PAYLOAD"),
        ("predict.sh", ["/no/such/file"], "cannot read /no/such/file"),
    ],
)
def test_scripts_say_what_is_missing(scripts, script, arguments, said):
    answer = run(scripts / script, *arguments)
    assert answer.returncode == 1
    assert said in answer.stderr


def test_the_data_is_that_of_the_example():
    shipped = ROOT / "local_test" / "test_dir" / "input" / "data" / "train" / "iris.csv"
    assert shipped.read_bytes() == (IRIS / "data" / "train" / "iris.csv").read_bytes()
