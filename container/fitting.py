"""What is done with a key: its rows are read, the user's fit is called, the artifact is written. The same here and on a Dask worker."""

import atexit
import copy
import io
import math
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import cloudpickle  # type: ignore[import-untyped]  # joblib's
import numpy as np
import pandas as pd

from container import bundles, keys, user_code, versions
from container.manifest import Entry
from container.training import Stopped

INFERENCE_SCRIPT = "inference.py"
UNPACKED = "fleet-code-"
"""What the directories are called that hold a script which came with the work."""
MAX_FAILED = "max_failed"
"""The hyperparameter that decides no model."""
LONGEST_ERROR = 500
"""Characters of an error's message that the manifest keeps."""

Fit = Callable[[str, pd.DataFrame, Mapping[str, Any]], Any]
"""fit(key, data, hyperparameters) -> model, or (model, {"metric": number})."""

_CHANCE = re.compile(rb"\x8c\x20[0-9a-f]{32}(?=\x94Nt\x94R)")
"""What differs from process to process in a cloudpickle: the name that it gives to a class which it takes along, of a `def` or __main__."""

_turn = threading.Lock()
_reading = threading.Lock()
"""For a Dask worker of several threads: what becomes of warnings is the whole process's."""

_loaded: dict[str, Fit] = {}
"""Digest of code and function -> fit, for what this process has imported."""


@dataclass(frozen=True)
class Work:
    """What is the same for all keys of a run; goes to each process once, for a fit may close over a table.

    script: the user's training script. code: the files that belong to it, by name relative to its directory. fit: pickled; what is
    defined in the script by its name. directory: for the artifacts. mark: of unfinished files. libraries: import names of those that
    the job has imported before the first fit. begun: when the run did, as a file's time in ns: an artifact that is younger, and that
    nobody was told of, is one of a process that died, and is made again to know its seconds.
    """

    script: Path | None
    code: Mapping[str, bytes]
    fit: bytes
    fit_name: str
    hyperparameters: Mapping[str, Any]
    directory: Path
    mark: str
    libraries: tuple[str, ...]
    begun: float = math.inf

    @classmethod
    def of(
        cls, fit: Fit, script: Path | None, hyperparameters: Mapping[str, Any], directory: Path, mark: str, begun: float = math.inf
    ) -> "Work":
        """The work of a run in this process, from what it has imported."""
        code = {str(path.relative_to(script.parent)): path.read_bytes() for path in user_code.beside(script)} if script else {}
        name = f"{getattr(fit, '__module__', '')}.{getattr(fit, '__qualname__', type(fit).__qualname__)}"
        pickled = cloudpickle.dumps(fit)
        return cls(script, code, pickled, name, dict(hyperparameters), directory, mark, tuple(versions.imported()), begun)

    @cached_property
    def digest(self) -> str:
        """Of the code, and of all that decides a model beside its data, what a fit closes over too: another one fits every key again."""
        parameters = sorted((name, value) for name, value in self.hyperparameters.items() if name != MAX_FAILED)
        parts = [self.fit_name, repr(parameters), versions.text(self.libraries)]
        digest = sha256("\0".join(parts).encode())
        for name, content in sorted(self.code.items()):
            digest.update(b"\0%d %s\0" % (len(content), name.encode()))
            digest.update(content)
        digest.update(_CHANCE.sub(b"", self.fit))
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        """Of what a process has imported for it."""
        return self.digest + sha256(self.fit).hexdigest()

    @property
    def packed_code(self) -> Mapping[str, bytes]:
        """What goes into code/ of an artifact: nothing where there is no inference script."""
        return self.code if INFERENCE_SCRIPT in self.code else {}

    @cached_property
    def absent(self) -> frozenset[str]:
        """The modules that only the job has: the script's own, where no artifact has code."""
        files = [] if self.packed_code else [Path(name) for name in self.code]
        files += [file.relative_to("lib") for file in files if file.is_relative_to("lib")]
        return frozenset(file.parts[0].removesuffix(".py") for file in files)

    def artifact(self, key: str) -> Path:
        return self.directory / f"{keys.file_name(key)}{bundles.SUFFIX}"


def run(work: Work, batch: Sequence[tuple[str, Path]]) -> tuple[list[Entry], float]:
    """Fits some keys, each with its file; an error of one is in its entry. Returns the entries, and the seconds that they took.

    Raises StartupError if the user's script cannot be imported.
    """
    fit = _load(work)
    begin = time.perf_counter()
    return [_one(work, fit, key, path) for key, path in batch], time.perf_counter() - begin


def _one(work: Work, fit: Fit, key: str, path: Path) -> Entry:
    rows, seconds = None, None
    try:
        content = path.read_bytes()
        made_from = sha256(f"{key}\0{path.suffixes}\0{work.digest}\0".encode() + sha256(content).digest()).hexdigest()
        artifact = work.artifact(key)
        finished = _finished(artifact, made_from, work.begun)
        if finished:
            return finished
        data = table(path, content)
        rows = len(data)
        model, metrics, seconds = _fit(work, fit, key, data)
        record = bundles.Record(key, made_from, rows, metrics)
        digest = bundles.write(artifact, model, record, work.libraries, work.packed_code, work.mark, work.absent)
        return Entry(key, seconds, rows, metrics, artifact.name, digest)
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:  # one key that fails, fails alone: asyncio's CancelledError is no Exception
        return Entry(key, seconds, rows, error=_told(error))


def _finished(artifact: Path, made_from: str, begun: float) -> Entry | None:
    """The entry of an artifact that an earlier run has made from the same; None if there is none, or it is not whole."""
    try:
        record = bundles.read(artifact)
        if record.made_from != made_from or artifact.stat().st_mtime_ns > begun:
            return None
    except (FileNotFoundError, bundles.BundleError):
        return None
    return Entry(record.key, None, record.rows, record.metrics, artifact.name, sha256(artifact.read_bytes()).hexdigest())


def _fit(work: Work, fit: Fit, key: str, data: pd.DataFrame) -> tuple[Any, dict[str, float | None], float]:
    """(model, metrics, seconds). What is random starts from the key, so that neither the order nor the process decides."""
    seed = int(sha256(key.encode()).hexdigest()[:8], 16)
    random.seed(seed)
    np.random.seed(seed)
    begin = time.perf_counter()
    made = fit(key, data, copy.deepcopy(work.hyperparameters))  # what a fit does to them must not reach the next key
    seconds = time.perf_counter() - begin
    model, metrics = made if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping) else (made, {})
    if model is None:
        raise TypeError("fit returned None; a model was expected, or (model, {'metric': number})")
    if not work.packed_code and not callable(getattr(model, "predict", None)):
        raise TypeError(
            f"fit returned {type(model).__name__}, which has no predict, and there is no {INFERENCE_SCRIPT} beside the training script "
            "that could serve it"
        )
    return model, {_name(name): _number(name, value) for name, value in metrics.items()}, round(seconds, 6)


def table(path: Path, content: bytes) -> pd.DataFrame:
    """The rows of a key: CSV as pandas reads it, Parquet with the types that it has. content: of the file.

    Raises ValueError for CSV whose rows have more fields than the header: pandas would take the first for an index, and shift the others.
    """
    if path.suffix.lower() == ".parquet":
        from container import parquet  # DuckDB is 60 MB, for those who need it

        return parquet.table(path)
    compression: Literal["gzip"] | None = "gzip" if path.suffix.lower() == ".gz" else None
    with _reading, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            rows: pd.DataFrame = pd.read_csv(io.BytesIO(content), index_col=False, compression=compression)
        except pd.errors.ParserWarning:
            raise ValueError(f"{path.name} has rows of more fields than its header; accepted are as many, or fewer") from None
    return rows


def _name(name: object) -> str:
    """Of a metric: the log says `fleet:NAME=3;`, in which a MetricDefinitions regex finds what stands there."""
    text = str(name)
    if not text.isprintable() or "=" in text or ";" in text:
        raise ValueError(f"fit returned a metric of the name {text[:50]!r}; accepted are printable characters without = and ;")
    return text


def _number(name: object, value: object) -> float | None:
    """A metric; None for one that is not finite, which JSON cannot say, and which would be the mean of all."""
    if not isinstance(value, Real):
        raise TypeError(f"fit returned {value!r} as metric {name!r}; a number was expected")
    return float(value) if math.isfinite(value) else None


def _load(work: Work) -> Fit:
    """fit, in a process that may never have seen the user's script: imported first, so that classes and functions are found by name."""
    with _turn:
        if work.identity not in _loaded:
            if work.script is not None:
                script = _here(work)
                if _loaded:
                    _forget(script.parent)
                user_code.import_script(script)
            _loaded[work.identity] = cloudpickle.loads(work.fit)
        return _loaded[work.identity]


def _here(work: Work) -> Path:
    """The script as this process finds it: where it was, or, on another machine, unpacked from what came with the work."""
    assert work.script is not None
    if all(_has(work.script.parent / name, content) for name, content in work.code.items()):
        return work.script
    directory = Path(tempfile.mkdtemp(prefix=UNPACKED))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for name, content in work.code.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory / work.script.name


def _has(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _forget(directory: Path) -> None:
    """Modules of an older version of the code, which a Dask worker outlives: from this directory, or unpacked."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(f"{directory}/") or UNPACKED in file:
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if UNPACKED not in entry]


def _told(error: BaseException) -> str:
    """`Type: message (file:line in function)`, the deepest line that is the user's, else the deepest."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/site-packages/" not in frame.filename and "/lib/python" not in frame.filename]
    frame = (own or frames)[-1]
    return f"{_described(error)[:LONGEST_ERROR]} ({Path(frame.filename).name}:{frame.lineno} in {frame.name})"


def _described(error: BaseException) -> str:
    try:
        return user_code.describe(error)
    except Exception as problem:
        return f"{type(error).__name__}: (its message raised {type(problem).__name__})"
