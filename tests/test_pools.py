"""Where fits run: processes that die with the one that started them; a Dask cluster that can be used, or why not."""

import json
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from container import pools
from container.settings import environment
from container.training_job import TrainingError
from tests.waiting import until

ROOT = Path(__file__).parent.parent


PROGRAM = """
import json, multiprocessing, os, signal, subprocess, sys, tempfile, time
from container import pools, preload, resources
from container.settings import Settings

kind, settings = sys.argv[1], Settings(threads_by_user={"OMP_NUM_THREADS": "3"})
if kind == "started":
    preload.lost_in_a_fork = lambda: "it has started threads"

def pool_of(workers):
    return pools.local(resources.Plan(workers, 2, False, ()), settings, Shared())

class Shared:
    pickled = 0
    def __getstate__(self):
        Shared.pickled += 1
        return {"text": "x" * 5_000_000}

def environment(shared):
    return dict(os.environ)

def pid(shared):
    return os.getpid()

def leave(shared, code):
    os._exit(code)

def pause(shared, seconds):
    time.sleep(seconds)

def grandchild(shared):
    nowhere = subprocess.DEVNULL  # so that the end of the program's own output is seen
    return subprocess.Popen(["sleep", "600"], stdout=nowhere, stderr=nowhere).pid

def signalled(shared):
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    return os.getpid()

def ended(shared):
    program = subprocess.Popen(["sleep", "5"])
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(5,))
    child.start()
    program.terminate()
    child.terminate()
    child.join()
    return program.wait(), child.exitcode

def temporary(shared):
    return tempfile.mkdtemp(), os.environ["TMPDIR"]

def alarm(shared):
    signal.alarm(1)
    time.sleep(3)

found = {"pid": os.getpid()}
signal.signal(signal.SIGALRM, lambda number, frame: None)  # as a job has one
with pool_of(1) as pool:
    found["width"] = pool.width()
    found["environment"] = pool.submit(environment).result()
    found["child"] = pool.submit(pid).result()
    found["grandchild"] = pool.submit(grandchild).result()
    found["pickled"] = Shared.pickled
    found["signalled"] = pool.submit(signalled).result()
    found["ended"] = pool.submit(ended).result()
    found["temporary"] = pool.submit(temporary).result()
with pool_of(2) as pool:
    found["other"] = pool.submit(pid).result()
    crash = pool.submit(leave, 3).exception()
    found["crash"] = isinstance(crash, pool.crashes) and pool.is_broken
    found["ending"] = pool.ending(crash)
with pool_of(2) as pool:
    found["alarm"] = pool.ending(pool.submit(alarm).exception())
print(json.dumps(found), flush=True)
with pool_of(2) as pool:
    print(pool.submit(pid).result(), flush=True)
    pool.submit(pause, 600).result()
"""
"""Uses pools as a job does, and tells; then waits for a long fit."""


@pytest.fixture(scope="module", params=["forked", "started"])
def told(request, tmp_path_factory):
    """What the program told, and the pids of it and of the process that its last fit is in; it has been killed meanwhile."""
    command = [sys.executable, "-c", PROGRAM, request.param]
    place = tmp_path_factory.mktemp("tmp")
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(TMPDIR=str(place)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        process.kill()
        assert first, process.stderr.read()
    return {**json.loads(first), "kind": request.param, "last": int(second), "place": place}


def test_processes_have_the_plans_threads(told):
    assert told["width"] == 1
    assert (told["environment"].get("OMP_NUM_THREADS"), told["environment"].get("OPENBLAS_NUM_THREADS")) == (None, "2")


def test_what_calls_share_goes_to_a_process_once(told):
    assert told["pickled"] == {"forked": 0, "started": 1}[told["kind"]]


def test_a_process_that_dies_is_a_crash(told):
    assert told["crash"]
    assert told["ending"] == "EXIT(3)"


def test_what_is_temporary_in_a_process_ends_with_the_pool(told):
    made, directory = map(Path, told["temporary"])
    assert made.parent == directory
    assert directory.parent == told["place"]
    assert not directory.exists()


def test_a_signal_to_the_group_leaves_a_fit_alone(told):
    assert told["signalled"] == told["child"]


def test_a_fit_can_end_what_it_has_started(told):
    assert told["ended"] == [-signal.SIGTERM, -signal.SIGTERM]


def test_a_fits_alarm_is_its_own(told):
    assert told["alarm"] == "SIGALRM(-14)"


@pytest.mark.parametrize("who", ["child", "grandchild", "other", "last"])
def test_nothing_lives_longer_than_the_pool_and_its_program(told, who):
    until(lambda: not alive(told[who]), 10, f"the end of the {who}")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, free_port_number):
    address = f"tcp://127.0.0.1:{free_port_number}"
    with (
        pytest.raises(TrainingError, match=f"the Dask scheduler at {address} did not answer within 0.2 s"),
        pools.dask(address, tmp_path / "shared", None, 0.2),
    ):
        pass


def test_dask_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(TrainingError, match="asks for Dask, but distributed is not installed in this image"),
        pools.dask("tcp://x:1", tmp_path / "shared", None),
    ):
        pass


@pytest.fixture
def free_port_number():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Client:
    """A Dask client as far as the checks ask one. answers: of its workers."""

    def __init__(self, answers):
        self.answers = answers

    def wait_for_workers(self, count, timeout):
        if not self.answers:
            raise TimeoutError

    def run(self, function, *arguments, on_error):
        return {worker: function(*arguments) if answer is None else answer for worker, answer in self.answers.items()}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"a": None, "b": False}, "the Dask worker b does not see .*: all workers must share the file system"),
        (
            {"a": ModuleNotFoundError("container")},
            r"the Dask worker a cannot run this program \(ModuleNotFoundError.*start workers from this image",
        ),
    ],
)
def test_workers_that_cannot_be_used_are_named(tmp_path, answers, message):
    with pytest.raises(TrainingError, match=message), pools._written(tmp_path / "shared", 7):
        pools._refuse_blind(Client(answers), tmp_path / "shared")
    assert not list(tmp_path.iterdir())


def test_workers_that_see_the_directory_are_good(tmp_path):
    with pools._written(tmp_path / "shared", 7):
        pools._refuse_blind(Client({"a": None}), tmp_path / "shared")
    assert not list(tmp_path.iterdir())


def test_a_cluster_without_workers_is_named():
    with pytest.raises(TrainingError, match=r"the Dask scheduler at tcp://x:1 has no worker after 0.1 s"):
        pools._await_worker(Client({}), "tcp://x:1", 0.1)


def test_a_call_is_made_where_it_is_unpickled():
    assert pickle.loads(pickle.dumps(pools._Call(divmod, (7, 2)))) == (3, 1)


def test_a_dask_worker_reads_what_calls_share_once(tmp_path):
    with pools._written(tmp_path / "shared", 7):
        assert pools._with_file(str(tmp_path / "shared"), divmod, 2) == (3, 1)
    assert pools._with_file(str(tmp_path / "shared"), divmod, 3) == (2, 1)
