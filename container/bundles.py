"""One model of a fleet as a file: a tar.gz that says what it was made from and whether it is whole. The same model gives the same bytes."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import uuid
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from container import versions

SUFFIX = ".tar.gz"
MODEL = "model.joblib"
RECORD = "fleet.json"
"""In every bundle, first: the record. The others follow by name."""

UNFINISHED = ".unfinished"
COMPRESSION = 6
"""zlib's default. For a bundle of 6 KB: 0.28 ms and 3.4 KB; 1 gives 0.23 ms and 3.7 KB, 9 gives 0.35 ms and no less."""


class BundleError(Exception):
    """The file is not a whole bundle, or the model cannot be one; the message says why."""


@dataclass(frozen=True)
class Record:
    """What a bundle says of itself. Nothing in it depends on when, where or how fast it was made.

    made_from: a digest of all that decides the model. rows: how many it was fitted on. metrics: name -> what fit returned with the
    model, None if it was not finite. sha256: of every other file of the bundle, by name.
    """

    key: str
    made_from: str
    rows: int
    metrics: Mapping[str, float | None]
    sha256: Mapping[str, str] = field(default_factory=dict)


def write(
    path: Path,
    model: Any,
    record: Record,
    libraries: Iterable[str],
    code: Mapping[str, bytes],
    mark: str,
    absent: Collection[str] = (),
) -> str:
    """Writes a bundle, whole or not at all; returns the SHA-256 of the file.

    libraries: import names for versions.json; those that the model's pickle names are added. code: the files of code/, by name.
    mark: what the name of the unfinished file starts with. absent: modules that are not there where the model will be loaded; raises
    BundleError if it needs one. Nothing is synced to the disk: a bundle that a power failure tore is found by `read`, and made anew.
    """
    pickled = pickle.dumps(model, protocol=5)  # joblib.load reads it; joblib.dump is made for large arrays, and ten times as slow
    if any(name.encode() in pickled for name in absent):
        _Loader(io.BytesIO(pickled), absent).load()
    named = {name for name in versions.DISTRIBUTIONS if name.encode() in pickled}
    files = {f"code/{name}": data for name, data in code.items()}
    files |= {versions.FILE: _versions(frozenset({*libraries, *named})), MODEL: pickled}
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    whole = Record(record.key, record.made_from, record.rows, record.metrics, sha256)
    content = _packed({RECORD: (json.dumps(asdict(whole), indent=1) + "\n").encode(), **dict(sorted(files.items()))})
    with _unfinished(path, mark) as file:
        file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> Record:
    """The record of a bundle whose every file is what the record says. Raises BundleError where that is not so, FileNotFoundError."""
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            files = ((member.name, archive.extractfile(member)) for member in archive)
            name, first = next(files, ("", None))
            if name != RECORD or first is None:
                raise BundleError(f"{path} does not begin with {RECORD}")
            record = Record(**json.load(first))
            sha256 = {name: hashlib.file_digest(file, "sha256").hexdigest() for name, file in files if file is not None}  # type: ignore[arg-type]
            while stream.read(1 << 16):  # to the checksum, which is gzip's last word
                pass
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, TypeError) as error:
        raise BundleError(f"{path} is not whole: {error}") from None
    if sha256 != record.sha256:
        raise BundleError(f"{path} has other files than its record says")
    return record


def sweep(directory: Path, mark: str) -> int:
    """Removes what a killed run left unfinished; returns how many there were."""
    left = list(directory.glob(f"{mark}*{UNFINISHED}"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def now(directory: Path, mark: str) -> int:
    """The time of a file that is written there now, in ns: of the clock of those who keep the files, which may be another machine's."""
    file = unfinished(directory, mark)
    try:
        file.touch()
        return file.stat().st_mtime_ns
    finally:
        file.unlink(missing_ok=True)


def unfinished(directory: Path, mark: str) -> Path:
    """A name that no other file has, and that `sweep` finds."""
    return directory / f"{mark}{uuid.uuid4().hex}{UNFINISHED}"


def mark(host: str) -> str:
    """What the names of a host's unfinished files start with: hidden, and nobody else's, where hosts share a directory."""
    return f".{host}-"


class _Loader(pickle.Unpickler):
    """Loads a model as those will who do not have the modules `absent`. Only this tells a module's name from a text of the model."""

    def __init__(self, file: BinaryIO, absent: Collection[str]) -> None:
        super().__init__(file)
        self._absent = absent

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in self._absent:
            raise BundleError(
                f"the model needs {module}.{name}, which is not in the artifact: put an inference.py beside the training script"
            )
        return super().find_class(module, name)


@cache
def _versions(libraries: frozenset[str]) -> bytes:
    return versions.text(libraries).encode()


def _packed(files: Mapping[str, bytes]) -> bytes:
    """A tar.gz in which neither a clock, nor a user, nor a name of this machine is found."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=packed, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@contextmanager
def _unfinished(path: Path, mark: str) -> Iterator[Path]:
    """A file beside `path` that takes its name when the block ends well: no reader, and no upload, ever meets half a bundle."""
    file = unfinished(path.parent, mark)
    try:
        yield file
        file.replace(path)
    finally:
        file.unlink(missing_ok=True)
