"""Which keys are this host's, and the file of each: what a channel holds, or this host's part of it."""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from container import keys, prepare, rows
from container.prepare import SUFFIXES
from container.settings import Settings
from container.training_job import Channel, TrainingError, TrainingJob, is_hidden

log = logging.getLogger(__name__)

SPLIT = "fleet-split-"
"""What the directories are called in which a table is split."""


@contextmanager
def mine(job: TrainingJob, name: str, column: str | None, settings: Settings) -> Iterator[dict[str, Path]]:
    """Key -> file, for the keys of this host. column: what the rows of the channel's files are split by; None for one file a key.

    Raises TrainingError for a channel that cannot be used so. What was split is gone after the block.
    """
    channel = job.channel(name)
    if column is None:
        if len(job.hosts) > 1 and _got_nothing(channel):
            log.warning("fleet: channel %r is ShardedByS3Key, and has no file for %s: fewer files than hosts?", name, job.current_host)
            yield {}
            return
        found = files(channel.files())
        yield found if is_split_by_platform(channel) else part(found, job)
        return
    if len(job.hosts) > 1 and is_split_by_platform(channel):
        raise TrainingError(
            f"channel {name!r} is ShardedByS3Key, so the rows of one key may be on several hosts: use FullyReplicated, "
            "or split the files before the job (python -m container.prepare split)"
        )
    if settings.dask_scheduler:
        raise TrainingError(f"Dask workers do not see what this host splits: split the files of channel {name!r} before the job")
    with _scratch() as directory:
        yield part(_split(channel, column, directory), job)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A directory that is gone after the block; those that killed runs left, each with a whole table, are gone before it."""
    for left in Path(tempfile.gettempdir()).glob(f"{SPLIT}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SPLIT) as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Raises OSError if somebody has it. A lock ends with its processes, and counts in other containers, where pids mean others."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def files(paths: Iterable[Path]) -> dict[str, Path]:
    """Key -> its file, by key: the name without one of SUFFIXES. Files of other kinds are left out, and counted in the log.

    Raises TrainingError for a name that stands for no key, for two files of one key, and if there is no file of these kinds.
    """
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path in paths:
        suffix = prepare.suffix_of(path)
        if not suffix:
            others.append(path)
            continue
        key = _key(path, suffix)
        if key in found:
            raise TrainingError(f"two files are for the key {key!r}, {found[key]} and {path}: one file for each key is accepted")
        found[key] = path
    if not found:
        there = ", ".join(path.name for path in others[:5])
        raise TrainingError(f"no file ends in {', '.join(SUFFIXES)}, one for each key{f'; there are {there}' if there else ''}")
    if others:
        log.info("%d files are no input, as %s: the kinds that are read are %s", len(others), others[0].name, ", ".join(SUFFIXES))
    return dict(sorted(found.items()))


def is_split_by_platform(channel: Channel) -> bool:
    """Whether each host was given files of its own (ShardedByS3Key), so that all that are here are this host's."""
    return channel.description.get("S3DistributionType") == "ShardedByS3Key"


def _got_nothing(channel: Channel) -> bool:
    """Whether the platform gave this host of several no file at all, beside such as _SUCCESS: others have them, and it is no error."""
    if not is_split_by_platform(channel) or channel.mode == "Pipe":
        return False
    seen = (path for path in channel.directory.rglob("*") if path.is_file() and not is_hidden(path, channel.directory))
    return not any(prepare.suffix_of(path) or not path.name.startswith("_") for path in seen)  # _z.csv is the key _z's


def part(found: Mapping[str, Path], job: TrainingJob) -> dict[str, Path]:
    """This host's part of files that every host has: the same on each start, as long as the names of the hosts are the same."""
    hosts = sorted(job.hosts)
    rank = hosts.index(job.current_host)
    return {key: path for key, path in found.items() if _number(key) % len(hosts) == rank}


def _split(channel: Channel, column: str, directory: Path) -> dict[str, Path]:
    """The rows of each key in a file of its own. Parquet keeps its types."""
    try:
        kind = prepare.suffix_of(prepare.find(channel.path)[0])
        summary = prepare.split(channel.path, directory, column, suffix=".parquet" if kind == ".parquet" else ".csv")
    except rows.InputError as error:
        raise TrainingError(f"channel {channel.name!r} cannot be split: {error}") from None
    log.info("fleet: split by %s: %s", column, summary.line())
    return files(directory.iterdir())


def _key(path: Path, suffix: str) -> str:
    try:
        return keys.key(path.name[: -len(suffix)])
    except ValueError as error:
        raise TrainingError(f"{path} is for no key: {error}") from None


def _number(key: str) -> int:
    """A number of a key: Python's own hash is another in each process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
