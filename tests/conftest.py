"""What every test starts from."""

import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from container.settings import Settings

OURS = ("SAGEMAKER_", "MODEL_SERVER_", "SM_", "TRAINING_JOB_", "FLEET_")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own variables decide nothing, and what a test sets is gone after it."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """What a test sets up of logging, by importing gunicorn_conf.py say, is not there in the next."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty base directory; what is imported from below it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = dict(sys.modules)
    yield tmp_path
    for name in [name for name, module in sys.modules.items() if modules.get(name) is not module]:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]
            if name in modules:
                sys.modules[name] = modules[name]


@pytest.fixture
def script(base: Path) -> Callable[..., Settings]:
    """Writes a user's script, by default the one in the model archive, and returns settings (fields as keywords) that serve it."""

    def write(source: str, path: str = "model/code/inference.py", **fields: object) -> Settings:
        file = base / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        return Settings(base_dir=base).but(**fields)

    return write
