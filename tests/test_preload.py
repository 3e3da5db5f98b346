"""Where the model is loaded: before the fork, or in each worker, and why; and how a start that fails is told."""

import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from container import events, preload, resources
from container.errors import StartupError
from container.message import Context, Response
from container.predictor import Predictor
from container.resources import Resources
from container.settings import environment

ROOT = Path(__file__).parent.parent
ECHO = "def model_fn(model_dir): return None\ndef predict_fn(data, model): return data\n"

# From Python 3.12 on a fork beside threads warns; the threads here are the tests' own, or OpenBLAS's, which lives through it.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def native_threads(monkeypatch):
    """How many there are: what the tests before this one have started is taken to be OpenBLAS's."""
    there = len(list(Path("/proc/self/task").iterdir())) - 1
    monkeypatch.setattr(preload, "_blas_threads", lambda: there)
    return there


@pytest.fixture(autouse=True)
def _no_child_and_nothing_frozen():
    yield
    gc.unfreeze()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def supervisor(tmp_path):
    (tmp_path / "run").mkdir()
    with events.listen(tmp_path / "run") as listener:
        yield listener


@pytest.fixture
def restarts(monkeypatch):
    """Where this process would start again: that ends the call instead."""

    class StartsAgain(BaseException):
        pass

    def start_again():
        raise StartsAgain

    monkeypatch.setattr(preload, "_start_again", start_again)
    return StartsAgain


def warming(warm_up):
    """A predictor whose warm-up prediction is this function."""
    return Predictor(lambda request: None, lambda data, context: warm_up(), lambda p, r: Response(b""), 1, [[0.0]], "test")


@pytest.mark.parametrize(
    ("choice", "where", "frozen"),
    [("auto", "shared by the workers", True), ("always", "shared by the workers", True), ("never", "in this worker", False)],
)
def test_the_model_is_loaded_and_frozen_before_a_fork(script, caplog, choice, where, frozen):
    with caplog.at_level(logging.INFO):
        loaded = preload.load(script(ECHO, preload=choice))
    assert loaded.predict("data", Context()) == "data"
    assert re.fullmatch(rf"loaded .*/inference\.py in \d+\.\d\d s, \d+ MB, {where}", caplog.messages[-1])
    assert (gc.get_freeze_count() > 0) == frozen


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("", "{0} has no model_fn(model_dir)"),
        ("def model_fn(model_dir): raise OSError('no weights')", "model_fn in {0}, line 1, raised OSError: no weights"),
        ("def model_fn(model_dir): exit()", "model_fn in {0}, line 1, raised SystemExit: None"),
    ],
)
@pytest.mark.parametrize("choice", ["auto", "always", "never"])
def test_a_model_that_cannot_be_loaded_ends_the_process_and_the_supervisor_knows_why(script, supervisor, tmp_path, source, cause, choice):
    with pytest.raises(SystemExit) as ended:
        preload.load(script(source, preload=choice, run_dir=tmp_path / "run"))
    assert ended.value.code == 1
    (told,) = events.receive(supervisor)
    assert told["kind"] == events.FAILED
    assert told["cause"].startswith(cause.format(tmp_path / "model/code/inference.py"))


def test_the_traceback_behind_the_cause_is_in_the_log(script, caplog):
    with pytest.raises(SystemExit):
        preload.load(script("def model_fn(model_dir): raise OSError('no weights')"))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OSError)


@pytest.fixture
def thread():
    """A thread of this name is running."""
    end = threading.Event()
    running = threading.Thread(target=end.wait, name="a-librarys-own", daemon=True)
    running.start()
    yield
    end.set()
    running.join()


def test_a_model_with_threads_is_loaded_in_each_worker(script, caplog, thread, restarts):
    with pytest.raises(restarts):
        preload.load(script(ECHO))
    assert caplog.messages == ["the model is loaded in each worker: it has started threads (a-librarys-own), which a fork would lose"]


@pytest.mark.parametrize("choice", ["always", "never"])
def test_whoever_chose_is_not_asked_again(script, thread, restarts, choice):
    assert preload.load(script(ECHO, preload=choice)).predict("data", Context()) == "data"


@pytest.mark.parametrize(
    ("initialised", "reason"), [(False, None), (True, "it has initialised CUDA, which does not work in a forked process")]
)
def test_cuda_does_not_live_through_a_fork(monkeypatch, initialised, reason):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: initialised)))
    assert preload._unsafe(warming(lambda: None)) == reason


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (0, None),
        (1, "a library has started 1 native thread, which a fork would lose"),
        (3, "a library has started 3 native threads, which a fork would lose"),
    ],
)
def test_threads_that_python_does_not_know_of_count_too(monkeypatch, native_threads, more, reason):
    monkeypatch.setattr(preload, "_blas_threads", lambda: native_threads - more)
    assert preload._unsafe(warming(lambda: None)) == reason


def test_the_threads_of_openblas_do_not_count():
    source = "import os; from container import preload; print(len(os.listdir('/proc/self/task')) - 1 - preload._blas_threads())"
    environ = environment(OPENBLAS_NUM_THREADS="3")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT, env=environ)
    assert done.stdout == "0\n"


def fails():
    raise ValueError("not the fork's fault")


@pytest.mark.parametrize(
    ("warm_up", "reason"),
    [
        (lambda: None, None),
        (fails, None),
        (lambda: exit(3), None),
        (lambda: os.kill(os.getpid(), signal.SIGUSR1), "a trial prediction in a forked process ended with SIGUSR1"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "a trial prediction in a forked process ended with SIGKILL"),
    ],
    ids=["works", "raises", "exits", "crashes", "is killed"],
)
def test_a_trial_tells_whether_the_model_lives_through_a_fork(warm_up, reason):
    assert preload._trial(warming(warm_up)) == reason


def test_a_trial_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(preload, "TRIAL_SECONDS", 0.05)
    assert preload._trial(warming(threading.Event().wait)) == "a trial prediction in a forked process did not end within 0 s"


def test_a_model_that_crashes_in_the_trial_is_loaded_in_each_worker(script, caplog, restarts):
    source = (
        "import os, signal\nPARENT = os.getpid()\nWARMUP = ('text/csv', '1')\n"
        + ECHO
        + "def output_fn(p, a):\n    if os.getpid() != PARENT: os.kill(os.getpid(), signal.SIGUSR1)\n    return 'a'\n"
    )
    with pytest.raises(restarts):
        preload.load(script(source))
    assert caplog.messages == ["the model is loaded in each worker: a trial prediction in a forked process ended with SIGUSR1"]


@pytest.mark.parametrize(
    ("megabytes", "workers", "said"),
    [
        (100, 10, None),
        (100, None, None),
        (
            101,
            10,
            (
                "10 workers with 101 MB of model each do not fit into 1000 MB (cgroup memory limit): "
                "at most 9 do; set SAGEMAKER_MODEL_SERVER_WORKERS"
            ),
        ),
    ],
)
def test_copies_of_a_model_that_do_not_fit_are_refused_with_the_number_that_do(script, monkeypatch, megabytes, workers, said):
    monkeypatch.setattr(resources, "granted", lambda: Resources(4.0, "", 1000 << 20, "cgroup memory limit"))
    settings = script("", workers=workers)
    if said is None:
        preload._refuse_too_many(settings, megabytes << 20)
    else:
        with pytest.raises(StartupError, match=f"^{re.escape(said)}$"):
            preload._refuse_too_many(settings, megabytes << 20)


def test_starting_again_is_the_same_program_with_the_choice_made(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execve", lambda *arguments: called.append(arguments))
    preload._start_again()
    ((program, argv, environ),) = called
    assert (program, argv) == (sys.executable, sys.orig_argv)
    assert environ["MODEL_SERVER_PRELOAD"] == "never"
    assert environ["PATH"] == os.environ["PATH"]
