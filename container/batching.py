"""Gathers the requests that wait into one prediction. One prediction at a time; greenlets only take turns where they say so."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event

from container.errors import ClientGone, DeadlineExceeded, ServingError, Unavailable


@dataclass(slots=True, eq=False)
class Waiting:
    """One request's data on its way through a prediction. arrived, deadline, started, ended: seconds, clock of time.time()."""

    data: Any
    context: Any
    arrived: float
    is_gone: Callable[[], bool]
    turn: Event | None = None
    outcome: Any = None
    done: bool = False
    started: float = 0.0
    ended: float = 0.0
    batch_size: int = 0


@dataclass(eq=False)
class Batcher:
    """First come, first served; whoever is at the head of the queue predicts for all that wait, up to max_size.

    The head lets every socket that has a request be read before it begins (gevent.idle), so what came during the last
    prediction is in the next one, and nobody is passed over. Nobody waits for a timer.

    predict_many: (data, context) pairs -> outcomes, one each; an exception as an outcome is raised to its request.
    max_wait: seconds; a request that has waited longer is refused with 503.
    is_alone: true if no other request can possibly be on its way into this process; saves the look around.
    is_enough: whether so many waiting requests are enough for this process. on_enough, on_room: told when they are, and when they are
    not any more; in between new requests had better go to another process. took: seconds of the last prediction.
    """

    predict_many: Callable[[Sequence[tuple[Any, Any]]], list[Any]]
    max_size: int
    max_wait: float
    is_alone: Callable[[], bool] = lambda: False
    is_enough: Callable[[int], bool] = lambda waiting: False
    on_enough: Callable[[], None] = lambda: None
    on_room: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.time
    took: float = 0.0
    _queue: deque[Waiting] = field(default_factory=deque)
    _busy: bool = False
    _enough: bool = False

    def predict(self, item: Waiting) -> Any:
        """The outcome for one request. Raises Unavailable, DeadlineExceeded or ClientGone if it was not begun, else what predict_many put
        in the outcome's place. While the outcome is an iterator the turn stays with it: `release` must be called when it is used up.
        """
        self._queue.append(item)
        if not self._enough and self.is_enough(len(self._queue)):
            self._enough = True
            self.on_enough()
        if self._busy:
            item.turn = Event()
            self._await_turn(item, item.turn)
        else:
            self._busy = True
        if not item.done:
            self._lead(item)
        if isinstance(item.outcome, BaseException):
            raise item.outcome
        return item.outcome

    def _await_turn(self, item: Waiting, turn: Event) -> None:
        try:
            turn.wait()
        except BaseException:  # the greenlet is ended: neither its place nor its turn may be lost with it
            if item in self._queue:
                self._queue.remove(item)
            if turn.is_set() and not item.done:
                self.release()
            raise

    def release(self) -> None:
        """Passes the turn to the head of the queue."""
        if self._enough and not self.is_enough(len(self._queue)):
            self._enough = False
            self.on_room()
        if self._queue:
            head = self._queue[0]
            assert head.turn is not None  # only the first of all comes without one, and it is not in the queue any more
            head.turn.set()
        else:
            self._busy = False

    def _lead(self, item: Waiting) -> None:
        keep = False
        try:
            if not self.is_alone():
                gevent.idle()
            while not item.done:
                batch = self._take()
                if batch:
                    self._run(batch)
            keep = hasattr(item.outcome, "__next__")
        finally:
            if not keep:
                self.release()

    def _take(self) -> list[Waiting]:
        """The next batch; those that must not be begun any more get their answer instead."""
        now = self.clock()
        batch: list[Waiting] = []
        while self._queue and len(batch) < self.max_size:
            item = self._queue.popleft()
            refusal = self._refusal(item, now)
            if refusal is None:
                batch.append(item)
            else:
                self._finish(item, refusal)
        return batch

    def _refusal(self, item: Waiting, now: float) -> Exception | None:
        if now >= item.context.deadline:
            return DeadlineExceeded(f"the request waited {now - item.arrived:.1f} s, past its deadline, and was not begun")
        if now - item.arrived > self.max_wait:
            return Unavailable(
                f"the request waited {now - item.arrived:.1f} s for a worker and was not begun: "
                f"the limit is {self.max_wait:g} s (MODEL_SERVER_MAX_WAIT); more workers or larger batches may help"
            )
        if item.is_gone():
            return ClientGone()
        return None

    def _run(self, batch: list[Waiting]) -> None:
        started = self.clock()
        outcomes: list[Any] = []
        try:
            outcomes = self.predict_many([(item.data, item.context) for item in batch])
        except BaseException as error:
            outcomes = [error] * len(batch)
            if not isinstance(error, Exception):
                raise
        finally:  # whatever happens, nobody waits for ever
            ended = self.clock()
            self.took = ended - started
            missing = [ServingError("the prediction was broken off")] * (len(batch) - len(outcomes))
            for item, outcome in zip(batch, [*outcomes, *missing], strict=False):
                item.started, item.ended, item.batch_size = started, ended, len(batch)
                self._finish(item, outcome)

    @staticmethod
    def _finish(item: Waiting, outcome: Any) -> None:
        item.outcome, item.done = outcome, True
        if item.turn is not None:
            item.turn.set()
