"""More models than fit into a container, and clients of an endpoint that ask some of them often and most of them seldom.

Used by the tests of faults with many models, and by benchmarks/many_faults.py.
"""

import io
import itertools
import json
import random
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np

from local_test.endpoint import Endpoint
from tests.live.launcher import Launcher
from tests.live.many import constant
from tests.live.server import DockerServer, Server
from tests.waiting import until

SCRIPT = """
import pathlib
import numpy
def model_fn(model_dir): return numpy.load(pathlib.Path(model_dir, "numbers.npy"))
def predict_fn(data, model): return [float(model[int(data[0][0])])]
"""
"""A model that is nothing but its numbers."""
LEAST, MOST = 8, 12
"""Megabytes of a model."""
STATE = "{{.RestartCount}} {{.State.StartedAt}} {{.State.Running}}"


@dataclass(frozen=True)
class Outcome:
    """One request: what was asked, the status (0: no answer), what was wrong with the answer, and how long it took."""

    target: str
    status: int
    wrong: str
    seconds: float


@dataclass(frozen=True)
class Fleet:
    """Archives of models in a directory. answers: target -> what it says to any row."""

    directory: Path
    answers: dict[str, float]

    @classmethod
    def write(cls, directory: Path, count: int, seed: int) -> "Fleet":
        """Each model of 8 to 12 MB: a third has a script, a third is scikit-learn's, a third is packed, so that its size does not show."""
        draw = random.Random(seed)
        answers = {f"model-{number}.tar.gz": float(number) for number in range(count)}
        for number, target in enumerate(answers):
            _archive(directory / target, number, draw.randint(LEAST << 20, MOST << 20))
        return cls(directory, answers)

    def requests(self, count: int, seed: int) -> list[str]:
        """Targets, drawn with a Zipf law: the n-th most wanted is asked for 1/n as often as the first."""
        draw = random.Random(seed)
        targets = draw.sample(sorted(self.answers), len(self.answers))
        return draw.choices(targets, [1 / rank for rank in range(1, len(targets) + 1)], k=count)

    def drive(self, endpoint: Endpoint, targets: Sequence[str], clients: int) -> list[Outcome]:
        """Asks for all targets, in about this order, from so many threads."""
        outcomes, left = list[Outcome](), iter(targets)
        turn = threading.Lock()

        def client() -> None:
            while True:
                with turn:
                    target = next(left, "")
                if not target:
                    return
                outcomes.append(self.ask(endpoint, target))

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes

    def ask(self, endpoint: Endpoint, target: str) -> Outcome:
        """One request, and whether its answer is right."""
        began = time.monotonic()
        try:
            answer = endpoint.invoke(target, b"7")
        except OSError as error:
            return Outcome(target, 0, f"{target}: {error!r}", time.monotonic() - began)
        return Outcome(target, answer.status, self._check(target, answer.status, answer.body), time.monotonic() - began)

    def _check(self, target: str, status: int, body: bytes) -> str:
        try:
            said = json.loads(body)
        except ValueError:
            return f"{target}: {status} came with {body[:100]!r}"
        if status == 200:
            return "" if said == [self.answers[target]] else f"{target} answered {said}"
        is_error = set(said) == {"code", "message", "request_id"} and said["code"] == status >= 500
        return "" if is_error else f"{target}: {status} came with {said}"


def _archive(path: Path, number: int, size: int) -> None:
    numbers, buffer = np.full(size // 8, float(number)), io.BytesIO()
    if number % 3:
        model = constant(number)
        model.ballast = numbers
        joblib.dump(model, buffer, compress=number % 3 - 1)
        members = {"model.joblib": buffer.getvalue()}
    else:
        np.save(buffer, numbers)
        members = {"numbers.npy": buffer.getvalue(), "code/inference.py": SCRIPT.encode()}
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@contextmanager
def container(launch: Launcher, memory: str, fleet: Fleet) -> Iterator[tuple[Server, Endpoint]]:
    """A container of two shards with so much memory and no swap, and the platform's side of it; the block must not restart it."""
    base = launch.base_dir("models")
    env = {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
    server = launch.run("serve", base, env, ["--memory", memory, "--memory-swap", memory])
    assert isinstance(server, DockerServer)
    server.await_ready()
    before = server.inspect(STATE)
    with Endpoint(server.url, fleet.directory, base / "models", "/opt/ml/models") as endpoint:
        yield server, endpoint
    assert server.inspect(STATE) == before, "the container was restarted, or has ended"


@contextmanager
def killing(server: Server, every: float) -> Iterator[list[int]]:
    """Kills a shard every so many seconds while the block runs: the pids of those that were killed."""
    killed, over = list[int](), threading.Event()

    def kill() -> None:
        for turn in itertools.count():
            if over.wait(every):
                return
            shards = until(lambda: pids if len(pids := server.pids("worker")) == 2 else [], 20, "a shard in the place of the killed one")
            server.kill(shards[turn % 2])
            killed.append(shards[turn % 2])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def statuses(outcomes: Sequence[Outcome]) -> Counter[int]:
    return Counter(outcome.status for outcome in outcomes)


def wrong(outcomes: Sequence[Outcome]) -> list[str]:
    """What was wrong with answers: another model's, an error that is not JSON, none at all."""
    return [outcome.wrong for outcome in outcomes if outcome.wrong]


def gone(server: Server) -> int:
    """How many shards have died, of whatever."""
    return sum(line.count(") is gone: ") for line in server.logs().splitlines() if "container.supervisor: worker " in line)


def most_failures(killed: int, clients: int) -> int:
    """What killed shards may cost: each client the request that it has there, and one more before the successor listens."""
    return killed * clients * 2


def wrong_afterwards(fleet: Fleet, endpoint: Endpoint) -> list[str]:
    """What the platform finds wrong when all is over: a container that is not ready, a model that does not answer, another list."""
    found = [] if endpoint.ping() else ["/ping or /models is not 200"]
    for target in fleet.answers:
        outcome = fleet.ask(endpoint, target)
        if outcome.status != 200 or outcome.wrong:
            found.append(outcome.wrong or f"{target} is still answered with {outcome.status}")
    if endpoint.listed() != sorted(map(endpoint.id, endpoint.loaded())):
        found.append("the container lists other models than those that were loaded and not unloaded")
    return found
