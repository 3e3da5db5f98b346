"""Front 1: Flask, one model. Turns HTTP into a Request, and a Response into HTTP."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from container.batching import Batcher, Waiting
from container.errors import ServingError, check_headers, error_response, to_response
from container.message import Context, Headers, Request, Response
from container.metrics import Counters
from container.predictor import Predictor
from container.settings import Settings

SLOW = 0.02
"""Seconds. A connection that nginx keeps leads to one worker, busy or not; a new one is taken up by whichever is idle first, and
costs 0.1 ms. So connections are kept only where predictions are gathered, which needs them, and are faster than this."""


class App(flask.Flask):
    """The Flask application, with what its worker process must reach."""

    def __init__(self, settings: Settings, predictor: Predictor) -> None:
        super().__init__("berth", static_folder=None)
        self.predictor = predictor
        self.batcher = Batcher(predictor.predict_many, predictor.max_batch_size, settings.wait_limit)
        self.counters = Counters()
        self._timeout = settings.timeout

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        """Flask's own, but the one path whose microseconds count goes straight to its view where nobody has put hooks around it.

        Flask's contexts, which this view does not use, take 25 of the 85 µs that a request costs here besides its prediction.
        """
        hooked = self.before_request_funcs or self.after_request_funcs or self.teardown_request_funcs
        if environ["PATH_INFO"] == "/invocations" and environ["REQUEST_METHOD"] == "POST" and not hooked:
            return self.invocations(environ)(environ, start_response)
        return super().wsgi_app(environ, start_response)

    def invocations(self, environ: dict[str, Any]) -> flask.Response:
        """One prediction, or the error that took its place."""
        if self.batcher.max_size == 1:
            environ.get("berth.close", _nothing)()
        arrived = _arrival(environ)
        context = Context(Headers(environ), environ.get("HTTP_X_REQUEST_ID", ""), arrived + self._timeout)
        body = self.request_class(environ).get_data(cache=False)
        request = Request(body, environ.get("CONTENT_TYPE", ""), environ.get("HTTP_ACCEPT", ""), context)
        try:
            return _answer(self, request, arrived, environ)
        except (Exception, SystemExit) as error:
            response = to_response(error, context.request_id)
            self.counters.count(response.status)
            return _http(response)


def create_app(settings: Settings, predictor: Predictor) -> App:
    """The application for one loaded model: POST /invocations, and /ping. nginx answers the platform's other paths."""
    app = App(settings, predictor)

    @app.post("/invocations")
    def invocations() -> flask.Response:
        return app.invocations(flask.request.environ)

    @app.route("/ping", methods=["GET", "POST"])
    def ping() -> dict[str, str]:
        """For those who run this application without nginx, which otherwise answers from the supervisor's readiness."""
        return {"status": "ready"}

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> flask.Response:
        """Flask's own errors, in the form that all errors have."""
        status = error.code or 500
        app.counters.count(status)
        response = _http(error_response(status, _explain(error), flask.request.headers.get("X-Request-Id", "")))
        if isinstance(error, MethodNotAllowed):
            response.allow.update(error.valid_methods or ())
        return response

    return app


def _answer(app: App, request: Request, arrived: float, environ: dict[str, Any]) -> flask.Response:
    begun = time.time()
    data = app.predictor.decode(request)
    decoded = time.time()
    item = Waiting(data, request.context, arrived, _is_gone(environ))
    prediction = app.batcher.predict(item)
    encoding = time.time()
    stream = hasattr(prediction, "__next__")
    try:
        response = app.predictor.encode(prediction, request)
        check_headers(response)
        if not isinstance(response.body, bytes):
            release, stream = (app.batcher.release if stream else _nothing), False  # the turn is the stream's to pass on now
            response.body = _Stream(iter(response.body), release, request.context.request_id)
    finally:
        if stream:
            app.batcher.release()
    predicting = item.ended - item.started
    if predicting > SLOW:
        environ.get("berth.close", _nothing)()
    queued = max(0.0, begun - arrived) + max(0.0, item.started - decoded)
    app.counters.answered(response.status, queued, decoded - begun, predicting, time.time() - encoding, item.batch_size)
    return _http(response)


def _http(response: Response) -> flask.Response:
    answer = flask.Response(response.body, response.status, content_type=response.content_type)
    if response.headers:
        answer.headers.update(response.headers)
    if not isinstance(response.body, bytes):
        answer.headers["X-Accel-Buffering"] = "no"  # or nginx would gather the parts of a stream
    return answer


class _Stream(Iterator[bytes]):
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

    def close(self) -> None:
        release, self._release = self._release, _nothing
        try:
            getattr(self._parts, "close", _nothing)()
        finally:
            release()


def _nothing() -> None:
    pass


def _arrival(environ: dict[str, Any]) -> float:
    """Seconds since the epoch at which nginx had read the request: it may have waited in a socket since."""
    try:
        return float(environ["HTTP_X_REQUEST_START"])
    except (KeyError, ValueError):
        return time.time()


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


def _explain(error: HTTPException) -> str:
    path, method = flask.request.path, flask.request.method
    if isinstance(error, NotFound):
        return f"there is no {path}: accepted are POST /invocations and /ping"
    if isinstance(error, MethodNotAllowed):
        return f"{path} does not take {method}: accepted is {' or '.join(sorted(error.valid_methods or ()))}"
    return error.description or error.name
