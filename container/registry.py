"""Which models are loaded, on disk: one append-only file a shard. A shard that dies leaves it to its successor, and the supervisor
lists the models of all shards from these files, so that a listing never waits for a prediction."""

import json
import os
from bisect import bisect_right
from pathlib import Path

REWRITE_AFTER = 10_000
"""Lines about models that are gone, before a file is written anew."""


class Ledger:
    """What one shard has loaded: name -> url. Every change is one line, written before it is answered."""

    def __init__(self, path: Path) -> None:
        self._path, self._gone = path, 0
        tail = _Tail(path)
        tail.read()
        self.models = tail.models
        self._open()

    def add(self, name: str, url: str) -> None:
        self.models[name] = url
        os.write(self._file, _line(name, url))

    def remove(self, name: str) -> None:
        """Does nothing if the name is not there."""
        if self.models.pop(name, None) is None:
            return
        os.write(self._file, _line(name, None))
        self._gone += 2
        if self._gone > REWRITE_AFTER + len(self.models):
            self._rewrite()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _rewrite(self) -> None:
        """In one step for those who read it: a new file takes the place of the old one."""
        new = self._path.with_suffix(".new")
        new.write_bytes(b"".join(_line(name, url) for name, url in self.models.items()))
        new.replace(self._path)
        os.close(self._file)
        self._open()
        self._gone = 0


class Catalogue:
    """The models of all shards, sorted by name, as their files say."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tails: dict[Path, _Tail] = {}
        self._sorted: list[tuple[str, str]] = []

    def page(self, limit: int, after: str = "") -> tuple[list[tuple[str, str]], str]:
        """(name, url) of up to `limit` models with names after `after`, and the last of these names if there are more, else ''."""
        changed = [self._tails.setdefault(path, _Tail(path)).read() for path in self._directory.glob("models-*.jsonl")]
        if any(changed):
            # one model may be in several shards (MODEL_REPLICAS)
            self._sorted = sorted({name: url for tail in self._tails.values() for name, url in tail.models.items()}.items())
        start = bisect_right(self._sorted, after, key=lambda model: model[0])
        page = self._sorted[start : start + limit]
        return page, page[-1][0] if start + limit < len(self._sorted) else ""


class _Tail:
    """A ledger's file as far as it has been read."""

    def __init__(self, path: Path) -> None:
        self.models: dict[str, str] = {}
        self._path, self._inode, self._offset = path, 0, 0

    def read(self) -> bool:
        """Reads what was written since; returns whether there was anything."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode:
                    self.models.clear()
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]  # a line may be in the middle of being written
        for line in whole.splitlines():
            change = json.loads(line)
            if change["url"] is None:
                self.models.pop(change["name"], None)
            else:
                self.models[change["name"]] = change["url"]
        self._offset += len(whole)
        return bool(whole)


def _line(name: str, url: str | None) -> bytes:
    return json.dumps({"name": name, "url": url}).encode() + b"\n"
