"""The platform's contract (checks 14 to 16 and 20 to 23) and the table of parity.py, under a real Multi Model Server: as processes of this
machine and in the image's target `mms`. What it does otherwise is in docs/contract.md, and held here.
"""

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from container import mms
from container.errors import StartupError
from container.settings import environment
from tests.live.clients import clients, send
from tests.live.conftest import BUILD_SECONDS, IMAGE, LABEL, ROOT
from tests.live.launcher import SCRIPTS, Launcher, in_docker
from tests.live.server import HostServer, Server
from tests.parity import CASES, Answer, Case, write
from tests.waiting import until

pytestmark = pytest.mark.live
PARITY = sorted({case.model for case in CASES})
MEMORY = "def model_fn(model_dir): return bytearray(1 << 60)\ndef predict_fn(data, model): return data\n"
HOG = "def model_fn(model_dir): return [b'1' * (1 << 20) for _ in range(2000)]\ndef predict_fn(data, model): return data\n"
READY_SECONDS = 60


class MmsLauncher(Launcher):
    """Starts Multi Model Server: here, or in an image whose entry point it is."""

    def run(self, word, base, env, docker=()):
        if self._image is not None:
            return super().run(word, base, env, docker)
        folder = base / "tmp"
        folder.mkdir()
        command = (sys.executable, "-m", "container.dockerd_entrypoint", word)
        server = HostServer(base, folder, {"PYTHONPATH": str(ROOT), **env}, command=command)
        self._stack.callback(server.remove)
        return server


@pytest.fixture(scope="session")
def mms_image(engine: None) -> str:
    """The image's target `mms`, built as `make image-mms` builds it. Returns its name."""
    command = ["make", "image-mms", f"IMAGE={IMAGE}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    assert built.returncode == 0, f"{' '.join(command)} failed:\n{built.stdout[-2000:]}\n{built.stderr[-2000:]}"
    return f"{IMAGE}-mms"


@pytest.fixture(scope="module")
def launch(where, request):
    """Starts servers that end with the module."""
    if where == "host":
        try:
            mms.find_java_home(environment()["PATH"])
        except StartupError as error:
            pytest.fail(str(error))
    with MmsLauncher(request.getfixturevalue("mms_image") if where == "docker" else None, LABEL) as launcher:
        yield launcher


class Endpoint:
    """What the platform does with a container of a multi-model endpoint."""

    def __init__(self, server: Server, models: Path, seen_as: str) -> None:
        """models: where the artifacts are put; seen_as: the same directory, as the server names it."""
        self.server, self._models, self._seen_as = server, models, seen_as

    def artifact(self, name: str, model: str) -> Path:
        """A model of parity.py, or a script of tests/fixtureapps, or a script's text, as the artifact of a model of that name."""
        directory = self._models / name / "model"
        directory.mkdir(parents=True)
        if model in PARITY:
            write(model, directory)
        else:
            (directory / "code").mkdir()
            script = SCRIPTS / f"{model}.py"
            (directory / "code" / "inference.py").write_text(script.read_text() if script.name in self._scripts() else model)
        return directory

    @staticmethod
    def _scripts() -> set[str]:
        return {path.name for path in SCRIPTS.glob("*.py")}

    def url(self, name: str) -> str:
        return f"{self._seen_as}/{name}/model"

    def load(self, name: str, **options) -> requests.Response:
        return self.server.request("POST", "/models", json={"model_name": name, "url": self.url(name)}, **options)

    def invoke(self, name: str, body: bytes, headers=None) -> requests.Response:
        return self.server.request("POST", f"/models/{name}/invoke", data=body, headers=headers or {})

    def delete(self, name: str) -> requests.Response:
        return self.server.request("DELETE", f"/models/{name}")

    def names(self) -> list[str]:
        return [model["modelName"] for model in self.server.get("/models").json()["models"]]


@pytest.fixture(scope="module")
def endpoint(where, launch):
    """A multi-model endpoint without models."""
    base = launch.base_dir("models")
    server = launch.run("serve", base, {"SAGEMAKER_MULTI_MODEL": "true"})
    server.await_ready(READY_SECONDS)
    return Endpoint(server, base / "models", "/opt/ml/models" if where == "docker" else str(base / "models"))


@pytest.fixture(scope="module")
def fresh(endpoint):
    """What check 20 asks for, before anything is loaded."""
    return endpoint.server.get("/ping"), endpoint.server.get("/models")


@pytest.fixture(scope="module")
def loads(endpoint, fresh):
    """The models of parity.py, loaded all at once: (answers, seconds that each /ping took meanwhile)."""
    for model in PARITY:
        endpoint.artifact(model, model)
    pings, over = [], threading.Event()

    def ping():
        while not over.wait(0.02):
            pings.append(endpoint.server.get("/ping").elapsed.total_seconds())

    with clients(len(PARITY) + 1) as pool:
        pinging = pool.submit(ping)
        answers = list(pool.map(endpoint.load, PARITY))
        over.set()
        pinging.result()
    return answers, pings


def test_20_a_fresh_container(fresh):
    ping, listed = fresh
    assert (ping.status_code, listed.status_code, listed.json()) == (200, 200, {"models": []})


def test_21_23_eight_loads_at_once_and_ping(loads, endpoint):
    answers, pings = loads
    assert [answer.status_code for answer in answers] == [200] * len(PARITY)
    assert len(PARITY) >= 8
    assert len(pings) > 10
    assert max(pings) < 1
    assert set(PARITY) <= set(endpoint.names())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_table_of_parity(loads, endpoint, flask_answer, case: Case):
    answer = endpoint.invoke(case.model, case.body, dict(case.headers))
    seen = Answer.of(answer.status_code, answer.headers, answer.content)
    assert (seen == flask_answer(case)) == ("mms" not in case.differs)


@pytest.fixture(scope="module")
def flask_answer(tmp_path_factory):
    """What front 1 answers to a case."""
    from tests.test_parity import Fronts

    with Fronts(tmp_path_factory) as fronts:
        yield lambda case: fronts.ask("flask", case)


def test_21_a_second_load_is_409(loads, endpoint):
    assert endpoint.load("echo").status_code == 409


@pytest.mark.parametrize(
    ("name", "script", "status", "cause"),
    [("broken", "failing_load", 500, "OSError: weights.bin is truncated"), ("memory", MEMORY, 507, "MemoryError")],
    ids=["broken", "memory"],
)
def test_21_what_cannot_be_loaded_says_why_and_is_not_listed(endpoint, name, script, status, cause):
    endpoint.artifact(name, script)
    for _ in range(2):  # it leaves nothing behind, so it can be tried again
        refused = endpoint.load(name)
        assert (refused.status_code, refused.json()["code"]) == (status, status)
        assert cause in refused.json()["message"]
        assert name not in endpoint.names()


@pytest.mark.parametrize(
    ("body", "status"),
    [('{"model_name": "x", "url": "/opt/ml/models/nowhere"}', 404), ('{"model_name": "x"}', 400), ("{", 400), ("[]", 400)],
)
def test_21_what_is_no_load_is_refused(endpoint, body, status):
    refused = endpoint.server.request("POST", "/models", data=body)  # needs no Content-Type
    assert (refused.status_code, refused.json()["code"]) == (status, status)
    assert "x" not in endpoint.names()


def test_22_every_model_once_over_the_pages(loads, endpoint):
    found, token = [], "0"
    while token:
        page = endpoint.server.get(f"/models?limit=3&next_page_token={token}").json()
        found += [model["modelName"] for model in page["models"]]
        token = page.get("nextPageToken")
    assert found == sorted(set(found))
    assert set(PARITY) <= set(found)


def test_22_get(loads, endpoint):
    known = endpoint.server.get("/models/echo").json()
    assert (known["modelName"], known["modelUrl"]) == ("echo", endpoint.url("echo"))
    assert endpoint.server.get("/models/unknown").status_code == 404


def test_23_invoke_an_unknown_model(endpoint):
    assert endpoint.invoke("unknown", b"1").status_code == 404


def test_23_delete_twice_and_the_memory_is_back(loads, endpoint):
    endpoint.artifact("leaving", "echo")
    assert endpoint.load("leaving").status_code == 200
    assert _workers(endpoint, "leaving")
    assert endpoint.delete("leaving").status_code == 200
    until(
        lambda: not [p for p in endpoint.server.processes() if "--model-name leaving" in p.command], 2, "the end of the model's processes"
    )
    assert endpoint.delete("leaving").status_code == 404
    assert endpoint.invoke("leaving", b"1").status_code == 404


def test_21_23_while_it_loads_a_second_load_is_409_and_a_delete_ends_it(endpoint):
    """Once its worker is connected. A DELETE in the 0.2 s before that is the race of docs/contract.md."""
    directory = endpoint.artifact("slow", "slow_load")
    with clients(1) as pool:
        first = pool.submit(endpoint.load, "slow")
        until(lambda: len(_workers(endpoint, "slow")) == 2, 20, "the model's worker having been forked")
        assert endpoint.load("slow").status_code == 409
        assert endpoint.delete("slow").status_code == 200
        assert first.result(20).status_code == 500
    assert "slow" not in endpoint.names()
    (directory / "go").touch()
    assert endpoint.load("slow").status_code == 200, "no zombie is left"


def _workers(endpoint, name):
    return [process for process in endpoint.server.processes() if f"--model-name {name} " in process.command]


def test_only_the_contracts_methods(endpoint):
    answer = endpoint.server.request("PUT", "/models/echo?min_worker=9")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, DELETE")
    assert endpoint.server.get("/predictions/echo").status_code == 404


def test_too_large_is_413_and_large_is_not(loads, endpoint):
    answer = endpoint.invoke("echo", b"1" * (25 << 20), {"Content-Type": "application/octet-stream"})
    assert (answer.status_code, len(answer.content)) == (200, 25 << 20)
    refused = endpoint.invoke("echo", b"1" * ((25 << 20) + 1))
    assert refused.status_code == 413
    assert "SAGEMAKER_MAX_PAYLOAD_IN_MB" in refused.json()["message"]


@pytest.fixture
def one_model(launch):
    """Starts servers of one model: a script of tests/fixtureapps. docker: further arguments of `docker run`."""

    def start(script, env=None, docker=(), ready=True):
        base = launch.base_dir()
        (base / "model" / "code").mkdir()
        shutil.copy(SCRIPTS / f"{script}.py", base / "model" / "code" / "inference.py")
        server = launch.run("serve", base, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1", **(env or {})}, docker)
        if ready:
            server.await_ready(READY_SECONDS)
        return server

    return start


def test_14_in_flight_is_answered_after_sigterm(one_model):
    server = one_model("sleepy")
    with clients(1) as pool:
        answer = send(pool, server, 2)
        server.await_log("began 2")
        server.signal(signal.SIGTERM)
        assert answer.result().json()["slept"] == 2
    assert server.wait() == 0
    assert {path.name for path in server.base_dir.glob("tmp/*")} <= {"stdout", "stderr"}, "nothing is left on this machine"


def test_15_the_death_of_java_ends_the_container(one_model):
    server = one_model("echo")
    (java,) = [process.pid for process in server.processes() if "com.amazonaws.ml.mms.ModelServer" in process.command]
    server.kill(java)
    assert server.wait() != 0
    assert server.last_words().startswith("FAILED: multi-model-server")


def test_15_a_dead_worker_is_replaced(one_model):
    server = one_model("crash")
    assert server.post("SIGKILL").status_code == 500
    until(lambda: server.post("1").status_code == 200, 20, "an answer of the worker's replacement")


def test_04_a_model_that_cannot_be_loaded_ends_the_container(one_model):
    server = one_model("failing_load", ready=False)
    assert server.wait(READY_SECONDS) != 0
    assert server.last_words().startswith("STARTUP FAILED: model_fn in")
    assert "OSError: weights.bin is truncated" in server.last_words()


def test_a_prediction_past_its_time_is_504_and_its_worker_is_replaced(one_model):
    server = one_model("sleepy", {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "1"})
    late = server.post("100")
    assert (late.status_code, late.json()["code"]) == (504, 504)
    until(lambda: server.post("0").status_code == 200, 20, "an answer of the worker's replacement")


@in_docker
def test_21_a_load_that_the_kernel_kills_is_507_and_hurts_nobody(launch):
    base = launch.base_dir("models")
    limited = ["--memory", "600m", "--memory-swap", "600m"]
    server = launch.run("serve", base, {"SAGEMAKER_MULTI_MODEL": "true"}, limited)
    server.await_ready(READY_SECONDS)
    endpoint = Endpoint(server, base / "models", "/opt/ml/models")
    endpoint.artifact("small", "echo")
    endpoint.artifact("large", HOG)
    assert endpoint.load("small").status_code == 200
    refused = endpoint.load("large")
    assert refused.status_code == 507
    assert "for want of memory" in refused.json()["message"]
    assert endpoint.names() == ["small"]
    assert endpoint.invoke("small", b"1").content == b"1"
    assert server.ended() is None


@in_docker
@pytest.mark.parametrize(("word", "says"), [("train", "TRAINING FAILED: there is no"), ("bogus", "berth: cannot run 'bogus'")])
def test_02_another_word_is_run_as_a_command(launch, word, says):
    server = launch.run(word, launch.base_dir("input"), {})
    assert server.wait() != 0
    assert says in server.logs()


@in_docker
@pytest.mark.parametrize("uid", ["0", "54321"])
def test_16_read_only_and_any_user(one_model, uid):
    server = one_model("echo", docker=["--read-only", "--tmpfs", "/tmp", "--user", uid])
    assert server.post("1,2").content == b"1,2"
