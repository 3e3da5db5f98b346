"""The same forecasts by Prophet, which the image does not have: `pip install prophet`, and ten times as much work a customer."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

logging.getLogger("prophet.plot").setLevel(logging.CRITICAL)  # before the import, which calls it an error that there is no plotly
from prophet import Prophet  # noqa: E402
from prophet.serialize import model_from_json, model_to_json  # noqa: E402

OPTIONS = {"yearly_seasonality": 3, "weekly_seasonality": True, "daily_seasonality": False, "seasonality_mode": "multiplicative"}
"""Prophet's own choice for a year of days has no yearly season; ten waves of a year, its choice for more, err by twice as much."""
SEED = 0

logging.getLogger("cmdstanpy").addHandler(logging.NullHandler())  # or it adds one of its own, with two lines a customer
logging.getLogger("cmdstanpy").setLevel(logging.WARNING)
logging.getLogger("prophet").setLevel(logging.ERROR)  # warns of a season that is as long as the history


def fit(days: np.ndarray, values: np.ndarray, **options: Any) -> dict[str, Any]:
    """A model of days (datetime64[D], ascending; some may be missing) and their values. options: Prophet's, in the place of OPTIONS."""
    model = Prophet(**(options or OPTIONS)).fit(pd.DataFrame({"ds": days, "y": values}), seed=SEED)
    return {"prophet": model_to_json(model)}


def load(model: Mapping[str, Any]) -> Prophet:
    return model_from_json(model["prophet"])


def predict(model: Prophet, period: int) -> dict[str, list[Any]]:
    """The `period` days after the last of the history: dates (YYYY-MM-DD), yhat, yhat_lower and yhat_upper (80 % of days lie between).

    The band is sampled by NumPy's one generator of the process, which is seeded for it and put back.
    """
    future = pd.DataFrame({"ds": pd.date_range(model.history_dates.max(), periods=period + 1, freq="D")[1:]})
    state = np.random.get_state()
    np.random.seed(SEED)
    try:
        forecast = model.predict(future)
    finally:
        np.random.set_state(state)
    bands = {name: forecast[name].clip(lower=0).round(3).tolist() for name in ("yhat", "yhat_lower", "yhat_upper")}
    return {"dates": future["ds"].dt.strftime("%Y-%m-%d").tolist(), **bands}
