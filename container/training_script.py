"""A training script without train_fn, run as sagemaker-training runs it: a process of its own, arguments, SM_* variables."""

import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from container import resources
from container.settings import Settings, environment
from container.training_job import TrainingError, TrainingJob

log = logging.getLogger(__name__)

KEPT_LINES = 200
"""How much of the script's stderr is kept to say why it failed."""


class ScriptFailed(TrainingError):
    """The script ended with a code other than 0. code: the one to exit with; the message says what its stderr said last."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def run(script: Path, code_dir: Path, job: TrainingJob, settings: Settings) -> None:
    """Runs the script to its end, its directory of code as working directory. A SIGTERM is handed on to it.

    Raises ScriptFailed with the script's own code (128 + N for signal N), TrainingError if it cannot be started.
    """
    if len(job.hosts) > 1:
        job.wait_for_hosts()
    command = _command(script, code_dir) + arguments(job.hyperparameters)
    said: deque[str] = deque(maxlen=KEPT_LINES)
    with _handing_on(job) as started:
        try:
            process = subprocess.Popen(
                command,
                cwd=code_dir,
                env=environment(**variables(job, settings, script, code_dir)),
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise TrainingError(f"{script} cannot be started ({error}): make it a .py file, or executable with a #! line") from None
        started(process)
        reader = threading.Thread(target=_copy, args=(cast(IO[str], process.stderr), said), daemon=True)
        reader.start()
        code = process.wait()
        reader.join(timeout=5)  # a process that the script left behind may hold its stderr open
    if code:
        raise ScriptFailed(code if code > 0 else 128 - code, f"{script.name} {_ending(code)}\n{_last_words(list(said))}".rstrip())


def arguments(hyperparameters: Mapping[str, Any]) -> list[str]:
    """--name value, by name; -n for a name of one letter. Values as in sagemaker-training: True -> 'True', an object -> 'k=v,k=v'."""
    words = []
    for name, value in sorted(hyperparameters.items()):
        words += [f"--{name}" if len(name) > 1 else f"-{name}", _argument(value)]
    return words


def variables(job: TrainingJob, settings: Settings, script: Path, code_dir: Path) -> dict[str, str]:
    """The SM_* variables of sagemaker-training (contract, 7.2), all of them strings."""
    config = job.resource_config
    groups = {group["instance_group_name"]: group for group in config.get("instance_groups") or ()}
    group = str(config.get("current_group_name") or config.get("current_instance_group") or "homogeneousCluster")
    program = str(script.relative_to(code_dir))
    values: dict[str, Any] = {
        "hosts": job.hosts,
        "current_host": job.current_host,
        "network_interface_name": config.get("network_interface_name", "eth0"),
        "current_instance_type": config.get("current_instance_type", "local"),
        "current_instance_group": group,
        "current_instance_group_hosts": groups.get(group, {}).get("hosts", []),
        "instance_groups": list(groups),
        "instance_groups_dict": groups,
        "distribution_instance_groups": job.platform_parameters.get("sagemaker_distribution_instance_groups", []),
        "is_hetero": len(groups) > 1,
        "topology": config.get("topology"),
        "num_cpus": max(1, int(resources.granted().cpus)),
        "num_gpus": _gpus(),
        "num_neurons": 0,
        "model_dir": job.model_dir,
        "input_dir": settings.input_dir,
        "input_config_dir": settings.config_dir,
        "output_dir": settings.output_dir,
        "output_data_dir": job.output_data_dir,
        "output_intermediate_dir": settings.output_dir / "intermediate",
        "module_dir": code_dir,
        "module_name": program.removesuffix(".py"),
        "user_entry_point": program,
        "framework_module": None,
        "framework_params": job.platform_parameters,
        "log_level": job.platform_parameters.get("sagemaker_container_log_level", settings.log_level),
        "channels": sorted(job.channels),
        "hps": job.hyperparameters,
        "resource_config": config,
        "input_data_config": {channel.name: channel.description for channel in job.channels.values()},
    }
    values["training_env"] = {
        **{name: value for name, value in values.items() if name not in ("hps", "channels", "framework_params")},
        "hyperparameters": job.hyperparameters,
        "additional_framework_parameters": job.platform_parameters,
        "channel_input_dirs": {channel.name: channel.directory for channel in job.channels.values()},
        "job_name": job.name,
        "is_master": job.is_first_host,
        "master_hostname": job.hosts[0],
    }
    values["user_args"] = arguments(job.hyperparameters)
    values |= {f"channel_{channel.name}": channel.directory for channel in job.channels.values()}
    values |= {f"hp_{name}": value for name, value in job.hyperparameters.items()}
    return {f"SM_{name.upper()}": _variable(value) for name, value in values.items()} | {"PYTHONUNBUFFERED": "1"}


def _command(script: Path, code_dir: Path) -> list[str]:
    return [sys.executable, str(script.relative_to(code_dir))] if script.suffix == ".py" else [str(script)]


def _argument(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    return "" if value is None else str(value)


def _variable(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, str | Path) else json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _gpus() -> int:
    """GPUs that this container sees; 0 where there is no driver, or none that answers."""
    try:
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listing.splitlines())


@contextmanager
def _handing_on(job: TrainingJob) -> Iterator[Callable[[subprocess.Popen[str]], None]]:
    """Gives a SIGTERM to the process, also one that came while it was being started. Kills it if we are to leave before it ends."""
    processes: list[subprocess.Popen[str]] = []

    def hand_on(_signum: int, _frame: object) -> None:
        job.stop.requested = True
        log.info("SIGTERM: handed on to the script, which has 120 s to save and end")
        for process in processes:
            process.terminate()

    def started(process: subprocess.Popen[str]) -> None:
        processes.append(process)
        if job.stop.requested:
            process.terminate()

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield started
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _copy(stream: IO[str], said: deque[str]) -> None:
    with stream:
        for line in stream:
            sys.stderr.write(line)
            sys.stderr.flush()
            said.append(line.rstrip())


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL: most often the machine had no memory left"
    return f"was ended by signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exited with code {code}"


def _last_words(lines: list[str]) -> str:
    """The end of what a script wrote to stderr; of a traceback the exception comes first, then its frames, the deepest first."""
    start = max((number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")), default=None)
    if start is None:
        return "\n".join(lines[-10:])
    end = next((number for number in range(start + 1, len(lines)) if re.match(r"\S", lines[number])), len(lines))
    frames = re.findall(r'^  File ".*(?:\n    .*)*', "\n".join(lines[start + 1 : end]), re.MULTILINE)
    return "\n".join([*lines[end : end + 5], *reversed(frames)])
