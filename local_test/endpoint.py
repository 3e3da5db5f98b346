"""SageMaker's side of a multi-model endpoint, for a container on this machine: which model is loaded, and which has to make room.

An artifact is loaded when it is first asked for, and the models that were used last stay. The calls are those of the multi-model contract
(docs/contract.md, checks 20 to 23); ids are opaque, as the platform's are.

    with Endpoint("http://127.0.0.1:8080", artifacts, models) as endpoint:
        print(endpoint.invoke("customer-17.tar.gz", b"5.1,3.5,1.4,0.2").body)
"""

import hashlib
import http.client
import json
import shutil
import tarfile
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

INVOKE_SECONDS = 70.0
"""How long an answer is waited for: more than the 60 s that a prediction may take."""
LOAD_SECONDS = 360.0
"""How long a load or an unload may take, and how long room is made for a load."""
TRIES = 3
"""How often a request is sent to a model that the container does not have after all."""
LOADED = (HTTPStatus.OK, HTTPStatus.CONFLICT)
UNLOADED = (HTTPStatus.OK, HTTPStatus.NOT_FOUND)
NO_ROOM = HTTPStatus.INSUFFICIENT_STORAGE


@dataclass(frozen=True)
class Answer:
    """An answer whose body has arrived. headers: their names have no case."""

    status: int
    headers: Any
    body: bytes

    @property
    def content_type(self) -> str:
        return str(self.headers.get("Content-Type", ""))


@dataclass(eq=False)
class _Model:
    """id: what the container calls it. users: requests that need it now. turn: held while it is loaded or unloaded."""

    artifact: Path
    id: str
    loaded: bool = False
    users: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)


class Endpoint:
    """url: of the container. artifacts: a directory with NAME.tar.gz files or with directories; a target is a path in it.
    models: an empty directory where artifacts are unpacked. seen_as: the same directory, as the container names it; "" if it is no other.

    May be used by any number of threads. calls: how often (call, status) has been, with call one of load, unload, invoke, list and ping.
    """

    def __init__(self, url: str, artifacts: Path, models: Path, seen_as: str = "") -> None:
        self.calls: Counter[tuple[str, int]] = Counter()
        self._url, self._artifacts, self._models, self._seen_as = url, artifacts, models, seen_as or str(models)
        self._known: OrderedDict[str, _Model] = OrderedDict()  # in the order of their last use
        self._ordered, self._orders = 0, 0  # loads that the container has not answered, and all that it was ever asked for
        self._changed = threading.Condition()
        self._connections: deque[http.client.HTTPConnection] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections that are kept. The models stay loaded."""
        while self._connections:
            self._connections.pop().close()

    def invoke(self, target: str, body: bytes, content_type: str = "text/csv", headers: Mapping[str, str] | None = None) -> Answer:
        """The answer of a model, which is loaded if it is not, or the answer that refused it. headers: further ones.

        Raises FileNotFoundError if there is no such artifact, OSError or http.client.HTTPException if the container does not answer.
        """
        sent = {"Content-Type": content_type, "X-Amzn-SageMaker-Target-Model": quote(target), **(headers or {})}
        end, lost = time.monotonic() + INVOKE_SECONDS, 0
        while True:
            with self._using(target) as model:
                refusal = self._load(model)
                if refusal is not None:
                    return refusal
                answer = self._call("invoke", "POST", f"/models/{model.id}/invoke", body, sent)
                if answer.status == HTTPStatus.NOT_FOUND:  # the container was restarted
                    model.loaded = False
                    lost += 1
            if answer.status == HTTPStatus.NOT_FOUND and lost < TRIES:
                continue
            if answer.status != NO_ROOM or time.monotonic() > end or not self._make_room(model):
                return answer

    def ping(self) -> bool:
        """The platform's start check: whether /ping and /models are both answered with 200."""
        try:
            return all(self._call("ping", "GET", path).status == HTTPStatus.OK for path in ("/ping", "/models"))
        except (OSError, http.client.HTTPException):
            return False

    def unload(self, target: str) -> Answer:
        """Unloads a model, whoever uses it."""
        with self._using(target) as model, model.turn:
            return self._unload(model)

    def loaded(self) -> list[str]:
        """The targets that are loaded as far as this side knows; the one that was used last comes last."""
        with self._changed:
            return [target for target, model in self._known.items() if model.loaded]

    def listed(self) -> list[str]:
        """The ids that the container lists, over all pages. Raises OSError if it does not list them."""
        found, query = list[str](), ""
        while True:
            answer = self._call("list", "GET", f"/models{query}")
            if answer.status != HTTPStatus.OK:
                raise OSError(f"GET /models{query} was answered with {answer.status}: {answer.body[:200]!r}")
            page = json.loads(answer.body)
            found += [model["modelName"] for model in page["models"]]
            if "nextPageToken" not in page:
                return found
            query = f"?next_page_token={quote(page['nextPageToken'], safe='')}"

    @staticmethod
    def id(target: str) -> str:
        """What the container calls a target: as on the platform, nothing can be read from it."""
        return hashlib.md5(target.encode(), usedforsecurity=False).hexdigest()

    @contextmanager
    def _using(self, target: str) -> Iterator[_Model]:
        """A model that nobody unloads to make room while the block runs, and that was used last."""
        with self._changed:
            model = self._known.get(target) or self._find(target)
            self._known.move_to_end(target)
            model.users += 1
        try:
            yield model
        finally:
            with self._changed:
                model.users -= 1
                self._changed.notify_all()

    def _find(self, target: str) -> _Model:
        artifact = self._artifacts / target
        if not artifact.exists():
            raise FileNotFoundError(f"there is no {target!r} in {self._artifacts}: a target is a .tar.gz file or a directory in it")
        model = self._known[target] = _Model(artifact, self.id(target))
        return model

    def _load(self, model: _Model) -> Answer | None:
        """Loads a model that is not; where the container has no room, others are unloaded for it. The answer if it was refused."""
        end = time.monotonic() + LOAD_SECONDS
        with model.turn:
            if model.loaded:
                return None
            unpack(model.artifact, self._models / model.id / "model")
            while True:
                answer, alone = self._order(model)
                if model.loaded:
                    return None
                if answer.status != NO_ROOM or alone or time.monotonic() > end:
                    return answer
                self._make_room(model)

    def _order(self, model: _Model) -> tuple[Answer, bool]:
        """Asks for a load. Returns the answer, and whether the container had no other model and no other load meanwhile."""
        order = json.dumps({"model_name": model.id, "url": f"{self._seen_as}/{model.id}/model"}).encode()
        with self._changed:
            alone = not self._ordered and not any(other.loaded for other in self._known.values())
            self._ordered += 1
            self._orders += 1
            number = self._orders
        try:
            answer = self._call("load", "POST", "/models", order, {"Content-Type": "application/json"})
            model.loaded = answer.status in LOADED
        finally:
            with self._changed:
                self._ordered -= 1
                self._changed.notify_all()
        return answer, alone and number == self._orders

    def _make_room(self, needy: _Model) -> bool:
        """Unloads the model whose last use is longest ago, of the others that nobody uses; waits for one as long as there may be one.

        Returns whether there was one.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._idle(needy) or not self._busy(), LOAD_SECONDS)
            model = self._idle(needy)
            if model is None:
                return False
            model.turn.acquire()  # at once, for only users take it, and there are none
        try:
            self._unload(model)
        finally:
            with self._changed:
                model.turn.release()
                self._changed.notify_all()
        return True

    def _idle(self, needy: _Model) -> _Model | None:
        others = (model for model in self._known.values() if model is not needy)
        return next((model for model in others if model.loaded and not model.users and not model.turn.locked()), None)

    def _busy(self) -> bool:
        """Whether a load, an unload or a use of a loaded model is under way, which will end by itself."""
        return self._ordered > 0 or any(model.loaded and (model.users or model.turn.locked()) for model in self._known.values())

    def _unload(self, model: _Model) -> Answer:
        answer = self._call("unload", "DELETE", f"/models/{model.id}")
        model.loaded = answer.status not in UNLOADED
        return answer

    def _call(self, call: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        answer = self._send(method, path, body, headers or {}, LOAD_SECONDS if call in ("load", "unload") else INVOKE_SECONDS)
        with self._changed:
            self.calls[call, answer.status] += 1
        return answer

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Answer:
        """One request, on a kept connection if there is one. The server may have closed that meanwhile; then a new one is taken."""
        try:
            kept = self._connections.pop()
        except IndexError:
            pass
        else:
            with suppress(ConnectionError):
                return self._exchange(kept, method, path, body, headers, seconds)
        return self._exchange(http.client.HTTPConnection(urlsplit(self._url).netloc), method, path, body, headers, seconds)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> Answer:
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        try:
            connection.request(method, path, body, dict(headers))
            with connection.getresponse() as answer:
                read = Answer(answer.status, answer.headers, answer.read())
        except BaseException:
            connection.close()
            raise
        self._connections.append(connection)  # http.client opens it again where the server has closed it in good order
        return read


def unpack(artifact: Path, directory: Path) -> None:
    """Puts an artifact into a directory, whole or not at all; one that is there already stays.

    Raises tarfile.TarError if it is no archive, or has members that point outside.
    """
    if directory.is_dir():
        return
    unfinished = directory.with_name(f"{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    if artifact.is_dir():
        shutil.copytree(artifact, unfinished)
    else:
        unfinished.mkdir(parents=True)
        with tarfile.open(artifact) as archive:
            archive.extractall(unfinished, filter="data")
    unfinished.rename(directory)
