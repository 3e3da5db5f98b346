"""Predictor: the functions of a model bound once around it; the one thing that all fronts call."""

import itertools
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import werkzeug

from container import artifact, codecs, spared, user_code, versions
from container.artifact import Library
from container.errors import ClientError, NotAcceptable, ServingError, StartupError
from container.message import Context, Request, Response
from container.namespace import Namespace
from container.settings import Settings
from container.user_code import Hook, Script

log = logging.getLogger(__name__)

READING_ERRORS = (ValueError, LookupError, TypeError, AttributeError)
"""Out of an input_fn these mean that the request was not what it expected."""


@dataclass(frozen=True)
class Predictor:
    """decode -> predict -> encode, around one loaded model. Thread-safe only as far as the model is.

    decode(request) -> data; predict(data, context) -> prediction; encode(prediction, request) -> Response.
    max_batch_size: how many requests' data `predict_many` may be given at once.
    source: where the functions are from, for people.
    """

    decode: Callable[[Request], Any]
    predict: Callable[[Any, Context], Any]
    encode: Callable[[Any, Request], Response]
    max_batch_size: int
    warmup: Request | Any | None
    source: str
    load_seconds: float = 0.0
    close: Callable[[], None] = lambda: None
    """Called when the model is unloaded."""
    is_dead: Callable[[], bool] = lambda: False
    """Whether the model can answer no more, though nobody has unloaded it: its own process has ended."""

    def respond(self, request: Request) -> Response:
        """The whole way of one request by itself. Raises what went wrong: errors.to_response makes an answer of it."""
        return self.encode(self.predict(self.decode(request), request.context), request)

    def warm_up(self) -> bool:
        """One prediction, if it is known what to ask. Raises StartupError if it fails."""
        if self.warmup is None:
            return False
        try:
            if isinstance(self.warmup, Request):
                body = self.respond(self.warmup).body
                if not isinstance(body, bytes):
                    for _ in body:
                        break
            else:
                self.predict(self.warmup, Context())
        except ClientError as error:
            if isinstance(self.warmup, Request):
                raise StartupError(f"the warm-up prediction was refused: {error}") from error
            log.info("no warm-up: the model takes no row of zeros (%s)", error)
            return False
        except (Exception, SystemExit) as error:
            raise StartupError(f"the warm-up prediction raised {user_code.describe(error)}") from error
        return True

    def predict_many(self, items: Sequence[tuple[Any, Context]]) -> list[Any]:
        """Predictions, or the exceptions that took their place, one for each (data, context), in order.

        What can be joined (arrays of one type and width; lists) is predicted as one; if that fails each is predicted by
        itself, so that one bad request fails alone.
        """
        groups: dict[Hashable, list[int]] = {}
        for index, (data, _) in enumerate(items):
            key = _joint(data) if self.max_batch_size > 1 else None
            groups.setdefault(("alone", index) if key is None else key, []).append(index)
        outcomes: list[Any] = [None] * len(items)
        for members in groups.values():
            together = self._predict_together([items[i] for i in members]) if len(members) > 1 else None
            for position, index in enumerate(members):
                outcomes[index] = together[position] if together is not None else self._predict_alone(*items[index])
        return outcomes

    def _predict_alone(self, data: Any, context: Context) -> Any:
        try:
            prediction = self.predict(data, context)
            # where predictions may be joined, a generator (nlp.pipe) is a way to write a list; elsewhere it is a stream
            return list(prediction) if self.max_batch_size > 1 and isinstance(prediction, Iterator) else prediction
        except (Exception, SystemExit) as error:  # a script that calls exit() fails its request, not the worker
            return error

    def _predict_together(self, items: list[tuple[Any, Context]]) -> list[Any] | None:
        lengths = [len(data) if isinstance(data, list) else data.shape[0] for data, _ in items]
        try:
            predictions = self.predict(_join([data for data, _ in items]), items[0][1])
            if isinstance(predictions, Iterator):
                predictions = list(predictions)
            if len(predictions) != sum(lengths):
                raise ServingError(f"predict_fn returned {len(predictions)} predictions for {sum(lengths)} rows")
            if isinstance(predictions, str | bytes):  # each letter would be one
                raise ServingError(f"predict_fn returned {type(predictions).__name__} for {sum(lengths)} rows")
            ends = list(itertools.accumulate(lengths))
            return [predictions[end - length : end] for length, end in zip(lengths, ends, strict=True)]
        except (Exception, SystemExit) as error:
            log.info("a batch of %d failed and is predicted one by one: %s", len(items), user_code.describe(error))
            return None


def load(settings: Settings, model_dir: Path | None = None) -> Predictor:
    """Finds the script, if there is one, loads the model and binds its functions. Raises StartupError.

    model_dir: of one model of many, whose code is then in a namespace of its own. Default: the one model's.
    """
    started = time.perf_counter()
    spared.leave_out_pandas()
    directory = model_dir or settings.model_dir
    for warning in versions.check(directory, settings.allow_version_mismatch):
        log.warning("%s", warning)
    path = user_code.find(settings, model_dir=directory)
    if path is None:
        for file in user_code.unused(directory):
            log.warning("%s is not made use of: a model's script is code/inference.py", file)
        return _from_artifact(artifact.load(directory), settings, started)
    if model_dir is None:
        script = user_code.load(path)
        return _from_script(script, _call_model_fn(script, directory), settings, started)
    namespace = Namespace((path.parent, path.parent / "lib"))
    try:
        script = user_code.load(path, namespace)
        with namespace.exposed():
            model = _call_model_fn(script, directory)
        return replace(_from_script(script, model, settings, started), close=namespace.close)
    except BaseException:
        namespace.close()
        raise


def _call_model_fn(script: Script, model_dir: Path) -> Any:
    try:
        return script.hooks["model_fn"](str(model_dir), context=Context())
    except (Exception, SystemExit) as error:
        raise StartupError(f"model_fn in {user_code.where(error, script.path)} raised {user_code.describe(error)}") from error


def _from_artifact(model: Any, settings: Settings, started: float) -> Predictor:
    library = artifact.library(model)
    functions = _ArtifactFunctions(library, settings)
    size = settings.max_batch_size or artifact.MAX_BATCH_SIZE
    seconds = time.perf_counter() - started
    return Predictor(functions.decode, functions.predict, functions.encode, size, library.warmup, f"{library.name} artifact", seconds)


def _from_script(script: Script, model: Any, settings: Settings, started: float) -> Predictor:
    functions: _Transform | _Hooks
    warmup: Any = Request(script.warmup[1], script.warmup[0]) if script.warmup else None
    if "transform_fn" in script.hooks:
        functions = _Transform(script.hooks["transform_fn"], model, settings)
    else:
        functions = _Hooks(script, model, settings)
        if warmup is None and functions.library and not functions.input_fn:
            warmup = functions.library.warmup
    size = min(script.max_batch_size, settings.max_batch_size or script.max_batch_size)
    return Predictor(functions.decode, functions.predict, functions.encode, size, warmup, str(script.path), time.perf_counter() - started)


class _ArtifactFunctions:
    """The way of a request through a model without a script."""

    def __init__(self, library: Library, settings: Settings) -> None:
        self.library, self._default_accept = library, settings.default_accept

    def decode(self, request: Request) -> Any:
        return self.library.to_input(codecs.decode(request.body, request.content_type))

    def predict(self, data: Any, context: Context) -> Any:
        return self.library.predict(data)

    def encode(self, prediction: Any, request: Request) -> Response:
        content_type = codecs.negotiate(request.accept, self._default_accept)
        return Response(_encoded(self.library.to_output(prediction), content_type, request), content_type)


class _Hooks:
    """The way of a request through input_fn, predict_fn and output_fn; what the script does not have is done as for an artifact."""

    def __init__(self, script: Script, model: Any, settings: Settings) -> None:
        self.model, self._settings = model, settings
        self.input_fn, self.predict_fn, self.output_fn = (script.hook(name) for name in ("input_fn", "predict_fn", "output_fn"))
        self._lists = script.max_batch_size > 1
        self.library = None if self.predict_fn else artifact.library(model)

    def decode(self, request: Request) -> Any:
        if self.input_fn:
            body, content_type = _script_body(request)
            try:
                return self.input_fn(body, content_type, context=request.context)
            except READING_ERRORS as error:
                if hasattr(error, "status_code"):
                    raise
                raise ClientError(f"input_fn could not read the request: {user_code.describe(error)}") from error
        value = codecs.decode(request.body, request.content_type)
        return self.library.to_input(value) if self.library else value

    def predict(self, data: Any, context: Context) -> Any:
        if self.predict_fn:
            prediction = self.predict_fn(data, self.model, context=context)
            # as above, also where MODEL_SERVER_MAX_BATCH_SIZE=1 has switched the joining off
            return list(prediction) if self._lists and isinstance(prediction, Iterator) else prediction
        assert self.library is not None
        return self.library.predict(data)

    def encode(self, prediction: Any, request: Request) -> Response:
        if self.output_fn:
            accept = _accept(request, self._settings)
            return _own_response(self.output_fn(prediction, accept, context=request.context), request, self._settings)
        content_type = codecs.negotiate(request.accept, self._settings.default_accept)
        if not isinstance(prediction, Iterator | bytes):
            prediction = _encoded(self.library.to_output(prediction) if self.library else prediction, content_type, request)
        return Response(_body(prediction, content_type), content_type, headers=request.context.response_headers)


class _Transform:
    """The way of a request through transform_fn, which is given the request and makes the answer."""

    def __init__(self, transform_fn: Hook, model: Any, settings: Settings) -> None:
        self._transform_fn, self._model, self._settings = transform_fn, model, settings

    def decode(self, request: Request) -> Any:
        return *_script_body(request), _accept(request, self._settings)

    def predict(self, data: Any, context: Context) -> Any:
        return self._transform_fn(self._model, *data, context=context)

    def encode(self, prediction: Any, request: Request) -> Response:
        return _own_response(prediction, request, self._settings)


def _script_body(request: Request) -> tuple[str | bytes, str]:
    """Body and content type as the SageMaker toolkits give them to a script: text as str, the type without its parameters."""
    content_type = codecs.media_type(request.content_type)[0]
    return codecs.text_body(request.body, request.content_type), content_type


def _accept(request: Request, settings: Settings) -> str:
    """What the user's output_fn is told: the header as it came; the default if there is none, or any type will do."""
    return request.accept if request.accept.strip() not in ("", "*/*") else settings.default_accept


def _encoded(value: Any, content_type: str, request: Request) -> bytes:
    """codecs.encode. That a prediction cannot be written as a type which the client chose is no fault of the model."""
    try:
        return codecs.encode(value, content_type)
    except ServingError as error:
        if request.accept.strip() in ("", "*/*"):
            raise
        raise NotAcceptable(error.message) from error


def _own_response(result: Any, request: Request, settings: Settings) -> Response:
    """The answer of a user's function: body, or (body, content type). A body alone is taken to be what was asked for first.

    A Flask response, with which scripts of the scikit-learn container set a status, is taken as it is.
    """
    if isinstance(result, werkzeug.Response):
        own = {name: value for name, value in result.headers if name not in ("Content-Type", "Content-Length")}
        return Response(result.get_data(), result.content_type or "", result.status_code, {**request.context.response_headers, **own})
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        body, content_type = result
    else:
        first = _accept(request, settings).partition(",")[0].partition(";")[0].strip()
        body, content_type = result, settings.default_accept if "*" in first else first
    headers = dict(request.context.response_headers)
    content_type = headers.pop("Content-Type", content_type)
    return Response(_body(body, content_type), content_type, headers=headers)


def _body(value: Any, content_type: str) -> bytes | Iterable[bytes]:
    if isinstance(value, Iterator):
        return (_part(part, content_type) for part in value)
    return _part(value, content_type)


def _part(value: Any, content_type: str) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    return value.encode() if isinstance(value, str) else codecs.encode(value, content_type)


def _joint(data: Any) -> Hashable | None:
    """What data must have in common to be predicted as one; None if it cannot be joined."""
    if isinstance(data, np.ndarray) and data.ndim > 0:
        return "array", data.dtype.str, data.shape[1:]
    return "list" if type(data) is list else None


def _join(parts: list[Any]) -> Any:
    return [item for part in parts for item in part] if isinstance(parts[0], list) else np.concatenate(parts)
