"""Servers of many models: how our own engine and a stock Multi Model Server are started, and the platform's calls to them."""

import contextlib
import http.client
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.load import LoadError, Requests, ask
from benchmarks.processes import ServerError, family, free_port, group_bytes, in_group, memory_group, proportional_bytes, serving
from benchmarks.stacks import OUR_PYTHON, PEERS, ROOT, Launch, find_java_home
from container.settings import THREAD_VARIABLES, environment

WORKERS = 2
"""Shards of our own engine. Multi Model Server has one worker for each model: its own minimum."""

HANDLERS = {"tabular": "toolkit", "entities": "entities"}
"""Multi Model Server's handler for each kind of models: the toolkit's default one, where it can read and write them."""


@dataclass(frozen=True)
class Answer:
    """status, body; seconds from the first byte sent to the last received."""

    status: int
    body: bytes
    seconds: float


class Client:
    """One kept connection, as a client of the platform has."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=360)

    def call(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        started = time.perf_counter()
        self._connection.request(method, path, body, dict(headers or {}))
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.read(), time.perf_counter() - started)

    def close(self) -> None:
        self._connection.close()


@dataclass
class Endpoint:
    """A running server of many models. group: its memory cgroup, where there is one."""

    port: int
    pid: int
    group: Path | None
    refusal: str = ""
    """What the last load was refused with, if it was for want of room."""

    def load(self, models: Mapping[str, Path], at_once: int = 1) -> list[float]:
        """Loads models (name -> directory) with so many clients, until there is no room for more; gives the seconds of each load.

        Raises LoadError if one fails in another way.
        """
        orders = [("POST", "/models", json.dumps({"model_name": name, "url": str(url)}).encode()) for name, url in models.items()]
        answers = self._calls(orders, at_once, {"Content-Type": "application/json"}, enough=507)
        self.refusal = next((answer.body.decode() for answer in answers if answer.status == 507), "")
        return [answer.seconds for answer in answers if answer.status == 200]

    def unload(self, names: Sequence[str], at_once: int = 1) -> list[float]:
        """Unloads models; gives the seconds of each."""
        orders = [("DELETE", f"/models/{quote(name, safe='')}", b"") for name in names]
        return [answer.seconds for answer in self._calls(orders, at_once, {})]

    def ask(self, requests: Requests, at_once: int = 8) -> list[float]:
        """Sends each request once; gives the seconds of each. Raises LoadError if an answer is not the right one."""
        answers = self._calls([("POST", case.path, case.body) for case in requests.cases], at_once, requests.headers)
        for case, answer in zip(requests.cases, answers, strict=True):
            if "".join(answer.body.decode().split()) != "".join(case.expected.split()):
                raise LoadError(f"{case.path} answered {answer.body[:200]!r} instead of {case.expected!r}")
        return [answer.seconds for answer in answers]

    def pages(self) -> tuple[list[str], list[float]]:
        """The names of all models, by pages of the server's own size, and the seconds of each page."""
        names: list[str] = []
        seconds, query = [], ""
        while True:
            (answer,) = self._calls([("GET", f"/models{query}", b"")], 1, {})
            page = json.loads(answer.body)
            names += [model["modelName"] for model in page["models"]]
            seconds.append(answer.seconds)
            if "nextPageToken" not in page:
                return names, seconds
            query = f"?next_page_token={quote(page['nextPageToken'], safe='')}"

    def weight(self) -> "Weight":
        """What the server takes now."""
        return Weight(proportional_bytes(self.pid), group_bytes(self.group) if self.group else None, len(family(self.pid)))

    def _calls(
        self, orders: Sequence[tuple[str, str, bytes]], at_once: int, headers: Mapping[str, str], enough: int | None = None
    ) -> list[Answer]:
        """All calls, by so many clients, each on a connection that it keeps; a client ends at a status of `enough`.

        Raises LoadError at the first other answer that is not 200.
        """

        def work(number: int) -> list[Answer]:
            found = []
            with contextlib.closing(Client(self.port)) as client:
                for method, path, body in orders[number::at_once]:
                    answer = client.call(method, path, body, headers)
                    if answer.status not in (200, enough):
                        raise LoadError(f"{method} {path} was answered with {answer.status}: {answer.body[:300]!r}")
                    found.append(answer)
                    if answer.status == enough:
                        break
            return found

        if at_once == 1:
            return work(0)
        with ThreadPoolExecutor(at_once) as pool:
            parts = list(pool.map(work, range(at_once)))
        return [part[row] for row in range(max(map(len, parts))) for part in parts if row < len(part)]


@dataclass(frozen=True)
class Weight:
    """Memory in bytes. pss: each page's share among all that map it, over the process tree; group: as the kernel counts the server's
    cgroup; None where it has none."""

    pss: int
    group: int | None
    processes: int


@dataclass(frozen=True)
class Engine:
    """A server of many models that can be started. launch(kind of the models, port, directory of its own)."""

    name: str
    title: str
    launch: Callable[[str, int, Path], Launch]

    @contextlib.contextmanager
    def serve(self, kind: str, run_dir: Path) -> Iterator[Endpoint]:
        """The endpoint is up, without models, while the block runs. Raises ServerError or StackError when it cannot be."""
        run_dir.mkdir(parents=True)
        run_dir.chmod(0o755)  # nginx, started by root, works as another user
        port = free_port()
        launch = self.launch(kind, port, run_dir)
        env = environment(**dict.fromkeys(THREAD_VARIABLES, "1"), PYTHONPATH=str(ROOT), TMPDIR=str(run_dir), SAGEMAKER_MULTI_MODEL="true")
        with contextlib.ExitStack() as running:
            group = running.enter_context(memory_group())
            ready = lambda: _answers(port)  # noqa: E731
            pid = running.enter_context(serving(in_group(launch.command, group), run_dir, env | launch.env, run_dir / "log", ready))
            yield Endpoint(port, pid, group)


@contextlib.contextmanager
def container(image: str, models: Path, memory: str) -> Iterator[Endpoint]:
    """Our image as an endpoint of many models, with so much memory (as Docker takes it: 4g); `models` is mounted where it is.

    Raises ServerError when it is not up after a minute.
    """
    port, name = free_port(), f"bench-{os.getpid()}"
    limits = ["-m", memory, "--memory-swap", memory]
    command = ["docker", "run", "-d", "--name", name, *limits, "-p", f"127.0.0.1:{port}:8080", "-v", f"{models}:{models}:ro"]
    subprocess.run([*command, "-e", "SAGEMAKER_MULTI_MODEL=true", image, "serve"], check=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            if time.monotonic() > deadline:
                raise ServerError(f"the container of {image} was not ready after 60 s")
            time.sleep(0.05)
        state = subprocess.run(["docker", "inspect", "-f", "{{.State.Pid}} {{.Id}}", name], check=True, capture_output=True, text=True)
        pid, identity = state.stdout.split()
        group = next((path for path in (Path("/sys/fs/cgroup/memory/docker"), Path("/sys/fs/cgroup/docker")) if path.is_dir()), None)
        yield Endpoint(port, int(pid), group and group / identity)
    finally:
        subprocess.run(["docker", "rm", "-f", name], check=False, stdout=subprocess.DEVNULL)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port, "GET", "/ping")[0] == 200
    return False


def _berth(kind: str, port: int, run_dir: Path) -> Launch:
    """With its defaults."""
    env = {"SAGEMAKER_BASE_DIR": str(run_dir), "SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_MODEL_SERVER_WORKERS": str(WORKERS)}
    return Launch([str(OUR_PYTHON), str(ROOT / "serve")], env)


def _mms(kind: str, port: int, run_dir: Path) -> Launch:
    """The properties that the SageMaker toolkit writes for many models; one worker a model; only errors are logged.

    In the same environment as our own, which has the toolkit.
    """
    config = run_dir / "config.properties"
    address = f"http://127.0.0.1:{port}"
    settings: dict[str, Any] = {
        "inference_address": address,
        "management_address": address,
        "model_store": "/",
        "default_workers_per_model": 1,
        "default_service_handler": f"benchmarks.peers.mms.{HANDLERS[kind]}:handle",
        "decode_input_request": "false",
        "async_logging": "true",
        "number_of_gpu": 0,
    }
    config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    program = [str(OUR_PYTHON), "-m", "mms.model_server", "--start", "--foreground"]
    options = ["--mms-config", str(config), "--model-store", "/", "--log-config", str(PEERS / "mms" / "log4j2.xml")]
    return Launch([*program, *options], {"JAVA_HOME": find_java_home(), "TEMP": str(run_dir)})


ENGINES = {engine.name: engine for engine in (Engine("berth", "Berth", _berth), Engine("mms", "Multi Model Server", _mms))}
