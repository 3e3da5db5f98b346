"""Three kinds of iris from four measurements: a scaler and a logistic regression. Run by `train`, which saves what train_fn returns."""

import csv
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

SHIPPED = Path(__file__).parent / "data" / "train"


def train_fn(job) -> Pipeline:
    """Fits on the CSV files of the channel `train`, without one on the file shipped beside this script.

    Hyperparameters: C (inverse strength of the regularisation, default 1.0), seed (of the cross-validation, default 0).
    Prints `validation:accuracy=...`, of five-fold cross-validation.
    """
    files = job.channels["train"].files("*.csv") if "train" in job.channels else sorted(SHIPPED.glob("*.csv"))
    measurements, kinds = read(files)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=float(job.hyperparameters.get("C", 1.0)), max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=int(job.hyperparameters.get("seed", 0)))
    print(f"validation:accuracy={cross_val_score(model, measurements, kinds, cv=folds).mean():.4f};")
    return model.fit(measurements, kinds)


def read(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """CSV files without a header, the label first: measurements of shape (rows, columns), and labels of shape (rows,)."""
    rows = [row for file in files for row in csv.reader(file.read_text().splitlines()) if row]
    return np.array([row[1:] for row in rows], dtype=float), np.array([row[0] for row in rows])
