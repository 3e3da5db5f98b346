"""How a server that cannot go on says why, in one line, and ends."""

import json
import signal
import socket

import joblib
import pytest
import requests

from tests.live.clients import clients, send
from tests.live.launcher import in_docker, on_host
from tests.waiting import until

pytestmark = pytest.mark.live


def _script(text):
    def put(model_dir):
        (model_dir / "code").mkdir()
        (model_dir / "code" / "inference.py").write_text(text)

    return put


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"script": "failing_warmup"}, ["warm-up", "ArithmeticError: no weights for two columns"]),
        ({"script": "nothing"}, ["inference.py has no model_fn(model_dir)"]),
        ({"model": _script("import nonexistent_library\n")}, ["inference.py, line 1", "nonexistent_library", "not installed"]),
        ({"model": _script("def model_fn(model_dir):\n    return [\n")}, ["inference.py is not valid Python", "line 2"]),
        ({"model": _script("def model_fn():\n    return 1\n")}, ["model_fn in", "model_fn(model_dir)"]),
        ({}, ["model is empty", "model.joblib"]),
        ({"model": lambda path: (path / "model.joblib").write_bytes(b"not a pickle")}, ["model.joblib cannot be loaded"]),
        ({"model": lambda path: joblib.dump([1], path / "model.joblib")}, ["builtins.list", "no predict method"]),
        ({"script": "echo", "env": {"SAGEMAKER_PROGRAM": "gone.py"}}, ["code/gone.py", "SAGEMAKER_PROGRAM=gone.py"]),
        ({"script": "echo", "env": {"SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/code.tar.gz"}}, ["SAGEMAKER_SUBMIT_DIRECTORY=s3://"]),
        ({"script": "echo", "env": {"MODEL_SERVER_WORKER": "2"}}, ["MODEL_SERVER_WORKER is not", "did you mean MODEL_SERVER_WORKERS?"]),
        ({"script": "echo", "env": {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "soon"}}, ["SAGEMAKER_MODEL_SERVER_TIMEOUT='soon'", "seconds"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_start_says_why(start, how, says):
    server = start(**how, ready=False)
    assert server.wait() != 0
    assert server.last_words().startswith("STARTUP FAILED: ")
    assert [words for words in says if words not in server.last_words()] == []


@on_host
def test_a_port_in_use(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = start("echo", env={"SAGEMAKER_BIND_TO_PORT": str(port)}, ready=False)
        assert server.wait(10) != 0
    assert server.last_words().startswith("STARTUP FAILED: ")
    assert str(port) in server.last_words()
    assert "in use" in server.last_words()


def test_a_model_that_kills_every_worker_at_its_warm_up(start):
    server = start("crash_at_warmup", ready=False)
    assert server.wait() != 0
    assert server.last_words().startswith("STARTUP FAILED: 3 workers in a row died before their first answer")
    assert "SIGKILL (not for want of memory)" in server.last_words()


@in_docker
def test_a_model_that_takes_too_much_memory_at_its_warm_up(start):
    server = start("hog", env={"HOG_MB": "700"}, docker=["--memory", "400m", "--memory-swap", "400m"], ready=False)
    assert server.wait() != 0
    assert server.last_words().startswith("STARTUP FAILED: 3 workers in a row died before their first answer")
    assert "for want of memory (the cgroup's oom_kill counter says so)" in server.last_words()


@in_docker
def test_a_request_that_takes_too_much_memory_fails_alone(start):
    server = start("hog", docker=["--memory", "400m", "--memory-swap", "400m"])
    assert server.post("1").status_code == 200
    assert server.post("700").status_code == 502
    server.await_log("for want of memory")
    until(lambda: len(server.pids("worker")) == 2, 20, "a new worker")
    assert server.post("1").status_code == 200
    assert server.ended() is None


def test_a_model_that_no_request_survives(start):
    server, statuses = start("exits"), set()

    def ended():
        if server.ended() is None:
            try:
                statuses.add(server.post("_exit").status_code)
            except requests.ConnectionError:  # it ends in this moment
                return False
        return server.ended() is not None

    until(ended, 20, "the end of the server")
    assert server.wait() != 0
    assert 502 in statuses
    assert statuses <= {502, 503}  # 503 while neither worker has been replaced
    assert "3 workers in a row died before their first answer; of the last: it ended with code 3" in server.last_words()


def test_a_second_sigterm_changes_nothing(start):
    server = start("sleepy")
    with clients() as pool:
        answer = send(pool, server, 2)
        server.await_log("began 2\n")
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGTERM)
        assert answer.result().json()["slept"] == 2
    assert server.wait() == 0


def test_requests_after_sigterm_are_503(start):
    server = start("sleepy")
    with clients() as pool:
        answer = send(pool, server, 3)
        server.await_log("began 3\n")
        server.signal(signal.SIGTERM)
        until(lambda: server.get("/ping").status_code == 503, 3, "/ping being 503")
        refused = server.post("0")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["code"] == 503
        assert answer.result().status_code == 200


@on_host
def test_nothing_is_left_behind(start):
    server = start("echo")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.left() == []
    assert start.leftovers() == []


def test_24_train(start):
    server = _train(start, {"act": "report", "depth": "3", "rate": "0.1", "name": "a"})
    assert server.wait() == 0, server.logs()
    seen = json.loads((server.base_dir / "model" / "seen.json").read_text())
    assert seen == {"act": "report", "depth": 3, "rate": 0.1, "name": "a"}


def test_24_a_failing_script_says_why(start):
    server = _train(start, {"act": "fail"})
    assert server.wait() != 0
    assert "ValueError: the loss is not a number" in (server.base_dir / "output" / "failure").read_text()[:1024]


def test_24_sigterm_lets_the_script_save(start):
    server = _train(start, {"act": "wait"})
    server.await_log("training\n")
    server.signal(signal.SIGTERM)
    server.wait(30)
    assert (server.base_dir / "model" / "seen.json").exists()


def _train(start, hyperparameters):
    """A training job of tests/fixtureapps/training.py; the platform writes every hyperparameter as a string."""
    base = start.base_dir("input/config", "output", "code")
    (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    start.copy("training", base / "code" / "training.py")
    return start.run("train", base, {})
