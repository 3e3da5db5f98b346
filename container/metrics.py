"""Prometheus text over all worker processes. Each worker counts into a file of its own that is mapped into memory, so that
counting costs no system call, a blocked or dead worker's counts can be read, and its replacement goes on where it ended."""

import heapq
import json
import mmap
import struct
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from container import resources

STATUSES = (200, 400, 404, 405, 406, 409, 413, 415, 500, 503, 504, 507)
"""Statuses counted by themselves; any other is counted as 'other'."""
MODEL_FIGURES = {
    "loads": ("loads", "How often the model was loaded: more than once if its process died."),
    "load_seconds": ("load_seconds", "Seconds that its last load took."),
    "bytes": ("artifact_bytes", "Bytes of its artifact."),
    "hits": ("invocations", "How often it was asked."),
    "last_use": ("last_use_seconds", "When it was asked last, in seconds since the epoch; 0: never."),
}
"""What a shard of many models tells of each, and how /metrics calls it; of a replica each shard tells its own."""
DESCRIBED = 100
"""Models whose figures are told at most: those that were used last."""
PHASES = ("queue", "decode", "predict", "encode")
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True)
class _Histogram:
    """Where a histogram's numbers stand: its buckets, one for all beyond them, then the sum."""

    start: int
    bounds: tuple[float, ...]

    @property
    def sum_at(self) -> int:
        return self.start + len(self.bounds) + 1


PID, LOAD_SECONDS, FIRST_STATUS = 0, 1, 2
_BATCH = _Histogram(FIRST_STATUS + len(STATUSES) + 1, SIZES)
_PHASES = [_Histogram(_BATCH.sum_at + 1 + index * (len(SECONDS) + 2), SECONDS) for index in range(len(PHASES))]
LENGTH = _PHASES[-1].sum_at + 1
_SLOT = {status: FIRST_STATUS + index for index, status in enumerate(STATUSES)}
_OTHER = FIRST_STATUS + len(STATUSES)


class Counters:
    """The counts of one worker: `LENGTH` float64 numbers in a file. One writer; any number of readers."""

    def __init__(self, path: Path | None = None) -> None:
        """path: None keeps the counts in this process alone."""
        memory: Any = bytearray(LENGTH * 8)
        if path is not None:
            with path.open("a+b") as file:
                file.truncate(LENGTH * 8)
                memory = mmap.mmap(file.fileno(), LENGTH * 8)
        self._values = memoryview(memory).cast("d")

    @classmethod
    def of_worker(cls, directory: Path, slot: int, pid: int) -> Self:
        """The counts of the worker in a slot, whoever was there before."""
        counters = cls(directory / f"worker-{slot}")
        counters._values[PID] = pid
        return counters

    def loaded(self, seconds: float) -> None:
        self._values[LOAD_SECONDS] = seconds

    def count(self, status: int) -> None:
        """One answer with this status."""
        self._values[_SLOT.get(status, _OTHER)] += 1

    def answered(self, status: int, queue: float, decode: float, predict: float, encode: float, batch_size: int) -> None:
        """One answer that a prediction was made for: seconds in each phase, and how many requests were predicted together."""
        values = self._values
        values[_SLOT.get(status, _OTHER)] += 1
        for histogram, seconds in zip(_PHASES, (queue, decode, predict, encode), strict=True):
            values[histogram.start + bisect_left(SECONDS, seconds)] += 1
            values[histogram.sum_at] += seconds
        values[_BATCH.start + bisect_left(SIZES, batch_size)] += 1
        values[_BATCH.sum_at] += batch_size


def text(directory: Path) -> bytes:
    """The metrics of all workers that count in a directory, in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Workers(directory))
    if any(directory.glob("models-*.json")):
        registry.register(_Models(directory))
    return generate_latest(registry)


class _Workers:
    def __init__(self, directory: Path) -> None:
        self._rows = {int(path.name.removeprefix("worker-")): _read(path) for path in sorted(directory.glob("worker-*"))}

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        rows = list(self._rows.values())
        total = [sum(column) for column in zip(*rows, strict=True)] or [0.0] * LENGTH
        requests = CounterMetricFamily("berth_requests", "Answers of the workers, by status.", labels=["status"])
        for status, at in [*((str(s), _SLOT[s]) for s in STATUSES), ("other", _OTHER)]:
            requests.add_metric([status], total[at])
        phases = HistogramMetricFamily("berth_request_seconds", "Seconds of answered requests in each phase.", labels=["phase"])
        for phase, histogram in zip(PHASES, _PHASES, strict=True):
            phases.add_metric([phase], *_cumulative(total, histogram))
        batch = HistogramMetricFamily("berth_batch_size", "Requests predicted together, as each of them saw it.")
        batch.add_metric([], *_cumulative(total, _BATCH))
        load = GaugeMetricFamily("berth_model_load_seconds", "Seconds that loading the model took.")
        load.add_metric([], max((row[LOAD_SECONDS] for row in rows), default=0.0))
        memory = GaugeMetricFamily("berth_worker_memory_bytes", "Resident memory of a worker, shared pages included.", labels=["worker"])
        for slot, row in self._rows.items():
            memory.add_metric([str(slot)], resources.rss(int(row[PID])))
        yield from (requests, phases, batch, load, memory)


class _Models:
    """Of many models: shard -> what it has told."""

    def __init__(self, directory: Path) -> None:
        paths = sorted(directory.glob("models-*.json"))
        self._shards = {path.stem.removeprefix("models-"): json.loads(path.read_bytes()) for path in paths}

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        loaded = GaugeMetricFamily("berth_models_loaded", "Models that are loaded.", labels=["shard"])
        for shard, told in self._shards.items():
            loaded.add_metric([shard], told["count"])
        yield loaded
        everyone = [(shard, model) for shard, told in self._shards.items() for model in told["models"]]
        described = heapq.nlargest(DESCRIBED, everyone, key=lambda one: float(one[1]["last_use"]))
        for figure, (called, meaning) in MODEL_FIGURES.items():
            family = GaugeMetricFamily(f"berth_models_{called}", meaning, labels=["model", "shard"])
            for shard, model in described:
                family.add_metric([model["name"], shard], model[figure])
            yield family


def _read(path: Path) -> tuple[float, ...]:
    data = path.read_bytes().ljust(LENGTH * 8, b"\0")
    return struct.unpack(f"{LENGTH}d", data[: LENGTH * 8])


def _cumulative(values: list[float], histogram: _Histogram) -> tuple[list[tuple[str, float]], float]:
    buckets, so_far = [], 0.0
    for index, bound in enumerate([*map(str, histogram.bounds), "+Inf"]):
        so_far += values[histogram.start + index]
        buckets.append((bound, so_far))
    return buckets, values[histogram.sum_at]
