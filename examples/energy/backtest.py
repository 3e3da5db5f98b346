"""`python backtest.py`: how well and how fast the forecasters are, on customers that were made up.

Rolling origin: from each of four days, four weeks apart, the next 28 days are forecast from those before it.
"""

import argparse
import io
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from generate import customer
from training import history

ORIGINS = 4
HORIZON = 28
WEEK = 7
MARK = "<!-- backtest -->"
README = Path(__file__).with_name("README.md")


@dataclass(frozen=True)
class Forecaster:
    """fit(days, values) -> what is saved; load -> what is asked; predict(loaded, period) -> the answer, with or without a band."""

    title: str
    fit: Callable[[np.ndarray, np.ndarray], Any]
    predict: Callable[[Any, int], dict[str, list[Any]]]
    load: Callable[[Any], Any] = lambda model: model


def default() -> Forecaster:
    import seasonal

    return Forecaster("default (`seasonal.py`)", seasonal.fit, seasonal.predict, seasonal.load)


def naive() -> Forecaster:
    """The same day of the last week that has a value."""

    def fit(days: np.ndarray, values: np.ndarray) -> dict[str, Any]:
        weekday = days.astype(int) % WEEK
        return {"last": int(days[-1].astype(int)), "values": [float(values[weekday == day][-1]) for day in range(WEEK)]}

    def predict(model: dict[str, Any], period: int) -> dict[str, list[Any]]:
        return {"yhat": [model["values"][(model["last"] + ahead) % WEEK] for ahead in range(1, period + 1)]}

    return Forecaster("the same day of last week", fit, predict)


def prophet() -> Forecaster:
    import with_prophet

    return Forecaster("Prophet (`with_prophet.py`)", with_prophet.fit, with_prophet.predict, with_prophet.load)


def plain_prophet() -> Forecaster:
    import with_prophet

    options = {"seasonality_mode": "additive"}
    return Forecaster("Prophet as it comes", lambda d, v: with_prophet.fit(d, v, **options), with_prophet.predict, with_prophet.load)


def statsforecast(name: str) -> Forecaster:
    """A model of the statsforecast library, which is not among the project's requirements."""
    model = getattr(import_module("statsforecast.models"), name)

    def fit(days: np.ndarray, values: np.ndarray) -> Any:
        numbers = days.astype(int)
        return model(season_length=WEEK).fit(np.interp(np.arange(numbers[0], numbers[-1] + 1), numbers, values))

    def predict(fitted: Any, period: int) -> dict[str, list[Any]]:
        bands = fitted.predict(h=period, level=[80])
        return {"yhat": bands["mean"], "yhat_lower": bands["lo-80"], "yhat_upper": bands["hi-80"]}

    return Forecaster(f"statsforecast, {name}", fit, predict)


FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    "naive": naive,
    "default": default,
    "prophet": prophet,
    "plain-prophet": plain_prophet,
    "theta": lambda: statsforecast("DynamicOptimizedTheta"),
    "ets": lambda: statsforecast("AutoETS"),
}


def windows(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(days and values before an origin, days and values of the HORIZON after it) of each customer and each origin."""
    for number in range(count):
        days, values = history(customer(number, seed=seed))
        for weeks in range(1, ORIGINS + 1):
            origin = days[-1] - HORIZON * weeks
            before, after = days <= origin, (days > origin) & (days <= origin + HORIZON)
            yield days[before], values[before], days[after], values[after]


def measure(forecaster: Forecaster, count: int, seed: int) -> dict[str, float]:
    """Means over all days that were forecast: error (share of the customer's mean), covered (share of days in the band), and the cost."""
    errors, covered, ahead, seconds, sizes = [], [], [], [], []
    for days, values, later, truth in windows(count, seed):
        started = processor_seconds()
        model = forecaster.fit(days, values)
        fitted = processor_seconds()
        steps = (later - days[-1]).astype(int)
        loaded = forecaster.load(model)
        answer = {name: np.array(band)[steps - 1] for name, band in forecaster.predict(loaded, int(steps[-1])).items()}
        begun = processor_seconds()
        forecaster.predict(loaded, WEEK)
        seconds.append((fitted - started, processor_seconds() - begun))
        sizes.append(saved_bytes(model))
        errors.append(np.abs(answer["yhat"] - truth) / values.mean())
        band = ("yhat_lower" in answer) and (truth >= answer["yhat_lower"]) & (truth <= answer["yhat_upper"])
        covered.append(np.broadcast_to(band, truth.shape))
        ahead.append((later - later[0]).astype(int) < WEEK)
    all_errors, all_covered, near = np.concatenate(errors), np.concatenate(covered), np.concatenate(ahead)
    fit_ms, predict_ms = 1000 * np.median(np.array(seconds), axis=0)
    return {
        "error_7": all_errors[near].mean(),
        "error_28": all_errors.mean(),
        "covered_7": all_covered[near].mean(),
        "covered_28": all_covered.mean(),
        "fit_ms": fit_ms,
        "predict_ms": predict_ms,
        "bytes": float(np.mean(sizes)),
    }


def processor_seconds() -> float:
    """Of this process and of those that it has started: Prophet fits in a program of its own."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def saved_bytes(model: Any) -> int:
    file = io.BytesIO()
    joblib.dump(model, file)
    return len(file.getvalue())


def row(title: str, found: dict[str, float]) -> str:
    band = f"{found['covered_7']:.0%}, {found['covered_28']:.0%}" if found["covered_28"] else "none"
    cost = f"{found['fit_ms']:.1f} | {found['predict_ms']:.2f} | {found['bytes'] / 1000:.1f}"
    return f"| {title} | {found['error_7']:.2%} | {found['error_28']:.2%} | {band} | {cost} |"


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, and with --write puts it into README.md."""
    parser = argparse.ArgumentParser(prog="backtest.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("forecasters", nargs="*", help=f"of {', '.join(FORECASTERS)}; by default the first four")
    parser.add_argument("--customers", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="another than that of the training's data")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args(arguments)
    names = given.forecasters or list(FORECASTERS)[:4]
    unknown = sorted(set(names) - set(FORECASTERS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: accepted are {', '.join(FORECASTERS)}")
    lines = [
        "| | error, 7 days | error, 28 days | in the 80 % band, 7 and 28 days | ms a fit | ms a forecast | kB saved |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        forecaster = FORECASTERS[name]()
        lines.append(row(forecaster.title, measure(forecaster, given.customers, given.seed)))
        print(lines[-1], flush=True)
    if given.write:
        before, _, rest = README.read_text().partition(MARK)
        README.write_text(f"{before}{MARK}\n" + "\n".join(lines) + f"\n{MARK}{rest.partition(MARK)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
