"""Parquet files through DuckDB: read, split by a column in bounded memory, made of CSV files. The only module that imports DuckDB."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from container import keys
from container.rows import LONGEST_ROW, Bad, InputError

if TYPE_CHECKING:
    import pandas as pd  # a split has no memory to spare for it

WRITERS = {
    ".csv": "FORMAT csv, HEADER",
    ".csv.gz": "FORMAT csv, HEADER, COMPRESSION gzip",
    ".parquet": "FORMAT parquet",
}
NAMED = 100
"""Rows named whose key makes no file's name; the rest are counted."""

THREAD = 128 << 20
"""Bytes that DuckDB wants for each thread."""


@contextmanager
def engine(directory: Path, memory: int, cpus: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB whose tables, and what does not fit into `memory` bytes, are in a directory. Raises InputError for what goes wrong in it."""
    directory.mkdir()
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory * 4 // 5 >> 20}MiB",  # what it takes beside this was up to a tenth of it
        "temp_directory": str(directory),
        "threads": max(1, min(cpus, memory // THREAD)),
        "autoinstall_known_extensions": False,  # nothing is fetched: a job may have no network
    }
    try:
        with duckdb.connect(directory / "tables.duckdb", config=config) as connection:
            connection.execute("SET enable_progress_bar = false")  # it would print among our lines
            connection.execute("SET TimeZone = 'UTC'")  # a time's text, and so the name of its key, is the same on every machine
            yield connection
    except duckdb.OutOfMemoryException as error:
        raise InputError(f"{memory >> 20} MB for DuckDB are too few for these rows, give --memory more: {_first_line(error)}") from error
    except duckdb.Error as error:
        raise InputError(f"DuckDB cannot go on: {_first_line(error)}") from error


def table(file: Path) -> "pd.DataFrame":
    """The rows of a file, with the types that it has."""
    with duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False}) as connection:
        return connection.execute(f"FROM {_reader([file])}").df()


def columns(connection: duckdb.DuckDBPyConnection, file: Path) -> tuple[tuple[str, str], ...]:
    """(name, type) of each column of a Parquet file."""
    found = connection.execute(f"DESCRIBE FROM {_reader([file])}").fetchall()
    return tuple((name, kind) for name, kind, *_ in found)


def split(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], column: str, target: Path, suffix: str, reject: Callable[[Bad, int], None]
) -> tuple[int, int]:
    """Writes the rows of each key into a file of its own, in their order. Returns (rows, keys) that were written.

    A key is the text of a value. Rows whose key makes no file's name go to `reject`, some of them named: (one of them, how many it
    stands for). The input is sorted once, on disk where it is larger than memory; then each key is one stretch of the table.
    """
    names = [name for name, _ in columns(connection, files[0])]
    plain = ", ".join(f"c{index}" for index in range(len(names)))  # a column of the name rowid would hide DuckDB's own
    numbered = f"SELECT *, row_number() OVER () FROM {_reader(files)}"  # noqa: S608 - names are quoted, here and below
    key = f"CAST(c{names.index(column)} AS VARCHAR)"
    connection.execute(f"CREATE TABLE sorted AS SELECT {plain} FROM ({numbered}) t({plain}, number) ORDER BY {key}, number")  # noqa: S608
    groups = connection.execute(f"SELECT {key}, min(rowid), max(rowid) FROM sorted GROUP BY 1 ORDER BY 2").fetchall()  # noqa: S608
    restored = ", ".join(f"c{index} AS {_identifier(name)}" for index, name in enumerate(names))
    rows = written = bad = 0
    refused: dict[str | None, str] = {}
    for value, first, last in groups:
        try:
            path = target / f"{keys.file_name(value or '')}{suffix}"
        except ValueError as error:
            bad += last - first + 1
            if len(refused) < NAMED:
                refused[value] = str(error)
            continue
        source = f"SELECT {restored} FROM sorted WHERE rowid BETWEEN {first} AND {last}"  # noqa: S608
        connection.execute(f"COPY ({source}) TO {_literal(path)} ({WRITERS[suffix]}, USE_TMP_FILE false)")
        rows += last - first + 1
        written += 1
    named = list(_where(connection, files, column, refused))
    for number, row in enumerate(named, 1):
        reject(row, 1 if number < len(named) else bad - len(named) + 1)
    return rows, written


def of_csv(connection: duckdb.DuckDBPyConnection, file: Path, names: Sequence[str], target: Path) -> None:
    """Writes the rows of a good CSV file as Parquet: every value is the text that it was, an empty one is null.

    Raises InputError for columns that differ in case only, or not at all: DuckDB does not tell them apart.
    """
    seen: dict[bytes, str] = {}
    for name in names:
        if (alike := name.encode().lower()) in seen:  # of ASCII only, as DuckDB's own
            raise InputError(f"the columns {seen[alike]!r} and {name!r} cannot be told apart in Parquet; rename one, or write .csv")
        seen[alike] = name
    types = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in names)
    options = f"header=true, auto_detect=false, delim=',', quote='\"', escape='\"', strict_mode=false, max_line_size={2 * LONGEST_ROW}"
    source = f"FROM read_csv({_exactly(file)}, columns={{{types}}}, {options}, parallel=false)"
    connection.execute(f"COPY ({source}) TO {_literal(target)} ({WRITERS['.parquet']}, USE_TMP_FILE false)")


def _where(connection: duckdb.DuckDBPyConnection, files: Sequence[Path], column: str, refused: Mapping[str | None, str]) -> Iterator[Bad]:
    """The first rows with one of these keys, at most NAMED. refused: key -> why."""
    left = NAMED if refused else 0
    for file in files:
        numbered = f"SELECT CAST({_identifier(column)} AS VARCHAR) AS key, row_number() OVER () AS number FROM {_reader([file])}"  # noqa: S608
        is_refused = "CASE WHEN key IS NULL THEN ? ELSE list_contains(?::VARCHAR[], key) END"
        query = f"SELECT key, number FROM ({numbered}) WHERE {is_refused} ORDER BY 2 LIMIT {left}"  # noqa: S608
        for value, number in connection.execute(query, [None in refused, [value for value in refused if value is not None]]).fetchall():
            yield Bad(str(file), number, refused[value], (value or "")[:200])
            left -= 1


def _reader(files: Sequence[Path]) -> str:
    return f"read_parquet([{', '.join(map(_exactly, files))}], hive_partitioning=false)"


def _exactly(file: Path) -> str:
    """A file to read, by its name: DuckDB takes names for patterns, and would read `c1` where `c[1]` is meant."""
    return _literal(re.sub(r"[*?[]", r"[\g<0>]", str(file)))


def _literal(value: Path | str) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
