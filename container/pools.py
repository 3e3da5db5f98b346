"""Where a fleet's fits run: in processes of this host (loky, joblib's own), or on a Dask cluster. Knows nothing of keys and models."""

import ctypes
import os
import pickle
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from joblib.externals import loky
from joblib.externals.loky import process_executor

from container.resources import Plan
from container.settings import Settings
from container.training_job import TrainingError

SCHEDULER_SECONDS = 30.0
"""How long a Dask scheduler, and its first worker, may take to answer."""

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2)."""


@dataclass(frozen=True)
class Pool:
    """Where functions are called. submit: as of an executor. width: how many calls run at once, now. crashes: what a future raises whose
    process died; is_broken: whether the pool is of no use after that.
    """

    submit: Callable[..., Future[Any]]
    width: Callable[[], int]
    crashes: tuple[type[BaseException], ...]
    is_broken: bool


@contextmanager
def local(plan: Plan, settings: Settings) -> Iterator[Pool]:
    """Processes of this host, as many as the plan has workers, with its BLAS threads each. They die with this one."""
    process_executor.kill_process_tree = _end  # loky's own hangs where there is neither psutil nor pgrep, as in the image
    variables = plan.thread_environment(settings) | {"PYTHONHASHSEED": "0"}  # in which order a set is pickled is in its bytes
    executor = loky.ProcessPoolExecutor(plan.workers, initializer=_obey, initargs=(os.getpid(),), env=variables)
    try:
        yield Pool(executor.submit, lambda: plan.workers, (loky.BrokenProcessPool,), True)
    finally:
        executor.shutdown(kill_workers=True)


@contextmanager
def dask(scheduler: str, directory: Path, patience: float = SCHEDULER_SECONDS) -> Iterator[Pool]:
    """The workers of a Dask cluster, which must see `directory` under the same path.

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
    connect: Any = distributed.Client  # untyped
    try:
        client = connect(scheduler, timeout=patience, set_as_default=False)
    except (OSError, ValueError) as error:
        raise TrainingError(f"the Dask scheduler at {scheduler} did not answer within {patience:g} s: {error}") from None
    with client:
        _await_worker(client, scheduler, patience)
        _refuse_blind(client, directory)
        executor = client.get_executor(pure=False)
        yield Pool(
            lambda function, *arguments: executor.submit(pickle.loads, pickle.dumps(_Call(function, arguments))),
            lambda: max(1, sum(client.nthreads().values())),
            (KilledWorker,),
            False,
        )


@dataclass(frozen=True)
class _Call:
    """A call that is made where it is unpickled: in the worker. A Dask scheduler, which looks into a task, need not know this package."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def _await_worker(client: Any, scheduler: str, patience: float) -> None:
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError:
        raise TrainingError(f"the Dask scheduler at {scheduler} has no worker after {patience:g} s") from None


def _refuse_blind(client: Any, directory: Path) -> None:
    """A directory of the same name that is another one would take the artifacts and nobody would ever see them: so a file is looked for."""
    probe = directory / f".{uuid.uuid4().hex}.probe"
    probe.touch()
    try:
        seen = client.run(_sees, str(probe), on_error="return")
    finally:
        probe.unlink()
    for worker, answer in seen.items():
        if answer is False:
            raise TrainingError(
                f"the Dask worker {worker} does not see {directory}: all workers must share the file system with this host, "
                "under the same paths"
            )
        if answer is not True:
            raise TrainingError(f"the Dask worker {worker} cannot run this program ({answer!r}): start workers from this image")


def _sees(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - a plain function of a plain string: the worker needs nothing else


def _end(process: BaseProcess) -> None:
    """Ends a process of the pool, and what a fit has started in it."""
    for pid in reversed(_tree(process.pid or 0)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.join()


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:  # grows while it is walked
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def _obey(parent: int) -> None:
    """In a process of the pool: it dies with the one that started it, and leaves to it what a signal to the whole group means."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
