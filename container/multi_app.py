"""Front 2: Flask, many models: the platform's calls to load, get, unload and invoke. One shard's worth; nginx knows which shard a
model belongs to, and the supervisor answers GET /models.

A load arrives at any shard, because only its body has the model's name. The shard hands it back to nginx with the name in the path
(X-Accel-Redirect), and nginx passes it to its owner. With replicas the owner asks the others itself: nginx would follow ten such hops.
"""

import contextlib
import json
import logging
import mmap
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import flask
import gevent
from werkzeug.routing import BaseConverter

from container import isolation, memory, peers, predictor, preload
from container.errors import ClientError, Conflict, ModelNotFound, ServingError, to_response
from container.exchange import Front, Stream, direct, http
from container.memory import Budget
from container.message import Response
from container.metrics import DESCRIBED, MODEL_FIGURES, Counters
from container.models import Models
from container.registry import Ledger
from container.settings import Settings

log = logging.getLogger(__name__)

NAME_LIMIT = 1024


class NameConverter(BaseConverter):
    """Any text, slashes and line ends included. Werkzeug's `path` takes neither a line end nor a slash in front."""

    regex = "(?s:.+)"
    part_isolating = False


class MultiApp(Front):
    """The application of one shard."""

    models: Models
    elsewhere = MappingProxyType({"/models": ("GET",)})  # the supervisor's

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings, self._shards = settings, settings.workers or 1
        self._replicas = min(settings.replicas, self._shards)
        # Bytes that each shard has reserved for loads under way: made before the fork, so shared by all.
        self._reserved = memoryview(mmap.mmap(-1, 8 * self._shards)).cast("q")

    def start(self, counters: Counters, slot: int) -> bool:
        run_dir = self._settings.run_dir
        assert run_dir is not None
        self.counters, self._slot, self._run_dir = counters, slot, run_dir
        self._figures, self._told = run_dir / "metrics" / f"models-{slot}.json", -1
        memory.keep_no_large_pieces()
        budget = Budget(self._reserved, slot, run_dir / "memory.lock")
        ledger, load, trial = Ledger(run_dir / f"models-{slot}.jsonl"), None, None
        if self._settings.isolation == "process":
            load, trial = isolation.loader(self._settings), partial(predictor.load, self._settings)
        self.models = Models(self._settings, ledger, budget, load, trial)
        return True

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        """Flask's own, but invocations go straight to their view where nobody has put hooks around it: see app.App."""
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] == "POST" and path.startswith("/models/") and path.endswith("/invoke") and not self.is_hooked:
            return direct(self.invoke(_name(path[8:-7]), environ), start_response)
        return super().wsgi_app(environ, start_response)

    def invoke(self, name: str, environ: dict[str, Any]) -> Response:
        """One prediction of one model, or the error that took its place."""
        try:
            model = self.models.get(name)
            model.enter(self._settings.max_queue)
        except (Exception, SystemExit) as error:
            return self.failed(error, environ)
        try:
            response = model.endpoint.invoke(environ, self.counters, name)
        except (Exception, SystemExit) as error:
            model.leave()
            return self.failed(memory.refused(error), environ)
        if isinstance(response.body, Stream):
            response.body.then(model.leave)
        else:
            model.leave()
        return response

    def tick(self) -> None:
        """Writes what /metrics tells of the models in this shard, if anything has changed."""
        if self._told == self.models.changes:
            return
        self._told = self.models.changes
        rows = [{field: getattr(model, field) for field in ("name", *MODEL_FIGURES)} for model in self.models.describe(DESCRIBED)]
        new = self._figures.with_suffix(".new")
        try:
            new.write_text(json.dumps({"count": len(self.models), "models": rows}))
            new.replace(self._figures)
        except OSError as error:
            log.warning("the figures of the models cannot be written: %s", error)

    @property
    def is_spent(self) -> bool:
        return self.models.is_spent

    # The views

    def order(self) -> flask.Response:
        """POST /models, at any shard: on to the model's owner."""
        name, _ = _wanted(flask.request.get_data())
        return _onward(f"/_load/{_quoted(name)}")

    def load(self, name: str) -> flask.Response:
        """A load, at its owner, which sees to the model's replicas. They have it all, or none has."""
        order = flask.request.get_data()
        name, url = _wanted(order)
        self.models.load(name, url)
        failed = [answer for answer in self._ask_replicas("POST", name, order) if answer.status != 200]
        if failed:
            with contextlib.suppress(ModelNotFound):
                self.models.unload(name)
        elif name not in self.models:
            failed = [to_response(Conflict(f"model {name!r} was unloaded while it was being loaded"), _request_id())]
        if failed:
            self._ask_replicas("DELETE", name)
            return http(failed[0])
        return _said(200, {"modelName": name, "modelUrl": url})

    def copy(self, name: str) -> flask.Response:
        """A load or an unload, at a replica. What its owner does not know of was left by a load that was cut short."""
        if name in self.models:
            self.models.unload(name)
        if flask.request.method == "POST":
            self.models.load(*_wanted(flask.request.get_data()))
        return _said(200, {"modelName": name})

    def _ask_replicas(self, method: str, name: str, body: bytes = b"") -> list[Response]:
        return [asked.get() for asked in self._asked_of_replicas(method, name, body)]

    def _asked_of_replicas(self, method: str, name: str, body: bytes = b"") -> list["gevent.Greenlet[..., Response]"]:
        """The same of all replicas but this one, at the same time, while this one goes on."""
        shards = [(self._slot + copy) % self._shards for copy in range(1, self._replicas)]
        paths = [self._run_dir / f"shard-{shard}.sock" for shard in shards]
        return [gevent.spawn(peers.ask, path, method, f"/_copy/{_quoted(name)}", body, _request_id()) for path in paths]

    def describe(self, name: str) -> flask.Response:
        """GET /models/NAME."""
        return _said(200, {"modelName": name, "modelUrl": self.models.url(name)})

    def remove(self, name: str) -> flask.Response:
        """DELETE /models/NAME: answers when the memory is back."""
        replicas = self._asked_of_replicas("DELETE", name)  # now: while this one waits for its requests, it may be loaded again
        gevent.sleep(0)  # they are asked before this one unloads, which it may die of
        try:
            url = self.models.unload(name)
        finally:
            gevent.joinall(replicas)
        if any(asked.get().status == 502 for asked in replicas) and name not in self.models:
            self._ask_replicas("DELETE", name)  # one has died meanwhile: its successor still has the model on its list
        return _said(200, {"modelName": name, "modelUrl": url})


def create_app(settings: Settings) -> MultiApp:
    """The application of the shards, made before they are forked; so are the imports that their models will need."""
    preload.libraries(settings)
    app = MultiApp(settings)

    @app.errorhandler(ServingError)
    def failed(error: ServingError) -> flask.Response:
        return http(app.failed(error, flask.request.environ))

    @app.errorhandler(Exception)
    def failed_otherwise(error: Exception) -> flask.Response:
        return http(app.failed(error, flask.request.environ))

    app.url_map.converters["name"] = NameConverter
    app.url_map.merge_slashes = False  # a name may have slashes, one after the other
    for method, rule, view in (
        ("POST", "/models", app.order),
        ("POST", "/models/<name:name>/invoke", lambda name: http(app.invoke(name, flask.request.environ))),
        ("GET", "/models/<name:name>", app.describe),
        ("DELETE", "/models/<name:name>", app.remove),
        ("POST", "/_load/<name:name>", app.load),
        ("POST", "/_copy/<name:name>", app.copy),
        ("DELETE", "/_copy/<name:name>", app.copy),
    ):
        app.add_url_rule(rule, view_func=view, methods=[method], endpoint=f"{method} {rule}")
    return app


def _wanted(body: bytes) -> tuple[str, str]:
    """Name and url of a load. Raises ClientError."""
    try:
        order = json.loads(body)
        name, url = order["model_name"], order["url"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(f'the body is not {{"model_name": ..., "url": ...}} in JSON: {type(error).__name__}: {error}') from None
    if not isinstance(name, str) or not isinstance(url, str) or not 1 <= len(name) <= NAME_LIMIT or not url:
        said = f"model_name is {_kind(name)} and url is {_kind(url)}"
        raise ClientError(f"{said}: both must be texts that are not empty, model_name of {NAME_LIMIT} characters at most")
    if not {".", ".."}.isdisjoint(name.split("/")) or any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in name):
        raise ClientError(f"model_name {name!r} cannot be part of a path: none has NUL, half a character, or '.' or '..' between slashes")
    return name, url


def _kind(value: object) -> str:
    return (
        f"a text of {len(value)} characters" if isinstance(value, str) else "null" if value is None else f"of type {type(value).__name__}"
    )


def _request_id() -> str:
    return flask.request.headers.get("X-Request-Id", "")


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _name(path: str) -> str:
    """A name as it stands in PATH_INFO: WSGI has its UTF-8 bytes as latin-1."""
    try:
        return path.encode("latin-1").decode()
    except UnicodeError:
        return path


def _onward(path: str) -> flask.Response:
    """Has nginx pass the request on, with its body, to whom the path belongs."""
    return flask.Response(b"", 200, {"X-Accel-Redirect": path}, content_type="application/json")


def _said(status: int, value: dict[str, Any]) -> flask.Response:
    return http(Response(json.dumps(value).encode(), "application/json", status))
