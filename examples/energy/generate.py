"""`python generate.py OUTPUT`: daily energy use of many customers, made up and the same for the same seed.

Each customer has a level, a trend, a yearly and a weekly season of its own, noise that lasts for some days, missing days and outliers;
values are between 0 and 1,000 kWh. No other customer changes one's values, nor does how many there are.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

START = "2025-01-01"
DAYS = 365
LARGEST = 1000.0


def customer_id(number: int) -> str:
    return f"customer-{number:04d}"


def customer(number: int, days: int = DAYS, seed: int = 0) -> pd.DataFrame:
    """One customer's days: customer_id, date (YYYY-MM-DD) and value (kWh). Missing days have no row."""
    random = np.random.default_rng([seed, number])
    dates = pd.date_range(START, periods=days, freq="D")
    level = np.exp(random.uniform(np.log(40), np.log(450)))
    shape = 1 + trend(random, days) + yearly(random, dates.day_of_year.to_numpy()) + weekly(random, dates.day_of_week.to_numpy())
    values = level * (shape + lasting_noise(random, days))
    outliers = random.random(days) < 0.01
    values[outliers] *= random.choice([0.05, 0.3, 2.0, 3.0], outliers.sum())
    values = values.clip(0, LARGEST).round(2)
    table = pd.DataFrame({"customer_id": customer_id(number), "date": dates.strftime("%Y-%m-%d"), "value": values})
    return table[~missing(random, days)].reset_index(drop=True)


def customers(count: int, days: int = DAYS, seed: int = 0) -> pd.DataFrame:
    """All customers' days as a meter system exports them: by date, so that a customer's rows are far apart."""
    tables = [customer(number, days, seed) for number in range(count)]
    return pd.concat(tables).sort_values(["date", "customer_id"], ignore_index=True)


def trend(random: np.random.Generator, days: int) -> np.ndarray:
    """Up to 20 % of the level a year, either way, with a bend somewhere."""
    slopes, bend = random.uniform(-0.2, 0.2, 2), random.uniform(0.2, 0.8)
    years = np.arange(days) / 365.25
    return np.where(years < bend, slopes[0] * years, slopes[0] * bend + slopes[1] * (years - bend))


def yearly(random: np.random.Generator, day_of_year: np.ndarray) -> np.ndarray:
    """Heat below one temperature and cool air above another: parts of a wave, flat between them."""
    warmth = -np.cos(2 * np.pi * (day_of_year - random.normal(15, 7)) / 365.25)
    heat, cool = random.uniform(0, 0.5), random.uniform(0, 0.3)
    return heat * np.maximum(0, random.uniform(-0.5, 0.5) - warmth) + cool * np.maximum(0, warmth - random.uniform(-0.2, 0.8))


def weekly(random: np.random.Generator, day_of_week: np.ndarray) -> np.ndarray:
    """Offices use less on the two last days of a week, homes more; both with days of their own."""
    profile = random.normal(0, 0.03, 7)
    profile[5:] += random.uniform(-0.4, -0.1) if random.random() < 0.4 else random.uniform(0, 0.15)
    return profile[day_of_week]


def lasting_noise(random: np.random.Generator, days: int) -> np.ndarray:
    """What the weather does: each day keeps a part of the day before."""
    kept, spread = random.uniform(0.2, 0.7), random.uniform(0.03, 0.1)
    noise = random.normal(0, spread, days)
    for day in range(1, days):
        noise[day] = kept * noise[day - 1] + np.sqrt(1 - kept**2) * noise[day]
    return noise


def missing(random: np.random.Generator, days: int) -> np.ndarray:
    """One day of a hundred, and up to three stretches of up to ten days. The first and the last day are always there."""
    gone = random.random(days) < 0.01
    for _ in range(random.integers(0, 4)):
        first = random.integers(1, max(2, days - 11))
        gone[first : first + random.integers(2, 11)] = True
    gone[[0, -1]] = False
    return gone


def main(arguments: list[str] | None = None) -> int:
    """Writes the table to a file OUTPUT.csv, or one file a customer to a directory OUTPUT."""
    parser = argparse.ArgumentParser(prog="generate.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="a file that ends in .csv for one table of all, else a directory for one file each")
    parser.add_argument("--customers", type=int, default=1000)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.customers < 1 or given.days < 1:
        parser.error(f"--customers {given.customers} --days {given.days}: 1 or more of each was expected")
    if given.output.suffix == ".csv":
        given.output.parent.mkdir(parents=True, exist_ok=True)
        customers(given.customers, given.days, given.seed).to_csv(given.output, index=False)
    else:
        given.output.mkdir(parents=True, exist_ok=True)
        for number in range(given.customers):
            customer(number, given.days, given.seed).to_csv(given.output / f"{customer_id(number)}.csv", index=False)
    print(f"{given.customers} customers, {given.days} days, seed {given.seed}: {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
