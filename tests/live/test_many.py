"""Many models by our own engine: the platform's contract (checks 14 to 16 and 20 to 23), the table of parity.py, and what becomes of the
other models when one is slow, large, broken or dead. As processes of this machine, and in the image.
"""

import json
import re
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import joblib
import numpy as np
import pytest

from container import supervisor
from tests import parity
from tests.live.clients import clients
from tests.live.conftest import LABEL, docker
from tests.live.launcher import Launcher, in_docker, on_host
from tests.live.many import OOM_KILLS, Endpoint, constant
from tests.parity import CASES, Case
from tests.waiting import until

pytestmark = pytest.mark.live

MANY = {f"number-{n}": float(n) for n in range(160)}
"""Models that each answer a number of their own."""
PARITY = sorted({case.model for case in CASES})
SHARDS = 2
PAUSE = 0.02
"""Seconds between two looks at a server that must answer all the time."""

NAMES = [
    *("a/b", "/a", "a/", "a//b", "a b", "ä/模型", "100%", "%2F", "a%20b", "a?b#c&d=e", "a/invoke", "invoke", "a\nb", "+"),
    *("'\"\\", "$uri;{}", "..a", "\x7f\x01", "models", "_load/x", "x" * 1024, "模" * 1024, "\U0001f600" * 1024),
]
IMPOSSIBLE = ["", "x" * 1025, ".", "..", "a/../b", "a/./b", "a\0b", "\ud800"]

SAYS = """
import helper
def model_fn(model_dir): return helper.WORD
def predict_fn(data, model): return [model + later()]
def later():
    import helper
    return helper.word()
"""
"""A script with a helper module beside it."""
HELPER = "WORD = {0!r}\ndef word(): return {0!r}\n"

HOG = """
def model_fn(model_dir): return [b"1" * (1 << 20) for _ in range({megabytes})]
def predict_fn(data, model): return [len(model)]
"""
"""Takes so many megabytes, which its artifact does not show."""
LEAKS = """
import sys, threading, time
def model_fn(model_dir): sys.left_behind = [b"1" * (1 << 20) for _ in range(20)]
def predict_fn(data, model):
    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
    return [len(sys.left_behind)]
"""
"""Leaves 20 MB behind, whoever unloads it, and a thread that the exit of a process waits for."""
SECOND_DIES = """
import os, pathlib, tempfile
def model_fn(model_dir):
    with pathlib.Path(tempfile.gettempdir(), "loads").open("a") as loads:
        loads.write("x")
        if loads.tell() == 2:
            os._exit(3)
def predict_fn(data, model): return [os.getpid()]
"""
"""The second process that loads it dies of it."""

STARTS = """
import subprocess, sys
def model_fn(model_dir): return None
def predict_fn(data, model): subprocess.run([sys.executable, "-c", "x = [b'1' * (1 << 20) for _ in range(2000)]"], check=True)
"""
"""Starts a program that takes more memory than there is."""

TOO_DEEP = "def model_fn(model_dir): return {}[model_dir]\n"
EXITS = "import os\ndef model_fn(model_dir): os._exit(3)\n"


@pytest.fixture(scope="module")
def launch(where, request):
    """Starts servers that end with the module."""
    with Launcher(request.getfixturevalue("image") if where == "docker" else None, LABEL) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def serve_many(where, launch):
    """Starts endpoints without models, of two shards unless env says."""

    def start(env=None, docker=()):
        base = launch.base_dir("models")
        variables = {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_MODEL_SERVER_WORKERS": str(SHARDS), **(env or {})}
        server = launch.run("serve", base, variables, docker)
        server.await_ready()
        return Endpoint(server, base / "models", "/opt/ml/models" if where == "docker" else str(base / "models"))

    return start


@pytest.fixture(scope="module")
def endpoint(serve_many):
    """For tests that leave no trace in it, besides models that are loaded."""
    return serve_many()


@pytest.fixture(scope="module")
def fresh(endpoint):
    """What check 20 asks for, before anything is loaded."""
    return endpoint.server.get("/ping"), endpoint.server.get("/models")


@pytest.fixture(scope="module")
def loaded(endpoint, fresh):
    """Those of MANY and of parity.py, loaded by eight clients: (statuses, seconds that each /ping took meanwhile)."""
    for name, answer in MANY.items():
        endpoint.plain(name, answer)
    for name in PARITY:
        parity.write(name, endpoint.directory(name))
    with clients(8) as pool, Pings(endpoint) as pings:
        answers = list(pool.map(endpoint.load, [*PARITY, *MANY]))
    return [answer.status for answer in answers], pings.seconds


class Pings:
    """How long /ping takes while the block runs: seconds of each."""

    def __init__(self, endpoint):
        self.seconds, self._endpoint, self._over = [], endpoint, threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error):
        until(lambda: self.seconds, 10, "an answer of /ping")
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(PAUSE):
            answer = self._endpoint.server.get("/ping")
            self.seconds.append(answer.elapsed.total_seconds() if answer.status_code == 200 else float("inf"))


def test_20_a_fresh_container(fresh):
    ping, listed = fresh
    assert (ping.status_code, listed.status_code, listed.json()) == (200, 200, {"models": []})
    assert listed.headers["Content-Type"] == "application/json"


def test_23_eight_loads_at_once_and_ping(loaded):
    statuses, pings = loaded
    assert statuses == [200] * (len(PARITY) + len(MANY))
    assert len(pings) > 5
    assert max(pings) < 1


@pytest.mark.parametrize("limit", [0, 7, 172])
def test_22_every_model_once_over_the_pages(endpoint, loaded, limit):
    names = endpoint.names(limit)
    assert len(names) == len(set(names)) >= 150
    assert {*MANY, *PARITY} <= set(names)


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=-1", "next_page_token=%21"])
def test_22_a_page_that_cannot_be(endpoint, query):
    answer = endpoint.call("GET", f"/models?{query}")
    assert (answer.status, answer.is_error) == (400, True)


def test_23_each_answers_for_itself(endpoint, loaded):
    with clients(4) as pool:
        assert dict(zip(MANY, pool.map(endpoint.number, MANY), strict=True)) == MANY


def test_22_get(endpoint, loaded):
    known = endpoint.get("number-1")
    assert (known.status, known.json()) == (200, {"modelName": "number-1", "modelUrl": endpoint.urls["number-1"]})


def test_21_a_second_load_is_409(endpoint, loaded):
    again = endpoint.load("number-1")
    assert (again.status, again.is_error) == (409, True)
    assert endpoint.number("number-1") == 1


def test_what_is_not_loaded_is_404(endpoint):
    for answer in (endpoint.get("unknown"), endpoint.invoke("unknown"), endpoint.delete("unknown")):
        assert (answer.status, answer.is_error) == (404, True)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("PUT", "/models/number-1", 405), ("PUT", "/models", 405), ("GET", "/models/", 404), ("GET", "/predictions/number-1", 404)],
)
def test_only_the_contracts_calls(endpoint, loaded, method, path, status):
    answer = endpoint.call(method, path)
    assert (answer.status, answer.is_error) == (status, True)


def test_only_the_shards_order_loads(endpoint, loaded):
    order = json.dumps({"model_name": "inside", "url": endpoint.urls["number-1"]})
    assert endpoint.call("POST", "/_load/inside?replica=0", order).status == 404
    assert endpoint.call("POST", "/_unload/number-1?replica=0&until=1&then={}").status == 404
    assert endpoint.number("number-1") == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_table_of_parity(endpoint, loaded, flask_answer, case: Case):
    answer = endpoint.invoke(case.model, case.body, case.headers) if case.name != "a stream fails midway" else None
    if answer is None:
        with pytest.raises(Exception, match="IncompleteRead"):
            endpoint.invoke(case.model, case.body, case.headers)
        return
    assert parity.Answer.of(answer.status, answer.headers, answer.body) == flask_answer(case)


@pytest.fixture(scope="module")
def flask_answer(tmp_path_factory):
    """What front 1 answers to a case."""
    from tests.test_parity import Fronts

    with Fronts(tmp_path_factory) as fronts:
        yield lambda case: fronts.ask("flask", case)


BROKEN = {
    "nothing in it": (None, "model.joblib"),
    "no model": ({"model.joblib": "these are no bytes of joblib's"}, "cannot be loaded"),
    "no Python": ({"code/inference.py": "def model_fn(\n"}, "not valid Python"),
    "no model_fn": ({"code/inference.py": "def predict_fn(data, model): return data\n"}, "model_fn"),
    "a module that is not there": ({"code/inference.py": "import not_there\n"}, "not_there"),
    "model_fn raises": ({"code/inference.py": TOO_DEEP}, "KeyError"),
}


@pytest.mark.parametrize(("files", "cause"), BROKEN.values(), ids=BROKEN)
def test_21_what_is_broken_says_why_and_is_not_listed(endpoint, files, cause):
    directory = endpoint.directory("broken")
    for path, text in (files or {}).items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_text(text)
    for _ in range(2):  # it leaves nothing behind, so it can be tried again
        refused = endpoint.load("broken")
        assert (refused.status, refused.is_error) == (400, True)
        assert cause in refused.json()["message"]
        assert endpoint.get("broken").status == 404
        assert "broken" not in endpoint.names()


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '"x"', '{"model_name": "x"}', '{"model_name": 1, "url": "/"}', '{"model_name": "x", "url": "/nowhere"}']
)
def test_21_what_is_no_load_is_400(endpoint, body):
    refused = endpoint.call("POST", "/models", body)
    assert (refused.status, refused.is_error) == (400, True)
    assert "x" not in endpoint.names()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_any_name(endpoint, name):
    endpoint.plain(name, 5)
    assert endpoint.load(name).status == 200
    assert endpoint.get(name).json()["modelName"] == name
    assert endpoint.number(name) == 5
    assert name in endpoint.names()
    assert endpoint.delete(name).json()["modelName"] == name
    assert [call(name).status for call in (endpoint.get, endpoint.invoke, endpoint.delete)] == [404, 404, 404]
    assert name not in endpoint.names()


@pytest.mark.parametrize("name", IMPOSSIBLE, ids=lambda name: ascii(name[:12]))
def test_names_that_no_path_can_carry_are_refused(endpoint, loaded, name):
    refused = endpoint.load(name, endpoint.urls["number-1"])
    assert (refused.status, refused.is_error) == (400, True)
    assert name not in endpoint.names()


@pytest.fixture
def slow(endpoint):
    """A model that is being loaded: (directory, pool, its load). Its load ends when the file `go` is there."""
    directory = endpoint.scripted("slow", "slow_load")
    with clients(4) as pool:
        yield directory, pool, one_of_two_loads(pool, endpoint)
        (directory / "go").touch()
    endpoint.delete("slow")


def one_of_two_loads(pool, endpoint):
    """Has `slow` loaded twice. Returns the load that has begun; the other was refused."""
    two = [pool.submit(endpoint.load, "slow") for _ in range(2)]
    (refused,), (load,) = wait(two, 20, FIRST_COMPLETED)
    assert (refused.result().status, refused.result().is_error) == (409, True)
    return load


def test_21_while_it_loads_it_is_409_and_not_listed_and_others_answer(endpoint, loaded, slow):
    directory, _, load = slow
    assert endpoint.load("slow").status == 409
    assert "slow" not in endpoint.names()
    with Pings(endpoint) as pings:
        assert {name: endpoint.number(name) for name in MANY} == MANY
        assert endpoint.load("number-1").status == 409
    assert max(pings.seconds) < 1
    (directory / "go").touch()
    assert load.result().status == 200
    assert endpoint.invoke("slow", "1").body == b"1"


def test_23_delete_while_loading_has_an_end(endpoint, slow):
    directory, pool, load = slow
    deleted = pool.submit(endpoint.delete, "slow")
    until(lambda: "being unloaded" in endpoint.load("slow").json()["message"], 10, "the unload having begun")
    (directory / "go").touch()
    assert deleted.result().status == 200
    assert (load.result().status, load.result().is_error) == (409, True)
    assert "slow" not in endpoint.names()
    assert [call("slow").status for call in (endpoint.get, endpoint.invoke, endpoint.delete)] == [404, 404, 404]
    assert endpoint.load("slow").status == 200, "no zombie is left"


def test_23_delete_waits_for_the_requests_in_flight(endpoint):
    endpoint.scripted("sleepy", "sleepy")
    endpoint.load_all(["sleepy"])
    with clients(2) as pool:
        asked = pool.submit(endpoint.invoke, "sleepy", "1.1")
        endpoint.server.await_log("began 1.1")
        assert endpoint.delete("sleepy").status == 200
        assert asked.result(0.5).status == 200, "the answer came before the unload's"


def test_each_model_has_its_own_modules(endpoint):
    for word in ("one", "two"):
        endpoint.scripted(word, SAYS, {"helper.py": HELPER.format(word)})
    endpoint.scripted("lib", SAYS, {"lib/helper.py": HELPER.format("lib")})
    endpoint.load_all(["one", "two", "lib"])
    for word in ("one", "two", "lib", "one"):
        assert endpoint.invoke(word).json() == [word * 2]


def test_one_directory_too_many_is_accepted(endpoint):
    directory = endpoint.plain("nested", 9)
    (directory / "model").mkdir()
    (directory / "model.joblib").rename(directory / "model" / "model.joblib")
    endpoint.load_all(["nested"])
    assert endpoint.number("nested") == 9
    assert "one directory too many" in endpoint.server.await_log("one directory too many")


def pids(endpoint, name, times=1):
    """The processes that answer for a `sleepy` model."""
    return {endpoint.invoke(name, "0").json()["pid"] for _ in range(times)}


def on_each_shard(endpoint):
    """Loads `sleepy` models until each shard has one: pid of the shard -> name of its model."""
    found: dict[int, str] = {}
    for number in range(32):
        name = f"sleepy-{number}"
        endpoint.scripted(name, "sleepy")
        endpoint.load_all([name])
        found.setdefault(pids(endpoint, name).pop(), name)
        if len(found) == SHARDS:
            return found
    raise AssertionError(f"32 models are all in {len(found)} shard")


def test_a_long_prediction_holds_up_no_other_call(serve_many):
    endpoint = serve_many()
    first, second = on_each_shard(endpoint).values()
    with clients(2) as pool:
        asked = [pool.submit(endpoint.invoke, name, "2") for name in (first, second)]
        until(lambda: endpoint.server.logs().splitlines().count("began 2") == SHARDS, 10, "both shards being busy")
        began = time.monotonic()
        for path in ("/ping", "/models", "/metrics"):
            assert endpoint.server.get(path).status_code == 200
        assert time.monotonic() - began < 1
        assert [answer.result().status for answer in asked] == [200, 200]


def test_metrics_tell_of_models(endpoint, loaded):
    text = endpoint.server.get("/metrics").text
    assert 'berth_requests_total{status="200"}' in text


def test_15_a_killed_shard_gets_its_models_back(serve_many):
    endpoint = serve_many()
    numbers = {f"number-{n}": float(n) for n in range(8)}
    for name, answer in numbers.items():
        endpoint.plain(name, answer)
    endpoint.load_all(numbers)
    (dying, its_model), (other, others_model) = on_each_shard(endpoint).items()
    before = endpoint.names()
    with clients(2) as pool:
        lost, kept = pool.submit(endpoint.invoke, its_model, "30"), pool.submit(endpoint.invoke, others_model, "1.5")
        endpoint.server.await_log("began 30")
        endpoint.server.await_log("began 1.5")
        endpoint.server.kill(dying)
        assert (lost.result().status, lost.result().is_error) == (502, True)
        assert kept.result().status == 200
    assert endpoint.names() == before
    until(lambda: endpoint.invoke(its_model, "0").status == 200, 10, "an answer of the shard's successor")
    assert {name: endpoint.number(name) for name in numbers} == numbers
    assert pids(endpoint, others_model) == {other}
    assert endpoint.server.get("/ping").status_code == 200
    assert endpoint.load("number-1").status == 409
    assert [endpoint.delete(name).status for name in before] == [200] * len(before)
    assert endpoint.names() == []


def test_a_shard_that_a_load_ends_takes_no_other_model_with_it(serve_many):
    endpoint = serve_many()
    endpoint.plain("good", 4)
    endpoint.scripted("exits", EXITS)
    endpoint.load_all(["good"])
    for _ in range(4):  # the platform tries again, and this is no crash loop
        refused = until(lambda: found if (found := endpoint.load("exits")).status != 503 else None, 10, "the shard's successor")
        assert refused is not None
        assert (refused.status, refused.is_error) == (502, True)
        assert endpoint.names() == ["good"]
    until(lambda: endpoint.invoke("good").status == 200, 10, "an answer of the shard's successor")
    assert endpoint.number("good") == 4


def test_isolation_a_crash_is_one_models_own(serve_many):
    endpoint = serve_many({"ISOLATION": "process"})
    for name in ("crash", "other"):
        endpoint.scripted(name, "crash")
    endpoint.plain("plain", 6)
    endpoint.scripted("sleepy", "sleepy")
    endpoint.load_all(["crash", "other", "plain", "sleepy"])
    asleep = pids(endpoint, "sleepy")
    died = endpoint.invoke("crash", "SIGKILL", {"Content-Type": "text/plain"})
    assert (died.status, died.is_error) == (502, True)
    assert endpoint.invoke("other", "1").body == b"1"
    assert endpoint.number("plain") == 6
    assert pids(endpoint, "sleepy") == asleep
    assert endpoint.invoke("crash", "2").body == b"2"
    assert endpoint.names() == ["crash", "other", "plain", "sleepy"]
    assert endpoint.delete("sleepy").status == 200
    assert asleep.isdisjoint(process.pid for process in endpoint.server.processes())


def test_isolation_delete_while_loading_leaves_no_process(serve_many):
    endpoint = serve_many({"ISOLATION": "process"})
    before = len(endpoint.server.processes())
    directory = endpoint.scripted("slow", "slow_load")
    with clients(2) as pool:
        load = one_of_two_loads(pool, endpoint)
        deleted = pool.submit(endpoint.delete, "slow")
        until(lambda: "being unloaded" in endpoint.load("slow").json()["message"], 10, "the unload having begun")
        (directory / "go").touch()
        assert (deleted.result().status, load.result().status) == (200, 409)
    assert endpoint.names() == []
    assert len(endpoint.server.processes()) == before


def test_replicas_every_shard_answers_for_each_model(serve_many):
    endpoint = serve_many({"MODEL_REPLICAS": "all"})
    endpoint.scripted("sleepy", "sleepy")
    endpoint.plain("plain", 8)
    endpoint.scripted("broken", TOO_DEEP)
    endpoint.load_all(["sleepy", "plain"])
    assert endpoint.load("sleepy").status == 409
    assert endpoint.load("broken").status == 400
    assert len(pids(endpoint, "sleepy", 30)) == SHARDS
    assert [endpoint.number("plain") for _ in range(10)] == [8] * 10
    assert endpoint.names() == ["plain", "sleepy"]
    assert endpoint.delete("sleepy").status == 200
    assert {endpoint.invoke("sleepy", "0").status for _ in range(20)} == {404}
    assert endpoint.names() == ["plain"]
    assert endpoint.delete("sleepy").status == 404
    endpoint.load_all(["sleepy"])
    assert len(pids(endpoint, "sleepy", 30)) == SHARDS


def test_replicas_all_have_a_model_or_none_has(serve_many):
    endpoint = serve_many({"MODEL_REPLICAS": "all"})
    endpoint.scripted("second", SECOND_DIES)
    refused = endpoint.load("second")
    assert (refused.status, refused.is_error) == (502, True)
    assert endpoint.names() == []
    until(lambda: endpoint.load("second").status == 200, 10, "the shard's successor")
    assert len({endpoint.invoke("second").body for _ in range(30)}) == SHARDS
    assert endpoint.names() == ["second"]


@on_host
def test_replicas_in_many_shards_and_names_like_calls(serve_many):
    shards = 12
    endpoint = serve_many({"MODEL_REPLICAS": "all", "SAGEMAKER_MODEL_SERVER_WORKERS": str(shards)})
    endpoint.scripted("a/invoke", "sleepy")
    endpoint.load_all(["a/invoke"])
    assert len(pids(endpoint, "a/invoke", 200)) == shards
    assert {endpoint.get("a/invoke").status for _ in range(20)} == {200}
    assert endpoint.delete("a/invoke").status == 200
    assert {endpoint.invoke("a/invoke", "0").status for _ in range(50)} == {404}
    assert endpoint.names() == []


def test_14_in_flight_is_answered_after_sigterm(serve_many):
    endpoint = serve_many()
    endpoint.scripted("sleepy", "sleepy")
    endpoint.load_all(["sleepy"])
    with clients(1) as pool:
        answer = pool.submit(endpoint.invoke, "sleepy", "2")
        endpoint.server.await_log("began 2")
        endpoint.server.signal(signal.SIGTERM)
        assert answer.result().json()["slept"] == 2
    assert endpoint.server.wait() == 0


@on_host
def test_loads_do_not_hold_up_another_models_answers(serve_many):
    """A generous bound: this machine has other work to do."""
    endpoint = serve_many()
    for number in range(101):
        endpoint.plain(f"number-{number}", number)
    endpoint.load_all(["number-100"])
    seconds = []
    with ThreadPoolExecutor(1) as pool:
        loads = pool.submit(endpoint.load_all, [f"number-{number}" for number in range(100)])
        while not loads.done():
            began = time.monotonic()
            assert endpoint.number("number-100") == 100
            seconds.append(time.monotonic() - began)
        loads.result()
    assert np.quantile(seconds, 0.99) < 0.25


@on_host
def test_delete_gives_the_memory_back(serve_many):
    endpoint = serve_many()
    endpoint.plain("small", 1)
    large = endpoint.scripted("large", HOG.format(megabytes=100))
    np.save(large / "weights.npy", np.zeros(1000))
    endpoint.load_all(["small"])

    def memory():
        return sum(process.memory for process in endpoint.server.processes())

    before = memory()
    endpoint.load_all(["large"])
    assert endpoint.invoke("large").json() == [100]
    assert memory() > before + (90 << 20)
    assert endpoint.delete("large").status == 200
    assert memory() < 1.2 * before
    assert endpoint.number("small") == 1


@on_host
def test_a_shard_without_models_leaves_what_they_have_left(serve_many):
    endpoint = serve_many()
    shards = on_each_shard(endpoint)
    names = list(endpoint.urls)
    for name in names:
        assert endpoint.delete(name).status == 200
    for name in shards.values():
        endpoint.scripted(name, LEAKS)
    endpoint.load_all(shards.values())
    for name in shards.values():
        assert endpoint.invoke(name).status == 200
        assert endpoint.delete(name).status == 200
    with Pings(endpoint) as pings:
        until(lambda: not any(map(supervisor.alive, shards)), 30, "successors of the shards")
        endpoint.load_all(shards.values())  # at once: they may still be starting
    assert [endpoint.invoke(name).status for name in shards.values()] == [200] * SHARDS
    assert max(pings.seconds) < 1
    assert endpoint.server.logs().count("makes way for a successor") == SHARDS
    assert "is gone" not in endpoint.server.logs()


@in_docker
@pytest.mark.parametrize("how", ["in model_fn", "in the artifact", "packed"])
def test_21_what_does_not_fit_is_507_and_hurts_nobody(serve_many, how):
    endpoint = serve_many(docker=["--memory", "600m", "--memory-swap", "600m"])
    numbers = {f"number-{n}": float(n) for n in range(6)}
    for name, answer in numbers.items():
        endpoint.plain(name, answer)
    endpoint.load_all(numbers)
    running = endpoint.server.pids("worker")
    if how == "in model_fn":
        endpoint.scripted("large", HOG.format(megabytes=2000))
    else:
        model = constant(0)
        model.ballast = np.zeros(500 << 20, np.uint8)
        joblib.dump(model, endpoint.directory("large") / "model.joblib", compress=1 if how == "packed" else 0)
    kills = int(endpoint.server.inside(OOM_KILLS))
    for _ in range(4):  # the platform tries again
        with Pings(endpoint) as pings:
            refused = endpoint.load("large")
        assert (refused.status, refused.is_error) == (507, True)
        assert refused.json()["message"].count(" MB") == 2, "needed and free"
        assert max(pings.seconds) < 2
        assert endpoint.names() == sorted(numbers)
        assert {name: endpoint.number(name) for name in numbers} == numbers
    assert int(endpoint.server.inside(OOM_KILLS)) > kills, "the kernel has killed, and nobody but trial loads"
    assert endpoint.server.pids("worker") == running
    assert endpoint.server.ended() is None


@in_docker
def test_21_loads_at_once_that_do_not_fit_hurt_nobody(serve_many):
    endpoint = serve_many(docker=["--memory", "600m", "--memory-swap", "600m"])
    endpoint.plain("small", 7)
    endpoint.load_all(["small"])
    running = endpoint.server.pids("worker")
    large, medium = [f"large-{n}" for n in range(6)], [f"medium-{n}" for n in range(6)]
    for names, megabytes in ((large, 2000), (medium, 90)):
        for name in names:
            endpoint.scripted(name, HOG.format(megabytes=megabytes))
    asked, over = [], threading.Event()

    def ask():
        while not over.wait(PAUSE):
            asked.append(endpoint.invoke("small").status)

    with clients(7) as pool:
        pool.submit(ask)
        try:
            for _ in range(3):
                assert {answer.status for answer in pool.map(endpoint.load, large)} == {507}
            answers = dict(zip(medium, pool.map(endpoint.load, medium), strict=True))
        finally:
            over.set()
    fitted = [name for name, answer in answers.items() if answer.status == 200]
    assert set(asked) == {200}
    assert {answer.status for answer in answers.values()} == {200, 507}
    assert endpoint.names() == [*fitted, "small"]
    assert [endpoint.invoke(name).json() for name in fitted] == [[90]] * len(fitted)
    assert endpoint.server.pids("worker") == running


@in_docker
def test_where_memory_is_short_the_parent_of_all_shards_is_not_taken(serve_many):
    """It counts what it shares with them: where little is left, it is larger than the program that takes it."""
    endpoint = serve_many(docker=["--memory", "300m", "--memory-swap", "300m"])
    endpoint.plain("small", 1)
    endpoint.scripted("starts", STARTS)
    endpoint.load_all(["small", "starts"])
    for number in range(30):
        endpoint.scripted(f"filler-{number}", HOG.format(megabytes=10))
        if endpoint.load(f"filler-{number}").status == 507:
            break
    else:
        raise AssertionError("300 MB of models fit into 300 MB")
    kills = int(endpoint.server.inside(OOM_KILLS))
    for _ in range(2):
        assert endpoint.invoke("starts").is_error
        until(lambda: endpoint.invoke("small").status == 200, 20, "an answer of another model")
    assert int(endpoint.server.inside(OOM_KILLS)) > kills
    assert endpoint.server.ended() is None


@in_docker
def test_isolation_what_does_not_fit_is_507_and_hurts_nobody(serve_many):
    endpoint = serve_many({"ISOLATION": "process"}, ["--memory", "600m", "--memory-swap", "600m"])
    endpoint.scripted("sleepy", "sleepy")
    endpoint.scripted("large", HOG.format(megabytes=2000))
    endpoint.load_all(["sleepy"])
    before = pids(endpoint, "sleepy")
    refused = endpoint.load("large")
    assert (refused.status, refused.is_error) == (507, True)
    assert re.search(r"^model 'large' needs more than \d+ MB of memory, and \d+ MB are left$", refused.json()["message"]), refused
    assert endpoint.names() == ["sleepy"]
    assert pids(endpoint, "sleepy") == before


@in_docker
@pytest.mark.parametrize("uid", ["0", "54321"])
def test_16_read_only_and_any_user(serve_many, uid):
    endpoint = serve_many(docker=["--read-only", "--tmpfs", "/tmp", "--user", uid])
    endpoint.plain("plain", 3)
    endpoint.load_all(["plain"])
    assert endpoint.number("plain") == 3


@pytest.mark.docker
def test_the_image_says_that_it_can(image):
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout)
    for capability in ("multi-models", "accept-bind-to-port"):
        assert labels[f"com.amazonaws.sagemaker.capabilities.{capability}"] == "true"
