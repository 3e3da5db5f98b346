"""Many small models in one job: a fit for each key's rows, in parallel, one artifact each; what is finished is not made again.

from container import fleet

def fit(key, data, hyperparameters):  # -> model, or (model, {"mae": 12.3})
    ...

def train_fn(job):
    fleet.train(job, fit)
"""

import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from container import bundles, fitting, pools, resources, shards, training
from container.errors import StartupError
from container.fitting import Fit, Work
from container.manifest import Entry, Manifest, ManifestError
from container.pools import Pool
from container.progress import Progress
from container.settings import Settings
from container.training_job import TrainingError, TrainingJob

log = logging.getLogger(__name__)

PROGRAM_DIR = Path(__file__).resolve().parent.parent

MAX_FAILED = 0.1
"""Share of the keys that may fail, where the hyperparameter max_failed does not say another."""

BATCH_SECONDS = 0.2
"""What a process is given at once: so much work that handing it over costs next to nothing, so little that none waits long at the end."""

HEARTBEAT = 0.5
"""Seconds after which it is looked whether the platform wants the job to stop, or a line of progress is due, where no fit ends."""

STOP_SECONDS = 75.0
"""After SIGTERM: how long the fits in flight may take. train_fn has 90 s."""

CAUSES = 4
"""How many causes of failures are told."""

LONGEST_CAUSE = 200
"""Characters of each one's message. The place that follows it is told whole."""

Item = tuple[str, Path]


@dataclass(frozen=True)
class Summary:
    """What a run has done on this host. keys: how many are this host's. made: artifacts of this run; found: of an earlier one.

    metrics: name -> mean over the keys. stopped: whether the platform asked to stop, so that keys may be left for the next run.
    """

    keys: int
    made: int
    found: int
    failed: int
    seconds: float
    stopped: bool
    metrics: Mapping[str, float]
    directory: Path
    manifest: Path


def train(
    job: TrainingJob,
    fit: Fit,
    *,
    channel: str = "train",
    column: str | None = None,
    directory: Path | None = None,
    settings: Settings | None = None,
) -> Summary:
    """Fits a model for each key that is this host's, and writes each to DIRECTORY/<key>.tar.gz, with manifest.jsonl beside them.

    fit(key, data, hyperparameters) returns a model, or (model, {"metric": number}). channel: has a CSV, gzipped CSV or Parquet file for
    each key; with `column`, the rows of all keys in any files, which are split by it first. Where every host has all files, each takes
    its part. directory: by default job.checkpoint_dir, which the platform uploads while the job runs and restores after an interruption.
    The hyperparameter max_failed is the share of keys that may fail. With FLEET_DASK_SCHEDULER the fits run on that Dask cluster.

    Raises TrainingError for input that cannot be used, for an inference script that could serve none of the models, for a directory that
    cannot be written to, and when more keys fail than may, with the commonest causes.
    """
    settings = settings or Settings.read()
    max_failed = _max_failed(job)
    target = directory or job.checkpoint_dir
    if target == job.checkpoint_dir and not job.keeps_checkpoints:
        log.warning(
            "fleet: %s was not there when the job began. If the job has no CheckpointConfig, the models are lost with this machine: "
            "give it one with an S3Uri, or train with directory=job.model_dir",
            target,
        )
    mark = bundles.mark(job.current_host)
    with _writing(target):
        target.mkdir(parents=True, exist_ok=True)
        swept = bundles.sweep(target, mark)
        begun = bundles.now(target, mark)
    if swept:
        log.info("fleet: %d unfinished files of an earlier run were removed", swept)
    work = Work.of(fit, job.script or _source(fit), job.hyperparameters, target, mark, begun)
    _refuse_unservable(work)
    with shards.mine(job, channel, column, settings) as files, _manifest(target / _manifest_name(job)) as manifest:
        run = _Run(job, settings, work, files, manifest, max_failed)
        try:
            run.go()
        finally:
            run.progress.close()
    run.warn_of_failures()
    if manifest.path.parent != job.model_dir:
        with _writing(job.model_dir):
            shutil.copy(manifest.path, job.model_dir)
    return run.summary()


class _Run:
    """One pass over the files of this host."""

    def __init__(
        self, job: TrainingJob, settings: Settings, work: Work, files: Mapping[str, Path], manifest: Manifest, max_failed: float
    ) -> None:
        self._job, self._settings, self._work, self._files, self._manifest = job, settings, work, files, manifest
        self._plan = resources.plan(settings, resources.granted(), PROGRAM_DIR)
        self._max_failed = max_failed
        self._causes: dict[str, _Cause] = {}
        self._key_seconds = BATCH_SECONDS
        self._give_up: float | None = None
        self._alive = time.monotonic()
        self.progress = Progress(len(files))

    def go(self) -> None:
        """Fits them all. Where a process dies, the keys that were in flight are tried one by one, each in a process of its own."""
        where = self._settings.dask_scheduler or f"{self._plan.workers} processes of {self._plan.threads} BLAS threads"
        log.info("fleet: %d keys on %s; artifacts go to %s", len(self._files), where, self._work.directory)
        source = iter(self._files.items())
        while not self._stopping():
            with self._pool(self._plan.workers) as pool:
                lost = self._drive(pool, source)
            if not lost:
                break
            self._one_by_one([item for item, _ in lost])

    def summary(self) -> Summary:
        counts = self.progress
        return Summary(
            keys=counts.total,
            made=counts.made,
            found=counts.found,
            failed=counts.failed,
            seconds=counts.seconds,
            stopped=self._job.stop.requested,
            metrics=counts.metrics,
            directory=self._work.directory,
            manifest=self._manifest.path,
        )

    def _pool(self, workers: int) -> AbstractContextManager[Pool]:
        if self._settings.dask_scheduler:
            return pools.dask(self._settings.dask_scheduler, bundles.unfinished(self._work.directory, self._work.mark), self._work)
        return pools.local(replace(self._plan, workers=workers), self._settings, self._work)

    def _one_by_one(self, suspects: list[Item]) -> None:
        log.warning("fleet: a process died; %d keys that were in flight are tried one by one", len(suspects))
        left = deque(suspects)
        source = (left.popleft() for _ in range(len(suspects)))
        while left and not self._stopping():
            with self._pool(1) as pool:
                for (key, _), error in self._drive(pool, source, alone=True):
                    self._record(Entry(key, error=f"ProcessDied: {_ending(pool.ending(error))} (outside of Python)"))

    def _drive(self, pool: Pool, source: Iterator[Item], alone: bool = False) -> list[tuple[Item, BaseException]]:
        """Keeps the pool busy until the source is empty, the pool is broken or the job is to stop. Returns what a dead process had."""
        pending: dict[Future[Any], list[Item]] = {}
        lost: list[tuple[Item, BaseException]] = []
        self._alive = time.monotonic()
        while True:
            while not self._stopping() and len(pending) < (1 if alone else self._ahead(pool)):
                batch = list(islice(source, 1 if alone else self._batch_size()))
                if not batch:
                    break
                pending[pool.submit(fitting.run, batch)] = batch
            if not pending or self._out_of_time():
                return lost
            broken = None
            for future in self._done(pool, pending):
                batch = pending.pop(future)
                try:
                    entries, seconds = self._result(future)
                except pool.crashes as error:
                    lost += [(item, error) for item in batch]
                    broken = error if pool.is_broken else None
                else:
                    self._take(entries, seconds)
            if broken:
                return lost + [(item, broken) for batch in pending.values() for item in batch]
            self.progress.tell()

    def _done(self, pool: Pool, pending: Iterable[Future[Any]]) -> set[Future[Any]]:
        """What has ended, after a heartbeat at the latest. Raises TrainingError where nobody has been there for long who could end any."""
        done, _ = wait(pending, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
        if done or pool.width():
            self._alive = time.monotonic()
        elif time.monotonic() - self._alive > pools.SCHEDULER_SECONDS:
            raise TrainingError(f"the Dask cluster {self._settings.dask_scheduler} has had no worker for {pools.SCHEDULER_SECONDS:g} s")
        return done

    def _result(self, future: Future[Any]) -> tuple[list[Entry], float]:
        """Of a call. What it raises is no key's error: those are in the entries."""
        scheduler = self._settings.dask_scheduler
        try:
            found: tuple[list[Entry], float] = future.result()
        except CancelledError:
            raise TrainingError(f"the Dask scheduler {scheduler} is gone") from None
        except StartupError as error:
            raise TrainingError(f"a process that fits cannot start: {error}") from None
        except (ImportError, FileNotFoundError) as error:  # of a worker that came later: the first were asked
            if not scheduler:
                raise
            raise TrainingError(
                f"a Dask worker of {scheduler} cannot run this program ({error!r}): start workers from this image, "
                "on the file system of this host"
            ) from None
        return found

    def _take(self, entries: list[Entry], seconds: float) -> None:
        self._key_seconds += 0.3 * (seconds / len(entries) - self._key_seconds)
        for entry in entries:
            self._record(entry)

    def _record(self, entry: Entry) -> None:
        if entry.seconds is None and entry.error is None:
            earlier = self._manifest.get(entry.key)
            entry = earlier if earlier and earlier.sha256 == entry.sha256 else entry
            self.progress.add(replace(entry, seconds=None))
        else:
            self.progress.add(entry)
        self._manifest.add(entry)
        if entry.error is not None:
            self._fail(entry.key, entry.error)

    def _fail(self, key: str, error: str) -> None:
        kind, place = error.partition(":")[0], error.rpartition(" (")[2]
        cause = self._causes.setdefault(f"{kind} {place}", _Cause(key, error))
        cause.count += 1
        if self.progress.failed / self.progress.total > self._max_failed:
            raise TrainingError(self._failure())

    def warn_of_failures(self) -> None:
        """Of a run that has ended well: why some keys have no model, which only the manifest would tell."""
        if self.progress.failed:
            head = f"fleet: {self.progress.failed:,} of {self.progress.total:,} keys failed; each is in {self._manifest.path}:"
            log.warning("%s", "\n".join([head, *self._commonest()]))

    def _failure(self) -> str:
        head = (
            f"{self.progress.failed:,} of {self.progress.total:,} keys failed ({self.progress.done:,} were tried), "
            f"which is more than max_failed={self._max_failed:g} allows:"
        )
        return "\n".join([head, *self._commonest()])

    def _commonest(self) -> list[str]:
        commonest = sorted(self._causes.values(), key=lambda cause: -cause.count)[:CAUSES]
        return [f"{cause.count:,} x {_cut(cause.error)}, as {cause.key!r}" for cause in commonest]

    def _batch_size(self) -> int:
        return max(1, min(64, int(BATCH_SECONDS / max(self._key_seconds, 1e-6))))

    def _ahead(self, pool: Pool) -> int:
        """How many batches are on their way: one more for each process, so that none waits; where a fit takes long, none more."""
        return max(1, pool.width()) * (2 if self._key_seconds < 1 else 1)

    def _stopping(self) -> bool:
        if self._job.stopping() and self._give_up is None:
            self._give_up = time.monotonic() + STOP_SECONDS
            log.info("fleet: stopping; fits in flight have %g s", STOP_SECONDS)
        return self._give_up is not None

    def _out_of_time(self) -> bool:
        return self._give_up is not None and time.monotonic() > self._give_up


@dataclass
class _Cause:
    """Failures of one kind at one place: the first key, and what was said of it."""

    key: str
    error: str
    count: int = 0


def _max_failed(job: TrainingJob) -> float:
    value = job.hyperparameters.get(fitting.MAX_FAILED, MAX_FAILED)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise TrainingError(f"the hyperparameter max_failed is {value!r}; accepted is a share of the keys, 0 to 1")
    return float(value)


@contextmanager
def _manifest(path: Path) -> Iterator[Manifest]:
    try:
        with Manifest(path) as manifest:
            yield manifest
    except ManifestError as error:
        raise TrainingError(str(error)) from None


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{directory} cannot be written to: {error.strerror or error}") from None


def _refuse_unservable(work: Work) -> None:
    """Before the first fit: the same script goes into each artifact."""
    if work.script is not None and work.packed_code:
        reason = training.unservable(work.script.with_name(fitting.INFERENCE_SCRIPT), work.packed_code[fitting.INFERENCE_SCRIPT])
        if reason:
            raise TrainingError(f"the artifacts could not be served: {reason}")


def _manifest_name(job: TrainingJob) -> str:
    """Hosts share the places that the platform uploads to, where one file would take the place of another."""
    return "manifest.jsonl" if len(job.hosts) == 1 else f"manifest-{job.current_host}.jsonl"


def _source(fit: Callable[..., Any]) -> Path | None:
    """The file of a fit in a job that was not started by `train`."""
    code = getattr(fit, "__code__", None)
    path = Path(code.co_filename) if code else None
    return path if path and path.is_file() else None


def _cut(error: str) -> str:
    """`Type: message (file:line in function)` with less of the message."""
    message, opening, place = error.rpartition(" (")
    return f"{message[:LONGEST_CAUSE]}{'...' if len(message) > LONGEST_CAUSE else ''}{opening}{place}"


def _ending(codes: str) -> str:
    died = "the process that fitted it died"
    codes = f", exit code {codes}" if codes else ""
    return f"{died}{codes}{'; SIGKILL is most often for want of memory' if 'SIGKILL' in codes else ''}"
