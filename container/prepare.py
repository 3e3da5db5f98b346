"""The processing step before a fleet is trained: `python -m container.prepare split` makes one file a key of a table of any size."""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import BinaryIO, NoReturn

from container import resources, rows
from container.pieces import Pieces
from container.rows import Bad, InputError
from container.settings import Settings, SettingsError

SUFFIXES = (".csv", ".csv.gz", ".parquet")
LEAST_MEMORY = 128
"""MB in which a split works."""

OWN_MEMORY = 80 << 20
"""Bytes that Python and its libraries take before there is a row."""

MOST_BUFFERED = 256 << 20
"""Bytes of rows of CSV that are kept in memory at most: more of it makes no split faster."""

NAMED = 10
"""Bad rows that are named on stderr."""

REPORTED = 100
"""Bad rows that are named in the report."""

MESSAGE_LENGTH = 1024
"""Bytes of the message file that become a processing job's ExitMessage."""


@dataclass
class Summary:
    """What a split found. rows: the good ones; bad: the others; first_bad: the first of them, at most REPORTED.

    error: why the split failed, None if it did not.
    """

    rows: int = 0
    keys: int = 0
    bad: int = 0
    seconds: float = 0.0
    error: str | None = None
    first_bad: list[Bad] = field(default_factory=list)

    def reject(self, bad: Bad, count: int = 1) -> None:
        """Counts a bad row; keeps it if it is among the first. count: how many rows it stands for."""
        self.bad += count
        if len(self.first_bad) < REPORTED:
            self.first_bad.append(bad)
            if len(self.first_bad) <= NAMED:
                print(f"{bad}: {bad.text!r}", file=sys.stderr)

    def line(self) -> str:
        """The closing line."""
        return f"{self.rows:,} rows, {self.keys:,} keys, {self.bad:,} bad rows, {self.seconds:.1f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m container.prepare`: returns the exit code, 1 if the split failed, with the reason in one line and as ExitMessage."""
    try:
        settings = Settings.read()
    except SettingsError as error:
        print(f"split failed: {error}", file=sys.stderr)
        return 1
    summary = Summary()
    try:
        options = _options(arguments)
        _refuse_several_hosts(settings.base_dir / "config" / "resourceconfig.json")
        try:
            split(
                options.input,
                options.output,
                options.column,
                suffix=f".{options.format}",
                memory=options.memory << 20,
                max_bad=options.max_bad,
                overwrite=options.overwrite,
                summary=summary,
            )
        except BaseException as error:
            summary.error = _reason(error)
            raise
        finally:
            if options.report:
                _write_report(options.report, summary)
    except (InputError, OSError, MemoryError) as error:
        text = f"split failed: {_reason(error)}"
        print(text, file=sys.stderr)
        _leave_message(settings, text)
        return 1
    print(summary.line())
    _leave_message(settings, summary.line())
    return 0


def split(
    source: Path,
    target: Path,
    column: str,
    *,
    suffix: str = ".csv",
    memory: int = 0,
    max_bad: float = 0.01,
    overwrite: bool = False,
    summary: Summary | None = None,
) -> Summary:
    """Splits a file, or the files of a directory, into target/<name of the key><suffix>, rows in their order, values as they are.

    memory: bytes that this process may take, 0 for half of what the container was granted. max_bad: the share of bad rows that is
    borne. overwrite: files of an earlier split in `target` are replaced. Files appear whole, when all are finished. CSV becomes
    Parquet of texts. summary: filled while it goes on, for those who want to know after a failure, too. Raises InputError.
    """
    summary = summary or Summary()
    started = time.monotonic()
    granted = resources.granted()
    memory = memory or granted.memory // 2
    files = find(source)
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"the output {target} is in the input {source}: a second split would read it; give it a directory of its own")
    if target.resolve() in {file.resolve().parent for file in files}:
        raise InputError(f"the input {source} is in the output {target}: it would be replaced; give the output a directory of its own")
    with _unfinished(target, overwrite) as work:
        free = max(memory, LEAST_MEMORY << 20) - OWN_MEMORY
        cpus = math.ceil(granted.cpus)
        if suffix_of(files[0]) == ".parquet":
            _split_parquet(files, column, work, suffix, free, cpus, summary)
        else:
            _split_csv(files, column, work, suffix, free, cpus, summary)
        summary.seconds = round(time.monotonic() - started, 1)
        _judge(summary, source, max_bad)
    return summary


def find(source: Path) -> list[Path]:
    """The input's files, sorted by their paths: `source` itself, or all below it except those that begin with `.` or `_`.

    Raises InputError if there are none, or others than .csv, .csv.gz and .parquet, or Parquet beside CSV.
    """
    if source.is_dir():
        below = sorted(path for path in source.rglob("*") if path.is_file())
        files = [path for path in below if not any(part.startswith((".", "_")) for part in path.relative_to(source).parts)]
    else:
        files = [source] if source.exists() else []
    if not files:
        raise InputError(f"{source} {'is empty' if source.is_dir() else 'is not there'}; accepted are {', '.join(SUFFIXES)}")
    for path in files:
        if not suffix_of(path):
            raise InputError(f"{path} is none of {', '.join(SUFFIXES)}; files whose names begin with . or _ are left out")
    parquet = [path for path in files if suffix_of(path) == ".parquet"]
    if parquet and len(parquet) < len(files):
        other = next(path for path in files if path not in parquet)
        raise InputError(f"{source} holds CSV and Parquet ({other}, {parquet[0]}); split them one after the other")
    return files


def _split_csv(files: Sequence[Path], column: str, work: Path, suffix: str, memory: int, cpus: int, summary: Summary) -> None:
    first: tuple[Path, rows.Header] | None = None
    pieces: Pieces | None = None
    for path in files:
        with rows.reading(path) as stream:
            header = rows.header(stream, str(path))
            if header is None:
                print(f"{path} is empty: left out", file=sys.stderr)
                continue
            if first is None or pieces is None:
                first = path, header
                written = ".csv" if suffix == ".parquet" else suffix
                pieces = Pieces(_made(work / "files"), written, header.line, min(memory, MOST_BUFFERED))
            _compare(path, header.columns, first[0], first[1].columns)
            _take(stream, path, len(header.columns), _index(path, column, header.columns), pieces, summary)
    if first is None or pieces is None:
        raise InputError(f"{files[0]} is empty; accepted is CSV with the columns' names first")
    pieces.flush()
    summary.rows, summary.keys = pieces.rows, len(pieces.names)
    if suffix == ".parquet":
        _to_parquet(pieces, first[1].columns, work, memory, cpus)


def _take(stream: BinaryIO, path: Path, columns: int, key: int, pieces: Pieces, summary: Summary) -> None:
    """All rows of a CSV file after its header."""
    for batch in rows.batches(stream, str(path), columns, key, summary.reject):
        refused = pieces.add(batch)
        lines = batch.lines() if refused else []
        for index, why in refused:
            text = batch.rows[index][0][:200].decode(errors="replace").rstrip("\r\n")
            summary.reject(Bad(str(path), lines[index], why, text))


def _to_parquet(pieces: Pieces, columns: Sequence[str], work: Path, memory: int, cpus: int) -> None:
    from container import parquet  # DuckDB is 60 MB of memory that a split into CSV does not need

    with parquet.engine(work / "engine", memory, cpus) as engine:
        for name in pieces.names:
            path = pieces.path(name)
            parquet.of_csv(engine, path, columns, path.with_suffix(".parquet"))
            path.unlink()


def _split_parquet(files: Sequence[Path], column: str, work: Path, suffix: str, memory: int, cpus: int, summary: Summary) -> None:
    from container import parquet

    with parquet.engine(work / "engine", memory, cpus) as engine:
        first = parquet.columns(engine, files[0])
        for path in files[1:]:
            _compare(path, [" ".join(pair) for pair in parquet.columns(engine, path)], files[0], [" ".join(pair) for pair in first])
        _index(files[0], column, [name for name, _ in first])
        summary.rows, summary.keys = parquet.split(engine, files, column, _made(work / "files"), suffix, summary.reject)


def _compare(path: Path, columns: Sequence[str], first: Path, expected: Sequence[str]) -> None:
    if columns != expected:
        raise InputError(f"{path} has the columns {', '.join(columns)}; {first} has {', '.join(expected)}: all files must have the same")


def _index(path: Path, column: str, columns: Sequence[str]) -> int:
    if list(columns).count(column) != 1:
        found = "more than one column" if column in columns else "no column"
        raise InputError(f"{path} has {found} {column!r}; its columns: {', '.join(columns)}")
    return list(columns).index(column)


def _judge(summary: Summary, source: Path, max_bad: float) -> None:
    share = summary.bad / max(1, summary.bad + summary.rows)
    if share > max_bad:
        raise InputError(
            f"{summary.bad:,} of {summary.bad + summary.rows:,} rows are bad ({share:.2%}, accepted are {max_bad:.2%}); "
            f"the first is {summary.first_bad[0]}"
        )
    if not summary.rows:
        raise InputError(f"{source} has no {'good ' if summary.bad else ''}rows")


@contextmanager
def _unfinished(target: Path, overwrite: bool) -> Iterator[Path]:
    """A directory to work in, within `target`. What is in its files/ afterwards becomes the target's, unless something was raised."""
    target.mkdir(parents=True, exist_ok=True)
    there = [path for path in sorted(target.iterdir()) if not path.name.startswith(".")]
    if there and not overwrite:
        raise InputError(f"the output {target} holds {there[0].name}; give an empty directory, or --overwrite")
    work = target / ".unfinished"
    rmtree(work, ignore_errors=True)  # a split that was killed left it
    work.mkdir()
    try:
        yield work
        for path in there:
            if path.is_file() and suffix_of(path):
                path.unlink()
        for path in (work / "files").iterdir():
            path.replace(target / path.name)
    finally:
        rmtree(work)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def suffix_of(path: Path) -> str:
    """The one of SUFFIXES that a file's name ends in, in letters of any case; "" for another file."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _refuse_several_hosts(file: Path) -> None:
    """Each instance of a processing job would write the files of the same keys, and the last one uploaded would win."""
    hosts = json.loads(file.read_text()).get("hosts", []) if file.is_file() else []
    if len(hosts) > 1:
        raise InputError(f"the job has {len(hosts)} instances, and each would write files of the same keys; split takes InstanceCount 1")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _write_report(file: Path, summary: Summary) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**asdict(summary), "first_bad": [bad._asdict() for bad in summary.first_bad]}, indent=1) + "\n")


def _leave_message(settings: Settings, text: str) -> None:
    """What DescribeProcessingJob shows as ExitMessage; nothing where there is no platform."""
    if settings.base_dir.is_dir():
        try:
            settings.output_dir.mkdir(exist_ok=True)
            (settings.output_dir / "message").write_bytes(text.encode(errors="replace")[:MESSAGE_LENGTH].decode(errors="ignore").encode())
        except OSError as error:
            print(f"the message file could not be written: {error}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """One whose errors are told as every other reason why a split fails."""

    def error(self, message: str) -> NoReturn:
        raise InputError(" ".join(f"{message}; {self.format_usage()}".split()))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Raises InputError."""
    parser = _Parser(prog="python -m container.prepare", description=(__doc__ or "").partition("\n")[0])
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("split", help="one file for each key of a column")
    command.add_argument("input", metavar="INPUT", type=Path, help=f"a file, or a directory of files: {', '.join(SUFFIXES)}")
    command.add_argument("output", metavar="OUTPUT", type=Path, help="a directory without files")
    command.add_argument("--column", required=True, help="the column whose values are the keys")
    command.add_argument("--format", choices=[suffix[1:] for suffix in SUFFIXES], default="csv", help="of the output (default: csv)")
    command.add_argument("--memory", type=_megabytes, default=0, metavar="MB", help="default: half of what the container was granted")
    command.add_argument("--max-bad", type=_share, default=0.01, metavar="SHARE", help="of bad rows that is borne (default: 0.01)")
    command.add_argument("--overwrite", action="store_true", help="replace the files that OUTPUT has")
    command.add_argument("--report", type=Path, metavar="FILE", help="write counts, and the first bad rows, as JSON")
    return parser.parse_args(arguments)


def _megabytes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of MB; accepted is a whole one, {LEAST_MEMORY} or more")
    if (value := int(text)) < LEAST_MEMORY:
        raise argparse.ArgumentTypeError(f"{text} MB are too few; at least {LEAST_MEMORY} are needed")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; accepted is 0 to 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
