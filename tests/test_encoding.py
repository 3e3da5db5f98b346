"""Writing, each format as tables of cases."""

import datetime
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from container.decoding import decode
from container.encoding import encode
from container.errors import ServingError
from container.media import CSV, JSON, JSONLINES, NPY, OCTETS, TEXT
from tests.bodies import same

MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


class Tensor:
    """What torch's tensors look like to us."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array([[1.5, 2.5]])

    def tolist(self) -> list[list[float]]:
        return [[1.5, 2.5]]


@pytest.mark.parametrize(
    ("value", "kind", "body"),
    [
        (np.array([0, 1]), JSON, b"[0,1]"),
        (np.array([[0.1, np.nan]]), JSON, b"[[0.1,null]]"),
        (np.array(["red", "blue"]), JSON, b'["red","blue"]'),
        (np.array([["red", 1.5, None]], dtype=object), JSON, b'[["red",1.5,null]]'),
        (np.array([[1, 2], [3, 4]]).T, JSON, b"[[1,3],[2,4]]"),
        (np.array(2.5), JSON, b"2.5"),
        (np.float32(0.1), JSON, b"0.1"),
        (np.int64(3), JSON, b"3"),
        (np.str_("a"), JSON, b'"a"'),
        (np.bool_(True), JSON, b"true"),
        (np.array([1.5], dtype=">f8"), JSON, b"[1.5]"),
        (np.array(["2024-01-02", "NaT"], dtype="M8[ns]"), JSON, b'["2024-01-02T00:00:00",null]'),
        ([np.array([1.0]), np.float64(2)], JSON, b"[[1.0],2.0]"),
        ({"labels": np.array(["a"]), 3: {"n": np.int8(1)}}, JSON, b'{"labels":["a"],"3":{"n":1}}'),
        ([math.inf, math.nan, None], JSON, b"[null,null,null]"),
        (Decimal("0.10"), JSON, b"0.10"),
        ([Decimal("NaN"), Decimal("1E+5")], JSON, b"[null,1E+5]"),
        (MOMENT, JSON, b'"2024-01-02T03:04:05+00:00"'),
        (b"bytes", JSON, b'"bytes"'),
        ({1}, JSON, b"[1]"),
        ({"a": 1, "b": 2}.values(), JSON, b"[1,2]"),
        ([np.array([1.5], dtype=">f8"), np.longdouble(2)], JSON, b"[[1.5],2.0]"),
        (Tensor(), JSON, b"[[1.5,2.5]]"),
        (scipy.sparse.csr_matrix([[0, 1]]), JSON, b"[[0,1]]"),
        (None, JSON, b"null"),
        (np.array([0, 1]), CSV, b"0\n1\n"),
        (np.array([[0.1, 1e-7], [1e16, -0.0]]), CSV, b"0.1,1e-7\n1e+16,-0.0\n"),
        (np.array([[1.0], [2.0]]), CSV, b"1.0\n2.0\n"),
        (np.array([[0.5, np.nan], [np.inf, 1.0]]), CSV, b"0.5,nan\ninf,1.0\n"),
        (np.array([True, False]), CSV, b"True\nFalse\n"),
        (np.array(["setosa", "a,b", 'say "hi"']), CSV, b'setosa\n"a,b"\n"say ""hi"""\n'),
        (np.array([["x", 1.5, None]], dtype=object), CSV, b"x,1.5,\n"),
        (np.array([b"red"]), CSV, b"red\n"),
        (np.array([1.5], dtype=">f8"), CSV, b"1.5\n"),
        (np.array(2.5), CSV, b"2.5\n"),
        (np.float32(0.1), CSV, b"0.1\n"),
        (np.empty(0), CSV, b""),
        ("setosa", CSV, b"setosa\n"),
        (1.5, CSV, b"1.5\n"),
        ([None], CSV, b'""\n'),
        ([0.1, "x", Decimal("0.10"), MOMENT], CSV, b"0.1\nx\n0.10\n2024-01-02T03:04:05+00:00\n"),
        ([[1, "a"], (2, "b"), np.array([3.0, 4.0])], CSV, b"1,a\n2,b\n3.0,4.0\n"),
        (["a\rb"], CSV, b'"a\rb"\n'),
        (Tensor(), CSV, b"1.5,2.5\n"),
        (scipy.sparse.csr_matrix([[0, 1]]), CSV, b"0,1\n"),
        (np.array([[1.5, np.nan], [2.0, 3.0]]), JSONLINES, b"[1.5,null]\n[2.0,3.0]\n"),
        (np.array([1, 2]), JSONLINES, b"1\n2\n"),
        (np.array(["a", "b"]), JSONLINES, b'"a"\n"b"\n'),
        ([{"a": np.int64(1)}, {"a": 2}], JSONLINES, b'{"a":1}\n{"a":2}\n'),
        ({"a": 1}, JSONLINES, b'{"a":1}\n'),
        ("a text", TEXT, b"a text"),
        (b"bytes", TEXT, b"bytes"),
        (np.array([1, 2]), TEXT, b"1\n2"),
        (["a", None, 2.5], TEXT, b"a\n\n2.5"),
        (np.float64(0.1), TEXT, b"0.1"),
        (b"\x00\xff", OCTETS, b"\x00\xff"),
        (memoryview(b"ab"), OCTETS, b"ab"),
        ("é", OCTETS, "é".encode()),
    ],
)
def test_encode(value, kind, body):
    assert encode(value, kind) == body


def test_encode_follows_charset_and_aliases():
    assert encode(["é"], "text/csv; charset=iso-8859-1") == "é\n".encode("latin-1")
    assert encode(["é"], "application/json; charset=utf-16").decode("utf-16") == '["é"]'
    assert encode([1, 2], "application/x-ndjson") == b"1\n2\n"
    assert encode([1, 2], "application/json; charset=utf-8") == b"[1,2]"


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ({"a": 1}, CSV, ["of type dict as text/csv", "written as application/json, application/jsonlines"]),
        (np.zeros((2, 2, 2)), CSV, ["numpy.ndarray (float64, shape (2, 2, 2))", "application/json"]),
        ({"a": 1}, NPY, ["of type dict", "application/json"]),
        (np.array([1, "a"], dtype=object), NPY, ["pickle", "text/csv"]),
        ([[1], [2, 3]], NPY, ["of type list", "application/json", "text/csv"]),
        ([[1]], TEXT, ["of type list", "text/csv"]),
        ([1], OCTETS, ["neither bytes nor text"]),
        (object(), JSON, ["of type object", "not JSON serializable", "return numbers, text"]),
        (1j, JSON, ["of type complex", "application/x-npy"]),
        (2**70, JSON, ["of type int", "64-bit", "text/csv"]),
        (["\ud800"], CSV, ["surrogates"]),
        ([1], "image/png", ["'image/png'", "application/json"]),
        (["€"], "text/csv; charset=latin-1", ["of type list", "application/json"]),
    ],
)
def test_what_cannot_be_written_says_what_it_is_and_how_it_could_be(value, kind, words):
    with pytest.raises(ServingError) as raised:
        encode(value, kind)
    assert raised.value.status == 500
    assert [word for word in words if word not in raised.value.message] == []


def test_pandas_where_it_is_installed():
    pandas = pytest.importorskip("pandas", reason="pandas is not a dependency")
    frame = pandas.DataFrame({"a": [1, 2], "when": [pandas.Timestamp(2024, 1, 2), pandas.NaT], "s": ["x", pandas.NA]})
    records = b'{"a":1,"when":"2024-01-02T00:00:00","s":"x"}', b'{"a":2,"when":null,"s":null}'
    assert encode(frame, JSON) == b"[" + b",".join(records) + b"]"
    assert encode(frame, JSONLINES) == b"\n".join(records) + b"\n"
    assert encode(frame, CSV) == b"1,2024-01-02T00:00:00,x\n2,,nan\n"
    assert encode(frame["a"], JSON) == b"[1,2]"
    assert encode(frame["a"], CSV) == b"1\n2\n"
    assert same(decode(encode(frame[["a"]], NPY), NPY), np.array([[1], [2]]))
