"""Waiting for something to become true, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

INTERVAL = 0.05
T = TypeVar("T")


def until(attempt: Callable[[], T], seconds: float, what: str) -> T:
    """The first true result of attempt(); AssertionError, naming what was awaited, if none comes within so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        result = attempt()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(INTERVAL)
