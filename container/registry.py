"""Which models are loaded, on disk: one append-only file a shard. A shard that dies leaves it to its successor, and the supervisor
lists the models of all shards from these files, so that a listing never waits for a prediction."""

import errno
import json
import logging
import os
import uuid
from bisect import bisect_right
from pathlib import Path

log = logging.getLogger(__name__)

REWRITE_AFTER = 10_000
"""Lines about models that are gone, before a file is written anew."""


class Ledger:
    """What one shard has loaded: name -> url. Every change is one line, written before it is answered."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._unwritten = path, -1, b""
        tail = _Tail(path)
        tail.read()
        self.models = tail.models
        try:
            self._rewrite()  # a predecessor may have died in the middle of a line
        except OSError:  # a full disk is no reason not to serve: what is there is whole without that line
            self._file, self._gone = os.open(path, os.O_WRONLY | os.O_APPEND), 0
            os.ftruncate(self._file, tail.end)

    def add(self, name: str, url: str) -> None:
        """Raises OSError, and has added nothing, if the disk is full."""
        self._append(_line(name, url))
        self.models[name] = url

    def remove(self, name: str) -> None:
        """Does nothing if the name is not there. If the disk is full, the file says it with the next change: the memory is wanted now."""
        if self.models.pop(name, None) is None:
            return
        self._gone += 2
        try:
            self._append(_line(name, None))
            if self._gone > REWRITE_AFTER + len(self.models):
                self._rewrite()
        except OSError as error:
            log.warning("the list of models does not say yet that %r is unloaded: %s", name, error)
            self._unwritten += _line(name, None)

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        lines = self._unwritten + line
        written = os.write(self._file, lines)
        if written < len(lines):  # half a line would spoil the next one
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, "the list of models cannot be written: the disk is full")
        self._unwritten = b""

    def _rewrite(self) -> None:
        """In one step for those who read it: a new file takes the place of the old one. Its first line is like no other file's."""
        new = self._path.with_suffix(".new")
        new.write_bytes(uuid.uuid4().hex.encode() + b"\n" + b"".join(_line(name, url) for name, url in self.models.items()))
        new.replace(self._path)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._gone = os.open(self._path, os.O_WRONLY | os.O_APPEND), 0


class Catalogue:
    """The models of all shards, sorted by name, as their files say."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tails: dict[Path, _Tail] = {}
        self._urls: dict[str, str] = {}
        self._names: list[str] = []

    def page(self, limit: int, after: str = "") -> tuple[list[tuple[str, str]], str]:
        """(name, url) of up to `limit` models with names after `after`, and the last of these names if there are more, else ''."""
        changed = [self._tails.setdefault(path, _Tail(path)).read() for path in self._directory.glob("models-*.jsonl")]
        if any(changed):
            self._urls = {}
            for tail in self._tails.values():
                self._urls |= tail.models  # one model may be in several shards (MODEL_REPLICAS)
            self._names = sorted(self._urls)
        start = bisect_right(self._names, after)
        names = self._names[start : start + limit]
        return [(name, self._urls[name]) for name in names], names[-1] if start + limit < len(self._names) else ""


class _Tail:
    """A ledger's file as far as it has been read. end: bytes, to the end of the last whole line."""

    def __init__(self, path: Path) -> None:
        self.models: dict[str, str] = {}
        self._path, self._first_line, self.end = path, b"", 0

    def read(self) -> bool:
        """Reads what was written since; returns whether there was anything."""
        try:
            with self._path.open("rb") as file:
                first_line = file.readline()
                is_new = first_line != self._first_line
                if is_new:  # another file (an inode's number would not tell: it is used again)
                    self.models.clear()
                    self._first_line, self.end = first_line, len(first_line)
                file.seek(self.end)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]  # a line may be in the middle of being written
        for change in json.loads(b"[" + whole[:-1].replace(b"\n", b",") + b"]"):  # one call takes a third of the time of many
            if change["url"] is None:
                self.models.pop(change["name"], None)
            else:
                self.models[change["name"]] = change["url"]
        self.end += len(whole)
        return bool(whole) or is_new


def _line(name: str, url: str | None) -> bytes:
    return json.dumps({"name": name, "url": url}).encode() + b"\n"
