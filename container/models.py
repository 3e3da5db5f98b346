"""The loaded models of one process: load, get, unload. Knows nothing of HTTP, nor of other processes."""

import gc
import logging
import os
import signal
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from gevent.event import Event
from gevent.threadpool import ThreadPool

from container import events, memory, predictor, resources
from container.errors import ClientError, Conflict, InsufficientStorage, ModelNotFound, StartupError, Unavailable
from container.exchange import Endpoint
from container.memory import Budget
from container.predictor import Predictor
from container.registry import Ledger
from container.settings import Settings

log = logging.getLogger(__name__)

SMALL = 256 * 1024
"""Bytes of an artifact that is loaded between two requests; a larger one, or one with code, is loaded on a thread beside them."""
PARALLEL_LOADS = 2
"""Loads on threads at the same time; the others wait."""
SHARE = 2
"""A load may take 1/SHARE of the memory that is left, unless it was measured: others load at the same time."""
GROWTH = 3
"""What a model takes in memory at most, in bytes for each byte of its artifact; unless it is measured."""
MINIMUM = 64 * 1024
"""Bytes that any model takes besides its artifact."""
WORTH_RETURNING = 2**20
"""Bytes of an artifact whose unload is followed by a walk through the C library's heap, which takes milliseconds."""
OUT_OF_MEMORY = b"-"
"""What a trial load says if Python found no memory."""
UNLOAD_SECONDS = 300.0
"""How long an unload waits for the model's requests in flight; the platform waits 360 s."""


@dataclass(eq=False)
class Model:
    """A loaded model. bytes: of its artifact, as a measure of what it takes. active: requests in flight."""

    name: str
    url: str
    endpoint: Endpoint
    bytes: int
    load_seconds: float
    loads: int = 1
    hits: int = 0
    last_use: float = 0.0
    active: int = 0
    idle: Event | None = None

    def enter(self, most: int) -> None:
        """A request begins to wait for this model. Raises Unavailable if `most` do already."""
        if self.active >= most:
            raise Unavailable(f"{self.active} requests wait for this model already: the limit is MODEL_SERVER_MAX_QUEUE")
        self.active += 1
        self.hits += 1
        self.last_use = time.time()

    def leave(self) -> None:
        self.active -= 1
        if self.idle is not None and not self.active:
            self.idle.set()


@dataclass(eq=False)
class _Loading:
    url: str
    done: Event = field(default_factory=Event)
    unwanted: bool = False
    error: BaseException | None = None


class Models:
    """load(directory) -> Predictor comes as an argument, so that a model may also live in a process of its own."""

    def __init__(self, settings: Settings, ledger: Ledger, budget: Budget, load: Callable[[Path], Predictor] | None = None) -> None:
        self._settings, self._ledger, self._budget = settings, ledger, budget
        self._always_on_threads = load is not None
        self._load_predictor = load or (lambda directory: predictor.load(settings, directory))
        self._models: dict[str, Model] = {}
        self._loading: dict[str, _Loading] = {}
        self._threads = ThreadPool(PARALLEL_LOADS)
        self._bound = memory.Bound()

    def __contains__(self, name: str) -> bool:
        return name in self._ledger.models or name in self._loading

    def __len__(self) -> int:
        return len(self._models)

    def load(self, name: str, url: str) -> None:
        """Loads a model. Raises Conflict if the name is loaded or being loaded, InsufficientStorage if memory is short,
        ClientError if the artifact cannot be loaded. Returns when the model can be asked."""
        loading = self._loading.get(name)
        if loading is not None:
            raise Conflict(f"model {name!r} is being {'unloaded' if loading.unwanted else 'loaded'}")
        if name in self:
            raise Conflict(f"model {name!r} is loaded already")
        self._load(name, url)

    def get(self, name: str) -> Model:
        """A model to ask; one that a predecessor of this process had loaded is loaded again. Raises ModelNotFound."""
        model = self._models.get(name)
        if model is not None:
            if not model.endpoint.predictor.is_dead():
                return model
            del self._models[name]
            model.endpoint.predictor.close()
        url = self.url(name)
        loading = self._loading.get(name)
        if loading is None:
            self._load(name, url)
        else:
            loading.done.wait()
        return self.get(name)

    def url(self, name: str) -> str:
        """The url of a loaded model. Raises ModelNotFound."""
        if name not in self._ledger.models:
            raise ModelNotFound(f"model {name!r} is not loaded")
        return self._ledger.models[name]

    def unload(self, name: str) -> str:
        """Unloads a model when its requests in flight have ended; returns its url when its memory is back. Raises ModelNotFound.

        One that is being loaded is unloaded as soon as it is; its load then ends in Conflict.
        """
        loading = self._loading.get(name)
        if loading is not None:
            loading.unwanted = True
            loading.done.wait()
            return loading.url
        url = self.url(name)
        self._ledger.remove(name)
        model = self._models.pop(name, None)
        if model is not None:
            self._await_idle(model)
            size, trace = model.bytes, weakref.ref(model.endpoint.predictor)
            close = model.endpoint.predictor.close
            del model
            close()
            _reclaim(size, trace)
        return url

    def describe(self, most: int) -> list[Model]:
        """The models that were used last, `most` of them."""
        return sorted(self._models.values(), key=lambda model: model.last_use, reverse=True)[:most]

    def _load(self, name: str, url: str) -> None:
        loading = self._loading[name] = _Loading(url)
        known = name in self._ledger.models
        try:
            started = time.perf_counter()
            directory = Path(url)
            size = artifact_bytes(directory)
            loaded = self._load_within_budget(name, directory, size)
            if loading.unwanted:
                loaded.close()
                trace = weakref.ref(loaded)
                del loaded
                _reclaim(size, trace)
                raise Conflict(f"model {name!r} was unloaded while it was being loaded")
            self._models[name] = Model(name, url, Endpoint(self._settings, loaded), size, time.perf_counter() - started)
            if not known:
                self._ledger.add(name, url)
        except StartupError as error:
            if known:
                self._ledger.remove(name)
            raise ClientError(str(error)) from error
        except BaseException:
            if known and loading.unwanted:
                self._ledger.remove(name)
            raise
        finally:
            del self._loading[name]
            loading.done.set()

    def _load_within_budget(self, name: str, directory: Path, size: int) -> Predictor:
        if not directory.is_dir():
            raise StartupError(f"{directory} is not there, or is no directory: the url of model {name!r} must be one")
        needed = size * GROWTH + MINIMUM
        if needed > self._budget.left() // 4:
            needed = self._measure(name, directory)
        try:
            return self._load_reserved(name, directory, size, needed)
        except MemoryError:
            pass  # it takes more than its artifact shows
        memory.give_back()
        try:
            return self._load_reserved(name, directory, size, self._measure(name, directory))
        except MemoryError as error:
            raise InsufficientStorage(f"model {name!r} ran out of memory while it was being loaded") from error

    def _load_reserved(self, name: str, directory: Path, size: int, needed: int) -> Predictor:
        """Raises MemoryError where the load takes much more than it was thought to need."""
        with self._budget.reserve(needed, f"model {name!r}") as left, self._bound.on(max(needed, left // SHARE)):
            if size <= SMALL and not self._always_on_threads and not (directory / "code").is_dir():
                loaded = _clear_of_memory(self._load_predictor, directory)
            else:
                loaded = self._threads.apply(_clear_of_memory, (self._load_predictor, directory))
        gc.freeze()  # or each collection would walk all models
        return loaded

    def _measure(self, name: str, directory: Path) -> int:
        return int(self._threads.apply(measure, (self._load_predictor, directory, name, self._budget.left)))

    def _await_idle(self, model: Model) -> None:
        if model.active:
            model.idle = Event()
            if not model.idle.wait(UNLOAD_SECONDS):
                log.error("model %r is unloaded with %d requests in flight after %.0f s", model.name, model.active, UNLOAD_SECONDS)


def measure(load: Callable[[Path], Predictor], directory: Path, name: str, left: Callable[[], int]) -> int:
    """Bytes that a load takes, found out in a forked child: what does not fit ends the child, which the kernel is told to choose.

    left: tells the bytes that are left. Raises InsufficientStorage if the child ran out of memory, ClientError if it died of something
    else. A load that fails in another way measures nothing: the real one will say why.
    """
    free, shared = left(), resources.rss()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _trial(load, directory, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        answer = answers.read()
    _, status, usage = os.wait4(child, 0)
    if answer == OUT_OF_MEMORY or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        taken = max(free, usage.ru_maxrss * 1024 - shared)
        raise InsufficientStorage(f"model {name!r} needs more than {taken >> 20} MB of memory, and {free >> 20} MB are left")
    if not answer:
        code = os.waitstatus_to_exitcode(status)
        raise ClientError(
            f"model {name!r} ends the process that loads it, with {events.signal_name(-code) if code < 0 else f'code {code}'}"
        )
    return int(answer) * 5 // 4


def _trial(load: Callable[[Path], Predictor], directory: Path, writing: int) -> NoReturn:
    """The child: writes the bytes that the load took."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
        memory.Bound.off()
        before = resources.private()
        kept = _clear_of_memory(load, directory)
        os.write(writing, b"%d" % max(0, resources.private() - before))
        del kept
    except MemoryError:
        os.write(writing, OUT_OF_MEMORY)
    except BaseException:
        os.write(writing, b"0")
    finally:
        os._exit(0)


def _clear_of_memory(load: Callable[[Path], Predictor], directory: Path) -> Predictor:
    """Loads; what failed for want of memory is a MemoryError, and holds nothing of what was loaded."""
    try:
        return load(directory)
    except (StartupError, MemoryError) as error:
        if MemoryError in (type(error), type(error.__cause__)):
            raise MemoryError(str(error)) from None
        raise


def artifact_bytes(directory: Path) -> int:
    """Bytes of all files of an artifact."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _reclaim(size: int, trace: "weakref.ref[Any]") -> None:
    """After the last name of a model is gone: past the collector if it holds itself in cycles, and back to the system if it is much."""
    if trace() is not None:
        memory.collect()
    if size >= WORTH_RETURNING:
        memory.give_back()
