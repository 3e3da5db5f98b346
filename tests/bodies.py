"""Bodies of numpy's and scipy's own making, and what is the same value: for the tests of the codecs."""

import io
import math
from typing import Any

import numpy as np
import scipy.sparse


def same(left: Any, right: Any) -> bool:
    """Equal in type, shape and values, where nan equals nan."""
    if isinstance(right, np.ndarray):
        if not isinstance(left, np.ndarray) or left.shape != right.shape or (left.dtype == object) != (right.dtype == object):
            return False
        return all(same(a, b) for a, b in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True))
    if isinstance(left, float) and isinstance(right, float) and math.isnan(right):
        return math.isnan(left)
    return bool(type(left) is type(right) and left == right)


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def saved(matrix: Any) -> bytes:
    stream = io.BytesIO()
    scipy.sparse.save_npz(stream, matrix)
    return stream.getvalue()
