"""manifest.jsonl: what became of each key of a fleet, one JSON object a line. Knows nothing of models."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ManifestError(Exception):
    """The manifest cannot be written, most often for a full disk; the message says where and why."""


@dataclass(frozen=True)
class Entry:
    """What became of one key.

    seconds: of the user's fit; None where only an earlier run could tell. rows: of the input, None if it could not be read.
    metrics: name -> number, as fit returned them, None for one that was not finite. file, sha256: the artifact's name and digest.
    error: why there is none, `Type: message (file:line in function)`.
    """

    key: str
    seconds: float | None = None
    rows: int | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    file: str | None = None
    sha256: str | None = None
    error: str | None = None


class Manifest:
    """Takes entries while a fleet is trained, each written at once; at the end of the block there is one line a key, by key.

    In memory are only the places of the lines, so that a hundred thousand keys need some ten megabytes. Raises ManifestError where it
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        """path: where it is, or will be. The lines of an earlier run stay until their key gets another; torn ones are dropped."""
        self.path = path
        self._places: dict[str, int] = {}
        with self._told():
            self._file = path.open("a+b")
            try:
                self._find()
            except OSError:
                with suppress(OSError):
                    self._file.close()
                raise

    def _find(self) -> None:
        self._file.seek(0)
        place = 0
        for line in self._file:
            entry = _parsed(line)
            if entry:
                self._places[entry.key] = place
            place += len(line)
        if place and not line.endswith(b"\n"):
            self._file.write(b"\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._told(), self._file:
                self._sort()
        except ManifestError:
            if kind is None:  # else what has ended the block is told; the lines are there, in the order of their writing
                raise

    def add(self, entry: Entry) -> None:
        """Writes what became of a key: it takes the place of what was known before."""
        with self._told():
            self._places[entry.key] = self._file.seek(0, 2)
            self._file.write(json.dumps(asdict(entry)).encode() + b"\n")
            self._file.flush()

    def get(self, key: str) -> Entry | None:
        """What is known of a key; None if it is in no line."""
        with self._told():  # a line that waits to be written is written first
            return _parsed(self._line(self._places[key])) if key in self._places else None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ManifestError(f"{self.path} cannot be written: {error.strerror or error}") from None

    def _line(self, place: int) -> bytes:
        self._file.seek(place)
        return self._file.readline()

    def _sort(self) -> None:
        """One line a key, by key, written beside the old one, whose place it takes: a kill on the way leaves the old one."""
        unfinished = self.path.with_name(f".{self.path.name}")
        try:
            with unfinished.open("wb") as file:
                file.writelines(self._line(place) for _, place in sorted(self._places.items()))
            unfinished.replace(self.path)
        finally:
            unfinished.unlink(missing_ok=True)


def read(path: Path) -> Iterator[Entry]:
    """The entries of a manifest, in its order; lines that are torn are left out."""
    with path.open("rb") as file:
        yield from (entry for line in file if (entry := _parsed(line)))


def _parsed(line: bytes) -> Entry | None:
    try:
        document: Any = json.loads(line)
        return Entry(**document)
    except (ValueError, TypeError):
        return None
