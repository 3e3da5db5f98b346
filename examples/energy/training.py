"""A forecast of energy use for each of many customers. Run by `train`; one artifact for each customer is in the checkpoint directory."""

from collections.abc import Mapping
from typing import Any

import joblib
import numpy as np
import pandas as pd
from generate import customer
from inference import FORECASTERS, forecaster

from container import fleet

HELD_OUT = 28
"""Days at the end of the history that the metric is measured on, unless a hyperparameter says."""


def train_fn(job) -> None:
    """Fits every customer of the channel `train`, one file each.

    Hyperparameters: forecaster (default or prophet), held_out (days; 0 saves a second fit), and those of container/fleet.py.
    Without a channel it fits one customer, made up, and saves that model as the job's.
    """
    if job.channels:
        fleet.train(job, fit)
        return
    model, metrics = fit("made up", customer(0), job.hyperparameters)
    joblib.dump(model, job.model_dir / "model.joblib")
    print("".join(f"{name}={value:.4f};" for name, value in metrics.items()))


def fit(key: str, data: pd.DataFrame, hyperparameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """(a customer's model, its metrics): `wape` is the error of the days held out, as a share of their use.

    data: the columns date and value; others are ignored, as are days without a value. Raises ValueError on what cannot be a history.
    """
    name, held_out = str(hyperparameters.get("forecaster", "default")), int(hyperparameters.get("held_out", HELD_OUT))
    if name not in FORECASTERS:
        raise ValueError(f"the forecaster {name!r} is unknown; accepted are {' and '.join(FORECASTERS)}")
    used, (days, values) = forecaster(name), history(data)
    metrics = {"wape": wape(used, days, values, held_out)} if 0 < held_out < len(days) // 2 else {}
    return {"forecaster": name, **used.fit(days, values)}, metrics


def history(data: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(days as datetime64[D], ascending; values). Raises ValueError on missing columns and dates, days twice, what is no number."""
    missing = sorted({"date", "value"} - set(data.columns))
    if missing:
        raise ValueError(f"no column {' and no '.join(missing)}: the columns are {', '.join(map(str, data.columns))}")
    known = data[data["value"].notna()]
    days = pd.to_datetime(known["date"]).to_numpy().astype("datetime64[D]")
    values = known["value"].to_numpy(dtype=float)
    undated = np.isnat(days).sum()
    if undated:
        raise ValueError(f"{undated} values have no date")
    order = np.argsort(days, kind="stable")
    days, values = days[order], values[order]
    twice = days[1:][days[1:] == days[:-1]]
    if len(twice):
        raise ValueError(f"{len(twice)} days are there twice, the first of them {twice[0]}")
    if (values < 0).any() or not np.isfinite(values).all():
        raise ValueError("a value is below 0 or not finite: energy use was expected")
    return days, values


def wape(used: Any, days: np.ndarray, values: np.ndarray, held_out: int) -> float:
    """The absolute error of forecasts for the last days, made from those before them, as a share of the sum of their values."""
    before = days <= days[-1] - held_out
    last = days[before][-1]
    model = used.load(used.fit(days[before], values[before]))
    forecast = np.array(used.predict(model, int((days[-1] - last).astype(int)))["yhat"])
    ahead = (days[~before] - last).astype(int) - 1
    return float(np.abs(forecast[ahead] - values[~before]).sum() / max(values[~before].sum(), 1e-9))
