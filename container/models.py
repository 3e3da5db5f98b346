"""The loaded models of one process: load, get, unload. Knows nothing of HTTP, nor of other processes."""

import gc
import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gevent.event import Event
from gevent.threadpool import ThreadPool

from container import memory, predictor, resources
from container.errors import ClientError, Conflict, InsufficientStorage, ModelNotFound, ServingError, StartupError
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
GROWTH = 3
"""What a model takes in memory at most, in bytes for each byte of its artifact; unless it is measured."""
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

    def enter(self) -> None:
        self.active += 1
        self.hits += 1
        self.last_use = time.time()

    def leave(self) -> None:
        self.active -= 1
        if self.idle is not None and not self.active:
            self.idle.set()


@dataclass(eq=False)
class _Loading:
    done: Event = field(default_factory=Event)
    unwanted: bool = False
    error: BaseException | None = None


class Models:
    """load(url) -> Predictor comes as an argument, so that a model may also live in a process of its own."""

    def __init__(self, settings: Settings, ledger: Ledger, budget: Budget, load: Callable[[Path], Predictor] | None = None) -> None:
        self._settings, self._ledger, self._budget = settings, ledger, budget
        self._load_predictor = load or (lambda directory: predictor.load(settings, directory, private=True))
        self._models: dict[str, Model] = {}
        self._loading: dict[str, _Loading] = {}
        self._threads = ThreadPool(PARALLEL_LOADS)

    def __len__(self) -> int:
        return len(self._models)

    def load(self, name: str, url: str) -> None:
        """Loads a model. Raises Conflict if the name is loaded or being loaded, InsufficientStorage if memory is short,
        ClientError if the artifact cannot be loaded. Returns when the model can be asked."""
        if name in self._models or name in self._loading or name in self._ledger.models:
            raise Conflict(f"model {name!r} is {'being loaded' if name in self._loading else 'loaded already'}")
        self._load(name, url)

    def get(self, name: str) -> Model:
        """A model to ask; one that a predecessor of this process had loaded is loaded again. Raises ModelNotFound."""
        model = self._models.get(name)
        if model is not None:
            return model
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

    def unload(self, name: str) -> None:
        """Unloads a model when its requests in flight have ended; returns when its memory is back. Raises ModelNotFound.

        One that is being loaded is unloaded as soon as it is; its load then ends in Conflict.
        """
        loading = self._loading.get(name)
        if loading is not None:
            loading.unwanted = True
            loading.done.wait()
            return
        self.url(name)
        self._ledger.remove(name)
        model = self._models.pop(name, None)
        if model is not None:
            self._await_idle(model)
            size, trace = model.bytes, weakref.ref(model.endpoint.predictor)
            close = model.endpoint.predictor.close
            del model
            close()
            _reclaim(size, trace)

    def describe(self, most: int) -> list[Model]:
        """The models that were used last, `most` of them."""
        return sorted(self._models.values(), key=lambda model: model.last_use, reverse=True)[:most]

    def _load(self, name: str, url: str) -> None:
        loading = self._loading[name] = _Loading()
        known = name in self._ledger.models
        try:
            started = time.perf_counter()
            directory = Path(url)
            size = artifact_bytes(directory)
            endpoint = Endpoint(self._settings, self._load_within_budget(name, directory, size))
            if loading.unwanted:
                raise Conflict(f"model {name!r} was unloaded while it was being loaded")
            self._models[name] = Model(name, url, endpoint, size, time.perf_counter() - started)
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
        needed = size * GROWTH + 2**20
        with self._budget.reserve(self._measured(directory, size, needed), f"model {name!r}"):
            try:
                if size <= SMALL and not (directory / "code").is_dir():
                    loaded = self._load_predictor(directory)
                else:
                    loaded = self._threads.apply(self._load_predictor, (directory,))
            except MemoryError as error:
                raise InsufficientStorage(f"model {name!r} ran out of memory while it was being loaded") from error
        gc.freeze()  # or each collection would walk all models
        return loaded
