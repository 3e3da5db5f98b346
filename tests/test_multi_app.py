"""The platform's calls for many models, over several shards; a few lines stand in for nginx and for the shards' sockets."""

import array
import gc
import json
import os
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import quote, unquote

import gevent
import joblib
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.dummy import DummyRegressor

from container import memory, metrics, multi_app, peers
from container.errors import error_response
from container.message import Response
from container.metrics import Counters
from container.registry import Catalogue
from container.settings import Settings

DEADLINE = 10
CSV = {"Content-Type": "text/csv", "X-Request-Id": "r-7"}


class Stack:
    """Shards, and what nginx does: the model's name decides the owner; X-Accel-Redirect goes on, with the body, to it."""

    def __init__(self, directory, shards=2, **fields):
        (directory / "metrics").mkdir(exist_ok=True)
        settings = Settings(base_dir=directory, run_dir=directory, workers=shards, preload_libraries=("json",)).but(**fields)
        self.directory, self.apps = directory, []
        reserved = memoryview(array.array("q", [0] * shards))
        for slot in range(shards):
            app = multi_app.create_app(settings)
            app._reserved = reserved
            assert app.start(Counters.of_worker(directory / "metrics", slot, os.getpid()), slot)
            self.apps.append(app)

    def owner(self, name, copy=0):
        return (zlib.crc32(name.encode()) + copy) % len(self.apps)

    def send(self, method, path, body=b"", headers=CSV):
        """What the client sees."""
        answer = self._open(method, path, body, headers)
        while "X-Accel-Redirect" in answer.headers:
            answer = self._open("POST", answer.headers["X-Accel-Redirect"], body, headers)
        return answer

    def _open(self, method, path, body, headers):
        parts = path.split("/", 2)
        shard = self.owner(unquote(parts[2].removesuffix("/invoke"))) if len(parts) == 3 else 0
        return self.apps[shard].test_client().open(path, method=method, data=body, headers=headers)

    def ask(self, address, method, path, body, request_id):
        """What one shard asks another, in the place of a request through the other's socket."""
        shard = int(address.stem.removeprefix("shard-"))
        answer = self.apps[shard].test_client().open(path, method=method, data=body, headers={"X-Request-Id": request_id})
        return Response(answer.data, answer.content_type, answer.status_code)

    def load(self, name, url=None):
        url = url if url is not None else self.artifact(f"artifact-{len(list(self.directory.iterdir()))}")
        return self.send("POST", "/models", json.dumps({"model_name": name, "url": url}), {"Content-Type": "application/json"})

    def artifact(self, name, answer=3.0):
        """A model that always answers the same."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        joblib.dump(DummyRegressor(strategy="constant", constant=answer).fit([[0.0]], [answer]), directory / "model.joblib")
        return str(directory)

    def code(self, name, source):
        directory = self.directory / name
        (directory / "code").mkdir(parents=True)
        (directory / "code/inference.py").write_text(source)
        return str(directory)

    def invoke(self, name, body=b"1", headers=CSV):
        return self.send("POST", f"/models/{quote(name, safe='')}/invoke", body, headers)

    def describe(self, name):
        return self.send("GET", f"/models/{quote(name, safe='')}")

    def unload(self, name):
        return self.send("DELETE", f"/models/{quote(name, safe='')}")

    def listed(self):
        return [name for name, _ in Catalogue(self.directory).page(1000)[0]]


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """Starts shards; settings as keywords."""
    started = []

    def start(shards=2, **fields):
        started.append(Stack(tmp_path, shards, **fields))
        monkeypatch.setattr(peers, "ask", started[-1].ask)
        return started[-1]

    yield start
    for one in started:
        for app in one.apps:
            for name in list(app.models._models):
                app.models.unload(name)
            app.models._threads.kill()
            app.models._ledger.close()
    gc.unfreeze()


def said(answer):
    return answer.status_code, json.loads(answer.data)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_from_its_load_to_its_end(stack, shards):
    many = stack(shards)
    url = many.artifact("one")
    known = {"modelName": "m-1", "modelUrl": url}
    assert said(many.load("m-1", url)) == (200, known)
    assert said(many.describe("m-1")) == (200, known)
    assert many.listed() == ["m-1"]
    answer = many.invoke("m-1", b"1\n2")
    assert (answer.status_code, answer.data, answer.content_type) == (200, b"[3.0,3.0]", "application/json")
    assert said(many.unload("m-1")) == (200, known)
    assert many.listed() == []
    for call in (many.describe, many.invoke, many.unload):
        status, error = said(call("m-1"))
        assert (status, error["code"], error["message"]) == (404, 404, "model 'm-1' is not loaded")


NAMES = [
    "a",
    "0" * 64,
    "a/b",
    "a//b",
    "/a",
    "a/",
    "é",
    "\U0001f600" * 1024,
    "a b+c%20%2F",
    "?a=b&c#d;e",
    'q"\\<>',
    "a\nb",
    "models",
    "invoke",
    "x/invoke",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:10].encode("ascii", "backslashreplace").decode())
def test_a_name_is_any_text(stack, name):
    many = stack()
    many.load("other")
    url = many.artifact("this", 7.0)
    assert said(many.load(name, url)) == (200, {"modelName": name, "modelUrl": url})
    assert many.load(name, url).status_code == 409
    assert said(many.describe(name))[1]["modelName"] == name
    assert many.invoke(name).data == b"[7.0]"
    assert sorted(many.listed()) == sorted(["other", name])
    assert many.unload(name).status_code == 200
    assert many.listed() == ["other"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b'{"model_name": "a"}',
        b'{"url": "/a"}',
        b'{"model_name": "", "url": "/a"}',
        b'{"model_name": "a", "url": ""}',
        b'{"model_name": 1, "url": "/a"}',
        b'{"model_name": "a", "url": null}',
        b'{"model_name": "\\ud800", "url": "/a"}',
        b'{"model_name": "a\\u0000", "url": "/a"}',
        b'{"model_name": "..", "url": "/a"}',
        b'{"model_name": "a/./b", "url": "/a"}',
        json.dumps({"model_name": "x" * 1025, "url": "/a"}).encode(),
    ],
)
def test_an_order_that_is_none(stack, body):
    many = stack()
    status, error = said(many.send("POST", "/models", body))
    assert (status, error["code"], error["request_id"]) == (400, 400, "r-7")
    assert "model_name" in error["message"]
    assert many.listed() == []


@pytest.mark.parametrize(
    ("name", "url", "said"),
    [
        (1, "/a", "model_name is of type int and url is a text of 2 characters: "),
        ("a", None, "model_name is a text of 1 characters and url is null: "),
        ("x" * 1025, "", "model_name is a text of 1025 characters and url is a text of 0 characters: "),
    ],
)
def test_an_order_that_is_none_is_told_what_came_and_what_is_accepted(stack, name, url, said):
    answer = stack(1).send("POST", "/models", json.dumps({"model_name": name, "url": url}).encode())
    assert answer.json["message"] == said + "both must be texts that are not empty, model_name of 1024 characters at most"


def test_an_artifact_that_cannot_be_loaded_is_refused_and_never_listed(stack):
    many = stack()
    (many.directory / "empty").mkdir()
    (many.directory / "broken").mkdir()
    (many.directory / "broken/model.joblib").write_bytes(b"no pickle")
    urls = {
        str(many.directory / "empty"): "is empty: accepted are model.joblib",
        str(many.directory / "broken"): "cannot be loaded",
        str(many.directory / "nowhere"): "is not there, or is no directory",
        many.code("syntax", "def"): "is not valid Python",
        many.code("no_model_fn", ""): "has no model_fn",
        many.code("raises", "def model_fn(d): raise KeyError('a')\ndef predict_fn(d, m): return 1"): "raised KeyError",
    }
    for url, words in urls.items():
        status, error = said(many.load("m", url))
        assert status == 400
        assert words in error["message"]
        assert many.listed() == []
        assert many.describe("m").status_code == 404
    assert many.load("m").status_code == 200


def test_two_models_with_modules_of_the_same_names(stack):
    many = stack(1)
    source = (
        "import helper\ndef model_fn(d): return None\n"
        "def transform_fn(m, b, c, a):\n    import late\n    return helper.WHO + late.WHO, 'text/plain'\n"
    )
    for who in ("north", "south"):
        url = many.code(who, source)
        for module in ("helper", "late"):
            Path(url, f"code/{module}.py").write_text(f"WHO = {who!r}")
        assert many.load(who, url).status_code == 200
    for _ in range(2):
        assert [many.invoke(who).data for who in ("north", "south")] == [b"northnorth", b"southsouth"]


@pytest.mark.parametrize("isolation", ["shared", "process"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_the_scripts_context_and_its_errors(stack, isolation):
    many = stack(1, isolation=isolation)
    source = (
        "def model_fn(d): return None\ndef transform_fn(m, body, c, a, context):\n    if body == 'raise': raise KeyError('secret')\n"
        "    return repr([context.model_name, context.target_model, context.headers['x-own']]), 'text/plain'\n"
    )
    many.load("a/b", many.code("one", source))
    answer = many.invoke("a/b", headers=CSV | {"X-Own": "o", "X-Amzn-SageMaker-Target-Model": "t.tar.gz"})
    assert answer.data == repr(["a/b", "t.tar.gz", "o"]).encode()
    status, error = said(many.invoke("a/b", b"raise"))
    assert (status, error["request_id"]) == (500, "r-7")
    assert "secret" not in error["message"]


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_what_a_model_takes_in_a_process_of_its_own_is_measured_too(stack):
    many = stack(1, isolation="process")
    source = "def model_fn(d): return b'x' * (64 << 20)\ndef predict_fn(d, m): return 1\n"
    assert 64 << 20 <= many.apps[0].models._measure("a", Path(many.code("a", source))) <= 100 << 20


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_model_that_crashes_in_a_process_of_its_own_is_there_for_the_next_request(stack):
    many = stack(1, isolation="process")
    source = (
        "import os\ndef model_fn(d): return None\n"
        "def transform_fn(m, b, c, a):\n    if b == 'die': os._exit(1)\n    return str(os.getpid())\n"
    )
    many.load("a", many.code("a", source))
    many.load("b", many.code("b", source))
    before = [many.invoke(name).data for name in "ab"]
    assert many.invoke("a", b"die").status_code == 502
    assert many.listed() == ["a", "b"]
    after = [many.invoke(name).data for name in "ab"]
    assert after[0] != before[0]
    assert after[1] == before[1] != str(os.getpid()).encode()
    assert many.apps[0].models.get("a").loads == 2


STREAM = "def model_fn(d): return None\ndef predict_fn(d, m):\n    yield 'a'\n    yield 'b'\ndef output_fn(p, a): return p, 'text/plain'\n"


@pytest.mark.parametrize("isolation", ["shared", "process"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_stream_holds_its_model_until_it_is_left(stack, isolation):
    many = stack(1, isolation=isolation)
    many.load("a", many.code("a", STREAM))
    answer = many.apps[0].test_client().post("/models/a/invoke", data=b"1", headers=CSV, buffered=False)
    parts = answer.iter_encoded()
    assert next(parts) == b"a"
    unloading = gevent.spawn(many.unload, "a")
    gevent.idle()
    assert (unloading.ready(), many.invoke("a").status_code) == (False, 404)
    answer.close()
    assert unloading.get(timeout=DEADLINE).status_code == 200


def test_more_than_may_wait_are_told_to_come_back(stack):
    many = stack(1, max_queue=1)
    many.load("a")
    model = many.apps[0].models.get("a")
    model.enter(1)
    answer = many.invoke("a")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "MODEL_SERVER_MAX_QUEUE" in answer.json["message"]
    model.leave()
    for _ in range(3):
        assert many.invoke("a").status_code == 200
        assert many.invoke("a", b"1,2\n3").status_code == 400
    assert (model.active, model.hits) == (0, 7)


def test_without_room_a_load_is_refused_with_both_numbers(stack):
    many = stack(1)
    many.apps[0].models._budget._free = lambda: memory.MARGIN + 1000
    status, error = said(many.load("a"))
    assert status == 507
    assert "of memory, and 0 MB are left" in error["message"]
    assert many.listed() == []


def held_up(many, name):
    """A model whose load waits for a file; returns the load under way, and how to let it go on."""
    source = (
        "import os, time\ndef predict_fn(d, m): return 1\n"
        "def model_fn(d):\n    open(d + '/begun', 'w').close()\n    while not os.path.exists(d + '/go'): time.sleep(0.001)\n"
    )
    url = many.code(name, source)
    loading = gevent.spawn(many.load, name, url)
    with gevent.Timeout(DEADLINE):
        while not Path(url, "begun").exists():
            gevent.sleep(0.001)
    return loading, Path(url, "go").touch


def test_while_a_model_loads_it_is_not_there_and_others_are(stack):
    many = stack(1)
    many.load("other")
    loading, go_on = held_up(many, "a")
    assert many.load("a").status_code == 409
    assert [call("a").status_code for call in (many.describe, many.invoke)] == [404, 404]
    assert many.listed() == ["other"]
    assert many.invoke("other").status_code == many.load("third").status_code == 200
    go_on()
    assert loading.get(timeout=DEADLINE).status_code == 200
    assert many.listed() == ["a", "other", "third"]


def test_a_model_that_is_unloaded_while_it_loads(stack):
    many = stack(1)
    loading, go_on = held_up(many, "a")
    unloading = gevent.spawn(many.unload, "a")
    gevent.idle()
    go_on()
    assert unloading.get(timeout=DEADLINE).status_code == 200
    assert loading.get(timeout=DEADLINE).status_code == 409
    assert (many.listed(), many.describe("a").status_code) == ([], 404)


@pytest.mark.parametrize(("replicas", "copies"), [(1, 1), (2, 2), (512, 3)])
def test_a_model_is_in_as_many_shards_as_are_asked_for(stack, replicas, copies):
    many = stack(3, replicas=replicas)
    assert many.load("a").status_code == 200
    holders = [many.owner("a", copy) for copy in range(copies)]
    assert sorted(slot for slot, app in enumerate(many.apps) if "a" in app.models) == sorted(holders)
    assert many.listed() == ["a"]
    assert said(many.unload("a"))[1]["modelName"] == "a"
    assert not any("a" in app.models for app in many.apps)
    assert many.unload("a").status_code == 404


def test_a_model_that_is_loaded_again_while_its_predecessor_ends_stays_everywhere(stack):
    many = stack(3, replicas=3)
    many.load("a")
    model = many.apps[many.owner("a")].models.get("a")
    model.enter(1)
    unloading = gevent.spawn(many.unload, "a")
    gevent.idle()
    assert many.load("a").status_code == 200
    model.leave()
    assert unloading.get(timeout=DEADLINE).status_code == 200
    assert [["a" in app.models for app in many.apps], many.listed()] == [[True] * 3, ["a"]]


@pytest.mark.parametrize("again", [False, True])
def test_a_replica_that_dies_of_an_unload_is_asked_again(stack, monkeypatch, again):
    """Unless the model has been loaded again meanwhile: then the answer to that is the last word."""
    many = stack(3, replicas=3)
    many.load("a")
    owner, ask = many.apps[many.owner("a")], peers.ask
    died = list[Path]()
    url = owner.models.url("a")

    def dies_once(path, method, target, body, request_id):
        if method == "DELETE" and not died:
            died.append(path)
            return error_response(502, "died", request_id)
        return ask(path, method, target, body, request_id)

    monkeypatch.setattr(peers, "ask", dies_once)
    if again:
        unload = owner.models.unload
        monkeypatch.setattr(owner.models, "unload", lambda name: (unload(name), owner.models.load(name, url))[0])
    assert many.unload("a").status_code == 200
    assert died
    assert sum("a" in app.models for app in many.apps) == (2 if again else 0)


def test_a_replica_that_cannot_load_leaves_none(stack):
    many = stack(3, replicas=3)
    last = many.apps[many.owner("a", 2)]
    last.models._budget._free = lambda: 0
    status, error = said(many.load("a"))
    assert (status, error["code"]) == (507, 507)
    assert not any("a" in app.models for app in many.apps)
    assert many.listed() == []


def test_a_shard_that_died_has_its_models_again_when_they_are_asked_for(stack):
    before = stack(1)
    before.load("a", before.artifact("a", 5.0))
    after = stack(1)
    assert after.apps[0].models.describe(10) == []
    assert after.listed() == ["a"]
    assert after.describe("a").status_code == 200
    assert after.load("a").status_code == 409
    assert after.invoke("a").data == b"[5.0]"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/models", 405), ("PUT", "/models/a", 405), ("GET", "/elsewhere", 404), ("POST", "/invocations", 404), ("GET", "/ping", 200)],
)
def test_other_paths_and_methods(stack, method, path, status):
    answer = stack(1).apps[0].test_client().open(path, method=method, headers=CSV)
    assert answer.status_code == status
    if status == 404:
        calls = "GET /models, POST /models, DELETE /models/NAME, GET /models/NAME, POST /models/NAME/invoke"
        assert all(call in answer.json["message"] for call in calls.split(", "))
        assert "_load" not in answer.json["message"]


def test_hooks_of_somebodys_own_are_called(stack):
    many = stack(1)
    seen = []
    many.apps[0].before_request(lambda: seen.append(1))
    many.load("a")
    seen.clear()
    assert many.invoke("a").data == b"[3.0]"
    assert many.invoke("b").status_code == 404
    assert seen == [1, 1]


def told(many):
    families = text_string_to_metric_families(metrics.text(many.directory / "metrics").decode())
    return {(s.name, *(s.labels[key] for key in sorted(s.labels))): s.value for family in families for s in family.samples}


def test_what_each_model_has_done_is_told_in_metrics(stack):
    many = stack(1)
    for name in "ab":
        many.load(name)
    for _ in range(3):
        many.invoke("a")
    many.invoke("nobody")
    started = time.time()
    many.apps[0].tick()
    found = told(many)
    assert found["berth_models_loaded", "0"] == 2
    assert (found["berth_models_invocations", "a", "0"], found["berth_models_invocations", "b", "0"]) == (3, 0)
    assert started - DEADLINE < found["berth_models_last_use_seconds", "a", "0"] <= started
    assert found["berth_models_last_use_seconds", "b", "0"] == 0
    assert found["berth_models_artifact_bytes", "a", "0"] > 100
    assert (found["berth_requests_total", "200"], found["berth_requests_total", "404"]) == (3, 1)
    many.unload("a")
    many.apps[0].tick()
    assert [key for key in told(many) if key[:2] == ("berth_models_loads", "a")] == []


@pytest.mark.parametrize("isolation", ["shared", "process"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_prediction_that_runs_out_of_memory_is_507_so_that_others_make_room(stack, isolation):
    many = stack(1, isolation=isolation)
    many.load("a", many.code("hungry", "def model_fn(d): return d\ndef predict_fn(d, m): raise MemoryError('of 1 TB')\n"))
    refused = many.invoke("a")
    assert (refused.status_code, refused.json["code"], refused.json["request_id"]) == (507, 507, "r-7")
    assert refused.json["message"] == "there was not enough memory for this prediction"
    assert many.listed() == ["a"]


def test_figures_are_written_when_something_has_changed_and_then_once(stack):
    many = stack(1)
    figures = many.directory / "metrics/models-0.json"
    many.load("a")
    many.load("b")
    assert not figures.exists(), "loads do not write"
    for change in (lambda: None, lambda: many.invoke("a"), lambda: many.unload("a")):
        change()
        many.apps[0].tick()
        assert figures.exists()
        figures.unlink()
        many.apps[0].tick()
        assert not figures.exists()


def test_figures_that_cannot_be_written_are_no_reason_to_end(stack, caplog):
    many = stack(1)
    (many.directory / "metrics/models-0.json").mkdir()
    many.apps[0].tick()
    assert "the figures of the models cannot be written" in caplog.text


def test_loads_at_the_same_time_are_all_done(stack):
    many = stack(2)
    many.apps[0].models._threads.maxsize = 2
    urls = {
        f"m{number}": many.code(f"m{number}", f"def model_fn(d): return {number}\ndef predict_fn(d, m): return m") for number in range(20)
    }
    loads = [gevent.spawn(many.load, name, url) for name, url in urls.items()]
    gevent.joinall(loads, timeout=DEADLINE)
    assert {load.get().status_code for load in loads} == {200}
    assert [many.invoke(name).data for name in urls] == [str(number).encode() for number in range(20)]
    assert threading.active_count() < 20
