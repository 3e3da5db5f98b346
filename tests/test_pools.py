"""Where fits run: processes that die with the one that started them; a Dask cluster that can be used, or why not."""

import os
import pickle
import socket
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from container import pools, resources
from container.settings import Settings
from container.training_job import TrainingError
from tests.waiting import until

ROOT = Path(__file__).parent.parent


def local(workers=1, **settings):
    given = Settings(workers=workers, **settings)
    return pools.local(resources.plan(given, resources.Resources(2, "", 1 << 30, ""), ROOT), given)


def environment_of_child():
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED")
    variables = dict(line.split("=", 1) for line in Path("/proc/self/environ").read_text().split("\0") if "=" in line)
    return {name: variables.get(name) for name in names}


def test_processes_have_the_plans_threads_and_hash_alike():
    with local(threads_by_user={"OMP_NUM_THREADS": "3"}) as pool:
        assert pool.width() == 1
        found = pool.submit(environment_of_child).result(60)
    assert found["OPENBLAS_NUM_THREADS"] == "2"
    assert found["PYTHONHASHSEED"] == "0"


def test_a_process_that_dies_is_a_crash_and_leaves_no_other():
    with local(workers=2) as pool:
        other = pool.submit(os.getpid).result(60)
        crash = pool.submit(os._exit, 3)
        assert isinstance(crash.exception(60), pool.crashes)
        assert issubclass(pool.crashes[0], BrokenProcessPool)
        assert pool.is_broken
    until(lambda: not Path(f"/proc/{other}").exists(), 10, "the end of a process")


def test_what_a_fit_has_started_ends_with_the_pool():
    with local() as pool:
        started = pool.submit(grandchild).result(60)
        assert alive(started)
    until(lambda: not alive(started), 10, "the end of a grandchild")


def grandchild():
    return subprocess.Popen(["sleep", "600"]).pid


PARENT = """
import os, time
from container import pools, resources
from container.settings import Settings
plan = resources.Plan(2, 1, False, ())
with pools.local(plan, Settings()) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


def test_processes_die_with_the_one_that_started_them():
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not alive(child), 10, "the end of the child")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, free_port_number):
    address = f"tcp://127.0.0.1:{free_port_number}"
    with (
        pytest.raises(TrainingError, match=f"the Dask scheduler at {address} did not answer within 0.2 s"),
        pools.dask(address, tmp_path, 0.2),
    ):
        pass


def test_dask_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(TrainingError, match="asks for Dask, but distributed is not installed in this image"),
        pools.dask("tcp://x:1", tmp_path),
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
    with pytest.raises(TrainingError, match=message):
        pools._refuse_blind(Client(answers), tmp_path)
    assert not list(tmp_path.iterdir())


def test_workers_that_see_the_directory_are_good(tmp_path):
    pools._refuse_blind(Client({"a": None}), tmp_path)


def test_a_cluster_without_workers_is_named():
    with pytest.raises(TrainingError, match=r"the Dask scheduler at tcp://x:1 has no worker after 0.1 s"):
        pools._await_worker(Client({}), "tcp://x:1", 0.1)


def test_a_call_is_made_where_it_is_unpickled():
    assert pickle.loads(pickle.dumps(pools._Call(divmod, (7, 2)))) == (3, 1)
