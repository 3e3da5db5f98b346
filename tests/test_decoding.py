"""Reading, each format as tables of cases; then: the fast readers agree with the careful one, and no bytes at all break a reader."""

import contextlib
import io
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from container import decoding
from container.decoding import decode, text_body
from container.errors import ClientError, UnsupportedMediaType
from container.media import ALIASES, CSV, JSON, JSONLINES, KINDS, NPY, NPZ, OCTETS, TEXT, media_of
from tests.bodies import npy, same, saved

NAN = math.nan


def table(rows: list[list[Any]]) -> np.ndarray:
    return np.array(rows, dtype=object)


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
    rows = 3 * decoding._BLOCK
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


@pytest.mark.parametrize("content_type", [kind for kind, name in ALIASES.items() if name == JSONLINES])
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


cells = st.text(st.sampled_from("0123456789.eE+-_ \t,\r\n\"'naifNAx\x00\x0c\x1c\u0661\u00a0"), max_size=30)


@settings(max_examples=1500, deadline=None)
@given(cells)
@example("1,2\r,3")
@example("1\x1c,2")
@example("1\x0c\n2")
@example("\u00a01_0,2")
def test_the_fast_readers_of_csv_agree_with_the_careful_one(text):
    def careful() -> Any:
        media = media_of(CSV)
        try:
            return decoding._table(io.StringIO(text, newline=""), 0, media, strict=True)
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
