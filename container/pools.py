"""Where a fleet's fits run: in processes of this host, forked or (loky, joblib's own) new, or on a Dask cluster. Knows no models."""

import ctypes
import gc
import logging
import multiprocessing
import os
import pickle
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import threadpoolctl
from joblib.externals import loky
from joblib.externals.loky import process_executor

from container import preload
from container.events import signal_name
from container.resources import Plan
from container.settings import THREAD_VARIABLES, Settings, adopt
from container.training_job import TrainingError

log = logging.getLogger(__name__)

SCHEDULER_SECONDS = 30.0
"""How long a Dask scheduler, and its first worker, may take to answer."""

PAUSE = 0.1
"""Seconds between two tries to reach it."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2)."""

GROUPS = (signal.SIGTERM, signal.SIGINT)
"""Signals that may be sent to a whole group of processes, and are for the first of them."""

_shared: list[Any] = []
"""In a process of a local pool: the one thing that all its calls share."""


@dataclass(frozen=True)
class Pool:
    """Where functions are called. submit: as of an executor; the function's first argument is what all calls share, which each process is
    given once. width: how many calls run at once, now; 0 of a cluster that has lost its last worker. crashes: what a future raises whose
    process died; is_broken: whether the pool is of no use after that. ending: how, of such an error; empty where nobody knows.
    """

    submit: Callable[..., Future[Any]]
    width: Callable[[], int]
    crashes: tuple[type[BaseException], ...]
    is_broken: bool
    ending: Callable[[BaseException], str] = lambda error: ""


@contextmanager
def local(plan: Plan, settings: Settings, shared: Any) -> Iterator[Pool]:
    """Processes of this host, as many as the plan has workers, with its BLAS threads each. They die with this one.

    Forked, they have what is imported here; where a fork would lose something they start anew, and one line says why. Their temporary
    directory ends with the pool: they are killed, so that no library cleans up after itself.
    """
    reason = preload.lost_in_a_fork()
    if reason is not None:
        log.info("fleet: processes start anew, and import what they need: %s", reason)
    with (
        tempfile.TemporaryDirectory(prefix="fleet-", ignore_cleanup_errors=True) as scratch,
        (forked if reason is None else started)(plan, {**plan.thread_environment(settings), "TMPDIR": scratch}, shared) as pool,
    ):
        yield pool


@contextmanager
def forked(plan: Plan, variables: Mapping[str, str], shared: Any) -> Iterator[Pool]:
    """The pool of Python's own library. Before the first call nothing is forked, and then all: what is shared is not even pickled."""
    before = set(multiprocessing.active_children())
    initial = (os.getpid(), shared, variables, plan.threads)
    executor = ProcessPoolExecutor(plan.workers, multiprocessing.get_context("fork"), _adapt, initial)
    children: set[BaseProcess] = set()

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future = executor.submit(_with_shared, function, *arguments)
        children.update(set(multiprocessing.active_children()) - before)
        return future

    try:
        yield Pool(submit, lambda: plan.workers, (BrokenProcessPool,), True, lambda error: _codes(children))
    finally:
        for process in children:
            _kill(process)
        executor.shutdown()


@contextmanager
def started(plan: Plan, variables: Mapping[str, str], shared: Any) -> Iterator[Pool]:
    """loky's pool: processes of programs of their own."""
    process_executor.kill_process_tree = _end  # loky's own hangs where there is neither psutil nor pgrep, as in the image
    executor = loky.ProcessPoolExecutor(plan.workers, initializer=_begin, initargs=(os.getpid(), shared), env=variables)
    try:
        yield Pool(
            lambda function, *arguments: executor.submit(_with_shared, function, *arguments),
            lambda: plan.workers,
            (BrokenProcessPool,),
            True,
            _told_codes,
        )
    finally:
        executor.shutdown(kill_workers=True)


@contextmanager
def dask(scheduler: str, file: Path, shared: Any, patience: float = SCHEDULER_SECONDS) -> Iterator[Pool]:
    """The workers of a Dask cluster, which must see the directory of `file` under the same path. While they work, what they share is in it.

    Raises TrainingError where `distributed` is not installed, the scheduler or a first worker does not answer in `patience` seconds,
    a worker has no such package as this one, or does not see the directory.
    """
    try:
        import distributed
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise TrainingError(
            f"FLEET_DASK_SCHEDULER={scheduler} asks for Dask, but {error.name} is not installed in this image: add `distributed` to it"
        ) from None
    _await_answer(scheduler, patience)
    connect: Any = distributed.Client  # untyped
    try:
        client = connect(scheduler, timeout=patience, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"the Dask scheduler at {scheduler} did not answer within {patience:g} s: {error}") from None
    with client, _written(file, shared):
        _await_worker(client, scheduler, patience)
        _refuse_blind(client, file)
        executor = client.get_executor(pure=False)
        yield Pool(
            lambda function, *arguments: executor.submit(pickle.loads, pickle.dumps(_Call(_with_file, (str(file), function, *arguments)))),
            lambda: sum(client.nthreads().values()),
            (KilledWorker,),
            False,
        )


@contextmanager
def _written(file: Path, shared: Any) -> Iterator[None]:
    """A worker that joins later, or takes the place of another, finds it too: what Dask itself scatters is lost with a worker."""
    try:
        file.write_bytes(pickle.dumps(shared))
        yield
    finally:
        file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Call:
    """A call that is made where it is unpickled: in the worker. A Dask scheduler, which looks into a task, need not know this package."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def _await_answer(scheduler: str, patience: float) -> None:
    """Returns when somebody listens there: a client that finds nobody leaves a thread behind."""
    host, _, port = scheduler.rpartition("/")[2].rpartition(":")
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), patience).close()
        except OSError as error:
            if time.monotonic() + PAUSE > deadline:
                raise TrainingError(f"the Dask scheduler at {scheduler} did not answer within {patience:g} s: {error}") from None
            time.sleep(PAUSE)


def _await_worker(client: Any, scheduler: str, patience: float) -> None:
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError:
        raise TrainingError(f"the Dask scheduler at {scheduler} has no worker after {patience:g} s") from None


def _refuse_blind(client: Any, file: Path) -> None:
    """A directory of the same name that is another one would take the artifacts and nobody would ever see them: so a file is looked for."""
    for worker, answer in client.run(_sees, str(file), on_error="return").items():
        if answer is False:
            raise TrainingError(
                f"the Dask worker {worker} does not see {file.parent}: all workers must share the file system with this host, "
                "under the same paths"
            )
        if answer is not True:
            raise TrainingError(f"the Dask worker {worker} cannot run this program ({answer!r}): start workers from this image")


def _sees(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - a plain function of a plain string: the worker needs nothing else


def _told_codes(error: BaseException) -> str:
    found = re.search(r"\{(.+?)\}", str(error))
    return found[1] if found else ""


def _codes(children: Iterable[BaseProcess]) -> str:
    """The exit codes of those that have died, as loky writes them; those that Python has ended after them are not meant."""
    deadline = time.monotonic() + 1.0
    while not (codes := {process.exitcode for process in children} - {None, 0, -signal.SIGTERM}) and time.monotonic() < deadline:
        time.sleep(0.01)  # Python's own thread is about to see it
    return ", ".join(f"{signal_name(-code)}({code})" if code < 0 else f"EXIT({code})" for code in sorted(filter(None, codes)))


def _end(process: BaseProcess) -> None:
    _kill(process)
    process.join()


def _kill(process: BaseProcess) -> None:
    """Ends a process of the pool, and what a fit has started in it. One that has ended is left: its number may be a stranger's."""
    if process.exitcode is not None:
        return
    for pid in reversed(_tree(process.pid or 0)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:  # grows while it is walked
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def _with_shared(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a process of a local pool."""
    return function(*_shared, *arguments)


def _with_file(file: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a Dask worker."""
    return function(_read(file), *arguments)


@lru_cache(maxsize=1)
def _read(file: str) -> Any:
    return pickle.loads(Path(file).read_bytes())  # noqa: S301 - this job wrote it


def _adapt(parent: int, shared: Any, variables: Mapping[str, str], threads: int) -> None:
    """In a forked process: its share of the BLAS threads, no handlers but its own, and memory that stays shared."""
    _begin(parent, shared)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # by the job's own handler a fit's alarm would end the job
    adopt(variables)
    tempfile.tempdir = None  # it is looked up anew
    if variables.keys() & THREAD_VARIABLES:
        threadpoolctl.threadpool_limits(threads)
    gc.freeze()


def _begin(parent: int, shared: Any) -> None:
    """In a process of the pool: it dies with the one that started it, and leaves to it what a signal to the whole group means."""
    _shared[:] = [shared]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in GROUPS:
        signal.signal(number, lambda number, frame: None)  # a program that a fit starts has the default again; SIG_IGN would stay
    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, GROUPS)  # Python forgets what comes before a forked process is ready
    os.register_at_fork(before=block, after_in_parent=_unblock, after_in_child=_obey)


def _obey() -> None:
    """In a process that a fit has forked: what would end it ends it."""
    for number in GROUPS:
        signal.signal(number, signal.SIG_DFL)
    _unblock()


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUPS)
