"""Front 3: `handle(data, context)`, as a worker of Multi Model Server calls it. A function, because Multi Model Server swallows what
the `initialize` of a class raises, MemoryError included, and would then never answer 507.

Multi Model Server starts a process for each worker of each model. In it, it calls `handle(None, context)` once, to load the model, and
then `handle(requests, context)` for what has come in, which is one request unless the model was registered with a batch size.
"""

import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol, TypeVar

from container import events, logs, mms_failures, predictor
from container.errors import DeadlineExceeded, ServingError, StartupError, Unavailable, UnsupportedMediaType, check_headers, to_response
from container.message import Context, Headers, Request, Response
from container.predictor import Predictor
from container.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

CONTENT_TYPE = "HTTP_X_BERTH_CONTENT_TYPE"
"""The request's own Content-Type, where nginx stands in front: it tells Multi Model Server another, of which nothing is taken apart."""
LOADED = "loaded-"
"""Begins the names of the files in the run directory that say which processes have loaded the model, where there is only one."""
PHRASES = {status.value: status.phrase for status in HTTPStatus}
LONGER = 5.0
"""Seconds beyond the timeout after which a worker that is still computing is ended, as gunicorn ends its own."""


class WorkerContext(Protocol):
    """What is used here of mms.context.Context. idx: the request's place in the batch."""

    model_name: str

    @property
    def system_properties(self) -> Mapping[str, Any]: ...
    def get_request_id(self, idx: int = 0) -> str: ...
    def get_all_request_header(self, idx: int) -> Mapping[str, Any]: ...
    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None: ...
    def set_response_content_type(self, idx: int, value: str) -> None: ...
    def set_response_header(self, idx: int, key: str, value: str) -> None: ...


def handle(data: Sequence[Mapping[str, Any]] | None, context: WorkerContext) -> list[bytes] | None:
    """The bodies of the answers to a batch; their status and headers go through the context. Without data: loads the model.

    data: for each request its parameters, of which `body` (bytes) is the one that is read. What goes wrong with a request becomes its
    answer. Raises, while loading, StartupError where the model cannot be served, and MemoryError, which becomes a 507.
    """
    model = _model(context.system_properties["model_dir"], context.model_name)
    if data is None:
        return None
    with _ended_if_stuck(model.settings.timeout + LONGER):
        answers = _answers(model, [_Incoming(parameters, context, index) for index, parameters in enumerate(data)])
    for index, answer in enumerate(answers):
        _set_head(context, index, answer)
    return [_whole(answer.body) for answer in answers]


@dataclass(frozen=True)
class _Model:
    settings: Settings
    predictor: Predictor


@dataclass(frozen=True)
class _OneOfMany(Settings):
    """Settings for one model of a multi-model endpoint, which is where the platform says."""

    directory: Path = Path()

    @property
    def model_dir(self) -> Path:
        return self.directory


@cache
def _model(model_dir: str, model_name: str) -> _Model:
    """The model of this process, loaded at the first call."""
    given = Settings.read()
    settings = given
    if given.multi_model:
        settings = _OneOfMany(**{field.name: getattr(given, field.name) for field in fields(given)}, directory=Path(model_dir))
    logs.setup(settings.log_level)
    logging.getLogger("mms").setLevel(logging.WARNING)  # it writes a line of figures for each request
    try:
        loaded = _load(settings)
    except (StartupError, MemoryError) as error:
        log.error("%s cannot be loaded: %s", settings.model_dir, error, exc_info=error.__cause__)
        if not settings.multi_model:
            events.tell(settings.run_dir, events.FAILED, cause=str(error))
        elif settings.run_dir:
            mms_failures.cause_file(settings.run_dir, model_name).write_text(str(error))
        raise
    if settings.run_dir and not settings.multi_model:
        (settings.run_dir / f"{LOADED}{os.getpid()}").touch()
    log.info("loaded %s in %.2f s", loaded.source, loaded.load_seconds)
    return _Model(settings, loaded)


def _load(settings: Settings) -> Predictor:
    try:
        with _first_to_be_killed():
            loaded = predictor.load(settings)
            loaded.warm_up()
    except StartupError as error:
        if isinstance(error.__cause__, MemoryError):
            raise MemoryError(str(error)) from error  # noqa: TRY004 - what Multi Model Server answers with 507
        raise
    gc.collect()
    gc.freeze()
    return loaded


@contextmanager
def _first_to_be_killed() -> Iterator[None]:
    """Where memory runs out in the block, the kernel takes this process, rather than one that has a model, or Java."""
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text()
    score.write_text("1000")
    try:
        yield
    finally:
        score.write_text(before)


class _Incoming:
    """One request of a batch, as Multi Model Server hands it over."""

    def __init__(self, parameters: Mapping[str, Any], context: WorkerContext, index: int) -> None:
        self._parameters, self._model_name = parameters, context.model_name
        sent = context.get_all_request_header(index)  # and the types of the parameters, which are no strings
        environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in sent.items() if isinstance(value, str)}
        environ["CONTENT_TYPE"] = environ.pop(CONTENT_TYPE, environ.pop("HTTP_CONTENT_TYPE", ""))
        environ["CONTENT_LENGTH"] = environ.pop("HTTP_CONTENT_LENGTH", "")
        self.headers = Headers(environ)
        self.id = self.headers.get("X-Request-Id") or context.get_request_id(index)

    def request(self, settings: Settings) -> Request:
        """Raises what speaks against beginning with it."""
        arrived = self._arrived()
        waited = time.time() - arrived
        if waited >= settings.timeout:
            raise DeadlineExceeded(f"the request waited {waited:.1f} s, past its deadline, and was not begun")
        if waited > settings.wait_limit:
            raise Unavailable(f"the request waited {waited:.1f} s for a worker and was not begun: the limit is {settings.wait_limit:g} s")
        content_type = self.headers["Content-Type"]
        if "body" not in self._parameters:
            raise UnsupportedMediaType(f"cannot read {content_type!r}: Multi Model Server has taken the form apart; send another type")
        context = Context(self.headers, self.id, arrived + settings.timeout, self._model_name if settings.multi_model else "")
        return Request(bytes(self._parameters["body"]), content_type, self.headers.get("Accept", ""), context)

    def _arrived(self) -> float:
        """Seconds since the epoch at which nginx had read the request; now, where no nginx says."""
        try:
            return float(self.headers["X-Request-Start"])
        except (KeyError, ValueError):
            return time.time()


def _answers(model: _Model, batch: Sequence[_Incoming]) -> list[Response]:
    """One answer for each request. What may be predicted together is; what fails, fails alone."""
    begun = [_attempt(incoming, _decode, model, incoming) for incoming in batch]
    ready = [step for step in begun if not isinstance(step, Response)]
    size = model.predictor.max_batch_size
    items = [(data, request.context) for request, data in ready]
    parts = [model.predictor.predict_many(items[start : start + size]) for start in range(0, len(items), size)]
    predictions = iter([prediction for part in parts for prediction in part])
    return [
        step if isinstance(step, Response) else _attempt(incoming, _encode, model, step[0], next(predictions))
        for incoming, step in zip(batch, begun, strict=True)
    ]


def _attempt(incoming: _Incoming, step: Callable[..., T], *arguments: Any) -> T | Response:
    """What the step returns; the answer that says why, if it raises."""
    try:
        return step(*arguments)
    except (Exception, SystemExit) as error:  # a script that calls exit() fails its request, not the worker
        return to_response(error, incoming.id)


def _decode(model: _Model, incoming: _Incoming) -> tuple[Request, Any]:
    request = incoming.request(model.settings)
    return request, model.predictor.decode(request)


def _encode(model: _Model, request: Request, prediction: Any) -> Response:
    if isinstance(prediction, MemoryError) and model.settings.multi_model:
        raise ServingError("there was not enough memory for this prediction", 507) from prediction
    if isinstance(prediction, BaseException):
        raise prediction
    response = model.predictor.encode(prediction, request)
    check_headers(response)
    if not response.content_type.isascii():
        raise ServingError("the model set a Content-Type that is not ASCII, which Multi Model Server cannot carry")
    response.body = _whole(response.body)
    return response


def _whole(body: bytes | Iterable[bytes]) -> bytes:
    """Multi Model Server cannot stream: what a model makes part by part is sent when it is whole."""
    return body if isinstance(body, bytes) else b"".join(body)


def _set_head(context: WorkerContext, index: int, answer: Response) -> None:
    context.set_response_status(answer.status, PHRASES.get(answer.status, ""), index)
    context.set_response_content_type(index, answer.content_type)
    for name, value in answer.headers.items():
        context.set_response_header(index, name, value)


@contextmanager
def _ended_if_stuck(seconds: float) -> Iterator[None]:
    """Ends this process by SIGALRM after so many seconds, even in the depths of a library; Multi Model Server starts another."""
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
