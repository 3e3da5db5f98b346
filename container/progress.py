"""How far a fleet is: a line every few seconds, a bar on a terminal; metrics in the form of the examples."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from container.manifest import Entry

log = logging.getLogger(__name__)

EVERY = 10.0
"""Seconds between two lines."""


class Progress:
    """Counts entries and tells of them. After close() the counts are those of the whole run.

    made: artifacts of this run. found: those of an earlier one. failed: keys without one.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic, every: float = EVERY, terminal: bool | None = None) -> None:
        """total: of keys. terminal: whether a bar is wanted; by default where stderr is one."""
        self.total, self.made, self.found, self.failed = total, 0, 0, 0
        self._clock, self._every, self._begin = clock, every, clock()
        self._told = self._begin
        self._means: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._bar = _bar(total) if (sys.stderr.isatty() if terminal is None else terminal) else None

    @property
    def done(self) -> int:
        return self.made + self.found + self.failed

    @property
    def seconds(self) -> float:
        return self._clock() - self._begin

    @property
    def metrics(self) -> dict[str, float]:
        """Name -> mean of what fit returned, over the keys that have a finite one."""
        return dict(sorted(self._means.items()))

    def add(self, entry: Entry) -> None:
        """One more key."""
        if entry.error is not None:
            self.failed += 1
        elif entry.seconds is None:
            self.found += 1
        else:
            self.made += 1
        for name, value in entry.metrics.items():
            if value is not None:
                self._counts[name] += 1
                mean, count = self._means.get(name, 0.0), self._counts[name]
                self._means[name] = mean + (value / count - mean / count)  # a sum of finite numbers need not be one
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.failed} failed" if self.failed else "", refresh=False)
            self._bar.update()

    def tell(self) -> None:
        """A line, if it is time for one."""
        if self._bar is None and self._clock() - self._told >= self._every:
            self._told = self._clock()
            log.info("%s", self.line())
            print(self.measured())

    def close(self) -> None:
        """The last line, always."""
        if self._bar is not None:
            self._bar.close()
        log.info("%s", self.line())
        print(self.measured())

    def line(self) -> str:
        """fleet: 312 of 1,000 done, 2 failed, 24.1 a second, 29 s left. What is found takes no time: it says nothing of what is left."""
        rate = (self.made + self.failed) / self.seconds if self.seconds > 0 else 0.0
        parts = [f"{self.done - self.failed:,} of {self.total:,} done"]
        parts += [f"{self.found:,} of them found finished"] if self.found else []
        parts += [f"{self.failed:,} failed", f"{rate:.1f} a second"]
        left = self.total - self.done
        parts.append(_duration(left / rate) + " left" if left and rate else f"{_duration(self.seconds)} in all")
        return f"fleet: {', '.join(parts)}"

    def measured(self) -> str:
        """fleet:models=312; fleet:failed=2; ... for a MetricDefinitions regex as `fleet:models=([0-9.]+)`."""
        rate = self.made / self.seconds if self.seconds > 0 else 0.0
        values = {"models": self.made + self.found, "failed": self.failed, "models_per_second": f"{rate:.2f}"}
        means = {name: f"{mean:.6g}" for name, mean in self.metrics.items()}
        return " ".join(f"fleet:{name}={value};" for name, value in {**means, **values}.items())


def _bar(total: int) -> Any:
    import tqdm  # type: ignore[import-untyped]  # spaCy's dependency

    tqdm.tqdm.monitor_interval = 0  # its thread would be lost in a fork, so that there would be none
    return tqdm.tqdm(total=total, unit="model", desc="fleet", dynamic_ncols=True)


def _duration(seconds: float) -> str:
    """29 s, 5 min, 2.5 h."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
