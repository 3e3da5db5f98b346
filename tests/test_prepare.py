"""The split of a table into one file a key: nothing is lost, changed or reordered; bad rows are named; memory is bounded."""

import csv
import errno
import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from container import keys, prepare, rows
from container import parquet as parquet_files
from container.pieces import Pieces
from container.rows import InputError
from container.settings import environment

ROOT = Path(__file__).parent.parent
KIND = {".csv": "FORMAT csv, HEADER", ".parquet": "FORMAT parquet, ROW_GROUP_SIZE 20000"}


@pytest.fixture(autouse=True)
def base(tmp_path, monkeypatch):
    """The platform's directory, not that of the machine."""
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "ml"))
    return tmp_path / "ml"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def split(tmp_path, content="", *, name="in.csv", column="id", **options):
    """Splits a text, or what is in tmp_path/in. Returns {file name: text}, and the summary."""
    source = write(tmp_path / "in" / name, content) if content else tmp_path / "in"
    summary = prepare.split(source, tmp_path / "out", column, **options)
    return texts(tmp_path / "out"), summary


def texts(directory: Path) -> dict[str, str]:
    assert not (directory / ".unfinished").exists()
    files = sorted(directory.iterdir())
    return {path.name: (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode() for path in files}


def parquet(path: Path, query: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    duckdb.sql(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    return path


def query(sql: str) -> duckdb.DuckDBPyRelation:
    found = duckdb.sql(sql)
    assert found is not None
    return found


# What comes out


@pytest.mark.parametrize(
    ("content", "files"),
    [
        ("id,v\na,1.50\nb,007\na,2\n", {"a.csv": "id,v\na,1.50\na,2\n", "b.csv": "id,v\nb,007\n"}),
        ("v,id\n1,a\n", {"a.csv": "v,id\n1,a\n"}),
        ("v,id,w\n1,a,2\n", {"a.csv": "v,id,w\n1,a,2\n"}),
        ("id\na\nb\n", {"a.csv": "id\na\n", "b.csv": "id\nb\n"}),
        ("id,v\na,1", {"a.csv": "id,v\na,1\n"}),
        ("id,v\r\na,1\r\na,2\r\n", {"a.csv": "id,v\r\na,1\r\na,2\r\n"}),
        ("v,id\r\n1,a\r\n", {"a.csv": "v,id\r\n1,a\r\n"}),
        ("\ufeffid,v\na,1\n", {"a.csv": "id,v\na,1\n"}),
        ("id,v\n\na,1\n\r\n\n", {"a.csv": "id,v\na,1\n"}),
        ('id,v\n"a","x, y"\na,"say ""hi"""\n', {"a.csv": 'id,v\n"a","x, y"\na,"say ""hi"""\n'}),
        ('id,v\na,"two\nlines"\nb,1\n', {"a.csv": 'id,v\na,"two\nlines"\n', "b.csv": "id,v\nb,1\n"}),
        ('id,v\na,5" pipe\n', {"a.csv": 'id,v\na,5" pipe\n'}),
        ('"id","v"\na,1\n', {"a.csv": '"id","v"\na,1\n'}),
        ("id,v\na,\na,\n", {"a.csv": "id,v\na,\na,\n"}),
        (
            "id,v\na/b,1\n..,2\n ,3\nß,4\n",
            {f"{keys.file_name(k)}.csv": f"id,v\n{k},{n}\n" for n, k in enumerate(("a/b", "..", " ", "ß"), 1)},
        ),
        ('id,v\n"a,""b""",1\n', {"a%2C%22b%22.csv": 'id,v\n"a,""b""",1\n'}),
    ],
)
def test_rows_are_the_bytes_that_they_were(tmp_path, content, files):
    found, summary = split(tmp_path, content)
    assert found == files
    assert (summary.bad, summary.keys) == (0, len(files))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_files_of_a_directory_follow_each_other(tmp_path, suffix):
    write(tmp_path / "in/1.csv", "id,v\na,1\nb,2")
    write(tmp_path / "in/2.csv.gz", "id,v\na,3\n")
    write(tmp_path / "in/deep/3.csv", "id,v\nb,4\n")
    for ignored in ("_SUCCESS", ".hidden/x", "deep/.part.crc"):
        write(tmp_path / "in" / ignored, "x")
    found, summary = split(tmp_path, suffix=suffix)
    assert found == {f"a{suffix}": "id,v\na,1\na,3\n", f"b{suffix}": "id,v\nb,2\nb,4\n"}
    assert summary.rows == 4


def test_an_empty_file_is_left_out_and_said(tmp_path, capsys):
    write(tmp_path / "in/0.csv", "")
    write(tmp_path / "in/1.csv", "id,v\na,1\n")
    assert split(tmp_path)[0] == {"a.csv": "id,v\na,1\n"}
    assert "0.csv is empty: left out" in capsys.readouterr().err


def test_the_same_bytes_each_time(tmp_path):
    source = write(tmp_path / "in.csv", "id,v\n" + "".join(f"{n % 3},{n}\n" for n in range(100)))
    first, second = tmp_path / "1", tmp_path / "2"
    for target in (first, second):
        prepare.split(source, target, "id", suffix=".csv.gz")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {path.name: path.read_bytes() for path in second.iterdir()}


CELL = st.lists(st.sampled_from([*'a0 ,"\n.ß\\', "\r\n"]), max_size=6).map("".join)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.lists(st.tuples(st.sampled_from(["a", "b/", '"', "ß\n", "007"]), CELL, CELL), min_size=1, max_size=30),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    chunk=st.sampled_from([1, 7, 64, rows.CHUNK]),
    limit=st.sampled_from([1, 2000, 1 << 20]),
)
def test_any_table_is_split_as_a_plain_loop_would(table, end, quoting, chunk, limit, tmp_path_factory, monkeypatch):
    tmp_path = tmp_path_factory.mktemp("table")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end, quoting=quoting).writerows([("x", "id", "y"), *((x, key, y) for key, x, y in table)])
    expected: dict[str, list[list[str]]] = {}
    for key, x, y in table:
        expected.setdefault(key, []).append([x, key, y])
    with monkeypatch.context() as patch:
        patch.setattr(rows, "CHUNK", chunk)
        patch.setattr(prepare, "MOST_BUFFERED", limit)
        found, summary = split(tmp_path, text.getvalue())
    tables = {keys.key(name.removesuffix(".csv")): list(csv.reader(io.StringIO(text, newline=""))) for name, text in found.items()}
    assert tables == {key: [["x", "id", "y"], *rows] for key, rows in expected.items()}
    assert (summary.rows, summary.keys, summary.bad) == (len(table), len(expected), 0)


# What is bad


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"a", "1 column instead of 3"),
        (b"a,1", "2 columns instead of 3"),
        (b"a,1,2,3", "4 columns instead of 3"),
        (b'a,"x\ny"', "2 columns instead of 3"),
        (b'a,"x"y,2', "a quote that does not end, or ends within a field"),
        (b'a,"x,2', "a quote that does not end, or ends within a field"),
        (b"a,\xe4,2", "is not UTF-8"),
        (b'"\xe4",1,2', "is not UTF-8"),
        (b"a,x\ry,2", "a carriage return outside of quotes"),
        (b",1,2", "the key is empty; a key of at least one character is accepted"),
        (b'"",1,2', "the key is empty; a key of at least one character is accepted"),
        (b"x" * 300 + b",1,2", "the key '" + "x" * 50 + "'... makes a file name of 300 bytes; accepted are 200"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 16, rows.CHUNK])
def test_a_bad_row_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys, row, why, chunk):
    monkeypatch.setattr(rows, "CHUNK", chunk)
    source = write(tmp_path / "in.csv", b'id,v,w\nb,"1\n",x\n' + row + b"\nb,2,y\n\nb,3,z\n" + row + b"\n")
    summary = prepare.split(source, tmp_path / "out", "id", max_bad=0.4)
    assert texts(tmp_path / "out") == {"b.csv": 'id,v,w\nb,"1\n",x\nb,2,y\nb,3,z\n'}
    assert (summary.rows, summary.keys, summary.bad) == (3, 1, 2)
    lines = 1 + row.count(b"\n")
    assert [(bad.line, bad.why) for bad in summary.first_bad] == [(4, why), (4 + lines + 3, why)]
    assert f"{source}, line 4: {why}: {summary.first_bad[0].text!r}" in capsys.readouterr().err


@pytest.mark.parametrize("field", [b"x" * 200_000, b'"%s, y"' % (b"x" * 200_000)])
def test_a_bad_row_may_be_long(tmp_path, field):
    source = write(tmp_path / "in.csv", b"id,v\na,1\n,%s,\r\n" % field)
    summary = prepare.split(source, tmp_path / "out", "id", max_bad=0.5)
    assert [bad.why for bad in summary.first_bad] == ["3 columns instead of 2"]


def test_many_bad_keys_are_named_by_line_and_not_kept(tmp_path):
    pieces = Pieces(tmp_path, ".csv", b"id\n", limit=1 << 20)
    fields = [(b"" if number % 2 else b"x" * 300 + str(number).encode()) for number in range(1000)]
    for line in (2, 2002):
        batch = rows.Batch(line, 0, [(b'"two\nlines",%s\n' % field, field) for field in fields])
        refused = pieces.add(batch)
        assert [index for index, _ in refused] == list(range(1000))
        assert refused[1][1].startswith("the key is empty")
        assert batch.lines() == list(range(line, line + 2000, 2))
    assert pieces.rows == 0
    assert not any(found for name, found in vars(pieces).items() if isinstance(found, dict)), "memory is bounded"


def test_a_quote_that_never_ends_costs_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST_ROW", 1000)
    monkeypatch.setattr(rows, "CHUNK", 300)
    content = 'id,v\na,"x\n' + "".join(f"b,{n}\n" for n in range(1000))
    found, summary = split(tmp_path, content)
    assert found["b.csv"].count("\n") == 1001
    assert [(bad.line, bad.text) for bad in summary.first_bad] == [(2, 'a,"x')]


def test_only_the_first_bad_rows_are_kept(tmp_path, capsys):
    _, summary = split(tmp_path, "id,v\n" + "a\n" * 500 + "a,1\n", max_bad=1.0)
    assert (summary.bad, len(summary.first_bad)) == (500, prepare.REPORTED)
    assert capsys.readouterr().err.count("1 column instead of 2") == prepare.NAMED


def test_too_many_bad_rows_leave_nothing(tmp_path):
    with pytest.raises(
        InputError, match=r"1 of 4 rows are bad \(25\.00%, accepted are 20\.00%\); the first is .*in\.csv, line 3: 1 column"
    ):
        split(tmp_path, "id,v\na,1\nb\na,2\na,3\n", max_bad=0.2)
    assert list((tmp_path / "out").iterdir()) == []


# What is refused


@pytest.mark.parametrize(
    ("files", "column", "message"),
    [
        ({}, "id", r"in is not there; accepted are \.csv, \.csv\.gz, \.parquet"),
        ({"a.txt": "x"}, "id", r"a\.txt is none of \.csv, \.csv\.gz, \.parquet"),
        ({"a.csv": ""}, "id", r"a\.csv is empty"),
        ({"a.csv": "\n"}, "id", "the first line is blank"),
        ({"a.csv": b"\xff\xfei\0"}, "id", "the header cannot be read: .*accepted is CSV in UTF-8"),
        ({"a.csv": '"id,v\na,1\n'}, "id", "the header cannot be read"),
        ({"a.csv": "id,v\n"}, "id", "in has no rows"),
        ({"a.csv": "id,v\na,1\n"}, "key", r"a\.csv has no column 'key'; its columns: id, v"),
        ({"a.csv": "id,id\na,1\n"}, "id", r"a\.csv has more than one column 'id'"),
        ({"a.csv": "id,v\na,1\n", "b.csv": "id,w\na,1\n"}, "id", r"b\.csv has the columns id, w; .*a\.csv has id, v: all files"),
        ({"a.csv.gz": "id,v\na,1\n", "b.parquet": "x"}, "id", r"holds CSV and Parquet \(.*a\.csv\.gz, .*b\.parquet\)"),
        ({"a.csv": "id,v\na," + "x" * rows.LONGEST_ROW * 2}, "id", "a line is longer than 1,048,576 bytes"),
        ({"a.parquet": "no parquet"}, "id", "DuckDB cannot go on: .*a.parquet"),
    ],
)
def test_what_cannot_be_split(tmp_path, files, column, message):
    for name, content in files.items():
        write(tmp_path / "in" / name, content)
    with pytest.raises(InputError, match=message):
        prepare.split(tmp_path / "in", tmp_path / "out", column)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b"id,v\n" + b"a,1\n" * 9999)[:60]])
def test_a_broken_archive_is_named(tmp_path, content):
    (tmp_path / "a.csv.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read"):
        prepare.split(tmp_path / "a.csv.gz", tmp_path / "out", "id")


def test_the_output_is_not_the_input(tmp_path):
    write(tmp_path / "in/a.csv", "id,v\na,1\n")
    with pytest.raises(InputError, match="is in the input"):
        prepare.split(tmp_path / "in", tmp_path / "in/out", "id")


def test_the_input_is_never_replaced(tmp_path):
    source = write(tmp_path / "a.csv", "id,v\na,1\n")
    with pytest.raises(InputError, match=r"the input .*a\.csv is in the output"):
        prepare.split(source, tmp_path, "id", overwrite=True)
    assert source.read_text() == "id,v\na,1\n"


def test_only_overwrite_replaces(tmp_path):
    split(tmp_path, "id,v\na,1\n")
    write(tmp_path / "out/.unfinished/files/c.csv", "of a split that was killed")
    write(tmp_path / "out/notes.txt", "mine")
    with pytest.raises(InputError, match=r"holds a\.csv; give an empty directory, or --overwrite"):
        split(tmp_path, "id,v\nb,1\n")
    found, _ = split(tmp_path, "id,v\nb,1\n", overwrite=True)
    assert found == {"b.csv": "id,v\nb,1\n", "notes.txt": "mine"}


# Parquet


TYPED = "SELECT n % 3 AS id, n AS v, DATE '2024-01-01' + n::INTEGER AS day, [n::DOUBLE / 2] AS list, '00' || n AS text FROM range(20) t(n)"


def test_parquet_keeps_its_types_and_order(tmp_path):
    parquet(tmp_path / "in/1.parquet", f"{TYPED} LIMIT 11")
    parquet(tmp_path / "in/2.parquet", f"{TYPED} OFFSET 11")
    summary = prepare.split(tmp_path / "in", tmp_path / "out", "id", suffix=".parquet")
    assert (summary.rows, summary.keys) == (20, 3)
    for key in range(3):
        found = query(f"FROM '{tmp_path}/out/{key}.parquet'")
        expected = query(f"SELECT * FROM ({TYPED}) WHERE id = {key} ORDER BY v")
        assert (found.columns, found.types) == (expected.columns, expected.types)
        assert found.fetchall() == expected.fetchall()


@pytest.mark.parametrize("name", ["rowid", "RowID", "%number", "number", "c0"])
@pytest.mark.parametrize("column", ["id", "name"])
def test_a_column_may_be_called_as_ours_and_duckdbs_are(tmp_path, name, column):
    parquet(tmp_path / "in/1.parquet", f"SELECT * FROM (VALUES ('a', 1), ('b', 0), ('a', 0)) t(id, \"{name}\")")
    found, _ = split(tmp_path, column=name if column == "name" else "id")
    if column == "id":
        assert found == {"a.csv": f"id,{name}\na,1\na,0\n", "b.csv": f"id,{name}\nb,0\n"}
    else:
        assert found == {"0.csv": f"id,{name}\nb,0\na,0\n", "1.csv": f"id,{name}\na,1\n"}


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_names_that_look_like_patterns_are_those_files(tmp_path, kind):
    for number, name in enumerate(("in1/a1", "in[1]/a[1]")):
        duckdb.sql(f"COPY (SELECT 'k' AS id, {number} AS v) TO '{tmp_path / 'table'}' ({KIND[kind]})")
        (tmp_path / name).parent.mkdir()
        (tmp_path / "table").rename(tmp_path / f"{name}{kind}")
    prepare.split(tmp_path / "in[1]", tmp_path / "out[1]", "id", suffix=".parquet")
    assert query(f"SELECT v::INTEGER FROM '{tmp_path}/out[[]1]/k.parquet'").fetchall() == [(1,)]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_parquet_as_csv(tmp_path, suffix):
    parquet(tmp_path / "in/1.parquet", "SELECT * FROM (VALUES (1.50, 'a/b', 'x,y'), (2.25, 'b', NULL), (3, 'a/b', 'z')) t(v, id, \"w w\")")
    found, _ = split(tmp_path, suffix=suffix)
    assert found == {f"a%2Fb{suffix}": 'v,id,w w\n1.50,a/b,"x,y"\n3.00,a/b,z\n', f"b{suffix}": "v,id,w w\n2.25,b,\n"}


def test_the_name_of_a_time_is_the_same_on_every_machine(tmp_path, monkeypatch):
    parquet(tmp_path / "in/1.parquet", "SELECT TIMESTAMPTZ '2024-01-01 00:00:00+00' AS id, 1 AS v")
    monkeypatch.setenv("TZ", "America/New_York")
    found, _ = split(tmp_path)
    assert found == {"2024-01-01%2000%3A00%3A00%2B00.csv": "id,v\n2024-01-01 00:00:00+00,1\n"}


def test_csv_as_parquet_is_text(tmp_path):
    content = 'id,"v ""w"""\r\na,007\nb,1.50\na,"two\r\nlines"\na,5" pipe\na,\n'
    write(tmp_path / "in.csv", content)
    prepare.split(tmp_path / "in.csv", tmp_path / "out", "id", suffix=".parquet")
    found = query(f"FROM '{tmp_path}/out/a.parquet'")
    assert (found.columns, [str(kind) for kind in found.types]) == (["id", 'v "w"'], ["VARCHAR", "VARCHAR"])
    assert found.fetchall() == [("a", "007"), ("a", "two\r\nlines"), ("a", '5" pipe'), ("a", None)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize("other", ["Value", "value"])
def test_columns_that_parquet_cannot_tell_apart_are_named(tmp_path, other):
    content = f"id,value,{other}\na,1,2\n"
    with pytest.raises(InputError, match=f"the columns 'value' and '{other}' cannot be told apart in Parquet"):
        split(tmp_path, content, suffix=".parquet")
    assert split(tmp_path, content)[0] == {"a.csv": content}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=20), end=st.sampled_from(["\n", "\r\n"]))
def test_any_csv_is_the_same_text_as_parquet(table, end, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("table")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows([("x", "id", "y"), *((x, "k", y) for x, y in table)])
    prepare.split(write(tmp_path / "in.csv", text.getvalue()), tmp_path / "out", "id", suffix=".parquet")
    assert query(f"FROM '{tmp_path}/out/k.parquet'").fetchall() == [(x or None, "k", y or None) for x, y in table]


def test_bad_keys_of_parquet_are_named(tmp_path, capsys):
    parquet(
        tmp_path / "in/1.parquet", "SELECT CASE WHEN n % 10 = 3 THEN NULL WHEN n = 5 THEN '' ELSE 'a' END AS id, n FROM range(300) t(n)"
    )
    with pytest.raises(InputError, match=r"31 of 300 rows are bad \(10\.33%"):
        split(tmp_path)
    _, summary = split(tmp_path, max_bad=0.2)
    assert (summary.rows, summary.keys, summary.bad) == (269, 1, 31)
    assert [bad.line for bad in summary.first_bad] == sorted([6, *range(4, 300, 10)])
    assert "1.parquet, row 6: the key is empty" in capsys.readouterr().err


def test_many_bad_keys_of_parquet_are_looked_for_at_once(tmp_path, monkeypatch):
    keys_of_rows = "CASE WHEN n < 300 THEN repeat('x', 300) || n WHEN n < 310 THEN NULL ELSE 'a' END"
    parquet(tmp_path / "in/1.parquet", f"SELECT {keys_of_rows} AS id, n FROM range(320) t(n)")
    where = Mock(wraps=parquet_files._where)
    monkeypatch.setattr(parquet_files, "_where", where)
    _, summary = split(tmp_path, max_bad=1.0)
    assert (summary.rows, summary.keys, summary.bad, len(summary.first_bad)) == (10, 1, 310, prepare.REPORTED)
    assert where.call_count == 1


def test_parquet_files_of_other_columns_are_named(tmp_path):
    parquet(tmp_path / "in/1.parquet", "SELECT 1 AS id, 2 AS v")
    parquet(tmp_path / "in/2.parquet", "SELECT 1 AS id, 'x' AS v")
    with pytest.raises(InputError, match=r"2\.parquet has the columns id INTEGER, v VARCHAR; .*1\.parquet has id INTEGER, v INTEGER"):
        split(tmp_path)
    with pytest.raises(InputError, match=r"no column 'key'; its columns: id, v"):
        prepare.split(tmp_path / "in/1.parquet", tmp_path / "out", "key")


# Memory


def test_rows_are_written_when_their_share_of_memory_is_full(tmp_path):
    pieces = Pieces(tmp_path, ".csv", b"id\n", limit=2000)
    for number in range(100):
        pieces.add(rows.Batch(number, 3, [(f"{number % 2}\n".encode(), str(number % 2).encode())]))
    assert 0 < pieces.path("0").read_text().count("0") < 50
    pieces.flush()
    assert pieces.path("0").read_text() == "id\n" + "0\n" * 50


MEASURED = """
import re, sys
from pathlib import Path
from container import prepare
code = prepare.main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


@pytest.mark.live
@pytest.mark.parametrize(("suffix", "memory", "count", "width"), [(".csv", 128, 300000, 10), (".parquet", 256, 1000000, 2)])
def test_memory_is_bounded_for_an_input_that_is_larger(tmp_path, suffix, memory, count, width):
    """The peak of the process itself, for 600 MB of rows as CSV, 400 MB in Parquet."""
    source = tmp_path / f"in{suffix}"
    columns = ", ".join(f"repeat(md5((n + {index})::VARCHAR), {width}) AS c{index}" for index in range(6))
    duckdb.sql(f"COPY (SELECT n % 50 AS id, n, {columns} FROM range({count}) t(n)) TO '{source}' ({KIND[suffix]})")
    arguments = ["split", "--column", "id", source, tmp_path / "out", "--format", suffix[1:], "--memory", str(memory)]
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    child = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert child.stderr == ""
    closing, peak = child.stdout.splitlines()
    assert closing.startswith(f"{count:,} rows, 50 keys, 0 bad rows")
    assert int(peak) < memory << 10


# The command


def run(*arguments):
    return prepare.main(["split", *map(str, arguments)])


def test_the_command_says_what_it_did(tmp_path, base, capsys):
    base.mkdir()
    source = write(tmp_path / "in.csv", "id,v\na,1\nb\na,2\n")
    report = tmp_path / "report/split.json"
    assert run("--column", "id", source, tmp_path / "out", "--max-bad", "0.5", "--report", report) == 0
    line = capsys.readouterr().out
    assert re.fullmatch(r"2 rows, 1 keys, 1 bad rows, \d\.\d s\n", line)
    assert (base / "output/message").read_text() == line.strip()
    found = json.loads(report.read_text())
    assert {name: found[name] for name in ("rows", "keys", "bad")} == {"rows": 2, "keys": 1, "bad": 1}
    assert found["error"] is None
    assert found["first_bad"] == [{"file": str(source), "line": 3, "why": "1 column instead of 2", "text": "b"}]


def test_the_report_tells_of_a_failure_too(tmp_path, capsys):
    source = write(tmp_path / "in.csv", "id,v\na,1\nb\n")
    assert run("--column", "id", source, tmp_path / "out", "--report", tmp_path / "split.json") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 rows are bad" in error
    found = json.loads((tmp_path / "split.json").read_text())
    assert (found["rows"], found["bad"], found["first_bad"][0]["line"]) == (1, 1, 3)
    assert error == f"split failed: {found['error']}"


def test_the_report_tells_of_what_nobody_expected(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "find", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run("--column", "id", tmp_path / "in.csv", tmp_path / "out", "--report", tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text())["error"] == "KeyboardInterrupt"


def test_a_failure_is_one_line_and_the_exit_message(tmp_path, base, capsys):
    base.mkdir()
    assert run("--column", "id", tmp_path.joinpath(*["ß" * 100] * 8), tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("split failed: ")
    assert error.count("\n") == 1
    message = (base / "output/message").read_bytes()
    assert len(message) <= 1024
    assert error.startswith(message.decode())


def test_a_full_disk_is_not_taken_for_a_bad_input(tmp_path, monkeypatch, capsys):
    def add(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a.csv")

    monkeypatch.setattr(Pieces, "add", add)
    assert run("--column", "id", write(tmp_path / "in.csv", "id\na\n"), tmp_path / "out") == 1
    assert capsys.readouterr().err == "split failed: [Errno 28] No space left on device: 'a.csv'\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wrong_variable_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MODEL_SERVER_TIMEOUT", "soon")
    assert run("--column", "id", tmp_path / "in.csv", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("split failed: MODEL_SERVER_TIMEOUT='soon' cannot be used")


def test_without_a_platform_nothing_is_left_there(tmp_path, base):
    assert run("--column", "id", write(tmp_path / "in.csv", "id\na\n"), tmp_path / "out") == 0
    assert not base.exists()


def test_several_instances_are_refused(tmp_path, base, capsys):
    write(base / "config/resourceconfig.json", json.dumps({"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}))
    assert run("--column", "id", write(tmp_path / "in.csv", "id\na\n"), tmp_path / "out") == 1
    assert "the job has 2 instances" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["split", "in", "out", "--colunm", "a"], "the following arguments are required: --column"),
        (["split", "in", "out", "--column", "a", "--colunm", "two\nlines"], "unrecognized arguments: --colunm two lines"),
        (["split", "in", "out", "--column", "a", "--memory", "5"], "5 MB are too few; at least 128 are needed"),
        (["split", "in", "out", "--column", "a", "--memory", "1GB"], "'1GB' is no number of MB; accepted is a whole one, 128 or more"),
        (["split", "in", "out", "--column", "a", "--max-bad", "3"], "3 is no share; accepted is 0 to 1"),
        (["split", "in", "out", "--column", "a", "--max-bad", "few"], "few is no share; accepted is 0 to 1"),
        (["split", "in", "out", "--column", "a", "--format", "orc"], "invalid choice: 'orc'"),
    ],
)
def test_bad_options_are_told_as_any_failure(arguments, message, base, capsys):
    base.mkdir()
    assert prepare.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("split failed: ")
    assert message in error
    assert "; usage: python -m container.prepare " in error
    assert error.count("\n") == 1
    assert (base / "output/message").read_text() == error.strip()
