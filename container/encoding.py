"""Values -> bytes: the writers of every content type but npy and npz. Imports no library just to know its values."""

import csv
import datetime
import io
import itertools
import sys
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import orjson

from container.arrays import dense, write_npy, write_npz
from container.errors import ServingError
from container.media import CSV, JSON, JSONLINES, KINDS, NPY, NPZ, OCTETS, TEXT, TEXTUAL, media_of


def encode(value: Any, content_type: str) -> bytes:
    """A prediction as bytes of a content type (parameters allowed; charset is followed).

    ServingError if it cannot be written as that type: the message names what it is, and the types that can hold it.
    """
    media = media_of(content_type)
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
    value = dense(value)
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value.reshape(1)
    text = _lines(value, "iuf")
    if text is not None and (b"n" not in text or not np.isinf(value).any()):  # null is nan, or it is infinity
        return text.translate(None, b"[]").replace(b"null", b"nan")
    rows = _csv_rows(_listed(value) if isinstance(value, np.ndarray) else value)
    written = _csv_text(rows, csv.QUOTE_MINIMAL)
    # Python quotes no lone carriage return before 3.13, and readers take one for the end of a line.
    return (_csv_text(rows, csv.QUOTE_ALL) if "\r" in written else written).encode()


def _csv_text(rows: list[list[Any]], quoting: Any) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n", quoting=quoting).writerows(rows)
    return stream.getvalue()


def _csv_rows(value: Any) -> list[list[Any]]:
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
    value = dense(value)
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
    value = dense(value)
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


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    CSV: _write_csv,
    JSON: _write_json,
    JSONLINES: _write_jsonlines,
    NPY: write_npy,
    NPZ: write_npz,
    TEXT: _write_text,
    OCTETS: _write_octets,
}
