"""What the platform does with a container of a multi-model endpoint, and many small artifacts to do it with."""

import http.client
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import joblib
from sklearn.linear_model import LinearRegression

from tests.live.launcher import SCRIPTS
from tests.live.server import Server

CSV, JSON = {"Content-Type": "text/csv"}, {"Content-Type": "application/json"}
OOM_KILLS = """
import pathlib
files = [pathlib.Path("/sys/fs/cgroup", name) for name in ("memory.events", "memory/memory.oom_control")]
lines = [line.split() for file in files if file.exists() for line in file.read_text().splitlines()]
print(next(count for name, count in lines if name == "oom_kill"))
"""
"""Prints how many processes of a container the kernel has killed for want of memory."""


@dataclass(frozen=True)
class Answer:
    """An answer whose body has arrived. headers: their names have no case."""

    status: int
    headers: Any
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_error(self) -> bool:
        """Whether it is an error in the one form that errors have."""
        error = self.json()
        return set(error) == {"code", "message", "request_id"} and error["code"] == self.status >= 400


@dataclass
class Endpoint:
    """A server of many models. models: where artifacts are put; seen_as: the same directory, as the server names it.

    Models are called what a test calls them; their directories have names of their own.
    """

    server: Server
    models: Path
    seen_as: str
    urls: dict[str, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def directory(self, name: str) -> Path:
        """An empty directory for the artifact of a model."""
        number = str(next(self._numbers))
        directory = self.models / number / "model"
        directory.mkdir(parents=True)
        self.urls[name] = f"{self.seen_as}/{number}/model"
        return directory

    def plain(self, name: str, answer: float) -> Path:
        """An artifact without a script, a regression that answers every row with the same number. Returns its directory."""
        directory = self.directory(name)
        joblib.dump(constant(answer), directory / "model.joblib")
        return directory

    def scripted(self, name: str, script: str, files: Mapping[str, str] | None = None) -> Path:
        """An artifact with a script of tests/fixtureapps, or a script's text, and further files below code/. Returns its directory."""
        directory = self.directory(name)
        known = "\n" not in script
        for path, text in {"inference.py": (SCRIPTS / f"{script}.py").read_text() if known else script, **(files or {})}.items():
            file = directory / "code" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return directory

    def load(self, name: str, url: str | None = None) -> Answer:
        return self.call("POST", "/models", json.dumps({"model_name": name, "url": url or self.urls[name]}), JSON)

    def load_all(self, names: Iterable[str]) -> None:
        for name in names:
            answer = self.load(name)
            assert answer.status == 200, answer

    def get(self, name: str) -> Answer:
        return self.call("GET", f"/models/{quote(name, safe='')}")

    def delete(self, name: str) -> Answer:
        return self.call("DELETE", f"/models/{quote(name, safe='')}")

    def invoke(self, name: str, body: str | bytes = "0", headers: Mapping[str, str] | None = None) -> Answer:
        """Without headers: a CSV."""
        return self.call("POST", f"/models/{quote(name, safe='')}/invoke", body, CSV if headers is None else headers)

    def number(self, name: str) -> float:
        """What a `plain` model answers."""
        answer = self.invoke(name)
        assert answer.status == 200, answer
        return float(answer.json()[0])

    def names(self, limit: int = 0) -> list[str]:
        """The models listed, over all pages. limit: of one page; 0 leaves it to the server."""
        found, query = [], f"?limit={limit}" if limit else ""
        while True:
            page = self.call("GET", f"/models{query}").json()
            found += [model["modelName"] for model in page["models"]]
            if "nextPageToken" not in page:
                return found
            query = f"?next_page_token={quote(page['nextPageToken'], safe='')}" + f"&limit={limit}" * bool(limit)

    def call(self, method: str, path: str, body: str | bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own; the path goes out as it is."""
        host, _, port = self.server.url.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=70)
        try:
            connection.request(method, path, body, dict(headers or {}))
            with connection.getresponse() as answer:
                return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


def constant(answer: float) -> LinearRegression:
    """A fitted model of one column that always answers the same."""
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 0.0])
    model.intercept_ = answer
    return model
