"""npy and npz: numpy's own files, and scipy's sparse matrices in them. Trusts no header, and neither reads nor writes a pickle."""

import importlib
import io
import math
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from container.errors import ServingError, UnsupportedMediaType
from container.media import CSV, JSON, NPY, Media, malformed

UNPACKED_LIMIT = 256 * 1024 * 1024
"""Bytes that an npz body may hold when unpacked, if the body itself is not larger: a zip can claim a thousand times its size."""

_NPY_HEADER_LIMIT = 10_000  # numpy's own


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
        raise malformed(media, f"{name}: {str(error)[:300]}") from None


def _check_size(layout: Layout, size: int, media: Media, name: str) -> None:
    if layout.end != size:
        claim = f"{layout.dtype} of shape {layout.shape}, which takes {layout.end} bytes with the header"
        raise malformed(media, f"{name}: the header claims {claim}, but there are {size}")


def read_npy(body: bytes, media: Media) -> NDArray[Any]:
    """The array of an npy file, its own shape and type. ClientError, before anything is allocated, if it is none or holds objects."""
    layout = _npy_layout(body, media, "the array")
    _check_size(layout, len(body), media, "the array")
    try:
        flat = np.frombuffer(body, dtype=layout.dtype, offset=layout.start) if layout.end > layout.start else np.empty(0, layout.dtype)
        array = flat.reshape(layout.shape, order="F" if layout.fortran else "C")
    except ValueError as error:
        raise malformed(media, str(error)) from None
    return array.copy(order="K")  # the user's code may write into it; the body cannot be written


def read_npz(body: bytes, media: Media) -> Any:
    """A scipy sparse matrix, else the arrays by name; a lone unnamed one as itself. ClientError if it is no such file.

    Sizes are checked against the members' real headers before numpy and scipy, which trust them, may read.
    """
    try:
        names = _check_members(body, media)
        if {"format.npy", "shape.npy"} <= names:
            return _sparse(body, media)
        with np.load(io.BytesIO(body), allow_pickle=False) as members:
            arrays = dict(members)
    except (ServingError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib and scipy each have a dozen ways to say that a file is broken
        raise malformed(media, str(error)[:300] or type(error).__name__) from None
    return arrays["arr_0"] if arrays.keys() == {"arr_0"} else arrays


def _check_members(body: bytes, media: Media) -> set[str]:
    limit = max(UNPACKED_LIMIT, len(body))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if unpacked > limit:
            raise malformed(media, f"it holds {unpacked} bytes when unpacked; accepted are {limit}")
        if not members:
            raise malformed(media, "it holds no arrays")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not member.filename.endswith(".npy"):
                raise malformed(media, f"its member {member.filename!r} is not an npy file as numpy.savez writes it")
            with archive.open(member) as stream:
                head = stream.read(_NPY_HEADER_LIMIT + 16)
            _check_size(_npy_layout(head, media, member.filename), member.file_size, media, member.filename)
    names = {member.filename for member in members}
    if len(names) < len(members):
        raise malformed(media, "two of its members have the same name")
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
        raise malformed(media, f"a sparse matrix of shape {matrix.shape} is too large; accepted are {limit} rows and columns")
    if matrix.format in ("csr", "csc", "bsr"):
        matrix.check_format(full_check=True)  # an index out of range is a write outside of memory in scipy's C code
    return matrix


def write_npy(value: Any) -> bytes:
    """Anything that numpy makes an array of, as an npy file. TypeError or ValueError if it makes none without Python objects."""
    array = np.asarray(dense(value))
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


def write_npz(value: Any) -> bytes:
    """A sparse matrix as scipy.sparse writes it, else the arrays by name; a lone one is `arr_0`. Errors as write_npy."""
    stream = io.BytesIO()
    if hasattr(value, "toarray"):
        importlib.import_module("scipy.sparse").save_npz(stream, value, compressed=False)
        return stream.getvalue()
    arrays = value if isinstance(value, Mapping) else {"arr_0": value}
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", write_npy(array))
    return stream.getvalue()


def dense(value: Any) -> Any:
    """Sparse matrices, data frames, tensors and numpy's scalars as arrays, anything else as it is."""
    if hasattr(value, "toarray"):
        return value.toarray()
    return np.asarray(value) if hasattr(value, "__array__") else value
