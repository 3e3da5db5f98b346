"""The model in the parent of the workers, where it can live through a fork; else in each worker. One line says why."""

import gc
import importlib
import logging
import os
import select
import signal
import sys
import threading
from pathlib import Path

from container import events, predictor, resources, spared
from container.errors import StartupError
from container.predictor import Predictor
from container.settings import Settings, environment

log = logging.getLogger(__name__)

TRIAL_SECONDS = 60.0
"""How long the trial prediction in a forked child may take. A library that cannot live through a fork hangs in it for ever."""


def load(settings: Settings) -> Predictor:
    """The predictor of the model directory, ready to be forked or, with preload=never, to be used here.

    Where the model turns out not to live through a fork, this process starts again as its own successor (same pid) with
    preload=never: what the library has set up here cannot be undone in any other way. A model that cannot be loaded ends
    the process; the supervisor is told the cause.
    """
    try:
        before, loaded = resources.rss(), predictor.load(settings)
        size = max(0, resources.rss() - before)
        if settings.preload == "never":
            _refuse_too_many(settings, size)
            log.info("loaded %s in %.2f s, %d MB, in this worker", loaded.source, loaded.load_seconds, size >> 20)
            return loaded
        reason = _unsafe(loaded) if settings.preload == "auto" else None
        if reason:
            log.warning("the model is loaded in each worker: %s", reason)
            _start_again()
        log.info("loaded %s in %.2f s, %d MB, shared by the workers", loaded.source, loaded.load_seconds, size >> 20)
        gc.collect()
        gc.freeze()
        return loaded
    except StartupError as error:
        if error.__cause__ is not None:
            log.error("why:", exc_info=error.__cause__)
        events.tell(settings.run_dir, events.FAILED, cause=str(error))
        sys.exit(1)


def libraries(settings: Settings) -> None:
    """What models of many are made with, imported before the fork: so no load pays for it, and all shards share it."""
    spared.leave_out_pandas()
    for name in settings.preload_libraries:
        try:
            importlib.import_module(name)
        except ImportError as error:
            log.warning("%s is not imported before the fork (MODEL_SERVER_PRELOAD_LIBRARIES): %s", name, error)
    gc.collect()
    gc.freeze()


def _start_again() -> None:
    sys.stdout.flush()
    os.execve(  # noqa: S606 - the very program that runs here
        sys.executable, sys.orig_argv, environment(MODEL_SERVER_PRELOAD="never")
    )


def _refuse_too_many(settings: Settings, size: int) -> None:
    granted, workers = resources.granted(), settings.workers or 1
    if size * workers > granted.memory:
        raise StartupError(
            f"{workers} workers with {size >> 20} MB of model each do not fit into {granted.memory >> 20} MB ({granted.memory_from}): "
            f"at most {max(1, granted.memory // max(size, 1))} do; set SAGEMAKER_MODEL_SERVER_WORKERS"
        )


def lost_in_a_fork() -> str | None:
    """What this process has that a fork would lose; None if nothing is seen."""
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threads:
        return f"it has started threads ({', '.join(threads[:3])}), which a fork would lose"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "it has initialised CUDA, which does not work in a forked process"
    native = len(list(Path("/proc/self/task").iterdir())) - 1 - _blas_threads()
    if native > 0:
        return f"a library has started {native} native thread{'s' * (native > 1)}, which a fork would lose"
    return None


def _unsafe(loaded: Predictor) -> str | None:
    """Why the model cannot live through a fork; None if nothing speaks against it."""
    return lost_in_a_fork() or (_trial(loaded) if loaded.warmup is not None else None)


def _blas_threads() -> int:
    """Threads of OpenBLAS, which joins them before a fork and starts them again after it."""
    if "numpy" not in sys.modules:
        return 0
    from threadpoolctl import threadpool_info

    return sum(int(pool["num_threads"]) - 1 for pool in threadpool_info() if pool.get("internal_api") == "openblas")


def _trial(loaded: Predictor) -> str | None:
    """Makes the warm-up prediction in a forked child: what hangs or crashes there would hang or crash every worker."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            loaded.warm_up()
        except StartupError:
            pass  # not the fork's fault: each worker will say it
        finally:
            os._exit(0)
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], TRIAL_SECONDS)
    os.close(handle)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not ended:
        return f"a trial prediction in a forked process did not end within {TRIAL_SECONDS:.0f} s"
    return (
        f"a trial prediction in a forked process ended with {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else None
    )
