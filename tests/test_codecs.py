"""Each format as tables of cases; then properties: what is written reads back, and no bytes at all break a reader."""

import contextlib
import datetime
import io
import math
import struct
import tracemalloc
import zipfile
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from container import codecs
from container.codecs import CSV, JSON, JSONLINES, KINDS, NPY, NPZ, OCTETS, TEXT, decode, encode, media_type, negotiate, text_body
from container.errors import ClientError, NotAcceptable, ServingError, UnsupportedMediaType

NAN = math.nan
MANY = settings(max_examples=300, deadline=None)


def same(left: Any, right: Any) -> bool:
    """Equal in type, shape and values, where nan equals nan."""
    if isinstance(right, np.ndarray):
        if not isinstance(left, np.ndarray) or left.shape != right.shape or (left.dtype == object) != (right.dtype == object):
            return False
        return all(same(a, b) for a, b in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True))
    if isinstance(left, float) and isinstance(right, float) and math.isnan(right):
        return math.isnan(left)
    return bool(type(left) is type(right) and left == right)


def table(rows: list[list[Any]]) -> np.ndarray:
    return np.array(rows, dtype=object)


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npy_header(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def saved(matrix: Any) -> bytes:
    stream = io.BytesIO()
    scipy.sparse.save_npz(stream, matrix)
    return stream.getvalue()


# -- media types and Accept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "name", "parameters"),
    [
        ("text/csv", "text/csv", {}),
        (" Text/CSV ;Charset=UTF-8", "text/csv", {"charset": "UTF-8"}),
        ('application/json; charset="utf-8"; x=1', "application/json", {"charset": "utf-8", "x": "1"}),
        ("application/vnd.some+json", "application/vnd.some+json", {}),
        ("", "application/json", {}),
    ],
)
def test_media_type(header, name, parameters):
    assert media_type(header) == (name, parameters)


@pytest.mark.parametrize("header", ["csv", "text/", "/csv", "text/csv, application/json", "text csv", ";charset=utf-8", "*"])
def test_a_malformed_content_type_is_refused(header):
    with pytest.raises(UnsupportedMediaType, match="is not a media type"):
        media_type(header)


@pytest.mark.parametrize(
    ("accept", "default", "chosen"),
    [
        ("", JSON, JSON),
        ("*/*", CSV, CSV),
        ("*/*", "application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("text/csv", JSON, CSV),
        ("TEXT/CSV", JSON, CSV),
        ("text/csv; charset=utf-8", JSON, CSV),
        ("text/csv; charset=latin-1", JSON, "text/csv; charset=iso8859-1"),
        ("application/x-npy; charset=latin-1", JSON, NPY),
        ("application/json;verbose=true", CSV, JSON),
        ("text/csv, application/json", JSON, CSV),
        ("application/json, text/csv", CSV, JSON),
        ("text/csv;q=0.5, application/json;q=0.9", CSV, JSON),
        ("application/json;q=0.1, text/*", JSON, CSV),
        ("text/*", TEXT, TEXT),
        ("application/*", CSV, JSON),
        ("*/*;q=0.1", CSV, CSV),
        ("*/*, text/csv", JSON, CSV),
        ("*/*, application/json;q=0", JSON, CSV),
        ("text/*, text/csv;q=0", CSV, TEXT),
        ("text/*;q=0.3, text/csv;q=0.7, */*;q=0.5", JSON, CSV),
        ("image/png, application/x-npy;q=0.2", JSON, NPY),
        ("application/x-ndjson", JSON, "application/x-ndjson"),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", JSON, JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", CSV, CSV),
        ("text/csv;q=bad, application/json", CSV, JSON),
        ("text/csv;q=7, application/json", CSV, JSON),
        ("image/png", "image/png", "image/png"),
    ],
)
def test_negotiate(accept, default, chosen):
    assert negotiate(accept, default) == chosen


@pytest.mark.parametrize("accept", ["image/png", "text/csv;q=0", "*/*;q=0", "rubbish", "text/csv; charset=klingon", ",", "image/*"])
def test_nothing_acceptable_says_what_came_and_what_can_be_made(accept):
    with pytest.raises(NotAcceptable, match="accept one of application/json, text/csv, ") as raised:
        negotiate(accept, JSON)
    assert repr(accept) in raised.value.message


@pytest.mark.parametrize(
    ("content_type", "words"),
    [
        ("image/png", ["'image/png'", "text/csv", "application/x-npy"]),
        ("application/x-www-form-urlencoded", ["'application/x-www-form-urlencoded'", "application/json"]),
        ("text/csv; charset=klingon", ["'klingon'", "utf-8"]),
        ("text/csv; charset=unicode_escape", ["'unicode_escape'"]),
        ("text/csv; charset=zlib", ["'zlib'"]),
    ],
)
def test_an_unknown_type_or_charset_is_415_and_says_what_is_accepted(content_type, words):
    with pytest.raises(UnsupportedMediaType) as raised:
        decode(b"1,2", content_type)
    assert raised.value.status == 415
    assert [word for word in words if word not in raised.value.message] == []


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"5.1,3.5,1.4,0.2", [[5.1, 3.5, 1.4, 0.2]]),
        (b"5.1,3.5\n", [[5.1, 3.5]]),
        (b"7", [[7.0]]),
        (b"1\n2\n3", [[1.0], [2.0], [3.0]]),
        (b"1,2\r\n3,4\r\n", [[1.0, 2.0], [3.0, 4.0]]),
        (b"1,2\r3,4\r", [[1.0, 2.0], [3.0, 4.0]]),
        (b"\n1,2\n\n3,4\n\n", [[1.0, 2.0], [3.0, 4.0]]),
        (b"1,2\n  \n3,4", [[1.0, 2.0], [3.0, 4.0]]),
        (b"\xef\xbb\xbf1,2", [[1.0, 2.0]]),
        (b" 1 ,\t2", [[1.0, 2.0]]),
        (b"+1,1e5,.5,1.,-0.0", [[1.0, 1e5, 0.5, 1.0, -0.0]]),
        (b"inf,-Infinity,nan,NaN", [[math.inf, -math.inf, NAN, NAN]]),
        (b"1,,3\n4,5,\n", [[1.0, NAN, 3.0], [4.0, 5.0, NAN]]),
        (b",,", [[NAN, NAN, NAN]]),
        (b"1,NA\nnull,2", [[1.0, NAN], [NAN, 2.0]]),
        (b'"1","2"', [[1.0, 2.0]]),
        (b'""\n5', [[NAN], [5.0]]),
    ],
)
def test_csv_of_numbers_is_a_float_matrix(body, rows):
    assert same(decode(body, CSV), np.array(rows))


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"1,red\n2.5,blue", [[1.0, "red"], [2.5, "blue"]]),
        (b"1,red\n,NA", [[1.0, "red"], [NAN, NAN]]),
        (b"1_000,2", [["1_000", 2.0]]),
        ("\u0661,2".encode(), [["\u0661", 2.0]]),
        (b"0x10,1d5", [["0x10", "1d5"]]),
        (b'"a,b","say ""hi""","two\nlines"', [["a,b", 'say "hi"', "two\nlines"]]),
        ("Zürich,1_0\n5,6".encode(), [["Zürich", "1_0"], [5.0, 6.0]]),
        (b"5.1,3.5\nx,", [[5.1, 3.5], ["x", NAN]]),
        (b" padded ,1", [[" padded ", 1.0]]),
    ],
)
def test_csv_with_text_is_an_object_matrix(body, rows):
    assert same(decode(body, CSV), table(rows))


@pytest.mark.parametrize(
    ("content_type", "body", "rows"),
    [
        ("text/csv; header=present", b"a,b\n1,2\n", [[1.0, 2.0]]),
        ("text/csv; header=present", b'"a\nb",c\n1,2\n3,', [[1.0, 2.0], [3.0, NAN]]),
        ("text/csv; header=absent", b"1,2\n", [[1.0, 2.0]]),
        ("text/csv; charset=utf-16", "1,2\n3,4".encode("utf-16"), [[1.0, 2.0], [3.0, 4.0]]),
        ("text/csv; charset=latin-1", b"1,2", [[1.0, 2.0]]),
    ],
)
def test_csv_parameters(content_type, body, rows):
    assert same(decode(body, content_type), np.array(rows))


def test_csv_text_in_another_charset():
    assert same(decode(b"Z\xfcrich,1", "text/csv; charset=iso-8859-1"), table([["Zürich", 1.0]]))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "holds no rows"),
        (b" \n\r\n", "holds no rows"),
        (b'" "', "holds no rows"),
        (b"1,2\n3,4\n\n5,6,7\n", "line 4 has 3 columns, the first row has 2"),
        (b"a,b\nc\n", "line 2 has 1 columns, the first row has 2"),
        (b'1,2\n"open', "line 2: unexpected end of data"),
        (b'"a"b,2', "line 1: ',' expected after"),
        (b"1,\xff", "is not utf-8 text"),
    ],
)
def test_malformed_csv_says_where(body, message):
    with pytest.raises(ClientError, match="cannot read the body as text/csv") as raised:
        decode(body, CSV)
    assert raised.value.status == 400
    assert message in raised.value.message


def test_line_numbers_count_the_header():
    with pytest.raises(ClientError, match="line 4 has 1 columns"):
        decode(b'"a\nb",c\n1,2\n3\n', "text/csv; header=present")
    with pytest.raises(ClientError, match="holds no rows"):
        decode(b"a,b\n", "text/csv; header=present")


@pytest.mark.parametrize(("last", "kind"), [("", np.float64), ("text", object)])
def test_a_long_csv_is_one_table(last, kind):
    rows = 3 * codecs._BLOCK
    body = b"1,\n" * rows + f"2,{last}".encode()
    value = decode(body, CSV)
    assert value.dtype == kind
    assert value.shape == (rows + 1, 2)
    assert value[:, 0].sum() == rows + 2
    assert same(value[-1:], np.array([[2.0, last or NAN]], dtype=kind))
    with pytest.raises(ClientError, match=f"line {rows + 2} has 1 columns"):
        decode(body + b"\n3", CSV)


def test_a_cell_may_be_long():
    body = b'"' + b"word " * 100_000 + b'",1'
    assert decode(body, CSV)[0, 0] == "word " * 100_000


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b"[[1,2],[3,4]]", [[1.0, 2.0], [3.0, 4.0]]),
        (b"[1,2,3]", [[1.0, 2.0, 3.0]]),
        (b"[[1,null],[true,2.5]]", [[1.0, NAN], [1.0, 2.5]]),
        (b"[[1,NaN],[Infinity,-Infinity]]", [[1.0, NAN], [math.inf, -math.inf]]),
        (b"[[[1,2],[3,4]]]", [[[1.0, 2.0], [3.0, 4.0]]]),
        (b'{"instances":[[1,2]]}', [[1.0, 2.0]]),
        (b'{"instances":[1,2]}', [[1.0], [2.0]]),
        (b'{"inputs":[1,2]}', [[1.0, 2.0]]),
        (b'{"data":[[1,2]]}', [[1.0, 2.0]]),
        (b'{"features":[1,2]}', [[1.0, 2.0]]),
        (b'{"instances":[{"features":[1,2]},{"features":[3,4]}]}', [[1.0, 2.0], [3.0, 4.0]]),
        (b"[123456789012345678901234567890]", [[1.2345678901234568e29]]),
        (b"\xef\xbb\xbf[1]", [[1.0]]),
    ],
)
def test_json_arrays_of_numbers_are_float_arrays(body, rows):
    assert same(decode(body, JSON), np.array(rows))


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b'[[1,"red"],[null,"blue"]]', [[1.0, "red"], [NAN, "blue"]]),
        (b'[["1",2,true]]', [["1", 2.0, True]]),
        (b'["red",5,null]', [["red", 5.0, NAN]]),
        (b'{"instances":[{"features":[1,"red"]}]}', [[1.0, "red"]]),
    ],
)
def test_json_tables_with_text_are_as_in_csv(body, rows):
    assert same(decode(body, JSON), table(rows))


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'["one text", "another"]', ["one text", "another"]),
        (b'["one text", null]', ["one text", None]),
        (b'[["some","tokens"],["more"]]', [["some", "tokens"], ["more"]]),
        (b'[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}]),
        (b"[{},{}]", [{}, {}]),
        (b'{"instances":[{"a":1,"b":"x"}]}', [{"a": 1, "b": "x"}]),
        (b'{"instances":["one","two"]}', ["one", "two"]),
        (b'{"instances":[1,"two"]}', [1, "two"]),
        (b'{"inputs":"a text","parameters":{"top":3}}', {"inputs": "a text", "parameters": {"top": 3}}),
        (b'{"inputs":"a text"}', "a text"),
        (b'{"input":"a text"}', {"input": "a text"}),
        (b'[[1,["x"]]]', [[1, ["x"]]]),
        (b'[1,{"a":"x"}]', [1, {"a": "x"}]),
        (b'"text"', "text"),
        (b"5", 5),
        (b"null", None),
    ],
)
def test_other_json_stays_as_it_is(body, value):
    assert decode(body, JSON) == value


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "zero-length"),
        (b"[1,\n 2,,]", "line 2 column 4"),
        (b"[1,2", "line 1 column"),
        (b"[NaN,,]", "line 1 column"),
        (b"[NaN," + b"[" * 100_000, "recursion"),
        (b"[" * 100_000, "depth limit"),
        (b"[" * 200 + b"]" * 200, "dimension"),
        (b"[NaN," + b"9" * 5000 + b"]", "digits"),
        (b"[]", "no rows"),
        (b'{"instances":[]}', "no rows"),
        (b"[[],[]]", "no numbers"),
        (b"[[1,2],[3]]", "row 2 has 1 columns, the first row has 2"),
        (b"[[1,2],3]", "row 2 has no columns, the first row has 2"),
        (b'{"instances":[1,[2]]}', "row 2 has 1 columns, the first row has none"),
        (b'["\xff"]', "UTF-8"),
        (b"5.1,3.5", "line 1 column 4"),
    ],
)
def test_malformed_json_says_where(body, message):
    with pytest.raises(ClientError, match="cannot read the body as application/json") as raised:
        decode(body, JSON)
    assert message in raised.value.message


def test_one_long_text_does_not_widen_its_neighbours():
    body = b'["' + b"x" * 1_000_000 + b'"' + b",1" * 10_000 + b"]"
    tracemalloc.start()
    try:
        value = decode(body, JSON)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert value.shape == (1, 10_001)
    assert peak < 20 * len(body)  # as wide as its longest text, each cell would take 4 MB


@pytest.mark.parametrize("content_type", ["", "application/json", "application/json; charset=utf-8", "application/json; charset=utf-16"])
def test_json_charsets_and_no_content_type(content_type):
    body = "[[1,2]]".encode("utf-16" if "16" in content_type else "utf-8")
    assert same(decode(body, content_type), np.array([[1.0, 2.0]]))


@pytest.mark.parametrize("content_type", [kind for kind, name in codecs.ALIASES.items() if name == JSONLINES])
def test_json_lines(content_type):
    assert same(decode(b"[1,2]\r\n\n[3,4]\n", content_type), np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert same(decode(b"1\n2", content_type), np.array([[1.0], [2.0]]))
    assert same(decode(b'{"features":[1,NaN]}\n', content_type), np.array([[1.0, NAN]]))
    assert decode(b'{"a":1}\n{"a":2}', content_type) == [{"a": 1}, {"a": 2}]
    assert decode(b'"one"\n"two"', content_type) == ["one", "two"]


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"[1]\n\n[2,,]", "line 3 of the body"), (b"", "no rows"), (b"[1]\n[2,3]", "row 2 has 2 columns"), (b"1,2", "line 1")],
)
def test_malformed_json_lines_say_where(body, message):
    with pytest.raises(ClientError, match=message):
        decode(body, JSONLINES)


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
        (zipped({"a.npy": bytes(codecs.UNPACKED_LIMIT + 1)}), "when unpacked"),
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
    ("body", "content_type", "value"),
    [
        (b"[1]", "", "[1]"),
        (b"\xef\xbb\xbf[1]", "application/json", "[1]"),
        (b"1,2", "Text/CSV; charset=utf-8", "1,2"),
        ("é".encode("latin-1"), "text/plain; charset=latin-1", "é"),
        ("é".encode("utf-16"), "application/x-ndjson; charset=utf-16", "é"),
        (b"1 2:3", "text/libsvm", "1 2:3"),
        (b"\xff\x00", "application/octet-stream", b"\xff\x00"),
        (b"\xff\x00", "image/png", b"\xff\x00"),
    ],
)
def test_text_body(body, content_type, value):
    assert text_body(body, content_type) == value


def test_text_that_is_none_is_refused():
    for content_type in (TEXT, CSV, JSON, JSONLINES):
        with pytest.raises(ClientError, match="is not utf-8 text"):
            text_body(b"\xff", content_type)


def test_text_and_bytes_are_read_as_they_are():
    assert decode("é".encode(), TEXT) == "é"
    assert decode(b"\x00\xff", OCTETS) == b"\x00\xff"


# -- writing ----------------------------------------------------------------------------------------------------------

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


# -- properties -------------------------------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
matrices = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats())
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s.strip() and isinstance(number_or_text(s), str))


def number_or_text(cell: str) -> float | str:
    return codecs._value(cell, codecs._strict_number)


@MANY
@given(matrices)
def test_numbers_survive_csv_and_npy(array):
    for kind in (CSV, NPY, NPZ):
        assert same(decode(encode(array, kind), kind), array)


@MANY
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=finite))
def test_numbers_survive_json(array):
    assert same(decode(encode(array, JSON), JSON), array)
    assert same(decode(encode(array, JSONLINES), JSONLINES), array if array.ndim > 1 else array.reshape(-1, 1))


@MANY
@given(st.lists(st.lists(st.one_of(texts, finite), min_size=3, max_size=3), min_size=1, max_size=5))
@example([["a\rb", "b\r", '"']])
@example([["\u2028 ,", "\x1cy", " x "]])
def test_tables_survive_csv(rows):
    mixed = any(isinstance(cell, str) for row in rows for cell in row)
    assert same(decode(encode(rows, CSV), CSV), np.array(rows, dtype=object if mixed else float))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), finite, st.text(st.characters(exclude_categories=["Cs"]))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
)


@MANY
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, min_size=2, max_size=4))
def test_objects_survive_json(value):
    assert decode(encode(value, JSON), JSON) == value


cells = st.text(st.sampled_from("0123456789.eE+-_ \t,\r\n\"'naifNAx\x00\x0c\x1c\u0661\u00a0"), max_size=30)


@settings(max_examples=1500, deadline=None)
@given(cells)
@example("1,2\r,3")
@example("1\x1c,2")
@example("1\x0c\n2")
@example("\u00a01_0,2")
def test_the_fast_readers_of_csv_agree_with_the_careful_one(text):
    def careful() -> Any:
        media = codecs._media(CSV)
        try:
            return codecs._table(io.StringIO(text, newline=""), 0, media, strict=True)
        except ClientError as error:
            return error.message

    try:
        value = decode(text.encode(), CSV)
    except ClientError as error:
        value = error.message
    assert same(value, careful())


def hostile(kind: str) -> st.SearchStrategy[bytes]:
    """Bytes at random, and valid bodies with some bytes changed, cut or doubled."""
    valid = {
        CSV: b'1,2\n"a",4\n',
        JSON: b'{"instances":[{"features":[1,NaN]},{"features":["a",2e5]}]}',
        JSONLINES: b'{"a":1}\n[1,2]\n"x"\n',
        NPY: npy(np.arange(6.0).reshape(2, 3)),
        NPZ: saved(scipy.sparse.csr_matrix(np.eye(3))),
        TEXT: "é".encode(),
        OCTETS: b"x",
    }[kind]
    edits = st.lists(st.tuples(st.integers(0, len(valid)), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4)

    def edited(changes: list[tuple[int, int, bytes]]) -> bytes:
        body = valid
        for start, length, new in changes:
            body = body[:start] + new + body[start + length :]
        return body

    return st.one_of(st.binary(max_size=80), edits.map(edited))


@pytest.mark.filterwarnings("ignore:Reading `.np")
@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_are_a_value_or_a_client_error(kind):
    @settings(max_examples=400, deadline=None)
    @given(hostile(kind), st.sampled_from(["", "; charset=utf-16", "; charset=latin-1", "; header=present"]))
    def check(body: bytes, parameters: str) -> None:
        for read in (decode, text_body):
            with contextlib.suppress(ClientError):
                read(body, kind + parameters)

    check()


@MANY
@given(st.text(max_size=60))
@example("text/csv; q=")
@example('text/csv; charset="')
@example("*/*;q=nan")
def test_any_header_is_understood_or_refused(header):
    for read, refusal in ((lambda: media_type(header), UnsupportedMediaType), (lambda: negotiate(header, JSON), NotAcceptable)):
        with contextlib.suppress(refusal):
            assert read()
