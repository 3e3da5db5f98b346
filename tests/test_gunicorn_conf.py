"""gunicorn's settings as they follow from ours, and its hooks: slots, readiness, and how a worker died."""

import importlib.util
import inspect
import logging
import os
import select
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from gunicorn import arbiter
from gunicorn.config import Config

from container import events
from container.errors import StartupError

# From Python 3.12 on a fork beside threads warns; the threads here are those of other tests.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
DEADLINE = 10
FILE = Path(__file__).parent.parent / "container" / "gunicorn_conf.py"


@pytest.fixture
def killed(monkeypatch):
    """When this process asks to be killed: it could not take it back."""
    asked: list[int] = []
    monkeypatch.setattr("container.resources.be_killed", asked.append)
    return asked


@pytest.fixture
def load(monkeypatch, tmp_path, killed):
    """The file as gunicorn reads it, in an environment."""

    def load(**environ):
        for name, value in {"MODEL_SERVER_RUN_DIR": str(tmp_path), **environ}.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("gunicorn_conf", FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def supervisor(tmp_path):
    with events.listen(tmp_path) as listener:
        yield listener


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"workers": 1, "timeout": 65, "preload_app": True}),
        ({"MODEL_SERVER_WORKERS": "3"}, {"workers": 3}),
        ({"MODEL_SERVER_TIMEOUT": "0.5"}, {"timeout": 5}),
        ({"MODEL_SERVER_PRELOAD": "never"}, {"preload_app": False}),
        ({"MODEL_SERVER_PRELOAD": "always"}, {"preload_app": True}),
        ({"MODEL_SERVER_RUN_DIR": "/run/x"}, {"bind": ["unix:/run/x/gunicorn.sock"]}),
        (
            {"MODEL_SERVER_RUN_DIR": "/run/x", "SAGEMAKER_MULTI_MODEL": "true", "MODEL_SERVER_WORKERS": "2"},
            {"bind": ["unix:/run/x/shard-0.sock", "unix:/run/x/shard-1.sock"], "workers": 2},
        ),
    ],
)
def test_settings_follow_the_environment_and_gunicorn_takes_them(load, environ, expected):
    module, config = load(**environ), Config()
    given = {name: value for name, value in vars(module).items() if name in config.settings}
    for name, value in given.items():
        config.set(name, value)
    assert {name: config.settings[name].get() for name in expected} == expected
    assert config.worker_class_str == "container.worker.Worker"
    assert config.graceful_timeout == 25
    assert {"post_worker_init", "pre_fork", "on_starting"} <= set(given)


LINES = [("booting", logging.INFO), ("careful", logging.WARNING), ("broken", logging.ERROR)]


@pytest.mark.parametrize(
    ("level", "seen"),
    [("debug", ["booting", "careful", "broken"]), ("info", ["careful", "broken"]), ("error", ["broken"]), ("critical", [])],
)
def test_gunicorn_speaks_in_our_format_and_only_of_what_is_wrong(capsys, load, gunicorn, level, seen):
    logger = load(SAGEMAKER_CONTAINER_LOG_LEVEL=level).GunicornLogger(Config())
    for text, number in LINES:
        logger.log(number, text)
    logger.access(None, None, {}, None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" gunicorn.error: ")[2] for line in lines] == seen


def test_gunicorns_guesses_are_dropped_and_are_still_what_it_says(capsys, load, gunicorn):
    module = load()
    logger = module.GunicornLogger(Config())
    for start in module.MISLEADING:
        assert start in inspect.getsource(arbiter)
        logger.error(f"{start}%s. Perhaps out of memory?", 7, "SIGKILL")  # noqa: G004
    logger.error("something else (pid:%s)", 7)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("something else (pid:7)")


@pytest.fixture
def gunicorn():
    """gunicorn's own logger is left as it was."""
    logger = logging.getLogger("gunicorn.error")
    before = logger.propagate, logger.handlers, logger.level, logger.filters
    logger.filters = []
    yield
    logger.propagate, logger.handlers, logger.level, logger.filters = before


@pytest.mark.parametrize(("taken", "slot"), [([], 0), ([0], 1), ([1], 0), ([0, 1, 3], 2), ([2, 0, 1], 3)])
def test_a_new_worker_takes_the_lowest_free_slot(load, tmp_path, taken, slot):
    worker = SimpleNamespace()
    workers = {1000 + other: SimpleNamespace(slot=other) for other in taken}
    load().pre_fork(SimpleNamespace(WORKERS=workers), worker)
    assert (worker.slot, worker.run_dir, worker.own_socket) == (slot, tmp_path, False)


def test_a_worker_of_many_models_is_a_shard_with_a_socket_of_its_own(load):
    worker = SimpleNamespace()
    load(SAGEMAKER_MULTI_MODEL="true").pre_fork(SimpleNamespace(WORKERS={}), worker)
    assert worker.own_socket


def test_workers_share_the_counts_of_their_connections(load):
    module, first, second = load(MODEL_SERVER_WORKERS="2"), SimpleNamespace(), SimpleNamespace()
    for worker in (first, second):
        module.pre_fork(SimpleNamespace(WORKERS={}), worker)
    child = os.fork()
    if child == 0:
        first.connections[1] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert second.connections[1] == 7
    assert second.connections[0] == module.ABSENT, "a worker counts from the moment at which it listens"


class Application:
    """As much of a front as a worker's start knows."""

    def __init__(self, warm_up):
        self._warm_up = warm_up

    def start(self, counters, slot):
        self.counters, self.slot = counters, slot
        return self._warm_up()


def worker(warm_up):
    return SimpleNamespace(slot=2, application=Application(warm_up))


@pytest.mark.parametrize("warm", [True, False])
def test_a_worker_that_has_warmed_up_is_ready_and_counts_into_its_slot(load, killed, tmp_path, supervisor, warm):
    (tmp_path / "metrics").mkdir()
    started = worker(lambda: warm)
    load().post_worker_init(started)
    assert started.application.slot == 2
    assert killed == [500], "before gunicorn's parent, whose end would be everybody's"
    assert events.receive(supervisor) == [{"kind": "ready", "slot": 2, "pid": os.getpid(), "warm": warm}]
    assert [path.name for path in (tmp_path / "metrics").iterdir()] == ["worker-2"]


def test_a_worker_that_cannot_warm_up_tells_the_cause_and_ends(load, tmp_path, supervisor):
    def warm_up():
        raise StartupError("the warm-up prediction raised KeyError: 'a'")

    (tmp_path / "metrics").mkdir()
    with pytest.raises(SystemExit) as ended:
        load().post_worker_init(worker(warm_up))
    assert ended.value.code == 1
    assert events.receive(supervisor) == [{"kind": "failed", "cause": "the warm-up prediction raised KeyError: 'a'"}]


def test_without_a_run_directory_a_worker_counts_for_itself(load):
    lone = worker(lambda: True)
    load(MODEL_SERVER_RUN_DIR="").post_worker_init(lone)
    lone.application.counters.count(200)


@pytest.mark.parametrize(("leaves", "ending"), [(True, -signal.SIGALRM), (False, 0)])
def test_who_makes_way_is_not_held_up_by_what_its_exit_waits_for(load, leaves, ending):
    module = load()
    pid = os.fork()
    if pid == 0:
        module.LEAVE_SECONDS = 0.05
        module.worker_exit(None, SimpleNamespace(leaves=leaves))
        select.select([], [], [], DEADLINE if leaves else 0.2)  # a thread that is no daemon, say
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ending


@pytest.mark.parametrize(
    ("ending", "oom_kills", "cause"),
    [
        ("exit 3", [0, 0], "it ended with code 3"),
        ("exit 0", [0, 1], "it ended with code 0"),
        ("kill -TERM $$", [0, 1], "it was killed by SIGTERM (not for want of memory)"),
        ("kill -SEGV $$", [0, 0], "it was killed by SIGSEGV (not for want of memory)"),
        ("kill -KILL $$", [4, 4], "it was killed by SIGKILL (not for want of memory)"),
        ("kill -KILL $$", [4, 5], "the kernel killed it for want of memory (the cgroup's oom_kill counter says so)"),
    ],
)
def test_how_a_worker_died_is_told_before_gunicorn_reaps_it(load, monkeypatch, supervisor, ending, oom_kills, cause):
    counts = iter(oom_kills)
    monkeypatch.setattr("container.resources.oom_kills", lambda: next(counts))
    module = load()
    with subprocess.Popen(["/bin/sh", "-c", f"ulimit -c 0; {ending}"]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
        reaped: list[int] = []
        server = SimpleNamespace(
            WORKERS={dead.pid: SimpleNamespace(slot=1, pid=dead.pid)}, reap_workers=lambda: reaped.append(os.waitpid(dead.pid, 0)[0])
        )
        module.on_starting(server)
        server.reap_workers()
    assert events.receive(supervisor) == [{"kind": "died", "slot": 1, "pid": dead.pid, "cause": cause}]
    assert reaped == [dead.pid], "gunicorn could still reap it"


def test_the_living_and_those_that_are_reaped_already_are_not_told(load, supervisor):
    with subprocess.Popen(["/bin/sh", "-c", "exit 0"]) as reaped:
        pass
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as alive:
        workers = {process.pid: SimpleNamespace(slot=slot, pid=process.pid) for slot, process in enumerate((reaped, alive))}
        server = SimpleNamespace(WORKERS=workers, reap_workers=lambda: None)
        load().on_starting(server)
        server.reap_workers()
        assert alive.poll() is None
        alive.send_signal(signal.SIGTERM)
    assert events.receive(supervisor) == []
