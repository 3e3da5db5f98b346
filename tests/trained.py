"""Training in a process of its own, as the platform starts it: for every test that needs a model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from container.settings import environment

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def train_example(name: str, base_dir: Path, channels: dict[str, Path] | None = None, timeout: float = 120, **hyperparameters: Any) -> str:
    """Trains examples/NAME with base_dir in the place of /opt/ml; the artifact is in base_dir/model. Returns what it printed.

    channels: name -> file, by default none: then an example trains on the data that it ships.
    """
    for channel, file in (channels or {}).items():
        directory = base_dir / "input" / "data" / channel
        directory.mkdir(parents=True)
        (directory / file.name).symlink_to(file.resolve())
    config = base_dir / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps({key: json.dumps(value) for key, value in hyperparameters.items()}))
    environ = environment(SAGEMAKER_BASE_DIR=str(base_dir), SAGEMAKER_SUBMIT_DIRECTORY=str(EXAMPLES / name))
    command = [sys.executable, str(ROOT / "train")]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout
