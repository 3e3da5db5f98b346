"""The loaded models of one process: load, get, unload. Knows nothing of HTTP, nor of other processes."""

import contextlib
import itertools
import logging
import operator
import os
import select
import signal
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import gevent
from gevent.event import Event
from gevent.lock import Semaphore
from gevent.threadpool import ThreadPool

from container import events, memory, predictor, resources, user_code
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
"""Loads on threads at the same time; the others wait, and hold no memory meanwhile."""
SHARE = 2
"""A load may take 1/SHARE of the memory that is left, unless it was measured, and holds it meanwhile: others load at the same time."""
ROOM = 24 * 2**20
"""Bytes that any load may take of this process: the stack of a new thread alone is 8 MB."""
GROWTH = 3
"""What a model takes in memory at most, in bytes for each byte of its artifact; unless it is measured."""
LARGE = 8
"""A model that may take 1/LARGE of all memory is worth a trial, where it might not fit: for a smaller one, others make room sooner."""
MINIMUM = 64 * 1024
"""Bytes that any model takes besides its artifact."""
WORTH_RETURNING = 2**21
"""So many bytes may be left behind by models that are gone before they are looked for, which takes milliseconds."""
QUIET_SECONDS = 1.0
"""After so long without another the few that were unloaded last are looked for, too."""
RESIDUE = 8 * 1024
"""Bytes that a model may leave behind, whatever it gave back."""
TRIAL_SECONDS = 300.0
"""How long a load may take whose memory is measured; the platform waits 360 s for this and the load itself."""
ANSWER_BYTES = 32
"""More than a trial load ever says, all at once."""
OUT_OF_MEMORY = b"-"
"""What a trial load says if Python found no memory."""
SPENT = 8 * 2**20
"""Bytes that a process without a model may have beyond what it began with; with more, one that begins is cheaper than what is left."""
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
    """changes: a number that grows with everything that `describe` tells.

    load(directory) -> Predictor comes as an argument, so that a model may also live in a process of its own. trial: the same in the process
    that calls it, where what it takes is measured; None if that is what `load` does."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        budget: Budget,
        load: Callable[[Path], Predictor] | None = None,
        trial: Callable[[Path], Predictor] | None = None,
    ) -> None:
        self._settings, self._ledger, self._budget = settings, ledger, budget
        self._always_on_threads = load is not None
        self._load_predictor = load or (lambda directory: predictor.load(settings, directory))
        self._trial = trial
        self._models: OrderedDict[str, Model] = OrderedDict()  # in the order of their last use
        self._owed = 0
        self._returning: gevent.Greenlet[[], None] | None = None
        self.changes = 0
        self._loading: dict[str, _Loading] = {}
        self._threads, self._turns = ThreadPool(PARALLEL_LOADS), Semaphore(PARALLEL_LOADS)
        self._bound = memory.Bound()
        self._began_with = resources.written()

    def __contains__(self, name: str) -> bool:
        return name in self._ledger.models or name in self._loading

    def __len__(self) -> int:
        return len(self._models)

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left here but memory that models which are gone have left behind and no allocator gives back."""
        if self._ledger.models or self._loading or self._returning is not None:
            return False
        return resources.written() - self._began_with > SPENT

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
        if model is not None and not model.endpoint.predictor.is_dead():
            self._models.move_to_end(name)
            self.changes += 1
            return model
        url = self.url(name)
        loading = self._loading.get(name)
        if loading is not None:
            loading.done.wait()
            if loading.error is not None:
                raise loading.error
        else:
            self._models.pop(name, None)
            self._load(name, url, model)
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
        self.changes += 1
        if model is not None:
            memory.collect_rarely(len(self._models))
            self._await_idle(model)
            size, close, before = model.bytes, model.endpoint.predictor.close, resources.written()
            del model
            close()
            if size > SMALL:
                memory.give_back()
                size -= min(size, max(0, before - resources.written()))
            self._reclaim(size)
        return url

    def describe(self, most: int) -> list[Model]:
        """The models that were used last, `most` of them."""
        return list(itertools.islice(reversed(self._models.values()), most))

    def _load(self, name: str, url: str, predecessor: Model | None = None) -> None:
        """predecessor: the same model, whose process has ended."""
        loading = self._loading[name] = _Loading(url)
        known, before = name in self._ledger.models, resources.written()
        try:
            started = time.perf_counter()
            directory = _directory(name, url)
            size = artifact_bytes(directory)
            loaded = self._load_within_budget(name, directory, size)
            try:
                self._take_in(name, url, loading)
            except BaseException:
                loaded.close()
                del loaded
                raise
            model = Model(name, url, Endpoint(self._settings, loaded), size, time.perf_counter() - started)
            if predecessor is not None:
                model.loads, model.hits, model.last_use = predecessor.loads + 1, predecessor.hits, predecessor.last_use
            self._models[name] = model
            self.changes += 1
            memory.collect_rarely(len(self._models))
            log.info("model %r is loaded in %.3f s: %s", name, model.load_seconds, loaded.source)  # nginx's line has no name
        except BaseException as error:
            self._reclaim(max(0, resources.written() - before))
            loading.error = ClientError(str(error)) if isinstance(error, StartupError) else error
            if known and (loading.unwanted or isinstance(error, StartupError)):
                self._ledger.remove(name)
            if loading.error is error:
                raise
            raise loading.error from error
        finally:
            del self._loading[name]
            loading.done.set()

    def _take_in(self, name: str, url: str, loading: _Loading) -> None:
        """The last step of a load: from here on the model is listed."""
        if loading.unwanted:
            refusal = ModelNotFound if name in self._ledger.models else Conflict
            raise refusal(f"model {name!r} was unloaded while it was being loaded")
        if name not in self._ledger.models:
            try:
                self._ledger.add(name, url)
            except OSError as error:
                raise InsufficientStorage(f"model {name!r} cannot be put on the list of models: {error.strerror}") from error

    def _load_within_budget(self, name: str, directory: Path, size: int) -> Predictor:
        has_code = user_code.find(self._settings, model_dir=directory) is not None
        if size <= SMALL and not has_code and not self._always_on_threads:
            return self._load_reserved(name, directory, size, operator.call)
        with self._turns:  # first, or those that wait for a thread would hold what those that have one may need
            return self._load_reserved(name, directory, size, self._beside)

    def _load_reserved(self, name: str, directory: Path, size: int, call: Callable[..., Predictor]) -> Predictor:
        needed = size * GROWTH + MINIMUM
        if not self._is_worth_a_trial(size, needed):
            try:
                with self._budget.reserve(needed, f"model {name!r}", SHARE) as held, self._bound.on(max(held, ROOM)):
                    return call(_clear_of_memory, self._load_predictor, directory)
            except MemoryError:  # it takes much more than its artifact shows
                memory.give_back()
        taken = self._measure(name, directory)
        try:
            with self._budget.reserve(taken, f"model {name!r}"):
                return call(_clear_of_memory, self._load_predictor, directory)
        except MemoryError:
            left = max(0, self._budget.left())
            raise InsufficientStorage(
                f"model {name!r} needs more than the {taken >> 20} MB of memory that it took in a trial, and {left >> 20} MB are left"
            ) from None

    def _is_worth_a_trial(self, size: int, needed: int) -> bool:
        """Whether to find out what a load takes before anything is said. A trial without a chance would cost all others their caches."""
        total = self._budget.total
        if needed <= total // LARGE:
            return False
        left = self._budget.left()
        return left < needed and (size <= left or left > total // 2)

    def _measure(self, name: str, directory: Path) -> int:
        return int(self._beside(measure, self._trial or self._load_predictor, directory, name, self._budget.left))

    def _beside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a function on a thread, while requests are answered; gevent would print what it raises, whoever catches it."""

        def outcome() -> tuple[Any, BaseException | None]:
            try:
                return function(*arguments), None
            except BaseException as error:
                return None, error

        result, error = self._threads.apply(outcome)
        if error is not None:
            raise error
        return result

    def _reclaim(self, size: int) -> None:
        """What a model leaves may hang in cycles, and what is freed stays with the C library: both are looked for once it may be much.

        size: bytes that it has not given back, as far as anybody knows.
        """
        self._owed += size + RESIDUE
        if self._returning is not None:
            self._returning.kill(block=False)
        if self._owed >= WORTH_RETURNING:
            self._return_memory()
        else:
            self._returning = gevent.spawn_later(QUIET_SECONDS, self._return_memory)

    def _return_memory(self) -> None:
        self._owed, self._returning = 0, None
        memory.collect()
        memory.give_back()

    def _await_idle(self, model: Model) -> None:
        if model.active:
            model.idle = Event()
            if not model.idle.wait(UNLOAD_SECONDS):
                log.error("model %r is unloaded with %d requests in flight after %.0f s", model.name, model.active, UNLOAD_SECONDS)


def _directory(name: str, url: str) -> Path:
    try:
        if Path(url).is_dir():
            return Path(url)
    except (OSError, ValueError):  # too long, or with a NUL
        pass
    raise StartupError(f"{url!r} is not there, or is no directory: the url of model {name!r} must be one")


def measure(load: Callable[[Path], Predictor], directory: Path, name: str, left: Callable[[], int]) -> int:
    """Bytes that a load takes, found out in a forked child: what does not fit ends the child, which the kernel is told to choose.

    left: tells the bytes that are left. Raises InsufficientStorage if the child ran out of memory or there is none, ClientError if it died
    of something else. A load that fails in another way measures nothing: the real one will say why.
    """
    free, shared = left(), resources.rss()
    with contextlib.ExitStack() as failing:
        try:
            reading, writing = os.pipe()
            for end in (reading, writing):
                failing.callback(os.close, end)
            child = os.fork()
        except OSError as error:  # processes and open files are the container's to share out, as memory is
            raise InsufficientStorage(f"no process can be started to measure model {name!r}: {error.strerror}") from error
        failing.pop_all()
    if child == 0:
        _trial(load, directory, writing)
    os.close(writing)
    said = select.poll()
    said.register(reading, select.POLLIN)
    in_time = bool(said.poll(TRIAL_SECONDS * 1000))
    answer = os.read(reading, ANSWER_BYTES) if in_time else b""  # not to its end, which a process that the model has forked would hold up
    os.close(reading)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    if not in_time:
        raise StartupError(f"model {name!r} was not loaded within {TRIAL_SECONDS:.0f} s")
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
        os.closerange(3, writing)  # the shard's connections: nginx would not see them close
        os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
        resources.be_killed(resources.FIRST)
        memory.Bound.off()
        before = resources.written()
        kept = _clear_of_memory(load, directory)
        os.write(writing, b"%d" % max(0, resources.written() - before))
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
        if memory.ran_out(error):
            raise MemoryError(str(error)) from None
        raise


def artifact_bytes(directory: Path) -> int:
    """Bytes of all files of an artifact."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
