"""A model of 300 MB that is real memory: an array, read into the process, of which each prediction touches every page."""

from pathlib import Path

import numpy
from sklearn.base import BaseEstimator, RegressorMixin

PAGE = 4096 // 8
"""Numbers in one page of memory."""


class Large(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Adds the sum of one number from each page to the sum of a row, and drops the fraction."""

    def __init__(self, weights):
        self.weights = weights

    def predict(self, rows):
        return (numpy.asarray(rows, dtype=float).sum(axis=1) + self.weights.ravel()[::PAGE].sum()).astype(int)


def model_fn(model_dir):
    return Large(numpy.load(Path(model_dir) / "weights.npy"))
