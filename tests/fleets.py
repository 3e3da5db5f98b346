"""A small fleet for tests: keys with rows, a user's script, and the job that the platform would describe."""

import json
import textwrap
from pathlib import Path
from typing import Any

SCRIPT = """
from container import fleet
from line import Line

def fit(key, data, hyperparameters):
    slope = float(data.y.mean())
    return Line(slope), {"slope": slope}

def train_fn(job):
    fleet.train(job, fit)
"""
LINE = """
class Line:
    def __init__(self, slope):
        self.slope = slope
        self.words = {"the", "order", "of", "a", "set", "is", "in", "its", "pickle"}
"""
INFERENCE = """
import joblib

def model_fn(model_dir):
    return joblib.load(f"{model_dir}/model.joblib")

def predict_fn(data, model):
    return data * model.slope
"""


def write(base: Path, keys: int = 5, script: str = SCRIPT, hosts: tuple[str, ...] = (), host: str = "", **hyperparameters: Any) -> Path:
    """A base directory as the platform makes it: a CSV file for each of c0, c1, ..., the script, its configuration. Returns it."""
    for name, content in (("training.py", script), ("line.py", LINE), ("inference.py", INFERENCE)):
        put(base / "code" / name, textwrap.dedent(content))
    for number in range(keys):
        put(base / f"input/data/train/c{number}.csv", f"x,y\n1,{number}\n2,{number + 1}\n")
    (base / "input/data/train").mkdir(parents=True, exist_ok=True)
    config = base / "input/config"
    put(config / "hyperparameters.json", json.dumps({name: json.dumps(value) for name, value in hyperparameters.items()}))
    put(config / "inputdataconfig.json", json.dumps({"train": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}}))
    if hosts:
        put(config / "resourceconfig.json", json.dumps({"current_host": host, "hosts": hosts}))
    return base


def put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def artifacts(base: Path) -> dict[str, bytes]:
    """Name -> content, of what a job has left in its checkpoint directory beside the manifest; hidden files too."""
    return {path.name: path.read_bytes() for path in sorted((base / "checkpoints").iterdir()) if path.name != "manifest.jsonl"}
