"""Bytes <-> values, by content type. Knows formats and media types; knows nothing of requests, models or files.

What each type is read as, and written from, stands in docs/decisions/0002-codecs.md, with the reasons and the figures.
"""

import codecs
import csv
import datetime
import importlib
import io
import itertools
import json
import math
import re
import sys
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray
from werkzeug.http import parse_options_header

from container.errors import ClientError, NotAcceptable, ServingError, UnsupportedMediaType

CSV = "text/csv"
JSON = "application/json"
JSONLINES = "application/jsonlines"
NPY = "application/x-npy"
NPZ = "application/x-npz"
TEXT = "text/plain"
OCTETS = "application/octet-stream"

KINDS = (JSON, CSV, JSONLINES, NPY, NPZ, TEXT, OCTETS)
ALIASES = {
    **{kind: kind for kind in KINDS},
    "application/jsonl": JSONLINES,
    "application/x-jsonl": JSONLINES,
    "application/x-jsonlines": JSONLINES,
    "application/ndjson": JSONLINES,
    "application/x-ndjson": JSONLINES,
}
TEXTUAL = frozenset({JSON, CSV, JSONLINES, TEXT})

NO_CONTENT_TYPE = JSON
"""What a body without a Content-Type is read as: the SageMaker containers' own default."""

ENVELOPES = frozenset({"instances", "inputs", "data", "features"})
"""An object with one of these as its only key stands for what the key holds."""

MISSING = frozenset({"", "NA", "N/A", "<NA>", "NULL", "null", "None"})
"""Cells of a CSV file that mean nan, as in pandas (`nan` in any case is a number to float() already)."""

UNPACKED_LIMIT = 256 * 1024 * 1024
"""Bytes that an npz body may hold when unpacked, if the body itself is not larger: a zip can claim a thousand times its size."""

_SMALL = 64 * 1024
_BLOCK = 8192
_NPY_HEADER_LIMIT = 10_000  # numpy's own
_BOM = b"\xef\xbb\xbf"
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf"{_WORD}/{_WORD}")
_CHARSET = re.compile(r"ascii|utf-(8|16|32).*|iso8859.*|cp\d+|koi8.*|gb.*|big5.*|shift_jis.*|euc_.*")

Row = list[Any]

# csv's own limit of 128 KB for a cell is less than a long document; the limit of the request's body holds here too.
csv.field_size_limit(2**31 - 1)


# -- media types ------------------------------------------------------------------------------------------------------


class Media(NamedTuple):
    """A media type as the codecs need it. kind: one of KINDS, or "" if it is none; charset: Python's name for it."""

    name: str
    kind: str
    charset: str
    header: bool


@lru_cache(maxsize=512)
def media_type(header: str) -> tuple[str, Mapping[str, str]]:
    """The lower-cased type of a Content-Type header (empty: application/json) and its parameters.

    UnsupportedMediaType if it is malformed.
    """
    name, parameters = parse_options_header(header if header.strip() else NO_CONTENT_TYPE)
    name = name.strip().lower()
    if not _MEDIA_TYPE.fullmatch(name):
        raise UnsupportedMediaType(f"{header[:200]!r} is not a media type; send one like 'text/csv' or 'application/json; charset=utf-8'")
    return name, MappingProxyType(parameters)


@lru_cache(maxsize=512)
def _media(header: str) -> Media:
    name, parameters = media_type(header)
    charset = parameters.get("charset", "utf-8")
    found = _charset(charset)
    if not found:
        raise UnsupportedMediaType(f"charset {charset[:100]!r} is not known; send utf-8, or one like utf-16, iso-8859-1, windows-1252")
    return Media(name, ALIASES.get(name, ""), found, parameters.get("header", "").lower() == "present")


@lru_cache(maxsize=512)
def _charset(name: str) -> str:
    """Python's name of a character set; "" if there is none. Python's other codecs (zlib, idna, unicode_escape) are no charsets."""
    try:
        found = codecs.lookup(name).name
    except (LookupError, ValueError):
        return ""
    return found if _CHARSET.fullmatch(found) else ""


@lru_cache(maxsize=512)
def negotiate(accept: str, default: str) -> str:
    """The content type to answer with, for an Accept header (RFC 9110, 12.5.1), parameters other than q and charset ignored.

    The best q wins; among equals the range that says most, then the one named first, then the default. Absent, empty or
    `*/*`: the default as it is. A charset other than UTF-8 comes back as a parameter. NotAcceptable if nothing is left.
    """
    ranges = _ranges(accept)
    if not accept.strip() or ranges == [("*/*", "utf-8", 1.0)]:
        return default
    preferred = media_type(default)[0]
    offers = dict.fromkeys((preferred, *KINDS, *ALIASES))
    best: tuple[tuple[float, int, int], str] | None = None
    for offer in offers:
        matches = [(_breadth(name, offer), -order, charset, q) for order, (name, charset, q) in enumerate(ranges) if _breadth(name, offer)]
        if not matches:
            continue
        breadth, order, charset, q = max(matches, key=lambda match: match[:2])
        rank = (q, breadth, order)  # the default is the first of the offers, so it keeps its place among equals
        if q > 0 and (best is None or rank > best[0]):
            written = default if offer == preferred else offer
            best = rank, written if charset == "utf-8" or ALIASES.get(offer) not in TEXTUAL else f"{offer}; charset={charset}"
    if best is None:
        raise NotAcceptable(f"cannot answer with {accept[:200]!r}; accept one of {', '.join(dict.fromkeys((preferred, *KINDS)))}")
    return best[1]


def _ranges(accept: str) -> list[tuple[str, str, float]]:
    """(type, charset, q) of each range of an Accept header; what is malformed or in an unknown charset is left out."""
    ranges = []
    for part in accept.split(","):
        name, parameters = parse_options_header(part)
        name = name.strip().lower()
        charset = _charset(parameters.get("charset", "utf-8"))
        try:
            q = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if name == "*":  # what Java's URLConnection sends
            name = "*/*"
        if charset and 0 <= q <= 1 and _MEDIA_TYPE.fullmatch(name):
            ranges.append((name, charset, q))
    return ranges


def _breadth(name: str, offer: str) -> int:
    """How much a media range says of a type: 3 names it, 2 `type/*`, 1 `*/*`, 0 does not match."""
    if name == offer:
        return 3
    if name == "*/*":
        return 1
    return 2 if name.endswith("/*") and offer.startswith(name[:-1]) else 0


# -- reading ----------------------------------------------------------------------------------------------------------


def decode(body: bytes, content_type: str) -> Any:
    """The value that a request's body holds; content_type is the header as it came (empty: application/json).

    CSV, and JSON arrays that are tables: an array of (rows, columns), float64 if all cells are numbers or missing (nan),
    else objects (float, str, nan). Other JSON: as Python has it. x-npy: the array; x-npz: a scipy sparse matrix, or
    arrays by name. text/plain: str. application/octet-stream: bytes.

    UnsupportedMediaType for another type, ClientError for a body that is not what its type says.
    """
    media = _media(content_type)
    if not media.kind:
        raise UnsupportedMediaType(f"cannot read {media.name[:200]!r}; send one of {', '.join(KINDS)}")
    return _READERS[media.kind](body, media)


def text_body(body: bytes, content_type: str) -> str | bytes:
    """What a user's input_fn is given, as in the SageMaker toolkits: str for JSON, JSON lines and text/*, else the bytes.

    ClientError if the body is not text in its charset.
    """
    media = _media(content_type)
    return _text(body, media) if media.kind in TEXTUAL or media.name.startswith("text/") else body


def _malformed(media: Media, what: str) -> ClientError:
    return ClientError(f"cannot read the body as {media.name}: {what}")


def _text(body: bytes, media: Media) -> str:
    try:
        return body.decode(media.charset).removeprefix("\ufeff")
    except UnicodeError as error:
        raise _malformed(media, f"it is not {media.charset} text: {error}") from None


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
        raise _malformed(media, "it holds no rows")
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
        raise _malformed(media, f"line {reader.line_num}: {error}") from None
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
        raise _malformed(media, "it holds no rows")
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
                raise _malformed(media, f"line {skipped + reader.line_num} has {len(row)} columns, the first row has {width}")
            yield row
    except csv.Error as error:
        raise _malformed(media, f"line {skipped + reader.line_num}: {error}") from None


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
            raise _malformed(media, str(error)) from None
    try:  # JSON has no nan, but Python's json.dumps writes it, so the clients' serializers send it
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _malformed(media, str(error)) from None


def _array(value: list[Any], body: bytes, media: Media, keys: int, rows: bool) -> Any:
    """A JSON array as a table where it is one, else as it is.

    rows: its elements are rows, so a flat one is a column; else a flat one is a row.
    keys: how many of the body's strings are the keys of envelopes. Whether there are others tells, without
    a look at each element, if all are numbers: numpy would take "1" for one, and widen all cells to the longest text.
    """
    if not value:
        raise _malformed(media, "it holds no rows")
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
        raise _malformed(media, _uneven(value) or str(error)) from None
    if not array.size:
        raise _malformed(media, "its rows hold no numbers")
    return array if array.ndim > 1 else array.reshape((-1, 1) if rows else (1, -1))


def _uneven(value: list[Any]) -> str:
    """Which row is not like the first; "" if that is not what is wrong."""
    widths = [len(row) if isinstance(row, list) else 0 for row in value]
    for number, width in enumerate(widths, 1):
        if width != widths[0]:
            return f"row {number} has {width or 'no'} columns, the first row has {widths[0] or 'none'}"
    return ""


def _mixed(value: list[Row]) -> NDArray[Any] | list[Row]:
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


class Layout(NamedTuple):
    """What the header of an npy file claims, and where its data starts."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize


@lru_cache(maxsize=128)
def _layout(header: bytes) -> Layout:
    """Reads an npy header without touching the data. ValueError says what is wrong with it."""
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, _NPY_HEADER_LIMIT)
    elif version in ((2, 0), (3, 0)):  # 3.0 differs in the charset of field names only
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, _NPY_HEADER_LIMIT)
    else:
        raise ValueError(f"version {version} of the format is not known; send 1.0, 2.0 or 3.0")
    if dtype.hasobject:
        raise ValueError("it is an array of Python objects, which are pickled, and a pickle can run code; send numbers or strings")
    if any(size < 0 for size in shape) or not dtype.itemsize:
        raise ValueError(f"its header is unusable: shape {shape}, type {dtype}")
    return Layout(shape, fortran, dtype, stream.tell())


def _npy_layout(head: bytes, media: Media, name: str) -> Layout:
    """The layout of an npy file from its first bytes; ClientError whatever is wrong with them."""
    start = 10 if head[6:7] == b"\x01" else 12
    size = int.from_bytes(head[8:start], "little")
    try:
        return _layout(head[: start + min(size, _NPY_HEADER_LIMIT + 1)])
    except Exception as error:  # numpy evaluates the header as Python: what that may raise is not listed anywhere
        raise _malformed(media, f"{name}: {str(error)[:300]}") from None


def _check_size(layout: Layout, size: int, media: Media, name: str) -> None:
    if layout.end != size:
        claim = f"{layout.dtype} of shape {layout.shape}, which takes {layout.end} bytes with the header"
        raise _malformed(media, f"{name}: the header claims {claim}, but there are {size}")


def _read_npy(body: bytes, media: Media) -> NDArray[Any]:
    layout = _npy_layout(body, media, "the array")
    _check_size(layout, len(body), media, "the array")
    try:
        flat = np.frombuffer(body, dtype=layout.dtype, offset=layout.start) if layout.end > layout.start else np.empty(0, layout.dtype)
        array = flat.reshape(layout.shape, order="F" if layout.fortran else "C")
    except ValueError as error:
        raise _malformed(media, str(error)) from None
    return array.copy(order="K")  # the user's code may write into it; the body cannot be written


def _read_npz(body: bytes, media: Media) -> Any:
    """Sizes are checked against the members' real headers before numpy and scipy, which trust them, may read."""
    try:
        names = _check_members(body, media)
        if {"format.npy", "shape.npy"} <= names:
            return _sparse(body, media)
        with np.load(io.BytesIO(body), allow_pickle=False) as members:
            arrays = dict(members)
    except (ServingError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and scipy each have a dozen ways to say that a file is broken
        raise _malformed(media, str(error)[:300] or type(error).__name__) from None
    return arrays["arr_0"] if arrays.keys() == {"arr_0"} else arrays


def _check_members(body: bytes, media: Media) -> set[str]:
    limit = max(UNPACKED_LIMIT, len(body))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > limit:
            raise _malformed(media, f"it holds {unpacked} bytes when unpacked; accepted are {limit}")
        if not members:
            raise _malformed(media, "it holds no arrays")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not member.filename.endswith(".npy"):
                raise _malformed(media, f"its member {member.filename!r} is not an npy file as numpy.savez writes it")
            with archive.open(member) as stream:
                head = stream.read(_NPY_HEADER_LIMIT + 16)
            _check_size(_npy_layout(head, media, member.filename), member.file_size, media, member.filename)
    names = {member.filename for member in members}
    if len(names) < len(members):
        raise _malformed(media, "two of its members have the same name")
    return names


def _sparse(body: bytes, media: Media) -> Any:
    try:
        sparse = importlib.import_module("scipy.sparse")
    except ImportError:
        raise UnsupportedMediaType(f"cannot read a sparse matrix: scipy is not installed here; send {NPY}, {CSV} or {JSON}") from None
    matrix = sparse.load_npz(io.BytesIO(body))
    # Turning a matrix into another form allocates its dimensions, however few values it holds.
    limit = max(UNPACKED_LIMIT, len(body)) // 8
    if max(matrix.shape) > limit:
        raise _malformed(media, f"a sparse matrix of shape {matrix.shape} is too large; accepted are {limit} rows and columns")
    if matrix.format in ("csr", "csc", "bsr"):
        matrix.check_format(full_check=True)  # an index out of range is a write outside of memory in scipy's C code
    return matrix


_READERS: dict[str, Callable[[bytes, Media], Any]] = {
    CSV: _read_csv,
    JSON: _read_json,
    JSONLINES: _read_jsonlines,
    NPY: _read_npy,
    NPZ: _read_npz,
    TEXT: _text,
    OCTETS: _octets,
}


# -- writing ----------------------------------------------------------------------------------------------------------


def encode(value: Any, content_type: str) -> bytes:
    """A prediction as bytes of a content type (parameters allowed; charset is followed).

    ServingError if it cannot be written as that type: the message names what it is, and the types that can hold it.
    """
    media = _media(content_type)
    if not media.kind:
        raise ServingError(f"cannot write {media.name[:200]!r}; choose one of {', '.join(KINDS)}")
    try:
        payload = _WRITERS[media.kind](value)
        return payload if media.charset == "utf-8" or media.kind not in TEXTUAL else payload.decode().encode(media.charset)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        others = [kind for kind in KINDS if kind != media.kind and _fits(value, kind)]
        ways = f"it can be written as {', '.join(others)}" if others else "return numbers, text, lists, dicts or arrays of them"
        raise ServingError(f"cannot write a prediction of type {_name(value)} as {media.name}: {error}; {ways}") from error


def _fits(value: Any, kind: str) -> bool:
    try:
        _WRITERS[kind](value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


def _name(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"numpy.ndarray ({value.dtype}, shape {value.shape})"
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _write_json(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype.kind == "M":
        value = _listed(value)
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError:  # arrays in another byte order, long doubles and the like go through _plain
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    """What orjson does not know, as something that it knows. nan and infinity are null: JSON has neither."""
    if isinstance(value, bytes | bytearray):
        return value.decode()
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value)) if value.is_finite() else None
    if type(value).__name__ in ("NaTType", "NAType") or (isinstance(value, np.datetime64) and np.isnat(value)):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if _is_frame(value):
        return value.to_dict(orient="records")
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        return _listed(value)
    if hasattr(value, "toarray"):
        return _listed(value.toarray())
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Collection):
        return list(value)
    raise TypeError(f"{_name(value)} has no form in JSON")


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _listed(value: Any) -> Any:
    """An array, or what acts like one, as Python's own values."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "M":
        value = value.astype("datetime64[us]")  # from nanoseconds, tolist() makes plain numbers
    if isinstance(value, np.ndarray | np.generic) and value.dtype == np.longdouble:
        value = value.astype(np.float64)  # Python has none: tolist() leaves them as they are
    return value.tolist()


def _dense(value: Any) -> Any:
    """Sparse matrices, data frames, tensors and numpy's scalars as arrays, anything else as it is."""
    if hasattr(value, "toarray"):
        return value.toarray()
    return np.asarray(value) if hasattr(value, "__array__") else value


def _lines(value: Any, kinds: str) -> bytes | None:
    """An array of numbers as JSON lines, many times faster than any other writer; None if it is none of these kinds of dtype."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or value.ndim not in (1, 2) or not value.size:
        return None
    try:
        text = orjson.dumps(np.ascontiguousarray(value), option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # another byte order, or long doubles
        return None
    return (text[1:-1].replace(b",", b"\n") if value.ndim == 1 else text[1:-1].replace(b"],[", b"]\n[")) + b"\n"


def _write_csv(value: Any) -> bytes:
    value = _dense(value)
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value.reshape(1)
    text = _lines(value, "iuf")
    if text is not None and (b"n" not in text or not np.isinf(value).any()):  # null is nan, or it is infinity
        return text.translate(None, b"[]").replace(b"null", b"nan")
    rows = _csv_rows(_listed(value) if isinstance(value, np.ndarray) else value)
    written = _csv_text(rows, csv.QUOTE_MINIMAL)
    # Python quotes no lone carriage return before 3.13, and readers take one for the end of a line.
    return (_csv_text(rows, csv.QUOTE_ALL) if "\r" in written else written).encode()


def _csv_text(rows: list[Row], quoting: Any) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n", quoting=quoting).writerows(rows)
    return stream.getvalue()


def _csv_rows(value: Any) -> list[Row]:
    if not isinstance(value, list | tuple):
        return [[_cell(value)]]
    return [[_cell(cell) for cell in _row(row)] for row in value]


def _row(value: Any) -> Iterable[Any]:
    if isinstance(value, np.ndarray):
        value = _listed(value)
    return value if isinstance(value, list | tuple) else (value,)


def _cell(value: Any) -> Any:
    """One value as the csv module and text/plain write it: floats in full, True and False, nothing for None."""
    if value is None or isinstance(value, str | int | float | Decimal | uuid.UUID):
        return value
    if type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, np.generic):
        return _cell(_listed(np.asarray(value)))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return value.decode()
    raise TypeError(f"{_name(value)} is not a single number or text")


def _write_jsonlines(value: Any) -> bytes:
    if _is_frame(value):
        value = _plain(value)
    value = _dense(value)
    text = _lines(value, "iufb")
    if text is not None:
        return text
    if isinstance(value, np.ndarray):
        value = _listed(value)
    lines = value if isinstance(value, list | tuple) else [value]
    return b"".join(itertools.chain.from_iterable((_write_json(line), b"\n") for line in lines))


def _write_text(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    value = _dense(value)
    if isinstance(value, np.ndarray):
        value = _listed(value)
    cells = map(_cell, value) if isinstance(value, list | tuple) else [_cell(value)]
    return "\n".join("" if cell is None else str(cell) for cell in cells).encode()


def _write_octets(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    raise TypeError("it is neither bytes nor text")


def _write_npy(value: Any) -> bytes:
    array = np.asarray(_dense(value))
    if array.dtype.hasobject:
        array = _without_objects(array)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _without_objects(array: NDArray[Any]) -> NDArray[Any]:
    """An object array of only text, or only numbers and None, as an array of those."""
    cells = array.ravel().tolist()
    if all(isinstance(cell, str) for cell in cells):
        return array.astype(np.str_)
    if all(cell is None or isinstance(cell, int | float | np.number) for cell in cells):
        return array.astype(np.float64)
    raise TypeError("it holds Python objects, which an npy file can only pickle")


def _write_npz(value: Any) -> bytes:
    stream = io.BytesIO()
    if hasattr(value, "toarray"):
        importlib.import_module("scipy.sparse").save_npz(stream, value, compressed=False)
        return stream.getvalue()
    arrays = value if isinstance(value, Mapping) else {"arr_0": value}
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", _write_npy(array))
    return stream.getvalue()


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    CSV: _write_csv,
    JSON: _write_json,
    JSONLINES: _write_jsonlines,
    NPY: _write_npy,
    NPZ: _write_npz,
    TEXT: _write_text,
    OCTETS: _write_octets,
}
