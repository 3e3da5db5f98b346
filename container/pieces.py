"""One CSV file for each key, appended to whenever the memory that rows may take is full. Knows nothing of what a row holds."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from container import keys
from container.rows import Batch, unquoted

ROW_OVERHEAD = 60
"""Bytes that a row in memory takes beside its text: the object's head, its place in a list."""

KEY_OVERHEAD = 500
"""Bytes that a key takes: names, an entry in each table, an empty list."""

JOINED = 4096
"""Rows written at once."""


class Pieces:
    """The files of a split. limit: bytes of memory that rows may take before they are written; suffix: .csv or .csv.gz."""

    def __init__(self, directory: Path, suffix: str, header: bytes, limit: int) -> None:
        self.rows = 0
        self._directory, self._suffix, self._header, self._limit = directory, suffix, header, limit
        self._by_name: dict[str, list[bytes]] = {}
        self._by_field: dict[bytes, list[bytes]] = {}
        self._begun: set[str] = set()
        self._refused: dict[bytes, str] = {}  # of one batch: there may be as many as rows
        self._held = 0

    @property
    def names(self) -> list[str]:
        """The names of the files, without suffix, in the order in which their keys came."""
        return list(self._by_name)

    def path(self, name: str) -> Path:
        """Where the file of that name is."""
        return self._directory / f"{name}{self._suffix}"

    def add(self, batch: Batch) -> list[tuple[int, str]]:
        """Takes the rows; returns (index in the batch, why) of those whose key makes no file's name: these are not taken."""
        by_field = self._by_field
        for row, field in batch.rows:
            try:
                by_field[field].append(row)
            except KeyError:
                self._begin(field).append(row)
        refused = self._take_refused(batch) if self._refused else []
        self.rows += len(batch.rows) - len(refused)
        self._held += batch.size + ROW_OVERHEAD * len(batch.rows)
        if self._held + KEY_OVERHEAD * len(by_field) > self._limit:
            self.flush()
        return refused

    def flush(self) -> None:
        """Writes what is in memory."""
        for name, rows in self._by_name.items():
            if rows:
                self._append(name, rows)
                rows.clear()
        self._held = 0

    def _begin(self, field: bytes) -> list[bytes]:
        """The list for the rows of a key that was not written this way before; `"a"` and `a` are one key."""
        try:
            name = keys.file_name(unquoted(field))
        except ValueError as error:
            self._refused[field] = str(error)
            return []  # that nobody keeps
        rows = self._by_field[field] = self._by_name.setdefault(name, [])
        return rows

    def _take_refused(self, batch: Batch) -> list[tuple[int, str]]:
        refused, self._refused = self._refused, {}
        return [(index, refused[field]) for index, (_, field) in enumerate(batch.rows) if field in refused]

    def _append(self, name: str, rows: list[bytes]) -> None:
        with self.path(name).open("ab") as file:
            if self._suffix.endswith(".gz"):  # a file of several members is one file to every reader (RFC 1952, 2.2)
                with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                    self._write(cast(BinaryIO, packed), name, rows)
            else:
                self._write(file, name, rows)

    def _write(self, file: BinaryIO, name: str, rows: list[bytes]) -> None:
        if name not in self._begun:
            self._begun.add(name)
            file.write(self._header)
        file.writelines(_joined(rows))


def _joined(rows: list[bytes]) -> Iterator[bytes]:
    """The rows in parts: one text of them all would double the memory where one key has most of them."""
    for start in range(0, len(rows), JOINED):
        yield b"".join(rows[start : start + JOINED])
