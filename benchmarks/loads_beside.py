"""What loads cost a model that is there: how long model A takes to answer, alone and while a hundred others are loaded.

    python -m benchmarks.loads_beside [--models 100] [--at-once 4] [--rounds 5]

Clients take their share of the processors too, so A is also asked while as many clients, for as long, ask another model for predictions:
what is the same there is no cost of loading. Everything is on this machine, two shards, no Docker; the clients of the others are
processes of their own. Ends with 1 if A's p99 beside the loads is above BOUND.
"""

import argparse
import http.client
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.pool import AsyncResult, Pool
from typing import Any

import numpy

from tests.live.launcher import Launcher
from tests.live.many import CSV, Endpoint

BOUND = 0.1
"""Seconds. Far below the second that a client would notice, far above what this machine's other work adds."""
SHARDS = "2"


def main() -> int:
    options = _options()
    names = [f"small-{number}" for number in range(options.models)]
    seconds: dict[str, list[float]] = {"alone": [], "beside loads": [], "beside predictions": []}
    with Launcher(image=None, label="") as launch, multiprocessing.get_context("spawn").Pool(options.at_once) as pool:
        endpoint = _endpoint(launch, names)
        _predictions(pool, endpoint, options.at_once, 1).get()  # the processes of the pool have their imports behind them
        ask = Asking(endpoint.server.url)
        loading = 0.0
        for _ in range(options.rounds):
            seconds["alone"] += ask.until(time.monotonic() + 0.5)
            took, times = ask.beside(pool.map_async(load, [(endpoint.server.url, name, endpoint.urls[name]) for name in names], 1))
            seconds["beside loads"] += times
            loading += took
            _clear(endpoint, names)
            seconds["beside predictions"] += ask.beside(_predictions(pool, endpoint, options.at_once, took))[1]
    print(f"\n{options.rounds} x {options.models} models loaded, {options.at_once} at a time: {loading / options.rounds:.2f} s a round")
    for what, times in seconds.items():
        p50, p99, most = numpy.quantile(times, [0.5, 0.99, 1]) * 1000
        print(f"  A {what:20} p50 {p50:5.2f} ms, p99 {p99:6.2f} ms, at most {most:6.2f} ms, of {len(times)} requests")
    p99 = float(numpy.quantile(seconds["beside loads"], 0.99))
    if p99 > BOUND:
        print(f"WRONG: beside loads, A's p99 is {p99 * 1000:.0f} ms: at most {BOUND * 1000:.0f} is accepted")
    return 1 if p99 > BOUND else 0


class Asking:
    """One client of model A, with one connection."""

    def __init__(self, url: str) -> None:
        self._connection = connect(url)
        self.until(time.monotonic() + 0.2)

    def until(self, end: float) -> list[float]:
        """Asks until then (time.monotonic()), one request after the other. Returns the seconds that each took."""
        return self._times(lambda: time.monotonic() > end)

    def beside(self, others: "AsyncResult[Any]") -> tuple[float, list[float]]:
        """Asks until the others have done what they do. Returns the seconds of it all, and of each request; raises what they raised."""
        began = time.monotonic()
        times = self._times(others.ready)
        others.get()
        return time.monotonic() - began, times

    def _times(self, is_over: Callable[[], bool]) -> list[float]:
        found = list[float]()
        while not is_over():
            began = time.perf_counter()
            body = call(self._connection, "POST", "/models/A/invoke", "0", CSV)
            found.append(time.perf_counter() - began)
            if json.loads(body) != [1.0]:
                raise ValueError(f"A answers 1.0, and has answered {body!r}")
        return found


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)


def call(connection: http.client.HTTPConnection, method: str, path: str, body: str, headers: dict[str, str]) -> bytes:
    """The answer's body. Raises ValueError if it is none."""
    connection.request(method, path, body, headers)
    with connection.getresponse() as answer:
        said = answer.read()
        if answer.status != 200:
            raise ValueError(f"{method} {path} was answered with {answer.status}: {said!r}")
        return said


def load(order: tuple[str, str, str]) -> None:
    """One load, in a process of the pool: the server's url, the model's name and url."""
    server, name, url = order
    call(connect(server), "POST", "/models", json.dumps({"model_name": name, "url": url}), {"Content-Type": "application/json"})


def predict(order: tuple[str, float]) -> None:
    """Predictions of model B for so many seconds, in a process of the pool."""
    server, seconds = order
    connection, end = connect(server), time.monotonic() + seconds
    while time.monotonic() < end:
        call(connection, "POST", "/models/B/invoke", "0", CSV)


def _predictions(pool: Pool, endpoint: Endpoint, clients: int, seconds: float) -> "AsyncResult[Any]":
    return pool.map_async(predict, [(endpoint.server.url, seconds)] * clients, 1)


def _endpoint(launch: Launcher, names: list[str]) -> Endpoint:
    """A server with models A and B, and the artifacts of the others."""
    base = launch.base_dir("models")
    server = launch.run("serve", base, {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_MODEL_SERVER_WORKERS": SHARDS})
    server.await_ready()
    endpoint = Endpoint(server, base / "models", str(base / "models"))
    for name, answer in {"A": 1.0, "B": 2.0, **dict.fromkeys(names, 3.0)}.items():
        endpoint.plain(name, answer)
    endpoint.load_all(["A", "B"])
    return endpoint


def _clear(endpoint: Endpoint, names: list[str]) -> None:
    for name in names:
        answer = endpoint.delete(name)
        if answer.status != 200:
            raise ValueError(f"DELETE was answered with {answer}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=int, default=100, help="loaded in each round")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
