"""HTTP to a Request and a Response to HTTP, for the fronts that are Flask. Knows one model at a time: an Endpoint."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.http import HTTP_STATUS_CODES

from container.batching import Batcher, Waiting
from container.errors import ServingError, check_headers, error_response, to_response
from container.message import Context, Headers, Request, Response
from container.metrics import Counters
from container.predictor import Predictor
from container.settings import Settings

SLOW = 0.02
"""Seconds. A connection that nginx keeps leads to one worker, busy or not; a new one is taken up by whichever is idle first, and
costs 0.1 ms. So connections are kept only where predictions are gathered, which needs them, and are faster than this."""


UNBUFFERED = ("X-Accel-Buffering", "no")
"""Has nginx pass on the parts of a stream as they come."""


class Front(flask.Flask):
    """A Flask application as its worker process needs it: what is counted, and what there is to do before it is ready.

    elsewhere: path -> methods that never arrive here, because somebody else answers them; a client may ask for them all the same.
    """

    elsewhere: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__("berth", static_folder=None)
        self.counters = Counters()
        self.register_error_handler(HTTPException, self._http_error)
        self.add_url_rule("/ping", view_func=lambda: {"status": "ready"}, methods=["GET", "POST"], endpoint="ping")

    @property
    def batcher(self) -> Batcher | None:
        """The queue that is the only way into this process; None if there are several."""
        return None

    def start(self, counters: Counters, slot: int) -> bool:
        """Called in each worker before it is ready. Returns whether a prediction was made; raises StartupError if it failed."""
        self.counters = counters
        return False

    def tick(self) -> None:
        """Called about once a second."""

    @property
    def is_spent(self) -> bool:
        """Whether a successor of this process would do the same in less memory. Asked about once a second, while there is no connection."""
        return False

    @property
    def is_hooked(self) -> bool:
        """Whether somebody has put functions of their own around the views; if nobody has, Flask's contexts serve nobody."""
        return bool(self.before_request_funcs or self.after_request_funcs or self.teardown_request_funcs)

    def failed(self, error: BaseException, environ: dict[str, Any]) -> Response:
        """Any failure, counted, logged, and in the form that all errors have."""
        response = to_response(error, environ.get("HTTP_X_REQUEST_ID", ""))
        self.counters.count(response.status)
        return response

    def _http_error(self, error: HTTPException) -> flask.Response:
        status = error.code or 500
        self.counters.count(status)
        if isinstance(error, MethodNotAllowed):
            error.valid_methods = {*(error.valid_methods or ()), *self.elsewhere.get(flask.request.path, ())}
        response = http(error_response(status, self._explain(error), flask.request.headers.get("X-Request-Id", "")))
        if isinstance(error, MethodNotAllowed):
            response.allow.update(error.valid_methods)
        return response

    def _explain(self, error: HTTPException) -> str:
        path, method = flask.request.path, flask.request.method
        if isinstance(error, NotFound):
            return f"there is no {path}: accepted are {', '.join(_calls(self))}"
        if isinstance(error, MethodNotAllowed):
            return f"{path} does not take {method}: accepted is {' or '.join(sorted(error.valid_methods or ()))}"
        return error.description or error.name


class Endpoint:
    """One model as requests reach it: its predictor, and the queue in front of it."""

    __slots__ = ("_timeout", "batcher", "predictor")

    def __init__(self, settings: Settings, predictor: Predictor) -> None:
        self.predictor, self._timeout = predictor, settings.timeout
        self.batcher = Batcher(predictor.predict_many, predictor.max_batch_size, settings.wait_limit)

    def invoke(self, environ: dict[str, Any], counters: Counters, model_name: str = "") -> Response:
        """One prediction for a WSGI request. Raises what went wrong."""
        arrived = arrival(environ)
        context = Context(Headers(environ), environ.get("HTTP_X_REQUEST_ID", ""), arrived + self._timeout, model_name)
        # our worker's input ends where the body does; another server's may not
        body = environ["wsgi.input"].read() if "berth.close" in environ else flask.Request(environ).get_data(cache=False)
        request = Request(body, environ.get("CONTENT_TYPE", ""), environ.get("HTTP_ACCEPT", ""), context)
        begun = time.time()
        data = self.predictor.decode(request)
        decoded = time.time()
        item = Waiting(data, context, arrived, _is_gone(environ))
        prediction = self.batcher.predict(item)
        encoding = time.time()
        stream = hasattr(prediction, "__next__")
        try:
            response = self.predictor.encode(prediction, request)
            check_headers(response)
            if not isinstance(response.body, bytes):
                release, stream = (self.batcher.release if stream else _nothing), False  # the turn is the stream's to pass on now
                response.body = Stream(iter(response.body), release, context.request_id)
        finally:
            if stream:
                self.batcher.release()
        predicting = item.ended - item.started
        if predicting > SLOW:
            close_connection(environ)
        queued = max(0.0, begun - arrived) + max(0.0, item.started - decoded)
        counters.answered(response.status, queued, decoded - begun, predicting, time.time() - encoding, item.batch_size)
        return response


def direct(response: Response, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A Response as WSGI has it, with no Flask response in between."""
    headers = [("Content-Type", response.content_type), *response.headers.items()]
    parts: Iterable[bytes]
    if isinstance(response.body, bytes):
        headers.append(("Content-Length", str(len(response.body))))
        parts = (response.body,)
    else:
        headers.append(UNBUFFERED)
        parts = response.body
    start_response(f"{response.status} {HTTP_STATUS_CODES.get(response.status, 'Unknown')}", headers)
    return parts


def http(response: Response) -> flask.Response:
    """A Response as Flask sends it."""
    answer = flask.Response(response.body, response.status, content_type=response.content_type)
    if response.headers:
        answer.headers.update(response.headers)
    if not isinstance(response.body, bytes):
        answer.headers.add(*UNBUFFERED)
    return answer


def close_connection(environ: dict[str, Any]) -> None:
    """Has the worker close the request's connection after the answer."""
    environ.get("berth.close", _nothing)()


def arrival(environ: dict[str, Any]) -> float:
    """Seconds since the epoch at which nginx had read the request: it may have waited in a socket since."""
    try:
        return float(environ["HTTP_X_REQUEST_START"])
    except (KeyError, ValueError):
        return time.time()


class Stream(Iterator[bytes]):
    """The parts of an answer as they are made. The first is made at once, while an error can still have a status of its own."""

    def __init__(self, parts: Iterator[bytes], release: Callable[[], None], request_id: str) -> None:
        self._parts, self._release, self._request_id = parts, release, request_id
        try:
            self._first: bytes | None = next(parts, b"")
        except BaseException:
            self.close()
            raise

    def __next__(self) -> bytes:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return next(self._parts)
        except StopIteration:
            raise
        except (Exception, SystemExit) as error:
            to_response(error, self._request_id)  # for the log: the status is long gone
            raise ServingError("the stream broke off") from error

    def then(self, do: Callable[[], None]) -> None:
        """Has something done, too, when the stream is closed."""
        release = self._release

        def both() -> None:
            release()
            do()

        self._release = both

    def close(self) -> None:
        release, self._release = self._release, _nothing
        try:
            getattr(self._parts, "close", _nothing)()
        finally:
            release()


def _nothing() -> None:
    pass


def _is_gone(environ: dict[str, Any]) -> Callable[[], bool]:
    """Tells whether nginx has closed the request's connection, which it does when the client has gone."""
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return lambda: False
    return lambda: _closed(connection)


def _closed(connection: Any) -> bool:
    try:
        # gevent's recv would wait; the plain socket below it tells at once
        return not connection._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # noqa: SLF001
    except BlockingIOError:
        return False
    except OSError:
        return True


def _calls(application: Front) -> list[str]:
    """What a client may ask for, as 'POST /models'; a path that begins with an underscore is no client's."""
    rules = [rule for rule in application.url_map.iter_rules() if not rule.rule.startswith("/_")]
    shown = [(rule.rule.replace("<name:name>", "NAME"), sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})) for rule in rules]
    shown += [(path, list(methods)) for path, methods in application.elsewhere.items()]
    return [f"{' or '.join(methods)} {path}" for path, methods in sorted(shown)]
