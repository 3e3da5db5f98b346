"""Bytes -> values: the readers of every content type but npy and npz. Knows nothing of requests, models or files."""

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from container.arrays import read_npy, read_npz
from container.errors import ClientError, UnsupportedMediaType
from container.media import CSV, JSON, JSONLINES, KINDS, NPY, NPZ, OCTETS, TEXT, TEXTUAL, Media, malformed, media_of

ENVELOPES = frozenset({"instances", "inputs", "data", "features"})
"""An object with one of these as its only key stands for what the key holds."""

MISSING = frozenset({"", "NA", "N/A", "<NA>", "NULL", "null", "None"})
"""Cells of a CSV file that mean nan, as in pandas (`nan` in any case is a number to float() already)."""

_SMALL = 64 * 1024
_BLOCK = 8192
_BOM = b"\xef\xbb\xbf"

# csv's own limit of 128 KB for a cell is less than a long document; the limit of the request's body holds here too.
csv.field_size_limit(2**31 - 1)


def decode(body: bytes, content_type: str) -> Any:
    """The value that a request's body holds; content_type is the header as it came (empty: application/json).

    CSV, and JSON arrays that are tables: an array of (rows, columns), float64 if all cells are numbers or missing (nan),
    else objects (float, str, nan). Other JSON: as Python has it. x-npy: the array; x-npz: a scipy sparse matrix, or
    arrays by name. text/plain: str. application/octet-stream: bytes.

    UnsupportedMediaType for another type, ClientError for a body that is not what its type says.
    """
    media = media_of(content_type)
    if not media.kind:
        raise UnsupportedMediaType(f"cannot read {media.name[:200]!r}; send one of {', '.join(KINDS)}")
    return _READERS[media.kind](body, media)


def text_body(body: bytes, content_type: str) -> str | bytes:
    """What a user's input_fn is given, as in the SageMaker toolkits: str for JSON, JSON lines and text/*, else the bytes.

    ClientError if the body is not text in its charset.
    """
    media = media_of(content_type)
    return _text(body, media) if media.kind in TEXTUAL or media.name.startswith("text/") else body


def _text(body: bytes, media: Media) -> str:
    try:
        return body.decode(media.charset).removeprefix("\ufeff")
    except UnicodeError as error:
        raise malformed(media, f"it is not {media.charset} text: {error}") from None


def _utf8(body: bytes, media: Media) -> bytes:
    return body.removeprefix(_BOM) if media.charset == "utf-8" else _text(body, media).encode()


def _octets(body: bytes, _: Media) -> bytes:
    return body


def _read_csv(body: bytes, media: Media) -> NDArray[Any]:
    if len(body) < _SMALL and media.charset == "utf-8" and not media.header:
        row = _plain_row(body)
        if row is not None:
            return row
    text = _text(body, media)
    stream = io.StringIO(text, newline="")
    skipped = _skip_header(stream, media) if media.header else 0
    start = stream.tell()
    if not text[start:].strip():
        raise malformed(media, "it holds no rows")
    try:
        return np.loadtxt(stream, delimiter=",", comments=None, ndmin=2)
    except ValueError:  # not all cells are numbers, or the rows differ: the other reader knows
        stream.seek(start)
        return _table(stream, skipped, media, strict="_" in text or not text.isascii())


def _plain_row(body: bytes) -> NDArray[np.float64] | None:
    """The hot path: one row of nothing but numbers; None for anything else."""
    line = body.rstrip()
    if b"\n" in line or b"\r" in line or b"_" in line:
        return None
    try:
        return np.array([list(map(float, line.split(b",")))])
    except ValueError:
        return None


def _skip_header(stream: io.StringIO, media: Media) -> int:
    """Moves behind the header line; returns how many lines it took (a quoted name may hold a line break)."""
    reader = csv.reader(stream, strict=True)
    try:
        next(reader, None)
    except csv.Error as error:
        raise malformed(media, f"line {reader.line_num}: {error}") from None
    return reader.line_num


def _table(stream: io.StringIO, skipped: int, media: Media, strict: bool) -> NDArray[Any]:
    """Rows of numbers, text and missing cells. strict: the text has characters that float() is too lenient with.

    In blocks, because the rows as Python's strings take ten times the memory of the array.
    """
    rows = _rows(stream, skipped, media)
    blocks = []
    while block := list(itertools.islice(rows, _BLOCK)):
        blocks.append(_block(block, _strict_number if strict else float))
    if not blocks:
        raise malformed(media, "it holds no rows")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _block(rows: list[list[str]], number: Callable[[str], float]) -> NDArray[Any]:
    by_row = len(rows) < len(rows[0])  # a cell means the same either way; few long runs are faster than many short ones
    runs = [_values(cells, number) for cells in (rows if by_row else zip(*rows, strict=True))]
    texts = any(isinstance(value, str) for run in runs for value in run)
    table = np.array(runs, dtype=object if texts else np.float64)
    return table if by_row else np.ascontiguousarray(table.T)


def _rows(stream: io.StringIO, skipped: int, media: Media) -> Iterator[list[str]]:
    """The rows that are not blank, all as wide as the first."""
    reader = csv.reader(stream, strict=True)
    width = 0
    try:
        for row in reader:
            if not row or (len(row) == 1 and row[0].isspace()):
                continue
            width = width or len(row)
            if len(row) != width:
                raise malformed(media, f"line {skipped + reader.line_num} has {len(row)} columns, the first row has {width}")
            yield row
    except csv.Error as error:
        raise malformed(media, f"line {skipped + reader.line_num}: {error}") from None


def _strict_number(cell: str) -> float:
    """float(), but 1_000 and digits of other scripts are text."""
    cell = cell.strip()
    if "_" in cell or not cell.isascii():
        raise ValueError(cell)
    return float(cell)


def _values(cells: Iterable[str], number: Callable[[str], float]) -> list[float | str]:
    try:
        return list(map(number, cells))
    except ValueError:  # columns of text repeat themselves, so each distinct cell is looked at once
        cells = list(cells)
        known = {cell: _value(cell, number) for cell in set(cells)}
        return [known[cell] for cell in cells]


def _value(cell: str, number: Callable[[str], float]) -> float | str:
    bare = cell.strip()  # of more kinds of space than float() strips, as numpy's reader does
    try:
        return number(bare)
    except ValueError:
        return math.nan if bare in MISSING else cell


def _read_json(body: bytes, media: Media) -> Any:
    body = _utf8(body, media)
    value = _loads(body, media)
    keys, rows = 0, False
    if type(value) is dict and len(value) == 1:
        [(key, inner)] = value.items()
        if key in ENVELOPES:
            value, keys, rows = inner, 1, key == "instances"
    return _array(value, body, media, keys, rows) if type(value) is list else value


def _read_jsonlines(body: bytes, media: Media) -> Any:
    body = _utf8(body, media)
    values = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            try:
                values.append(_loads(line, media))
            except ClientError as error:
                raise ClientError(f"{error.message} of that line, which is line {number} of the body") from None
    return _array(values, body, media, 0, rows=True)


def _loads(body: bytes, media: Media) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in body and b"Infinity" not in body:
            raise malformed(media, str(error)) from None
    try:  # JSON has no nan, but Python's json.dumps writes it, so the clients' serializers send it
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise malformed(media, str(error)) from None


def _array(value: list[Any], body: bytes, media: Media, keys: int, rows: bool) -> Any:
    """A JSON array as a table where it is one, else as it is.

    rows: its elements are rows, so a flat one is a column; else a flat one is a row.
    keys: how many of the body's strings are the keys of envelopes. Whether there are others tells, without
    a look at each element, if all are numbers: numpy would take "1" for one, and widen all cells to the longest text.
    """
    if not value:
        raise malformed(media, "it holds no rows")
    if type(value[0]) is dict and all(type(record) is dict and record.keys() == {"features"} for record in value):
        value, keys, rows = [record["features"] for record in value], keys + len(value), True
    if body.count(b"{") == keys and body.count(b'"') == 2 * keys:
        return _numbers(value, media, rows)
    if all(type(row) is list for row in value):
        return _mixed(value)
    if not rows and any(isinstance(cell, int | float) for cell in value):
        table = _mixed([value])
        return table if isinstance(table, np.ndarray) else value
    return value


def _numbers(value: list[Any], media: Media, rows: bool) -> NDArray[np.float64]:
    try:
        array = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise malformed(media, _uneven(value) or str(error)) from None
    if not array.size:
        raise malformed(media, "its rows hold no numbers")
    return array if array.ndim > 1 else array.reshape((-1, 1) if rows else (1, -1))


def _uneven(value: list[Any]) -> str:
    """Which row is not like the first; "" if that is not what is wrong."""
    widths = [len(row) if isinstance(row, list) else 0 for row in value]
    for number, width in enumerate(widths, 1):
        if width != widths[0]:
            return f"row {number} has {width or 'no'} columns, the first row has {widths[0] or 'none'}"
    return ""


def _mixed(value: list[list[Any]]) -> NDArray[Any] | list[list[Any]]:
    """Rows of numbers, text and nulls as CSV has them (float, str, nan); rows that are no table as they are."""
    if any(len(row) != len(value[0]) for row in value) or not value[0]:
        return value
    if any(isinstance(cell, list | dict) for row in value for cell in row):
        return value
    return np.array([[_mixed_cell(cell) for cell in row] for row in value], dtype=object)


def _mixed_cell(cell: Any) -> Any:
    if cell is None:
        return math.nan
    return float(cell) if type(cell) is int else cell


_READERS: dict[str, Callable[[bytes, Media], Any]] = {
    CSV: _read_csv,
    JSON: _read_json,
    JSONLINES: _read_jsonlines,
    NPY: read_npy,
    NPZ: read_npz,
    TEXT: _text,
    OCTETS: _octets,
}
