"""Clients of a server under test: many at once, and some that hold its workers busy."""

import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import requests

from tests.live.server import Server
from tests.waiting import until


@contextmanager
def clients(count: int = 32) -> Iterator[ThreadPoolExecutor]:
    """Threads to send requests from. The block ends when all that was sent has been answered."""
    with ThreadPoolExecutor(count) as pool:
        yield pool


def send(pool: ThreadPoolExecutor, server: Server, body: object, **options: Any) -> "Future[requests.Response]":
    """A POST /invocations that is answered some time later."""
    return pool.submit(server.post, str(body), **options)


def http(body: bytes = b"", method: str = "POST", path: str = "/invocations", headers: str = "Content-Type: text/csv\r\n") -> bytes:
    """A request as it is on the wire. headers: whole lines."""
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def begun(server: Server, body: object) -> int:
    """How many predictions for such a body a script has said to have begun."""
    return server.logs().splitlines().count(f"began {body}")


@contextmanager
def busy(server: Server, seconds: int, workers: int = 2) -> Iterator[None]:
    """A `sleepy` server, every worker of which is busy for so many seconds. Nobody waits for the answers."""
    with ExitStack() as connections:
        for number in range(workers):
            connections.enter_context(server.connect()).sendall(http(str(seconds).encode()))
            until(functools.partial(_has_begun, server, seconds, number + 1), 10, f"worker {number + 1} having begun")
        yield


def _has_begun(server: Server, seconds: int, times: int) -> bool:
    return begun(server, seconds) >= times
