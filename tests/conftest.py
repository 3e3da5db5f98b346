"""What every test starts from."""

import os

import pytest

OURS = ("SAGEMAKER_", "MODEL_SERVER_", "SM_", "TRAINING_JOB_")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own variables decide nothing, and what a test sets is gone after it."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
