"""What every test starts from."""

import logging
import os
from collections.abc import Iterator

import pytest

OURS = ("SAGEMAKER_", "MODEL_SERVER_", "SM_", "TRAINING_JOB_")


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
