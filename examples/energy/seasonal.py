"""A year of days as a trend, a week, three waves of a year and noise that lasts for some days: the default forecaster.

Fitted by scikit-learn's ridge regression; the model is a dict of plain numbers, so that a thousand of them load fast and need only NumPy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

YEAR = 365.25
WAVES = 3
"""Waves of a year, half a year, and so on. One year of history cannot tell more from what the weather did."""
PENALTY = 1.5
"""Of the ridge, for values around 1: as much as one and a half days of history that say that nothing changes."""
ROUNDS = 4
"""Fits, each with less weight on the days that the one before it could not explain."""
DOUBTFUL, IMPOSSIBLE = 1.5, 5.0
"""Standard deviations from which a day weighs less, and from which it weighs nothing."""
BAND = (0.1, 0.9)
"""The quantiles that yhat_lower and yhat_upper stand for."""


def fit(days: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """A model of days (datetime64[D], ascending; some may be missing) and their values (>= 0). Raises ValueError below 14 days."""
    if len(days) < 14:
        raise ValueError(f"{len(days)} days of history: 14 or more are needed")
    level = float(np.median(values)) or 1.0
    inputs, target = features(days, days[-1]), values / level
    ridge, residuals, spread, weights = robust_ridge(inputs, target)
    centred = inputs - np.average(inputs, axis=0, weights=weights)
    information = centred.T @ (centred * weights[:, None]) + PENALTY * np.eye(inputs.shape[1])
    clipped = residuals.clip(-3 * spread, 3 * spread) * (weights > 0)
    kept = persistence(days, clipped)
    lower, upper = np.quantile(residuals / spread, BAND)
    return {
        "last": str(days[-1]),
        "level": level,
        "intercept": float(ridge.intercept_),
        "coefficients": ridge.coef_.tolist(),
        "means": np.average(inputs, axis=0, weights=weights).tolist(),
        # Days that resemble the day before tell less than as many independent ones.
        "covariance": (np.linalg.inv(information) * spread**2 * (1 + kept) / (1 - kept)).tolist(),
        "spread": spread,
        "quantiles": [min(float(lower), 0.0), max(float(upper), 0.0)],
        "kept": kept,
        "rest": float(clipped[-1]),
    }


def load(model: Mapping[str, Any]) -> dict[str, Any]:
    """The same with arrays in the place of lists."""
    return {name: np.array(value) if isinstance(value, list) else value for name, value in model.items()}


def predict(model: Mapping[str, Any], period: int) -> dict[str, list[Any]]:
    """The `period` days after the last of the history: dates (YYYY-MM-DD), yhat, yhat_lower and yhat_upper (80 % of days lie between).

    model: as `load` returns it.
    """
    ahead = np.arange(1, period + 1)
    last = np.datetime64(model["last"], "D")
    inputs = features(last + ahead, last)
    fading = model["kept"] ** ahead
    middle = model["intercept"] + inputs @ model["coefficients"] + model["rest"] * fading
    away = inputs - model["means"]
    unsure = ((away @ model["covariance"]) * away).sum(axis=1)
    deviation = np.sqrt(model["spread"] ** 2 * (1 - fading**2) + unsure)
    lower, upper = (middle + quantile * deviation for quantile in model["quantiles"])
    bands = {"yhat": middle, "yhat_lower": lower, "yhat_upper": upper}
    dates = np.datetime_as_string(last + ahead).tolist()
    return {"dates": dates, **{name: (np.maximum(band, 0) * model["level"]).round(3).tolist() for name, band in bands.items()}}


def features(days: np.ndarray, last: np.datetime64) -> np.ndarray:
    """(days, 1 + 2 * WAVES + 7): years since the last day of the history, the waves of a year, the days of the week."""
    number = days.astype("datetime64[D]").astype(int)
    turns = 2 * np.pi * np.outer(number / YEAR, np.arange(1, WAVES + 1))
    weekdays = (number[:, None] + 3) % 7 == np.arange(7)
    return np.column_stack([(number - last.astype(int)) / YEAR, np.cos(turns), np.sin(turns), weekdays])


def robust_ridge(inputs: np.ndarray, target: np.ndarray) -> tuple[Any, np.ndarray, float, np.ndarray]:
    """(the fitted ridge, residuals, their spread, weights of the days): Huber's weights, and none for days that cannot be."""
    from sklearn.linear_model import Ridge

    weights = np.ones(len(target))
    for _ in range(ROUNDS):
        ridge = Ridge(alpha=PENALTY).fit(inputs, target, sample_weight=weights)
        residuals = target - ridge.predict(inputs)
        spread = max(1.4826 * float(np.median(np.abs(residuals))), 1e-6)
        distance = np.abs(residuals) / spread
        weights = np.where(distance > IMPOSSIBLE, 0, DOUBTFUL / distance.clip(DOUBTFUL))
    return ridge, residuals, spread, weights


def persistence(days: np.ndarray, residuals: np.ndarray) -> float:
    """How much of a day's residual is left on the day after, 0 to 0.95: their regression over days that follow each other."""
    follows = np.diff(days.astype("datetime64[D]").astype(int)) == 1
    before, after = residuals[:-1][follows], residuals[1:][follows]
    return float(np.clip(before @ after / max(before @ before, 1e-12), 0, 0.95))
