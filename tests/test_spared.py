"""scikit-learn without the pandas that it would import: each case in a process of its own, for what is imported stays."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
START = "import sys; from container import spared; spared.leave_out_pandas(); "
TRANSFORMS = """
import pandas
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import StandardScaler
frame = pandas.DataFrame({"a": [1.0, 3.0], "b": [0, 1]})
scaled = make_column_transformer((StandardScaler(), ["a"])).set_output(transform="pandas").fit_transform(frame)
print(type(scaled).__name__, scaled.to_numpy().ravel().tolist())
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sklearn.linear_model; print('pandas' in sys.modules)", "False"),
        ("import sklearn.linear_model, pandas; print(pandas.Series([1]).sum())", "1"),
        ("import pandas, sklearn.utils.fixes; print(sys.modules['pandas'] is pandas)", "True"),
        ("spared.leave_out_pandas(); print(sum('spared' in type(finder).__module__ for finder in sys.meta_path))", "1"),
        (TRANSFORMS, "DataFrame [-1.0, 1.0]"),
    ],
)
def test_pandas_is_there_for_those_who_ask(code, said):
    done = subprocess.run([sys.executable, "-c", START + code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == said
