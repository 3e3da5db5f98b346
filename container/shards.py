"""Which keys are this host's, and the file of each: what a channel holds, or this host's part of it. Reads no file."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from container import keys
from container.training_job import Channel, TrainingError, TrainingJob

log = logging.getLogger(__name__)

SUFFIXES = (".csv", ".csv.gz", ".parquet")
"""Of the files that hold a key's rows; what stands before is the key."""


def files(paths: Iterable[Path]) -> dict[str, Path]:
    """Key -> its file, by key. Files of other kinds are left out, and counted in the log.

    Raises TrainingError for a name that stands for no key, for two files of one key, and if there is no file of these kinds.
    """
    found: dict[str, Path] = {}
    others: list[Path] = []
    for path in paths:
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix is None:
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


def part(found: Mapping[str, Path], job: TrainingJob) -> dict[str, Path]:
    """This host's part of files that every host has: the same on each start, as long as the names of the hosts are the same."""
    hosts = sorted(job.hosts)
    rank = hosts.index(job.current_host)
    return {key: path for key, path in found.items() if _number(key) % len(hosts) == rank}


def _key(path: Path, suffix: str) -> str:
    try:
        key = keys.key(path.name.removesuffix(suffix))
        keys.file_name(key)
    except ValueError as error:
        raise TrainingError(f"{path} is for no key: {error}") from None
    return key


def _number(key: str) -> int:
    """A number of a key: Python's own hash is another in each process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
