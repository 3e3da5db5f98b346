"""Many clients of a `doubles` server at once, and what became of each request. Used by the tests of load, and by benchmarks/faults.py."""

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from tests.live.server import Server

TIMEOUT = 60.0


@dataclass(frozen=True)
class Outcome:
    """One request: when its connection was opened (seconds, time.monotonic()), the status (0: no whole answer), and what was wrong."""

    opened: float
    status: int
    wrong: str = ""
    began: bool = False
    """Whether some of the answer had arrived when it broke off."""


@dataclass
class Load:
    """Clients that send numbers to be doubled until they are stopped, each number once, each on a connection of its own."""

    server: Server
    clients: int
    outcomes: list[Outcome] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _run(self) -> None:
        host, _, port = self.server.url.removeprefix("http://").rpartition(":")
        while not self._stop.is_set():
            outcome = ask(host, int(port), next(self._numbers))
            self.outcomes.append(outcome)
            if outcome.status == 0:
                self._stop.wait(0.05)  # a server that is gone is not hammered

    def statuses(self) -> Counter[int]:
        return Counter(outcome.status for outcome in self.outcomes)

    def lost(self, stopped: float) -> list[Outcome]:
        """Accepted requests without a whole answer. Not accepted is one whose connection was opened after SIGTERM (`stopped`, seconds,
        time.monotonic()) and was refused or closed before any byte of an answer.
        """
        return [outcome for outcome in self.outcomes if outcome.status == 0 and (outcome.opened < stopped or outcome.began)]

    def wrong(self) -> list[str]:
        """What was wrong with answers: a number that is not twice the one sent, an error that is not JSON."""
        return [outcome.wrong for outcome in self.outcomes if outcome.wrong]


def ask(host: str, port: int, number: int) -> Outcome:
    """Has one number doubled, on a connection of its own."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    opened, began = time.monotonic(), False
    try:
        connection.request("POST", "/invocations", str(number), {"Content-Type": "text/csv", "Connection": "close"})
        with connection.getresponse() as answer:
            began = True
            return Outcome(opened, answer.status, _check(number, answer.status, answer.read()))
    except (OSError, http.client.HTTPException):
        return Outcome(opened, 0, began=began)
    finally:
        connection.close()


def _check(number: int, status: int, body: bytes) -> str:
    if status == 200:
        return "" if body == str(2 * number).encode() else f"{number} was doubled to {body!r}"
    try:
        error = json.loads(body)
    except ValueError:
        return f"{status} came with {body[:100]!r}"
    return "" if set(error) == {"code", "message", "request_id"} and error["code"] == status >= 500 else f"{status} came with {error}"
