"""npy and npz as tables of cases, hostile ones among them."""

import io
import math
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import scipy.sparse

from container.arrays import UNPACKED_LIMIT
from container.codecs import NPY, NPZ, decode, encode
from container.errors import ClientError
from tests.bodies import npy, same, saved

NAN = math.nan


def npy_header(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        np.array([1.5, 2.5], dtype=">f4"),
        np.array(["red", "blue"]),
        np.array([[True]]),
        np.array(3.0),
        np.empty((0, 4)),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ],
)
def test_npy_keeps_shape_and_type_and_can_be_written_to(array):
    value = decode(npy(array), NPY)
    assert value.dtype == array.dtype
    assert value.shape == array.shape
    assert (value == array).all()
    assert value.flags.writeable
    assert (decode(encode(array, NPZ), NPZ) == array).all()


BOMB = "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the array"),
        (b"\x93NUMPY", "the array"),
        (b"rubbish, not numpy at all", "the array"),
        (npy(np.array([{}], dtype=object)), "pickle can run code"),
        (npy(np.arange(4))[:-1], "there are"),
        (npy(np.arange(4)) + b"\n", "there are"),
        (npy_header(BOMB), "claims float64 of shape (1099511627776,)"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), "unusable: shape (-1,)"),
        (npy_header("{'descr': '<U0', 'fortran_order': False, 'shape': (1099511627776,)}"), "unusable"),
        (npy_header("{'descr': '<f8', 'shape': (1,)}"), "the array"),
        (npy_header("(" * 9000), "the array"),
        (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 1099511627776, 1099511627776)}"), "cannot read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "the array"),
        (b"\x93NUMPY\x09\x00\x02\x00{}", "version"),
    ],
)
def test_malformed_npy_is_refused_before_anything_is_allocated(body, message):
    tracemalloc.start()
    try:
        with pytest.raises(ClientError) as raised:
            decode(body, NPY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in raised.value.message
    assert peak < 5_000_000


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "coo_matrix", "bsr_matrix", "dia_matrix", "csr_array"])
def test_npz_holds_sparse_matrices(form):
    matrix = getattr(scipy.sparse, form)(np.array([[0, 1.5, 0], [2, 0, 0]]))
    value = decode(saved(matrix), NPZ)
    assert type(value) is type(matrix)
    assert (value != matrix).nnz == 0
    assert (decode(encode(matrix, NPZ), NPZ) != matrix).nnz == 0


def test_npz_of_arrays():
    assert same(decode(zipped({"arr_0.npy": npy(np.array([[1.0]]))}), NPZ), np.array([[1.0]]))
    named = decode(zipped({"x.npy": npy(np.array([1.0])), "file.npy": npy(np.array(["a"]))}), NPZ)
    assert {name: array.tolist() for name, array in named.items()} == {"x": [1.0], "file": ["a"]}


def outside() -> bytes:
    matrix = scipy.sparse.csr_matrix(np.eye(3))
    matrix.indices[0] = 1_000_000
    return saved(matrix)


def huge() -> bytes:
    return saved(scipy.sparse.coo_matrix(([1.0], ([0], [0])), shape=(10**12, 2)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not a zip file"),
        (b"PK\x05\x06", "not a zip file"),
        (zipped({}), "no arrays"),
        (zipped({"a.txt": b"1"}), "is not an npy file"),
        (zipped({"a.npy": npy(np.arange(3))}, zipfile.ZIP_BZIP2), "is not an npy file"),
        (zipped({"a.npy": npy(np.array([{}], dtype=object))}), "pickle can run code"),
        (zipped({"a.npy": npy_header(BOMB)}), "claims float64"),
        (zipped({"a.npy": bytes(UNPACKED_LIMIT + 1)}), "when unpacked"),
        (outside(), "indices must be < 3"),
        (huge(), "too large"),
        (zipped({"format.npy": npy(np.array("csr")), "shape.npy": npy(np.array([1, 1]))}), "cannot read"),
    ],
)
def test_malformed_npz_is_refused(body, message):
    with pytest.raises(ClientError) as raised:
        decode(body, NPZ)
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("value", "array"),
    [
        (np.array([[1.5, 2.5]]), np.array([[1.5, 2.5]])),
        ([1, 2], np.array([1, 2])),
        (["a", "bc"], np.array(["a", "bc"])),
        (np.array(["a", "bc"], dtype=object), np.array(["a", "bc"])),
        (np.array([1, None], dtype=object), np.array([1.0, NAN])),
        (2.5, np.array(2.5)),
        (scipy.sparse.csr_matrix([[0, 1]]), np.array([[0, 1]])),
    ],
)
def test_npy_output(value, array):
    assert same(np.load(io.BytesIO(encode(value, NPY)), allow_pickle=False), array)
