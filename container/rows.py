"""The rows of a CSV file (RFC 4180) as the bytes that they are: its header, each good row with its key, what is wrong with the others."""

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

CHUNK = 1 << 18
"""Bytes read at once. The rows of a chunk are objects of about 150 bytes beside their text: this keeps them under 20 MB."""

LONGEST_ROW = 1 << 20
"""Bytes after which a quote that does not end is a mistake, not a text of many lines."""

_FIELD = rb'(?>"[^"]*+(?:""[^"]*+)*+"|[^",\r\n][^,\r\n]*+|)'
_ANY_ROW = re.compile(rb"%s(?:,%s)*+\r?\n" % (_FIELD, _FIELD))
_OPEN_QUOTE = re.compile(rb'(?:%s,)*+"[^"]*+(?:""[^"]*+)*+\Z' % _FIELD)
_BOM = b"\xef\xbb\xbf"


class InputError(Exception):
    """The input cannot be split: the message names the file, what was wrong, and what is accepted."""


class Bad(NamedTuple):
    """A row that goes nowhere. line: where it begins, 1 is the header; of Parquet the number of the row."""

    file: str
    line: int
    why: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}, {'row' if self.file.lower().endswith('.parquet') else 'line'} {self.line}: {self.why}"


class Header(NamedTuple):
    """The first line of a CSV file, and the names in it."""

    line: bytes
    columns: tuple[str, ...]


class Batch(NamedTuple):
    """Rows that follow each other. line: where the first begins; size: bytes of them all; rows: (row, key as it is written)."""

    line: int
    size: int
    rows: list[tuple[bytes, bytes]]

    def lines(self) -> list[int]:
        """Where each row begins."""
        return list(accumulate((row.count(b"\n") for row, _ in self.rows[:-1]), initial=self.line))


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """An open CSV file; a name that ends in .gz is decompressed. Raises InputError for a broken archive."""
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:  # no other OSError: it may be of what the caller writes meanwhile
        raise InputError(f"{path} cannot be read: {error}") from error


def header(stream: BinaryIO, name: str) -> Header | None:
    """Reads the header; None if the file is empty. Raises InputError if it is no header."""
    line = stream.readline(LONGEST_ROW).removeprefix(_BOM)
    if not line:
        return None
    try:
        columns = next(csv.reader([line.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name}: the header cannot be read: {error}; accepted is CSV in UTF-8 with the columns' names first") from None
    if not columns:
        raise InputError(f"{name}: the first line is blank; accepted is CSV with the columns' names first")
    return Header(line if line.endswith(b"\n") else line + b"\n", tuple(columns))


def unquoted(field: bytes) -> str:
    """The text of a field of a good row."""
    return (field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field).decode()


def batches(stream: BinaryIO, name: str, columns: int, key: int, reject: Callable[[Bad], None]) -> Iterator[Batch]:
    """The good rows after the header, in their order, each with its line end. columns: how many; key: the index of the key's.

    The others go to `reject`: too few or too many columns, quotes that do not end or end within a field, carriage returns outside
    of quotes, bytes that are not UTF-8. After a bad quote reading goes on at the next line, so that one quote costs one row.
    A quote within a field that did not begin with one is a character like others; blank lines are no rows, as in csv and pandas.
    """
    before, after = b"(?:%s,){%d}" % (_FIELD, key), b"(?:,%s){%d}" % (_FIELD, columns - 1 - key)
    pattern = re.compile(rb"(%s(%s)%s\r?\n)" % (before, _FIELD, after))
    rest, line = b"", 2
    while True:
        chunk = _whole_lines(stream, name)
        final = not chunk
        chunk = rest + chunk
        rows = pattern.findall(chunk)
        if sum(map(len, map(itemgetter(0), rows))) == len(chunk) and _is_text(chunk):
            rest = b""
            if rows:
                yield Batch(line, len(chunk), rows)
            line += chunk.count(b"\n")
        else:
            rest, line = yield from _one_by_one(chunk, name, columns, pattern, reject, line, final)
        if final:
            return


def _one_by_one(
    chunk: bytes, name: str, columns: int, pattern: re.Pattern[bytes], reject: Callable[[Bad], None], line: int, final: bool
) -> Generator[Batch, None, tuple[bytes, int]]:
    """The same of a chunk in which something is wrong. Returns what is left of it, and the line where that begins."""
    good: list[tuple[bytes, bytes]] = []
    begun = position = 0
    first = line
    while position < len(chunk):
        match = pattern.match(chunk, position)
        if match and _is_text(match[1]):
            good.append((match[1], match[2]))
            position = match.end()
            line += match[1].count(b"\n")
            continue
        if not match and not final and len(chunk) - position < LONGEST_ROW and _OPEN_QUOTE.match(chunk, position):
            break
        if good:
            yield Batch(first, position - begun, good)
            good = []
        other = match or _ANY_ROW.match(chunk, position)
        end = other.end() if other else chunk.index(b"\n", position) + 1
        row = chunk[position:end]
        if row.strip(b"\r\n"):
            reject(Bad(name, line, _why(row, columns, bool(other)), row[:200].decode(errors="replace").rstrip("\r\n")))
        line += row.count(b"\n")
        begun, position, first = end, end, line
    if good:
        yield Batch(first, position - begun, good)
    return chunk[position:], line


def _why(row: bytes, columns: int, is_row: bool) -> str:
    if not _is_text(row):
        return "is not UTF-8"
    if is_row:
        found = len(re.findall(rb"(?:^|,)%s" % _FIELD, row.rstrip(b"\r\n")))  # the csv module takes no field over 128 KB
        return f"{found} column{'s' * (found > 1)} instead of {columns}"
    if b"\r" in row.removesuffix(b"\n").removesuffix(b"\r") and b'"' not in row:
        return "a carriage return outside of quotes"
    return "a quote that does not end, or ends within a field"


def _whole_lines(stream: BinaryIO, name: str) -> bytes:
    """About CHUNK bytes up to a line's end; the last line gets one if it has none."""
    chunk = stream.read(CHUNK)
    if chunk and not chunk.endswith(b"\n"):
        chunk += stream.readline(LONGEST_ROW)
        if not chunk.endswith(b"\n"):
            if stream.read(1):
                raise InputError(f"{name}: a line is longer than {LONGEST_ROW:,} bytes; accepted is CSV, one row a line")
            chunk += b"\n"
    return chunk


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
