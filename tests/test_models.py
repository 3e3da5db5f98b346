"""The life of models in one process: what overlaps, what fails half way, and what a dead predecessor has left."""

import errno
import gc
import os
import re
import signal
import threading
import weakref
from array import array
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from container import memory, resources
from container import models as module
from container.errors import ClientError, Conflict, InsufficientStorage, ModelNotFound, ServingError, StartupError, Unavailable
from container.memory import MARGIN, Budget
from container.message import Response
from container.models import Models, measure
from container.predictor import Predictor
from container.registry import Catalogue, Ledger
from container.settings import Settings

DEADLINE = 10

# From Python 3.12 on a fork beside threads warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _nothing_frozen_and_no_child():
    yield
    gc.unfreeze()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


class Loader:
    """In the place of predictor.load: makes a predictor that answers with its directory's name, or raises; may be held up."""

    def __init__(self):
        self.begun, self.closed, self.dead = [], [], set()
        self.error = None
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, directory):
        self.begun.append(directory.name)
        assert self.gate.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        name = directory.name
        return Predictor(
            decode=lambda request: request,
            predict=lambda data, context: name,
            encode=lambda prediction, request: Response(prediction.encode()),
            max_batch_size=1,
            warmup=None,
            source="a test",
            close=lambda: self.closed.append(name),
            is_dead=lambda: name in self.dead,
        )


class Shard:
    """Models over a loader of the test's, and their artifacts."""

    def __init__(self, directory, free=1 << 40, total=1 << 40):
        self.directory, self.load = directory, Loader()
        self.ledger = Ledger(directory / "models-0.jsonl")
        self.budget = Budget(memoryview(array("q", [0])), 0, directory / "lock", lambda: free, total)
        self.models = Models(Settings(base_dir=directory), self.ledger, self.budget, self.load)

    def artifact(self, name, size=10):
        (self.directory / name).mkdir(exist_ok=True)
        (self.directory / name / "model.bin").write_bytes(b"x" * size)
        return str(self.directory / name)

    def put(self, name, size=10):
        self.models.load(name, self.artifact(name, size))

    def start_put(self, name):
        """A load that has begun and is held up until `load.gate` is set."""
        self.load.gate.clear()
        there = len(self.load.begun)
        loading = gevent.spawn(self.put, name)
        with gevent.Timeout(DEADLINE):
            while len(self.load.begun) == there:
                gevent.sleep(0.001)
        return loading

    def listed(self):
        """As GET /models says."""
        return [name for name, _ in Catalogue(self.directory).page(1000)[0]]


@pytest.fixture
def shard(tmp_path):
    """Opens a shard, and its successors."""
    opened = []

    def start(**options):
        opened.append(Shard(tmp_path, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.load.gate.set()
        if each.models._returning is not None:
            each.models._returning.kill()  # or it would come in the midst of the next test
        each.models._threads.kill()
        each.ledger.close()


def raised(greenlet):
    greenlet.join(timeout=DEADLINE)
    assert greenlet.ready()
    return greenlet.exception


def test_a_model_from_its_load_to_its_end(shard, caplog):
    caplog.set_level("INFO")
    one = shard()
    one.put("a")
    assert re.search(r"^model 'a' is loaded in \d\.\d{3} s: ", caplog.messages[-1])
    assert ("a" in one.models, len(one.models), one.listed()) == (True, 1, ["a"])
    model = one.models.get("a")
    assert (model.name, model.url, model.bytes, model.loads, model.hits) == ("a", one.artifact("a"), 10, 1, 0)
    assert one.models.unload("a") == one.artifact("a")
    assert ("a" in one.models, len(one.models), one.listed(), one.load.closed) == (False, 0, [], ["a"])
    one.put("a")
    assert one.models.get("a") is not model


@pytest.mark.parametrize("call", ["get", "url", "unload"])
def test_a_model_that_is_not_loaded(shard, call):
    one = shard()
    one.put("other")
    for name in ("a", "", "Other", "other "):
        with pytest.raises(ModelNotFound, match=f"^model {name!r} is not loaded$"):
            getattr(one.models, call)(name)
    one.models.unload("other")
    with pytest.raises(ModelNotFound):
        getattr(one.models, call)("other")


def test_a_name_is_loaded_once(shard):
    one = shard()
    loading = one.start_put("a")
    with pytest.raises(Conflict, match=r"^model 'a' is being loaded$"):
        one.put("a")
    with pytest.raises(ModelNotFound):
        one.models.get("a")
    assert one.listed() == []
    one.load.gate.set()
    assert raised(loading) is None
    with pytest.raises(Conflict, match=r"^model 'a' is loaded already$"):
        one.put("a")
    assert one.load.begun == ["a"]


def test_a_model_that_is_unloaded_while_it_loads_has_never_been(shard):
    one = shard()
    loading = one.start_put("a")
    unloading = [gevent.spawn(one.models.unload, "a") for _ in range(2)]
    gevent.idle()
    assert not any(each.ready() for each in unloading), "it answers when the memory is back"
    with pytest.raises(Conflict, match=r"^model 'a' is being unloaded$"):
        one.put("a")
    one.load.gate.set()
    assert isinstance(raised(loading), Conflict)
    assert [each.get(timeout=DEADLINE) for each in unloading] == [one.artifact("a")] * 2
    assert (one.listed(), len(one.models), one.load.closed) == ([], 0, ["a"])
    one.put("a")
    assert one.listed() == ["a"]


def test_a_load_that_fails_while_it_is_unloaded(shard):
    one = shard()
    one.load.error = StartupError("broken")
    loading = one.start_put("a")
    unloading = gevent.spawn(one.models.unload, "a")
    gevent.idle()
    one.load.gate.set()
    assert isinstance(raised(loading), ClientError)
    assert unloading.get(timeout=DEADLINE) == one.artifact("a")
    with pytest.raises(ModelNotFound):
        one.models.unload("a")


def test_an_unload_waits_for_the_requests_in_flight_and_takes_no_more(shard):
    one = shard()
    one.put("a")
    model = one.models.get("a")
    for _ in range(2):
        model.enter(10)
    unloading = gevent.spawn(one.models.unload, "a")
    gevent.idle()
    model.leave()
    gevent.idle()
    assert not unloading.ready()
    assert one.listed() == []
    for call in (one.models.get, one.models.unload):
        with pytest.raises(ModelNotFound):
            call("a")
    one.put("a")
    assert one.models.get("a") is not model, "the next of its name is another"
    assert one.load.closed == []
    model.leave()
    assert raised(unloading) is None
    assert one.load.closed == ["a"]
    assert one.models.get("a").active == 0


def test_an_unload_does_not_wait_for_ever(shard, monkeypatch, caplog):
    monkeypatch.setattr(module, "UNLOAD_SECONDS", 0.01)
    one = shard()
    one.put("a")
    one.models.get("a").enter(10)
    one.models.unload("a")
    assert one.load.closed == ["a"]
    assert "model 'a' is unloaded with 1 requests in flight" in caplog.text


FAILURES = [
    (StartupError("model.joblib cannot be loaded"), ClientError, 400, "model.joblib cannot be loaded"),
    (MemoryError("a"), InsufficientStorage, 507, "model 'a' needs more than"),
    (InsufficientStorage("the process was killed"), InsufficientStorage, 507, "the process was killed"),
    (KeyError("a"), KeyError, None, "a"),
    (SystemExit(3), SystemExit, None, "3"),
]


@pytest.mark.parametrize(("error", "becomes", "status", "said"), FAILURES, ids=lambda value: type(value).__name__)
def test_a_load_that_fails_is_told_and_leaves_nothing(shard, capfd, error, becomes, status, said):
    one = shard()
    one.load.error = error
    with pytest.raises(becomes, match=said) as failed:
        one.put("a")
    assert getattr(failed.value, "status", None) == status
    assert (one.listed(), len(one.models), "a" in one.models, sum(one.budget._reserved)) == ([], 0, False, 0)
    assert "Traceback" not in capfd.readouterr().err, "gevent prints what is raised on its threads"
    one.load.error = None
    one.put("a")
    assert one.listed() == ["a"]


def test_memory_that_was_short_behind_an_error_of_the_model(shard):
    one = shard()
    one.load.error = StartupError("model_fn raised MemoryError")
    one.load.error.__cause__ = MemoryError()
    with pytest.raises(InsufficientStorage):
        one.put("a")
    assert one.listed() == []


@pytest.mark.parametrize("url", ["/nowhere", "relative/nowhere", __file__, "/" + "x" * 300, "/a\0b", "s3://bucket/model.tar.gz"])
def test_a_url_that_is_no_directory(shard, url):
    one = shard()
    with pytest.raises(ClientError, match=f"^{re.escape(repr(url))} is not there, or is no directory") as failed:
        one.models.load("a", url)
    assert failed.value.status == 400
    assert one.load.begun == one.listed() == []


@pytest.mark.parametrize(
    ("left", "size", "tried", "refusal"),
    [
        (100, 33, False, None),
        (100, 40, False, "about 121 MB of memory, and 100 MB are left"),
        (100, 50, True, None),
        (100, 90, True, "about 108 MB of memory, and 100 MB are left"),
        (100, 150, False, "about 451 MB of memory, and 100 MB are left"),
        (700, 750, True, "about 900 MB of memory, and 700 MB are left"),
    ],
    ids=["fits", "does not", "may", "may, but does not", "has no chance", "may, if it is not all read"],
)
def test_only_what_is_large_and_may_fit_is_tried_before_it_is_refused(shard, monkeypatch, left, size, tried, refusal):
    """In MB, of 1,000 in all; a load takes 1.2 times its artifact here."""
    trials = []

    def measured(*arguments):
        trials.append(arguments)
        return (size << 20) * 12 // 10

    monkeypatch.setattr(module, "artifact_bytes", lambda directory: size << 20)
    monkeypatch.setattr(module, "measure", measured)
    one = shard(free=(left << 20) + MARGIN, total=1000 << 20)
    if refusal is None:
        one.put("a")
    else:
        with pytest.raises(InsufficientStorage, match=f"^model 'a' needs {refusal}$"):
            one.put("a")
    assert (bool(trials), one.load.begun, one.listed()) == (tried, *([["a"], ["a"]] if refusal is None else [[], []]))


def test_loads_that_wait_for_a_thread_hold_no_memory(shard, monkeypatch):
    monkeypatch.setattr(memory, "PATIENCE", 0)
    one = shard(free=(100 << 20) + MARGIN)
    one.load.gate.clear()
    loads = [gevent.spawn(one.put, f"m{number}") for number in range(20)]
    with gevent.Timeout(DEADLINE):
        while len(one.load.begun) < module.PARALLEL_LOADS:
            gevent.sleep(0.001)
    assert one.budget.left() == 25 << 20, "a half, and a half of the other half"
    one.load.gate.set()
    assert [raised(load) for load in loads] == [None] * 20
    assert one.budget.left() == 100 << 20


def test_a_model_that_cannot_be_put_on_the_list_is_not_there(shard, monkeypatch):
    one = shard()

    def full(name, url):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(one.ledger, "add", full)
    with pytest.raises(InsufficientStorage, match="model 'a' cannot be put on the list of models: No space left on device"):
        one.put("a")
    assert (len(one.models), one.load.closed) == (0, ["a"])
    monkeypatch.undo()
    one.put("a")


def test_a_successor_loads_what_is_asked_for_when_it_is_asked_for(shard):
    before = shard()
    for name in ("a", "b"):
        before.put(name)
    after = shard()
    assert (len(after.models), "a" in after.models, after.models.url("a")) == (0, True, before.artifact("a"))
    with pytest.raises(Conflict, match="loaded already"):
        after.put("a")
    after.load.gate.clear()
    asking = [gevent.spawn(after.models.get, "a") for _ in range(5)]
    gevent.idle()
    after.load.gate.set()
    assert len({each.get(timeout=DEADLINE) for each in asking}) == 1
    assert after.load.begun == ["a"]
    after.models.unload("b")
    assert (after.listed(), after.load.begun) == (["a"], ["a"]), "what nobody asks for is unloaded without being loaded"


@pytest.mark.parametrize(
    ("error", "expected", "listed"), [(StartupError("gone"), ClientError, []), (MemoryError(), InsufficientStorage, ["a"])]
)
def test_a_successor_that_cannot_load_tries_once_for_all_that_wait(shard, error, expected, listed):
    shard().put("a")
    after = shard()
    after.load.error = error
    after.load.gate.clear()
    asking = [gevent.spawn(after.models.get, "a") for _ in range(5)]
    gevent.idle()
    after.load.gate.set()
    assert {type(raised(each)) for each in asking} == {expected}
    assert after.load.begun == ["a"] * (1 if expected is ClientError else len(after.load.begun))
    assert after.listed() == listed


def test_a_successor_whose_model_is_unloaded_while_it_loads_it(shard):
    shard().put("a")
    after = shard()
    after.load.gate.clear()
    asking = gevent.spawn(after.models.get, "a")
    gevent.idle()
    unloading = gevent.spawn(after.models.unload, "a")
    gevent.idle()
    after.load.gate.set()
    assert isinstance(raised(asking), ModelNotFound)
    assert raised(unloading) is None
    assert (after.listed(), after.load.closed) == ([], ["a"])


def test_a_model_whose_process_has_died_is_loaded_again_and_its_figures_go_on(shard):
    one = shard()
    one.put("a")
    for _ in range(3):
        one.models.get("a").enter(10)
    one.load.dead.add("a")
    one.load.gate.clear()
    asking = [gevent.spawn(one.models.get, "a") for _ in range(3)]
    gevent.idle()
    one.load.dead.clear()
    one.load.gate.set()
    (again,) = {each.get(timeout=DEADLINE) for each in asking}
    assert (again.loads, again.hits, again.active) == (2, 3, 0)
    assert again.last_use > 0
    assert one.load.begun == ["a", "a"]


def test_so_many_may_wait_for_a_model_and_no_more(shard):
    one = shard()
    one.put("a")
    model = one.models.get("a")
    for _ in range(3):
        model.enter(3)
    with pytest.raises(Unavailable, match=r"^3 requests wait for this model already: the limit is MODEL_SERVER_MAX_QUEUE$") as refused:
        model.enter(3)
    assert (refused.value.status, refused.value.retry_after, model.hits) == (503, 1, 3)
    model.leave()
    model.enter(3)


def test_those_that_were_used_last_are_described_first(shard):
    one = shard()
    for name in "abcd":
        one.put(name)
    changes = one.models.changes
    one.models.get("b")
    assert one.models.changes > changes
    assert [model.name for model in one.models.describe(3)] == ["b", "d", "c"]


def test_full_collections_are_rare_only_while_there_are_models(shard):
    before = gc.get_threshold()
    try:
        one = shard()
        for name in "abc":
            one.put(name)
        assert gc.get_threshold()[2] == memory.FULL_EVERY + 3
        for name in "abc":
            one.models.unload(name)
        assert gc.get_threshold()[2] == memory.FULL_EVERY
    finally:
        gc.set_threshold(*before)


def test_what_models_leave_in_cycles_is_collected_once_it_is_much(shard, monkeypatch):
    monkeypatch.setattr(resources, "written", lambda: 0)  # what the C library gives back meanwhile is chance

    class Heavy:
        def __init__(self):
            self.own, self.predictor = self, None

    traces = []
    one = shard()
    load = one.load.__call__

    def with_cycle(directory):
        heavy = Heavy()
        traces.append(weakref.ref(heavy))
        loaded = load(directory)
        heavy.predictor = loaded
        return loaded

    one.models._load_predictor = with_cycle
    one.put("small")
    one.models.unload("small")
    assert traces[0]() is not None, "a small one is not worth the milliseconds"
    one.put("big", 2 * module.WORTH_RETURNING)
    one.models.unload("big")
    assert [trace() for trace in traces] == [None, None]


def test_the_last_that_were_unloaded_are_looked_for_when_it_is_quiet(shard, monkeypatch):
    looked = Event()
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(memory, "collect", looked.set)
    one = shard()
    for name in ("a", "b"):
        one.put(name)
        one.models.unload(name)
    assert looked.wait(DEADLINE)
    looked.clear()
    one.put("c")
    one.models.unload("c")
    assert looked.wait(DEADLINE), "and again after that"


def test_while_models_come_and_go_it_is_not_quiet(shard, monkeypatch):
    monkeypatch.setattr(memory, "collect", lambda: pytest.fail("it was looked for"))
    one = shard()
    waiting = []
    for name in ("a", "b", "c"):
        one.put(name)
        one.models.unload(name)
        waiting.append(one.models._returning)
    assert [each.ready() for each in waiting] == [True, True, False], "each unload starts the second anew"


@pytest.mark.parametrize(("kept", "looked_for"), [(0, False), (1 << 20, False), (3 << 20, True), (20 << 20, True)])
def test_what_has_given_its_memory_back_is_not_looked_for(shard, monkeypatch, kept, looked_for):
    """A full collection walks all models, and nobody is answered meanwhile."""
    written, collections = [20 << 20], []
    monkeypatch.setattr(resources, "written", lambda: written[-1])
    monkeypatch.setattr(memory, "give_back", lambda: written.append(kept))
    monkeypatch.setattr(memory, "collect", lambda: collections.append(1))
    monkeypatch.setattr(module, "artifact_bytes", lambda directory: 20 << 20)
    one = shard()
    one.put("a")
    one.models.unload("a")
    assert bool(collections) == looked_for


def test_spent_is_who_has_no_model_and_yet_much_memory(shard, monkeypatch):
    written = [100 << 20]
    monkeypatch.setattr(resources, "written", lambda: written[-1])
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.01)
    one = shard()
    one.put("a")
    written.append((100 << 20) + module.SPENT + 1)
    assert not one.models.is_spent, "it has a model"
    loading = one.start_put("b")
    one.models.unload("a")
    returning = one.models._returning
    assert returning is not None
    assert not one.models.is_spent, "it loads one"
    one.load.gate.set()
    loading.join(DEADLINE)
    one.models.unload("b")
    assert not one.models.is_spent, "what the last one has left is still to be looked for"
    one.models._returning.join(DEADLINE)
    assert one.models.is_spent
    written.append((100 << 20) + module.SPENT)
    assert not one.models.is_spent, "what begins would not be cheaper"


def test_a_successor_with_models_to_load_again_is_not_spent(shard, monkeypatch):
    shard().put("a")
    successor = shard()
    monkeypatch.setattr(resources, "written", lambda: 1 << 40)
    assert not successor.models.is_spent
    successor.models.unload("a")


def test_a_load_that_is_not_begun_leaves_nothing_to_look_for(shard, monkeypatch):
    monkeypatch.setattr(memory, "collect", lambda: pytest.fail("it was looked for"))
    one = shard(free=MARGIN)
    for _ in range(20):
        with pytest.raises(InsufficientStorage):
            one.put("a", 3 << 20)


@pytest.mark.parametrize(("size", "code", "here"), [(10, False, True), (module.SMALL + 1, False, False), (10, True, False)])
def test_only_what_is_small_and_has_no_code_is_loaded_between_two_requests(shard, size, code, here):
    one = shard()
    threads = []
    load = one.load.__call__

    def noting(directory):
        threads.append(threading.get_ident())
        return load(directory)

    one.models._load_predictor = noting
    one.models._always_on_threads = False
    if code:
        (one.directory / "a/code").mkdir(parents=True)
        (one.directory / "a/code/inference.py").write_text("")
    one.put("a", size)
    assert (threads == [threading.get_ident()]) == here


def ends_with(number):
    def load(directory):
        os.kill(os.getpid(), number)

    return load


def fails_with(error):
    def load(directory):
        raise error

    return load


CAUSED = StartupError("model_fn raised MemoryError")
CAUSED.__cause__ = MemoryError()


@pytest.mark.parametrize(
    ("load", "error", "said"),
    [
        (ends_with(signal.SIGKILL), InsufficientStorage, "model 'a' needs more than"),
        (fails_with(MemoryError()), InsufficientStorage, "model 'a' needs more than"),
        (fails_with(CAUSED), InsufficientStorage, "model 'a' needs more than"),
        (ends_with(signal.SIGTERM), ClientError, "model 'a' ends the process that loads it, with SIGTERM"),
        (lambda directory: os._exit(3), ClientError, "model 'a' ends the process that loads it, with code 3"),
    ],
)
def test_a_trial_load_that_ends_badly(load, error, said):
    with pytest.raises(error, match=f"^{said}"):
        measure(load, Path(), "a", lambda: 10 << 20)


@pytest.mark.parametrize("missing", ["fork", "pipe"])
def test_without_a_process_for_a_trial_load_others_must_go(monkeypatch, missing):
    def none_left():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    before = set(Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(os, missing, none_left)
    with pytest.raises(InsufficientStorage, match=r"^no process can be started to measure model 'a': Resource temporarily unavailable$"):
        measure(fails_with(KeyError()), Path(), "a", lambda: 1 << 40)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_load_that_takes_more_than_its_trial_is_told_with_both_numbers(shard, monkeypatch):
    monkeypatch.setattr(module, "measure", lambda *arguments: 30 << 20)
    one = shard(free=(100 << 20) + MARGIN)
    one.load.error = MemoryError()
    with pytest.raises(
        InsufficientStorage, match=r"^model 'a' needs more than the 30 MB of memory that it took in a trial, and 100 MB are"
    ):
        one.put("a")
    assert one.listed() == []


@pytest.mark.parametrize("error", [StartupError("broken"), KeyError("a"), SystemExit(1)])
def test_a_trial_load_that_fails_measures_nothing(error):
    assert measure(fails_with(error), Path(), "a", lambda: 1 << 40) == 0


def test_a_trial_load_tells_what_the_load_takes():
    def load(directory):
        return b"x" * (64 << 20)

    taken = measure(load, Path(), "a", lambda: 1 << 40)
    assert 64 << 20 <= taken <= 100 << 20


def test_a_trial_load_that_never_ends_is_ended(monkeypatch):
    def load(directory):
        signal.pause()

    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.05)
    with pytest.raises(StartupError, match=r"^model 'a' was not loaded within 0 s$"):
        measure(load, Path(), "a", lambda: 1 << 40)


def test_a_trial_load_does_not_wait_for_what_the_model_has_started(tmp_path):
    def load(directory):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        (tmp_path / "pid").write_text(str(pid))

    started = gevent.get_hub().threadpool.spawn(measure, load, Path(), "a", lambda: 1 << 40)
    try:
        assert started.get(timeout=DEADLINE) is not None
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_statuses_of_what_models_raise():
    assert [error.status for error in (ModelNotFound, Conflict, ClientError, Unavailable, InsufficientStorage, ServingError)] == [
        *(404, 409, 400, 503, 507, 500)
    ]
