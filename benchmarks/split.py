"""A table into one file for each key: `container.prepare` beside pandas' groupby, Polars and DuckDB.

    python -m benchmarks.split [--rows 10000000] [--keys 1000 10000] [--write]

Each way is a process of its own, on the same CSV in order of time, so with the keys interleaved. Counted are its seconds, its
processor time and the peak of its resident memory; the median of three interleaved rounds. Every file is then compared with what was
generated, byte by byte.
"""

import argparse
import dataclasses
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import report

HEADER = "customer_id,date,value\n"
MEMORY = 1024
"""MB that ours and DuckDB may take; pandas and Polars know no bound."""


class WrongSplitError(Exception):
    """A way lost rows, or changed them."""


@dataclass(frozen=True)
class Table:
    """What was generated. values: values[day][key], in hundredths."""

    path: Path
    keys: Sequence[str]
    dates: Sequence[str]
    values: Sequence[Sequence[int]]

    def text(self, index: int) -> str:
        """The file of one key, header included."""
        key = self.keys[index]
        return HEADER + "".join(f"{key},{date},{day[index] / 100}\n" for date, day in zip(self.dates, self.values, strict=True))


@dataclass(frozen=True)
class Result:
    """One way on one table. cpu: seconds of processor time; peak: bytes. ordered: whether each key's rows kept their order."""

    way: str
    keys: int
    seconds: float
    cpu: float
    peak: int
    ordered: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and returns the exit code: 0, 2 (a way failed, or made something else)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.split", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; the median of each figure counts")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="those that are not installed are left out")
    parser.add_argument("--write", action="store_true", help="also into README.md and results/split.json")
    options = parser.parse_args(arguments)
    facts = report.machine()
    found = []
    try:
        for keys in options.keys:
            with tempfile.TemporaryDirectory(prefix="bench-") as name:
                table = generate(Path(name) / "table.csv", options.rows, keys)
                ways = [way for way in options.ways if way == "berth" or importlib.util.find_spec(way)]
                rounds = [[measure(way, table, Path(name) / way) for way in ways] for _ in range(options.rounds)]
                found += [median(results) for results in zip(*rounds, strict=True)]
    except (WrongSplitError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 2
    versions = ", ".join(f"{way} {importlib.metadata.version(way)}" for way in ("duckdb", "polars") if importlib.util.find_spec(way))
    markdown = f"{as_markdown(found, options.rows)}\n\n{report.machine_line(facts)} {versions}.".strip()
    print(markdown)
    if options.write:
        results = {"machine": facts, "rows": options.rows, "ways": [dataclasses.asdict(result) for result in found]}
        report.write("split", markdown, results)
    return 0


def generate(path: Path, rows: int, keys: int) -> Table:
    """Writes about `rows` rows in order of time: each day has one of each key. The values are as Python and pandas write them."""
    import numpy

    days = rows // keys
    first = datetime.date(2000, 1, 1)
    dates = [str(first + datetime.timedelta(day)) for day in range(days)]
    names = [f"C{number:05d}" for number in range(keys)]
    values = numpy.random.default_rng(0).integers(0, 100_000, (days, keys)).tolist()
    with path.open("w") as file:
        file.write(HEADER)
        for date, day in zip(dates, values, strict=True):
            file.writelines(f"{name},{date},{value / 100}\n" for name, value in zip(names, day, strict=True))
    return Table(path, names, dates, values)


def measure(way: str, table: Table, target: Path) -> Result:
    """Runs one way in a process of its own, checks what it made, removes it. Raises WrongSplitError."""
    target.mkdir()
    command = [sys.executable, "-c", f"from benchmarks import split; split.child({way!r}, {str(table.path)!r}, {str(target)!r})"]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu, peak = json.loads(child.stdout.splitlines()[-1])
    found = Result(way, len(table.keys), seconds, cpu, peak, check(table, target))
    print(found, file=sys.stderr, flush=True)
    shutil.rmtree(target)
    return found


def median(results: Sequence[Result]) -> Result:
    """The rounds of one way as one: each figure the median."""
    seconds, cpu, peak = (statistics.median(values) for values in zip(*((r.seconds, r.cpu, r.peak) for r in results), strict=True))
    return Result(results[0].way, results[0].keys, seconds, cpu, int(peak), all(result.ordered for result in results))


def check(table: Table, target: Path) -> bool:
    """Whether each key's rows are in their order. Raises WrongSplitError where they are not the rows that were generated."""
    ordered = True
    files: dict[str, list[Path]] = {}
    for path in sorted(target.rglob("*.csv")):
        stem = path.stem if path.parent == target else path.parent.name.partition("=")[2]
        files.setdefault(stem, []).append(path)
    if sorted(files) != sorted(table.keys):
        raise WrongSplitError(f"{target.name} made files of {len(files)} keys instead of {len(table.keys)}")
    for index, key in enumerate(table.keys):
        found = HEADER + "".join(path.read_text().removeprefix(HEADER) for path in files[key])
        expected = table.text(index)
        if found != expected:
            ordered = False
            if sorted(found.splitlines()) != sorted(expected.splitlines()):
                raise WrongSplitError(f"{target.name} changed the rows of {key}")
    return ordered


def child(way: str, source: str, target: str) -> None:
    """One way, in a process of its own; prints [seconds, processor seconds, bytes at the peak]."""
    began, used = time.monotonic(), time.process_time()
    WAYS[way](source, target)
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    print(json.dumps([time.monotonic() - began, time.process_time() - used, int(peak[1]) * 1024]))


def by_berth(source: str, target: str) -> None:
    from container import prepare

    prepare.split(Path(source), Path(target), "customer_id", memory=MEMORY << 20)


def by_pandas(source: str, target: str) -> None:
    import pandas

    for key, rows in pandas.read_csv(source).groupby("customer_id"):
        rows.to_csv(f"{target}/{key}.csv", index=False)


def by_polars(source: str, target: str) -> None:
    polars = importlib.import_module("polars")
    table = polars.read_csv(source, infer_schema=False)
    for (key,), rows in table.partition_by("customer_id", as_dict=True, maintain_order=True).items():
        rows.write_csv(f"{target}/{key}.csv")


def by_duckdb(source: str, target: str) -> None:
    import duckdb

    with duckdb.connect(config={"memory_limit": f"{MEMORY}MiB"}) as connection:
        options = "FORMAT csv, HEADER, PARTITION_BY (customer_id), WRITE_PARTITION_COLUMNS, OVERWRITE_OR_IGNORE"
        connection.execute(f"COPY (FROM read_csv('{source}', all_varchar=true)) TO '{target}' ({options})")


WAYS: dict[str, Callable[[str, str], None]] = {"berth": by_berth, "pandas": by_pandas, "polars": by_polars, "duckdb": by_duckdb}
TITLES = {"berth": "Berth", "pandas": "pandas, groupby", "polars": "Polars, partition_by", "duckdb": "DuckDB, PARTITION_BY"}


def as_markdown(found: Sequence[Result], rows: int) -> str:
    """One table; ratios are to Berth on the same keys."""
    head = [f"split of {rows:,} rows", "keys", "s", "processor s", "peak MB", "processor s / Berth", "peak / Berth", "order kept"]
    body = []
    for result in found:
        ours = next((other for other in found if (other.way, other.keys) == ("berth", result.keys)), None)
        ratios = [f"{result.cpu / ours.cpu:.2f}", f"{result.peak / ours.peak:.2f}"] if ours else ["-", "-"]
        figures = [f"{result.keys:,}", f"{result.seconds:.1f}", f"{result.cpu:.1f}", f"{result.peak / 1e6:,.0f}"]
        body.append([TITLES[result.way], *figures, *ratios, "yes" if result.ordered else "no"])
    return report.as_table(head, body)


if __name__ == "__main__":
    sys.exit(main())
