"""What reading and writing a body costs, ours beside the libraries that could do it: one row, and 100,000.

    python -m benchmarks.codecs

Prints a Markdown table. Candidates that are not installed (pandas, polars, pyarrow, msgspec) are left out. Each figure is
the best of five runs; each candidate's answer is checked before it is timed.
"""

import csv
import importlib
import io
import json
import random
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import orjson

from container import codecs

ROWS = 100_000
RUNS = 5
Case = tuple[str, Callable[[Any], Any], bool]  # name, function, whether it makes the float matrix that ours makes


def installed(name: str) -> Any:
    """A library that may not be there; None if it is not."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def numbers(rows: int) -> np.ndarray:
    """(rows, 4) numbers with all the digits that a float64 has."""
    return np.random.default_rng(7).uniform(0, 10, (rows, 4))


def mixed(rows: int) -> bytes:
    """CSV of 10 columns: six of numbers, three of text, one of text with missing cells."""
    choose = random.Random(7)
    columns = ("{:.3f}", "{:d}", "red blue green", "{:.3f}", "{:.3f}", "{:d}", "a b c", "{:.3f}", " yes", "{:.3f}")
    stream = io.StringIO()
    for _ in range(rows):
        cells = [
            column.format(choose.randrange(100) if "d" in column else choose.random())
            if "{" in column
            else choose.choice(column.split(" "))
            for column in columns
        ]
        stream.write(",".join(cells) + "\n")
    return stream.getvalue().encode()


def csv_readers() -> Iterator[Case]:
    yield "**ours**", lambda body: codecs.decode(body, codecs.CSV), True
    yield "numpy.loadtxt", lambda body: np.loadtxt(io.StringIO(body.decode()), delimiter=",", comments=None, ndmin=2), True
    yield "numpy.genfromtxt (SageMaker toolkit)", lambda body: np.atleast_2d(np.genfromtxt(io.StringIO(body.decode()), delimiter=",")), True
    yield "split and float", lambda body: np.array([list(map(float, line.split(b","))) for line in body.splitlines()]), True
    yield "csv.reader, strings only", lambda body: list(csv.reader(io.StringIO(body.decode()))), False
    if pandas := installed("pandas"):
        yield "pandas.read_csv", lambda body: pandas.read_csv(io.BytesIO(body), header=None).to_numpy(), True
    if polars := installed("polars"):
        yield "polars.read_csv", lambda body: polars.read_csv(body, has_header=False).to_numpy(), True
    if arrow := installed("pyarrow.csv"):
        options = arrow.ReadOptions(autogenerate_column_names=True)
        yield "pyarrow.csv", lambda body: np.column_stack(arrow.read_csv(io.BytesIO(body), read_options=options).columns), True


def mixed_readers() -> Iterator[Case]:
    yield "**ours**", lambda body: codecs.decode(body, codecs.CSV), False
    for name, read, _ in csv_readers():
        if name.startswith(("csv.reader", "pandas.read_csv", "polars")):
            yield name, read, False


def json_readers() -> Iterator[Case]:
    yield "**ours**", lambda body: codecs.decode(body, codecs.JSON), True
    yield "orjson, lists only", orjson.loads, False
    yield "json, lists only", json.loads, False
    if msgspec := installed("msgspec"):
        yield "msgspec, lists only", msgspec.json.decode, False
        yield "msgspec, typed, lists only", msgspec.json.Decoder(list[list[float]]).decode, False


def csv_writers() -> Iterator[Case]:
    def written(array: np.ndarray) -> bytes:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(array.tolist())
        return stream.getvalue().encode()

    def savetxt(array: np.ndarray) -> bytes:
        stream = io.StringIO()
        np.savetxt(stream, array, delimiter=",", fmt="%s")
        return stream.getvalue().encode()

    yield "**ours**", lambda array: codecs.encode(array, codecs.CSV), True
    yield "csv.writer", written, True
    yield "numpy.savetxt (SageMaker toolkit)", savetxt, True
    if pandas := installed("pandas"):
        yield "pandas.to_csv (classic sample)", lambda array: pandas.DataFrame(array).to_csv(header=False, index=False).encode(), True


def json_writers() -> Iterator[Case]:
    yield "**ours**", lambda array: codecs.encode(array, codecs.JSON), True
    yield "orjson on tolist()", lambda array: orjson.dumps(array.tolist()), True
    yield "json on tolist() (SageMaker toolkit)", lambda array: json.dumps(array.tolist()).encode(), True
    if msgspec := installed("msgspec"):
        yield "msgspec on tolist()", lambda array: msgspec.json.encode(array.tolist()), True


def npy_readers() -> Iterator[Case]:
    yield "**ours**", lambda body: codecs.decode(body, codecs.NPY), True
    yield "numpy.load", lambda body: np.load(io.BytesIO(body)), True


def best(work: Callable[[], Any]) -> float:
    """Seconds for one call."""
    timer = timeit.Timer(work)
    once = max(timer.timeit(1), 1e-7)
    calls = max(1, int(0.05 / once))
    return min(timer.repeat(RUNS if once < 1 else 1, calls)) / calls


def check(read: Callable[[Any], Any], value: Any, expected: np.ndarray) -> None:
    result = read(value)
    if isinstance(result, bytes):  # compared as numbers: writers differ in how they put an exponent
        result = np.array([float(cell) for cell in result.translate(None, b"[] ").replace(b"\n", b",").rstrip(b",").split(b",")])
    if not np.array_equal(np.ravel(result), expected.ravel()):
        raise AssertionError("a candidate's answer is not the array that was sent")


def compare(title: str, cases: Iterator[Case], one: Any, many: Any) -> None:
    print(f"\n| {title} | one row, µs | {ROWS:,} rows, ms |\n|---|--:|--:|")
    for name, work, exact in cases:
        if exact:
            check(work, one, numbers(1))
            check(work, many, numbers(ROWS))
        few, lots = best(partial(work, one)), best(partial(work, many))
        print(f"| {name} | {few * 1e6:.1f} | {lots * 1e3:.0f} |")


def main() -> None:
    one, many = numbers(1), numbers(ROWS)
    rows, table = codecs.encode(one, codecs.CSV), codecs.encode(many, codecs.CSV)
    compare("CSV in, 4 numbers a row", csv_readers(), rows, table)
    compare("CSV in, 10 columns of numbers, text and missing cells", mixed_readers(), mixed(1), mixed(ROWS))
    compare("JSON in, 4 numbers a row", json_readers(), codecs.encode(one, codecs.JSON), codecs.encode(many, codecs.JSON))
    compare("npy in, 4 numbers a row", npy_readers(), codecs.encode(one, codecs.NPY), codecs.encode(many, codecs.NPY))
    compare("CSV out, 4 numbers a row", csv_writers(), one, many)
    compare("JSON out, 4 numbers a row", json_writers(), one, many)


if __name__ == "__main__":
    main()
