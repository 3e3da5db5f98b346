"""The training script of fleet.py: a fit of known cost, the least fit there is, and Prophet. Run by `train`, and by a plain loop."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import LassoCV

from container import fleet


def lasso(key, data, hyperparameters):
    """A cross-validated lasso on Fourier terms: some 20 ms of processor time, a model of 2 KB."""
    angles = np.arange(len(data))[:, None] * 2 * np.pi / 365.25 * np.arange(1, 13)
    return LassoCV(cv=5).fit(np.hstack([np.sin(angles), np.cos(angles)]), data.y)


def mean(key, data, hyperparameters):
    """Next to no work, so that what is around it shows."""
    return DummyRegressor().fit(data[["y"]], data.y)


def prophet(key, data, hyperparameters):
    """Prophet as it is without settings, on daily values of a year."""
    from prophet import Prophet

    for name in ("cmdstanpy", "prophet"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return Prophet().fit(data.rename(columns={"day": "ds"}))


FITS = {fit.__name__: fit for fit in (lasso, mean, prophet)}


def train_fn(job) -> None:
    """Hyperparameter fit: one of FITS. The summary goes to output/data/summary.json."""
    name = job.hyperparameters["fit"]
    _import(name)
    summary = asdict(fleet.train(job, FITS[name]))
    (job.output_data_dir / "summary.json").write_text(json.dumps(summary, default=str))


def _import(name: str) -> None:
    """Prophet, for whom it is: a script of one kind of model has it at its top."""
    if name == "prophet":
        import prophet  # noqa: F401


def loop(directory: Path, name: str) -> float:
    """What one would write without a fleet: each file read and fitted, one after the other. Returns seconds."""
    import time

    import pandas as pd

    _import(name)
    begin = time.perf_counter()
    for path in sorted(directory.glob("*.csv")):
        FITS[name](path.stem, pd.read_csv(path), {})
    return time.perf_counter() - begin
