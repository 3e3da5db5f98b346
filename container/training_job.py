"""What the platform tells a training job, as one object: hyperparameters, channels, hosts and directories. Runs nothing."""

import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from container.settings import Settings

PLATFORM_PREFIX = "sagemaker_"
"""Hyperparameters with this prefix are the SageMaker SDK's, for the container: they are split from the user's."""

FIFO_PATIENCE = 300.0
"""Seconds until a Pipe channel's next FIFO must be there: the platform makes it some time after the container's start."""

HOSTS_PATIENCE = 900.0
"""Seconds until all hosts' names must resolve; the DNS of a starting cluster lags (sagemaker-training waits as long)."""


class TrainingError(Exception):
    """What the platform gave, or what the user's code returned, cannot be used: the message says what is accepted."""


@dataclass
class Stop:
    """The platform's request to stop (SIGTERM, then SIGKILL 120 s later), and whether the user's code looks out for it."""

    requested: bool = False
    watched: bool = False


@dataclass(frozen=True)
class Channel:
    """One input. mode: 'File' (a directory of files; FastFile is the same to the reader) or 'Pipe' (a FIFO for each epoch).

    description: the channel's entry in inputdataconfig.json (ContentType, S3DistributionType, ...).
    """

    name: str
    directory: Path
    mode: str = "File"
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The directory with the channel's files. Raises TrainingError for a Pipe channel, which has none, and if it is not there."""
        if self.mode == "Pipe":
            raise TrainingError(
                f"channel {self.name!r} is in Pipe mode and has no files: read its streams with channel.epochs(), "
                "or start the job with input mode File or FastFile"
            )
        if not self.directory.is_dir():
            raise TrainingError(f"channel {self.name!r} is announced, but there is no {self.directory}")
        return self.directory

    def files(self, pattern: str = "*") -> list[Path]:
        """The channel's files, those in its directories too, by path; hidden ones are left out. Raises TrainingError if there are none."""
        found = sorted(path for path in self.path.rglob(pattern) if path.is_file() and not is_hidden(path, self.path))
        if not found:
            there = ", ".join(sorted(path.name for path in self.path.iterdir())[:10])
            raise TrainingError(f"channel {self.name!r} has no file {pattern!r}: {self.path} {f'holds {there}' if there else 'is empty'}")
        return found

    def epochs(self, count: int | None = None, patience: float = FIFO_PATIENCE) -> Iterator[BinaryIO]:
        """A Pipe channel's data, once for each epoch: open streams, each closed when the next one is asked for.

        count: how many; by default without end, so break off. patience: seconds to wait for the next FIFO (contract, 7.1).
        Raises TrainingError for a channel of files, and when the patience ends.
        """
        if self.mode != "Pipe":
            raise TrainingError(
                f"channel {self.name!r} is in {self.mode} mode: its files are in channel.path; epochs() reads Pipe channels"
            )
        for epoch in itertools.count() if count is None else range(count):
            fifo = self.directory.with_name(f"{self.name}_{epoch}")
            _await(fifo, patience)
            with fifo.open("rb") as stream:
                yield stream


@dataclass(frozen=True)
class TrainingJob:
    """What train_fn(job) is given.

    name: the training job's, empty outside the platform.
    hyperparameters: the user's, decoded: "0.1" -> 0.1, "true" -> True, "[1, 2]" -> [1, 2], what is not JSON stays a string.
    platform_parameters: the SDK's own (sagemaker_*), decoded the same way.
    channels: by name. hosts: names of all machines, in the same order everywhere; current_host: this one's.
    resource_config: resourceconfig.json as it is.
    script: the user's training script, once it is found.
    keeps_checkpoints: whether checkpoint_dir was there when the job began: the platform makes it where there is a CheckpointConfig.
    """

    name: str
    hyperparameters: Mapping[str, Any]
    platform_parameters: Mapping[str, Any]
    channels: Mapping[str, Channel]
    hosts: tuple[str, ...]
    current_host: str
    resource_config: Mapping[str, Any]
    model_dir: Path
    checkpoint_dir: Path
    output_data_dir: Path
    stop: Stop = field(default_factory=Stop)
    script: Path | None = None
    keeps_checkpoints: bool = True

    @property
    def is_first_host(self) -> bool:
        """Whether this host writes what only one may write: the returned model, the code and the versions in the artifact."""
        return self.current_host == self.hosts[0]

    def channel(self, *names: str) -> Channel:
        """The first channel that exists of these names. Raises TrainingError that lists those that do."""
        for name in names:
            if name in self.channels:
                return self.channels[name]
        there = ", ".join(self.channels) or "none"
        raise TrainingError(f"the job has no channel {' or '.join(map(repr, names))}; its channels: {there}")

    def stopping(self) -> bool:
        """Whether the platform has asked to stop: then save, return, and be done within 90 seconds.

        Whoever asks this at least once is left to end by itself. A train_fn that never asks is interrupted where it stands: an
        exception that is not an `Exception` rises there, so that its `finally:` can save.
        """
        self.stop.watched = True
        return self.stop.requested

    def wait_for_hosts(self, patience: float = HOSTS_PATIENCE, resolve: Callable[[str], object] = socket.gethostbyname) -> None:
        """Returns when the names of all hosts resolve. Raises TrainingError that names one that does not within `patience` seconds."""
        deadline = time.monotonic() + patience
        for host in self.hosts:
            pause = 0.1
            while not _resolves(host, resolve):
                if time.monotonic() + pause > deadline:
                    raise TrainingError(f"the name of host {host!r} did not resolve within {patience:g} s")
                time.sleep(pause)
                pause = min(2 * pause, 5.0)


def read(settings: Settings) -> TrainingJob:
    """The job that the files in input/config describe. Raises TrainingError on a file that is not what the platform writes.

    Missing files mean: no hyperparameters; the directories in input/data as channels; one host.
    """
    parameters = {name: _decoded(value) for name, value in (_object(settings.config_dir / "hyperparameters.json") or {}).items()}
    resources = _object(settings.config_dir / "resourceconfig.json") or _object(settings.config_dir / "resourceConfig.json") or {}
    hosts = tuple(resources.get("hosts") or ("algo-1",))
    current = resources.get("current_host") or hosts[0]
    if current not in hosts:
        raise TrainingError(f"resourceconfig.json: current_host {current!r} is not one of hosts, {', '.join(hosts)}")
    return TrainingJob(
        name=settings.training_job_name or str(parameters.get("sagemaker_job_name") or ""),
        hyperparameters={name: value for name, value in parameters.items() if not name.startswith(PLATFORM_PREFIX)},
        platform_parameters={name: value for name, value in parameters.items() if name.startswith(PLATFORM_PREFIX)},
        channels={channel.name: channel for channel in _channels(settings)},
        hosts=hosts,
        current_host=current,
        resource_config=resources,
        model_dir=settings.model_dir,
        checkpoint_dir=settings.checkpoint_dir,
        output_data_dir=settings.output_data_dir,
        keeps_checkpoints=settings.checkpoint_dir.is_dir(),
    )


def is_hidden(path: Path, directory: Path) -> bool:
    """Whether its name begins with a dot, or that of a directory on the way to it: notebooks keep copies in .ipynb_checkpoints."""
    return any(part.startswith(".") for part in path.relative_to(directory).parts)


def _channels(settings: Settings) -> Iterator[Channel]:
    announced = _object(settings.config_dir / "inputdataconfig.json")
    if announced is None:
        there = settings.data_dir.iterdir() if settings.data_dir.is_dir() else ()
        yield from (Channel(path.name, path) for path in sorted(there) if path.is_dir() and not path.name.startswith("."))
        return
    for name, description in sorted(announced.items()):
        if not isinstance(description, dict):
            raise TrainingError(f"inputdataconfig.json: channel {name!r} is {description!r}; an object was expected")
        mode = str(description.get("TrainingInputMode") or "File")
        if mode not in ("File", "FastFile", "Pipe"):
            raise TrainingError(f"channel {name!r}: TrainingInputMode {mode!r} is unknown; accepted are File, FastFile and Pipe")
        yield Channel(name, settings.data_dir / name, "Pipe" if mode == "Pipe" else "File", description)


def _object(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is no such file, or it is empty."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        document = json.loads(text) if text.strip() else None
    except ValueError as error:
        raise TrainingError(f"{path} is not JSON: {error}") from None
    if document is not None and not isinstance(document, dict):
        raise TrainingError(f"{path} is {type(document).__name__}; a JSON object was expected")
    return document


def _decoded(value: Any) -> Any:
    """The platform turns every hyperparameter into a string (contract, 7.1); the SDK encodes them as JSON before."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _await(fifo: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not fifo.exists():
        if time.monotonic() > deadline:
            raise TrainingError(f"the FIFO {fifo} did not appear within {patience:g} s")
        time.sleep(0.05)


def _resolves(host: str, resolve: Callable[[str], object]) -> bool:
    try:
        resolve(host)
    except OSError:
        return False
    return True
