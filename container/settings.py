"""Every environment variable and every path below /opt/ml, once. The only reader of os.environ."""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""What the numeric libraries read when they are imported, so what must be set before they are."""

HASH_SEED = "6640"
"""PYTHONHASHSEED of training. The order of a set is in the bytes of its pickle; this seed is the one that Dask gives its workers."""

OWN_PREFIX = "MODEL_SERVER_"
"""Variables with this prefix are ours alone: one that is not known here is a mistake, not somebody else's."""

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "WARN": 30, "ERROR": 40, "CRITICAL": 50}


class SettingsError(Exception):
    """A variable whose value cannot be used: the message names it, what came, and what is accepted."""


@dataclass(frozen=True)
class Variable:
    """What the environment may say about one field: names (the first is the main one), how to read it, what it means."""

    names: tuple[str, ...]
    parse: Callable[[str], Any]
    accepts: str
    meaning: str

    def read(self, key: str, text: str) -> Any:
        """The value that `text` stands for. key: the name that it came under."""
        try:
            return self.parse(text)
        except (ValueError, KeyError):
            raise SettingsError(f"{key}={text!r} cannot be used: accepted is {self.accepts}") from None


def _variable(names: str, parse: Callable[[str], Any], default: Any, accepts: str, meaning: str) -> Any:
    return field(default=default, metadata={"variable": Variable(tuple(names.split()), parse, accepts, meaning)})


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # also refuses nan
            raise ValueError(text)
        return value

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(text)
        return text.lower()

    return parse


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _level(text: str) -> int:
    level = LEVELS.get(text.upper()) or int(text)
    if level not in LEVELS.values():
        raise ValueError(text)
    return level


def _content_type(text: str) -> str:
    if not re.fullmatch(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+ *(;.*)?", text, re.ASCII):
        raise ValueError(text)
    return text


def _ports(text: str) -> tuple[int, int]:
    low, high = (_whole(1, 65535)(part) for part in text.split("-"))
    if low > high:
        raise ValueError(text)
    return low, high


def _address(text: str) -> str:
    if not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", text):
        raise ValueError(text)
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise ValueError(text)
    return names


ALL = 512
"""As many replicas as there can be shards."""


def _replicas(text: str) -> int:
    return ALL if text.lower() == "all" else _whole(1, ALL)(text)


def _batch_strategy(text: str) -> str:
    return {"singlerecord": "SINGLE_RECORD", "multirecord": "MULTI_RECORD"}[text.lower().replace("_", "")]


@dataclass(frozen=True)
class Settings:
    """What the environment decided. Build it with `Settings.read()`; tests build it with keyword arguments.

    Raises `SettingsError` on a value that cannot be used, on two names of one setting that disagree, and on an
    unknown name that starts with MODEL_SERVER_.
    """

    base_dir: Path = _variable(
        "SAGEMAKER_BASE_DIR", Path, Path("/opt/ml"), "a directory", "Where the platform's files are: model, input, output, code."
    )
    port: int = _variable("SAGEMAKER_BIND_TO_PORT", _whole(1, 65535), 8080, "a port, 1 to 65535", "The only port that is listened on.")
    safe_port_range: tuple[int, int] | None = _variable(
        "SAGEMAKER_SAFE_PORT_RANGE",
        _ports,
        None,
        "two ports, LOW-HIGH",
        "Ports that further listeners may use. One model needs none: it is reached over a unix socket.",
    )
    workers: int | None = _variable(
        "SAGEMAKER_MODEL_SERVER_WORKERS MODEL_SERVER_WORKERS",
        _whole(1, 512),
        None,
        "a number, 1 to 512",
        "Worker processes. Default: one for each CPU that the container was granted.",
    )
    timeout: float = _variable(
        "SAGEMAKER_MODEL_SERVER_TIMEOUT MODEL_SERVER_TIMEOUT",
        _seconds(0.1, 86400),
        60.0,
        "seconds, 0.1 to 86400",
        "How long a request may take, waiting included (504 after it); a stream: how long until its next part. "
        "nginx's and gunicorn's timeouts follow from it.",
    )
    max_wait: float | None = _variable(
        "MODEL_SERVER_MAX_WAIT",
        _seconds(0.001, 86400),
        None,
        "seconds, 0.001 to 86400",
        "How long a request may wait for a worker (503 with Retry-After beyond it). Default: half the timeout.",
    )
    max_payload_mb: int | None = _variable(
        "SAGEMAKER_MAX_PAYLOAD_IN_MB",
        _whole(0, 102400),
        None,
        "megabytes, 0 (no limit) to 102400",
        "The largest request body (413 beyond it). Default: 25, in a batch transform job 100.",
    )
    max_batch_size: int | None = _variable(
        "MODEL_SERVER_MAX_BATCH_SIZE",
        _whole(1, 65536),
        None,
        "a number, 1 to 65536",
        "How many waiting requests are predicted together at most; 1 switches batching off. "
        "Default: what the script's MAX_BATCH_SIZE says; 64 for an artifact without a script.",
    )
    default_accept: str = _variable(
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
        _content_type,
        "application/json",
        "a content type, as text/csv",
        "The type of the answer to a request without an Accept header, or with `*/*`.",
    )
    program: str = _variable(
        "SAGEMAKER_PROGRAM", str, "", "a file name", "The user's script. Default: inference.py to serve, training.py to train."
    )
    submit_directory: str = _variable(
        "SAGEMAKER_SUBMIT_DIRECTORY",
        str,
        "",
        "a directory",
        "Where the user's script is. Default: code/ in the model directory, then code/ in the base directory.",
    )
    log_level: int = _variable(
        "SAGEMAKER_CONTAINER_LOG_LEVEL",
        _level,
        20,
        "a number (10, 20, 30, 40, 50) or a name (debug, info, warning, error, critical)",
        "What is logged; above info, requests are not.",
    )
    profile: str = _variable(
        "MODEL_SERVER_PROFILE",
        _one_of("auto", "realtime", "serverless"),
        "auto",
        "auto, realtime or serverless",
        "serverless: one worker, one copy of the model, smallest start. auto: serverless where the signs say so.",
    )
    preload: str = _variable(
        "MODEL_SERVER_PRELOAD",
        _one_of("auto", "always", "never"),
        "auto",
        "auto, always or never",
        "Load the model once before the workers are forked, and share its memory. auto: unless the model cannot live through a fork.",
    )
    allow_version_mismatch: bool = _variable(
        "MODEL_SERVER_ALLOW_VERSION_MISMATCH",
        _flag,
        False,
        "true or false",
        "Load a model that other major versions of Python or its libraries have made.",
    )
    run_dir: Path | None = _variable(
        "MODEL_SERVER_RUN_DIR",
        Path,
        None,
        "a directory",
        "Where sockets, nginx's files and temporary files are. Default: a new directory below the temporary one, removed at the end.",
    )
    max_queue: int = _variable(
        "MODEL_SERVER_MAX_QUEUE",
        _whole(1, 65536),
        256,
        "a number, 1 to 65536",
        "Many models: how many requests may wait for one of them (503 with Retry-After beyond it).",
    )
    isolation: str = _variable(
        "ISOLATION",
        _one_of("shared", "process"),
        "shared",
        "shared or process",
        "Many models: process gives each a process of its own, forked from its shard.",
    )
    replicas: int = _variable(
        "MODEL_REPLICAS",
        _replicas,
        1,
        "all, or a number, 1 to 512",
        "Many models: how many shards each model is in; all is for a few that are asked much.",
    )
    preload_libraries: tuple[str, ...] = _variable(
        "MODEL_SERVER_PRELOAD_LIBRARIES",
        _names,
        ("sklearn.ensemble", "sklearn.linear_model", "sklearn.pipeline", "sklearn.preprocessing", "spacy.lang.en"),
        "names of Python modules, separated by commas",
        "Many models: imported before the shards are forked, so that no load waits for them.",
    )
    multi_model: bool = _variable(
        "SAGEMAKER_MULTI_MODEL", _flag, False, "true or false", "Set by the platform for multi-model endpoints: many models are served."
    )
    batch: bool = _variable("SAGEMAKER_BATCH", _flag, False, "true or false", "Set by the platform in a batch transform job.")
    batch_strategy: str = _variable(
        "SAGEMAKER_BATCH_STRATEGY",
        _batch_strategy,
        "MULTI_RECORD",
        "SINGLE_RECORD or MULTI_RECORD",
        "Told back in /execution-parameters.",
    )
    max_concurrent_transforms: int | None = _variable(
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS",
        _whole(1, 10000),
        None,
        "a number, 1 to 10000",
        "Told back in /execution-parameters. Default: the number of workers.",
    )
    dask_scheduler: str = _variable(
        "FLEET_DASK_SCHEDULER",
        _address,
        "",
        "an address, as tcp://10.0.0.1:8786",
        "Training of many models: the scheduler of a Dask cluster that fits them. Default: processes of this host do.",
    )
    training_job_name: str = _variable("TRAINING_JOB_NAME", str, "", "a name", "Set by the platform in a training job.")
    threads_by_user: Mapping[str, str] = field(default_factory=dict)
    """Those of THREAD_VARIABLES that the user set: they are left as they are."""
    serverless_signs: tuple[str, ...] = ()
    """Names of variables that only serverless sandboxes have."""
    search_path: str = os.defpath
    """PATH, for finding nginx."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Field name -> the variable that decided it; a field that is not here has its default."""

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Settings from the environment (default: this process's). Empty values count as not given."""
        environ = os.environ if environ is None else environ
        _refuse_unknown(environ)
        values: dict[str, Any] = {}
        given: dict[str, str] = {}
        for name, variable in variables():
            found = {key: variable.read(key, environ[key].strip()) for key in variable.names if environ.get(key, "").strip()}
            if len(set(found.values())) > 1:
                said = " and ".join(f"{key}={environ[key]}" for key in found)
                raise SettingsError(f"{said} disagree: they are two names of one setting; set one of them")
            for key, value in found.items():
                values[name], given[name] = value, key
                break
        return cls(
            **values,
            given=given,
            threads_by_user={key: environ[key] for key in THREAD_VARIABLES if environ.get(key)},
            serverless_signs=tuple(key for key in ("AWS_LAMBDA_FUNCTION_NAME", "LAMBDA_TASK_ROOT") if environ.get(key)),
            search_path=environ.get("PATH", os.defpath),
        )

    def but(self, **changes: Any) -> Self:
        """The same settings, some fields changed."""
        return replace(self, **changes)

    def source(self, name: str) -> str:
        """Where a field's value is from: the variable's name, or 'default'."""
        return self.given.get(name, "default")

    @cached_property
    def payload_limit_mb(self) -> int:
        """The largest request body in MB (1024 x 1024 bytes); 0 is no limit."""
        return self.max_payload_mb if self.max_payload_mb is not None else 100 if self.batch else 25

    @cached_property
    def wait_limit(self) -> float:
        """Seconds that a request may wait for a worker."""
        return self.max_wait if self.max_wait is not None else self.timeout / 2

    @property
    def model_dir(self) -> Path:
        return self.base_dir / "model"

    @property
    def code_dir(self) -> Path:
        """Code that is baked into the image, for models that bring none."""
        return self.base_dir / "code"

    @property
    def input_dir(self) -> Path:
        return self.base_dir / "input"

    @property
    def config_dir(self) -> Path:
        return self.input_dir / "config"

    @property
    def data_dir(self) -> Path:
        """The parent of the channels' directories."""
        return self.input_dir / "data"

    @property
    def output_dir(self) -> Path:
        return self.base_dir / "output"

    @property
    def output_data_dir(self) -> Path:
        return self.output_dir / "data"

    @property
    def failure_file(self) -> Path:
        return self.output_dir / "failure"

    @property
    def checkpoint_dir(self) -> Path:
        return self.base_dir / "checkpoints"


def variables() -> Iterator[tuple[str, Variable]]:
    """(field name, its variable) for every field that the environment decides."""
    for item in fields(Settings):
        if "variable" in item.metadata:
            yield item.name, item.metadata["variable"]


def table() -> str:
    """The variables as the table of docs/configuration.md: `python -m container.settings` prints it."""
    rows = ["| Variable | Default | Accepted | Meaning |", "|---|---|---|---|"]
    for name, variable in variables():
        default = _written(getattr(Settings(), name))
        rows.append(f"| {', '.join(f'`{key}`' for key in variable.names)} | {default} | {variable.accepts} | {variable.meaning} |")
    return "\n".join(rows)


def _written(default: Any) -> str:
    """A default as the environment would say it; nothing for one that the meaning explains."""
    if default is None or default == "":
        return ""
    if isinstance(default, tuple):
        default = ", ".join(default)
    return f"`{str(default).lower() if isinstance(default, bool) else f'{default:g}' if isinstance(default, float) else default}`"


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child process, with changes."""
    return {**os.environ, **changes}


def adopt(variables: Mapping[str, str]) -> None:
    """Sets variables of this process: for a forked one, whose libraries are still to be imported."""
    os.environ.update(variables)


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    known = [key for _, variable in variables() for key in variable.names]
    for key in environ:
        if key.startswith(OWN_PREFIX) and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else "."
            ours = ", ".join(name for name in known if name.startswith(OWN_PREFIX))
            raise SettingsError(f"{key} is not a variable of this server{meant} Known are {ours}")


if __name__ == "__main__":
    print(table())
